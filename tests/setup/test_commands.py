"""The two commands: every failing step says in a sentence what to do, and a second run has nothing to do."""

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from grading.course import ROOT
from lab import start

SECONDS = 600  # ends a hang; making a .venv, the slowest step here, takes some ten seconds


def run(*command, cwd=ROOT, **environment):
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )


@pytest.fixture
def copy(tmp_path):
    """What make needs, in another folder and without .venv."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "lab", tmp_path / "lab", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_a_second_run_installs_nothing():
    done = run("make", "install")
    assert done.returncode == 0 and "nothing to do" in done.stdout


def test_no_python_is_said(copy):
    done = run("make", "install", "PYTHON=no-such-python", cwd=copy)
    assert done.returncode != 0 and "Install Python 3.11" in done.stdout


def fake_python(folder, body):
    program = folder / "python-fake"
    program.write_text(f"#!{sys.executable}\nimport runpy, sys\n{body}\nsys.argv = sys.argv[1:]\n"
                       "runpy.run_path(sys.argv[0], run_name='__main__')\n")  # fmt: skip
    program.chmod(0o755)
    return program


def test_a_wrong_python_is_said(copy):
    python = fake_python(copy, "sys.version_info = (3, 9, 2, 'final', 0)")
    done = run("make", "install", f"PYTHON={python}", cwd=copy)
    assert done.returncode != 0
    assert "it needs Python 3.11, 3.12 or 3.13 and this is Python 3.9" in done.stderr
    assert not (copy / ".venv").exists()


def test_a_missing_venv_module_is_said(copy):
    python = fake_python(copy, "import subprocess; subprocess.call = lambda *a, **k: 1")
    done = run("make", "install", f"PYTHON={python}", cwd=copy)
    assert done.returncode != 0 and "apt install python3-venv" in done.stderr


def test_a_failing_pip_is_said_and_leaves_no_stamp(copy):
    (copy / "requirements.lock").write_text("this-package-does-not-exist-anywhere==1.0\n")
    done = run("make", "install", f"PYTHON={sys.executable}", cwd=copy, PIP_NO_INDEX="1")
    assert done.returncode != 0 and "pip could not install the locked packages" in done.stderr
    assert not (copy / ".venv" / "installed-lock").exists()


def test_a_venv_without_pip_is_said(copy):
    run(sys.executable, "-m", "venv", "--without-pip", str(copy / ".venv"))
    done = run("make", "install", f"PYTHON={sys.executable}", cwd=copy)
    assert done.returncode != 0 and "no pip in .venv" in done.stderr


@pytest.mark.parametrize(("folder", "python"), [("/somewhere/else", None), (None, "3.12")])
def test_a_venv_of_another_place_or_python_is_made_anew(copy, folder, python):
    (copy / ".venv" / "bin").mkdir(parents=True)
    (copy / ".venv" / "bin" / "python").touch()
    here = "{}.{}".format(*sys.version_info[:2])
    lock = hashlib.sha256((copy / "requirements.lock").read_bytes()).hexdigest()
    (copy / ".venv" / "installed-lock").write_text(f"{lock} {folder or copy} {python or here}")
    (copy / "requirements.lock").write_text("this-package-does-not-exist-anywhere==1.0\n")
    done = run("make", "install", f"PYTHON={sys.executable}", cwd=copy, PIP_NO_INDEX="1")
    assert "-m venv" in done.stdout and (copy / ".venv" / "pyvenv.cfg").is_file()


@pytest.mark.parametrize("port", ["80808", "abc", "0"])
def test_a_wrong_port_is_said(port):
    done = run(sys.executable, "lab/start.py", "--port", port)
    assert done.returncode != 0 and "is not a port number" in done.stderr


def test_a_taken_port_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(sys.executable, "lab/start.py", "--port", str(port))
    assert done.returncode != 0 and f"Port {port} cannot be used" in done.stderr and "make lab PORT=" in done.stderr


def wait_for(condition, process, seconds=SECONDS):
    """Value of `condition()` as soon as there is one, None when the time is up or the process has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (value := condition()) or process.poll() is not None:
            return value
        time.sleep(0.2)
    return None


def test_make_lab_starts_a_quiet_lab_and_prints_its_address(tmp_path):
    port, log = start.free_port(), tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["make", "lab", f"PORT={port}"], cwd=ROOT, env=os.environ | {"BROWSER": "true"},
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        address = re.compile(rf"http://(?:localhost|127\.0\.0\.1):{port}/lab\S*00_start_here\S*token=(\w+)")
        found = wait_for(lambda: address.search(log.read_text()), process)
        assert found, log.read_text()
        token, site = found[1], f"http://127.0.0.1:{port}"
        page = urllib.request.urlopen(f"{site}/lab?token={token}", timeout=SECONDS).read().decode()
        for extension in ("announcements", "create-assignment", "formgrader", "jupyterlab-jupytext"):
            assert re.search(rf'"disabledExtensions".*{extension}', page, re.DOTALL), f"{extension} is not switched off"
        listing = f"{site}/api/contents/00_start_here?token={token}"
        assert "00_start_here.ipynb" in urllib.request.urlopen(listing, timeout=SECONDS).read().decode()
        assert "jupytext" not in log.read_text().lower(), "jupytext belongs to the build"
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=SECONDS)
