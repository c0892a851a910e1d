"""The benchmark of quantization-aware training: its rounding, its gradient, its schedule."""

import copy
import json

import pytest
import torch

from benchmarks import qat
from benchmarks.round_to_nearest import RESULTS
from helpers.models import ModelConfig, TransformerLM
from helpers.rounding import round_to_nearest

SMALL = ModelConfig(context=16, d_model=32, n_heads=2, n_layers=1, d_ff=64)


@pytest.mark.parametrize(("bits", "group_size"), [(4, "channel"), (3, 16), (2, None)])
def test_the_fake_quantized_weight_is_the_rounded_one_and_gradients_pass(bits, group_size):
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    made = qat.Rounding(bits, group_size)(weight)
    size = 32 if group_size == "channel" else group_size
    assert torch.allclose(made, round_to_nearest(weight.detach(), bits, size), atol=1e-6)
    made.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_frozen_scales_stay_and_clamped_weights_get_no_gradient():
    rounding = qat.Rounding(4, "channel")
    rounding(torch.ones(1, 4))
    rounding.frozen = True
    weight = torch.tensor([[0.5, 3.0, -3.0, 1.0]], requires_grad=True)
    made = rounding(weight)
    assert made.tolist()[0][1:] == pytest.approx([1.0, -1.0, 1.0])
    made.sum().backward()
    assert weight.grad.tolist() == [[1.0, 0.0, 0.0, 1.0]]


def test_training_moves_a_copy_keeps_the_tie_and_lowers_the_loss():
    torch.manual_seed(0)
    model = TransformerLM(SMALL)
    kept = copy.deepcopy(model.state_dict())
    ids = torch.randint(256, (4, 17), generator=torch.Generator().manual_seed(1))
    trainee = qat.with_fake_quantization(model, 4, "channel")
    assert trainee.embedding.head is trainee.head
    log = qat.train(trainee, model, qat.next_byte, [(ids[:, :-1], ids[:, 1:])] * 20, 1e-2, "test")
    assert [step for step, _ in log] == [10, 20] and log[1][1] < log[0][1]
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert all(m.frozen for m in trainee.modules() if isinstance(m, qat.Rounding)) and not trainee.training


def test_the_stored_results_say_what_the_unit_says():
    """QAT beats PTQ, and the control, by more than two standard errors, at every width that was run."""
    results = json.loads((RESULTS / "qat.json").read_text())["results"]
    for name in qat.USUAL:
        for row in ("QAT, next byte, minus control", "QAT, next byte, minus PTQ", "QAT, imitation, minus PTQ"):
            found = results[name][row]
            assert found["difference"] + 2 * found["standard_error"] < 0, (name, row)
