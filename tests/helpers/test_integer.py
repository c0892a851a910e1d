"""helpers.integer against exact rational arithmetic."""

from fractions import Fraction

import pytest
import torch

from helpers import integer


@pytest.mark.parametrize("multiplier", [0.3, 0.5, 0.25, 1 - 2.0**-40, 1.0, 3.7, 255.9, 2.0**-30, 1e-5, 0.4999999999999])
def test_fixed_point_is_the_multiplier_with_31_bits(multiplier):
    (m0,), (n,) = (part.tolist() for part in integer.fixed_point(torch.tensor([multiplier], dtype=torch.float64)))
    assert 2**30 <= m0 < 2**31
    assert abs(Fraction(m0) / Fraction(2) ** (31 + n) / Fraction(multiplier) - 1) <= Fraction(1, 2**31)


@pytest.mark.parametrize("multiplier", [0.0, -0.1, 256.0, float("nan"), float("inf"), 2.0**-31])
def test_a_multiplier_out_of_range_is_refused(multiplier):
    with pytest.raises(ValueError, match="out"):
        integer.fixed_point(torch.tensor([0.1, multiplier], dtype=torch.float64))


def test_requantize_rounds_to_the_nearest_code_halves_up():
    generator = torch.Generator().manual_seed(1)
    for bits in (8, 16, 24, 31):
        sums = torch.randint(-(2**bits), 2**bits, (50, 4), generator=generator).clamp(-(2**31), 2**31 - 1).int()
        multipliers = torch.rand(4, generator=generator, dtype=torch.float64) * 2.0 ** (7 - bits)
        m0, n = integer.fixed_point(multipliers)
        codes = integer.requantize(sums, m0, n, 77)
        assert codes.dtype == torch.uint8
        for row, answer in zip(sums.tolist(), codes.tolist(), strict=True):
            for column, code in enumerate(answer):
                exact = Fraction(row[column]) * int(m0[column]) / Fraction(2) ** (31 + int(n[column])) + 77
                nearest = (exact + Fraction(1, 2)).__floor__()
                assert code == min(max(nearest, 0), 255)


def test_requantize_survives_the_largest_sums():
    sums = torch.tensor([[2**31 - 1, -(2**31)]], dtype=torch.int32)
    for multiplier in (2.0**-30, 0.999999999999, 255.999999999):
        m0, n = integer.fixed_point(torch.tensor([multiplier, multiplier], dtype=torch.float64))
        exact = [min(max(round(s * multiplier), 0), 255) for s in sums[0].tolist()]
        assert integer.requantize(sums, m0, n, 0)[0].tolist() == exact


def test_a_lower_end_is_a_relu():
    sums = torch.tensor([[-900, -1, 0, 1, 900]], dtype=torch.int32)
    m0, n = integer.fixed_point(torch.tensor([0.9], dtype=torch.float64))
    assert integer.requantize(sums, m0, n, 100, qmin=100)[0].tolist() == [100, 100, 100, 101, 255]


def test_the_watch_sees_floats_and_only_floats():
    codes = torch.tensor([[3, 4]], dtype=torch.uint8)
    with integer.floats_made() as found:
        (codes.int() @ codes.int().T).clamp(min=0) >> 1
    assert found == []
    with integer.floats_made() as found:
        codes / 2
        codes.half()
        torch.tensor(0.5)
    assert found == ["div (float32)", "half (float16)", "tensor (float32)"]
    codes.float()
    assert len(found) == 3, "it watches inside of the block only"
