# %% [markdown]
# # Evaluation and performance
#
# Learn to measure what quantization costs and what it buys so that nobody can be fooled by the table, yourself included: how far the int8 model is from the float one, how sure that is, what it weighs, and what time it takes.
#
# | At a glance | |
# |---|---|
# | **You will** | compare two models answer by answer: SQNR, KL divergence, flips; put an interval around a difference, and decide with a margin that was stated first; test paired answers; count bytes and peak memory; build a stopwatch that can be believed; place a model under the roofline of your processor; draw the frontier of size, quality and speed; study calibration; spend a budget of bytes; read a published table critically |
# | **You need** | unit 02 (static and dynamic quantization), unit 03 (kinds of Linear layers); unit 04 helps |
# | **Time** | about 8 hours, in four sittings: sections 1 and 2; 3 and 4; 5 to 7; 8 to 11 |
# | **Graded** | 10 exercises, 24 points |
#
# *The sheriff of Nottingham has heard the song about the band in the forest: half the weight, twice the speed, and every arrow still hits. He is no
# fool. He sends for a scale, a clock and a witness, and he does not ask for the best shot. He asks for all of them.*

# %%
import copy
import functools
import io
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import torch
import torch.ao.quantization as tq
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import (
    budget,
    checks,
    data,
    describe,
    environment,
    errors,
    frontier,
    fused,
    int8,
    intervals,
    known_warnings,
    latency,
    memory,
    metrics,
    next_byte,
    plots,
    pretrained,
    profiling,
    quantizable,
    rounding,
    tables,
)
from helpers.checkpoint import load_course_model

known_warnings.hide()
engine = int8.choose_engine()

# %% [markdown]
# ## 1. How far is int8 from float?
#
# > **The book says** (its chapter on PyTorch's techniques): evaluate the model, quantize it, evaluate it again with the same function.
# >
# > **What happens:** the function is never defined. And if it were, the float model would be gone by then, because the int8 one has taken its name.

# %% tags=["nbval-check-output"]
errors.show_error(lambda: exec("with torch.no_grad():\n    evaluate(model, test_loader)", {"torch": torch}))

# %% [markdown]
# > **What works:** keep both models, give both *the same questions*, and compare *answer by answer*. Two numbers, one from each model, hide almost everything that this unit shows.
#
# Here are our four models. The float course model; the same model in **static int8** (unit 04; calibrated on training documents); in **dynamic int8** (unit 01); and, so that we have something visibly damaged,
# one whose Linear weights are rounded to **4 bits**, one scale a row. The questions: the first 129 bytes of 64 held-out documents. Each model reads 128 of them and, at each position, guesses the next byte.


# %%
@torch.no_grad()
def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Next-byte logits (documents, bytes, 256) for all but the last byte of each document (documents, bytes + 1)."""
    return torch.cat([model(rows[:, :-1]) for rows in ids.split(16)])


float_model = load_course_model()
calibration = data.windows("training", 8, 257)[:, :256].split(4)  # batches of four documents
static_model = quantizable.static_int8(float_model, calibration)
models = {
    "float": float_model,
    "static int8": static_model,
    "dynamic int8": int8.dynamic_int8(float_model),
    "4-bit weights": rounding.with_rounded_linears(float_model, 4, "channel"),
}
questions = data.windows("held_out", 64, 129)
targets = questions[:, 1:]  # (documents, bytes)
logits = {name: logits_of(model, questions) for name, model in models.items()}
print("logits of each model:", tuple(logits["float"].shape))

# %% [markdown]
# ### Four distances
#
# Call the float model's logits $x$ and the int8 model's $\hat{x}$. (Logits are what the last layer returns: one number for each of the 256 possible next bytes. Softmax turns them into probabilities.)
#
# | distance | formula | what it sees |
# |---|---|---|
# | SQNR | $20 \log_{10} \dfrac{\lVert x \rVert}{\lVert x - \hat{x} \rVert}$ in decibels (dB) | the energy of the error; $\lVert x \rVert$ is the square root of the sum of all squares |
# | cosine | $\dfrac{\langle x, \hat{x} \rangle}{\lVert x \rVert\, \lVert \hat{x} \rVert}$ | whether both point in the same direction; blind for a common factor; $\langle x, \hat{x} \rangle$ is the sum of all products |
# | maximum error | $\max \lvert x - \hat{x} \rvert$ | the one worst number |
# | KL divergence | $\sum_i p_i \log_2 \dfrac{p_i}{q_i}$ in bits, at each position | what happens to the *probabilities*: $p$ are those of the float model, $q$ those of the int8 model, $i$ counts the 256 bytes |
#
# The KL divergence (after Kullback and Leibler) has a meaning that you can hold in your hand. If bytes come as the float model believes ($p$), and a compressor trusts the int8 model ($q$), it needs so many bits *more* for each byte. It is 0 only if $p = q$, and never negative. It has a
# direction: $\mathrm{KL}(p \Vert q)$ and $\mathrm{KL}(q \Vert p)$ are different numbers. And no text enters it: it compares two models, not a model with the truth.
#
# By hand: float says (1/2, 1/2), int8 says (3/4, 1/4). Then $\tfrac12 \log_2 \tfrac{1/2}{3/4} + \tfrac12 \log_2 \tfrac{1/2}{1/4} = -0.2925 + 0.5 = 0.2075$ bits. (The other way round it is 0.1887.)
#
# Do we need four? Take the error of the static int8 model, and two *controls* with exactly the same energy: the same error values **shuffled** over all positions and bytes, and an error that **shifts** all 256 logits of a position by the same amount.

# %%
x, error = logits["float"], logits["static int8"] - logits["float"]
shuffled = error.flatten()[torch.randperm(error.numel(), generator=torch.Generator().manual_seed(51))].view_as(error)
shift = (error.double().pow(2).mean().sqrt() * torch.ones_like(error)).float()
rows = []
for name, wrong in [("int8's error", error), ("shuffled", shuffled), ("the same shift for all bytes", shift)]:
    divergence = metrics.kl_bits(x, x + wrong).flatten()
    rows.append(
        {
            "error": name,
            "SQNR in dB": f"{metrics.sqnr_db(x, x + wrong):.2f}",
            "cosine": f"{metrics.cosine(x, x + wrong):.5f}",
            "maximum error": f"{wrong.abs().max().item():.3f}",
            "KL, mean, bits": f"{divergence.mean().item():.5f}",
            "KL, 99th percentile": f"{divergence.quantile(0.99).item():.4f}",
        }
    )
tables.show(rows)

# %% [markdown]
# The SQNR is the same for all three, by construction. The maximum error cannot tell the first two apart, since they consist of the same numbers, and the cosines hardly differ. Only KL tells all three apart. The shift has a KL of 0: softmax does not see it, because it divides by the sum of all exponentials. The shuffled error does more harm than int8's own, although both consist of the same numbers.
# So distances in *numbers* (SQNR, cosine, maximum) are for finding out where an error comes from. What it costs is seen in *probabilities*, or in answers.
#
# ### Exercise 5.1: four distances
# *Difficulty 2 of 5 · 25 minutes · 2 points*
#
# Write `distances`. SQNR, cosine and maximum error take all numbers of a tensor together. KL is one number for each position (the last dimension holds the 256 logits): return its mean, and its 99th percentile (`torch.quantile`, which interpolates). The percentile matters: a mean of almost nothing may hide
# one position in a hundred where the int8 model believes something else.
#
# Compute in float64. And mind the zeros: a probability can be too small for any float; its logarithm must not become minus infinity.


# %% nbgrader={"grade": false, "grade_id": "ex_5_1", "locked": false, "schema_version": 3, "solution": true, "task": false}
def distances(reference: Tensor, quantized: Tensor) -> dict[str, float]:
    """How far the quantized model's logits are from the float model's.

    Parameters
    ----------
    reference, quantized : Tensor, float32, (..., vocab_size)
        Logits of the float and of the quantized model for the same inputs; finite, but possibly thousands apart. Not
        changed.

    Returns
    -------
    dict of str to float (Python's numbers, no tensors)
        "sqnr_db" (infinite if there is no error), "cosine", "max_error"; "kl_mean" and "kl_p99" in bits: mean and 99th
        percentile over positions of KL(reference ‖ quantized).

    Example
    -------
    >>> distances(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log())["kl_mean"]
    0.2075...
    """
    ### BEGIN SOLUTION
    x, y = reference.double(), quantized.double()
    noise = (x - y).norm()
    log_p, log_q = x.log_softmax(dim=-1), y.log_softmax(dim=-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1).flatten() / math.log(2)  # (positions,)
    return {
        "sqnr_db": 20 * math.log10(x.norm() / noise) if noise > 0 else math.inf,
        "cosine": ((x * y).sum() / (x.norm() * y.norm())).item(),
        "max_error": (x - y).abs().max().item(),
        "kl_mean": kl.mean().item(),
        "kl_p99": kl.quantile(0.99).item(),
    }
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_5_1_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 5.1: run this cell.
import math

import numpy as np
import torch

from helpers import checks, samples


@checks.isolated
def check_ex_5_1() -> None:
    def probabilities(z: np.ndarray, axis: int) -> np.ndarray:
        powers = np.exp(z - z.max(axis, keepdims=True))
        return powers / powers.sum(axis, keepdims=True)

    def wanted(a: torch.Tensor, b: torch.Tensor) -> tuple[dict, dict]:
        """The right numbers, and for each of them what known mistakes give; NumPy, float64."""
        a, b = a.numpy().astype(np.float64), b.numpy().astype(np.float64)
        p, q = probabilities(a, -1), probabilities(b, -1)
        terms = p * (np.log2(p) - np.log2(q))
        kl = terms.sum(-1).ravel()
        back = (q * (np.log2(q) - np.log2(p))).sum(-1).ravel()
        p0, q0 = probabilities(a, 0), probabilities(b, 0)
        across = (p0 * np.log2(p0 / q0)).sum(0).ravel()
        signal, left = np.sqrt((a**2).sum()), np.sqrt(((a - b) ** 2).sum())
        db = 20 * np.log10(signal / left)
        each = (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
        first, second = a.reshape(len(a), -1), b.reshape(len(b), -1)  # by the first dimension
        powers, noises = (first**2).sum(1), ((first - second) ** 2).sum(1)
        each_first = (first * second).sum(1) / np.sqrt(powers * (second**2).sum(1))
        each_power, each_noise = (a**2).sum(-1), ((a - b) ** 2).sum(-1)
        right = {
            "sqnr_db": db,
            "cosine": (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()),
            "max_error": np.abs(a - b).max(),
            "kl_mean": kl.mean(),
            "kl_p99": np.quantile(kl, 0.99),
        }
        direction = (
            "the direction is reversed: the float model's probabilities p are the weights, and stand above the line."
        )
        nats = "this is in nats: divide by log(2), or take log2."
        tens = "this is in powers of ten (log10): a bit is a power of two, so take log2."
        axis = "softmax runs over the wrong axis: the 256 logits of a position are the last dimension."
        mistakes = {
            "sqnr_db": {
                "norms are amplitudes: 20 times the logarithm of their ratio (10 is for energies).": db / 2,
                "signal and noise are swapped: the norm of the float logits stands above the line.": -db,
                "the logarithm is the natural one, not log10.": db * np.log(10),
                "20 times the logarithm of a ratio of *squared* norms counts everything twice.": 2 * db,
                "the signal is the float model's logits, not the quantized ones.": 20
                * np.log10(np.sqrt((b**2).sum()) / left),
                "it is the mean of one SQNR for each position: take all numbers as one long vector.": 10
                * np.log10(each_power / each_noise).mean(),
                "it is the mean of one SQNR for each entry of the first dimension: take all numbers as one long vector.": 10
                * np.log10(powers / noises).mean(),
                "it is made of a mean of noise-to-signal ratios, one for each entry of the first dimension: take all numbers as one long vector.": -10
                * np.log10((noises / powers).mean()),
            },
            "cosine": {
                "it is the mean of one cosine for each position: take all numbers as one long vector.": each.mean(),
                "it is the mean of one cosine for each entry of the first dimension: take all numbers as one long vector.": (
                    each_first.mean()
                ),
                "it is the cosine of what is left after the means are subtracted, a correlation: take the numbers as they are.": (
                    np.corrcoef(a.ravel(), b.ravel())[0, 1]
                ),
                "it is one minus the cosine.": 1 - right["cosine"],
            },
            "max_error": {
                "the sign was kept: errors downwards count, too (abs).": (b - a).max(),
                "the sign was kept: errors upwards count, too (abs).": (a - b).max(),
                "it is the mean error, not the largest.": np.abs(a - b).mean(),
                "it is the largest *squared* error: take the root, or abs.": np.abs(a - b).max() ** 2,
                "it is the largest error of a probability, not of a logit.": np.abs(p - q).max(),
            },
            "kl_mean": {
                direction: back.mean(),
                nats: kl.mean() * np.log(2),
                tens: kl.mean() * np.log10(2),
                direction + " (And this is in nats.)": back.mean() * np.log(2),
                "it is symmetric, the mean of both directions: only p, of the float model, weighs.": (kl + back).mean()
                / 2,
                "the sum is divided by the first dimension alone (batchmean): take the mean over all positions.": kl.sum()
                / len(a)
                if a.ndim > 2
                else -1.0,
                axis: across.mean(),
                axis + " (And this is in nats.)": across.mean() * np.log(2),
                "it is summed over the positions: take the mean of them.": kl.sum(),
                "the terms of a position are averaged: they are summed over the 256 bytes.": terms.mean(),
                "the logarithms are summed without their weights p.": (np.log2(p) - np.log2(q)).sum(-1).mean(),
                "the logarithm of a sum is not the sum of the logarithms: weigh each logarithm with p, then sum.": (
                    np.log2((p * p / q).sum(-1)).mean()
                ),
                "it is a cross-entropy: the entropy of p is not subtracted.": -(p * np.log2(q)).sum(-1).mean(),
            },
            "kl_p99": {
                direction: np.quantile(back, 0.99),
                nats: right["kl_p99"] * np.log(2),
                tens: right["kl_p99"] * np.log10(2),
                axis: np.quantile(across, 0.99),
                "it is the next smaller of the KLs: torch.quantile interpolates between the two that are nearest.": np.quantile(
                    kl, 0.99, method="lower"
                ),
                "it is the next larger of the KLs: torch.quantile interpolates between the two that are nearest.": np.quantile(
                    kl, 0.99, method="higher"
                ),
                "it is the 95th percentile.": np.quantile(kl, 0.95),
                "it is the mean of one percentile for each entry of the first dimension: take all positions together.": np.quantile(
                    kl.reshape(a.shape[0], -1), 0.99, axis=1
                ).mean()
                if a.ndim > 2
                else -1.0,
                "it is the largest one.": kl.max(),
                "it is the first percentile: 99 of 100 positions should be below.": np.quantile(kl, 0.01),
                "it is the mean.": kl.mean(),
                "the percentile is taken of the terms, not of the sums over the 256 bytes.": np.quantile(terms, 0.99),
            },
        }
        return right, mistakes

    def draw(seed: int, shape: tuple[int, ...], size: float) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        a = 3 * torch.randn(shape, generator=generator) - 1.3
        loud = torch.linspace(0.4, 2.0, shape[0]).view(-1, *[1] * (len(shape) - 1))  # so that entries are not alike
        a = loud * a if len(shape) > 1 else a
        return a, a + 3 * size * torch.randn(shape, generator=generator) + 0.1 * size

    def asked(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
        """Your five numbers; neither the logits nor the default dtype may be changed."""
        usual, watched = torch.get_default_dtype(), torch.is_grad_enabled()
        try:
            with checks.untouched(reference=a, quantized=b):
                answer = distances(a, b)
            left_behind = torch.get_default_dtype()
        finally:
            torch.set_default_dtype(usual)
        assert left_behind == usual, (
            "your function changes PyTorch's default dtype for the whole notebook: convert the two tensors instead (.double())."
        )
        assert torch.is_grad_enabled() == watched, (
            "your code switches gradients off for the whole notebook: use `with torch.no_grad():`, which ends."
        )
        keys = "sqnr_db", "cosine", "max_error", "kl_mean", "kl_p99"
        assert isinstance(answer, dict) and set(keys) <= set(answer), (
            f"your answer should be a dict with the keys {', '.join(keys)}."
        )
        for name in keys:
            assert isinstance(answer[name], float | int), (
                f'your "{name}" is a {type(answer[name]).__name__}: the docstring promises one of Python\'s numbers (.item()).'
            )
        return answer

    with checks.check(
        "5.1", "your distances are right in all five numbers, also where a probability is 0 in every float"
    ):
        for seed, shape, size in [
            (53, (6, 40, 30), 0.2),
            (57, (300, 12), 0.02),
            (51, (2, 3, 50, 64), 0.7),
            (54, (40,), 0.3),
        ]:
            a, b = draw(seed, shape, size)
            right, mistakes = wanted(a, b)
            answer = asked(a, b)
            for name, value in right.items():
                off = abs(answer[name] - value) / abs(value)
                known = any(abs(answer[name] - m) <= 1e-6 * abs(m) for m in mistakes[name].values())
                assert known or not 1e-10 < off < 1e-3, (
                    f'your "{name}" has too few right digits: convert to float64 first (.double()), add nothing small, and round nothing.'
                )
                rtol = 1e-6 if known else 1e-4
                checks.number(answer[name], value, f'your "{name}" for logits of shape {shape}', mistakes[name], rtol)
        a, b = draw(55, (9, 20, 16), 0.1)
        right = wanted(a, b)[0]
        for (form, x), (_, y) in zip(samples.awkward(a), samples.awkward(b), strict=True):
            if not x.requires_grad:
                here, answer = wanted(x, y)[0] if x.shape != a.shape else right, asked(x, y)
                for name, value in here.items():
                    assert abs(answer[name] / value - 1) < 1e-6, (
                        f'your "{name}" is {answer[name]:.6g} and should be {value:.6g} for {form}: mind views that are not contiguous.'
                    )
        quiet = draw(56, (5, 8, 12), 1e-5)
        for name, value in wanted(*quiet)[0].items():
            answer = asked(*quiet)[name]
            assert abs(answer / value - 1) < 1e-5, (
                f'your "{name}" for two models that are nearly equal is {answer:.4g} and should be {value:.4g}: what differs are the last digits of float32. Convert both tensors to float64 before anything else (.double()).'
            )
        far = torch.tensor([[0.0, -2000.0, 3.0], [900.0, 0.0, -900.0]])
        answer = asked(far, far + torch.tensor([0.0, 5.0, 0.5]))
        for name in ("kl_mean", "kl_p99"):
            assert math.isfinite(answer[name]), (
                f'your "{name}" is {answer[name]} for logits that lie 2,000 apart: there a probability is 0 in every float, and 0 times the logarithm of 0 is nan. '
                "Take log_softmax, which gives the logarithm without the detour."
            )
        # The second byte is likely in q only, the third in p only: there q is e^-2000, which is 0 in every float.
        one, other = torch.tensor([[0.0, -2000.0, 3.0]]), torch.tensor([[0.0, 3.0, -2000.0]])
        cost = 2003 / math.log(2) / (1 + math.exp(-3))
        answer = asked(one, other)
        for name in ("kl_mean", "kl_p99"):
            assert abs(answer[name] / cost - 1) < 1e-6, (
                f'your "{name}" is {answer[name]:.6g} for the logits (0, -2000, 3) against (0, 3, -2000), and should be {cost:.6g}: the likely byte has a q that is too small for any float, and its logarithm is about -2003. '
                + (
                    "Such a byte is left out: it counts."
                    if abs(answer[name]) < 1e-3
                    else "Infinity or nan is replaced, by 0 or by a huge number."
                    if abs(answer[name]) > 1e6
                    else "Something small stands in the place of q: clamped, or added."
                )
                + " Take log_softmax."
            )
        same = asked(far, far.clone())
        assert same["sqnr_db"] == math.inf, "without any error, the SQNR is infinite (math.inf): do not divide by 0."
        assert abs(same["kl_mean"]) < 1e-9, "two equal models have a KL divergence of 0."
        a = 1e-7 * draw(58, (5, 8), 0.1)[0]
        b = torch.nextafter(a, torch.tensor(math.inf))  # one unit in the last digit
        for name in ("sqnr_db", "cosine", "max_error"):
            value, answer = wanted(a, b)[0][name], asked(a, b)[name]
            assert abs(answer / value - 1) < 1e-9, (
                f'your "{name}" is {answer:.6g} and should be {value:.6g} for logits of about 1e-7 that differ in their last digit: convert first (.double()), add nothing small, and take nothing that is nearly equal for equal.'
            )
        a, b = torch.tensor([[0.0, -30.1, 5.0]]), torch.tensor([[0.0, -9000.3, 5.0]])
        cost = math.exp(-35.1) / (1 + math.exp(-5)) * 8970.2 / math.log(2)
        answer = asked(a, b)
        for name in ("kl_mean", "kl_p99"):
            assert abs(answer[name] / cost - 1) < 1e-3, (
                f'your "{name}" is {answer[name]:.6g} for the logits (0, -30.1, 5) against (0, -9000.3, 5), and should be {cost:.6g}: a byte with a tiny p counts, too, and the logarithm of its q is about -9005. Leave out nothing, and clamp nothing.'
            )
        apart = (a.double() - b.double()).abs().max().item()
        assert abs(answer["max_error"] / apart - 1) < 1e-3, (
            f"your max_error is {answer['max_error']} for logits that differ by {apart:.1f}: they may lie thousands apart."
        )
        assert abs(answer["max_error"] / apart - 1) < 1e-12, (
            f"your max_error is {answer['max_error']} and should be {apart}: convert to float64 before you subtract."
        )
    ### BEGIN HIDDEN TESTS
    cases = [
        (511, (5, 7, 256), 0.1),
        (512, (64, 5), 0.5),
        (514, (70,), 0.2),
        (515, (6, 11, 9), 1e-5),
        (513, (1, 200, 17), 0.01),
    ]
    for seed, shape, size in cases:
        a, b = draw(seed, shape, size)
        for one, other in (
            (a, b),
            (b, a),
            (a.clone().t().contiguous().t() if a.dim() == 2 else a[..., ::2], b if a.dim() == 2 else b[..., ::2]),
        ):
            right, _ = wanted(one, other)
            answer = asked(one, other)
            for name, value in right.items():
                assert abs(answer[name] - value) <= (1e-10 if size > 1e-3 else 1e-5) * abs(value), (
                    f"{name} is {answer[name]}, not {value}."
                )
    b = a.clone()
    b[0, 3, 4] += 2000
    answer, lowest = asked(a, b), asked(b, a)
    assert all(math.isfinite(answer[k]) and math.isfinite(lowest[k]) for k in answer), "not finite for far logits."
    p = probabilities(a[0, 3].double().numpy(), -1)
    cost = 2000 / math.log(2) * (1 - p[4]) / 200
    assert abs(answer["kl_mean"] / cost - 1) < 0.02 and answer["max_error"] > 1999, (
        "wrong for logits that lie far apart."
    )
    one, other = (
        torch.tensor([[0.0, 5.0, -1500.0], [1.0, 2.0, 3.0]]),
        torch.tensor([[0.0, -1500.0, 5.0], [1.0, 2.0, 3.0]]),
    )
    apart = 1505 / math.log(2) / (1 + math.exp(-5))
    answer = distances(one, other)
    assert abs(answer["kl_mean"] / (apart / 2) - 1) < 1e-6, "wrong where q is 0 in every float, and p is not."
    assert abs(answer["kl_p99"] / (0.99 * apart) - 1) < 1e-6, "wrong percentile where q is 0 in every float."
    one, other = torch.tensor([[0.0, -29.0]]), torch.tensor([[0.0, -8029.0]])
    answer = asked(one, other)
    assert abs(answer["kl_mean"] / (8000 * math.exp(-29) / math.log(2)) - 1) < 1e-3, "a byte with a tiny p is left out."
    assert answer["max_error"] == 8000, "a large error is cut off."
    tiny = 1e-7 * draw(516, (7, 4), 0.1)[0]
    other = torch.nextafter(tiny, torch.tensor(-math.inf))
    right, answer = wanted(tiny, other)[0], asked(tiny, other)
    assert all(abs(answer[k] / right[k] - 1) < 1e-9 for k in ("sqnr_db", "cosine", "max_error")), (
        "wrong for quiet logits."
    )
    shifted = distances(a, a + 3.0)
    assert abs(shifted["kl_mean"]) < 1e-6 and shifted["sqnr_db"] < 60, "a common shift must not change the KL."
    assert distances(a, a.clone())["sqnr_db"] == math.inf, "equal logits."
    ### END HIDDEN TESTS


check_ex_5_1()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Convert both tensors with `.double()` first. Then three one-liners, and a KL for which you never need a probability's logarithm: you have it already.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `log_softmax(dim=-1)` gives $\log p$ and $\log q$, always finite. $p$ itself is `exp` of the first. Sum over the last dimension; only then mean and quantile. The natural logarithm gives nats: divide by `math.log(2)`.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `kl = (log_p.exp() * (log_p - …)).sum(dim=…).flatten() / …`; `kl.quantile(0.99)`. SQNR: `20 * math.log10(norm of x / norm of the difference)`, and `math.inf` where the difference is 0. Cosine: the sum of `x * y`, divided by the product of both norms.
# </details>

# %% [markdown]
# ### The profile: where does the error come from?
#
# A number for the whole model does not say where to look. So compare the two models *layer by layer*: the same documents go through both, and each of the 25 Linear layers gives its SQNR. Two versions of the question:
#
# - **arriving**: the layer's output in the int8 model against that in the float model. Contains the errors of all layers before it.
# - **own**: the int8 layer gets the *float* model's input, rounded to the scale it is used to. Contains its own rounding only.


# %%
@torch.no_grad()
def inputs_and_outputs(model: nn.Module, names: list[str], ids: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What goes into each named layer and what comes out of it, for one call."""
    found, hooks = {}, []
    for name in names:
        keep = lambda module, arriving, leaving, name=name: found.update({name: (arriving[0], leaving)})  # noqa: E731
        hooks.append(model.get_submodule(name).register_forward_hook(keep))
    model(ids)
    for hook in hooks:
        hook.remove()
    return found


layers = [name for name, module in float_model.named_modules() if isinstance(module, nn.Linear)]
some = questions[:12, :-1]
exact, coarse = inputs_and_outputs(float_model, layers, some), inputs_and_outputs(static_model, layers, some)
profile = {"arriving": {}, "own": {}}
for name in layers:
    (x, y), (x_int8, y_int8) = exact[name], coarse[name]
    on_its_grid = torch.quantize_per_tensor(x, x_int8.q_scale(), x_int8.q_zero_point(), x_int8.dtype)
    alone = static_model.get_submodule(name)(on_its_grid)
    profile["arriving"][name] = metrics.sqnr_db(y, y_int8.dequantize())
    profile["own"][name] = metrics.sqnr_db(y, alone.dequantize())

short = [name.replace("blocks.", "").replace("attention.", "").replace("ffn.", "") for name in layers]
fig, ax = plots.figure(width=9.5, height=3.4)
ax.plot(short, list(profile["own"].values()), "o--", color=plots.ORANGE, label="own rounding only")
ax.plot(short, list(profile["arriving"].values()), "s-", color=plots.BLUE, label="with all errors that arrive")
ax.tick_params(axis="x", labelrotation=60)
ax.set_ylabel("SQNR of the output in dB")
ax.legend()
lowest = {kind: min(values, key=values.get) for kind, values in profile.items()}
plots.show(
    fig,
    caption="Static int8 against float, layer by layer (block number and name), on held-out documents; higher is better.",
    alt="Two lines over the 25 Linear layers, from the first block to the head. Own rounding is the upper line in "
    f"{sum(profile['own'][n] > profile['arriving'][n] for n in layers)} of them; the line with all arriving errors lies below it there. The lowest layer of own rounding is {lowest['own']}, the lowest of the other {lowest['arriving']}.",
)
print({kind: f"lowest: {name}, {profile[kind][name]:.1f} dB" for kind, name in lowest.items()})

# %% [markdown]
# Read the distance between the lines. Where they are far apart, the layer suffers from what came before it, and it is no use to spend bits on the layer itself. Where they touch, the layer's own rounding is what hurts.
#
# It is tempting to go on: "the layer with the lowest SQNR is the one that matters". **Is that so?** A claim like this needs two things: a measurement of what matters, and a *random control*. Take the float model and round one layer alone, brutally: 4 bits, one scale for the
# whole weight. Measure the SQNR of its own output, and the KL of the whole model. If low SQNR meant harm, the ranks of the two lists would run against each other: a rank correlation near −1. (A rank correlation compares positions in a sorted list; 0 is "no relation".) The control: the same correlation for 2,000 random orders of the layers.

# %%
few = questions[:4, :-1]
entering = inputs_and_outputs(float_model, layers, few)
own_sqnr, harm = [], []
with torch.no_grad():
    believed = float_model(few)
    for name in layers:
        layer = float_model.get_submodule(name)
        kept = layer.weight
        layer.weight = nn.Parameter(rounding.round_to_nearest(kept, 4, None))
        own_sqnr.append(metrics.sqnr_db(entering[name][1], layer(entering[name][0])))
        harm.append(metrics.kl_bits(believed, float_model(few)).mean().item())
        layer.weight = kept  # the very tensor: the tied embedding never noticed


def ranks(values: list[float]) -> np.ndarray:
    """Place of each value in the sorted list."""
    return np.argsort(np.argsort(values))


correlation = np.corrcoef(ranks(own_sqnr), ranks(harm))[0, 1]
shuffle = np.random.default_rng(52)
by_chance = np.array([np.corrcoef(shuffle.permutation(len(layers)), ranks(harm))[0, 1] for _ in range(2000)])

fig, (left, right) = plots.figure(columns=2, width=9.5, height=3.2)
kinds = {
    "attention": ("o", plots.BLUE),
    "ffn.up": ("^", plots.GREEN),
    "ffn.down": ("v", plots.RED),
    "head": ("*", plots.PURPLE),
}
for kind, (marker, colour) in kinds.items():
    chosen = [i for i, name in enumerate(layers) if kind in name]
    left.plot([own_sqnr[i] for i in chosen], [harm[i] for i in chosen], marker, color=colour, label=kind, markersize=8)
left.set_yscale("log")
left.set_xlabel("SQNR of the layer's own output in dB")
left.set_ylabel("KL of the model in bits")
left.legend(fontsize=8)
right.hist(by_chance, bins=40, color=plots.GREY)
right.axvline(correlation, color=plots.RED, linestyle="--")
right.set_xlabel("rank correlation: 2,000 random orders; dashed: ours")
right.set_yticks([])
plots.show(
    fig,
    caption="Left: each of the 25 layers rounded alone to 4 bits, one scale; what its own output loses, and what the model loses. Right: would a random order of the layers correlate as well?",
    alt="Left, a scatter of layers: among the layers of one kind lower SQNR goes with larger KL, but the head, with the highest SQNR, is among the most harmful. "
    "Right, a histogram of rank correlations of random orders around 0, with a dashed line for the measured one on its left side.",
)
print(f"rank correlation {correlation:.2f}; random orders at or below it: {np.mean(by_chance <= correlation):.1%}")
best = max(range(len(layers)), key=lambda i: own_sqnr[i])
place = sorted(harm, reverse=True).index(harm[best]) + 1
print(f"highest SQNR: {layers[best]}, {own_sqnr[best]:.1f} dB; its harm takes place {place} of {len(layers)}")

# %% [markdown]
# There is something in it: the dashed line lies at the edge of what chance does. And it is far from −1. The head keeps the best SQNR of all layers and does more harm than most. (One may suppose that this is because its output is the answer itself, with no layer behind it; the experiment does not test that.) So: SQNR finds *candidates*. What matters is decided by the model's own output (section 7 does it with a budget).
#
# ### Same accuracy, different answers
#
# Now answers instead of numbers. The *answer* of a model at a position is its likeliest byte (top-1). **Accuracy** is the share of right answers. If the int8 model has the same accuracy, does it give the same answers? Not at all. An answer that was right may become wrong (*broken*), and one that was wrong may become right (*repaired*). Accuracy only sees the
# difference. What a user sees is the sum, the **flips** (Dutta and others, 2024, "Accuracy is Not All You Need"). And beyond flips there are answers that were wrong and are wrong in another way; they lower the **agreement**, the share of equal answers.
#
# By hand: five questions, the right answers are A A A A A. Float says A A B B A; int8 says A C A C B. Float has 3 of 5 right, int8 2 of 5: the accuracy fell by 1/5. Broken: 2 (the second and the last). Repaired: 1 (the third). Flips: 3/5. The fourth answer changed from wrong to wrong. Agreement: 1/5.
#
# ### Exercise 5.2: flips
# *Difficulty 1 of 5 · 15 minutes · 2 points*
#
# Write `compare_answers`. All numbers are shares of all answers.


# %% nbgrader={"grade": false, "grade_id": "ex_5_2", "locked": false, "schema_version": 3, "solution": true, "task": false}
def compare_answers(targets: Tensor, before: Tensor, after: Tensor) -> dict[str, float]:
    """What became of the answers.

    Parameters
    ----------
    targets, before, after : Tensor, int64, any one shape
        The right answers, those of the float model, and those of the quantized model.

    Returns
    -------
    dict of str to float
        Shares of all answers: "accuracy_difference" (quantized − float, may be negative), "broken" (right before, wrong
        after), "repaired" (wrong before, right after), "flips" (broken or repaired), "agreement" (the same answer).

    Example
    -------
    >>> compare_answers(torch.tensor([1, 1, 1, 1, 1]), torch.tensor([1, 1, 2, 2, 1]), torch.tensor([1, 3, 1, 3, 2]))
    {'accuracy_difference': -0.2, 'broken': 0.4, 'repaired': 0.2, 'flips': 0.6, 'agreement': 0.2}
    """
    ### BEGIN SOLUTION
    was_right, is_right = before == targets, after == targets
    share = lambda mask: mask.double().mean().item()  # noqa: E731
    broken, repaired = share(was_right & ~is_right), share(is_right & ~was_right)
    return {
        "accuracy_difference": share(is_right) - share(was_right),
        "broken": broken,
        "repaired": repaired,
        "flips": broken + repaired,
        "agreement": share(before == after),
    }
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_5_2_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 5.2: run this cell.
import torch

from helpers import checks, samples


@checks.isolated
def check_ex_5_2() -> None:
    def counted(targets: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> dict[str, float]:
        """One answer after the other, in plain Python."""
        n, lost, won, same = targets.numel(), 0, 0, 0
        for t, b, a in zip(*(z.flatten().tolist() for z in (targets, before, after)), strict=True):
            lost, won, same = lost + (b == t != a), won + (b != t == a), same + (a == b)
        return {
            "accuracy_difference": (won - lost) / n,
            "broken": lost / n,
            "repaired": won / n,
            "flips": (lost + won) / n,
            "agreement": same / n,
        }

    def judge(what: str, targets: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> None:
        right, n = counted(targets, before, after), targets.numel()
        with checks.untouched(targets=targets, before=before, after=after):
            answer = compare_answers(targets, before, after)
        assert isinstance(answer, dict) and set(right) <= set(answer), (
            f"your answer should be a dict with the keys {', '.join(right)}."
        )
        changed = (before != after).sum().item() / n
        stayed_right = ((before == after) & (before == targets)).sum().item() / n
        was_right, is_right = ((x == targets).sum().item() for x in (before, after))
        mistakes = {
            "accuracy_difference": {
                "the sign is reversed, or lost: quantized minus float, so a loss is negative.": -right[
                    "accuracy_difference"
                ],
                "it is relative, a part of the accuracy before: subtract, and do not divide.": (is_right - was_right)
                / max(was_right, 1),
                "it is the accuracy after, and nothing is subtracted.": is_right / n,
            },
            "broken": {
                "these are the repaired ones: broken means right before and wrong after.": right["repaired"],
                "answers that changed from wrong to wrong are no flips.": changed - right["repaired"],
                "it is a part of those that were right before: all answers count below the line.": right["broken"]
                * n
                / max(was_right, 1),
                "these are all wrong answers after quantization: those that were wrong before were not broken.": 1
                - is_right / n,
            },
            "repaired": {
                "these are the broken ones: repaired means wrong before and right after.": right["broken"],
                "answers that changed from wrong to wrong are no flips.": changed - right["broken"],
                "it is a part of those that were wrong before: all answers count below the line.": right["repaired"]
                * n
                / max(n - was_right, 1),
                "these are all right answers after quantization: those that were right before were not repaired.": is_right
                / n,
            },
            "flips": {
                "this is the difference in accuracy: flips in both directions cancel in it. Add them.": abs(
                    right["accuracy_difference"]
                ),
                "this is the difference in accuracy, with its sign: add broken and repaired.": right[
                    "accuracy_difference"
                ],
                "only broken answers are counted: repaired ones are flips, too.": right["broken"],
                "every changed answer is counted: one that was wrong and is wrong in another way is no flip.": changed,
            },
            "agreement": {
                "only right answers are counted: two models that give the same wrong answer agree as well.": stayed_right,
                "this is one minus the flips (whether both are right or both wrong): answers that changed from wrong to wrong do not agree.": 1
                - right["flips"],
                "this is the share of *different* answers.": changed,
            },
        }
        for name, value in right.items():
            size = torch.as_tensor(answer[name]).numel()
            assert size == 1, (
                f'your "{name}" for {what} has {size} numbers: it is one share of all answers, so take the mean over all axes.'
            )
            assert isinstance(answer[name], float | int), (
                f'your "{name}" is a {type(answer[name]).__name__}: the docstring promises one of Python\'s numbers (.item()).'
            )
            given = float(answer[name])
            if value and abs(given / (100 * value) - 1) < 1e-6 and n != 100:
                raise AssertionError(f'your "{name}" for {what} is in per cent: a share lies between 0 and 1.')
            if abs(given - value * n) < 1e-9 and n > 1 and value:
                raise AssertionError(f'your "{name}" for {what} is a count: divide by the number of answers.')
            mine = {sentence: other for sentence, other in mistakes[name].items() if abs(other - value) > 1e-9}
            checks.number(given, value, f'your "{name}" for {what}', mine, rtol=1e-6)

    def draw(seed: int, shape: tuple[int, ...], choices: int, keep: float) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        t, b, other = (torch.randint(choices, shape, generator=generator) for _ in range(3))
        b = torch.where(torch.rand(shape, generator=generator) < 0.5, t, b)
        return t, b, torch.where(torch.rand(shape, generator=generator) < keep, b, other)

    with checks.check("5.2", "you see flips that the accuracy hides"):
        judge("400 random answers", *draw(521, (20, 20), 4, 0.6))
        judge("random answers of three dimensions", *draw(523, (4, 7, 5), 4, 0.6))
        one = torch.ones(5, dtype=torch.int64)
        judge("the five answers of the example", one, torch.tensor([1, 1, 2, 2, 1]), torch.tensor([1, 3, 1, 3, 2]))
        t = torch.tensor([4, 4, 4, 4, 4, 4])
        judge(
            "two models with the same accuracy", t, torch.tensor([4, 4, 4, 0, 0, 2]), torch.tensor([0, 4, 4, 4, 3, 2])
        )
        judge("two equal models", t, t - 1, t - 1)
        judge("a single answer without any dimension", *(torch.tensor(x) for x in (3, 3, 5)))
        judge("three answers of which one was repaired", *(torch.tensor(x) for x in ([3, 3, 3], [3, 5, 4], [3, 3, 4])))
        t, b, a = draw(524, (6, 9), 4, 0.5)
        right = counted(t, b, a)
        for step, start, why in [
            (256, 0, "A byte tells only 256 numbers apart: compare the int64 numbers as they are."),
            (1, 2**25, "float32 tells whole numbers apart only up to 2**24: compare the int64 numbers as they are."),
            (2**32, 2**40, "These need more than 32 bits: compare the int64 numbers as they are."),
            (-100, 0, "Negative ones count as well: leave out nothing."),
        ]:
            given = [z * step + start for z in (t, b, a)]
            answer = compare_answers(*given)
            assert all(abs(answer[name] - value) < 1e-6 for name, value in right.items()), (
                f"your shares change when the answers are called {start}, {start + step}, {start + 2 * step} and so on. {why}"
            )
        forms = (samples.awkward(x) for x in draw(522, (6, 9), 3, 0.5))
        for (form, t), (_, b), (_, a) in zip(*forms, strict=True):
            judge(form, t, b, a)
    ### BEGIN HIDDEN TESTS
    for seed, shape, choices, keep in [
        (5201, (7, 9), 5, 0.3),
        (5202, (1000,), 2, 0.9),
        (5203, (3, 4, 5), 256, 0.5),
        (5204, (1,), 2, 0.0),
        (5205, (), 2, 0.0),
    ]:
        t, b, a = draw(seed, shape, choices, keep)
        for step, start in ((1, -1), (256, 0), (1, 2**24), (2**32, -5)):
            given = [z * step + start for z in (t, b, a)]
            expected, answer = counted(*given), compare_answers(*given)
            assert all(abs(answer[k] - v) < 1e-6 for k, v in expected.items()), "wrong for large or negative numbers."
        for now, then in ((a, b), (b, a)):
            for forms in zip(*(samples.awkward(x) for x in (t, then, now)), strict=True):
                t0, b0, a0 = (x for _, x in forms)
                with checks.untouched(targets=t0, before=b0, after=a0):
                    expected, answer = counted(t0, b0, a0), compare_answers(t0, b0, a0)
                assert all(isinstance(answer[k], float | int) for k in expected), "tensors for numbers."
                assert all(abs(answer[k] - v) < 1e-6 for k, v in expected.items()), f"{answer} instead of {expected}."
    ### END HIDDEN TESTS


check_ex_5_2()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two masks are enough for four of the five numbers: where the float model is right, and where the quantized one is.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `was_right = before == targets`, and the same for after. Broken: `was_right & ~is_right`. The mean of a mask (after `.double()`) is a share. Agreement does not look at the targets.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `broken = (was_right & ~is_right).double().mean().item()`; repaired the other way round; flips is their sum; the accuracy difference is repaired minus broken; agreement is the mean of `before == after`.
# </details>

# %%
answers = {name: values.argmax(dim=-1) for name, values in logits.items()}
rows = []
for name in list(models)[1:]:
    broken, repaired = metrics.flips(targets, answers["float"], answers[name])
    divergence = metrics.kl_bits(logits["float"], logits[name]).flatten()
    rows.append(
        {
            "model": name,
            "accuracy, difference": f"{(repaired - broken) / targets.numel():+.2%}",
            "broken": broken,
            "repaired": repaired,
            "flips": f"{(repaired + broken) / targets.numel():.2%}",
            "agreement": f"{metrics.agreement(answers['float'], answers[name]):.2%}",
            "KL, mean, bits": f"{divergence.mean().item():.4f}",
            "KL, 99th percentile": f"{divergence.quantile(0.99).item():.3f}",
        }
    )
tables.show(rows)

# %% [markdown]
# In every row the flips are several times the difference in accuracy: most of the damage is paid back by luck. Whoever reports only the difference in accuracy hides most of the answers that changed.
#
# *Why* do answers change? One guess: where the float model was undecided anyway, a small error tips the scale. How undecided it was is its **lead**: how many bits of log-probability lie between its first and its second choice. The guess says something about the changed answers, so it needs a random control: as many positions, drawn at random.

# %%
top = logits["float"].double().log_softmax(dim=-1).topk(2, dim=-1).values / metrics.NATS_PER_BIT
lead = (top[..., 0] - top[..., 1]).flatten()  # (positions,)
changed = lead[(answers["float"] != answers["static int8"]).flatten()]
drawn = lead[torch.randperm(len(lead), generator=torch.Generator().manual_seed(53))[: len(changed)]]

fig, ax = plots.figure(width=7.5, height=2.8)
for values, label, style, colour in [
    (changed, f"the {len(changed)} answers that changed", "-", plots.RED),
    (drawn, f"{len(drawn)} answers drawn at random", "--", plots.GREY),
]:
    ax.plot(values.sort().values, torch.linspace(0, 1, len(values)), style, color=colour, label=label)
ax.set_xlabel("lead of the float model's first choice over its second, bits")
ax.set_ylabel("share of answers\nwith at most this lead")
ax.set_xlim(0, 12)
ax.legend()
plots.show(
    fig,
    caption="Static int8 changes answers that were nearly a draw.",
    alt="Two rising curves. The one of changed answers reaches 1 within the first bits of lead; the one of random answers rises slowly.",
)
print(f"median lead: {changed.median():.2f} bits where the answer changed, {drawn.median():.2f} bits at random")

# %% [markdown]
# The guess holds. It also tells you when int8 is dangerous: where a decision is made on a small lead, such as a threshold, or a ranking of near equals.
#
# ## 2. How sure are we?
#
# On these 64 documents, static int8 needs nearly as many bits per byte as float. On *these*. Would it on 64 others? A difference without an interval is an anecdote.
#
# First look at the differences themselves. Each document gives one: int8's bits per byte minus float's. And look at how far the documents lie apart from each other for one and the same model:

# %%
bits = {}  # (documents, bytes) for each model
for name, values in logits.items():
    nats = F.cross_entropy(values.double().flatten(0, 1), targets.flatten(), reduction="none")
    bits[name] = nats.view(targets.shape) / metrics.NATS_PER_BIT
by_document = {name: values.mean(dim=1) for name, values in bits.items()}
delta = by_document["static int8"] - by_document["float"]

fig, (left, right) = plots.figure(columns=2, width=9.5, height=2.9)
left.hist(by_document["float"].numpy(), bins=24, color=plots.BLUE)
left.set_xlabel("bits per byte of a document, float model")
left.set_ylabel("documents")
right.bar(range(len(delta)), delta.sort().values.numpy(), color=plots.ORANGE, width=1.0)
right.axhline(0, color="black", linewidth=0.8)
right.set_xlabel("documents, sorted")
right.set_ylabel("static int8 − float,\nbits per byte")
plots.show(
    fig,
    caption="Left: how much documents differ from each other. Right: how much int8 differs from float on the same document. Mind the two scales.",
    alt="Left, a histogram: documents differ widely in bits per byte. Right, sorted bars: the difference between the models is "
    "negative for many documents and positive for many others, and always small beside the spread on the left.",
)
print(
    f"standard deviation over documents: bits per byte {by_document['float'].std():.3f}, difference {delta.std():.4f}"
)

# %% [markdown]
# Two lessons. For many documents int8 is *better*: an error has no will. And the documents differ from each other far more than the models do. So never compare the mean of one model with the mean of the other as if they had answered different questions. Subtract first, document by document: that is what **paired** means.
#
# ### The bootstrap
#
# How much would the mean difference change with other documents? We have no other ones, but we can pretend: draw 64 documents from our 64 *with replacement* (some twice, some never), and compute the difference of that sample. Repeat a few thousand times. The middle 95 % of the results are the **percentile bootstrap interval** (the bootstrap: Efron, 1979; the percentile interval: Efron, 1981 and 1982).
#
# With documents of different lengths, the bits per byte of a sample are its bits divided by its bytes. Document $d$ has $n_d$ bytes; let $\delta_d$ be the sum of int8's bits minus float's over its bytes. For the drawn documents $D$
#
# $$\Delta = \frac{\sum_{d \in D} \delta_d}{\sum_{d \in D} n_d}.$$
#
# By hand: two documents, $\delta = (2, -1)$, $n = (10, 20)$. All together: $1/30$. A sample may be (first, first): $4/20 = 0.2$; or (second, first): $1/30$; or (second, second): $-2/40 = -0.05$.
#
# Why draw documents and not bytes? The bytes of a document are no independent witnesses: one hard passage makes a hundred of them hard. Drawing bytes pretends that there are 8,192 witnesses where there are 64. How much too narrow is the interval then? Count how often it holds the truth (its **coverage**; it should be 95 %). For that one must know the truth: let our 64 documents be *all documents there are*, and draw 2,000 experiments from them. (To be quick, the interval here is the mean ± 1.96 standard errors, which a bootstrap of a mean comes close to.) A coverage is a share, counted in a sample of experiments, and so it has an error of its own: with 2,000 of them, a coverage of 95 % scatters by $\pm 1.96 \sqrt{0.95 \cdot 0.05 / 2000}$, about one point. It is printed beside each.


# %%
def half_widths_and_coverage(values: Tensor, drawn: list[Tensor], unit: str) -> tuple[float, float, float]:
    """Mean half width of the interval over experiments; the share of intervals that hold the mean of `values`, and ±."""
    halves, hits = [], 0
    for chosen in drawn:
        sample = values[chosen].mean(dim=1) if unit == "documents" else values[chosen].flatten()
        halves.append(1.96 * sample.std().item() / len(sample) ** 0.5)
        hits += abs((sample.mean() - values.mean()).item()) <= halves[-1]
    share = intervals.wilson(hits, len(drawn))
    return mean(halves), share.estimate, (share.high - share.low) / 2


lots = torch.Generator().manual_seed(56)
experiments = [torch.randint(64, (64,), generator=lots) for _ in range(2000)]
rows = []
for what, values in [
    ("float alone", bits["float"]),
    ("4-bit weights − float", bits["4-bit weights"] - bits["float"]),
    ("static int8 − float", bits["static int8"] - bits["float"]),
]:
    row = {"mean over documents of": what}
    for unit in ("documents", "bytes"):
        half, coverage, error = half_widths_and_coverage(values, experiments, unit)
        row |= {
            f"half width, from {unit}": f"{half:.4f}",
            f"coverage, from {unit}": f"{100 * coverage:.1f} ± {100 * error:.1f} %",
        }
    rows.append(row)
tables.show(rows)

# %% [markdown]
# For the score of one model, intervals from bytes are far too narrow, and they miss the truth far more often than they say. For a paired difference it depends on how much the damage to neighbouring bytes is alike: compare the row of the 4-bit model, where bytes promise more than documents, with that of static int8, where they do no harm. Which case yours is, you do not know beforehand; drawing documents is right in both. (With 64 documents or fewer, also the interval from documents holds the truth a little less often than it says: the standard error itself is estimated. Compare its column with 95 %, and mind the ±.)
#
# ### State the margin first
#
# "int8 is not worse than float" can never be shown: some difference is always possible. What can be shown is that it is not worse *by more than a margin* that you have chosen **before looking**. Chosen afterwards, the margin is an excuse. With the interval from low to high of the difference (positive is a loss):
#
# - high < margin: the loss is **within the margin**. (It does not matter whether the interval contains 0.)
# - low > margin: it is **worse than the margin**.
# - otherwise: **undecided**. More documents are needed: four times as many halve the interval. Undecided is not "no difference".
#
# (Of the 5 % that a two-sided interval leaves outside, half lies beyond each end, and the upper end alone decides whether a loss is within the margin. So of models whose loss is just the margin, about 2.5 % are called within it.)
#
# Our margin for this unit: **1 % of the float model's bits per byte**. (When we wrote the unit, we had already seen what int8 costs this model. So our decision below is an example of the procedure, and no fresh evidence. State yours before you measure.)
#
# ### Exercise 5.3: the paired bootstrap, and a decision
# *Difficulty 3 of 5 · 35 minutes · 3 points*
#
# Write both functions. `torch.randint(n, (resamples, n), generator=generator)` draws all samples at once. Draw every random number from `generator`, as it is: then the same generator gives the same interval, and whoever calls you twice gets new numbers.


# %% nbgrader={"grade": false, "grade_id": "ex_5_3", "locked": false, "schema_version": 3, "solution": true, "task": false}
def paired_interval(
    float_bits: list[Tensor], int8_bits: list[Tensor], resamples: int, generator: torch.Generator
) -> tuple[float, float, float]:
    """int8 − float in bits per byte, with its 95 % percentile bootstrap interval over documents.

    Parameters
    ----------
    float_bits, int8_bits : list of Tensor, float64, (bytes of the document,)
        Bits that each model needs for each byte of each document; at least two documents, of different lengths. Neither
        list is changed.
    resamples : int
    generator : torch.Generator
        The only source of random numbers; it may have been used before, and is not seeded anew.

    Returns
    -------
    (float, float, float)
        The difference over all bytes; the lower and the upper end of the interval.
    """
    ### BEGIN SOLUTION
    loss = torch.stack([b.sum() - a.sum() for a, b in zip(float_bits, int8_bits, strict=True)])  # (documents,)
    length = torch.tensor([len(a) for a in float_bits], dtype=torch.float64)
    chosen = torch.randint(len(loss), (resamples, len(loss)), generator=generator)
    means = loss[chosen].sum(dim=1) / length[chosen].sum(dim=1)  # (resamples,)
    return (loss.sum() / length.sum()).item(), means.quantile(0.025).item(), means.quantile(0.975).item()
    ### END SOLUTION


def decide(low: float, high: float, margin: float) -> str:
    """ "within the margin", "worse than the margin" or "undecided", from the interval of a loss."""
    ### BEGIN SOLUTION
    if high < margin:
        return "within the margin"
    return "worse than the margin" if low > margin else "undecided"
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_5_3_check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 5.3: run this cell.
import math
import random

import numpy as np
import torch

from helpers import checks, samples


@checks.isolated
def check_ex_5_3() -> None:
    def experiment(seed: int, count: int, shortest: int, longest: int, true: float = 0.2) -> tuple[list, list]:
        """Documents of different difficulty; each has a difference of its own, the same for all of its bytes.

        Those of short documents scatter more.
        """
        g = torch.Generator().manual_seed(seed)
        normal = lambda n: torch.randn(n, generator=g, dtype=torch.float64)  # noqa: E731
        lengths = torch.randint(shortest, longest + 1, (count,), generator=g).tolist()
        size = torch.tensor(lengths, dtype=torch.float64) / ((shortest + longest) / 2)
        hard, shift = 6 + 2 * normal(count), true + 0.5 * normal(count) * size**-0.6
        first = [hard[i] + normal(n) for i, n in enumerate(lengths)]
        return first, [a + shift[i] + 0.05 * normal(len(a)) for i, a in enumerate(first)]

    def run(first: list, second: list, resamples: int, seed: int | torch.Generator) -> tuple[float, float, float]:
        """Your three numbers, with a generator that has been used before."""
        generator = samples.advanced(seed) if isinstance(seed, int) else seed
        with checks.untouched(float_bits=first, int8_bits=second):
            answer = paired_interval(first, second, resamples, generator)
        assert isinstance(answer, tuple | list) and len(answer) == 3, (
            "paired_interval should return three numbers: the difference, and both ends of its interval."
        )
        assert all(isinstance(value, float) for value in answer), (
            "paired_interval should return three of Python's numbers (.item()), and no tensors."
        )
        return tuple(answer)

    def states() -> str:
        return repr((torch.get_rng_state().tolist(), np.random.get_state(), random.getstate()))

    def seeded() -> str:
        """States of everybody's random numbers after seeds that nobody guesses."""
        torch.manual_seed(86_531), np.random.seed(86_531), random.seed(86_531)
        return states()

    def moved(first: list, second: list, resamples: int) -> tuple[list[int], list[int]]:
        """State of a generator that has been used before, before and after your function has drawn from it."""
        generator = samples.advanced(9)
        before = generator.get_state().tolist()
        run(first, second, resamples, generator)
        return before, generator.get_state().tolist()

    def direct(first: list, second: list, resamples: int) -> str:
        """What is wrong with the way in which your random numbers are drawn; "" if every index comes from the generator."""
        generator = samples.advanced(13)
        before, enough = generator.get_state(), resamples * len(first)
        with samples.other_generators() as made:
            run(first, second, resamples, generator)
        if made:
            return f"your function makes a generator of its own ({made[0]}), and the one that it is given is only a seed of it: draw every document from `generator`."
        words = samples.words_between(before, generator.get_state(), enough)
        return (
            f"for {resamples} resamples of {len(first)} documents your function drew {words} random numbers; {enough} are needed, one for each document of each resample. Is one number used for several, or do some come from elsewhere?"
            if words < enough
            else ""
        )

    def too_wide(first: list, second: list) -> float:
        """Width of your interval from 20,000 resamples divided by that of NumPy from 100,000, minus 1."""
        sums = np.array([(y - x).sum().item() for x, y in zip(first, second, strict=True)])
        lengths = np.array([len(x) for x in first])
        chosen = np.random.default_rng(539).integers(0, len(sums), (100_000, len(sums)))
        low, high = np.percentile(sums[chosen].sum(1) / lengths[chosen].sum(1), [2.5, 97.5])
        return 2 * halves(run(first, second, 20_000, 14)) / (high - low) - 1

    def spread(sums: torch.Tensor, lengths: torch.Tensor) -> float:
        """Textbook half width of the 95 % interval of a ratio of sums (1.96 standard errors)."""
        left_over = sums - sums.sum() / lengths.sum() * lengths
        return 1.959964 * (left_over.pow(2).sum().sqrt() / lengths.sum()).item()

    def constant(*documents: tuple[int, float]) -> tuple[list, list]:
        """Documents of so many bytes, each byte with the same difference."""
        zeros = [torch.zeros(count, dtype=torch.float64) for count, _ in documents]
        return zeros, [z + shift for z, (_, shift) in zip(zeros, documents, strict=True)]

    def halves(answer: tuple[float, float, float]) -> float:
        return (answer[2] - answer[1]) / 2

    def coverage(seed: int, repeats: int, count: int, length: int) -> float:
        held = 0
        for i in range(repeats):
            _, low, high = run(*experiment(seed + i, count, length, length), 200, i)
            held += low <= 0.2 <= high
        return held / repeats

    with checks.check(
        "5.3", "your interval is that of whole documents, paired, and it holds the truth as often as it says"
    ):
        first, second = experiment(531, 200, 4, 28, true=2.5)
        answer = run(first, second, 4000, 1)
        estimate, low, high = answer
        n = torch.tensor([len(a) for a in first], dtype=torch.float64)
        a, b = (torch.stack([t.sum() for t in side]) for side in (first, second))
        right = ((b.sum() - a.sum()) / n.sum()).item()
        assert not 1e-9 < abs(estimate / right - 1) < 1e-5, (
            "your difference has only about seven right digits: the bits are float64, so keep sums and lengths in float64."
        )
        checks.number(
            estimate,
            right,
            "your difference",
            {
                "the sign is reversed: int8 − float, so that a loss is positive.": -right,
                "it is the mean of the documents' means: bits divided by bytes counts every byte alike.": (
                    (b / n - a / n).mean().item()
                ),
                "these are the bits per byte of int8 alone: subtract the float model's.": (b.sum() / n.sum()).item(),
                "these are the bits per byte of float alone.": (a.sum() / n.sum()).item(),
                "it is a sum over documents, not bits per byte: divide by the bytes.": (b.sum() - a.sum()).item(),
                "it is divided by the documents, not by the bytes.": ((b - a).sum() / len(n)).item(),
            },
            rtol=1e-9,
        )
        assert low != high, (
            "both ends of your interval are equal. Without putting back, every resample consists of all documents: draw with replacement."
        )
        assert low < high, (
            "the lower end of your interval lies above the upper one: the lower end is the 2.5th percentile, the upper one the 97.5th."
        )
        wanted = spread(b - a, n)
        flat = torch.cat([y - x for x, y in zip(first, second, strict=True)])
        cases = {
            "you draw bytes, not documents: the bytes of one document are no independent witnesses, and the interval is far too narrow.": (
                1.96 * flat.std().item() / len(flat) ** 0.5
            ),
            "the pairs are torn apart: draw the documents once, and use the same ones for both models (not paired, the documents' difficulty does not cancel).": (
                (spread(a, n) ** 2 + spread(b, n) ** 2) ** 0.5
            ),
            "it is the interval of one model alone, not that of the difference.": spread(b, n),
            "it leaves 5 % outside at *each* end, so it is a 90 % interval: 95 % two-sided leaves 2.5 % at each end.": (
                wanted * 1.644854 / 1.959964
            ),
            "it is one standard error to each side; 95 % needs the 2.5th and the 97.5th percentile.": wanted / 1.959964,
            "it is the spread of the documents, not that of their mean: compute a mean for each resample, then take percentiles of the means.": (
                wanted * len(n) ** 0.5
            ),
            "each resample must be divided by the bytes of the documents that it drew, not by those of all documents.": (
                1.96 * (b - a).std().item() * len(n) ** 0.5 / n.sum().item()
            ),
            "each resample is the mean of its documents' means: divide the sum of its differences by the sum of its bytes.": (
                1.959964 * ((b - a) / n).std().item() / len(n) ** 0.5
            ),
            "each resample has half as many documents as there are: draw as many, with replacement.": wanted * 2**0.5,
            "each resample has twice as many documents as there are, those of both models: draw the documents once.": (
                wanted / 2**0.5
            ),
            "it is the whole width, to each side.": 2 * wanted,
        }
        if abs(halves(answer) / wanted - 1) > 0.08:
            fits = [sentence for sentence, width in cases.items() if abs(halves(answer) / width - 1) < 0.08]
            assert len(fits) != 1, f"your interval has the wrong width: {fits[0]}"
            raise AssertionError(
                f"your interval is {halves(answer):.4f} to each side; the textbook formula for these documents gives {wanted:.4f}."
            )
        assert low < estimate < high, "the interval does not hold the estimate itself: is it that of something else?"
        assert 0.85 < (high - estimate) / wanted < 1.15 and 0.85 < (estimate - low) / wanted < 1.15, (
            "the two ends of your interval leave different shares outside: 2.5 % below the lower and 2.5 % above the upper end, so the 2.5th and 97.5th percentile."
        )
        before = seeded()
        again = run(first, second, 300, 7)
        untouched = before == states()
        torch.manual_seed(2)
        assert run(first, second, 300, 7) == again, (
            "the same seed gives two different intervals: take the random numbers from `generator`."
        )
        assert run(first, second, 300, 8) != again, (
            "another generator gives the very same interval: is it used at all? (A formula instead of resampling, or a seed of your own.)"
        )
        assert untouched, (
            "your function draws or seeds random numbers of PyTorch, NumPy or Python that belong to everybody: `generator` is the only source, and seeds change what the rest of the notebook draws."
        )
        for seed in (1, 2, 3):
            _, low, high = run(first, second, 1, seed)
            assert not math.isnan(low + high), (
                "with a single resample the ends of your interval are nan: the standard deviation of one number is none. The ends are percentiles of the means, and no formula around them."
            )
            assert low == high, (
                f"a single resample has one mean, and both of its percentiles are this mean; yours are {low:.4f} and {high:.4f}. Is the number of resamples used, and are the ends percentiles of the means?"
            )
        few = first[:40], second[:40]
        start, end = moved(*few, 2000)
        assert start != end, (
            "the generator that you were given has not moved: draw from it (generator=generator). Its seed (initial_seed) belongs to numbers that may have been drawn long ago."
        )
        used = samples.advanced(11)
        assert len({run(*few, 1, used)[1] for _ in range(4)}) > 1, (
            "one generator, used again and again, gives the same interval every time: you set it back, or take only its seed. Draw from it as it is."
        )
        assert end != moved(*few, 20_000)[1] != moved(*few, 20_001)[1], (
            "the generator moves no further for more resamples: `resamples` is capped, or the numbers come from elsewhere, such as NumPy with a seed from it."
        )
        fault = direct(*few, 6)
        assert not fault, fault
        middle, low, high = run(*constant((10, 0.2), (20, -0.05)), 4000, 1)
        hand = "two documents, of 10 bytes with +0.2 each and of 20 bytes with −0.05 each"
        assert abs(middle - 1 / 30) < 1e-9, f"{hand}: your difference is {middle:.4f}; 1 bit more in 30 bytes is 1/30."
        assert low < high, f"{hand}: your ends are equal. Can every document be drawn? randint(n) already leaves out n."
        assert not (low > -0.0499 and high < 0.1999), (
            f"{hand}: one resample in four draws the first one twice, so the upper end is 0.2, and the lower one −0.05; yours are {high:.4f} and {low:.4f}. Draw as many documents as there are, and take percentiles of the means."
        )
        assert abs(low + 0.05) < 1e-9 and abs(high - 0.2) < 1e-9, (
            f"{hand}: your interval is {low:.4f} to {high:.4f}, and no resample has a mean beyond −0.05 and 0.2. A percentile interval takes the 2.5th and 97.5th percentile of the means as they are: no formula, no standard deviation, nothing mirrored at the estimate."
        )
        middle, low, high = run(*constant((1, 3.0), (9, 0.0)), 4000, 3)
        assert abs(middle - 0.3) < 1e-9 and abs(low) < 1e-9 and abs(high - 3) < 1e-9, (
            f"one document of a single byte with +3, and one of 9 bytes with 0: your numbers are {middle:.4g}, {low:.4g} and {high:.4g}, and should be 0.3, 0 and 3. Every document counts, however short."
        )
        _, low, high = run(*constant((90, 0.0), (90, 0.0), (90, 0.0), (10, 1.0)), 4000, 2)
        assert abs(high - 0.75) > 1e-9, (
            "each resample is the mean of its documents' means: divide the sum of its differences by the sum of its bytes."
        )
        assert abs(low) < 1e-9 and abs(high - 0.25) < 1e-9, (
            f"three documents of 90 bytes with a difference of 0, and one of 10 bytes with +1 each: your interval is {low:.4f} to {high:.4f}, and should be 0 to 0.25 (30 bits in 30 + 90 bytes). Draw as many documents as there are, and divide by the bytes that were drawn."
        )
        off = too_wide(*few)
        assert abs(off) < 0.035, (
            f"for 40 documents your interval is too {'wide' if off > 0 else 'narrow'} by {abs(off):.1%}, too much for chance: which shares does it leave outside? They should be 2.5 % at each end."
        )
        share = coverage(5310, 100, 40, 12)
        assert share >= 0.86, (
            f"in 100 simulated experiments your interval holds the true difference only {share:.0%} of the time; about 95 % was promised."
        )
        for low, high, wanted_word, why in [
            (
                0.001,
                0.006,
                "within the margin",
                "high < margin: the whole interval is below the margin; that it excludes 0 does not matter.",
            ),
            (
                0.004,
                0.03,
                "undecided",
                "low is below the margin, but high is above: the middle decides nothing."
                if decide(0.004, 0.03, 0.01) == "worse than the margin"
                else "low is below the margin, but high is above: only the upper end can show non-inferiority.",
            ),
            (-0.004, 0.004, "within the margin", "the whole interval lies below the margin."),
            (
                -0.05,
                -0.02,
                "within the margin",
                "int8 is better: a negative loss is below the margin, so do not take absolute values.",
            ),
            (
                -0.012,
                0.013,
                "undecided",
                "the interval holds 0, but also losses beyond the margin: that it holds 0 proves nothing.",
            ),
            (0.011, 0.03, "worse than the margin", "the whole interval lies above the margin."),
        ]:
            word = decide(low, high, 0.01)
            assert word == wanted_word, (
                f'the call decide({low}, {high}, 0.01) gives "{word}" and should give "{wanted_word}": {why}'
            )
        for low, high, margin, wanted_word in [
            (0.02, 0.04, 0.5, "within the margin"),
            (0.001, 0.004, 0.0005, "worse than the margin"),
            (0.0, 0.5, 0.5, "undecided"),
            (0.5, 0.9, 0.5, "undecided"),
            (-0.5, 0.0, 0.0, "undecided"),
            (0.0, 0.0, 0.25, "within the margin"),
        ]:
            word = decide(low, high, margin)
            why = (
                "a limit that equals the margin shows nothing" if margin in (low, high) else "the margin is an argument"
            )
            assert word == wanted_word, (
                f'the call decide({low}, {high}, {margin}) gives "{word}" and should give "{wanted_word}": {why}.'
            )
    ### BEGIN HIDDEN TESTS
    for seed, count, shortest, longest in [(5301, 150, 10, 10), (5302, 300, 2, 40)]:
        first, second = experiment(seed, count, shortest, longest, true=2.5)
        sizes = torch.tensor([len(part) for part in first], dtype=torch.float64)
        lost = torch.stack([(y - x).sum() for x, y in zip(first, second, strict=True)])
        middle, low, high = run(first, second, 4000, seed)
        expected = spread(lost, sizes)
        assert abs(middle - (lost.sum() / sizes.sum()).item()) < 1e-9, "wrong difference."
        assert abs((high - low) / 2 / expected - 1) < 0.1, "wrong width of the interval."
        assert abs((high + low) / 2 - middle) < 0.15 * expected, "the interval is not around the difference."
        assert (middle, low, high) == run(first, second, 4000, seed), "not reproducible."
        assert (low, high) != run(first, second, 4000, seed + 1)[1:], "the generator is not used."
        single = [part[:1] for part in first], [part[:1] for part in second]
        assert (
            abs(
                halves(run(*single, 4000, 3))
                / spread(torch.cat(single[1]) - torch.cat(single[0]), torch.ones(count, dtype=torch.float64))
                - 1
            )
            < 0.1
        ), "wrong for documents of one byte."
    assert coverage(53_000, 100, 30, 20) >= 0.85, "the interval holds the truth too seldom."
    for step in range(-30, 40, 3):
        for wide in (1, 8, 25):
            low, high = step / 1000, (step + wide) / 1000
            expected = (
                "within the margin" if high < 0.0105 else "worse than the margin" if low > 0.0105 else "undecided"
            )
            assert decide(low, high, 0.0105) == expected, f"wrong decision for {low} to {high}."
    for low, high, margin, expected in [
        (-0.5, 0.25, 0.25, "undecided"),
        (0.25, 0.5, 0.25, "undecided"),
        (0.25, 0.5, 0.75, "within the margin"),
        (0.25, 0.5, 0.125, "worse than the margin"),
        (-0.25, 0.5, 0.0, "undecided"),
    ]:
        assert decide(low, high, margin) == expected, f"wrong decision for {low} to {high}, margin {margin}."
    for seed, parts, expected in [
        (61, ((8, 0.5), (24, -0.25)), (-2 / 32, -0.25, 0.5)),
        (62, ((3, -1.0), (50, 0.125)), (3.25 / 53, -1.0, 0.125)),
        (64, ((1, 4.0), (15, 0.0)), (4 / 16, 0.0, 4.0)),
        (63, ((6, 2.0), (60, 0.0), (60, 0.0), (60, 0.0)), (12 / 186, 0.0, 36 / 78)),
    ]:
        before = seeded()
        found = run(*constant(*parts), 5000, seed)
        assert max(abs(x - y) for x, y in zip(found, expected, strict=True)) < 1e-9, f"{found} instead of {expected}."
        assert before == states(), "random numbers that belong to everybody were used."
    alone = [run(first, second, 1, seed) for seed in range(8)]
    assert all(low == high for _, low, high in alone), "one resample has one mean."
    assert len({low for _, low, _ in alone}) > 4, "one resample should differ from seed to seed."
    some = first[:30], second[:30]
    (start, end), used = moved(*some, 500), samples.advanced(64)
    assert start != end != moved(*some, 30_000)[1] != moved(*some, 30_001)[1], (
        "the generator does not move as it should."
    )
    assert len({run(*some, 1, used)[1] for _ in range(4)}) > 1, "the generator is set back."
    assert abs(too_wide(*some)) < 0.035, "the ends leave other shares outside."
    assert not direct(*some, 5) and not direct(first[:7], second[:7], 23), "the numbers are not those of the generator."
    ### END HIDDEN TESTS


check_ex_5_3()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Reduce each document to two numbers first: the sum of its differences, and its length. After that, bytes play no role any more.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# With `loss` and `length` as tensors (documents,) and the drawn numbers (resamples, documents): index both with the *same* numbers, sum over dim 1, divide. That is one difference for each resample; the interval is from its 0.025 to its 0.975 quantile.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `chosen = torch.randint(n, (resamples, n), generator=generator)`; `means = loss[chosen].sum(dim=1) / …[chosen].sum(dim=1)`; return `(loss.sum() / …).item()`, `means.quantile(0.025).item()`, `means.quantile(…).item()`. In `decide`, ask first whether `high < margin`.
# </details>

# %%
MARGIN = 0.01 * by_document["float"].mean().item()  # bits per byte: the 1 % stated above
rows = []
for name in list(models)[1:]:
    found = intervals.paired_bootstrap(by_document["float"], by_document[name])
    rows.append(
        {
            "model": name,
            "int8 − float, bits per byte (95 %)": str(found),
            "perplexity per byte, ratio to float": f"{2**found.estimate:.4f}",
            "decision": intervals.verdict(found, MARGIN),
        }
    )
tables.show(rows)
float_mean = by_document["float"].mean().item()
print(f"float: {float_mean:.4f} bits per byte, perplexity per byte 2 ** {float_mean:.4f} = {2**float_mean:.3f}")
alone = by_document["float"] - by_document["float"].mean()
single = intervals.paired_bootstrap(torch.zeros_like(alone), alone)
print(f"margin: {MARGIN:.4f} bits per byte")
print("Your own functions, static int8 (the ends differ a little: other random numbers):")
lists = list(bits["float"]), list(bits["static int8"])
errors.show_result(lambda: paired_interval(*lists, 2000, torch.Generator().manual_seed(0)))
errors.show_result(lambda: decide(*paired_interval(*lists, 2000, torch.Generator().manual_seed(0))[1:], MARGIN))
print(f"for comparison, the interval of the float model alone: {single.low:+.3f} to {single.high:+.3f} around its mean")

# %% [markdown]
# Compare with the last line: with two unpaired means none of these rows could have been decided, since even the interval of one float model is wider than the margin. Paired intervals are many times narrower, and so the margin can be used.
#
# (Elsewhere you will read **perplexity**: 2 to the power of the bits, or *e* to the power of the nats, per *token*. Ours is per byte. A difference in bits is a ratio of perplexities: the same information on another scale. Perplexities per token of models with different tokenizers cannot be compared; bits per byte can.)
#
# ### Is that much? Another seed as the yardstick
#
# Whatever is *trained* has one more source of luck: the seed. So one trained model is one draw, and a claim about int8 needs several. Take unit 02's small network (it guesses a byte from the last eight). Train it three times with three seeds; quantize the body of each statically. For each seed: what does int8 change? And, as the yardstick: what does *another seed* change, without any quantization?


# %%
def trained(seed: int) -> next_byte.NextByteNet:
    """A small network, born and trained with this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = next_byte.NextByteNet(16, 128)
    return next_byte.fit(net, *small_training, steps=60, lr=8e-3, seed=seed)


@torch.no_grad()
def small_net_bits(net: nn.Module, body: nn.Module) -> Tensor:
    """Bits per byte of each held-out document."""
    nats = F.cross_entropy(body(net.features(small_ids)), small_next, reduction="none")
    return nats.view(64, -1).mean(dim=1) / metrics.NATS_PER_BIT


small_training = next_byte.examples("training", 200)
small_ids, small_next = next_byte.examples("held_out", 64)
seeds, int8_loss, other_seed = (0, 1, 2), [], []
nets = [trained(seed) for seed in seeds]
floats = [small_net_bits(net, net.body) for net in nets]
for i in seeds:
    with torch.no_grad():
        shown = nets[i].features(small_training[0][:2000])
    body = int8.static_int8(nets[i].body, [shown])
    int8_loss.append(intervals.paired_bootstrap(floats[i], small_net_bits(nets[i], body)))
    other_seed.append(intervals.paired_bootstrap(floats[i], floats[(i + 1) % 3]))

fig, ax = plots.figure(width=8, height=2.6)
for label, found, marker, colour, shift_up in [
    ("int8 − float, same network", int8_loss, "o", plots.BLUE, 0.12),
    ("next seed − this seed, both float", other_seed, "s", plots.ORANGE, -0.12),
]:
    middle = [one.estimate for one in found]
    reach = [[one.estimate - one.low for one in found], [one.high - one.estimate for one in found]]
    ax.errorbar(middle, [i + shift_up for i in seeds], xerr=reach, fmt=marker, color=colour, capsize=3, label=label)
ax.axvline(0, color="black", linewidth=0.8)
ax.set_yticks(seeds, [f"seed {i}" for i in seeds])
ax.margins(y=0.15)
ax.locator_params(axis="x", nbins=6)
ax.invert_yaxis()
ax.set_xlabel("difference in bits per byte, with its 95 % interval")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plots.show(
    fig,
    caption="Three networks, each trained with its own seed: what int8 changes (circles), and what another seed changes (squares).",
    alt="Three circles with short intervals, close to each other; three squares with longer intervals, scattered to both sides of 0.",
)
for i in seeds:
    print(f"seed {i}: int8 − float {int8_loss[i]}, next seed − this seed {other_seed[i]}")

# %% [markdown]
# (Each square compares a network with the next one, and the last with the first. So the three add up to 0, and only two of them are news.) Beside the squares, the circles are close together. Look at their printed intervals, too: the cost of int8 is not the same for every seed either, so one seed would not have been enough. The squares show how much would have been "explained" by comparing an int8 model with *another* float model. (How far they scatter depends on how long one trains, and these networks were trained for a few seconds only. So take them as a warning, not as a measure for large models.) So compare with the parent, and do it for more than one family.
#
# ### One question per document
#
# Bits per byte use the whole distribution. Often all you have is right or wrong: a classification, a yes or no. Then the paired data are the flips of exercise 5.2: $b$ broken answers, $c$ repaired ones. The answers that did not flip say nothing about the difference. If int8 changed nothing but luck, each flip would fall to either side like a fair coin. **McNemar's test** asks: would a fair coin, thrown $n = b + c$ times, fall at least as unevenly as this? Let $m$ be the smaller of both counts:
#
# $$p = \min\Big(1,\; 2 \sum_{k=0}^{m} \binom{n}{k} \frac{1}{2^n}\Big)$$
#
# $\binom{n}{k}$, "n choose k", counts the ways to throw $k$ heads (`math.comb`). The 2 in front makes the test *two-sided*: int8 might as well be better. At $b = c$ the two sides overlap, hence the minimum.
#
# By hand: 1 broken, 5 repaired. $n = 6$, $m = 1$: $2 \cdot (1 + 6)/64 = 0.21875$. A fair coin gives a result at least as uneven as this in more than one of five trials: no evidence.
#
# How uneven must flips be? Even if all $n$ fall to one side, $p$ is $2 / 2^n$: 0.0625 for five flips, 0.03125 for six. *Fewer than six flips can never reach 0.05.*
#
# The same test is often done with an approximation: $\chi^2 = (b - c)^2 / n$, or, with a *continuity correction*, $(\lvert b - c \rvert - 1)^2 / n$, compared with the chi-square distribution of one degree of freedom. That is the distribution of the square of a standard normal number, so its tail is $\mathrm{erfc}\sqrt{\chi^2 / 2}$ (`math.erfc`). R's `mcnemar.test` corrects unless it is told not to; other programs leave the choice to you. A fourth answer, the *mid-p* value, counts the probability of exactly this result half. For 8 flips, 1 broken and 7 repaired:

# %% tags=["nbval-check-output"]
broken, repaired = 1, 7
changed = broken + repaired
for name, distance in (("without correction", abs(broken - repaired)), ("with correction", abs(broken - repaired) - 1)):
    print(f"chi-square, {name:18s}: p = {math.erfc(distance / math.sqrt(2 * changed)):.4f}")
exact_p = intervals.mcnemar(broken, repaired)
print(f"mid-p                         : p = {exact_p - math.comb(changed, broken) / 2**changed:.4f}")
print(f"exact                         : p = {exact_p:.4f}")

# %% [markdown]
# Without correction the approximation is about half of the exact value, and the two lie on different sides of the usual limit of 0.05. With correction it comes near. (For these counts; both grow good when counts are large.) Mid-p lies between the uncorrected and the exact one. It is a test of its own: less cautious than the exact one, whose $p$ with few flips is below 0.05 more seldom than in one of twenty experiments without a difference. Which one you report is a choice; say which, and make it before you look. Quantized models flip few answers, so here small counts are the rule.
#
# ### Exercise 5.4: McNemar's exact test
# *Difficulty 2 of 5 · 15 minutes · 2 points*
#
# Write `mcnemar`. Counts may be 0, and may be several thousand: Python's whole numbers can be as large as you like, floats cannot. Dividing two large whole numbers with `/` is fine.


# %% nbgrader={"grade": false, "grade_id": "ex_5_4", "locked": false, "schema_version": 3, "solution": true, "task": false}
def mcnemar(broken: int, repaired: int) -> float:
    """Exact two-sided p-value of McNemar's test.

    Parameters
    ----------
    broken, repaired : int
        Answers that were right and became wrong, and that were wrong and became right; 0 or more.

    Returns
    -------
    float
        Between 0 and 1; 1 if there are no flips at all.

    Example
    -------
    >>> mcnemar(1, 5)
    0.21875
    """
    ### BEGIN SOLUTION
    flips = broken + repaired
    ways = sum(math.comb(flips, heads) for heads in range(min(broken, repaired) + 1))
    return min(1.0, 2 * ways / 2**flips)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_5_4_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 5.4: run this cell.
import math
from fractions import Fraction

from helpers import checks


@checks.isolated
def check_ex_5_4() -> None:
    def tossed(n: int) -> list[Fraction]:
        """Probability of 0, 1, … n heads: one coin after the other, in exact fractions."""
        shares = [Fraction(1)]
        for _ in range(n):
            shares = [(x + y) / 2 for x, y in zip([*shares, 0], [0, *shares], strict=True)]
        return shares

    def exact(b: int, c: int) -> float:
        """Sum of the probabilities of everything that is at least as uneven."""
        return float(sum(share for heads, share in enumerate(tossed(b + c)) if abs(2 * heads - b - c) >= abs(b - c)))

    def whole(b: int, c: int) -> float:
        """The same for thousands of flips: each count of ways from the one before, in whole numbers."""
        n = b + c
        here = total = 1
        for k in range(min(b, c)):
            here = here * (n - k) // (k + 1)
            total += here
        return min(2 * total, 2**n) / 2**n

    def approximate(b: int, c: int, correction: float = 0.0) -> float:
        return math.erfc(math.sqrt(max(abs(b - c) - correction, 0) ** 2 / (b + c) / 2))

    with checks.check("5.4", "your p-values are those of the coin, for few flips and for many"):
        for b, c in [(1, 5), (5, 1), (0, 4), (3, 9), (12, 2), (2, 3), (40, 60)]:
            right, tail, answer = exact(b, c), tossed(b + c), mcnemar(b, c)
            checks.given(answer, "your p-value")
            assert isinstance(answer, float | int), (
                f"your p-value is a {type(answer).__name__}; the docstring promises a float."
            )
            checks.number(
                answer,
                right,
                f"your p-value for {b} broken and {c} repaired",
                {
                    "this is the chi-square approximation: for counts like these it is not good enough; add up the binomial.": approximate(
                        b, c
                    ),
                    "this is the chi-square approximation with continuity correction: add up the binomial instead.": approximate(
                        b, c, 1.0
                    ),
                    "it is one-sided: int8 might also have been better, so double the smaller tail.": right / 2,
                    "it is one minus the p-value.": 1 - right,
                    "it is the mid-p value, which counts the probability of exactly this result half. It is a test of its own; the exact one counts it whole.": right
                    - float(tail[b]),
                    "it asks only whether more answers were broken than repaired: int8 might also have been better.": float(
                        sum(tail[b:])
                    ),
                    "the sum stops too early: k = m, the smaller count itself, belongs to it.": float(
                        2 * sum(tail[: min(b, c)])
                    ),
                    "it is the probability of exactly this result: everything more uneven belongs to it.": float(
                        tail[b]
                    ),
                    "it is twice the probability of exactly this result: everything more uneven belongs to it.": float(
                        2 * tail[b]
                    ),
                    "the sum runs to the larger count: take the smaller one.": min(
                        1.0, float(2 * sum(tail[: max(b, c) + 1]))
                    ),
                    "it depends on which of the two counts is the first: take the smaller one.": float(
                        2 * sum(tail[: b + 1])
                    ),
                },
                rtol=1e-9,
            )
        tiny = mcnemar(0, 60)
        assert abs(tiny * 2**59 - 1) < 0.5, (
            f"your p-value for 60 flips to one side is {tiny:.3g}, and should be 2 / 2**60 = {2**-59:.3g}: whoever subtracts from 1, or rounds, loses the digits of a small probability. Add the small tail."
        )
        assert abs(tiny * 2**59 - 1) < 1e-9, (
            f"your p-value for 60 flips to one side is {tiny!r}, and should be 2 / 2**60 = {2**-59!r}: it has too few right digits."
        )
        for b in (1, 4, 7):
            value = mcnemar(b, b)
            assert value <= 1, (
                f"your p-value for {b} and {b} is {value:.3f}: no probability is above 1, so take the minimum."
            )
            assert abs(value - 1) < 1e-9, (
                f"your p-value for {b} and {b} is {value:.3f}; nothing is more even, so it is 1."
            )
        try:
            nothing = mcnemar(0, 0)
        except ZeroDivisionError:
            raise AssertionError("without any flip your function divides by 0; it should return 1.") from None
        assert nothing == 1, f"without any flip your function returns {nothing}; no flips are no evidence, so it is 1."
        try:
            large = mcnemar(1100, 900)
        except OverflowError:
            raise AssertionError(
                "your function overflows for 2,000 flips: 2**n does not fit into a float. Add whole numbers, and divide once at the end."
            ) from None
        assert math.isfinite(large) and abs(large / whole(1100, 900) - 1) < 0.05, (
            f"your p-value for 1,100 and 900 is {large:.3g}, {whole(1100, 900):.3g} is right: 0.5**n becomes 0 for large n, and comb(n, k) too large for a float. Add whole numbers, and divide once at the end."
        )
        assert abs(large / whole(1100, 900) - 1) < 1e-6, (
            f"your p-value for 1,100 and 900 is {large:.8g}, the exact one {whole(1100, 900):.8g}: yours is an approximation. The binomial sum works for many flips, too."
        )
        for b, c in ((2950, 3050), (3900, 4100)):
            assert abs(mcnemar(b, c) / whole(b, c) - 1) < 1e-6, (
                f"your p-value for {b:,} and {c:,} is {mcnemar(b, c):.8g}, and should be {whole(b, c):.8g}: it must hold for any number of flips."
            )
    ### BEGIN HIDDEN TESTS
    for b in range(10):
        for c in range(10):
            assert abs(mcnemar(b, c) - exact(b, c)) < 1e-9, f"wrong for {b} and {c}."
    for b, c in [(3, 70), (150, 110), (1, 199)]:
        assert abs(mcnemar(b, c) / exact(b, c) - 1) < 1e-9, f"wrong for {b} and {c}."
    for b, c in [(3020, 3180), (480, 530), (1300, 1500), (700, 301)]:
        assert abs(mcnemar(b, c) / whole(b, c) - 1) < 1e-6, f"wrong for {b} and {c}."
    for n in (40, 200, 900):
        assert abs(mcnemar(0, n) * 2 ** (n - 1) - 1) < 1e-6 and abs(mcnemar(n, 0) * 2 ** (n - 1) - 1) < 1e-6, (
            "wrong for very uneven flips."
        )
    assert isinstance(mcnemar(2, 9), float | int) and isinstance(mcnemar(3, 3), float | int), "no number."
    ### END HIDDEN TESTS


check_ex_5_4()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# How many of the $2^n$ equally likely sequences of heads and tails have at most $m$ heads? That is a whole number.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# Sum `math.comb(n, k)` for k from 0 to m *inclusive*; times 2, divided by `2**n`, and not more than 1. With n = 0 the sum is 1, and all is well.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(…) + 1)) / 2**n)`
# </details>

# %% [markdown]
# Now use it, carefully. Our models answer 128 questions in each document, and those are not independent: the coin of the test must be thrown once for each *independent* question. So ask one question per document: the last byte. And see what happens if you pretend that all bytes are independent:

# %%
rows = []
for name in list(models)[1:]:
    for what, chosen in [
        ("the last byte of each document", slice(-1, None)),
        ("all bytes, as if independent", slice(None)),
    ]:
        counts = metrics.flips(targets[:, chosen], answers["float"][:, chosen], answers[name][:, chosen])
        rows.append(
            {
                "model": name,
                "questions": f"{targets[:, chosen].numel():,}, {what}",
                "broken": counts[0],
                "repaired": counts[1],
                "p": f"{intervals.mcnemar(*counts):.3g}",
            }
        )
tables.show(rows)

# %% [markdown]
# With one question per document there are hardly any flips, and no evidence in either direction, not even for the 4-bit model, which the bootstrap has convicted. (Where a row has fewer than six flips, no split of them could have been evidence.) Right or wrong is a coarse measure: on the same documents, bits per byte have seen what it does not. The rows with all bytes look more decided. How much of that is real this table cannot say, because its p-value is that of independent coins, and the bytes of a document are none. When in doubt, resample documents.
#
# So the order is: distances and profile to find out *where*; bits per byte, paired, with a margin for *how much*; flips for *what a user sees*; the exact test only for answers that are independent.
#
# ## 3. What does it weigh?
#
# "Four times smaller" is said of int8 everywhere. Of what? The weights' codes are four times smaller. A file also holds scales, zero points, biases, LayerNorms, names; and a running program holds activations, and whatever was needed to load the model. Three numbers, three questions:
#
# | number | answers |
# |---|---|
# | **file bytes** | what is stored and sent? |
# | **bits per weight** | how good is the *format*? Scales and zero points included, divided by the number of weights |
# | **peak memory** | does it fit into the machine while it runs? |
#
# ### A trap: parameters that are none
#
# The usual way to count a model's bytes is a sum over `model.parameters()`. Try it on a float model and on its two int8 versions:

# %%
small = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 256))
packed = {
    "float": small,
    "dynamic int8": int8.dynamic_int8(small),
    "static int8": int8.static_int8(small, [torch.randn(64, 512, generator=torch.Generator().manual_seed(3))]),
}
rows = []
for name, model in packed.items():
    rows.append(
        {
            "model": name,
            "sum over parameters()": f"{sum(p.numel() * p.element_size() for p in model.parameters()):,}",
            "4 bytes × weights": f"{sum(4 * w.numel() for w in describe.dequantized_weights(model).values()):,}",
            "file": f"{metrics.file_bytes(model):,}",
        }
    )
tables.show(rows)

# %% [markdown]
# An int8 model weighs nothing, says the first column: its weights live in *packed* objects, which are no parameters. The second column pretends that every weight is a float. Only the file tells the truth about the file.
#
# To look inside a packed weight, ask the module: `module.weight()` is a *method* there, and unpacks a quantized tensor. It knows `element_size()` (1 byte a code), and its scales: with one scale for the whole tensor (`w.qscheme()` is `torch.per_tensor_affine`), PyTorch stores a float64 scale and an int64 zero point; with one for each channel they are the tensors `w.q_per_channel_scales()` and `w.q_per_channel_zero_points()`, whose type depends on the module (float64 and int64 in a Linear layer, float32 both in an Embedding): ask each for its `nbytes`.
#
# Every call of `weight()` unpacks a *new* tensor. Its place in memory (`data_ptr()`, `id`) is free again as soon as you let go of it, and may be given to the next one: it says nothing about what is shared. A float `weight` stays where it is, so its `data_ptr()` tells a shared matrix.
#
# By hand: a Linear layer with 512 inputs and 256 outputs, one scale for each output. Codes: 131,072 bytes. Scales: 256 × 8 bytes; zero points: 256 × 8 bytes. Together 135,168 bytes, and $8 \cdot 135168 / 131072 = 8.25$ bits per weight.
#
# ### Another trap: the peak of a child
#
# Memory is measured at its **peak**: the largest amount that was resident in RAM at one time. The operating system keeps count, and the count of a process never falls. So each measurement needs a process of its own, a *child*: a fresh Python that runs a program and reports its peak. On Unix the usual way is `resource.getrusage(resource.RUSAGE_SELF).ru_maxrss`, which is in **kilobytes on Linux and in bytes on a Mac**. On Linux it has another catch:

# %% tags=["varies"]
ask = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
unit = 1 if sys.platform == "darwin" else 1024
peak_said = int(subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout) * unit
print(f"a Python that does nothing, ru_maxrss: {peak_said / 1e6:.0f} MB")
status = Path("/proc/self/status")
if status.is_file():
    ask = "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    peak_held = 1024 * int(subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout)
    print(f"a Python that does nothing, VmHWM:     {peak_held / 1e6:.0f} MB")
    own = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    print(f"this notebook, VmHWM:                  {1024 * int(own) / 1e6:.0f} MB")

# %% [markdown]
# On Linux the first number is far too large for a Python that does nothing: a child inherits the peak of its parent, of this notebook, in `ru_maxrss`. The line `VmHWM` ("high water mark", in kilobytes) of `/proc/self/status` is about the child alone. A Mac has no `/proc`; there `ru_maxrss` is right.
#
# ### Exercise 5.5: size and peak
# *Difficulty 3 of 5 · 45 minutes · 2 points*
#
# Write two functions.
#
# `size` counts a model. *Weights* are the matrices (two dimensions or more) of all modules that have a `weight`, float or packed; a matrix that two modules share counts once. (Biases and LayerNorms are in the file, but they are no weights.)
#
# `peak_bytes` runs a program, given as text, in a child process (`subprocess.run([sys.executable, "-c", program + …], capture_output=True, text=True)`), and returns its peak in bytes. A line that you append lets the child report on itself. The program may print, too, so print a marker of your own in front of the number. It is a program like yours: it may import whatever this Python can import.


# %% nbgrader={"grade": false, "grade_id": "ex_5_5", "locked": false, "schema_version": 3, "solution": true, "task": false}
def size(model: nn.Module) -> dict[str, float]:
    """File bytes, weights, and bits per weight of a float or quantized model.

    Parameters
    ----------
    model : Module
        With float modules, packed 8-bit Linear layers (static or dynamic), packed 8-bit Embeddings; at least one matrix.

    Returns
    -------
    dict of str to float
        "file_bytes": what ``torch.save`` makes of the model's state_dict. "weights": how many numbers its weight matrices
        hold. "bits_per_weight": 8 times the bytes of these matrices, with scales and zero points, divided by "weights".

    Example
    -------
    >>> size(nn.Linear(512, 256))["bits_per_weight"]
    32.0
    """
    ### BEGIN SOLUTION
    matrices = {}  # by place in memory, so that a shared matrix counts once
    for module in model.modules():
        weight = getattr(module, "weight", None)
        weight = weight() if callable(weight) else weight
        if weight is not None and weight.dim() >= 2:
            matrices[id(module) if weight.is_quantized else weight.data_ptr()] = weight
    held = 0
    for weight in matrices.values():
        held += weight.numel() * weight.element_size()
        if weight.is_quantized and weight.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            held += 16
        elif weight.is_quantized:
            held += weight.q_per_channel_scales().nbytes + weight.q_per_channel_zero_points().nbytes
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    count = sum(weight.numel() for weight in matrices.values())
    return {"file_bytes": len(buffer.getvalue()), "weights": count, "bits_per_weight": 8 * held / count}
    ### END SOLUTION


def peak_bytes(program: str) -> int:
    """Peak resident memory, in bytes, of a Python process that runs `program`.

    Parameters
    ----------
    program : str
        Python; it may print numbers of its own, and may end itself (``sys.exit(0)``) before your report is reached.

    Raises
    ------
    Exception
        Of any type, if the program fails, or ends without a report.
    """
    ### BEGIN SOLUTION
    report = """
import pathlib, resource, sys
status = pathlib.Path("/proc/self/status")
if status.is_file():
    print("peak of the child:", int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024)
else:
    factor = 1 if sys.platform == "darwin" else 1024
    print("peak of the child:", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor)
"""
    done = subprocess.run([sys.executable, "-c", f"{program}\n{report}"], capture_output=True, text=True, check=True)
    _, marker, rest = done.stdout.rpartition("peak of the child:")
    if not marker:
        raise RuntimeError("the program ended before it could report its peak.")
    return int(rest.split()[0])
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_5_5_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 5.5: run this cell.
import copy
import itertools
import sys
import tempfile
from pathlib import Path

import torch
import torch.ao.quantization as tq
from torch import nn

from helpers import checks, samples, witness


@checks.isolated
def check_ex_5_5() -> None:
    def static(per_channel: bool, *widths: int) -> nn.Module:
        """Static int8 Linear layers with one scale, or one a row."""
        parts = [nn.Linear(i, o) for i, o in itertools.pairwise(widths)]
        model = tq.QuantWrapper(nn.Sequential(*parts)).eval()
        weight = tq.default_per_channel_weight_observer if per_channel else tq.default_weight_observer
        model.qconfig = tq.QConfig(activation=tq.MinMaxObserver.with_args(quant_min=0, quant_max=127), weight=weight)
        prepared = tq.prepare(model)
        prepared(torch.randn(8, widths[0]))
        return tq.convert(prepared)

    def embedded(rows: int, width: int) -> nn.Module:
        model = nn.Sequential(nn.Embedding(rows, width), nn.LayerNorm(width), nn.Linear(width, rows)).eval()
        recipe = {nn.Embedding: tq.float_qparams_weight_only_qconfig, nn.Linear: tq.default_dynamic_qconfig}
        return tq.quantize_dynamic(model, recipe)

    def several(count: int, width: int) -> nn.Module:
        """int8 layers of one shape: a weight that is unpacked and freed may leave its place to a later one."""
        parts = [kind(width, width) for kind in (nn.Embedding, nn.Linear) for _ in range(count)]
        kinds = {nn.Linear: tq.default_dynamic_qconfig, nn.Embedding: tq.float_qparams_weight_only_qconfig}
        return tq.quantize_dynamic(nn.Sequential(*parts).eval(), kinds)

    def tied(rows: int, width: int) -> nn.Module:
        model = nn.Sequential(nn.Embedding(rows, width), nn.Linear(width, rows, bias=False))
        model[1].weight = model[0].weight
        return model

    def stored(model: nn.Module) -> list[int]:
        """Sizes of the file: torch.save writes the file's own name into it, once for each tensor."""
        sizes = []
        with tempfile.TemporaryDirectory() as folder:
            for name in ("m", "archive", "a_long_name_for_a_file_of_a_model"):
                path = Path(folder) / f"{name}.pt"
                torch.save(model.state_dict(), path)
                sizes.append(path.stat().st_size)
        return sizes

    def near(size_of_file: float, sizes: list[int]) -> bool:
        return min(sizes) - 64 <= size_of_file <= max(sizes) + 64

    def judge(what: str, model: nn.Module, count: int, bits: float, known: dict[str, float] | None = None) -> None:
        kept = copy.deepcopy(model)
        try:
            answer = size(model)
        except ZeroDivisionError:
            raise AssertionError(
                f"{what}: you find no weights. In a quantized module the weight is packed and no parameter; call module.weight()."
            ) from None
        assert isinstance(answer, dict) and {"file_bytes", "weights", "bits_per_weight"} <= set(answer), (
            'size should return a dict with the keys "file_bytes", "weights" and "bits_per_weight".'
        )
        parameters = sum(p.numel() for p in model.parameters())
        everything = sum(p.numel() for p in kept.parameters()) if parameters != count else -1
        vectors = sum(m.weight.numel() for m in model.modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 1)
        number = float(answer["weights"])
        assert number != 0, f"{what}: you find no weights. " + (
            "In a quantized module the weight is packed and no parameter; call module.weight()."
            if bits < 30
            else "Look at the `weight` of every module, whatever its type."
        )
        assert number == count or number != everything, (
            f'{what}: your "weights" counts all parameters, biases and norms too, or misses what is packed; count matrices of modules that have a `weight`.'
        )
        assert number != count + vectors or not vectors, (
            f'{what}: your "weights" counts vectors, too, such as those of a LayerNorm: only tensors of two dimensions or more are matrices.'
        )
        assert number != 2 * count, f'{what}: your "weights" counts a matrix twice that two modules share.'
        assert number == count, (
            f'{what}: your "weights" is {number:.0f} and should be {count}. '
            + "Is a matrix left out? Equal values, and places of unpacked copies that are freed at once (data_ptr, id), do not show that two modules share a matrix."
            * (number < count)
        )
        size_of_file, sizes = float(answer["file_bytes"]), stored(model)
        four = sum(
            4 * (w().numel() if callable(w) else w.numel())
            for w in (getattr(m, "weight", None) for m in model.modules())
            if w is not None
        )
        assert size_of_file > 0, (
            f'{what}: your "file_bytes" is 0: packed weights are no parameters. Save the state_dict and look.'
        )
        quantized = bits < 30
        assert not (quantized and abs(size_of_file / four - 1) < 0.03), (
            f'{what}: your "file_bytes" is 4 bytes for each weight, as if they were floats. Save the state_dict and look.'
        )
        assert near(size_of_file, sizes), (
            f'{what}: your "file_bytes" is {size_of_file:.0f}, and torch.save makes {sizes[1]} of the state_dict. '
            + (
                "Yours is larger: do you save the whole model, or its parameters as floats?"
                if size_of_file > sizes[1]
                else "Yours is smaller: names, and what is neither weight nor bias, are in the file, too; do not add up, save and look."
            )
        )
        given = float(answer["bits_per_weight"])
        checks.number(
            given,
            bits,
            f'your "bits_per_weight" for {what}',
            {
                "the scales and zero points were forgotten.": 8.0,
                "each weight is counted as 4 bytes: ask the tensor for its element_size().": 32.0
                if quantized
                else -1.0,
                "it is in bytes: 8 bits are a byte.": bits / 8,
                "it is the whole file, biases and names too; only the matrices count here, with their scales and zero points.": 8
                * size_of_file
                / count,
                "the scales are counted, and the zero points are not.": 8 + (bits - 8) / 2,
                "4 bytes a scale and 1 a zero point would be enough; PyTorch holds more: ask both tensors for their nbytes.": 8
                + (bits - 8) * 5 / 16,
                **(known or {}),
            },
            rtol=1e-6,
        )
        assert witness.unchanged(kept, model) == "", (
            f"your function changes the model: {witness.unchanged(kept, model)}."
        )

    def tried(program: str, question: str) -> float:
        """The peak, or a question to whom raises where nothing is wrong with the program."""
        try:
            return peak_bytes(program)
        except NotImplementedError:
            raise
        except Exception as error:
            raise AssertionError(
                f"your peak_bytes raises {type(error).__name__} for the harmless program {program!r}: {question}"
            ) from None

    def mapped(megabytes: int, touched: bool) -> str:
        """A program that maps memory which Python's objects know nothing of, and writes to every page of it, or none."""
        write = f"for i in range(0, {megabytes * 10**6}, 4096): area[i] = 1" if touched else "area[0] = 1"
        return f"import mmap, pathlib, resource\narea = mmap.mmap(-1, {megabytes * 10**6})\n{write}"

    def in_kilobytes(program: str) -> tuple[int, float]:
        """The peak in kilobytes that the program itself sees when it ends (0 where there is no /proc), and the answer."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "peak"
            look = f"text = open('/proc/self/status').read()\nopen({str(path)!r}, 'w').write(text.split('VmHWM:')[1])"
            answer = peak_bytes(f"{program}\n{look}" if Path("/proc/self/status").is_file() else program)
            return int(path.read_text().split()[0]) if path.is_file() else 0, answer

    def judge_peak(megabytes: int) -> None:
        ballast = torch.ones(60_000_000)  # 240 MB in this process, which are none of the child's business
        nothing = tried("pass", "is there a line break between the program and your own lines?")
        assert isinstance(nothing, int | float), "peak_bytes should return a number."
        assert not 3 < nothing < 90, (
            f"your peak of a Python that does nothing is {nothing:.3g}: that is in megabytes, and should be in bytes."
        )
        tried("import sys\nsys.left_by_a_program = 1", "it only sets an attribute.")
        at_home = bool(vars(sys).pop("left_by_a_program", 0))
        assert not at_home, (
            "your function runs the program in this process, and so its peak is that of this notebook: run it in a child (subprocess.run)."
        )
        assert not 90e6 <= 1024 * nothing < 3e9, (
            f"your peak of a Python that does nothing is {nothing}. In bytes that is too little for any Python; in kilobytes it would be {1.024e-3 * nothing:.0f} MB, the memory of this notebook. So two things are wrong: on Linux ru_maxrss is in kilobytes, and it inherits the peak of the parent. Take VmHWM, times 1024."
        )
        assert nothing > 3e6 or not 3e6 < 1024 * nothing < 90e6, (
            f"your peak of a Python that does nothing is {nothing} bytes: on Linux the number is in kilobytes, so multiply by 1024."
        )
        assert nothing > 3e6, (
            f"your peak of a Python that does nothing is {nothing} bytes. The interpreter alone needs millions: ask the operating system for the resident memory (tracemalloc sees only what Python's objects take)."
        )
        assert nothing < 3e9, (
            f"your peak of a Python that does nothing is {nothing:.3g} bytes: you have multiplied by 1024 too often."
        )
        assert nothing < 90e6, (
            f"your peak of a Python that does nothing is {nothing / 1e6:.0f} MB: that is this notebook's memory. Ask the child, and on Linux for VmHWM; ru_maxrss inherits the peak of the parent."
        )
        more = peak_bytes(f"block = b'x' * {megabytes * 10**6}\ndel block") - nothing
        assert more > 0.5e6 * megabytes, (
            f"a program that needs {megabytes} MB for a moment and frees them has a peak only {more / 1e6:.0f} MB above one that does nothing: you measure what it holds at the end, not the peak."
        )
        assert 0.9e6 * megabytes < more < 1.3e6 * megabytes, (
            f"a program with {megabytes} MB adds {more / 1e6:.0f} MB to your peak."
        )
        chatty = tried("print(7)\nprint('8 9')", "it prints numbers, so find your own behind a marker.")
        assert 3e6 < chatty < nothing + 5e6, (
            f"your peak of a program that prints 7, 8 and 9 is {chatty}: find your own number behind a marker, or take the last one."
        )
        reserved = peak_bytes(mapped(500, touched=False)) - nothing
        assert reserved < 20e6, (
            f"a program that maps 500 MB and does not touch them adds {reserved / 1e6:.0f} MB to your peak: that is virtual memory (VmPeak). Resident is only what was touched: VmHWM."
        )
        used = peak_bytes(mapped(80, touched=True)) - nothing
        assert 70e6 < used < 100e6, (
            f"a program that maps 80 MB and writes to all of them adds {used / 1e6:.0f} MB to your peak: ask the operating system for resident memory (tracemalloc sees only Python's own objects)."
        )
        seen, answer = in_kilobytes(mapped(150, touched=True))
        assert answer > 1015 * seen, (
            f"a program that sees itself a peak of {seen} kB has {answer} bytes with you: one kB is 1024 bytes here."
        )
        assert not seen or answer < 1024 * seen + 6e6, (
            f"a program that sees itself a peak of {seen} kB has {answer} bytes with you, {(answer - 1024 * seen) / 1e6:.0f} MB more: is something added, or something large imported in order to report?"
        )
        try:
            ended = peak_bytes("print(42)\nimport sys\nsys.exit(0)")
        except Exception:
            ended = nothing  # refused, as it may be
        assert ended > 3e6, (
            f"for a program that prints 42 and ends itself (sys.exit(0)) your peak is {ended}: your lines were never reached. Print a marker before your number, and raise if it is missing."
        )
        assert ballast[0] == 1
        with_package = tried(
            "import torch", "it runs here. Is your child this Python (sys.executable), with its packages?"
        )
        assert with_package > nothing + 30e6, (
            f"a program that imports torch has a peak of {with_package / 1e6:.0f} MB, one that does nothing {nothing / 1e6:.0f} MB: has it been imported at all?"
        )

    with checks.check("5.5", "you count packed weights with their scales, and the peak of the child alone"):
        judge(
            "static int8, a scale for each row",
            static(True, 256, 96),
            256 * 96,
            8 + 128 / 256,
            {"there is a scale and a zero point for each row, not one pair for the tensor.": 8 + 128 / (256 * 96)},
        )
        judge("a float model", nn.Sequential(nn.Linear(300, 200), nn.LayerNorm(200), nn.Linear(200, 40)), 68_000, 32.0)
        judge("static int8, one scale for the tensor", static(False, 200, 128), 200 * 128, 8 + 128 / (200 * 128))
        judge(
            "int8 embedding and dynamic int8 Linear",
            embedded(300, 64),
            2 * 300 * 64,
            8 + (300 * 64 + 128) / (2 * 300 * 64),
            {
                "an embedding's scales and zero points are float32, 8 bytes a row together and not 16: ask both tensors for their nbytes.": (
                    8 + (300 * 128 + 128) / (2 * 300 * 64)
                ),
                "the embedding has a scale and a zero point for each row, not one pair for the tensor.": (
                    8 + 256 / (2 * 300 * 64)
                ),
            },
        )
        judge("40 int8 layers of one shape", several(20, 64), 40 * 64 * 64, 8 + (128 + 64 * 64) / (2 * 64**2))
        judge("an embedding tied to a head", tied(500, 32), 16_000, 32.0)
        unusual = nn.Sequential(nn.Conv1d(6, 10, 3), nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 8).half())
        judge("a convolution, a norm without weights, a layer in float16", unusual, 212, (180 * 32 + 32 * 16) / 212)
        for what, model, _ in samples.zoo():
            float_weights = {m.weight.data_ptr(): m.weight for m in model.modules() if hasattr(m, "weight")}
            judge(what, model.train(), sum(w.numel() for w in float_weights.values() if w.dim() > 1), 32.0)
        layer = nn.Linear(48, 32)
        judge(
            "a layer and its copy, equal but not shared", nn.Sequential(layer, copy.deepcopy(layer)), 2 * 48 * 32, 32.0
        )
        checks.raises(
            Exception,
            lambda: peak_bytes("raise ValueError('stop')"),
            "a program that fails has no peak: raise an error (check=True does it).",
        )
        judge_peak(120)
    ### BEGIN HIDDEN TESTS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(55)
        twin = nn.Linear(12, 20)
        examples = [
            (static(True, 64, 48, 32), 64 * 48 + 48 * 32, 8 + 128 * (48 + 32) / (64 * 48 + 48 * 32)),
            (static(False, 100, 100, 50), 15_000, 8 + 2 * 128 / 15_000),
            (embedded(100, 32), 6_400, 8 + (100 * 64 + 128) / 6_400),
            (tied(100, 16), 1_600, 32.0),
            (several(24, 72), 48 * 72**2, 8 + (128 + 72 * 64) / (2 * 72**2)),
            (nn.Sequential(twin, nn.ReLU(), copy.deepcopy(twin)), 480, 32.0),
            (nn.Sequential(nn.Embedding(50, 20), nn.Linear(20, 30)).double(), 1_600, 64.0),
            (
                nn.Sequential(nn.Conv1d(4, 8, 2).double(), nn.BatchNorm1d(8, affine=False), nn.Linear(4, 8)),
                96,
                8 * 640 / 96,
            ),
        ]
        for _, odd, _ in samples.zoo(seed=5):
            found = {m.weight.data_ptr(): m.weight for m in odd.modules() if hasattr(m, "weight")}
            examples.append((odd.train(), sum(w.numel() for w in found.values() if w.dim() > 1), 32.0))

    for model, count, bits in examples:
        with checks.untouched(model=model):
            answer = size(model)
        assert answer["weights"] == count, f"{answer['weights']} weights instead of {count}."
        assert abs(answer["bits_per_weight"] - bits) < 1e-6, f"{answer['bits_per_weight']} bits instead of {bits}."
        assert near(answer["file_bytes"], stored(model)), "wrong size of the file."
    weight = torch.ones(50_000_000)
    idle = peak_bytes("x = 1")
    burst = peak_bytes("x = b'y' * 70_000_000\ndel x")
    assert 3e6 < idle < 90e6 and 60e6 < burst - idle < 95e6 and weight[0] == 1, f"wrong peaks: {idle}, {burst}."
    assert peak_bytes(mapped(600, touched=False)) - idle < 20e6, "untouched memory is not resident."
    assert 80e6 < peak_bytes(mapped(90, touched=True)) - idle < 110e6, "touched memory is resident."
    assert 3e6 < peak_bytes("print(3)\nprint(4.5, 'x')") < 90e6, "what the program prints is no peak."
    assert peak_bytes("import numpy") > idle + 5e6, "a program may import packages."
    by_itself, found = in_kilobytes(mapped(200, touched=True))
    assert found > 1014 * by_itself, f"{found} bytes, and {by_itself} kB."
    assert not by_itself or found < 1024 * by_itself + 6e6, f"{found} bytes, and {by_itself} kB."
    try:
        early = peak_bytes("import sys\nprint(17)\nsys.exit()")
    except Exception:
        early = 1e7
    assert early > 3e6, "a program that ends itself has no peak of 17 bytes."
    try:
        peak_bytes("import no_such_module")
    except Exception:
        failed = True
    else:
        failed = False
    assert failed, "a program that fails must raise an error."
    ### END HIDDEN TESTS


check_ex_5_5()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# For `size`: a module's `weight` is a tensor in float modules, a method in packed ones, and absent in others. For `peak_bytes`: append to the program, after a line break, some lines that read the peak and print it behind a marker of your own; what the program itself prints stands before it.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `weight = getattr(module, "weight", None)`, and call it if it is `callable`. Bytes: `numel() * element_size()`, plus 16 with one scale for the tensor, or the `nbytes` of both per-channel tensors. Remember `data_ptr()` of float weights to count each only once; a packed weight is unpacked anew by each call, so its place says nothing, and it counts always. The file: `torch.save(model.state_dict(), io.BytesIO())`.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# Appended lines: `import pathlib`, then `text = pathlib.Path("/proc/self/status").read_text()`, `print("PEAK", 1024 * int(text.split("VmHWM:")[1].split()[0]))`; where that file does not exist, `resource.getrusage(resource.RUSAGE_SELF).ru_maxrss` (bytes on a Mac). `check=True` in `subprocess.run` raises if the program fails. Then `_, marker, rest = done.stdout.rpartition("PEAK")`: without a marker there was no report, so raise; else the first word of `rest` is the number.
# </details>

# %% [markdown]
# Now our models. (The course model's head and embedding share one matrix. Quantization cuts that tie: two int8 matrices are stored instead of one float matrix.) For the peaks, each child builds one model and reads 8 × 256 bytes. The first child only imports what all of them need. Each child runs three times: what the allocator keeps, and when, is not the same in each run.

# %% tags=["varies"]
START = """
import torch
from helpers import int8, known_warnings, models
known_warnings.hide()
int8.choose_engine()
torch.set_num_threads(1)
"""
BUILD = "model = models.TransformerLM(models.ModelConfig()).eval()\n"
RUN = "with torch.no_grad(): model(torch.zeros(8, 256, dtype=torch.int64))\n"
programs = {
    "nothing but the imports": START,
    "float": START + BUILD + RUN,
    "dynamic int8": START + BUILD + "model = int8.dynamic_int8(model)\n" + RUN,
}
peaks = {name: memory.peaks(program, repeats=3) for name, program in programs.items()}
base = statistics.median(peaks["nothing but the imports"])
float_bytes = metrics.file_bytes(float_model)
rows = []
for name in ("float", "static int8", "dynamic int8"):
    file = metrics.file_bytes(models[name])
    above = [(peak - base) / 1e6 for peak in peaks.get(name, [])]
    rows.append(
        {
            "model": name,
            "file, MB": f"{file / 1e6:.2f}",
            "float file / this file": f"{float_bytes / file:.2f}",
            "peak above the imports, MB (smallest to largest of 3)": f"{min(above):.0f} to {max(above):.0f}"
            if above
            else "–",
        }
    )
tables.show(rows)
print("the imports alone, MB:", " ".join(f"{peak / 1e6:.0f}" for peak in peaks["nothing but the imports"]))

# %% [markdown]
# Three lessons. Neither file is four times smaller: scales, biases and LayerNorms are in it, the tie is cut, and the dynamic model keeps its embedding in float. The *peak* has hardly anything to do with the file: at 2,048 bytes of text most of it are activations (the scores of attention, the inner layer of the feed-forward part, the logits), and they stay float. Quantizing the weights does not make activations small.
# And three runs of the *same* program do not have the same peak. Where the ranges of two models overlap, this table does not say which one needs less, and one run of each would have invented an answer. (The int8 child builds the float model first, and then quantizes it. A program that fills an int8 skeleton from the int8 file never holds the float weights; how much that lowers the peak has not been measured here. For the same reason static int8 shows no peak: its child would have to calibrate first, and the peak would be that of calibration.)
#
# ## 4. What does it take?
#
# ### A stopwatch that cannot be fooled
#
# Measuring time looks easy: start, run, stop. Here is what goes wrong, each with its cure.
#
# | what happens | wrong | right |
# |---|---|---|
# | the first call allocates memory, chooses kernels, fills caches | count it | **warm up**: some turns that do not count |
# | the computer becomes slower with time (heat, another program) | 30 times A, then 30 times B | **take turns**: both programs in each turn, one ratio for each turn |
# | what runs second finds a warm cache, or a throttled processor | A is always first | **there and back**: A, B, B, A in each turn |
# | now and then the system interrupts a program for ten times its duration | mean; or the minimum, which nobody ever experiences | **median** of the ratios |
# | another number of threads | whatever is set | **pin** it for the measurement, and restore it |
# | a ratio is reported without an interval | "1.07 times faster" | an **interval**, over turns |
#
# To see it, a simulated computer: a clock that we push forward ourselves. Program B takes 0.8 of the time of A, always. But the computer becomes slower from call to call, the first calls are slow, and some calls are interrupted.


# %%
class SimulatedComputer:
    """A clock that moves only when a program runs; slow at first, then slower and slower, sometimes interrupted."""

    def __init__(self, seed: int) -> None:
        self.now, self.calls, self.draw = 0.0, 0, np.random.default_rng(seed)

    def clock(self) -> float:
        return self.now

    def program(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            first = 20.0 if self.calls < 2 else 1.0
            interrupted = 12.0 if self.draw.random() < 0.06 else 1.0
            self.now += seconds * first * interrupted * (1 + 0.012 * self.calls) * self.draw.lognormal(0, 0.03)
            self.calls += 1

        return run


def stopwatch(computer: SimulatedComputer, run: Callable[[], None]) -> float:
    """Simulated seconds of one call."""
    start = computer.clock()
    run()
    return computer.clock() - start


def a_then_b(seed: int) -> float:
    """All of A first, then all of B; means."""
    computer = SimulatedComputer(seed)
    a, b = computer.program(1.0), computer.program(0.8)
    seconds_a = [stopwatch(computer, a) for _ in range(30)]
    seconds_b = [stopwatch(computer, b) for _ in range(30)]
    return statistics.mean(seconds_b) / statistics.mean(seconds_a)


def turn_and_turn(seed: int) -> float:
    """With the course's harness: turns, warm-up, median; about as many calls. (It is told to refuse nothing: see below.)"""
    computer = SimulatedComputer(seed)
    pair = {"A": computer.program(1.0), "B": computer.program(0.8)}
    return latency.compare(pair, repeats=15, clock=computer.clock, noise=math.inf)["B"].ratio


fig, ax = plots.figure(width=8, height=2.6)
for label, measure, colour, hatch in [
    ("A, then B; means; first runs counted", a_then_b, plots.ORANGE, "//"),
    ("turns, warm-up, median", turn_and_turn, plots.BLUE, ""),
]:
    values = [measure(seed) for seed in range(60)]
    ax.hist(values, bins=np.linspace(0, 1.6, 49), color=colour, alpha=0.7, label=label, hatch=hatch, edgecolor="white")
    print(f"{label}: from {min(values):.2f} to {max(values):.2f}")
ax.axvline(0.8, color="black", linestyle="--", linewidth=1)
ax.set_xlabel("ratio B / A; 60 simulated experiments; dashed: the truth")
ax.set_ylabel("experiments")
ax.legend()
plots.show(
    fig,
    caption="Two ways to measure the same two programs on the same (simulated) computer. B takes 0.8 of A's time.",
    alt="Two histograms of ratios. Turns with the median give a narrow peak at the true 0.8; A then B with means scatters widely, and most of it is far from the truth.",
)

# %% [markdown]
# The wide histogram makes several mistakes at once (first calls counted, blocks instead of turns, means), on a computer that we made restless on purpose. It shows what can happen, not how often it does.
#
# ### Taking turns is not enough
#
# Two *identical* programs, and a computer on which whatever runs second in a turn takes 0.9 of its time. The truth is 1. Let A begin in one turn and B in the next, 21 turns, no noise at all:

# %% tags=["nbval-check-output"]
SECOND = 0.9
alternating = [SECOND / 1 if turn % 2 == 0 else 1 / SECOND for turn in range(21)]  # B / A: A begins, B begins, …
there_and_back = [math.sqrt(there * back) for there, back in zip(alternating[::2], alternating[1::2], strict=False)]
print(f"one ratio a turn, who begins alternates: median {statistics.median(alternating):.2f}")
print(f"geometric mean of two adjacent turns:    median {statistics.median(there_and_back):.2f}")

# %% [markdown]
# The single ratios form two clusters, one at 0.9 and one at 1 / 0.9, and their median is a member of the larger one. Alternating has not cancelled anything. What cancels it is a product: a way there (A, then B) times a way back (B, then A), and the square root of that.
#
# ### Exercise 5.6: your own harness
# *Difficulty 3 of 5 · 35 minutes · 3 points*
#
# Write `ratio_interval`. The clock is an argument: a function that returns seconds, like `time.perf_counter`. With a simulated clock the check can know the truth.
#
# 1. Set PyTorch's threads to `threads` (`torch.set_num_threads`), and restore what was set before, even if a program fails (`try … finally`).
# 2. A turn goes there and back: time four calls, one by one, of first, second, second, first. Each way has a ratio, seconds of the second program divided by seconds of the first, whichever of them began. The turn's ratio is the geometric mean of both: $\sqrt{r_{\text{there}} \cdot r_{\text{back}}}$.
# 3. The first `warmup` turns are not counted; `turns` more are.
# 4. Return the median of the turns' ratios, and the 95 % percentile bootstrap interval of the median over turns: draw `resamples` times as many turns as there are, with replacement. Draw every random number from `generator`.
#
# By hand: seconds 1, 0.9, 1, 0.9 for first, second, second, first (the same program twice, and whatever is second takes 0.9). There $0.9 / 1 = 0.9$; back $1 / 0.9 = 1.11$; the turn's ratio is $\sqrt{0.9 \cdot 1.11} = 1$. (The arithmetic mean would be 1.006.)
#
# (`torch.Tensor.median` returns the lower of two middle values; `quantile(0.5)` and NumPy's and Python's `median` average them. The check uses odd numbers of turns, so both are right.)


# %% nbgrader={"grade": false, "grade_id": "ex_5_6", "locked": false, "schema_version": 3, "solution": true, "task": false}
def ratio_interval(
    first: Callable[[], object],
    second: Callable[[], object],
    turns: int,
    warmup: int,
    clock: Callable[[], float],
    threads: int,
    resamples: int,
    generator: torch.Generator,
) -> tuple[float, float, float]:
    """Seconds of `second` divided by seconds of `first`, with a 95 % interval.

    Parameters
    ----------
    first, second : callable
        Programs without arguments; both may be the same one.
    turns, warmup : int
        Turns, there and back, that count (odd), and turns before them that do not.
    clock : callable
        Returns seconds.
    threads : int
        PyTorch's threads during the measurement.
    resamples : int
        Bootstrap samples of the turns.
    generator : torch.Generator
        The only source of random numbers; it may have been used before, and is not seeded anew.

    Returns
    -------
    (float, float, float)
        Median of the turns' ratios; lower and upper end of its interval.
    """
    ### BEGIN SOLUTION
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    ratios = []
    try:
        for _ in range(warmup + turns):
            seconds = []  # by place: `first` and `second` may be the same program
            for program in (first, second, second, first):
                begin = clock()
                program()
                seconds.append(clock() - begin)
            ratios.append(math.sqrt(seconds[1] / seconds[0] * seconds[2] / seconds[3]))
    finally:
        torch.set_num_threads(threads_before)
    counted = torch.tensor(ratios[warmup:], dtype=torch.float64)
    again = counted[torch.randint(turns, (resamples, turns), generator=generator)]  # (resamples, turns)
    medians = again.median(dim=1).values
    return counted.median().item(), medians.quantile(0.025).item(), medians.quantile(0.975).item()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_5_6_check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 5.6: run this cell.
import itertools
import math
import random
import statistics

import numpy as np
import torch

from helpers import checks, samples


@checks.isolated
def check_ex_5_6() -> None:
    class World:
        """A clock and two programs whose durations are written down beforehand, call by call."""

        def __init__(self, a: list[float], b: list[float]) -> None:
            self.now, self.order, self.threads, self.left = 0.0, [], set(), {"a": list(a), "b": list(b)}
            self.reads = 0

        def clock(self) -> float:
            self.reads += 1
            return self.now

        def program(self, name: str):
            def run() -> None:
                self.order.append(name)
                self.threads.add(torch.get_num_threads())
                assert self.left[name], "a program was called more often than twice in each turn, there and back."
                self.now += self.left[name].pop(0)

            return run

    def measure(
        a: list[float],
        b: list[float],
        warmup: int,
        seed: int | torch.Generator = 0,
        threads: int = 1,
        resamples: int = 2000,
    ) -> tuple[tuple, World]:
        """The answer for these durations (two of each program in a turn), and the world afterwards."""
        world = World(a, b)
        generator = samples.advanced(seed) if isinstance(seed, int) else seed
        turns = len(a) // 2 - warmup
        programs = world.program("a"), world.program("b")
        answer = ratio_interval(*programs, turns, warmup, world.clock, threads, resamples, generator)
        assert isinstance(answer, tuple | list) and len(answer) == 3, (
            "your function should return three numbers: the ratio, and both ends of its interval."
        )
        assert all(isinstance(value, float) for value in answer), (
            "your function should return three of Python's numbers (.item()), and no tensors."
        )
        return tuple(answer), world

    def durations(seed: int, count: int, warmup: int) -> tuple[list[float], list[float]]:
        """Two calls of each in a turn: drift, slow first calls, interruptions, and whatever is second takes 0.9.

        b takes about 0.7 of a's time.
        """
        g = np.random.default_rng(seed)
        calls = np.repeat(1 + 0.05 * np.arange(count), 2)
        second = np.tile([1.0, 0.9], count)  # of a; of b the other way round
        a = calls * second * g.lognormal(0, 0.1, 2 * count)
        b = 0.7 * calls * second[::-1] * g.lognormal(0, 0.1, 2 * count)
        a[: 2 * warmup] *= 40
        b[: 2 * warmup] *= 9
        a[g.random(2 * count) < 0.06] *= 15
        b[g.random(2 * count) < 0.06] *= 15
        return a.tolist(), b.tolist()

    def ways(a: list[float], b: list[float], warmup: int = 0) -> list[tuple[float, float]]:
        """Ratios there and back, of every counted turn."""
        singles = [y / x for x, y in zip(a, b, strict=True)]
        return list(zip(singles[::2], singles[1::2], strict=True))[warmup:]

    def turn_ratios(a: list[float], b: list[float], warmup: int = 0) -> list[float]:
        return [math.sqrt(there * back) for there, back in ways(a, b, warmup)]

    def bounds(ratios: list[float]) -> tuple[tuple[float, float], tuple[float, float]]:
        """Between which ratios each end must lie: the bootstrap of a median is a binomial, exactly."""
        n, ordered = len(ratios), sorted(ratios)
        middle = (n + 1) // 2
        at_most = [
            sum(math.comb(n, j) * k**j * (n - k) ** (n - j) for j in range(middle, n + 1)) / n**n for k in range(n + 1)
        ]
        places = [next(k for k in range(n + 1) if at_most[k] >= tail) - 1 for tail in (0.025, 0.975)]
        return tuple((ordered[max(0, k - 1)] - 1e-6, ordered[min(n - 1, k + 1)] + 1e-6) for k in places)

    def near(x: float, y: float) -> bool:
        return abs(x - y) <= 1e-6 * y

    def ends(ratios: list[float], seed: int | torch.Generator, resamples: int) -> tuple[float, float]:
        """Your interval for turns with these ratios, the same there and back."""
        return measure([1.0] * 2 * len(ratios), np.repeat(ratios, 2).tolist(), 0, seed, resamples=resamples)[0][1:]

    def both_the_same(times: list[float]) -> tuple[float, float, float]:
        """Your answer if the first program is also the second; four durations in a turn."""
        world = World(times, [])
        program, turns = world.program("a"), len(times) // 4
        return ratio_interval(program, program, turns, 0, world.clock, 1, 500, samples.advanced(turns))

    def twins(factor: float, seed: int, count: int = 21) -> float:
        """Your ratio of two equal programs of which the second of each way takes `factor`; noise of 1 %."""
        g = np.random.default_rng(seed)
        scatter = lambda: g.lognormal(0, 0.01, 2 * count)  # noqa: E731
        a, b = np.tile([1.0, factor], count) * scatter(), np.tile([factor, 1.0], count) * scatter()
        return measure(a.tolist(), b.tolist(), 0, seed, resamples=20)[0][0]

    def states() -> str:
        return repr((torch.random.get_rng_state().tolist(), np.random.get_state(), random.getstate()))

    def seeded() -> str:
        """States of everybody's random numbers after seeds that nobody guesses."""
        torch.manual_seed(86_561), np.random.seed(86_561), random.seed(86_561)
        return states()

    def moved(seed: int, resamples: int) -> tuple[list[int], list[int]]:
        """State of a generator that has been used before, before and after your function has drawn from it."""
        generator = samples.advanced(seed)
        before = generator.get_state().tolist()
        ends(uneven, generator, resamples)
        return before, generator.get_state().tolist()

    def direct(resamples: int) -> str:
        """What is wrong with the way in which your random numbers are drawn; "" if every index comes from the generator."""
        generator = samples.advanced(567)
        before, enough = generator.get_state(), resamples * len(uneven)
        with samples.other_generators() as made:
            ends(uneven, generator, resamples)
        if made:
            return f"your function makes a generator of its own ({made[0]}), and the one that it is given is only a seed of it: draw every turn from `generator`."
        words = samples.words_between(before, generator.get_state(), enough)
        return (
            f"for {resamples} resamples of {len(uneven)} turns your function drew {words} random numbers; {enough} are needed, one for each turn of each resample. Is one number used for several, or do some come from elsewhere?"
            if words < enough
            else ""
        )

    def again_and_again(seed: int) -> int:
        """How many different medians one generator gives in 12 calls, if nobody sets it back."""
        generator = samples.advanced(seed)
        return len({round(ends(uneven, generator, 1)[0], 6) for _ in range(12)})

    uneven = (np.random.default_rng(569).permutation(np.linspace(0.5, 1.5, 19)) ** 2).tolist()  # 19 ratios

    def after_a_failure(threads: int, kind: type[BaseException] = OSError) -> int:
        """Threads after a program that fails at its first call, in the warm-up, and never again."""
        calls = itertools.count()

        def interrupted() -> None:
            if next(calls) == 0:
                raise kind("interrupted")

        try:
            clock = itertools.count().__next__
            ratio_interval(interrupted, interrupted, 5, 1, clock, threads, 10, torch.Generator())
        except kind:
            return torch.get_num_threads()
        raise AssertionError(
            "a program that fails should not be silenced, not even in the warm-up: let its error pass."
        )

    def judge_point(seed: int, count: int, warmup: int) -> None:
        """Order of the calls, the ratio, and its interval, on a restless computer."""
        a, b = durations(seed, count + warmup, warmup)
        answer, world = measure(a, b, warmup, seed)
        order, all_turns = world.order, count + warmup
        assert len(order) == 4 * all_turns, (
            f"each program should be called {2 * all_turns} times, there and back, warm-up included; together they were called {len(order)} times."
        )
        assert order[: 2 * all_turns] != ["a"] * 2 * all_turns and order[4 * warmup :] != (
            ["a"] * 2 * count + ["b"] * 2 * count
        ), (
            "all calls of the first program come before those of the second: whatever changes with time, changes your ratio. Take turns."
        )
        assert world.reads, "your function never reads the clock that it is given: call clock(), no clock of your own."
        said = "".join(order)
        assert said != "ab" * 2 * all_turns, (
            "the same program begins on every way: go there and back, first, second, second, first, so that neither is always the one that finds a warm cache."
        )
        assert said != "aabb" * all_turns, (
            "the two calls of a program follow one another in a turn: a computer that slows down changes the ratio. Go there and back: first, second, second, first."
        )
        assert said == "abba" * all_turns, (
            "the order of a turn is first, second, second, first, in every turn, from the first warm-up turn on."
        )
        every, kept, both = turn_ratios(a, b), turn_ratios(a, b, warmup), ways(a, b, warmup)
        ka, kb = a[2 * warmup :], b[2 * warmup :]
        median = statistics.median
        checks.number(
            answer[0],
            median(kept),
            "your ratio",
            {
                "it is upside down: the second program's seconds are divided by the first's.": median(
                    [1 / r for r in kept]
                ),
                "the way back is upside down: divide the seconds of `second` by those of `first`, whichever of them began.": median(
                    [math.sqrt(there / back) for there, back in both]
                ),
                "every way is a turn of its own: there and back form two clusters, and the median is a member of one of them. Take the geometric mean of both first.": median(
                    [one for pair in both for one in pair]
                ),
                "only the way there is used: what runs second has its advantage in every ratio.": median(
                    [there for there, _ in both]
                ),
                "only the way back is used: what runs second has its advantage in every ratio.": median(
                    [back for _, back in both]
                ),
                "there and back have their arithmetic mean: 0.9 and 1 / 0.9 give 1.006. The geometric one is the root of the product.": median(
                    [(there + back) / 2 for there, back in both]
                ),
                "there and back are multiplied, and the square root is missing.": median(
                    [there * back for there, back in both]
                ),
                "the seconds of both ways are added before they are divided: take a ratio of each way, and the geometric mean of the two.": median(
                    [(b1 + b2) / (a1 + a2) for a1, a2, b1, b2 in zip(ka[::2], ka[1::2], kb[::2], kb[1::2], strict=True)]
                ),
                "it is the mean of the turns' ratios: one interruption spoils it. Take the median.": statistics.mean(
                    kept
                ),
                "it is the geometric mean of the turns' ratios: one interruption spoils it. Take their median.": math.exp(
                    statistics.mean(map(math.log, kept))
                ),
                "it is the ratio of the means: one interruption spoils it. Take the median of the turns' ratios.": statistics.mean(
                    kb
                )
                / statistics.mean(ka),
                "it is the ratio of the minima: two lucky calls from different moments. Take the median of the turns' ratios.": min(
                    kb
                )
                / min(ka),
                "it is the ratio of the medians: the turns are torn apart. Divide within each turn, then take the median.": median(
                    kb
                )
                / median(ka),
                "the warm-up turns are counted: the first calls are slow.": median(every),
                "the warm-up turns are counted, and it is a mean.": statistics.mean(every),
                "the warm-up turns are counted, in a ratio of means.": statistics.mean(b) / statistics.mean(a),
                "it is the smallest of the ratios: take their median.": min(kept),
                "the last `warmup` turns are left out, and not the first.": median(every[:count]),
            },
            rtol=1e-6,
        )
        _, low, high = answer
        assert low < high, (
            "your interval has no width: draw the turns anew (with replacement), take the median of each sample, and the 2.5th and 97.5th percentile of these medians."
        )
        (low_from, low_to), (high_from, high_to) = bounds(kept)
        assert low_from <= low <= low_to and high_from <= high <= high_to, (
            f"your interval is {low:.3f} to {high:.3f}; the bootstrap of the median ends at {(low_from + low_to) / 2:.3f} and {(high_from + high_to) / 2:.3f} or so. "
            "Is it that of the mean, or the spread of single turns, or of single ways, or are the warm-up turns in it?"
        )
        assert measure(a, b, warmup, seed)[0] == answer, (
            "the same generator gives two intervals: take the random numbers from it."
        )

    def judge_generator() -> None:
        """Every random number comes from the generator, as many as there are resamples, and from nowhere else."""
        before = seeded()
        single = [ends(uneven, seed, 1) for seed in range(12)]
        assert before == states(), (
            "your function draws or seeds random numbers of PyTorch, NumPy or Python that belong to everybody: draw from `generator`, and seed nothing."
        )
        turns = [1.0] * 38, np.repeat(uneven, 2).tolist()
        assert all(near(measure(*turns, 0, seed, resamples=1)[0][0], sorted(uneven)[9]) for seed in range(3)), (
            "your ratio depends on what is drawn: it is the median of the turns themselves, and not that of the resamples' medians."
        )
        assert all(near(low, high) for low, high in single), (
            "with resamples=1 there is one median, and both ends of the interval are it. Draw `resamples` bootstrap samples, no other number, and use no formula."
        )
        assert len({round(low, 6) for low, _ in single}) > 2, (
            "another generator gives the same interval: take the random numbers from the one that is given."
        )
        start, end = moved(565, 2000)
        assert start != end, (
            "the generator that you were given has not moved: draw from it (generator=generator). Its seed (initial_seed) belongs to numbers that may have been drawn long ago."
        )
        assert again_and_again(566) > 2, (
            "one generator, used again and again, gives the same interval every time: you set it back, or take only its seed. Draw from it as it is."
        )
        assert end != moved(565, 20_000)[1] and moved(565, 20_000)[1] != moved(565, 20_001)[1], (
            "the generator moves no further for more resamples: `resamples` is capped, or the numbers come from elsewhere, such as NumPy with a seed from it."
        )
        fault = direct(7)
        assert not fault, fault

    def judge_threads() -> None:
        """PyTorch's threads are those that were asked for, and afterwards those that were set before: three."""
        usual = torch.get_num_threads()
        try:
            for before, wanted in ((3, 1), (3, 2), (1, 4)):
                torch.set_num_threads(before)
                _, world = measure([1.0] * 10, [2.0, 3.0] * 5, 2, threads=wanted, resamples=5)
                assert world.threads == {wanted}, (
                    f"the programs ran with {sorted(world.threads)} threads instead of {wanted}: pin them with torch.set_num_threads."
                )
                assert torch.get_num_threads() == before, (
                    f"before the measurement {before} threads were set, and afterwards {torch.get_num_threads()} are: restore what was set."
                )
            torch.set_num_threads(3)
            left_behind = after_a_failure(2)
            torch.set_num_threads(3)
            stopped = after_a_failure(2, KeyboardInterrupt)
        finally:
            torch.set_num_threads(usual)
        assert left_behind == 3, "when a program fails, the number of threads is not restored: put it into `finally`."
        assert stopped == 3, (
            "when somebody stops the measurement (KeyboardInterrupt), the number of threads is not restored: that is no Exception. `finally` runs always."
        )

    with checks.check(
        "5.6",
        "your stopwatch bears drift, slow first calls, interruptions and an effect of order, and knows how sure it is",
    ):
        for seed, count, warmup in [(561, 31, 4), (562, 45, 3), (563, 21, 2)]:
            judge_point(seed, count, warmup)
        for factor in (0.9, 0.8, 1.25):
            ratio = twins(factor, 567)
            assert abs(ratio - 1) < 0.02, (
                f"two equal programs, of which the second on each way takes {factor} of its time, have the ratio {ratio:.3f} with you: there and back must cancel."
            )
        judge_generator()
        for three in itertools.permutations([1.0, 2.0, 5.0]):
            low, high = ends(list(three), 564, 4000)
            assert near(low, 1.0) and near(high, 5.0), (
                f"three turns with the ratios {three} give an interval of {low:.4g} to {high:.4g} instead of 1 to 5: every turn should be drawn with the same chance, as often as there are turns."
            )
        low, high = ends(uneven, 565, 20_000)
        ordered = sorted(uneven)
        assert not (near(low, ordered[6]) or near(high, ordered[12])), (
            "your interval is the 90 % one: for 95 % leave out 2.5 % of the medians on each side."
        )
        assert near(low, ordered[5]) and near(high, ordered[13]), (
            f"the bootstrap of these 19 ratios ends at {ordered[5]:.4f} and {ordered[13]:.4f}, and yours at {low:.4f} and {high:.4f}: take the 2.5th and 97.5th percentile of the medians."
        )
        _, low, high = both_the_same([1.0, 9.0, 1.0, 1.0, 4.0, 1.0, 1.0, 3.0, 2.0, 1.0, 1.0, 1.0] * 7)
        assert low < high, (
            "with the same program on both sides, your interval has no width, although its times scatter: keep the four durations of a turn by place; with the program as a key one overwrites the other."
        )
        judge_threads()
    ### BEGIN HIDDEN TESTS
    for seed, count, warmup in [(5601, 25, 1), (5602, 39, 5), (5603, 51, 2), (5604, 11, 0)]:
        a, b = durations(seed, count + warmup, warmup)
        (ratio, low, high), world = measure(a, b, warmup, seed + 1)
        ratios = turn_ratios(a, b, warmup)
        assert abs(ratio / statistics.median(ratios) - 1) < 1e-6, "wrong ratio."
        at_low, at_high = bounds(ratios)
        assert low < high and at_low[0] <= low <= at_low[1] and at_high[0] <= high <= at_high[1], "wrong interval."
        assert "".join(world.order) == "abba" * (count + warmup), "wrong order of the calls."
        assert measure(a, b, warmup, seed + 1)[0] == (ratio, low, high), "not reproducible."
    for factor in (0.95, 0.85, 1.3):
        assert abs(twins(factor, 5607) - 1) < 0.02, "an effect of order is left."
    some = [math.exp(x) for x in np.random.default_rng(5605).normal(0, 0.3, 19)]
    ranked = sorted(some)
    for place, wanted in [(0, ranked[5]), (1, ranked[13])]:
        assert abs(ends(some, 5606, 20_000)[place] - wanted) < 1e-6 * wanted, "wrong end of the interval."
    random_state = seeded()
    drawn = [ends(some, 5610 + i, 1) for i in range(12)]
    assert max(abs(x - y) for x, y in drawn) < 1e-6, "one resample has one median."
    assert len({round(x, 6) for x, _ in drawn}) >= 3 and again_and_again(5608) >= 3, "the generator is not used."
    start, end = moved(5609, 300)
    assert start != end != moved(5609, 30_000)[1] != moved(5609, 30_001)[1], "the generator does not move as it should."
    for three in ([4.0, 7.0, 6.0], [7.0, 4.0, 6.0], [6.0, 7.0, 4.0]):
        least, most = ends(three, 5630, 4000)
        assert max(abs(least - 4), abs(most - 7)) < 1e-5, "a turn is never drawn."
    assert random_state == states(), "random numbers that belong to everybody are used."
    times = np.random.default_rng(5631).permutation(np.linspace(1, 3, 84)).tolist()
    odd = [math.sqrt(times[i + 1] / times[i] * times[i + 2] / times[i + 3]) for i in range(0, 84, 4)]
    middle, least, most = both_the_same(times)
    assert least < most and abs(middle - statistics.median(odd)) < 1e-6, "the same program on both sides."
    threads_then, after = torch.get_num_threads(), []
    try:
        for before, wanted in ((3, 2), (2, 1), (1, 3)):
            torch.set_num_threads(before)
            _, world = measure([1.0] * 10, [2.0] * 10, 2, threads=wanted, resamples=5)
            after.append((world.threads, torch.get_num_threads()))
        torch.set_num_threads(3)
        restored = after_a_failure(1)
        torch.set_num_threads(3)
        stopped = after_a_failure(1, KeyboardInterrupt)
    finally:
        torch.set_num_threads(threads_then)
    assert after == [({2}, 3), ({1}, 2), ({3}, 1)], f"threads are not pinned, or not restored: {after}."
    assert restored == stopped == 3, "threads are not restored after a failure."
    assert not direct(5), "the numbers are not those of the generator."
    assert abs(measure([1.0] * 38, np.repeat(some, 2).tolist(), 0, 5611, resamples=1)[0][0] - ranked[9]) < 1e-6, (
        "the ratio depends on what is drawn."
    )
    ### END HIDDEN TESTS


check_ex_5_6()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# One loop over `warmup + turns` turns that fills a list of ratios; then cut off the first `warmup` of them. Statistics come after the loop.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# Read the clock before and after each call, and keep the four durations of a turn in a list, by place. (A dict with the program as key would overwrite its own seconds where a program is measured against itself.) The bootstrap: `torch.randint(turns, (resamples, turns), generator=generator)` as an index into the ratios, the median of each row, two quantiles.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `for program in (first, second, second, first):` with `begin = clock()`, `program()`, `seconds.append(clock() - begin)`; `there = seconds[1] / seconds[0]`, `back = … / …`, `ratios.append(math.sqrt(there * back))`. Around the loop `try:` … `finally: torch.set_num_threads(what it was)`. Then `counted = torch.tensor(ratios[warmup:], dtype=torch.float64)`.
# </details>

# %% [markdown]
# ### The real clock
#
# The course's harness, `latency.compare`, does the same for any number of programs, in a random order and then in the same order backwards, and with an interval that needs no bootstrap: how many of $n$ turns lie below the true median is how often a coin shows heads in $n$ throws, so two of the sorted ratios enclose it with a chance that is known, as far as the turns are independent. (They are not quite: a busy minute spoils several turns in a row.) For 95 % it takes six turns at least; five reach 93.75 %. How does the bootstrap of 5.6 do, exactly?


# %% tags=["nbval-check-output"]
def bootstrap_level(n: int) -> float:
    """The chance that the percentile bootstrap of the median of n (odd) values, drawn endlessly often, holds the median."""
    middle = (n + 1) // 2  # a sample's median is at most the k-th value if that many draws are
    at_most = [
        sum(math.comb(n, j) * (k / n) ** j * (1 - k / n) ** (n - j) for j in range(middle, n + 1)) for k in range(n + 1)
    ]
    low, high = (next(k for k in range(n + 1) if at_most[k] >= tail) for tail in (0.025, 0.975))
    return sum(math.comb(n, heads) for heads in range(low, high)) / 2**n


for n in (5, 7, 9, 11, 15, 21):
    print(f"{n:2} turns: two sorted ratios {latency.median_level(n):.1%}, bootstrap {bootstrap_level(n):.1%}")

# %% [markdown]
# For some numbers of turns both are the same interval; for others the bootstrap promises more than it holds. And one thing more: the harness **refuses**. If the interval of a ratio is wider than a bound that you state (`noise=0.15`: ± 15 %), it raises `TooNoisy` instead of returning a number. (`latency.compare_each` has the same bound, and refuses only the programs that are too noisy: they are measured a second time, and if that does not help, they are not reported. The others are.) A simulated computer whose calls take one second or nine, at random:

# %% tags=["nbval-check-output"]
restless = np.random.default_rng(54)
moment = [0.0]


def restless_call() -> None:
    moment[0] += restless.choice([1.0, 9.0])


errors.show_error(
    lambda: latency.compare({"A": restless_call, "B": restless_call}, clock=lambda: moment[0], noise=0.15), width=300
)

# %% [markdown]
# Now float against static and dynamic int8, in the modes in which a language model is used:
#
# - **prefill**: the model reads a text at once. Here 1 × 256 bytes (a batch of one document), and 4 × 256.
# - **generation, byte by byte**: a prompt of 16 bytes, then 4 new ones, one after the other. Our small model has no cache of keys and values, so it reads everything again for each new byte: four short prefills, one after the other.
# - **one byte alone**: one byte in, one distribution out. That is what a step of generation multiplies if keys and values *are* cached.
#
# Predict before you run: in which mode is int8 worth most, and in which least? (The lines below the figure answer it for this run.) In the table, p50 is the median of the calls and p95 their 95th percentile; with so few calls that is nearly the slowest one. Each interval holds the true median with a chance of at least 95 %, if turns are independent. First two tools:


# %%
def measured(
    programs: Mapping[str, Callable[[], object]], repeats: int, **options: object
) -> dict[str, latency.Timing]:
    """What the harness reports, pair by pair; a pair that it refuses twice is printed, and missing in the answer."""
    with torch.no_grad():
        found = latency.compare_each(programs, repeats, **options)
    for result in found.values():
        if isinstance(result, latency.TooNoisy):
            print("refused:", result)
    return {name: result for name, result in found.items() if isinstance(result, latency.Timing)}


def or_refused(found: Mapping[str, latency.Timing], name: str) -> str:
    """The ratio with its interval, for a table."""
    return str(found[name]) if name in found else "not reported"


# %% tags=["varies"]
one, four, prompt, single_byte = questions[:1, :128], questions[:4, :128], questions[:1, :16], questions[:1, :1]
one, four = torch.cat([one, one], dim=1), torch.cat([four, four], dim=1)  # 256 bytes each
modes = {
    "prefill, 1 × 256": (lambda model: model(one), {"repeats": 9}),
    "prefill, 4 × 256": (lambda model: model(four), {"repeats": 6}),
    "4 bytes, one by one": (lambda model: model.generate(prompt, 4, temperature=0), {"repeats": 9}),
    "one byte alone": (lambda model: model(single_byte), {"repeats": 15, "calls": 5}),
}
trio = {name: models[name] for name in ("float", "static int8", "dynamic int8")}
settings = [(mode, 1, options) for mode, (_, options) in modes.items()]
if (os.cpu_count() or 1) > 1:
    settings += [("prefill, 1 × 256", 2, {"repeats": 9}), ("one byte alone", 2, {"repeats": 15})]
timed = {}
for mode, threads, options in settings:
    programs = {name: functools.partial(modes[mode][0], model) for name, model in trio.items()}
    timed[mode, threads] = measured(programs, threads=threads, **options)

rows = []
for (mode, threads), found in timed.items():
    row = {"mode": mode, "threads": threads}
    row["float, ms (p50; p95)"] = f"{1000 * found['float'].p50:.2f}; {1000 * found['float'].p95:.2f}"
    rows.append(row | {f"{name} / float (95 %)": or_refused(found, name) for name in list(trio)[1:]})
tables.show(rows)
turns = {options["repeats"] for _, _, options in settings}
print(
    "intervals hold the median with a chance of:",
    ", ".join(f"{latency.median_level(n):.1%} ({n} turns)" for n in sorted(turns)),
)
print(f"{environment.processor()}, {torch.backends.cpu.get_cpu_capability()}, engine {torch.backends.quantized.engine}")

# %% tags=["varies"]
fig, ax = plots.figure(width=8.5, height=3.2)
labels = []
for i, ((mode, threads), found) in enumerate(timed.items()):
    labels.append(f"{mode}, {threads} thread{'s' if threads > 1 else ''}")
    for name, marker, colour, up in [
        ("static int8", "o", plots.BLUE, -0.13),
        ("dynamic int8", "s", plots.ORANGE, 0.13),
    ]:
        if name not in found:
            ax.text(0.03, i + up, f"{name}: refused, too noisy", va="center", fontsize=7, color=colour)
        else:
            it = found[name]
            ax.errorbar(
                it.ratio,
                i + up,
                xerr=[[it.ratio - it.low], [it.high - it.ratio]],
                fmt=marker,
                color=colour,
                capsize=3,
            )
for name, marker, colour in [("static int8", "o", plots.BLUE), ("dynamic int8", "s", plots.ORANGE)]:
    ax.plot([], [], marker, color=colour, label=name)  # in the legend even if every pair was refused
ax.axvline(1, color="black", linewidth=0.8)
ax.set_yticks(range(len(labels)), labels)
ax.set_ylim(len(labels) - 0.5, -0.5)
ax.set_xlim(left=0)
ax.set_xlabel("time of int8 / time of float, with its 95 % interval; left of the line int8 is faster")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
sides = {
    name: ", ".join(
        f"{label}: {'refused' if name not in found else 'faster' if found[name].high < 1 else 'slower' if found[name].low > 1 else 'undecided'}"
        for label, found in zip(labels, timed.values(), strict=True)
    )
    for name in ("static int8", "dynamic int8")
}
plots.show(
    fig,
    caption="One model, several modes: there is no such thing as *the* speed of int8. Where the times scattered too much, the harness refused to report.",
    alt=f"Ratios with intervals. Static int8: {sides['static int8']}. Dynamic int8: {sides['dynamic int8']}.",
)
for name in list(trio)[1:]:
    known = {mode: found[name].ratio for (mode, threads), found in timed.items() if threads == 1 and name in found}
    if len(known) == len(modes):
        print(f"{name}, 1 thread: worth most in {min(known, key=known.get)}, least in {max(known, key=known.get)}")
    else:
        print(
            f"{name}: only {len(known)} of {len(modes)} modes were reported, so your prediction stays open in this run"
        )

# %% [markdown]
# Three patterns; they are what the roofline below explains. Look whether your picture shows them, as far as your computer was quiet enough for it to show anything. (This model's float attention is *unfused*, several operations one after the other. Fusing them speeds float up, too; sections 5 and 8 compare with both.)
#
# - **Rows.** The more rows a product has, the more int8 gains, if the engine has fast kernels for this processor. In prefill every byte of a weight is used for hundreds of rows. With one byte alone it is used once, and there are a hundred small operations to call, each with its fixed price. Here quantizing adds operations.
# - **The whole is less than its parts.** Softmax, GELU, LayerNorm and the scores of attention stay float. If they take a share $f$ of the time, then no int8 kernel brings the ratio below $f$ (Amdahl's law; its formula is in section 8).
# - **Threads.** A second thread helps where there is much to multiply, and it helps the float model, too. A speed-up is a ratio *at a stated number of threads*.
#
# One more setting that is usually left unsaid: the **engine**, the library of int8 kernels. The same float model, dynamically quantized for each engine that exists here:

# %% tags=["varies"]
per_engine = {"float": functools.partial(float_model, one)}


def with_engine(name: str, model: nn.Module, ids: Tensor) -> Tensor:
    """Logits of a model, computed with the engine that packed it."""
    with int8.using(name):
        return model(ids)


for name in int8.engines():
    with int8.using(name):
        per_engine[name] = functools.partial(with_engine, name, int8.dynamic_int8(float_model), one)
found = measured(per_engine, repeats=9, threads=1)
tables.show(
    [{"engine": name, "dynamic int8 / float, prefill 1 × 256 (95 %)": or_refused(found, name)} for name in per_engine]
)

# %% [markdown]
# ### The roofline: what could this processor do at best?
#
# Is 0.6 of float's time good or bad? That depends on what is possible. A processor has two limits (Williams, Waterman and Patterson, 2009):
#
# - how many operations it computes in a second, $\pi$ (a multiplication and the addition that follows are two operations). It is larger for int8 than for float32, if there are instructions for int8;
# - how many bytes it moves in a second, $\beta$: from main memory, or, if everything fits, from the cache, which is faster.
#
# A program with $W$ operations that moves $Q$ bytes has the **arithmetic intensity** $I = W / Q$, in operations per byte. It can reach at most
#
# $$\min(\pi,\; \beta \cdot I) \text{ operations per second.}$$
#
# Drawn over $I$, with both axes logarithmic, that is a roof: it rises with $\beta$, then stays flat at $\pi$.
#
# For a Linear layer with $K$ inputs, $N$ outputs and $M$ rows: $W = 2MNK$, and $Q = b_w NK + b_x MK + b_y MN$, where $b_w$, $b_x$, $b_y$ are the bytes of one weight, one input and one output. By hand, $K = N = 256$ in float (4 bytes each): one row, $W = 131072$ and $Q = 4 \cdot (65536 + 256 + 256) = 264192$, so $I \approx 0.5$ operations per byte. With $M = 256$ rows, $I \approx 43$. In int8 (1 byte each) both are four times as large: the point moves to the right *under a higher roof*.
#
# We measure both limits here, with one thread, and with the harness's refusal switched off (`noise=math.inf`): a roof needs the seconds of each program, and no ratio. So roofs and marks scatter as much as this computer does; read them as rough places, and take a share of the roof above 100 % as a sign that the roof itself was measured in a worse moment. We measure $\pi$ with products of two matrices (`torch.mm` for float32; `torch.ops.quantized.linear`, the kernel behind `nnq.Linear`, for int8; the best of three sizes counts), $\beta$ by copying a large block (each byte is read and written, so it counts twice) and a small one that fits into the cache:


# %% tags=["varies"]
def int8_core(linear: nn.Linear, x: Tensor) -> Callable[[], object]:
    """The int8 kernel of one layer, codes in and codes out."""
    stubbed = int8.static_int8(nn.Sequential(linear), [x])
    return functools.partial(stubbed.module, stubbed.quant(x))


def limits_of_this_computer(draw: torch.Generator) -> tuple[dict[str, float], dict[str, float]]:
    """Operations a second (float, int8) and bytes a second (memory, cache), medians over turns, one thread."""
    products, work_of = {}, {}
    for count, width in ((256, 256), (256, 512), (512, 1024)):
        wide, many = nn.Linear(width, width, bias=False), torch.randn(count, width, generator=draw)
        nn.init.normal_(wide.weight, std=width**-0.5, generator=draw)
        products["float", width] = functools.partial(torch.mm, many, wide.weight.detach().T)
        products["int8", width] = int8_core(wide, many)
        work_of[width] = 2 * count * width * width
    large, small_block = torch.zeros(2**24), torch.zeros(2**16)  # 64 MB and 256 kB
    large_copy, small_copy = torch.empty_like(large), torch.empty_like(small_block)
    copies = {
        "memory": lambda: large_copy.copy_(large),
        "cache": lambda: [small_copy.copy_(small_block) for _ in range(200)],
    }
    with torch.no_grad():
        found = latency.compare(products | copies, repeats=9, threads=1, noise=math.inf)
    operations = {k: max(work / found[k, width].p50 for width, work in work_of.items()) for k in ("float", "int8")}
    moved = {"memory": 2 * large.nbytes, "cache": 200 * 2 * small_block.nbytes}
    return operations, {place: size / found[place].p50 for place, size in moved.items()}


draw = torch.Generator().manual_seed(55)
ceiling, bandwidth = limits_of_this_computer(draw)
for kind in ("float", "int8"):
    corners = ", ".join(f"{ceiling[kind] / bandwidth[place]:.1f} ({place})" for place in ("cache", "memory"))
    print(f"{kind}: {ceiling[kind] / 1e9:.0f} billion operations per second; flat from I = {corners}")
print(f"bytes per second, billions: memory {bandwidth['memory'] / 1e9:.0f}, cache {bandwidth['cache'] / 1e9:.0f}")
print(f"the int8 roof is {ceiling['int8'] / ceiling['float']:.2f} times the float roof")

# %% [markdown]
# Then three layers of our model, called alone, with 256 rows and with one; and the whole model, whose times section 4 has just measured:


# %% tags=["varies"]
def point_of(label: str, count: int, kind: str, shapes: list[torch.Size], seconds: float) -> dict:
    """Where weights of these shapes (outputs, inputs), applied to `count` rows in `seconds`, stand under the roof."""
    work = sum(2 * count * n * k for n, k in shapes)
    moved = {"float": 4, "int8": 1}[kind] * sum(n * k + count * (n + k) for n, k in shapes)
    return {"layer": label, "rows": count, "kind": kind, "I": work / moved, "rate": work / seconds}


chosen = {
    "q (256 → 256)": "blocks.1.attention.q",
    "up (256 → 1024)": "blocks.1.ffn.up",
    "down (1024 → 256)": "blocks.1.ffn.down",
}
points = []
with torch.no_grad():
    for (label, name), count in itertools.product(chosen.items(), (256, 1)):
        layer = float_model.get_submodule(name)
        rows_in = torch.randn(count, layer.in_features, generator=draw)
        programs = {"float": functools.partial(layer, rows_in), "int8": int8_core(layer, rows_in)}
        found = latency.compare(programs, repeats=9, calls=10, threads=1, noise=math.inf)
        points += [point_of(label, count, kind, [layer.weight.shape], found[kind].p50) for kind in programs]
shapes = [float_model.get_submodule(layer).weight.shape for layer in layers]
for mode, count in (("prefill, 1 × 256", 256), ("one byte alone", 1)):
    for kind, name in (("float", "float"), ("int8", "static int8")):
        if name in timed[mode, 1]:  # not refused
            points.append(point_of("whole model", count, kind, shapes, timed[mode, 1][name].p50))
rows = []
for point in points:
    roof = min(ceiling[point["kind"]], bandwidth["cache"] * point["I"])
    rows.append(
        {
            "what": point["layer"],
            "rows": point["rows"],
            "type": point["kind"],
            "I, operations per byte": f"{point['I']:.1f}",
            "billion operations per second": f"{point['rate'] / 1e9:.1f}",
            "share of its roof (cache)": f"{point['rate'] / roof:.0%}",
        }
    )
tables.show(rows)

# %% tags=["varies"]
fig, ax = plots.figure(width=9, height=4.6)
axis = np.logspace(-1, 3.2, 200)
highest = max(ceiling.values())
for place, style in (("cache", "-"), ("memory", "--")):
    rising = axis[bandwidth[place] * axis <= highest]
    ax.plot(rising, bandwidth[place] * rising / 1e9, style, color=plots.GREY, label=f"bytes from {place} (both types)")
for kind, colour, style in (("float", plots.BLUE, "-"), ("int8", plots.ORANGE, "-.")):
    flat = axis[axis >= ceiling[kind] / bandwidth["cache"]]
    ax.plot(flat, np.full(len(flat), ceiling[kind] / 1e9), style, color=colour, label=f"{kind}: operations")
markers = {"q (256 → 256)": "o", "up (256 → 1024)": "^", "down (1024 → 256)": "v", "whole model": "*"}
for point in points:
    colour = plots.BLUE if point["kind"] == "float" else plots.ORANGE
    ax.plot(
        point["I"],
        point["rate"] / 1e9,
        markers[point["layer"]],
        color=colour,
        markerfacecolor=colour if point["rows"] == 256 else "white",
        markersize=13 if point["layer"] == "whole model" else 8,
    )
for label, marker in markers.items():
    ax.plot([], [], marker, color="black", label=label)
ax.plot([], [], "s", color="black", label="filled: 256 rows")
ax.plot([], [], "s", color="black", markerfacecolor="white", label="open: 1 row")
ax.set_xscale("log")
ax.set_yscale("log")
ax.set_xlabel("arithmetic intensity I in operations per byte")
ax.set_ylabel("billion operations per second")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
plots.show(
    fig,
    caption=f"Roofline of this computer, one thread, {environment.processor()}, engine {engine}. Blue: float32; orange: int8, of each pair of marks the one to the right. Whole model: operations of its Linear layers, over the time of everything.",
    alt="A rising solid line and below it a dashed one, the same for both types, and a flat line for each type: two roofs. Layers with 256 rows (filled) lie far to the right; layers with one row (open) far to the left and "
    "low. The stars are the whole model.",
)

# %% [markdown]
# How to read it. (On your computer; where the picture of another one differs, it says something about that one.)
#
# - **Filled marks** lie right of the corners: there the number of operations counts. What int8 can gain there at most is the distance of the two flat roofs, the last line printed with the limits. If it is near 1, or below, this processor and this engine have no fast int8 instructions, and int8 gains nothing where operations count. What is missing to the roof is the price of a call, and of a small matrix.
# - **Open marks** lie on the left, where bytes count, and not operations. There the gain has another limit: an int8 weight is a quarter of the bytes of a float one, so at most 4 times if both come from the same place. (If the int8 weight fits into a faster cache and the float one does not, it may be more.) It comes within reach in a large model, whose weights must come from memory with every call: its marks cannot rise above the *dashed* line. Our whole model fits into the cache of many processors, so its marks may lie above the dashed line. What keeps them below the solid one is the fixed price of a call, and that is the same for both types, or higher for int8.
# - **Stars** count only the Linear layers' operations, but the time of everything. Compare each star with the three marks of its colour and filling: the farther it lies below most of them, the more time goes into softmax, GELU, LayerNorm, masks and calls. (A star stands for all layers, so a single layer that happens to be slow alone may lie below it.) Making the kernels faster does not lift the star; removing the rest does. Section 8 tries.

# %% [markdown]
# ## 5. The frontier: which configurations are worth a look?
#
# Bits, groups, components, calibration: soon there are dozens of configurations. Which is "the best"? None. A smaller file costs quality, a faster model may cost bytes. But some configurations can be crossed out without weighing
# one against the other: another one is at least as good in *everything*, and better in something. What remains is the *Pareto frontier*.
#
# First, three rules, so that no table of this section can flatter anybody.
#
# - **Bytes** are those of an honest file: codes packed densely, 4 bytes a scale, 1 byte a zero point, 4 bytes for each number that stays float, a shared matrix once. (`helpers.frontier` has the rule in code.) This is a rule, so that formats without a file can be compared; PyTorch's own files hold 8 bytes a scale, 8 a zero point, and names. So the ratios here differ a little from those of the files in section 3.
# - **Quality** is the Δ of section 2, with its paired interval, here on the first 24 of the held-out documents, because there are more models to run. (So *static int8*, the same model as in section 2, has another Δ here: other documents, other number.)
# - **Time** is a ratio to the float model from the harness of section 4. *Which* float model? The course's own one computes attention in several operations (unfused). *Fused attention* means that scores, softmax and mix are computed by one float kernel (section 8 explains it), and that is no quantization: float gains by it, too. So the fused float model stands in the table, and its half-size sister in bfloat16, which is not int8 either. Compare fused with fused.
# - Rows without a time are *simulated*: we use no kernel for these formats here; the weights are rounded, the model computes in float. Their Δ is right. They save no time: the weights must be unpacked, and then a float model runs, at best the fused one.
#
# Thirteen configurations, three axes, measured here and now. *Ends 8* means that embedding and head, the two ends of the model, keep 8 bits. The bound of the harness is the 15 % of section 4:

# %%
course_model = float_model  # of section 1, as is the static model
held_out = data.windows("held_out", 24, 129)
linear_names = [name for name, part in course_model.named_modules() if isinstance(part, nn.Linear)]


def simulated_row(bits: int, group: int | str | None, symmetric: bool = True, ends: int | None = None) -> tuple:
    """(model, bytes, None) for one width everywhere, or another one (`ends`) in embedding and head."""
    plan = frontier.everywhere(course_model, frontier.Scheme(bits, group, symmetric))
    if ends:
        plan |= dict.fromkeys(("embedding", "head"), frontier.Scheme(ends, group, symmetric))
    return frontier.rounded(course_model, plan), frontier.artefact_bytes(course_model, plan), None


table_int8 = {"embedding": frontier.Scheme(8, "channel", False)}
dynamic_bytes = frontier.artefact_bytes(
    course_model, dict.fromkeys(linear_names, frontier.Scheme(8, None)) | table_int8
)
static_bytes = frontier.artefact_bytes(
    course_model, dict.fromkeys(linear_names, frontier.Scheme(8)) | table_int8, tensor_scales=2 * len(linear_names)
)
fused_float, fused_half = fused.fused(course_model), fused.fused(course_model).bfloat16()
float_size = frontier.artefact_bytes(course_model, {})
fused_dynamic = fused.dynamic_int8(course_model)
fused_static = fused.static_int8(course_model, calibration)
entries = {
    "float": (course_model, float_size, course_model),
    "float, fused attention": (fused_float, float_size, fused_float),
    "bfloat16, fused attention": (fused_half, float_size // 2, fused_half),
    "int8 weights, per tensor": simulated_row(8, None),
    "4 bits, per tensor": simulated_row(4, None),
    "4 bits, per channel": simulated_row(4, "channel"),
    "4 bits, group 32, affine": simulated_row(4, 32, False),
    "4 bits, ends 8": simulated_row(4, 32, False, ends=8),
    "3 bits, group 32, affine": simulated_row(3, 32, False),
    "2 bits, group 32, affine": simulated_row(2, 32, False),
    "static int8": (static_model, static_bytes, static_model),
    "static int8, fused attention": (fused_static, static_bytes, fused_static),
    "dynamic int8, fused attention": (fused_dynamic, dynamic_bytes, fused_dynamic),
}
reference_bits = frontier.bits_by_document(course_model, held_out)
bits_of = {name: frontier.bits_by_document(model, held_out) for name, (model, _, _) in entries.items()}
deltas = {name: intervals.paired_bootstrap(reference_bits, each) for name, each in bits_of.items()}
print("largest file:", max(size for _, size, _ in entries.values()), "bytes;", len(held_out), "documents")


# %% tags=["varies"]
prompt = held_out[:4, :128]
running = {name: model for name, (_, _, model) in entries.items() if model is not None}
ratios = measured({name: functools.partial(model, prompt) for name, model in running.items()}, repeats=9, threads=1)


def time_of(name: str) -> float | None:
    """Ratio to unfused float; None if the harness refused it. What is simulated takes the time of fused float, at best."""
    name = name if name in running else "float, fused attention"
    return ratios[name].ratio if name in ratios else None


def over_fused(name: str) -> str:
    """The quotient of two medians, for a table; it has no interval."""
    known = name in ratios and "float, fused attention" in ratios
    return f"{ratios[name].ratio / ratios['float, fused attention'].ratio:.2f}" if known else ""


small_frontier = [
    {"configuration": name, "bytes": size, "Δ": deltas[name].estimate, "time": time_of(name)}
    for name, (_, size, _) in entries.items()
]
tables.show(
    [
        {
            "no.": i,
            "configuration": row["configuration"],
            "bytes": f"{row['bytes']:,}",
            "times smaller": f"{small_frontier[0]['bytes'] / row['bytes']:.2f}",
            "Δ bits per byte (95 % interval)": str(deltas[row["configuration"]]),
            "time / unfused float (95 % interval)": or_refused(ratios, row["configuration"])
            if row["configuration"] in running
            else "simulated",
            "time / fused float": over_fused(row["configuration"]),
        }
        for i, row in enumerate(small_frontier, start=1)
    ]
)

# %% [markdown]
# Reading such a table by eye is how people get fooled: one looks at the column one likes. So: a function.
#
# ### Exercise 5.7: the Pareto frontier
# *Difficulty 2 of 5 · 20 minutes · 2 points*
#
# On every axis, smaller is better. Point $a$ **dominates** point $b$ if $a$ is nowhere worse and somewhere better:
#
# $$a \prec b \iff a_i \le b_i \text{ for all axes } i \quad\text{and}\quad a_j < b_j \text{ for at least one axis } j$$
#
# The frontier holds every point that nobody dominates. By hand, with (bytes, Δ): $A = (4, 0.1)$, $B = (2, 0.3)$, $C = (4, 0.2)$, $D = (3, 0.3)$, $E = (4, 0.1)$. $A$ dominates $C$: equal bytes, smaller Δ. $B$ dominates $D$. $A$ and $E$ are equal: neither is better in anything, so
# both stay. The frontier is $A$, $B$, $E$: indices 0, 1, 4.
#
# One trap is not in the formula: a broken model returns `nan`, and every comparison with `nan` is false. Nobody dominates it, and so a broken model would stand on the frontier. Refuse it.


# %% nbgrader={"grade": false, "grade_id": "ex_5_7", "locked": false, "schema_version": 3, "solution": true, "task": false}
def pareto(points: list[tuple[float, ...]]) -> list[int]:
    """Indices of the points that no other point dominates.

    Parameters
    ----------
    points : list of tuples of float
        All of the same length; on every axis smaller is better. Not changed.

    Returns
    -------
    list of int
        In ascending order. Of equal points, all stay or none.

    Raises
    ------
    ValueError
        If a number is nan.

    Example
    -------
    >>> pareto([(4, 0.1), (2, 0.3), (4, 0.2), (3, 0.3), (4, 0.1)])
    [0, 1, 4]
    """
    ### BEGIN SOLUTION
    if any(math.isnan(value) for point in points for value in point):
        raise ValueError("a point holds nan: such a configuration is broken, and on no frontier.")
    kept = []
    for i, mine in enumerate(points):
        for other in points:
            nowhere_worse = all(o <= m for o, m in zip(other, mine, strict=True))
            if nowhere_worse and any(o < m for o, m in zip(other, mine, strict=True)):
                break
        else:
            kept.append(i)
    return kept
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_5_7_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 5.7: run this cell.
import itertools

import numpy as np

from helpers import checks


@checks.isolated
def check_ex_5_7() -> None:
    def survivors(table: np.ndarray, strict_somewhere: bool = True, strict_everywhere: bool = False) -> list[int]:
        """Brute force over all pairs at once."""
        below = (table[None] <= table[:, None]).all(axis=2)  # [i, j]: j is nowhere worse than i
        if strict_everywhere:
            below = (table[None] < table[:, None]).all(axis=2)
        elif strict_somewhere:
            below &= (table[None] < table[:, None]).any(axis=2)
        else:
            np.fill_diagonal(below, False)
        return np.flatnonzero(~below.any(axis=1)).tolist()

    def lower_hull(table: np.ndarray) -> list[int]:
        """Frontier points that also lie on the convex hull (two axes)."""
        hull: list[int] = []
        for i in sorted(survivors(table), key=lambda i: tuple(table[i])):
            while len(hull) > 1:
                (x0, y0), (x1, y1), (x2, y2) = table[hull[-2]], table[hull[-1]], table[i]
                if (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0) > 0:
                    break
                hull.pop()
            hull.append(i)
        return sorted(hull)

    failed: list[tuple[str, np.ndarray, list[int]]] = []  # so that one mistake can be seen in all of them

    def judge(title: str, table: np.ndarray) -> None:
        given = [tuple(row) for row in table.tolist()]
        with checks.untouched(points=given):
            answer = pareto(given)
        checks.given(answer, f"your answer for {title}")
        assert isinstance(answer, list), f"return a list of indices, and no {type(answer).__name__}."
        assert all(type(i) is int for i in answer), (
            f"return indices, whole numbers of Python (int), and not a list of {type(answer[0]).__name__}: not the points themselves, and no arrays."
        )
        wanted = survivors(table)
        assert len(set(answer)) == len(answer), f"{title}: an index stands twice in your list."
        assert list(answer) == wanted or sorted(answer) != wanted, (
            "the indices are right, but should be in ascending order."
        )
        if list(answer) != wanted:
            failed.append((title, table, list(answer)))

    def explain() -> None:
        """Name the mistake that gives every failed answer, if there is one."""
        if not failed:
            return

        def flipped(axis: int):
            signs = lambda table: np.where(np.arange(table.shape[1]) == axis % table.shape[1], -1, 1)  # noqa: E731
            return lambda table: survivors(table * signs(table))

        def firsts(table: np.ndarray) -> list[int]:
            kept = survivors(table)
            return [i for i in kept if not any((table[i] == table[j]).all() for j in kept if j < i)]

        def merged(table: np.ndarray) -> np.ndarray:
            """The same table, with one number for all that np.isclose takes for equal."""
            return np.stack([[column[np.isclose(column, x)].min() for x in column] for column in table.T], axis=1)

        for sentence, guess in {
            "numbers lose digits on the way: float32 cannot tell 16,777,216 from 16,777,217 bytes. Compare Python's own numbers, or float64.": (
                lambda table: survivors(table.astype(np.float32))
            ),
            "nearly equal is not equal: a point that is smaller by a little is smaller. Compare with < and <=, not with a tolerance.": (
                lambda table: survivors(merged(table))
            ),
            "every point throws itself out: compared with itself it is nowhere worse. Somewhere smaller is needed, too.": (
                lambda table: []
            ),
            "equal points throw each other out. Somewhere smaller is needed, too: neither of two equal points dominates the other.": (
                lambda table: survivors(table, strict_somewhere=False)
            ),
            "of equal points only one is left. Nobody dominates the others: all of them stay.": firsts,
            "a point that is equal on one axis and worse on another is dominated. You ask for smaller on *every* axis.": (
                lambda table: survivors(table, strict_everywhere=True)
            ),
            "on every axis smaller is better, and you take larger for better.": lambda table: survivors(-table),
            "the first axis points the wrong way: smaller is better there.": flipped(0),
            "the last axis points the wrong way: smaller is better there.": flipped(-1),
            "only the first two axes are used; a point may be on the frontier for its third.": (
                lambda table: survivors(table[:, :2])
            ),
            "only the first three axes are used; a point may be on the frontier for any.": (
                lambda table: survivors(table[:, :3])
            ),
            "the sign is lost: a loss of -1 is smaller than one of 0 (no abs).": lambda table: survivors(np.abs(table)),
            "only one point is left, the one with the smallest sum. A sum mixes bytes with bits; the frontier needs no exchange rate.": (
                lambda table: [int(table.sum(axis=1).argmin())]
            ),
            "only the convex hull is left. A point above the line between its neighbours is dominated by neither of them.": (
                lambda table: lower_hull(table) if table.shape[1] == 2 else survivors(table)
            ),
        }.items():
            assert any(answer != guess(table) for _, table, answer in failed), sentence
        title, table, answer = failed[0]
        wrong = sorted(set(answer) ^ set(survivors(table)))[0]
        shown = tuple(table[wrong].tolist()) if 0 <= wrong < len(table) else "which does not exist"
        verdict = (
            "is dominated, or does not exist, but is in your list"
            if wrong in answer
            else "is dominated by nobody, but is not in your list"
        )
        raise AssertionError(f"{title}: point {wrong}, {shown}, {verdict}.")

    rng = np.random.default_rng(57)
    with checks.check("5.7", "who is dominated goes, who is equal or merely unusual stays, and nan is refused"):
        judge("the example above", np.array([(4, 0.1), (2, 0.3), (4, 0.2), (3, 0.3), (4, 0.1)]))
        judge(
            "a bent frontier",
            np.array([(1.0, 9.0), (2.0, 8.5), (5.0, 5.5), (8.0, 3.0), (9.5, 2.9), (9.0, 9.0), (5.0, 6.0), (8.0, 9.5)]),
        )
        judge(
            "three axes",
            np.array(
                [(3.0, 3, 3), (1, 5, 9), (1, 5, 8), (5, 1, 7), (4, 4, 1), (3, 3, 3), (6, 6, 6), (3, 3, 4), (5, 5, 5)]
            ),
        )
        judge("one axis", np.array([(3.0,), (1.0,), (2.0,), (1.0,)]))
        judge("a single point", np.array([(3.0, 4.0)]))
        judge("forty random points", rng.random((40, 3)))
        judge("fifty random points with five axes", rng.integers(0, 3, (50, 5)).astype(float))
        judge("losses below 0", rng.integers(-3, 3, (25, 2)) / 2)
        judge("points on a grid, with many ties", rng.integers(0, 4, (30, 3)).astype(float))
        judge("bytes that differ by 1 in 16,777,217", np.array([(2.0**24, 1), (2.0**24 + 1, 1), (2.0**25, 0)]))
        judge("bytes that differ by 100 in 12 million", np.array([(12_000_100, 0.5), (12_000_000, 0.5), (9e6, 0.7)]))
        explain()
        judge("three equal points, and worse ones", np.array([(2.0, 1), (3, 1), (2, 1), (1, 4), (2, 1), (2, 2)]))
        judge("0 and -0, which are equal", np.array([(0.0, 1.0), (-0.0, 1.0), (1.0, -0.0), (1.0, 0.0), (0.0, 1.0)]))
        explain()
        endless = [(3.0, float("inf")), (2.0, 1.0), (1.0, float("inf")), (4.0, float("-inf"))]
        try:
            bearable = pareto(endless)
        except ValueError:
            raise AssertionError(
                "an infinite number is no nan: a perplexity may be infinite, and can be compared. Refuse nan only."
            ) from None
        assert list(bearable) == [1, 2, 3], (
            f"of {endless} the frontier is 1, 2, 3, and yours is {bearable}: infinite numbers can be compared like all others."
        )
        opposite = [(float("inf"), float("-inf")), (1.0, 1.0), (2.0, 1.0)]
        try:
            bearable = pareto(opposite)
        except ValueError:
            raise AssertionError(
                f"of {opposite} no number is nan, and you refuse it: look at each number, and not at a sum or a product of them (infinity minus infinity is nan)."
            ) from None
        assert bearable == [0, 1], f"of {opposite} the frontier is 0 and 1, and yours is {bearable}."
        nan, calm = float("nan"), [(1.0, 2.0, 3.0), (2.0, 1.0, 3.0)]
        for broken, why in [
            ([(1.0, 2.0), (0.5, nan)], "a broken model would stand on the frontier"),
            ([(nan, 2.0), (0.5, 3.0)], "whichever axis it is on"),
            ([*calm, (9.0, 9.0, nan)], "also where a point is no better on the other axes"),
            ([(0.0, 0.0, nan), *calm], "also where a point is the best on the other axes"),
            ([calm[0], (nan, 9.0, 9.0), calm[1]], "also where it is neither the first point nor the last"),
        ]:
            checks.raises(
                ValueError,
                lambda broken=broken: pareto(broken),
                f"a point with nan must raise a ValueError, {why}: {broken}.",
            )
    ### BEGIN HIDDEN TESTS
    for seed, count, axes, levels in [
        (1, 1, 2, 3),
        (2, 60, 2, 6),
        (3, 50, 4, 3),
        (4, 25, 1, 5),
        (5, 80, 3, 1000),
        (6, 12, 5, 2),
    ]:
        grid = np.random.default_rng(5700 + seed).integers(-levels, levels, (count, axes)) / 2
        given = [tuple(row) for row in grid.tolist()]
        kept = list(given)
        dominated = [any(all(a <= b for a, b in zip(p, q, strict=True)) and p != q for p in given) for q in given]
        assert pareto(given) == [i for i in range(count) if not dominated[i]], "a wrong frontier."
        assert given == kept, "the list of points was changed."
    assert list(pareto([(0.0, 1.0), (0.5, 0.75), (1.0, 0.0)])) == [0, 1, 2], "a point above a chord is missing."
    assert list(pareto([(2.0**24 + 1, 3.0), (2.0**24, 3.0)])) == [1], "numbers lose digits."
    assert list(pareto([(12_000_000, 0.1), (11_999_900, 0.1)])) == [1], "nearly equal is taken for equal."
    assert list(pareto([(5.0, float("inf")), (6.0, float("inf")), (7.0, 1.0)])) == [0, 2], "inf is not compared."
    assert list(pareto([(float("-inf"), float("inf")), (0.0, 2.0), (-0.0, 2.0), (0.0, 2.0)])) == [0, 1, 2, 3], (
        "inf or -0."
    )
    assert pareto([(7.0, -1.0)]) == [0] and type(pareto([(7.0, -1.0)])[0]) is int, "not a list of whole numbers."
    for place, rest, last in itertools.product((0, 1, 2), (0.0, 1.0, 9.0), ([], [(2.0, 0.0, 1.0)])):
        try:
            pareto([(1.0, 1.0, 1.0), tuple(float("nan") if i == place else rest for i in range(3)), *last])
        except ValueError:
            refused = True
        else:
            refused = False
        assert refused, "nan is accepted."
    ### END HIDDEN TESTS


check_ex_5_7()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two loops: for each point, look for somebody who dominates it. Write the definition down as it stands: an `all` and an `any`.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# A point may be compared with itself, too: it is nowhere worse, but also nowhere better, and so it does no harm. Check for nan with `math.isnan` before the loops.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `all(o <= m for o, m in zip(other, mine)) and any(o … m for …)` says that `other` dominates `mine`; keep index `i` if that is so for no `other`.
# </details>

# %% [markdown]
# ### What the picture says
#
# Now the frontier of our thirteen, on bytes and Δ (left; the numbers are those of the table). The right picture is a stored one: the same rule, many more configurations and documents, made by
# `make bench` on the machine that it names. Numbers in this text come from the cells of this unit only; the stored picture is there to be compared with.


# %% tags=["varies"]
def draw_frontier(ax, rows: list[dict], title: str, numbered: bool = False) -> None:
    """Bytes against Δ with its interval; filled: runs as it is stored, hollow: simulated; the line joins the frontier.

    A logarithmic axis has no place for Δ ≤ 0: such points become arrows at the lower edge.
    """
    floor = 1e-4
    for row in rows:
        low, high = (max(edge, floor) for edge in row["interval"])
        y = max(row["Δ"], floor)
        ax.plot([row["bytes"] / 1e6] * 2, [low, high], color=plots.GREY, linewidth=1)
        ax.plot(
            row["bytes"] / 1e6, y, "v" if row["Δ"] <= floor else "o" if row["runs"] else "s", markersize=7,
            markerfacecolor=plots.BLUE if row["runs"] else "white", color=plots.BLUE if row["runs"] else plots.RED,
        )  # fmt: skip
    best = sorted((rows[i] for i in frontier.frontier([(r["bytes"], r["Δ"]) for r in rows])), key=lambda r: r["bytes"])
    if numbered:
        for i, row in enumerate(rows, start=1):
            place = row["bytes"] / 1e6, max(row["Δ"], floor)
            side = {"xytext": (6, -3), "ha": "left"} if i % 2 else {"xytext": (-6, -3), "ha": "right"}
            ax.annotate(str(i), place, textcoords="offset points", fontsize=8, **side)
    ax.step([r["bytes"] / 1e6 for r in best], [max(r["Δ"], floor) for r in best], where="post", color=plots.GREEN)
    ax.set(yscale="log", xscale="log", xlabel="megabytes", ylabel="Δ bits per byte", title=title)
    ax.set_xticks([1, 2, 3, 4, 6, 12], ["1", "2", "3", "4", "6", "12"])
    ax.minorticks_off()


ours = [
    row | {"interval": deltas[row["configuration"]][1:], "runs": row["configuration"] in running}
    for row in small_frontier
]
stored_file = Path(frontier.__file__).resolve().parent.parent / "benchmarks" / "results" / "frontier.json"
stored = json.loads(stored_file.read_text()) if stored_file.is_file() else None
fig, axes = plots.figure(columns=2, width=10, height=3.8)
draw_frontier(axes[0], ours, f"this run: {len(ours)} configurations", numbered=True)
if stored:
    many = [
        {"bytes": r["bytes"], "Δ": r["difference"], "interval": r["difference_interval"], "runs": not r["simulated"]}
        for r in stored["results"].values()
    ]
    draw_frontier(axes[1], many, f"stored: {len(many)} configurations")
else:
    axes[1].set_axis_off()
plots.show(
    fig,
    caption="Size against loss, both on logarithmic axes. Blue circles run as they are stored; hollow red squares are simulated. "
    "Grey: 95 % interval. Green: the frontier of these two axes. Triangles at the lower edge point downwards: their Δ is below 0.0001, 0 (float), or negative.",
    alt=("Two scatter plots" if stored else "A scatter plot")
    + " of megabytes against bits per byte lost: loss grows steeply as files shrink: eight-bit models "
    "of about a quarter of the float size lie near the bottom, or are triangles at the lower edge, as float is, group-wise four bits in the middle, two bits far above. "
    "Four bits per tensor lies high above the green frontier line.",
)
if stored:
    facts = stored["machine"]
    print(
        f"stored on {stored['date']}: {facts['processor']}, {facts['threads']} thread(s), torch {facts['torch']}, seed {stored['seed']}"
    )
with_time = all(row["time"] is not None for row in small_frontier)


def coordinates(differences: list[float]) -> list[tuple[float, ...]]:
    """(bytes, Δ, time) of every configuration; without time, if a single one is not known."""
    return [
        (row["bytes"], difference, *([row["time"]] if with_time else []))
        for row, difference in zip(small_frontier, differences, strict=True)
    ]


on_line = frontier.frontier(coordinates([row["Δ"] for row in small_frontier]))
if with_time:
    print("on the frontier of this run, with time as third axis:")
else:
    print("A time was not reported, so the axis of time is left out for all. On the frontier of bytes and Δ alone:")
for i in on_line:
    print("  ", small_frontier[i]["configuration"])
print("Does your `pareto` choose the same ones?")
errors.show_result(lambda: pareto(coordinates([row["Δ"] for row in small_frontier])) == on_line)

# %% [markdown]
# ### Is one really better than the other?
#
# Two intervals of the table may overlap although the difference between their models is certain. Each interval contains what both models share: how much these documents suffer from any rounding at all. So the question "is A better than B?" is never answered by looking whether two intervals overlap. It needs the interval of A − B, subtracted document by document, as in section 2:

# %%
rows = []
for a, b in [
    ("4 bits, ends 8", "4 bits, group 32, affine"),
    ("static int8, fused attention", "static int8"),
    ("dynamic int8, fused attention", "static int8, fused attention"),
    ("2 bits, group 32, affine", "4 bits, per tensor"),
]:
    overlap = max(deltas[a].low, deltas[b].low) <= min(deltas[a].high, deltas[b].high)
    rows.append(
        {
            "A": a,
            "B": b,
            "do the two intervals overlap?": "yes" if overlap else "no",
            "A − B, bits per byte (95 %)": str(intervals.paired_bootstrap(bits_of[b], bits_of[a])),
        }
    )
tables.show(rows)

# %% [markdown]
# Where the second column says *yes* and the last interval leaves out 0, the eye would have been wrong.
#
# Is the frontier itself certain? Draw the documents again, as in section 2, and look how often each configuration stays (bytes and time as measured, time only if every one was reported; only Δ is redrawn, for all configurations from the same drawn documents):

# %% tags=["varies"]
differences = torch.stack([each - reference_bits for each in bits_of.values()])  # (configurations, documents)
draws = torch.Generator().manual_seed(57)
stays = torch.zeros(len(entries))
for _ in range(200):
    drawn = torch.randint(len(held_out), (len(held_out),), generator=draws)
    means = differences[:, drawn].mean(dim=1).tolist()
    stays[frontier.frontier(coordinates(means))] += 1
tables.show(
    [
        {
            "configuration": name,
            "on the frontier": "yes" if i in on_line else "",
            "share of 200 draws": f"{stays[i] / 200:.2f}",
        }
        for i, name in enumerate(entries)
    ]
)

# %% [markdown]
# *Look back.* A share between 0 and 1 means: with these documents, we cannot tell. Report it so. A share near 1 or 0 is a finding only where the paired interval of the difference leaves out 0. Look at the two *float* models. (Both compute the same up to the last digits; which of them has the smaller Δ is an accident of rounding.) Their Δ is 0 by definition, and their file is the largest; so they are crossed out as soon as *one* configuration is smaller, not slower, and has a Δ of at most 0. There are several candidates whose interval holds 0, and the luckiest of several noisy numbers often lies below 0.
# That int8 is better than float does not follow: whoever takes the smallest of many estimates takes its luck along (choose on some documents, report on others, and the luck is gone). What follows is only that these documents cannot tell the best ones from float. The other extreme is certain: 4 bits with one scale a matrix is dominated in every draw, by 2 bits with a scale for every 32 weights, in bytes *and* in Δ, and the interval of their difference is far from 0. Bits alone say little.
#
# %% [markdown]
# ## 6. How much calibration, and of which text?
#
# A static model's scales come from calibration documents. Which, and how many? Whoever calibrates once, on whatever lay at hand, has drawn *one* lot. The error bar over documents of section 2 does not contain this luck: it asks what other *test* documents would have said, not what another
# *calibration set* would have given. So we draw calibration sets again and again.
#
# To draw many, each must be cheap. What calibration finds out are ranges: the smallest and the largest number at the input of each Linear layer. We record them for 64 training documents, each by itself. The range of any *set* of documents is then a minimum and a maximum over rows, and needs no further run. Weights stay float here: only calibration is to be
# seen. Inputs get 7 bits, as with the x86 engine.


# %%
def document_ranges(model: nn.Module, documents: Tensor) -> Tensor:
    """Smallest and largest input of every Linear layer, for each document alone: (documents, layers, 2)."""
    found: list[Tensor] = []
    layers = [part for part in model.modules() if isinstance(part, nn.Linear)]
    watching = [
        layer.register_forward_pre_hook(
            lambda _layer, inputs: found.append(
                torch.stack([inputs[0].amin(dim=(1, 2)), inputs[0].amax(dim=(1, 2))], dim=1)
            )
        )
        for layer in layers
    ]
    try:
        with torch.no_grad():
            model(documents[:, :-1])
    finally:
        for handle in watching:
            handle.remove()
    return torch.stack(found, dim=1)


def with_input_ranges(model: nn.Module, ranges: Tensor, bits: int = 7) -> nn.Module:
    """A copy of `model` whose Linear inputs are rounded to `bits` bits over `ranges` (layers, 2)."""
    twin = copy.deepcopy(model)
    top = 2**bits - 1
    for layer, (low, high) in zip(
        [p for p in twin.modules() if isinstance(p, nn.Linear)], ranges.tolist(), strict=True
    ):
        low, high = min(low, 0.0), max(high, 0.0)
        step = (high - low) / top
        zero = round(-low / step)
        layer.register_forward_pre_hook(
            lambda _layer, inputs, step=step, zero=zero: (
                torch.fake_quantize_per_tensor_affine(inputs[0], step, zero, 0, top),
            )
        )
    return twin


fused_model = fused.fused(course_model)
pool, validation = data.windows("training", 64, 129), data.windows("validation", 8, 65)
pool_ranges = document_ranges(fused_model, pool)
print("documents, layers, (low, high):", tuple(pool_ranges.shape))
example = torch.tensor([1, 4, 16, 64])
for count in example.tolist():
    widest = pool_ranges[:count, :, 1].amax(dim=0)
    print(f"largest input of the last down-projection in the first {count:2} documents: {widest[-2]:.2f}")

# %% [markdown]
# A range never shrinks when documents are added. Is a wider range better? It cuts off less, and its steps are coarser. That cannot be decided at the desk; it is measured.
#
# ### Exercise 5.8: a calibration study
# *Difficulty 3 of 5 · 30 minutes · 3 points*
#
# For each size $n$ (documents in a calibration set) draw $r$ calibration sets, the *repeats*, and measure each: `measure(calibration, evaluation)` returns a loss $\ell$, for example Δ. Report the mean over the repeats, and the *spread*, their sample standard deviation
#
# $$s_n = \sqrt{\tfrac{1}{r-1} \sum_{i=1}^{r} (\ell_i - \bar\ell)^2}$$
#
# By hand: three repeats give the losses 1, 2, 6. The mean is 3, and $s = \sqrt{(4 + 1 + 9) / 2} \approx 2.65$. Four rules make it a study:
#
# 1. Sets come from `training`. The loss is measured on `validation`. No document of one is ever in the other.
# 2. Within one size, no document is in two of the sets (nor twice in one). Sets that share documents agree for that reason alone, and the spread looks too small.
# 3. Documents are drawn at random, with a generator of your own that starts at `seed`: neighbours in a list are alike. The same seed gives the same study.
# 4. If there are not enough documents for this, say so with a `ValueError`.


# %% nbgrader={"grade": false, "grade_id": "ex_5_8", "locked": false, "schema_version": 3, "solution": true, "task": false}
def calibration_study(
    training: Tensor,
    validation: Tensor,
    sizes: list[int],
    repeats: int,
    seed: int,
    measure: Callable[[Tensor, Tensor], float],
) -> dict[int, tuple[float, float]]:
    """Mean and spread of the loss over disjoint random calibration sets, for each size.

    Parameters
    ----------
    training : Tensor, int64, (documents, length)
        What calibration sets are drawn from.
    validation : Tensor, int64, (others, length)
        What every set is measured on, all of it.
    sizes : list of int
        Documents in a calibration set. Sets of different sizes may share documents.
    repeats : int
        Sets for each size, at least 2.
    seed : int
        Start of the generator; the state of PyTorch's own random numbers is not touched.
    measure : callable
        ``measure(calibration, evaluation)`` returns a float.

    Returns
    -------
    dict of int to (float, float)
        Size to mean and sample standard deviation.

    Raises
    ------
    ValueError
        If the training documents are too few for `repeats` disjoint sets of the largest size.

    Example
    -------
    >>> study = calibration_study(pool, validation, [1, 4], 3, seed=0, measure=lambda some, _: float(len(some)))
    >>> study
    {1: (1.0, 0.0), 4: (4.0, 0.0)}
    """
    ### BEGIN SOLUTION
    if max(sizes) * repeats > len(training):
        raise ValueError(f"{len(training)} documents are too few for {repeats} disjoint sets of {max(sizes)}.")
    shuffler = torch.Generator().manual_seed(seed)
    study = {}
    for size in sizes:
        rows = torch.randperm(len(training), generator=shuffler)[: size * repeats].view(repeats, size)
        values = [measure(training[chosen], validation) for chosen in rows]
        study[size] = (mean(values), stdev(values))
    return study
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_5_8_check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 5.8: run this cell.
import itertools
import random

import numpy as np
import torch

from helpers import checks


@checks.isolated
def check_ex_5_8() -> None:
    def observed(count: int, others: int, sizes: list[int], repeats: int, seed: int) -> tuple:
        """Run the study on documents that carry their number; what came out, and what `measure` was given."""
        train = torch.arange(count)[:, None].repeat(1, 3)
        test = 10_000 + torch.arange(others)[:, None].repeat(1, 3)
        calls: list[tuple[list[int], list[int], float]] = []
        state = torch.random.get_rng_state()

        def measure(calibration: torch.Tensor, evaluation: torch.Tensor) -> float:
            checks.given(calibration, "the calibration set")
            assert calibration.dtype == torch.int64 and calibration.shape[1:] == (3,), (
                f"`measure` is given documents of shape {tuple(calibration.shape)}, {calibration.dtype}: hand over whole documents as they are, in int64."
            )
            assert torch.equal(state, torch.random.get_rng_state()), (
                "while `measure` runs, PyTorch's own random numbers are not where they were, because you have seeded them: make a torch.Generator."
            )
            value = float(np.sin(calibration[:, 0].numpy() * 12.9898).mean()) + 0.01 * len(calls)
            calls.append((calibration[:, 0].tolist(), evaluation[:, 0].tolist(), value))
            return value

        with checks.untouched(training=train, validation=test, sizes=sizes):
            result = calibration_study(train, test, sizes, repeats, seed, measure)
        return result, calls

    def judge(count: int, others: int, sizes: list[int], repeats: int, seed: int) -> list:
        try:
            result, calls = observed(count, others, sizes, repeats, seed)
        except ValueError as error:
            raise AssertionError(
                f"you raise a ValueError ({error}) for {count} documents, {repeats} repeats and the sizes {sizes}; {max(sizes) * repeats} are enough, because only sets of *one* size must be disjoint."
            ) from None
        checks.given(result, "your study")
        assert not all(number >= 10_000 for drawn, *_ in calls for number in drawn), (
            "the calibration sets come from `validation`: the documents that set the ranges are then those that judge them. Draw from `training`."
        )
        for drawn, evaluated, _ in calls:
            assert not any(number >= 10_000 for number in drawn), (
                "a calibration set holds validation documents: that is leakage. Draw from `training` only."
            )
            assert not set(drawn) & set(evaluated), (
                "the loss is measured on the documents that set the ranges: that is leakage, too. Measure on `validation`."
            )
            assert evaluated == [10_000 + i for i in range(others)], (
                "every set should be measured on all of `validation`."
            )
        assert len(calls) != len(sizes), (
            "you measure one value for each size. Without repeats there is no spread: luck stays invisible."
        )
        assert len(calls) == len(sizes) * repeats, (
            f"`measure` was called {len(calls)} times; {len(sizes)} sizes with {repeats} repeats need {len(sizes) * repeats}."
        )
        assert all(len(set(drawn)) == len(drawn) for drawn, *_ in calls), (
            "a document is twice in one set: draw without putting back (randperm, not randint)."
        )
        one_after_another = [
            [set(drawn) for drawn, *_ in calls[i : i + repeats]] for i in range(0, len(calls), repeats)
        ]
        assert not any(all(a < b for a, b in itertools.pairwise(sets)) for sets in one_after_another), (
            "your repeats are one growing prefix: each set contains the one before it. Draw disjoint sets of equal size."
        )
        groups = {size: [call for call in calls if len(call[0]) == size] for size in sizes}  # in any order of calls
        for size, group in groups.items():
            assert len(group) == repeats, (
                f"{len(group)} of your sets have {size} documents; {repeats} repeats of this size should. All lengths: {[len(drawn) for drawn, *_ in calls]}."
            )
            sets = [set(drawn) for drawn, *_ in group]
            assert not all(s == sets[0] for s in sets[1:]), (
                "all repeats of a size use the same documents. The same draw again is not a repeat: its spread is 0 and means nothing."
            )
            assert sum(len(s) for s in sets) == len(set().union(*sets)), (
                "two repeats of one size share documents. They agree for that reason alone, and the spread looks too small: draw disjoint sets."
            )
            used = set().union(*sets)
            assert count < 10 * len(used) or sum((d + 1) % count in used for d in used) <= len(used) // 3, (
                "the sets are neighbours in the list, not random documents. Shuffle first: a window from a random place is no random draw."
            )
            ordered = sorted(sets, key=min)
            assert size < 3 or not all(max(a) < min(b) for a, b in itertools.pairwise(ordered)), (
                "each set is a stretch of the list, all of it before the next one: neighbours are alike. Do not sort what you have drawn."
            )
            gaps = {b - a for a, b in itertools.pairwise(sorted(used))}
            assert count < 10 * len(used) or len(gaps) > 2, (
                "your documents lie at equal distances in the list, and only the first one is random: draw every document at random."
            )
        assert isinstance(result, dict) and set(result) == set(sizes), "return a dict with an entry for each size."
        for size, group in groups.items():
            values = [value for *_, value in group]
            assert isinstance(result[size], tuple) and len(result[size]) == 2, (
                f"each entry should be a pair (a tuple) of mean and spread, and no {type(result[size]).__name__}."
            )
            assert all(isinstance(value, float) for value in result[size]), (
                "mean and spread should be Python's numbers (.item()), and no tensors."
            )
            checks.number(result[size][0], float(np.mean(values)), f"your mean for size {size}", rtol=1e-6, mistakes={
                "it is the value of the last repeat.": values[-1], "it is the sum of the repeats.": float(np.sum(values)),
            })  # fmt: skip
            spread = float(np.std(values, ddof=1))
            checks.number(result[size][1], spread, f"your spread for size {size}", rtol=1e-6, mistakes={
                "it divides by r. The sample standard deviation divides by r - 1.": float(np.std(values)),
                "it is the variance: the square root is missing.": spread**2,
                "it is the standard error of the mean; the spread is that of single sets.": spread / repeats**0.5,
                "it is the distance from the smallest to the largest.": max(values) - min(values),
            })  # fmt: skip
        return calls

    with checks.check(
        "5.8", "disjoint random sets from the training split, measured on the validation split, with mean and spread"
    ):
        numpy_state, python_state = np.random.get_state(), random.getstate()
        try:
            judge(1000, 2, [5, 2], 4, seed=57)
            first = judge(48, 5, [1, 3, 8], 5, seed=58)
            torch.manual_seed(1)
            state = torch.random.get_rng_state()
            again = judge(48, 5, [1, 3, 8], 5, seed=58)
            assert torch.equal(state, torch.random.get_rng_state()), (
                "your function uses PyTorch's own random numbers: make a torch.Generator."
            )
            assert repr(numpy_state) == repr(np.random.get_state()), (
                "your function uses NumPy's own random numbers, and seeds them for everybody: make a generator of your own."
            )
            assert python_state == random.getstate(), (
                "your function uses Python's own random numbers, and seeds them for everybody: make a generator of your own."
            )
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
        assert first == again, "the same seed gives another study: start a generator of your own at `seed`."
        assert first != judge(48, 5, [1, 3, 8], 5, seed=59), (
            "another seed gives the same study: your generator does not start at `seed`."
        )
        assert len({repr(judge(48, 5, [3], 5, seed=58 + step)) for step in (0, 100, 1024, 10_000)}) == 4, (
            "seeds that lie far apart give the same study: start your generator at `seed` itself, with nothing cut off."
        )
        alike = calibration_study(
            torch.zeros(12, 3, dtype=torch.int64), torch.zeros(1, 3), [4, 1], 3, 0, lambda *_: 2.5
        )
        assert alike == {4: (2.5, 0.0), 1: (2.5, 0.0)}, (
            f"for 12 documents with equal text your study is {alike}: every row of `training` is a document."
        )
        checks.raises(
            ValueError,
            lambda: observed(23, 5, [2, 8], 3, 0),
            "3 disjoint sets of 8 need 24 documents, and there are 23: raise a ValueError.",
        )
        ever = {number for seed in range(40) for drawn, *_ in observed(9, 1, [4], 2, seed)[1] for number in drawn}
        assert ever == set(range(9)), (
            f"document {min(set(range(9)) - ever)} of 9 is in no set of 40 studies with 40 seeds: every document should be drawn with the same chance, the first and the last, too."
        )
        checks.raises(
            ValueError,
            lambda: observed(23, 5, [8, 2], 3, 0),
            "the largest size counts, wherever it stands: 3 disjoint sets of 8 need 24 documents, and there are 23.",
        )
        judge(24, 2, [8, 2], 3, seed=0)
    ### BEGIN HIDDEN TESTS
    generator = torch.Generator().manual_seed(5801)
    for count, sizes, repeats in [(60, [2, 5], 12), (64, [1, 4, 16], 4), (9, [3], 3)]:
        numbers = torch.randperm(1000, generator=generator)[:count]
        seen: list[tuple[int, ...]] = []
        values: list[float] = []

        def record(calibration: torch.Tensor, evaluation: torch.Tensor, seen=seen, values=values) -> float:
            assert calibration.dtype == torch.int64, "another dtype."
            assert (evaluation == -7).all() and evaluation.shape == (4, 2), "the wrong documents are measured."
            seen.append(tuple(calibration[:, 0].tolist()))
            values.append(float(calibration[:, 1].double().mean()))
            return values[-1]

        documents = torch.stack([numbers, numbers**2 % 91], dim=1)
        with checks.untouched(training=documents, sizes=sizes):
            answer = calibration_study(documents, torch.full((4, 2), -7), sizes, repeats, count, record)
        assert all(isinstance(v, float) for pair in answer.values() for v in pair), "no numbers."
        assert all(isinstance(pair, tuple) and len(pair) == 2 for pair in answer.values()), "no pairs."
        assert set(answer) == set(sizes) and len(seen) == repeats * len(sizes), "wrong sizes or repeats."
        for size in sizes:
            group = [g for g in seen if len(g) == size]
            assert len(group) == repeats, "a set has a wrong size."
            flat = [x for g in group for x in g]
            assert len(set(flat)) == len(flat) and set(flat) <= set(numbers.tolist()), (
                "sets are not disjoint, or not from training."
            )
            if count > 2 * size * repeats or size > 2:
                assert flat != numbers[: len(flat)].tolist(), "the first documents in order, not a random draw."
            mine = np.array([v for g, v in zip(seen, values, strict=True) if len(g) == size])
            assert np.allclose(answer[size], (mine.mean(), mine.std(ddof=1)), rtol=1e-6), "a wrong mean or spread."
        kept = list(seen)
        seen.clear()
        values.clear()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(987_654)
            before, inside = torch.random.get_rng_state(), []

            def watch(calibration: torch.Tensor, evaluation: torch.Tensor, record=record, inside=inside) -> float:
                inside.append(torch.random.get_rng_state())
                return record(calibration, evaluation)

            calibration_study(documents, torch.full((4, 2), -7), sizes, repeats, count, watch)
            untouched = all(torch.equal(before, now) for now in (*inside, torch.random.get_rng_state()))
        assert seen == kept and untouched, "the seed does not do its work."
        seen.clear()
        calibration_study(documents, torch.full((4, 2), -7), sizes, repeats, count + 1, record)
        assert seen != kept, "the seed is not used."
    many = torch.randn(4000, 1, generator=generator)
    wide = calibration_study(many, many[:1], [1, 4], 400, 3, lambda some, _: float(some.mean()))
    assert 1.4 < wide[1][1] / wide[4][1] < 2.9, "the spread does not shrink."
    for seed in (5802, 5803):
        row: list[int] = []

        def note(calibration: torch.Tensor, evaluation: torch.Tensor, row=row) -> float:
            row.extend(calibration[:, 0].tolist())
            return float(len(row))

        before = repr((np.random.get_state(), random.getstate()))
        calibration_study(torch.arange(1500)[:, None], torch.zeros(3, 1), [4], 5, seed, note)
        assert before == repr((np.random.get_state(), random.getstate())), (
            "NumPy's or Python's random numbers are used."
        )
        assert len({b - a for a, b in itertools.pairwise(sorted(row))}) > 2, "equal distances, not a random draw."
        assert len(row) == 20 and sum((d + 1) % 1500 in row for d in row) <= 6, "a window, not a random draw."
    lists: list[list[int]] = []
    for seed in (5, 105, 1029, 10_005):
        lists.append([])
        calibration_study(
            many.round().long(), many[:1], [6], 4, seed, lambda some, _: lists[-1].extend(some[:, 0].tolist()) or 1.0
        )
    assert len({repr(one) for one in lists}) == 4, "a part of the seed is cut off."
    assert calibration_study(many[:1].repeat(12, 1), many[:1], [4], 3, 0, lambda *_: 1.5) == {4: (1.5, 0.0)}, (
        "equal rows."
    )
    drawn_once: set[int] = set()
    for seed in range(40):
        calibration_study(
            torch.arange(11)[:, None],
            many[:1],
            [5],
            2,
            seed,
            lambda some, _: drawn_once.update(some[:, 0].tolist()) or 1.0,
        )
    assert drawn_once == set(range(11)), "a document is never drawn."
    for some_sizes in ([4, 1], [1, 4]):
        try:
            calibration_study(many[:11], many[:1], some_sizes, 3, 0, lambda some, _: 0.0)
        except ValueError:
            refused = True
        else:
            refused = False
        assert refused, "too few documents are accepted."
    assert calibration_study(many[:12], many[:1], [4, 1], 3, 0, lambda some, _: 2.5) == {
        4: (2.5, 0.0),
        1: (2.5, 0.0),
    }, "just enough documents are refused, or a wrong study of a constant."
    ### END HIDDEN TESTS


check_ex_5_8()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Shuffle the numbers of all documents once for a size, and cut the beginning into `repeats` pieces of `size`. Pieces of one shuffle are disjoint.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `torch.randperm(len(training), generator=...)` gives the shuffle; `statistics.stdev` divides by r - 1. One generator, made before the loop over the sizes.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `shuffled[i * size : (i + 1) * size]` for `i in range(repeats)` are the rows of repeat `i`; give `training[those rows]` and `validation` to `measure`; collect the floats.
# </details>

# %% [markdown]
# ### The study itself
#
# What to measure? Δ on a few documents is a restless number: *any* tiny change of the rounding moves it a little up or down. The KL divergence to the float model (section 1) is calmer, since it never rewards an accident. So: mean KL in bits, on the validation documents. (This was decided after a look, and you should know it: the first version of this section used Δ alone, and its spread did not fall with the size. Δ has stayed in the table, so that you can judge the choice.)
#
# Two observers, which differ only in how they put documents together: *min/max* keeps the extremes of all of them, *average* takes the mean of the documents' own smallest and largest values (PyTorch's moving-average observer is a relative). Predict before you run: for each of the two, what do more documents do to
# the **width** of a range, to the **mean** loss, and to its **spread**?


# %%
def extremes(part: Tensor) -> Tensor:
    """Ranges (layers, 2) that hold everything that the documents of `part` (documents, layers, 2) hold."""
    return torch.stack([part[..., 0].amin(dim=0), part[..., 1].amax(dim=0)], dim=1)


def averages(part: Tensor) -> Tensor:
    return part.mean(dim=0)


known_losses: dict[bytes, tuple[float, float]] = {}  # the same ranges need not be measured twice


def losses_of(limits: Tensor) -> tuple[float, float]:
    """KL to float and Δ, bits per byte on the validation documents, Linear inputs rounded over `limits`."""
    key = limits.numpy().tobytes()
    if key not in known_losses:
        with torch.no_grad():
            logits = with_input_ranges(fused_model, limits)(validation[:, :-1])
        next_bytes = validation[:, 1:].flatten()
        cost, float_cost = (F.cross_entropy(one.flatten(0, 1), next_bytes).item() for one in (logits, float_logits))
        divergence = metrics.kl_bits(float_logits, logits).mean().item()
        known_losses[key] = divergence, (cost - float_cost) / metrics.NATS_PER_BIT
    return known_losses[key]


def study_of(ranges: Tensor, sizes: list[int], repeats: int, seed: int, join: Callable[[Tensor], Tensor]) -> list[dict]:
    """Losses and widths for disjoint random sets of rows of `ranges` (documents, layers, 2)."""
    dice = torch.Generator().manual_seed(seed)
    rows = []
    for size in sizes:
        order = torch.randperm(len(ranges), generator=dice)
        limits = [join(ranges[order[start : start + size]]) for start in range(0, size * repeats, size)]
        widths = torch.stack([limit[:, 1] - limit[:, 0] for limit in limits])  # (repeats, layers)
        kls, deltas_found = zip(*(losses_of(limit) for limit in limits), strict=True)
        rows.append({"documents": size, "losses": list(kls), "deltas": list(deltas_found), "widths": widths})
    return rows


with torch.no_grad():
    float_logits = fused_model(validation[:, :-1])
sizes = [1, 4, 16]
studies = {
    name: study_of(pool_ranges, sizes, 4, seed=5, join=join)
    for name, join in [("min/max", extremes), ("average", averages)]
}
single = studies["min/max"][0]["widths"].mean(dim=0)  # (layers,)
tables.show(
    [
        {
            "observer": name,
            "documents": row["documents"],
            "width / width with 1 document": f"{(row['widths'].mean(dim=0) / single).mean():.2f}",
            "spread of the width": f"{(row['widths'].std(dim=0) / row['widths'].mean(dim=0)).mean():.1%}",
            "mean KL in bits": f"{mean(row['losses']):.5f}",
            "spread of KL": f"{stdev(row['losses']):.5f}",
            "mean Δ": f"{mean(row['deltas']):+.5f}",
            "spread of Δ": f"{stdev(row['deltas']):.5f}",
        }
        for name, rows in studies.items()
        for row in rows
    ]
)
noise = torch.Generator().manual_seed(6)
controls = {
    "random bytes": [torch.randint(256, (4, 129), generator=noise) for _ in range(4)],
    "spaces": [torch.full((4, 129), 32)],
}
for name, texts in controls.items():
    found = [losses_of(extremes(document_ranges(fused_model, documents)))[0] for documents in texts]
    scatter = f", spread {stdev(found):.5f}, {len(found)} sets" if len(found) > 1 else ""
    print(f"control, 4 documents of {name}, min/max: mean KL {mean(found):.5f}{scatter}")

fig, axes = plots.figure(columns=2, width=9, height=2.9)
for i, (name, rows) in enumerate(studies.items()):
    for j, row in enumerate(rows):
        axes[0].plot(
            [j + 0.2 * i] * 4,
            [1000 * loss for loss in row["losses"]],
            "os"[i],
            color=plots.PALETTE[i],
            label=name if j == 0 else None,
        )
    axes[1].plot(
        range(len(sizes)),
        [(r["widths"].std(dim=0) / r["widths"].mean(dim=0)).mean() * 100 for r in rows],
        "os"[i] + "-",
        color=plots.PALETTE[i],
    )
for ax in axes:
    ax.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    ax.set_xlabel("documents in a calibration set")
axes[0].set_ylabel("KL to float,\nthousandths of a bit")
axes[1].set_ylabel("spread of the width, %")
axes[1].set_ylim(bottom=0)
axes[0].legend()
plots.show(
    fig,
    caption="Left: every point is a calibration set (7-bit inputs, float weights); with one document both observers are the same by construction. Right: how much the width of a range differs "
    "between sets of one size, as a share of the width, mean over all layers.",
    alt="Left, points of loss for calibration sets of 1, 4 and 16 documents: those of min/max tend to rise with the size, those of the "
    "average do not. Right, two falling lines: the width scatters less between larger sets, for the average much less.",
)

# %% [markdown]
# *Look back.* What more documents buy is *agreement*: the widths of two sets of 16 differ less than those of two single documents, and for the average much less. Read the two spreads of *losses* with care: four repeats estimate a spread badly, and neither column need fall from row to row; that widths agree does not yet make losses agree. (That holds for KL, too. We preferred it to Δ because the spread of Δ did not fall with the size; look whether the spread of KL does, from row to row, for both observers. It is smaller. That is all that speaks for it here.)
#
# Do more documents buy a smaller loss? The two measures of the table need not agree, and we do not get to pick the one that suits us. KL says how far the model has moved from float; Δ says whether the text came out more or less likely, and a move may happen to help. With min/max the ranges only grow: one more document, one more rare value, coarser steps for all others; its mean KL grows with them. If mean Δ falls in the same rows, that is no
# contradiction, and with the spread of Δ printed beside it, usually no evidence either. "More calibration data is better" is not a law; it depends on what the observer does with it, and on what you measure. And one calibration set for each method is one lot, not a result.
#
# The controls are sobering. A text of nothing but spaces gives clearly worse ranges. For random bytes, which are no text at all, compare mean and spread with the row of min/max and 4 documents: is the difference larger than the two spreads? If it is not, this experiment cannot tell a calibration text from noise. (One may suppose that behind a LayerNorm much of a range is made by the model and not by the text; that is not tested here.) Had we run only the first control, we would have told a nicer story.
#
# ### Does the kind of text matter?
#
# The course model reads two kinds of text: help topics and docstrings of the library. Calibrate on one kind only. What makes it an experiment is the control: random halves of the mixture, drawn in the same way and of the same size, show how large differences get where there is *no* difference in kind.

# %%
kinds = {
    kind: torch.stack(
        [
            data.encode(d.text[:129])
            for d in data.split_documents("training")
            if d.name.startswith(kind) and len(d.text) >= 129
        ][:32]
    )
    for kind in ("topic", "library")
}
kind_ranges = {kind: document_ranges(fused_model, documents) for kind, documents in kinds.items()}
mixed = torch.cat(list(kind_ranges.values()))[torch.randperm(64, generator=torch.Generator().manual_seed(8))]
kind_ranges |= {"mixture, one half": mixed[:32], "mixture, other half": mixed[32:]}
composition = {kind: study_of(ranges, [8], 4, 9, averages)[0]["losses"] for kind, ranges in kind_ranges.items()}
tables.show(
    [
        {
            "calibrated on 8 documents of": kind,
            "mean KL in bits": f"{mean(losses):.5f}",
            "spread": f"{stdev(losses):.5f}",
        }
        for kind, losses in composition.items()
    ]
)


def apart(a: list[float], b: list[float]) -> str:
    """Difference of the means of four sets each, with a 95 % interval: 2.447 standard errors, not 1.96 (see below)."""
    half = 2.447 * math.sqrt((stdev(a) ** 2 + stdev(b) ** 2) / 4)
    return f"{mean(a) - mean(b):+.5f} ± {half:.5f}"


print("topics - library:          ", apart(composition["topic"], composition["library"]))
print("control, half - other half:", apart(composition["mixture, one half"], composition["mixture, other half"]))

# %% [markdown]
# *Look back.* (The 2.447: with only four sets on each side, the standard errors themselves are badly known, and 1.96 of them would be too few. The table of Student's t distribution gives the number; its "degrees of freedom" are 4 + 4 sets, minus the 2 means that were estimated.) Compare the two printed lines, not two rows of the table. As long as the interval of the difference between the kinds holds 0, or the difference is no larger than that of the control, this experiment has *not* shown that composition matters for this model at 7 bits: both kinds are English about Python, in the same bytes. Nor has it shown that
# composition never matters; the spaces above are a composition, too.
#
# %% [markdown]
# ## 7. Bits under a byte budget
#
# A frontier of *uniform* configurations wastes bytes: some layers bear 3 bits, others do not. Suppose a file may have so many bytes and not one more. Which layer gets which width? First measure how much each part suffers alone: one part rounded to $b$ bits, all others float, on *validation* documents; as in section 6, by KL to the float model, the calmer measure. Nine parts (the attention and
# the feed-forward half of each block, and embedding with head), three widths, groups of 32:

# %%
parts = {
    f"block {i} {half}": [name for name in frontier.matrices(course_model) if name.startswith(f"blocks.{i}.{half}")]
    for i in range(course_model.config.n_layers)
    for half in ("attention", "ffn")
}
parts["embedding and head"] = ["embedding", "head"]
weights_of = {
    part: sum({m[name].data_ptr(): m[name].numel() for name in names}.values())
    for m in [frontier.matrices(course_model)]
    for part, names in parts.items()
}
widths = (2, 3, 4)


def with_bits(bits: dict[str, int]) -> nn.Module:
    """The course model with each part rounded to its width; parts that are not named stay float."""
    plan = {name: frontier.Scheme(width, 32, False) for part, width in bits.items() for name in parts[part]}
    return fused.fused(frontier.rounded(course_model, plan))  # fused only because it is faster


with torch.no_grad():
    sensitivity = {
        part: {
            width: metrics.kl_bits(float_logits, with_bits({part: width})(validation[:, :-1])).mean().item()
            for width in widths
        }
        for part in parts
    }
tables.show(
    [
        {"part": part, "weights": f"{weights_of[part]:,}"}
        | {f"KL at {width} bits": f"{loss:.4f}" for width, loss in sensitivity[part].items()}
        for part in parts
    ]
)

# %% [markdown]
# Sizes differ, and so do losses: a part that loses much may also be large, and dear to protect. What counts is loss taken away *for each byte*.
#
# ### Exercise 5.9: spend a byte budget
# *Difficulty 4 of 5 · 45 minutes · 3 points*
#
# Layer $l$ has $w_l$ weights. At $b$ bits its codes take $w_l b / 8$ bytes (scales are the same for every width, and left out), and its loss is $\ell_l(b)$. Choose a width $b_l$ for each layer so that
#
# $$\sum_l \ell_l(b_l) \text{ is small, and } \sum_l \frac{w_l b_l}{8} \le B$$
#
# with $B$ the budget. That is a knapsack problem. A *greedy* solution: begin with the fewest bits everywhere. A step raises one layer from $b$ to any larger width $b'$, the next one or one beyond it; it takes away the loss $\ell_l(b) - \ell_l(b')$ and costs $w_l (b' - b) / 8$ bytes. Again and again take the step with the largest
#
# $$\frac{\ell_l(b) - \ell_l(b')}{w_l (b' - b) / 8}$$
#
# among those that still fit into what is left of $B$, until none fits. (Never take a step that adds loss. One that takes away nothing is not worth a byte either.)
#
# By hand: layer *big*, 800 weights, loses 10 at 2 bits and 1 at 4; layer *small*, 80 weights, loses 3 at 2 bits and 0 at 4. Raising *big* takes away 9 for 200 bytes, 0.045 a byte; *small* 3 for 20 bytes, 0.15 a byte. At 2 bits both take 220 bytes. With a budget of 430 there are 210 bytes left, and only one of the two steps fits. If *big* goes first, 1 (big) + 3 (small) is left: loss 4. Greedy takes *small* first, and *big* no longer
# fits: 10 + 0, loss 10. So greedy is not always the best. You may solve the problem exactly instead, by trying everything cleverly (dynamic programming): the check accepts every allocation that is as good as greedy, or better.


# %% nbgrader={"grade": false, "grade_id": "ex_5_9", "locked": false, "schema_version": 3, "solution": true, "task": false}
def allocate(weights: dict[str, int], loss: dict[str, dict[int, float]], budget: int) -> dict[str, int]:
    """A width for every layer, within a budget of bytes, with a small sum of losses.

    Parameters
    ----------
    weights : dict of str to int
        How many weights each layer has; a multiple of 8.
    loss : dict of str to dict of int to float
        For each layer what every possible width costs. The layers may stand in another order than in `weights`, and
        each may have widths of its own.
    budget : int
        Bytes that all codes together may take, exactly so many or fewer.

    Returns
    -------
    dict of str to int
        Layer to bits. The arguments are not changed.

    Raises
    ------
    ValueError
        If even the fewest bits do not fit.

    Example
    -------
    >>> allocate({"big": 800, "small": 80}, {"small": {2: 3.0, 4: 0.0}, "big": {2: 10.0, 4: 1.0}}, 245)
    {'big': 2, 'small': 4}
    """
    ### BEGIN SOLUTION
    chosen = {layer: min(loss[layer]) for layer in weights}
    rest = budget - sum(weights[layer] * chosen[layer] // 8 for layer in weights)
    if rest < 0:
        raise ValueError(f"even the fewest bits take {-rest} bytes too many.")
    while True:
        best = (0.0, "", 0, 0)
        for layer, bits in chosen.items():
            for wider in loss[layer]:
                cost = weights[layer] * (wider - bits) // 8
                if 0 < cost <= rest:
                    best = max(best, ((loss[layer][bits] - loss[layer][wider]) / cost, layer, wider, cost))
        if not best[1]:
            return chosen
        chosen[best[1]] = best[2]
        rest -= best[3]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_5_9_check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 5.9: run this cell.
import copy
import itertools

import numpy as np

from helpers import checks


@checks.isolated
def check_ex_5_9() -> None:
    def codes(w: dict, bits: dict) -> int:
        return sum(count * bits[name] for name, count in w.items()) // 8

    def lost(losses: dict, bits: dict) -> float:
        return sum(losses[name][width] for name, width in bits.items())

    def best_of_all(w: dict, losses: dict, limit: int) -> float:
        """Exact, by trying every combination."""
        names = list(w)
        combinations = (dict(zip(names, some, strict=True)) for some in itertools.product(*(losses[n] for n in names)))
        return min(lost(losses, bits) for bits in combinations if codes(w, bits) <= limit)

    def case(seed: int, layers: int, widths: tuple[int, ...] = (2, 3, 4, 8)) -> tuple[dict, dict]:
        """Layers of different sizes; every further bit takes away less than the one before. Large layers lose more in all."""
        rng = np.random.default_rng(seed)
        sizes = rng.permutation(np.geomspace(30, 200, layers).astype(int))
        w = {f"layer {i}": 8 * int(x) for i, x in enumerate(sizes)}
        heights = dict(zip(w, rng.uniform(20, 60, layers), strict=True))
        falls = dict(zip(w, rng.uniform(0.25, 0.6, layers), strict=True))
        losses = {n: {b: float(w[n] ** 0.6 * heights[n] * falls[n] ** b) for b in widths} for n in w}
        return w, {n: losses[n] for n in rng.permutation(list(w)).tolist()}

    def turning_points(w: dict, losses: dict) -> list[int]:
        """Budgets at which the best steps, one after another, are just paid: there greedy is exactly optimal."""
        steps = []
        for n in w:
            some = sorted(losses[n])
            steps += [
                ((losses[n][a] - losses[n][b]) * 8 / (w[n] * (b - a)), w[n] * (b - a) // 8)
                for a, b in itertools.pairwise(some)
            ]
        paid = [cost for _, cost in sorted(steps, reverse=True)]
        return list(itertools.accumulate(paid, initial=codes(w, {n: min(losses[n]) for n in w})))

    def mistaken(
        w: dict, losses: dict, limit: int, key, jump: bool = False, harm: bool = False, whole: bool = False
    ) -> dict:
        """What a greedy with another key chooses, one width at a time or any (jump)."""
        bits = {n: min(losses[n]) for n in w}
        rest = limit - codes(w, bits)
        while True:
            steps = []
            for n in w:
                higher = [b for b in sorted(losses[n]) if b > bits[n]]
                for b in higher if jump else higher[:1]:
                    gain, cost = losses[n][bits[n]] - losses[n][b], w[n] * (b - (0 if whole else bits[n])) // 8
                    if cost <= rest and (gain > 0 or harm):
                        steps.append((key(gain, cost, losses[n][bits[n]]), n, b, cost))
            if not steps:
                return bits
            _, n, b, cost = max(steps)
            bits[n], rest = b, rest - cost

    def close_race(better: float, unit: float = 1.0) -> tuple[dict, dict]:
        """One large layer and ten small ones that take as many bytes together; a small step's byte is worth `better`."""
        w = {"large": 80} | {f"small {i}": 8 for i in range(10)}
        losses = {n: {2: unit * (20.0 if n == "large" else 2 * better), 4: 0.0} for n in w}
        return w, losses

    failed: list[tuple] = []  # (title, weights, losses, budget, answer), so that one mistake can be seen in all of them

    def judge(title: str, w: dict, losses: dict, limit: int, exactly: bool) -> None:
        try:
            with checks.untouched(weights=w, loss=losses):
                answer = allocate(w, losses, limit)
        except ValueError as error:
            raise AssertionError(
                f"{title}: you raise a ValueError ({error}), although the fewest bits take {codes(w, {n: min(losses[n]) for n in w})} of {limit} bytes. The fewest bits are min(loss[layer]); the keys need not ascend."
            ) from None
        checks.given(answer, "your allocation")
        assert isinstance(answer, dict) and set(answer) == set(w), "return a dict with one width for every layer."
        assert all(type(bits) is int for bits in answer.values()), (
            f"the widths should be whole numbers of Python (int), and no {type(next(iter(answer.values()))).__name__}."
        )
        assert all(answer[n] in losses[n] for n in w), (
            "a layer has a width that is not among its possible ones: look only at the keys of loss[layer]."
        )
        spent = codes(w, answer)
        largest = max(w[n] * (max(losses[n]) - min(losses[n])) // 8 for n in w)
        assert spent <= limit + largest or spent > 8 * limit, (
            f"{title}: {spent} bytes are spent, and the budget is {limit}: one of the two seems to be counted in bits. A byte has 8."
        )
        assert spent <= limit, (
            f"{title}: {spent} bytes are spent, and the budget is {limit}. Take a step only if it fits into what is left."
        )
        largest_step = max(max(losses[n].values()) - min(losses[n].values()) for n in w)
        slack = (1e-9 if exactly else 0.5) * largest_step
        if lost(losses, answer) > best_of_all(w, losses, limit) + slack or room(w, losses, limit, answer):
            failed.append((title, w, losses, limit, answer))

    def room(w: dict, losses: dict, limit: int, bits: dict) -> list[str]:
        """Layers that could still be raised, and would lose less."""
        better = [(n, b) for n in w for b in losses[n] if b > bits[n] and losses[n][b] < losses[n][bits[n]]]
        return [n for n, b in better if codes(w, bits | {n: b}) <= limit]

    def explain() -> None:
        """Name the mistake that gives every failed answer, if there is one."""
        if not failed:
            return
        by_ratio = lambda gain, cost, now: gain / cost  # noqa: E731
        alike = [case for case in failed if len({tuple(sorted(v)) for v in case[2].values()}) == 1]
        by_place = lambda w, losses: dict(zip(w, losses.values(), strict=True))  # noqa: E731
        assert (
            not alike
            or len(alike) < len(failed)
            or not any(
                all(a == mistaken(w, by_place(w, v), b, by_ratio, jump) for _, w, v, b, a in alike)
                for jump in (False, True)
            )
        ), (
            "the sensitivities are added for the wrong layers: the dicts are not in the same order. Look losses up by name, loss[layer]."
        )
        mistakes = [
            ("you look only at the next wider width. A step may jump over a width: let every wider one compete.", by_ratio, {"jump": False}),
            ("a step that takes away nothing, or adds loss, is bought because bytes are left. Leave it.", by_ratio, {"harm": True}),
            ("a step is charged with all of its new bits. It costs only those that are added: the old ones are paid.", by_ratio, {"whole": True}),
            ("the step with the largest benefit is taken, whatever it costs. Divide by its bytes.", lambda gain, cost, now: gain, {}),
            ("the order is reversed: you take the step with the smallest benefit for a byte first.", lambda gain, cost, now: -gain / cost, {}),
            ("the cheapest step is taken, whatever it brings.", lambda gain, cost, now: -cost, {}),
            ("you go by how large a layer's loss is now, not by what a step takes away for a byte.", lambda gain, cost, now: now, {}),
        ]  # fmt: skip
        for jump in (True, False):  # one mistake alone, then together with looking at the next width only
            fits = [
                sentence
                for sentence, key, options in mistakes
                if all(a == mistaken(w, v, b, key, **({"jump": jump} | options)) for _, w, v, b, a in failed)
            ]
            assert len(fits) != 1 or (len(failed) == 1 and fits[0] not in (mistakes[0][0], mistakes[1][0])), fits[0]
        title, w, losses, limit, answer = failed[0]
        for title, w, losses, limit, answer in failed:
            free = room(w, losses, limit, answer)
            assert not free, (
                f"{title}: a step of {free[0]} still fits into the budget and would take away loss. Go on until none fits, not until the first does not fit."
            )
        raise AssertionError(
            f"{title}: the sum of losses is {lost(losses, answer):.4g}; {best_of_all(w, losses, limit):.4g} is possible with this budget. "
            "Is a step worth the loss that it takes away, divided by exactly the bytes that it adds, with every layer's own loss and size, and does no step add loss?"
        )

    with checks.check("5.9", "the bytes go where they take away most loss, and the budget holds"):
        example = {"big": 800, "small": 80}, {"small": {2: 3.0, 4: 0.0}, "big": {2: 10.0, 4: 1.0}}
        w, losses = case(590, 5)
        judge("five layers and few bytes", w, losses, turning_points(w, losses)[2], exactly=True)
        judge("the example", *example, 245, exactly=True)
        judge("the example with bytes for all", *example, 10_000, exactly=True)
        judge("the example with just enough bytes for the fewest bits", *example, 220, exactly=True)
        judge("the example with just enough bytes for one step more", *example, 240, exactly=True)
        judge(
            "a layer with a single width", {"p": 80, "q": 40}, {"q": {3: 2.0}, "p": {2: 5.0, 3: 1.0}}, 45, exactly=True
        )
        for seed in (591, 592, 593):
            w, losses = case(seed, 5)
            budgets = turning_points(w, losses)
            for limit in budgets[2:-2:3]:
                judge(f"five layers and {limit} bytes", w, losses, limit, exactly=True)
            judge("a budget between two steps", w, losses, (budgets[-4] + budgets[-5]) // 2, exactly=False)
        stubborn = (
            {"r": 80, "q": 400, "p": 80},
            {"p": {2: 100.0, 3: 95.0}, "q": {2: 60.0, 3: 20.0}, "r": {2: 30.0, 3: 15.0}},
        )
        judge("a layer whose loss is large and stays large", *stubborn, 200, exactly=True)
        for better in (1.01, 0.99):
            judge(
                f"ten small layers whose bytes are worth {better} of a large one's, and bytes for either",
                *close_race(better),
                60,
                exactly=True,
            )
            judge("the same, with losses of less than 0.0001", *close_race(better, 1e-6), 60, exactly=True)
        explain()
        far = {"a": 80, "b": 80}, {"b": {2: 9.0, 3: 8.9, 4: 8.8, 5: 8.7, 8: 1.0}, "a": {2: 5.0, 8: 1.0}}
        judge("a layer whose loss falls only three widths up", *far, 100, exactly=True)
        late = {"z": 80, "b": 80}, {"b": {2: 10.0, 3: 5.0, 4: 4.5, 8: 4.0}, "z": {2: 12.0, 3: 11.9, 4: 0.0}}
        judge("a layer whose loss falls late", *late, 60, exactly=True)
        worse = {"a": 80, "b": 80}, {"b": {4: 0.1, 8: 0.3}, "a": {4: 1.0, 8: 0.0}}
        judge("bytes are left, and one layer only gets worse", *worse, 165, exactly=True)
        odd = {"a": 160, "b": 160}, {"b": {3: 1.0, 5: 2.0, 6: 0.0}, "a": {8: 0.5, 4: 1.0}}
        judge("widths of its own for each layer, one of them worse than a smaller one", *odd, 200, exactly=True)
        explain()
        checks.raises(
            ValueError,
            lambda: allocate(*example, 219),
            "the fewest bits take 220 bytes; a budget of 219 must raise a ValueError.",
        )
    ### BEGIN HIDDEN TESTS
    for seed in range(5900, 5912):
        w, losses = case(seed, 4 + seed % 3, [(2, 4, 8), (2, 3, 4, 8), (3, 5, 6)][seed % 3])
        budgets = turning_points(w, losses)
        for limit in (
            budgets[0],
            budgets[len(budgets) // 3],
            budgets[len(budgets) // 2],
            budgets[-3],
            budgets[-1] + 17,
        ):
            got = allocate(w, losses, limit)
            used = sum(w[n] * got[n] for n in w) // 8
            assert set(got) == set(w) and used <= limit, "the budget is exceeded, or a layer is missing."
            assert abs(sum(losses[n][got[n]] for n in w) - best_of_all(w, losses, limit)) < 1e-9, (
                "not the best allocation."
            )
        between = (budgets[-2] + budgets[-3]) // 2
        got = allocate(w, losses, between)
        assert sum(w[n] * got[n] for n in w) // 8 <= between, "the budget is exceeded."
        assert not [1 for n in w for b in losses[n] if b > got[n] and codes(w, got | {n: b}) <= between], (
            "bytes are left."
        )
        reverse = {n: losses[m] for n, m in zip(w, reversed(list(w)), strict=True)}
        other = allocate(w, reverse, budgets[len(budgets) // 2])
        assert lost(losses, allocate(w, losses, budgets[len(budgets) // 2])) <= lost(losses, other) + 1e-12, (
            "reversed is better."
        )
    for better, unit in itertools.product((1.005, 0.995, 1.02), (1.0, 1e-7, 1e4)):
        race = close_race(better, unit)
        left = unit * 20 if better > 1 else unit * 20 * better
        assert lost(race[1], allocate(*race, 60)) <= left * (1 + 1e-9), "the step that is worth most is not taken."
    bits = allocate({"a": 80, "b": 80}, {"b": {2: 9.0, 3: 8.9, 4: 8.8, 6: 8.7, 8: 0.5}, "a": {2: 5.0, 8: 1.0}}, 100)
    assert bits == {"a": 2, "b": 8}, "a step may jump over several widths."
    with checks.untouched(weights=w, loss=losses):
        assert all(type(bits) is int for bits in allocate(w, losses, budgets[3]).values()), (
            "widths are no whole numbers."
        )
    assert allocate({"p": 80, "q": 40}, {"q": {5: 2.0}, "p": {2: 5.0, 6: 1.0}}, 85) == {"p": 6, "q": 5}, (
        "a single width."
    )
    assert allocate({"p": 80, "q": 40}, {"q": {5: 2.0}, "p": {2: 5.0, 6: 1.0}}, 45) == {"p": 2, "q": 5}, "just enough."
    steep = {"y": {3: 9.0, 2: 15.0, 8: 8.5}, "x": {8: 0.5, 3: 19.0, 2: 20.0}}
    bits = allocate({"x": 40, "y": 120}, steep, 70)
    assert 40 * bits["x"] + 120 * bits["y"] <= 560 and lost(steep, bits) <= 15.5, "a step may jump over a width."
    bits = allocate({"p": 80, "q": 80}, {"q": {2: 3.0, 3: 2.9, 4: 0.0}, "p": {2: 3.0, 4: 1.5, 8: 4.0}}, 60)
    assert bits["p"] + bits["q"] <= 6 and bits == {"p": 2, "q": 4}, "the widest gain for a byte is not taken."
    assert allocate({"p": 80}, {"p": {2: 3.0, 4: 1.5, 8: 4.0}}, 500) == {"p": 4}, "loss is bought."
    try:
        allocate({"a": 80}, {"a": {4: 1.0, 8: 0.0}}, 39)
    except ValueError:
        refused = True
    else:
        refused = False
    assert refused, "an impossible budget is accepted."
    assert allocate({"a": 80, "b": 80}, {"b": {4: 0.1, 8: 0.3}, "a": {4: 1.0, 8: 0.0}}, 80 + 40)["a"] == 8, (
        "bytes are spent on a step that adds loss."
    )
    ### END HIDDEN TESTS


check_ex_5_9()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Keep two things: the width of each layer now, and the bytes that are left. Each turn of the loop looks at every possible step and takes one.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# A step is (benefit a byte, layer, new width, bytes). Steps that do not fit are skipped, not a reason to stop. The loop ends when there is no step left that fits and takes away loss.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# For each layer and each wider width: `cost = weights[layer] * (wider - now) // 8`; if it fits, `(loss[layer][now] - loss[layer][wider]) / cost` competes. Take the largest if it is positive, subtract its cost, repeat.
# </details>

# %% [markdown]
# ### Does it hold on the model?
#
# Losses were measured one part at a time, and added. Whether they *add up* when all parts are rounded together is a question to the model, on documents that had no say in the choice. The budget: what 3 bits everywhere would take. Controls: the exact knapsack; 3 bits everywhere; *reversed*, which buys the step with the smallest benefit a byte; and three *random* orders.


# %%
def random_order(limit: int, seed: int) -> dict[str, int]:
    """Buys steps in a random order, as long as one fits."""
    shuffle = torch.Generator().manual_seed(seed)
    bits = dict.fromkeys(parts, min(widths))
    while True:
        steps = [
            bits | {part: width} for part in parts for width in widths
            if width > bits[part] and budget.size(weights_of, bits | {part: width}) <= limit
        ]  # fmt: skip
        if not steps:
            return bits
        bits = steps[int(torch.randint(len(steps), (), generator=shuffle))]


limit = budget.size(weights_of, dict.fromkeys(parts, 3))
allocations = {
    "greedy": budget.greedy(weights_of, sensitivity, limit),
    "exact": budget.exact(weights_of, sensitivity, limit),
    "3 bits everywhere": dict.fromkeys(parts, 3),
    "reversed": budget.greedy(weights_of, sensitivity, limit, worst_first=True),
} | {f"random {seed}": random_order(limit, seed) for seed in (11, 12, 13)}
spent_rows, allocated_bits = [], {}
for name, chosen_widths in allocations.items():
    model = with_bits(chosen_widths)
    allocated_bits[name] = frontier.bits_by_document(model, held_out)
    with torch.no_grad():
        together = metrics.kl_bits(float_logits, model(validation[:, :-1])).mean().item()
    delta = intervals.paired_bootstrap(reference_bits, allocated_bits[name])
    spent_rows.append(
        {
            "allocation": name,
            "bits, in the order of the parts": " ".join(str(chosen_widths[part]) for part in parts),
            "bytes": f"{budget.size(weights_of, chosen_widths):,}",
            "sum of the single KLs (validation)": f"{sum(sensitivity[part][chosen_widths[part]] for part in parts):.3f}",
            "KL of the whole model (validation)": f"{together:.3f}",
            "Δ on held-out documents": str(delta),
        }
    )
tables.show(spent_rows)
print(
    "greedy - 3 bits everywhere:",
    intervals.paired_bootstrap(allocated_bits["3 bits everywhere"], allocated_bits["greedy"]),
)
print("greedy - reversed:         ", intervals.paired_bootstrap(allocated_bits["reversed"], allocated_bits["greedy"]))
randoms = torch.stack([allocated_bits[f"random {seed}"] for seed in (11, 12, 13)])
print("greedy - mean of random:   ", intervals.paired_bootstrap(randoms.mean(dim=0), allocated_bits["greedy"]))
print("Your own allocation:")
errors.show_result(lambda: allocate(weights_of, sensitivity, limit))

# %% [markdown]
# *Look back.* All allocations weigh (nearly) the same. Greedy loses far less than *reversed* and than the random orders: the controls show that it matters *where* the bytes go, and not only how many. Against *3 bits everywhere* read the interval before you rejoice: if it holds 0, nothing is shown, and uniform is a strong opponent when no part is extreme.
#
# Now compare the sum of the single KLs with the KL of the whole model; both are of the same validation documents. For greedy and for 3 bits everywhere, sum and whole lie close together. For the allocations with many parts at 2 bits the whole is clearly more than the sum. (When a part was measured, all other parts were sound; here they are broken as well, and errors meet errors.) So the sums got the *order* of bad and good right, and not the size. A sum of single losses is a guide, and no prophecy. And greedy against exact: where they differ at all, the difference is in the sum that both trust, which is itself only measured.
#
# %% [markdown]
# ## 8. What moved the needle
#
# The aim: **at least 3 times smaller, at least 2 times faster than float at prefill, within 1 % of its bits per byte, on this CPU.** An aim should be written down before anything is measured. Ours was not fresh when this section was written, and it is not for you: sections 3 to 5 have shown sizes, times and Δ of such models. So take what follows as an example of the accounting, and no fresh evidence.
#
# How does one get there? Not by trying things until the clock smiles. One change at a time, and each with a prediction, so that one can be *wrong* and learn from it.
#
# Where does the float model spend its time? PyTorch's profiler records every operation of a run; *self* time leaves out what an operation calls:


# %% tags=["varies"]
def time_shares(model: nn.Module, ids: Tensor, calls: int = 9) -> dict[str, float]:
    """Share of the CPU time of each kind of operation."""
    groups = {
        "Linear": ("addmm", "aten::mm", "quantized::linear"),
        "attention products": ("bmm", "scaled_dot_product", "quantized::matmul"),
        "softmax, mask, scaling": ("softmax", "masked_fill", "aten::div"),
        "GELU": ("gelu",),
        "quantize, dequantize": ("quantize_per_tensor", "dequantize"),
    }
    spent = dict.fromkeys([*groups, "everything else"], 0.0)
    for operation, microseconds in profiling.operation_times(lambda: model(ids), calls).items():
        group = next((g for g, words in groups.items() if any(word in operation for word in words)), "everything else")
        spent[group] += microseconds
    return {group: time / sum(spent.values()) for group, time in spent.items()}


prefill = held_out[:1].repeat(1, 2)[:, :256]
with latency.pinned_threads(1):
    shares = {
        "float": time_shares(course_model, prefill),
        "static int8": time_shares(static_model, prefill),
        "static int8, fused": time_shares(fused_static, prefill),
    }
    linear_shares = sorted(profiling.linear_shares(course_model, prefill))
fig, ax = plots.figure(width=9, height=2.6)
left = np.zeros(len(shares))
for i, group in enumerate(shares["float"]):
    part = np.array([s[group] for s in shares.values()])
    ax.barh(
        list(shares),
        part,
        left=left,
        label=group,
        color=plots.PALETTE[i],
        hatch=["", "//", "..", "xx", "\\\\", ""][i],
        edgecolor="white",
    )
    left += part
ax.invert_yaxis()
ax.set_xlabel("share of the model's own time")
ax.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.3), fontsize=8)
plots.show(
    fig,
    caption="Where the time goes, 1 × 256 bytes. Every bar is 100 % of its own model's time, whatever that is in seconds.",
    alt=f"Three stacked bars. Linear layers take {shares['float']['Linear']:.0%} of the time in the float model and {shares['static int8']['Linear']:.0%} in static int8, "
    "where attention products, softmax with mask, and conversions share the rest with everything else. With fused attention, softmax and mask have vanished into the attention products.",
)
print(
    f"Linear layers in the float model: {shares['float']['Linear']:.0%} by the profiler; by the clock {statistics.median(linear_shares):.0%} "
    f"({linear_shares[0]:.0%} to {linear_shares[-1]:.0%} in {len(linear_shares)} calls)"
)

# %% [markdown]
# Two things to see. In the float model the Linear layers are the largest block, so they are what int8 must make faster. (How large exactly? A profile is a measurement as well, and slows small operations more than large ones. So their share is measured a second time, with a clock around every Linear layer. Where the two disagree, trust neither to the last digits.) But what int8 does *not* touch stays: Amdahl's law. If a share $p$ of the time becomes $k$ times faster, the ratio of the new time to the old is
#
# $$\text{ratio} = (1 - p) + \frac{p}{k}$$
#
# And in the static model the products of attention are still float, although they are called `quantized::matmul`: the operation turns both sides into floats, multiplies, and quantizes the result. (That is a property of this operation, with every engine that we have profiled: x86, fbgemm, onednn, qnnpack. A CPU can multiply two int8 activations, and `torch._int_mm` of unit 03 does.) So those quantizers bring work, and no faster product:

# %% tags=["varies"]
left_codes, right_codes = (
    torch.quantize_per_tensor(torch.randn(8, 256, 64), 0.05, 128, torch.quint8) for _ in range(2)
)
inside = profiling.operation_times(
    lambda: torch.ops.quantized.matmul(left_codes, right_codes.transpose(1, 2), 0.5, 128)
)
print(
    "inside quantized::matmul:",
    sorted(key for key in inside if any(w in key for w in ("bmm", "quantize_per", "dequantize"))),
)

# %% [markdown]
# So the idea, **fused attention**: leave the core of attention in float, between int8 Linear layers, and give it to one fused kernel, `F.scaled_dot_product_attention` (section 1 of unit 01 used it as an oracle). It computes scores, mask, softmax and mix block by block, without ever storing the matrix of scores, and with `is_causal=True` it skips the part above
# the diagonal. `helpers.fused` is the course model with this one change.
#
# That change is no quantization at all: *float* gains by it, too. Whoever compares a fused int8 model with an unfused float model sells two changes as one. So the fused float model is in the table, too, and the fused model in bfloat16. Predictions first, from the shares above and from one Linear layer that is measured alone:

# %% tags=["varies"]
wide = nn.Linear(256, 1024)
rows = torch.randn(prefill.numel(), 256, generator=torch.Generator().manual_seed(8))
wide_int8 = int8.dynamic_int8(nn.Sequential(wide))
alone = measured({"float": lambda: wide(rows), "int8": lambda: wide_int8(rows)}, repeats=15, calls=12)
faster = 1 / alone["int8"].ratio if "int8" in alone else None  # no measurement, no prediction that needs it
p = statistics.median(linear_shares)  # by the clock
core = shares["float"]["attention products"] + shares["float"]["softmax, mask, scaling"]
predictions = {"float, fused attention": 1 - core / 2}
print(
    f"Linear layers are {p:.0%} of the float model's time; no int8 kernel for them brings the ratio below {1 - p:.2f}"
)
print(f"guess: fusing halves the attention core, {core:.0%} of the time (the half above the diagonal can be skipped)")
if faster is None:
    print("One Linear layer alone could not be timed: no prediction for the int8 models in this run.")
else:
    print(f"one Linear layer in int8: {faster:.1f} times as fast")
    predictions |= {"dynamic int8": (1 - p) + p / faster, "dynamic int8, fused": (1 - p) + p / faster - core / 2}
for name, ratio in predictions.items():
    print(f"predicted ratio to float: {ratio:.2f}  {name}")

# %% [markdown]
# Now measure. Each row differs from one above it by one change, which it names:


# %% tags=["varies"]
def run_with(name: str, model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Calls of `model` while the engine `name` is in use: the one that packed its weights."""

    def call(ids: Tensor) -> Tensor:
        with int8.using(name):
            return model(ids)

    return call


def core_in_pieces(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = True) -> Tensor:
    """What the fused kernel computes, in float, in several operations; the mask is causal."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (batch, heads, query, key)
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(dim=-1) @ v


static_float_core = copy.deepcopy(fused_static)  # the control: no quantizers inside attention, and no fused kernel
for block in static_float_core.blocks:
    block.attention.core = core_in_pieces


def engines_and_models() -> dict[str, Callable[[Tensor], Tensor]]:
    """Models by name; the last one with another engine, if this PyTorch has one that runs here."""
    models = {
        "float": course_model,
        "float, fused attention": fused_float,
        "bfloat16, fused attention": fused_half,
        "dynamic int8": int8.dynamic_int8(course_model),
        "static int8": static_model,
        "static int8, float core": static_float_core,
        "static int8, int8 residual": quantizable.static_int8(course_model, calibration, "int8"),
        "dynamic int8, fused": fused_dynamic,
        "static int8, fused": fused_static,
        "dynamic int8, fused, attention layers float": fused.dynamic_int8(
            course_model, keep=lambda name: "attention" in name
        ),
    }
    others = [name for name in int8.engines() if name == "onednn" and name != engine]
    if others:
        with int8.using(others[0]):
            packed = fused.dynamic_int8(course_model)
        models[f"dynamic int8, fused, engine {others[0]}"] = run_with(others[0], packed)
    return models


contestants = engines_and_models()
one_byte = held_out[:1, :1]
at_prefill = measured({name: functools.partial(m, prefill) for name, m in contestants.items()}, 9, threads=1)
at_one = measured({name: functools.partial(m, one_byte) for name, m in contestants.items()}, 11, threads=1, calls=4)
changes = {
    "float": "",
    "float, fused attention": "attention core: one kernel",
    "dynamic int8": "Linear layers int8, scales per call",
    "static int8": "scales calibrated, attention quantized",
    "static int8, int8 residual": "residual stream quantized, too",
    "dynamic int8, fused": "dynamic int8 + fused core",
    "bfloat16, fused attention": "fused, and half the bytes; no int8",
    "static int8, float core": "static int8 without quantizers inside attention",
    "static int8, fused": "float core: one kernel",
    "dynamic int8, fused, attention layers float": "smallest layers left in float",
}
tables.show(
    [
        {
            "model": name,
            "the change": changes.get(name, "engine"),
            "predicted": f"{predictions[name]:.2f}" if name in predictions else "",
            "time at prefill, 1 × 256": or_refused(at_prefill, name),
            "time for 1 byte": or_refused(at_one, name),
        }
        for name in contestants
    ]
)
with_int8_residual = frontier.bits_by_document(contestants["static int8, int8 residual"], held_out)
print(f"Δ of static int8:                {deltas['static int8']} bits per byte")
print(f"Δ of static int8, int8 residual: {intervals.paired_bootstrap(reference_bits, with_int8_residual)}")
print(f"the second minus the first:      {intervals.paired_bootstrap(bits_of['static int8'], with_int8_residual)}")

# %% [markdown]
# How to read it: rows of models, ratios to the float model, smaller is faster, intervals in brackets. Where the table says *not reported*, the times of this run scattered too much; then skip the question, or close other programs and run the cell again.
#
# - Compare *predicted* with measured. Slower than predicted: something was forgotten, such as conversions, or int8 layers of other shapes gain less. Faster than predicted: then the share $p$ was measured too small, or layers of other shapes gain more; a ratio below $1 - p$ says that $p$ is wrong, or that more than Linear layers has become faster.
# - An int8 *residual stream* (unit 04) takes conversions away. What it does to Δ is printed below the table, with the paired difference from the static model without it. Is its gain in time worth that?
# - *Leaving the smallest layers in float* is common advice. It helps where a layer is so small that the work around the product outweighs it (unit 03 found that size). The smallest layers here are 256 × 256, and the two columns may disagree: at one byte at a time there is hardly any product to gain on.
# - At *one byte* the whole comparison is another one: there time goes into calls, not into products. A ratio from one column says nothing about the other.
#
# Each row has its ratio to float. What *one step* changed is the ratio of two neighbours, and two intervals side by side do not tell it. So the steps are measured as pairs:

# %% tags=["varies"]
steps = [
    ("float", "float, fused attention", "one float kernel for attention"),
    ("float, fused attention", "dynamic int8, fused", "int8 Linear layers, both fused"),
    ("dynamic int8", "dynamic int8, fused", "one float kernel for attention"),
    ("static int8", "static int8, float core", "no quantizers inside attention"),
    ("static int8, float core", "static int8, fused", "one float kernel for attention"),
]
step_times = {}
for before, after, _ in steps:
    pair = {name: functools.partial(contestants[name], prefill) for name in (before, after)}
    if timing := measured(pair, 9, threads=1).get(after):
        step_times[before, after] = timing
tables.show(
    [
        {
            "from": before,
            "to": after,
            "the change": what,
            "time after / before": str(step_times.get((before, after), "not reported")),
        }
        for before, after, what in steps
    ]
)

# %% [markdown]
# Threads and batches change no code at all:


# %% tags=["varies"]
throughput = []
for threads in sorted({1, min(2, os.cpu_count() or 1)}):
    for batch in (1, 4) if threads == 1 else (4,):
        ids = held_out[:batch, :128]
        pair = {name: functools.partial(contestants[name], ids) for name in ("float", "dynamic int8, fused")}
        found = measured(pair, repeats=9, threads=threads)
        throughput.append(
            {"threads": threads, "batch": f"{batch} × 128"}
            | {
                f"{name}, bytes a second": f"{ids.numel() / found[name].p50:,.0f}" if name in found else "not reported"
                for name in pair
            }
            | {"time, int8 / float (95 %)": or_refused(found, "dynamic int8, fused")}
        )
tables.show(throughput)

# %% [markdown]
# The ratios in the last column are paired, turn by turn, and the harness refuses what scatters too much. The columns of bytes a second come from the medians of separate rows: on a busy or shared computer they may move from row to row for reasons that have nothing to do with threads. So compare *within* a row.
#
# The last candidate, `torch.compile`, turns a model into generated C++ code. It needs a C++ compiler and takes longer than this whole unit. Set `COMPILE = True` if you have both:

# %% tags=["varies"]
COMPILE = False
if COMPILE:
    compiled = torch.compile(contestants["float, fused attention"])
    print(measured({"float": lambda: course_model(prefill), "compiled": lambda: compiled(prefill)}, repeats=9))
else:
    print("torch.compile was skipped (COMPILE = False): nothing is claimed about it here.")

# %% [markdown]
# ### Was the aim reached?
#
# The candidate is the fused dynamic model, for its time and because it needs no calibration. ("Float" in the aim is the course's own, unfused model; the last line compares with the fused one.) Its Δ was not the reason, but it had been seen: the tables of section 5 are made of held-out documents, and whoever chooses from such a table has used them up a little. For a decision that matters, choose on validation documents and report once. The
# margin of 1 % was stated at the head of this section:

# %% tags=["varies"]
final = intervals.paired_bootstrap(reference_bits, bits_of["dynamic int8, fused attention"])
margin = 0.01 * reference_bits.mean().item()
smaller = metrics.file_bytes(course_model) / metrics.file_bytes(fused_dynamic)
print(f"files: {smaller:.2f} times smaller (aim: 3)")
print(f"Δ: {final} bits per byte, margin {margin:.4f}: {intervals.verdict(final, margin)}")
if fast := at_prefill.get("dynamic int8, fused"):
    times = [1 / edge for edge in (fast.ratio, fast.high, fast.low)]
    print(f"prefill: {times[0]:.2f} times as fast as float, interval {times[1]:.2f} to {times[2]:.2f} (aim: 2)")
    print(
        "the aim of speed is",
        "reached." if times[1] > 2 else "missed." if times[2] < 2 else "undecided: the interval holds 2.",
    )
else:
    print("prefill: the time scattered too much to be reported, so the aim of speed is undecided in this run.")
if against := step_times.get(("float, fused attention", "dynamic int8, fused")):
    print(
        f"against the *fused* float model: {1 / against.ratio:.2f} times as fast, interval {1 / against.high:.2f} to {1 / against.low:.2f}"
    )

# %% [markdown]
# *Look back.* Which change moved the needle? The table of steps answers it, one change a row: what int8 Linear layers brought by themselves (both models fused), what one kernel for attention brought (to float, to dynamic int8, to static int8), and what it brought to take the quantizers out of attention, and nothing else. One of the three is quantization, one is none at all, and one is *less* of it. (If one int8 layer alone was slower than float, as with an engine that was not written for your processor, the prediction has already told you that nothing built from it can win.) The lines above say whether it sufficed on *your* machine, and the sentence for a report is as long as this: the number, its interval, the machine, the engine,
# the threads, the shape, and *which float* it was compared with.
#
# ## 9. A real pretrained model
#
# The course model is ours from the first byte to the last. What of a model that somebody else has trained? `helpers.pretrained.compare` takes any encoder in the Hugging Face format, by name or folder: config, tokenizer, weights as safetensors (never a pickle: unit 01). It quantizes Linear layers and embeddings dynamically, and judges by *retrieval* over
# Python's own documentation: an encoder turns every text into a vector, and the passage whose vector has the largest cosine with the question's is the answer.
#
# | measure | meaning |
# |---|---|
# | recall@1 | share of questions whose own passage comes first |
# | MRR, mean reciprocal rank | mean of 1 / rank of the own passage: 1 if first, 1/2 if second … |
# | mean cosine to float | how far the vectors themselves have turned; 1 is not at all |
# | share in int8 | of all parameters. Whatever hides its weights from the quantizer, such as `nn.MultiheadAttention`, stays float *silently*; so count |
#
# A cosine of 0.999 sounds like proof, and is none: it is flips (section 1) that change answers. So recall is compared pairwise.
#
# Set `PRETRAINED` to a name (with a network) or a folder. Without it, a tiny encoder with *random* weights is made, saved in the same format, and loaded by the same code. It knows nothing of meaning and finds what it finds by equal words, which is little: good for testing the path, worthless for judging quantization of real models. (Neither works without the package `transformers`; then the cell says so.)


# %% tags=["varies"]
PRETRAINED = os.environ.get("COURSE_PRETRAINED", "")  # such as "sentence-transformers/all-MiniLM-L6-v2", or a folder


def pretrained_report(name_or_folder: str) -> None:
    """Quantize, evaluate, and show; says which model it was."""
    tasks = pretrained.documentation_tasks(passages=60)
    with tempfile.TemporaryDirectory() as folder:
        if not name_or_folder:
            pretrained.save_tiny(Path(folder), [passage for task in tasks for passage in task.passages])
        report = pretrained.compare(name_or_folder or folder, tasks)
    print(
        "Used:",
        f"the pretrained model {name_or_folder}"
        if name_or_folder
        else "the TINY model with random weights (no pretrained one)",
    )
    print(
        f"share of the parameters in int8: {report.share:.1%}; files {report.float_bytes / report.int8_bytes:.2f} times smaller"
    )
    rows = []
    for task in tasks:
        before, after = report.ranks[task.name]
        rows.append(
            {
                "task": f"{task.name} ({len(before)})",
                "recall@1 float": f"{pretrained.recall_at_1(before):.3f}",
                "recall@1 int8": f"{pretrained.recall_at_1(after):.3f}",
                "flips, lost / won": f"{int(((before == 1) & (after > 1)).sum())} / {int(((before > 1) & (after == 1)).sum())}",
                "MRR, int8 - float (95 % interval)": str(intervals.paired_bootstrap(1 / before, 1 / after)),
                "mean cosine to float": f"{report.cosine[task.name]:.4f}",
            }
        )
    tables.show(rows)


try:
    pretrained_report(PRETRAINED)
except pretrained.Unavailable as reason:
    print("No pretrained model was used:", reason)

# %% [markdown]
# *Look back.* If the output above says that a tiny model or none was used, then this section has shown you a procedure and no result, and its numbers belong in no report. Mind this even if one of its intervals leaves out 0: a model that knows nothing has nothing to lose, and where almost every question fails, MRR moves with ranks far down the list. Next to nothing in recall, a cosine near 1, and a tidy interval: all three look good in a table, and none of them says that the model is. With a real one, read in this order: the share in int8, the flips, the interval; the cosine last.
#
# %% [markdown]
# ## 10. Read a published table
#
# PyTorch's tutorial on dynamic quantization of BERT was read for years, and then deleted, together with the other tutorials on eager quantization, in July 2025 (pull request 3432 of `pytorch/tutorials`). Its task is MRPC (Microsoft Research Paraphrase Corpus), 408 pairs of sentences: do both say the same? The pairs that do are the *positive* ones. A classifier's answers fall into four counts: *hits* (positive, and said so), *misses* (positive, not found), *false alarms* (said so, but not positive), and the rest, rightly left alone. **F1** ignores the rest:
#
# $$F_1 = \frac{2 \cdot \text{hits}}{2 \cdot \text{hits} + \text{false alarms} + \text{misses}}$$
#
# It is 1 if every positive pair is found without a false alarm. By hand: 6 hits, 2 misses, 2 false alarms: $12 / 16 = 0.75$. The tutorial's result, F1 before and after:
#
# | precision | F1 | size | 1 thread |
# |---|---|---|---|
# | FP32 | 0.9019 | 438 MB | 160 s |
# | INT8 | 0.902 | 181 MB | 90 s |
#
# The sentence right below the table says, in our words, that F1 is 0.6 % lower after quantization. (Both read in `intermediate_source/dynamic_quantization_bert_tutorial.rst`.) One document, two claims: no loss, and a loss of 0.6 %. Which is right?
#
# Begin with arithmetic. What would 0.6 % lower be? *Per cent of the score*, or *percentage points*, a common confusion; neither fits the table:

# %%
f1_before, f1_after, pairs = 0.9019, 0.902, 408
print(f"table:                    {f1_after - f1_before:+.4f}, INT8 at {f1_after}")
print(f"0.6 % of the score:       {-0.006 * f1_before:+.4f}, INT8 at {f1_before * (1 - 0.006):.4f}")
print(f"0.6 percentage points:    {-0.006:+.4f}, INT8 at {f1_before - 0.006:.4f}")
print("largest error of rounding in the table:", 0.00005 + 0.0005)

# How many answers is that? All counts with 68 % positive pairs (the tutorial's own number) that give this F1:
possible = []
for positives in range(round(0.675 * pairs), round(0.685 * pairs) + 1):
    for hits in range(positives + 1):
        for false_alarms in range(pairs - positives + 1):
            f1 = 2 * hits / (hits + positives + false_alarms)
            if round(f1, 4) == f1_before:
                possible.append((hits, false_alarms, positives - hits))
steps = [2 * (h + 1) / (2 * h + 2 + fa + fn - 1) - 2 * h / (2 * h + fa + fn) for h, fa, fn in possible]
print(
    f"\n{len(possible)} sets of counts give F1 = {f1_before}; one more pair found moves F1 by {min(steps):.4f} to {max(steps):.4f}"
)


def f1_errors(counts: tuple[int, int, int], resamples: int = 2000) -> float:
    """Standard error of F1 when the 408 pairs are drawn again."""
    shares = np.array([*counts, pairs - sum(counts)]) / pairs
    hits, false_alarms, missed, _ = np.random.default_rng(0).multinomial(pairs, shares, size=resamples).T
    return float((2 * hits / (2 * hits + false_alarms + missed)).std(ddof=1))


errors_of_f1 = [f1_errors(counts) for counts in (possible[0], possible[len(possible) // 2], possible[-1])]
print(f"standard error of F1 by bootstrap: {min(errors_of_f1):.4f} to {max(errors_of_f1):.4f}")
print(f"of a share of right answers, 0.9019 of 408: {(f1_before * (1 - f1_before) / pairs) ** 0.5:.4f}")

# %% [markdown]
# So the sentence cannot be about this table: not even rounding can bridge the gap. And the table's whole difference is smaller than what a *single* pair moves. Either no answer changed, and the second score is only printed with one digit less (0.9019 rounds to 0.902); or some changed and cancelled out. Which of the two, the table does not say.
#
# But perhaps 0.6 % is what dynamic quantization *typically* costs on such a task, and these 408 pairs were lucky? Can the table exclude it? For that one needs the interval of the *difference*. Both models answered the same pairs, so what counts is not how restless each score is, but how many answers *changed*. The table does not say. That is the number
# to ask the authors for.
#
# ### Exercise 5.10: judge the claim
# *Difficulty 3 of 5 · 30 minutes · 2 points*
#
# Treat the score as a share of $n$ answers that are right (the cell above shows how near that is for this F1). Let $d$ be the difference after − before, and $m$ the number of answers that changed from right to wrong or from wrong to right. Each answer contributes −1, 0 or +1 to the difference, $m$ of them not 0. The interval, with Agresti's and Min's addition of half an
# answer to each of the four cells (right or wrong, before and after), which keeps it honest when $m$ is 0:
#
# $$n' = n + 2, \qquad d' = \frac{n d}{n'}, \qquad q' = \frac{m + 1}{n'}, \qquad d' \pm 1.96 \sqrt{\frac{q' - d'^2}{n'}}$$
#
# $q'$ is the share of changed answers. A claim of "$c$ per cent lower" means the change $\delta = -\frac{c}{100} \cdot$ before.
#
# How many answers does it take to tell the claim from 0? Suppose that the claim is true. Then the mean of the contributions is $\delta$, and no longer the $d'$ that was observed; so their variance, the mean of the squares minus the square of the mean, is $q' - \delta^2$, and the standard error of a new study's difference is $\sqrt{(q' - \delta^2) / n}$. The new difference scatters around $\delta$. If $\delta$ were 1.96 standard errors away from 0, every second study would find a difference nearer to 0, and an interval that holds 0: a *power* of 50 %. For 80 %, four studies of five, $\delta$ must be $1.96 + 0.84$ standard errors away, because 80 % of a normal distribution lie below 0.84. That takes
#
# $$n_{\text{needed}} = \max\left(1,\ \left\lceil \frac{(1.96 + 0.84)^2\, (q' - \delta^2)}{\delta^2} \right\rceil\right)$$
#
# answers, if they change at the same rate. (It is a plan for real answers, so it counts $n$; the two added ones of $n'$ are left out.)
#
# By hand, small numbers: 98 answers, 49 right before and 42 after, so $d = -7/98$; 8 became wrong and 1 right, $m = 9$; the claim is 10 % lower. $n' = 100$, $d' = -0.07$, $q' = 0.1$, half width $1.96 \sqrt{(0.1 - 0.0049) / 100} = 0.060$: interval −0.130 to −0.010. The claim means $\delta = -0.05$: inside, so it can be right; 0 is outside, so "no loss" cannot.
# Needed: $7.84 \cdot (0.1 - 0.0025) / 0.0025 = 305.8$, 306 answers.


# %%
class Judgement(NamedTuple):
    """What a table of two scores can say about a claim."""

    claimed: float  # the claim as a change of the score: negative, if it is a loss
    low: float  # 95 % interval of the difference after - before
    high: float
    no_loss_possible: bool  # 0 is inside of the interval (its bounds included)
    claim_possible: bool  # the claimed change is
    needed: int  # answers that tell the claim from no change, in four studies of five


# %% nbgrader={"grade": false, "grade_id": "ex_5_10", "locked": false, "schema_version": 3, "solution": true, "task": false}
def judge_claim(before: float, after: float, percent_lower: float, n: int, changed: int) -> Judgement:
    """Judge "the score is so many per cent lower" by a table of paired scores.

    Parameters
    ----------
    before, after : float
        Shares of right answers, 0 to 1, of two models on the same questions.
    percent_lower : float
        The claim, in per cent *of the score before*; greater than 0.
    n : int
        Questions.
    changed : int
        Answers that were right and became wrong, or the other way round: 0 to n. At least |after - before| · n, up to the
        rounding of the scores; this need not be checked.

    Returns
    -------
    Judgement
        Python's own floats, bools and an int.

    Example
    -------
    >>> judge_claim(49 / 98, 42 / 98, 10.0, n=98, changed=9).needed
    306
    """
    ### BEGIN SOLUTION
    claimed = -percent_lower / 100 * before
    total = n + 2
    center, rate = (after - before) * n / total, (changed + 1) / total
    half = 1.96 * math.sqrt((rate - center**2) / total)
    low, high = center - half, center + half
    needed = max(1, math.ceil((1.96 + 0.84) ** 2 * (rate - claimed**2) / claimed**2))
    return Judgement(claimed, low, high, low <= 0 <= high, low <= claimed <= high, needed)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_5_10_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 5.10: run this cell.
import math

import numpy as np

from helpers import checks


@checks.isolated
def check_ex_5_10() -> None:
    def pseudo(before: float, after: float, n: int, changed: int) -> tuple[float, float]:
        """Mean and variance of single answers' changes, counted one by one: n answers and half a one in each of four cells."""
        net = (after - before) * n
        worth = np.array([1.0, -1.0, 0.0])
        count = np.array([(changed + net) / 2 + 0.5, (changed - net) / 2 + 0.5, n - changed + 1.0])
        center = float((worth * count).sum() / count.sum())
        return center, float(((worth - center) ** 2 * count).sum() / count.sum())

    def expected(before: float, after: float, percent: float, n: int, changed: int) -> dict:
        center, variance = pseudo(before, after, n, changed)
        half, delta = 1.96 * (variance / (n + 2)) ** 0.5, before * percent / 100
        smallest = 1  # by search: double, then halve
        rate = variance + center**2
        enough = lambda k: 2.8**2 * (rate - delta**2) <= delta**2 * k * (1 + 1e-12)  # noqa: E731
        while not enough(smallest):
            smallest *= 2
        low = smallest // 2
        while smallest - low > 1:
            middle = (low + smallest) // 2
            low, smallest = (low, middle) if enough(middle) else (middle, smallest)
        return {
            "claimed": -delta,
            "low": center - half,
            "high": center + half,
            "half": half,
            "needed": max(smallest, 1),
        }

    def judge(title: str, *table: float) -> None:
        before, after, percent, n, changed = table
        got = judge_claim(before, after, percent, n, changed)
        checks.given(got, "your judgement")
        assert isinstance(got, tuple) and len(got) == 6, "return a Judgement with its six fields."
        fields = "claimed", "low", "high", "no_loss_possible", "claim_possible", "needed"
        assert getattr(got, "_fields", None) == fields, (
            f"return a Judgement, whose fields have names ({', '.join(fields)}), and not a bare {type(got).__name__}."
        )
        for name, value, kind in zip(
            ("claimed", "low", "high", "no_loss_possible", "claim_possible"),
            got,
            (float, float, float, bool, bool),
            strict=False,
        ):
            assert type(value) is kind, f"{name} should be a {kind.__name__}, and is a {type(value).__name__}."
        right = expected(*table)
        checks.number(got[0], right["claimed"], f"{title}: claimed", mistakes={
            "that is percentage points. The claim is per cent of the score before: multiply by it.": -percent / 100,
            "it has the wrong sign: lower is negative.": -right["claimed"],
            "it is not divided by 100.": -percent * before,
            "it is the score itself; the change is asked for.": before * (1 - percent / 100),
            "the claim refers to the score before, not after.": -percent / 100 * after,
        })  # fmt: skip
        width = (float(got[2]) - float(got[1])) / 2
        d, q = after - before, changed / n
        single = lambda s, k: 1.96 * (s * (1 - s) / k) ** 0.5  # noqa: E731
        for sentence, wrong in {
            "it is the interval of one score. Whether the other score lies in it does not say how sure their difference is.": single(
                before, n
            ),
            "it is the interval of one score, the one after.": single(after, n),
            "it treats the two scores as unpaired, as if each model had answered questions of its own. Only changed answers count.": (
                single(before, n) ** 2 + single(after, n) ** 2
            )
            ** 0.5,
            "without the half answers the interval is the plain normal one, which is too narrow (and 0 wide if nothing changed).": 1.96
            * (max(q - d * d, 0) / n) ** 0.5,
            "the n is wrong: divide by the number of all questions, not by that of the changed answers.": 1.96
            * (max((changed + 1) / (n + 2) - d * d, 0) / max(changed, 1)) ** 0.5,
            "the n is wrong: there are two answers to each question, but only one difference.": right["half"] / 2**0.5,
            "the variance is not divided by n': that is the spread of one answer, not of the mean.": right["half"]
            * (n + 2) ** 0.5,
            "it takes m changed answers, not m + 1: two of the four half answers are changed ones.": 1.96
            * (max(changed / (n + 2) - (d * n / (n + 2)) ** 2, 0) / (n + 2)) ** 0.5,
            "it takes d, not d': the difference, too, is divided by n + 2.": 1.96
            * (max((changed + 1) / (n + 2) - d * d, 0) / (n + 2)) ** 0.5,
            "the root is missing.": (right["half"] / 1.96) ** 2 * 1.96,
            "it is one standard error; 95 % takes 1.96 of them.": right["half"] / 1.96,
        }.items():
            assert not math.isclose(width, wrong, rel_tol=1e-6, abs_tol=1e-12) or math.isclose(
                width, right["half"], rel_tol=1e-6
            ), f"{title}: the half width is wrong: {sentence}"
        for name, value in (("low", got[1]), ("high", got[2])):
            checks.number(
                value,
                right[name],
                f"{title}: {name}",
                rtol=1e-6,
                mistakes={
                    "it is cut off at -1 or 1: the formula cuts nothing off.": max(-1.0, min(1.0, right[name])),
                    "the bounds are swapped.": right["high" if name == "low" else "low"],
                    "the difference has the wrong sign: it is after - before.": -right[
                        "high" if name == "low" else "low"
                    ],
                    "the middle is d instead of d' = n d / n'.": d + right[name] - d * n / (n + 2),
                },
            )
        inside = (right["low"] <= 0 <= right["high"], right["low"] <= right["claimed"] <= right["high"])
        assert bool(got[3]) == inside[0], (
            f"{title}: no_loss_possible should be {inside[0]}: is 0 inside of the interval of the difference?"
        )
        assert bool(got[4]) == inside[1], (
            f"{title}: claim_possible should be {inside[1]}: is the claimed change inside of the interval?"
        )
        assert type(got[5]) is int, (
            f"`needed` should be a whole number (int), and is a {type(got[5]).__name__}: half a question cannot be asked."
        )
        assert got[5] >= 1, (
            f"{title}: `needed` is {got[5]}, and no number of answers is smaller than 1: take the maximum."
        )
        assert got[5] != right["needed"] - 1, (
            f"{title}: `needed` should be rounded up: {right['needed'] - 1} are not quite enough."
        )
        middle, rate, delta = d * n / (n + 2), (changed + 1) / (n + 2), right["claimed"]
        count = lambda share, size, z2=2.8**2, below=delta: float(  # noqa: E731
            max(1, np.ceil(z2 * (share - size**2) / below**2)) if below else -1
        )
        checks.number(got[5], right["needed"], f"{title}: needed", rtol=1e-9, mistakes={
            "with 1.96 alone, every second study would miss a claim that is true (a power of 50 %): add the 0.84.": count(rate, delta, 1.96**2),
            "1.96 and 0.84 are squared one by one: add them, then square the sum.": count(rate, delta, 1.96**2 + 0.84**2),
            "the sum 1.96 + 0.84 is not squared.": count(rate, delta, 2.8),
            "it takes 1.64 for 1.96: that is the number of a one-sided test, and the interval is two-sided.": count(rate, delta, (1.64 + 0.84) ** 2),
            "it subtracts the square of d'. The claim's own size δ belongs there: the question is how many answers tell the claim from 0.": count(rate, middle),
            "it is the number for the measured difference d'; for the claim put δ in both places.": count(rate, middle, below=middle),
            "it divides by the square of d'. The claim's own size δ belongs there.": count(rate, delta, below=middle),
            "it takes the share m / n of changed answers instead of q'.": count(changed / n, delta),
            "the square of δ is not subtracted from q'.": count(rate, 0.0),
        })  # fmt: skip

    def nudged(x: float) -> list[float]:
        """`x` and its neighbours among the floats, the nearest first."""
        return sorted((x + k * math.ulp(x) for k in range(-60, 61)), key=lambda y: abs(y - x))

    def judge_bounds(before: float, after: float, n: int, changed: int, level: float, jump: int) -> int:
        """A claim that lies exactly on a bound, and a bound that is exactly 0, as your function computes them."""
        found = 0
        for edge in (1, 2):
            bound = judge_claim(before, after, 10.0, n, changed)[edge]
            for percent in nudged(-100 * bound / before):
                got = judge_claim(before, after, percent, n, changed)
                if got[0] == got[edge]:
                    found += 1
                    assert got[4] is True, (
                        f"judge_claim({before}, {after:.6g}, {percent:.6g}, {n}, {changed}): the claimed change is exactly a bound of your interval, and claim_possible should be True: bounds are included (<=)."
                    )
                    break
        for sign, edge in (
            (1, 1),
            (-1, 2),
        ):  # 49 t more (or fewer) right ones of 2,401 - 2, and 625 t² + (t² - 1) changed
            start = level + sign * 49 * jump / 2399
            for score in nudged(start):
                got = judge_claim(level, score, 1.0, 2399, 626 * jump**2 - 1)
                if got[edge] == 0:
                    found += 1
                    assert got[3] is True, (
                        f"judge_claim({level}, {score:.6g}, 1.0, 2399, {626 * jump**2 - 1}): a bound of your interval is exactly 0, and no_loss_possible should be True: bounds are included (<=)."
                    )
                    break
        return found

    with checks.check(
        "5.10", "paired, with the right n, in per cent of the score: and the table cannot decide what it claims"
    ):
        judge("the example", 49 / 98, 42 / 98, 10.0, 98, 9)
        judge("the tutorial, if 8 answers changed", 0.9019, 0.902, 0.6, 408, 8)
        judge("the tutorial, if 40 answers changed", 0.9019, 0.902, 0.6, 408, 40)
        judge("nothing changed", 0.9, 0.9, 1.0, 200, 0)
        judge("a perfect score before", 1.0, 0.97, 3.0, 100, 3)
        judge("a score that rose", 0.5, 0.55, 4.0, 1000, 120)
        judge("a claim that is too small", 0.9, 0.7, 1.0, 500, 120)
        judge("a claim that is easy to see", 0.9, 0.9, 50.0, 200, 0)
        judge("two questions, both wrong afterwards", 1.0, 0.0, 50.0, 2, 2)
        judge("two questions, both right afterwards", 0.25, 1.0, 50.0, 2, 2)
        judge("a claim of next to nothing", 0.9, 0.9, 0.01, 1000, 40)
        judge_bounds(0.5, 42 / 98, 98, 9, 0.25, 1)
    ### BEGIN HIDDEN TESTS
    for table in [
        (0.31, 0.29, 7.0, 5000, 400),
        (1.0, 0.0, 30.0, 3, 3),
        (0.0625, 1.0, 30.0, 3, 3),
        (0.8, 0.8, 0.007, 900, 60),
        (0.62, 0.62, 0.2, 50, 0),
        (0.97, 1.0, 2.0, 100, 3),
        (0.75, 0.5, 40.0, 40, 14),
        (0.902, 0.9019, 0.6, 408, 21),
        (0.8, 0.6, 1.0, 1000, 300),
        (0.9, 0.7, 1.0, 500, 120),
        (0.95, 0.95, 60.0, 300, 1),
        (0.4, 0.46, 5.0, 900, 90),
    ]:
        got, right = judge_claim(*table), expected(*table)
        assert all(abs(float(a) - right[k]) < 1e-9 for a, k in zip(got[:3], ("claimed", "low", "high"), strict=True)), (
            "a wrong interval."
        )
        assert bool(got[3]) == (right["low"] <= 0 <= right["high"]), "a wrong verdict on no loss."
        assert bool(got[4]) == (right["low"] <= right["claimed"] <= right["high"]), "a wrong verdict on the claim."
        assert type(got[5]) is int and got[5] == right["needed"], "a wrong number of answers."
        assert [getattr(got, k) for k in ("claimed", "high", "needed")] == [got[0], got[2], got[5]], "no Judgement."
        assert [type(x) for x in got[:5]] == [float] * 3 + [bool] * 2, "wrong types."
    judge_bounds(0.75, 0.5, 40, 14, 0.5, 1)
    judge_bounds(0.9, 0.85, 200, 12, 0.125, 1)
    rng = np.random.default_rng(510)
    caught = 0
    for _ in range(400):  # the truth: 6 % of the answers become wrong, 3 % become right
        draw = rng.random(300)
        net, moved = (
            int((draw > 0.97).sum()) - int((draw < 0.06).sum()),
            int((draw > 0.97).sum()) + int((draw < 0.06).sum()),
        )
        got = judge_claim(0.8, 0.8 + net / 300, 1.0, 300, moved)
        caught += bool(got[1] <= -0.03 <= got[2])
    assert 0.92 <= caught / 400 <= 0.985, f"the interval holds the truth in {caught / 400:.0%} of experiments."
    ### END HIDDEN TESTS


check_ex_5_10()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Write the formulas down in the order in which they stand: n', d', q', the half width. No square root of a score is needed anywhere.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `claimed` is negative, and its square is not: `needed` uses `claimed**2` twice, and the square of 1.96 + 0.84. `math.ceil` returns a whole number.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `rate = (changed + 1) / (n + 2)`; `half = 1.96 * math.sqrt((rate - center**2) / (n + 2))`; `needed = max(1, math.ceil((1.96 + 0.84)**2 * (rate - …) / …))`; a number is inside if `low <= it <= high`.
# </details>

# %% [markdown]
# ### The verdict
#
# How many answers changed is unknown. So go through what is plausible, from none to one in ten. (`judge_claim` is yours: solve 5.10 first. The check has compared it with counts one by one.)

# %%
tables.show(
    [
        {
            "answers changed": changed,
            "interval of the difference": f"{row.low:+.4f} to {row.high:+.4f}",
            "no loss can be right": row.no_loss_possible,
            "0.6 % lower can be right": row.claim_possible,
            "pairs needed to tell": f"{row.needed:,}",
        }
        for changed in (0, 2, 4, 8, 16, 40)
        for row in [judge_claim(f1_before, f1_after, 0.6, pairs, changed)]
    ]
)

# %% [markdown]
# Does the last column keep its promise? Suppose that the claim is true, and simulate studies: answers change at the rate of the row, and the losses exceed the gains by 0.6 % of the score. How many studies have an interval that leaves out 0?

# %%
dice = np.random.default_rng(58)
rows = []
for changed in (2, 8, 40):
    plan = judge_claim(f1_before, f1_after, 0.6, pairs, changed)
    rate = (changed + 1) / (pairs + 2)
    shares = [(rate - plan.claimed) / 2, (rate + plan.claimed) / 2, 1 - rate]  # lost, gained, the same
    row = {"answers changed": changed}
    for what, answers_asked in (("half of `needed`", plan.needed // 2), ("`needed`", plan.needed)):
        studies = dice.multinomial(answers_asked, shares, size=1000)
        shown = sum(
            judge_claim(
                f1_before, f1_before + (gained - lost) / answers_asked, 0.6, answers_asked, int(lost + gained)
            ).high
            < 0
            for lost, gained, _ in studies.tolist()
        )
        row[f"{what}: answers"] = f"{answers_asked:,}"
        row[f"{what}: studies that leave out 0"] = f"{shown / 1000:.0%}"
    rows.append(row)
tables.show(rows)

# %% [markdown]
# *Look back.* As a report on *these* 408 pairs, the sentence contradicts the table, and the table is the one that can be right. As a statement about the *method*, hardly anything can be concluded: 0 is inside in every row, and as soon as a few answers have changed, a loss of 0.6 % is inside as well. Both claims can then be right, and the table supports neither against the other. The last
# column of the first table is what an honest author would have had to collect, to see a loss of 0.6 % in four studies of five; with about half as many it is a throw of a coin. Three numbers would have made the table useful: how many answers changed, in which direction, and the interval.
#
# ## 11. Where you stand

# %%
checks.show_progress("5", 10)

# %% [markdown]
# ### Key takeaways
#
# - **Distances find candidates, answers decide.** SQNR sees energy, KL sees probabilities, flips see what a user sees; equal accuracy may hide many flips. *Check:* 5.1, 5.2 and the controls of section 1.
# - **Pair, draw documents, state the margin first.** Differences by document are much calmer than scores; whole documents are the witnesses. *Check:* 5.3 and the coverage table of section 2.
# - **For right or wrong, count what changed, and throw exact coins.** McNemar's test needs independent questions; fewer than six flips never reach 0.05, and for few flips the chi-square approximation without correction announces too much. *Check:* 5.4 and the cell before it.
# - **File, bits per weight and peak memory are three questions.** Packed weights are no parameters, and a peak needs a process of its own. *Check:* 5.5.
# - **A stopwatch goes there and back, warms up, takes medians, and refuses.** Alternating alone cancels no effect of the order. *Check:* 5.6 and the simulated computers of section 4.
# - **The roofline tells what int8 could gain**: where operations count, the distance of the roofs; where bytes count, the ratio of the bytes, as long as both come from the same memory. *Check:* the figure of section 4.
# - **Nobody is "the best"; many are dominated.** A frontier needs no weights between bytes and bits, but it needs intervals, equal points, and no nan. Which of two is better says the interval of their *difference*, and no overlap. *Check:* 5.7, the paired table and the share of draws in section 5.
# - **A calibration set is a lot that was drawn.** Draw disjoint ones, repeat, report the spread; and never let test text into them. More documents give agreement, not always quality. *Check:* the table of section 6.
# - **Spend bytes where they take away most loss for a byte**, look losses up by name, and compare with uniform, reversed and random. *Check:* section 7.
# - **Predict, then measure, one change at a time.** What int8 does not touch stays: Amdahl. A kernel with "quantized" in its name may compute in float: profile. *Check:* section 8.
# - **Say which float you compare with.** Fusing helps both sides. *Check:* the table of steps in section 8, and the last line of "Was the aim reached?".
# - **Equal scores are not equal models, and a difference without the number of changed answers has no interval.** A plan for a study needs its power: an interval as wide as the loss finds it in every second study. *Check:* 5.10 and the simulated studies.
#
# ### When not to
#
# When the decision does not depend on it, do not measure at all: a model that fits, is fast enough, and loses nothing visible at int8 needs no frontier of forty configurations. When documents are few, do not compare configurations that are close; get more documents. When the machine is shared, do not report times; the harness refuses for a reason. And do
# not allocate bits layer by layer unless you can also *run* a file of mixed widths: in this unit, everything below 8 bits was simulated.
#
# ### References
#
# - Efron 1979, "Bootstrap Methods: Another Look at the Jackknife", The Annals of Statistics 7: the bootstrap.
# - Efron 1981, "Nonparametric standard errors and confidence intervals", The Canadian Journal of Statistics 9; Efron 1982, "The Jackknife, the Bootstrap and Other Resampling Plans", SIAM: the percentile interval.
# - McNemar 1947, "Note on the sampling error of the difference between correlated proportions or percentages", Psychometrika 12: the test of 5.4.
# - Williams, Waterman and Patterson 2009, "Roofline: An Insightful Visual Performance Model for Multicore Architectures", Communications of the ACM 52: the roofline.
# - Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine 24: the interval of 5.10.
# - Miller 2024, "Adding Error Bars to Evals" ([arXiv:2411.00640](https://arxiv.org/abs/2411.00640)): paired differences, clusters, how many questions one needs.
# - Dutta and others 2024, "Accuracy is Not All You Need" ([arXiv:2407.09141](https://arxiv.org/abs/2407.09141)): flips and KL.
# - Dao and others 2022, "FlashAttention" ([arXiv:2205.14135](https://arxiv.org/abs/2205.14135)): attention without storing its scores.
# - Amdahl 1967, "Validity of the single processor approach to achieving large scale computing capabilities", AFIPS: what stays when one part gets faster.
#
# *The sheriff has his proof. It is no single number but a page: what was measured, on which machine, against whom, and how sure it is. He had hoped to catch a boaster. Instead he has learned to ask, and the outlaws of Sherwood find that a table with honest bars wins more quarrels than a longbow.*
