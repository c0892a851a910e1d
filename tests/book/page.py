"""Write docs/book_corrected.md from the snippets: ``python -m tests.book.page`` (or ``make book``)."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks import linear_speed
from tests.book.common import CONCLUSION, DESIGN, INTRODUCTION, LINEARS, PYTORCH
from tests.book.snippets import SNIPPETS, Snippet

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "book_corrected.md"
MEASURED = ROOT / "benchmarks" / "results" / "linear_speed.json"
CHAPTERS = (INTRODUCTION, PYTORCH, LINEARS, DESIGN, CONCLUSION)

TOP = """\
# The book, corrected

<!-- Made by `make book` from tests/book/; do not edit. -->

This course follows the drafts of a small book on the quantization of Transformers. Of the nine code examples in these
drafts, eight stop with an error when they are run as printed, and the ninth only defines a class; we added what was
missing (imports, models, data) and looked further. Below is what we found: for each call or claim, what the book says
(in our words), what really happens, and what works. Be most careful where it says **no error**: the code runs, and
does not do what you think.

Every row is run by a test, with PyTorch {torch} and torchao {torchao} on a CPU: the failure must come with exactly the
message shown here, and the correction must do what it promises. Numbers like file sizes and errors are for the small
models of these tests. The last column names the unit of the course where the matter belongs. Two drafts call
themselves chapter 4.
"""

SPEED = """\
## Speed: measured, not tested

No test looks at a clock, because the times depend on the computer. Two claims of the book are about time. This is what
`make bench BENCH=linear_speed` measured ([result](../benchmarks/results/linear_speed.md), with the computer that it was
measured on): one `nn.Linear` of width n in, n out, without a bias; one thread; not compiled. Each number is time /
time of `nn.Linear` in float32, the median of {repeats} turns, with its interval of at least 95 %. Below 1, it
is faster than float32. "Reading codes" is PyTorch's `torch._weight_int8pack_mm`, with `bfloat16` activations; the
first column is `nn.Linear` in `bfloat16`, without any int8, as a control.

{table}

- *The book, chapter 2: int8 weights shorten the computation.* It depends on the kernel and on the rows. {weight_only}
- *The book, chapter 4: the int8 Linear layer takes longer than the float one.* {static}

Measure on your own computer, at the sizes that you need, before you promise anything.
"""


def locked_version(package: str) -> str:
    """The version that requirements.lock pins."""
    found = re.search(rf"^{re.escape(package)}==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"requirements.lock does not pin {package}: run make lock")
    return found[1]


def cell(text: str) -> str:
    """Text for a cell of a table: on one line, no bar in it."""
    return " ".join(text.split()).replace("|", "\\|")


def what_happens(snippet: Snippet) -> str:
    if snippet.error is None:
        return f"**No error.** {snippet.happens}"
    return f"`{snippet.error.__name__}: {snippet.message}`<br>{snippet.happens}"


def row(snippet: Snippet) -> str:
    cells = (str(snippet.number), snippet.says, what_happens(snippet), snippet.works, snippet.unit)
    return "| " + " | ".join(cell(text) for text in cells) + " |"


def table(chapter: str) -> str:
    rows = [row(snippet) for snippet in sorted(SNIPPETS, key=lambda s: s.number) if snippet.chapter == chapter]
    header = ["| No. | The book says | What happens | What works | Unit |", "| ---: | --- | --- | --- | --- |"]
    return "\n".join([f"## The book's chapter {chapter}", "", *header, *rows, ""])


def shapes(rows: list[dict], name: str, faster: bool) -> str:
    """The shapes in which a program was surely faster, or surely slower, than float32, in words."""
    found = []
    for measured in rows:
        ratio = measured["ratios"][name]
        if ratio and (ratio[2] < 1 if faster else ratio[1] > 1):
            found.append(f"{measured['width']} with {measured['batch']} row{'s' if measured['batch'] > 1 else ''}")
    return ", ".join(found) or "nowhere"


def speed() -> str:
    """The section about time, from the stored result of benchmarks/linear_speed.py."""
    report = json.loads(MEASURED.read_text())
    rows, verdicts = report["results"], {}
    for name in linear_speed.PROGRAMS:
        verdicts[name] = f"faster: {shapes(rows, name, True)}; slower: {shapes(rows, name, False)}"
    torchao, reading, static = (verdicts[name] for name in linear_speed.PROGRAMS[1:4])
    return SPEED.format(
        repeats=report["repeats"],
        table="\n".join(linear_speed.as_table(rows)),
        weight_only=f"torchao's layer (see 35), width with rows: {torchao}. The kernel that reads codes: {reading}.",
        static=f"It depends on the shape. Without stubs: {static}.",
    )


def markdown() -> str:
    versions = {name: locked_version(name) for name in ("torch", "torchao")}
    return "\n".join([TOP.format(**versions), *(table(chapter) for chapter in CHAPTERS), speed()])


if __name__ == "__main__":
    PAGE.write_text(markdown())
    print(f"{PAGE.relative_to(ROOT)}: {len(SNIPPETS)} rows")
