"""Three steps of nbgrader's pipeline that this course does its own way."""

from __future__ import annotations

import nbformat
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbgrader import utils
from nbgrader.preprocessors import ClearSolutions, Execute, OverwriteCells

STUB = '# YOUR CODE HERE\nraise NotImplementedError("Exercise {number} is not solved yet: replace this line.")'

OUTPUT_CHARACTERS = 1_000_000  # of one cell; a loop that prints would otherwise fill the grader's memory
RESTARTS = 3  # of Python for one submission; where it ends once more, the rest of the notebook is left out

# Runs in front of each test cell, whose own imports then read these modules from disk: what a learner's cell has put
# into them is gone. It uses no builtin, because a learner's cell may have given `list` or `vars` another meaning.
FRESH_HELPERS = (
    "import sys as __s; "
    "[(__s.modules.pop(__n), __s.modules['helpers'].__dict__.pop(__n.split('.')[1], None)) "
    "for __n in __s.modules.copy() if __n.startswith(("
    "'helpers.checks', 'helpers.describe', 'helpers.golden', 'helpers.isolation', 'helpers.samples', 'helpers.witness'"
    "))]; "
    "del __s"
)


def exercise_number(grade_id: str) -> str:
    """ "ex_1_2" and "ex_1_2_check" are "1.2"."""
    return ".".join(part for part in grade_id.split("_") if part.isdigit())


class StubWithNumber(ClearSolutions):
    """Replace each solution by a stub that names its exercise."""

    def preprocess_cell(self, cell: NotebookNode, resources: dict, index: int) -> tuple[NotebookNode, dict]:
        number = exercise_number(cell.metadata.get("nbgrader", {}).get("grade_id", ""))
        self.code_stub = {"python": STUB.format(number=number)}
        return super().preprocess_cell(cell, resources, index)


class RestoreCells(OverwriteCells):
    """Overwrite changed test cells, and put deleted ones back where the learner's code for them has run.

    nbgrader's own version puts a deleted cell right behind its predecessor, so it misses code that the learner
    moved to a new cell, and stops with KeyError when the predecessor is gone as well, or when a cell was copied.
    """

    def add_missing_grade_cells(self, nb: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        for (
            cell
        ) in nb.cells:  # copies of a cell, and exercises of an older release, have lost their id and do not count
            if "grade_id" not in cell.metadata.get("nbgrader", {"grade_id": None}):
                del cell.metadata["nbgrader"]
        source = self.gradebook.find_notebook(self.notebook_id, self.assignment_id)
        names = [cell.name for cell in source.source_cells]
        grade_cells = {cell.name: cell for cell in source.grade_cells}
        solutions = {cell.name for cell in source.solution_cells}
        for at in reversed(range(len(names))):
            name = names[at]
            present = {
                cell.metadata["nbgrader"]["grade_id"]: index
                for index, cell in enumerate(nb.cells)
                if (utils.is_grade(cell) or utils.is_solution(cell)) and "grade_id" in cell.metadata["nbgrader"]
            }
            if name not in grade_cells or name in present:
                continue
            self.log.warning("Missing grade cell %s encountered, adding to notebook", name)
            cell = self.missing_cell_transform(
                source.source_cells[at], grade_cells[name].max_score, is_solution=name in solutions
            )
            cell["id"] = name
            before = min((present[later] for later in names[at + 1 :] if later in present), default=len(nb.cells))
            nb.cells.insert(before, nbformat.from_dict(cell))
        return nb, resources


class ExecuteForGrades(Execute):
    """Run a submission; keep outputs small, and let nothing but an error decide about the points of a test cell."""

    def preprocess(self, nb: NotebookNode, *arguments: object, **options: object) -> tuple[NotebookNode, dict]:
        """Run all cells; a cell that ends Python, or cannot be stopped, is left out of a new run of all others."""
        self.fatal: dict[int, str] = {}
        while True:
            self.characters: dict[int, int] = {}
            self.running: int | None = None
            try:
                return super().preprocess(nb, *arguments, **options)
            except (DeadKernelError, CellTimeoutError) as error:
                if self.running is None or self.running in self.fatal:
                    raise
                self.log.warning("Cell %d is left out: %s", self.running, error)
                last = self.running + 1 if len(self.fatal) < RESTARTS else len(nb.cells)
                self.fatal |= dict.fromkeys(range(self.running, last), fatal_sentence(error))

    def output(self, outs: list, msg: dict, display_id: str | None, cell_index: int) -> NotebookNode | None:
        if msg["msg_type"] != "error":
            self.characters[cell_index] = self.characters.get(cell_index, 0) + len(str(msg["content"]))
            if self.characters[cell_index] > OUTPUT_CHARACTERS:
                return None
        return super().output(outs, msg, display_id, cell_index)

    def preprocess_cell(self, cell: NotebookNode, resources: dict, index: int) -> tuple[NotebookNode, dict]:
        self.running = index
        if index in self.fatal:
            if cell.cell_type == "code":
                why = self.fatal[index]
                cell.outputs = [nbformat.v4.new_output("error", ename="LeftOut", evalue=why, traceback=[why])]
            return cell, resources
        if not (utils.is_grade(cell) and cell.cell_type == "code"):
            return super().preprocess_cell(cell, resources, index)
        source = cell.source
        cell.source = f"{FRESH_HELPERS}\n{source}"
        try:
            cell, resources = super().preprocess_cell(cell, resources, index)
        finally:
            cell.source = source
        # nbgrader reads a displayed number as partial credit; our tests display none, so it is the learner's.
        cell.outputs = [output for output in cell.outputs if output.output_type != "execute_result"]
        return cell, resources


def fatal_sentence(error: Exception) -> str:
    """What the feedback says about a cell that was left out."""
    if isinstance(error, CellTimeoutError):
        return "This cell was left out: it ran for too long and could not be stopped. The other cells ran without it."
    return (
        "This cell was left out: it ended Python (by os._exit, a crash in compiled code, or too little memory). "
        "The other cells ran without it."
    )
