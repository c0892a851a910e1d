# %% [markdown]
# # Component-wise quantization
#
# Take the course model apart, ask every component the same four questions, quantize each in the way that suits it, and put it together again: in int8 from
# the first block to the last, measured on documents it has never seen, and shipped as a file that another process can load.
#
# | At a glance | |
# |---|---|
# | **You will** | list what is in a Transformer; quantize an embedding to 8 and to 4 bits, and read the bytes; decide by measurement whether a table of positions needs it; build attention, a feed-forward network and a block that PyTorch can quantize; rank the components by what they cost; fine-tune at 4 bits; keep a tie in a file; ship the result |
# | **You need** | unit 02: scale, zero point, observers, `prepare` and `convert`, QAT; from unit 03: bytes of a layer, why x86 engines like 7-bit inputs |
# | **Time** | about 6 hours, in three sittings: sections 1 to 3; 4 to 7; 8 to the end |
# | **Graded** | 10 exercises, 25 points |
#
# *Robin Hood has one cart of iron for the whole band, and everyone wants armour. Little John asks for a breastplate and gets it. The scout asks for one, too, and
# Robin sends him through the hedge with it, listens, and takes it away again. He arms the band one by one, and after each he listens.*

# %%
import copy
import hashlib
import inspect
import io
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.ao.nn.qat as nnqat
import torch.ao.nn.quantizable
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional

from helpers import (
    affine,
    checks,
    components,
    data,
    errors,
    int8,
    known_warnings,
    latency,
    metrics,
    plots,
    profiling,
    quantizable,
    rounding,
    tables,
)
from helpers.checkpoint import load_course_model
from helpers.models import Block, FeedForward, ModelConfig, SelfAttention, TransformerLM, causal_mask

known_warnings.hide()
engine = int8.choose_engine()

# %% [markdown]
# ## 1. What is in it?
#
# Up to now you have quantized Linear layers. A Transformer has more parts: a table of token vectors, a table of positions, products of two activations, a softmax, LayerNorms, a GELU, residual adds. Does
# one recipe fit them all? To find out, every component of this unit gets the same **four questions**:
#
# 1. **What is in it?** Bytes, range, distribution.
# 2. **Which schemes fit?** How many bits, and who shares a scale.
# 3. **What does quantizing it alone cost?** In bits per byte against the float model, with an interval; and as SQNR (signal-to-quantization-noise ratio, unit 02) in dB.
# 4. **What does it save?** Bytes of the file, or time.
#
# We start with the first question, for all components at once. `helpers.components` knows the parts of the course model by name: which weights belong to each, and which tensors it makes. First the weights:

# %%
course_model = load_course_model().requires_grad_(False)
calibration = data.windows("training", 4)[:, :256]  # ids (documents, time): documents that the model was trained on

weight_rows = []
for name in components.COMPONENTS:
    owned = components.weight_names(course_model, name)
    numbers = [(course_model.positions if n == "positions" else course_model.get_parameter(n)).detach() for n in owned]
    in_file = 0 if name == "positions" else components.weight_bytes(course_model, name)
    if numbers:
        weight_rows.append(
            {
                "component": name,
                "tensors": len(numbers),
                "kB in memory": f"{components.weight_bytes(course_model, name) / 1000:.0f}",
                "kB in the file": f"{in_file / 1000:.0f}",
                "smallest": f"{min(n.min() for n in numbers):.2f}",
                "largest": f"{max(n.max() for n in numbers):.2f}",
            }
        )
tables.show(weight_rows)
print(f"the file: {metrics.file_bytes(course_model) / 1000:.0f} kB")

# %% [markdown]
# Two rows look odd, and both will come back. The *head* owns nothing: its matrix **is** the embedding's, one tensor with two names (the head is *tied*; section 10). And the *positions* are in memory, but not in the
# file (section 3).
#
# Nearly all bytes are in the six kinds of matrices inside the blocks. So whoever wants a small file starts there, and the embedding of this model is a side show. It is one because a byte-level model has only 256 tokens. Here is the same model with other vocabularies:

# %%
fig, ax = plots.figure(width=8.5, height=2.9)
vocabularies = [256, 8_192, 32_768, 131_072]
blocks_mb = sum(p.numel() for p in course_model.blocks.parameters()) * 4 / 1e6
table_mb = np.array([v * course_model.config.d_model * 4 / 1e6 for v in vocabularies])
labels = [f"{v:,} tokens" for v in vocabularies]
ax.barh(labels, [blocks_mb] * len(labels), color=plots.BLUE, label="blocks")
ax.barh(
    labels,
    table_mb,
    left=blocks_mb,
    color=plots.ORANGE,
    hatch="//",
    edgecolor="white",
    label="embedding (and tied head)",
)
for i, mb in enumerate(table_mb):
    ax.text(blocks_mb + mb + 1, i, f"{mb / (mb + blocks_mb):.0%} embedding", va="center", fontsize=9)
ax.invert_yaxis()
ax.margins(x=0.18)
ax.set_xlabel("float32 megabytes")
ax.legend(loc="upper right")
plots.show(
    fig,
    caption="The course model's shape with larger vocabularies: the blocks stay as they are, the embedding grows with every token.",
    alt="Horizontal bars for four vocabulary sizes. The part of the blocks is the same in all of them; the part of the embedding is a sliver at 256 tokens and nearly the whole bar at 131,072.",
)

# %% [markdown]
# With a vocabulary as in large models, a small Transformer is mostly embedding. So it deserves a scheme of its own (section 2), even if our model gains little from it.
#
# Now the tensors that each component *makes* when it runs. A static int8 model needs a range for each of them. Two numbers say how hard that is: the range itself, and how much of it is used. If a tensor runs from $a$ to $b$, 8 bits cut it into
# steps of $s = (b - a) / 255$. If a number lies anywhere in its step, with equal chances, rounding makes an error of $s / \sqrt{12}$ (root mean square, RMS). So we can *predict* the SQNR of a tensor from its RMS and its range, without quantizing anything:
#
# $$\text{SQNR} \approx 20 \log_{10} \frac{\text{RMS}}{s / \sqrt{12}} \ \text{dB}$$
#
# The table shows the prediction beside the SQNR that is measured when the tensor is really rounded, for the tensor of each component with the worst prediction. *Filled* is the part of the range that the middle 99 % of its numbers take up.

# %%
made_tensors = components.recorded(course_model, calibration)
picture_rows, tensor_rows = [], []
for name, made in made_tensors.items():
    for number, values in enumerate(made):
        flat = values.flatten().double()
        low, high = min(flat.min().item(), 0.0), max(flat.max().item(), 0.0)
        middle = np.quantile(flat.numpy()[:: max(1, len(flat) // 100_000)], [0.005, 0.995])
        predicted = 20 * math.log10(flat.square().mean().sqrt().item() * 12**0.5 * 255 / (high - low))
        picture_rows.append((name, number, len(made), low, high, *middle, predicted))
for name, made in made_tensors.items():
    mine = [row for row in picture_rows if row[0] == name]
    if mine:
        worst = min(mine, key=lambda row: row[7])
        values, (low, high) = made[worst[1]], worst[3:5]
        rounded = affine.fake_quantize(values, *affine.qparams(low, high, 0, 255), 0, 255)
        filled = [(row[6] - row[5]) / (row[4] - row[3]) for row in mine]
        tensor_rows.append(
            {
                "component": name,
                "tensors": len(mine),
                "narrowest range": "{3:.2f} to {4:.2f}".format(*min(mine, key=lambda row: row[4] - row[3])),
                "widest range": "{3:.2f} to {4:.2f}".format(*max(mine, key=lambda row: row[4] - row[3])),
                "filled": f"{min(filled):.0%} to {max(filled):.0%}",
                "predicted dB, best": f"{max(row[7] for row in mine):.1f}",
                "predicted dB, worst": f"{worst[7]:.1f}",
                "measured dB, the same tensor": f"{metrics.sqnr_db(values, rounded):.1f}",
                "its numbers below half a step": f"{(values.abs() < (high - low) / 510).float().mean():.0%}",
            }
        )
tables.show(tensor_rows)

# %% [markdown]
# The prediction is within a tenth of a decibel for most rows, and several decibels too low for one: the probabilities. Most of those lie below half a step (the last column; half of them are exact zeros, because nobody looks into the future). Such a number becomes 0, so its error is *the number itself*, which is smaller than what
# the formula expects; an exact zero has no error at all. GELU outputs have some of the same. So the formula holds where few numbers lie below half a step, and is pessimistic where many do. Section 5 comes back to it.

# %%
fig, ax = plots.figure(width=8.5, height=5.2)
order = [row["component"] for row in tensor_rows]
for name, number, count, low, high, inner_low, inner_high, _ in picture_rows:
    y = order.index(name) + (number - (count - 1) / 2) * min(0.18, 0.8 / count)
    largest = max(-low, high)
    ax.plot([low / largest, high / largest], [y, y], color=plots.GREY, linewidth=0.9, marker="|", markersize=4)
    ax.plot([inner_low / largest, inner_high / largest], [y, y], color=plots.BLUE, linewidth=3, solid_capstyle="butt")
ax.set_yticks(range(len(order)), order)
ax.invert_yaxis()
ax.axvline(0, color=plots.GREY, linewidth=0.6, linestyle=":")
ax.set_xlabel("value / largest magnitude of the same tensor")
plots.show(
    fig,
    caption="Range of every tensor on four training documents, divided by its own largest magnitude; one line for each block, the first block on top. Thin: smallest to largest value. Thick: the middle 99 %. (The norms and the residual stream have nine lines each, two for a block and one for the end or the beginning.)",
    alt="Thin and thick horizontal lines for each component; each thin line reaches 1 or −1. Probabilities and GELU outputs lie at 0 and to the right of it. The thick lines of embedding, norm, query, key, value and head take up about half of the thin ones or more. "
    "In the later lines of the residual stream, and in those of down, the thick part is a short piece around 0.",
)

# %% [markdown]
# Three kinds of tensors can be told apart before anything is quantized:
#
# - **Well-behaved:** token vectors, norms, queries, keys, values, and the logits of the head. The thick line fills about half of the thin one, or more.
# - **One-sided:** probabilities, never negative, and GELU outputs, which may be negative but never by much (no lower than −0.17). A symmetric scheme would waste nearly half of its codes on numbers that do not occur.
# - **Stretched:** the residual stream, and what `down` writes into it. A few values reach far beyond all others. One scale for them is coarse; section 7 measures what that costs, and finds out where these values are.
#
# The others (scores, mix, `out`, `up`) lie between the first kind and the third. The same three kinds as histograms. The counts are logarithmic, because the interesting values are the rare ones:

# %%
fig, axes = plots.figure(columns=3, width=9.5, height=2.7)
for ax, (name, title) in zip(
    axes,
    [("key", "key, last block"), ("gelu", "GELU, last block"), ("residual", "residual stream, last block")],
    strict=True,
):
    values = made_tensors[name][-1].flatten().numpy()
    ax.stairs(*np.histogram(values, bins=120), fill=True, color=plots.BLUE)
    ax.set_yscale("log")
    for edge in (values.min(), values.max()):
        ax.axvline(edge, color=plots.ORANGE, linestyle="--", linewidth=1)
    ax.set_title(title)
    ax.set_xlabel("value")
axes[0].set_ylabel("how many (log)")
plots.show(
    fig,
    caption="Three kinds of distributions; the dashed lines are the smallest and the largest value, and all 256 codes must be spread between them.",
    alt="Three histograms with logarithmic counts. The keys fill their range. The GELU outputs are squeezed against zero with a long tail to the right. The residual stream is a narrow peak with rare values far away on both sides.",
)

# %% [markdown]
# How do we answer question 3? **Paired by document**: for each document of a sample, take the mean of its bits per byte with the changed model minus the mean with the float model. What remains is one difference per document. Their mean is the cost, and its
# *standard error* (standard deviation divided by $\sqrt{n}$) says how sure we are; mean ± 2 standard errors is roughly a 95 % interval. Documents differ far more from each other than two models do on one document, so pairing is what makes small costs visible:

# %%
judged = data.windows("held_out", 12)  # ids (documents, time): only for reporting
float_bits = metrics.next_byte_bits(course_model, judged)  # (documents, time - 1)


def cost(model: nn.Module, ids: Tensor = judged, reference: Tensor = float_bits) -> tuple[float, float]:
    """Bits per byte more than the float model (`reference`) needs on `ids`: mean over documents, and its standard error."""
    by_document = (metrics.next_byte_bits(model, ids) - reference).mean(dim=1)  # (documents,)
    return by_document.mean().item(), by_document.std().item() / len(by_document) ** 0.5


per_document = float_bits.mean(dim=1)
print(f"float model: {per_document.mean():.3f} bits per byte on {len(judged)} held-out documents,")
print(f"with a standard error of {per_document.std() / len(judged) ** 0.5:.3f} if documents are not paired")

# %% [markdown]
# ## 2. The embedding
#
# **What is in it?** One row of 256 numbers for each token. **What does it do with them?** It multiplies nothing. It copies the rows whose numbers it is given. That makes it the easiest component: its input is integers already, so no activation has to be
# quantized, and no observer has to look at data. And each row is used on its own, so that each row can have a scale of its own.
#
# > **The book says** (its chapter 4): the embedding is large, so hand it to `quantize_dynamic` with `{nn.Embedding}` and `dtype=torch.qint8`.
# >
# > **What happens:** nothing at all, and nobody says so. Inside a model, it is refused:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
bare_embedding = nn.Embedding(1000, 128)
asked = tq.quantize_dynamic(bare_embedding, {nn.Embedding}, dtype=torch.qint8)
print(
    "bare:",
    type(asked).__module__,
    asked.weight.dtype,
    "- file",
    metrics.file_bytes(asked),
    "bytes, before",
    metrics.file_bytes(bare_embedding),
)
print("inside a model: ", end="")
errors.show_error(lambda: tq.quantize_dynamic(nn.Sequential(bare_embedding), {nn.Embedding}, dtype=torch.qint8))

# %% [markdown]
# Two separate reasons. `quantize_dynamic` replaces *children*: the module that you hand over is the root, and the root is never replaced, whatever you ask for. And an embedding takes no `qint8`: it wants *float qparams*. The message names a qconfig that has them:

# %%
in_a_model = tq.quantize_dynamic(nn.Sequential(bare_embedding), {nn.Embedding: tq.float_qparams_weight_only_qconfig})
print("bytes of the file:", metrics.file_bytes(in_a_model), "instead of", metrics.file_bytes(bare_embedding))
stored = in_a_model[0].weight()
print(stored.dtype, stored.qscheme())
for row in range(2):
    print(
        f"row {row}: scale {stored.q_per_channel_scales()[row]:.5f}, zero point {stored.q_per_channel_zero_points()[row]:.5f}"
    )

# %% [markdown]
# > **What works:** a model with the embedding as a child, and `{nn.Embedding: tq.float_qparams_weight_only_qconfig}`.
#
# The zero points are not whole numbers. That is what *float qparams* means. In unit 02 the zero point was an integer code, so that the real number 0 had a code of its own, and for that, the range was widened to include 0. Zeros matter where they are padded in, or made by a ReLU. A row of an
# embedding has no such zeros. So PyTorch spends all codes on the row's own range: the smallest number of row $r$ gets code 0, the largest gets code 255:
#
# $$s_r = \frac{\max_r - \min_r}{255}, \qquad z_r = -\frac{\min_r}{s_r}, \qquad q = \text{round}\Big(\frac{x}{s_r} + z_r\Big), \qquad \hat{x} = (q - z_r)\, s_r$$
#
# ($s_r$ scale, $z_r$ zero point, $q$ code, $\hat x$ what comes back.) By hand: the row (−1.00, 0.50, 1.55) has $s = 2.55 / 255 = 0.01$ and $z = 100$; its codes are 0, 150, 255. The row (10.00, 10.20, 12.55) has the same scale and $z = -1000$, which no `uint8` could hold; its codes are 0, 20, 255. A range widened to 0 would make its step
# five times as large. A row whose numbers are all equal has no range; PyTorch gives it the scale 1, and then $z = -\min$ brings the number back exactly.
#
# What does the kernel do with it when a token is looked up? It stores neither $z$ nor the float row. Each row is its codes, and behind them 8 bytes: the scale, and the *bias* $b_r = -s_r z_r$, which is the row's minimum. A lookup is one multiplication and one addition for each number, $\hat{x} = q s_r + b_r$. We can look at these bytes, and test the claim:

# %%
weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(4)) + torch.tensor(
    [[0.0], [0], [5], [5], [-9], [40]]
)
layer = tq.quantize_dynamic(
    nn.Sequential(nn.Embedding.from_pretrained(weight)), {nn.Embedding: tq.float_qparams_weight_only_qconfig}
)[0]
rows = torch.ops.quantized.embedding_bag_byte_prepack(weight)  # uint8 (6, 16 + 8): the same layout, made of floats
tail = rows[:, 16:].contiguous().view(torch.float32)  # (6, 2)
print(
    "bytes of a row:",
    rows.shape[1],
    "- row 4: scale and bias",
    tail[4].tolist(),
    "- its minimum",
    weight[4].min().item(),
)

codes, scale = layer.weight().int_repr(), layer.weight().q_per_channel_scales()
bias = -scale * layer.weight().q_per_channel_zero_points()
looked_up = layer(torch.arange(6))
in_one_step = codes.double() * scale.double()[:, None] + bias.double()[:, None]  # rounded to float32 once, at the end
print(f"lookup against code * scale + bias: {(looked_up - in_one_step.float()).abs().max():.1e}")
print(f"lookup against (code - zero point) * scale: {(looked_up - layer.weight().dequantize()).abs().max():.1e}")

# %% [markdown]
# (On a processor with fused multiply-add the first difference is 0: multiplied and added in one step, rounded once. The second formula is the same in algebra, and rounds at other places.)
#
# One surprise before you build it yourself. The lookup is picky about the *layout* of the ids; what a slice of a tensor returns is not contiguous:

# %% tags=["nbval-check-output"]
ids = torch.arange(6).view(2, 3)
print("all ids:    ", tuple(layer(ids).shape))
print("a slice:    ", end="")
errors.show_error(lambda: layer(ids[:, :-1]))
print("contiguous: ", tuple(layer(ids[:, :-1].contiguous()).shape))

# %% [markdown]
# Language models slice all the time: the targets are the ids shifted by one. That is why `helpers.quantizable.QuantizableLM` calls `contiguous()` first.
#
# ### Exercise 4.1: an embedding in int8
# *Difficulty 2 of 5 · 25 minutes · 2 points*
#
# Three small functions. `quantize_rows` makes codes, scales and float zero points with the formula above. `cost_of_rows` says what they cost: the **bytes** of the stored rows (one for each code; for each row, a scale and a bias of 4 bytes), and
# the **relative error** $\lVert W - \hat W \rVert / \lVert W \rVert$, where $\lVert \cdot \rVert$ is the root of the sum of squares. And `with_int8_embeddings` uses PyTorch: a copy of a model with every `nn.Embedding` in int8, everything else as it was, and
# also for a model that *is* an embedding.


# %% nbgrader={"grade": false, "grade_id": "ex_4_1", "locked": false, "schema_version": 3, "solution": true, "task": false}
def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """8-bit codes of each row between its own smallest and largest number.

    Parameters
    ----------
    weight : Tensor, float32, (rows, columns)
        A model's own (then it is an `nn.Parameter`), or any view of another tensor; is not changed.

    Returns
    -------
    (Tensor, Tensor, Tensor)
        Codes, uint8 (rows, columns); scales, float32 (rows,), 1 where all numbers of a row are equal; zero points,
        float32 (rows,), not rounded.

    Example
    -------
    >>> codes, scale, zero_point = quantize_rows(torch.tensor([[10.0, 10.2, 12.55]]))
    >>> codes.tolist(), round(scale.item(), 4), round(zero_point.item())
    ([[0, 20, 255]], 0.01, -1000)
    """
    ### BEGIN SOLUTION
    low, high = weight.detach().aminmax(dim=1)  # (rows,) each
    scale = (high - low) / 255
    scale[scale <= torch.finfo(torch.float32).eps] = 1.0
    codes = ((weight.detach() - low[:, None]) / scale[:, None]).round().clamp(0, 255)
    return codes.to(torch.uint8), scale, -low / scale
    ### END SOLUTION


def cost_of_rows(weight: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor) -> tuple[int, float]:
    """Bytes of the stored rows (codes, and a float32 scale and bias for each row), and the relative error.

    Example
    -------
    >>> weight = torch.tensor([[10.0, 10.2, 12.551]])
    >>> size, error = cost_of_rows(weight, *quantize_rows(weight))
    >>> size, error < 0.0005
    (11, True)
    """
    ### BEGIN SOLUTION
    back = (codes.float() - zero_point[:, None]) * scale[:, None]  # (rows, columns)
    error = torch.linalg.vector_norm(weight.detach() - back) / torch.linalg.vector_norm(weight.detach())
    return codes.numel() + 8 * len(codes), error.item()
    ### END SOLUTION


def with_int8_embeddings(model: nn.Module) -> nn.Module:
    """A copy of `model` whose every ``nn.Embedding`` is PyTorch's int8 embedding; `model` itself may be one.

    Returns
    -------
    Module
        With float qparams (quint8); all other layers are as they were, except that the copy may be in eval mode (PyTorch
        puts it there). `model` is not touched, and shares nothing with it.
    """
    ### BEGIN SOLUTION
    around = nn.Sequential(model)  # the root is never replaced: so it must not be the root
    return tq.quantize_dynamic(around, {nn.Embedding: tq.float_qparams_weight_only_qconfig})[0]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_4_1_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 4.1: run this cell.
import copy

import numpy as np
import torch
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
from torch import nn

from helpers import checks, samples, witness


@checks.isolated
def check_ex_4_1() -> None:
    def table(seed: int, rows: int, columns: int) -> torch.Tensor:
        """Rows of many sizes; quiet, all positive, all negative, far from 0, constant, zero and with an outlier."""
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(rows, columns, generator=generator) * torch.logspace(-2, 1, rows)[:, None]
        weight[0] *= 0.01
        weight[1], weight[2], weight[3] = weight[1].abs() + 0.3, -weight[2].abs() - 0.7, weight[3] + 50
        weight[4], weight[5], weight[6, 0] = -2.7, 0.0, 33.3
        return weight

    def oracle(weight: torch.Tensor) -> torch.Tensor:
        """PyTorch's own observer and kernel."""
        observer = tq.float_qparams_weight_only_qconfig.weight()
        observer(weight)
        scales, zeros = observer.calculate_qparams()
        return torch.quantize_per_channel(weight.detach(), scales, zeros, 0, torch.quint8)

    def tables(seed: int) -> list[tuple[str, torch.Tensor]]:
        """Tables, and what to call them."""
        some = table(seed, 7, 12)
        several = [("", table(seed + 1, 9, 20)), ("", table(seed + 2, 8, 8)), (" of loud numbers", 1e4 * some)]
        several += [(" of one row", table(seed + 3, 7, 5)[:1]), (" of one column", table(seed + 4, 7, 1))]
        several += [(" of many rows", table(seed + 5, 1100, 3)), (" of many columns", table(seed + 6, 8, 1100))]
        return several + [(f" of {what}", form) for what, form in samples.awkward(some)]

    def rows_of(weight: torch.Tensor, of: str) -> object:
        """The learner's quantize_rows; an error says for which table."""
        try:
            with checks.untouched(weight=weight):
                returned = quantize_rows(weight)
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            error.args = (f"{error}{of and f' (for a table{of})'}",)
            raise
        same_settings()
        return returned

    def hardly_different(seed: int) -> torch.Tensor:
        """Rows whose numbers are far from 0 and differ in their last digits only."""
        return 40 + 1e-4 * torch.randn(5, 9, generator=torch.Generator().manual_seed(seed))

    def settings() -> tuple[str, torch.dtype, bool]:
        return torch.backends.quantized.engine, torch.get_default_dtype(), torch.is_grad_enabled()

    start, made = settings(), []

    def same_settings() -> None:
        assert settings() == start, (
            f"your functions change settings of the whole notebook (engine, default dtype, gradients): they are now {settings()}, and were {start}."
        )

    def rest(model: nn.Module) -> nn.Module:
        """A copy in eval mode without embeddings and without qconfigs."""
        if isinstance(model, nn.Embedding | nnq.Embedding):
            return nn.Identity()
        model = copy.deepcopy(model).eval()
        for name, part in list(model.named_modules(remove_duplicate=False)):
            vars(part).pop("qconfig", None)
            if type(part) in (nn.Embedding, nnq.Embedding):
                parent, _, last = name.rpartition(".")
                setattr(model.get_submodule(parent), last, nn.Identity())
        return model

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.kinds = nn.Embedding(50, 12), nn.ModuleDict({"a": nn.Embedding(7, 12)})
            self.bag, self.norm, self.out = nn.EmbeddingBag(9, 12), nn.LayerNorm(12), nn.Linear(12, 5)
            self.out.bias.requires_grad_(False)
            self.again = nn.Linear(12, 5)
            self.again.weight = self.out.weight
            self.register_buffer("shift", torch.randn(12, dtype=torch.float64))
            self.register_buffer("steps", torch.randn(3), persistent=False)
            self.norm.register_forward_hook(lambda *_: None)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.out(self.norm(self.words(ids) + self.kinds["a"](ids % 7)))

    class InAList(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.Embedding(6, 4), nn.Sequential(nn.Embedding(3, 4, padding_idx=0))])
            self.parts[0].weight.requires_grad_(False)

    def judge_model(what: str, model: nn.Module) -> None:
        before = copy.deepcopy(model)
        try:
            quantized = with_int8_embeddings(model)
        except Exception as error:
            text = str(error)
            assert "float_qparams" not in text, (
                "an embedding takes no qint8 (and no default qconfig): {nn.Embedding: tq.float_qparams_weight_only_qconfig}."
            )
            assert "PlaceholderObserver" not in text, (
                "`prepare` and `convert` on the whole model ask this qconfig for the scales of activations, too, and it has only a placeholder there. An embedding needs no data: tq.quantize_dynamic does it in one call."
            )
            raise
        assert isinstance(quantized, nn.Module), "your with_int8_embeddings should return a model."
        assert not any(quantized is other for other in made), (
            "for another model the very model of an earlier call came back: make a new copy in each call."
        )
        made.append(quantized)
        changed = witness.unchanged(before, model)
        assert not changed, f"your function changes the model that it is given: {changed}. Work on a copy."
        shared = witness.independent(quantized, model)
        assert not shared, (
            f"the answer is no copy: {shared}. Whatever is done to one of the two changes both (copy.deepcopy)."
        )
        left = [name or "the root itself" for name, m in quantized.named_modules() if type(m) is nn.Embedding]
        assert left != ["the root itself"], (
            "a bare nn.Embedding came back in float: quantize_dynamic replaces children, never the root. Put it into an nn.Sequential first, and take it out again."
        )
        swapped = [name for name, m in quantized.named_modules() if type(m) is nnq.Embedding]
        assert not left or not swapped, (
            f"only a part was swapped: {', '.join(swapped)} is int8, but {', '.join(left)}, deeper in the model, is still in float. Embeddings may stand at any depth, frozen or not: quantize_dynamic finds them all, named_children only the first level."
        )
        assert not left, (
            f"nothing was swapped, and {', '.join(left)} stayed in float. Does your function return what quantize_dynamic returns?"
        )
        assert type(quantized) is (nnq.Embedding if isinstance(model, nn.Embedding) else type(model)), (
            f"for {what} a {type(quantized).__name__} came back: take it out of the container again."
        )
        kinds = {name: nnq.Embedding if type(m) is nn.Embedding else type(m) for name, m in before.named_modules()}
        others = {name: type(m) for name, m in quantized.named_modules()}
        assert type(others.get("out", nn.Linear)) is type and others.get("out", nn.Linear) is nn.Linear, (
            "the Linear layer was quantized, too: only embeddings should be."
        )
        odd = [
            f"{name} is {others.get(name, type(None)).__name__}"
            for name in kinds
            if others.get(name) is not kinds[name]
        ]
        assert not odd, (
            f"something else than the embeddings was swapped: {odd[0]}, and should be {kinds[odd[0].split()[0]].__name__}."
        )
        kept = {name: p for name, p in before.named_parameters() if kinds[name.rpartition(".")[0]] is not nnq.Embedding}
        for name, p in quantized.named_parameters():
            assert name in kept and torch.equal(p, kept[name]) and p.requires_grad == kept[name].requires_grad, (
                f"{name} is no embedding, and should be in the copy as it was in the model: the same numbers, frozen or not, tied or not."
            )
        old, new = rest(before), rest(quantized)
        other = witness.unchanged(old, new)
        assert not other, f"only the embeddings should be other ones in the copy, but there {other}."
        kept = dict(new.named_buffers())
        for name, buffer in old.named_buffers():
            assert torch.equal(buffer, kept[name]), f"in the copy, the buffer {name} holds other numbers."
        for name, part in quantized.named_modules():
            assert getattr(part, "qconfig", None) is None, (
                f"in the copy, {name or 'the model'} still has a qconfig, which whoever prepares it next would use: take it away, or let quantize_dynamic do it."
            )
            if type(part) is nnq.Embedding:
                assert part.weight().dtype != torch.quint4x2, (
                    "the codes have 4 bits: there are two qconfigs for embeddings, and this exercise wants the one for 8, tq.float_qparams_weight_only_qconfig."
                )
                wanted = oracle(before.get_submodule(name).weight)
                difference = (part(torch.arange(len(wanted))) - wanted.dequantize()).abs().max()
                same = part.weight().dtype == torch.quint8 and torch.equal(part.weight().int_repr(), wanted.int_repr())
                assert same and difference < 1e-5, (
                    f"looking up the rows of {name or 'the embedding'} gives other numbers than its int8 rows (by up to {difference:.2g})."
                )
        same_settings()

    def models() -> list[tuple[str, nn.Module]]:
        return [
            ("a model with two embeddings", Net().eval()),
            ("a model of the same kind", Net().eval()),
            ("a bare nn.Embedding", nn.Embedding(30, 6)),
            ("embeddings in a list", InAList().train()),
        ]

    with checks.check(
        "4.1", "your codes are PyTorch's, and its embeddings are swapped: children and roots, and nothing else"
    ):
        for of, weight in tables(41):
            rows, columns = weight.shape
            expected = oracle(weight)
            right_scale, right_zero = expected.q_per_channel_scales(), expected.q_per_channel_zero_points()
            plain = weight.detach().clone()
            returned = rows_of(weight, of)
            checks.given(returned, "what quantize_rows returns")
            assert isinstance(returned, tuple | list) and len(returned) == 3, (
                "your quantize_rows should return three tensors: codes, scales, zero points."
            )
            codes, scale, zero_point = returned
            checks.given(codes, "the tensor of codes")
            assert isinstance(codes, torch.Tensor), f"the codes should be a tensor, not {type(codes).__name__}."
            assert codes.dtype != torch.int8, (
                "the codes are int8: an embedding has quint8 codes, from 0 to 255. With qint8, the smallest code would be -128."
            )
            checks.tensor(codes, weight.shape, f"the tensor of codes{of}", torch.uint8)
            assert isinstance(scale, torch.Tensor) and (scale.numel() != 1 or rows == 1), (
                "there is one scale for the whole table (per-tensor): every row needs its own, from its own smallest and largest number."
            )
            assert scale.numel() != columns or rows == columns, (
                "there is a scale for each column: the rows are looked up, so take the range along dim=1."
            )
            checks.tensor(scale, (rows,), f"the tensor of scales{of}", torch.float32)
            checks.tensor(zero_point, (rows,), f"the tensor of zero points{of}", torch.float32)
            low, high = plain.amin(1), plain.amax(1)
            wide = high.clamp(min=0) - low.clamp(max=0)
            shared = torch.full((rows,), ((plain.max() - plain.min()) / 255).item())
            mistakes = {
                "all rows have the same scale, that of the whole table (per-tensor).": shared,
                "the range was widened to include 0. Float zero points do not need that: use the row's own minimum and maximum.": torch.where(
                    wide > 0, wide / 255, 1.0
                ),
                "the scale is symmetric (largest magnitude / 127): half of the codes of a one-sided row are never used.": torch.where(
                    wide > 0, plain.abs().amax(1) / 127, 1.0
                ),
                "256 codes have 255 steps between them: divide by 255.": torch.where(
                    high > low, (high - low) / 256, 1.0
                ),
                "a row of equal numbers needs the scale 1; then the zero point brings the number back.": torch.where(
                    high > low, right_scale, scale.detach()
                ),
                "a quiet row has lost its own scale: only a row whose numbers are all equal gets the scale 1, not one whose range is merely small.": torch.where(
                    (high - low) / 255 < 1e-4, 1.0, right_scale
                ),
                "the scale was kept from being small: a row of equal numbers gets the scale 1, and all others their own.": (
                    (high - low) / 255
                ).clamp(min=1e-4),
            }
            if rows == columns:
                mistakes["these are the ranges of the columns: take them along dim=1."] = (
                    plain.amax(0) - plain.amin(0)
                ) / 255
            checks.close(scale, right_scale, f"the scale of each row{of}", mistakes=mistakes, atol=0, rtol=1e-4)
            checks.close(
                zero_point,
                right_zero,
                f"the zero point of each row{of}",
                mistakes={
                    "it is rounded. Zero points of an embedding are floats: with a rounded one, the row's minimum has no exact code.": right_zero.round(),
                    "it is rounded and clamped to the codes, like the zero point of an activation: here it is a float of any size.": right_zero.round().clamp(
                        0, 255
                    ),
                    "it is clamped to the codes: here it is a float of any size.": right_zero.clamp(0, 255),
                    "the sign is wrong: it is minus the row's minimum, divided by the scale.": -right_zero,
                    "this is the bias (the row's minimum, a real number); the zero point is counted in steps: divide it by the scale, with a minus sign.": low,
                    "this is minus the row's minimum; the zero point is counted in steps: divide by the scale.": -low,
                    "128 was subtracted, as for signed codes: the smallest number has code 0 here.": right_zero - 128,
                },
                atol=1e-3,
                rtol=1e-4,
            )
            apart = (codes.int() - expected.int_repr().int()).abs()
            share, near = (apart > 0).float().mean(), (apart > 0).sum() <= max(1, 0.02 * apart.numel())
            down = (plain / right_scale[:, None] + right_zero[:, None]).clamp(0, 255).floor()
            assert (apart.max() <= 1 and near) or (codes.float() - down).abs().max() > 0, (
                f"the codes{of} are cut off, not rounded: round(x / scale + zero_point), to the nearest, and only then uint8."
            )
            moving = right_scale != 1
            ends = codes[moving].amin(1).tolist(), codes[moving].amax(1).tolist()
            assert set(ends[0]) <= {0} and set(ends[1]) <= {255}, (
                f"the codes{of} of a row should begin at 0 and end at 255: its smallest and its largest number."
            )
            assert apart.max() <= 1 and near, (
                f"the codes{of} differ from PyTorch's by up to {apart.max()}, in {share:.0%} of the places: "
                "round(x / scale + zero_point), to the nearest, and only then uint8."
            )
            first = [tensor.detach().clone() for tensor in returned]
            quantize_rows(1.5 - plain)
            assert all(torch.equal(a, b) for a, b in zip(first, returned, strict=True)), (
                "a second call of quantize_rows changes what the first one has returned: make new tensors in each call."
            )
        near_40 = hardly_different(47)
        checks.close(
            quantize_rows(near_40)[1],
            (near_40.amax(1) - near_40.amin(1)) / 255,
            "the scale of each row of numbers that hardly differ",
            mistakes={
                "rows were taken for constant that are not: only where all numbers of a row are equal is the scale 1. torch.isclose and torch.allclose forgive more, the larger the numbers are.": torch.ones(
                    5
                )
            },
            atol=0,
            rtol=1e-4,
        )
        for of, weight in [("", table(45, 9, 20)), *tables(46)[2:]]:
            rows, columns = weight.shape
            right = oracle(weight)
            scales, zeros, numbers = (
                right.q_per_channel_scales().float(),
                right.q_per_channel_zero_points().float(),
                rows * columns,
            )
            stored, more = (right.int_repr(), scales, zeros), (right.int_repr().int() + 9).clamp(max=255).byte()
            cases = [
                ("", "codes", stored),
                (" with other codes", "codes", (more, scales, zeros)),
                (" with other scales", "scales", (stored[0], 1.1 * scales, zeros)),
                (" with other zero points", "zero points", (stored[0], scales, zeros + 3)),
            ]
            if not of:
                forms = zip(*map(samples.awkward, stored), strict=False)
                cases += [
                    (f" with {form[0][0]} of codes, scales and zero points", "codes", [t for _, t in form])
                    for form in forms
                ]
            for what, own, (codes, scale, zero_point) in cases:
                with checks.untouched(weight=weight, codes=codes, scale=scale, zero_point=zero_point):
                    answer = cost_of_rows(weight, codes, scale, zero_point)
                checks.given(answer, "what cost_of_rows returns")
                assert isinstance(answer, tuple | list) and len(answer) == 2, (
                    "your cost_of_rows should return two numbers."
                )
                checks.number(
                    answer[0],
                    numbers + 8 * rows,
                    f"the number of bytes{of}{what}",
                    mistakes={
                        "only the codes were counted. Each row also stores a scale and a bias, 4 bytes each.": numbers,
                        "each row has a scale *and* a bias, 4 bytes each.": numbers + 4 * rows,
                        "a scale and a bias for the whole table were counted: every row has its own.": numbers + 8,
                        "a code takes one byte, not four.": 4 * numbers + 8 * rows,
                        "the scale and the bias are float32, not float64.": numbers + 16 * rows,
                        "the scales of the columns were counted: every row has one.": numbers + 8 * columns,
                        "this counts numbers, not bytes: a scale and a bias have 4 bytes each.": numbers + 2 * rows,
                    },
                )
                assert isinstance(answer[0], int | np.integer), (
                    f"the number of bytes should be an int, not {type(answer[0]).__name__}."
                )
                w, c, z, s = (t.detach().double() for t in (weight, codes, zero_point[:, None], scale[:, None]))
                back = (c - z) * s
                ratio = lambda off, w=w: ((w - off).norm() / w.norm()).item()  # noqa: E731
                rows_apart, rows_size = (w - back).norm(dim=1), w.norm(dim=1)
                checks.number(
                    answer[1],
                    ratio(back),
                    f"the relative error{of}{what}",
                    mistakes={
                        "it is absolute: divide by the norm of the weight.": (w - back).norm().item(),
                        "it compares the weight with the codes: turn them back into real numbers first.": ratio(c),
                        "the zero point was added: the real number is (code - zero_point) * scale.": ratio((c + z) * s),
                        "the scale was applied to the code alone: the real number is (code - zero_point) * scale.": ratio(
                            c * s - z
                        ),
                        "it is squared: take the root of both sums.": ratio(back) ** 2,
                        "it is the largest error; the relative error is a ratio of norms.": (w - back)
                        .abs()
                        .max()
                        .item(),
                        "it is a ratio of the largest magnitudes; take the roots of the sums of squares.": (
                            (w - back).abs().max() / w.abs().max()
                        ).item(),
                        "it is a ratio of sums of magnitudes; take the roots of the sums of squares.": (
                            (w - back).abs().sum() / w.abs().sum()
                        ).item(),
                        "it is the mean over the rows; take one norm of the whole table.": (
                            rows_apart / rows_size.clamp(min=1e-30)
                        )
                        .mean()
                        .item(),
                        f"it is the error of {own} of your own: use the {own} that are handed over.": ratio(
                            right.dequantize()
                        ),
                        "it was divided by the norm of what comes back: divide by that of the weight.": (
                            (w - back).norm() / back.norm()
                        ).item(),
                    },
                    rtol=1e-3,
                )
                assert isinstance(answer[1], float), (
                    f"the relative error should be a float, not {type(answer[1]).__name__}: .item() makes a number of a tensor."
                )
        torch.manual_seed(43)
        for what, model in models():
            judge_model(what, model)
        same_settings()
    ### BEGIN HIDDEN TESTS
    for of, weight in [*((" ", table(*sizes)) for sizes in [(401, 16, 33), (402, 7, 3), (403, 300, 64)]), *tables(404)]:
        rows, columns = weight.shape
        expected, plain = oracle(weight), weight.detach().clone()
        with checks.untouched(weight=weight):
            codes, scale, zero_point = quantize_rows(weight)
        assert codes.dtype == torch.uint8 and codes.shape == weight.shape, f"codes{of}."
        assert scale.shape == zero_point.shape == (rows,), "one scale and one zero point for each row."
        assert scale.dtype == zero_point.dtype == torch.float32, "float32 scales and zero points."
        scale, zero_point = scale.detach(), zero_point.detach()
        assert torch.allclose(scale, expected.q_per_channel_scales().float(), rtol=1e-4, atol=0), f"wrong scales{of}."
        assert torch.allclose(zero_point, expected.q_per_channel_zero_points().float(), rtol=1e-4, atol=1e-3), (
            f"wrong zero points{of}."
        )
        apart = (codes.int() - expected.int_repr().int()).abs()
        assert apart.max() <= 1 and (apart > 0).sum() <= max(1, 0.02 * apart.numel()), f"wrong codes{of}."
        moving = expected.q_per_channel_scales() != 1
        assert set(codes[moving].amin(1).tolist()) <= {0} and set(codes[moving].amax(1).tolist()) <= {255}, "ends."
        first = codes.clone(), scale.clone(), zero_point.clone()
        quantize_rows(2.5 - plain)
        assert all(map(torch.equal, first, (codes, scale, zero_point))), "a later call changes an earlier result."
        gaps, with_gaps = torch.stack([codes, codes], dim=2)[..., 0], torch.stack([scale, zero_point - 4], dim=1)
        for given, s, z in (
            (codes, scale, zero_point),
            (codes // 2, scale, zero_point),
            (codes, 0.9 * scale, zero_point),
            (gaps, *with_gaps.unbind(1)),
        ):
            with checks.untouched(weight=weight, codes=given, scale=s, zero_point=z):
                size, error = cost_of_rows(weight, given, s, z)
            back = (given.double() - z.double()[:, None]) * s.double()[:, None]
            truth = ((plain - back).norm() / plain.double().norm()).item()
            assert isinstance(size, int | np.integer) and size == rows * (columns + 8), "wrong bytes."
            assert isinstance(error, float) and abs(error - truth) < 2e-3 * truth + 1e-6, "wrong error."
        other = cost_of_rows(10 * weight, given, 10 * s, z)
        assert abs(other[1] - error) < 1e-2 * error + 1e-6, "the relative error depends on the unit."
    near_40 = hardly_different(405)
    spread = (near_40.amax(1) - near_40.amin(1)) / 255
    assert torch.allclose(quantize_rows(near_40)[1].detach(), spread, rtol=1e-4, atol=0), "close is not equal."
    exact = torch.zeros(2, 3, dtype=torch.uint8), torch.ones(2), -torch.full((2,), 1.5)
    assert cost_of_rows(torch.zeros(2, 3) + 1.5, *exact)[1] == 0, "an exact table has an error."
    torch.manual_seed(404)
    deeper = nn.Sequential(nn.Sequential(nn.Embedding(9, 4)), nn.Linear(4, 4))
    for what, model in [*models(), ("a model in training mode", Net().train()), ("another one", deeper)]:
        judge_model(what, model)
    same_settings()
    ### END HIDDEN TESTS


check_ex_4_1()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Each row has two numbers that decide everything: its smallest and its largest. `weight.amin(dim=1)` has one number for each row; `[:, None]` makes a column of it. And which module does `quantize_dynamic` never replace?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# The scale is the range divided by 255; where that is 0, write 1 (`torch.where`). The zero point is minus the minimum in steps, not rounded. For a bare embedding, make it a child: wrap, quantize, take the first child of the result.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `codes = (weight / scale[:, None] + zero_point[:, None]).round().…`; back again `(codes - zero_point[:, None]) * …`; bytes `codes.numel() + … * len(codes)`; `tq.quantize_dynamic(nn.Sequential(model), {nn.Embedding: …})[0]` works for both kinds of models.
# </details>

# %% [markdown]
# ### Half of that: 4 bits
#
# A processor reads whole bytes. So two codes share a byte, and somebody must pack and unpack them: 4 bits are called a *nibble*. PyTorch's layout of a row with $n$ columns is
#
# | bytes | content |
# |---|---|
# | $n / 2$ | codes from 0 to 15, two a byte: the **earlier** column in the **lower** nibble |
# | 2 | the scale, float16 |
# | 2 | the bias (the row's minimum), float16 |
#
# By hand: the codes 5, 9, 15 and 1. The first byte is $5 + 16 \cdot 9 = 149$, the second $15 + 16 \cdot 1 = 31$. To unpack 149: the lower nibble is $149 \bmod 16 = 5$, the upper $149 / 16$, rounded down: 9. With a scale of 0.5 and a bias of −2 the numbers are 0.5, 2.5, 5.5 and −1.5.
# In float16 the scale 0.5 is the bytes 0 and 56, the bias −2 is 0 and 192 (the lower byte first). PyTorch's own functions do the same with a row from −1 to 14, which has the scale 1 and the bias −1; the codes are $x + 1$, rounded to the nearest whole number (−0.25 becomes 1, 0.5 becomes 2: halves go to the even one):

# %% tags=["nbval-check-output"]
four = torch.tensor([[-1.0, -0.25, 0.5, 14.0]])  # from -1 to 14: scale 1, bias -1
four_packed = torch.ops.quantized.embedding_bag_4bit_prepack(four)
print("packed:  ", four_packed.tolist())
print("unpacked:", torch.ops.quantized.embedding_bag_4bit_unpack(four_packed).tolist())
print("an odd width: ", end="")
errors.show_error(lambda: torch.ops.quantized.embedding_bag_4bit_prepack(torch.zeros(1, 3)))

# %% [markdown]
# ### Exercise 4.2: two codes in a byte
# *Difficulty 3 of 5 · 25 minutes · 2 points*
#
# Write both directions in this layout, so that PyTorch can read your rows and you can read PyTorch's. Odd widths are allowed, too: the last byte then has a 0 in its upper nibble, and `columns` tells the reader where to stop.
#
# You need the bytes of a number. `.to(torch.uint8)` *converts* a number; `.view(torch.uint8)` shows its bytes as they are: `torch.tensor([0.5]).to(torch.float16).view(torch.uint8)` is (0, 56), and `.view(torch.float16)` of these two bytes is 0.5 again. That way back wants bytes that lie side by side and begin at an even place in memory. A slice of rows does not promise that, not even of
# a single row (rows may be looked up one by one): copy it flat first.


# %% nbgrader={"grade": false, "grade_id": "ex_4_2", "locked": false, "schema_version": 3, "solution": true, "task": false}
def pack_rows(codes: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Rows of 4-bit codes as bytes: two codes a byte (the earlier in the lower nibble), then float16 scale and bias.

    Parameters
    ----------
    codes : Tensor, uint8, (rows, columns)
        From 0 to 15; `columns` may be odd.
    scale, bias : Tensor, float32, (rows,)

    Returns
    -------
    Tensor, uint8, (rows, ceil(columns / 2) + 4)

    Raises
    ------
    ValueError
        If a code is larger than 15: it would spill into its neighbour.

    Example
    -------
    >>> pack_rows(torch.tensor([[5, 9, 15]], dtype=torch.uint8), torch.tensor([0.5]), torch.tensor([-2.0]))
    tensor([[149,  15,   0,  56,   0, 192]], dtype=torch.uint8)
    """
    ### BEGIN SOLUTION
    if codes.numel() and codes.max() > 15:
        raise ValueError(f"a code is {codes.max()}; four bits end at 15.")
    even = F.pad(codes, (0, codes.shape[1] % 2))  # (rows, columns or one more)
    nibbles = even[:, ::2] | (even[:, 1::2] << 4)  # (rows, ceil(columns / 2))
    halves = torch.stack([scale, bias], dim=1).to(torch.float16)  # (rows, 2)
    return torch.cat([nibbles, halves.view(torch.uint8)], dim=1)
    ### END SOLUTION


def unpack_rows(packed: Tensor, columns: int) -> Tensor:
    """The real numbers ``code * scale + bias`` of packed rows.

    Parameters
    ----------
    packed : Tensor, uint8, (rows, ceil(columns / 2) + 4)
        What `pack_rows` returns, or some of its rows, perhaps a single one; any view. Is not changed.
    columns : int

    Returns
    -------
    Tensor, float32, (rows, columns)

    Example
    -------
    >>> unpack_rows(torch.tensor([[149, 15, 0, 56, 0, 192]], dtype=torch.uint8), 3)
    tensor([[0.5000, 2.5000, 5.5000]])
    """
    ### BEGIN SOLUTION
    nibbles = packed[:, :-4]
    halves = packed[:, -4:].flatten().clone().view(torch.float16).view(-1, 2).float()  # (rows, 2)
    codes = torch.stack([nibbles & 15, nibbles >> 4], dim=2).flatten(1)[:, :columns]  # (rows, columns)
    return codes * halves[:, :1] + halves[:, 1:]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_4_2_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 4.2: run this cell.
import struct

import torch

from helpers import checks, samples


@checks.isolated
def check_ex_4_2() -> None:
    kernels = torch.ops.quantized

    def case(seed: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(0, 16, (rows, columns), generator=generator).to(torch.uint8)
        scale = torch.rand(rows, generator=generator) + 0.03
        return codes, scale, 3 * torch.randn(rows, generator=generator)

    def bytes_of(
        codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, high_first: bool = False
    ) -> torch.Tensor:
        """One number after the other, in plain Python."""
        rows = []
        for row, s, b in zip(codes.tolist(), scale.tolist(), bias.tolist(), strict=True):
            pairs = [(row[i], row[i + 1] if i + 1 < len(row) else 0) for i in range(0, len(row), 2)]
            body = [16 * one + two if high_first else one + 16 * two for one, two in pairs]
            rows.append(body + list(struct.pack("<e", s)) + list(struct.pack("<e", b)))
        return torch.tensor(rows, dtype=torch.uint8)

    def pack(codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The learner's pack_rows; the errors that many meet become sentences."""
        try:
            return pack_rows(codes, scale, bias)
        except ValueError as error:
            assert codes.max() > 15, f"15 is a code: only what is larger than 15 must raise (it raised: {error})."
            raise
        except RuntimeError as error:
            text = str(error).splitlines()[0]
            assert codes.shape[1] % 2 == 0 or isinstance(error, NotImplementedError), (
                f"it stops at an odd width ({text}): the last column has no partner. Fill up with one more code, 0, before you pair them."
            )
            assert "Sizes of tensors must match" not in text, (
                f"the codes and the scales do not have the same number of rows ({text}). Are rows paired, as some libraries do? Here two *neighbours of one row* share a byte: columns 0 and 1, 2 and 3, …"
            )
            raise

    def unpack(packed: torch.Tensor, columns: int) -> torch.Tensor:
        """The same for unpack_rows."""
        try:
            return unpack_rows(packed, columns)
        except RuntimeError as error:
            text = str(error).splitlines()[0]
            alone = f"a single row of {packed.shape[1]} bytes" if len(packed) == 1 else "a slice of the rows"
            assert "storage_offset" not in text and "stride" not in text, (
                f"float16 cannot be read from {alone} ({text}): the numbers of a float16 tensor begin at even bytes and lie side by side. Neither .contiguous() nor .clone() of the slice is enough, because a slice of one row counts as contiguous: packed[:, -4:].flatten().clone() has its four bytes for each row at the beginning of memory of its own; then .view(torch.float16)."
            )
            raise

    def judge_bytes(
        packed: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, what: str
    ) -> None:
        (rows, columns), half = codes.shape, (codes.shape[1] + 1) // 2
        right = bytes_of(codes, scale, bias)
        assert packed.shape != (rows, columns // 2 + 4) or columns % 2 == 0, (
            "the last column of an odd width is lost: fill up with one more code, 0, before you pair them."
        )
        for shape, sentence in {
            (rows, half + 8): "the scale and the bias are float16 here, 2 bytes each, not float32.",
            (
                rows,
                half + 2,
            ): "the scale and the bias have one byte each: .to(torch.uint8) turns the *number* into a whole one (0.5 becomes 0). Make them float16, then .view(torch.uint8), which shows the two bytes as they are.",
            (rows, columns + 4): "there is one code in a byte: two of them belong into it.",
            (
                rows,
                half,
            ): "there are only codes: the scale and the bias, as four bytes, belong behind them in each row.",
        }.items():
            assert packed.shape != shape or shape == right.shape, sentence
        checks.tensor(packed, right.shape, f"the result of pack_rows for {what}", torch.uint8)
        if torch.equal(packed, right):
            return
        mine, theirs, constants = packed[:, :half], packed[:, half:], right[:, half:]
        assert not torch.equal(packed, torch.cat([constants, right[:, :half]], 1)), (
            "the scale and the bias stand in front: they come behind the codes."
        )
        far = torch.cat([codes, torch.zeros(rows, 2 * half - columns, dtype=torch.uint8)], 1)
        filled = torch.cat([torch.zeros(rows, 2 * half - columns, dtype=torch.uint8), codes], 1)
        swapped = bytes_of(codes, scale, bias, high_first=True)[:, :half]
        ones = torch.cat([codes, torch.full((rows, 2 * half - columns), 15, dtype=torch.uint8)], 1)
        repeated = torch.cat([codes, codes[:, -1:].repeat(1, 2 * half - columns)], 1)
        bodies = {
            "the nibbles are in the wrong order: the earlier column belongs into the lower one.": swapped,
            "you pair the first half of the row with the second: neighbours share a byte, columns 0 and 1, 2 and 3, …": far[
                :, :half
            ]
            | (far[:, half:] << 4),
            "you pair the first half of the row with the second, and the first is in the upper nibbles (so does the library HQQ): neighbours share a byte, the earlier one in the lower nibble.": (
                far[:, :half] << 4
            )
            | far[:, half:],
            "the 0 that fills up an odd width stands in front of the row: it belongs behind the last column.": filled[
                :, ::2
            ]
            | (filled[:, 1::2] << 4),
            "the last byte of an odd width has 15 in its upper nibble: fill up with 0.": ones[:, ::2]
            | (ones[:, 1::2] << 4),
            "the last code of an odd width stands in both nibbles: fill up with 0.": repeated[:, ::2]
            | (repeated[:, 1::2] << 4),
            "the last code of an odd width stands in the upper nibble: it belongs into the lower one, and 0 into the upper.": torch.cat(
                [right[:, : half - 1], right[:, half - 1 : half] << 4], 1
            ),
        }
        fits = [
            sentence
            for sentence, body in bodies.items()
            if torch.equal(mine, body) and not torch.equal(mine, right[:, :half])
        ]
        assert len(fits) != 1, fits[0]
        tails = {
            "bias and scale are swapped: the scale comes first.": constants[:, [2, 3, 0, 1]],
            "the two bytes of each float16 are swapped: the lower byte comes first.": constants[:, [1, 0, 3, 2]],
            "they are bfloat16, which keeps other bits of a number: float16 is asked for.": torch.stack(
                [scale, bias], 1
            )
            .detach()
            .bfloat16()
            .view(torch.uint8),
            "the four bytes are taken row after row from all scales first, then from all biases: stack them along dim=1, so that each row has its own two.": torch.cat(
                [scale.detach(), bias.detach()]
            )
            .half()
            .view(torch.uint8)
            .view(rows, 4),
        }
        fits = [
            sentence
            for sentence, tail in tails.items()
            if torch.equal(theirs, tail) and not torch.equal(theirs, constants)
        ]
        assert len(fits) != 1, fits[0]
        assert not torch.equal(mine, right[:, :half]), (
            "the codes are right, but the last four bytes should be the scale as float16, then the bias as float16: `.view(torch.uint8)` of a float16 tensor gives its bytes."
        )
        row, byte = (packed != right).nonzero()[0].tolist()
        byte = 0 if byte < 12 else byte
        raise AssertionError(
            f"for {what} row {row} (codes {codes[row].tolist()[:8]}{'…' if columns > 8 else ''}) is {packed[row].tolist()[byte : byte + 12]}{f' from byte {byte} on' if byte else ''} and should be {right[row].tolist()[byte : byte + 12]}."
        )

    def judge_numbers(answer: torch.Tensor, right: torch.Tensor, codes: torch.Tensor, what: str) -> None:
        (rows, columns), half = codes.shape, (codes.shape[1] + 1) // 2
        read = lambda order: right[:, half:][:, order].flatten().clone().view(torch.float16).view(-1, 2)  # noqa: E731
        s, b = read([0, 1, 2, 3]).double().chunk(2, 1)
        wrong_s, wrong_b = read([1, 0, 3, 2]).double().chunk(2, 1)
        q = codes.double()
        assert answer.shape != (rows, 2 * half) or columns % 2 == 0, (
            f"for {what} unpack_rows returns one column too many: the code that fills up the last byte is no column."
        )
        upside_down = q * wrong_s + wrong_b
        if answer.shape == codes.shape and torch.allclose(answer.double(), upside_down, rtol=1e-3, equal_nan=True):
            raise AssertionError(
                "the result of unpack_rows: the two bytes of each float16 were read in the wrong order. The lower one comes first, as .view(torch.float16) expects it."
            )
        nibbles = right[:, :half] % 16, right[:, :half] // 16
        joined, parted = (torch.cat(pair, 1)[:, :columns].double() for pair in (nibbles, nibbles[::-1]))
        turned = torch.stack(nibbles[::-1], 2).flatten(1)[:, :columns].double()
        bytes_alone = right[:, half, None].double(), right[:, half + 2, None].double()
        checks.close(
            answer,
            q * s + b,
            f"the result of unpack_rows for {what}",
            mistakes={
                "it was computed in float16, which keeps three digits: turn scale and bias into float32 first, with .float().": (
                    codes.half() * s.half() + b.half()
                ).double(),
                "all lower nibbles come first, then all upper ones (torch.cat): they take turns. torch.stack(…, dim=2).flatten(1) interleaves.": joined
                * s
                + b,
                "all upper nibbles come first, then all lower ones, as in the library HQQ: they take turns, the lower one first.": parted
                * s
                + b,
                "scale and bias are the numbers of single bytes: .to(…) converts a byte, .view(torch.float16) reads two bytes as one number.": q
                * bytes_alone[0]
                + bytes_alone[1],
                "the codes came out signed (-8 to 7): a code has no sign. Shift a uint8, or mask with 15 after the shift.": torch.where(
                    q > 7, q - 16, q
                )
                * s
                + b,
                "the nibbles are in the wrong order: the earlier column is in the lower one.": turned * s + b,
                "the scale was applied to the bias, too: code * scale + bias.": (q + b) * s,
                "scale and bias are swapped: the scale comes first.": q * b + s,
                "the bias was not added.": q * s,
                "the bias was subtracted: code * scale + bias.": q * s - b,
                "these are the codes: multiply by the scale and add the bias.": q,
                "scale and bias were taken from the first row for all rows.": q * s[:1] + b[:1],
            },
            atol=2e-5,
        )
        checks.tensor(answer, (rows, columns), f"the result of unpack_rows for {what}", torch.float32)

    def inputs(seed: int) -> list[tuple[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
        """Codes, scales and biases, and what to call them."""
        tables = [
            ("an even width", case(seed, 5, 10)),
            ("an odd width", case(seed + 1, 4, 7)),
            ("one column", case(seed + 2, 3, 1)),
            ("one row of one column", case(seed + 3, 1, 1)),
            ("one row of two columns", case(seed + 4, 1, 2)),
            ("one row of five columns", case(seed + 5, 1, 5)),
            ("a last column of zeros", case(seed + 6, 3, 4)),
        ]
        tables[-1][1][0][:, -1] = 0
        tables += [("many rows", case(seed + 8, 700, 3)), ("many columns", case(seed + 9, 2, 1101))]
        extreme = torch.tensor([0.0, 1e-6, 5e-5, 0.25, 60000.0]), torch.tensor([2.5, 1e-6, -3e-5, -5000.0, 60000.0])
        tables += [("scales and biases from 0 to 60,000", (case(seed + 10, 5, 6)[0], *extreme))]
        codes, scale, bias = case(seed + 7, 6, 8)
        loud_and_quiet = scale * torch.tensor([1e-4, 1e-3, 1.0, 30.0, 900.0, 1e-2])
        forms = zip(samples.awkward(codes), samples.awkward(scale), samples.awkward(bias), strict=False)
        return [
            *tables,
            ("scales from 0.00001 to 900", (codes, loud_and_quiet, bias)),
            *((f"{what} of codes, scale and bias", (c, s, b)) for (what, c), (_, s), (_, b) in forms),
        ]

    def too_large() -> list[torch.Tensor]:
        """Codes of which one is above 15, in odd places."""
        tables = []
        for value, row, column in [(16, 0, 1), (17, 1, 0), (255, 2, 2), (16, 2, 2)]:
            codes = torch.full((3, 3), 15, dtype=torch.uint8)
            codes[row, column] = value
            tables.append(codes)
        large = torch.full((30, 41), 15, dtype=torch.uint8)
        large[17, 23] = 16
        return [*tables, large]

    with checks.check("4.2", "PyTorch reads your rows, and you read PyTorch's, for even and odd widths"):
        for what, (codes, scale, bias) in inputs(42):
            with checks.untouched(codes=codes, scale=scale, bias=bias):
                packed = pack(codes, scale, bias)
            checks.given(packed, "what pack_rows returns")
            assert isinstance(packed, torch.Tensor), "your pack_rows should return a tensor."
            assert packed.dtype == torch.uint8, f"the packed rows are {packed.dtype}: bytes are uint8."
            judge_bytes(packed, codes, scale, bias, what)
            assert packed.is_contiguous(), (
                "the bytes are right, but do not lie row after row in memory, as PyTorch's kernels read them: .contiguous()."
            )
            right = bytes_of(codes, scale, bias)
            odd_forms = samples.awkward(right) if what.startswith("scales") else []
            for form, given in [("", right), *((f", as {name}", form) for name, form in odd_forms)]:
                with checks.untouched(packed=given):
                    answer = unpack(given, codes.shape[1])
                checks.given(answer, "what unpack_rows returns")
                assert isinstance(answer, torch.Tensor), "your unpack_rows should return a tensor."
                judge_numbers(answer, right, codes, what + form)
            for i in range(len(right)):
                row = unpack(right[i : i + 1], codes.shape[1])
                checks.tensor(row, (1, codes.shape[1]), f"what unpack_rows returns for row {i} alone, of {what},")
                assert torch.allclose(row, answer[i : i + 1], atol=1e-5, rtol=1e-5), (
                    f"row {i} alone gives other numbers than among the others: each row must be read by itself."
                )
        for large in too_large():
            checks.raises(
                ValueError,
                lambda large=large: pack_rows(large, torch.ones(len(large)), torch.zeros(len(large))),
                f"a code of {large.max()} must raise a ValueError, wherever it stands (here in {large.tolist() if len(large) < 9 else 'a table of 30 rows'}): its fifth bit would land in the neighbour's nibble.",
            )
        codes, scale, bias = case(53, 4, 6)
        packed, other = pack_rows(codes, scale, bias), case(54, 4, 6)
        right, others = bytes_of(codes, scale, bias), bytes_of(*other)
        pack_rows(*other)
        assert torch.equal(packed, right), (
            "a second call of pack_rows changes what the first one has returned: make a new tensor in each call."
        )
        numbers = unpack_rows(right, 6)
        kept = numbers.clone()
        right.copy_(others)
        judge_numbers(unpack_rows(right, 6), others, other[0], "other bytes in the tensor of an earlier call")
        assert torch.equal(numbers, kept), (
            "a second call of unpack_rows changes what the first one has returned: make a new tensor in each call."
        )
    ### BEGIN HIDDEN TESTS
    more = [
        ("", case(seed, rows, columns))
        for seed, rows, columns in [(422, 6, 33), (423, 300, 64), (424, 2, 1), (425, 5, 5)]
    ]
    for what, (codes, scale, bias) in [*more, *inputs(4260)]:
        columns, right = codes.shape[1], bytes_of(codes, scale, bias)
        with checks.untouched(codes=codes, scale=scale, bias=bias):
            packed = pack_rows(codes, scale, bias)
        assert packed.dtype == torch.uint8 and torch.equal(packed, right), f"wrong bytes: {what}."
        assert packed.is_contiguous(), "the bytes do not lie row after row."
        exact = codes.double() * scale.detach().half().double()[:, None] + bias.detach().half().double()[:, None]
        for name, given in [("", right), ("one row", right[-1:]), *samples.awkward(right)]:
            with checks.untouched(packed=given):
                answer = unpack_rows(given, columns)
            assert answer.dtype == torch.float32 and answer.shape == (len(given), columns), f"dtype or shape: {name}."
            assert torch.allclose(answer.double(), exact[-len(given) :], atol=1e-5, rtol=1e-5), (
                f"wrong numbers: {name}."
            )
        weight = torch.randn(len(codes), columns + columns % 2, generator=torch.Generator().manual_seed(columns))
        library = kernels.embedding_bag_4bit_prepack(weight)
        answer, wanted = unpack_rows(library, weight.shape[1]), kernels.embedding_bag_4bit_unpack(library)
        assert torch.allclose(answer, wanted, atol=1e-5), "PyTorch's rows are misread."
    codes, scale, bias = case(426, 3, 8)
    other = case(427, 3, 8)
    packed, right = pack_rows(codes, scale, bias), bytes_of(codes, scale, bias)
    pack_rows(*other)
    assert torch.equal(packed, right), "a later call changes an earlier result of pack_rows."
    numbers = unpack_rows(right, 8)
    kept = numbers.clone()
    right.copy_(bytes_of(*other))
    exact = other[0].double() * other[1].half().double()[:, None] + other[2].half().double()[:, None]
    assert torch.allclose(unpack_rows(right, 8).double(), exact, atol=1e-5, rtol=1e-5), "other bytes, the same tensor."
    assert torch.equal(numbers, kept), "a later call changes an earlier result of unpack_rows."
    for large in [*too_large(), torch.tensor([[31, 0, 1]] * 3, dtype=torch.uint8)]:
        try:
            pack_rows(large, torch.ones(len(large)), torch.zeros(len(large)))
        except ValueError:
            continue
        raise AssertionError("a code above 15 is accepted.")
    for edge in (0, 15):
        every = torch.full((2, 4), edge, dtype=torch.uint8)
        assert torch.equal(unpack_rows(pack_rows(every, torch.ones(2), torch.zeros(2)), 4), every.float()), (
            "0 and 15 are codes."
        )
    ### END HIDDEN TESTS


check_ex_4_2()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Packing is `earlier + 16 * later`, for columns 0, 2, 4, … and 1, 3, 5, …. A slice with a step takes every second column: `codes[:, ::2]`. What is missing when the width is odd?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# Append a column of zeros if `columns` is odd (`F.pad(codes, (0, 1))`). `tensor.to(torch.float16).view(torch.uint8)` gives the two bytes of every number in the last dimension; `.flatten().clone().view(torch.float16)` reads them, two for each row (a float16 must begin at an even byte of its memory: in a slice of another tensor it may not, in a flat clone it does). To interleave two tensors again: `torch.stack([low, high], dim=2).flatten(1)`.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# Pack: `codes[:, ::2] | (codes[:, 1::2] << 4)`, then `torch.cat([…, torch.stack([scale, bias], dim=1).….view(torch.uint8)], dim=1)`. Unpack: the body is `packed[:, :-4]`, its lower nibbles `body & …`, the upper `body >> …`; cut to `[:, :columns]`.
# </details>

# %% [markdown]
# ### A trap: the library's 4-bit embedding forgets that it has 4 bits
#
# PyTorch has a qconfig for it, `tq.float_qparams_weight_only_qconfig_4bit`. So the same call as above should do:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
wanted_4 = nn.Sequential(nn.Embedding(1000, 128))
four_bit = tq.quantize_dynamic(wanted_4, {nn.Embedding: tq.float_qparams_weight_only_qconfig_4bit})
token_ids = torch.arange(10)
print("float:", tuple(wanted_4(token_ids).shape), "- 4 bits:", tuple(four_bit(token_ids).shape))
print("what the weight is:      ", four_bit[0].weight().dtype)
print("what the module believes:", four_bit[0].dtype)

# %% [markdown]
# No error, and rows of 60 numbers instead of 128. Where does 60 come from? A stored row has $128 / 2 + 4 = 68$ bytes. The weight was made correctly; but `nnq.Embedding.from_float` then builds the module with `Embedding(mod.num_embeddings, mod.embedding_dim)`, and does not hand on the dtype. So `forward` believes in 8 bits, and reads the
# 68 bytes as one byte for each code and 8 bytes for a float32 scale and bias: $68 - 8 = 60$. Two codes are read as one, and the scale is made of bytes that are no scale. Say the dtype afterwards, and the lookup is right:

# %%
four_bit[0].dtype = torch.quint4x2
four_back = four_bit[0].weight().dequantize()
print("shape:", tuple(four_bit(token_ids).shape), end=", ")
print(f"largest difference from the dequantized weight: {(four_bit(token_ids) - four_back[token_ids]).abs().max():.4f}")
print(f"(one step is about {four_bit[0].weight().q_per_channel_scales().mean():.2f}; the packed scale is a float16)")

# %% [markdown]
# A wrong width at the end of a model does not say where it comes from. Test a quantized layer alone, against its dequantized weight, before you put it into a model.
#
# ### Look back: what the embedding costs and saves
#
# Now question 3 and 4, for the course model. *Per tensor* is the control: the same bits, but one scale for all rows. The head stays float in all cases: only the embedding is replaced.

# %%
token_table = course_model.embedding.weight.detach()
in_use = torch.bincount(data.encode(data.split_text("training")), minlength=256) > 0  # tokens that ever occur


def with_table(rows: Tensor) -> nn.Module:
    """A float twin of the course model that looks up `rows`; its head keeps the old matrix."""
    twin = quantizable.quantizable(course_model)
    twin.embedding = nn.Embedding.from_pretrained(rows)
    return twin


packed_4 = torch.ops.quantized.embedding_bag_4bit_prepack(token_table)
one_scale = affine.fake_quantize(
    token_table, *affine.qparams(token_table.min().item(), token_table.max().item(), 0, 15), 0, 15
)
in_8_bits = tq.quantize_dynamic(
    quantizable.quantizable(course_model), {nn.Embedding: tq.float_qparams_weight_only_qconfig}
)
variants = {
    "8 bits, a scale for each row": (
        in_8_bits,
        token_table.numel() + 8 * len(token_table),
        in_8_bits.embedding.weight().dequantize(),
    ),
    "4 bits, a scale for each row": (None, packed_4.numel(), torch.ops.quantized.embedding_bag_4bit_unpack(packed_4)),
    "4 bits, one scale (control)": (None, token_table.numel() // 2 + 4, one_scale),
}
shown = []
for name, (model, size, rounded) in variants.items():
    mean, error = cost(model or with_table(rounded))
    shown.append(
        {
            "embedding": name,
            "bytes": f"{size:,}",
            "times smaller": f"{4 * token_table.numel() / size:.2f}",
            "bits a number": f"{8 * size / token_table.numel():.3f}",
            "SQNR in dB, all rows": f"{metrics.sqnr_db(token_table, rounded):.1f}",
            "rows in use": f"{metrics.sqnr_db(token_table[in_use], rounded[in_use]):.1f}",
            "Δ bits per byte ± standard error": f"{mean:+.4f} ± {error:.4f}",
        }
    )
tables.show(shown)
print(
    f"tokens that occur in the training text: {int(in_use.sum())} of {len(in_use)}; RMS of a number in their rows: ",
    end="",
)
print(
    f"{token_table[in_use].square().mean().sqrt():.2f}, in all other rows: {token_table[~in_use].square().mean().sqrt():.2f}"
)
float_file, int8_file = metrics.file_bytes(course_model), metrics.file_bytes(in_8_bits)
print(f"the file: {float_file:,} bytes in float, {int8_file:,} with the 8-bit embedding ({int8_file - float_file:+,})")

# %% [markdown]
# At 8 bits, a scale for each row costs next to nothing: too little to be told from zero. At 4 bits the scales of the rows earn their 4 bytes, as the control shows: with one scale for all, the loss is many times larger.
#
# But look at the SQNR of *all* rows. It sees hardly any difference between the two 4-bit schemes. Can it be so wrong? More than half of the 256 bytes never occur in this text. Nobody ever looked up their rows; training has only used them in the head, to make these tokens unlikely everywhere, and their numbers are
# larger. Large numbers set the one scale, and large numbers make most of the signal. In the rows *in use* the SQNR shows what happens. An average over what is never read says nothing: measure the noise where the numbers are used.
#
# And the saving? The last line: the file has **grown**. The embedding did become four times smaller; but it was *tied* to the head, and the head has kept its float matrix. One float tensor for both became one float tensor and one int8 tensor. Exercise 4.9 repairs that. Keep it in mind: never report what a component saves
# without looking at the whole file.
#
# ## 3. Positions
#
# The model adds to each token vector a row of a table: sines and cosines of 128 frequencies (unit 01). Should this table be quantized? It has as many bytes as the embedding of this model. Ask the four questions again, and let the answer follow from numbers. First, what is in it:

# %%
fig, axes = plots.figure(columns=2, width=9.5, height=2.9)
axes[0].imshow(course_model.positions[:128, :128].numpy(), aspect="auto", vmin=-1, vmax=1)
axes[0].set_xlabel("column")
axes[0].set_ylabel("position")
axes[0].set_title("the first 128 rows and columns")
added = {"positions": course_model.positions, "token vectors in use, times 16": token_table[in_use] * 16}
for (name, values), colour, style in zip(
    added.items(), (plots.BLUE, plots.ORANGE), ("stepfilled", "step"), strict=True
):
    axes[1].hist(
        values.flatten().numpy(), bins=np.linspace(-8, 8, 161), density=True, color=colour, histtype=style, label=name
    )
axes[1].set_yscale("log")
axes[1].set_xlabel("value")
axes[1].set_ylabel("density (log)")
axes[1].set_ylim(top=100)
axes[1].legend(fontsize=8, loc="upper right")
plots.show(
    fig,
    caption="Left: the table of positions, fast waves on the left, nearly constant columns on the right. Right: its values, all within −1 and 1, and those of the token vectors in use times √256, to which they are added (cut off at ±8).",
    alt="Left, a heat map whose left columns flicker and whose right columns are constant. Right, two histograms: positions lie between -1 and 1 with peaks at -1, 0 and 1; the token vectors are a bell that reaches several times farther.",
)
print("in memory:  ", course_model.positions.numel() * 4, "bytes")
print("in the file:", "positions" in course_model.state_dict())

# %% [markdown]
# No outliers, a known range, one scale for all: it looks easy. And the table is not in the file: it is a *buffer* that was registered with `persistent=False`, because a formula makes it again whenever the model is built. Other models *learn* their positions; then the table is a parameter, and in the file.
#
# So the decision has two sides: does the table *bear* it, and does it *save* anything? For the first we need a measure that does not depend on the unit, the **signal-to-quantization-noise ratio**. With $x$ the table and $\hat x$ the rounded table:
#
# $$\text{SQNR} = 10 \log_{10} \frac{\sum_i x_i^2}{\sum_i (x_i - \hat x_i)^2} \ \text{dB} = 20 \log_{10} \frac{\lVert x \rVert}{\lVert x - \hat x \rVert} \ \text{dB}$$
#
# Decibels are defined for *powers*, that is, for squares; for amplitudes the factor is 20. By hand: $x = (3, 4)$ and $\hat x = (3, 4.5)$. Powers: $25$ and $0.25$, the ratio is 100, so 20 dB. Amplitudes: 5 and 0.5, the ratio is 10; $20 \log_{10} 10 = 20$ dB. Each further bit halves the step, divides the noise power by four, and so
# adds about 6.02 dB.
#
# ### Exercise 4.3: does the table need quantizing?
# *Difficulty 2 of 5 · 20 minutes · 2 points*
#
# Write `sqnr` yourself (for equal tensors it is infinite), and a function that decides: `judge_table` says how many dB the rounded table has, how many bytes the **file** loses if the table is stored with one byte for each number plus 8 bytes for scale and zero point (0 bytes if the table is not in the file), and whether to do it. Do it if the SQNR is at least `least_db` *and* the
# file becomes smaller.


# %% nbgrader={"grade": false, "grade_id": "ex_4_3", "locked": false, "schema_version": 3, "solution": true, "task": false}
def sqnr(signal: Tensor, rounded: Tensor) -> float:
    """Signal-to-quantization-noise ratio of two tensors of one shape, in dB; ``math.inf`` if they are equal.

    Computed in float64: float32 cannot hold the squares of numbers as small as 1e-25, or as large as 1e25.

    Example
    -------
    >>> round(sqnr(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])), 6)
    20.0
    """
    ### BEGIN SOLUTION
    noise = (signal.double() - rounded.double()).square().sum().item()
    return 10 * math.log10(signal.double().square().sum().item() / noise) if noise else math.inf
    ### END SOLUTION


def judge_table(model: nn.Module, name: str, rounded: Tensor, least_db: float) -> tuple[float, int, bool]:
    """Should the float32 table `name` of `model`, a parameter or a buffer, be stored in 8 bits?

    Parameters
    ----------
    model : Module
    name : str
        Full name, as in ``model.state_dict()``: "positions" or "encoder.positions".
    rounded : Tensor, float32
        What becomes of the table in 8 bits.
    least_db : float
        The smallest SQNR that is good enough.

    Returns
    -------
    (float, int, bool)
        SQNR in dB; bytes that the tensors in the file lose (negative if it would grow); True if it should be done.
    """
    ### BEGIN SOLUTION
    tables_of_model = dict(model.named_parameters()) | dict(model.named_buffers())
    decibels = sqnr(tables_of_model[name].detach(), rounded)
    saved = 3 * rounded.numel() - 8 if name in model.state_dict() else 0
    return decibels, saved, decibels >= least_db and saved > 0
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_4_3_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 4.3: run this cell.
import math

import numpy as np
import torch
from torch import nn

from helpers import checks, samples


@checks.isolated
def check_ex_4_3() -> None:
    class Positions(nn.Module):
        """A table of positions between others: "learned" and "frozen" are parameters, "stored" and "computed" are buffers in and out of the file."""

        def __init__(self, values: torch.Tensor, kind: str) -> None:
            super().__init__()
            self.first = nn.Parameter(values.flip(0).clone())
            self.register_buffer("scratch", values.flip(0).clone(), persistent=kind == "computed")
            if kind in ("learned", "frozen"):
                self.table = nn.Parameter(values.clone(), requires_grad=kind == "learned")
            else:
                self.register_buffer("table", values.clone(), persistent=kind == "stored")
            self.out = nn.Linear(3, 3)

    def inside(model: nn.Module) -> nn.Module:
        """The same table one level deeper: "encoder.table"; the model has a table of its own, of the other sort."""
        outer = nn.Module()
        outer.encoder = model
        values = torch.full_like(model.table, 0.25).detach()
        if isinstance(model.table, nn.Parameter):
            outer.register_buffer("table", values, persistent=False)
        else:
            outer.table = nn.Parameter(values)
        return outer

    def judge_named(model: nn.Module, name: str, rounded: torch.Tensor, least: float, kind: str) -> object:
        """The learner's judge_table; an error of the search for the table becomes a sentence."""
        try:
            with checks.untouched(model=model, rounded=rounded):
                return judge_table(model, name, rounded, least)
        except (KeyError, AttributeError) as error:
            text = str(error)
            if name not in text and "table" not in text:
                raise
            place = f"your function does not find the table ({type(error).__name__}: {text}). "
            assert "." not in name, place + (
                f'"{name}" is the full name of a table in a part of the model; getattr and the dictionaries of one module know only their own. '
                "dict(model.named_parameters()) and dict(model.named_buffers()) have full names."
            )
            raise AssertionError(
                place
                + {
                    "computed": "A buffer with persistent=False is in model.named_buffers(), but not in model.state_dict(): take the values from memory, and ask the file only for the bytes.",
                    "stored": "This table is a buffer: look into model.named_buffers() as well.",
                }.get(kind, "This table is a parameter: look into model.named_parameters() as well.")
            ) from None

    def example(seed: int, shape: tuple[int, ...], noise: float) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(shape, generator=generator) + 0.3
        return x, x + noise * torch.randn(shape, generator=generator)

    def pairs(seed: int) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
        """Signals and what became of them, and what to call them."""
        units = [("a little noise", 0.01, 1.0), ("much noise", 1.7, 1.0), ("large numbers", 0.1, 1000.0)]
        units += [("tiny numbers", 0.1, 1e-25), ("huge numbers", 0.1, 1e25), ("hardly any noise", 1e-6, 1.0)]
        found = []
        for i, (what, noise, unit) in enumerate(units):
            x, y = example(seed + i, (6, 7), noise)
            found.append(
                (what, x * unit * torch.linspace(0.5, 1.5, 6)[:, None], y * unit * torch.linspace(0.5, 1.5, 6)[:, None])
            )
        x, y = example(seed + 10, (700, 4), 0.02)
        found.append(
            ("many numbers", x * torch.linspace(0.1, 4, 700)[:, None], y * torch.linspace(0.1, 4, 700)[:, None])
        )
        x, y = example(seed + 11, (6, 7), 0.02)
        found.append(("numbers of which half are 0", x * (x > 0.3), y))
        found.append(("float64 numbers", x.double(), y.double()))
        last_digit = x.clone()
        last_digit[2, 3] = torch.nextafter(x[2, 3], torch.tensor(9.0))
        found.append(("numbers of which one differs in its last digit", x, last_digit))
        loud = torch.tensor([[2.0, -2.5], [1.0, 3.0]]) * 1e38
        found.append(("numbers near the end of float32", loud, loud * torch.tensor([[-1.0, 1.0], [0.9, -0.5]])))
        x, y = example(seed + 9, (3, 4, 2), 0.2)
        forms = zip(samples.awkward(x), samples.awkward(y), strict=True)
        return found + [(f"{what} of three dimensions", a, b) for (what, a), (_, b) in forms]

    def power_ratio(x: torch.Tensor, y: torch.Tensor) -> float:
        return float(
            sum(v * v for v in x.flatten().tolist())
            / sum((v - w) ** 2 for v, w in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True))
        )

    def db(ratio: torch.Tensor | float) -> float:
        return 10 * math.log10(float(ratio))

    def ratio_of(x: torch.Tensor, y: torch.Tensor, otherwise: str) -> float:
        """The learner's sqnr; `otherwise` is the sentence for a division by zero."""
        try:
            return sqnr(x, y)
        except ZeroDivisionError:
            raise AssertionError(otherwise) from None
        except ValueError as error:
            assert "math domain" not in str(error), (
                "it takes the logarithm of 0: the noise is infinite, because the difference does not fit into float32. First .double(), then subtract."
            )
            raise

    def inner_names() -> list[tuple[nn.Module, str, torch.Tensor, torch.Tensor, int]]:
        """Models with several tables of similar names: which is asked for, its values, its rounded values, the bytes saved."""
        x, y = example(48, (2, 3, 4), 0.1)  # three dimensions: learned positions often have a first one of 1
        found = []
        for kind, saved in [("learned", 64), ("computed", 0), ("stored", 64)]:
            outer = nn.Module()
            outer.encoder = inside(Positions(x, kind))
            outer.part = inside(inside(Positions(x, kind)))
            outer.part.encoder.encoder.table.data += 0.5
            found.append((outer, "encoder.encoder.table", x, y, saved))
            found.append((outer, "part.encoder.encoder.table", x + 0.5, y + 0.5, saved))
        model = inside(
            Positions(0 * x + 3, "learned")
        )  # "table" of the model itself is a buffer, encoder.table a parameter
        model.table.copy_(x)
        x, y = example(49, (3,), 0.1)
        big, rounded = example(50, (70, 60), 0.1)
        return [*found, (model, "table", model.table.clone(), model.table + 0.1, 0),
                (Positions(x, "learned"), "table", x, y, 1),
                (Positions(big, "stored"), "table", big, rounded, 3 * 4200 - 8)]  # fmt: skip

    with checks.check("4.3", "your decibels are right, and your decision follows from them and from the file"):
        for what, x, y in pairs(43):
            with checks.untouched(signal=x, rounded=y):
                answer = ratio_of(
                    x, y, f"for {what} it divides by 0: in float32 their squares vanish. Take .double() first."
                )
            ratio, right = power_ratio(x, y), db(power_ratio(x, y))
            x, y = x.detach().double(), y.detach().double()
            signal, noise = x.square(), (x - y).square()
            per_row = signal.sum(-1) / noise.sum(-1)
            checks.number(
                answer,
                right,
                f"the SQNR for {what}",
                mistakes={
                    "10 * log10 is for powers; of amplitudes (norms) it gives half of the dB: take 20, or square first.": right
                    / 2,
                    "signal and noise are swapped: the signal stands above the line, so that less noise gives more dB.": -right,
                    "it is absolute: only the noise was measured. Divide the signal's power by it, so that the unit does not matter.": -db(
                        noise.sum()
                    ),
                    "it is absolute: only the mean noise was measured. Divide the signal's power by it.": -db(
                        noise.mean()
                    ),
                    "20 * log10 is for amplitudes; of powers (squares) it gives twice the dB.": 2 * right,
                    "this is the natural logarithm: dB use log10.": 10 * math.log(ratio),
                    "this is the binary logarithm: dB use log10.": 10 * math.log2(ratio),
                    "this is the ratio of the powers; dB are 10 * log10 of it.": ratio,
                    "this is the ratio of the norms; dB are 20 * log10 of it.": ratio**0.5,
                    "these are bels: a decibel is the tenth part of one.": right / 10,
                    "the noise was compared with the power of the rounded tensor: the signal is the float one.": db(
                        power_ratio(y, x)
                    ),
                    "the mean was subtracted from the signal: its power is the sum of the squares themselves.": db(
                        (x - x.mean()).square().sum() / noise.sum()
                    ),
                    "the largest values were compared instead of the powers.": 2
                    * db(x.abs().max() / (x - y).abs().max()),
                    "the largest value was compared with the mean noise (PSNR): the signal's power is the sum of its squares.": db(
                        signal.max() / noise.mean()
                    ),
                    "magnitudes were added, not squares.": 2 * db(x.abs().sum() / (x - y).abs().sum()),
                    "it is the mean of the rows' decibels: add all squares of the signal first, and all of the noise.": 10
                    * per_row.log10().mean().item(),
                    "the rows' ratios of signal and noise were averaged: add all squares first, then divide once.": db(
                        per_row.mean()
                    ),
                    "the rows' ratios of noise and signal were averaged (as the library PPQ does): add all squares first, then divide once.": -db(
                        (1 / per_row).mean()
                    ),
                },
                rtol=1e-6,
            )
            assert isinstance(answer, float), (
                f"the SQNR should be a float, not {type(answer).__name__}: .item() makes a number of a tensor."
            )
        same = ratio_of(
            x, x.clone(), "for two equal tensors it divides by 0: they have no noise, so the SQNR is math.inf."
        )
        checks.given(same, "the SQNR of two equal tensors")
        assert float(same) == math.inf, "two equal tensors have no noise: the SQNR is math.inf."
        for kind, name in [
            ("learned", "table"),
            ("stored", "table"),
            ("computed", "table"),
            ("frozen", "table"),
            ("stored", "encoder.table"),
            ("learned", "encoder.table"),
            ("computed", "encoder.table"),
        ]:
            for noise, more in [
                (0.005, -15.0),
                (4.0, 5.0),
                (0.5, 24.0),
                (0.5, -3.0),
                (0.5, -0.04),
                (0.5, 0.04),
                (4.0, -4.0),
            ]:
                x, y = example(46, (20, 6), noise)
                right = db(power_ratio(x, y))
                least = right + more
                model = Positions(x, kind) if name == "table" else inside(Positions(x, kind))
                returned = judge_named(model, name, y, least, kind)
                checks.given(returned, "what judge_table returns")
                assert isinstance(returned, tuple | list) and len(returned) == 3, (
                    "your judge_table should return three values."
                )
                decibels, saved, decision = returned
                other = (
                    model.scratch
                    if name == "table" and kind in ("stored", "computed")
                    else model.get_parameter("first")
                    if name == "table"
                    else model.table
                )
                checks.number(
                    decibels, right, "the first value, the table's SQNR",
                    mistakes={
                        "signal and noise are swapped.": -right,
                        "the arguments of sqnr are swapped.": db(power_ratio(y, x)),
                        f'it is that of another table of the model: the one whose full name is "{name}" is asked for.': db(power_ratio(other.detach(), y)),
                    },
                    rtol=1e-4,
                )  # fmt: skip
                bytes_saved = 3 * 120 - 8 if kind != "computed" else 0
                if kind == "computed":
                    assert saved == 0, (
                        f"this table is a buffer with persistent=False: it is not in the file, so the file loses 0 bytes, not {saved}. Look into model.state_dict()."
                    )
                checks.number(
                    saved, bytes_saved, f"the number of bytes that the file loses for a {kind} table",
                    mistakes={
                        f"a {kind} table *is* in the file: model.state_dict() has its full name.": 0,
                        "the 8 bytes of scale and zero point were forgotten.": 360,
                        "a float32 number has 4 bytes and its code 1: 3 are saved for each.": 120 - 8,
                        "this is what the float table takes.": 480,
                        "this is what the 8-bit table takes.": 128,
                        "the 8 bytes of scale and zero point were added to what is saved.": 368,
                        "only 4 of the 8 bytes for scale and zero point were counted.": 356,
                        "each row got a scale and a zero point: here the whole table has one of each.": 360 - 8 * 20,
                    },
                )  # fmt: skip
                assert isinstance(saved, int | np.integer), (
                    f"the number of bytes should be an int, not {type(saved).__name__}."
                )
                assert isinstance(decision, bool | np.bool_), (
                    f"the third value should be True or False, not {decision!r}."
                )
                if decision != (right >= least and kind != "computed"):
                    assert kind != "computed", (
                        "quantizing a table that is not in the file saves nothing: leave it, however good the SQNR is."
                    )
                    assert abs(more) > 0.1, (
                        f"a {kind} table with {right:.2f} dB was {'accepted' if decision else 'rejected'} although at least {least:.2f} dB are asked for: compare the numbers as they are, not rounded, and without a margin."
                    )
                    assert not decision or right > 0, (
                        f"a {kind} table with {right:.1f} dB, more noise than signal, was accepted although at least {least:.1f} dB are asked for: the SQNR takes part in the decision, too."
                    )
                    assert not decision, (
                        f"a {kind} table with {right:.1f} dB was accepted although at least {least:.0f} dB are asked for: compare with the least_db that is handed over."
                    )
                    raise AssertionError(
                        f"a {kind} table with {right:.1f} dB was rejected although {least:.0f} dB are enough and the file becomes smaller."
                    )
                if kind != "computed" and more == 0.04:
                    assert judge_table(model, name, y, decibels)[2], (
                        "a table with exactly least_db was rejected: *at least* means >=, not >."
                    )
                    assert not judge_table(model, name, y, math.nextafter(decibels, math.inf))[2], (
                        "a table that misses least_db by the smallest possible difference was accepted: compare with >= and nothing else."
                    )
        x, y = example(47, (2,), 0.01)
        _, saved, decision = judge_table(Positions(x, "learned"), "table", y, 5.0)
        assert saved == -2, (
            f"a table of two numbers has 8 bytes in float, and 2 + 8 in 8 bits: the file loses -2 bytes (it grows), not {saved}."
        )
        assert not decision, "a tiny table was accepted although the file would grow by 2 bytes."
        for model, name, x, y, saved in inner_names():
            right = db(power_ratio(x, y))
            for least in (right - 0.5, right + 0.5):
                mine = judge_named(model, name, y, least, "")
                checks.number(mine[0], right, f"the SQNR of {name}, a table {tuple(x.shape)} among others", rtol=1e-5)
                checks.number(mine[1], saved, f"the number of bytes saved for {name}, a table {tuple(x.shape)}")
                assert mine[2] == (least < right and saved > 0), (
                    f"the table {name} with {right:.2f} dB, {saved} bytes less in the file, was {'accepted' if mine[2] else 'rejected'}; asked for are {least:.2f} dB and a smaller file, by however few bytes."
                )
        x, _ = example(47, (2,), 0.01)
        exact = judge_table(Positions(x.repeat(9), "stored"), "table", x.repeat(9), 500.0)
        assert exact[0] == math.inf and exact[2], (
            "a table that 8 bits do not change at all has infinitely many dB, and is accepted whatever least_db is."
        )
        assert torch.get_default_dtype() == torch.float32, (
            "your function sets the default dtype of the whole notebook: .double() makes one tensor float64."
        )
    ### BEGIN HIDDEN TESTS
    more_pairs = [
        ("", *example(seed, shape, noise))
        for seed, shape, noise in [(431, (3,), 1e-4), (432, (40, 8), 0.03), (433, (2, 3, 4), 4.0)]
    ]
    for what, x, y in [*more_pairs, *pairs(4301)]:
        expected = db(power_ratio(x, y))
        with checks.untouched(signal=x, rounded=y):
            answer = sqnr(x, y)
        assert isinstance(answer, float) and abs(answer - expected) < 2e-6 * max(1, abs(expected)), (
            f"wrong decibels: {what}."
        )
    assert sqnr(torch.ones(4), torch.ones(4)) == math.inf, "equal tensors."
    for kind in ("computed", "learned", "stored", "frozen"):
        for name in ("table", "encoder.table", "part.encoder.table"):
            x, y = example(434, (9, 5), 0.1)
            model = Positions(x, kind)
            if name != "table":
                model = inside(model)
            if name.startswith("part"):
                outer = nn.Module()
                outer.part = model
                model = outer
            truth = db(power_ratio(x, y))
            with checks.untouched(model=model, rounded=y):
                for least in (truth - 0.03, truth + 0.03):
                    found, saved, decision = judge_table(model, name, y, least)
                    assert abs(found - truth) < 1e-3, "wrong dB."
                    assert isinstance(saved, int | np.integer) and saved == (0 if kind == "computed" else 127), (
                        "wrong bytes."
                    )
                    assert isinstance(decision, bool | np.bool_) and decision == (
                        kind != "computed" and least < truth
                    ), "decision."
                assert judge_table(model, name, x.clone(), 500.0)[2] == (kind != "computed"), (
                    "an exact table is rejected."
                )
                limit = judge_table(model, name, y, 0.0)[0]
                assert judge_table(model, name, y, limit)[2] == (kind != "computed"), "exactly enough is rejected."
                assert not judge_table(model, name, y, math.nextafter(limit, math.inf))[2], "just missed, and accepted."
    two = Positions(torch.tensor([1.0, 2.0]), "learned")
    assert tuple(judge_table(two, "table", torch.tensor([1.0, 2.01]), 5.0))[1:] == (-2, False), (
        "a tiny table would grow."
    )
    for model, name, x, y, bytes_less in inner_names():
        truth = db(power_ratio(x, y))
        for least in (truth - 0.4, truth + 0.4):
            found, saved, decision = judge_table(model, name, y, least)
            assert abs(found - truth) < 1e-4 and saved == bytes_less, f"{name} among others."
            assert decision == (least < truth and bytes_less > 0), f"the decision about {name}."
    x, y = example(435, (9, 5), 4.0)
    low = db(power_ratio(x, y))
    for least in (low - 3, low + 3):
        assert judge_table(Positions(x, "stored"), "table", y, least)[2] == (least < low), "negative decibels."
    assert torch.get_default_dtype() == torch.float32, "the default dtype of the notebook was changed."
    ### END HIDDEN TESTS


check_ex_4_3()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two sums of squares, one of the signal, one of the difference. And what does `model.state_dict()` contain: everything in memory, or everything in the file?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# $10 \log_{10}$ of the ratio of the two sums, in float64; catch the difference that is 0 before you divide. A name of `dict(model.named_parameters())` or `dict(model.named_buffers())` gives you the table; only if `name in model.state_dict()` it takes bytes in the file.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `noise = (signal - rounded).double().square().sum().item()`; `10 * math.log10(power / noise)`. Saved: `4 * n - (n + 8)`, or 0. Decision: `decibels >= … and saved > …`.
# </details>

# %% [markdown]
# ### Look back: from decibels to a decision
#
# How many dB are enough? That, too, is measured. We round the table to fewer and fewer bits, and look at the SQNR and at what the whole model loses. The dotted line is the rule of 6.02 dB for each bit:

# %%
positions = course_model.positions
bit_range = range(2, 11)


def rounded_positions(bits: int) -> Tensor:
    """The table after rounding with one scale for all of it."""
    top = 2**bits - 1
    return affine.fake_quantize(positions, *affine.qparams(-1.0, 1.0, 0, top), 0, top)


decibels = [metrics.sqnr_db(positions, rounded_positions(bits)) for bits in bit_range]
costs = {}
for bits in (2, 4, 8):
    rounded_model = quantizable.quantizable(course_model)
    rounded_model.positions = rounded_positions(bits)
    costs[bits] = cost(rounded_model)
fig, axes = plots.figure(columns=2, width=9.0, height=2.9)
axes[0].plot(bit_range, decibels, "o-", color=plots.BLUE, label="table of positions")
axes[0].plot(bit_range, [decibels[6] + 6.02 * (b - 8) for b in bit_range], ":", color=plots.GREY, label="6.02 dB a bit")
axes[0].set_xlabel("bits")
axes[0].set_ylabel("SQNR in dB")
axes[0].legend()
axes[1].errorbar(
    [decibels[b - 2] for b in costs], [c[0] for c in costs.values()], [2 * c[1] for c in costs.values()], fmt="s", color=plots.ORANGE, capsize=4
)  # fmt: skip
for bits, (mean, _) in costs.items():
    axes[1].annotate(f"{bits} bits", (decibels[bits - 2], mean), textcoords="offset points", xytext=(8, 6))
axes[1].axhline(0, color=plots.GREY, linewidth=0.6, linestyle=":")
axes[1].set_xlabel("SQNR of the table in dB")
axes[1].set_ylabel("Δ bits per byte")
axes[1].margins(x=0.2, y=0.2)
plots.show(
    fig,
    caption="Left: SQNR of the table against its bits. Right: what the whole model loses, with mean ± 2 standard errors over documents.",
    alt="Left, dots that lie within about a decibel of the dotted line of 6.02 dB for each bit from 4 bits on, and more than three decibels below it at 2 bits. Right, three squares: a clear loss at 2 bits, and at 8 bits a loss that cannot be told from zero.",
)
tables.show(
    [{"bits": b, "SQNR in dB": f"{decibels[b - 2]:.1f}", "Δ bits per byte ± standard error": f"{m:+.4f} ± {e:.4f}"} for b, (m, e) in costs.items()]
)  # fmt: skip
file_bytes_of_table = positions.numel() * 4 if "positions" in course_model.state_dict() else 0
print(f"bytes of the table in the file: {file_bytes_of_table}; 8 bits would take away {3 * file_bytes_of_table // 4}")

# %% [markdown]
# The table bears 8 bits well. And still the answer is **no**: there is nothing in the file that could become smaller. Rounding it would only add noise. (What *is* quantized, in a model whose residual stream is int8, is the *sum* of token vector and position: one tensor, one scale, and the two parts are float until they are added.) With a learned table, the same
# decibels would lead to a yes.
#
# So for two components out of fifteen, the four questions gave three different answers: 8 bits with a scale for each row, 4 bits if memory is scarce, and "leave it alone". That is the point of going one by one.

# %% [markdown]
# ## 4. Why not quantize PyTorch's own Transformer layer?
#
# PyTorch brings a finished encoder layer, `nn.TransformerEncoderLayer`, and a finished attention, `nn.MultiheadAttention`. It also brings `quantize_dynamic`,
# `prepare` and `prepare_qat`. Why should anybody write an attention by hand?
#
# Because the finished parts do not fit together. You have met two of the failures in the clinic of unit 02, each alone; here is the whole picture. Four short runs follow, each on a layer with the sizes of our blocks. (You have met a fifth in section 2: the 4-bit embedding module that unpacks with the wrong width.)
#
# ### A third of the layer stays in float
#
# `quantize_dynamic` replaces modules of the type `nn.Linear`. Count what it has replaced:


# %% tags=["nbval-check-output"]
def weights_in_int8(model: nn.Module) -> int:
    """How many numbers the int8 weights of `model` hold: PyTorch's int8 layers have a method `weight`."""
    return sum(module.weight().numel() for module in model.modules() if callable(getattr(module, "weight", None)))


torch.manual_seed(40)
encoder_layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True).eval()
matrices = {name: weight for name, weight in encoder_layer.named_parameters() if weight.dim() == 2}
half_int8 = tq.quantize_dynamic(encoder_layer, {nn.Linear}, dtype=torch.qint8)
left = {name: weight for name, weight in half_int8.named_parameters() if weight.dim() == 2}
total = sum(weight.numel() for weight in matrices.values())
print(f"numbers in the matrices of the layer: {total:,}")
print(
    f"in int8 after quantize_dynamic:       {weights_in_int8(half_int8):,} = {weights_in_int8(half_int8) / total:.1%}"
)
for name, weight in left.items():
    print(f"still {weight.dtype}: {name} {tuple(weight.shape)}")
print("type of out_proj:", type(half_int8.self_attn.out_proj).__name__)

# %% [markdown]
# All of the attention is still float. Its query, key and value matrices are one parameter, `in_proj_weight`, that belongs to no Linear layer. And its output projection is a subclass of
# `nn.Linear` that says by its very name that it does not want to be replaced: PyTorch's attention reads its `weight` as a tensor, which an int8 layer does not have. Of $12 d^2$ numbers, $4 d^2$ stay: a third. Nothing warns you.
#
# ### The half-quantized layer crashes
#
# It gets worse when you run it:

# %% tags=["nbval-check-output"]
sentence = torch.randn(2, 6, 256, generator=torch.Generator().manual_seed(41))  # (batch, time, d_model)
with torch.no_grad():
    errors.show_error(lambda: half_int8(sentence))

# %% [markdown]
# In eval mode, when no gradients are wanted, an encoder layer takes a shortcut (the *fast path*): one fused kernel for the whole layer. Before it decides, it asks `linear1.weight` for its device, gradients or not. In the int8 layer `weight` is a method, and a method has no device.
#
# Two ways out. The fast path can be switched off. That is a switch for the *whole process*, so we put it back, whatever happens. Or one builds the layer with `batch_first=False`, which has no fast path
# (then the first dimension is time, not the batch):


# %%
@contextmanager
def without_fast_path() -> Iterator[None]:
    """Inside, PyTorch's Transformer layers do not take their shortcut; afterwards the switch is what it was."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def relative_error(answer: Tensor, reference: Tensor) -> float:
    """Size of the difference in units of the reference (both as vectors)."""
    return ((answer - reference).norm() / reference.norm()).item()


time_first = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=False).eval()
time_first.load_state_dict(encoder_layer.state_dict())
with torch.no_grad():
    wanted = encoder_layer(sentence)
    with without_fast_path():
        print(f"fast path off:     relative error {relative_error(half_int8(sentence), wanted):.4f}")
    half_time_first = tq.quantize_dynamic(time_first, {nn.Linear}, dtype=torch.qint8)
    got = half_time_first(sentence.transpose(0, 1)).transpose(0, 1)
    print(f"batch_first=False: relative error {relative_error(got, wanted):.4f}")
print("the switch is on again:", torch.backends.mha.get_fastpath_enabled())

# %% [markdown]
# Both run. And both still compute their attention in float.
#
# ### The quantizable attention is wrong before it is quantized
#
# For static quantization PyTorch has a second attention, `torch.ao.nn.quantizable.MultiheadAttention`. It has separate Linear layers for query, key and value, as it should be. `from_float` copies the weights. So both must give the same output, in float, with no quantization yet:

# %% tags=["nbval-check-output"]
rows = []
for heads in (1, 2, 4):
    row = {"heads": heads}
    for batch_first in (False, True):
        torch.manual_seed(42)
        plain = nn.MultiheadAttention(256, heads, batch_first=batch_first).eval()
        plain.qconfig = tq.get_default_qconfig(engine)
        twin = torch.ao.nn.quantizable.MultiheadAttention.from_float(plain).eval()
        with torch.no_grad():
            error = relative_error(twin(sentence, sentence, sentence)[0], plain(sentence, sentence, sentence)[0])
        row[f"batch_first={batch_first}"] = f"{error:.3f}" if error > 1e-5 else "0 (up to rounding)"
    rows.append(row)
tables.show(rows)

# %% [markdown]
# With `batch_first=True` and more than one head the error is as large as the output. Which line does it? Look for what the source does with `batch_first`:

# %% tags=["nbval-check-output"]
source = inspect.getsource(torch.ao.nn.quantizable.MultiheadAttention._forward_impl)
places = [part.split("\n") for part in source.split("        if self.batch_first")[1:]]
for title, lines in (("at the entry:", places[0][:2]), ("at the end:", places[1][:8])):
    print(title, "if self.batch_first" + "\n".join(lines), sep="\n        ")

# %% [markdown]
# At the entry, batch and time are swapped: from here on everything is (time, batch, width). Then the heads move forward, and what the second matrix product returns is stored as (batch · heads, time, width of a head). At the end, the branch for `batch_first=False` transposes first and merges the heads then. The branch for
# `batch_first=True` merges at once, with `view`. But `view` moves nothing; it only cuts the same row of numbers into other pieces. With one head the pieces are right by luck.
#
# An example by hand. Two heads (a and b) of width 2, three positions; each entry says its head and its position:

# %% tags=["nbval-check-output"]
stored = np.array([[[f"{head}{position}"] * 2 for position in range(3)] for head in "ab"])  # (heads, time, d_head)
print("transposed, then merged: ", stored.transpose(1, 0, 2).reshape(3, 4).tolist())
print("merged with a view alone:", stored.reshape(3, 4).tolist())

# %% [markdown]
# In the second line position 0 gets head a of positions 0 *and 1*. So a causal mask does not help: the future leaks in. Change the last token, and look whether earlier outputs move:

# %%
torch.manual_seed(43)
plain = nn.MultiheadAttention(256, 4, batch_first=True).eval()
plain.qconfig = tq.get_default_qconfig(engine)
twin = torch.ao.nn.quantizable.MultiheadAttention.from_float(plain).eval()
changed = sentence.clone()
changed[:, -1] += 1
no_future = ~causal_mask(6)  # here True means: may not look
with torch.no_grad():
    for name, attention in (("nn.MultiheadAttention", plain), ("quantizable.MultiheadAttention", twin)):
        before = attention(sentence, sentence, sentence, attn_mask=no_future)[0]
        after = attention(changed, changed, changed, attn_mask=no_future)[0]
        print(f"{name:32} change at positions 0 to 4: {(after - before)[:, :-1].abs().max():.4f}")

# %% [markdown]
# So: use it with `batch_first=False` only. And know what you get. Even then everything between the projections is float: its source dequantizes query, key and value, and quantizes again behind the second product. Scores and probabilities get no scale, and nobody learns whether they would bear 8 bits.
#
# ### Training with it is refused
#
# For quantization-aware training there is `prepare_qat`:

# %% tags=["nbval-check-output"]
for name, network in [
    ("nn.TransformerEncoderLayer:      ", nn.Sequential(nn.TransformerEncoderLayer(256, 4, 1024))),
    ("nn.MultiheadAttention:           ", nn.Sequential(nn.MultiheadAttention(256, 4))),
    ("quantizable.MultiheadAttention:  ", nn.Sequential(torch.ao.nn.quantizable.MultiheadAttention(256, 4))),
]:
    network.train().qconfig = tq.get_default_qat_qconfig(engine)
    print(name, end="")
    errors.show_error(lambda network=network: tq.prepare_qat(network))

# %% [markdown]
# | What is closed | Why | What we do instead |
# |---|---|---|
# | dynamic quantization of the attention | its weights are in no Linear layer | four plain `nn.Linear` layers: q, k, v, out |
# | running it in eval mode | a fast path that reads weights | a forward pass of our own |
# | static quantization with `batch_first=True` | a `view` without a transpose | we transpose, and test it |
# | scores, probabilities and mix in 8 bits, a scale for each | PyTorch dequantizes query, key and value, and stays in float to the end of the attention | two `FloatFunctional.matmul` and a `QuantStub` (what they compute inside, section 5 measures) |
# | training with `nn.TransformerEncoderLayer` or `nn.MultiheadAttention` | the subclass of `nn.Linear` | plain `nn.Linear` again |
# | training with `quantizable.MultiheadAttention` | `prepare_qat` asks for an observer that it has not put in (`activation_post_process`) | modules of our own |
#
# The course model was built from four plain Linear layers from the start. So `quantize_dynamic` reaches all of its matrices. What is missing for *static* quantization are the places for quantizers. We add them now, part by part.
# %% [markdown]
# ## 5. Attention
#
# ### What is in it, what fits, what does it cost, what does it save?
#
# Attention is four matrices and three tensors that no matrix makes alone: the scores $q k^T$, the probabilities, and the mix $p v$. Two of its products have *no weight at all*: both factors are activations, so both need a scale that is measured.
#
# The four questions of section 1, for each part. *Bytes* are the float32 weights of all four blocks, *range* is the smallest and largest number that a part makes on some training text. *SQNR* compares that tensor with itself in 8 bits, one scale a block. *Cost* is what happens when this part alone is rounded (weights with one scale a
# row, tensors with one scale each, everything else in float): the mean difference in bits per byte between the rounded and the float model on the same documents, ± its standard error. (The pairs are documents, so what makes a document hard cancels.) *Saves* is what its weights lose when float32 becomes int8 codes; the scales that they need are counted in section 7. A tensor
# saves nothing on disk. But whether it bears 8 bits decides whether its products could be made of integers.


# %%
ranging = data.windows("training", 8)[:, :128]
judging = data.windows("held_out", 16, 129)
ranging_tensors = components.recorded(course_model, ranging)
judging_bits = metrics.next_byte_bits(course_model, judging)


def difference(bits: Tensor, reference: Tensor) -> tuple[float, float]:
    """Mean difference a byte and its standard error over documents, which are the rows of both."""
    by_document = (bits - reference).mean(dim=1)
    return by_document.mean().item(), (by_document.std() / len(by_document) ** 0.5).item()


def rounded_to_8_bits(x: Tensor) -> Tensor:
    """`x` rounded to 256 steps between its minimum and maximum, 0 included."""
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    step = (high - low) / 255
    return torch.fake_quantize_per_tensor_affine(x, step, round(-low / step), 0, 255)


def four_answers(part: str, fits: str) -> dict[str, str]:
    """What is in this part of the course model, which scheme fits, what rounding it alone costs, what it saves."""
    tensors = ranging_tensors[part]
    rounded = components.simulated(course_model, [part], ranging)
    more, error = difference(metrics.next_byte_bits(rounded, judging), judging_bits)
    weights = components.weight_bytes(course_model, part)
    matrices = sum(
        course_model.get_parameter(name).numel()
        for name in components.weight_names(course_model, part)
        if course_model.get_parameter(name).dim() == 2
    )
    sqnr = [metrics.sqnr_db(tensor, rounded_to_8_bits(tensor)) for tensor in tensors]
    return {
        "part": part,
        "bytes": f"{weights:,}",
        "range": f"{min(t.min().item() for t in tensors):.1f} to {max(t.max().item() for t in tensors):.1f}",
        "SQNR of the blocks in dB": f"{min(sqnr):.0f} to {max(sqnr):.0f}",
        "what fits": fits,
        "cost alone, bits per byte": f"{more:+.4f} ± {error:.4f}",
        "saves bytes": f"{3 * matrices if weights else 0:,}",
    }


linear = "int8 a row; 8-bit output"
table = [
    four_answers("query", linear),
    four_answers("key", linear),
    four_answers("value", linear),
    four_answers("scores", "8 bits; mask afterwards"),
    four_answers("probabilities", "8 bits, range 0 to the largest"),
    four_answers("mix", "7 bits on x86: a Linear reads it"),
    four_answers("out", linear),
]
tables.show(table)

# %% [markdown]
# Nothing here is expensive alone. Compare each cost with its standard error: several cannot be told from 0 with so few documents, and one that is negative by two standard errors is no reason to believe that rounding helps (among so many rows, one such is to be expected). And SQNR alone would not have told you: the differences between the parts are small, and a tensor with a lower one may cost less.
#
# ### What integers can do here, and what they cannot
#
# Three operations of attention have to be written in another way before PyTorch can quantize them. Look at what an int8 tensor does with the usual spelling:

# %% tags=["nbval-check-output"]
small_codes = torch.quantize_per_tensor(
    torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(50)), 0.02, 128, torch.quint8
)
print("q @ k:   ", end="")
errors.show_error(lambda: small_codes @ small_codes.transpose(1, 2), width=70)
print("softmax: ", end="")
errors.show_error(lambda: small_codes.softmax(dim=-1), width=70)
print("x + y:   ", end="")
errors.show_error(lambda: small_codes + small_codes, width=70)

# %% [markdown]
# All three refuse. For **products and sums of two activations** there is `FloatFunctional`: a small module with methods `matmul`, `add` and others. In a float model, `f.matmul(a, b)` is `a @ b`. `prepare` hangs an observer on its result, and `convert` makes a `QFunctional` of it, which calls `torch.ops.quantized.matmul`: codes go in, and codes come
# out, with the scale that was measured. So *every place needs one of its own*: it holds the one scale of this place. For **softmax**, too, there is a function in `torch.ops.quantized`. Do these three compute with integers? PyTorch's profiler knows what runs inside, for each engine of this computer:

# %% tags=["varies"]
float_steps = {
    "aten::dequantize": "dequantize",
    "aten::bmm": "float product",
    "aten::_softmax": "float softmax",
    "aten::quantize_per_tensor": "quantize",
}
calls = {
    "quantized.matmul": lambda: torch.ops.quantized.matmul(small_codes, small_codes.transpose(1, 2), 0.05, 128),
    "quantized.add": lambda: torch.ops.quantized.add(small_codes, small_codes, 0.05, 128),
    "quantized.softmax": lambda: torch.ops.quantized.softmax(small_codes, -1, 1 / 256, 0),
}
engine_rows = []
for name in int8.engines():
    with int8.using(name):
        seen_inside = {call: profiling.operation_times(run) for call, run in calls.items()}
    engine_rows.append(
        {"engine": name}
        | {
            call: ", ".join(word for step, word in float_steps.items() if step in found) or "none of these"
            for call, found in seen_inside.items()
        }
    )
tables.show(engine_rows)
print("does convert know nn.Softmax?", nn.Softmax in tq.get_default_static_quant_module_mappings())

# %% [markdown]
# - A **sum** is made of codes. A **product** of two activations is not: it is a *float product between codes*. On each of these engines PyTorch turns both factors into floats, multiplies those, and quantizes the result. So did the library's own attention in section 4; the difference is that here each result is rounded to 8 bits, at a scale of its own.
#   Then why build it? Because the model that comes out has shown, in bits per byte, that all its tensors bear 8 bits. A processor with an integer product of activations can use that; this one gains no time by it, and loses the conversions. (Unit 05 measures that, and takes them out again.)
# - For **softmax** there is an int8 function. It, too, converts inside on x86, fbgemm and onednn; on qnnpack, asked for the scale 1/256 as here, it does not. But `convert` does not put it anywhere, and it takes no mask. So here softmax is computed in float: `DeQuantStub` (which you know from unit 02) before it, `QuantStub` behind it.
# - The **mask** goes between them, and there is a good reason. A mask in front of an observer makes its scale useless, as the table shows. A mask behind it, but still on *quantized* scores, raises no error and is no mask: minus infinity becomes the smallest code, which is an ordinary score, and some of the future leaks in. How much depends on how low that code lies (the line below the table):

# %%
score_tensor = ranging_tensors["scores"][
    0
]  # (batch, heads, query, key): block 0, before the scaling by 1 / sqrt(d_head)
seen_keys = causal_mask(score_tensor.shape[-1])
rows = []
for name, tensor in [
    ("scores, no mask", score_tensor),
    ("masked with −1e9", score_tensor.masked_fill(~seen_keys, -1e9)),
    ("masked with −inf", score_tensor.masked_fill(~seen_keys, float("-inf"))),
]:
    observer = tq.MinMaxObserver(quant_min=0, quant_max=255)
    observer(tensor)
    row = {"what the observer sees": name, "smallest": f"{observer.min_val:.3g}"}
    try:
        scale, zero_point = observer.calculate_qparams()
        rounded = torch.quantize_per_tensor(tensor, scale.item(), int(zero_point), torch.quint8)
        kept = rounded.int_repr()[..., seen_keys].unique().numel()
        row |= {"scale": f"{scale.item():.3g}", "different codes of the allowed scores": kept}
    except (AssertionError, RuntimeError, OverflowError, ValueError) as error:
        row |= {
            "scale": f"{type(error).__name__}: {str(error).splitlines()[0][:50]}",
            "different codes of the allowed scores": "none",
        }
    rows.append(row)
tables.show(rows)
low, high = score_tensor.min().item(), score_tensor.max().item()
score_codes = torch.quantize_per_tensor(
    score_tensor, (high - low) / 255, round(-255 * low / (high - low)), torch.quint8
)
leaky = (score_codes.masked_fill(~seen_keys, float("-inf")).dequantize() / 8).softmax(dim=-1)  # d_head is 64
print(
    f"masked with −inf on codes: {leaky[..., ~seen_keys].sum() / leaky.sum():.1%} of all attention goes to the future"
)

# %% [markdown]
# A mask is not data. It says where *not* to look. An observer cannot know that, and spends its whole range on it: one step is then larger than any score, so all allowed scores get the same code, and attention looks everywhere alike. In float, behind the dequantize, minus infinity is harmless.
#
# ### Which range for the probabilities?
#
# Probabilities lie between 0 and 1. So one could fix the scale at 1/256 and never measure it. Is that good? A row of 256 positions has 256 probabilities with the sum 1. If they are about equal, each is about 1/256: one single step. All below half a step become 0.
#
# Let us count, at three lengths, for the course model's real probabilities and for those of random scores (normal numbers; with and without a causal mask). Two numbers for each: the *share* of the allowed probabilities that become 0, and the *mass*, that is how much of all probability they carry together.


# %%
def lost(probabilities: Tensor, allowed: Tensor, scale: float) -> tuple[float, float, float]:
    """At this scale: share of allowed probabilities that become 0, their part of the sum, relative error."""
    p = probabilities[..., allowed]
    back = torch.fake_quantize_per_tensor_affine(p, scale, 0, 0, 255)
    return (back == 0).float().mean().item(), (p[back == 0].sum() / p.sum()).item(), relative_error(back, p)


lengths = (16, 64, 256)
texts = data.windows("training", 8)[:, :256]
shares: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
for length in lengths:
    allowed, everything = causal_mask(length), torch.ones(length, length, dtype=torch.bool)
    random_scores = torch.randn(8, 4, length, length, generator=torch.Generator().manual_seed(51))
    real = torch.stack(course_model.attention_maps(texts[:, :length]))  # (blocks, batch, heads, query, key)
    for name, p, looked_at in [
        ("random scores, no mask", random_scores.softmax(dim=-1), everything),
        ("random scores, causal", random_scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1), allowed),
        ("the course model", real, allowed),
    ]:
        shares.setdefault((name, "1/256"), []).append(lost(p, looked_at, 1 / 256))
        shares.setdefault((name, "largest / 255"), []).append(lost(p, looked_at, p.max().item() / 255))

fig, axes = plots.figure(columns=2, width=10, height=3.4)
for column, (ax, title) in enumerate(
    zip(axes, ("how many become 0", "how much probability they carried"), strict=True)
):
    for (name, scale), values in shares.items():
        style = {
            "random scores, no mask": (plots.ORANGE, "o"),
            "random scores, causal": (plots.GREEN, "s"),
            "the course model": (plots.BLUE, "^"),
        }[name]
        ax.plot(
            range(3),
            [100 * value[column] for value in values],
            marker=style[1],
            color=style[0],
            linestyle="-" if scale == "1/256" else ":",
            fillstyle="full" if scale == "1/256" else "none",
            markersize=6 if scale == "1/256" else 11,
            label=f"{name}, scale {scale}",
        )
    ax.set_xticks(range(3), [str(length) for length in lengths])
    ax.set_xlabel("positions")
    ax.set_ylabel("percent")
    ax.set_title(title)
axes[1].legend(fontsize=8)
plots.show(
    fig,
    caption="What 8 bits do to attention probabilities. Filled markers, solid lines: the fixed scale 1/256. Open markers, dotted lines: the largest probability divided by 255.",
    alt="Two line plots against 16, 64 and 256 positions. All shares grow with the length. The course model loses by far the largest number of probabilities, most of them at 256 positions, but they "
    "carry only a few percent of the probability. Random scores without a mask lose fewer at the fixed scale, which carry much more of the probability, and with the measured scale they lose far fewer. For the two causal "
    "ones the dotted lines lie on the solid ones.",
)
tables.show(
    [
        {
            "probabilities": name,
            "scale": scale,
            **{f"{length}: become 0": f"{value[0]:.0%}" for length, value in zip(lengths, values, strict=True)},
            "256: mass lost": f"{values[-1][1]:.1%}",
            "256: relative error": f"{values[-1][2]:.3f}",
        }
        for (name, scale), values in shares.items()
    ]
)

# %% [markdown]
# Three lessons, and only the first is the one that one expects.
#
# 1. **Random scores without a mask:** a long row has no large probability. Then a fixed scale of 1/256 wastes most of its codes, and a measured one helps much. (A *trained* attention without a mask, as in an encoder, may look at few places all the same; it was not measured here.)
# 2. **With a causal mask** measuring the largest value buys nothing: the first position can only look at itself, so a probability of exactly 1 is always there. Look at the dotted lines: they lie on the solid ones.
# 3. **In the trained model** most probabilities become 0 on long rows, at both scales, and it hardly hurts. They were nearly 0 before: this trained attention looks at few places. So count the mass, not the number. (This is also why the SQNR of section 1 was better than predicted.)
#
# The scale must come from calibration all the same, because whoever writes the module cannot know which of the three cases it will meet. And if the few large values of one tensor may be cut off a little, so that the many small ones get finer steps, an observer can decide that, too: `HistogramObserver` does. In the whole model of `helpers.quantizable`
# it watches the probabilities. Does it help there? The same model twice, only these four observers are others:


# %%
def with_observer(observer: type[nn.Module]) -> nn.Module:
    """The course model in static int8 (section 7); `observer` sets the scale of the probabilities of all blocks."""
    prepared = quantizable.prepare(quantizable.quantizable(course_model))
    for name, module in prepared.named_modules():
        if name.endswith(".attention.quant"):
            module.activation_post_process = observer(quant_min=0, quant_max=255)
    prepared(ranging)
    return quantizable.convert(prepared)


whole_range, histogram = with_observer(tq.MinMaxObserver), with_observer(tq.HistogramObserver)
more, error = difference(metrics.next_byte_bits(whole_range, judging), metrics.next_byte_bits(histogram, judging))
print(f"minimum and maximum instead of the histogram: {more:+.4f} ± {error:.4f} bits per byte")

# %% [markdown]
# A difference below two standard errors is not shown. The histogram costs nothing once the model is converted, so the helpers keep it; that it helps is not a result of this unit.
#
# ### Exercise 4.4: a quantizable attention
# *Difficulty 4 of 5 · 40 minutes · 3 points*
#
# Write the class `StaticAttention`. It gets a trained float `SelfAttention` (its layers are `q`, `k`, `v`, `out`, and `n_heads` says how many heads) and computes the same:
#
# $$q = W_q x + b_q,\quad k = W_k x + b_k,\quad v = W_v x + b_v,\qquad p = \mathrm{softmax}\Big(\frac{q k^T}{\sqrt{d_h}} + \text{mask}\Big),\qquad y = W_o \,\mathrm{merge}(p\,v) + b_o$$
#
# for each head, where $q$ is a query here (no code), $d_h$ is the width of one head, and *merge* puts the heads of a position side by side again. By hand, for one head of width 4: $q = (2, 0, 0, 0)$ and two keys $(1, 0, 0, 0)$ and $(3, 0, 0, 0)$ give the scores 2 and 6, divided by $\sqrt 4$: 1 and 3, and probabilities of about 0.12 and 0.88. If the mask
# forbids the second, they are 1 and 0.
#
# Where is int8, and where is float? Here is the whole path; `x` arrives quantized, `y` leaves quantized:
#
# | step | after `convert` |
# |---|---|
# | q, k, v: three `nn.Linear` | int8 |
# | scores: `FloatFunctional.matmul` | from codes to codes, with a scale of its own |
# | `DeQuantStub` | from here on float |
# | divide by $\sqrt{d_h}$, mask with minus infinity, softmax | float |
# | `QuantStub` | from here on codes, with a scale of its own |
# | mix: another `FloatFunctional.matmul` | from codes to codes, with a scale of its own |
# | merge, and `out`: an `nn.Linear` | int8 |
#
# The float attention must stay as it is, in its numbers, its mode and all else: `copy.deepcopy` its layers. And the module brings no qconfig and no engine of its own: whoever prepares the model chooses those.


# %% nbgrader={"grade": false, "grade_id": "ex_4_4", "locked": false, "schema_version": 3, "solution": true, "task": false}
class StaticAttention(nn.Module):
    """Self-attention with places for quantizers; float until it is prepared, calibrated and converted.

    Parameters
    ----------
    attention : SelfAttention
        Trained, float; is not changed. It has the Linear layers `q`, `k`, `v` and `out`, and `n_heads`.

    Example
    -------
    >>> attention = SelfAttention(d_model=8, n_heads=2).eval()
    >>> x = torch.randn(1, 3, 8)
    >>> torch.allclose(StaticAttention(attention).eval()(x, causal_mask(3)), attention(x, causal_mask(3)), atol=1e-6)
    True
    """

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.heads = attention.n_heads
        self.to_query = copy.deepcopy(attention.q)
        self.to_key = copy.deepcopy(attention.k)
        self.to_value = copy.deepcopy(attention.v)
        self.to_output = copy.deepcopy(attention.out)
        self.score_product = FloatFunctional()
        self.leave_int8 = tq.DeQuantStub()
        self.enter_int8 = tq.QuantStub()
        self.mix_product = FloatFunctional()
        ### END SOLUTION

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention of `x`.

        Parameters
        ----------
        x : Tensor, (batch, time, d_model)
            Float before `convert`, quantized (quint8) after it.
        mask : Tensor, bool, broadcast with (batch, heads, query, key), or None
            True where the query (row) may look at the key (column).

        Returns
        -------
        Tensor, (batch, time, d_model), float or quantized as `x` is
        """
        ### BEGIN SOLUTION
        rows, length, width = x.shape
        in_heads = (rows, length, self.heads, width // self.heads)
        query = self.to_query(x).reshape(in_heads).transpose(1, 2)  # (batch, heads, query, d_head)
        key = self.to_key(x).reshape(in_heads).permute(0, 2, 3, 1)  # (batch, heads, d_head, key)
        value = self.to_value(x).reshape(in_heads).transpose(1, 2)  # (batch, heads, key, d_head)
        scores = self.leave_int8(self.score_product.matmul(query, key)) / math.sqrt(width // self.heads)
        if mask is not None:
            scores = scores.masked_fill(mask.logical_not(), -math.inf)
        weights = self.enter_int8(torch.softmax(scores, dim=3))  # (batch, heads, query, key)
        mixture = self.mix_product.matmul(weights, value).transpose(1, 2)  # (batch, query, heads, d_head)
        return self.to_output(mixture.reshape(rows, length, width))
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_4_4_check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 4.4: run this cell.
import copy
import math

import torch
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import checks, int8, samples, witness
from helpers.models import SelfAttention


@checks.isolated
def check_ex_4_4() -> None:
    class Ends(nn.Module):
        """Float in, float out, the learner's attention between; remembers what it was given and what it made."""

        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.quant, self.part, self.dequant = tq.QuantStub(), part, tq.DeQuantStub()

        def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            self.made = self.part(self.quant(x), mask)
            return self.dequant(self.made)

    kernel_names = {
        "quantized.linear": "linear",
        "quantized.matmul": "matmul",
        "aten.quantize_per_tensor": "quantize",
        "aten.dequantize": "dequantize",
        "aten.bmm": "float product",
        "aten.mm": "float product",
        "aten.addmm": "float product",
    }

    class Kernels(TorchDispatchMode):
        """Which kernels run: only those that matter here."""

        def __init__(self) -> None:
            super().__init__()
            self.seen, self.masked_codes = [], False

        def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
            name = kernel_names.get(".".join(str(kernel).split(".")[:2]))
            if "masked_fill" in str(kernel) or "aten.where" in str(kernel):
                self.masked_codes |= any(isinstance(a, torch.Tensor) and a.is_quantized for a in args)
            self.seen += [name] if name else []
            return kernel(*args, **(kwargs or {}))

    class Functions(TorchFunctionMode):
        """Is PyTorch's fused attention called?"""

        fused = False

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.fused |= function is F.scaled_dot_product_attention
            return function(*args, **(kwargs or {}))

    def attention_of(seed: int, width: int, heads: int, sharpness: float) -> SelfAttention:
        torch.manual_seed(seed)
        attention = SelfAttention(width, heads).eval()
        for name, layer in attention.named_children():
            gain = sharpness if name in ("q", "k") else 1.0
            nn.init.normal_(layer.weight, std=gain / math.sqrt(width))
            nn.init.normal_(layer.bias, std=0.3)
        return attention

    def formula(f: SelfAttention, x: torch.Tensor, mask: torch.Tensor | None, change: str = "") -> torch.Tensor:
        """Attention from torch's own functional parts; `change` makes a known mistake."""
        batch, time, width = x.shape
        layers = [f.q, f.k, f.v]
        order = {"q and k": "kqv", "k and v": "qvk"}.get(change, change if change in mixed else "qkv")
        bias = 0.0 if change == "no bias" else 1.0
        made = [
            F.linear(x, layer.weight, bias * layer.bias).unflatten(2, (f.n_heads, -1)).transpose(1, 2)
            for layer in layers
        ]
        q, k, v = (made["qkv".index(letter)] for letter in order)
        if change.startswith("split"):
            q, k, v = (h.transpose(1, 2).reshape(batch, f.n_heads, time, -1) for h in (q, k, v))
        root = q.shape[-1] ** 0.5
        scale = {"no scale": 1.0, "d_model": width**-0.5, "d_head": root**-2, "length": time**-0.5, "times": root}.get(
            change, 1 / root
        )
        mask = torch.ones(time, time).tril() > 0 if change == "causal" else mask
        mask = None if change == "no mask" else ~mask if change == "mask" and mask is not None else mask
        if change in ("queries", "heads", "softmax twice") or (change in by_hand and mask is not None):
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * scale
            if mask is not None and change not in ("zeroed afterwards", "times 0", "mask added"):
                scores = torch.where(mask, scores, -1e9 if change in ("queries", "heads") else -torch.inf)
            scores = scores * mask if change == "times 0" else scores + mask if change == "mask added" else scores
            p = scores.softmax(dim={"queries": 2, "heads": 1}.get(change, 3))
            p = p * mask if change == "zeroed afterwards" else p.softmax(dim=3) if change == "softmax twice" else p
            y = p @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        y = y.reshape(batch, time, width) if change in ("merge", "split, merge") else y.transpose(1, 2).flatten(2)
        return y if change == "no out" else F.linear(y, f.out.weight, bias * f.out.bias)

    def masks(batch: int, time: int, heads: int) -> list[torch.Tensor | None]:
        padded = torch.ones(batch, 1, 1, time, dtype=torch.bool)
        padded[0, ..., -2:] = False
        generator = torch.Generator().manual_seed(time)
        scattered = torch.rand(batch, heads, time, time, generator=generator) < 0.6
        scattered |= torch.eye(time, dtype=torch.bool)
        return [None, torch.ones(time, time).tril() > 0, padded, scattered, scattered[0].flip(0)]

    def alike(got: torch.Tensor, mistake: torch.Tensor) -> bool:
        """Equal where the mistake gives a number (a query that may look nowhere gets none)."""
        number = mistake.isfinite()
        return bool(number.any()) and torch.allclose(got[number], mistake[number], atol=1e-5, rtol=1e-5)

    by_hand = ("mask", "times 0", "mask added", "zeroed afterwards")
    mixed = {}
    known = {
        "no scale": "the scores are not divided by the square root of the width of a head.",
        "d_model": "the scores are divided by the square root of d_model: it is the width of *one head* that counts.",
        "d_head": "the scores are divided by the width of a head, not by its square root.",
        "length": "the scores are divided by the root of the length: it is the width of *one head* that counts, whatever the length.",
        "times": "the scores are multiplied by the square root of the width of a head: divide.",
        "heads": "the softmax runs over the heads: each query's probabilities over the keys, the last dimension, should have the sum 1.",
        "softmax twice": "there are two softmaxes.",
        "mask": "the mask is the wrong way round: True means that the query may look.",
        "times 0": "forbidden scores become 0, which is an ordinary score: they should be minus infinity.",
        "mask added": "the mask of True and False is added to the scores, as 1 and 0: forbidden scores should be minus infinity.",
        "zeroed afterwards": "the forbidden probabilities are set to 0 behind the softmax, and the others no longer have the sum 1: mask before it, with minus infinity.",
        "no mask": "the mask has no effect.",
        "causal": "every query looks at the keys up to its own, whatever the mask says: use the mask that is handed over.",
        "merge": "heads are merged with a view or reshape, without a transpose before it: positions and heads get mixed (section 4).",
        "queries": "the softmax runs over the queries: each query's probabilities over the keys should have the sum 1.",
        "q and k": "query and key are swapped.",
        "k and v": "key and value are swapped.",
        "no out": "the output layer is missing.",
        "no bias": "the layers have lost their biases: copy the layers whole (copy.deepcopy).",
        "split": "heads are split with one view or reshape to (batch, heads, time, d_head): that mixes positions and heads. First (batch, time, heads, d_head), then transpose(1, 2).",
        "split, merge": "heads are split, and merged again, without a transpose: that mixes positions and heads. First (batch, time, heads, d_head), then transpose(1, 2); to merge, the other way round.",
    }
    for letters in ("qqv", "kkv", "qkk", "qkq", "qvv", "vkv", "qqq", "kkk", "vvv"):
        wrong_ones = [
            f"{role} is made by the layer {letter}"
            for role, right, letter in zip(("query", "key", "value"), "qkv", letters, strict=True)
            if right != letter
        ]
        mixed[letters] = "one layer is used twice: " + ", ".join(wrong_ones) + "."

    def in_plain_containers(module: nn.Module) -> list[str]:
        """Names of attributes that hold modules in a list, a tuple or a dict, where PyTorch does not look."""
        found = []
        for part in module.modules():
            for name, value in vars(part).items():
                inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
                if name != "_modules" and any(isinstance(thing, nn.Module) for thing in (value, *inside)):
                    found.append(name)
        return found

    def compared(
        got: torch.Tensor, original: SelfAttention, x: torch.Tensor, mask: torch.Tensor | None, where: str
    ) -> None:
        """Is this the float attention of `x`? If not, which mistake is it?"""
        wanted = formula(original, x, mask)
        assert isinstance(got, torch.Tensor), "your forward should return a tensor: does it end with `return`?"
        assert got.shape == wanted.shape, (
            f"your output has shape {tuple(got.shape)}; expected is {tuple(wanted.shape)}."
        )
        assert got.dtype == wanted.dtype, f"before any quantization your output is {got.dtype}; x is {wanted.dtype}."
        if torch.allclose(got, wanted, atol=1e-5, rtol=1e-5):
            return
        reasons = [
            sentence
            for change, sentence in (known | mixed).items()
            if (mask is not None or change not in (*by_hand, "no mask", "causal"))
            and alike(got, formula(original, x, mask, change))
        ]
        assert len(reasons) != 1, f"before any quantization the output is wrong: {reasons[0]}"
        raise AssertionError(
            f"before any quantization the output{where} differs from the float attention by up to {(got - wanted).abs().max():.3g}; allowed is rounding (1e-5). "
            "Are the four layers copies, with weights and biases, of the one that was given, and does each do its own work?"
        )

    def attend(answer: nn.Module, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The learner's forward; it may change neither of its inputs, and the mask may be None."""
        try:
            with checks.untouched(x=x, mask=mask):
                return answer(x, mask)
        except (TypeError, AttributeError, RuntimeError) as error:
            assert mask is not None or "None" not in str(error), (
                f"it stops when the mask is None ({str(error).splitlines()[0]}): then every query may look at every key, and nothing is masked."
            )
            assert mask is None or mask.dim() != 3, (
                f"it stops at a mask of shape {tuple(mask.shape)} ({str(error).splitlines()[0]}): a mask is broadcast with (batch, heads, query, key), so its dimensions are the last ones: here heads, query, key."
            )
            raise

    def places_that_run(answer: nn.Module, x: torch.Tensor, mask: torch.Tensor) -> list[str]:
        """Names of the stubs and products that have a part in one call."""
        ran: set[str] = set()
        hooks = []
        for name, part in answer.named_modules():
            if isinstance(part, tq.QuantStub | tq.DeQuantStub | nnq.FloatFunctional):
                watched = part.activation_post_process if isinstance(part, nnq.FloatFunctional) else part
                hooks.append(watched.register_forward_hook(lambda *_, name=name: ran.add(name)))
        answer(x, mask)
        for hook in hooks:
            hook.remove()
        return sorted(ran)

    def judge_float(answer: nn.Module, original: SelfAttention, x: torch.Tensor) -> None:
        batch, time, width = x.shape
        for mask in masks(batch, time, original.n_heads):
            compared(attend(answer, x, mask), original, x, mask, "")
        causal = masks(batch, time, original.n_heads)[1]
        for what, form in samples.awkward(x):
            compared(attend(answer, form, causal), original, form, causal, f" for {what} as x")
        for mask in (~torch.eye(time, dtype=torch.bool), None):  # other contents in the same shapes
            assert torch.allclose(attend(answer, x, mask), formula(original, x, mask), atol=1e-5, rtol=1e-5), (
                "with another mask of the same shape as an earlier one, or with none after it, the output is wrong: keep no mask between calls."
            )
        for sizes in [(batch + 1, time + 3), (1, 1), (2, time - 2), (10, 3), (1, 130)]:
            other = torch.randn(*sizes, width, generator=torch.Generator().manual_seed(width))
            for mask in masks(*sizes, original.n_heads)[:2]:
                compared(
                    attend(answer, other, mask),
                    original,
                    other,
                    mask,
                    f" for {sizes[0]} texts of length {sizes[1]}, after others,",
                )
        answer.train()
        for _ in range(2):
            compared(attend(answer, x, causal), original, x, causal, " in training mode (a dropout?)")
        trained = places_that_run(answer, x, causal)
        answer.eval()
        assert trained == places_that_run(answer, x, causal), (
            "in training mode other stubs and products run than in eval mode: then training does not see the rounding. The path is the same in both."
        )

    def judge_loud_scores() -> None:
        """Scores near ±65,536, and near ±17 billion; all are exact in float32, and forbidden ones may be the largest."""
        loud = SelfAttention(4, 1).eval()
        for layer in loud.children():
            layer.weight.data, layer.bias.data = torch.eye(4), torch.zeros(4)
        x = torch.tensor([[[2.0, -1, 3, 1], [1.0, -1, 0, 2], [3.0, -1, 1, 1], [0.0, 1, 5, 4]]])
        causal = torch.ones(4, 4).tril() > 0
        for what, factor, sign in [("65536", 1.0, 1.0), ("65536", 1.0, -1.0), ("17 billion", 512.0, 1.0)]:
            loud.q.weight.data, loud.q.bias.data = torch.zeros(4, 4), torch.tensor([512 * factor, 1.0, 0.0, 0.0])
            steps = float(factor == 1)  # differences of 1 are too small beside 17 billion
            loud.k.weight.data = torch.tensor([[0, 256 * factor * sign, 0, 0], [steps, 0, 0, 0], [0.0] * 4, [0.0] * 4])
            wanted = formula(copy.deepcopy(loud).double(), x.double(), causal).float()
            got = StaticAttention(loud).eval()(x, causal)
            assert sign > 0 or torch.allclose(got, wanted, atol=1e-4), (
                "with loud scores (allowed ones near 65536, which differ by 1 and 2) the probabilities are other ones: scores were cut off, or exp ran over. torch.softmax subtracts the largest score first."
            )
            assert torch.allclose(got, wanted, atol=1e-4), (
                f"with loud scores (allowed ones near -{what}, forbidden ones up to {what}) some probability goes to the future: the mask writes or adds a number such as -10000. Below all scores is only minus infinity."
            )

    def alike_parts(answer: nn.Module, given: SelfAttention) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each parameter of the answer, with the one that it is a copy of."""
        theirs = list(given.parameters())
        found = [next((t for t in theirs if t.shape == p.shape and torch.equal(t, p)), p) for p in answer.parameters()]
        return list(zip(answer.parameters(), found, strict=True))

    def judge_training(seed: int, width: int, heads: int, time: int) -> None:
        """With gradients, and a second attention beside it."""
        given = attention_of(seed, width, heads, 1.0)
        answer, other = StaticAttention(given).train(), StaticAttention(attention_of(seed + 1, width, 1, 1.0))
        placed = (tq.QuantStub, tq.DeQuantStub, nnq.FloatFunctional)
        mine = {id(part) for part in answer.modules() if isinstance(part, placed)}
        assert not any(id(part) in mine for part in other.modules()), (
            "two of your attentions share a stub or a product (an attribute of the class?), and so one scale: make all of them in __init__, with self."
        )
        causal, x = torch.ones(time, time).tril() > 0, torch.randn(2, time, width)
        with torch.enable_grad():
            inputs = [x.clone().requires_grad_() for _ in range(2)]
            outputs = [part(values, causal) for part, values in zip((answer, given), inputs, strict=True)]
            assert outputs[0].shape == outputs[1].shape and torch.allclose(*outputs, atol=1e-5), (
                f"with {heads} heads of width {width // heads}, and another attention with 1 head beside it, the output differs from the float attention by up to {(outputs[0] - outputs[1]).abs().max():.3g}. Are the layers copied whole (copy.deepcopy), and is all that you keep an attribute of self?"
            )
            assert outputs[0].requires_grad, "no gradient comes back from your forward: it is to be trained, too (QAT)."
            for y in outputs:
                y.square().sum().backward()
        pairs = [(a.grad, b.grad) for a, b in [inputs, *alike_parts(answer, given)]]
        assert all((a is None) == (b is None) and (a is None or torch.allclose(a, b, 1e-3, 1e-4)) for a, b in pairs), (
            "the gradients are other ones than those of the float attention: something in your forward is detached, or computed with other layers than those that PyTorch finds."
        )

    def observed(module: nn.Module) -> bool:
        """Has the observer of this module seen a tensor?"""
        observer = getattr(module, "activation_post_process", None)
        return isinstance(observer, tq.MinMaxObserver) and bool(observer.min_val.isfinite().all())

    def judge(
        seed: int, width: int, heads: int, batch: int, time: int, sharpness: float, training: bool = False
    ) -> None:
        original = attention_of(seed, width, heads, sharpness).train(training)
        before, engine = copy.deepcopy(original), torch.backends.quantized.engine
        answer = StaticAttention(original)
        assert isinstance(answer, nn.Module), "StaticAttention should be a module."
        listed = in_plain_containers(answer)
        assert not listed, (
            f"`{listed[0]}` is a plain list (or dict) of layers: PyTorch does not see what is in it. Make each layer an attribute, or use nn.ModuleList."
        )
        answer.eval()
        generator = torch.Generator().manual_seed(seed + 1)
        x, more = torch.randn(2, batch, time, width, generator=generator)
        judge_float(answer, before, x)
        assert torch.backends.quantized.engine == engine, (
            f"your module switches the engine to {torch.backends.quantized.engine}: that is for the whole notebook, and its user's choice."
        )
        shared = witness.independent(answer, original)
        assert not shared, (
            f"your module is not a copy: {shared}. Whatever is done to one of the two changes both. copy.deepcopy the layers."
        )
        changed = witness.unchanged(before, original)
        assert not changed, f"the given attention was changed: {changed}. Work on copies of its layers."
        own = [name or "your module" for name, m in answer.named_modules() if getattr(m, "qconfig", None) is not None]
        assert not own, (
            f"`{own[0]}` brings a qconfig of its own, with a fixed range or for one engine: leave that to whoever prepares the model. (None, which keeps a part in float, is another thing.)"
        )
        # Calibration: everything in 7 bits, which every processor multiplies exactly.
        model = Ends(answer).eval()
        model.qconfig = tq.QConfig(
            activation=tq.MinMaxObserver.with_args(quant_min=0, quant_max=127),
            weight=tq.get_default_qconfig(torch.backends.quantized.engine).weight,
        )
        inner = [type(module) for module in answer.modules()]
        prepared = tq.prepare(model)
        causal = masks(batch, time, heads)[1]
        for batch_of_x in (x, more):
            for mask in (causal, None):
                prepared(batch_of_x, mask)
        seen = [
            (m.min_val.item(), m.max_val.item())
            for m in prepared.modules()
            if isinstance(m, tq.MinMaxObserver) and m.min_val.numel() == 1
        ]
        seen = [ends for ends in seen if ends != (math.inf, -math.inf)]  # so begins an observer that has seen nothing
        assert all(math.isfinite(low) and math.isfinite(high) for low, high in seen), (
            "an observer has seen an infinity: the mask comes too early. Mask behind the DeQuantStub, where everything is float."
        )
        assert all(low > -1e4 for low, _ in seen), (
            f"an observer has seen {min(seen)[0]:.3g}: the mask is a large negative number in front of an observer. Mask behind the DeQuantStub; then minus infinity is harmless."
        )
        assert inner.count(nn.Linear) == 4, (
            f"PyTorch finds {inner.count(nn.Linear)} nn.Linear in your module; expected are 4: q, k, v and out, each an attribute."
        )
        converted = tq.convert(prepared)
        assert not list(converted.parameters()), (
            "after convert there are float weights left: all four layers should become int8."
        )
        counts: dict[str, int] = {}
        parts = dict(prepared.part.named_modules())
        hooks = [
            part.activation_post_process.register_forward_hook(
                lambda *_, name=name: counts.update({name: counts.get(name, 0) + 1})
            )
            for name, part in parts.items()
            if observed(part)
        ]
        prepared(x, causal)
        for hook in hooks:
            hook.remove()
        products = {name: n for name, n in counts.items() if isinstance(parts[name], nnq.FloatFunctional)}
        stubs = [name for name in counts if isinstance(parts[name], tq.QuantStub)]
        assert list(products.values()) != [2], (
            "both products share one FloatFunctional, so they share one observer and one scale: each product needs its own."
        )
        if not products:
            with Functions() as functions:
                answer(x, causal)
            assert not functions.fused, (
                "F.scaled_dot_product_attention takes no codes, and has no place for a quantizer: write its steps one by one, the two products with FloatFunctional.matmul."
            )
            try:
                converted(x, causal)
            except (NotImplementedError, RuntimeError):
                assert not any(isinstance(part, nnq.FloatFunctional) for part in parts.values()), (
                    "your FloatFunctional modules are never called, and `@` stops at codes: write self.….matmul(a, b)."
                )
                raise AssertionError(
                    "the products are written with `@`, which stops at codes after convert: each needs a FloatFunctional of its own."
                ) from None
            raise AssertionError(
                "both products get floats: no FloatFunctional runs. Dequantize behind the first product only, and quantize before the second; each is a FloatFunctional.matmul of codes."
            )
        assert sum(products.values()) < 3, (
            f"your FloatFunctional modules are called {sum(products.values())} times; expected is twice, once for each product. Is the mask added with one of them? A mask is not data: mask behind the DeQuantStub, in float."
        )
        assert len(products) == 2, (
            f"only {len(products)} of the products is a FloatFunctional.matmul with an observer; expected are both."
        )
        assert stubs, "no QuantStub runs: the probabilities are floats, and need one behind the softmax."
        assert len(stubs) == 1, (
            f"the number of QuantStub modules that run is {len(stubs)}; expected is one, behind the softmax. (x arrives quantized; every further one rounds again.)"
        )
        trace = Kernels()
        try:
            with trace:
                got = converted(x, causal)
        except (NotImplementedError, RuntimeError) as error:
            text = str(error).splitlines()[0]
            early = "matmul" not in trace.seen
            assert not early or not any(name in text for name in ("aten::div", "aten::mul", "promoteTypes")), (
                "q or k is divided (or multiplied) while it is still quantized, before the product: divide the scores, behind the DeQuantStub."
            )
            for name, sentence in {
                "fill_out": "F.scaled_dot_product_attention takes no codes, and has no place for a quantizer: write its steps one by one, the two products with FloatFunctional.matmul.",
                "quantize_per_tensor": "a QuantStub gets codes. x arrives quantized, so it needs none; the only QuantStub stands behind the softmax.",
                "aten::qscheme": "an addition gets one quantized and one float tensor. A mask is not data: mask behind the DeQuantStub, in float.",
                "aten::where": "the mask was applied to quantized scores: they have no infinity. Dequantize first (DeQuantStub), then mask.",
                "softmax": "this softmax takes no codes: dequantize the scores before it (DeQuantStub).",
                "bmm": "`@` takes no codes: use FloatFunctional.matmul.",
                "aten::div": "the scores are still quantized where they are divided: dequantize them first (DeQuantStub).",
                "aten::mul": "the scores are still quantized where they are multiplied: dequantize them first (DeQuantStub).",
                "promoteTypes": "the scores are still quantized where they are divided or masked: dequantize them first (DeQuantStub).",
                "MatMul operands": "a product gets one quantized and one float factor: is there a QuantStub behind the softmax?",
                "quantized::matmul": "a product gets one quantized and one float factor: is there a QuantStub behind the softmax?",
                "quantized::linear": "a Linear layer gets a float tensor: between the quantizers, everything that feeds a Linear must be quantized.",
            }.items():
                assert name not in text, f"after convert it cannot run: {sentence}"
            raise AssertionError(f"after convert it cannot run: {text[:200]}") from None
        assert not trace.masked_codes, (
            "the mask was applied to quantized scores: codes have no infinity, so minus infinity becomes the smallest code, and the forbidden positions keep some probability (causality is lost). Dequantize first, then mask."
        )
        assert converted.made.is_quantized, (
            "after convert the output should be quantized: no DeQuantStub at the end of your attention."
        )
        steps = [step for step in trace.seen if step != "linear"]
        assert trace.seen.count("linear") == 4, f"Linear layers that run in int8: {trace.seen.count('linear')} of 4."
        assert "float product" not in steps and steps.count("matmul") == 2, (
            f"products that read codes: {steps.count('matmul')} of 2. Expected is one dequantize between the scores and the mask, one quantize behind the softmax, and no other."
        )
        assert steps == ["quantize", "matmul", "dequantize", "quantize", "matmul", "dequantize"], (
            "the order of the steps is wrong. Expected: product, dequantize, (scale, mask, softmax), quantize, product. Yours, with a quantize and a dequantize around: "
            + ", ".join(steps)
        )
        assert torch.isfinite(got).all(), "after convert the output holds nan or inf."
        scale = converted.part.get_submodule(stubs[0]).scale.item()
        scores = [
            torch.stack([(formula_scores(original, b, mask)).amax() for mask in (causal, None)]).max()
            for b in (x, more)
        ]
        expected = torch.stack(scores).max().item() / 127
        assert abs(scale - expected) < 0.02 * expected, (
            f"the probabilities have the scale {scale:.5f}; the largest that was seen says {expected:.5f}. Let calibration decide: a QuantStub, no fixed scale and no other range."
        )
        for name in (*products, *stubs):
            scale, zero_point = parts[name].activation_post_process.calculate_qparams()
            mine = converted.part.get_submodule(name)
            assert abs(float(mine.scale) / scale.item() - 1) < 1e-3 and int(mine.zero_point) == int(zero_point), (
                f"`{name}` has the scale {float(mine.scale):.5f}, and calibration measured {scale.item():.5f}: leave scales to prepare and convert."
            )
        later = x.clone()
        later[:, -1] = 3 * more[:, -1]
        assert torch.allclose(converted(later, causal)[:, :-1], got[:, :-1], atol=1e-6), (
            "in int8 the output at a position depends on later tokens: causality is lost. Forbidden scores must be minus infinity when the softmax sees them, in float."
        )
        error = ((got - original(x, causal)).norm() / original(x, causal).norm()).item()
        assert error < 0.06, (
            f"in int8 the output has a relative error of {error:.3f}; rounding alone makes less than 0.06. Does your forward compute something else when x is quantized?"
        )
        for mask in (None, *masks(batch, time, heads)[2:]):
            wanted = original(x, mask)
            error = ((converted(x, mask) - wanted).norm() / wanted.norm()).item()
            assert error < 0.12, (
                f"in int8 the output with {'no mask' if mask is None else f'a mask of shape {tuple(mask.shape)}'} has a relative error of {error:.3f}; rounding alone makes less than 0.12. Is the mask used when x is quantized, and only the one that is handed over?"
            )
        changed = witness.unchanged(before, original)
        assert not changed, f"the given attention was changed later: {changed}."

    def formula_scores(f: SelfAttention, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        q, k = (
            F.linear(x, layer.weight, layer.bias).unflatten(2, (f.n_heads, -1)).transpose(1, 2) for layer in (f.q, f.k)
        )
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
        return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)

    def another_engine() -> str:
        now = torch.backends.quantized.engine
        return next((name for name in int8.engines() if name != now), now)

    with (
        checks.check(
            "4.4",
            "in float your attention is the given one; after convert both products read and write codes, no observer saw the mask, and no position sees the future",
        ),
        torch.no_grad(),
    ):
        judge(441, width=32, heads=4, batch=3, time=12, sharpness=1.2)
        judge(442, width=24, heads=1, batch=2, time=7, sharpness=0.7, training=True)
        judge_loud_scores()
        judge_training(444, width=6, heads=6, time=5)
        with int8.using(another_engine()):
            judge(443, width=16, heads=2, batch=1, time=5, sharpness=1.0)
    ### BEGIN HIDDEN TESTS
    with torch.no_grad():
        for sizes in [(4401, 16, 2, 4, 4, 1.0, True), (4402, 48, 8, 1, 9, 1.5), (4403, 20, 5, 2, 40, 0.5)]:
            judge(*sizes)
        judge_loud_scores()
        judge_training(4407, 8, 2, 4)
        judge_training(4408, 5, 5, 3)
        with int8.using(another_engine()):
            judge(4406, 12, 3, 2, 6, 1.0)
        whole, ids = attention_of(4404, 12, 3, 1.0), torch.Generator().manual_seed(4405)
        x = torch.randn(2, 7, 12, generator=ids)
        assert torch.allclose(StaticAttention(whole).eval()(x), formula(whole, x, None), atol=1e-5), "without a mask."
    ### END HIDDEN TESTS


check_ex_4_4()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Write the float attention first, with `a @ b`, and pass the part of the check that speaks of "before any quantization". Then replace each `@` by a module of its own, and put the two stubs in.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `__init__` holds four copied Linear layers, two `FloatFunctional()`, one `tq.DeQuantStub()`, one `tq.QuantStub()`. In `forward`, the heads go to the front with `.reshape(batch, time, heads, d_head).transpose(1, 2)`, and back with `.transpose(1, 2)` *before* the reshape.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `scores = self.dequant(self.….matmul(q, k.transpose(-2, -1))) / math.sqrt(…)`; `scores = scores.masked_fill(~mask, …)` if there is a mask; `p = self.quant(scores.softmax(dim=…))`; `mixed = self.….matmul(p, v)`; transpose, reshape, output layer.
# </details>

# %% [markdown]
# ### Before and after
#
# Does an int8 attention still look at the same places? Take a sentence, and one head of the course model. (Here and below, the parts come from `helpers.quantizable`, which is built like your solution. So you can read on before you have solved it.)


# %%
def calibrated(part: nn.Module, inputs: list[tuple[Tensor, ...]], eight_bits: tuple[str, ...] = ()) -> nn.Module:
    """`part` in static int8: prepared, shown `inputs`, converted; activations in 7 bits, but 8 for what `eight_bits` make."""
    prepared = copy.deepcopy(part).eval()
    weight = tq.get_default_qconfig(torch.backends.quantized.engine).weight
    prepared.qconfig = tq.QConfig(tq.MinMaxObserver.with_args(quant_min=0, quant_max=127), weight)
    for name in eight_bits:
        prepared.get_submodule(name).qconfig = tq.QConfig(
            tq.MinMaxObserver.with_args(quant_min=0, quant_max=255), weight
        )
    tq.prepare(prepared, inplace=True)
    with torch.no_grad():
        for arguments in inputs:
            prepared(*arguments)
    return tq.convert(prepared)


class BetweenEnds(nn.Module):
    """Float in, float out; `part` is between a quantize and a dequantize."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.quant, self.part, self.dequant = tq.QuantStub(), part, tq.DeQuantStub()

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.dequant(self.part(self.quant(x), *others))


@torch.no_grad()
def normed_input(ids: Tensor, block: int) -> Tensor:
    """What the attention of a block gets: (batch, time, d_model)."""
    x, mask = course_model.embed(ids), causal_mask(ids.shape[1])
    for earlier in course_model.blocks[:block]:
        x = earlier(x, mask)
    return course_model.blocks[block].norm1(x)


def attention_part(attention: SelfAttention) -> quantizable.QuantizableAttention:
    """The quantizable attention of the helpers with these weights."""
    part = quantizable.QuantizableAttention(attention.q.in_features, attention.n_heads)
    part.load_state_dict(attention.state_dict())
    return part.eval()


shown_block, shown_head = 2, 1
text = "Return the number of items in a container."
attention = course_model.blocks[shown_block].attention
int8_attention = calibrated(
    BetweenEnds(attention_part(attention)), [(normed_input(texts, shown_block), causal_mask(256))]
)
entering = normed_input(data.encode(text)[None], shown_block)
allowed = causal_mask(entering.shape[1])
with torch.no_grad():
    float_map = attention.probabilities(entering, allowed)[0, shown_head]
    part = int8_attention.part
    int8_map = part.quant(part.probabilities(int8_attention.quant(entering), allowed)).dequantize()[0, shown_head]
    output_error = relative_error(int8_attention(entering, allowed), attention(entering, allowed))

fig, axes = plots.figure(columns=3, width=11, height=3.9)
for ax, values, title in [
    (axes[0], float_map, "float"),
    (axes[1], int8_map, "int8 scores, float softmax, int8 probabilities"),
]:
    picture = ax.imshow(values, vmin=0, vmax=1, aspect="equal")
    ax.set_title(title)
    ax.set_xlabel("key (position)")
axes[0].set_ylabel("query (position)")
fig.colorbar(picture, ax=axes[1], shrink=0.7)
gap = (int8_map - float_map).numpy()
picture = axes[2].imshow(gap, cmap="PuOr", vmin=-abs(gap).max(), vmax=abs(gap).max(), aspect="equal")
axes[2].set_title("int8 − float")
axes[2].set_xlabel("key (position)")
fig.colorbar(picture, ax=axes[2], shrink=0.7)
plots.show(
    fig,
    caption=f"Who looks at whom in one head of block {shown_block}, for a short sentence. The first two pictures have one colour scale; the third has its own.",
    alt="Three square maps of queries against keys, empty above the diagonal. The float map and the int8 map look the same: a few bright places in each row. The map of their difference has a much smaller scale and shows "
    "small errors of both signs, mostly where the probabilities are large.",
)
print(f"largest change of a probability: {abs(gap).max():.3f}; attention's output: relative error {output_error:.3f}")
favourite = int8_map.gather(1, float_map.argmax(dim=1, keepdim=True))[:, 0]  # its probability after quantization
print(
    f"queries whose favourite key is still a favourite: {(favourite == int8_map.amax(dim=1)).float().mean().item():.0%}"
)
print(f"zeros above the diagonal: {bool((int8_map.triu(1) == 0).all())}")

# %% [markdown]
# So it does: an int8 attention looks at the same places, none of them in the future. What rounding moves is how much it looks, by a little everywhere, and where two keys were nearly equal favourites, the other one may win. The output's relative error looks large beside that; but attention's output is only *added* to the stream, and the last sections' question, what it costs in bits per byte, has the small answer of the table above.
#
# ## 6. Feed-forward network, GELU and LayerNorm
#
# The other half of a block is a LayerNorm, a Linear layer to four times the width, a GELU, and a Linear layer back. Two thirds of a block's weights are here. The four questions again:

# %%
table = [
    four_answers("norm", "float, or int8 with a scale of its own"),
    four_answers("up", linear),
    four_answers("gelu", "a scale of its own, after float GELU"),
    four_answers("down", linear),
]
tables.show(table)

# %% [markdown]
# (`gelu` is the tensor behind GELU; LayerNorm's gains and offsets are few and stay float.)
#
# Two thirds of what a block can save is in `up` and `down`. And GELU has a peculiar output: nothing is below about −0.17, whatever goes in. So the range that arrives and the range that leaves have little in common.
#
# ### What does a quantized GELU do?
#
# GELU runs on an int8 tensor without an error. Whoever sees no error thinks that all is well. But which scale does its result have? Nothing was measured, so the kernel takes what it knows:

# %%
up_output = ranging_tensors["up"][0]  # what the GELU of block 0 gets
low, high = up_output.min().item(), up_output.max().item()
arriving_scale = (high - low) / 255
arriving = torch.quantize_per_tensor(up_output, arriving_scale, round(-low / arriving_scale), torch.quint8)
leaving = F.gelu(arriving)
print(f"scale and zero point before GELU: {arriving.q_scale():.4f}, {arriving.q_zero_point()}")
print(f"scale and zero point behind it:   {leaving.q_scale():.4f}, {leaving.q_zero_point()}")
exact_output = F.gelu(up_output)
out_low, out_high = exact_output.min().item(), exact_output.max().item()
own_scale = (out_high - out_low) / 255
own = torch.quantize_per_tensor(F.gelu(arriving.dequantize()), own_scale, round(-out_low / own_scale), torch.quint8)
print(f"different codes that arrive: {arriving.int_repr().unique().numel()}")
for name, result in (("GELU of codes", leaving), ("dequantize, GELU, quantize", own)):
    reach = 1 + int((out_high - out_low) / result.q_scale())
    print(
        f"{name:27} step {result.q_scale():.4f}: {reach:3} codes from GELU's smallest to its largest output, "
        f"{result.int_repr().unique().numel():3} of them occur, relative error {relative_error(result.dequantize(), exact_output):.4f}"
    )

# The same two ways on a grid of numbers, around the dip of GELU. A range as wide as one wants shows it better.
wide_low, wide_high = -12.0, 4.0
line = torch.linspace(-4, 1.5, 600)
step = (wide_high - wide_low) / 127
grid = torch.quantize_per_tensor(line, step, round(-wide_low / step), torch.quint8)
own_step = (wide_high + 0.17) / 127
ways = {
    "GELU of codes: the input's scale": F.gelu(grid).dequantize(),
    "a scale of its own": torch.quantize_per_tensor(
        F.gelu(grid.dequantize()), own_step, round(0.17 / own_step), torch.quint8
    ).dequantize(),
}
fig, axes = plots.figure(columns=2, width=10, height=3.2)
for ax, (name, values), colour in zip(axes, ways.items(), (plots.RED, plots.BLUE), strict=True):
    ax.plot(line, F.gelu(line), color=plots.GREY, linestyle=":", label="GELU")
    ax.plot(line, values, color=colour, label=name)
    ax.set_ylim(-0.35, 0.6)
    ax.set_xlabel("input")
    ax.set_title(f"{name}: error up to {(values - F.gelu(line)).abs().max():.3f}")
    ax.legend(loc="upper left")
axes[0].set_ylabel("output")
plots.show(
    fig,
    caption="GELU near its dip, for inputs between −12 and 4 in 7 bits. Left: computed on codes, with the scale of the input. Right: computed in float, with a scale of its own.",
    alt="Two staircases over the dotted curve of GELU between −4 and 1.5. On the left the steps are high, and the whole dip to −0.17 is one flat step. On the right the steps are lower, and follow the dip closely.",
)

# %% [markdown]
# The left staircase wastes all codes that stand for numbers below −0.17: GELU never gives one. The more negative the input, the larger the waste. The right one begins at GELU's smallest output, so its steps are finer. That does not make more outputs: each code that arrives gives one output, so neither way can have more different outputs than different inputs. The finer steps put them
# nearer to where they belong. (Both grids of the picture have 7 bits, as for what a Linear reads on most PCs. In both the input was rounded before, and nothing brings that back.)
#
# So GELU belongs between a `DeQuantStub` and a `QuantStub`, like softmax. What does that cost in time? A table with one output for each of the 256 codes gives the same result without a float. Is it faster?

# %% tags=["varies"]
every_code = torch.arange(256).sub(arriving.q_zero_point()) * arriving.q_scale()
output_codes = torch.quantize_per_tensor(F.gelu(every_code), own.q_scale(), own.q_zero_point(), torch.quint8).int_repr()


def by_conversions() -> Tensor:
    """Float GELU between a dequantize and a quantize."""
    return torch.quantize_per_tensor(F.gelu(arriving.dequantize()), own.q_scale(), own.q_zero_point(), torch.quint8)


def by_table() -> Tensor:
    """The codes themselves are looked up."""
    return output_codes[arriving.int_repr().int()]


print("the same codes:", bool((by_table() == by_conversions().int_repr()).all()))
print(f"time of the table / time of the conversions: {latency.ratio(by_conversions, by_table):.1f}")

# %% [markdown]
# Where the ratio is above 1, PyTorch's general indexing makes the table slower than the two conversions that it saves. So the helpers convert.
#
# ### Where does the LayerNorm stand?
#
# LayerNorm divides by the standard deviation of a row, so what leaves it has a moderate range, whatever arrives. PyTorch has an int8 LayerNorm (`nnq.LayerNorm`), with a scale of its own for the output. So there are two places for the quantizer:
#
# - **before** the LayerNorm: the residual stream is quantized, and the LayerNorm gets codes. No float on the way; but the residual stream has a wide range, and its roundings are there before the LayerNorm can help;
# - **behind** it: the residual stream stays float, LayerNorm reads floats, and only its moderate output is quantized.
#
# We build the second way in this section, and the first one in the next. Then we compare. One detail: `convert` replaces *every* LayerNorm that has a qconfig by the int8 one, which refuses floats. A module with `qconfig = None` is left alone.
#
# ### Exercise 4.5: LayerNorm, feed-forward network, GELU
# *Difficulty 3 of 5 · 25 minutes · 2 points*
#
# Write the class `StaticFeedForward`. It gets the float `norm` (a LayerNorm) and `ffn` (a `FeedForward` with the Linear layers `up` and `down`) of a block, and computes
#
# $$y = W_2\, \mathrm{GELU}(W_1\, \mathrm{norm}(x) + b_1) + b_2,$$
#
# the part that a block adds to $x$; the addition itself is not yours. Float arrives and float leaves, and the LayerNorm stays float: `norm → quantize → up → dequantize → GELU → quantize → down → dequantize`.
# Copy what you are given, with all its attributes (this LayerNorm may have another eps than PyTorch's default), and change nothing of it, its mode included. Like the attention, the module brings no qconfig of its own, except the `None` of its LayerNorm.
#
# A scale by hand: GELU's outputs between −0.17 and 6.18 in 127 steps: $6.35 / 127 = 0.05$, zero point $0.17 / 0.05 = 3.4$, rounded: 3. Its inputs were between −19.22 and 6.18; with their scale, $25.4 / 127 = 0.2$, the same outputs would have only 32 codes.


# %% nbgrader={"grade": false, "grade_id": "ex_4_5", "locked": false, "schema_version": 3, "solution": true, "task": false}
class StaticFeedForward(nn.Module):
    """LayerNorm in float, then a feed-forward network with places for quantizers; float in, float out.

    Parameters
    ----------
    norm : LayerNorm
        Trained, float; is not changed.
    ffn : FeedForward
        Trained, float; is not changed. It has the Linear layers `up` and `down`.

    Example
    -------
    >>> norm, ffn, x = nn.LayerNorm(8), FeedForward(8, 32), torch.randn(1, 3, 8)
    >>> torch.allclose(StaticFeedForward(norm, ffn).eval()(x), ffn(norm(x)), atol=1e-6)
    True
    """

    def __init__(self, norm: nn.LayerNorm, ffn: FeedForward) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.first = copy.deepcopy(norm)
        self.first.qconfig = None
        self.widen, self.narrow = copy.deepcopy(ffn.up), copy.deepcopy(ffn.down)
        self.enter_up, self.enter_down = tq.QuantStub(), tq.QuantStub()
        self.leave_up, self.leave_down = tq.DeQuantStub(), tq.DeQuantStub()
        ### END SOLUTION

    def forward(self, x: Tensor) -> Tensor:
        """What the block adds to `x`: float, (batch, time, d_model) like `x`."""
        ### BEGIN SOLUTION
        wide = self.leave_up(self.widen(self.enter_up(self.first(x))))  # (batch, time, d_ff)
        return self.leave_down(self.narrow(self.enter_down(F.gelu(wide))))
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_4_5_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 4.5: run this cell.
import copy

import torch
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import checks, int8, samples, witness
from helpers.models import FeedForward


@checks.isolated
def check_ex_4_5() -> None:
    kernel_names = {
        "quantized.layer_norm": "int8 LayerNorm",
        "quantized.linear": "Linear",
        "aten.quantize_per_tensor": "quantize",
        "aten.dequantize": "dequantize",
        "aten.addmm": "float Linear",
        "aten.mm": "float Linear",
        "aten.bmm": "float Linear",
    }

    class Kernels(TorchDispatchMode):
        """Which kernels run: the borders between float and int8, and the matrix products. What is float inside is free."""

        def __init__(self) -> None:
            super().__init__()
            self.seen = []

        def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
            name = kernel_names.get(".".join(str(kernel).split(".")[:2]))
            if str(kernel).startswith("aten.gelu") and args[0].is_quantized:
                name = "GELU of codes"
            self.seen += [name] if name else []
            return kernel(*args, **(kwargs or {}))

    def parts_of(seed: int, width: int, d_ff: int, shift: float) -> tuple[nn.LayerNorm, FeedForward]:
        torch.manual_seed(seed)
        norm, ffn = nn.LayerNorm(width, eps=0.3).eval(), FeedForward(width, d_ff).eval()
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias, std=0.3)
        for layer in (ffn.up, ffn.down):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.normal_(layer.bias, std=0.3)
        ffn.up.bias.data += shift
        return norm, ffn

    def compared(got: torch.Tensor, norm: nn.LayerNorm, ffn: FeedForward, x: torch.Tensor, where: str = "") -> None:
        """Is this ffn(norm(x))? If not, which mistake is it?"""
        width = norm.weight.shape[0]
        normalized = lambda x, eps=norm.eps: F.layer_norm(x, (width,), norm.weight, norm.bias, eps)  # noqa: E731
        up = lambda x: F.linear(x, ffn.up.weight, ffn.up.bias)  # noqa: E731
        finish = lambda wide: F.linear(wide, ffn.down.weight, ffn.down.bias)  # noqa: E731
        wanted = finish(F.gelu(up(normalized(x))))
        assert isinstance(got, torch.Tensor), "your forward should return a tensor: does it end with `return`?"
        assert got.shape == wanted.shape, (
            f"your output has shape {tuple(got.shape)}; expected is {tuple(wanted.shape)}."
        )
        assert got.dtype == wanted.dtype, f"before any quantization your output is {got.dtype}; x is {wanted.dtype}."
        if torch.allclose(got, wanted, atol=2e-5, rtol=1e-5):
            return
        unnormed, wide = finish(F.gelu(up(x))), up(normalized(x))
        plain = F.layer_norm(x, (width,), eps=norm.eps)
        deviation = x.std(-1, keepdim=True)
        mistakes = {
            "the LayerNorm is skipped.": unnormed,
            "the LayerNorm stands behind the feed-forward network; here it comes first.": normalized(unnormed),
            "the LayerNorm has lost its trained weight and bias: copy the one that was given.": finish(
                F.gelu(up(plain))
            ),
            "the LayerNorm has lost its eps: this one has 0.3, and not PyTorch's 0.00001. Copy the one that was given, with all its attributes.": finish(
                F.gelu(up(normalized(x, 1e-5)))
            ),
            "the LayerNorm divides by the standard deviation of a sample (n - 1), and adds eps to it: it divides by the root of (variance + eps), with n.": finish(
                F.gelu(up((x - x.mean(-1, keepdim=True)) / (deviation + norm.eps) * norm.weight + norm.bias))
            ),
            "there are two LayerNorms.": finish(F.gelu(up(normalized(normalized(x))))),
            "x is added already; that is the work of the block.": wanted + x,
            "GELU is missing.": finish(wide),
            "GELU is there twice.": finish(F.gelu(F.gelu(wide))),
            "GELU stands behind the second Linear layer, too.": F.gelu(wanted),
            "it has a ReLU where the model has a GELU.": finish(wide.relu()),
            "it has a SiLU where the model has a GELU.": finish(F.silu(wide)),
            "it has the approximation by tanh, and the model has the exact GELU.": finish(
                F.gelu(wide, approximate="tanh")
            ),
            "it has the approximation x · sigmoid(1.702 x), and the model has the exact GELU.": finish(
                wide * (1.702 * wide).sigmoid()
            ),
        }
        fits = [
            sentence for sentence, mistake in mistakes.items() if torch.allclose(got, mistake, atol=2e-5, rtol=1e-5)
        ]
        assert len(fits) != 1, f"before any quantization the output is wrong: {fits[0]}"
        raise AssertionError(
            f"before any quantization the output{where} differs from ffn(norm(x)) by up to {(got - wanted).abs().max():.3g}. Are the weights those that were given?"
        )

    def stubs_that_run(answer: nn.Module, x: torch.Tensor) -> list[str]:
        """Names of the stubs that have a part in one call."""
        ran: set[str] = set()
        hooks = [
            part.register_forward_hook(lambda *_, name=name: ran.add(name))
            for name, part in answer.named_modules()
            if isinstance(part, tq.QuantStub | tq.DeQuantStub)
        ]
        answer(x)
        for hook in hooks:
            hook.remove()
        return sorted(ran)

    def outside_of_pytorch(module: nn.Module) -> list[str]:
        """Names of attributes that hold modules where PyTorch does not look."""
        found = []
        for part in module.modules():
            for name, value in vars(part).items():
                inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
                if name != "_modules" and any(isinstance(thing, nn.Module) for thing in (value, *inside)):
                    found.append(name)
        return found

    def judge_odd_parts(seed: int, width: int, d_ff: int) -> None:
        """A loud layer, gradients, far numbers, and a second module beside it."""
        norm, ffn = parts_of(seed, width, d_ff, 0.0)
        with torch.no_grad():
            ffn.up.weight.mul_(30)
        answer, other = StaticFeedForward(norm, ffn).train(), StaticFeedForward(*parts_of(seed + 1, width, d_ff, 0.0))
        mine = {id(part) for part in answer.modules() if isinstance(part, tq.QuantStub | tq.DeQuantStub)}
        assert not any(id(part) in mine for part in other.modules()), (
            "two of your modules share a stub (an attribute of the class?), and so one scale: make all of them in __init__, with self."
        )
        x = torch.randn(2, 3, width)
        with torch.enable_grad():
            inputs = [x.clone().requires_grad_() for _ in range(2)]
            outputs = answer(inputs[0]), ffn(norm(inputs[1]))
            assert outputs[0].shape == outputs[1].shape and torch.allclose(*outputs, rtol=1e-4, atol=1e-3), (
                f"with an up layer that makes large numbers the output differs from ffn(norm(x)) by up to {(outputs[0] - outputs[1]).abs().max():.3g}. Are the layers copied whole (copy.deepcopy), and is GELU the whole GELU?"
            )
            theirs = [*norm.parameters(), *ffn.parameters()]
            pairs = [
                (p, next((t for t in theirs if t.shape == p.shape and torch.equal(t, p)), p))
                for p in answer.parameters()
            ]
            assert outputs[0].requires_grad, "no gradient comes back from your forward: it is to be trained, too (QAT)."
            for y in outputs:
                y.square().mean().backward()
        grads = [(a.grad, b.grad) for a, b in [inputs, *pairs]]
        assert all((a is None) == (b is None) and (a is None or torch.allclose(a, b, 1e-3, 1e-3)) for a, b in grads), (
            "the gradients are other ones than those of ffn(norm(x)): something in your forward is detached, or computed with other layers than those that PyTorch finds."
        )
        far = 3 * x + 3000
        normed = F.layer_norm(far.double(), (width,), norm.weight.double(), norm.bias.double(), norm.eps).float()
        wanted = ffn(normed)
        error = ((answer(far) - wanted).norm() / wanted.norm()).item()
        assert error < 3e-3, (
            f"for numbers around 3000 the output has a relative error of {error:.2g}: the mean of the squares minus the square of the mean loses its digits there. nn.LayerNorm subtracts the mean first."
        )

    def judge_float(answer: nn.Module, norm: nn.LayerNorm, ffn: FeedForward, x: torch.Tensor) -> None:
        with checks.untouched(x=x):
            got = answer(x)
        compared(got, norm, ffn, x)
        others = [(f" for {what} as x", form) for what, form in samples.awkward(x)]
        others += [
            (" for one position alone", x[:1, :1]),
            (" for loud numbers", 1e4 * x),
            (" for quiet numbers", 0.03 * x),
        ]
        others += [(" for rows of equal numbers", torch.full_like(x, 0.7))]
        for where, other in others:
            with checks.untouched(x=other):
                got = answer(other)
            compared(got, norm, ffn, other, where)
        many = torch.randn(4, 90, x.shape[2], generator=torch.Generator().manual_seed(len(x)))
        assert torch.allclose(answer(many), ffn(norm(many)), atol=2e-5, rtol=1e-5), (
            "for 360 positions the output differs from ffn(norm(x)): each position is computed alone, however many there are."
        )
        answer.train()
        for _ in range(2):
            compared(answer(x), norm, ffn, x, " in training mode (a dropout?)")
        trained = stubs_that_run(answer, x)
        answer.eval()
        assert trained == stubs_that_run(answer, x), (
            "in training mode other stubs run than in eval mode: then training does not see the rounding. The path is the same in both."
        )

    def untouched_parts(before: tuple[nn.Module, nn.Module], norm: nn.LayerNorm, ffn: FeedForward) -> None:
        for name, old, new in zip(("norm", "ffn"), before, (norm, ffn), strict=True):
            changed = witness.unchanged(old, new)
            assert not changed, (
                f"the given {name} was changed: {changed.replace('the model', 'it')}. Work on copies (copy.deepcopy), and set the qconfig of the copy."
            )

    def judge(seed: int, width: int, d_ff: int, shape: tuple[int, int], shift: float, training: bool = False) -> None:
        norm, ffn = (part.train(training) for part in parts_of(seed, width, d_ff, shift))
        kept, engine = copy.deepcopy((norm, ffn)), torch.backends.quantized.engine
        answer = StaticFeedForward(norm, ffn)
        assert isinstance(answer, nn.Module), "StaticFeedForward should be a module."
        untouched_parts(kept, norm, ffn)
        listed = outside_of_pytorch(answer)
        assert not listed, (
            f"`{listed[0]}` holds layers in a plain list, tuple or dict, where PyTorch does not see them: make each an attribute, or use nn.ModuleList."
        )
        answer.eval()
        generator = torch.Generator().manual_seed(seed + 1)
        x, more = 3 * torch.randn(2, *shape, width, generator=generator) + 1
        judge_float(answer, *kept, x)
        untouched_parts(kept, norm, ffn)
        for name, part in (("norm", norm), ("ffn", ffn)):
            shared = witness.independent(answer, part)
            assert not shared, (
                f"your module is not a copy: {shared.replace('the model', f'the given {name}')}. Whatever is done to one of the two changes both. copy.deepcopy what you were given."
            )
        assert torch.backends.quantized.engine == engine, (
            f"your module switches the engine to {torch.backends.quantized.engine}: that is for the whole notebook, and its user's choice."
        )
        own = [name or "your module" for name, m in answer.named_modules() if getattr(m, "qconfig", None) is not None]
        assert not own, (
            f"`{own[0]}` brings a qconfig of its own, with a fixed range or for one engine: leave that to whoever prepares the model. Only None, which keeps a part in float, is yours to set."
        )
        model = nn.Sequential(answer).eval()
        model.qconfig = tq.QConfig(
            activation=tq.MinMaxObserver.with_args(quant_min=0, quant_max=127),
            weight=tq.get_default_qconfig(torch.backends.quantized.engine).weight,
        )
        prepared = tq.prepare(model)
        for batch in (x, more):
            prepared(batch)
        converted = tq.convert(prepared)
        used: list[nn.Module] = []  # the quantizers that run, in their order
        hooks = [
            module.register_forward_pre_hook(lambda module, _: used.append(module))
            for module in converted.modules()
            if isinstance(module, nnq.Quantize)
        ]
        stubs = sum(isinstance(module, tq.QuantStub) for module in answer.modules())
        trace = Kernels()
        try:
            with trace:
                got = converted(x)
        except (NotImplementedError, RuntimeError) as error:
            text = str(error).splitlines()[0]
            for name, sentence in {
                "quantized::layer_norm": "the int8 LayerNorm gets a float tensor: give your LayerNorm qconfig = None, then it stays float.",
                "quantized::linear": "a Linear layer gets a float tensor: it needs a QuantStub before it.",
                "native_": "the float LayerNorm gets codes: it comes first, before the QuantStub.",
            }.items():
                assert name not in text or name != "quantized::linear" or stubs != 1 or "GELU of codes" in trace.seen, (
                    "one QuantStub serves both places, so both tensors share one range: each place needs a stub of its own."
                )
                assert name not in text, f"after convert it cannot run: {sentence}"
            raise AssertionError(f"after convert it cannot run: {text[:200]}") from None
        for hook in hooks:
            hook.remove()
        assert not got.is_quantized, "after convert the output is still quantized: a DeQuantStub belongs at the end."
        seen = trace.seen
        assert "GELU of codes" not in seen, (
            "GELU gets codes, and so it reuses the scale of its input: dequantize before GELU and quantize behind it."
        )
        assert "int8 LayerNorm" not in seen, (
            "the LayerNorm became int8, with x quantized before it. Here x stays float: first the LayerNorm (with qconfig = None), then the QuantStub."
        )
        assert seen.count("Linear") == 2 and "float Linear" not in seen, (
            f"Linear layers that run in int8: {seen.count('Linear')} of 2."
        )
        assert seen == ["quantize", "Linear", "dequantize", "quantize", "Linear", "dequantize"], (
            "the order of the steps is wrong. Expected: quantize, Linear, dequantize, (GELU), quantize, Linear, dequantize. Yours: "
            + ", ".join(seen)
        )
        assert len(used) == 2, (
            f"quantizers that run as modules: {len(used)} of 2. A QuantStub for each place holds the scale that calibration measured; torch.quantize_per_tensor with numbers of its own does not."
        )
        assert used[0] is not used[1], (
            "one QuantStub serves both places, so both tensors share one range: each place needs a stub of its own."
        )
        ranges = []
        for batch in (x, more):
            first = F.layer_norm(batch, (width,), norm.weight, norm.bias, norm.eps)
            ranges.append((first, F.gelu(F.linear(first, ffn.up.weight, ffn.up.bias))))
        for i, name in enumerate(("the LayerNorm's output", "GELU's output")):
            low = min(0.0, *(pair[i].min().item() for pair in ranges))
            high = max(0.0, *(pair[i].max().item() for pair in ranges))
            scale, zero_point = used[i].scale.item(), used[i].zero_point.item()
            assert abs(scale * 127 / (high - low) - 1) < 0.02 and abs(zero_point + low * 127 / (high - low)) < 1.6, (
                f"the quantizer of {name} has the scale {scale:.5f} and the zero point {zero_point}; its range was {low:.2f} to {high:.2f} in calibration, and gives {(high - low) / 127:.5f} and {round(-low * 127 / (high - low))}. Leave scales to prepare and convert."
            )
        wanted = F.linear(F.gelu(F.linear(ranges[0][0], ffn.up.weight, ffn.up.bias)), ffn.down.weight, ffn.down.bias)
        error = ((got - wanted).norm() / wanted.norm()).item()
        assert error < 0.05, (
            f"in int8 the output has a relative error of {error:.3f}; rounding alone makes less than 0.05. Does your forward compute something else once it is converted?"
        )
        untouched_parts(kept, norm, ffn)

    def another_engine() -> str:
        now = torch.backends.quantized.engine
        return next((name for name in int8.engines() if name != now), now)

    with (
        checks.check(
            "4.5", "the LayerNorm sees floats, both Linear layers run in int8, and GELU's output has a scale of its own"
        ),
        torch.no_grad(),
    ):
        judge(451, 16, 64, (3, 8), shift=0.0)
        judge(452, 24, 48, (2, 10), shift=-2.0, training=True)
        judge_odd_parts(454, 8, 12)
        with int8.using(another_engine()):
            judge(453, 12, 24, (1, 6), shift=0.5)
    ### BEGIN HIDDEN TESTS
    with torch.no_grad():
        for sizes in [(4501, 32, 128, (1, 20), -1.0), (4502, 8, 8, (5, 6), 2.0, True), (4503, 40, 30, (2, 3), 0.5)]:
            judge(*sizes)
        judge_odd_parts(4507, 10, 6)
        with int8.using(another_engine()):
            judge(4506, 10, 30, (2, 4), -0.5)
        norm, ffn = parts_of(4504, 12, 20, 0.0)
        x = torch.randn(1, 1, 12, generator=torch.Generator().manual_seed(4505))
        assert torch.allclose(StaticFeedForward(norm, ffn).eval()(x), ffn(norm(x)), atol=2e-5), "one position alone."
    ### END HIDDEN TESTS


check_ex_4_5()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Write the eight steps of the text as one line each. Which of them hold a range, and so need a module of their own? Which hold nothing?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# Two `tq.QuantStub()`, because two different tensors are quantized. Copy the LayerNorm with `copy.deepcopy`, and set `qconfig = None` on the copy.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `x = self.quant1(self.norm(x))`, `x = self.dequant1(self.up(x))`, `x = self.quant2(F.gelu(…))`, `return self.dequant2(…)`.
# </details>

# %% [markdown]
# ### What was the scale of its own worth?
#
# The same half of each block, on documents that did not calibrate it, against float. First with GELU on codes, then as above, both with 7-bit activations, because a Linear layer reads what leaves GELU. But with a scale of its own behind GELU, nothing multiplies the output of `up` any more. So it may have 8 bits, and that is the third column:


# %%
def half_of_block(norm: nn.LayerNorm, ffn: FeedForward) -> nn.Module:
    """A float LayerNorm, then `ffn` between a quantize and a dequantize: float in, float out."""
    norm = copy.deepcopy(norm)
    norm.qconfig = None
    return nn.Sequential(norm, BetweenEnds(ffn))


def ffn_part(ffn: FeedForward) -> FeedForward:
    """The quantizable feed-forward network of the helpers with these weights: float GELU, a scale behind it."""
    part = quantizable.QuantizableFeedForward(ffn.up.in_features, ffn.up.out_features)
    part.load_state_dict(ffn.state_dict())
    return part.eval()


@torch.no_grad()
def middle_of_blocks(ids: Tensor) -> list[Tensor]:
    """The residual stream of each block after its attention: what its second LayerNorm reads."""
    x, mask, middles = course_model.embed(ids), causal_mask(ids.shape[1]), []
    for block in course_model.blocks:
        middles.append(x + block.attention(block.norm1(x), mask))
        x = block(x, mask)
    return middles


ranging_middles, unseen = middle_of_blocks(ranging), middle_of_blocks(judging[:8, :128])
rows = []
for i, block in enumerate(course_model.blocks):
    with torch.no_grad():
        wanted = block.ffn(block.norm2(unseen[i]))
        row = {
            "block": i,
            "range before GELU": f"{ranging_tensors['up'][i].min():.1f} to {ranging_tensors['up'][i].max():.1f}",
        }
        for name, ffn, eight_bits in [
            ("GELU of codes", block.ffn, ()),
            ("a scale of its own", ffn_part(block.ffn), ()),
            ("own scale, `up` in 8 bits", ffn_part(block.ffn), ("1.part.up",)),
        ]:
            network = calibrated(half_of_block(block.norm2, ffn), [(ranging_middles[i],)], eight_bits)
            row[f"{name}: relative error"] = f"{relative_error(network(unseen[i]), wanted):.4f}"
    rows.append(row)
tables.show(rows)

# %% [markdown]
# The scale of its own helps in every block, and the eighth bit that it makes possible helps again. This is how `helpers.quantizable` does it.
# %% [markdown]
# ## 7. The block and the model
#
# ### One way in, one way out
#
# A block adds twice: what attention says, and what the feed-forward network says, to the residual stream. In this section the residual stream itself is int8, too: *between* the blocks no float is made. What fits such an addition? Both addends have scales of their own, and the sum needs a third. `FloatFunctional.add` holds it.
#
# Every further crossing between float and int8 costs time, and every quantize costs a rounding. So count them. For $n$ blocks, this is what is needed, and no more:
#
# | where | quantize | dequantize |
# |---|---|---|
# | ends of the path | 1 | 1 |
# | softmax, in each block | 1 | 1 |
# | GELU, in each block | 1 | 1 |
# | together | $1 + 2n$ | $1 + 2n$ |
#
# For two blocks: 5 and 5. The table counts the modules that *you* place. LayerNorm and additions work on codes; the two products read and write codes, with a float product between (section 5), which no stub of ours adds.
#
# The attention and the feed-forward network come from the helpers; `attention_part` was defined in section 5, this is the other conversion function:


# %%
def feed_forward_part(ffn: FeedForward) -> quantizable.QuantizableFeedForward:
    """The quantizable feed-forward network of the helpers with these weights: quantized in, quantized out."""
    part = quantizable.QuantizableFeedForward(ffn.up.in_features, ffn.up.out_features)
    part.load_state_dict(ffn.state_dict())
    return part.eval()


# %% [markdown]
# ### Exercise 4.6: a block, and a stack of blocks
# *Difficulty 4 of 5 · 35 minutes · 3 points*
#
# Write two classes. `StaticBlock` gets a float `Block` (with `norm1`, `attention`, `norm2`, `ffn`) and computes the same,
#
# $$h = x + \mathrm{attention}(\mathrm{norm}_1(x)), \qquad y = h + \mathrm{ffn}(\mathrm{norm}_2(h)),$$
#
# with a quantized tensor arriving and a quantized tensor leaving. `StaticStack` gets several float blocks, and holds the ends of the path: float arrives, is quantized once, goes through all blocks, is dequantized once, and float leaves.
#
# Use `attention_part` and `feed_forward_part` for the inner parts, and copies of the LayerNorms. The LayerNorms shall become int8 here, so leave their qconfig alone. By hand, with $x = 1$, attention that says 0.5 and a network that says −0.25 (whatever arrives): $h = 1.5$, $y = 1.25$. Whoever forgets the first addition gets 0.25.


# %% nbgrader={"grade": false, "grade_id": "ex_4_6", "locked": false, "schema_version": 3, "solution": true, "task": false}
class StaticBlock(nn.Module):
    """A pre-LN block with places for quantizers: quantized in, quantized out (float before it is converted).

    Parameters
    ----------
    block : Block
        Trained, float; is not changed. It has `norm1`, `attention`, `norm2` and `ffn`.

    Until it is converted it can be trained like the float block: gradients go through it.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.norms = nn.ModuleList([copy.deepcopy(block.norm1), copy.deepcopy(block.norm2)])
        self.look, self.think = attention_part(block.attention), feed_forward_part(block.ffn)
        self.sums = nn.ModuleList([FloatFunctional(), FloatFunctional()])
        ### END SOLUTION

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`x` (batch, time, d_model) after this block; `mask` as for attention."""
        ### BEGIN SOLUTION
        halfway = self.sums[0].add(x, self.look(self.norms[0](x), mask))
        return self.sums[1].add(halfway, self.think(self.norms[1](halfway)))
        ### END SOLUTION


class StaticStack(nn.Module):
    """Blocks in a row between one quantize and one dequantize: float in, float out.

    Parameters
    ----------
    blocks : iterable of Block
        Trained, float; are not changed.

    Example
    -------
    >>> stack = StaticStack(course_model.blocks).eval()
    >>> stack(torch.randn(1, 5, 256), causal_mask(5)).shape
    torch.Size([1, 5, 256])
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.begin, self.end = tq.QuantStub(), tq.DeQuantStub()
        self.inner = nn.ModuleList([StaticBlock(block) for block in blocks])
        ### END SOLUTION

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Float `x` (batch, time, d_model) after all blocks, float again; `mask` as for attention."""
        ### BEGIN SOLUTION
        hidden = self.begin(x)
        for member in self.inner:
            hidden = member(hidden, mask)
        return self.end(hidden)
        ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_4_6_check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 4.6: run this cell.
from collections import Counter
from unittest import mock

import torch
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import checks, samples, witness
from helpers.models import Block, ModelConfig


@checks.isolated
def check_ex_4_6() -> None:
    engine = torch.backends.quantized.engine

    class Kernels(TorchDispatchMode):
        """How often each kernel runs: only those that matter here."""

        def __init__(self) -> None:
            super().__init__()
            self.count = Counter()

        def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
            self.count[".".join(str(kernel).split(".")[:2])] += 1
            if "aten.gelu" in str(kernel) and args[0].is_quantized:
                self.count["GELU of codes"] += 1
            return kernel(*args, **(kwargs or {}))

    def blocks_of(seed: int, width: int, heads: tuple[int, ...]) -> list[Block]:
        """A block for each number of heads; inner width and eps differ from place to place, one is in training mode."""
        torch.manual_seed(seed)
        blocks = []
        for i, n_heads in enumerate(heads):
            block = Block(ModelConfig(d_model=width, n_heads=n_heads, d_ff=(3 + i) * width)).train(i % 2 == 1)
            block.norm1.eps, block.norm2.eps = 0.2 + 0.1 * i, 0.05
            blocks.append(block.requires_grad_(i != 2))
            for name, weight in block.named_parameters():
                if weight.dim() == 2:
                    nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
                elif name.startswith("norm") and name.endswith("weight"):
                    nn.init.uniform_(weight, 0.5, 1.5)
                else:
                    nn.init.normal_(weight, std=0.3)
        return blocks

    def halves(
        block: Block, x: torch.Tensor, mask: torch.Tensor | None, change: str = "", heads: int = 0
    ) -> torch.Tensor:
        """A block from torch's functional parts; `change` makes a known mistake."""

        def norm(layer: nn.LayerNorm, t: torch.Tensor) -> torch.Tensor:
            return F.layer_norm(t, t.shape[-1:], layer.weight, layer.bias, 1e-5 if change == "eps" else layer.eps)

        def look(t: torch.Tensor) -> torch.Tensor:
            part = block.attention
            q, k, v = (
                F.linear(t, layer.weight, layer.bias).unflatten(2, (heads or part.n_heads, -1)).transpose(1, 2)
                for layer in (part.q, part.k, part.v)
            )
            own = torch.ones(t.shape[1], t.shape[1]).tril() > 0
            seen = {"no mask": None, "own mask": own}.get(change, mask)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
            return F.linear(y.transpose(1, 2).flatten(2), part.out.weight, part.out.bias)

        def think(t: torch.Tensor) -> torch.Tensor:
            wide = F.gelu(F.linear(t, block.ffn.up.weight, block.ffn.up.bias))
            return F.linear(wide, block.ffn.down.weight, block.ffn.down.bias)

        one, two = (
            (block.norm2, block.norm1)
            if change == "norms"
            else (block.norm1, block.norm1 if change == "one norm" else block.norm2)
        )
        if change == "post":
            h = norm(one, x + look(x))
            return norm(two, h + think(h))
        h = look(norm(one, x)) + (0 if change in ("first", "both") else x)
        if change == "parallel":
            return h + think(norm(two, x))
        return think(norm(two, h)) + (0 if change in ("second", "both") else x if change == "from x" else h)

    def all_of(blocks: list[Block], x: torch.Tensor, mask: torch.Tensor | None, change: str = "") -> torch.Tensor:
        chains = {"again": blocks[:1] * len(blocks), "backwards": blocks[::-1], "too few": blocks[:-1]}
        for block in chains.get(change, blocks):
            x = halves(block, x, mask, change, blocks[0].attention.n_heads if change == "heads" else 0)
        return x

    known = {
        "post": "the LayerNorms stand behind the additions (post-LN); this model normalizes *before* each half.",
        "first": "the first residual addition is missing: x is added to what attention says.",
        "second": "the second residual addition is missing: h is added to what the feed-forward network says.",
        "both": "both residual additions are missing.",
        "from x": "the second addition adds x; it should add h, which holds what attention said.",
        "parallel": "the feed-forward network reads x; it should read h, which holds what attention said.",
        "one norm": "norm1 is used twice: the feed-forward network has a LayerNorm of its own, norm2.",
        "norms": "norm1 and norm2 are swapped.",
        "no mask": "the mask does not reach the attention.",
        "own mask": "it uses a causal mask whatever mask it is given, and also if there is none: hand on the one that was given.",
        "eps": "the LayerNorms have another eps than the given ones: copy them as they are, with copy.deepcopy.",
        "heads": "every block has as many heads as the first one: take the number from each block (attention_part does).",
        "again": "every step runs the first block: go through all of them.",
        "backwards": "the blocks run in the reversed order.",
        "too few": "the last block is left out.",
    }

    def held(value: object) -> list[object]:
        """Modules and tensors in a list, a tuple or a dict, however deep."""
        if isinstance(value, nn.Module | torch.Tensor):
            return [value]
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
        return [thing for item in inside for thing in held(item)]

    def beside(module: nn.Module) -> list[tuple[str, object]]:
        """Attributes that hold modules or tensors where PyTorch does not look: name, value."""
        own = ("_modules", "_parameters", "_buffers")
        return [(n, v) for part in module.modules() for n, v in vars(part).items() if n not in own and held(v)]

    def look_into(part: nn.Module, what: str, given: dict[int, str]) -> None:
        """What makes a module unfit, whatever it computes."""
        assert isinstance(part, nn.Module), f"{what} should be a module."
        for name, value in beside(part):
            listed = isinstance(held(value)[0], nn.Module) and not isinstance(value, nn.Module)
            assert not listed, (
                f"`{name}` of {what} is a plain list (or dict) of modules: PyTorch does not see what is in it, so that nothing in it is calibrated or converted. Use nn.ModuleList."
            )
            raise AssertionError(
                f"`{name}` of {what} keeps a tensor or a module that is no parameter, buffer or submodule: it stays float, and in memory, when the rest is int8. Keep only the parts that forward needs."
            )
        for module in part.modules():
            assert type(module).__name__ != "StaticFeedForward", (
                "StaticFeedForward of exercise 4.5 holds a float LayerNorm and takes and gives floats; here the residual stream is codes. Use feed_forward_part(block.ffn), with an int8 LayerNorm before it."
            )
            assert getattr(module, "qconfig", None) is None, (
                f"{what} has set a qconfig: who quantizes the whole model decides on it, and yours would win. Set none."
            )
        for parameter in part.parameters():
            assert parameter.data_ptr() not in given, (
                f"{what} uses the given block's own {given[parameter.data_ptr()]}, not a copy: whatever is done to one of the two changes both. Use copy.deepcopy, also for the LayerNorms."
            )

    def look_at_sums(part: nn.Module, x: torch.Tensor, what: str) -> None:
        """Does each addition have a FloatFunctional of its own, where prepare finds it?"""
        sums, called, really = Counter(), set(), nnq.FloatFunctional.add

        def adding(self: nn.Module, *operands: object) -> torch.Tensor:
            sums[self] += 1
            return really(self, *operands)

        def multiplying(self: nn.Module, *operands: object, really=nnq.FloatFunctional.matmul) -> torch.Tensor:
            called.add(self)
            return really(self, *operands)

        with (
            mock.patch.object(nnq.FloatFunctional, "add", adding),
            mock.patch.object(nnq.FloatFunctional, "matmul", multiplying),
        ):
            part(x.clone())
        names = {module: name for name, module in part.named_modules() if isinstance(module, nnq.FloatFunctional)}
        assert set(sums) <= set(names), (
            f"an addition of {what} is made by a FloatFunctional that is no part of the module, so prepare does not find it: make it in __init__, as an attribute of self."
        )
        idle = [name for module, name in names.items() if module not in sums and module not in called]
        for module, count in sums.items():
            assert count == 1, (
                f"one FloatFunctional serves both additions, or several: `{names[module]}` of {what} adds {count} times in one call, so that all these sums share one scale. Each addition needs its own."
                + (f" (And `{idle[0]}` is never called.)" if idle else "")
            )

    def run(part: nn.Module, x: torch.Tensor, mask: torch.Tensor | None, what: str) -> object:
        """Its output; the given x and mask must stay as they are."""
        given, seen = x.clone(), None if mask is None else mask.clone()
        returned = part(given) if mask is None else part(given, mask=seen)
        assert mask is None or torch.equal(seen, mask), (
            f"{what} changes the mask in place: it belongs to the caller, and the next block gets it, too. Hand it on as it is."
        )
        assert torch.equal(given, x), (
            f"{what} changes its input in place: `h += …` writes into the tensor that was given. Use FloatFunctional.add, which makes a new one."
        )
        return returned

    def compare(got: object, blocks: list[Block], x: torch.Tensor, mask: torch.Tensor | None, what: str) -> None:
        wanted = all_of(blocks, x, mask)
        assert isinstance(got, torch.Tensor), f"{what} should return a tensor: does its forward end with `return`?"
        assert got.shape == wanted.shape, (
            f"{what} returns the shape {tuple(got.shape)}; expected is {tuple(wanted.shape)}."
        )
        if torch.allclose(got, wanted, atol=1e-5, rtol=1e-5):
            return
        fits = [
            sentence
            for change, sentence in known.items()
            if torch.allclose(got, all_of(blocks, x, mask, change), atol=1e-5, rtol=1e-5)
        ]
        assert len(fits) != 1, f"before any quantization {what} is wrong: {fits[0]}"
        raise AssertionError(
            f"before any quantization {what} differs from the float model by up to {(got - wanted).abs().max():.3g}; allowed is rounding (1e-5)."
        )

    def try_float(part: nn.Module, blocks: list[Block], x: torch.Tensor, what: str) -> None:
        """Before any quantization: right for each mask, in training mode, for odd tensors, twice."""
        own = {p.data_ptr(): name for block in blocks for name, p in block.named_parameters()}
        look_into(part, what, own)
        made = [name for name, _ in part.named_modules()]
        distance = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        padding = torch.ones(len(x), 1, 1, x.shape[1], dtype=torch.bool)  # (batch, heads, query, key)
        padding[0, ..., -1] = False
        for mask in (distance >= 0, None, (distance >= 0) & (distance < 3), padding):
            compare(run(part.eval(), x, mask, what), blocks, x, mask, what)
        assert made == [name for name, _ in part.named_modules()], (
            f"{what} makes some of its modules when it is called: then `prepare`, which comes first, finds none. Make them in __init__."
        )
        for what_x, odd in (("one token long", x[:1, :1]), ("a hundred times as loud", 100 * x)):
            got, wanted = run(part, odd, None, what), all_of(blocks, odd, None)
            assert got.shape == wanted.shape, (
                f"{what} returns the shape {tuple(got.shape)} if x is {what_x}; expected is {tuple(wanted.shape)}."
            )
            assert torch.allclose(got, wanted, atol=1e-3, rtol=1e-5), (
                f"{what} computes something else if x is {what_x}."
            )
        look_at_gradient(part, blocks, x, what)
        for block in blocks:
            shared = witness.independent(part, block)
            assert not shared, f"{what} and the given block are not independent: {shared}. Use copy.deepcopy."
        part.train()
        for mask in (None, None, distance >= 0):
            same = torch.allclose(run(part, x, mask, what), all_of(blocks, x, mask), atol=1e-5, rtol=1e-5)
            with_mask = "" if mask is None else " and with a mask"
            assert same, (
                f"in training mode{with_mask} {what} computes something else than in eval mode: the given blocks have no dropout."
            )
        part.eval()
        for form, odd in samples.awkward(x):
            same = torch.allclose(part(odd), all_of(blocks, x, None), atol=1e-5, rtol=1e-5)
            assert same, f"{what} computes something else if x is {form}."
        look_at_sums(part, x, what)

    def look_at_gradient(part: nn.Module, blocks: list[Block], x: torch.Tensor, what: str) -> None:
        """Before it is converted it is an ordinary module: gradients go through it."""
        with torch.enable_grad():
            one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
            got = part(one)
            wanted = all_of(blocks, other, None).square().sum()
            assert got.requires_grad, (
                f"no gradient goes through {what}, so it cannot be trained before it is converted: leave out no_grad and detach."
            )
            (expected,) = torch.autograd.grad(wanted, other)
            try:
                got.square().sum().backward()
            except RuntimeError as error:
                if "inplace operation" in str(error):  # `h += …`: what is wrong with it is said after convert
                    return
                raise
        part.zero_grad()
        assert one.grad is not None and torch.allclose(one.grad, expected, atol=1e-2, rtol=1e-3), (
            f"the gradient that comes out of {what} is another one than that of the float block: leave out no_grad and detach, also around a part."
        )

    def try_repeated(blocks: list[Block], x: torch.Tensor) -> None:
        """The same block may come more than once, and many may come."""
        rows = [*blocks, *blocks, blocks[0], *blocks[::-1]]
        stack = StaticStack(rows).eval()
        got, wanted = stack(x), all_of(rows, x, None)
        assert not torch.allclose(got, all_of(blocks, x, None), atol=1e-4, rtol=1e-4), (
            "a block that is given twice runs once: go through `blocks` as they come, each has its turn."
        )
        assert torch.allclose(got, wanted, atol=1e-4, rtol=1e-4), (
            f"StaticStack computes something else if it gets {len(rows)} blocks: all of them run, in their order."
        )
        look_at_sums(stack, x, "StaticStack, given one block several times,")

    def try_iterables(blocks: list[Block], x: torch.Tensor) -> None:
        """`blocks` may be any iterable."""
        for kind, handed in (
            ("an nn.ModuleList", nn.ModuleList(blocks)),
            ("a generator, which can be gone through once", (block for block in blocks)),
        ):
            try:
                got = StaticStack(handed).eval()(x)
            except (TypeError, AttributeError) as error:
                raise AssertionError(
                    f"StaticStack stops with {type(error).__name__} ({error}) if `blocks` is {kind}: any iterable may come, so go through it once, with `for`."
                ) from None
            assert torch.allclose(got, all_of(blocks, x, None), atol=1e-5, rtol=1e-5), (
                f"StaticStack computes something else if `blocks` is {kind}: any iterable may come, so go through it once, with `for`."
            )

    def judge(seed: int, width: int, heads: tuple[int, ...], batch: int, time: int) -> None:
        blocks, n = blocks_of(seed, width, heads), len(heads)
        with checks.untouched(blocks=blocks):
            with torch.enable_grad():
                StaticStack(list(blocks))
                assert torch.is_grad_enabled(), (
                    "your code switches gradients off for the whole notebook: use `with torch.no_grad():`, which ends."
                )
            judge_these(
                blocks, n, *torch.randn(2, batch, time, width, generator=torch.Generator().manual_seed(seed + 1))
            )
        assert torch.backends.quantized.engine == engine, (
            "your code switches torch.backends.quantized.engine for the whole notebook: leave it as it is."
        )

    def judge_these(blocks: list[Block], n: int, x: torch.Tensor, more: torch.Tensor) -> None:
        copy_of_x, causal = x.clone(), torch.ones(x.shape[1], x.shape[1]).tril() > 0
        one = StaticBlock(blocks[0])
        try_float(one, blocks[:1], x, "StaticBlock")
        given = list(blocks)
        stack = StaticStack(given)
        assert given == blocks, "StaticStack changes the list `blocks`, which belongs to its caller."
        try_float(stack, blocks, x, "StaticStack")
        try_iterables(blocks, x)
        if n > 1:
            try_repeated(blocks, x)
        stack.qconfig = tq.QConfig(
            activation=tq.MinMaxObserver.with_args(quant_min=0, quant_max=127),
            weight=tq.get_default_qconfig(torch.backends.quantized.engine).weight,
        )
        prepared = tq.prepare(stack)
        for part in (x, more):
            prepared(part, causal)
        converted = tq.convert(prepared)
        try:
            got, trace = converted(x, causal), Kernels()
            with trace:
                converted(x, causal)
        except (NotImplementedError, RuntimeError) as error:
            text = str(error).splitlines()[0]
            for name, sentence in {
                "aten::bmm": "a product `@` gets codes: the attention in your block is the float one. Use attention_part(block.attention).",
                "fill_out": "the attention in your block is a float one (F.scaled_dot_product_attention). Use attention_part(block.attention).",
                "aten::add": "`+` has no int8 kernel: use FloatFunctional.add for the residual additions.",
                "aten::native_": "a LayerNorm in float gets codes: leave its qconfig alone, so that it becomes int8.",
                "quantized::add": "an addition gets one quantized and one float tensor: stay in int8 on the whole path.",
                "quantized::layer_norm": "a LayerNorm gets a float tensor: is there a QuantStub at the beginning of the stack?",
                "quantized::linear": "a Linear layer gets a float tensor: stay in int8 on the whole path.",
            }.items():
                assert name not in text, f"after convert it cannot run: {sentence}"
            raise AssertionError(f"after convert it cannot run: {text[:200]}") from None
        assert not got.is_quantized, "StaticStack returns codes after convert: one DeQuantStub belongs at its end."
        assert not trace.count["GELU of codes"], (
            "GELU gets codes: the feed-forward network in your block is the float one. Use feed_forward_part(block.ffn)."
        )
        assert all(p.dim() < 2 for p in converted.parameters()), (
            "after convert there are float matrices left; all should become int8."
        )
        ways = trace.count["aten.quantize_per_tensor"], trace.count["aten.dequantize"]
        assert ways == (1 + 2 * n, 1 + 2 * n), (
            f"with {n} block{'s' * (n > 1)} in the stack, the numbers of quantizes and dequantizes in a call are {ways[0]} and {ways[1]}; expected are {1 + 2 * n} and {1 + 2 * n}: once at each end, and around each softmax and GELU. "
            "No round trips between layers or blocks."
        )
        for kernel, expected in {"linear": 6 * n, "layer_norm": 2 * n, "add": 2 * n, "matmul": 2 * n}.items():
            found = trace.count[f"quantized.{kernel}"]
            assert found == expected, (
                f"with {n} block{'s' * (n > 1)} in the stack, {kernel} runs {found} times in int8; expected is {expected}."
            )
        sums = [m for m in converted.modules() if isinstance(m, nnq.QFunctional)]
        spread = []
        for part in (x, more):
            for block in blocks:
                after = halves(block, part, causal)
                attended = part + block.attention(block.norm1(part), causal)
                spread, part = [*spread, attended, after], after
        ranges = [torch.cat([spread[i].flatten(), spread[i + 2 * n].flatten()]) for i in range(2 * n)]
        for place, tensor in enumerate(ranges):
            step = ((tensor.max().clamp(min=0) - tensor.min().clamp(max=0)) / 127).item()
            assert any(abs(module.scale / step - 1) < 0.02 for module in sums), (
                f"no addition has the scale {step:.4f}, which calibration says of sum {place % 2 + 1} in block {place // 2}."
            )
        wanted = all_of(blocks, x, causal)
        error = ((got - wanted).norm() / wanted.norm()).item()
        assert error < 0.15, f"in int8 the output has a relative error of {error:.3f}; below 0.15 was expected."
        later = x.clone()
        later[:, -1] += 1
        assert torch.allclose(converted(later, causal)[:, :-1], got[:, :-1], atol=1e-6), (
            "in int8 the output at a position depends on later tokens: does the mask reach every block?"
        )
        without = converted(x)
        assert torch.equal(without, converted(x, torch.ones_like(causal))) and not torch.equal(without, got), (
            "in int8 the mask has no effect, or another one than in float: hand on the mask that was given, and None if none was."
        )
        for form, odd in samples.awkward(x):
            assert torch.equal(converted(odd, causal), got), f"in int8 the output is another one if x is {form}."
        assert torch.equal(x, copy_of_x), "your function changes its input in place."

    with (
        checks.check(
            "4.6",
            "your blocks compute what the float ones do, with int8 additions, and one quantize and one dequantize at the ends",
        ),
        torch.no_grad(),
    ):
        judge(461, width=16, heads=(2,), batch=3, time=8)
        judge(462, width=24, heads=(4, 2, 3), batch=2, time=6)
        judge(463, width=16, heads=(4,), batch=1, time=2)
    ### BEGIN HIDDEN TESTS
    with torch.no_grad():
        for sizes in [(4601, 32, (4, 8), 2, 9), (4602, 8, (1, 2, 4, 2), 3, 5), (4605, 16, (2,), 1, 3)]:
            judge(*sizes)
        pair = blocks_of(4603, 16, (2, 4))
        x = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(4604))
        assert torch.allclose(StaticStack(pair).eval()(x, None), pair[1](pair[0](x)), atol=1e-4), "without a mask."
    ### END HIDDEN TESTS


check_ex_4_6()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Write the block in float first, with `+`. Which two places make a new tensor that no layer makes? Those need a `FloatFunctional` each.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# The block has no stub of its own: the ones around softmax and GELU are in the parts. The stack has exactly one `QuantStub` and one `DeQuantStub`, and an `nn.ModuleList` of `StaticBlock`s (a plain list would hide them from `prepare`).
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `h = self.add1.add(x, self.attention(self.norm1(x), mask))`, `return self.add2.add(h, …)`; in the stack `x = self.quant(x)`, then each block with `mask`, then `return self.dequant(x)`.
# </details>

# %% [markdown]
# ### What is in the residual stream?
#
# Every block adds to it, and it is never normalized: a LayerNorm reads it, but what it makes goes into the block, not back into the stream. What does that mean for one scale? The two parts that are left get the four questions, and the stream a picture: what enters the first block, and each sum.

# %%
tables.show([four_answers("residual", "8 bits; or float"), four_answers("head", "int8 a row; int8 logits")])

entrance, *sums = ranging_tensors["residual"]
stream = {"in": entrance}
for i, tensor in enumerate(sums):
    stream[f"{i // 2}.{('attn', 'ffn')[i % 2]}"] = tensor
fig, axes = plots.figure(columns=2, width=10.5, height=3.4)
places, steps = np.arange(len(stream)), {}
for place, (name, tensor) in zip(places, stream.items(), strict=True):
    low, high = tensor.min().item(), tensor.max().item()
    inner_low, inner_high = np.quantile(tensor.flatten().numpy()[::17], [0.01, 0.99])
    steps[name] = (high - low) / 255
    first_one = name == "in"
    axes[0].bar(place, high - low, bottom=low, color="#b9d9ee", edgecolor=plots.BLUE, label="all numbers" * first_one)
    axes[0].bar(
        place,
        inner_high - inner_low,
        bottom=inner_low,
        width=0.5,
        color=plots.ORANGE,
        edgecolor="black",
        hatch="///",
        label="98 % of them" * first_one,
    )
axes[0].set_title("range of the residual stream")
axes[0].use_sticky_edges = False  # else the bars end at the frame
axes[0].margins(y=0.08)
axes[0].set_ylabel("value")
axes[0].legend(loc="upper left")
spreads = {name: tensor.std().item() for name, tensor in stream.items()}
axes[1].plot(places, list(spreads.values()), "o-", color=plots.BLUE, label="standard deviation of the numbers")
axes[1].plot(places, list(steps.values()), "s--", color=plots.RED, label="one step of 8 bits")
axes[1].set_yscale("log")
axes[1].set_title("what is to be stored, and the step")
axes[1].legend()
for ax in axes:
    ax.set_xticks(places, list(stream), rotation=45, fontsize=8)
plots.show(
    fig,
    caption="The residual stream of the course model, at the entrance and behind each addition (block.half). Left: its range, and where 98 % of its numbers are. Right: standard deviation, and the step of an 8-bit grid over the range.",
    alt="Left, bars that grow in two large steps, behind the feed-forward networks of block 0 and of block 1, and in small ones elsewhere; the hatched bars inside, with 98 percent of the numbers, stay low. Right, two lines on a logarithmic axis: the "
    "standard deviation rises slowly, the step of the grid jumps between block 0's two additions and comes much closer to it.",
)
rows = []
for name, tensor in stream.items():
    largest = tensor.flatten(0, 1).abs().amax(dim=0)  # for each of the 256 columns
    order = largest.argsort(descending=True)
    rows.append(
        {
            "place": name,
            "width of the range": f"{255 * steps[name]:.0f}",
            "standard deviation in steps": f"{spreads[name] / steps[name]:.0f}",
            "columns with the largest numbers": ", ".join(map(str, order[:2].tolist())),
            "their largest": ", ".join(f"{value:.0f}" for value in largest[order[:2]]),
            "largest of a middle column": f"{largest.median():.0f}",
            "at position": int(tensor.abs().amax(dim=(0, 2)).argmax()),
        }
    )
tables.show(rows)

# %% [markdown]
# The stream does not grow evenly. The first feed-forward network widens its range several times over, the second adds nearly as much again, and the other six sums add less than half of the final range together (see the column "width of the range"). Behind the first one, a few of the 256 columns hold numbers many times as large as those of a middle column, at the first positions of a
# text; and they stay to the end. One scale must cover them, so all other numbers share few steps. Such *massive activations* are known from large models, too (Sun et al. 2024, arXiv:2402.17762). Rounding cannot be finer than its scale. Ways out are another scale for these columns, no rounding at all, or moving the large numbers elsewhere before rounding (SmoothQuant, Xiao et al. 2022,
# arXiv:2211.10438, puts them into weights; QuaRot, Ashkboos et al. 2024, arXiv:2404.00456, spreads them over all columns; neither is done in this course).
#
# So there are two models to compare: *int8 residual*, the path that you have built, and *float residual*, in which each half is quantized as in exercise 4.5 and the additions are done in float. The second has more crossings. `helpers.quantizable` has both, for the whole model: embedding, blocks, head.
#
# ### The whole model, measured
#
# All variants read the same held-out documents, batch after batch, and take turns in an order that is drawn anew for each batch; so we get their times in the same run. (Eight rows of 256 bytes a batch. The float model is the one that you know: attention in single steps, not PyTorch's fused one. Against that one the ratios would be larger; unit 05 has both.)

# %% tags=["varies"]
import torchao.quantization as ao

calibration_batches = data.windows("training", 16)[:, :256].split(8)
many = data.windows("held_out", 48)
per_row = copy.deepcopy(course_model)
per_row.head.weight = nn.Parameter(per_row.head.weight.detach().clone())  # untied: torchao replaces one of the two
ao.quantize_(per_row, ao.Int8DynamicActivationInt8WeightConfig())
whole_models = {
    "float": course_model,
    "static int8, float residual": quantizable.static_int8(course_model, calibration_batches, "float"),
    "static int8, int8 residual": quantizable.static_int8(course_model, calibration_batches, "int8"),
    "dynamic int8 (PyTorch)": int8.dynamic_int8(course_model),
    "dynamic int8, a scale a row (torchao)": per_row,
}
needed_by: dict[str, list[Tensor]] = {name: [] for name in whole_models}
seconds: dict[str, list[float]] = {name: [] for name in whole_models}
order_of_turns = random.Random(0)


def timed(model: nn.Module, taken: list[float]) -> nn.Module:
    """Calls `model` and notes how long it took."""

    def call(ids: Tensor) -> Tensor:
        start = time.perf_counter()
        logits = model(ids)
        taken.append(time.perf_counter() - start)
        return logits

    return call


with torch.no_grad():
    for model in whole_models.values():
        model(many[:1, :64])  # warm-up
for batch in many.split(8):
    for name, model in order_of_turns.sample(list(whole_models.items()), len(whole_models)):
        needed_by[name].append(metrics.next_byte_bits(timed(model, seconds[name]), batch))
reference = torch.cat(needed_by["float"])
ratios = {name: np.array(taken) / np.array(seconds["float"]) for name, taken in seconds.items()}  # one for each batch
whole_model = []
for name, model in whole_models.items():
    needed = torch.cat(needed_by[name])
    more, error = difference(needed, reference)
    crossings = quantizable.crossings(model)
    whole_model.append(
        {
            "model": name,
            "bits per byte": f"{needed.mean().item():.4f}",
            "difference ± standard error": "" if name == "float" else f"{more:+.4f} ± {error:.4f}",
            "in percent": "" if name == "float" else f"{100 * more / reference.mean().item():+.2f} %",
            "file, times smaller": f"{metrics.file_bytes(course_model) / metrics.file_bytes(model):.2f}",
            "quantize, dequantize modules": f"{crossings[0]}, {crossings[1]}" if "static" in name else "",
            "time / float, 8 × 256": f"{np.median(ratios[name]):.2f}",
        }
    )
tables.show(whole_model)
more, error = difference(*(torch.cat(needed_by[f"static int8, {residual} residual"]) for residual in ("int8", "float")))
print(f"int8 residual against float residual: {more:+.4f} ± {error:.4f} bits per byte")
print("engine", torch.backends.quantized.engine)

# %% [markdown]
# Is that good enough? A measurement cannot say so; one needs aims. Ours are: static int8 end to end within 0.5 % of float in bits per byte, dynamic int8 within 0.2 %, a file at most 1/3.7 of the float one with the embedding in it, and 1.5 times as fast as float at 8 × 256 tokens (a ratio of at most 0.67). (In a project of your own, write the aims down *before* the first measurement. Nobody can check afterwards that you did not
# choose those that you had reached, and so you need not take ours for more than examples.) What is reached, with twice the standard error to each side as a rough 95 % interval, and for the times with the smallest and the largest of the six ratios:

# %% tags=["varies"]
per_cent = 100 / reference.mean().item()
for name, aim in [
    ("static int8, float residual", 0.5),
    ("static int8, int8 residual", 0.5),
    ("dynamic int8 (PyTorch)", 0.2),
    ("dynamic int8, a scale a row (torchao)", 0.2),
]:
    more, error = (per_cent * number for number in difference(torch.cat(needed_by[name]), reference))
    decided = (
        "within the aim" if more + 2 * error <= aim else "not within the aim" if more - 2 * error > aim else "undecided"
    )
    print(f"{name:40} {more:+.2f} % ({more - 2 * error:+.2f} to {more + 2 * error:+.2f}), aim {aim} %: {decided}")
for name in list(whole_models)[1:]:
    fastest, slowest = ratios[name].min(), ratios[name].max()
    decided = "reached" if slowest <= 0.67 else "not reached" if fastest > 0.67 else "undecided"
    print(f"{name:40} time / float {np.median(ratios[name]):.2f} ({fastest:.2f} to {slowest:.2f}), aim 0.67: {decided}")
smaller = metrics.file_bytes(course_model) / metrics.file_bytes(whole_models["static int8, float residual"])
print(f"file {smaller:.2f} times smaller, aim 3.7: {'reached' if smaller >= 3.7 else 'not reached by this file'}")

# %% [markdown]
# "Undecided" means that the aim lies inside the interval: this many documents (or turns) cannot decide. Why the file is larger than hoped comes below, and section 10 writes one that is smaller.
#
# The line below the first table compares the two residuals directly. Each makes other errors, so their difference has a standard error of the size of the costs themselves, and it may well be that 48 documents do not decide. (The longer run is `make bench BENCH=components`: 96 documents, minimum and maximum observers, calibrated on the first 8, 16, 24 and 32 documents. The float residual was the better one each time, by more than two standard
# errors; the table stands in `benchmarks/results/components.md`, in the course's own folder.) The two dynamic rows differ in
# what they know of an activation: torchao has a scale for each row of it and all 8 bits, PyTorch one scale for the whole batch and, on a PC, 7 bits. What a method costs in time without a compiler, the last column says.
#
# One more thing in the table deserves a word: PyTorch's *dynamic* model, one call without any of our work, is about as good as the better static one, and as small; compare their times as well. So what was the work for? Three answers. PyTorch's dynamic model takes one new scale for each batch: its output for one text depends on what else is in the batch, and on later tokens (unit 01; torchao's, with a scale for each row, does not mix rows). A static one answers the same text in the same way.
# A processor without float units needs every scale before the model runs, and the static model has them (it is not yet a model for such a processor: softmax and GELU are still float in it, products of activations make floats inside, and with the float residual the norms and the additions are float, too; Jacob et al. 2018 and I-BERT, in the references, go that way to its end). And you have asked every tensor in the model what it costs, which no one-line call does. If none of this matters to you, and your own table says so: use the dynamic one.
#
# ### At which size is it faster?
#
# The ratio above holds for one shape. With one byte at a time, as in generating text, there is little to multiply, and each quantize and each small kernel costs its fixed part:

# %% tags=["varies"]
rows = []
for batch_size, length, turns in ((1, 1, 15), (1, 256, 7)):
    ids = many[:batch_size, :length].contiguous()
    taken: dict[str, list[float]] = {name: [] for name in whole_models}
    with torch.no_grad():
        for _ in range(turns):
            for name, model in order_of_turns.sample(list(whole_models.items()), len(whole_models)):
                timed(model, taken[name])(ids)
    row = {"batch × bytes": f"{batch_size} × {length}"}
    for name in list(whole_models)[1:]:
        row[name] = f"{np.median(np.array(taken[name][2:]) / np.array(taken['float'][2:])):.2f}"
    rows.append(row)
last = {row["model"]: row["time / float, 8 × 256"] for row in whole_model}
rows.append({"batch × bytes": "8 × 256"} | {name: last[name] for name in list(whole_models)[1:]})
tables.show(rows)
print("seconds divided by those of float: below 1 is faster. Engine", torch.backends.quantized.engine)

# %% [markdown]
# So a claim of speed without a shape is no claim. (And without a processor: unit 05 measures times with more care, and section 10 says what changes elsewhere.)
#
# ### What limits the quality?
#
# Three suspects: 7 bits where a Linear reads, which PCs without VNNI need (unit 03) and the default engine of a PC takes anyway; 7 bits elsewhere, where no int8 weight is multiplied; and the residual stream. Vary each. All rows below have one kind of observer (minimum and maximum). The first three have an int8 residual, and only the number of codes differs. The places with as many bits as the engine multiplies exactly, 7 on most PCs, are LayerNorm's output, the mix, and GELU's output.


# %%
def observed_with(residual: str, largest_code: Callable[[int], int]) -> nn.Module:
    """The course model in static int8; `largest_code` says what becomes of the helper's largest code at each place."""
    prepared = quantizable.prepare(quantizable.quantizable(course_model, residual))
    for module in prepared.modules():
        observer = getattr(module, "activation_post_process", None)
        if isinstance(observer, tq.UniformQuantizationObserverBase | tq.HistogramObserver):
            module.activation_post_process = tq.MinMaxObserver(quant_min=0, quant_max=largest_code(observer.quant_max))
    with torch.no_grad():
        prepared(calibration_batches[0])
    return quantizable.convert(prepared)


by_observers = {}
for residual, name, largest_code in [
    ("int8", "what the engine multiplies exactly where a Linear reads, else 8 bits", lambda code: code),
    ("int8", "7 bits everywhere", lambda _: 127),
    ("int8", "8 bits everywhere", lambda _: 255),
    ("float", "what the engine multiplies exactly where a Linear reads, else 8 bits", lambda code: code),
]:
    by_observers[residual, name] = metrics.next_byte_bits(observed_with(residual, largest_code), many[:24])
first_row = next(iter(by_observers.values()))
rows = []
for (residual, name), needed in by_observers.items():
    row = {"residual": residual, "activations": name}
    for title, other in (("against float", reference[:24]), ("against the first row", first_row)):
        more, error = difference(needed, other)
        row[f"{title}, bits per byte"] = f"{more:+.4f} ± {error:.4f}" if other is not needed else ""
    rows.append(row)
tables.show(rows)
print(
    "8-bit products are exact on this processor:",
    int8.products_are_exact(),
    "- engine",
    torch.backends.quantized.engine,
)

# %% [markdown]
# Seven bits *everywhere* cost several times as much (with the engines x86 and fbgemm; with onednn and qnnpack the first row has 8 bits everywhere). PyTorch's default for x86 is just that, one qconfig with 7 bits for the whole model. It gives away quality for nothing: no layer multiplies the residual stream by an int8 weight, so it may have all 8 bits.
#
# The other two rows say what limits the model now. The eighth bit in front of the Linear layers moves little: compare the third row with its standard error. (On a processor without exact 8-bit products that row is not to be trusted, see unit 03; the last line says whether this is one. And with an engine that uses 8 bits everywhere, such as onednn or qnnpack, the third row is the first one again.) The float residual in the last row brings more. So
# the largest single part of what is left is the residual stream.
#
# One caution about every ± here: it counts documents. Another calibration set gives other ranges, and that moves the int8 rows, too (try `calibration_batches[1]`). No ± in this section contains it.
#
# Is it really these two columns? A picture is no proof, so intervene: round every sum of the stream to 8 bits in a float copy, but leave two columns alone, so that they neither are rounded nor count for the range. Once the two from the table, and as a control two that are drawn at random. The effect is small, so this takes 96 documents:


# %%
class RoundedButFor(nn.Module):
    """Rounds a tensor to 8 bits over a fixed range, all columns but some."""

    def __init__(self, seen: Tensor, left_alone: list[int]) -> None:
        super().__init__()
        self.rounded_ones = torch.ones(seen.shape[-1], dtype=torch.bool)
        self.rounded_ones[left_alone] = False
        inner = seen[..., self.rounded_ones]
        self.low, self.high = min(inner.min().item(), 0.0), max(inner.max().item(), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.high - self.low) / 255
        rounded = torch.fake_quantize_per_tensor_affine(x, scale, round(-self.low / scale), 0, 255)
        return torch.where(self.rounded_ones, rounded, x)


large_columns = stream["3.attn"].flatten(0, 1).abs().amax(dim=0).topk(2).indices.tolist()
drawn = torch.randperm(256, generator=torch.Generator().manual_seed(70))
random_columns = [column for column in drawn.tolist() if column not in large_columns][:2]
needed_bits, more_documents = {}, data.windows("held_out", 96)
float_needs = metrics.next_byte_bits(course_model, more_documents)
for name, columns in {
    "none": [],
    "two at random": random_columns,
    "the two of the table": large_columns,
}.items():
    copied = quantizable.quantizable(course_model, "int8")
    for i, tensor in enumerate(sums):
        getattr(copied.blocks[i // 2], f"add{i % 2 + 1}").activation_post_process = RoundedButFor(tensor, columns)
    needed_bits[name] = metrics.next_byte_bits(copied, more_documents)
rows = []
for name, needed in needed_bits.items():
    row = {"columns left alone": name}
    for title, other in (("against float", float_needs), ("against no column left alone", needed_bits["none"])):
        more, error = difference(needed, other)
        row[f"{title}, bits per byte"] = f"{more:+.4f} ± {error:.4f}" if other is not needed else ""
    rows.append(row)
tables.show(rows)

# %% [markdown]
# Leave the two largest columns alone, and the cost of the stream shrinks to little, by more than two standard errors; leave two others alone, and it stays. PyTorch's int8 addition has one scale for all columns, so our way out is a float stream.
#
# ### Why is the file not a quarter?
#
# float32 has four bytes and int8 has one. Where do the others go?

# %%
chosen = whole_models["static int8, float residual"]
eaten = {"int8 codes": 0, "scales and zero points of the rows": 0, "biases and LayerNorms, float32": 0}
compact = 0
for module in chosen.modules():
    if callable(getattr(module, "weight", None)):
        weight = module.weight()
        eaten["int8 codes"] += weight.numel()
        rows_with_a_scale = 0  # one scale for the whole matrix (qnnpack) is a number of the file's frame
        if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
            scales, zeros = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
            eaten["scales and zero points of the rows"] += scales.nbytes + zeros.nbytes
            rows_with_a_scale = len(scales)
        # Compact: a float32 scale a row; a zero point only for the embedding; the head shares the embedding's codes.
        embedding = isinstance(module, nnq.Embedding)
        compact += 0 if module is chosen.head else weight.numel() + rows_with_a_scale * (8 if embedding else 4)
        bias = module.bias() if callable(getattr(module, "bias", None)) else None
        eaten["biases and LayerNorms, float32"] += 0 if bias is None else 4 * bias.numel()
    elif isinstance(module, nn.LayerNorm):
        eaten["biases and LayerNorms, float32"] += 4 * (module.weight.numel() + module.bias.numel())
compact += eaten["biases and LayerNorms, float32"]
whole, small = metrics.file_bytes(course_model), metrics.file_bytes(chosen)
eaten["names and the rest of the file"] = small - sum(eaten.values())
tables.show(
    [{"in the file": name, "bytes": f"{size:,}", "share": f"{size / small:.1%}"} for name, size in eaten.items()]
)
print(f"float file {whole:,}; int8 file {small:,}: {whole / small:.2f} times smaller")
print(f"numbers alone in a compact form: {compact:,}: {whole / compact:.2f} times smaller")
head_codes = chosen.head.weight().numel()
print(f"the head's codes, which float shares with the embedding: {head_codes:,} bytes")

# %% [markdown]
# Look at the table: what else is in the file? PyTorch's packed layers keep for each row a scale in *float64* and a zero point in *int64*, sixteen bytes where four would do (symmetric weights have the zero point 0; with qnnpack there is one scale a matrix, and hardly anything to save here). The head has codes of its own, although in float it is the same matrix as the embedding. And each of the many small tensors has a name and a frame in the file. A compact file keeps float32 scales, no zero points,
# and the tie. You will write it in section 10.

# %% [markdown]
# ## 8. Which component hurts?
#
# Each component has now been looked at alone, with the scheme that fits it. At 8 bits most of them cost so little that our documents do not tell them apart. So ask at a width where something breaks: 3 bits for
# weights, 6 bits for tensors. Who breaks first will need the most care when bits are scarce.
#
# The *sensitivity* of a component is what rounding it **alone** costs:
#
# $$\Delta_c = \frac{1}{D} \sum_{d=1}^{D} \left( b_d(\text{only } c \text{ rounded}) - b_d(\text{float}) \right)$$
#
# Here $b_d$ is the bits per byte of document $d$, and $D$ the number of documents. The difference is taken document by document, and then averaged. That matters: some documents are harder than others, for both models, and in the paired difference this cancels.
# All intervals in this section are the mean of the paired difference ± one standard error, $s / \sqrt{D}$, where $s$ is the standard deviation of the $D$ differences.
#
# Everything that is *chosen* from these numbers must be measured on the split "validation". The split "held_out" waits for the report.


# %%
def document_bits(model: nn.Module, ids: Tensor) -> Tensor:
    """Bits per byte of each row of ids (documents, time): float64, (documents,)."""
    return torch.cat([metrics.next_byte_bits(model, rows).mean(dim=1) for rows in ids.split(16)])


def with_error(differences: Tensor) -> tuple[float, float]:
    """Mean of paired differences and its standard error."""
    return differences.mean().item(), (differences.std() / len(differences) ** 0.5).item()


def ranks_agree(first: dict[str, float], second: dict[str, float]) -> float:
    """Spearman's rank correlation: 1 for the same order, -1 for the reversed one, about 0 for chance."""
    a, b = (torch.tensor([scores[name] for name in first]).argsort().argsort().double() for scores in (first, second))
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


@contextmanager
def rounded_in(model: nn.Module, bits: dict[str, int], rows: dict[str, Tensor] | None = None) -> Iterator[nn.Module]:
    """Inside, the named matrices (or only some of their rows) are rounded, a scale a row; then all is as before."""
    kept = {name: model.get_parameter(name).clone() for name in bits}
    for name, count in bits.items():
        nearest = rounding.round_to_nearest(kept[name], count, kept[name].shape[1])
        chosen = slice(None) if rows is None else rows[name]
        model.get_parameter(name)[chosen] = nearest[chosen]
    try:
        yield model
    finally:
        for name, weight in kept.items():
            model.get_parameter(name).copy_(weight)


untied_course = copy.deepcopy(course_model)  # here the head is a matrix of its own, so that it can be asked alone
untied_course.head.weight = nn.Parameter(course_model.head.weight.clone(), requires_grad=False)
asking = data.windows("validation", 16, 129)  # 16 documents, 128 predicted bytes each
first_calibration, second_calibration = data.windows("training", 8, 129)[:, :-1].split(4)
asking_float = document_bits(course_model, asking)
float_scores = course_model(asking[:, :-1]).log_softmax(dim=-1)  # (documents, time, vocabulary)

WITH_TENSORS = [name for name, part in components.COMPONENTS.items() if part.tensors]
matrices_of = {
    name: [
        n
        for n in components.weight_names(untied_course, name)
        if n != "positions" and untied_course.get_parameter(n).dim() == 2
    ]
    for name in components.COMPONENTS
}
MATRICES = [name for name, found in matrices_of.items() if found]  # components with a matrix


@dataclass(frozen=True)
class Cost:
    """What rounding something costs each document, float64 (documents,), in bits per byte."""

    bits: Tensor  # the difference of bits per byte
    moved: Tensor  # how far the predictions moved: explained below


def rounding_cost(model: nn.Module) -> Cost:
    scores = model(asking[:, :-1]).log_softmax(dim=-1)
    surprise = -scores.gather(2, asking[:, 1:, None])[..., 0].mean(dim=1) / metrics.NATS_PER_BIT
    distance = (float_scores.exp() * (float_scores - scores)).sum(dim=-1).mean(dim=1) / metrics.NATS_PER_BIT
    return Cost(surprise.double() - asking_float, distance.double())


def cost_of_weights(names: list[str], bits: int, rows: dict[str, Tensor] | None = None) -> Cost:
    """Round these matrices (or some of their rows), and nothing else."""
    with rounded_in(untied_course, dict.fromkeys(names, bits), rows) as rounded:
        return rounding_cost(rounded)


def cost_of_tensors(component: str, bits: int, calibration: Tensor) -> Cost:
    """Round the tensors that one component makes, and nothing else."""
    rounded = components.simulated(course_model, [component], calibration, weight_bits=None, tensor_bits=bits)
    return rounding_cost(rounded.requires_grad_(False))


weights_alone = {name: cost_of_weights(matrices_of[name], 3) for name in MATRICES}
tensors_alone = {name: cost_of_tensors(name, 6, first_calibration) for name in WITH_TENSORS}

fig, axes = plots.figure(columns=2, width=10, height=4.2)
for ax, costs_alone, title, hatch in (
    (axes[0], weights_alone, "weights, 3 bits, a scale a row", ""),
    (axes[1], tensors_alone, "tensors, 6 bits, one scale each", "//"),
):
    ordered = sorted(costs_alone, key=lambda name: costs_alone[name].bits.mean())
    means, spread = zip(*(with_error(costs_alone[name].bits) for name in ordered), strict=True)
    color = plots.ORANGE if hatch else plots.BLUE
    ax.barh(ordered, means, xerr=spread, color=color, hatch=hatch, edgecolor="white", ecolor="black", capsize=2)
    ax.axvline(0, color=plots.GREY, linewidth=0.8)
    ax.set_title(title)
    ax.set_xlabel("Δ bits per byte (alone)")
plots.show(
    fig,
    caption="One component rounded, everything else float. The black lines are one standard error of the paired difference to each side.",
    alt="Two bar charts of the cost of rounding one component alone. Left, weights at 3 bits, from most to least sensitive: "
    + ", ".join(sorted(weights_alone, key=lambda name: -weights_alone[name].bits.mean()))
    + ". Right, tensors at 6 bits: "
    + ", ".join(sorted(tensors_alone, key=lambda name: -tensors_alone[name].bits.mean()))
    + ".",
)

# %% [markdown]
# Bytes do not explain this order: compare the bars with the sizes in section 1. The embedding is small, and the most sensitive of all; `up` and `down` are equally large, and stand far apart. Among the tensors the residual stream leads, which all blocks read and add to.
#
# How does one take such a measurement without fooling oneself? There are several ways to get a plausible list of numbers that is wrong: parts that add up, a changed model, other data than the float model's, the calibration data, absolute values, an error over bytes in place of documents. The check knows these.
#
# ### Exercise 4.7: the sensitivity of each part
# *Difficulty 3 of 5 · 30 minutes · 3 points*
#
# Write `sensitivity`. Somebody gives you a float `model`, the names of its `parts`, and a function `quantize_(model, part, calibration)`. Like torchao's `quantize_` it rounds one part of a model **in place** and returns `None`; it reads the ranges of tensors off the
# ids in `calibration`. For each part:
#
# 1. start from the float model again (not from what the previous part left behind; and `model` itself must stay as it is);
# 2. quantize the part with `calibration`;
# 3. measure the bits of each document of `windows`: `metrics.next_byte_bits(model, windows)` has the shape (documents, time), and a document's bits are the mean of its row;
# 4. subtract what the float model needs for *the same* documents, and return mean and standard error of these differences.
#
# The list begins with the most sensitive part, the one with the largest $\Delta$. A negative $\Delta$ (rounding helped, by luck) stands below 0.
#
# By hand, three documents: float 2.0, 3.0, 4.0 bits per byte; with `a` rounded 2.1, 3.2, 4.3. Differences 0.1, 0.2, 0.3: $\Delta = 0.2$, $s = 0.1$, standard error $0.1 / \sqrt{3} \approx 0.058$. (Not paired one would get $\sqrt{1.0^2 + 1.1^2} / \sqrt 3 \approx 0.86$, and could not
# tell 0.2 from nothing.)


# %% nbgrader={"grade": false, "grade_id": "ex_4_7", "locked": false, "schema_version": 3, "solution": true, "task": false}
def sensitivity(
    model: nn.Module,
    parts: list[str],
    quantize_: Callable[[nn.Module, str, Tensor], None],
    calibration: Tensor,
    windows: Tensor,
) -> list[tuple[str, float, float]]:
    """What quantizing each part alone costs, the most sensitive part first.

    Parameters
    ----------
    model : Module
        Float, in eval mode: ids (documents, time) to logits (documents, time, vocabulary); is not changed.
    parts : list of str
        Each name once; none at all gives an empty list.
    quantize_ : callable
        ``quantize_(model, part, calibration)`` quantizes a part of the model it is given, in place, and returns None.
    calibration : Tensor, int64, (rows, time)
        For `quantize_` only.
    windows : Tensor, int64, (documents, time + 1)
        At least two documents, to measure with.

    Returns
    -------
    list of (str, float, float)
        Part, mean of the paired differences in bits per byte, standard error of that mean (with ``documents - 1``
        under the root, as ``Tensor.std`` has it). Largest mean first.

    Example
    -------
    >>> sensitivity(model, ["norm", "head"], quantize_, calibration, windows)
    [('head', 0.21, 0.02), ('norm', -0.001, 0.003)]
    """
    ### BEGIN SOLUTION
    reference = metrics.next_byte_bits(model, windows).mean(dim=1)  # (documents,)
    ranking = []
    for part in parts:
        candidate = copy.deepcopy(model)
        quantize_(candidate, part, calibration)
        change = metrics.next_byte_bits(candidate, windows).mean(dim=1) - reference
        ranking.append((part, change.mean().item(), change.std().item() / math.sqrt(len(change))))
    return sorted(ranking, key=lambda row: row[1], reverse=True)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_4_7_check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 4.7: run this cell.
import copy

import torch
from torch import nn

from helpers import checks, witness


@checks.isolated
def check_ex_4_7() -> None:
    class Drop(nn.Module):
        """A stand-in for dropout without chance: in training every third feature is dropped."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            keep = (torch.arange(x.shape[-1]) % 3 != 0).to(x.dtype)
            return x * keep * 1.5 if self.training else x

    class Toy(nn.Module):
        """A small model for the check: ids in, logits out; each part adds to what was there before."""

        def __init__(self, seed: int, names: list[str], vocabulary: int = 12, width: int = 8) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(seed)
            draw = lambda *shape: nn.Parameter(torch.randn(*shape, generator=generator))  # noqa: E731
            self.table = draw(vocabulary, width)
            self.parts = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
            for layer in self.parts.values():
                layer.weight, layer.bias = draw(width, width), draw(width)
            self.head = draw(vocabulary, width)
            self.table.requires_grad_(False)  # one part is frozen
            self.drop = Drop()

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.table[ids]
            for layer in self.parts.values():
                x = x + layer(x).tanh()
            return self.drop(x) @ self.head.T

    names = ["drum", "bow", "arrow", "string", "quiver"]

    def quantize_(model: nn.Module, part: str, calibration: torch.Tensor) -> None:
        """Round a part's outputs to few values; their range is that of the outputs for `calibration`."""
        layer, seen = model.parts[part], []
        watch = layer.register_forward_hook(lambda _m, _i, output: seen.append(output.detach().abs().max()))
        with torch.no_grad():
            model(calibration)
        watch.remove()
        step = float(seen[0]) / (3 + 2 * names.index(part))
        layer.register_forward_hook(lambda _m, _i, y: (y.clamp(-float(seen[0]), float(seen[0])) / step).round() * step)

    def all_bits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            chances = model(ids[:, :-1]).double().softmax(dim=-1)  # (documents, time, vocabulary)
        return -chances.gather(2, ids[:, 1:, None])[..., 0].log2()  # (documents, time)

    def bits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        return all_bits(model, ids).mean(dim=1)

    def case(seed: int, order: list[str], documents: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
        """Many documents are long ones."""
        generator = torch.Generator().manual_seed(seed)
        model, time = Toy(seed, order).eval(), 14 if documents < 30 else 300
        calibration = torch.randint(0, 4, (documents, 9), generator=generator)  # other ids: other ranges
        return model, calibration, torch.randint(0, 12, (documents, time), generator=generator)

    def brute_force(
        seed: int, order: list[str], calibration: torch.Tensor, ids: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Each part in a model that was built anew: differences by document."""
        differences = {}
        for part in order:
            fresh = Toy(seed, order).eval()
            quantize_(fresh, part, calibration)
            differences[part] = bits(fresh, ids) - bits(Toy(seed, order).eval(), ids)
        return differences

    def added_up(seed: int, order: list[str], calibration: torch.Tensor, ids: torch.Tensor) -> dict[str, float]:
        """What comes out if the parts are quantized one after another in the same model."""
        one, costs = Toy(seed, order).eval(), {}
        for part in order:
            quantize_(one, part, calibration)
            costs[part] = (bits(one, ids) - bits(Toy(seed, order).eval(), ids)).mean().item()
        return costs

    def mean_of(differences: dict[str, torch.Tensor]) -> dict[str, float]:
        return {part: d.mean().item() for part, d in differences.items()}

    def calls_nothing(error: Exception) -> bool:
        """Whether somebody has called None as a model, or asked it for what models have."""
        text = str(error)
        return text == "'NoneType' object is not callable" or any(
            text == f"'NoneType' object has no attribute '{name}'" for name in dir(nn.Module)
        )

    def ask(seed: int, order: list[str], documents: int) -> None:
        model, calibration, ids = case(seed, order, documents)
        before, parts, asked = copy.deepcopy(model), list(order), []

        def listening(candidate: nn.Module, part: str, examples: torch.Tensor) -> None:
            asked.append((candidate.training, part, examples))
            quantize_(candidate, part, examples)

        with checks.untouched(parts=parts, calibration=calibration, windows=ids):
            try:
                answer = sensitivity(model, parts, listening, calibration, ids)
            except (TypeError, AttributeError) as error:
                assert not calls_nothing(error), (
                    "quantize_ returns None, and you use what it returns as a model: it changes the copy that you give it, so go on with that copy."
                )
                raise
        changed = witness.unchanged(before, model)
        assert not changed, (
            f"your function changed the model that it was given ({changed}): quantize a copy of it, copy.deepcopy(model), a new one for each part."
        )
        assert isinstance(answer, list) and all(isinstance(row, tuple | list) and len(row) == 3 for row in answer), (
            "sensitivity should return a list of (part, mean, standard error)."
        )
        assert sorted(row[0] for row in answer) == sorted(order), (
            f"the parts in your list are {[row[0] for row in answer]}; each of {order} should stand there once."
        )
        for row in answer:
            kinds = {type(number).__name__ for number in row[1:] if not isinstance(number, float)}
            assert not kinds, f"mean and standard error should be Python numbers, not {kinds.pop()}: call .item()."
        if not order:
            return
        assert len(asked) >= len(order) and {part for _, part, _ in asked} == set(order), (
            "quantize_ was not called for each part."
        )
        assert not any(training for training, *_ in asked), (
            "the copy is in training mode: dropout would be on while it is measured. The model that you were given is in eval mode; leave its copy so."
        )
        differences = brute_force(seed, order, calibration, ids)
        right, found = mean_of(differences), {part: float(mean) for part, mean, _ in answer}
        float_mean, calibration_mean = bits(before, ids).mean().item(), bits(before, calibration).mean().item()
        mistakes = {
            "these are not differences but the bits per byte themselves: subtract those of the float model.": {
                part: d + float_mean for part, d in right.items()
            },
            "the sign is wrong: a part that costs something has a positive Δ, quantized minus float.": {
                part: -d for part, d in right.items()
            },
            "the parts add up: each is quantized in a model in which the earlier ones are still quantized. Copy the float model for each part.": added_up(
                seed, order, calibration, ids
            ),
            "you measured on the calibration data: it chose the ranges, so it sees too small an error. Measure on `windows`.": mean_of(
                brute_force(seed, order, calibration, calibration)
            ),
            "you calibrated with `windows`: ranges that were chosen on the test data are no test. Give quantize_ the calibration ids.": mean_of(
                brute_force(seed, order, ids, ids)
            ),
            "the float reference was measured on other data than the quantized models: use the same windows for both.": {
                part: d + float_mean - calibration_mean for part, d in right.items()
            },
            "you return the absolute value of the mean: a part whose rounding happens to help would look harmful.": {
                part: abs(d) for part, d in right.items()
            },
            "you average the absolute value of each document's difference, d.abs().mean(): then documents that got better count as worse. Keep the signs.": {
                part: d.abs().mean().item() for part, d in differences.items()
            },
            "these are sums over each document's bytes: a document's bits are the *mean* of its row.": {
                part: d * (ids.shape[1] - 1) for part, d in right.items()
            },
            "only some of the documents were measured, or only the beginning of each: take all rows and columns of `windows`.": mean_of(
                {part: d[:16] for part, d in differences.items()}
            ),
            "every difference is 0: quantize_ works in place and returns None; measure the copy that you gave it, not the float model.": dict.fromkeys(
                order, 0.0
            ),
        }
        same = lambda other: all(abs(found[part] - other[part]) < 1e-5 for part in order)  # noqa: E731
        if not same(right):
            fits = [sentence for sentence, wrong in mistakes.items() if same(wrong)]
            assert len(fits) != 1, f"your means are wrong: {fits[0]}"
        assert all(torch.equal(examples, calibration) for *_, examples in asked), (
            "quantize_ was not given the calibration ids as they are: hand on the whole tensor `calibration`, all its rows and columns."
        )
        for part in order:
            checks.number(found[part], right[part], f"your mean for the part {part}", rtol=2e-5)
        means = [mean for _, mean, _ in answer]
        assert means != sorted(means) or len(means) < 2, (
            "your list begins with the least sensitive part: the largest mean belongs first."
        )
        by_size = sorted(means, key=abs, reverse=True)
        assert means == sorted(means, reverse=True) or means != by_size, (
            "your list is sorted by the absolute value: a negative mean is below 0, and belongs at the end."
        )
        assert means == sorted(means, reverse=True), "your list is not sorted: the largest mean belongs first."
        count = len(ids)
        for part, _, error in answer:
            d = differences[part]
            fresh = Toy(seed, order).eval()
            quantize_(fresh, part, calibration)
            unpaired = ((bits(fresh, ids).var() + bits(before, ids).var()) / count).sqrt().item()
            of_bytes = (all_bits(fresh, ids) - all_bits(before, ids)).flatten()
            checks.number(
                error,
                (d.std() / count**0.5).item(),
                f"your standard error for the part {part}",
                mistakes={
                    "this is the standard deviation of the differences; divide it by the root of the number of documents.": d.std().item(),
                    "this divides by the number of documents under the root (correction=0): the mean was estimated from the same documents, so divide by documents - 1, as Tensor.std does.": (
                        d.std(correction=0) / count**0.5
                    ).item(),
                    "this is the error of two unrelated means: take the standard deviation of the differences, document by document.": unpaired,
                    "this is the spread of the quantized model's bits: take the differences first.": (
                        bits(fresh, ids).std() / count**0.5
                    ).item(),
                    "divide the standard deviation by the root of the number of documents, not by the number.": (
                        d.std() / count
                    ).item(),
                    "this divides by the root of documents - 1; the standard deviation has taken care of the 1, so divide by the root of the number of documents.": (
                        d.std() / (count - 1) ** 0.5
                    ).item(),
                    "this is the error over all bytes, as if they were independent of each other: bytes of one document are not. Take the mean of each document first (a row), then the spread of these means.": (
                        of_bytes.std() / len(of_bytes) ** 0.5
                    ).item(),
                    "this is the spread over all bytes: take the mean of each document first (a row), then the spread of these means.": (
                        of_bytes.std() / count**0.5
                    ).item(),
                },
                rtol=1e-3,
            )

    def ask_again(seed: int, order: list[str]) -> None:
        """The same model with other documents, and then with other weights."""
        model, calibration, ids = case(seed, order, 5)
        means = lambda answer: {part: mean for part, mean, _ in answer}  # noqa: E731
        near = lambda one, other: all(abs(one[part] - other[part]) < 1e-5 for part in order)  # noqa: E731
        first = means(sensitivity(model, order, quantize_, calibration, ids))
        other_ids = ids.flip(1)
        found = means(sensitivity(model, order, quantize_, calibration, other_ids))
        assert near(found, mean_of(brute_force(seed, order, calibration, other_ids))), (
            "the answer for other documents is wrong if the same model was asked about before: what you remember from one call does not hold in the next."
        )
        with torch.no_grad():
            model.table.neg_()
        found = means(sensitivity(model, order, quantize_, calibration, ids))
        fresh = {}
        for part in order:
            trial = copy.deepcopy(model)
            quantize_(trial, part, calibration)
            fresh[part] = (bits(trial, ids) - bits(model, ids)).mean().item()
        assert near(found, fresh) and not near(found, first), (
            "the answer for a model whose weights have changed since the last call is wrong: what you remember from one call does not hold in the next."
        )
        random_state = torch.initial_seed()
        assert random_state == begun, (
            "your function sets the seed of torch's random numbers for everybody: nothing here needs one."
        )

    def ask_close(seed: int) -> None:
        """Parts whose means lie close together have their order, too."""
        model, calibration, ids = case(seed, names, 4)
        strength = {"bow": 1, "drum": 3, "arrow": 2}

        def nudge_(model: nn.Module, part: str, calibration: torch.Tensor) -> None:
            with torch.no_grad():
                model.head.mul_(1 + 1e-4 * strength[part])

        means = [mean for _, mean, _ in sensitivity(model, sorted(strength), nudge_, calibration, ids)]
        assert means == sorted(means, reverse=True) and len(set(means)) == 3, (
            "parts whose means differ by less than a thousandth stand in the wrong order: sort by the means as they are, not rounded."
        )

    begun = torch.initial_seed()
    with checks.check(
        "4.7", "each part is measured alone, on data that did not choose its ranges, against the same documents"
    ):
        ask(471, names, 6)
        ask(472, names[::-1], 6)
        ask(473, ["bow", "drum"], 2)
        ask(474, ["quiver"], 3)
        ask(475, [], 3)
        ask(476, ["string", "bow"], 37)
        ask_again(477, ["bow", "drum"])
        ask_close(478)
    ### BEGIN HIDDEN TESTS
    for seed, order, documents in [
        (4711, names[1:] + names[:1], 7),
        (4712, ["bow"], 3),
        (4713, names[::2], 7),
        (4714, [], 4),
        (4715, ["arrow", "drum"], 2),
        (4716, ["bow", "arrow"], 41),
    ]:
        ask(seed, order, documents)
        model, calibration, ids = case(seed, order, documents)
        kept = copy.deepcopy(model)
        given = []

        def heard(candidate: nn.Module, part: str, examples: torch.Tensor, given: list = given) -> None:
            given.append(examples.clone())
            quantize_(candidate, part, examples)

        answer = sensitivity(model, list(order), heard, calibration, ids)
        assert len(given) >= len(order) and all(torch.equal(e, calibration) for e in given), "calibrated on other ids."
        expected = brute_force(seed, order, calibration, ids)
        assert witness.unchanged(kept, model) == "", "the model was changed."
        assert sorted(row[0] for row in answer) == sorted(order), "parts are missing or invented."
        assert all(answer[i][1] >= answer[i + 1][1] for i in range(len(answer) - 1)), "the order is wrong."
        for part, mean, error in answer:
            wanted, spread = expected[part].mean().item(), (expected[part].var() / documents).sqrt().item()
            assert abs(mean - wanted) < 1e-4 * abs(wanted) + 1e-9, "a mean is wrong."
            assert abs(error - spread) < 1e-4 * spread + 1e-9, "a standard error is wrong."
    ask_again(4717, ["string", "arrow"])
    ask_close(4718)
    ### END HIDDEN TESTS


check_ex_4_7()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Everything that happens for one part happens to a copy that nobody uses afterwards. What is the same for all parts, and need be measured only once?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# The reference is a tensor with one number for each document: bits of each byte on `windows`, mean over the columns. Subtract tensors, not means. The standard error comes from the tensor of differences.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# For each part: `trial = copy.deepcopy(…)`, `quantize_(trial, part, …)`, bits of `trial` minus bits of `model` (both on `windows`, both `.mean(dim=1)`), then `.mean()` and `.std() / len(…) ** 0.5`. Finally `sorted(…, key=lambda row: row[…], reverse=…)`.
# </details>

# %% [markdown]
# ### Can the ranking be trusted?
#
# A ranking from one measurement proves little. Four questions to it, each with its own control:
#
# - **Other calibration data.** Ranges of tensors come from the calibration ids. Take four other documents: is the order still the same?
# - **Other documents to measure with.** Split the 16 documents into two halves, and rank with each.
# - **From the other side.** *Leave one out*: round everything but one component. What is won back? If errors simply added up, it would be the same number.
# - **Chance.** A large component may look sensitive only because it is large. So take as many rows at random from *all* matrices, and round those: that is what an average component of this size costs.
#
# Spearman's rank correlation says how well two orders agree: 1 is the same order, 0 is chance.
#
# And we ask all of it twice, with a second measure. Δ bits per byte looks at one of 256 probabilities, that of the byte that came. A sharper question is how far *all* of them have moved. The **Kullback-Leibler divergence** (KL) from the float model's probabilities $p$ to the rounded
# model's $q$, in bits, is
#
# $$\mathrm{KL} = \sum_{\text{byte}} p(\text{byte}) \log_2 \frac{p(\text{byte})}{q(\text{byte})}$$
#
# It is 0 only if nothing has moved, and never negative. It needs no right answers. But it does not say whether a change was for the better. So KL may *choose*, and Δ bits per byte must *judge*.


# %%
def random_rows(matrices: list[str], count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Rows of `matrices`, drawn at random until they hold `count` weights."""
    owners = [(name, i) for name in matrices for i in range(untied_course.get_parameter(name).shape[0])]
    chosen: dict[str, list[int]] = {}
    for index in torch.randperm(len(owners), generator=generator).tolist():
        name, i = owners[index]
        width = untied_course.get_parameter(name).shape[1]
        if width <= count:
            chosen.setdefault(name, []).append(i)
            count -= width
    return {name: torch.tensor(indices) for name, indices in chosen.items()}


everything = [name for component in MATRICES for name in matrices_of[component]]
partners = cost_of_weights(matrices_of["key"] + matrices_of["embedding"], 3)  # two components rounded together
all_rounded = cost_of_weights(everything, 3)
left_out, by_chance = {}, {}
generator = torch.Generator().manual_seed(48)
for component in MATRICES:
    others = cost_of_weights([n for n in everything if n not in matrices_of[component]], 3)
    left_out[component] = Cost(all_rounded.bits - others.bits, all_rounded.moved - others.moved)
    chosen = random_rows(
        everything, sum(untied_course.get_parameter(n).numel() for n in matrices_of[component]), generator
    )
    by_chance[component] = cost_of_weights(list(chosen), 3, chosen)
tensors_again = {name: cost_of_tensors(name, 6, second_calibration) for name in WITH_TENSORS}


def average(measured: dict[str, Cost], by: str, documents: slice = slice(None)) -> dict[str, float]:
    return {name: getattr(found, by)[documents].mean().item() for name, found in measured.items()}


def signed(differences: Tensor) -> str:
    return "{:+.4f} ± {:.4f}".format(*with_error(differences))


tables.show(
    [
        {
            "weights, 3 bits": name,
            "alone": signed(weights_alone[name].bits),
            "as many random rows": signed(by_chance[name].bits),
            "won back when left out": signed(left_out[name].bits),
        }
        for name in sorted(MATRICES, key=lambda name: -weights_alone[name].bits.mean())
    ]
)
added = sum(average(weights_alone, "bits").values())
print(f"all matrices at 3 bits: {signed(all_rounded.bits)}; the column 'alone' adds up to {added:+.4f}")
beyond = partners.bits - weights_alone["key"].bits - weights_alone["embedding"].bits
print(f"key and embedding together cost {signed(partners.bits)}, more than both alone by {signed(beyond)}")
even, odd = slice(0, None, 2), slice(1, None, 2)
questions = {
    "tensors: two calibration sets": lambda by: (average(tensors_alone, by), average(tensors_again, by)),
    "tensors: two halves of the documents": lambda by: (
        average(tensors_alone, by, even),
        average(tensors_alone, by, odd),
    ),
    "weights: two halves of the documents": lambda by: (
        average(weights_alone, by, even),
        average(weights_alone, by, odd),
    ),
    "weights: alone, and left out": lambda by: (average(weights_alone, by), average(left_out, by)),
    "weights: alone, and as many random rows": lambda by: (average(weights_alone, by), average(by_chance, by)),
}
tables.show(
    [
        {
            "rank correlation": question,
            "by Δ bits per byte": f"{ranks_agree(*pair('bits')):.2f}",
            "by KL": f"{ranks_agree(*pair('moved')):.2f}",
        }
        for question, pair in questions.items()
    ]
)

# %% [markdown]
# Read the table column by column.
#
# - Random rows follow the *size* of a component. Compare the first two columns: `embedding` and `head` are small, and cost far more than as many random rows; `down` is large, and costs far less. `up` stands high in the ranking, and no higher than chance allows for its size. So two things are called "sensitive": what costs much, and what costs much *for its size*. The second one says where to spend bytes. (Chance is one draw a component here, from all matrices, the embedding included: take it as an order of magnitude.)
# - Leaving one out wins back more than the component costs alone: at 3 bits errors do not simply add up. The most striking row is `key`: alone it costs little, and left out of the whole it wins back about ten times as much. The second line below the table finds one partner: round key *and* embedding, and they cost far more than both alone. A key layer reads what the embedding has made (and the head, the other copy of that table, reads the end). So a component that looks harmless
#   in float company need not be harmless in rounded company: an allocation that is computed from single costs must be *measured* as a whole.
# - The second table. Where differences are as small as their errors, as with the tensors, ranking by Δ bits per byte is partly a ranking of chance: another half of the documents, another order. By KL the order of the tensors stands much better. For the weights both measures agree with themselves on other documents, but less with the view from the other side (leave one out), and hardly with chance, as it should be: random rows know only the size. Trust the top of a list, and do not argue about the rest.
#
# ### Layer by layer
#
# For an allocation we want the cost of each single matrix, in each block. These differences are too small for 16 documents and Δ bits per byte; so they are measured by KL.


# %%
workbench = copy.deepcopy(course_model)  # head and embedding are tied here: one table, rounded once
PARTS = {
    "query": "attention.q",
    "key": "attention.k",
    "value": "attention.v",
    "out": "attention.out",
    "up": "ffn.up",
    "down": "ffn.down",
}
names = ["embedding.weight"] + [f"blocks.{i}.{part}.weight" for i in range(4) for part in PARTS.values()]
moved_by = {}
for name in names:
    with rounded_in(workbench, {name: 3}) as rounded:
        moved_by[name] = rounding_cost(rounded).moved

costs = np.array([[moved_by[f"blocks.{i}.{part}.weight"].mean() for i in range(4)] for part in PARTS.values()])
fig, ax = plots.figure(width=6.5, height=3.6)
picture = ax.imshow(costs, aspect="auto", vmin=0)
ax.set_xticks(range(4), [f"block {i}" for i in range(4)])
ax.set_yticks(range(len(PARTS)), list(PARTS))
for (row, column), value in np.ndenumerate(costs):
    ax.text(
        column, row, f"{value:.3f}", ha="center", va="center", color="white" if value < costs.max() / 2 else "black"
    )
ax.set_title(f"KL in bits per byte, one matrix at 3 bits (the tied table: {moved_by['embedding.weight'].mean():.3f})")
plots.show(
    fig,
    caption="Each matrix of the blocks rounded alone. The table that embedding and head share does not fit onto this scale: its number stands in the title.",
    alt="A grid of six kinds of matrices and four blocks. The feed-forward up projections and the key of block 0 stand out; query and key of the later blocks cost least.",
)
relative = torch.tensor([with_error(d)[1] / with_error(d)[0] for d in moved_by.values()])
print(f"standard error of a KL relative to the KL itself, median of {len(names)} matrices: {relative.median():.2f}")

# %% [markdown]
# ### Mixed precision: the same bytes, better spent
#
# Uniform: every matrix at 4 bits. Mixed: some at 3, some at 5 or more, *the same number of bytes*. How many for whom?
#
# One measurement for each matrix and one rule are enough. For small errors the cost grows with the *square* of the step of the grid, and a symmetric grid of $b$ bits has $q = 2^{b-1} - 1$ steps to each side. So from the measured cost at 3 bits ($q = 3$) we guess
# that at $b$ bits: $\mathrm{KL}(b) \approx \mathrm{KL}(3) \cdot (3 / q)^2$. Then be greedy. Start with 3 bits everywhere, and give one bit more to whichever matrix gains most *for each byte*, until the bytes of the uniform configuration are spent. (Below 3 bits the rule is
# false: the error is no longer small. We do not go there.)
#
# Controls at the same bytes: the same widths handed out in the **reversed** order (among matrices of equal size), and at **random**. The shared table has the size of the query's, so both of them mostly move the width of the table. Two more controls take that apart: the table **alone** gets its bits, and everything else stays at 4 (a few bytes more); and the table keeps its bits, while the widths of all *other* matrices are **shuffled** among equal sizes, several
# times.


# %%
sizes = {name: course_model.get_parameter(name).numel() for name in names}


def guessed(name: str, bits: int) -> float:
    """The measured cost at 3 bits, carried to another width."""
    return moved_by[name].mean().item() * (3 / (2 ** (bits - 1) - 1)) ** 2


def allocate(average_bits: int) -> dict[str, int]:
    """Bits for each matrix, greedily; together exactly as many as `average_bits` for each weight."""
    bits = dict.fromkeys(names, 3)
    spare = (average_bits - 3) * sum(sizes.values())
    while True:
        gains = {
            n: (guessed(n, b) - guessed(n, b + 1)) / sizes[n] for n, b in bits.items() if b < 8 and sizes[n] <= spare
        }
        if not gains:
            return bits
        best = max(gains, key=gains.get)
        bits[best] += 1
        spare -= sizes[best]


def handed_out(bits: dict[str, int], order: Callable[[list[str]], list[str]]) -> dict[str, int]:
    """The same widths for the same sizes, given to the matrices of a size in another order."""
    other = {}
    for size in set(sizes.values()):
        group = [name for name in names if sizes[name] == size]
        other |= dict(zip(order(group), sorted((bits[name] for name in group), reverse=True), strict=True))
    return other


mixed = allocate(4)
TABLE, SHUFFLES = "embedding.weight", 8
shuffler = random.Random(48)
configurations = {
    "uniform, 4 bits": dict.fromkeys(names, 4),
    "mixed, by sensitivity": mixed,
    "mixed, at random": handed_out(mixed, lambda group: random.Random(48).sample(group, len(group))),
    "mixed, reversed": handed_out(mixed, lambda group: sorted(group, key=lambda name: moved_by[name].mean().item())),
    "mixed, but the table at 4 bits": mixed | {TABLE: 4},
    "the table as in mixed, the rest at 4 bits": dict.fromkeys(names, 4) | {TABLE: mixed[TABLE]},
}
reporting = data.windows("held_out", 48)
reporting_float = document_bits(course_model, reporting)


def reported(widths: dict[str, int]) -> Tensor:
    """Bits per byte that these widths cost each held-out document."""
    with rounded_in(workbench, widths) as rounded:
        return document_bits(rounded, reporting) - reporting_float


def shuffled_but_for_the_table() -> dict[str, int]:
    """The widths of `mixed`: the table keeps its own, the others are handed out at random among equal sizes."""
    widths = {TABLE: mixed[TABLE]}
    for size in sorted(set(sizes.values())):
        group = [name for name in names if sizes[name] == size and name != TABLE]
        widths |= dict(zip(shuffler.sample(group, len(group)), (mixed[name] for name in group), strict=True))
    return widths


cost_of_widths = {title: reported(widths) for title, widths in configurations.items()}
draws = torch.stack([reported(shuffled_but_for_the_table()) for _ in range(SHUFFLES)])  # (draws, documents)
shuffled_title = f"table as in mixed, the others shuffled, mean of {SHUFFLES}"
cost_of_widths[shuffled_title] = draws.mean(dim=0)
configurations[shuffled_title] = mixed  # as many bytes
uniform, by_sensitivity = cost_of_widths["uniform, 4 bits"], cost_of_widths["mixed, by sensitivity"]
tables.show(
    [
        {
            "configuration": title,
            "bytes of codes": f"{sum(widths[name] * sizes[name] for name in names) // 8:,}",
            "Δ bits per byte, held out": signed(cost_of_widths[title]),
            "minus uniform (paired)": signed(cost_of_widths[title] - uniform),
            "mixed, by sensitivity, minus this (paired)": signed(by_sensitivity - cost_of_widths[title]),
        }
        for title, widths in configurations.items()
    ]
)
means = draws.mean(dim=1)
print(
    f"the {SHUFFLES} shuffled ones lie between {means.min():+.4f} and {means.max():+.4f};",
    f"worse than mixed by sensitivity: {(means > by_sensitivity.mean()).sum()}",
)
tables.show(
    [
        {"bits": b, "matrices": ", ".join(n.removesuffix(".weight") for n in names if mixed[n] == b)}
        for b in sorted(set(mixed.values()))
    ]
)

# %% [markdown]
# The mixed configuration has the uniform one's bytes (both have the same scales, too: one a row), and costs less, by more than two standard errors of the paired difference. The random and the reversed one, at equal bytes, say why: *mixing* as such does not help. It must be the right matrices.
#
# Which ones? Take the controls one after another. Without the extra bits of one single matrix, the table that the model reads and speaks with, the gain is gone. With them, and everything else at 4 bits, it is there: about as much as in the mixed configuration, but for more bytes. So the table makes the gain. Who pays for it? Some other matrices must go down to 3 bits. Choose them by chance, and a part of the gain is lost (the last row: mixed by sensitivity is better by more than
# two standard errors, and better than each of the shuffled ones; mind that the ± counts documents, and not draws). So the allocation did two things right: it saw who needs more, and it saw who can give. Compare the table's number in the heat map's title with its width below.
#
# ### The whole model in one table, and in one picture
#
# Now every component with the scheme that it will ship with: 8 bits, weights with a scale a row, tensors with one affine scale. Each is rounded alone, in weights and tensors together; measured on held-out documents; the last row rounds them all at once. "Saves" is the share of
# the float file that becomes unnecessary; a component without weights saves none of the file, but lets its neighbours exchange 8-bit codes.


# %%
shorter = reporting[:24, :129]  # ids (documents, time)
shorter_float = document_bits(course_model, shorter)
all_bytes = sum(components.weight_bytes(course_model, name) for name in components.COMPONENTS if name != "positions")
made = components.recorded(course_model, shorter[:8, :-1])


def sqnr_of_weights(component: str) -> str:
    """SQNR of the component's matrices at 8 bits, the worst of them."""
    weights = [
        course_model.positions if n == "positions" else course_model.get_parameter(n)
        for n in components.weight_names(course_model, component)
    ]
    found = [metrics.sqnr_db(w, rounding.round_to_nearest(w, 8, w.shape[1])) for w in weights if w.dim() == 2]
    return f"{min(found):.0f}" if found else ""


noise = {
    name: min((metrics.sqnr_db(t, rounded_to_8_bits(t)) for t in outputs), default=math.nan)
    for name, outputs in made.items()
}
rows, saved_shares, each = [], {}, {}
for name in components.COMPONENTS:
    rounded = components.simulated(course_model, [name], first_calibration, 8, 8)
    each[name] = document_bits(rounded, shorter) - shorter_float
    size, outputs = components.weight_bytes(course_model, name), made[name]
    scales = 0 if name == "head" else 4 * sum(untied_course.get_parameter(n).shape[0] for n in matrices_of[name])
    count = sum(untied_course.get_parameter(n).numel() for n in matrices_of[name])
    saved = 3 * count - scales if size and count else 0
    saved_shares[name] = saved / all_bytes
    scheme = (
        ["int8, a scale a row"] * bool(count)
        + ["table of constants"] * (name == "positions")
        + ["uint8, one scale"] * bool(outputs)
    )
    rows.append(
        {
            "component": name,
            "float bytes": f"{size:,}" if size else ("tied" if name == "head" else "0"),
            "range of its tensors": f"{min(t.min().item() for t in outputs):.1f} … {max(t.max().item() for t in outputs):.1f}"
            if outputs
            else "",
            "scheme": "; ".join(scheme),
            "SQNR dB, weights": sqnr_of_weights(name),
            "SQNR dB, tensors (worst)": f"{noise[name]:.0f}" if outputs else "",
            "Δ bits per byte": signed(each[name]),
            "saves of the file": f"{saved_shares[name]:.1%}",
        }
    )
together = components.simulated(course_model, components.COMPONENTS, first_calibration, 8, 8).requires_grad_(False)
all_at_once = document_bits(together, shorter) - shorter_float
rows.append(
    {
        "component": "**all at once**",
        "float bytes": f"{all_bytes:,}",
        "range of its tensors": "",
        "scheme": "",
        "SQNR dB, weights": "",
        "SQNR dB, tensors (worst)": f"{metrics.sqnr_db(course_model(shorter[:8, :-1]), together(shorter[:8, :-1])):.0f} (logits)",
        "Δ bits per byte": signed(all_at_once),
        "saves of the file": f"{sum(saved_shares.values()):.1%}",
    }
)
tables.show(rows)

# %%
order = list(components.COMPONENTS)
fig, axes = plots.figure(columns=3, height=4.6)
means, spread = zip(*(with_error(each[name]) for name in order), strict=True)
axes[0].errorbar(means, range(len(order)), xerr=spread, fmt="o", color=plots.BLUE, ecolor="black", capsize=2)
axes[0].axvline(0, color=plots.GREY, linewidth=0.8)
axes[0].set_title("costs: Δ bits per byte")
axes[0].locator_params(axis="x", nbins=4)
axes[1].plot([noise[name] for name in order], range(len(order)), "s", color=plots.ORANGE)
axes[1].set_title("worst tensor: SQNR in dB")
axes[2].barh(
    range(len(order)), [100 * saved_shares[name] for name in order], color=plots.GREEN, hatch="//", edgecolor="white"
)
axes[2].set_title("saves: % of the file")
for ax in axes:
    ax.set_yticks(range(len(order)), order if ax is axes[0] else [""] * len(order))
    ax.set_ylim(len(order) - 0.5, -0.5)
    ax.grid(axis="y", color="#dddddd", linewidth=0.5)
plots.show(
    fig,
    caption="The whole model, in the order of the data flow, each component alone at 8 bits. Lines in the left panel: one standard error to each side.",
    alt="Three panels with a row for each component. Left: costs near zero for most components, largest for the residual stream. Middle: SQNR of the worst tensor of each component. Right: nearly all of the saving comes from the feed-forward matrices, then the attention matrices.",
)

# %% [markdown]
# What seems to cost most saves nothing of the file (the residual stream; mind its interval), and what saves most costs next to nothing (the two feed-forward matrices). That is the good news of this unit: the bytes and the trouble sit in different places, so one can have the one without the other. It fits that section 7's model with a *float* residual stream, at the same file size, lost about half as much in that sample. (On those 48 documents the difference
# may not have been decided; on 96 it was, see there.)

# %% [markdown]
# ## 9. Training with the error in sight
#
# At 4 bits the uniform model has lost something that one can measure. Rounding after training (PTQ) takes the weights as they are. *Quantization-aware training* (QAT) lets them move, with the rounding error in sight, until the rounded model is good again.
#
# > **The book says:** quantize the model first, then fine-tune it: each batch of inputs goes through `quantize_per_tensor` with scale 0.1 to `qint8`, then through the model, loss, `backward`, and an SGD step. At the end `convert(model.eval())` makes the model that is deployed.
# >
# > **What happens:** each of the three steps fails. The first says so; the second warns at most, and the third is silent.


# %%
def next_byte_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Cross-entropy of each byte of ids (batch, time) but the first, in nats."""
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


torch.manual_seed(49)
little = TransformerLM(ModelConfig(vocab_size=16, context=16, d_model=32, n_heads=2, n_layers=2, d_ff=64))
some_ids = torch.randint(0, 16, (8, 17))

print("1. quantized inputs")
print("   token ids:       ", end="")
errors.show_error(lambda: torch.quantize_per_tensor(some_ids, scale=0.1, zero_point=0, dtype=torch.qint8))
vectors = torch.quantize_per_tensor(torch.randn(8, 16, 32), scale=0.1, zero_point=0, dtype=torch.qint8)
print("   into a Linear:   ", end="")
errors.show_error(lambda: little.blocks[0].ffn(vectors))
print("   their gradient:  ", end="")
errors.show_error(lambda: vectors.requires_grad_(True))

print("2. backward through a dynamically quantized model")
frozen = int8.dynamic_int8(little)
parameters = dict(frozen.named_parameters())
before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
descent = torch.optim.SGD(parameters.values(), lr=0.1)
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    for _ in range(3):
        loss = next_byte_loss(frozen, some_ids)
        descent.zero_grad()
        print("   ", end="")
        errors.show_error(loss.backward)
        descent.step()
print("   gradients that are None:", sum(p.grad is None for p in parameters.values()), "of", len(parameters))
print("   parameters that moved:  ", sum(not torch.equal(before[name], p) for name, p in parameters.items()))
print("   a Linear among them:    ", any("attention" in name or "ffn" in name for name in parameters))
print("   warned:", any("autograd kernel was not registered" in str(warning.message) for warning in heard))

print("3. convert after plain training")
nothing_done = tq.convert(copy.deepcopy(little).eval())
print("   quantized modules:", sum("quantized" in type(m).__module__ for m in nothing_done.modules()), end="; ")
print("bytes of the file before and after:", metrics.file_bytes(little), metrics.file_bytes(nothing_done))

# %% [markdown]
# 1. Token ids cannot be quantized, and float layers cannot read quantized tensors. If they could, nothing would be learned: an integer has no gradient.
# 2. `loss.backward()` raises nothing. Every gradient is None, and the optimizer skips what has no gradient. The Linear layers are not even among the parameters. Whoever looks only for an exception trains nothing, as long as he likes. (A C++ warning may be heard, in
#    some processes only once; the line "warned" says whether it was here.)
# 3. `convert` replaces modules that were prepared. None was, so it returns a float model, without a word.
#
# > **What works:** the order *prepare, train, convert*, on float weights. In each forward pass a *fake quantizer* replaces a weight $w$ by the number that it will be rounded to, $\hat w = s \cdot \mathrm{clamp}(\mathrm{round}(w / s), -q, q)$. In the backward pass rounding counts as the
# > identity (the *straight-through estimator*): the gradient for $\hat w$ is given to $w$, where $w / s$ was not clamped. $s$ is the scale of the row, $q = 2^{b-1} - 1$ the largest code.
#
# ### Two decisions that one must not leave to the default
#
# **Which fake quantizer?** The fused one of PyTorch's default QAT qconfig makes its scale from two numbers: $\max(\max w / 127,\ |\min w| / 128)$, for each row (for the whole matrix with qnnpack). So a row whose largest weight is positive is divided by 127, the others mostly by 128. `convert` divides the largest magnitude by 127.5, whatever its sign. So the converted weights are other ones than those that training has seen. The plain `FakeQuantize` uses the same rule as `convert`:


# %% tags=["nbval-check-output"]
def plain_weights(bits: int, full_range: bool = False) -> Callable[[], nn.Module]:
    """A plain FakeQuantize for weights: symmetric, one scale a row, always from the current weights."""
    largest_code = 2 ** (bits - 1) - 1
    return tq.FakeQuantize.with_args(
        observer=tq.MovingAveragePerChannelMinMaxObserver.with_args(averaging_constant=1.0),
        quant_min=-largest_code - full_range,
        quant_max=largest_code,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
    )


two_rows = torch.tensor([[1.0, -0.5], [0.5, -1.0]])
for title, quantizer in (
    ("fused", tq.default_fused_per_channel_wt_fake_quant),
    ("plain", plain_weights(8, full_range=True)),
):
    watcher = quantizer()
    watcher(two_rows)
    print(
        f"{title}: the rows (1, -0.5) and (0.5, -1) have the scales 1 over",
        [round(1 / s, 1) for s in watcher.scale.tolist()],
    )

generator = torch.Generator().manual_seed(50)
single = nn.Sequential(nn.Linear(256, 64, bias=False))
single[0].weight = nn.Parameter(torch.randn(64, 256, generator=generator))
for title, quantizer in (
    ("fused", tq.default_fused_per_channel_wt_fake_quant),
    ("plain", plain_weights(8, full_range=True)),
):
    watched = copy.deepcopy(single).train()
    watched.qconfig = tq.QConfig(activation=tq.default_fake_quant, weight=quantizer)
    tq.prepare_qat(watched, inplace=True)
    watched(torch.randn(8, 256, generator=generator))
    watched.eval().apply(tq.disable_observer)
    seen = watched[0].weight_fake_quant(watched[0].weight).detach()
    shipped = tq.convert(watched)[0].weight().dequantize()
    other = (seen - shipped).abs() > 1e-6
    print(f"{title}: {other.float().mean():.1%} of the converted weights differ from those that training has seen")

# %% [markdown]
# **When does the scale stand still?** The scale follows the largest weight of its row. While it moves, *all* codes of the row may move with it. So after half of the steps the observers are switched off (`tq.disable_observer`), and the scales are frozen. Then the weights must
# settle, too: with a constant learning rate they go on jumping over the rounding thresholds, and some leave the frozen range and are clamped. So from the same step on the **learning rate falls linearly to zero**. For step $i$ of $n$, with $h = n // 2$:
#
# $$\mathrm{lr}_i = \mathrm{lr} \cdot \min\left(1, \frac{n - i}{n - h}\right)$$
#
# By hand, $n = 6$, $h = 3$: factors 1, 1, 1, 1, 2/3, 1/3; the observers are switched off before step 3 is computed.
#
# Two given functions do what depends on PyTorch's insides. `weight_only(bits)` is the qconfig: weights fake-quantized, activations left alone. `hardened(trainee)` is its `convert`: a copy in which each fake-quantized Linear layer is a plain one that holds the rounded weights, exactly
# those that the layer's own quantizer makes. (`tq.convert` is of no use here: it asks the qconfig for an observer of the activations, and `weight_only` has none.)


# %%
def weight_only(bits: int) -> tq.QConfig:
    """Fake quantization of the weights to `bits` bits; activations stay float."""
    return tq.QConfig(activation=nn.Identity, weight=plain_weights(bits))


@torch.no_grad()
def hardened(trainee: nn.Module) -> nn.Module:
    """A copy, in the same mode, whose fake-quantized Linear layers are plain ones with the rounded weights."""
    copied = copy.deepcopy(trainee)
    for name, layer in trainee.named_modules(remove_duplicate=False):
        if isinstance(layer, nnqat.Linear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            plain.weight.copy_(layer.weight_fake_quant(layer.weight))
            if layer.bias is not None:
                plain.bias.copy_(layer.bias)
            copied.set_submodule(name, plain.train(trainee.training))
    return copied


# %% [markdown]
# ### Exercise 4.8: QAT with a schedule
# *Difficulty 4 of 5 · 35 minutes · 3 points*
#
# Write `qat`. The model maps ids (batch, time) to logits. It may hold parts that behave differently in training (dropout), so modes matter.
#
# 1. A copy of the model, in training mode; `weight_only(bits)`; `tq.prepare_qat`.
# 2. *Then* Adam with all parameters of the prepared copy, learning rate `lr`. (Without `inplace=True`, `prepare_qat` copies the model, and an optimizer that was made before holds the parameters of another one.)
# 3. One step for each batch in `batches`, in order: before step $h$ the observers go off; each step has the learning rate of the equation above (`optimizer.param_groups[0]["lr"] = …`); the loss is the cross-entropy of each byte but the first, as in `next_byte_loss`.
# 4. Eval mode. *Then* `hardened`. Return both.


# %% nbgrader={"grade": false, "grade_id": "ex_4_8", "locked": false, "schema_version": 3, "solution": true, "task": false}
def qat(model: nn.Module, batches: list[Tensor], bits: int, lr: float) -> tuple[nn.Module, nn.Module]:
    """Quantization-aware training of a copy of `model`, one step a batch; then its rounded version.

    Parameters
    ----------
    model : Module
        Float: ids (batch, time) to logits (batch, time, vocabulary); is not changed, nor its mode. Parameters that are
        frozen in it (without `requires_grad`) stay frozen in the copy; at least one is not.
    batches : list of Tensor, int64, (batch, time + 1)
        At least two; the last one may have fewer rows.
    bits : int
        Of the weights' codes.
    lr : float
        Learning rate of Adam until the scales are frozen; then it falls linearly to zero.

    Returns
    -------
    (Module, Module)
        The trained copy, fake-quantized, observers off, in eval mode; and what `hardened` makes of it.
    """
    ### BEGIN SOLUTION
    trainee = copy.deepcopy(model).train()
    trainee.qconfig = weight_only(bits)
    tq.prepare_qat(trainee, inplace=True)
    optimizer = torch.optim.Adam(trainee.parameters(), lr=lr)
    half = len(batches) // 2
    for i, ids in enumerate(batches):
        if i == half:
            trainee.apply(tq.disable_observer)
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (len(batches) - i) / (len(batches) - half))
        optimizer.zero_grad()
        next_byte_loss(trainee, ids).backward()
        optimizer.step()
    trainee.eval()
    return trainee, hardened(trainee)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_4_8_check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 4.8: run this cell.
import copy
import math

import torch
import torch.ao.quantization as tq
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from helpers import checks, witness


@checks.isolated
def check_ex_4_8() -> None:
    class Drop(nn.Module):
        """A stand-in for dropout without chance: in training every third feature is dropped."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            keep = (torch.arange(x.shape[-1]) % 3 != 0).to(x.dtype)
            return x * keep * 1.5 if self.training else x

    class Bigram(nn.Module):
        """A small language model for the check: guesses the next id from the present one."""

        def __init__(self, vocabulary: int, width: int) -> None:
            super().__init__()
            self.embedding = nn.Embedding(vocabulary, width)
            self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
            self.drop = Drop()
            self.head = nn.Linear(width, vocabulary, bias=False)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled():
                watching = tuple(
                    int(q.observer_enabled[0]) for q in self.modules() if isinstance(q, tq.FakeQuantizeBase)
                )
                events.append((ids.clone(), self.drop.training, watching))
            x = self.embedding(ids)
            return self.head(x + self.down(self.drop(F.gelu(self.up(x)))))

    layers = ("up", "down", "head")
    events: list[tuple] = []  # forward passes (ids, mode, observers), and steps (optimizer, groups, parameters, values)

    before: list[torch.Tensor] = []  # the weights that the present step found

    def note_weights(optimizer: torch.optim.Optimizer, *_: object) -> None:
        before[:] = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]

    def note_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
        groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        held = [p for group in optimizer.param_groups for p in group["params"]]
        values = [(w, None if p.grad is None else p.grad.clone()) for w, p in zip(before, held, strict=True)]
        events.append((optimizer, groups, held, values))

    def text(seed: int, rows: int, vocabulary: int) -> torch.Tensor:
        """Ids in which each is mostly followed by the same one."""
        generator = torch.Generator().manual_seed(seed)
        follower = torch.randperm(vocabulary, generator=generator)
        ids = torch.randint(0, vocabulary, (rows, 13), generator=generator)
        for t in range(1, 13):
            stray = torch.rand(rows, generator=generator) < 0.15
            ids[:, t] = torch.where(stray, ids[:, t], follower[ids[:, t - 1]])
        return ids

    def cost(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        guesses = model(ids[:, :-1]).transpose(1, 2)  # (batch, vocabulary, time)
        return F.cross_entropy(guesses, ids[:, 1:])

    def trained(seed: int, vocabulary: int, width: int) -> nn.Module:
        torch.manual_seed(seed)
        model = Bigram(vocabulary, width).eval()
        descent = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(60):
            descent.zero_grad()
            cost(model, text(seed, 640, vocabulary)[16 * (step % 40) :][:16]).backward()
            descent.step()
        model.zero_grad()
        return model

    def row_scale(weight: torch.Tensor, bits: int) -> torch.Tensor:
        return weight.detach().abs().amax(1, keepdim=True) * 2 / (2**bits - 2)

    def gradient_at(
        model: nn.Module, weights: dict, scales: dict, ids: torch.Tensor, bits: int, shift: int = 1
    ) -> dict:
        """The gradient of the loss at these weights, from torch operations: straight-through estimation written out."""
        codes = 2 ** (bits - 1) - 1
        leaves = {
            name: weight.clone().requires_grad_(model.get_parameter(name).requires_grad)
            for name, weight in weights.items()
        }
        used = dict(leaves)
        for name, scale in scales.items():
            weight = leaves[f"{name}.weight"]
            steps = (weight.detach() / scale).round()
            passes = torch.where(steps.abs() <= codes, weight, weight.detach())  # no gradient where it is clamped
            used[f"{name}.weight"] = passes + (steps.clamp(-codes, codes) * scale - passes).detach()
        guesses = torch.func.functional_call(model, used, (ids[:, :-1],)).transpose(1, 2)
        F.cross_entropy(guesses, ids[:, shift : shift + guesses.shape[2]]).backward()
        return {name: leaf.grad for name, leaf in leaves.items() if leaf.requires_grad}

    def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([tensors[name].flatten() for name in sorted(tensors)])

    def judge_gradients(
        kept: nn.Module, batches: list[torch.Tensor], bits: int, weights: list[dict], found: list[dict]
    ) -> None:
        """Each step had the gradient of the loss, at the weights that it found."""
        half, twin = len(batches) // 2, copy.deepcopy(kept).train()
        still = {name: row_scale(weights[half - 1][f"{name}.weight"], bits) for name in layers}

        def expected(step: int, shift: int = 1) -> torch.Tensor:
            scales = still
            if step < half:
                scales = {name: row_scale(weights[step][f"{name}.weight"], bits) for name in layers}
            return flat(gradient_at(twin, weights[step], scales, batches[step], bits, shift))

        right = [expected(step) for step in range(len(batches))]
        got = [
            flat({name: g for name, g in grads.items() if kept.get_parameter(name).requires_grad}) for grads in found
        ]

        def apart(wanted: list[torch.Tensor]) -> list[float]:
            return [((g - w).norm() / (w.norm() + 1e-12)).item() for g, w in zip(got, wanted, strict=True)]

        far = apart(right)
        if sum(f > 1e-3 for f in far) <= 1:  # one weight may lie on a rounding threshold
            return
        fits = lambda wanted: sum(f > 1e-3 for f in apart(wanted)) <= 1  # noqa: E731
        assert not fits([right[0]] + [g + r for g, r in zip(got[:-1], right[1:], strict=True)]), (
            "gradients pile up: call optimizer.zero_grad() in each step."
        )
        assert not fits([expected(step, shift=0) for step in range(len(batches))]), (
            "the loss asks for the byte that the model has just read: the target is the *next* byte, ids[:, 1:]."
        )
        factors = [(g.norm() / r.norm()).item() for g, r in zip(got, right, strict=True)]
        if fits([k * r for k, r in zip(factors, right, strict=True)]):
            counts = [batch[:, 1:].numel() for batch in batches]
            assert any(abs(k / n - 1) > 1e-2 for k, n in zip(factors, counts, strict=True)), (
                "your loss is a sum, as many times the expected one as there are bytes to predict: take the mean over them."
            )
            assert max(factors) > 1.001 * min(factors), (
                f"your loss is {factors[0]:.4g} times the expected one: average over all bytes of the batch, in nats, as F.cross_entropy does."
            )
            raise AssertionError(
                f"your gradients point the right way, and have another length (in step {far.index(max(far))} {factors[far.index(max(far))]:.3g} times the right one, not the same factor in each step): do not clip or scale them."
            )
        worst = far.index(max(far))
        raise AssertionError(
            f"the gradient in step {worst} is not that of the loss (relative difference {far[worst]:.2g}): it is the cross-entropy of each byte but the first, averaged, with the plain targets ids[:, 1:], through the fake-quantized weights."
        )

    def judge_steps(weights: list[dict], found: list[dict], rates: list[float], end: dict[str, torch.Tensor]) -> None:
        """Nothing but Adam has moved the weights."""
        for name, first in weights[0].items():
            if all(grads.get(name) is None for grads in found):
                same = all(torch.equal(first, after[name]) for after in [*weights[1:], end])
                assert same, (
                    f"{name} has moved without a gradient: something else than the optimizer changes the weights."
                )
                continue
            leaf = nn.Parameter(first.clone())
            adam = torch.optim.Adam([leaf])
            for step, (grads, rate, after) in enumerate(zip(found, rates, [*weights[1:], end], strict=True)):
                adam.param_groups[0]["lr"] = rate
                leaf.grad = grads[name].clone()
                adam.step()
                when = "the last step" if step == len(rates) - 1 else f"step {step}"
                assert torch.allclose(leaf, after[name], rtol=1e-4, atol=1e-5), (
                    f"after {when} something else than the optimizer has changed {name}: only its steps should move the weights."
                )

    def judge_record(noted: list[tuple], batches: list[torch.Tensor], lr: float, needed: set[int]) -> None:
        """Is the schedule right? Judged from what was recorded, not from its effects."""
        passes, made, last = [], [], None
        for event in noted:
            if len(event) == 3:
                last = event
            else:
                passes.append(last)
                made.append(event)
                last = None
        count, half = len(batches), len(batches) // 2
        kinds = {type(optimizer) for optimizer, *_ in made}
        assert made, "no optimizer of torch.optim has made a step: use torch.optim.Adam, and call optimizer.step()."
        assert kinds == {torch.optim.Adam}, (
            f"the steps were made by {', '.join(sorted(k.__name__ for k in kinds))}: use torch.optim.Adam."
        )
        assert len({id(optimizer) for optimizer, *_ in made}) == 1, (
            "there was more than one optimizer: Adam remembers earlier gradients, so make it once, before the loop."
        )
        assert len(made) >= count, (
            f"the optimizer made {len(made)} steps for {count} batches: one step for each batch, the last one included."
        )
        assert len(made) == count, (
            f"the optimizer made {len(made)} steps for {count} batches, more than one for some: go through the batches once."
        )
        usual = torch.optim.Adam([torch.zeros(1)]).defaults
        for group in (group for _, groups, *_ in made for group in groups):
            assert group["weight_decay"] == 0, "Adam pulls the weights towards 0: leave weight_decay at its default, 0."
            assert all(group[k] == usual[k] for k in ("betas", "eps", "amsgrad", "maximize")), (
                "leave Adam's other settings (betas, eps, amsgrad, maximize) as they are by default."
            )
        assert all(entry is not None for entry in passes), "a step was made without a forward pass before it."
        assert all(entry[2] for entry in passes), (
            "a model without fake quantizers was trained: the prepared copy itself must make the forward passes."
        )
        assert needed <= {id(p) for p in made[0][2]}, (
            "the optimizer does not hold all parameters of the prepared copy: give it trainee.parameters()."
        )
        assert all(entry[1] for entry in passes), (
            "the copy was in eval mode while it was trained: dropout must be on in training."
        )
        width = batches[0].shape[1] - 1
        assert all(entry[0].shape[1] >= width for entry in passes), (
            f"the model has read {passes[0][0].shape[1]} bytes of each row instead of {width}: all but the last, ids[:, :-1]."
        )
        matches = [torch.equal(entry[0][:, :width], ids[:, :-1]) for entry, ids in zip(passes, batches, strict=True)]
        assert all(matches), (
            f"step {matches.index(False)} did not read batch {matches.index(False)}: take the batches in order, each once."
        )
        watched = [sum(entry[2]) for entry in passes]
        assert watched != [3] * count, (
            "the observers were switched off only at the end: the scales should stand still for the second half of the steps."
        )
        assert sum(watched) > 3 or half < 2, (
            "the scales are those of the untrained weights: switch the observers off after half of the steps, not at once."
        )
        assert watched == [3] * half + [0] * (count - half), (
            f"the observers were on in {sum(w > 0 for w in watched)} steps, and should be on in the first {half} of {count}: the frozen scales are not those of step {half}. Switch them off just before step len(batches) // 2 is computed."
        )
        due = [lr if i <= half else lr * (count - i) / (count - half) for i in range(count)]
        close = lambda one, other: math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-12)  # noqa: E731
        for number in range(len(made[0][1])):
            rates = [float(groups[number]["lr"]) for _, groups, *_ in made]
            if all(close(one, other) for one, other in zip(rates, due, strict=True)):
                continue
            assert not all(close(rate, lr) for rate in rates), (
                "the learning rate does not fall while the scales are frozen: set optimizer.param_groups[0]['lr'] in each step."
            )
            assert close(rates[1], lr) or half < 2, (
                "the learning rate falls from the beginning: it is lr until step len(batches) // 2, and falls from there."
            )
            early = all(close(rates[i], due[i + 1]) for i in range(count - 1)) and not close(rates[half], lr)
            assert not early, (
                "the learning rate falls one step too early: step len(batches) // 2 itself still has the full rate."
            )
            late = [lr, *due[:-1]]
            assert not all(close(one, other) for one, other in zip(rates, late, strict=True)), (
                "each step has the learning rate of the step before it: set the rate before optimizer.step(), not behind it."
            )
            first = next(i for i in range(count) if not close(rates[i], due[i]))
            raise AssertionError(
                f"in step {first} of {count} the learning rate was {rates[first]:.6g}, and should be {due[first]:.6g}: lr * min(1, (n - i) / (n - h)), set before the step is made."
            )

    def judge(seed: int, vocabulary: int, width: int, bits: int, count: int, lr: float, odd: bool = False) -> None:
        """`odd`: the model comes in training mode, and its embedding is frozen."""
        model = trained(seed, vocabulary, width).train(odd)
        model.embedding.requires_grad_(not odd)
        kept = copy.deepcopy(model)
        rows = 16 if count < 60 else 20
        batches = list(text(seed + 1, rows * count, vocabulary).split(rows))
        batches[-1] = batches[-1][:5]
        events.clear()
        recorders = register_optimizer_step_pre_hook(note_weights), register_optimizer_step_post_hook(note_step)
        try:
            with checks.untouched(batches=batches):
                answer = qat(model, batches, bits, lr)
        except AssertionError as error:
            if "Embedding quantization" in str(error):
                raise AssertionError(
                    "tq.convert refuses the embedding, and would choose other scales and 8 bits for the rest. Return hardened(trainee)."
                ) from None
            if "training mode" not in str(error):
                raise
            raise AssertionError("prepare_qat wants a model in training mode: call .train() on the copy.") from None
        except ValueError as error:
            if "empty parameter list" not in str(error):
                raise
            raise AssertionError("a converted model has no parameters left: train first, convert last.") from None
        finally:
            for recorder in recorders:
                recorder.remove()
        noted = events.copy()
        assert torch.is_grad_enabled(), (
            "your code switches gradients off for the whole notebook: use `with torch.no_grad():`, which ends."
        )
        assert isinstance(answer, tuple | list) and len(answer) == 2, (
            "qat should return two models: the trained copy and its hardened version."
        )
        trainee, final = answer
        assert isinstance(trainee, nn.Module) and isinstance(final, nn.Module), "qat should return two models."
        changed = witness.unchanged(kept, model)
        assert not changed, (
            f"your function changed the model that it was given ({changed}): train a copy, copy.deepcopy(model)."
        )
        fakes = {n: m for n, m in trainee.named_modules() if isinstance(m, tq.FakeQuantizeBase)}
        assert fakes, (
            "the trained copy has no fake quantizers: you trained a float copy. Set the qconfig, then tq.prepare_qat (not prepare)."
        )
        assert len(fakes) == 3, (
            f"the trained copy has {len(fakes)} fake quantizers instead of 3, one for each Linear layer's weights: activations stay float. Use the qconfig weight_only(bits)."
        )
        largest = 2 ** (bits - 1) - 1
        assert all((int(m.quant_min), int(m.quant_max)) == (-largest, largest) for m in fakes.values()), (
            f"the weights are not fake-quantized to {bits} bits: use weight_only(bits)."
        )
        assert all(int(m.fake_quant_enabled[0]) == 1 for m in fakes.values()), "fake quantization is switched off."
        names = {id(p): name for name, p in trainee.named_parameters()}
        thawed = [
            n for n, p in trainee.named_parameters() if p.requires_grad and not kept.get_parameter(n).requires_grad
        ]
        assert not thawed, (
            f"{thawed[0]} was frozen in the model that you were given, and can be trained in your copy: leave frozen what is frozen."
        )
        start = {name: p.detach() for name, p in kept.named_parameters()}
        end = {name: p.detach() for name, p in trainee.named_parameters()}
        steps = [event for event in noted if len(event) == 4]
        some = any(grad is not None and bool(grad.any()) for *_, values in steps for _, grad in values)
        assert not steps or some or not all(id(p) in names for p in steps[0][2]), (
            "every gradient was zero when the optimizer made its step: zero_grad stands between backward and step. Call it before backward."
        )
        assert not all(torch.equal(end[f"{n}.weight"], start[f"{n}.weight"]) for n in layers), (
            "no weight has moved: does the optimizer hold the parameters of the *prepared* copy? One that was made before prepare_qat holds those of another model."
        )
        assert not any(int(m.observer_enabled[0]) for m in fakes.values()), (
            "the observers are still on: switch them off before step len(batches) // 2, trainee.apply(tq.disable_observer)."
        )
        judge_record(noted, batches, lr, {i for i, n in names.items() if kept.get_parameter(n).requires_grad})
        seen = [
            [(names[id(p)], *pair) for p, pair in zip(held, values, strict=True) if id(p) in names]
            for _, _, held, values in steps
        ]
        weights = [start | {name: value for name, value, _ in step} for step in seen]
        found = [{name: grad for name, _, grad in step if grad is not None} for step in seen]
        judge_gradients(kept, batches, bits, weights, found)
        judge_steps(weights, found, [float(groups[0]["lr"]) for _, groups, *_ in steps], end)
        for n in layers:
            frozen = row_scale(weights[count // 2 - 1][f"{n}.weight"], bits)[:, 0]
            assert torch.allclose(getattr(trainee, n).weight_fake_quant.scale, frozen, rtol=1e-4), (
                "the frozen scales are not those of step len(batches) // 2: switch the observers off just before that step is computed."
            )
        assert not trainee.training, "the trained copy should be in eval mode."
        awake = [n for n, m in trainee.named_modules() if m.training]
        assert not awake, (
            f"{awake[0]} of the trained copy is still in training mode: call trainee.eval(), which reaches every part."
        )
        frozen_now = [
            n for n, p in trainee.named_parameters() if kept.get_parameter(n).requires_grad and not p.requires_grad
        ]
        assert not frozen_now, (
            f"{frozen_now[0]} of the trained copy is frozen, and was not in the model that you were given: whoever trains on cannot. Leave requires_grad as it is."
        )
        for which, one in (("trained copy", trainee), ("second model", final)):
            extra = sorted(set(vars(one)) - set(vars(kept)) - {"qconfig"})
            assert not extra, f"`{extra[0]}` is new in the {which}: give nothing but the two models."
        assert not final.training and not any(isinstance(m, Drop) and m.training for m in final.modules()), (
            "the second model is in training mode, with dropout on: call .eval() before hardened."
        )
        assert not any(isinstance(m, tq.FakeQuantizeBase) for m in final.modules()), (
            "the second model still fake-quantizes: return what hardened makes of the trained copy."
        )
        for which, one in (("trained copy", trainee), ("second model", final)):
            shared = witness.independent(one, model)
            assert not shared, f"the {which} is not independent of the model that you were given: {shared}."
        shared = witness.independent(final, trainee)
        assert not shared, (
            f"the second model is not independent of the trained copy: {shared}. Return hardened(trainee)."
        )
        for n in layers:
            assert type(getattr(final, n)) is nn.Linear, (
                f"{n} is a {type(getattr(final, n)).__module__}.{type(getattr(final, n)).__name__} in the second model, not a plain nn.Linear: tq.convert chooses other scales, and 8 bits. Return hardened(trainee)."
            )
            values = max(len(row.unique()) for row in getattr(final, n).weight.detach())
            assert values <= 2 * largest + 1, (
                f"a row of {n} in the second model has {values} different weights; {bits} bits allow {2 * largest + 1}: return hardened(trainee)."
            )
        with torch.no_grad():
            shipped = {f"{n}.weight": getattr(trainee, n).weight_fake_quant(getattr(trainee, n).weight) for n in layers}
        for name, value in (end | shipped).items():
            apart = (final.get_parameter(name) - value).abs().max().item()
            assert apart <= 1e-6, (
                f"{name} of the second model is up to {apart:.2g} away from what training has seen (for a Linear layer: its weights, rounded with the frozen scales). Return hardened(trainee), called after the last step."
            )
        kinds, built = ({n: type(m).__name__ for n, m in one.named_modules()} for one in (kept, final))
        other = next((n for n in kinds if kinds[n] != built.get(n)), None)
        assert other is None, (
            f"in the second model {other} is {built.get(other, 'gone')}, and was {kinds[other]}: only the weights should be other ones. Return hardened(trainee)."
        )
        ids = text(seed + 2, 32, vocabulary)[:, :-1]
        with torch.no_grad():
            difference = (final(ids) - trainee(ids)).abs().max().item()
        assert difference < 1e-4, (
            f"the second model's logits differ from the trained copy's by up to {difference:.2g}: its weights must be those that training has seen, with the frozen scales. Call hardened after the last step."
        )

    with checks.check(
        "4.8", "the copy was trained with frozen scales and a falling rate, and its rounded version computes the same"
    ):
        judge(481, 12, 16, bits=3, count=24, lr=1e-2)
        judge(482, 9, 20, bits=2, count=31, lr=2e-2, odd=True)
        judge(483, 8, 12, bits=4, count=2, lr=5e-2)
        judge(483, 8, 12, bits=6, count=3, lr=1e-3)
        judge(484, 6, 8, bits=8, count=70, lr=1e-2)
    ### BEGIN HIDDEN TESTS
    judge(4811, 10, 12, bits=4, count=19, lr=2e-2, odd=True)
    judge(4812, 7, 24, bits=3, count=30, lr=1e-2)
    judge(4815, 9, 8, bits=3, count=2, lr=5e-2)
    judge(4816, 6, 8, bits=6, count=66, lr=1e-3)
    judge(4817, 8, 12, bits=8, count=3, lr=1e-2)
    start, stream = trained(4813, 8, 12), list(text(4814, 64, 8).split(16))
    twice = [qat(start, stream, 4, 1e-2)[1].state_dict().values() for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*twice, strict=True)), "a second training gives another model."
    ### END HIDDEN TESTS


check_ex_4_8()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Write the six verbs in their order before you write the loop: copy, prepare, optimize, freeze, eval, harden. Which of them work on the same object?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `for i, ids in enumerate(batches):` and, in this order: observers off if `i == len(batches) // 2`; set the learning rate; `zero_grad`, loss, `backward`, `step`. The factor is `min(1, (n - i) / (n - n // 2))`.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `trainee = copy.deepcopy(model).train()`, `trainee.qconfig = …`, `tq.prepare_qat(trainee, inplace=True)`, `torch.optim.Adam(…)`; the loop; `trainee.eval()`; `return trainee, hardened(…)`.
# </details>

# %% [markdown]
# ### What is it worth on the course model?
#
# The uniform 4-bit configuration of section 8 is the opponent: every matrix, the shared table included, a scale a row. One thing needs care: head and embedding are one table. The head becomes a fake-quantized Linear layer; the embedding must read *the same rounded rows*, or
# training would see another model than the one that is shipped. `RoundedTable` does that.
#
# The first thing to try is your own function. Two things get in its way. Section 1 has frozen `course_model`; nothing in it can be trained, so hand over a copy that can. And the tie: see what becomes of it in two steps.


# %%
def after_two_steps() -> str:
    """Your function on the course model, for two small batches (solve exercise 4.8 first)."""
    trainable = copy.deepcopy(course_model).requires_grad_(True)
    _, rounded = qat(trainable, list(first_calibration.split(2)), 4, 1e-4)
    apart = (rounded.head.weight - rounded.embedding.weight).abs().max().item()
    return f"head and embedding of the hardened model are two matrices now, and differ by up to {apart:.3f}"


print("as it is, frozen: ", end="")
errors.show_error(lambda: qat(course_model, list(first_calibration.split(2)), 4, 1e-4))
errors.show_result(after_two_steps)

# %% [markdown]
# The head was rounded and the embedding was not, without a word. `RoundedTable` keeps them together.
#
# A few steps on short windows are all that a notebook has time for. The controls: PTQ, and the float model tuned for as many steps on the same batches and *then* rounded. Without the second one nobody could tell QAT from a little more training.
#
# And there are two things to aim at. The *next byte*, as in the exercise; or the *float model itself*: the loss is then the cross-entropy to its probabilities, which differs from the KL of section 8 by a constant. This is called distillation. It needs no right answers, and gives 256 numbers to learn
# from at each position in place of one.


# %%
class RoundedTable(nn.Module):
    """An embedding that reads the rows of a fake-quantized head."""

    def __init__(self, head: nnqat.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.head.weight_fake_quant(self.head.weight))


def imitation_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Cross-entropy to the float model's probabilities, in nats."""
    with torch.no_grad():
        wanted = course_model(ids[:, :-1]).softmax(dim=-1).flatten(0, 1)
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), wanted)


def tuned(
    bits: int | None, batches: list[Tensor], aim: Callable[[nn.Module, Tensor], Tensor], lr: float
) -> tuple[nn.Module, list[float]]:
    """The course model after a step for each batch, float or fake-quantized; the share of codes that each step changed."""
    student = copy.deepcopy(course_model).requires_grad_(True).train()
    if bits is not None:
        student.qconfig = weight_only(bits)
        tq.prepare_qat(student, inplace=True)
        student.embedding = RoundedTable(student.head)
    descent = torch.optim.Adam(student.parameters(), lr=lr)
    flips, codes, count = [], None, len(batches)
    for number, batch in enumerate(batches):
        if number == count // 2:
            student.apply(tq.disable_observer)
        for group in descent.param_groups:
            group["lr"] = lr * min(1, (count - number) / (count - count // 2))
        loss = aim(student, batch)
        descent.zero_grad()
        loss.backward()
        if bits is not None:
            layer = student.blocks[0].ffn.up
            now = (layer.weight.detach() / layer.weight_fake_quant.scale[:, None]).round()
            flips += [] if codes is None else [(now != codes).float().mean().item()]
            codes = now
        descent.step()
    return student.eval(), flips


@torch.no_grad()
def all_rounded_to(model: TransformerLM, bits: int) -> TransformerLM:
    """A copy whose every matrix is rounded, a scale a row; the shared table once."""
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        if parameter.dim() == 2:
            parameter.copy_(rounding.round_to_nearest(parameter, bits, parameter.shape[1]))
    return copied


STEPS = 20
training_ids = data.encode(data.split_text("training"))
drawn_batches = data.random_batches(training_ids, 128, 8, torch.Generator().manual_seed(0))
batches = [
    torch.cat([inputs, targets[:, -1:]], dim=1) for inputs, targets in (next(drawn_batches) for _ in range(STEPS))
]
float_tuned, _ = tuned(None, batches, next_byte_loss, 1e-4)
trainee, flips = tuned(4, batches, next_byte_loss, 1e-4)
imitator, _ = tuned(4, batches, imitation_loss, 2e-4)
results = {
    "float, tuned": document_bits(float_tuned, reporting) - reporting_float,
    "PTQ, uniform 4 bits": cost_of_widths["uniform, 4 bits"],
    "float, tuned, then rounded to 4 bits": document_bits(all_rounded_to(float_tuned, 4), reporting) - reporting_float,
    "QAT, uniform 4 bits, next byte": document_bits(trainee, reporting) - reporting_float,
    "QAT, uniform 4 bits, imitation": document_bits(imitator, reporting) - reporting_float,
    "PTQ, mixed, same bytes": cost_of_widths["mixed, by sensitivity"],
}
tables.show(
    [
        {"model": name, "Δ bits per byte, held out": signed(change)}
        | {
            f"{short} minus this (paired)": "" if name == full else signed(results[full] - change)
            for short, full in (
                ("QAT next byte", "QAT, uniform 4 bits, next byte"),
                ("QAT imitation", "QAT, uniform 4 bits, imitation"),
            )
        }
        for name, change in results.items()
    ]
)
with torch.no_grad():
    probe = reporting[:2, :64]
    rounded_rows = trainee.head.weight_fake_quant(trainee.head.weight)
    final = hardened(trainee)
    final.embedding = nn.Embedding.from_pretrained(final.head.weight)
    print("hardened and fake-quantized logits differ by at most", (final(probe) - trainee(probe)).abs().max().item())
    print("different weights in a row of the head, at most:", max(len(row.unique()) for row in rounded_rows))

fig, ax = plots.figure(width=7, height=2.8)
ax.plot(range(1, STEPS), [100 * share for share in flips], "o-", color=plots.BLUE, markersize=3)
ax.axvline(STEPS // 2, color=plots.GREY, linestyle="--")
ax.text(STEPS // 2 + 0.3, 100 * max(flips) * 0.9, "scales frozen, the rate falls", color=plots.GREY)
ax.set_ylim(0)
ax.set_xticks(range(0, STEPS + 1, 5))
ax.set_xlabel("training step")
ax.set_ylabel("codes that changed, %")
plots.show(
    fig,
    caption="How many of the codes of one matrix (block 0, up) each step of QAT changes.",
    alt="A line over the training steps: the share of changed codes is highest in the first half, and falls towards zero after the scales are frozen.",
)

# %% [markdown]
# - With either aim QAT beats both opponents by more than two standard errors: rounding at once, and the same training without the rounding in sight. The float model itself gets *worse* by these steps (first row): its training had ended with a learning rate of zero, and a few steps at a higher one probably disturb it.
#   QAT towards the next byte has the same steps, and wins all the same. Imitation aims at the float model as it was. (Imitation has twice the other's learning rate. Each rate is the best of six for its aim, on 32 validation documents: `make bench BENCH=components` measures them, and the table in `benchmarks/results/components.md` shows that imitation is ahead at each of the six.)
# - Compare the last row. A better *choice* of the widths, without any training, buys more than these few steps. So do first what needs no training: a scale for each row, then mixed widths (neither is free: scales are bytes, and mixed widths need a format and kernels that can hold them); training comes last.
# - Few steps move few codes, fewer from step to step, and hardly any at the end.
#
# There is more to win where more was lost: at 3 and 2 bits. That takes more steps than a notebook has time for. The script `benchmarks/qat.py` is the longer run, with several widths and granularities, the float control, paired intervals and its log; what it found stands in
# `benchmarks/results/qat.md` (both in the course's own folder).

# %% [markdown]
# ## 10. Shipping
#
# ### The tie
#
# Section 2 left a puzzle: the embedding became four times smaller, and the file grew. The course model is *tied*: `head.weight` **is** `embedding.weight`, one tensor with two names. A token's row is what the model reads when the token comes in, and what it compares its last vector with when it
# guesses the token. In a float file, `torch.save` notices that both names share their memory, and writes the numbers once. What do PyTorch's quantizers make of it?


# %%
def tensors_in(module: nn.Module) -> list[str]:
    """What the state_dict holds for the embedding and the head."""
    found = []
    for name, value in module.state_dict().items():
        if name.startswith(("embedding", "head")):
            parts = value if isinstance(value, tuple) else (value,)
            found += [
                f"{name}: {str(p.dtype)[6:]} {tuple(p.shape)}" for p in parts if isinstance(p, Tensor) and p.dim() == 2
            ]
    return found


def dynamic_with_embedding(model: nn.Module) -> nn.Module:
    """All Linear layers and the embedding in int8, as PyTorch does it."""
    return tq.quantize_dynamic(
        model, {nn.Linear: tq.default_dynamic_qconfig, nn.Embedding: tq.float_qparams_weight_only_qconfig}
    )


weights_of = course_model.state_dict()
print(
    "float: one memory for both names:",
    weights_of["head.weight"].data_ptr() == weights_of["embedding.weight"].data_ptr(),
)
for line in tensors_in(course_model):
    print("  ", line)
print("after quantize_dynamic of Linears and embedding:")
for line in tensors_in(dynamic_with_embedding(course_model)):
    print("  ", line)

# %% [markdown]
# The tie is gone, and with these two modules it cannot be otherwise: the embedding has unsigned codes with a float zero point, the head has signed codes without one. Two schemes, so two sets of codes of the same numbers. In our model this wastes little. How much is it with a vocabulary as in a real model? We build a small tied Transformer with 8,192 tokens
# (its weights are random, since only bytes are counted), and quantize it in three usual ways:

# %%
big_config = ModelConfig(vocab_size=8_192, context=64, d_model=128, n_heads=4, n_layers=1, d_ff=512)
torch.manual_seed(0)
big_model = TransformerLM(big_config).eval()
file_sizes = {}
for title, model in {"course model, 256 tokens": course_model, "8,192 tokens": big_model}.items():
    file_sizes[title] = {
        "float, tied": metrics.file_bytes(model),
        "only the embedding in int8": metrics.file_bytes(
            tq.quantize_dynamic(model, {nn.Embedding: tq.float_qparams_weight_only_qconfig})
        ),
        "Linears in int8 (dynamic)": metrics.file_bytes(int8.dynamic_int8(model)),
        "Linears and embedding in int8": metrics.file_bytes(dynamic_with_embedding(model)),
    }
tables.show(
    [
        {"file": way}
        | {
            title: f"{of[way] / 1000:,.0f} kB ({100 * of[way] / of['float, tied']:.0f} %)"
            for title, of in file_sizes.items()
        }
        for way in file_sizes["8,192 tokens"]
    ]
)

# %% [markdown]
# With the large vocabulary, the first two ways give a file that is *larger* than the float one (more than 100 %): they add a copy in int8, and the float matrix stays for the other half of the tie. The last way is smaller, but far from four times: it stores the largest matrix twice.
#
# One copy would do, if both sides could live with one scheme. Can they?
#
# - The **embedding** looks up row $r$: it needs $\hat W_{rk} = s_r\, q_{rk}$ for all columns $k$.
# - The **head** computes the logit of token $r$ from the last vector $h$: $y_r = \sum_k h_k \hat W_{rk} = s_r \sum_k h_k\, q_{rk}$. Its outputs are the tokens, so a scale for each *row* is a scale for each output channel, and comes out of the sum.
#
# Both want the scale along the same axis, the vocabulary. (A scale for each *column* would not come out of the head's sum.) And with symmetric codes, $q = \text{round}(W / s_r)$, $s_r = \max_k |W_{rk}| / 127$, zero point 0, the head needs no correction. The embedding loses a little: its rows are not exactly centered. By hand: the row (−0.5, 1.27) has $s = 0.01$, the codes −50 and 127. The
# embedding returns (−0.5, 1.27); the head, for $h = (2, 1)$, sums $2 \cdot (-50) + 127 = 27$, and the logit is 0.27.
#
# Two small modules do this with codes that they are *given*:


# %%
class CodedRows(nn.Module):
    """Embedding whose rows are int8 codes with a scale each: ids (...) -> float32 (..., columns)."""

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)  # int8 (rows, columns)
        self.register_buffer("scale", scale)  # float32 (rows,)

    def forward(self, ids: Tensor) -> Tensor:
        return self.codes[ids] * self.scale[ids].unsqueeze(-1)


class CodedHead(nn.Module):
    """Linear layer without bias whose weight is int8 codes with a scale a row: (..., columns) -> float32 (..., rows)."""

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.codes.to(x.dtype)) * self.scale


two_rows = torch.tensor([[-50, 127], [3, -127]], dtype=torch.int8), torch.tensor([0.01, 0.02])
print(
    "looked up:",
    CodedRows(*two_rows)(torch.tensor(0)).tolist(),
    "- logit:",
    CodedHead(*two_rows)(torch.tensor([2.0, 1.0]))[0].item(),
)

# %% [markdown]
# ### Exercise 4.9: one copy for both
# *Difficulty 3 of 5 · 25 minutes · 2 points*
#
# Write `tie_in_int8`: a copy of a tied model whose embedding is a `CodedRows` and whose head is a `CodedHead`, **sharing** one tensor of codes and one of scales, so that the file has them once. Everything else stays as it is. If the model is not tied, refuse: giving both sides the same matrix would change the logits. (The zero row needs a scale, too: 1.)


# %% nbgrader={"grade": false, "grade_id": "ex_4_9", "locked": false, "schema_version": 3, "solution": true, "task": false}
def tie_in_int8(model: TransformerLM) -> TransformerLM:
    """A copy of a tied model whose embedding and head share int8 codes, symmetric, with a scale for each token.

    Parameters
    ----------
    model : TransformerLM
        With `embedding` and `head`, whose weights (vocab_size, d_model) are one tensor.

    Returns
    -------
    TransformerLM
        Its `embedding` is a CodedRows and its `head` a CodedHead, with codes from -127 to 127; `model` is not touched.

    Raises
    ------
    ValueError
        If embedding and head do not share their weight.
    """
    ### BEGIN SOLUTION
    if model.head.weight is not model.embedding.weight:
        raise ValueError("the head has a matrix of its own: quantize it as a layer of its own.")
    matrix = model.embedding.weight.detach()
    scale = matrix.abs().amax(dim=1) / 127  # (vocab_size,)
    scale[scale == 0] = 1.0
    codes = (matrix / scale[:, None]).round().to(torch.int8)
    small = copy.deepcopy(model)
    small.embedding, small.head = CodedRows(codes, scale), CodedHead(codes, scale)
    return small
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_4_9_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 4.9: run this cell.
import copy
import io

import torch
from torch import nn

from helpers import checks, witness
from helpers.models import ModelConfig, TransformerLM


@checks.isolated
def check_ex_4_9() -> None:
    def tied_model(seed: int, vocabulary: int, width: int, tied: bool = True, odd: bool = False) -> TransformerLM:
        """`odd`: in training mode, partly frozen, and its LayerNorms have an eps of their own."""
        torch.manual_seed(seed)
        config = ModelConfig(
            vocabulary, context=12, d_model=width, n_heads=2, n_layers=1, d_ff=2 * width, tied_head=tied
        )
        model = TransformerLM(config).eval()
        with torch.no_grad():
            sizes = torch.logspace(-1, 1, vocabulary)[torch.randperm(vocabulary)]
            model.embedding.weight.mul_(10 * sizes[:, None])
            model.embedding.weight[3] = 0
            model.embedding.weight[4].abs_()
            model.embedding.weight[5] *= 1e-12  # a quiet row
        if odd:
            model.train().blocks[0].eval()
            model.norm.eps = 0.01
            model.embedding.weight.requires_grad_(False)
            model.blocks[0].ffn.requires_grad_(False)
        return model

    def file_of(model: nn.Module) -> io.BytesIO:
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        return file

    def judge(model: TransformerLM) -> None:
        before = copy.deepcopy(model)
        vocabulary, width = model.embedding.weight.shape
        small = tie_in_int8(model)
        checks.given(small, "what tie_in_int8 returns")
        changed = witness.unchanged(before, model)
        assert not changed, (
            f"your function changes the model that it is given: {changed}. Work on a copy (copy.deepcopy)."
        )
        assert isinstance(small, TransformerLM), f"a copy of the model should come back, not {type(small).__name__}."
        for name, kind in (("embedding", "CodedRows"), ("head", "CodedHead")):
            found = type(getattr(small, name)).__name__
            assert found == kind, f"the {name} of the copy is a {found}: it should be a {kind} of your codes."
        rest = {n: t for n, t in small.state_dict().items() if not n.startswith(("embedding.", "head."))}
        for name, tensor in rest.items():
            assert name in before.state_dict() and torch.equal(tensor, before.state_dict()[name]), (
                f"the tensor {name} was changed or added: only the embedding and the head should be changed, and nothing kept beside them."
            )
        for name in ("embedding", "head"):
            buffers = {n for n, _ in getattr(small, name).named_buffers()}
            assert buffers == {"codes", "scale"}, (
                f"the {name} of the copy holds {', '.join(sorted(buffers))}: codes and scale are all that is needed."
            )
        kept = [n for m in small.modules() for n, v in vars(m).items() if isinstance(v, torch.Tensor)]
        assert not kept, (
            f"a tensor is kept as `{kept[0]}` beside the buffers: the codes and the scales are all that is needed."
        )
        usual = {"": before, "embedding": torch.nn.Module(), "head": torch.nn.Module()}
        for name, plain in usual.items():
            extra = sorted(vars(small.get_submodule(name)).keys() - vars(plain).keys())
            assert not extra, (
                f"`{extra[0]}` is new in {name or 'the copy'}, and whatever it holds stays in memory beside the codes: add nothing but CodedRows and CodedHead."
            )
        assert small.config == model.config, (
            f"the copy's config is {small.config}, that of the model is {model.config}: leave it as it is."
        )
        shared = witness.independent(small, model)
        assert not shared, f"the copy is not independent of the model: {shared}. Use copy.deepcopy(model)."
        twin = copy.deepcopy(before)
        twin.embedding, twin.head = small.embedding, small.head
        other = witness.unchanged(twin, small)
        assert not other, (
            f"the copy differs from the model in more than embedding and head ({other}): everything else stays as it is, also modes, frozen parameters and the eps of the LayerNorms. Use copy.deepcopy(model)."
        )
        codes, scale = small.embedding.codes, small.embedding.scale
        both = codes, small.head.codes
        assert all(c.dtype != torch.uint8 for c in both), (
            "the codes are unsigned: a head without a zero point needs symmetric codes, int8 from -127 to 127."
        )
        for c in both:
            assert not c.is_floating_point(), (
                f"the codes are {c.dtype}: the file would hold 4 bytes for each number again. Store int8, the modules multiply by the scale."
            )
            checks.tensor(c, (vocabulary, width), "the tensor of codes", torch.int8)
        for s in (scale, small.head.scale):
            assert s.numel() != 1, (
                "there is one scale for the whole matrix: every token (row) needs its own, or small rows drown."
            )
            assert width == vocabulary or s.shape != (width,), (
                "there is a scale for each column: both sides need one for each row, the tokens."
            )
            checks.tensor(s, (vocabulary,), "the tensor of scales", torch.float32)
            assert not s.requires_grad, (
                "the scales carry a gradient, and with it the float matrix that they were made of: start from weight.detach()."
            )
        matrix = before.embedding.weight.detach().double()
        largest = matrix.abs().amax(1)
        assert width != vocabulary or not torch.allclose(scale.double(), matrix.abs().amax(0) / 127), (
            "each scale is that of a column: both sides need one for each row, the tokens."
        )
        assert torch.isfinite(scale).all() and (scale > 0).all(), (
            "a row of zeros needs a scale, too (1): this one is 0, inf or nan."
        )
        live = largest > 0
        assert (scale[~live] == 1).all() or scale.min() == scale.max(), (
            f"a row of zeros has the scale {scale[~live][0]:.3g}, and it should have 1. (A tiny number saves you from dividing by 0, too, but another reader of the file does not expect it.)"
        )
        checks.close(
            scale[live],
            (largest / 127)[live].float(),
            "the scale of each token",
            mistakes={
                "it is the scale of an embedding alone (range / 255), which needs a zero point.": (
                    (matrix.amax(1) - matrix.amin(1)) / 255
                )[live].float(),
                "every row has the scale of the whole matrix: each token needs its own, from its own largest number (dim=1), or small rows drown.": (
                    largest.max() / 127
                )
                .repeat(int(live.sum()))
                .float(),
                "divide by 127: with 128, the largest number has no code (+128 does not fit).": (largest / 128)[
                    live
                ].float(),
                "127 is the largest code; you divided by 127.5.": (largest / 127.5)[live].float(),
                "four bits were used (largest code 7): this exercise wants eight.": (largest / 7)[live].float(),
            },
            atol=0,
            rtol=1e-4,
        )
        assert torch.equal(codes, small.head.codes), (
            "embedding and head hold different codes: they should be one tensor."
        )
        assert codes.data_ptr() == small.head.codes.data_ptr(), (
            "the tie is lost: embedding and head hold equal codes in two memories, and the file has them twice. Give the same tensor to both."
        )
        assert scale.data_ptr() == small.head.scale.data_ptr(), (
            "the scales are stored twice: give the same tensor to both."
        )
        ratio = matrix / scale.double()[:, None]
        rounded, apart = ratio.round(), (codes.double() - ratio).abs()
        cut_off = (before.embedding.weight.detach() / scale[:, None]).trunc()
        assert apart.max() <= 0.501 or not torch.equal(codes.float(), cut_off), (
            "the codes are cut off, not rounded: round(weight / scale), then int8 (int8 alone cuts off)."
        )
        assert apart.max() <= 0.501, (
            f"the codes are not the nearest ones: they are up to {apart.max():.3f} steps away from weight / scale, and 0.5 is the limit. Divide and round in float32."
        )
        ids = torch.randint(vocabulary, (3, 10))
        twin = copy.deepcopy(before)
        grid = (rounded * scale.double()[:, None]).float()
        twin.embedding, twin.head.weight = nn.Embedding.from_pretrained(grid), nn.Parameter(grid)
        with torch.no_grad():
            wanted, got, floats = twin(ids), small(ids), before(ids)
        assert (got - wanted).norm() < 2e-3 * wanted.norm(), (
            f"the logits are others than those of the rounded matrix (relative difference {(got - wanted).norm() / wanted.norm():.2g}): "
            "embedding and head must both use these codes, and sqrt(d_model) and the positions stay as they are."
        )
        assert (got - floats).norm() < 0.05 * floats.norm(), "the logits are far from those of the float model."
        file, float_file = file_of(small), file_of(before)
        saved = float_file.getbuffer().nbytes - file.getbuffer().nbytes
        assert saved > 3 * vocabulary * width - 4 * vocabulary - 4000, (
            f"the file became {saved} bytes smaller; about {3 * vocabulary * width - 4 * vocabulary} were expected: one byte for each number of the shared matrix, and nothing else of it."
        )
        state = torch.load(file, weights_only=True)
        matrices = [
            n
            for n, t in state.items()
            if n.startswith(("embedding", "head")) and t.is_floating_point() and t.dim() == 2
        ]
        assert not matrices, f"the file holds {matrices[0]} in float: the codes should stay codes until they are used."
        other = copy.deepcopy(before)
        with torch.no_grad():
            other.embedding.weight.mul_(-3.7)
        again = tie_in_int8(model)
        assert again is not small, "two calls with one model return one and the same object: make a copy in each call."
        shared = witness.independent(again, small)
        assert not shared, (
            f"two calls with one model give copies that are not independent: {shared}. Make the codes anew in each call."
        )
        loaded = tie_in_int8(other)
        assert torch.allclose(loaded.embedding.scale[live], 3.7 * scale[live], rtol=1e-4, atol=0), (
            "the scales of another model with the same shapes are wrong: what you remember from one call does not hold in the next."
        )
        loaded.load_state_dict(state)
        with torch.no_grad():
            assert torch.equal(loaded(ids), got), "a model that loads your file gives other logits."

    def judge_changed(seed: int) -> None:
        """The same object, after its weights have changed."""
        model = tied_model(seed, 30, 8)
        first = tie_in_int8(model)
        with torch.no_grad():
            model.embedding.weight.mul_(2)
        again = tie_in_int8(model)
        assert torch.allclose(again.embedding.scale[6:], 2 * first.embedding.scale[6:], rtol=1e-4, atol=0), (
            "when the weights of a model have changed since the last call, you return the old codes: make them anew in each call."
        )

    def refuses(model: TransformerLM, otherwise: str) -> None:
        before = copy.deepcopy(model)
        checks.raises(ValueError, lambda: tie_in_int8(model), otherwise)
        changed = witness.unchanged(before, model)
        assert not changed, f"a model that you refuse is changed nevertheless ({changed}): ask first, then work."

    def lookalike(seed: int, tied_head: bool) -> TransformerLM:
        """Two equal matrices in two memories; the config says what it likes."""
        model = tied_model(seed, 40, 8, tied=tied_head)
        model.head.weight = nn.Parameter(model.embedding.weight.detach().clone())
        return model

    def tied_by_hand(seed: int) -> TransformerLM:
        """One matrix for both, and a config that says otherwise."""
        model = tied_model(seed, 70, 8, tied=False)
        model.head.weight = model.embedding.weight
        return model

    with checks.check("4.9", "embedding and head read the same codes, the file has them once, and it loads"):
        judge(tied_model(49, 300, 16))
        judge(tied_model(50, 2000, 32))
        judge(tied_model(54, 48, 48, odd=True))
        untied = tied_model(51, 60, 8, tied=False)
        with torch.no_grad():
            untied.head.weight.copy_(-untied.embedding.weight)
        judge_changed(55)
        refuses(
            untied,
            "the head of this model has a matrix of its own, and you replaced it: refuse it with a ValueError if `model.head.weight is not model.embedding.weight`.",
        )
        for says in (True, False):
            refuses(
                lookalike(52, says),
                f"this model was accepted although its head has a matrix of its own, which only happens to be equal today (config.tied_head is {says}). Equal numbers and the config prove nothing: ask whether the two weights are one tensor, with `is`.",
            )
        try:
            judge(tied_by_hand(53))
        except ValueError as error:
            raise AssertionError(
                f"a tied model was refused ({error}): head and embedding share their weight, though config.tied_head is False. Do not ask the config, ask the two weights, with `is`."
            ) from None
    ### BEGIN HIDDEN TESTS
    with torch.random.fork_rng(devices=[]):
        for seed, vocabulary, width in [(491, 64, 64), (492, 1500, 24)]:
            judge(tied_model(seed, vocabulary, width, odd=seed == 491))
            model = tied_model(seed, vocabulary, width)
            small = tie_in_int8(model)
            owned = [t for n, t in small.state_dict().items() if n.startswith(("embedding.", "head."))]
            memory = {t.data_ptr(): t.numel() * t.element_size() for t in owned}
            assert sum(memory.values()) == vocabulary * width + 4 * vocabulary, (
                "codes and scales are there more than once."
            )
            assert {t.dtype for t in owned} == {torch.int8, torch.float32}, "other types."
            largest = model.embedding.weight.detach().abs().amax(1)
            error = (small.embedding(torch.arange(vocabulary)) - model.embedding.weight).abs().amax(1)
            assert (error <= 0.505 * largest / 127 + 1e-30).all(), "rows are off by more than half a step."
            exact = torch.where(largest > 0, largest / 127, torch.ones(()))
            assert torch.allclose(small.embedding.scale, exact, rtol=1e-5, atol=0), "scales are others."
            assert small.head.scale.data_ptr() == small.embedding.scale.data_ptr(), "two scales."
            assert torch.is_grad_enabled(), "gradients are off."
        judge_changed(496)
        untied = tied_model(493, 40, 8, tied=False)
        kept = copy.deepcopy(untied)
        try:
            tie_in_int8(untied)
        except ValueError:
            refused = True
        else:
            refused = False
        assert refused, "an untied model is accepted."
        assert not witness.unchanged(kept, untied), "an untied model is changed."
        for says in (False, True):
            accepted = True
            try:
                tie_in_int8(lookalike(494, says))
            except ValueError:
                accepted = False
            assert not accepted, "two equal matrices are no tie."
        assert (tie_in_int8(tied_by_hand(495)).head.scale[3] == 1).all(), "a zero row's scale is 1."
    ### END HIDDEN TESTS


check_ex_4_9()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Make the codes and the scales once, from `model.embedding.weight`, and hand *the same two tensors* to both modules. `register_buffer` keeps the tensor that it is given; it makes no copy. When must `copy.deepcopy` happen, so that it does not matter?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# Per row: `abs().amax(dim=1) / 127`, and 1 where that is 0. The codes are `round(weight / scale[:, None])` as `torch.int8`. Copy the model first, and then set `copied.embedding = CodedRows(…)` and `copied.head = CodedHead(…)`.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `if model.head.weight is not …: raise ValueError(…)`; `scale = torch.where(largest > 0, largest / …, 1.0)`; `codes = (weight / scale[:, None]).….to(torch.int8)`; `twin = copy.deepcopy(model)`; `twin.embedding, twin.head = CodedRows(codes, scale), …`.
# </details>

# %% [markdown]
# ### Look back: really smaller
#
# What does one copy save, and what does it cost? We do it ourselves here, with the same recipe, in three steps: codes and scales once, both modules, and the Linear layers inside the blocks by PyTorch's dynamic quantization, which finds no `nn.Linear` in the head any more:


# %%
def one_copy(model: TransformerLM, both_sides: bool = True) -> nn.Module:
    """Blocks in dynamic int8; embedding and head from one set of symmetric codes (or only rounded to them, in float)."""
    weight = model.embedding.weight.detach()
    quantizer = tq.PerChannelMinMaxObserver(
        0, dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=-127, quant_max=127
    )
    quantizer(weight)
    steps, zeros = quantizer.calculate_qparams()
    rounded = torch.quantize_per_channel(weight, steps, zeros, 0, torch.qint8)
    smaller = int8.dynamic_int8(model) if both_sides else copy.deepcopy(model)
    shared = rounded.int_repr(), steps
    smaller.embedding, smaller.head = CodedRows(*shared), CodedHead(*shared)
    return smaller


for title, model in {"course model, 256 tokens": course_model, "8,192 tokens": big_model}.items():
    file_sizes[title]["Linears in int8, one copy for both"] = metrics.file_bytes(one_copy(model))
fig, ax = plots.figure(width=8.5, height=2.8)
of = file_sizes["8,192 tokens"]
drawn = ax.barh(
    list(of),
    [size / 1e6 for size in of.values()],
    color=[plots.GREY, *[plots.ORANGE if size > of["float, tied"] else plots.BLUE for size in list(of.values())[1:]]],
)
for bar, size in zip(drawn, of.values(), strict=True):
    bar.set_hatch("//" if size > of["float, tied"] else "")
    bar.set_edgecolor("white")
ax.bar_label(drawn, [f"{size / 1e6:.2f} MB" for size in of.values()], padding=3)
ax.axvline(of["float, tied"] / 1e6, color=plots.GREY, linestyle=":")
ax.invert_yaxis()
ax.margins(x=0.15)
ax.set_xlabel("megabytes of the file, tied model with 8,192 tokens")
plots.show(
    fig,
    caption="Five files of one model. Hatched: larger than the float file (dotted line), although something in it was quantized.",
    alt="Five horizontal bars. Quantizing only the embedding, or only the Linear layers, gives bars longer than the float one. Both together are shorter, and one shared copy is the shortest, about half of that.",
)
tables.show(
    [
        {"file": way} | {title: f"{100 * f[way] / f['float, tied']:.0f} %" for title, f in file_sizes.items()}
        for way in file_sizes["8,192 tokens"]
    ]
)
asked = data.windows("held_out", 12)
shared_bits = metrics.next_byte_bits(one_copy(course_model, both_sides=False), asked)
mean, error = difference(shared_bits, metrics.next_byte_bits(course_model, asked))
print(f"cost of the shared codes alone, course model: {mean:+.4f} ± {error:.4f} bits per byte (standard error)")

# %% [markdown]
# One copy makes the file of the large-vocabulary model nearly four times smaller, and little more than half as large as the library's best. And the price, one matrix rounded to 8 bits for both of its uses, is a small fraction of what the 4-bit embedding cost in section 2.
#
# What it does not buy is time: `CodedHead` makes a float matrix of the codes in every call. If the head must be fast, hand the codes to an int8 kernel *when the model is loaded* (`torch._make_per_channel_quantized_tensor` builds PyTorch's quantized weight from codes and scales): then there are two copies in memory, and still one in the file. A tie is a
# statement about the *file*; whether it is one in memory is up to whoever loads it.

# %% [markdown]
# ### What does one ship?
#
# A model on disk is read by another program, on another day, perhaps by somebody else. What must be in the file?
#
# - **Numbers, not objects.** `torch.save(model)` writes a pickle: the name of each class, and instructions that run when it is loaded. The loading program needs your class under the same name, and must trust you. Integer codes and scales are plain numbers; the *safetensors* format holds
#   arrays of numbers, their names and a little text, and nothing that runs.
# - **The configuration.** Shapes do not tell everything. A model with 4 heads and one with 2 have the same matrices, and compute different things.
# - **A hash.** Half a download, a swapped file, a flipped bit: the numbers still load. The SHA-256 of the file, kept beside it, tells. (Against accidents. Whoever can swap the file can swap the hash; against an attacker you need a signature.)
# - **All or nothing.** If saving stops in the middle, the old artefact must still be there. So write each file to another name first, and `replace` them at the end. (Between two `replace` calls the files do not belong together; the loader then refuses both, and never loads a mixture.)
#
# > **The book says** (chapter 1, too): save the quantized model with `torch.save` and get it back with `torch.load`.
# >
# > **What happens:**


# %%
folder = Path(tempfile.mkdtemp())
torch.save(course_model, folder / "model.pt")
print("torch.load: ", end="")
errors.show_error(lambda: torch.load(folder / "model.pt"))
print("first bytes of the file:", (folder / "model.pt").read_bytes()[:2], "(a zip archive with a pickle in it)")
two_heads = TransformerLM(ModelConfig(**course_model.config.to_dict() | {"n_heads": 2})).eval()
print("the weights in a model with 2 heads:", two_heads.load_state_dict(course_model.state_dict()))
with torch.no_grad():
    gap = (document_bits(two_heads, asking) - asking_float).mean().item()
print(f"and what it costs, without a word: {gap:+.2f} bits per byte")


# %% [markdown]
# Since PyTorch 2.6 `torch.load` refuses what is not plain data, unless you tell it not to. And the second experiment shows why the configuration belongs to the weights: everything fits, and nothing is right.
#
# ### Exercise 4.10: the artefact
# *Difficulty 4 of 5 · 40 minutes · 3 points*
#
# Write `save_artefact` and `load_artefact` for a `TransformerLM`. The artefact at `path` (`…/model.safetensors`) consists of two files:
#
# | file | holds |
# |---|---|
# | `path` | safetensors: for each matrix `NAME` (a parameter with two dimensions) int8 `NAME.codes` and float32 `NAME.scale`, as `int8_rows` makes them; each other parameter under its own name, float32. Of a tied model (`config.tied_head`) no `head.weight`: it is the embedding. In the header, as metadata, `{"config": …}` with the configuration as JSON |
# | `path.with_suffix(".sha256")` | one line: the hexadecimal SHA-256 of all bytes of the first file, two spaces, its name (`sha256sum -c` understands it) |
#
# The configuration is in the *first* file, so that the hash covers it. `safetensors.torch.save(tensors, metadata)` makes the bytes of such a file; `safe_open(path, framework="pt")` reads names (`.keys()`), tensors (`.get_tensor(name)`) and metadata (`.metadata()`).
#
# - **Saving** writes each file under another name in the same folder first, and then calls `replace`. The hash is ready before the first old file is replaced.
# - **Loading** computes the hash first, and raises a `ValueError` of one sentence, which names the file, if it is not the one that was written down, or if the hash file has no hash. A missing file raises `FileNotFoundError`. Then it rebuilds the model from the configuration, with weights
#   `codes * scale` in float32, tied if it was, in eval mode. Every parameter must come from the file.
#
# By hand: the row $(0.5, -1.27)$ has scale $1.27 / 127 = 0.01$ and codes $(50, -127)$.


# %%
def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 codes of a matrix, and the float32 scale of each row, (rows, 1)."""
    scale = weight.detach().abs().amax(dim=1, keepdim=True) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (weight.detach() / scale).round().to(torch.int8), scale


# %% nbgrader={"grade": false, "grade_id": "ex_4_10", "locked": false, "schema_version": 3, "solution": true, "task": false}
def save_artefact(model: TransformerLM, path: Path) -> None:
    """Write `model` in int8, with its configuration and a hash.

    Parameters
    ----------
    model : TransformerLM
        Float; is not changed.
    path : Path
        The file of the weights, with the suffix ".safetensors"; the hash goes beside it.
    """
    ### BEGIN SOLUTION
    tensors = {}
    for name, parameter in model.named_parameters():  # a tied head has no name of its own here
        if parameter.dim() == 2:
            tensors[f"{name}.codes"], tensors[f"{name}.scale"] = int8_rows(parameter)
        else:
            tensors[name] = parameter.detach()
    content = save(tensors, metadata={"config": json.dumps(model.config.to_dict())})
    note = f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"
    parts = {}
    for target, raw in ((path, content), (path.with_suffix(".sha256"), note.encode())):
        parts[target] = target.with_name(target.name + ".part")
        parts[target].write_bytes(raw)
    for target, part in parts.items():  # only now, with both new files complete, does an old one go
        part.replace(target)
    ### END SOLUTION


def load_artefact(path: Path) -> TransformerLM:
    """The model of an artefact, in eval mode; its weights are codes times scales.

    Parameters
    ----------
    path : Path
        The file of the weights.

    Raises
    ------
    FileNotFoundError
        If one of the two files is missing.
    ValueError
        If the file is not the one whose hash was written down.
    """
    ### BEGIN SOLUTION
    words = path.with_suffix(".sha256").read_text().split()
    if not words or hashlib.sha256(path.read_bytes()).hexdigest() != words[0]:
        raise ValueError(f"{path.name} is not the file that was saved: its SHA-256 is another one.")
    with safe_open(str(path), framework="pt") as file:
        config = ModelConfig(**json.loads(file.metadata()["config"]))
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    state = {}
    for name, tensor in stored.items():
        if name.endswith(".codes"):
            matrix = name.removesuffix(".codes")
            state[matrix] = tensor.float() * stored[f"{matrix}.scale"]
        elif not name.endswith(".scale"):
            state[name] = tensor
    if config.tied_head:
        state["head.weight"] = state["embedding.weight"]
    model = TransformerLM(config)
    model.load_state_dict(state)
    return model.eval()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_4_10_check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 4.10: run this cell.
import contextlib
import copy
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from helpers import checks, witness
from helpers import models as course_models


@checks.isolated
def check_ex_4_10() -> None:
    # The receiving program: it knows the model's class and the description of the format, and nothing of this notebook.
    receiver = textwrap.dedent("""
    import hashlib, json, sys
    from pathlib import Path
    import torch
    from safetensors.torch import load_file
    from safetensors import safe_open
    from helpers.models import ModelConfig, TransformerLM

    torch.set_num_threads(int(sys.argv[1]))
    for name in sys.argv[2:]:
        digest = Path(name).with_suffix(".sha256").read_text().split()[0]
        if digest != hashlib.sha256(Path(name).read_bytes()).hexdigest():
            sys.exit("the hash is another one")
        with safe_open(name, "pt") as file:
            model = TransformerLM(ModelConfig(**json.loads(file.metadata()["config"])))
        tensors = load_file(name)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter.copy_(tensors[key] if key in tensors else tensors[key + ".codes"] * tensors[key + ".scale"])
            ids = torch.arange(24).reshape(2, 12) * 7 % model.config.vocab_size
            print(hashlib.sha256(model.eval()(ids).numpy().tobytes()).hexdigest())
    """)
    small = {"vocab_size": 40, "context": 16, "d_model": 24, "n_heads": 4, "n_layers": 2, "d_ff": 40}

    def model_of(seed: int, **changes: int | bool) -> torch.nn.Module:
        torch.manual_seed(seed)
        model = course_models.TransformerLM(course_models.ModelConfig(**small | changes)).train(seed % 2 == 1)
        with torch.no_grad():
            for parameter in model.parameters():  # biases and norms that one would miss
                parameter.add_(0.1 * torch.randn(parameter.shape))
            model.embedding.weight[3] = 0
            model.blocks[0].ffn.down.weight[5] = 0
            model.blocks[0].ffn.up.weight[2] *= 1e-6  # a quiet row
        model.blocks[0].attention.requires_grad_(False)
        return model

    def ids_for(model: torch.nn.Module) -> torch.Tensor:
        return torch.arange(24).reshape(2, 12) * 7 % model.config.vocab_size

    def print_of(model: torch.nn.Module) -> str:
        with torch.no_grad():
            return hashlib.sha256(model(ids_for(model)).numpy().tobytes()).hexdigest()

    def expected_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """codes * scale with PyTorch's own quantizer for the codes."""
        found = {}
        for name, p in model.named_parameters():
            found[name] = p.detach().clone()
            if p.dim() == 2:
                scales = p.detach().abs().amax(1) / 127
                scales[scales == 0] = 1
                codes = torch.quantize_per_channel(p.detach(), scales, torch.zeros(len(p)), 0, torch.qint8).int_repr()
                found[name] = codes.float() * scales[:, None]
        return found

    @contextlib.contextmanager
    def instead(function: object, spies: list[tuple[object, str, object]]) -> Iterator[None]:
        """Put each spy in place of `module.name`, also where the notebook of `function` has imported that name."""
        space = getattr(function, "__globals__", {})
        spied = [(getattr(module, name), spy) for module, name, spy in spies]
        names = {name: (f, spy) for name, f in space.items() for original, spy in spied if f is original}
        with contextlib.ExitStack() as stack:
            for module, name, spy in spies:
                stack.enter_context(mock.patch.object(module, name, spy))
            try:
                space.update({name: spy for name, (_, spy) in names.items()})
                yield
            finally:
                space.update({name: f for name, (f, _) in names.items()})

    def inspect(model: torch.nn.Module, path: Path) -> None:
        """Are these the two files that were described?"""
        assert path.is_file(), f"there is no file {path.name} after saving: write the weights to `path`."
        note = path.with_suffix(".sha256")
        assert note.is_file(), f"there is no file {note.name} after saving: the hash belongs there."
        raw = path.read_bytes()
        assert raw[:2] not in (b"PK", b"\x80\x02", b"\x80\x04"), (
            "the file is a pickle (torch.save): it names classes and can run code when it is loaded. Use safetensors."
        )
        try:
            with safe_open(str(path), framework="pt") as file:
                names, metadata = list(file.keys()), file.metadata() or {}
                stored = {name: file.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise AssertionError(f"the file cannot be read as safetensors ({error}).") from None
        words = note.read_text().split()
        right = hashlib.sha256(raw).hexdigest()
        also = {
            (metadata.get("config") or "").encode(): "the configuration alone",
            str(path).encode(): "the file's name",
            path.name.encode(): "the file's name",
            raw[8 + int.from_bytes(raw[:8], "little") :]: "the numbers without the header",
        }
        other = next(
            (what for part, what in also.items() if words and hashlib.sha256(part).hexdigest() == words[0]), ""
        )
        assert not other, f"the hash that you wrote down is that of {other}: hash all bytes of the file on disk."
        assert words and words[0] == right, (
            f"the hash that you wrote down is {words[0][:12] if words else 'empty'}…, that of the bytes of {path.name} is {right[:12]}…: hash the file as it is on disk, header and all."
        )
        assert note.read_text().rstrip("\r\n") == f"{right}  {path.name}", (
            "the line should be: hash, two spaces, name of the file, and nothing else (`sha256sum -c` reads it)."
        )
        assert "config" in metadata, (
            "the configuration is not in the file's metadata: without it nobody can rebuild the model, and outside of this file the hash does not cover it."
        )
        try:
            written = json.loads(metadata["config"])
        except ValueError:
            raise AssertionError(
                f"the configuration in the metadata is not JSON ({metadata['config'][:40]}…): use json.dumps(model.config.to_dict())."
            ) from None
        assert written == model.config.to_dict(), "the configuration in the file is another one than the model's."
        matrices = [name for name, p in model.named_parameters() if p.dim() == 2]
        for name in matrices:
            assert name not in stored, f"{name} is stored in float: only its codes and scales belong into the file."
            assert f"{name}.codes" in stored and f"{name}.scale" in stored, (
                f"{name}.codes or {name}.scale is missing in the file."
            )
            assert stored[f"{name}.codes"].dtype == torch.int8, (
                f"{name}.codes is {stored[f'{name}.codes'].dtype}; int8 is what makes the file small."
            )
            assert stored[f"{name}.scale"].dtype == torch.float32, f"{name}.scale should be float32."
        wanted = {f"{n}{end}" for n in matrices for end in (".codes", ".scale")}
        wanted |= {name for name, p in model.named_parameters() if p.dim() != 2}
        for name in sorted(wanted & set(names)):
            assert name.endswith((".codes", ".scale")) or stored[name].dtype == torch.float32, (
                f"{name} is stored as {stored[name].dtype}: what is not a matrix stays float32, as it was."
            )
        missing, extra = sorted(wanted - set(names)), sorted(set(names) - wanted)
        assert not missing, f"{missing[0]} is missing in the file: biases and norms belong to the model, too."
        assert not [n for n in extra if n.startswith("head.weight")], (
            "the tied head is stored a second time: it is the embedding, and one copy is enough."
        )
        assert not extra, f"{extra[0]} does not belong into the file."
        for name, p in model.named_parameters():
            look_at_numbers(name, p.detach(), stored)

    def look_at_numbers(name: str, weight: torch.Tensor, stored: dict[str, torch.Tensor]) -> None:
        """Codes and scales as int8_rows makes them; what is no matrix as it was."""
        if weight.dim() != 2:
            assert torch.equal(stored[name], weight), f"the numbers of {name} in the file are not the model's."
            return
        codes, scale = stored[f"{name}.codes"], stored[f"{name}.scale"]
        assert scale.shape == (len(weight), 1), (
            f"{name}.scale has the shape {tuple(scale.shape)}; expected is {(len(weight), 1)}, as int8_rows makes it: who reads the file multiplies codes * scale."
        )
        largest = weight.abs().amax(dim=1, keepdim=True)
        assert (scale[largest == 0] == 1).all(), (
            f"a row of zeros in {name} has the scale {scale[largest == 0][:1].tolist()}, and should have 1: use int8_rows."
        )
        assert torch.allclose(scale[largest > 0], largest[largest > 0] / 127, rtol=1e-5, atol=0), (
            f"{name}.scale is not the largest magnitude of each row divided by 127: use int8_rows."
        )
        apart = (weight.double() / scale.double() - codes.double()).abs().max()
        assert apart <= 0.501, f"{name}.codes are up to {apart:.3g} steps away from weight / scale: use int8_rows."

    def loaded_from(path: Path) -> object:
        """What load_artefact makes of a good artefact; its usual errors with a sentence."""
        try:
            return load_artefact(path)
        except (RuntimeError, KeyError) as error:
            text = " ".join(str(error).split())
            assert (
                not text.endswith('Missing key(s) in state_dict: "head.weight".') and "head.weight.codes" not in text
            ), (
                "load_artefact finds no head.weight: the head of a tied model is not in the file. Give the embedding's matrix to load_state_dict under the name head.weight, too."
            )
            assert "size mismatch" not in text and "key(s) in state_dict" not in text, (
                f"load_artefact builds a model of another configuration, and the weights do not fit ({text[:160]}…): make ModelConfig from the JSON in the file's metadata."
            )
            raise

    def compare(model: torch.nn.Module, loaded: object) -> None:
        assert isinstance(loaded, course_models.TransformerLM), "load_artefact should return a TransformerLM."
        assert not loaded.training, "the loaded model should be in eval mode."
        assert loaded.config == model.config, "the loaded model has another configuration: rebuild it from the file's."
        expected, have = expected_weights(model), dict(loaded.named_parameters())
        assert set(have) == set(expected), "the loaded model is not tied as the saved one was."
        for name, tensor in expected.items():
            assert have[name].shape == tensor.shape and torch.allclose(
                have[name].detach(), tensor, rtol=1e-6, atol=1e-8
            ), f"{name} of the loaded model is not what was saved."

    def refuses(path: Path, what: str, kinds: tuple = (ValueError,)) -> None:
        opened = []

        def noted(reader: Callable) -> Callable:
            return lambda *args, **options: (opened.append(what), reader(*args, **options))[1]

        readers = [(safetensors, "safe_open"), (safetensors.torch, "safe_open")]
        readers += [(safetensors.torch, "load_file"), (safetensors.torch, "load")]
        try:
            with instead(load_artefact, [(module, n, noted(getattr(module, n))) for module, n in readers]):
                load_artefact(path)
        except kinds as error:
            text = str(error)
            if not isinstance(error, OSError):
                assert path.name in text and "\n" not in text.strip() and len(text) < 300, (
                    f"for {what} the message should be one sentence that names the file; it is: {text[:200]}"
                )
                assert not opened, (
                    f"{what}: the file was opened as safetensors although its hash is wrong; compare the hash before you read anything."
                )
            return
        except Exception as error:
            raise AssertionError(
                f"{what}: load_artefact raises {type(error).__name__} ({str(error)[:80]}) instead of {kinds[0].__name__}; compare the hash before you read anything."
            ) from None
        raise AssertionError(f"{what} is loaded without a word: compare the SHA-256 of the whole file first.")

    def rewritten(raw: bytes, without: str = "", **changes: int) -> bytes:
        """The file with another configuration, or without one tensor."""
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        config = json.loads(header["__metadata__"]["config"]) | changes
        tensors = {n: t for n, t in safetensors.torch.load(raw).items() if n != without}
        return safetensors.torch.save(tensors, header["__metadata__"] | {"config": json.dumps(config)})

    def damage(folder: Path, model: torch.nn.Module, other: torch.nn.Module) -> None:
        """Every accident must be refused."""
        path, second = folder / "good.safetensors", folder / "other.safetensors"
        save_artefact(model, path)
        save_artefact(other, second)
        raw, line = path.read_bytes(), path.with_suffix(".sha256").read_text()
        accidents = {
            "a flipped bit in the weights": raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:],
            "half a file": raw[: len(raw) // 2],
            "an empty file": b"",
            "the weights of another model": second.read_bytes(),
            "a configuration with 2 heads in place of 4": rewritten(raw, n_heads=2),
        }
        for what, content in accidents.items():
            assert content != raw
            path.write_bytes(content)
            refuses(path, what)
        lose_each(path, raw)
        path.write_bytes(raw)
        path.with_suffix(".sha256").write_text(line)
        compare(model, load_artefact(path))
        for content, what in (
            ("", "without a hash"),
            ("\n", "with an empty line"),
            ("0" * 64 + line[64:], "with another hash"),
            (line[:40] + line[64:], "with only the first 40 digits of the hash"),
            (line[1:], "whose hash lacks its first digit"),
        ):
            path.with_suffix(".sha256").write_text(content)
            refuses(path, f"a hash file {what}")
        path.with_suffix(".sha256").unlink()
        refuses(path, "a missing hash file", (FileNotFoundError,))
        path.with_suffix(".sha256").write_text(line)
        path.unlink()
        refuses(path, "a missing file", (FileNotFoundError,))

    def lose_each(path: Path, raw: bytes) -> None:
        """A file that lacks a tensor, with its right hash, must not be loaded."""
        for lost in safetensors.torch.load(raw):
            content = rewritten(raw, lost)
            path.write_bytes(content)
            path.with_suffix(".sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")
            try:
                load_artefact(path)
            except Exception:  # any refusal will do: the hash is right, and the writer was wrong
                continue
            assert not lost.endswith(".scale"), (
                f"a file without {lost} is loaded without a word: no number may stand in for a scale that is missing."
            )
            assert not lost.startswith("head"), (
                f"a file without {lost} is loaded without a word, although its configuration says that the head is not tied: every matrix of an untied model must be there."
            )
            raise AssertionError(
                f"a file without {lost} is loaded without a word, and random numbers take its place: every parameter must come from the file (no strict=False; for a tied model put the embedding under head.weight, too)."
            )

    def interrupt(folder: Path, model: torch.nn.Module, other: torch.nn.Module) -> None:
        """If saving stops in the middle, the old artefact is still there, or the new one is complete."""
        path = folder / "old.safetensors"
        save_artefact(model, path)

        class Stop(Exception):
            pass

        def stop(*_: object, **__: object) -> None:
            raise Stop

        for stopped in ("hashlib.sha256", "hashlib.new", "hashlib.file_digest", "json.dumps"):
            with mock.patch(stopped, stop), contextlib.suppress(Stop):
                save_artefact(other, path)
            try:
                kept = load_artefact(path)
            except (ValueError, OSError):
                raise AssertionError(
                    "saving was stopped in the middle (while the hash was computed), and now neither the old model nor the new one can be loaded: prepare everything, write to other names, and replace at the very end."
                ) from None
            whole = {print_of_saved(folder, model), print_of_saved(folder, other)}
            assert print_of(kept) in whole, "after an interrupted saving a mixture of two models is loaded."
            save_artefact(model, path)
        links = []
        for target in (path, path.with_suffix(".sha256")):
            link = folder / f"link_to_{target.name}"
            os.link(target, link)  # a second name of the old file: it keeps the old bytes if the file is replaced
            links.append((link, target, link.read_bytes()))
        save_artefact(other, path)
        for link, target, before in links:
            assert link.read_bytes() == before, (
                f"{target.name} was overwritten in place: when that stops in the middle, the old file is gone and the new one is not there. Write to another name, then `replace`."
            )

        replacements(folder, model, other)

    def replacements(folder: Path, model: torch.nn.Module, other: torch.nn.Module) -> None:
        """Watch each replacement of a file; stop at the first one, and then let all of them happen."""
        path = folder / "replaced" / "old.safetensors"
        path.parent.mkdir()
        targets = {path.resolve(), path.with_suffix(".sha256").resolve()}
        save_artefact(model, path)
        old = print_of(load_artefact(path))
        seen, ready, stopping = [], [], True
        really = os.replace

        class Stop(Exception):
            pass

        def watch(source: str | Path, target: str | Path, **options: object) -> None:
            new = [f.read_bytes() for f in path.parent.iterdir() if f.is_file() and f.resolve() not in targets]
            digests = [hashlib.sha256(content).hexdigest().encode() for content in new]
            ready.append(any(digest in content for digest in digests for content in new))
            seen.append((Path(source).resolve(), Path(target).resolve()))
            if stopping:
                raise Stop
            really(source, target, **options)

        def watched_save() -> None:
            try:
                with instead(save_artefact, [(os, "replace", watch), (os, "rename", watch)]):
                    save_artefact(other, path)
            except Exception:
                if not (seen and stopping):
                    raise

        watched_save()
        assert seen, (
            "neither file is replaced: whoever deletes the old file and then writes the new one has none in between. Write to other names, then `replace`."
        )
        try:
            kept = print_of(load_artefact(path))
        except (ValueError, OSError):
            kept = ""
        assert kept == old, (
            "saving was stopped just before the first `replace`, and the old artefact is already gone: touch no old file before both new ones are written."
        )
        assert all(source.parent == target.parent for source, target in seen), (
            "the new file is written in another folder: `replace` is all or nothing only within one file system, so write beside the old file."
        )
        assert ready[0], (
            "at the first `replace` the other new file is not written yet: write both files under other names, then replace both."
        )
        seen.clear()
        stopping = False
        watched_save()
        assert all(source.parent == target.parent for source, target in seen), "the hash is written in another folder."
        assert {target for _, target in seen} == targets, (
            "only one of the two files is replaced: the hash, too, goes to another name first."
        )

    def there_and_back(folder: Path, model: torch.nn.Module, name: str) -> tuple[torch.nn.Module, Path]:
        """Save, look at all that was written, load; in a folder whose name holds dots and blanks."""
        path = folder / f"my.safetensors of {name}" / name
        path.parent.mkdir()
        kept = copy.deepcopy(model)
        save_artefact(model, path)
        changed = witness.unchanged(kept, model)
        assert not changed, f"save_artefact changed the model ({changed})."
        inspect(model, path)
        third = sorted({f.name for f in path.parent.iterdir()} - {path.name, path.with_suffix(".sha256").name})
        assert not third, (
            f"a third file, {third[0]}, lies beside the two of the artefact: it is not covered by the hash, or was left over. Write two files, and remove what you wrote on the way."
        )
        loaded = loaded_from(path)
        compare(model, loaded)
        again = loaded_from(path)
        shared = witness.independent(again, loaded)
        assert again is not loaded and not shared, (
            "loading twice does not give two models, but one (or two that share memory): whoever changes the first changes the second. Read the file anew in each call."
        )
        return loaded, path

    def print_of_saved(folder: Path, model: torch.nn.Module) -> str:
        path = folder / "fresh.safetensors"
        save_artefact(model, path)
        return print_of(load_artefact(path))

    with (
        tempfile.TemporaryDirectory() as name,
        checks.check(
            "4.10",
            "another process rebuilds the model bit for bit from numbers, and every damaged or swapped file is refused",
        ),
    ):
        folder, paths, prints = Path(name), [], []
        for i, changes in enumerate(({}, {"tied_head": False, "n_layers": 1, "n_heads": 2})):
            loaded, path = there_and_back(
                folder, model_of(410 + i, **changes), ("model.safetensors", "v1.2.safetensors")[i]
            )
            paths.append(str(path))
            prints.append(print_of(loaded))
        damage(folder, model_of(412, n_layers=1), model_of(413))
        damage(folder, model_of(416, n_layers=1, tied_head=False), model_of(417))
        interrupt(folder, model_of(414), model_of(415))
        root = str(Path(checks.__file__).resolve().parent.parent)
        received = subprocess.run(
            [sys.executable, "-c", receiver, str(torch.get_num_threads()), *paths],
            cwd=root,
            env=os.environ | {"PYTHONPATH": root},
            capture_output=True,
            text=True,
        )
        assert received.returncode == 0, f"a fresh process cannot read your artefact: {received.stderr.strip()[-200:]}"
        assert received.stdout.split() == prints, (
            "a fresh process gets other logits from your artefact than load_artefact does."
        )
    ### BEGIN HIDDEN TESTS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i, changes in enumerate(
            ({"d_ff": 7, "n_heads": 3}, {"tied_head": False, "vocab_size": 9}, {"n_layers": 3})
        ):
            _, path = there_and_back(folder, model_of(4100 + i, **changes), f"hidden.{i}.safetensors")
            assert print_of(load_artefact(path)) == print_of(load_artefact(path)), "loading twice gives two models."
        damage(folder, model_of(4110, n_layers=1), model_of(4111, n_layers=1))
        damage(folder, model_of(4114, n_layers=1, tied_head=False), model_of(4115, n_layers=1))
        interrupt(folder, model_of(4112, n_layers=1), model_of(4113))
    ### END HIDDEN TESTS


check_ex_4_10()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# `model.named_parameters()` names a tied matrix once. For the loader: what does `load_state_dict` say if a name is missing, and which one will be missing in a tied model?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# Make the bytes first (`safetensors.torch.save(tensors, metadata={"config": …})`), then their hash, then two files under other names, then two `replace`. The loader works in the other order: bytes, hash, comparison, and only then `safe_open`.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `for name, p in model.named_parameters():` two entries from `int8_rows(p)` if `p.dim() == 2`, else `p.detach()`. Loading: `state[name.removesuffix(".codes")] = codes.float() * stored[….scale]`; the others as they are; `state["head.weight"] = state["embedding.weight"]` if tied; then `TransformerLM(config)`, `load_state_dict`, `.eval()`.
# </details>

# %% [markdown]
# ### Three files of one model
#
# Now the course model, in three forms, as a file:
#
# - your **artefact**: int8 codes and scales; the loader makes a float model of it. It is the same on every processor, since nothing in it is packed for an engine. (What it saves is the *file*, not memory or time: for int8 arithmetic quantize statically after loading.)
# - **static int8**: the state_dict of a model like section 7's, plain tensors in `torch.save`'s format, read with `weights_only=True` into a converted skeleton;
# - **PT2E** (unit 02): `torch.export` records the graph, torchao's quantizer for x86 puts observers into it. `torch.export.save` writes graph and weights: a file that needs PyTorch, and *no Python class of yours*.
#
# (To be quick, both int8 models are calibrated anew here, on 4 documents of 128 bytes; section 7 took 16 of 256, and judged on more and longer documents. So "static int8" has another Δ here than there. Compare within a table.)


# %%
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)


def without_float_weights(graph_module: nn.Module) -> nn.Module:
    """Remove the parameters that no operation of the graph uses any more."""
    used = {node.target for node in graph_module.graph.nodes if node.op == "get_attr"}
    for name, _ in list(graph_module.named_parameters()):
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(graph_module.get_submodule(owner), attribute)
    return graph_module


def exported(model: nn.Module, examples: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(model, (examples,), dynamic_shapes=({0: torch.export.Dim("batch")},))


prepared_graph = prepare_pt2e(
    exported(copy.deepcopy(course_model), first_calibration).module(),
    X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config()),
)
prepared_graph(first_calibration)
graph = without_float_weights(convert_pt2e(prepared_graph))
torch.export.save(exported(graph, first_calibration), folder / "model.pt2")
from_graph = torch.export.load(folder / "model.pt2").module()

static = quantizable.static_int8(course_model, [first_calibration])
torch.save(static.state_dict(), folder / "static.pt")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # observers that have seen nothing; their scales are overwritten
    skeleton = quantizable.convert(quantizable.prepare(quantizable.quantizable(TransformerLM(course_model.config))))
skeleton.load_state_dict(torch.load(folder / "static.pt", weights_only=True))


def artefact_row() -> str:
    """Save and load with your functions (solve exercise 4.10 first)."""
    save_artefact(course_model, folder / "model.safetensors")
    change = signed(document_bits(load_artefact(folder / "model.safetensors"), shorter) - shorter_float)
    size = sum((folder / f"model.{end}").stat().st_size for end in ("safetensors", "sha256"))
    return f"your artefact: {size:,} bytes, {metrics.file_bytes(course_model) / size:.2f} times smaller, Δ bits per byte {change}"


rows = []
for title, loaded, file, original in (
    ("static int8, state_dict", skeleton, "static.pt", static),
    ("PT2E, exported program", from_graph, "model.pt2", graph),
):
    size = (folder / file).stat().st_size
    rows.append(
        {
            "file": title,
            "bytes": f"{size:,}",
            "float file / this": f"{metrics.file_bytes(course_model) / size:.2f}",
            "Δ bits per byte": signed(document_bits(loaded, shorter) - shorter_float),
            "loaded = saved, bit for bit": torch.equal(loaded(shorter[:4, :-1]), original(shorter[:4, :-1])),
        }
    )
tables.show(rows)
errors.show_result(artefact_row)
operations = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
for name in ("linear", "matmul", "embedding", "quantize_per_tensor", "dequantize_per_tensor", "dequantize_per_channel"):
    print(f"{sum(operation.split('.')[1] == name for operation in operations):3} × {name}")
kept_in_float = {
    name: t.numel() * 4 for name, t in graph.state_dict().items() if t.is_floating_point() and t.numel() > 60_000
}
print("large float tensors in the PT2E file:", kept_in_float)
with zipfile.ZipFile(folder / "model.pt2") as archive:
    print(
        "bytes of the graph as text:", sum(i.file_size for i in archive.infolist() if i.filename.endswith("model.json"))
    )
# %% [markdown]
# What PT2E did with our attention: count the quantize nodes. Query, key and value share one, `out`, `up` and `down` have one each, in four blocks, and the head has one. All of them are inputs of Linear layers. None is left for the products of activations: queries with keys, and probabilities with values,
# are multiplied in float, and softmax and GELU are float, too. The x86 quantizer leaves them out unless told otherwise. It also left the embedding alone, so that the file holds the shared table twice, in float and as codes for the head: the tie once more. Add the table of positions, which an exported program must carry along, and the graph itself as text, and you know why this file is the largest of the three. The graph is a
# description, meant for a compiler: run as it is, it multiplies floats.
#
# ### The same model elsewhere
#
# **ARM.** `x86` and `fbgemm` are engines for PCs. On ARM processors there is *qnnpack*, and on 64-bit ARM with Linux also *onednn*, whose int8 Linear layers can use Arm's own library there ([pytorch #126687](https://github.com/pytorch/pytorch/pull/126687) for dynamic, [#148585](https://github.com/pytorch/pytorch/pull/148585) for static ones); `torch.backends.quantized.supported_engines` lists yours. A quantized model is packed for the
# engine with which it was converted, so one converts *on the target*, from the portable artefact. What changes? The weights' codes: PyTorch's default for qnnpack has one scale for a whole matrix, for the three others one for each row. And the grids of the activations: qnnpack multiplies all 8 bits exactly and takes 255 steps where x86 takes 127. The next cell converts and measures with another engine than this notebook's, in a process of its own. Mind what it is *not*: a measurement of an ARM processor. On a PC, qnnpack is a reference for the numbers; its speed here says nothing about a phone.


# %%
OTHER_ENGINE = """
import json, sys
from safetensors.torch import load_file
from helpers import int8, known_warnings, metrics, quantizable
from helpers.checkpoint import load_course_model

known_warnings.hide()
int8.choose_engine()
given = load_file(sys.argv[1])
model = quantizable.static_int8(load_course_model(), [given["calibration"]])
bits = metrics.next_byte_bits(model, given["windows"]).mean(dim=1)
print(json.dumps({"bits": bits.tolist(), "bytes": metrics.file_bytes(model)}))
"""


def with_engine(name: str) -> tuple[Tensor, int]:
    """Bits of each judged document, and bytes, of the static int8 model made in a process that uses this engine."""
    save_file(
        {"calibration": first_calibration.contiguous(), "windows": shorter.contiguous()}, folder / "ids.safetensors"
    )
    root = str(Path(checks.__file__).resolve().parent.parent)
    child = subprocess.run(
        [sys.executable, "-c", OTHER_ENGINE, str(folder / "ids.safetensors")],
        cwd=root,
        env=os.environ | {"COURSE_INT8_ENGINE": name, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(child.stdout.strip().splitlines()[-1])
    return torch.tensor(answer["bits"], dtype=torch.float64), answer["bytes"]


here = torch.backends.quantized.engine
by_engine = {here: (document_bits(static, shorter), metrics.file_bytes(static))}
for other in ("qnnpack", "x86"):
    if other in int8.engines() and other not in by_engine and len(by_engine) < 2:
        by_engine[other] = with_engine(other)
tables.show(
    [
        {
            "engine": name,
            "largest code of a Linear's input": tq.get_default_qconfig(name).activation().quant_max,
            "scales of a matrix": str(tq.get_default_qconfig(name).weight().qscheme).removeprefix("torch."),
            "Δ bits per byte": signed(needed - shorter_float),
            "minus this notebook's engine (paired)": "" if name == here else signed(needed - by_engine[here][0]),
            "bytes": f"{size:,}",
        }
        for name, (needed, size) in by_engine.items()
    ]
)

# %% [markdown]
# The two engines make two different models of one and the same float model. With so few documents one cannot tell their costs apart. But they are not the same model, so quality has to be measured once more on the target.
#
# **GPU.** Which of these operations have a kernel for graphics processors? Ask PyTorch's dispatcher, the table that knows for each operation which kernels exist:

# %%
for operation, keys in {
    "quantized::linear": ("QuantizedCPU", "QuantizedCUDA", "CUDA"),
    "quantized::linear_dynamic": ("CPU", "CUDA"),
    "quantized::embedding_byte": ("CPU", "CUDA"),
    "aten::addmm": ("CPU", "CUDA"),
}.items():
    has = {key: torch._C._dispatch_has_kernel_for_dispatch_key(operation, key) for key in keys}
    print(f"{operation:26}", "   ".join(f"{key}: {'yes' if found else 'no'}" for key, found in has.items()))
print("this PyTorch was built for:", "CUDA " + torch.version.cuda if torch.version.cuda else "processors only")

# %% [markdown]
# Mind the control in the last row: `addmm`, the *float* product, certainly runs on GPUs; if it has no CUDA kernel in your table, you have a PyTorch that was built for processors only, and the "no" in the other rows proves nothing. Then the source has to answer:
# [`aten/src/ATen/native/quantized/cudnn/Linear.cpp`](https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/quantized/cudnn/Linear.cpp) registers `quantized::linear` for GPUs, in builds with cuDNN: for signed codes and one scale for a whole matrix. So an int8 Linear layer of PyTorch's own *can* have a GPU kernel, but not with the scales and the unsigned activations of this unit's models.
# [PyTorch's page on quantization](https://docs.pytorch.org/docs/stable/quantization.html) refers to torchao for all that is new. There `quantize_` (unit 02) replaces *weights* by tensors with int8 codes, and the model stays an ordinary one that, by its documentation, can be moved with `.to("cuda")` and compiled. Not run here: this course has no GPU.
#
# **Mobile.** [ExecuTorch](https://docs.pytorch.org/executorch/stable/index.html) is PyTorch's runtime for phones and smaller devices. According to its documentation the road is the one above, with other stations: `torch.export`; PT2E with the quantizer of a *backend* (for processors of phones
# [XNNPACK](https://docs.pytorch.org/executorch/stable/backends-xnnpack.html)); `to_edge_transform_and_lower`, which hands the parts of the graph that the backend knows to it; and a `.pte` file for the runtime, which is written in C++ and needs no Python. **Not run here**: ExecuTorch is not part of this course's
# environment, so there is no number of ours to give. Whoever goes there should measure what this section measured: the bits per byte of the file that ships, on the device that it ships to.

# %% [markdown]
# ## 11. The book's chapter 4, corrected
#
# Its embedding stands in section 2, its fine-tuning loop in section 9. What is left:
#
# > **The book says** (its chapter 4): attention and the feed-forward network are fully connected layers, so one `nn.Linear(128, 128)` can stand for each. The first becomes int8 with a function `prepare_static_quantized_layer`, the second with a function `quantize_static`, to which
# > an observer of the weights from `nn.quantization` is given.
# >
# > **What happens:** run the three names.

# %% tags=["nbval-check-output"]
stand_in = nn.Linear(128, 128)
for name, call in {
    "prepare_static_quantized_layer": lambda: torch.quantization.prepare_static_quantized_layer(
        stand_in, qconfig=torch.quantization.get_default_qconfig(engine)
    ),
    "quantize_static": lambda: torch.quantization.quantize_static(stand_in, dtype=torch.qint8),
    "nn.quantization": lambda: nn.quantization.default_weight_observer,
}.items():
    print(f"{name}: ", end="")
    errors.show_error(call)

# %% [markdown]
# None of the three exists in this PyTorch. `nn.quantized` exists; the observers are in `torch.ao.quantization`, and reach a layer inside a `QConfig`. Nor can a call that gets a layer and nothing else make it static: static quantization *needs data*, so it has a step in between. (`tq.quantize` is one call; it wants a function that runs the data.)
#
# > **What works:** prepare, calibrate, convert, and stubs at the ends; the layer has to be a child of the model, because the root itself is never replaced. `QuantWrapper` gives both:

# %% tags=["nbval-check-output"]
alone = copy.deepcopy(stand_in).eval()
alone.qconfig = tq.get_default_qconfig(engine)
watched = tq.prepare(alone)
watched(torch.randn(4, 128))
print("a bare Linear, prepared and converted:", type(tq.convert(watched)).__module__)

wrapped = tq.QuantWrapper(copy.deepcopy(stand_in)).eval()
wrapped.qconfig = tq.get_default_qconfig(engine)
watched = tq.prepare(wrapped)
watched(torch.randn(4, 128))  # calibration: what the layer will see
print("in a QuantWrapper:                    ", type(tq.convert(watched).module).__module__)

# %% [markdown]
# > **The claim itself:** is attention a fully connected layer? A fully connected layer is linear in its input, and treats each position alone. Test both:


# %%
def is_linear(part: nn.Module, x: Tensor, y: Tensor) -> float:
    """How far f(x + y) - f(0) is from f(x) - f(0) + f(y) - f(0), relative to it; 0 for a Linear layer."""
    with torch.no_grad():
        base = part(torch.zeros_like(x))
        together, apart = part(x + y) - base, part(x) + part(y) - 2 * base
    return relative_error(together, apart)


def other_positions(part: nn.Module, x: Tensor) -> float:
    """How much the outputs at all other positions move when the first token changes, relative to the outputs."""
    with torch.no_grad():
        changed = x.clone()
        changed[:, 0] += 1
        return ((part(changed) - part(x))[:, 1:].norm() / part(x)[:, 1:].norm()).item()


first, second = torch.randn(2, 2, 8, 256, generator=torch.Generator().manual_seed(110))
rows = []
for name, part in [
    ("one nn.Linear", course_model.blocks[0].attention.q),
    ("feed-forward network", course_model.blocks[0].ffn),
    ("attention", course_model.blocks[0].attention),
]:
    count = sum(1 for module in part.modules() if isinstance(module, nn.Linear))
    rows.append(
        {
            "part": name,
            "nn.Linear inside": count,
            "not linear by": f"{is_linear(part, first, second):.2f}",
            "other positions move by": f"{other_positions(part, first):.2f}",
        }
    )
tables.show(rows)

# %% [markdown]
# The feed-forward network treats each position alone, but is not linear: GELU. Attention is neither: it holds two products of activations with activations and a softmax, and one token moves the outputs of all others. Precisely these parts are not in any Linear layer, and they are what sections 5 and 6 had to build. Whoever
# quantizes one Linear layer has quantized one Linear layer.

# %% [markdown]
# ## Where you stand

# %% tags=["varies"]
checks.show_progress("4", exercises=10)

# %% [markdown]
# *Robin's band stands in the clearing, and no two of them are armed alike. The archers kept their arms free, the men at the gate have all the iron, and the scout wears leather. "Unfair", says one. Robin points to the cart: it is empty, and nobody limps. He
# did not ask what each of them wanted. He listened to each of them walk.*
#
# ## Key takeaways
#
# - Ask each component alone: bytes, scheme, cost with an interval, saving. What costs most and what saves most are different parts of the model (section 8's table).
# - An embedding is rows: one scale a row, and two codes in a byte at 4 bits, if the reader knows the order of the halves (4.1, 4.2). A table of constants need not be stored at all (4.3).
# - In attention, every tensor between the steps can be codes with a scale of its own. The products themselves PyTorch computes in float, on every engine that section 5 asks; softmax we leave in float, because the mask needs minus infinity, and an infinity that reaches an observer ruins everything behind it (4.4). What has a distribution of its own needs a scale of its own (4.5).
# - Every quantize is a rounding, and every crossing between float and int8 takes time; count them (4.6).
# - Sensitivity is measured from the float model, one part at a time, on data that chose nothing, as a paired difference. At equal bytes the right mixture beats the uniform width, and a reversed or random one does not; find out which decisions made the gain (4.7).
# - QAT: prepare the copy, then make the optimizer; freeze the scales, let the rate fall; eval, then convert. Without the control "as many float steps, then rounded" its gain means nothing (4.8).
# - A tie is one tensor with two names; PyTorch's quantizers cut it, and the file can grow (4.9). What ships is numbers, configuration and hash, and a loader that refuses everything else (4.10).
#
# **When not to.** Do not quantize what costs quality and saves nothing: norms, biases, a small residual stream. Do not mix widths if no kernel or file format of your target can hold them: a simulated 3-bit matrix that is stored in int8 saves no byte. Do not train (QAT) before you have tried finer scales
# and mixed widths, which need no training (they have their price, too: scales are bytes, and mixed widths need a format and kernels). And do not go below 8 bits at all when the model is small already, and its bytes are in nobody's way.
#
# **References.** Jacob et al. 2018, [Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference](https://arxiv.org/abs/1712.05877) · Dong et al. 2019,
# [HAWQ: Hessian Aware Quantization of Neural Networks with Mixed-Precision](https://arxiv.org/abs/1905.03696) (sensitivity, and widths chosen by it) · Esser et al. 2020, [Learned Step Size Quantization](https://arxiv.org/abs/1902.08153) (scales that are trained, too) · Kim et al. 2021,
# [I-BERT: Integer-only BERT Quantization](https://arxiv.org/abs/2101.01321) (softmax, GELU and LayerNorm in integers) · Hugging Face, [safetensors](https://huggingface.co/docs/safetensors/index) · PyTorch, [ExecuTorch](https://docs.pytorch.org/executorch/stable/index.html)
