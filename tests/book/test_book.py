"""What the book says fails as docs/book_corrected.md tells it, what the page proposes works, and the page is new."""

import warnings

import pytest
import torch

from helpers import int8, known_warnings
from tests.book.common import must_fail
from tests.book.page import CHAPTERS, PAGE, cell, markdown
from tests.book.snippets import SNIPPETS

EVERY = pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: str(snippet.number))

# What PyTorch says of the broken versions: an observer saw no data (row 11 asserts that this is said), and the book's
# nn.Transformer has batch_first=False.
EXPECTED_WARNINGS = ("must run observer before calling calculate_qparams", "enable_nested_tensor is True")


@pytest.fixture(autouse=True)
def engine():
    """The int8 engine of the course, one seed, and no warning that is known."""
    before = torch.backends.quantized.engine
    known_warnings.hide()
    for category, message, _ in known_warnings.KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category, module=r"tests\.book\..*")
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
    int8.choose_engine()
    torch.manual_seed(0)
    yield
    torch.backends.quantized.engine = before


@EVERY
def test_what_the_book_says_happens_as_the_page_tells(snippet):
    if snippet.cpu_build_only and torch.version.cuda:
        pytest.skip("a PyTorch with CUDA fails in another way, or not at all")
    if snippet.error is None:
        snippet.broken()
    else:
        must_fail(snippet.broken, snippet.error, snippet.message)


@EVERY
def test_the_correction_works(snippet):
    snippet.repaired()


@EVERY
def test_an_entry_is_complete(snippet):
    assert (snippet.error is None) == (snippet.message is None)
    assert snippet.chapter in CHAPTERS and snippet.unit in {"01", "02", "03", "04", "06"}
    assert snippet.works.count("`") >= 2, "the correction has no code in backticks"
    assert all(text.count("`") % 2 == 0 for text in (snippet.says, snippet.happens, snippet.works))


def test_no_number_is_missing_or_used_twice():
    assert sorted(snippet.number for snippet in SNIPPETS) == list(range(1, 41))


def test_the_page_is_made_from_these_snippets():
    assert PAGE.is_file() and PAGE.read_text() == markdown(), "run: make book"


def test_a_bar_does_not_end_a_cell():
    assert cell("int8 |\n or float") == "int8 \\| or float"


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: None, "nothing failed"),
        (lambda: int("x"), "ValueError came"),
        (lambda: {}["other"], "expected to say"),
    ],
)
def test_another_failure_is_no_failure(call, complaint):
    """The guard of this page: a changed message, another type and no error at all are all noticed."""
    with pytest.raises(AssertionError, match=complaint):
        must_fail(call, KeyError, "what was seen")
