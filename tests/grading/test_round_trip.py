"""The whole way of a class: hand out, submit, grade, give back. Each persona gets exactly the points it deserves."""

import csv
import json
import shutil

import nbformat
import pytest
from filelock import FileLock

from grading import course as course_module
from grading import grade
from grading.course import ROOT

UNIT = "01_transformer_basics"
START = "00_start_here"
NEEDED = {"ex_1_1", "ex_1_2", "ex_1_3"}  # the personas' unit is cut to these exercises: a class of nine in a minute


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A copy of the course in which unit 01 ends after exercise 1.3."""
    root = tmp_path_factory.mktemp("course")
    for part in ("solutions", "notebooks"):
        for unit in (START, UNIT):
            (root / part / unit).mkdir(parents=True)
            nb = nbformat.read(ROOT / part / unit / f"{unit}.ipynb", as_version=4)
            if unit == UNIT:
                end = next(i for i, cell in enumerate(nb.cells) if cell.id == "ex_1_3_check")
                nb.cells = nb.cells[: end + 1]
            nbformat.write(nb, root / part / unit / f"{unit}.ipynb")
    return root


def released(course, unit=UNIT):
    return nbformat.read(course / "notebooks" / unit / f"{unit}.ipynb", as_version=4)


def solved(course, unit=UNIT, **changed):
    """The learner's notebook with our answers typed into its stubs; `changed` replaces single answers."""
    nb = released(course, unit)
    answers = {c.id: c.source for c in nbformat.read(course / "solutions" / unit / f"{unit}.ipynb", as_version=4).cells}
    for cell in nb.cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source = changed.get(cell.id, answers[cell.id])
    return nb


def submit(course, student, nb, unit=UNIT):
    folder = course / "gradebook" / "submitted" / student / unit
    folder.mkdir(parents=True)
    nbformat.write(nb, folder / f"{unit}.ipynb")
    return folder


def index(nb, name):
    return next(i for i, cell in enumerate(nb.cells) if cell.id == name)


NO_SCALING = """\
def attention(q, k, v, mask=None):
    scores = q @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v
"""


def perfect(course):
    return solved(course)


def untouched(course):
    return released(course)


def one_wrong_answer(course):
    return solved(course, ex_1_1=NO_SCALING)


def deleted_a_check(course):
    nb = solved(course, ex_1_1=NO_SCALING)
    del nb.cells[index(nb, "ex_1_1_check")]
    return nb


def deleted_all_checks_of_right_answers(course):
    nb = solved(course)
    nb.cells = [cell for cell in nb.cells if not cell.id.endswith("_check")]
    return nb


def deleted_stub_and_check(course):
    nb = solved(course)
    del nb.cells[index(nb, "ex_1_2") : index(nb, "ex_1_2_check") + 1]
    return nb


def answered_in_a_new_cell(course):
    nb = solved(course)
    at = index(nb, "ex_1_2")
    nb.cells.insert(at + 1, nbformat.v4.new_code_cell(nb.cells[at].source))
    del nb.cells[index(nb, "ex_1_2_check")]
    nb.cells[at].source = "# see below"
    return nb


def copied_a_check(course):
    nb = solved(course, ex_1_1=NO_SCALING)
    copy = nbformat.from_dict(json.loads(json.dumps(nb.cells[index(nb, "ex_1_1_check")])))
    copy.id = "copy"
    nb.cells.append(copy)
    return nb


def edited_a_check(course):
    nb = solved(course, ex_1_1=NO_SCALING)
    nb.cells[index(nb, "ex_1_1_check")].source = "print('all good')"
    return nb


def tagged_checks_to_be_skipped(course):
    nb = released(course)
    for cell in nb.cells:
        cell.metadata["tags"] = ["skip-execution", "raises-exception"]
    return nb


def has_an_exercise_that_is_gone(course):
    nb = solved(course)
    extra = nbformat.from_dict(json.loads(json.dumps(nb.cells[index(nb, "ex_1_1_check")])))
    extra.id = extra.metadata.nbgrader.grade_id = "ex_1_99_check"
    nb.cells.append(extra)
    return nb


def displays_a_number(course):
    hook = "def attention(q, k, v, mask=None):\n    get_ipython().displayhook(2.0)\n    return q @ k.mT @ v"
    return solved(course, ex_1_1=hook)


def prints_forever(course):
    return solved(course, ex_1_2="def causal_mask(length):\n    while True:\n        print('x' * 1000)")


def replaces_the_checks(course):
    hostile = (
        "import contextlib\nfrom helpers import checks, isolation\n"
        "checks.isolated = isolation.isolated = lambda check: lambda: None\n"
        "checks.check = lambda *a, **k: contextlib.suppress(Exception)\n"
        "class check: check = staticmethod(lambda *a, **k: contextlib.suppress(Exception))\n"
    )
    return solved(course, ex_1_1=hostile + NO_SCALING)


def ends_python_twice(course):
    nb = solved(course, ex_1_2="def causal_mask(length):\n    import os\n    os._exit(1)")
    nb.cells.append(nbformat.v4.new_code_cell("import os; os._exit(1)"))
    return nb


def cannot_be_interrupted(course):
    answer = (
        "def causal_mask(length):\n    while True:\n        try:\n            while True:\n                pass\n"
        "        except BaseException:\n            pass"
    )
    return solved(course, ex_1_2=answer)


def gives_names_another_meaning(course):
    nb = solved(course)
    nb.cells[
        index(nb, "ex_1_1")
    ].source += "\n\nkept = torch, F\ntorch = F = checks = helpers = sys = list = vars = print = None"
    nb.cells[index(nb, "ex_1_1")].source = nb.cells[index(nb, "ex_1_1")].source.replace("torch.Tensor", "object")
    return nb


def never_returns(course):
    return solved(course, ex_1_2="def causal_mask(length):\n    while True:\n        pass")


def warns_on_stderr(course):
    answer = (
        "def causal_mask(length):\n    import sys\n    print('working', file=sys.stderr)\n"
        "    return torch.ones(length, length).tril().bool()"
    )
    return solved(course, ex_1_2=answer)


PERSONAS = {
    perfect: 6,
    untouched: 0,
    one_wrong_answer: 4,
    deleted_a_check: 4,
    deleted_all_checks_of_right_answers: 6,
    deleted_stub_and_check: 4,
    answered_in_a_new_cell: 6,
    copied_a_check: 4,
    edited_a_check: 4,
    tagged_checks_to_be_skipped: 0,
    has_an_exercise_that_is_gone: 6,
    displays_a_number: 4,
    prints_forever: 4,
    replaces_the_checks: 4,
    ends_python_twice: 4,
    cannot_be_interrupted: 4,
    gives_names_another_meaning: 6,
    never_returns: 4,
    warns_on_stderr: 6,
}


def submit_an_odd_file(course, student):
    """One file with much of what editors do, in a folder whose name is in capitals, with a date in words."""
    folder = submit(course, student, solved(course))
    path = folder / f"{UNIT}.ipynb"
    raw = json.loads(path.read_text())
    raw["nbformat_minor"] = 4
    raw["metadata"] |= {"kernelspec": None, "widgets": {"application/vnd.jupyter.widget-state+json": {}}}
    for cell in raw["cells"]:
        cell["id"] += " "
        cell["outputs"] = [{"output_type": "pyout"}]
        cell["metadata"].get("nbgrader", {})["schema_version"] = 99
    path.write_bytes(json.dumps(raw).encode("utf-16"))
    path.rename(folder / f"{UNIT}.IPYNB")
    nbformat.write(released(course), folder / f"{UNIT} (1).ipynb")
    (folder / "timestamp.txt").write_text("last Tuesday")
    folder.rename(folder.with_name(UNIT.upper()))


@pytest.fixture(scope="module")
def graded(course, short_limits):
    """Grade the whole class once; returns the points by student."""
    for persona in PERSONAS:
        submit(course, persona.__name__, persona(course))
    broken = submit(course, "broken_json", released(course)) / f"{UNIT}.ipynb"
    broken.write_text(broken.read_text()[:5000])
    empty = course / "gradebook" / "submitted" / "empty_folder" / UNIT
    empty.mkdir(parents=True)
    foreign = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    submit(course, "another_notebook", foreign)
    old = solved(course)
    old.metadata["course"] = {"unit": UNIT, "release": "0123456789ab"}
    old.cells[index(old, "ex_1_1_check")].source = "assert True  # the check of an earlier release"
    submit(course, "old_release", old)
    submit(course, "perfect", solved(course, START), START)
    link = submit(course, "links_to_the_solution", released(course)) / f"{UNIT}.ipynb"
    link.unlink()
    link.symlink_to(course / "solutions" / UNIT / f"{UNIT}.ipynb")
    nbformat.write(solved(course), submit(course, "first_copy_untouched", released(course)) / f"{UNIT} (1).ipynb")
    submit_an_odd_file(course, "odd_file")
    odd = solved(course)
    odd.metadata["course"] = "CS101"
    submit(course, "odd_metadata", odd)
    submit(course, "bob [1]", solved(course))
    submit(course, "typo", solved(course), "01_transformer_basic")
    (course / "gradebook" / "submitted" / "loose.ipynb").write_text("{}")
    for name in ("helpers.py", "torch.py"):  # would be imported instead of the real ones
        (course / "gradebook" / "submitted" / "perfect" / UNIT / name).write_text("raise SystemExit('shadowed')")
    before = {p: p.read_bytes() for p in (course / "gradebook" / "submitted").rglob("*.*")}
    failed = grade.grade(course, [START, UNIT])
    assert {p: p.read_bytes() for p in (course / "gradebook" / "submitted").rglob("*.*")} == before
    return failed


@pytest.fixture(scope="module")
def short_limits():
    """Only the check that hangs in some submissions has a short limit: it takes milliseconds where it does not hang."""
    make = course_module.nbgrader_config

    def config(*arguments, **folders):
        made = make(*arguments, **folders)
        made.Execute.timeout_func = lambda cell: 10 if "# Check of exercise 1.2" in cell.source else 600
        made.Execute.iopub_timeout = 20
        return made

    patch = pytest.MonkeyPatch()
    patch.setattr(course_module, "nbgrader_config", config)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def grades(course, graded):
    return read_grades(course)


def points(grades, student, unit=UNIT):
    mine = [row for row in grades if row["student"] == student and row["unit"] == unit]
    return sum(float(row["points"] or "nan") for row in mine)


@pytest.mark.parametrize("persona", PERSONAS, ids=lambda p: p.__name__)
def test_each_persona_gets_its_points(persona, grades):
    assert points(grades, persona.__name__) == PERSONAS[persona]


def test_a_wrong_answer_loses_exactly_its_own_points(grades):
    lost = [r for r in grades if r["student"] == "one_wrong_answer" and r["points"] != r["of"]]
    assert [(r["exercise"], float(r["points"])) for r in lost] == [("1.1", 0)]


def test_the_first_unit_is_graded_too(grades):
    assert points(grades, "perfect", START) == 1


def test_an_old_release_is_graded_with_the_current_tests(grades):
    assert points(grades, "old_release") == 6
    assert points(grades, "odd_metadata") == 6


def test_a_file_that_an_editor_has_changed_loses_nothing(grades):
    assert points(grades, "odd_file") == 6


NOT_GRADED = {
    "broken_json": "is not a valid notebook",
    "empty_folder": "there is no 01_transformer_basics.ipynb",
    "another_notebook": "holds no cell of this course",
    "links_to_the_solution": "is a link to another file",
    "first_copy_untouched": "is as it was handed out, but beside it there is 01_transformer_basics (1).ipynb",
    "bob [1]": "Rename the folder",
}
MISPLACED = {"typo": "is not the folder of a unit", "loose.ipynb": "is not a student's folder"}


def test_broken_submissions_stop_nobody_and_have_a_line_without_points(graded, grades):
    assert graded == len(NOT_GRADED) + len(MISPLACED)
    lines = [row for row in grades if row["exercise"] == "NOT GRADED"]
    assert {row["student"] for row in lines} == set(NOT_GRADED | MISPLACED)
    assert not any(row["points"] for row in lines)


@pytest.mark.parametrize("student", NOT_GRADED | MISPLACED)
def test_what_cannot_be_graded_gets_a_sentence_in_the_table(student, grades):
    (row,) = [row for row in grades if row["student"] == student]
    assert (NOT_GRADED | MISPLACED)[student] in row["note"]


def test_another_release_is_mentioned(course, graded):
    old = nbformat.read(course / "gradebook" / "submitted" / "old_release" / UNIT / f"{UNIT}.ipynb", as_version=4)
    assert "another release" in grade.release_note(old, UNIT, course)
    del old.metadata["course"]
    assert "an unknown release" in grade.release_note(old, UNIT, course)
    assert grade.release_note(released(course), UNIT, course) is None


def test_feedback_is_written_for_every_graded_submission(course, graded):
    for persona in PERSONAS:
        assert (course / "gradebook" / "feedback" / persona.__name__ / UNIT / f"{UNIT}.html").is_file()


def test_feedback_names_the_cell_that_ended_python(course, graded):
    for persona, why in (
        (ends_python_twice, "it ended Python"),
        (cannot_be_interrupted, "could not be stopped"),
    ):
        page = (course / "gradebook" / "feedback" / persona.__name__ / UNIT / f"{UNIT}.html").read_text()
        assert why in page


def test_feedback_does_not_show_what_ran_in_front_of_a_check(course, graded):
    for page in (course / "gradebook" / "feedback").rglob("*.html"):
        assert "__s.modules" not in page.read_text()


def read_grades(course):
    with (course / "gradebook" / "grades.csv").open() as file:
        return list(csv.DictReader(file))


def only(course, student):
    """Leave one student's submissions in the folder."""
    for entry in (course / "gradebook" / "submitted").iterdir():
        if entry.is_dir() and entry.name != student:
            shutil.rmtree(entry)
        elif entry.is_file():
            entry.unlink()


def test_a_second_grading_gives_the_same_grades(course, grades, capfd):
    only(course, "one_wrong_answer")
    assert grade.grade(course, [UNIT]) == 0
    printed = capfd.readouterr()
    assert printed.out.startswith(f"one_wrong_answer, {UNIT}: 4 of 6 points\n") and not printed.err, "only results"
    kept = [row for row in grades if row["exercise"] != "NOT GRADED"]
    assert read_grades(course) == kept, "grades of the others are kept, and the same submission gets the same points"


def test_a_release_with_another_exercise_keeps_the_old_gradebook(course, grades):
    """After the test above: one submission is left, and exercise 1.3 is taken out of the course."""
    only(course, "one_wrong_answer")
    for part in ("solutions", "notebooks"):
        path = course / part / UNIT / f"{UNIT}.ipynb"
        nb = nbformat.read(path, as_version=4)
        nb.cells = [cell for cell in nb.cells if not cell.id.startswith("ex_1_3")]
        nbformat.write(nb, path)
    assert grade.grade(course, [UNIT]) == 0
    assert [(r["exercise"], r["points"]) for r in read_grades(course)] == [("1.1", "0.0"), ("1.2", "2.0")]
    assert (course / "gradebook" / "gradebook-1.db").is_file()


def test_an_unknown_unit_is_named(monkeypatch):
    monkeypatch.setattr("sys.argv", ["grade", "01_transformer_basic"])
    with pytest.raises(SystemExit, match=r"there is no unit 01_transformer_basic; the units are 00_start_here"):
        grade.main()


def test_nothing_to_grade_is_said(tmp_path, capsys):
    assert grade.grade(tmp_path, [UNIT]) == 0
    assert "nothing to grade" in capsys.readouterr().out


def test_misplaced_files_alone_are_in_the_table(tmp_path):
    (tmp_path / "gradebook" / "submitted" / "ada").mkdir(parents=True)
    assert grade.grade(tmp_path, [UNIT]) == 1
    (row,) = read_grades(tmp_path)
    assert (row["student"], row["exercise"]) == ("ada", "NOT GRADED") and "the folder is empty" in row["note"]


# What goes wrong in the grader itself: no kernel is needed to see what it makes of that.

ADA = grade.Submission("ada", UNIT, None)


class FailingFeedback:
    def __init__(self, raises):
        self.raises = raises

    def generate_feedback(self, *arguments, **options):
        if self.raises:
            raise KeyError("state")
        return {"success": False, "log": "much", "error": "Traceback …\nKeyError: 'state'"}


@pytest.mark.parametrize("raises", [True, False])
def test_feedback_that_fails_is_said_and_the_page_of_an_earlier_run_is_gone(tmp_path, capsys, raises):
    page = tmp_path / "gradebook" / "feedback" / "ada" / UNIT / f"{UNIT}.html"
    page.parent.mkdir(parents=True)
    page.touch()
    grade.write_feedback(FailingFeedback(raises), tmp_path, ADA)
    printed = capsys.readouterr().out
    assert (
        printed
        == f"ada, {UNIT}: graded, but its feedback could not be written; why is in gradebook/logs/ada-{UNIT}.txt\n"
    )
    assert (
        "KeyError: 'state'" in (tmp_path / "gradebook" / "logs" / f"ada-{UNIT}.txt").read_text() and not page.exists()
    )


def test_a_fault_of_the_grader_is_a_sentence_and_a_log(tmp_path, capsys, monkeypatch):
    (tmp_path / "gradebook").mkdir()
    monkeypatch.setattr(grade, "prepare", lambda root, units: None)
    monkeypatch.setattr(grade, "grade_one", lambda *arguments: {}["fail"])
    (refused,) = grade.grade_each(tmp_path, [ADA])
    assert "a fault of the grader" in refused.why and "KeyError" not in refused.why + capsys.readouterr().out
    assert "KeyError: 'fail'" in (tmp_path / "gradebook" / "logs" / f"ada-{UNIT}.txt").read_text()


def test_control_c_ends_the_run_and_is_no_failure_of_a_submission(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        grade.ended_well({"success": False, "error": "Traceback …\nKeyboardInterrupt\n"})


def test_two_runs_at_once_are_refused_with_a_sentence(tmp_path):
    (tmp_path / "gradebook" / "submitted" / "ada").mkdir(parents=True)
    with FileLock(tmp_path / "gradebook" / ".lock"), pytest.raises(SystemExit, match="Another `make grade` is running"):
        grade.grade(tmp_path, [UNIT])
    assert grade.grade(tmp_path, [UNIT]) == 1, "afterwards the lock is free"
