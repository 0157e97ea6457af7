"""Record locks on segment files: shared or exclusive locks on ranges of bytes, which are neither read nor written.

They are Linux's open file description locks (``F_OFD_SETLK``). The kernel ties one to an open descriptor: it ends when
the last copy of the descriptor is closed, as by the death of its process, and a forked child shares it. It has nothing
to do with the writer's lease, a ``flock``. A shared one needs no more than permission to read.

Each purpose has a range of its own, so that none is taken for another.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import NamedTuple


class ByteRange(NamedTuple):
    """Bytes of a file; a ``size`` of 0 means all from ``first`` on."""

    first: int
    size: int


PAUSE_REQUESTS = ByteRange(0, 1)
"""Locked by readers that ask the writer for a pause (:mod:`quorin.engine.memory.pauses`)."""
PINS = ByteRange(1, 0)
"""Locked by readers that pin the file (:mod:`quorin.engine.memory.pins`). Earlier releases pin all bytes."""

_FLOCK = struct.Struct("hhqqi4x")
"""``struct flock`` of Linux on 64-bit machines: type, whence, start, length, pid."""


def try_lock(descriptor: int, span: ByteRange, *, exclusive: bool = False) -> bool:
    """Lock a range; False if a lock of another descriptor is in the way. :raises OSError: if the system refuses."""
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, *span, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def is_locked(descriptor: int, span: ByteRange) -> bool:
    """Whether another descriptor, of this process or another, has a lock in a range."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, *span, 0)
    kind, *_ = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
    return bool(kind != fcntl.F_UNLCK)
