"""Integer arithmetic of an int8 Linear layer: scaling sums without a float. Built by hand in unit 03."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from helpers import watched


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
def floats_made(function: Callable | None = None) -> Iterator[list[str]]:
    """Watch what is computed: a list that fills with the operations whose result is not made of integers.

    It sees functions and methods of tensors in this ``with`` block, and what NumPy and Python make of numbers that came
    out of tensors; behind them, what the text of `function` says (`helpers.watched`).
    """
    found = []

    def see(name: str, operands: tuple, result: object) -> None:
        for one in result if isinstance(result, tuple | list) else [result]:
            if watched.is_float(one):
                kind = str(getattr(one, "dtype", type(one).__name__)).removeprefix("torch.")
                found.append(f"{name} ({kind})")

    with watched.watching(see):
        yield found
    if function is not None:
        found += watched.floats_in_text(function)


@contextmanager
def matrices_multiplied(length: int, products: int) -> Iterator[list[str]]:
    """Watch what is multiplied: a list that fills with operations on two arrays with an axis of this length.

    Sums are no such thing: a matrix of ones, or one that is the same all along that axis, may be multiplied. `products`
    is how many multiplications of two single numbers make a matrix product.
    """
    found: list[str] = []
    singles = 0

    def see(name: str, operands: tuple, result: object) -> None:
        nonlocal singles
        bare = name.strip("_").removeprefix("i").removeprefix("r")
        if bare in ("mul", "multiply") and all(isinstance(one, int) or _numbers(one) == 1 for one in operands):
            singles += 1
            if singles == products:
                found.append("numbers one by one")
        if bare in _MULTIPLY:
            flat = [one for group in operands for one in (group if isinstance(group, tuple | list) else [group])]
            if sum(watched.varies(one, length) for one in flat) > 1:
                found.append(name.strip("_"))

    with watched.watching(see):
        yield found


def _numbers(value: object) -> int:
    return value.numel() if isinstance(value, Tensor) else getattr(value, "size", 0)


_MULTIPLY = {"mul", "multiply", "matmul", "mm", "bmm", "mv", "dot", "vdot", "inner", "nner", "einsum", "tensordot",
             "addmm", "addmv", "addbmm", "baddbmm", "linear", "addcmul", "addcmul_", "int_mm", "_int_mm", "bilinear",
             "conv1d", "conv2d"}  # fmt: skip
