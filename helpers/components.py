"""The parts of the course model, by name: what each weighs, which tensors it makes, what rounding it alone would do.

Rounding is simulated in float, so that any component, any block and any number of bits can be asked alone: what
"quantize only the probabilities" costs has no int8 kernel, but an answer. Introduced in unit 04.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional

from helpers.models import TransformerLM
from helpers.quantizable import QuantizableLM, quantizable
from helpers.rounding import round_to_nearest


@dataclass(frozen=True)
class Component:
    """Names of modules, without the block they are in: those that hold its weights, those that make its tensors."""

    weights: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()


COMPONENTS: dict[str, Component] = {  # in the order of the data flow
    "embedding": Component(weights=("embedding",), tensors=("embedding",)),
    "positions": Component(weights=("positions",)),
    "norm": Component(weights=("norm1", "norm2", "norm"), tensors=("norm1", "norm2", "norm")),
    "query": Component(weights=("attention.q",), tensors=("attention.q",)),
    "key": Component(weights=("attention.k",), tensors=("attention.k",)),
    "value": Component(weights=("attention.v",), tensors=("attention.v",)),
    "scores": Component(tensors=("attention.scores",)),
    "probabilities": Component(tensors=("attention.quant",)),
    "mix": Component(tensors=("attention.mix",)),
    "out": Component(weights=("attention.out",), tensors=("attention.out",)),
    "up": Component(weights=("ffn.up",), tensors=("ffn.up",)),
    "gelu": Component(tensors=("ffn.quant",)),
    "down": Component(weights=("ffn.down",), tensors=("ffn.down",)),
    "residual": Component(tensors=("quant", "add1", "add2")),
    "head": Component(weights=("head",), tensors=("head",)),
}


def weight_names(model: TransformerLM, component: str, blocks: Iterable[int] | None = None) -> list[str]:
    """Names of the component's parameters, biases included, and of the table of positions (a buffer).

    `blocks` keeps those of some blocks only; what stands outside of all blocks is then left out.
    """
    tensors = [name for name, _ in model.named_parameters(remove_duplicate=False)] + ["positions"]
    return [name for name in tensors if _belongs(_owner(name), _component(component).weights, blocks)]


def weight_bytes(model: TransformerLM, component: str) -> int:
    """Float32 bytes of the component's weights; a head that is tied to the embedding adds none of its own."""
    if component == "head" and model.config.tied_head:
        return 0
    return 4 * sum(_weight(model, name).numel() for name in weight_names(model, component))


@torch.no_grad()
def recorded(model: TransformerLM, ids: Tensor) -> dict[str, list[Tensor]]:
    """The float tensors that each component makes from `ids` (batch, time), in the order in which they are made."""
    twin, sites = _with_sites(model)
    made: dict[str, Tensor] = {}
    for path, site in sites.items():
        site.register_forward_hook(lambda _site, _inputs, output, path=path: made.update({path: output}))
    twin(ids)
    return {
        name: [tensor for path, tensor in made.items() if _belongs(path, part.tensors, None)]
        for name, part in COMPONENTS.items()
    }


@torch.no_grad()
def simulated(
    model: TransformerLM,
    components: Iterable[str],
    calibration: Tensor,
    weight_bits: int | None = 8,
    tensor_bits: int | None = 8,
    group_size: int | str | None = "channel",
    blocks: Iterable[int] | None = None,
) -> QuantizableLM:
    """A float twin of `model` in which only the named components are rounded; `model` is not touched.

    Parameters
    ----------
    model : TransformerLM
    components : iterable of str
        Keys of `COMPONENTS`.
    calibration : Tensor, int64, (batch, time)
        Ids that set the range of each tensor: its minimum and maximum, widened to include 0.
    weight_bits, tensor_bits : int or None
        Bits of the rounded matrices (symmetric) and tensors (one affine scale each); None leaves them alone. What
        LayerNorm and biases hold stays float, as in PyTorch's int8 layers.
    group_size : int, "channel" or None
        Weights that share a scale: so many of a row, a row, the whole matrix.
    blocks : iterable of int, or None
        Only in these blocks; None means everywhere.

    Raises
    ------
    ValueError
        If a component does not exist.
    """
    components = list(components)
    blocks = None if blocks is None else set(blocks)
    weights = {n for c in components for n in weight_names(model, c, blocks)} if weight_bits else set()
    patterns = [pattern for c in components for pattern in _component(c).tensors] if tensor_bits else []
    twin, sites = _with_sites(model)
    if patterns:
        twin(calibration)
    for path, site in sites.items():
        site.finish(tensor_bits if _belongs(path, tuple(patterns), blocks) else None)
    for name in weights:
        weight = _weight(twin, name)
        if weight.dim() == 2:
            size = weight.shape[1] if group_size == "channel" else group_size
            weight.copy_(round_to_nearest(weight, weight_bits, size))
    return twin


class _Site(nn.Module):
    """Stands where a tensor is made: first it looks at the tensor, after `finish` it rounds it (or does nothing)."""

    def __init__(self) -> None:
        super().__init__()
        self.tensor: Tensor | None = None
        self.bits: int | None = None
        self.finished = False

    def finish(self, bits: int | None) -> None:
        if bits:
            low, high = min(float(self.tensor.min()), 0.0), max(float(self.tensor.max()), 0.0)
            self.qmax = 2**bits - 1
            self.scale = (high - low) / self.qmax or 1.0
            self.zero_point = round(-low / self.scale)
        self.bits, self.tensor, self.finished = bits, None, True

    def forward(self, x: Tensor) -> Tensor:
        if not self.finished:
            self.tensor = x
            return x
        if not self.bits:
            return x
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, self.qmax)


def _with_sites(model: TransformerLM) -> tuple[QuantizableLM, dict[str, _Site]]:
    """A float twin (head and embedding untied) with a site behind everything that makes a tensor."""
    twin = quantizable(model, residual="int8")
    twin.head.weight = nn.Parameter(twin.head.weight.detach().clone())
    sites = {}
    patterns = tuple(pattern for part in COMPONENTS.values() for pattern in part.tensors)
    for path, module in twin.named_modules():
        if _belongs(path, patterns, None):
            sites[path] = site = _Site()
            if isinstance(module, FloatFunctional):
                module.activation_post_process = site
            else:
                module.register_forward_hook(lambda _module, _inputs, output, site=site: site(output))
    return twin, sites


def _component(name: str) -> Component:
    if name not in COMPONENTS:
        raise ValueError(f'there is no component "{name}": choose one of {", ".join(COMPONENTS)}.')
    return COMPONENTS[name]


def _weight(model: TransformerLM, name: str) -> Tensor:
    return model.positions if name == "positions" else model.get_parameter(name)


def _owner(name: str) -> str:
    """ "blocks.0.ffn.up.weight" -> "blocks.0.ffn.up"; a buffer of the model itself is its own owner."""
    return name.rpartition(".")[0] or name


def _belongs(path: str, patterns: tuple[str, ...], blocks: Iterable[int] | None) -> bool:
    if not path.startswith("blocks."):
        return blocks is None and path in patterns
    _, block, rest = path.split(".", 2) if path.count(".") >= 2 else (*path.split("."), "")
    return rest in patterns and (blocks is None or int(block) in blocks)
