"""The corpus: the same split everywhere, documents apart, clear words when it is missing."""

import sys

import pytest
import torch

from helpers import data


def test_splits_are_disjoint_and_of_the_right_size():
    parts = {split: data.split_documents(split) for split in ("training", "validation", "held_out")}
    names = [document.name for part in parts.values() for document in part]
    assert len(names) == len(set(names)) == len(data.documents())
    assert 0.07 < len(parts["held_out"]) / len(names) < 0.13
    assert len(data.split_text("training")) > 1_000_000


def test_the_split_depends_on_the_name_alone():
    assert data.Document("topic:del", b"x").split == data.Document("topic:del", b"y").split == "held_out"
    assert data.Document("topic:assert", b"").split == "training"


def test_no_held_out_document_is_in_the_training_text():
    training = data.split_text("training")
    copied = [d.name for d in data.split_documents("held_out") if len(d.text) > 200 and d.text in training]
    assert copied == []


def test_windows_are_the_starts_of_different_documents():
    rows = data.windows("held_out", 8, length=65)
    assert rows.shape == (8, 65) and rows.dtype == torch.int64
    assert torch.equal(rows[:4], data.windows("held_out", 4, length=65))
    starts = {d.text[:65] for d in data.split_documents("held_out")}
    assert {bytes(row.tolist()) for row in rows} <= starts and len({bytes(r.tolist()) for r in rows}) == 8


def test_encode_and_decode_are_inverse():
    text = "naïve → 42\n"
    assert data.decode(data.encode(text)) == text
    assert data.encode(b"\x00\xff").tolist() == [0, 255]


def test_a_target_is_the_byte_after_its_input():
    ids = torch.arange(100)
    batches = data.random_batches(ids, 7, 5, torch.Generator().manual_seed(0))
    inputs, targets = next(batches)
    assert inputs.shape == targets.shape == (5, 7) and torch.equal(inputs + 1, targets)
    again = next(data.random_batches(ids, 7, 5, torch.Generator().manual_seed(0)))
    assert torch.equal(inputs, again[0])


def test_docstrings_are_grouped_by_top_level_name():
    source = b'"""Module."""\nclass A:\n    """A."""\n    def f(self):\n        """f."""\ndef g():\n    """g."""\n'
    assert data.docstrings(source) == {"": ["Module."], "A": ["A.", "f."], "g": ["g."]}


def test_a_python_without_its_help_text_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ModuleNotFoundError, match="install the full Python"):
        data.topic_documents()


def test_a_python_without_sources_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(data.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match="without the source files"):
        data.library_documents()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: data.split_documents("test"), 'no split "test"'),
        (lambda: data.windows("held_out", 10_000), "fewer, not 10000"),
        (lambda: next(data.random_batches(torch.arange(5), 8, 1, torch.Generator())), "too few for windows"),
    ],
)
def test_bad_input_gets_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
