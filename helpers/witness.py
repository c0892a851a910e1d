"""Evidence about a quantized model: was the original left alone, do the int8 layers run, do the scales fit the data?

For checks only. Introduced in unit 02.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, str, type(None))


def unchanged(before: nn.Module, model: nn.Module) -> str:
    """What differs between a model and a deep copy of it that was made before; "" if nothing does.

    Parameters
    ----------
    before : Module
        The deep copy.
    model : Module
        The model itself, after somebody's function has had it.

    Returns
    -------
    str
        The first difference, as half a sentence: a layer, the training mode, a qconfig, a hook, an attribute such as
        `batch_first`, a tie, or a tensor.
    """
    old, new = dict(before.named_modules()), dict(model.named_modules())
    types = {name: type(part) for name, part in new.items()}
    for name in old | new:
        if types.get(name) is not (type(old[name]) if name in old else None):
            return f"{_called(name)} is now {_type_name(new.get(name))}, and was {_type_name(old.get(name))}"
    for name, part in new.items():
        if part.training != old[name].training:
            return f"{_called(name)} was switched to {'training' if part.training else 'eval'} mode"
        if getattr(part, "qconfig", None) != getattr(old[name], "qconfig", None) or (
            hasattr(part, "qconfig") and not hasattr(old[name], "qconfig")
        ):
            return f"a qconfig is left in {_called(name)}"
        if len(part._forward_hooks) + len(part._forward_pre_hooks) != len(old[name]._forward_hooks) + len(
            old[name]._forward_pre_hooks
        ):
            return f"hooks are left in {_called(name)}"
        for key, value in _plain(old[name]).items():
            if vars(part).get(key) != value:
                return f"{key} of {_called(name)} is now {vars(part).get(key)!r}, and was {value!r}"
    if _ties(before) != _ties(model):
        return "its parameters are other ones, or shared in another way"
    kept = before.state_dict(keep_vars=True)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and not _same(tensor, kept.get(name)):
            return f"the numbers of {name} are other ones"
    return ""


@contextmanager
def halved_int8_weights(model: nn.Module) -> Iterator[int]:
    """Inside, every int8 weight of `model` counts half as much; afterwards it is what it was.

    PyTorch's quantized layers keep their codes and get half the scale (every bias stays). In a PT2E graph, which holds
    the codes as int8 buffers, the codes are halved. What the model computes must change with it, if it uses them.

    Yields
    ------
    int
        How many weights were halved.
    """
    undo: list[Callable[[], object]] = []
    for module in list(model.modules()):
        if callable(getattr(module, "weight", None)):
            # Copies: an unpacked embedding shares memory with the packed one, and is garbage once that is replaced.
            old, new = _times(module.weight(), 1.0), _times(module.weight(), 0.5)
            if hasattr(module, "set_weight_bias"):
                bias = module.bias()
                module.set_weight_bias(new, bias)
                undo.append(lambda module=module, old=old, bias=bias: module.set_weight_bias(old, bias))
            elif hasattr(module, "set_weight"):
                module.set_weight(new)
                undo.append(lambda module=module, old=old: module.set_weight(old))
    for buffer in model.buffers():
        if buffer.dtype == torch.int8 and buffer.dim() >= 2:
            codes = buffer.clone()
            undo.append(lambda buffer=buffer, codes=codes: buffer.copy_(codes))
            buffer.copy_((buffer.float() / 2).round())
    try:
        yield len(undo)
    finally:
        for restore in undo:
            restore()


@torch.no_grad()
def runs_in_int8(answer: nn.Module, reference: nn.Module, x: Tensor, float_parts: tuple[str, ...] = ()) -> bool:
    """True if the outputs of `answer` are made with its int8 weights, and not with a float copy that it hides.

    All int8 weights are halved for one call. A model that uses them then computes what the float model computes with
    half of its matrices; one that hides a float copy computes what it did before.

    Parameters
    ----------
    answer : Module
        The quantized model.
    reference : Module
        The float model, called in the same way; it is not changed.
    x : Tensor
        Their input.
    float_parts : tuple of str
        How the names of those matrices of `reference` begin that `answer` keeps in float.
    """
    half = copy.deepcopy(reference)
    for name, parameter in half.named_parameters():
        if parameter.dim() >= 2 and not name.startswith(float_parts):
            parameter.mul_(0.5)
    before, wanted = reference(x), half(x)
    with halved_int8_weights(answer) as count:
        output = answer(x)
    near = (output - wanted).norm() < 0.5 * (before - wanted).norm()
    return count > 0 and bool(near)


@torch.no_grad()
def expected_scales(body: nn.Sequential, inputs: list[Tensor]) -> list[tuple[float, float]]:
    """The output scales that static quantization gives the Linear layers of `body`, calibrated with all `inputs`.

    Returns
    -------
    list of (float, float)
        For each Linear: what the default observer of the engine says of its float outputs, and what it says of them
        behind the ReLU that follows (for a layer that was fused with it; without a ReLU, the same number again).
    """
    parts, scales = list(body), []
    for i, part in enumerate(parts):
        outputs = [part(x) for x in inputs]
        if isinstance(part, nn.Linear):
            fused = i + 1 < len(parts) and isinstance(parts[i + 1], nn.ReLU)
            scales.append((_scale(outputs), _scale([y.relu() for y in outputs] if fused else outputs)))
        inputs = outputs
    return scales


def _scale(tensors: list[Tensor]) -> float:
    observer = torch.ao.quantization.get_default_qconfig(torch.backends.quantized.engine).activation()
    for tensor in tensors:
        observer(tensor)
    return float(observer.calculate_qparams()[0])


def _times(weight: Tensor, factor: float) -> Tensor:
    """A quantized tensor with the same codes and `factor` times the scale."""
    numbers = weight.dequantize() * factor
    if weight.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return torch.quantize_per_tensor(numbers, weight.q_scale() * factor, weight.q_zero_point(), weight.dtype)
    scales, zeros = weight.q_per_channel_scales() * factor, weight.q_per_channel_zero_points().clone()
    return torch.quantize_per_channel(numbers, scales, zeros, weight.q_per_channel_axis(), weight.dtype)


def _plain(module: nn.Module) -> dict[str, object]:
    return {key: value for key, value in vars(module).items() if isinstance(value, PLAIN) and key != "training"}


def _ties(model: nn.Module) -> list[list[str]]:
    """Names of the parameters, those of one tensor together."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return sorted(names.values())


def _same(a: Tensor, b: Tensor | None) -> bool:
    return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)


def _called(name: str) -> str:
    return name or "the model"


def _type_name(module: nn.Module | None) -> str:
    return "gone" if module is None else f"{type(module).__module__}.{type(module).__qualname__}"
