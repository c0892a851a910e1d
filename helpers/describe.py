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


def weight_dtypes(model: nn.Module) -> dict[str, str]:
    """Dtype of the weight of every leaf module that has one, packed weights included: ``{"head": "torch.qint8"}``."""
    dtypes = {}
    for name in layer_types(model):
        module = model.get_submodule(name) if name else model
        weight = getattr(module, "weight", None)
        weight = weight() if callable(weight) else weight  # PyTorch's quantized modules have a method there
        if isinstance(weight, torch.Tensor):
            dtypes[name] = str(weight.dtype)
    return dtypes


def _has_modules(module: nn.Module) -> bool:
    """True for a container; packed parameters of a quantized layer do not make it one."""
    return any(not type(child).__name__.endswith("PackedParams") for child in module.children()) or (
        type(module).__name__.endswith("PackedParams")
    )
