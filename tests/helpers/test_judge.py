"""The waiting judge says what the judge of the command line says, to forks as well, and does not outlive its asker."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import challenge, frontier, judge
from helpers.checkpoint import load_date_reader
from helpers.frontier import Scheme

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    file = tmp_path_factory.mktemp("judge") / "entry.safetensors"
    model = load_date_reader()
    file.write_bytes(challenge.pack(model, frontier.everywhere(model, Scheme(4))))
    return file


def plain(report):
    return json.loads(json.dumps(report))


def test_it_says_what_the_command_line_says(entry, tmp_path):
    command = [sys.executable, "-m", "helpers.challenge", str(entry), "--seed", "5", "--count", "60"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert judge.judged(entry, 5, 60) == json.loads(said)
    (tmp_path / "damaged").write_bytes(entry.read_bytes()[:-9])
    assert "damaged" in judge.judged(tmp_path / "damaged")["refused"]
    assert "at least 20 pairs" in judge.judged(entry, 5, 3)["refused"]


def test_forks_ask_the_same_process(entry):
    judge.start()
    address, expected = judge._running["address"], judge.judged(entry, 5, 60)
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            same = judge.judged(entry, 5, 60) == expected and judge._running["address"] == address
            os._exit(0 if same else 1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]


def test_one_that_was_ended_is_started_again(entry):
    judge.start()
    judge._running["process"].kill()
    judge._running["process"].wait()
    assert judge.judged(entry, 5, 60)["pairs"] == 60


def test_it_holds_no_code_of_whoever_asks_and_ends_with_them(entry):
    program = (
        "import sys\nfrom helpers import challenge, judge\n"
        "challenge.report = lambda *_: {'refused': 'bent'}\nchallenge.BUDGET = 10**9\n"
        f"assert judge.judged({str(entry)!r}, 5, 60)['meets_budget'] is False\n"
        "print(judge._running['process'].pid)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    for _ in range(100):
        try:
            os.kill(int(done.stdout), 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("the judge outlives the process that asked it.")
