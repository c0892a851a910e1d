"""Show rows of measurements as a table with a header."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from IPython.display import Markdown, display

NUMBER = re.compile(r"[-+−±≤<>~ ]*[\d.,]*( ?(±|to|of) ?[-+−]?[\d.,]+)*( ?(%|times|dB|ms|s|MB|kB|bytes))?|—|-")


def show(rows: Sequence[Mapping[str, object]]) -> None:
    """Display `rows` as a Markdown table: the keys of the first row are its header, numbers end at the right."""
    if not rows:
        raise ValueError("there is nothing to show: the table has no rows.")
    header = list(rows[0])
    cells = [[str(row[name]) for name in header] for row in rows]
    rulers = ["---:" if all(map(_is_number, column)) else "---" for column in zip(*cells, strict=True)]
    display(Markdown("\n".join("| " + " | ".join(line) + " |" for line in [header, rulers, *cells])))


def _is_number(cell: str) -> bool:
    """True for "+0.0036 ± 0.0011", "97 %", "3.62 times", "" and "—": what should stand below each other."""
    return (
        re.fullmatch(r"[-+−±≤<>~ ]*[\d.,]*( ?(±|to|of) ?[-+−]?[\d.,]+)*( ?(%|times|dB|ms|s|MB|kB|bytes))?|—|-", cell)
        is not None
    )
