"""Which operations take a program's time: PyTorch's profiler, without the lines that it writes to stderr from C++."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

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


@torch.no_grad()
def linear_shares(model: nn.Module, ids: Tensor, calls: int = 15) -> list[float]:
    """By the clock, not by the profiler: the share of each call's seconds that passes inside `nn.Linear` modules."""
    began, inside = [0.0], [0.0]

    def start(*_: object) -> None:
        began[0] = time.perf_counter()

    def stop(*_: object) -> None:
        inside[0] += time.perf_counter() - began[0]

    linears = [part for part in model.modules() if isinstance(part, nn.Linear)]
    handles = [
        hook for part in linears for hook in (part.register_forward_pre_hook(start), part.register_forward_hook(stop))
    ]
    shares = []
    try:
        for _ in range(calls + 1):
            inside[0], begin = 0.0, time.perf_counter()
            model(ids)
            shares.append(inside[0] / (time.perf_counter() - begin))
    finally:
        for handle in handles:
            handle.remove()
    return shares[1:]  # without the call to warm up
