# %% [markdown]
# # Transformer basics
#
# Build a Transformer from numbers that you can check by hand, meet the trained model of this course, and make it more than
# three times smaller: with proof of what that cost.
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
# of the loop variable. A Transformer looks back with **attention**: every position asks a question of itself and of all
# positions before it, and mixes what they answer.
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
# $\sqrt d$? A dot product of $d$ random numbers of size 1 has size $\sqrt d$. Undivided, the softmax of a wide model
# would put nearly everything on one position, and its gradient would be nearly zero, so that it could hardly learn.
#
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
# These are all the tensor operations that the next three exercises need:

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
    with checks.check("1.1", "your attention equals PyTorch's, with and without a mask, and hidden values do not leak"):
        generator = torch.Generator().manual_seed(11)
        q, k, v = (torch.randn(2, rows, width, generator=generator) for rows, width in [(4, 16), (6, 16), (6, 5)])
        scores = q @ k.mT / 4
        checks.close(
            attention(q, k, v),
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
                "d is the length of one query, q.shape[-1]; you took the number of queries.": F.scaled_dot_product_attention(
                    q, k, v, scale=4**-0.5
                ),
                "d is the length of one query, q.shape[-1]; you took the length of a value.": F.scaled_dot_product_attention(
                    q, k, v, scale=5**-0.5
                ),
                "d is the length of one query, q.shape[-1]; you took the number of texts.": F.scaled_dot_product_attention(
                    q, k, v, scale=2**-0.5
                ),
                "the softmax runs over the texts: for each query, the weights of its keys must sum to 1 (the last "
                "dimension).": scores.softmax(dim=0) @ v,
                "the softmax runs over the queries: for each query, the weights of its keys must sum to 1 (the last "
                "dimension).": scores.softmax(dim=-2) @ v,
            },
        )
        mask = torch.rand(4, 6, generator=generator) < 0.6
        mask[:, 0] = True
        checks.close(
            attention(q, k, v, mask),
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
            },
        )
        one_key = torch.zeros(4, 6, dtype=torch.bool)
        one_key[:, 2] = True
        checks.close(
            attention(q, k * 30, v, one_key),
            v[:, 2:3].expand(-1, 4, -1),
            "with large scores and only key 2 allowed, your output",
        )
    ### BEGIN HIDDEN TESTS
    for seed, (batch, query, key, d, d_v) in enumerate(
        [((3,), 5, 5, 4, 4), ((2, 3), 1, 7, 9, 2), ((), 6, 3, 64, 8), ((1,), 2, 2, 2, 1)]
    ):
        generator = torch.Generator().manual_seed(100 + seed)
        q, k = torch.randn(*batch, query, d, generator=generator), torch.randn(*batch, key, d, generator=generator)
        v = torch.randn(*batch, key, d_v, generator=generator)
        mask_shape = (*batch[:1], *(1 for _ in batch[1:]), query, key) if seed % 2 else (query, key)
        mask = torch.rand(mask_shape, generator=generator) < 0.5
        mask[..., -1] = True
        before = [q.clone(), k.clone(), v.clone(), mask.clone()]
        for chosen in (None, mask):
            expected = F.scaled_dot_product_attention(q, k, v, attn_mask=chosen)
            torch.testing.assert_close(attention(q, k, v, chosen), expected, atol=1e-5, rtol=1e-5)
        assert all(torch.equal(a, b) for a, b in zip(before, [q, k, v, mask], strict=True)), (
            "your function changes its inputs."
        )
        hidden = ~mask.reshape(-1, key).any(dim=0)  # keys that nobody may look at
        spoiled = v.clone()
        spoiled[..., hidden, :] = 1e6
        torch.testing.assert_close(attention(q, k, spoiled, mask), expected, atol=1e-5, rtol=1e-5)
    loud = torch.randn(3, 8, generator=torch.Generator().manual_seed(7)) * 40
    assert torch.isfinite(attention(loud, loud, loud)).all(), (
        "large scores overflow: use softmax, not exp and a division."
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
# would simply copy the answer. So a query may look at itself and at what came before:
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
# Return this table for any length, as a boolean tensor. The check does not look at the table only: it changes a byte in
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
    with checks.check("1.2", "the future changes nothing in the past, and the whole past can be seen"):
        mask = causal_mask(5)
        checks.tensor(mask, (5, 5), "your mask")
        assert mask.dtype == torch.bool, f"your mask is {mask.dtype}: it must be bool. " + (
            "(A mask of 0 and minus infinity is added to the scores; PyTorch takes that too, this exercise does not.)"
            if torch.isinf(mask.float()).any()
            else "Numbers 0 and 1 would be added to the scores, and hide nothing."
        )
        assert not torch.equal(~mask, torch.ones(5, 5, dtype=torch.bool).tril()), (
            "your mask is upside down: here True means that the query may look (some parts of PyTorch mean the opposite)."
        )
        assert mask.diagonal().all(), (
            "a position may look at itself: your diagonal is False, so position 0 sees nothing at all."
        )
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
                "(rows are queries, columns are keys; is it transposed?)."
            )
        for changed in range(5):
            assert all(moved[changed][changed:]), (
                f"a change at position {changed} did not reach every later position: a part of the past is hidden."
            )
    ### BEGIN HIDDEN TESTS
    for length in (1, 2, 7, 33):
        mask = causal_mask(length)
        assert mask.dtype == torch.bool and mask.shape == (length, length), "wrong dtype or shape."
        for query in range(length):
            for key in range(length):
                assert bool(mask[query, key]) == (key <= query), (
                    f"wrong at query {query}, key {key} of length {length}."
                )
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
# One softmax makes one choice. A position that needs both the last bracket *and* the first letter of the word needs two. So the
# vectors of width $d_\text{model}$ are cut into $h$ pieces of width $d_\text{head} = d_\text{model} / h$, called **heads**,
# and each head does its own attention. Then the pieces are put back side by side.
#
# Cutting is a matter of shapes, and this is where a classic silent mistake lives. The numbers of one position lie next to
# each other in memory: head 0's, then head 1's. The next cell shows for a text of 3 positions and 2 heads what belongs to
# whom; `21` means position 2, column 1.

# %% tags=["nbval-check-output"]
x = torch.tensor([[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]])  # (time 3, d_model 4)
print("head 0 should hold the first two columns of every position:\n", x[:, :2].tolist())
print("head 1 the last two:\n", x[:, 2:].tolist())
print("x.view(2, 3, 2) has the right shape, but its head 0 is\n", x.view(2, 3, 2)[0].tolist())

# %% [markdown]
# In the last line, "head 0" got both heads of position 0 and half of position 1, and nothing of position 2. The shape is right, no
# error is raised, and the model computes nonsense.
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
        Head 0 holds the first d_model // n_heads columns of every position, head 1 the next ones, and so on.
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
    with checks.check("1.3", "each head holds its own columns of every position, as in nn.MultiheadAttention"):
        x = torch.arange(2 * 3 * 8.0).view(2, 3, 8)
        by_loop = torch.stack([x[:, :, head * 4 : head * 4 + 4] for head in range(2)], dim=1)  # (2, heads 2, time 3, 4)
        checks.close(
            split_heads(x, 2),
            by_loop,
            "split_heads of 2 texts, 3 positions, 8 columns, 2 heads",
            mistakes={
                "the shape is right but positions are mixed: a view cannot move the head dimension in front of time. View "
                "as (batch, time, heads, d_head) first, then transpose.": x.view(2, 2, 3, 4),
                "each head takes every second column: the head number must be the slower of the two new "
                "dimensions.": x.view(2, 3, 4, 2).permute(0, 3, 1, 2),
            },
        )
        checks.close(
            merge_heads(by_loop),
            x,
            "merge_heads of those heads",
            mistakes={
                "the shape is right but positions are mixed: bring time back in front of the heads before you flatten "
                "them.": by_loop.reshape(2, 3, 8),
                "the columns of the heads are interleaved: put the heads side by side.": by_loop.permute(
                    0, 2, 3, 1
                ).flatten(2),
            },
        )
        torch.manual_seed(13)
        theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True).eval()
        y = torch.randn(2, 5, 12)
        with torch.no_grad():
            q, k, v = F.linear(y, theirs.in_proj_weight, theirs.in_proj_bias).chunk(3, dim=-1)
            mixed = F.scaled_dot_product_attention(split_heads(q, 3), split_heads(k, 3), split_heads(v, 3))
            checks.close(
                theirs.out_proj(merge_heads(mixed)), theirs(y, y, y)[0], "3-head attention with your two functions"
            )
    ### BEGIN HIDDEN TESTS
    for batch, length, heads, d_head in [(1, 1, 1, 4), (3, 7, 4, 2), (2, 2, 2, 2), (2, 4, 4, 4), (1, 6, 3, 5)]:
        x = torch.randn(batch, length, heads * d_head, generator=torch.Generator().manual_seed(batch * 31 + length))
        split = split_heads(x, heads)
        assert split.shape == (batch, heads, length, d_head), "split_heads gives a wrong shape."
        for head in range(heads):
            assert torch.equal(split[:, head], x[..., head * d_head : (head + 1) * d_head]), (
                f"head {head} holds wrong columns."
            )
        expected = torch.cat(list(split.unbind(1)), dim=-1)
        assert torch.equal(merge_heads(split), expected), "merge_heads does not put the heads side by side."
        assert torch.equal(merge_heads(split), x), "merge_heads does not undo split_heads."
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
# Attention is an average, and an average does not care about order: shuffle the keys together with their values and nothing
# changes. Without a mask, `dog bites man` and `man bites dog` are the same to attention. (A causal mask gives a stack of layers
# some sense of order, since position 2 sees more than position 1, but a roundabout one.) So the position is written into the
# vectors themselves. The classic way adds a fixed pattern of waves, fast ones in the first columns and slow ones in the last:
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
    with checks.check("1.4", "the table agrees with the formula in float64, and an odd width is refused"):
        position, i = torch.arange(50, dtype=torch.float64)[:, None], torch.arange(0, 4, dtype=torch.float64)
        sines, cosines = (position / 10000 ** (2 * i / 8)).sin(), (position / 10000 ** (2 * i / 8)).cos()
        expected = torch.stack([sines, cosines], dim=2).flatten(1)
        column = torch.arange(8, dtype=torch.float64)
        checks.close(
            sinusoidal_positions(50, 8),
            expected,
            "your table for 50 positions and d_model 8",
            mistakes={
                "sines and cosines are swapped: even columns hold sines.": torch.stack([cosines, sines], dim=2).flatten(
                    1
                ),
                "sines fill the first half and cosines the second: they alternate, column by column.": torch.cat(
                    [sines, cosines], dim=1
                ),
                "the exponent uses the column number: a pair of columns shares one frequency, 10000 ** (2 * i / d_model) for "
                "pair i.": torch.where(
                    column % 2 == 0, (position / 10000 ** (column / 8)).sin(), (position / 10000 ** (column / 8)).cos()
                ),
                "i numbers the pairs (0, 1, 2, …), not the columns: with column numbers the exponent is too large.": torch.where(
                    column % 2 == 0,
                    (position / 10000 ** (2 * column / 8)).sin(),
                    (position / 10000 ** (2 * column / 8)).cos(),
                ),
                "i numbers the pairs (0, 1, 2, …), not the even columns: the exponent is twice too large.": torch.stack(
                    [(position / 10000 ** (4 * i / 8)).sin(), (position / 10000 ** (4 * i / 8)).cos()], dim=2
                ).flatten(1),
                "the exponent is half of what it should be: for pair i it is 2 * i / d_model.": torch.stack(
                    [(position / 10000 ** (i / 8)).sin(), (position / 10000 ** (i / 8)).cos()], dim=2
                ).flatten(1),
                "positions are counted from 1: the first row belongs to position 0.": torch.stack(
                    [((position + 1) / 10000 ** (2 * i / 8)).sin(), ((position + 1) / 10000 ** (2 * i / 8)).cos()],
                    dim=2,
                ).flatten(1),
            },
            atol=1e-4,
        )
        checks.tensor(sinusoidal_positions(3, 4), (3, 4), "your table for 3 positions and d_model 4", torch.float32)
        checks.raises(
            ValueError,
            lambda: sinusoidal_positions(4, 5),
            "d_model=5 is odd and must raise a ValueError that says so.",
        )
    ### BEGIN HIDDEN TESTS
    import math

    for length, d_model in [(1, 2), (3, 6), (40, 64), (257, 10)]:
        table = sinusoidal_positions(length, d_model)
        assert table.shape == (length, d_model) and table.dtype == torch.float32, "wrong shape or dtype (float32)."
        for p in {0, 1, length // 2, length - 1}:
            for pair in range(d_model // 2):
                angle = p / 10000 ** (2 * pair / d_model)
                if p < length:
                    assert abs(float(table[p, 2 * pair]) - math.sin(angle)) < 1e-4, (
                        f"wrong sine at position {p}, pair {pair}."
                    )
                    assert abs(float(table[p, 2 * pair + 1]) - math.cos(angle)) < 1e-4, (
                        f"wrong cosine at position {p}, pair {pair}."
                    )
    try:
        sinusoidal_positions(3, 7)
    except ValueError as error:
        assert str(error).strip(), "the ValueError has no text: say what is wrong with d_model."
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
# A Transformer is a stack of identical **blocks**. Each has two halves:
#
# - **attention** moves information between positions;
# - a **feed-forward network** (FFN), two Linear layers with a non-linear function (GELU, which lets positive numbers pass and
#   holds negative ones back) between them, works on each position alone.
#
# Each half reads a *normalized* copy of the vectors $x$ (LayerNorm: the numbers of each position get mean 0 and variance 1, then a
# learned scale and shift) and
# **adds** its result to $x$. So there is a path from the first to the last block that only ever gets things added, the
# **residual stream**. This order is called *pre-LN*:
#
# $$x \leftarrow x + \text{attention}(\text{LN}_1(x)) \qquad\qquad x \leftarrow x + \text{FFN}(\text{LN}_2(x))$$
#
# Mind what is normalized: the copy, not the stream. The first Transformers normalized *after* the addition (post-LN); they
# are harder to train, and our model's weights would not work in that order.
#
# The next cell holds the two halves, written with plain functions from a dictionary of the block's weights. Read them: every
# `F.linear` is a matrix product with a weight, and these products are what quantization is going to change. (The fourth Linear of
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
# the weights of the trained course model and compares it with the model's own block.


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
        The residual stream after the block; `x` itself stays as it is.
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
    with checks.check("1.5", "your block equals the course model's own, with its trained weights"):
        trained = load_course_model()
        ids = data.encode("The quick brown fox jumps over the lazy dog.")[None]
        with torch.no_grad():
            x = trained.embed(ids)
            block, heads = trained.blocks[0], trained.config.n_heads
            look = reference_mask(ids.shape[1])

            def attend(y: torch.Tensor) -> torch.Tensor:
                return block.attention(y, look)

            a, expected, given = attend(block.norm1(x)), block(x, look), x.clone()
            answer = pre_ln_block(given, block.state_dict(), heads)
            assert torch.equal(given, x), "your block changes the tensor that it is given: write x = x + …, not x += …"
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
                    "this is post-LN: you normalize after adding. Normalize the copy that a half reads.": block.norm2(
                        block.norm1(x + attend(x)) + block.ffn(block.norm1(x + attend(x)))
                    ),
                    "you normalize the residual stream itself: x must be added as it was, only the copy that attention and the "
                    "FFN read is normalized.": (
                        lambda n1: (lambda n2: n2 + block.ffn(n2))(block.norm2(n1 + attend(n1)))
                    )(block.norm1(x)),
                    "the halves read x without LayerNorm.": x + attend(x) + block.ffn(x + attend(x)),
                },
                atol=1e-4,
                rtol=1e-4,
            )
    ### BEGIN HIDDEN TESTS
    for seed, (d_model, n_heads, batch, length) in enumerate([(16, 4, 2, 7), (12, 1, 1, 3), (8, 2, 3, 1)]):
        torch.manual_seed(200 + seed)
        block = Block(ModelConfig(d_model=d_model, n_heads=n_heads, d_ff=20))
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        x = torch.randn(batch, length, d_model)
        kept = x.clone()
        with torch.no_grad():
            expected = block(x, reference_mask(length))
            answer = pre_ln_block(x, block.state_dict(), n_heads)
        torch.testing.assert_close(answer, expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(x, kept), "your block changes its input: write x = x + …, not x += …"
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
# The text is what ships with Python itself: its help topics and the docstrings of its standard library. One document in
# ten is **held out**: no model of this course has been trained on it.
#
# Watch a small model learn. It takes five to thirty seconds.

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
# It is the size that the text would have if it were compressed with the model's probabilities: 8 means no compression, 2
# means a quarter. **Perplexity** says the same as a number of choices: $2^{\text{bits per byte}}$. A model of 2 bits per byte is as
# unsure as if it had to pick one of 4 equally likely bytes.
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
    with checks.check("1.6", "bits, not nats; every byte counts alike; the target is the next byte"):
        torch.manual_seed(16)
        judged = TransformerLM(ModelConfig(context=32, d_model=16, n_heads=2, n_layers=1, d_ff=32)).eval()
        for parameter in judged.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        batches = [torch.randint(256, (2, 20)), torch.randint(256, (1, 3)), torch.randint(256, (4, 9))]
        with torch.no_grad():
            nats = [
                -judged(ids[:, :-1]).double().log_softmax(-1).gather(2, ids[:, 1:, None]).flatten() for ids in batches
            ]
            same_byte = torch.cat(
                [-judged(ids).double().log_softmax(-1).gather(2, ids[..., None]).flatten() for ids in batches]
            )
            unshifted = torch.cat(
                [
                    -judged(ids[:, :-1]).double().log_softmax(-1).gather(2, ids[:, :-1, None]).flatten()
                    for ids in batches
                ]
            )
        every_byte = torch.cat(nats).mean().item()
        expected = every_byte / math.log(2)
        answer = evaluate(judged, batches)
        checks.given(answer, "your answer")
        assert isinstance(answer, dict) and {"bits_per_byte", "perplexity"} <= set(answer), (
            'your answer should be a dict with the keys "bits_per_byte" and "perplexity".'
        )
        batch_means = sum(n.mean().item() for n in nats) / 3
        checks.number(
            answer["bits_per_byte"],
            expected,
            "your bits_per_byte",
            mistakes={
                "these are nats: divide by ln 2.": every_byte,
                "you multiplied by ln 2 instead of dividing.": every_byte * math.log(2),
                "it is negative: bits are minus the logarithm of a probability.": -expected,
                "you divided by the number of all bytes, but the first byte of each text is not predicted.": expected
                * sum(n.numel() for n in nats)
                / sum(ids.numel() for ids in batches),
                "you divided by the number of texts: divide by the number of predicted bytes.": expected
                * sum(n.numel() for n in nats)
                / sum(len(ids) for ids in batches),
                "you averaged the means of the batches, so a byte in a small batch counts more: sum over all bytes, then divide "
                "once by their number.": batch_means / math.log(2),
                "these are means of batches, and in nats.": batch_means,
                "the model predicts the byte that it has just read: the target of position t is the byte at t + 1.": unshifted.mean().item()
                / math.log(2),
                "the model is asked for the byte that it has just read: targets must be shifted by one.": same_byte.mean().item()
                / math.log(2),
            },
            rtol=1e-4,
        )
        checks.number(
            answer["perplexity"],
            2**expected,
            "your perplexity",
            mistakes={
                "you raised e to the bits: bits belong to base 2.": math.exp(expected),
                "you raised 2 to the nats: 2 belongs to bits.": 2**every_byte,
            },
            rtol=1e-3,
        )
    ### BEGIN HIDDEN TESTS
    silent = TransformerLM(ModelConfig(context=16, d_model=8, n_heads=1, n_layers=1, d_ff=8, tied_head=False)).eval()
    torch.nn.init.zeros_(silent.head.weight)
    flat = evaluate(silent, [torch.randint(256, (3, 10))])
    assert abs(flat["bits_per_byte"] - 8) < 1e-4 and abs(flat["perplexity"] - 256) < 0.1, (
        "equally likely bytes need 8 bits."
    )
    for seed in range(3):
        torch.manual_seed(300 + seed)
        batches = [torch.randint(256, shape) for shape in [(1, 2), (5, 30), (2, 7)]]
        with torch.no_grad():
            bits = torch.cat(
                [-judged(b[:, :-1]).double().log_softmax(-1).gather(2, b[:, 1:, None]).flatten() for b in batches]
            )
        expected = bits.mean().item() / math.log(2)
        answer = evaluate(judged, batches)
        assert abs(answer["bits_per_byte"] - expected) < 1e-3, (
            f"wrong bits per byte: {answer['bits_per_byte']} instead of {expected}."
        )
        assert abs(answer["perplexity"] / 2**expected - 1) < 1e-3, "wrong perplexity."
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
# The course model beats the compressor even when the compressor has first read the training text. That matters: a bad model has
# nothing to lose, so quantization would look free.
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
        print(f"  tiny model   {metrics.bits_per_byte(tiny, held_out[:, :length].split(8)):.2f}")
    print(f"  course model {metrics.bits_per_byte(model, held_out[:, :length].split(8)):.2f}")

# %% [markdown]
# At the start of a document the model has little to look back at, so the number for 65 bytes is worse than the one for 257. All
# later comparisons in this unit use these 32 windows of 257 bytes, for every model alike.

# %% [markdown]
# ## 7. What fills the shelves?
#
# Dr. Frankenstein's question. Before anything is made smaller, find out what is large. A model's memory is in its
# **parameters**, the tensors that training moves. There are also **buffers**, tables that are computed once (our positions): they
# are not trained and, here, not stored in the file. And one tensor may be used twice: our head uses the embedding table as its weight
# (**tied** weights). It takes its room once.
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
# `model.named_parameters()` gives all names and tensors, for instance `("blocks.0.norm1.weight", …)`; the last LayerNorm is called
# `norm`. Count a tied tensor once, as `"embedding"`. A component without parameters of its own gets 0. The bytes of a number depend
# on its dtype: ask the tensor, as in exercise 0.1.


# %% nbgrader={"grade": false, "grade_id": "ex_1_7", "locked": false, "schema_version": 3, "solution": true, "task": false}
def bytes_by_component(model: nn.Module) -> dict[str, int]:
    """Bytes of a model's parameters by component; buffers are not counted, a shared tensor counts once.

    Returns
    -------
    dict
        Keys "embedding", "attention", "ffn", "norm" and "head", values in bytes.
    """
    ### BEGIN SOLUTION
    total = dict.fromkeys(("embedding", "attention", "ffn", "norm", "head"), 0)
    seen = set()
    for name, parameter in model.named_parameters():
        if parameter.data_ptr() in seen:
            continue
        seen.add(parameter.data_ptr())
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
    with checks.check("1.7", "every parameter counted once, in bytes of its own dtype, and no buffer"):
        d, f, layers, vocabulary, context = 16, 40, 3, 256, 50
        counted = TransformerLM(
            ModelConfig(context=context, d_model=d, n_heads=2, n_layers=layers, d_ff=f, tied_head=True)
        )
        answer = bytes_by_component(counted)
        checks.given(answer, "your answer")
        assert isinstance(answer, dict) and set(answer) == {"embedding", "attention", "ffn", "norm", "head"}, (
            'your answer should be a dict with exactly the keys "embedding", "attention", "ffn", "norm" and "head".'
        )
        expected = {
            "embedding": 4 * vocabulary * d,
            "attention": 4 * layers * 4 * (d * d + d),
            "ffn": 4 * layers * (2 * d * f + d + f),
            "norm": 4 * (2 * layers + 1) * 2 * d,
            "head": 0,
        }
        checks.number(
            answer["head"],
            expected["head"],
            'your "head" of a model with tied weights',
            mistakes={
                "the head's weight is the embedding table itself: that tensor was counted twice.": 4 * vocabulary * d
            },
        )
        for name, right in expected.items():
            checks.number(
                answer[name],
                right,
                f'your "{name}"',
                mistakes={
                    "this is a number of parameters, not of bytes.": right // 4,
                    "the tied tensor was counted twice.": 2 * right if name == "embedding" else -1,
                    "buffers (the table of positions) were counted with the parameters.": right + 4 * context * d,
                    "the tied tensor should count as embedding.": 0 if name == "embedding" else -1,
                },
            )
        halved = bytes_by_component(TransformerLM(counted.config).bfloat16())
        checks.number(
            halved["ffn"],
            expected["ffn"] // 2,
            'your "ffn" of the same model in bfloat16',
            mistakes={"a bfloat16 number has 2 bytes: use element_size(), not 4.": expected["ffn"]},
        )
    ### BEGIN HIDDEN TESTS
    for tied in (True, False):
        for d, f, layers, size, dtype in [
            (8, 12, 1, 4, torch.float32),
            (12, 7, 2, 8, torch.float64),
            (8, 8, 4, 2, torch.float16),
        ]:
            other = TransformerLM(
                ModelConfig(context=9, d_model=d, n_heads=2, n_layers=layers, d_ff=f, tied_head=tied)
            ).to(dtype)
            expected = {
                "embedding": size * 256 * d,
                "attention": size * layers * 4 * (d * d + d),
                "ffn": size * layers * (2 * d * f + d + f),
                "norm": size * (2 * layers + 1) * 2 * d,
                "head": 0 if tied else size * 256 * d,
            }
            answer = bytes_by_component(other)
            assert answer == expected, (
                f"wrong for tied_head={tied}, d_model={d}, {dtype}: {answer} instead of {expected}."
            )
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
    "tiny. Of the time, attention and the feed-forward networks take nearly all.",
)

# %% [markdown]
# Nearly all bytes are in the weights of Linear layers: four in each of the four attentions, two in each of the four FFNs, and one
# head make 25. So that is where to start.

# %% [markdown]
# ## 8. Less than a third of the size: dynamic int8 quantization
#
# The idea of **int8 quantization** in one line: store each weight as a whole number $q$ between −128 and 127, with one shared
# **scale** $s$ for many of them, so that $w \approx s \cdot q$. One byte a weight instead of four. Unit 02 builds it by hand;
# here you use PyTorch's shortest road to it:
#
# > **Dynamic quantization**: the weights of all Linear layers become int8 *once, now*. When the model runs, each layer also turns
# > its input into integers of 8 bits (7 on most PCs: unit 02 says why), with a scale that it takes from that very input (that is the *dynamic* part), multiplies integers, and
# > turns the result back into `float32`.
#
# The function is `torch.ao.quantization.quantize_dynamic(model, qconfig_spec, dtype=…)`. `qconfig_spec` is a *set* of layer types.
#
# ### Exercise 1.8: quantize the course model
# *Difficulty 2 of 5 · 10 minutes · 2 points*
#
# Return a dynamically quantized int8 **copy**: every Linear layer swapped, everything else as it was. The model that came in must
# stay as it is, to the last bit: you still need it to compare with. (The type is called `torch.qint8`, not `torch.int8`. The tied
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
    with checks.check(
        "1.8", "all 25 Linear layers are int8, the quality is nearly the same, the original is untouched"
    ):
        original, untouched = load_course_model(), load_course_model()
        try:
            answer = quantize_to_int8(original)
        except (AttributeError, TypeError) as error:
            if "'get'" not in str(error) and "iterable" not in str(error):
                raise
            raise AssertionError(
                f"quantize_dynamic cannot use what you passed ({error}): after the model comes a set of layer types, "
                "{nn.Linear}, and then dtype=torch.qint8."
            ) from None
        except AssertionError as error:
            if "Embedding" not in str(error):
                raise
            raise AssertionError(
                f"PyTorch refuses: {error} It is about an Embedding; this exercise quantizes Linear layers only."
            ) from None
        checks.given(answer, "your model")
        assert describe.layer_types(original) == describe.layer_types(untouched), (
            "your function changed the layers of the model that came in: return a quantized copy (inplace=False is the default)."
        )
        for name, weight in untouched.state_dict().items():
            assert torch.equal(original.state_dict()[name], weight), (
                f"your function changed the weight {name} of the original."
            )
        dtypes = describe.weight_dtypes(answer)
        linears = [name for name, kind in describe.layer_types(untouched).items() if kind.endswith(".linear.Linear")]
        swapped = [name for name in linears if dtypes.get(name) == "torch.qint8"]
        assert swapped, (
            f"no Linear layer is int8; their weights are {dtypes.get(linears[0], 'packed as float16')}. quantize_dynamic returns "
            "the quantized copy (use its result), wants the layer type itself ({nn.Linear}, no string), and dtype=torch.qint8."
        )
        missing = sorted(set(linears) - set(swapped))
        assert not missing, f"{len(missing)} of {len(linears)} Linear layers are not int8, among them {missing[0]}."
        assert dtypes["embedding"] == "torch.float32", "the embedding must stay float32 in this exercise."
        ids = data.windows("held_out", 4)
        with torch.no_grad():
            assert not torch.equal(answer(ids[:, :-1]), untouched(ids[:, :-1])), (
                "your model computes exactly what the float model does."
            )
        gap = metrics.bits_per_byte(answer, [ids]) - metrics.bits_per_byte(untouched, [ids])
        assert abs(gap) < 0.02, (
            f"your model needs {gap:+.3f} bits per byte more than the float model: int8 should be nearly free."
        )
    ### BEGIN HIDDEN TESTS
    from helpers.models import ModelConfig, TransformerLM

    for seed, tied in enumerate((True, False)):
        torch.manual_seed(400 + seed)
        small = TransformerLM(
            ModelConfig(context=16, d_model=32, n_heads=2, n_layers=2, d_ff=64, tied_head=tied)
        ).eval()
        for parameter in small.parameters():
            torch.nn.init.normal_(parameter, std=0.15)
        kept = {name: weight.clone() for name, weight in small.state_dict().items()}
        types, weights = describe.layer_types(small), describe.dequantized_weights(small)
        quantized = quantize_to_int8(small)
        assert describe.layer_types(small) == types, "the layers of the original were replaced."
        assert all(torch.equal(small.state_dict()[name], weight) for name, weight in kept.items()), (
            "the original's weights changed."
        )
        dtypes, dequantized = describe.weight_dtypes(quantized), describe.dequantized_weights(quantized)
        for name, kind in types.items():
            if kind.endswith(".linear.Linear"):
                assert dtypes[name] == "torch.qint8", f"{name} is {dtypes[name]}, not torch.qint8."
                error = (dequantized[name] - weights[name]).abs().max()
                assert error <= 0.51 * weights[name].abs().max() / 127, f"{name} is coarser than 8 bits."
        assert dtypes["embedding"] == "torch.float32", "the embedding must stay float32."
        ids = torch.randint(256, (2, 16))
        with torch.no_grad():
            expected = int8.dynamic_int8(small)(ids)
            error = (quantized(ids) - expected).norm() / expected.norm()
        assert error < 0.1, f"the outputs are {error:.3f} (relative) away from PyTorch's dynamic int8."
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
# Every logit is a little wrong, and the quality hardly moves. (*Signal-to-noise ratio*: how much larger the logits are than their
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
# bytes at the end of a text, and see how far they move what was computed for the positions before it:

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
            f"{name:5}: {int((worst > 1e-3).sum())} of 63 earlier positions moved, the logits by up to {worst.max():.2f}"
        )

# %% [markdown]
# The float model keeps the promise (what it shows is rounding in the last digits, if anything); the int8 model does not: it is not
# strictly causal, and its answer for one text depends on which other texts are in the batch. Tools that need exact repetition (such as a compressor) must
# know this. Unit 02 shows schemes with a scale for each row, which are free of it.
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
# > **What happens:** look at your numbers above. The file shrinks by more than a factor of three. Every logit changes, and whether the quality
# > does is a question of measuring well enough: 32 documents may be too few to see it. Whether int8 is *faster* depends on how much there
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
# > **What happens:** saving works. Loading is refused by every PyTorch since 2.6:

# %%
with tempfile.TemporaryDirectory() as folder:
    whole = Path(folder) / "whole_model.pt"
    torch.save(small, whole)
    errors.show_error(lambda: torch.load(whole))

# %% [markdown]
# For a good reason. Such a file is a *pickle*: a small program that Python runs while it loads, and that can do anything on your
# computer. It also breaks as soon as a class is renamed. `weights_only=False` would switch the guard off; use it only for files that you
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
# `"state_dict"`. The loader opens it with `weights_only=True`, rebuilds `TransformerLM(ModelConfig(**config))` in eval mode,
# quantizes that skeleton, and fills it. The outputs before and after must be equal to the last bit.


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
    with (
        checks.check("1.9", "plain tensors in the file, and the same outputs to the last bit after loading"),
        tempfile.TemporaryDirectory() as folder,
    ):
        path = str(Path(folder) / "model.pt")
        torch.manual_seed(19)
        skeleton = TransformerLM(ModelConfig(context=16, d_model=32, n_heads=2, n_layers=2, d_ff=64)).eval()
        quantized = int8.dynamic_int8(skeleton)
        ids = torch.randint(256, (2, 16))
        with torch.no_grad():
            expected = quantized(ids)
        save_quantized(quantized, path)
        assert Path(path).is_file(), "save_quantized wrote no file at the path it was given."
        try:
            content = torch.load(Path(path), weights_only=True)
        except pickle.UnpicklingError:
            raise AssertionError(
                "your file holds a pickled class (the whole model?): save the state_dict and the config only."
            ) from None
        assert isinstance(content, dict) and set(content) == {"config", "state_dict"}, (
            'your file should hold a dictionary with exactly the entries "config" and "state_dict".'
        )
        assert set(content["state_dict"]) == set(quantized.state_dict()), (
            "the stored state_dict is not that of the quantized model."
        )
        assert hasattr(content["state_dict"], "_metadata"), (
            "your state_dict is a plain copy: PyTorch keeps version notes in an attribute of the original, dict(…) drops them, "
            "and quantized layers cannot be loaded without. Save model.state_dict() itself."
        )
        try:
            loaded = load_quantized(path)
        except (RuntimeError, KeyError) as error:
            if "state_dict" not in str(error) and ".weight" not in str(error) and ".scale" not in str(error):
                raise
            raise AssertionError(
                "load_state_dict refuses the tensors: the skeleton does not have the form of the model that was saved. Is it "
                "quantized, and do you fill the model that quantize_dynamic returned? PyTorch says: "
                + str(error).strip().splitlines()[0]
            ) from None
        checks.given(loaded, "your loaded model")
        assert hasattr(loaded, "state_dict"), (
            f"load_quantized returned {type(loaded).__name__}, not a model: load_state_dict only reports, return the model."
        )
        assert not describe.is_training(loaded), "the loaded model is in training mode: call .eval() on the skeleton."
        assert describe.weight_dtypes(loaded) == describe.weight_dtypes(quantized), (
            "the loaded model is not quantized: a float skeleton has no place for int8 weights, and strict=False drops them in "
            "silence. Quantize the skeleton first, then load."
        )
        with torch.no_grad():
            answer = loaded(ids)
        assert torch.equal(answer, expected), (
            f"the loaded model's outputs differ by up to {(answer - expected).abs().max():.3g}: are all tensors loaded, with strict=True?"
        )
        torch.save(quantized, path)
        checks.raises(
            pickle.UnpicklingError,
            lambda: load_quantized(path),
            "your loader opens a file that holds a whole pickled model, which could run any program: use weights_only=True.",
        )
    ### BEGIN HIDDEN TESTS
    import os
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
        torch.manual_seed(500)
        config = ModelConfig(context=12, d_model=24, n_heads=3, n_layers=1, d_ff=40, tied_head=False)
        skeleton = TransformerLM(config).eval()
        quantized = int8.dynamic_int8(skeleton)
        ids = torch.randint(256, (3, 12))
        with torch.no_grad():
            expected = quantized(ids)
        save_quantized(quantized, path)
        torch.save({"ids": ids, "expected": expected, "threads": torch.get_num_threads()}, case)
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(reader), path, case],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"COURSE_INT8_ENGINE": torch.backends.quantized.engine},
        )
        assert done.returncode == 0, f"a fresh process could not use your file: {done.stderr.strip().splitlines()[-1:]}"
        torch.save({"config": config.to_dict(), "state_dict": quantized.state_dict()}, path)
        loaded = load_quantized(path)
        with torch.no_grad():
            assert torch.equal(loaded(ids), expected), "your loader gets other outputs from a correct file."
        assert describe.weight_dtypes(loaded) == describe.weight_dtypes(quantized), "the loaded model is not quantized."
        torch.save(quantized, path)
        try:
            load_quantized(path)
        except pickle.UnpicklingError:
            pass
        else:
            raise AssertionError("your loader runs pickled code: use weights_only=True.")
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
# *Before sunrise the creature fits on one shelf. It speaks as before; if you listen for an hour you may catch one word that it would
# have chosen differently. Dr. Frankenstein writes down the difference, and how sure of it he is. "I do not know that it was free," he
# notes. "I know that it was at most this much."*
#
# ## Key takeaways
#
# - Attention is a softmax of scaled dot products that averages values; a mask works *before* the softmax (1.1, 1.2).
# - A right shape proves nothing: `view` instead of `transpose` mixes positions in silence (1.3).
# - Bits per byte count every byte alike; perplexity is two to that power (1.6).
# - Nearly all bytes of a Transformer are in its Linear layers (1.7), so int8 for these alone makes the file more than three times smaller (1.8).
# - The weights are int8 from the moment you call `quantize_dynamic`; only inputs are quantized while it runs (section 8).
# - One scale for a whole input ties positions and texts together: dynamic int8 is not strictly causal (section 8).
# - Save tensors and numbers, never pickled classes; quantize the skeleton before you fill it (1.9).
#
# **When not to use dynamic quantization.** If your batches are tiny and your layers narrow, int8 may well be slower than float: look at
# the first lines of your own measurement. On graphics cards these int8 kernels do not exist. If results must not depend on the batch,
# use another scheme. And if the file size does not matter to anyone, float needs no proof.
#
# **References.** Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762) · Xiong et al. 2020,
# [On Layer Normalization in the Transformer Architecture](https://arxiv.org/abs/2002.04745) · Jacob et al. 2018,
# [Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference](https://arxiv.org/abs/1712.05877) ·
# PyTorch, [`torch.load` and `weights_only`](https://docs.pytorch.org/docs/stable/generated/torch.load.html)
