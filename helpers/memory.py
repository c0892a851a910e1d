"""Peak memory of a program, measured in a process of its own (the peak of this one never falls again)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKER = "peak of the child, in bytes:"
# Linux hands the peak of the parent on to ru_maxrss of a child; VmHWM, in kilobytes, is the child's own.
REPORT = f"""
import pathlib as _pathlib, sys as _sys
_status = _pathlib.Path("/proc/self/status")
if _status.is_file():
    print("\\n{MARKER}", 1024 * int(_status.read_text().split("VmHWM:")[1].split()[0]))
else:
    import resource as _resource
    _peak = _resource.getrusage(_resource.RUSAGE_SELF).ru_maxrss
    print("\\n{MARKER}", _peak if _sys.platform == "darwin" else 1024 * _peak)
"""


def peak_bytes(program: str) -> int:
    """Largest resident memory, in bytes, that Python needs to run `program` (which can import the course's helpers).

    Raises
    ------
    RuntimeError
        If the program fails (the message holds the last line of its error), or ends itself before it can report.
    """
    done = subprocess.run([sys.executable, "-c", f"{program}\n{REPORT}"], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"the program failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    _, found, rest = done.stdout.rpartition(MARKER)
    if not found:
        raise RuntimeError("the program ended itself, so its peak is not known: leave out sys.exit, exit and os._exit.")
    return int(rest.split()[0])


def peaks(program: str, repeats: int = 3) -> list[int]:
    """`peak_bytes` of several runs: allocators do not behave alike each time, so report the range, not one run."""
    return [peak_bytes(program) for _ in range(repeats)]
