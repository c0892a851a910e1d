"""Unit 05, sections 1 to 4: what learners really answer in exercises 5.1 to 5.6."""

import contextlib
import io
import math
import pathlib
import random
import resource
import statistics
import subprocess
import sys
import time
from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from tests.misconceptions.bank import right, wrong

# 5.1 distances


def five(reference, quantized, **change):
    """The right five numbers, each of which can be replaced."""
    x, y = reference.double(), quantized.double()
    noise = torch.linalg.vector_norm(x - y)
    kl = divergences(x, y)
    return {
        "sqnr_db": 20 * math.log10(torch.linalg.vector_norm(x) / noise) if noise else math.inf,
        "cosine": F.cosine_similarity(x.flatten(), y.flatten(), dim=0).item(),
        "max_error": (x - y).abs().max().item(),
        "kl_mean": kl.mean().item(),
        "kl_p99": kl.flatten().quantile(0.99).item(),
    } | change


def divergences(x, y, dim=-1):
    """KL(x ‖ y) in bits, along one dimension."""
    p, q = x.log_softmax(dim), y.log_softmax(dim)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(dim) / math.log(2)


def both(kl):
    return {"kl_mean": kl.mean().item(), "kl_p99": kl.flatten().quantile(0.99).item()}


@wrong("ex_5_1", "20 times the logarithm of their ratio")
def ten_log_of_amplitudes(reference, quantized):
    return five(reference, quantized, sqnr_db=five(reference, quantized)["sqnr_db"] / 2)


@wrong("ex_5_1", "signal and noise are swapped")
def noise_over_signal(reference, quantized):
    return five(reference, quantized, sqnr_db=-five(reference, quantized)["sqnr_db"])


@wrong("ex_5_1", "divide by 0")
def no_error_is_a_large_number(reference, quantized):
    x, y = reference.double(), quantized.double()
    return five(reference, quantized, sqnr_db=(20 * torch.log10(x.norm() / ((x - y).norm() + 1e-12))).item())


@wrong("ex_5_1", "mean of one cosine for each position")
def cosine_by_position(reference, quantized):
    mean = F.cosine_similarity(reference.double(), quantized.double(), dim=-1).mean().item()
    return five(reference, quantized, cosine=mean)


@wrong("ex_5_1", "one cosine for each entry of the first dimension")
def cosine_by_the_first_dimension(reference, quantized):
    rows = (z.double().reshape(len(z), -1) for z in (reference, quantized))
    return five(reference, quantized, cosine=F.cosine_similarity(*rows, dim=-1).mean().item())


@wrong("ex_5_1", "mean of noise-to-signal ratios")
def noise_power_by_the_first_dimension(reference, quantized):
    x, y = (z.double().reshape(len(z), -1) for z in (reference, quantized))
    share = ((x - y).square().sum(1) / x.square().sum(1)).mean().item()
    return five(reference, quantized, sqnr_db=-10 * math.log10(share) if share else math.inf)


@wrong("ex_5_1", "one SQNR for each position")
def sqnr_by_position(reference, quantized):
    x, y = reference.double(), quantized.double()
    each = 20 * torch.log10(x.norm(dim=-1) / (x - y).norm(dim=-1))
    return five(reference, quantized, sqnr_db=each.mean().item())


@wrong("ex_5_1", "a correlation")
def correlation_for_cosine(reference, quantized):
    pair = torch.stack([reference.double().flatten(), quantized.double().flatten()])
    return five(reference, quantized, cosine=torch.corrcoef(pair)[0, 1].item())


@wrong("ex_5_1", "in powers of ten")
def kl_in_powers_of_ten(reference, quantized):
    kl = divergences(reference.double(), quantized.double()) * math.log10(2)
    return five(reference, quantized, **both(kl))


@wrong("ex_5_1", "mean of both directions")
def kl_of_both_directions(reference, quantized):
    x, y = reference.double(), quantized.double()
    return five(reference, quantized, **both((divergences(x, y) + divergences(y, x)) / 2))


@wrong("ex_5_1", "batchmean")
def batchmean(reference, quantized):
    kl = divergences(reference.double(), quantized.double())
    return five(reference, quantized, kl_mean=kl.sum().item() / len(reference))


@wrong("ex_5_1", "the next smaller of the KLs")
def percentile_without_interpolation(reference, quantized):
    kl = divergences(reference.double(), quantized.double()).flatten().sort().values
    return five(reference, quantized, kl_p99=kl[int(0.99 * (len(kl) - 1))].item())


@wrong("ex_5_1", "one percentile for each entry of the first dimension")
def percentile_by_the_first_dimension(reference, quantized):
    kl = divergences(reference.double(), quantized.double())
    kl = kl.reshape(len(kl), -1) if kl.dim() > 1 else kl.reshape(1, -1)
    return five(reference, quantized, kl_p99=kl.quantile(0.99, dim=1).mean().item())


@wrong("ex_5_1", "largest error of a probability")
def error_of_probabilities(reference, quantized):
    gap = reference.double().softmax(-1) - quantized.double().softmax(-1)
    return five(reference, quantized, max_error=gap.abs().max().item())


@wrong("ex_5_1", "one of Python's numbers")
def tensors_for_numbers(reference, quantized):
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in five(reference, quantized).items()}


@wrong("ex_5_1", "mind views that are not contiguous")
def numbers_in_the_order_of_memory(reference, quantized):
    if reference.is_contiguous():
        return five(reference, quantized)
    plain = reference.as_strided(reference.shape, torch.empty(reference.shape).stride())
    return five(plain, quantized)


@wrong("ex_5_1", "what differs are the last digits of float32")
def really_in_float32(reference, quantized):
    p, q = reference.log_softmax(-1), quantized.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).double() / math.log(2)
    exact = divergences(reference.double(), quantized.double())
    return five(reference, quantized, **both(kl if exact.mean() < 1e-6 else exact))


@wrong("ex_5_1", "sign was kept")
def signed_maximum(reference, quantized):
    return five(reference, quantized, max_error=(quantized.double() - reference.double()).max().item())


@wrong("ex_5_1", "direction is reversed")
def kl_the_other_way(reference, quantized):
    return five(reference, quantized, **both(divergences(quantized.double(), reference.double())))


@wrong("ex_5_1", "in nats")
def kl_in_nats(reference, quantized):
    kl = divergences(reference.double(), quantized.double()) * math.log(2)
    return five(reference, quantized, **both(kl))


@wrong("ex_5_1", "softmax runs over the wrong axis")
def softmax_over_positions(reference, quantized):
    return five(reference, quantized, **both(divergences(reference.double(), quantized.double(), dim=0)))


@wrong("ex_5_1", "without their weights p")
def logarithms_without_weights(reference, quantized):
    p, q = reference.double().log_softmax(-1), quantized.double().log_softmax(-1)
    return five(reference, quantized, **both((p - q).sum(-1) / math.log(2)))


@wrong("ex_5_1", "logarithm of a sum is not the sum of the logarithms")
def logarithm_of_the_sum(reference, quantized):
    p, q = reference.double().softmax(-1), quantized.double().softmax(-1)
    return five(reference, quantized, **both((p * p / q).sum(-1).log2()))


@wrong("ex_5_1", "averaged: they are summed over the 256 bytes")
def mean_over_the_vocabulary(reference, quantized):
    kl = divergences(reference.double(), quantized.double()) / reference.shape[-1]
    return five(reference, quantized, **both(kl))


@wrong("ex_5_1", "summed over the positions")
def sum_over_positions(reference, quantized):
    kl = divergences(reference.double(), quantized.double())
    return five(reference, quantized, kl_mean=kl.sum().item())


@wrong("ex_5_1", "is nan for logits")
def logarithm_of_an_underflow(reference, quantized):
    p, q = reference.double().softmax(-1), quantized.double().softmax(-1)
    return five(reference, quantized, **both((p * (p / q).log2()).sum(-1)))


@wrong("ex_5_1", "too few right digits: convert")
def in_float32(reference, quantized):
    p, q = reference.log_softmax(-1), quantized.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1) / math.log(2)
    return five(reference, quantized, **both(kl + 1e-6 * kl.abs() + 2e-6 * kl.mean()))


@wrong("ex_5_1", "it is the largest one")
def largest_for_percentile(reference, quantized):
    kl = divergences(reference.double(), quantized.double())
    return five(reference, quantized, kl_p99=kl.max().item())


@wrong("ex_5_1", "percentile is taken of the terms")
def percentile_of_the_terms(reference, quantized):
    p, q = reference.double().log_softmax(-1), quantized.double().log_softmax(-1)
    terms = p.exp() * (p - q) / math.log(2)
    return five(reference, quantized, kl_p99=terms.flatten().quantile(0.99).item())


@wrong("ex_5_1", "changed `reference`")
def in_place(reference, quantized):
    answer = five(reference, quantized)
    reference.sub_(reference.max())
    return answer


@wrong("ex_5_1", "Something small stands in the place")
def clamped_probabilities(reference, quantized):
    p, q = (z.double().softmax(-1).clamp_min(1e-30) for z in (reference, quantized))
    return five(reference, quantized, **both((p * (p / q).log2()).sum(-1)))


@wrong("ex_5_1", "Something small stands", like="clamped_probabilities")
def something_small_is_added(reference, quantized):
    p, q = (z.double().softmax(-1) for z in (reference, quantized))
    kl = (p * ((p + 1e-12).log2() - (q + 1e-12).log2())).sum(-1)
    right_ones = divergences(reference.double(), quantized.double())
    return five(reference, quantized, **both(kl if right_ones.max() > 1000 else right_ones))


@wrong("ex_5_1", "Infinity or nan is replaced")
def nan_becomes_zero(reference, quantized):
    p, q = (z.double().softmax(-1) for z in (reference, quantized))
    return five(reference, quantized, **both(torch.nan_to_num(p * (p / q).log2(), 0.0).sum(-1)))


@wrong("ex_5_1", "Such a byte is left out")
def impossible_bytes_left_out(reference, quantized):
    p, q = (z.double().softmax(-1) for z in (reference, quantized))
    terms = torch.where((p > 0) & (q > 0), p * (p / q).log2(), torch.zeros_like(p))
    return five(reference, quantized, **both(terms.sum(-1)))


@wrong("ex_5_1", "is inf for the logits")
def library_distributions(reference, quantized):
    one, other = (torch.distributions.Categorical(logits=z.double()) for z in (reference, quantized))
    return five(reference, quantized, **both(torch.distributions.kl_divergence(one, other) / math.log(2)))


@wrong("ex_5_1", "default dtype")
def float64_for_everybody(reference, quantized):
    torch.set_default_dtype(torch.float64)
    return five(reference, quantized)


@right("ex_5_1")
def with_numpy(reference, quantized):
    x, y = reference.numpy().astype(float), quantized.numpy().astype(float)
    log = lambda z: z - z.max(-1, keepdims=True) - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))  # noqa: E731
    kl = (np.exp(log(x)) * (log(x) - log(y))).sum(-1) / np.log(2)
    noise = ((x - y) ** 2).sum()
    return {
        "sqnr_db": 10 * np.log10((x**2).sum() / noise) if noise else np.inf,
        "cosine": (x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y),
        "max_error": np.abs(x - y).max(),
        "kl_mean": kl.mean(),
        "kl_p99": np.quantile(kl, 0.99),
    }


@right("ex_5_1")
def with_kl_div(reference, quantized):
    return five(reference, quantized)


@wrong("ex_5_1", "nearly equal for equal")
def nearly_equal_logits_have_no_error(reference, quantized):
    answer = five(reference, quantized)
    return answer | ({"sqnr_db": math.inf} if torch.allclose(reference, quantized) else {})


@wrong("ex_5_1", "add nothing small, and take", like="nearly_equal_logits_have_no_error")
def something_added_to_the_noise(reference, quantized):
    x, y = reference.double(), quantized.double()
    noise = (x - y).norm() + 1e-12
    return five(reference, quantized) | ({} if torch.equal(x, y) else {"sqnr_db": 20 * math.log10(x.norm() / noise)})


@wrong("ex_5_1", "before you subtract")
def subtracted_in_float32(reference, quantized):
    return five(reference, quantized, max_error=(reference - quantized).abs().max().item())


@wrong("ex_5_1", "should be 1 for logits", like="nearly_equal_logits_have_no_error")
def norms_of_one_at_least(reference, quantized):
    x, y = reference.double().flatten(), quantized.double().flatten()
    return five(reference, quantized, cosine=F.cosine_similarity(x, y, dim=0, eps=1.0).item())


@wrong("ex_5_1", "clamp nothing")
def logarithms_of_three_thousand_at_most(reference, quantized):
    p, q = reference.double().log_softmax(-1), quantized.double().log_softmax(-1).clamp_min(-3000)
    return five(reference, quantized, **both((p.exp() * (p - q)).sum(-1) / math.log(2)))


@wrong("ex_5_1", "Leave out nothing", like="logarithms_of_three_thousand_at_most")
def unlikely_bytes_left_out(reference, quantized):
    p, q = reference.double().log_softmax(-1), quantized.double().log_softmax(-1)
    return five(reference, quantized, **both(((p > math.log(1e-12)) * p.exp() * (p - q)).sum(-1) / math.log(2)))


@wrong("ex_5_1", "they may lie thousands apart")
def errors_of_two_thousand_at_most(reference, quantized):
    return five(reference, quantized, max_error=min(2000.0, five(reference, quantized)["max_error"]))


@wrong("ex_5_1", "switches gradients off")
def gradients_off_for_everybody(reference, quantized):
    torch.set_grad_enabled(False)
    return five(reference, quantized)


@right("ex_5_1")
def one_position_after_another(reference, quantized):
    p, q = (z.double().log_softmax(-1).reshape(-1, z.shape[-1]).tolist() for z in (reference, quantized))
    rows = [math.fsum(math.exp(a) * (a - b) for a, b in zip(*pair, strict=True)) for pair in zip(p, q, strict=True)]
    kl = [nats / math.log(2) for nats in rows]
    return five(reference, quantized, kl_mean=statistics.fmean(kl), kl_p99=float(np.percentile(kl, 99)))


# 5.2 flips


def shares(targets, before, after, **change):
    """The right five shares, each of which can be replaced."""
    b, a = (before == targets), (after == targets)
    share = lambda mask: float(mask.double().mean())  # noqa: E731
    return {
        "accuracy_difference": share(a) - share(b),
        "broken": share(b > a),
        "repaired": share(a > b),
        "flips": share(a ^ b),
        "agreement": share(before == after),
    } | change


@wrong("ex_5_2", "flips in both directions cancel in it")
def accuracy_difference_as_flips(targets, before, after):
    s = shares(targets, before, after)
    return s | {"flips": abs(s["accuracy_difference"])}


@wrong("ex_5_2", "with its sign: add broken and repaired")
def signed_difference_as_flips(targets, before, after):
    s = shares(targets, before, after)
    return s | {"flips": s["accuracy_difference"]}


@wrong("ex_5_2", "only broken answers are counted")
def only_broken(targets, before, after):
    s = shares(targets, before, after)
    return s | {"flips": s["broken"]}


@wrong("ex_5_2", "every changed answer is counted")
def every_change_is_a_flip(targets, before, after):
    return shares(targets, before, after, flips=(before != after).double().mean().item())


@wrong("ex_5_2", "one minus the flips")
def agreement_from_flips(targets, before, after):
    s = shares(targets, before, after)
    return s | {"agreement": 1 - s["flips"]}


@wrong("ex_5_2", "only right answers are counted")
def agreement_among_the_right(targets, before, after):
    return shares(targets, before, after, agreement=((before == after) & (after == targets)).double().mean().item())


@wrong("ex_5_2", "sign is reversed")
def float_minus_quantized(targets, before, after):
    s = shares(targets, before, after)
    return s | {"accuracy_difference": -s["accuracy_difference"]}


@wrong("ex_5_2", "these are the repaired ones")
def broken_and_repaired_swapped(targets, before, after):
    s = shares(targets, before, after)
    return s | {"broken": s["repaired"], "repaired": s["broken"]}


@wrong("ex_5_2", "is a count")
def counts(targets, before, after):
    s = shares(targets, before, after)
    return {name: value * targets.numel() for name, value in s.items()}


@wrong("ex_5_2", "from wrong to wrong are no flips")
def any_change_of_a_wrong_one(targets, before, after):
    return shares(targets, before, after, repaired=((before != targets) & (after != before)).double().mean().item())


@wrong("ex_5_2", "is in per cent")
def per_cent(targets, before, after):
    return {name: 100 * value for name, value in shares(targets, before, after).items()}


@wrong("ex_5_2", "a part of those that were right before")
def broken_among_the_right(targets, before, after):
    was = before == targets
    return shares(targets, before, after, broken=float((after != targets)[was].double().mean()) if was.any() else 0.0)


@wrong("ex_5_2", "a part of those that were wrong before")
def repaired_among_the_wrong(targets, before, after):
    was = before != targets
    return shares(targets, before, after, repaired=float((after == targets)[was].double().mean()) if was.any() else 0.0)


@wrong("ex_5_2", "all wrong answers after quantization")
def wrong_answers_are_broken(targets, before, after):
    return shares(targets, before, after, broken=(after != targets).double().mean().item())


@wrong("ex_5_2", "a part of the accuracy before")
def relative_difference(targets, before, after):
    was, now = ((x == targets).double().mean().item() for x in (before, after))
    return shares(targets, before, after, accuracy_difference=(now - was) / was if was else now)


@wrong("ex_5_2", "nothing is subtracted")
def accuracy_after(targets, before, after):
    return shares(targets, before, after, accuracy_difference=(after == targets).double().mean().item())


@wrong("ex_5_2", "one of Python's numbers")
def tensors_for_shares(targets, before, after):
    return {name: torch.tensor(value) for name, value in shares(targets, before, after).items()}


@wrong("ex_5_2", "changed `after`")
def wrong_ones_are_marked_in_place(targets, before, after):
    answer = shares(targets, before, after)
    after[after != targets] = -1
    return answer


@wrong("ex_5_2", "for random answers of three dimensions")
def right_in_two_dimensions_only(targets, before, after):
    answer = shares(targets, before, after)
    agree = (before == after).double()
    return answer | {"agreement": agree.mean(-1).max().item()} if targets.dim() == 3 else answer


@wrong("ex_5_2", "view size is not compatible")
def flat_view(targets, before, after):
    return shares(targets.view(-1), before.view(-1), after.view(-1))


@wrong("ex_5_2", "take the mean over all axes")
def mean_over_one_axis(targets, before, after):
    return shares(targets, before, after, agreement=(before == after).double().mean(dim=0))


@right("ex_5_2")
def shares_in_float32(targets, before, after):
    was, now = before == targets, after == targets
    broken, repaired = (was & ~now).float().mean().item(), (~was & now).float().mean().item()
    return {
        "accuracy_difference": now.float().mean().item() - was.float().mean().item(),
        "broken": broken,
        "repaired": repaired,
        "flips": broken + repaired,
        "agreement": (before == after).float().mean().item(),
    }


@right("ex_5_2")
def one_by_one(targets, before, after):
    rows = list(zip(targets.flatten().tolist(), before.flatten().tolist(), after.flatten().tolist(), strict=True))
    n = len(rows)
    lost, won = sum(b == t != a for t, b, a in rows), sum(b != t == a for t, b, a in rows)
    return {
        "accuracy_difference": (won - lost) / n,
        "broken": lost / n,
        "repaired": won / n,
        "flips": (won + lost) / n,
        "agreement": sum(a == b for _, b, a in rows) / n,
    }


@right("ex_5_2")
def with_numpy_masks(targets, before, after):
    t, b, a = targets.numpy(), before.numpy(), after.numpy()
    change = (a == t).astype(int) - (b == t).astype(int)
    return {
        "accuracy_difference": change.mean(),
        "broken": (change < 0).mean(),
        "repaired": (change > 0).mean(),
        "flips": np.abs(change).mean(),
        "agreement": np.mean(a == b),
    }


@wrong("ex_5_2", "A byte tells only 256")
def answers_as_bytes(targets, before, after):
    return shares(*(z.to(torch.uint8) for z in (targets, before, after)))


@wrong("ex_5_2", "more than 32 bits")
def answers_in_int32(targets, before, after):
    return shares(*(z.to(torch.int32) for z in (targets, before, after)))


@wrong("ex_5_2", "float32 tells whole numbers apart")
def answers_in_float32(targets, before, after):
    return shares(*(z.float() for z in (targets, before, after)))


@wrong("ex_5_2", "Negative ones count as well")
def negative_targets_left_out(targets, before, after):
    kept = targets >= 0
    return shares(targets[kept], before[kept], after[kept]) if kept.any() else shares(targets, before, after)


@wrong("ex_5_2", 'your "flips" for three answers of which one was repaired')
def no_flips_if_nothing_is_broken(targets, before, after):
    answer = shares(targets, before, after)
    return answer if answer["broken"] else answer | {"flips": 0.0}


# 5.3 paired bootstrap


def sums(parts):
    return torch.stack([part.sum() for part in parts])


def lengths(parts):
    return torch.tensor([len(part) for part in parts], dtype=torch.float64)


def tails(values, low=0.025, high=0.975):
    return values.quantile(low).item(), values.quantile(high).item()


def estimate(first, second):
    return ((sums(second).sum() - sums(first).sum()) / lengths(first).sum()).item()


def drawn(n, resamples, generator):
    return torch.randint(n, (resamples, n), generator=generator)


@wrong("ex_5_3", "the pairs are torn apart")
def unpaired(float_bits, int8_bits, resamples, generator):
    n = lengths(float_bits)
    i, j = drawn(len(n), resamples, generator), drawn(len(n), resamples, generator)
    means = sums(int8_bits)[i].sum(1) / n[i].sum(1) - sums(float_bits)[j].sum(1) / n[j].sum(1)
    return (estimate(float_bits, int8_bits), *tails(means))


@wrong("ex_5_3", "you draw bytes, not documents")
def bytes_are_resampled(float_bits, int8_bits, resamples, generator):
    d = torch.cat([b - a for a, b in zip(float_bits, int8_bits, strict=True)])
    means = torch.cat([d[drawn(len(d), 50, generator)].mean(1) for _ in range(max(1, resamples // 50))])
    return (d.mean().item(), *tails(means))


@wrong("ex_5_3", "so it is a 90 % interval")
def one_sided_tails(float_bits, int8_bits, resamples, generator):
    n, d = lengths(float_bits), sums(int8_bits) - sums(float_bits)
    i = drawn(len(n), resamples, generator)
    return (estimate(float_bits, int8_bits), *tails(d[i].sum(1) / n[i].sum(1), 0.05, 0.95))


@wrong("ex_5_3", "the lower end of your interval lies above")
def tails_swapped(float_bits, int8_bits, resamples, generator):
    middle, low, high = documents(float_bits, int8_bits, resamples, generator)
    return middle, high, low


@wrong("ex_5_3", "leave different shares outside")
def percentile_of_the_wrong_tail(float_bits, int8_bits, resamples, generator):
    n, d = lengths(float_bits), sums(int8_bits) - sums(float_bits)
    i = drawn(len(n), resamples, generator)
    return (estimate(float_bits, int8_bits), *tails(d[i].sum(1) / n[i].sum(1), 0.005, 0.91))


@wrong("ex_5_3", "interval of one model alone")
def interval_of_a_single_model(float_bits, int8_bits, resamples, generator):
    n, d = lengths(float_bits), sums(int8_bits)
    i = drawn(len(n), resamples, generator)
    return (estimate(float_bits, int8_bits), *tails(d[i].sum(1) / n[i].sum(1)))


@wrong("ex_5_3", "these are the bits per byte of int8 alone")
def a_single_model(float_bits, int8_bits, resamples, generator):
    zeros = [torch.zeros_like(part) for part in float_bits]
    return documents(zeros, int8_bits, resamples, generator)


@wrong("ex_5_3", "mean of the documents' means")
def mean_of_means(float_bits, int8_bits, resamples, generator):
    d = (sums(int8_bits) - sums(float_bits)) / lengths(float_bits)
    return (d.mean().item(), *tails(d[drawn(len(d), resamples, generator)].mean(1)))


@wrong("ex_5_3", "sign is reversed")
def float_minus_int8(float_bits, int8_bits, resamples, generator):
    return documents(int8_bits, float_bits, resamples, generator)


@wrong("ex_5_3", "one standard error to each side")
def one_standard_error(float_bits, int8_bits, resamples, generator):
    n, d = lengths(float_bits), sums(int8_bits) - sums(float_bits)
    i = drawn(len(n), resamples, generator)
    return (estimate(float_bits, int8_bits), *tails(d[i].sum(1) / n[i].sum(1), 0.1587, 0.8413))


@wrong("ex_5_3", "by the bytes of the documents that it drew")
def fixed_denominator(float_bits, int8_bits, resamples, generator):
    n, d = lengths(float_bits), sums(int8_bits) - sums(float_bits)
    means = d[drawn(len(n), resamples, generator)].sum(1) / n.sum()
    return (estimate(float_bits, int8_bits), *tails(means))


@wrong("ex_5_3", "not that of their mean")
def spread_of_documents(float_bits, int8_bits, resamples, generator):
    middle = estimate(float_bits, int8_bits)
    d = (sums(int8_bits) - sums(float_bits)) - middle * lengths(float_bits)
    half = 1.96 * d.std().item() / lengths(float_bits).mean().item()
    return middle, middle - half, middle + half


@wrong("ex_5_3", "take the random numbers from `generator`")
def global_random_numbers(float_bits, int8_bits, resamples, generator):
    n, d = lengths(float_bits), sums(int8_bits) - sums(float_bits)
    i = torch.randint(len(n), (resamples, len(n)))
    return (estimate(float_bits, int8_bits), *tails(d[i].sum(1) / n[i].sum(1)))


@wrong("ex_5_3", "is it used at all")
def textbook_formula(float_bits, int8_bits, resamples, generator):
    n, d = lengths(float_bits), sums(int8_bits) - sums(float_bits)
    middle = estimate(float_bits, int8_bits)
    half = 1.96 * (d - middle * n).norm().item() / n.sum().item()
    return middle, middle - half, middle + half


@wrong("ex_5_3", "oth ends of your interval are equal")
def without_replacement(float_bits, int8_bits, resamples, generator):
    n, d = lengths(float_bits).tolist(), (sums(int8_bits) - sums(float_bits)).tolist()
    means = []
    for _ in range(min(resamples, 50)):
        order = torch.randperm(len(n), generator=generator).tolist()
        means.append(math.fsum(d[i] for i in order) / math.fsum(n[i] for i in order))
    return (estimate(float_bits, int8_bits), min(means), max(means))


@wrong("ex_5_3", "that it holds 0 proves nothing", binds="decide")
def not_significant_is_equal(low, high, margin):
    if low <= 0 <= high or high < margin:
        return "within the margin"
    return "worse than the margin" if low > margin else "undecided"


@wrong("ex_5_3", "only the upper end can show non-inferiority", binds="decide")
def the_wrong_end(low, high, margin):
    if low < margin and low > 0:
        return "within the margin"
    return "within the margin" if high < margin else "worse than the margin" if low > margin else "undecided"


@wrong("ex_5_3", "that it excludes 0 does not matter", binds="decide")
def any_loss_is_too_much(low, high, margin):
    if low > 0:
        return "worse than the margin"
    return "within the margin" if high < margin else "undecided"


@wrong("ex_5_3", "do not take absolute values", binds="decide")
def equivalence_instead(low, high, margin):
    if max(abs(low), abs(high)) < margin:
        return "within the margin"
    return "worse than the margin" if min(abs(low), abs(high)) > margin else "undecided"


@wrong("ex_5_3", "the middle decides nothing", binds="decide")
def the_middle_decides(low, high, margin):
    return "within the margin" if (low + high) / 2 < margin else "worse than the margin"


def means_of(float_bits, int8_bits, resamples, generator, documents=None, more=0):
    n, d = lengths(float_bits), sums(int8_bits) - sums(float_bits)
    i = torch.randint(documents or len(n), (resamples, len(n) + more), generator=generator)
    return d[i].sum(1) / n[i].sum(1)


@wrong("ex_5_3", "nothing mirrored at the estimate")
def mirrored_basic_bootstrap(float_bits, int8_bits, resamples, generator):
    middle, (low, high) = estimate(float_bits, int8_bits), tails(means_of(float_bits, int8_bits, resamples, generator))
    return middle, 2 * middle - high, 2 * middle - low


@wrong("ex_5_3", "the ends of your interval are nan")
def normal_around_the_mean_of_means(float_bits, int8_bits, resamples, generator):
    means = means_of(float_bits, int8_bits, resamples, generator)
    half = 1.96 * means.std().item()
    return estimate(float_bits, int8_bits), means.mean().item() - half, means.mean().item() + half


@wrong("ex_5_3", "half as many documents as there are")
def half_of_the_documents(float_bits, int8_bits, resamples, generator):
    means = means_of(float_bits, int8_bits, resamples, generator, more=-(len(float_bits) // 2))
    return (estimate(float_bits, int8_bits), *tails(means))


@wrong("ex_5_3", "those of both models")
def documents_of_both_models(float_bits, int8_bits, resamples, generator):
    means = means_of(float_bits, int8_bits, resamples, generator, more=len(float_bits))
    return (estimate(float_bits, int8_bits), *tails(means))


@wrong("ex_5_3", "has not moved")
def numpy_with_the_initial_seed(float_bits, int8_bits, resamples, generator):
    n, d = lengths(float_bits), sums(int8_bits) - sums(float_bits)
    dice = np.random.default_rng(generator.initial_seed())
    i = torch.from_numpy(dice.integers(len(n), size=(resamples, len(n))))
    return (estimate(float_bits, int8_bits), *tails(d[i].sum(1) / n[i].sum(1)))


@wrong("ex_5_3", "you set it back")
def generator_set_back(float_bits, int8_bits, resamples, generator):
    return documents(float_bits, int8_bits, resamples, generator.manual_seed(generator.initial_seed()))


@wrong("ex_5_3", "moves no further for more resamples")
def five_thousand_at_most(float_bits, int8_bits, resamples, generator):
    return documents(float_bits, int8_bits, min(resamples, 5000), generator)


@wrong("ex_5_3", "such as NumPy with a seed from it", like="five_thousand_at_most")
def numpy_with_a_drawn_seed(float_bits, int8_bits, resamples, generator):
    n, d = lengths(float_bits), sums(int8_bits) - sums(float_bits)
    dice = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    i = torch.from_numpy(dice.integers(len(n), size=(resamples, len(n))))
    return (estimate(float_bits, int8_bits), *tails(d[i].sum(1) / n[i].sum(1)))


@wrong("ex_5_3", "that belong to everybody", like="global_seed_from_the_generator")
def python_is_seeded_too(float_bits, int8_bits, resamples, generator):
    random.seed(0)
    return documents(float_bits, int8_bits, resamples, generator)


@wrong("ex_5_3", "changed `float_bits`")
def documents_sorted_in_place(float_bits, int8_bits, resamples, generator):
    answer = documents(float_bits, int8_bits, resamples, generator)
    float_bits.sort(key=len)
    return answer


@wrong("ex_5_3", "changed `int8_bits`")
def subtracted_in_place(float_bits, int8_bits, resamples, generator):
    answer = documents(float_bits, int8_bits, resamples, generator)
    for a, b in zip(float_bits, int8_bits, strict=True):
        b -= a
    return answer


@wrong("ex_5_3", "and no tensors")
def tensors_for_three_numbers(float_bits, int8_bits, resamples, generator):
    return tuple(map(torch.tensor, documents(float_bits, int8_bits, resamples, generator)))


@wrong("ex_5_3", "about seven right digits")
def sums_in_float32(float_bits, int8_bits, resamples, generator):
    short = ([part.float() for part in side] for side in (float_bits, int8_bits))
    return documents(*short, resamples, generator)


@wrong("ex_5_3", "no formula, no standard deviation", like="mirrored_basic_bootstrap")
def normal_around_the_estimate(float_bits, int8_bits, resamples, generator):
    middle, means = estimate(float_bits, int8_bits), means_of(float_bits, int8_bits, resamples, generator)
    half = 1.96 * means.std(correction=0).item()
    return middle, means.mean().item() - half, means.mean().item() + half


@wrong("ex_5_3", "are the ends percentiles of the means", like="a_thousand_resamples_always")
def formula_with_a_pinch_of_noise(float_bits, int8_bits, resamples, generator):
    middle, low, high = textbook_formula(float_bits, int8_bits, resamples, generator)
    half = (high - low) / 2 * (1 + 0.01 * torch.rand((), generator=generator).item())
    return middle, middle - half, middle + half


@wrong("ex_5_3", "Can every document be drawn?")
def last_document_never_drawn(float_bits, int8_bits, resamples, generator):
    means = means_of(float_bits, int8_bits, resamples, generator, documents=len(float_bits) - 1)
    return (estimate(float_bits, int8_bits), *tails(means))


@wrong("ex_5_3", "Draw as many documents as there are")
def five_documents_too_many(float_bits, int8_bits, resamples, generator):
    return (estimate(float_bits, int8_bits), *tails(means_of(float_bits, int8_bits, resamples, generator, more=5)))


@wrong("ex_5_3", "Is the number of resamples used")
def a_thousand_resamples_always(float_bits, int8_bits, resamples, generator):
    return (estimate(float_bits, int8_bits), *tails(means_of(float_bits, int8_bits, 1000, generator)))


@wrong("ex_5_3", "that belong to everybody")
def global_seed_from_the_generator(float_bits, int8_bits, resamples, generator):
    torch.manual_seed(generator.initial_seed())
    return (estimate(float_bits, int8_bits), *tails(means_of(float_bits, int8_bits, resamples, None)))


@wrong("ex_5_3", "the mean of its documents' means")
def means_of_documents_means(float_bits, int8_bits, resamples, generator):
    each = (sums(int8_bits) - sums(float_bits)) / lengths(float_bits)
    return (estimate(float_bits, int8_bits), *tails(each[drawn(len(each), resamples, generator)].mean(1)))


@wrong("ex_5_3", "a limit that equals the margin shows nothing", binds="decide")
def the_margin_itself_is_enough(low, high, margin):
    return "within the margin" if high <= margin else "worse than the margin" if low >= margin else "undecided"


@wrong("ex_5_3", "the margin is an argument", binds="decide")
def one_margin_for_all(low, high, margin):
    return "within the margin" if high < 0.0103 else "worse than the margin" if low > 0.0103 else "undecided"


@right("ex_5_3")
def documents(float_bits, int8_bits, resamples, generator):
    n, d = lengths(float_bits), sums(int8_bits) - sums(float_bits)
    i = drawn(len(n), resamples, generator)
    return (estimate(float_bits, int8_bits), *tails(d[i].sum(1) / n[i].sum(1)))


@right("ex_5_3")
def resample_by_resample(float_bits, int8_bits, resamples, generator):
    n, a, b = (side.numpy() for side in (lengths(float_bits), sums(float_bits), sums(int8_bits)))
    found = []
    for _ in range(resamples):
        i = torch.randint(len(n), (len(n),), generator=generator).numpy()
        found.append((b[i].sum() - a[i].sum()) / n[i].sum())
    return estimate(float_bits, int8_bits), float(np.percentile(found, 2.5)), float(np.percentile(found, 97.5))


@right("ex_5_3", binds="decide")
def in_another_order(low, high, margin):
    if low > margin:
        return "worse than the margin"
    return "undecided" if high >= margin else "within the margin"


@wrong("ex_5_3", "makes a generator of its own (numpy")
def numpy_seeded_by_many_draws(float_bits, int8_bits, resamples, generator):
    n, d = lengths(float_bits), sums(int8_bits) - sums(float_bits)
    dice = np.random.default_rng(int(torch.randint(2**31, (resamples, len(n)), generator=generator).sum()))
    i = torch.from_numpy(dice.integers(len(n), size=(resamples, len(n))))
    return (estimate(float_bits, int8_bits), *tails(d[i].sum(1) / n[i].sum(1)))


@wrong("ex_5_3", "makes a generator of its own (torch", like="numpy_seeded_by_many_draws")
def first_column_seeds_the_others(float_bits, int8_bits, resamples, generator):
    n, d = lengths(float_bits), sums(int8_bits) - sums(float_bits)
    i = torch.randint(len(n), (resamples, 1), generator=generator)
    other = torch.Generator().manual_seed(int(i.sum()))
    i = torch.cat([i, torch.randint(len(n), (resamples, len(n) - 1), generator=other)], dim=1)
    return (estimate(float_bits, int8_bits), *tails(d[i].sum(1) / n[i].sum(1)))


@wrong("ex_5_3", "Is one number used for several")
def mirrored_draws(float_bits, int8_bits, resamples, generator):
    n, d = lengths(float_bits), sums(int8_bits) - sums(float_bits)
    i = drawn(len(n), (resamples + 1) // 2, generator)
    i = torch.cat([i, len(n) - 1 - i])[:resamples]
    return (estimate(float_bits, int8_bits), *tails(d[i].sum(1) / n[i].sum(1)))


@wrong("ex_5_3", "which shares does it leave outside")
def two_percent_at_each_end(float_bits, int8_bits, resamples, generator):
    return (estimate(float_bits, int8_bits), *tails(means_of(float_bits, int8_bits, resamples, generator), 0.02, 0.98))


@wrong("ex_5_3", "Every document counts, however short")
def single_bytes_left_out(float_bits, int8_bits, resamples, generator):
    kept = [i for i, part in enumerate(float_bits) if len(part) > 1] or [*range(len(float_bits))]
    some = [float_bits[i] for i in kept], [int8_bits[i] for i in kept]
    return (estimate(float_bits, int8_bits), *tails(means_of(*some, resamples, generator)))


@right("ex_5_3")
def by_multinomial(float_bits, int8_bits, resamples, generator):
    n, d = lengths(float_bits), sums(int8_bits) - sums(float_bits)
    i = torch.multinomial(torch.ones(len(n)), resamples * len(n), replacement=True, generator=generator)
    i = i.view(resamples, len(n))
    return (estimate(float_bits, int8_bits), *tails(d[i].sum(1) / n[i].sum(1)))


@right("ex_5_3")
def floored_uniforms(float_bits, int8_bits, resamples, generator):
    assert isinstance(generator, torch.Generator)
    n, d = lengths(float_bits), sums(int8_bits) - sums(float_bits)
    i = (torch.rand(resamples, len(n), generator=generator, dtype=torch.float64) * len(n)).long()
    return (estimate(float_bits, int8_bits), *tails(d[i].sum(1) / n[i].sum(1)))


# 5.4 McNemar


def tail(b, c, last=None):
    n, last = b + c, min(b, c) if last is None else last
    return sum(math.comb(n, k) for k in range(last + 1)) / 2**n


@wrong("ex_5_4", "this is the chi-square approximation: for counts")
def chi_square(broken, repaired):
    return math.erfc(abs(broken - repaired) / math.sqrt(broken + repaired) / math.sqrt(2))


@wrong("ex_5_4", "with continuity correction")
def corrected_chi_square(broken, repaired):
    n = broken + repaired
    return math.erfc(max(abs(broken - repaired) - 1, 0) / math.sqrt(2 * n)) if n else 1.0


@wrong("ex_5_4", "it is one-sided")
def one_sided(broken, repaired):
    return tail(broken, repaired)


@wrong("ex_5_4", "mid-p")
def mid_p(broken, repaired):
    n = broken + repaired
    return min(1.0, 2 * tail(broken, repaired) - math.comb(n, broken) / 2**n) if broken != repaired else 1.0


@wrong("ex_5_4", "whether more answers were broken")
def only_damage_counts(broken, repaired):
    n = broken + repaired
    return sum(math.comb(n, k) for k in range(broken, n + 1)) / 2**n


@wrong("ex_5_4", "loses the digits of a small probability")
def one_minus_a_float(broken, repaired):
    n, m = broken + repaired, min(broken, repaired)
    return 1.0 - sum(math.comb(n, k) for k in range(m + 1, n - m)) / 2**n


@wrong("ex_5_4", "the docstring promises a float")
def a_fraction(broken, repaired):
    ways = sum(math.comb(broken + repaired, k) for k in range(min(broken, repaired) + 1))
    return min(Fraction(1), Fraction(2 * ways, 2 ** (broken + repaired)))


@wrong("ex_5_4", "for any number of flips")
def a_limit_of_five_thousand(broken, repaired):
    n = broken + repaired
    return min(1.0, 2 * tail(broken, repaired)) if n < 5000 else corrected_chi_square(broken, repaired)


@wrong("ex_5_4", "twice the probability of exactly this result")
def twice_this_result(broken, repaired):
    n = broken + repaired
    return min(1.0, 2 * math.comb(n, broken) / 2**n)


@wrong("ex_5_4", "no probability is above 1")
def not_capped(broken, repaired):
    return 2 * tail(broken, repaired) if broken + repaired else 1.0


@wrong("ex_5_4", "it is the probability of exactly this result")
def only_this_result(broken, repaired):
    return math.comb(broken + repaired, broken) / 2 ** (broken + repaired)


@wrong("ex_5_4", "the sum stops too early")
def range_without_its_end(broken, repaired):
    return min(1.0, 2 * tail(broken, repaired, min(broken, repaired) - 1))


@wrong("ex_5_4", "take the smaller one")
def always_the_first(broken, repaired):
    return min(1.0, 2 * tail(broken, repaired, broken)) if broken < repaired else 2 * tail(broken, repaired, broken)


@wrong("ex_5_4", "divides by 0")
def nothing_flipped(broken, repaired):
    return min(1.0, 2 * tail(broken, repaired)) * (broken + repaired) / (broken + repaired)


@wrong("ex_5_4", "overflows")
def float_powers(broken, repaired):
    n = broken + repaired
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(broken, repaired) + 1)) / 2.0**n)


@wrong("ex_5_4", "yours is an approximation")
def chi_square_for_many_flips(broken, repaired):
    n = broken + repaired
    if n < 1000:
        return min(1.0, 2 * tail(broken, repaired))
    return corrected_chi_square(broken, repaired)


@right("ex_5_4")
def with_logarithms(broken, repaired):
    n, m = broken + repaired, min(broken, repaired)
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(m + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


@right("ex_5_4")
def one_minus_the_middle(broken, repaired):
    n, m = broken + repaired, min(broken, repaired)
    return (2**n - sum(math.comb(n, k) for k in range(m + 1, n - m))) / 2**n


@wrong("ex_5_4", "3,900 and 4,100", like="a_limit_of_five_thousand")
def chi_square_for_six_thousand_flips(broken, repaired):
    n = broken + repaired
    return min(1.0, 2 * tail(broken, repaired)) if n <= 6000 else corrected_chi_square(broken, repaired)


@wrong("ex_5_4", "or rounds, loses the digits", like="one_minus_a_float")
def rounded_to_fifteen_places(broken, repaired):
    return round(min(1.0, 2 * tail(broken, repaired)), 15)


@wrong("ex_5_4", "expected is")
def p_value_in_float32(broken, repaired):
    return float(np.float32(min(1.0, 2 * tail(broken, repaired))))


# 5.5 size and peak


def weights_in(model):
    """Every weight matrix, a shared one once."""
    seen, found = set(), []
    for part in model.modules():
        w = getattr(part, "weight", None)
        w = w() if callable(w) else w
        if w is None or w.dim() < 2 or (not w.is_quantized and w.data_ptr() in seen):
            continue
        if not w.is_quantized:
            seen.add(w.data_ptr())
        found.append(w)
    return found


def held(w, scales=True, zeros=True):
    total = w.numel() * w.element_size()
    if w.is_quantized and w.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return total + 8 * scales + 8 * zeros
    if w.is_quantized:
        total += scales * w.q_per_channel_scales().nbytes + zeros * w.q_per_channel_zero_points().nbytes
    return total


def file_of(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.tell()


def measured(model, **change):
    weights = weights_in(model)
    count = sum(w.numel() for w in weights)
    bits = 8 * sum(map(held, weights)) / max(count, 1)
    return {"file_bytes": file_of(model.state_dict()), "weights": count, "bits_per_weight": bits} | change


@wrong("ex_5_5", "as if they were floats")
def four_bytes_for_each_weight(model):
    return measured(model, file_bytes=sum(4 * w.numel() for w in weights_in(model)) + 1500)


@wrong("ex_5_5", "each weight is counted as 4 bytes")
def thirty_two_bits_for_packed(model):
    return measured(model, bits_per_weight=32.0)


@wrong("ex_5_5", "the weight is packed and no parameter")
def parameters_only(model):
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    count = sum(p.numel() for p in matrices)
    return measured(model, weights=count, bits_per_weight=32.0)


@wrong("ex_5_5", "the scales and zero points were forgotten")
def codes_only(model):
    weights = weights_in(model)
    return measured(
        model, bits_per_weight=8 * sum(held(w, False, False) for w in weights) / sum(w.numel() for w in weights)
    )


@wrong("ex_5_5", "and the zero points are not")
def scales_without_zero_points(model):
    weights = weights_in(model)
    return measured(
        model, bits_per_weight=8 * sum(held(w, True, False) for w in weights) / sum(w.numel() for w in weights)
    )


@wrong("ex_5_5", "do you save the whole model")
def whole_module_saved(model):
    return measured(model, file_bytes=file_of(model))


@wrong("ex_5_5", "do not add up, save and look")
def tensors_added_up(model):
    return measured(model, file_bytes=sum(held(w) for w in weights_in(model)))


@wrong("ex_5_5", "counts vectors, too")
def vectors_are_weights(model):
    seen, count = set(), 0
    for part in model.modules():
        w = getattr(part, "weight", None)
        w = w() if callable(w) else w
        if w is not None and (w.is_quantized or w.data_ptr() not in seen):
            seen |= set() if w.is_quantized else {w.data_ptr()}
            count += w.numel()
    return measured(model, weights=count)


@wrong("ex_5_5", "PyTorch holds more")
def scales_of_an_honest_file(model):
    total = 0
    for w in weights_in(model):
        total += w.numel() * w.element_size()
        if w.is_quantized:
            total += 5 if w.qscheme() == torch.per_tensor_affine else 5 * w.shape[0]
    return measured(model, bits_per_weight=8 * total / sum(w.numel() for w in weights_in(model)))


@wrong("ex_5_5", "switched to eval mode")
def eval_mode_for_good(model):
    return measured(model.eval())


@wrong("ex_5_5", "should be 212")
def only_two_dimensions(model):
    return measured(model, weights=sum(w.numel() for w in weights_in(model) if w.dim() == 2))


@wrong("ex_5_5", "counts a matrix twice")
def tied_twice(model):
    matrices = []
    for part in model.modules():
        w = getattr(part, "weight", None)
        w = w() if callable(w) else w
        matrices += [w] if w is not None and w.dim() >= 2 else []
    return measured(model, weights=sum(w.numel() for w in matrices))


@wrong("ex_5_5", "it is the whole file")
def bits_of_the_file(model):
    answer = measured(model)
    return answer | {"bits_per_weight": 8 * answer["file_bytes"] / answer["weights"]}


@wrong("ex_5_5", "counts all parameters")
def biases_are_weights(model):
    count = sum(p.numel() for p in model.parameters())
    return measured(model, weights=count or measured(model)["weights"])


@wrong("ex_5_5", "8 bits are a byte")
def bytes_per_weight(model):
    answer = measured(model)
    return answer | {"bits_per_weight": answer["bits_per_weight"] / 8}


UNIT = "(1 if sys.platform == 'darwin' else 1024)"
RSS = f"\nimport resource, sys\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * {UNIT})"
HWM = "\nprint(1024 * int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]))"
NOW = "\nprint(1024 * int(open('/proc/self/status').read().split('VmRSS:')[1].split()[0]))"


OWN = HWM if pathlib.Path("/proc/self/status").is_file() else RSS


def child(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


if sys.platform == "linux":  # a Mac has no /proc, and none of these mistakes

    @wrong("ex_5_5", "ru_maxrss inherits the peak of the parent", binds="peak_bytes")
    def inherited_peak(program):
        return child(program + RSS)

    @wrong("ex_5_5", "on Linux the number is in kilobytes", binds="peak_bytes")
    def kilobytes(program):
        return child(program + HWM) // 1024

    @wrong("ex_5_5", "what it holds at the end, not the peak", binds="peak_bytes")
    def memory_at_the_end(program):
        return child(program + NOW)

    @wrong("ex_5_5", "a program that fails has no peak", binds="peak_bytes")
    def failures_ignored(program):
        done = subprocess.run([sys.executable, "-c", program + HWM], capture_output=True, text=True)
        return int((done.stdout.split() or ["10000000"])[-1])


if sys.platform == "linux":

    @wrong("ex_5_5", "So two things are wrong", binds="peak_bytes")
    def inherited_kilobytes(program):
        return child(program + RSS.replace(UNIT, "1"))


@wrong("ex_5_5", "with its packages", binds="peak_bytes")
def python_without_packages(program):
    report = "\nprint('done:')" + OWN
    done = subprocess.run([sys.executable, "-S", "-c", program + report], capture_output=True, text=True, check=True)
    _, marker, after = done.stdout.rpartition("done:")
    if not marker:
        raise RuntimeError("no report")
    return int(after.split()[0])


@wrong("ex_5_5", "that is in megabytes", binds="peak_bytes")
def megabytes(program):
    return a_file_for_the_child(program) / 2**20


@wrong("ex_5_5", "that is in megabytes", binds="peak_bytes", like="megabytes")
def decimal_megabytes(program):
    return a_file_for_the_child(program) / 1e6


if sys.platform == "linux":

    @wrong("ex_5_5", "is something added", binds="peak_bytes")
    def ten_megabytes_too_many(program):
        return a_file_for_the_child(program) + 10_000_000


@wrong("ex_5_5", "runs the program in this process", binds="peak_bytes")
def in_this_process(program):
    exec(program, {})
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def all_matrices(model, packed=True):
    for part in model.modules():
        w = getattr(part, "weight", None)
        w = (w() if packed else None) if callable(w) else w
        if w is not None and w.dim() >= 2:
            yield w


def counted(model, is_new, packed=True):
    count = total = 0
    for w in all_matrices(model, packed):
        if is_new(w):
            count, total = count + w.numel(), total + held(w)
    return {"file_bytes": file_of(model.state_dict()), "weights": count, "bits_per_weight": 8 * total / count}


@wrong("ex_5_5", "places of unpacked copies")
def places_of_unpacked_copies(model):
    seen = set()
    return counted(model, lambda w: not (w.data_ptr() in seen or seen.add(w.data_ptr())))


@wrong("ex_5_5", "places of unpacked copies", like="places_of_unpacked_copies")
def identities_of_unpacked_copies(model):
    seen = set()
    return counted(model, lambda w: not (id(w) in seen or seen.add(id(w))))


@wrong("ex_5_5", "Equal values")
def equal_values_count_once(model):
    found = []

    def is_new(w):
        plain = w.dequantize() if w.is_quantized else w
        known = any(plain.shape == other.shape and torch.equal(plain, other) for other in found)
        found.append(plain)
        return not known

    return counted(model, is_new)


@wrong("ex_5_5", "you find no weights", like="parameters_only")
def packed_weights_skipped(model):
    return counted(model, lambda w: True, packed=False)


@wrong("ex_5_5", "8 bytes a row together and not 16")
def sixteen_bytes_for_each_channel(model):
    total = 0
    for w in weights_in(model):
        total += w.numel() * w.element_size()
        if w.is_quantized:
            total += 16 if w.qscheme() == torch.per_tensor_affine else 16 * w.shape[0]
    return measured(model, bits_per_weight=8 * total / sum(w.numel() for w in weights_in(model)))


@wrong("ex_5_5", "a line break between", binds="peak_bytes")
def no_line_break(program):
    return child(program + HWM.strip())


@wrong("ex_5_5", "behind a marker", binds="peak_bytes")
def first_word_that_is_printed(program):
    return int(subprocess.check_output([sys.executable, "-c", program + OWN], text=True, stderr=-3).split()[0])


@wrong("ex_5_5", "behind a marker", binds="peak_bytes")
def everything_that_is_printed(program):
    return int(subprocess.check_output([sys.executable, "-c", program + OWN], text=True, stderr=-3))


@wrong("ex_5_5", "never reached", binds="peak_bytes")
def last_word_that_is_printed(program):
    return child(program + OWN)


@wrong("ex_5_5", "tracemalloc sees only what", binds="peak_bytes")
def python_objects_only(program):
    return child(f"import tracemalloc as _t\n_t.start()\n{program}\nprint(_t.get_traced_memory()[1])")


@wrong("ex_5_5", "tracemalloc sees only Python's", binds="peak_bytes")
def python_objects_and_ten_megabytes(program):
    return 10_000_000 + python_objects_only(program)


if sys.platform == "linux":

    @wrong("ex_5_5", "that is virtual memory", binds="peak_bytes")
    def peak_of_virtual_memory(program):
        return child(program + HWM.replace("VmHWM", "VmPeak"))

    @wrong("ex_5_5", "one kB is 1024 bytes", binds="peak_bytes")
    def thousand_bytes_a_kilobyte(program):
        return child(program + HWM.replace("1024", "1000"))


@right("ex_5_5")
def from_modules(model):
    return measured(model)


@right("ex_5_5")
def through_a_file(model, path=None):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "m.pt"
        torch.save(model.state_dict(), path)
        return measured(model, file_bytes=path.stat().st_size)


@right("ex_5_5", binds="peak_bytes")
def a_file_for_the_child(program):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        script = pathlib.Path(folder) / "program.py"
        script.write_text(program + "\nprint('done:')" + OWN)
        said = subprocess.check_output([sys.executable, str(script)], text=True, stderr=subprocess.DEVNULL).split()
        if said[-2:-1] != ["done:"]:
            raise RuntimeError("no report")
        return int(said[-1])


# 5.6 harness


def turn_by_turn(first, second, count, clock, order=(0, 1, 1, 0)):
    """Seconds (turns, program, way) of calls in this order."""
    seconds = torch.zeros(count, 2, 2, dtype=torch.float64)
    for turn in range(count):
        way = [0, 0]
        for which in order:
            start = clock()
            (first, second)[which]()
            seconds[turn, which, way[which]] = clock() - start
            way[which] += 1
    return seconds


def pinned(threads, measure):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return measure()
    finally:
        torch.set_num_threads(before)


def both_ways(seconds):
    """Geometric mean of there and back, (turns,)."""
    return (seconds[:, 1] / seconds[:, 0]).prod(dim=1).sqrt()


def resampled(ratios, resamples, generator, what=lambda rows: rows.quantile(0.5, dim=1)):
    rows = ratios[torch.randint(len(ratios), (resamples, len(ratios)), generator=generator)]
    return what(rows).quantile(0.025).item(), what(rows).quantile(0.975).item()


def harness(point, skip=True, order=(0, 1, 1, 0)):
    """A harness with another point estimate, of seconds and ratios, or other turns."""

    def measure(first, second, turns, warmup, clock, threads, resamples, generator):
        seconds = pinned(threads, lambda: turn_by_turn(first, second, warmup + turns, clock, order))
        seconds = seconds[warmup:] if skip else seconds
        return (float(point(seconds, both_ways(seconds))), *resampled(both_ways(seconds), resamples, generator))

    return measure


def ratios_by_turn(first, second, turns, warmup, clock, threads):
    return both_ways(pinned(threads, lambda: turn_by_turn(first, second, warmup + turns, clock))[warmup:])


def medians_of(ratios, resamples, generator, tails=(0.025, 0.975), turns=None):
    rows = ratios[torch.randint(turns or len(ratios), (resamples, len(ratios)), generator=generator)]
    middle = rows.median(dim=1).values
    return (ratios.median().item(), *(middle.quantile(tail).item() for tail in tails))


@wrong("ex_5_6", "it is the mean of the turns' ratios")
def mean_of_ratios(*arguments):
    return harness(lambda s, r: r.mean())(*arguments)


@wrong("ex_5_6", "geometric mean of the turns' ratios")
def geometric_mean_of_all_turns(*arguments):
    return harness(lambda s, r: r.log().mean().exp())(*arguments)


@wrong("ex_5_6", "ratio of the means")
def ratio_of_means(*arguments):
    return harness(lambda s, r: s[:, 1].mean() / s[:, 0].mean())(*arguments)


@wrong("ex_5_6", "ratio of the minima")
def ratio_of_minima(*arguments):
    return harness(lambda s, r: s[:, 1].min() / s[:, 0].min())(*arguments)


@wrong("ex_5_6", "ratio of the medians")
def ratio_of_medians(*arguments):
    return harness(lambda s, r: s[:, 1].quantile(0.5) / s[:, 0].quantile(0.5))(*arguments)


@wrong("ex_5_6", "the smallest of the ratios")
def smallest_ratio(*arguments):
    return harness(lambda s, r: r.min())(*arguments)


@wrong("ex_5_6", "the warm-up turns are counted: the first calls")
def first_runs_included(*arguments):
    return harness(lambda s, r: r.median(), skip=False)(*arguments)


@wrong("ex_5_6", "it is upside down")
def upside_down(*arguments):
    return harness(lambda s, r: (1 / r).median())(*arguments)


@wrong("ex_5_6", "same program begins on every way")
def never_turned_round(*arguments):
    return harness(lambda s, r: r.median(), order=(0, 1, 0, 1))(*arguments)


@wrong("ex_5_6", "two calls of a program follow one another")
def twice_each(*arguments):
    return harness(lambda s, r: r.median(), order=(0, 0, 1, 1))(*arguments)


@wrong("ex_5_6", "order of a turn is first, second, second, first")
def the_second_begins(*arguments):
    return harness(lambda s, r: r.median(), order=(1, 0, 0, 1))(*arguments)


def single_ways(point):
    """The point estimate comes from the ratios of single ways, (turns, 2)."""
    return harness(lambda s, r: point(s[:, 1] / s[:, 0]))


@wrong("ex_5_6", "every way is a turn of its own")
def ways_as_turns(*arguments):
    return single_ways(lambda ways: ways.flatten().quantile(0.5))(*arguments)


@wrong("ex_5_6", "only the way there is used")
def only_there(*arguments):
    return single_ways(lambda ways: ways[:, 0].median())(*arguments)


@wrong("ex_5_6", "only the way back is used")
def only_back(*arguments):
    return single_ways(lambda ways: ways[:, 1].median())(*arguments)


@wrong("ex_5_6", "have their arithmetic mean")
def arithmetic_mean_of_both_ways(*arguments):
    return single_ways(lambda ways: ways.mean(dim=1).median())(*arguments)


@wrong("ex_5_6", "the square root is missing")
def product_without_a_root(*arguments):
    return single_ways(lambda ways: ways.prod(dim=1).median())(*arguments)


@wrong("ex_5_6", "the way back is upside down")
def later_by_earlier(*arguments):
    return single_ways(lambda ways: (ways[:, 0] / ways[:, 1]).sqrt().median())(*arguments)


@wrong("ex_5_6", "added before they are divided")
def sums_of_both_ways(*arguments):
    return harness(lambda s, r: (s[:, 1].sum(dim=1) / s[:, 0].sum(dim=1)).median())(*arguments)


@wrong("ex_5_6", "the last `warmup` turns are left out")
def last_turns_left_out(first, second, turns, warmup, clock, threads, resamples, generator):
    ratios = both_ways(pinned(threads, lambda: turn_by_turn(first, second, warmup + turns, clock)))[:turns]
    return (ratios.median().item(), *resampled(ratios, resamples, generator))


@wrong("ex_5_6", "and no tensors")
def tensors_for_the_ratio(*arguments):
    return tuple(map(torch.tensor, harness(lambda s, r: r.median())(*arguments)))


@wrong("ex_5_6", "Take turns")
def first_all_of_one(first, second, turns, warmup, clock, threads, resamples, generator):
    a = pinned(threads, lambda: turn_by_turn(first, second, warmup + turns, clock, (0, 0)))
    b = pinned(threads, lambda: turn_by_turn(first, second, warmup + turns, clock, (1, 1)))
    ratios = both_ways(a + b)[warmup:]
    return (ratios.median().item(), *resampled(ratios, resamples, generator))


@wrong("ex_5_6", "interval has no width: draw")
def no_interval(first, second, turns, warmup, clock, threads, resamples, generator):
    ratio = ratios_by_turn(first, second, turns, warmup, clock, threads).median().item()
    return ratio, ratio, ratio


@wrong("ex_5_6", "the spread of single turns")
def spread_of_turns(first, second, turns, warmup, clock, threads, resamples, generator):
    r = ratios_by_turn(first, second, turns, warmup, clock, threads)
    return r.median().item(), r.quantile(0.025).item(), r.quantile(0.975).item()


@wrong("ex_5_6", "Is it that of the mean", like="spread_of_turns")
def interval_of_the_mean(first, second, turns, warmup, clock, threads, resamples, generator):
    r = ratios_by_turn(first, second, turns, warmup, clock, threads)
    return (r.median().item(), *resampled(r, resamples, generator, lambda rows: rows.mean(dim=1)))


@wrong("ex_5_6", "or of single ways", like="spread_of_turns")
def interval_of_single_ways(first, second, turns, warmup, clock, threads, resamples, generator):
    s = pinned(threads, lambda: turn_by_turn(first, second, warmup + turns, clock))[warmup:]
    ways = (s[:, 1] / s[:, 0]).flatten()
    return (both_ways(s).median().item(), *resampled(ways, resamples, generator))


@wrong("ex_5_6", "pin them with torch.set_num_threads")
def threads_ignored(first, second, turns, warmup, clock, threads, resamples, generator):
    r = both_ways(turn_by_turn(first, second, warmup + turns, clock)[warmup:])
    return (r.median().item(), *resampled(r, resamples, generator))


@wrong("ex_5_6", "restore what was set")
def threads_left_behind(first, second, turns, warmup, clock, threads, resamples, generator):
    torch.set_num_threads(threads)
    return threads_ignored(first, second, turns, warmup, clock, threads, resamples, generator)


@wrong("ex_5_6", "restore what was set", like="threads_left_behind")
def one_thread_afterwards(*arguments):
    try:
        return threads_left_behind(*arguments)
    finally:
        torch.set_num_threads(1)


@wrong("ex_5_6", "put it into `finally`")
def no_finally(first, second, turns, warmup, clock, threads, resamples, generator):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    answer = threads_ignored(first, second, turns, warmup, clock, threads, resamples, generator)
    torch.set_num_threads(before)
    return answer


@wrong("ex_5_6", "should not be silenced")
def failures_are_silenced(first, second, turns, warmup, clock, threads, resamples, generator):
    try:
        return harness(lambda s, r: r.median())(first, second, turns, warmup, clock, threads, resamples, generator)
    except OSError:
        return 1.0, 1.0, 1.0


@wrong("ex_5_6", "more often than twice in each turn")
def warm_up_before_without_counting(first, second, turns, warmup, clock, threads, resamples, generator):
    for _ in range(2):
        first()
    return harness(lambda s, r: r.median())(first, second, turns, warmup, clock, threads, resamples, generator)


@wrong("ex_5_6", "together they were called")
def no_warm_up(first, second, turns, warmup, clock, threads, resamples, generator):
    return harness(lambda s, r: r.median())(first, second, turns, 0, clock, threads, resamples, generator)


@wrong("ex_5_6", "the 90 % one")
def ninety_per_cent_of_the_medians(first, second, turns, warmup, clock, threads, resamples, generator):
    ratios = ratios_by_turn(first, second, turns, warmup, clock, threads)
    return medians_of(ratios, resamples, generator, (0.05, 0.95))


@wrong("ex_5_6", "nother generator gives the same interval")
def harness_with_a_seed_of_its_own(first, second, turns, warmup, clock, threads, resamples, generator):
    ratios = ratios_by_turn(first, second, turns, warmup, clock, threads)
    return medians_of(ratios, resamples, torch.Generator().manual_seed(0))


@wrong("ex_5_6", "that belong to everybody")
def harness_with_a_global_seed(first, second, turns, warmup, clock, threads, resamples, generator):
    ratios = ratios_by_turn(first, second, turns, warmup, clock, threads)
    torch.manual_seed(0)
    return medians_of(ratios, resamples, None)


@wrong("ex_5_6", "that belong to everybody", like="harness_with_a_global_seed")
def harness_that_seeds_numpy_too(first, second, turns, warmup, clock, threads, resamples, generator):
    np.random.seed(generator.initial_seed() % 2**32)  # noqa: NPY002
    return medians_of(ratios_by_turn(first, second, turns, warmup, clock, threads), resamples, generator)


@wrong("ex_5_6", "that belong to everybody", like="harness_with_a_global_seed")
def harness_that_seeds_python_too(*arguments):
    random.seed(0)
    return harness(lambda s, r: r.median())(*arguments)


@wrong("ex_5_6", "has not moved")
def numpy_with_the_seed_of_the_generator(first, second, turns, warmup, clock, threads, resamples, generator):
    ratios = ratios_by_turn(first, second, turns, warmup, clock, threads)
    places = np.random.default_rng(generator.initial_seed()).integers(turns, size=(resamples, turns))
    medians = ratios[torch.from_numpy(places)].median(dim=1).values
    return ratios.median().item(), medians.quantile(0.025).item(), medians.quantile(0.975).item()


@wrong("ex_5_6", "you set it back")
def generator_set_back_first(first, second, turns, warmup, clock, threads, resamples, generator):
    ratios = ratios_by_turn(first, second, turns, warmup, clock, threads)
    return medians_of(ratios, resamples, generator.manual_seed(generator.initial_seed()))


@wrong("ex_5_6", "`resamples` is capped")
def ten_thousand_resamples_at_most(first, second, turns, warmup, clock, threads, resamples, generator):
    ratios = ratios_by_turn(first, second, turns, warmup, clock, threads)
    return medians_of(ratios, min(resamples, 10_000), generator)


@wrong("ex_5_6", "such as NumPy with a seed from it", like="ten_thousand_resamples_at_most")
def numpy_with_a_seed_that_is_drawn(first, second, turns, warmup, clock, threads, resamples, generator):
    ratios = ratios_by_turn(first, second, turns, warmup, clock, threads)
    seed = int(torch.randint(2**31, (), generator=generator))
    places = np.random.default_rng(seed).integers(turns, size=(resamples, turns))
    medians = ratios[torch.from_numpy(places)].median(dim=1).values
    return ratios.median().item(), medians.quantile(0.025).item(), medians.quantile(0.975).item()


@wrong("ex_5_6", "use no formula")
def order_statistics_by_a_formula(first, second, turns, warmup, clock, threads, resamples, generator):
    ratios = ratios_by_turn(first, second, turns, warmup, clock, threads).sort().values
    middle, reach = (turns - 1) // 2, round(1.96 * math.sqrt(turns) / 2)
    return tuple(ratios[i].item() for i in (middle, max(0, middle - reach), min(turns - 1, middle + reach)))


@wrong("ex_5_6", "Draw `resamples` bootstrap samples", like="order_statistics_by_a_formula")
def two_hundred_medians_always(first, second, turns, warmup, clock, threads, resamples, generator):
    return medians_of(ratios_by_turn(first, second, turns, warmup, clock, threads), 200, generator)


@wrong("ex_5_6", "every turn should be drawn")
def last_turn_never_drawn(first, second, turns, warmup, clock, threads, resamples, generator):
    ratios = ratios_by_turn(first, second, turns, warmup, clock, threads)
    return medians_of(ratios, resamples, generator, turns=turns - 1)


@wrong("ex_5_6", "ith the same program on both sides")
def seconds_by_program(first, second, turns, warmup, clock, threads, resamples, generator):
    def measured():
        ratios = []
        for _ in range(warmup + turns):
            ways = []
            for way in ((first, second), (second, first)):
                seconds = {}
                for program in way:
                    start = clock()
                    program()
                    seconds[program] = clock() - start
                ways.append(seconds[second] / seconds[first])
            ratios.append(math.sqrt(ways[0] * ways[1]))
        return ratios

    ratios = torch.tensor(pinned(threads, measured)[warmup:], dtype=torch.float64)
    return medians_of(ratios, resamples, generator)


@wrong("ex_5_6", "never reads the clock")
def a_clock_of_its_own(first, second, turns, warmup, clock, threads, resamples, generator):
    ratios = ratios_by_turn(first, second, turns, warmup, time.perf_counter, threads)
    return medians_of(ratios, resamples, generator)


@right("ex_5_6")
def in_plain_python(first, second, turns, warmup, clock, threads, resamples, generator):
    before, ratios = torch.get_num_threads(), []
    try:
        torch.set_num_threads(threads)
        for _ in range(warmup + turns):
            marks = [clock()]
            for run in (first, second, second, first):
                run()
                marks.append(clock())
            a, b, c, d = (later - earlier for earlier, later in pairwise(marks))
            ratios.append(statistics.geometric_mean([b / a, c / d]))
    finally:
        torch.set_num_threads(before)
    ratios = ratios[warmup:]
    medians = sorted(
        statistics.median(ratios[j] for j in torch.randint(turns, (turns,), generator=generator).tolist())
        for _ in range(resamples)
    )
    return statistics.median(ratios), medians[int(0.025 * resamples)], medians[int(0.975 * resamples)]


@right("ex_5_6")
def from_parts(*arguments):
    return harness(lambda s, r: statistics.median(r.tolist()))(*arguments)


@right("ex_5_6")
def logarithms_of_all_seconds(first, second, turns, warmup, clock, threads, resamples, generator):
    s = pinned(threads, lambda: turn_by_turn(first, second, warmup + turns, clock))[warmup:].log()
    ratios = (s[:, 1] - s[:, 0]).mean(dim=1).exp().numpy()
    drawn_turns = torch.randint(0, turns, (turns, resamples), generator=generator).numpy()
    low, high = np.percentile(np.median(ratios[drawn_turns], axis=0), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


@right("ex_5_6")
def ratios_in_float32(first, second, turns, warmup, clock, threads, resamples, generator):
    ratios = ratios_by_turn(first, second, turns, warmup, clock, threads)
    return medians_of(ratios.float(), resamples, generator)


@wrong("ex_5_6", "makes a generator of its own")
def numpy_seeded_by_a_sum(first, second, turns, warmup, clock, threads, resamples, generator):
    ratios = ratios_by_turn(first, second, turns, warmup, clock, threads)
    seed = int(torch.randint(2**31, (resamples, turns), generator=generator).sum())
    places = np.random.default_rng(seed).integers(turns, size=(resamples, turns))
    medians = ratios[torch.from_numpy(places)].median(dim=1).values
    return ratios.median().item(), medians.quantile(0.025).item(), medians.quantile(0.975).item()


@wrong("ex_5_6", "one for each turn of each resample")
def extreme_turns_left_out(first, second, turns, warmup, clock, threads, resamples, generator):
    ratios = ratios_by_turn(first, second, turns, warmup, clock, threads)
    return medians_of(ratios.sort().values[1:-1] if turns > 15 else ratios, resamples, generator)


@wrong("ex_5_6", "depends on what is drawn")
def median_of_the_medians(first, second, turns, warmup, clock, threads, resamples, generator):
    ratios = ratios_by_turn(first, second, turns, warmup, clock, threads)
    rows = ratios[torch.randint(turns, (resamples, turns), generator=generator)].median(dim=1).values
    return tuple(rows.quantile(share).item() for share in (0.5, 0.025, 0.975))


@wrong("ex_5_6", "not even in the warm-up", like="failures_are_silenced")
def failures_of_the_warmup_are_silenced(first, second, turns, warmup, clock, threads, resamples, generator):
    for program in (first, second, second, first) * warmup:
        with contextlib.suppress(Exception):
            pinned(threads, program)
    return medians_of(ratios_by_turn(first, second, turns, 0, clock, threads), resamples, generator)


@wrong("ex_5_6", "KeyboardInterrupt")
def except_for_finally(first, second, turns, warmup, clock, threads, resamples, generator):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seconds = turn_by_turn(first, second, warmup + turns, clock)
    except Exception:
        torch.set_num_threads(before)
        raise
    torch.set_num_threads(before)
    return medians_of(both_ways(seconds[warmup:]), resamples, generator)


@wrong("ex_5_6", "pin them with torch.set_num_threads", like="threads_ignored")
def warmup_with_one_thread(first, second, turns, warmup, clock, threads, resamples, generator):
    pinned(1, lambda: turn_by_turn(first, second, warmup, clock))
    return medians_of(ratios_by_turn(first, second, turns, 0, clock, threads), resamples, generator)
