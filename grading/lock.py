"""Pin every dependency: ``make lock`` writes requirements.lock from the ranges in pyproject.toml."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from grading.course import ROOT

HEADER = """\
# Every version of the course's environment (without CUDA libraries, which PyPI's torch adds on Linux).
# Made by `make lock` from the ranges in pyproject.toml; do not edit.
"""
LOCAL_VERSION = re.compile(r"^([A-Za-z0-9_.\-]+==[^\s+]+)\+\S+", re.MULTILINE)  # torch==2.13.0+cpu: no index has it


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "requirements.lock"
        command = [
            sys.executable, "-m", "piptools", "compile", "--quiet", "--all-extras",
            "--strip-extras", "--allow-unsafe",
            "--no-header", "--no-emit-index-url", "--no-emit-trusted-host", "--no-emit-find-links",
            "--annotation-style", "line", "--output-file", str(made), "pyproject.toml",
        ]  # fmt: skip
        if subprocess.run(command, cwd=ROOT).returncode != 0:
            sys.exit("the lock was not changed: pip-compile could not resolve pyproject.toml (see its message above).")
        text = HEADER + LOCAL_VERSION.sub(r"\1", made.read_text())
    part = ROOT / "requirements.lock.part"
    part.write_text(text)
    part.replace(ROOT / "requirements.lock")
    print(f"requirements.lock: {sum('==' in line for line in text.splitlines())} versions")


if __name__ == "__main__":
    main()
