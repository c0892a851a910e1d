"""How long int8 Linear layers take beside float ones: the table at the end of docs/book_corrected.md (``make bench``).

One square layer in each cell, five programs that take turns (helpers.latency). A ratio whose interval is too wide is
not reported.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import description
from benchmarks.round_to_nearest import write
from helpers import int8, known_warnings, latency

RESULTS = Path(__file__).resolve().parent / "results"
WIDTHS, BATCHES = (64, 256, 1024), (1, 128)
# what is compared with nn.Linear, in float32
PROGRAMS = (
    "bfloat16",
    "weight-only, torchao",
    "weight-only, reading codes",
    "static, without stubs",
    "static, with stubs",
)


def programs(width: int, batch: int) -> dict[str, Callable[[], Tensor]]:
    """One square layer with normally distributed weights, without a bias, in six versions; each is one call."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # slow to import, and it logs

    generator = torch.Generator().manual_seed(width)
    linear = nn.Linear(width, width, bias=False).eval().requires_grad_(False)
    nn.init.normal_(linear.weight, std=width**-0.5, generator=generator)
    x = torch.randn(batch, width, generator=generator)
    stubbed = int8.static_int8(nn.Sequential(linear), [torch.randn(256, width, generator=generator)])
    copied = nn.Sequential(copy.deepcopy(linear))
    quantize_(copied, Int8WeightOnlyConfig())
    scales = linear.weight.abs().amax(dim=1) / 127
    codes = (linear.weight / scales[:, None]).round().to(torch.int8)
    reading = functools.partial(torch._weight_int8pack_mm, x.bfloat16(), codes, scales.bfloat16())
    calls = [
        functools.partial(F.linear, x.bfloat16(), linear.weight.bfloat16()),
        functools.partial(copied, x),
        reading,
        functools.partial(stubbed.module, stubbed.quant(x)),
        functools.partial(stubbed, x),
    ]
    return {"float32": functools.partial(linear, x)} | dict(zip(PROGRAMS, calls, strict=True))


def measure(repeats: int) -> list[dict]:
    """For each width and batch the ratios to float32 with their intervals; None where they are too noisy."""
    rows = []
    for width, batch in itertools.product(WIDTHS, BATCHES):
        calls = max(1, min(50, 2**24 // (batch * width**2)))
        with torch.no_grad():
            found = latency.compare_each(programs(width, batch), repeats, calls=calls, threads=1, tries=3)
        ratios = {
            name: [round(value, 3) for value in (t.ratio, t.low, t.high)] if isinstance(t, latency.Timing) else None
            for name, t in found.items()
        }
        rows.append({"width": width, "batch": batch, "ratios": {name: ratios[name] for name in PROGRAMS}})
    return rows


def as_table(rows: list[dict]) -> list[str]:
    """Lines of a Markdown table."""
    header = ["Width", "Rows in a batch", *PROGRAMS]
    lines = [f"| {' | '.join(header)} |", "| " + " | ".join(["---:"] * len(header)) + " |"]
    for row in rows:
        ratios = [row["ratios"][name] for name in PROGRAMS]
        cells = [f"{r[0]:.2f} ({r[1]:.2f} to {r[2]:.2f})" if r else "too noisy" for r in ratios]
        lines.append("| " + " | ".join([str(row["width"]), str(row["batch"]), *cells]) + " |")
    return lines


def as_page(report: dict) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    return "\n".join(
        [
            "# Time of int8 Linear layers",
            "",
            "Made by `make bench`; do not edit. One square layer without a bias, one thread, not compiled. Time / time",
            f"of `nn.Linear` in float32: median of {report['repeats']} turns, with its interval of at least 95 %.",
            "",
            f"Machine: {machine}. Date: {report['date']}.",
            "",
            *as_table(report["results"]),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=41, help="turns")
    parser.add_argument("--output", type=Path, default=RESULTS / "linear_speed.json")
    arguments = parser.parse_args()
    known_warnings.hide()
    int8.choose_engine()
    with latency.pinned_threads(1):
        machine = description()
    report = {"date": date.today().isoformat(), "machine": machine, "repeats": arguments.repeats}
    report["results"] = measure(arguments.repeats)
    write(arguments.output, json.dumps(report, indent=1) + "\n")
    write(arguments.output.with_suffix(".md"), as_page(report))
    print(as_page(report))


if __name__ == "__main__":
    main()
