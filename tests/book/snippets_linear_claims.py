"""The book's chapter 4 on kinds of Linear layers, continued: what it claims of each kind."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import (
    QConfig,
    QuantWrapper,
    default_observer,
    default_per_channel_weight_observer,
    default_qconfig,
    fuse_modules,
)

from helpers.int8 import dynamic_int8
from helpers.metrics import file_bytes
from tests.book.common import (
    LINEARS,
    Snippet,
    network,
    noise,
    relative_error,
    static_int8,
)


def broken_36() -> None:
    layer, x = network(16, 8)[0], noise(64, 16)
    assert layer.weight.dtype == layer(x).dtype == torch.float32
    assert torch.allclose(layer(x), x @ layer.weight.T + layer.bias, atol=1e-5)


def repaired_36() -> None:
    model, x = network(16, 8), noise(64, 16)
    int8 = dynamic_int8(model)
    assert int8[0].weight().dtype == torch.qint8 and 0 < relative_error(int8(x), model(x)) < 0.05


SNIPPET_36 = Snippet(
    number=36,
    chapter=LINEARS,
    says="`nn.Linear` quantizes weights and activations, each for itself.",
    broken=broken_36,
    message=None,
    error=None,
    happens="`nn.Linear` quantizes nothing: its weight and its output are float32, and the output is xWᵀ + b.",
    works="A function makes another layer of it: `quantize_dynamic(model, {nn.Linear})`.",
    repaired=repaired_36,
    unit="03",
)


def weight_scheme(settings: QConfig) -> torch.qscheme:
    return static_int8(QuantWrapper(network(16, 8)), noise(64, 16), settings).module[0].weight().qscheme()


def broken_37() -> None:
    assert nn.quantized.Linear(16, 8).weight().qscheme() == torch.per_tensor_affine
    assert weight_scheme(default_qconfig) == torch.per_tensor_affine


def repaired_37() -> None:
    settings = QConfig(activation=default_observer, weight=default_per_channel_weight_observer)
    assert weight_scheme(settings) == torch.per_channel_affine


SNIPPET_37 = Snippet(
    number=37,
    chapter=LINEARS,
    says="`nn.quantized.Linear` has one scale per channel.",
    broken=broken_37,
    message=None,
    error=None,
    happens="The qconfig decides. A new layer has one scale for the whole weight, and so has one that is made with "
    "`default_qconfig` or with the settings of qnnpack.",
    works="Ask for it: `QConfig(activation=default_observer, weight=default_per_channel_weight_observer)`. The "
    "settings of x86 and fbgemm do.",
    repaired=repaired_37,
    unit="03",
)


def broken_38() -> None:
    model = network(512, 512)
    static = static_int8(QuantWrapper(model), noise(64, 512))
    assert file_bytes(dynamic_int8(model)) < 1.005 * file_bytes(static)


def repaired_38() -> None:
    model = network(512, 512)
    static = static_int8(QuantWrapper(model), noise(64, 512), default_qconfig).module[0].weight()
    dynamic = dynamic_int8(model)[0].weight()
    assert static.dtype == dynamic.dtype == torch.qint8
    assert torch.equal(static.int_repr(), dynamic.int_repr())


SNIPPET_38 = Snippet(
    number=38,
    chapter=LINEARS,
    says="The dynamic Linear layer needs more memory than the static one.",
    broken=broken_38,
    message=None,
    error=None,
    happens="Its file is as large, or a little smaller. (The activations *between* dynamic layers are floats; that is "
    "the true part.)",
    works="Both hold the same int8 codes, if both have one scale per weight: `prepare` with `default_qconfig` and "
    "`quantize_dynamic(model, {nn.Linear})`.",
    repaired=repaired_38,
    unit="03",
)


def fused_and_not() -> tuple[nn.Module, nn.Module]:
    model, x = QuantWrapper(nn.Sequential(*network(64, 64, 64)[:2])).eval(), noise(256, 64)
    return static_int8(fuse_modules(model, [["module.0", "module.1"]]), x), static_int8(model, x)


def broken_39() -> None:
    fused, separate = fused_and_not()
    assert torch.equal(fused.module[0].weight().int_repr(), separate.module[0].weight().int_repr())
    assert (fused.module[0].weight().int_repr() < 0).float().mean() > 0.4
    assert abs(file_bytes(fused) / file_bytes(separate) - 1) < 0.01


def repaired_39() -> None:
    fused, separate = fused_and_not()
    assert fused.module[0].zero_point == 0
    assert fused.module[0].scale < 0.7 * separate.module[0].scale
    assert fused(noise(256, 64)).min() == 0 and torch.all(fused.module[1](noise(4)) == noise(4))


SNIPPET_39 = Snippet(
    number=39,
    chapter=LINEARS,
    says="`LinearReLU` leaves fewer negative weights, and needs more memory.",
    broken=broken_39,
    message=None,
    error=None,
    happens="The weights have the same codes with and without the ReLU, about half of them negative, and the files "
    "are equally large.",
    works='It is the *outputs* that lose their negative half. After `fuse_modules(model, [["linear", "relu"]])` their '
    "zero point is 0, and their scale is about half as large: finer steps for what is left.",
    repaired=repaired_39,
    unit="03",
)


def broken_40() -> None:
    model, x = network(16, 8), noise(64, 16)
    int8 = dynamic_int8(model)
    assert int8[0].weight().dtype == torch.qint8
    for scale in (1, 1000):
        assert int8(scale * x).dtype == torch.float32
        assert (int8[0].scale, int8[0].zero_point) == (1.0, 0)  # of no activation: what they are at first


def repaired_40() -> None:
    model, x = QuantWrapper(network(16, 8)), noise(64, 16)
    static = static_int8(model, x)
    assert {"quant.scale", "quant.zero_point", "module.0.scale", "module.0.zero_point"} <= static.state_dict().keys()
    assert F.relu(static.module(static.quant(x))).dtype == torch.quint8


SNIPPET_40 = Snippet(
    number=40,
    chapter=LINEARS,
    says="`quantize_dynamic` quantizes the weights and the activations of a model, once, before it is trained.",
    broken=broken_40,
    message=None,
    error=None,
    happens="Only the weights are quantized then. For the inputs nothing is stored: each call chooses their scale "
    "anew, and the outputs are float32.",
    works="Activations that are quantized ahead need data: `prepare(model)`, run some batches, `convert(model)`. The "
    "scales are then in the state_dict, and the outputs of a layer are quint8.",
    repaired=repaired_40,
    unit="03",
)

SNIPPETS = (
    SNIPPET_36,
    SNIPPET_37,
    SNIPPET_38,
    SNIPPET_39,
    SNIPPET_40,
)
