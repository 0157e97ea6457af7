"""One segment as a process has it open: reading, writing, following its generations.

A :class:`Segment` stands for a line of generations: when the writer grows, compacts or replaces a segment it builds the
next file and flips, and every open ``Segment`` follows at its next read.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from quorin import metrics
from quorin.engine.format import segment as fmt
from quorin.engine.memory import file as mapping
from quorin.engine.memory.generations import next_generation
from quorin.engine.memory.lineage import is_older_generation, newest, unlink_older_generations
from quorin.engine.memory.lock import FileLock, lock_if_there
from quorin.engine.memory.view import SegmentView, segment_stats
from quorin.errors import (
    CorruptSegmentError,
    NotPicklableError,
    QuorinError,
    SegmentClosedError,
    SegmentReadOnlyError,
    WriterFencedError,
    WriterLeaseHeldError,
)
from quorin.logging import get_logger

if TYPE_CHECKING:
    from quorin.engine.backend import ControlPlane
    from quorin.schema import Schema

_LOG_IDENTITY = fmt.partition_offset("log_identity")
_POSITION = fmt.partition_offset("position")
_HEARTBEAT = fmt.header_offset("writer_heartbeat_ns")
_EPOCH, _PID, _ACTIVE = fmt.header_word("epoch"), fmt.header_word("writer_pid"), fmt.header_word("writer_active")
_SINCE, _ALIVE = fmt.header_word("writer_since_ns"), fmt.header_word("writer_heartbeat_ns")

_log = get_logger(__name__)


class Segment:
    """Rows of one schema in shared memory, open in this process.

    Any number of threads and processes may read; one process at a time writes, the one that holds the writer lease, and
    of its threads one after the other (:attr:`writing` is their lock).
    Made by :class:`SegmentRegistry`. A context manager: leaving it closes. It is this process's, so it cannot be
    pickled, nor can the readers that are bound to it: pickle the registry and the schema, and open it anew.
    """

    __slots__ = (
        "__weakref__", "_control", "_epoch", "_lease", "_view", "_written", "follows_wishes", "read_only", "writing",
    )  # fmt: skip

    def __init__(self, view: SegmentView, control: ControlPlane | None, *, read_only: bool) -> None:
        self._view = view
        self._control = control
        self._lease: FileLock | None = None
        self._written: SegmentView | None = None
        self._epoch = 0
        self.read_only = read_only
        self.follows_wishes = False
        self.writing = threading.RLock()

    def __enter__(self) -> Segment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise NotPicklableError(
            f"{self!r} is memory of this process and cannot be pickled, nor can a reader that is bound to it: "
            "pickle the SegmentRegistry and the schema, and open the segment where they are unpickled"
        )

    def __len__(self) -> int:
        """How many entities have a row."""
        return int(self.current_view().header["entity_count"])

    def __repr__(self) -> str:
        view = self._view
        if isinstance(view, _ClosedView):
            return f"<Segment {view.closed_name} (closed)>"
        return f"<Segment {view.name}: {len(self)} of {self.capacity} entities>"

    @property
    def name(self) -> str:
        """``quorin_<Schema>_<hex>``, the name of the current generation's file."""
        name: str = self.current_view().name
        return name

    @property
    def schema(self) -> Schema:
        """The schema that its rows are read through: what it was opened with, also when a newer version is stored."""
        return self._view.schema

    @property
    def stored_schema(self) -> Schema:
        """The schema of the rows as they are stored now: :attr:`schema`, or a newer version of it."""
        return self.current_view().stored

    @property
    def capacity(self) -> int:
        """Entities that fit before the segment grows."""
        return self.current_view().layout.capacity

    @property
    def position(self) -> int:
        """The log position up to which everything is applied; 0 before the first."""
        from quorin.engine import kernels

        view = self.current_view()
        return int(kernels.load_acquire(view.mapping.address + _POSITION))

    @property
    def log_identity(self) -> int:
        """Which log :attr:`position` belongs to; 0 before the first."""
        return int(self.current_view().header["partitions"][0]["log_identity"])

    @property
    def holds_writer_lease(self) -> bool:
        """Whether this object, in this process, is the segment's writer."""
        return self._lease is not None and self._lease.is_ours

    def stats(self) -> dict[str, Any]:
        """Rows, bytes, load and who writes: one flat dictionary of plain values."""
        return segment_stats(self.current_view())

    def current_view(self) -> SegmentView:
        """The view of the newest generation, followed to it if need be. :raises SegmentClosedError: after close."""
        view = self._view
        if view.successor_name is not None:
            return self.follow(view)
        return view

    def follow(self, seen: SegmentView) -> SegmentView:
        """Attach the newest successor of ``seen``; other threads may do the same at the same time, without harm."""
        if self._view is seen:
            self._view = newest(seen, writable=not self.read_only)
        return self._view

    def pin(self) -> None:
        """Stay with the present generation when the segment grows or is upgraded: reads then show it as it was left.

        Its memory stays until :meth:`unpin` or :meth:`close`. Until a successor takes its place, its writer goes on
        writing to it.

        :raises SegmentReadOnlyError: for a segment that is open for writing, which can't stay behind.
        """
        if not self.read_only:
            raise SegmentReadOnlyError(f"segment {self.name!r} is open for writing; only a read-only one can be pinned")
        self._view = self.current_view().staying()

    def unpin(self) -> None:
        """Follow again, from the next read on."""
        view = self._view
        if not isinstance(view, _ClosedView) and view.pinned:
            self._view = SegmentView(view.mapping, view.stored, view.layout, view.schema)

    def acquire_writer_lease(self) -> None:
        """Become the segment's writer. Does nothing if this object is that already.

        The lease is the kernel's: it ends when it is released or when the process dies. If the last writer died with
        it, counts and free rows are rebuilt from the index, which always tells the truth.

        :raises WriterLeaseHeldError: if another holder has it. :raises SegmentReadOnlyError: if opened read-only.
        :raises WriterFencedError: if this object had the lease and was overtaken.
        """
        self.writing_view()

    def writing_view(self) -> SegmentView:
        """The view of the generation that this object has the lease of, taken if need be.

        Writers write through it and never follow as readers do: one that was overtaken and wakes up, between any two
        instructions, still writes into the old file, and not among the rows of whoever overtook it.

        :raises WriterLeaseHeldError, SegmentReadOnlyError, WriterFencedError: as :meth:`acquire_writer_lease`.
        """
        with self.writing:
            written = self._written
            if written is None or not self.holds_writer_lease:
                return self._take_lease()
            if written.successor_name is not None or written.words[_EPOCH] != self._epoch:
                raise self._overtaken(written)
            return written

    def release_writer_lease(self) -> None:
        """Stop being the writer, so that another may at once. Does nothing if not the writer.

        Waits for a batch that another thread is applying.
        """
        with self.writing:
            if self._lease is None:
                return
            if self._lease.is_ours and self._written is not None:
                self._written.words[_ACTIVE] = 0
            self._lease.release()
            self._lease = self._written = None
            _writers.discard(self)

    def commit_position(self, position: int, log_identity: int) -> None:
        """Publish that everything up to ``position`` of a log is applied; call it after the rows are.

        A crash before this call loses nothing: the next consumer applies the entry again, to the same effect.
        """
        from quorin.engine import kernels

        with self.writing:
            header = self.writing_view().mapping.address
            if int(kernels.load_acquire(header + _LOG_IDENTITY)) != log_identity:
                kernels.store_release(header + _LOG_IDENTITY, log_identity)
            kernels.store_release(header + _POSITION, position)
            kernels.store_release(header + _HEARTBEAT, time.time_ns())

    def overtake_writer(self) -> None:
        """Become the writer although another process holds the lease, because it is frozen.

        The rows are copied into the next generation, which takes this one's place; whatever the other process still
        writes when it wakes lands in a file that nobody reads, and its next batch raises :class:`WriterFencedError`.
        Rows that it writes between copy and flip come again from the log; ``insert`` without a log loses them. Whether
        a writer is frozen or only idle is the caller's to judge, by ``stats()["writer_heartbeat_age_seconds"]`` for
        example.

        :raises WriterFencedError: if yet another process was quicker. :raises CapacityExceededError: if memory is out.
        """
        with self.writing:
            try:
                self.acquire_writer_lease()
            except WriterLeaseHeldError:
                view = self.current_view()
                overtaken = int(view.header["writer_pid"])
                self._flip(view, next_generation(view, view.stored, capacity=view.layout.capacity))
                metrics.writers_overtaken.labels(view.schema.__name__).inc()
                _log.warning("writer_overtaken", segment=view.name, successor=self._view.name, overtaken_pid=overtaken)

    def heartbeat(self) -> None:
        """Say that this writer is alive; :meth:`commit_position` says so as well."""
        if self.holds_writer_lease and self._written is not None:
            self._written.header["writer_heartbeat_ns"] = time.time_ns()

    def replace(self, successor: SegmentView) -> None:
        """Put a finished successor of the same line in this generation's place; the caller has copied the rows.

        Readers follow from the next read on. The control plane is told after that; if it can't be reached, the old file
        stays as a signpost until the next flip, and nothing else is lost.

        :raises WriterFencedError: if this object is not the writer, or was overtaken; the successor is removed.
        """
        if not self.holds_writer_lease or self._written is None:
            raise WriterFencedError(f"process {os.getpid()} is not the writer of {self.name!r}, so it can't replace it")
        self._flip(self._written, successor)

    def _flip(self, old: SegmentView, successor: SegmentView) -> None:
        """The one step that decides is the atomic exchange of the successor word: of two that try, one is too late."""
        from quorin.engine import kernels

        lease = lock_if_there(successor.path)
        word = old.mapping.address + fmt.header_offset("successor")
        if lease is None or not kernels.compare_and_exchange(word, 0, successor.generation):
            mapping.unlink(successor.path)
            if lease is not None:
                lease.release()
            metrics.writers_fenced.labels(old.schema.__name__).inc()
            raise WriterFencedError(
                f"process {os.getpid()} was overtaken as the writer of {old.name!r}: "
                f"{old.successor_name!r} took its place"
            )
        # Whoever reads through an older version goes on doing so.
        is_upgrade = successor.stored.version > old.schema.version
        old_lease, self._view = self._lease, successor.through(old.schema if is_upgrade else None)
        metrics.flips.labels(old.schema.__name__).inc()
        self._begin_writing(successor, lease)
        try:
            if self._nothing_points_behind(successor):
                unlink_older_generations(successor)
        finally:
            if old_lease is not None:
                old_lease.release()

    def close(self) -> None:
        """Release the memory and the lease. Later reads raise :class:`SegmentClosedError`; a second call does nothing.

        The memory is freed when no thread is inside a kernel. A child that closes an inherited segment harms no parent.
        """
        if not isinstance(self._view, _ClosedView):
            self.release_writer_lease()
            self._view = _ClosedView(self._view.name)  # type: ignore[assignment]

    def _take_lease(self) -> SegmentView:
        if self.read_only:
            raise SegmentReadOnlyError(
                f"segment {self.name!r} is open read-only; open it with read_only=False to write"
            )
        while True:
            view = self.current_view()
            lease = FileLock.try_acquire(view.path)
            if lease is None:
                raise WriterLeaseHeldError(
                    f"segment {view.name!r} has a writer already: process {int(view.header['writer_pid'])}"
                )
            if view.successor_name is None:
                return self._begin_writing(view, lease)
            lease.release()

    def _begin_writing(self, view: SegmentView, lease: FileLock) -> SegmentView:
        from quorin.engine import kernels

        words = view.words
        if words[_ACTIVE] or not view.books_add_up:
            rows = kernels.recover(view.descriptor, np.zeros(view.layout.row_limit, np.uint8))
            if rows < 0:
                lease.release()
                raise CorruptSegmentError(f"segment {view.name!r} is damaged: a slot points outside the file")
            metrics.writer_recoveries.labels(view.schema.__name__).inc()
            _log.warning("writer_recovered", segment=view.name, dead_pid=int(view.header["writer_pid"]), rows=rows)
        words[_EPOCH] = self._epoch = words[_EPOCH] + 1
        words[_PID] = os.getpid()
        words[_SINCE] = time.time_ns()
        words[_ACTIVE] = 1
        words[_ALIVE] = time.time_ns()
        metrics.writer_leases.labels(view.schema.__name__).inc()
        self._lease, self._written = lease, view
        _writers.add(self)
        _renew_locks_in_children()
        return view

    def _overtaken(self, view: SegmentView) -> WriterFencedError:
        """Let go of a lease that is worth nothing any more; gives the error to raise."""
        self._written = None
        self._lease, lease = None, self._lease
        if lease is not None:
            lease.release()
        metrics.writers_fenced.labels(view.schema.__name__).inc()
        return WriterFencedError(
            f"process {os.getpid()} is no longer the writer of {view.name!r}: epoch {self._epoch} was followed by "
            f"{int(view.header['epoch'])}, successor {view.successor_name!r}; nothing was written"
        )

    def _nothing_points_behind(self, successor: SegmentView) -> bool:
        """Tell the control plane, if it names an older generation of this line; whether none is named any more."""
        if self._control is None:
            return True
        schema_name = successor.schema.__name__
        try:
            named = self._control.current(schema_name)
            if named is None or not is_older_generation(named, successor.name):
                return True
            return self._control.set_current(schema_name, successor.name, expected=named)
        except QuorinError as error:
            _log.warning("control_plane_not_told", segment=successor.name, error=str(error))
            return False


def release_own_lease(name: str, *, of_consumers: bool = True) -> None:
    """Let go of a segment's writer lease if another object of this process holds it.

    Consumers see by themselves what the control plane wishes, so they can be left alone.
    """
    for segment in list(_writers):
        if segment.name == name and (of_consumers or not segment.follows_wishes):
            segment.release_writer_lease()


_writers: weakref.WeakSet[Segment] = weakref.WeakSet()
_fork_hook_installed = False


def _renew_locks_in_children() -> None:
    """A lock that another thread held at a fork would never be released in the child."""
    global _fork_hook_installed
    if not _fork_hook_installed:
        _fork_hook_installed = True
        os.register_at_fork(after_in_child=_renew_locks)


def _renew_locks() -> None:
    for segment in list(_writers):
        segment.writing = threading.RLock()


class _ClosedView:
    """Stands in for the view of a closed segment; whatever is asked of it says that the segment is closed."""

    def __init__(self, name: str) -> None:
        self.closed_name = name

    def __getattr__(self, attribute: str) -> Any:
        raise SegmentClosedError(f"segment {self.closed_name!r} is closed")
