"""How a reader asks the process that applies the log to pause between two batches, and how that process sees it.

A reader that wants several segments as they are at one log position holds a shared lock on a byte of their files while
it tries (:mod:`quorin.engine.memory.record_locks`). The process that applies asks the kernel whether anybody does.
Nothing is written, so readers of other users and read-only mappings can ask, and a reader that dies asks no longer.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Protocol

from quorin.engine import forks
from quorin.engine.memory.record_locks import PAUSE_REQUESTS, is_locked, try_lock

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Pausable(Protocol):
    """A segment, as far as pauses go."""

    @property
    def is_pause_asked(self) -> bool:
        """Whether a reader asks its writer to pause."""


LOOK_SECONDS = 0.002
"""How often a process that applies looks."""
PAUSE_SECONDS = 0.005
WORK_SECONDS = 0.02
"""It pauses for so long at most, and then works for so long at least: readers that ask all the time, or that are frozen
while they do, slow it down by a fifth.
"""
_POLL_SECONDS = 0.000_05


class Asking:
    """A reader's question for a pause, about one segment file, until :meth:`end`. A forked child does not ask."""

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # The file was replaced this moment: the reader follows, and asks about the next.
            self._descriptor = -1
            return
        forks.register(self)
        try_lock(self._descriptor, PAUSE_REQUESTS)

    def end(self) -> None:
        """Ask no longer."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        forks.unregister(self)

    def after_fork_in_child(self) -> None:
        """The child's descriptor would go on asking."""
        self.end()


def is_asked(descriptor: int) -> bool:
    """Whether a reader asks about the file that a descriptor of this process is open for."""
    return is_locked(descriptor, PAUSE_REQUESTS)


class Pauses:
    """The pauses of one process that applies."""

    def __init__(self) -> None:
        self._look_at = 0.0

    def take(self, segments: Iterable[Pausable]) -> None:
        """Pause if a reader asks about one of the segments, whose rows are at their position, all of them."""
        if time.monotonic() < self._look_at:
            return
        asked = [segment for segment in segments if segment.is_pause_asked]
        end = time.monotonic() + PAUSE_SECONDS
        was_asked = bool(asked)
        while asked and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
            asked = [segment for segment in asked if segment.is_pause_asked]
        self._look_at = time.monotonic() + (WORK_SECONDS if was_asked and asked else LOOK_SECONDS)
