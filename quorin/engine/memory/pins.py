"""Pins: a process keeps the file of a generation from being removed while others go on to the next.

A pin is a shared lock (:mod:`quorin.engine.memory.record_locks`), so it ends when it is released or when its process
dies, and a forked child shares it as it shares the mapped memory. It needs no more than permission to read.

The kernel decides between pinning and removing in one step. A process that removes a file locks it exclusively first,
which fails while the file is pinned. A process that pins a file checks, once it holds the lock, that the file still has
its name.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from quorin.engine.memory import file as mapping
from quorin.engine.memory.access import why_not
from quorin.engine.memory.record_locks import PINS, is_locked, try_lock
from quorin.errors import SharedMemoryError

if TYPE_CHECKING:
    from pathlib import Path

_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW


class Pin:
    """A pin of one file, held until released or until the last process that shares it dies."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def try_acquire(cls, path: Path) -> Pin | None:
        """Pin a file; None if it is gone, or is being removed at this moment.

        :raises SharedMemoryError: if the system refuses.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | _FLAGS)
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = f"{error.strerror}{why_not(path, writing=False)}"
            raise SharedMemoryError(error.errno, f"cannot open segment file {path}: {reason}") from error
        pin = cls(descriptor)
        # The file may have been removed between our opening and our locking it.
        if _try_lock(path, descriptor) and os.fstat(descriptor).st_nlink:
            return pin
        pin.release()
        return None

    def release(self) -> None:
        """End the pin. Does nothing when already released."""
        if self._descriptor >= 0:
            # Closing, not unlocking: a forked child that shares the descriptor keeps its pin.
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.release()


def remove_unpinned(path: Path) -> bool:
    """Remove a file, unless it is pinned; whether it is gone.

    :raises SharedMemoryError: if the system refuses.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | _FLAGS)
    except FileNotFoundError:
        return True
    except OSError as error:
        reason = f"{error.strerror}{why_not(path, writing=True)}"
        raise SharedMemoryError(error.errno, f"cannot remove segment file {path}: {reason}") from error
    try:
        if not _try_lock(path, descriptor, exclusive=True):
            return False
        mapping.unlink(path)
        return True
    finally:
        os.close(descriptor)


def is_pinned(path: Path) -> bool:
    """Whether a process, this one included, pins a file; False if it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    except OSError:
        return False
    try:
        return is_locked(descriptor, PINS)
    finally:
        os.close(descriptor)


def _try_lock(path: Path, descriptor: int, *, exclusive: bool = False) -> bool:
    """Whether the lock was free. :raises SharedMemoryError: if the file system has no such locks."""
    try:
        return try_lock(descriptor, PINS, exclusive=exclusive)
    except OSError as error:
        raise SharedMemoryError(error.errno, f"cannot pin {path}: {error.strerror}") from error
