"""Run a check apart from its notebook: whatever the learner's cells have rebound or set, a right answer passes.

For checks only: `checks.isolated` and `checks.untouched` are these. Introduced in unit 00.
"""

from __future__ import annotations

import builtins
import copy
import functools
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FunctionType

import numpy as np
import torch
from torch import Tensor, nn

from helpers import int8, witness


def isolated(check: Callable[[], None]) -> Callable[[], None]:
    """Decorator of a check function: it sees the learner's functions that it names, and nothing else of the notebook.

    Built-in names are Python's own, also after ``sum = 0`` in a cell, and torch is set as the course sets it
    (`course_settings`). A setting of the notebook's that would change the verdict is named in a line of output.
    """

    @functools.wraps(check)
    def run() -> None:
        notebook, names = check.__globals__, _names(check.__code__)
        seen = {name: notebook[name] for name in names if name in notebook and not hasattr(builtins, name)}
        seen |= {"__builtins__": builtins, "__name__": check.__module__}
        alone = FunctionType(check.__code__, seen, check.__name__, check.__defaults__, check.__closure__)
        with course_settings() as changed:
            for what in changed:
                print(f"(Your notebook has set {what}; the check sets it back when it is done.)")
            alone()

    return run


@contextmanager
def course_settings() -> Iterator[list[str]]:
    """Inside, torch, NumPy and `random` are set as the course sets them; afterwards all is as it was.

    Yields
    ------
    list of str
        What the notebook had set otherwise and would have changed results: "torch's default dtype to
        torch.float64: here it is torch.float32".
    """
    before = [(get, put, get()) for get, put, _, _ in _SETTINGS]
    changed = [
        f"{what} to {get()}: here it is {wanted()}"
        for get, _, wanted, what in _SETTINGS
        if what and wanted() is not None and get() != wanted()
    ]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        for get, put, wanted, _ in _SETTINGS:
            if wanted() is not None and get() != wanted():  # setting what is set can cost a second
                put(wanted())
        with warnings.catch_warnings(), np.errstate(all="warn"):
            warnings.simplefilter("ignore")  # a notebook that makes errors of warnings would refuse what torch warns of
            yield changed
    finally:
        for get, put, value in before:
            if get() != value:
                put(value)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


@contextmanager
def untouched(**inputs: object) -> Iterator[None]:
    """Assert that the block leaves these arguments of the learner's function as they were.

    Parameters
    ----------
    **inputs
        Tensors, arrays, modules, plain values, and lists, tuples and dictionaries of them, by the name that the
        learner gave them: ``with untouched(q=q, k=k): answer = attention(q, k, v)``.

    Raises
    ------
    AssertionError
        "your function changed `q`: …", if the block itself raised nothing.
    """
    kept = {name: _kept(value) for name, value in inputs.items()}
    yield
    for name, value in inputs.items():
        difference = _difference(kept[name], value)
        assert not difference, (
            f"your function changed `{name}`, which belongs to its caller: {difference}. Work on a copy, or with "
            "operations that make a new object."
        )


def _names(code: CodeType) -> set[str]:
    """Every global or attribute name in a function and in the functions inside it."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _engine() -> str | None:
    return int8.course_engine()


# how to read a setting, how to make it, what the course wants (None: as it is, but back afterwards), its name
_SETTINGS: tuple[tuple[Callable, Callable, Callable, str], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype, lambda: torch.float32, "torch's default dtype"),
    (
        lambda: torch.backends.quantized.engine,
        lambda name: setattr(torch.backends.quantized, "engine", name),
        _engine,
        "torch's int8 engine",
    ),
    (torch.is_grad_enabled, torch.set_grad_enabled, lambda: True, ""),
    (torch.get_num_threads, torch.set_num_threads, lambda: None, ""),
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled, lambda: True, ""),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, lambda: False, ""),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, lambda: False, ""),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, lambda: "highest", ""),
)


def _kept(value: object) -> object:
    """A copy to compare with later."""
    if isinstance(value, Tensor):
        kept = value.detach().clone()
        return _KeptTensor(kept, value.requires_grad, None if value.grad is None else value.grad.clone())
    if isinstance(value, Mapping):
        return {key: _kept(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_kept(item) for item in value]
    return copy.deepcopy(value) if isinstance(value, nn.Module | np.ndarray | set) else value


class _KeptTensor:
    def __init__(self, value: Tensor, requires_grad: bool, grad: Tensor | None) -> None:
        self.value, self.requires_grad, self.grad = value, requires_grad, grad


def _difference(kept: object, value: object) -> str:
    """What is other now than it was, as half a sentence; "" if nothing is."""
    if isinstance(kept, _KeptTensor):
        return _tensor_difference(kept, value)
    if isinstance(value, nn.Module):
        return witness.unchanged(kept, value)
    if isinstance(value, np.ndarray):
        return "" if _same_arrays(kept, value) else "its numbers are other ones"
    if isinstance(value, Mapping):
        if list(kept) != list(value):
            return f"its keys are now {list(value)}, and were {list(kept)}"
        return next((f"[{key!r}]: {d}" for key in kept if (d := _difference(kept[key], value[key]))), "")
    if isinstance(value, list | tuple):
        if len(kept) != len(value):
            return f"it has now {len(value)} elements, and had {len(kept)}"
        return next((f"[{i}]: {d}" for i in range(len(kept)) if (d := _difference(kept[i], value[i]))), "")
    return "" if kept is value or kept == value else f"it is now {value!r}, and was {kept!r}"


def _tensor_difference(kept: _KeptTensor, value: object) -> str:
    if not isinstance(value, Tensor):
        return f"it is now a {type(value).__name__}"
    if value.shape != kept.value.shape or value.dtype != kept.value.dtype:
        return (
            f"it is now {tuple(value.shape)} of {value.dtype}, and was {tuple(kept.value.shape)} of {kept.value.dtype}"
        )
    if not _same_tensors(kept.value, value.detach()):
        return "its numbers are other ones"
    if value.requires_grad != kept.requires_grad:
        return f"its requires_grad is now {value.requires_grad}"
    if (kept.grad is None) != (value.grad is None) or (
        kept.grad is not None and not _same_tensors(kept.grad, value.grad)
    ):
        return "its grad is another one"
    return ""


def _same_tensors(a: Tensor, b: Tensor) -> bool:
    if a.is_quantized:
        return (
            a.qscheme() == b.qscheme()
            and torch.equal(a.int_repr(), b.int_repr())
            and torch.equal(a.dequantize(), b.dequantize())
        )
    return torch.equal(a, b) or (a.is_floating_point() and bool(torch.isclose(a, b, 0, 0, equal_nan=True).all()))


def _same_arrays(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
