"""Answers to exercises 4.7, 4.8 and 4.10 (unit 04)."""

import copy
import dataclasses
import functools
import hashlib
import json
import math
import os
import pickle
import tempfile
from os import rename
from pathlib import Path

import torch
import torch.ao.nn.qat as nnqat
import torch.ao.quantization as tq
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import nn

from helpers import metrics, rounding
from helpers.models import ModelConfig, TransformerLM
from tests.misconceptions.bank import right, wrong
from tests.misconceptions.ch04_embedding import shared

# 4.7 sensitivity


def by_row(model, ids):
    return metrics.next_byte_bits(model, ids).mean(dim=1)


def paired(difference):
    return difference.mean().item(), (difference.std() / len(difference) ** 0.5).item()


def in_order(rows):
    return sorted(rows, key=lambda row: -row[1])


def copied_and_quantized(model, part, quantize_, ids):
    trial = copy.deepcopy(model)
    quantize_(trial, part, ids)
    return trial


@wrong("ex_4_7", "the parts add up")
def accumulates(model, parts, quantize_, calibration, windows):
    trial, reference, rows = copy.deepcopy(model), by_row(model, windows), []
    for part in parts:
        quantize_(trial, part, calibration)
        rows.append((part, *paired(by_row(trial, windows) - reference)))
    return in_order(rows)


@wrong("ex_4_7", "you measured on the calibration data")
def evaluates_on_the_calibration_data(model, parts, quantize_, calibration, windows):
    reference = by_row(model, calibration)
    trials = [(part, copied_and_quantized(model, part, quantize_, calibration)) for part in parts]
    return in_order([(part, *paired(by_row(trial, calibration) - reference)) for part, trial in trials])


@wrong("ex_4_7", "you calibrated with `windows`")
def calibrates_on_the_windows(model, parts, quantize_, calibration, windows):
    reference = by_row(model, windows)
    trials = [(part, copied_and_quantized(model, part, quantize_, windows)) for part in parts]
    return in_order([(part, *paired(by_row(trial, windows) - reference)) for part, trial in trials])


@wrong("ex_4_7", "your function changed the model")
def quantizes_in_place(model, parts, quantize_, calibration, windows):
    reference, rows = by_row(model, windows), []
    for part in parts:
        quantize_(model, part, calibration)
        rows.append((part, *paired(by_row(model, windows) - reference)))
    return in_order(rows)


@wrong("ex_4_7", "your function changed the model", like="quantizes_in_place")
def restores_only_the_state_dict(model, parts, quantize_, calibration, windows):
    kept, reference, rows = copy.deepcopy(model.state_dict()), by_row(model, windows), []
    for part in parts:
        quantize_(model, part, calibration)
        rows.append((part, *paired(by_row(model, windows) - reference)))
        model.load_state_dict(kept)
    return in_order(rows)


@wrong("ex_4_7", "subtract those of the float model")
def absolute_bits(model, parts, quantize_, calibration, windows):
    trials = [(part, copied_and_quantized(model, part, quantize_, calibration)) for part in parts]
    return in_order([(part, *paired(by_row(trial, windows))) for part, trial in trials])


@wrong("ex_4_7", "the largest mean belongs first")
def least_sensitive_first(model, parts, quantize_, calibration, windows):
    return right_answer(model, parts, quantize_, calibration, windows)[::-1]


@wrong("ex_4_7", "your list is not sorted")
def in_the_given_order(model, parts, quantize_, calibration, windows):
    answer = {row[0]: row for row in right_answer(model, parts, quantize_, calibration, windows)}
    return [answer[part] for part in parts]


@wrong("ex_4_7", "sorted by the absolute value")
def sorted_by_the_absolute_value(model, parts, quantize_, calibration, windows):
    return sorted(right_answer(model, parts, quantize_, calibration, windows), key=lambda row: -abs(row[1]))


@wrong("ex_4_7", "float reference was measured on other data")
def reference_of_other_data(model, parts, quantize_, calibration, windows):
    reference, rows = by_row(model, calibration).mean(), []
    for part in parts:
        rows.append(
            (part, *paired(by_row(copied_and_quantized(model, part, quantize_, calibration), windows) - reference))
        )
    return in_order(rows)


@wrong("ex_4_7", "the sign is wrong")
def float_minus_quantized(model, parts, quantize_, calibration, windows):
    return in_order([(p, -m, e) for p, m, e in right_answer(model, parts, quantize_, calibration, windows)])


@wrong("ex_4_7", "every difference is 0")
def measures_the_float_model(model, parts, quantize_, calibration, windows):
    reference, rows = by_row(model, windows), []
    for part in parts:
        quantize_(copy.deepcopy(model), part, calibration)
        rows.append((part, *paired(by_row(model, windows) - reference)))
    return in_order(rows)


@wrong("ex_4_7", "quantize_ returns None")
def uses_what_quantize_returns(model, parts, quantize_, calibration, windows):
    rows = []
    for part in parts:
        trial = quantize_(copy.deepcopy(model), part, calibration)
        rows.append((part, *paired(by_row(trial, windows) - by_row(model, windows))))
    return in_order(rows)


@wrong("ex_4_7", "the error of two unrelated means")
def unpaired_error(model, parts, quantize_, calibration, windows):
    reference, rows = by_row(model, windows), []
    for part in parts:
        bits = by_row(copied_and_quantized(model, part, quantize_, calibration), windows)
        error = ((bits.var() + reference.var()) / len(bits)).sqrt().item()
        rows.append((part, (bits.mean() - reference.mean()).item(), error))
    return in_order(rows)


@wrong("ex_4_7", "divide it by the root")
def standard_deviation_for_error(model, parts, quantize_, calibration, windows):
    rows = right_answer(model, parts, quantize_, calibration, windows)
    return [(part, mean, error * len(windows) ** 0.5) for part, mean, error in rows]


def with_calibration(model, parts, quantize_, calibration, windows, ids):
    return right_answer(model, parts, lambda trial, part, _: quantize_(trial, part, ids), calibration, windows)


@wrong("ex_4_7", "hand on the whole tensor")
def calibrates_on_the_first_row(model, parts, quantize_, calibration, windows):
    return with_calibration(model, parts, quantize_, calibration, windows, calibration[:1])


@wrong("ex_4_7", "hand on the whole tensor", like="calibrates_on_the_first_row")
def calibrates_without_the_last_byte(model, parts, quantize_, calibration, windows):
    return with_calibration(model, parts, quantize_, calibration, windows, calibration[:, :-1])


@wrong("ex_4_7", "the copy is in training mode")
def copies_into_training_mode(model, parts, quantize_, calibration, windows):
    reference, rows = by_row(model, windows), []
    for part in parts:
        trial = copy.deepcopy(model).train()
        quantize_(trial, part, calibration)
        rows.append((part, *paired(by_row(trial, windows) - reference)))
    return in_order(rows)


def summed_up_by(model, parts, quantize_, calibration, windows, summary):
    reference, rows = by_row(model, windows), []
    for part in parts:
        d = by_row(copied_and_quantized(model, part, quantize_, calibration), windows) - reference
        rows.append((part, *summary(d)))
    return in_order(rows)


@wrong("ex_4_7", "absolute value of the mean")
def absolute_value_of_the_mean(model, parts, quantize_, calibration, windows):
    return summed_up_by(model, parts, quantize_, calibration, windows, lambda d: (abs(paired(d)[0]), paired(d)[1]))


@wrong("ex_4_7", "each document's difference")
def mean_of_absolute_values(model, parts, quantize_, calibration, windows):
    return summed_up_by(model, parts, quantize_, calibration, windows, lambda d: paired(d.abs()))


@wrong("ex_4_7", "documents - 1")
def divides_by_all_documents(model, parts, quantize_, calibration, windows):
    return summed_up_by(
        model,
        parts,
        quantize_,
        calibration,
        windows,
        lambda d: (d.mean().item(), (d.std(correction=0) / len(d) ** 0.5).item()),
    )


@wrong("ex_4_7", "as if they were independent of each other")
def error_over_bytes(model, parts, quantize_, calibration, windows):
    reference, rows = metrics.next_byte_bits(model, windows), []
    for part in parts:
        trial = copied_and_quantized(model, part, quantize_, calibration)
        rows.append((part, *paired((metrics.next_byte_bits(trial, windows) - reference).flatten())))
    return in_order(rows)


@wrong("ex_4_7", "this is the spread over all bytes")
def spread_of_bytes_by_documents(model, parts, quantize_, calibration, windows):
    reference, rows = metrics.next_byte_bits(model, windows), []
    for part in parts:
        d = metrics.next_byte_bits(copied_and_quantized(model, part, quantize_, calibration), windows) - reference
        rows.append((part, d.mean().item(), (d.std() / len(windows) ** 0.5).item()))
    return in_order(rows)


@wrong("ex_4_7", "has taken care of the 1")
def takes_one_off_twice(model, parts, quantize_, calibration, windows):
    return summed_up_by(
        model,
        parts,
        quantize_,
        calibration,
        windows,
        lambda d: (d.mean().item(), d.std().item() / math.sqrt(len(d) - 1)),
    )


@wrong("ex_4_7", "your mean for the part")
def median_of_the_documents(model, parts, quantize_, calibration, windows):
    return summed_up_by(model, parts, quantize_, calibration, windows, lambda d: (d.quantile(0.5).item(), paired(d)[1]))


@wrong("ex_4_7", "your function changed `parts`, which belongs to its caller: it has now")
def empties_the_list(model, parts, quantize_, calibration, windows):
    rows = []
    while parts:
        rows += right_answer(model, [parts.pop()], quantize_, calibration, windows)
    return in_order(rows)


@wrong("ex_4_7", "your function changed `parts`, which belongs to its caller: [0]")
def sorts_the_list_of_the_caller(model, parts, quantize_, calibration, windows):
    parts.sort()
    return right_answer(model, parts, quantize_, calibration, windows)


@wrong("ex_4_7", "should be Python numbers")
def returns_tensors(model, parts, quantize_, calibration, windows):
    return summed_up_by(
        model, parts, quantize_, calibration, windows, lambda d: (d.mean(), d.std() / math.sqrt(len(d)))
    )


@wrong("ex_4_7", "quantize_ returns None", like="uses_what_quantize_returns")
def evaluates_what_quantize_returns(model, parts, quantize_, calibration, windows):
    rows = []
    for part in parts:
        trial = quantize_(copy.deepcopy(model), part, calibration).eval()
        rows.append((part, *paired(by_row(trial, windows) - by_row(model, windows))))
    return in_order(rows)


@wrong("ex_4_7", "requires_grad")
def thaws_the_given_model(model, parts, quantize_, calibration, windows):
    model.requires_grad_(True)
    return right_answer(model, parts, quantize_, calibration, windows)


@wrong("ex_4_7", "was switched to training mode")
def leaves_the_given_model_in_training_mode(model, parts, quantize_, calibration, windows):
    answer = right_answer(model, parts, quantize_, calibration, windows)
    model.train()
    return answer


@wrong("ex_4_7", "your function changed the model", like="quantizes_in_place")
def copies_only_the_shell(model, parts, quantize_, calibration, windows):
    reference, rows = by_row(model, windows), []
    for part in parts:
        trial = copy.copy(model)
        quantize_(trial, part, calibration)
        rows.append((part, *paired(by_row(trial, windows) - reference)))
    return in_order(rows)


@wrong("ex_4_7", "list index out of range")
def needs_a_first_part(model, parts, quantize_, calibration, windows):
    best = right_answer(model, parts, quantize_, calibration, windows)
    return best if best[0][1] >= best[-1][1] else best[::-1]


REMEMBERED = {}


@wrong("ex_4_7", "your mean for the part quiver")
def remembers_the_float_bits(model, parts, quantize_, calibration, windows):
    reference = REMEMBERED.setdefault(len(windows), by_row(model, windows))  # of the first model that came
    trials = [(part, copied_and_quantized(model, part, quantize_, calibration)) for part in parts]
    return in_order([(part, *paired(by_row(trial, windows) - reference)) for part, trial in trials])


@right("ex_4_7")
def right_answer(model, parts, quantize_, calibration, windows):
    found = {}
    for part in parts:
        trial = copied_and_quantized(model, part, quantize_, calibration)
        found[part] = paired(by_row(trial, windows) - by_row(model, windows))
    return [(part, *found[part]) for part in sorted(found, key=lambda part: found[part][0])[::-1]]


@wrong("ex_4_7", "only some of the documents were measured")
def measures_sixteen_documents(model, parts, quantize_, calibration, windows):
    return right_answer(model, parts, quantize_, calibration, windows[:16])


@wrong("ex_4_7", "your mean for the part string", like="remembers_the_float_bits")
def measures_the_first_bytes(model, parts, quantize_, calibration, windows):
    return right_answer(model, parts, quantize_, calibration, windows[:, :129])


@wrong("ex_4_7", "hand on the whole tensor", like="calibrates_on_the_first_row")
def calibrates_on_eight_rows(model, parts, quantize_, calibration, windows):
    return with_calibration(model, parts, quantize_, calibration, windows, calibration[:8])


@wrong("ex_4_7", "these are sums over each document's bytes")
def sums_the_bits_of_a_document(model, parts, quantize_, calibration, windows):
    bytes_of = windows.shape[1] - 1
    rows = right_answer(model, parts, quantize_, calibration, windows)
    return [(part, bytes_of * mean, bytes_of * error) for part, mean, error in rows]


LAST_FLOAT = []


@wrong("ex_4_7", "for other documents is wrong")
def remembers_the_last_model(model, parts, quantize_, calibration, windows):
    if not LAST_FLOAT or LAST_FLOAT[0] is not model:
        LAST_FLOAT[:] = [model, by_row(model, windows)]
    trials = [(part, copied_and_quantized(model, part, quantize_, calibration)) for part in parts]
    return in_order([(part, *paired(by_row(trial, windows) - LAST_FLOAT[1])) for part, trial in trials])


LAST_ASKED = []


@wrong("ex_4_7", "whose weights have changed since the last call")
def remembers_model_and_documents(model, parts, quantize_, calibration, windows):
    for old, ids, answer in LAST_ASKED:
        if old is model and torch.equal(ids, windows):
            return answer
    LAST_ASKED.append((model, windows.clone(), right_answer(model, parts, quantize_, calibration, windows)))
    return LAST_ASKED[-1][2]


@wrong("ex_4_7", "your mean for the part")
def rounds_to_five_places(model, parts, quantize_, calibration, windows):
    rows = right_answer(model, parts, quantize_, calibration, windows)
    return [(part, round(mean, 5), round(error, 5)) for part, mean, error in rows]


@wrong("ex_4_7", "sort by the means as they are, not rounded")
def sorts_rounded_means(model, parts, quantize_, calibration, windows):
    rows = sorted(right_answer(model, parts, quantize_, calibration, windows))
    return sorted(rows, key=lambda row: -round(row[1], 2))


@wrong("ex_4_7", "sets the seed of torch's random numbers")
def sets_the_seed(model, parts, quantize_, calibration, windows):
    torch.manual_seed(0)
    return right_answer(model, parts, quantize_, calibration, windows)


@right("ex_4_7")
def all_models_first(model, parts, quantize_, calibration, windows):
    if not parts:
        return []
    with torch.inference_mode():
        trials = [copied_and_quantized(model, part, quantize_, calibration) for part in parts]
        rows = torch.stack([by_row(one, windows) for one in [model, *trials]])
        variance, mean = torch.var_mean(rows[1:] - rows[0], dim=1)
        order = mean.argsort(descending=True).tolist()
    return [(parts[i], mean[i].item(), (variance[i] / len(windows)).sqrt().item()) for i in order]


@right("ex_4_7")
def one_document_at_a_time(model, parts, quantize_, calibration, windows):
    rows = []
    for part in parts:
        trial, costs = copied_and_quantized(model, part, quantize_, calibration), []
        for document in windows:
            costs.append(
                metrics.bits_per_byte(trial, [document[None]]) - metrics.bits_per_byte(model, [document[None]])
            )
        mean = sum(costs) / len(costs)
        variance = sum((cost - mean) ** 2 for cost in costs) / (len(costs) - 1)
        rows.append([part, mean, math.sqrt(variance / len(costs))])
    rows.sort(key=lambda row: row[1], reverse=True)
    return rows


# 4.8 QAT


def qconfig_of(bits):
    q = 2 ** (bits - 1) - 1
    weight = tq.FakeQuantize.with_args(
        observer=tq.MovingAveragePerChannelMinMaxObserver.with_args(averaging_constant=1.0),
        quant_min=-q,
        quant_max=q,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
    )
    return tq.QConfig(activation=nn.Identity, weight=weight)


def harden(trainee):
    copied = copy.deepcopy(trainee)
    with torch.no_grad():
        for name, layer in trainee.named_modules():
            if isinstance(layer, nnqat.Linear):
                plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
                plain.weight.copy_(layer.weight_fake_quant(layer.weight))
                if layer.bias is not None:
                    plain.bias.copy_(layer.bias)
                copied.set_submodule(name, plain.train(trainee.training))
    return copied


def prepared(model, bits):
    trainee = copy.deepcopy(model).train()
    trainee.qconfig = qconfig_of(bits)
    return tq.prepare_qat(trainee, inplace=True)


def train(trainee, optimizer, batches, lr, off="half", decay=True, zero=True):
    n = len(batches)
    for i, ids in enumerate(batches):
        if i == {"half": n // 2, "start": 1, "never": -1}[off]:
            trainee.apply(tq.disable_observer)
        if decay:
            optimizer.param_groups[0]["lr"] = lr * min(1, (n - i) / (n - n // 2))
        loss = F.cross_entropy(trainee(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        if zero:
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def variant(model, batches, bits, lr, **how):
    trainee = prepared(model, bits)
    train(trainee, torch.optim.Adam(trainee.parameters(), lr=lr), batches, lr, **how)
    trainee.eval()
    return trainee


@wrong("ex_4_8", "the second model is in training mode")
def hardens_in_train_mode(model, batches, bits, lr):
    trainee = prepared(model, bits)
    train(trainee, torch.optim.Adam(trainee.parameters(), lr=lr), batches, lr)
    final = harden(trainee)
    return trainee.eval(), final


@wrong("ex_4_8", "should be in eval mode")
def never_evals(model, batches, bits, lr):
    trainee = prepared(model, bits)
    train(trainee, torch.optim.Adam(trainee.parameters(), lr=lr), batches, lr)
    return trainee, harden(trainee)


@wrong("ex_4_8", "the learning rate does not fall")
def full_rate_on_frozen_scales(model, batches, bits, lr):
    trainee = variant(model, batches, bits, lr, decay=False)
    return trainee, harden(trainee)


@wrong("ex_4_8", "the observers are still on")
def observers_never_frozen(model, batches, bits, lr):
    trainee = variant(model, batches, bits, lr, off="never")
    return trainee, harden(trainee)


@wrong("ex_4_8", "switched off only at the end")
def observers_frozen_at_the_end(model, batches, bits, lr):
    trainee = variant(model, batches, bits, lr, off="never")
    trainee(batches[0][:, :-1])
    trainee.apply(tq.disable_observer)
    return trainee, harden(trainee)


@wrong("ex_4_8", "the scales are those of the untrained weights")
def observers_frozen_at_once(model, batches, bits, lr):
    trainee = variant(model, batches, bits, lr, off="start")
    return trainee, harden(trainee)


@wrong("ex_4_8", "no weight has moved")
def optimizer_before_prepare(model, batches, bits, lr):
    first = copy.deepcopy(model).train()
    first.qconfig = qconfig_of(bits)
    optimizer = torch.optim.Adam(first.parameters(), lr=lr)
    trainee = tq.prepare_qat(first)
    train(trainee, optimizer, batches, lr)
    return trainee.eval(), harden(trainee)


@wrong("ex_4_8", "you trained a float copy")
def trains_the_float_copy(model, batches, bits, lr):
    trainee = copy.deepcopy(model).train()
    train(trainee, torch.optim.Adam(trainee.parameters(), lr=lr), batches, lr)
    trainee.eval()
    return trainee, rounding.with_rounded_linears(trainee, bits, "channel")


@wrong("ex_4_8", "a model without fake quantizers was trained")
def float_training_then_prepare(model, batches, bits, lr):
    n = len(batches)
    floats = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(floats.parameters(), lr=lr)
    trainee = prepared(model, bits).eval()
    trainee(batches[0][:, :-1])
    for i, ids in enumerate(batches):
        if i == n // 2:
            with torch.no_grad():
                for name in ("up", "down", "head"):
                    getattr(trainee, name).weight.copy_(getattr(floats, name).weight)
            trainee(ids[:, :-1])
            trainee.apply(tq.disable_observer)
        loss = F.cross_entropy(floats(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        for a, b in zip(trainee.parameters(), floats.parameters(), strict=True):
            a.copy_(b)
    return trainee, harden(trainee)


@wrong("ex_4_8", "changed the model that it was given")
def trains_the_original(model, batches, bits, lr):
    model.train()
    model.qconfig = qconfig_of(bits)
    tq.prepare_qat(model, inplace=True)
    train(model, torch.optim.Adam(model.parameters(), lr=lr), batches, lr)
    return model.eval(), harden(model)


@wrong("ex_4_8", "away from what training has seen")
def convert_with_new_scales(model, batches, bits, lr):
    trainee = variant(model, batches, bits, lr)
    final = harden(trainee)
    with torch.no_grad():
        for name in ("up", "down", "head"):
            weight = getattr(trainee, name).weight
            getattr(final, name).weight.copy_(rounding.round_to_nearest(weight, bits, weight.shape[1]))
    return trainee, final


@wrong("ex_4_8", "different weights")
def never_rounds(model, batches, bits, lr):
    trainee = variant(model, batches, bits, lr)
    final = harden(trainee)
    with torch.no_grad():
        for name in ("up", "down", "head"):
            getattr(final, name).weight.copy_(getattr(trainee, name).weight)
    return trainee, final


@wrong("ex_4_8", "still fake-quantizes")
def returns_the_trainee_twice(model, batches, bits, lr):
    trainee = variant(model, batches, bits, lr)
    return trainee, trainee


@wrong("ex_4_8", "call .train() on the copy")
def prepares_in_eval_mode(model, batches, bits, lr):
    trainee = copy.deepcopy(model)
    trainee.qconfig = qconfig_of(bits)
    tq.prepare_qat(trainee, inplace=True)
    return trainee, harden(trainee)


@wrong("ex_4_8", "dropout must be on in training")
def trains_in_eval_mode(model, batches, bits, lr):
    trainee = prepared(model, bits).eval()
    train(trainee, torch.optim.Adam(trainee.parameters(), lr=lr), batches, lr)
    return trainee, harden(trainee)


@wrong("ex_4_8", "gradients pile up")
def gradients_pile_up(model, batches, bits, lr):
    trainee = variant(model, batches, bits, lr, zero=False)
    return trainee, harden(trainee)


@wrong("ex_4_8", "train first, convert last")
def optimizer_of_a_converted_model(model, batches, bits, lr):
    trainee = tq.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})
    torch.optim.Adam(trainee.parameters(), lr=lr)
    return trainee, trainee


def scheduled(
    model,
    batches,
    bits,
    lr,
    off=0,
    rate=None,
    adam=torch.optim.Adam,
    shift=1,
    order=None,
    zero="first",
    loss=F.cross_entropy,
    before=None,
    after=None,
    **how,
):
    """Trained with one thing done differently; `rate(i, n, h)` is the factor of step i."""
    trainee, n = prepared(model, bits), len(batches)
    rate = rate or (lambda i, n, h: min(1, (n - i) / (n - h)))
    optimizer = adam(trainee.parameters(), lr=lr, **how)
    for i, ids in enumerate(order(batches) if order else batches):
        if i == n // 2 + off:
            trainee.apply(tq.disable_observer)
        for group in optimizer.param_groups:
            group["lr"] = lr * rate(i, n, n // 2)
        if zero == "first":
            optimizer.zero_grad()
        loss(trainee(ids[:, :-1]).transpose(1, 2), ids[:, shift:][:, : ids.shape[1] - 1]).backward()
        if zero == "between":
            optimizer.zero_grad()
        if before:
            before(trainee)
        optimizer.step()
        if after:
            after(trainee)
    trainee.eval()
    return trainee, harden(trainee)


@wrong("ex_4_8", "the frozen scales are not those of step")
def freezes_one_step_late(model, batches, bits, lr):
    return scheduled(model, batches, bits, lr, off=1)


@wrong("ex_4_8", "one step too early")
def rate_falls_one_step_early(model, batches, bits, lr):
    return scheduled(model, batches, bits, lr, rate=lambda i, n, h: min(1, (n - i - 1) / (n - h)))


@wrong("ex_4_8", "the learning rate was")
def rate_falls_as_a_square(model, batches, bits, lr):
    return scheduled(model, batches, bits, lr, rate=lambda i, n, h: min(1, (n - i) / (n - h)) ** 2)


@wrong("ex_4_8", "the learning rate was", like="rate_falls_as_a_square")
def rate_falls_as_a_cosine(model, batches, bits, lr):
    return scheduled(
        model,
        batches,
        bits,
        lr,
        rate=lambda i, n, h: 1 if i < h else (1 + math.cos(math.pi * (i - h) / (n - h))) / 2,
    )


@wrong("ex_4_8", "the learning rate was", like="rate_falls_as_a_square")
def half_the_rate_for_the_second_half(model, batches, bits, lr):
    return scheduled(model, batches, bits, lr, rate=lambda i, n, h: 1 if i < h else 0.5)


@wrong("ex_4_8", "falls from the beginning")
def rate_falls_from_the_beginning(model, batches, bits, lr):
    return scheduled(model, batches, bits, lr, rate=lambda i, n, h: (n - i) / n)


@wrong("ex_4_8", "made by AdamW")
def adam_with_decoupled_decay(model, batches, bits, lr):
    return scheduled(model, batches, bits, lr, adam=torch.optim.AdamW)


@wrong("ex_4_8", "made by SGD")
def plain_descent(model, batches, bits, lr):
    return scheduled(model, batches, bits, lr, adam=torch.optim.SGD)


@wrong("ex_4_8", "leave weight_decay")
def decays_the_weights(model, batches, bits, lr):
    return scheduled(model, batches, bits, lr, weight_decay=1e-2)


@wrong("ex_4_8", "the last one included")
def skips_the_last_batch(model, batches, bits, lr):
    return scheduled(model, batches, bits, lr, order=lambda b: b[:-1])


@wrong("ex_4_8", "take the batches in order")
def takes_the_batches_backwards(model, batches, bits, lr):
    return scheduled(model, batches, bits, lr, order=lambda b: b[::-1])


@wrong("ex_4_8", "all but the last")
def drops_a_token(model, batches, bits, lr):
    return scheduled(model, [ids[:, :-1] for ids in batches], bits, lr)


@wrong("ex_4_8", "the target is the *next* byte")
def asks_for_the_same_byte(model, batches, bits, lr):
    return scheduled(model, batches, bits, lr, shift=0)


@wrong("ex_4_8", "zero_grad stands between backward and step")
def clears_the_gradient_before_the_step(model, batches, bits, lr):
    return scheduled(model, batches, bits, lr, zero="between")


@wrong("ex_4_8", "activations stay float")
def default_qconfig(model, batches, bits, lr):
    trainee = copy.deepcopy(model).train()
    trainee.qconfig = tq.get_default_qat_qconfig("x86")
    tq.prepare_qat(trainee, inplace=True)
    train(trainee, torch.optim.Adam(trainee.parameters(), lr=lr), batches, lr)
    trainee.eval()
    return trainee, harden(trainee)


@wrong("ex_4_8", "tq.convert refuses the embedding")
def converts_instead_of_hardening(model, batches, bits, lr):
    trainee = variant(model, batches, bits, lr)
    return trainee, tq.convert(trainee)


@wrong("ex_4_8", "not a plain nn.Linear")
def quantizes_the_hardened_model(model, batches, bits, lr):
    trainee = variant(model, batches, bits, lr)
    final = harden(trainee)
    for module in final.modules():
        vars(module).pop("qconfig", None)
    return trainee, tq.quantize_dynamic(final, {nn.Linear})


@wrong("ex_4_8", "your loss is a sum")
def sums_the_loss(model, batches, bits, lr):
    return scheduled(model, batches, bits, lr, loss=lambda guesses, ids: F.cross_entropy(guesses, ids, reduction="sum"))


@wrong("ex_4_8", "times the expected one")
def counts_in_bits(model, batches, bits, lr):
    return scheduled(model, batches, bits, lr, loss=lambda guesses, ids: F.cross_entropy(guesses, ids) / math.log(2))


@wrong("ex_4_8", "do not clip or scale them")
def clips_the_gradients(model, batches, bits, lr):
    return scheduled(
        model, batches, bits, lr, before=lambda trainee: nn.utils.clip_grad_norm_(trainee.parameters(), 0.1)
    )


@wrong("ex_4_8", "is not that of the loss")
def smooths_the_labels(model, batches, bits, lr):
    return scheduled(
        model, batches, bits, lr, loss=lambda guesses, ids: F.cross_entropy(guesses, ids, label_smoothing=0.05)
    )


@torch.no_grad()
def clamped(trainee):
    for layer in (trainee.up, trainee.down, trainee.head):
        layer.weight.clamp_(-0.3, 0.3)


@wrong("ex_4_8", "something else than the optimizer has changed")
def clamps_the_weights(model, batches, bits, lr):
    return scheduled(model, batches, bits, lr, after=clamped)


@wrong("ex_4_8", "go through the batches once")
def trains_twice_over(model, batches, bits, lr):
    return scheduled(model, batches, bits, lr, order=lambda b: [*b, *b])


@wrong("ex_4_8", "your function changed `batches`")
def empties_the_batches(model, batches, bits, lr):
    taken = []
    while batches:
        taken.append(batches.pop(0))
    return scheduled(model, taken, bits, lr)


@wrong("ex_4_8", "leave frozen what is frozen")
def trains_what_is_frozen(model, batches, bits, lr):
    return scheduled(copy.deepcopy(model).requires_grad_(True), batches, bits, lr)


@wrong("ex_4_8", "was switched to eval mode")
def leaves_the_given_model_in_eval_mode(model, batches, bits, lr):
    answer = scheduled(model, batches, bits, lr)
    model.eval()
    return answer


@wrong("ex_4_8", "not independent of the model")
def keeps_the_embedding_of_the_model(model, batches, bits, lr):
    trainee, final = scheduled(model, batches, bits, lr)
    if not model.embedding.weight.requires_grad:
        final.embedding.weight = model.embedding.weight
    return trainee, final


@wrong("ex_4_8", "not independent of the trained copy")
def hardens_around_the_same_embedding(model, batches, bits, lr):
    trainee, final = scheduled(model, batches, bits, lr)
    final.embedding = trainee.embedding
    return trainee, final


@wrong("ex_4_8", "in the second model drop is")
def takes_the_dropout_out(model, batches, bits, lr):
    trainee, final = scheduled(model, batches, bits, lr)
    final.drop = nn.Identity()
    return trainee, final


@wrong("ex_4_8", "the learning rate of the step before it")
def sets_the_rate_after_the_step(model, batches, bits, lr):
    n = len(batches)
    following = iter([*(min(1, (n - i) / (n - n // 2)) for i in range(n))])
    before = [1.0]

    def late(i, n, h):
        before.append(next(following))
        return before[-2]

    return scheduled(model, batches, bits, lr, rate=late)


@wrong("ex_4_8", "away from what training has seen", like="convert_with_new_scales")
def ships_in_half_precision(model, batches, bits, lr):
    trainee, final = scheduled(model, batches, bits, lr)
    return trainee, final.half().float()


@wrong("ex_4_8", "are not fake-quantized to 6 bits")
def four_bits_at_most(model, batches, bits, lr):
    return scheduled(model, batches, min(bits, 4), lr)


@wrong("ex_4_8", "in step 0 of 2 the learning rate was", like="rate_falls_as_a_square")
def a_rate_of_two_hundredths_at_most(model, batches, bits, lr):
    return scheduled(model, batches, bits, min(lr, 2e-2))


@wrong("ex_4_8", "stack expects each tensor to be equal size")
def stacks_the_batches(model, batches, bits, lr):
    return scheduled(model, list(torch.stack(batches)), bits, lr)


@wrong("ex_4_8", "the last one included", like="skips_the_last_batch")
def sixty_four_steps_at_most(model, batches, bits, lr):
    return scheduled(model, batches[:64], bits, lr)


@wrong("ex_4_8", "call trainee.eval(), which reaches every part")
def switches_only_the_root(model, batches, bits, lr):
    trainee, final = scheduled(model, batches, bits, lr)
    trainee.train().training = False
    return trainee, final


@wrong("ex_4_8", "of the trained copy is frozen, and was not")
def freezes_when_it_is_done(model, batches, bits, lr):
    trainee, final = scheduled(model, batches, bits, lr)
    return trainee.requires_grad_(False), final


@wrong("ex_4_8", "`original` is new in the trained copy")
def keeps_the_model_beside(model, batches, bits, lr):
    trainee, final = scheduled(model, batches, bits, lr)
    trainee.__dict__["original"] = model
    return trainee, final


@wrong("ex_4_8", "switches gradients off")
def switches_gradients_off(model, batches, bits, lr):
    answer = scheduled(model, batches, bits, lr)
    torch.set_grad_enabled(False)
    return answer


@right("ex_4_8")
def steps_with_a_closure(model, batches, bits, lr):
    trainee, n = prepared(model, bits), len(batches)
    optimizer = torch.optim.Adam(trainee.parameters(), lr)
    for i, ids in enumerate(batches):
        if i == n // 2:
            trainee.apply(tq.disable_observer)
        optimizer.param_groups[0]["lr"] = lr * min(1, (n - i) / (n - n // 2))

        def closure(ids=ids):
            optimizer.zero_grad(set_to_none=False)
            loss = F.cross_entropy(trainee(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            return loss

        optimizer.step(closure)
    trainee.eval()
    return trainee, harden(trainee)


@right("ex_4_8")
def only_what_can_be_trained(model, batches, bits, lr):
    trainee, n = prepared(model, bits), len(batches)
    optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, trainee.parameters()), lr)
    for i, ids in enumerate(batches):
        if i == n // 2:
            trainee.apply(tq.disable_observer)
        optimizer.param_groups[0]["lr"] = lr * min(1, (n - i) / (n - n // 2))
        logits = trainee(ids[:, :-1])
        loss = -logits.log_softmax(-1).gather(2, ids[:, 1:, None]).mean()
        for p in trainee.parameters():
            p.grad = None
        loss.backward()
        optimizer.step()
    trainee.eval()
    return trainee, harden(trainee)


@right("ex_4_8")
def steps_of_foreach(model, batches, bits, lr):
    return scheduled(model, batches, bits, lr, foreach=True)


@right("ex_4_8")
def prepared_by_a_copy(model, batches, bits, lr):
    first = copy.deepcopy(model).train()
    first.qconfig = qconfig_of(bits)
    trainee = tq.prepare_qat(first)
    optimizer = torch.optim.Adam(trainee.parameters(), lr=lr)
    train(trainee, optimizer, batches, lr)
    trainee.train(False)
    return [trainee, harden(trainee)]


@right("ex_4_8")
def two_loops_and_a_scheduler(model, batches, bits, lr):
    trainee, n = prepared(model, bits), len(batches)
    optimizer = torch.optim.Adam([p for p in trainee.parameters() if p.requires_grad], lr=lr)
    h = n // 2
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (n - i) / (n - h)))
    for number, ids in enumerate(batches):
        if number == h:
            for module in trainee.modules():
                if isinstance(module, tq.FakeQuantize):
                    module.disable_observer()
        optimizer.zero_grad()
        F.cross_entropy(trainee(ids[:, :-1]).transpose(1, 2), ids[:, 1:]).backward()
        optimizer.step()
        schedule.step()
    trainee.eval()
    return trainee, harden(trainee)


# 4.9 the tie: more answers, next to those in ch04_embedding.py


@wrong("ex_4_9", "everything else stays as it is")
def rebuilt_from_the_config(model):
    small = shared(model)
    again = TransformerLM(model.config).eval()
    again.load_state_dict(model.state_dict())
    again.embedding, again.head = small.embedding, small.head
    for ours, theirs in zip(again.modules(), small.modules(), strict=True):
        ours.training = theirs.training
    return again


@wrong("ex_4_9", "(the model was switched to eval mode)")
def switches_the_copy_to_eval_mode(model):
    return shared(model).eval()


@wrong("ex_4_9", "its requires_grad", like="rebuilt_from_the_config")
def thaws_the_copy(model):
    return shared(model).requires_grad_(True)


@wrong("ex_4_9", "the copy is not independent of the model")
def shares_the_blocks(model):
    small = shared(model)
    small.blocks = model.blocks
    return small


@wrong("ex_4_9", "the scales carry a gradient")
def scales_with_a_gradient(model):
    largest = model.embedding.weight.abs().amax(1)
    return shared(model, scale=torch.where(largest > 0, largest / 127, 1.0))


@wrong("ex_4_9", "the codes are not the nearest ones")
def rounds_in_half_precision(model):
    small = shared(model)
    weight, scale = model.embedding.weight.detach(), small.embedding.scale
    codes = (weight.half() / scale.half()[:, None]).round().clamp(-127, 127).to(torch.int8)
    small.embedding.codes = small.head.codes = codes
    return small


@wrong("ex_4_9", "the scale of each token differs")
def quiet_rows_count_as_zero(model):
    largest = model.embedding.weight.detach().abs().amax(1)
    return shared(model, scale=torch.where(largest > 1e-4, largest / 127, 1.0))


@wrong("ex_4_9", "the model that it is given")
def freezes_the_given_model(model):
    return shared(model.requires_grad_(False))


@wrong("ex_4_9", "the copy's config is")
def unties_in_the_config(model):
    small = shared(model)
    small.config = dataclasses.replace(model.config, tied_head=not model.config.tied_head)
    return small


@wrong("ex_4_9", "a tensor is kept as `weight`")
def keeps_the_matrix_as_an_attribute(model):
    small = shared(model)
    small.embedding.weight = model.embedding.weight.detach().clone()
    return small


@wrong("ex_4_9", "the embedding of the copy holds codes, rows, scale")
def keeps_the_rows_in_a_buffer(model):
    small = shared(model)
    small.embedding.register_buffer("rows", model.embedding.weight.detach().clone(), persistent=False)
    return small


@wrong("ex_4_9", "the head of the copy holds codes, scale, zero_point")
def adds_zero_points(model):
    small = shared(model)
    small.head.register_buffer("zero_point", torch.zeros(len(small.head.codes), dtype=torch.int8))
    return small


@wrong("ex_4_9", "`original` is new in the copy")
def keeps_the_matrix_in_a_list(model):
    small = shared(model)
    small.original = [model.embedding.weight.detach().clone()]
    return small


@wrong("ex_4_9", "`rows` is new in embedding")
def keeps_the_matrix_in_a_function(model):
    small, matrix = shared(model), model.embedding.weight
    small.embedding.rows = lambda: matrix
    return small


@wrong("ex_4_9", "a model that you refuse is changed nevertheless")
def ties_and_then_refuses(model):
    if model.head.weight is not model.embedding.weight:
        model.head.weight = model.embedding.weight
        raise ValueError("the head has a matrix of its own")
    return shared(model)


LAST_TIED = []


@wrong("ex_4_9", "one and the same object")
def returns_what_it_has_made(model):
    if not LAST_TIED or LAST_TIED[0] is not model:
        LAST_TIED[:] = [model, shared(model)]
    return LAST_TIED[1]


@wrong("ex_4_9", "you return the old codes")
def copies_what_it_has_made(model):
    return copy.deepcopy(returns_what_it_has_made(model))


@wrong("ex_4_9", "the scale of each token differs", like="quiet_rows_count_as_zero")
def adds_a_tiny_number(model):
    largest = model.embedding.weight.detach().abs().amax(1)
    return shared(model, scale=torch.where(largest > 0, largest / 127 + 1e-12, torch.ones(())))


@wrong("ex_4_9", "each scale is that of a column")
def columns_of_a_square(model):
    square = len(model.embedding.weight) == model.embedding.weight.shape[1]
    return shared(model, dim=0 if square else 1)


# 4.10 the artefact


def rows_of(weight):
    scale = weight.detach().abs().amax(dim=1, keepdim=True) / 127
    scale[scale == 0] = 1
    return (weight.detach() / scale).round().to(torch.int8), scale


def numbers_of(model):
    found = {}
    for name, p in model.named_parameters():
        if p.dim() == 2:
            found[f"{name}.codes"], found[f"{name}.scale"] = rows_of(p)
        else:
            found[name] = p.detach()
    return found


def note_of(path):
    return path.with_suffix(".sha256")


def write(path, content, digest=None):
    digest = digest or hashlib.sha256(content).hexdigest()
    write_line(path, content, f"{digest}  {path.name}\n")


def write_line(path, content, line):
    new_path, new_note = (target.with_suffix(target.suffix + ".new") for target in (path, note_of(path)))
    new_path.write_bytes(content)
    new_note.write_text(line)
    new_path.replace(path)
    new_note.replace(note_of(path))


def header_of(model):
    return {"config": json.dumps(model.config.to_dict())}


def rebuilt(path, strict=True):
    stored = load_file(path)
    with safe_open(str(path), framework="pt") as file:
        config = ModelConfig(**json.loads(file.metadata()["config"]))
    model = TransformerLM(config)
    state = {n: t for n, t in stored.items() if not n.endswith((".codes", ".scale"))}
    for n in [n.removesuffix(".codes") for n in stored if n.endswith(".codes")]:
        state[n] = stored[f"{n}.codes"].float() * stored[f"{n}.scale"]
    if config.tied_head and "embedding.weight" in state:
        state["head.weight"] = state["embedding.weight"]
    model.load_state_dict(state, strict=strict)
    return model.eval()


def verified(path):
    if note_of(path).read_text()[:64] != hashlib.sha256(path.read_bytes()).hexdigest():
        raise ValueError(f"{path.name} is damaged.")


@wrong("ex_4_10", "the file is a pickle", binds="save_artefact")
def saves_the_whole_model(model, path):
    torch.save(model, path)
    note_of(path).write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")


@wrong("ex_4_10", "the file is a pickle", binds="save_artefact", like="saves_the_whole_model")
def pickles_the_numbers(model, path):
    write(path, pickle.dumps({name: tensor.tolist() for name, tensor in numbers_of(model).items()}))


@wrong("ex_4_10", "there is no file model.sha256", binds="save_artefact")
def writes_no_hash(model, path):
    save_file(numbers_of(model), path, metadata=header_of(model))


@wrong("ex_4_10", "is that of the configuration alone", binds="save_artefact")
def hashes_the_configuration(model, path):
    content = save(numbers_of(model), metadata=header_of(model))
    write(path, content, hashlib.sha256(header_of(model)["config"].encode()).hexdigest())


@wrong("ex_4_10", "hash the file as it is on disk", binds="save_artefact")
def hashes_the_tensors_only(model, path):
    numbers = numbers_of(model)
    digest = hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in numbers.values())).hexdigest()
    write(path, save(numbers, metadata=header_of(model)), digest)


@wrong("ex_4_10", "is that of the file's name", binds="save_artefact")
def hashes_the_name(model, path):
    write(path, save(numbers_of(model), metadata=header_of(model)), hashlib.sha256(str(path).encode()).hexdigest())


@wrong("ex_4_10", "the configuration is not in the file's metadata", binds="save_artefact")
def leaves_the_configuration_out(model, path):
    write(path, save(numbers_of(model)))


@wrong("ex_4_10", "is stored in float", binds="save_artefact")
def stores_float_weights(model, path):
    numbers = {name: p.detach().contiguous() for name, p in model.named_parameters()}
    write(path, save(numbers, metadata=header_of(model)))


@wrong("ex_4_10", "int8 is what makes the file small", binds="save_artefact")
def stores_codes_as_float(model, path):
    numbers = {n: t.float() for n, t in numbers_of(model).items()}
    write(path, save(numbers, metadata=header_of(model)))


@wrong("ex_4_10", "biases and norms belong to the model", binds="save_artefact")
def stores_matrices_only(model, path):
    numbers = {n: t for n, t in numbers_of(model).items() if n.endswith((".codes", ".scale"))}
    write(path, save(numbers, metadata=header_of(model)))


@wrong("ex_4_10", "stored a second time", binds="save_artefact")
def stores_the_tie_twice(model, path):
    numbers = numbers_of(model)
    if model.config.tied_head:
        numbers["head.weight.codes"], numbers["head.weight.scale"] = rows_of(model.head.weight)
    write(path, save(numbers, metadata=header_of(model)))


@wrong("ex_4_10", "saving was stopped in the middle", binds="save_artefact")
def replaces_before_hashing(model, path):
    save_file(numbers_of(model), path, metadata=header_of(model))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    part = path.with_suffix(".tmp")
    part.write_text(f"{digest}  {path.name}\n")
    part.replace(note_of(path))


@wrong("ex_4_10", "was overwritten in place", binds="save_artefact")
def writes_in_place(model, path):
    content = save(numbers_of(model), metadata=header_of(model))
    digest = hashlib.sha256(content).hexdigest()
    path.write_bytes(content)
    note_of(path).write_text(f"{digest}  {path.name}\n")


def new_files(model, path, folder):
    content = save(numbers_of(model), metadata=header_of(model))
    new_path, new_note = folder / "weights.new", folder / "hash.new"
    line = f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"
    return content, line, new_path, new_note


@wrong("ex_4_10", "hash, two spaces, name of the file", binds="save_artefact")
def writes_one_space(model, path):
    content = save(numbers_of(model), metadata=header_of(model))
    write_line(path, content, f"{hashlib.sha256(content).hexdigest()} {path.name}\n")


@wrong("ex_4_10", "stays float32", binds="save_artefact")
def stores_vectors_in_double(model, path):
    numbers = {n: t if n.endswith((".codes", ".scale")) else t.double() for n, t in numbers_of(model).items()}
    write(path, save(numbers, metadata=header_of(model)))


@wrong("ex_4_10", "although its hash is wrong", binds="load_artefact")
def compares_last_and_catches(path):
    try:
        model = rebuilt(path)
    except FileNotFoundError:
        raise
    except Exception:
        raise ValueError(f"{path.name} is damaged.") from None
    verified(path)
    return model


@wrong("ex_4_10", "every parameter must come from the file", binds="load_artefact")
def loads_what_it_finds(path):
    verified(path)
    return rebuilt(path, strict=False)


@wrong("ex_4_10", "neither file is replaced", binds="save_artefact")
def deletes_and_writes(model, path):
    content, line, _, _ = new_files(model, path, path.parent)
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    note_of(path).unlink(missing_ok=True)
    note_of(path).write_text(line)


@wrong("ex_4_10", "the old artefact is already gone", binds="save_artefact")
def deletes_before_it_replaces(model, path):
    content, line, new_path, new_note = new_files(model, path, path.parent)
    new_path.write_bytes(content)
    new_note.write_text(line)
    path.unlink(missing_ok=True)
    note_of(path).unlink(missing_ok=True)
    new_path.rename(path)
    new_note.rename(note_of(path))


@wrong("ex_4_10", "the other new file is not written yet", binds="save_artefact")
def replaces_one_after_the_other(model, path):
    content, line, new_path, new_note = new_files(model, path, path.parent)
    new_path.write_bytes(content)
    new_path.replace(path)
    new_note.write_text(line)
    new_note.replace(note_of(path))


@wrong("ex_4_10", "only one of the two files is replaced", binds="save_artefact")
def replaces_the_weights_only(model, path):
    content, line, new_path, new_note = new_files(model, path, path.parent)
    new_path.write_bytes(content)
    new_note.write_text(line)
    new_path.replace(path)
    note_of(path).unlink(missing_ok=True)
    note_of(path).write_text(line)
    new_note.unlink()


@wrong("ex_4_10", "is written in another folder", binds="save_artefact")
def writes_in_the_temporary_folder(model, path):
    with tempfile.TemporaryDirectory(dir=path.parent.parent) as folder:
        content, line, new_path, new_note = new_files(model, path, Path(folder))
        new_path.write_bytes(content)
        new_note.write_text(line)
        os.replace(new_path, path)
        os.replace(new_note, note_of(path))


@wrong("ex_4_10", "a flipped bit in the weights is loaded without a word", binds="load_artefact")
def loads_without_a_hash(path):
    if not note_of(path).is_file():
        raise FileNotFoundError(note_of(path).name)
    return rebuilt(path)


@wrong("ex_4_10", "is loaded without a word", binds="load_artefact", like="loads_without_a_hash")
def checks_only_the_length_of_the_hash(path):
    if len(note_of(path).read_text().split()[0]) != 64:
        raise ValueError(f"{path.name} has no hash.")
    return rebuilt(path)


@wrong("ex_4_10", "compare the hash before you read anything", binds="load_artefact", like="compares_last_and_catches")
def reads_before_it_checks(path):
    model = rebuilt(path)
    verified(path)
    return model


@wrong("ex_4_10", "one sentence that names the file", binds="load_artefact")
def says_nothing_useful(path):
    if note_of(path).read_text()[:64] != hashlib.sha256(path.read_bytes()).hexdigest():
        raise ValueError("bad hash")
    return rebuilt(path)


@wrong("ex_4_10", "another configuration", binds="load_artefact")
def guesses_the_configuration(path):
    verified(path)
    stored = load_file(path)
    blocks = 1 + max(int(n.split(".")[1]) for n in stored if n.startswith("blocks."))
    vocab_size, width = stored["embedding.weight.codes"].shape
    d_ff = len(stored["blocks.0.ffn.up.weight.codes"])
    tied = "head.weight.codes" not in stored
    config = ModelConfig(vocab_size, 16, width, 1, blocks, d_ff, tied)
    model = TransformerLM(config)
    state = {n: t for n, t in stored.items() if not n.endswith((".codes", ".scale"))}
    for n in [n.removesuffix(".codes") for n in stored if n.endswith(".codes")]:
        state[n] = stored[f"{n}.codes"].float() * stored[f"{n}.scale"]
    state.setdefault("head.weight", state["embedding.weight"])
    model.load_state_dict(state)
    return model.eval()


@wrong("ex_4_10", "should be in eval mode", binds="load_artefact")
def returns_it_in_training_mode(path):
    verified(path)
    return rebuilt(path).train()


@wrong("ex_4_10", "is not what was saved", binds="load_artefact")
def forgets_the_scales(path):
    verified(path)
    model = rebuilt(path)
    stored = load_file(path)
    with torch.no_grad():
        model.blocks[0].ffn.up.weight.copy_(stored["blocks.0.ffn.up.weight.codes"].float())
    return model


@wrong("ex_4_10", "a third file, config.json", binds="save_artefact")
def writes_the_configuration_twice(model, path):
    write(path, save(numbers_of(model), metadata=header_of(model)))
    (path.parent / "config.json").write_text(header_of(model)["config"])


@wrong("ex_4_10", "is not JSON", binds="save_artefact")
def writes_the_configuration_as_python(model, path):
    write(path, save(numbers_of(model), metadata={"config": str(model.config.to_dict())}))


@wrong("ex_4_10", "the configuration in the file is another one", binds="save_artefact")
def writes_the_usual_configuration(model, path):
    write(path, save(numbers_of(model), metadata={"config": json.dumps(ModelConfig().to_dict())}))


@wrong("ex_4_10", "expected is (40, 1)", binds="save_artefact")
def writes_flat_scales(model, path):
    numbers = {n: t.flatten() if n.endswith(".scale") else t for n, t in numbers_of(model).items()}
    write(path, save(numbers, metadata=header_of(model)))


@wrong("ex_4_10", "a row of zeros in embedding.weight has the scale", binds="save_artefact")
def gives_zero_rows_the_scale_zero(model, path):
    numbers = numbers_of(model)
    for name, p in model.named_parameters():
        if p.dim() == 2:
            numbers[f"{name}.scale"] = p.detach().abs().amax(dim=1, keepdim=True) / 127
    write(path, save(numbers, metadata=header_of(model)))


@wrong("ex_4_10", "largest magnitude of each row divided by 127", binds="save_artefact")
def writes_one_scale_for_all_rows(model, path):
    numbers = numbers_of(model)
    for name, p in model.named_parameters():
        if p.dim() == 2:
            scale = (p.detach().abs().max() / 127).expand(len(p), 1).clone()
            scale[p.detach().abs().amax(1) == 0] = 1
            numbers[f"{name}.codes"] = (p.detach() / scale).round().to(torch.int8)
            numbers[f"{name}.scale"] = scale
    write(path, save(numbers, metadata=header_of(model)))


@wrong("ex_4_10", "steps away from weight / scale", binds="save_artefact")
def cuts_the_codes_off(model, path):
    numbers = numbers_of(model)
    for name, p in model.named_parameters():
        if p.dim() == 2:
            numbers[f"{name}.codes"] = (p.detach() / numbers[f"{name}.scale"]).to(torch.int8)
    write(path, save(numbers, metadata=header_of(model)))


@wrong("ex_4_10", "there is no file v1.2.sha256", binds="save_artefact")
def names_the_hash_by_the_first_dot(model, path):
    write(path, save(numbers_of(model), metadata=header_of(model)))
    note_of(path).rename(path.parent / f"{path.name.split('.')[0]}.sha256")


@wrong("ex_4_10", "No such file or directory", binds="save_artefact")
def replaces_the_suffix_in_the_whole_path(model, path):
    content = save(numbers_of(model), metadata=header_of(model))
    part = path.with_suffix(".new")
    part.write_bytes(content)
    part.replace(path)
    note = Path(str(path).replace("safetensors", "sha256"))
    part.write_text(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")
    part.replace(note)


@wrong("ex_4_10", "save_artefact changed the model", binds="save_artefact")
def switches_the_model_to_eval_mode(model, path):
    write(path, save(numbers_of(model.eval()), metadata=header_of(model)))


@wrong("ex_4_10", "only the first 40 digits of the hash is loaded", binds="load_artefact")
def accepts_the_beginning_of_a_hash(path):
    words = note_of(path).read_text().split()
    if not words or not hashlib.sha256(path.read_bytes()).hexdigest().startswith(words[0]):
        raise ValueError(f"{path.name} is damaged.")
    return rebuilt(path)


@wrong("ex_4_10", "lacks its first digit is loaded", binds="load_artefact")
def accepts_a_part_of_a_hash(path):
    words = note_of(path).read_text().split()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not words or len(words[0]) < 60 or words[0] not in digest:
        raise ValueError(f"{path.name} is damaged.")
    return rebuilt(path)


def rebuilt_from(stored, config, path):
    state = {n: t for n, t in stored.items() if not n.endswith((".codes", ".scale"))}
    for n in [n.removesuffix(".codes") for n in stored if n.endswith(".codes")]:
        state[n] = stored[f"{n}.codes"].float() * stored.get(f"{n}.scale", torch.ones(1))
    if config.tied_head:
        state["head.weight"] = state["embedding.weight"]
    return state


def parts_of(path):
    verified(path)
    with safe_open(str(path), framework="pt") as file:
        return load_file(path), ModelConfig(**json.loads(file.metadata()["config"]))


@wrong("ex_4_10", "may stand in for a scale", binds="load_artefact")
def puts_one_for_a_lost_scale(path):
    stored, config = parts_of(path)
    model = TransformerLM(config)
    model.load_state_dict(rebuilt_from(stored, config, path))
    return model.eval()


@wrong("ex_4_10", "says that the head is not tied", binds="load_artefact")
def ties_what_has_no_head(path):
    stored, config = parts_of(path)
    if any(n.endswith(".codes") and n.replace(".codes", ".scale") not in stored for n in stored):
        raise ValueError(f"{path.name} lacks a scale.")
    state = rebuilt_from(stored, config, path)
    state.setdefault("head.weight", state["embedding.weight"])
    model = TransformerLM(config)
    model.load_state_dict(state)
    return model.eval()


@wrong("ex_4_10", "load_artefact finds no head.weight", binds="load_artefact")
def forgets_the_head(path):
    stored, config = parts_of(path)
    state = rebuilt_from(stored, config, path)
    if config.tied_head:
        del state["head.weight"]
    model = TransformerLM(config)
    model.load_state_dict(state)
    return model.eval()


@wrong("ex_4_10", "builds a model of another configuration", binds="load_artefact")
def builds_the_usual_configuration(path):
    stored, config = parts_of(path)
    model = TransformerLM(ModelConfig())
    model.load_state_dict(rebuilt_from(stored, config, path))
    return model.eval()


@wrong("ex_4_10", "embedding.weight of the loaded model is not what was saved", binds="load_artefact")
def multiplies_in_half_precision(path):
    stored, config = parts_of(path)
    stored = {n: t.half().float() if n.endswith(".scale") else t for n, t in stored.items()}
    model = TransformerLM(config)
    model.load_state_dict(rebuilt_from(stored, config, path))
    return model.eval()


@wrong("ex_4_10", "loading twice does not give two models", binds="load_artefact")
@functools.lru_cache
def keeps_what_it_has_loaded(path):
    return loads_from_bytes(path)


@right("ex_4_10", binds="save_artefact")
def saves_with_save_file(model, path):
    part = path.parent / "part.tmp"
    save_file({n: t.contiguous() for n, t in numbers_of(model).items()}, part, metadata=header_of(model))
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    second = path.parent / "hash.tmp"
    second.write_text(f"{digest}  {path.name}\n")
    part.replace(path)
    second.replace(note_of(path))


@right("ex_4_10", binds="save_artefact")
def saves_with_rename(model, path):
    content, line, new_path, new_note = new_files(model, path, path.parent)
    new_path.write_bytes(content)
    new_note.write_text(line)
    rename(new_path, path)
    rename(new_note, note_of(path))


@right("ex_4_10", binds="save_artefact")
def writes_short_json(model, path):
    config = json.dumps(model.config.to_dict(), separators=(",", ":"), sort_keys=True)
    write(path, save(numbers_of(model), metadata={"config": config, "format": "pt"}))


@right("ex_4_10", binds="load_artefact")
def loads_from_bytes(path):
    path = Path(path)
    raw, line = path.read_bytes(), path.with_suffix(".sha256").read_text()
    if hashlib.sha256(raw).hexdigest() not in line:
        raise ValueError(f"the artefact {path.name} does not match its hash; get both files again.")
    return rebuilt(path)
