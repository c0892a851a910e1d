"""Unit 06, exercises 6.2 and 6.3: what learners really write when they make an encoder-decoder quantizable."""

import math

import torch
import torch.ao.quantization as tq
import torch.nn.functional as F
from torch import nn
from torch.ao.nn.quantized import FloatFunctional

from helpers import quantizable, seq2seq
from helpers.models import causal_mask, sinusoidal_positions
from tests.misconceptions.bank import right, wrong

# 6.2 attention to the memory


class Attention(quantizable.QuantizableAttention):
    """The right answer, each step of which a subclass can replace."""

    def sources(self, x, memory):
        """What the queries, keys and values are made from."""
        return x, memory, memory

    def masked(self, scores, mask):
        return scores if mask is None else scores.masked_fill(~mask, float("-inf"))

    def scale(self, q):
        return math.sqrt(q.shape[-1])

    def forward(self, x, memory, mask=None):
        asks, names, tells = self.sources(x, memory)
        q, k, v = self.split(self.q(asks)), self.split(self.k(names)), self.split(self.v(tells))
        scores = self.dequant(self.scores.matmul(q, k.transpose(-2, -1))) / self.scale(q)
        return self.out(self.merge(self.mix.matmul(self.quant(self.masked(scores, mask).softmax(-1)), v)))


right("ex_6_2", binds="MemoryAttention")(Attention)


@right("ex_6_2", binds="MemoryAttention")
class WrittenFromScratch(nn.Module):
    """No inheritance, other names inside, the division in the query."""

    def __init__(self, d_model, n_heads):
        super().__init__()
        self.h = n_heads
        self.q, self.k, self.v, self.out = (nn.Linear(d_model, d_model) for _ in range(4))
        self.first, self.second = FloatFunctional(), FloatFunctional()
        self.leave, self.enter = tq.DeQuantStub(), tq.QuantStub()

    def heads(self, x):
        return x.unflatten(2, (self.h, -1)).transpose(1, 2)

    def forward(self, x, memory, mask=None):
        q, k, v = self.heads(self.q(x)), self.heads(self.k(memory)), self.heads(self.v(memory))
        scores = self.leave(self.first.matmul(q, k.permute(0, 1, 3, 2))).div(math.sqrt(q.shape[-1]))
        if mask is not None:
            scores = scores + torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
        return self.out(self.second.matmul(self.enter(F.softmax(scores, -1)), v).transpose(1, 2).flatten(2))


@wrong("ex_6_2", "keys and values come from x", binds="MemoryAttention")
class KeysAndValuesFromX(Attention):
    """Self-attention again."""

    def sources(self, x, memory):
        return x, x, x


@wrong("ex_6_2", "the values come from x", binds="MemoryAttention")
class ValuesFromX(Attention):
    def sources(self, x, memory):
        return x, memory, x


@wrong("ex_6_2", "the keys come from x", binds="MemoryAttention")
class KeysFromX(Attention):
    def sources(self, x, memory):
        return x, x, memory


@wrong("ex_6_2", "the queries come from the memory", binds="MemoryAttention")
class QueriesFromTheMemory(Attention):
    def sources(self, x, memory):
        return memory, memory, memory


@wrong("ex_6_2", "the mask is the wrong way round", binds="MemoryAttention")
class MaskInverted(Attention):
    def masked(self, scores, mask):
        return scores if mask is None else scores.masked_fill(mask, float("-inf"))


@wrong("ex_6_2", "the mask has no effect", binds="MemoryAttention")
class MaskForgotten(Attention):
    def masked(self, scores, mask):
        return scores


@wrong("ex_6_2", "not divided by the square root", binds="MemoryAttention")
class NotScaled(Attention):
    def scale(self, q):
        return 1.0


class Block(nn.Module):
    """The right answer, each step of which a subclass can replace."""

    def __init__(self, d_model, n_heads, d_ff):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d_model) for _ in range(3))
        self.attention, self.cross = Attention(d_model, n_heads), Attention(d_model, n_heads)
        self.ffn = quantizable.QuantizableFeedForward(d_model, d_ff)
        self.quant1, self.quant2, self.quant3 = (tq.QuantStub() for _ in range(3))
        self.dequant1, self.dequant2, self.dequant3 = (tq.DeQuantStub() for _ in range(3))

    def masks(self, mask, memory_mask):
        """For the first and for the second attention."""
        return mask, memory_mask

    def look(self, x, mask):
        h = self.quant1(self.norm1(x))
        return self.dequant1(self.attention(h, h, mask))

    def ask(self, x, memory, mask):
        return self.dequant2(self.cross(self.quant2(self.norm2(x)), memory, mask))

    def think(self, x):
        return self.dequant3(self.ffn(self.quant3(self.norm3(x))))

    def forward(self, x, memory, mask, memory_mask):
        first, second = self.masks(mask, memory_mask)
        x = x + self.look(x, first)
        x = x + self.ask(x, memory, second)
        return x + self.think(x)


right("ex_6_2", binds="DecoderLayer")(Block)


@wrong("ex_6_2", "the memory mask is mixed with the causal mask", binds="DecoderLayer")
class MemoryMaskMixedWithCausalMask(Block):
    def masks(self, mask, memory_mask):
        return mask, memory_mask if mask is None else memory_mask & mask


@wrong("ex_6_2", "the attention to the memory gets the causal mask", binds="DecoderLayer")
class CausalMaskForTheMemory(Block):
    def masks(self, mask, memory_mask):
        return mask, mask


@wrong("ex_6_2", "the masks are swapped", binds="DecoderLayer")
class MasksSwapped(Block):
    def masks(self, mask, memory_mask):
        return memory_mask, mask


@wrong("ex_6_2", "`memory_mask` speaks of the source", binds="DecoderLayer")
class BothMasksForTheAnswer(Block):
    def masks(self, mask, memory_mask):
        return mask if mask is None else mask & memory_mask, memory_mask


@wrong("ex_6_2", "each position sees the future", binds="DecoderLayer")
class NoCausalMask(Block):
    def masks(self, mask, memory_mask):
        return None, memory_mask


@wrong("ex_6_2", "it looks at padding", binds="DecoderLayer")
class NoPaddingMask(Block):
    def masks(self, mask, memory_mask):
        return mask, None


@wrong("ex_6_2", "off by one: each position sees the next", binds="DecoderLayer")
class WrongDiagonal(Block):
    def masks(self, mask, memory_mask):
        return None if mask is None else torch.ones_like(mask).tril(1), memory_mask


@wrong("ex_6_2", "the second residual addition is missing", binds="DecoderLayer")
class NoSecondResidual(Block):
    def forward(self, x, memory, mask, memory_mask):
        x = self.ask(x + self.look(x, mask), memory, memory_mask)
        return x + self.think(x)


@wrong("ex_6_2", "the second addition adds x", binds="DecoderLayer")
class SecondResidualFromX(Block):
    def forward(self, x, memory, mask, memory_mask):
        a = x + self.look(x, mask)
        c = x + self.ask(a, memory, memory_mask)
        return c + self.think(c)


@wrong("ex_6_2", "the memory is normalized by norm2", binds="DecoderLayer")
class MemoryNormed(Block):
    def ask(self, x, memory, mask):
        numbers = memory.dequantize() if memory.is_quantized else memory
        h, m = self.quant2(self.norm2(x)), self.quant2(self.norm2(numbers))
        return self.dequant2(self.cross(h, m, mask))


@wrong("ex_6_2", "the LayerNorms stand behind the additions", binds="DecoderLayer")
class PostNorm(Block):
    def forward(self, x, memory, mask, memory_mask):
        h = self.quant1(x)
        x = self.norm1(x + self.dequant1(self.attention(h, h, mask)))
        x = self.norm2(x + self.dequant2(self.cross(self.quant2(x), memory, memory_mask)))
        return self.norm3(x + self.dequant3(self.ffn(self.quant3(x))))


@wrong("ex_6_2", "the attention to the memory comes first", binds="DecoderLayer")
class MemoryFirst(Block):
    def forward(self, x, memory, mask, memory_mask):
        x = x + self.ask(x, memory, memory_mask)
        x = x + self.look(x, mask)
        return x + self.think(x)


@wrong("ex_6_2", "a QuantStub gets codes", binds="DecoderLayer")
class MemoryQuantizedAgain(Block):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.quant_memory = tq.QuantStub()

    def ask(self, x, memory, mask):
        return super().ask(x, self.quant_memory(memory), mask)


@wrong("ex_6_2", "The memory is not rounded again", binds="DecoderLayer")
class MemoryRoundedAgain(Block):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.away, self.again = tq.DeQuantStub(), tq.QuantStub()

    def ask(self, x, memory, mask):
        return super().ask(x, self.again(self.away(memory)), mask)


@wrong("ex_6_2", "so they share one scale", binds="DecoderLayer")
class OneStubForAll(Block):
    def ask(self, x, memory, mask):
        return self.dequant2(self.cross(self.quant1(self.norm2(x)), memory, mask))


@wrong("ex_6_2", "`quant1` and `quant2` are one module", binds="DecoderLayer")
class OneStubWithTwoNames(Block):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.quant2 = self.quant1


@wrong("ex_6_2", "`attention` is used twice", binds="DecoderLayer")
class OneAttentionForBoth(Block):
    def ask(self, x, memory, mask):
        return self.dequant2(self.attention(self.quant2(self.norm2(x)), memory, mask))


@wrong("ex_6_2", "codes and floats meet", binds="DecoderLayer")
class CodesAreAdded(Block):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.dequant1 = nn.Identity()


@wrong("ex_6_2", "a Linear layer gets a float tensor", binds="DecoderLayer")
class NoStubBehindTheNorm(Block):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.quant2 = nn.Identity()


@wrong("ex_6_2", "DecoderLayer has no norm1.weight", binds="DecoderLayer")
class OtherNames(Block):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.norms = nn.ModuleList([self.norm1, self.norm2, self.norm3])
        del self.norm1, self.norm2, self.norm3


class ScoresTwice(Attention):
    """One FloatFunctional for both products: they share one scale; `mix` is never used."""

    def forward(self, x, memory, mask=None):
        q, k, v = self.split(self.q(x)), self.split(self.k(memory)), self.split(self.v(memory))
        scores = self.dequant(self.scores.matmul(q, k.transpose(-2, -1))) / self.scale(q)
        return self.out(self.merge(self.scores.matmul(self.quant(self.masked(scores, mask).softmax(-1)), v)))


wrong("ex_6_2", "a FloatFunctional of its own", binds="MemoryAttention")(ScoresTwice)


@wrong("ex_6_2", "changes its mask in place", binds="MemoryAttention")
class FlipsTheMaskInPlace(Attention):
    def masked(self, scores, mask):
        return scores if mask is None else scores.masked_fill_(mask.logical_not_(), -math.inf)


@right("ex_6_2", binds="MemoryAttention")
class MulScalar(Attention):
    def forward(self, x, memory, mask=None):
        q, k, v = self.split(self.q(x)), self.split(self.k(memory)), self.split(self.v(memory))
        scores = self.dequant(self.scores.mul_scalar(self.scores.matmul(q, k.transpose(-2, -1)), 1 / self.scale(q)))
        return self.out(self.merge(self.mix.matmul(self.quant(self.masked(scores, mask).softmax(-1)), v)))


@right("ex_6_2", binds="MemoryAttention")
class LargeNegative(Attention):
    def masked(self, scores, mask):
        return scores if mask is None else scores.masked_fill(mask == False, -1e9)  # noqa: E712


@wrong("ex_6_2", "a causal mask of its own", binds="DecoderLayer")
class AlwaysCausal(Block):
    """Any mask of the answer is taken for a causal one."""

    def masks(self, mask, memory_mask):
        return None if mask is None else causal_mask(len(mask)), memory_mask


@wrong("ex_6_2", "so it looks at padding", binds="DecoderLayer")
class MasksOnlyTogether(Block):
    def masks(self, mask, memory_mask):
        return (None, None) if mask is None else (mask, memory_mask)


@right("ex_6_2", binds="DecoderLayer")
class SpareStub(Block):
    """A stub that is never used harms nobody."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.spare = tq.QuantStub()


@right("ex_6_2", binds="DecoderLayer")
class OneDequant(Block):
    """A DeQuantStub has no scale: one may serve all places."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        del self.dequant1, self.dequant2, self.dequant3
        self.away = tq.DeQuantStub()

    def look(self, x, mask):
        h = self.quant1(self.norm1(x))
        return self.away(self.attention(h, h, mask))

    def ask(self, x, memory, mask):
        return self.away(self.cross(self.quant2(self.norm2(x)), memory, mask))

    def think(self, x):
        return self.away(self.ffn(self.quant3(self.norm3(x))))


@wrong("ex_6_2", "give these minus infinity", binds="MemoryAttention")
class SoftMask(Attention):
    """Forbidden scores are low, but a lower allowed one loses against them."""

    def masked(self, scores, mask):
        return scores if mask is None else scores.masked_fill(~mask, -30.0)


@wrong("ex_6_2", "that of the width of a *head*", binds="MemoryAttention")
class DividedByTheWholeWidth(Attention):
    def scale(self, q):
        return math.sqrt(q.shape[-1] * q.shape[1])


@wrong("ex_6_2", "set to zero behind the softmax", binds="MemoryAttention")
class ZeroedBehindTheSoftmax(Attention):
    def forward(self, x, memory, mask=None):
        q, k, v = self.split(self.q(x)), self.split(self.k(memory)), self.split(self.v(memory))
        p = (self.dequant(self.scores.matmul(q, k.transpose(-2, -1))) / self.scale(q)).softmax(-1)
        p = p if mask is None else p * mask
        return self.out(self.merge(self.mix.matmul(self.quant(p), v)))


@wrong("ex_6_2", "the softmax runs over the queries", binds="MemoryAttention")
class SoftmaxOverTheQueries(Attention):
    def forward(self, x, memory, mask=None):
        q, k, v = self.split(self.q(x)), self.split(self.k(memory)), self.split(self.v(memory))
        scores = self.dequant(self.scores.matmul(q, k.transpose(-2, -1))) / self.scale(q)
        return self.out(self.merge(self.mix.matmul(self.quant(self.masked(scores, mask).softmax(dim=-2)), v)))


@wrong("ex_6_2", "F.scaled_dot_product_attention takes no codes", binds="MemoryAttention")
class OneCallForAll(Attention):
    def forward(self, x, memory, mask=None):
        q, k, v = self.split(self.q(x)), self.split(self.k(memory)), self.split(self.v(memory))
        return self.out(self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))


@wrong("ex_6_2", "behind the norm, not before it", binds="DecoderLayer")
class StubBeforeTheNorm(Block):
    def think(self, x):
        return self.dequant3(self.ffn(self.norm3(self.quant3(x))))


@wrong("ex_6_2", "`dequant1` and `dequant2` are one module", binds="DecoderLayer")
class OneDequantWithTwoNames(Block):
    """It has no scale to share, but `convert` does not find its second name."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.dequant2 = self.dequant1


@wrong("ex_6_2", "behind the parts, before the additions", binds="DecoderLayer")
class NormOfWhatEachPartSays(Block):
    def forward(self, x, memory, mask, memory_mask):
        h = self.quant1(x)
        x = x + self.norm1(self.dequant1(self.attention(h, h, mask)))
        x = x + self.norm2(self.dequant2(self.cross(self.quant2(x), memory, memory_mask)))
        return x + self.norm3(self.dequant3(self.ffn(self.quant3(x))))


@wrong("ex_6_2", "in training mode your block gives another output", binds="DecoderLayer")
class DropoutSlippedIn(Block):
    def think(self, x):
        return F.dropout(super().think(x), 0.1, self.training)


@wrong("ex_6_2", "PyTorch's own eps", binds="DecoderLayer")
class AnotherEps(Block):
    def __init__(self, d_model, n_heads, d_ff):
        super().__init__(d_model, n_heads, d_ff)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d_model, eps=1e-6) for _ in range(3))


@wrong("ex_6_2", "gets no gradient", binds="DecoderLayer")
class CrossDetached(Block):
    def ask(self, x, memory, mask):
        return super().ask(x, memory, mask).detach()


@wrong("ex_6_2", "no gradient passes", binds="DecoderLayer")
class NeverTrains(Block):
    @torch.no_grad()
    def forward(self, *given):
        return super().forward(*given)


@wrong("ex_6_2", "the output of MemoryAttention", binds="MemoryAttention")
class OneMaskForAllHeads(Attention):
    def masked(self, scores, mask):
        if mask is not None and mask.dim() == 4:
            mask = mask[:, :1]
        return super().masked(scores, mask)


@wrong("ex_6_2", "MemoryAttention changes its inputs in place", binds="MemoryAttention")
class ScalesXInPlace(Attention):
    def forward(self, x, memory, mask=None):
        y = super().forward(x, memory, mask)
        if not x.is_quantized:
            x *= 0.5
        return y


@right("ex_6_2", binds="DecoderLayer")
class ReshapesEverything(Block):
    """Norms in one list of attributes, sums in float by torch.add."""

    def forward(self, x, memory, mask, memory_mask):
        for part in (lambda t: self.look(t, mask), lambda t: self.ask(t, memory, memory_mask), self.think):
            x = torch.add(x, part(x))
        return x


# 6.3 the whole model


class Reader(nn.Module):
    """The right answer, each step of which a subclass can replace."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        length = max(config.source_length, config.target_length) + 1
        self.register_buffer("table", sinusoidal_positions(length, config.d_model))
        self.encoder = nn.ModuleList(seq2seq.EncoderBlock(config) for _ in range(config.n_layers))
        self.encoder_norm = nn.LayerNorm(config.d_model)
        self.decoder = nn.ModuleList(seq2seq.DecoderBlock(config) for _ in range(config.n_layers))
        self.decoder_norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocab_size)
        self.quant_memory, self.quant, self.dequant = tq.QuantStub(), tq.QuantStub(), tq.DeQuantStub()

    def source_mask(self, source):
        return source.ne(self.config.pad)[:, None, None]

    def root(self):
        return math.sqrt(self.config.d_model)

    def embed(self, ids):
        return self.embedding(ids.contiguous()) * self.root() + self.table[: ids.shape[1]]

    def through_encoder(self, source):
        x, mask = self.embed(source), self.encoder_mask(source)
        for block in self.encoder:
            x = block(x, mask)
        return x

    def encoder_mask(self, source):
        return self.source_mask(source)

    def encode(self, source):
        return self.quant_memory(self.encoder_norm(self.through_encoder(source)))

    def causal(self, length):
        return causal_mask(length)

    def through_decoder(self, target, memory, memory_mask):
        x, mask = self.embed(target), self.causal(target.shape[1])
        for block in self.decoder:
            x = block(x, memory, mask, memory_mask)
        return self.decoder_norm(x)

    def decode(self, target, memory, memory_mask):
        return self.dequant(self.head(self.quant(self.through_decoder(target, memory, memory_mask))))

    def forward(self, source, target):
        return self.decode(target, self.encode(source), self.source_mask(source))


right("ex_6_3", binds="DateReader")(Reader)
right("ex_6_3", binds="DateReader")(seq2seq.Seq2Seq)


@wrong("ex_6_3", "a stub on token ids", binds="DateReader")
class StubOnTokenIds(Reader):
    """The book's place for the stub: in front of everything."""

    def __init__(self, config):
        super().__init__(config)
        self.quant_ids = tq.QuantStub()

    def embed(self, ids):
        return super().embed(self.quant_ids(ids))


@wrong("ex_6_3", "the residual stream stays float", binds="DateReader")
class StubBehindTheEmbedding(Reader):
    def __init__(self, config):
        super().__init__(config)
        self.quant_x = tq.QuantStub()

    def embed(self, ids):
        return self.quant_x(super().embed(ids))


@wrong("ex_6_3", "the DeQuantStub comes after the head", binds="DateReader")
class DequantizedBeforeTheHead(Reader):
    def decode(self, target, memory, memory_mask):
        return self.head(self.dequant(self.quant(self.through_decoder(target, memory, memory_mask))))


@wrong("ex_6_3", "quantize behind the last LayerNorm", binds="DateReader")
class NoStubBeforeTheHead(Reader):
    def decode(self, target, memory, memory_mask):
        return self.dequant(self.head(self.through_decoder(target, memory, memory_mask)))


@wrong("ex_6_3", "the logits are codes", binds="DateReader")
class LogitsAreCodes(Reader):
    def decode(self, target, memory, memory_mask):
        return self.head(self.quant(self.through_decoder(target, memory, memory_mask)))


@wrong("ex_6_3", "a memory of floats", binds="DateReader")
class MemoryStaysFloat(Reader):
    def encode(self, source):
        return self.encoder_norm(self.through_encoder(source))


@wrong("ex_6_3", "once, and not in every step", binds="DateReader")
class MemoryQuantizedInEveryStep(Reader):
    def encode(self, source):
        return self.encoder_norm(self.through_encoder(source))

    def decode(self, target, memory, memory_mask):
        return super().decode(target, self.quant_memory(memory), memory_mask)


@wrong("ex_6_3", "not multiplied by the square root of d_model", binds="DateReader")
class NotMultiplied(Reader):
    def root(self):
        return 1.0


@wrong("ex_6_3", "the positions are multiplied, too", binds="DateReader")
class PositionsMultiplied(Reader):
    def embed(self, ids):
        return (self.embedding(ids.contiguous()) + self.table[: ids.shape[1]]) * self.root()


@wrong("ex_6_3", "the positions are missing", binds="DateReader")
class NoPositions(Reader):
    def embed(self, ids):
        return self.embedding(ids.contiguous()) * self.root()


@wrong("ex_6_3", "the positions begin with row 1", binds="DateReader")
class PositionsFromOne(Reader):
    def embed(self, ids):
        return self.embedding(ids.contiguous()) * self.root() + self.table[1 : ids.shape[1] + 1]


@wrong("ex_6_3", "the positions follow the rows of the batch", binds="DateReader")
class PositionsAlongTheBatch(Reader):
    """Sequence-first, as the book's class."""

    def embed(self, ids):
        return self.embedding(ids.contiguous()) * self.root() + self.table[: ids.shape[0], None]


@wrong("ex_6_3", "the encoder blocks get no mask", binds="DateReader")
class EncoderLooksAtPadding(Reader):
    def encoder_mask(self, source):
        return torch.ones_like(self.source_mask(source))


@wrong("ex_6_3", "they see the future", binds="DateReader")
class SeesTheFuture(Reader):
    def causal(self, length):
        return torch.ones(length, length, dtype=torch.bool)


@wrong("ex_6_3", "the causal mask is the wrong way round", binds="DateReader")
class CausalTurned(Reader):
    def causal(self, length):
        return causal_mask(length).T


@wrong("ex_6_3", "the last LayerNorm of the encoder is missing", binds="DateReader")
class NoEncoderNorm(Reader):
    def encode(self, source):
        return self.quant_memory(self.through_encoder(source))


@wrong("ex_6_3", "nn.ModuleList", binds="DateReader")
class PlainLists(Reader):
    def __init__(self, config):
        super().__init__(config)
        blocks = list(self.decoder)
        del self.decoder
        self.decoder = blocks


@wrong("ex_6_3", "a parameter that the trained model has not", binds="DateReader")
class LearnedPositions(Reader):
    def __init__(self, config):
        super().__init__(config)
        self.learned = nn.Parameter(torch.zeros(1, config.d_model))


@right("ex_6_3", binds="greedy")
def greedy_into_a_table(model, source):
    """All steps in one tensor made before, views of it decoded."""
    length = model.config.target_length
    ids = torch.full((len(source), length + 1), model.config.pad)
    ids[:, 0] = model.config.start
    memory, mask = model.encode(source), model.source_mask(source)
    for step in range(length):
        ids[:, step + 1] = model.decode(ids[:, : step + 1].contiguous(), memory, mask)[:, step].topk(1).indices[:, 0]
    return ids[:, 1:]


def _greedy(model, source, steps=0, first=False, encode_again=False, start=None, keep=False):
    memory, mask = model.encode(source), model.source_mask(source)
    ids = torch.full((len(source), 1), model.config.start if start is None else start)
    for _ in range(model.config.target_length + steps):
        memory = model.encode(source) if encode_again else memory
        logits = model.decode(ids, memory, mask)
        ids = torch.cat([ids, logits[:, :1].argmax(-1) if first else logits[:, -1:].argmax(-1)], dim=1)
    return ids if keep else ids[:, 1:]


@wrong("ex_6_3", "without the start", binds="greedy")
def greedy_keeps_the_start(model, source):
    return _greedy(model, source, keep=True)


@wrong("ex_6_3", "what comes next stands at the last one", binds="greedy")
def greedy_reads_the_first_position(model, source):
    return _greedy(model, source, first=True)


@wrong("ex_6_3", "once is enough", binds="greedy")
def greedy_encodes_at_every_step(model, source):
    return _greedy(model, source, encode_again=True)


@wrong("ex_6_3", "does not begin with config.start", binds="greedy")
def greedy_begins_with_padding(model, source):
    return _greedy(model, source, start=0)


@wrong("ex_6_3", "one step too few", binds="greedy")
def greedy_stops_one_early(model, source):
    return _greedy(model, source, steps=-1)


@wrong("ex_6_3", "what source_mask returned", binds="greedy")
def greedy_passes_the_source(model, source):
    memory = model.encode(source)
    ids = torch.full((len(source), 1), model.config.start)
    for _ in range(model.config.target_length):
        ids = torch.cat([ids, model.decode(ids, memory, source)[:, -1:].argmax(-1)], dim=1)
    return ids[:, 1:]


@wrong("ex_6_3", "does not use the memory that it is given", binds="DateReader")
class RemembersTheMemory(Reader):
    """decode ignores the memory it is given: it takes what encode made last."""

    def encode(self, source):
        self.kept = super().encode(source)
        return self.kept

    def decode(self, target, memory, memory_mask):
        return super().decode(target, self.kept, memory_mask)


@wrong("ex_6_3", "does not use the memory_mask that it is given", binds="DateReader")
class RemembersTheMask(Reader):
    def encode(self, source):
        self.kept = self.source_mask(source)
        return super().encode(source)

    def decode(self, target, memory, memory_mask):
        return super().decode(target, memory, self.kept)


@wrong("ex_6_3", "the encoder hides the id 0", binds="DateReader")
class PadIsZero(Reader):
    def encode(self, source):
        x = self.embed(source)
        for block in self.encoder:
            x = block(x, (source != 0)[:, None, None])
        return self.quant_memory(self.encoder_norm(x))


@wrong("ex_6_3", "embedding.weight gets no gradient", binds="DateReader")
class EmbeddingDetached(Reader):
    """The embedding would never learn."""

    def embed(self, ids):
        return super().embed(ids).detach()


@wrong("ex_6_3", "no gradient passes", binds="DateReader")
class RunsWithoutGradients(Reader):
    """Decorated with no_grad: can never be trained."""

    @torch.no_grad()
    def decode(self, *a):
        return super().decode(*a)


@wrong("ex_6_3", "hides padding in the answer", binds="DateReader")
class TwoPaddingBlocks(Reader):
    """PAD in the target is hidden, too."""

    def through_decoder(self, target, memory, memory_mask):
        x, mask = self.embed(target), self.causal(target.shape[1]) & (target != self.config.pad)[:, None, None, :]
        for block in self.decoder:
            x = block(x, memory, mask, memory_mask)
        return self.decoder_norm(x)


@right("ex_6_3", binds="DateReader")
class CausalBuffer(Reader):
    def __init__(self, config):
        super().__init__(config)
        n = max(config.source_length, config.target_length)
        self.register_buffer("mask", causal_mask(n))

    def causal(self, n):
        return self.mask[:n, :n]


@right("ex_6_3", binds="DateReader")
class OwnBlock(Reader):
    def __init__(self, c):
        super().__init__(c)
        self.decoder = nn.ModuleList(Block(c.d_model, c.n_heads, c.d_ff) for _ in range(c.n_layers))


@right("ex_6_3", binds="greedy")
def greedy_full_length(model, source):
    """Decodes a table of full length, reads the step's position: the causal mask hides the rest."""
    n = model.config.target_length
    ids = torch.full((len(source), n + 1), model.config.pad)
    ids[:, 0] = model.config.start
    memory, mask = model.encode(source), model.source_mask(source)
    for step in range(n):
        ids[:, step + 1] = model.decode(ids[:, :n].contiguous(), memory, mask)[:, step].argmax(-1)
    return ids[:, 1:]


@wrong("ex_6_3", "once is enough", binds="greedy")
def greedy_calls_the_model(model, source):
    ids = torch.full((len(source), 1), model.config.start)
    for _ in range(model.config.target_length):
        ids = torch.cat([ids, model(source, ids)[:, -1:].argmax(-1)], dim=1)
    return ids[:, 1:]


@wrong("ex_6_3", "nobody stops at END", binds="greedy")
def greedy_stops_at_end(model, source):
    memory, mask = model.encode(source), model.source_mask(source)
    ids = torch.full((len(source), 1), model.config.start)
    for _ in range(model.config.target_length):
        nxt = model.decode(ids, memory, mask)[:, -1:].argmax(-1)
        ids = torch.cat([ids, nxt], dim=1)
        if (nxt == model.config.end).all():
            break
    return ids[:, 1:]


@wrong("ex_6_3", "something else behind END", binds="greedy")
def greedy_never_end_twice(model, source):
    """pads behind END"""
    memory, mask = model.encode(source), model.source_mask(source)
    ids = torch.full((len(source), 1), model.config.start)
    done = torch.zeros(len(source), 1, dtype=torch.bool)
    for _ in range(model.config.target_length):
        nxt = model.decode(ids, memory, mask)[:, -1:].argmax(-1)
        ids = torch.cat([ids, nxt.masked_fill(done, model.config.pad)], dim=1)
        done |= nxt == model.config.end
    return ids[:, 1:]


@wrong("ex_6_3", "not inverted", binds="DateReader")
class CausalInverted(Reader):
    """True taken for "must not look", as in PyTorch's layers."""

    def causal(self, length):
        return ~causal_mask(length)


@wrong("ex_6_3", "which mask belongs where", binds="DateReader")
class MasksInTheOtherOrder(Reader):
    def through_decoder(self, target, memory, memory_mask):
        x = self.embed(target)
        for block in self.decoder:
            x = block(x, memory, memory_mask, self.causal(target.shape[1]))
        return self.decoder_norm(x)


@wrong("ex_6_3", "one QuantStub serves both the memory and the head", binds="DateReader")
class OneStubForMemoryAndHead(Reader):
    def encode(self, source):
        return self.quant(self.encoder_norm(self.through_encoder(source)))


@wrong("ex_6_3", "`encoder.0` and `encoder.1` are one module", binds="DateReader")
class OneBlockRepeated(Reader):
    def __init__(self, config):
        super().__init__(config)
        self.encoder = nn.ModuleList([seq2seq.EncoderBlock(config)] * config.n_layers)


@wrong("ex_6_3", "what source_mask returned", binds="greedy")
def greedy_passes_no_mask(model, source):
    memory = model.encode(source)
    ids = torch.full((len(source), 1), model.config.start)
    for _ in range(model.config.target_length):
        ids = torch.cat([ids, model.decode(ids, memory, None)[:, -1:].argmax(-1)], dim=1)
    return ids[:, 1:]


@wrong("ex_6_3", "in training mode your model gives other logits", binds="DateReader")
class DropoutBehindTheEmbedding(Reader):
    def embed(self, ids):
        return F.dropout(super().embed(ids), 0.1, self.training)


@wrong("ex_6_3", "encoder_norm has the eps 1e-06", binds="DateReader")
class NormsWithAnotherEps(Reader):
    def __init__(self, config):
        super().__init__(config)
        self.encoder_norm = nn.LayerNorm(config.d_model, eps=1e-6)


@wrong("ex_6_3", "every source the answer of the first", binds="greedy")
def greedy_of_the_first_row(model, source):
    return _greedy(model, source)[:1].repeat(len(source), 1)


@wrong("ex_6_3", "in row 1", binds="greedy")
def greedy_forgets_the_last_row(model, source):
    """The last source of a batch gets padding."""
    answer = _greedy(model, source)
    if len(source) == 2:
        answer[-1] = model.config.pad
    return answer


@wrong("ex_6_3", "your function changed `source`", binds="greedy")
def greedy_marks_what_it_has_read(model, source):
    answer = _greedy(model, source)
    source[:, -1] = model.config.pad
    return answer


@right("ex_6_3", binds="greedy")
def greedy_in_inference_mode(model, source):
    with torch.inference_mode():
        return _greedy(model, source).clone()
