"""How long does one program take compared with another? Programs take turns, so that a busy computer slows all alike.

A turn goes there and back: every program runs once in some order, and once in the same order backwards. Its ratio is
the geometric mean of both ways, in which an advantage of being second cancels. `benchmarks/` and the units measure with
this one harness; exercise 5.6 builds its core. The clock is an argument, so that tests can simulate one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

LEVEL = 0.95


@dataclass(frozen=True)
class Timing:
    """What was measured of one program: seconds of single calls (median and 95th percentile), and the ratio to the
    first program with its interval, which holds the true median with the chance `level`, as far as turns are
    independent: 0.9375 after five turns, at least 0.95 after more."""

    p50: float
    p95: float
    ratio: float
    low: float
    high: float
    level: float = LEVEL

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ({self.low:.2f} to {self.high:.2f})"


class TooNoisy(RuntimeError):
    """The times scatter so much that a ratio should not be reported; `reportable` holds the other programs' timings."""

    def __init__(self, sentence: str, reportable: Mapping[str, Timing] | None = None) -> None:
        super().__init__(sentence)
        self.reportable = dict(reportable or {})


def compare(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int = 21,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    *,
    calls: int = 1,
    threads: int | None = None,
    noise: float = 0.15,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time several programs against the first of them.

    In each turn every program runs (`calls` times in a row) in a random order, and then in the same order backwards.
    Each way gives a ratio for each program; the turn's is their geometric mean. Of two programs each is once the
    second: what that costs or saves, by a factor, cancels. (The median of single ways would not do: they form two
    clusters, and it is a member of one of them.) Of more than two programs, what a place costs beyond that is made
    noise by the random orders, and widens the interval.

    The interval of a ratio lies between two of the sorted ratios, so chosen that it holds the true median with a chance
    of at least 95 %, whatever the distribution, as far as turns are independent: how many turns lie below the median is
    how often a coin shows heads. Five turns reach only 93.75 %, from the smallest ratio to the largest; the chance is
    in the answer, as `level`.

    Parameters
    ----------
    candidates : mapping of str to callable
        Programs without arguments; the first is what the others are compared with.
    repeats, warmup : int
        Turns, there and back, that count (at least 5; 6 for a level of 95 %), and turns before them that do not.
    clock : callable
        Returns seconds.
    calls : int
        Calls that are timed together, for programs that are short beside the clock's resolution.
    threads : int or None
        PyTorch's threads during the measurement; what was set before is set again afterwards. None: leave them alone.
    noise : float
        Largest half width of an interval, as a part of its ratio, that is reported.
    seed : int
        Of the order of the programs.

    Returns
    -------
    dict of str to Timing
        Median and 95th percentile of the seconds of single calls, the median of the turns' ratios, and its interval.

    Raises
    ------
    TooNoisy
        If an interval is wider than `noise` allows. Its attribute `reportable` holds the programs whose is not.
    ValueError
        If there are fewer than two programs, too few turns for an interval, or less than one call a turn.
    """
    found = _measure(candidates, repeats, warmup, clock, calls, threads, noise, seed)
    for result in found.values():
        if isinstance(result, TooNoisy):
            good = {name: timing for name, timing in found.items() if isinstance(timing, Timing)}
            raise TooNoisy(str(result), good)
    return found


def compare_each(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int = 21,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    *,
    tries: int = 2,
    calls: int = 1,
    threads: int | None = None,
    noise: float = 0.15,
    seed: int = 0,
) -> dict[str, Timing | TooNoisy]:
    """`compare` with the same bound, which refuses only the ratios that are too noisy, and not the others.

    What was refused is measured again beside the first program, `tries` measurements at most. Whether a ratio is
    reported depends on the width of its interval, never on its value.

    Returns
    -------
    dict of str to Timing or TooNoisy
        In the order of `candidates`; for a program that was refused each time, the last refusal.
    """
    first = next(iter(candidates), None)
    rest, found = dict(candidates), {}
    for _ in range(max(1, tries)):
        again = _measure(rest, repeats, warmup, clock, calls, threads, noise, seed)
        found |= {name: result for name, result in again.items() if not isinstance(found.get(name), Timing)}
        rest = {name: run for name, run in candidates.items() if name == first or isinstance(found[name], TooNoisy)}
        if len(rest) == 1:
            break
    return found


def _measure(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int,
    clock: Callable[[], float],
    calls: int,
    threads: int | None,
    noise: float,
    seed: int,
) -> dict[str, Timing | TooNoisy]:
    """What is known of each program: its times, or why they are not reported."""
    if len(candidates) < 2:
        raise ValueError("there is nothing to compare: give at least two programs.")
    if repeats < 5:
        raise ValueError(f"{repeats} turns are too few for an interval: take at least 5, better 9.")
    generator, orders = np.random.default_rng(seed), []
    for _ in range(warmup + repeats):
        order = generator.permutation(len(candidates)).tolist()
        orders += [order, order[::-1]]
    with pinned_threads(threads):
        seconds = _ways(list(candidates.values()), orders, 2 * warmup, clock, calls)  # (ways, programs, calls)
    ratios = _turn_ratios(seconds)  # (turns, programs)
    found: dict[str, Timing | TooNoisy] = {}
    for i, (name, single) in enumerate(zip(candidates, seconds.swapaxes(0, 1), strict=True)):
        p50, p95 = np.quantile(single, [0.5, 0.95])
        low, high = median_interval(ratios[:, i].tolist())
        ratio = float(np.median(ratios[:, i]))
        half = (high - low) / 2 / ratio
        if half > noise:
            found[name] = TooNoisy(
                f"the ratio of {name} to {next(iter(candidates))} is known only to ± {half:.0%}, and the bound is "
                f"± {noise:.0%}: close other programs, or raise repeats or calls, and measure again."
            )
        else:
            found[name] = Timing(float(p50), float(p95), ratio, low, high, median_level(repeats))
    return found


def median_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """The narrowest symmetric pair of sorted values that holds the true median with a chance of at least `level`.

    If no pair does, the smallest and the largest: for 95 %, five values or fewer. `median_level` says the chance.
    """
    ordered, place = sorted(values), _place(len(values), level)
    return ordered[place], ordered[len(values) - 1 - place]


def median_level(count: int, level: float = LEVEL) -> float:
    """The chance with which `median_interval` of `count` independent values holds the true median."""
    return 1 - 2 * sum(math.comb(count, k) for k in range(_place(count, level) + 1)) / 2**count


def _place(count: int, level: float) -> int:
    """How many of the sorted values are left out at each end."""
    # `outside`: how many of the 2 ** count outcomes have at most `place` values below the median
    place, outside = -1, 0
    while place + 1 < count / 2 and 2 * (outside + math.comb(count, place + 1)) <= (1 - level) * 2**count:
        place += 1
        outside += math.comb(count, place)
    return max(place, 0)


def ratio(first: Callable[[], object], second: Callable[[], object], repeats: int = 9, calls: int = 1) -> float:
    """Median of seconds(second) / seconds(first), after one turn to warm up.

    Each program runs at least `repeats` times, `calls` calls in a row; first, second, second, first make a turn, whose
    ratio is the geometric mean of its two.
    """
    if repeats < 1:
        raise ValueError(f"{repeats} turns give no ratio: take at least 1.")
    orders = [[0, 1], [1, 0]] * (1 + (repeats + 1) // 2)
    seconds = _ways([first, second], orders, 2, time.perf_counter, calls)
    return float(np.median(_turn_ratios(seconds)[:, 1]))


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


def _turn_ratios(seconds: np.ndarray) -> np.ndarray:
    """Ratios to the first program, (turns, programs), from seconds (ways, programs, calls), two ways to a turn."""
    means = seconds.mean(axis=2)
    there, back = (means / means[:, :1]).reshape(-1, 2, means.shape[1]).swapaxes(0, 1)
    return np.sqrt(there * back)


def _ways(
    programs: list[Callable[[], object]],
    orders: list[list[int]],
    warmup: int,
    clock: Callable[[], float],
    calls: int,
) -> np.ndarray:
    """Seconds of every call, float64 (ways, programs, calls), without the first `warmup` ways."""
    if calls < 1 or warmup < 0:
        raise ValueError(f"calls should be at least 1, and warmup at least 0; they are {calls} and {warmup}.")
    marks = np.empty((len(orders), len(programs), calls + 1))
    for way, order in enumerate(orders):
        for i in order:
            marks[way, i, 0] = clock()
            for call in range(calls):
                programs[i]()
                marks[way, i, call + 1] = clock()
    if not (marks[..., -1] > marks[..., 0]).all():
        raise TooNoisy("a program ended before the clock moved: raise calls, so that many calls are timed together.")
    return np.diff(marks, axis=2)[warmup:]
