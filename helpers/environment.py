"""Is this computer ready for the course? Each problem is one sentence with its cure. Introduced in unit 00."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
NEEDED = ("torch", "torchao", "matplotlib", "numpy", "safetensors", "nbgrader", "ipykernel")


def locked_versions(lock: Path = LOCK) -> dict[str, str]:
    """Package name to version, from the lock file."""
    pins = re.findall(r"^([A-Za-z0-9_.\-]+)==([^\s;]+)", lock.read_text(), flags=re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in pins}


def problems() -> list[str]:
    """What is wrong here, a sentence each with its cure; an empty list means that everything is in place."""
    found = []
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        found.append(
            f"This is Python {platform.python_version()}; the course needs 3.11, 3.12 or 3.13. "
            "Close JupyterLab and start it with: make lab PYTHON=python3.11"
        )
    pins = locked_versions() if LOCK.is_file() else {}
    for name in NEEDED:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} is not installed. Close JupyterLab and run: make lab")
            continue
        if name in pins and version.split("+")[0] != pins[name]:
            found.append(f"{name} is {version}; the course was built with {pins[name]}. Run: make clean, then make lab")
    if importlib.util.find_spec("pydoc_data") is None:
        found.append(
            "This Python has no pydoc_data, the text that the course's model reads. Install a full Python "
            "(python.org, pyenv, conda; on Debian and Ubuntu: apt install libpython3-stdlib)."
        )
    if importlib.util.find_spec("torch") is not None:
        from helpers import int8

        try:
            int8.choose_engine()
        except RuntimeError as error:
            found.append(str(error))
    return found


def report() -> None:
    """Print what runs here, then every problem with its cure."""
    import torch

    from helpers import int8

    found = problems()
    print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(f"torch {torch.__version__}, threads: {torch.get_num_threads()}, int8 engines: {', '.join(int8.engines())}")
    for problem in found:
        print(f"PROBLEM: {problem}")
    if not found:
        print("Everything is in place.")


def processor() -> str:
    """The processor's name where the system tells it."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
