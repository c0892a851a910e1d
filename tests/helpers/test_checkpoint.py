"""Checkpoints: what is loaded is what was saved, and a damaged file is refused with its cure."""

import json

import pytest
import torch
from safetensors.torch import save_file

from helpers import checkpoint, int8, known_warnings, quantizable, seq2seq
from helpers.models import ModelConfig, TransformerLM

known_warnings.hide()


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


def reader(d_model=8) -> seq2seq.Seq2Seq:
    torch.manual_seed(1)
    return seq2seq.Seq2Seq(seq2seq.Seq2SeqConfig(9, 6, 5, d_model=d_model, n_heads=2, n_layers=1, d_ff=8)).eval()


def test_round_trip_of_an_encoder_decoder(tmp_path):
    model, path = reader(), tmp_path / "reader.safetensors"
    state = torch.get_rng_state()
    checkpoint.save_checkpoint(model, path, {})
    assert torch.equal(torch.get_rng_state(), state)
    loaded = checkpoint.load_checkpoint(path)
    assert type(loaded) is seq2seq.Seq2Seq and loaded.config == model.config and not loaded.training
    ids = torch.randint(9, (3, 5))
    assert torch.equal(loaded(ids, ids), model(ids, ids))


class Reader(seq2seq.Seq2Seq):
    pass


Impostor = type("Seq2Seq", (seq2seq.Seq2Seq,), {})


@pytest.mark.parametrize(
    "model",
    [
        Reader(reader().config),
        Impostor(reader().config),
        quantizable.QuantizableLM(ModelConfig(context=8, d_model=16, n_heads=2, n_layers=1, d_ff=16)),
        torch.nn.Linear(2, 2),
    ],
    ids=["subclass", "namesake", "quantizable", "no model"],
)
def test_another_class_is_refused_before_anything_is_written(model, tmp_path):
    with pytest.raises(ValueError, match=r"this is another class, \w+, whose code would not be in the file"):
        checkpoint.save_checkpoint(model, tmp_path / "x.safetensors", {})
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_in_float32_is_refused_before_anything_is_written(tmp_path):
    int8.choose_engine()
    ids = torch.ones(2, 5, dtype=torch.long)
    for model in (
        seq2seq.static_int8(reader(), [(ids, ids)]),
        int8.dynamic_int8(reader()),
        seq2seq.prepare(reader()),
        reader().half(),
    ):
        with pytest.raises(ValueError, match=r"holds float32 weights, and those of this Seq2Seq are not"):
            checkpoint.save_checkpoint(model, tmp_path / "x.safetensors", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (None, "its header has no configuration of a TransformerLM or a Seq2Seq"),
        ({"model": "Seq2Seq"}, "its header has no configuration"),
        ({"model": "Reader", "config": "{}"}, "its header has no configuration"),
        ({"config": "{"}, "Expecting property name"),
        ({"config": "[1]"}, "must be a mapping"),
        ({"config": '{"width": 3}'}, "unexpected keyword argument 'width'"),
        ({"config": '{"n_heads": 0}'}, "by zero"),
        ({"config": '{"d_model": 16, "n_heads": 3}'}, "cannot be split into n_heads=3"),
        ({"config": '{"d_model": 16, "n_layers": 1}'}, "Error\\(s\\) in loading state_dict for TransformerLM"),
    ],
)
def test_a_file_that_holds_no_such_model_is_refused(header, reason, tmp_path):
    path = tmp_path / "odd.safetensors"
    save_file({"x": torch.zeros(2)}, str(path), metadata=header)
    path.with_suffix(".json").write_text(json.dumps({"sha256": checkpoint.sha256(path)}))
    with pytest.raises(
        checkpoint.DamagedCheckpoint, match=f"^odd.safetensors cannot be read: .*{reason}.*git checkout"
    ):
        checkpoint.load_checkpoint(path)


def test_weights_of_another_size_are_refused(tmp_path):
    path = tmp_path / "reader.safetensors"
    checkpoint.save_checkpoint(reader(), path, {})
    config = json.dumps(reader(d_model=12).config.to_dict())
    tensors = {name: tensor.contiguous() for name, tensor in reader().state_dict().items()}
    save_file(tensors, str(path), metadata={"config": config, "model": "Seq2Seq"})
    path.with_suffix(".json").write_text(json.dumps({"sha256": checkpoint.sha256(path)}))
    with pytest.raises(checkpoint.DamagedCheckpoint, match="in loading state_dict for Seq2Seq"):
        checkpoint.load_checkpoint(path)


@pytest.mark.parametrize(("card", "message"), [("{}", "is damaged"), ("[]", "small.json is no model card")])
def test_a_card_without_a_hash_is_refused(saved, card, message):
    _, path = saved
    path.with_suffix(".json").write_text(card)
    with pytest.raises(checkpoint.DamagedCheckpoint, match=message):
        checkpoint.load_checkpoint(path)


def test_the_date_reader_is_the_one_of_its_card():
    model, card = checkpoint.load_date_reader(), checkpoint.load_card(checkpoint.DATE_READER)
    assert type(model) is seq2seq.Seq2Seq and model.config.to_dict() == card["config"]
    assert card["held_out_exact_match"] >= 0.97


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
