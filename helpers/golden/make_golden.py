"""Make the golden files: ``python -m helpers.golden.make_golden`` (oracles' Python), ``--torchao`` (course's Python).

What is made where, and how to set up the oracles' environment: see ``helpers/golden/__init__.py``.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib.metadata import version

import numpy as np

from helpers.golden import FOLDER

COMMAND = "python -m helpers.golden.make_golden"
# A quotient this close to a half may be rounded to either side by correct float32 code: quotients that do not saturate
# are below 256, so each float32 rounding (of the scale, its inverse, the quotient) moves them by at most 2**-16.
MARGIN = Fraction(1, 10_000)
UINT8, INT8 = (0, 255), (-128, 127)


# Exact arithmetic -----------------------------------------------------------------------------------------------------


def exact_code(x: float | Fraction, scale: float | Fraction, zero_point: int, qmin: int, qmax: int) -> int:
    """The code of `x` without any float rounding: round(x / scale), half to even, plus `zero_point`, saturated."""
    return _saturate(round(Fraction(x) / Fraction(scale)) + zero_point, qmin, qmax)


def exact_value(code: int, scale: float, zero_point: int) -> float:
    """The float32 nearest to (code - zero_point) * scale; the product itself is exact in a float64."""
    return _float32((code - zero_point) * float(scale))


def is_disputed(x: float | Fraction, scale: float | Fraction, zero_point: int, qmin: int, qmax: int) -> bool:
    """Whether correct float32 codes of `x` may differ: too close to a half.

    An exact half is not disputed when the scale is a power of two: every float32 way to divide is exact then.
    """
    quotient = Fraction(x) / Fraction(scale)
    low, high = (_saturate(round(quotient + d) + zero_point, qmin, qmax) for d in (-MARGIN, MARGIN))
    is_exact_half = quotient % 1 == Fraction(1, 2) and _is_power_of_two(Fraction(scale))
    return low != high and not is_exact_half


def _is_power_of_two(x: Fraction) -> bool:
    return x.numerator & (x.numerator - 1) == 0 and x.denominator & (x.denominator - 1) == 0


def _saturate(code: int, qmin: int, qmax: int) -> int:
    return min(max(code, qmin), qmax)


def _float32(x: float | Fraction) -> float:
    """The nearest float32, as a Python float, which prints its exact value."""
    return float(np.float32(float(x)))


def _floats(x: np.ndarray) -> list[float]:
    return [_float32(v) for v in x.ravel()]


def _check(what: str, oracle: list, exact: list) -> None:
    """Stop when an oracle contradicts exact arithmetic on a value that is not disputed."""
    if oracle != exact:
        raise AssertionError(f"{what}: the oracle says {oracle}, exact arithmetic says {exact}.")


def _undisputed(name: str, x: list[float], scale: float, zero_point: int, qmin: int, qmax: int) -> list[float]:
    """`x` without its disputed values, which are printed."""
    kept = []
    for value in x:
        if is_disputed(value, scale, zero_point, qmin, qmax):
            quotient = float(Fraction(value) / Fraction(scale))
            print(f"  {name}: disputed x={value!r}, scale={scale!r}: x / scale = {quotient!r}")
        else:
            kept.append(value)
    return kept


# ONNX Runtime ---------------------------------------------------------------------------------------------------------


def run_onnx(op: str, inputs: dict[str, np.ndarray], outputs: list[str], **attributes: int) -> list[np.ndarray]:
    """Run one ONNX operator (opset 13) in ONNX Runtime on the CPU."""
    import onnxruntime
    from onnx import helper

    def info(name: str, x: np.ndarray) -> object:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)

    node = helper.make_node(op, list(inputs), outputs, **attributes)
    graph = helper.make_graph(
        [node], op, [info(*item) for item in inputs.items()], [helper.make_empty_tensor_value_info(o) for o in outputs]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def dynamic_quantize_linear() -> Iterator[dict]:
    """ONNX Runtime's DynamicQuantizeLinear on vectors of 6 to 24 numbers."""
    rng = np.random.default_rng(1)
    draws: dict[str, Callable[[], object]] = {
        "normal": lambda: rng.standard_normal(24),
        "normal_shifted_up": lambda: rng.standard_normal(16) + 1,
        "normal_shifted_down": lambda: rng.standard_normal(16) - 1,
        "all_positive": lambda: rng.uniform(0.5, 3, 12),
        "all_negative": lambda: rng.uniform(-3, -0.5, 12),
        "constant_positive": lambda: [0.3] * 6,
        "constant_negative": lambda: [-0.3] * 6,
        "one_outlier": lambda: [*rng.standard_normal(19), 60],
        "one_negative_outlier": lambda: [*rng.standard_normal(19), -60],
        "tiny": lambda: rng.standard_normal(12) * 1e-6,
        "large": lambda: rng.standard_normal(12) * 1e4,
        "mixed_sizes": lambda: rng.standard_normal(20) * 10.0 ** np.repeat(np.arange(-3, 2), 4),
        "many_zeros_like_relu": lambda: np.maximum(rng.standard_normal(20), 0),
        "scale_1_with_ties": lambda: [-2, 253, 0.5, 1.5, 2.5, 3.5, -0.5, -1.5, 251.5, 252.5],
        "zero_point_is_a_tie": lambda: [-1.5, 253.5, 0, 1, 2, 100],
        "all_zeros": lambda: [0.0] * 6,
    }
    for name, draw in draws.items():
        yield _dynamic_case(name, draw)


def _dynamic_case(name: str, draw: Callable[[], object]) -> dict:
    """Draw until nothing is disputed: not the scale's last bit, not the zero point, not a code."""
    for _ in range(100):
        x = np.array(draw(), dtype=np.float32)
        codes, scale, zero_point = run_onnx("DynamicQuantizeLinear", {"x": x}, ["codes", "scale", "zero_point"])
        case = {"name": name, "x": _floats(x), "scale": _float32(scale), "zero_point": int(zero_point)}
        low, high = (Fraction(bound) for bound in (min(0.0, *case["x"]), max(0.0, *case["x"])))
        exact_scale = (high - low) / 255 or Fraction(1)  # ONNX Runtime gives zeros the scale 1
        if _float32(exact_scale) != case["scale"]:
            print(f"  {name}: drawn again, scale {case['scale']!r} is one bit off {_float32(exact_scale)!r}")
        elif is_disputed(-low, exact_scale, 0, *UINT8):
            print(f"  {name}: drawn again, zero point {case['zero_point']} of {float(-low / exact_scale)!r}")
        elif _undisputed(name, case["x"], case["scale"], case["zero_point"], *UINT8) == case["x"]:
            case["codes"] = codes.tolist()
            _check(name, [case["zero_point"]], [exact_code(-low, exact_scale, 0, *UINT8)])
            exact = [exact_code(v, case["scale"], case["zero_point"], *UINT8) for v in case["x"]]
            _check(name, case["codes"], exact)
            return case
    raise AssertionError(f"{name}: every draw is disputed.")


def quantize_linear() -> Iterator[dict]:
    """ONNX Runtime's QuantizeLinear and DequantizeLinear with given scale and zero point."""
    rng = np.random.default_rng(2)
    for dtype, (qmin, qmax) in {"uint8": UINT8, "int8": INT8}.items():
        for zero_point in (128, 0, 127, 3) if dtype == "uint8" else (0, -6, 1, -127):
            for scale in (0.25, 1.0):
                # Halves around zero and around both ends; the ends and beyond them.
                steps = np.array([*range(-4, 4), qmin - zero_point - 1, qmin - zero_point, qmax - zero_point - 1]) + 0.5
                ends = np.array([qmin - zero_point - 1, qmin - zero_point, qmax - zero_point, qmax - zero_point + 1])
                x = [*_floats(steps * scale), *_floats(ends * scale)]
                name = f"{dtype}_scale_{scale:g}_{'odd' if zero_point % 2 else 'even'}_zero_point_ties_{zero_point}"
                yield _linear_case(name, x, scale, zero_point, qmin, qmax)
        for zero_point in (100, 31) if dtype == "uint8" else (0, -45):
            scale = _float32(rng.uniform(0.001, 0.1))
            x = (rng.uniform(qmin - zero_point - 20, qmax - zero_point + 20, 24) * scale).astype(np.float32)
            yield _linear_case(f"{dtype}_off_grid_{zero_point}", _floats(x), scale, zero_point, qmin, qmax)
        x = _floats(np.array([-3e38, -1e10, -1000, -0.001, 0, 0.001, 1000, 1e10, 3e38]))
        yield _linear_case(f"{dtype}_far_out_of_range", x, _float32(0.02), 10, qmin, qmax)


def _linear_case(name: str, x: list[float], scale: float, zero_point: int, qmin: int, qmax: int) -> dict:
    x = _undisputed(name, x, scale, zero_point, qmin, qmax)
    affine = {"s": np.array(scale, np.float32), "z": np.array(zero_point, np.uint8 if qmin == 0 else np.int8)}
    codes = run_onnx("QuantizeLinear", {"x": np.array(x, np.float32), **affine}, ["codes"])[0]
    values = run_onnx("DequantizeLinear", {"codes": codes, **affine}, ["values"])[0]
    case = exact_case(name, x, scale, zero_point, qmin, qmax)
    _check(name, codes.tolist(), case["codes"])
    _check(name, _floats(values), case["dequantized"])
    return case | {"codes": codes.tolist(), "dequantized": _floats(values)}


def quantize_linear_per_axis() -> Iterator[dict]:
    """ONNX Runtime's QuantizeLinear with one scale per index of an axis: int8, zero point 0."""
    rng = np.random.default_rng(3)
    for shape, axis in (((4, 10), 0), ((6, 5), 1), ((3, 4, 5), 0), ((3, 4, 5), 1), ((3, 4, 5), 2)):
        name = f"{len(shape)}d_axis_{axis}"
        for _ in range(100):
            x = rng.standard_normal(shape).astype(np.float32)
            by_channel = np.moveaxis(x, axis, 0)  # a view: (channels, ...)
            by_channel *= 2.0 ** np.arange(shape[axis]).reshape(-1, *[1] * (len(shape) - 1))  # channels differ in size
            by_channel[1] = 0
            largest = np.abs(by_channel.astype(np.float64)).reshape(shape[axis], -1).max(axis=1)
            scales = np.where(largest > 0, largest / 127, 1.0).astype(np.float32)
            scale_of = np.broadcast_to(np.expand_dims(scales, [a for a in range(len(shape)) if a != axis]), shape)
            pairs = list(zip(_floats(x), _floats(scale_of), strict=True))
            if all(_undisputed(name, [value], scale, 0, *INT8) for value, scale in pairs):
                break
        else:
            raise AssertionError(f"{name}: every draw is disputed.")
        inputs = {"x": x, "s": scales, "z": np.zeros(shape[axis], np.int8)}
        codes = run_onnx("QuantizeLinear", inputs, ["codes"], axis=axis)[0].ravel().tolist()
        _check(name, codes, [exact_code(value, scale, 0, *INT8) for value, scale in pairs])
        yield {
            "name": name, "shape": list(shape), "axis": axis,
            "x": _floats(x), "scales": _floats(scales), "codes": codes,
        }  # fmt: skip


# Exact fractions ------------------------------------------------------------------------------------------------------


def exact_case(name: str, x: list[float], scale: float, zero_point: int, qmin: int, qmax: int) -> dict:
    """One case in exact arithmetic; only "dequantized" is rounded, once, to float32."""
    if any(_float32(v) != v for v in (*x, scale)):
        raise AssertionError(f"{name}: x and scale must be float32 values.")
    codes = [exact_code(v, scale, zero_point, qmin, qmax) for v in x]
    return {
        "name": name, "x": x, "scale": scale, "zero_point": zero_point, "qmin": qmin, "qmax": qmax,
        "codes": codes, "dequantized": [exact_value(code, scale, zero_point) for code in codes],
    }  # fmt: skip


def exact() -> Iterator[dict]:
    """Python's fractions: ties, both ends, and off-grid values, for ranges of 2 to 8 bits."""
    rng = np.random.default_rng(4)
    ranges: dict[str, tuple[int, int, int, int]] = {}  # name: qmin, qmax, an even and an odd zero point
    for bits in (2, 3, 4, 7, 8):
        half = 2 ** (bits - 1)
        ranges[f"uint{bits}"] = (0, 2 * half - 1, half, half - 1)
        ranges[f"int{bits}"] = (-half, half - 1, 0, -1)
    for name, (qmin, qmax, even, odd) in ranges.items():
        for parity, zero_point in (("even", even), ("odd", odd)):
            low, high = qmin - zero_point, qmax - zero_point
            steps = sorted({low - 2, low - 1, low, -3, -2, -1, 0, 1, 2, high - 1, high, high + 1})
            x = _floats((np.array(steps) + 0.5) * 0.125)
            yield exact_case(f"{name}_{parity}_zero_point_ties", x, 0.125, zero_point, qmin, qmax)
        yield _off_grid(rng, f"{name}_off_grid", even, qmin, qmax)
    for bits in (4, 8):
        qmax = 2 ** (bits - 1) - 1
        yield _off_grid(rng, f"int{bits}_narrow_off_grid", 0, -qmax, qmax)


def _off_grid(rng: np.random.Generator, name: str, zero_point: int, qmin: int, qmax: int) -> dict:
    """Values up to a quarter of the range beyond its ends; the scale has all the bits of a float32."""
    scale, beyond = _float32(rng.uniform(0.01, 1)), (qmax - qmin) / 4 + 1
    x = rng.uniform(qmin - zero_point - beyond, qmax - zero_point + beyond, 12) * scale
    x = _undisputed(name, [0.0, *_floats(x)], scale, zero_point, qmin, qmax)
    return exact_case(name, x, scale, zero_point, qmin, qmax)


# torchao --------------------------------------------------------------------------------------------------------------


def torchao_affine() -> Iterator[dict]:
    """torchao's choose_qparams_affine, quantize_affine and dequantize_affine on small matrices with an outlier."""
    from helpers import known_warnings

    known_warnings.hide()
    import torch
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        dequantize_affine,
        quantize_affine,
    )

    rng = np.random.default_rng(5)
    settings = {
        "int4_asymmetric_group_32": (MappingType.ASYMMETRIC, 4, 32, torch.uint8, 0, 15),
        "int8_symmetric_per_channel": (MappingType.SYMMETRIC, 8, 48, torch.int8, -127, 127),
    }
    for name, (mapping, bits, group_size, dtype, qmin, qmax) in settings.items():
        rows, columns = (3, 64) if group_size == 32 else (4, 48)
        for _ in range(200):
            x = (rng.standard_normal((rows, columns)) * 0.05).astype(np.float32)
            x[1, 5] = 0.75  # the outlier
            block, w = (1, group_size), torch.from_numpy(x)
            scales, zero_points = choose_qparams_affine(w, mapping, block, dtype, qmin, qmax)
            codes = quantize_affine(w, block, scales, zero_points, dtype, qmin, qmax)
            values = dequantize_affine(codes, block, scales, zero_points, dtype, qmin, qmax)
            case = {
                "name": name, "shape": [rows, columns], "group_size": group_size, "bits": bits,
                "qmin": qmin, "qmax": qmax, "x": _floats(x), "scales": _floats(scales.numpy()),
                "zero_points": zero_points.ravel().tolist(), "codes": codes.ravel().tolist(),
                "dequantized": _floats(values.numpy()),
            }  # fmt: skip
            if not _groups_are_disputed(case, is_symmetric=mapping is MappingType.SYMMETRIC):
                yield case
                break
        else:
            raise AssertionError(f"{name}: every draw is disputed.")


def _groups_are_disputed(case: dict, is_symmetric: bool) -> bool:
    """Compare each group with exact arithmetic; True if the last bit of a scale, a zero point or a code is disputed."""
    name, size, qmin, qmax = case["name"], case["group_size"], case["qmin"], case["qmax"]
    for i, (scale, zero_point) in enumerate(zip(case["scales"], case["zero_points"], strict=True)):
        here = slice(i * size, (i + 1) * size)
        x, codes = case["x"][here], case["codes"][here]
        low, high = Fraction(min(0.0, *x)), Fraction(max(0.0, *x))
        exact_scale = max(-low, high) / qmax if is_symmetric else (high - low) / (qmax - qmin)
        exact_zero = Fraction(0) if is_symmetric else -low
        if _float32(exact_scale) != scale or is_disputed(exact_zero, exact_scale, 0, qmin, qmax):
            print(f"  {name}: drawn again, group {i}: scale {scale!r}, exactly {float(exact_scale)!r}")
            return True
        if _undisputed(name, x, scale, zero_point, qmin, qmax) != x:
            return True
        _check(name, [zero_point], [exact_code(exact_zero, exact_scale, 0, qmin, qmax)])
        _check(name, codes, [exact_code(v, scale, zero_point, qmin, qmax) for v in x])
        _check(name, case["dequantized"][here], [exact_value(code, scale, zero_point) for code in codes])
    return False


# Files ----------------------------------------------------------------------------------------------------------------

ONNX_FILES = {
    "dynamic_quantize_linear": (dynamic_quantize_linear, ("numpy", "onnx", "onnxruntime")),
    "quantize_linear": (quantize_linear, ("numpy", "onnx", "onnxruntime")),
    "quantize_linear_per_axis": (quantize_linear_per_axis, ("numpy", "onnx", "onnxruntime")),
    "exact": (exact, ("numpy",)),
}
TORCHAO_FILES = {"torchao_affine": (torchao_affine, ("numpy", "torch", "torchao"))}


def write(name: str, command: str, packages: tuple[str, ...], cases: list[dict]) -> None:
    """Write ``NAME.json``, one case a line."""
    versions = {"python": platform.python_version(), **{package: version(package) for package in packages}}
    lines = ",\n".join(json.dumps(case, allow_nan=False) for case in cases)
    head = f'"made_by": {json.dumps(command)},\n"versions": {json.dumps(versions)}'
    path = FOLDER / f"{name}.json"
    path.write_text(f'{{\n{head},\n"cases": [\n{lines}\n]\n}}\n', encoding="utf-8")
    print(f"{path.name}: {len(cases)} cases, {path.stat().st_size / 1000:.1f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--torchao", action="store_true", help="make torchao_affine.json only, with the course's Python"
    )
    is_torchao = parser.parse_args().torchao
    logging.basicConfig(level=logging.ERROR)
    for name, (make, packages) in (TORCHAO_FILES if is_torchao else ONNX_FILES).items():
        write(name, COMMAND + (" --torchao" if is_torchao else ""), packages, list(make()))


if __name__ == "__main__":
    main()
