"""Numbers that tell what is made of them: which operations returned floats, which multiplied whole matrices.

For the checks of unit 03 that ask for integers only. Tensors are watched by a mode of PyTorch; what leaves them for
NumPy or plain Python (`numpy()`, `tolist()`, `item()`) goes on as an array or int that tells on. ``int(…)`` ends that.
"""

from __future__ import annotations

import dis
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# (name of the operation, its operands, what it returned)
_See = Callable[[str, tuple, object], None]
_WATCHERS: list[_See] = []


@contextmanager
def watching(see: _See) -> Iterator[None]:
    """Inside, `see` is told of every operation on tensors, and on what came out of tensors."""
    makers = {name: getattr(np, name) for name in _MAKERS}
    _WATCHERS.append(see)
    try:
        for name, make in makers.items():
            setattr(np, name, _told(name, make))
        with _Mode():
            yield
    finally:
        for name, make in makers.items():
            setattr(np, name, make)
        _WATCHERS.pop()


def is_float(value: object) -> bool:
    """Whether a tensor, array or number is not made of integers."""
    if isinstance(value, Tensor):
        return value.is_floating_point() or value.is_complex() or value.is_quantized
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "fc"
    return isinstance(value, float | complex)


def floats_in_text(function: Callable) -> list[str]:
    """What makes floats in the text of a function: the operator ``/``, a number with a point, the name of a float type.

    Functions of the same notebook that it calls are read, too. What follows ``torch.`` is not: the mode sees what
    PyTorch makes. A function that names `Fraction` may divide.
    """
    found = []
    for code in _codes_of(function, set()):
        before = None
        for line in dis.get_instructions(code):
            if line.opname == "BINARY_OP" and line.argrepr in ("/", "/=") and "Fraction" not in code.co_names:
                found.append("the operator / of Python")
            elif line.opname in ("LOAD_GLOBAL", "LOAD_ATTR", "LOAD_METHOD") and line.argval in _FLOAT_NAMES:
                if not (before and before.opname == "LOAD_GLOBAL" and before.argval == "torch"):
                    found.append(f"the name {line.argval}")
            elif line.opname == "LOAD_CONST" and isinstance(line.argval, float):
                found.append(f"the number {line.argval}")
            elif line.opname == "LOAD_CONST" and line.argval in _FLOAT_TYPES:
                found.append(f"the type {line.argval!r}")
            before = line
    return found


_FLOAT_NAMES = {"float", "float16", "float32", "float64", "bfloat16", "double", "half"}
_FLOAT_NAMES |= {"fsum", "fmean", "ldexp", "truediv", "true_divide"}
_FLOAT_TYPES = {"f2", "f4", "f8", "<f4", "<f8", "float", "float16", "float32", "float64", "double"}


def _codes_of(function: object, known: set[CodeType]) -> Iterator[CodeType]:
    """The code of a function, and of those that it calls by a global name of its own module."""
    for code in _codes(getattr(function, "__code__", None)):
        if code in known:
            continue
        known.add(code)
        yield code
        for name in code.co_names:
            called = function.__globals__.get(name)
            if getattr(called, "__globals__", None) is function.__globals__:
                yield from _codes_of(called, known)


def _codes(code: CodeType | None) -> Iterator[CodeType]:
    if code is not None:
        yield code
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from _codes(constant)


def _tell(name: str, operands: tuple, result: object) -> None:
    for see in _WATCHERS:
        see(name, operands, result)


class _Mode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        if name in ("numpy", "__array__", "tolist", "item"):
            if is_float(args[0]):
                return result  # the operation that made it was seen
            return _watched(result)
        _tell(name, (*args, *(kwargs or {}).values()), result)
        return result


def _watched(value: object) -> object:
    """Integers and arrays that tell on, instead of ordinary ones."""
    if isinstance(value, np.ndarray):
        return value.view(WatchedArray)
    if isinstance(value, np.integer):
        return _array(value)
    if type(value) is int:
        return WatchedInt(value)
    return type(value)(map(_watched, value)) if type(value) in (list, tuple) else value


def _array(value: np.integer) -> np.ndarray:
    plain = np.ndarray((), value.dtype)
    plain[()] = value
    return plain.view(WatchedArray)


def _plain(value: object) -> object:
    if isinstance(value, WatchedArray):
        return value.view(np.ndarray)
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


class WatchedArray(np.ndarray):
    """An array that tells of every operation on it."""

    def __array_finalize__(self, source: object) -> None:
        if self.dtype.kind in "fc":
            _tell("astype", (), self)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        options = {name: _plain(value) for name, value in options.items()}
        if out is not None:
            options["out"] = tuple(map(_plain, out))
        result = getattr(ufunc, method)(*map(_plain, inputs), **options)
        _tell(ufunc.__name__, inputs, result)
        return (out[0] if len(out) == 1 else out) if out is not None else _watched(result)

    def __array_function__(self, func, types, args, kwargs):
        result = super().__array_function__(func, types, args, kwargs)
        _tell(func.__name__, (*args, *kwargs.values()), result)
        return _watched(result)

    def __getitem__(self, key):
        return _watched(super().__getitem__(key))

    def tolist(self):
        return _watched(super().tolist())

    def item(self, *place):
        return _watched(super().item(*place))

    def dot(self, other, out=None):
        return np.dot(self, other, out)

    def __float__(self) -> float:
        _tell("float", (self,), 0.0)
        return super().__float__()


class WatchedInt(int):
    """A whole number that tells when something else is made of it."""

    def __float__(self) -> float:
        _tell("float", (self,), 0.0)
        return int.__float__(self)


def _operation(name: str) -> Callable:
    compute = getattr(int, name)

    def operate(self: WatchedInt, *others: object) -> object:
        result = compute(self, *others)
        if result is NotImplemented and any(map(is_float, others)):
            _tell(name.strip("_"), (self, *others), 0.0)
        if result is NotImplemented:
            return result
        _tell(name.strip("_"), (self, *others), result)
        return _watched(result)

    return operate


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and", "or", "xor"):
    for _side in (f"__{_name}__", f"__r{_name}__"):
        setattr(WatchedInt, _side, _operation(_side))
for _name in ("neg", "pos", "abs", "invert", "round"):
    setattr(WatchedInt, f"__{_name}__", _operation(f"__{_name}__"))

_MAKERS = (
    "array",
    "asarray",
    "asanyarray",
    "ascontiguousarray",
    "zeros",
    "ones",
    "empty",
    "full",
    "arange",
    "fromiter",
)


def _told(name: str, make: Callable) -> Callable:
    """A function of NumPy that makes arrays, so that they tell on."""

    def told(*args: object, **kwargs: object) -> np.ndarray:
        result = make(*args, **kwargs)
        _tell(f"np.{name}", args, result)
        return _watched(result)

    return told


def varies(value: object, length: int) -> bool:
    """Whether an array or tensor has an axis of this length along which its numbers are not all the same."""
    if not isinstance(value, Tensor | np.ndarray):
        return False
    array = torch.as_tensor(_plain(value)) if isinstance(value, np.ndarray) else value
    axes = [axis for axis, size in enumerate(array.shape) if size == length]
    return any(bool((array != array.narrow(axis, 0, 1)).any()) for axis in axes)
