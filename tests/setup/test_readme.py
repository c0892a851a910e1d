"""Every command of the README, run in a copy of the course."""

import hashlib
import os
import re
import shutil
import subprocess
import sys

import pytest

from grading.course import ROOT

README = (ROOT / "README.md").read_text()
# The command as the README has it, what to add so that it ends soon, and what it must print.
COMMANDS = {
    "make grade": ("", "ada, 00_start_here: 1 of 1 points"),
    "make build": ("UNITS=00_start_here", "built 1 units"),
    "make build UNITS=01_transformer_basics": ("", "built 1 units"),
    "make build FORCE=1": ("UNITS=00_start_here", "00_start_here: executing"),
    "make model": ('ARGS="--steps 2 --output build/model.safetensors"', "bits per byte on held-out documents"),
    "make dates": ('ARGS="--steps 20 --held-out 8 --output build/dates.safetensors"', "of held-out dates read"),
    "make book": ("", "docs/book_corrected.md"),
    "make bench": (  # the others are run by tests/helpers/test_frontier.py and test_qat.py
        'BENCH=round_to_nearest ARGS="--windows 2 --output build/bench.json"',
        "int8 per-channel",
    ),
    "make lock": ("", "requirements.lock: "),  # changes the copy, so it comes after all that installs from the lock
    "make clean": ("", ""),
}
SECONDS = 1800  # ends a hang; the slowest command takes a minute or two
OFFLINE = re.compile(
    r"ConnectionError|NewConnectionError|Max retries|Name or service not known|No matching distribution"
)
ELSEWHERE = {
    "make lab",  # test_commands.py
    "make lab PORT=8899",
    "make lab PYTHON=/path/to/python3.11",
    "make test",  # this very run: .ci/run
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """All committed and new files of the course, with a .venv that hands over to the installed one."""
    folder = tmp_path_factory.mktemp("copy")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    made_from = (folder / "requirements.lock").read_bytes() + (folder / "lab" / "install.py").read_bytes()
    lock = hashlib.sha256(made_from).hexdigest()
    (folder / ".venv" / "installed-lock").write_text("{} {} {}.{}".format(lock, folder, *sys.version_info[:2]))
    solved = folder / "gradebook" / "submitted" / "ada" / "00_start_here"
    solved.mkdir(parents=True)
    shutil.copy(folder / "solutions" / "00_start_here" / "00_start_here.ipynb", solved)
    (folder / "build").mkdir()
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_works(command, copy):
    more, expected = COMMANDS[command]
    done = subprocess.run(
        f"{command} {more}",
        shell=True,
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if command == "make lock" and OFFLINE.search(done.stderr):
        pytest.skip("pinning all versions again needs the package index, which cannot be reached from here")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert expected in done.stdout


def test_every_command_of_the_readme_is_run():
    named = {m.strip() for m in re.findall(r"(?:^|`)(make [a-z]+(?: [A-Z]+=[^\s`]+)*)", README, re.MULTILINE)}
    assert named == set(COMMANDS) | ELSEWHERE


def test_every_target_is_in_the_readme():
    targets = re.findall(r"^([a-z]+):.*?##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [target for target in targets if f"make {target}" not in README] == []


def test_files_and_folders_that_the_readme_names_exist():
    for name in [*re.findall(r"\]\(([^)#:]+)\)", README), "environment.yml", "nbgrader_config.py", ".ci/run"]:
        assert (ROOT / name).exists(), name
    for name in re.findall(r"^\| `([a-z_/]+)`", README, re.MULTILINE):
        assert (ROOT / name).exists() or (ROOT / "notebooks" / name).exists(), name
