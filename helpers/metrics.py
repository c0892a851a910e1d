"""How good is a model, how far from another, how large: bits per byte, SQNR, KL, flips, bytes on disk."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NATS_PER_BIT = math.log(2)


@torch.no_grad()
def next_byte_bits(model: nn.Module, ids: Tensor) -> Tensor:
    """Bits that `model` needs for each byte of `ids` but the first of a row.

    Parameters
    ----------
    model : Module
        Maps ids (batch, time) to logits (batch, time, vocab_size).
    ids : Tensor, int64, (batch, time)
        At least two bytes a row.

    Returns
    -------
    Tensor, float64, (batch, time - 1)
        ``-log2 p(byte | bytes before it)``.

    Raises
    ------
    ValueError
        If a row has fewer than two bytes.
    """
    if ids.shape[-1] < 2:
        raise ValueError("a row needs at least two bytes: one to read and one to predict.")
    logits, targets = model(ids[:, :-1]), ids[:, 1:]  # (batch, time - 1, vocab_size), (batch, time - 1)
    nats = F.cross_entropy(logits.double().flatten(0, 1), targets.flatten(), reduction="none")
    return nats.view(targets.shape) / NATS_PER_BIT


def bits_per_byte(model: nn.Module, batches: Iterable[Tensor]) -> float:
    """Mean bits per predicted byte over all batches (batch, time), every byte counted alike; lower is better.

    The model is used in the mode that it is in: call ``model.eval()`` first if it has dropout.

    Raises
    ------
    ValueError
        If there is no batch, or a batch with fewer than two bytes a row.
    """
    total, count = 0.0, 0
    for ids in batches:
        bits = next_byte_bits(model, ids)
        total, count = total + bits.sum().item(), count + bits.numel()
    if count == 0:
        raise ValueError("there is nothing to measure: the list of batches is empty.")
    return total / count


def perplexity(bits: float) -> float:
    """Perplexity per byte of a model that needs `bits` bits per byte."""
    return 2.0**bits


def sqnr_db(signal: Tensor, quantized: Tensor) -> float:
    """Signal-to-quantization-noise ratio in dB: ``20 log10(|signal| / |signal - quantized|)``; inf if equal.

    Raises
    ------
    ValueError
        If the signal is zero everywhere and the quantized one is not: its logarithm does not exist.
    """
    noise = torch.linalg.vector_norm((signal - quantized).double())
    if noise == 0:
        return math.inf
    strength = torch.linalg.vector_norm(signal.double())
    if strength == 0:
        raise ValueError("the signal is zero everywhere: there is nothing that the noise could be compared with.")
    return 20 * math.log10(strength / noise)


def file_bytes(model: nn.Module) -> int:
    """Bytes that the model's state_dict takes when saved with ``torch.save`` (weights, scales and all)."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getbuffer().nbytes


def kl_bits(reference: Tensor, logits: Tensor) -> Tensor:
    """Bits lost at each position by who believes `logits` where `reference` is true: ``KL(reference ‖ logits)``.

    Parameters
    ----------
    reference, logits : Tensor, float, (..., vocab_size)

    Returns
    -------
    Tensor, float64, (...)
        0 where both distributions are equal; never negative but for rounding. Logits of minus infinity are impossible
        answers: they cost nothing where the reference excludes them, too.
    """
    log_p, log_q = reference.double().log_softmax(dim=-1), logits.double().log_softmax(dim=-1)
    p = log_p.exp()
    terms = torch.where(p > 0, p * (log_p - log_q), torch.zeros_like(p))  # 0 * log 0 is 0, not nan
    return terms.sum(dim=-1) / NATS_PER_BIT


def flips(targets: Tensor, before: Tensor, after: Tensor) -> tuple[int, int]:
    """How many answers were right and became wrong, and how many the other way round: (broken, repaired).

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    _same_shape(targets, before, after)
    right_before, right_after = before == targets, after == targets
    return int((right_before & ~right_after).sum()), int((~right_before & right_after).sum())


def agreement(before: Tensor, after: Tensor) -> float:
    """Share of equal answers, right or wrong.

    Raises
    ------
    ValueError
        If the shapes differ, or there is no answer.
    """
    _same_shape(before, after)
    if before.numel() == 0:
        raise ValueError("there are no answers to compare.")
    return (before == after).double().mean().item()


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two tensors, each taken as one long vector; float64."""
    return F.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).item()


def _same_shape(*answers: Tensor) -> None:
    shapes = [tuple(each.shape) for each in answers]
    if len(set(shapes)) > 1:  # else they would be broadcast, and compared with the wrong partners
        raise ValueError(f"one answer for each question is needed, in tensors of one shape: not {shapes}.")
