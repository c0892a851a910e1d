"""How the course model degrades when its Linear weights are rounded: part of ``make bench``.

Every scheme is compared with the float model on the same windows, document by document, so the standard error is that
of a paired difference.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date
from pathlib import Path

from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.machine import description
from helpers import data, int8, known_warnings
from helpers.checkpoint import COURSE_MODEL, load_card, load_checkpoint
from helpers.frontier import bits_by_document
from helpers.rounding import with_rounded_linears

RESULTS = Path(__file__).resolve().parent / "results"
# name: bits, group size ("channel" is one scale a row, None one for the whole weight), symmetric
SCHEMES = {
    "int8 per-tensor": (8, None, True),
    "int8 per-channel": (8, "channel", True),
    "int4 per-tensor": (4, None, True),
    "int4 per-channel": (4, "channel", True),
    "int4 group 32": (4, 32, True),
    "int4 group 32 affine": (4, 32, False),
    "int3 per-tensor": (3, None, True),
    "int3 per-channel": (3, "channel", True),
    "int3 group 32": (3, 32, True),
    "int3 group 32 affine": (3, 32, False),
    "int2 per-tensor": (2, None, True),
    "int2 per-channel": (2, "channel", True),
    "int2 group 32": (2, 32, True),
    "int2 group 32 affine": (2, 32, False),
}


def measure(model: nn.Module, windows: Tensor) -> dict[str, dict[str, float]]:
    """For each scheme the bits per byte, the mean difference to float, and its standard error."""
    reference = bits_by_document(model, windows)
    rows = {"float": {"bits_per_byte": reference.mean().item(), "difference": 0.0, "standard_error": 0.0}}
    candidates = {name: lambda s=scheme: with_rounded_linears(model, *s) for name, scheme in SCHEMES.items()}
    candidates["dynamic int8 (torch)"] = lambda: int8.dynamic_int8(model)
    for name, make in tqdm(candidates.items(), desc="schemes", disable=None):
        bits = bits_by_document(make(), windows)
        difference = bits - reference
        rows[name] = {
            "bits_per_byte": bits.mean().item(),
            "difference": difference.mean().item(),
            "standard_error": difference.std().item() / len(difference) ** 0.5,
        }
    return {name: {key: round(value, 5) for key, value in row.items()} for name, row in rows.items()}


def as_table(report: dict) -> str:
    """The report as a Markdown page: a column for each model."""
    models = report["results"]
    caution = [
        "The models differ in their seed and in the length of their training, so a difference between two columns does",
        "not tell which of the two made it. Compare the rows of one column.",
        "",
    ]
    lines = [
        "# Round-to-nearest on the course model",
        "",
        "Made by `make bench`; do not edit. Bits per byte that rounding all Linear weights adds to the float model, ±",
        f"the standard error of the paired difference over {report['windows'][0]} held-out documents "
        f"({report['windows'][1] - 1} predicted bytes each).",
        "",
        *(caution if len(models) > 1 else []),
        f"Machine: {', '.join(f'{key} {value}' for key, value in report['machine'].items())}. Date: {report['date']}.",
        "",
        "| scheme | " + " | ".join(models) + " |",
        "|---|" + "---|" * len(models),
    ]
    for name in next(iter(models.values())):
        rows = [rows[name] for rows in models.values()]
        cells = [f"{r['difference']:+.4f} ± {r['standard_error']:.4f}" for r in rows]
        if name == "float":
            cells = [f"{r['bits_per_byte']:.4f} (bits per byte)" for r in rows]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="*", type=Path, default=[COURSE_MODEL])
    parser.add_argument("--windows", type=int, default=128, help="how many held-out documents")
    parser.add_argument("--output", type=Path, default=RESULTS / "round_to_nearest.json")
    arguments = parser.parse_args()
    known_warnings.hide()
    int8.choose_engine()
    windows = data.windows("held_out", arguments.windows)
    models = {path: load_checkpoint(path) for path in arguments.checkpoints}
    start = time.perf_counter()
    report = {
        "date": date.today().isoformat(),
        "machine": description(),
        "windows": list(windows.shape),
        "results": {describe_training(path): measure(model, windows) for path, model in models.items()},
    }
    report["seconds_per_model"] = round((time.perf_counter() - start) / len(models), 1)
    table = as_table(report)
    write(arguments.output, json.dumps(report, indent=1) + "\n")
    write(arguments.output.with_suffix(".md"), table)
    print(table)


def describe_training(path: Path) -> str:
    """What tells one course model from another, from its card."""
    card = load_card(path)
    return f"seed {card['seed']}, {card['steps']} steps"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


if __name__ == "__main__":
    main()
