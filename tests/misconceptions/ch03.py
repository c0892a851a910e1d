"""Unit 03: what learners really answer, in two modules."""

from tests.misconceptions import (
    ch03_choice,  # noqa: F401 (bytes, fusion, choosing, freezing)
    ch03_integer,  # noqa: F401 (integer arithmetic)
)
