"""What every entry of "the book, corrected" is made of: its form, small models, and how an error is measured."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import (
    DeQuantStub,
    QConfig,
    QuantStub,
    QuantWrapper,
    convert,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
)

from helpers.errors import COLOURS

INTRODUCTION = "1, introduction to Transformer models"
PYTORCH = "2, PyTorch and quantization techniques"
LINEARS = "4, kinds of Linear layers"
DESIGN = "4, Transformer design for quantization"
CONCLUSION = "6, conclusion"


@dataclass(frozen=True)
class Snippet:
    """One snippet or claim of the book: what it says, what happens, what works, and the two runs that prove it."""

    number: int
    chapter: str  # of the book; two of its drafts are a chapter 4
    says: str  # in our words
    broken: Callable[[], object]  # makes the book's call; of a silent failure, it asserts what happens
    message: str | None  # an exact part of the error's message; None for a silent failure
    error: type[Exception] | None
    happens: str
    works: str
    repaired: Callable[[], None]  # runs the correction and asserts that it does what was promised
    unit: str  # of the course
    cpu_build_only: bool = False  # a PyTorch with CUDA libraries fails in another way


def must_fail(call: Callable[[], object], error: type[Exception], message: str) -> None:
    """Assert that `call` raises exactly this type, and that the message has this part."""
    try:
        call()
    except Exception as raised:
        text = COLOURS.sub("", str(raised))
        assert type(raised) is error, f"{error.__name__} was expected, and {type(raised).__name__} came: {text[:300]}"
        assert message in text, f"the message was expected to say {message!r}, and it says {text[:300]!r}"
    else:
        raise AssertionError(f"{error.__name__} was expected ({message!r}), and nothing failed")


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Norm of the difference, divided by the norm of what was expected."""
    return ((result - expected).norm() / expected.norm()).item()


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normally distributed numbers, the same ones in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def token_ids(*shape: int, below: int, seed: int = 0) -> Tensor:
    """Token ids from 0 to `below` - 1, the same ones in every run."""
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def embedding(rows: int, width: int) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(rows, width).eval()


def network(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with a ReLU between each two."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def encoder(width: int = 32, layers: int = 2, batch_first: bool = False) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=batch_first)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()


def qconfig() -> QConfig:
    """PyTorch's static settings for the int8 engine in use."""
    return get_default_qconfig(torch.backends.quantized.engine)


def prepared(model: nn.Module, settings: QConfig | None = None) -> nn.Module:
    """A copy of `model` with observers; without `settings`, those of the engine (children may have their own)."""
    model = copy.deepcopy(model).eval()
    model.qconfig = settings or qconfig()
    return prepare(model)


def static_int8(model: nn.Module, batch: Tensor, settings: QConfig | None = None) -> nn.Module:
    """A statically quantized copy of `model`, which has its own stubs, calibrated with one batch."""
    observed = prepared(model, settings)
    with torch.no_grad():
        observed(batch)
    return convert(observed)


def static_linears(model: nn.Module, batch: Tensor) -> nn.Module:
    """A copy of `model` in which every Linear is static int8 between its own pair of stubs; the rest stays float."""
    model = copy.deepcopy(model).eval()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            wrapped = QuantWrapper(module)
            wrapped.qconfig = qconfig()
            model.set_submodule(name, wrapped)
    observed = prepare(model)
    with torch.no_grad():
        observed(batch)
    return convert(observed)


def ready_for_qat(model: nn.Module) -> nn.Module:
    """A copy of `model`, which has its own stubs, with fake quantization, in training mode."""
    model = copy.deepcopy(model).train()
    model.qconfig = get_default_qat_qconfig(torch.backends.quantized.engine)
    return prepare_qat(model)


def train(
    model: nn.Module, inputs: Tensor, targets: Tensor, steps: int = 60, rate: float = 0.01
) -> tuple[float, float]:
    """Train with Adam; returns the first and the last loss."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(steps):
        loss = F.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


class QuantizableBlock(nn.Module):
    """A pre-LN block that can become static int8: softmax(QKᵀ)V in float, every Linear, norm and addition in int8."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.enter, self.enter_again, self.leave = QuantStub(), QuantStub(), DeQuantStub()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.relu, self.down = nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        self.add1, self.add2 = FloatFunctional(), FloatFunctional()

    def split(self, x: Tensor) -> Tensor:
        return self.leave(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (batch, heads, time, d_head)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)  # (batch, time, width)
        normed = self.norm1(x)
        mixed = F.scaled_dot_product_attention(*(self.split(linear(normed)) for linear in (self.q, self.k, self.v)))
        mixed = self.enter_again(mixed.transpose(1, 2).flatten(2))  # (batch, time, width)
        x = self.add1.add(x, self.out(mixed))
        return self.leave(self.add2.add(x, self.down(self.relu(self.up(self.norm2(x))))))


def block(width: int = 32, heads: int = 4) -> QuantizableBlock:
    torch.manual_seed(0)
    return QuantizableBlock(width, heads).eval()
