"""What unit 04 says of the residual stream and of learning rates, on more documents than a notebook has time for.

Part of ``make bench``. Two questions. Is a float residual stream better than an int8 one, whatever the calibration set?
(Minimum and maximum observers everywhere, held-out documents.) And which learning rate suits quantization-aware
training better, for each of its two aims? (The notebook's run of 20 steps at 4 bits, judged on validation documents,
which may choose.)
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date
from pathlib import Path

import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.machine import description
from benchmarks.qat import cell, imitation, next_byte, paired, train, with_fake_quantization
from benchmarks.round_to_nearest import write
from helpers import data, int8, known_warnings, quantizable
from helpers.checkpoint import load_course_model
from helpers.frontier import bits_by_document
from helpers.models import TransformerLM

RESULTS = Path(__file__).resolve().parent / "results"
CALIBRATION = [8, 16, 24, 32]  # documents of 256 bytes
RATES = [2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4, 8e-4]
AIMS = {"next byte": next_byte, "imitation": imitation}
STEPS, BITS = 20, 4


@torch.no_grad()
def static_int8(model: TransformerLM, ids: Tensor, residual: quantizable.Residual) -> nn.Module:
    """`model` in static int8 with a minimum and maximum observer at each place, calibrated on `ids`."""
    prepared = quantizable.prepare(quantizable.quantizable(model, residual))
    for module in prepared.modules():
        observer = getattr(module, "activation_post_process", None)
        if isinstance(observer, tq.UniformQuantizationObserverBase | tq.HistogramObserver):
            module.activation_post_process = tq.MinMaxObserver(quant_min=0, quant_max=observer.quant_max)
    for batch in ids.split(8):
        prepared(batch)
    return quantizable.convert(prepared)


def residuals(model: TransformerLM, windows: Tensor, counts: list[int]) -> dict[int, dict[str, dict[str, float]]]:
    """For each number of calibration documents what both residual streams cost, and their paired difference."""
    reference, rows = bits_by_document(model, windows), {}
    for count in tqdm(counts, desc="calibration sets", disable=None):
        ids = data.windows("training", count)[:, :256]
        found = {kind: bits_by_document(static_int8(model, ids, kind), windows) for kind in ("float", "int8")}
        rows[count] = {kind: paired(bits, reference) for kind, bits in found.items()}
        rows[count]["int8 minus float"] = paired(found["int8"], found["float"])
    return rows


def rates(model: TransformerLM, windows: Tensor, steps: int, chosen: list[float]) -> dict[str, dict[str, dict]]:
    """For each aim and each learning rate what the model trained with it costs."""
    text = data.encode(data.split_text("training"))
    stream = data.random_batches(text, 128, 8, torch.Generator().manual_seed(0))
    batches, reference, rows = [next(stream) for _ in range(steps)], bits_by_document(model, windows), {}
    for title, aim in AIMS.items():
        rows[title] = {}
        for rate in chosen:
            trainee = with_fake_quantization(model, BITS, "channel")
            train(trainee, model, aim, batches, rate, f"{title}, {rate:g}")
            rows[title][f"{rate:g}"] = paired(bits_by_document(trainee, windows), reference)
    return rows


def as_page(report: dict) -> str:
    """The report as a Markdown page with two tables."""
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    lines = [
        "# The residual stream, and learning rates of quantization-aware training",
        "",
        "Made by `make bench BENCH=components`; do not edit. Bits per byte that the course model needs more than in "
        "float, ± the standard error of the paired difference over documents.",
        "",
        f"Machine: {machine}. Date: {report['date']}. Seconds: {report['seconds']}.",
        "",
        f"**Static int8, minimum and maximum observers**, {report['held_out'][0]} held-out documents of "
        f"{report['held_out'][1] - 1} predicted bytes; calibrated on the first documents of the training split.",
        "",
        "| calibration documents | float residual | int8 residual | int8 minus float (paired) |",
        "|---|---|---|---|",
    ]
    for count, row in report["residuals"].items():
        lines.append(f"| {count} | " + " | ".join(cell(found) for found in row.values()) + " |")
    by_aim = report["rates"]
    columns = list(next(iter(by_aim.values())))
    lines += [
        "",
        f"**Quantization-aware training**, {report['steps']} steps of 8 windows of 128 bytes, {BITS} bits, a scale a "
        f"row, Adam; {report['validation'][0]} validation documents of {report['validation'][1] - 1} predicted bytes.",
        "",
        "| aim | " + " | ".join(f"rate {rate}" for rate in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    lines += [f"| {aim} | " + " | ".join(cell(row[rate]) for rate in columns) + " |" for aim, row in by_aim.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=96, help="how many held-out documents")
    parser.add_argument("--validation", type=int, default=32, help="how many validation documents")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--calibration", type=int, nargs="+", default=CALIBRATION)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--output", type=Path, default=RESULTS / "components.json")
    arguments = parser.parse_args()
    known_warnings.hide()
    int8.choose_engine()
    start, model = time.perf_counter(), load_course_model()
    held_out, validation = (
        data.windows("held_out", arguments.windows),
        data.windows("validation", arguments.validation, 129),
    )
    report = {
        "date": date.today().isoformat(),
        "machine": description(),
        "held_out": list(held_out.shape),
        "validation": list(validation.shape),
        "steps": arguments.steps,
        "residuals": residuals(model, held_out, arguments.calibration),
        "rates": rates(model, validation, arguments.steps, arguments.rates),
    }
    report["seconds"] = round(time.perf_counter() - start)
    write(arguments.output, json.dumps(report, indent=1) + "\n")
    write(arguments.output.with_suffix(".md"), as_page(report))
    print(as_page(report))


if __name__ == "__main__":
    main()
