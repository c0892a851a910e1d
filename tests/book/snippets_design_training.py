"""The book's chapter 4 on design, continued: the quantized model is fed, trained and converted."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
import torch.quantization
from torch import Tensor, nn
from torch.ao.quantization import (
    MinMaxObserver,
    QuantWrapper,
    convert,
    default_dynamic_qconfig,
    quantize_dynamic,
)

from helpers.describe import layer_types
from helpers.metrics import file_bytes
from tests.book.common import (
    DESIGN,
    Snippet,
    must_fail,
    network,
    noise,
    prepared,
    ready_for_qat,
    relative_error,
    static_int8,
    token_ids,
    train,
)


def broken_8() -> None:
    float_model, x = QuantWrapper(network(16, 8)).eval(), noise(64, 16)
    codes = torch.quantize_per_tensor(x, scale=0.1, zero_point=0, dtype=torch.qint8)
    qat, int8 = ready_for_qat(float_model), static_int8(float_model, x)
    on_int8 = "with arguments from the 'QuantizedCPU' backend"
    for call, error, message in (
        (lambda: qat(codes), NotImplementedError, f"'aten::_fused_moving_avg_obs_fq_helper' {on_int8}"),
        (lambda: int8(codes), NotImplementedError, f"'aten::quantize_per_tensor' {on_int8}"),
        (
            lambda: torch.quantize_per_tensor(token_ids(4, below=9), 0.1, 0, torch.qint8),
            RuntimeError,
            "Quantize only works on Float Tensor, got Long",
        ),
    ):
        must_fail(call, error, message)
    if torch.backends.quantized.engine != "onednn":  # which computes something, with a zero point out of range
        must_fail(lambda: int8.module(codes), RuntimeError, "Expected input data type QUInt8 but got QInt8")
    network(16, 8)(codes)


def repaired_8() -> None:
    model, x = QuantWrapper(network(16, 8)).eval(), noise(256, 16)
    assert relative_error(static_int8(model, x)(x), model(x)) < 0.06
    first, last = train(ready_for_qat(model), x, torch.zeros(256, 8))
    assert last < 0.5 * first


SNIPPET_8 = Snippet(
    number=8,
    chapter=DESIGN,
    says="The inputs are quantized by hand (`torch.qint8`) and given to the model that is trained.",
    broken=broken_8,
    message="mat1 and mat2 must have the same dtype, but got QInt8 and Float",
    error=RuntimeError,
    happens="A float model refuses them. So does a model with fake quantization "
    "(`Could not run 'aten::_fused_moving_avg_obs_fq_helper'`) and the stub of an int8 model "
    "(`Could not run 'aten::quantize_per_tensor'`); an int8 Linear layer wants unsigned ones "
    "(`Expected input data type QUInt8 but got QInt8`, except with the engine onednn). Token ids cannot even be "
    "quantized (`Quantize only works on Float Tensor, got Long`).",
    works="Give float inputs to every one of these models: `QuantWrapper(model)` has a stub that quantizes them.",
    repaired=repaired_8,
    unit="04",
)


def rounding_error(x: Tensor, scale: float) -> tuple[float, float]:
    """Relative error of symmetric int8 rounding, and the share of the codes that hit an end of the range."""
    q = torch.quantize_per_tensor(x, scale, 0, torch.qint8)
    codes = q.int_repr()
    return relative_error(q.dequantize(), x), ((codes == -128) | (codes == 127)).float().mean().item()


def broken_9() -> None:
    for spread, low, high, cut_low, cut_high in ((1, 0.02, 0.04, 0, 0), (10, 0.25, 0.32, 0.18, 0.22)):
        error, cut = rounding_error(spread * noise(100_000), 0.1)
        assert low < error < high and cut_low <= cut <= cut_high


def repaired_9() -> None:
    for spread in (1, 10, 1000):
        x, observer = spread * noise(100_000), MinMaxObserver(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
        observer(x)
        scale, zero_point = observer.calculate_qparams()
        assert zero_point == 0 and rounding_error(x, scale.item())[0] < 0.015


SNIPPET_9 = Snippet(
    number=9,
    chapter=DESIGN,
    says="A scale of 0.1 suits every input.",
    broken=broken_9,
    message=None,
    error=None,
    happens="Int8 then ends at 12.7. Normally distributed numbers with standard deviation 1 get a relative error of "
    "0.03, three times more than needed. With standard deviation 10, a fifth of them is cut off: the error is 0.28.",
    works="Let an observer see the data: `observer = MinMaxObserver(dtype=torch.qint8, "
    "qscheme=torch.per_tensor_symmetric)`, `observer(x)`, `observer.calculate_qparams()`. The relative error is 0.01, "
    "whatever the spread.",
    repaired=repaired_9,
    unit="04",
)


def broken_10() -> None:
    weight, x = noise(8, 16).requires_grad_(), noise(64, 16)
    codes = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    assert not codes.requires_grad and codes.grad_fn is None
    must_fail(codes.requires_grad_, RuntimeError, "only Tensors of floating point dtype can require gradients")

    int8_head = quantize_dynamic(network(16, 32, 8), {"2": default_dynamic_qconfig})
    optimizer = torch.optim.SGD(int8_head.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # autograd has no kernel for quantized::linear_dynamic, and says so once
        losses = []
        for _ in range(3):
            loss = int8_head(x).square().mean()
            assert loss.requires_grad
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert all(p.grad is None for p in int8_head.parameters()) and len(set(losses)) == 1

    F.linear(x, codes.dequantize()).square().mean().backward()


def repaired_10() -> None:
    model, x = ready_for_qat(QuantWrapper(network(16, 32, 8))), noise(256, 16)
    first, last = train(model, x, x @ noise(16, 8, seed=1) / 16)
    assert last < 0.5 * first and all(p.grad is not None for p in model.parameters())
    int8 = convert(model.eval())
    assert {type(int8.module[i]) for i in (0, 2)} == {nn.quantized.Linear}


SNIPPET_10 = Snippet(
    number=10,
    chapter=DESIGN,
    says="A model is quantized first, and then trained further (also in the chapter on Linear layers).",
    broken=broken_10,
    message="element 0 of tensors does not require grad and does not have a grad_fn",
    error=RuntimeError,
    happens="Gradients do not pass through quantized tensors, and these cannot have any "
    "(`only Tensors of floating point dtype can require gradients`). A float layer before a dynamic int8 "
    "layer fails without an error: `backward()` only warns, every `.grad` is None, and the loss never changes.",
    works="Fake quantization: `prepare_qat(model)`, train, `convert(model.eval())`.",
    repaired=repaired_10,
    unit="03",
)


def broken_11() -> None:
    model, x = QuantWrapper(network(16, 32, 8)).eval(), noise(64, 16)
    result = convert(model)
    assert layer_types(result) == layer_types(model) and torch.equal(result(x), model(x))
    assert file_bytes(result) == file_bytes(model)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        uncalibrated = convert(prepared(model))
    assert any("must run observer before calling calculate_qparams" in str(w.message) for w in heard)
    assert (uncalibrated.module[0].scale, uncalibrated.module[0].zero_point) == (1.0, 0)
    assert relative_error(uncalibrated(x), model(x)) > 0.9


def repaired_11() -> None:
    model, x = QuantWrapper(network(64, 256, 64)).eval(), noise(256, 64)
    int8 = static_int8(model, x)
    assert file_bytes(model) / file_bytes(int8) > 3 and relative_error(int8(x), model(x)) < 0.06


SNIPPET_11 = Snippet(
    number=11,
    chapter=DESIGN,
    says="After ordinary training, `convert(model.eval())` prepares the model for use.",
    broken=broken_11,
    message=None,
    error=None,
    happens="Nothing: without a qconfig and observers the same float model comes back. With `prepare`, but without any "
    "data, there is a warning (`must run observer before calling calculate_qparams`), every scale is 1, and the "
    "outputs are useless.",
    works="`model.qconfig = get_default_qconfig(engine)`, `observed = prepare(model)`, run some data, "
    "`convert(observed)`.",
    repaired=repaired_11,
    unit="04",
)


SNIPPETS = (
    SNIPPET_8,
    SNIPPET_9,
    SNIPPET_10,
    SNIPPET_11,
)
