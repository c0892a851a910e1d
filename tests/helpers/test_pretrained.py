"""A Hugging Face encoder, made and saved here, loaded, quantized and judged by the code that takes a real one."""

import builtins
import shutil

import pytest
import torch
from torch import nn

from helpers import int8, known_warnings, pretrained

TEXTS = [f"The function number {i} returns the sum of {i} and {i + 1} apples in basket {i % 7}." for i in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("transformers")
    known_warnings.hide()
    int8.choose_engine()
    path = tmp_path_factory.mktemp("encoder")
    pretrained.save_tiny(path, TEXTS)
    return path


def test_the_folder_is_in_the_hugging_face_format(folder):
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)


def test_one_function_quantizes_and_evaluates(folder):
    tasks = [pretrained.Task("same", TEXTS[:20], TEXTS[:20]), pretrained.Task("next", TEXTS[:20], TEXTS[1:21])]
    report = pretrained.compare(folder, tasks)
    assert report.share > 0.95 and report.int8_bytes < report.float_bytes / 3
    before, after = report.ranks["same"]
    assert pretrained.recall_at_1(before) == pretrained.recall_at_1(after) == 1.0
    assert all(0.99 < value <= 1.0001 for value in report.cosine.values())
    assert report.source == str(folder)


def test_quantizing_leaves_the_original_alone(folder):
    original = pretrained.load(folder)
    before = pretrained.embed(original, TEXTS[:3])
    small = pretrained.quantized(original)
    assert torch.equal(pretrained.embed(original, TEXTS[:3]), before)
    assert not torch.equal(pretrained.embed(small, TEXTS[:3]), before)


def test_padding_does_not_change_a_vector(folder):
    encoder = pretrained.load(folder)
    alone, padded = pretrained.embed(encoder, TEXTS[:1]), pretrained.embed(encoder, [TEXTS[0], " ".join(TEXTS[:4])])
    assert torch.allclose(alone[0], padded[0], atol=1e-5)


def test_an_int8_vector_depends_on_its_batch_unless_alone(folder):
    small = pretrained.quantized(pretrained.load(folder))
    texts = [TEXTS[0], " ".join(TEXTS[:4])]
    alone = torch.cat([pretrained.embed(small, [text]) for text in texts])
    assert torch.equal(pretrained.embed(small, texts, batch_size=1), alone)
    assert not torch.equal(pretrained.embed(small, texts), alone)


def test_a_shared_matrix_counts_for_both_of_its_modules():
    known_warnings.hide()
    int8.choose_engine()
    tied = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)).eval()
    tied[1].weight = tied[0].weight
    assert pretrained.share_in_int8(tied, pretrained.quantized(pretrained.Encoder(tied, None, "")).model) == 1.0


def test_vectors_without_numbers_have_no_rank():
    with pytest.raises(ValueError, match="nan or inf"):
        pretrained.ranks(torch.full((3, 4), float("nan")), torch.eye(4)[:3])


def test_a_folder_with_missing_or_broken_files_is_one_sentence(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"xx")
    shutil.copytree(folder, tmp_path / "mute")
    for file in (tmp_path / "mute").glob("tok*"):
        file.unlink()
    for name, message in [("broken", "broken cannot be read"), ("mute", "mute")]:
        with pytest.raises(pretrained.Unavailable, match=message) as said:
            pretrained.load(tmp_path / name)
        assert "\n" not in str(said.value)


def test_a_model_with_a_decoder_is_one_sentence(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5Model(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(pretrained.Unavailable, match="has a decoder"):
        pretrained.load(tmp_path)


def test_weights_that_the_quantizer_cannot_see_are_counted_as_float():
    known_warnings.hide()
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True).eval()
    small = pretrained.quantized(pretrained.Encoder(layer, None, "")).model
    share = pretrained.share_in_int8(layer, small)
    assert 0.4 < share < 0.55  # the two feed-forward layers; in_proj_weight and out_proj stay float


def test_ranks_and_measures():
    queries = torch.eye(3)
    passages = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0.7, 0.714]])
    found = pretrained.ranks(queries, passages)
    assert found.tolist() == [1, 2, 1]
    assert pretrained.recall_at_1(found) == pytest.approx(2 / 3)
    assert pretrained.mean_reciprocal_rank(found) == pytest.approx((1 + 0.5 + 1) / 3)
    assert pretrained.ranks(torch.ones(2, 1), torch.ones(2, 1)).tolist() == [2, 2]  # a tie is no success


def test_tasks_pair_each_question_with_its_own_passage():
    for task in pretrained.documentation_tasks(20):
        assert len(task.queries) == len(task.passages) == 20 and len(set(task.queries)) == 20
    sentences = pretrained.documentation_tasks(20)[1]  # a title may well stand in its topic; a first sentence must not
    assert all(query not in rest for query, rest in zip(sentences.queries, sentences.passages, strict=True))


def test_a_missing_package_is_one_sentence(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name == "transformers":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(pretrained.Unavailable, match=r"transformers is not installed: pip install") as said:
        pretrained.load("anything")
    assert "\n" not in str(said.value)


def test_a_folder_without_a_model_is_one_sentence(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(pretrained.Unavailable, match=r"config.json is missing"):
        pretrained.load(tmp_path)


def test_an_unreachable_hub_is_one_sentence(monkeypatch):
    transformers = pytest.importorskip("transformers")

    def unreachable(*_, **__):
        raise OSError("We couldn't connect to the hub.\nCheck your internet connection.")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(pretrained.Unavailable, match=r"no hub gave it") as said:
        pretrained.load("somebody/some-model")
    assert "\n" not in str(said.value)
