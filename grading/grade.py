"""Grade a class: ``make grade``.

Reads ``gradebook/submitted/STUDENT/UNIT/UNIT.ipynb``, runs nbgrader's autograder on every submission and writes

- ``gradebook/grades.csv``: a line for each student, unit and exercise;
- ``gradebook/feedback/STUDENT/UNIT/UNIT.html``: what to give back (it shows the hidden tests).

A submission that cannot be read is named, with what to do, and has a line with that sentence in grades.csv; the others
are graded all the same, and nothing that was submitted is ever changed.
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
import traceback
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.apps.api import NbGraderAPI

from grading.course import ROOT, nbgrader_api, unit_names
from grading.preprocessors import exercise_number
from grading.submissions import (
    NotGraded,
    Refused,
    Submission,
    find_submissions,
    read_submission,
    release_note,
    write_copy,
)

READING = Path("gradebook") / "reading"  # what nbgrader reads: a copy of each submission, see grading/submissions.py


def prepare(root: Path, units: list[str]) -> NbGraderAPI:
    """Put the units' tests into the gradebook (the release goes to a folder of its own, not to notebooks/).

    nbgrader refuses to change the exercises of a unit that has submissions. Then the gradebook is put aside under
    another name, and a new one is begun: what is in gradebook/submitted is graded again, the rest stays in the old one.
    """
    for attempt in (1, 2):
        api = nbgrader_api(root, release_directory="gradebook/release", submitted_directory=READING.as_posix())
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


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the gradebook's lock: two runs at once would write into the same gradebook."""
    lock = FileLock(root / "gradebook" / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise SystemExit("Another `make grade` is running in this folder. Wait until it has ended.") from None
    try:
        yield
    finally:
        lock.release()


def write_grades(root: Path, path: Path, refused: list[Refused]) -> int:
    """Write every exercise of the gradebook as CSV, and a line with a sentence for what could not be graded."""
    rows = []
    with Gradebook(f"sqlite:///{root}/gradebook/gradebook.db") as gradebook:
        for assignment in gradebook.assignments:
            for submission in assignment.submissions:
                for notebook in submission.notebooks:
                    for grade in notebook.grades:
                        number = exercise_number(grade.cell.name)
                        rows.append([submission.student.id, assignment.name, number, grade.score, grade.max_score, ""])
    rows += [[line.student, line.unit, "NOT GRADED", "", "", line.why] for line in refused]
    rows.sort(key=lambda row: (row[0], row[1], [int(part) for part in re.findall(r"\d+", row[2])]))
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file)
        writer.writerow(["student", "unit", "exercise", "points", "of", "note"])
        writer.writerows(rows)
    part.replace(path)
    return len(rows)


def totals(root: Path, submission: Submission) -> tuple[float, float]:
    """Points and maximum of one graded submission."""
    with Gradebook(f"sqlite:///{root}/gradebook/gradebook.db") as gradebook:
        graded = gradebook.find_submission(submission.unit, submission.student)
        return graded.score, graded.max_score


def forget(root: Path, submission: Submission) -> None:
    """Take what could not be graded out of the gradebook (no points is not 0 points), and its old feedback away."""
    shutil.rmtree(root / "gradebook" / "feedback" / submission.student / submission.unit, ignore_errors=True)
    with Gradebook(f"sqlite:///{root}/gradebook/gradebook.db") as gradebook, contextlib.suppress(MissingEntry):
        gradebook.remove_submission(submission.unit, submission.student)


def grade_one(api: NbGraderAPI, root: Path, submission: Submission) -> tuple[float, float]:
    """Grade a submission and write its feedback; returns points and maximum, or raises `NotGraded`."""
    reading = read_submission(submission, root)
    if note := release_note(reading.nb, submission.unit, root):
        reading.notes.append(note)
    write_copy(reading, submission, root / READING)
    for note in reading.notes:
        print(f"{submission.student}, {submission.unit}: {note}", flush=True)
    result = api.autograde(submission.unit, submission.student, force=True)
    if not ended_well(result):
        raise NotGraded(f"the autograder stopped; what it said is in {keep_log(root, submission, said(result))}.")
    write_feedback(api, root, submission)
    return totals(root, submission)


def write_feedback(api: NbGraderAPI, root: Path, submission: Submission) -> None:
    """Write a submission's feedback; if that fails say so, and take the page of an earlier run away."""
    shutil.rmtree(root / "gradebook" / "feedback" / submission.student / submission.unit, ignore_errors=True)
    try:
        result = api.generate_feedback(submission.unit, submission.student, force=True)
        text = None if ended_well(result) else said(result)
    except Exception:  # whatever is wrong with the page, the points stand
        text = traceback.format_exc()
    if text is not None:
        kept = keep_log(root, submission, text)
        print(
            f"{submission.student}, {submission.unit}: graded, but its feedback could not be written; why is in {kept}"
        )


def ended_well(result: dict) -> bool:
    """Whether nbgrader succeeded; it counts Ctrl-C as a failure of one submission, and we stop."""
    if not result["success"] and (result.get("error") or "").rstrip().endswith("KeyboardInterrupt"):
        raise KeyboardInterrupt
    return result["success"]


def said(result: dict) -> str:
    return f"{result.get('log') or ''}\n{result.get('error') or ''}"


def keep_log(root: Path, submission: Submission, text: str) -> str:
    """Write what nbgrader said to a file for whoever looks into it; returns its name."""
    path = root / "gradebook" / "logs" / f"{submission.student}-{submission.unit}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="replace")
    return str(path.relative_to(root))


def grade(root: Path, units: list[str]) -> int:
    """Grade all submissions below `root`; returns how many could not be graded."""
    submissions, refused = find_submissions(root, units)
    for line in refused:
        print(line)
    if not submissions:
        print("There is nothing to grade: put notebooks into gradebook/submitted/STUDENT/UNIT/UNIT.ipynb")
        if not refused:
            return 0
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while they wait slow a busy computer down
    with alone(root):
        try:
            refused += grade_each(root, submissions)
            lines = write_grades(root, root / "gradebook" / "grades.csv", refused)
        finally:
            shutil.rmtree(root / READING, ignore_errors=True)
    failed = f"; {len(refused)} {'entry' if len(refused) == 1 else 'entries'} could not be graded" if refused else ""
    print(f"gradebook/grades.csv: {lines} lines{failed}")
    return len(refused)


def grade_each(root: Path, submissions: list[Submission]) -> list[Refused]:
    """Grade one submission after the other; returns those that could not be graded."""
    if not submissions:
        return []
    api = prepare(root, sorted({submission.unit for submission in submissions}))
    refused = []
    for submission in submissions:
        name = f"{submission.student}, {submission.unit}"
        try:
            points, maximum = grade_one(api, root, submission)
        except Exception as error:  # whatever is wrong with one submission, the others are graded
            why = str(error)
            if not isinstance(error, NotGraded):
                kept = keep_log(root, submission, traceback.format_exc())
                why = f"the grader stopped at it, which is a fault of the grader; what happened is in {kept}."
            refused.append(Refused(submission.student, submission.unit, why))
            print(refused[-1], flush=True)
            forget(root, submission)
        else:
            print(f"{name}: {points:g} of {maximum:g} points", flush=True)
    return refused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("units", nargs="*", help="names of units, all when none is given")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(errors="replace")  # a folder may have a name that cannot be printed
    known = unit_names()
    if unknown := [name for name in arguments.units if name not in known]:
        raise SystemExit(f"there is no unit {', '.join(unknown)}; the units are {', '.join(known)}")
    sys.exit(1 if grade(ROOT, arguments.units or known) else 0)


if __name__ == "__main__":
    main()
