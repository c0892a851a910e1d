"""Create .venv with the locked versions. Run by make with the system's Python, so: standard library only.

Idempotent: a stamp file says from which lock, folder and Python .venv was made; if they are the same, nothing is done.
"""

import hashlib
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
LOCK = os.path.join(ROOT, "requirements.lock")
STAMP = os.path.join(VENV, "installed-lock")
# A .pth file instead of an editable install: helpers and grading are imported from here, and nothing is built.
MAKE_IMPORTABLE = (
    "import pathlib, sys, sysconfig; "
    "pathlib.Path(sysconfig.get_paths()['purelib'], 'course.pth').write_text(sys.argv[1] + '\\n')"
)
OLDEST, TOO_NEW = (3, 11), (3, 14)


def stop(sentence):
    sys.exit("\nThe course could not be installed: " + sentence)


def check_python():
    here = sys.version_info[:2]
    if not OLDEST <= here < TOO_NEW:
        stop("it needs Python 3.11, 3.12 or 3.13 and this is Python {}.{}. Install one of them (python.org, pyenv or "
             "your system's packages), then name it: make lab PYTHON=python3.11".format(*here))  # fmt: skip


def wanted():
    """What an up-to-date .venv was made from: lock, this script, this folder (.venv holds its paths), this Python."""
    with open(LOCK, "rb") as file, open(os.path.abspath(__file__), "rb") as script:
        lock = hashlib.sha256(file.read() + script.read()).hexdigest()
    return "{} {} {}.{}".format(lock, ROOT, *sys.version_info[:2])


def installed():
    try:
        with open(STAMP) as file:
            return file.read() == wanted()
    except OSError:
        return False


def made_here():
    """False if there is no .venv, or one of another Python or another folder, which cannot be brought up to date."""
    try:
        with open(STAMP) as file:
            return file.read().split(" ", 1)[1:] == wanted().split(" ", 1)[1:]
    except OSError:  # an installation that was interrupted goes on where it stopped
        return os.path.exists(PYTHON)


def run(arguments, otherwise):
    print("+ " + " ".join(arg.replace(ROOT + os.sep, "") for arg in arguments[:8]), flush=True)
    try:
        done = subprocess.call(arguments, cwd=ROOT)
    except OSError as error:
        stop(f"{otherwise} ({error})")
    if done != 0:
        stop(otherwise)


def main():
    check_python()
    if installed():
        print("The course is installed in .venv (nothing to do).")
        return
    if not made_here():
        shutil.rmtree(VENV, ignore_errors=True)
        run([sys.executable, "-m", "venv", VENV],
            "Python cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv python3-pip. "
            "If .venv was left half made, remove it first: make clean")  # fmt: skip
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run([*pip, "-r", LOCK],
        "pip could not install the locked packages: read pip's last lines above. Usual causes: no network, a full "
        "disk (2 GB are needed), or no pip in .venv (make clean, then try again).")  # fmt: skip
    run([PYTHON, "-c", MAKE_IMPORTABLE, ROOT],
        "the course's packages (helpers, grading) could not be registered: make clean, then try again.")  # fmt: skip
    # Threads that spin while they wait slow a busy computer down several times; VS Code starts kernels from this, too.
    run([PYTHON, "-m", "ipykernel", "install", "--sys-prefix", "--env", "OMP_WAIT_POLICY", "passive"],
        "the Jupyter kernel could not be registered: make clean, then try again.")  # fmt: skip
    with open(STAMP, "w") as file:
        file.write(wanted())
    print("Installed.")


if __name__ == "__main__":
    main()
