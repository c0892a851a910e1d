"""A small encoder-decoder that can be quantized throughout: what the book's capstone wanted to be.

Pre-LN blocks on a float residual stream, explicit Linear layers, products of tensors as `FloatFunctional`, and
masks, softmax and GELU in float, as in `helpers.quantizable`. In float, its stubs do nothing. Unit 06 builds it.

Reference: Vaswani et al. 2017, "Attention Is All You Need" (arXiv:1706.03762), section 3.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import torch
import torch.ao.quantization as tq
from torch import Tensor, nn

from helpers.models import causal_mask, sinusoidal_positions
from helpers.quantizable import QuantizableAttention, QuantizableFeedForward

PYTORCH_NAMES = {  # what nn.Transformer calls a part, and what we do
    "encoder.layers.": "encoder.",
    "decoder.layers.": "decoder.",
    "encoder.norm.": "encoder_norm.",
    "decoder.norm.": "decoder_norm.",
    "self_attn.": "attention.",
    "multihead_attn.": "cross.",
    "out_proj.": "out.",
    "linear1.": "ffn.up.",
    "linear2.": "ffn.down.",
}
FEEDS_LINEAR = ("quant1", "quant2", "quant3", "ffn.quant", ".mix")  # ends of the names of what a Linear reads


@dataclass(frozen=True)
class Seq2SeqConfig:
    """Everything needed to rebuild a `Seq2Seq`; `pad`, `start` and `end` are ids, `n_heads` divides `d_model`."""

    vocab_size: int
    source_length: int
    target_length: int
    d_model: int = 64
    n_heads: int = 4
    n_layers: int = 2
    d_ff: int = 256
    pad: int = 0
    start: int = 1
    end: int = 2

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model={self.d_model} cannot be split into n_heads={self.n_heads} heads of equal "
                "width: choose a d_model that is a multiple of n_heads."
            )

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


class Attention(QuantizableAttention):
    """Attention from the positions of `x` to those of `memory`; self-attention if both are the same tensor."""

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        mixed = self.mix.matmul(self.quant(self.probabilities(x, memory, mask)), self.split(self.v(memory)))
        return self.out(self.merge(mixed))  # (batch, query, d_model)

    def probabilities(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """Who looks at whom, in float: (batch, heads, query, key); True in `mask` means "may look"."""
        q, k = self.split(self.q(x)), self.split(self.k(memory))  # (batch, heads, time, d_head)
        scores = self.dequant(self.scores.matmul(q, k.transpose(-2, -1))) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(dim=-1)


class EncoderBlock(nn.Module):
    """Self-attention over the source, then feed-forward; float in, float out."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.d_model)
        self.quant1 = tq.QuantStub()
        self.attention = Attention(config.d_model, config.n_heads)
        self.dequant1 = tq.DeQuantStub()
        self.norm2 = nn.LayerNorm(config.d_model)
        self.quant2 = tq.QuantStub()
        self.ffn = QuantizableFeedForward(config.d_model, config.d_ff)
        self.dequant2 = tq.DeQuantStub()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.quant1(self.norm1(x))
        x = x + self.dequant1(self.attention(h, h, mask))  # (batch, source, d_model)
        return x + self.dequant2(self.ffn(self.quant2(self.norm2(x))))


class DecoderBlock(nn.Module):
    """Causal self-attention over the target, attention to the source, then feed-forward; `memory` is quantized."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.d_model)
        self.quant1 = tq.QuantStub()
        self.attention = Attention(config.d_model, config.n_heads)
        self.dequant1 = tq.DeQuantStub()
        self.norm2 = nn.LayerNorm(config.d_model)
        self.quant2 = tq.QuantStub()
        self.cross = Attention(config.d_model, config.n_heads)
        self.dequant2 = tq.DeQuantStub()
        self.norm3 = nn.LayerNorm(config.d_model)
        self.quant3 = tq.QuantStub()
        self.ffn = QuantizableFeedForward(config.d_model, config.d_ff)
        self.dequant3 = tq.DeQuantStub()

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor, memory_mask: Tensor) -> Tensor:
        h = self.quant1(self.norm1(x))
        x = x + self.dequant1(self.attention(h, h, mask))  # (batch, target, d_model)
        x = x + self.dequant2(self.cross(self.quant2(self.norm2(x)), memory, memory_mask))
        return x + self.dequant3(self.ffn(self.quant3(self.norm3(x))))


class Seq2Seq(nn.Module):
    """Ids of the source (batch, source) and of the target so far (batch, target) in, float logits out."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)  # of source and target alike
        length = max(config.source_length, config.target_length)
        self.register_buffer("positions", sinusoidal_positions(length, config.d_model), persistent=False)
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.n_layers))
        self.encoder_norm = nn.LayerNorm(config.d_model)
        self.quant_memory = tq.QuantStub()
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.n_layers))
        self.decoder_norm = nn.LayerNorm(config.d_model)
        self.quant = tq.QuantStub()
        self.head = nn.Linear(config.d_model, config.vocab_size)
        self.dequant = tq.DeQuantStub()
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)

    def embed(self, ids: Tensor) -> Tensor:
        if ids.shape[1] > len(self.positions):
            raise ValueError(
                f"{ids.shape[1]} ids in a row are too many: this model has {len(self.positions)} positions."
            )
        vectors = self.embedding(ids.contiguous()) * math.sqrt(self.config.d_model)
        return vectors + self.positions[: ids.shape[1]]  # (batch, time, d_model)

    def source_mask(self, source: Tensor) -> Tensor:
        """True where a source position holds a character: (batch, 1, 1, source), for every head and query."""
        return (source != self.config.pad)[:, None, None, :]

    def encode(self, source: Tensor) -> Tensor:
        """What the decoder may look at: (batch, source, d_model), quantized once int8."""
        x, mask = self.embed(source), self.source_mask(source)
        for block in self.encoder:
            x = block(x, mask)
        return self.quant_memory(self.encoder_norm(x))

    def decode(self, target: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """Logits (batch, target, vocab_size) of what follows each position of `target`, which begins with START."""
        x, mask = self.embed(target), causal_mask(target.shape[1]).to(target.device)
        for block in self.decoder:
            x = block(x, memory, mask, memory_mask)
        return self.dequant(self.head(self.quant(self.decoder_norm(x))))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.decode(target, self.encode(source), self.source_mask(source))


def our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict of an `nn.Transformer`, or of one of its layers, copied under the names of `Seq2Seq`.

    PyTorch keeps the weights of query, key and value in one matrix, `in_proj_weight`; here they are three.
    """
    ours = {}
    for name, tensor in state.items():
        for theirs, mine in PYTORCH_NAMES.items():
            name = name.replace(theirs, mine)
        if "in_proj_" in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                ours[name.replace("in_proj_", f"{part}.")] = rows.clone()
        else:
            ours[name] = tensor.clone()
    return ours


def shifted(target: Tensor, start: int = 1) -> Tensor:
    """What the decoder reads to predict `target`: START and all but the last id, (batch, target)."""
    return torch.cat([torch.full_like(target[:, :1], start), target[:, :-1]], dim=1)


@torch.no_grad()
def greedy(model: Seq2Seq, source: Tensor) -> Tensor:
    """The likeliest id at every step, `target_length` steps: int64 (batch, target_length)."""
    memory, mask = model.encode(source), model.source_mask(source)
    ids = torch.full((len(source), 1), model.config.start)
    for _ in range(model.config.target_length):
        ids = torch.cat([ids, model.decode(ids, memory, mask)[:, -1:].argmax(dim=-1)], dim=1)
    return ids[:, 1:]


@torch.no_grad()
def exact_matches(model: Seq2Seq, source: Tensor, target: Tensor, batch: int = 250) -> Tensor:
    """Whether the greedy answer to each source is right in every character: bool (count,).

    Raises
    ------
    ValueError
        If `target` is not (count, target_length): PyTorch would compare a row with all the others.
    """
    if target.shape != (len(source), model.config.target_length):
        raise ValueError(
            f"{len(source)} sources need targets of shape {(len(source), model.config.target_length)}, "
            f"not {tuple(target.shape)}."
        )
    return torch.cat([
        (greedy(model, s) == t).all(dim=1) for s, t in zip(source.split(batch), target.split(batch), strict=True)
    ])  # fmt: skip


def prepare(model: Seq2Seq) -> Seq2Seq:
    """A copy with observers, to be shown calibration data and then given to `torch.ao.quantization.convert`."""
    prepared = copy.deepcopy(model).eval()
    default = tq.get_default_qconfig(torch.backends.quantized.engine)
    qmax = default.activation().quant_max  # 127 where the engine multiplies only 7-bit inputs exactly
    for name, module in prepared.named_modules():
        feeds_linear = name in ("quant", "quant_memory") or name.endswith(FEEDS_LINEAR)
        observer = tq.MinMaxObserver.with_args(quant_min=0, quant_max=qmax if feeds_linear else 255)
        module.qconfig = tq.QConfig(activation=observer, weight=default.weight)
        if isinstance(module, nn.LayerNorm):
            module.qconfig = None  # it works on the residual stream, which stays float
    prepared.embedding.qconfig = tq.float_qparams_weight_only_qconfig
    return tq.prepare(prepared, inplace=True)


@torch.no_grad()
def static_int8(model: Seq2Seq, batches: Iterable[tuple[Tensor, Tensor]]) -> Seq2Seq:
    """`model` in static int8, embedding included, calibrated on batches of (source, target) ids; a copy.

    Raises
    ------
    ValueError
        If there is no batch: without calibration every scale would be 1.
    """
    prepared, seen = prepare(model), 0
    for source, target in batches:
        prepared(source, shifted(target, model.config.start))
        seen += 1
    if not seen:
        raise ValueError("there is nothing to calibrate on: the list of batches is empty.")
    return tq.convert(prepared)
