"""PyTorch's int8 engine on this computer, and what exercises 1.8 (dynamic) and 2.6 (static quantization) build."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

FIRST_ENGINE = torch.backends.quantized.engine  # torch's own choice, before any cell changes it


def course_engine() -> str | None:
    """The int8 engine that the course computes with, whatever a cell has switched to; None if this torch has none."""
    available = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    wanted = os.environ.get("COURSE_INT8_ENGINE", FIRST_ENGINE)
    return wanted if wanted in available else next(iter(available), None)


def engines() -> list[str]:
    """Int8 engines of this torch, the one in use first."""
    available = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    return sorted(available, key=lambda name: name != torch.backends.quantized.engine)


def choose_engine() -> str:
    """Make sure that an int8 engine is in use (on a Mac none is, at first); returns its name.

    The environment variable COURSE_INT8_ENGINE names another one than the default, for tests.

    Raises
    ------
    RuntimeError
        If this torch has no engine, or not the one that is asked for.
    """
    wanted = os.environ.get("COURSE_INT8_ENGINE")
    available = engines()
    if not available or (wanted and wanted not in available):
        raise RuntimeError(
            f"this torch has no int8 engine {wanted or ''}(it has: {', '.join(available) or 'none'}). "
            "Reinstall the course: make clean, then make lab"
        )
    if wanted or torch.backends.quantized.engine not in available:
        torch.backends.quantized.engine = wanted or available[0]
    if torch.backends.quantized.engine == "qnnpack":
        _hear_qnnpack_once()
    return torch.backends.quantized.engine


def another_engine() -> str:
    """An engine whose default recipe (qconfig) is not that of the engine in use; if there is none, the one in use.

    For checks: a recipe that is written in by name is right with one engine only.
    """

    def recipe(name: str) -> tuple:
        qconfig = torch.ao.quantization.get_default_qconfig(name)
        return qconfig.activation().quant_max, qconfig.weight().qscheme

    in_use = torch.backends.quantized.engine
    return next((name for name in engines() if recipe(name) != recipe(in_use)), in_use)


@contextmanager
def using(engine: str) -> Iterator[None]:
    """Inside, PyTorch packs and multiplies with this int8 engine; afterwards with the one of before.

    A packed weight belongs to the engine that packed it: run a model inside the same `using` in which it was made.
    """
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        if engine == "qnnpack":
            _hear_qnnpack_once()
        yield
    finally:
        torch.backends.quantized.engine = before


def products_are_exact() -> bool:
    """Whether products of full 8-bit matrices are exact here: not on x86 processors without VNNI.

    Their instruction adds two products in 16 bits and cuts the sum off at 32,767 (unit 03 shows it).
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-128, 128, (64, 64), generator=generator).to(torch.int8) for _ in range(2))
    return torch.equal(torch._int_mm(a, b).long(), a.long() @ b.long())


def dynamic_activation_qmax() -> int:
    """Largest activation code of PyTorch's dynamic int8 Linear with the engine in use: 127, but 255 with qnnpack.

    The smallest is 0. PyTorch asks every engine for 7 bits (``reduce_range``), and qnnpack ignores it.
    """
    return 255 if torch.backends.quantized.engine == "qnnpack" else 127


def dynamic_int8(model: nn.Module) -> nn.Module:
    """A copy of `model` whose Linear layers are dynamically quantized by PyTorch: int8 weights, one scale a tensor."""
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def static_int8(net: nn.Module, batches: list[Tensor]) -> nn.Module:
    """A copy of `net` that is statically quantized by PyTorch, calibrated on `batches`; float in, float out."""
    model = torch.ao.quantization.QuantWrapper(copy.deepcopy(net)).eval()
    model.qconfig = torch.ao.quantization.get_default_qconfig(torch.backends.quantized.engine)
    model = torch.ao.quantization.prepare(model)
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return torch.ao.quantization.convert(model)


def _hear_qnnpack_once() -> None:
    """Let qnnpack say unheard, once a process and from C++, that it ignores reduce_range (true, and harmless)."""
    with silent_stderr():
        dynamic_int8(nn.Sequential(nn.Linear(2, 2)))(torch.zeros(1, 2))


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Nothing that is written to file descriptor 2, by C++ code too, is seen."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
