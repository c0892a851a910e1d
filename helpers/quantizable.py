"""The course model, rewritten so that PyTorch can quantize it statically from the first block to the last.

Same weights, same names, same float outputs as `helpers.models.TransformerLM`; what differs are the places where
quantizers can be put. Unit 04 builds the parts one by one (exercises 4.4 to 4.6).

What stays float, and why: PyTorch's GELU of codes reuses the scale of its input; `convert` puts in no int8 softmax; and
a mask of minus infinity must never reach an observer. The two products of attention read and write codes, but inside
`quantized::matmul` PyTorch multiplies floats, on x86, fbgemm, onednn and qnnpack alike. What feeds a Linear gets as
many bits as the engine multiplies exactly (7 with x86 and fbgemm); all other tensors get 8.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.ao.nn.quantized import DeQuantize, FloatFunctional, Quantize

from helpers.models import FeedForward, ModelConfig, SelfAttention, TransformerLM, causal_mask

Residual = Literal["float", "int8"]


class QuantizableAttention(SelfAttention):
    """Self-attention on quantized tensors; its two products are float inside, and scale, mask and softmax are float."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)
        self.scores = FloatFunctional()
        self.dequant = tq.DeQuantStub()
        self.quant = tq.QuantStub()
        self.mix = FloatFunctional()

    def probabilities(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Who looks at whom, float32 before and after quantization: (batch, heads, query, key), rows sum to 1."""
        q, k = self.split(self.q(x)), self.split(self.k(x))  # (batch, heads, time, d_head)
        scores = self.dequant(self.scores.matmul(q, k.transpose(-2, -1))) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))  # float: no observer ever sees the infinity
        return scores.softmax(dim=-1)  # (batch, heads, query, key)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        mixed = self.mix.matmul(self.quant(self.probabilities(x, mask)), self.split(self.v(x)))
        return self.out(self.merge(mixed))  # (batch, time, d_model)


class QuantizableFeedForward(FeedForward):
    """Two quantized Linear layers; the GELU between them is float, so that its output has a scale of its own."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__(d_model, d_ff)
        self.dequant = tq.DeQuantStub()
        self.quant = tq.QuantStub()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.quant(self.activation(self.dequant(self.up(x)))))  # (batch, time, d_model)


class Int8ResidualBlock(nn.Module):
    """Pre-LN block whose residual stream is quantized, too: quantized tensor in, quantized tensor out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.d_model)
        self.attention = QuantizableAttention(config.d_model, config.n_heads)
        self.add1 = FloatFunctional()
        self.norm2 = nn.LayerNorm(config.d_model)
        self.ffn = QuantizableFeedForward(config.d_model, config.d_ff)
        self.add2 = FloatFunctional()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.add1.add(x, self.attention(self.norm1(x), mask))  # (batch, time, d_model)
        return self.add2.add(x, self.ffn(self.norm2(x)))


class FloatResidualBlock(nn.Module):
    """Pre-LN block with quantized attention and feed-forward halves on a float residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.d_model)
        self.quant1 = tq.QuantStub()
        self.attention = QuantizableAttention(config.d_model, config.n_heads)
        self.dequant1 = tq.DeQuantStub()
        self.norm2 = nn.LayerNorm(config.d_model)
        self.quant2 = tq.QuantStub()
        self.ffn = QuantizableFeedForward(config.d_model, config.d_ff)
        self.dequant2 = tq.DeQuantStub()
        # Without a qconfig, convert leaves them in float.
        self.norm1.qconfig = self.norm2.qconfig = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.dequant1(self.attention(self.quant1(self.norm1(x)), mask))  # (batch, time, d_model)
        return x + self.dequant2(self.ffn(self.quant2(self.norm2(x))))


class QuantizableLM(TransformerLM):
    """`TransformerLM` with places for quantizers: ids (batch, time) in, float logits (batch, time, vocab_size) out.

    Parameters
    ----------
    config : ModelConfig
    residual : "float" or "int8"
        Whether the residual stream, which every block reads and adds to, is quantized as well.
    """

    def __init__(self, config: ModelConfig, residual: Residual = "float") -> None:
        if residual not in ("float", "int8"):
            raise ValueError(f'there is no residual stream "{residual}": choose "float" or "int8".')
        super().__init__(config)
        block = FloatResidualBlock if residual == "float" else Int8ResidualBlock
        self.blocks = nn.ModuleList(block(config) for _ in range(config.n_layers))
        self.residual = residual
        self.quant = tq.QuantStub()
        self.dequant = tq.DeQuantStub()
        if residual == "float":
            self.norm.qconfig = None

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids.contiguous())  # the int8 embedding refuses a view
        x = self.quant(x) if self.residual == "int8" else x
        mask = causal_mask(ids.shape[1]).to(ids.device)  # (query, key)
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        x = x if self.residual == "int8" else self.quant(x)
        return self.dequant(self.head(x))  # (batch, time, vocab_size)


def quantizable(model: TransformerLM, residual: Residual = "float") -> QuantizableLM:
    """A quantizable copy of `model` in eval mode: same weights, same outputs; `model` is not touched."""
    twin = QuantizableLM(model.config, residual)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def prepare(model: QuantizableLM) -> QuantizableLM:
    """A copy of `model` with an observer wherever int8 needs a scale; show it calibration data, then `convert` it."""
    prepared = copy.deepcopy(model).eval()
    weight = tq.get_default_qconfig(torch.backends.quantized.engine).weight
    for name, module in prepared.named_modules():
        makes_a_tensor = isinstance(module, FloatFunctional) or not list(module.children())
        if makes_a_tensor and getattr(module, "qconfig", weight) is not None:
            module.qconfig = tq.QConfig(activation=_observer(name, model.residual), weight=weight)
    prepared.embedding.qconfig = tq.float_qparams_weight_only_qconfig
    return tq.prepare(prepared, inplace=True)


def convert(prepared: QuantizableLM) -> QuantizableLM:
    """The int8 model of a calibrated `prepare`d one, which is not touched."""
    return tq.convert(prepared)


@torch.no_grad()
def static_int8(model: TransformerLM, batches: Iterable[Tensor], residual: Residual = "float") -> QuantizableLM:
    """`model` in static int8, embedding included, calibrated on `batches` of ids (batch, time); float logits out.

    Raises
    ------
    ValueError
        If there is no batch: without calibration every scale would be 1.
    """
    prepared, seen = prepare(quantizable(model, residual)), 0
    for ids in batches:
        prepared(ids)
        seen += 1
    if not seen:
        raise ValueError("there is nothing to calibrate on: the list of batches is empty.")
    return convert(prepared)


def crossings(model: nn.Module) -> tuple[int, int]:
    """How often one call goes from float to int8 and from int8 to float: (quantize nodes, dequantize nodes)."""
    modules = list(model.modules())
    return sum(isinstance(m, Quantize) for m in modules), sum(isinstance(m, DeQuantize) for m in modules)


def _observer(name: str, residual: Residual) -> Callable[[], nn.Module]:
    """What measures the range of the tensor that `name` makes.

    Probabilities, their products and the input of the head are narrow with rare large values: the histogram observer
    may cut those off. That this helps is not shown: for the probabilities unit 04 compares it with the whole range,
    and the difference is within two standard errors. Everywhere else the whole range is kept.
    """
    default = tq.get_default_qconfig(torch.backends.quantized.engine).activation
    sources = ("norm1", "norm2", "norm") if residual == "int8" else ("quant1", "quant2", "quant")
    feeds_linear = name in sources or name.endswith((*(f".{s}" for s in sources[:2]), ".ffn.quant", ".mix"))
    qmax = default().quant_max if feeds_linear else 255  # 127 where the engine multiplies only 7-bit inputs exactly
    if name.endswith((".attention.quant", ".mix")) or name == sources[2]:
        return tq.HistogramObserver.with_args(quant_min=0, quant_max=qmax)
    return tq.MinMaxObserver.with_args(quant_min=0, quant_max=qmax)
