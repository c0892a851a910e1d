"""Affine quantization of a tensor: real number = scale * (code - zero_point). Built by hand in unit 02.

Codes are plain integer tensors (int32 here, whatever the range), the scale and zero point stand beside them.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 2.0**-23  # float32 machine epsilon: the smallest scale, as in PyTorch's observers


def qparams(low: float, high: float, qmin: int = 0, qmax: int = 255) -> tuple[float, int]:
    """Scale and zero point that spread the range from `low` to `high`, widened to include 0, over the codes.

    Parameters
    ----------
    low, high : float
        Smallest and largest real number, ``low <= high``.
    qmin, qmax : int
        Smallest and largest code.

    Returns
    -------
    (float, int)
        Scale (at least 2**-23) and zero point (between `qmin` and `qmax`).

    Raises
    ------
    ValueError
        If `low` is greater than `high`, or one of them is not finite.

    Reference: Jacob et al. 2018, arXiv:1712.05877, section 2.1.
    """
    if not (low <= high and abs(low) < float("inf") and abs(high) < float("inf")):
        raise ValueError(f"the range from {low} to {high} cannot be quantized: give two finite numbers in order.")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / (qmax - qmin), EPS)
    return scale, min(max(qmin - round(low / scale), qmin), qmax)


def quantize(x: Tensor, scale: float, zero_point: int, qmin: int = 0, qmax: int = 255) -> Tensor:
    """Codes of `x`: ``clamp(round(x / scale) + zero_point, qmin, qmax)``, int32, rounding exact halves to even."""
    return ((x / scale).round() + zero_point).clamp(qmin, qmax).to(torch.int32)


def dequantize(codes: Tensor, scale: float, zero_point: int) -> Tensor:
    """The real numbers that `codes` stand for: ``scale * (codes - zero_point)``, float32."""
    return (codes - zero_point) * scale


def fake_quantize(x: Tensor, scale: float, zero_point: int, qmin: int = 0, qmax: int = 255) -> Tensor:
    """What becomes of `x` when it is quantized and dequantized again: float32, same shape."""
    return dequantize(quantize(x, scale, zero_point, qmin, qmax), scale, zero_point)
