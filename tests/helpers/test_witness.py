"""What checks rely on to tell a quantized model from one that only looks like it."""

import copy

import pytest
import torch
import torch.ao.quantization as tq
from torch import nn

from helpers import int8, witness

x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.mark.parametrize("make", [lambda net: int8.static_int8(net, [x]), int8.dynamic_int8], ids=["static", "dynamic"])
def test_an_int8_model_follows_its_weights_and_is_as_before(net, make):
    answer = make(net)
    before = answer(x)
    assert witness.runs_in_int8(answer, net, x)
    assert torch.equal(answer(x), before)


def test_a_hidden_float_copy_is_seen(net):
    answer, hidden = int8.static_int8(net, [x]), copy.deepcopy(net)
    answer.forward = lambda t: hidden(t) * 1.0002
    assert not witness.runs_in_int8(answer, net, x)
    assert not witness.runs_in_int8(copy.deepcopy(net), net, x)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda net: net.train(), "training mode"),
        (lambda net: setattr(net, "qconfig", tq.default_qconfig), "qconfig"),
        (lambda net: net[0].weight.data.mul_(0.5), "the numbers of 0.weight"),
        (lambda net: net.__setitem__(1, nn.GELU()), "GELU"),
        (lambda net: net[0].register_forward_hook(lambda *_: None), "hooks"),
        (lambda net: setattr(net[2], "weight", nn.Parameter(torch.zeros(3, 8))), "numbers of 2.weight"),
        (lambda net: setattr(net[0], "in_features", 7), "in_features of 0 is now 7, and was 8"[:21]),
        (lambda net: setattr(net[0], "sizes", [1, 2]), "sizes of 0 is new"),
        (lambda net: net[0].requires_grad_(False), "0.weight is frozen now"),
        (lambda net: setattr(net[0].weight, "grad", torch.zeros(8, 6)), "a gradient is left in 0.weight"),
        (lambda net: net.register_buffer("extra", torch.zeros(1)), "shared in another way"),
    ],
)
def test_every_change_of_the_original_is_named(net, change, words):
    before = copy.deepcopy(net)
    assert witness.unchanged(before, net) == ""
    change(net)
    assert words in witness.unchanged(before, net)


def test_expected_scales_are_those_of_a_static_copy(net):
    static = int8.static_int8(net, [x])
    scales = witness.expected_scales(net, [x])
    assert [round(plain, 5) for plain, _ in scales] == [round(static.module[i].scale, 5) for i in (0, 2)]
