"""Write docs/book_corrected.md from the snippets: ``python -m tests.book.page`` (or ``make book``)."""

from __future__ import annotations

import re
from pathlib import Path

from tests.book.common import CONCLUSION, DESIGN, INTRODUCTION, LINEARS, PYTORCH
from tests.book.snippets import SNIPPETS, Snippet

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "book_corrected.md"
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
## Speed: measured once, not tested

No test looks at a clock, because the times depend on the computer. Two claims of the book are about time. We measured
both once: one `nn.Linear` of width n in, n out; one thread; an AMD EPYC processor with VNNI; PyTorch {torch}, not
compiled; engine x86. Each number is the median of 180 ratios, time of int8 / time of float. Below 1, int8 is the
faster one.

| Width | Rows in a batch | Weight-only (torchao) | Static, without stubs | Static, with stubs |
| ---: | ---: | ---: | ---: | ---: |
| 64 | 1 | 2.9 | 2.3 | 3.7 |
| 64 | 128 | 1.9 | 1.3 | 2.0 |
| 256 | 1 | 2.3 | 1.5 | 2.4 |
| 256 | 128 | 1.2 | 0.4 | 0.5 |
| 1024 | 1 | 1.9 | 0.5 | 0.7 |
| 1024 | 128 | 1.0 | 0.2 | 0.3 |

- *The book, chapter 2: int8 weights shorten the computation.* Not in our measurement: weight-only int8 was never faster
  than float (see 35 for the reason).
- *The book, chapter 4: the int8 Linear layer takes longer than the float one.* Only where there is little to multiply.
  At width 1024 it took 0.2 to 0.7 of the time.

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


def markdown() -> str:
    versions = {name: locked_version(name) for name in ("torch", "torchao")}
    return "\n".join([TOP.format(**versions), *(table(chapter) for chapter in CHAPTERS), SPEED.format(**versions)])


if __name__ == "__main__":
    PAGE.write_text(markdown())
    print(f"{PAGE.relative_to(ROOT)}: {len(SNIPPETS)} rows")
