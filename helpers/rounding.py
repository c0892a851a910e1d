"""Round-to-nearest weight quantization, simulated in float: what a weight becomes, not how it is stored.

Used to ask "what would b bits cost?" of a whole model in a second, before any kernel exists for b bits.
Units 02 and 03 build the pieces by hand.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def round_to_nearest(weight: Tensor, bits: int, group_size: int | None, symmetric: bool = True) -> Tensor:
    """Replace each weight by the nearest point of a `bits`-bit grid with one scale per group.

    Parameters
    ----------
    weight : Tensor, float, (out_features, in_features)
    bits : int
        2 to 8.
    group_size : int or None
        Consecutive weights of a row that share a scale: `in_features` is per-channel, 32 a usual group, None
        per-tensor.
    symmetric : bool
        True: codes from ``-(2**(bits-1) - 1)`` to ``2**(bits-1) - 1`` and zero point 0. False: all ``2**bits``
        codes between the group's minimum and maximum (both widened to include 0), with a zero point.

    Returns
    -------
    Tensor, float, shape of `weight`

    Raises
    ------
    ValueError
        If `bits` is outside 2..8 or `group_size` does not divide a row.

    Reference: Krishnamoorthi 2018, arXiv:1806.08342, section 2.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits={bits} is outside 2..8.")
    if group_size is not None and weight.shape[1] % group_size:
        raise ValueError(f"group_size={group_size} does not divide a row of {weight.shape[1]} weights.")
    groups = weight.reshape(1, -1) if group_size is None else weight.reshape(-1, group_size)  # (groups, group_size)
    if symmetric:
        qmax = 2 ** (bits - 1) - 1
        scale = _positive(groups.abs().amax(dim=1, keepdim=True) / qmax)
        codes = (groups / scale).round().clamp(-qmax, qmax)
        return (codes * scale).reshape(weight.shape)
    qmax = 2**bits - 1
    low, high = groups.amin(dim=1, keepdim=True).clamp(max=0), groups.amax(dim=1, keepdim=True).clamp(min=0)
    scale = _positive((high - low) / qmax)
    zero_point = (-low / scale).round().clamp(0, qmax)
    codes = ((groups / scale).round() + zero_point).clamp(0, qmax)
    return ((codes - zero_point) * scale).reshape(weight.shape)


def with_rounded_linears(
    model: nn.Module, bits: int, group_size: int | str | None, symmetric: bool = True
) -> nn.Module:
    """A copy of `model` whose every Linear weight is rounded; `group_size` "channel" means one scale a row.

    A weight shared with an embedding is rounded in the Linear only: the copy's tie is cut.
    """
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for module in rounded.modules():
            if isinstance(module, nn.Linear):
                size = module.in_features if group_size == "channel" else group_size
                module.weight = nn.Parameter(round_to_nearest(module.weight, bits, size, symmetric))
    return rounded


def _positive(scale: Tensor) -> Tensor:
    """A group of zeros gets scale 1, so that it stays zero instead of becoming nan."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))
