"""How long does one program take compared with another: both take turns, so that a busy computer slows both."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median


def ratio(first: Callable[[], object], second: Callable[[], object], repeats: int = 9, calls: int = 1) -> float:
    """Median of seconds(second) / seconds(first) over `repeats` turns of `calls` calls each, after two to warm up."""
    ratios = []
    for _ in range(repeats + 2):
        seconds = []
        for candidate in (first, second):
            start = time.perf_counter()
            for _ in range(calls):
                candidate()
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[1] / seconds[0])
    return median(ratios[2:])
