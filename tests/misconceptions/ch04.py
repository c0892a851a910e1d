"""Unit 04: what learners really answer, in three modules."""

from tests.misconceptions import (
    ch04_block,  # noqa: F401 (attention, feed-forward, block)
    ch04_embedding,  # noqa: F401 (embedding, positions, the tie)
    ch04_whole,  # noqa: F401 (sensitivity, QAT, artefact)
)
