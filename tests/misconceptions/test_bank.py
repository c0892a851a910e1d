"""Every check can fail, for the right reason: wrong answers, other right answers, and the untouched stub."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grading.build import read_source
from grading.course import ROOT, unit_names
from tests.misconceptions.bank import ANSWERS

CHAPTERS = {f"ch{name[:2]}": name for name in unit_names()}
for chapter in CHAPTERS:
    importlib.import_module(f"tests.misconceptions.{chapter}")
EXERCISES = [
    cell.id
    for name in unit_names()
    for cell in read_source(ROOT / "solutions" / name / f"{name}.py").cells
    if cell.metadata.get("nbgrader", {}).get("solution")
]


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Outcome of every answer, by "exercise/name" and then by "visible", "full" and "hidden"."""
    folder = tmp_path_factory.mktemp("bank")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    running = {}
    for chapter, unit in CHAPTERS.items():
        command = [sys.executable, "-m", "tests.misconceptions.runner", chapter, unit, str(folder / f"{chapter}.json")]
        running[chapter] = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    found = {}
    for chapter, process in running.items():
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, f"the solution of {CHAPTERS[chapter]} does not run:\n{output[-3000:]}"
        found |= json.loads(Path(folder / f"{chapter}.json").read_text())
    return found


@pytest.mark.parametrize("answer", [a for a in ANSWERS if a.message], ids=lambda a: f"{a.exercise}-{a.name}")
def test_a_wrong_answer_fails_with_its_message(answer, results):
    outcome = results[f"{answer.exercise}/{answer.name}"]
    assert not outcome["visible"]["passed"], "the visible check passes a wrong answer"
    assert answer.message.lower() in outcome["visible"]["message"].lower()
    assert not outcome["full"]["passed"]
    assert not outcome["hidden"]["passed"], "the hidden tests alone pass a wrong answer"


@pytest.mark.parametrize("answer", [a for a in ANSWERS if not a.message], ids=lambda a: f"{a.exercise}-{a.name}")
def test_a_right_answer_written_differently_passes(answer, results):
    outcome = results[f"{answer.exercise}/{answer.name}"]
    assert outcome["full"]["passed"], outcome["full"]["message"]
    assert outcome["hidden"]["passed"], outcome["hidden"]["message"]


@pytest.mark.parametrize("exercise", EXERCISES)
def test_the_untouched_stub_earns_nothing(exercise, results):
    outcome = results[f"{exercise}/the stub"]
    assert outcome["visible"]["error"] == "NotSolvedYet"
    assert "is not solved yet" in outcome["visible"]["message"]
    assert not outcome["full"]["passed"]
    assert not outcome["hidden"]["passed"]


@pytest.mark.parametrize("exercise", EXERCISES)
def test_every_exercise_is_in_the_bank(exercise):
    mine = [answer for answer in ANSWERS if answer.exercise == exercise]
    assert sum(answer.message is not None for answer in mine) >= 3, "at least three named wrong answers"
    assert any(answer.message is None for answer in mine), "at least one right answer written differently"


def test_the_bank_names_only_exercises_that_exist():
    assert {answer.exercise for answer in ANSWERS} <= set(EXERCISES)
    names = [(answer.exercise, answer.name) for answer in ANSWERS]
    assert len(names) == len(set(names)), "two answers of one exercise have the same name"
