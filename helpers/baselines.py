"""Honest baselines for a byte-level language model: byte counts and a general-purpose compressor."""

from __future__ import annotations

import lzma

import numpy as np


def ngram_bits_per_byte(training: bytes, held_out: bytes, order: int) -> float:
    """Bits per byte of `held_out` under counts of `order` consecutive bytes in `training`.

    Each order backs off to the one below with Witten-Bell smoothing (the weight of a context grows with how
    often it was seen and shrinks with how many different bytes followed it); order 0 is the uniform 1/256.

    Reference: Witten and Bell 1991, "The zero-frequency problem", IEEE Trans. Information Theory 37(4).
    """
    train = np.frombuffer(training, dtype=np.uint8).astype(np.int64)
    test = np.frombuffer(held_out, dtype=np.uint8).astype(np.int64)
    probability = np.full(len(test), 1 / 256)
    for n in range(1, order + 1):
        grams, gram_counts = np.unique(_windows(train, n), return_counts=True)
        contexts, first, follow_types = np.unique(grams // 256, return_index=True, return_counts=True)
        context_counts = np.add.reduceat(gram_counts, first)
        here = _windows(test, n)  # (len(test) - n + 1,), for the bytes n-1, n, ...
        seen = _look_up(grams, gram_counts, here)
        total = _look_up(contexts, context_counts, here // 256)
        types = _look_up(contexts, follow_types, here // 256)
        lower = probability[n - 1 :]
        smoothed = (seen + types * lower) / np.maximum(total + types, 1)
        probability[n - 1 :] = np.where(total > 0, smoothed, lower)
    return float(-np.log2(probability).mean())


def lzma_bits_per_byte(held_out: bytes, training: bytes = b"") -> float:
    """Bits per byte that LZMA adds for `held_out` when it has already compressed `training`."""
    return 8 * (_lzma_size(training + held_out) - (_lzma_size(training) if training else 0)) / len(held_out)


def _windows(text: np.ndarray, n: int) -> np.ndarray:
    """Every n consecutive bytes as one integer, the last byte lowest."""
    value = np.zeros(len(text) - n + 1, dtype=np.int64)
    for i in range(n):
        value = value * 256 + text[i : len(text) - n + 1 + i]
    return value


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values[keys == wanted], 0 where a key is absent; `keys` is sorted."""
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def _lzma_size(text: bytes) -> int:
    return len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
