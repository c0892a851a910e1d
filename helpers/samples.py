"""Awkward inputs that checks share: the same numbers in odd memory, and small models that are each odd in one way.

For checks only. Introduced in unit 00.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn


def awkward(x: Tensor) -> list[tuple[str, Tensor]]:
    """The numbers of `x` in other forms; what a function returns must not depend on which it gets.

    Parameters
    ----------
    x : Tensor
        Any shape and dtype.

    Returns
    -------
    list of (str, Tensor)
        What to call it in a message ("a transposed view") and the tensor, which equals `x`: a view of transposed memory
        and one with gaps (neither is contiguous where the shape allows it), one that begins inside its storage, and,
        for floats, an `nn.Parameter` and a result that carries a gradient.
    """
    forms = [
        ("a transposed view", x.mT.contiguous().mT if x.dim() >= 2 else x.clone()),
        ("a slice with gaps in memory", torch.stack([x, x], dim=-1)[..., 0]),
        (
            "a slice that begins inside its storage",
            torch.cat([x.flatten()[:3], x.flatten()])[min(3, x.numel()) :].view(x.shape),
        ),
    ]
    if x.is_floating_point():
        forms.append(("an nn.Parameter", nn.Parameter(x.detach().clone())))
        forms.append(("a result with a gradient", x.detach().clone().requires_grad_() * 1))
    return forms


def advanced(seed: int, draws: int = 7) -> torch.Generator:
    """A generator that others have used before: who takes only its seed, or makes a new one of it, is seen."""
    generator = torch.Generator().manual_seed(seed)
    torch.rand(draws, generator=generator)
    return generator


def words_between(before: Tensor, after: Tensor, limit: int) -> int:
    """How many 32-bit words a generator gave between two of its states; `limit` if it gave as many, or more.

    One index of `torch.randint` takes one word, one float64 of `torch.rand` takes two.
    """
    again = torch.Generator()
    again.set_state(before)
    for count in range(limit):
        if torch.equal(again.get_state(), after):
            return count
        torch.randint(2, (1,), generator=again)
    return limit


@contextmanager
def other_generators() -> Iterator[list[str]]:
    """Names of the generators of random numbers that are made inside of the block, in a list that grows."""
    made: list[str] = []

    def noted(owner: object, name: str) -> object:
        genuine = getattr(owner, name)

        class Like(type):
            def __instancecheck__(cls, thing: object) -> bool:
                return isinstance(thing, genuine)

            def __call__(cls, *arguments: object, **options: object) -> object:
                made.append(f"{owner.__name__}.{name}")
                return genuine(*arguments, **options)

        return Like(name, (), {})

    owners = (np.random, "RandomState"), (random, "Random"), (torch, "Generator")
    default_rng = np.random.default_rng
    with ExitStack() as stack:
        for owner, name in owners:
            stack.enter_context(mock.patch.object(owner, name, noted(owner, name)))
        make = lambda *seeds: made.append("numpy.random.default_rng") or default_rng(*seeds)  # noqa: E731
        stack.enter_context(mock.patch.object(np.random, "default_rng", make))
        yield made


def zoo(seed: int = 0, width: int = 8) -> list[tuple[str, nn.Module, Tensor]]:
    """Small models in eval mode, each odd in one way, with an input: ``for what, model, x in zoo(): …``.

    Every model holds at least two `nn.Linear`; `x` has shape (5, width), float32.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        models = {
            "a model with frozen parameters": _frozen(_plain(width)),
            "Sequentials inside Sequentials": nn.Sequential(nn.Sequential(_plain(width), nn.ReLU()), _plain(width)),
            "a model with a forward of its own": _OwnForward(width),
            "a model with two equal matrices that are not tied": _two_equal(width),
            "a model with one matrix in three places": _three_ties(width),
            "a model with buffers": _WithBuffers(width),
            "a model with a convolution": _WithConvolution(width),
            "a model that reads one output twice": _Twice(width),
            "a model without biases": nn.Sequential(
                nn.Linear(width, 12, bias=False), nn.GELU(), nn.Linear(12, 4, bias=False)
            ),
            "a model with a layer that is called twice": _SameLayerTwice(width),
        }
        x = torch.randn(5, width)
    return [(what, model.eval(), x.clone()) for what, model in models.items()]


def _plain(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 12), nn.ReLU(), nn.Linear(12, width))


def _frozen(model: nn.Module) -> nn.Module:
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return model


def _two_equal(width: int) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    with torch.no_grad():
        model[2].weight.copy_(model[0].weight)
    return model


def _three_ties(width: int) -> nn.Sequential:
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(3)))
    model[1].weight = model[2].weight = model[0].weight
    return model


class _OwnForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.second, self.first = nn.Linear(12, width), nn.Linear(width, 12)  # not in the order of use

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x).tanh())


class _WithBuffers(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = _plain(width)
        self.register_buffer("shift", torch.randn(width))
        self.register_buffer("steps", torch.tensor(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x + self.shift)


class _WithConvolution(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.body = nn.Conv1d(1, 1, 3, padding=1), _plain(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.mix(x[:, None])[:, 0])


class _Twice(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(width, 12), nn.Linear(12, width), nn.Linear(12, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.left(hidden.relu()) * self.right(hidden)


class _SameLayerTwice(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.step, self.last = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.step(self.step(x).relu()).relu())
