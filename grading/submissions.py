"""What lies in gradebook/submitted: find it, read it, and put right what has nothing to do with the answers.

Nothing that was submitted is changed: a notebook is built anew from the cells of the submitted file, and nbgrader
grades the new one. So outputs, format numbers, cell ids and metadata that an editor has damaged cost nobody a point.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbgrader.utils import parse_utc

from grading.course import unit_names

GLOB = re.compile(r"[*?\[\]]")  # nbgrader looks folders up by pattern, so these letters in a name mean something else
CELL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
LEFT_OVER = {"Thumbs.db", "desktop.ini"}  # written by a file manager, like every name that begins with a dot
WANTED = "Wanted is submitted/STUDENT/UNIT/UNIT.ipynb"
AGAIN = "Ask for it again: save in JupyterLab, then hand in."


class NotGraded(Exception):
    """A submission cannot be graded; the text says why and what to do."""


@dataclass(frozen=True)
class Submission:
    student: str
    unit: str
    folder: Path


@dataclass(frozen=True)
class Refused:
    """Something below gradebook/submitted that gets no points, and the sentence that says why."""

    student: str
    unit: str
    why: str

    def __str__(self) -> str:
        return ", ".join(part for part in (self.student, self.unit) if part) + f": NOT GRADED, {self.why}"


@dataclass
class Reading:
    """A submission's notebook, built anew, and what the instructor should know about it."""

    nb: NotebookNode
    notes: list[str] = field(default_factory=list)


def entries(folder: Path) -> list[Path]:
    """What somebody put into a folder (not what the file manager did)."""
    return sorted(p for p in folder.iterdir() if p.name[0] != "." and p.name not in LEFT_OVER)


def find_submissions(root: Path, units: list[str]) -> tuple[list[Submission], list[Refused]]:
    """Submissions of `units` below gradebook/submitted, and a sentence for everything there that is none."""
    top = root / "gradebook" / "submitted"
    found, refused = [], []
    for student in entries(top) if top.is_dir() else []:
        if student.name == "__MACOSX":
            refused.append(Refused(student.name, "", "it is left over from a Mac's zip archive. Delete the folder."))
        elif not student.is_dir():
            refused.append(Refused(student.name, "", f"it is not a student's folder. {WANTED}."))
        else:
            of_student = folders_of_units(student, root)
            found += [s for s in of_student if isinstance(s, Submission) and s.unit in units]
            refused += [s for s in of_student if isinstance(s, Refused)]
    return found, refused


def folders_of_units(student: Path, root: Path) -> list[Submission | Refused]:
    """What a student's folder holds; the case of letters in a folder's name does not matter."""
    spelled = {unit.lower(): unit for unit in unit_names(root)}
    found: dict[str, Submission | Refused] = {}
    # The exact name first: of two folders that differ in case, that one counts.
    for folder in sorted(entries(student), key=lambda p: p.name not in spelled.values()):
        unit = spelled.get(folder.name.lower())
        if folder.name == "__MACOSX":
            why = "it is left over from a Mac's zip archive. Delete the folder."
        elif unit is None or not folder.is_dir():
            why = f"it is not the folder of a unit. {WANTED}, with one of the units {', '.join(spelled.values())}."
        elif unit in found:
            why = f"there is a folder {unit}, too, and that one is graded. Keep the one that counts."
        else:
            found[unit] = Submission(student.name, unit, folder)
            continue
        found[folder.name] = Refused(student.name, folder.name, why)
    return list(found.values()) or [Refused(student.name, "", f"the folder is empty. {WANTED}.")]


def read_submission(submission: Submission, root: Path) -> Reading:
    """The submitted notebook, built anew.

    Raises
    ------
    NotGraded
        If there is none, or it is not a notebook of this unit, or it is not clear which one counts.
    """
    unit = submission.unit
    if GLOB.search(submission.student):
        raise NotGraded("its folder's name holds one of the letters * ? [ ]. Rename the folder.")
    path, others = choose(submission.folder, unit)
    if any(part.is_symlink() for part in (path, path.parent, path.parent.parent)):
        raise NotGraded(f"{path.name} is a link to another file. Ask for the notebook itself.")
    raw = read_json(path)
    marks = marks_of(root, unit)
    nb = rebuilt(raw, path.name, marks)
    if not any("nbgrader" in cell.metadata for cell in nb.cells):
        raise NotGraded(foreign(raw, path.name, unit, root))
    reading = Reading(nb)
    if path.name != f"{unit}.ipynb":
        reading.notes.append(f"read from {path.name}")
    if others:
        names = ", ".join(other.name for other in others)
        if untouched(nb, unit, root) and not all(is_untouched_copy(other, unit, root) for other in others):
            raise NotGraded(
                f"{path.name} is as it was handed out, but beside it there is {names}. Keep the one that counts, "
                f"under the name {unit}.ipynb."
            )
        reading.notes.append(f"only {path.name} is graded; beside it there is {names}")
    return reading


def choose(folder: Path, unit: str) -> tuple[Path, list[Path]]:
    """The notebook with the unit's name (in any case of letters), and the other notebooks in the folder."""
    inside = entries(folder)
    notebooks = [p for p in inside if p.suffix.lower() == ".ipynb" and (p.is_file() or p.is_symlink())]
    named = [p for p in notebooks if p.stem.lower() == unit.lower()]
    if not named:
        found = ", ".join(p.name for p in (notebooks or inside)[:5]) or "nothing"
        raise NotGraded(f"there is no {unit}.ipynb in its folder (found: {found}). Ask for it, or rename the file.")
    best = min(named, key=lambda p: p.name != f"{unit}.ipynb")
    return best, [p for p in notebooks if p != best]


def read_json(path: Path) -> dict:
    """The file's JSON, in UTF-8, UTF-16 or UTF-32, with a byte order mark or without."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NotGraded(f"{path.name} cannot be opened ({error.strerror}).") from error
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NotGraded(f"{path.name} is not a valid notebook ({why_not_json(data, error)}). {AGAIN}") from error
    cells = cells_of(raw)
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise NotGraded(f"{path.name} is not a valid notebook (it has no list of cells). {AGAIN}")
    return raw


def why_not_json(data: bytes, error: Exception) -> str:
    start = data.lstrip()[:2]
    if not start:
        return "it is empty"
    if start == b"PK":
        return "it is a zip archive"
    if start[:1] == b"<" and b"<<<<<<<" not in data[:16]:
        return "it is a web page"
    if b"<<<<<<< " in data:
        return "it holds the marks of a merge in git"
    if isinstance(error, UnicodeDecodeError):
        return "its letters are not in UTF-8"
    return f"it breaks in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "it is damaged"


def cells_of(raw: object) -> object:
    """The list of cells; the format before 4 kept them in worksheets."""
    if not isinstance(raw, dict):
        return None
    sheets = raw.get("worksheets")
    if "cells" in raw or not isinstance(sheets, list):
        return raw.get("cells")
    return [cell for sheet in sheets if isinstance(sheet, dict) for cell in sheet.get("cells", [])]


def text_of(source: object) -> str:
    """A cell's source as one string; half an emoji, which no file can hold, becomes the sign for a broken letter."""
    parts = source if isinstance(source, list) else [source]
    text = "".join(part for part in parts if isinstance(part, str))
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def marks_of(root: Path, unit: str) -> dict[str, dict]:
    """The nbgrader metadata of the unit's own cells, by grade id."""
    nb = nbformat.read(root / "solutions" / unit / f"{unit}.ipynb", as_version=4)
    marks = [dict(cell.metadata["nbgrader"]) for cell in nb.cells if "nbgrader" in cell.metadata]
    return {mark["grade_id"]: mark for mark in marks}


def grade_id(cell: dict) -> str | None:
    """The grade id that a submitted cell claims, whatever its metadata looks like."""
    metadata = cell.get("metadata")
    mark = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    name = mark.get("grade_id") if isinstance(mark, dict) else None
    return name if isinstance(name, str) else None


def rebuilt(raw: dict, name: str, marks: dict[str, dict]) -> NotebookNode:
    """A notebook of the newest format with the same sources in the same order.

    A cell that belongs to an exercise gets the metadata that was handed out (found by its grade id, or by its cell id
    when the metadata is lost); every other cell has none. Outputs are made anew by grading, so none is copied.
    """
    submitted = cells_of(raw)
    claimed = {grade_id(cell) for cell in submitted}
    cells, taken = [], set(marks)
    for number, cell in enumerate(submitted):
        mark = grade_id(cell)
        if mark not in marks and cell.get("id") in set(marks) - claimed:
            mark = cell["id"]
        kind = {"code": "code", "raw": "raw"}.get(str(cell.get("cell_type")), "markdown")
        new = getattr(nbformat.v4, f"new_{kind}_cell")(text_of(cell.get("source", cell.get("input"))))
        new.id = unique_id(cell.get("id"), number, taken)
        if mark in marks:
            new.metadata["nbgrader"] = NotebookNode(marks[mark])
        elif kind != "code":
            keep_pictures(new, cell)
        cells.append(new)
    nb = nbformat.v4.new_notebook(cells=cells)
    metadata = raw.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("course"), dict):
        nb.metadata["course"] = NotebookNode(release=text_of(metadata["course"].get("release")))
    nbformat.validate(nb)
    return nb


def unique_id(wanted: object, number: int, taken: set[str]) -> str:
    """The cell's own id if it is allowed and still free, else a new one."""
    name = wanted if isinstance(wanted, str) and CELL_ID.fullmatch(wanted) else f"cell-{number}"
    while name in taken:
        name = f"{name[:50]}-{number}"
    taken.add(name)
    return name


def keep_pictures(new: NotebookNode, cell: dict) -> None:
    """Copy a text cell's attached pictures, if they are what the format says."""
    if isinstance(cell.get("attachments"), dict):
        new["attachments"] = cell["attachments"]
        if not nbformat.validator.isvalid(new, ref=f"{new.cell_type}_cell", version=4, version_minor=5):
            del new["attachments"]


def foreign(raw: dict, name: str, unit: str, root: Path) -> str:
    """A sentence about a notebook without a single cell of the unit."""
    claimed = {grade_id(cell) for cell in cells_of(raw)}
    for other in unit_names(root):
        if other != unit and claimed & set(marks_of(root, other)):
            return f"{name} holds the notebook of unit {other}, not of {unit}. Put it into a folder {other}."
    return f"{name} holds no cell of this course. Ask for the notebook that was handed out."


def code_of(nb: NotebookNode) -> set[str]:
    return {cell.source.strip() for cell in nb.cells if cell.cell_type == "code"}


def handed_out(root: Path, unit: str) -> NotebookNode:
    return nbformat.read(root / "notebooks" / unit / f"{unit}.ipynb", as_version=4)


def untouched(nb: NotebookNode, unit: str, root: Path) -> bool:
    """True if the notebook holds no code but what was handed out."""
    return code_of(nb) <= code_of(handed_out(root, unit)) | {""}


def is_untouched_copy(path: Path, unit: str, root: Path) -> bool:
    try:
        return untouched(rebuilt(read_json(path), path.name, marks_of(root, unit)), unit, root)
    except NotGraded:
        return False


def release_note(nb: NotebookNode, unit: str, root: Path) -> str | None:
    """A sentence if the notebook was made from another release than the one that is graded with."""
    theirs = nb.metadata.get("course", {}).get("release")
    if theirs == handed_out(root, unit).metadata.get("course", {}).get("release"):
        return None
    return (
        f"was made from {'another' if theirs else 'an unknown'} release of {unit}: graded with the tests of the "
        "current one; an exercise that is new in it counts as not done."
    )


def write_copy(reading: Reading, submission: Submission, into: Path) -> None:
    """Write the notebook and what lies beside it to the folder ``into/STUDENT/UNIT``, where nbgrader reads it."""
    folder = into / submission.student / submission.unit
    shutil.rmtree(folder, ignore_errors=True)
    try:
        shutil.copytree(submission.folder, folder, ignore=not_copied, copy_function=shutil.copyfile)
    except OSError as error:
        raise NotGraded("a file beside the notebook cannot be read. Delete it, or make it readable.") from error
    if (date := folder / "timestamp.txt").is_file() and not is_date(date):
        date.unlink()
        reading.notes.append("its timestamp.txt is not a date, and is left out")
    nbformat.write(reading.nb, folder / f"{submission.unit}.ipynb")


def not_copied(folder: str, names: list[str]) -> set[str]:
    """Notebooks (built anew), links, and what the file manager wrote."""
    return {
        name
        for name in names
        if name.lower().endswith(".ipynb") or name[0] == "." or name in LEFT_OVER or (Path(folder) / name).is_symlink()
    }


def is_date(path: Path) -> bool:
    try:
        return parse_utc(path.read_text().strip()) is not None
    except Exception:  # the parser raises many kinds, and each means the same here
        return False
