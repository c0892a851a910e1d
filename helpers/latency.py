"""How long does one program take compared with another? Programs take turns, so that a busy computer slows all alike.

`benchmarks/` and the units measure with this one harness; exercise 5.6 builds its core. The clock is an argument, so
that tests can simulate one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

LEVEL = 0.95


class TooNoisy(RuntimeError):
    """The times scatter so much that no ratio should be reported."""


@dataclass(frozen=True)
class Timing:
    """What was measured of one program: seconds a call, and the ratio to the first program with its 95 % interval."""

    p50: float
    p95: float
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ({self.low:.2f} to {self.high:.2f})"


def compare(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int = 21,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
    *,
    calls: int = 1,
    threads: int | None = None,
    noise: float = 0.15,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time several programs against the first of them.

    In each turn every program runs once (`calls` times in a row); the next turn begins with the next program, so that
    none always runs behind the same other one. A turn gives one ratio for each program.

    Parameters
    ----------
    candidates : mapping of str to callable
        Programs without arguments; the first is what the others are compared with.
    repeats, warmup : int
        Turns that count (at least 5), and turns before them that do not.
    clock : callable
        Returns seconds.
    calls : int
        Calls that are timed together, for programs that are short beside the clock's resolution.
    threads : int or None
        PyTorch's threads during the measurement; what was set before is set again afterwards. None: leave them alone.
    noise : float
        Largest half width of an interval, as a part of its ratio, that is reported.
    resamples, seed : int
        Of the bootstrap over turns.

    Returns
    -------
    dict of str to Timing
        Median and 95th percentile of the seconds a call, the median of the ratios, and its bootstrap interval.

    Raises
    ------
    TooNoisy
        If an interval is wider than `noise` allows.
    ValueError
        If there are fewer than two programs, or fewer than five turns.
    """
    if len(candidates) < 2:
        raise ValueError("there is nothing to compare: give at least two programs.")
    if repeats < 5:
        raise ValueError(f"{repeats} turns are too few for an interval: take at least 5.")
    with pinned_threads(threads):
        seconds = _turns(list(candidates.values()), repeats, warmup, clock, calls, rotate=True)  # (turns, programs)
    ratios = seconds / seconds[:, :1]
    rows = np.random.default_rng(seed).integers(repeats, size=(resamples, repeats))
    medians = np.median(ratios[rows], axis=1)  # (resamples, programs)
    low, high = np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    found = {}
    for i, name in enumerate(candidates):
        p50, p95 = np.quantile(seconds[:, i], [0.5, 0.95])
        ratio = float(np.median(ratios[:, i]))
        half = float(high[i] - low[i]) / 2 / ratio
        if half > noise:
            raise TooNoisy(
                f"the ratio of {name} to {next(iter(candidates))} is known only to ± {half:.0%}, and the bound is "
                f"± {noise:.0%}: close other programs, or raise repeats or calls, and measure again."
            )
        found[name] = Timing(float(p50), float(p95), ratio, float(low[i]), float(high[i]))
    return found


def ratio(first: Callable[[], object], second: Callable[[], object], repeats: int = 9, calls: int = 1) -> float:
    """Median of seconds(second) / seconds(first) over `repeats` turns of `calls` calls each, after two to warm up."""
    seconds = _turns([first, second], repeats, 2, time.perf_counter, calls, rotate=False)
    return median((seconds[:, 1] / seconds[:, 0]).tolist())


@contextmanager
def pinned_threads(threads: int | None) -> Iterator[None]:
    """Inside, PyTorch uses this many threads; afterwards as many as before, whatever happened."""
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)


def _turns(
    programs: list[Callable[[], object]],
    repeats: int,
    warmup: int,
    clock: Callable[[], float],
    calls: int,
    rotate: bool,
) -> np.ndarray:
    """Seconds a call, float64 (repeats, programs): in each turn every program once."""
    seconds = np.empty((warmup + repeats, len(programs)))
    for turn in range(warmup + repeats):
        for place in range(len(programs)):
            i = (turn + place) % len(programs) if rotate else place
            start = clock()
            for _ in range(calls):
                programs[i]()
            seconds[turn, i] = (clock() - start) / calls
    if not (seconds > 0).all():
        raise TooNoisy("a program ended before the clock moved: raise calls, so that many calls are timed together.")
    return seconds[warmup:]
