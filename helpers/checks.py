"""Friendly checks for the visible part of a test cell: they say what passed and name the likely mistake.

A grade never depends on this module: hidden tests are plain assertions, and a progress file that cannot be
written is only mentioned. Introduced in unit 00.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
from torch import Tensor

PROGRESS_FILE = Path(__file__).resolve().parent.parent / "progress.json"


class CheckFailed(AssertionError):
    """A check that did not pass; its text is written for the learner."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for this: the sentence, not a page of frames
        return [str(self)]


class NotSolvedYet(CheckFailed):
    """The exercise still holds its stub: neither right nor wrong."""


@contextmanager
def check(exercise: str, passed: str) -> Iterator[None]:
    """Run the visible checks of `exercise`; print `passed` and record progress when all of them hold.

    Raises
    ------
    NotSolvedYet
        If the learner's code is still the stub.
    CheckFailed
        If a check fails or the learner's code raises; the text names the likely mistake, or the line that raised.
    """
    gradients = torch.is_grad_enabled()
    try:
        # nbgrader takes a warning on stderr for a failure; seeds of a check must not change the learner's random state.
        with redirect_stderr(sys.stdout), torch.random.fork_rng(devices=[]):
            yield
        assert torch.is_grad_enabled() == gradients, (
            "your code switches gradients off for the whole notebook: use `with torch.no_grad():`, which ends."
        )
    except Exception as error:
        if isinstance(error, NotImplementedError) and "is not solved yet" in str(error):
            _record(exercise, "untouched")
            raise NotSolvedYet(
                f"Exercise {exercise} is not solved yet: write your code where the cell above says YOUR CODE HERE, run "
                "that cell, then run this one again."
            ) from None
        _record(exercise, "tried")
        raise CheckFailed(f"Exercise {exercise}: {_explanation(error)}") from error
    finally:
        torch.set_grad_enabled(gradients)
    _record(exercise, "solved")
    print(f"Exercise {exercise} passed: {passed}.")


def close(
    answer: Tensor,
    expected: Tensor,
    what: str,
    mistakes: Mapping[str, Tensor] | None = None,
    atol: float = 1e-5,
    rtol: float = 1e-5,
) -> None:
    """Assert that a tensor equals the expected one up to rounding, else say what is wrong with it.

    Parameters
    ----------
    answer, expected : Tensor
        The learner's result and an independent one.
    what : str
        What `answer` is, for the message: "your output for 2 heads".
    mistakes : mapping of str to Tensor
        A sentence for each known mistake, with the value that this mistake gives.
    atol, rtol : float
        Allowed is ``atol + rtol * abs(expected)``, for every element (the maximum counts, not the mean).

    Raises
    ------
    AssertionError
    """
    tensor(answer, expected.shape, what)
    if _same(answer, expected, atol, rtol):
        return
    for sentence, wrong in (mistakes or {}).items():
        if wrong.shape == expected.shape and _same(answer, wrong, atol, rtol):
            raise AssertionError(f"{what} is wrong: {sentence}")
    if not torch.isfinite(answer.double()).all():
        raise AssertionError(
            f"{what} holds nan or inf: infinity times 0, infinity minus infinity, or a division by 0 makes them."
        )
    error = (answer.double() - expected.double()).abs()
    worst = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    raise AssertionError(
        f"{what} differs from the expected value by up to {error.max():.3g}; at index {list(worst)} it is "
        f"{answer[worst]:.6g} and should be {expected[worst]:.6g}."
    )


def tensor(answer: object, shape: torch.Size | tuple[int, ...], what: str, dtype: torch.dtype | None = None) -> None:
    """Assert that `answer` is a tensor of this shape (and dtype)."""
    given(answer, what)
    assert isinstance(answer, Tensor), f"{what} should be a tensor, not {type(answer).__name__}."
    assert answer.shape == shape, f"{what} has shape {tuple(answer.shape)}; expected is {tuple(shape)}."
    assert dtype is None or answer.dtype == dtype, f"{what} has dtype {answer.dtype}; expected is {dtype}."


def number(
    answer: object, expected: float, what: str, mistakes: Mapping[str, float] | None = None, rtol: float = 1e-5
) -> None:
    """Assert that `answer` is a number equal to `expected` up to `rtol`, else name the likely mistake."""
    given(answer, what)
    assert not isinstance(answer, str | bytes), f"{what} should be a number, not text."
    try:
        value = float(answer.detach() if isinstance(answer, Tensor) else answer)
    except (TypeError, ValueError):
        raise AssertionError(f"{what} should be a number, not {type(answer).__name__}.") from None
    near = lambda other: abs(value - other) <= rtol * max(abs(other), 1e-12)  # noqa: E731
    if near(expected):
        return
    for sentence, wrong in (mistakes or {}).items():
        if near(wrong):
            raise AssertionError(f"{what} is wrong: {sentence}")
    raise AssertionError(f"{what} is {value:.6g}; expected is {expected:.6g}.")


def given(answer: object, what: str) -> None:
    """Assert that there is an answer at all."""
    assert answer is not None, f"{what} is None: does your function end with `return`?"


def raises(kind: type[Exception], call: Callable[[], object], otherwise: str) -> None:
    """Assert that `call` raises `kind`; `otherwise` is the sentence for the learner when it does not."""
    try:
        call()
    except kind:
        return
    except Exception as error:
        raise AssertionError(f"{otherwise} (It raised {type(error).__name__}: {error})") from None
    raise AssertionError(otherwise)


def show_progress(unit: str, exercises: int, parts: Mapping[int, int] | None = None) -> None:
    """Print which of the unit's exercises have passed their visible check on this computer.

    Parameters
    ----------
    unit : str
        "2" for exercises 2.1, 2.2, …
    exercises : int
    parts : mapping of int to int, or None
        ``{10: 3}``: exercise 2.10 consists of 2.10.1, 2.10.2 and 2.10.3.
    """
    state = _read()
    parts = parts or {}
    names = []
    for i in range(1, exercises + 1):
        names += [f"{unit}.{i}.{j}" for j in range(1, parts[i] + 1)] if i in parts else [f"{unit}.{i}"]
    solved = [name for name in names if state.get(name) == "solved"]
    open_ones = [name for name in names if name not in solved]
    if os.environ.get("COURSE_PROGRESS") == "off":
        print("Progress is not recorded in this run.")
        return
    print(f"Unit {unit}: {len(solved)} of {len(names)} exercises solved.")
    if open_ones:
        print(f"Still open: {', '.join(open_ones)}.")


def _explanation(error: Exception) -> str:
    """What to tell a learner whose code raised, or failed an assertion."""
    if isinstance(error, AssertionError):
        sentence = str(error) or f"an assertion without a text failed{_place(error)}."
        begin = sentence[0].upper() if re.match(r"[a-z]+[ ,']", sentence) else sentence[0]  # my_name stays my_name
        return f"not yet. {begin}{sentence[1:]}"
    if isinstance(error, NameError):
        return (
            f"{error}{_place(error)}. Either your code uses a name that does not exist, or the cell that defines it "
            "has not run: use Run > Run All Above Selected Cell, then run this cell again."
        )
    return (
        f"your code stopped with {type(error).__name__}: {error}\n"
        f"It happened{_place(error)}. To see more, call your function yourself in a new cell."
    )


def _place(error: BaseException) -> str:
    """Where in the learner's own code an error came from: the last frame of a notebook cell that is not a check."""
    frames = [
        summary
        for (frame, _), summary in zip(
            traceback.walk_tb(error.__traceback__), traceback.extract_tb(error.__traceback__), strict=True
        )
        if "site-packages" not in summary.filename
        and not summary.filename.startswith(str(Path(__file__).parent))
        and not frame.f_code.co_qualname.startswith("check_ex_")  # the check, and functions inside it
    ]
    if not frames:
        return " in the check, with what your function returned"
    return f" in {frames[-1].name}, line {frames[-1].lineno} of its cell: {frames[-1].line or ''}".rstrip(": ")


def _same(a: Tensor, b: Tensor, atol: float, rtol: float) -> bool:
    return bool(torch.allclose(a.double(), b.double(), atol=atol, rtol=rtol))


def _read() -> dict[str, str]:
    try:
        state = json.loads(PROGRESS_FILE.read_text())
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in state.items() if isinstance(v, str)} if isinstance(state, dict) else {}


def _record(exercise: str, state: str) -> None:
    """Note the outcome in the local progress file; never while grading, and never fatal."""
    if os.environ.get("NBGRADER_EXECUTION") == "autograde" or os.environ.get("COURSE_PROGRESS") == "off":
        return
    progress = _read()
    if progress.get(exercise) != "solved":
        progress[exercise] = state
    part = PROGRESS_FILE.with_suffix(f".{os.getpid()}.part")  # two notebooks may be open
    try:
        _set_aside_if_damaged()
        part.write_text(json.dumps(progress, indent=1, sort_keys=True))
        part.replace(PROGRESS_FILE)
    except OSError as error:
        print(f"(Your progress was not saved in {PROGRESS_FILE.name}: {error.strerror}. Your answer is not affected.)")


def _set_aside_if_damaged() -> None:
    """Keep a progress file that is no JSON, perhaps edited by hand, under another name before a new one begins."""
    try:
        json.loads(PROGRESS_FILE.read_text())
    except FileNotFoundError:
        return
    except ValueError:  # bytes that are no text are one, too
        kept = PROGRESS_FILE.with_suffix(".damaged.json")
        PROGRESS_FILE.replace(kept)
        print(f"({PROGRESS_FILE.name} cannot be read. It is kept as {kept.name}, and a new one begins.)")
