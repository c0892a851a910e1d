"""Integer arithmetic of an int8 Linear layer: scaling sums without a float. Built by hand in unit 03."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def fixed_point(multipliers: Tensor) -> tuple[Tensor, Tensor]:
    """Write each multiplier as ``m0 * 2**-31 * 2**-n`` with two integers.

    Parameters
    ----------
    multipliers : Tensor, float64, (out_features,)
        Positive, from ``2**-30`` up to, but not including, ``2**8``.

    Returns
    -------
    (Tensor, Tensor)
        `m0`, from ``2**30`` to ``2**31 - 1``, and `n`, -8 to 30, both int64, (out_features,).

    Raises
    ------
    ValueError
        If a multiplier is outside of the range above.

    Reference: Jacob et al. 2018, arXiv:1712.05877, section 2.2.
    """
    multipliers = torch.as_tensor(multipliers, dtype=torch.float64)
    if not ((multipliers >= 2.0**-30) & (multipliers < 2.0**8)).all():
        raise ValueError("a multiplier is outside of the range from 2**-30 to 2**8: look at the three scales.")
    halves, exponents = torch.frexp(multipliers)  # 0.5 <= halves < 1, multipliers = halves * 2**exponents
    m0, n = (halves * 2.0**31).round().to(torch.int64), -exponents.to(torch.int64)
    return torch.where(m0 == 2**31, 2**30, m0), torch.where(m0 == 2**31, n - 1, n)


def requantize(sums: Tensor, m0: Tensor, n: Tensor, zero_point: int, qmin: int = 0, qmax: int = 255) -> Tensor:
    """Output codes of int32 `sums` (rows, out_features): scaled, rounded, moved by the zero point, clamped; uint8.

    Halves are rounded up. `m0` and `n` are what `fixed_point` returns.
    """
    shift = n + 31
    scaled = (sums.to(torch.int64) * m0 + (1 << (shift - 1))) >> shift  # (rows, out_features)
    return (scaled + zero_point).clamp(qmin, qmax).to(torch.uint8)


@contextmanager
def floats_made() -> Iterator[list[str]]:
    """Watch PyTorch: a list that fills with the operations whose result is not made of integers.

    It sees functions and methods of tensors in this ``with`` block, not what NumPy or plain Python compute.
    """
    found: list[str] = []
    with _Watch(found):
        yield found


class _Watch(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, Tensor) and (one.is_floating_point() or one.is_complex() or one.is_quantized):
                self.found.append(f"{name} ({str(one.dtype).removeprefix('torch.')})")
        return result
