"""The course model with one fused kernel for attention, in float and in int8: the fastest variant of the course.

PyTorch's `quantized::matmul`, which its eager int8 modules call for a product of two *activations*, turns both sides
into floats, multiplies those, and quantizes the result. So here attention stays float between its projections, and
`F.scaled_dot_product_attention` computes scores, mask, softmax and mix in one pass. All Linear layers can be int8.
Same weights, names and (up to rounding) float outputs as `helpers.models.TransformerLM`. Unit 05 measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.ao.quantization as tq
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.models import FeedForward, ModelConfig, SelfAttention, TransformerLM


class FusedAttention(SelfAttention):
    """Self-attention whose core is one float kernel; without a mask it is causal."""

    core = staticmethod(F.scaled_dot_product_attention)

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.quant_mix, self.dequant_out = tq.QuantStub(), tq.DeQuantStub()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.quant(x)
        q, k, v = (self.split(self.dequant(part(x))) for part in (self.q, self.k, self.v))
        mixed = self.core(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.dequant_out(self.out(self.quant_mix(self.merge(mixed))))  # (batch, time, d_model)


class FusedFeedForward(FeedForward):
    """Two Linear layers that can be int8, with a float GELU between them."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__(d_model, d_ff)
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.quant_gelu, self.dequant_down = tq.QuantStub(), tq.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.dequant(self.up(self.quant(x))))  # (batch, time, d_ff)
        return self.dequant_down(self.down(self.quant_gelu(hidden)))


class FusedLM(TransformerLM):
    """`TransformerLM` with fused attention: ids (batch, time) in, float logits (batch, time, vocab_size) out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        for block in self.blocks:
            block.attention = FusedAttention(config.d_model, config.n_heads)
            block.ffn = FusedFeedForward(config.d_model, config.d_ff)
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids.contiguous())  # the int8 embedding refuses a view
        for block in self.blocks:
            x = block(x)
        return self.dequant(self.head(self.quant(self.norm(x))))  # (batch, time, vocab_size)


def fused(model: TransformerLM) -> FusedLM:
    """A float copy of `model` with fused attention, in eval mode: same weights; `model` is not touched."""
    twin = FusedLM(model.config)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def dynamic_int8(model: TransformerLM, keep: Callable[[str], bool] = lambda name: False) -> FusedLM:
    """`model` with fused attention, dynamic int8 Linear layers and an int8 embedding.

    `keep` says of a Linear's name whether it stays float.
    """
    twin = fused(model)
    recipe: dict[object, object] = {nn.Embedding: tq.float_qparams_weight_only_qconfig}
    for name, module in twin.named_modules():
        if isinstance(module, nn.Linear) and not keep(name):
            recipe[name] = tq.default_dynamic_qconfig
    return tq.quantize_dynamic(twin, recipe)


@torch.no_grad()
def static_int8(
    model: TransformerLM, batches: Iterable[Tensor], observer: type[nn.Module] = tq.MinMaxObserver
) -> FusedLM:
    """`model` with fused attention, static int8 Linear layers and an int8 embedding, calibrated on `batches` of ids.

    Raises
    ------
    ValueError
        If there is no batch: without calibration every scale would be 1.
    """
    twin = fused(model)
    default = tq.get_default_qconfig(torch.backends.quantized.engine)
    seven_or_eight = default.activation().quant_max  # 127 where the engine multiplies only 7-bit inputs exactly
    for module in twin.modules():
        if isinstance(module, tq.QuantStub | tq.DeQuantStub | nn.Linear):
            qmax = seven_or_eight if isinstance(module, tq.QuantStub) else 255
            module.qconfig = tq.QConfig(observer.with_args(quant_min=0, quant_max=qmax), default.weight)
    twin.embedding.qconfig = tq.float_qparams_weight_only_qconfig
    tq.prepare(twin, inplace=True)
    seen = 0
    for ids in batches:
        twin(ids)
        seen += 1
    if not seen:
        raise ValueError("there is nothing to calibrate on: the list of batches is empty.")
    return tq.convert(twin)
