"""Unit 04, exercises 4.4 to 4.6: what learners really write when they make a Transformer block quantizable."""

import copy
import math

import torch
import torch.ao.quantization as tq
import torch.nn.functional as F
from torch import nn
from torch.ao.nn.quantized import FloatFunctional

from helpers import quantizable
from helpers.models import ModelConfig
from tests.misconceptions.bank import right, wrong

# 4.4 attention


class Attention(nn.Module):
    """The right answer, each step of which a subclass can replace."""

    def __init__(self, attention):
        super().__init__()
        self.h = attention.n_heads
        for name in ("q", "k", "v", "out"):
            setattr(self, name, copy.deepcopy(getattr(attention, name)))
        self.scores, self.mix = FloatFunctional(), FloatFunctional()
        self.dequant, self.quant = tq.DeQuantStub(), tq.QuantStub()

    def split(self, x):
        return x.unflatten(2, (self.h, -1)).transpose(1, 2)

    def merge(self, x):
        return x.transpose(1, 2).flatten(2)

    def scale(self, q):
        return math.sqrt(q.shape[-1])

    def masked(self, scores, mask):
        return scores if mask is None else scores.masked_fill(~mask, float("-inf"))

    def weights(self, q, k, mask):
        scores = self.dequant(self.scores.matmul(q, k.transpose(-2, -1))) / self.scale(q)
        return self.quant(self.masked(scores, mask).softmax(-1))

    def forward(self, x, mask=None):
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        return self.out(self.merge(self.mix.matmul(self.weights(q, k, mask), v)))


class AddsTheMask(Attention):
    """The mask is a number that a FloatFunctional adds to the scores, before they are dequantized."""

    number = float("-inf")

    def __init__(self, attention):
        super().__init__(attention)
        self.plus = FloatFunctional()

    def bias(self, mask):
        return torch.zeros(mask.shape).masked_fill(~mask, self.number)

    def weights(self, q, k, mask):
        scores = self.scores.matmul(q, k.transpose(-2, -1))
        if mask is not None:
            scores = self.plus.add(scores, self.bias(mask))
        return self.quant((self.dequant(scores) / self.scale(q)).softmax(-1))


@wrong("ex_4_4", "an observer has seen an infinity")
class InfinityAddedInFrontOfAnObserver(AddsTheMask):
    pass


@wrong("ex_4_4", "a large negative number in front of an observer")
class LargeNumberAddedInFrontOfAnObserver(AddsTheMask):
    number = -1e9


@wrong("ex_4_4", "an observer has seen an infinity", like="InfinityAddedInFrontOfAnObserver")
class MaskWithAStubOfItsOwn(AddsTheMask):
    def __init__(self, attention):
        super().__init__(attention)
        self.mask_stub = tq.QuantStub()

    def bias(self, mask):
        return self.mask_stub(super().bias(mask))


@wrong("ex_4_4", "A mask is not data")
class SmallNumberAdded(AddsTheMask):
    number = -100.0


@wrong("ex_4_4", "A mask is not data", like="SmallNumberAdded")
class SmallNumberAddedByTheProduct(SmallNumberAdded):
    def __init__(self, attention):
        super().__init__(attention)
        del self.plus

    def weights(self, q, k, mask):
        scores = self.scores.matmul(q, k.transpose(-2, -1))
        if mask is not None:
            scores = self.scores.add(scores, self.bias(mask))
        return self.quant((self.dequant(scores) / self.scale(q)).softmax(-1))


class MasksCodes(Attention):
    """masked_fill on the product, before the DeQuantStub: no observer sees it."""

    number = float("-inf")

    def weights(self, q, k, mask):
        scores = self.scores.matmul(q, k.transpose(-2, -1))
        if mask is not None:
            scores = scores.masked_fill(~mask, self.number)
        return self.quant((self.dequant(scores) / self.scale(q)).softmax(-1))


@wrong("ex_4_4", "the mask was applied to quantized scores")
class InfinityAmongCodes(MasksCodes):
    pass


@wrong("ex_4_4", "the mask was applied to quantized scores", like="InfinityAmongCodes")
class LargeNumberAmongCodes(MasksCodes):
    number = -1e9


@wrong("ex_4_4", "the mask was applied to quantized scores", like="InfinityAmongCodes")
class WhereAmongCodes(MasksCodes):
    def weights(self, q, k, mask):
        scores = self.scores.matmul(q, k.transpose(-2, -1))
        if mask is not None:
            scores = torch.where(mask, scores, torch.full_like(scores, -1e9))
        return self.quant((self.dequant(scores) / self.scale(q)).softmax(-1))


@wrong("ex_4_4", "the mask was applied to quantized scores", like="InfinityAmongCodes")
class InPlaceAmongCodes(MasksCodes):
    def weights(self, q, k, mask):
        scores = self.scores.matmul(q, k.transpose(-2, -1))
        if mask is not None:
            scores.masked_fill_(~mask, -1e9)
        return self.quant((self.dequant(scores) / self.scale(q)).softmax(-1))


@wrong("ex_4_4", "not a copy")
class LayersNotCopied(Attention):
    def __init__(self, attention):
        super().__init__(attention)
        self.q, self.k, self.v, self.out = attention.q, attention.k, attention.v, attention.out


@wrong("ex_4_4", "not a copy", like="LayersNotCopied")
class WholeAttentionKept(Attention):
    def __init__(self, attention):
        super().__init__(attention)
        del self.q, self.k, self.v, self.out
        self.inner = attention

    def forward(self, x, mask=None):
        a = self.inner
        q, k, v = self.split(a.q(x)), self.split(a.k(x)), self.split(a.v(x))
        return a.out(self.merge(self.mix.matmul(self.weights(q, k, mask), v)))


@wrong("ex_4_4", "is a plain list")
class ThreeLayersInAList(Attention):
    def __init__(self, attention):
        super().__init__(attention)
        del self.q, self.k, self.v
        self.three = [copy.deepcopy(layer) for layer in (attention.q, attention.k, attention.v)]

    def forward(self, x, mask=None):
        q, k, v = (self.split(layer(x)) for layer in self.three)
        return self.out(self.merge(self.mix.matmul(self.weights(q, k, mask), v)))


@wrong("ex_4_4", "split with one view or reshape")
class SplitsWithAReshape(Attention):
    def split(self, x):
        return x.reshape(x.shape[0], self.h, x.shape[1], -1)


@wrong("ex_4_4", "without a transpose: that mixes")
class SplitsAndMergesWithAReshape(SplitsWithAReshape):
    def merge(self, x):
        return x.reshape(x.shape[0], x.shape[2], -1)


@wrong("ex_4_4", "key is made by the layer q")
class QueryForKey(Attention):
    def forward(self, x, mask=None):
        q, k, v = self.split(self.q(x)), self.split(self.q(x)), self.split(self.v(x))
        return self.out(self.merge(self.mix.matmul(self.weights(q, k, mask), v)))


@wrong("ex_4_4", "value is made by the layer k")
class KeyForValue(Attention):
    def forward(self, x, mask=None):
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.k(x))
        return self.out(self.merge(self.mix.matmul(self.weights(q, k, mask), v)))


@wrong("ex_4_4", "F.scaled_dot_product_attention takes no codes")
class ByTheFusedFunction(Attention):
    def forward(self, x, mask=None):
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        return self.out(self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))


@wrong("ex_4_4", "a QuantStub gets codes")
class QuantizesTheInputAgain(Attention):
    def forward(self, x, mask=None):
        return super().forward(self.quant(x), mask)


@wrong("ex_4_4", "the number of QuantStub modules that run is 2")
class AStubForTheInput(Attention):
    def __init__(self, attention):
        super().__init__(attention)
        self.quant_x = tq.QuantStub()

    def forward(self, x, mask=None):
        return super().forward(self.quant_x(x), mask)


class ScaleInTheQuery(Attention):
    """The division by the square root is done once, in the weights of q."""

    def __init__(self, attention):
        super().__init__(attention)
        root = math.sqrt(attention.q.out_features // self.h)
        self.q.weight.data, self.q.bias.data = self.q.weight.data / root, self.q.bias.data / root

    def scale(self, q):
        return 1.0


right("ex_4_4")(ScaleInTheQuery)


@wrong("ex_4_4", "this softmax takes no codes")
class SoftmaxOfCodes(ScaleInTheQuery):
    def weights(self, q, k, mask):
        return self.quant(self.masked(self.scores.matmul(q, k.transpose(-2, -1)), mask).softmax(-1))


@wrong("ex_4_4", "still quantized where they are divided")
class NeverDequantizes(Attention):
    def weights(self, q, k, mask):
        scores = self.scores.matmul(q, k.transpose(-2, -1)) / self.scale(q)
        return self.quant(self.masked(scores, mask).softmax(-1))


@wrong("ex_4_4", "`quant` brings a qconfig of its own")
class RangeFixedAt256(Attention):
    def __init__(self, attention):
        super().__init__(attention)
        fixed = tq.FixedQParamsObserver.with_args(
            scale=1 / 256, zero_point=0, dtype=torch.quint8, quant_min=0, quant_max=255
        )
        self.quant.qconfig = tq.QConfig(activation=fixed, weight=tq.default_weight_observer)


@wrong("ex_4_4", "the probabilities have the scale")
class RangeFixedByHand(Attention):
    def weights(self, q, k, mask):
        if q.is_quantized:
            self.quant.scale.fill_(1 / 256)
        return super().weights(q, k, mask)


@wrong("ex_4_4", "no QuantStub runs")
class QuantizesInForward(Attention):
    def __init__(self, attention):
        super().__init__(attention)
        del self.quant

    def quant(self, p):
        return p

    def weights(self, q, k, mask):
        p = super().weights(q, k, mask)
        return torch.quantize_per_tensor(p, 1 / 256, 0, torch.quint8) if q.is_quantized else p


@wrong("ex_4_4", "share one FloatFunctional")
class OneObserverForBothProducts(Attention):
    def __init__(self, attention):
        super().__init__(attention)
        self.mix = self.scores


@wrong("ex_4_4", "the products are written with `@`")
class PlainProducts(Attention):
    def __init__(self, attention):
        super().__init__(attention)
        del self.scores, self.mix

    def weights(self, q, k, mask):
        return self.quant(self.masked(self.dequant(q @ k.transpose(-2, -1)) / self.scale(q), mask).softmax(-1))

    def forward(self, x, mask=None):
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        return self.out(self.merge(self.weights(q, k, mask) @ v))


@wrong("ex_4_4", "your FloatFunctional modules are never called")
class FunctionalsThatNobodyCalls(PlainProducts):
    def __init__(self, attention):
        super().__init__(attention)
        self.scores, self.mix = FloatFunctional(), FloatFunctional()


@wrong("ex_4_4", "both products get floats")
class FloatProducts(Attention):
    def __init__(self, attention):
        super().__init__(attention)
        self.leave = tq.DeQuantStub()
        del self.scores, self.mix

    def forward(self, x, mask=None):
        q, k, v = (self.leave(self.split(layer(x))) for layer in (self.q, self.k, self.v))
        p = self.masked(q @ k.transpose(-2, -1) / self.scale(q), mask).softmax(-1)
        return self.out(self.quant(self.merge(p @ v)))


@wrong("ex_4_4", "there are float weights left")
class EverythingInFloat(Attention):
    def __init__(self, attention):
        super().__init__(attention)
        for layer in (self.q, self.k, self.v, self.out, self.scores, self.mix):
            layer.qconfig = None

    def forward(self, x, mask=None):
        x = self.dequant(x)
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        p = self.masked(q @ k.transpose(-2, -1) / self.scale(q), mask).softmax(-1)
        return self.quant(self.out(self.merge(p @ v)))


@wrong("ex_4_4", "is there a QuantStub behind the softmax")
class ProbabilitiesStayFloat(Attention):
    def weights(self, q, k, mask):
        self.quant(q if not q.is_quantized else self.dequant(q))
        scores = self.dequant(self.scores.matmul(q, k.transpose(-2, -1))) / self.scale(q)
        return self.masked(scores, mask).softmax(-1)


@wrong("ex_4_4", "no DeQuantStub at the end")
class ReturnsFloat(Attention):
    def forward(self, x, mask=None):
        return self.dequant(super().forward(x, mask))


@wrong("ex_4_4", "without a transpose before it")
class MergesWithAView(Attention):
    def merge(self, x):
        return x.contiguous().view(x.shape[0], x.shape[2], -1)


@wrong("ex_4_4", "not divided by the square root")
class NoScale(Attention):
    def scale(self, q):
        return 1.0


@wrong("ex_4_4", "it is the width of *one head*")
class ScaleOfTheModel(Attention):
    def scale(self, q):
        return math.sqrt(q.shape[-1] * self.h)


@wrong("ex_4_4", "the wrong way round")
class MaskUpsideDown(Attention):
    def masked(self, scores, mask):
        return scores if mask is None else scores.masked_fill(mask, float("-inf"))


@wrong("ex_4_4", "the softmax runs over the queries")
class SoftmaxOverQueries(Attention):
    def weights(self, q, k, mask):
        scores = self.dequant(self.scores.matmul(q, k.transpose(-2, -1))) / self.scale(q)
        scores = scores if mask is None else scores.masked_fill(~mask, -1e9)
        return self.quant(scores.softmax(-2))


@wrong("ex_4_4", "copies, with weights and biases, of the one that was given")
class NewLayers(Attention):
    def __init__(self, attention):
        super().__init__(attention)
        width = attention.q.in_features
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))


@wrong("ex_4_4", "the softmax runs over the heads")
class SoftmaxOverHeads(Attention):
    def weights(self, q, k, mask):
        scores = self.dequant(self.scores.matmul(q, k.transpose(-2, -1))) / self.scale(q)
        scores = scores if mask is None else scores.masked_fill(~mask, -1e9)
        return self.quant(scores.softmax(1))


@wrong("ex_4_4", "divided by the root of the length")
class RootOfTheLength(Attention):
    def scale(self, q):
        return math.sqrt(q.shape[-2])


@wrong("ex_4_4", "multiplied by the square root")
class TimesTheRoot(Attention):
    def scale(self, q):
        return q.shape[-1] ** -0.5


@wrong("ex_4_4", "divided by the width of a head, not by its square root")
class WidthForItsRoot(Attention):
    def scale(self, q):
        return q.shape[-1]


@wrong("ex_4_4", "the layers have lost their biases")
class WithoutBiases(Attention):
    def __init__(self, attention):
        super().__init__(attention)
        for layer in (self.q, self.k, self.v, self.out):
            nn.init.zeros_(layer.bias)


@right("ex_4_4")
class ScalesCodes(Attention):
    """A FloatFunctional multiplies by the factor before the DeQuantStub: that changes the codes' scale, and no code."""

    def weights(self, q, k, mask):
        scores = self.scores.mul_scalar(self.scores.matmul(q, k.transpose(-2, -1)), 1 / self.scale(q))
        return self.quant(self.masked(self.dequant(scores), mask).softmax(-1))


@wrong("ex_4_4", "there are two softmaxes")
class TwoSoftmaxes(Attention):
    def weights(self, q, k, mask):
        scores = self.dequant(self.scores.matmul(q, k.transpose(-2, -1))) / self.scale(q)
        return self.quant(self.masked(scores, mask).softmax(-1).softmax(-1))


@wrong("ex_4_4", "q or k is divided (or multiplied) while it is still quantized")
class DividesTheQuery(Attention):
    def weights(self, q, k, mask):
        scores = self.dequant(self.scores.matmul(q / self.scale(q), k.transpose(-2, -1)))
        return self.quant(self.masked(scores, mask).softmax(-1))


@wrong("ex_4_4", "it stops when the mask is None")
class NoneForgotten(Attention):
    def masked(self, scores, mask):
        return scores.masked_fill(~mask, float("-inf"))


@wrong("ex_4_4", "forbidden scores become 0")
class MaskTimesScores(Attention):
    def masked(self, scores, mask):
        return scores if mask is None else scores * mask


@wrong("ex_4_4", "is added to the scores, as 1 and 0")
class MaskAsANumber(Attention):
    def masked(self, scores, mask):
        return scores if mask is None else scores + mask


@wrong("ex_4_4", "are set to 0 behind the softmax")
class ZeroedBehindTheSoftmax(Attention):
    def weights(self, q, k, mask):
        p = (self.dequant(self.scores.matmul(q, k.transpose(-2, -1))) / self.scale(q)).softmax(-1)
        return self.quant(p if mask is None else p * mask)


@wrong("ex_4_4", "with loud scores")
class MinusTenThousand(Attention):
    def masked(self, scores, mask):
        return scores if mask is None else scores.masked_fill(~mask, -1e4)


@wrong("ex_4_4", "with loud scores", like="MinusTenThousand")
class MinusTenThousandAdded(Attention):
    def masked(self, scores, mask):
        return scores if mask is None else scores - 1e4 * (~mask)


@wrong("ex_4_4", "use the mask that is handed over")
class AlwaysCausal(Attention):
    """Right for the mask of this model, whatever mask is handed over."""

    def masked(self, scores, mask):
        return super().masked(scores, mask if mask is None else torch.ones(scores.shape[-2:]).tril() > 0)


@wrong("ex_4_4", "of length 15, after others")
class RemembersTheLength(Attention):
    length = None

    def split(self, x):
        self.length = self.length or x.shape[1]
        return x[:, : self.length].unflatten(2, (self.h, -1)).transpose(1, 2)

    def merge(self, x):
        return F.pad(super().merge(x), (0, 0, 0, 0))

    def forward(self, x, mask=None):
        y = super().forward(x, mask if mask is None else mask[..., : self.length or 99, : self.length or 99])
        return F.pad(y, (0, 0, 0, x.shape[1] - y.shape[1])) if y.shape[1] < x.shape[1] else y


@wrong("ex_4_4", "in training mode (a dropout?)")
class DropoutAdded(Attention):
    def masked(self, scores, mask):
        return F.dropout(super().masked(scores, mask), 0.1, self.training)


@wrong("ex_4_4", "the given attention was changed: q.weight is frozen now")
class FreezesTheGiven(Attention):
    def __init__(self, attention):
        super().__init__(attention.requires_grad_(False))


@wrong("ex_4_4", "was switched to eval mode")
class SwitchesTheGiven(Attention):
    def __init__(self, attention):
        super().__init__(attention.eval())


@wrong("ex_4_4", "your function changed `x`")
class XInPlace(Attention):
    def forward(self, x, mask=None):
        y = super().forward(x, mask)
        if not x.is_quantized:
            x.mul_(0.5)
        return y


@wrong("ex_4_4", "your function changed `mask`")
class MaskInPlace(Attention):
    def masked(self, scores, mask):
        return scores if mask is None else scores.masked_fill(mask.logical_not_(), float("-inf"))


@wrong("ex_4_4", "your module switches the engine")
class ChoosesAnEngine(Attention):
    def __init__(self, attention):
        super().__init__(attention)
        others = [e for e in torch.backends.quantized.supported_engines if e != torch.backends.quantized.engine]
        torch.backends.quantized.engine = next(e for e in others if e != "none")


@wrong("ex_4_4", "`your module` brings a qconfig of its own", like="RangeFixedAt256")
class QconfigWrittenIn(Attention):
    def __init__(self, attention):
        super().__init__(attention)
        self.qconfig = tq.get_default_qconfig("fbgemm")


@wrong("ex_4_4", "`scores` has the scale")
class ScaleOfTheScoresByHand(Attention):
    def weights(self, q, k, mask):
        if q.is_quantized:
            self.scores.scale *= 1.05
        return super().weights(q, k, mask)


@wrong("ex_4_4", "in int8: 0 of 4")
class HidesFloatWeights(Attention):
    def __init__(self, attention):
        super().__init__(attention)
        self.hidden = {name: layer.weight.detach().clone() for name, layer in attention.named_children()}
        self.biases = {name: layer.bias.detach().clone() for name, layer in attention.named_children()}

    def forward(self, x, mask=None):
        if not x.is_quantized:
            return super().forward(x, mask)
        x = x.dequantize()
        q, k, v = (self.split(F.linear(x, self.hidden[n], self.biases[n])) for n in "qkv")
        p = self.masked(q @ k.transpose(-2, -1) / self.scale(q), mask).softmax(-1)
        y = F.linear(self.merge(p @ v), self.hidden["out"], self.biases["out"])
        return torch.quantize_per_tensor(y, 0.05, 64, torch.quint8)


@wrong("ex_4_4", "something else when x is quantized")
class AnotherScaleForCodes(Attention):
    def scale(self, q):
        return math.sqrt(q.shape[-1]) * (1.15 if q.is_quantized else 1)


@wrong("ex_4_4", "depends on later tokens")
class NoMaskForCodes(Attention):
    def weights(self, q, k, mask):
        return super().weights(q, k, None if q.is_quantized else mask)


@right("ex_4_4")
class WithSpareModules(Attention):
    def __init__(self, attention):
        super().__init__(attention)
        self.another, self.more = tq.QuantStub(), FloatFunctional()


@right("ex_4_4")
class SoftmaxByItsFormula(Attention):
    def weights(self, q, k, mask):
        scores = self.dequant(self.scores.matmul(q, k.transpose(-2, -1))) * (1 / self.scale(q))
        scores = scores if mask is None else scores.masked_fill(~mask, torch.finfo(torch.float32).min)
        grown = (scores - scores.amax(-1, keepdim=True)).exp()
        return self.quant(grown / grown.sum(-1, keepdim=True))


@right("ex_4_4")
class OfTheHelpers(quantizable.QuantizableAttention):
    def __init__(self, attention):
        super().__init__(attention.q.in_features, attention.n_heads)
        self.load_state_dict(attention.state_dict())


@right("ex_4_4")
class ScaledBehindTheMask(nn.Module):
    """Keys are transposed by einsum-like permutes, the mask is a float that is added."""

    def __init__(self, attention):
        super().__init__()
        self.layers = nn.ModuleDict({name: copy.deepcopy(getattr(attention, name)) for name in ("q", "k", "v", "out")})
        self.f, self.g = FloatFunctional(), FloatFunctional()
        self.a, self.b = tq.DeQuantStub(), tq.QuantStub()
        self.heads = attention.n_heads

    def forward(self, x, mask=None):
        n, t, d = x.shape
        v, k, q = (self.layers[name](x).view(n, t, self.heads, -1).permute(0, 2, 1, 3) for name in ("v", "k", "q"))
        s = self.a(self.f.matmul(q, k.transpose(2, 3))) * (d // self.heads) ** -0.5
        if mask is not None:
            s = s + torch.where(mask, 0.0, -torch.inf)
        p = self.b(F.softmax(s, dim=-1))
        return self.layers["out"](self.g.matmul(p, v).permute(0, 2, 1, 3).reshape(n, t, d))


class PlainAttention(nn.Module):
    """The right one, each step of which can be replaced."""

    def __init__(self, attention):
        super().__init__()
        self.heads = attention.n_heads
        self.q, self.k, self.v, self.out = (copy.deepcopy(getattr(attention, name)) for name in ("q", "k", "v", "out"))
        self.first, self.second = FloatFunctional(), FloatFunctional()
        self.leave, self.enter = tq.DeQuantStub(), tq.QuantStub()

    def split(self, x):
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def scale(self, scores, width):
        return self.leave(scores) / math.sqrt(width)

    def hide(self, scores, mask):
        return scores if mask is None else scores.masked_fill(~mask, -math.inf)

    def probabilities(self, scores):
        return scores.softmax(-1)

    def forward(self, x, mask=None):
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        scores = self.scale(self.first.matmul(q, k.transpose(2, 3)), q.shape[-1])
        p = self.enter(self.probabilities(self.hide(scores, mask)))
        mixed = self.second.matmul(p, v).transpose(1, 2)
        return self.out(mixed.reshape(*x.shape[:2], -1))


@wrong("ex_4_4", "forbidden ones up to 17 billion")
class MaskOfMinusABillion(PlainAttention):
    def hide(self, scores, mask):
        return scores if mask is None else scores.masked_fill(~mask, -1e9)


@wrong("ex_4_4", "keep no mask between calls")
class MaskKept(PlainAttention):
    def hide(self, scores, mask):
        if mask is None:
            return scores
        kept = self.__dict__.setdefault("masks", {}).setdefault(mask.shape, mask)
        return super().hide(scores, kept)


@wrong("ex_4_4", "so its dimensions are the last ones")
class MaskOfThreeDimensionsByBatch(PlainAttention):
    def hide(self, scores, mask):
        return super().hide(scores, mask[:, None] if mask is not None and mask.dim() == 3 else mask)


@wrong("ex_4_4", "scores were cut off, or exp ran over")
class ScoresClamped(PlainAttention):
    def probabilities(self, scores):
        return scores.clamp(max=80.0).softmax(-1)


@wrong("ex_4_4", "for 1 texts of length 130", like="RemembersTheLength")
class LongTextsCut(PlainAttention):
    def probabilities(self, scores):
        p = scores.softmax(-1).clone()
        p[..., 100:] = 0
        return p


@wrong("ex_4_4", "with 6 heads of width 1")
class HeadsOfTheClass(PlainAttention):
    def __init__(self, attention):
        super().__init__(attention)
        del self.heads
        type(self).heads = attention.n_heads


@wrong("ex_4_4", "two of your attentions share a stub")
class StubOfTheClass(PlainAttention):
    stub = tq.QuantStub()

    def __init__(self, attention):
        super().__init__(attention)
        self.enter = type(self).stub


@wrong("ex_4_4", "no gradient comes back")
class WithoutGradients(PlainAttention):
    @torch.no_grad()
    def forward(self, x, mask=None):
        return super().forward(x, mask)


@wrong("ex_4_4", "the gradients are other ones")
class ProbabilitiesDetached(PlainAttention):
    def probabilities(self, scores):
        return scores.softmax(-1).detach()


@wrong("ex_4_4", "in training mode other stubs and products run")
class TrainsInFloat(PlainAttention):
    def forward(self, x, mask=None):
        if not self.training:
            return super().forward(x, mask)
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        p = self.hide(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), mask).softmax(-1)
        return self.out((p @ v).transpose(1, 2).flatten(2))


@wrong("ex_4_4", "in int8 the output with a mask of shape")
class OnlyCausalMasksForCodes(PlainAttention):
    def forward(self, x, mask=None):
        return super().forward(x, None if x.is_quantized and mask is not None and mask.dim() > 2 else mask)


@right("ex_4_4")
class SoftmaxByLogarithms(PlainAttention):
    def probabilities(self, scores):
        return torch.log_softmax(scores, -1).exp()


# 4.5 feed-forward network


class Forward(nn.Module):
    """The right answer in steps."""

    def __init__(self, norm, ffn):
        super().__init__()
        self.norm, self.up, self.down = copy.deepcopy(norm), copy.deepcopy(ffn.up), copy.deepcopy(ffn.down)
        self.norm.qconfig = None
        self.quant1, self.quant2, self.dequant1, self.dequant2 = (
            tq.QuantStub(),
            tq.QuantStub(),
            tq.DeQuantStub(),
            tq.DeQuantStub(),
        )

    def act(self, x):
        return F.gelu(x)

    def forward(self, x):
        x = self.act(self.dequant1(self.up(self.quant1(self.norm(x)))))
        return self.dequant2(self.down(self.quant2(x)))


@wrong("ex_4_5", "reuses the scale of its input")
class GeluOfCodes(Forward):
    def forward(self, x):
        return self.dequant2(self.down(F.gelu(self.up(self.quant1(self.norm(x))))))


@wrong("ex_4_5", "reuses the scale of its input", like="GeluOfCodes")
class GeluBeforeTheDequantize(Forward):
    def forward(self, x):
        x = self.dequant1(F.gelu(self.up(self.quant1(self.norm(x)))))
        return self.dequant2(self.down(self.quant2(x)))


@wrong("ex_4_5", "one QuantStub serves both places")
class OneStubWithTwoNames(Forward):
    """`convert` replaces it under its first name only."""

    def __init__(self, norm, ffn):
        super().__init__(norm, ffn)
        self.quant2 = self.quant1


@wrong("ex_4_5", "one QuantStub serves both places", like="OneStubWithTwoNames")
class OneStubShared(Forward):
    def __init__(self, norm, ffn):
        super().__init__(norm, ffn)
        del self.quant2

    def forward(self, x):
        x = self.act(self.dequant1(self.up(self.quant1(self.norm(x)))))
        return self.dequant2(self.down(self.quant1(x)))


@wrong("ex_4_5", "the LayerNorm is skipped")
class NormSkipped(Forward):
    def forward(self, x):
        x = self.act(self.dequant1(self.up(self.quant1(x))))
        return self.dequant2(self.down(self.quant2(x)))


@wrong("ex_4_5", "the LayerNorm stands behind the feed-forward network")
class NormBehind(Forward):
    def forward(self, x):
        x = self.act(self.dequant1(self.up(self.quant1(x))))
        return self.norm(self.dequant2(self.down(self.quant2(x))))


@wrong("ex_4_5", "give your LayerNorm qconfig = None")
class NormBecomesInt8(Forward):
    def __init__(self, norm, ffn):
        super().__init__(norm, ffn)
        del self.norm.qconfig


@wrong("ex_4_5", "with x quantized before it")
class NormOfCodes(NormBecomesInt8):
    def forward(self, x):
        x = self.act(self.dequant1(self.up(self.norm(self.quant1(x)))))
        return self.dequant2(self.down(self.quant2(x)))


@wrong("ex_4_5", "the float LayerNorm gets codes")
class FloatNormOfCodes(Forward):
    def forward(self, x):
        x = self.act(self.dequant1(self.up(self.norm(self.quant1(x)))))
        return self.dequant2(self.down(self.quant2(x)))


@wrong("ex_4_5", "gets a float tensor: it needs a QuantStub")
class NoSecondStub(Forward):
    def forward(self, x):
        x = self.act(self.dequant1(self.up(self.quant1(self.norm(x)))))
        return self.dequant2(self.down(x))


@wrong("ex_4_5", "the output is still quantized")
class NoLastDequantize(Forward):
    def forward(self, x):
        x = self.act(self.dequant1(self.up(self.quant1(self.norm(x)))))
        return self.down(self.quant2(x))


@wrong("ex_4_5", "approximation by tanh")
class GeluByTanh(Forward):
    def act(self, x):
        return F.gelu(x, approximate="tanh")


@wrong("ex_4_5", "x is added already")
class AddsX(Forward):
    def forward(self, x):
        return x + super().forward(x)


@wrong("ex_4_5", "the given norm was changed: a qconfig is left")
class SetsTheQconfigOfTheGivenNorm(Forward):
    def __init__(self, norm, ffn):
        super().__init__(norm, ffn)
        norm.qconfig = None
        self.norm = norm


@wrong("ex_4_5", "Linear layers that run in int8: 0 of 2")
class AllFloat(Forward):
    def __init__(self, norm, ffn):
        super().__init__(norm, ffn)
        self.up.qconfig = self.down.qconfig = None

    def forward(self, x):
        return self.down(self.act(self.up(self.norm(x))))


@wrong("ex_4_5", "one QuantStub serves both places", like="OneStubWithTwoNames")
class OneStubTwiceBesideASpareOne(Forward):
    def forward(self, x):
        x = self.act(self.dequant1(self.up(self.quant1(self.norm(x)))))
        return self.dequant2(self.down(self.quant1(x)))


@wrong("ex_4_5", "the LayerNorm has lost its eps")
class EpsLost(Forward):
    def __init__(self, norm, ffn):
        super().__init__(norm, ffn)
        self.norm = nn.LayerNorm(norm.normalized_shape)
        self.norm.load_state_dict(norm.state_dict())
        self.norm.qconfig = None


@wrong("ex_4_5", "has lost its trained weight and bias")
class NewNorm(Forward):
    def __init__(self, norm, ffn):
        super().__init__(norm, ffn)
        self.norm = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
        self.norm.qconfig = None


@wrong("ex_4_5", "something else once it is converted")
class ReluOnceItIsConverted(Forward):
    def act(self, x):
        return F.gelu(x) if isinstance(self.up, nn.Linear) else x.relu()


@right("ex_4_5")
class NormByItsFormula(Forward):
    """The LayerNorm is written out, so there is no module that convert could replace."""

    def __init__(self, norm, ffn):
        super().__init__(norm, ffn)
        self.gain, self.shift, self.eps = copy.deepcopy(norm.weight), copy.deepcopy(norm.bias), norm.eps
        del self.norm

    def forward(self, x):
        middle = x - x.mean(-1, keepdim=True)
        x = middle / (middle.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.gain + self.shift
        x = self.act(self.dequant1(self.up(self.quant1(x))))
        return self.dequant2(self.down(self.quant2(x)))


@wrong("ex_4_5", "divides by the standard deviation of a sample")
class NormOfASample(Forward):
    def forward(self, x):
        middle = x - x.mean(-1, keepdim=True)
        x = middle / (x.std(-1, keepdim=True) + self.norm.eps) * self.norm.weight + self.norm.bias
        x = self.act(self.dequant1(self.up(self.quant1(x))))
        return self.dequant2(self.down(self.quant2(x)))


@wrong("ex_4_5", "there are two LayerNorms")
class TwoNorms(Forward):
    def forward(self, x):
        return super().forward(self.norm(x))


@wrong("ex_4_5", "GELU is missing")
class NoActivation(Forward):
    def act(self, x):
        return x


@wrong("ex_4_5", "GELU is there twice")
class GeluTwice(Forward):
    def act(self, x):
        return F.gelu(F.gelu(x))


@wrong("ex_4_5", "it has a ReLU")
class Relu(Forward):
    def act(self, x):
        return x.relu()


@wrong("ex_4_5", "it has a SiLU")
class Silu(Forward):
    def act(self, x):
        return F.silu(x)


@wrong("ex_4_5", "sigmoid(1.702 x)")
class GeluBySigmoid(Forward):
    def act(self, x):
        return x * torch.sigmoid(1.702 * x)


@wrong("ex_4_5", "in training mode (a dropout?)")
class DropoutInside(Forward):
    def act(self, x):
        return F.dropout(F.gelu(x), 0.1, self.training)


@wrong("ex_4_5", "the given ffn was changed: up.weight is frozen now")
class FreezesTheFeedForward(Forward):
    def __init__(self, norm, ffn):
        super().__init__(norm, ffn.requires_grad_(False))


@wrong("ex_4_5", "the given norm was changed: it was switched to eval mode")
class SwitchesTheNorm(Forward):
    def __init__(self, norm, ffn):
        super().__init__(norm.eval(), ffn)


@wrong("ex_4_5", "your module is not a copy")
class UsesTheGivenLayers(Forward):
    def __init__(self, norm, ffn):
        super().__init__(norm, ffn)
        self.up, self.down = ffn.up, ffn.down


@wrong("ex_4_5", "your function changed `x`")
class NormalizesInPlace(Forward):
    def forward(self, x):
        y = super().forward(x)
        x.sub_(x.mean(-1, keepdim=True))
        return y


@wrong("ex_4_5", "your module switches the engine")
class PicksAnEngine(Forward):
    def __init__(self, norm, ffn):
        super().__init__(norm, ffn)
        others = [e for e in torch.backends.quantized.supported_engines if e != torch.backends.quantized.engine]
        torch.backends.quantized.engine = next(e for e in others if e != "none")


@wrong("ex_4_5", "brings a qconfig of its own")
class QconfigOfOneEngine(Forward):
    def __init__(self, norm, ffn):
        super().__init__(norm, ffn)
        self.up.qconfig = self.down.qconfig = tq.get_default_qconfig("fbgemm")


@wrong("ex_4_5", "quantizers that run as modules: 1 of 2")
class QuantizesByHand(Forward):
    def forward(self, x):
        wide = self.up(self.quant1(self.norm(x)))
        x = self.act(self.dequant1(wide))
        x = torch.quantize_per_tensor(x, 0.05, 3, torch.quint8) if wide.is_quantized else x
        return self.dequant2(self.down(x))


@wrong("ex_4_5", "the quantizer of GELU's output has the scale")
class ScaleOfGeluByHand(Forward):
    def forward(self, x):
        if not isinstance(self.quant2, tq.QuantStub):
            self.quant2.scale.fill_(1 / 16)
        return super().forward(x)


@wrong("ex_4_5", "the order of the steps is wrong")
class OneCrossingMore(Forward):
    def __init__(self, norm, ffn):
        super().__init__(norm, ffn)
        self.more, self.back = tq.QuantStub(), tq.DeQuantStub()

    def forward(self, x):
        x = self.act(self.back(self.more(self.dequant1(self.up(self.quant1(self.norm(x)))))))
        return self.dequant2(self.down(self.quant2(x)))


@right("ex_4_5")
class FromTheHelpers(nn.Module):
    def __init__(self, norm, ffn):
        super().__init__()
        part = quantizable.QuantizableFeedForward(ffn.up.in_features, ffn.up.out_features)
        part.load_state_dict(ffn.state_dict())
        self.norm, self.rest = copy.deepcopy(norm), tq.QuantWrapper(part)
        self.norm.qconfig = None

    def forward(self, x):
        return self.rest(self.norm(x))


@right("ex_4_5")
class GeluByErf(Forward):
    def act(self, x):
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


@right("ex_4_5")
class ASpareStub(Forward):
    def __init__(self, norm, ffn):
        super().__init__(norm, ffn)
        self.spare, self.also_spare = tq.QuantStub(), tq.DeQuantStub()


@right("ex_4_5")
class InSequence(nn.Module):
    def __init__(self, norm, ffn):
        super().__init__()
        again = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
        again.load_state_dict(norm.state_dict())
        again.qconfig = None
        up, down = copy.deepcopy((ffn.up, ffn.down))
        self.steps = nn.Sequential(
            again, tq.QuantStub(), up, tq.DeQuantStub(), nn.GELU(), tq.QuantStub(), down, tq.DeQuantStub()
        )

    def forward(self, x):
        return self.steps(x)


@right("ex_4_5")
class OneDequantStubIsEnough(Forward):
    """A DeQuantStub holds nothing, so that it may serve twice (under one name: convert replaces only the first)."""

    def __init__(self, norm, ffn):
        super().__init__(norm, ffn)
        del self.dequant2

    def forward(self, x):
        x = self.act(self.dequant1(self.up(self.quant1(self.norm(x)))))
        return self.dequant1(self.down(self.quant2(x)))


class PlainFeedForward(nn.Module):
    """The right one, each step of which can be replaced."""

    def __init__(self, norm, ffn):
        super().__init__()
        self.norm, self.up, self.down = copy.deepcopy(norm), copy.deepcopy(ffn.up), copy.deepcopy(ffn.down)
        self.norm.qconfig = None
        self.enter, self.again = tq.QuantStub(), tq.QuantStub()
        self.leave, self.end = tq.DeQuantStub(), tq.DeQuantStub()

    def normalized(self, x):
        return self.norm(x)

    def act(self, wide):
        return F.gelu(wide)

    def forward(self, x):
        wide = self.leave(self.up(self.enter(self.normalized(x))))
        return self.end(self.down(self.again(self.act(wide))))


@wrong("ex_4_5", "is GELU the whole GELU")
class LoudNumbersClamped(PlainFeedForward):
    def act(self, wide):
        return F.gelu(wide.clamp(-10, 10))


@wrong("ex_4_5", "for 360 positions")
class ReluForManyPositions(PlainFeedForward):
    def act(self, wide):
        return F.gelu(wide) if wide.shape[0] * wide.shape[1] < 200 else wide.relu()


@wrong("ex_4_5", "the gradients are other ones")
class WideDetached(PlainFeedForward):
    def act(self, wide):
        return F.gelu(wide.detach())


@wrong("ex_4_5", "no gradient comes back")
class NoGradients(PlainFeedForward):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


@wrong("ex_4_5", "two of your modules share a stub")
class QuantizerOfTheClass(PlainFeedForward):
    stub = tq.QuantStub()

    def __init__(self, norm, ffn):
        super().__init__(norm, ffn)
        self.again = type(self).stub


@wrong("ex_4_5", "in training mode other stubs run")
class TrainsWithoutStubs(PlainFeedForward):
    def forward(self, x):
        return self.down(F.gelu(self.up(self.norm(x)))) if self.training else super().forward(x)


@wrong("ex_4_5", "for numbers around 3000")
class SquareOfTheMeanSubtracted(PlainFeedForward):
    def normalized(self, x):
        mean = x.mean(-1, keepdim=True)
        variance = x.square().mean(-1, keepdim=True) - mean.square()
        return (x - mean) / (variance + self.norm.eps).sqrt() * self.norm.weight + self.norm.bias


@wrong("ex_4_5", "holds layers in a plain list, tuple or dict")
class FloatPartsInATuple(PlainFeedForward):
    def __init__(self, norm, ffn):
        super().__init__(norm, ffn)
        self.float_parts = copy.deepcopy(norm), copy.deepcopy(ffn)

    def forward(self, x):
        y = super().forward(x)
        return self.float_parts[1](self.float_parts[0](x)) if isinstance(self.up, nn.Linear) else y


@right("ex_4_5")
class GeluByTheNormalDistribution(PlainFeedForward):
    def act(self, wide):
        return wide * torch.special.ndtr(wide)


# 4.6 block and stack


def attention_of(block):
    part = quantizable.QuantizableAttention(block.attention.q.in_features, block.attention.n_heads)
    part.load_state_dict(block.attention.state_dict())
    return part


def network_of(block):
    part = quantizable.QuantizableFeedForward(block.ffn.up.in_features, block.ffn.up.out_features)
    part.load_state_dict(block.ffn.state_dict())
    return part


class OneBlock(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.n1, self.n2 = copy.deepcopy(block.norm1), copy.deepcopy(block.norm2)
        self.a, self.f = attention_of(block), network_of(block)
        self.add1, self.add2 = FloatFunctional(), FloatFunctional()

    def forward(self, x, mask=None):
        x = self.add1.add(x, self.a(self.n1(x), mask))
        return self.add2.add(x, self.f(self.n2(x)))


class Stack(nn.Module):
    kind = OneBlock

    def __init__(self, blocks):
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.blocks = nn.ModuleList(self.kind(block) for block in blocks)

    def forward(self, x, mask=None):
        x = self.quant(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.dequant(x)


@wrong("ex_4_6", "No round trips between layers or blocks", binds="StaticBlock")
class RoundTripBetweenTheHalves(OneBlock):
    def __init__(self, block):
        super().__init__(block)
        self.dequant, self.quant = tq.DeQuantStub(), tq.QuantStub()

    def forward(self, x, mask=None):
        x = self.quant(self.dequant(self.add1.add(x, self.a(self.n1(x), mask))))
        return self.add2.add(x, self.f(self.n2(x)))


@wrong("ex_4_6", "No round trips between layers or blocks", binds="StaticBlock", like="RoundTripBetweenTheHalves")
class StubsInEveryBlock(OneBlock):
    def __init__(self, block):
        super().__init__(block)
        self.dequant, self.quant = tq.DeQuantStub(), tq.QuantStub()

    def forward(self, x, mask=None):
        return self.quant(self.dequant(super().forward(x, mask)))


@wrong("ex_4_6", "`+` has no int8 kernel", binds="StaticBlock")
class PlusForTheResidual(OneBlock):
    def forward(self, x, mask=None):
        x = x + self.a(self.n1(x), mask)
        return x + self.f(self.n2(x))


@wrong("ex_4_6", "one FloatFunctional serves both additions", binds="StaticBlock")
class OneFunctionalForBothAdds(OneBlock):
    def __init__(self, block):
        super().__init__(block)
        self.add2 = self.add1


@wrong("ex_4_6", "stand behind the additions", binds="StaticBlock")
class NormAfterAdd(OneBlock):
    def forward(self, x, mask=None):
        x = self.n1(self.add1.add(x, self.a(x, mask)))
        return self.n2(self.add2.add(x, self.f(x)))


@wrong("ex_4_6", "the first residual addition is missing", binds="StaticBlock")
class FirstResidualMissing(OneBlock):
    def forward(self, x, mask=None):
        x = self.a(self.n1(x), mask)
        return self.add2.add(x, self.f(self.n2(x)))


@wrong("ex_4_6", "the second residual addition is missing", binds="StaticBlock")
class SecondResidualMissing(OneBlock):
    def forward(self, x, mask=None):
        x = self.add1.add(x, self.a(self.n1(x), mask))
        return self.f(self.n2(x))


@wrong("ex_4_6", "the second addition adds x", binds="StaticBlock")
class SecondAddTakesX(OneBlock):
    def forward(self, x, mask=None):
        h = self.add1.add(x, self.a(self.n1(x), mask))
        return self.add2.add(x, self.f(self.n2(h)))


@wrong("ex_4_6", "should read h", binds="StaticBlock")
class HalvesSideBySide(OneBlock):
    def forward(self, x, mask=None):
        h = self.add1.add(x, self.a(self.n1(x), mask))
        return self.add2.add(h, self.f(self.n2(x)))


@wrong("ex_4_6", "the mask does not reach the attention", binds="StaticBlock")
class MaskForgotten(OneBlock):
    def forward(self, x, mask=None):
        return super().forward(x)


@wrong("ex_4_6", "StaticStack is wrong: the mask does not reach", binds="StaticStack")
class MaskForgottenInTheStack(Stack):
    def forward(self, x, mask=None):
        return super().forward(x)


@wrong("ex_4_6", "norm1 is used twice", binds="StaticBlock")
class NormUsedTwice(OneBlock):
    def __init__(self, block):
        super().__init__(block)
        self.n2 = self.n1


@wrong("ex_4_6", "is there a QuantStub at the beginning", binds="StaticStack")
class NoQuantAtTheBeginning(Stack):
    def __init__(self, blocks):
        super().__init__(blocks)
        self.quant = nn.Identity()


@wrong("ex_4_6", "StaticStack returns codes", binds="StaticStack")
class NoDequantAtTheEnd(Stack):
    def __init__(self, blocks):
        super().__init__(blocks)
        self.dequant = nn.Identity()


@wrong("ex_4_6", "No round trips between layers or blocks", binds="StaticStack", like="RoundTripBetweenTheHalves")
class CrossesBetweenBlocks(Stack):
    def __init__(self, blocks):
        super().__init__(blocks)
        self.quants = nn.ModuleList(tq.QuantStub() for _ in self.blocks)
        self.dequants = nn.ModuleList(tq.DeQuantStub() for _ in self.blocks)

    def forward(self, x, mask=None):
        x = self.quant(x)
        for block, quant, dequant in zip(self.blocks, self.quants, self.dequants, strict=True):
            x = quant(dequant(block(x, mask)))
        return self.dequant(x)


class FloatNorms(OneBlock):
    def __init__(self, block):
        super().__init__(block)
        self.n1.qconfig = self.n2.qconfig = None


@wrong("ex_4_6", "leave its qconfig alone", binds="StaticStack")
class NormsStayFloat(Stack):
    kind = FloatNorms


@wrong("ex_4_6", "every step runs the first block", binds="StaticStack")
class SameBlockAgain(Stack):
    def forward(self, x, mask=None):
        x = self.quant(x)
        for _ in self.blocks:
            x = self.blocks[0](x, mask)
        return self.dequant(x)


@wrong("ex_4_6", "also for the LayerNorms", binds="StaticBlock")
class NormsNotCopied(OneBlock):
    def __init__(self, block):
        super().__init__(block)
        self.n1, self.n2 = block.norm1, block.norm2


@wrong("ex_4_6", "Use nn.ModuleList", binds="StaticStack")
class BlocksInAList(Stack):
    def __init__(self, blocks):
        super().__init__(blocks)
        kept = list(self.blocks)
        del self.blocks
        self.blocks = kept


@wrong("ex_4_6", "Use nn.ModuleList", binds="StaticBlock")
class SumsInAList(OneBlock):
    def __init__(self, block):
        super().__init__(block)
        self.sums = [FloatFunctional(), FloatFunctional()]

    def forward(self, x, mask=None):
        x = self.sums[0].add(x, self.a(self.n1(x), mask))
        return self.sums[1].add(x, self.f(self.n2(x)))


class StaticFeedForward(Forward):
    pass


@wrong("ex_4_6", "StaticFeedForward of exercise 4.5", binds="StaticBlock")
class NetworkOfTheExerciseBefore(OneBlock):
    def __init__(self, block):
        super().__init__(block)
        self.f = StaticFeedForward(block.norm2, block.ffn)

    def forward(self, x, mask=None):
        x = self.add1.add(x, self.a(self.n1(x), mask))
        return self.add2.add(x, self.f(x))


@wrong("ex_4_6", "attention in your block is the float one", binds="StaticBlock")
class FloatAttention(OneBlock):
    def __init__(self, block):
        super().__init__(block)
        self.a = copy.deepcopy(block.attention)


@wrong("ex_4_6", "the feed-forward network in your block is the float one", binds="StaticBlock")
class FloatNetwork(OneBlock):
    def __init__(self, block):
        super().__init__(block)
        self.f = copy.deepcopy(block.ffn)


@wrong("ex_4_6", "changes its input in place", binds="StaticBlock")
class AddsInPlace(OneBlock):
    def forward(self, x, mask=None):
        h = x
        h += self.a(self.n1(x), mask)
        h += self.f(self.n2(h))
        return h


@wrong("ex_4_6", "`+` has no int8 kernel", binds="StaticBlock", like="PlusForTheResidual")
class AddsTheSecondInPlace(OneBlock):
    def forward(self, x, mask=None):
        h = self.add1.add(x, self.a(self.n1(x), mask))
        h += self.f(self.n2(h))
        return h


@right("ex_4_6", binds="StaticBlock")
class AttentionOfTheExerciseBefore(OneBlock):
    def __init__(self, block):
        super().__init__(block)
        self.a = Attention(block.attention)


@right("ex_4_6", binds="StaticStack")
class LoopByIndex(nn.Module):
    """Blocks of its own, as numbered attributes."""

    def __init__(self, blocks):
        super().__init__()
        blocks = list(blocks)
        self.count = len(blocks)
        for i, block in enumerate(blocks):
            setattr(self, f"block{i}", OneBlock(block))
        self.first, self.last = tq.QuantStub(), tq.DeQuantStub()

    def forward(self, x, mask=None):
        x = self.first(x)
        for i in range(self.count):
            x = getattr(self, f"block{i}")(x, mask)
        return self.last(x)


@right("ex_4_6", binds="StaticBlock")
class BlockFromTheHelpers(quantizable.Int8ResidualBlock):
    def __init__(self, block):
        width, d_ff = block.ffn.up.in_features, block.ffn.up.out_features
        super().__init__(ModelConfig(d_model=width, d_ff=d_ff, n_heads=block.attention.n_heads))
        self.load_state_dict(block.state_dict())
        self.norm1.eps, self.norm2.eps = block.norm1.eps, block.norm2.eps


@right("ex_4_6", binds="StaticBlock")
class SpareFunctional(OneBlock):
    """What is never called does no harm."""

    def __init__(self, block):
        super().__init__(block)
        self.spare = FloatFunctional()


@wrong("ex_4_6", "another eps than the given ones", binds="StaticBlock")
class NormsMadeAnew(OneBlock):
    def __init__(self, block):
        super().__init__(block)
        self.n1, self.n2 = (nn.LayerNorm(norm.normalized_shape) for norm in (block.norm1, block.norm2))
        self.n1.load_state_dict(block.norm1.state_dict())
        self.n2.load_state_dict(block.norm2.state_dict())


@wrong("ex_4_6", "as many heads as the first one", binds="StaticStack")
class HeadsOfTheFirstBlock(Stack):
    def __init__(self, blocks):
        super().__init__(blocks)
        for block in self.blocks:
            block.a.n_heads = self.blocks[0].a.n_heads


@wrong("ex_4_6", "`add2` is never called", binds="StaticBlock", like="OneFunctionalForBothAdds")
class FirstAddTwice(OneBlock):
    def forward(self, x, mask=None):
        x = self.add1.add(x, self.a(self.n1(x), mask))
        return self.add1.add(x, self.f(self.n2(x)))


@wrong("ex_4_6", "is no part of the module", binds="StaticBlock")
class SumsOfTheClass(OneBlock):
    plus = (FloatFunctional(), FloatFunctional())

    def __init__(self, block):
        super().__init__(block)
        del self.add1, self.add2

    def forward(self, x, mask=None):
        x = self.plus[0].add(x, self.a(self.n1(x), mask))
        return self.plus[1].add(x, self.f(self.n2(x)))


class EmptiedList(Stack):
    def __init__(self, blocks):
        if not isinstance(blocks, list):
            blocks = list(blocks)
        copied = []
        while blocks:
            copied.append(blocks.pop(0))
        super().__init__(copied)


wrong("ex_4_6", "changes the list `blocks`", binds="StaticStack")(EmptiedList)


@wrong("ex_4_6", "is a generator", binds="StaticStack")
class AsksForTheLength(Stack):
    def __init__(self, blocks):
        super().__init__([blocks[i] for i in range(len(blocks))])


@wrong("ex_4_6", "computes something else if `blocks` is a generator", binds="StaticStack")
class GoesThroughTwice(Stack):
    def __init__(self, blocks):
        self_count = sum(1 for _ in blocks)
        super().__init__(blocks)
        self.count = self_count


@wrong("ex_4_6", "in training mode StaticBlock computes something else", binds="StaticBlock")
class WithDropout(OneBlock):
    def __init__(self, block):
        super().__init__(block)
        self.drop = nn.Dropout(0.1)

    def forward(self, x, mask=None):
        x = self.add1.add(x, self.drop(self.a(self.n1(x), mask)))
        return self.add2.add(x, self.drop(self.f(self.n2(x))))


@wrong("ex_4_6", "was switched to eval mode", binds="StaticBlock")
class SwitchesTheGivenBlock(OneBlock):
    def __init__(self, block):
        super().__init__(block.eval())


@wrong("ex_4_6", "requires_grad", binds="StaticBlock")
class FreezesTheGivenBlock(OneBlock):
    def __init__(self, block):
        super().__init__(block.requires_grad_(False))


@wrong("ex_4_6", "a qconfig is left", binds="StaticBlock")
class LeavesAQconfigInTheGivenBlock(OneBlock):
    def __init__(self, block):
        block.norm1.qconfig = block.norm2.qconfig = None
        super().__init__(block)
        del self.n1.qconfig, self.n2.qconfig


@wrong("ex_4_6", "has set a qconfig", binds="StaticStack")
class RecipeOfItsOwn(Stack):
    def __init__(self, blocks):
        super().__init__(blocks)
        self.blocks.qconfig = tq.get_default_qconfig("x86")


@wrong("ex_4_6", "uses a causal mask whatever mask", binds="StaticStack")
class MakesTheMaskItself(Stack):
    def forward(self, x, mask=None):
        return super().forward(x, torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril())


@wrong("ex_4_6", "returns the shape", binds="StaticStack")
class DropsTheBatch(Stack):
    def forward(self, x, mask=None):
        return super().forward(x, mask).squeeze(0)


@wrong("ex_4_6", "in the reversed order", binds="StaticStack")
class BlocksBackwards(Stack):
    def __init__(self, blocks):
        super().__init__(reversed(list(blocks)))


@wrong("ex_4_6", "the last block is left out", binds="StaticStack")
class LastBlockLeftOut(Stack):
    def forward(self, x, mask=None):
        x = self.quant(x)
        for block in self.blocks[: max(1, len(self.blocks) - 1)]:
            x = block(x, mask)
        return self.dequant(x)


@wrong("ex_4_6", "view size is not compatible", binds="StaticBlock")
class FlattensWithAView(OneBlock):
    def forward(self, x, mask=None):
        normed = self.n1(x.view(-1, x.shape[-1])).view(x.shape)
        x = self.add1.add(x, self.a(normed, mask))
        return self.add2.add(x, self.f(self.n2(x)))


@wrong("ex_4_6", "in training mode and with a mask", binds="StaticBlock")
class MaskOnlyInEvalMode(OneBlock):
    def forward(self, x, mask=None):
        return super().forward(x, None if self.training else mask)


@wrong("ex_4_6", "changes the mask in place", binds="StaticBlock")
class OpensTheMask(OneBlock):
    def forward(self, x, mask=None):
        return super().forward(x, None if mask is None else mask.fill_(True))


@wrong("ex_4_6", "in int8 the mask has no effect, or another one", binds="StaticBlock")
class CausalMaskForCodes(OneBlock):
    def forward(self, x, mask=None):
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        return super().forward(x, causal if x.is_quantized else mask)


@wrong("ex_4_6", "no gradient goes through StaticBlock", binds="StaticBlock")
class BlockWithoutGradients(OneBlock):
    @torch.no_grad()
    def forward(self, x, mask=None):
        return super().forward(x, mask)


@wrong("ex_4_6", "gradient that comes out of StaticBlock is another one", binds="StaticBlock")
class DetachesTheFirstHalf(OneBlock):
    def forward(self, x, mask=None):
        h = self.add1.add(x, self.a(self.n1(x), mask).detach())
        return self.add2.add(h, self.f(self.n2(h)))


@wrong("ex_4_6", "a block that is given twice runs once", binds="StaticStack")
class EachBlockOnce(Stack):
    def __init__(self, blocks):
        super().__init__(dict.fromkeys(blocks))


@wrong("ex_4_6", "given one block several times, adds", binds="StaticStack", like="OneFunctionalForBothAdds")
class OneCopyOfEqualBlocks(Stack):
    def __init__(self, blocks):
        super().__init__([])
        made = {}
        self.blocks.extend([made.setdefault(block, OneBlock(block)) for block in blocks])


@wrong("ex_4_6", "if it gets 10 blocks: all of them run", binds="StaticStack")
class FourBlocksAtMost(Stack):
    def __init__(self, blocks):
        super().__init__(list(blocks)[:4])


@wrong("ex_4_6", "`source` of StaticStack keeps a tensor or a module", binds="StaticStack")
class KeepsTheGivenBlock(Stack):
    def __init__(self, blocks):
        blocks = list(blocks)
        super().__init__(blocks)
        self.__dict__["source"] = blocks[0]


@wrong("ex_4_6", "`floats` of StaticBlock keeps a tensor or a module", binds="StaticBlock", like="KeepsTheGivenBlock")
class KeepsFloatWeights(OneBlock):
    def __init__(self, block):
        super().__init__(block)
        self.floats = {name: weight.detach() for name, weight in block.named_parameters()}


@wrong("ex_4_6", "makes some of its modules when it is called", binds="StaticStack")
class MakesItsBlocksLater(Stack):
    def __init__(self, blocks):
        super().__init__([])
        blocks = list(blocks)
        self.later = lambda: [OneBlock(block) for block in blocks]

    def forward(self, x, mask=None):
        if not len(self.blocks):
            self.blocks.extend(self.later())
        return super().forward(x, mask)


@wrong("ex_4_6", "if x is one token long", binds="StaticStack")
class OneTokenGoesPast(Stack):
    def forward(self, x, mask=None):
        return x if x.shape[1] == 1 else super().forward(x, mask)


@wrong("ex_4_6", "if x is a hundred times as loud", binds="StaticStack")
class ClipsTheStream(Stack):
    def forward(self, x, mask=None):
        return super().forward(x.clamp(-10, 10), mask)


@wrong("ex_4_6", "switches gradients off", binds="StaticStack")
class SwitchesGradientsOff(Stack):
    def __init__(self, blocks):
        super().__init__(blocks)
        torch.set_grad_enabled(False)


@wrong("ex_4_6", "switches torch.backends.quantized.engine", binds="StaticStack")
class SwitchesTheEngine(Stack):
    def __init__(self, blocks):
        super().__init__(blocks)
        others = {"fbgemm", "x86", "qnnpack"} & set(torch.backends.quantized.supported_engines)
        torch.backends.quantized.engine = sorted(others - {torch.backends.quantized.engine})[0]


@right("ex_4_6", binds="StaticStack")
class PairsInASequential(nn.Module):
    """A Sequential whose members hand on the pair of hidden state and mask."""

    def __init__(self, blocks):
        super().__init__()

        class WithMask(OneBlock):
            def forward(self, pair):
                return super().forward(*pair), pair[1]

        self.enter, self.body, self.leave = tq.QuantStub(), nn.Sequential(*map(WithMask, blocks)), tq.DeQuantStub()

    def forward(self, x, mask=None):
        return self.leave(self.body((self.enter(x), mask))[0])


@right("ex_4_6", binds="StaticStack")
class BlocksByName(Stack):
    def __init__(self, blocks):
        super().__init__(blocks)
        self.names = tuple(f"blocks.{i}" for i in range(len(self.blocks)))

    def forward(self, x, mask=None):
        x = self.quant(x)
        for name in self.names:
            x = self.get_submodule(name)(x, mask)
        return self.dequant(x)
