"""Which exercises have been solved on this computer: progress.json, beside the notebooks, never sent anywhere."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock, Timeout

FILE = Path(__file__).resolve().parent.parent / "progress.json"
SECONDS = 10.0  # a lock is held for milliseconds; longer means that its owner hangs


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
    if off():
        print("Progress is not recorded in this run.")
        return
    parts = parts or {}
    names = []
    for i in range(1, exercises + 1):
        names += [f"{unit}.{i}.{j}" for j in range(1, parts[i] + 1)] if i in parts else [f"{unit}.{i}"]
    state = read()
    if state is None:
        print(f"{FILE.name} cannot be read: it is damaged. The next check that you run keeps it under another name.")
        return
    open_ones = [name for name in names if state.get(name) != "solved"]
    print(f"Unit {unit}: {len(names) - len(open_ones)} of {len(names)} exercises solved.")
    if open_ones:
        print(f"Still open: {', '.join(open_ones)}.")


def off() -> bool:
    """True while grading, building and testing: then nothing is written."""
    return os.environ.get("NBGRADER_EXECUTION") == "autograde" or os.environ.get("COURSE_PROGRESS") == "off"


def read() -> dict[str, str] | None:
    """State of each exercise that was tried: "untouched", "tried" or "solved"; None if the file is damaged."""
    try:
        state = json.loads(FILE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):  # bytes that are no text are a ValueError, too
        return None
    if not isinstance(state, dict) or not all(isinstance(value, str) for value in state.values()):
        return None
    return state


def record(exercise: str, state: str) -> None:
    """Note the outcome of a check; "solved" stays. Never fatal: what cannot be written is said."""
    if off():
        return
    try:
        FILE.parent.stat()  # FileLock would make a folder that is not there
        with FileLock(FILE.with_suffix(".lock"), timeout=SECONDS):  # two notebooks may be open
            progress = read()
            if progress is None:
                progress = _kept_aside()
            if progress.get(exercise) != "solved":
                progress[exercise] = state
            part = FILE.with_suffix(".part")
            part.write_text(json.dumps(progress, indent=1, sort_keys=True), encoding="utf-8")
            part.replace(FILE)
    except (OSError, Timeout) as error:
        reason = "another program holds its lock" if isinstance(error, Timeout) else error.strerror
        print(f"(Your progress was not saved in {FILE.name}: {reason}. Your answer is not affected.)")


def _kept_aside() -> dict[str, str]:
    """Keep a damaged file under a name that is free; what can still be read of it goes on."""
    names = (FILE.with_suffix(f".damaged-{number}.json") for number in itertools.count(1))
    kept = next(name for name in names if not name.exists())
    FILE.replace(kept)
    print(f"({FILE.name} cannot be read. It is kept as {kept.name}, and a new one begins.)")
    try:
        state = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in state.items() if isinstance(v, str)} if isinstance(state, dict) else {}
