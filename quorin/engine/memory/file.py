"""Files in shared memory: creating, mapping and removing them. The only module that maps memory.

A mapping is never closed by hand: it is unmapped when the last Python object that refers to it is gone. So a thread
that is inside a kernel, which holds a reference, can't have its memory taken away by another thread's ``close``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import mmap
import os
import re
import secrets
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from quorin.engine.format import segment as fmt
from quorin.engine.format.name import SegmentName
from quorin.engine.memory.access import Access, why_not
from quorin.engine.memory.header import header_of
from quorin.engine.memory.lock import FileLock, lock_if_there
from quorin.engine.paths import absolute_setting
from quorin.errors import CorruptSegmentError, QuorinError, SegmentNotFoundError, SharedMemoryError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from quorin.engine.arrays import Bytes

SHM_DIR = "/dev/shm"  # noqa: S108 - where POSIX shared memory lives on Linux; files there are created 0600, exclusively
SHM_DIR_VARIABLE = "QUORIN_SHM_DIR"

_PRIVATE = Access()
_RECORD_LOCK = "hhqqi"  # struct flock of 64-bit Linux: type, whence, start, length, process
_MADV_POPULATE_READ = 22
_MADV_POPULATE_WRITE = 23
_UNLOCKED_SECONDS = 1.0
_PENDING_NAME = re.compile(r"(?P<name>.+)\.(?P<owner>[0-9a-f]{16})-[0-9a-f]{8}\.pending\Z")


def default_shm_dir() -> str:
    """The absolute directory of segments unless a registry is told otherwise: ``QUORIN_SHM_DIR``, else ``/dev/shm``."""
    return absolute_setting(os.environ.get(SHM_DIR_VARIABLE) or SHM_DIR)


class Mapping:
    """A mapped file: ``memory`` is a uint8 array over all of it, ``address`` where it begins.

    Its first ``populate`` bytes (all, if left out) are mapped page by page at once, so that the first access to a page
    is as quick as any: populating takes a quarter of the time that as many faults do.
    """

    __slots__ = ("__weakref__", "address", "memory", "path", "writable")

    def __init__(self, path: Path, descriptor: int, size: int, *, writable: bool, populate: int | None = None) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        mapped = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED, prot=protection)
        self.path = path
        self.writable = writable
        self.memory: Bytes = np.frombuffer(mapped, np.uint8)
        self.address: int = self.memory.ctypes.data
        _advise(self.address, size, mmap.MADV_HUGEPAGE)
        self.populate(0, size if populate is None else populate)

    def populate(self, first: int, last: int) -> None:
        """Map the pages from byte ``first``, where a page begins, to ``last``. Other threads run meanwhile."""
        if first < last:
            advice = _MADV_POPULATE_WRITE if self.writable else _MADV_POPULATE_READ
            _advise(self.address + first, last - first, advice)

    def rename(self, path: Path) -> None:
        """Give the file another name. A crash in between leaves it with both.

        :raises FileExistsError: if another file has it. :raises SharedMemoryError: if the system refuses.
        """
        try:
            os.link(self.path, path)
        except FileExistsError:
            raise
        except OSError as error:
            raise SharedMemoryError(error.errno, f"cannot name segment file {path}: {error.strerror}") from error
        unlink(self.path)
        self.path = path


class PendingFile:
    """A file that is being built under a name of its own; it gets its real name when it is whole.

    A crash before :meth:`publish` leaves only a file that ends in ``.pending``, which no reader opens. It is locked as
    long as it is being built, and its name says whose it is, by the ``owner`` of the segment.

    Who may read it is settled before it gets its name (``access``; nobody else by default).

    It begins as ``size`` zeros, or with the bytes of ``image``, which yields as many in blocks. Of the zeros the first
    ``populate`` bytes are mapped at once (all, if left out); a page behind is mapped when it is first written to.
    """

    def __init__(
        self,
        path: Path,
        size: int,
        *,
        owner: int = 0,
        access: Access = _PRIVATE,
        image: Iterable[memoryview] | None = None,
        populate: int | None = None,
    ) -> None:
        self._path = path
        self._pending = path.with_name(f"{path.name}.{owner:016x}-{secrets.token_hex(4)}.pending")
        try:
            descriptor = os.open(
                self._pending, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError as error:
            raise SharedMemoryError(
                error.errno, f"cannot create a segment in {path.parent}: {error.strerror}"
            ) from error
        self._lock: FileLock | None = None
        try:
            self._lock = _locked(self._pending)
            access.apply(descriptor, path)
            if image is None:
                os.posix_fallocate(descriptor, 0, size)
            else:
                _write(descriptor, image)
            soon = size if populate is None else min(populate, size)
            self.mapping = Mapping(path, descriptor, size, writable=True, populate=0 if image is not None else soon)
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError) and not isinstance(error, QuorinError):
                raise SharedMemoryError(error.errno, _no_room(path.parent, size, error)) from error
            raise
        finally:
            os.close(descriptor)

    def publish(self) -> Mapping:
        """Give the file its name.

        :raises FileExistsError: if another file has it. :raises SharedMemoryError: if the system refuses.
        """
        try:
            os.link(self._pending, self._path)
        except FileExistsError:
            raise
        except OSError as error:
            raise SharedMemoryError(error.errno, f"cannot name segment file {self._path}: {error.strerror}") from error
        self.discard()
        return self.mapping

    def discard(self) -> None:
        """Remove the unfinished name. :raises SharedMemoryError: if the system refuses."""
        try:
            unlink(self._pending)
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()


def parse_pending(name: str) -> tuple[str, int | None]:
    """Of an unfinished file's name: the name that it was to get, and its owner; other names as they are, and None."""
    match = _PENDING_NAME.match(name)
    return (match["name"], int(match["owner"], 16)) if match else (name, None)


def remove_unfinished(directory: Path, schema_name: str, owner: int) -> None:
    """Remove the unfinished files of a schema's segments whose creators died: each takes the room of a segment.

    :raises SharedMemoryError: if the system refuses.
    """
    for path in directory.glob(f"*{schema_name}*.{owner:016x}-*.pending"):
        segment = SegmentName.match(parse_pending(path.name)[0])
        if segment is None or segment.schema != schema_name:
            continue
        with suppress(FileNotFoundError):
            # A file that was made at this moment may not be locked yet.
            if time.time() - path.stat().st_mtime > _UNLOCKED_SECONDS and (lock := lock_if_there(path)) is not None:
                unlink(path)
                lock.release()


def read_header(path: Path) -> Any | None:
    """A segment's header without mapping it; None if there is no such file, or it is no segment."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        content = os.pread(descriptor, max(fmt.HEADER_DTYPES), 0)
    finally:
        os.close(descriptor)
    is_segment = len(content) >= fmt.HEADER_BYTES and content.startswith(fmt.MAGIC)
    return header_of(np.frombuffer(content, np.uint8)) if is_segment else None


def attach(path: Path, *, writable: bool, least_bytes: int, populate: bool = True) -> Mapping:
    """Map a file that exists.

    :raises SegmentNotFoundError: if there is none. :raises CorruptSegmentError: if it is shorter than ``least_bytes``.
    :raises SharedMemoryError: if the system refuses.
    """
    try:
        descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise SegmentNotFoundError(f"no segment file {path}") from error
    except OSError as error:
        reason = f"{error.strerror}{why_not(path, writing=writable)}"
        raise SharedMemoryError(error.errno, f"cannot open segment file {path}: {reason}") from error
    try:
        size = os.fstat(descriptor).st_size
        if size < least_bytes:
            raise CorruptSegmentError(f"{path} is no segment: {size} bytes, expected at least {least_bytes}")
        return Mapping(path, descriptor, size, writable=writable, populate=None if populate else 0)
    except OSError as error:
        raise SharedMemoryError(error.errno, f"cannot map segment file {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


class SlotFile:
    """A sparse file of equal slots, each held by one process at a time, and mapped as long as this process lives.

    What a slot holds stays when its process dies, for the next one that holds it. Slots are held by POSIX record locks:
    the kernel releases them when the process dies, in whatever container it ran, and a forked child does not inherit
    them. They would also go with the first descriptor of the file that the process closes; so it is opened here, once.

    :raises OSError: if the file can't be made, or is another user's.
    """

    def __init__(self, path: Path, slot_bytes: int, slot_count: int) -> None:
        self.slot_count = slot_count
        self._slot_bytes = slot_bytes
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        state = os.fstat(self._descriptor)
        if state.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"{path} belongs to user {state.st_uid}, expected {os.geteuid()}")
        size = slot_bytes * slot_count
        if state.st_size < size:
            os.ftruncate(self._descriptor, size)
        mapped = mmap.mmap(self._descriptor, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._memory: Bytes = np.frombuffer(mapped, np.uint8)

    def try_hold(self, slot: int) -> bool:
        """Hold a slot; False if another process does. It must not be held here already."""
        start = slot * self._slot_bytes
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, self._slot_bytes, start)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def let_go(self, slot: int) -> None:
        """Hold a slot no longer."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, self._slot_bytes, slot * self._slot_bytes)

    def memory(self, slot: int) -> Bytes:
        """The bytes of a slot that is held; they get room now, so that writing to them is never a SIGBUS."""
        start = slot * self._slot_bytes
        os.posix_fallocate(self._descriptor, start, self._slot_bytes)
        return self._memory[start : start + self._slot_bytes]

    def populate(self, slot: int) -> None:
        """Map the pages of a slot now, rather than one by one when they are first written to."""
        _advise(self._memory.ctypes.data + slot * self._slot_bytes, self._slot_bytes, _MADV_POPULATE_WRITE)

    def clear(self, slot: int) -> None:
        """Give back the room of a slot that is held: it reads as zeros then."""
        start = slot * self._slot_bytes
        # Without support for it the zeros take room until the slot is used again.
        self._memory[start : start + self._slot_bytes][:] = 0
        _advise(self._memory.ctypes.data + start, self._slot_bytes, mmap.MADV_REMOVE)

    def head(self, slot: int, size: int) -> bytes:
        """The first bytes of any slot."""
        return os.pread(self._descriptor, size, slot * self._slot_bytes)

    def is_held(self, slot: int) -> bool:
        """Whether another process holds a slot."""
        start = slot * self._slot_bytes
        asked = struct.pack(_RECORD_LOCK, fcntl.F_WRLCK, os.SEEK_SET, start, self._slot_bytes, 0)
        kind: int = struct.unpack(_RECORD_LOCK, fcntl.fcntl(self._descriptor, fcntl.F_GETLK, asked))[0]
        return kind != fcntl.F_UNLCK

    def used(self) -> Iterator[tuple[int, bytes]]:
        """The numbers and contents of all slots that ever got room, and perhaps of some beside them."""
        size, end = self._slot_bytes, 0
        while True:
            try:
                start = os.lseek(self._descriptor, end, os.SEEK_DATA) // size * size
            except OSError:  # There is no data behind.
                return
            end = min(os.lseek(self._descriptor, start, os.SEEK_HOLE), size * self.slot_count)
            if end <= start:
                return
            content = os.pread(self._descriptor, end - start, start)
            for at in range(0, len(content) - size + 1, size):
                yield (start + at) // size, content[at : at + size]


def unlink(path: Path) -> None:
    """Remove a segment's name. Processes that have it mapped keep it until they release it.

    :raises SharedMemoryError: if the system refuses.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise SharedMemoryError(error.errno, f"cannot remove segment file {path}: {error.strerror}") from error


def _locked(path: Path) -> FileLock:
    """The lock of a file that nobody else knows of, for as long as a watchdog may hold it to see whether it is free.

    Not through the descriptor that is mapped: the mapping keeps a copy of that, and so would keep the lock.
    """
    while (lock := FileLock.try_acquire(path)) is None:
        time.sleep(0.001)
    return lock


def _write(descriptor: int, image: Iterable[memoryview]) -> None:
    """Write blocks one after the other: what has been written has room, as if it had been reserved."""
    for block in image:
        done = 0
        while done < len(block):
            done += os.write(descriptor, block[done:])


def _advise(address: int, size: int, advice: int) -> None:
    """Advise the kernel, and let other threads run meanwhile, which ``mmap.madvise`` does not: populating takes a
    second for some gigabytes.
    """
    # Advice is an optimisation: older kernels do not know it, and answer EINVAL.
    _libc().madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_int(advice))


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _no_room(directory: Path, size: int, error: OSError) -> str:
    usage = os.statvfs(directory)
    free = usage.f_bavail * usage.f_frsize
    return (
        f"cannot reserve {size:,} bytes in {directory} ({error.strerror}); {free:,} bytes are free there. "
        f"Use a smaller capacity, a larger tmpfs, or another shm_dir"
    )
