"""Training the course model: seeded, resumable, and the score counts every byte once."""

import pytest
import torch

from helpers import data, metrics
from helpers import train_course_model as training
from helpers.models import ModelConfig, TransformerLM

SMALL = ModelConfig(context=16, d_model=16, n_heads=2, n_layers=1, d_ff=16)


@pytest.fixture(autouse=True)
def small_text(monkeypatch):
    monkeypatch.setattr(data, "split_text", lambda split: b"the quick brown fox jumps over the lazy dog. " * 40)
    monkeypatch.setattr(data, "windows", lambda split, count: torch.zeros(2, 9, dtype=torch.long))
    monkeypatch.setattr(training, "SAVE_EVERY", 2)


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path, monkeypatch):
    whole, _ = training.train(6, SMALL, 0, tmp_path / "whole.pt")

    def interrupted(model, opts, batches, calls=[]):  # noqa: B006 (counts over the whole run)
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return original(model, opts, batches)

    original = training.train_step
    monkeypatch.setattr(training, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.train(6, SMALL, 0, tmp_path / "parts.pt")
    monkeypatch.setattr(training, "train_step", original)
    parts, _ = training.train(6, SMALL, 0, tmp_path / "parts.pt")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, parts.state_dict()[name]), name


def test_a_state_of_another_run_is_refused(tmp_path):
    training.train(2, SMALL, 0, tmp_path / "state.pt")
    with pytest.raises(SystemExit, match="belongs to a run of 2 steps with seed 0"):
        training.train(4, SMALL, 0, tmp_path / "state.pt")
    with pytest.raises(SystemExit, match="with seed 0"):
        training.train(2, SMALL, 1, tmp_path / "state.pt")


def test_the_learning_rate_warms_up_and_ends_at_zero():
    rates = [training.learning_rate(step, 1000) for step in range(1001)]
    assert rates[0] < rates[99] == max(rates) and rates[1000] == 0 and rates[900] < rates[600]


def test_sliding_windows_score_each_byte_once():
    torch.manual_seed(0)
    model = TransformerLM(SMALL).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    text = bytes(torch.randint(256, (16 + 3 * 8 + 1,)).tolist())
    ids = data.encode(text)
    expected = metrics.next_byte_bits(model, ids[None, :17])[0].tolist()
    for start in (8, 16, 24):
        expected += metrics.next_byte_bits(model, ids[None, start : start + 17])[0, -8:].tolist()
    assert len(expected) == len(text) - 1
    assert training.sliding_bits_per_byte(model, text, fresh=8) == pytest.approx(sum(expected) / len(expected))


def test_dropout_is_only_added_from_outside():
    model = TransformerLM(SMALL)
    ids = torch.zeros(1, 8, dtype=torch.long)
    handles = training.add_dropout(model, 0.5)
    assert not torch.equal(model.train()(ids), model(ids))
    assert torch.equal(model.eval()(ids), model(ids))
    for handle in handles:
        handle.remove()
    assert torch.equal(model.train()(ids), model(ids))
