"""How the course model degrades when its Linear weights are rounded: part of ``make bench``.

Every scheme is compared with the float model on the same windows, document by document, so the standard error is that
of a paired difference.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.machine import description
from helpers import data, known_warnings, metrics
from helpers.checkpoint import COURSE_MODEL, load_checkpoint
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


def bits_by_document(model: nn.Module, windows: Tensor) -> Tensor:
    """Bits per byte of each window, float64 (documents,)."""
    return torch.cat([metrics.next_byte_bits(model, rows).mean(dim=1) for rows in windows.split(16)])


def measure(model: nn.Module, windows: Tensor) -> dict[str, dict[str, float]]:
    """For each scheme the bits per byte, the mean difference to float, and its standard error."""
    reference = bits_by_document(model, windows)
    rows = {"float": {"bits_per_byte": reference.mean().item(), "difference": 0.0, "standard_error": 0.0}}
    candidates = {name: lambda s=scheme: with_rounded_linears(model, *s) for name, scheme in SCHEMES.items()}
    candidates["dynamic int8 (torch)"] = lambda: torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    for name, make in tqdm(candidates.items(), desc="schemes", disable=None):
        bits = bits_by_document(make(), windows)
        difference = bits - reference
        rows[name] = {
            "bits_per_byte": bits.mean().item(),
            "difference": difference.mean().item(),
            "standard_error": difference.std().item() / len(difference) ** 0.5,
        }
    return {name: {key: round(value, 5) for key, value in row.items()} for name, row in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="*", type=Path, default=[COURSE_MODEL])
    parser.add_argument("--windows", type=int, default=128, help="how many held-out documents")
    parser.add_argument("--output", type=Path, default=RESULTS / "round_to_nearest.json")
    arguments = parser.parse_args()
    known_warnings.hide()
    windows = data.windows("held_out", arguments.windows)
    results = {path.stem: measure(load_checkpoint(path), windows) for path in arguments.checkpoints}
    report = {
        "date": date.today().isoformat(),
        "machine": description(),
        "windows": list(windows.shape),
        "results": results,
    }
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    for model, rows in results.items():
        print(model)
        for name, row in rows.items():
            print(f"  {name:22} {row['bits_per_byte']:.4f}  {row['difference']:+.4f} ± {row['standard_error']:.4f}")


if __name__ == "__main__":
    main()
