# %% [markdown]
# # PyTorch quantization APIs
#
# Build quantization from two numbers, a scale and a zero point; then find the same two numbers inside every quantization API
# that PyTorch has, prove that they agree with yours, and repair ten programs in which they do not.
#
# | At a glance | |
# |---|---|
# | **You will** | map numbers to codes and back; choose ranges by observers and by search; quantize a network statically, dynamically, with fake quantization, with torchao and with PT2E; compare size, error and time; diagnose ten real failures |
# | **You need** | unit 01; gradients as far as `loss.backward()` |
# | **Time** | about 7 hours, in four sittings: sections 1 to 3; 4 to 6; 7 and 8; the clinic, section 9 |
# | **Graded** | 9 exercises, 19 points, and an error clinic of 10 patients, 14 points |
#
# *Rhea wraps a stone in a cloth and hands it to Cronus, who swallows his children as they are born. He weighs it in his hand:
# the right size, about the right weight. He swallows it and notices nothing. A quantized network is such a stone. The question
# of this unit is what, exactly, one would have to measure to notice.*

# %%
import copy
import importlib
import math
import warnings
from collections.abc import Callable

import ipywidgets
import numpy as np
import torch
import torch.ao.quantization as tq
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import (
    affine,
    checks,
    data,
    describe,
    errors,
    int8,
    interactive,
    known_warnings,
    latency,
    metrics,
    next_byte,
    plots,
    rounding,
    tables,
)
from helpers.checkpoint import load_course_model

known_warnings.hide()
engine = int8.choose_engine()

# %% [markdown]
# ## 1. The number line
#
# How can the integers from 0 to 15 stand for numbers between −1 and 2? Lay a ruler along the number line. Two numbers describe the ruler:
#
# - the **scale** $s$ is the distance between two of its marks,
# - the **zero point** $z$ is the mark that lies on the real number 0.
#
# A real number $x$ becomes the number of the nearest mark, its **code** $q$, and a code becomes the real number where its mark is:
#
# $$q = \text{clamp}\!\left(\text{round}\!\left(\frac{x}{s}\right) + z,\ q_\min,\ q_\max\right) \qquad\qquad \hat x = s \cdot (q - z)$$
#
# $q_\min$ and $q_\max$ are the first and last mark: 0 and 15 with 4 bits, 0 and 255 with 8 bits (`uint8`), −128 and 127 for `int8`.
# *clamp* moves what lies beyond the ruler to its end. $\hat x$ is the **reconstruction**. This is called **affine** quantization
# (or asymmetric). In the picture, follow a point from the top (real) through its code to the bottom (reconstruction).

# %% tags=["nbval-check-output"]
x = torch.tensor([-0.93, -0.51, -0.12, 0.0, 0.37, 0.66, 1.15, 1.72, 2.35])
scale, zero_point = affine.qparams(-1.0, 2.0, qmin=0, qmax=15)
codes = affine.quantize(x, scale, zero_point, 0, 15)
back = affine.dequantize(codes, scale, zero_point)
print("scale", round(scale, 4), "zero point", zero_point)
print("codes", codes.tolist())
print("reconstruction", [round(v, 2) for v in back.tolist()])

fig, ax = plots.figure(height=3.0)
plots.number_line(ax, x.tolist(), codes.tolist(), back.tolist(), scale, zero_point, 0, 15)
plots.show(
    fig,
    caption="Real values (top), their codes (middle) and the reconstruction (bottom). Zero is met exactly; the last value lies "
    "beyond the ruler and is clamped to its end.",
    alt="Three rows of points joined by lines: nine real values, sixteen marks numbered 0 to 15, and nine reconstructed values. "
    "Lines are nearly vertical, except for the last value, 2.35, which moves left to 2.0.",
)

# %% [markdown]
# By hand: the range is $2 - (-1) = 3$, and 16 marks have 15 gaps, so $s = 3/15 = 0.2$. The mark on zero is five gaps from the left
# end: $z = 0 - \text{round}(-1/0.2) = 5$. Then $0.37 / 0.2 = 1.85$, rounded 2, plus 5 is code 7, which stands for
# $0.2 \cdot (7 - 5) = 0.4$. Inside the range, the error is at most half a gap: $|x - \hat x| \le s/2$.
#
# **Zero must lie on a mark.** Zeros are special: padding is zero, and ReLU turns each negative input into exactly zero. If zero
# lay between two marks, *all* of these numbers would get the same error, and errors of the same sign add up. Look at a sum
# of 4,096 numbers of which most are zero, once with a ruler that has a mark on zero, and once with one shifted by
# 0.4 of a gap:

# %% tags=["nbval-check-output"]
numbers = torch.randn(4096, generator=torch.Generator().manual_seed(1)).sub(1).relu()
scale, zero_point = affine.qparams(0.0, numbers.max().item())
on_a_mark = affine.fake_quantize(numbers, scale, zero_point)
between_marks = scale * ((numbers / scale - 0.4).round() + 0.4)  # every mark 0.4 of a gap to the right
print(f"share of zeros               {(numbers == 0).float().mean():.2f}")
print(f"true sum                     {numbers.sum():.1f}")
print(f"sum, zero on a mark          {on_a_mark.sum():.1f}")
print(f"sum, zero between two marks  {between_marks.sum():.1f}")

# %% [markdown]
# Both rulers have the same gaps, and no error is larger than half a gap with either. But with the second, every zero is wrong by 0.4 of a gap, always to
# the same side. Only the first may be used. So two things are done to every range: it is **widened to include 0**, and the zero point is rounded to a whole number and clamped to the codes.
#
# ### Exercise 2.1: scale and zero point
# *Difficulty 2 of 5 · 15 minutes · 2 points*
#
# $$s = \frac{\max(\text{high}, 0) - \min(\text{low}, 0)}{q_\max - q_\min} \qquad z = \text{clamp}\!\left(q_\min - \text{round}\!\left(\frac{\min(\text{low}, 0)}{s}\right), q_\min, q_\max\right)$$
#
# A tensor of zeros would give $s = 0$. PyTorch's observers use at least $2^{-23}$, the machine epsilon of `float32`. Do the same.


# %% nbgrader={"grade": false, "grade_id": "ex_2_1", "locked": false, "schema_version": 3, "solution": true, "task": false}
def affine_qparams(low: float, high: float, qmin: int, qmax: int) -> tuple[float, int]:
    """Scale and zero point that spread the range from `low` to `high`, widened to include 0, over the codes.

    Parameters
    ----------
    low, high : float
        Smallest and largest real number, ``low <= high``; both may lie on the same side of 0.
    qmin, qmax : int
        Smallest and largest code.

    Returns
    -------
    (float, int)
        Scale, at least ``2**-23``, and zero point, a whole number between `qmin` and `qmax`.

    Example
    -------
    >>> affine_qparams(-1.0, 2.0, 0, 15)
    (0.2, 5)
    """
    ### BEGIN SOLUTION
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / (qmax - qmin), 2.0**-23)
    zero_point = qmin - round(low / scale)
    return scale, max(qmin, min(qmax, zero_point))
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_2_1_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 2.1: run this cell.
import math

import torch
from torch.ao.quantization import MinMaxObserver

from helpers import checks


@checks.isolated
def check_ex_2_1() -> None:
    def clamped(code: float, qmin: int, qmax: int) -> int:
        return min(max(int(code), qmin), qmax)

    with checks.check(
        "2.1", "your scale and zero point are those of PyTorch's MinMaxObserver, on seventeen kinds of range"
    ):
        for low, high, qmin, qmax in [
            (-1.0, 2.0, 0, 15),
            (-0.83, 2.21, 0, 255),
            (-0.4, 3.07, 0, 255),
            (-3.07, 0.4, -128, 127),
            (2.0, 7.0, 0, 255),
            (-7.3, -2.0, 0, 255),
            (2.0, 7.0, -128, 127),
            (-7.3, -2.0, -128, 127),
            (-0.17, 13.9, 0, 127),
            (0.5, 0.5, 0, 127),
            (-0.625, 3.125, 0, 15),  # low / scale is -2.5, exactly
            (-0.875, 2.875, -8, 7),  # low / scale is -3.5
            (-0.375, 3.375, -7, 8),  # -1.5, and qmin is odd
            (-0.75, 126.25, -127, 127),  # -1.5
            (0.0, 0.0, 0, 255),
            (0.0, 0.0, -128, 127),
            (-1e-9, 3e-9, 0, 255),
        ]:
            observer = MinMaxObserver(dtype=torch.quint8 if qmin == 0 else torch.qint8, quant_min=qmin, quant_max=qmax)
            observer(torch.tensor([low, high]))
            right_scale, right_zero = (v.item() for v in observer.calculate_qparams())
            what = f"for low={low}, high={high}, qmin={qmin}, qmax={qmax} your"
            by_zero = f"for low={low}, high={high} you divide by zero: the scale must be at least 2**-23."
            try:
                answer = affine_qparams(low, high, qmin, qmax)
            except ZeroDivisionError:
                raise AssertionError(by_zero) from None
            except ValueError as error:
                assert "NaN" not in str(error), by_zero
                raise
            checks.given(answer, f"{what} answer")
            assert isinstance(answer, tuple | list) and len(answer) == 2, (
                f"{what} answer should be a pair: scale, zero point."
            )
            assert not any(isinstance(v, str) for v in answer), f"{what} answer should be two numbers, not text."
            scale, zero = float(answer[0]), float(answer[1])
            assert not math.isnan(zero), f"{by_zero} (In a tensor 0 / 0 is nan, and raises nothing.)"
            if (low, high) == (-1.0, 2.0):
                assert (scale, zero) != (5.0, 0.2), f"{what} answer is turned around: the scale comes first."
            span = qmax - qmin
            mistakes = {
                "there are qmax - qmin gaps between the codes, one fewer than codes.": right_scale * span / (span + 1),
                "the range was not widened to include 0.": (high - low) / span,
                "only the larger side was used, as for symmetric codes.": max(abs(low), abs(high)) / span,
                "that is the scale for 256 codes: qmin and qmax say how many there are.": right_scale * span / 255,
                "2**-23 is added; it is the smallest scale that is allowed, so take the larger of the two.": right_scale
                + 2.0**-23,
                "the smallest scale is 2**-23; yours is the smallest *range*.": 2.0**-23 / span,
            }
            if high - low < 1e-6 and low <= 0:
                mistakes = {
                    "a scale of 0 cannot divide anything: use at least 2**-23.": 0.0,
                    "only a range of exactly 0 got 2**-23; no scale may be smaller.": (high - low) / span,
                    "the smallest scale is 2**-23; yours is the smallest *range*.": 2.0**-23 / span,
                    "the smallest scale is 2**-23, the epsilon of float32; that is the one of float64.": 2.0**-52,
                }
                if high == low:
                    del mistakes["only a range of exactly 0 got 2**-23; no scale may be smaller."]
            checks.number(answer[0], right_scale, f"{what} scale", mistakes=mistakes, rtol=2e-6)
            assert zero == int(zero), (
                f"{what} zero point is {zero:.4g}, not a whole number: it must be rounded, so that the real 0 lies on a mark."
            )
            assert qmin <= zero <= qmax, (
                f"{what} zero point is {int(zero)}: it is not clamped to the codes from qmin={qmin} to qmax={qmax} (or the range was "
                "not widened before it was computed)."
            )
            steps = round(min(low, 0.0) / right_scale, 4)  # a whole number or an exact half, where it is one
            mistakes = {"it is clamped to 0 to 255, not to qmin and qmax.": min(max(right_zero, 0), 255)}
            if steps % 1 == 0.5:
                mistakes = {}
                if qmin % 2:
                    inside = clamped(round(qmin - steps), qmin, qmax)
                    mistakes[
                        "qmin is inside the rounding: with an odd qmin exact halves go the other way. Round low / scale alone."
                    ] = inside
                mistakes |= {
                    "low / scale is an exact half there, and goes to the even neighbour, as Python's round does.": clamped(
                        qmin + math.floor(-steps + 0.5), qmin, qmax
                    )
                }
            elif steps:
                mistakes = {
                    "codes start at qmin, not at 0: it is qmin minus the rounded low / scale.": clamped(
                        -round(steps), qmin, qmax
                    ),
                    "the sign is wrong: with a negative low it lies above qmin.": clamped(
                        qmin + round(steps), qmin, qmax
                    ),
                    "it is cut off (int) instead of rounded (round).": clamped(qmin - math.ceil(steps), qmin, qmax),
                    "it is always rounded up.": clamped(qmin - math.floor(steps), qmin, qmax),
                }
            checks.number(zero, right_zero, f"{what} zero point", mistakes=mistakes, rtol=1e-9)
    ### BEGIN HIDDEN TESTS
    from helpers import golden

    generator = torch.Generator().manual_seed(201)
    for qmin, qmax in [(0, 255), (-128, 127), (0, 127), (0, 15), (-8, 7), (-100, 60)]:
        for _ in range(40):
            low, high = (
                (torch.randn(2, generator=generator) * 10.0 ** torch.randint(-3, 3, (1,), generator=generator))
                .sort()[0]
                .tolist()
            )
            scale, zero = affine_qparams(low, high, qmin, qmax)
            wide_low, wide_high = min(low, 0.0), max(high, 0.0)
            exact = qmin - wide_low * (qmax - qmin) / (wide_high - wide_low)
            assert abs(scale - (wide_high - wide_low) / (qmax - qmin)) <= 1e-6 * scale, "wrong scale."
            assert float(zero) == int(zero) and qmin <= zero <= qmax, "the zero point is not a code."
            assert abs(zero - exact) <= 0.5 + 1e-4, "the zero point is not the nearest code."
    for low, high, qmin, qmax, code in [(-0.625, 3.125, 0, 15, 2), (-1.75, 2.0, -8, 7, -1), (-2.25, 13.5, 0, 63, 9)]:
        assert affine_qparams(low, high, qmin, qmax)[1] == code, "an exact half, or a whole number, is missed."
    halves = [
        (-0.375, 3.375, 0, 15, 2),
        (-0.875, 2.875, -8, 7, -4),
        (-1.125, 2.625, -9, 6, -5),
        (-0.125, 31.625, -63, 64, -63),
    ]
    for low, high, qmin, qmax, code in halves:
        assert affine_qparams(low, high, qmin, qmax)[1] == code, "an exact half goes to the even neighbour."
    for qmin, qmax in [(0, 255), (-128, 127), (-8, 7)]:
        scale, zero = affine_qparams(0.0, 0.0, qmin, qmax)
        assert abs(scale - 2**-23) < 1e-12 and zero == qmin, "wrong for a tensor of zeros."
        scale, zero = affine_qparams(-1e-9, 1e-9, qmin, qmax)
        assert abs(scale - 2**-23) < 1e-12 and zero == qmin, "wrong for a tiny range: the scale is at least 2**-23."
    for case in golden.load("dynamic_quantize_linear"):
        if max(0.0, *case["x"]) - min(0.0, *case["x"]) < 255 * 2**-23:
            continue  # ONNX Runtime has no smallest scale
        scale, zero = affine_qparams(min(case["x"]), max(case["x"]), 0, 255)
        assert abs(scale - case["scale"]) <= 1e-6 * scale and zero == case["zero_point"], (
            f"another scale or zero point than ONNX Runtime's for {case['name']}."
        )
    ### END HIDDEN TESTS


check_ex_2_1()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Three steps: widen the range, divide it by the number of gaps, find the code that lies on 0.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `min(low, 0.0)` and `max(high, 0.0)` widen. Codes `qmin` to `qmax` have `qmax - qmin` gaps. The real number `low` gets code
# `qmin`, so 0 gets a code that is `-low / scale` further.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `scale = max((high - low) / (…), 2.0**-23)`; then `zero_point = qmin - round(low / …)`, and clamp it with `min` and `max`.
# </details>

# %% [markdown]
# ### Exercise 2.2: quantize and dequantize
# *Difficulty 2 of 5 · 15 minutes · 2 points*
#
# Now the two formulas at the top of this section, for a whole tensor. Three traps are in them.
#
# **Rounding.** What is `round(2.5)`? Python, NumPy, PyTorch and ONNX all round an exact half to the *even* neighbour: 0.5 becomes
# 0, 1.5 becomes 2, 2.5 becomes 2. Rounding halves always up would push the mean up.
#
# **Clamping.** A number beyond the ruler must get the last code. Turned into `uint8` without a clamp, 256 becomes 0: the loudest
# number becomes the quietest.
#
# **Types.** Codes may come as `uint8`. In `uint8`, 3 − 5 is 254.

# %% tags=["nbval-check-output"]
print("round", torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]).round().tolist())
print("256 as uint8", torch.tensor([256]).to(torch.uint8).tolist())
print("3 - 5 in uint8", (torch.tensor([3], dtype=torch.uint8) - 5).tolist())


# %% nbgrader={"grade": false, "grade_id": "ex_2_2", "locked": false, "schema_version": 3, "solution": true, "task": false}
def quantize(x: Tensor, scale: float, zero_point: int, qmin: int, qmax: int) -> Tensor:
    """Codes of `x`: round ``x / scale`` (exact halves to even), add the zero point, clamp.

    Parameters
    ----------
    x : Tensor, float32, any shape; perhaps a view, or a parameter with requires_grad; is not changed
    scale : float
    zero_point, qmin, qmax : int

    Returns
    -------
    Tensor, int32, shape of `x`

    Example
    -------
    >>> quantize(torch.tensor([-0.93, 0.37, 2.35]), 0.2, 5, 0, 15)
    tensor([ 0,  7, 15], dtype=torch.int32)
    """
    ### BEGIN SOLUTION
    return (torch.round(x / scale) + zero_point).clamp(qmin, qmax).to(torch.int32)
    ### END SOLUTION


def dequantize(codes: Tensor, scale: float, zero_point: int) -> Tensor:
    """The real numbers that codes stand for.

    Parameters
    ----------
    codes : Tensor of any integer dtype (uint8, int8, int16, int32, int64), any shape; is not changed
    scale : float
    zero_point : int

    Returns
    -------
    Tensor, float32, shape of `codes`

    Example
    -------
    >>> dequantize(torch.tensor([0, 7, 15], dtype=torch.uint8), 0.2, 5)
    tensor([-1.0000,  0.4000,  2.0000])
    """
    ### BEGIN SOLUTION
    return (codes.to(torch.float32) - zero_point) * scale
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_2_2_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 2.2: run this cell.
import torch

from helpers import checks, samples


@checks.isolated
def check_ex_2_2() -> None:
    with checks.check(
        "2.2", "your codes and reconstructions are those of PyTorch's kernels, exact halves and ends included"
    ):
        generator = torch.Generator().manual_seed(22)
        x = torch.randn(400, generator=generator) * 3
        for scale, zero, qmin, qmax, dtype in [
            (0.0371, 96, 0, 255, torch.quint8),
            (0.0213, -4, -128, 127, torch.qint8),
        ]:
            stored = torch.quantize_per_tensor(x, scale, zero, dtype)
            right = stored.int_repr().int()
            with checks.untouched(x=x):
                codes = quantize(x, scale, zero, qmin, qmax)
            checks.given(codes, "what quantize returned")
            assert isinstance(codes, torch.Tensor) and not codes.is_quantized, (
                "what quantize returned should be a plain tensor of codes."
            )
            assert codes.dtype == torch.int32, (
                f"your codes are {codes.dtype}: they should be int32, for every range of codes."
            )
            steps = x / scale
            checks.close(
                codes,
                right,
                f"what quantize returned for scale={scale}, zero_point={zero}",
                mistakes={
                    "the numbers are cut off (int, trunc) instead of rounded.": (steps.trunc() + zero).clamp(
                        qmin, qmax
                    ),
                    "the numbers are rounded down (floor) instead of to the nearest code.": (
                        steps.floor() + zero
                    ).clamp(qmin, qmax),
                    "the codes are not clamped: some lie beyond qmin and qmax.": steps.round() + zero,
                    "the codes are not clamped before they become 8-bit numbers: they wrap around.": (
                        (steps.round() + zero - qmin).int() % 256 + qmin
                    ),
                    "x was multiplied by the scale instead of divided.": ((x * scale).round() + zero).clamp(qmin, qmax),
                    "the zero point was forgotten.": steps.round().clamp(qmin, qmax),
                    "the zero point was subtracted instead of added.": (steps.round() - zero).clamp(qmin, qmax),
                    "clamp comes last: you clamp before the zero point is added.": steps.round().clamp(qmin, qmax)
                    + zero,
                    "only the upper end is clamped: some codes lie below qmin.": (steps.round() + zero).clamp(max=qmax),
                    "only the lower end is clamped: some codes lie beyond qmax.": (steps.round() + zero).clamp(
                        min=qmin
                    ),
                    "the codes are clamped to 0 to 255, not to qmin and qmax.": (steps.round() + zero).clamp(0, 255),
                    "the codes are clamped to -qmax to qmax: qmin is its own number.": (
                        (steps.round() + zero).clamp(-qmax, qmax) if qmin else steps * torch.nan
                    ),
                },
                atol=0,
                rtol=0,
            )
            for form, odd in samples.awkward(x.view(20, 20)):
                what = f"what quantize returned for {form}, scale={scale}, zero_point={zero},"
                try:
                    with checks.untouched(x=odd):
                        codes = quantize(odd, scale, zero, qmin, qmax)
                except RuntimeError as error:
                    raise AssertionError(
                        f"quantize does not take {form}, though it holds the same numbers: {str(error).splitlines()[0]}"
                    ) from None
                checks.tensor(codes, (20, 20), what, torch.int32)
                checks.close(codes, right.view(20, 20), what, atol=0, rtol=0)
            for kind in (torch.int32, torch.uint8 if qmin == 0 else torch.int8, torch.int64):
                given = right.to(kind)
                with checks.untouched(codes=given):
                    answer = dequantize(given, scale, zero)
                checks.tensor(answer, x.shape, f"your reconstruction of {kind} codes", torch.float32)
                checks.close(
                    answer,
                    stored.dequantize(),
                    f"your reconstruction of {kind} codes",
                    atol=2e-4 * scale,
                    mistakes={
                        "the subtraction was done in the 8-bit type of the codes and wrapped around: make them float32 or int32 first.": (
                            given - zero
                        ).float()
                        * scale,
                        "the zero point was forgotten.": right.float() * scale,
                        "the zero point is subtracted before the scale is applied, not after.": right.float() * scale
                        - zero,
                        "divide to get codes, multiply to get back.": (right.float() - zero) / scale,
                        "the zero point was added instead of subtracted.": (right.float() + zero) * scale,
                    },
                )
        for count in ((1,), (0, 3), (1, 1)):
            shape = f"a tensor of shape {count}"
            checks.tensor(quantize(torch.zeros(count), 0.5, 3, 0, 255), count, f"what quantize returned for {shape}")
            small = torch.full(count, 7, dtype=torch.int32)
            checks.tensor(dequantize(small, 0.5, 3), count, f"your reconstruction of {shape}")
        for name, function, one, two, right in [
            (
                "quantize",
                lambda t: quantize(t, 0.5, 3, 0, 15),
                torch.tensor([1.0, -0.5]),
                torch.tensor([2.0, 0.5]),
                [[5, 2], [7, 4]],
            ),
            (
                "dequantize",
                lambda t: dequantize(t, 0.5, 3),
                torch.tensor([5, 2]),
                torch.tensor([7, 4]),
                [[1.0, -0.5], [2.0, 0.5]],
            ),
        ]:
            both = [function(one), function(two)]
            assert [answer.tolist() for answer in both] == right, (
                f"two calls of {name} with other numbers of the same shape, one after the other, should give {right[0]} and {right[1]}; "
                f"they hold {both[0].tolist()} and {both[1].tolist()}. Does your function keep something from call to call?"
            )
        for kind in (torch.int32, torch.int64):
            wide = torch.tensor([40_001, -70_003, 100_007, 5], dtype=kind)
            checks.close(
                dequantize(wide, 0.5, 3),
                torch.tensor([19_999.0, -35_003.0, 50_002.0, 1.0]),
                f"your reconstruction of the {str(kind)[6:]} codes 40001, -70003, 100007 and 5",
                mistakes={
                    "they do not fit into 16 bits, and wrapped around.": (wide.to(torch.int16) - 3).float() * 0.5,
                    "they do not fit into a float of 16 bits.": (wide.half() - 3).float() * 0.5,
                },
            )
        ends = torch.tensor([30_001, -30_001, 5], dtype=torch.int16)
        checks.close(
            torch.stack([dequantize(ends, 0.5, zero) for zero in (5_000, -5_000)]),
            torch.tensor([[12_500.5, -17_500.5, -2_497.5], [17_500.5, -12_500.5, 2_502.5]]),
            "your reconstruction of the int16 codes 30001, -30001 and 5",
            mistakes={
                "the subtraction was done in 16 bits and wrapped around.": torch.stack(
                    [(ends - zero).float() * 0.5 for zero in (5_000, -5_000)]
                ),
            },
        )
        halves = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5])
        for scale, zero in [(1.0, 10), (0.25, 4), (1.0, 11)]:
            steps, right = halves, torch.tensor([-2, -2, 0, 0, 2, 2, 4]) + zero
            checks.close(
                quantize(halves * scale, scale, zero, 0, 255),
                right,
                f"what quantize returned for exact halves (scale={scale}, zero_point={zero})",
                mistakes={
                    "exact halves are rounded up; they should go to the even neighbour, as torch.round does.": (
                        steps + 0.5
                    ).floor()
                    + zero,
                    "exact halves are rounded towards zero; they should go to the even neighbour, as torch.round does.": (
                        steps.sign() * (steps.abs() - 0.5).ceil() + zero
                    ),
                    "exact halves are rounded away from zero; they should go to the even neighbour, as torch.round does.": (
                        steps.sign() * (steps.abs() + 0.5).floor() + zero
                    ),
                    "the zero point is inside the rounding: with an odd zero point exact halves go the other way. Round first, then add.": (
                        steps + zero
                    ).round(),
                },
                atol=0,
                rtol=0,
            )
        for loud, kind in ((3e10, torch.int32), (3e20, torch.int64)):
            for qmin, qmax in [(0, 255), (-128, 127)]:
                ends = torch.tensor([loud, -loud])
                checks.close(
                    quantize(ends, 0.5, 3, qmin, qmax),
                    torch.tensor([qmax, qmin]),
                    f"what quantize returned for the numbers {loud:.0e} and {-loud:.0e}",
                    mistakes={
                        f"they are turned into {str(kind)[6:]} before they are clamped, and do not fit: clamp first.": (
                            ends.div(0.5).to(kind).add(3).clamp(qmin, qmax)
                        )
                    },
                    atol=0,
                    rtol=0,
                )
    ### BEGIN HIDDEN TESTS
    from helpers import golden

    for name in ("quantize_linear", "exact"):
        for case in golden.load(name):
            x = torch.tensor(case["x"])
            before = x.clone()
            codes = quantize(x, case["scale"], case["zero_point"], case["qmin"], case["qmax"])
            assert codes.dtype == torch.int32 and codes.tolist() == case["codes"], (
                f"wrong codes for {case['name']} of {name}."
            )
            assert torch.equal(x, before), "quantize changes its input."
            back = dequantize(torch.tensor(case["codes"]), case["scale"], case["zero_point"])
            expected = torch.tensor(case["dequantized"]) if "dequantized" in case else None
            if expected is not None:
                torch.testing.assert_close(back, expected, atol=2e-4 * case["scale"], rtol=1e-6)
    for _, odd in samples.awkward(torch.linspace(-3, 3, 24).view(4, 6)):
        with checks.untouched(x=odd):
            codes = quantize(odd, 0.1, -7, -20, 25)
        expected = torch.quantize_per_tensor(odd.detach(), 0.1, -7, torch.qint8).int_repr().clamp(-20, 25)
        assert torch.equal(codes, expected.int()) and codes.dtype == torch.int32, "wrong for a view or a parameter."
    for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        small = torch.arange(120, dtype=kind).view(10, 12).T
        with checks.untouched(codes=small):
            back = dequantize(small, 0.25, 100)
        assert back.dtype == torch.float32 and torch.equal(back, (small.double() * 0.25 - 25).float()), (
            f"wrong for {kind}."
        )
    generator = torch.Generator().manual_seed(202)
    for x in (
        torch.rand(3, 50, generator=generator) * 4 + 1,
        -torch.rand(2, 2, 20, generator=generator) * 4 - 1,
        torch.full((30,), 0.123),
        torch.zeros(7),
        torch.cat([torch.randn(60, generator=generator), torch.tensor([400.0, -90.0])]),
    ):
        for scale, zero, dtype in [(0.01137, 17, torch.quint8), (0.0319, 0, torch.qint8), (0.0083, -128, torch.qint8)]:
            qmin, qmax = (0, 255) if dtype == torch.quint8 else (-128, 127)
            stored = torch.quantize_per_tensor(x, scale, zero, dtype)
            codes = quantize(x, scale, zero, qmin, qmax)
            assert torch.equal(codes, stored.int_repr().int()), "other codes than torch.quantize_per_tensor."
            back = dequantize(stored.int_repr(), scale, zero)
            assert back.dtype == torch.float32, "the reconstruction should be float32."
            torch.testing.assert_close(back, stored.dequantize(), atol=2e-4 * scale, rtol=1e-6)
            inside = (codes > qmin) & (codes < qmax)
            assert ((back - x).abs()[inside] <= scale / 2 * 1.001).all(), "an error is larger than half a gap."
    for count in ((1,), (1, 1), (2, 0), (1, 3, 1)):
        assert quantize(torch.ones(count), 0.5, 3, 0, 255).shape == count, "another shape."
        assert dequantize(torch.ones(count, dtype=torch.uint8), 0.5, 3).shape == count, "another shape."
    inputs = [torch.randn(4, 3, generator=generator) for _ in range(3)]
    codes = [quantize(x, 0.1, 7, 0, 31) for x in inputs]
    backs = [dequantize(answer, 0.1, 7) for answer in codes]
    for x, answer, back in zip(inputs, codes, backs, strict=True):
        right = ((x / 0.1).round() + 7).clamp(0, 31)
        assert torch.equal(answer, right.int()), "something is kept from call to call."
        torch.testing.assert_close(back, (right - 7) * 0.1)
    for zero in (-9_000, 9_000):
        ends = torch.tensor([32_767, -32_768, 3], dtype=torch.int16)
        assert dequantize(ends, 0.5, zero).tolist() == [(c - zero) / 2 for c in ends.tolist()], (
            "16 bits wrapped around."
        )
    assert dequantize(torch.tensor([40_001, -70_003]), 0.5, 3).tolist() == [19_999.0, -35_003.0], "wrong for int64."
    wide = torch.tensor([40_001, -70_003, 100_007, 5], dtype=torch.int32)
    kept = wide.clone()
    back = dequantize(wide, 0.5, 3)
    assert back.tolist() == [19_999.0, -35_003.0, 50_002.0, 1.0], "wrong for codes of more than 16 bits."
    assert torch.equal(wide, kept), "dequantize changes the codes that it is given."
    ### END HIDDEN TESTS


check_ex_2_2()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Each function is one line, and the formulas give the order of the operations.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `torch.round` rounds halves to even. `.clamp(qmin, qmax)` comes after the zero point, `.to(torch.int32)` last. In `dequantize`, turn the
# codes into `float32` before you subtract.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `(torch.round(x / …) + …).clamp(…, …).to(torch.int32)` and `(codes.to(torch.float32) - …) * …`
# </details>

# %% [markdown]
# ### Do all libraries agree?
#
# Nearly. Where the zero point is added *before* rounding, an exact half with an odd zero point goes the other way. Your check asks for
# the order of the formula, which is that of ONNX and of PyTorch's own fake quantization. See what PyTorch's real quantization does here:

# %% tags=["varies"]
halves = torch.tensor([0.5, 1.5, 2.5, 3.5])
for odd in (10, 11):
    real = torch.quantize_per_tensor(halves, 1.0, odd, torch.quint8).int_repr().int() - odd
    fake = torch.fake_quantize_per_tensor_affine(halves, 1.0, odd, 0, 255)
    print(f"zero point {odd}: quantize_per_tensor {real.tolist()}, fake_quantize {[int(v) for v in fake]}")

# %% [markdown]
# On a PC the two differ in the last line; both are PyTorch. Exact halves are rare in real data, so this costs nothing, but it is the
# reason why an honest comparison of two int8 programs allows a difference of **one code**.
#
# ### Affine or symmetric?
#
# A **symmetric** ruler puts the zero point in the middle, $z = 0$, and takes $s$ from the largest absolute value. Weights are usually
# quantized this way: their values spread to both sides, and the arithmetic is simpler without a zero point. Activations after a ReLU have no
# negative values at all; a symmetric ruler would waste half of its codes on them.
#
# Play with it (in a live notebook, where the sliders move), or look at the four fixed settings below: how large is the error, and how
# many codes are wasted?


# %%
def ruler(bits: int, low: float, high: float, symmetric: bool) -> tuple[float, int, int, int]:
    """Scale, zero point, qmin and qmax for the range from low to high."""
    if symmetric:
        top = 2 ** (bits - 1) - 1
        return max(abs(low), abs(high)) / top, 0, -top, top
    top = 2**bits - 1
    return *affine.qparams(low, high, 0, top), 0, top


wave = torch.linspace(-0.6, 3.0, 400)


def draw_ruler(ax, bits: int, low: float, high: float, symmetric: bool) -> None:
    scale, zero_point, qmin, qmax = ruler(bits, low, high, symmetric)
    back = affine.fake_quantize(wave, scale, zero_point, qmin, qmax)
    used = affine.quantize(wave, scale, zero_point, qmin, qmax).unique().numel()
    plots.staircase(ax, wave.numpy(), back.numpy())
    ax.set_ylim(-1.5, 3.4)
    kind = "symmetric" if symmetric else "affine"
    ax.set_title(
        f"{kind}, {bits} bits, {low:g} to {high:g}\n{used} of {qmax - qmin + 1} codes used, SQNR {metrics.sqnr_db(wave, back):.1f} dB"
    )


def explore(bits: int, limits: tuple[float, float], symmetric: bool) -> None:
    fig, ax = plots.figure(width=5, height=3)
    draw_ruler(ax, bits, *limits, symmetric)
    plots.show(
        fig, caption="Move a slider.", alt="Staircase of reconstructed values over real ones for the chosen ruler."
    )


interactive.sliders(
    explore,
    bits=ipywidgets.IntSlider(value=3, min=2, max=8, description="bits"),
    limits=ipywidgets.FloatRangeSlider(
        value=(-0.6, 3.0), min=-4, max=4, step=0.1, readout_format=".1f", description="range"
    ),
    symmetric=ipywidgets.Checkbox(value=False, description="symmetric"),
)

# %% tags=["nbval-check-output"]
fig, axes = plots.figure(columns=4, width=13, height=2.9)
for ax, setting in zip(
    axes, [(3, -0.6, 3.0, False), (3, -0.6, 3.0, True), (3, -0.6, 1.5, False), (6, -0.6, 3.0, False)], strict=True
):
    draw_ruler(ax, *setting)
axes[0].set_ylabel("reconstruction")
plots.show(
    fig,
    caption="The same signal, from −0.6 to 3, with four rulers. SQNR is the signal-to-quantization-noise ratio in decibels: "
    "20 times the base-10 logarithm of ‖signal‖ / ‖error‖, with the root of the sum of squares as ‖·‖; higher is better.",
    alt="Four staircases over a diagonal line. Affine with 3 bits follows it in eight steps. Symmetric has wider steps, because no value "
    "uses its lower codes. The range cut at 1.5 has narrow steps and then stays flat, far from the line. Six bits look nearly straight.",
)

# %% [markdown]
# Three things to see: a symmetric ruler on a lopsided signal has coarser steps; a range that is cut off has finer steps where it reaches and
# a large error beyond (section 3 makes a choice of that); and each bit more halves the step, which is worth about 6 dB.

# %% [markdown]
# ## 2. One ruler for all, or one each?
#
# A weight matrix has one number per connection. Who shares a ruler? Three **granularities** are in use:
#
# - **per-tensor**: one scale for the whole matrix,
# - **per-channel**: one scale for each output, that is for each row of a Linear layer's weight (out_features, in_features),
# - **per-group**: one scale for each run of, say, 32 neighbours within a row (the number is the **group size**).
#
# Why bother? Look at the largest absolute value of each row, in one layer of the course model (the second Linear of its first
# feed-forward network), and in a layer as PyTorch initializes it:

# %%
model = load_course_model()
trained = model.blocks[0].ffn.down.weight.detach()  # (256, 1024)
fresh = torch.empty(256, 1024)
nn.init.uniform_(
    fresh, -1 / 32, 1 / 32, generator=torch.Generator().manual_seed(3)
)  # what nn.Linear(1024, 256) starts from

fig, (left, right) = plots.figure(columns=2, width=10, height=2.8)
for name, weight, colour in [("trained", trained, plots.BLUE), ("as initialized", fresh, plots.ORANGE)]:
    left.plot(weight.abs().amax(dim=1).sort().values / weight.abs().max(), color=colour, label=name)
left.set_xlabel("row, sorted")
left.set_ylabel("largest |weight|, relative")
left.legend()
bars = {}
for name, weight in [("trained", trained), ("as initialized", fresh)]:
    for granularity, size in [("per-tensor", None), ("per-channel", weight.shape[1]), ("group 32", 32)]:
        bars[f"{name}, {granularity}"] = metrics.sqnr_db(weight, rounding.round_to_nearest(weight, 4, size))
plots.bars(right, bars, "SQNR in dB, 4 bits")
plots.show(
    fig,
    caption="Left: how large the largest weight of each row is, next to the largest of the whole matrix. Right: what 4 bits keep of the weights.",
    alt="Left: in the trained layer most rows reach only a small part of the largest weight; in the fresh layer every row reaches all of it. "
    "Right: bars; for the trained weights per-tensor is near 1 decibel, per-channel about 16 and groups of 32 about 20; for the fresh weights the "
    "three are nearly the same.",
)

# %% [markdown]
# In the trained layer a single loud row makes the gaps of *everybody's* ruler wide, so that most weights round to 0. Its own scale for each row
# costs one number for each 1,024 weights. In a freshly initialized layer the choice makes no difference, because its weights are
# uniform: **never judge granularity on random weights.**
#
# ### Exercise 2.3: symmetric per-channel codes
# *Difficulty 3 of 5 · 20 minutes · 2 points*
#
# For weights, symmetric codes are usual: zero point 0, and with $b$ bits $q_\max = 2^{b-1} - 1$ and $q_\min = -q_\max$, so that −128 is not
# used (then the codes of $-w$ are minus those of $w$). For each
# channel $c$ along `axis`:
#
# $$s_c = \frac{\max |w_c|}{q_\max} \qquad q = \text{clamp}(\text{round}(w / s_c), -q_\max, q_\max)$$
#
# By hand: with 4 bits, $q_\max = 7$; the row (0.875, −1.75, 0.125) has $s = 1.75/7 = 0.25$ and codes (4, −7, 0): 0.875/0.25 = 3.5 and
# 0.125/0.25 = 0.5 are exact halves, and go to the even neighbour. Where $s_c$ is 0, the scale is 1, so that nothing is divided by zero: in a channel of zeros, and in
# one so quiet that `float32` has no number for its scale (1e-44, say). (PyTorch and torchao use
# −128, too, and divide by 127.5 instead of 127. Both are called symmetric: when you compare two programs, look.) A bias has one dimension: then each of its numbers is a channel of its own.
#
# The maximum goes over all dimensions but one. `weight.movedim(axis, 0).reshape(channels, -1)` brings a channel into each row, and `amax(dim=1)` takes the largest number of each row. To divide, a scale must meet its channel
# again: of shape (1, 4, 1) it does so for a weight of shape (3, 4, 5) and axis 1.


# %% nbgrader={"grade": false, "grade_id": "ex_2_3", "locked": false, "schema_version": 3, "solution": true, "task": false}
def quantize_per_channel(weight: Tensor, axis: int = 0, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Symmetric codes with one scale for each channel.

    Parameters
    ----------
    weight : Tensor, float32, one or more dimensions; perhaps a view, or a parameter; is not changed
    axis : int
        The dimension that counts the channels; may be negative, counted from the end.
    bits : int
        2 to 8; codes go from ``-(2**(bits-1) - 1)`` to ``2**(bits-1) - 1``.

    Returns
    -------
    (Tensor, Tensor)
        Codes, int8, shape of `weight`; and scales, float32, (channels,), 1 where the formula gives 0.

    Example
    -------
    >>> quantize_per_channel(torch.tensor([[0.875, -1.75, 0.125], [0.0, 0.0, 0.0]]), bits=4)
    (tensor([[ 4, -7,  0],
             [ 0,  0,  0]], dtype=torch.int8), tensor([0.2500, 1.0000]))
    """
    ### BEGIN SOLUTION
    qmax = 2 ** (bits - 1) - 1
    largest = weight.detach().movedim(axis, 0).reshape(weight.shape[axis], -1).abs().amax(dim=1)  # (channels,)
    scales = largest / qmax
    scales[scales == 0] = 1
    shape = [1] * weight.dim()
    shape[axis] = -1  # a scale meets the numbers of its channel
    codes = (weight / scales.view(shape)).round().clamp(-qmax, qmax).to(torch.int8)
    return codes, scales
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_2_3_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 2.3: run this cell.
import torch

from helpers import checks, samples


@checks.isolated
def check_ex_2_3() -> None:
    def by_channel(w: torch.Tensor, axis: int) -> torch.Tensor:
        return w.detach().double().movedim(axis, 0).reshape(w.shape[axis], -1)  # (channels, numbers of one)

    def along(scales: torch.Tensor, w: torch.Tensor, axis: int) -> torch.Tensor:
        return scales.view([-1 if d == axis % w.dim() else 1 for d in range(w.dim())])

    def answered(w: torch.Tensor, axis: int, bits: int, what: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The learner's codes and scales, after questions about their kind and shape."""
        try:
            with checks.untouched(weight=w):
                answer = quantize_per_channel(w, axis, bits)
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):
                raise
            raise AssertionError(
                f"your function does not take {what}: view needs contiguous memory, reshape does not."
            ) from None
        checks.given(answer, "what you returned")
        assert isinstance(answer, tuple | list) and len(answer) == 2, "your answer should be a pair: codes, scales."
        codes, scales = answer
        checks.given(scales, "your scales")
        count = w.shape[axis]
        assert isinstance(scales, torch.Tensor) and scales.shape == (count,), (
            f"for {what} your scales have shape {tuple(getattr(scales, 'shape', ()))}; there should be one for each of the "
            f"{count} channels, shape ({count},)."
            + (
                " Is the axis the wrong one? The largest value is taken over all dimensions but `axis`."
                if getattr(scales, "numel", lambda: 0)() not in (1, count)
                else ""
            )
        )
        checks.tensor(scales, (count,), f"your tensor of scales for {what}", torch.float32)
        checks.tensor(codes, w.shape, f"your tensor of codes for {what}", torch.int8)
        return codes, scales.detach()

    def compare(w: torch.Tensor, axis: int, bits: int, what: str) -> None:
        codes, scales = answered(w, axis, bits, what)
        channels, qmax = by_channel(w, axis), 2 ** (bits - 1) - 1
        right = (channels.abs().amax(dim=1) / qmax).float()
        plain = channels.amax(dim=1).float()
        mistakes = {
            "that is one scale for the whole tensor: "
            + (
                "a negative axis counts from the end, so no dimension is equal to it (`axis % weight.dim()` is)."
                if axis < 0
                else "take the largest value of each channel."
            ): right.max().expand_as(right),
            "the largest value is taken without abs(), so a large negative weight is not seen.": plain / qmax,
            f"here the largest code is 2**(bits-1) - 1 = {qmax}, not {qmax + 1}.": right * qmax / (qmax + 1),
            f"you divided by {qmax}.5, as PyTorch does (that is max - min over {2 * qmax + 1}), which also uses -{qmax + 1}; here the codes go from -{qmax} to {qmax}.": right
            * qmax
            / (qmax + 0.5),
            "symmetric codes take the largest absolute value; you divided max - min.": (
                (plain - channels.amin(dim=1).float()) / (2 * qmax)
            ),
            f"with {bits} bits codes go from -{qmax} to {qmax}; these are the scales of 8 bits.": right * qmax / 127
            if bits != 8
            else right * torch.nan,
            f"with {bits} bits codes go from -{qmax} to {qmax}; these are the scales of 4 bits.": right * qmax / 7
            if bits != 4
            else right * torch.nan,
        }
        checks.close(scales, right, f"your tensor of scales for {what}", mistakes=mistakes, atol=0)
        zeros = torch.zeros(w.shape[axis], dtype=torch.int64)
        oracle = torch.quantize_per_channel(
            w.detach().contiguous(), scales.double(), zeros, axis % w.dim(), torch.qint8
        ).int_repr()
        oracle = oracle.clamp(-qmax, qmax)
        assert codes.min() >= -qmax, f"a code is {codes.min()}: symmetric codes go from -{qmax} to {qmax}."
        steps = w.detach() / along(scales, w, axis)
        checks.close(
            codes,
            oracle,
            f"your tensor of codes for {what}",
            atol=0,
            rtol=0,
            mistakes={
                sentence: wrong.clamp(-qmax, qmax)
                for sentence, wrong in {
                    "they are cut off instead of rounded.": steps.trunc(),
                    "they are rounded down instead of to the nearest code.": steps.floor(),
                    "exact halves are rounded up; they go to the even neighbour.": (steps + 0.5).floor(),
                    "exact halves are rounded away from zero; they go to the even neighbour.": steps.sign()
                    * (steps.abs() + 0.5).floor(),
                }.items()
            },
        )

    with checks.check(
        "2.3", "your codes are those of torch.quantize_per_channel on every axis, and a channel of zeros stays zero"
    ):
        generator = torch.Generator().manual_seed(23)
        loudness = torch.tensor([0.02, 1.0, 30.0, 0.3])
        weight = torch.randn(4, 6, generator=generator) * loudness[:, None]
        deep = torch.randn(3, 4, 5, generator=generator) * loudness[:, None]
        row = torch.tensor([[0.875, -1.75, 0.125, -0.375]])
        for what, w, axis, bits in [
            ("a (4, 6) weight, axis 0", weight, 0, 8),
            ("a (6, 4) weight, axis 1", weight.T.contiguous(), 1, 8),
            ("a (3, 4, 5) weight, axis 1", deep, 1, 8),
            ("a (4, 6) weight, axis -2, the same as 0", weight, -2, 8),
            ("a (3, 4, 5) weight, axis -2, the same as 1", deep, -2, 8),
            ("a (3, 4, 5) weight, axis -1, the last one", deep * loudness[[0, 1, 2, 3, 1]], -1, 8),
            ("the row (0.875, -1.75, 0.125, -0.375) with 4 bits", row, 0, 4),
            ("a (4, 6) weight with 3 bits", weight, 0, 3),
            ("a (4, 6) weight with 2 bits", weight, 0, 2),
            ("a weight of one dimension, in which each number is a channel,", weight[1], 0, 8),
            *((f"{form}, (4, 6), axis 0", odd, 0, 8) for form, odd in samples.awkward(weight)),
            *((f"{form}, (3, 4, 5), axis 1", odd, 1, 8) for form, odd in samples.awkward(deep)),
        ]:
            compare(w, axis, bits, what)
        odd_rows = weight.clone()
        odd_rows[1], odd_rows[2], odd_rows[3] = 0, 1e-44, odd_rows[3] * 1e-12
        codes, scales = answered(odd_rows, 0, 8, "a weight with a row of zeros")
        assert torch.isfinite(scales[1:2]).all() and scales[1] > 0, (
            "a channel of zeros gets a scale of 0 (or nan): divide by it and you get nan. Give it scale 1."
        )
        assert not codes[1].any(), "a channel of zeros should have codes 0."
        assert scales[1] == 1, f"a channel of zeros should get scale 1; yours has {scales[1]:.4g}."
        assert codes[3].abs().max() == 127 and scales[3] < 1e-10, (
            "a quiet channel (1e-12) is not a channel of zeros: its largest weight gets code 127, too."
        )
        codes, scales = answered(odd_rows[3:] * 1e-20, 0, 8, "a weight of about 1e-33")
        assert codes.abs().max() == 127 and 0 < scales[0] < 1e-30, (
            f"a row of about 1e-33 gets the scale {scales[0]:.4g}: float32 still has a number for the one of the formula. Only where it "
            "is exactly 0 the scale is 1."
        )
        codes, scales = answered(odd_rows, 0, 8, "a weight with a row of zeros")
        assert scales[2] == 1 and not codes[2].any(), (
            f"a channel of 1e-44 has scale {scales[2]:.4g}: 1e-44 / 127 is 0 in float32. Ask whether the *scale* is 0, and give it scale 1."
        )
    ### BEGIN HIDDEN TESTS
    from helpers import golden

    for case in golden.load("quantize_linear_per_axis"):
        w = torch.tensor(case["x"]).view(case["shape"])
        before = w.clone()
        codes, scales = quantize_per_channel(w, case["axis"])
        assert codes.dtype == torch.int8 and codes.flatten().tolist() == case["codes"], (
            f"wrong codes for {case['name']}."
        )
        torch.testing.assert_close(scales.float(), torch.tensor(case["scales"]), atol=0, rtol=1e-5)
        assert torch.equal(w, before), "your function changes its input."
    generator = torch.Generator().manual_seed(203)
    for bits in (2, 3, 4, 8):
        for axis, shape in [(0, (5, 40)), (1, (8, 5)), (2, (2, 3, 4))]:
            w = torch.randn(shape, generator=generator)
            for channel, factor in enumerate((1e-4, 1.0, 50.0, -1.0)):
                if channel < shape[axis]:
                    w.select(axis, channel).mul_(factor) if factor > 0 else w.select(axis, channel).abs_().neg_()
            codes, scales = quantize_per_channel(w, axis, bits)
            qmax = 2 ** (bits - 1) - 1
            channels, integers = w.transpose(0, axis).flatten(1), codes.transpose(0, axis).flatten(1)
            assert scales.shape == (shape[axis],) and codes.dtype == torch.int8, "wrong shape or dtype."
            torch.testing.assert_close(scales.double() * qmax, channels.double().abs().amax(dim=1), atol=0, rtol=1e-5)
            assert integers.abs().amax(dim=1).eq(qmax).all(), (
                "the largest weight of a channel should get the largest code."
            )
            error = (integers * scales[:, None] - channels).abs()
            assert (error <= scales[:, None] * 0.5001).all(), "an error is larger than half a gap."
            flipped, _ = quantize_per_channel(-w, axis, bits)
            assert torch.equal(flipped, -codes), "the codes of -w should be minus those of w."
    codes, scales = quantize_per_channel(torch.zeros(3, 4))
    assert not codes.any() and scales.tolist() == [1.0, 1.0, 1.0], "wrong for zeros."
    halves = torch.tensor([[63.5, 0.25, 0.75, 1.25, -0.25, -0.75]])
    codes, scales = quantize_per_channel(halves)
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2]], "exact halves should go to the even neighbour."
    quiet = torch.randn(3, 8, generator=generator)
    quiet[1] *= 1e-12
    quiet[2] *= 1e-34
    codes, scales = quantize_per_channel(quiet)
    assert codes[1:].abs().amax(dim=1).eq(127).all() and scales[1] < 1e-11 and scales[2] < 1e-33, (
        "a quiet channel is not a channel of zeros."
    )
    for shape in ((3, 8), (2, 3, 4), (2, 3, 2, 5)):
        w = torch.randn(shape, generator=generator) * torch.logspace(-1, 1, shape[-1])
        w = w * torch.logspace(1, -1, shape[1]).view([-1] + [1] * (len(shape) - 2))
        for axis in range(-len(shape), 0):
            (codes, scales), (same, right) = quantize_per_channel(w, axis), quantize_per_channel(w, axis + len(shape))
            assert torch.equal(codes, same) and torch.equal(scales, right), "a negative axis counts from the end."
            largest = w.double().movedim(axis, 0).reshape(shape[axis], -1).abs().amax(dim=1)
            torch.testing.assert_close(scales.double() * 127, largest, atol=0, rtol=1e-5)
            for _, odd in samples.awkward(w):
                with checks.untouched(weight=odd):
                    codes, scales = quantize_per_channel(odd, axis)
                assert torch.equal(codes, same) and torch.equal(scales, right), "wrong for a view or a parameter."
                assert scales.dtype == torch.float32 and codes.dtype == torch.int8, "another dtype."
    codes, scales = quantize_per_channel(torch.tensor([0.5, -3.0, 0.0, 1e-44]), bits=5)
    assert codes.tolist() == [15, -15, 0, 0], "wrong for a weight of one dimension."
    torch.testing.assert_close(scales, torch.tensor([0.5 / 15, 0.2, 1.0, 1.0]), atol=0, rtol=1e-6)
    ### END HIDDEN TESTS


check_ex_2_3()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# One largest absolute value for each channel, one division, one rounding.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# With a channel in each row, `.abs().amax(dim=1)` gives one number for each channel. `scales[scales == 0] = 1` deals with zeros. `scales.view(shape)` needs
# a shape that is 1 everywhere but at `axis`.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `scales = weight.detach().movedim(axis, 0).reshape(…, -1).abs().amax(dim=1) / …`, `shape = [1] * weight.dim()`, `shape[axis] = -1`,
# `codes = (weight / scales.view(shape)).round().clamp(…)`, and return `codes.to(torch.int8), scales`.
# </details>

# %% [markdown]
# ### What does a finer ruler cost?
#
# Scales take room, too. The **bits per weight** with a 16-bit scale for each group of $g$ weights are $b + 16/g$. What does the whole course
# model make of it? Every Linear weight is replaced by its 4-bit reconstruction, and the model reads 24 held-out documents:

# %%
held_out = data.windows("held_out", 24)


def bits_by_document(some_model: nn.Module) -> Tensor:
    """Mean bits per byte of each held-out document, (24,)."""
    return torch.cat([metrics.next_byte_bits(some_model, rows).mean(dim=1) for rows in held_out.split(8)])


float_bits = bits_by_document(model)


def mean_and_error(differences: Tensor) -> str:
    """Mean over the documents, ± its standard error."""
    return f"{differences.mean():+.4f} ± {differences.std() / len(differences) ** 0.5:.4f}"


print(f"float {float_bits.mean():.4f} bits per byte")
costs = {}
for name, size, overhead in [("per-tensor", None, 0), ("per-channel", "channel", 16 / 256), ("group 32", 32, 16 / 32)]:
    costs[name] = bits_by_document(rounding.with_rounded_linears(model, 4, size)) - float_bits  # (24,)
    print(
        f"{name:12} {mean_and_error(costs[name])} bits per byte, {4 + overhead:.2f} bits per weight where rows have 256"
    )
print(f"per-channel minus group 32, by document: {mean_and_error(costs['per-channel'] - costs['group 32'])}")

# %% [markdown]
# (± is the standard error over the documents.) One scale for a whole matrix is a disaster, one for each row repairs most of it. Are groups worth half a
# bit more? Both rows were measured on the same documents, so the honest comparison is the *difference* in each document, with a standard error of its own:
# the last line. If it is smaller than two of its standard errors, these 24 documents do not say.

# %% [markdown]
# ## 3. Observers: which range?
#
# Weights lie still: their range can be read off. Activations are different for every input. An **observer** watches them while
# representative data runs through the float model (this is **calibration**), remembers what it needs, and then names a scale and a zero
# point. Let us look at what it has to watch: the numbers that enter the same layer as above, for 16 held-out documents.

# %%
seen: list[Tensor] = []
handle = model.blocks[0].ffn.down.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
with torch.no_grad():
    for rows in held_out[:16, :256].split(1):
        model(rows)
handle.remove()
calibration, unseen = seen[:8], torch.cat(seen[8:])  # eight batches of (1, 256, 1024) to calibrate, the rest to judge

fig, (left, right) = plots.figure(columns=2, width=10, height=2.6)
left.hist(torch.cat(calibration).flatten().numpy(), bins=200, log=True, color=plots.BLUE)
left.set_xlabel("activation")
left.set_ylabel("how many (log)")
right.plot([batch.max() for batch in calibration], "o-", color=plots.RED, label="max")
right.plot([batch.min() for batch in calibration], "o-", color=plots.BLUE, label="min")
right.set_xlabel("calibration batch")
right.legend()
plots.show(
    fig,
    caption="Inputs of blocks.0.ffn.down, which come out of a GELU. Left: all values of eight documents. Right: the range of each document.",
    alt="Left: a histogram with a logarithmic axis: a huge peak near zero, nothing below minus 0.2, and a long thin tail to nearly 9. Right: the minimum is "
    "the same for every document, the maximum goes up and down by more than one.",
)

# %% [markdown]
# Nearly all of the numbers lie near zero, and a handful far out; and it is the handful that decides about everybody's gap. It also changes from
# document to document. The simplest two observers are:
#
# - **min/max**: the smallest and largest value of all batches so far;
# - **moving average**: start with the range of the first batch; then let each batch pull it a little, with an *averaging constant* $c$:
#   $\text{low} \leftarrow \text{low} + c \cdot (\min(\text{batch}) - \text{low})$, and the same for high. One wild batch
#   moves it only a little.
#
# ### Exercise 2.4: an observer
# *Difficulty 3 of 5 · 20 minutes · 2 points*
#
# Write both in one class. `forward` returns its input unchanged: an observer sits in the middle of a network and must not disturb
# it. PyTorch's observers, asked before they have seen anything, warn and answer with scale 1 and zero point 0; patient 7 of the clinic
# will show where that leads. Yours raises `RuntimeError`. (For the arithmetic, use `affine.qparams(low, high, qmin, qmax)`: it does what
# exercise 2.1 does.)


# %% nbgrader={"grade": false, "grade_id": "ex_2_4", "locked": false, "schema_version": 3, "solution": true, "task": false}
class CalibratingObserver:
    """Watches batches and names the scale and zero point of their range.

    Parameters
    ----------
    qmin, qmax : int
        Smallest and largest code.
    averaging_constant : float or None
        None: the minimum and maximum of everything seen. A number c: the moving average; each batch after the first
        moves the range by c times the difference.
    """

    def __init__(self, qmin: int = 0, qmax: int = 255, averaging_constant: float | None = None) -> None:
        self.qmin, self.qmax, self.averaging_constant = qmin, qmax, averaging_constant
        self.low: float | None = None  # None until something was seen
        self.high: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Note the range of `x` (any shape, float) and return `x` itself, the very object, unchanged."""
        ### BEGIN SOLUTION
        low, high = x.min().item(), x.max().item()
        if self.low is None:
            self.low, self.high = low, high
        elif self.averaging_constant is None:
            self.low, self.high = min(self.low, low), max(self.high, high)
        else:
            self.low += self.averaging_constant * (low - self.low)
            self.high += self.averaging_constant * (high - self.high)
        return x
        ### END SOLUTION

    def calculate_qparams(self) -> tuple[float, int]:
        """Scale and zero point for the range seen so far.

        Raises
        ------
        RuntimeError
            If no batch has been seen.
        """
        ### BEGIN SOLUTION
        if self.low is None:
            raise RuntimeError("this observer has seen no data: run calibration batches through the model first.")
        return affine.qparams(self.low, self.high, self.qmin, self.qmax)
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_2_4_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 2.4: run this cell.
import torch
from torch.ao.quantization import MinMaxObserver, MovingAverageMinMaxObserver

from helpers import checks


@checks.isolated
def check_ex_2_4() -> None:
    def sentences(constant: float | None, batches: list[torch.Tensor], qmin: int, qmax: int) -> dict[str, float]:
        """The scale that each known mistake would give after these batches."""

        def scale(low: float, high: float) -> float:
            return max((max(high, 0.0) - min(low, 0.0)) / (qmax - qmin), 2**-23)

        def average(c: float, start: int, widen: bool = False, swap: bool = False) -> float:
            now = [0.0, 0.0] if start == 0 else list(ends[0])
            for pair in ends[start:]:
                pair = (min(pair[0], 0.0), max(pair[1], 0.0)) if widen else pair
                weight = 1 - c if swap else c
                now = [a + weight * (b - a) for a, b in zip(now, pair, strict=True)]
            return scale(*now)

        ends = [(b.min().item(), b.max().item()) for b in batches]
        lows, highs = zip(*ends, strict=True)
        begun = max((i for i, (low, _) in enumerate(ends[:-1]) if low == 0), default=-1) + 1
        whole = scale(min(lows), max(highs))
        found = {
            "it remembers the last batch only.": -1.0 if begun else scale(*ends[-1]),
            "it remembers the first batch only.": scale(*ends[0]),
            "that is the plain average of the ranges.": scale(sum(lows) / len(lows), sum(highs) / len(highs)),
            "it begins anew after a batch whose smallest number is 0: 0.0 is a minimum, too, so ask `is None`, not `not`.": scale(
                min(lows[begun:]), max(highs[begun:])
            )
            if constant is None and begun
            else -1.0,
            "the codes are taken for 0 to 255: qmin and qmax say how many gaps there are.": scale(min(lows), max(highs))
            * (qmax - qmin)
            / 255
            if constant is None and qmax - qmin != 255
            else -1.0,
        }
        if constant is None:
            return found
        return found | {
            "that is min/max over all batches, not their moving average"
            + (": a constant of 0.0 is a constant, too, so ask `is None`." if constant == 0 else "."): whole,
            "the average starts at 0: start with the range of the first batch.": average(constant, start=0),
            "old and new are swapped: the new batch counts c, what was there 1 - c.": average(constant, 1, swap=True),
            "the constant is taken for 0.1, whatever the observer was made with.": average(0.1, start=1)
            if constant != 0.1
            else -1.0,
            "each range is widened to include 0 before it is averaged: widen once, at the end (affine.qparams does).": average(
                constant, 1, widen=True
            ),
            "it begins anew after a batch whose smallest number is 0: 0.0 is a minimum, too, so ask `is None`, not `not`.": scale(
                *ends[-1]
            )
            if begun == len(ends) - 1 and begun
            else -1.0,
        }

    def watch(constant: float | None, qmin: int, qmax: int, batches: list[torch.Tensor], kind: str) -> None:
        """Both observers see the batches one by one, and are asked after each."""
        options = {
            "dtype": torch.quint8 if qmin == 0 else torch.qint8,
            "quant_min": qmin,
            "quant_max": qmax,
        }
        theirs = MinMaxObserver(**options) if constant is None else MovingAverageMinMaxObserver(constant, **options)
        mine = CalibratingObserver(qmin=qmin, qmax=qmax, averaging_constant=constant)
        name = "min/max observer" if constant is None else f"moving-average observer (constant {constant})"
        for number, batch in enumerate(batches, start=1):
            with checks.untouched(x=batch):
                returned = mine.forward(batch)
            checks.given(returned, "what forward returned")
            assert isinstance(returned, torch.Tensor) and torch.equal(returned, batch), (
                "your forward should return its input unchanged: an observer only watches."
            )
            assert returned is batch, (
                "your forward returns another tensor with the same numbers: return `x` itself, not a copy or a view of it."
            )
            theirs(batch)
            scale, zero = (v.item() for v in theirs.calculate_qparams())
            what = f"your {name}'s scale after batch {number} of {kind}"
            answer = mine.calculate_qparams()
            assert isinstance(answer, tuple) and len(answer) == 2, (
                "calculate_qparams should return a pair: scale, zero point."
            )
            checks.number(answer[0], scale, what, rtol=1e-4, mistakes=sentences(constant, batches[:number], qmin, qmax))
            checks.number(
                answer[1],
                zero,
                f"{what.replace('scale', 'zero point')}, codes {qmin} to {qmax},",
                rtol=0,
                mistakes={
                    "the codes are taken for 0 to 255: qmin and qmax say where they begin.": zero - qmin
                    if qmin
                    else torch.inf
                },
            )

    with checks.check(
        "2.4", "your observer agrees with PyTorch's after every batch, and refuses to answer before the first"
    ):
        checks.raises(
            RuntimeError,
            lambda: CalibratingObserver().calculate_qparams(),
            "an observer that has seen nothing should raise RuntimeError: any answer of its own would ruin a model in silence.",
        )
        positive = CalibratingObserver()
        positive.forward(torch.tensor([0.0, 0.7, 3.0]))  # what comes out of a ReLU
        try:
            checks.number(
                positive.calculate_qparams()[0],
                3 / 255,
                "the scale after a batch with minimum 0 and maximum 3",
                rtol=1e-4,
            )
        except RuntimeError:
            raise AssertionError(
                "after a batch whose smallest number is 0 your observer says that it has seen nothing: 0.0 is a minimum, too, so ask "
                "`is None`, not `not`."
            ) from None
        first, second = CalibratingObserver(), CalibratingObserver()
        first.forward(torch.tensor([-50.0, 50.0]))
        second.forward(torch.tensor([-1.0, 3.0]))
        checks.number(
            second.calculate_qparams()[0],
            4 / 255,
            "the scale of a second observer",
            rtol=1e-4,
            mistakes={
                "what one observer saw shows up in another: keep the range in self, not in the class.": 100 / 255,
            },
        )
        negative = CalibratingObserver()
        negative.forward(torch.tensor([0.0, -0.7, -3.0]))
        try:
            checks.number(negative.calculate_qparams()[0], 3 / 255, "the scale after a batch from -3 to 0", rtol=1e-4)
        except RuntimeError:
            raise AssertionError(
                "after a batch whose largest number is 0 your observer says that it has seen nothing: 0.0 is a maximum, too, so ask "
                "`is None`, not `not`."
            ) from None
        generator = torch.Generator().manual_seed(24)
        mixed = [
            torch.randn(3, 5, generator=generator) * size + shift
            for size, shift in [(1, 1), (1.2, -2), (0.5, 4), (3, 0)]
        ]
        relu = [torch.rand(2, 6, generator=generator) * top for top in (3.0, 8.0, 5.0, 1.0)]
        for batch in relu:
            batch[0, 0] = 0
        one_sided = [batch.abs() + 1 for batch in mixed]
        for constant in (None, 0.1, 0.5, 0.0, 1.0):
            watch(constant, 0, 255, mixed, "ordinary data")
        for constant in (None, 0.3):
            watch(constant, 0, 255, relu, "data from a ReLU")
            watch(constant, -128, 127, mixed, "ordinary data")
            watch(constant, 0, 127, mixed, "ordinary data")
            watch(constant, -8, 7, [one_sided[0], *mixed], "data that begin above 0")
        reused = CalibratingObserver()
        batch = torch.tensor([-1.0, 3.0])
        reused.forward(batch)
        batch.mul_(5)  # a layer that works in place may follow
        checks.number(
            reused.calculate_qparams()[0],
            4 / 255,
            "the scale after a batch that a later layer has changed in place",
            rtol=1e-4,
            mistakes={"it is that of the changed batch: note the range when the batch comes, not later.": 20 / 255},
        )
        training, batch = CalibratingObserver(), torch.tensor([-1.0, 3.0], requires_grad=True)
        assert training.forward(batch) is batch, "your forward returns another tensor for one that carries a gradient."
        try:
            checks.number(
                training.calculate_qparams()[0], 4 / 255, "the scale after a batch with a gradient", rtol=1e-4
            )
        except RuntimeError:
            raise AssertionError(
                "a batch that carries a gradient is not counted: your observer says it has seen nothing."
            ) from None
        large = torch.linspace(-1, 1, 3000).repeat(2)
        large[-1], large[0] = 9, -5
        long = CalibratingObserver()
        for batch in [*large.view(10, 600) / 2, large]:
            long.forward(batch)
        checks.number(
            long.calculate_qparams()[0],
            14 / 255,
            "the scale after eleven batches, the last of 6,000 numbers,",
            rtol=1e-4,
        )
    ### BEGIN HIDDEN TESTS
    try:
        CalibratingObserver(averaging_constant=0.5).calculate_qparams()
    except RuntimeError:
        pass
    else:
        raise AssertionError("an observer that has seen nothing should raise RuntimeError.")
    generator = torch.Generator().manual_seed(204)
    for constant in (None, 0.25):
        mine = CalibratingObserver(-8, 7, constant)
        theirs = (
            MinMaxObserver(dtype=torch.qint8, quant_min=-8, quant_max=7)
            if constant is None
            else MovingAverageMinMaxObserver(constant, dtype=torch.qint8, quant_min=-8, quant_max=7)
        )
        for turn in range(24):
            x = torch.randn(1 + 40 * turn, 3, generator=generator) * (1 + turn)
            x[-1, -1] = 6 * turn + 5
            theirs(x)
            seen = x.clone().requires_grad_(turn % 3 == 0)
            assert mine.forward(seen) is seen, "forward should return its input."
            seen.detach().mul_(100)  # what happens to the batch later does not count
            scale = theirs.calculate_qparams()[0].item()
            assert abs(mine.calculate_qparams()[0] - scale) <= 1e-4 * scale, f"wrong scale after {turn + 1} batches."
    mine = CalibratingObserver()
    mine.forward(torch.tensor([[-2.0, 0.0]]))
    assert abs(mine.calculate_qparams()[0] - 2 / 255) < 1e-6, "a range that ends at 0 is a range."
    for constant in (None, 0.0, 0.01, 0.5, 1.0):
        for kind in ("relu", "crossing", "mixed", "positive", "negative", "constant", "zero", "outlier"):
            for qmin, qmax, dtype in [(0, 255, torch.quint8), (-128, 127, torch.qint8), (0, 127, torch.quint8)]:
                options = {"dtype": dtype, "quant_min": qmin, "quant_max": qmax}
                theirs = (
                    MinMaxObserver(**options) if constant is None else MovingAverageMinMaxObserver(constant, **options)
                )
                mine = CalibratingObserver(qmin, qmax, constant)
                for turn in range(5):
                    x = torch.randn(2, 3, 7, generator=generator)
                    x = {
                        "mixed": x, "relu": x, "crossing": x, "positive": x.abs() + 1, "negative": -x.abs() - 1, "constant": x * 0 + 0.4, "zero": x * 0, "outlier": x,
                    }[kind]  # fmt: skip
                    if kind == "relu":
                        x = x.relu() * (5 - turn)
                    if kind == "crossing":
                        x = (x.abs() + 1) * (-1) ** turn
                    if kind == "outlier":
                        x[0, 0, 0] = 80 * torch.rand((), generator=generator)
                    with checks.untouched(x=x):
                        assert mine.forward(x) is x, "forward should return its input."
                    theirs(x)
                    scale, zero = (v.item() for v in theirs.calculate_qparams())
                    answer = mine.calculate_qparams()
                    assert abs(answer[0] - scale) <= 1e-4 * scale, f"wrong scale for {kind} data."
                    assert abs(answer[1] - zero) <= (1 if kind in ("mixed", "outlier", "crossing") else 0), (
                        f"wrong zero point for {kind} data."
                    )
    ### END HIDDEN TESTS


check_ex_2_4()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# `self.low` is None exactly until the first batch. Three cases follow: first batch, min/max, moving average.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `x.min().item()` is the smallest number of a tensor as a Python float. The moving average changes `self.low` by
# `averaging_constant * (low - self.low)`. Do not forget to return `x`.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `if self.low is None: …` · `elif self.averaging_constant is None: self.low, self.high = min(…), max(…)` · `else: self.low += …`.
# In `calculate_qparams`: raise if `self.low is None`, else `return affine.qparams(…)`.
# </details>

# %% [markdown]
# ### Cut off the loudest?
#
# A smaller range has finer gaps for the many, and clamps the few. Which is worth more? Measure it: try many ranges and keep the one with the
# smallest **mean squared error** (MSE) between $x$ and $\hat x$. That is a *clip search*. Two other ideas are in use: a **percentile** (ignore, say,
# the most extreme 0.01 % of the values) and a **histogram** (collect one, then search on it; PyTorch's default).
#
# ### Exercise 2.5: clip search
# *Difficulty 3 of 5 · 20 minutes · 2 points*
#
# Try the ranges $(f \cdot \min x,\ f \cdot \max x)$ for $f = 1/n, 2/n, …, 1$, and return the one whose reconstruction has the smallest MSE.
# (`affine.qparams` and `affine.fake_quantize` do what exercises 2.1 and 2.2 do; `fake_quantize` is quantize and dequantize in one.) The check
# compares your range with a search of its own, and with plain min/max on a tensor with one planted outlier. Where nothing sticks out, the full
# range must win.


# %% nbgrader={"grade": false, "grade_id": "ex_2_5", "locked": false, "schema_version": 3, "solution": true, "task": false}
def clip_search(x: Tensor, qmin: int, qmax: int, n: int = 50) -> tuple[float, float]:
    """The range ``(f * min, f * max)``, f = 1/n … 1, with the smallest mean squared error after quantization.

    Parameters
    ----------
    x : Tensor, float32, any shape; perhaps a view; is not changed
    qmin, qmax : int
        Smallest and largest code.
    n : int
        How many ranges to try.

    Returns
    -------
    (float, float)
        Low and high of the best range.
    """
    ### BEGIN SOLUTION
    smallest, largest = x.min().item(), x.max().item()
    best, best_error = (smallest, largest), math.inf
    for step in range(1, n + 1):
        low, high = smallest * step / n, largest * step / n
        scale, zero_point = affine.qparams(low, high, qmin, qmax)
        error = (affine.fake_quantize(x, scale, zero_point, qmin, qmax) - x).square().mean().item()
        if error < best_error:
            best, best_error = (low, high), error
    return best
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_2_5_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 2.5: run this cell.
from collections.abc import Callable

import numpy as np
import torch

from helpers import checks


@checks.isolated
def check_ex_2_5() -> None:
    Ends = tuple[float, float]

    def error(x: torch.Tensor, ends: Ends, qmin: int, qmax: int) -> np.ndarray:
        values = x.double().numpy()
        bottom, top = min(ends[0], 0.0), max(ends[1], 0.0)
        scale = max((top - bottom) / (qmax - qmin), 2**-23)
        zero = min(max(qmin - round(bottom / scale), qmin), qmax)
        codes = np.clip(np.rint(values / scale) + zero, qmin, qmax)
        return scale * (codes - zero) - values

    def mse(x: torch.Tensor, ends: Ends, qmin: int, qmax: int) -> float:
        return float((error(x, ends, qmin, qmax) ** 2).mean())

    def ranges(x: torch.Tensor, n: int) -> list[Ends]:
        smallest, largest = float(x.min()), float(x.max())
        return [(smallest * f / n, largest * f / n) for f in range(1, n + 1)]

    def best(tried: list[Ends], cost: Callable[[Ends], float]) -> list[Ends]:
        costs = [cost(ends) for ends in tried]
        return [ends for ends, each in zip(tried, costs, strict=True) if each <= min(costs) * 1.001 + 1e-9]

    def first_rise(tried: list[Ends], cost: Callable[[Ends], float]) -> list[Ends]:
        costs = [cost(ends) for ends in tried]
        return [next((tried[i] for i in range(len(tried) - 1) if costs[i + 1] > costs[i]), tried[-1])]

    def mistakes(x: torch.Tensor, qmin: int, qmax: int, n: int) -> dict[str, list[Ends]]:
        """The ranges (where there are ties, several) that each known mistake may choose."""
        tried, whole = ranges(x, n), (float(x.min()), float(x.max()))
        far = max(abs(whole[0]), abs(whole[1]))

        def squares(ends: Ends) -> float:
            return mse(x, ends, qmin, qmax)

        def clipped(ends: Ends) -> float:
            return float(((error(x, ends, qmin, qmax) + x.numpy() - x.clamp(*ends).numpy()) ** 2).mean())

        return {
            "the largest error decides there, not the mean of the squares": best(
                tried, lambda ends: np.abs(error(x, ends, qmin, qmax)).max()
            ),
            "errors whose signs differ cancel in a mean: square them first": best(
                tried, lambda ends: abs(error(x, ends, qmin, qmax).mean())
            ),
            "that is the smallest mean *absolute* error: square the errors": best(
                tried, lambda ends: np.abs(error(x, ends, qmin, qmax)).mean()
            ),
            "x was clamped to the range before it was compared, so that what is cut off costs nothing: compare with x itself": best(
                tried, clipped
            ),
            "the codes are taken for 0 to 255: pass qmin and qmax on, to qparams and to fake_quantize": best(
                tried, lambda ends: mse(x, ends, 0, 255)
            ),
            "the range is symmetric: the ends are f * min and f * max": best(
                [(-far * f / n, far * f / n) for f in range(1, n + 1)], squares
            ),
            "the full range, f = 1, was never tried": best(tried[:-1], squares),
            "only the upper end was moved: both ends shrink with f": best(
                [(whole[0], top) for _, top in tried], squares
            ),
            "only the lower end was moved: both ends shrink with f": best(
                [(low, whole[1]) for low, _ in tried], squares
            ),
            "that is the full range: a smaller one has a smaller error": [whole],
            "the search stops at the first range that is worse than the one before: the error can fall, rise and fall again": first_rise(
                tried, squares
            ),
            "going down from f = 1, the search stops at the first range that is worse: the error can fall, rise and fall again": first_rise(
                tried[::-1], squares
            ),
            "50 ranges were tried, whatever n is": best(ranges(x, 50), squares),
            "that is a scale and a zero point; return the low and the high end": [
                ruler(*ends, qmin, qmax) for ends in best(tried, squares)
            ],
            "the ends are turned around: low comes first": [ends[::-1] for ends in best(tried, squares)],
        }

    def ruler(low: float, high: float, qmin: int, qmax: int) -> Ends:
        first, last = min(low, 0.0), max(high, 0.0)
        step = max((last - first) / (qmax - qmin), 2.0**-23)
        return step, float(min(max(qmin - round(first / step), qmin), qmax))

    def alike(a: Ends, b: Ends) -> bool:
        return np.allclose(a, b, rtol=1e-3, atol=1e-6)

    def wrong_with(x: torch.Tensor, qmin: int, qmax: int, n: int, answer: Ends) -> str:
        """What is wrong with an answer, or nothing."""
        tried = ranges(x, n)
        mine, least = mse(x, answer, qmin, qmax), min(mse(x, ends, qmin, qmax) for ends in tried)
        shown = f"your range ({answer[0]:.4g}, {answer[1]:.4g})"
        if mine > least * 1.001 + 1e-12:
            return f"the mean squared error of {shown} is {mine:.3g}, but the best of the {n} has {least:.3g}"
        if not any(alike(answer, ends) for ends in tried):
            return f"{shown} is none of the ranges f * min, f * max with f = 1/{n}, 2/{n}, …, 1"
        return ""

    with checks.check(
        "2.5", "your range has the smallest error: below min/max with an outlier, equal to it without one"
    ):
        generator = torch.Generator().manual_seed(25)
        normal = torch.randn(1500, generator=generator)
        cases = {
            "numbers on a grid, and one beyond it": (
                torch.cat([(torch.arange(256) * 0.1).repeat(4), torch.tensor([26.0])]),
                (0, 15, 52),
            ),
            "a tensor with one outlier": (torch.cat([normal, torch.tensor([25.0])]), (0, 15, 50)),
            "a tensor with one negative outlier": (torch.cat([normal.abs() * 0.3, torch.tensor([-9.0])]), (-8, 7, 50)),
            "a uniform tensor": ((torch.rand(1500, generator=generator) * 4 - 1.5).view(30, 50).T, (0, 255, 50)),
            "a tensor with two clusters": (
                torch.cat([normal[:1000] * 0.3, normal[1000:1200] * 0.1 + 6, torch.tensor([-3.0, 15.0])]).view(2, -1),
                (-8, 7, 40),
            ),
            "a tensor of positive numbers": (normal.abs() + 0.5, (0, 15, 20)),
            "a tensor of negative numbers": (-normal.abs() - 0.5, (-8, 7, 20)),
            "a fine grid, and one number far beyond it": (
                torch.cat([(torch.arange(16) * 0.1).repeat(2000), torch.tensor([30.0])]).view(3, -1),
                (0, 15, 20),
            ),
            "a grid, and one number beyond it, with 151 ranges to try": (
                torch.cat([(torch.arange(16) * 0.1).repeat(64), torch.tensor([1.51])]),
                (0, 15, 151),
            ),
            "a tensor of zeros": (torch.zeros(2, 3), (0, 255, 10)),
        }
        answers: dict[str, Ends] = {}
        problems: dict[str, str] = {}
        for name, (x, settings) in cases.items():
            try:
                with checks.untouched(x=x):
                    answer = clip_search(x, *settings)
            except Exception:
                if problems:
                    break  # what was wrong before is said first
                raise
            checks.given(answer, "your range")
            assert isinstance(answer, tuple | list) and len(answer) == 2, (
                f"your answer for {name} should be a pair: low, high."
            )
            answers[name] = (float(answer[0]), float(answer[1]))
            if problem := wrong_with(x, *settings, answers[name]):
                problems[name] = problem
        if problems:
            known = {name: mistakes(x, *cases[name][1]) for name in answers if (x := cases[name][0]).any()}
            fits = [
                sentence
                for sentence in next(iter(known.values()))
                if all(any(alike(ends, answers[name]) for ends in known[name][sentence]) for name in known)
            ]
            name, problem = next(iter(problems.items()))
            likely = f" ({fits[0]})" if len(fits) == 1 else ""
            raise AssertionError(f"for {name} {problem}{likely}.")
    ### BEGIN HIDDEN TESTS
    generator = torch.Generator().manual_seed(205)
    for grid, outlier, settings in [
        ((torch.arange(16) * 0.2).repeat(4000), 75.0, (0, 15, 25)),
        ((torch.arange(-8, 0) * 0.1).repeat(4000), -24.0, (-8, 7, 15)),
        ((torch.arange(1, 16) * 0.2).repeat(64), 3.03, (0, 15, 101)),
        ((torch.arange(0, 256) * 0.1).repeat(4), 25.6, (0, 255, 256)),
    ]:
        x = torch.cat([grid, torch.tensor([outlier])])
        ends = tuple(float(end) for end in clip_search(x, *settings))
        assert not wrong_with(x, *settings, ends), "a grid, and one number beyond it."
    for qmin, qmax, n in [(0, 15, 40), (-8, 7, 25), (0, 255, 30), (0, 7, 20)]:
        normal = torch.randn(4, 300, generator=generator)
        for x in (
            normal.mT,
            normal.abs() + 0.5,
            -normal.abs() - 0.5,
            torch.cat([normal.flatten(), torch.tensor([-60.0, 20.0])]),
            torch.cat([normal[0] * 0.3, normal[1, :60] * 0.1 + 6, torch.tensor([-3.0, 15.0])]),
            torch.cat([normal[2] * 0.05 - 1, normal[3, :60] * 0.1 - 7, torch.tensor([4.0, -20.0])]).view(2, -1),
            torch.zeros(9),
            torch.full((9,), -2.0),
        ):
            with checks.untouched(x=x):
                low, high = (float(end) for end in clip_search(x, qmin, qmax, n))
            problem = wrong_with(x, qmin, qmax, n, (low, high))
            assert not problem, problem
    ### END HIDDEN TESTS


check_ex_2_5()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# A loop over f, with the best range and the best error so far in two variables.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# For each range: `affine.qparams`, then `affine.fake_quantize`, then `(… - x).square().mean()`. Shrink both ends by the same f.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `for step in range(1, n + 1): low, high = smallest * step / n, largest * step / n; scale, zero_point = affine.qparams(low, high, qmin, qmax); …; if error < best_error: …`
# </details>

# %% [markdown]
# ### Five ways to choose, compared
#
# Each chooses on the eight calibration documents, with 4 bits, where ranges matter most, and with 8. The error is then measured on the
# *other* eight documents, which nobody has seen.
#
# From here on the unit uses the course's own versions of what you wrote, so that an exercise you skipped does not stop you. Put yours in their place: `clip_search`
# in `best_clip`, `static_int8` for `int8.static_int8`, `torchao_int8` and `pt2e_int8` in the table of section 8. Nothing may change.


# %%
def torch_observer(kind: type, bits: int) -> tuple[float, int]:
    """Scale and zero point that one of PyTorch's observers chooses on the calibration batches."""
    observer = kind(dtype=torch.quint8, quant_min=0, quant_max=2**bits - 1)
    for batch in calibration:
        observer(batch)
    scale, zero_point = observer.calculate_qparams()
    return float(scale), int(zero_point)


def best_clip(bits: int) -> tuple[float, int]:
    """What exercise 2.5 does, on a sixteenth of the calibration data."""
    sample = torch.cat(calibration).flatten()[::16]
    low, high = sample.min().item(), sample.max().item()
    tried = [affine.qparams(low * f / 50, high * f / 50, 0, 2**bits - 1) for f in range(1, 51)]
    return min(tried, key=lambda p: (affine.fake_quantize(sample, *p, 0, 2**bits - 1) - sample).square().mean().item())


def percentile(bits: int) -> tuple[float, int]:
    """The range without the most extreme 0.01 % at each end."""
    sample = torch.cat(calibration).flatten()[::16]
    return affine.qparams(*torch.quantile(sample, torch.tensor([0.0001, 0.9999])).tolist(), 0, 2**bits - 1)


choices = {
    "min/max": lambda bits: torch_observer(tq.MinMaxObserver, bits),
    "moving average": lambda bits: torch_observer(tq.MovingAverageMinMaxObserver, bits),
    "percentile 99.99": percentile,
    "histogram": lambda bits: torch_observer(tq.HistogramObserver, bits),
    "MSE clip search": best_clip,
}
fig, axes = plots.figure(rows=2, height=4.6)
for ax, bits in zip(axes, (8, 4), strict=True):
    found = {}
    for name, choose in choices.items():
        scale, zero_point = choose(bits)
        low, high = -zero_point * scale, (2**bits - 1 - zero_point) * scale
        back = affine.fake_quantize(unseen, scale, zero_point, 0, 2**bits - 1)
        found[f"{name} [{low:.2f}, {high:.2f}]"] = metrics.sqnr_db(unseen, back)
    plots.bars(ax, found, "SQNR in dB on unseen documents")
    ax.set_title(f"{bits} bits")
plots.show(
    fig,
    caption="Five ways to choose a range for the inputs of blocks.0.ffn.down, with the range that each has chosen.",
    alt="Two bar charts of signal-to-noise ratios. With 8 bits the five are close together, percentile the lowest. With 4 bits the clip search is the "
    "highest, then percentile, both by several decibels; histogram, moving average and min/max follow, within about one decibel of each other.",
)

# %% [markdown]
# With 8 bits there are codes enough: clipping buys little, and what cuts too much (the percentile) is even worse than min/max. With 4 bits the two that cut the tail off,
# clip search and percentile, are far ahead. Look at the ranges: those of min/max and of the moving average begin at 0.00, because their gaps are so wide that the small negative end
# rounds to nothing. There is no best observer; there is a measurement.

# %% [markdown]
# ## 4. Engines and qconfigs: who multiplies, and with what?
#
# PyTorch hands int8 products to one of several libraries, its **engines**: `fbgemm`, `x86` (fbgemm and oneDNN together, the default on PCs),
# `onednn`, and `qnnpack`, the one on Apple's computers and on many other ARM processors. A **qconfig** names the two observers that a layer gets: one for the
# activations that leave it, one for its weight. Each engine has a default qconfig, and they are not the same:

# %% tags=["nbval-check-output"]
for name in ("fbgemm", "x86", "onednn", "qnnpack"):
    qconfig = tq.get_default_qconfig(name)
    activation, weight = qconfig.activation(), qconfig.weight()
    print(
        f"{name:8} activations {type(activation).__name__} {activation.quant_min}…{activation.quant_max}, "
        f"weights {type(weight).__name__} {weight.quant_min}…{weight.quant_max}"
    )

# %% tags=["varies"]
print("engines of this computer, the one in use first:", ", ".join(int8.engines()))

# %% [markdown]
# Two surprises. With `qnnpack`, weights have one scale a tensor. And with `fbgemm` and `x86`, activations get the codes 0 to **127**: 7 bits. That
# is called `reduce_range`. Here is what it does to the codes of the same 2 million activations:

# %%
fig, axes = plots.figure(columns=2, width=10, height=2.2)
for ax, name in zip(axes, ("x86", "onednn"), strict=True):
    observer = tq.get_default_qconfig(name).activation()
    for watched_batch in calibration:
        observer(watched_batch)
    scale, zero_point = (float(v) for v in observer.calculate_qparams())
    codes = affine.quantize(unseen, scale, int(zero_point), observer.quant_min, observer.quant_max)
    ax.bar(*(v.numpy() for v in codes.unique(return_counts=True)), width=1.0, color=plots.BLUE, log=True)
    back = affine.dequantize(codes, scale, int(zero_point))
    ax.set_title(f"{name}: {codes.unique().numel()} different codes, SQNR {metrics.sqnr_db(unseen, back):.1f} dB")
    ax.set_xlabel("code")
    ax.set_xlim(-3, 258)
axes[0].set_ylabel("how many (log)")
plots.show(
    fig,
    caption="Codes of the same activations with the default qconfigs of two engines.",
    alt="Two histograms of codes. With x86 they fill 0 to 127, with onednn 0 to 255; the second has the higher signal-to-noise ratio.",
)

# %% [markdown]
# (Each observer chose a range of its own, so the two differ by less than the 6 dB of a bit.) Why give away a bit? The int8 instruction of older PC processors multiplies two pairs of 8-bit numbers and adds the two products in **16** bits. The
# largest possible sum must fit, or it is cut off without a word:

# %% tags=["nbval-check-output"]
for activation_bits in (8, 7):
    largest = 2 * (2**activation_bits - 1) * 127  # two products of the largest activation and the largest weight
    verdict = "fits" if largest <= 2**15 - 1 else "is cut off"
    print(f"{activation_bits}-bit activations: largest pair {largest}, 16 bits hold {2**15 - 1}: {verdict}")

# %% [markdown]
# Newer processors (with the instructions that are called VNNI) add in 32 bits, and 8 bits are safe. PyTorch's eager mode cannot know where your model will run and takes
# the safe way. torchao, in section 8, takes it only if you ask: its configs have an argument `reduce_range`. Unit 03 switches the new instructions off, and shows the damage for real.
#
# ## 5. Static quantization: all ranges chosen before
#
# **Static post-training quantization** fixes *all* scales before the model is used, those of the activations too. Integers go in,
# integers come out, and no layer has to look for a range. Its steps in PyTorch's eager mode:
#
# | step | what happens |
# |---|---|
# | stubs | `tq.QuantWrapper(net)`, or your own `QuantStub` at the entry and `DeQuantStub` at the exit: where float becomes int8 and back |
# | qconfig | `wrapped.qconfig = tq.get_default_qconfig(name)`: which observers; the name of the engine in use is `torch.backends.quantized.engine` |
# | `tq.prepare` | returns a copy with an observer behind the QuantStub and behind every layer |
# | calibrate | run representative data, in eval mode and without gradients |
# | `tq.convert` | returns a copy in which every observed layer is an int8 layer, with the scales that its observer has named |
#
# Each of these steps can be forgotten, and hardly any of them complains. Here they are for a single layer, with what each leaves behind
# (`LinearPackedParams` is where an int8 layer keeps its weight; the recipe is written in by name, so that this cell prints the same on every PC, but your
# function should ask which engine is in use):

# %% tags=["nbval-check-output"]
torch.manual_seed(5)
one = tq.QuantWrapper(nn.Sequential(nn.Linear(6, 3))).eval()
one.qconfig = tq.get_default_qconfig("onednn" if torch.backends.quantized.engine != "qnnpack" else "qnnpack")
watched = tq.prepare(one)
print("prepared: ", [type(m).__name__ for m in watched.modules() if not isinstance(m, tq.QuantWrapper | nn.Sequential)])
with torch.no_grad():
    watched(torch.randn(64, 6))
frozen = tq.convert(watched)
print("converted:", [type(m).__name__ for m in frozen.modules() if not isinstance(m, tq.QuantWrapper | nn.Sequential)])

# %% [markdown]
# ### Exercise 2.6: static int8
# *Difficulty 3 of 5 · 20 minutes · 2 points*
#
# Write the pipeline for any float network that takes one float tensor. The network that comes in stays as it is, its training mode
# included; what you return is in eval mode. Calibrate with *all* batches.


# %% nbgrader={"grade": false, "grade_id": "ex_2_6", "locked": false, "schema_version": 3, "solution": true, "task": false}
def static_int8(net: nn.Module, batches: list[Tensor]) -> nn.Module:
    """A statically quantized int8 copy of `net`, with the default qconfig of the engine in use; layers are not fused.

    Parameters
    ----------
    net : Module
        Maps one float tensor (batch, features) to another; may be in training mode, and is not changed.
    batches : list of Tensor, float32
        Calibration data.

    Returns
    -------
    Module
        In eval mode; takes and returns float32, computes in int8 in between.
    """
    ### BEGIN SOLUTION
    wrapped = tq.QuantWrapper(copy.deepcopy(net)).eval()
    wrapped.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    prepared = tq.prepare(wrapped)
    with torch.no_grad():
        for batch in batches:
            prepared(batch)
    return tq.convert(prepared)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_2_6_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 2.6: run this cell.
import copy
from itertools import pairwise

import torch
import torch.ao.quantization as tq
from torch import nn

from helpers import checks, describe, int8, known_warnings, samples, witness


@checks.isolated
def check_ex_2_6() -> None:
    known_warnings.hide()

    class Backwards(nn.Module):
        """A forward of its own, and layers that are not registered in the order of their use."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.last, self.inner = nn.Linear(8, 5), inner
            self.last.weight.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.inner(x).relu())

    def network(seed: int, *widths: int) -> nn.Sequential:
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        for d_in, d_out in pairwise(widths):
            layers += [nn.Linear(d_in, d_out), nn.ReLU(), nn.Dropout(0.5)]
            nn.init.normal_(layers[-3].weight, std=d_in**-0.5, generator=generator)
            nn.init.normal_(layers[-3].bias, std=0.1, generator=generator)
        return nn.Sequential(*layers[:-2])

    @torch.no_grad()
    def expected_scales(net: nn.Module, batches: list[torch.Tensor]) -> list[float]:
        """What the engine's default observer says of each Linear's float outputs, in eval mode."""
        net, observers = copy.deepcopy(net).eval(), []
        for layer in net.modules():
            if isinstance(layer, nn.Linear):
                observer = tq.get_default_qconfig(torch.backends.quantized.engine).activation()
                layer.register_forward_hook(lambda module, _in, out, observer=observer: (observer(out), None)[1])
                observers.append(observer)
        for batch in batches:
            net(batch)
        return [float(observer.calculate_qparams()[0]) for observer in observers]

    def near(some: list[float], other: list[float]) -> bool:
        return all(abs(a / b - 1) < 0.01 for a, b in zip(some, other, strict=True))

    def quantized(net: nn.Module, batches: list[torch.Tensor], what: str = "the network that came in") -> nn.Module:
        """The learner's copy, after questions about the original, the layers and their scales."""
        kept, engine = copy.deepcopy(net), torch.backends.quantized.engine
        with checks.untouched(batches=batches):
            answer = static_int8(net, batches)
        checks.given(answer, "your model")
        assert isinstance(answer, nn.Module), f"your answer should be a model, not {type(answer).__name__}."
        assert torch.backends.quantized.engine == engine, (
            f"your function leaves the engine {torch.backends.quantized.engine} in use, for everybody; it was {engine}."
        )
        changed = witness.unchanged(kept, net)
        assert "eval mode" not in changed, (
            f"the network that came in was changed ({changed}): call .eval() on your copy, not on the original."
        )
        assert not changed, (
            f"{what} was changed ({changed}): work on a copy (copy.deepcopy), and keep what tq.prepare and tq.convert return."
        )
        shared = witness.independent(answer, net)
        assert not shared, f"your model is no copy: {shared}."
        found = describe.int8_linears(answer)
        types = sorted({kind.rsplit(".", 1)[1] for kind in describe.layer_types(answer).values()})
        dynamic = [kind for kind in describe.layer_types(answer).values() if ".dynamic." in kind]
        assert not dynamic, (
            "your layers choose a range for each input: that is dynamic int8 (section 6). Static layers come from prepare, calibration and convert."
        )
        left = [name for name, part in answer.named_modules() if isinstance(part, tq.ObserverBase)]
        assert found or not left, (
            "your model still holds its observers, and no int8 layer: return what tq.convert returns."
        )
        assert found, (
            f"there is no int8 Linear in your model; its layers are {', '.join(types)}. Without a qconfig, or without tq.prepare before "
            "tq.convert, nothing is converted, and PyTorch does not complain."
        )
        fused = [kind for kind in types if "LinearReLU" in kind]
        assert not fused, (
            "your copy fuses Linear and ReLU into one layer: unit 03 does that; here each layer stays its own."
        )
        count = sum(isinstance(layer, nn.Linear) for layer in kept.modules())
        assert len(found) == count, f"{len(found)} of {count} Linear layers of {what} are int8."
        schemes = {str(m.weight().qscheme()) for m in answer.modules() if type(m) is torch.ao.nn.quantized.Linear}
        default = "torch.per_tensor_affine" if engine == "qnnpack" else "torch.per_channel_affine"
        assert schemes == {default}, (
            f"your weights are {schemes.pop()}; the default qconfig of the engine in use, {engine}, makes them {default}."
        )
        for layer, linear in zip(
            (m for m in answer.modules() if type(m) is torch.ao.nn.quantized.Linear),
            (m for m in kept.modules() if isinstance(m, nn.Linear)),
            strict=True,
        ):
            weight, observer = layer.weight(), tq.get_default_qconfig(engine).weight()
            observer(linear.weight.detach())
            mine = weight.q_scale() if engine == "qnnpack" else weight.q_per_channel_scales().float()
            assert torch.allclose(torch.as_tensor(mine).float(), observer.calculate_qparams()[0], rtol=1e-3, atol=0), (
                f"the scales of your int8 weights in {what} are not those of the default qconfig: the weights have fewer codes, or were changed."
            )
            bias = layer.bias()
            assert linear.bias is None or torch.equal(bias, linear.bias), (
                f"a bias in your copy of {what} holds other numbers: int8 layers keep the float bias."
            )
        assert not describe.is_training(answer), (
            "your model is in training mode: call .eval() before you calibrate, or dropout disturbs the ranges."
        )
        assert not all(scale == 1.0 and zero == 0 for _, scale, zero in found), (
            "all your scales are 1: that is what PyTorch's observers answer when they have seen nothing. Run the calibration batches through the "
            "prepared model, before tq.convert."
        )
        return answer

    def outputs(answer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        try:
            with torch.no_grad():
                output = answer(x)
        except NotImplementedError as error:
            raise AssertionError(
                "your model cannot take a float tensor: an int8 layer needs a QuantStub in front of it, and a DeQuantStub at the end "
                f"(tq.QuantWrapper has both). PyTorch says: {str(error).split('. ')[0]}."
            ) from None
        assert not output.is_quantized, "your model returns a quantized tensor: a DeQuantStub is missing at the end."
        return output

    with checks.check(
        "2.6",
        "every Linear is int8, calibrated on all batches in eval mode, close to float, and the original is untouched",
    ):
        net = network(26, 12, 24, 16, 5).train()
        net[2].eval()  # one dropout is frozen, and stays so
        net[0].weight.requires_grad_(False)
        generator = torch.Generator().manual_seed(90)
        shifts = torch.randn(4, 12, generator=generator) * 2
        batches = [torch.randn(64, 12, generator=generator) * 0.5 + shift for shift in shifts]
        answer = quantized(net, batches)
        x = torch.randn(200, 12, generator=generator) + shifts[torch.arange(200) % 4]
        output = outputs(answer, x)
        found, right = describe.int8_linears(answer), expected_scales(net, batches)
        scales = [scale for _, scale, _ in found]
        if not near(scales, right):
            seen = {
                "that is the range of the first batch only: calibrate with all of them": batches[:1],
                "that is the range of the last batch only: calibrate with all of them": batches[-1:],
                "the first batch was left out: calibrate with all of them": batches[1:],
                "the last batch was left out: calibrate with all of them": batches[:-1],
                "calibrated was with the first batch again and again": batches[:1] * 4,
            }
            likely = [sentence for sentence, few in seen.items() if near(scales, expected_scales(net, few))]
            likely += ["calibrating in training mode (dropout), with another qconfig or with other data changes it"]
            name, scale, true = next(
                (n, a, b) for (n, a, _), b in zip(found, right, strict=True) if abs(a / b - 1) >= 0.01
            )
            raise AssertionError(f"the output scale of {name} is {scale:.4g}; expected is {true:.4g}: {likely[0]}.")
        with torch.no_grad():
            float_output = copy.deepcopy(net).eval()(x)
        error = ((output - float_output).norm() / float_output.norm()).item()
        assert 1e-4 < error < 0.12, (
            f"your model's outputs are {error:.3f} (relative) away from float; int8 should be within a few per cent, and not exact."
        )
        assert witness.runs_in_int8(answer, copy.deepcopy(net).eval(), x), (
            "your model's outputs do not follow its int8 weights: it computes with a float copy that it hides."
        )
        kinds = (
            "Sequentials inside",
            "three places",
            "without biases",
            "called twice",
        )  # all their operations know int8
        for what, odd, x in [
            *[entry for entry in samples.zoo(26) if any(kind in entry[0] for kind in kinds)],
            ("a model with a forward of its own", Backwards(network(27, 8, 12, 8)), torch.randn(5, 8)),
        ]:
            odd_batches = [torch.randn(32, 8, generator=generator) * size for size in (0.5, 2, 1)]
            answer = quantized(odd, odd_batches, what)
            scales = [scale for _, scale, _ in describe.int8_linears(answer)]
            assert near(scales, expected_scales(odd, odd_batches)), (
                f"for {what} the output scales of your layers are {', '.join(f'{scale:.3g}' for scale in scales)}; expected are "
                f"{', '.join(f'{scale:.3g}' for scale in expected_scales(odd, odd_batches))}."
            )
            outputs(answer, x)
        other = int8.another_engine()
        with int8.using(other):  # where this torch has one engine only, the same once more
            scales = [scale for _, scale, _ in describe.int8_linears(quantized(net, batches))]
            assert near(scales, expected_scales(net, batches)), (
                f"with the engine {other} in use your layers do not get its default qconfig: a recipe of another engine is written in. The "
                "name of the engine in use is torch.backends.quantized.engine."
            )
    ### BEGIN HIDDEN TESTS
    with torch.random.fork_rng(devices=[]):  # new layers draw random weights
        for seed, widths in [(1, (8, 30, 4)), (2, (20, 20, 20, 20, 7)), (3, (6, 3))]:
            net = network(seed, *widths)
            net.train(seed % 2 == 0)
            generator = torch.Generator().manual_seed(seed)
            batches = [torch.randn(50, widths[0], generator=generator) * size + 0.2 for size in (0.3, 2, 0.7)]
            answer = quantized(net, batches)
            found, right = describe.int8_linears(answer), expected_scales(net, batches)
            assert near([scale for _, scale, _ in found], right), "wrong scales."
            assert "torch.float32" not in describe.weight_dtypes(answer).values(), "a float layer is left."
            with torch.no_grad():
                output, float_output = answer(batches[1]), copy.deepcopy(net).eval()(batches[1])
            error = (output - float_output).norm() / float_output.norm()
            assert output.dtype == torch.float32 and not output.is_quantized and 1e-4 < error < 0.12, (
                "the outputs are not those of an int8 copy."
            )
            assert output.unique().numel() <= 256, (
                "the outputs take more values than 8 bits have: they do not come from an int8 layer."
            )
        for seed in (90, 128, 171):  # with each of these seeds every batch matters
            generator = torch.Generator().manual_seed(seed)
            shifts = torch.randn(4, 12, generator=generator) * 2
            batches = [torch.randn(64, 12, generator=generator) * 0.5 + shift for shift in shifts]
            net = network(26, 12, 24, 16, 5)
            net[2].eval()
            scales = [scale for _, scale, _ in describe.int8_linears(quantized(net, batches))]
            assert near(scales, expected_scales(net, batches)), "not all batches, or not in eval mode."
        with int8.using(int8.another_engine()):
            scales = [scale for _, scale, _ in describe.int8_linears(quantized(net, batches))]
            assert near(scales, expected_scales(net, batches)), "another recipe than the engine's."
        odd = Backwards(nn.Sequential(network(5, 8, 10), network(6, 10, 8))).train()
        batches = [torch.randn(30, 8, generator=generator) * size for size in (1, 3)]
        scales = [scale for _, scale, _ in describe.int8_linears(quantized(odd, batches))]
        assert near(scales, expected_scales(odd, batches)), "wrong for a model with a forward of its own."
        net = network(9, 10, 14, 4).eval()
        shown = static_int8(net, [torch.randn(64, 10)])
        assert witness.runs_in_int8(shown, net, torch.randn(50, 10)), "the outputs do not come from the int8 layers."
    ### END HIDDEN TESTS


check_ex_2_6()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Go through the table above, step by step. Every step but calibration is one line.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `tq.QuantWrapper(copy.deepcopy(net)).eval()` gives a copy with stubs in eval mode. `torch.backends.quantized.engine` is the name of the engine
# in use. `tq.prepare` and `tq.convert` return new models; what you pass to them does not change.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `wrapped = …`, `wrapped.qconfig = tq.get_default_qconfig(…)`, `prepared = tq.prepare(…)`, a loop over `batches` inside `torch.no_grad()`,
# and `return tq.convert(…)`.
# </details>

# %% [markdown]
# ### Proof: PyTorch's int8 layer computes our formula
#
# Now a network with a job: it reads eight bytes and guesses the ninth. Embeddings of the eight bytes, side by side, go through a *body*
# of three Linear layers with ReLU. It trains in a few seconds, and from here to section 8 the same body goes through every API.

# %%
train_ids, train_next = next_byte.examples("training", documents=1400)
test_ids, test_next = next_byte.examples("held_out", documents=96)
torch.manual_seed(0)
net = next_byte.fit(next_byte.NextByteNet(), train_ids, train_next, steps=300, lr=6e-3)
with torch.no_grad():
    features = net.features(test_ids)  # (count, 192): what the body sees
    calibration_features = net.features(train_ids[:: len(train_ids) // 2048]).split(256)
print(f"{len(train_ids)} examples to train on, {len(test_ids)} held out")
print(f"float: {next_byte.bits(net, test_ids, test_next).mean():.3f} bits per byte")

# %% [markdown]
# Take the first layer of its statically quantized body and do its work with the formulas of section 1: quantize the input, multiply the
# *reconstructions*, add the bias, quantize the output with the layer's own scale.

# %% tags=["nbval-check-output"]
static_body = int8.static_int8(net.body, calibration_features)  # (what your exercise 2.6 returns)
stub, layer = static_body.quant, static_body.module[0]
some = features[:1000]
x_hat = affine.fake_quantize(some, float(stub.scale), int(stub.zero_point), 0, 255)
y = x_hat @ layer.weight().dequantize().T + layer.bias()
ours = affine.quantize(y.detach(), layer.scale, layer.zero_point, 0, 255)
theirs = layer(stub(some)).int_repr().int()
apart = (ours - theirs).abs()
print("largest difference is at most one code:", apart.max().item() <= 1)
print("fewer than 1 % of the codes differ:", (apart > 0).float().mean().item() < 0.01)

# %% [markdown]
# The kernel never sees these reconstructions; it multiplies integers. It gets the same codes all the same, except where a sum lies so near a half that
# the order of additions decides. That is why tests of this course allow one code.
#
# > **The book says** (chapter 2): put a QuantStub before and a DeQuantStub behind the Transformer, move all to the graphics card, set the qconfig, and
# > call `quantize(model, default_qconfig=…, inplace=True)`.
# >
# > **What happens:** the first three lines of the next cell. `quantize` has no such parameter: its second one is the function that calibrates. A stub in
# > front of a model that reads *token ids* gets whole numbers, and after conversion refuses them. And `.cuda()` has no place here: the int8 layers
# > that `convert` makes for the four engines above hold weights that are packed for a processor. (PyTorch's source also has
# > [an int8 Linear for graphics cards, by cuDNN](https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/quantized/cudnn/Linear.cpp), per tensor; the course
# > did not run it.)

# %% tags=["nbval-check-output"]
reader = nn.Sequential(tq.QuantStub(), copy.deepcopy(net), tq.DeQuantStub()).eval()
reader.qconfig = tq.default_qconfig
errors.show_error(lambda: tq.quantize(reader, default_qconfig=tq.default_qconfig, inplace=True))

reader[1].embedding.qconfig = None  # or the conversion stops at the embedding (clinic, patient 3)
observed = tq.prepare(reader)
with torch.no_grad():
    observed(test_ids[:256])
blind = tq.convert(observed)
errors.show_error(lambda: blind(test_ids[:256]))


# %% [markdown]
# > **What works:** stubs *behind* the embedding, where the numbers are float: here, around the body. And `tq.quantize(model, run_fn, run_args)` does exist:
# > it is prepare, calibrate and convert in one, if `run_fn` is your calibration.


# %% tags=["nbval-check-output"]
def run_calibration(observed_model: nn.Module, batches: list[Tensor]) -> None:
    """Show the batches to the observers."""
    with torch.no_grad():
        for rows in batches:
            observed_model(rows)


whole, stubbed = copy.deepcopy(net), tq.QuantWrapper(copy.deepcopy(net.body)).eval()
stubbed.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
whole.body = tq.quantize(stubbed, run_calibration, [calibration_features])
gap = (next_byte.bits(whole, test_ids, test_next) - next_byte.bits(net, test_ids, test_next)).mean().item()
print("less than 0.03 bits per byte from float:", abs(gap) < 0.03)

# %% [markdown]
# > **The book says:** the qconfig, and `quantize`, specify the desired bit width of the weights.
# >
# > **What happens:** in eager mode the widths of a Linear layer are fixed by the kernels: 8 bits, and float16 for dynamic layers. Ask for 4 bits, or for 8 bits by the name of the plain type:

# %% tags=["nbval-check-output"]
for dtype in (torch.quint4x2, torch.int8):
    errors.show_error(lambda dtype=dtype: tq.quantize_dynamic(net.body, {nn.Linear}, dtype=dtype))

# %% [markdown]
# > **What works:** fewer bits can be *simulated* in eager mode (section 7), and stored by torchao (section 8).
#
# ## 6. Dynamic quantization: each input names its own range
#
# Unit 01 used `quantize_dynamic`. Now you can say what it does. The weights become int8 once, per tensor and symmetric. When an input arrives, the layer
# takes *its* minimum and maximum, quantizes it, multiplies integers, and turns the sum back into float:
#
# $$s_x, z_x = \text{qparams}(\min x, \max x, 0, 127) \qquad y = s_x \, s_w \sum_k (q_{x,k} - z_x)\, q_{w,k} + b$$
#
# There is no calibration, and no output scale: the output stays float. The codes end at 127, 7 bits, for the reason of section 4 (qnnpack ignores that, and
# goes to 255; `int8.dynamic_activation_qmax()` knows).
#
# ### Exercise 2.7: a dynamic Linear by hand
# *Difficulty 3 of 5 · 20 minutes · 2 points*
#
# Write it for float inputs of any leading dimensions; one scale for the whole input. Multiply in a type that can hold the sums: 8-bit products in an 8-bit type wrap
# around, and nobody complains:

# %% tags=["nbval-check-output"]
hundreds = torch.full((4,), 100, dtype=torch.int8)
print("int8 @ int8:", (hundreds @ hundreds).item(), " int32 @ int32:", (hundreds.int() @ hundreds.int()).item())


# %% nbgrader={"grade": false, "grade_id": "ex_2_7", "locked": false, "schema_version": 3, "solution": true, "task": false}
def dynamic_linear(x: Tensor, weight_codes: Tensor, weight_scale: float, bias: Tensor, qmax: int) -> Tensor:
    """A dynamically quantized Linear layer.

    Parameters
    ----------
    x : Tensor, float32, (..., in_features); perhaps a view, or with a gradient; no argument is changed
    weight_codes : Tensor, int8, (out_features, in_features)
        Symmetric codes: the weight is ``weight_scale * weight_codes``.
    weight_scale : float
    bias : Tensor, float32, (out_features,)
    qmax : int
        Activation codes go from 0 to `qmax`.

    Returns
    -------
    Tensor, float32, (..., out_features)
    """
    ### BEGIN SOLUTION
    scale, zero_point = affine.qparams(x.min().item(), x.max().item(), 0, qmax)
    codes = affine.quantize(x, scale, zero_point, 0, qmax)  # (..., in_features), int32
    sums = (codes - zero_point) @ weight_codes.to(torch.int32).T  # (..., out_features), exact
    return sums * (scale * weight_scale) + bias
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_2_7_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 2.7: run this cell.
import torch
from torch import nn

from helpers import affine, checks, int8, known_warnings, samples


@checks.isolated
def check_ex_2_7() -> None:
    known_warnings.hide()

    def layer(seed: int, d_in: int, d_out: int) -> tuple[nn.Module, tuple]:
        linear = nn.Linear(d_in, d_out)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(linear.weight, generator=generator)
        nn.init.normal_(linear.bias, std=20, generator=generator)  # large: a forgotten bias differs from a scaled one
        theirs = int8.dynamic_int8(nn.Sequential(linear))[0]
        weight = theirs.weight()
        return theirs, (weight.int_repr(), weight.q_scale(), linear.bias.detach())

    def qparams(x: torch.Tensor, qmax: int) -> tuple[float, int]:
        return affine.qparams(x.min().item(), x.max().item(), 0, qmax)

    def by_hand(
        x: torch.Tensor, codes: torch.Tensor, scale: float, bias: torch.Tensor, ruler: tuple, qmax: int
    ) -> torch.Tensor:
        x_hat = affine.fake_quantize(x, *ruler, 0, qmax).double()
        return (x_hat @ (codes.double() * scale).T + bias).float()

    def symmetric(x: torch.Tensor, per_row: bool) -> torch.Tensor:
        scale = (x.abs().amax(dim=-1, keepdim=True) if per_row else x.abs().max()) / 127
        return (x / scale).round().clamp(-127, 127) * scale

    def mistakes(
        x: torch.Tensor, codes: torch.Tensor, scale: float, bias: torch.Tensor, first: torch.Tensor, qmax: int
    ) -> dict[str, torch.Tensor]:
        """What each known mistake makes of this input."""
        ruler, weight = qparams(x, qmax), codes.float() * scale
        right = by_hand(x, codes, scale, bias, ruler, qmax)
        moved = affine.quantize(x, *ruler, 0, qmax) - ruler[1]  # int32
        rows = [by_hand(row, codes, scale, bias, qparams(row, qmax), qmax) for row in x.reshape(-1, x.shape[-1])]
        found = {
            "the input was not quantized at all.": x @ weight.T + bias,
            "each row got a scale of its own; here one scale serves the whole input.": torch.stack(rows).view(
                right.shape
            ),
            "each row got a symmetric scale of its own, as torchao's dynamic int8 does; here one scale and one zero point serve the whole input.": (
                symmetric(x, per_row=True) @ weight.T + bias
            ),
            "the input was quantized symmetrically: it has a zero point here.": symmetric(x, per_row=False) @ weight.T
            + bias,
            "you kept the scale of an earlier input: dynamic means that each input names its own.": by_hand(
                x, codes, scale, bias, qparams(first, qmax), qmax
            ),
            "the zero point was not subtracted from the activation codes.": (moved + ruler[1]).float()
            @ codes.float().T
            * (ruler[0] * scale)
            + bias,
            "the bias was forgotten.": right - bias,
            "the bias was multiplied by the scales, too: add it after.": (right - bias) + bias * ruler[0] * scale,
            "the bias was quantized, too: it stays float.": (right - bias)
            + (bias / (ruler[0] * scale)).round().clamp(-128, 127) * (ruler[0] * scale),
            "the integers were multiplied in an 8-bit type, and the sums wrapped around: make them int32 first.": (
                moved.to(torch.int8) @ codes.T
            ).float()
            * (ruler[0] * scale)
            + bias,
            "the integers were multiplied in a 16-bit type, and the sums wrapped around: make them int32 first.": (
                moved.to(torch.int16) @ codes.to(torch.int16).T
            ).float()
            * (ruler[0] * scale)
            + bias,
            "the weights were quantized a second time, with the scale of the input.": affine.fake_quantize(
                x, *ruler, 0, qmax
            )
            @ ((weight / ruler[0]).round().clamp(-128, 127) * ruler[0]).T
            + bias,
            "the scale of the weights was forgotten.": (moved.float() @ codes.float().T) * ruler[0] + bias,
            "the scale of the input was forgotten.": (moved.float() @ codes.float().T) * scale + bias,
        }
        for other in (127, 255):
            if other != qmax:
                found[f"the activation codes go to {other} instead of qmax={qmax}."] = by_hand(
                    x, codes, scale, bias, qparams(x, other), other
                )
        return found

    def compare(
        x: torch.Tensor, weights: tuple, right: torch.Tensor, first: torch.Tensor, qmax: int, name: str
    ) -> None:
        codes, scale, bias = weights
        try:
            with checks.untouched(x=x, weight_codes=codes, bias=bias):
                answer = dynamic_linear(x, codes, scale, bias, qmax)
        except RuntimeError as error:
            if "same dtype" in str(error):
                raise AssertionError(
                    f"both factors of the product must have one type: make the int8 codes of the weight int32. PyTorch says: {error}"
                ) from None
            raise
        what = f"your output for {name}"
        checks.tensor(answer, right.shape, what, torch.float32)
        allowed = 2e-4 * (right - bias).abs().max().item() + 1e-6
        if not torch.allclose(answer, right, atol=allowed, rtol=0):
            known = mistakes(x.detach(), codes, scale, bias, first, qmax)
            checks.close(answer.detach(), right, what, atol=allowed, rtol=0, mistakes=known)

    with checks.check(
        "2.7", "your outputs are those of PyTorch's dynamic Linear, for quiet, loud and one-sided inputs"
    ):
        qmax = int8.dynamic_activation_qmax()
        theirs, weights = layer(27, 65, 9)
        generator = torch.Generator().manual_seed(270)
        normal = torch.randn(7, 65, generator=generator) * torch.logspace(-1, 1, 7)[:, None] + 0.4
        for name, x in [
            ("an input with quiet and loud rows", normal),
            ("an input 50 times as loud", torch.randn(2, 3, 65, generator=generator) * 50),
            ("an all-positive input", torch.rand(5, 65, generator=generator) + 1),
            ("an all-negative input", -torch.rand(5, 65, generator=generator) - 1),
            ("one row, of one dimension", normal[3]),
        ]:
            right = theirs(x if x.dim() > 1 else x[None]).view(*x.shape[:-1], 9).detach()
            compare(x, weights, right, normal, qmax, name)
        for codes_to in (255, 127, 15):
            ruler = qparams(normal, codes_to)
            compare(
                normal,
                weights,
                by_hand(normal, *weights, ruler, codes_to),
                normal,
                codes_to,
                f"codes up to qmax={codes_to}",
            )
        x = torch.randn(2, 4, 65, generator=generator)
        for form, odd in samples.awkward(x):
            compare(odd, weights, by_hand(x, *weights, qparams(x, 100), 100), normal, 100, form)
        turned = (weights[0].T.contiguous().T, *weights[1:])
        compare(x, turned, by_hand(x, *weights, qparams(x, 100), 100), normal, 100, "weight codes that are a view")
        extreme = (torch.where(weights[0] < 0, -128, weights[0]).to(torch.int8), *weights[1:])
        right = by_hand(x, *extreme, qparams(x, 100), 100)
        compare(x, extreme, right, normal, 100, "weight codes of which half are -128, the smallest int8,")
        many = torch.randn(100, 65, generator=generator)
        many[-1] *= 5
        compare(
            many,
            weights,
            by_hand(many, *weights, qparams(many, 100), 100),
            normal,
            100,
            "100 rows, the last the loudest",
        )
        single = tuple(part[:1] for part in (weights[0], weights[2]))
        right = by_hand(x[:1], single[0], weights[1], single[1], qparams(x[:1], 100), 100)
        compare(
            x[:1], (single[0], weights[1], single[1]), right, normal, 100, "one output of an input of shape (1, 4, 65)"
        )
        calls = [(x, weights), (x * 2 + 1, (-weights[0].clamp(min=-127), weights[1], weights[2] - 1))]
        rights = [by_hand(t, *w, qparams(t, 100), 100) for t, w in calls]
        answers = [dynamic_linear(t, *w, 100) for t, w in calls]
        for answer, right, name in zip(answers, rights, ("first", "second"), strict=True):
            allowed = 2e-4 * right.abs().max().item()
            assert torch.allclose(answer, right, atol=allowed, rtol=0), (
                f"of two calls with other inputs and weights of the same shapes the {name} gives other outputs than it does alone: does "
                "your function keep something from call to call?"
            )
        zeros = torch.zeros(2, 65)
        checks.close(
            dynamic_linear(zeros, *weights, qmax),
            weights[2].expand(2, 9),
            "your output for an input of zeros, the bias",
        )
    ### BEGIN HIDDEN TESTS
    with torch.random.fork_rng(devices=[]):  # new layers draw random weights
        qmax = int8.dynamic_activation_qmax()
        for seed, (d_in, d_out) in enumerate([(16, 4), (100, 3), (512, 20)]):
            theirs, (codes, scale, bias) = layer(700 + seed, d_in, d_out)
            generator = torch.Generator().manual_seed(seed)
            normal = torch.randn(6, d_in, generator=generator)
            outlier = normal.clone()
            outlier[0, 0] = 90.0
            for x in (
                normal,
                normal[0],
                normal * 0.05,
                normal.abs() + 2,
                -normal.abs() - 2,
                outlier,
                torch.zeros(3, d_in),
                torch.full((2, d_in), 0.7),
            ):
                expected = theirs(x[None] if x.dim() == 1 else x).view(*x.shape[:-1], d_out).detach()
                with checks.untouched(x=x, weight_codes=codes, bias=bias):
                    answer = dynamic_linear(x, codes, scale, bias, qmax)
                assert answer.dtype == torch.float32, "the output should be float32."
                allowed = 2e-4 * (expected - bias).abs().max().item() + 1e-6
                torch.testing.assert_close(answer, expected, atol=allowed, rtol=0)
        generator = torch.Generator().manual_seed(277)
        codes, bias = (
            torch.randint(-128, 128, (5, 40), generator=generator).to(torch.int8),
            torch.randn(5, generator=generator),
        )
        calls = [(torch.randn(120, 40, generator=generator), codes[:1] // (k + 1), bias[:1] + k) for k in range(3)]
        for x, _, _ in calls:
            x[-1] *= 6
        answers = [dynamic_linear(x, few, 0.01, one, 100) for x, few, one in calls]
        for answer, (x, few, one) in zip(answers, calls, strict=True):
            exact = by_hand(x, few, 0.01, one, qparams(x, 100), 100)
            assert answer.shape == (120, 1), "another shape."
            torch.testing.assert_close(answer, exact, atol=2e-4 * exact.abs().max().item(), rtol=0)
        for qmax in (15, 100, 127, 255):
            for x in (torch.randn(4, 40, generator=generator), torch.rand(2, 4, 40, generator=generator) + 1):
                low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
                step = (high - low) / qmax
                zero = min(max(round(-low / step), 0), qmax)
                x_hat = step * (((x.double() / step).round() + zero).clamp(0, qmax) - zero)
                exact = x_hat @ (codes.double() * 0.01).T + bias
                for _, odd in [("", x), *samples.awkward(x)]:
                    with checks.untouched(x=odd, weight_codes=codes, bias=bias):
                        answer = dynamic_linear(odd, codes, 0.01, bias, qmax)
                    torch.testing.assert_close(
                        answer.detach().double(), exact, atol=2e-4 * (exact - bias).abs().max().item(), rtol=0
                    )
                answer = dynamic_linear(x, codes.T.contiguous().T, 0.01, bias, qmax)
                torch.testing.assert_close(
                    answer.double(), exact, atol=2e-4 * (exact - bias).abs().max().item(), rtol=0
                )
    ### END HIDDEN TESTS


check_ex_2_7()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Four steps: a scale and zero point for x, its codes, an integer product, back to float.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `affine.qparams(x.min().item(), x.max().item(), 0, qmax)` and `affine.quantize(…)` give int32 codes. `weight_codes` is int8: make it int32
# before the product, and transpose it.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `sums = (codes - …) @ weight_codes.to(torch.int32).T`, then multiply by both scales and add the bias.
# </details>

# %% [markdown]
# > **The book says** (chapter 2): dynamic quantization quantizes the weights during inference, in real time.
# >
# > **What happens:** your function received the weights as codes that had been made before. Only the input is quantized when the layer runs. That unit 01
# > showed; this cell shows the price, which the book does not mention: **the answer for one row depends on its neighbours**, because they share a scale. With
# > one scale a row (what torchao calls per token) it does not.

# %% tags=["nbval-check-output"]
torch.manual_seed(6)
linear = nn.Linear(64, 32)
nn.init.normal_(linear.weight)
row = torch.randn(1, 64)
quiet, loud = torch.cat([row, torch.randn(1, 64)]), torch.cat([row, 30 * torch.randn(1, 64)])

shared = int8.dynamic_int8(nn.Sequential(linear))
moved = (shared(quiet)[0] - shared(loud)[0]).norm() / shared(quiet)[0].norm()
print("one scale for all rows: does a loud neighbour change my answer?", bool(moved > 0.01))


def per_row(x: Tensor) -> Tensor:
    """Symmetric int8 reconstruction of `x` (rows, features) with one scale for each row."""
    scales = x.abs().amax(dim=1, keepdim=True) / 127  # (rows, 1)
    return (x / scales).round() * scales


print("one scale for each row: does it?", not torch.equal(per_row(quiet)[0], per_row(loud)[0]))

# %% [markdown]
# ## 7. Fake quantization: training with the error in sight
#
# The fewer bits, the more rounding costs; at 2 bits with one scale a row, as below, no choice of the range helps enough. (Finer groups, and methods that round cleverly, reach further down:
# unit 03.) Then the network can *learn* to live with coarse numbers: **quantization-aware training** (QAT). During
# training each weight is quantized and dequantized at once, and stays a float: that is **fake quantization**. The forward pass sees
# the error that real codes make, if scale and range of codes are those of the conversion that follows (unit 03 measures how often they are not).
#
# And the gradient? A staircase is flat everywhere, so its true gradient is 0, and nothing would be learned. The **straight-through estimator** (STE) pretends that
# rounding was not there: where $x$ lies on the ruler, the gradient passes unchanged; where $x$ was clamped, it is 0.
#
# $$\frac{\partial \hat x}{\partial x} \approx \begin{cases} 1 & \text{if } q_\min \le \text{round}(x/s) + z \le q_\max \\ 0 & \text{otherwise} \end{cases}$$
#
# A function with a gradient of its own is a `torch.autograd.Function`. Here is one that squares, and claims a gradient of 10 where its input is positive, and 0
# elsewhere:


# %% tags=["nbval-check-output"]
class Liar(torch.autograd.Function):
    """Squares its input; says that its gradient is 10 for positive inputs and 0 for others."""

    @staticmethod
    def forward(ctx, t: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(t > 0)  # tensors that backward needs
        return factor * t * t

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple:
        (positive,) = ctx.saved_tensors
        return 10.0 * upstream * positive, None  # one entry for each input of forward; None: no gradient


t = torch.tensor([3.0, -3.0], requires_grad=True)
Liar.apply(t, 1.0).sum().backward()
print("gradient:", t.grad.tolist())

# %% [markdown]
# ### Exercise 2.8: fake quantization with a straight-through gradient
# *Difficulty 3 of 5 · 20 minutes · 2 points*
#
# Write both directions. `backward` receives the gradient with respect to the output and returns one value for each input of `forward`. Neither changes the tensors that it is given.


# %% nbgrader={"grade": false, "grade_id": "ex_2_8", "locked": false, "schema_version": 3, "solution": true, "task": false}
class FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize; the gradient passes where the input lies on the ruler."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: float, zero_point: int, qmin: int, qmax: int) -> Tensor:
        """``scale * (q - zero_point)`` with q the codes of x; float32, shape of `x`."""
        ### BEGIN SOLUTION
        unclamped = torch.round(x / scale) + zero_point
        ctx.save_for_backward((unclamped >= qmin) & (unclamped <= qmax))
        return (unclamped.clamp(qmin, qmax) - zero_point) * scale
        ### END SOLUTION

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple:
        """Gradient with respect to x, then None for each of the four numbers."""
        ### BEGIN SOLUTION
        (inside,) = ctx.saved_tensors
        return upstream * inside, None, None, None, None
        ### END SOLUTION


def fake_quantize(x: Tensor, scale: float, zero_point: int, qmin: int, qmax: int) -> Tensor:
    """What training sees: `x` with the error of quantization, and a gradient.

    Example
    -------
    >>> x = torch.tensor([0.37, 2.35], requires_grad=True)
    >>> fake_quantize(x, 0.2, 5, 0, 15).sum().backward()
    >>> x.grad
    tensor([1., 0.])
    """
    return FakeQuantize.apply(x, scale, zero_point, qmin, qmax)


# %% nbgrader={"grade": true, "grade_id": "ex_2_8_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 2.8: run this cell.
from collections.abc import Callable

import torch

from helpers import checks, samples


@checks.isolated
def check_ex_2_8() -> None:
    def backward(output: torch.Tensor, upstream: torch.Tensor, **options: bool) -> None:
        """Run the learner's backward, with the sentences for what PyTorch says of its return value."""
        try:
            with checks.untouched(upstream=upstream):
                output.backward(upstream, **options)
        except RuntimeError as error:
            if "than None" in str(error):
                raise AssertionError(
                    "your backward returns a gradient for the scale or another number; those four have none: return None for each."
                ) from None
            if "number of gradients" in str(error):
                raise AssertionError(
                    f"your backward returns the wrong number of values: one for each input of forward, five in all. PyTorch says: {error}"
                ) from None
            raise

    def compare(
        x: torch.Tensor, scale: float, zero: int, qmin: int, qmax: int, upstream: torch.Tensor, what: str
    ) -> None:
        twin = x.detach().clone().requires_grad_()
        right = torch.fake_quantize_per_tensor_affine(twin, scale, zero, qmin, qmax)
        right.backward(upstream)
        with checks.untouched(x=x):
            answer = fake_quantize(x, scale, zero, qmin, qmax)
        checks.given(answer, "what fake_quantize returned")
        steps = (x.detach() / scale).round() + zero
        checks.tensor(answer, x.shape, f"your forward pass{what}", torch.float32)
        checks.close(
            answer.detach(),
            right.detach(),
            f"your forward pass{what}",
            mistakes={
                "these are the codes: turn them back into real numbers.": steps.clamp(qmin, qmax),
                "values beyond the ruler are not clamped.": (steps - zero) * scale,
                "the zero point is not subtracted again.": steps.clamp(qmin, qmax) * scale,
                "x came back as it was: quantize it.": x.detach(),
                "x was clamped to the ends of the ruler, but not rounded.": x.detach().clamp(
                    (qmin - zero) * scale, (qmax - zero) * scale
                ),
                "the zero point is inside the rounding: with an odd one exact halves go the other way.": (
                    (x.detach() / scale + zero).round().clamp(qmin, qmax) - zero
                )
                * scale,
                "the values are cut off instead of rounded.": (
                    ((x.detach() / scale).trunc() + zero).clamp(qmin, qmax) - zero
                )
                * scale,
            },
        )
        assert answer.requires_grad, "your output has no gradient at all: is x.detach() or torch.no_grad() in its way?"
        backward(answer, upstream)
        assert x.grad is not None, "no gradient reached x: the first value that backward returns belongs to it."
        inside = (steps >= qmin) & (steps <= qmax)
        strict = (steps > qmin) & (steps < qmax)
        reals = (x.detach() >= (qmin - zero) * scale) & (x.detach() <= (qmax - zero) * scale)
        checks.close(
            x.grad,
            twin.grad,
            f"your gradient{what}",
            mistakes={
                "it is 0 everywhere: that is the true gradient of a staircase, and nothing would be learned. Let it pass on the ruler.": x.detach()
                * 0,
                "it passes everywhere, also where x was clamped: there it must be 0.": upstream,
                "it is 1 or 0: multiply by the gradient that comes from above, the argument of backward.": inside.float(),
                "it is turned around: it passes where x was clamped, and stops on the ruler.": upstream * ~inside,
                "the scale does not belong into it: rounding is taken for the identity.": upstream * inside * scale,
                "the first and the last code lie on the ruler, too: use >= and <=. (What counts is whether x was clamped, not what came out.)": upstream
                * strict,
                "it is divided by the scale: rounding is taken for the identity.": upstream * inside / scale,
                "it compares x itself with the ends of the ruler. Half a gap beyond an end still rounds to the last code: compare round(x / s) + z with qmin and qmax, before the clamp.": upstream
                * reals,
                "the sign is turned around.": -upstream * inside,
            },
        )

    def twice(function: Callable) -> None:
        """Two calls before the backward pass, in every order; and one backward pass twice."""
        for order in ("first first", "last first", "of a sum"):
            quiet, loud = torch.full((3,), 0.5, requires_grad=True), torch.full((3,), 50.0, requires_grad=True)
            totals = [function(x, 0.25, 0, -8, 7).sum() for x in (quiet, loud)]
            for total in [sum(totals)] if order == "of a sum" else totals[:: 1 if order == "first first" else -1]:
                total.backward()
            assert quiet.grad.tolist() == [1.0] * 3 and loud.grad.tolist() == [0.0] * 3, (
                f"your gradient depends on another call (two calls, then the gradient {order}): two layers would mix their masks. Keep what "
                "backward needs in ctx, not in the class."
            )
        quiet = torch.full((3,), 0.5, requires_grad=True)
        total = function(quiet, 0.25, 0, -8, 7).sum()
        total.backward(retain_graph=True)
        total.backward()
        assert quiet.grad.tolist() == [2.0] * 3, (
            "a second backward pass through the same output gives another gradient: backward must not use up what forward kept."
        )

    def separate(function: Callable) -> None:
        first, second = (function(torch.tensor([size, -size]), 0.5, 0, -8, 7) for size in (1.0, 2.0))
        assert first.tolist() == [1.0, -1.0] and second.tolist() == [2.0, -2.0], (
            "a second call changes what the first one returned: each call must make a tensor of its own."
        )

    with checks.check("2.8", "values and gradients are those of torch.fake_quantize_per_tensor_affine"):
        generator = torch.Generator().manual_seed(28)
        for scale, zero, qmin, qmax in [(0.2137, 5, 0, 15), (0.113, 0, -8, 7)]:
            x = torch.randn(6, 50, generator=generator) * 1.5
            upstream = torch.randn(6, 50, generator=generator)
            compare(x.clone().requires_grad_(), scale, zero, qmin, qmax, upstream, "")
            for form, odd in samples.awkward(x):
                odd = odd.detach().requires_grad_()
                compare(odd, scale, zero, qmin, qmax, upstream, f" for {form}")
        halves = torch.tensor([-9.0, -3.5, -2.5, -0.5, 0.5, 1.5, 2.5, 9.0]) * 0.25
        for zero in (1, 2):
            upstream = torch.randn(8, generator=generator)
            what = f" for exact halves and zero point {zero}"
            compare(halves.clone().requires_grad_(), 0.25, zero, -4, 4, upstream, what)
        deep = torch.randn(2, 3, 8, generator=generator) * 2
        deep[0, 0, 0] = 0
        compare(
            deep.requires_grad_(), 0.2, 3, 0, 15, torch.randn(2, 3, 8, generator=generator), " for three dimensions"
        )
        loud = torch.tensor([3e12, -3e12, 0.0, 1.0])
        compare(
            loud.requires_grad_(),
            0.25,
            3,
            0,
            15,
            torch.tensor([1.0, 2.0, 300.0, -300.0]),
            " for the numbers 3e12, -3e12, 0 and 1",
        )
        spread = torch.randn(4, 6, generator=generator).requires_grad_()
        upstream = torch.randn(6, generator=generator).expand(4, 6).t().contiguous().t()  # one row for all, and a view
        compare(spread, 0.2, 3, 0, 15, upstream, " with an upstream gradient that is a view")
        twice(fake_quantize)
        twice(FakeQuantize.apply)
        separate(fake_quantize)
        plain = fake_quantize(torch.tensor([0.37, 2.35]), 0.2, 5, 0, 15)
        checks.close(plain, torch.tensor([0.4, 2.0]), "your forward pass for an x without gradient")
    ### BEGIN HIDDEN TESTS
    generator = torch.Generator().manual_seed(208)
    for scale, zero, qmin, qmax in [(0.031, 128, 0, 255), (0.5, -3, -8, 7), (0.25, 4, 0, 15), (1.3, 0, -2, 1)]:
        for x in (
            torch.randn(3, 4, 5, generator=generator) * 4,
            torch.rand(20, generator=generator) + 3,
            -torch.rand(20, generator=generator) * 50,
            torch.zeros(5),
            torch.full((4,), 0.6),
            torch.tensor([-1.0, -0.5, 0.5, 1.5, 2.5, 400.0])
            * (scale if scale in (0.25, 0.5) else 1),  # halves are exact
            torch.tensor([1e12, -1e12, 0.0]),
        ):
            mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
            upstream = 20 * torch.randn(x.shape[::-1], generator=generator).permute(*reversed(range(x.dim())))
            right = torch.fake_quantize_per_tensor_affine(theirs, scale, zero, qmin, qmax)
            right.backward(upstream)
            answer = fake_quantize(mine, scale, zero, qmin, qmax)
            torch.testing.assert_close(answer.detach(), right.detach(), atol=1e-5, rtol=1e-5)
            with checks.untouched(upstream=upstream):
                answer.backward(upstream)
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-5)
            assert torch.equal(mine.detach(), x), "your function changes its input."
    for function in (fake_quantize, FakeQuantize.apply):
        first, second = (torch.linspace(*ends, 9).requires_grad_() for ends in [(-1.0, 1.0), (-9.0, 9.0)])
        outputs = [function(x, 0.25, 0, -8, 7) for x in (first, second)]
        for output in outputs:
            output.sum().backward()
        assert first.grad.tolist() == [1.0] * 9, "a second call changes the gradient of the first."
        assert second.grad.tolist() == [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0], (
            "a first call changes the gradient of the second."
        )
        twice(function)
        separate(function)
    for _, odd in samples.awkward(torch.linspace(-3, 3, 24).view(4, 6)):
        odd, upstream = odd.detach().requires_grad_(), torch.randn(4, 6, generator=generator)
        with checks.untouched(x=odd):
            answer = fake_quantize(odd, 0.3, -1, -8, 7)
        with checks.untouched(upstream=upstream):
            answer.backward(upstream)
        theirs = odd.detach().clone().requires_grad_()
        torch.fake_quantize_per_tensor_affine(theirs, 0.3, -1, -8, 7).backward(upstream)
        torch.testing.assert_close(odd.grad, theirs.grad, atol=1e-6, rtol=1e-5)
    ### END HIDDEN TESTS


check_ex_2_8()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# `forward` is exercise 2.2 twice. What must it remember, so that `backward` knows where x was clamped?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# Compute `torch.round(x / scale) + zero_point` before the clamp and save whether it lies between `qmin` and `qmax`, both included. In `backward`
# multiply `upstream` by that.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `ctx.save_for_backward((unclamped >= qmin) & (…))`; in backward `(inside,) = ctx.saved_tensors` and
# `return upstream * …, None, None, None, None`.
# </details>

# %% [markdown]
# ### What is it worth?
#
# Our network with **2-bit** weights, four codes, one scale a row. PyTorch's `tq.prepare_qat` replaces each Linear layer by one that fake-quantizes its weight in every
# forward pass. Compare the float network simply rounded (PTQ) with one that was trained for another 100 steps with fake quantization (QAT),
# and, as a control, with one that was trained for 100 more steps in *float* and then rounded. Without the control one could not tell whether QAT helped, or just
# more training.


# %%
def with_fake_weights(float_net: nn.Module, bits: int) -> nn.Module:
    """A copy whose body fake-quantizes its weights, symmetric, one scale a row; activations stay float."""
    weight = tq.FakeQuantize.with_args(
        observer=tq.MovingAveragePerChannelMinMaxObserver,
        quant_min=-(2 ** (bits - 1)),
        quant_max=2 ** (bits - 1) - 1,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )
    copied = copy.deepcopy(float_net).train()
    copied.body.qconfig = tq.QConfig(activation=nn.Identity, weight=weight)
    tq.prepare_qat(copied.body, inplace=True)
    return copied.eval()


def train_on(some_net: nn.Module) -> nn.Module:
    """A hundred more steps."""
    return next_byte.fit(some_net, train_ids, train_next, steps=100, lr=2e-3, seed=1)


tuned = train_on(copy.deepcopy(net))
entries = {
    "float": net,
    "float, 100 steps more": tuned,
    "2 bits, rounded (PTQ)": with_fake_weights(net, 2),
    "2 bits, 100 steps more, then rounded": with_fake_weights(tuned, 2),
    "2 bits, 100 steps of QAT": train_on(with_fake_weights(net, 2)),
}
fig, ax = plots.figure(height=2.2)
plots.bars(
    ax,
    {name: next_byte.bits(entry, test_ids, test_next).mean().item() for name, entry in entries.items()},
    "bits per byte",
    decimals=2,
)
plots.show(
    fig,
    caption="Quality on held-out bytes of the next-byte network; lower is better. Without any knowledge one needs 8 bits per byte.",
    alt="Bars: both float networks need about 2.6 bits per byte, the two that were rounded to 2 bits more than 5, and the one that was trained with fake quantization "
    "about 3.",
)

# %% [markdown]
# Rounding to four codes ruins the network, and more float training hardly helps. A hundred steps with the error in sight bring most of it back. Units 03 and 04 do this with a
# converted model at the end, over several seeds.
#
# > **The book says** (its chapter on Linear layers): to fine-tune a quantized model, call `quantize_dynamic`, train the result as usual, and call `convert` at the end.
# >
# > **What happens:** a dynamically quantized network whose layers are all converted has no parameters left to train. If one float layer stays in front, it is worse:
# > `backward` raises nothing, warns, and no gradient arrives. And `convert` at the end finds nothing to convert.

# %% tags=["nbval-check-output"]
dynamic_body = int8.dynamic_int8(net.body)
errors.show_error(lambda: torch.optim.SGD(dynamic_body.parameters(), lr=0.1))

half_float = nn.Sequential(nn.Linear(192, 192), dynamic_body)
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    F.cross_entropy(half_float(features[:64]), test_next[:64]).backward()
print("PyTorch only warns:", any("autograd kernel" in str(w.message) for w in heard))
print("gradient of the float layer:", half_float[0].weight.grad)

before = dynamic_body(features[:64])
print("convert changes nothing:", torch.equal(tq.convert(dynamic_body)(features[:64]), before))

# %% [markdown]
# > **What works:** the other order. Fake quantization while you train (`prepare_qat`), then `convert`, last.
#
# ## 8. The new roads: torchao and PT2E
#
# `torch.ao.quantization` has been marked as deprecated since PyTorch 2.8 (August 2025), with a message that it would be removed in 2.10. It is still there in the version
# that you have been using (the next cells import it, and print its number); the
# [tracking issue](https://github.com/pytorch/ao/issues/2259) says why and what comes instead. You will meet it in most existing code. New code goes to the package **torchao**, by one of two roads:
#
# - **`quantize_(model, config)`** walks through a model *in place*, and replaces the weight of each Linear layer by a tensor that looks like a float tensor but holds int8
#   codes and scales. The model's code stays as it is. The trailing underscore means *in place*, as in `tensor.add_()`; it returns **None**.
# - **PT2E** (PyTorch 2 export) records the model's graph with `torch.export`, and puts observers into the graph. A *quantizer* for the target decides where. No stubs; the
#   result is meant for a compiler.
#
# PT2E once lived in PyTorch itself, and many examples on the web still import it from there; since PyTorch 2.11 it is gone. (The quantized dtypes such as `torch.qint8` are
# [deprecated, too](https://github.com/pytorch/pytorch/issues/184982), since 2026: what will stay are plain integers with scales beside them, as in sections 1 to 3.)

# %% tags=["nbval-check-output"]
errors.show_error(lambda: importlib.import_module("torch.ao.quantization.quantize_pt2e"))

# %% [markdown]
# Each new road on a toy, so that you see all names:

# %%
import torchao.quantization as ao
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

print("PyTorch", torch.__version__.split("+")[0], "still has torch.ao.quantization")
torch.manual_seed(8)
toy = nn.Sequential(nn.Linear(64, 8), nn.ReLU())
answer = ao.quantize_(toy, ao.Int8WeightOnlyConfig())
print("quantize_ returned", answer, "and the weight of toy[0] is now a", type(toy[0].weight.data).__name__)
print(
    "its codes:",
    toy[0].weight.qdata.dtype,
    tuple(toy[0].weight.qdata.shape),
    " its scales:",
    tuple(toy[0].weight.scale.shape),
)

toy = nn.Sequential(nn.Linear(64, 8), nn.ReLU()).eval()
example = torch.randn(4, 64)
any_size = torch.export.Dim("any_size")  # this dimension may change later; without it only a batch of 4 is accepted
graph = torch.export.export(toy, (example,), dynamic_shapes=({0: any_size},)).module()
recipe = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
watched_graph = prepare_pt2e(graph, recipe)
watched_graph(example)  # calibration
int8_graph = convert_pt2e(watched_graph)
print("\nPT2E, the operations of the graph:")
for node in int8_graph.graph.nodes:
    if node.op == "call_function":
        print("   ", node.target)

# %% [markdown]
# Read the graph: dequantize the weight; quantize the input, dequantize it; a float `linear`; `relu`. That is the same picture as section 5's proof: reconstructions, multiplied as floats.
# A compiler (`torch.compile`) recognizes the pattern and replaces it by an int8 product. Without one the graph is a precise description, and slow.
#
# Of the names: `torch.export.export` returns a program, and `.module()` makes it callable again; a quantizer's `set_global` says that *all* layers follow this recipe.
#
# torchao's configs for `quantize_` are `ao.Int8WeightOnlyConfig()` (weights int8, one scale a row, arithmetic in float) and
# `ao.Int8DynamicActivationInt8WeightConfig()` (also quantizes each input, with one scale a *row*: what section 6 asked for). Static int8 goes this way, too, if you hand over the scale of the
# inputs; and `reduce_range=True` gives away the bit of section 4:

# %% tags=["nbval-check-output"]
largest = float(example.abs().max())
for name, config in {
    "static": ao.Int8StaticActivationInt8WeightConfig(
        act_quant_scale=torch.full((1, 1), largest / 127.5), granularity=[ao.PerTensor(), ao.PerRow()]
    ),
    "dynamic": ao.Int8DynamicActivationInt8WeightConfig(),
    "dynamic, reduce_range": ao.Int8DynamicActivationInt8WeightConfig(reduce_range=True),
}.items():
    layer = nn.Sequential(copy.deepcopy(toy[0]))
    ao.quantize_(layer, config)
    weight = layer[0].weight
    chosen = "when it runs" if weight.act_quant_scale is None else "before"
    print(
        f"{name}: weight codes {weight.qdata.min()} to {weight.qdata.max()}, the scale of the inputs is chosen {chosen}"
    )

# %% [markdown]
# ### Exercise 2.9: the same network on both new roads
# *Difficulty 3 of 5 · 25 minutes · 3 points*
#
# Two functions. Each returns a quantized copy in eval mode and leaves the original alone. The PT2E model must accept batches of any size; its example batch for
# `torch.export.export` must have more than one row (an export with one row takes the 1 for a constant).


# %% nbgrader={"grade": false, "grade_id": "ex_2_9", "locked": false, "schema_version": 3, "solution": true, "task": false}
def torchao_int8(net: nn.Module, dynamic: bool) -> nn.Module:
    """An int8 copy of `net` made by torchao's default configs, in eval mode; it shares no memory with `net`.

    Parameters
    ----------
    net : Module
        A float network with Linear layers (all of them become int8); is not changed.
    dynamic : bool
        False: weights only. True: inputs are quantized, too, as they come, one scale a row.
    """
    ### BEGIN SOLUTION
    quantized = copy.deepcopy(net).eval()
    config = ao.Int8DynamicActivationInt8WeightConfig() if dynamic else ao.Int8WeightOnlyConfig()
    ao.quantize_(quantized, config)
    return quantized
    ### END SOLUTION


def pt2e_int8(net: nn.Module, batches: list[Tensor]) -> nn.Module:
    """A statically quantized graph of a copy of `net` made by PT2E with the x86 quantizer's default configuration.

    Parameters
    ----------
    net : Module
        A float network that maps one float tensor (batch, features) to another; is not changed.
    batches : list of Tensor, float32
        Calibration data, all of them; each has more than one row.

    Returns
    -------
    Module
        Accepts a batch of any size.
    """
    ### BEGIN SOLUTION
    rows = torch.export.Dim("rows")
    exported = torch.export.export(copy.deepcopy(net).eval(), (batches[0],), dynamic_shapes=({0: rows},))
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported.module(), quantizer)
    with torch.no_grad():
        for batch in batches:
            prepared(batch)
        return convert_pt2e(prepared)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_2_9_check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 2.9: run this cell.
import copy
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import get_default_x86_inductor_quantization_config

from helpers import checks, int8, samples, witness


@checks.isolated
def check_ex_2_9() -> None:
    def network(seed: int, *widths: int) -> nn.Sequential:
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        for d_in, d_out in pairwise(widths):
            layers += [nn.Linear(d_in, d_out), nn.ReLU(), nn.Dropout(0.5)]
            nn.init.normal_(layers[-3].weight, std=d_in**-0.5, generator=generator)
            nn.init.normal_(layers[-3].bias, std=0.1, generator=generator)
        return nn.Sequential(*layers[:-2]).train()

    def codes(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (x / scale).round().clamp(-128, 127) * scale

    def rows_quantized(x: torch.Tensor) -> torch.Tensor:
        """int8, symmetric, one scale a row, torchao's way: the largest value divided by 127.5."""
        return codes(x, x.abs().amax(dim=1, keepdim=True) / 127.5)

    def by_hand(net: nn.Module, x: torch.Tensor, dynamic: bool) -> torch.Tensor:
        for layer in net:
            if isinstance(layer, nn.Linear):
                x = F.linear(rows_quantized(x) if dynamic else x, rows_quantized(layer.weight), layer.bias)
            elif isinstance(layer, nn.ReLU):
                x = x.relu()
        return x.detach()

    model = nn.Sequential(nn.Linear(32, 32))
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    default_inputs = model[0].weight.act_quant_kwargs

    def stored_wrongly(net: nn.Module, answer: nn.Module, dynamic: bool) -> str:
        """What is wrong with the weights of torchao's copy, or nothing."""
        for name, layer in net.named_modules():
            if not isinstance(layer, nn.Linear):
                continue
            stored = getattr(dict(answer.named_modules()).get(name), "weight", None)
            if not isinstance(stored, torch.Tensor):
                return f"there is no layer {name} with a weight of torchao: quantize_ leaves a network its layers and their names"
            kind = type(stored.data).__name__
            if "Int4" in kind or "Intx" in kind:
                return (
                    f"the weight of layer {name} is an {kind}, with 4-bit codes (or another width); it should be int8"
                )
            if kind != "Int8Tensor" and torch.equal(stored, layer.weight):
                return f"the weight of layer {name} is still the float one: nothing is quantized there"
            if kind != "Int8Tensor":
                return f"the weight of layer {name} is no int8 tensor of torchao, but floats that were changed"
            if stored.act_quant_scale is not None:
                return "the scale of the inputs is fixed: that is static; here each row of an input chooses its own, or inputs stay float"
            if (stored.act_quant_kwargs is not None) != dynamic:
                return "this is the other kind: dynamic=True quantizes inputs, too, dynamic=False weights only"
            scale = layer.weight.detach().abs().amax(dim=1, keepdim=True) / 127.5
            if stored.scale.numel() != len(scale):
                return f"layer {name} has {stored.scale.numel()} scales for {len(scale)} rows: the default config has one a row"
            if stored.qdata.min() >= -64 and stored.qdata.max() < 64:
                return f"the codes of layer {name} have 7 bits (reduce_range); the default config uses all 8"
            exact = (layer.weight.detach() / scale).round().clamp(-128, 127)
            if stored.qdata.dtype != torch.int8 or (stored.qdata.int() - exact.int()).abs().max() > 1:
                return f"the codes of layer {name} are not the weights divided by their row's largest value / 127.5"
            if not torch.allclose(stored.scale.flatten(), scale.flatten(), rtol=1e-4):
                return f"the scales of layer {name} are not its rows' largest values / 127.5"
            if dynamic and str(stored.act_quant_kwargs) != str(default_inputs):
                return "the inputs are quantized in another way than by the default config (symmetric codes, one scale a row)"
        kept = dict([*answer.named_parameters(), *answer.named_buffers()])
        weights = [f"{name}.weight".lstrip(".") for name, part in net.named_modules() if isinstance(part, nn.Linear)]
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if name not in weights and not torch.equal(kept.get(name, torch.empty(0)), tensor):
                return (
                    f"{name} holds other numbers than in the network: only the weights of Linear layers are quantized"
                )
        return ""

    def calls(graph: nn.Module) -> list[tuple[str, tuple]]:
        return [(str(node.target), node.args) for node in graph.graph.nodes if node.op == "call_function"]

    def graph_is_wrong(graph: nn.Module, weights: int) -> str:
        """What is wrong with a PT2E graph for static quantization, or nothing."""
        nodes = calls(graph)
        if any("activation_post_process" in name for name, _ in graph.named_modules()):
            return "it still holds observers: return what convert_pt2e returns"
        found = sum("dequantize_per_channel" in name for name, _ in nodes)
        if found != weights:
            return f"{found} of {weights} weights in the graph are quantized: does the quantizer have a configuration (set_global), and did you convert"
        if any("choose_qparams" in name for name, _ in nodes):
            return (
                "the graph chooses scales as it runs: that is dynamic; use the default configuration, which is static"
            )
        ranges = {tuple(args[3:5]) for name, args in nodes if "quantize_per_tensor" in name}
        if ranges != {(0, 255)}:
            return f"the activation codes of the graph go {sorted(ranges)}; the default configuration has 0 to 255"
        if sum(buffer.dtype == torch.int8 for buffer in graph.buffers()) != weights:
            return "the graph still computes its codes from float weights: fold them, the default of convert_pt2e"
        if any("dropout" in name and args[2] for name, args in nodes):
            return "dropout is active in the graph: export the copy in eval mode"
        return ""

    def graph_scales(graph: nn.Module) -> list[float]:
        """The scales with which a graph quantizes activations, in its order."""
        return [args[1] for name, args in calls(graph) if "quantize_per_tensor" in name and "dequantize" not in name]

    @torch.no_grad()
    def expected_scales(net: nn.Module, batches: list[torch.Tensor]) -> list[float]:
        """What the default configuration's observer says of each Linear's input, in the order of use."""
        net, spec, observers = (
            copy.deepcopy(net).eval(),
            get_default_x86_inductor_quantization_config().input_activation,
            {},
        )

        def watch(layer: nn.Module, inputs: tuple) -> None:
            if layer not in observers:
                observers[layer] = spec.observer_or_fake_quant_ctr.with_args(
                    dtype=spec.dtype, quant_min=spec.quant_min, quant_max=spec.quant_max, qscheme=spec.qscheme
                )()
            observers[layer](inputs[0])

        for layer in net.modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_pre_hook(watch)
        for batch in batches:
            net(batch)
        return [float(observer.calculate_qparams()[0]) for observer in observers.values()]

    def near(some: list[float], other: list[float]) -> bool:
        return len(some) == len(other) and all(abs(a / b - 1) < 0.01 for a, b in zip(some, other, strict=True))

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return ((a - b).norm() / b.norm()).item()

    def by_torchao(net: nn.Module, dynamic: bool, what: str) -> nn.Module:
        """The learner's copy, after questions about the original and the weights."""
        kept = copy.deepcopy(net)
        try:
            answer = torchao_int8(net, dynamic)
        except NotImplementedError as error:
            if "Int8Tensor" not in str(error):
                raise
            raise AssertionError(
                f"{what} quantizes a network that is quantized already: apply quantize_ once, to a fresh copy (copy.deepcopy)."
            ) from None
        assert answer is not None, (
            f"{what} returned None: quantize_ works in place and returns nothing. Return the copy that you gave it."
        )
        assert isinstance(answer, nn.Module), f"{what} should return a model, not {type(answer).__name__}."
        assert all(type(a) is type(b) for a, b in zip(net.parameters(), kept.parameters(), strict=True)), (
            f"{what} quantized the original: quantize_ works in place, so give it a copy (copy.deepcopy)."
        )
        changed = witness.unchanged(kept, net)
        assert not changed, f"{what} changed the original ({changed}): do everything to the copy."
        assert not any(part.training for part in answer.modules()), (
            f"{what} should return a model in eval mode: its dropout is active (or a part of it still trains)."
        )
        wrong = stored_wrongly(kept, answer, dynamic)
        assert not wrong, f"{what}: {wrong}."
        shared = witness.independent(answer, net)
        assert not shared, f"{what} returns no copy: {shared}."
        return answer

    def by_pt2e(net: nn.Module, batches: list[torch.Tensor], weights: int, what: str) -> nn.Module:
        """The learner's graph, after questions about the original, the graph and its scales."""
        kept = copy.deepcopy(net)
        try:
            with checks.untouched(batches=batches):
                answer = pt2e_int8(net, batches)
        except (AssertionError, NotImplementedError, RuntimeError) as error:
            if "eval()" in str(error):
                raise AssertionError(
                    "an exported graph has no .eval(): call it on the copy of the network, before torch.export.export."
                ) from None
            if "Guard failed" not in str(error):
                raise
            raise AssertionError(
                f"the graph does not accept every batch size, not even those of the calibration ({str(error)[:60]}): give "
                "torch.export.export dynamic_shapes for dimension 0."
            ) from None
        checks.given(answer, "what pt2e_int8 returned")
        changed = witness.unchanged(kept, net)
        assert not changed, f"pt2e_int8 changed the original ({changed}): export a copy, copy.deepcopy(net).eval()."
        assert isinstance(answer, torch.fx.GraphModule), (
            "pt2e_int8 should return the graph module that convert_pt2e returns."
        )
        tensors = [*answer.parameters(), *answer.buffers()]
        for name, part in kept.named_modules():
            bias = getattr(part, "bias", None)
            assert not isinstance(bias, torch.Tensor) or any(torch.equal(bias, tensor) for tensor in tensors), (
                f"the bias of layer {name} of {what} is not in your PT2E model with its numbers: biases stay float."
            )
        wrong = graph_is_wrong(answer, weights)
        assert not wrong, f"your PT2E model of {what}: {wrong}."
        shared = witness.independent(answer, net)
        assert not shared, f"pt2e_int8 exported the original, no copy: {shared}."
        return answer

    def any_size(graph: nn.Module, width: int) -> None:
        try:
            with torch.no_grad():
                for count in (1, 2, 33, 5000):
                    graph(torch.zeros(count, width))
        except (AssertionError, RuntimeError) as error:
            raise AssertionError(
                f"your PT2E model does not accept every batch size ({str(error)[:60]}): give torch.export.export dynamic_shapes for dimension 0, "
                "without a maximum."
            ) from None

    def every_batch_matters(seed: int) -> tuple[nn.Module, list[torch.Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        shifts = torch.randn(4, 12, generator=generator) * 2
        return network(26, 12, 24, 16, 5), [torch.randn(64, 12, generator=generator) * 0.5 + s for s in shifts]

    with checks.check(
        "2.9", "torchao and PT2E agree with the formulas, on batches of any size, and the original is untouched"
    ):
        net = network(29, 48, 64, 40, 10)
        net[2].eval()  # one dropout is frozen, and so is a weight
        net[3].weight.requires_grad_(False)
        kept, generator = copy.deepcopy(net), torch.Generator().manual_seed(290)
        x = torch.randn(33, 48, generator=generator) * torch.logspace(-1, 1, 33)[:, None]
        exact = by_hand(kept, x, False), by_hand(kept, x, True)
        with torch.no_grad():
            plain = copy.deepcopy(kept).eval()(x)
        for dynamic in (False, True):
            what = f"your torchao_int8(net, dynamic={dynamic})"
            answer = by_torchao(net, dynamic, what)
            with torch.no_grad():
                output = answer(x)
            assert distance(output, plain) > 1e-5, f"{what} computes what the float network does: nothing is quantized."
            if not dynamic or int8.products_are_exact():
                # The largest value of a row lies at 127.5 gaps, an exact half: one code of a row may differ from the formula.
                assert distance(output, exact[dynamic]) < (0.03 if dynamic else 0.01), (
                    f"the outputs of {what} are {distance(output, exact[dynamic]):.4f} (relative) away from the formula."
                )
        by_torchao(
            network(30, 48, 64, 40, 10),
            True,
            "for a second network of the same shape your torchao_int8(net, dynamic=True)",
        )
        odd_ones = [
            entry for entry in samples.zoo(29, 32) if "three places" not in entry[0] and "twice" not in entry[0]
        ]
        for i, (what, odd, _) in enumerate(odd_ones):
            by_torchao(odd, i % 2 == 1, f"with {what} your torchao_int8(net, dynamic={i % 2 == 1})")
        net, batches = every_batch_matters(112)
        answer = by_pt2e(net, batches, 3, "a plain network")
        right, scales = expected_scales(net, batches), graph_scales(answer)
        if not near(scales, right):
            seen = {
                "it was calibrated with the first batch only": batches[:1],
                "it was calibrated with the last batch only": batches[-1:],
                "the first batch was left out": batches[1:],
                "the last batch was left out": batches[:-1],
            }
            likely = [sentence for sentence, few in seen.items() if near(scales, expected_scales(net, few))]
            if all(scale == scales[0] for scale in scales):
                likely = ["no batch ran through the prepared graph"]
            raise AssertionError(
                f"the scales of your PT2E model's activations are {', '.join(f'{scale:.3g}' for scale in scales)}; expected are "
                f"{', '.join(f'{scale:.3g}' for scale in right)}: was it calibrated, with all batches, and with the default configuration?"
                + (f" It looks as if {likely[0]}." if len(likely) == 1 else "")
            )
        any_size(answer, 12)
        with torch.no_grad():
            reference, output = copy.deepcopy(net).eval()(torch.cat(batches)), answer(torch.cat(batches))
        error = distance(output, reference)
        assert 1e-4 < error < 0.1, (
            f"your PT2E model is {error:.4f} (relative) away from float; int8 should be a few per cent away."
        )
        for what, odd, _ in odd_ones:
            if "Sequentials inside" in what or "own" in what:
                batches = [torch.randn(16, 32, generator=generator) * size for size in (0.5, 3, 1)]
                count = sum(isinstance(part, nn.Linear) for part in odd.modules())
                answer = by_pt2e(odd, batches, count, what)
                assert near(graph_scales(answer), expected_scales(odd, batches)), (
                    f"for {what} the scales are other ones."
                )
    ### BEGIN HIDDEN TESTS
    with torch.random.fork_rng(devices=[]):  # new layers draw random weights
        for seed, widths in [(1, (32, 20, 8)), (2, (24, 24, 24, 6))]:
            net = network(seed, *widths)
            net[0].bias.requires_grad_(False)
            net[2].eval()
            kept, generator = copy.deepcopy(net), torch.Generator().manual_seed(seed)
            x = torch.randn(9, widths[0], generator=generator)
            with torch.no_grad():
                plain = copy.deepcopy(kept).eval()(x)
            for dynamic in (False, True):
                answer = by_torchao(net, dynamic, "torchao_int8")
                with torch.no_grad():
                    output = answer(x)
                assert distance(output, plain) > 1e-5, "the outputs are those of the float network."
                if not dynamic or int8.products_are_exact():
                    far = distance(output, by_hand(kept, x, dynamic))
                    assert far < (0.03 if dynamic else 0.01), (
                        f"the outputs of torchao's copy are {far:.4f} away from the formula."
                    )
        for i, (what, odd, _) in enumerate(samples.zoo(30, 16)):
            if "three places" not in what and "twice" not in what:
                by_torchao(odd, i % 2 == 0, what)
        for seed in (0, 134):
            net, batches = every_batch_matters(seed)
            answer = by_pt2e(net, batches, 3, "a plain network")
            assert near(graph_scales(answer), expected_scales(net, batches)), (
                "not all batches, or another configuration."
            )
            any_size(answer, 12)
            with torch.no_grad():
                error = distance(answer(batches[1]), copy.deepcopy(net).eval()(batches[1]))
            assert 1e-4 < error < 0.12, f"the outputs of the PT2E graph are {error:.4f} (relative) away from float."
        for seed in (3, 4):
            by_torchao(network(seed, 32, 20, 8), seed == 3, "a second network of the same shape")
            by_torchao(network(seed + 2, 32, 20, 8), seed == 3, "a third network of the same shape")
        nested = nn.Sequential(network(7, 12, 10), nn.ReLU(), nn.Sequential(network(8, 10, 14, 6))).train()
        _, batches = every_batch_matters(5)
        answer = by_pt2e(nested, batches, 3, "a nested network")
        assert near(graph_scales(answer), expected_scales(nested, batches)), "wrong scales in a nested network."
    ### END HIDDEN TESTS


check_ex_2_9()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Both toys above do it on the original. What must you copy, and what must you return?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `copy.deepcopy(net).eval()` first. `quantize_` returns None: return the copy. For PT2E: export, quantizer, prepare, a loop over *all* batches without gradients,
# convert.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `ao.quantize_(quantized, ao.Int8DynamicActivationInt8WeightConfig() if dynamic else …)`, `return quantized`; and for PT2E
# `torch.export.export(…, (batches[0],), dynamic_shapes=({0: …},)).module()`, `prepare_pt2e(…, quantizer)`, `convert_pt2e(…)`.
# </details>

# %% [markdown]
# ### One network through every API
#
# Now the comparison that this unit has been working for. The body of the next-byte network goes through each API; embedding and targets stay the same. For each: what it costs
# in bits per byte (with the standard error over 96 documents), how exact its logits are, how large its file is, how long it takes compared with float, and whether PyTorch
# itself calls it deprecated: that column is filled by listening to the warnings while each API works.
#
# **FX graph mode** is the one API you have not met: like PT2E it finds the graph by itself, like eager mode it makes int8 layers; PyTorch marks it as deprecated in favour of PT2E. And a
# PT2E graph keeps the float weights beside the int8 ones until somebody removes them: `without_unused` does.


# %%
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx


def through_fx(body: nn.Module) -> nn.Module:
    mapping = tq.get_default_qconfig_mapping(torch.backends.quantized.engine)
    graph_with_observers = prepare_fx(copy.deepcopy(body), mapping, (calibration_features[0],))
    run_calibration(graph_with_observers, calibration_features)
    return convert_fx(graph_with_observers)


def through_qat(body: nn.Module) -> nn.Module:
    """Fake quantization of weights and activations, 60 steps of training, then int8."""
    trainee = copy.deepcopy(net).train()
    trainee.body = tq.QuantWrapper(copy.deepcopy(body)).train()
    trainee.body.qconfig = tq.get_default_qat_qconfig(torch.backends.quantized.engine)
    tq.prepare_qat(trainee.body, inplace=True)
    trainee.embedding.requires_grad_(False)  # all networks of the table share it
    next_byte.fit(trainee, train_ids, train_next, steps=60, lr=1e-3, seed=2)
    return tq.convert(trainee.body.eval())


def through_torchao(config: object) -> object:
    def quantized(body: nn.Module) -> nn.Module:
        copied = copy.deepcopy(body)
        ao.quantize_(copied, config)
        return copied

    return quantized


def through_pt2e(body: nn.Module) -> nn.Module:
    spec = ({0: torch.export.Dim("examples")},)
    graph_module = torch.export.export(copy.deepcopy(body), (calibration_features[0],), dynamic_shapes=spec).module()
    graph_module = prepare_pt2e(
        graph_module, X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    )
    run_calibration(graph_module, calibration_features)
    return convert_pt2e(graph_module)


def without_unused(graph_module: nn.Module) -> nn.Module:
    """Remove the float weights that no operation of the graph uses any more."""
    used = {node.target for node in graph_module.graph.nodes if node.op == "get_attr"}
    for name, _ in list(graph_module.named_parameters()):
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(graph_module.get_submodule(owner), attribute)
    return graph_module


roads = {
    "eager, static": (lambda body: int8.static_int8(body, calibration_features), "torchao PT2E, or a static config"),
    "eager, dynamic": (int8.dynamic_int8, "torchao `quantize_`"),
    "eager, QAT, then int8": (through_qat, "torchao `QATConfig`"),
    "FX, static": (through_fx, "torchao PT2E"),
    "torchao, int8 weights only": (through_torchao(ao.Int8WeightOnlyConfig()), ""),
    "torchao, int8 dynamic": (through_torchao(ao.Int8DynamicActivationInt8WeightConfig()), ""),
    "torchao, int4 weights, group 32": (
        through_torchao(ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(32))),
        "",
    ),
    "PT2E, static, not compiled": (through_pt2e, ""),
    "the same, float weights removed": (lambda body: without_unused(through_pt2e(body)), ""),
}
bodies, heard_of = {}, {}
for name, (road, _) in roads.items():
    with known_warnings.listening() as heard:
        bodies[name] = road(net.body)
    heard_of[name] = any("is deprecated and will be removed" in line for line in heard)


# %% tags=["varies"]
def by_document(body: nn.Module) -> Tensor:
    """Bits per byte of each held-out document, (96,)."""
    each = F.cross_entropy(body(features), test_next, reduction="none") / math.log(2)
    return each.view(96, -1).mean(dim=1)


def time_ratio(body: nn.Module, rows: Tensor) -> str:
    """Time of `body` divided by that of the float one, in turns: median and its interval."""
    programs = {"float": lambda: net.body(rows), "this": lambda: body(rows)}
    calls = 20 if len(rows) == 1 else 5
    return str(latency.compare(programs, repeats=9, calls=calls, noise=math.inf)["this"])


small_batch, large_batch = features[:1], features[:1024]
rows, float_file = [], metrics.file_bytes(net.body)
with torch.no_grad():
    logits = net.body(features)
    float_each = by_document(net.body)
    for name, body in bodies.items():
        change = by_document(body) - float_each
        rows.append(
            {
                "API": name,
                "Δ bits per byte": f"{change.mean():+.4f} ± {change.std() / 96**0.5:.4f}",
                "logits, SQNR dB": f"{metrics.sqnr_db(logits, body(features)):.1f}",
                "float file / its file": f"{float_file / metrics.file_bytes(body):.2f}",
                "time / float, 1 row": time_ratio(body, small_batch),
                "1,024 rows": time_ratio(body, large_batch),
                "deprecated": "since 2.8" if heard_of[name] else "no",
                "what replaces it": roads[name][1],
            }
        )
tables.show(rows)
print("products of 8-bit integers are exact on this computer:", int8.products_are_exact())
print(
    f"float: {float_each.mean():.4f} bits per byte, {float_file / 1000:.0f} kB; engine {torch.backends.quantized.engine}, {torch.get_num_threads()} threads"
)

# %% [markdown]
# Read it slowly; nearly every column contradicts somebody's sales talk.
#
# - **Quality.** Where the difference is smaller than two of its standard errors, this test cannot tell it from nothing. QAT may even come out ahead of float, but it was trained for 60 steps
#   more; without a control, as in section 7, that says nothing about quantization.
# - **Exactness.** Weight-only is the most exact of the 8-bit roads, then per-row dynamic; what has 7-bit activations (eager and FX on a PC) comes last. That order needs a processor whose products of 8-bit integers are exact (the line below the table says whether yours are): without,
#   torchao's dynamic row, which uses all 8 bits unless you ask for `reduce_range`, falls to the end, and the 7 bits of eager mode show what they are for. (FX is a little
#   ahead of eager because it fuses Linear and ReLU, and spends no codes on the negative numbers that ReLU throws away: unit 03.) The logits of QAT are far from the old
#   ones because its weights have moved; that is what training is for.
# - **Size.** All int8 roads store one byte a weight (the codes differ with the granularity: eager dynamic has one scale a tensor, the others one a row), and none reaches 4. The int4 row is *not* smaller than the int8 rows: with
#   `IntxWeightOnlyConfig` each 4-bit code lies in a byte of its own. (Other configs pack two codes into a byte: see below.) And a fresh PT2E file is larger than the float one.
# - **Time.** Look at 1,024 rows for the roads that have int8 kernels, and at those that turn their codes back into float weights before they multiply: *these* codes make nothing fast. For a single row of a network as narrow as this one
#   no road of the table is faster than float: what is counted there is mostly the work *around* the product, Python's above all (torchao's tensors and uncompiled graphs pass through many calls of Python for each operation; a compiler removes
#   them). Such short times scatter, as their intervals show.
#
# ### Four bits that are four bits
#
# `Int4WeightOnlyConfig` stops with the message below: it needs a package that the course does not have. A config among torchao's prototypes (they may change) packs two codes into a byte on a CPU, and
# PyTorch has a kernel that multiplies with the packed codes, `_weight_int4pack_mm_for_cpu`. It reads codes and scales as it goes, and makes no float weights first. There is one for int8 codes, too, `_weight_int8pack_mm`.

# %% tags=["nbval-check-output"]
from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

errors.show_error(lambda: ao.quantize_(copy.deepcopy(net.body), ao.Int4WeightOnlyConfig(group_size=32)))


def packed_int4(float_net: nn.Module) -> nn.Module:
    """A bfloat16 copy whose Linear weights are 4-bit codes, two in a byte, with a scale for each group of 32."""
    packed = copy.deepcopy(float_net).to(torch.bfloat16)
    ao.quantize_(packed, PrototypeInt4WeightOnlyConfig(group_size=32, set_inductor_config=False))
    return packed


packed_body = packed_int4(net.body)
codes = packed_body[0].weight.qdata
print("a weight of shape", tuple(net.body[0].weight.shape), "is stored as", codes.dtype, tuple(codes.shape))
print(f"float32 file / its file: {float_file / metrics.file_bytes(packed_body):.1f}")

# %% tags=["varies"]
with torch.no_grad():
    change = by_document(lambda x: packed_body(x.bfloat16()).float()) - float_each
print(f"4 bits in groups of 32, packed: {mean_and_error(change)} bits per byte")

rows = []
with torch.no_grad():
    for width in (256, 1024, 2048):
        single = nn.Linear(width, width, bias=False)
        one_row = torch.randn(1, width)
        half_row, half_weight = one_row.bfloat16(), single.weight.bfloat16()
        scales = single.weight.abs().amax(dim=1) / 127  # (width,)
        int8_codes, half_scales = (single.weight / scales[:, None]).round().to(torch.int8), scales.bfloat16()
        int4 = packed_int4(single).weight
        kernels = {
            "float32": lambda single=single, x=one_row: single(x),
            "bfloat16": lambda x=half_row, w=half_weight: F.linear(x, w),
            "int8 codes": lambda x=half_row, w=int8_codes, s=half_scales: torch._weight_int8pack_mm(x, w, s),
            "int4 codes": lambda x=half_row, w=int4: torch.ops.aten._weight_int4pack_mm_for_cpu(
                x, w.qdata, 32, w.scale_and_zero
            ),
        }
        timings = latency.compare(kernels, repeats=15, calls=50, noise=math.inf)
        rows.append({"width": width} | {name: str(timing) for name, timing in timings.items()})
tables.show(rows)

# %% [markdown]
# One row, one square Linear layer, time next to float32 (with an interval of at least 95 %). The product of one row reads each weight once and does little with it, so what counts is how many bytes are read: from
# some width on, kernels that read codes win, and fewer bits win more. (Compare with the bfloat16 column: where it is below 1, a part of the gain is bfloat16's.) That is why large language models, which write one token after the
# other, are stored this way. The kernels are called by name here; torchao's tensor calls the same int4 kernel for you. Two warnings: they want bfloat16 inputs (they take float32, but the loop for that
# is slow), and names that begin with an underscore may change.

# %% [markdown]
# **Optional: with the compiler.** What becomes of the PT2E graph when it is compiled? This needs a C++ compiler and a minute or so; set `COMPILE = True` to try it. (*Freezing* lets the
# compiler pack the int8 weights once, instead of in every call.)

# %% tags=["varies"]
COMPILE = False
if COMPILE:
    import torch._inductor.config as inductor

    with inductor.patch(freezing=True), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler talks to its own developers
        compiled = torch.compile(bodies["PT2E, static, not compiled"])
        same = (compiled(large_batch) - bodies["PT2E, static, not compiled"](large_batch)).abs().max()
        print(f"largest difference between compiled and not: {same:.2g}")
        print(
            f"compiled: time / float at 1,024 rows {time_ratio(compiled, large_batch)}, at 1 row {time_ratio(compiled, small_batch)}"
        )
else:
    print("Skipped: COMPILE is False, and the course does not need a compiler.")

# %% [markdown]
# > **The book says** (chapter 2): weight quantization makes models up to four times smaller and reduces computation time without sacrificing accuracy.
# >
# > **What happens:** you have just measured it. *Up to* four times is right, and hides that it depends on the width of the layer: each file also holds scales, biases and names. From which
# > width on is it true?

# %%
widths = [16, 32, 64, 128, 256, 512, 1024, 2048]
ratios = {
    "eager dynamic int8": int8.dynamic_int8,
    "torchao int8 weights only": through_torchao(ao.Int8WeightOnlyConfig()),
}
fig, ax = plots.figure(height=2.8)
for (name, road), marker in zip(ratios.items(), "os", strict=True):
    shrunk = []
    for width in widths:
        single = nn.Sequential(nn.Linear(width, width))
        shrunk.append(metrics.file_bytes(single) / metrics.file_bytes(road(single)))
    ax.plot(widths, shrunk, marker + "-", label=name)
    print(f"{name}: " + ", ".join(f"{width}: {value:.2f}" for width, value in zip(widths, shrunk, strict=True)))
ax.axhline(4, color=plots.GREY, linewidth=0.8, linestyle=":")
ax.set_xscale("log", base=2)
ax.set_xticks(widths, widths)
ax.set_xlabel("width of one square Linear layer")
ax.set_ylabel("float file / int8 file")
ax.legend()
plots.show(
    fig,
    caption="How many times smaller the file of one Linear layer becomes. The dotted line is the factor of four that the weights alone would give.",
    alt="Two rising curves that flatten below the dotted line at 4. At width 16 both files are about as large as the float one or larger, at 256 the factor is above 3.5, at 1024 nearly 4.",
)

# %% [markdown]
# > **What works:** say which factor, for which layer, in which file: more than 3.7 from width 256 on, 3.9 from 512 on (look at the printed numbers), and next to nothing at 16. And computation time is a matter of kernels, sizes and processors: unit 03 draws the map.
# %% [markdown]
# ## 9. The error clinic
#
# Ten failures that people keep meeting (their exercises are 2.10.1 to 2.10.10: the clinic counts as the tenth exercise of the unit). Each patient is a short broken program: read it, run it, read what it
# says, and write the cure in the cell below it. A cure repairs the cause. To return the float model, or to catch the error and
# carry on in float, only hides it, and the checks look for that.
#
# Start here when you come back: the clinic needs the first cell of the notebook, and nothing else of the sections above.
#
# Patients 1 to 6 are loud: PyTorch stops with a message. Patients 7 to 10 are silent, and silent failures are worse: nothing
# stops, the shapes are right, and the wrong model is shipped. For each silent patient you write the **probe** first, a small
# function that finds the failure in other models, too (its docstring says in which), and then the cure.

# %% [markdown]
# A quantized layer is a different thing from the float layer that it replaced: it takes int8 tensors and returns int8 tensors.
# `prepare` and `convert` swap layers, but they do not add a step that turns float into int8. In exercise 2.6 a QuantStub in front of
# the whole model did that. A language model does not read float numbers, however. It reads *ids*: whole numbers, the names of rows of a table.
# Two messages belong to this place:
#
# - **The stub stands in front of the ids.** Then it gets whole numbers (their type is called Long) and refuses them. (With another qconfig the
#   histogram observer refuses them before, while you calibrate: `"histogram_cpu" not implemented for 'Long'`.)
# - **There is no stub.** The first int8 layer meets a float tensor, and PyTorch says that its operator cannot be run with arguments from the CPU.
#   Many take this for a broken installation: [pytorch#128578](https://github.com/pytorch/pytorch/issues/128578),
#   [optimum#24](https://github.com/huggingface/optimum/issues/24). It only means: this tensor is not quantized.
#
# ### Exercise 2.10.1: the stub in the wrong place
# *Difficulty 2 of 5 · 8 minutes · 1 point*
#
# Write `int8_reader`. The model has two parts, `model.embedding` (an Embedding) and `model.body` (Linear and ReLU layers), and computes
# `body(embedding(ids))`. Return a copy whose body is statically quantized, with the default qconfig of the engine in use, and calibrated on all `batches`.
# The embedding stays float. Where in the model are the first float numbers?


# %% tags=["broken"]
class Reader(nn.Module):
    """ids (batch, time) -> float numbers (batch, time, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 8)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, ids: Tensor) -> Tensor:
        return self.body(self.embedding(ids))


def patient_1(reader: nn.Module, batches: list[Tensor], stubs: bool) -> Tensor:
    reader.embedding.qconfig = None  # the table stays float (patient 3 is about tables)
    whole = tq.QuantWrapper(reader).eval() if stubs else reader
    whole.qconfig = tq.default_qconfig
    prepared = tq.prepare(whole)
    for batch in batches:
        prepared(batch)
    return tq.convert(prepared)(batches[0])


torch.manual_seed(1)
for stubs in (True, False):
    errors.show_error(lambda stubs=stubs: patient_1(Reader().eval(), [torch.randint(30, (16, 6))], stubs))


# %% nbgrader={"grade": false, "grade_id": "ex_2_10_1", "locked": false, "schema_version": 3, "solution": true, "task": false}
def int8_reader(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """A copy of `model` with a statically quantized body behind a float embedding; `model` itself is unchanged.

    Parameters
    ----------
    model : Module
        With parts `embedding` (an Embedding) and `body` (a Sequential of Linear and ReLU); in eval mode, without stubs.
    batches : list of Tensor, int64, (batch, time)
        Typical ids, to calibrate with: all of them.

    Returns
    -------
    Module
        Maps ids (batch, time) to float32 (batch, time, outputs). The weights of all Linear layers are `torch.qint8`, with
        the scales that the default qconfig of the engine finds; the embedding is float32, bit for bit.
    """
    ### BEGIN SOLUTION
    reader = copy.deepcopy(model)
    reader.body = tq.QuantWrapper(reader.body).eval()
    reader.body.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    tq.prepare(reader, inplace=True)
    for ids in batches:
        reader(ids)
    return tq.convert(reader)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_2_10_1_check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 2.10.1: run this cell.
import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from helpers import checks, describe, int8, witness


@checks.isolated
def check_ex_2_10_1() -> None:
    class Words(nn.Module):
        def __init__(self, widths: tuple[int, ...]) -> None:
            super().__init__()
            self.embedding = nn.Embedding(24, widths[0])
            layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
            self.body = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=0.4)
            self.body[0].weight.requires_grad_(False)  # frozen, and it stays so
            with torch.no_grad():  # ids from 12 on are large, those from 16 on small, and those from 20 on never occur
                self.embedding.weight += torch.tensor([0.0, 3.0, -3.0, 40.0])[
                    [0] * 12 + [1] * 4 + [2] * 4 + [3] * 4, None
                ]

        def forward(self, ids: Tensor) -> Tensor:
            return self.body(self.embedding(ids))

    def check_ex_2_10_1_model(widths: tuple[int, ...], seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = Words(widths).eval()
        untouched = copy.deepcopy(model)
        batches = [torch.randint(low, high, (16, 6)) for low, high in [(0, 12), (12, 16), (16, 20), (0, 12)]]
        try:
            answer = int8_reader(model, batches)
        except (AssertionError, NotImplementedError) as error:
            if "float_qparams_weight_only_qconfig" in str(error):
                raise AssertionError(
                    "the embedding got a qconfig, and convert refuses it: set the qconfig on the body only."
                ) from None
            if "histogram_cpu" not in str(error):
                raise
            raise AssertionError(
                "an observer gets ids, whole numbers: the QuantStub must stand behind the embedding, where the numbers are float. "
                f"PyTorch says: {error}."
            ) from None
        assert isinstance(answer, nn.Module), (
            f"what int8_reader returned should be a model, not {type(answer).__name__}: does it end with `return`?"
        )
        changed = witness.unchanged(untouched, model)
        assert not changed, f"your function changed the model that came in ({changed}): work on a copy."
        shared = witness.independent(answer, model)
        assert not shared, f"your model is no copy: {shared}."
        dtypes, weights = describe.weight_dtypes(answer), describe.dequantized_weights(answer)
        count, linears = len(widths) - 1, list(dtypes.values()).count("torch.qint8")
        floats = [name for name, dtype in dtypes.items() if dtype != "torch.qint8"]
        assert linears, (
            "no Linear weight of your model is int8: prepare, run the batches, convert, and return what convert returns."
        )
        assert linears == count and len(floats) == 1, (
            f"{linears} of {count} Linear layers are int8, and {len(floats)} other layers hold weights: it should be all of them, and "
            "one, the embedding. A float copy to fall back on hides the failure, it does not cure it."
        )
        assert dtypes[floats[0]] == "torch.float32" and torch.equal(weights[floats[0]], untouched.embedding.weight), (
            "the embedding should stay float32, with the numbers that it had: give it no qconfig."
        )
        assert not [kind for kind in describe.layer_types(answer).values() if ".dynamic." in kind], (
            "your layers are dynamically quantized: that needs no stubs, but it is another scheme. Use prepare, batches, convert."
        )
        ids = torch.randint(20, (64, 6))
        with torch.no_grad():
            expected = untouched(ids)
            try:
                output = answer(ids)
            except NotImplementedError:
                raise AssertionError(
                    "the first int8 layer still gets float numbers: before prepare, a QuantStub must stand between embedding and body."
                ) from None
            except RuntimeError as error:
                if "got Long" not in str(error):
                    raise
                raise AssertionError(
                    "the QuantStub gets ids, whole numbers: it must stand behind the embedding, where the numbers are float. PyTorch "
                    f"says: {error}."
                ) from None
        assert not output.is_quantized, (
            "your model returns a quantized tensor: a DeQuantStub must stand behind the last layer before prepare."
        )
        assert output.shape == expected.shape, (
            f"your output has shape {tuple(output.shape)}, not {tuple(expected.shape)}."
        )
        other = witness.other_recipe(answer)
        assert not other, f"your int8 layers do not have the default qconfig of the engine in use: {other}."
        assert not all(scale == 1.0 for _, scale, _ in describe.int8_linears(answer)), (
            "all your scales are 1: nothing ran through the prepared model before convert."
        )
        seen = [untouched.embedding(batch) for batch in batches]
        right, first = witness.expected_scales(untouched.body, seen), witness.expected_scales(untouched.body, seen[:1])
        only_first = all(
            min(abs(scale / true - 1) for true in accepted) < 0.001
            for (_, scale, _), accepted in zip(describe.int8_linears(answer), first, strict=True)
        )
        for (name, scale, _), accepted in zip(describe.int8_linears(answer), right, strict=True):
            assert min(abs(scale / true - 1) for true in accepted) < 0.03, (
                f"the output scale of {name} is {scale:.3g}; expected is {accepted[0]:.3g}"
                + (" (yours saw the first batch only)" if only_first else "")
                + ": run all batches, and nothing else, through the "
                f"prepared model before convert, with get_default_qconfig of the engine in use (here {torch.backends.quantized.engine})."
            )
        assert len(output.unique()) <= 256 and witness.runs_in_int8(answer, untouched, ids, ("embedding",)), (
            "your output does not come from the int8 layers that your model shows: it is computed in float. A fallback to float is no cure."
        )
        error = float((output - expected).norm() / expected.norm())
        assert error < 0.1, f"your output is {error:.0%} off: 8 bits should cost a few percent at most."
        return answer

    with checks.check("2.10.1", "ids in, a float table, int8 behind it, float out"):
        check_ex_2_10_1_model((8, 32, 16), seed=1)
        with int8.using(int8.another_engine()):
            check_ex_2_10_1_model((8, 24, 16), seed=11)
    ### BEGIN HIDDEN TESTS
    with torch.random.fork_rng(devices=[]):
        with int8.using(int8.another_engine()):
            check_ex_2_10_1_model((8, 20, 6), 2104)
        for widths, seed in [((8, 24, 24, 8), 2101), ((16, 5), 2102), ((4, 40, 12), 2103)]:
            converted = check_ex_2_10_1_model(widths, seed)
            shape = converted(torch.zeros(2, 3, dtype=torch.long)).shape
            assert shape == (2, 3, widths[-1]), "another length fails."
    ### END HIDDEN TESTS


check_ex_2_10_1()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Ids are names, and there is nothing to round in a name. Something must turn float into int8 behind the embedding, and back behind the last
# layer.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `tq.QuantWrapper(model.body)` is a module with a QuantStub in front of the body and a DeQuantStub behind it. Put it in the place of the body, in a
# deep copy of the model. Set the qconfig on this wrapper only, then the embedding has none and stays float.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `copy.deepcopy(model)`, `….body = tq.QuantWrapper(….body)`, `….body.qconfig = tq.get_default_qconfig(…)`; then prepare, batches and convert as in the
# broken program, all on the whole copy, which you return and do not call.
# </details>

# %% [markdown]
# Inside the stubs everything is int8, and int8 tensors know few operations. A matrix product needs a quantized layer. A sum
# needs one, too: two int8 tensors have two scales, and the result needs a third, which only an observer can find. A bare `+`
# has no place for an observer, so there is no int8 `+`. Every Transformer block has two such sums, its residuals. A report:
# [leimao#6](https://github.com/leimao/PyTorch-Quantization-Aware-Training/issues/6).
#
# ### Exercise 2.10.2: the sum that has no scale
# *Difficulty 3 of 5 · 12 minutes · 1 point*
#
# Write `residual_block(inner)`. It returns a float module with its own stubs that computes `x + inner(x)`, and that still runs after
# prepare, calibration and convert, with the sum in int8. The check does these three steps. PyTorch's module for such sums is
# `torch.ao.nn.quantized.FloatFunctional`. Define your class inside the function.


# %% tags=["broken"]
class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.quant, self.inner, self.dequant = tq.QuantStub(), inner, tq.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        x = self.quant(x)
        return self.dequant(x + self.inner(x))


def patient_2(block: nn.Module, batches: list[Tensor]) -> Tensor:
    block.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    prepared = tq.prepare(block)
    for batch in batches:
        prepared(batch)
    return tq.convert(prepared)(batches[0])


torch.manual_seed(2)
errors.show_error(lambda: patient_2(Residual(nn.Linear(8, 8)).eval(), [torch.randn(32, 8)]))


# %% nbgrader={"grade": false, "grade_id": "ex_2_10_2", "locked": false, "schema_version": 3, "solution": true, "task": false}
def residual_block(inner: nn.Module) -> nn.Module:
    """A float block ``x + inner(x)`` with stubs, ready for prepare and convert.

    Parameters
    ----------
    inner : Module
        Maps float32 (batch, width) to float32 (batch, width); without stubs.

    Returns
    -------
    Module
        Maps float32 (batch, width) to float32 (batch, width), before and after convert; after it, the sum is int8.
    """

    ### BEGIN SOLUTION
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.entry, self.exit = tq.QuantStub(), tq.DeQuantStub()
            self.inner = inner
            self.plus = torch.ao.nn.quantized.FloatFunctional()

        def forward(self, x: Tensor) -> Tensor:
            codes = self.entry(x)
            return self.exit(self.plus.add(codes, self.inner(codes)))

    return Sum()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_2_10_2_check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 2.10.2: run this cell.
import copy

import torch
import torch.ao.quantization as tq
from torch import Tensor, nn

from helpers import checks, describe, witness


@checks.isolated
def check_ex_2_10_2() -> None:
    class Plain(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    def check_ex_2_10_2_block(inner: nn.Module, width: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        for parameter in inner.parameters():
            nn.init.normal_(parameter, std=0.4)
        reference = Plain(copy.deepcopy(inner)).eval()
        block = residual_block(inner)
        assert isinstance(block, nn.Module), (
            f"what residual_block returned should be a module, not {type(block).__name__}: does it end with `return`?"
        )
        block.eval()
        x = torch.randn(64, width)
        with torch.no_grad():
            expected = reference(x)
            try:
                floats = block(x)
            except (TypeError, RuntimeError) as error:
                assert "quantized::add" not in str(error), (
                    "before convert your sum expects int8 numbers: a QFunctional is what convert makes. Store a FloatFunctional."
                )
                if "FloatFunctional" not in str(error):
                    raise
                raise AssertionError(
                    "a FloatFunctional is not called itself: call its method add, with the two tensors."
                ) from None
            assert isinstance(floats, Tensor) and floats.shape == expected.shape, (
                "before convert your block should return one tensor of the shape of x: does forward end with `return`?"
            )
            assert torch.allclose(floats, expected, atol=1e-5), (
                "before convert your block does not compute x + inner(x)."
            )
            block.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
            ready = tq.prepare(block)
            for _ in range(4):
                ready(torch.randn(64, width))
            ready = tq.convert(ready)
            sums = [module for module in ready.modules() if type(module).__name__ == "QFunctional"]
            linears = [name for name, kind in describe.weight_dtypes(ready).items() if kind == "torch.qint8"]
            try:
                output = ready(x)
            except NotImplementedError as error:
                assert "quantized::add" not in str(error) and "aten::qscheme" not in str(error), (
                    "the sum gets float numbers after convert: both of its parts must come from behind the QuantStub, and before the DeQuantStub."
                )
                if "aten::add" not in str(error):
                    raise AssertionError(
                        "an int8 layer gets float numbers: the QuantStub must come before the input goes to `inner`."
                    ) from None
                raise AssertionError(
                    "PyTorch still finds a sum without a scale: +, += and torch.add cannot be converted, and neither can a "
                    "FloatFunctional that forward makes. Store one in self, in __init__, and call its method add."
                ) from None
        assert sums, (
            "the sum is done in float: you dequantized both parts first, which runs, but the residual leaves int8. Use a "
            "FloatFunctional, made in __init__."
        )
        assert all((module.scale, module.zero_point) != (1.0, 0) for module in sums), (
            "a FloatFunctional was never used while calibrating, so it has no scale: call its method add in forward (a sum of "
            "dequantized parts passes it by)."
        )
        assert len(linears) == sum(isinstance(module, nn.Linear) for module in reference.modules()), (
            "the Linear layers of `inner` are not int8 after convert: keep `inner` in self, so that prepare finds it."
        )
        assert not output.is_quantized, "your block returns a quantized tensor: the DeQuantStub must come last."
        error = float((output - expected).norm() / expected.norm())
        assert error < 0.1, f"after convert your block is {error:.0%} off."
        steps = [output / module.scale for module in sums]  # int8 numbers are whole multiples of their scale
        assert len(output.unique()) <= 256 and any(bool(((n - n.round()).abs() < 1e-3).all()) for n in steps), (
            "the sum is done in float: your output is not made of multiples of the FloatFunctional's scale. What its method add returns must "
            "be what you dequantize and return; to call it and add once more in float is no cure."
        )
        scales = [module.scale for module in sums]
        for module in sums:
            module.scale *= 2
        with torch.no_grad():
            coarse = ready(x)
        for module, scale in zip(sums, scales, strict=True):
            module.scale = scale
        assert not torch.equal(coarse, output) and len(coarse.unique()) <= len(output.unique()), (
            "the sum is done in float: with twice the scale in the FloatFunctional your output stays the same."
        )
        assert witness.runs_in_int8(ready, reference, x), (
            "after convert your block computes in float: the int8 layers that it shows do not run."
        )
        return ready

    with checks.check("2.10.2", "the sum has a scale of its own, and runs in int8"):
        check_ex_2_10_2_block(nn.Linear(8, 8), width=8, seed=2)
    ### BEGIN HIDDEN TESTS
    with torch.random.fork_rng(devices=[]):
        deep = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 12))
        for inner, width, seed in [(deep, 12, 2201), (nn.Linear(5, 5, bias=False), 5, 2202)]:
            converted = check_ex_2_10_2_block(inner, width, seed)
            assert converted(torch.randn(3, width)).shape == (3, width), "another batch size fails."
    ### END HIDDEN TESTS


check_ex_2_10_2()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# `prepare` puts an observer into *modules*. A `+` is no module. What is a sum that is a module?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# Make `torch.ao.nn.quantized.FloatFunctional()` in `__init__` and store it in `self`. In `forward`, call its method `add` with
# the two tensors (do not call the object itself). One object for each sum: it holds one scale.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# Copy the class `Residual` into your function, add one line to `__init__`, replace `x + self.inner(x)` by
# `self.….add(x, self.inner(x))`, and return an object of the class.
# </details>

# %% [markdown]
# An embedding is a table of rows, and each row has its own range, so each row gets its own scale. That needs another recipe
# than a Linear layer, and `dtype=torch.qint8` alone asks for the recipe of a Linear layer. The message names the right one,
# but not where it goes: [sentence-transformers#1842](https://github.com/huggingface/sentence-transformers/issues/1842),
# [pytorch#87187](https://github.com/pytorch/pytorch/issues/87187). Often people then take `nn.Embedding` out of the set. The message is gone, and
# the largest table of the model stays float. (The recipe that `quantize_dynamic` uses for Linear layers by itself is
# `tq.default_dynamic_qconfig`.)
#
# ### Exercise 2.10.3: the table with the wrong recipe
# *Difficulty 2 of 5 · 8 minutes · 1 point*
#
# Write `int8_text_model`: a copy whose Linear layers are dynamically quantized to `torch.qint8` and whose embeddings hold 8-bit
# rows (PyTorch calls this type `torch.quint8`). `quantize_dynamic` also takes a dictionary: type of layer → qconfig.


# %% tags=["broken", "nbval-check-output"]
def patient_3(model: nn.Module) -> nn.Module:
    return tq.quantize_dynamic(model, {nn.Embedding, nn.Linear}, dtype=torch.qint8)


torch.manual_seed(3)
errors.show_error(lambda: patient_3(nn.Sequential(nn.Embedding(100, 16), nn.Linear(16, 100)).eval()))


# %% nbgrader={"grade": false, "grade_id": "ex_2_10_3", "locked": false, "schema_version": 3, "solution": true, "task": false}
def int8_text_model(model: nn.Module) -> nn.Module:
    """A copy of `model` with int8 Linear layers (dynamic) and 8-bit embedding rows; `model` itself is unchanged.

    Parameters
    ----------
    model : Module
        Maps ids, int64 (batch, time), to float32; holds Embedding and Linear layers; in eval mode.

    Returns
    -------
    Module
        The same, with weights `torch.qint8` (Linear) and `torch.quint8` (Embedding).
    """
    ### BEGIN SOLUTION
    recipes = {nn.Linear: tq.default_dynamic_qconfig, nn.Embedding: tq.float_qparams_weight_only_qconfig}
    return tq.quantize_dynamic(model, recipes)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_2_10_3_check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 2.10.3: run this cell.
import copy

import torch
from torch import nn

from helpers import checks, describe, witness


@checks.isolated
def check_ex_2_10_3() -> None:
    def check_ex_2_10_3_model(model: nn.Module, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        for parameter in model.eval().parameters():
            nn.init.normal_(parameter, std=0.4)
        untouched = copy.deepcopy(model)
        try:
            answer = int8_text_model(model)
        except AssertionError as error:
            raise AssertionError(
                f"PyTorch refuses: {error} Each type of layer needs its own recipe: pass a dictionary from type to qconfig."
            ) from None
        assert isinstance(answer, nn.Module), (
            f"what int8_text_model returned should be a model, not {type(answer).__name__}: does it end with `return`?"
        )
        before, dtypes = describe.weight_dtypes(untouched), describe.weight_dtypes(answer)
        changed = witness.unchanged(untouched, model)
        assert not changed, f"your function changed the model that came in ({changed}): return a quantized copy."
        assert set(dtypes) == set(before), (
            "your model has other layers than the original: swap them in place, without a float copy beside them."
        )
        for name, layer in untouched.named_modules():
            if isinstance(layer, nn.Embedding):
                assert dtypes[name] != "torch.float32", (
                    "the Embedding is still float32: without it in the set the message is gone, and so is the saving. Give it a "
                    "qconfig of its own."
                )
                assert dtypes[name] != "torch.float16", (
                    "the Embedding is torch.float16: half precision is 16 bits. Quantize it."
                )
                assert dtypes[name] == "torch.quint8", (
                    f"the Embedding is {dtypes[name]}: that is not 8 bits. Take float_qparams_weight_only_qconfig, not _4bit."
                )
            elif isinstance(layer, nn.Linear):
                kind = describe.layer_types(answer)[name]
                assert dtypes[name] == "torch.qint8" or ".dynamic." not in kind, (
                    f"the Linear layer {name} is dynamic, and its weight float16: the recipe for int8 is default_dynamic_qconfig."
                )
                assert dtypes[name] == "torch.qint8", (
                    f"the Linear layer {name} is {dtypes[name]}, not torch.qint8: it needs an entry too, default_dynamic_qconfig."
                )
        ids = torch.randint(20, (3, 11))
        with torch.no_grad():
            expected, output = untouched(ids), answer(ids)
        error = float((output - expected).norm() / expected.norm())
        assert error < 0.1, f"your output is {error:.0%} off: 8-bit weights should cost a few percent at most."
        assert not torch.equal(output, expected), (
            "your output is the float model's to the last bit: the int8 layers do not run."
        )
        assert witness.runs_in_int8(answer, untouched, ids), (
            "your output does not come from the int8 layers that your model shows: it is computed in float. A fallback to float is no cure."
        )
        return answer

    with checks.check("2.10.3", "8-bit rows in the table, int8 in the Linear layers"):
        check_ex_2_10_3_model(
            nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5)), seed=3
        )
    ### BEGIN HIDDEN TESTS
    with torch.random.fork_rng(devices=[]):
        nested = nn.Sequential(
            nn.Sequential(nn.Embedding(30, 8), nn.LayerNorm(8)), nn.Sequential(nn.Linear(8, 24), nn.Linear(24, 8))
        )
        flat = nn.Sequential(nn.Embedding(20, 32), nn.Linear(32, 20, bias=False))
        for model, seed in [(nested, 2301), (flat, 2302)]:
            quantized = check_ex_2_10_3_model(model, seed)
            table = next(layer for layer in quantized.modules() if type(layer).__name__ == "Embedding")
            rows = table.weight().q_per_channel_scales()
            assert rows.numel() == table.num_embeddings, "the rows do not have a scale each."
    ### END HIDDEN TESTS


check_ex_2_10_3()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two types of layers, two recipes. A set can name the types, but it cannot give each one its own recipe.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# The message names the recipe for embeddings; it lives in `tq`. The recipe that `quantize_dynamic` uses for Linear layers by
# itself is `tq.default_dynamic_qconfig`.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `tq.quantize_dynamic(model, {nn.Linear: tq.…, nn.Embedding: tq.…})`, without a `dtype`.
# </details>

# %% [markdown]
# PyTorch's own Transformer layer has a fast path: in eval mode it hands all of its weights to one fused kernel. Before that it
# asks each weight for its device. In a dynamically quantized layer `weight` is no tensor but a *method* that unpacks one, and a
# method has no device. So a layer that quantizes well fails when it runs, though only in eval mode with `batch_first=True`:
# [pytorch#109987](https://github.com/pytorch/pytorch/issues/109987), with older wordings in
# [pytorch#32764](https://github.com/pytorch/pytorch/issues/32764) and [pytorch#82443](https://github.com/pytorch/pytorch/issues/82443).
#
# `torch.backends.mha.set_fastpath_enabled(False)` turns the fast path off, for *every* model of the process, until somebody turns it on
# again, and `torch.backends.mha.get_fastpath_enabled()` says whether it is on. A function of yours that leaves it off makes other people's float models slower, and they will never find out why.
#
# ### Exercise 2.10.4: the method that has no device
# *Difficulty 4 of 5 · 20 minutes · 1 point*
#
# Write `int8_encoder_layer`: an int8 copy of an `nn.TransformerEncoderLayer` that runs in eval mode. `linear1` and `linear2` become
# `torch.qint8` (attention stays float here; patient 8 is about that). The result is called like the layer itself, with `x` and
# perhaps `src_key_padding_mask`. The global switch is the same before and after each call, also after a call that fails.


# %% tags=["broken", "nbval-check-output"]
@torch.no_grad()
def patient_4(layer: nn.Module, x: Tensor) -> Tensor:
    return tq.quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8)(x)


torch.manual_seed(4)
errors.show_error(
    lambda: patient_4(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval(), torch.randn(2, 5, 16))
)


# %% nbgrader={"grade": false, "grade_id": "ex_2_10_4", "locked": false, "schema_version": 3, "solution": true, "task": false}
def int8_encoder_layer(layer: nn.TransformerEncoderLayer) -> nn.Module:
    """An int8 copy of `layer` that runs in eval mode and leaves PyTorch's global switches as they are.

    Parameters
    ----------
    layer : TransformerEncoderLayer
        With ``batch_first=True``, in eval mode; it is not changed.

    Returns
    -------
    Module
        Called as ``result(x)`` or ``result(x, src_key_padding_mask=mask)``, with x float32 (batch, time, width); holds
        `linear1` and `linear2` as dynamically quantized `torch.qint8`, everything in eval mode.
    """

    ### BEGIN SOLUTION
    class SlowPath(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = tq.quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8)

        def forward(self, *arguments: Tensor, **options: Tensor) -> Tensor:
            switch = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
            try:
                return self.layer(*arguments, **options)
            finally:
                torch.backends.mha.set_fastpath_enabled(switch)

    return SlowPath().eval()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_2_10_4_check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 2.10.4: run this cell.
import copy

import torch
from torch import nn

from helpers import checks, describe, witness


@checks.isolated
def check_ex_2_10_4() -> None:
    mha = torch.backends.mha

    def check_ex_2_10_4_layer(width: int, heads: int, seed: int, norm_first: bool) -> nn.Module:
        torch.manual_seed(seed)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, batch_first=True, norm_first=norm_first).eval()
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.3)
        untouched, x = copy.deepcopy(layer), torch.randn(3, 6, width)
        with torch.no_grad():
            expected = untouched(x)
        answer = int8_encoder_layer(layer)
        assert mha.get_fastpath_enabled(), (
            "your function turns the fast path off for the whole process: turn it off only while your layer runs."
        )
        assert isinstance(answer, nn.Module), (
            f"what int8_encoder_layer returned should be a module, not {type(answer).__name__}: does it end with `return`?"
        )
        changed = witness.unchanged(untouched, layer)
        assert not changed, f"your function changed the layer that came in ({changed}): return a copy."
        modules = [module for module in answer.modules() if isinstance(module, nn.Dropout | nn.MultiheadAttention)]
        assert not any(module.training for module in modules), (
            "your layer is in training mode: that avoids the fast path, and turns dropout on, so every call gives another result."
        )
        dtypes = describe.weight_dtypes(answer)
        for name in ("linear1", "linear2"):
            found = {dtype for key, dtype in dtypes.items() if key.split(".")[-1] == name}
            assert found == {"torch.qint8"}, (
                f"the weight of {name} should be torch.qint8 and nothing else, but your module holds {sorted(found) or 'no such layer'}: a float "
                "layer to fall back on is no cure."
            )
        with torch.no_grad():
            try:
                output = answer(x)
            except AttributeError as error:
                if "device" not in str(error):
                    raise
                raise AssertionError(
                    "the fast path still asks a method for its device: it must be off at the moment when the layer runs, that is in "
                    "forward, not only while you quantize."
                ) from None
            assert mha.get_fastpath_enabled(), (
                "after a call the fast path stays off for the whole process: put the switch back to what it was."
            )
            mha.set_fastpath_enabled(False)
            answer(x)
            assert not mha.get_fastpath_enabled(), (
                "the fast path was off before the call and is on after it: put back what you found, not always True."
            )
            mha.set_fastpath_enabled(True)
            try:
                answer(torch.randn(3, 6, width + 1))
            except Exception:
                assert mha.get_fastpath_enabled(), (
                    "after a call that fails the fast path stays off: put the switch back in a `finally` block."
                )
            else:
                raise AssertionError(
                    "your layer accepts an input of the wrong width: is a failure swallowed somewhere?"
                )
        error = float((output - expected).norm() / expected.norm())
        assert error > 1e-4, (
            "your output is that of the float layer: the int8 layers do not run. A float fallback is no cure."
        )
        assert error < 0.06, (
            f"your output is {error:.0%} off: batch and time, or the mode of the layer, must have changed."
        )
        assert witness.runs_in_int8(answer, untouched, x, ("self_attn",)), (
            "your output does not come from the int8 layers that your module shows: it is computed in float. A float fallback is no cure."
        )
        padding = torch.arange(6) >= torch.tensor([3, 4, 5])[:, None]  # (batch, time), True where there is no text
        x = x * (1 + 3 * padding[..., None])
        with torch.no_grad():
            assert torch.equal(answer(x), answer(x)), "two calls with the same input differ: is dropout on?"
            masked, plain = untouched(x, src_key_padding_mask=padding)[~padding], untouched(x)[~padding]
            error = (answer(x, src_key_padding_mask=padding)[~padding] - masked).norm() / (plain - masked).norm()
        assert error < 0.6, "with src_key_padding_mask your output is that without it: pass all arguments on."
        return answer

    try:
        with checks.check("2.10.4", "int8 linear1 and linear2, in eval mode, and the switch is where it was"):
            check_ex_2_10_4_layer(width=16, heads=4, seed=4, norm_first=False)
        ### BEGIN HIDDEN TESTS
        mha.set_fastpath_enabled(True)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for width, heads, seed, norm_first in [(24, 2, 2401, True), (8, 1, 2402, False), (32, 4, 2403, True)]:
                quantized = check_ex_2_10_4_layer(width, heads, seed, norm_first)
                assert quantized(torch.randn(1, 9, width)).shape == (1, 9, width), "another length fails."
        ### END HIDDEN TESTS
    finally:
        mha.set_fastpath_enabled(True)


check_ex_2_10_4()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Turn the fast path off just before the layer runs, and put the switch back just after. Who can do this at every call?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# A small module of your own that holds the quantized layer. Its `forward` remembers `torch.backends.mha.get_fastpath_enabled()`, sets it
# to False, calls the layer in `try:`, and restores what it remembered in `finally:`, which also runs when the call fails.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `class …(nn.Module)` inside your function; `self.layer = tq.quantize_dynamic(…)` in `__init__`;
# `def forward(self, *arguments, **options)` with `try: return self.layer(*arguments, **options)` and a `finally:` with
# `set_fastpath_enabled(…)`.
# </details>

# %% [markdown]
# Some layers are sensitive, often the last one, and you want to keep them in float. `layer.qconfig = None` does that: `convert`
# leaves the layer alone. It also leaves alone what the layer *receives*, and in front of it everything is int8. So a float
# layer meets an int8 tensor.
#
# ### Exercise 2.10.5: the float layer behind int8 layers
# *Difficulty 2 of 5 · 10 minutes · 1 point*
#
# Write `int8_body`. The model has two parts, `model.body` (Linear and ReLU layers) and `model.head` (a Linear layer), and computes
# `head(body(x))`. Return a copy with a statically quantized body and a float head, bit for bit the old one.


# %% tags=["broken", "nbval-check-output"]
from collections import OrderedDict


def patient_5(model: nn.Module, batches: list[Tensor]) -> Tensor:
    whole = nn.Sequential(
        OrderedDict(quant=tq.QuantStub(), body=model.body, head=model.head, dequant=tq.DeQuantStub())
    ).eval()
    whole.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    whole.head.qconfig = None
    prepared = tq.prepare(whole)
    for batch in batches:
        prepared(batch)
    return tq.convert(prepared)(batches[0])


torch.manual_seed(5)
errors.show_error(
    lambda: patient_5(
        nn.Sequential(OrderedDict(body=nn.Sequential(nn.Linear(8, 16), nn.ReLU()), head=nn.Linear(16, 4))),
        [torch.randn(32, 8)],
    )
)


# %% nbgrader={"grade": false, "grade_id": "ex_2_10_5", "locked": false, "schema_version": 3, "solution": true, "task": false}
def int8_body(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """A copy of `model` whose body is statically quantized and whose head stays float; `model` itself is unchanged.

    Parameters
    ----------
    model : Module
        With parts `body` (a Sequential of Linear and ReLU) and `head` (a Linear); in eval mode, without stubs.
    batches : list of Tensor, float32, (batch, features)
        Typical inputs, to calibrate with: all of them, with the default qconfig of the engine.

    Returns
    -------
    Module
        Maps float32 (batch, features) to float32 (batch, outputs).
    """
    ### BEGIN SOLUTION
    front = tq.QuantWrapper(model.body)
    front.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    mixed = tq.prepare(nn.Sequential(front, model.head).eval())
    for batch in batches:
        mixed(batch)
    return tq.convert(mixed)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_2_10_5_check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 2.10.5: run this cell.
import copy
from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn

from helpers import checks, describe, int8, witness


@checks.isolated
def check_ex_2_10_5() -> None:
    def check_ex_2_10_5_model(widths: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        body = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())])
        model = nn.Sequential(OrderedDict(body=body, head=nn.Linear(widths[-1], outputs))).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.4)
        model.head.bias.requires_grad_(False)  # frozen, and it stays so
        untouched, shift = copy.deepcopy(model), torch.tensor([0.0, 3.0, -3.0, 1.0])
        x = 1.5 * torch.randn(256, widths[0]) + shift[torch.arange(256) % 4, None]
        batches = [1.5 * torch.randn(64, widths[0]) + middle for middle in shift]  # no batch is like another
        answer = int8_body(model, batches)
        assert isinstance(answer, nn.Module), (
            f"what int8_body returned should be a model, not {type(answer).__name__}: does it end with `return`?"
        )
        changed = witness.unchanged(untouched, model)
        assert not changed, f"your function changed the model that came in ({changed}): work on a copy."
        shared = witness.independent(answer, model)
        assert not shared, f"your model is no copy: {shared}."
        dtypes, weights = describe.weight_dtypes(answer), describe.dequantized_weights(answer)
        floats = [name for name, dtype in dtypes.items() if dtype == "torch.float32"]
        assert floats, "no layer is float: the head must keep its float weights. Give it no qconfig."
        assert "torch.qint8" in dtypes.values(), (
            "no layer of the body is int8: prepare, run the batches, convert, and return what convert returns."
        )
        assert len(floats) == 1 and list(dtypes.values()).count("torch.qint8") == len(layers), (
            f"{len(floats)} layers are float, and {list(dtypes.values()).count('torch.qint8')} of {len(layers)} body layers are "
            "int8: only the head should be float, without a float copy of the body to fall back on."
        )
        assert torch.equal(weights[floats[0]], untouched.head.weight), (
            "the weights of your float layer are not those of the head: they may have been rounded, or it is another layer."
        )
        bias = getattr(answer.get_submodule(floats[0]), "bias", None)
        assert isinstance(bias, Tensor) and torch.equal(bias, untouched.head.bias), (
            "the bias of your float layer is not that of the head, bit for bit."
        )
        assert not [kind for kind in describe.layer_types(answer).values() if ".dynamic." in kind], (
            "your body is dynamically quantized: that needs no stubs, but it is another scheme. Use prepare, batches, convert."
        )
        with torch.no_grad():
            expected = untouched(x)
            try:
                output = answer(x)
            except NotImplementedError:
                raise AssertionError("the body gets float numbers: a QuantStub must stand in front of it.") from None
            except RuntimeError as error:
                if "same dtype" not in str(error):
                    raise
                raise AssertionError(
                    "the float head still gets int8 numbers: the DeQuantStub must stand between body and head, not at the end."
                ) from None
        assert not output.is_quantized, "your model returns a quantized tensor: the head should give float numbers."
        assert not torch.equal(output, expected), (
            "your output is the float model's to the last bit: the int8 body does not run. A float fallback is no cure."
        )
        other = witness.other_recipe(answer)
        assert not other, f"your int8 layers do not have the default qconfig of the engine in use: {other}."
        assert not all(scale == 1.0 for _, scale, _ in describe.int8_linears(answer)), (
            "all your scales are 1: nothing ran through the prepared model before convert."
        )
        right, first = (witness.expected_scales(untouched.body, some) for some in (batches, batches[:1]))
        only_first = all(
            min(abs(scale / true - 1) for true in accepted) < 0.001
            for (_, scale, _), accepted in zip(describe.int8_linears(answer), first, strict=True)
        )
        for (name, scale, _), accepted in zip(describe.int8_linears(answer), right, strict=True):
            assert min(abs(scale / true - 1) for true in accepted) < 0.03, (
                f"the output scale of {name} is {scale:.3g}; expected is {accepted[0]:.3g}"
                + (" (yours saw the first batch only)" if only_first else "")
                + ": run all batches through the prepared model before "
                f"convert, and nothing else, with get_default_qconfig of the engine in use (here {torch.backends.quantized.engine})."
            )
        assert witness.runs_in_int8(answer, untouched, x, ("head",)), (
            "your output does not come from the int8 layers that your model shows: its body is computed in float."
        )
        error = float((output - expected).norm() / expected.norm())
        assert error < 0.1, f"your output is {error:.0%} off: 8 bits in the body should cost a few percent at most."
        assert len(output[:, 0].unique()) > 200, (
            "your output has few different values: it was rounded to 8 bits behind the head, which should stay float."
        )
        return answer

    with checks.check("2.10.5", "an int8 body, and a head that is float to the last bit"):
        check_ex_2_10_5_model((8, 32, 16), outputs=4, seed=5)
        with int8.using(int8.another_engine()):
            check_ex_2_10_5_model((8, 20), outputs=5, seed=55)
    ### BEGIN HIDDEN TESTS
    with torch.random.fork_rng(devices=[]):
        with int8.using(int8.another_engine()):
            check_ex_2_10_5_model((10, 16), 3, 2503)
        for widths, outputs, seed in [((12, 24), 3, 2501), ((6, 16, 20, 16), 7, 2502)]:
            converted = check_ex_2_10_5_model(widths, outputs, seed)
            assert converted(torch.randn(2, widths[0])).shape == (2, outputs), "another batch size fails."
    ### END HIDDEN TESTS


check_ex_2_10_5()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The border between int8 and float has moved: it is no longer at the end of the model.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# Stubs around the body only: `tq.QuantWrapper(model.body)`. If the qconfig is set on this wrapper and not on the whole, the head gets
# none, and stays float by itself.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `front = tq.QuantWrapper(…)`, `front.qconfig = …`, then prepare `nn.Sequential(front, model.head)`, run the batches, convert,
# return.
# </details>

# %% [markdown]
# PyTorch's newer road, PT2E, first records the model as a graph, with `torch.export`, and then quantizes the graph. A recording
# needs an example, and it takes the sizes of the example for laws. `x.shape[0]` becomes the number that it was. A guard in the
# graph then refuses every other batch size. That is honest: the number stands in the graph, with or without the guard.
#
# ### Exercise 2.10.6: the graph that knows one batch size
# *Difficulty 3 of 5 · 12 minutes · 1 point*
#
# Write `exported_int8`: the same three PT2E steps, but with a batch dimension that is recorded as *variable*, so that the result takes
# batches of every size. `torch.export.export` has a parameter for it, `dynamic_shapes` (you used it in exercise 2.9; here the model itself asks for
# `x.shape[0]`, and the calibration batches have different sizes).


# %% tags=["broken", "nbval-check-output"]
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)


class TwoSteps(nn.Module):
    """Reads (batch, time 3, width 8): each position alone, then all positions of a text side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(3 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).relu()  # (batch, time, 16)
        return self.down(h.reshape(x.shape[0], -1))  # (batch, time * 16) -> (batch, 4)


def patient_6(model: nn.Module, batches: list[Tensor], x: Tensor) -> Tensor:
    graph = torch.export.export(model, (batches[0],)).module()
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(graph, quantizer)
    for batch in batches:
        prepared(batch)
    return convert_pt2e(prepared)(x)


torch.manual_seed(6)
errors.show_error(lambda: patient_6(TwoSteps().eval(), [torch.randn(2, 3, 8)], torch.randn(5, 3, 8)))


# %% nbgrader={"grade": false, "grade_id": "ex_2_10_6", "locked": false, "schema_version": 3, "solution": true, "task": false}
def exported_int8(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """Export `model`, quantize the graph with PT2E (static int8), and leave the batch size open.

    Parameters
    ----------
    model : Module
        Maps float32 (batch, …) to float32 (batch, …); in eval mode; it is not changed.
    batches : list of Tensor, float32, (batch, …)
        To calibrate with: all of them. Their batch sizes differ, and are at least 2 (an example with a batch of 1 is always taken for a
        constant).

    Returns
    -------
    Module
        What `convert_pt2e` returns; runs with every batch size from 1 on.
    """
    ### BEGIN SOLUTION
    sizes = ({0: torch.export.Dim("batch")},)
    recorded = torch.export.export(model, (batches[0],), dynamic_shapes=sizes).module()
    scheme = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    observed = prepare_pt2e(recorded, scheme)
    for batch in batches:
        observed(batch)
    return convert_pt2e(observed)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_2_10_6_check", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 2.10.6: run this cell.
import copy

import torch
from torch import Tensor, nn

from helpers import checks, witness


@checks.isolated
def check_ex_2_10_6() -> None:
    class Steps(nn.Module):
        def __init__(self, time: int, width: int) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width * time, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x).relu().reshape(x.shape[0], -1))

    def check_ex_2_10_6_graph(time: int, width: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = Steps(time, width).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.4)
        untouched, middles = copy.deepcopy(model), torch.tensor([0.0, 3.0, -3.0, 0.0])
        batches = [torch.randn(rows, time, width) + m for rows, m in zip((32, 48, 40, 8), middles, strict=True)]
        try:
            answer = exported_int8(model, batches)
        except Exception as error:
            text = str(error).strip()
            if "dynamic_shapes" in text and "top-level" in text:
                raise AssertionError(
                    "dynamic_shapes has the wrong form: it is a tuple with one entry for each input of the model, here ({0: …},). PyTorch says: "
                    + text.splitlines()[0]
                ) from None
            if "You marked" in text:
                raise AssertionError(
                    "you marked a dimension as variable that the model takes for a constant: mark dimension 0, the batch, and give "
                    f"an example with at least two rows. PyTorch says: {text.splitlines()[0]}"
                ) from None
            if "Guard failed" not in text and "size" not in text:
                raise
            raise AssertionError(
                "the graph refuses a calibration batch that has another size than the first one: mark dimension 0 of the input "
                f"as variable when you export. PyTorch says: {text.splitlines()[0]}"
            ) from None
        assert isinstance(answer, nn.Module), (
            f"what exported_int8 returned should be a module, not {type(answer).__name__}: does it end with `return`?"
        )
        changed = witness.unchanged(untouched, model)
        assert not changed, f"your function changed the model that came in ({changed})."
        graphs = [
            part for part in answer.modules() if isinstance(part, torch.fx.GraphModule) and part.graph is not None
        ]
        nodes = [node for graph in graphs for node in graph.graph.nodes]
        inputs = [n for n in nodes if "quantize_per_tensor" in str(n.target) and "dequantize" not in str(n.target)]
        codes = sum(buffer.numel() for buffer in answer.buffers() if buffer.dtype == torch.int8)
        wanted = model.up.weight.numel() + model.down.weight.numel()
        assert graphs, (
            "your model holds no exported graph: a float model runs with every batch size, but it is not the cure."
        )
        assert codes == wanted and len(inputs) >= 2, (
            f"your graph holds {codes} int8 weights and quantizes {len(inputs)} activations; it should be {wanted} and at least 2: "
            "export, prepare_pt2e, batches, convert_pt2e, and return what convert_pt2e returns."
        )
        assert not [node for node in nodes if "choose_qparams" in str(node.target)] and all(
            isinstance(node.args[1], float) for node in inputs
        ), (
            "your graph chooses scales anew for each input: that is dynamic quantization, which needs no calibration. Static scales are numbers in the "
            "graph: take the default configuration, without is_dynamic."
        )
        assert len({node.args[1] for node in inputs}) > 1, (
            "all scales of your graph are equal: nothing ran through the prepared graph before convert_pt2e."
        )
        inner = next(graph for graph in graphs if inputs[0] in graph.graph.nodes)
        for size in (1, 2, 7, 300, 5000):
            x = torch.randn(size, time, width) + middles[torch.arange(size) % 3 + (size < 3), None, None]
            with torch.no_grad():
                expected = model(x)
                try:
                    output = answer(x)
                    again = output if torch.equal(output, expected) else inner(x)
                except (AssertionError, RuntimeError) as error:
                    raise AssertionError(
                        f"a batch of {size} fails: the graph has a batch size, or a limit for it, built in. Mark dimension 0 of the "
                        "input as variable, without a maximum; taking the guards away changes nothing in the graph. PyTorch says: "
                        + str(error).strip().splitlines()[0]
                    ) from None
            assert output.shape == expected.shape, f"for a batch of {size} your output has shape {tuple(output.shape)}."
            assert not torch.equal(output, expected), (
                "your output is the float model's: the graph with int8 does not run."
            )
            error = float((output - expected).norm() / expected.norm())
            assert error < 0.15, f"a batch of {size} is {error:.0%} off: run all batches through the prepared graph."
            assert torch.allclose(again, output, atol=1e-4), (
                "your output is not what the graph inside your model computes."
            )
        assert witness.runs_in_int8(answer, untouched, x), (
            "your output does not come from the int8 weights that your graph holds: it is computed in float."
        )
        return answer

    with checks.check("2.10.6", "one graph for every batch size"):
        check_ex_2_10_6_graph(time=3, width=8, seed=6)
    ### BEGIN HIDDEN TESTS
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for time, width, seed in [(2, 12, 2601), (5, 4, 2602)]:
            graph = check_ex_2_10_6_graph(time, width, seed)
            assert graph(torch.zeros(11, time, width)).shape == (11, 4), "another batch size fails."
    ### END HIDDEN TESTS


check_ex_2_10_6()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The mistake is in the first step. The other steps are right as they are.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `dynamic_shapes` is a tuple with an entry for each input of the model. An entry is a dictionary: number of the dimension →
# `torch.export.Dim("a name")`.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `torch.export.export(model, (batches[0],), dynamic_shapes=({0: …},)).module()`; then as in the broken program, but return the
# converted graph and do not call it.
# </details>

# %% [markdown]
# Now the silent ones. An observer that has never seen a number still has to give `convert` a scale, so it gives 1, with zero
# point 0. There is a warning, easily lost among others. The usual cause is not that somebody forgot to calibrate. It is a part of
# the model that the calibration data never reached: a branch for long inputs, a rare language, an expert that was never chosen. All
# tests on ordinary data pass. Read what the next cell prints, then think of the test that would have caught it.
#
# ### Exercise 2.10.7: the observer that has seen nothing
# *Difficulty 3 of 5 · 15 minutes · 2 points*
#
# Write the probe `uncalibrated`: the names of all observers of a *prepared* model that have never seen data, as `named_modules`
# gives them. An observer is a `tq.ObserverBase`, in a graph of PT2E a `torchao.quantization.pt2e.observer.ObserverBase` (another class: a probe that knows only the first one finds nothing in any graph,
# and says that all is well). Both keep what they saw in `min_val` and `max_val`: one number each, or one for each channel.
# Print a fresh one to see what it holds before. One that saw only zeros *has* seen data. Observers without a `min_val` have a
# fixed range or none; they need no data and are not listed.
#
# Then write the cure `calibrated_int8`: prepare a copy, run the batches, and **refuse** with a `ValueError` that names the layers if an observer
# has seen nothing; else convert.


# %% tags=["broken"]
import warnings


class Gate(nn.Module):
    """Two branches: small inputs take the first, inputs with a number above 5 the second."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.common, self.rare, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.rare if x.max() > 5 else self.common
        return self.dequant(self.head(branch(self.quant(x))))


def patient_7(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    model.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    prepared = tq.prepare(model)
    for batch in batches:
        prepared(batch)
    return tq.convert(prepared)


with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    torch.manual_seed(7)
    gate, calm, wild = Gate().eval(), torch.randn(64, 8).clamp(-4, 4), torch.randn(64, 8).clamp(-4, 4)
    wild[:, 0] = 6
    patient = patient_7(gate, [calm])
    for name, numbers in [("calm", calm), ("wild", wild)]:
        gap = (patient(numbers) - gate(numbers)).norm() / gate(numbers).norm()
        print(f"{name} inputs: {gap:.0%} off")
for layer in ("common", "rare"):
    print(f"{layer}: scale {getattr(patient, layer).scale:.3f}, zero point {getattr(patient, layer).zero_point}")
for text in {" ".join(str(w.message).split()) for w in caught if "must run" in str(w.message)}:
    print("one warning among", len(caught), "was:", text)


# %% nbgrader={"grade": false, "grade_id": "ex_2_10_7", "locked": false, "schema_version": 3, "solution": true, "task": false}
from torchao.quantization.pt2e.observer import ObserverBase as GraphObserver


def uncalibrated(prepared: nn.Module) -> list[str]:
    """Names of the observers of a prepared model that have never seen data.

    Parameters
    ----------
    prepared : Module
        What ``tq.prepare`` or ``prepare_pt2e`` returned, before, during or after calibration; it is not changed.

    Returns
    -------
    list of str
        In the order of ``prepared.named_modules()``, for example ``["rare.activation_post_process"]``.
    """
    ### BEGIN SOLUTION
    unseen = []
    for name, module in prepared.named_modules():
        if not isinstance(module, tq.ObserverBase | GraphObserver) or not hasattr(module, "min_val"):
            continue
        # before the first number: no entries (per channel), or a minimum of +inf above a maximum of -inf
        if module.min_val.numel() == 0 or bool((module.min_val > module.max_val).any()):
            unseen.append(name)
    return unseen
    ### END SOLUTION


def calibrated_int8(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """A statically quantized copy of `model`, calibrated on `batches`; `model` itself is unchanged.

    Parameters
    ----------
    model : Module
        In eval mode, with its own stubs.
    batches : list of Tensor
        To calibrate with: all of them, with the default qconfig of the engine.

    Returns
    -------
    Module

    Raises
    ------
    ValueError
        If an observer has seen no data; the text names all such observers, as `uncalibrated` gives them.
    """
    ### BEGIN SOLUTION
    probe = copy.deepcopy(model)
    probe.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    tq.prepare(probe, inplace=True)
    for batch in batches:
        probe(batch)
    if missing := uncalibrated(probe):
        raise ValueError(f"calibration never reached {', '.join(missing)}: add batches that go there.")
    return tq.convert(probe)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_2_10_7_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 2.10.7: run this cell.
import copy
import warnings

import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from helpers import checks, describe, int8, witness


@checks.isolated
def check_ex_2_10_7() -> None:
    class Quiet(tq.MinMaxObserver):
        """An observer of another name, such as anybody may write."""

    class TwoWays(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
            self.common, self.rare, self.head = nn.Linear(width, 16), nn.Linear(width, 16), nn.Linear(16, 4)
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=0.4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.quant(x)  # (batch, width)
            return self.dequant(self.head(self.rare(h) if x.max() > 9 else self.common(h)))

    def check_ex_2_10_7_probe(activation: type, seed: int) -> None:
        torch.manual_seed(seed)
        model = TwoWays(8).eval()
        model.qconfig = tq.QConfig(activation=activation, weight=tq.default_weight_observer)
        watched = tq.prepare(model)
        every = [f"{name}.activation_post_process" for name in ("quant", "common", "rare", "head")]
        found = uncalibrated(watched)
        assert isinstance(found, list) and all(isinstance(name, str) for name in found), (
            f"what uncalibrated returned should be a list of names, not {type(found).__name__}: does it end with `return`?"
        )
        assert not set(found) & {"quant", "common", "rare", "head"}, (
            "you name the layers: name the observers inside them, as named_modules does, such as rare.activation_post_process."
        )
        assert sorted(found) == sorted(every), (
            f"before calibration all {len(every)} observers ({activation.__name__}) of a small model are unseen; your probe lists "
            f"{len(found)}: a fresh observer has minimum +inf and maximum -inf, or, for channels, no entries at all. What counts is that it is a "
            "tq.ObserverBase, not the name of its class."
        )
        watched(torch.zeros(4, 8))
        only_rare = uncalibrated(watched)
        assert "rare.activation_post_process" in only_rare, (
            "the layer `rare` was never called, but your probe does not list its observer: look at each observer by itself."
        )
        assert "quant.activation_post_process" not in only_rare, (
            "an observer that saw only zeros has seen data; your probe lists it: do not judge by its values being 0."
        )
        assert only_rare == ["rare.activation_post_process"], (
            f"after a batch that takes one branch only the other one's observer is unseen; your probe lists {only_rare}."
        )
        levels = torch.full((4, 8), float(watched.quant.activation_post_process.quant_max))
        levels[0] = 0
        watched.apply(lambda part: part.reset_min_max_vals() if isinstance(part, tq.MinMaxObserver) else None)
        watched(levels)  # a range of 0 to quant_max has scale 1 and zero point 0, and rightly so
        seen = uncalibrated(watched)
        assert "quant.activation_post_process" not in seen, (
            "an observer that saw a range with scale 1 and zero point 0 is listed: these values are right for it. Look at what it saw, "
            "not at the scale."
        )
        watched(torch.full((4, 8), 10.0))
        state = {name: tensor.clone() for name, tensor in watched.state_dict().items()}
        assert "rare.activation_post_process" not in uncalibrated(watched), (
            "all observers have seen data, but your probe lists `rare`."
        )
        assert all(torch.equal(tensor, watched.state_dict()[name]) for name, tensor in state.items()), (
            "your probe changed what the observers hold: look, and leave them alone."
        )

    def check_ex_2_10_7_graph(seed: int) -> None:
        torch.manual_seed(seed)
        inner = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 5))).eval()
        recipe = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
        watched = prepare_pt2e(torch.export.export(inner, (torch.zeros(2, 6),)).module(), recipe)
        every = [name for name, part in watched.named_modules() if hasattr(part, "min_val")]
        found = uncalibrated(watched)
        assert found == every, (
            f"a prepared PT2E graph has {len(every)} observers that have seen nothing; your probe lists {len(found)}. They are of torchao's "
            "own class, torchao.quantization.pt2e.observer.ObserverBase, and no tq.ObserverBase."
        )
        watched(torch.randn(2, 6))
        assert uncalibrated(watched) == [], "the observers of a PT2E graph have seen data, and your probe lists them."

    def check_ex_2_10_7_cure(width: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = TwoWays(width).eval()
        untouched = copy.deepcopy(model)
        calm = [(torch.randn(64, width) + middle).clamp(-8, 8) for middle in (0, 3, -3, 0)]
        wild = [2 * torch.randn(64, width) + middle for middle in (0, 5, -5, 0)]
        for batch in wild:
            batch[:, 0] = 12
        for batches, names in [(calm, ("rare",)), (wild, ("common",)), ([], ("quant", "common", "rare", "head"))]:
            what = f"{len(batches)} batches that never reach {', '.join(names)}"
            try:
                calibrated_int8(model, batches)
            except ValueError as error:
                for name in ("quant", "common", "rare", "head"):
                    named = f"{name}.activation_post_process" in str(error)
                    assert named or name not in names, (
                        f"your ValueError for {what} does not name {name}.activation_post_process: say which ones, so that "
                        "somebody can find the missing data."
                    )
                    assert name in names or not named, (
                        f"your ValueError for {what} names {name}.activation_post_process, which has seen data: name only the others."
                    )
            else:
                raise AssertionError(
                    f"your function converts a model after {what}: its scales are made up. A warning is not enough, random data or a "
                    "float layer hides it: raise ValueError."
                )
        batches = [calm[0], wild[0], *calm[1:], *wild[1:]]  # the first two reach every layer, but not every range
        answer = calibrated_int8(model, batches)
        assert isinstance(answer, nn.Module), (
            f"what calibrated_int8 returned should be a model, not {type(answer).__name__}: does it end with `return`?"
        )
        changed = witness.unchanged(untouched, model)
        assert not changed, f"your function changed the model that came in ({changed}): work on a deep copy."
        assert set(describe.weight_dtypes(answer).values()) == {"torch.qint8"} and not any(
            ".dynamic." in kind for kind in describe.layer_types(answer).values()
        ), "with good batches all three layers should be statically quantized: call convert and return its result."
        other = witness.other_recipe(answer)
        assert not other, f"your int8 layers do not have the default qconfig of the engine in use: {other}."
        for branch, batches in [("common", calm), ("rare", wild)]:
            layer = getattr(untouched, branch)
            right = witness.expected_scales(nn.Sequential(layer), batches)[0][0]
            scale = getattr(answer, branch).scale
            assert abs(scale / right - 1) < 0.03, (
                f"the output scale of {branch} is {scale:.3g}; expected is {right:.3g}: run all batches before you convert, also when every "
                f"observer has seen something, and use get_default_qconfig of the engine in use (here {torch.backends.quantized.engine})."
            )
        with torch.no_grad():
            for x in batches:
                expected = untouched(x)
                error = float((answer(x) - expected).norm() / expected.norm())
                assert error < 0.2, (
                    f"with good batches your model is {error:.0%} off: run all of them before you convert."
                )
        assert all(witness.runs_in_int8(answer, untouched, x) for x in (calm[0], wild[0])), (
            "your output does not come from the int8 layers that your model shows: it is computed in float."
        )
        return answer

    observers = {"minmax": tq.MinMaxObserver, "average": tq.MovingAverageMinMaxObserver}
    with (
        checks.check("2.10.7", "the probe finds every blind observer, and the cure refuses to guess"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        check_ex_2_10_7_probe(observers["minmax"], seed=7)
        check_ex_2_10_7_probe(tq.HistogramObserver, seed=70)
        check_ex_2_10_7_probe(Quiet, seed=72)
        plain = nn.Sequential(tq.MinMaxObserver())
        assert uncalibrated(plain) == ["0"], (
            "a fresh MinMaxObserver whose name in the model is '0' is not listed: what it is counts, not how it is called."
        )
        mixed = nn.Sequential(
            tq.PerChannelMinMaxObserver(), tq.PlaceholderObserver(), tq.default_fixed_qparams_range_0to1_observer()
        )
        found = uncalibrated(mixed)
        assert "0" in found, (
            "a fresh observer with one range for each channel is not listed: its min_val has no entries yet, min_val.numel() is 0."
        )
        assert found == ["0"], "observers without a min_val need no data (a fixed range, or none): do not list them."
        mixed[0](torch.zeros(5, 4))
        assert uncalibrated(mixed) == [], (
            "an observer with one range for each channel has seen data, and is still listed."
        )
        check_ex_2_10_7_cure(width=8, seed=71)
        with int8.using(int8.another_engine()):
            check_ex_2_10_7_cure(width=8, seed=73)
        check_ex_2_10_7_graph(seed=74)
    ### BEGIN HIDDEN TESTS
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        for seed, kind in enumerate([observers["average"], tq.HistogramObserver, observers["minmax"], Quiet]):
            check_ex_2_10_7_probe(kind, 2701 + seed)
        assert uncalibrated(nn.ModuleDict({"watch": tq.HistogramObserver()})) == ["watch"], "names do not count."
        channels = nn.Sequential(tq.QuantStub(), nn.Linear(3, 4), nn.Sigmoid()).eval()
        channels.qconfig = tq.QConfig(activation=tq.PerChannelMinMaxObserver, weight=tq.default_weight_observer)
        channels[2].qconfig = tq.QConfig(
            activation=tq.default_fixed_qparams_range_0to1_observer, weight=tq.default_weight_observer
        )
        channels = tq.prepare(channels)
        channels.add_module("bare", tq.PerChannelMinMaxObserver())
        channels.add_module("later", tq.PlaceholderObserver())
        channels.add_module("fixed", tq.default_fixed_qparams_range_0to1_observer())
        assert {"1.activation_post_process", "bare"} <= set(uncalibrated(channels)), "a per-channel observer is missed."
        assert not set(uncalibrated(channels)) & {"later", "fixed", "2.activation_post_process"}, "these need no data."
        channels[1].activation_post_process(torch.zeros(5, 4))
        assert "1.activation_post_process" not in uncalibrated(channels), "per-channel zeros are data."
        check_ex_2_10_7_graph(seed=2712)
        with int8.using(int8.another_engine()):
            check_ex_2_10_7_cure(width=12, seed=2713)
        whole = check_ex_2_10_7_cure(width=20, seed=2711)
        assert whole(torch.randn(3, 20)).shape == (3, 4), "another batch size fails."
    ### END HIDDEN TESTS


check_ex_2_10_7()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# `print(tq.MinMaxObserver())`, and `print(tq.PerChannelMinMaxObserver().min_val)`. What can no real data ever produce?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# A minimum above the maximum, or a `min_val` with no entries. Walk over `named_modules()`, keep those that are a `tq.ObserverBase` or a `GraphObserver` and have a
# `min_val`. In the cure, ask the probe after the batches and *before* convert.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `if module.min_val.numel() == 0 or …: unseen.append(name)`. The cure: `copy.deepcopy(model)`, qconfig, prepare, batches, then
# `if missing := uncalibrated(…): raise ValueError(f"… {', '.join(missing)}")`, then convert.
# </details>

# %% [markdown]
# Look back: your probe on the patient, before it was converted. (Where an exercise is still open, this cell says so.)

# %%
observed_gate = copy.deepcopy(gate)
observed_gate.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
tq.prepare(observed_gate, inplace=True)
observed_gate(calm)
errors.show_result(lambda: uncalibrated(observed_gate))

# %% [markdown]
# `nn.MultiheadAttention` holds the weights of q, k and v in one bare parameter, `in_proj_weight`, and its output layer is of a
# special type that announces in its name that it will not be quantized. `{nn.Linear}` matches neither. So nothing happens, and
# nothing is said. The result looks perfect: it is not one bit off. That is the sign: **an int8 model without any error is
# a float model**.
#
# ### Exercise 2.10.8: the attention that stayed float
# *Difficulty 3 of 5 · 25 minutes · 2 points*
#
# Write the probe `int8_share`: of all weight numbers of a model, the share that is stored in 8 bits. Weight numbers are those of
# matrices: parameters with 2 or more dimensions, whatever their name, and the packed weights of quantized layers (there `weight` is a method). A parameter that torchao has quantized looks like a float
# one, its dtype included; its codes are in its attribute `qdata`, of dtype `torch.int8`.
# Biases and norms have one dimension and do not count.
#
# Then write the cure `int8_self_attention`: the same weights in four explicit Linear layers, dynamically quantized.
# `in_proj_weight` holds the rows of q, then those of k, then those of v, and `in_proj_bias` the same for the biases; `embed_dim` and `num_heads` are the sizes.
# `helpers.models.SelfAttention(d_model, n_heads)` has the layers `q`, `k`, `v` and `out`; its input is (batch, time, d_model), and it is called with one
# tensor.


# %% tags=["broken", "nbval-check-output"]
def patient_8(model: nn.Module) -> nn.Module:
    return tq.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


torch.manual_seed(8)
attention = nn.ModuleDict({"attention": nn.MultiheadAttention(32, 4, batch_first=True)}).eval()
errors.show_error(lambda: patient_8(attention))
with torch.no_grad():
    x = torch.randn(2, 6, 32)
    before, after = (model["attention"](x, x, x)[0] for model in (attention, patient_8(attention)))
print("largest difference:", float((before - after).abs().max()))
print(f"file: {metrics.file_bytes(attention) / metrics.file_bytes(patient_8(attention)):.2f} times smaller")


# %% nbgrader={"grade": false, "grade_id": "ex_2_10_8", "locked": false, "schema_version": 3, "solution": true, "task": false}
from helpers.models import SelfAttention


def int8_share(model: nn.Module) -> float:
    """Share of a model's weight numbers that are stored in 8 bits.

    Counted are parameters with 2 or more dimensions, and the packed weights of PyTorch's own quantized layers.
    `torch.qint8` and `torch.quint8` are 8 bits, and so is a parameter of torchao whose `qdata` is `torch.int8`; other types
    (`torch.quint4x2`, `torch.float16`) count as numbers, but not as 8 bits. A matrix that several layers share counts once, as in `model.parameters()`.

    Returns
    -------
    float
        From 0.0 (all float, or no matrix at all) to 1.0.
    """
    ### BEGIN SOLUTION
    wide = narrow = 0
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            codes = getattr(parameter, "qdata", parameter)  # a parameter of torchao holds its codes there
            wide += 0 if codes.dtype == torch.int8 else parameter.numel()
            narrow += parameter.numel() if codes.dtype == torch.int8 else 0
    for module in model.modules():
        if callable(getattr(module, "weight", None)):  # a quantized layer: its weight is a method
            matrix = module.weight()
            if matrix.dtype in (torch.qint8, torch.quint8):
                narrow += matrix.numel()
            else:
                wide += matrix.numel()
    return narrow / max(narrow + wide, 1)
    ### END SOLUTION


def int8_self_attention(mha: nn.MultiheadAttention) -> nn.Module:
    """Self-attention with the weights of `mha`, in four dynamically quantized Linear layers.

    Parameters
    ----------
    mha : MultiheadAttention
        With biases and one width for q, k and v; in eval mode; it is not changed.

    Returns
    -------
    Module
        Maps float32 (batch, time, width) to float32 (batch, time, width), like ``mha(x, x, x)[0]`` with batch_first.
    """
    ### BEGIN SOLUTION
    explicit = SelfAttention(mha.embed_dim, mha.num_heads)
    with torch.no_grad():
        rows = zip(mha.in_proj_weight.chunk(3), mha.in_proj_bias.chunk(3), strict=True)
        for layer, (weight, bias) in zip((explicit.q, explicit.k, explicit.v), rows, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        explicit.out.load_state_dict(mha.out_proj.state_dict())
    return tq.quantize_dynamic(explicit.eval(), {nn.Linear}, dtype=torch.qint8)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_2_10_8_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 2.10.8: run this cell.
import copy
from numbers import Real

import torch
import torch.ao.quantization as tq
import torchao.quantization as ao
from torch import Tensor, nn

from helpers import checks, describe, witness


@checks.isolated
def check_ex_2_10_8() -> None:
    class Attend(nn.Module):
        """The float attention, called with one tensor (batch, time, width)."""

        def __init__(self, mha: nn.MultiheadAttention) -> None:
            super().__init__()
            self.mha = mha

        def forward(self, x: Tensor) -> Tensor:
            x = x if self.mha.batch_first else x.transpose(0, 1)
            y = self.mha(x, x, x, need_weights=False)[0]
            return y if self.mha.batch_first else y.transpose(0, 1)

    def check_ex_2_10_8_share(model: nn.Module, expected: float, what: str, mistake: str) -> None:
        share = int8_share(model)
        assert isinstance(share, Real), (
            f"what int8_share returned should be a number, not {type(share).__name__}: does it end with `return`?"
        )
        assert abs(share - expected) < 1e-6, (
            f"your share of {what} is {share:.4f}; expected is {expected:.4f}. {mistake}"
        )

    def check_ex_2_10_8_probe(width: int, hidden: int) -> None:
        linear, table = nn.Linear(width, hidden), nn.Embedding(50, width)
        dynamic = {"qconfig_spec": {nn.Linear}, "dtype": torch.qint8}
        check_ex_2_10_8_share(nn.Sequential(linear, nn.ReLU()), 0.0, "a float layer", "Nothing in it is int8.")
        check_ex_2_10_8_share(
            tq.quantize_dynamic(nn.Sequential(linear), **dynamic),
            1.0,
            "an int8 layer",
            "Its weight is a method: call it. Its bias is float, and does not count.",
        )
        both = tq.quantize_dynamic(nn.Sequential(table, linear, nn.LayerNorm(hidden)), **dynamic)
        share = width * hidden / (width * hidden + 50 * width)
        check_ex_2_10_8_share(
            both,
            share,
            "a float embedding with an int8 layer",
            "Leave out biases and norms." if int8_share(both) != 0.5 else "Count numbers, not layers.",
        )
        attention = nn.ModuleDict({"attention": nn.MultiheadAttention(width, 2)})
        check_ex_2_10_8_share(
            tq.quantize_dynamic(attention, **dynamic),
            0.0,
            "an nn.MultiheadAttention",
            "quantize_dynamic does not touch it.",
        )
        encoder = tq.quantize_dynamic(nn.TransformerEncoderLayer(width, 2, hidden), **dynamic)
        share = 2 * width * hidden / (2 * width * hidden + 4 * width * width)
        check_ex_2_10_8_share(
            encoder,
            share,
            "an encoder layer after quantize_dynamic",
            "in_proj_weight is a float matrix of 3 · width · width numbers that belongs to no Linear layer: count all parameters.",
        )
        recipe = {nn.Embedding: tq.float_qparams_weight_only_qconfig_4bit}
        check_ex_2_10_8_share(
            tq.quantize_dynamic(nn.Sequential(table), recipe),
            0.0,
            "an embedding with 4-bit rows",
            "It is quantized, but not to 8 bits: look at the dtype.",
        )
        recipe = {nn.Embedding: tq.float_qparams_weight_only_qconfig}
        rows = tq.quantize_dynamic(nn.Sequential(table, linear), recipe)
        share = 50 * width / (50 * width + width * hidden)
        check_ex_2_10_8_share(rows, share, "an embedding with 8-bit rows", "torch.quint8 is 8 bits, too.")
        waves = tq.quantize_dynamic(nn.Sequential(linear, nn.Conv1d(width, 5, 3)), **dynamic)
        share = width * hidden / (width * hidden + 15 * width)
        check_ex_2_10_8_share(
            waves,
            share,
            "an int8 layer with a float Conv1d",
            "The weight of a Conv1d has 3 dimensions: 2 or more count.",
        )
        new = nn.Sequential(copy.deepcopy(linear), nn.LayerNorm(hidden), copy.deepcopy(table))
        ao.quantize_(new, ao.Int8WeightOnlyConfig())
        share = width * hidden / (width * hidden + 50 * width)
        check_ex_2_10_8_share(
            new,
            share,
            "a layer that torchao made int8, with a float embedding",
            "Its parameter says that it is float32; the codes are in its attribute qdata.",
        )
        deep = nn.Sequential(nn.Sequential(nn.Sequential(linear)), nn.Sequential(table, nn.LayerNorm(width)))
        check_ex_2_10_8_share(
            tq.quantize_dynamic(deep, **dynamic),
            share,
            "Sequentials inside Sequentials",
            "Walk over all modules, at every depth.",
        )
        frozen = copy.deepcopy(table).requires_grad_(False)
        check_ex_2_10_8_share(
            tq.quantize_dynamic(nn.Sequential(linear, frozen), **dynamic),
            share,
            "an int8 layer with a frozen float embedding",
            "A parameter that does not learn is still stored in float.",
        )
        both_ends = nn.ModuleList([table, linear, nn.Linear(width, 50, bias=False)])
        both_ends[2].weight = table.weight
        tied = tq.quantize_dynamic(both_ends, {"1": tq.default_dynamic_qconfig})
        share = width * hidden / (width * hidden + 50 * width)
        check_ex_2_10_8_share(
            tied, share, "an int8 layer with two float layers that share a matrix", "A shared matrix counts once."
        )

    def check_ex_2_10_8_cure(width: int, heads: int, seed: int, batch_first: bool) -> nn.Module:
        torch.manual_seed(seed)
        mha = nn.MultiheadAttention(width, heads, batch_first=batch_first).eval()
        for parameter in mha.parameters():
            nn.init.normal_(parameter, std=0.2)
        untouched, x = copy.deepcopy(mha), torch.randn(3, 7, width)
        answer = int8_self_attention(mha)
        assert isinstance(answer, nn.Module), (
            f"what int8_self_attention returned should be a module, not {type(answer).__name__}: does it end with `return`?"
        )
        changed = witness.unchanged(untouched, mha)
        assert not changed, (
            f"your function changed the attention that came in ({changed}): copy its weights into new layers."
        )
        left = [name for name, parameter in answer.named_parameters() if parameter.dim() >= 2]
        assert not left, (
            f"your module still holds a float matrix, {left[0]}: all four must be int8. quantize_dynamic returns the quantized copy, and it does "
            "not touch an nn.MultiheadAttention."
        )
        dtypes = list(describe.weight_dtypes(answer).values())
        assert dtypes == ["torch.qint8"] * 4, f"there should be four int8 layers, q, k, v and out; yours has {dtypes}."
        with torch.no_grad():
            expected, output = Attend(untouched)(x), answer(x)
        assert isinstance(output, Tensor) and output.shape == expected.shape, (
            "your module should return one tensor of the shape of x."
        )
        error = float((output - expected).norm() / expected.norm())
        if error >= 0.1:
            order = torch.arange(3 * width).view(3, width)[[0, 2, 1]].flatten()
            likely = {
                "k and v are exchanged: in_proj_weight holds the rows of q, then k, then v.": lambda m: (
                    m.in_proj_weight.copy_(m.in_proj_weight[order]),
                    m.in_proj_bias.copy_(m.in_proj_bias[order]),
                ),
                "the parts of in_proj_weight are transposed: each is width × width like the weight of a Linear layer, no transpose.": lambda m: (
                    m.in_proj_weight.copy_(torch.cat([part.T for part in m.in_proj_weight.chunk(3)]))
                ),
                "the biases of q, k and v are missing: in_proj_bias holds theirs, biases likewise in three parts.": lambda m: (
                    m.in_proj_bias.zero_()
                ),
                f"the number of heads must be the same: here {heads}, in yours 1.": lambda m: (
                    setattr(m, "num_heads", 1),
                    setattr(m, "head_dim", width),
                ),
            }
            fits = []
            for sentence, change in likely.items():
                other = copy.deepcopy(untouched)
                with torch.no_grad():
                    change(other)
                    same = Attend(other)(x)
                if float((output - same).norm() / same.norm()) < 0.1:
                    fits.append(sentence)
            raise AssertionError(
                f"your output is {error:.0%} off: "
                + (
                    fits[0]
                    if len(fits) == 1
                    else "look at the order of q, k and v, at the shapes, the biases and the number of heads."
                )
            )
        assert error > 1e-4 and witness.runs_in_int8(answer, Attend(untouched), x), (
            "your output does not come from the four int8 layers: it has no error at all, or it stays the same when their weights change. It is "
            "computed in float."
        )
        return answer

    with checks.check("2.10.8", "the probe counts every matrix, and all of attention is int8"):
        check_ex_2_10_8_probe(width=16, hidden=40)
        check_ex_2_10_8_cure(width=24, heads=3, seed=8, batch_first=True)
    ### BEGIN HIDDEN TESTS
    with torch.random.fork_rng(devices=[]):
        check_ex_2_10_8_probe(width=6, hidden=11)
        stack = tq.QuantWrapper(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 9))).eval()
        stack.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
        stack = tq.prepare(stack)
        stack(torch.randn(8, 6))
        assert int8_share(tq.convert(stack)) == 1.0, "static int8 layers are int8, too."
        assert int8_share(nn.Sequential(nn.ReLU(), nn.LayerNorm(4))) == 0.0, "a model without matrices has share 0."
        for width, heads, seed, batch_first in [(16, 2, 2801, False), (32, 8, 2802, True), (12, 1, 2803, True)]:
            quantized = check_ex_2_10_8_cure(width, heads, seed, batch_first)
            assert int8_share(quantized) == 1.0, "your probe does not find your own cure complete."
    ### END HIDDEN TESTS


check_ex_2_10_8()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# `for name, parameter in attention.named_parameters(): print(name, parameter.shape)`. Which of them belong to a Linear layer that
# `{nn.Linear}` could match?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# Probe: quantized layers have no parameters any more, so `model.parameters()` gives the float part and `module.weight()` the
# int8 part. Cure: `mha.in_proj_weight.chunk(3)` gives the weights of q, k and v in this order, the same for `in_proj_bias`.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `explicit = SelfAttention(mha.embed_dim, mha.num_heads)`; in `torch.no_grad()` copy with
# `explicit.q.weight.copy_(…)` and so on, six times, and `explicit.out.load_state_dict(mha.out_proj.state_dict())`; then quantize
# `explicit.eval()` as in exercise 1.8.
# </details>

# %% [markdown]
# Look back: your probe on the patient, and on your cure.

# %%
errors.show_result(lambda: f"patient: {int8_share(patient_8(attention)):.2f} of the weights are int8")
errors.show_result(lambda: f"cured: {int8_share(int8_self_attention(attention['attention'])):.2f}")

# %% [markdown]
# Many language models use one table twice: as the embedding at the entrance and as the head at the exit. The file holds it once.
# `quantize_dynamic` replaces the head by an int8 layer with a table of its own, the embedding keeps the float table, and from
# now on there are two. For a small model with a large vocabulary the "quantized" file is *larger* than the float one.
#
# ### Exercise 2.10.9: the table that was saved twice
# *Difficulty 3 of 5 · 25 minutes · 2 points*
#
# Write two probes. `lost_tie(before, after)`: do two modules of `before` share one weight, while the modules of the same names in
# `after` do not? Equal numbers are not enough: two equal copies take the place of two. (`named_modules()` gives the names, `get_submodule(name)` the module of a name.) `times_smaller(before, after)`: how many times smaller the
# saved state_dict has become (below 1: it grew).
#
# Then the cure, `int8_tied_model`: a copy whose file is at least 1.7 times smaller, with no float matrix left. It may lose the tie
# if both copies are small.


# %% tags=["broken"]
class TiedModel(nn.Module):
    """ids (batch, time) -> logits (batch, time, vocabulary), with one table for both ends."""

    def __init__(self, vocabulary: int = 256, width: int = 64) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(vocabulary, width), nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.hidden(self.embedding(ids)).tanh())


def patient_9(model: nn.Module) -> nn.Module:
    return tq.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


torch.manual_seed(9)
tied = TiedModel().eval()
errors.show_error(lambda: patient_9(tied))
print("float file:", metrics.file_bytes(tied), "bytes; int8 file:", metrics.file_bytes(patient_9(tied)), "bytes")


# %% nbgrader={"grade": false, "grade_id": "ex_2_10_9", "locked": false, "schema_version": 3, "solution": true, "task": false}
def lost_tie(before: nn.Module, after: nn.Module) -> bool:
    """True if two modules of `before` share one float weight and the two of the same names in `after` do not.

    Parameters
    ----------
    before : Module
        A float model.
    after : Module
        With the same module names; where a layer is quantized, its `weight` is a method.
    """
    ### BEGIN SOLUTION
    names_of: dict[int, list[str]] = {}
    for name, module in before.named_modules():
        shared = getattr(module, "weight", None)
        if isinstance(shared, nn.Parameter):
            names_of.setdefault(id(shared), []).append(name)
    for names in names_of.values():
        kept = [after.get_submodule(name).weight for name in names]
        if any(weight is not kept[0] for weight in kept):  # methods of two quantized layers are two objects as well
            return True
    return False
    ### END SOLUTION


def times_smaller(before: nn.Module, after: nn.Module) -> float:
    """Bytes of the saved state_dict of `before`, divided by those of `after`."""
    ### BEGIN SOLUTION
    return metrics.file_bytes(before) / metrics.file_bytes(after)
    ### END SOLUTION


def int8_tied_model(model: nn.Module) -> nn.Module:
    """An 8-bit copy of a model with a tied table; `model` itself is unchanged, and still tied.

    Parameters
    ----------
    model : Module
        Maps ids, int64 (batch, time), to float32; holds Embedding and Linear layers, among them `embedding` and `head`
        with one weight; in eval mode.

    Returns
    -------
    Module
        The same mapping in PyTorch's own quantized layers (not torchao's tensors), with no float matrix left; its saved
        state_dict is at least 1.7 times smaller.
    """
    ### BEGIN SOLUTION
    both_ends = {nn.Embedding: tq.float_qparams_weight_only_qconfig, nn.Linear: tq.default_dynamic_qconfig}
    return tq.quantize_dynamic(model, both_ends)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_2_10_9_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 2.10.9: run this cell.
import copy
from numbers import Real

import torch
from torch import Tensor, nn

from helpers import checks, describe, int8, metrics, witness
from helpers.models import ModelConfig, TransformerLM


@checks.isolated
def check_ex_2_10_9() -> None:
    class Tied(nn.Module):
        def __init__(self, vocabulary: int, width: int) -> None:
            super().__init__()
            self.embedding, self.hidden = nn.Embedding(vocabulary, width), nn.Linear(width, width)
            self.head = nn.Linear(width, vocabulary, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.hidden(self.embedding(ids)).tanh())

    def check_ex_2_10_9_probes(model: nn.Module, untied: nn.Module) -> None:
        loose = copy.deepcopy(model)
        loose.head.weight = nn.Parameter(loose.head.weight.detach().clone())
        quantized = int8.dynamic_int8(model)
        cases = [
            (
                copy.deepcopy(model),
                False,
                "a deep copy keeps its own tie: compare the weights of `after` with each other.",
            ),
            (quantized, True, "quantize_dynamic gives the head a table of its own."),
            (loose, True, "two equal tables are two tables: ask with `is`, do not compare numbers."),
        ]
        for after, expected, why in cases:
            lost = lost_tie(model, after)
            assert isinstance(lost, bool), f"what lost_tie returned should be True or False, not {type(lost).__name__}."
            assert lost == expected, f"your lost_tie says {lost} where {expected} is right: {why}"
        try:
            lost = lost_tie(untied, int8.dynamic_int8(untied))
        except AttributeError as error:
            raise AssertionError(
                f"your lost_tie must work for any model, whatever its layers are called ({error}): walk over before.named_modules()."
            ) from None
        assert not lost, "a model that never had a tie cannot lose one: look at `before`, too."
        two = nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in ("head", "first", "second")})
        two["embedding"] = nn.Embedding(4, 4)
        two["head"].weight, two["second"].weight = two["embedding"].weight, two["first"].weight
        for broken in ("head", "second"):
            one_left = copy.deepcopy(two)
            one_left[broken].weight = nn.Parameter(one_left[broken].weight.detach().clone())
            lost = lost_tie(two, one_left)
            assert lost is True, (
                "of two ties one is lost, and your lost_tie does not see it: look at each tie by itself, whatever its layers are called."
            )
        lost = lost_tie(two, copy.deepcopy(two))
        assert lost is False, "of two ties none is lost, and your lost_tie says that one is."
        three = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4))
        three[1][0].weight = three[2].weight = three[0].weight
        assert lost_tie(three, copy.deepcopy(three)) is False, "three layers share one matrix, before and after."
        for broken in ("0", "1.0", "2"):
            one_left = copy.deepcopy(three)
            one_left.get_submodule(broken).weight = nn.Parameter(three[0].weight.detach().clone())
            assert lost_tie(three, one_left) is True, (
                f"of three layers with one matrix the one called {broken} has its own afterwards, and your lost_tie does not see it."
            )
        for after in (quantized, copy.deepcopy(model), loose):
            ratio, expected = times_smaller(model, after), metrics.file_bytes(model) / metrics.file_bytes(after)
            assert isinstance(ratio, Real), (
                f"what times_smaller returned should be a number, not {type(ratio).__name__}."
            )
            assert abs(ratio * expected - 1) > 0.02 or abs(ratio - expected) < 0.02 * expected, (
                f"your times_smaller is {ratio:.2f}; expected is {expected:.2f}: it is upside down, float over int8."
            )
            twice = expected + 4 * model.embedding.weight.numel() / metrics.file_bytes(after)
            assert abs(ratio - twice) > 0.05 * twice, (
                f"your times_smaller is {ratio:.2f}; expected is {expected:.2f}: a shared table is saved once, and you count it twice."
            )
            assert abs(ratio - expected) < 0.02 * expected, (
                f"your times_smaller is {ratio:.2f}; expected is {expected:.2f}. Save the state_dicts and compare bytes, float over int8: "
                "packed weights are no parameters, and a shared table is saved once."
            )

    def check_ex_2_10_9_cure(model: nn.Module, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.15)
        untouched, ids = copy.deepcopy(model), torch.randint(model.embedding.num_embeddings, (2, 12))
        answer = int8_tied_model(model)
        assert isinstance(answer, nn.Module), (
            f"what int8_tied_model returned should be a model, not {type(answer).__name__}: does it end with `return`?"
        )
        changed = witness.unchanged(untouched, model)
        assert not changed, f"your function changed the model that came in ({changed}): return a copy."
        tensors = {name: value for name, value in answer.state_dict().items() if isinstance(value, Tensor)}
        tensors |= dict(answer.named_parameters()) | {
            name: value for name, value in answer.named_buffers() if value.shape == untouched.head.weight.shape
        }
        left = [name for name, value in tensors.items() if value.dim() >= 2 and value.is_floating_point()]
        assert not any(tensors[name].dtype == torch.float16 for name in left), (
            f"your model holds {left[0]} in half precision: that is 16 bits, and not 8."
        )
        assert not left, (
            f"your model holds {left[0]}, a matrix of {tensors[left[0]].dtype}: quantize both ends, the embedding as well as the head, to 8 bits, and "
            "keep no float copy."
        )
        widths = sorted(set(describe.weight_dtypes(answer).values()))
        assert "torch.quint4x2" not in widths, (
            "your embedding has 4 bits: the recipe for 8 is float_qparams_weight_only_qconfig, not _4bit."
        )
        ratio = metrics.file_bytes(untouched) / metrics.file_bytes(answer)
        assert ratio >= 1.7, f"your file is only {ratio:.2f} times smaller than the float file."
        with torch.no_grad():
            expected, output = untouched(ids), answer(ids)
        assert output.dtype == torch.float32 and output.shape == expected.shape, (
            "your model should return float32 logits."
        )
        error = float((output - expected).norm() / expected.norm())
        assert 1e-4 < error < 0.1, (
            f"your output is {error:.1%} off: 8 bits should cost a few percent at most, but not nothing."
        )
        assert witness.runs_in_int8(answer, untouched, ids), (
            "your output does not come from the int8 layers that your model shows: it is computed in float. A fallback to float is no cure."
        )
        return answer

    with checks.check("2.10.9", "the probes see the second table, and the cure makes both small"):
        torch.manual_seed(9)
        check_ex_2_10_9_probes(Tied(256, 64), nn.Sequential(nn.Embedding(40, 8), nn.Linear(8, 40)))
        check_ex_2_10_9_cure(Tied(256, 64).eval(), seed=90)
    ### BEGIN HIDDEN TESTS
    with torch.random.fork_rng(devices=[]):
        config = ModelConfig(vocab_size=400, context=16, d_model=64, n_heads=2, n_layers=1, d_ff=96)
        check_ex_2_10_9_probes(
            TransformerLM(config), TransformerLM(ModelConfig(**(config.to_dict() | {"tied_head": False})))
        )
        pair = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)])
        pair[2].weight = pair[0].weight
        parted = copy.deepcopy(pair)
        parted[0].weight = nn.Parameter(parted[0].weight.detach().clone())
        assert lost_tie(pair, parted) is True, "a tie of two layers with other names is not seen."
        assert lost_tie(pair, int8.dynamic_int8(pair)) is True, "two int8 copies are two tables."
        for model, seed in [(TransformerLM(config), 2901), (Tied(300, 96), 2902)]:
            small = check_ex_2_10_9_cure(model.eval(), seed)
            assert small(torch.zeros(1, 3, dtype=torch.long)).shape[:2] == (1, 3), "another length fails."
    ### END HIDDEN TESTS


check_ex_2_10_9()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# In Python, `a is b` asks whether two names stand for one object. That is what a tie is. For the file: `metrics.file_bytes` saves a
# state_dict and counts.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# Group the names of the modules of `before` by `id(module.weight)`. A group of two or more is a tie; fetch the same names from
# `after` with `get_submodule`. The cure is the dictionary of exercise 2.10.3.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `names_of.setdefault(id(module.weight), []).append(name)` for every module whose weight is an `nn.Parameter`; then
# `any(weight is not kept[0] for weight in kept)`. `times_smaller` is one division.
# </details>

# %% [markdown]
# Look back: your probes on the patient, and on your cure.


# %%
def show_tie(name: str, cure: Callable[[nn.Module], nn.Module]) -> None:
    """What the probes say of `tied` after `cure`."""
    errors.show_result(
        lambda: f"{name}: tie lost: {lost_tie(tied, cure(tied))}, {times_smaller(tied, cure(tied)):.2f} times smaller"
    )


show_tie("patient", patient_9)
show_tie("cured", lambda model: int8_tied_model(model))

# %% [markdown]
# PyTorch has a MultiheadAttention that can be quantized statically, and `prepare` puts it in the place of yours. With
# `batch_first=True` and more than one head its output is wrong, in float, before anything is quantized. Its heads are put
# together with a `view` that mixes positions: the silent mistake of exercise 1.3, in a library. It has been
# [reported since 2021](https://github.com/pytorch/pytorch/issues/67651). The attention weights it returns are right, so a look at them does not help.
# Only **parity** does: the same input through the old and the new module, in float, before you quantize.
#
# ### Exercise 2.10.10: the library that mixes positions
# *Difficulty 4 of 5 · 20 minutes · 2 points*
#
# Write the probe `parity(reference, other, x)`: the relative error $\lVert o - r \rVert / \lVert r \rVert$ of two modules on one input. Outputs of
# different shapes raise `ValueError` (subtracting would stretch one of them in silence).
#
# Then write the cure `static_attention`: a statically quantized self-attention that takes (batch, time, width), with PyTorch's quantizable
# MultiheadAttention inside, but used with `batch_first=False`, where it is right.


# %% tags=["broken", "nbval-check-output"]
def patient_10(mha: nn.MultiheadAttention) -> nn.Module:
    mha.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    return torch.ao.nn.quantizable.MultiheadAttention.from_float(mha)  # this is what prepare does


torch.manual_seed(10)
theirs = nn.MultiheadAttention(32, 4, batch_first=True).eval()
errors.show_error(lambda: patient_10(theirs))
with torch.no_grad():
    x = torch.randn(2, 6, 32)
    (right, right_weights), (other, other_weights) = theirs(x, x, x), patient_10(theirs)(x, x, x)
print("same shape:", right.shape == other.shape, "- all finite:", bool(other.isfinite().all()))
print("same attention weights:", torch.allclose(right_weights, other_weights, atol=1e-6))


# %% nbgrader={"grade": false, "grade_id": "ex_2_10_10", "locked": false, "schema_version": 3, "solution": true, "task": false}
from collections.abc import Callable


def parity(reference: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Relative error of `other` against `reference` on the input `x`: the norm of the difference over that of the reference.

    Raises
    ------
    ValueError
        If the two outputs have different shapes.
    """
    ### BEGIN SOLUTION
    with torch.no_grad():
        wanted, got = reference(x), other(x)
    if wanted.shape != got.shape:
        raise ValueError(f"the outputs have shapes {tuple(wanted.shape)} and {tuple(got.shape)}")
    return float((got - wanted).norm() / wanted.norm())
    ### END SOLUTION


def static_attention(mha: nn.MultiheadAttention, batches: list[Tensor]) -> nn.Module:
    """A statically quantized self-attention with the weights of `mha`, right for every number of heads.

    Parameters
    ----------
    mha : MultiheadAttention
        With ``batch_first=True``, in eval mode; it is not changed.
    batches : list of Tensor, float32, (batch, time, width)
        Typical inputs, to calibrate with: all of them.

    Returns
    -------
    Module
        Maps float32 (batch, time, width) to float32 (batch, time, width), like ``mha(x, x, x)[0]``; q, k, v and out are
        `torch.qint8`, with static scales.
    """

    ### BEGIN SOLUTION
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = tq.QuantStub(), tq.DeQuantStub()
            self.mha = copy.deepcopy(mha)
            self.mha.batch_first = False

        def forward(self, x: Tensor) -> Tensor:
            y = self.enter(x).transpose(0, 1)  # (time, batch, width)
            mixed, _ = self.mha(y, y, y, need_weights=False)
            return self.leave(mixed).transpose(0, 1)  # (batch, time, width)

    attention = TimeFirst().eval()
    attention.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
    attention = tq.prepare(attention)
    for batch in batches:
        attention(batch)
    return tq.convert(attention)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_2_10_10_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 2.10.10: run this cell.
import copy
import math
import warnings
from numbers import Real

import torch
import torch.ao.quantization as tq
from torch import Tensor, nn

from helpers import checks, describe, int8, witness


@checks.isolated
def check_ex_2_10_10() -> None:
    class Attend(nn.Module):
        """The float attention, called with one tensor (batch, time, width)."""

        def __init__(self, mha: nn.MultiheadAttention) -> None:
            super().__init__()
            self.mha = mha

        def forward(self, x: Tensor) -> Tensor:
            return self.mha(x, x, x, need_weights=False)[0]

    def check_ex_2_10_10_probe(seed: int) -> None:
        torch.manual_seed(seed)
        x = torch.randn(2, 5, 6)
        sign = torch.where(torch.rand(2, 5, 6) < 0.5, -1.0, 1.0)
        one = torch.zeros(2, 5, 6)
        one[0, 0, 0] = 0.3 * x.norm()
        cases = [
            (lambda x: x.clone(), 0.0, "equal outputs have error 0."),
            (
                lambda x: x + 0.1 * x.norm() * sign / sign.norm(),
                0.1,
                "take the norm of the difference, errors of both signs count.",
            ),
            (lambda x: 3 * x, 2.0, "divide by the norm of the reference, not of the other output."),
            (lambda x: x + one, 0.3, "take the norm over all elements, not the largest or the mean."),
            (lambda x: x - 0.1 * x, 0.1, "an error is never negative."),
        ]
        small, large = parity(lambda x: x, lambda x: 1.5 * x, x), parity(lambda x: 7 * x, lambda x: 10.5 * x, x)
        assert isinstance(small, Real), f"what parity returned should be a number, not {type(small).__name__}."
        assert math.isclose(small, large, rel_tol=1e-3), (
            "parity changes with the size of the outputs: an absolute error says nothing, divide by the norm of the reference."
        )
        for other, expected, why in cases:
            error, difference = parity(lambda x: x, other, x), other(x) - x
            known = {
                "the root is missing: a norm is the root of the sum of squares.": expected**2,
                "that is the mean of the positions' errors: take one norm over all elements.": (
                    difference.norm(dim=-1) / x.norm(dim=-1)
                ).mean(),
                "that is the largest difference over the largest number: take the norm over all elements.": (
                    difference.abs().max() / x.abs().max()
                ),
                "that is the mean difference over the mean size: take norms.": difference.abs().mean() / x.abs().mean(),
            }
            fits = [sentence for sentence, value in known.items() if abs(error - float(value)) < 1e-4]
            assert abs(error - expected) < 1e-4, (
                f"parity is {error:.4f} where {expected} is right: {fits[0] if len(fits) == 1 else why}"
            )
        for other in (
            lambda x: x[:, :1],
            lambda x: x.transpose(0, 1),
            lambda x: x.transpose(1, 2),
            lambda x: x[None],
            lambda x: x.flatten(),
        ):
            try:
                parity(lambda x: x, other, x)
            except ValueError:
                continue
            except Exception as error:
                raise AssertionError(
                    f"outputs of different shapes should raise ValueError, not {type(error).__name__}."
                ) from None
            raise AssertionError(
                f"parity accepts outputs of different shapes, {tuple(x.shape)} and {tuple(other(x).shape)}: subtracting stretches one of them in "
                "silence, and the same count of numbers is not the same shape. Compare the shapes."
            )

    def check_ex_2_10_10_cure(width: int, heads: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        mha = nn.MultiheadAttention(width, heads, batch_first=True).eval()
        for parameter in mha.parameters():
            nn.init.normal_(parameter, std=0.15)
        untouched, kept = copy.deepcopy(mha), copy.deepcopy(mha)
        kept.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
        library = torch.ao.nn.quantizable.MultiheadAttention.from_float(kept)
        x, middles = torch.randn(5, 8, width), (0.0, 1.0, -1.0, 0.0)
        reference = Attend(untouched)

        if heads > 1:
            gap = parity(reference, lambda x: library(x, x, x)[0], x)
            assert gap > 0.5, (
                f"your probe finds an error of only {gap:.2f} in the library's module with batch_first=True."
            )
        batches = [torch.randn(16, 11, width) + middle for middle in middles]
        answer = static_attention(mha, batches)
        assert isinstance(answer, nn.Module), (
            f"what static_attention returned should be a module, not {type(answer).__name__}: does it end with `return`?"
        )
        changed = witness.unchanged(untouched, mha)
        assert not changed, (
            f"your function changed the attention that came in ({changed}): set batch_first=False in a deep copy."
        )
        types, dtypes = describe.layer_types(answer), describe.weight_dtypes(answer)
        assert not [kind for kind in types.values() if ".dynamic." in kind], (
            "your layers are dynamically quantized; this exercise wants static scales: prepare, batches, convert."
        )
        assert list(dtypes.values()) == ["torch.qint8"] * 4 and not list(answer.parameters()), (
            f"your q, k, v and out should be int8, with nothing float beside them; yours has {sorted(dtypes.values()) or 'no weights'}. A bare "
            "MultiheadAttention is never swapped: it must be a part of a module, prepared, calibrated and converted."
        )
        other = witness.other_recipe(answer)
        assert not other, f"your int8 layers do not have the default qconfig of the engine in use: {other}."
        found = [scale for _, scale, _ in describe.int8_linears(answer)]
        assert not all(scale == 1.0 for scale in found), (
            "all your scales are 1: nothing ran through the prepared module before convert."
        )
        rows = zip("qkv", untouched.in_proj_weight.chunk(3), untouched.in_proj_bias.chunk(3), strict=True)
        for name, weight, bias in rows:
            part = nn.Linear(width, width)
            part.load_state_dict({"weight": weight, "bias": bias})
            right = witness.expected_scales(nn.Sequential(part), batches)[0][0]
            assert min(abs(scale / right - 1) for scale in found) < 0.03, (
                f"the output scale of {name} should be {right:.3g}; your layers have {', '.join(f'{scale:.3g}' for scale in found)}: was every "
                f"batch used, and nothing else, with get_default_qconfig of the engine in use (here {torch.backends.quantized.engine})?"
            )
        with torch.no_grad():
            try:
                output = answer(x)
            except NotImplementedError:
                raise AssertionError(
                    "an int8 layer gets float numbers: a QuantStub must stand in front of attention."
                ) from None
            assert not output.is_quantized, "your module returns a quantized tensor: the DeQuantStub must come last."
            assert output.shape == x.shape, f"your output has shape {tuple(output.shape)}, not {tuple(x.shape)}."
            for y in (x, torch.randn(2, 11, width), *(torch.randn(4, 9, width) + middle for middle in middles)):
                expected = reference(y)
                error = float((answer(y) - expected).norm() / expected.norm())
                assert error > 1e-4, "your output is the float attention's: no int8 layer runs."
                assert error < 0.1, (
                    f"your output is {error:.0%} off. About 100 % and more: positions are mixed; with batch_first=False time must come "
                    "first, so transpose before and after, and do not use batch_first=True."
                )
        assert witness.runs_in_int8(answer, reference, x), (
            "your output does not come from the four int8 layers that your module shows: it is computed in float."
        )
        return answer

    with (
        checks.check("2.10.10", "parity tells right from wrong, and static attention is right"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        check_ex_2_10_10_probe(seed=10)
        check_ex_2_10_10_cure(width=32, heads=4, seed=100)
        with int8.using(int8.another_engine()):
            check_ex_2_10_10_cure(width=16, heads=2, seed=101)
    ### BEGIN HIDDEN TESTS
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        check_ex_2_10_10_probe(seed=3001)
        with int8.using(int8.another_engine()):
            check_ex_2_10_10_cure(24, 3, 3005)
        for width, heads, seed in [(24, 2, 3002), (32, 8, 3003), (16, 1, 3004)]:
            quantized = check_ex_2_10_10_cure(width, heads, seed)
            assert quantized(torch.randn(1, 3, width)).shape == (1, 3, width), "another length fails."
    ### END HIDDEN TESTS


check_ex_2_10_10()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Run your probe on the two modules of the broken program (`lambda x: theirs(x, x, x)[0]` is a function of one tensor), with one head
# and with four. Then set `batch_first=False` in both.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# A module with a QuantStub, a deep copy of `mha` whose attribute `batch_first` you set to False, and a DeQuantStub. Its forward
# transposes (batch, time, width) to (time, batch, width) and back. `prepare` swaps the attention for the quantizable one by itself.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# In forward: `y = self.….transpose(0, 1)`, `mixed, _ = self.mha(y, y, y, need_weights=False)`, and return the dequantized result with
# `transpose(0, 1)`. Then eval, qconfig, prepare, batches, convert.
# </details>

# %% [markdown]
# Look back: your probe on the patient with one head and with four, in float, and on your cure.


# %%
def show_parity(heads: int) -> None:
    """What the probe says of the library's module, in float, and of your cure."""
    torch.manual_seed(10)
    healthy = nn.MultiheadAttention(32, heads, batch_first=True).eval()
    suspect = patient_10(copy.deepcopy(healthy))
    x = torch.randn(8, 6, 32)

    def reference(t: Tensor) -> Tensor:
        return healthy(t, t, t)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's module holds sums that it never uses
        errors.show_result(
            lambda: f"{heads} heads, patient: error {parity(reference, lambda t: suspect(t, t, t)[0], x):.2f}"
        )
        errors.show_result(
            lambda: f"{heads} heads, cured: error {parity(reference, static_attention(healthy, [x]), x):.2f}"
        )


for heads in (1, 4):
    show_parity(heads)

# %% [markdown]
# ## 10. The book's chapter 2, corrected
#
# All snippets of the book are listed in one place, `docs/book_corrected.md` (in the course's own folder, which JupyterLab does not show): what it says, what happens, what works; a test runs every row. Those
# that belong to this unit, and where you met them:
#
# | the book | what happens | what works | section |
# |---|---|---|---|
# | `quantize(model, default_qconfig=…, inplace=True)` | TypeError: no such parameter | prepare, calibrate, convert; or `quantize(model, run_fn, run_args)` | 5 |
# | stubs around a model that reads token ids | RuntimeError after conversion: only float can be quantized | stubs behind the embedding | 5 |
# | the int8 model on the graphics card | eager int8 layers are packed for the CPU's engines | stay on the CPU, or torchao | 5 |
# | the qconfig specifies the bit width of the weights | 8 bits, or an error | simulate fewer bits, or let torchao store them | 5, 7, 8 |
# | dynamic quantization quantizes the weights during inference | weights before, inputs during | | 6 |
# | up to four times smaller | more than 3.7 times from width 256 on, for one Linear layer alone | say which layer, and measure the file | 8 |
# | less computation time, no loss of accuracy | in eager mode and torchao's default configs one row of a narrow network is slower, at 1,024 rows only those with int8 kernels are faster; small losses that can be measured | measure both | 8 |
# | (Linear chapter) `quantize_dynamic`, then train, then `convert` | nothing can be trained, nothing is converted | `prepare_qat`, train, `convert` | 7 |

# %% [markdown]
# ## Where you stand

# %% tags=["varies"]
checks.show_progress("2", exercises=10, parts={10: 10})

# %% [markdown]
# *Cronus never weighed the stone. Rhea had made it right in every respect that he would check, and he checked only that he had swallowed something. Years later
# the stone came up again, and it was a stone. Whoever ships a quantized network without a probe of his own swallows what he is given.*
#
# ## Key takeaways
#
# - Two numbers, scale and zero point, are all there is; zero must lie on a mark (2.1), and rounding goes to the nearest code, halves to even (2.2).
# - One loud row ruins everybody's ruler; a scale for each row or group repairs that, and only trained weights show it (2.3).
# - Observers choose ranges; calibrate with data like that of the future, and judge on data that nobody calibrated with (2.4, 2.5).
# - Static fixes all ranges before, dynamic lets each input choose; PyTorch's kernels compute the formulas of section 1, within one code (2.6, 2.7).
# - Fake quantization trains with the error in sight; a control tells it from more training (2.8).
# - All APIs store codes and scales. They differ in granularity, in the bits of the activations, in speed, and in whether they will exist next year (2.9, section 8).
# - Loud failures cost an hour, silent ones a product: write the probe first (2.10).
#
# **When not to use what.** No eager `torch.ao.quantization` in new projects that must live long. No static quantization without data like that of the future. No PT2E without the
# compiler it is made for. No 4 bits or fewer before you have measured what they cost on *your* data, with the granularity that your kernel has (section 2: 4 bits cost little with a scale a row, and ruin the model with a scale a tensor). And none of
# it for layers that are narrow, called with one row at a time, and in nobody's way.
#
# **References.** Jacob et al. 2018, [Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference](https://arxiv.org/abs/1712.05877) · Krishnamoorthi 2018,
# [Quantizing deep convolutional networks for efficient inference](https://arxiv.org/abs/1806.08342) · Bengio et al. 2013,
# [Estimating or Propagating Gradients Through Stochastic Neurons](https://arxiv.org/abs/1308.3432) (the straight-through estimator) · ONNX,
# [QuantizeLinear](https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html) · PyTorch,
# [deprecation of torch.ao.quantization](https://github.com/pytorch/ao/issues/2259) and [of the quantized dtypes](https://github.com/pytorch/pytorch/issues/184982)
