"""The quantizable twin of the course model: same floats before, int8 where it should be after."""

import pytest
import torch
import torch.ao.nn.quantized as nnq
from torch import nn

from helpers import data, int8, known_warnings, metrics, quantizable
from helpers.checkpoint import load_course_model
from helpers.models import ModelConfig, TransformerLM

known_warnings.hide()
ENGINES = [name for name in ("x86", "onednn", "qnnpack") if name in torch.backends.quantized.supported_engines]
RESIDUALS = ["float", "int8"]
SMALL = ModelConfig(context=32, d_model=32, n_heads=2, n_layers=2, d_ff=64)


@pytest.fixture
def engine(request):
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = request.param
    int8.choose_engine()
    yield request.param
    torch.backends.quantized.engine = before


@pytest.fixture(scope="module")
def course_model():
    return load_course_model()


@pytest.fixture(scope="module")
def calibration():
    return data.windows("training", 16)[:, :256].split(8)


@pytest.mark.parametrize("residual", RESIDUALS)
def test_the_twin_has_the_same_weights_and_outputs_and_leaves_the_model_alone(course_model, residual):
    ids = data.windows("held_out", 2)[:, :100]
    twin = quantizable.quantizable(course_model, residual)
    with torch.no_grad():
        assert torch.equal(twin(ids), course_model(ids))
    assert twin.state_dict().keys() == course_model.state_dict().keys()
    assert twin.head.weight is twin.embedding.weight
    assert twin.embedding.weight is not course_model.embedding.weight


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
@pytest.mark.parametrize("residual", RESIDUALS)
def test_everything_with_a_matrix_is_int8_and_the_crossings_are_the_expected_ones(engine, residual):
    torch.manual_seed(0)
    model = TransformerLM(SMALL).eval()
    ids = torch.randint(256, (8, 32), generator=torch.Generator().manual_seed(1))
    answer = quantizable.static_int8(model, [ids], residual)
    assert not [type(m) for m in answer.modules() if type(m) in (nn.Linear, nn.Embedding)]
    assert sum(isinstance(m, nnq.Linear) for m in answer.modules()) == 6 * SMALL.n_layers + 1
    assert sum(isinstance(m, nnq.LayerNorm) for m in answer.modules()) == (
        2 * SMALL.n_layers + 1 if residual == "int8" else 0
    )
    inside = 2 if residual == "int8" else 4  # a block: softmax and GELU, and its two ways in and out
    assert quantizable.crossings(answer) == (inside * SMALL.n_layers + 1,) * 2
    with torch.no_grad():
        out = answer(ids[:, :20].contiguous()[:3])
    assert out.dtype == torch.float32 and out.shape == (3, 20, 256) and out.isfinite().all()


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_what_feeds_a_linear_has_as_many_bits_as_the_engine_multiplies_exactly(engine):
    prepared = quantizable.prepare(quantizable.quantizable(TransformerLM(SMALL)))
    qmax = 127 if engine == "x86" else 255
    block = prepared.blocks[0]
    feeding = [block.quant1, block.quant2, block.attention.mix, block.ffn.quant, prepared.quant]
    assert [m.activation_post_process.quant_max for m in feeding] == [qmax] * 5
    others = [block.attention.q, block.attention.scores, block.attention.quant, block.ffn.up, block.ffn.down]
    assert [m.activation_post_process.quant_max for m in others] == [255] * 5


@pytest.mark.parametrize(("residual", "limit"), [("float", 0.02), ("int8", 0.03)])
def test_static_int8_costs_little(course_model, calibration, residual, limit):
    windows = data.windows("held_out", 16)
    answer = quantizable.static_int8(course_model, calibration, residual)
    bits, reference = (metrics.bits_per_byte(m, [windows]) for m in (answer, course_model))
    assert abs(bits - reference) < limit
    assert metrics.file_bytes(course_model) > 3.5 * metrics.file_bytes(answer)


@pytest.mark.parametrize("residual", RESIDUALS)
def test_int8_stays_causal_and_no_observer_sees_an_infinity(course_model, calibration, residual):
    prepared = quantizable.prepare(quantizable.quantizable(course_model, residual))
    with torch.no_grad():
        prepared(calibration[0])
    ranges = [m.max_val - m.min_val for m in prepared.modules() if hasattr(m, "max_val") and m.max_val.numel() == 1]
    assert len(ranges) > 40 and all(torch.isfinite(r) for r in ranges)
    answer = quantizable.convert(prepared)
    ids = data.windows("held_out", 1)[:, :64].contiguous()
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 256
    with torch.no_grad():
        assert torch.equal(answer(ids)[0, :-1], answer(changed)[0, :-1])


def test_bad_input_gets_a_sentence(course_model):
    with pytest.raises(ValueError, match="choose"):
        quantizable.quantizable(course_model, "int4")
    with pytest.raises(ValueError, match="nothing to calibrate on"):
        quantizable.static_int8(course_model, [])
