"""Affine quantization against PyTorch's observers and kernels, and against golden values."""

import math

import pytest
import torch
from torch.ao.quantization import MinMaxObserver

from helpers import affine, golden

TENSORS = {
    "mixed": torch.randn(50, generator=torch.Generator().manual_seed(1)) * 3,
    "positive": torch.rand(50, generator=torch.Generator().manual_seed(2)) + 2,
    "negative": -torch.rand(50, generator=torch.Generator().manual_seed(3)) - 2,
    "constant": torch.full((9,), 0.7),
    "zero": torch.zeros(9),
    "outlier": torch.cat([torch.randn(50, generator=torch.Generator().manual_seed(4)), torch.tensor([300.0])]),
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("dtype", [torch.quint8, torch.qint8])
def test_qparams_and_codes_are_those_of_torch(name, dtype):
    x = TENSORS[name]
    qmin, qmax = (0, 255) if dtype == torch.quint8 else (-128, 127)
    observer = MinMaxObserver(dtype=dtype)
    observer(x)
    scale, zero_point = affine.qparams(x.min().item(), x.max().item(), qmin, qmax)
    right_scale, right_zero = (v.item() for v in observer.calculate_qparams())
    assert math.isclose(scale, right_scale, rel_tol=1e-6) and zero_point == right_zero
    stored = torch.quantize_per_tensor(x, scale, zero_point, dtype)
    codes = affine.quantize(x, scale, zero_point, qmin, qmax)
    assert torch.equal(codes, stored.int_repr().int()) and codes.dtype == torch.int32
    torch.testing.assert_close(affine.dequantize(codes, scale, zero_point), stored.dequantize())
    torch.testing.assert_close(
        affine.fake_quantize(x, scale, zero_point, qmin, qmax),
        torch.fake_quantize_per_tensor_affine(x, scale, zero_point, qmin, qmax),
    )


@pytest.mark.parametrize("name", ["quantize_linear", "exact"])
def test_codes_are_the_golden_ones(name):
    for case in golden.load(name):
        codes = affine.quantize(torch.tensor(case["x"]), case["scale"], case["zero_point"], case["qmin"], case["qmax"])
        assert codes.tolist() == case["codes"], case["name"]


@pytest.mark.parametrize("ends", [(1.0, -1.0), (math.nan, 1.0), (-math.inf, 0.0)])
def test_an_impossible_range_is_named(ends):
    with pytest.raises(ValueError, match="cannot be quantized"):
        affine.qparams(*ends)
