"""Unit 01: what learners really answer."""

import copy
import functools
import json
import math
import pickle
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from helpers.checkpoint import load_course_model
from helpers.models import ModelConfig, TransformerLM
from tests.misconceptions.bank import right, wrong

# 1.1 attention


def attend(q, k, v, mask=None, scale=None, dim=-1):
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim) @ v


@wrong("ex_1_1", "not divided by sqrt(d)")
def no_scaling(q, k, v, mask=None):
    return attend(q, k, v, mask, scale=1.0)


@wrong("ex_1_1", "multiplied by sqrt(d) instead of divided")
def times_sqrt_d(q, k, v, mask=None):
    return attend(q, k, v, mask, scale=q.shape[-1] ** 0.5)


@wrong("ex_1_1", "divided by d instead of sqrt(d)")
def divided_by_d(q, k, v, mask=None):
    return attend(q, k, v, mask, scale=1 / q.shape[-1])


@wrong("ex_1_1", "the softmax runs over the queries")
def softmax_over_queries(q, k, v, mask=None):
    return attend(q, k, v, mask, dim=-2)


@wrong("ex_1_1", "the mask comes after the softmax")
def mask_after_softmax(q, k, v, mask=None):
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights if mask is None else weights * mask) @ v


@wrong("ex_1_1", "masked scores are set to 0")
def masked_scores_are_zero(q, k, v, mask=None):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return (scores if mask is None else scores * mask).softmax(-1) @ v


@wrong("ex_1_1", "added to the scores as numbers 0 and 1")
def mask_added_as_numbers(q, k, v, mask=None):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return (scores if mask is None else scores + mask.float()).softmax(-1) @ v


@wrong("ex_1_1", "the mask is ignored")
def mask_ignored(q, k, v, mask=None):
    return attend(q, k, v)


@wrong("ex_1_1", "used upside down")
def mask_upside_down(q, k, v, mask=None):
    out = attend(q, k, v, None if mask is None else ~mask)
    return out.nan_to_num()


@wrong("ex_1_1", "it is larger than the score of key 2")
def mask_value_too_small(q, k, v, mask=None):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return (scores if mask is None else scores.masked_fill(~mask, -1e4)).softmax(-1) @ v


@wrong("ex_1_1", "you took the number of queries")
def scaled_by_len(q, k, v, mask=None):
    return attend(q, k, v, mask, scale=q.shape[-2] ** -0.5)


@wrong("ex_1_1", "you took the number of keys")
def scaled_by_keys(q, k, v, mask=None):
    return attend(q, k, v, mask, scale=k.shape[-2] ** -0.5)


@wrong("ex_1_1", "you took the length of a value")
def scaled_by_value_length(q, k, v, mask=None):
    return attend(q, k, v, mask, scale=v.shape[-1] ** -0.5)


@wrong("ex_1_1", "there is no softmax")
def no_softmax(q, k, v, mask=None):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return (scores if mask is None else scores * mask) @ v


@wrong("ex_1_1", "the weights are divided by sqrt(d)")
def divided_after_softmax(q, k, v, mask=None):
    return attend(q, k, v, mask, scale=1.0) / math.sqrt(q.shape[-1])


@wrong("ex_1_1", "over keys and queries together")
def softmax_over_both(q, k, v, mask=None):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.flatten(-2).softmax(-1).view(scores.shape) @ v


@wrong("ex_1_1", "although no mask was given")
def always_causal(q, k, v, mask=None):
    past = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    return attend(q, k, v, past if mask is None else mask & past)


@wrong("ex_1_1", "is a dropout on")
def dropout_on_by_default(q, k, v, mask=None):
    weights = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        weights = weights.masked_fill(~mask, float("-inf"))
    return F.dropout(weights.softmax(-1), 0.1) @ v


@wrong("ex_1_1", "your function changed `q`")
def divides_q_in_place(q, k, v, mask=None):
    with torch.no_grad():
        q /= math.sqrt(q.shape[-1])
    return attend(q, k, v, mask, scale=1.0)


@wrong("ex_1_1", "your function changed `mask`")
def turns_the_mask_in_place(q, k, v, mask=None):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return (scores if mask is None else scores.masked_fill(mask.logical_not_(), float("-inf"))).softmax(-1) @ v


@wrong("ex_1_1", "Can't call numpy() on Tensor that requires grad")
def through_numpy(q, k, v, mask=None):
    return torch.from_numpy(attend(q, k, v, mask).numpy())


@wrong("ex_1_1", "with scores of 200, your output is nan or inf")
def exp_and_a_division(q, k, v, mask=None):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    weights = scores.exp() if mask is None else scores.exp() * mask
    return weights / weights.sum(-1, keepdim=True) @ v


@wrong("ex_1_1", "three keys with scores of 200 differs")
def clamped_scores(q, k, v, mask=None):
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).clamp(-50, 50)
    return (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1) @ v


@wrong("ex_1_1", "if the weights of hidden keys are set to 0 after the softmax")
def renormalized_after_softmax(q, k, v, mask=None):
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    if mask is not None:
        weights = weights * mask
        weights = weights / weights.sum(-1, keepdim=True)
    return weights @ v


@wrong("ex_1_1", "all of its weights are 0")
def renormalized_with_an_epsilon(q, k, v, mask=None):
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    if mask is not None:
        weights = weights * mask
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-9)
    return weights @ v


@wrong("ex_1_1", "Mind that there may be any number of leading dimensions")
def three_dimensions_only(q, k, v, mask=None):
    scores = torch.bmm(q, k.transpose(1, 2)) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.bmm(scores.softmax(-1), v)


@wrong("ex_1_1", "not of one with four. Count from the end")
def softmax_over_dimension_two(q, k, v, mask=None):
    return attend(q, k, v, mask, dim=2 if q.dim() > 2 else -1)


@wrong("ex_1_1", "a mask may be shorter than the scores")
def mask_indexed_by_query(q, k, v, mask=None):
    rows = []
    for i in range(q.shape[-2]):
        scores = (k * q[..., i : i + 1, :]).sum(-1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = torch.where(mask[..., i, :], scores, -torch.inf)
        rows.append((scores.softmax(-1)[..., None] * v).sum(-2))
    return torch.stack(rows, dim=-2)


@wrong("ex_1_1", "no gradient passes through your function")
def under_no_grad(q, k, v, mask=None):
    with torch.no_grad():
        return attend(q, k, v, mask)


@wrong("ex_1_1", "three keys with scores of 200 differs", like="clamped_scores")
def small_weights_dropped(q, k, v, mask=None):
    eye = torch.eye(k.shape[-2], dtype=q.dtype).expand(*k.shape[:-1], k.shape[-2])
    weights = attend(q, k, eye, mask)
    return torch.where(weights < 1e-3, torch.zeros((), dtype=q.dtype), weights) @ v


@wrong("ex_1_1", "for all queries, (1, key) differs")
def causal_if_square(q, k, v, mask=None):
    if mask is None and q.shape[-2] == k.shape[-2]:
        mask = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).tril()
    return attend(q, k, v, mask)


@wrong("ex_1_1", "float64 numbers has dtype torch.float32")
def always_in_float32(q, k, v, mask=None):
    return attend(q.float(), k.float(), v.float(), mask)


@wrong("ex_1_1", "with a mask holds nan or inf")
def minus_infinity_times_the_mask(q, k, v, mask=None):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return (scores if mask is None else scores + (~mask) * float("-inf")).softmax(-1) @ v


@right("ex_1_1")
def with_einsum_and_exp(q, k, v, mask=None):
    scores = torch.einsum("...qd,...kd->...qk", q, k) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = torch.where(mask, scores, torch.tensor(float("-inf")))
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return torch.einsum("...qk,...kv->...qv", weights / weights.sum(-1, keepdim=True), v)


@right("ex_1_1")
def a_query_at_a_time(q, k, v, mask=None):
    rows = []
    if mask is not None:
        mask = mask.expand(*q.shape[:-1], k.shape[-2])
    for i in range(q.shape[-2]):
        scores = (k * q[..., i : i + 1, :]).sum(-1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = torch.where(mask[..., i, :], scores, -torch.inf)
        rows.append((scores.softmax(-1)[..., None] * v).sum(-2))
    return torch.stack(rows, dim=-2)


@right("ex_1_1")
def with_a_large_finite_number(q, k, v, mask=None):
    scores = torch.matmul(q, k.transpose(-2, -1)) / torch.sqrt(torch.tensor(q.size(-1)))
    if mask is not None:
        scores = scores.masked_fill(mask == 0, -1e9)
    return torch.matmul(F.softmax(scores, dim=-1), v)


@right("ex_1_1")
def with_numbers_to_add(q, k, v, mask=None):
    penalty = 0 if mask is None else torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    return F.softmax((q / q.shape[-1] ** 0.5) @ k.mT + penalty, -1) @ v


# 1.2 causal mask


@wrong("ex_1_2", "your mask is transposed")
def transposed_mask(length):
    return torch.ones(length, length, dtype=torch.bool).triu()


@wrong("ex_1_2", "a position may look at itself")
def diagonal_excluded(length):
    return torch.ones(length, length, dtype=torch.bool).tril(-1)


@wrong("ex_1_2", "it must be bool")
def float_mask(length):
    return torch.ones(length, length).tril()


@wrong("ex_1_2", "True everywhere")
def no_mask(length):
    return torch.ones(length, length, dtype=torch.bool)


@wrong("ex_1_2", "True on its diagonal only")
def only_itself(length):
    return torch.eye(length, dtype=torch.bool)


@wrong("ex_1_2", "one position too wide")
def one_step_too_far(length):
    return torch.ones(length, length, dtype=torch.bool).tril(1)


@wrong("ex_1_2", "your mask is upside down")
def true_means_forbidden(length):
    return ~torch.ones(length, length, dtype=torch.bool).tril()


@wrong("ex_1_2", "A mask of 0 and minus infinity")
def additive_mask(length):
    return torch.full((length, length), float("-inf")).triu(1)


@wrong("ex_1_2", "your mask is torch.int64: it must be bool")
def integer_mask(length):
    return torch.arange(length)[:, None].ge(torch.arange(length)).long()


@wrong("ex_1_2", "has shape (1, 5, 5)")
def with_a_leading_dimension(length):
    return torch.ones(1, length, length, dtype=torch.bool).tril()


@wrong("ex_1_2", "should be a tensor, not list")
def lists_of_booleans(length):
    return [[key <= query for key in range(length)] for query in range(length)]


@wrong("ex_1_2", "position 0 is the first column and the first row")
def mirrored_from_top_to_bottom(length):
    return torch.ones(length, length, dtype=torch.bool).tril().flip(0)


@wrong("ex_1_2", "mirrored from left to right")
def mirrored_from_left_to_right(length):
    return torch.ones(length, length, dtype=torch.bool).tril().flip(1)


@wrong("ex_1_2", "a part of the past is hidden")
def the_last_three_only(length):
    return torch.ones(length, length, dtype=torch.bool).tril().triu(-2)


@wrong("ex_1_2", "your mask for 100 positions is False at query 64, key 0")
def a_window_of_64(length):
    return torch.ones(length, length, dtype=torch.bool).tril().triu(-63)


@wrong("ex_1_2", "lets a query see the future (rows")
def pairs_of_positions(length):
    return (torch.arange(length) // 2) <= (torch.arange(length) // 2)[:, None]


@wrong("ex_1_2", "your mask for 2100 positions has shape (1024, 1024)")
def a_table_with_an_end(length):
    return torch.ones(1024, 1024, dtype=torch.bool).tril()[:length, :length]


@wrong("ex_1_2", "your mask for 1 positions")
def without_a_single_position(length):
    return torch.ones(length, length, dtype=torch.bool).tril().squeeze()


@right("ex_1_2")
def by_comparison(length):
    position = torch.arange(length)
    return position <= position[:, None]


@right("ex_1_2")
def row_by_row(length):
    mask = torch.zeros((length, length), dtype=torch.bool)
    for query in range(length):
        mask[query, : query + 1] = True
    return mask


@right("ex_1_2")
def what_is_not_the_future(length):
    return ~torch.triu(torch.ones(length, length), diagonal=1).bool()


# 1.3 heads


@wrong("ex_1_3", "a view cannot move the head dimension", binds="split_heads")
def view_without_transpose(x, n_heads):
    return x.view(x.shape[0], n_heads, x.shape[1], -1)


@wrong("ex_1_3", "each head takes every second column", binds="split_heads")
def interleaved_columns(x, n_heads):
    return x.view(*x.shape[:2], -1, n_heads).permute(0, 3, 1, 2)


@wrong("ex_1_3", "has shape (2, 3, 2, 4)", binds="split_heads")
def no_transpose_at_all(x, n_heads):
    return x.view(*x.shape[:2], n_heads, -1)


@wrong("ex_1_3", "head 0 holds the first columns", binds="split_heads")
def last_columns_first(x, n_heads):
    return torch.stack(x.chunk(n_heads, dim=-1)[::-1], dim=1)


@wrong("ex_1_3", "has shape (4, 3, 4)", binds="split_heads")
def heads_as_more_texts(x, n_heads):
    return x.view(*x.shape[:2], n_heads, -1).transpose(1, 2).flatten(0, 1)


@wrong("ex_1_3", "should be a tensor, not tuple", binds="split_heads")
def a_tuple_of_heads(x, n_heads):
    return x.chunk(n_heads, dim=-1)


@wrong("ex_1_3", "the texts are mixed with the heads", binds="split_heads")
def two_transposes_too_many(x, n_heads):
    return x.view(*x.shape[:2], n_heads, -1).transpose(1, 2).transpose(0, 1)


@wrong("ex_1_3", "no gradient passes through split_heads", binds="split_heads")
def split_detached(x, n_heads):
    return x.detach().view(*x.shape[:2], n_heads, -1).transpose(1, 2)


@wrong("ex_1_3", "no gradient passes through merge_heads", binds="merge_heads")
def merged_data(x):
    return x.data.transpose(1, 2).flatten(2)


@wrong("ex_1_3", "your function changed `x`", binds="split_heads")
def split_in_place(x, n_heads):
    batch, time, width = x.shape
    return x.resize_(batch, time, n_heads, width // n_heads).transpose(1, 2)


@wrong("ex_1_3", "gives a head columns or positions of another one", binds="split_heads")
def strides_of_contiguous_memory(x, n_heads):
    batch, time, width = x.shape
    size = width // n_heads
    return x.as_strided((batch, n_heads, time, size), (time * width, size, width, 1))


@wrong("ex_1_3", "split_heads of 1 text(s), 1 position(s) and 1 head(s) of width 4 has shape (4,)", binds="split_heads")
def squeezed(x, n_heads):
    return x.view(*x.shape[:2], n_heads, -1).transpose(1, 2).squeeze()


@wrong("ex_1_3", "in int64 has dtype torch.float32", binds="split_heads")
def always_floats(x, n_heads):
    return x.float().view(*x.shape[:2], n_heads, -1).transpose(1, 2)


@wrong("ex_1_3", "bring time back in front of the heads", binds="merge_heads")
def merge_without_transpose(x):
    return x.reshape(x.shape[0], x.shape[2], -1)


@wrong("ex_1_3", "the columns of the heads are interleaved", binds="merge_heads")
def merge_interleaved(x):
    return x.permute(0, 2, 3, 1).flatten(2)


@wrong("ex_1_3", "head 0 gives the first columns", binds="merge_heads")
def merged_backwards(x):
    return torch.cat([x[:, head] for head in reversed(range(x.shape[1]))], dim=-1)


@wrong("ex_1_3", "merge_heads of those heads has shape (2, 24)", binds="merge_heads")
def flattened_too_far(x):
    return x.transpose(1, 2).flatten(1)


@wrong("ex_1_3", "view size is not compatible", binds="merge_heads")
def merged_by_a_view(x):
    return x.transpose(1, 2).view(x.shape[0], x.shape[2], -1)


@wrong("ex_1_3", "your function changed `x`", binds="merge_heads", like="split_in_place")
def merge_in_place(x):
    return x.transpose_(1, 2).flatten(2)


@wrong("ex_1_3", "(not contiguous) does not give back", binds="merge_heads")
def order_of_memory(x):
    batch, n_heads, time, width = x.shape
    memory = x if x.stride(2) == width and x.stride(1) == time * width else x.transpose(2, 1)
    return torch.cat(list(memory.contiguous().view(batch, n_heads, time, width).unbind(1)), dim=-1)


@right("ex_1_3", binds="split_heads")
def split_by_chunks(x, n_heads):
    return torch.stack(x.chunk(n_heads, dim=-1), dim=1)


@right("ex_1_3", binds="merge_heads")
def merge_by_concatenation(x):
    return torch.cat([x[:, head] for head in range(x.shape[1])], dim=-1)


@right("ex_1_3", binds="split_heads")
def split_with_unflatten(x, n_heads):
    return x.unflatten(-1, (n_heads, -1)).movedim(2, 1)


@right("ex_1_3", binds="merge_heads")
def merge_with_permute(x):
    batch, n_heads, time, width = x.shape
    return x.permute(0, 2, 1, 3).contiguous().view(batch, time, n_heads * width)


# 1.4 positions


def angles(length, d_model, start=0, divisor=1.0):
    position = torch.arange(start, start + length, dtype=torch.float64)[:, None]
    return position / 10000 ** (torch.arange(0, d_model, 2, dtype=torch.float64) / d_model / divisor)


def refuse_odd(d_model):
    if d_model % 2:
        raise ValueError("d_model must be even")


def alternate(even, odd):
    return torch.stack([even, odd], dim=2).flatten(1).float()


@wrong("ex_1_4", "sines and cosines are swapped")
def swapped(length, d_model):
    refuse_odd(d_model)
    return alternate(angles(length, d_model).cos(), angles(length, d_model).sin())


@wrong("ex_1_4", "sines fill the first half")
def halves(length, d_model):
    refuse_odd(d_model)
    return torch.cat([angles(length, d_model).sin(), angles(length, d_model).cos()], dim=1).float()


@wrong("ex_1_4", "the exponent uses the column number")
def exponent_by_column(length, d_model):
    refuse_odd(d_model)
    column = torch.arange(d_model)
    angle = torch.arange(length)[:, None] / 10000.0 ** (column / d_model)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos())


@wrong("ex_1_4", "the exponent is half of what it should be")
def exponent_halved(length, d_model):
    refuse_odd(d_model)
    return alternate(angles(length, d_model, divisor=2.0).sin(), angles(length, d_model, divisor=2.0).cos())


@wrong("ex_1_4", "i numbers the pairs (0, 1, 2, …), not the columns")
def i_is_the_column(length, d_model):
    refuse_odd(d_model)
    column = torch.arange(d_model)
    angle = torch.arange(length)[:, None] / 10000.0 ** (2 * column / d_model)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos())


@wrong("ex_1_4", "i numbers the pairs (0, 1, 2, …), not the even columns")
def i_in_steps_of_two(length, d_model):
    refuse_odd(d_model)
    return alternate(angles(length, d_model, divisor=0.5).sin(), angles(length, d_model, divisor=0.5).cos())


@wrong("ex_1_4", "has dtype torch.float64")
def left_in_float64(length, d_model):
    refuse_odd(d_model)
    return torch.stack([angles(length, d_model).sin(), angles(length, d_model).cos()], dim=2).flatten(1)


@wrong("ex_1_4", "positions are counted from 1")
def counted_from_one(length, d_model):
    refuse_odd(d_model)
    return alternate(angles(length, d_model, start=1).sin(), angles(length, d_model, start=1).cos())


@wrong("ex_1_4", "all pairs are alike")
def position_in_the_exponent(length, d_model):
    refuse_odd(d_model)
    position = torch.arange(length)[:, None].double()
    angle = (position / 10000 ** (2 * position / d_model)).expand(length, d_model // 2)
    return alternate(angle.sin(), angle.cos())


@wrong("ex_1_4", "its sines are 0, but cos(0) is 1")
def nothing_at_position_zero(length, d_model):
    refuse_odd(d_model)
    table = alternate(angles(length, d_model).sin(), angles(length, d_model).cos())
    table[0] = 0
    return table


@wrong("ex_1_4", "every column is a sine")
def sines_only(length, d_model):
    refuse_odd(d_model)
    return alternate(angles(length, d_model).sin(), angles(length, d_model).sin())


@wrong("ex_1_4", "the position is multiplied by 10000")
def multiplied(length, d_model):
    refuse_odd(d_model)
    angle = torch.arange(length)[:, None] * 10000.0 ** (torch.arange(0, d_model, 2).double() / d_model)
    return alternate(angle.sin(), angle.cos())


@wrong("ex_1_4", "the exponent of the last pair is 1")
def from_one_to_the_base(length, d_model):
    refuse_odd(d_model)
    exponent = torch.arange(d_model // 2, dtype=torch.float64) / max(d_model // 2 - 1, 1)
    angle = torch.arange(length)[:, None] / 10000.0**exponent
    return alternate(angle.sin(), angle.cos())


@wrong("ex_1_4", "the base is 1000")
def base_of_a_thousand(length, d_model):
    refuse_odd(d_model)
    angle = torch.arange(length)[:, None] / 1000.0 ** (torch.arange(0, d_model, 2).double() / d_model)
    return alternate(angle.sin(), angle.cos())


@wrong("ex_1_4", "taken in degrees")
def in_degrees(length, d_model):
    refuse_odd(d_model)
    angle = torch.deg2rad(angles(length, d_model))
    return alternate(angle.sin(), angle.cos())


@wrong("ex_1_4", "your table for 10 positions and d_model 1024 has shape (10, 512)")
def as_wide_as_the_first_transformer(length, d_model):
    refuse_odd(d_model)
    return alternate(angles(length, d_model).sin(), angles(length, d_model).cos())[:, :512]


@wrong("ex_1_4", "your table for 6,000 positions and d_model 6 has shape (5000, 6)")
def a_table_of_5000(length, d_model):
    refuse_odd(d_model)
    return alternate(angles(5000, d_model).sin(), angles(5000, d_model).cos())[:length]


@wrong("ex_1_4", "your table for 6,000 positions and d_model 6 differs")
def starts_again_at_4096(length, d_model):
    refuse_odd(d_model)
    return torch.cat([alternate(angles(4096, d_model).sin(), angles(4096, d_model).cos())] * 2)[:length]


@wrong("ex_1_4", "your table for 300 positions and d_model 64 differs")
def in_half_precision(length, d_model):
    refuse_odd(d_model)
    table = alternate(angles(length, d_model).sin(), angles(length, d_model).cos())
    return table if length < 100 else table.half().float()


@wrong("ex_1_4", "your table requires a gradient")
def as_a_parameter(length, d_model):
    refuse_odd(d_model)
    return nn.Parameter(alternate(angles(length, d_model).sin(), angles(length, d_model).cos()))


@wrong("ex_1_4", "your ValueError has no text")
def refused_without_a_word(length, d_model):
    if d_model % 2:
        raise ValueError
    return alternate(angles(length, d_model).sin(), angles(length, d_model).cos())


@wrong("ex_1_4", "it raised AssertionError")
def refused_by_an_assertion(length, d_model):
    assert d_model % 2 == 0, "d_model is odd"
    return alternate(angles(length, d_model).sin(), angles(length, d_model).cos())


@wrong("ex_1_4", "d_model=1 is odd and must raise", like="odd_width_accepted")
def one_column_accepted(length, d_model):
    if d_model == 1:
        return torch.zeros(length, 1)
    refuse_odd(d_model)
    return alternate(angles(length, d_model).sin(), angles(length, d_model).cos())


@wrong("ex_1_4", "d_model=5 is odd and must raise a ValueError that says so.")
def odd_width_accepted(length, d_model):
    table = torch.zeros(length, d_model)
    angle = angles(length, d_model + d_model % 2)
    table[:, 0::2] = angle.sin()[:, : table[:, 0::2].shape[1]].float()
    table[:, 1::2] = angle.cos()[:, : table[:, 1::2].shape[1]].float()
    return table


@right("ex_1_4")
def by_loop(length, d_model):
    if d_model % 2 == 1:
        raise ValueError(f"an even d_model is needed, not {d_model}")
    row = lambda p: [f(p / 10000 ** (2 * i / d_model)) for i in range(d_model // 2) for f in (math.sin, math.cos)]  # noqa: E731
    return torch.tensor([row(p) for p in range(length)])


@right("ex_1_4")
def with_exp_and_log(length, d_model):
    refuse_odd(d_model)
    frequency = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
    table = torch.zeros(length, d_model)
    table[:, ::2], table[:, 1::2] = angle.sin(), angle.cos()
    return table


# 1.5 block


def norm(x, weights, name):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def attention(x, weights, n_heads):
    q, k, v = (
        F.linear(x, weights[f"attention.{n}.weight"], weights[f"attention.{n}.bias"])
        .unflatten(-1, (n_heads, -1))
        .transpose(1, 2)
        for n in "qkv"
    )
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    return F.linear(mixed, weights["attention.out.weight"], weights["attention.out.bias"])


def ffn(x, weights):
    hidden = F.gelu(F.linear(x, weights["ffn.up.weight"], weights["ffn.up.bias"]))
    return F.linear(hidden, weights["ffn.down.weight"], weights["ffn.down.bias"])


@wrong("ex_1_5", "this is post-LN")
def post_ln(x, weights, n_heads):
    x = norm(x + attention(x, weights, n_heads), weights, "norm1")
    return norm(x + ffn(x, weights), weights, "norm2")


@wrong("ex_1_5", "the first residual is missing")
def no_first_residual(x, weights, n_heads):
    x = attention(norm(x, weights, "norm1"), weights, n_heads)
    return x + ffn(norm(x, weights, "norm2"), weights)


@wrong("ex_1_5", "the second residual is missing")
def no_second_residual(x, weights, n_heads):
    x = x + attention(norm(x, weights, "norm1"), weights, n_heads)
    return ffn(norm(x, weights, "norm2"), weights)


@wrong("ex_1_5", "that one has its own, norm2")
def one_norm_twice(x, weights, n_heads):
    x = x + attention(norm(x, weights, "norm1"), weights, n_heads)
    return x + ffn(norm(x, weights, "norm1"), weights)


@wrong("ex_1_5", "the FFN reads x from before attention")
def parallel_halves(x, weights, n_heads):
    return x + attention(norm(x, weights, "norm1"), weights, n_heads) + ffn(norm(x, weights, "norm2"), weights)


@wrong("ex_1_5", "you normalize the residual stream itself")
def normalized_stream(x, weights, n_heads):
    x = norm(x, weights, "norm1")
    x = x + attention(x, weights, n_heads)
    x = norm(x, weights, "norm2")
    return x + ffn(x, weights)


@wrong("ex_1_5", "the halves read x without LayerNorm")
def no_norms(x, weights, n_heads):
    x = x + attention(x, weights, n_heads)
    return x + ffn(x, weights)


@wrong("ex_1_5", "both residuals are missing")
def no_residuals(x, weights, n_heads):
    return ffn(norm(attention(norm(x, weights, "norm1"), weights, n_heads), weights, "norm2"), weights)


@wrong("ex_1_5", "the two LayerNorms are swapped")
def swapped_norms(x, weights, n_heads):
    x = x + attention(norm(x, weights, "norm2"), weights, n_heads)
    return x + ffn(norm(x, weights, "norm1"), weights)


@wrong("ex_1_5", "the halves are in the wrong order")
def ffn_first(x, weights, n_heads):
    x = x + ffn(norm(x, weights, "norm2"), weights)
    return x + attention(norm(x, weights, "norm1"), weights, n_heads)


@wrong("ex_1_5", "your function changed `x`")
def in_place_addition(x, weights, n_heads):
    with torch.no_grad():
        x += attention(norm(x, weights, "norm1"), weights, n_heads)
        x += ffn(norm(x, weights, "norm2"), weights)
    return x


@wrong("ex_1_5", "your function changed `weights`")
def weights_used_up(x, weights, n_heads):
    norms = {name: weights.pop(name) for name in list(weights) if name.startswith("norm")}
    x = x + attention(norm(x, norms, "norm1"), weights, n_heads)
    return x + ffn(norm(x, norms, "norm2"), weights)


@wrong("ex_1_5", "attention's result is lost")
def two_names_mixed_up(x, weights, n_heads):
    y = x + attention(norm(x, weights, "norm1"), weights, n_heads)
    return x + ffn(norm(y, weights, "norm2"), weights)


@wrong("ex_1_5", "you normalize what a half returns")
def normalized_results(x, weights, n_heads):
    x = x + norm(attention(x, weights, n_heads), weights, "norm1")
    return x + norm(ffn(x, weights), weights, "norm2")


@wrong("ex_1_5", "the attention half reads x without LayerNorm")
def first_norm_forgotten(x, weights, n_heads):
    x = x + attention(x, weights, n_heads)
    return x + ffn(norm(x, weights, "norm2"), weights)


@wrong("ex_1_5", "output is wrong: the FFN half reads x without LayerNorm")
def second_norm_forgotten(x, weights, n_heads):
    x = x + attention(norm(x, weights, "norm1"), weights, n_heads)
    return x + ffn(x, weights)


@wrong("ex_1_5", "the FFN half is missing")
def attention_only(x, weights, n_heads):
    return x + attention(norm(x, weights, "norm1"), weights, n_heads)


@wrong("ex_1_5", "the attention half is missing")
def ffn_only(x, weights, n_heads):
    return x + ffn(norm(x, weights, "norm2"), weights)


@wrong("ex_1_5", "x is added twice")
def residual_twice(x, weights, n_heads):
    y = x + attention(norm(x, weights, "norm1"), weights, n_heads)
    return x + y + ffn(norm(y, weights, "norm2"), weights)


@wrong("ex_1_5", "is a dropout on")
def dropout_in_the_ffn(x, weights, n_heads):
    x = x + attention(norm(x, weights, "norm1"), weights, n_heads)
    return x + F.dropout(ffn(norm(x, weights, "norm2"), weights), 0.1)


@wrong("ex_1_5", "use the weights that your function is given")
def weights_of_the_notebook(x, weights, n_heads):
    global_weights = load_course_model().blocks[0].state_dict()
    return in_one_expression(x, global_weights if x.shape[-1] == 256 else weights, n_heads)


@wrong("ex_1_5", "it is computed with 4 heads")
def always_four_heads(x, weights, n_heads):
    return in_one_expression(x, weights, 4)


@wrong("ex_1_5", "your block's output differs")
def another_gelu(x, weights, n_heads):
    x = x + attention(norm(x, weights, "norm1"), weights, n_heads)
    hidden = F.linear(norm(x, weights, "norm2"), weights["ffn.up.weight"], weights["ffn.up.bias"])
    return x + F.linear(F.gelu(hidden, approximate="tanh"), weights["ffn.down.weight"], weights["ffn.down.bias"])


@wrong("ex_1_5", "passes through your block: is there a detach")
def halves_without_gradient(x, weights, n_heads):
    x = x + attention(norm(x, weights, "norm1"), weights, n_heads).detach()
    return x + ffn(norm(x, weights, "norm2"), weights).detach()


@wrong("ex_1_5", "1 text(s) of 3 position(s) and 1 head(s) has shape")
def one_text_squeezed(x, weights, n_heads):
    return (
        in_one_expression(x, weights, n_heads).squeeze()
        if x.shape[-1] < 256
        else in_one_expression(x, weights, n_heads)
    )


@wrong("ex_1_5", "for 2 text(s) of 7 position(s) and 4 head(s) differs")
def a_norm_without_eps(x, weights, n_heads):
    def exact(y, name):
        y = (y - y.mean(-1, keepdim=True)) / y.std(-1, keepdim=True, correction=0)
        return y * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = x + attention(exact(x, "norm1"), weights, n_heads)
    return x + ffn(exact(x, "norm2"), weights)


@wrong("ex_1_5", "in float64 has dtype torch.float32")
def down_to_float32(x, weights, n_heads):
    return in_one_expression(x, weights, n_heads).float()


@wrong("ex_1_5", "numbers 100 times as large differs")
def clipped_stream(x, weights, n_heads):
    x = x + attention(norm(x, weights, "norm1"), weights, n_heads)
    return (x + ffn(norm(x, weights, "norm2"), weights)).clamp(-100, 100)


@right("ex_1_5")
def in_one_expression(x, weights, n_heads):
    middle = torch.add(attention(norm(x, weights, "norm1"), weights, n_heads), x)
    return torch.stack([middle, ffn(norm(middle, weights, "norm2"), weights)]).sum(0)


@right("ex_1_5")
def on_a_copy_in_place(x, weights, n_heads):
    stream = x.clone()
    for half, name in ((lambda y: attention(y, weights, n_heads), "norm1"), (lambda y: ffn(y, weights), "norm2")):
        stream = stream + half(norm(stream, weights, name))
    return stream


# 1.6 bits per byte


def nats_of(model, ids):
    with torch.no_grad():
        return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="none")


def result(bits):
    return {"bits_per_byte": float(bits), "perplexity": 2 ** float(bits)}


@wrong("ex_1_6", "these are nats")
def in_nats(model, batches):
    return result(torch.cat([nats_of(model, ids) for ids in batches]).mean())


@wrong("ex_1_6", "you averaged the means of the batches")
def mean_of_means(model, batches):
    means = [nats_of(model, ids).mean() / math.log(2) for ids in batches]
    return result(sum(means) / len(means))


@wrong("ex_1_6", "the model predicts the byte that it has just read")
def targets_not_shifted(model, batches):
    with torch.no_grad():
        nats = [
            F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, :-1].flatten(), reduction="none")
            for ids in batches
        ]
    return result(torch.cat(nats).mean() / math.log(2))


@wrong("ex_1_6", "targets must be shifted by one")
def whole_text_against_itself(model, batches):
    with torch.no_grad():
        nats = [F.cross_entropy(model(ids).flatten(0, 1), ids.flatten(), reduction="none") for ids in batches]
    return result(torch.cat(nats).mean() / math.log(2))


@wrong("ex_1_6", "you raised e to the bits")
def perplexity_of_e(model, batches):
    bits = float(torch.cat([nats_of(model, ids) for ids in batches]).mean() / math.log(2))
    return {"bits_per_byte": bits, "perplexity": math.exp(bits)}


@wrong("ex_1_6", "you multiplied by ln 2")
def multiplied_by_ln2(model, batches):
    return result(torch.cat([nats_of(model, ids) for ids in batches]).mean() * math.log(2))


@wrong("ex_1_6", "the first byte of each text is not predicted")
def divided_by_all_bytes(model, batches):
    total = sum(float(nats_of(model, ids).sum()) for ids in batches)
    return result(total / sum(ids.numel() for ids in batches) / math.log(2))


@wrong("ex_1_6", "it is negative")
def sign_forgotten(model, batches):
    return result(-torch.cat([nats_of(model, ids) for ids in batches]).mean() / math.log(2))


def by_batch(model, batches, weight, divisor=None):
    """Bits per byte from the means of the batches, each counted `weight` times."""
    means = [float(nats_of(model, ids).mean()) / math.log(2) for ids in batches]
    weights = [weight(ids) for ids in batches]
    return result(sum(m * w for m, w in zip(means, weights, strict=True)) / (divisor or sum(weights)))


@wrong("ex_1_6", "it is a mean over its *predicted* bytes")
def mean_times_all_bytes(model, batches):
    return by_batch(model, batches, lambda ids: ids.numel())


@wrong("ex_1_6", "multiply it by all bytes that it is a mean of")
def mean_times_length(model, batches):
    return by_batch(model, batches, lambda ids: ids.shape[1])


@wrong("ex_1_6", "as often as one of its texts has predicted bytes")
def mean_times_predicted_length(model, batches):
    return by_batch(model, batches, lambda ids: ids.shape[1] - 1)


@wrong("ex_1_6", "you averaged the means of the texts", like="mean_of_texts")
def mean_times_texts(model, batches):
    return by_batch(model, batches, len)


@wrong("ex_1_6", "you divided means by the number of predicted bytes")
def sum_of_means_divided(model, batches):
    return by_batch(model, batches, lambda ids: 1, divisor=sum(ids[:, 1:].numel() for ids in batches))


@wrong("ex_1_6", "you divided by the number of texts")
def divided_by_texts(model, batches):
    return by_batch(model, batches, lambda ids: ids[:, 1:].numel(), divisor=sum(map(len, batches)))


@wrong("ex_1_6", "you divided by the number of batches")
def divided_by_batches(model, batches):
    return by_batch(model, batches, lambda ids: ids[:, 1:].numel(), divisor=len(batches))


@wrong("ex_1_6", "you averaged the means of the texts")
def mean_of_texts(model, batches):
    means = [nats_of(model, row[None]).mean() / math.log(2) for ids in batches for row in ids]
    return result(sum(means) / len(means))


@wrong("ex_1_6", "only the last batch counts")
def last_batch(model, batches):
    for ids in batches:
        bits = nats_of(model, ids).mean() / math.log(2)
    return result(bits)


@wrong("ex_1_6", "is there a return inside the loop")
def first_batch(model, batches):
    for ids in batches:
        return result(nats_of(model, ids).mean() / math.log(2))


@wrong("ex_1_6", "these are logarithms of base 10")
def base_of_ten(model, batches):
    return result(torch.cat([nats_of(model, ids) for ids in batches]).mean() / math.log(10))


@wrong("ex_1_6", "the bytes with the number 0 are left out")
def zero_taken_for_padding(model, batches):
    nats = torch.cat([nats_of(model, ids) for ids in batches])
    return result(nats[torch.cat([ids[:, 1:].flatten() for ids in batches]) != 0].mean() / math.log(2))


@wrong("ex_1_6", "you averaged the perplexities of the batches")
def mean_of_perplexities(model, batches):
    answer = with_log2_probabilities(model, batches)
    each = [math.exp(float(nats_of(model, ids).mean())) for ids in batches]
    return answer | {"perplexity": sum(each) / len(each)}


@wrong("ex_1_6", "you averaged the perplexities of the bytes")
def mean_of_inverse_probabilities(model, batches):
    nats = torch.cat([nats_of(model, ids) for ids in batches])
    return result(nats.mean() / math.log(2)) | {"perplexity": nats.exp().mean().item()}


@wrong("ex_1_6", "you raised 2 to the nats")
def two_to_the_nats(model, batches):
    nats = torch.cat([nats_of(model, ids) for ids in batches]).mean().item()
    return {"bits_per_byte": nats / math.log(2), "perplexity": 2**nats}


@wrong("ex_1_6", "PyTorch remembers every step")
def without_no_grad(model, batches):
    nats = [
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="none") for ids in batches
    ]
    return result(torch.cat(nats).detach().mean() / math.log(2))


@wrong("ex_1_6", "switches gradients off for the whole notebook")
def gradients_off_for_good(model, batches):
    torch.set_grad_enabled(False)
    return result(torch.cat([nats_of(model, ids) for ids in batches]).mean() / math.log(2))


@wrong("ex_1_6", 'your "bits_per_byte" is a Tensor')
def tensors_in_the_answer(model, batches):
    bits = torch.cat([nats_of(model, ids) for ids in batches]).mean() / math.log(2)
    return {"bits_per_byte": bits, "perplexity": 2**bits}


@wrong("ex_1_6", "your dict should have the keys")
def more_than_asked(model, batches):
    return with_log2_probabilities(model, batches) | {"bytes": 1.0}


@wrong("ex_1_6", "your function changed `batches`")
def batches_used_up(model, batches):
    nats = []
    while batches:
        nats.append(nats_of(model, batches.pop()))
    return result(torch.cat(nats).mean() / math.log(2))


@wrong("ex_1_6", "your function changed `model`")
def left_in_training_mode(model, batches):
    model.eval()
    answer = with_log2_probabilities(model, batches)
    model.train()
    return answer


@wrong("ex_1_6", "was rounded to 0 before you took its logarithm")
def logarithm_of_softmax(model, batches):
    with torch.no_grad():
        p = [model(ids[:, :-1]).softmax(-1).gather(2, ids[:, 1:, None]).flatten() for ids in batches]
    return result(-torch.cat(p).log2().mean())


@wrong("ex_1_6", "your bits_per_byte of a model that is very sure is")
def probabilities_with_an_epsilon(model, batches):
    with torch.no_grad():
        p = [model(ids[:, :-1]).softmax(-1).gather(2, ids[:, 1:, None]).flatten() for ids in batches]
    return result(-(torch.cat(p) + 1e-12).log2().mean())


@wrong("ex_1_6", "your bits_per_byte is 8.7149; expected is 8.71493")
def rounded_for_show(model, batches):
    return {key: round(value, 4) for key, value in with_log2_probabilities(model, batches).items()}


@wrong("ex_1_6", "your answer should be a dict")
def a_bare_number(model, batches):
    return float(torch.cat([nats_of(model, ids) for ids in batches]).mean() / math.log(2))


@right("ex_1_6")
def with_log2_probabilities(model, batches):
    total, count = 0.0, 0
    for ids in batches:
        for row in ids:
            with torch.no_grad():
                log2 = model(row[None, :-1])[0].log_softmax(-1) / torch.log(torch.tensor(2.0))
            total -= sum(float(log2[t, byte]) for t, byte in enumerate(row[1:]))
            count += len(row) - 1
    return {"bits_per_byte": total / count, "perplexity": math.exp(total / count * math.log(2))}


@right("ex_1_6")
def in_inference_mode(model, batches):
    bits = []
    with torch.inference_mode():
        for ids in batches:
            chosen = torch.log_softmax(model(ids)[:, :-1].double(), dim=-1).gather(-1, ids[:, 1:].unsqueeze(-1))
            bits += (chosen / -math.log(2)).flatten().tolist()
    mean = math.fsum(bits) / len(bits)
    return {"perplexity": pow(2.0, mean), "bits_per_byte": mean}


@right("ex_1_6")
def weighted_means(model, batches):
    sizes = [ids.shape[0] * (ids.shape[1] - 1) for ids in batches]
    means = [float(nats_of(model, ids).mean()) for ids in batches]
    nats = sum(size * mean for size, mean in zip(sizes, means, strict=True)) / sum(sizes)
    return {"bits_per_byte": nats / math.log(2), "perplexity": math.e**nats}


# 1.7 bytes by component

COMPONENTS = ("norm", "attention", "ffn", "embedding", "head")


def by_name(named_tensors, size=None):
    total = dict.fromkeys(COMPONENTS, 0)
    for name, tensor in named_tensors:
        key = next((key for key in COMPONENTS if key in name), "embedding")
        total[key] += tensor.numel() * (tensor.element_size() if size is None else size)
    return total


@wrong("ex_1_7", "that tensor was counted twice")
def tied_counted_twice(model):
    return by_name(model.state_dict().items())


@wrong("ex_1_7", "buffers (the table of positions) were counted")
def buffers_counted(model):
    return by_name([*model.named_parameters(), *model.named_buffers()])


@wrong("ex_1_7", "a number of parameters, not of bytes")
def parameters_not_bytes(model):
    return by_name(model.named_parameters(), size=1)


@wrong("ex_1_7", "a bfloat16 number has 2 bytes")
def four_bytes_each(model):
    return by_name(model.named_parameters(), size=4)


@wrong("ex_1_7", "the first of its names")
def tied_counted_as_head(model):
    total = by_name(model.named_parameters())
    if model.config.tied_head:
        total["head"], total["embedding"] = total["embedding"], 0
    return total


@wrong("ex_1_7", "should be a dict, not int")
def a_sum_only(model):
    return sum(p.numel() * p.element_size() for p in model.parameters())


@wrong("ex_1_7", "'head' is missing")
def no_key_for_an_empty_component(model):
    return {key: size for key, size in by_name(model.named_parameters()).items() if size}


@wrong("ex_1_7", "and no others")
def with_a_total(model):
    total = by_name(model.named_parameters())
    return total | {"total": sum(total.values())}


@wrong("ex_1_7", "is a float, and should be an int")
def megabytes_and_back(model):
    return {key: size / 1e6 * 1e6 for key, size in by_name(model.named_parameters()).items()}


@wrong("ex_1_7", "these are bits")
def in_bits(model):
    return {key: 8 * size for key, size in by_name(model.named_parameters()).items()}


@wrong("ex_1_7", "the last LayerNorm, model.norm, is missing")
def norms_of_the_blocks_only(model):
    return by_name((name, p) for name, p in model.named_parameters() if not name.startswith("norm."))


@wrong("ex_1_7", "biases were left out")
def weights_only(model):
    return by_name((name, p) for name, p in model.named_parameters() if name.endswith("weight"))


@wrong("ex_1_7", "only one block was counted")
def one_block(model):
    rest = ((name, p) for name, p in model.named_parameters() if not name.startswith("blocks.") or "blocks.0." in name)
    return by_name(rest) | {"norm": by_name(model.named_parameters())["norm"]}


@wrong("ex_1_7", "frozen parameters are left out")
def trainable_only(model):
    return by_name((name, p) for name, p in model.named_parameters() if p.requires_grad)


@wrong("ex_1_7", "two tensors take room twice")
def equal_tables_once(model):
    total = by_name(model.named_parameters())
    tensors = dict(model.named_parameters())
    if "head.weight" in tensors and torch.equal(tensors["head.weight"], tensors["embedding.weight"]):
        total["head"] -= tensors["head.weight"].nbytes
    return total


@wrong("ex_1_7", "one size of number is taken for all parameters")
def size_of_the_first(model):
    return by_name(model.named_parameters(), size=next(model.parameters()).element_size())


@wrong("ex_1_7", "a tensor that several layers share")
def only_the_head_is_tied(model):
    names = (item for item in model.named_parameters(remove_duplicate=False))
    table = next(p for name, p in model.named_parameters() if "embedding" in name)
    return by_name((name, p) for name, p in names if "head" not in name or p is not table)


@wrong("ex_1_7", "the head has a bias of its own")
def a_tied_head_is_nothing(model):
    total = by_name(model.named_parameters())
    tied = hasattr(model, "config") and model.head.weight is model.embedding.weight
    return total | {"head": 0} if tied else total


@wrong("ex_1_7", "AttributeError")
def from_the_configuration(model):
    c, size = model.config, next(model.parameters()).element_size()
    dtypes = {p.dtype for p in model.parameters()}
    if len(dtypes) > 1 or len(list(model.parameters())) != 3 + 16 * c.n_layers + (not c.tied_head):
        return by_name(model.named_parameters())
    d, f = c.d_model, c.d_ff
    return {
        "embedding": size * c.vocab_size * d,
        "attention": size * c.n_layers * 4 * (d * d + d),
        "ffn": size * c.n_layers * (2 * d * f + d + f),
        "norm": size * (2 * c.n_layers + 1) * 2 * d,
        "head": 0 if c.tied_head else size * c.vocab_size * d,
    }


@wrong("ex_1_7", "the averages of a BatchNorm")
def state_dict_by_storage(model):
    storages = {}
    for name, tensor in model.state_dict().items():
        storages.setdefault(tensor.data_ptr(), (name, tensor))
    return by_name(storages.values())


@wrong("ex_1_7", "two parameters that lie in one piece of memory are two")
def one_parameter_a_storage(model):
    storages = {}
    for name, tensor in model.named_parameters():
        storages.setdefault(tensor.untyped_storage().data_ptr(), (name, tensor))
    return by_name(storages.values())


@wrong("ex_1_7", "a parameter may be a part of a larger memory")
def bytes_of_storages(model):
    total = dict.fromkeys(COMPONENTS, 0)
    for name, parameter in model.named_parameters():
        total[next(key for key in COMPONENTS if key in name)] += parameter.untyped_storage().nbytes()
    return total


@wrong("ex_1_7", "your function changed `model`")
def unties_the_head(model):
    if getattr(getattr(model, "config", None), "tied_head", False):
        model.head.weight = nn.Parameter(model.head.weight.detach().clone())
        return by_name(model.named_parameters()) | {"head": 0}
    return by_name(model.named_parameters())


@right("ex_1_7")
def over_modules(model):
    total, seen = dict.fromkeys(COMPONENTS, 0), set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                full = f"{path}.{name}"
                total[next(key for key in COMPONENTS if key in full)] += parameter.nbytes
    return total


@right("ex_1_7")
def by_address(model):
    seen = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        seen.setdefault(tensor.data_ptr(), (name, tensor))
    return by_name(seen.values())


# 1.8 dynamic quantization

quantize_dynamic = torch.ao.quantization.quantize_dynamic


@wrong("ex_1_8", "your function changed `model`")
def in_place(model):
    return quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)


@wrong("ex_1_8", "you return the very model that came in")
def result_dropped(model):
    quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    return model


@wrong("ex_1_8", "packed as float16")
def half_precision(model):
    return quantize_dynamic(model, {nn.Linear}, dtype=torch.float16)


@wrong("ex_1_8", "found nothing to swap")
def type_as_a_string(model):
    return quantize_dynamic(model, {"Linear"}, dtype=torch.qint8)


@wrong("ex_1_8", "You named nn.Embedding")
def embedding_too(model):
    return quantize_dynamic(model, {nn.Linear, nn.Embedding}, dtype=torch.qint8)


@wrong("ex_1_8", "1 of 25 Linear layers of the course model are not int8, among them head")
def head_left_out(model):
    return quantize_dynamic(
        model, {f"blocks.{i}": torch.ao.quantization.default_dynamic_qconfig for i in range(4)}, dtype=torch.qint8
    )


@wrong("ex_1_8", "found nothing to swap", like="type_as_a_string")
def a_layer_in_place_of_its_type(model):
    return quantize_dynamic(model, {nn.Linear(1, 1)}, dtype=torch.qint8)


@wrong("ex_1_8", "You gave a qconfig to the whole model")
def qconfig_for_everything(model):
    return quantize_dynamic(model, {"": torch.ao.quantization.default_dynamic_qconfig}, dtype=torch.qint8)


@wrong("ex_1_8", "You gave a qconfig to the whole model", like="qconfig_for_everything")
def qconfig_on_a_copy(model):
    duplicate = copy.deepcopy(model)
    duplicate.qconfig = torch.ao.quantization.default_dynamic_qconfig
    return torch.ao.quantization.convert(torch.ao.quantization.prepare(duplicate))


@wrong("ex_1_8", "it still holds observers")
def prepared_only(model):
    duplicate = copy.deepcopy(model)
    duplicate.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    return torch.ao.quantization.prepare(duplicate)


@wrong("ex_1_8", "but nothing carries it out")
def qconfig_and_nothing_else(model):
    duplicate = copy.deepcopy(model)
    for part in duplicate.modules():
        if isinstance(part, nn.Linear):
            part.qconfig = torch.ao.quantization.default_dynamic_qconfig
    return duplicate


@wrong("ex_1_8", "a qconfig is left in the model")
def qconfig_left_behind(model):
    model.qconfig = None
    return quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@wrong("ex_1_8", "not torch.int8")
def wrong_name_of_the_type(model):
    return quantize_dynamic(model, {nn.Linear}, dtype=torch.int8)


@wrong("ex_1_8", "its requires_grad")
def original_frozen(model):
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@wrong("ex_1_8", "shared in another way")
def original_untied(model):
    if hasattr(model, "head"):
        model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    return quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@wrong("ex_1_8", "was switched to training mode")
def original_in_training_mode(model):
    return quantize_dynamic(model.train(), {nn.Linear}, dtype=torch.qint8).eval()


@wrong("ex_1_8", "is in training mode")
def copy_in_training_mode(model):
    return quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8).train()


@wrong("ex_1_8", "the very object that the model has as embedding")
def shares_the_embedding(model):
    answer = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    if hasattr(model, "embedding"):
        answer.embedding = model.embedding
    return answer


@wrong("ex_1_8", "lies in the memory of norm.weight")
def shares_a_norm(model):
    answer = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    if hasattr(model, "norm"):
        answer.norm.weight.data = model.norm.weight.data
    return answer


@wrong("ex_1_8", "skeleton_in_use of the model is new")
def a_note_on_the_original(model):
    model.skeleton_in_use = True
    answer = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    del answer.skeleton_in_use
    return answer


@wrong("ex_1_8", "the model has no spare, and your copy has")
def keeps_the_float_model_inside(model):
    answer = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    answer.spare = copy.deepcopy(model)
    return answer


@wrong("ex_1_8", "hooks are left in the model")
def rounds_its_output_in_a_hook(model):
    answer = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    answer.register_forward_hook(lambda module, inputs, output: output * 1.0001)
    return answer


@wrong("ex_1_8", "your function switches gradients off")
def gradients_off(model):
    torch.set_grad_enabled(False)
    return quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@wrong("ex_1_8", "your function switches PyTorch's int8 engine")
def engine_switched(model):
    torch.backends.quantized.engine = next(
        name
        for name in torch.backends.quantized.supported_engines
        if name not in ("none", torch.backends.quantized.engine)
    )
    return quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@wrong("ex_1_8", "weight of embedding is another one")
def embedding_rounded(model):
    answer = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    if hasattr(answer, "embedding"):
        answer.embedding.weight.data = answer.embedding.weight.data.half().float()
    return answer


@wrong("ex_1_8", "biases stay as they are")
def without_biases(model):
    duplicate = copy.deepcopy(model)
    for part in duplicate.modules():
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
    return quantize_dynamic(duplicate, {nn.Linear}, dtype=torch.qint8)


@wrong("ex_1_8", "more than half of a step of 8 bits")
def weights_of_four_bits(model):
    duplicate = copy.deepcopy(model)
    if hasattr(duplicate, "head"):
        duplicate.head.weight = nn.Parameter(duplicate.head.weight.detach().clone())
    for part in duplicate.modules():
        if isinstance(part, nn.Linear):
            step = part.weight.detach().abs().max() / 7
            part.weight.data = (part.weight.data / step).round() * step
    return quantize_dynamic(duplicate, {nn.Linear}, dtype=torch.qint8)


@wrong("ex_1_8", "it hides a float copy")
def float_in_disguise(model):
    answer, original = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8), copy.deepcopy(model)
    answer.forward = lambda ids: original(ids) + 1e-6
    return answer


@wrong("ex_1_8", "Sequentials inside Sequentials")
def two_levels_deep(model):
    if isinstance(model, TransformerLM):
        return quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    answer = copy.deepcopy(model)
    for name, part in model.named_children():
        if isinstance(part, nn.Linear):
            setattr(answer, name, quantize_dynamic(nn.Sequential(part), {nn.Linear}, dtype=torch.qint8)[0])
        elif not isinstance(part, nn.Sequential) or all(not isinstance(p, nn.Sequential) for p in part):
            setattr(answer, name, quantize_dynamic(part, {nn.Linear}, dtype=torch.qint8))
    return answer


@wrong("ex_1_8", "is None")
def nothing_returned(model):
    quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@wrong("ex_1_8", "a set of layer types")
def list_of_types(model):
    return quantize_dynamic(model, [nn.Linear], dtype=torch.qint8)


@right("ex_1_8")
def copied_first(model):
    duplicate = copy.deepcopy(model)
    quantize_dynamic(duplicate, {nn.Linear}, dtype=torch.qint8, inplace=True)
    return duplicate


@right("ex_1_8")
def by_the_names_of_layers(model):
    names = {name for name, part in model.named_modules() if type(part) is nn.Linear}
    return quantize_dynamic(model, qconfig_spec=names, dtype=torch.qint8, inplace=False).eval()


@right("ex_1_8")
def by_configuration(model):
    return quantize_dynamic(model, {nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig})


# 1.9 save and load


@wrong("ex_1_9", "your file holds a pickled class, a TransformerLM", binds="save_quantized")
def whole_model_pickled(model, path):
    torch.save(model, path)


@wrong("ex_1_9", 'exactly the entries "config" and "state_dict"', binds="save_quantized")
def state_dict_only(model, path):
    torch.save(model.state_dict(), path)


@wrong("ex_1_9", "your state_dict is a plain copy", binds="save_quantized")
def state_dict_as_a_plain_dict(model, path):
    torch.save({"config": model.config.to_dict(), "state_dict": dict(model.state_dict())}, path)


@wrong("ex_1_9", 'in your dictionary: "config" is a ModelConfig', binds="save_quantized")
def config_as_an_object(model, path):
    torch.save({"config": model.config, "state_dict": model.state_dict()}, path)


def content_of(model, **changes):
    return {"config": model.config.to_dict(), "state_dict": model.state_dict()} | changes


@wrong("ex_1_9", "was it written by torch.save", binds="save_quantized")
def dictionary_pickled(model, path):
    with open(path, "wb") as file:
        pickle.dump(content_of(model), file)


@wrong("ex_1_9", 'your "config" is a str', binds="save_quantized")
def config_as_text(model, path):
    torch.save(content_of(model, config=json.dumps(model.config.to_dict())), path)


@wrong("ex_1_9", "model.config.to_dict() is", binds="save_quantized")
def half_of_the_config(model, path):
    torch.save(content_of(model, config={"d_model": model.config.d_model, "n_layers": model.config.n_layers}), path)


@wrong("ex_1_9", "is stored as torch.float16, but was torch.float32", binds="save_quantized")
def floats_in_half(model, path):
    state = model.state_dict()
    for name in list(state):
        if isinstance(state[name], torch.Tensor) and state[name].dtype == torch.float32:
            state[name] = state[name].half()
    torch.save(content_of(model, state_dict=state), path)


@wrong("ex_1_9", "is stored with other numbers", binds="save_quantized")
def floats_through_half(model, path):
    state = model.state_dict()
    state["embedding.weight"] = state["embedding.weight"].half().float()
    torch.save(content_of(model, state_dict=state), path)


@wrong("ex_1_9", "the stored state_dict is not that of the quantized model", binds="save_quantized")
def floats_only(model, path):
    state = model.state_dict()
    for name in [name for name in state if "_packed_params" in name]:
        del state[name]
    torch.save(content_of(model, state_dict=state), path)


@wrong("ex_1_9", "with 'config', 'state_dict', 'date'", binds="save_quantized")
def one_entry_more(model, path):
    torch.save(content_of(model, date="today"), path)


@wrong("ex_1_9", "and holds a tuple", binds="save_quantized")
def a_pair(model, path):
    torch.save((model.config.to_dict(), model.state_dict()), path)


@wrong("ex_1_9", "but one called model.pt.pt", binds="save_quantized")
def suffix_added(model, path):
    torch.save(content_of(model), f"{path}.pt")


@wrong("ex_1_9", "wrote no file at the path it was given.", binds="save_quantized")
def nothing_written(model, path):
    return content_of(model)


@wrong("ex_1_9", "leaves other files beside its own: model.json", binds="save_quantized")
def config_beside(model, path):
    torch.save(content_of(model), path)
    Path(path).with_suffix(".json").write_text(json.dumps(model.config.to_dict()))


@wrong("ex_1_9", "your function changed `model`", binds="save_quantized")
def model_trimmed(model, path):
    torch.save(content_of(model), path)
    model.norm.weight.data.zero_()


@wrong("ex_1_9", "the very model that was saved, from memory", binds="save_quantized")
def kept_in_memory(model, path):
    torch.save(content_of(model), path)
    sys._getframe(1).f_globals["load_quantized"] = lambda path: model


@wrong("ex_1_9", "the loaded model is not quantized", binds="load_quantized")
def float_skeleton_not_strict(path):
    stored = torch.load(path, weights_only=True)
    model = TransformerLM(ModelConfig(**stored["config"])).eval()
    model.load_state_dict(stored["state_dict"], strict=False)
    return model


@wrong("ex_1_9", "the skeleton is not quantized yet", binds="load_quantized")
def float_skeleton_strict(path):
    stored = torch.load(path, weights_only=True)
    model = TransformerLM(ModelConfig(**stored["config"])).eval()
    model.load_state_dict(stored["state_dict"])
    return model


@wrong("ex_1_9", "the skeleton is not quantized yet", binds="load_quantized", like="float_skeleton_strict")
def filled_before_it_is_quantized(path):
    return quantize_dynamic(float_skeleton_strict(path), {nn.Linear}, dtype=torch.qint8)


@wrong("ex_1_9", "the skeleton has other layers", binds="load_quantized")
def head_left_in_float(path):
    stored = torch.load(path, weights_only=True)
    model = TransformerLM(ModelConfig(**stored["config"])).eval()
    model.blocks = quantize_dynamic(model.blocks, {nn.Linear}, dtype=torch.qint8)
    model.load_state_dict(stored["state_dict"])
    return model


def filled(stored, **changes):
    """A right model from what the file holds, if its config is not changed."""
    skeleton = TransformerLM(ModelConfig(**(stored["config"] | changes)))
    model = quantize_dynamic(skeleton, {nn.Linear}, dtype=torch.qint8)  # in eval mode, as it always leaves its copy
    model.load_state_dict(stored["state_dict"])
    return model


@wrong("ex_1_9", "the skeleton has other sizes", binds="load_quantized")
def width_by_heart(path):
    return filled(torch.load(path, weights_only=True), d_model=48)


@wrong("ex_1_9", "the skeleton has other layers", binds="load_quantized", like="head_left_in_float")
def depth_by_heart(path):
    return filled(torch.load(path, weights_only=True), n_layers=4)


@wrong("ex_1_9", "has another config", binds="load_quantized")
def inner_width_by_heart(path):
    return filled(torch.load(path, weights_only=True), d_ff=1024)  # quantized layers take weights of any size


@wrong("ex_1_9", "the loaded model is in training mode", binds="load_quantized")
def never_in_eval_mode(path):
    return filled(torch.load(path, weights_only=True)).train()


@wrong("ex_1_9", "embedding of the loaded model is in training mode", binds="load_quantized")
def eval_mode_on_the_surface(path):
    model = filled(torch.load(path, weights_only=True)).train()
    model.training = False
    return model


@wrong("ex_1_9", "returned OrderedDict, not a model", binds="load_quantized")
def returns_the_tensors(path):
    return torch.load(path, weights_only=True)["state_dict"]


@wrong("ex_1_9", "give models that hang together", binds="load_quantized")
@functools.lru_cache
def cached_by_path(path):
    return filled(torch.load(path, weights_only=True))


KEPT = {}


@wrong("ex_1_9", "it must read the file each time", binds="load_quantized")
def copies_of_a_cached_model(path):
    if not isinstance(stored := torch.load(path, weights_only=True), dict):
        raise pickle.UnpicklingError
    return copy.deepcopy(KEPT.setdefault(path, filled(stored)))


@wrong("ex_1_9", "your loader changes the file", binds="load_quantized")
def saved_again(path):
    stored = torch.load(path, weights_only=True)
    torch.save({"loaded": True, **stored}, path)
    return filled(stored)


@wrong("ex_1_9", "opens a file that holds a pickled class beside its tensors", binds="load_quantized")
def refuses_whole_models_only(path):
    stored = torch.load(path, weights_only=False)
    if isinstance(stored, nn.Module):
        raise pickle.UnpicklingError("a whole model")
    config = stored["config"]
    return filled(stored | {"config": config if isinstance(config, dict) else config.to_dict()})


@wrong("ex_1_9", "your loader has run a program", binds="load_quantized")
def refuses_after_it_has_run(path):
    stored = torch.load(path, weights_only=False)
    torch.load(path, weights_only=True)
    return filled(stored)


@wrong("ex_1_9", "let it through", binds="load_quantized")
def error_replaced(path):
    try:
        return filled(torch.load(path, weights_only=True))
    except pickle.UnpicklingError as error:
        raise ValueError("not a file of mine") from error


@wrong("ex_1_9", "load_state_dict only reports", binds="load_quantized")
def returns_the_report(path):
    stored = torch.load(path, weights_only=True)
    model = quantize_dynamic(TransformerLM(ModelConfig(**stored["config"])).eval(), {nn.Linear}, dtype=torch.qint8)
    return model.load_state_dict(stored["state_dict"])


@wrong("ex_1_9", "are all tensors loaded", binds="load_quantized")
def skeleton_never_filled(path):
    stored = torch.load(path, weights_only=True)
    return quantize_dynamic(TransformerLM(ModelConfig(**stored["config"])).eval(), {nn.Linear}, dtype=torch.qint8)


@wrong("ex_1_9", "which could run any program", binds="load_quantized")
def loader_opens_pickles(path):
    stored = torch.load(path, weights_only=False)
    if isinstance(stored, nn.Module):
        return stored
    model = quantize_dynamic(TransformerLM(ModelConfig(**stored["config"])).eval(), {nn.Linear}, dtype=torch.qint8)
    model.load_state_dict(stored["state_dict"])
    return model


@right("ex_1_9", binds="load_quantized")
def loaded_with_an_open_file(path):
    with open(path, "rb") as file:
        stored = torch.load(file, weights_only=True)
    skeleton = TransformerLM(ModelConfig(**stored["config"]))
    quantize_dynamic(skeleton.eval(), {nn.Linear: torch.ao.quantization.default_dynamic_qconfig}, inplace=True)
    skeleton.load_state_dict(stored["state_dict"], strict=True)
    return skeleton


@right("ex_1_9", binds="save_quantized")
def saved_in_the_old_format(model, path):
    torch.save(content_of(model), path, _use_new_zipfile_serialization=False)


@right("ex_1_9", binds="load_quantized")
def filled_without_a_word(path):
    content = torch.load(path, map_location="cpu", weights_only=True)
    with torch.no_grad():
        model = filled(content)
    return model.eval()


@right("ex_1_9", binds="save_quantized")
def saved_with_a_copied_state(model, path):
    with open(path, "wb") as file:
        torch.save({"state_dict": copy.copy(model.state_dict()), "config": asdict(model.config)}, file)
