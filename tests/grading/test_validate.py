"""nbgrader's Validate button on a released notebook: an open exercise fails, a solved one passes.

Checks carry the tag "raises-exception", so that Run All goes on behind an open exercise; it must change no verdict.
"""

import nbformat
import pytest
from nbgrader.validator import Validator

from grading import build
from grading.course import ROOT, nbgrader_config

UNIT = "00_start_here"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    source = build.read_source(ROOT / "solutions" / UNIT / f"{UNIT}.py")
    build.release({UNIT: source}, folder)
    return folder / UNIT / f"{UNIT}.ipynb", source


def failed(path):
    return Validator(config=nbgrader_config(path.parent)).validate(str(path)).get("failed", [])


def test_an_open_exercise_fails_and_says_so(released):
    path, _ = released
    assert "raises-exception" in path.read_text()
    [problem] = failed(path)
    assert "is not solved yet" in problem["error"]


def test_a_solved_exercise_passes(released):
    path, source = released
    nb = nbformat.read(path, as_version=4)
    answers = {cell.id: cell.source for cell in source.cells if cell.metadata.get("nbgrader", {}).get("solution")}
    for cell in nb.cells:
        cell.source = answers.get(cell.id, cell.source)
    solved = path.with_name("solved.ipynb")
    nbformat.write(nb, solved)
    assert failed(solved) == []
