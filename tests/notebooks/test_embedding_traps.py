"""Traps of PyTorch's embeddings that unit 04 shows. A failure here means a changed torch: mend the unit's prose."""

from __future__ import annotations

import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
from torch import nn

FOUR_BITS = tq.float_qparams_weight_only_qconfig_4bit
EIGHT_BITS = tq.float_qparams_weight_only_qconfig
kernels = torch.ops.quantized


def four_bit_embedding(rows: int = 1000, columns: int = 128) -> nnq.Embedding:
    torch.manual_seed(0)
    return tq.quantize_dynamic(nn.Sequential(nn.Embedding(rows, columns)), {nn.Embedding: FOUR_BITS})[0]


def test_the_4_bit_module_still_unpacks_with_the_wrong_width() -> None:
    layer = four_bit_embedding()
    assert layer.weight().dtype == torch.quint4x2
    shape = tuple(layer(torch.arange(10)).shape)
    assert shape != (10, 128), (
        "nnq.Embedding.from_float hands on the dtype now: the 4-bit embedding is repaired. Rewrite the trap in "
        "section 2 of unit 04, and docs that call it wrong."
    )
    assert shape == (10, 128 // 2 + 4 - 8), f"rows of {shape[1]} numbers: no longer the 60 that unit 04 explains."
    assert layer.dtype == torch.quint8, "the module's dtype is right now, and the lookup is still wrong: find out why."


def test_narrow_rows_are_an_error() -> None:
    with pytest.raises(RuntimeError):
        four_bit_embedding(5, 4)(torch.arange(5))


def test_naming_the_dtype_repairs_the_lookup() -> None:
    layer = four_bit_embedding()
    layer.dtype = torch.quint4x2
    weight, ids = layer.weight(), torch.tensor([0, 7, 999, 7])
    step = weight.q_per_channel_scales().max()
    assert layer(ids).shape == (4, 128)
    assert (layer(ids) - weight.dequantize()[ids]).abs().max() < 0.05 * step  # the packed scale is a float16


def test_the_layout_of_packed_rows() -> None:
    packed = kernels.embedding_bag_4bit_prepack(torch.tensor([[-1.0, -0.25, 0.5, 14.0]]))
    assert packed.tolist() == [[0 + 16 * 1, 2 + 16 * 15, 0, 60, 0, 188]]
    assert kernels.embedding_bag_4bit_unpack(packed).tolist() == [[-1.0, 0.0, 1.0, 14.0]]
    with pytest.raises(RuntimeError, match="multiple of 2"):
        kernels.embedding_bag_4bit_prepack(torch.zeros(1, 3))


@pytest.mark.parametrize("spec", [{nn.Embedding}, {nn.Embedding: EIGHT_BITS}])
def test_a_bare_embedding_is_not_quantized(spec: set | dict) -> None:
    asked = tq.quantize_dynamic(nn.Embedding(10, 8), spec, dtype=torch.qint8)
    assert type(asked) is nn.Embedding, (
        "the root is replaced now: rewrite the box about the book in unit 04, section 2."
    )


def test_an_embedding_takes_no_qint8() -> None:
    with pytest.raises(AssertionError, match="float_qparams_weight_only_qconfig"):
        tq.quantize_dynamic(nn.Sequential(nn.Embedding(10, 8)), {nn.Embedding}, dtype=torch.qint8)


def test_a_lookup_is_code_times_scale_plus_bias() -> None:
    torch.manual_seed(1)
    layer = tq.quantize_dynamic(nn.Sequential(nn.Embedding(20, 16)), {nn.Embedding: EIGHT_BITS})[0]
    weight = layer.weight()
    scale, zero = weight.q_per_channel_scales()[:, None], weight.q_per_channel_zero_points()[:, None]
    assert weight.dtype == torch.quint8 and not torch.equal(zero, zero.round())
    assert torch.allclose(layer(torch.arange(20)), weight.int_repr() * scale - scale * zero, atol=1e-5)


def test_a_slice_of_ids_is_refused() -> None:
    layer = tq.quantize_dynamic(nn.Sequential(nn.Embedding(20, 16)), {nn.Embedding: EIGHT_BITS})[0]
    with pytest.raises(RuntimeError, match="contiguous"):
        layer(torch.arange(6).view(2, 3)[:, :-1])


def test_quantization_cuts_the_tie() -> None:
    from helpers.metrics import file_bytes
    from helpers.models import ModelConfig, TransformerLM

    torch.manual_seed(2)
    model = TransformerLM(ModelConfig(vocab_size=4096, context=8, d_model=32, n_heads=2, n_layers=1, d_ff=64)).eval()
    for spec in ({nn.Embedding: EIGHT_BITS}, {nn.Linear: tq.default_dynamic_qconfig}):
        assert file_bytes(tq.quantize_dynamic(model, spec)) > file_bytes(model), (
            "the tie survives now: see unit 04, The tie."
        )
