"""Open JupyterLab on unit 00, quiet for learners; prints the address for machines without a browser."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
FIRST = "00_start_here/00_start_here.ipynb"


def port_problem(port: int) -> str | None:
    """Why a server cannot listen on this port, in a clause, or None."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            return "ports below 1024 belong to the system"
        except OSError:
            return "another program, perhaps an earlier JupyterLab, has it"
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", default="8888")
    port = parser.parse_args().port
    if not port.isdigit() or not 1 <= int(port) <= 65535:
        sys.exit(f"PORT={port} is not a port number: choose one from 1024 to 65535, as in make lab PORT=8899")
    if problem := port_problem(int(port)):
        sys.exit(f"Port {port} cannot be used: {problem}. Choose another one: make lab PORT={free_port()}")
    programs = Path(sys.executable).parent
    os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    # The committed settings come first; the learner's own settings still count for what these do not name.
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(
        [str(ROOT / "lab"), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    )
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while they wait slow a busy computer down
    os.chdir(ROOT)
    print(f"JupyterLab starts on port {port}. Stop it with Ctrl-C. If no browser opens, copy the address with the "
          "token that appears below into one.", flush=True)  # fmt: skip
    arguments = [
        "jupyter-lab",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={NOTEBOOKS}",
        f"--LabApp.default_url=/lab/tree/{FIRST}",
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--allow-root")  # containers
    os.execv(programs / "jupyter-lab", arguments)


if __name__ == "__main__":
    main()
