"""Intervals against closed forms, exact enumeration and simulated experiments."""

import itertools
import math

import pytest
import torch

from helpers import intervals
from helpers.intervals import Interval


def test_the_interval_of_normal_differences_is_the_textbook_one():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(400, generator=generator, dtype=torch.float64) * 5
    difference = 0.3 + torch.randn(400, generator=generator, dtype=torch.float64)
    found = intervals.paired_bootstrap(reference, reference + difference, resamples=4000)
    half = 1.96 * difference.std().item() / 20
    assert found.estimate == pytest.approx(difference.mean().item())
    assert found.low == pytest.approx(found.estimate - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.estimate + half, abs=0.1 * half)


def test_coverage_with_documents_of_different_lengths():
    generator, held = torch.Generator().manual_seed(1), 0
    for seed in range(300):
        lengths = torch.randint(20, 200, (60,), generator=generator)
        shift = 0.1 + 0.2 * torch.randn(60, generator=generator)  # a document has its own difference
        reference = lengths * (2 + torch.randn(60, generator=generator).abs())
        candidate = reference + lengths * shift
        found = intervals.paired_bootstrap(reference, candidate, lengths, resamples=500, seed=seed)
        held += found.low <= 0.1 <= found.high
    assert 270 <= held <= 296


def test_the_estimate_weighs_every_byte_alike():
    reference, lengths = torch.tensor([10.0, 100.0]), torch.tensor([10, 90])
    found = intervals.paired_bootstrap(reference, reference + torch.tensor([10.0, 0.0]), lengths)
    assert found.estimate == pytest.approx(0.1) and found.low == 0.0 and found.high == pytest.approx(1.0)


def test_the_seed_decides_and_the_global_state_is_left_alone():
    torch.manual_seed(3)
    state, a, b = torch.get_rng_state(), torch.rand(20), torch.rand(20)
    torch.set_rng_state(state)
    first, second = (intervals.paired_bootstrap(a, b, seed=5) for _ in range(2))
    assert first == second and torch.equal(state, torch.get_rng_state())
    assert intervals.paired_bootstrap(a, b, seed=6) != first


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="one number a document"):
        intervals.paired_bootstrap(torch.ones(3), torch.ones(4))
    with pytest.raises(ValueError, match="one number a document"):
        intervals.paired_bootstrap(torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(ValueError, match="at least two"):
        intervals.paired_bootstrap(torch.ones(1), torch.ones(1))


def test_what_is_no_number_or_no_share_is_refused():
    a = torch.arange(5.0)
    for broken, message in [({"level": 95}, "between 0 and 1"), ({"resamples": 0}, "at least one resample")]:
        with pytest.raises(ValueError, match=message):
            intervals.paired_bootstrap(a, a + 1, **broken)
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not finite"):
            intervals.paired_bootstrap(a, torch.cat([a[:4], torch.tensor([value])]))
    with pytest.raises(ValueError, match="0 or more"):
        intervals.mcnemar(-1, 3)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (Interval(0.004, 0.002, 0.006), "within the margin"),
        (Interval(0.009, 0.002, 0.016), "undecided"),
        (Interval(0.02, 0.015, 0.025), "worse than the margin"),
        (Interval(-0.02, -0.03, -0.01), "within the margin"),
        (Interval(0.008, 0.006, 0.01), "undecided"),
    ],
)
def test_verdicts(interval, expected):
    assert intervals.verdict(interval, 0.01) == expected


def test_mcnemar_is_the_count_of_coin_tosses():
    for n in range(11):
        tosses = [sum(toss) for toss in itertools.product((0, 1), repeat=n)]
        for broken in range(n + 1):
            as_uneven = sum(abs(heads - n / 2) >= abs(broken - n / 2) for heads in tosses)
            assert intervals.mcnemar(broken, n - broken) == pytest.approx(as_uneven / 2**n)


def test_mcnemar_bears_large_and_empty_counts():
    assert intervals.mcnemar(0, 0) == intervals.mcnemar(7, 7) == 1.0
    z = 200 / math.sqrt(10_000)
    assert intervals.mcnemar(5100, 4900) == pytest.approx(math.erfc((z - 0.01) / math.sqrt(2)), rel=0.01)
    assert 0 <= intervals.mcnemar(3000, 0) < 1e-300


def test_paired_loss():
    found = intervals.paired_loss(0, 0, 50)
    assert found.estimate == 0 and found.high == -found.low == pytest.approx(1.96 / 52, abs=1e-5)
    low, high = intervals.paired_loss(2, 1, 400)[1:]  # by hand: 1 / 402, half width 0.0097
    assert (low, high) == pytest.approx((-0.0072, 0.0122), abs=1e-4)
    mirrored = intervals.paired_loss(1, 2, 400)
    assert mirrored == pytest.approx((-1 / 400, -high, -low))
    for bad in [(0, 0, 0), (-1, 0, 9), (6, 5, 10)]:
        with pytest.raises(ValueError, match="do not fit"):
            intervals.paired_loss(*bad)


def test_paired_loss_covers_and_agrees_with_the_bootstrap():
    generator, held = torch.Generator().manual_seed(4), 0
    for _ in range(2000):
        drawn = torch.rand(300, generator=generator)
        broken, repaired = int((drawn < 0.03).sum()), int((drawn > 0.99).sum())
        found = intervals.paired_loss(broken, repaired, 300)
        held += found.low <= 0.02 <= found.high
    assert 1860 <= held <= 1960
    wrong = torch.zeros(2000)
    again = wrong.clone()
    again[:60] = 1
    bootstrap, closed = intervals.paired_bootstrap(wrong, again), intervals.paired_loss(60, 0, 2000)
    assert closed == pytest.approx(bootstrap, abs=0.001)


def test_wilson():
    found = intervals.wilson(0, 10)
    assert found.low == 0.0 and found.high == pytest.approx(0.2775, abs=1e-4)
    for successes, count in [(3, 10), (50, 100), (9, 9)]:
        share, low, high = intervals.wilson(successes, count)
        for bound in (low, high):  # both bounds are where the score test is just significant
            if 0 < bound < 1:
                z = abs(share - bound) / math.sqrt(bound * (1 - bound) / count)
                assert z == pytest.approx(1.96, abs=1e-3)
    with pytest.raises(ValueError, match="not a share"):
        intervals.wilson(3, 2)
