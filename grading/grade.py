"""Grade a class: ``make grade``.

Reads ``gradebook/submitted/STUDENT/UNIT/UNIT.ipynb``, runs nbgrader's autograder on every submission and writes

- ``gradebook/grades.csv``: a line for each student, unit and exercise;
- ``gradebook/feedback/STUDENT/UNIT/UNIT.html``: what to give back (it shows the hidden tests).

A submission that cannot be read is named, with what to do; the others are graded all the same, and nothing that was
submitted is ever changed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.apps.api import NbGraderAPI

from grading.course import ROOT, nbgrader_api, unit_names
from grading.preprocessors import exercise_number

GLOB = re.compile(r"[*?\[\]]")  # nbgrader looks folders up by pattern, so these letters in a name mean something else


class NotGraded(Exception):
    """A submission cannot be graded; the text says why and what to do."""


@dataclass(frozen=True)
class Submission:
    student: str
    unit: str
    path: Path


def find_submissions(root: Path, units: list[str]) -> tuple[list[Submission], list[str]]:
    """Submissions below gradebook/submitted, and a sentence for everything there that is none."""
    found, strange = [], []
    for student in sorted((root / "gradebook" / "submitted").glob("*")):
        if not student.is_dir():
            strange.append(f"{student.name}: is not a student's folder. Wanted is submitted/STUDENT/UNIT/UNIT.ipynb")
            continue
        for folder in sorted(student.glob("*")):
            if folder.name in units and folder.is_dir():
                found.append(Submission(student.name, folder.name, folder / f"{folder.name}.ipynb"))
            elif folder.name not in unit_names(root):
                strange.append(
                    f"{student.name}/{folder.name}: is not the folder of a unit. Wanted is "
                    f"submitted/STUDENT/UNIT/UNIT.ipynb, with one of the units {', '.join(unit_names(root))}"
                )
    return found, strange


def read_submission(submission: Submission) -> NotebookNode:
    """The submitted notebook.

    Raises
    ------
    NotGraded
        If there is none, or it is not a notebook of this course.
    """
    path = submission.path
    if GLOB.search(submission.student):
        raise NotGraded("its folder's name holds one of the letters * ? [ ]. Rename the folder.")
    if not path.is_file():
        others = ", ".join(sorted(p.name for p in path.parent.glob("*.ipynb"))) or "no notebook at all"
        raise NotGraded(f"there is no {path.name} in its folder (found: {others}). Ask for it, or rename the file.")
    if any(part.is_symlink() for part in (path, path.parent, path.parent.parent)):
        raise NotGraded(f"{path.name} is a link to another file. Ask for the notebook itself.")
    try:
        nb = nbformat.read(path, as_version=4)
        nbformat.validate(nb)
    except Exception as error:  # nbformat raises many kinds for a broken file, and each means the same here
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise NotGraded(
            f"{path.name} is not a valid notebook ({reason}). Ask for it again: save in JupyterLab, then hand in."
        ) from error
    marks = [cell.metadata.get("nbgrader", {}) for cell in nb.cells]
    if not all(isinstance(mark, dict) for mark in marks):
        raise NotGraded(f"the metadata of {path.name} is damaged. Ask for the notebook that was handed out.")
    if not any(mark.get("grade") or mark.get("solution") for mark in marks):
        raise NotGraded(f"{path.name} holds no cell of this course. Ask for the notebook that was handed out.")
    return nb


def release_note(nb: NotebookNode, unit: str, root: Path) -> str | None:
    """A sentence if the notebook was made from another release than the one that is graded with."""
    current = release_of(nbformat.read(root / "notebooks" / unit / f"{unit}.ipynb", as_version=4))
    theirs = release_of(nb)
    if theirs == current:
        return None
    return (
        f"was made from {'an unknown' if theirs is None else 'another'} release of {unit}: graded with the "
        "tests of the current one; an exercise that is new in it counts as not done."
    )


def release_of(nb: NotebookNode) -> str | None:
    mark = nb.metadata.get("course")
    return mark.get("release") if isinstance(mark, dict) else None


def prepare(root: Path, units: list[str]) -> NbGraderAPI:
    """Put the units' tests into the gradebook (the release goes to a folder of its own, not to notebooks/).

    nbgrader refuses to change the exercises of a unit that has submissions. Then the gradebook is put aside under
    another name, and a new one is begun: what is in gradebook/submitted is graded again, the rest stays in the old one.
    """
    for attempt in (1, 2):
        api = nbgrader_api(root, release_directory="gradebook/release")
        results = {unit: api.generate_assignment(unit, force=True) for unit in units}
        failed = {unit: f"{r.get('error')}\n{r.get('log')}" for unit, r in results.items() if not r["success"]}
        if not failed:
            return api
        if attempt == 1 and all("Cannot add or remove cells" in text for text in failed.values()):
            kept = put_aside(root / "gradebook" / "gradebook.db")
            print(f"The exercises of {', '.join(failed)} changed: all submissions are graded anew, earlier grades are "
                  f"kept in {kept.name}.")  # fmt: skip
            continue
        raise SystemExit("the tests cannot be put into the gradebook:\n" + "\n".join(failed.values()))
    raise AssertionError("a new gradebook refuses its first exercises")


def put_aside(path: Path) -> Path:
    """Rename a file to the first free NAME-1, NAME-2, … and return its new path."""
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(1))
    return path.rename(next(name for name in names if not name.exists()))


def write_grades(root: Path, path: Path, not_graded: list[Submission]) -> int:
    """Write every exercise of the gradebook as CSV, and a line without points for what could not be graded."""
    rows = []
    with Gradebook(f"sqlite:///{root}/gradebook/gradebook.db") as gradebook:
        for assignment in gradebook.assignments:
            for submission in assignment.submissions:
                for notebook in submission.notebooks:
                    for grade in notebook.grades:
                        number = exercise_number(grade.cell.name)
                        rows.append([submission.student.id, assignment.name, number, grade.score, grade.max_score])
    rows += [[submission.student, submission.unit, "NOT GRADED", "", ""] for submission in not_graded]
    rows.sort(key=lambda row: (row[0], row[1], [int(part) for part in re.findall(r"\d+", row[2])]))
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["student", "unit", "exercise", "points", "of"])
        writer.writerows(rows)
    part.replace(path)
    return len(rows)


def totals(root: Path, submission: Submission) -> tuple[float, float]:
    """Points and maximum of one graded submission."""
    with Gradebook(f"sqlite:///{root}/gradebook/gradebook.db") as gradebook:
        try:
            graded = gradebook.find_submission(submission.unit, submission.student)
        except MissingEntry:
            return 0.0, 0.0
        return graded.score, graded.max_score


def forget(root: Path, submission: Submission) -> None:
    """Take what could not be graded out of the gradebook (no points is not 0 points), and its old feedback away."""
    shutil.rmtree(root / "gradebook" / "feedback" / submission.student / submission.unit, ignore_errors=True)
    with Gradebook(f"sqlite:///{root}/gradebook/gradebook.db") as gradebook, contextlib.suppress(MissingEntry):
        gradebook.remove_submission(submission.unit, submission.student)


def grade_one(api: NbGraderAPI, root: Path, submission: Submission) -> tuple[float, float]:
    """Grade a submission and write its feedback; returns points and maximum, or raises `NotGraded`."""
    nb = read_submission(submission)
    if note := release_note(nb, submission.unit, root):
        print(f"{submission.student}, {submission.unit}: {note}")
    result = api.autograde(submission.unit, submission.student, force=True)
    if not result["success"]:
        raise NotGraded(f"the autograder stopped: {reason(result)}")
    result = api.generate_feedback(submission.unit, submission.student, force=True)
    if not result["success"]:
        print(f"{submission.student}, {submission.unit}: graded, but without feedback: {reason(result)}")
    return totals(root, submission)


def reason(result: dict) -> str:
    """The last line of nbgrader's log that names an error."""
    lines = [line.strip() for line in f"{result.get('log') or ''}\n{result.get('error') or ''}".splitlines()]
    named = [
        line
        for line in lines
        if re.match(r"[\w.]+(Error|Exception|Timeout|Died)\b", line) and "NbGraderException" not in line
    ]
    return named[-1] if named else next((line for line in reversed(lines) if line), "no reason was given")


def grade(root: Path, units: list[str]) -> int:
    """Grade all submissions below `root`; returns how many could not be graded."""
    submissions, strange = find_submissions(root, units)
    for sentence in strange:
        print(f"{sentence}: NOT GRADED")
    if not submissions:
        print("There is nothing to grade: put notebooks into gradebook/submitted/STUDENT/UNIT/UNIT.ipynb")
        return len(strange)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while they wait slow a busy computer down
    api = prepare(root, sorted({submission.unit for submission in submissions}))
    not_graded = []
    for submission in submissions:
        name = f"{submission.student}, {submission.unit}"
        try:
            points, maximum = grade_one(api, root, submission)
        except Exception as error:  # whatever is wrong with one submission, the others are graded
            kind = "" if isinstance(error, NotGraded) else f"{type(error).__name__}: "
            print(f"{name}: NOT GRADED, {kind}{error}", flush=True)
            forget(root, submission)
            not_graded.append(submission)
        else:
            print(f"{name}: {points:g} of {maximum:g} points", flush=True)
    lines = write_grades(root, root / "gradebook" / "grades.csv", not_graded)
    failed = len(not_graded) + len(strange)
    print(f"gradebook/grades.csv: {lines} lines" + (f"; {failed} submissions could not be graded" if failed else ""))
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("units", nargs="*", help="names of units, all when none is given")
    arguments = parser.parse_args()
    known = unit_names()
    if unknown := [name for name in arguments.units if name not in known]:
        raise SystemExit(f"there is no unit {', '.join(unknown)}; the units are {', '.join(known)}")
    sys.exit(1 if grade(ROOT, arguments.units or known) else 0)


if __name__ == "__main__":
    main()
