"""Pins: a process keeps the file of a generation from being removed while others go on to the next.

A pin is a shared lock on all of the file that the kernel ties to an open descriptor (``F_OFD_SETLK``), so it ends when
it is released or when its process dies, and a forked child shares it as it shares the mapped memory. It is not the
writer's lease (``flock``), which it does not disturb, and needs no more than permission to read.

Pinning and removing are decided by the kernel in one step. Who removes a file locks it exclusively first, which fails
while it is pinned. Who pins looks, once the lock is held, whether the file still has its name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING

from quorin.engine.memory import file as mapping
from quorin.engine.memory.access import why_not
from quorin.errors import SharedMemoryError

if TYPE_CHECKING:
    from pathlib import Path

_RECORD_LOCK = "hhqqi"  # struct flock of 64-bit Linux: type, whence, start, length (0: all), process
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
        if _try_lock(path, descriptor, fcntl.F_RDLCK) and os.fstat(descriptor).st_nlink:
            return pin
        pin.release()
        return None

    def release(self) -> None:
        """Let go. Does nothing when already released."""
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
        if not _try_lock(path, descriptor, fcntl.F_WRLCK):
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
        asked = struct.pack(_RECORD_LOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind: int = struct.unpack(_RECORD_LOCK, fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0]
        return kind != fcntl.F_UNLCK
    finally:
        os.close(descriptor)


def _try_lock(path: Path, descriptor: int, kind: int) -> bool:
    """Whether the lock was free. :raises SharedMemoryError: if the file system has no such locks."""
    wanted = struct.pack(_RECORD_LOCK, kind, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise SharedMemoryError(error.errno, f"cannot pin {path}: {error.strerror}") from error
    return True
