"""Evidence about a quantized model: was the original left alone, do the int8 layers run, do the scales fit the data?

For checks only. Introduced in unit 02.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.Size, torch.device)


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
        `batch_first` (plain values, and lists, tuples and dictionaries of them), a tie, `requires_grad`, or a tensor.
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
        if _hooks(part) != _hooks(old[name]):
            return f"hooks are left in {_called(name)}"
        if difference := _attribute_difference(old[name], part):
            return difference.format(of=_called(name))
    if _ties(before) != _ties(model):
        return "its parameters are other ones, or shared in another way"
    return _tensor_difference(before, model)


def independent(answer: nn.Module, model: nn.Module) -> str:
    """What an answer still shares with the model that it was made from, as half a sentence; "" if nothing.

    A shared tensor or module is changed by whoever changes one of the two. Packed int8 weights have no address that
    can be compared, and count as independent.
    """
    theirs = {id(part): name for name, part in model.named_modules()}
    for name, part in answer.named_modules():
        if id(part) in theirs and not _stateless(part):
            return (
                f"{_called(name)} of your answer is the very object that the model has as {_called(theirs[id(part)])}"
            )
    addresses = {_address(tensor): name for name, tensor in _tensors(model)}
    for name, tensor in _tensors(answer):
        if tensor.numel() and _address(tensor) in addresses:
            return f"{name} of your answer lies in the memory of {addresses[_address(tensor)]} of the model"
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


def other_recipe(answer: nn.Module) -> str:
    """How weights of static int8 Linear layers differ from the default recipe (qconfig) of the engine in use.

    Returns
    -------
    str
        Half a sentence about the first weight whose scales are others in kind; "" if there is none.
    """
    engine = torch.backends.quantized.engine
    wanted = "channel" in str(torch.ao.quantization.get_default_qconfig(engine).weight().qscheme)
    linears = torch.ao.nn.quantized.Linear, torch.ao.nn.intrinsic.quantized.LinearReLU
    for name, module in answer.named_modules():
        if type(module) in linears and ("channel" in str(module.weight().qscheme())) != wanted:
            has, should = ("one scale", "one for each output")[:: 1 if wanted else -1]
            return f"the weight of {name} has {has}, and should have {should} with {engine}"
    return ""


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


def _hooks(module: nn.Module) -> int:
    return sum(len(vars(module)[kind]) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks",
                                                    "_backward_pre_hooks") if kind in vars(module))  # fmt: skip


def _attribute_difference(old: nn.Module, new: nn.Module) -> str:
    """The first plain attribute that differs, is new, or is gone: "in_features of {of} is now 7, and was 6"."""
    was, now = _plain(old), _plain(new)
    for key in was | now:
        if key not in now:
            return f"{key} of {{of}} is {'another kind of thing' if key in vars(new) else 'gone'}"
        if key not in was:
            return f"{key} of {{of}} is new"
        if was[key] != now[key]:
            return f"{key} of {{of}} is now {_braced(now[key])}, and was {_braced(was[key])}"
    return ""


def _braced(value: object) -> str:
    return repr(value).replace("{", "{{").replace("}", "}}")


def _plain(module: nn.Module) -> dict[str, object]:
    return {k: v for k, v in vars(module).items() if _is_plain(v) and k not in ("training", "qconfig") and k[:1] != "_"}


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, list | tuple | set) else isinstance(value, PLAIN)


def _tensor_difference(before: nn.Module, model: nn.Module) -> str:
    kept, now = before.state_dict(keep_vars=True), model.state_dict(keep_vars=True)
    for name in kept | now:
        if (name in kept) != (name in now):
            return f"{name} is {'new' if name in now else 'gone'} in its state_dict"
        old, new = kept[name], now[name]
        if not isinstance(old, Tensor):
            continue
        if not _same(old, new):
            return f"the numbers of {name} are other ones"
        if old.requires_grad != new.requires_grad:
            return f"{name} {'learns' if new.requires_grad else 'is frozen'} now: its requires_grad was switched"
        if (old.grad is None) != (new.grad is None) or (old.grad is not None and not _same(old.grad, new.grad)):
            return f"a gradient is left in {name}"
    return ""


def _ties(model: nn.Module) -> list[list[str]]:
    """Names of the parameters and buffers, those of one memory together."""
    names: dict[object, list[str]] = {}
    for name, tensor in _tensors(model):
        names.setdefault(_address(tensor) if tensor.numel() else name, []).append(name)
    return sorted(map(sorted, names.values()))


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def _address(tensor: Tensor) -> object:
    """Where a tensor's numbers lie; two tensors of one address are tied."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):  # a tensor subclass that holds several
        return id(tensor)


def _stateless(module: nn.Module) -> bool:
    """A module that holds nothing, such as a ReLU: to share it does no harm."""
    return not any(True for _ in module.parameters()) and not any(True for _ in module.buffers())


def _same(a: Tensor, b: Tensor | None) -> bool:
    return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def _called(name: str) -> str:
    return name or "the model"


def _type_name(module: nn.Module | None) -> str:
    return "gone" if module is None else f"{type(module).__module__}.{type(module).__qualname__}"
