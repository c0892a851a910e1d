# ruff: noqa: NPY002 (NumPy's global state is what is tested)
"""A check takes nothing from the notebook but the answer, and gives everything back."""

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from helpers import checks, isolation, samples, witness

CHECK = """
@checks.isolated
def check_ex_9_1():
    assert sum([1, 2]) == 3 and list("ab") == ["a", "b"] and len(str(12)) == 2
    assert torch.zeros(1).dtype == torch.float32 and torch.is_grad_enabled()
    def inner():
        return answer(sum([1, 1]))
    assert inner() == 3, "the answer is wrong"
    assert "secret" not in globals()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
"""


def notebook(**names):
    """A notebook's names after its cells, with a check ready to be called."""
    space = {"__name__": "__main__", "checks": checks, "torch": torch, "random": random, "np": np, "secret": 1} | names
    exec(CHECK, space)
    return space["check_ex_9_1"]


def test_names_and_settings_of_the_notebook_do_not_matter(capsys):
    check = notebook(answer=lambda x: x + 1, sum=0, list=[1], str="text", len=None)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check()
        assert torch.get_default_dtype() == torch.float64 and not torch.is_grad_enabled()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert "default dtype to torch.float64: here it is torch.float32" in capsys.readouterr().out


def test_a_wrong_answer_still_fails_and_a_missing_one_is_a_name_error():
    with pytest.raises(AssertionError, match="the answer is wrong"):
        notebook(answer=lambda x: x)()
    with pytest.raises(NameError, match="answer"):
        notebook()()


def test_the_engine_is_the_courses(capsys):
    others = [
        name
        for name in torch.backends.quantized.supported_engines
        if name not in ("none", isolation.int8.course_engine())
    ]
    if not others:
        pytest.skip("this torch has one int8 engine")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = others[0]
    try:
        with isolation.course_settings() as changed:
            assert torch.backends.quantized.engine == isolation.int8.course_engine()
            assert any(others[0] in what for what in changed)
        assert torch.backends.quantized.engine == others[0]
    finally:
        torch.backends.quantized.engine = before


CHANGES = [
    (torch.ones(2), lambda x: x.mul_(2), "its numbers"),
    (torch.ones(2), lambda x: x.requires_grad_(), "requires_grad"),
    (torch.ones(2), lambda x: x.unsqueeze_(0), r"it is now \(1, 2\)"),
    (np.ones(2), lambda x: x.__imul__(2), "its numbers"),
    ([1, 2], lambda x: x.pop(), "1 elements"),
    ({"a": torch.ones(2)}, lambda x: x["a"].zero_(), "'a'.: its numbers"),
    ({"a": 1}, lambda x: x.update(b=2), "its keys"),
    (nn.Linear(2, 2), lambda x: x.train(False), "eval mode"),
    (nn.Linear(2, 2), lambda x: x.requires_grad_(False), "is frozen now"),
]


@pytest.mark.parametrize(("value", "change", "words"), CHANGES)
def test_a_changed_input_is_named(value, change, words):
    with checks.untouched(x=value):
        pass
    with pytest.raises(AssertionError, match=f"your function changed `x`.*{words}"), checks.untouched(x=value):
        change(value)


def test_nan_is_equal_to_itself_and_an_error_comes_first():
    with checks.untouched(x=torch.tensor([float("nan")])):
        pass
    x = torch.ones(1)
    with pytest.raises(ZeroDivisionError), checks.untouched(x=x):
        x.zero_()
        raise ZeroDivisionError


@pytest.mark.parametrize("x", [torch.randn(3, 4), torch.arange(5), torch.randn(2, 3, 4), torch.randn(1)])
def test_awkward_forms_hold_the_same_numbers(x):
    forms = samples.awkward(x)
    assert len({what for what, _ in forms}) == len(forms)
    for _, form in forms:
        assert torch.equal(form.detach(), x) and form.dtype == x.dtype
    assert x.dim() < 2 or any(not form.is_contiguous() for _, form in forms)


def test_the_zoo_runs_and_is_the_same_each_time():
    for (what, model, x), (_, again, _) in zip(samples.zoo(), samples.zoo(), strict=True):
        assert torch.equal(model(x), again(x)) and not model.training, what
        assert sum(isinstance(part, nn.Linear) for part in model.modules()) >= 2
        assert witness.unchanged(model, again) == "" and witness.independent(again, model) == ""


def test_a_shared_tensor_or_module_is_named():
    first, second = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    second[0].weight.data = first[0].weight.data
    assert "0.weight of your answer lies in the memory of 0.weight" in witness.independent(second, first)
    assert "is the very object" in witness.independent(nn.Sequential(first[0]), first)


def test_an_advanced_generator_is_not_at_its_seed():
    fresh = torch.Generator().manual_seed(3)
    assert samples.advanced(3).initial_seed() == 3
    assert not torch.equal(samples.advanced(3).get_state(), fresh.get_state())
