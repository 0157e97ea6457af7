"""Exclusive locks on files, which end with the process that holds them."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from typing import TYPE_CHECKING

from quorin.engine import forks
from quorin.engine.memory.access import why_not
from quorin.engine.memory.pauses import is_asked
from quorin.errors import SegmentNotFoundError, SharedMemoryError

if TYPE_CHECKING:
    from pathlib import Path


class FileLock:
    """An exclusive lock on a file, held by this process until released or until the process dies.

    It is ``flock(2)``: the kernel releases it when the last descriptor is closed, so a dead holder never blocks. A
    forked child inherits the descriptor, and would keep the lock past its parent's death; so children close it at once.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._owner_pid = os.getpid()
        forks.register(self)

    @classmethod
    def try_acquire(cls, path: Path, *, shared: bool = False) -> FileLock | None:
        """The lock, or None if another holder has it; a ``shared`` one excludes holders of the exclusive one only.

        :raises SegmentNotFoundError: if the file is gone. :raises SharedMemoryError: if the system refuses.

        A file that its last holder removed between our opening and our locking it is gone as well.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise SegmentNotFoundError(f"no segment file {path}") from error
        except OSError as error:
            reason = f"{error.strerror}{why_not(path, writing=True)}"
            raise SharedMemoryError(error.errno, f"cannot open segment file {path}: {reason}") from error
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return None
            raise SharedMemoryError(error.errno, f"cannot lock {path}: {error.strerror}") from error
        if not os.fstat(descriptor).st_nlink:
            os.close(descriptor)
            raise SegmentNotFoundError(f"no segment file {path}: it was removed this moment")
        return cls(descriptor)

    @property
    def is_ours(self) -> bool:
        """False in a child that inherited this object by fork, and after release."""
        return self._descriptor >= 0 and self._owner_pid == os.getpid()

    @property
    def is_pause_asked(self) -> bool:
        """Whether a reader of the file asks its writer to pause; see :mod:`quorin.engine.memory.pauses`."""
        return is_asked(self._descriptor)

    @property
    def is_in_place(self) -> bool:
        """Whether others that look for the lock find this one: it is ours, and nobody has removed its file."""
        return self.is_ours and os.fstat(self._descriptor).st_nlink > 0

    def show_life(self) -> None:
        """Show by the file's time that the holder is not frozen. Clocks that are set don't matter to it."""
        if self.is_ours:
            now = time.monotonic_ns()
            os.utime(self._descriptor, ns=(now, now))

    def release(self) -> None:
        """Release the lock. Does nothing when already released, and never frees a parent's lock from a child."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        forks.unregister(self)

    def after_fork_in_child(self) -> None:
        """Close the inherited descriptor: it would keep the lock after the parent's death."""
        self.release()

    def __del__(self) -> None:
        self.release()


def lock_if_there(path: Path) -> FileLock | None:
    """The lock of a file, or None if the file is gone or another holder has its lock."""
    try:
        return FileLock.try_acquire(path)
    except SegmentNotFoundError:
        return None


def is_locked(path: Path) -> bool:
    """Whether a process holds a file's lock. Two that ask at the same moment do not take each other for the holder."""
    try:
        lock = FileLock.try_acquire(path, shared=True)
    except SegmentNotFoundError:
        return False
    except SharedMemoryError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            return False
        raise
    if lock is None:
        return True
    lock.release()
    return False


def is_held(path: Path, *, frozen_after_seconds: float) -> bool:
    """Whether a process holds a file's lock, and is not frozen: it has shown life not longer ago than that. One that
    never did, as earlier releases, counts as not frozen.
    """
    if not is_locked(path):
        return False
    try:
        shown_ns = path.stat().st_mtime_ns
    except FileNotFoundError:
        return False
    return time.monotonic_ns() - shown_ns < frozen_after_seconds * 1e9
