"""The encoder-decoder of unit 06: nn.Transformer's numbers in float, int8 where it should be, and its masks in both."""

import copy
import math

import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.nn.functional as F
from torch import nn

from helpers import dates, int8, known_warnings, quantizable, seq2seq
from helpers.models import causal_mask, sinusoidal_positions
from helpers.seq2seq import Seq2Seq, Seq2SeqConfig

known_warnings.hide()
ENGINES = [name for name in ("x86", "onednn", "qnnpack") if name in torch.backends.quantized.supported_engines]
SMALL = Seq2SeqConfig(vocab_size=19, source_length=12, target_length=7, d_model=24, n_heads=3, d_ff=40)


@pytest.fixture
def engine(request):
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = request.param
    int8.choose_engine()
    yield request.param
    torch.backends.quantized.engine = before


def pytorch_layers(config: Seq2SeqConfig) -> nn.Transformer:
    """nn.Transformer of this size, with weights for which every part matters."""
    sizes = config.d_model, config.n_heads, config.d_ff, 0.0, F.gelu
    kind = {"batch_first": True, "norm_first": True}
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(*sizes, **kind),
        config.n_layers,
        nn.LayerNorm(config.d_model),
        enable_nested_tensor=False,
    )
    model = nn.Transformer(
        config.d_model,
        config.n_heads,
        num_decoder_layers=config.n_layers,
        dim_feedforward=config.d_ff,
        dropout=0.0,
        activation=F.gelu,
        custom_encoder=encoder,
        **kind,
    )
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def twins(seed: int, config: Seq2SeqConfig = SMALL) -> tuple[Seq2Seq, nn.Transformer]:
    torch.manual_seed(seed)
    theirs, ours = pytorch_layers(config), Seq2Seq(config)
    missing, unexpected = ours.load_state_dict(seq2seq.our_names(theirs.state_dict()), strict=False)
    assert unexpected == [] and set(missing) == {"embedding.weight", "head.weight", "head.bias"}
    return ours.eval(), theirs


def ids_of(seed: int, count: int = 5, config: Seq2SeqConfig = SMALL) -> tuple[torch.Tensor, torch.Tensor]:
    """Sources of different lengths, filled up with PAD, and targets."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(3, config.vocab_size, (count, config.source_length), generator=generator)
    for row in range(count):
        source[row, 4 + row :] = config.pad
    return source, torch.randint(3, config.vocab_size, (count, config.target_length), generator=generator)


def expected_logits(ours: Seq2Seq, theirs: nn.Transformer, source, target) -> torch.Tensor:
    def embedded(ids: torch.Tensor) -> torch.Tensor:
        positions = sinusoidal_positions(ids.shape[1], ours.config.d_model)
        return F.embedding(ids, ours.embedding.weight) * math.sqrt(ours.config.d_model) + positions

    padding = source == ours.config.pad
    x = theirs(
        embedded(source),
        embedded(target),
        tgt_mask=~causal_mask(target.shape[1]),
        src_key_padding_mask=padding,
        memory_key_padding_mask=padding,
    )
    return F.linear(x, ours.head.weight, ours.head.bias)


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1])
def test_float_logits_are_those_of_nn_transformer_with_the_same_weights_and_masks(seed):
    ours, theirs = twins(seed)
    source, target = ids_of(seed + 10)
    torch.testing.assert_close(
        ours(source, target), expected_logits(ours, theirs, source, target), atol=2e-5, rtol=1e-5
    )


def test_our_names_copies():
    theirs = pytorch_layers(SMALL)
    ours = seq2seq.our_names(theirs.state_dict())
    assert ours["decoder.1.cross.v.bias"].shape == (SMALL.d_model,)
    for tensor in ours.values():
        assert all(tensor.data_ptr() != parameter.data_ptr() for parameter in theirs.parameters())


@torch.no_grad()
@pytest.mark.parametrize("engine", ENGINES, indirect=True)
@pytest.mark.parametrize("kind", ["float", "int8"])
def test_no_position_sees_the_future_and_padding_is_never_looked_at(engine, kind):
    ours, _ = twins(2)
    source, target = ids_of(12)
    if kind == "int8":
        ours = seq2seq.static_int8(ours, [(source, target)])
    before = ours(source, target)
    later = target.clone()
    later[:, -1] = (later[:, -1] - 2) % 16 + 3
    torch.testing.assert_close(ours(source, later)[:, :-1], before[:, :-1])
    assert not torch.allclose(ours(source, later)[:, -1], before[:, -1])
    mask = ours.source_mask(source)
    memory = ours.encode(source)
    numbers = memory.dequantize() if memory.is_quantized else memory
    changed = torch.where(mask[:, 0, 0, :, None], numbers, -numbers)
    if memory.is_quantized:
        changed = torch.quantize_per_tensor(changed, memory.q_scale(), memory.q_zero_point(), memory.dtype)
    torch.testing.assert_close(ours.decode(target, changed, mask), ours.decode(target, memory, mask))


@torch.no_grad()
def test_shifted_begins_with_start_and_drops_the_last_id():
    target = torch.tensor([[7, 8, 9]])
    assert seq2seq.shifted(target).tolist() == [[1, 7, 8]]
    assert seq2seq.shifted(target, start=5).tolist() == [[5, 7, 8]]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["float", "int8"])
def test_greedy_takes_the_likeliest_id_of_each_step_and_encodes_once(kind):
    ours, _ = twins(3)
    source, target = ids_of(13)
    if kind == "int8":
        ours = seq2seq.static_int8(ours, [(source, target)])
    calls = []
    ours.encoder_norm.register_forward_hook(lambda *_: calls.append(1))
    answer = seq2seq.greedy(ours, source)
    assert answer.shape == (len(source), SMALL.target_length) and answer.dtype == torch.int64 and len(calls) == 1
    best = ours(source, seq2seq.shifted(answer)).argmax(dim=-1)
    assert torch.equal(best, answer)
    assert seq2seq.exact_matches(ours, source, answer, batch=2).all()
    wrong = answer.clone()
    wrong[1, -1] += 1
    assert seq2seq.exact_matches(ours, source, wrong).tolist() == [True, False, True, True, True]


@torch.no_grad()
@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_static_int8_is_int8_throughout_near_float_and_leaves_the_model_alone(engine):
    ours, _ = twins(4)
    kept = copy.deepcopy(ours)
    source, target = ids_of(14, count=8)
    answer = seq2seq.static_int8(ours, [(source, target)])
    assert all(torch.equal(a, b) for a, b in zip(kept.state_dict().values(), ours.state_dict().values(), strict=True))
    assert not [m for m in answer.modules() if type(m) in (nn.Linear, nn.Embedding)]
    assert sum(isinstance(m, nnq.Linear) for m in answer.modules()) == (6 + 10) * SMALL.n_layers + 1
    # a block: in and out of each half, and around softmax and GELU; the ends: memory in, head in and out
    into, out_of = (4 + 6) * SMALL.n_layers + 2, (4 + 6) * SMALL.n_layers + 1
    assert quantizable.crossings(answer) == (into, out_of)
    assert answer.encode(source).is_quantized and not answer(source, target).is_quantized
    decoded = seq2seq.shifted(target)
    expected = ours(source, decoded)
    error = (answer(source, decoded) - expected).norm() / expected.norm()
    assert error < 0.1


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_what_feeds_a_linear_has_as_many_bits_as_the_engine_multiplies_exactly(engine):
    prepared = seq2seq.prepare(Seq2Seq(SMALL))
    qmax = 127 if engine == "x86" else 255
    block = prepared.decoder[0]
    feeding = [block.quant1, block.quant2, block.quant3, block.cross.mix, block.ffn.quant]
    feeding += [prepared.quant, prepared.quant_memory]
    assert [m.activation_post_process.quant_max for m in feeding] == [qmax] * len(feeding)
    others = [block.cross.q, block.cross.scores, block.cross.quant, block.attention.quant, block.ffn.up]
    assert [m.activation_post_process.quant_max for m in others] == [255] * len(others)


def test_calibration_on_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to calibrate on"):
        seq2seq.static_int8(Seq2Seq(SMALL), [])


def test_bad_input_is_explained():
    with pytest.raises(ValueError, match="d_model=24 cannot be split into n_heads=5 heads of equal width"):
        Seq2SeqConfig(19, 12, 7, d_model=24, n_heads=5)
    ours, (source, target) = Seq2Seq(SMALL), ids_of(15)
    with pytest.raises(ValueError, match="24 ids in a row are too many: this model has 12 positions"):
        ours(torch.cat([source, source], dim=1), target)
    for answer in (target[:1], target[:, :1], target[:, :-1]):
        with pytest.raises(ValueError, match=r"5 sources need targets of shape \(5, 7\), not"):
            seq2seq.exact_matches(ours, source, answer)
    with pytest.raises(ValueError, match=r"1 sources need targets of shape \(1, 7\)"):
        seq2seq.exact_matches(ours, source[:1], target)


def test_the_configuration_of_the_date_reader_fits_the_task():
    config = Seq2SeqConfig(dates.VOCAB_SIZE, dates.SOURCE_LENGTH, dates.TARGET_LENGTH)
    assert (config.pad, config.start, config.end) == (dates.PAD, dates.START, dates.END)
    assert Seq2SeqConfig(**config.to_dict()) == config
