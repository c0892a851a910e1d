"""How sure is a difference between two models that answered the same questions? Units 05 and the benchmarks use it.

References
----------
Agresti and Min 2005, Statistics in Medicine 24(5): paired shares, with two pairs added.
Efron 1979, The Annals of Statistics 7: the bootstrap. Efron 1981, The Canadian Journal of Statistics 9: its percentile
interval. Efron and Tibshirani 1993, "An Introduction to the Bootstrap": resampling of clusters.
McNemar 1947, Psychometrika 12(2): paired answers; here the exact binomial test, not its chi-square approximation.
Wilson 1927, JASA 22(158): the interval of a share.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Verdict = Literal["within the margin", "worse than the margin", "undecided"]


class Interval(NamedTuple):
    """An estimate between its lower and upper bound."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


def paired_bootstrap(
    reference: Tensor,
    candidate: Tensor,
    lengths: Tensor | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of candidate − reference with its percentile interval, whole documents drawn with replacement.

    Parameters
    ----------
    reference, candidate : Tensor, (documents,)
        What each model needed for each document, such as bits: the sum of it, if `lengths` is given, else the mean.
    lengths : Tensor or None, (documents,)
        Bytes of each document. The estimate is then the difference of the sums over the sum of the lengths.
    resamples, seed : int
    level : float
        Share of experiments whose interval should hold the true difference, between 0 and 1.

    Raises
    ------
    ValueError
        If the shapes differ, there are fewer than two documents, a number is not finite, there is no resample, or the
        level is no share.
    """
    if not 0 < level < 1:
        raise ValueError(f"the level is a share between 0 and 1, such as 0.95: not {level}.")
    if resamples < 1:
        raise ValueError(f"an interval needs at least one resample: not {resamples}.")
    lengths = torch.ones(len(reference)) if lengths is None else lengths
    if not reference.shape == candidate.shape == lengths.shape or reference.dim() != 1:
        raise ValueError(
            f"one number a document is needed of each: not {tuple(reference.shape)}, {tuple(candidate.shape)} and "
            f"{tuple(lengths.shape)}."
        )
    if len(reference) < 2:
        raise ValueError("an interval needs at least two documents.")
    if not (reference.isfinite().all() and candidate.isfinite().all()):
        raise ValueError("a document has a number that is not finite (nan or inf): no interval could be trusted.")
    difference, lengths = candidate.double() - reference.double(), lengths.double()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(difference), (resamples, len(difference)), generator=generator)
    means = difference[drawn].sum(dim=1) / lengths[drawn].sum(dim=1)  # (resamples,)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = means.quantile(tails).tolist()
    return Interval((difference.sum() / lengths.sum()).item(), low, high)


def verdict(interval: Interval, margin: float) -> Verdict:
    """Is a loss (candidate − reference, lower is better) smaller than a margin that was stated before?"""
    if interval.high < margin:
        return "within the margin"
    return "worse than the margin" if interval.low > margin else "undecided"


def mcnemar(broken: int, repaired: int) -> float:
    """Exact two-sided p-value: would a fair coin split these flips so unevenly, or more?

    Parameters
    ----------
    broken, repaired : int
        Answers that were right and became wrong, and the other way round.

    Raises
    ------
    ValueError
        If a count is negative.
    """
    if broken < 0 or repaired < 0:
        raise ValueError(f"counts of answers are 0 or more: not {broken} and {repaired}.")
    n = broken + repaired
    tail = sum(math.comb(n, k) for k in range(min(broken, repaired) + 1))
    return min(1.0, 2 * tail / 2**n)  # whole numbers until the division: nothing can overflow


def paired_loss(broken: int, repaired: int, count: int, z: float = 1.959963984540054) -> Interval:
    """Share of answers lost, (broken − repaired) / count, with the interval of two pairs more and one change more.

    It has a width also where nothing has changed, unlike the bootstrap's.

    Raises
    ------
    ValueError
        If there is no pair, or the counts do not fit into `count`.
    """
    if count < 1 or broken < 0 or repaired < 0 or broken + repaired > count:
        raise ValueError(f"{broken} broken and {repaired} repaired answers do not fit into {count} pairs.")
    size = count + 2
    middle = (broken - repaired) / size
    half = z * math.sqrt(((broken + repaired + 1) / size - middle * middle) / size)
    return Interval((broken - repaired) / count, middle - half, middle + half)


def wilson(successes: int, count: int, z: float = 1.959963984540054) -> Interval:
    """A share with Wilson's interval, which stays between 0 and 1 and is useful at few or no successes."""
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"{successes} of {count} is not a share.")
    share, spread = successes / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return Interval(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))  # rounding
