"""A model as plain data: what a check may look at without touching live objects. Introduced in unit 01."""

from __future__ import annotations

import torch
from torch import nn


def layer_types(model: nn.Module) -> dict[str, str]:
    """Name of every leaf module and its full type: ``{"blocks.0.ffn.up": "torch.nn.modules.linear.Linear"}``."""
    leaves = ((name, module) for name, module in model.named_modules() if not _has_modules(module))
    return {name: f"{type(module).__module__}.{type(module).__qualname__}" for name, module in leaves}


def is_training(model: nn.Module) -> bool:
    """True if the model is in training mode (its root: PyTorch's freshly quantized layers always say that they are)."""
    return model.training


def dequantized_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weight of every leaf module that has one as a float tensor, packed int8 weights multiplied by their scale."""
    weights = {}
    for name in layer_types(model):
        weight = _weight(model.get_submodule(name))
        if weight is not None:
            weights[name] = weight.dequantize() if weight.is_quantized else weight.detach()
    return weights


def weight_dtypes(model: nn.Module) -> dict[str, str]:
    """Dtype of the weight of every leaf module that has one, packed weights included: ``{"head": "torch.qint8"}``."""
    weights = {name: _weight(model.get_submodule(name)) for name in layer_types(model)}
    return {name: str(weight.dtype) for name, weight in weights.items() if weight is not None}


def int8_linears(model: nn.Module) -> list[tuple[str, float, int]]:
    """Name, output scale and output zero point of every statically quantized Linear layer, in the model's order."""
    return [
        (name, float(module.scale), int(module.zero_point))
        for name, module in model.named_modules()
        if isinstance(module, torch.ao.nn.quantized.Linear)
        and not isinstance(module, torch.ao.nn.quantized.dynamic.Linear)  # a subclass whose scale means nothing
    ]


def _weight(module: nn.Module) -> torch.Tensor | None:
    weight = getattr(module, "weight", None)
    weight = weight() if callable(weight) else weight  # PyTorch's quantized modules have a method there
    return weight if isinstance(weight, torch.Tensor) else None


def _has_modules(module: nn.Module) -> bool:
    """True for a container; packed parameters of a quantized layer do not make it one."""
    return any(not type(child).__name__.endswith("PackedParams") for child in module.children()) or (
        type(module).__name__.endswith("PackedParams")
    )
