"""The golden files against PyTorch's kernels, and how the files say they were made."""

import json

import numpy as np
import pytest
import torch
from torch.ao.quantization import MinMaxObserver

from helpers.golden import FOLDER, load, make_golden

FILES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}
NAMES = ["dynamic_quantize_linear", "exact", "quantize_linear", "quantize_linear_per_axis", "torchao_affine"]
EIGHT_BITS = {(0, 255): torch.quint8, (-128, 127): torch.qint8}


def cases(*files):
    return [pytest.param(case, id=f"{name}-{case['name']}") for name in files for case in load(name)]


def kernel_codes(x, scale, zero_point, dtype):
    return torch.quantize_per_tensor(torch.tensor(x), scale, zero_point, dtype).int_repr().tolist()


@pytest.mark.parametrize("case", cases("dynamic_quantize_linear"))
def test_dynamic_codes_and_qparams_equal_torch(case):
    observer = MinMaxObserver(dtype=torch.quint8, eps=1e-20)  # the default eps is above the scale of tiny values
    observer(torch.tensor(case["x"]))
    scale, zero_point = observer.calculate_qparams()
    assert zero_point.item() == case["zero_point"]
    if case["name"] == "all_zeros":  # every library has a convention of its own; ONNX Runtime's is 1
        assert case["scale"] == 1
    else:
        assert scale.item() == case["scale"]
    assert kernel_codes(case["x"], case["scale"], case["zero_point"], torch.quint8) == case["codes"]


@pytest.mark.parametrize("case", cases("quantize_linear", "exact"))
def test_codes_and_values_equal_torch(case):
    x, scale, zero_point, qmin, qmax = (case[k] for k in ("x", "scale", "zero_point", "qmin", "qmax"))
    fake = torch.fake_quantize_per_tensor_affine(torch.tensor(x), scale, zero_point, qmin, qmax)
    assert fake.tolist() == case["dequantized"]
    assert ((torch.tensor(x) / scale).round() + zero_point).clamp(qmin, qmax).tolist() == case["codes"]
    dtype = EIGHT_BITS.get((qmin, qmax))
    if dtype and "odd_zero_point_ties" not in case["name"]:
        quantized = torch.quantize_per_tensor(torch.tensor(x), scale, zero_point, dtype)
        assert quantized.int_repr().tolist() == case["codes"]
        assert quantized.dequantize().tolist() == case["dequantized"]


@pytest.mark.parametrize("case", [p for p in cases("quantize_linear", "exact") if "odd_zero_point_ties" in p.id])
def test_odd_zero_points_tell_the_rule_from_rounding_the_sum(case):
    quotients = torch.tensor(case["x"]) / case["scale"]
    of_the_sum = (quotients + case["zero_point"]).round().clamp(case["qmin"], case["qmax"])
    assert (of_the_sum - torch.tensor(case["codes"])).abs().max() == 1
    if dtype := EIGHT_BITS.get((case["qmin"], case["qmax"])):
        kernel = kernel_codes(case["x"], case["scale"], case["zero_point"], dtype)
        assert kernel in (of_the_sum.tolist(), case["codes"])  # x86 rounds the sum; other computers' kernels do not


@pytest.mark.parametrize("case", cases("quantize_linear_per_axis"))
def test_per_axis_codes_equal_torch(case):
    x, scales = torch.tensor(case["x"]).reshape(case["shape"]), torch.tensor(case["scales"])
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    kernel = torch.quantize_per_channel(x, scales, zeros, case["axis"], torch.qint8)
    assert kernel.int_repr().flatten().tolist() == case["codes"]
    fake = torch.fake_quantize_per_channel_affine(x, scales, zeros, case["axis"], -127, 127)
    assert torch.equal(fake, kernel.dequantize())
    channels = x.movedim(case["axis"], 0).flatten(1)
    largest = channels.abs().amax(dim=1)
    assert torch.equal(scales, torch.where(largest > 0, largest / 127, 1.0))
    assert (largest == 0).any()


@pytest.mark.parametrize("case", cases("torchao_affine"))
def test_torchao_equals_torch_group_by_group(case):
    parts = [np.reshape(case[key], (-1, case["group_size"])).tolist() for key in ("x", "codes", "dequantized")]
    dtype = torch.quint8 if case["qmin"] == 0 else torch.qint8  # wider than case's range; nothing is outside of it
    for x, codes, values, scale, zero_point in zip(*parts, case["scales"], case["zero_points"], strict=True):
        args = (scale, zero_point, case["qmin"], case["qmax"])
        assert torch.fake_quantize_per_tensor_affine(torch.tensor(x), *args).tolist() == values
        assert kernel_codes(x, scale, zero_point, dtype) == codes


def test_what_this_environment_can_make_again_is_the_same():
    assert list(make_golden.exact()) == load("exact")
    assert list(make_golden.torchao_affine()) == load("torchao_affine")


def test_a_value_that_float32_may_round_either_way_is_disputed():
    x, scale = 0.273939937353134155, 0.00214854860678315163  # exactly 127.49999...; x * (1 / scale) is 127.5
    assert make_golden.is_disputed(x, scale, 0, -256, 255)
    assert not make_golden.is_disputed(x, scale, 0, 0, 127)  # both sides saturate
    assert make_golden.is_disputed(1.0, make_golden.Fraction(2, 255), 0, 0, 255)  # a half: the zero point of [-1, 1]
    assert not make_golden.is_disputed(0.75, 0.5, 0, 0, 255)  # a half, and every way to divide is exact


@pytest.mark.parametrize("name", NAMES)
def test_files_say_how_they_were_made_and_hold_exact_float32(name):
    file, size = FILES[name], (FOLDER / f"{name}.json").stat().st_size
    assert file["made_by"].startswith("python -m helpers.golden.make_golden")
    assert {"python", "numpy"} <= set(file["versions"])
    assert size < 40_000
    names = [case["name"] for case in file["cases"]]
    assert len(names) == len(set(names))
    for case in file["cases"]:
        for key in ("x", "dequantized", "scales"):
            assert np.float32(case.get(key, [])).tolist() == case.get(key, [])
        assert float(np.float32(case.get("scale", 1.0))) == case.get("scale", 1.0)
        assert len(case["x"]) == len(case["codes"]) == len(case.get("dequantized", case["x"]))
        assert len(case["x"]) == np.prod(case.get("shape", len(case["x"])))


def test_an_unknown_name_lists_the_files():
    assert sorted(FILES) == NAMES
    with pytest.raises(ValueError, match=r"no golden file 'nonsense'; there are: dynamic_quantize_linear, exact, "):
        load("nonsense")
