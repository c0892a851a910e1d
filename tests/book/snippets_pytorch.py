"""The book's chapter 2: PyTorch's tools for quantization, on a Transformer that reads token ids."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import (
    DeQuantStub,
    MinMaxObserver,
    QuantStub,
    default_qconfig,
    float_qparams_weight_only_qconfig,
    quantize,
    quantize_dynamic,
)

from helpers.checkpoint import load_course_model
from helpers.describe import weight_dtypes
from helpers.int8 import dynamic_int8
from helpers.metrics import file_bytes
from helpers.models import ModelConfig, TransformerLM
from tests.book.common import (
    PYTORCH,
    Snippet,
    block,
    embedding,
    encoder,
    must_fail,
    network,
    noise,
    relative_error,
    static_int8,
    token_ids,
)


def shrinks(model: nn.Module, quantized: nn.Module) -> float:
    return file_bytes(model) / file_bytes(quantized)


def language_model(width: int) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(ModelConfig(context=32, d_model=width, n_layers=2, d_ff=4 * width, tied_head=False)).eval()


def broken_12() -> None:
    network(16, 8).cuda()


def repaired_12() -> None:
    model, x = network(16, 32, 8), noise(64, 16)
    int8 = dynamic_int8(model)
    assert x.device.type == "cpu" and relative_error(int8(x), model(x)) < 0.05


SNIPPET_12 = Snippet(
    number=12,
    chapter=PYTORCH,
    says="The model is moved to a graphics card, and quantized there.",
    broken=broken_12,
    message="Torch not compiled with CUDA enabled",
    error=AssertionError,
    happens="This course's PyTorch has no CUDA, so a graphics card was not tried. On the CPU these int8 layers run.",
    works="Leave `.cuda()` out: `quantize_dynamic(model, {nn.Linear})` runs on the CPU.",
    repaired=repaired_12,
    unit="02",
    cpu_build_only=True,
)


def broken_13() -> None:
    quantize(network(16, 8), default_qconfig=default_qconfig, inplace=True)


def repaired_13() -> None:
    model, x = network(16, 32, 8), noise(256, 16)
    stubbed = nn.Sequential(QuantStub(), *model, DeQuantStub()).eval()
    stubbed.qconfig = default_qconfig

    def calibrate(observed: nn.Module, batches: list[torch.Tensor]) -> None:
        for batch in batches:
            observed(batch)

    int8 = quantize(stubbed, calibrate, [[x]])
    assert set(weight_dtypes(int8).values()) == {"torch.qint8"}
    assert relative_error(int8(x), model(x)) < 0.06


SNIPPET_13 = Snippet(
    number=13,
    chapter=PYTORCH,
    says="`quantize` gets the qconfig as an argument and needs no data.",
    broken=broken_13,
    message="quantize() got an unexpected keyword argument 'default_qconfig'",
    error=TypeError,
    happens="The qconfig belongs to the model. The arguments of `quantize` are a function that calibrates, and its "
    "data.",
    works="`model.qconfig = default_qconfig`, then `quantize(model, calibrate, [batches])`, with stubs in the model.",
    repaired=repaired_13,
    unit="02",
)


def broken_14() -> None:
    reads_ids = nn.Sequential(embedding(100, 32), network(32, 32))
    ids = token_ids(4, 8, below=100)
    stubbed = nn.Sequential(QuantStub(), reads_ids, DeQuantStub())
    stubbed(ids)  # in float, stubs do nothing
    must_fail(
        lambda: static_int8(stubbed, ids, default_qconfig),
        AssertionError,
        "Embedding quantization is only supported with float_qparams_weight_only_qconfig.",
    )
    later = nn.Sequential(QuantStub(), encoder(batch_first=True), DeQuantStub())
    with torch.no_grad():
        int8 = static_int8(later, noise(4, 8, 32))
        must_fail(lambda: int8(noise(4, 8, 32)), AttributeError, "object has no attribute 'in_proj_bias'")
    reads_ids[0].qconfig = None  # the embedding stays float
    static_int8(stubbed, ids, default_qconfig)(ids)


def repaired_14() -> None:
    model, ids = nn.Sequential(embedding(100, 32), block(32)), token_ids(8, 16, below=100)
    model[0].qconfig = float_qparams_weight_only_qconfig
    int8 = static_int8(model, ids)
    dtypes = weight_dtypes(int8)
    assert dtypes.pop("0") == "torch.quint8"
    assert [dtypes[f"1.{name}"] for name in ("q", "k", "v", "out", "up", "down")] == ["torch.qint8"] * 6
    assert relative_error(int8(ids), model(ids)) < 0.08


SNIPPET_14 = Snippet(
    number=14,
    chapter=PYTORCH,
    says="One stub before a Transformer that reads token ids, and one after it, are enough for static quantization.",
    broken=broken_14,
    message="Quantize only works on Float Tensor, got Long",
    error=RuntimeError,
    happens="In float it runs, since stubs do nothing there. `convert` fails at the embedding "
    "(`Embedding quantization is only supported with float_qparams_weight_only_qconfig.`). With the embedding left "
    "out, the stub gets the ids, which are not float numbers. With the stub after the embedding, PyTorch's encoder "
    "layer fails (`'MultiheadAttention' object has no attribute 'in_proj_bias'`).",
    works="A stub after the embedding, blocks written for it, and "
    "`model.embedding.qconfig = float_qparams_weight_only_qconfig` before `prepare`.",
    repaired=repaired_14,
    unit="02",
)


def broken_15() -> None:
    for dtype, error, message in (
        (torch.quint8, AssertionError, "The only supported dtypes for dynamic quantized linear are qint8 and float16"),
        (torch.int8, RuntimeError, "('Unknown dtype specified for quantize_dynamic: ', 'torch.int8')"),
    ):
        must_fail(lambda d=dtype: quantize_dynamic(network(16, 8), {nn.Linear}, dtype=d), error, message)
    assert default_qconfig.weight().dtype == torch.qint8
    observer = default_qconfig.activation()
    assert (observer.quant_min, observer.quant_max) == (0, 127)
    quantize_dynamic(network(16, 8), {nn.Linear}, dtype=torch.quint4x2)


def repaired_15() -> None:
    from torchao.quantization import IntxWeightOnlyConfig, quantize_  # slow to import, and it logs

    for bits in (4, 3):
        model = nn.Sequential(nn.Linear(64, 64))
        nn.init.normal_(model[0].weight, generator=torch.Generator().manual_seed(0))
        quantize_(model, IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}")))
        assert len(model[0].weight.qdata.unique()) == 2**bits


SNIPPET_15 = Snippet(
    number=15,
    chapter=PYTORCH,
    says="The qconfig, or `quantize`, is where one states the wished number of bits.",
    broken=broken_15,
    message="The only supported dtypes for dynamic quantized linear are qint8 and float16, got: torch.quint4x2",
    error=AssertionError,
    happens="These layers know 8 bits, and float16. `torch.int8` is refused, too: it is not `torch.qint8` "
    "(`('Unknown dtype specified for quantize_dynamic: ', 'torch.int8')`). The default qconfig means int8 weights "
    "and 7-bit activations (0 to 127).",
    works="In torchao the bits are an argument: `quantize_(model, IntxWeightOnlyConfig(weight_dtype=torch.int4))`. "
    "The weight then has 16 different codes.",
    repaired=repaired_15,
    unit="02",
)


def broken_16() -> None:
    model, x = encoder(width=64), noise(8, 4, 64)
    int8 = dynamic_int8(model)
    assert relative_error(int8(x), model(x)) < 0.03
    assert 1.2 < shrinks(model, int8) < 2
    kept = weight_dtypes(int8)
    assert {kept[f"layers.{i}.self_attn.out_proj"] for i in (0, 1)} == {"torch.float32"}
    assert {layer.self_attn.in_proj_weight.dtype for layer in int8.layers} == {torch.float32}
    with torch.no_grad():
        dynamic_int8(encoder(batch_first=True))(noise(4, 8, 32))


def repaired_16() -> None:
    model, ids = language_model(128), token_ids(4, 16, below=256)
    int8 = dynamic_int8(model)
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert all(weight_dtypes(int8)[name] == "torch.qint8" for name in linears)
    assert shrinks(model, int8) > 2.5 and relative_error(int8(ids), model(ids)) < 0.05


SNIPPET_16 = Snippet(
    number=16,
    chapter=PYTORCH,
    says="`quantize_dynamic` with `{nn.Linear}` makes a PyTorch Transformer int8 (also in chapter 1).",
    broken=broken_16,
    message="'function' object has no attribute 'device'",
    error=AttributeError,
    happens="With `batch_first=True` the encoder fails at the first input: its fast path looks for a float weight. "
    "With `batch_first=False` it runs, but the file shrinks less than 2 times: the attention's weights stay float.",
    works="Attention made of four Linear layers, as in this course's model: "
    "`quantize_dynamic(TransformerLM(config), {nn.Linear})` reaches every one of them.",
    repaired=repaired_16,
    unit="01",
)


def broken_34() -> None:
    ratios = [shrinks(network(width, width), dynamic_int8(network(width, width))) for width in (16, 64, 256)]
    assert ratios == sorted(ratios)
    assert 0.95 < ratios[0] < 1.05 and 2.65 < ratios[1] < 2.75 and 3.75 < ratios[2] < 3.85
    assert shrinks(encoder(256), dynamic_int8(encoder(256))) < 2


def repaired_34() -> None:
    assert 3.975 < shrinks(network(1024, 1024), dynamic_int8(network(1024, 1024))) < 3.985
    model = load_course_model()
    settings = {nn.Linear: torch.ao.quantization.default_dynamic_qconfig,
                nn.Embedding: float_qparams_weight_only_qconfig}  # fmt: skip
    assert 3.8 < shrinks(model, quantize_dynamic(model, settings)) < 3.85


SNIPPET_34 = Snippet(
    number=34,
    chapter=PYTORCH,
    says="With int8 weights a model becomes up to four times smaller.",
    broken=broken_34,
    message=None,
    error=None,
    happens="Four is a limit that only large layers come near. The file of one Linear layer shrinks 1.0 times at width "
    "16, 2.7 times at 64, 3.8 times at 256; that of PyTorch's encoder less than 2 times (see 16).",
    works="A Linear layer of width 1024 reaches 3.98. For a whole model, quantize the embedding, too: "
    "`{nn.Linear: default_dynamic_qconfig, nn.Embedding: float_qparams_weight_only_qconfig}` makes this "
    "course's model 3.8 times smaller.",
    repaired=repaired_34,
    unit="02",
)


def weight_only() -> tuple[nn.Module, torch.Tensor]:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # slow to import, and it logs

    model = network(64, 64)
    quantize_(model, Int8WeightOnlyConfig())
    return model, noise(32, 64)


def broken_35() -> None:
    model, x = weight_only()
    weight = model[0].weight.dequantize()
    assert weight.dtype == torch.float32
    assert relative_error(model(x), F.linear(x, weight, model[0].bias)) < 1e-5


def repaired_35() -> None:
    model, x = weight_only()
    assert shrinks(network(64, 64), model) > 2
    tensor = model[0].weight
    by_codes = torch._weight_int8pack_mm(x, tensor.qdata, tensor.scale.flatten()) + model[0].bias
    assert tensor.qdata.dtype == torch.int8 and relative_error(by_codes, model(x)) < 1e-5
    int8 = dynamic_int8(network(64, 64))
    weight, observer = int8[0].weight(), MinMaxObserver(reduce_range=torch.backends.quantized.engine != "qnnpack")
    observer(x)
    scale, zero_point = observer.calculate_qparams()
    codes = torch.quantize_per_tensor(x, scale.item(), zero_point.item(), torch.quint8).int_repr()
    product = (codes.int() - zero_point.int()) @ weight.int_repr().int().T  # (batch, outputs), integers
    assert relative_error(int8(x), product * scale * weight.q_scale() + int8[0].bias()) < 1e-3


SNIPPET_35 = Snippet(
    number=35,
    chapter=PYTORCH,
    says="Quantizing the weights makes the model compute faster.",
    broken=broken_35,
    message=None,
    error=None,
    happens="Not by itself: with torchao's `Int8WeightOnlyConfig`, not compiled, a model multiplies as many float "
    "numbers as before, after an extra step that turns its weights into floats. That saves memory, not time.",
    works="A kernel that reads the codes themselves, `torch._weight_int8pack_mm(x, codes, scales)`, has the same "
    "result and fewer bytes to read. Or integer products, for which the inputs are quantized, too: "
    "`quantize_dynamic(model, {nn.Linear})`. Whether either is faster must be measured; see the end of this page.",
    repaired=repaired_35,
    unit="02",
)

SNIPPETS = (SNIPPET_12, SNIPPET_13, SNIPPET_14, SNIPPET_15, SNIPPET_16, SNIPPET_34, SNIPPET_35)
