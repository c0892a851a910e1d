"""The int8 engine: one is always in use, and PyTorch's dynamic quantization is what the text says it is."""

import pytest
import torch
from torch import nn

from helpers import describe, int8


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.delenv("COURSE_INT8_ENGINE", raising=False)
    before = torch.backends.quantized.engine
    yield
    torch.backends.quantized.engine = before


def test_the_default_engine_stays(engine):
    before = int8.choose_engine()  # on a Mac none is in use at first
    assert int8.choose_engine() == before == int8.engines()[0]


def test_a_computer_that_starts_without_an_engine_gets_one(engine, monkeypatch):
    class Backend:
        supported_engines = ("none", "onednn")
        engine = "none"

    monkeypatch.setattr(torch.backends, "quantized", Backend)
    assert int8.choose_engine() == "onednn" == Backend.engine


def test_an_engine_can_be_asked_for(engine, monkeypatch, capfd):
    monkeypatch.setenv("COURSE_INT8_ENGINE", "qnnpack")
    assert int8.choose_engine() == "qnnpack" == int8.engines()[0]
    int8.dynamic_int8(nn.Sequential(nn.Linear(4, 4)))(torch.randn(2, 4))
    assert "reduce_range" not in capfd.readouterr().err


def test_a_missing_engine_gets_a_sentence(engine, monkeypatch):
    monkeypatch.setenv("COURSE_INT8_ENGINE", "abacus")
    with pytest.raises(RuntimeError, match="has no int8 engine abacus"):
        int8.choose_engine()


def test_weights_are_rounded_to_eight_bits_with_one_scale():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    quantized = int8.dynamic_int8(model)
    for name, weight in describe.dequantized_weights(model).items():
        error = (describe.dequantized_weights(quantized)[name] - weight).abs().max()
        assert 0 < error <= 0.51 * weight.abs().max() / 127
    assert describe.weight_dtypes(model) == {"0": "torch.float32", "2": "torch.float32"}


def test_another_engine_has_another_recipe(engine):
    mine = int8.choose_engine()
    other = int8.another_engine()
    assert other in int8.engines() and torch.backends.quantized.engine == mine
    if other != mine:
        with int8.using(other):
            assert int8.another_engine() != other
        recipes = [torch.ao.quantization.get_default_qconfig(name) for name in (mine, other)]
        kinds = [(recipe.activation().quant_max, recipe.weight().qscheme) for recipe in recipes]
        assert kinds[0] != kinds[1]
