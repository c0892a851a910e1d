"""The book's chapter 1: a whole model is loaded, quantized dynamically and saved again."""

from __future__ import annotations

import io
import pickle

import torch
from torch import nn
from torch.ao.quantization import quantize_dynamic

from helpers.int8 import dynamic_int8
from tests.book.common import INTRODUCTION, Snippet, must_fail, network, noise, relative_error


def saved(thing: object) -> io.BytesIO:
    """A file in memory, as ``torch.save`` writes it."""
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return file


def broken_17() -> None:
    must_fail(lambda: torch.load(saved(network(16, 8).state_dict())).eval(), AttributeError, "has no attribute 'eval'")
    torch.load(saved(network(16, 8)))


def repaired_17() -> None:
    model, x = network(16, 32, 8), noise(4, 16)
    rebuilt = network(16, 32, 8)
    nn.init.zeros_(rebuilt[0].weight)
    rebuilt.load_state_dict(torch.load(saved(model.state_dict()), weights_only=True))
    assert torch.equal(rebuilt(x), model(x))


SNIPPET_17 = Snippet(
    number=17,
    chapter=INTRODUCTION,
    says="A trained model is read back from one file, as a finished object.",
    broken=broken_17,
    message="Weights only load failed",
    error=pickle.UnpicklingError,
    happens="Since PyTorch 2.6, a file that holds a whole model is refused: such a file can run any code. If the file "
    "holds only the weights, it loads as a dictionary, and the next call fails "
    "(`'collections.OrderedDict' object has no attribute 'eval'`).",
    works="Save the weights, build the model again, and fill it: "
    "`model.load_state_dict(torch.load(path, weights_only=True))`.",
    repaired=repaired_17,
    unit="01",
)


def broken_18() -> None:
    int8 = dynamic_int8(network(16, 32, 8))
    x = noise(4, 16)
    assert torch.equal(torch.load(saved(int8), weights_only=False)(x), int8(x))
    torch.load(saved(int8))


def repaired_18() -> None:
    int8, x = dynamic_int8(network(16, 32, 8)), noise(4, 16)
    torch.manual_seed(1)
    skeleton = dynamic_int8(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)))
    assert not torch.equal(skeleton(x), int8(x))
    skeleton.load_state_dict(torch.load(saved(int8.state_dict()), weights_only=True))
    assert torch.equal(skeleton(x), int8(x))


SNIPPET_18 = Snippet(
    number=18,
    chapter=INTRODUCTION,
    says="The quantized model is saved as a whole object.",
    broken=broken_18,
    message="Weights only load failed",
    error=pickle.UnpicklingError,
    happens="Saving works. Loading is refused, as in 17. With `weights_only=False` it loads and is equal to the last "
    "bit, but only do that with files you made yourself.",
    works="Quantize an empty model of the same form, then fill it: `skeleton = quantize_dynamic(fresh, {nn.Linear})`, "
    "`skeleton.load_state_dict(torch.load(path, weights_only=True))`. The outputs are equal to the last bit.",
    repaired=repaired_18,
    unit="01",
)


def broken_19() -> None:
    must_fail(
        lambda: quantize_dynamic(network(16, 8), [nn.Linear]), AttributeError, "'list' object has no attribute 'get'"
    )
    quantize_dynamic(network(16, 8), modules_to_fuse={nn.Linear})


def repaired_19() -> None:
    model, x = network(16, 32, 8), noise(64, 16)
    int8 = quantize_dynamic(model, qconfig_spec={nn.Linear}, dtype=torch.qint8)
    assert {type(int8[i]) for i in (0, 2)} == {torch.ao.nn.quantized.dynamic.Linear}
    assert relative_error(int8(x), model(x)) < 0.05


SNIPPET_19 = Snippet(
    number=19,
    chapter=INTRODUCTION,
    says="The types to quantize are given to `quantize_dynamic` as a dictionary, in a parameter for fusing.",
    broken=broken_19,
    message="quantize_dynamic() got an unexpected keyword argument 'modules_to_fuse'",
    error=TypeError,
    happens="There is no such parameter. A list is wrong, too (`'list' object has no attribute 'get'`).",
    works="A set of types: `quantize_dynamic(model, qconfig_spec={nn.Linear}, dtype=torch.qint8)`. A dictionary is "
    "possible, from types or names to qconfigs.",
    repaired=repaired_19,
    unit="01",
)


def broken_33() -> None:
    int8 = dynamic_int8(network(64, 64))
    before = int8[0].weight()
    assert before.dtype == torch.qint8
    for scale in (1, 1000):
        int8(scale * noise(32, 64))
    assert torch.equal(int8[0].weight().int_repr(), before.int_repr())


def repaired_33() -> None:
    model = network(64, 64)
    int8 = dynamic_int8(model)
    for scale in (1, 1000):
        x = scale * noise(256, 64)
        assert 0.003 < relative_error(int8(x), model(x)) < 0.03  # a fixed scale would fail for one of the two


SNIPPET_33 = Snippet(
    number=33,
    chapter=INTRODUCTION,
    says="Dynamic quantization turns the weights into integers while the model runs (also in chapter 2).",
    broken=broken_33,
    message=None,
    error=None,
    happens="The weights are int8 before the first input, and have the same codes after it.",
    works="It is the inputs of a layer that are quantized in every call: with `quantize_dynamic(model, {nn.Linear})`, "
    "inputs a thousand times larger have the same relative error.",
    repaired=repaired_33,
    unit="01",
)

SNIPPETS = (SNIPPET_17, SNIPPET_18, SNIPPET_19, SNIPPET_33)
