"""Which machine and versions a result belongs to."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def description() -> dict[str, object]:
    """Processor, instruction set, threads and versions: what a figure needs beside it."""
    return {
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "int8_engine": torch.backends.quantized.engine,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor() -> str:
    """The processor's name where the system tells it."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
