"""Which operations take a program's time: PyTorch's profiler, without the lines that it writes to stderr from C++."""

from __future__ import annotations

from collections.abc import Callable

import torch

from helpers.int8 import silent_stderr


def operation_times(program: Callable[[], object], calls: int = 1) -> dict[str, float]:
    """Microseconds of CPU time that each operation takes itself, without what it calls, by the operation's name.

    They are the sum over `calls` calls, not the time of one.
    One call to warm up is not counted. Profiling slows every operation by a little: trust shares, not seconds.
    """
    with torch.no_grad(), silent_stderr():
        program()
        with torch.autograd.profiler.profile(use_kineto=False) as recording:
            for _ in range(calls):
                program()
        return {event.key: event.self_cpu_time_total for event in recording.key_averages()}
