"""Answers to the exercises of unit 06, by section."""

from tests.misconceptions import (
    ch06_challenge,  # noqa: F401 (budget challenge)
    ch06_diagnosis,  # noqa: F401 (probes)
    ch06_reader,  # noqa: F401 (decoder block, the whole model)
    ch06_report,  # noqa: F401 (report card)
)
