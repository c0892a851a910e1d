"""What a learner gets: in sync with its source, complete, and without anything that belongs to the instructor."""

import ast
import re
import subprocess
import tokenize
from io import BytesIO
from itertools import pairwise

import nbformat
import pytest

from grading import build
from grading.course import ROOT, unit_names
from grading.preprocessors import exercise_number

UNITS = unit_names()
SECRET = re.compile(r"BEGIN SOLUTION|END SOLUTION|HIDDEN TESTS|AUTOTEST")


def solution(unit):
    return nbformat.read(ROOT / "solutions" / unit / f"{unit}.ipynb", as_version=4)


def released_bytes(unit):
    """The released notebook; where a learner has worked in it, the committed one."""
    path = ROOT / "notebooks" / unit / f"{unit}.ipynb"
    if not build.touched(path):
        return path.read_bytes()
    name = path.relative_to(ROOT).as_posix()
    return subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, check=True).stdout


def released(unit):
    return nbformat.reads(released_bytes(unit).decode(), as_version=4)


def statements(source):
    """Every statement of some code, in one spelling; a return counts as what it returns."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Return) and node.value is not None:
            found.add(ast.unparse(node.value))
        elif isinstance(node, ast.stmt) and not isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(ast.unparse(node.value if isinstance(node, ast.Expr) else node))
    return found


def solution_statements(cell):
    """Statements between the solution marks that are more than a name."""
    given = re.sub(r"### BEGIN SOLUTION.*?### END SOLUTION", "pass", cell.source, flags=re.DOTALL)
    return {line for line in statements(cell.source) - statements(given) if len(line) > 20}


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """The release made anew from the sources."""
    folder = tmp_path_factory.mktemp("release")
    build.release({unit: build.read_source(ROOT / "solutions" / unit / f"{unit}.py") for unit in UNITS}, folder)
    return folder


@pytest.mark.parametrize("unit", UNITS)
def test_the_release_is_what_the_source_makes(unit, rebuilt):
    assert (rebuilt / unit / f"{unit}.ipynb").read_bytes() == released_bytes(unit), "run: make build"


@pytest.mark.parametrize("unit", UNITS)
def test_the_executed_solution_is_what_the_source_makes(unit):
    source, stored = build.read_source(ROOT / "solutions" / unit / f"{unit}.py"), solution(unit)
    assert [(c.id, c.cell_type, c.source) for c in source.cells] == [
        (c.id, c.cell_type, c.source) for c in stored.cells
    ]
    assert stored.metadata.course.fingerprint == build.fingerprint(ROOT / "solutions" / unit / f"{unit}.py"), (
        "the source, a helper, the course model or the lock changed since the unit was executed; run: make build"
    )
    assert all(cell.execution_count for cell in stored.cells if cell.cell_type == "code"), "a cell was not executed"


def test_only_released_notebooks_are_in_the_learners_folder():
    listed = subprocess.run(["git", "ls-files", "notebooks"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) == {f"notebooks/{unit}/{unit}.ipynb" for unit in UNITS}


@pytest.mark.parametrize("unit", UNITS)
def test_nothing_of_a_solution_is_released(unit):
    nb = released(unit)
    assert not SECRET.search("\n".join(cell.source for cell in nb.cells))
    # A cell with the tag "broken" is the program to be repaired: the repaired one shares most of its statements.
    given = [c for c in nb.cells if c.cell_type == "code" and "broken" not in c.metadata.get("tags", [])]
    shown = set().union(*(statements(cell.source) for cell in given))
    for cell in solution(unit).cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            assert solution_statements(cell), f"{cell.id} has nothing that could leak: is the test blind?"
            assert not solution_statements(cell) & shown, f"{cell.id} leaks"
        for region in re.findall(r"### BEGIN HIDDEN TESTS\n(.*?)### END", cell.source, re.DOTALL):
            check = next(c.source for c in nb.cells if c.id == cell.id)
            lines = [line.strip() for line in region.splitlines() if line.strip().startswith("assert")]
            assert lines and not [line for line in lines if line in check], f"{cell.id} leaks a hidden test"


@pytest.mark.parametrize("unit", UNITS)
def test_no_output_is_released(unit):
    for cell in released(unit).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.parametrize("unit", UNITS)
def test_run_all_does_not_stop_at_an_open_exercise(unit):
    """JupyterLab goes on behind a cell with this tag; nbgrader and Validate read the error itself."""
    for cell in released(unit).cells:
        is_check = cell.metadata.get("nbgrader", {}).get("grade", False)
        assert ("raises-exception" in cell.metadata.get("tags", [])) == is_check


@pytest.mark.parametrize("unit", UNITS)
def test_a_check_is_folded_under_its_name(unit):
    for cell in released(unit).cells:
        is_check = cell.metadata.get("nbgrader", {}).get("grade", False)
        assert cell.metadata.get("jupyter", {}).get("source_hidden", False) == is_check
        number = exercise_number(cell.metadata.nbgrader.grade_id) if is_check else None
        assert not is_check or cell.source.startswith(f"# Check of exercise {number}: run this cell.\n")


@pytest.mark.parametrize("unit", UNITS)
def test_each_exercise_is_complete(unit):
    """A stub with its number, a locked and graded check with hidden tests right below it, points, a rating, hints."""
    cells = solution(unit).cells
    stubs = [i for i, cell in enumerate(cells) if cell.metadata.get("nbgrader", {}).get("solution")]
    assert stubs
    for i in stubs:
        name = cells[i].metadata.nbgrader.grade_id
        number = name.removeprefix("ex_").replace("_", ".")
        check = cells[i + 1]
        assert check.metadata.nbgrader.grade_id == f"{name}_check"
        assert check.metadata.nbgrader.grade and check.metadata.nbgrader.locked and check.metadata.nbgrader.points > 0
        assert "### BEGIN HIDDEN TESTS" in check.source
        assert re.search(rf'checks\.check\(\s*"{re.escape(number)}"', check.source)
        lead_in = "\n".join(cell.source for cell in cells[:i] if cell.cell_type == "markdown")
        heading = re.search(
            rf"### Exercise {re.escape(number)}: .+\n\*Difficulty [1-5] of 5 · \d+ minutes · (\d+) points?\*", lead_in
        )
        assert heading, f"exercise {number} has no heading with difficulty, minutes and points"
        assert int(heading[1]) == check.metadata.nbgrader.points
        hints = cells[i + 2]
        assert hints.cell_type == "markdown" and hints.source.count("<summary>Hint") == 3
        stub = next(cell for cell in released(unit).cells if cell.id == name)
        assert f"Exercise {number} is not solved yet" in stub.source


@pytest.mark.parametrize("unit", UNITS)
def test_a_check_depends_on_nothing_that_a_learner_can_reach(unit):
    """It is isolated from the notebook, and its hidden tests do without the friendly functions."""
    for cell in solution(unit).cells:
        if not cell.metadata.get("nbgrader", {}).get("grade"):
            continue
        function = re.search(r"^@checks\.isolated\ndef (check_ex_\w+)\(\) -> None:", cell.source, re.MULTILINE)
        assert function and cell.source.rstrip().endswith(f"\n{function[1]}()"), f"{cell.id} is not isolated"
        for hidden in re.findall(r"### BEGIN HIDDEN TESTS\n(.*?)### END", cell.source, re.DOTALL):
            assert not re.search(r"checks\.(check|close|tensor|number|given|raises)\b", hidden), cell.id


@pytest.mark.parametrize("unit", UNITS)
def test_checks_leave_the_notebook_alone(unit):
    """A check defines one function, so that none of its variables can change what a later cell does."""
    for cell in solution(unit).cells:
        if not cell.metadata.get("nbgrader", {}).get("grade"):
            continue
        words = [
            t.string
            for t in tokenize.tokenize(BytesIO(cell.source.encode()).readline)
            if t.start[1] == 0 and t.string.strip()
        ]
        words = [w for w in words if not w.startswith("#") and w not in ("utf-8", ")")]
        assert set(words) <= {"import", "from", "def", "@", cell.source.strip().splitlines()[-1].split("(")[0]}, words


@pytest.mark.parametrize("unit", UNITS)
def test_the_notebook_can_be_read_by_everyone(unit):
    """One H1, headings in order, a text alternative for every picture, links that say where they go."""
    nb = solution(unit)
    levels = [
        len(line) - len(line.lstrip("#"))
        for cell in nb.cells
        if cell.cell_type == "markdown"
        for line in re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL).splitlines()
        if re.match(r"#+ ", line)
    ]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), "a heading level is skipped"
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            data = output.get("data", {})
            assert "image/png" not in data, f"JupyterLab drops the text alternative of {cell.id}: use plots.show"
            assert len(re.findall("<img ", data.get("text/html", ""))) == len(
                re.findall(r'<img [^>]*alt="[^"]+"', data.get("text/html", ""))
            ), f"a picture of {cell.id} has no text alternative"
        if cell.cell_type == "markdown":
            assert not re.search(r"\[(here|link|this)\]\(", cell.source, re.IGNORECASE)
            assert not re.search(r"!\[\]\(", cell.source)


@pytest.mark.parametrize("unit", UNITS)
def test_outputs_are_clean(unit):
    text = (ROOT / "solutions" / unit / f"{unit}.ipynb").read_text()
    assert str(ROOT) not in text and '"stderr"' not in text and "widget-state" not in text
    assert '"execution"' not in text and "iopub" not in text
