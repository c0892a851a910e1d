# %% [markdown]
# # Transformer basics
#
# Build a Transformer from numbers that you can check by hand, meet the trained model of this course, make its file more than
# three times smaller, and measure what that cost.
#
# | At a glance | |
# |---|---|
# | **You will** | write attention, masks, heads, positions and a block; measure a language model in bits per byte; count its bytes; quantize it to int8, save it safely and load it again |
# | **You need** | unit 00, Python, matrix products; PyTorch only as far as the examples show it |
# | **Time** | about 2½ hours; sections 1 to 5 and 6 to 9 make two good sittings |
# | **Graded** | 9 exercises, 19 points |
#
# *Dr. Frankenstein has made a mind. It reads, and it guesses what comes next. It also fills every shelf of the laboratory,
# and the landlord has asked about the electricity. Tonight the doctor wants to know what, exactly, all that room is
# used for.*

# %%
import math
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import checks, data, describe, errors, int8, known_warnings, metrics, plots
from helpers.checkpoint import COURSE_MODEL, load_card, load_course_model
from helpers.models import ModelConfig, TransformerLM

known_warnings.hide()
engine = int8.choose_engine()

# %% [markdown]
# ## 1. Attention: whom do I look at?
#
# To guess the next letter of `for i in range(` one has to look back: at the word before, at the last bracket, at the name
# of the loop variable. A Transformer that writes text looks back with **attention**: every position asks a question of itself
# and of the positions before it, and mixes what they answer.
#
# Below is a real example. The model that this course trained (you meet it properly in section 6) reads one line, byte by
# byte. Each row is a position that asks, each column a position it may look at, and the colour says how much it looks.
# Find the last row of a head, the colon: which letters matter to it? White is what must not be seen: the future.

# %%
model = load_course_model()

line = "def area(width, height):"
ids = data.encode(line)[None]  # [None] adds a dimension: a batch of one text, (1, 24)
maps = model.attention_maps(ids)  # for each block one tensor (batch, heads, query, key)
letters = [letter if letter != " " else "␣" for letter in line]

fig, axes = plots.figure(columns=2, width=10, height=4.6)
for ax, (block, head) in zip(axes, [(0, 0), (1, 0)], strict=True):
    seen = maps[block][0, head].masked_fill(torch.ones(len(line), len(line)).triu(1).bool(), torch.nan)
    plots.heat_map(ax, seen.numpy(), letters, letters, f"block {block}, head {head}")
    ax.set_xlabel("looks at")
axes[0].set_ylabel("position that asks")
plots.show(
    fig,
    caption="What two attention heads of the trained model look at. The left one keeps coming back to the bracket and the comma, the right one "
    "mostly stays with the last letters of the current word.",
    alt="Two heat maps of 24 by 24 letters, white above the diagonal. In each head most rows put their weight on "
    "a few earlier letters: in the left one many rows share the columns of the bracket and the comma, in the right one the "
    "bright cells stay near the diagonal.",
)

# %% [markdown]
# How does a position decide? Each position has a vector of numbers that says what it holds. Three learned Linear layers (a
# matrix product and an added bias each) compute three new vectors from it:
#
# - a **query** $q$: what am I looking for?
# - a **key** $k$: what do I have to offer?
# - a **value** $v$: what do I answer?
#
# The match of a query and a key is their dot product. The matches of one query are scaled, turned into weights that sum to
# one by a softmax, and used to average the values:
#
# $$\text{attention}(Q, K, V) = \text{softmax}\!\left(\frac{Q K^\top}{\sqrt{d}}\right) V$$
#
# $Q$ holds a query in each row, $K$ and $V$ a key and a value in each row, and $d$ is the length of a query. Why divide by
# $\sqrt d$? A dot product of $d$ pairs of independent random numbers of size 1 has size $\sqrt d$. Undivided, the softmax of
# a wide model puts most of its weight on one position, and the gradient that training needs, $w (1 - w)$ for a weight $w$,
# shrinks:

# %%
generator = torch.Generator().manual_seed(0)
for d in (4, 64, 1024):
    matches = (
        torch.randn(200, d, generator=generator) @ torch.randn(16, d, generator=generator).T
    )  # (query 200, key 16)
    print(f"d = {d}: matches of size {matches.std():.1f}")
    for name, scaled in (("undivided", matches), ("divided", matches / math.sqrt(d))):
        largest = scaled.softmax(dim=-1).amax(dim=-1)  # (query,)
        gradient = (largest * (1 - largest)).mean()
        print(f"  {name:9} the largest of 16 weights is {largest.mean():.2f}, its gradient {gradient:.2f}")

# %% [markdown]
# By hand, with one query, two keys and $d = 2$:

# %% tags=["nbval-check-output"]
q = torch.tensor([1.0, 0.0])
keys = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
values = torch.tensor([[10.0], [20.0]])

scores = keys @ q  # (2,): one match a key
weights = (scores / math.sqrt(2)).softmax(dim=0)
print("matches", scores.tolist())
print("divided by sqrt(2)", [round(s, 3) for s in (scores / math.sqrt(2)).tolist()])
print("weights", [round(w, 3) for w in weights.tolist()])
print("answer", round(float(weights @ values), 3))

# %% [markdown]
# Check it with a calculator: $e^{0.707} = 2.028$ and $e^0 = 1$, so the first weight is $2.028 / 3.028 = 0.670$, and the
# answer is $0.670 \cdot 10 + 0.330 \cdot 20 = 13.3$.
#
# With `@` and `torch.ones`, these are the tensor operations that our answers to the next three exercises use:

# %% tags=["nbval-check-output"]
table = torch.arange(6.0).view(2, 3)  # view: the same numbers in the same order, in another shape
print("table", table.tolist())
print("transpose(0, 1) swaps two dimensions", table.transpose(0, 1).tolist())
print("the last two dimensions of any tensor", torch.zeros(5, 2, 3).transpose(-2, -1).shape)
print("masked_fill puts a number where a mask is True", table.masked_fill(table > 3, -1.0).tolist())
print("tril keeps the lower triangle, diagonal included", torch.ones(3, 3).tril().tolist())
print("flatten(1) joins all dimensions from number 1 on", torch.zeros(5, 2, 3).flatten(1).shape)
print("softmax(dim=-1): every row sums to 1", table.softmax(dim=-1).sum(dim=-1).tolist())

# %% [markdown]
# ### Exercise 1.1: scaled dot-product attention
# *Difficulty 2 of 5 · 15 minutes · 2 points*
#
# Write the formula for tensors with any number of leading dimensions (batch, heads). A **mask**, if given, holds `True` where a
# query may look at a key. Where it may not, the weight must be exactly 0 and the others must still sum to 1: set the score
# to minus infinity *before* the softmax. (PyTorch has all of it in `F.scaled_dot_product_attention`, and the check would let it
# pass. The check is not whom you are writing it for.)


# %% nbgrader={"grade": false, "grade_id": "ex_1_1", "locked": false, "schema_version": 3, "solution": true, "task": false}
def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention.

    Parameters
    ----------
    q : Tensor, float, (..., query, d)
    k : Tensor, float, (..., key, d)
    v : Tensor, float, (..., key, d_v)
    mask : Tensor, bool, broadcastable to (..., query, key), or None
        True where the query may look at the key; every query may look at one key at least.

    Returns
    -------
    Tensor, float, (..., query, d_v)
        Of the dtype of `q`; gradients pass through it.

    Example
    -------
    >>> attention(torch.tensor([[1.0, 0.0]]), torch.eye(2), torch.tensor([[10.0], [20.0]]))
    tensor([[13.3024]])
    """
    ### BEGIN SOLUTION
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (..., query, key)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v  # (..., query, d_v)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_1_1_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 1.1: run this cell.
import torch
import torch.nn.functional as F

from helpers import checks


@checks.isolated
def check_ex_1_1() -> None:
    from helpers import samples

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        with checks.untouched(q=q, k=k, v=v, mask=mask):
            return attention(q, k, v) if mask is None else attention(q, k, v, mask)

    def cases(seed: int, more: int) -> list[tuple]:
        """What it is, q, k, v and mask: any leading dimensions, masks that are broadcast, loud and quiet numbers."""
        generator, found = samples.advanced(seed), []
        for what, batch, query, key, d, d_v, mask_shape in [
            ("for one text without a leading dimension", (), 5, 3, 8, 2, (5, 3)),
            ("for one query", (1,), 1, 7, 9, 4, (1, 7)),
            ("for texts and heads, (texts, heads, query, d)", (2, 3), 4, 6, 5, 3, (4, 6)),
            ("with one mask a text, (texts, 1, 1, key)", (2, 3), 4, 6, 5, 3, (2, 1, 1, 6)),
            ("with one row of a mask for all queries, (1, key)", (2,), 5, 5, 5, 5, (1, 5)),
            ("with five dimensions", (2, 1, 2), 2, 3, 4, 1, (2, 3)),
        ]:
            d, d_v = d + more, d_v + more
            q, k = torch.randn(*batch, query, d, generator=generator), torch.randn(*batch, key, d, generator=generator)
            v = torch.randn(*batch, key, d_v, generator=generator)
            mask = torch.rand(mask_shape, generator=generator) < 0.5
            mask[..., seed % key] = True
            found += [(f"your output {what}", q, k, v, None), (f"your output {what}, with a mask", q, k, v, mask)]
        q, k, v = (torch.randn(2, 3, 4 + more, generator=generator) for _ in range(3))
        mask = torch.ones(3, 3, dtype=torch.bool).tril()
        found += [
            ("your output for numbers of size 0.001", q / 1000, k / 1000, v / 1000, mask),
            ("your output for float64 numbers", q.double(), k.double(), v.double(), mask),
        ]
        for (name, one), (_, two), (_, three) in zip(*map(samples.awkward, (q, k, v)), strict=True):
            found.append((f"your output where q, k and v are each {name}", one, two, three, mask))
        return found

    def loud(more: int) -> list[tuple]:
        """What it is, q, k and the weights that softmax makes of it; the scores are exact."""
        one = torch.ones(1, 1, 4)  # sqrt(d) = 2
        wanted = torch.tensor([[[0.0, -10.0, -40.0 - more]]]).softmax(dim=-1)
        return [
            ("scores of 200", one, torch.tensor([[100.0], [95.0], [80.0 - more / 2]]) * one, wanted),
            ("scores of -200", one, torch.tensor([[-100.0], [-105.0], [-120.0 - more / 2]]) * one, wanted),
            ("scores of 100,000", one, torch.tensor([[5e4], [0.0], [-5e4]]) * one, torch.eye(3)[None, :1]),
        ]

    with checks.check("1.1", "your attention equals PyTorch's, with and without a mask, and hidden values do not leak"):
        generator = torch.Generator().manual_seed(11)
        q, k, v = (torch.randn(2, rows, width, generator=generator) for rows, width in [(4, 16), (6, 16), (6, 5)])
        scores = q @ k.mT / 4
        answer, again = attend(q, k, v, None), attend(q, k, v, None)
        checks.tensor(answer, (2, 4, 5), "your output without a mask", torch.float32)
        assert torch.equal(answer, again), (
            "two calls with the same numbers give different outputs: attention draws nothing at random (is a dropout on?)."
        )
        lengths = {
            "the number of queries": 4,
            "the number of keys": 6,
            "the length of a value": 5,
            "the number of texts": 2,
        }
        checks.close(
            answer,
            F.scaled_dot_product_attention(q, k, v),
            "your output without a mask",
            mistakes={
                "the scores are not divided by sqrt(d).": F.scaled_dot_product_attention(q, k, v, scale=1.0),
                "the scores are multiplied by sqrt(d) instead of divided.": F.scaled_dot_product_attention(
                    q, k, v, scale=4.0
                ),
                "the scores are divided by d instead of sqrt(d).": F.scaled_dot_product_attention(
                    q, k, v, scale=1 / 16
                ),
                **{
                    f"d is the length of one query, q.shape[-1]; you took {name}.": F.scaled_dot_product_attention(
                        q, k, v, scale=length**-0.5
                    )
                    for name, length in lengths.items()
                },
                "the softmax runs over the texts: for each query, the weights of its keys must sum to 1 (the last "
                "dimension).": scores.softmax(dim=0) @ v,
                "the softmax runs over the queries: for each query, the weights of its keys must sum to 1 (the last "
                "dimension).": scores.softmax(dim=-2) @ v,
                "the softmax runs over keys and queries together: for each query, the weights of its keys must sum to "
                "1.": scores.flatten(1).softmax(dim=-1).view_as(scores) @ v,
                "there is no softmax: the scores themselves average nothing.": scores @ v,
                "the weights are divided by sqrt(d): divide the scores, before the softmax.": (scores * 4).softmax(-1)
                / 4
                @ v,
                "you hide the future although no mask was given: what may be seen is for the mask to say.": (
                    F.scaled_dot_product_attention(q, k, v, is_causal=True)
                ),
            },
        )
        mask = torch.rand(4, 6, generator=generator) < 0.6
        mask[:, 0] = True
        checks.close(
            attend(q, k, v, mask),
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
            "your output with a mask",
            mistakes={
                "the mask is ignored.": F.scaled_dot_product_attention(q, k, v),
                "the mask is used upside down: True means that the query may look.": scores.masked_fill(
                    mask, float("-inf")
                )
                .softmax(dim=-1)
                .nan_to_num()
                @ v,
                "the mask comes after the softmax, so the weights that are left no longer sum to 1.": (
                    scores.softmax(dim=-1) * mask
                )
                @ v,
                "masked scores are set to 0, but exp(0) is 1: set them to minus infinity.": (scores * mask).softmax(
                    dim=-1
                )
                @ v,
                "a boolean mask was added to the scores as numbers 0 and 1; set the forbidden scores to minus infinity.": (
                    scores + mask.float()
                ).softmax(dim=-1)
                @ v,
                "you hide the future, whatever the mask says.": F.scaled_dot_product_attention(q, k, v, is_causal=True),
            },
        )
        for what, one, keys, wanted in loud(0):
            answer = attend(one, keys, torch.eye(3)[None], None)
            assert torch.isfinite(answer).all(), (
                f"with {what}, your output is nan or inf: exp of such a number overflows, or is 0 for all keys, where it is divided "
                "by the sum. softmax subtracts the largest score first: use it."
            )
            seen = f"the weights that your attention gives to three keys with {what}"
            checks.close(answer, wanted, seen, atol=1e-9, rtol=1e-3)  # small weights count as well
        one_key = torch.zeros(4, 6, dtype=torch.bool)
        one_key[:, 2] = True
        low = torch.full((1, 4, 16), 1e4)  # the only key that may be seen has the lowest score of all, -4e8
        keys = low[:, :1] * torch.tensor([1.0, 0.5, -1.0, 0.0, 1.0, 0.7])[:, None]
        answer, only = attend(low, keys, v[:1], one_key), v[:1, 2:3].expand(1, 4, 5)
        assert torch.isfinite(answer).all(), (
            "with large scores and only key 2 allowed, your output is nan or inf: if the weights of hidden keys are set to 0 "
            "after the softmax, the others may all be 0, and 0 / 0 is left."
        )
        others = v[:1, [0, 1, 3, 4, 5]].mean(dim=1, keepdim=True).expand(1, 4, 5)
        checks.close(
            answer,
            only,
            "with large scores and only key 2 allowed, your output",
            mistakes={
                "the masked scores are not minus infinity but a number, and it is larger than the score of key 2.": others,
                "all of its weights are 0: the softmax has seen the hidden keys.": torch.zeros(1, 4, 5),
            },
        )
        weights = attend(q, k, torch.eye(6).expand(2, 6, 6), mask)
        assert (weights[:, ~mask] == 0).all(), (
            f"the weight of a hidden key is {weights[:, ~mask].abs().max():.2g}, and must be exactly 0: set its score to minus infinity."
        )
        for what, q, k, v, mask in cases(11, 0):
            try:
                answer = attend(q, k, v, mask)
            except (RuntimeError, IndexError) as error:
                if q.dim() == 3:
                    raise
                dimensions = "there may be any number of leading dimensions: count from the end, -1 and -2."
                broadcast = "a mask may be shorter than the scores: masked_fill repeats it where it must."
                raise AssertionError(
                    f"{what} cannot be had, {type(error).__name__}: {error}. Mind that "
                    + (dimensions if mask is None else broadcast)
                ) from None
            checks.tensor(answer, (*q.shape[:-1], v.shape[-1]), what, q.dtype)
            assert answer.requires_grad == q.requires_grad, (
                "no gradient passes through your function, so nothing before it could be trained: is there a detach or a no_grad?"
            )
            checks.close(
                answer,
                F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
                what,
                mistakes={
                    "the softmax runs over the queries: dimension 2 counts the keys of a tensor with three dimensions, not of "
                    "one with four. Count from the end, dim=-1.": (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-2) @ v
                    if mask is None and q.dim() == 4
                    else torch.empty(0)
                },
                atol=1e-8 if "0.001" in what else 1e-5,
            )
    ### BEGIN HIDDEN TESTS
    for what, q, k, v, mask in [case for seed in (1, 2) for case in cases(100 + seed, seed)]:
        answer, expected = attend(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        torch.testing.assert_close(answer, expected, atol=1e-8 if "0.001" in what else 1e-5, rtol=1e-5)
        assert answer.requires_grad == q.requires_grad, "no gradient passes through your function."
        assert torch.equal(answer, attend(q, k, v, mask)), "two calls give different outputs: is a dropout on?"
        if mask is not None:
            seen = mask.expand(*q.shape[:-1], k.shape[-2]).flatten(0, -2).any(dim=0)  # keys that anybody may look at
            spoiled = v.detach().clone()
            spoiled[..., ~seen, :] = 1e30
            torch.testing.assert_close(attend(q, k, spoiled, mask), expected, atol=1e-5, rtol=1e-5)
            eye = torch.eye(k.shape[-2], dtype=q.dtype).expand(*k.shape[:-1], k.shape[-2])
            weights = attend(q, k, eye, mask)
            assert (weights[~mask.expand_as(weights)] == 0).all(), "a hidden key has a weight that is not 0."
    for what, one, keys, wanted in loud(3):
        torch.testing.assert_close(attention(one, keys, torch.eye(3)[None]), wanted, atol=1e-9, rtol=1e-3), what
    high = torch.full((3, 4), 1e4)
    keys, v = high * torch.tensor([[1.0], [-2.0], [0.5]]), torch.tensor([[1.0], [2.0], [5.0]])
    lowest_only = torch.tensor([False, True, False]).expand(3, 3)
    assert torch.equal(attention(high, keys, v, lowest_only), torch.full((3, 1), 2.0)), (
        "hidden keys with high scores leak."
    )
    ### END HIDDEN TESTS


check_ex_1_1()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Three steps: matches, weights, mixture. `@` multiplies matrices and leaves leading dimensions alone.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `k.transpose(-2, -1)` turns (…, key, d) into (…, d, key). The softmax must make the weights of one query sum to 1: which
# dimension counts the keys? `scores.masked_fill(~mask, float("-inf"))` fills where the mask is False.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `scores = q @ k.transpose(-2, -1) / math.sqrt(…)`, then the mask if there is one, then `scores.softmax(dim=-1) @ …`
# </details>

# %% [markdown]
# ## 2. No peeking: the causal mask
#
# The model is trained to guess the next byte at *every* position of a text at once. If position 3 could see position 4, it
# could simply copy the answer. So a query may look at itself and at what came before:
#
# | asks ↓ looks at → | 0 | 1 | 2 |
# |---|---|---|---|
# | **0** | True | False | False |
# | **1** | True | True | False |
# | **2** | True | True | True |
#
# ### Exercise 1.2: the causal mask
# *Difficulty 1 of 5 · 5 minutes · 2 points*
#
# Return this table for any length, as a boolean tensor. The check does not look at the table only: it changes a position in
# the future and asks whether anything in the past has moved.


# %% nbgrader={"grade": false, "grade_id": "ex_1_2", "locked": false, "schema_version": 3, "solution": true, "task": false}
def causal_mask(length: int) -> Tensor:
    """Which query (row) may look at which key (column) of a text of `length` positions.

    Returns
    -------
    Tensor, bool, (length, length)
        True where the query may look: at itself and at every earlier position.

    Example
    -------
    >>> causal_mask(2)
    tensor([[ True, False],
            [ True,  True]])
    """
    ### BEGIN SOLUTION
    return torch.ones(length, length, dtype=torch.bool).tril()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_1_2_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 1.2: run this cell.
import torch
import torch.nn.functional as F

from helpers import checks


@checks.isolated
def check_ex_1_2() -> None:
    def wanted(length: int) -> torch.Tensor:
        position = torch.arange(length)
        return position <= position[:, None]

    with checks.check("1.2", "the future changes nothing in the past, and the whole past can be seen, for any length"):
        mask = causal_mask(5)
        checks.tensor(mask, (5, 5), "your mask")
        assert mask.dtype == torch.bool, f"your mask is {mask.dtype}: it must be bool. " + (
            "(A mask of 0 and minus infinity is added to the scores; PyTorch takes that too, this exercise does not.)"
            if torch.isinf(mask.float()).any()
            else "Numbers 0 and 1 would be added to the scores, and hide nothing."
        )
        everything, past = torch.ones(5, 5, dtype=torch.bool), wanted(5)
        for sentence, wrong in {
            "upside down: here True means that the query may look (some parts of PyTorch mean the opposite).": ~past,
            "transposed: rows are queries, columns are keys. It lets a query see the future, and hides the past.": past.T,
            "mirrored: position 0 is the first column and the first row.": past.flip(0),
            "mirrored from left to right: the keys of a row begin with position 0.": past.flip(1),
            "True everywhere, which hides nothing.": everything,
            "False everywhere: nobody sees anything.": ~everything,
            "one position too wide: a query may not look at the position behind it.": everything.tril(1),
            "False on its diagonal, but a position may look at itself: so position 0 sees nothing at all.": everything.tril(
                -1
            ),
            "True on its diagonal only: a position may look at itself *and* at every earlier one.": torch.eye(5).bool(),
        }.items():
            assert not torch.equal(mask, wrong), f"your mask is {sentence}"
        generator = torch.Generator().manual_seed(12)
        x = torch.randn(5, 8, generator=generator)
        before = F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
        moved = []
        for changed in range(5):
            y = x.clone()
            y[changed] += 1
            after = F.scaled_dot_product_attention(y, y, y, attn_mask=mask)
            moved.append(((after - before).abs().amax(dim=1) > 1e-6).tolist())
        for changed in range(5):
            assert not any(moved[changed][:changed]), (
                f"a change at position {changed} moved an earlier position: your mask lets a query see the future "
                "(rows are queries, columns are keys)."
            )
        for changed in range(5):
            assert all(moved[changed][changed:]), (
                f"a change at position {changed} did not reach every later position: a part of the past is hidden."
            )
        for length in (1, 2, 8, 100, 2100):
            mask = causal_mask(length)
            checks.tensor(mask, (length, length), f"your mask for {length} positions", torch.bool)
            errors = (mask != wanted(length)).nonzero()
            assert not len(errors), (
                f"your mask for {length} positions is {bool(mask[tuple(errors[0])])} at query {errors[0, 0]}, key {errors[0, 1]}."
            )
    ### BEGIN HIDDEN TESTS
    for length in (1, 2, 7, 33, 300, 2200):
        mask = causal_mask(length)
        assert mask.dtype == torch.bool and mask.shape == (length, length), "wrong dtype or shape."
        assert torch.equal(mask, wanted(length)), f"wrong for length {length}."
    ### END HIDDEN TESTS


check_ex_1_2()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The table is a triangle. PyTorch can cut one out of a square.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `torch.tril` keeps the lower triangle, diagonal included. Start from `torch.ones(…, dtype=torch.bool)`.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `return torch.ones(length, length, dtype=…).tril()`. Or compare `torch.arange(length)[:, None]` with
# `torch.arange(length)`.
# </details>

# %% [markdown]
# ## 3. Several heads: more than one question at a time
#
# One softmax gives one set of weights. A position that has one question about the last bracket *and* another about the first
# letter of the word can use two. So the vectors of width $d_\text{model}$ are cut into $h$ pieces of width $d_\text{head} = d_\text{model} / h$, called **heads**,
# and each head does its own attention. Then the pieces are put back side by side.
#
# Cutting is a matter of shapes, and this is where a classic silent mistake lives. In a tensor (time, d_model) that was just
# computed, the numbers of one position lie next to each other in memory: head 0's, then head 1's. The next cell shows for a text
# of 3 positions and 2 heads what belongs to whom; `21` means position 2, column 1.

# %% tags=["nbval-check-output"]
x = torch.tensor([[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]])  # (time 3, d_model 4)
print("head 0 should hold the first two columns of every position:\n", x[:, :2].tolist())
print("head 1 the last two:\n", x[:, 2:].tolist())
print("x.view(2, 3, 2) has the right shape, but its head 0 is\n", x.view(2, 3, 2)[0].tolist())

# %% [markdown]
# In the last line, "head 0" got both heads of position 0 and half of position 1, and nothing of position 2. The shape is right, and
# no error is raised.
#
# ### Exercise 1.3: split and merge heads
# *Difficulty 3 of 5 · 15 minutes · 2 points*
#
# Write both directions. `merge_heads(split_heads(x, n))` must give `x` back, and your heads must do what those of PyTorch's own
# `nn.MultiheadAttention` do with the same weights.


# %% nbgrader={"grade": false, "grade_id": "ex_1_3", "locked": false, "schema_version": 3, "solution": true, "task": false}
def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """Cut each position's vector into heads.

    Parameters
    ----------
    x : Tensor, (batch, time, d_model)
    n_heads : int
        Divides d_model.

    Returns
    -------
    Tensor, (batch, n_heads, time, d_model // n_heads)
        Of the dtype of `x`; gradients pass through it. Head 0 holds the first d_model // n_heads columns of every position, head 1 the next ones, and so on.
    """
    ### BEGIN SOLUTION
    batch, time, width = x.shape
    return x.view(batch, time, n_heads, width // n_heads).transpose(1, 2)
    ### END SOLUTION


def merge_heads(x: Tensor) -> Tensor:
    """Undo `split_heads`: (batch, n_heads, time, d_head) to (batch, time, n_heads * d_head)."""
    ### BEGIN SOLUTION
    return x.transpose(1, 2).flatten(2)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_1_3_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 1.3: run this cell.
import torch
import torch.nn.functional as F

from helpers import checks


@checks.isolated
def check_ex_1_3() -> None:
    from helpers import samples

    def split(x: torch.Tensor, n_heads: int) -> torch.Tensor:
        with checks.untouched(x=x):
            return split_heads(x, n_heads)

    def merge(x: torch.Tensor) -> torch.Tensor:
        with checks.untouched(x=x):
            return merge_heads(x)

    def cases(seed: int) -> list[tuple]:
        """What it is, x, and its heads cut out one by one."""
        generator, found = samples.advanced(seed), []
        for batch, length, n_heads, width in [
            (1, 1, 1, 4),
            (3, 7, 4, 2),
            (2, 2, 2, 2),
            (2, 4, 4, 4),
            (1, 6, 3, 5),
            (2, 5, 1, 3),
            (4, 3, 5, 1),
        ]:
            x = torch.randint(-99, 99, (batch, length, n_heads * width), generator=generator)
            what = f"of {batch} text(s), {length} position(s) and {n_heads} head(s) of width {width}"
            forms = [("", x.float()), (", in int64", x), (", in float64", x.double())]
            if (batch, length) == (3, 7):
                forms += [(f", given as {name}", form) for name, form in samples.awkward(x.float())]
            for form, given in forms:
                heads = torch.stack(
                    [given[:, :, head * width : (head + 1) * width] for head in range(n_heads)], dim=1
                )  # (batch, heads, time, width)
                found.append((what + form, given, heads))
        return found

    with checks.check("1.3", "each head holds its own columns of every position, as in nn.MultiheadAttention"):
        x = torch.arange(2 * 3 * 8.0).view(2, 3, 8)
        by_loop = torch.stack([x[:, :, head * 4 : head * 4 + 4] for head in range(2)], dim=1)  # (2, heads 2, time 3, 4)
        checks.close(
            split(x, 2),
            by_loop,
            "split_heads of 2 texts, 3 positions, 8 columns, 2 heads",
            mistakes={
                "the shape is right but positions are mixed: a view cannot move the head dimension in front of time. View "
                "as (batch, time, heads, d_head) first, then transpose.": x.view(2, 2, 3, 4),
                "each head takes every second column: the head number must be the slower of the two new "
                "dimensions.": x.view(2, 3, 4, 2).permute(0, 3, 1, 2),
                "the heads are in the wrong order: head 0 holds the first columns.": by_loop.flip(1),
                "the positions are in the wrong order.": by_loop.flip(2),
                "the texts are mixed with the heads: the batch stays in front.": by_loop.transpose(0, 1),
            },
        )
        checks.close(
            merge(by_loop),
            x,
            "merge_heads of those heads",
            mistakes={
                "the shape is right but positions are mixed: bring time back in front of the heads before you flatten "
                "them.": by_loop.reshape(2, 3, 8),
                "the columns of the heads are interleaved: put the heads side by side.": by_loop.permute(
                    0, 2, 3, 1
                ).flatten(2),
                "the heads are in the wrong order: head 0 gives the first columns.": by_loop.flip(1)
                .transpose(1, 2)
                .flatten(2),
                "the texts are mixed with the heads: the batch stays in front.": by_loop.transpose(0, 1)
                .transpose(1, 2)
                .flatten(2),
            },
        )
        for what, x, heads in cases(13):
            answer = split(x, heads.shape[1])
            checks.tensor(answer, heads.shape, f"split_heads {what}", x.dtype)
            assert answer.requires_grad == x.requires_grad, "no gradient passes through split_heads: is there a detach?"
            assert torch.equal(answer, heads), f"split_heads {what} gives a head columns or positions of another one."
            for form, given in [("", heads), (" (not contiguous)", heads.transpose(1, 2).contiguous().transpose(1, 2))]:
                answer = merge(given)
                checks.tensor(answer, x.shape, f"merge_heads {what}{form}", x.dtype)
                assert answer.requires_grad == x.requires_grad, (
                    "no gradient passes through merge_heads: is there a detach?"
                )
                assert torch.equal(answer, x), f"merge_heads {what}{form} does not give back what was split."
        torch.manual_seed(13)
        theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True).eval()
        y = torch.randn(2, 5, 12)
        with torch.no_grad():
            q, k, v = F.linear(y, theirs.in_proj_weight, theirs.in_proj_bias).chunk(3, dim=-1)
            mixed = F.scaled_dot_product_attention(split(q, 3), split(k, 3), split(v, 3))
            checks.close(theirs.out_proj(merge(mixed)), theirs(y, y, y)[0], "3-head attention with your two functions")
    ### BEGIN HIDDEN TESTS
    for what, x, heads in cases(31):
        answer = split(x, heads.shape[1])
        assert answer.dtype == x.dtype and torch.equal(answer, heads), f"split_heads is wrong {what}."
        assert answer.requires_grad == x.requires_grad, "no gradient passes through split_heads."
        for given in (heads, answer, heads.transpose(1, 2).contiguous().transpose(1, 2)):
            merged = merge(given)
            assert merged.dtype == x.dtype and torch.equal(merged, x), f"merge_heads is wrong {what}."
            assert merged.requires_grad == x.requires_grad, "no gradient passes through merge_heads."
    ### END HIDDEN TESTS


check_ex_1_3()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# A `view` may cut a dimension into two, but it never changes the order of the numbers. Which of the two dimensions that you cut
# must come first, so that a head gets neighbouring columns?
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# Two steps: (batch, time, d_model) → (batch, time, heads, d_head) → (batch, heads, time, d_head). The second is a
# `transpose(1, 2)`. Merging does the same two steps backwards.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `x.view(batch, time, n_heads, width // n_heads).transpose(…)` and `x.transpose(…).flatten(2)` (flatten copies if it must;
# `view` would refuse).
# </details>

# %% [markdown]
# ## 4. Positions: attention cannot count
#
# Attention is an average, and an average does not care about order. Without a mask, each word of `dog bites man` gets the same
# answer as it does in `man bites dog`:

# %% tags=["nbval-check-output"]
dog, bites, man = torch.randn(3, 8, generator=torch.Generator().manual_seed(4))  # a vector for each word
one, other = torch.stack([dog, bites, man]), torch.stack([man, bites, dog])  # (3, 8)
first, second = (F.scaled_dot_product_attention(words, words, words) for words in (one, other))
print("the same answers, in the other order:", torch.allclose(first, second.flip(0), atol=1e-6))

# %% [markdown]
# (A causal mask gives a stack of layers some sense of order, since position 2 sees more than position 1, but a roundabout one.) So
# the position is written into the vectors themselves. The classic way adds a fixed pattern of waves, fast ones in the first columns
# and slow ones in the last:
#
# $$P_{p,\,2i} = \sin\frac{p}{10000^{2i/d}} \qquad P_{p,\,2i+1} = \cos\frac{p}{10000^{2i/d}}$$
#
# $p$ is the position, counted from 0; $d$ is $d_\text{model}$; $i = 0, 1, \dots, d/2 - 1$ numbers the pairs of columns. By
# hand, for $d = 4$ and $p = 1$: pair 0 has the angle $1$, pair 1 the angle $1/10000^{2/4} = 0.01$, so the row is
# $(\sin 1, \cos 1, \sin 0.01, \cos 0.01) = (0.841, 0.540, 0.010, 1.000)$.

# %%
waves = model.positions[:64, :64].numpy()  # the course model's own table
products = (model.positions @ model.positions.T)[:128, :128].numpy() / 128

fig, (left, right) = plots.figure(columns=2, width=9, height=3.4)
picture = left.imshow(waves.T, aspect="auto", cmap="RdBu", vmin=-1, vmax=1)
left.set(xlabel="position", ylabel="column", title="the first 64 columns of the table")
fig.colorbar(picture, ax=left)
for position, color in zip((0, 32, 96), plots.PALETTE, strict=False):
    right.plot(products[position], color=color, label=f"position {position}")
right.set(xlabel="other position", ylabel="dot product, per pair of columns", title="near positions look alike")
right.legend()
plots.show(
    fig,
    caption="Left: every position gets its own pattern of waves. Right: the dot product of two positions depends on their "
    "distance only, and is largest for near ones. To ask for 'the byte before me', a head can learn matrices that turn the waves "
    "of its query by one step.",
    alt="Left, a colour table of waves: fast in the upper columns, ever slower further down. Right, three curves, each with "
    "a sharp peak of height one at its own position, falling off to both sides with ripples.",
)

# %% [markdown]
# ### Exercise 1.4: sinusoidal positions
# *Difficulty 3 of 5 · 15 minutes · 2 points*
#
# Return the table. Sines and cosines come in pairs, so an odd $d$ has no meaning: raise a `ValueError` that says so.


# %% nbgrader={"grade": false, "grade_id": "ex_1_4", "locked": false, "schema_version": 3, "solution": true, "task": false}
def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """Table of fixed position vectors.

    Parameters
    ----------
    length : int
        Number of positions, counted from 0.
    d_model : int
        Even.

    Returns
    -------
    Tensor, float32, (length, d_model)
        Sines in the even columns, cosines in the odd ones.

    Raises
    ------
    ValueError
        If `d_model` is odd, with a sentence that says so.

    Example
    -------
    >>> sinusoidal_positions(2, 4)
    tensor([[0.0000, 1.0000, 0.0000, 1.0000],
            [0.8415, 0.5403, 0.0100, 0.9999]])
    """
    ### BEGIN SOLUTION
    if d_model % 2:
        raise ValueError(f"d_model={d_model} is odd: sines and cosines come in pairs, so it must be even.")
    position = torch.arange(length, dtype=torch.float64)[:, None]  # (length, 1)
    frequency = 10000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)  # (d_model / 2,)
    table = torch.empty(length, d_model)
    table[:, 0::2] = (position * frequency).sin()
    table[:, 1::2] = (position * frequency).cos()
    return table
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_1_4_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 1.4: run this cell.
import torch

from helpers import checks


@checks.isolated
def check_ex_1_4() -> None:
    def angles(length: int, d_model: int, power: float = 2.0, first: int = 0, base: float = 1e4) -> torch.Tensor:
        position, i = torch.arange(first, first + length).double()[:, None], torch.arange(d_model // 2).double()
        return position / base ** (power * i / d_model)  # (length, d_model / 2), float64

    def waves(angle: torch.Tensor, cosine_angle: torch.Tensor | None = None) -> torch.Tensor:
        return torch.stack([angle.sin(), (angle if cosine_angle is None else cosine_angle).cos()], dim=2).flatten(1)

    def by_column(power: int) -> torch.Tensor:
        position, column = torch.arange(50).double()[:, None], torch.arange(8).double()
        angle = position / 1e4 ** (power * column / 8)
        return waves(angle[:, 0::2], angle[:, 1::2])

    with checks.check(
        "1.4", "the table agrees with the formula in float64, for any length, and an odd width is refused"
    ):
        right = angles(50, 8)
        answer, position = sinusoidal_positions(50, 8), torch.arange(50).double()[:, None]
        without_first = waves(right)
        without_first[0] = 0
        checks.close(
            answer,
            waves(right),
            "your table for 50 positions and d_model 8",
            mistakes={
                "sines and cosines are swapped: even columns hold sines.": torch.stack(
                    [right.cos(), right.sin()], dim=2
                ).flatten(1),
                "sines fill the first half and cosines the second: they alternate, column by column.": torch.cat(
                    [right.sin(), right.cos()], dim=1
                ),
                "every column is a sine: the odd ones are cosines.": torch.stack([right.sin()] * 2, dim=2).flatten(1),
                "the exponent uses the column number: a pair of columns shares one frequency, 10000 ** (2 * i / d_model) for "
                "pair i.": by_column(1),
                "i numbers the pairs (0, 1, 2, …), not the columns: with column numbers the exponent is too large.": by_column(
                    2
                ),
                "i numbers the pairs (0, 1, 2, …), not the even columns: the exponent is twice too large.": waves(
                    angles(50, 8, power=4)
                ),
                "the exponent is half of what it should be: for pair i it is 2 * i / d_model.": waves(
                    angles(50, 8, power=1)
                ),
                "the exponent holds the position, and so all pairs are alike: it is 2 * i / d_model for pair i.": waves(
                    (position / 1e4 ** (2 * position / 8)).expand(50, 4)
                ),
                "the exponent of the last pair is 1: divide 2 * i by d_model, not by d_model - 2.": waves(
                    position / 1e4 ** (torch.arange(4) / 3)
                ),
                "the position is multiplied by 10000 ** (2 * i / d_model): divide by it, so that later waves are slower.": waves(
                    position * 1e4 ** (2 * torch.arange(4) / 8)
                ),
                "the base is 1000: in the formula it is 10000.": waves(angles(50, 8, base=1e3)),
                "the angles are taken in degrees: sin and cos want radians, as they are.": waves(torch.deg2rad(right)),
                "positions are counted from 1: the first row belongs to position 0.": waves(angles(50, 8, first=1)),
                "the row of position 0 is all zeros: its sines are 0, but cos(0) is 1.": without_first,
            },
            atol=1e-4,
        )
        checks.tensor(answer, (50, 8), "your table for 50 positions and d_model 8", torch.float32)
        assert not answer.requires_grad, "your table requires a gradient: it is fixed, and nobody trains it."
        for length, d_model in [(1, 2), (3, 4), (300, 64), (10, 1024), (6000, 6)]:
            what = f"your table for {length:,} positions and d_model {d_model}"
            answer = sinusoidal_positions(length, d_model)
            checks.tensor(answer, (length, d_model), what, torch.float32)
            checks.close(answer, waves(angles(length, d_model)), what, atol=1e-3 if length > 1000 else 1e-4)
        for d_model in (5, 1, 255):
            try:
                sinusoidal_positions(4, d_model)
            except ValueError as error:
                assert len(str(error)) > 3, "your ValueError has no text: say what is wrong with d_model."
            except Exception as error:
                raise AssertionError(
                    f"d_model={d_model} is odd and must raise a ValueError that says so; it raised {type(error).__name__}: {error}"
                ) from None
            else:
                raise AssertionError(f"d_model={d_model} is odd and must raise a ValueError that says so.")
    ### BEGIN HIDDEN TESTS
    for length, d_model in [(1, 2), (3, 6), (40, 64), (257, 10), (7, 1026), (6200, 4)]:
        table = sinusoidal_positions(length, d_model)
        assert table.shape == (length, d_model) and table.dtype == torch.float32, "wrong shape or dtype (float32)."
        assert not table.requires_grad, "the table is fixed, and needs no gradient."
        error = (table - waves(angles(length, d_model))).abs().max()
        assert error < (1e-3 if length > 1000 else 2e-4), f"off by {error:.2g} for length {length}, d_model {d_model}."
    for d_model in (1, 3, 7, 99):
        try:
            sinusoidal_positions(3, d_model)
        except ValueError as error:
            assert len(str(error)) > 3, "the ValueError has no text: say what is wrong with d_model."
        else:
            raise AssertionError("an odd d_model must raise ValueError.")
    ### END HIDDEN TESTS


check_ex_1_4()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Compute one table of angles of shape (length, d_model / 2) first: a column of positions times a row of frequencies.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `torch.arange(0, d_model, 2)` is 2i for all pairs. `table[:, 0::2]` names all even columns, `table[:, 1::2]` all odd ones,
# and both can be assigned to.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `angle = torch.arange(length)[:, None] / 10000 ** (torch.arange(0, d_model, 2) / d_model)`, an empty table, then two
# assignments, `angle.sin()` and `angle.cos()`. First of all: `if d_model % 2: raise ValueError("…")`.
# </details>

# %% [markdown]
# ## 5. A block: think, then add
#
# A Transformer is a stack of **blocks** of one form, each with weights of its own. Each has two halves:
#
# - **attention** moves information between positions;
# - a **feed-forward network** (FFN), two Linear layers with a non-linear function (GELU, which lets large positive numbers pass and
#   pulls negative ones towards 0) between them, works on each position alone.
#
# Each half reads a *normalized* copy of the vectors $x$ (LayerNorm: the numbers of each position get mean 0 and variance 1, then a
# learned scale and shift) and
# **adds** its result to $x$. So there is a path from the first to the last block along which things are added and nothing else is
# done, the **residual stream**. This order is called *pre-LN*:
#
# $$x \leftarrow x + \text{attention}(\text{LN}_1(x)) \qquad\qquad x \leftarrow x + \text{FFN}(\text{LN}_2(x))$$
#
# Mind what is normalized: the copy, not the stream. The first Transformers normalized *after* the addition (post-LN), and are
# harder to train (Xiong et al. 2020). Weights belong to the order in which they were trained: the check below knows both.
#
# The next cell holds the two halves, written with plain functions from a dictionary of the block's weights. Read them: every
# `F.linear` is a matrix product with a weight, and these products are what section 8 is going to change. (The fourth Linear of
# attention, `out`, mixes the heads after they are put back side by side.)


# %%
def attention_half(x: Tensor, weights: dict[str, Tensor], n_heads: int) -> Tensor:
    """Causal multi-head attention, (batch, time, d_model) to the same shape; `x` is already normalized."""
    q, k, v = (
        F.linear(x, weights[f"attention.{name}.weight"], weights[f"attention.{name}.bias"])
        .unflatten(-1, (n_heads, -1))
        .transpose(1, 2)  # (batch, heads, time, d_head)
        for name in ("q", "k", "v")
    )
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    return F.linear(mixed, weights["attention.out.weight"], weights["attention.out.bias"])


def ffn_half(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Feed-forward network, (batch, time, d_model) to the same shape; `x` is already normalized."""
    hidden = F.gelu(F.linear(x, weights["ffn.up.weight"], weights["ffn.up.bias"]))  # (batch, time, d_ff)
    return F.linear(hidden, weights["ffn.down.weight"], weights["ffn.down.bias"])


def normalize(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """The LayerNorm called "norm1" or "norm2"."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


block_weights = model.blocks[0].state_dict()
for name, weight in block_weights.items():
    print(f"{name:24} {tuple(weight.shape)}")

# %% [markdown]
# ### Exercise 1.5: the pre-LN block
# *Difficulty 2 of 5 · 10 minutes · 2 points*
#
# Wire the halves together as in the formula, with `attention_half`, `ffn_half` and `normalize`. The check feeds your block with
# the weights of two blocks of the trained course model, and of smaller blocks, and compares it with the models' own.


# %% nbgrader={"grade": false, "grade_id": "ex_1_5", "locked": false, "schema_version": 3, "solution": true, "task": false}
def pre_ln_block(x: Tensor, weights: dict[str, Tensor], n_heads: int) -> Tensor:
    """One Transformer block in pre-LN order.

    Parameters
    ----------
    x : Tensor, float, (batch, time, d_model)
        The residual stream.
    weights : dict of str to Tensor
        The block's weights, named as printed above.
    n_heads : int

    Returns
    -------
    Tensor, float, (batch, time, d_model)
        The residual stream after the block; `x` itself stays as it is, and gradients pass through the block.
    """
    ### BEGIN SOLUTION
    x = x + attention_half(normalize(x, weights, "norm1"), weights, n_heads)
    return x + ffn_half(normalize(x, weights, "norm2"), weights)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_1_5_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 1.5: run this cell.
import torch
import torch.nn.functional as F

from helpers import checks, data
from helpers.checkpoint import load_course_model
from helpers.models import Block, ModelConfig
from helpers.models import causal_mask as reference_mask


@checks.isolated
def check_ex_1_5() -> None:
    from helpers import samples

    def run(x: torch.Tensor, weights: dict[str, torch.Tensor], n_heads: int) -> torch.Tensor:
        with checks.untouched(x=x, weights=weights):
            return pre_ln_block(x, weights, n_heads)

    def small_block(seed: int, d_model: int, n_heads: int) -> Block:
        torch.manual_seed(seed)
        block = Block(ModelConfig(d_model=d_model, n_heads=n_heads, d_ff=20))
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        return block

    def cases(seed: int) -> list[tuple]:
        """What it is, a block and its input: other heads, several texts, one position, loud and quiet numbers, odd memory."""
        found = []
        for d_model, n_heads, batch, length in [(16, 4, 2, 7), (12, 1, 1, 3), (8, 2, 3, 1), (12, 3, 3, 4)]:
            block, x = small_block(seed + d_model, d_model, n_heads), torch.randn(batch, length, d_model)
            what = f"for {batch} text(s) of {length} position(s) and {n_heads} head(s)"
            found.append((what, block, x))
        found += [(f"{what}, numbers {size} times as large", block, x * size) for size in (100, 0.001)]
        found += [(f"{what}, where x is {name}", block, form) for name, form in samples.awkward(x)]
        return [*found, (f"{what}, in float64", small_block(seed, 12, 3).double(), x.double())]

    with checks.check("1.5", "your block equals the course model's own, with its trained weights, and other blocks"):
        trained = load_course_model()
        ids = data.encode("The quick brown fox jumps over the lazy dog.")[None]
        with torch.no_grad():
            x = trained.embed(ids)
            block, heads = trained.blocks[0], trained.config.n_heads
            look = reference_mask(ids.shape[1])

            def attend(y: torch.Tensor) -> torch.Tensor:
                return block.attention(y, look)

            a, expected = attend(block.norm1(x)), block(x, look)
            answer, again = run(x, block.state_dict(), heads), run(x, block.state_dict(), heads)
            checks.tensor(answer, x.shape, "your block's output", torch.float32)
            assert torch.equal(answer, again), (
                "two calls with the same numbers give different outputs: is a dropout on?"
            )
            checks.close(
                answer,
                expected,
                "your block's output",
                mistakes={
                    "both residuals are missing: each half's result must be added to x.": block.ffn(block.norm2(a)),
                    "the two LayerNorms are swapped: norm1 belongs to attention.": (
                        lambda y: y + block.ffn(block.norm1(y))
                    )(x + attend(block.norm2(x))),
                    "the halves are in the wrong order: attention comes first.": (lambda y: y + attend(block.norm1(y)))(
                        x + block.ffn(block.norm2(x))
                    ),
                    "the first residual is missing: attention's result must be added to x.": a
                    + block.ffn(block.norm2(a)),
                    "the second residual is missing: the FFN's result must be added to x.": block.ffn(
                        block.norm2(x + a)
                    ),
                    "the attention half is normalized by norm1 and so is the FFN half: that one has its own, norm2.": x
                    + a
                    + block.ffn(block.norm1(x + a)),
                    "the FFN reads x from before attention: use the x that attention was added to.": x
                    + a
                    + block.ffn(block.norm2(x)),
                    "the FFN's result is added to the x from before attention: attention's result is lost.": x
                    + block.ffn(block.norm2(x + a)),
                    "this is post-LN: you normalize after adding. Normalize the copy that a half reads.": block.norm2(
                        block.norm1(x + attend(x)) + block.ffn(block.norm1(x + attend(x)))
                    ),
                    "you normalize what a half returns: normalize the copy that it reads.": (
                        lambda y: y + block.norm2(block.ffn(y))
                    )(x + block.norm1(attend(x))),
                    "you normalize the residual stream itself: x must be added as it was, only the copy that attention and the "
                    "FFN read is normalized.": (
                        lambda n1: (lambda n2: n2 + block.ffn(n2))(block.norm2(n1 + attend(n1)))
                    )(block.norm1(x)),
                    "the halves read x without LayerNorm.": x + attend(x) + block.ffn(x + attend(x)),
                    "the attention half reads x without LayerNorm.": (lambda y: y + block.ffn(block.norm2(y)))(
                        x + attend(x)
                    ),
                    "the FFN half reads x without LayerNorm.": x + a + block.ffn(x + a),
                    "the FFN half is missing.": x + a,
                    "the attention half is missing.": x + block.ffn(block.norm2(x)),
                    "x is added twice in the second line: x already holds the residual stream.": x
                    + x
                    + a
                    + block.ffn(block.norm2(x + a)),
                },
                atol=1e-4,
                rtol=1e-4,
            )
            third = trained.blocks[2]
            checks.close(
                run(x, third.state_dict(), heads),
                third(x, look),
                "your output for block 2 of the course model",
                mistakes={
                    "it is that of block 0: use the weights that your function is given, not `block_weights`.": expected
                },
                atol=1e-4,
                rtol=1e-4,
            )
            small = small_block(4, 12, 2)
            always_four = Block(ModelConfig(d_model=12, n_heads=4, d_ff=20))
            always_four.load_state_dict(small.state_dict())
            y = torch.randn(2, 5, 12)
            checks.close(
                run(y, small.state_dict(), 2),
                small(y, reference_mask(5)),
                "your output for a block with 2 heads",
                mistakes={"it is computed with 4 heads: use n_heads.": always_four(y, reference_mask(5))},
                atol=1e-4,
                rtol=1e-4,
            )
        for what, block, x in cases(50):
            answer = run(x, dict(block.named_parameters()), block.attention.n_heads)
            checks.tensor(answer, x.shape, f"your output {what}", x.dtype)
            if x.requires_grad:
                (slope,) = torch.autograd.grad(answer.square().sum(), x, retain_graph=True, allow_unused=True)
                (right,) = torch.autograd.grad(
                    block(x, reference_mask(x.shape[1])).square().sum(), x, retain_graph=True
                )
                assert slope is not None and torch.allclose(slope, right, rtol=1e-3, atol=1e-3), (
                    "no gradient, or a part of it, passes through your block: is there a detach or a no_grad?"
                )
            expected = block(x, reference_mask(x.shape[1]))
            checks.close(answer, expected, f"your output {what}", atol=1e-5, rtol=1e-4)
    ### BEGIN HIDDEN TESTS
    trained = load_course_model()
    stream = trained.embed(data.encode("Pack my box with five dozen liquor jugs.")[None]).detach()
    for what, block, x in [("for block 1", trained.blocks[1], stream), *cases(200), *cases(300)]:
        with torch.no_grad():
            expected = block(x, reference_mask(x.shape[1]))
            answer = run(x, block.state_dict(), block.attention.n_heads)
            again = run(x, block.state_dict(), block.attention.n_heads)
        torch.testing.assert_close(answer, expected, atol=1e-4 if x.shape[-1] == 256 else 1e-5, rtol=1e-4), what
        assert torch.equal(answer, again), "two calls with the same numbers give different outputs: is a dropout on?"
    block, x = small_block(210, 8, 2), torch.randn(2, 3, 8, requires_grad=True)
    (right,) = torch.autograd.grad(block(x, reference_mask(3)).square().sum(), x)
    (slope,) = torch.autograd.grad(run(x, block.state_dict(), 2).square().sum(), x, allow_unused=True)
    torch.testing.assert_close(slope, right, rtol=1e-3, atol=1e-3)
    ### END HIDDEN TESTS


check_ex_1_5()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two lines, one a half. Each begins with `x + `.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# Attention reads `normalize(x, weights, "norm1")`. The FFN reads a normalized copy of the *new* x, with its own LayerNorm.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `x = x + attention_half(normalize(x, …), weights, n_heads)`, and the same once more for the FFN, with its own norm.
# </details>

# %% [markdown]
# ## 6. A language model: guess the next byte
#
# Put the pieces together: an **embedding** table turns each byte into a vector, positions are added, blocks follow, and a
# last LayerNorm and a last Linear layer, the **head** (not an attention head: the word has two meanings), turn each vector into
# 256 scores (**logits**), one for each possible next byte. A softmax makes probabilities of them. Training moves all weights so
# that the true next byte becomes likelier.
#
# The text is what ships with Python itself: its help topics and the docstrings of its standard library. About one document in
# ten is **held out**: this course trains its models of text on the others.
#
# Watch a small model learn. It takes a little while.

# %%
training_ids = data.encode(data.split_text("training"))
held_out = data.windows("held_out", 32)  # the first 257 bytes of 32 documents: (32, 257)

torch.manual_seed(0)
tiny = TransformerLM(ModelConfig(context=64, d_model=64, n_heads=2, n_layers=2, d_ff=256))
optimizer = torch.optim.AdamW(tiny.parameters(), lr=4e-3)
batches = data.random_batches(training_ids, context=64, batch_size=32, generator=torch.Generator().manual_seed(0))

steps, losses = [], []
for step in range(401):
    inputs, targets = next(batches)  # each (32, 64); a target is the byte after its input
    loss = F.cross_entropy(tiny(inputs).flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        steps.append(step)
        losses.append(loss.item() / math.log(2))
    if step % 100 == 0:
        print(f"step {step:3}: {losses[-1]:.1f} bits per byte")

fig, ax = plots.figure(height=2.8, width=7)
plots.loss_curve(ax, steps, losses)
ax.axhline(8, color=plots.GREY, linestyle="--", linewidth=1)
ax.annotate("no idea: every byte equally likely", (200, 8), ha="center", va="bottom", color=plots.GREY)
ax.set_ylim(0, 9)
plots.show(
    fig,
    caption="A model with two small blocks learns which bytes are frequent, then which follow which.",
    alt="The loss falls from 8 bits per byte within twenty steps to about 5, stays there for a hundred, and then slowly falls to about 3.4.",
)

# %% [markdown]
# What do these numbers mean? A model gives each byte $x_t$ of a text a probability, given the bytes before it. The **bits
# per byte** of a text of $N$ predicted bytes are
#
# $$\text{bits per byte} = \frac{1}{N} \sum_{t} -\log_2 p(x_t \mid x_{<t})$$
#
# It is the size that a good coder would give the text with the model's probabilities: 8 means no compression, 2 means a quarter.
# **Perplexity** says the same as a number of choices: $2^{\text{bits per byte}}$. A model of 2 bits per byte is as unsure as if it had
# to pick one of 4 equally likely bytes. The perplexities that you read in papers are often *per token*, and a token is mostly several bytes
# long: divide by bytes, or compare only models with the same tokens.
#
# By hand: if a model gives the two bytes to be predicted the probabilities $1/2$ and $1/8$, it needs $(1 + 3)/2 = 2$ bits per
# byte.
#
# ### Exercise 1.6: bits per byte and perplexity
# *Difficulty 3 of 5 · 15 minutes · 2 points*
#
# `F.cross_entropy(logits, targets, reduction="sum")` adds up $-\ln p$ of the targets, in **nats**; a bit is $\ln 2$ nats. Write it
# inside `with torch.no_grad():`, which tells PyTorch that nobody is going to train here, so it need not remember every step. Each batch is a tensor of ids (texts, time): the model reads
# all bytes but the last and must predict all bytes but the first. Batches differ in size, and *every predicted byte counts alike*.


# %% nbgrader={"grade": false, "grade_id": "ex_1_6", "locked": false, "schema_version": 3, "solution": true, "task": false}
def evaluate(model: nn.Module, batches: list[Tensor]) -> dict[str, float]:
    """How well a language model predicts text.

    Parameters
    ----------
    model : Module
        Maps ids (texts, time) to logits (texts, time, 256); logits at position t are for the byte at t + 1.
    batches : list of Tensor, int64, each (texts, time)
        Different batches may have different shapes.

    Returns
    -------
    dict
        "bits_per_byte": mean of -log2 p over all predicted bytes of all batches; "perplexity": 2 to that power.

    Example
    -------
    A model whose logits are all 0 needs 8 bits per byte and has perplexity 256.
    """
    ### BEGIN SOLUTION
    nats, count = 0.0, 0
    for ids in batches:
        with torch.no_grad():
            logits = model(ids[:, :-1])  # (texts, time - 1, 256)
        targets = ids[:, 1:]  # (texts, time - 1)
        nats += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
        count += targets.numel()
    bits = nats / count / math.log(2)
    return {"bits_per_byte": bits, "perplexity": 2**bits}
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_1_6_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 1.6: run this cell.
import math

import torch

from helpers import checks
from helpers.models import ModelConfig, TransformerLM


@checks.isolated
def check_ex_1_6() -> None:
    gradients = []  # was PyTorch told that nobody trains? One entry a call of the model

    class Pairs(torch.nn.Module):
        """A model that looks at the last byte only, with logits of any size."""

        def __init__(self, size: float) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(256, 256) * size)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            gradients.append(torch.is_grad_enabled())
            return self.table[ids]

    def score(model: torch.nn.Module, batches: list[torch.Tensor]) -> dict[str, float]:
        with checks.untouched(model=model, batches=batches):
            answer = evaluate(model, batches)
        checks.given(answer, "your answer")
        assert isinstance(answer, dict), f"your answer should be a dict, not {type(answer).__name__}."
        assert set(answer) == {"bits_per_byte", "perplexity"}, (
            f'your dict should have the keys "bits_per_byte" and "perplexity", and not {", ".join(map(repr, answer))}.'
        )
        for key, value in answer.items():
            assert isinstance(value, float), (
                f'your "{key}" is a {type(value).__name__}, and should be a float: .item() makes one of a tensor with one number.'
            )
        return answer

    def nats_of(model: torch.nn.Module, batches: list[torch.Tensor]) -> list[torch.Tensor]:
        with torch.no_grad():
            return [-model(b[:, :-1]).double().log_softmax(-1).gather(2, b[:, 1:, None])[..., 0] for b in batches]

    def bits_of(model: torch.nn.Module, batches: list[torch.Tensor]) -> float:
        return torch.cat([n.flatten() for n in nats_of(model, batches)]).mean().item() / math.log(2)

    def weighted(means: list[torch.Tensor], weights: list[int]) -> float:
        return sum(m.item() * w for m, w in zip(means, weights, strict=True)) / sum(weights) / math.log(2)

    with checks.check("1.6", "bits, not nats; every byte counts alike; the target is the next byte"):
        torch.manual_seed(33)  # with these numbers, no two of the mistakes below give the same result
        judged = TransformerLM(ModelConfig(context=32, d_model=16, n_heads=2, n_layers=1, d_ff=32)).eval()
        for parameter in judged.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        batches = [torch.randint(256, shape) for shape in [(3, 20), (1, 4), (5, 9), (6, 2)]]
        for ids in batches:
            ids[0, 1] = 0  # a byte like any other
        nats = nats_of(judged, batches)
        means, texts = [n.mean() for n in nats], [len(ids) for ids in batches]
        lengths, bytes_ = [ids.shape[1] for ids in batches], [ids.numel() for ids in batches]
        predicted = [n.numel() for n in nats]
        with torch.no_grad():
            same_byte = torch.cat(
                [-judged(ids).double().log_softmax(-1).gather(2, ids[..., None]).flatten() for ids in batches]
            )
            unshifted = torch.cat(
                [
                    -judged(ids[:, :-1]).double().log_softmax(-1).gather(2, ids[:, :-1, None]).flatten()
                    for ids in batches
                ]
            )
        every = torch.cat([n.flatten() for n in nats])
        not_zero = torch.cat([ids[:, 1:].flatten() for ids in batches]) != 0
        in_nats = every.mean().item()
        expected = in_nats / math.log(2)
        answer = score(judged, batches)
        checks.number(
            answer["bits_per_byte"],
            expected,
            "your bits_per_byte",
            mistakes={
                "these are nats: divide by ln 2.": in_nats,
                "you multiplied by ln 2 instead of dividing.": in_nats * math.log(2),
                "these are logarithms of base 10: bits belong to base 2.": in_nats / math.log(10),
                "it is negative: bits are minus the logarithm of a probability.": -expected,
                "you divided by the number of all bytes, but the first byte of each text is not predicted.": expected
                * sum(predicted)
                / sum(bytes_),
                "you divided by the number of texts: divide by the number of predicted bytes.": expected
                * sum(predicted)
                / sum(texts),
                "you divided by the number of batches: divide by the number of predicted bytes.": expected
                * sum(predicted)
                / len(batches),
                "you divided means by the number of predicted bytes: divide sums by it.": sum(means).item()
                / sum(predicted)
                / math.log(2),
                "you averaged the means of the batches, so a byte in a small batch counts more: sum over all bytes, then divide "
                "once by their number.": weighted(means, [1] * len(means)),
                "these are means of batches, and in nats.": weighted(means, [1] * len(means)) * math.log(2),
                "you averaged the means of the texts (a mean of the batches that counts each text alike is the same), so a byte in a short text "
                "counts more: sum over all bytes, then divide "
                "once by their number.": weighted([row.mean() for n in nats for row in n], [1] * sum(texts)),
                "the mean of a batch counts as often as it has bytes, but it is a mean over its *predicted* bytes, texts * "
                "(time - 1): multiply it by that number.": weighted(means, bytes_),
                "the mean of a batch counts as often as its texts are long: multiply it by all bytes that it is a mean of, texts * "
                "(time - 1).": weighted(means, lengths),
                "the mean of a batch counts as often as one of its texts has predicted bytes: a batch has several texts, so "
                "multiply by texts * (time - 1).": weighted(means, [length - 1 for length in lengths]),
                "only the last batch counts: add to a total in the loop.": means[-1].item() / math.log(2),
                "only the first batch counts: is there a return inside the loop?": means[0].item() / math.log(2),
                "the bytes with the number 0 are left out: they are bytes like any other.": every[not_zero]
                .mean()
                .item()
                / math.log(2),
                "the model predicts the byte that it has just read: the target of position t is the byte at t + 1.": unshifted.mean().item()
                / math.log(2),
                "the model is asked for the byte that it has just read: targets must be shifted by one.": same_byte.mean().item()
                / math.log(2),
            },
            rtol=3e-6,
        )
        batch_perplexities = [math.exp(m) for m in means]
        checks.number(
            answer["perplexity"],
            2**expected,
            "your perplexity",
            mistakes={
                "you raised e to the bits: bits belong to base 2.": math.exp(expected),
                "you raised 2 to the nats: 2 belongs to bits.": 2**in_nats,
                "you averaged the perplexities of the batches: it is 2 to the bits per byte of all.": sum(
                    batch_perplexities
                )
                / len(batches),
                "you averaged the perplexities of the bytes: it is 2 to the mean of their bits.": every.exp()
                .mean()
                .item(),
            },
            rtol=3e-5,
        )
        pairs = Pairs(1.0)
        bits = score(pairs, batches)["bits_per_byte"]
        assert not any(gradients), (
            "while your function calls the model, PyTorch remembers every step for a training that will not come: do it inside "
            "`with torch.no_grad():`."
        )
        checks.number(bits, bits_of(pairs, batches), "your bits_per_byte of another model", rtol=3e-6)
        sure = Pairs(60.0)  # sure of itself, and mostly wrong
        answer, expected = score(sure, batches), bits_of(sure, batches)
        assert math.isfinite(answer["bits_per_byte"]), (
            "your bits_per_byte of a model that is very sure is inf or nan: the probability of a byte was rounded to 0 before you "
            "took its logarithm. F.cross_entropy and log_softmax work with logits, and have no such end."
        )
        checks.number(answer["bits_per_byte"], expected, "your bits_per_byte of a model that is very sure", rtol=3e-6)
        checks.number(
            math.log2(answer["perplexity"]), answer["bits_per_byte"], "the logarithm of its perplexity", rtol=1e-6
        )
        flat = score(Pairs(0.0), [torch.randint(256, (3, 10))])
        checks.number(flat["bits_per_byte"], 8, "your bits_per_byte of a model whose logits are all 0", rtol=1e-6)
        checks.number(flat["perplexity"], 256, "your perplexity of a model whose logits are all 0", rtol=1e-5)
    ### BEGIN HIDDEN TESTS
    gradients.clear()
    torch.manual_seed(300)
    silent = TransformerLM(ModelConfig(context=16, d_model=8, n_heads=1, n_layers=1, d_ff=8, tied_head=False)).eval()
    torch.nn.init.zeros_(silent.head.weight)
    flat = score(silent, [torch.randint(256, (3, 10))])
    assert abs(flat["bits_per_byte"] - 8) < 1e-4 and abs(flat["perplexity"] - 256) < 0.1, (
        "equally likely bytes need 8 bits."
    )
    reader = TransformerLM(ModelConfig(context=32, d_model=16, n_heads=2, n_layers=1)).eval()
    for parameter in reader.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for model in (reader, Pairs(2.0), Pairs(70.0)):
        batches = [torch.randint(256, shape) for shape in [(1, 2), (5, 30), (2, 7)]]
        for ids in batches:
            ids[0, 1] = 0
        answer, expected = score(model, batches), bits_of(model, batches)
        assert abs(answer["bits_per_byte"] / expected - 1) < 5e-6, (
            f"wrong bits per byte: {answer['bits_per_byte']} instead of {expected}."
        )
        assert abs(math.log2(answer["perplexity"]) / expected - 1) < 5e-6, "wrong perplexity."
        assert torch.is_grad_enabled(), "your code switches gradients off for the whole notebook."
    assert not any(gradients), "call the model inside `with torch.no_grad():`."
    ### END HIDDEN TESTS


check_ex_1_6()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Keep two running totals over all batches, a sum of nats and a count of bytes, and divide once at the end.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# `ids[:, :-1]` goes into the model, `ids[:, 1:]` are the targets. `F.cross_entropy(…, reduction="sum")` wants logits (bytes, 256)
# and targets (bytes,): flatten the first two dimensions of both.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# In the loop: `logits = model(ids[:, :-1])`, `nats += F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(),
# reduction="sum").item()`, `count += …`. After it: `bits = nats / count / math.log(2)`.
# </details>

# %% [markdown]
# ### The course model, and honest baselines
#
# The course model has the same design, four times as wide and twice as deep, and was trained for longer than a lesson lasts.
# Its model card says how, and what simpler means make of the same held-out text: counts of single bytes (*unigram*), of pairs
# (*bigram*) and of three in a row (*trigram*) in the training text, and the compression program LZMA, alone and *primed*, that is
# after it has read the whole training text.

# %%
card = load_card(COURSE_MODEL)
print(
    f"{card['steps']} steps of {card['bytes_per_step']} bytes, {card['wall_seconds'] / 60:.0f} minutes on two shared cores, Python {card['python']}"
)

scores = dict(card["held_out_baselines_bits_per_byte"]) | {"course model": card["held_out_bits_per_byte"]}
fig, ax = plots.figure(height=2.6)
plots.bars(ax, scores, "bits per byte on held-out documents (lower is better)", decimals=2)
plots.show(
    fig,
    caption="From the model card: all held-out documents, one after another, each byte scored once. After the first 256 bytes the "
    "model always sees at least the 128 bytes before.",
    alt="Bar chart of bits per byte: unigram about 4.8, bigram 3.8, trigram 2.9, LZMA 2.5, LZMA that has read the training text "
    "1.7, and the course model lowest.",
)

# %% [markdown]
# The course model beats the compressor even when the compressor has first read the training text. That matters: what a model has not
# learned, quantization cannot take from it, so the cost of quantization is best measured on a good one.
#
# Now let it write. The logits are divided by a *temperature* of 0.7, which makes likely bytes likelier, and the next byte is drawn
# from their softmax; then the next, and so on.

# %% tags=["varies"]
prompt = "The statement "
written = model.generate(data.encode(prompt)[None], 200, temperature=0.7, generator=torch.Generator().manual_seed(2))
print(data.decode(written[0]))

for length in (65, 257):
    print(f"\nbits per byte on the first {length} bytes of 32 held-out documents:")
    if length <= 65:  # the tiny model reads at most 64 bytes
        bits = metrics.bits_per_byte(tiny, held_out[:, :length].split(8))
        print(f"  tiny model   {bits:.2f}, perplexity {metrics.perplexity(bits):.2f}")
    bits = metrics.bits_per_byte(model, held_out[:, :length].split(8))
    print(f"  course model {bits:.2f}, perplexity {metrics.perplexity(bits):.2f}")

# %% [markdown]
# At the start of a document the model has little to look back at, so the number for 65 bytes is worse than the one for 257. The
# quality of every model in this unit is measured from here on with these 32 windows of 257 bytes. (The two measures move together: a
# difference of 0.01 bits per byte is one of 0.7 % in perplexity, because $2^{0.01} = 1.007$. This course gives bits per byte.)

# %% [markdown]
# ## 7. What fills the shelves?
#
# Dr. Frankenstein's question. Before anything is made smaller, find out what is large. A stored model consists of its
# **parameters**, the tensors that training can move (a *frozen* one takes its room as well). There may also be **buffers**, tables that
# are not trained: ours, the positions, is computed and not stored in the file. And one tensor may be used twice: our head uses the
# embedding table as its weight (**tied** weights). It takes its room once.
#
# ### Exercise 1.7: bytes by component
# *Difficulty 3 of 5 · 15 minutes · 2 points*
#
# Add up the bytes of all parameters by component. A parameter belongs to
#
# | component | if its name contains |
# |---|---|
# | `"norm"` | `norm` |
# | `"attention"` | `attention` |
# | `"ffn"` | `ffn` |
# | `"embedding"` | `embedding` |
# | `"head"` | `head` |
#
# `model.named_parameters()` gives names and tensors, for instance `("blocks.0.norm1.weight", …)`; the last LayerNorm is called
# `norm`. A tensor that has several names counts once, under the first of them (so ours is `"embedding"`); two tensors with equal
# numbers are two. A component without parameters of its own gets 0. The bytes of a number depend on its dtype, and a model may mix
# dtypes: ask each tensor, as in exercise 0.1.


# %% nbgrader={"grade": false, "grade_id": "ex_1_7", "locked": false, "schema_version": 3, "solution": true, "task": false}
def bytes_by_component(model: nn.Module) -> dict[str, int]:
    """Bytes of a model's parameters by component; buffers are not counted, a shared tensor counts once.

    Parameters
    ----------
    model : Module
        Each parameter's name contains one of the five words of the table. It is not changed.

    Returns
    -------
    dict of str to int
        Keys "embedding", "attention", "ffn", "norm" and "head", values in bytes.
    """
    ### BEGIN SOLUTION
    total = dict.fromkeys(("embedding", "attention", "ffn", "norm", "head"), 0)
    for name, parameter in model.named_parameters():  # a tied tensor once, under its first name
        component = next(key for key in ("norm", "attention", "ffn", "embedding", "head") if key in name)
        total[component] += parameter.numel() * parameter.element_size()
    return total
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_1_7_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 1.7: run this cell.
import torch

from helpers import checks
from helpers.models import ModelConfig, TransformerLM


@checks.isolated
def check_ex_1_7() -> None:
    import numbers

    from torch import nn

    keys = {"embedding", "attention", "ffn", "norm", "head"}

    def count(model: nn.Module) -> dict[str, int]:
        copyable = isinstance(model, TransformerLM)  # a deep copy of the other one has its memory in other pieces
        with checks.untouched(model=model if copyable else None):
            answer = bytes_by_component(model)
        checks.given(answer, "your answer")
        assert isinstance(answer, dict), f"your answer should be a dict, not {type(answer).__name__}."
        assert set(answer) == keys, (
            'your dict should have exactly the keys "embedding", "attention", "ffn", "norm" and "head"'
            + (
                f"; {', '.join(map(repr, keys - set(answer)))} is missing."
                if keys - set(answer)
                else ", and no others."
            )
        )
        for key, value in answer.items():
            assert isinstance(value, numbers.Integral) and not isinstance(value, bool), (
                f'your "{key}" is a {type(value).__name__}, and should be an int: bytes come in whole numbers.'
            )
        return {key: int(value) for key, value in answer.items()}

    def language_model(d: int, f: int, layers: int, tied: bool = True) -> TransformerLM:
        return TransformerLM(ModelConfig(context=50, d_model=d, n_heads=2, n_layers=layers, d_ff=f, tied_head=tied))

    def sizes(d: int, f: int, layers: int, tied: bool = True, each: int = 4) -> dict[str, int]:
        return {
            "embedding": each * 256 * d,
            "attention": each * layers * 4 * (d * d + d),
            "ffn": each * layers * (2 * d * f + d + f),
            "norm": each * (2 * layers + 1) * 2 * d,
            "head": 0 if tied else each * 256 * d,
        }

    def odd_ones(d: int, f: int) -> list[tuple]:
        """What it is, a model, its bytes, and for known mistakes the component and its wrong bytes."""
        layers, usual, found = 3, sizes(d, f, 3), []
        model = language_model(d, f, layers)
        for parameter in (model.embedding.weight, *model.blocks[1].ffn.parameters()):
            parameter.requires_grad_(False)
        one = 4 * (2 * d * f + d + f)
        frozen = "frozen parameters are left out: nobody trains them, but they take their room."
        found.append(
            ("of a model with frozen parameters", model, usual, {frozen: {"embedding": 0, "ffn": usual["ffn"] - one}})
        )

        model = language_model(d, f, layers, tied=False)
        with torch.no_grad():
            model.head.weight.copy_(model.embedding.weight)
        equal = (
            "the head has the same numbers as the embedding, but in a tensor of its own: two tensors take room twice."
        )
        found.append(
            ("of a model with two equal tables", model, usual | {"head": usual["embedding"]}, {equal: {"head": 0}})
        )

        model = language_model(d, f, layers)
        for block in model.blocks:
            block.ffn.bfloat16(), block.norm1.double()
        mixed = usual | {"ffn": usual["ffn"] // 2, "norm": usual["norm"] + 4 * layers * 2 * d}
        taken = "one size of number is taken for all parameters: ask each for its own."
        found.append(
            ("of a model with mixed dtypes", model, mixed, {taken: {"ffn": usual["ffn"], "norm": usual["norm"]}})
        )

        model = language_model(d, f, layers)
        for block in model.blocks:
            block.attention.q.weight = block.attention.k.weight = model.blocks[0].attention.q.weight
        tied = usual | {"attention": usual["attention"] - 4 * (2 * layers - 1) * d * d}
        twice = "a tensor that several layers share is counted several times."
        found.append(
            ("of a model with one matrix in six places", model, tied, {twice: {"attention": usual["attention"]}})
        )

        model = language_model(d, f, layers)
        model.head = nn.Linear(d, 256)
        model.head.weight = model.embedding.weight
        bias = "the head has a bias of its own, also where its weight is tied."
        found.append(("of a model with a tied head and a bias", model, usual | {"head": 4 * 256}, {bias: {"head": 0}}))

        memory = torch.zeros(8, d)  # of which two parameters show two rows each
        model = nn.ModuleDict({
            "embedding": nn.Embedding(f, d),
            "attention": nn.Sequential(nn.Linear(d, d), nn.Sequential(nn.Linear(d, 3, bias=False))),
            "ffn": nn.ModuleList([nn.Conv1d(d, f, 3), nn.Linear(f, d)]),
            "norm": nn.BatchNorm1d(d),
        })  # fmt: skip
        model["head"] = nn.ParameterDict({"left": nn.Parameter(memory[:2]), "right": nn.Parameter(memory[4:6])})
        other = {
            "embedding": 4 * f * d,
            "attention": 4 * (d * d + d + 3 * d),
            "ffn": 4 * (3 * d * f + f + f * d + d),
            "norm": 4 * 2 * d,
            "head": 4 * 4 * d,
        }
        wrong = {
            "buffers (the averages of a BatchNorm) are counted with the parameters.": {"norm": 4 * 4 * d + 8},
            "two parameters that lie in one piece of memory are two.": {"head": 4 * 2 * d},
            "a parameter may be a part of a larger memory: count its own numbers.": {"head": 2 * 4 * 8 * d},
        }
        return [*found, ("of a model that is no TransformerLM", model, other, wrong)]

    with checks.check("1.7", "every parameter counted once, in bytes of its own dtype, and no buffer"):
        d, f, layers, context = 16, 40, 3, 50
        counted, expected = language_model(d, f, layers), sizes(d, f, layers)
        table = expected["embedding"]
        answer = count(counted)
        checks.number(
            answer["head"],
            expected["head"],
            'your "head" of a model with tied weights',
            mistakes={"the head's weight is the embedding table itself: that tensor was counted twice.": table}
            if answer["embedding"] == table
            else {
                "that tensor should count as the embedding, the first of its names.": table,
                "this is a number of parameters, not of bytes, and the tied tensor was counted twice.": table // 4,
            },
        )
        for name, right in expected.items():
            checks.number(
                answer[name],
                right,
                f'your "{name}"',
                mistakes={
                    "this is a number of parameters, not of bytes.": right // 4,
                    "these are bits: element_size() is in bytes.": right * 8,
                    "the tied tensor was counted twice.": 2 * right if name == "embedding" else -1,
                    "buffers (the table of positions) were counted with the parameters.": right + 4 * context * d,
                    "the tied tensor should count as embedding.": 0 if name == "embedding" else -1,
                    "the last LayerNorm, model.norm, is missing.": right - 8 * d if name == "norm" else -1,
                    "only one block was counted.": right // layers if name in ("attention", "ffn") else -1,
                    "biases were left out.": {
                        "attention": right - 4 * layers * 4 * d,
                        "ffn": right - 4 * layers * (d + f),
                        "norm": right // 2,
                    }.get(name, -1),
                },
            )
        halved = count(language_model(d, f, layers).bfloat16())
        checks.number(
            halved["ffn"],
            expected["ffn"] // 2,
            'your "ffn" of the same model in bfloat16',
            mistakes={"a bfloat16 number has 2 bytes: use element_size(), not 4.": expected["ffn"]},
        )
        for what, model, right, wrong in odd_ones(12, 20):
            answer = count(model)
            for name in right:
                checks.number(
                    answer[name],
                    right[name],
                    f'your "{name}" {what}',
                    mistakes={sentence: values[name] for sentence, values in wrong.items() if name in values},
                )
    ### BEGIN HIDDEN TESTS
    for tied in (True, False):
        for d, f, layers, size, dtype in [
            (8, 12, 1, 4, torch.float32),
            (12, 7, 2, 8, torch.float64),
            (8, 8, 4, 2, torch.float16),
        ]:
            answer, expected = count(language_model(d, f, layers, tied).to(dtype)), sizes(d, f, layers, tied, size)
            assert answer == expected, (
                f"wrong for tied_head={tied}, d_model={d}, {dtype}: {answer} instead of {expected}."
            )
    for what, model, right, _ in odd_ones(8, 14):
        answer = count(model)
        assert answer == right, f"wrong {what}: {answer} instead of {right}."
    ### END HIDDEN TESTS


check_ex_1_7()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# `model.named_parameters()` knows about shared tensors and gives each once. `model.state_dict()` lists a shared tensor under each of
# its names.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# Print the names of all parameters of `model` first. The final LayerNorm is called `norm.weight`: it, too, contains `norm`.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# Start with `total = dict.fromkeys(("embedding", "attention", "ffn", "norm", "head"), 0)`. In the loop find the key that is part of
# the name and add `parameter.numel() * …`.
# </details>

# %% [markdown]
# And the time? The next cell runs the course model on 8 texts of 256 bytes, and lets a stopwatch in each component add up how
# long it took: the median of several runs, in per cent of the sum.


# %% tags=["varies"]
parts = {
    "embedding": [model.embedding],
    "attention": [block.attention for block in model.blocks],
    "ffn": [block.ffn for block in model.blocks],
    "norm": [model.norm, *(norm for block in model.blocks for norm in (block.norm1, block.norm2))],
    "head": [model.head],
}
stored = {name: sum(p.nbytes for module in modules for p in module.parameters()) for name, modules in parts.items()}
if model.config.tied_head:
    stored["head"] = 0  # its weight is the embedding


def seconds_by_component(ids: Tensor) -> dict[str, float]:
    """Seconds spent in each component during one forward pass of the course model."""
    spent, started, handles = dict.fromkeys(parts, 0.0), {}, []

    def start(module: nn.Module, inputs: tuple) -> None:
        started[module] = time.perf_counter()

    def stop(name: str, module: nn.Module) -> None:
        spent[name] += time.perf_counter() - started[module]

    for name, modules in parts.items():
        for module in modules:
            handles.append(module.register_forward_pre_hook(start))
            handles.append(module.register_forward_hook(lambda module, _in, _out, name=name: stop(name, module)))
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return spent


ids = held_out[:8, :256]
runs = [seconds_by_component(ids) for _ in range(8)][1:]  # the first run warms up
seconds = {name: median(run[name] for run in runs) for name in runs[0]}

fig, (left, right) = plots.figure(columns=2, width=9, height=2.6)
plots.bars(left, {name: 100 * size / sum(stored.values()) for name, size in stored.items()}, "% of the bytes")
plots.bars(
    right,
    {name: 100 * spent / sum(seconds.values()) for name, spent in seconds.items()},
    "% of the time, 8 × 256 bytes",
)
plots.show(
    fig,
    caption=f"Where the {sum(stored.values()) / 1e6:.1f} MB and the time of the course model are. (The head has no bytes of its own: it is tied.)",
    alt="Two bar charts. Of the bytes, the feed-forward networks hold about two thirds and attention one third; embedding and norms are "
    "tiny. Of the time, attention and the feed-forward networks take the most by far.",
)

linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
inside = sum(module.weight.nbytes for module in linears if module.weight is not model.embedding.weight)
print(
    f"{len(linears)} Linear layers; their weights, without the tied table, are {100 * inside / sum(stored.values()):.1f} % of the bytes"
)

# %% [markdown]
# So the bytes of this model are in the weights of its Linear layers: four in each of the four attentions and two in each of the four
# FFNs; with the head they are 25. That is where to start. (This vocabulary is tiny: 256 bytes. With the tens of thousands of tokens of
# other models, the embedding takes a far larger share: unit 04 draws it.)

# %% [markdown]
# ## 8. Less than a third of the size: dynamic int8 quantization
#
# The idea of **int8 quantization** in one line: store each weight as a whole number $q$ between −128 and 127, with one shared
# **scale** $s$ for many of them, so that $w \approx s \cdot q$. One byte a weight instead of four. Unit 02 builds it by hand;
# here you use PyTorch's shortest road to it:
#
# > **Dynamic quantization**: the weights of the Linear layers become int8 *once, now*. When the model runs, each layer also turns
# > its input into integers (of 7 bits with the engines of PCs, of 8 with `qnnpack`: unit 02 says why), with a scale that it takes from
# > that very input (that is the *dynamic* part), multiplies integers, and turns the result back into `float32`.
#
# The function is `torch.ao.quantization.quantize_dynamic(model, qconfig_spec, dtype=…)`. `qconfig_spec` is a *set* of layer types.
#
# ### Exercise 1.8: quantize the course model
# *Difficulty 2 of 5 · 10 minutes · 2 points*
#
# Return a dynamically quantized int8 **copy**: every Linear layer swapped, everything else as it was. The model that came in must
# stay as it is, to the last bit, and share no tensor with the copy: you still need it to compare with. (The type is called `torch.qint8`, not `torch.int8`. The tied
# head gets an int8 copy of the table as its weight; the embedding keeps the table itself, in float. The tie is cut.)


# %% nbgrader={"grade": false, "grade_id": "ex_1_8", "locked": false, "schema_version": 3, "solution": true, "task": false}
def quantize_to_int8(model: nn.Module) -> nn.Module:
    """A copy of `model` whose Linear layers are dynamically quantized to int8; `model` itself is unchanged.

    Parameters
    ----------
    model : Module
        In eval mode.

    Returns
    -------
    Module
        In eval mode; it shares nothing with `model`.
    """
    ### BEGIN SOLUTION
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_1_8_check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 1.8: run this cell.
import torch

from helpers import checks, data, describe, int8, metrics
from helpers.checkpoint import load_course_model


@checks.isolated
def check_ex_1_8() -> None:
    import traceback

    from torch import nn

    from helpers import samples, witness
    from helpers.models import ModelConfig, TransformerLM

    def spec_of(error: Exception) -> object:
        """What quantize_dynamic was told to quantize when it raised."""
        specs = [frame.f_locals.get("qconfig_spec") for frame, _ in traceback.walk_tb(error.__traceback__)]
        return next((spec for spec in specs if spec is not None), ())

    def quantized(model: nn.Module) -> nn.Module:
        engine = torch.backends.quantized.engine
        try:
            with checks.untouched(model=model):
                answer = quantize_to_int8(model)
        except (AttributeError, TypeError, RuntimeError) as error:
            if "Unknown dtype" in str(error):
                raise AssertionError(f"PyTorch says {error}: the type is called torch.qint8, not torch.int8.") from None
            if "'get'" not in str(error) and "iterable" not in str(error):
                raise
            raise AssertionError(
                f"quantize_dynamic cannot use what you passed ({error}): after the model comes a set of layer types, "
                "{nn.Linear}, and then dtype=torch.qint8."
            ) from None
        except AssertionError as error:
            if "Embedding quantization" not in str(error):
                raise
            raise AssertionError(
                f"PyTorch refuses: {error} "
                + (
                    "You named nn.Embedding; this exercise quantizes Linear layers only."
                    if nn.Embedding in spec_of(error)
                    else "You gave a qconfig to the whole model, so to its Embedding, too: name the layers, {nn.Linear}."
                )
            ) from None
        assert torch.is_grad_enabled(), "your function switches gradients off, for the whole notebook."
        assert torch.backends.quantized.engine == engine, (
            f"your function switches PyTorch's int8 engine to {torch.backends.quantized.engine}, for the whole notebook."
        )
        checks.given(answer, "your model")
        assert isinstance(answer, nn.Module), f"your answer should be a model, not {type(answer).__name__}."
        return answer

    def rest_that_differs(answer: nn.Module, model: nn.Module) -> str:
        """What is other in the answer although it is no Linear layer, as half a sentence; "" if nothing is."""
        parts = dict(answer.named_modules())
        for name, part in model.named_modules():
            called, other = name or "the model", parts.get(name)
            if isinstance(part, nn.Linear):
                continue
            if type(other) is not type(part):
                return f"{called} is now {type(other).__name__}, and was {type(part).__name__}"
            if other.training:
                return f"{called} is in training mode"
            if getattr(other, "qconfig", None) is not None:
                return f"a qconfig is left in {called}"
            if other._forward_hooks or other._forward_pre_hooks:
                return f"hooks are left in {called}"
            for kind in ("named_parameters", "named_buffers"):
                theirs = dict(getattr(other, kind)(recurse=False))
                for key, tensor in getattr(part, kind)(recurse=False):
                    found = theirs.get(key)
                    if found is None or found.dtype != tensor.dtype or not torch.equal(found, tensor):
                        return f"{key} of {called} is another one"
                    if found.requires_grad != tensor.requires_grad:
                        return f"requires_grad of the {key} of {called} is now {found.requires_grad}"
        more = set(parts) - {name for name, _ in model.named_modules()}
        more = sorted(name for name in more if not name.endswith("_packed_params"))
        if more:
            return f"the model has no {more[0]}, and your copy has"
        if getattr(model, "config", None) != getattr(answer, "config", None):
            return "its config is another one"
        return ""

    def judge(answer: nn.Module, model: nn.Module, ids: torch.Tensor, what: str) -> None:
        """Everything that must be true of any quantized copy."""
        assert answer is not model, (
            "you return the very model that came in. quantize_dynamic leaves it as it is and returns a quantized copy: return that."
        )
        kinds = {type(part).__name__ for part in answer.modules()}
        assert not any("Observer" in kind or "FakeQuant" in kind for kind in kinds), (
            "your model was prepared, and not converted: it still holds observers. Dynamic quantization needs neither step, "
            "quantize_dynamic does all of it."
        )
        linears = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        dtypes, dequantized = describe.weight_dtypes(answer), describe.dequantized_weights(answer)
        missing = [name for name in linears if dtypes.get(name) != "torch.qint8"]
        if len(missing) == len(linears):
            halves = [n for n in linears if isinstance(answer.get_submodule(n), torch.ao.nn.quantized.dynamic.Linear)]
            assert not halves, "your weights are packed as float16, not as int8: dtype=torch.qint8."
            waiting = [name for name in linears if getattr(answer.get_submodule(name), "qconfig", None) is not None]
            assert not waiting, "your Linear layers have a qconfig, but nothing carries it out: call quantize_dynamic."
            raise AssertionError(
                f"no Linear layer of {what} is int8, their weights are {dtypes[missing[0]]}: quantize_dynamic found nothing to swap. "
                "It wants the layer type itself, {nn.Linear}: no string, and no layer that you have just made."
            )
        assert not missing, (
            f"{len(missing)} of {len(linears)} Linear layers of {what} are not int8, among them {missing[0]}."
        )
        for name, part in linears.items():
            error = (dequantized[name] - part.weight).abs().max()
            assert error <= 0.51 * part.weight.abs().max() / 127, (
                f"the weight of {name} in {what} is off by {error:.2g}: that is more than half of a step of 8 bits."
            )
            bias, kept = answer.get_submodule(name).bias(), torch.zeros(()) if part.bias is None else part.bias
            assert bias is None or (bias == kept).all(), (  # qnnpack makes zeros where there is no bias
                f"the bias of {name} in {what} is another one: biases stay as they are."
            )
        assert dtypes.get("embedding", "torch.float32") == "torch.float32", "the embedding must stay float32 here."
        difference = rest_that_differs(answer, model)
        assert not difference, f"besides the Linear layers, nothing of {what} should change: {difference}."
        shared = witness.independent(answer, model)
        assert not shared, f"your copy of {what} is not independent: {shared}. Whoever changes one changes the other."
        with torch.no_grad():
            output, reference = answer(ids), int8.dynamic_int8(model)(ids)
            floats = model(ids)
        assert not torch.equal(output, floats), "your model computes exactly what the float model does."
        error = (output - reference).norm() / reference.norm()
        assert error < 0.1, (
            f"the outputs for {what} are {error:.3f} (relative) away from those of PyTorch's dynamic int8."
        )

    def language_model(seed: int, tied: bool) -> TransformerLM:
        torch.manual_seed(seed)
        config = ModelConfig(context=16, d_model=32, n_heads=2, n_layers=2, d_ff=64, tied_head=tied)
        model = TransformerLM(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.15)
        model.blocks[0].norm1.weight.requires_grad_(False)
        return model

    def others(seed: int) -> None:
        """The course model's small relatives, odd models, and another engine, if this computer has one."""
        ids = torch.randint(256, (2, 16))
        for tied in (True, False):
            model = language_model(seed, tied)
            judge(quantized(model), model, ids, f"a small model, {'tied' if tied else 'not tied'}")
        assert witness.runs_in_int8(quantized(model), model, ids, ("embedding",)), (
            "your model does not compute with its int8 weights: it hides a float copy."
        )
        for what, model, x in samples.zoo(seed):
            judge(quantized(model), model, x, what)
        for engine in int8.engines()[1:]:
            with int8.using(engine):
                judge(quantized(model), model, x, f"{what}, with the engine {engine}")

    with checks.check(
        "1.8", "all 25 Linear layers are int8, the quality is nearly the same, the original is untouched"
    ):
        original = load_course_model()
        ids = data.windows("held_out", 4)
        answer = quantized(original)
        judge(answer, original, ids[:1, :32], "the course model")
        gap = metrics.bits_per_byte(answer, [ids]) - metrics.bits_per_byte(original, [ids])
        assert abs(gap) < 0.02, (
            f"your model needs {gap:+.3f} bits per byte more than the float model: int8 costs this model much less than 0.02."
        )
        others(8)
    ### BEGIN HIDDEN TESTS
    others(400)
    untied = language_model(401, tied=False)
    kinds = describe.weight_dtypes(quantized(untied))
    linears = {name for name, part in untied.named_modules() if isinstance(part, nn.Linear)}
    assert {name for name, kind in kinds.items() if kind == "torch.qint8"} == linears, "not each Linear layer is int8."
    ### END HIDDEN TESTS


check_ex_1_8()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# One line. Look at the function's signature above: model, what to quantize, dtype.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# A set of types is written `{nn.Linear}`. The function returns the quantized model: return it.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `return torch.ao.quantization.quantize_dynamic(model, {…}, dtype=torch.qint8)`
# </details>

# %% [markdown]
# ### What did it cost, what did it buy?

# %%
small = int8.dynamic_int8(model)  # (what your exercise 1.8 returns)

float_each = torch.cat([metrics.next_byte_bits(model, rows).mean(dim=1) for rows in held_out.split(8)])  # (32,)
int8_each = torch.cat([metrics.next_byte_bits(small, rows).mean(dim=1) for rows in held_out.split(8)])
difference = int8_each - float_each  # bits per byte, document by document
float_bits, int8_bits = float_each.mean().item(), int8_each.mean().item()
float_size, int8_size = metrics.file_bytes(model), metrics.file_bytes(small)
print(f"bits per byte  float {float_bits:.4f}   int8 {int8_bits:.4f}")
print(f"perplexity     float {metrics.perplexity(float_bits):.3f}    int8 {metrics.perplexity(int8_bits):.3f}")
error = difference.std().item() / len(difference) ** 0.5
print(
    f"difference     {difference.mean():+.4f} ({100 * (int8_bits / float_bits - 1):+.2f} %), standard error {error:.4f}"
)
print(
    f"file           float {float_size / 1e6:.2f} MB  int8 {int8_size / 1e6:.2f} MB  {float_size / int8_size:.2f} times smaller"
)

with torch.no_grad():
    ids = held_out[:4, :256]
    float_logits, int8_logits = model(ids), small(ids)
signal_to_noise = metrics.sqnr_db(float_logits, int8_logits)
agree = (float_logits.argmax(-1) == int8_logits.argmax(-1)).float().mean().item()
print(f"logits         {int((float_logits == int8_logits).sum())} of {float_logits.numel():,} are equal in both models")

fig, ax = plots.figure(width=4.4, height=4.2)
chosen = torch.randperm(float_logits.numel(), generator=torch.Generator().manual_seed(0))[:5000]
plots.agreement(
    ax, float_logits.flatten()[chosen].numpy(), int8_logits.flatten()[chosen].numpy(), ("float logit", "int8 logit")
)
plots.show(
    fig,
    caption=f"5,000 logits, float against int8. Signal-to-noise ratio {signal_to_noise:.1f} dB; the likeliest byte is the same in {100 * agree:.1f} % of all positions.",
    alt="A narrow cloud of points along the diagonal: each int8 logit is close to its float logit, none is far away.",
)

# %% [markdown]
# Nearly every logit is a little wrong, and the quality hardly moves. (*Signal-to-noise ratio*: how much larger the logits are than their
# errors, on a logarithmic scale; 20 dB is a factor of ten.) Is the difference in bits per byte, up or down, even real? The *standard
# error* says how far such a mean of 32 documents is off by chance; a difference of less than two of them proves nothing. Unit 05
# makes this precise.
#
# Why is the file not four times smaller? The embedding is still float, the tied head now has a copy of its own, and biases and
# LayerNorms stay as they are.
#
# ### The small print of dynamic quantization
#
# Each layer takes *one* scale from its whole input: all positions, all texts of the batch. So a single loud byte makes the steps
# coarser for everybody, also for earlier positions. Section 2 promised that the future changes nothing in the past. Try 64 other
# bytes at the end of a text, and see how far they move what was computed for the positions before it. Then put the text into a batch
# with seven others:

# %%
text = held_out[:1, :64]
with torch.no_grad():
    for name, candidate in (("float", model), ("int8", small)):
        before, moved = candidate(text), []
        for byte in range(64, 128):
            other = text.clone()
            other[0, -1] = byte
            moved.append(
                (candidate(other) - before)[0, :-1].abs().amax(dim=1)
            )  # (63,): largest change at each position
        worst = torch.stack(moved).amax(dim=0)  # (63,)
        print(
            f"{name:5}: {int((worst > 1e-3).sum())} of 63 earlier positions moved, the logits by up to {worst.max():.2f};",
            f"in company of other texts, by up to {(candidate(held_out[:8, :64])[:1] - before).abs().max():.2f}",
        )

# %% [markdown]
# The float model keeps the promise (what it shows is rounding in the last digits, if anything); the int8 model does not: it is not
# strictly causal, and its answer for one text depends on which other texts are in the batch. Tools that need exact repetition (such as
# a compressor) must know this. Unit 02 shows schemes with a scale for each row, which avoid it.
#
# ### And speed?
#
# Measured here, on this computer, side by side: the float and the int8 model take turns, and the number is the median of
# the ratios. Below 1, int8 is faster.


# %% tags=["varies"]
def time_ratio(first: nn.Module, second: nn.Module, ids: Tensor, repeats: int = 9) -> float:
    """Median of seconds(second) / seconds(first) over interleaved runs."""
    ratios = []
    for _ in range(repeats + 2):
        seconds = []
        for candidate in (first, second):
            start = time.perf_counter()
            with torch.no_grad():
                candidate(ids)
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[1] / seconds[0])
    return median(ratios[2:])  # the first two warm up


print(f"int8 engine: {torch.backends.quantized.engine}, {torch.get_num_threads()} threads")
for texts, length in [(1, 1), (1, 16), (1, 256), (8, 256)]:
    print(
        f"{texts} text(s) of {length:3} byte(s): int8 takes {time_ratio(model, small, held_out[:texts, :length]):.2f} times as long as float"
    )

# %% [markdown]
# > **The book says:** quantization saves memory and computation *without* giving up accuracy or performance.
# >
# > **What happens:** look at your numbers above. The file shrinks by more than a factor of three. Nearly every logit changes, and whether the
# > quality does is a question of measuring well enough: 32 documents may be too few to see it. Whether int8 is *faster* depends on how much there
# > is to multiply, since turning inputs into integers costs time, too: compare your first line, one byte, with your last.
# > Above 1, int8 is the slower one. Never promise speed before you have measured it, on the machine and the sizes that count.
#
# > **The book says:** post-training dynamic quantization converts the weights during inference.
# >
# > **What happens:** the next cell looks at a weight before and after the model's first run. It is int8 before, and the same int8
# > codes after. Only the *inputs* of a layer are quantized during inference.

# %% tags=["nbval-check-output"]
fresh = int8.dynamic_int8(model)
layer = fresh.blocks[0].ffn.up
before = layer.weight().int_repr().clone()
print("before the first run:", layer.weight().dtype)
with torch.no_grad():
    fresh(held_out[:1, :256])
print("codes unchanged by the run:", torch.equal(before, layer.weight().int_repr()))

# %% [markdown]
# > **The book says:** the Linear layers are passed to `quantize_dynamic` as a dictionary, in a parameter `modules_to_fuse`.
# >
# > **What happens:** there is no such parameter. Run it:

# %% tags=["nbval-check-output"]
errors.show_error(lambda: torch.ao.quantization.quantize_dynamic(model, modules_to_fuse={nn.Linear}))

# %% [markdown]
# > **What works:** a set of types as `qconfig_spec`, as in your exercise. *Fusing* is something else, and unit 03 does it.

# %% [markdown]
# ## 9. Keep it: save and load safely
#
# > **The book says:** load a whole model with `torch.load("….pt")`, and save the quantized one whole, with `torch.save(model)`.
# >
# > **What happens:** saving works. Loading is refused since PyTorch 2.6, which made `weights_only=True` the default:

# %%
with tempfile.TemporaryDirectory() as folder:
    whole = Path(folder) / "whole_model.pt"
    torch.save(small, whole)
    errors.show_error(lambda: torch.load(whole))

# %% [markdown]
# For a good reason. Such a file is a *pickle*: a small program that Python runs while it loads, and that can do on your computer
# whatever you can. It also breaks as soon as a class is renamed. `weights_only=False` would switch the guard off; use it only for files that you
# made yourself, if ever. With `weights_only=True`, a guarded reader admits tensors, plain Python containers, numbers and strings, and a
# short list of harmless types.
#
# > **What works:** save the **state_dict** (a dictionary of tensors, `model.state_dict()`) and the few numbers that describe the model,
# > with `torch.save(a_dictionary, path)`. To load, rebuild a model of the same *form*, then fill in the tensors with
# > `model.load_state_dict(…)` (which changes the model and returns only a report). A quantized model has other tensors than a float
# > model, so the empty form, the *skeleton*, must be quantized **before** it is filled.
#
# ### Exercise 1.9: save and load the quantized model
# *Difficulty 4 of 5 · 20 minutes · 3 points*
#
# Write both functions. The file holds a dictionary with two entries: `"config"`, the result of `model.config.to_dict()`, and
# `"state_dict"`, each as it is. The loader opens it with `weights_only=True`, rebuilds `TransformerLM(ModelConfig(**config))` in eval
# mode, quantizes that skeleton, and fills it. The outputs before and after must be equal to the last bit.


# %% nbgrader={"grade": false, "grade_id": "ex_1_9", "locked": false, "schema_version": 3, "solution": true, "task": false}
def save_quantized(model: nn.Module, path: str) -> None:
    """Save a dynamically quantized `TransformerLM` as {"config": …, "state_dict": …}, without any pickled class."""
    ### BEGIN SOLUTION
    torch.save({"config": model.config.to_dict(), "state_dict": model.state_dict()}, path)
    ### END SOLUTION


def load_quantized(path: str) -> nn.Module:
    """Load what `save_quantized` wrote: a dynamically quantized `TransformerLM` in eval mode.

    Raises
    ------
    pickle.UnpicklingError
        If the file holds a pickled class instead (``torch.load`` with ``weights_only=True`` raises it).
    """
    ### BEGIN SOLUTION
    stored = torch.load(path, weights_only=True)
    skeleton = TransformerLM(ModelConfig(**stored["config"])).eval()
    quantized = torch.ao.quantization.quantize_dynamic(skeleton, {nn.Linear}, dtype=torch.qint8)
    quantized.load_state_dict(stored["state_dict"])
    return quantized
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "ex_1_9_check", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# Check of exercise 1.9: run this cell.
import pickle
import tempfile
from pathlib import Path

import torch

from helpers import checks, describe, int8
from helpers.models import ModelConfig, TransformerLM


@checks.isolated
def check_ex_1_9() -> None:
    import os

    from torch import Tensor, nn

    from helpers import witness

    def made(seed: int, **changes: object) -> nn.Module:
        """A quantized model with random weights."""
        torch.manual_seed(seed)
        usual = {"context": 16, "d_model": 32, "n_heads": 2, "n_layers": 2, "d_ff": 64}
        return int8.dynamic_int8(TransformerLM(ModelConfig(**(usual | changes))).eval())

    def output(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return model(torch.arange(36).view(3, 12) * 7)

    def same(a: object, b: object) -> bool:
        """Two entries of a state_dict, which may be tensors, dtypes, and tuples of them."""
        if isinstance(a, tuple):
            return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
        if isinstance(a, Tensor):
            return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return a == b

    def save(model: nn.Module, path: str) -> None:
        with checks.untouched(model=model):
            save_quantized(model, path)

    class Trap:
        """A pickled program: whoever runs it makes a folder."""

        def __init__(self, folder: str) -> None:
            self.folder = folder

        def __reduce__(self) -> tuple:
            return os.mkdir, (self.folder,)

    def refuses_programs(folder: str) -> None:
        model, path = made(20), str(Path(folder) / "untrusted.pt")
        content = {"config": model.config.to_dict(), "state_dict": model.state_dict()}
        trusted = list(torch.serialization.get_safe_globals())
        for what, untrusted in {
            "holds a whole pickled model": model,
            "holds a pickled class beside its tensors": content | {"config": model.config},
            "holds a program beside its tensors": content | {"more": Trap(str(Path(folder) / "it_ran"))},
        }.items():
            torch.save(untrusted, path)
            try:
                load_quantized(path)
            except pickle.UnpicklingError:
                pass
            except Exception as error:
                raise AssertionError(
                    f"your loader meets a file that {what}, which could run any program, and stops with {type(error).__name__}: "
                    f"{error}. torch.load(path, weights_only=True) raises pickle.UnpicklingError by itself: let it through."
                ) from None
            else:
                raise AssertionError(
                    f"your loader opens a file that {what}, which could run any program: use weights_only=True."
                )
            assert not (Path(folder) / "it_ran").exists(), (
                "your loader has run a program that was in its file, before it refused: use weights_only=True from the start."
            )
        assert torch.serialization.get_safe_globals() == trusted, (
            "your loader makes PyTorch trust more classes for good."
        )

    with (
        checks.check("1.9", "plain tensors in the file, and the same outputs to the last bit after loading"),
        tempfile.TemporaryDirectory() as folder,
    ):
        path, quantized = str(Path(folder) / "model.pt"), made(19)
        save(quantized, path)
        files = sorted(os.listdir(folder))
        assert Path(path).is_file(), "save_quantized wrote no file at the path it was given" + (
            f", but one called {files[0]}." if files else "."
        )
        assert len(files) == 1, f"save_quantized leaves other files beside its own: {', '.join(files)}."
        try:
            content = torch.load(Path(path), weights_only=True)
        except (pickle.UnpicklingError, EOFError, RuntimeError):
            try:
                content = torch.load(Path(path), weights_only=False)  # the learner's own file, a moment old
            except Exception:
                raise AssertionError(
                    "torch.load cannot read your file: was it written by torch.save? (pickle.dump makes another format.)"
                ) from None
            kind = type(content).__name__
            inside = [f'"{k}" is a {type(v).__name__}' for k, v in content.items()] if isinstance(content, dict) else []
            raise AssertionError(
                "your file holds a pickled class"
                + (f", in your dictionary: {', '.join(inside)}. " if inside else f", a {kind}. ")
                + "Save model.config.to_dict() and model.state_dict(), which are plain."
            ) from None
        assert isinstance(content, dict) and set(content) == {"config", "state_dict"}, (
            'your file should hold a dictionary with exactly the entries "config" and "state_dict"'
            + (
                ", and holds the state_dict alone."
                if isinstance(content, dict) and "embedding.weight" in content
                else f", and holds a {type(content).__name__} with {', '.join(map(repr, content))}."
                if isinstance(content, dict)
                else f", and holds a {type(content).__name__}."
            )
        )
        config, wanted = content["config"], quantized.config.to_dict()
        assert isinstance(config, dict), (
            f'your "config" is a {type(config).__name__}, and should be the dictionary model.config.to_dict(), not a text of it.'
        )
        assert config == wanted, f'your "config" is {config}; model.config.to_dict() is {wanted}.'
        stored, state = content["state_dict"], quantized.state_dict()
        assert isinstance(stored, dict) and set(stored) == set(state), (
            "the stored state_dict is not that of the quantized model."
        )
        assert hasattr(stored, "_metadata"), (
            "your state_dict is a plain copy: PyTorch keeps version notes in an attribute of the original, dict(…) drops them, "
            "and quantized layers cannot be loaded without. Save model.state_dict() itself."
        )
        for name, entry in state.items():
            dtype, kept = getattr(stored[name], "dtype", None), getattr(entry, "dtype", None)
            assert dtype == kept, f"{name} is stored as {dtype}, but was {kept}: store every tensor as it is."
            assert same(entry, stored[name]), f"{name} is stored with other numbers than the model has."

        expected, written = output(quantized), Path(path).read_bytes()
        try:
            loaded = load_quantized(path)
        except (RuntimeError, KeyError) as error:
            text = str(error)
            if "state_dict" not in text and ".weight" not in text and ".scale" not in text:
                raise
            raise AssertionError(
                "load_state_dict refuses the tensors: "
                + (
                    "the skeleton has other sizes. Build it from the config in the file."
                    if "size mismatch" in text
                    else "the skeleton has other layers than the model that was saved."
                    if "blocks.0.attention.q._packed_params" not in text
                    else "the skeleton is not quantized yet. Do you fill the model that quantize_dynamic returned? "
                )
                + " PyTorch says: "
                + text.strip().splitlines()[0]
            ) from None
        checks.given(loaded, "your loaded model")
        assert hasattr(loaded, "state_dict"), (
            f"load_quantized returned {type(loaded).__name__}, not a model: load_state_dict only reports, return the model."
        )
        assert loaded is not quantized, (
            "your loader returns the very model that was saved, from memory. Tomorrow it will not be there: make it from the file."
        )
        assert not describe.is_training(loaded), "the loaded model is in training mode: call .eval() on the skeleton."
        assert describe.weight_dtypes(loaded) == describe.weight_dtypes(quantized), (
            "the loaded model is not quantized: a float skeleton has no place for int8 weights, and strict=False drops them in "
            "silence. Quantize the skeleton first, then load."
        )
        awake = [n for n, m in loaded.named_modules() if m.training and not type(m).__module__.startswith("torch.ao.")]
        assert not awake, f"{awake[0]} of the loaded model is in training mode: call .eval() on the skeleton."
        assert getattr(loaded, "config", None) == quantized.config, "the loaded model has another config, or none."
        answer = output(loaded)
        assert torch.equal(answer, expected), (
            f"the loaded model's outputs differ by up to {(answer - expected).abs().max():.3g}: are all tensors loaded, with strict=True?"
        )
        assert Path(path).read_bytes() == written, "your loader changes the file that it reads."
        shared = witness.independent(load_quantized(path), loaded)
        assert not shared, f"two calls of your loader give models that hang together: {shared}."
        for again, changes in enumerate([{}, {"tied_head": False, "d_model": 24, "n_heads": 3, "n_layers": 1}]):
            other = made(30 + again, **changes)
            torch.save({"config": other.config.to_dict(), "state_dict": other.state_dict()}, path)
            loaded = load_quantized(path)
            assert not torch.equal(output(loaded), expected), (
                "another file now has the same name, and your loader still gives the old model: it must read the file each time."
            )
            assert torch.equal(output(loaded), output(other)), (
                "your loader gets other outputs from a file that is right."
            )
        refuses_programs(folder)
    ### BEGIN HIDDEN TESTS
    import subprocess
    import sys
    import textwrap

    reader = """
        import sys, torch
        from helpers import int8, known_warnings
        from helpers.models import ModelConfig, TransformerLM
        known_warnings.hide()
        int8.choose_engine()
        stored = torch.load(sys.argv[1], weights_only=True)
        model = int8.dynamic_int8(TransformerLM(ModelConfig(**stored["config"])).eval())
        model.load_state_dict(stored["state_dict"])
        case = torch.load(sys.argv[2], weights_only=True)
        torch.set_num_threads(case["threads"])
        with torch.no_grad():
            assert torch.equal(model(case["ids"]), case["expected"]), "another process gets other outputs from your file"
        """
    with tempfile.TemporaryDirectory() as folder:
        path, case = str(Path(folder) / "theirs.pt"), str(Path(folder) / "case.pt")
        quantized = made(500, context=12, d_model=24, n_heads=3, n_layers=1, d_ff=40, tied_head=False)
        ids = torch.randint(256, (3, 12))
        with torch.no_grad():
            expected = quantized(ids)
        save(quantized, path)
        assert os.listdir(folder) == ["theirs.pt"], (
            "save_quantized writes other files than the one that it was asked for."
        )
        content = torch.load(path, weights_only=True)
        assert set(content) == {"config", "state_dict"}, "the file should hold exactly two entries."
        assert content["config"] == quantized.config.to_dict(), "the stored config is another one."
        stored, state = content["state_dict"], quantized.state_dict()
        assert set(stored) == set(state) and all(same(state[name], stored[name]) for name in state), "wrong tensors."
        for seed, changes in [(501, {"tied_head": False}), (502, {"d_ff": 48}), (503, {"n_layers": 3, "n_heads": 4})]:
            other = made(seed, **changes)
            torch.save({"config": other.config.to_dict(), "state_dict": other.state_dict()}, path)
            written, loaded = Path(path).read_bytes(), load_quantized(path)
            assert written == Path(path).read_bytes(), "the loader has changed its file."
            assert torch.equal(output(loaded), output(other)), "your loader gets other outputs from a correct file."
            assert describe.weight_dtypes(loaded) == describe.weight_dtypes(other), "the loaded model is not quantized."
            awake = [m for m in loaded.modules() if m.training and not type(m).__module__.startswith("torch.ao.")]
            assert not awake, "a part of the loaded model is in training mode."
            assert loaded.config == other.config, "the loaded model has another config."
            assert not witness.independent(load_quantized(path), loaded), "two loaded models share memory."
        refuses_programs(folder)
        save(quantized, path)
        torch.save({"ids": ids, "expected": expected, "threads": torch.get_num_threads()}, case)
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(reader), path, case],
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"COURSE_INT8_ENGINE": torch.backends.quantized.engine},
        )
        assert done.returncode == 0, f"a fresh process could not use your file: {done.stderr.strip().splitlines()[-1:]}"
    ### END HIDDEN TESTS


check_ex_1_9()

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Saving is one line. Loading takes four: open, rebuild, quantize, fill.
# </details>
#
# <details><summary>Hint 2: the key step</summary>
#
# The skeleton's weights are random; that does not matter, they are all replaced. What matters is that the skeleton has been through
# `quantize_dynamic`, so that it has the same tensors, by name and type, as the model that was saved.
# </details>
#
# <details><summary>Hint 3: nearly the code</summary>
#
# `torch.save({"config": …, "state_dict": model.state_dict()}, path)`; then
# `skeleton = TransformerLM(ModelConfig(**stored["config"])).eval()`, quantize it as in exercise 1.8, call `load_state_dict` on
# the result and return it.
# </details>

# %% [markdown]
# ## Where you stand

# %% tags=["varies"]
checks.show_progress("1", exercises=9)

# %% [markdown]
# *Before sunrise the creature fits on one shelf. It speaks nearly as before; now and then it chooses another letter than it would
# have. Dr. Frankenstein writes down the difference, and how sure of it he is. "I do not say that it was free," he notes. "I say how much
# it cost, and how far off I may be."*
#
# ## Key takeaways
#
# - Attention is a softmax of scaled dot products that averages values; a mask works *before* the softmax (1.1, 1.2).
# - A right shape proves nothing: `view` instead of `transpose` mixes positions in silence (1.3).
# - Bits per byte count every byte alike; perplexity is two to that power (1.6).
# - Of *this* model, with its 256 tokens, 97.5 % of the bytes are weights of Linear layers (section 7), so int8 for these alone makes the
#   file more than three times smaller (1.8). A large vocabulary changes that (unit 04).
# - The weights are int8 from the moment you call `quantize_dynamic`; what is quantized while it runs are the inputs (section 8).
# - One scale for a whole input ties positions and texts together: dynamic int8 is not strictly causal (section 8).
# - Save tensors and numbers, never pickled classes; quantize the skeleton before you fill it (1.9).
#
# **When not to use dynamic quantization.** If your batches are tiny and your layers narrow, int8 may well be slower than float: look at
# the first lines of your own measurement. On a graphics card, PyTorch has no kernel for these dynamic layers: its packed weights for
# cuDNN run static int8 layers only, and [answer that the dynamic call is not
# implemented](https://github.com/pytorch/pytorch/blob/v2.13.0/aten/src/ATen/native/quantized/cudnn/utils.h). If results must not depend
# on the batch, use another scheme. And if the file size does not matter to anyone, float needs no proof.
#
# **References.** Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762) · Xiong et al. 2020,
# [On Layer Normalization in the Transformer Architecture](https://arxiv.org/abs/2002.04745) · Jacob et al. 2018,
# [Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference](https://arxiv.org/abs/1712.05877) ·
# PyTorch, [`torch.load` and `weights_only`](https://docs.pytorch.org/docs/stable/generated/torch.load.html)
