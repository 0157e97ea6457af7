"""Tells a person at a terminal or in a notebook why a process does not answer yet: kernels are being compiled."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PATIENCE_SECONDS = 1.0
_TEXT = "quorin: compiling kernels for this processor, up to half a minute; `quorin prewarm` does it beforehand"
_was_announced = False


@contextmanager
def announced() -> Iterator[Callable[[], None]]:
    """Tell that the block compiles: it calls the function that it is given when it begins to.

    If standard error is a terminal or a notebook's, and the block takes longer, one line is written there, at most once
    in a process.
    """
    timer = threading.Timer(_PATIENCE_SECONDS, _announce)
    timer.daemon = True
    try:
        yield timer.start if _is_read() and not _was_announced else _keep_quiet
    finally:
        timer.cancel()


def _keep_quiet() -> None:
    pass


def _announce() -> None:
    global _was_announced
    if not _was_announced:
        _was_announced = True
        sys.stderr.write(f"{_TEXT}\n")
        sys.stderr.flush()


def _is_read() -> bool:
    return sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)
