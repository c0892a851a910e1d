"""The build: the same bytes every time, a failing cell is named, and nothing is half written."""

import nbformat
import pytest

from grading import build

SOURCE = """\
# %% [markdown]
# # A unit

# %%
print("hello")

# %% nbgrader={"grade_id": "ex_9_1", "grade": false, "locked": false, "schema_version": 3, "solution": true}
def double(x):
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION

# %% nbgrader={"grade_id": "ex_9_1_check", "grade": true, "points": 1, "locked": true, "schema_version": 3, "solution": false}
assert double(2) == 4
### BEGIN HIDDEN TESTS
assert double(5) == 10
### END HIDDEN TESTS
"""


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of one unit in a temporary folder."""
    (tmp_path / "solutions" / "09_unit").mkdir(parents=True)
    (tmp_path / "helpers").mkdir()
    (tmp_path / "requirements.lock").write_text("")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    source = tmp_path / "solutions" / "09_unit" / "09_unit.py"
    source.write_text(SOURCE)
    return tmp_path


def files(course):
    return {
        path.relative_to(course).as_posix(): path.read_bytes()
        for part in ("solutions", "notebooks")
        for path in (course / part).rglob("*.ipynb")
    }


def test_a_second_build_gives_the_same_bytes(course):
    build.build(["09_unit"])
    first = files(course)
    assert set(first) == {"solutions/09_unit/09_unit.ipynb", "notebooks/09_unit/09_unit.ipynb"}
    build.build(["09_unit"], force=True)
    assert files(course) == first
    build.build(["09_unit"])
    assert files(course) == first


def test_the_release_has_a_numbered_stub_and_no_hidden_tests(course):
    build.build(["09_unit"])
    nb = nbformat.read(course / "notebooks" / "09_unit" / "09_unit.ipynb", as_version=4)
    cells = {cell.id: cell.source for cell in nb.cells}
    assert 'raise NotImplementedError("Exercise 9.1 is not solved yet: replace this line.")' in cells["ex_9_1"]
    assert "return" not in cells["ex_9_1"] and "double(5)" not in cells["ex_9_1_check"]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; print('warning', file=sys.stderr)", "holds stderr"),
        ("print(object())", "a memory address"),
        ("import pathlib; print(pathlib.Path.home())", "a folder of this computer"),
    ],
)
def test_a_bad_cell_stops_the_build_and_changes_nothing(course, cell, message):
    build.build(["09_unit"])
    before = files(course)
    source = course / "solutions" / "09_unit" / "09_unit.py"
    source.write_text(SOURCE.replace('print("hello")', cell))
    with pytest.raises(build.BuildError) as caught:
        build.build(["09_unit"])
    assert message in str(caught.value) and "09_unit.py" in str(caught.value) and "cell" in str(caught.value)
    assert files(course) == before
    assert not list(course.glob(".build-*"))


def test_a_solution_without_its_end_mark_is_refused(course):
    source = course / "solutions" / "09_unit" / "09_unit.py"
    source.write_text(SOURCE.replace("    ### END SOLUTION\n", ""))
    with pytest.raises(build.BuildError, match="cannot release 09_unit"):
        build.build(["09_unit"])
    assert files(course) == {}


def test_a_learners_work_is_kept(course, capsys):
    build.build(["09_unit"])
    path = course / "notebooks" / "09_unit" / "09_unit.ipynb"
    clean = path.read_bytes()
    assert not build.touched(path)
    nb = nbformat.read(path, as_version=4)
    nb.cells[2].source = "def double(x):\n    return x + x"
    nbformat.write(nb, path)
    mine = path.read_bytes()
    build.build(["09_unit"])
    assert path.read_bytes() == clean
    assert path.with_name("09_unit.kept-1.ipynb").read_bytes() == mine
    assert "kept as 09_unit.kept-1.ipynb" in capsys.readouterr().out


def test_a_cell_that_varies_keeps_its_output_until_anything_changes(course):
    source = course / "solutions" / "09_unit" / "09_unit.py"
    varying = SOURCE.replace('# %%\nprint("hello")', '# %% tags=["varies"]\nimport time; print(time.time_ns())')
    source.write_text(varying)
    build.build(["09_unit"])
    first = files(course)
    build.build(["09_unit"], force=True)
    assert files(course) == first
    source.write_text(varying.replace("print(time", "print('now', time"))
    build.build(["09_unit"])
    assert b"now" in files(course)["solutions/09_unit/09_unit.ipynb"]


def test_a_cell_that_takes_too_long_is_named(course, monkeypatch):
    monkeypatch.setattr(build, "CELL_SECONDS", 2)
    source = course / "solutions" / "09_unit" / "09_unit.py"
    source.write_text(SOURCE.replace('print("hello")', "import time; time.sleep(30)"))
    with pytest.raises(build.BuildError, match=r"cell .*import time; time.sleep\(30\).* ran for more than 2 s"):
        build.build(["09_unit"])


def test_a_dead_kernel_is_named(course):
    source = course / "solutions" / "09_unit" / "09_unit.py"
    source.write_text(SOURCE.replace('print("hello")', "import os; os._exit(1)"))
    with pytest.raises(build.BuildError, match="the kernel died in cell"):
        build.build(["09_unit"])


def test_cell_ids_come_from_names_and_content(course):
    source = course / "solutions" / "09_unit" / "09_unit.py"
    before = [cell.id for cell in build.read_source(source).cells]
    assert before[2:] == ["ex_9_1", "ex_9_1_check"]
    source.write_text(SOURCE.replace("# # A unit\n", "# # A unit\n\n# %%\nx = 1\n"))
    after = [cell.id for cell in build.read_source(source).cells]
    assert set(before) < set(after), "an inserted cell must not rename the others"
