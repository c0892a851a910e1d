"""Friendly checks for the visible part of a test cell: they say what passed and name the likely mistake.

A grade never depends on this module: hidden tests are plain assertions, and a progress file that cannot be
written is only mentioned. Introduced in unit 00.
"""

from __future__ import annotations

import re
import sys
import sysconfig
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
from torch import Tensor

from helpers import progress
from helpers.isolation import isolated, untouched
from helpers.progress import show_progress

__all__ = ["CheckFailed", "NotSolvedYet", "check", "close", "given", "isolated", "number", "raises", "show_progress",
           "tensor", "untouched"]  # fmt: skip

COLUMNS = 88  # of a message: JupyterLab breaks longer lines inside a word
# What PyTorch and Python say, and what it means here.
EXPLAINED = (
    ("doesn't define __round__ method", "round() takes a Python number: call .item() on the tensor, or torch.round."),
    (
        "Boolean value of Tensor with no values",
        "the tensor is empty, as min_val and max_val of an observer are before it has seen anything: ask its numel() "
        "first.",
    ),
    (
        "Boolean value of Tensor with more than one value",
        "`if` and `or` need one truth value: say which, with .any() or .all().",
    ),
    (
        "does not require grad",
        "nothing here is to be trained: are all parameters frozen, or were gradients off while the loss was computed?",
    ),
    (
        "'NoneType' object is not callable",
        "something that should be a function or a model is None: a function that changes its argument in place often "
        "returns None.",
    ),
)


class CheckFailed(AssertionError):
    """A check that did not pass; its text is written for the learner."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for this: the sentence, not a page of frames
        return [wrapped(str(self))]


class NotSolvedYet(CheckFailed):
    """The exercise still holds its stub: neither right nor wrong."""


@contextmanager
def check(exercise: str, passed: str) -> Iterator[None]:
    """Run the visible checks of `exercise`; print `passed` and record progress when all of them hold.

    Raises
    ------
    NotSolvedYet
        If the learner's code is still the stub.
    CheckFailed
        If a check fails or the learner's code raises; the text names the likely mistake, or the line that raised.
    """
    gradients = torch.is_grad_enabled()
    try:
        # nbgrader takes a warning on stderr for a failure; seeds of a check must not change the learner's random state.
        with redirect_stderr(sys.stdout), torch.random.fork_rng(devices=[]):
            yield
        assert torch.is_grad_enabled() == gradients, (
            "your code switches gradients off for the whole notebook: use `with torch.no_grad():`, which ends."
        )
    except Exception as error:
        if isinstance(error, NotImplementedError) and "is not solved yet" in str(error):
            progress.record(exercise, "untouched")
            raise NotSolvedYet(
                f"Exercise {exercise} is not solved yet: write your code where the cell above says YOUR CODE HERE, run "
                "that cell, then run this one again."
            ) from None
        progress.record(exercise, "tried")
        raise CheckFailed(f"Exercise {exercise}: {_explanation(error)}") from error
    finally:
        torch.set_grad_enabled(gradients)
    progress.record(exercise, "solved")
    print(wrapped(f"Exercise {exercise} passed: {passed}."))


def close(
    answer: Tensor,
    expected: Tensor,
    what: str,
    mistakes: Mapping[str, Tensor] | None = None,
    atol: float = 1e-5,
    rtol: float = 1e-5,
) -> None:
    """Assert that a tensor equals the expected one up to rounding, else say what is wrong with it.

    Parameters
    ----------
    answer, expected : Tensor
        The learner's result and an independent one.
    what : str
        What `answer` is, for the message: "your output for 2 heads".
    mistakes : mapping of str to Tensor
        A sentence for each known mistake, with the value that this mistake gives. It is said only if no other fits.
    atol, rtol : float
        Allowed is ``atol + rtol * abs(expected)``, for every element (the maximum counts, not the mean).

    Raises
    ------
    AssertionError
    """
    tensor(answer, expected.shape, what)
    if _same(answer, expected, atol, rtol):
        return
    fits = [
        s for s, wrong in (mistakes or {}).items() if wrong.shape == expected.shape and _same(answer, wrong, atol, rtol)
    ]
    if len(fits) == 1:  # two that fit would be a guess
        raise AssertionError(f"{what} is wrong: {fits[0]}")
    if not torch.isfinite(answer.double()).all():
        raise AssertionError(
            f"{what} holds nan or inf: infinity times 0, infinity minus infinity, or a division by 0 makes them."
        )
    error = (answer.double() - expected.double()).abs()
    worst = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    raise AssertionError(
        f"{what} differs from the expected value by up to {error.max():.3g}; at index {list(worst)} it is "
        f"{answer[worst]:.6g} and should be {expected[worst]:.6g}."
    )


def tensor(answer: object, shape: torch.Size | tuple[int, ...], what: str, dtype: torch.dtype | None = None) -> None:
    """Assert that `answer` is a tensor of this shape (and dtype)."""
    given(answer, what)
    assert isinstance(answer, Tensor), f"{what} should be a tensor, not {type(answer).__name__}."
    assert answer.shape == shape, f"{what} has shape {tuple(answer.shape)}; expected is {tuple(shape)}."
    assert dtype is None or answer.dtype == dtype, f"{what} has dtype {answer.dtype}; expected is {dtype}."


def number(
    answer: object, expected: float, what: str, mistakes: Mapping[str, float] | None = None, rtol: float = 1e-5
) -> None:
    """Assert that `answer` is a number equal to `expected` up to `rtol`, else name the likely mistake."""
    given(answer, what)
    assert not isinstance(answer, str | bytes), f"{what} should be a number, not text."
    try:
        value = float(answer.detach() if isinstance(answer, Tensor) else answer)
    except (TypeError, ValueError):
        raise AssertionError(f"{what} should be a number, not {type(answer).__name__}.") from None
    near = lambda other: abs(value - other) <= rtol * max(abs(other), 1e-12)  # noqa: E731
    if near(expected):
        return
    fits = [sentence for sentence, wrong in (mistakes or {}).items() if near(wrong)]
    if len(fits) == 1:
        raise AssertionError(f"{what} is wrong: {fits[0]}")
    raise AssertionError(f"{what} is {value:.6g}; expected is {expected:.6g}.")


def wrapped(text: str) -> str:
    """`text` broken between words, so that no page breaks it inside one; its own lines stay."""
    return "\n".join(
        textwrap.fill(line, COLUMNS, break_long_words=False, break_on_hyphens=False, drop_whitespace=True)
        if line
        else ""
        for line in text.splitlines()
    )


def given(answer: object, what: str) -> None:
    """Assert that there is an answer at all."""
    assert answer is not None, f"{what} is None: does your function end with `return`?"


def raises(kind: type[Exception], call: Callable[[], object], otherwise: str) -> None:
    """Assert that `call` raises `kind`; `otherwise` is the sentence for the learner when it does not."""
    try:
        call()
    except kind:
        return
    except Exception as error:
        raise AssertionError(f"{otherwise} (It raised {type(error).__name__}: {error})") from None
    raise AssertionError(otherwise)


def _explanation(error: Exception) -> str:
    """What to tell a learner whose code raised, or failed an assertion."""
    if isinstance(error, AssertionError):
        sentence = str(error) or f"an assertion without a text failed{_place(error)}."
        begin = sentence[0].upper() if re.match(r"[a-z]+[ ,']", sentence) else sentence[0]  # my_name stays my_name
        return f"not yet. {begin}{sentence[1:]}"
    if isinstance(error, UnboundLocalError):
        return (
            f"{error}{_place(error)}. Python takes a name that a function assigns anywhere, also as the variable of a "
            "`for`, for the function's own: give one of the two another name."
        )
    if isinstance(error, NameError):
        return _missing_name(error)
    meaning = next((f" That means: {meaning}" for text, meaning in EXPLAINED if text in str(error)), "")
    place = _place(error)
    if not place:
        return (
            f"what your function returned stopped the check with {type(error).__name__}: {error}\n"
            f"It is not what the exercise asks for.{meaning} To see more, call your function yourself in a new cell."
        )
    return (
        f"your code stopped with {type(error).__name__}: {error}\n"
        f"It happened{place}.{meaning} To see more, call your function yourself in a new cell."
    )


def _missing_name(error: NameError) -> str:
    place = _place(error)
    if not place:  # the check itself asks for the learner's function
        return (
            f"there is no `{error.name}` in this kernel yet. Run the cell with your answer (it must define this name), "
            "then this one again."
        )
    return (
        f"{error}{place}. Either your code uses a name that does not exist, or the cell that defines it has not run: "
        "run the notebook's first cell and the cells above your answer, then this cell again."
    )


def _place(error: BaseException) -> str:
    """Where in the learner's own code an error came from, "" if nowhere: the last frame of a cell that is no check."""
    frames = [
        summary
        for (frame, _), summary in zip(
            traceback.walk_tb(error.__traceback__), traceback.extract_tb(error.__traceback__), strict=True
        )
        if not summary.filename.startswith(_NO_CELLS)
        and not frame.f_code.co_qualname.startswith("check_ex_")  # the check, and functions inside it
    ]
    if not frames:
        return ""
    return f" in {frames[-1].name}, line {frames[-1].lineno} of its cell: {frames[-1].line or ''}".rstrip(": ")


def _same(a: Tensor, b: Tensor, atol: float, rtol: float) -> bool:
    return bool(torch.allclose(a.double(), b.double(), atol=atol, rtol=rtol))


# Files whose frames are nobody's cell: the course, installed packages, Python's own library.
_NO_CELLS = (
    str(Path(__file__).parent),
    "<frozen",
    *{sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")},
)
