"""The bank of answers: for each graded exercise named wrong answers, and right ones that are written differently.

An answer is an ordinary function. `wrong` says which exercise it belongs to and a part of the message that the
learner must get; `right` says only the exercise. It takes the place of the exercise's function, or of the one named
`binds` when an exercise asks for several.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    exercise: str
    name: str
    function: Callable
    message: str | None  # None: a right answer
    binds: str | None
    like: str | None = None  # another answer with the same mistake, which may get the same message


ANSWERS: list[Answer] = []


def wrong(
    exercise: str, message: str, binds: str | None = None, like: str | None = None
) -> Callable[[Callable], Callable]:
    """Register a misconception of `exercise`; the visible check must fail with `message` in its text.

    `like` names another answer of this exercise that makes the same mistake in another form.
    """

    def register(function: Callable) -> Callable:
        ANSWERS.append(Answer(exercise, function.__name__, function, message, binds, like))
        return function

    return register


def right(exercise: str, binds: str | None = None) -> Callable[[Callable], Callable]:
    """Register a right answer that is written differently from ours; the check and its hidden tests must pass."""

    def register(function: Callable) -> Callable:
        ANSWERS.append(Answer(exercise, function.__name__, function, None, binds))
        return function

    return register
