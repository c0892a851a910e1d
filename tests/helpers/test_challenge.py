"""The judge of unit 06: honest entries are rebuilt and measured, whatever is not in a file is refused."""

import copy
import io
import json
import pickle
import subprocess
import sys
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from helpers import challenge, dates, entries, frontier, int8, packed, seq2seq
from helpers.checkpoint import DATE_READER
from helpers.frontier import Scheme
from helpers.packed import Refused
from helpers.seq2seq import Seq2Seq, Seq2SeqConfig

SMALL = Seq2SeqConfig(dates.VOCAB_SIZE, dates.SOURCE_LENGTH, dates.TARGET_LENGTH, 32, 2, 1, 48)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def engine():
    return int8.choose_engine()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(6)
    model = Seq2Seq(SMALL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def exam(model):
    return challenge.draw_exam(model, seed=1, count=40)


@pytest.fixture(scope="module")
def static(model):
    source, target, _ = dates.pairs("training", 40, 2)
    return seq2seq.static_int8(model, [(source, target)])


def header_of(content):
    length = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["packed"])


def rewritten(content, header=None, metadata=None, **tensors):
    """A packed file in which some tensors, or some of its header, are others; its hash is made anew."""
    header = header_of(content) | (header or {})
    tensors = load(content) | tensors
    plan = {name: Scheme(*scheme) for name, scheme in header["plan"].items()}
    header["sha256"] = packed._digest(Seq2SeqConfig(**header["config"]), plan, header["scales"], tensors)
    return save(tensors, {"packed": json.dumps(header, separators=(",", ":"))} | (metadata or {}))


# The packed format


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 8, 13, 64])
def test_bits_come_back(bits, count):
    codes = torch.randint(2**bits, (count,), generator=torch.Generator().manual_seed(count))
    stored = packed.pack_bits(codes, bits)
    assert stored.dtype == torch.uint8 and len(stored) == -(-count * bits // 8)
    assert torch.equal(packed.unpack_bits(stored, bits, count), codes.int())


def test_two_codes_in_a_byte_by_hand():
    assert packed.pack_bits(torch.tensor([1, 2, 3]), 4).tolist() == [0x21, 0x03]


@pytest.mark.parametrize("scheme", [Scheme(8), Scheme(4, 16), Scheme(3, "channel", False), Scheme(2, None, False)])
def test_float32_scales_store_exactly_what_rounding_gives(model, scheme):
    plan = frontier.everywhere(model, scheme)
    loaded = packed.unpack(packed.pack(model, plan, "float32"))
    expected = frontier.rounded(model, plan)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), expected.parameters(), strict=True))
    assert not loaded.training


def test_float16_scales_stay_within_half_a_step(model):
    plan = frontier.everywhere(model, Scheme(4, 16, False))
    loaded = packed.unpack(packed.pack(model, plan))
    for name, weight in frontier.matrices(model).items():
        groups = weight.detach().reshape(-1, 16)
        step = (groups.amax(1).clamp(min=0) - groups.amin(1).clamp(max=0)) / 15
        gap = (loaded.get_submodule(name).weight - weight).detach().reshape(-1, 16).abs().amax(1)
        assert (gap <= step * 0.52).all()


def test_what_is_not_planned_stays_as_it_is(model):
    loaded = packed.unpack(packed.pack(model, {"head": Scheme(3)}))
    assert torch.equal(loaded.embedding.weight, model.embedding.weight)
    assert torch.equal(loaded.encoder[0].norm1.bias, model.encoder[0].norm1.bias)
    assert not torch.equal(loaded.head.weight, model.head.weight)


def test_zero_and_constant_groups(model):
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.head.weight.zero_()
        twin.embedding.weight.fill_(0.25)
    loaded = packed.unpack(packed.pack(twin, frontier.everywhere(twin, Scheme(4, 16, False))))
    assert not loaded.head.weight.any()
    torch.testing.assert_close(loaded.embedding.weight, twin.embedding.weight, rtol=1e-3, atol=0)


def test_bytes_are_those_of_the_rule_and_a_short_header(model):
    plan = frontier.everywhere(model, Scheme(5, 16))
    rule = frontier.artefact_bytes(model, plan)
    assert rule <= len(packed.pack(model, plan, "float32")) <= rule + 3000


def test_packing_changes_neither_the_model_nor_the_random_state(model):
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    packed.unpack(packed.pack(model, frontier.everywhere(model, Scheme(3))))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"neck": Scheme(4)}, "no such Linear"),
        ({"head": Scheme(9)}, "2 to 8 bits"),
        ({"head": Scheme(4, 8)}, "groups of 8 weights have too many scales"),
        ({"head": Scheme(4, 20)}, "do not divide"),
        ({"head": Scheme(4, "row")}, "a number of weights"),
        ({"head": 4}, "gives each matrix a frontier.Scheme"),
        (None, "a plan is a dict"),
        (["head"], "a plan is a dict"),
    ],
)
def test_plans_that_cannot_be_stored(model, plan, message):
    with pytest.raises(Refused, match=message):
        packed.pack(model, plan)


def test_a_model_with_nan_is_not_packed(model):
    twin = copy.deepcopy(model)
    twin.head.bias.data[0] = torch.nan
    with pytest.raises(Refused, match=r"head.bias holds nan"):
        packed.pack(twin, {})


def tied(model):
    model.head.weight = model.embedding.weight
    return model


@pytest.mark.parametrize(
    "change", [nn.Module.half, nn.Module.double, tied, int8.dynamic_int8, lambda model: model.to("meta")]
)
def test_only_plain_float_models_are_packed(model, change):
    with pytest.raises(Refused, match="only a float32 model"):
        packed.pack(change(copy.deepcopy(model)), {})
    with pytest.raises(Refused, match="only a Seq2Seq can be packed"):
        packed.pack(nn.Linear(2, 2), {})


# Honest entries


def test_kinds_of_entries(model, exam, static):
    plan = frontier.everywhere(model, Scheme(8))
    entries = {
        "float": model,
        "dynamic int8": int8.dynamic_int8(model),
        "static int8": static,
        "packed": packed.pack(model, plan),
    }
    results = {kind: challenge.submit_entry(entry, kind, exam) for kind, entry in entries.items()}
    assert {kind: result.kind for kind, result in results.items()} == {kind: kind for kind in entries}
    assert results["float"].loss.estimate == 0 and results["float"].times_smaller == 1
    assert results["float"].loss.high == -results["float"].loss.low == pytest.approx(1.96 / 42, rel=1e-4)
    assert results["packed"].bytes == len(entries["packed"]) < results["dynamic int8"].bytes < results["float"].bytes
    for kind in ("dynamic int8", "static int8", "packed"):
        assert abs(results[kind].bits_per_character - results["float"].bits_per_character) < 0.1


def test_some_linear_layers_only(model, exam):
    part = torch.ao.quantization.quantize_dynamic(
        model, {"head": torch.ao.quantization.default_dynamic_qconfig}, dtype=torch.qint8
    )
    assert challenge.submit_entry(part, "head only", exam).kind == "dynamic int8"


def test_a_path_is_judged_as_its_bytes(model, exam, tmp_path):
    path = tmp_path / "entry.safetensors"
    path.write_bytes(packed.pack(model, {"head": Scheme(4)}))
    assert challenge.submit_entry(path, "x", exam) == challenge.submit_entry(path.read_bytes(), "x", exam)


def test_the_entry_is_left_alone(model, exam):
    entry, state = copy.deepcopy(model).train(), torch.get_rng_state()
    challenge.submit_entry(entry, "x", exam)
    assert entry.training and torch.equal(torch.get_rng_state(), state)


def test_points_extra_credit_and_dominance(model, monkeypatch):
    exam = challenge.draw_exam(model, seed=1, count=60)  # fewer could not prove a loss below the margin
    monkeypatch.setattr(challenge, "BUDGET", 30_000)
    float_result = challenge.submit_entry(model, "float", exam)
    assert not float_result.meets_budget and float_result.meets_floor and not float_result.points
    entry = packed.pack(model, frontier.everywhere(model, Scheme(8)))
    result = challenge.submit_entry(entry, "8 bits", exam, references=[float_result])
    assert result.meets_budget and result.extra[0] == "smaller than 90,000 bytes"
    if result.loss.estimate <= 0:
        assert result.dominates == ("float",)
    assert challenge.submit_entry(entry, "again", exam, references=[result]).dominates == ()
    assert json.loads(json.dumps(result.to_dict()))["bytes"] == len(entry)


def test_the_floor_needs_the_whole_interval(exam, model):
    all_right = replace(exam, right=torch.ones(40, dtype=torch.bool))  # as if the reference had read all of them
    result = challenge.submit_entry(model, "reads nothing", all_right)
    assert result.loss.estimate > 0.5 and not result.meets_floor and result.points == 0


# What is refused


class Wrapper(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model


def with_buffer(model):
    model.register_buffer("spare", torch.zeros(100), persistent=False)


def with_parameter(model):
    model.head.register_parameter("old", nn.Parameter(torch.zeros(3)))


def with_hook(model):
    model.head.register_forward_hook(lambda *_: None)


def with_own_forward(model):
    model.decode = types.MethodType(lambda self, *_: None, model)


def with_other_layer(model):
    class Linear(nn.Linear):
        pass

    model.head.__class__ = Linear


def with_other_positions(model):
    model.positions.mul_(-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_buffer, r"spare \(400 bytes of torch.float32\) is hidden"),
        (with_parameter, r"head.old \(12 bytes"),
        (with_hook, "head has hooks"),
        (with_own_forward, "a decode of its own"),
        (with_other_layer, "would not hold its Python code"),
        (with_other_positions, "computes something else"),
    ],
)
@pytest.mark.parametrize("kind", ["float", "dynamic", "static"])
def test_models_that_hide_something(model, static, exam, change, message, kind):
    entry = {"float": model, "dynamic": None, "static": static}[kind]
    entry = int8.dynamic_int8(model) if entry is None else copy.deepcopy(entry)
    change(entry)
    with pytest.raises(Refused, match=message):
        challenge.submit_entry(entry, "x", exam)


def test_unknown_classes_and_other_configurations(model, exam):
    with pytest.raises(Refused, match="Wrapper is a class that the judge does not know"):
        challenge.submit_entry(Wrapper(model), "x", exam)
    with pytest.raises(Refused, match="another configuration"):
        challenge.submit_entry(Seq2Seq(replace(SMALL, d_ff=8)), "x", exam)
    with pytest.raises(Refused, match="another one than the reference"):
        challenge.submit_entry(packed.pack(Seq2Seq(replace(SMALL, d_ff=8)), {}), "x", exam)
    with pytest.raises(Refused, match="not NoneType"):
        challenge.submit_entry(None, "x", exam)
    with pytest.raises(Refused, match="device 'meta'"):
        challenge.submit_entry(copy.deepcopy(model).to("meta"), "x", exam)
    with pytest.raises(Refused, match="share one tensor"):
        challenge.submit_entry(tied(copy.deepcopy(model)), "x", exam)
    bare = copy.deepcopy(model)
    del bare.positions
    with pytest.raises(Refused, match="positions is missing"):
        challenge.submit_entry(bare, "x", exam)


def test_paths_and_lengths(exam, tmp_path):
    for path in (tmp_path, tmp_path / "none.bin", str(tmp_path / "none.bin")):
        with pytest.raises(Refused, match="there is no file"):
            challenge.submit_entry(path, "x", exam)
    long = tmp_path / "long.bin"
    with long.open("wb") as file:
        file.truncate(10**10)  # takes no space, and is not read
    for entry in (long, bytes(5 * exam.bytes)):
        with pytest.raises(Refused, match="nothing above"):
            challenge.submit_entry(entry, "x", exam)


def test_an_exam_has_pairs_enough(model):
    for count in (0, 1, -3):
        with pytest.raises(Refused, match="at least 20 pairs"):
            challenge.draw_exam(model, count=count)


def test_who_chooses_asks_validation_dates(model):
    asked = {tuple(row) for row in challenge.draw_exam(model, 1, 40, split="validation").source.tolist()}
    assert asked == {tuple(row) for row in dates.pairs("validation", 40, 1)[0].tolist()}


def test_infinite_bits_become_null(model, exam):
    result = replace(challenge.submit_entry(model, "x", exam), bits_per_character=torch.inf)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["bits_per_character"] is None


def test_every_flipped_byte_is_refused_or_harmless(model, exam):
    content = packed.pack(model, frontier.everywhere(model, Scheme(4)))
    for place in range(0, len(content), len(content) // 60):
        damaged = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        with pytest.raises(Refused):
            packed.unpack(damaged, SMALL)


@pytest.mark.parametrize("content", [b"", b"abc", b"PK\x03\x04nothing", b"\x00" * 40, pickle.dumps({"a": 1})])
def test_no_artefact_at_all(exam, content):
    with pytest.raises(Refused):
        challenge.submit_entry(content, "x", exam)


def test_pickled_code_is_never_run(model, exam, tmp_path):
    witness = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (witness,)

    for entry in (Bomb(), {"about": "{}", "state": {"x": Bomb()}}, model):
        stream = io.BytesIO()
        torch.save(entry, stream)
        with pytest.raises(Refused, match="pickled Python code"):
            challenge.submit_entry(stream.getvalue(), "x", exam)
    with pytest.raises(Refused, match="runs no code"):
        challenge.submit_entry(pickle.dumps(Bomb()), "x", exam)
    assert not witness.exists()


def test_files_that_hold_more_than_the_model(model, exam):
    content = packed.pack(model, frontier.everywhere(model, Scheme(4, 16, False)))
    scales = load(content)["scales"]
    broken = {
        "'answers', 80 bytes": rewritten(content, answers=torch.zeros(20)),
        "weights nor their description": rewritten(content, metadata={"note": "x" * 1000}),
        "hold nan or inf": rewritten(content, scales=torch.full_like(scales, torch.inf)),
        "zero or negative": rewritten(content, scales=-scales),
        "its plan needs": rewritten(content, scales=scales.repeat(2)),
        "too many scales": rewritten(content, {"plan": {"head": [4, 8, True]}}),
        "no part of the model": rewritten(packed.pack(model, {}), scales=torch.ones(4, dtype=torch.float16)),
        "that is no code of 4 bits": rewritten(content, zero_points=torch.full_like(load(content)["zero_points"], 16)),
    }
    for message, bad in broken.items():
        with pytest.raises(Refused, match=message):
            challenge.submit_entry(bad, "x", exam)


def test_a_code_that_the_scheme_does_not_have(model):
    content = packed.pack(model, frontier.everywhere(model, Scheme(4)))
    codes = load(content)["codes"].clone()
    codes[0] = 0xFF  # 15, where symmetric 4 bits end at 14
    with pytest.raises(Refused, match="holds a code that 4 bits"):
        packed.unpack(rewritten(content, codes=codes))


def test_headers_that_ask_for_too_much(model):
    content, deep = packed.pack(model, {"head": Scheme(4)}), "[" * 100_000
    for message, header in {
        "its plan needs": {"config": SMALL.to_dict() | {"vocab_size": 10_000_000}},
        "none that a model can be built of": {"config": SMALL.to_dict() | {"n_layers": 10**9}},
        "can be built": {"config": SMALL.to_dict() | {"source_length": 10**12}},
        "be built": {"config": SMALL.to_dict() | {"d_model": 32.0}},
        "scales are stored": {"scales": ["float16"]},
    }.items():
        text = json.dumps(header_of(content) | header)
        with pytest.raises(Refused, match=message):
            packed.unpack(save(load(content), {"packed": text}))
    for key in ("packed", "float"):
        with pytest.raises(Refused, match="header is damaged"):
            entries.rebuilt(save(load(content), {key: deep}), SMALL)


def rezipped(content, method=zipfile.ZIP_STORED, more=()):
    stream, archive = io.BytesIO(), zipfile.ZipFile(io.BytesIO(content))
    with zipfile.ZipFile(stream, "w", method) as out:
        for name in archive.namelist():
            out.writestr(name, archive.read(name))
        for name in more:
            out.writestr(name, "1976-07-04 " * 100)
    return stream.getvalue()


def with_comment(content):
    stream = io.BytesIO(content)
    with zipfile.ZipFile(stream, "a") as archive:
        archive.comment = b"1976-07-04"
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_int8_archives_are_what_the_judge_writes(model, static, exam, kind):
    content = entries.written(int8.dynamic_int8(model) if kind == "dynamic" else static, model)
    assert challenge.submit_entry(content, "x", exam).kind == f"{kind} int8"
    records = zipfile.ZipFile(io.BytesIO(content)).infolist()
    place = max(records, key=lambda record: record.file_size).header_offset + 600  # among its numbers
    for message, bad in {
        "is compressed": rezipped(content, zipfile.ZIP_DEFLATED),
        "neither weights nor": rezipped(content, more=["archive/answers.txt"]),
        "nor their description": with_comment(content),
        "is damaged": content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :],
    }.items():
        with pytest.raises(Refused, match=message):
            challenge.submit_entry(bad, "x", exam)


def changed(state, name, value):
    new = copy.copy(state)
    new[name], new._metadata = value, state._metadata
    return new


def test_int8_states_that_no_kernel_can_use(model, static, exam):
    state, about = static.state_dict(), {"config": SMALL.to_dict(), "kind": "static", "dynamic": []}
    name = "encoder.0.quant1"
    for message, bad in {
        "scale that is zero": int8_file(about, changed(state, f"{name}.scale", -state[f"{name}.scale"])),
        "no code of 8 bits": int8_file(about, changed(state, "head.zero_point", torch.tensor(10**9))),
        "do not fit": int8_file(about, dict(state)),
        "neither weights": int8_file(about | {"dynamic": ["nonsense"]}, state),
    }.items():
        with pytest.raises(Refused, match=message):
            challenge.submit_entry(bad, "x", exam)


def test_tensors_of_other_kinds(model, exam):
    entry = int8.dynamic_int8(model)
    about = {"config": SMALL.to_dict(), "kind": "dynamic", "dynamic": entries._dynamic(entry)}
    state, weight = entry.state_dict(), entry.embedding.weight.detach()
    spare = torch.zeros(20_000)
    spare[: weight.numel()] = weight.flatten()
    for message, tensor in [
        ("without plain numbers", weight.to_sparse()),
        ("without plain numbers", weight.to_sparse_csr()),
        ("without plain numbers", weight.to("meta")),
        ("neither weights nor", spare[: weight.numel()].view_as(weight)),
        ("neither weights nor", torch.zeros(1, 1).expand(weight.shape)),
    ]:
        with pytest.raises(Refused, match=message):
            challenge.submit_entry(int8_file(about, changed(state, "embedding.weight", tensor)), "x", exam)
    for names in ([["head"]], [1, "neck"], about["dynamic"] * 2, about["dynamic"][::-1]):
        with pytest.raises(Refused):
            challenge.submit_entry(int8_file(about | {"dynamic": names}, state), "x", exam)
    with pytest.raises(Refused, match="neither weights nor"):
        challenge.submit_entry(int8_file(about | {"dynamic": []}, model.state_dict()), "x", exam)
    stream = io.BytesIO()
    torch.save({"about": "[" * 100_000, "state": state}, stream)
    with pytest.raises(Refused, match="cannot be read"):
        challenge.submit_entry(stream.getvalue(), "x", exam)


def int8_file(about, state):
    stream = io.BytesIO()
    torch.save({"about": json.dumps(about), "state": state}, stream)
    return stream.getvalue()


def test_int8_files_that_hold_something_else(model, exam):
    entry = int8.dynamic_int8(model)
    names = [name for name, part in entry.named_modules() if isinstance(part, torch.ao.nn.quantized.dynamic.Linear)]
    about = {"config": SMALL.to_dict(), "kind": "dynamic", "dynamic": names}
    state = entry.state_dict()
    assert challenge.submit_entry(int8_file(about, state), "x", exam).kind == "dynamic int8"
    wider = int8.dynamic_int8(Seq2Seq(replace(SMALL, d_ff=56))).state_dict()
    for message, bad in {
        r"'table' \(4,000 bytes\)": int8_file(about, state | {"table": torch.zeros(1000)}),
        "lacks 'head.scale'": int8_file(about, {k: v for k, v in state.items() if k != "head.scale"}),
        r"ffn.up.*\(56, 32\)": int8_file(about, wider),
        "neither weights nor": int8_file(about | {"notes": "x" * 9999}, state),
        "no Linear layer 'neck'": int8_file(about | {"dynamic": ["neck"]}, state),
        "kind 'magic'": int8_file(about | {"kind": "magic"}, state),
    }.items():
        with pytest.raises(Refused, match=message):
            challenge.submit_entry(bad, "x", exam)


# Another process

TRAINED = pytest.mark.skipif(not DATE_READER.is_file(), reason="the date reader is not trained here")


@TRAINED
def test_one_pass_finds_what_greedy_decoding_finds():
    reader = challenge.load_date_reader()
    source, target, _ = dates.pairs("validation", 120, 9)
    for bits in (8, 3, 2):
        model = frontier.rounded(reader, frontier.everywhere(reader, Scheme(bits, "channel", False)))
        right, _ = challenge.read(model, source, target)
        assert torch.equal(right, seq2seq.exact_matches(model, source, target))


@TRAINED
def test_the_command_line_judges_in_a_process_of_its_own(tmp_path):
    reader = challenge.load_date_reader()
    path = tmp_path / "entry.safetensors"
    path.write_bytes(packed.pack(reader, frontier.everywhere(reader, Scheme(4))))
    command = [sys.executable, "-m", "helpers.challenge", str(path), "--seed", "3", "--count", "60"]
    report = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    here = challenge.submit_entry(path, seed=3, count=60)
    assert report["bytes"] == path.stat().st_size == here.bytes and report["pairs"] == 60 and report["seed"] == 3
    assert not report["meets_budget"] and report["exact"][0] > 0.9
    path.write_bytes(b"nothing")
    assert "refused" in json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
