"""The book's chapter 6: stubs around ``nn.Transformer`` are to make a quantizable encoder-decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.ao.quantization import DeQuantStub, QuantStub, QuantWrapper, convert

from helpers.describe import weight_dtypes
from helpers.int8 import dynamic_int8
from helpers.models import sinusoidal_positions
from tests.book.common import (
    CONCLUSION,
    Snippet,
    block,
    must_fail,
    network,
    noise,
    prepared,
    ready_for_qat,
    relative_error,
    static_int8,
    token_ids,
    train,
)


class Stubbed(nn.Module):
    """Stubs around an encoder-decoder of PyTorch, and nothing else: the form of the book's class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = QuantStub(), DeQuantStub()
        self.body = nn.Transformer(width, 8, 1, 1, 2 * width)
        self.head = nn.Linear(width, 10)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.leave(self.head(self.body(self.enter(source), self.enter(target))))  # (time, batch, 10)


class EncoderDecoder(nn.Module):
    """What is missing there: embeddings, positions, a causal mask."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, width)
        self.body = nn.Transformer(width, 8, 1, 1, 2 * width)
        self.head = nn.Linear(width, 10)

    def embed(self, ids: Tensor) -> Tensor:
        return self.embedding(ids) + sinusoidal_positions(len(ids), self.embedding.embedding_dim)[:, None]

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(len(target))  # (query, key)
        return self.head(self.body(self.embed(source), self.embed(target), tgt_mask=mask))  # (time, batch, 10)


def stubbed(width: int = 32) -> Stubbed:
    torch.manual_seed(0)
    return Stubbed(width).eval()


def distance(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


@torch.no_grad()
def broken_20() -> None:
    model, source, target = stubbed(), noise(6, 4, 32), noise(5, 4, 32, seed=1)
    result = model(source, target)
    assert {p.dtype for p in model.parameters()} == {torch.float32} == {result.dtype}
    assert distance(result, model.head(model.body(source, target))) < 1e-5  # stubs do nothing
    assert distance(result, model(source.flip(0), target)) < 1e-4  # the order of the source is not seen
    last_differs = torch.cat([target[:-1], noise(1, 4, 32, seed=2)])
    assert distance(result[0], model(source, last_differs)[0]) > 0.05  # the future is seen
    must_fail(
        lambda: model(token_ids(6, 4, below=10), token_ids(5, 4, below=10)),
        RuntimeError,
        "the feature number of src and tgt must be equal to d_model",
    )
    must_fail(lambda: stubbed(60), AssertionError, "embed_dim must be divisible by num_heads")


@torch.no_grad()
def repaired_20() -> None:
    torch.manual_seed(0)
    model, source, target = EncoderDecoder(32).eval(), token_ids(6, 4, below=10), token_ids(5, 4, below=10, seed=1)
    result = model(source, target)
    assert distance(result, model(source.flip(0), target)) > 0.01
    last_differs = torch.cat([target[:-1], 9 - target[-1:]])
    assert distance(result[:-1], model(source, last_differs)[:-1]) < 1e-5
    int8 = dynamic_int8(model)
    assert weight_dtypes(int8)["head"] == "torch.qint8"
    assert relative_error(int8(source, target), result) < 0.05


SNIPPET_20 = Snippet(
    number=20,
    chapter=CONCLUSION,
    says="A class with `nn.Transformer` between stubs is a quantized encoder-decoder.",
    broken=broken_20,
    message=None,
    error=None,
    happens="It runs in float, and stubs do nothing in float. It has no embedding: token ids fail "
    "(`the feature number of src and tgt must be equal to d_model`). It has no positions: the order of the source does "
    "not matter. It has no mask: the first output depends on the last target. And its width must be a multiple of 8 "
    "(`embed_dim must be divisible by num_heads`).",
    works="Add an embedding, positions, and `tgt_mask=nn.Transformer.generate_square_subsequent_mask(length)`. "
    "`quantize_dynamic(model, {nn.Linear})` then makes int8 what it can reach (see 16).",
    repaired=repaired_20,
    unit="06",
)


@torch.no_grad()
def broken_21() -> None:
    model, source, target = stubbed(), noise(6, 4, 32), noise(5, 4, 32, seed=1)
    observed = prepared(model)
    observed(source, target)
    int8 = convert(observed)
    assert type(int8.head) is nn.quantized.Linear
    int8(source, target)


def repaired_21() -> None:
    model, x = nn.Sequential(block(), block()), noise(8, 16, 32)
    int8 = static_int8(model, x)
    assert {kind.__name__ for kind in map(type, int8[0].modules())} >= {"QFunctional", "LayerNorm", "Linear"}
    assert set(weight_dtypes(int8).values()) >= {"torch.qint8"} and not list(int8[0].up.parameters())
    assert relative_error(int8(x), model(x)) < 0.08


SNIPPET_21 = Snippet(
    number=21,
    chapter=CONCLUSION,
    says="This class can be prepared and converted.",
    broken=broken_21,
    message="Could not run 'aten::add.out' with arguments from the 'QuantizedCPU' backend",
    error=NotImplementedError,
    happens="`convert` runs. The first input fails at the first residual connection: `+` cannot add quantized tensors.",
    works="Blocks of our own, in which `FloatFunctional().add(x, y)` takes the place of `+`.",
    repaired=repaired_21,
    unit="06",
)


def broken_22() -> None:
    ready_for_qat(stubbed())


def repaired_22() -> None:
    model, x = ready_for_qat(block()), noise(16, 8, 32)
    first, last = train(model, x, x, steps=20, rate=0.003)
    assert last < 0.3 * first
    model.eval().apply(torch.ao.quantization.disable_observer)
    int8 = convert(model)
    assert {type(int8.get_submodule(name)) for name in ("q", "k", "v", "out", "up", "down")} == {nn.quantized.Linear}
    assert relative_error(int8(x), x) < 0.15


SNIPPET_22 = Snippet(
    number=22,
    chapter=CONCLUSION,
    says="This class can be trained for quantization.",
    broken=broken_22,
    message="from_float only works for Linear, got NonDynamicallyQuantizableLinear",
    error=AssertionError,
    happens="`prepare_qat` fails at the output layer inside `nn.MultiheadAttention`.",
    works="Attention from four Linear layers: `prepare_qat(block)`, train, `convert(block.eval())`.",
    repaired=repaired_22,
    unit="06",
)


def broken_23() -> None:
    nn.Transformer(d_model=32, n_head=8)


def repaired_23() -> None:
    assert nn.Transformer(d_model=32, nhead=8, num_encoder_layers=1, num_decoder_layers=1).nhead == 8


SNIPPET_23 = Snippet(
    number=23,
    chapter=CONCLUSION,
    says="The number of heads is the argument `n_head` (in the text; the code has it right).",
    broken=broken_23,
    message="Transformer.__init__() got an unexpected keyword argument 'n_head'",
    error=TypeError,
    happens="`nn.Transformer` has no such argument.",
    works="`nn.Transformer(d_model=32, nhead=8)`.",
    repaired=repaired_23,
    unit="06",
)


def errors_of_stubs(shared: bool) -> tuple[float, float]:
    """Relative errors of a loud source and a quiet target after the stubs."""
    source, target = 8 * noise(16, 32), 0.1 * noise(16, 32, seed=1)
    stubs = [QuantWrapper(nn.Identity())] * 2 if shared else [QuantWrapper(nn.Identity()) for _ in range(2)]
    observed = prepared(nn.ModuleList(stubs))
    for stub, x in zip(observed, (source, target), strict=True):
        stub(x)
    int8 = convert(observed)
    return relative_error(int8[0](source), source), relative_error(int8[1](target), target)


def broken_24() -> None:
    loud, quiet = errors_of_stubs(shared=True)
    assert loud < 0.04 and quiet > 0.3
    model, x = QuantWrapper(network(32, 32, 10)), noise(256, 32)  # its last layer is before the second stub, too
    assert relative_error(static_int8(model, x)(x), model(x)) < 0.06


def repaired_24() -> None:
    assert max(errors_of_stubs(shared=False)) < 0.04


SNIPPET_24 = Snippet(
    number=24,
    chapter=CONCLUSION,
    says="One stub quantizes source and target; the head comes before the stub that dequantizes.",
    broken=broken_24,
    message=None,
    error=None,
    happens="The order is right: the head belongs to the int8 part. But one stub has one scale. If the source has "
    "numbers 80 times larger than the target, the target is rounded away.",
    works="Two stubs, each with its own scale: `self.quant_source = QuantStub()`, `self.quant_target = QuantStub()`.",
    repaired=repaired_24,
    unit="06",
)

SNIPPETS = (SNIPPET_20, SNIPPET_21, SNIPPET_22, SNIPPET_23, SNIPPET_24)
