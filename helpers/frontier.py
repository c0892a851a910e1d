"""Which configurations are worth a look? Size by one rule, quality by document, and who is dominated by nobody.

The rule of size: what an honest file must hold. Codes are packed densely; each scale takes 4 bytes and each zero point
1; what is not quantized takes 4 bytes a number; a matrix that embedding and head share counts once, as long as both use
the same scheme. Names, padding and the file's header are not counted. `benchmarks/` and unit 05 use it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from helpers import metrics
from helpers.models import TransformerLM
from helpers.rounding import round_to_nearest

FLOAT_BYTES, SCALE_BYTES, ZERO_POINT_BYTES = 4, 4, 1


@dataclass(frozen=True)
class Scheme:
    """How a matrix is stored: bits, weights that share a scale (a number, "channel" = a row, None = all), symmetric."""

    bits: int = 8
    group: int | str | None = "channel"
    symmetric: bool = True

    def group_size(self, weight: Tensor) -> int | None:
        return weight.shape[1] if self.group == "channel" else self.group

    def bytes(self, weight: Tensor) -> int:
        """Bytes of the codes, scales and zero points of `weight`; a ValueError if groups do not fill its rows."""
        size = self.group_size(weight)
        if size is not None and (size < 1 or weight.shape[1] % size):
            raise ValueError(f"groups of {size} do not divide rows of {weight.shape[1]} weights.")
        scales = 1 if size is None else weight.numel() // size
        each = SCALE_BYTES + (0 if self.symmetric else ZERO_POINT_BYTES)
        return math.ceil(weight.numel() * self.bits / 8) + scales * each


Plan = Mapping[str, Scheme]  # name of a Linear or Embedding -> its scheme; who is not named stays float


def matrices(model: nn.Module) -> dict[str, Tensor]:
    """The weight of every Linear and Embedding, by module name, in the order of the model."""
    return {name: m.weight for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding)}


def everywhere(model: nn.Module, scheme: Scheme) -> dict[str, Scheme]:
    """The plan that gives every matrix of `model` the same scheme."""
    return dict.fromkeys(matrices(model), scheme)


def artefact_bytes(model: TransformerLM, plan: Plan, tensor_scales: int = 0) -> int:
    """Bytes of `model` stored by `plan`; `tensor_scales` is the number of activations with a scale and a zero point.

    Raises
    ------
    ValueError
        If `plan` names what is no Linear or Embedding of the model, or a group does not divide a row.
    """
    if unknown := sorted(set(plan) - set(matrices(model))):
        raise ValueError(f"the plan names {', '.join(unknown)}: the model has no such Linear or Embedding.")
    total = tensor_scales * (SCALE_BYTES + ZERO_POINT_BYTES)
    stored: set[tuple[int, Scheme | None]] = set()
    for name, weight in matrices(model).items():
        key = (weight.data_ptr(), plan.get(name))
        if key not in stored:
            stored.add(key)
            total += plan[name].bytes(weight) if name in plan else FLOAT_BYTES * weight.numel()
    pointers = {weight.data_ptr() for weight in matrices(model).values()}
    return total + sum(FLOAT_BYTES * p.numel() for p in model.parameters() if p.data_ptr() not in pointers)


@torch.no_grad()
def rounded(model: TransformerLM, plan: Plan) -> TransformerLM:
    """A float copy of `model` whose matrices are rounded by `plan`: its quality is right, its size and time are not."""
    twin = copy.deepcopy(model)
    for name, scheme in plan.items():
        module = twin.get_submodule(name)
        original = model.get_submodule(name).weight
        module.weight = nn.Parameter(
            round_to_nearest(original, scheme.bits, scheme.group_size(original), scheme.symmetric)
        )
    return twin


def bits_by_document(model: nn.Module, windows: Tensor) -> Tensor:
    """Bits per byte of each window (documents, length), float64 (documents,)."""
    return torch.cat([metrics.next_byte_bits(model, rows).mean(dim=1) for rows in windows.split(16)])


def frontier(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other point dominates; on every axis smaller is better, equal points stay.

    Raises
    ------
    ValueError
        If a number is nan: nobody would dominate it.
    """
    if broken := [i for i, point in enumerate(points) if any(map(math.isnan, point))]:
        raise ValueError(f"point {broken[0]} holds nan: what cannot be compared is on no frontier.")

    def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
        return tuple(a) != tuple(b) and all(x <= y for x, y in zip(a, b, strict=True))

    return [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]
