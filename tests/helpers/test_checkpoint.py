"""Checkpoints: what is loaded is what was saved, and a damaged file is refused with its cure."""

import json

import pytest
import torch

from helpers import checkpoint
from helpers.models import ModelConfig, TransformerLM


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def saved(request, tmp_path):
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(context=8, d_model=16, n_heads=2, n_layers=1, d_ff=16, tied_head=request.param))
    path = tmp_path / "small.safetensors"
    checkpoint.save_checkpoint(model.eval(), path, {"what": "a test"})
    return model, path


def test_round_trip(saved):
    model, path = saved
    loaded = checkpoint.load_checkpoint(path)
    ids = torch.randint(256, (2, 8))
    assert torch.equal(loaded(ids), model(ids)) and not loaded.training
    assert (loaded.head.weight is loaded.embedding.weight) == model.config.tied_head
    assert checkpoint.load_card(path)["what"] == "a test"


def test_a_cut_off_file_is_refused(saved):
    _, path = saved
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(checkpoint.DamagedCheckpoint, match=r"is damaged.*git checkout"):
        checkpoint.load_checkpoint(path)


def test_a_changed_byte_is_refused(saved):
    _, path = saved
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(checkpoint.DamagedCheckpoint):
        checkpoint.load_checkpoint(path)


def test_a_file_that_is_no_safetensors_is_refused(saved):
    _, path = saved
    path.write_bytes(b"not weights")
    card = json.loads(path.with_suffix(".json").read_text()) | {"sha256": checkpoint.sha256(path)}
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(checkpoint.DamagedCheckpoint, match="cannot be read"):
        checkpoint.load_checkpoint(path)


def test_missing_files_are_named(saved):
    _, path = saved
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"small.safetensors are missing.*make model"):
        checkpoint.load_checkpoint(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"model card small.json is missing"):
        checkpoint.load_checkpoint(path)


def test_a_broken_card_is_named(saved):
    _, path = saved
    path.with_suffix(".json").write_text("{")
    with pytest.raises(checkpoint.DamagedCheckpoint, match="not valid JSON"):
        checkpoint.load_checkpoint(path)


def test_the_course_model_is_small_and_described():
    card = checkpoint.load_card(checkpoint.COURSE_MODEL)
    assert checkpoint.COURSE_MODEL.stat().st_size <= 16e6
    model = checkpoint.load_course_model()
    parameters = sum(p.numel() for p in model.parameters())
    assert 0.7e6 <= parameters <= 4e6 and model.config.d_model >= 256
    baselines = card["held_out_baselines_bits_per_byte"]
    assert card["held_out_bits_per_byte"] < baselines["lzma primed with the training text"] < baselines["unigram"]
    for entry in ("data", "steps", "wall_seconds", "seed", "python", "torch", "sha256", "config"):
        assert entry in card
