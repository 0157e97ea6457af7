"""Tells a person at a terminal why a process does not answer yet: kernels are being compiled."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_PATIENCE_SECONDS = 1.0
_TEXT = "quorin: compiling kernels for this processor, up to half a minute; `quorin prewarm` does it beforehand"
_was_announced = False


@contextmanager
def announced() -> Iterator[None]:
    """Write one line to standard error, at most once in a process, if that is a terminal and the block takes long.

    Loading kernels from the cache does not take as long.
    """
    if _was_announced or not _is_terminal():
        yield
        return
    timer = threading.Timer(_PATIENCE_SECONDS, _announce)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _announce() -> None:
    global _was_announced
    if not _was_announced:
        _was_announced = True
        sys.stderr.write(f"{_TEXT}\n")
        sys.stderr.flush()


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
