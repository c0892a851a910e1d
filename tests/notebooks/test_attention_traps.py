"""The four roads that PyTorch's own Transformer layers close (unit 04, section 4): do they still?

A failure here is good news about torch, and bad news about our text.
"""

import inspect

import pytest
import torch
import torch.ao.nn.quantizable
import torch.ao.quantization as tq
from torch import nn

from helpers import int8, known_warnings

FIXED = "torch has fixed this: rewrite section 4 of unit 04"


@pytest.fixture(autouse=True)
def quiet_engine():
    known_warnings.hide()
    engine = torch.backends.quantized.engine
    int8.choose_engine()
    yield
    torch.backends.quantized.engine = engine


def layer(batch_first: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(32, 4, 128, batch_first=batch_first).eval()


def dynamic(model: nn.Module) -> nn.Module:
    return tq.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def pair_of_attentions(heads: int, batch_first: bool) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(32, heads, batch_first=batch_first).eval()
    plain.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    return plain, torch.ao.nn.quantizable.MultiheadAttention.from_float(plain).eval()


def test_quantize_dynamic_leaves_a_third_of_an_encoder_layer_in_float():
    total = sum(p.numel() for p in layer().parameters() if p.dim() == 2)
    left = {name: p.numel() for name, p in dynamic(layer()).named_parameters() if p.dim() == 2}
    assert set(left) == {"self_attn.in_proj_weight", "self_attn.out_proj.weight"}, FIXED
    assert 3 * sum(left.values()) == total, FIXED


def test_a_dynamically_quantized_encoder_layer_crashes_in_eval():
    x, before = torch.randn(2, 5, 32), torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        try:
            dynamic(layer())(x)
        except AttributeError as error:
            assert "'function' object has no attribute 'device'" in str(error)
        else:
            pytest.fail(FIXED)
        wanted = layer()(x)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            assert (dynamic(layer())(x) - wanted).norm() < 0.05 * wanted.norm(), "the cure of section 4 is none."
        finally:
            torch.backends.mha.set_fastpath_enabled(before)
        time_first = dynamic(layer(batch_first=False))(x.transpose(0, 1)).transpose(0, 1)
        assert (time_first - wanted).norm() < 0.05 * wanted.norm(), "the second cure of section 4 is none."


@pytest.mark.parametrize(
    ("heads", "batch_first", "wrong"), [(1, False, False), (4, False, False), (1, True, False), (4, True, True)]
)
def test_the_quantizable_attention_is_wrong_with_batch_first_and_heads(heads, batch_first, wrong):
    plain, twin = pair_of_attentions(heads, batch_first)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = plain(x, x, x)[0], twin(x, x, x)[0]
    error = ((a - b).norm() / a.norm()).item()
    assert (error > 0.5) if wrong else (error < 1e-5), FIXED


def test_the_line_that_does_it_is_where_the_text_says():
    source = inspect.getsource(torch.ao.nn.quantizable.MultiheadAttention._forward_impl)
    assert source.count("if self.batch_first") == 2, FIXED
    assert source.split("if self.batch_first")[2].splitlines()[1].strip().count(".view(") == 1, FIXED


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: nn.TransformerEncoderLayer(32, 4), "qat.Linear.from_float only works for Linear"),
        (lambda: nn.MultiheadAttention(32, 4), "qat.Linear.from_float only works for Linear"),
        (lambda: torch.ao.nn.quantizable.MultiheadAttention(32, 4), "no attribute 'activation_post_process'"),
    ],
)
def test_prepare_qat_rejects_attention(network, message):
    model = nn.Sequential(network()).train()
    model.qconfig = tq.get_default_qat_qconfig(torch.backends.quantized.engine)
    try:
        tq.prepare_qat(model)
    except (AssertionError, AttributeError) as error:
        assert message in str(error)
    else:
        pytest.fail(FIXED)
