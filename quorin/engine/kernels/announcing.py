"""Tells a person at a terminal or in a notebook why a process does not answer yet: kernels are being compiled."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PATIENCE_SECONDS = 1.0
_TEXT = "quorin: compiling kernels for this processor, up to half a minute; `quorin prewarm` does it beforehand"
_was_announced = False
_waited_seconds = 0.0
"""How long this process has compiled, of the time after which it says so: many short kernels are a long wait too."""


@contextmanager
def announced() -> Iterator[Callable[[], None]]:
    """Tell that the block compiles: it calls the function that it is given when it begins to.

    If standard error is a terminal or a notebook's, and such blocks take longer together, one line is written there, at
    most once in a process.
    """
    global _waited_seconds
    began = 0.0
    timer = threading.Timer(max(0.0, _PATIENCE_SECONDS - _waited_seconds), _announce)
    timer.daemon = True

    def start() -> None:
        nonlocal began
        began = time.monotonic()
        timer.start()

    try:
        yield start if _is_read() and not _was_announced else _keep_quiet
    finally:
        timer.cancel()
        if began:
            _waited_seconds += time.monotonic() - began


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
