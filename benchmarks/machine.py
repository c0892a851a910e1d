"""Which machine and versions a result belongs to."""

from __future__ import annotations

import os
import platform

import torch

from helpers.environment import processor


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
