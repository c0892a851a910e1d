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
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.apps.api import NbGraderAPI

from grading.course import ROOT, nbgrader_api, unit_names
from grading.preprocessors import exercise_number


@dataclass(frozen=True)
class Submission:
    student: str
    unit: str
    path: Path


def find_submissions(root: Path, units: list[str]) -> list[Submission]:
    """Every STUDENT/UNIT folder below gradebook/submitted, whether or not it holds a readable notebook."""
    folders = sorted((root / "gradebook" / "submitted").glob("*/*"))
    return [
        Submission(folder.parent.name, folder.name, folder / f"{folder.name}.ipynb")
        for folder in folders
        if folder.is_dir() and folder.name in units
    ]


def problem(submission: Submission, root: Path) -> str | None:
    """Why this submission cannot be graded, in a sentence, or None."""
    path = submission.path
    if not path.is_file():
        others = ", ".join(sorted(p.name for p in path.parent.glob("*.ipynb"))) or "no notebook at all"
        return f"there is no {path.name} in its folder (found: {others}). Ask for it, or rename the file."
    try:
        nb = nbformat.read(path, as_version=4)
        nbformat.validate(nb)
    except Exception as error:  # nbformat raises many kinds for a broken file, and each means the same here
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        return f"{path.name} is not a valid notebook ({reason}). Ask for it again: save in JupyterLab, then hand in."
    if not any(cell.metadata.get("nbgrader", {}).get("grade") for cell in nb.cells) and not any(
        cell.metadata.get("nbgrader", {}).get("solution") for cell in nb.cells
    ):
        return f"{path.name} holds no cell of this course. Ask for the notebook that was handed out."
    return None


def release_note(submission: Submission, root: Path) -> str | None:
    """A sentence if the notebook was made from another release than the one that is graded with."""
    released = root / "notebooks" / submission.unit / f"{submission.unit}.ipynb"
    current = nbformat.read(released, as_version=4).metadata.get("course", {}).get("release")
    theirs = nbformat.read(submission.path, as_version=4).metadata.get("course", {}).get("release")
    if theirs == current:
        return None
    return (
        f"was made from {'an unknown' if theirs is None else 'another'} release of {submission.unit}: graded with the "
        "tests of the current one; an exercise that is new in it counts as not done."
    )


def prepare(api: NbGraderAPI, unit: str) -> None:
    """Put the unit's tests into the gradebook (the release goes to a folder of its own, not to notebooks/)."""
    result = api.generate_assignment(unit, force=True)
    if not result["success"]:
        raise SystemExit(
            f"the tests of {unit} cannot be put into the gradebook:\n{result.get('error')}\n{result.get('log')}"
        )


def write_grades(root: Path, path: Path) -> int:
    """Write every auto-graded exercise of the gradebook as CSV; returns the number of lines."""
    rows = []
    with Gradebook(f"sqlite:///{root}/gradebook/gradebook.db") as gradebook:
        for assignment in gradebook.assignments:
            for submission in assignment.submissions:
                for notebook in submission.notebooks:
                    for grade in notebook.grades:
                        number = exercise_number(grade.cell.name)
                        rows.append([submission.student.id, assignment.name, number, grade.score, grade.max_score])
    rows.sort(key=lambda row: (row[0], row[1], [int(part) for part in row[2].split(".")]))
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
    """Take a submission that could not be graded out of the gradebook: no points is not the same as 0 points."""
    with Gradebook(f"sqlite:///{root}/gradebook/gradebook.db") as gradebook, contextlib.suppress(MissingEntry):
        gradebook.remove_submission(submission.unit, submission.student)


def grade(root: Path, units: list[str]) -> int:
    """Grade all submissions below `root`; returns how many could not be graded."""
    submissions = find_submissions(root, units)
    if not submissions:
        print("There is nothing to grade: put notebooks into gradebook/submitted/STUDENT/UNIT/UNIT.ipynb")
        return 0
    api = nbgrader_api(root, release_directory="gradebook/release")
    failed = 0
    for unit in sorted({submission.unit for submission in submissions}):
        prepare(api, unit)
    for submission in submissions:
        name = f"{submission.student}, {submission.unit}"
        trouble = problem(submission, root)
        if trouble is None:
            note = release_note(submission, root)
            if note:
                print(f"{name}: {note}")
            result = api.autograde(submission.unit, submission.student, force=True)
            if result["success"]:
                api.generate_feedback(submission.unit, submission.student, force=True)
                points, maximum = totals(root, submission)
                print(f"{name}: {points:g} of {maximum:g} points", flush=True)
                continue
            trouble = f"the autograder stopped: {(result.get('error') or result.get('log') or '').strip()[-500:]}"
        forget(root, submission)
        failed += 1
        print(f"{name}: NOT GRADED, {trouble}", flush=True)
    lines = write_grades(root, root / "gradebook" / "grades.csv")
    print(f"gradebook/grades.csv: {lines} lines" + (f"; {failed} submissions could not be graded" if failed else ""))
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("units", nargs="*", help="names of units, all when none is given")
    arguments = parser.parse_args()
    sys.exit(1 if grade(ROOT, arguments.units or unit_names()) else 0)


if __name__ == "__main__":
    main()
