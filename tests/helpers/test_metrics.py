"""Metrics against exact values and independent code."""

import io
import lzma
import math
from collections import Counter

import pytest
import torch
from torch import nn

from helpers import baselines, metrics


class Uniform(nn.Module):
    def forward(self, ids):
        return torch.zeros(*ids.shape, 256)


class NextIsOneMore(nn.Module):
    """Gives the byte after x the probability 1/2, and the rest of 255 bytes the other half."""

    def forward(self, ids):
        logits = torch.full((*ids.shape, 256), math.log(0.5 / 255))
        return logits.scatter(-1, (ids + 1)[..., None] % 256, math.log(0.5))


def test_a_uniform_model_needs_eight_bits():
    ids = torch.randint(256, (3, 10))
    assert metrics.bits_per_byte(Uniform(), [ids]) == pytest.approx(8)


def test_every_byte_counts_alike():
    right, wrong = torch.arange(11)[None], torch.zeros(1, 2, dtype=torch.long)
    expected = (10 * 1 + math.log2(255 / 0.5)) / 11
    assert metrics.bits_per_byte(NextIsOneMore(), [right, wrong]) == pytest.approx(expected)


def test_perplexity_is_two_to_the_bits():
    assert metrics.perplexity(3) == 8


@pytest.mark.parametrize("factor", [0.1, 0.01])
def test_sqnr_in_decibels(factor):
    signal = torch.randn(1000)
    assert metrics.sqnr_db(signal, signal * (1 + factor)) == pytest.approx(-20 * math.log10(factor), abs=0.01)
    assert metrics.sqnr_db(signal, signal) == math.inf


def test_file_bytes_are_those_of_torch_save():
    model = nn.Linear(100, 50)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    assert metrics.file_bytes(model) == len(file.getvalue())


def test_bad_input_gets_a_sentence():
    with pytest.raises(ValueError, match="at least two bytes"):
        metrics.next_byte_bits(Uniform(), torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="nothing to measure"):
        metrics.bits_per_byte(Uniform(), [])


def test_ngrams_equal_a_slow_count():
    training, held_out = b"abracadabra, abracadabra; abba" * 3, b"abra cadabra"

    def probability(history: bytes, byte: int, order: int) -> float:
        if order == 0:
            return 1 / 256
        context = history[len(history) - order + 1 :] if order > 1 else b""
        lower = probability(history, byte, order - 1)
        if len(history) < order - 1:
            return lower
        follow = Counter(
            training[i + order - 1] for i in range(len(training) - order + 1) if training[i : i + order - 1] == context
        )
        total, types = sum(follow.values()), len(follow)
        return (follow[byte] + types * lower) / (total + types) if total else lower

    for order in (1, 2, 3):
        bits = [-math.log2(probability(held_out[:i], b, order)) for i, b in enumerate(held_out)]
        assert baselines.ngram_bits_per_byte(training, held_out, order) == pytest.approx(sum(bits) / len(bits))


def test_lzma_is_what_it_adds():
    training, held_out = b"the quick brown fox " * 50, b"the quick brown dog " * 5
    size = lambda text: len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))  # noqa: E731
    assert baselines.lzma_bits_per_byte(held_out) == 8 * size(held_out) / 100
    expected = 8 * (size(training + held_out) - size(training)) / 100
    assert baselines.lzma_bits_per_byte(held_out, training) == expected
