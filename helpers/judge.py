"""The judge of the budget challenge in a process of its own, which is started once and then waits for files.

To start Python and PyTorch, and to let the float model read the exam, takes far longer than to judge a file. So the
process stays: it is `python -m helpers.judge`, holds the course's code and nothing of whoever asks, reads each file as
numbers only, and ends when the process that started it ends. Forks of that process may ask it, too. Unit 06 uses it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

import torch

from helpers import challenge, int8
from helpers.challenge import COUNT, SEED

ROOT = Path(__file__).resolve().parent.parent
_running: dict[str, object] = {}  # of this process: "process", "address", "key"


def judged(file: Path, seed: int = SEED, count: int = COUNT) -> dict[str, object]:
    """What ``python -m helpers.challenge FILE`` prints, said by the waiting process.

    Parameters
    ----------
    file : Path
    seed, count : int
        Which held-out pairs, and how many.

    Returns
    -------
    dict
        ``Result.to_dict()``, or ``{"refused": sentence}``.

    Raises
    ------
    RuntimeError
        If the process ends twice without an answer.
    """
    for _ in range(2):  # it may have been ended since the last question
        try:
            with _connected() as line:
                line.send_bytes(json.dumps({"file": str(Path(file).resolve()), "seed": seed, "count": count}).encode())
                return json.loads(line.recv_bytes())
        except (OSError, EOFError):
            _forget()
    raise RuntimeError("the judge in a process of its own has ended without an answer.")


def start() -> None:
    """Start the process, and let it prepare the usual exam, so that the first question is answered soon."""
    _connected().close()


def _forget() -> None:
    process = _running.get("process")
    _running.clear()
    if process is not None:
        process.stdin.close()
        process.stdout.close()
        process.poll()


def _connected() -> Connection:
    """A line to the process; it is started if there is none, also where this process is a fork of another one."""
    if not _running:
        key = os.urandom(16)
        process = subprocess.Popen(
            [sys.executable, "-m", "helpers.judge"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COURSE_JUDGE_KEY": key.hex()},
            stdin=subprocess.PIPE,  # never written to: its end tells the judge that nobody is left to ask
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        address = json.loads(process.stdout.readline() or b"null")
        if address is None:
            raise EOFError
        _running.update(process=process, key=key, address=tuple(address) if isinstance(address, list) else address)
    return Client(_running["address"], authkey=_running["key"])


def main() -> None:
    int8.choose_engine()
    torch.set_num_threads(1)
    key = bytes.fromhex(os.environ.pop("COURSE_JUDGE_KEY"))
    with tempfile.TemporaryDirectory() as folder, Listener(_address(folder), authkey=key, backlog=16) as listener:
        print(json.dumps(listener.address), flush=True)
        threading.Thread(target=_end_with_the_last_asker, args=(folder,), daemon=True).start()
        challenge.submit_entry(challenge.load_date_reader())  # draws the usual exam, which is kept
        while True:
            _answer(listener)


def _address(folder: str) -> str | None:
    """A socket in a folder that only this user can enter; None: what the system offers in its place."""
    return str(Path(folder) / "judge") if hasattr(os, "fork") else None


def _end_with_the_last_asker(folder: str) -> None:
    sys.stdin.buffer.read()
    (Path(folder) / "judge").unlink(missing_ok=True)
    Path(folder).rmdir()
    os._exit(0)


def _answer(listener: Listener) -> None:
    try:
        with listener.accept() as line:
            asked = json.loads(line.recv_bytes())
            report = challenge.report(Path(asked["file"]), asked["seed"], asked["count"])
            line.send_bytes(json.dumps(report, allow_nan=False).encode())
    except (OSError, EOFError, AuthenticationError):
        pass  # whoever asked is gone


if __name__ == "__main__":
    main()
