"""Round-to-nearest against PyTorch's fake quantization, group by group."""

import pytest
import torch
from torch import nn

from helpers.rounding import round_to_nearest, with_rounded_linears

CASES = {
    "normal": torch.randn(6, 64, generator=torch.Generator().manual_seed(1)),
    "outlier": torch.randn(6, 64, generator=torch.Generator().manual_seed(2)).index_fill(1, torch.tensor([5]), 30.0),
    "positive": torch.rand(4, 32, generator=torch.Generator().manual_seed(3)) + 0.5,
    "negative": -torch.rand(4, 32, generator=torch.Generator().manual_seed(4)) - 0.5,
    "constant": torch.full((4, 32), 0.3),
}


def oracle(weight, bits, group_size, symmetric):
    """torch.fake_quantize on each group alone, with qparams from its range."""
    groups = weight.reshape(1, -1) if group_size is None else weight.reshape(-1, group_size)
    rows = []
    for row in groups:
        if symmetric:
            qmax = 2 ** (bits - 1) - 1
            rows.append(torch.fake_quantize_per_tensor_affine(row, float(row.abs().max() / qmax), 0, -qmax, qmax))
        else:
            qmax = 2**bits - 1
            low, high = min(float(row.min()), 0.0), max(float(row.max()), 0.0)
            scale = (high - low) / qmax
            zero_point = int(torch.tensor(-low / scale).round().clamp(0, qmax))
            rows.append(torch.fake_quantize_per_tensor_affine(row, scale, zero_point, 0, qmax))
    return torch.stack(rows).reshape(weight.shape)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, "row", 16])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_it_equals_torch_fake_quantize(name, symmetric, group_size, bits):
    weight = CASES[name]
    size = weight.shape[1] if group_size == "row" else group_size
    ours, theirs = round_to_nearest(weight, bits, size, symmetric), oracle(weight, bits, size, symmetric)
    # A value within float noise of a rounding boundary may fall on either side: one step, and rarely.
    step = (weight.max() - weight.min()).abs().clamp(min=weight.abs().max()) / (2 ** (bits - 1) - 1)
    assert (ours - theirs).abs().max() <= step * 1.01
    assert torch.isclose(ours, theirs, atol=1e-5).float().mean() > 0.99


def test_zero_rows_stay_zero_and_zero_is_exact():
    weight = torch.randn(3, 32)
    weight[1] = 0
    weight[2, 7] = 0
    for symmetric in (True, False):
        rounded = round_to_nearest(weight, 4, 32, symmetric)
        assert torch.isfinite(rounded).all() and not rounded[1].any() and rounded[2, 7] == 0


def test_finer_groups_have_smaller_errors():
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    errors = [float((round_to_nearest(weight, 4, size) - weight).norm()) for size in (None, 128, 32)]
    assert errors == sorted(errors, reverse=True)


def test_a_rounded_copy_leaves_the_model_alone():
    model = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 4))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rounded = with_rounded_linears(model, 3, "channel")
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert not torch.equal(rounded[0].weight, model[0].weight)
    assert torch.equal(rounded[1].weight, model[1].weight)


@pytest.mark.parametrize(("bits", "group_size", "sentence"), [(1, None, "outside 2..8"), (4, 7, "does not divide")])
def test_bad_input_gets_a_sentence(bits, group_size, sentence):
    with pytest.raises(ValueError, match=sentence):
        round_to_nearest(torch.randn(2, 32), bits, group_size)
