"""The grader's own steps, without a kernel: which cells run again after Python has ended, and what test cells read."""

import subprocess
import sys

import nbformat
import pytest
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbgrader.preprocessors import Execute

from grading.preprocessors import FRESH_HELPERS, RESTARTS, ExecuteForGrades


@pytest.fixture
def kernel(monkeypatch):
    """A kernel that notes what it runs, and ends at "exit"."""
    ran = []

    def run_all(self, nb, resources):
        ran.append([])
        for index, cell in enumerate(nb.cells):
            self.preprocess_cell(cell, resources, index)
        return nb, resources

    def run(self, cell, resources, index):
        ran[-1].append(cell.source)
        if cell.source == "exit":
            raise DeadKernelError("Kernel died")
        if cell.source == "hang":
            raise CellTimeoutError("no reply")
        cell.outputs = [nbformat.v4.new_output("execute_result", data={"text/plain": "7"})]
        return cell, resources

    monkeypatch.setattr(Execute, "preprocess", run_all)
    monkeypatch.setattr(Execute, "preprocess_cell", run)
    return ran


def notebook(*sources, graded=()):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    for index in graded:
        nb.cells[index].metadata["nbgrader"] = {"grade": True, "points": 1}
    return nb


def outcome(nb):
    return [cell.outputs[0].get("evalue", "ran") if cell.outputs else "nothing" for cell in nb.cells]


def test_a_cell_that_ends_python_is_left_out_and_all_others_run(kernel):
    nb, _ = ExecuteForGrades().preprocess(notebook("a", "exit", "b", "hang", "c"), {})
    assert kernel == [["a", "exit"], ["a", "b", "hang"], ["a", "b", "c"]]
    left_out = outcome(nb)
    assert left_out[::2] == ["ran"] * 3 and "it ended Python" in left_out[1] and "could not be stopped" in left_out[3]


def test_a_notebook_that_ends_python_again_and_again_is_left_out_from_there_on(kernel):
    nb, _ = ExecuteForGrades().preprocess(notebook("a", *["exit"] * (RESTARTS + 3), "b"), {})
    assert len(kernel) == RESTARTS + 2
    assert outcome(nb)[0] == "ran" and all("left out" in what for what in outcome(nb)[1:])


def test_a_kernel_that_does_not_start_is_no_fault_of_a_cell(monkeypatch):
    def fail(self, nb, resources):
        raise DeadKernelError("Kernel died")

    monkeypatch.setattr(Execute, "preprocess", fail)
    with pytest.raises(DeadKernelError):
        ExecuteForGrades().preprocess(notebook("a"), {})


def test_a_test_cell_runs_behind_one_line_and_keeps_its_source(kernel):
    nb, _ = ExecuteForGrades().preprocess(notebook("a", "# Check\nassert True", graded=[1]), {})
    assert kernel == [["a", f"{FRESH_HELPERS}\n# Check\nassert True"]]
    assert nb.cells[1].source == "# Check\nassert True" and "\n" not in FRESH_HELPERS
    assert nb.cells[0].outputs and not nb.cells[1].outputs, "a number that a test cell displays is no partial credit"


PATCHED = """
from helpers import checks, data, isolation, samples, witness
patched = [checks, isolation, samples, witness]
for module in patched:
    module.__dict__.update({name: None for name in vars(module) if not name.startswith("__")})
data.mine = "kept"
before = set(globals())
list = vars = sys = helpers = None
"""
AFTER = """
from helpers import checks, data, isolation, samples, witness
new = [checks, isolation, samples, witness]
assert not [a for a, b in zip(patched, new) if a is b]
assert callable(checks.check) and callable(checks.isolated) and callable(witness.unchanged)
assert data.mine == "kept", "a module whose classes a model is made of stays"
assert not [name for name in set(globals()) - before if "__" in name and name != "__annotations__"]
"""


def test_patched_checks_are_read_from_disk_again():
    done = subprocess.run([sys.executable, "-c", PATCHED + FRESH_HELPERS + AFTER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
