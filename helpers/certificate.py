"""What a learner has done, on one page: exercises and points of every unit, and numbers of their own. For unit 06.

It reads the local progress file and the learners' notebooks, which say how many exercises there are. It is a friendly
summary, no proof: anybody can edit a file on their own computer, and grades come from elsewhere.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from IPython.display import HTML, display

from helpers import progress as record

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
UNITS = (
    "00_start_here",
    "01_transformer_basics",
    "02_quantization_apis",
    "03_linear_variants",
    "04_component_wise",
    "05_evaluation",
    "06_capstone",
)
OFF = "Progress is not recorded in this run, so there is nothing to certify. Run this cell in your own notebook."


@dataclass(frozen=True)
class Unit:
    """One unit: its title and the points of each of its exercises, ``{"2.10.1": 1}``."""

    title: str
    points: Mapping[str, int]


@dataclass(frozen=True)
class Row:
    """What is solved of one unit."""

    title: str
    solved: int
    exercises: int
    points: int
    possible: int


def units() -> dict[str, Unit | None]:
    """Every unit with the exercises that its check cells announce; None for one whose notebook cannot be read."""
    return {name: _unit(NOTEBOOKS / name / f"{name}.ipynb") for name in UNITS}


def _unit(path: Path) -> Unit | None:
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        marks = [cell.get("metadata", {}).get("nbgrader", {}) for cell in cells]
        points = {
            mark["grade_id"].removeprefix("ex_").removesuffix("_check").replace("_", "."): int(mark["points"])
            for mark in marks
            if mark.get("grade")
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    lines = [line for text in texts for line in text.splitlines() if line.startswith("# ")]
    return Unit(f"{path.stem[:2]} {lines[0][2:].strip() if lines else path.stem[3:]}", points)


def progress() -> dict[str, object] | None:
    """What the progress file says, ``{"2.1": "solved"}``; empty if there is none, None if it cannot be read."""
    try:
        state = json.loads(record.FILE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        return None
    return state if isinstance(state, dict) else None


def rows(state: Mapping[str, object], course: Sequence[Unit]) -> list[Row]:
    """One row for each unit; what the progress file says about other exercises does not count."""
    result = []
    for unit in course:
        solved = [number for number in unit.points if state.get(number) == "solved"]
        points = sum(unit.points[number] for number in solved)
        result.append(Row(unit.title, len(solved), len(unit.points), points, sum(unit.points.values())))
    return result


def sentence(table: Sequence[Row], missing: Sequence[str] = ()) -> str:
    """Where the learner stands, in a few sentences; `missing` names units that are not in the table."""
    solved, exercises = sum(row.solved for row in table), sum(row.exercises for row in table)
    if not exercises:
        return "No unit was found, so there is nothing to count. Are the notebooks where the course put them?"
    if not solved:
        text = "No exercise is solved on this computer yet. Exercise 0.1 is a good one to begin with."
    elif solved < exercises:
        text = f"{solved} of {exercises} exercises are solved. The others will wait."
    else:
        text = f"All {exercises} exercises {'that were found' if missing else 'of the course'} are solved."
    if missing:
        text += f" Not counted, for lack of a notebook that can be read: {', '.join(missing)}."
    return text


def page(said: str, table: Sequence[Row], results: Mapping[str, object] | None = None, name: str = "") -> str:
    """The certificate as HTML: what is `said`, the table of units if it has rows, the learner's own numbers if any."""
    total = Row(
        "Together", *(sum(getattr(row, key) for row in table) for key in ("solved", "exercises", "points", "possible"))
    )
    lines = [
        (row.title, f"{row.solved} of {row.exercises}", f"{row.points} of {row.possible}") for row in (*table, total)
    ]
    title = "Exercises whose check has passed on this computer"
    course = _table(lines, title, ("Unit", "Exercises solved", "Points")) if table else ""
    own = _table(list((results or {}).items()), "Numbers of your own") if results else ""
    title = f"Quantizing Transformers: {html.escape(name)}" if name else "Quantizing Transformers"
    return (
        '<div style="border: 2px solid currentColor; padding: 1em 1.5em; max-width: 42em">'
        f"<p><strong>{title}</strong></p><p>{html.escape(said)}</p>{course}{own}</div>"
    )


def _table(lines: Sequence[Sequence[object]], caption: str, head: Sequence[str] = ()) -> str:
    """An HTML table whose first column names the rows; all text is escaped."""
    style = 'style="text-align: left; font-weight: inherit; padding: 0.2em 1em 0.2em 0"'
    titles = "".join(f'<th scope="col" {style}>{html.escape(title)}</th>' for title in head)
    body = ""
    for first, *others in lines:
        cells = "".join(f"<td {style}>{html.escape(str(other))}</td>" for other in others)
        body += f'<tr><th scope="row" {style}>{html.escape(str(first))}</th>{cells}</tr>'
    return (
        '<table style="border-collapse: collapse; margin: 1em 0">'
        f'<caption style="caption-side: top; text-align: left; font-style: italic">{html.escape(caption)}</caption>'
        + (f'<thead style="font-weight: bold"><tr>{titles}</tr></thead>' if titles else "")
        + f"<tbody>{body}</tbody></table>"
    )


def show(results: Mapping[str, object] | None = None, name: str = "", file: str | Path | None = None) -> None:
    """Display the certificate.

    Parameters
    ----------
    results : mapping of str to object, or None
        The learner's own numbers: a label and what to write beside it.
    name : str
        Whose certificate it is. It is written nowhere but on the page.
    file : str, Path or None
        Where to keep the page as HTML. Nothing is saved if it is None.
    """
    if os.environ.get("COURSE_PROGRESS") == "off":
        print(OFF)
        return
    course, state = units(), progress()
    if state is None:
        said = (
            f"The progress file {record.FILE.name} cannot be read, so nothing can be counted. "
            "Put a good copy in its place, or run the checks of your solved exercises again: that begins a new file."
        )
        table = []
    else:
        table = rows(state, [unit for unit in course.values() if unit])
        said = sentence(table, [unit for unit, found in course.items() if not found])
    text = page(said, table, results, name)
    display(HTML(text))
    if file is not None:
        file = Path(file)
        file.write_text(
            f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Certificate</title>{text}</html>\n',
            encoding="utf-8",
        )
        print(f"The page is kept in {file.name}.")
