"""Quantization-aware training of the course model against rounding it: the longer run of unit 04 (``make bench``).

For each width and granularity three models are compared with the float model on the same held-out windows, document by
document: rounded after training (PTQ); trained on in float for as many steps on the same batches, then rounded (the
control); and trained with fake-quantized weights (QAT), towards the next byte or towards the float model's own
probabilities. Every matrix is rounded, the table that embedding and head share once. Scales are frozen after half of
the steps; from then on the learning rate falls linearly to zero.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.machine import description
from benchmarks.round_to_nearest import write
from helpers import data, int8, known_warnings
from helpers.checkpoint import load_course_model
from helpers.frontier import bits_by_document
from helpers.models import TransformerLM
from helpers.rounding import round_to_nearest

RESULTS = Path(__file__).resolve().parent / "results"
# name: bits, group size ("channel" is one scale a row, None one for the whole matrix)
SCHEMES = {
    "int4 per-tensor": (4, None),
    "int4 per-channel": (4, "channel"),
    "int4 group 32": (4, 32),
    "int3 per-channel": (3, "channel"),
    "int3 group 32": (3, 32),
    "int2 group 32": (2, 32),
}
USUAL = ["int4 per-channel", "int3 per-channel", "int2 group 32", "int4 per-tensor"]
RATES = {"next byte": 1e-4, "imitation": 2e-4}  # of Adam, for each aim
LOG_EVERY = 10


class Rounding(nn.Module):
    """Fake quantization of a matrix, symmetric, with the straight-through gradient; `freeze` keeps the scales."""

    def __init__(self, bits: int, group_size: int | str | None) -> None:
        super().__init__()
        self.largest = 2 ** (bits - 1) - 1
        self.group_size = group_size
        self.scale: Tensor | None = None
        self.frozen = False

    def forward(self, weight: Tensor) -> Tensor:
        width = {"channel": weight.shape[1], None: weight.numel()}.get(self.group_size, self.group_size)
        groups = weight.reshape(-1, width)  # (groups, width)
        if not self.frozen:
            largest = groups.detach().abs().amax(dim=1, keepdim=True)
            self.scale = torch.where(largest > 0, largest, torch.ones_like(largest)) / self.largest
        codes = (groups.detach() / self.scale).round()
        passes = torch.where(codes.abs() <= self.largest, groups, groups.detach())  # no gradient where it is clamped
        return (passes + (codes.clamp(-self.largest, self.largest) * self.scale - passes).detach()).view(weight.shape)


class FakeLinear(nn.Linear):
    """A Linear layer that computes with rounded weights."""

    rounding: Rounding

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.rounding(self.weight), self.bias)


class RoundedTable(nn.Module):
    """The embedding of a tied model: it reads the rounded rows of the head."""

    def __init__(self, head: FakeLinear) -> None:
        super().__init__()
        self.head = head

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.head.rounding(self.head.weight))


def with_fake_quantization(model: TransformerLM, bits: int, group_size: int | str | None) -> TransformerLM:
    """A copy of `model` (tied) that computes with rounded matrices and trains the float ones behind them."""
    trainee = copy.deepcopy(model)
    for module in trainee.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = FakeLinear
            module.rounding = Rounding(bits, group_size)
    trainee.embedding = RoundedTable(trainee.head)
    return trainee


@torch.no_grad()
def rounded(model: TransformerLM, bits: int, group_size: int | str | None) -> TransformerLM:
    """A copy of `model` whose matrices are rounded to nearest, the shared table once."""
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        if parameter.dim() == 2:
            size = parameter.shape[1] if group_size == "channel" else group_size
            parameter.copy_(round_to_nearest(parameter, bits, size))
    return copied


def next_byte(model: nn.Module, teacher: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def imitation(model: nn.Module, teacher: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    with torch.no_grad():
        wanted = teacher(inputs).softmax(dim=-1).flatten(0, 1)
    return F.cross_entropy(model(inputs).flatten(0, 1), wanted)


def train(
    trainee: nn.Module,
    teacher: nn.Module,
    aim: Callable[[nn.Module, nn.Module, Tensor, Tensor], Tensor],
    batches: list[tuple[Tensor, Tensor]],
    lr: float,
    title: str,
) -> list[tuple[int, float]]:
    """Train in place, a step for each batch; returns (step, mean loss in bits of the last `LOG_EVERY` steps)."""
    optimizer, half, log, recent = torch.optim.Adam(trainee.parameters(), lr=lr), len(batches) // 2, [], []
    trainee.train()
    for step, (inputs, targets) in enumerate(tqdm(batches, desc=title, leave=False, disable=None)):
        if step == half:
            for module in trainee.modules():
                if isinstance(module, Rounding):
                    module.frozen = True
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (len(batches) - step) / (len(batches) - half))
        loss = aim(trainee, teacher, inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent.append(loss.item() / 0.6931471805599453)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == len(batches):
            log.append((step + 1, round(sum(recent) / len(recent), 4)))
            recent = []
    trainee.eval()
    return log


def paired(a: Tensor, b: Tensor) -> dict[str, float]:
    """Mean of the differences by document, and its standard error."""
    difference = a - b
    return {
        "difference": round(difference.mean().item(), 5),
        "standard_error": round(difference.std().item() / len(difference) ** 0.5, 5),
    }


def measure(
    steps: int, batch_size: int, context: int, seed: int, windows: Tensor, schemes: list[str]
) -> Iterator[dict[str, dict]]:
    """PTQ, the float control, QAT with both aims, and the logs of training; yields all of it after each scheme."""
    model = load_course_model()
    stream = data.random_batches(
        data.encode(data.split_text("training")), context, batch_size, torch.Generator().manual_seed(seed)
    )
    batches = [next(stream) for _ in range(steps)]
    reference = bits_by_document(model, windows)
    control = copy.deepcopy(model)
    logs = {"float": train(control, model, next_byte, batches, RATES["next byte"], "float control")}
    rows = {"float": {"bits_per_byte": round(reference.mean().item(), 5)}}
    rows["float, tuned"] = paired(bits_by_document(control, windows), reference)
    for name in schemes:
        scheme = SCHEMES[name]
        found = {
            "PTQ": bits_by_document(rounded(model, *scheme), windows),
            "float tuned, then rounded": bits_by_document(rounded(control, *scheme), windows),
        }
        for title, aim in (("next byte", next_byte), ("imitation", imitation)):
            trainee = with_fake_quantization(model, *scheme)
            logs[f"{name}, {title}"] = train(trainee, model, aim, batches, RATES[title], f"{name}, {title}")
            found[f"QAT, {title}"] = bits_by_document(trainee, windows)
        rows[name] = {way: paired(bits, reference) for way, bits in found.items()}
        rows[name]["QAT, next byte, minus control"] = paired(
            found["QAT, next byte"], found["float tuned, then rounded"]
        )
        for title in ("next byte", "imitation"):
            rows[name][f"QAT, {title}, minus PTQ"] = paired(found[f"QAT, {title}"], found["PTQ"])
        yield {"results": rows, "logs": logs}


def as_table(report: dict) -> str:
    """The report as a Markdown page."""
    rows = report["results"]
    tuned = rows["float, tuned"]
    schemes = [name for name in rows if not name.startswith("float")]
    ways = list(rows[schemes[0]])
    lines = [
        "# Quantization-aware training of the course model",
        "",
        "Made by `make bench`; do not edit. Bits per byte that a way of rounding all matrices adds to the float model "
        f"({rows['float']['bits_per_byte']:.4f}), ± the standard error of the paired difference over "
        f"{report['windows'][0]} held-out documents ({report['windows'][1] - 1} predicted bytes each).",
        "",
        f"{report['steps']} steps of {report['batch_size']} windows of {report['context']} bytes, "
        f"seed {report['seed']}; "
        f"Adam, learning rate {RATES['next byte']} (imitation {RATES['imitation']}), scales frozen after half of the "
        f"steps, then the rate falls to zero. The float model, tuned for as many steps: {cell(tuned)}.",
        "",
        f"Machine: {', '.join(f'{key} {value}' for key, value in report['machine'].items())}. Date: {report['date']}.",
        f"Seconds: {report['seconds']}.",
        "",
        "| way | " + " | ".join(schemes) + " |",
        "|---|" + "---|" * len(schemes),
    ]
    lines += [f"| {way} | " + " | ".join(cell(rows[name][way]) for name in schemes) + " |" for way in ways]
    lines += ["", "Loss in training (bits per byte of the batches; towards the float model for imitation):", ""]
    lines += ["| run | " + " | ".join(f"step {step}" for step, _ in report["logs"]["float"]) + " |"]
    lines += ["|---|" + "---|" * len(report["logs"]["float"])]
    lines += [
        f"| {run} | " + " | ".join(f"{bits:.3f}" for _, bits in log) + " |" for run, log in report["logs"].items()
    ]
    return "\n".join(lines) + "\n"


def cell(row: dict[str, float]) -> str:
    return f"{row['difference']:+.4f} ± {row['standard_error']:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("schemes", nargs="*", default=USUAL, help=f"of: {', '.join(SCHEMES)}")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--windows", type=int, default=96, help="how many held-out documents")
    parser.add_argument("--output", type=Path, default=RESULTS / "qat.json")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.schemes) - set(SCHEMES))
    if unknown:
        parser.error(f"there is no scheme {unknown[0]!r}: choose from {', '.join(SCHEMES)}")
    known_warnings.hide()
    int8.choose_engine()
    windows = data.windows("held_out", arguments.windows)
    start = time.perf_counter()
    report = {
        "date": date.today().isoformat(),
        "machine": description(),
        "windows": list(windows.shape),
        "steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "context": arguments.context,
        "seed": arguments.seed,
    }
    for found in measure(
        arguments.steps, arguments.batch_size, arguments.context, arguments.seed, windows, arguments.schemes
    ):
        report |= found | {"seconds": round(time.perf_counter() - start)}
        write(arguments.output, json.dumps(report, indent=1) + "\n")
        write(arguments.output.with_suffix(".md"), as_table(report))
    print(as_table(report))


if __name__ == "__main__":
    main()
