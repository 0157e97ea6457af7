"""The writing side of an open segment: the lease, the epoch, recovery, the flip, and the position in the log."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from quorin import metrics
from quorin.engine import exits, forks
from quorin.engine.format import segment as fmt
from quorin.engine.format.log_positions import PARTITION_DTYPE
from quorin.engine.memory import file as mapping
from quorin.engine.memory.kept import keep
from quorin.engine.memory.lineage import is_older_generation, unlink_older_generations
from quorin.engine.memory.lock import FileLock, lock_if_there
from quorin.engine.memory.pins import remove_unpinned
from quorin.errors import CorruptSegmentError, QuorinError, WriterFencedError, WriterLeaseHeldError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from quorin.engine.memory.kept import Limits, Reason
    from quorin.engine.memory.node import Node
    from quorin.engine.memory.view import SegmentView

_LOG_IDENTITY = fmt.partition_offset("log_identity")
_POSITION = fmt.partition_offset("position")
_PART_BYTES = PARTITION_DTYPE.itemsize
_HEARTBEAT = fmt.header_offset("writer_heartbeat_ns")
_SUCCESSOR, _SUCCESSOR_WORD = fmt.header_offset("successor"), fmt.header_word("successor")
_EPOCH, _PID, _ACTIVE = fmt.header_word("epoch"), fmt.header_word("writer_pid"), fmt.header_word("writer_active")
_SINCE, _ALIVE = fmt.header_word("writer_since_ns"), fmt.header_word("writer_heartbeat_ns")
_MAX_END_SECONDS = 1.0

_log = get_logger(__name__)


def lease_held(view: SegmentView) -> WriterLeaseHeldError:
    """The error to raise if another holder has the writer lease of a segment."""
    pid = int(view.header["writer_pid"])
    text = f"segment {view.name!r} has a writer already: process {pid}"
    if pid == os.getpid():  # Or a process of another container that has the same id there.
        text += ". If that is this process, close the Segment that holds the lease, or call its release_writer_lease()"
    return WriterLeaseHeldError(text)


class Writer:
    """Writes to one generation at a time, the one whose lease it holds.

    It never follows a successor as readers do: a writer that was overtaken and wakes up, between any two instructions,
    still writes to the old file, not among the rows of the writer that overtook it. The caller holds :attr:`lock`.
    """

    __slots__ = ("__weakref__", "_epoch", "_lease", "_view", "applies_upgrades", "lock", "node")

    def __init__(self, node: Node | None) -> None:
        self.node = node
        self._lease: FileLock | None = None
        self._view: SegmentView | None = None
        self._epoch = 0
        self.lock = threading.RLock()
        self.applies_upgrades = False

    @property
    def holds_lease(self) -> bool:
        """Whether this object, in this process, has the lease."""
        return self._lease is not None and self._lease.is_ours

    @property
    def is_pause_asked(self) -> bool:
        """Whether a reader asks the holder of the lease to pause; False without it."""
        lease = self._lease
        return lease is not None and lease.is_ours and lease.is_pause_asked

    @property
    def view(self) -> SegmentView | None:
        """The generation whose lease is held, overtaken or not; None without a lease."""
        return self._view if self.holds_lease else None

    def leased_view(self) -> SegmentView | None:
        """The generation to write to; None without the lease. :raises WriterFencedError: if it was overtaken."""
        # For each single row: properties cost more than what they return.
        view, lease = self._view, self._lease
        if view is None or lease is None or not lease.is_ours:
            return None
        words = view.words
        if words[_SUCCESSOR_WORD] or words[_EPOCH] != self._epoch:
            raise self._fenced(view)
        return view

    def try_begin(self, view: SegmentView) -> bool:
        """Take the lease of a generation; False if a successor took its place meanwhile.

        :raises WriterLeaseHeldError: if another holder has it. :raises SegmentNotFoundError: if the file is gone.
        """
        lease = FileLock.try_acquire(view.path)
        if lease is None:
            raise lease_held(view)
        # The last holder may have flipped between the caller's look and the lock. Now that the lock is held, nobody
        # else flips but a process that overtakes.
        if view.successor_name is not None:
            lease.release()
            return False
        self.begin(view, lease)
        return True

    def begin(self, view: SegmentView, lease: FileLock) -> None:
        """Write to ``view`` from now on, whose ``lease`` is held. What a writer that died left is put in order."""
        from quorin.engine import kernels

        words = view.words
        # The last writer died between two words of one row: every slot is right, counts and the free ring may not be.
        if words[_ACTIVE] or not view.books_add_up:
            rows = kernels.recover(view.descriptor, np.zeros(view.layout.row_limit, np.uint8))
            if rows < 0:
                lease.release()
                raise CorruptSegmentError(f"segment {view.name!r} is damaged: a slot points outside the file")
            metrics.writer_recoveries.labels(view.schema.__name__).inc()
            _log.warning("writer_recovered", segment=view.name, dead_pid=int(view.header["writer_pid"]), rows=rows)
        # A new epoch fences a writer of the same file that lost the lease without noticing. An epoch above zero also
        # tells a generation that was in force from an attempt that never was.
        words[_EPOCH] = self._epoch = words[_EPOCH] + 1
        words[_PID] = os.getpid()
        words[_SINCE] = time.time_ns()
        words[_ACTIVE] = 1
        words[_ALIVE] = time.time_ns()
        metrics.writer_leases.labels(view.schema.__name__).inc()
        self._lease, self._view = lease, view
        forks.register(self)
        exits.register(self)

    def release(self) -> None:
        """Release the lease. Does nothing without one."""
        if self._lease is None:
            return
        if self._lease.is_ours and self._view is not None:
            self._view.words[_ACTIVE] = 0
        self._lease.release()
        self._lease = self._view = None
        forks.unregister(self)
        exits.unregister(self)

    def __del__(self) -> None:
        """A segment that is dropped without ``close()`` does not look like one whose writer died."""
        self.release()

    def at_exit(self) -> None:
        """Release the lease when the process ends, unless a thread is still writing after a second."""
        if self.lock.acquire(timeout=_MAX_END_SECONDS):
            self.release()
            self.lock.release()

    def commit_position(self, position: int, log_identity: int, view: SegmentView, partition: int = 0) -> None:
        """Publish a position in a partition's log, and the heartbeat with it. A crash in between leaves an earlier
        position.
        """
        from quorin.engine import kernels

        header = view.mapping.address
        part = header + _PART_BYTES * partition
        if int(kernels.load_acquire(part + _LOG_IDENTITY)) != log_identity:
            # A position of the old log beside the identity of the new one would skip entries after a crash, and end
            # the wait of a writer whose rows aren't applied. So the position is 0 whenever the identity changes.
            kernels.store_release(part + _POSITION, 0)
            kernels.store_release(part + _LOG_IDENTITY, log_identity)
        kernels.store_release(part + _POSITION, position)
        kernels.store_release(header + _HEARTBEAT, time.time_ns())

    def heartbeat(self) -> None:
        """Say that the writer is alive."""
        if self.holds_lease and self._view is not None:
            self._view.header["writer_heartbeat_ns"] = time.time_ns()

    def exchange(self, old: SegmentView, successor: SegmentView) -> FileLock:
        """Make ``successor`` the next generation of ``old``, and return its lease. This is the step that decides.

        :raises WriterFencedError: if another process was quicker; the successor is removed.
        """
        from quorin.engine import kernels

        # Locked before readers can find it: from the first moment that it is in force, it has a writer. It may be gone,
        # as a writer that flipped to a later generation removes the files of earlier ones.
        lease = lock_if_there(successor.path)
        # One atomic exchange of a word that is zero until the flip: of two writers that try, one is too late. A crash
        # before it leaves the old generation in force, a crash after it the new one, with all rows.
        if lease is None or not kernels.compare_and_exchange(old.mapping.address + _SUCCESSOR, 0, successor.generation):
            mapping.unlink(successor.path)
            if lease is not None:
                lease.release()
            metrics.writers_fenced.labels(old.schema.__name__).inc()
            raise WriterFencedError(
                f"process {os.getpid()} was overtaken as the writer of {old.name!r}: "
                f"{old.successor_name!r} took its place"
            )
        return lease

    def settle(
        self, old: SegmentView, successor: SegmentView, lease: FileLock, *, keeping: Reason | None, limits: Limits
    ) -> None:
        """Write to a successor that is in force, and remove what it has replaced, or keep it as the limits say."""
        old_lease = self._lease
        self.begin(successor, lease)
        try:
            # While the node's file names an old file, that file is what leads a process that opens the segment here.
            if self._is_reachable(successor):
                if keeping is not None:
                    _keep(old, keeping, limits)
                unlink_older_generations(successor)
        finally:
            # Last: a process that waits for the old lease finds a complete flip. Also after an error, as the flip
            # itself is done.
            if old_lease is not None:
                old_lease.release()

    def forget(self, view: SegmentView) -> None:
        """Remove the file of a generation that was pinned, if it was replaced and nothing needs it. Best effort: the
        next flip and the watchdog do the same.
        """
        is_kept = view.path.name != view.name
        if self.node is None or is_kept or not view.words[_SUCCESSOR_WORD]:
            return
        with suppress(QuorinError):
            if self.node.current(view.stored.__name__) != view.name:
                remove_unpinned(view.path)

    def after_fork_in_child(self) -> None:
        """A lock that another thread held at the fork would never be released in the child."""
        self.lock = threading.RLock()

    def _fenced(self, view: SegmentView) -> WriterFencedError:
        """Release a lease that no longer protects anything, and return the error to raise."""
        self._view = None
        self._lease, lease = None, self._lease
        if lease is not None:
            lease.release()
        metrics.writers_fenced.labels(view.schema.__name__).inc()
        return WriterFencedError(
            f"process {os.getpid()} is no longer the writer of {view.name!r}: epoch {self._epoch} was followed by "
            f"{int(view.header['epoch'])}, successor {view.successor_name!r}; nothing was written"
        )

    def _is_reachable(self, successor: SegmentView) -> bool:
        """Update the node's file if it names an older generation; whether a successor is found without older files.

        Another line that is named there is left alone.
        """
        if self.node is None:
            return True
        schema_name = successor.schema.__name__
        try:
            named = self.node.current(schema_name)
            if named is None or not is_older_generation(named, successor.name):
                return True
            return self.node.swap(schema_name, successor.name, expected=named)
        except QuorinError as error:
            _log.warning("node_file_not_updated", segment=successor.name, error=str(error))
            return False


def _keep(view: SegmentView, reason: Reason, limits: Limits) -> None:
    try:
        keep(view.path, view.segment_name, reason, int(view.header["owner"]), limits)
    except OSError as error:
        _log.warning("generation_not_kept", segment=view.name, error=str(error))
