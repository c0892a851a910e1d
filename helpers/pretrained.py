"""Quantize a Hugging Face encoder, and judge it by retrieval over Python's own documentation.

`compare` takes the name of a model on a hub, or a folder in the Hugging Face format (config.json, tokenizer,
safetensors). Without a network, `save_tiny` makes such a folder: a small encoder with random weights. It needs the
optional package `transformers`: ``pip install "transformer-quantization-course[pretrained]"``.

Only nn.Linear and nn.Embedding are quantized. Who hides weights elsewhere (nn.MultiheadAttention, GPT-2's Conv1D) keeps
them in float, and nothing warns; therefore every report holds the share of weights that became int8.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import data, describe, metrics

CURE = 'pip install "transformer-quantization-course[pretrained]"'


class Unavailable(RuntimeError):
    """There is no model to work with; the text is one sentence with the cure."""


@dataclass(frozen=True)
class Encoder:
    """A model with its tokenizer, and where it came from."""

    model: nn.Module
    tokenizer: Any
    source: str


@dataclass(frozen=True)
class Task:
    """Retrieval: the passage that belongs to `queries[i]` is `passages[i]`."""

    name: str
    queries: list[str]
    passages: list[str]


@dataclass(frozen=True)
class Report:
    """What became of a model: bytes, share of its weights in int8, and for each task the ranks of the right passages.

    A rank is 1 if the right passage was found first; `ranks[task]` is (float, int8), each int64 (queries,), and
    `cosine[task]` the mean cosine between the int8 and the float embedding of the same text.
    """

    source: str
    float_bytes: int
    int8_bytes: int
    share: float
    ranks: dict[str, tuple[Tensor, Tensor]]
    cosine: dict[str, float]


def load(name_or_folder: str | Path) -> Encoder:
    """An encoder in eval mode, from a folder, the local cache, or a hub; only safetensors, no code of the model's own.

    Raises
    ------
    Unavailable
        If `transformers` is missing, the folder is not a model with its tokenizer, the name cannot be had, or the model
        needs a decoder.
    """
    transformers = _transformers()
    from safetensors import SafetensorError

    source, folder = str(name_or_folder), Path(name_or_folder)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise Unavailable(
            f"the folder {folder.name} holds no model in the Hugging Face format: config.json is missing."
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model = transformers.AutoModel.from_pretrained(source, use_safetensors=True)
    except (OSError, ValueError, SafetensorError) as error:
        if folder.is_dir():
            raise Unavailable(f"the model in {folder.name} cannot be read: {_first_line(error)}") from None
        raise Unavailable(
            f'the model "{source}" is not on this computer, and no hub gave it: check the name and the network, or '
            "give the folder of a model."
        ) from None
    if getattr(model.config, "is_encoder_decoder", False):
        raise Unavailable(f"the model {folder.name} has a decoder, too: only encoders can be compared here.")
    if 2 * len(tokenizer) < (getattr(model.config, "vocab_size", None) or 0):  # transformers makes up an empty one
        raise Unavailable(
            f"the tokenizer of {folder.name} knows {len(tokenizer)} tokens, and its model {model.config.vocab_size}: "
            "its files are missing, or belong to another model."
        )
    return Encoder(model.float().eval(), tokenizer, source)


def save_tiny(folder: Path, texts: Sequence[str], seed: int = 0) -> None:
    """Write a small BERT encoder with random weights and a tokenizer made from `texts`, in the Hugging Face format.

    It knows nothing of meaning: what it retrieves, it retrieves by equal words.
    """
    transformers = _transformers()
    words = _word_tokenizer(texts)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=128,
    )  # fmt: skip
    config = transformers.BertConfig(
        vocab_size=words.get_vocab_size(), hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=128, initializer_range=0.1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.BertModel(config, add_pooling_layer=False)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def quantized(encoder: Encoder) -> Encoder:
    """A copy with dynamic int8 Linear layers and int8 embeddings; `encoder` is not touched."""
    recipe = {nn.Linear: tq.default_dynamic_qconfig, nn.Embedding: tq.float_qparams_weight_only_qconfig}
    model = tq.quantize_dynamic(encoder.model, recipe)
    for module in model.modules():
        if isinstance(module, nnq.Embedding):  # it refuses the expanded views that BERT makes of its token types
            module.register_forward_pre_hook(lambda _module, inputs: (inputs[0].contiguous(), *inputs[1:]))
    return Encoder(model, encoder.tokenizer, encoder.source)


def share_in_int8(before: nn.Module, after: nn.Module) -> float:
    """Share of the numbers in `before` whose module holds an int8 weight in `after`.

    A matrix that two modules share counts for each of them: quantization cuts such ties.
    """
    int8 = [name for name, kind in describe.weight_dtypes(after).items() if kind in ("torch.qint8", "torch.quint8")]
    parameters = dict(before.named_parameters(remove_duplicate=False))
    return sum(parameters[f"{name}.weight"].numel() for name in int8) / sum(p.numel() for p in parameters.values())


@torch.no_grad()
def embed(encoder: Encoder, texts: Sequence[str], batch_size: int = 16) -> Tensor:
    """One unit vector for each text, (texts, width): the mean of its tokens' last hidden states, padding left out.

    Dynamic int8 layers take one scale for a whole batch, padding included. So the int8 vector of a text depends on what
    else is in its batch, unless ``batch_size=1``.
    """
    limit = min(128, getattr(encoder.model.config, "max_position_embeddings", 128))
    vectors = []
    for start in range(0, len(texts), batch_size):
        tokens = encoder.tokenizer(
            list(texts[start : start + batch_size]), padding=True, truncation=True, max_length=limit,
            return_tensors="pt", return_token_type_ids=False,
        )  # fmt: skip
        hidden = encoder.model(**tokens).last_hidden_state  # (batch, time, width)
        kept = tokens["attention_mask"][..., None]  # (batch, time, 1)
        vectors.append((hidden * kept).sum(dim=1) / kept.sum(dim=1))
    return F.normalize(torch.cat(vectors), dim=1)


def ranks(queries: Tensor, passages: Tensor) -> Tensor:
    """Rank of passage i among all passages for query i, by cosine: 1 is first; int64 (queries,). A tie counts as lost.

    Parameters
    ----------
    queries, passages : Tensor, (queries, width)
        Unit vectors.

    Raises
    ------
    ValueError
        If a vector is not finite.
    """
    scores = queries @ passages.T  # (queries, passages)
    if not scores.isfinite().all():
        raise ValueError("a vector holds nan or inf, so nothing can be ranked: does the model overflow?")
    return (scores >= scores.diagonal()[:, None]).sum(dim=1)


def recall_at_1(ranks: Tensor) -> float:
    """Share of queries whose passage was found first."""
    return (ranks == 1).double().mean().item()


def mean_reciprocal_rank(ranks: Tensor) -> float:
    return (1 / ranks.double()).mean().item()


def documentation_tasks(passages: int = 100) -> list[Task]:
    """Two tasks over Python's documentation: title → help topic, and first sentence → rest of the passage.

    Nothing is trained or chosen on them; the second one takes held-out documents only. Some titles stand word for word
    in their topic, which makes the first task the easier one.
    """
    titles, bodies = [], []
    for document in data.topic_documents():
        title, _, body = document.text.decode(errors="replace").partition("\n")
        if body.strip() and title.strip() not in titles:
            titles.append(title.strip())
            bodies.append(body.strip(" *=-~^\n"))
    firsts, rests = [], []
    for document in data.split_documents("held_out"):
        first, _, rest = re.sub(r"\s+", " ", document.text.decode(errors="replace")).partition(". ")
        fits = len(first) >= 30 and len(rest) >= 100 and first not in firsts
        if document.name.startswith("library:") and fits and first not in rest:  # a repeat would be no question
            firsts.append(first)
            rests.append(rest[:600])
    return [
        Task("title → topic", titles[:passages], [body[:600] for body in bodies[:passages]]),
        Task("first sentence → rest", firsts[:passages], rests[:passages]),
    ]


def compare(name_or_folder: str | Path, tasks: Sequence[Task]) -> Report:
    """Quantize an encoder and evaluate it beside its float original on every task."""
    original = load(name_or_folder)
    small = quantized(original)
    found, cosine = {}, {}
    for task in tasks:
        vectors = [
            (embed(encoder, task.queries, batch_size), embed(encoder, task.passages, batch_size))
            for encoder, batch_size in ((original, 16), (small, 1))  # alone, an int8 text has a scale of its own
        ]
        found[task.name] = tuple(ranks(*pair) for pair in vectors)
        (q, p), (q8, p8) = vectors
        cosine[task.name] = torch.cat([(q * q8).sum(dim=1), (p * p8).sum(dim=1)]).mean().item()
    return Report(
        source=original.source,
        float_bytes=metrics.file_bytes(original.model),
        int8_bytes=metrics.file_bytes(small.model),
        share=share_in_int8(original.model, small.model),
        ranks=found,
        cosine=cosine,
    )


def _word_tokenizer(texts: Sequence[str], size: int = 2000) -> Any:
    """A tokenizer of the most frequent words of `texts`; counted here, because trained ones differ from run to run."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for t in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(t)))
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:size]
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *frequent])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def _transformers() -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import transformers
    except ImportError:
        raise Unavailable(f"the optional package transformers is not installed: {CURE}") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
