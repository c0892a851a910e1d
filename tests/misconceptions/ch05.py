"""Unit 05: what learners really answer, in two modules."""

from tests.misconceptions import (
    ch05_decisions,  # noqa: F401 (frontier, calibration, byte budget, published table)
    ch05_measures,  # noqa: F401 (distances, flips, intervals, bytes, latency)
)
