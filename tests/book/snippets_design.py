"""The book's chapter 4 on design: embedding, attention and feed-forward network are quantized one by one."""

from __future__ import annotations

import torch
import torch.quantization
from torch import Tensor, nn
from torch.ao.quantization import (
    QuantWrapper,
    float_qparams_weight_only_qconfig,
    float_qparams_weight_only_qconfig_4bit,
    fuse_modules,
    quantize_dynamic,
)

from helpers.describe import weight_dtypes
from helpers.metrics import file_bytes
from helpers.models import SelfAttention
from tests.book.common import (
    DESIGN,
    Snippet,
    embedding,
    must_fail,
    network,
    noise,
    relative_error,
    static_int8,
    static_linears,
    token_ids,
)


def broken_1() -> None:
    table = embedding(1000, 128)
    result = quantize_dynamic(table, {nn.Embedding}, dtype=torch.qint8)
    assert type(result) is nn.Embedding and torch.equal(result.weight, table.weight)
    assert file_bytes(result) == file_bytes(table)


def repaired_1() -> None:
    model, ids = nn.Sequential(embedding(1000, 128)), token_ids(8, 16, below=1000)
    int8 = quantize_dynamic(model, {nn.Embedding: float_qparams_weight_only_qconfig})
    assert type(int8[0]) is nn.quantized.Embedding and file_bytes(model) / file_bytes(int8) > 3.5
    assert relative_error(int8(ids), model(ids)) < 0.01


SNIPPET_1 = Snippet(
    number=1,
    chapter=DESIGN,
    says="`quantize_dynamic` makes a single `nn.Embedding` int8.",
    broken=broken_1,
    message=None,
    error=None,
    happens="Nothing: the result is a float `nn.Embedding` with the same weights, and its file is as large as before. "
    "Only the layers *inside* a model are replaced, never the model itself.",
    works="A layer inside a model, with settings made for embeddings: "
    "`quantize_dynamic(nn.Sequential(embedding), {nn.Embedding: float_qparams_weight_only_qconfig})`. The file is 3.7 "
    "times smaller, the relative error 0.006.",
    repaired=repaired_1,
    unit="04",
)


def broken_2() -> None:
    model = nn.Sequential(embedding(1000, 128))
    assert type(quantize_dynamic(model, dtype=torch.quint4x2)[0]) is nn.Embedding
    quantize_dynamic(model, {nn.Embedding}, dtype=torch.qint8)


def repaired_2() -> None:
    model, ids = nn.Sequential(embedding(1000, 128)), token_ids(8, 16, below=1000)
    int8 = quantize_dynamic(model, {nn.Embedding}, dtype=torch.quint8)
    assert weight_dtypes(int8) == {"0": "torch.quint8"}
    assert relative_error(int8(ids), model(ids)) < 0.01


SNIPPET_2 = Snippet(
    number=2,
    chapter=DESIGN,
    says="An embedding gets the dtype `torch.qint8` (here with the embedding inside a model).",
    broken=broken_2,
    message="Embedding quantization is only supported with float_qparams_weight_only_qconfig.",
    error=AssertionError,
    happens="PyTorch quantizes embeddings to unsigned numbers only. And with `dtype=torch.quint4x2`, but no types to "
    "replace, nothing happens and nothing is said.",
    works="`quantize_dynamic(model, {nn.Embedding}, dtype=torch.quint8)`.",
    repaired=repaired_2,
    unit="04",
)


def four_bit_embedding() -> tuple[nn.Module, nn.Module, Tensor]:
    model = nn.Sequential(embedding(1000, 128))
    int4 = quantize_dynamic(model, {nn.Embedding: float_qparams_weight_only_qconfig_4bit})
    return model, int4, token_ids(8, 16, below=1000)


def broken_3() -> None:
    model, int4, ids = four_bit_embedding()
    assert int4[0].weight().dtype == torch.quint4x2
    assert model(ids).shape == (8, 16, 128) and int4(ids).shape == (8, 16, 60)
    assert int4(ids).abs().max() > 1000 * model(ids).abs().max()


def repaired_3() -> None:
    model, int4, ids = four_bit_embedding()
    int4[0].dtype = torch.quint4x2
    assert int4(ids).shape == (8, 16, 128) and 0.05 < relative_error(int4(ids), model(ids)) < 0.15
    assert file_bytes(model) / file_bytes(int4) > 6.5


SNIPPET_3 = Snippet(
    number=3,
    chapter=DESIGN,
    says="The embedding should become as small as possible. (Not in the book: the obvious next step, 4 bits.)",
    broken=broken_3,
    message=None,
    error=None,
    happens="The rows come back with 60 numbers instead of 128, some of them huge or infinite: PyTorch forgets that "
    "the table has 4 bits, and reads it as 8.",
    works="Tell the new layer: `model.embedding.dtype = torch.quint4x2`. The file is 6.9 times smaller, the relative "
    "error 0.10.",
    repaired=repaired_3,
    unit="04",
)


def broken_4() -> None:
    torch.quantization.prepare_static_quantized_layer(nn.Linear(128, 128))


def repaired_4() -> None:
    model, x = QuantWrapper(network(128, 128)), noise(256, 128)
    int8 = static_int8(model, x)
    assert type(int8.module[0]) is nn.quantized.Linear and file_bytes(model) / file_bytes(int8) > 2.5
    assert relative_error(int8(x), model(x)) < 0.06


SNIPPET_4 = Snippet(
    number=4,
    chapter=DESIGN,
    says="A function `prepare_static_quantized_layer` makes a layer static int8.",
    broken=broken_4,
    message="module 'torch.quantization' has no attribute 'prepare_static_quantized_layer'",
    error=AttributeError,
    happens="There is no such function.",
    works="`model = QuantWrapper(layer)`, `model.qconfig = get_default_qconfig(engine)`, `observed = prepare(model)`, "
    "run some data, `convert(observed)`.",
    repaired=repaired_4,
    unit="04",
)


def changes_elsewhere(layer: nn.Module, x: Tensor) -> bool:
    """Does the last position of the input matter for the output at the first?"""
    other = torch.cat([x[:, :-1], x[:, -1:] + 1], dim=1)
    return not torch.allclose(layer(x)[:, 0], layer(other)[:, 0], atol=1e-4)


def attention() -> SelfAttention:
    torch.manual_seed(0)
    return SelfAttention(64, 4).eval()


def broken_5() -> None:
    assert not changes_elsewhere(network(64, 64), noise(4, 8, 64))
    assert sum(p.numel() for p in attention().parameters()) == 4 * sum(p.numel() for p in network(64, 64).parameters())


def repaired_5() -> None:
    model, x = attention(), noise(4, 8, 64)
    int8 = static_linears(model, x)
    assert changes_elsewhere(model, x) and changes_elsewhere(int8, x)
    assert list(weight_dtypes(int8).values()) == ["torch.qint8"] * 4
    assert relative_error(int8(x), model(x)) < 0.08


SNIPPET_5 = Snippet(
    number=5,
    chapter=DESIGN,
    says="One Linear layer stands for multi-head attention.",
    broken=broken_5,
    message=None,
    error=None,
    happens="A Linear layer looks at each position alone: a change at the last one never shows at the first. Attention "
    "is four Linear layers and softmax(QKᵀ)V between them.",
    works="Attention from four Linear layers, each between stubs: `layer = QuantWrapper(nn.Linear(64, 64))` for q, k, "
    "v and out; softmax(QKᵀ)V stays float.",
    repaired=repaired_5,
    unit="04",
)


def broken_6() -> None:
    must_fail(lambda: nn.quantization, AttributeError, "module 'torch.nn' has no attribute 'quantization'")
    torch.quantization.quantize_static(nn.Linear(128, 128), dtype=torch.qint8)


def repaired_6() -> None:
    model, x = QuantWrapper(network(64, 256, 64)), noise(256, 64)
    int8 = static_int8(fuse_modules(model, [["module.0", "module.1"]]), x)
    assert list(weight_dtypes(int8).values()) == ["torch.qint8"] * 2
    assert relative_error(int8(x), model(x)) < 0.06


SNIPPET_6 = Snippet(
    number=6,
    chapter=DESIGN,
    says="One Linear layer stands for the feed-forward network, and a function `quantize_static` makes it int8.",
    broken=broken_6,
    message="module 'torch.quantization' has no attribute 'quantize_static'",
    error=AttributeError,
    happens="There is no such function, and `nn.quantization`, where the book takes an observer from, does not exist "
    "either.",
    works='Two Linear layers with an activation, `QuantWrapper`, `fuse_modules(model, [["up", "relu"]])`, `prepare`, '
    "run some data, `convert`.",
    repaired=repaired_6,
    unit="04",
)


def broken_7() -> None:
    linear, x = network(32, 32)[0], noise(64, 32)
    assert type(static_int8(linear, x)) is nn.Linear
    without_stubs = static_int8(network(32, 32), x)
    must_fail(lambda: without_stubs(x), NotImplementedError, "Could not run 'quantized::linear' with arguments from")


def repaired_7() -> None:
    linear, x = network(32, 32)[0], noise(256, 32)
    int8 = static_int8(QuantWrapper(linear), x)
    assert type(int8.module) is nn.quantized.Linear
    assert relative_error(int8(x), linear(x)) < 0.06


SNIPPET_7 = Snippet(
    number=7,
    chapter=DESIGN,
    says="A single Linear layer is what one prepares and converts.",
    broken=broken_7,
    message=None,
    error=None,
    happens="After `prepare`, data and `convert` it still is an `nn.Linear` in float (see 1). Inside a model without "
    "stubs it becomes int8, and then cannot read its float input (`Could not run 'quantized::linear' with arguments "
    "from the 'CPU' backend`).",
    works="`QuantWrapper(linear)` is both: a model around the layer, and a stub on either side.",
    repaired=repaired_7,
    unit="04",
)


def int8_table() -> tuple[nn.Embedding, nn.Module, Tensor]:
    table = embedding(1000, 128)
    int8 = quantize_dynamic(nn.Sequential(table), {nn.Embedding: float_qparams_weight_only_qconfig})
    return table, int8[0], token_ids(8, 16, below=1000)


def broken_32() -> None:
    _, int8, ids = int8_table()
    assert ids.dtype == torch.int64 and int8(ids).dtype == torch.float32
    assert torch.allclose(int8(ids), int8.weight().dequantize()[ids], atol=1e-6)


def repaired_32() -> None:
    table, int8, _ = int8_table()
    steps = int8.weight().q_per_channel_scales()[:, None]  # (row, 1)
    assert (int8.weight().dequantize() - table.weight).abs().le(0.51 * steps).all()


SNIPPET_32 = Snippet(
    number=32,
    chapter=DESIGN,
    says="An embedding is quantized dynamically.",
    broken=broken_32,
    message=None,
    error=None,
    happens="Only by the name of the function. The inputs are ids and the outputs float32 rows of the table, so there "
    "is no activation that could be quantized in a call.",
    works="It is *weight-only* quantization: `float_qparams_weight_only_qconfig` gives every row its own scale, and "
    "moves each number by at most half a step.",
    repaired=repaired_32,
    unit="04",
)

SNIPPETS = (
    SNIPPET_1,
    SNIPPET_2,
    SNIPPET_3,
    SNIPPET_4,
    SNIPPET_5,
    SNIPPET_6,
    SNIPPET_7,
    SNIPPET_32,
)
