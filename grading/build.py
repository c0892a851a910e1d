"""Build the course: ``make build``. One way, from the text source to what a learner opens.

    solutions/NN/NN.py  ->  solutions/NN/NN.ipynb (executed)  ->  notebooks/NN/NN.ipynb (nbgrader's release)

Everything is built in a temporary folder and moved into place at the end: a failing cell changes no file. A unit
whose source, helpers and lock are unchanged since its last build is not executed again.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from grading.course import ROOT, nbgrader_api, unit_names

CELL_SECONDS = 300
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python", "pygments_lexer": "ipython3"}
WIDGET = "application/vnd.jupyter.widget-view+json"
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class BuildError(Exception):
    """The course cannot be built; the text says which file and cell, and why."""


def read_source(path: Path) -> NotebookNode:
    """The unit's notebook from its percent-format source, with stable cell ids and no outputs."""
    nb = jupytext.read(path, fmt="py:percent")
    nb.metadata = NotebookNode(kernelspec=NotebookNode(KERNEL), language_info=NotebookNode(LANGUAGE))
    nb.nbformat, nb.nbformat_minor = 4, 5
    taken: set[str] = set()
    for cell in nb.cells:
        cell.metadata.pop("lines_to_next_cell", None)
        content = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        name = cell.metadata.get("nbgrader", {}).get("grade_id", content)
        while name in taken:
            name += "x"
        taken.add(name)
        cell.id = name
    nbformat.validate(nb)
    return nb


def execute(nb: NotebookNode, path: Path) -> None:
    """Run all cells in place, in a fresh kernel; a failing cell stops the build and is named."""
    started: list[NotebookNode] = []
    client = NotebookClient(nb, timeout=CELL_SECONDS, kernel_name="python3", record_timing=False,
                            resources={"metadata": {"path": str(path.parent)}})  # fmt: skip
    try:
        client.on_cell_start = lambda cell, cell_index: started.append(cell)
        client.execute(env=os.environ | {"COURSE_PROGRESS": "off", "OMP_WAIT_POLICY": "passive"})
    except CellTimeoutError:
        raise BuildError(f"{path.name}: {title(started[-1])} ran for more than {CELL_SECONDS} s.") from None
    except DeadKernelError:
        raise BuildError(f"{path.name}: the kernel died in {title(started[-1])}.") from None
    except CellExecutionError as error:
        message = ANSI.sub("", error.evalue)
        raise BuildError(f"{path.name}: {title(started[-1])} failed with {error.ename}: {message}") from None


def title(cell: NotebookNode) -> str:
    """How to find a cell: its id and first line."""
    return f'cell "{cell.id}" ({cell.source.strip().splitlines()[0]})'


def tidy_outputs(nb: NotebookNode, path: Path) -> None:
    """Keep what a reader sees; remove what changes from run to run; refuse what should not be there."""
    nb.metadata.pop("widgets", None)
    nb.metadata.language_info = NotebookNode(LANGUAGE)
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        merged: list[NotebookNode] = []
        for output in cell.outputs:
            if WIDGET in output.get("data", {}):
                continue  # a slider needs a live kernel; its static twin stands beside it
            if merged and output.output_type == "stream" == merged[-1].output_type and merged[-1].name == output.name:
                merged[-1].text += output.text  # how prints are split over messages is chance
            else:
                merged.append(output)
        cell.outputs = merged
        for output in cell.outputs:
            text = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
            where = f'{path.name}: the output of cell "{cell.id}"'
            if output.output_type == "stream" and output.name == "stderr":
                raise BuildError(f"{where} holds stderr, which costs a learner the points of a test cell:\n{text}")
            if str(ROOT) in text or str(Path.home()) in text:
                raise BuildError(f"{where} names a folder of this computer:\n{text}")
            if ADDRESS.search(text):
                raise BuildError(f"{where} holds a memory address, another one in every run:\n{text}")


def fingerprint(path: Path) -> str:
    """Hash of all that the outputs of a unit depend on: source, helpers, model cards, locked versions, build."""
    parts = [path, *sorted((ROOT / "helpers").rglob("*.py")), *sorted((ROOT / "helpers").rglob("*.json")),
             ROOT / "requirements.lock", Path(__file__)]  # fmt: skip
    return hashlib.sha256(b"\0".join(part.read_bytes() for part in parts)).hexdigest()


def write(nb: NotebookNode, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.validate(nb)
    path.write_text(nbformat.writes(nb) + "\n", encoding="utf-8")


def digest(nb: NotebookNode) -> str:
    """Short hash of all cell sources: the name of a release."""
    return hashlib.sha256("".join(cell.source for cell in nb.cells).encode()).hexdigest()[:12]


def touched(path: Path) -> bool:
    """True if somebody has worked in this released notebook: another source than released, or outputs."""
    try:
        nb = nbformat.read(path, as_version=4)
        return digest(nb) != nb.metadata["course"]["release"] or any(cell.get("outputs") for cell in nb.cells)
    except Exception:  # whatever this file is, the build did not make it
        return True


def keep(path: Path) -> Path:
    """Rename a notebook that somebody worked in, so that a new release does not overwrite it; returns its new path."""
    names = (path.with_name(f"{path.stem}.kept-{number}.ipynb") for number in itertools.count(1))
    return path.rename(next(name for name in names if not name.exists()))


def ease_checks(nb: NotebookNode) -> None:
    """Fold each check under its first line, and let "Run All" go on behind one that fails.

    A check stands between an exercise and its hints; a click opens it. nbgrader and its Validate look at a cell's
    error output, not at whether the run stopped, so the tag changes no grade.
    """
    for cell in nb.cells:
        if cell.metadata.get("nbgrader", {}).get("grade"):
            cell.metadata["jupyter"] = {"source_hidden": True}
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "raises-exception"]


def release(sources: dict[str, NotebookNode], into: Path) -> None:
    """Write nbgrader's release of each unit to ``into/NAME/NAME.ipynb``: no solutions, hidden tests or outputs."""
    with tempfile.TemporaryDirectory() as folder:
        course = Path(folder)
        for name, nb in sources.items():
            write(nb, course / "solutions" / name / f"{name}.ipynb")
        api = nbgrader_api(course)
        for name in sources:
            result = api.generate_assignment(name)
            if not result["success"]:
                raise BuildError(f"nbgrader cannot release {name}:\n{result.get('error') or result.get('log')}")
            nb = nbformat.read(course / "notebooks" / name / f"{name}.ipynb", as_version=4)
            ease_checks(nb)
            nb.metadata["course"] = {"unit": name, "release": digest(nb)}
            write(nb, into / name / f"{name}.ipynb")


def executed(name: str, force: bool) -> NotebookNode:
    """The unit's executed notebook: the stored one if nothing that it depends on changed, else a new run."""
    path = ROOT / "solutions" / name / f"{name}.py"
    mark = fingerprint(path)
    stored = path.with_suffix(".ipynb")
    old = nbformat.read(stored, as_version=4) if stored.is_file() else None
    unchanged = old is not None and old.metadata.get("course", {}).get("fingerprint") == mark
    if unchanged and not force:
        print(f"{name}: unchanged, not executed again")
        return old
    print(f"{name}: executing", flush=True)
    nb = read_source(path)
    execute(nb, path)
    tidy_outputs(nb, path)
    nb.metadata["course"] = {"unit": name, "fingerprint": mark}
    if unchanged:
        keep_varying_outputs(nb, old)
    return nb


def keep_varying_outputs(nb: NotebookNode, old: NotebookNode) -> None:
    """A cell that measures this computer (tag "varies") keeps its stored output when nothing else has changed."""
    for cell, before in zip(nb.cells, old.cells, strict=True):
        if "varies" in cell.metadata.get("tags", []):
            cell.outputs = before.outputs


def build(names: list[str], force: bool = False) -> None:
    """Build solutions and release of the named units; existing files are replaced only when all of it worked."""
    with tempfile.TemporaryDirectory(dir=ROOT, prefix=".build-") as folder:
        made = Path(folder)
        for name in names:
            write(executed(name, force), made / "solutions" / name / f"{name}.ipynb")
        release({name: read_source(ROOT / "solutions" / name / f"{name}.py") for name in names}, made / "notebooks")
        for part in ("solutions", "notebooks"):
            for name in names:
                target = ROOT / part / name / f"{name}.ipynb"
                target.parent.mkdir(parents=True, exist_ok=True)
                if part == "notebooks" and target.is_file() and touched(target):
                    print(f"{target.name} holds somebody's work: it is kept as {keep(target).name}")
                shutil.move(made / part / name / f"{name}.ipynb", target)
    print(f"built {len(names)} units")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("units", nargs="*", help="names of units, all when none is given")
    parser.add_argument("--force", action="store_true", help="execute also what is unchanged")
    arguments = parser.parse_args()
    known = unit_names()
    unknown = [name for name in arguments.units if name not in known]
    if unknown:
        raise SystemExit(f"there is no unit {', '.join(unknown)}; the units are {', '.join(known)}")
    try:
        build(arguments.units or known, arguments.force)
    except BuildError as error:
        sys.exit(f"build stopped, no file was changed.\n{error}")


if __name__ == "__main__":
    main()
