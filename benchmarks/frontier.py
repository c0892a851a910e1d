"""Size, quality and time of many configurations of the course model: part of ``make bench``.

Bytes follow the rule of `helpers.frontier`. Quality is the paired difference in bits per byte to the float model on
held-out documents. Time is the ratio to the *unfused* float model at prefill. Fusing attention helps float as well, so
the fused float and the fused bfloat16 model are references of their own, and the table divides by the fused float, too.
Where a scheme is simulated, its weights are unpacked and the model computes in float: it takes at least the time of the
float model of the same form. Unpacking is not measured; its ratio is stored as 1, that of the unfused float model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.machine import description
from benchmarks.round_to_nearest import RESULTS, write
from helpers import data, fused, int8, intervals, known_warnings, latency, quantizable
from helpers.checkpoint import load_course_model
from helpers.frontier import Plan, Scheme, artefact_bytes, bits_by_document, everywhere, frontier, matrices, rounded
from helpers.models import TransformerLM

BEST = Scheme(4, 32, False)
SEED = 0
FUSED_FLOAT = "float, fused attention"
NOISE, ATTEMPTS = 0.10, 3  # an interval wider than ± 10 % is measured again, with twice the turns


@dataclass(frozen=True)
class Configuration:
    """How to make a model, how its matrices are stored, and whether it runs as it is stored."""

    make: Callable[[], nn.Module]
    plan: Plan
    tensor_scales: int = 0
    simulated: bool = False
    half: bool = False  # every number takes two bytes


def configurations(model: TransformerLM, calibration: Tensor) -> dict[str, Configuration]:
    """Everything that is measured, by name: components × bits × granularity × scheme × calibration."""
    found = {
        "float": Configuration(lambda: model, {}),
        FUSED_FLOAT: Configuration(lambda: fused.fused(model), {}),
        "bfloat16, fused attention": Configuration(lambda: fused.fused(model).bfloat16(), {}, half=True),
    }
    for name, plan in weight_plans(model).items():
        found[name] = Configuration(lambda plan=plan: rounded(model, plan), plan, simulated=True)
    return found | real_configurations(model, calibration)


def weight_plans(model: TransformerLM) -> dict[str, Plan]:
    """Weight-only schemes without a kernel, by name."""
    plans: dict[str, Plan] = {}
    for bits, group, symmetric in [
        (8, None, True), (8, "channel", True), (6, "channel", True),
        (4, None, True), (4, "channel", True), (4, 64, True), (4, 32, True), (4, 32, False),
        (3, "channel", True), (3, 32, True), (3, 32, False), (3, 16, False),
        (2, "channel", True), (2, 32, False), (2, 16, False),
    ]:  # fmt: skip
        where = {None: "per tensor", "channel": "per channel"}.get(group, f"group {group}")
        name = f"{bits} bits, {where}{'' if symmetric else ', affine'}"
        plans[name] = everywhere(model, Scheme(bits, group, symmetric))
    eight, four, three = (everywhere(model, Scheme(bits, 32, False)) for bits in (8, 4, 3))
    ends = ("embedding", "head")
    plans["4 bits, embedding and head 8"] = four | {name: eight[name] for name in ends}
    plans["3 bits, embedding and head 8"] = three | {name: eight[name] for name in ends}
    plans["4 bits, attention 8"] = four | {name: eight[name] for name in matrices(model) if "attention" in name}
    plans["4 bits, feed-forward 8"] = four | {name: eight[name] for name in matrices(model) if "ffn" in name}
    plans["4 bits, feed-forward 3"] = four | {name: three[name] for name in matrices(model) if "ffn" in name}
    plans["4 bits, attention 3"] = four | {name: three[name] for name in matrices(model) if "attention" in name}
    return plans


def real_configurations(model: TransformerLM, calibration: Tensor) -> dict[str, Configuration]:
    """Configurations that run as they are stored: PyTorch's int8 kernels and torchao."""
    import torchao.quantization as ao  # after known_warnings.hide(): its import is talkative

    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    per_tensor, per_row = dict.fromkeys(linears, Scheme(8, None)), dict.fromkeys(linears, Scheme(8, "channel"))
    table = {"embedding": Scheme(8, "channel", False)}
    small_table = {"embedding": Scheme(4, "channel", False)}
    batches, sites = list(calibration.split(8)), 2 * len(linears)

    one = tq.default_dynamic_qconfig
    eight, four = tq.float_qparams_weight_only_qconfig, tq.float_qparams_weight_only_qconfig_4bit

    def dynamic(weights: tq.QConfig, embedding: tq.QConfig | None, model: TransformerLM = model) -> nn.Module:
        recipe = {nn.Linear: weights} | ({nn.Embedding: embedding} if embedding else {})
        converted = tq.quantize_dynamic(fused.fused(model), recipe)
        if embedding is four:
            converted.embedding.dtype = torch.quint4x2  # without it, its output has half of its width
        return converted

    def torchao(config: object) -> nn.Module:
        twin = fused.fused(model)
        ao.quantize_(twin, config)
        return twin

    found = {
        "dynamic int8, unfused": Configuration(lambda: int8.dynamic_int8(model), per_tensor),
        "dynamic int8": Configuration(lambda: dynamic(one, None), per_tensor),
        "dynamic int8, embedding 8": Configuration(lambda: dynamic(one, eight), per_tensor | table),
        "dynamic int8, embedding 4": Configuration(lambda: dynamic(one, four), per_tensor | small_table),
        "dynamic int8 per channel, embedding 8": Configuration(
            lambda: dynamic(tq.per_channel_dynamic_qconfig, eight), per_row | table
        ),
        "dynamic int8, feed-forward only": Configuration(
            lambda: fused.dynamic_int8(model, keep=lambda name: "ffn" not in name),
            {name: scheme for name, scheme in per_tensor.items() if "ffn" in name} | table,
        ),
        "static int8, unfused": Configuration(
            lambda: quantizable.static_int8(model, batches), per_row | table, sites
        ),
        "static int8, unfused, int8 residual": Configuration(
            lambda: quantizable.static_int8(model, batches, "int8"), per_row | table, sites
        ),
        "torchao int8 weight-only": Configuration(lambda: torchao(ao.Int8WeightOnlyConfig()), per_row),
        "torchao int8 dynamic": Configuration(lambda: torchao(ao.Int8DynamicActivationInt8WeightConfig()), per_row),
    }  # fmt: skip
    for name, observer, count in [
        ("min/max, 1 document", tq.MinMaxObserver, 1),
        ("min/max, 32 documents", tq.MinMaxObserver, 32),
        ("moving average, 32 documents", tq.MovingAverageMinMaxObserver, 32),
        ("histogram, 32 documents", tq.HistogramObserver, 32),
    ]:
        make = lambda observer=observer, count=count: fused.static_int8(model, calibration[:count].split(4), observer)  # noqa: E731
        found[f"static int8, {name}"] = Configuration(make, per_row | table, sites)
    return found


@torch.no_grad()
def measure(
    model: TransformerLM, chosen: dict[str, Configuration], windows: Tensor, prompt: Tensor, repeats: int
) -> dict[str, dict]:
    """Bytes, paired difference in bits per byte with standard error and interval, and the ratio of time, for each."""
    reference = bits_by_document(model, windows)
    rows, differences = {}, []
    for name, configuration in tqdm(chosen.items(), desc="configurations", disable=None):
        candidate = configuration.make()
        bits = bits_by_document(candidate, windows)
        differences.append(bits - reference)
        delta = intervals.paired_bootstrap(reference, bits, seed=SEED)
        row = {
            "bytes": artefact_bytes(model, configuration.plan, configuration.tensor_scales) // (1 + configuration.half),
            "difference": delta.estimate,
            "standard_error": (bits - reference).std().item() / len(bits) ** 0.5,
            "difference_interval": [delta.low, delta.high],
            "simulated": configuration.simulated,
        }
        rows[name] = row | time_ratio(model, candidate, prompt, repeats, configuration.simulated or name == "float")
    shares = on_frontier(rows, torch.stack(differences))
    for row, share in zip(rows.values(), shares, strict=True):
        row["share_on_frontier"] = share
    best = frontier([(row["bytes"], row["difference"], row["time_ratio"]) for row in rows.values()])
    for i, row in enumerate(rows.values()):
        row["on_frontier"] = i in best
    return {name: {key: rounded_number(value) for key, value in row.items()} for name, row in rows.items()}


def time_ratio(
    model: nn.Module, candidate: nn.Module, prompt: Tensor, repeats: int, in_float: bool
) -> dict[str, object]:
    """Seconds of `candidate` over those of the float model, with interval; 1 for what computes in float."""
    if in_float:
        return {"time_ratio": 1.0, "time_interval": [1.0, 1.0]}
    programs = {"float": lambda: model(prompt), "candidate": lambda: candidate(prompt)}
    for attempt in range(ATTEMPTS):
        try:
            timing = latency.compare(programs, repeats=repeats << attempt, noise=NOISE)["candidate"]
        except latency.TooNoisy:
            if attempt == ATTEMPTS - 1:
                raise
        else:
            break
    return {"time_ratio": timing.ratio, "time_interval": [timing.low, timing.high]}


def on_frontier(rows: dict[str, dict], differences: Tensor, resamples: int = 500) -> list[float]:
    """How often each configuration is on the frontier when documents are drawn again, and times within their noise.

    Parameters
    ----------
    rows : dict
        With "bytes", "time_ratio" and "time_interval".
    differences : Tensor, (configurations, documents)
        All configurations are judged by the same drawn documents.
    """
    generator = torch.Generator().manual_seed(SEED)
    bytes_, ratios = ([row[key] for row in rows.values()] for key in ("bytes", "time_ratio"))
    spread = torch.tensor([(row["time_interval"][1] - row["time_interval"][0]) / (2 * 1.96) for row in rows.values()])
    counts = torch.zeros(len(rows))
    for _ in range(resamples):
        drawn = torch.randint(differences.shape[1], (differences.shape[1],), generator=generator)
        means = differences[:, drawn].mean(dim=1).tolist()
        times = (torch.tensor(ratios) + spread * torch.randn(len(rows), generator=generator)).tolist()
        counts[frontier(list(zip(bytes_, means, times, strict=True)))] += 1
    return (counts / resamples).tolist()


def rounded_number(value: object) -> object:
    if isinstance(value, list):
        return [rounded_number(one) for one in value]
    return round(value, 5) if isinstance(value, float) else value


def as_table(report: dict) -> str:
    """The report as a Markdown page, smallest first."""
    rows = report["results"]
    float_bytes = rows["float"]["bytes"]
    lines = [
        "# Size, quality and time of the course model's configurations",
        "",
        f"Made by `{report.get('command', 'make bench')}`; do not edit.",
        *([report["note"], ""] if report.get("note") else [""]),
        f"Δ: bits per byte more than the float model, on {report['windows'][0]} held-out documents "
        f"({report['windows'][1] - 1} predicted",
        "bytes each), ± the standard error of the paired difference, and its 95 % interval (bootstrap by document).",
        f"Time: ratio to the *unfused* float model at {report['prompt'][0]} × {report['prompt'][1]} bytes, with an "
        "interval of at least 95 %;",
        "*float* means: simulated, so that the model computes in float (unpacking is not counted). All int8 rows but",
        "those called *unfused* have one fused kernel for attention, and float gains by it, too; so the next column is",
        "the quotient of the row's ratio and that of *float, fused attention* (of two medians, without interval).",
        "Frontier: dominated by nobody in bytes, Δ and time; the share says how often that is so when documents and",
        "times are drawn again.",
        "",
        f"Machine: {', '.join(f'{key} {value}' for key, value in report['machine'].items())}. "
        f"Seed: {report['seed']}. Date: {report['date']}.",
        "",
        "| configuration | bytes | times smaller | Δ bits per byte | 95 % interval | time / float | "
        "time / fused float | frontier | share |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    fused_ratio = rows[FUSED_FLOAT]["time_ratio"] if FUSED_FLOAT in rows else None
    for name, row in sorted(rows.items(), key=lambda item: item[1]["bytes"]):
        low, high = row["difference_interval"]
        seconds = f"{row['time_ratio']:.2f} ({row['time_interval'][0]:.2f} to {row['time_interval'][1]:.2f})"
        lines.append(
            f"| {name} | {row['bytes']:,} | {float_bytes / row['bytes']:.2f} | {row['difference']:+.4f} ± "
            f"{row['standard_error']:.4f} | {low:+.4f} to {high:+.4f} | {'float' if row['simulated'] else seconds} | "
            f"{'' if row['simulated'] or not fused_ratio else format(row['time_ratio'] / fused_ratio, '.2f')} | "
            f"{'yes' if row['on_frontier'] else ''} | {row['share_on_frontier']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=96, help="how many held-out documents")
    parser.add_argument("--repeats", type=int, default=21, help="turns of each measurement of time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "frontier.json")
    parser.add_argument("--only", nargs="+", help="names of the configurations to measure, beside the float model")
    parser.add_argument("--note", default="", help="a sentence about the circumstances, for the page")
    arguments = parser.parse_args()
    known_warnings.hide()
    int8.choose_engine()
    torch.set_num_threads(arguments.threads)
    model = load_course_model()
    windows = data.windows("held_out", arguments.windows)
    prompt = windows[:8, :256]
    chosen = configurations(model, data.windows("training", 32)[:, :256])
    if arguments.only:
        chosen = {name: one for name, one in chosen.items() if name in ("float", *arguments.only)}
    some = " ".join(f'"{name}"' for name in arguments.only or ())
    start = time.perf_counter()
    report = {
        "command": f"python -m benchmarks.frontier --only {some}" if some else "make bench",
        "note": arguments.note,
        "date": date.today().isoformat(),
        "seed": SEED,
        "machine": description(),
        "windows": list(windows.shape),
        "prompt": list(prompt.shape),
        "results": measure(model, chosen, windows, prompt, arguments.repeats),
    }
    report["seconds"] = round(time.perf_counter() - start)
    table = as_table(report)
    write(arguments.output, json.dumps(report, indent=1) + "\n")
    write(arguments.output.with_suffix(".md"), table)
    print(table)


if __name__ == "__main__":
    main()
