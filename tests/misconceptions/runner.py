"""Try every answer of the bank on its exercise, each in a process of its own.

    python -m tests.misconceptions.runner 02_quantization_apis --only ex_2_3 ex_2_4    # says which do not behave
    python -m tests.misconceptions.runner 02_quantization_apis --json results.json     # for test_bank.py

An exercise is run alone: the unit's set-up cell, the few given cells that it needs (closure.py), the answer, the check.
Three outcomes count: what the learner sees ("visible"); the whole check ("full"), for answers that pass the visible
part; and the hidden tests alone ("hidden"), with friendly checks that have been sabotaged, because a grade must not
depend on anything that a learner's code can reach in `helpers.checks`. The grader reads the checks' modules anew before
each test cell, so `checks.isolated` and `checks.untouched` stay.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import torch
from nbformat import NotebookNode

from grading.build import read_source
from grading.course import ROOT
from grading.preprocessors import StubWithNumber
from tests.misconceptions.bank import ANSWERS, Answer
from tests.misconceptions.closure import closure

SECONDS = 300  # ends an answer that never returns
HIDDEN = re.compile(r"^\s*### BEGIN HIDDEN TESTS.*?^\s*### END HIDDEN TESTS\n?", re.DOTALL | re.MULTILINE)
FRIENDLY = ("close", "tensor", "number", "given", "raises")
PASSED = {"passed": True, "error": "", "message": ""}


def main_name(source: str) -> str:
    """Name of the first function or class of an answer cell."""
    return re.search(r"^(?:def|class) (\w+)", source, re.MULTILINE)[1]


def sabotage_checks() -> None:
    """What a hostile learner could do: every friendly check passes, whatever it is given."""
    from helpers import checks

    class Swallow(nullcontext):
        def __exit__(self, *error: object) -> bool:
            return True

    checks.check = lambda *_, **__: Swallow()
    _disarm(checks)


def _disarm(checks: object) -> None:
    for name in FRIENDLY:
        setattr(checks, name, lambda *_, **__: None)


def note_visible(outcome: dict) -> None:
    """Make the visible part write its outcome down instead of raising, and sabotage the friendly checks behind it."""
    from helpers import checks

    friendly = checks.check

    class Noted:
        def __init__(self, *arguments: object) -> None:
            self.inner = friendly(*arguments)

        def __enter__(self) -> None:
            self.inner.__enter__()

        def __exit__(self, *error: object) -> bool:
            try:
                self.inner.__exit__(*error)
            except Exception as failed:
                outcome.update(described(failed))
            _disarm(checks)
            return True

    checks.check = Noted


def described(error: BaseException) -> dict:
    return {"passed": False, "error": type(error).__name__, "message": str(error)[:20_000]}


def in_fork(work: Callable[[], dict]) -> dict:
    """What `work` returns in a forked process; a process that ends without a result is a failure, too."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.alarm(SECONDS)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(json.dumps(work()).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return json.loads(answer) if answer else {"passed": False, "error": "NoAnswer", "message": "ended without a result"}


class Exercise:
    """One exercise of a unit, ready to meet answers."""

    def __init__(self, cells: list[NotebookNode], name: str) -> None:
        self.solution = next(cell for cell in cells if cell.id == name)
        self.check = next(cell.source for cell in cells if cell.id == f"{name}_check")
        self.namespace: dict = {"__name__": "__main__"}
        with redirect_stdout(io.StringIO()):
            for cell in closure(cells, name):
                exec(compile(cell.source, cell.id, "exec"), self.namespace)
        # Our own answer once, here: the forks then find every module loaded.
        with redirect_stdout(io.StringIO()):
            exec(compile(self.solution.source, name, "exec"), known := dict(self.namespace))
            exec(compile(self.check, f"{name}_check", "exec"), known)
        stub, _ = StubWithNumber().preprocess_cell(self.solution.copy(), {"language": "python"}, 0)
        self.stub = stub.source

    def prepared(self, answer: Answer | None) -> None:
        """Define the answer, or the stub, in this process."""
        exec(compile(self.solution.source if answer else self.stub, "<answer>", "exec"), self.namespace)
        if answer:
            self.namespace[answer.binds or main_name(self.solution.source)] = answer.function

    def once(self, answer: Answer | None, source: str, before: Callable[[], object]) -> dict:
        """Outcome of running `source`, some form of the check, after `before`."""
        try:
            self.prepared(answer)
            before()
            exec(compile(source, "<check>", "exec"), self.namespace)
        except BaseException as error:
            return described(error)
        return dict(PASSED)

    def both(self, answer: Answer | None) -> dict:
        """Visible and hidden outcome in one run: the visible part is noted, then the hidden tests go on alone."""
        visible = dict(PASSED)
        hidden = self.once(answer, self.check, lambda: note_visible(visible))
        return {"visible": visible, "hidden": hidden}

    def outcomes(self, answer: Answer | None) -> dict[str, dict]:
        found = in_fork(lambda: self.both(answer))
        if "visible" not in found:  # the process died
            found = {
                "visible": in_fork(lambda: self.once(answer, HIDDEN.sub("", self.check), lambda: None)),
                "hidden": found,
            }
        if found["hidden"]["error"] in ("NameError", "UnboundLocalError"):  # a name that the visible part did not reach
            found["hidden"] = in_fork(lambda: self.once(answer, self.check, sabotage_checks))
        found["full"] = found["visible"]
        if found["visible"]["passed"]:
            found["full"] = in_fork(lambda: self.once(answer, self.check, lambda: None))
        return found


def exercises(cells: list[NotebookNode]) -> list[str]:
    return [cell.id for cell in cells if cell.metadata.get("nbgrader", {}).get("solution")]


def run(unit: str, only: list[str], say: Callable[[str], None]) -> dict[str, dict]:
    """Outcomes of every answer of the named exercises (all of the unit if none is), by "exercise/name"."""
    importlib.import_module(f"tests.misconceptions.ch{unit[:2]}")
    cells = read_source(ROOT / "solutions" / unit / f"{unit}.py").cells
    results: dict[str, dict] = {}
    for name in only or exercises(cells):
        started = time.perf_counter()
        exercise = Exercise(cells, name)
        answers = [answer for answer in ANSWERS if answer.exercise == name]
        results[f"{name}/the stub"] = exercise.outcomes(None)
        results |= {f"{name}/{answer.name}": exercise.outcomes(answer) for answer in answers}
        bad = [f"  {a.name}: {p}" for a in answers for p in problems(a, results[f"{name}/{a.name}"])]
        bad += [f"  {pair}" for pair in alike(answers, results)]
        say("\n".join([f"{name}: {len(answers)} answers, {time.perf_counter() - started:.1f} s", *bad]))
    return results


def problems(answer: Answer, outcome: dict[str, dict]) -> list[str]:
    """What is wrong with the outcome of one answer."""
    if answer.message is None:
        return [f"a right answer fails ({way}): {outcome[way]['message']}" for way in ("full", "hidden")
                if not outcome[way]["passed"]]  # fmt: skip
    found = [f"a wrong answer passes ({way})" for way in ("visible", "full", "hidden") if outcome[way]["passed"]]
    if not outcome["visible"]["passed"] and answer.message.lower() not in outcome["visible"]["message"].lower():
        found.append(f"asked is {answer.message!r}, the message is {outcome['visible']['message']!r}")
    return found


def alike(answers: list[Answer], results: dict[str, dict]) -> list[str]:
    """Pairs of different mistakes of one exercise that get the same message, numbers aside."""
    seen: dict[str, Answer] = {}
    found = []
    for answer in (a for a in answers if a.message is not None):
        text = re.sub(
            r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", results[f"{answer.exercise}/{answer.name}"]["visible"]["message"]
        )
        first = seen.setdefault(text, answer)
        if first is not answer and not {answer.like, first.like} & {
            first.name,
            answer.name,
            *filter(None, [first.like]),
        }:
            found.append(f"{first.name} and {answer.name} get the same message: {text}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("unit", help="name of a unit: 02_quantization_apis")
    parser.add_argument("--only", nargs="*", default=[], help="exercises: ex_2_3 ex_2_4")
    parser.add_argument("--json", help="write all outcomes to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a fork of a process with busy OpenMP threads may hang
    results = run(arguments.unit, arguments.only, lambda text: print(text, flush=True))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
