"""The budget challenge of unit 06: what counts is what another process can rebuild from the file.

`submit_entry` takes a model or an artefact, writes what it weighs, forgets the original, rebuilds a model from the
bytes with the course's own classes, and lets that one read held-out dates. A file is read as numbers only: no code of
it is ever run. From the command line, without a notebook around it:

    python -m helpers.challenge FILE --seed 1 --count 2000

What no judge of a file can see: whether somebody trained, or chose, on the held-out dates. Other pairs of the same
dates, which another seed draws, would not show it either. That part is a matter of honour, as in every benchmark.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import dates, entries, frontier, int8, intervals, seq2seq
from helpers.checkpoint import load_date_reader
from helpers.packed import Refused, pack, unpack
from helpers.seq2seq import Seq2Seq

__all__ = ["BUDGET", "MARGIN", "POINTS", "Exam", "Refused", "Result", "draw_exam", "pack", "submit_entry", "unpack"]

BUDGET = 96_000  # bytes of the file: a tenth of the float model's
LONGEST = 4  # times the float file: what is longer is not read
MARGIN = 0.04  # the floor: so much exact match may be lost, and the whole 95 % interval must say so
POINTS = 3
SMALLER = (90_000, 85_000, 80_000)  # bytes below which there is extra credit; the last is the second prize
SEED, COUNT, FEWEST = 62, 2000, 20  # of the judge's pairs; fewer than the last are no exam
CLOSER = 0.01  # loss below which, interval and all, there is extra credit


@dataclass(frozen=True)
class Exam:
    """Held-out pairs, and what the float model makes of them."""

    reference: Seq2Seq
    seed: int
    source: Tensor
    target: Tensor
    right: Tensor  # bool (count,): whether the reference read the date without a fault
    bytes: int  # of the reference as a file


@dataclass(frozen=True)
class Result:
    """What became of an entry. `loss` is the exact match of float minus that of the entry, on the same pairs."""

    name: str
    kind: str
    bytes: int
    times_smaller: float
    pairs: int
    seed: int
    exact: intervals.Interval
    loss: intervals.Interval
    bits_per_character: float
    meets_budget: bool
    meets_floor: bool
    points: int
    extra: tuple[str, ...] = ()
    dominates: tuple[str, ...] = ()

    @property
    def change(self) -> intervals.Interval:
        """The exact match of the entry minus that of float: `loss` with the other sign, as unit 06 shows it."""
        return intervals.Interval(0 - self.loss.estimate, -self.loss.high, -self.loss.low)

    def row(self) -> dict[str, str]:
        """One line of the leaderboard."""
        middle, low, high = (100 * share for share in self.change)
        return {
            "entry": self.name,
            "bytes": f"{self.bytes:,}",
            "times smaller": f"{self.times_smaller:.1f}",
            "exact match": f"{self.exact.estimate:.2%}",
            "change in points (95 % interval)": f"{middle:+.1f} ({low:+.1f} to {high:+.1f})",
            "bits per character": f"{self.bits_per_character:.5f}",
            "budget": "yes" if self.meets_budget else "no",
            "floor": "yes" if self.meets_floor else "no",
        }

    def to_dict(self) -> dict[str, object]:
        """Plain data, as JSON has it."""
        bits = self.bits_per_character
        known = {"bits_per_character": bits if math.isfinite(bits) else None}
        return asdict(self) | {"exact": list(self.exact), "loss": list(self.loss)} | known


def draw_exam(reference: Seq2Seq, seed: int = SEED, count: int = COUNT, split: str = "held_out") -> Exam:
    """Pairs with the answers of `reference`; one exam serves many entries. Whoever still chooses asks "validation".

    Raises
    ------
    Refused
        If `count` is too small to say anything.
    """
    if count < FEWEST:
        raise Refused(f"an exam has at least {FEWEST} pairs: with {count}, nothing would be sure.")
    source, target, _ = dates.pairs(split, count, seed)
    right, _ = read(reference, source, target)
    return Exam(reference, seed, source, target, right, len(entries.float_file(reference)))


@functools.lru_cache(maxsize=2)
def _usual_exam(seed: int, count: int) -> Exam:
    return draw_exam(load_date_reader(), seed, count)


def submit_entry(
    entry: nn.Module | bytes | Path,
    name: str = "my entry",
    exam: Exam | None = None,
    references: Iterable[Result] = (),
    seed: int = SEED,
    count: int = COUNT,
) -> Result:
    """Judge an entry by its file: bytes, exact match on held-out dates, budget, floor, points.

    Parameters
    ----------
    entry : Module, bytes or Path
        A `Seq2Seq` in float or in PyTorch's int8 (`int8.dynamic_int8`, `seq2seq.static_int8`), or an artefact, such
        as `pack` makes it.
    name : str
    exam : Exam or None
        Made by `draw_exam`; None draws one for the course's date reader with `seed` and `count`.
    references : iterable of Result
        Other entries of the same exam; those that this one dominates are named.
    seed, count : int
        Which held-out pairs, and how many, if there is no exam.

    Raises
    ------
    Refused
        If the entry is not what a file can hold, or holds what is no part of the model: one sentence.
    """
    exam = exam or _usual_exam(seed, count)
    if isinstance(entry, nn.Module):
        content = entries.written(entry, exam.reference)
    else:
        content = _content(entry, LONGEST * exam.bytes)
    model, kind = entries.rebuilt(content, exam.reference.config)
    if isinstance(entry, nn.Module):
        entries.same_answers(entry, model)
    right, bits = read(model, exam.source, exam.target)
    exact = intervals.wilson(int(right.sum()), len(right))
    broken, repaired = (exam.right & ~right).sum().item(), (~exam.right & right).sum().item()
    loss = intervals.paired_loss(broken, repaired, len(right))
    meets_budget = len(content) <= BUDGET
    meets_floor = intervals.verdict(loss, MARGIN) == "within the margin"
    passed = meets_budget and meets_floor
    return Result(
        name=name,
        kind=kind,
        bytes=len(content),
        times_smaller=exam.bytes / len(content),
        pairs=len(right),
        seed=exam.seed,
        exact=exact,
        loss=loss,
        bits_per_character=bits,
        meets_budget=meets_budget,
        meets_floor=meets_floor,
        points=POINTS if passed else 0,
        extra=_extra(len(content), loss) if passed else (),
        dominates=tuple(r.name for r in references if _dominates((len(content), loss.estimate), r)),
    )


def _content(entry: bytes | Path, longest: int) -> bytes:
    if not isinstance(entry, bytes | bytearray | str | Path):
        raise Refused(f"an entry is a model, the bytes of an artefact or the path of one: not {type(entry).__name__}.")
    if isinstance(entry, str | Path) and not Path(entry).is_file():
        raise Refused(f"there is no file {str(entry)!r}.")
    length = Path(entry).stat().st_size if isinstance(entry, str | Path) else len(entry)
    if length > longest:
        raise Refused(f"the file has {length:,} bytes: nothing above {longest:,} is even read.")
    return Path(entry).read_bytes() if isinstance(entry, str | Path) else bytes(entry)


@torch.no_grad()
def read(model: nn.Module, source: Tensor, target: Tensor) -> tuple[Tensor, float]:
    """Whether each date is read without a fault, bool (count,), and the cross-entropy in bits per character.

    Each character is asked with the right ones before it. Greedy decoding is right in every character exactly if each
    of these answers is right: until the first fault, it has the same characters before it. (A dynamically quantized
    model may differ by a hair: its scales depend on everything that is in the batch.)
    """
    right, nats = [], 0.0
    for some, wanted in zip(source.split(250), target.split(250), strict=True):
        logits = model(some, seq2seq.shifted(wanted))  # (batch, target, vocab_size)
        right.append((logits.argmax(dim=-1) == wanted).all(dim=1))
        nats += F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum").item()
    return torch.cat(right), nats / target.numel() / math.log(2) if math.isfinite(nats) else math.inf


def _extra(size: int, loss: intervals.Interval) -> tuple[str, ...]:
    earned = [f"smaller than {limit:,} bytes" for limit in SMALLER if size < limit]
    if intervals.verdict(loss, CLOSER) == "within the margin":
        earned.append(f"certainly loses less than {100 * CLOSER:.0f} percentage point of exact match")
    return tuple(earned)


def _dominates(mine: tuple[float, float], other: Result) -> bool:
    return 1 not in frontier.frontier([mine, (other.bytes, other.loss.estimate)])


def report(file: Path, seed: int = SEED, count: int = COUNT) -> dict[str, object]:
    """What the judge says of a file, as plain data: the result, or ``{"refused": sentence}``."""
    try:
        return submit_entry(file, seed=seed, count=count).to_dict()
    except Refused as refusal:
        return {"refused": str(refusal)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--count", type=int, default=COUNT)
    arguments = parser.parse_args()
    int8.choose_engine()
    torch.set_num_threads(1)
    print(json.dumps(report(arguments.file, arguments.seed, arguments.count), allow_nan=False))


if __name__ == "__main__":
    main()
