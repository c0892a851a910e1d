"""One component at a time: names, bytes, and that nothing else is rounded."""

import pytest
import torch

from helpers import components
from helpers.models import ModelConfig, TransformerLM
from helpers.quantizable import quantizable
from helpers.rounding import round_to_nearest

SMALL = ModelConfig(context=16, d_model=32, n_heads=2, n_layers=2, d_ff=64)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TransformerLM(SMALL).eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(256, (4, 16), generator=torch.Generator().manual_seed(1))


def test_every_parameter_belongs_to_exactly_one_component(model):
    names = [n for c in components.COMPONENTS for n in components.weight_names(model, c)]
    assert len(names) == len(set(names))
    assert set(names) == {n for n, _ in model.named_parameters(remove_duplicate=False)} | {"positions"}
    total = sum(components.weight_bytes(model, c) for c in components.COMPONENTS)
    assert total == 4 * (sum(p.numel() for p in model.parameters()) + model.positions.numel())


def test_rounding_nothing_changes_nothing(model, ids):
    kept = {n: t.clone() for n, t in model.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(components.simulated(model, [], ids)(ids), model(ids))
        components.simulated(model, components.COMPONENTS, ids, 4, 4)
    assert all(torch.equal(t, kept[n]) for n, t in model.state_dict().items())


def test_only_the_named_weights_are_rounded(model, ids):
    twin = components.simulated(model, ["up"], ids, weight_bits=3, tensor_bits=None, blocks=[1])
    for name, weight in twin.named_parameters(remove_duplicate=False):
        original = model.get_parameter(name)
        if name == "blocks.1.ffn.up.weight":
            assert torch.equal(weight, round_to_nearest(original, 3, original.shape[1]))
        else:
            assert torch.equal(weight, original), name


def test_the_head_can_be_rounded_without_the_embedding(model, ids):
    twin = components.simulated(model, ["head"], ids, weight_bits=2, tensor_bits=None)
    assert torch.equal(twin.embedding.weight, model.embedding.weight)
    assert not torch.equal(twin.head.weight, model.head.weight)


def test_a_rounded_tensor_has_few_values_and_the_right_range(model, ids):
    seen = {}
    twin = components.simulated(model, ["probabilities"], ids, tensor_bits=3)
    twin.blocks[0].attention.quant.register_forward_hook(lambda m, i, o: seen.update(p=o))
    with torch.no_grad():
        twin(ids)
    assert len(seen["p"].unique()) <= 8
    assert seen["p"].min() == 0 and abs(float(seen["p"].max()) - 1) < 0.01


def test_recorded_tensors_are_those_of_the_float_model(model, ids):
    found = components.recorded(model, ids)
    maps = model.attention_maps(ids)
    assert [len(found[c]) for c in ("embedding", "probabilities", "residual", "norm", "positions")] == [1, 2, 5, 5, 0]
    for a, b in zip(found["probabilities"], maps, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(found["residual"][0], model.embed(ids))
        assert torch.equal(found["head"][0], quantizable(model)(ids))


@pytest.mark.parametrize("call", [components.weight_names, components.weight_bytes])
def test_an_unknown_component_gets_a_sentence(model, call):
    with pytest.raises(ValueError, match='no component "ffn"'):
        call(model, "ffn")
