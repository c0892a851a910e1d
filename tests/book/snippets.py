"""Every snippet and claim of the book that the course corrects; docs/book_corrected.md is made from them."""

from __future__ import annotations

from tests.book import (
    snippets_conclusion,
    snippets_design,
    snippets_design_training,
    snippets_introduction,
    snippets_linear_claims,
    snippets_linears,
    snippets_pytorch,
)
from tests.book.common import Snippet

__all__ = ["SNIPPETS", "Snippet"]

SNIPPETS: tuple[Snippet, ...] = (
    *snippets_introduction.SNIPPETS,
    *snippets_pytorch.SNIPPETS,
    *snippets_linears.SNIPPETS,
    *snippets_linear_claims.SNIPPETS,
    *snippets_design.SNIPPETS,
    *snippets_design_training.SNIPPETS,
    *snippets_conclusion.SNIPPETS,
)
