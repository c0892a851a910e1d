"""The course model: a byte-level, pre-LN, decoder-only Transformer small enough to read in one sitting.

Every matrix product with a weight is an explicit ``nn.Linear`` (q, k, v, out, up, down, head), because a
weight hidden in a fused parameter, as in ``nn.MultiheadAttention``, is invisible to PyTorch's quantizers.

References
----------
Vaswani et al. 2017, "Attention Is All You Need" (arXiv:1706.03762): attention, sinusoidal positions.
Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture" (arXiv:2002.04745): pre-LN.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

BYTES = 256  # the vocabulary: one token per byte value, so there is no tokenizer to explain or to ship


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to rebuild a `TransformerLM`; `d_model` must be divisible by `n_heads`."""

    vocab_size: int = BYTES
    context: int = 256
    d_model: int = 256
    n_heads: int = 4
    n_layers: int = 4
    d_ff: int = 1024
    tied_head: bool = True

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model={self.d_model} cannot be split into n_heads={self.n_heads} heads of equal "
                "width: choose a d_model that is a multiple of n_heads."
            )

    def to_dict(self) -> dict[str, int | bool]:
        return asdict(self)


def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """Table of fixed position vectors (Vaswani et al. 2017, section 3.5).

    Parameters
    ----------
    length : int
        Number of positions, counted from 0.
    d_model : int
        Width of a vector; even, because sines and cosines come in pairs.

    Returns
    -------
    Tensor, float32, (length, d_model)
        Even columns hold sines, odd columns cosines, of ``position / 10000 ** (2 * i / d_model)``.

    Raises
    ------
    ValueError
        If `d_model` is odd.
    """
    if d_model % 2:
        raise ValueError(f"d_model={d_model} is odd: sines and cosines come in pairs, so it must be even.")
    position = torch.arange(length, dtype=torch.float64)[:, None]  # (length, 1)
    frequency = 10000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)  # (d_model / 2,)
    angle = position * frequency  # (length, d_model / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()  # (length, d_model)


def causal_mask(length: int) -> Tensor:
    """Boolean (length, length) mask, True where the query (row) may look at the key (column)."""
    return torch.ones(length, length, dtype=torch.bool).tril()


class SelfAttention(nn.Module):
    """Multi-head self-attention from four explicit Linear layers."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q = nn.Linear(d_model, d_model)
        self.k = nn.Linear(d_model, d_model)
        self.v = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)

    def split(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        return x.view(batch, time, self.n_heads, width // self.n_heads).transpose(1, 2)  # (batch, heads, time, d_head)

    def merge(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)  # (batch, heads, time, d_head) -> (batch, time, d_model)

    def probabilities(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Who looks at whom: (batch, heads, query, key), each row sums to 1."""
        q, k = self.split(self.q(x)), self.split(self.k(x))  # (batch, heads, time, d_head)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (batch, heads, query, key)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(dim=-1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        mixed = self.probabilities(x, mask) @ self.split(self.v(x))  # (batch, heads, query, d_head)
        return self.out(self.merge(mixed))  # (batch, time, d_model)


class FeedForward(nn.Module):
    """Two Linear layers with a GELU between them, applied to every position alone."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff)
        self.activation = nn.GELU()
        self.down = nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))  # (batch, time, d_model)


class Block(nn.Module):
    """Pre-LN block: each half normalizes, computes, and adds its result to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.d_model)
        self.attention = SelfAttention(config.d_model, config.n_heads)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.ffn = FeedForward(config.d_model, config.d_ff)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)  # (batch, time, d_model)
        return x + self.ffn(self.norm2(x))


class TransformerLM(nn.Module):
    """Byte-level language model: ids (batch, time) in, next-byte logits (batch, time, vocab_size) out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.register_buffer("positions", sinusoidal_positions(config.context, config.d_model), persistent=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.initialize()
        if config.tied_head:
            self.head.weight = self.embedding.weight

    def initialize(self) -> None:
        """Small normal weights; the layers that write into the residual stream start smaller (GPT-2)."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                writes_residual = name.endswith(("attention.out", "ffn.down"))
                nn.init.normal_(
                    module.weight, std=0.02 / (math.sqrt(2 * self.config.n_layers) if writes_residual else 1)
                )
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def embed(self, ids: Tensor) -> Tensor:
        """Token vectors, scaled by sqrt(d_model) to the size of the positions, plus positions."""
        time = ids.shape[1]
        if time > self.config.context:
            raise ValueError(
                f"the input has {time} bytes but the model was built for at most {self.config.context}: "
                "pass a shorter window."
            )
        return self.embedding(ids) * math.sqrt(self.config.d_model) + self.positions[:time]  # (batch, time, d_model)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        mask = causal_mask(ids.shape[1]).to(ids.device)  # (query, key)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))  # (batch, time, vocab_size)

    @torch.no_grad()
    def attention_maps(self, ids: Tensor) -> list[Tensor]:
        """Attention probabilities of every block, each (batch, heads, query, key)."""
        x, maps = self.embed(ids), []
        mask = causal_mask(ids.shape[1]).to(ids.device)
        for block in self.blocks:
            maps.append(block.attention.probabilities(block.norm1(x), mask))
            x = block(x, mask)
        return maps

    @torch.no_grad()
    def generate(
        self, ids: Tensor, new_tokens: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Append `new_tokens` sampled bytes to `ids` (batch, time); temperature 0 takes the likeliest byte."""
        if ids.shape[1] == 0:
            raise ValueError("the prompt is empty: give at least one byte to start from.")
        for _ in range(new_tokens):
            logits = self(ids[:, -self.config.context :])[:, -1]  # (batch, vocab_size)
            if temperature == 0:
                chosen = logits.argmax(dim=-1, keepdim=True)
            else:
                chosen = torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)
            ids = torch.cat([ids, chosen], dim=1)  # (batch, time + 1)
        return ids
