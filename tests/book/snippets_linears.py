"""The book's chapter 4 on kinds of Linear layers: one of them is put into a float model, and trained."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.ao.nn.intrinsic.quantized import LinearReLU
from torch.ao.quantization import (
    QuantWrapper,
    convert,
    default_qconfig,
    fuse_modules,
)

from helpers.describe import layer_types
from helpers.int8 import dynamic_int8
from tests.book.common import (
    LINEARS,
    Snippet,
    must_fail,
    network,
    noise,
    prepared,
    ready_for_qat,
    relative_error,
    static_int8,
    train,
)


def with_an_int8_layer() -> nn.Sequential:
    """A float Linear, a ReLU, and an int8 Linear that somebody built by hand."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 5), nn.ReLU(), nn.quantized.Linear(5, 2))


def trained_for_int8(frozen: int | None = None) -> tuple[nn.Module, nn.Module, nn.Module]:
    """A float network; the same, trained with fake quantization (one layer frozen, or none); and its int8 form."""
    start = QuantWrapper(network(16, 32, 8))
    model = ready_for_qat(start)
    if frozen is not None:
        model.module[frozen].requires_grad_(False)
    x = noise(256, 16)
    first, last = train(model, x, x @ noise(16, 8, seed=1) / 16)  # as large as the untrained outputs
    assert last < 0.5 * first
    model.eval().apply(torch.ao.quantization.disable_observer)
    return start.module, model.module, convert(copy.deepcopy(model))


def moved(before: nn.Module, after: nn.Module) -> list[bool]:
    """For each of the two Linear layers: did training change its weight?"""
    return [not torch.equal(before[i].weight, after[i].weight) for i in (0, 2)]


def broken_25() -> None:
    nn.quantized.Linear(5, 2, bias=True, dtype=torch.qint8)


def repaired_25() -> None:
    layer = nn.quantized.Linear(5, 2, bias_=True, dtype=torch.qint8)
    assert layer.weight().shape == (2, 5) and layer.bias().shape == (2,)


SNIPPET_25 = Snippet(
    number=25,
    chapter=LINEARS,
    says="An int8 Linear layer is built like a float one, with `bias=True`.",
    broken=broken_25,
    message="Linear.__init__() got an unexpected keyword argument 'bias'",
    error=TypeError,
    happens="The argument has another name here.",
    works="`nn.quantized.Linear(5, 2, bias_=True)`, with an underscore. But see 26: let `convert` build these layers.",
    repaired=repaired_25,
    unit="03",
)


def broken_26() -> None:
    def stages() -> list[nn.Module]:
        model = with_an_int8_layer()
        observed = prepared(model, default_qconfig)
        return [model, observed, convert(observed)]

    for model in stages():
        must_fail(lambda m=model: m(noise(4, 10)), NotImplementedError, "Could not run 'quantized::linear'")
    layer = with_an_int8_layer()[2]
    assert (layer.scale, layer.weight().q_scale()) == (1.0, 1.0)
    with_an_int8_layer()(noise(4, 10))


def repaired_26() -> None:
    model, x = QuantWrapper(network(16, 32, 8)), noise(256, 16)
    int8 = static_int8(model, x)
    assert {type(int8.module[i]) for i in (0, 2)} == {nn.quantized.Linear}
    assert relative_error(int8(x), model(x)) < 0.06


SNIPPET_26 = Snippet(
    number=26,
    chapter=LINEARS,
    says="An int8 Linear layer is a part like any other in a float model; `prepare` and `convert` come later.",
    broken=broken_26,
    message="Could not run 'quantized::linear' with arguments from the 'CPU' backend",
    error=NotImplementedError,
    happens="It cannot read float inputs: not before `prepare`, not after it, not after `convert`. And its weights are "
    "whatever was in memory (often zeros), with scale 1.",
    works="Float layers between stubs, `QuantWrapper(model)`, then `prepare`, calibrate, `convert`.",
    repaired=repaired_26,
    unit="03",
)


def broken_27() -> None:
    int8 = static_int8(QuantWrapper(network(16, 32, 8)), noise(64, 16))
    assert type(int8.module[1]) is nn.ReLU
    _ = nn.quantized.ReLU


def repaired_27() -> None:
    model, x = QuantWrapper(network(16, 32, 8)), noise(256, 16)
    int8 = static_int8(fuse_modules(model, [["module.0", "module.1"]]), x)
    assert type(int8.module[0]) is LinearReLU and type(int8.module[1]) is nn.Identity
    assert relative_error(int8(x), model(x)) < 0.06


SNIPPET_27 = Snippet(
    number=27,
    chapter=LINEARS,
    says="`convert` replaces each `nn.ReLU` by a quantized ReLU.",
    broken=broken_27,
    message="module 'torch.nn.quantized' has no attribute 'ReLU'",
    error=AttributeError,
    happens="There is no such layer. After `convert` it still is `nn.ReLU`, which can work on quantized numbers.",
    works='Fuse first: `fuse_modules(model, [["linear", "relu"]])`. `convert` then makes one `LinearReLU` of the two.',
    repaired=repaired_27,
    unit="03",
)


def broken_28() -> None:
    layer = with_an_int8_layer()[2]
    layer.weight().requires_grad = False  # accepted, and without any effect
    only_floats = "only Tensors of floating point and complex dtype can require gradients"
    must_fail(lambda: setattr(layer.weight(), "requires_grad", True), RuntimeError, only_floats)
    layer.weight.requires_grad = False


def repaired_28() -> None:
    before, after, int8 = trained_for_int8(frozen=2)
    assert moved(before, after) == [True, False]
    assert {type(int8.module[i]) for i in (0, 2)} == {nn.quantized.Linear}


SNIPPET_28 = Snippet(
    number=28,
    chapter=LINEARS,
    says="An int8 layer is frozen by setting `requires_grad` of its weight to False.",
    broken=broken_28,
    message="'method' object has no attribute 'requires_grad'",
    error=AttributeError,
    happens="`weight` is a method of this layer. Its result can never have a gradient "
    "(`only Tensors of floating point and complex dtype can require gradients`), so there is nothing to freeze.",
    works="Freeze while the weights are floats: `prepare_qat(model)`, `model.layer2.requires_grad_(False)`, train, "
    "`convert` last. The frozen layer does not move, the other one does, and both become int8.",
    repaired=repaired_28,
    unit="03",
)


def broken_29() -> None:
    assert [name for name, _ in with_an_int8_layer().named_parameters()] == ["0.weight", "0.bias"]
    int8 = static_int8(QuantWrapper(network(16, 32, 8)), noise(64, 16))
    torch.optim.SGD(int8.parameters(), lr=0.01)


def repaired_29() -> None:
    before, after, int8 = trained_for_int8()
    assert moved(before, after) == [True, True]
    assert len(list(after.parameters())) == 4 and not list(int8.parameters())


SNIPPET_29 = Snippet(
    number=29,
    chapter=LINEARS,
    says="The converted int8 model is trained on with an ordinary optimizer.",
    broken=broken_29,
    message="optimizer got an empty parameter list",
    error=ValueError,
    happens="Int8 weights are not parameters. After `convert` none is left; before it there are only those of the "
    "float layer.",
    works="Give the optimizer the model with fake quantization: `prepare_qat(model)`, "
    "`torch.optim.Adam(model.parameters())`, train, then `convert(model.eval())`.",
    repaired=repaired_29,
    unit="03",
)


def broken_30() -> None:
    trainable = [name for name, p in with_an_int8_layer().named_parameters() if p.requires_grad]
    assert trainable == ["0.weight", "0.bias"]  # of the first layer, whatever one does to the last
    before, after, _ = trained_for_int8(frozen=2)
    assert moved(before, after) == [True, False]


def repaired_30() -> None:
    before, after, _ = trained_for_int8(frozen=0)
    assert moved(before, after) == [False, True]


SNIPPET_30 = Snippet(
    number=30,
    chapter=LINEARS,
    says="Freezing the second layer is called freezing the first, and should leave only the last layer to be trained.",
    broken=broken_30,
    message=None,
    error=None,
    happens="The text contradicts itself. With the second (the last) layer frozen, it is the first one that is "
    "trained.",
    works="To train only the last layer, freeze the first: `model.layer1.requires_grad_(False)` after `prepare_qat`.",
    repaired=repaired_30,
    unit="03",
)


def broken_31() -> None:
    int8, x = dynamic_int8(network(16, 32, 8)), noise(64, 16)
    assert not list(int8.parameters())
    converted = convert(int8)
    assert layer_types(converted) == layer_types(int8)
    assert torch.equal(converted(x), int8(x))


def repaired_31() -> None:
    _, after, int8 = trained_for_int8()
    x = noise(256, 16)
    assert {type(int8.module[i]) for i in (0, 2)} == {nn.quantized.Linear}
    assert relative_error(int8(x), after(x)) < 0.1


SNIPPET_31 = Snippet(
    number=31,
    chapter=LINEARS,
    says="The order is: `quantize_dynamic`, then train, then `convert`.",
    broken=broken_31,
    message=None,
    error=None,
    happens="After the first step a model of Linear layers has no parameter left to train, and the last step changes "
    "nothing: its output is equal to the last bit.",
    works="The order is `prepare_qat(model)`, train, `convert(model.eval())`.",
    repaired=repaired_31,
    unit="02",
)


SNIPPETS = (
    SNIPPET_25,
    SNIPPET_26,
    SNIPPET_27,
    SNIPPET_28,
    SNIPPET_29,
    SNIPPET_30,
    SNIPPET_31,
)
