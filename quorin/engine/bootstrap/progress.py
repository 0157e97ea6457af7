"""Progress of long copies as log events, where no terminal shows a bar."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    Progress = Callable[[int, int], None]
    ShowProgress = Callable[[str], AbstractContextManager[Progress]]
    """Called with what is going on; inside its block, the result is called with the amount done and the total."""

LOG_SECONDS = 5.0

_log = get_logger(__name__)


@contextmanager
def logged_progress(what: str) -> Iterator[Progress]:
    """Log how far it is and how fast, every few seconds."""
    started = logged = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal logged
        now = time.monotonic()
        if now - logged >= LOG_SECONDS:
            logged = now
            rate = round(done / (now - started))
            _log.info("progress", what=what, done=done, total=total, per_second=rate)

    yield progress
