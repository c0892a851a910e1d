# %% [markdown]
# # Linear layer variants
#
# Build a Linear layer that computes with integers only, and gets the codes of PyTorch's int8 kernel but for roundings; then choose among five
# kinds of Linear layers with your own measurements, and know when to leave a layer alone.
#
# | At a glance | |
# |---|---|
# | **You will** | compute an int8 Linear layer without a float: product, zero points, bias, rescaling, ReLU; find out how long a sum may be, and break an int8 layer with an older instruction; fuse layers; count bytes; choose a variant from a table; train with a frozen layer and convert |
# | **You need** | unit 02: scale, zero point, observers, `prepare` and `convert` |
# | **Time** | about 6 hours, in three sittings: sections 1 and 2; 3 to 5; 6 to 9 (the exercises come in the order 3.1 to 3.7, 3.9, 3.8, 3.11, 3.10) |
# | **Graded** | 11 exercises, 24 points |
#
# *Prometheus stands before the hearth of the gods. Not one fire burns there but five, and he can carry only one of them down the
# mountain. One burns hottest and is heavy to carry; one is light, but must be lit anew for every guest. He does not ask which fire
# is the best. He asks what each of them burns.*

# %%
import copy
import functools
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
import torch.ao.quantization as tq
import torch.fx
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from torch import Tensor, nn

from helpers import (
    affine,
    checks,
    data,
    describe,
    environment,
    errors,
    int8,
    integer,
    known_warnings,
    latency,
    metrics,
    next_byte,
    plots,
    tables,
)
from helpers.checkpoint import load_course_model

known_warnings.hide()
engine = int8.choose_engine()

# %% [markdown]
# ## 1. Five fires: what is stored, what is computed
#
# Here are five kinds of Linear layers of PyTorch and torchao. All of them compute $y = xW^T + b$ (one with a ReLU behind it). They differ in four types: of the numbers that
# **arrive**, of the weight that is **stored**, of the **sums** of products, and of what **leaves**. One picture for the whole unit:


# %%
def draw_variants(ax: Axes, rows: dict[str, list[str]], columns: list[str]) -> Axes:
    """A row of boxes for each variant; what is integer is blue and round, what changes its type has an arrow and is yellow."""
    for i, (name, cells) in enumerate(rows.items()):
        ax.text(-0.1, -i, name, ha="right", va="center", fontsize=9, family="monospace")
        for j, cell in enumerate(cells):
            face = "#ffffff" if "int" not in cell else "#fbe3b0" if "→" in cell else "#b9d9ee"
            corners = "square,pad=0" if "int" not in cell else "round,pad=0,rounding_size=0.12"
            ax.add_patch(FancyBboxPatch((j, -i - 0.37), 0.84, 0.74, corners, facecolor=face, edgecolor=plots.GREY))
            ax.text(j + 0.42, -i, cell, ha="center", va="center", fontsize=8)
            if j == 1:
                ax.text(j - 0.08, -i, "×", ha="center", va="center", fontsize=12)
            elif j:
                ax.annotate("", (j, -i), (j - 0.16, -i), arrowprops={"arrowstyle": "->", "color": plots.GREY})
    for j, column in enumerate(columns):
        ax.text(j + 0.42, 0.55, column, ha="center", fontsize=9, weight="bold")
    ax.set_xlim(-1.15, len(columns) - 0.1)
    ax.set_ylim(-len(rows) + 0.55, 0.9)
    ax.axis("off")
    return ax


fig, ax = plots.figure(width=10.5, height=4.2)
draw_variants(
    ax,
    {
        "nn.Linear": ["float32", "float32", "float32", "float32"],
        "nnq.Linear": ["uint8", "int8", "int32", "int32 → uint8"],
        "nniq.LinearReLU": ["uint8", "int8", "int32", "int32 → uint8,\nnothing below 0"],
        "nnqd.Linear": ["float32 → uint8,\none scale a call", "int8", "int32", "int32 → float32"],
        "torchao weight-only": ["float32", "int8 → float32\nin every call", "float32", "float32"],
        "torchao dynamic": ["float32 → int8,\none scale a row", "int8", "int32", "int32 → float32"],
    },
    ["arrives", "stored weight", "sums", "leaves"],
)
plots.show(
    fig,
    caption="Six layers of five kinds (torchao has two configurations). White and square: float. Blue: integers. Yellow, with an arrow: "
    "the type changes in every call.",
    alt="A table of boxes. nn.Linear is float32 everywhere. nnq.Linear and nniq.LinearReLU take uint8, store int8, sum in int32 and return "
    "uint8. nnqd.Linear and torchao dynamic turn float32 into 8-bit codes in every call, sum in int32 and return float32. torchao "
    "weight-only stores int8, turns it into float32 in every call, and is float32 otherwise.",
)

# %% [markdown]
# `nnq` is short for `torch.ao.nn.quantized`, `nnqd` for `torch.ao.nn.quantized.dynamic`, `nniq` for `torch.ao.nn.intrinsic.quantized`.
#
# Two observations, before any measurement. Four of the six rows multiply integers. torchao's weight-only layer saves memory, and
# then multiplies as many floats as before (section 5 meets a kernel that does not). And of these six, `nnq` and `nniq` alone *return* integers: the
# next such layer reads them as they are.
#
# A picture can claim anything. So we build all six from one layer, and look inside. The layer is the query projection in the first block of
# the trained course model, 256 numbers in and 256 out. Four documents calibrate it, four others judge it:

# %%
import torchao.quantization as ao

course_model = load_course_model()
block = course_model.blocks[0]
query = nn.Linear(256, 256)  # a copy, so that nothing that we do here can reach the model
query.load_state_dict(block.attention.q.state_dict())
with torch.no_grad():
    entering = block.norm1(course_model.embed(data.windows("held_out", 8)[:, :256]))  # (documents, time, 256)
    seen, unseen = entering[:4].flatten(0, 1), entering[4:].flatten(0, 1)  # (1024, 256) each

static = int8.static_int8(nn.Sequential(query), [seen])
fused = tq.fuse_modules(nn.Sequential(copy.deepcopy(query), nn.ReLU()).eval(), [["0", "1"]])
static_relu = int8.static_int8(fused, [seen])
per_call = int8.dynamic_int8(nn.Sequential(query))
weights_int8, per_row = nn.Sequential(copy.deepcopy(query)), nn.Sequential(copy.deepcopy(query))
ao.quantize_(weights_int8, ao.Int8WeightOnlyConfig())
ao.quantize_(per_row, ao.Int8DynamicActivationInt8WeightConfig())


def weight_in_words(layer: nn.Module) -> str:
    """Type of the stored weight and how many scales it has."""
    weight = layer.weight() if callable(layer.weight) else layer.weight  # PyTorch's int8 layers have a method there
    kind, scales = weight.dtype, 0
    if hasattr(weight, "qdata"):  # a tensor of torchao
        kind, scales = weight.qdata.dtype, weight.scale.numel()
    elif weight.is_quantized:
        one = weight.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric)
        scales = 1 if one else weight.q_per_channel_scales().numel()
    return f"{str(kind).removeprefix('torch.')}, {scales or 'no'} scale{'' if scales == 1 else 's'}"


def output_in_words(y: Tensor) -> str:
    """Type of an output, with scale and zero point if it has them."""
    kind = str(y.dtype).removeprefix("torch.")
    return f"{kind}, scale {y.q_scale():.4f}, zero point {y.q_zero_point()}" if y.is_quantized else kind


rows = []
with torch.no_grad():
    exact = query(unseen)
    for name, network, layer, arriving in [
        ("nn.Linear", nn.Sequential(query), query, unseen),
        ("nnq.Linear", static, static.module[0], static.quant(unseen)),
        ("nniq.LinearReLU", static_relu, static_relu.module[0], static_relu.quant(unseen)),
        ("nnqd.Linear", per_call, per_call[0], unseen),
        ("torchao weight-only", weights_int8, weights_int8[0], unseen),
        ("torchao dynamic", per_row, per_row[0], unseen),
    ]:
        wanted = exact.relu() if "ReLU" in name else exact
        got = network(unseen)
        rows.append(
            {
                "variant": name,
                "arrives": str(arriving.dtype).removeprefix("torch."),
                "weight": weight_in_words(layer),
                "leaves": output_in_words(layer(arriving)),
                "SQNR in dB": f"{metrics.sqnr_db(wanted, got):.1f}",
                "relative error": f"{((got - wanted).norm() / wanted.norm()).item():.4f}",
            }
        )
tables.show(rows)

# %% [markdown]
# (`quint8` and `qint8` are PyTorch's types for 8-bit codes that carry their scale with them. SQNR is unit 02's signal-to-quantization-noise
# ratio; `LinearReLU` is compared with the ReLU of the float outputs.)
#
# Weight-only has the smallest error of the int8 rows, and no wonder: it rounds only the weight. All others round the input, too (PyTorch's dynamic layer to 7 bits on a PC, for a reason that section 3 shows, with one scale for all rows and one for the weight; torchao's to 8 bits, with a scale for each row of both), and the two static ones
# round once more, when their output becomes codes.
#
# > **The book says** (its chapter on kinds of Linear layers): `nn.Linear` quantizes weights and activations independently, and `nn.quantized.Linear`
# > uses per-channel quantization.
# >
# > **What happens:** `nn.Linear` quantizes nothing; it is the float layer that all others are made from. And how many scales the weight of `nnq.Linear` has
# > is decided by the qconfig that it is converted with:

# %% tags=["nbval-check-output"]
print("nn.Linear: weight", query.weight.dtype, "- output", query(unseen).dtype, "-", weight_in_words(query))
with warnings.catch_warnings(record=True) as said:
    untouched = tq.convert(tq.prepare(tq.QuantWrapper(copy.deepcopy(query)).eval()))
print("prepare warns:", str(said[0].message).split(".")[0])
print("prepared and converted without a qconfig:", type(untouched.module).__name__, untouched.module.weight.dtype)
for name, recipe in [
    ("x86", tq.get_default_qconfig("x86")),
    ("onednn", tq.get_default_qconfig("onednn")),
    ("qnnpack", tq.get_default_qconfig("qnnpack")),
    ("tq.default_qconfig", tq.default_qconfig),
]:
    wrapped = tq.QuantWrapper(copy.deepcopy(query)).eval()
    wrapped.qconfig = recipe
    watched = tq.prepare(wrapped)
    with torch.no_grad():
        watched(seen[:64])
    print(f"nnq.Linear with the qconfig {name}: {weight_in_words(tq.convert(watched).module)}")

# %% [markdown]
# > **What works:** choose the qconfig, convert, and look at `layer.weight().qscheme()`. Per-channel does not save memory, by the way: it *costs* a
# > scale for each row, and buys a smaller error.
#
# ## 2. A Linear layer without a single float
#
# How can a layer go from codes to codes, and never make a float? Small processors without floating-point units have no other way. You will
# build it in five steps, and compare with the kernel behind `nnq.Linear`. All of it follows from putting
# $x = s_x (q_x - z_x)$ and $w = s_w (q_w - z_w)$ into one output of the layer ($K$ inputs, $k$ counts them):
#
# $$y = \sum_{k=1}^{K} x_k w_k + b = s_x s_w \Big[ \underbrace{\sum_k (q_{x,k} - z_x)(q_{w,k} - z_w)}_{\text{integers only}} + \frac{b}{s_x s_w} \Big]$$
#
# | step | what | exercise |
# |---|---|---|
# | 1 | the sum of products of the codes | 3.1 |
# | 2 | what the two zero points add to it | 3.2 |
# | 3 | the bias, in the unit of the sum | 3.3 |
# | 4 | from the sum to an output code: scale, round, clamp | 3.4 |
# | 5 | all in one, and ReLU | 3.5, 3.6 |
#
# ### Step 1: in which type can one add?
#
# Activations are `uint8` (0 to 255), weights are `int8` (−128 to 127). Take two of each: codes (200, 3) and weights (100, −2). By hand:
# $200 \cdot 100 + 3 \cdot (-2) = 19994$. Now let the types do it:

# %% tags=["nbval-check-output"]
arriving_codes = torch.tensor([200, 3], dtype=torch.uint8)
stored_codes = torch.tensor([100, -2], dtype=torch.int8)
print("the codes of the input as int8:", arriving_codes.to(torch.int8).tolist())
for kind in (torch.int8, torch.int16, torch.float16, torch.float32, torch.int32):
    total = (arriving_codes.to(kind) * stored_codes.to(kind)).sum(dtype=kind)
    print(f"summed in {str(kind).removeprefix('torch.'):8}", total.item())

many = torch.full((4096,), 255, dtype=torch.uint8), torch.full((4096,), 127, dtype=torch.int8)
print("4,096 products of 255 and 127, by hand:", 4096 * 255 * 127)
for kind in (torch.int16, torch.float16, torch.int32):
    print(
        f"summed in {str(kind).removeprefix('torch.'):8}", (many[0].to(kind) * many[1].to(kind)).sum(dtype=kind).item()
    )
print("16,777,217 as float32:", int(torch.tensor(16_777_217.0).item()))

# %% [markdown]
# `int8` turns 200 into −56 before anything is multiplied, `int16` is too small for long sums, `float16` rounds and then overflows to infinity. And `float32`, exact here,
# has 24 bits for a whole number: beyond $2^{24} = 16{,}777{,}216$ it loses odd ones. So kernels use `int32`. How long a sum may be in `int32` is the question
# of section 3.
#
# ### Exercise 3.1: the product of codes
# *Difficulty 1 of 5 · 10 minutes · 2 points*
#
# $$P_{r,o} = \sum_k q_{x,r,k}\; q_{w,o,k}$$
#
# Write it for a whole batch of rows $r$ and all outputs $o$. The matrix product `@` refuses two different types, so choose one that can hold the sums. No floats: the
# check watches what PyTorch, NumPy and Python make of the codes.


# %% nbgrader={"grade": false, "grade_id": "ex_3_1", "locked": false, "schema_version": 3, "solution": true, "task": false}
def integer_product(x_codes: Tensor, w_codes: Tensor) -> Tensor:
    """Exact sums of products of codes.

    Parameters
    ----------
    x_codes : Tensor, uint8, (rows, in_features)
    w_codes : Tensor, int8, (out_features, in_features)

    Returns
    -------
    Tensor, int32, (rows, out_features)

    Example
    -------
    >>> x_codes = torch.tensor([[200, 3]], dtype=torch.uint8)
    >>> w_codes = torch.tensor([[100, -2], [127, 127], [-128, 0]], dtype=torch.int8)
    >>> integer_product(x_codes, w_codes)
    tensor([[ 19994,  25781, -25600]], dtype=torch.int32)
    """
    ### BEGIN SOLUTION
    return x_codes.to(torch.int32) @ w_codes.to(torch.int32).T  # (rows, out_features)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_3_1_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 3.1: run this cell.
import torch

from helpers import checks, integer, samples


@checks.isolated
def check_ex_3_1() -> None:
    def inputs(seed: int) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
        """What, codes of the input, codes of the weight."""
        generator = torch.Generator().manual_seed(seed)

        def codes(rows: int, width: int, low: int, high: int) -> torch.Tensor:
            return torch.randint(low, high, (rows, width), generator=generator)

        def pair(rows: int, width: int, outputs: int, quiet: int = 0, light: int = -128, heavy: int = 128) -> tuple:
            return codes(rows, width, quiet, 256).to(torch.uint8), codes(outputs, width, light, heavy).to(torch.int8)

        x, w = pair(5, 6, 4)
        longest = torch.full((1, 65_793), 255, dtype=torch.uint8), torch.full((1, 65_793), -128, dtype=torch.int8)
        return [
            ("a small layer", x, w),
            ("a square weight", *pair(3, 8, 8)),
            ("4,096 loud inputs", *pair(2, 4096, 3, quiet=200, light=60)),
            ("4,096 loud inputs and negative weights", *pair(2, 4096, 3, quiet=180, heavy=-50)),
            ("the longest sum that int32 can hold", *longest),
            ("one input and one output", *pair(1, 1, 1)),
            *((f"inputs that are {form}", odd, w) for form, odd in samples.awkward(x)),
            *((f"a weight that is {form}", x, odd) for form, odd in samples.awkward(w)),
        ]

    with checks.check("3.1", "your sums are exact, also for 65,793 loud codes, and no float was made"):
        for what, x, w in inputs(31):
            right = x.long() @ w.long().T
            with checks.untouched(x_codes=x, w_codes=w), integer.floats_made(integer_product) as floats:
                try:
                    answer = integer_product(x, w)
                except RuntimeError as error:
                    if "shapes cannot be multiplied" in str(error):
                        raise AssertionError(
                            f"PyTorch cannot multiply these shapes ({error}). The weight is (out_features, in_features): it must be transposed."
                        ) from None
                    if "dtype" not in str(error):
                        raise
                    raise AssertionError(
                        "PyTorch does not multiply two different types: make both codes int32 first."
                    ) from None
            assert not floats, (
                f"your code makes floats ({floats[0]}): float16 and float32 cannot hold every sum. Stay with integers."
            )
            checks.tensor(answer, right.shape, f"your product for {what}")
            assert answer.dtype not in (torch.int8, torch.uint8, torch.int16), (
                f"your product for {what} has dtype {answer.dtype}, which cannot hold the sums: make both codes int32 before you multiply."
            )
            checks.tensor(answer, right.shape, f"your product for {what}", torch.int32)
            mistakes = {
                "codes above 127 became negative: the input is uint8, and int8 ends at 127.": x.to(torch.int8).long()
                @ w.long().T,
                "negative weights became large positive ones: the weight is int8, not uint8.": x.long()
                @ w.view(torch.uint8).long().T,
                "the sums wrapped around in 8 bits.": right.to(torch.int8),
                "the sums wrapped around in 8 bits, without a sign.": right.to(torch.uint8),
                "each product wrapped around in 8 bits, before the sum.": (x[:, None].to(torch.int8) * w).long().sum(2)
                if x.shape[1] < 100
                else right,
                "the sums wrapped around in 16 bits: a sum of two products may be too large already.": right.to(
                    torch.int16
                ),
            }
            if w.shape[0] == w.shape[1]:
                mistakes[
                    "this weight is square, and must be transposed all the same: it is (out_features, in_features)."
                ] = x.long() @ w.long()
            checks.close(answer, right, f"your product for {what}", mistakes=mistakes, atol=0, rtol=0)
    ### BEGIN HIDDEN TESTS
    for what, x, w in inputs(301):
        with checks.untouched(x_codes=x, w_codes=w), integer.floats_made(integer_product) as floats:
            answer = integer_product(x, w)
        expected = torch.stack([(row.long() * w.long()).sum(dim=1) for row in x])
        assert answer.dtype == torch.int32 and torch.equal(answer.long(), expected), f"wrong sums for {what}."
        assert not floats, "floats were made."
    ### END HIDDEN TESTS


check_ex_3_1()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Widen first, multiply afterwards. The other order is too late: the product has wrapped around already.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `.to(torch.int32)` on both, then `@` with the weight transposed.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `x_codes.to(…) @ w_codes.to(…).T`
# </details>

# %% [markdown]
# ### Step 2: what do the zero points add?
#
# The kernel has multiplied raw codes. But the real numbers are proportional to $q - z$. Expand the product:
#
# $$\sum_k (q_{x,k} - z_x)(q_{w,k} - z_w) = \underbrace{\sum_k q_{x,k}\, q_{w,k}}_{P} \;-\; z_x \sum_k q_{w,k} \;-\; z_w \sum_k q_{x,k} \;+\; K z_x z_w$$
#
# By hand: input codes (3, 5) with $z_x = 4$, weight codes (2, 7) with $z_w = 1$. Directly: $(-1) \cdot 1 + 1 \cdot 6 = 5$. With the formula: $P = 6 + 35 = 41$; minus
# $4 \cdot 9 = 36$; minus $1 \cdot 8 = 8$; plus $2 \cdot 4 \cdot 1 = 8$: $41 - 36 - 8 + 8 = 5$.
#
# Why so roundabout? Because the big sum $P$ can then be made of 8-bit numbers, which the fast instructions want ($q_x - z_x$ needs 9 bits). What remains is cheap: the sum of each
# weight row never changes and is computed once, the sum of each input row costs one pass. And with symmetric weights, $z_w = 0$, two of the three corrections
# vanish. That is a good reason to make weights symmetric, as PyTorch's default settings do.
#
# ### Exercise 3.2: the zero-point corrections
# *Difficulty 2 of 5 · 20 minutes · 2 points*
#
# You get $P$, and correct it. Do not multiply the matrices again: the check gives you another $P$ to see whether you use it. Each output has its own $z_w$.


# %% nbgrader={"grade": false, "grade_id": "ex_3_2", "locked": false, "schema_version": 3, "solution": true, "task": false}
def correct_zero_points(products: Tensor, x_codes: Tensor, x_zero: int, w_codes: Tensor, w_zeros: Tensor) -> Tensor:
    """Sums of ``(x_codes - x_zero) * (w_codes - w_zeros)`` from sums of ``x_codes * w_codes``.

    Parameters
    ----------
    products : Tensor, int32, (rows, out_features)
        What exercise 3.1 returns.
    x_codes : Tensor, uint8, (rows, in_features)
    x_zero : int
    w_codes : Tensor, int8, (out_features, in_features)
    w_zeros : Tensor, int32, (out_features,)
        The zero point of each row of the weight.

    Returns
    -------
    Tensor, int32, (rows, out_features)

    Example
    -------
    >>> x_codes, w_codes = torch.tensor([[3, 5]], dtype=torch.uint8), torch.tensor([[2, 7]], dtype=torch.int8)
    >>> correct_zero_points(torch.tensor([[41]], dtype=torch.int32), x_codes, 4, w_codes, torch.tensor([1], dtype=torch.int32))
    tensor([[5]], dtype=torch.int32)
    """
    ### BEGIN SOLUTION
    x_sums = x_codes.sum(dim=1, keepdim=True, dtype=torch.int32)  # (rows, 1)
    w_sums = w_codes.sum(dim=1, dtype=torch.int32)  # (out_features,)
    both = x_codes.shape[1] * x_zero * w_zeros  # (out_features,)
    return products - x_zero * w_sums - x_sums * w_zeros + both
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_3_2_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 3.2: run this cell.
import torch

from helpers import checks, integer, samples


@checks.isolated
def check_ex_3_2() -> None:
    def inputs(seed: int) -> list[tuple]:
        """What, codes of the input and its zero point, codes of the weight and their zero points."""
        generator = torch.Generator().manual_seed(seed)

        def case(rows: int, width: int, outputs: int, x_zero: int, shifted: int = 60) -> tuple:
            x = torch.randint(0, 256, (rows, width), generator=generator).to(torch.uint8)
            w = torch.randint(-128, 128, (outputs, width), generator=generator).to(torch.int8)
            zeros = torch.randint(-shifted, shifted + 1, (outputs,), generator=generator).to(torch.int32)
            return x, x_zero, w, zeros

        x, x_zero, w, zeros = case(5, 7, 4, 117)
        return [
            ("two zero points", x, x_zero, w, zeros),
            ("as many rows as outputs", *case(4, 300, 4, 203)),
            ("symmetric weights", *case(3, 40, 6, 64, shifted=0)),
            ("an input with zero point 0", *case(3, 40, 6, 0)),
            ("an input with zero point 255 and a wide weight", *case(3, 2000, 5, 255, shifted=127)),
            ("one input, one output", *case(1, 1, 1, 9)),
            *((f"inputs that are {form}", odd, x_zero, w, zeros) for form, odd in samples.awkward(x)),
            *((f"a weight that is {form}", x, x_zero, odd, zeros) for form, odd in samples.awkward(w)),
        ]

    with checks.check("3.2", "your three corrections are exact, for symmetric and for shifted weights"):
        for what, x, x_zero, w, w_zeros in inputs(32):
            (rows, width), outputs = x.shape, len(w)
            p = (x.long() @ w.long().T).to(torch.int32)
            a, b = x_zero * w.long().sum(1), x.long().sum(1)[:, None] * w_zeros
            c = width * x_zero * w_zeros.long()
            right = (x.long() - x_zero) @ (w.long() - w_zeros[:, None]).T
            with (
                checks.untouched(products=p, x_codes=x, w_codes=w, w_zeros=w_zeros),
                integer.floats_made(correct_zero_points) as floats,
                integer.matrices_multiplied(width, rows * outputs * width) as again,
            ):
                try:
                    answer = correct_zero_points(p, x, x_zero, w, w_zeros)
                except RuntimeError as error:
                    if "must match the size" not in str(error):
                        raise
                    raise AssertionError(
                        f"two shapes do not fit ({error}). The sums of the input rows should be (rows, 1), with keepdim=True; those of the weight rows (out_features,)."
                    ) from None
            assert not floats, (
                f"your code makes floats ({floats[0]}): the corrections are whole numbers. (sum and @ of integers stay integers; mean does not.)"
            )
            assert not (again and width not in (1, rows, outputs)), (
                f"you multiply the matrices again ({again[0]}). Take the products that you are given, and add the three corrections."
            )
            checks.tensor(answer, right.shape, f"your answer for {what}")
            checks.tensor(answer, right.shape, f"your answer for {what}", torch.int32)
            mistakes = {
                "nothing was corrected.": p,
                "it is right for symmetric weights, with the zero point 0; these have others.": p - a,
                "the term with the sums of the weight rows is missing: x_zero times the sum of each row of w_codes.": p
                - b
                + c,
                "the term with the sums of the input rows is missing: w_zeros times the sum of each row of x_codes.": p
                - a
                + c,
                "the last term is missing: in_features * x_zero * w_zeros.": p - a - b,
                "the last term has the wrong sign: minus times minus is plus.": p - a - b - c,
                "the second term has the wrong sign: it is subtracted.": p - a + b + c,
                "the first term has the wrong sign: it is subtracted.": p + a - b + c,
                "the first two corrections have the wrong sign: they are subtracted.": p + a + b + c,
                "all three corrections have the wrong sign.": p + a + b - c,
                "the zero points are swapped: x_zero belongs to the sums of the weights, w_zeros to those of the inputs.": (
                    p - w_zeros * w.long().sum(1) - x_zero * x.long().sum(1)[:, None] + c
                ),
                "the last term counts the rows of the input; it needs the number of products in a sum, in_features.": p
                - a
                - b
                + rows * x_zero * w_zeros,
                "the last term counts the outputs; it needs the number of products in a sum, in_features.": p
                - a
                - b
                + outputs * x_zero * w_zeros,
                "the last term is not multiplied by in_features.": p - a - b + x_zero * w_zeros,
                "the sums of the inputs wrapped around in uint8.": p
                - a
                - x.sum(1, dtype=torch.uint8).long()[:, None] * w_zeros
                + c,
                "the sums of the weights wrapped around in int8.": p
                - x_zero * w.sum(1, dtype=torch.int8).long()
                - b
                + c,
                "the sums of the inputs and of the weights wrapped around in 8 bits.": p
                - x_zero * w.sum(1, dtype=torch.int8).long()
                - x.sum(1, dtype=torch.uint8).long()[:, None] * w_zeros
                + c,
                "all outputs got the zero point of the first one; each has its own.": p
                - a
                - x.long().sum(1)[:, None] * w_zeros[:1]
                + width * x_zero * w_zeros[:1],
            }
            if rows == outputs > 1:
                mistakes["the sums of the input rows run along the outputs: they need the shape (rows, 1)."] = (
                    p - a - x.long().sum(1) * w_zeros + c
                )
            mistakes = {sentence: wrong.expand_as(right) for sentence, wrong in mistakes.items()}
            checks.close(answer, right, f"your answer for {what}", atol=0, rtol=0, mistakes=mistakes)
            moved = correct_zero_points(p + 1000, x, x_zero, w, w_zeros)
            assert torch.equal(moved.long(), right + 1000), (
                "your answer does not depend on `products` as it should: with 1000 more in each, it should be 1000 more. Take what you are given and add the three corrections."
            )
    ### BEGIN HIDDEN TESTS
    for what, x, x_zero, w, w_zeros in inputs(302):
        products = torch.stack([(row.long() * w.long()).sum(dim=1) for row in x]).to(torch.int32)
        shifted = w.long() - w_zeros[:, None]
        expected = torch.stack([((row.long() - x_zero) * shifted).sum(dim=1) for row in x])
        width, places = x.shape[1], products.numel()
        with (
            checks.untouched(products=products, x_codes=x, w_codes=w, w_zeros=w_zeros),
            integer.floats_made(correct_zero_points) as floats,
            integer.matrices_multiplied(width, places * width) as again,
        ):
            answer = correct_zero_points(products, x, x_zero, w, w_zeros)
        other = correct_zero_points(products - 7, x, x_zero, w, w_zeros)
        assert answer.dtype == torch.int32 and torch.equal(answer.long(), expected), f"wrong sums for {what}."
        assert torch.equal(other.long(), expected - 7) and not floats, "the given products are not used, or floats."
        assert not again or width in (1, len(x), len(w)), "the matrices are multiplied again."
    ### END HIDDEN TESTS


check_ex_3_2()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Three terms: one for each output, one for each pair of row and output, one for each output again. Which shape has each of the two sums?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `w_codes.sum(dim=1, dtype=torch.int32)` has shape (out_features,). `x_codes.sum(dim=1, keepdim=True, dtype=torch.int32)` has shape (rows, 1), so
# that it meets `w_zeros` as rows × outputs.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `products - x_zero * (sums of w) - (sums of x) * w_zeros + x_codes.shape[1] * … * …`
# </details>

# %% [markdown]
# ### Step 3: which unit has the bias?
#
# One step of the sum stands for the real number $s_x s_w$. So a real bias $b$ is $b / (s_x s_w)$ of these steps, rounded. By hand: $s_x = 0.5$, $s_w = 0.1$: one step is 0.05, and
# $b = 1.03$ is 20.6 steps, so the code is 21. That is a fine ruler: rounding the bias moves the output by at most half of $s_x s_w$, usually a tiny part of an output
# code. But it is a ruler with large numbers on it: in 8 bits, 127 of these steps would end at 6.35. Hence `int32`.
#
# The scale of the *output* plays no part yet. And with per-channel weights, each output has its own $s_w$ and so its own ruler.
#
# ### Exercise 3.3: the bias in 32 bits
# *Difficulty 2 of 5 · 15 minutes · 2 points*
#
# This happens once, when the layer is made, so floats are allowed. Use `float64`: `float32` cannot hold all 32-bit numbers. If a weight row is all zeros, its scale is
# nearly 0, and the bias may have more steps than `int32` can count: then take the nearest number that it can hold.


# %% nbgrader={"grade": false, "grade_id": "ex_3_3", "locked": false, "schema_version": 3, "solution": true, "task": false}
def bias_codes(bias: Tensor, x_scale: float, w_scales: Tensor, y_scale: float) -> Tensor:
    """The bias in steps of the int32 sums.

    Parameters
    ----------
    bias : Tensor, float32, (out_features,)
    x_scale, y_scale : float
        Scales of the layer's input and output. (Do you need both?)
    w_scales : Tensor, float64, (out_features,)
        Scale of each row of the weight.

    Returns
    -------
    Tensor, int32, (out_features,)
        Rounded to the nearest, clamped to what int32 can hold.

    Example
    -------
    >>> bias_codes(torch.tensor([1.03, -1.03]), 0.5, torch.tensor([0.1, 0.2], dtype=torch.float64), 0.7)
    tensor([ 21, -10], dtype=torch.int32)
    """
    ### BEGIN SOLUTION
    steps = (bias.to(torch.float64) / (x_scale * w_scales)).round()
    return steps.clamp(-(2**31), 2**31 - 1).to(torch.int32)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_3_3_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 3.3: run this cell.
import torch
import torch.ao.nn.quantized as nnq

from helpers import checks, known_warnings, samples


@checks.isolated
def check_ex_3_3() -> None:
    from fractions import Fraction

    known_warnings.hide()
    ends = [2**31 - 1, -(2**31)]

    def layer(generator: torch.Generator, x_scale: float, spread: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A bias of twelve numbers, each up to `spread` steps and never near a half, and the scales of the weight."""
        w_scales = 0.002 + 0.02 * torch.rand(12, generator=generator, dtype=torch.float64)
        whole = torch.randint(-spread, spread, (12,), generator=generator)
        part = 0.15 + 0.2 * torch.rand(12, generator=generator, dtype=torch.float64)
        sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(6)
        return ((whole + sign * part) * x_scale * w_scales).float(), w_scales

    def nearest(bias: torch.Tensor, x_scale: float, w_scales: torch.Tensor) -> torch.Tensor:
        """By exact fractions."""
        pairs = zip(bias.tolist(), w_scales.tolist(), strict=True)
        return torch.tensor([round(Fraction(b) / (Fraction(x_scale) * Fraction(s))) for b, s in pairs])

    with checks.check("3.3", "your codes are exact, and with them the sums become the outputs of nnq.Linear"):
        generator = torch.Generator().manual_seed(33)
        for what, x_scale, y_scale, spread in [
            ("a wide bias", 0.021, 0.13, 20_000),
            ("a narrow bias", 0.4, 0.057, 60),
            ("a bias of up to a billion steps", 0.0073, 0.31, 10**9),
            ("a very quiet input", 2.718281828e-11, 0.31, 10**6),
        ]:
            bias, w_scales = layer(generator, x_scale, spread)
            exact = bias.double() / w_scales / x_scale
            right = nearest(bias, x_scale, w_scales)
            with checks.untouched(bias=bias, w_scales=w_scales):
                answer = bias_codes(bias, x_scale, w_scales, y_scale)
            what = f"your tensor of codes for {what}"
            checks.tensor(answer, (12,), what)
            assert not answer.is_floating_point(), (
                f"{what} has dtype {answer.dtype}; the codes are added to int32 sums and should be int32."
            )
            checks.tensor(answer, (12,), what, torch.int32)
            small = right.abs() < 2**20
            assert (
                torch.equal(answer[~small].long(), right[~small])
                or not torch.allclose(answer.double(), right.double(), rtol=1e-6, atol=0)
                or not torch.equal(answer[small].long(), right[small])
            ), (
                f"{what} is off by up to {(answer.long() - right).abs().max()}, in large codes: float32 has 24 bits. Convert to float64 *before* you multiply or divide."
            )
            checks.close(
                answer,
                right,
                what,
                atol=0,
                rtol=0,
                mistakes={
                    "they are cut off instead of rounded.": exact.trunc(),
                    "they are rounded down instead of to the nearest.": exact.floor(),
                    "they are rounded up instead of to the nearest.": exact.ceil(),
                    "that is the bias in steps of the output: divide by x_scale * w_scales, not by y_scale.": (
                        bias.double() / y_scale
                    ).round(),
                    "you divided by the scale of the weight only.": (bias.double() / w_scales).round(),
                    "you divided by the scale of the input only.": (bias.double() / x_scale).round(),
                    "you multiplied by the scales; to count steps, divide.": (
                        bias.double() * x_scale * w_scales
                    ).round(),
                    "y_scale does not belong here: the sum is not yet in the output's unit.": (exact * y_scale).round(),
                    "y_scale plays no part here: the sum is not yet in the output's unit.": (exact / y_scale).round(),
                    "all rows got the scale of the largest one; each has its own.": (
                        bias.double() / x_scale / w_scales.max()
                    ).round(),
                    "all rows got the scale of the first one; each has its own.": (
                        bias.double() / x_scale / w_scales[0]
                    ).round(),
                    "they are clamped to 8 bits: the bias is added to an int32 sum and needs its room.": right.clamp(
                        -128, 127
                    ),
                    "they are clamped to 16 bits: the bias is added to an int32 sum and needs its room.": right.clamp(
                        -(2**15), 2**15 - 1
                    ),
                    "they wrapped around in 8 bits.": right.to(torch.int8),
                    "they wrapped around in 16 bits.": right.to(torch.int16),
                },
            )
        for size, scale in [(3.0, 1e-8), (9.0, 1e-9), (1e30, 2.0**-23)]:
            silent = bias_codes(torch.tensor([size, -size]), 0.01, torch.tensor([scale] * 2, dtype=torch.float64), 0.1)
            what = f"a bias of {size:g} and of {-size:g} on a weight row with scale {scale:g}"
            checks.tensor(silent, (2,), f"your tensor of codes for {what}", torch.int32)
            assert silent.tolist() != [2**31 - 1, 1 - 2**31], (
                f"{what} gets the codes {silent.tolist()}: int32 is not symmetric, it goes down to -(2**31)."
            )
            assert silent.tolist() == ends, (
                f"{what} should get the codes {ends[0]} and {ends[1]}; yours are {silent.tolist()}. Clamp "
                "before you turn them into int32, and in float64: float32 has no number 2**31 - 1."
            )
        still = bias_codes(torch.zeros(2), 0.1, torch.tensor([0.1, 2.0**-23], dtype=torch.float64), 3.0)
        assert still.tolist() == [0, 0], f"a bias of 0 has the code 0; yours are {still.tolist()}."
        for form, odd in samples.awkward(bias)[:3]:
            same = bias_codes(odd, x_scale, w_scales, y_scale)
            assert torch.equal(same.long(), right), f"your codes are other ones where the bias is {form}."
        bias, w_scales = layer(generator, 0.021, 20_000)
        w_codes = torch.randint(-127, 128, (12, 50), generator=generator).to(torch.int8)
        x_codes = torch.randint(0, 128, (40, 50), generator=generator).to(torch.uint8)
        module = nnq.Linear(50, 12)
        zeros = torch.zeros(12, dtype=torch.int64)
        module.set_weight_bias(torch._make_per_channel_quantized_tensor(w_codes, w_scales, zeros, 0), bias)
        module.scale, module.zero_point = 0.9, 60
        theirs = module(torch._make_per_tensor_quantized_tensor(x_codes, 0.021, 50)).int_repr().long()
        sums = (x_codes.long() - 50) @ w_codes.long().T + bias_codes(bias, 0.021, w_scales, 0.9)
        ours = (sums * (0.021 * w_scales / 0.9)).round().add(60).clamp(0, 255).long()
        assert (ours - theirs).abs().max() <= 1, (
            f"with your bias the outputs are up to {(ours - theirs).abs().max()} codes away from nnq.Linear's."
        )
    ### BEGIN HIDDEN TESTS
    generator = torch.Generator().manual_seed(303)
    for x_scale, spread in [(0.0173205, 30), (0.31, 40_000), (0.0021, 10**9), (3e-12, 5000), (0.6, 2**31 - 1)]:
        bias, w_scales = layer(generator, x_scale, spread)
        right = nearest(bias, x_scale, w_scales)
        with checks.untouched(bias=bias, w_scales=w_scales):
            answer = bias_codes(bias, x_scale, w_scales, 0.25)
        assert answer.dtype == torch.int32 and answer.shape == (12,), "wrong dtype or shape."
        assert torch.equal(answer.long(), right.clamp(ends[1], ends[0])), "a code is not the nearest whole number."
        for form, odd in samples.awkward(bias)[:3]:
            assert torch.equal(bias_codes(odd, x_scale, w_scales, 7.0), answer), f"other codes for {form}."
    zero = bias_codes(torch.zeros(3), 0.1, torch.tensor([0.1, 2.0**-23, 1.0], dtype=torch.float64), 3.0)
    assert zero.tolist() == [0, 0, 0], "a bias of 0 should have codes 0."
    for size, scale in [(9.0, 1e-9), (1e30, 2.0**-23)]:
        loud = bias_codes(torch.tensor([size, -size]), 1e-3, torch.full((2,), scale, dtype=torch.float64), 1.0)
        assert loud.dtype == torch.int32 and loud.tolist() == ends, "not clamped to int32."
    ### END HIDDEN TESTS


check_ex_3_3()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# How large is one step of the sum, in real numbers? How many of them are the bias?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `bias.to(torch.float64)` divided by `x_scale * w_scales`; round; clamp to the ends of int32, `-(2**31)` and `2**31 - 1`; and only then `.to(torch.int32)`.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `(bias.to(torch.float64) / (… * …)).round().clamp(…, …).to(torch.int32)`
# </details>

# %% [markdown]
# ### How large are these sums?
#
# Here are the sums of a real layer, the static one of section 1, with bias and corrections, for 256 unseen positions. On the right is what each row of the weight needs in order to
# become an output code: the output is $q_y = z_y + \text{sum} \cdot \frac{s_x s_w}{s_y}$, and this **multiplier** $M = s_x s_w / s_y$ is different for each row (with the engine qnnpack, where the weight has one scale, it is the same for all).

# %%
int8_layer = static.module[0]
in_scale, in_zero = float(static.quant.scale), int(static.quant.zero_point)
out_scale, out_zero = float(int8_layer.scale), int(int8_layer.zero_point)
stored = int8_layer.weight()
per_channel = stored.qscheme() not in (torch.per_tensor_affine, torch.per_tensor_symmetric)
stored_scales = (
    stored.q_per_channel_scales() if per_channel else torch.full((256,), stored.q_scale(), dtype=torch.float64)
)
with torch.no_grad():
    input_codes = static.quant(unseen[:256]).int_repr()  # (256, 256), uint8
real_sums = (input_codes.int() - in_zero) @ stored.int_repr().int().T  # (256, 256), int32
real_sums += (int8_layer.bias().detach() / (in_scale * stored_scales)).round().int()
multipliers = in_scale * stored_scales / out_scale  # (256,)

fig, (left, right) = plots.figure(columns=2, width=10, height=2.6)
left.hist(real_sums.flatten().numpy() / 1000, bins=120, log=True, color=plots.BLUE)
for edge in (-32.768, 32.767):
    left.axvline(edge, color=plots.RED, linestyle="--", linewidth=1)
left.set_xlabel("sum, in thousands (dashed: the ends of int16)")
left.set_ylabel("how many (log)")
right.hist(multipliers.numpy(), bins=np.geomspace(1e-4, 1e-2, 60), color=plots.ORANGE)
right.set_xscale("log")
right.set_xlabel("multiplier M of a row")
right.set_ylabel("rows")
plots.show(
    fig,
    caption="Left: int32 sums of 256 positions and 256 outputs. Right: the number that turns the sums of each output into output codes.",
    alt="Left: a bell-shaped histogram on a logarithmic axis, centred near zero; its tails reach beyond two dashed lines at plus and minus 32.8 thousand. "
    "Right: a narrow histogram of multipliers, all of them a few thousandths or less.",
)

# %% [markdown]
# Some sums need more than 16 bits (in wider layers, many), the codes have 8, and the multipliers are small fractions. How does one multiply by 0.002 when there are only integers?
#
# ### Step 4: a fraction made of two integers
#
# Every positive number can be written as $M = M_0 \cdot 2^{-n}$ with $\frac12 \le M_0 < 1$, in exactly one way. Store $M_0$ as the integer $m_0 = \text{round}(M_0 \cdot 2^{31})$: it lies between
# $2^{30}$ and $2^{31}$ and uses all bits of a positive `int32`. Then
#
# $$\text{sum} \cdot M \approx \frac{\text{sum} \cdot m_0}{2^{31+n}}$$
#
# and dividing by a power of two is a **shift to the right**, an instruction that every processor has.
#
# By hand, with 8 bits instead of 31: $M = 0.3 = 0.6 \cdot 2^{-1}$, so $n = 1$ and $m_0 = \text{round}(0.6 \cdot 2^8) = 154$. The sum 106 times 154 is 16324; shifted by $8 + 1 = 9$ bits,
# $16324 / 512 = 31.88$. The true value is 31.8.
#
# Why must $M_0$ not be smaller than one half? Because then its first bits are zeros, and precision is lost. Why not 1 or more? Because $m_0$ would not fit.
#
# One trap is left. A shift does not round. It cuts the bits off, and that rounds *down*, for negative numbers, too:

# %% tags=["nbval-check-output"]
for number in (106 * 154, -104 * 154):
    print(
        f"{number} / 512 = {number / 512:.2f}, shifted: {number >> 9}, with half of 512 added before: {(number + 256) >> 9}"
    )

# %% [markdown]
# Rounding down would move every output by half a code on average, in the same direction, layer after layer. Adding half of what the last bit is worth, before the
# shift, makes it round to the nearest.
#
# ### Exercise 3.4: from sums to codes
# *Difficulty 4 of 5 · 30 minutes · 2 points*
#
# Two functions. `fixed_point` runs once, when the layer is made, and may use floats (`torch.frexp` splits a number into $M_0$ and an exponent). `requantize` runs in every call, on integers only:
# multiply, round, shift, add the zero point, clamp to 0…255. Each code must be the nearest one to the exact value, whatever the sum (in the middle between two codes either will do). A sum has up to 32 bits and $m_0$ has 31: the product needs `int64`. Where $m_0$ rounds up to exactly
# $2^{31}$, it does not fit any more: write this number as $2^{30}$, and $n$ one smaller.


# %% nbgrader={"grade": false, "grade_id": "ex_3_4", "locked": false, "schema_version": 3, "solution": true, "task": false}
def fixed_point(multipliers: Tensor) -> tuple[Tensor, Tensor]:
    """Each multiplier as ``m0 * 2**-31 * 2**-n``.

    Parameters
    ----------
    multipliers : Tensor, float64, (out_features,)
        Between ``2**-30`` and ``2**8``.

    Returns
    -------
    (Tensor, Tensor)
        `m0`, from ``2**30`` to ``2**31 - 1``, and `n`, which is negative for multipliers of 1 and more;
        both int64, (out_features,).

    Example
    -------
    >>> fixed_point(torch.tensor([0.3, 0.5, 3.0], dtype=torch.float64))
    (tensor([1288490189, 1073741824, 1610612736]), tensor([ 1,  0, -2]))
    """
    ### BEGIN SOLUTION
    halves, exponents = torch.frexp(multipliers)  # 0.5 <= halves < 1
    m0, n = (halves * 2**31).round().to(torch.int64), -exponents.to(torch.int64)
    too_large = m0 == 2**31
    return torch.where(too_large, 2**30, m0), torch.where(too_large, n - 1, n)
    ### END SOLUTION


def requantize(sums: Tensor, m0: Tensor, n: Tensor, y_zero: int) -> Tensor:
    """Output codes of the sums: ``sums * m0 / 2**(31 + n)`` rounded to the nearest, plus `y_zero`, clamped to 0…255.

    A value in the middle between two codes may become either of them.

    Parameters
    ----------
    sums : Tensor, int32, (rows, out_features)
    m0, n : Tensor, int64, (out_features,)
    y_zero : int
        Zero point of the output.

    Returns
    -------
    Tensor, uint8, (rows, out_features)

    Example
    -------
    >>> m0, n = torch.tensor([1288490189]), torch.tensor([1])  # 0.3
    >>> requantize(torch.tensor([[104], [-104], [-1000]], dtype=torch.int32), m0, n, 100).flatten()
    tensor([131,  69,   0], dtype=torch.uint8)
    """
    ### BEGIN SOLUTION
    shift = n + 31
    rounded = (sums.to(torch.int64) * m0 + (1 << (shift - 1))) >> shift  # (rows, out_features)
    return (rounded + y_zero).clamp(0, 255).to(torch.uint8)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_3_4_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 3.4: run this cell.
import torch

from helpers import checks, integer, samples


@checks.isolated
def check_ex_3_4() -> None:
    from fractions import Fraction

    def differ(a: torch.Tensor, b: torch.Tensor) -> float:
        return (a.long() != b.long()).double().mean().item()

    def exact_parts(number: float) -> tuple[int, int]:
        """m0 and n of a multiplier, by exact fractions."""
        whole, n = Fraction(number), 0
        while whole >= 1:
            whole, n = whole / 2, n - 1
        while whole < Fraction(1, 2):
            whole, n = whole * 2, n + 1
        m0 = round(whole * 2**31)
        return (m0, n) if m0 < 2**31 else (2**30, n - 1)

    def nearest(sums: torch.Tensor, m0: torch.Tensor, n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """sums * m0 / 2**(31 + n) rounded to the nearest, halves down and halves up: exact, in int64."""
        product, unit = sums.long() * m0, 2 ** (31 + n)
        below = torch.div(product, unit, rounding_mode="floor")
        rest = 2 * (product - below * unit)
        return below + (rest > unit), below + (rest >= unit)

    def twice(sums: torch.Tensor, m0: torch.Tensor, n: torch.Tensor, signed: bool) -> torch.Tensor:
        """Rounded to 31 bits less, then by n bits; `signed`: halves away from zero, as gemmlowp does."""
        more, less = n.clamp(min=0), (-n).clamp(min=0)
        product = (sums.long() << less) * m0
        if not signed:
            first = (product + 2**30) >> 31
            return (first + torch.where(more > 0, 1 << (more - 1).clamp(min=0), 0)) >> more
        first = torch.div(product + torch.where(product >= 0, 2**30, 1 - 2**30), 2**31, rounding_mode="trunc")
        mask = (1 << more) - 1
        return (first >> more) + ((first & mask) > (mask >> 1) + (first < 0).long())

    def cases(seed: int) -> list[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor, int]]:
        """What, sums, m0, n, zero point."""
        generator = torch.Generator().manual_seed(seed)
        multipliers = torch.tensor([0.31377, 0.012347, 0.000713, 0.97133, 1.73211], dtype=torch.float64)
        m0, n = integer.fixed_point(multipliers)
        reach = (200 / multipliers).long()
        found = []
        for what, y_zero, sign in [("mixed sums", 117, 0), ("positive sums", 20, 1), ("negative sums", 240, -1)]:
            sums = (torch.rand(400, 5, generator=generator) * 2 - 1) * reach
            found.append((what, (sums.abs() * sign if sign else sums).to(torch.int32), m0, n, y_zero))
        mixed = found[0][1][:40]
        small = torch.tensor([3.7e-7, 0.2 * 2.0**-20, 2.0**-29], dtype=torch.float64)
        few, shifts = integer.fixed_point(small)
        halves = torch.randint(-150, 150, (300, 3), generator=generator) + 0.5  # steps: between two codes
        nudge = torch.randint(-3, 4, (300, 3), generator=generator)
        close = ((halves / small).round().long() + nudge).clamp(-(2**31), 2**31 - 1).to(torch.int32)
        found.append(("sums close to the middle between two codes", close, few, shifts, 128))
        loud = torch.tensor([[2**31 - 1], [-(2**31)], [0], [2**30], [-(2**30) - 1]], dtype=torch.int32)
        wide = torch.tensor([2.0**-29, 3e-8, 0.9999, 3.3, 200.3], dtype=torch.float64)
        found.append(("the largest sums of int32", loud.expand(-1, 5).contiguous(), *integer.fixed_point(wide), 100))
        found.append(("one sum", mixed[:1, :1], m0[:1], n[:1], 7))
        return found + [(f"sums that are {form}", odd, m0, n, 0) for form, odd in samples.awkward(mixed)]

    names = {1 - 2.0**-40: "1 - 2**-40", 0.25 - 2.0**-42: "0.25 - 2**-42", 2.0**-30: "2**-30", 2.0**-29: "2**-29"}
    with checks.check("3.4", "M0 is in its range, and every code is the nearest one, also at the ends of int32"):
        numbers = [0.3, 0.5, 0.25, 0.0123, 0.000071, 0.999, 1.0, 1.7, 200.3, 255.99, *names]
        multipliers = torch.tensor(numbers, dtype=torch.float64)
        with checks.untouched(multipliers=multipliers):
            parts = fixed_point(multipliers)
        checks.given(parts, "what fixed_point returned")
        assert isinstance(parts, tuple | list) and len(parts) == 2, (
            "fixed_point should return a pair of tensors: m0, n."
        )
        for name, part in zip(("m0", "n"), parts, strict=True):
            checks.tensor(part, multipliers.shape, f"your {name}")
            assert not part.is_floating_point(), (
                f"your {name} is made of floats ({part.dtype}); it should be int64: the fraction M0 is stored as m0 = round(M0 * 2**31)."
            )
            assert part.dtype == torch.int64, (
                f"your {name} has dtype {part.dtype}; expected is torch.int64. (An int32 has no room for 2**31, and overflows where m0 rounds up to it.)"
            )
        for number, m0, n in zip(numbers, parts[0].tolist(), parts[1].tolist(), strict=True):
            made = m0 * 2.0 ** -(31 + n)
            what = f"for the multiplier {names.get(number, number)} your m0 = {m0}, n = {n}"
            right_m0, right_n = exact_parts(number)
            if (m0, n) == (right_m0, right_n):
                continue
            assert not (number == 0.3 and abs(m0 * 2.0 ** -(31 - n) - number) < 1e-6 and n), (
                f"{what}: n has the wrong sign. It counts shifts to the right: 0.3 = 0.6 * 2**-1 has n = 1."
            )
            assert m0 != 2**31, (
                f"{what}: m0 was rounded up to 2**31, which does not fit in an int32. Use 2**30 and n - 1."
            )
            carried = right_m0 == 2**30 and number in (1 - 2.0**-40, 0.25 - 2.0**-42)
            assert not (carried and m0 == 2**30 and n == right_n + 2), (
                f"{what}: where m0 rounds up to 2**31 and is written as 2**30, it is half as large; n must be one *smaller* then, not larger."
            )
            assert not (carried and m0 == 2**30 and n == right_n + 1), (
                f"{what}: where m0 rounds up to 2**31 and is written as 2**30, it is half as large; n must be one smaller to make up for it."
            )
            assert not (carried and m0 == 2**31 - 1), (
                f"{what}: m0 was clamped to 2**31 - 1. The nearest number is {right_m0} with n = {right_n}."
            )
            assert 2**30 <= m0 < 2**31 or abs(made - number) > 1e-4 * number, (
                f"{what}: M0 = m0 / 2**31 = {m0 / 2**31:.6g} is not between 0.5 and 1."
                + (" Its first bits are zeros, and precision is lost." if m0 < 2**30 else "")
            )
            assert abs(made - number) <= 1e-4 * number, f"{what} make {made:.6g}."
            assert abs(m0 - right_m0) != 1, (
                f"{what}: the nearest is m0 = {right_m0}. Round M0 * 2**31, instead of cutting it off."
            )
            assert m0 % 128 or abs(made - number) > 2.0**-23 * number, (
                f"{what}: m0 has only the 24 bits of a float32; the nearest is {right_m0}. Compute in float64."
            )
            raise AssertionError(
                f"{what} make {made:.12g}; the nearest is m0 = {right_m0}, n = {right_n}: m0 should keep all 31 bits."
            )

        for what, sums, m0, n, y_zero in cases(34):
            down, up = nearest(sums, m0, n)
            low, high = ((steps + y_zero).clamp(0, 255) for steps in (down, up))
            with (
                checks.untouched(sums=sums, m0=m0, n=n),
                integer.floats_made(requantize) as floats,
            ):
                answer = requantize(sums, m0, n, y_zero)
            what = f"your tensor of codes for {what}"
            assert not floats, f"`requantize` makes floats ({floats[0]}): it may only multiply, add and shift."
            checks.tensor(answer, sums.shape, what)
            checks.tensor(answer, sums.shape, what, torch.uint8)
            if ((answer == low) | (answer == high)).all():
                continue
            below = torch.div(sums.long() * m0, 2 ** (31 + n), rounding_mode="floor")
            trunc = torch.div(sums.long() * m0, 2 ** (31 + n), rounding_mode="trunc")
            mistakes = {
                "they are not clamped: codes beyond 0…255 wrapped around when they became uint8.": (up + y_zero).to(
                    torch.uint8
                ),
                "the zero point is missing.": up.clamp(0, 255),
                "a shift cuts off: add 1 << (31 + n - 1) before it, so that it rounds to the nearest.": (
                    below + y_zero
                ).clamp(0, 255),
                "they are cut off towards zero.": (trunc + y_zero).clamp(0, 255),
                "they are rounded up: add half of 1 << (31 + n), not all of it.": (below + 1 + y_zero).clamp(0, 255),
                "the zero point was added before the multiplication: it is a code of the output, add it after the shift.": (
                    nearest(sums + y_zero, m0, n)[1].clamp(0, 255)
                ),
                "the clamp comes before the zero point is added: add first.": (up.clamp(0, 255) + y_zero).to(
                    torch.uint8
                ),
                "the product wrapped around: a 32-bit sum times a 31-bit m0 needs int64.": (
                    (((sums * m0.to(torch.int32)).long() + (1 << (30 + n))) >> (31 + n)) + y_zero
                ).clamp(0, 255),
                "they are clamped to int8, -128…127; output codes are uint8.": (up + y_zero)
                .clamp(-128, 127)
                .to(torch.uint8),
                "they are clamped to 0…127; output codes are 8 bits here.": (up + y_zero).clamp(0, 127),
                "the scaled sum went back into int32 before the clamp, and wrapped around: clamp first.": (
                    up.to(torch.int32).long() + y_zero
                ).clamp(0, 255),
                "the shift is 31 bits; it should be 31 + n, with the n of each output.": (
                    ((sums.long() * m0 + 2**30) >> 31) + y_zero
                ).clamp(0, 255),
                "all outputs were scaled with the multiplier of the first one.": (
                    nearest(sums, m0[:1], n[:1])[1] + y_zero
                ).clamp(0, 255),
                "half of the last bit is taken from the sum of 31 bits, without n: it is 1 << (31 + n - 1).": (
                    ((sums.long() * m0 + 2**30) >> (31 + n)) + y_zero
                ).clamp(0, 255),
                "they are rounded twice, first after 31 bits and again after n, as TFLite and gemmlowp do: what the first rounding has made a half is rounded once more. Shift once, by 31 + n bits.": (
                    twice(sums, m0, n, True) + y_zero
                ).clamp(0, 255),
                "they are rounded twice, first after 31 bits and again after n: what the first rounding has made a half is rounded once more. Shift once, by 31 + n bits.": (
                    twice(sums, m0, n, False) + y_zero
                ).clamp(0, 255),
            }
            fits = [
                sentence
                for sentence, wrong in mistakes.items()
                if min(differ(wrong, low), differ(wrong, high)) > 0 and differ(answer, wrong) <= 0.002
            ]
            assert len(fits) != 1, f"{what} is wrong: {fits[0]}"
            bad = (answer != low) & (answer != high)
            first = bad.nonzero()[0].tolist()
            at = f"{bad.double().mean():.2%} of {what} are not the nearest: for the sum {sums[*first]}, m0 = {m0[first[1]]}, n = {n[first[1]]} it is {answer[*first]} and should be {high[*first]}"
            rest = (sums.long() * m0 - below * 2 ** (31 + n)).double() / 2.0 ** (31 + n)  # from 0 to 1
            one_off = torch.minimum((answer.long() - low).abs(), (answer.long() - high).abs())[bad].max() == 1
            assert not (one_off and ((rest[bad] - 0.5).abs() < 0.01).all()), (
                f"{at}. All of them lie close to the middle between two codes, where all 31 bits of m0 count, and one rounding."
            )
            raise AssertionError(f"{at}.")
    ### BEGIN HIDDEN TESTS
    generator = torch.Generator().manual_seed(304)
    multipliers = 2.0 ** (torch.rand(300, generator=generator, dtype=torch.float64) * 37 - 29.9)
    powers = 2.0 ** torch.arange(-30, 8, dtype=torch.float64)
    multipliers = torch.cat([multipliers, powers, powers[1:] * (1 - 2.0**-45), powers * (1 + 2.0**-45)])
    with checks.untouched(multipliers=multipliers):
        m0, n = fixed_point(multipliers)
    assert m0.dtype == n.dtype == torch.int64 and m0.shape == n.shape == multipliers.shape, "wrong dtype or shape."
    for a, b, number in zip(m0.tolist(), n.tolist(), multipliers.tolist(), strict=True):
        assert (a, b) == exact_parts(number), "m0 and n are not the nearest to a multiplier."
    tests = cases(3040)
    for bits in (9, 14, 20, 30):
        sums = ((torch.rand(300, 6, generator=generator, dtype=torch.float64) * 2 - 1) * 2**bits).to(torch.int32)
        multipliers = torch.rand(6, generator=generator, dtype=torch.float64) * 2.0 ** (8 - bits) + 2.0 ** -(bits - 5)
        tests += [("sums", sums, *integer.fixed_point(multipliers), y_zero) for y_zero in (0, 93, 255)]
    for what, sums, m0, n, y_zero in tests:
        with checks.untouched(sums=sums, m0=m0, n=n), integer.floats_made(requantize) as floats:
            answer = requantize(sums, m0, n, y_zero)
        low, high = ((steps + y_zero).clamp(0, 255) for steps in nearest(sums, m0, n))
        assert answer.dtype == torch.uint8 and not floats, "wrong dtype, or floats."
        assert answer.shape == sums.shape and ((answer == low) | (answer == high)).all(), f"wrong codes for {what}."
    ### END HIDDEN TESTS


check_ex_3_4()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# `torch.frexp(multipliers)` gives two tensors: numbers from 0.5 to 1, and exponents of 2. The second one is nearly your n.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# $n$ is *minus* the exponent. In `requantize`, the whole shift is `n + 31` bits, and half of what its last bit is worth is `1 << (n + 30)`. Widen the sums
# to int64 before they are multiplied.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `m0 = (halves * 2**31).round().to(torch.int64)`, and `torch.where(m0 == 2**31, …, m0)`. Then `(sums.to(torch.int64) * m0 + …) >> (n + 31)`; add the zero
# point; `.clamp(0, 255).to(torch.uint8)`.
# </details>

# %% [markdown]
# ### Step 5: all of it
#
# Look at the corrections once more: with symmetric weights only $-z_x \sum_k q_w$ is left, and that does not depend on the input. The bias does not, either. So both become **one** vector of
# `int32`, computed when the layer is made, in which every sum starts. What is left for each call is short: multiply, add the start, rescale. That is the whole kernel.
#
# By hand, one input and one output: $q_w = 50$, $s_w = 0.01$, $b = 0.3$, $s_x = 0.1$, $z_x = 128$, $s_y = 0.05$, $z_y = 10$. The start is
# $\text{round}(0.3 / 0.001) - 128 \cdot 50 = 300 - 6400 = -6100$, and $M = 0.001 / 0.05 = 0.02$. An input code 148 (the real number 2.0) gives $148 \cdot 50 - 6100 = 1300$, times 0.02 is 26, plus
# 10 is code 36, which stands for $0.05 \cdot 26 = 1.3$. And indeed $2.0 \cdot 0.5 + 0.3 = 1.3$.
#
# ### Exercise 3.5: the integer Linear layer
# *Difficulty 4 of 5 · 30 minutes · 3 points*
#
# `pack` gets the scales, and makes a dictionary of whatever `integer_linear` needs. The names in it are yours; the values may only be integers and integer tensors. `integer_linear` gets codes and this dictionary and nothing else.
# The weights are symmetric (zero point 0), with one scale for each row. Your functions of exercise 3.4 will do, and so will `integer.fixed_point(multipliers)` and
# `integer.requantize(sums, m0, n, y_zero)`, which do the same.
#
# You are compared with `torch.ops.quantized.linear`, the kernel inside of `nnq.Linear`: at most 1 % of the codes may differ, by at most one.


# %% nbgrader={"grade": false, "grade_id": "ex_3_5", "locked": false, "schema_version": 3, "solution": true, "task": false}
def pack(
    w_codes: Tensor, w_scales: Tensor, bias: Tensor, x_scale: float, x_zero: int, y_scale: float, y_zero: int
) -> dict[str, Tensor | int]:
    """Everything that the layer needs at run time, as integers.

    Parameters
    ----------
    w_codes : Tensor, int8, (out_features, in_features)
        Symmetric: their zero point is 0.
    w_scales : Tensor, float64, (out_features,)
    bias : Tensor, float32, (out_features,)
    x_scale, y_scale : float
        Scales of input and output.
    x_zero, y_zero : int
        Zero points of input and output.

    Returns
    -------
    dict
        Values are int or integer tensors.
    """
    ### BEGIN SOLUTION
    bias_in_steps = (bias.to(torch.float64) / (x_scale * w_scales)).round().to(torch.int32)
    m0, n = integer.fixed_point(x_scale * w_scales / y_scale)
    start = bias_in_steps - x_zero * w_codes.sum(dim=1, dtype=torch.int32)  # (out_features,)
    return {"weight": w_codes, "start": start, "m0": m0, "n": n, "y_zero": y_zero}
    ### END SOLUTION


def integer_linear(x_codes: Tensor, packed: dict[str, Tensor | int]) -> Tensor:
    """Output codes from input codes, without a float.

    Parameters
    ----------
    x_codes : Tensor, uint8, (rows, in_features)
    packed : dict
        What `pack` returned.

    Returns
    -------
    Tensor, uint8, (rows, out_features)

    Example
    -------
    >>> w_codes, w_scales = torch.tensor([[50]], dtype=torch.int8), torch.tensor([0.01], dtype=torch.float64)
    >>> packed = pack(w_codes, w_scales, torch.tensor([0.3]), x_scale=0.1, x_zero=128, y_scale=0.05, y_zero=10)
    >>> integer_linear(torch.tensor([[148]], dtype=torch.uint8), packed)
    tensor([[36]], dtype=torch.uint8)
    """
    ### BEGIN SOLUTION
    sums = x_codes.to(torch.int32) @ packed["weight"].to(torch.int32).T + packed["start"]  # (rows, out_features)
    return integer.requantize(sums, packed["m0"], packed["n"], packed["y_zero"])
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_3_5_check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 3.5: run this cell.
import torch

from helpers import checks, integer, known_warnings, samples


@checks.isolated
def check_ex_3_5() -> None:
    known_warnings.hide()

    def layer(generator: torch.Generator, width: int, outputs: int, x_zero: int, y_zero: int) -> dict:
        """Codes and scales of a random layer whose outputs fill most of the 256 codes, and leave them sometimes."""
        loudness = torch.logspace(-1, 0.5, outputs, dtype=torch.float64)
        x_scale = 0.031
        w_scales = 0.004 * loudness
        return {
            "w_codes": torch.randint(-127, 128, (outputs, width), generator=generator).to(torch.int8),
            "w_scales": w_scales,
            "bias": (torch.randn(outputs, generator=generator) * 60).mul(x_scale * w_scales * width**0.5).float() * 40,
            "x_scale": x_scale,
            "x_zero": x_zero,
            "y_scale": x_scale * 0.004 * width**0.5 * 40,
            "y_zero": y_zero,
        }

    def quiet_layer(generator: torch.Generator, width: int, outputs: int, x_zero: int, y_zero: int) -> dict:
        """A layer with multipliers near 1 and a bias of whole steps, whose outputs stay far from 0 and 255."""
        w_scales = 0.3 * torch.logspace(-0.5, 0.5, outputs, dtype=torch.float64)
        steps = torch.randint(-9, 10, (outputs,), generator=generator)
        return {
            "w_codes": torch.randint(-4, 5, (outputs, width), generator=generator).to(torch.int8),
            "w_scales": w_scales,
            "bias": (steps * 0.41 * w_scales).float(),
            "x_scale": 0.41,
            "x_zero": x_zero,
            "y_scale": 0.23,
            "y_zero": y_zero,
        }

    def exact_values(x: torch.Tensor, a: dict) -> torch.Tensor:
        """Outputs in steps of the output's scale, before rounding; float64."""
        sums = ((x.long() - a["x_zero"]) @ a["w_codes"].long().T).double()
        return (sums * a["x_scale"] * a["w_scales"] + a["bias"].double()) / a["y_scale"]

    def codes(values: torch.Tensor, a: dict) -> torch.Tensor:
        return (values.round() + a["y_zero"]).clamp(0, 255).long()

    def kernel(x: torch.Tensor, a: dict) -> torch.Tensor:
        zeros = torch.zeros(len(a["w_scales"]), dtype=torch.int64)
        weight = torch._make_per_channel_quantized_tensor(a["w_codes"], a["w_scales"], zeros, 0)
        packed = torch.ops.quantized.linear_prepack(weight, a["bias"])
        arriving = torch._make_per_tensor_quantized_tensor(x, a["x_scale"], a["x_zero"])
        return torch.ops.quantized.linear(arriving, packed, a["y_scale"], a["y_zero"]).int_repr().long()

    def differ(a: torch.Tensor, b: torch.Tensor) -> float:
        return (a.long() != b.long()).double().mean().item()

    def is_whole(value: object) -> bool:
        if isinstance(value, torch.Tensor):
            return not (value.is_floating_point() or value.is_complex() or value.is_quantized)
        return isinstance(value, int)

    def on_its_own(packed: dict) -> dict:
        """The same integers in a new, plain dictionary."""
        return {k: v.clone() if isinstance(v, torch.Tensor) else int(v) for k, v in packed.items()}

    with checks.check("3.5", "your layer is PyTorch's int8 kernel, code for code but for roundings, without a float"):
        generator = torch.Generator().manual_seed(35)
        for what, width, outputs, x_zero, y_zero, x_bits in [
            ("a quiet layer", 5, 6, 60, 117, 7),
            ("a small layer", 20, 6, 60, 117, 7),
            ("a wide layer", 600, 24, 70, 30, 7),
            ("an input with zero point 0", 90, 10, 0, 128, 7),
            ("a layer with 8-bit inputs", 90, 10, 131, 128, 8),
        ]:
            quiet = what == "a quiet layer"
            a = (quiet_layer if quiet else layer)(generator, width, outputs, x_zero, y_zero)
            low, high = (x_zero - 5, x_zero + 6) if quiet else (0, 2**x_bits)
            x = torch.randint(low, high, (60, width), generator=generator).to(torch.uint8)
            with checks.untouched(**a):
                packed = pack(**a)
            checks.given(packed, "what pack returned")
            assert isinstance(packed, dict) and packed, "`pack` should return a dictionary."
            for name, value in packed.items():
                assert is_whole(value), (
                    f'packed["{name}"] is not an integer or a tensor of integers: scales must become m0 and n, the bias must become codes.'
                )
            alone = on_its_own(packed)
            other = pack(**layer(generator, width, outputs, x_zero ^ 21, y_zero ^ 13))
            with checks.untouched(x_codes=x, packed=alone), integer.floats_made(integer_linear) as floats:
                answer = integer_linear(x, alone)
            assert not floats, f"`integer_linear` makes floats ({floats[0]}): what needs floats belongs into `pack`."
            what = f"your tensor of codes for {what}"
            values = exact_values(x, a)
            right = codes(values, a)
            checks.tensor(answer, right.shape, what)
            checks.tensor(answer, right.shape, what, torch.uint8)
            if differ(answer, right) > 0.01:
                fits = torch.equal(answer, integer_linear(x, on_its_own(other)))
                assert not fits or differ(answer, integer_linear(x, packed)) > 0, (
                    f"{what} does not depend on the dictionary that it gets, but on what was packed last: use `packed`, and nothing else."
                )
            m = a["x_scale"] * a["w_scales"] / a["y_scale"]
            bias = a["bias"].double()
            shift_of_zero = m * a["x_zero"] * a["w_codes"].long().sum(1)
            total = (values / m).round()  # the int32 sums
            m0, n = integer.fixed_point(m)
            more = n.clamp(min=0)
            first = ((total.long() << (-n).clamp(min=0)) * m0 + 2**30) >> 31
            twice_rounded = ((first + ((1 << more) >> 1)) >> more).double()
            mistakes = {
                "the bias is missing.": codes(values - bias / a["y_scale"], a),
                "the bias is counted in steps of the output; in the sum a step is x_scale * w_scales.": codes(
                    values - bias / a["y_scale"] + (bias / a["y_scale"]).round() * m, a
                ),
                "the bias is divided by the scale of the input only.": codes(
                    values - bias / a["y_scale"] + (bias / a["x_scale"]).round() * m, a
                ),
                "the bias is added twice.": codes(values + bias / a["y_scale"], a),
                "the zero point of the input was not corrected: subtract x_zero times the sum of each row of the weight.": codes(
                    values + shift_of_zero, a
                ),
                "the correction for the zero point of the input has the wrong sign: it is subtracted.": codes(
                    values + 2 * shift_of_zero, a
                ),
                "all rows were scaled with the multiplier of the first one; each has its own.": codes(
                    values / m * m[0], a
                ),
                "the scaled sums are rounded twice, first after 31 bits and again after n: shift once, by 31 + n bits.": codes(
                    twice_rounded, a
                ),
                "the zero point of the output is missing.": values.round().clamp(0, 255),
                "they have the zero point of a layer that came before: use what stands in `packed`.": (
                    (values.round() + 117).clamp(0, 255)
                ),
                "they are not clamped: codes beyond 0…255 wrapped around when they became uint8.": (
                    (values.round() + a["y_zero"]).long().to(torch.uint8)
                ),
                "a shift cuts off: add half of what its last bit is worth before it.": codes(values.floor(), a),
                "the output's scale is missing: the multiplier is x_scale * w_scales / y_scale.": codes(
                    values * a["y_scale"], a
                ),
                "the multiplier is upside down: it is x_scale * w_scales / y_scale.": codes(total / m, a),
                "the scale of the input is missing in the multiplier.": codes(total * m / a["x_scale"], a),
                "the scales of the weight are missing in the multiplier.": codes(total * m / a["w_scales"], a),
                "the zero point of the input was subtracted once a sum, not times the sum of each row of the weight.": codes(
                    values + shift_of_zero - m * a["x_zero"], a
                ),
                "input codes above 127 became negative: they are uint8.": codes(exact_values(x.to(torch.int8), a), a),
                "the sums wrapped around in 16 bits.": codes(
                    ((x.long() @ a["w_codes"].long().T).to(torch.int16).double() * m)
                    - shift_of_zero
                    + bias / a["y_scale"],
                    a,
                ),
            }
            fits = [
                sentence
                for sentence, wrong in mistakes.items()
                if differ(wrong, right) > 0.02 and differ(answer, wrong) <= 0.01
            ]
            assert len(fits) != 1 or differ(answer, right) <= 0.01, f"{what} is wrong: {fits[0]}"
            for theirs, name in [(right, "float64's")] + [(kernel(x, a), "PyTorch's kernel")] * (x_bits == 7):
                apart = (answer.long() - theirs).abs().max().item()
                assert apart <= 1, f"{what} is up to {apart} codes away from those of {name}."
                assert differ(answer, theirs) <= 0.01, (
                    f"{differ(answer, theirs):.0%} of {what} are not those of {name}."
                )
            for form, odd in samples.awkward(x):
                again = integer_linear(odd, on_its_own(packed))
                assert torch.equal(again, answer), f"{what} is another one where the input is {form}."
    ### BEGIN HIDDEN TESTS
    generator = torch.Generator().manual_seed(305)
    for width, outputs in [(12, 1), (64, 64), (33, 7), (2048, 5)]:
        for x_zero, y_zero in [(0, 0), (64, 128), (127, 255)]:
            quiet = quiet_layer(generator, 6, 5, x_zero + 5, 120)
            x = torch.randint(x_zero, x_zero + 11, (90, 6), generator=generator).to(torch.uint8)
            answer = integer_linear(x, on_its_own(pack(**quiet)))
            assert answer.dtype == torch.uint8 and differ(answer, codes(exact_values(x, quiet), quiet)) <= 0.01, (
                "too many codes differ in a quiet layer."
            )
            a = layer(generator, width, outputs, x_zero, y_zero)
            with checks.untouched(**a):
                packed = pack(**a)
            assert isinstance(packed, dict) and all(map(is_whole, packed.values())), "floats in packed."
            packed = on_its_own(packed)
            pack(**layer(generator, width, outputs, x_zero ^ 37, y_zero ^ 11))  # must not matter any more
            for x_bits in (7, 8):
                x = torch.randint(0, 2**x_bits, (400 // outputs + 40, width), generator=generator).to(torch.uint8)
                with checks.untouched(x_codes=x, packed=packed), integer.floats_made(integer_linear) as floats:
                    answer = integer_linear(x, packed)
                assert torch.equal(integer_linear(x.mT.contiguous().mT, packed), answer), "memory matters."
                expected = kernel(x, a) if x_bits == 7 else codes(exact_values(x, a), a)
                apart = (answer.long() - expected).abs()
                assert answer.dtype == torch.uint8 and not floats, "wrong dtype, or floats."
                assert apart.max() <= 1 and (apart > 0).double().mean() <= 0.01, "too many codes differ."
    ### END HIDDEN TESTS


check_ex_3_5()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Do everything in `pack` that does not depend on the input. What is left has three steps.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# The start is `round(bias / (x_scale * w_scales))` minus `x_zero` times the sums of the weight rows, in int32. The multiplier is `x_scale * w_scales / y_scale`.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `m0, n = integer.fixed_point(…)`, `return {"weight": w_codes, "start": …, "m0": m0, "n": n, "y_zero": y_zero}`. Then `sums = (int32 product) + packed["start"]` and
# `integer.requantize(sums, packed["m0"], packed["n"], packed["y_zero"])`.
# </details>

# %% [markdown]
# ### Is that really what runs inside?
#
# The layer of section 1 has been converted by PyTorch, with real weights. Its sums were drawn above. Here they become codes, by shifting only, and meet what the module itself returns:

# %% tags=["nbval-check-output"]
by_shifting = integer.requantize(real_sums, *integer.fixed_point(multipliers), out_zero)
with torch.no_grad():
    by_module = int8_layer(static.quant(unseen[:256])).int_repr()
steps_apart = (by_shifting.int() - by_module.int()).abs()
print("output codes:", steps_apart.numel())
print("largest difference at most 1 code:", bool(steps_apart.max() <= 1))
print("at least 99 % are the very same code:", bool((steps_apart == 0).float().mean() >= 0.99))

# %% [markdown]
# Nothing is hidden in there. Processors with fast floats may as well multiply the sum by $M$ in floats, and some keep the bias as a float, too. The bias can be seen
# from outside: one weight of 1 with scale 1, an input of 0 with scale 1, so that a step of the sum is 1.0; and a bias of 0.4. Rounded to steps it is 0:

# %% tags=["varies"]
for name in sorted(int8.engines()):
    with int8.using(name):
        one_weight = nnq.Linear(1, 1)
        one = torch._make_per_tensor_quantized_tensor(torch.tensor([[1]], dtype=torch.int8), 1.0, 0)
        one_weight.set_weight_bias(one, torch.tensor([0.4]))
        one_weight.scale, one_weight.zero_point = 0.1, 0
        nothing = torch._make_per_tensor_quantized_tensor(torch.tensor([[0]], dtype=torch.uint8), 1.0, 0)
        print(f"{name:8} a bias of 0.4 leaves as {one_weight(nothing).dequantize().item():.1f}")

# %% [markdown]
# `x86`, `fbgemm` and `onednn` keep the bias as a float; `qnnpack` rounds it to steps, as you did. In a real layer a step is tiny. So all of these ways disagree only where a value
# lies on the edge between two codes.
#
# ### ReLU for nothing
#
# ReLU sets negative numbers to 0. On the ruler of output codes, real 0 is the code $z_y$, and negative numbers are the codes below it. So ReLU is a clamp at $z_y$: with
# $z_y = 3$, the codes (0, 2, 3, 7) become (3, 3, 3, 7). The requantization clamps anyway. A fused `nniq.LinearReLU` has *no additional operation*: only the lower end
# of its clamp is another one.
#
# After a ReLU the observer sees no negative numbers, so it names the zero point 0, and spends all codes on the positive side. Compare the two layers of section 1:

# %%
for name, layer in [("nnq.Linear", static.module[0]), ("nniq.LinearReLU", static_relu.module[0])]:
    print(f"{name:16} output scale {layer.scale:.4f}, zero point {layer.zero_point}")

# %% [markdown]
# (In `nniq` layers the lower end is $z_y$ in every case; that $z_y = 0$ is what the *observer* chooses. In code that you write by hand, $z_y$ may be anything.)
#
# ### Exercise 3.6: ReLU as a clamp
# *Difficulty 2 of 5 · 10 minutes · 2 points*
#
# Requantize and apply ReLU in one go, for any output zero point. `integer.requantize(sums, m0, n, zero_point, qmin=0, qmax=255)` does what exercise 3.4 does, and lets you choose the ends
# of the clamp; you may also write it out.


# %% nbgrader={"grade": false, "grade_id": "ex_3_6", "locked": false, "schema_version": 3, "solution": true, "task": false}
def requantize_relu(sums: Tensor, m0: Tensor, n: Tensor, y_zero: int) -> Tensor:
    """Codes of ReLU(y), where ``sums * m0 / 2**(31 + n)`` is y in steps of the output's scale.

    Parameters
    ----------
    sums : Tensor, int32, (rows, out_features)
    m0, n : Tensor, int64, (out_features,)
    y_zero : int
        Zero point of the output: the code of the real number 0.

    Returns
    -------
    Tensor, uint8, (rows, out_features)

    Example
    -------
    >>> m0, n = torch.tensor([2**30]), torch.tensor([0])  # 0.5
    >>> requantize_relu(torch.tensor([[-6], [-2], [0], [8]], dtype=torch.int32), m0, n, 3).flatten()
    tensor([3, 3, 3, 7], dtype=torch.uint8)
    """
    ### BEGIN SOLUTION
    return integer.requantize(sums, m0, n, y_zero, qmin=y_zero)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_3_6_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 3.6: run this cell.
import torch
import torch.ao.nn.intrinsic.quantized as nniq

from helpers import checks, integer, known_warnings, samples


@checks.isolated
def check_ex_3_6() -> None:
    known_warnings.hide()

    def differ(a: torch.Tensor, b: torch.Tensor) -> float:
        return (a.long() != b.long()).double().mean().item()

    def nearest(sums: torch.Tensor, m0: torch.Tensor, n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """sums * m0 / 2**(31 + n) rounded to the nearest, halves down and halves up: exact, in int64."""
        product, unit = sums.long() * m0, 2 ** (31 + n)
        below = torch.div(product, unit, rounding_mode="floor")
        rest = 2 * (product - below * unit)
        return below + (rest > unit), below + (rest >= unit)

    def cases(seed: int) -> list[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """What, sums, m0, n."""
        generator = torch.Generator().manual_seed(seed)
        sums = torch.randint(-9000, 9000, (300, 3), generator=generator).to(torch.int32)
        sums[:5] = 0
        m0, n = integer.fixed_point(torch.tensor([0.0131, 0.0577, 0.00091], dtype=torch.float64))
        loud = torch.tensor([[2**31 - 1], [-(2**31)], [0], [-1], [1]], dtype=torch.int32).expand(-1, 3).contiguous()
        wide = integer.fixed_point(torch.tensor([2.0**-29, 0.9999, 3.3], dtype=torch.float64))
        forms = [(f"sums that are {form}", odd, m0, n) for form, odd in samples.awkward(sums)]
        return [("sums of both signs", sums, m0, n), ("the largest sums of int32", loud, *wide), *forms]

    with checks.check("3.6", "your codes are those of nniq.LinearReLU, for zero points 0, 37, 128 and 255"):
        generator = torch.Generator().manual_seed(36)
        w_scales = torch.logspace(-3, -2, 8, dtype=torch.float64)
        w_codes = torch.randint(-127, 128, (8, 70), generator=generator).to(torch.int8)
        x_codes = torch.randint(0, 128, (120, 70), generator=generator).to(torch.uint8)
        bias = torch.randn(8, generator=generator)
        layer = nniq.LinearReLU(70, 8)
        zeros = torch.zeros(8, dtype=torch.int64)
        layer.set_weight_bias(torch._make_per_channel_quantized_tensor(w_codes, w_scales, zeros, 0), bias)
        arriving = torch._make_per_tensor_quantized_tensor(x_codes, 0.05, 61)
        steps = (bias.double() / 0.05 / w_scales).round().to(torch.int32)
        of_layer = ((x_codes.long() - 61) @ w_codes.long().T).to(torch.int32) + steps
        m0, n = integer.fixed_point(0.05 * w_scales / 0.04)
        for y_zero, (what, sums, m0, n) in [
            *((y_zero, ("a layer", of_layer, m0, n)) for y_zero in (37, 0, 128, 255)),
            *((y_zero, case) for case in cases(360) for y_zero in (90, 0, 255)),
        ]:
            low, high = nearest(sums, m0, n)
            values = high
            low, high = ((steps.clamp(min=0) + y_zero).clamp(max=255) for steps in (low, high))
            with (
                checks.untouched(sums=sums, m0=m0, n=n),
                integer.floats_made(requantize_relu) as floats,
            ):
                answer = requantize_relu(sums, m0, n, y_zero)
            assert not floats, f"your code makes floats ({floats[0]}): ReLU needs integers only."
            what = f"your tensor of codes for {what} and the zero point {y_zero}"
            checks.tensor(answer, sums.shape, what)
            checks.tensor(answer, sums.shape, what, torch.uint8)
            if sums is of_layer:
                layer.scale, layer.zero_point = 0.04, y_zero
                theirs = layer(arriving).int_repr()
                assert (high - theirs.long()).abs().max() <= 1 and differ(high, theirs) <= 0.01, (
                    "nniq.LinearReLU of this PyTorch returns other codes than exact arithmetic."
                )
            if ((answer == low) | (answer == high)).all():
                continue
            below = torch.div(sums.long() * m0, 2 ** (31 + n), rounding_mode="floor")
            mistakes = {
                "negative numbers are still there: real 0 is the code y_zero, not the code 0.": (values + y_zero).clamp(
                    0, 255
                ),
                "the zero point is missing after the ReLU: real 0 must become the code y_zero.": values.clamp(0, 255),
                "the clamp at 255 comes before the zero point is added: larger codes wrapped around.": (
                    (values.clamp(0, 255) + y_zero).to(torch.uint8)
                ),
                "ReLU is at the wrong end: the clamp cuts off the positive numbers.": (values + y_zero).clamp(
                    0, y_zero
                ),
                "codes below y_zero became 0; they must become y_zero, the code of the real 0.": torch.where(
                    values < 0, 0, (values + y_zero).clamp(0, 255)
                ),
                "the upper end of the codes is 255.": (values + y_zero).clamp(y_zero, max(127, y_zero)),
                "codes beyond 255 wrapped around when they became uint8: clamp at 255, too.": (
                    (values.clamp(min=0) + y_zero).to(torch.uint8)
                ),
                "negative codes wrapped around when they became uint8, before the clamp at y_zero: clamp first.": (
                    (values + y_zero).clamp(max=255).to(torch.uint8).clamp(min=y_zero)
                ),
                "codes wrapped around when they became uint8, before any clamp: clamp first.": (
                    (values + y_zero).to(torch.uint8).clamp(min=y_zero)
                ),
                "a shift cuts off: add 1 << (31 + n - 1) before it, so that it rounds to the nearest.": (
                    (below + y_zero).clamp(y_zero, 255)
                ),
                "ReLU acts where real 0 is the code 128, the middle: here it is the code y_zero.": (
                    (values + y_zero).clamp(128, 255)
                ),
            }
            fits = [
                sentence
                for sentence, wrong in mistakes.items()
                if min(differ(wrong, low), differ(wrong, high)) > 0 and differ(answer, wrong) <= 0.002
            ]
            assert len(fits) != 1, f"{what} is wrong: {fits[0]}"
            first = ((answer != low) & (answer != high)).nonzero()[0].tolist()
            raise AssertionError(
                f"{what} is not right: for the sum {sums[*first]}, m0 = {m0[first[1]]}, n = {n[first[1]]} it is {answer[*first]} and should be {high[*first]}."
            )
    ### BEGIN HIDDEN TESTS
    for y_zero in (0, 1, 90, 200, 254, 255):
        for what, sums, m0, n in cases(3060 + y_zero):
            with checks.untouched(sums=sums, m0=m0, n=n), integer.floats_made(requantize_relu) as floats:
                answer = requantize_relu(sums, m0, n, y_zero)
            low, high = ((steps.clamp(min=0) + y_zero).clamp(max=255) for steps in nearest(sums, m0, n))
            assert answer.dtype == torch.uint8 and not floats, "wrong dtype, or floats."
            assert answer.shape == sums.shape and ((answer == low) | (answer == high)).all(), f"wrong for {what}."
    ### END HIDDEN TESTS


check_ex_3_6()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Which code stands for the real number 0? No code may lie below it.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# It is the lower end of the clamp that changes, and it is the clamp *after* the zero point was added.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `integer.requantize(sums, m0, n, y_zero, qmin=…)`
# </details>

# %% [markdown]
# ## 3. How long may a sum be?
#
# An `int32` is not endless either. Beyond its ends a sum wraps around, and nobody complains:

# %% tags=["nbval-check-output"]
for length in (65_793, 65_794):
    ones = torch.full((1, length), 255, dtype=torch.int32)
    print(
        length, "products of 255 and -128 add up to", (ones @ torch.full((length, 1), -128, dtype=torch.int32)).item()
    )

# %% [markdown]
# One product more, and a very negative sum is positive. To be sure that this cannot happen, think of the **worst case**: every product as large as it can be, or every product as negative
# as it can be. With $B$ bits a sum may go from $-2^{B-1}$ to $2^{B-1} - 1$.
#
# By hand, for `uint8` times `int8` in 16 bits: the largest product is $255 \cdot 127 = 32385$, and 32767 has room for one of them. The most negative one is $255 \cdot (-128) = -32640$, and −32768 has room
# for one of these. So even *two* products may not fit in an `int16`.
#
# ### Exercise 3.7: the accumulator budget
# *Difficulty 2 of 5 · 15 minutes · 2 points*
#
# How many products may be added, whatever the codes are? Look at both ends, and at all four corners: which two codes make the largest product depends on their signs. (Where all products have the same sign, one of the ends cannot be reached at all.)


# %% nbgrader={"grade": false, "grade_id": "ex_3_7", "locked": false, "schema_version": 3, "solution": true, "task": false}
def longest_sum(x_min: int, x_max: int, w_min: int, w_max: int, bits: int) -> int:
    """How many products of an x code and a w code can be added in a signed integer of `bits` bits without overflow, at worst.

    Parameters
    ----------
    x_min, x_max, w_min, w_max : int
        Smallest and largest codes; at least one product is not 0.
    bits : int
        Width of the accumulator: it holds ``-2**(bits-1)`` to ``2**(bits-1) - 1``.

    Returns
    -------
    int

    Example
    -------
    >>> longest_sum(0, 255, -128, 127, 16)
    1
    >>> longest_sum(0, 255, -128, 127, 32)
    65793
    """
    ### BEGIN SOLUTION
    products = [x * w for x in (x_min, x_max) for w in (w_min, w_max)]
    lengths = []
    if max(products) > 0:
        lengths.append((2 ** (bits - 1) - 1) // max(products))
    if min(products) < 0:
        lengths.append(2 ** (bits - 1) // -min(products))
    return min(lengths)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_3_7_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 3.7: run this cell.
from helpers import checks


@checks.isolated
def check_ex_3_7() -> None:
    def fits(length: int, x: tuple[int, int], w: tuple[int, int], bits: int) -> bool:
        """Whether sums of `length` products stay in range, at both ends, by trying all corners."""
        corners = [length * a * b for a in x for b in w]
        return all(-(2 ** (bits - 1)) <= total < 2 ** (bits - 1) for total in corners)

    def longest(products: list[int], bits: int, floats: bool = False) -> int | None:
        """The answer if only these products could occur; None if none of them is large or small enough to end a sum."""
        top = 2 ** (bits - 1)
        ends = [(top - 1, p) if p > 0 else (top, -p) for p in products if p]
        return min((int(end / p) if floats else end // p for end, p in ends), default=None)

    def mistakes(x: tuple[int, int], w: tuple[int, int], bits: int) -> dict[str, int | None]:
        """A sentence for each known mistake, and the number that it gives for these ranges."""
        top, products = 2 ** (bits - 1), [a * b for a in x for b in w]
        widest, right = max(map(abs, products)), longest(products, bits)
        mean = abs(sum(x) / 2) * (abs(w[0]) + abs(w[1])) / 2
        return {
            "The accumulator has a sign: it ends at 2**(bits-1) - 1.": (2 * top - 1) // widest,
            "The accumulator has a sign: with bits bits it ends at 2**(bits-1) - 1, not at 2**bits - 1.": longest(
                products, bits + 1
            ),
            "You looked at the product of the two largest codes alone: do not forget -128, which has no positive partner.": longest(
                [x[1] * w[1]], bits
            ),
            "You looked at two corners, min times min and max times max: a small code times a large one may be worse.": longest(
                [x[0] * w[0], x[1] * w[1]], bits
            ),
            "You looked at the positive end only: the most negative product makes the sums that reach the negative end.": longest(
                [max(max(products), 0)], bits
            ),
            "You looked at the negative end only: the largest product counts against 2**(bits-1) - 1.": longest(
                [min(min(products), 0)], bits
            ),
            "The two ends are not alike: the most negative product counts against 2**(bits-1), not against 2**(bits-1) - 1.": (
                (top - 1) // widest
            ),
            "The two ends are not alike: the largest product counts against 2**(bits-1) - 1, not against 2**(bits-1).": (
                top // widest
            ),
            "That is the average case; a sum must fit in the worst case.": int((top - 1) // mean) if mean else None,
            "A float has 53 bits: divide integers with //, not with / and int().": longest(products, bits, floats=True),
            "Where one product alone is too large, the answer is 0, not 1.": max(right, 1),
            "The products wrapped around in 32 bits, as NumPy's do in int32: multiply Python's integers.": longest(
                [(p + 2**31) % 2**32 - 2**31 for p in products], bits
            ),
            "That is one too many.": right + 1,
            "That is one too few: a sum that ends exactly at the end of the range is still right.": right - 1,
        }

    with checks.check("3.7", "your longest sums fit, and one product more does not, for sixteen pairs of ranges"):
        answers = {}
        for x, w, bits in [
            ((0, 255), (-128, 127), 32),
            ((0, 255), (-127, 127), 32),
            ((-128, 127), (-128, 127), 32),
            ((0, 255), (-128, 127), 16),
            ((0, 127), (-128, 127), 16),
            ((0, 127), (-127, 127), 16),
            ((0, 15), (-8, 7), 16),
            ((-8, 7), (-8, 7), 8),
            ((0, 256), (-128, 0), 16),
            ((-100, -20), (-90, -10), 20),
            ((-100, 3), (5, 90), 20),
            ((-7, 200), (-150, 9), 24),
            ((0, 1), (0, 1), 64),
            ((-1, 0), (0, 1), 64),
            ((0, 255), (-128, 127), 15),
            ((0, 65535), (-65536, 65535), 64),
        ]:
            answer = longest_sum(*x, *w, bits)
            what = f"for codes {x[0]}…{x[1]} and {w[0]}…{w[1]} in {bits} bits your answer"
            checks.given(answer, what)
            assert isinstance(answer, int) and not isinstance(answer, bool), (
                f"{what} is {answer!r}, of type {type(answer).__name__}; it should be an int (divide with //)."
            )
            answers[x, w, bits] = answer
        for (x, w, bits), answer in answers.items():
            if fits(answer, x, w, bits) and not fits(answer + 1, x, w, bits):
                continue
            known = [  # a mistake must explain every answer, not this one alone
                sentence
                for sentence in mistakes(x, w, bits)
                if all(mistakes(*case)[sentence] in (None, found) for case, found in answers.items())
            ]
            raise AssertionError(
                f"for codes {x[0]}…{x[1]} and {w[0]}…{w[1]} in {bits} bits your answer is {answer}; "
                + (
                    "a sum of that many products can overflow."
                    if not fits(answer, x, w, bits)
                    else "one product more would still fit."
                )
                + (f" {known[0]}" if len(known) == 1 else "")
            )
    ### BEGIN HIDDEN TESTS
    import random

    chance = random.Random(307)
    for _ in range(300):
        x = sorted(chance.sample(range(-300, 300), 2))
        w = sorted(chance.sample(range(-300, 300), 2))
        bits = chance.choice([16, 20, 24, 32, 48])
        if not any(a * b for a in x for b in w):
            continue
        answer = longest_sum(*x, *w, bits)
        assert isinstance(answer, int), "the answer should be an int."
        assert fits(answer, x, w, bits) and not fits(answer + 1, x, w, bits), "wrong for other ranges."
    assert longest_sum(-256, 100, -128, 300, 16) == 0, "one product may be too large."
    assert longest_sum(-3, 65537, -65536, 70000, 48) == 30677, "products may be longer than 32 bits."
    assert longest_sum(0, 1, 0, 1, 64) == 2**63 - 1, "divide integers with //, not floats."
    assert longest_sum(-1, 0, 0, 1, 64) == 2**63, "the negative end reaches one further."
    ### END HIDDEN TESTS


check_ex_3_7()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Of two ranges, only the four products of their ends matter. Which of them is the largest, which the most negative?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# Count how often the largest product fits into `2**(bits-1) - 1` (if it is positive), how often the most negative one fits into `2**(bits-1)` (if it is negative), and take the smaller count.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `products = [x * w for x in (…) for w in (…)]`; then `(2 ** (bits - 1) - 1) // max(products)` and `2 ** (bits - 1) // -min(products)`.
# </details>

# %% [markdown]
# ### The instruction with the short memory
#
# In 32 bits there is room for 65,793 products. That is more than most Linear layers have inputs, but not more than all: the last projection of each feed-forward network of PaLM 540B sums
# $4 \cdot 18{,}432 = 73{,}728$ products ([Chowdhery et al. 2022](https://arxiv.org/abs/2204.02311)). There the worst case does not fit any more, and somebody must show that it cannot happen. But why did 16 bits ever matter? Because of *how* PC
# processors have multiplied 8-bit numbers for many years. Their
# instruction (`vpmaddubsw`) takes **two** neighbouring activations and **two** weights, and writes the sum of both products into **16** bits. A sum that does not fit is not
# wrapped around but cut off at the end, at 32767 or −32768: it **saturates**. Only afterwards are the pairs added in 32 bits.
#
# You have just computed that two products of 8-bit codes may not fit, and that two of a 7-bit and an 8-bit code always do. Here is the instruction in NumPy, so that everyone can run it:


# %%
def sums_by_pairs(x_codes: np.ndarray, w_codes: np.ndarray) -> tuple[np.ndarray, float]:
    """Sums as the older instruction makes them: each pair is cut off at 16 bits. Also the share of pairs that were cut off."""
    sums, cut = np.zeros((len(x_codes), len(w_codes)), dtype=np.int64), 0
    for k in range(0, x_codes.shape[1], 2):
        pair = x_codes[:, k, None] * w_codes[:, k] + x_codes[:, k + 1, None] * w_codes[:, k + 1]  # (rows, out_features)
        short = np.clip(pair, -(2**15), 2**15 - 1)
        sums, cut = sums + short, cut + int((short != pair).sum())
    return sums, cut / (sums.size * x_codes.shape[1] / 2)


two, weights_of_two = np.array([[255, 255]]), np.array([[127, 127], [100, -100], [-128, -128]])
print("exact      ", (two @ weights_of_two.T)[0].tolist())
print("in 16 bits ", sums_by_pairs(two, weights_of_two)[0][0].tolist())

# %% [markdown]
# Now the real layer of section 1: its weight with one scale a row, and the unseen inputs once with 8 bits and once with 7. Four outputs each: with exact sums and with the instruction's.

# %%
query_weight, query_bias = query.weight.detach().double(), query.bias.detach().double()
scales = query_weight.abs().amax(dim=1) / 127.5  # PyTorch's way, which uses -128, too
weight_ints = (query_weight / scales[:, None]).round().clamp(-128, 127).numpy().astype(np.int32)
float_output = query_weight.numpy() @ unseen.double().numpy().T + query_bias[:, None].numpy()  # (out_features, rows)

rows, pairs_of = [], {}
for bits in (8, 7):
    step, zero = affine.qparams(seen.min().item(), seen.max().item(), 0, 2**bits - 1)
    ints = affine.quantize(unseen, step, zero, 0, 2**bits - 1).numpy()
    short_sums, share = sums_by_pairs(ints, weight_ints)
    found = {}
    for name, total in [("exact", ints @ weight_ints.T), ("in pairs", short_sums)]:
        rebuilt = (total - zero * weight_ints.sum(axis=1)) * (step * scales.numpy()) + query_bias.numpy()
        found[name] = np.linalg.norm(rebuilt.T - float_output) / np.linalg.norm(float_output)
    rows.append(
        {
            "activations": f"{bits} bits",
            "pairs cut off": f"{share:.3%}",
            "relative error, exact sums": f"{found['exact']:.4f}",
            "relative error, 16-bit pairs": f"{found['in pairs']:.4f}",
        }
    )
    some = ints[:48]
    pairs_of[bits] = some[:, None, 0::2] * weight_ints[:, 0::2] + some[:, None, 1::2] * weight_ints[:, 1::2]
tables.show(rows)

fig, axes = plots.figure(columns=2, width=10, height=2.5)
for ax, bits in zip(axes, (8, 7), strict=True):
    ax.hist(pairs_of[bits].flatten(), bins=np.arange(-45_000, 45_001, 600), log=True, color=plots.BLUE)
    for edge in (-(2**15), 2**15):
        ax.axvline(edge, color=plots.RED, linestyle="--", linewidth=1)
    ax.set_title(f"{bits}-bit activations")
    ax.set_xlabel("sum of a pair (dashed: ends of int16)")
axes[0].set_ylabel("how many (log)")
plots.show(
    fig,
    caption="Sums of two products in the real layer. What lies beyond a dashed line is cut off by the older instruction.",
    alt="Two histograms with logarithmic axes. With 8-bit activations the tails go beyond the dashed lines at plus and minus 32,768; with 7-bit "
    "activations the histogram is half as wide and stays within them.",
)

# %% [markdown]
# It takes very few pairs. A pair that is cut off can be wrong by thousands of steps, always towards zero, and the error of the whole layer is several times as large. With 7 bits the rulers
# are twice as coarse, which costs something, but **nothing** can be cut off. That is a fair price, and it is known in advance.
#
# The layer matters, too: where activations come out of a ReLU or GELU, most codes are small, and hardly a pair is cut off. The inputs here come from a LayerNorm: they have both signs, so
# their zero point lies in the middle, and a typical code is near 128.
#
# ### Now for real
#
# Newer processors have instructions called **VNNI**, which add four products directly in 32 bits. The libraries use them where they exist, and can be told not to. So we start a new Python with the newer
# instructions switched off, by two environment variables, give it the same layer, and ask for four numbers. One of them compares its output codes with those that *our NumPy emulation*
# predicts.

# %% tags=["varies"]
CHILD = """
import json, sys
import torch
import torch.ao.quantization as tq
from torch import nn
from helpers import int8

given = torch.load(sys.argv[1])
layer = nn.Linear(256, 256)
layer.load_state_dict(given["layer"])
found = {}
with torch.no_grad():
    exact = layer(given["unseen"])
    for bits, engine in [(8, "onednn"), (7, "x86")]:
        torch.backends.quantized.engine = engine
        output = int8.static_int8(nn.Sequential(layer), [given["seen"]])(given["unseen"])
        found[f"{bits} bits, {engine}"] = ((output - exact).norm() / exact.norm()).item()
    x = torch._make_per_tensor_quantized_tensor(given["codes"], given["step"], given["zero"])
    zeros = torch.zeros(256, dtype=torch.int64)
    weight = torch._make_per_channel_quantized_tensor(given["weight"], given["scales"], zeros, 0)
    packed = torch.ops.quantized.linear_prepack(weight, layer.bias)
    output = torch.ops.quantized.linear(x, packed, given["y_scale"], given["y_zero"]).int_repr()
    found["like exact sums"] = (output == given["by exact sums"]).float().mean().item()
    found["like the emulation"] = (output == given["by pairs"]).float().mean().item()
torch.manual_seed(0)
a, b = torch.randint(-128, 128, (64, 256), dtype=torch.int8), torch.randint(-128, 128, (256, 64), dtype=torch.int8)
found["_int_mm"] = (torch._int_mm(a, b).long() - a.long() @ b.long()).abs().max().item()
print(json.dumps(found))
"""
CAPS = {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def output_codes(total: np.ndarray, step: float, zero: int, y_scale: float, y_zero: int) -> Tensor:
    """Codes of the layer's outputs from the sums of raw products."""
    steps = (query_bias.numpy() / (step * scales.numpy())).round()
    values = (total - zero * weight_ints.sum(axis=1) + steps) * (step * scales.numpy() / y_scale)
    return torch.from_numpy(np.clip(values.round() + y_zero, 0, 255).astype(np.uint8))


def ask_child(switched_off: bool) -> dict[str, float]:
    """Run CHILD in a new Python on the layer of section 1."""
    step, zero = affine.qparams(seen.min().item(), seen.max().item(), 0, 255)
    y_scale, y_zero = affine.qparams(float(float_output.min()), float(float_output.max()), 0, 255)
    ints = affine.quantize(unseen, step, zero, 0, 255).numpy()
    given = {"layer": query.state_dict(), "seen": seen, "unseen": unseen, "scales": scales, "y_scale": y_scale}
    given |= {"codes": torch.from_numpy(ints).to(torch.uint8), "step": step, "zero": zero, "y_zero": y_zero}
    given |= {"weight": torch.from_numpy(weight_ints).to(torch.int8)}
    given |= {"by exact sums": output_codes(ints @ weight_ints.T, step, zero, y_scale, y_zero)}
    given |= {"by pairs": output_codes(sums_by_pairs(ints, weight_ints)[0], step, zero, y_scale, y_zero)}
    here = {name: value for name, value in os.environ.items() if name not in CAPS}
    here["PYTHONPATH"] = str(Path(int8.__file__).parent.parent)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(given, Path(folder) / "layer.pt")
        command = [sys.executable, "-c", CHILD, str(Path(folder) / "layer.pt")]
        done = subprocess.run(command, env=here | (CAPS if switched_off else {}), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the new Python stopped: {done.stderr[-500:]}")
    return json.loads(done.stdout)


if platform.machine().lower() in ("x86_64", "amd64") and {"onednn", "x86"} <= set(int8.engines()):
    newest, older = ask_child(switched_off=False), ask_child(switched_off=True)
    labels = {
        "8 bits, onednn": "8-bit activations (onednn): relative error",
        "7 bits, x86": "7-bit activations (x86): relative error",
        "like exact sums": "8 bits: share of codes as with exact sums",
        "like the emulation": "8 bits: share of codes as our emulation predicts",
        "_int_mm": "torch._int_mm: largest error of a sum of 256 products",
    }
    tables.show(
        [
            {"measured": name, "this processor": f"{newest[key]:.5g}", "newer instructions off": f"{older[key]:.5g}"}
            for key, name in labels.items()
        ]
    )
else:
    print(
        "This computer has no x86 processor (or its PyTorch no engine for one), so there is no such instruction here that could"
    )
    print("be switched on or off. The emulation above shows what it does.")

# %% [markdown]
# On the computer that this course was built on, a processor with VNNI, the left column shows exact sums, and the right column shows the same weights and the same inputs, with a far larger error at 8 bits. Nearly all
# codes are then those that our NumPy lines predict. `torch._int_mm`, the product that torchao's dynamic int8 is made of, is not exact any more. And the error of the 7-bit model has not
# changed. (If your two columns are alike, your processor has no VNNI. Then you have just seen what an 8-bit model does to you, and to your users.)
#
# So that is `reduce_range`. PyTorch's `x86` and `fbgemm` qconfigs give away one bit of every activation, since nobody knows on which processor a model will run. The `onednn` qconfig does not. Choose it only if
# you know that VNNI is there. And one more lesson: **an int8 model that is right on your computer may be wrong on another one**, without any message. Run your evaluation where the model will run.

# %% [markdown]
# ## 4. What does it weigh?
#
# "Int8 is four times smaller" is true of the codes. A layer also keeps scales, zero points, a bias, and sometimes the scale of its output. How much is that?
# The next cell looks into a layer with 64 inputs and 24 outputs, in six versions, and counts the bytes of every array that is saved. (Names and the file format come on top. They do
# not grow with the layer.)


# %% tags=["nbval-check-output"]
def held_bytes(layer: nn.Module) -> dict[str, int]:
    """Bytes of what a model with one Linear layer saves, by kind."""
    held: dict[str, int] = {}

    def add(kind: str, count: int) -> None:
        held[kind] = held.get(kind, 0) + count

    for name, value in layer.state_dict().items():
        for part in value if isinstance(value, tuple) else (value,):
            if not isinstance(part, Tensor):
                continue  # the name of a dtype, or a bias that is not there
            if part.is_quantized:
                add("codes", part.int_repr().nbytes)
                per_row = part.qscheme() == torch.per_channel_affine
                # One scale for the whole tensor is a double and a 64-bit integer.
                add("scales", part.q_per_channel_scales().nbytes if per_row else 8)
                add("zero points", part.q_per_channel_zero_points().nbytes if per_row else 8)
            elif hasattr(part, "qdata"):  # torchao's tensors
                add("codes", part.qdata.nbytes)
                add("scales", part.scale.nbytes)
                add("zero points", part.zero_point.nbytes)
            elif name.endswith(("scale", "zero_point")):
                add("output scale, zero point", part.nbytes)
            else:
                add("float weights" if name.endswith("weight") else "bias", part.nbytes)
    return held


def static_layer(linear: nn.Linear, rows: Tensor, per_channel: bool = True) -> nn.Module:
    """A static int8 copy between stubs; one weight scale a row, or one for all, on every engine."""
    wrapped = tq.QuantWrapper(copy.deepcopy(linear)).eval()
    weight = tq.default_per_channel_weight_observer if per_channel else tq.default_weight_observer
    wrapped.qconfig = tq.QConfig(tq.get_default_qconfig(torch.backends.quantized.engine).activation, weight)
    watched_layer = tq.prepare(wrapped)
    with torch.no_grad():
        watched_layer(rows)
    return tq.convert(watched_layer)


def torchao_layer(linear: nn.Linear, config: object) -> nn.Module:
    """A copy whose weight is one of torchao's tensors."""
    copied = nn.Sequential(copy.deepcopy(linear)).eval()
    ao.quantize_(copied, config)
    return copied


def six_versions(linear: nn.Linear) -> dict[str, nn.Module]:
    rows = torch.randn(256, linear.in_features, generator=torch.Generator().manual_seed(4))
    four_bits = ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(32))
    return {
        "float": nn.Sequential(linear),
        "dynamic": int8.dynamic_int8(nn.Sequential(linear)),
        "static, one scale": static_layer(linear, rows, per_channel=False).module,
        "static, one scale a row": static_layer(linear, rows).module,
        "torchao int8 weights": torchao_layer(linear, ao.Int8WeightOnlyConfig()),
        "torchao int4 weights, groups of 32": torchao_layer(linear, four_bits),
    }


torch.manual_seed(4)
narrow = nn.Linear(64, 24)
for name, layer in six_versions(narrow).items():
    held = held_bytes(layer)
    print(f"{name:35} {sum(held.values()):5} bytes:", ", ".join(f"{kind} {count}" for kind, count in held.items()))

# %% [markdown]
# Read it with a pencil. 64 × 24 codes are 1,536 bytes, and a float bias is 4 × 24 = 96 in every version. Then:
#
# - One scale a row: 24 scales take 192 bytes, so **8** bytes each. PyTorch keeps them as `float64`, and each zero point as `int64`, although all of these zero points are 0.
# - The output scale is a `float32`, the output zero point an `int64`: 12 bytes. A *dynamic* layer saves both, too, and never reads them: its class inherits them.
# - torchao keeps `float32` scales and `int8` zero points.
# - torchao's 4-bit codes take as many bytes as its 8-bit codes: with this configuration each has a byte of its own.
#
# Two 4-bit codes can share a byte, and there are ways to it on a CPU. torchao has a prototype for that, with a kernel that reads the packed codes (a prototype may change or go). And PyTorch has an operator
# that was made for the rows of embeddings, but a group of 32 weights can be such a row. Behind each row it stores a scale and an offset, in `float16`:

# %% tags=["nbval-check-output"]
groups = narrow.weight.detach().reshape(-1, 32)  # 48 groups: two for each of 24 rows
packed = torch.ops.quantized.embedding_bag_4bit_prepack(groups)
print(len(groups), "groups of 32 become", tuple(packed.shape), packed.dtype, "->", packed.nbytes, "bytes")
print("a group: 32 / 2 bytes of codes, and", packed.shape[1] - 16, "bytes for scale and offset")

try:
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    square = nn.Sequential(nn.Linear(256, 256))
    ao.quantize_(square, PrototypeInt4WeightOnlyConfig(group_size=32))
    print("torchao's prototype keeps the codes of 256 x 256 weights in", square[0].weight.qdata.nbytes, "bytes")
except (ImportError, RuntimeError, NotImplementedError) as error:  # another torchao, or a processor without the kernel
    print("torchao's prototype does not run here:", type(error).__name__)

# %% [markdown]
# ### Exercise 3.9: the bytes of a layer
# *Difficulty 2 of 5 · 20 minutes · 2 points*
#
# Compute the bytes from the shape and the scheme alone. The layer maps $d_\text{in}$ numbers to $d_\text{out}$; its weight has $d_\text{out}$ rows.
#
# | variant | codes | scales and zero points | besides |
# |---|---|---|---|
# | `"float"` | none: `float32` weights | none | bias |
# | `"per tensor"` | a byte each | one `float64` scale, one `int64` zero point | bias; output scale `float32` and zero point `int64` |
# | `"per channel"` | a byte each | a `float64` and an `int64` for each row | bias; output scale and zero point |
# | `"torchao int8"` | a byte each | a `float32` and an `int8` for each row | bias |
# | `"groups, unpacked"` | a byte each (4 bits used) | a `float32` and an `int8` for each group of each row | bias |
# | `"groups, packed"` | two in a byte | a `float16` scale and a `float16` offset for each group of each row | bias |
#
# Without a bias, nothing is counted for it. (The engine qnnpack then keeps a bias of zeros. Leave that out.)
#
# By hand, 64 inputs, 24 outputs, "groups, packed", groups of 32: $64 \cdot 24 / 2 = 768$ bytes of codes, $24 \cdot 2$ groups with 4 bytes each are 192, the bias is 96. Together 1,056.


# %% nbgrader={"grade": false, "grade_id": "ex_3_9", "locked": false, "schema_version": 3, "solution": true, "task": false}
def linear_bytes(d_in: int, d_out: int, variant: str, bias: bool = True, group: int = 32) -> int:
    """Bytes that a Linear layer keeps, from its shape and scheme.

    Parameters
    ----------
    d_in, d_out : int
        Inputs and outputs; `d_in` is a multiple of `group`, and `group` is even.
    variant : str
        One of the table: "float", "per tensor", "per channel", "torchao int8", "groups, unpacked", "groups, packed".
    bias : bool
        Is there a float32 bias?
    group : int
        Weights of a row that share a scale; only the two last variants use it.

    Returns
    -------
    int
        Bytes.

    Example
    -------
    >>> linear_bytes(64, 24, "groups, packed")
    1056
    """
    ### BEGIN SOLUTION
    weights, groups_in_all = d_in * d_out, d_out * (d_in // group)
    beside = {
        "float": 4 * weights,
        "per tensor": weights + 16 + 12,
        "per channel": weights + 16 * d_out + 12,
        "torchao int8": weights + 5 * d_out,
        "groups, unpacked": weights + 5 * groups_in_all,
        "groups, packed": weights // 2 + 4 * groups_in_all,
    }
    return beside[variant] + (4 * d_out if bias else 0)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_3_9_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 3.9: run this cell.
import copy

import torch
import torch.ao.quantization as tq
import torchao.quantization as ao
from torch import nn

from helpers import checks, int8


@checks.isolated
def check_ex_3_9() -> None:
    def tensors(value: object) -> list[torch.Tensor]:
        """Every plain array inside what a state_dict holds."""
        if isinstance(value, tuple):
            return [array for part in value for array in tensors(part)]
        if not isinstance(value, torch.Tensor):
            return []
        if value.is_quantized:
            if value.qscheme() == torch.per_channel_affine:
                return [value.int_repr(), value.q_per_channel_scales(), value.q_per_channel_zero_points()]
            return [value.int_repr(), torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)]
        if hasattr(value, "qdata"):
            return [value.qdata, value.scale, value.zero_point]
        return [value]

    def real_bytes(d_in: int, d_out: int, variant: str, bias: bool, group: int) -> int:
        """Bytes of a real layer of PyTorch or torchao."""
        linear = nn.Linear(d_in, d_out)  # qnnpack would keep a bias of zeros where there is none
        no_bias = 0 if bias else linear.bias.nbytes
        if variant == "groups, packed":
            rows = torch.ops.quantized.embedding_bag_4bit_prepack(linear.weight.detach().reshape(-1, group))
            return rows.nbytes + linear.bias.nbytes - no_bias
        model = nn.Sequential(linear).eval()
        if variant == "per tensor":
            model = int8.dynamic_int8(model)
        elif variant == "per channel":
            model.qconfig = tq.QConfig(tq.default_observer, tq.default_per_channel_weight_observer)
            watched = tq.prepare(model)
            watched(torch.randn(8, d_in))
            model = tq.convert(watched)
        elif variant != "float":
            intx = ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(group))
            ao.quantize_(model, ao.Int8WeightOnlyConfig() if variant == "torchao int8" else intx)
        arrays = [array for value in model.state_dict().values() for array in tensors(value)]
        return sum(array.nbytes for array in arrays) - no_bias

    with checks.check("3.9", "your bytes are those of the real layers, in six variants, to the last byte"):
        for d_in, d_out, bias, group in [
            (128, 96, True, 32),
            (96, 44, False, 16),
            (256, 10, True, 128),
            (64, 192, True, 64),
            (48, 48, True, 16),
        ]:
            n, b, g = d_in * d_out, 4 * d_out if bias else 0, d_out * (d_in // group)
            across = d_in * max(d_out // group, 1)  # groups along the outputs
            row_of_bias = "the bias has one number for each output, not for each input."
            along = "a group is a part of a row, along the inputs: d_in // group of them in each of the d_out rows."
            no_bias = "bias=False: there is no bias to count." if not bias else "the bias was forgotten."
            a_byte = "the bias stays float32: 4 bytes each."
            forgotten = "the scales and zero points were forgotten."
            known = {
                "float": {"that is one byte a weight: float32 takes 4.": n + b},
                "per tensor": {
                    forgotten: n + 12 + b,
                    "the output scale and zero point were forgotten.": n + 16 + b,
                    "the scale and zero point, and those of the output, were forgotten.": n + b,
                    "the scale is a float64, the zero point an int64: 8 bytes each.": n + 8 + 12 + b,
                },
                "per channel": {
                    forgotten: n + 12 + b,
                    "the scales, and the output's scale and zero point, were forgotten.": n + b,
                    "the output scale and zero point were forgotten.": n + 16 * d_out + b,
                    "each row has a zero point, too, an int64, although it is 0.": n + 8 * d_out + 12 + b,
                    "PyTorch keeps these scales as float64, not float32.": n + 12 * d_out + 12 + b,
                    "there is a scale for each row (output), not for each input.": n + 16 * d_in + 12 + b,
                    "all rows share one output scale and zero point; you counted them for each row.": n
                    + 28 * d_out
                    + b,
                },
                "torchao int8": {
                    forgotten: n + b,
                    "each row has a zero point, too, of one byte.": n + 4 * d_out + b,
                    "torchao's scales are float32, its zero points int8.": n + 16 * d_out + b,
                    "there is a scale for each row (output), not for each input.": n + 5 * d_in + b,
                },
                "groups, unpacked": {
                    "the overhead of the groups was forgotten: each group has a scale and a zero point.": n + b,
                    "there is a scale for each group of each row, not one a row.": n + 5 * d_out + b,
                    "each of the d_out rows has d_in // group groups; you counted those of one row.": n
                    + 5 * (d_in // group)
                    + b,
                    "each group has a zero point, too, of one byte.": n + 4 * g + b,
                    along: n + 5 * across + b,
                    "a scale is a float32, a zero point an int8: 5 bytes a group, not 16.": n + 16 * g + b,
                    "unpacked means a byte for each code, although only 4 bits are used.": n // 2 + 5 * g + b,
                },
                "groups, packed": {
                    "the overhead of the groups was forgotten: each group has a scale and an offset.": n // 2 + b,
                    "there is a scale for each group of each row, not one a row.": n // 2 + 4 * d_out + b,
                    "each of the d_out rows has d_in // group groups; you counted those of one row.": n // 2
                    + 4 * (d_in // group)
                    + b,
                    "each group has an offset, too, a float16.": n // 2 + 2 * g + b,
                    along: n // 2 + 4 * across + b,
                    "scale and offset are float16 here: 4 bytes a group, not 5.": n // 2 + 5 * g + b,
                    "scale and offset are float16 here: 4 bytes a group, not 8.": n // 2 + 8 * g + b,
                    "packed means two codes in a byte.": n + 4 * g + b,
                },
            }
            for variant, mistakes in known.items():
                expected = real_bytes(d_in, d_out, variant, bias, group)
                what = f'your number for linear_bytes({d_in}, {d_out}, "{variant}", bias={bias}, group={group})'
                answer = linear_bytes(d_in, d_out, variant, bias, group)
                checks.given(answer, what)
                assert isinstance(answer, int) and not isinstance(answer, bool), (
                    f"{what} is {answer!r}, of type {type(answer).__name__}; bytes are whole numbers, and it should be an int (divide with //)."
                )
                mistakes = mistakes | {
                    row_of_bias: expected - b + 4 * d_in if bias else -1,
                    a_byte: expected - b + b // 4 if bias else -1,
                }
                if variant in ("float", "per tensor"):
                    mistakes[no_bias] = expected - b if bias else expected + 4 * d_out
                checks.number(answer, expected, what, mistakes={k: float(v) for k, v in mistakes.items()}, rtol=1e-9)
        defaults = linear_bytes(64, 24, "groups, packed"), linear_bytes(64, 24, "float")
        assert defaults == (real_bytes(64, 24, "groups, packed", True, 32), real_bytes(64, 24, "float", True, 32)), (
            f'linear_bytes(64, 24, "groups, packed") and "float" without further arguments are {defaults}; with bias=True and group=32 they are others.'
        )
        large = linear_bytes(65536, 65536, "float", bias=False)
        assert large == 4 * 65536**2, (
            f'linear_bytes(65536, 65536, "float", bias=False) is {large}; expected is {4 * 65536**2}, which takes more than 32 bits.'
        )
    ### BEGIN HIDDEN TESTS
    kinds = ["float", "per tensor", "per channel", "torchao int8", "groups, unpacked", "groups, packed"]
    for d_in, d_out, bias, group in [
        (128, 33, True, 64),
        (32, 7, False, 32),
        (320, 65, True, 16),
        (512, 2, False, 64),
        (80, 80, True, 16),
    ]:
        for variant in kinds:
            answer = linear_bytes(d_in, d_out, variant, bias=bias, group=group)
            assert type(answer) is int, "the answer should be an int."
            assert answer == real_bytes(d_in, d_out, variant, bias, group), (
                f"wrong for {d_in} inputs, {d_out} outputs, {variant}."
            )
    assert linear_bytes(2**17, 2**16, "groups, packed", bias=False, group=64) == 2**32 + 2**29, (
        "wrong for a large layer."
    )
    assert linear_bytes(64, 24, "groups, unpacked") == real_bytes(64, 24, "groups, unpacked", True, 32), (
        "wrong defaults."
    )
    ### END HIDDEN TESTS


check_ex_3_9()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Every variant is a sum: codes, something for each row or group, something once, and the bias. Which parts grow with what?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# float64 and int64 take 8 bytes, float32 4, float16 2, int8 1. So a row of "per channel" costs 16 bytes beside its codes, a row of "torchao int8" 5, a packed group 4.
# There are `d_out * (d_in // group)` groups.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# For example: "per channel" is `d_in * d_out + 16 * … + 12`, "groups, packed" is `d_in * d_out // 2 + 4 * …`; a bias adds `4 * d_out`.
# </details>

# %% [markdown]
# ### Bits per weight
#
# Divide by the number of weights, and the schemes can be compared. This counts everything that is kept:

# %% tags=["nbval-check-output"]
rows = []
for width in (32, 64, 256, 1024):
    torch.manual_seed(width)
    linear = nn.Linear(width, width)
    kept = {name: sum(held_bytes(layer).values()) for name, layer in six_versions(linear).items()}
    four_bit_rows = torch.ops.quantized.embedding_bag_4bit_prepack(linear.weight.detach().reshape(-1, 32))
    kept["4 bits, packed, groups of 32"] = four_bit_rows.nbytes + linear.bias.nbytes
    rows.append({"width": width} | {name: f"{8 * count / width**2:.2f}" for name, count in kept.items()})
tables.show(rows)

# %% [markdown]
# The overhead for each *row* shrinks as rows get longer. The overhead for each *group* does not: 4 bytes for 32 weights are one more bit for each weight, at any width. "4 bits in groups of 32" are 5.
#
# > **The book says:** the dynamic layer has a more memory-intensive implementation than the static one.
# >
# > **What happens:** count what both keep, with one weight scale each, and what flows between two layers.

# %% tags=["nbval-check-output"]
torch.manual_seed(44)
wide, rows_in = nn.Linear(1024, 1024), torch.randn(128, 1024)
static_wide, dynamic_wide = static_layer(wide, rows_in, per_channel=False), int8.dynamic_int8(nn.Sequential(wide))
print("kept by the static layer: ", sum(held_bytes(static_wide.module).values()), "bytes")
print("kept by the dynamic layer:", sum(held_bytes(dynamic_wide).values()), "bytes")
same_codes = torch.equal(static_wide.module.weight().int_repr(), dynamic_wide[0].weight().int_repr())
print("the same int8 codes:      ", same_codes)
with torch.no_grad():
    print(
        "128 rows leave the static layer as",
        static_wide.module(static_wide.quant(rows_in)).int_repr().nbytes,
        "bytes,",
        end=" ",
    )
    print("the dynamic one as", dynamic_wide(rows_in).nbytes)

# %% [markdown]
# > **What is true:** both keep the same bytes. But a dynamic layer returns float32, so what flows from layer to layer is four times as large. For a batch of a few rows that is little beside the
# > weights. For thousands of rows it is not.

# %% [markdown]
# ## 5. Where does int8 win?
#
# Two claims about time are popular: "int8 is faster", and, in the book, "int8 takes longer". Both leave out everything that matters: the width of the layer, the rows in a batch,
# the threads, and the kernel. So draw the map. For four widths, three batch sizes, one and two threads, five versions of a square layer take turns with the float layer, in one process
# (`latency.compare_each`; the median of several turns). Below 1, int8 is the faster one. A ratio that scatters too much on your computer is not reported: "?" means that it is not known.
#
# "Static, core" gets a tensor that is quantized already and returns one: a layer inside an int8 network. "Static, with stubs" also pays for the way in and out.


# %% tags=["varies"]
def gaussian(width: int) -> nn.Linear:
    """Weights like trained ones: not uniform."""
    linear = nn.Linear(width, width).eval()
    nn.init.normal_(linear.weight, std=width**-0.5, generator=torch.Generator().manual_seed(width))
    return linear


widths, batches = (64, 256, 1024, 2048), (1, 16, 128)
thread_counts = (1, 2) if (os.cpu_count() or 1) > 1 else (1,)
names = ("static, core", "static, with stubs", "dynamic", "torchao weight-only", "torchao dynamic")
measured = []  # one row for each cell of the map that is known
costs = {}  # bytes and error of a variant at a width
generator = torch.Generator().manual_seed(5)
for width in widths:
    linear, x = gaussian(width), torch.randn(128, width, generator=generator)
    stubbed = int8.static_int8(linear, [torch.randn(256, width, generator=generator)])
    candidates = {
        "static, with stubs": stubbed,
        "dynamic": int8.dynamic_int8(nn.Sequential(linear)),
        "torchao weight-only": torchao_layer(linear, ao.Int8WeightOnlyConfig()),
        "torchao dynamic": torchao_layer(linear, ao.Int8DynamicActivationInt8WeightConfig()),
    }
    with torch.no_grad():
        exact = linear(x)
        for name, layer in candidates.items():
            count = sum(held_bytes(layer.module if layer is stubbed else layer).values())
            costs[name, width] = {"bytes": count, "error": ((layer(x) - exact).norm() / exact.norm()).item()}
        costs["static, core", width] = costs["static, with stubs", width]
        for threads, batch in itertools.product(thread_counts, batches):
            some = x[:batch]
            calls = {"float": functools.partial(linear, some)}
            calls |= {name: functools.partial(layer, some) for name, layer in candidates.items()}
            calls["static, core"] = functools.partial(stubbed.module, stubbed.quant(some))
            many = 1 if batch * width**2 > 2**22 else 10
            timed = latency.compare_each(calls, repeats=9, calls=many, threads=threads, noise=0.5)
            measured += [
                {"variant": name, "width": width, "batch": batch, "threads": threads, "ratio": timed[name].ratio}
                | costs[name, width]
                for name in names
                if isinstance(timed[name], latency.Timing)
            ]

fig, axes = plots.figure(columns=len(names), rows=len(thread_counts), width=11, height=2.5 * len(thread_counts))
grid = np.atleast_2d(axes)
for (row, threads), (column, name) in itertools.product(enumerate(thread_counts), enumerate(names)):
    ax = grid[row, column]
    cells = {(m["width"], m["batch"]): m["ratio"] for m in measured if (m["variant"], m["threads"]) == (name, threads)}
    values = np.array([[cells.get((width, batch), np.nan) for batch in batches] for width in widths])
    # Purple and orange can be told apart with every common colour vision; white is 1.
    picture = ax.imshow(-np.log2(values), cmap="PuOr", vmin=-3, vmax=3, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if np.isnan(value):
            ax.text(j, i, "?", ha="center", va="center", fontsize=9)
            continue
        red, green, blue, _ = picture.cmap(picture.norm(-math.log2(value)))
        dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5
        text = f"{value:.2f}" if value < 9.95 else f"{value:.0f}"
        ax.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    ax.set_xticks(range(len(batches)), batches)
    ax.set_yticks(range(len(widths)), widths if column == 0 else [""] * len(widths))
    ax.tick_params(length=0)
    ax.set_title(f"{name}\n{threads} thread{'s' if threads > 1 else ''}", fontsize=9)
    if column == 0:
        ax.set_ylabel("width")
    if row == len(thread_counts) - 1:
        ax.set_xlabel("rows in a batch")
ratios = {name: [m["ratio"] for m in measured if m["variant"] == name] for name in names}
counts = ", ".join(
    f"{sum(r < 1 for r in known)} of {len(known)} known cells ({name})" for name, known in ratios.items()
)
plots.show(
    fig,
    caption=f"Time of int8 divided by time of float, one square Linear layer: below 1 (purple) int8 is faster, above 1 (orange) slower; white is equal. {environment.processor()}, "
    f"{torch.backends.cpu.get_cpu_capability()}, engine {torch.backends.quantized.engine}, PyTorch {torch.__version__.split('+')[0]}, not compiled.",
    alt="Grids of ratios, one for each version and number of threads, widths downwards and batch sizes across. int8 is faster than float in "
    f"{counts}.",
)

# %% [markdown]
# Every computer has its own map. Look in yours for these patterns:
#
# - Go **down** a column. A wider layer has more to multiply for each call, so the fixed price of a call (finding the kernel, choosing a range, making the output) counts less. (torchao's layers with one row may be an exception: look at their first columns.)
# - Compare the **two static grids**. Their difference is the price of the stubs. It is paid once for a network, not once for a layer, if all layers between are int8.
# - **Weight-only** of torchao, not compiled, makes floats of all codes in every call, and then multiplies in float: more work than before. That is this implementation, not weight-only quantization as such; see the next cell.
# - **torchao dynamic** pays for a chain of small operations in every call, which `torch.compile` can join.
#
# With one row, a Linear layer reads each weight once and uses it once. Then the time goes into reading, and a kernel that reads *codes* reads a quarter of the bytes. That is how weight-only quantization makes
# large language models faster, which get one row at a time when they write. PyTorch has such a kernel inside, `torch._weight_int8pack_mm`. Here it is beside the float layer, with activations in `bfloat16` (and a `bfloat16` layer as a control, since half
# of the bytes is a gain, too) and in `float32`:

# %% tags=["varies"]
rows = []
for width, batch in itertools.product(widths, (1, 128)):
    weight, x = gaussian(width).weight.detach(), torch.randn(batch, width, generator=torch.Generator().manual_seed(6))
    row_scales = weight.abs().amax(dim=1) / 127
    row_codes = (weight / row_scales[:, None]).round().to(torch.int8)
    half_x, half_weight, half_scales = x.bfloat16(), weight.bfloat16(), row_scales.bfloat16()
    programs = {
        "float32": functools.partial(F.linear, x, weight),
        "bfloat16": functools.partial(F.linear, half_x, half_weight),
        "int8 codes, bfloat16": functools.partial(torch._weight_int8pack_mm, half_x, row_codes, half_scales),
        "int8 codes, float32": functools.partial(torch._weight_int8pack_mm, x, row_codes, row_scales),
    }
    if batch > 1:
        del programs["int8 codes, float32"]  # seconds, where no fast kernel exists
    timed = latency.compare_each(programs, repeats=9, calls=20 if batch == 1 else 2, threads=1, noise=0.3)
    words = {name: "too noisy" if isinstance(t, latency.TooNoisy) else str(t) for name, t in timed.items()}
    columns = ("bfloat16", "int8 codes, bfloat16", "int8 codes, float32")
    rows.append({"width": width, "rows": batch} | {name: words.get(name, "not tried") for name in columns})
tables.show(rows)
print(f"time / time of float32, with its interval; {environment.processor()}, one thread")

# %% [markdown]
# When we measured it alone (`make bench BENCH=linear_speed`; the result is `benchmarks/results/linear_speed.md` in the course's folder), the kernel with `bfloat16` activations took one to two thirds of float32's time at one row, and more than float32's at 128 rows,
# where multiplying counts and not reading. With `float32` activations the same function has another kernel: compare the last column. So "weight-only makes it faster" and "weight-only makes it slower" are both true of somebody's kernel, data type and batch.
#
# Now what each version costs in bytes and in error, at the same four widths:

# %% tags=["varies"]
rows = []
for name in names:
    line = {"variant": name}
    for width in widths:
        line[f"kB, width {width}"] = f"{costs[name, width]['bytes'] / 1000:.1f}"
        line[f"error, {width}"] = f"{costs[name, width]['error']:.4f}"
    rows.append(line)
tables.show(rows)
print(f"engine {torch.backends.quantized.engine}; the relative error is that of the outputs, for 128 rows")

# %% [markdown]
# From one width to the next the error of a variant changes little (a longer row has a somewhat larger largest weight, and so a coarser scale). From variant to variant it changes much: it depends on what is rounded. Weight-only rounds weights. torchao's dynamic rounds inputs too, one scale
# a row. PyTorch's dynamic has one scale for the whole batch (and 7 bits for the input, except with qnnpack). Static also rounds the output. (Where the static layer has more bytes than the dynamic one, it is because its qconfig takes one scale for each row; with one scale for all, both have the same, as in section 4.)
#
# > **The book says:** `nn.quantized.Linear` takes more computation time than `nn.Linear`. And its verdict: it has the best balance of memory and computation time.
# >
# > **What happens:** ask the map.

# %% tags=["varies"]
core = [m for m in measured if m["variant"] == "static, core"]
slower = [m for m in core if m["ratio"] > 1]
print(f"nn.quantized.Linear is slower than nn.Linear in {len(slower)} of {len(core)} known cells", end="")
print(f", at widths {sorted({m['width'] for m in slower})}" if slower else "")
rows, smallest, most_exact = [], set(), set()
for width, batch in itertools.product(widths, batches):
    here = [m for m in measured if (m["width"], m["batch"], m["threads"]) == (width, batch, 1)]
    fastest = min([*here, {"variant": "float", "ratio": 1.0}], key=lambda m: m["ratio"])
    rows.append({"width": width, "batch": batch, "known": f"{len(here)} of {len(names)}"})
    rows[-1]["fastest"] = fastest["variant"] if here else "?"
for width in widths:
    of_width = {name: costs[name, width] for name in names}
    most_exact.add(min(of_width, key=lambda name: of_width[name]["error"]))
    of_width["float"] = {"bytes": 4 * width * (width + 1)}
    smallest.add(min(of_width, key=lambda name: of_width[name]["bytes"]))
tables.show(rows)
print("smallest:", " or ".join(sorted(smallest)), "- most exact int8:", " or ".join(sorted(most_exact)))

# %% [markdown]
# > **What is true:** "slower" where there is little to multiply, "faster" where there is much, with kernels that are made for your processor. And there is no best balance in general: the fastest
# > changes with the shape, and the smallest and the most exact are others still. Section 8 makes the choice a calculation.
#
# ## 6. Fusion
#
# A Linear layer followed by a ReLU can be one module, `LinearReLU`; a Linear followed by a BatchNorm can be one Linear, because a normalization with fixed statistics is a scaling and a shift of every output:
#
# $$\gamma\,\frac{(Wx + b) - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta \;=\; \Big(\tfrac{\gamma}{\sqrt{\sigma^2+\epsilon}}\,W\Big)x + \tfrac{\gamma\,(b - \mu)}{\sqrt{\sigma^2+\epsilon}} + \beta$$
#
# $\mu$ and $\sigma^2$ are the mean and variance that the BatchNorm has collected, $\gamma$ and $\beta$ its weight and bias. `tq.fuse_modules` does both, for names that you give it. The first name gets the new
# module; the others become `nn.Identity`. First in float, where fusing must change nothing:

# %% tags=["nbval-check-output"]
torch.manual_seed(6)
chain = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
chain(3 * torch.randn(256, 16) + 1)  # lets the BatchNorm collect statistics
chain.eval()
inputs = torch.randn(64, 16)
relu_only = tq.fuse_modules(chain, [["3", "4"]])
fused_chain = tq.fuse_modules(chain, [["0", "1"], ["0", "2"], ["3", "4"]])
print([type(module).__name__ for module in fused_chain])
with torch.no_grad():
    print("Linear and ReLU fused: bit-equal in float:", torch.equal(relu_only(inputs), chain(inputs)))
    print("BatchNorm fused: equal but for rounding:  ", torch.allclose(fused_chain(inputs), chain(inputs), atol=1e-5))

# %% [markdown]
# Look at the list of names: the BatchNorm first, *then* the ReLU, both with the name of the Linear, which the fused module has kept. PyTorch knows the triple (Linear, BatchNorm, ReLU) only for convolutions.
#
# ### What it saves
#
# A network trained on the next byte, statically quantized with and without fusion. Input, weights and calibration are the same:

# %%
train_ids, train_next = next_byte.examples("training", documents=700)
test_ids, test_next = next_byte.examples("held_out", documents=96)


def fresh_network(seed: int) -> nn.Module:
    """A small next-byte network, trained for a few seconds."""
    torch.manual_seed(seed)
    return next_byte.fit(next_byte.NextByteNet(16, 128), train_ids, train_next, steps=200, lr=6e-3, seed=seed)


guesser = fresh_network(seed=0)
with torch.no_grad():
    test_features = guesser.features(test_ids)
    some_features = guesser.features(train_ids[:: len(train_ids) // 2048]).split(256)
print(f"float: {next_byte.bits(guesser, test_ids, test_next).mean():.3f} bits per byte")

# %% tags=["varies"]
apart = int8.static_int8(guesser.body, some_features)
joined = int8.static_int8(tq.fuse_modules(guesser.body, [["0", "1"], ["2", "3"]]), some_features)
rows = []
with torch.no_grad():
    hidden, logits = guesser.body[1](guesser.body[0](test_features)), guesser.body(test_features)
    for name, network in {"apart": apart, "fused": joined}.items():
        first = network.module[0]
        after_relu = network.module[1](first(network.quant(test_features)))
        used = after_relu.int_repr().unique().numel()
        rows.append(
            {
                "Linear and ReLU": name,
                "output scale of the first layer": f"{first.scale:.4f}",
                "zero point": first.zero_point,
                "codes in use after ReLU": used,
                "error after ReLU": f"{((after_relu.dequantize() - hidden).norm() / hidden.norm()).item():.4f}",
                "error of the logits": f"{((network(test_features) - logits).norm() / logits.norm()).item():.4f}",
            }
        )
tables.show(rows)

# %% [markdown]
# Apart, the observer behind the Linear layer sees negative outputs, and spends about half of the codes on them. The ReLU then throws these codes away. Fused, the observer sees what is left, the zero point is 0, and the
# steps are about half as wide. (More than 128 codes? On a PC the observer chose the scale for 0 to 127, but the kernel clamps at 255: unseen inputs that are louder than the calibration data use the codes above; section 7 has more on that.) At the
# logits little of the gain is left, because the other roundings weigh more.
#
# It is often said that fusion saves a rounding. Is that so here? In a graph that quantizes after *every* operation, it does. In eager mode the separate ReLU works on codes, and rounds nothing:

# %% tags=["nbval-check-output"]
with torch.no_grad():
    before_relu = apart.module[0](apart.quant(test_features))
    after_relu = apart.module[1](before_relu)
clamped = before_relu.int_repr().int().clamp(min=apart.module[0].zero_point)
print("ReLU on codes is a clamp at the zero point:", torch.equal(after_relu.int_repr().int(), clamped))
print("and keeps the scale:", after_relu.q_scale() == before_relu.q_scale())

# %% [markdown]
# So what is saved is half of the codes, and one walk through memory. With a BatchNorm1d fusion matters more: `convert` has no int8 module to put in its place (fifth error below), although PyTorch has a *kernel* for it:

# %% tags=["nbval-check-output"]
print("modules:", [name for name in dir(nnq) if name.startswith("BatchNorm")])
norm = chain[1]
codes_in = torch.quantize_per_tensor(
    torch.randn(64, 32, generator=torch.Generator().manual_seed(66)), 0.05, 128, torch.quint8
)
with torch.no_grad():
    by_kernel = torch.ops.quantized.batch_norm1d(
        codes_in, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps, 0.05, 128
    )
    right = norm(codes_in.dequantize())
print(
    "the kernel returns",
    by_kernel.dtype,
    "and is off by at most half a step:",
    bool((by_kernel.dequantize() - right).abs().max() < 0.0251),
)

# %% [markdown]
# With it you could write such a module yourself. Folded into the Linear, the normalization costs nothing at all.
#
#
# > **The book says:** `LinearReLU` reduces the need for negative weights, and needs more memory when there are many ReLUs.
# >
# > **What happens:** count the negative weights, and the bytes.

# %% tags=["nbval-check-output"]
codes_apart, codes_joined = (network.module[0].weight().int_repr() for network in (apart, joined))
print("the same weight codes, fused or not:", torch.equal(codes_apart, codes_joined))
print("between 45 and 55 % of them negative:", 0.45 < (codes_joined < 0).float().mean().item() < 0.55)
layers = [nn.Sequential(network.module[0]) for network in (apart, joined)]
print(
    "bytes kept, apart and fused, are equal:",
    sum(held_bytes(layers[0]).values()) == sum(held_bytes(layers[1]).values()),
)

# %% [markdown]
# > **What is true:** ReLU concerns *outputs*. It is their negative half that need not be stored.
#
# ### What can go wrong
#
# Six cases. Run the cell, and say for each line why, before you read on. (`show_error` prints "No error was raised." where nothing complains.)


# %% tags=["nbval-check-output"]
class OneReLU(nn.Module):
    """Two Linear layers, one ReLU module that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.b(self.relu(self.a(x))))


class FunctionalReLU(nn.Module):
    """The ReLU is no module, but a function."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


torch.manual_seed(61)
x4 = torch.randn(64, 4)
with_norm = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
with_norm(x4)
print("1. train mode, BatchNorm:   ", end="")
errors.show_error(lambda: tq.fuse_modules(copy.deepcopy(with_norm).train(), [["0", "1"]]))
print("2. three names at once:     ", end="")
errors.show_error(lambda: tq.fuse_modules(copy.deepcopy(with_norm).eval(), [["0", "1", "2"]]))
print("3. Linear and GELU:         ", end="")
errors.show_error(lambda: tq.fuse_modules(nn.Sequential(nn.Linear(4, 4), nn.GELU()).eval(), [["0", "1"]]))
print("4. a ReLU without a name:   ", end="")
errors.show_error(lambda: tq.fuse_modules(FunctionalReLU().eval(), [["a", "relu"]]))
print("5. BatchNorm left as it is: ", end="")
unfused = int8.static_int8(with_norm.eval(), [x4])
errors.show_error(lambda: unfused(x4), width=90)
print("6. one ReLU, used twice:    ", end="")
twice = OneReLU().eval()
errors.show_error(lambda: tq.fuse_modules(twice, [["a", "relu"]]))
with torch.no_grad():
    broken = tq.fuse_modules(twice, [["a", "relu"]])(x4)
print("   ... and its outputs, which a ReLU has made, have negative numbers among them:", bool((broken < 0).any()))

# %% [markdown]
# 1. In training a BatchNorm uses the statistics of each batch, so there are no fixed numbers to fold. (A Linear and a ReLU *can* be fused in training mode: nothing is folded.)
# 2. and 3. There is no fused module for these. For GELU there cannot be a clamp.
# 4. `fuse_modules` finds modules by name. A function has none. Write `nn.ReLU()` into the model, one for each place.
# 5. `convert` left it in float, since it knows no int8 module for it, and nothing complained before the first input.
# 6. The silent one. The name `relu` became an `nn.Identity`, and it is so for the second use, too. The network is a different one now.
#
# **For training** there is `tq.fuse_modules_qat`. It is meant for a model in train mode, and keeps the BatchNorm inside the fused module, because its statistics still change. They are folded at `convert`. (Does it insist on train mode? The first line of the output tells.)

# %% tags=["nbval-check-output"]
errors.show_error(lambda: tq.fuse_modules_qat(copy.deepcopy(with_norm).eval(), [["0", "1"]]))
for_training = tq.fuse_modules_qat(copy.deepcopy(with_norm).train(), [["0", "1"]])
print([type(module).__name__ for module in for_training], "with", [type(part).__name__ for part in for_training[0]])

# %% [markdown]
# **A fused file in an unfused model.** After `convert` both have the same names in their `state_dict`, so one loads into the other without a word. Is that harmless? With ReLU it is, even bit for bit: a zero point of 0 *is* a
# ReLU, and ReLU twice is ReLU once. With a folded BatchNorm it is not. The fused float file lacks only the BatchNorm's entries, and `strict=False`, which many use by habit, accepts that:

# %% tags=["nbval-check-output"]
swapped = copy.deepcopy(apart)
print(swapped.load_state_dict(joined.state_dict()))
with torch.no_grad():
    print("fused file, unfused network: bit-equal outputs:", torch.equal(swapped(test_features), joined(test_features)))

folded = tq.fuse_modules(with_norm.eval(), [["0", "1"]])
victim = copy.deepcopy(with_norm).eval()
print("with a BatchNorm, missing:", victim.load_state_dict(folded.state_dict(), strict=False).missing_keys)
with torch.no_grad():
    print("the BatchNorm now acts twice, outputs are right:", torch.allclose(victim(x4), with_norm(x4), atol=1e-2))

# %% [markdown]
# ### A list of what may be fused
#
# For a long model nobody wants to write these names by hand, and case 6 shows that the names alone do not suffice: one must know who *calls* whom. `torch.fx.symbolic_trace` runs a model with a symbol in place of numbers and writes down each
# call. Here it is as plain data:


# %% tags=["nbval-check-output"]
@dataclass(frozen=True)
class Step:
    """One call of a model's forward pass."""

    name: str  # of the module, as in named_modules; or of a function
    module: nn.Module | None  # None: a function, the input, or the output
    inputs: tuple[int, ...]  # numbers of the steps whose results it reads


def steps(model: nn.Module) -> list[Step]:
    """All calls of `model`, in order. A module that is called twice makes two steps."""
    nodes = list(torch.fx.symbolic_trace(model).graph.nodes)
    number = {node: i for i, node in enumerate(nodes)}
    return [
        Step(
            node.target if isinstance(node.target, str) else node.target.__name__,
            model.get_submodule(node.target) if node.op == "call_module" else None,
            tuple(number[source] for source in node.all_input_nodes),
        )
        for node in nodes
    ]


for i, step in enumerate(steps(OneReLU())):
    print(i, f"{step.name:7}", type(step.module).__name__ if step.module else "-", "reads", list(step.inputs))

# %% [markdown]
# ### Exercise 3.8: the fuse list
# *Difficulty 4 of 5 · 30 minutes · 2 points*
#
# Write the list for `tq.fuse_modules`, for any model that can be traced. Fuse a Linear with the BatchNorm1d behind it, and with the ReLU behind that, or with a ReLU right behind the Linear. A pair may be fused only if
#
# - the second module, and *nothing else*, reads what the first one returns (otherwise someone needs the number in between),
# - both modules are called exactly once,
# - both are exactly of these types (`type(m) is nn.Linear`): PyTorch looks subclasses up in vain.
#
# A model in training mode raises a `ValueError`: this list is for inference.
#
# For `chain` above the answer is `[["0", "1"], ["0", "2"], ["3", "4"]]`: two pairs for a Linear with BatchNorm and ReLU, the BatchNorm first, both beginning with the name of the Linear. For `OneReLU()` it is `[]`.


# %% nbgrader={"grade": false, "grade_id": "ex_3_8", "locked": false, "schema_version": 3, "solution": true, "task": false}
def fuse_list(model: nn.Module) -> list[list[str]]:
    """Pairs of names that `tq.fuse_modules` may fuse in `model`, in an order that it accepts.

    Parameters
    ----------
    model : Module
        In eval mode; `steps(model)` can trace it.

    Returns
    -------
    list of [str, str]
        Name of a Linear, and of the BatchNorm1d or ReLU to fuse with it; BatchNorm1d before ReLU.

    Raises
    ------
    ValueError
        If `model` is in training mode.

    Example
    -------
    >>> fuse_list(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval())
    [['0', '1']]
    """
    ### BEGIN SOLUTION
    if model.training:
        raise ValueError("fuse for inference in eval mode: call model.eval() first.")
    calls = steps(model)

    def once(module: nn.Module | None) -> bool:
        return sum(step.module is module for step in calls) == 1

    def follower(number: int, kind: type) -> int | None:
        """The only step that reads step `number`, if it may be fused to it."""
        readers = [i for i, step in enumerate(calls) if number in step.inputs]
        if len(readers) == 1 and type(calls[readers[0]].module) is kind and once(calls[readers[0]].module):
            return readers[0]
        return None

    pairs = []
    for number, step in enumerate(calls):
        if type(step.module) is not nn.Linear or not once(step.module):
            continue
        last = number
        for kind in (nn.BatchNorm1d, nn.ReLU):
            found = follower(last, kind)
            if found is not None:
                pairs.append([step.name, calls[found].name])
                last = found
    return pairs
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_3_8_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 3.8: run this cell.
import copy

import torch
import torch.ao.quantization as tq
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import checks, samples


@checks.isolated
def check_ex_3_8() -> None:
    class Wired(nn.Module):
        """Modules by name, and a forward pass given as a function."""

        def __init__(self, run, **parts: nn.Module) -> None:
            super().__init__()
            for name, part in parts.items():
                self.add_module(name, part)
            self.run = run

        def forward(self, x: Tensor) -> Tensor:
            return self.run(self, x)

    def lin() -> nn.Linear:
        return nn.Linear(8, 8)

    def block() -> nn.Sequential:
        return nn.Sequential(lin(), nn.BatchNorm1d(8), nn.ReLU())

    class OwnReLU(nn.ReLU):
        """A subclass, which fuse_modules does not know."""

        __module__ = "torch.nn"  # symbolic_trace looks into all other modules

    class OwnNorm(nn.BatchNorm1d):
        """A subclass, which fuse_modules does not know."""

        __module__ = "torch.nn"

    shared, two_names = lin(), nn.ReLU()
    one_norm = nn.BatchNorm1d(8)
    odd = nn.modules.linear.NonDynamicallyQuantizableLinear(8, 8)
    # title, model, pairs that may be fused
    cases = [
        (
            "a Sequential of Linear and ReLU",
            nn.Sequential(lin(), nn.ReLU(), lin(), nn.ReLU(), lin()),
            [("0", "1"), ("2", "3")],
        ),
        (
            "nested Sequentials with BatchNorm",
            nn.Sequential(block(), nn.Sequential(lin(), nn.BatchNorm1d(8)), lin()),
            [("0.0", "0.1"), ("0.0", "0.2"), ("1.0", "1.1")],
        ),
        (
            "a model that uses one ReLU module twice",
            Wired(lambda m, x: m.relu(m.b(m.relu(m.a(x)))), a=lin(), b=lin(), relu=nn.ReLU()),
            [],
        ),
        (
            "a Sequential that uses one Linear module twice",
            nn.Sequential(shared, nn.ReLU(), shared, nn.BatchNorm1d(8), lin(), nn.ReLU()),
            [("4", "5")],
        ),
        (
            "a model whose second Linear is also added to the result",
            Wired(lambda m, x: m.norm(m.b(m.relu(m.a(x)))) + m.b2(x), a=lin(), relu=nn.ReLU(), b=lin(), norm=nn.BatchNorm1d(8), b2=lin()),
            [("a", "relu"), ("b", "norm")],
        ),
        (
            "a residual, x + relu(linear(x)) with linear(x) read twice",
            Wired(lambda m, x: (lambda y: m.relu(y) + y)(m.a(x)), a=lin(), relu=nn.ReLU()),
            [],
        ),
        (
            "a model whose modules are defined in another order than they are called",
            Wired(lambda m, x: m.b(m.relu(m.a(x))), b=lin(), relu=nn.ReLU(), a=lin()),
            [("a", "relu")],
        ),
        (
            "a model with a functional relu before its ReLU module, and a GELU",
            Wired(lambda m, x: m.gelu(m.b(m.relu(F.relu(m.a(x))))), a=lin(), relu=nn.ReLU(), b=lin(), gelu=nn.GELU()),
            [],
        ),
        (
            "a model that applies the ReLU before the BatchNorm",
            nn.Sequential(lin(), nn.ReLU(), nn.BatchNorm1d(8), lin(), nn.Dropout(0.5), nn.ReLU()),
            [("0", "1")],
        ),
        (
            "a model with subclasses of Linear, ReLU and BatchNorm1d",
            nn.Sequential(odd, nn.ReLU(), lin(), OwnReLU(), lin(), OwnNorm(8), lin(), nn.ReLU6(), lin(), nn.ReLU()),
            [("8", "9")],
        ),
        (
            "a model that returns what its Linear returns beside the ReLU's result",
            Wired(lambda m, x: torch.cat([m.relu(m.a(x)), m.norm(m.b(x))]) + m.c(x).sum(), a=lin(), relu=nn.ReLU(), b=lin(), norm=nn.BatchNorm1d(8), c=lin()),
            [("a", "relu"), ("b", "norm")],
        ),
        (
            "a model in which a method reads the Linear's result, too",
            Wired(lambda m, x: (lambda y: m.relu(y) * y.mean())(m.a(x)) + m.relu2(m.b(x)), a=lin(), relu=nn.ReLU(), b=lin(), relu2=nn.ReLU()),
            [("b", "relu2")],
        ),
        (
            "a model whose BatchNorm is read by a ReLU and by a sum",
            Wired(lambda m, x: (lambda y: m.relu(y) + y)(m.norm(m.a(x))), a=lin(), norm=nn.BatchNorm1d(8), relu=nn.ReLU()),
            [("a", "norm")],
        ),
        (
            "a model with one ReLU module under two names",
            Wired(lambda m, x: m.last(m.b(m.first(m.a(x)))), a=lin(), first=two_names, b=lin(), last=two_names),
            [],
        ),
        (
            "a model whose ReLU comes before its BatchNorm in the alphabet",
            Wired(lambda m, x: m.act(m.norm(m.lin(x))), lin=lin(), norm=nn.BatchNorm1d(8), act=nn.ReLU()),
            [("lin", "norm"), ("lin", "act")],
        ),
        (
            "a model with Linear layers that have no bias",
            nn.Sequential(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 8, bias=False), nn.ReLU()),
            [("0", "1"), ("2", "3")],
        ),
        (
            "a model with a ReLU that reads a sum of two Linear layers",
            Wired(lambda m, x: m.relu(m.a(x) + m.b(x)), a=lin(), b=lin(), relu=nn.ReLU()),
            [],
        ),
    ]  # fmt: skip
    of_zoo = {
        "a model with frozen parameters": [("0", "1")],
        "Sequentials inside Sequentials": [("0.0.0", "0.0.1"), ("0.0.2", "0.1"), ("1.0", "1.1")],
        "a model with two equal matrices that are not tied": [("0", "1")],
        "a model with buffers": [("body.0", "body.1")],
        "a model with a convolution": [("body.0", "body.1")],
    }
    cases += [(title, model, of_zoo.get(title, [])) for title, model, _ in samples.zoo(38)]

    def in_words(model: nn.Module, name: str) -> str:
        return f"the {type(model.get_submodule(name)).__name__} `{name}`"

    def why_not(model: nn.Module, pair: tuple[str, str]) -> str:
        """Which rule a pair breaks."""
        names = dict(model.named_modules(remove_duplicate=False))
        for name in pair:
            if name not in names:
                return f"there is no module `{name}`: use the full names, as in named_modules."
        first, second = (names[name] for name in pair)
        if type(first) in (nn.BatchNorm1d, nn.ReLU):
            return "each pair begins with the name of the Linear, also the second one: under this name the fused module goes on."
        if type(first) is not nn.Linear and isinstance(first, nn.Linear):
            return f"{in_words(model, pair[0])} is a subclass, and only what is exactly an nn.Linear can be fused."
        if type(first) is not nn.Linear:
            return f"{in_words(model, pair[0])} is no Linear: use the full names, as in named_modules."
        if type(second) not in (nn.BatchNorm1d, nn.ReLU):
            if isinstance(second, nn.BatchNorm1d | nn.ReLU):
                return f"{in_words(model, pair[1])} is a subclass: only what is exactly an nn.BatchNorm1d or nn.ReLU can be fused."
            return f"there is no fused module for a Linear and a {type(second).__name__}."
        nodes = list(torch.fx.symbolic_trace(model).graph.nodes)
        calls = [[n for n in nodes if n.op == "call_module" and names[n.target] is part] for part in (first, second)]
        for name, found in zip(pair, calls, strict=True):
            if len(found) > 1:
                return f"{in_words(model, name)} is called {('twice', 'three times')[len(found) > 2]}; fused once, its other call would compute something else."
        (start,), (end,) = calls
        between = end.all_input_nodes[0]
        if between.op == "call_module" and type(names[between.target]) is nn.BatchNorm1d and between is not start:
            if len(between.users) > 1:
                return f"the result of the BatchNorm `{between.target}` is read by somebody else, too."
            between = between.all_input_nodes[0]
        if between is not start or len(end.all_input_nodes) > 1:
            return f"`{pair[1]}` does not read what `{pair[0]}` returns, but what `{between.target if isinstance(between.target, str) else between.target.__name__}` returns."
        if len(start.users) > 1:
            return f"the result of the Linear `{pair[0]}` is read by somebody else, too."
        return "a ReLU comes before the BatchNorm there."

    def judge(title: str, model: nn.Module, right: list[tuple[str, str]]) -> None:
        torch.manual_seed(38)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                nn.init.uniform_(module.running_mean, -1, 1)
                nn.init.uniform_(module.running_var, 0.5, 3)
                nn.init.uniform_(module.weight, 0.5, 2)
        model.eval()
        with checks.untouched(model=model):
            answer = fuse_list(model)
        checks.given(answer, "what fuse_list returned")
        assert isinstance(answer, list | tuple) and all(isinstance(p, list | tuple) for p in answer), (
            "what fuse_list returned should be a list of pairs, each a list of two names."
        )
        assert all(isinstance(name, str) for pair in answer for name in pair), (
            "what fuse_list returned should hold names (str), not modules."
        )
        assert not any(len(pair) == 3 for pair in answer), (
            f"for {title} you fuse three names at once: fuse_modules does not know this triple. Two pairs, the BatchNorm first."
        )
        assert all(len(pair) == 2 for pair in answer), f"for {title} your list has an element that is no pair."
        pairs = [tuple(pair) for pair in answer]
        missing = [pair for pair in right if pair not in pairs]
        extra = [pair for pair in pairs if pair not in right]
        assert not extra, f"for {title} you fuse {list(extra[0])}: {why_not(model, extra[0])}"
        assert not missing, f"for {title} the pair {list(missing[0])} is missing in your list."
        assert len(pairs) == len(set(pairs)), f"for {title} a pair is twice in your list."
        x = torch.randn(32, 8)
        if not answer:
            return
        try:
            fused = tq.fuse_modules(copy.deepcopy(model), [list(pair) for pair in answer])
        except AssertionError as error:
            raise AssertionError(
                f"for {title} fuse_modules refuses the order of your list, BatchNorm must come before ReLU: {error}"
            ) from None
        with torch.no_grad():
            assert torch.allclose(fused(x), model(x), atol=1e-4), (
                f"for {title} the fused model computes something else."
            )

    with checks.check("3.8", "fuse_modules takes your lists, and no fused model computes anything else than before"):
        for case in cases:
            judge(*case)
        part_in_eval = block()
        part_in_eval[1].eval()
        for what, model in [
            ("its BatchNorm has no fixed statistics", block()),
            ("also one without a BatchNorm", lin()),
            ("also if a part of it is in eval mode", part_in_eval),
        ]:
            with checks.untouched(model=model):
                checks.raises(
                    ValueError,
                    lambda model=model: fuse_list(model),
                    f"a model in training mode must raise a ValueError: {what}.",
                )
    ### BEGIN HIDDEN TESTS
    tests = [
        (Wired(lambda m, x: m.relu(m.a(x)), relu=nn.ReLU(), b=block(), a=lin()), [("a", "relu")]),
        (nn.Sequential(odd, nn.ReLU(), lin(), nn.ReLU6()), []),
        (nn.Sequential(lin(), one_norm, lin(), one_norm, nn.ReLU()), []),
        (Wired(lambda m, x: m.out(m.r(m.n(m.a(x))) + m.n2(m.c(x))), out=lin(), n2=nn.BatchNorm1d(8), c=lin(), r=nn.ReLU(), n=nn.BatchNorm1d(8), a=lin()),
         [("a", "n"), ("a", "r"), ("c", "n2")]),
        (Wired(lambda m, x: m.b.relu(m.a(x)) + m.b.extra(x), a=lin(), b=Wired(lambda m, x: x, relu=nn.ReLU(), extra=lin())), [("a", "b.relu")]),
        (Wired(lambda m, x: (lambda y: m.r(m.n(y)) + y)(m.a(x)), a=lin(), n=nn.BatchNorm1d(8), r=nn.ReLU()), []),
        (Wired(lambda m, x: (lambda y: m.r(y) + y)(m.n(m.a(x))), a=lin(), n=nn.BatchNorm1d(8), r=nn.ReLU()), [("a", "n")]),
        (nn.Sequential(nn.ReLU(), lin()), []),
        (Wired(lambda m, x: m.b(m.c(m.z(x))), b=nn.ReLU(), c=nn.BatchNorm1d(8), z=nn.Linear(8, 8, bias=False)), [("z", "c"), ("z", "b")]),
    ]  # fmt: skip
    for model, right in tests:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.5, 3)
        model.eval()
        with checks.untouched(model=model):
            answer = [tuple(pair) for pair in fuse_list(model)]
        assert sorted(answer) == sorted(right), f"{answer} instead of {right}."
        if answer:
            x, fused = torch.randn(16, 8), tq.fuse_modules(model, [list(pair) for pair in answer])
            assert torch.allclose(fused(x), model(x), atol=1e-4), "the fused model computes something else."
    part = block()
    part[2].eval()
    for model in (nn.Sequential(lin(), nn.ReLU()).train(), block().train(), lin().train(), part):
        refused = False
        with checks.untouched(model=model):
            try:
                fuse_list(model)
            except ValueError:
                refused = True
        assert refused, "a model in training mode is accepted."
    for title, model, right in cases:
        assert sorted(tuple(pair) for pair in fuse_list(model.eval())) == sorted(right), f"wrong for {title}."
    ### END HIDDEN TESTS


check_ex_3_8()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Print `steps(model)` for a few models. For a step with a Linear: which steps have its number among their `inputs`? How often does each module occur?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# Write a small function that returns the only reader of a step, if its module is of the type you want and is called once. Ask it for a BatchNorm1d first; then for a ReLU, behind the BatchNorm if there was one, else behind the Linear.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `readers = [i for i, s in enumerate(calls) if number in s.…]`; a module is called once if `sum(s.module is module for s in calls) == …`. For each Linear: `last = number`; for `kind` in `(nn.BatchNorm1d, nn.ReLU)`, if there is a follower,
# append `[name of the Linear, name of the follower]` and move `last` on.
# </details>

# %% [markdown]
# ## 7. Fine-tuning and freezing
#
# > **The book says:** put an `nn.quantized.Linear(5, 2, bias=True, dtype=torch.qint8)` behind a float Linear and a ReLU, set a qconfig, `prepare`, train, `convert`. Then freeze the int8 layer with
# > `model.layer2.weight.requires_grad = False`, and fine-tune with SGD.
# >
# > **What happens:** run it, line by line.


# %% tags=["nbval-check-output"]
class BookModel(nn.Module):
    """The book's model; the argument of the int8 layer is called `bias_`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.relu = nn.Linear(10, 5), nn.ReLU()
        self.layer2 = nnq.Linear(5, 2, bias_=True, dtype=torch.qint8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(self.relu(self.layer1(x)))


x10 = torch.randn(64, 10, generator=torch.Generator().manual_seed(7))
print("the layer:   ", end="")
errors.show_error(lambda: nnq.Linear(5, 2, bias=True, dtype=torch.qint8))
book = BookModel()
print("its input:   ", end="")
errors.show_error(lambda: book(x10), width=90)
print("freezing it: ", end="")
errors.show_error(lambda: setattr(book.layer2.weight, "requires_grad", False))
print("parameters before convert:", [name for name, _ in book.named_parameters()])

book_repaired = tq.QuantWrapper(nn.Sequential(nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 2))).eval()
book_repaired.qconfig = tq.get_default_qconfig(torch.backends.quantized.engine)
book_repaired = tq.prepare(book_repaired)
book_repaired(x10)
book_repaired = tq.convert(book_repaired)
print("the optimizer of a converted model: ", end="")
errors.show_error(lambda: torch.optim.SGD(book_repaired.parameters(), lr=0.01, momentum=0.5))
print("its loss: ", end="")
errors.show_error(lambda: book_repaired(x10).sum().backward())
print("a gradient for its weight: ", end="")
errors.show_error(lambda: book_repaired.module[0].weight().requires_grad_(True))

# %% [markdown]
# Six failures. The first is a wrong name of an argument, the second a missing QuantStub; the other four have one reason. In a converted layer, `weight` is a *method* that unpacks integers. Integers have no gradient: between two codes there is nothing. So nothing in a converted layer can be trained, and nothing needs to be frozen. (The
# book's sentence about it contradicts itself, too: it freezes the second layer, calls it the first, and says that only the last one is trained.)
#
# > **What works:** the order *prepare_qat, freeze, optimizer, train, convert*. While you train, weights are float, and fake-quantized in every forward pass (unit 02, section 7). Freezing is done there, on `nn.Parameter`s. (Freezing before `prepare_qat` works as well, since it keeps the parameters; after it, you can see what is frozen.)
#
# ### What the defaults do
#
# After QAT, one expects that the converted network computes what the fake-quantized one computed. Does it? Take three qconfigs: the *default*; *plain, same range*, with plain `FakeQuantize` modules in place of the fused ones, and weight observers
# that always look at the *current* weights; and *plain, 8 bits, quick*, which also uses the codes up to 255, with an activation observer for which each batch counts one half. In the first three rows the network was trained before and has seen one batch; in the
# last three it was trained for 40 steps, starting from random weights.


# %% tags=["varies"]
def plain_qconfig(qmax: int, smoothing: float) -> tq.QConfig:
    """Plain FakeQuantize modules; activations 0 to `qmax`, averaged with `smoothing`; weights always current."""
    activation = tq.FakeQuantize.with_args(
        observer=tq.MovingAverageMinMaxObserver.with_args(averaging_constant=smoothing),
        quant_min=0,
        quant_max=qmax,
        dtype=torch.quint8,
    )
    weight = tq.FakeQuantize.with_args(
        observer=tq.MovingAveragePerChannelMinMaxObserver.with_args(averaging_constant=1.0),
        quant_min=-128,
        quant_max=127,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
    )
    return tq.QConfig(activation=activation, weight=weight)


def both_ways(body: nn.Module, qconfig: tq.QConfig, count: int) -> dict[str, str]:
    """QAT of a copy of `body`; how far are the converted and the fake-quantized outputs apart?"""
    fake = tq.QuantWrapper(copy.deepcopy(body)).train()
    fake.qconfig = qconfig
    tq.prepare_qat(fake, inplace=True)
    descent = torch.optim.Adam(fake.parameters(), lr=6e-3)
    shuffled = torch.Generator().manual_seed(70)
    with torch.no_grad():
        fake(some_features[0])
    for _ in range(count):
        chosen = torch.randint(len(train_ids), (512,), generator=shuffled)
        error = F.cross_entropy(fake(guesser.features(train_ids[chosen]).detach()), train_next[chosen])
        descent.zero_grad()
        error.backward()
        descent.step()
    fake.eval().apply(tq.disable_observer)
    with torch.no_grad():
        converted = tq.convert(fake)
        pretended, real = fake(test_features), converted(test_features)
        last = converted.module(converted.quant(test_features)).int_repr()
    return {
        "converted against fake-quantized": f"{((real - pretended).norm() / pretended.norm()).item():.4f}",
        "last layer's codes above 127": f"{(last > 127).float().mean().item():.1%}",
    }


torch.manual_seed(71)
newborn = next_byte.NextByteNet(16, 128).body
largest = 255 if torch.backends.quantized.engine == "qnnpack" else 127
default = tq.get_default_qat_qconfig(torch.backends.quantized.engine)
choices = {
    "default": default,
    "plain, same range": plain_qconfig(largest, 0.01),
    "plain, 8 bits, quick": plain_qconfig(255, 0.5),
}
rows = []
for title, qconfig in choices.items():
    rows.append({"qconfig": title, "network": "trained, one batch seen"} | both_ways(guesser.body, qconfig, 0))
for title, qconfig in choices.items():
    rows.append({"qconfig": title, "network": "newborn, 40 steps"} | both_ways(newborn, qconfig, 40))
tables.show(rows)
print("engine", torch.backends.quantized.engine)

# %% [markdown]
# Two traps, and neither says a word.
#
# - **The weights' scale.** For symmetric weights the fused modules take the larger of $\max w / 127$ and $-\min w / 128$ as the scale, and `convert` takes the largest $|w|$ divided by 127.5 (the cell below shows both). So the codes shift a little. Compare the first two rows. (What is left in the second are a few codes above 127: 0.0 % is a rounded number, and the
#   hidden layers have some, too.)
# - **The activations' range.** On PCs the default fake quantization clamps at code 127 (7 bits). The converted kernel knows nothing of 7 bits and clamps at 255. As long as the range fits, hardly a code lies above 127. (In the 8-bit rows such codes are normal: their range ends at 255.) But the observer is slow (each batch
#   counts 1 %), and the outputs of a young network grow quickly. Then training sees clamped logits, and the converted network has others. Look at the newborn rows.
#
# %% tags=["nbval-check-output"]
for row in ([1.0, -0.5], [0.5, -1.0]):
    fused_quantizer, observer = tq.default_fused_per_channel_wt_fake_quant(), tq.default_per_channel_weight_observer()
    fused_quantizer(torch.tensor([row])), observer(torch.tensor([row]))
    scale_then = observer.calculate_qparams()[0].item()
    print(
        f"weights {row}: scale 1 / {1 / fused_quantizer.scale.item():.1f} in training, 1 / {1 / scale_then:.1f} in the converted layer"
    )

# %% [markdown]
# So measure the converted network, never the fake-quantized one. And where you want to be sure, choose the settings yourself, as we do now. (The third row of settings is good only where 8-bit activations are safe: with qnnpack, or with VNNI, see section 3. On an older
# processor you see it fail here.)
#
# ### Fewer bits, one engine less
#
# For the rest of this section only *weights* are quantized, to 2 or 3 bits. Two functions do what depends on PyTorch's insides. `weight_only(bits)` is a qconfig: symmetric codes from $-q$ to $q$ with $q = 2^{B-1} - 1$ for $B$ bits, one scale a row. `to_int8` is the `convert`
# for it: it builds dynamic int8 layers that hold exactly the codes which training has seen, with exactly its scales. (`tq.convert` would choose the scale anew.)


# %%
def weight_only(bits: int) -> tq.QConfig:
    """Fake quantization of weights to `bits` bits, symmetric, one scale a row, always from the current weights."""
    largest_code = 2 ** (bits - 1) - 1
    weight = tq.FakeQuantize.with_args(
        observer=tq.MovingAveragePerChannelMinMaxObserver.with_args(averaging_constant=1.0),
        quant_min=-largest_code,
        quant_max=largest_code,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
    )
    return tq.QConfig(activation=nn.Identity, weight=weight)


def to_int8(trainee: nn.Sequential) -> nn.Sequential:
    """A copy of a fake-quantized Sequential whose Linear layers are dynamic int8 layers with the same codes."""
    converted = copy.deepcopy(trainee).eval()
    for name, layer in trainee.named_children():
        if hasattr(layer, "weight_fake_quant"):
            quantizer = layer.weight_fake_quant
            codes = (layer.weight / quantizer.scale[:, None]).round().clamp(quantizer.quant_min, quantizer.quant_max)
            zeros = torch.zeros(layer.out_features, dtype=torch.int64)
            stored = torch._make_per_channel_quantized_tensor(
                codes.to(torch.int8), quantizer.scale.double(), zeros, axis=0
            )
            replacement = nnqd.Linear(layer.in_features, layer.out_features)
            replacement.set_weight_bias(stored, layer.bias)
            setattr(converted, name, replacement)
    return converted


# %% [markdown]
# With them, rounding after training (PTQ) takes four lines:

# %% tags=["nbval-check-output"]
rounded = copy.deepcopy(guesser.body).train()
rounded.qconfig = weight_only(bits=3)
tq.prepare_qat(rounded, inplace=True)
rounded(test_features[:1])  # the weight observers look once
ptq = to_int8(rounded)
print("codes of the first layer:", ptq[0].weight().int_repr().unique().tolist(), "in a", ptq[0].weight().dtype)

# %% [markdown]
# ### Exercise 3.11: fine-tune with a frozen layer, then convert
# *Difficulty 4 of 5 · 35 minutes · 3 points*
#
# Why freeze? Lower layers are often shared by several models, or were validated, or hold what little data must not overwrite. Their weights must leave training bit for bit as they came. But they are fake-quantized all the same: the other layers should learn to live with
# *their* error, too.
#
# Write `finetune`, for a `body` that is a Sequential beginning with a Linear layer. A copy is trained; `body` stays as it is. The order:
#
# 1. copy, train mode, `weight_only(bits)`, `tq.prepare_qat`;
# 2. freeze the whole first layer, weight *and* bias;
# 3. an optimizer of the copy's parameters: Adam, learning rate 2e-3;
# 4. `steps` steps of cross-entropy. Step $i$ uses the rows $256\,i$ to $256\,(i + 1) - 1$ (begin again at the front when the data is used up: `torch.arange(256 * i, 256 * (i + 1)) % len(x)`);
# 5. before step `steps // 2`, counted from 0, switch the observers off (`trainee.apply(tq.disable_observer)`), so that scales hold still while the weights settle;
# 6. eval mode, and return the trained copy and what `to_int8` makes of it.
#
# Nothing here is left to chance, so the check follows the six steps itself and compares weights. Leave the other settings of Adam as they are.


# %% nbgrader={"grade": false, "grade_id": "ex_3_11", "locked": false, "schema_version": 3, "solution": true, "task": false}
def finetune(
    body: nn.Sequential, x: Tensor, targets: Tensor, bits: int, steps: int
) -> tuple[nn.Sequential, nn.Sequential]:
    """QAT of a copy of `body` with its first layer frozen, then int8.

    Parameters
    ----------
    body : Sequential
        Float; Linear layers and ReLUs, the first one a Linear; is not changed.
    x : Tensor, float32, (count, features)
    targets : Tensor, int64, (count,)
        The right class for each row.
    bits : int
        Of the weights' codes.
    steps : int
        At least 2.

    Returns
    -------
    (Sequential, Sequential)
        The trained copy, fake-quantized, in eval mode, its observers off; and its int8 version.
    """
    ### BEGIN SOLUTION
    trainee = copy.deepcopy(body).train()
    trainee.qconfig = weight_only(bits)
    tq.prepare_qat(trainee, inplace=True)
    trainee[0].requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in trainee.parameters() if p.requires_grad], lr=2e-3)
    for i in range(steps):
        if i == steps // 2:
            trainee.apply(tq.disable_observer)
        rows = torch.arange(256 * i, 256 * (i + 1)) % len(x)
        loss = F.cross_entropy(trainee(x[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trainee.eval()
    return trainee, to_int8(trainee)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_3_11_check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 3.11: run this cell.
import copy

import torch
import torch.ao.quantization as tq
import torch.nn.functional as F
from torch import nn

from helpers import checks, describe, witness


@checks.isolated
def check_ex_3_11() -> None:
    def trained(seed: int, d_in: int, hidden: int, classes: int, count: int) -> tuple:
        """A float body that knows a task, and data to train on; their number is no multiple of 256."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(count, d_in, generator=generator)
        teacher = torch.randn(d_in, 2 * classes, generator=generator)
        targets = (x @ teacher).relu().unflatten(1, (classes, 2)).amax(2).argmax(1)
        torch.manual_seed(seed)
        layers = [nn.Linear(d_in, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)]
        body = nn.Sequential(*layers)
        descent = torch.optim.Adam(body.parameters(), lr=1e-2)
        for i in range(40):
            some = torch.arange(512 * i, 512 * (i + 1)) % count
            descent.zero_grad()
            F.cross_entropy(body(x[some]), targets[some]).backward()
            descent.step()
        body.zero_grad()
        return body, x, targets

    def recipe(
        body: nn.Sequential,
        x: torch.Tensor,
        targets: torch.Tensor,
        bits: int,
        steps: int,
        *,
        descent=torch.optim.Adam,
        rate: float = 2e-3,
        rows=lambda i, n: torch.arange(256 * i, 256 * (i + 1)) % n,
        off: float = 0.5,
        late: int = 0,
        made: int = 0,
        zero: bool = True,
        rounded: bool = True,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Weights and biases after the six steps, and the scales: with PyTorch's functions only. The rest are mistakes."""
        largest = 2 ** (bits - 1) - 1
        parts = [p.detach().clone() for layer in body[::2] for p in (layer.weight, layer.bias)]
        chosen = descent([p.requires_grad_() for p in parts[2:]], lr=rate)
        scales = [torch.ones(1)] * 3
        for i in range(steps + made):
            some = rows(i, len(x))
            h = x[some]
            for k in range(3):
                weight, bias = parts[2 * k : 2 * k + 2]
                if i < int(off * steps) + late:
                    scales[k] = weight.detach().abs().amax(1) / largest
                if rounded:
                    zeros = torch.zeros(len(weight), dtype=torch.int32)
                    weight = torch.fake_quantize_per_channel_affine(weight, scales[k], zeros, 0, -largest, largest)
                h = F.linear(h.relu() if k else h, weight, bias)
            if zero:
                chosen.zero_grad()
            F.cross_entropy(h, targets[some]).backward()
            chosen.step()
        return [p.detach() for p in parts], scales

    def parts_of(model: nn.Sequential) -> list[torch.Tensor]:
        return [p.detach() for i in (0, 2, 4) for p in (model[i].weight, model[i].bias)]

    def apart(parts: list[torch.Tensor], right: list[torch.Tensor], kept: list[torch.Tensor]) -> float:
        """The largest share of a layer's movement by which its weights are elsewhere; the frozen layer is not asked."""
        shares = [(p - q).abs().mean() / (q - k).abs().mean() for p, q, k in zip(parts, right, kept, strict=True)]
        return max(share.item() for share in shares[2:])

    changes = {
        "the learning rate is 2e-3; these weights are those of Adam's default, 1e-3.": {"rate": 1e-3},
        "the learning rate is 2e-3; these weights are those of 2e-2.": {"rate": 2e-2},
        "the learning rate is 2e-3; these weights are those of 2e-4.": {"rate": 2e-4},
        "the optimizer is Adam, not AdamW, which makes weights smaller.": {"descent": torch.optim.AdamW},
        "the optimizer is Adam, not SGD.": {"descent": torch.optim.SGD},
        "a step too many was made.": {"made": 1},
        "a step is missing.": {"made": -1},
        "the observers were switched off only at the end: the scales should hold still for the second half of the steps.": {
            "off": 1
        },
        "the observers were switched off after the first step, with the scales of the untrained weights: train with them for half of the steps.": {
            "off": 0,
            "late": 1,
        },
        "the observers were switched off one step late: before step steps // 2, counted from 0.": {"late": 1},
        "the observers were switched off one step early: before step steps // 2, counted from 0.": {"late": -1},
        "every step used the first 256 rows: step i takes the rows from 256 * i on.": {
            "rows": lambda i, n: torch.arange(256)
        },
        "the rows begin one step too late: step 0 takes the rows from 0 on.": {
            "rows": lambda i, n: torch.arange(256 * (i + 1), 256 * (i + 2)) % n
        },
        "at the end of the data a step took what was left: take the rows modulo len(x), so that each step has 256.": {
            "rows": lambda i, n: torch.arange(256 * i % n, min(256 * i % n + 256, n))
        },
        "after the last whole 256 rows the data began again, and the rest was left out: take the rows modulo len(x).": {
            "rows": lambda i, n: torch.arange(256) + 256 * (i % (n // 256))
        },
        "each step used all rows; it should use 256.": {"rows": lambda i, n: torch.arange(n)},
        "each step used 128 rows; it should use 256.": {"rows": lambda i, n: torch.arange(128 * i, 128 * (i + 1)) % n},
        "the gradients pile up: zero_grad before each backward.": {"zero": False},
        "you trained in float: fake quantization must be there in every step.": {"rounded": False},
    }

    def judge(seed: int, sizes: tuple[int, int, int], bits: int, steps: int, count: int, training: bool) -> tuple:
        body, x, targets = trained(seed, *sizes, count)
        body.train(training)
        kept = copy.deepcopy(body)
        try:
            with checks.untouched(x=x, targets=targets):
                answer = finetune(body, x, targets, bits, steps)
        except AssertionError as error:
            if "training mode" not in str(error):
                raise
            raise AssertionError("prepare_qat wants a model in training mode: call .train() on the copy.") from None
        except AttributeError as error:
            if "'method' object" not in str(error):
                raise
            raise AssertionError(
                "in a converted layer `weight` is a method, and nothing can be frozen or trained: freeze the copy between prepare_qat and the optimizer."
            ) from None
        except ValueError as error:
            if "empty parameter list" not in str(error):
                raise
            raise AssertionError("a converted model has no parameters left: train first, convert last.") from None
        assert isinstance(answer, tuple | list) and len(answer) == 2, (
            "`finetune` should return two models: the trained copy and its int8 version."
        )
        trainee, converted = answer
        for name, part in (("first", trainee), ("second", converted)):
            assert isinstance(part, nn.Module), f"the {name} thing that finetune returned should be a model."
        assert [type(m) for m in body] == [type(m) for m in kept], "your function changed the layers of the original."
        assert all(torch.equal(a, b) for a, b in zip(body.parameters(), kept.parameters(), strict=True)), (
            "your function trained the original: train a copy (copy.deepcopy)."
        )
        assert all(p.requires_grad for p in body.parameters()), "your function froze a layer of the original."
        assert body.training == training, (
            "your function switched the original to another mode: call .train() and .eval() on the copy."
        )
        difference = witness.unchanged(kept, body)
        assert not difference, f"your function changed the original: {difference}."
        shared = witness.independent(trainee, body)
        assert not shared, f"the trained copy is no copy: {shared}."
        quantizers = [m for m in trainee.modules() if isinstance(m, tq.FakeQuantize)]
        assert len(quantizers) == 3, (
            f"the trained copy has {len(quantizers)} fake-quantized layers instead of 3: set the qconfig, then tq.prepare_qat (not prepare), "
            "and fake-quantize the frozen layer, too."
        )
        assert all(int(m.fake_quant_enabled) == 1 for m in quantizers), "fake quantization is switched off."
        codes = 2 ** (bits - 1) - 1
        assert all((m.quant_min, m.quant_max) == (-codes, codes) for m in quantizers), (
            f"the weights are not fake-quantized to {bits} bits: use weight_only(bits)."
        )
        before, after = parts_of(kept), parts_of(trainee)
        frozen = torch.equal(after[0], before[0])
        moved = [not torch.equal(after[i], before[i]) for i in (2, 4)]
        assert frozen or any(moved), "only the first layer moved: it is the one that should be frozen."
        assert any(moved), (
            "no weight has moved: does the optimizer hold the parameters of *this* copy? If it was made of the original, or before a prepare_qat that copies, it is stale."
        )
        assert frozen, "the first layer's weight has moved: it should be frozen before the first step."
        assert torch.equal(after[1], before[1]), (
            "the first layer's bias has moved: freeze the whole layer, trainee[0].requires_grad_(False)."
        )
        assert all(moved), "only the first layer should be frozen: one of the others has not moved either."
        assert not any(torch.equal(after[i], before[i]) for i in (3, 5)), (
            "only the first layer should be frozen: a bias of the others has not moved."
        )
        assert not any(int(m.observer_enabled) for m in quantizers), (
            "the observers are still on: switch them off after half of the steps, trainee.apply(tq.disable_observer)."
        )
        assert not trainee.training, "the trained copy should be in eval mode."
        right, scales = recipe(kept, x, targets, bits, steps)
        if not apart(after, right, before) < 3e-5:  # the same steps in other words end within 2e-6
            known = [
                sentence
                for sentence, change in changes.items()
                if apart(after, recipe(kept, x, targets, bits, steps, **change)[0], before) < 3e-5
            ]
            assert len(known) != 1, f"your weights are not those of the six steps: {known[0]}"
            raise AssertionError(
                f"your weights are not those of the six steps; they differ by {apart(after, right, before):.1%} of what training moved them. Compare: "
                "Adam with learning rate 2e-3 and nothing else set; cross-entropy; 256 rows a step, in turn; zero_grad before each backward; observers off before step steps // 2."
            )
        for i, scale in zip((0, 2, 4), scales, strict=True):
            assert torch.allclose(trainee[i].weight_fake_quant.scale, scale, rtol=1e-4, atol=0), (
                f"the scales of layer {i} are not those of half of the steps: nothing may observe after the observers are off."
            )
        dtypes = describe.weight_dtypes(converted)
        assert list(dtypes.values()) == ["torch.qint8"] * 3, (
            f"the weights of the second model are {sorted(set(dtypes.values()))}: it should be what to_int8 returns."
        )
        real = describe.dequantized_weights(converted)
        for i in (0, 2, 4):
            with torch.no_grad():
                pretended = trainee[i].weight_fake_quant(trainee[i].weight)
            assert torch.allclose(real[str(i)], pretended, atol=1e-6), (
                f"the int8 weights of layer {i} are not those that training has seen: convert last, after all steps, with to_int8 of the same copy."
            )
        assert not converted.training, "the int8 model should be in eval mode, too: return it as to_int8 makes it."
        with torch.no_grad():
            assert (converted(x[:64]) - trainee(x[:64])).abs().max() < 0.2 * trainee(x[:64]).abs().max(), (
                "the int8 model computes something else than the trained copy: are its biases those after training?"
            )
        return trainee, converted

    with checks.check(
        "3.11",
        "the first layer is bit-equal, the others have gone where the six steps lead, and the codes are what training saw",
    ):
        judge(3112, (10, 24, 7), bits=3, steps=13, count=1148, training=False)
        judge(3111, (12, 16, 4), bits=2, steps=10, count=900, training=True)
    ### BEGIN HIDDEN TESTS
    for seed, sizes, bits, steps, count, training in [
        (3115, (16, 20, 6), 4, 11, 1000, False),
        (3114, (12, 24, 5), 2, 12, 1000, True),
    ]:
        returned = judge(seed, sizes, bits, steps, count, training)
        rows = torch.randn(3, sizes[0])
        assert [tuple(model(rows).shape) for model in returned] == [(3, sizes[2])] * 2, "another batch size fails."
    ### END HIDDEN TESTS


check_ex_3_11()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Everything that trains happens between `prepare_qat` and `to_int8`, on one and the same copy. Print `[name for name, p in trainee.named_parameters() if p.requires_grad]` before you make the optimizer.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `trainee = copy.deepcopy(body).train()`, set `trainee.qconfig`, `tq.prepare_qat(trainee, inplace=True)`. Only then freeze `trainee[0]` and give the optimizer what still requires a gradient. In step `steps // 2`, before the forward pass, `apply(tq.disable_observer)`.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `trainee[0].requires_grad_(…)`; `torch.optim.Adam([p for p in … if p.requires_grad], lr=2e-3)`; then the usual loop: rows, loss, `zero_grad`, `backward`, `step`. At the end `trainee.eval()` and return it with `to_int8(…)`.
# </details>

# %% [markdown]
# ### What is it worth, and how sure are we?
#
# One run of one network proves little. So: **three networks**, each born and trained with a seed of its own. Each is rounded to 2 and to 3 bits; fine-tuned with fake quantization and then rounded; and, as a control, fine-tuned *in float* for as many steps,
# and then rounded. The first layer is frozen everywhere. (`tuned_body` below is exercise 3.11 with batches drawn at random: solve that first.) The difference between the last two is computed for each network, and its 95 % interval is Student's for three values: mean ± 4.30 · standard deviation / √3.


# %%
def tuned_body(network: nn.Module, bits: int | None, count: int, seed: int) -> nn.Module:
    """The network's body after `count` steps with its first layer frozen; `bits` None: in float."""
    body = copy.deepcopy(network.body).train()
    if bits is not None:
        body.qconfig = weight_only(bits)
        tq.prepare_qat(body, inplace=True)
    body[0].requires_grad_(False)
    descent = torch.optim.Adam([weight for weight in body.parameters() if weight.requires_grad], lr=2e-3)
    shuffled = torch.Generator().manual_seed(seed)
    for number in range(count):
        if number == count // 2:
            body.apply(tq.disable_observer)
        chosen = torch.randint(len(train_ids), (1024,), generator=shuffled)
        with torch.no_grad():
            seen = network.features(train_ids[chosen])
        error = F.cross_entropy(body(seen), train_next[chosen])
        descent.zero_grad()
        error.backward()
        descent.step()
    return body.eval()


def just_rounded(body: nn.Module, bits: int) -> nn.Module:
    """PTQ: an int8 copy with codes of `bits` bits."""
    copied = copy.deepcopy(body).train().requires_grad_(True)
    copied.qconfig = weight_only(bits)
    tq.prepare_qat(copied, inplace=True)
    copied(torch.zeros(1, copied[0].in_features))
    return to_int8(copied)


results = []
for seed in (0, 1, 2):
    network = guesser if seed == 0 else fresh_network(seed)
    with torch.no_grad():
        held_out = network.features(test_ids)

    def cost(body: nn.Module, held_out: Tensor = held_out) -> float:
        """Bits per byte."""
        with torch.no_grad():
            return F.cross_entropy(body(held_out), test_next).item() / metrics.NATS_PER_BIT

    control = tuned_body(network, None, 50, seed)
    costs = {"float": cost(network.body), "float, 50 steps more": cost(control)}
    for bits in (3, 2):
        costs[f"{bits} bits: rounded (PTQ)"] = cost(just_rounded(network.body, bits))
        costs[f"{bits} bits: 50 float steps, rounded"] = cost(just_rounded(control, bits))
        costs[f"{bits} bits: 50 steps of QAT, int8"] = cost(to_int8(tuned_body(network, bits, 50, seed)))
    results.append(costs)
fig, ax = plots.figure(height=3.0)
means = {name: float(np.mean([result[name] for result in results])) for name in results[0]}
for i, name in enumerate(means):
    ax.plot(
        [result[name] for result in results],
        [i] * 3,
        "o",
        color=plots.PALETTE[0 if i < 2 else (i - 2) % 3 + 1],
        alpha=0.7,
    )
    ax.text(max(result[name] for result in results) + 0.1, i, f"{means[name]:.2f}", va="center")
ax.set_yticks(range(len(means)), list(means))
ax.invert_yaxis()
ax.margins(x=0.1, y=0.15)
ax.set_xlabel("bits per byte, held-out documents")
plots.show(
    fig,
    caption="Three networks (dots) and their mean (number); lower is better, and without any knowledge one needs 8 bits per byte.",
    alt="Three dots in each of eight rows. Means in bits per byte: "
    + "; ".join(f"{name} {mean:.2f}" for name, mean in means.items())
    + ".",
)
for bits in (3, 2):
    gains = np.array(
        [r[f"{bits} bits: 50 float steps, rounded"] - r[f"{bits} bits: 50 steps of QAT, int8"] for r in results]
    )
    half = 4.303 * gains.std(ddof=1) / 3**0.5
    print(f"{bits} bits, QAT against the control: {gains.mean():.2f} bits per byte better, ", end="")
    print(f"95 % interval {gains.mean() - half:.2f} to {gains.mean() + half:.2f}")

# %% [markdown]
# At 3 bits the three networks agree, mere rounding costs a few tenths of a bit, and the interval is narrow. At 2 bits rounding ruins the networks, the gain is many times larger, and so is the interval: how badly they are ruined differs much from one to the next. The control says that it
# is not the additional training that helps. And QAT does not bring everything back. Compare its rows with the float ones.
#
# How far does the interval carry? It speaks of other *seeds* of this network, with this text and these documents, and it trusts that such gains scatter like a bell curve, which three values cannot show. Where it does not reach 0,
# chance in the seeds is an unlikely explanation of the gain. About other tasks, texts and sizes it says nothing.
#
# ## 8. Which fire?
#
# You have bytes, errors and times. Now choose: a *budget* for error and bytes says what is allowed, and time decides among what is left. Two cautions belong into the rule.
#
# - **Times are noisy.** A difference of 5 % is no reason to accept a larger error. So whoever is within 5 % of the fastest counts as equally fast, and the most exact of them wins.
# - **No guessing.** A shape that you have not measured has no row in the table, and gets no answer.
#
# ### Exercise 3.10: choose from a table
# *Difficulty 3 of 5 · 25 minutes · 2 points*
#
# Write `choose`. Use the rows of the table with this width and batch. Of those with `error <= max_error` and `bytes <= max_bytes`, let the *candidates* be the ones with a ratio of at most 1.05 times the smallest ratio among them. The candidate with the smallest error is
# chosen. Also return *why the others were not*: for each other variant one word,
#
# | word | meaning |
# |---|---|
# | `"error"` | its error is over the budget (whatever its bytes are) |
# | `"bytes"` | its error is allowed, its bytes are not |
# | `"time"` | within both budgets, but not a candidate |
# | `"tie"` | a candidate, but less exact than the chosen one |
#
# If nothing fits, the choice is `None`. If there is no row for this width and batch, raise a `ValueError`. No table in the check has two equal errors.
#
# By hand: dynamic (ratio 0.40, error 0.02) and static (0.41, 0.03) fit the budgets, weight-only (1.10, 0.005) does, too. The smallest ratio is 0.40; $1.05 \cdot 0.40 = 0.42$. Candidates: dynamic and static. Chosen: dynamic. Static: "tie". Weight-only: "time".


# %% nbgrader={"grade": false, "grade_id": "ex_3_10", "locked": false, "schema_version": 3, "solution": true, "task": false}
def choose(
    table: list[dict], width: int, batch: int, max_error: float, max_bytes: int
) -> tuple[str | None, dict[str, str]]:
    """The variant to use for a shape, within a budget, and why not the others.

    Parameters
    ----------
    table : list of dict
        Measurements with the keys "variant" (str), "width", "batch", "bytes" (int), "error" and "ratio" (float: time of the
        variant / time of float). At most one row for a variant, width and batch. Other keys may be there.
    width, batch : int
        The shape that is asked for.
    max_error, max_bytes : float, int
        The budgets; equal is still allowed.

    Returns
    -------
    (str or None, dict of str to str)
        The chosen variant; for each other variant of this shape "error", "bytes", "time" or "tie".

    Raises
    ------
    ValueError
        If the table has no row for this width and batch.
    """
    ### BEGIN SOLUTION
    here = [row for row in table if row["width"] == width and row["batch"] == batch]
    if not here:
        raise ValueError(f"width {width} with batch {batch} was not measured.")
    why = {row["variant"]: "error" if row["error"] > max_error else "bytes" for row in here}
    fitting = [row for row in here if row["error"] <= max_error and row["bytes"] <= max_bytes]
    if not fitting:
        return None, why
    limit = 1.05 * min(row["ratio"] for row in fitting)
    for row in fitting:
        why[row["variant"]] = "tie" if row["ratio"] <= limit else "time"
    chosen = min((row for row in fitting if row["ratio"] <= limit), key=lambda row: row["error"])["variant"]
    del why[chosen]
    return chosen, why
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_3_10_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 3.10: run this cell.
import random

from helpers import checks


@checks.isolated
def check_ex_3_10() -> None:
    def table_of(width: int, batch: int, entries: dict[str, tuple[int, float, float]]) -> list[dict]:
        return [
            {
                "variant": name,
                "width": width,
                "batch": batch,
                "bytes": size,
                "error": error,
                "ratio": ratio,
                "threads": 1,
            }
            for name, (size, error, ratio) in entries.items()
        ]

    # bytes, error, ratio; the same layer is faster with 128 rows than with one, and another variant wins
    small = {"float": (16640, 0.0, 1.0), "static": (5400, 0.027, 4.1), "dynamic": (4380, 0.021, 3.2)}
    one_row = {"float": (4198400, 0.0, 1.0), "static": (1069068, 0.027, 0.22), "dynamic": (1052700, 0.021, 0.51)}
    many_rows = {"float": (4198400, 0.0, 1.0), "static": (1069068, 0.027, 0.195), "dynamic": (1052700, 0.021, 0.199)}
    table = (
        table_of(1024, 128, many_rows | {"weights": (1057792, 0.006, 1.08)})
        + table_of(64, 1, small | {"weights": (4672, 0.006, 2.9)})
        + table_of(1024, 1, one_row | {"weights": (1057792, 0.006, 0.97)})
    )
    # the budgets and the 5 %, from both sides: each batch is a small table of its own
    table += table_of(256, 10, {"a": (90, 0.03, 1.0), "b": (100, 0.01, 1.02)})
    table += table_of(256, 2, {"a": (100, 0.03, 1.0), "b": (90, 0.01, 1.0524)})
    table += table_of(256, 3, {"a": (100, 0.03, 0.2), "b": (90, 0.01, 0.22)})
    table += table_of(256, 4, {"a": (100, 0.03, 2.0), "b": (90, 0.01, 2.08)})
    table += table_of(256, 5, {"c": (80, 0.01, 1.08), "a": (100, 0.03, 1.0), "b": (90, 0.02, 1.04)})
    table += table_of(256, 6, {"a": (100, 0.5, 0.95), "b": (90, 0.03, 0.98), "c": (80, 0.02, 1.02)})
    table += table_of(256, 7, {"a": (100, 0.02, 1.0), "b": (110, 0.01, 1.05), "c": (90, 0.005, 1.0501)})
    table += table_of(256, 8, {"a": (100, 0.02, 3.0), "b": (90, 0.02 + 1e-12, 1.0), "c": (101, 0.001, 1.0)})
    table += table_of(256, 9, {"a": (100, 0.0, 5.0), "b": (90, 0.001, 1.0)})
    table += table_of(256, 11, {"a": (100, 0.02, 0.3333), "b": (90, 0.01, 0.3499655)})
    for row in table[::3]:
        del row["threads"]  # other keys may be there, or not
    # width, batch, max_error, max_bytes, choice, reasons, the likely mistake
    asked = [
        (64, 1, 1.0, 10**9, "float", {"static": "time", "dynamic": "time", "weights": "time"}, "a ratio below 1 means faster than float, above 1 slower."),
        (64, 1, 1.0, 6000, "weights", {"float": "bytes", "static": "time", "dynamic": "time"}, "the budget for bytes is what excludes the float layer here."),
        (1024, 1, 0.05, 2 * 10**6, "static", {"float": "bytes", "dynamic": "time", "weights": "time"}, "use the rows of this batch only, and let time decide among what fits."),
        (1024, 1, 0.027, 1069068, "static", {"float": "bytes", "dynamic": "time", "weights": "time"}, "equal to the budget is still allowed."),
        (1024, 128, 0.05, 2 * 10**6, "dynamic", {"float": "bytes", "static": "tie", "weights": "time"}, "the fastest is not 5 % faster than another candidate that is more exact."),
        (1024, 128, 0.01, 2 * 10**6, "weights", {"float": "bytes", "static": "error", "dynamic": "error"}, "the budget for the error is smaller than before."),
        (1024, 128, 0.001, 10**7, "float", {"static": "error", "dynamic": "error", "weights": "error"}, "only the float layer is exact enough here."),
        (1024, 128, 0.02, 1060000, "weights", {"float": "bytes", "static": "error", "dynamic": "error"}, "only one fits both budgets."),
        (1024, 128, 0.03, 1052699, None, {"float": "bytes", "static": "bytes", "dynamic": "bytes", "weights": "bytes"}, "nothing fits."),
        (64, 1, 0.006, 4500, None, {"float": "bytes", "static": "error", "dynamic": "error", "weights": "bytes"}, "nothing fits."),
        (256, 10, 0.1, 1000, "b", {"a": "tie"}, "among the candidates the smallest error decides, not the bytes or the time."),
        (256, 2, 0.1, 1000, "a", {"b": "time"}, "a candidate has at most 1.05 times the smallest ratio; 1.0524 is more, although 1.0 is more than 0.95 of it."),
        (256, 3, 0.1, 1000, "a", {"b": "time"}, "5 % are a part of the smallest ratio; 0.22 is 10 % slower than 0.2, although the difference is 0.02."),
        (256, 4, 0.1, 1000, "b", {"a": "tie"}, "5 % are a part of the smallest ratio; 2.08 is 4 % slower than 2.0, although the difference is 0.08."),
        (256, 5, 0.1, 1000, "b", {"a": "tie", "c": "time"}, "every ratio is compared with the smallest one, not with the next smaller one."),
        (256, 6, 0.1, 1000, "c", {"a": "error", "b": "tie"}, "the smallest ratio is that of the rows within both budgets; the row with 0.95 is not."),
        (256, 7, 0.1, 1000, "b", {"a": "tie", "c": "time"}, "exactly 1.05 times the smallest ratio is still a candidate, 1.0501 times is not."),
        (256, 8, 0.02, 100, "a", {"b": "error", "c": "bytes"}, "equal to a budget is allowed, and the least bit more is not."),
        (256, 9, 0.0, 1000, "a", {"b": "error"}, "an error of 0.0 is within a budget of 0.0."),
        (256, 11, 0.1, 1000, "a", {"b": "time"}, "0.3499655 is more than 1.05 times 0.3333, which is 0.349965: round nothing, and allow nothing on top."),
    ]  # fmt: skip

    with checks.check("3.10", "your choices are not beaten within the budget, and each other variant has its reason"):
        choices = []
        for width, batch, max_error, max_bytes, right, reasons, sentence in asked:
            try:
                with checks.untouched(table=table):
                    answer = choose(table, width, batch, max_error, max_bytes)
            except ValueError as error:
                if "empty" not in str(error):
                    raise
                raise AssertionError(
                    "no candidate was left: the smallest ratio is that of the rows within both budgets, not of all rows (and where "
                    "nothing fits, the choice is None)."
                ) from None
            checks.given(answer, "what choose returned")
            assert isinstance(answer, tuple | list) and len(answer) == 2, (
                "what choose returned should be a pair: the choice, and the reasons of the others."
            )
            choices.append((answer[0], right, answer[1], reasons, (width, batch, max_error, max_bytes), sentence))
        assert len({str(choice[0]) for choice in choices}) > 1, (
            f"your answer is always {choices[0][0]}: it must depend on the shape, the table and the budgets."
        )
        for choice, right, given, reasons, (width, batch, max_error, max_bytes), sentence in choices:
            what = f"width {width}, batch {batch}, max_error={max_error}, max_bytes={max_bytes}"
            rows = {row["variant"]: row for row in table if (row["width"], row["batch"]) == (width, batch)}
            assert right is not None or choice is None, (
                f"for {what} nothing fits, and the choice is None, not {choice!r}."
            )
            if choice is not None:
                assert choice in rows, f"for {what} you chose {choice!r}, which is not in the table."
                row = rows[choice]
                assert row["error"] <= max_error, (
                    f"for {what} you chose {choice}, whose error is over the budget: {sentence}"
                )
                assert row["bytes"] <= max_bytes, (
                    f"for {what} you chose {choice}, whose bytes are over the budget: {sentence}"
                )
            assert choice == right, f"for {what} you chose {choice}; expected is {right}: {sentence}"
            assert isinstance(given, dict), "the reasons should be a dictionary: variant to word."
            assert None not in given, f"for {what} there is a reason against None, which is no variant."
            assert right not in given, f"for {what} the chosen variant has a reason against it."
            missing = sorted(set(reasons) - set(given))
            assert not missing, f"for {what} there is no reason why not {missing[0]}."
            extra = sorted(set(given) - set(reasons))
            assert not extra, f"for {what} there is a reason for {extra[0]}, which has no row for this shape."
            for name, word in reasons.items():
                assert given[name] == word, (
                    f"for {what} your reason against {name} is {given[name]!r}; expected is {word!r}. "
                    "Look at the error first, then the bytes, then the time."
                )
        checks.raises(
            ValueError,
            lambda: choose(table, 512, 1, 1.0, 10**9),
            "a width that was not measured must raise a ValueError: do not guess from other rows.",
        )
        checks.raises(
            ValueError,
            lambda: choose(table, 64, 128, 1.0, 10**9),
            "a batch that was not measured must raise a ValueError: width 64 has other batches only.",
        )
    ### BEGIN HIDDEN TESTS
    for w, b, most_error, most_bytes, right, reasons, _ in asked:
        with checks.untouched(table=table):
            answer = choose(table, w, b, most_error, most_bytes)
        assert isinstance(answer, tuple | list) and tuple(answer) == (right, reasons), "wrong at a limit."
    dice = random.Random(3100)
    for _ in range(30):
        shapes = [(w, b) for w in (32, 128, 512) for b in (1, 8)]
        data = []
        for w, b in shapes:
            for name in ("a", "b", "c", "d", "e"):
                size, error = dice.choice([100, 200, 300, 400]), dice.random()
                data += table_of(w, b, {name: (size, error, dice.choice([0.3, 0.31, 0.3149, 0.33, 1.0, 2.0]))})
        dice.shuffle(data)
        for w, b in shapes:
            most_error, most_bytes = dice.choice([0.2, 0.6, 0.9]), dice.choice([100, 200, 300, 400])
            with checks.untouched(table=data):
                got, words = choose(data, w, b, most_error, most_bytes)
            own = {row["variant"]: row for row in data if (row["width"], row["batch"]) == (w, b)}
            allowed = [r for r in own.values() if r["error"] <= most_error and r["bytes"] <= most_bytes]
            quick = [r for r in allowed if all(r["ratio"] <= 1.05 * other["ratio"] for other in allowed)]
            best = [r["variant"] for r in quick if all(r["error"] <= other["error"] for other in quick)]
            assert got == (best[0] if best else None), "a choice that is beaten within the budget."
            assert set(words) == set(own) - {got}, "a reason is missing, or there is one too many."
            for name, word in words.items():
                row = own[name]
                if row["error"] > most_error:
                    assert word == "error", "wrong reason."
                elif row["bytes"] > most_bytes:
                    assert word == "bytes", "wrong reason."
                else:
                    assert word == ("tie" if row in quick else "time"), "wrong reason."
    answered = []
    for rows, w, b in ([], 32, 1), (data, 64, 1), (data, 32, 4), (data, 128, 2):
        try:
            answered.append(choose(rows, w, b, 1.0, 10**6))
        except ValueError:
            continue
    assert not answered, "a shape that was not measured gets an answer."
    ### END HIDDEN TESTS


check_ex_3_10()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Three sieves, one after the other: shape, budgets, time. Give each row its word at the sieve where it stays behind.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# First give every row of this shape the word that it has if it does not fit ("error" before "bytes"). Then overwrite the words of those that fit: "tie" within 5 % of their smallest ratio, else "time". The chosen one is the "tie" with the smallest error; remove its word.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `here = [row for row in table if …]`; `fitting = [row for row in here if row["error"] <= … and …]`; `limit = 1.05 * min(…)`; `min((row for row in fitting if …), key=lambda row: row["error"])`.
# </details>

# %% [markdown]
# ### Your guide, from your own table
#
# Now apply it to what *this* computer measured in section 5. (A time that was not known there has no row, and no answer.) "Static, core" is left out: alone, a layer needs its stubs. Three budgets: anything goes; half of the float layer's bytes at most; and half of the bytes with an error of at most 1 %.

# %% tags=["varies"]
rows = []
try:
    for width, batch in itertools.product(widths, batches):
        whole = 4 * width * (width + 1)
        own = [m for m in measured if m["threads"] == 1 and m["variant"] != "static, core"]
        own.append({"variant": "float", "width": width, "batch": batch, "bytes": whole, "error": 0.0, "ratio": 1.0})
        known = sum((m["width"], m["batch"]) == (width, batch) for m in own)
        line = {"width": width, "rows in a batch": batch, "known": f"{known} of {len(names)}"}
        for title, budget in {
            "no budget: the fastest": (1.0, 2 * whole),
            "half of the bytes": (1.0, whole // 2),
            "half of the bytes, error ≤ 1 %": (0.01, whole // 2),
        }.items():
            line[title] = choose(own, width, batch, *budget)[0] or "nothing known fits"
        rows.append(line)
    tables.show(rows)
    print(f"{environment.processor()}, engine {torch.backends.quantized.engine}, one thread")
except NotImplementedError:
    print("Solve exercise 3.10, and run this cell again.")

# %% [markdown]
# This table is about a layer alone: "static, with stubs" pays for both stubs in every call. In a network of int8 layers compare with "static, core" of section 5.
#
# **The guide on one page.** It says what to try first. Your table has the last word.
#
# | your case | try first | because (section) |
# |---|---|---|
# | narrow layers, few rows | float | a call has a fixed price; there is little to save (5) |
# | memory is short, time is not | torchao weight-only int8 | the most exact of the int8 versions, no calibration (4, 5) |
# | wide layers, one row at a time | weight-only with a kernel that reads codes | a row is a matter of reading, and codes are fewer bytes (5) |
# | memory is very short | 4 bits, in groups, packed, and a kernel that reads them | a group costs a bit a weight; unpacked saves nothing over int8 (4) |
# | wide layers, inputs that change in size | dynamic | no calibration, no stubs, output stays float (5) |
# | wide layers behind each other, known data, throughput counts | static, fused, stubs only at the ends | integers flow from layer to layer, a quarter of the traffic (4, 5, 6) |
# | a processor without VNNI, or an unknown one | 7-bit activations (`reduce_range`), the default on PCs | 16-bit sums overflow with 8 bits (3) |
# | 2 or 3 bits | QAT, with a float-tuned control beside it | with one scale a row, rounding alone costs tenths of a bit at 3 bits and ruins the networks at 2 (7) |
# | some layers must not change | freeze them in the fake-quantized model, convert last | a converted layer has no parameters (7) |
#
# ## 9. The book's Linear chapter, corrected
#
# All snippets and claims of the book stand in `docs/book_corrected.md` (in the course's own folder, which JupyterLab does not show), with a test for each row. Those on Linear layers, and where you met them:
#
# | the book | verdict | what happens | section |
# |---|---|---|---|
# | "LLM" is short for Linear Layer Module | wrong | everywhere else it is a large language model | |
# | `nn.Linear` quantizes weights and activations independently | wrong | it quantizes nothing: float weights, float products | 1 |
# | `nn.quantized.Linear` uses one scale per channel | depends | the qconfig decides; with qnnpack, or made directly, it has one for the whole weight | 1, 4 |
# | `nn.quantized.Linear` takes more computation time | depends | slower where there is little to multiply, faster where there is much | 5 |
# | dynamic has a higher accuracy for a specific range of values | half right | it needs no statistics, right; its range is that of each batch, so one loud row costs the others | 5; unit 02, 6 |
# | dynamic is more memory-intensive | wrong, but | the same bytes are kept; what flows *between* layers is float | 4 |
# | `LinearReLU` reduces the need for negative weights | wrong | the codes are the same; it is outputs that lose their negative half | 6 |
# | `LinearReLU` needs more memory with many ReLUs | wrong | the same bytes | 6 |
# | `nn.quantized.Linear` has the best balance | not in general | depends on shape, threads, budget, processor | 5, 8 |
# | `convert` makes an `nn.quantized.ReLU` of each ReLU | wrong | there is none; `nn.ReLU` works on codes | 6 |
# | `nn.quantized.Linear(5, 2, bias=True)` in a float model | fails | the argument is `bias_`; and the layer cannot read float | 7 |
# | freeze with `layer2.weight.requires_grad = False` | fails | `weight` is a method; freeze before converting | 7 |
# | an optimizer for the converted model | fails | no parameters are left | 7 |
# | quantize dynamically, train, convert | does nothing | prepare_qat, train, convert | 7 |
#
# And its three fun facts, which we leave out, for a reason each:
#
# | the book | verdict | what we could find |
# |---|---|---|
# | PyTorch quantization is used in Caffe2Go | wrong | Caffe2Go was Caffe2's way to mobile devices, before PyTorch had any quantization (that came with 1.3, in October 2019); the document that is cited is not to be found |
# | "fine-tuning" was introduced in a 1995 paper, *Gradient-Based Learning Applied to Document Recognition* | wrong | that paper is of 1998 (Proceedings of the IEEE 86); we found nothing that says it coined the word; the link leads to another paper |
# | the first release of PyTorch was in October 2016 | wrong | the public release was in January 2017, after alpha versions in 2016; the link is about version 1.0 |

# %% [markdown]
# ## Where you stand

# %% tags=["varies"]
checks.show_progress("3", exercises=11)

# %% [markdown]
# *Prometheus had a choice of fires, and everybody had told him which was best. He asked instead what was to be cooked, for how many, and how much wood there was. For a single cup the sun was enough; for a whole people he took the fire of the forge. He wrote down what he had
# measured, and gave that away with the flame: a fire without a measure burns down houses.*
#
# ## Key takeaways
#
# - An int8 Linear is integer sums, zero-point corrections, a bias in int32 and one fixed-point multiplication; in our comparisons PyTorch's kernels got the same codes, within one (3.1 to 3.6).
# - How long a sum may be is arithmetic, not hope: int32 has room for 65,793 products at worst, pairs in int16 may not fit (3.7).
# - Fusion with ReLU frees the negative half of the codes; a BatchNorm1d must be folded, since `convert` has no int8 module for it; a module that is used twice must not be fused (3.8).
# - Bytes follow from shape and scheme: scales, zero points and groups are part of the bill (3.9).
# - Whether int8 is faster depends on width, batch, threads, kernel and processor; draw the map on the machine that you will use (section 5).
# - A choice needs a budget, a table and a rule for ties; with them it is a calculation (3.10).
# - Nothing in a converted layer can be trained. Fake-quantize, freeze, train, freeze the observers, convert last; and compare with a float-tuned control, over several seeds (3.11).
#
# **When not to quantize.** Not when the layers are narrow and get one row at a time: you pay for every call. Not when neither memory nor time is short: each scheme adds an error that somebody has to measure. Not to 4 bits when your kernel keeps them in bytes. Not statically without data like that of
# the future. And not before a float model of the right size: a smaller network may cost less and err less than a large one in few bits.
#
# **References.** Jacob et al. 2018, [Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference](https://arxiv.org/abs/1712.05877) · Khudia et al. 2021,
# [FBGEMM: Enabling High-Performance Low-Precision Deep Learning Inference](https://arxiv.org/abs/2101.05615) · Wu et al. 2020,
# [Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation](https://arxiv.org/abs/2004.09602) · PyTorch,
# [fuse_modules](https://docs.pytorch.org/docs/stable/generated/torch.ao.quantization.fuse_modules.fuse_modules.html)
