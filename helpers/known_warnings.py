"""Warnings of PyTorch and torchao that this course knows: listen to them once (unit 00), then hide exactly those.

Each entry names the message *and* the module it comes from. Nothing else is hidden: a new warning of a new
PyTorch will be seen.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# (category, start of the message, module that is named as its place)
KNOWN_WARNINGS = (
    (DeprecationWarning, r"torch\.ao\.quantization is deprecated", r"__main__|helpers\..*|torch\.ao\..*"),
    (UserWarning, r"torch\.quantize_per_tensor, .* are deprecated", r"__main__|helpers\..*|torch\..*"),
    (UserWarning, r"TypedStorage is deprecated", r"torch\._utils"),
    (UserWarning, r"Please use quant_min and quant_max to specify the range", r"torch\.ao\.quantization\..*"),
)
# (logger, start of the message): torchao's compiled GPU kernels that a CPU build of torch cannot load, a compiler for
# GPUs that is not here, and a note to torchao's own developers.
KNOWN_LOG_LINES = (
    ("torchao", r"Failed to load .*_C.*\.so"),
    ("torchao.kernel.intmm", r"Warning: Detected no triton"),
    ("torch.utils._pytree", r".* is an Enum subclass and is now natively supported"),
)


def hide() -> None:
    """Hide the known messages, by text and place; call it once, in the first cell of a notebook."""
    for category, message, module in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category, module=module)
    for name in {name for name, _ in KNOWN_LOG_LINES}:
        logger = logging.getLogger(name)
        if not any(isinstance(f, _KnownLines) for f in logger.filters):
            logger.addFilter(_KnownLines())


@contextmanager
def listening() -> Iterator[list[str]]:
    """Collect warnings and log lines instead of printing them: a list of "Category: first sentence"."""
    heard: list[str] = []
    handler = _Collector(heard)
    loggers = [logging.getLogger(name) for name in sorted({name for name, _ in KNOWN_LOG_LINES})]
    before = [(logger.propagate, logger.filters[:]) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
        logger.filters = [f for f in logger.filters if not isinstance(f, _KnownLines)]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield heard
        for warning in caught:
            line = f"{warning.category.__name__}: {_first_sentence(str(warning.message))}"
            if line not in heard:
                heard.append(line)
    finally:
        for logger, (propagate, filters) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate, logger.filters = propagate, filters


class _KnownLines(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not any(record.name == name and re.match(text, record.getMessage()) for name, text in KNOWN_LOG_LINES)


class _Collector(logging.Handler):
    def __init__(self, heard: list[str]) -> None:
        super().__init__()
        self.heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        line = f"log line of {record.name}: {_first_sentence(record.getMessage())}"
        if line not in self.heard:
            self.heard.append(line)


def _first_sentence(text: str) -> str:
    """The first sentence, with folders cut from file names (they differ on every computer)."""
    text = re.sub(r"(/[^\s:]+/)([^\s/:]+)", lambda match: match.group(2), " ".join(text.split()))
    return re.split(r"(?<=[a-z0-9)])\.(?=\s|$)", text, maxsplit=1)[0] + "."
