"""Distances between two models, peak memory, the processor's name, and the int8 engine for a while."""

import math
import sys

import pytest
import torch

from benchmarks import machine
from helpers import environment, int8, memory, metrics


def test_kl_is_the_sum_in_bits():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
    expected = 0.5 * math.log2(0.5 / 0.75) + 0.5 * math.log2(0.5 / 0.25)
    assert metrics.kl_bits(p.log(), q.log() + 7).item() == pytest.approx(expected)
    logits = torch.randn(3, 5, 256)
    assert metrics.kl_bits(logits, logits).abs().max() < 1e-12
    assert metrics.kl_bits(logits, torch.randn(3, 5, 256)).shape == (3, 5)


def test_kl_bears_impossible_answers():
    far = torch.tensor([[0.0, -5000.0, -math.inf]])
    assert metrics.kl_bits(far, far).item() == 0.0
    assert metrics.kl_bits(far, torch.tensor([[0.0, 0.0, -math.inf]])).item() == pytest.approx(1.0)


def test_flips_count_both_directions():
    targets = torch.tensor([1, 1, 1, 1, 1])
    before, after = torch.tensor([1, 1, 2, 2, 1]), torch.tensor([1, 3, 1, 3, 2])
    assert metrics.flips(targets, before, after) == (2, 1)
    assert metrics.agreement(before, after) == pytest.approx(0.2)


def test_cosine():
    a = torch.tensor([[3.0, 4.0]])
    assert metrics.cosine(a, 10 * a) == pytest.approx(1)
    assert metrics.cosine(a, torch.tensor([[-4.0, 3.0]])) == pytest.approx(0)


def test_the_peak_is_that_of_the_child_and_not_of_its_parent():
    ballast = torch.ones(50_000_000)  # 200 MB here
    small = memory.peak_bytes("pass")
    large = memory.peak_bytes("block = b'x' * 100_000_000; del block")
    assert small < 100e6 and 90e6 < large - small < 130e6 and ballast.sum() > 0


def test_a_program_that_fails_says_why():
    with pytest.raises(RuntimeError, match="the program failed: ValueError: no"):
        memory.peak_bytes("raise ValueError('no')")


def test_what_a_program_prints_is_not_its_peak():
    for program in ("print(7)", "print(7, end='')", "import atexit; atexit.register(print, 7)"):
        assert 3e6 < memory.peak_bytes(program) < 100e6


def test_a_program_that_ends_itself_has_no_peak():
    for program in ("print(42); raise SystemExit", "import os; os._exit(0)"):
        with pytest.raises(RuntimeError, match="ended itself"):
            memory.peak_bytes(program)


def test_answers_of_different_shapes_are_not_broadcast():
    row, column = torch.arange(3), torch.arange(3)[:, None]
    with pytest.raises(ValueError, match="tensors of one shape"):
        metrics.agreement(row, column)
    with pytest.raises(ValueError, match="tensors of one shape"):
        metrics.flips(row, row, column)
    with pytest.raises(ValueError, match="no answers"):
        metrics.agreement(row[:0], row[:0])


def test_a_signal_of_zeros_has_no_ratio():
    with pytest.raises(ValueError, match="zero everywhere"):
        metrics.sqnr_db(torch.zeros(3), torch.ones(3))
    assert metrics.sqnr_db(torch.zeros(3), torch.zeros(3)) == math.inf


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_processor_has_a_name():
    assert environment.processor() == machine.description()["processor"] != ""


def test_an_engine_is_used_and_left(capfd):
    before = torch.backends.quantized.engine
    for name in int8.engines():
        with int8.using(name):
            assert torch.backends.quantized.engine == name
            int8.dynamic_int8(torch.nn.Sequential(torch.nn.Linear(4, 4)))(torch.ones(1, 4))
        assert torch.backends.quantized.engine == before
    with pytest.raises(KeyError), int8.using(int8.engines()[-1]):
        raise KeyError
    assert torch.backends.quantized.engine == before
    assert "qnnpack" not in capfd.readouterr().err
