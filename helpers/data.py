"""The course's text: what ships with Python itself, so nothing is downloaded and nothing foreign is stored.

A *document* is one help topic of ``pydoc_data.topics``, or the docstrings of one top-level class (with its
methods), function or module of the standard library. Documents, not lines, are split into training and
held-out text by a hash of their name: the split is the same on every machine.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

HELD_OUT_SHARE, VALIDATION_SHARE = 0.10, 0.02
SEPARATOR = b"\n\n"
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# Parts that some distributions leave out or package apart; without them the text is the same everywhere.
LEFT_OUT = frozenset({
    "__pycache__", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data",
    "site-packages", "dist-packages", "test", "tests", "tkinter", "turtledemo",
})  # fmt: skip


@dataclass(frozen=True)
class Document:
    """A help topic (``topic:...``) or the docstrings of a library name (``library:statistics.NormalDist``)."""

    name: str
    text: bytes

    @property
    def split(self) -> str:
        """ "held_out" (one document in ten), "validation" (one in fifty) or "training", by a hash of the name."""
        digest = hashlib.sha256(self.name.encode()).digest()
        draw = int.from_bytes(digest[:8], "big") / 2**64
        if draw < HELD_OUT_SHARE:
            return "held_out"
        return "validation" if draw < HELD_OUT_SHARE + VALIDATION_SHARE else "training"


def topic_documents() -> list[Document]:
    """Python's own help topics, sorted by name.

    Raises
    ------
    ModuleNotFoundError
        If this Python comes without ``pydoc_data`` (some distributions package it apart).
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ModuleNotFoundError(
            "this Python has no pydoc_data, the help text that the course uses as its data: install the full "
            "Python (on Debian and Ubuntu: apt install libpython3-stdlib; or a python.org, pyenv or conda Python)."
        ) from error
    return [Document(f"topic:{name}", topics[name].strip().encode()) for name in sorted(topics)]


def docstrings(source: bytes) -> dict[str, list[str]]:
    """Docstrings of a module by top-level name: a class comes with its methods, "" is the module itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # a stray backslash in a library is not our business
        tree = ast.parse(source)
    found: dict[str, list[str]] = {"": [ast.get_docstring(tree) or ""]}
    for node in tree.body:
        if isinstance(node, DEFINITIONS):
            inner = sorted((n for n in ast.walk(node) if isinstance(n, DEFINITIONS)), key=lambda n: n.lineno)
            found.setdefault(node.name, []).extend(ast.get_docstring(n) or "" for n in inner)
    return found


def library_documents() -> list[Document]:
    """Docstrings of the standard library, a document for each module, class and function; a repeat counts once.

    Raises
    ------
    FileNotFoundError
        If the library's ``.py`` files are not there (some distributions ship only compiled ones).
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    documents, seen = [], set()
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if LEFT_OUT.intersection(parts):
            continue
        try:
            found = docstrings(path.read_bytes())
        except SyntaxError:  # a template, or a file for another Python
            continue
        for name, texts in found.items():
            fresh = [text for text in dict.fromkeys(texts) if text and text not in seen]
            seen.update(fresh)
            if fresh:
                title = ".".join((*parts, name)).rstrip(".")
                documents.append(
                    Document(f"library:{title}", SEPARATOR.join(t.encode(errors="replace") for t in fresh))
                )
    if len(documents) < 1000:
        raise FileNotFoundError(
            f"only {len(documents)} documented classes and functions were found in {root}: this Python ships "
            "without the source files of its library; install a full Python (python.org, pyenv or conda)."
        )
    return documents


@lru_cache(maxsize=1)
def documents() -> tuple[Document, ...]:
    """Every document of the corpus: help topics, then the library (about two seconds, once per process)."""
    return (*topic_documents(), *library_documents())


def split_documents(split: str) -> list[Document]:
    """Documents of one split: "training", "validation" (to choose how to train) or "held_out" (to report)."""
    if split not in ("training", "validation", "held_out"):
        raise ValueError(f'there is no split "{split}": choose "training", "validation" or "held_out".')
    return [document for document in documents() if document.split == split]


def split_text(split: str) -> bytes:
    """All documents of one split, one after another."""
    return SEPARATOR.join(document.text for document in split_documents(split))


def windows(split: str, count: int, length: int = 257) -> Tensor:
    """The first `length` bytes of `count` different documents of a split, int64 (count, length).

    Documents are taken in the order of a hash of their name, so that a small `count` is a fair sample.
    """
    long_enough = [document for document in split_documents(split) if len(document.text) >= length]
    if count > len(long_enough):
        raise ValueError(
            f'the split "{split}" has only {len(long_enough)} documents of at least {length} bytes: '
            f"ask for that many windows or fewer, not {count}."
        )
    chosen = sorted(long_enough, key=lambda document: hashlib.sha256(document.name.encode()).digest())[:count]
    return torch.stack([encode(document.text[:length]) for document in chosen])


def encode(text: str | bytes) -> Tensor:
    """Bytes of `text` as token ids, int64 (length,)."""
    raw = text.encode() if isinstance(text, str) else text
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()


def decode(ids: Tensor) -> str:
    """Token ids (length,) as text; bytes that are not UTF-8 become the replacement sign."""
    return bytes(ids.tolist()).decode(errors="replace")


def random_batches(
    ids: Tensor, context: int, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (inputs, targets), each (batch_size, context); a target is the byte after its input."""
    if len(ids) <= context:
        raise ValueError(f"the text has {len(ids)} bytes, too few for windows of {context} bytes and their targets.")
    while True:
        start = torch.randint(len(ids) - context, (batch_size, 1), generator=generator)
        window = ids[start + torch.arange(context + 1)]  # (batch_size, context + 1)
        yield window[:, :-1], window[:, 1:]
