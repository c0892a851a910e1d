"""Every check can fail, for the right reason: wrong answers, other right answers, and the untouched stub."""

import importlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from grading.build import read_source
from grading.course import ROOT, unit_names
from tests.misconceptions import runner
from tests.misconceptions.bank import ANSWERS

SECONDS = 3600  # ends a hang; the slowest unit takes a few minutes
for unit in unit_names():
    importlib.import_module(f"tests.misconceptions.ch{unit[:2]}")
EXERCISES = {
    name: unit
    for unit in unit_names()
    for name in runner.exercises(read_source(ROOT / "solutions" / unit / f"{unit}.py").cells)
}


def outcomes(unit: str, folder: Path) -> dict[str, dict]:
    """Outcome of every answer of a unit, from a process of its own."""
    target = folder / f"{unit}.json"
    command = [sys.executable, "-m", "tests.misconceptions.runner", unit, "--json", str(target)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, f"the exercises of {unit} cannot be run alone:\n{done.stdout}{done.stderr[-3000:]}"
    return json.loads(target.read_text())


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Outcome of every answer, by "exercise/name" and then by "visible", "full" and "hidden"."""
    folder = tmp_path_factory.mktemp("bank")
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        units = pool.map(lambda unit: outcomes(unit, folder), reversed(unit_names()))  # the slow ones first
        return {key: outcome for unit in units for key, outcome in unit.items()}


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda a: f"{a.exercise}-{a.name}")
def test_an_answer_gets_what_it_deserves(answer, results):
    """A wrong one fails visibly with its message, and on the hidden tests alone; a right one passes both."""
    assert not runner.problems(answer, results[f"{answer.exercise}/{answer.name}"])


@pytest.mark.parametrize("exercise", EXERCISES)
def test_the_untouched_stub_earns_nothing(exercise, results):
    outcome = results[f"{exercise}/the stub"]
    assert outcome["visible"]["error"] == "NotSolvedYet"
    assert "is not solved yet" in outcome["visible"]["message"]
    assert not outcome["full"]["passed"]
    assert not outcome["hidden"]["passed"]


@pytest.mark.parametrize("exercise", EXERCISES)
def test_different_mistakes_get_different_messages(exercise, results):
    assert not runner.alike([answer for answer in ANSWERS if answer.exercise == exercise], results)


@pytest.mark.parametrize("exercise", EXERCISES)
def test_every_exercise_is_in_the_bank(exercise):
    mine = [answer for answer in ANSWERS if answer.exercise == exercise]
    assert sum(answer.message is not None for answer in mine) >= 3, "at least three named wrong answers"
    assert any(answer.message is None for answer in mine), "at least one right answer written differently"


def test_the_bank_names_only_exercises_that_exist():
    assert {answer.exercise for answer in ANSWERS} <= set(EXERCISES)
    names = [(answer.exercise, answer.name) for answer in ANSWERS]
    assert len(names) == len(set(names)), "two answers of one exercise have the same name"
    assert all((a.exercise, a.like) in names for a in ANSWERS if a.like), "`like` names an answer that is not there"
