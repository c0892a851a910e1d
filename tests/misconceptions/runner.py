"""Run a unit's solution once and fork at each exercise to try every answer of the bank.

    python -m tests.misconceptions.runner ch01 01_transformer_basics results.json

Each answer meets the check three times, each time in a process of its own: as the learner sees it ("visible"), with the
hidden tests ("full"), and with hidden tests but sabotaged friendly checks ("hidden"), because a grade must not depend
on anything that a learner's code can reach in `helpers.checks`.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import nbformat
import torch

from grading.build import read_source
from grading.course import ROOT
from tests.misconceptions.bank import ANSWERS

SECONDS = 120
HIDDEN = re.compile(r"^\s*### BEGIN HIDDEN TESTS.*?^\s*### END HIDDEN TESTS\n?", re.DOTALL | re.MULTILINE)


def function_names(source: str) -> list[str]:
    return [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def sabotage_checks() -> None:
    """What a hostile learner could do: every friendly check passes, whatever it is given."""
    from helpers import checks

    class Swallow(nullcontext):
        def __exit__(self, *error: object) -> bool:
            return True

    checks.check = lambda *_, **__: Swallow()
    for name in ("close", "tensor", "number", "given", "raises"):
        setattr(checks, name, lambda *_, **__: None)


def attempt(namespace: dict, source: str, bindings: dict, check: str, way: str) -> dict:
    """Outcome of one answer in a forked process: {"passed": bool, "error": type name, "message": text}."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.alarm(SECONDS)  # an answer that never returns is ended, and reported as such
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
        outcome = {"passed": True, "error": "", "message": ""}
        try:
            exec(compile(source, "<answer>", "exec"), namespace)
            namespace.update(bindings)
            if way == "visible":
                check = HIDDEN.sub("", check)
            elif way == "hidden":
                sabotage_checks()
            exec(compile(check, "<check>", "exec"), namespace)
        except BaseException as error:
            outcome = {"passed": False, "error": type(error).__name__, "message": str(error)}
        os.write(writer, json.dumps(outcome).encode()[:60_000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return json.loads(answer) if answer else {"passed": False, "error": "NoAnswer", "message": "ended without a result"}


def all_ways(namespace: dict, source: str, bindings: dict, check: str) -> dict[str, dict]:
    """The three outcomes of one answer; what fails the visible tests fails the full check, which holds them."""
    visible = attempt(namespace, source, bindings, check, "visible")
    full = attempt(namespace, source, bindings, check, "full") if visible["passed"] else visible
    return {"visible": visible, "full": full, "hidden": attempt(namespace, source, bindings, check, "hidden")}


def run(chapter: str, unit: str) -> dict[str, dict]:
    importlib.import_module(f"tests.misconceptions.{chapter}")
    solution = read_source(ROOT / "solutions" / unit / f"{unit}.py")
    released = nbformat.read(ROOT / "notebooks" / unit / f"{unit}.ipynb", as_version=4)
    stubs = {cell.id: cell.source for cell in released.cells}
    checks = {cell.id.removesuffix("_check"): cell.source for cell in solution.cells if cell.id.endswith("_check")}
    namespace = {"__name__": "__main__"}
    results: dict[str, dict] = {}
    for cell in solution.cells:
        if cell.cell_type != "code":
            continue
        if cell.id in checks:
            main_function = function_names(cell.source)[0]
            candidates = {"the stub": (stubs[cell.id], {})}
            for answer in ANSWERS:
                if answer.exercise == cell.id:
                    candidates[answer.name] = (cell.source, {answer.binds or main_function: answer.function})
            for name, (source, bindings) in candidates.items():
                results[f"{cell.id}/{name}"] = all_ways(namespace, source, bindings, checks[cell.id])
        exec(compile(cell.source, cell.id, "exec"), namespace)
    return results


def main() -> None:
    chapter, unit, target = sys.argv[1:]
    torch.set_num_threads(1)  # a fork of a process with busy OpenMP threads may hang
    Path(target).write_text(json.dumps(run(chapter, unit)))


if __name__ == "__main__":
    main()
