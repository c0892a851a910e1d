"""The course model shows what quantization costs: every comparison with float on this machine, paired by document."""

import pytest
import torch

from benchmarks.round_to_nearest import SCHEMES, bits_by_document
from helpers import data, int8
from helpers.checkpoint import COURSE_MODEL, load_card, load_course_model
from helpers.models import ModelConfig, TransformerLM
from helpers.rounding import with_rounded_linears


@pytest.fixture(scope="module")
def cost():
    """Bits per byte that each scheme adds to the float model, on 24 held-out documents."""
    model, windows = load_course_model(), data.windows("held_out", 24)
    reference = bits_by_document(model, windows)
    found = {
        name: (bits_by_document(with_rounded_linears(model, *scheme), windows) - reference).mean().item()
        for name, scheme in SCHEMES.items()
    }
    found["dynamic"] = (bits_by_document(int8.dynamic_int8(model), windows) - reference).mean().item()
    return found | {"float": reference.mean().item()}


def test_int8_is_nearly_lossless(cost):
    assert abs(cost["int8 per-channel"]) < 0.01
    assert abs(cost["dynamic"]) < 0.03


@pytest.mark.parametrize("bits", [4, 3])
def test_finer_scales_cost_less(cost, bits):
    assert cost[f"int{bits} per-tensor"] > 3 * cost[f"int{bits} per-channel"] > 0
    assert cost[f"int{bits} per-channel"] > cost[f"int{bits} group 32 affine"] > 0


def test_fewer_bits_cost_more(cost):
    for granularity in ("per-tensor", "per-channel", "group 32", "group 32 affine"):
        assert cost[f"int2 {granularity}"] > cost[f"int3 {granularity}"] > cost[f"int4 {granularity}"]


def test_too_few_bits_break_the_model(cost):
    unigram = load_card(COURSE_MODEL)["held_out_baselines_bits_per_byte"]["unigram"]
    assert cost["int3 per-tensor"] > 1
    for granularity in ("per-tensor", "per-channel", "group 32"):
        assert cost["float"] + cost[f"int2 {granularity}"] > unigram, "better than counting single bytes"
    assert cost["int2 group 32 affine"] > 0.3


def test_a_random_model_has_nothing_to_lose():
    """The control: the same rounding costs an untrained model nothing, so the costs above are of what was learned."""
    torch.manual_seed(0)
    model, windows = TransformerLM(ModelConfig()).eval(), data.windows("held_out", 4)
    difference = bits_by_document(with_rounded_linears(model, 3, None), windows) - bits_by_document(model, windows)
    assert difference.abs().max() < 0.05
