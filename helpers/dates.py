"""A task for an encoder-decoder: a date written in one of many ways, as people do, in; the ISO 8601 date out.

    "the 4th of july 1976"  ->  "1976-07-04"
    "day 186 of 1976"       ->  "1976-07-04"
    "jluy 4, 1976"          ->  "1976-07-04"

All text is generated, seeded, and split by *date*: a held-out date was never seen in training in any form. Reading a
date takes what a Transformer is for: where the day stands depends on the form, months are names or numbers, a year of
two digits needs its century, a day of the year needs a calendar with its leap years, and people mistype.

In the forms "day-mon-yy" and "mon day 'yy" a few texts have two right dates after a typo: "5-jn-92" may be January or
June. No model can know which.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

FIRST, LAST = datetime.date(1950, 1, 1), datetime.date(2049, 12, 31)  # so that two digits of a year are enough
PAD, START, END = 0, 1, 2
ALPHABET = " ',-./0123456789abcdefghijklmnopqrstuvwxyz"
VOCAB_SIZE = 3 + len(ALPHABET)
SOURCE_LENGTH, TARGET_LENGTH = 36, 11  # the longest written form; ten characters and the end sign
HELD_OUT_SHARE = 0.10
MONTHS = (
    "january february march april may june july august september october november december".split()  # noqa: SIM905
)
WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()  # noqa: SIM905


def ordinal(day: int) -> str:
    """1 -> "1st", 11 -> "11th", 22 -> "22nd"."""
    ending = "th" if 10 <= day % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


def _month(d: datetime.date) -> str:
    return MONTHS[d.month - 1]


FORMS: dict[str, Callable[[datetime.date], str]] = {
    "day month year": lambda d: f"{d.day} {_month(d)} {d.year}",
    "month day, year": lambda d: f"{_month(d)} {d.day}, {d.year}",
    "month ordinal, year": lambda d: f"{_month(d)} {ordinal(d.day)}, {d.year}",
    "the ordinal of month": lambda d: f"the {ordinal(d.day)} of {_month(d)} {d.year}",
    "weekday, day month year": lambda d: f"{WEEKDAYS[d.weekday()]}, {d.day} {_month(d)} {d.year}",
    "short weekday, day mon": lambda d: f"{WEEKDAYS[d.weekday()][:3]}, {d.day:02d} {_month(d)[:3]} {d.year}",
    "day-mon-yy": lambda d: f"{d.day}-{_month(d)[:3]}-{d.year % 100:02d}",
    "mon day 'yy": lambda d: f"{_month(d)[:3]} {d.day} '{d.year % 100:02d}",
    "day.month.year": lambda d: f"{d.day}.{d.month}.{d.year}",
    "dd.mm.yy": lambda d: f"{d.day:02d}.{d.month:02d}.{d.year % 100:02d}",
    "month/day/year": lambda d: f"{d.month}/{d.day}/{d.year}",
    "year, month day": lambda d: f"{d.year}, {_month(d)} {d.day}",
    "day n of year": lambda d: f"day {d.timetuple().tm_yday} of {d.year}",
}
TYPO_SHARE = 0.10  # of the texts that hold a word: one of its letters is missing, doubled, or swapped with the next


def mistyped(text: str, kind: int, where: int) -> str:
    """`text` with one letter missing (kind 0), doubled (1), or swapped with the next one (2).

    `where` chooses, as often round as needed, among the letters that stand between two letters; a text without such
    letters stays as it is.

    Raises
    ------
    ValueError
        If there is no such kind.
    """
    if kind not in (0, 1, 2):
        raise ValueError(f"there is no typo of kind {kind}: 0 misses a letter, 1 doubles it, 2 swaps it with the next.")
    letters = [i for i in range(1, len(text) - 1) if text[i - 1 : i + 2].isalpha()]
    if not letters:
        return text
    i = letters[where % len(letters)]
    middle = ("", text[i] * 2, text[i + 1] + text[i])[kind]
    return text[:i] + middle + text[i + (2 if kind == 2 else 1) :]


def split_of(date: datetime.date) -> str:
    """ "held_out" for one date in ten, "validation" for one in twenty, else "training", by a hash of the date."""
    position = int(hashlib.sha256(date.isoformat().encode()).hexdigest()[:8], 16) / 16**8
    if position < HELD_OUT_SHARE:
        return "held_out"
    return "validation" if position < HELD_OUT_SHARE + 0.05 else "training"


def dates_of(split: str) -> list[datetime.date]:
    """All dates of a split, in order.

    Raises
    ------
    ValueError
        If there is no such split.
    """
    if split not in ("training", "validation", "held_out"):
        raise ValueError(f'there is no split "{split}": choose "training", "validation" or "held_out".')
    return list(_splits()[split])


@functools.cache
def _splits() -> dict[str, list[datetime.date]]:
    days = [FIRST + datetime.timedelta(n) for n in range((LAST - FIRST).days + 1)]
    splits = {"training": [], "validation": [], "held_out": []}
    for day in days:
        splits[split_of(day)].append(day)
    return splits


def encode(texts: list[str], length: int = SOURCE_LENGTH) -> Tensor:
    """Ids of some texts, each ended by END and filled up with PAD: int64 (count, length).

    Raises
    ------
    ValueError
        If a text is too long, or holds a character that is not in `ALPHABET`, or if `texts` is no list but one text.
    """
    if isinstance(texts, str):
        raise ValueError(f"encode takes a list of texts: encode([{texts!r}]).")
    rows = torch.full((len(texts), length), PAD)
    for row, text in zip(rows, texts, strict=True):
        strange = sorted(set(text) - set(ALPHABET))
        if strange:
            raise ValueError(
                f"{text!r} holds {strange[0]!r}; the model reads small letters, digits and {ALPHABET[:6]!r}."
            )
        if len(text) + 1 > length:
            raise ValueError(f"{text!r} has {len(text)} characters; at most {length - 1} fit.")
        row[: len(text) + 1] = torch.tensor([3 + ALPHABET.index(c) for c in text] + [END])
    return rows


def decode(ids: Tensor) -> str:
    """The text of one row of ids, up to its END.

    Raises
    ------
    ValueError
        If an id before END is none of the vocabulary.
    """
    text = ""
    for i in ids.tolist():
        if i == END:
            break
        if not 0 <= i < VOCAB_SIZE:
            raise ValueError(f"id {i} is no character: ids go from 0 to {VOCAB_SIZE - 1}.")
        text += ALPHABET[i - 3] if i >= 3 else "?"
    return text


def pairs(split: str, count: int, seed: int, forms: list[str] | None = None) -> tuple[Tensor, Tensor, list[str]]:
    """`count` random dates of a split in random forms.

    Returns
    -------
    sources : Tensor, int64, (count, SOURCE_LENGTH)
    targets : Tensor, int64, (count, TARGET_LENGTH)
        The ISO date and END.
    texts : list of str
        The sources as text.

    Raises
    ------
    ValueError
        If there is no such split or form, or if `forms` is empty.
    """
    generator = torch.Generator().manual_seed(seed)
    days, names = dates_of(split), list(FORMS) if forms is None else list(forms)
    strange = [name for name in names if name not in FORMS]
    if strange or not names:
        problem = f"there is no form {strange[0]!r}" if strange else "forms is empty"
        raise ValueError(f"{problem}: give a list of names from dates.FORMS, or None for all of them.")
    day = torch.randint(len(days), (count,), generator=generator).tolist()
    form = torch.randint(len(names), (count,), generator=generator).tolist()
    texts = [FORMS[names[f]](days[d]) for d, f in zip(day, form, strict=True)]
    typo = (torch.rand(count, generator=generator) < TYPO_SHARE).tolist()
    kind = torch.randint(3, (count,), generator=generator).tolist()
    where = torch.randint(1000, (count,), generator=generator).tolist()
    texts = [mistyped(t, kind[i], where[i]) if typo[i] else t for i, t in enumerate(texts)]
    return encode(texts, SOURCE_LENGTH), encode([days[d].isoformat() for d in day], TARGET_LENGTH), texts
