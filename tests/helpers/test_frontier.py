"""The rule of size, the Pareto set, the fused model, byte budgets, and a tiny run of benchmarks/frontier.py."""

import itertools
import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import frontier as bench
from helpers import budget, data, frontier, fused, known_warnings, metrics, profiling
from helpers.frontier import Scheme
from helpers.models import ModelConfig, TransformerLM

SMALL = ModelConfig(d_model=32, n_heads=2, n_layers=2, d_ff=64, context=64)


@pytest.fixture
def model():
    known_warnings.hide()
    torch.manual_seed(0)
    return TransformerLM(SMALL).eval()


def ids(rows=4, time=33):
    return torch.randint(256, (rows, time), generator=torch.Generator().manual_seed(1))


def test_frontier_is_what_brute_force_finds():
    points = np.random.default_rng(0).integers(0, 5, (60, 3))
    below = (points[None] <= points[:, None]).all(2) & (points[None] < points[:, None]).any(2)
    assert frontier.frontier(points.tolist()) == np.flatnonzero(~below.any(1)).tolist()


def test_equal_points_stay():
    assert frontier.frontier([(1, 2), (1, 2), (2, 1), (2, 2)]) == [0, 1, 2]


def test_nan_is_refused_and_inf_is_not():
    with pytest.raises(ValueError, match="point 1 holds nan"):
        frontier.frontier([(1, 2), (float("nan"), 0)])
    assert frontier.frontier([(1, float("inf")), (2, 1), (2, float("inf"))]) == [0, 1]


def test_a_plan_that_does_not_fit_the_model_is_refused(model):
    with pytest.raises(ValueError, match=r"names blocks\.0\.fnn\.up: the model has no such"):
        frontier.artefact_bytes(model, {"blocks.0.fnn.up": Scheme()})
    with pytest.raises(ValueError, match="groups of 24 do not divide rows of 32"):
        frontier.artefact_bytes(model, {"head": Scheme(4, 24)})


def test_float_bytes_are_those_of_the_parameters(model):
    assert frontier.artefact_bytes(model, {}) == 4 * sum(p.numel() for p in model.parameters())


def test_bytes_count_codes_scales_and_zero_points(model):
    floats = frontier.artefact_bytes(model, {})
    weight = model.blocks[0].ffn.up.weight  # (64, 32)
    for scheme, expected in [
        (Scheme(8, None), 64 * 32 + 4),
        (Scheme(8, "channel"), 64 * 32 + 4 * 64),
        (Scheme(4, 16), 64 * 32 // 2 + 4 * 128),
        (Scheme(3, 32, False), 64 * 32 * 3 // 8 + 5 * 64),
    ]:
        assert scheme.bytes(weight) == expected
        with_it = frontier.artefact_bytes(model, {"blocks.0.ffn.up": scheme}, tensor_scales=2)
        assert with_it == floats - 4 * weight.numel() + expected + 10


def test_a_tied_matrix_counts_once_only_if_both_use_one_scheme(model):
    one, two = Scheme(4, 32), Scheme(8)
    both = frontier.artefact_bytes(model, {"embedding": one, "head": one})
    apart = frontier.artefact_bytes(model, {"embedding": one, "head": two})
    assert apart - both == two.bytes(model.head.weight)


def test_size_is_near_the_file_of_a_real_int8_model(model):
    wide = TransformerLM(ModelConfig(d_model=128, n_heads=2, n_layers=2, d_ff=512, context=64)).eval()
    plan = {name: Scheme(8, None) for name in frontier.matrices(wide) if name != "embedding"}
    counted = frontier.artefact_bytes(wide, plan | {"embedding": Scheme(8, "channel", False)})
    assert counted == pytest.approx(metrics.file_bytes(fused.dynamic_int8(wide)), rel=0.1)


def test_rounding_by_plan_leaves_the_rest_and_the_original_alone(model):
    before = {name: p.clone() for name, p in model.named_parameters()}
    twin = frontier.rounded(model, {"head": Scheme(2), "blocks.1.ffn.up": Scheme(4, 32)})
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert torch.equal(twin.embedding.weight, model.embedding.weight)
    assert twin.head.weight.unique().numel() <= 3 * 256 and not torch.equal(twin.head.weight, model.head.weight)


def test_fused_attention_computes_what_the_model_computes(model):
    with torch.no_grad():
        assert torch.allclose(fused.fused(model)(ids()), model(ids()), atol=1e-4)
        changed = ids().clone()
        changed[:, -1] = 0
        assert torch.equal(fused.fused(model)(changed)[:, :-5], fused.fused(model)(ids())[:, :-5])


@pytest.mark.parametrize("make", ["dynamic", "static"])
def test_fused_int8_models_are_near_the_float_model(model, make):
    candidate = fused.dynamic_int8(model) if make == "dynamic" else fused.static_int8(model, [ids(8)])
    with torch.no_grad():
        wanted, got = model(ids()), candidate(ids()[:, :])
    assert (got - wanted).norm() < 0.1 * wanted.norm() and not torch.equal(got, wanted)


def test_static_needs_calibration_and_keep_leaves_layers_float(model):
    with pytest.raises(ValueError, match="nothing to calibrate"):
        fused.static_int8(model, [])
    kept = fused.dynamic_int8(model, keep=lambda name: "attention" in name)
    assert isinstance(kept.blocks[0].attention.q, torch.nn.Linear)
    assert not isinstance(kept.blocks[0].ffn.up, torch.nn.Linear)


def test_profile_names_the_products(model, capfd):
    times = profiling.operation_times(lambda: model(ids()))
    assert any("addmm" in name for name in times) and all(value >= 0 for value in times.values())
    assert capfd.readouterr().err == ""


def test_the_clock_sees_the_linear_layers_and_leaves_no_hooks(model):
    shares = profiling.linear_shares(model, ids(), calls=4)
    assert len(shares) == 4 and all(0 < share < 1 for share in shares)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_the_core_of_attention_can_be_replaced(model):
    twin = fused.fused(model)
    for block in twin.blocks:
        block.attention.core = lambda q, k, v, attn_mask=None, is_causal=True: torch.zeros_like(v)
    with torch.no_grad():
        assert not torch.allclose(twin(ids()), model(ids()), atol=1e-3)
        assert torch.allclose(fused.fused(model)(ids()), model(ids()), atol=1e-4)


def case(seed):
    rng = np.random.default_rng(seed)
    weights = {f"layer {i}": 8 * int(rng.integers(10, 60)) for i in range(5)}
    return weights, {n: {b: float(rng.uniform(1, 9) * 0.4**b) for b in (2, 3, 4, 8)} for n in weights}


@pytest.mark.parametrize("seed", range(5))
def test_exact_allocation_is_brute_force_and_greedy_is_between_it_and_reversed(seed):
    weights, loss = case(seed)
    limit = budget.size(weights, dict.fromkeys(weights, 4))
    total = lambda bits: sum(loss[n][b] for n, b in bits.items())  # noqa: E731
    every = (dict(zip(weights, some, strict=True)) for some in itertools.product((2, 3, 4, 8), repeat=5))
    best = min(total(bits) for bits in every if budget.size(weights, bits) <= limit)
    exact, greedy = budget.exact(weights, loss, limit), budget.greedy(weights, loss, limit)
    worst = budget.greedy(weights, loss, limit, worst_first=True)
    assert all(budget.size(weights, bits) <= limit for bits in (exact, greedy, worst))
    assert total(exact) == pytest.approx(best)
    assert best - 1e-9 <= total(greedy) <= total(worst)


def test_greedy_buys_no_harm_and_bears_a_price_of_nothing():
    loss = {"a": {2: 1.0, 4: 3.0}, "b": {2: 2.0, 4: 2.0, 8: 1.0}}
    assert budget.greedy({"a": 80, "b": 80}, loss, 10_000) == {"a": 2, "b": 8}
    assert budget.greedy({"a": 80, "b": 80}, loss, 10_000, worst_first=True)["a"] == 4
    assert budget.greedy({"a": 1, "b": 80}, {"a": {2: 1.0, 4: 0.5}, "b": loss["b"]}, 20) == {"a": 4, "b": 2}


def test_an_impossible_budget_is_refused():
    for solve in (budget.exact, budget.greedy):
        with pytest.raises(ValueError, match="fewest bits"):
            solve({"a": 80}, {"a": {4: 1.0, 8: 0.0}}, 39)


def test_a_tiny_run_writes_both_files(tmp_path, monkeypatch):
    wanted = ("float", "4 bits, per channel", "dynamic int8, embedding 4", "static int8, min/max, 1 document")
    chosen = bench.configurations
    monkeypatch.setattr(bench, "configurations", lambda *a: {k: v for k, v in chosen(*a).items() if k in wanted})
    monkeypatch.setattr(bench, "NOISE", 10.0)
    monkeypatch.setattr(
        bench,
        "load_course_model",
        lambda: TransformerLM(ModelConfig(d_model=32, n_heads=2, n_layers=1, d_ff=64)).eval(),
    )
    target = tmp_path / "frontier.json"
    monkeypatch.setattr(sys, "argv", ["frontier", "--windows", "3", "--repeats", "6", "--output", str(target)])
    bench.main()
    report = json.loads(target.read_text())
    assert set(report["results"]) == set(wanted) and report["seed"] == bench.SEED
    assert {"processor", "torch", "threads", "int8_engine"} <= set(report["machine"])
    row = report["results"]["4 bits, per channel"]
    assert row["difference_interval"][0] <= row["difference"] <= row["difference_interval"][1] and row["simulated"]
    assert report["results"]["float"]["difference"] == 0
    assert "| 4 bits, per channel |" in target.with_suffix(".md").read_text()
    assert "time / fused float" in target.with_suffix(".md").read_text()


def test_references_of_half_size_and_only_some_configurations(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "NOISE", 100.0)
    monkeypatch.setattr(
        bench,
        "load_course_model",
        lambda: TransformerLM(ModelConfig(d_model=32, n_heads=2, n_layers=1, d_ff=64)).eval(),
    )
    target, names = tmp_path / "some.json", ["float, fused attention", "bfloat16, fused attention"]
    monkeypatch.setattr(
        sys, "argv", ["frontier", "--windows", "3", "--repeats", "6", "--output", str(target), "--only", *names]
    )
    bench.main()
    rows = json.loads(target.read_text())["results"]
    assert list(rows) == ["float", *names] and rows[names[1]]["bytes"] == rows["float"]["bytes"] // 2


def test_there_are_at_least_24_configurations():
    known_warnings.hide()
    model = TransformerLM(ModelConfig(d_model=32, n_heads=2, n_layers=1, d_ff=64))
    assert len(bench.configurations(model, data.windows("training", 2)[:, :64])) >= 24
