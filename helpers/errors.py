"""Show a failure as a result: run something that should fail and print what it says, without a page of traceback."""

from __future__ import annotations

import re
from collections.abc import Callable

COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # some libraries colour their messages for a terminal


def show_error(call: Callable[[], object], lines: int = 1, width: int = 240) -> None:
    """Run `call`; print the type and the first `lines` lines of the error, or say that there was none.

    A line of more than `width` characters ends in "…": some messages list every backend of PyTorch.
    """
    try:
        call()
    except Exception as error:
        shown = COLOURS.sub("", str(error)).strip().splitlines()[:lines]
        shown = [line if len(line) <= width else line[:width].rstrip() + " …" for line in shown]
        print(f"{type(error).__name__}: " + "\n".join(shown))
    else:
        print("No error was raised.")


def show_result(call: Callable[[], object]) -> None:
    """Run `call` and print what it returns, or the error in one line: for a cell that needs a learner's own answer."""
    try:
        print(call())
    except Exception as error:
        print(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")
