"""Show rows of measurements as a table with a header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from IPython.display import Markdown, display


def show(rows: Sequence[Mapping[str, object]]) -> None:
    """Display `rows` as a Markdown table; the keys of the first row are the header."""
    if not rows:
        raise ValueError("there is nothing to show: the table has no rows.")
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *([str(row[name]) for name in header] for row in rows)]
    display(Markdown("\n".join("| " + " | ".join(cells) + " |" for cells in lines)))
