"""A network small enough to send through every quantization API: it guesses the next byte from the last eight.

An embedding, then a *body* of three Linear layers with ReLU between them (after Bengio et al. 2003, "A Neural
Probabilistic Language Model"). The body sees floats only, so every API can take it. Trained in seconds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import data, metrics

CONTEXT = 8


class NextByteNet(nn.Module):
    """Ids (batch, 8) in, next-byte logits (batch, 256) out."""

    def __init__(self, d_embedding: int = 24, d_hidden: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, d_embedding)
        self.body = nn.Sequential(
            nn.Linear(CONTEXT * d_embedding, d_hidden), nn.ReLU(),
            nn.Linear(d_hidden, d_hidden), nn.ReLU(),
            nn.Linear(d_hidden, 256),
        )  # fmt: skip

    def features(self, ids: Tensor) -> Tensor:
        """What the body sees: the eight embeddings side by side, (batch, 8 * d_embedding)."""
        return self.embedding(ids).flatten(1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.body(self.features(ids))


def examples(split: str, documents: int, length: int = 129) -> tuple[Tensor, Tensor]:
    """Eight bytes (count, 8) and the byte that follows (count,), from the beginnings of `documents` documents."""
    windows = data.windows(split, documents, length).unfold(1, CONTEXT + 1, 1)  # (documents, positions, 9)
    windows = windows.flatten(0, 1)  # (count, 9)
    return windows[:, :CONTEXT], windows[:, CONTEXT]


def fit(net: nn.Module, ids: Tensor, targets: Tensor, steps: int, lr: float, seed: int = 0) -> nn.Module:
    """Train `net` in place on random batches of 1,024 examples; returns it, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    net.train()
    for _ in range(steps):
        chosen = torch.randint(len(ids), (1024,), generator=generator)
        loss = F.cross_entropy(net(ids[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def bits(net: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """Bits that `net` needs for each target byte, (count,)."""
    return F.cross_entropy(net(ids), targets, reduction="none") / metrics.NATS_PER_BIT
