"""The rings of a node: one of each process that serves, in one file of ``shm_dir``.

A process holds its ring by a lock that the kernel releases when it dies; what it wrote stays, for the collector.
A process that is killed while it writes a record never committed it, so the others are whole.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quorin import metrics
from quorin.engine import forks
from quorin.engine.format import ring as fmt
from quorin.engine.memory.file import SlotFile
from quorin.errors import SharedMemoryError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quorin.engine.arrays import Bytes

RING_BYTES, RING_COUNT = 8 << 20, 128
CAPACITY = RING_BYTES - fmt.RING_HEADER_BYTES


class Ring:
    """One ring, by its number in the file."""

    def __init__(self, number: int, memory: Bytes) -> None:
        self.number = number
        self._memory = memory
        self._words = memory[: fmt.RING_HEADER_BYTES].view(np.int64)
        self.address = np.array([memory.ctypes.data, CAPACITY], np.int64)
        """What kernels take."""

    def word(self, offset: int) -> int:
        """A word of the header; the kernels store head and tail with release."""
        return int(self._words[offset // 8])

    @property
    def unread(self) -> tuple[int, int]:
        """Where the records begin that are not collected, and where they end."""
        from quorin.engine import kernels

        head = kernels.load_acquire(int(self.address[0]) + fmt.RING_HEAD)
        return self.word(fmt.RING_TAIL), int(head)

    def begin_life(self) -> None:
        """Of a new holder: nothing is being written. The records of the holder before stay."""
        if self.word(fmt.RING_MAGIC_AT) != fmt.RING_MAGIC:
            self._words[:] = 0
            self._words[0] = fmt.RING_MAGIC
        self.settle()

    def settle(self) -> None:
        """Count the record that a dead holder had begun, if any."""
        if self.word(fmt.RING_BEGUN) > self.word(fmt.RING_HEAD):
            self._words[fmt.RING_LOST // 8] += 1
            metrics.served_lost.inc()
            self._words[fmt.RING_BEGUN // 8] = self.word(fmt.RING_HEAD)

    def consume(self, through: int) -> None:
        """Give the room of records before a position back to the writer."""
        from quorin.engine import kernels

        kernels.store_release(int(self.address[0]) + fmt.RING_TAIL, through)


class RingFile:
    """The rings of a node, at a path.

    :raises OSError: if the file cannot be made, or is another user's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SlotFile(path, RING_BYTES, RING_COUNT)
        self._own: dict[int, int] = {}

    def own_ring(self) -> Ring:
        """The ring of this process, which it takes at the first call.

        :raises SharedMemoryError: if other processes hold all. :raises OSError: if there is no room for it.
        """
        with _lock:
            number = self._own.get(os.getpid())
            if number is None:
                number = self._free()
                ring = self._ring(number)
                ring.begin_life()
                self._file.populate(number)
                self._own = {os.getpid(): number}
            return self._ring(number)

    def rings(self) -> Iterator[Ring]:
        """All rings that processes hold or left."""
        for number in range(RING_COUNT):
            if int.from_bytes(self._file.head(number, 8), "little") == fmt.RING_MAGIC:
                yield self._ring(number)

    def has_holder(self, ring: Ring) -> bool:
        """Whether a living process writes to a ring."""
        return self._own.get(os.getpid()) == ring.number or self._file.is_held(ring.number)

    def reclaim(self, ring: Ring) -> None:
        """Count what the dead holder of a ring lost, and free the memory if all is collected."""
        with _lock:
            if self._own.get(os.getpid()) == ring.number or not self._file.try_hold(ring.number):
                return
            try:
                ring.settle()
                first, last = ring.unread
                if first == last:
                    self._file.clear(ring.number)
            finally:
                self._file.let_go(ring.number)

    def _free(self) -> int:
        for number in range(RING_COUNT):
            if self._file.try_hold(number):
                return number
        raise SharedMemoryError(None, f"all {RING_COUNT} rings of {self.path} are held by other processes")

    def _ring(self, number: int) -> Ring:
        return Ring(number, self._file.memory(number))


def ring_file(path: Path) -> RingFile:
    """The rings at a path, once in each process: locks go with the first descriptor that is closed."""
    with _lock:
        if not _files:
            forks.hold_during_forks(_lock)
        known = _files.get(path)
        if known is None:
            known = _files[path] = RingFile(path)
        return known


_files: dict[Path, RingFile] = {}
_lock = threading.RLock()
