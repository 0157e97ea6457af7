"""One segment as a process has it open: reading, writing, following its generations.

A :class:`Segment` stands for a line of generations: when the writer grows, compacts or replaces a segment it builds the
next file and flips, and every open ``Segment`` follows at its next read.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, NoReturn

from quorin import metrics
from quorin.engine.memory.generations import next_generation
from quorin.engine.memory.kept import Limits
from quorin.engine.memory.parts import Parted
from quorin.engine.memory.pinnable import ClosedView, Pinnable
from quorin.engine.memory.shown import Shown
from quorin.engine.memory.view import SegmentView, segment_stats
from quorin.engine.memory.writer import Writer
from quorin.errors import (
    NotPicklableError,
    SegmentReadOnlyError,
    WriterFencedError,
    WriterLeaseHeldError,
)
from quorin.logging import get_logger

if TYPE_CHECKING:
    from quorin.engine.memory.kept import Reason
    from quorin.engine.memory.node import Node
    from quorin.engine.memory.pins import Pin
    from quorin.schema import Schema

_LIMITS = Limits()

_log = get_logger(__name__)


class Segment(Pinnable, Parted, Shown):
    """Rows of one schema in shared memory, open in this process.

    Any number of threads and processes may read; one process at a time writes, the one that holds the writer lease, and
    of its threads one after the other (:attr:`writing` is their lock).
    Made by :class:`SegmentRegistry`. A context manager: leaving it closes. It is this process's, so it cannot be
    pickled, nor can the readers that are bound to it: pickle the registry and the schema, and open it anew.
    """

    __slots__ = ("__weakref__",)

    def __init__(
        self, view: SegmentView, node: Node | None, *, read_only: bool, limits: Limits = _LIMITS, pin: Pin | None = None
    ) -> None:
        self._view = view
        self._writer = Writer(node)
        self._limits = limits
        self._pin = None if pin is None else (pin, view)
        self.read_only = read_only

    def __enter__(self) -> Segment:
        return self

    def __exit__(self, *_: object) -> None:
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
        if isinstance(view, ClosedView):
            return f"<Segment {view.closed_name} (closed)>"
        return f"<Segment {view.name}: {len(self)} of {self.capacity} entities>"

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
    def holds_writer_lease(self) -> bool:
        """Whether this object, in this process, is the segment's writer."""
        return self._writer.holds_lease

    @property
    def is_pause_asked(self) -> bool:
        """Whether a reader asks the writer, if this object is it, to pause between two batches."""
        return self._writer.is_pause_asked

    @property
    def applies_upgrades(self) -> bool:
        """Whether the writer, if this object is one, applies pending upgrades itself, as consumers do."""
        return self._writer.applies_upgrades

    @property
    def writing(self) -> threading.RLock:
        """The lock of the threads of this process that write through this object."""
        return self._writer.lock

    def stats(self) -> dict[str, Any]:
        """Rows, bytes, load and who writes: one flat dictionary of plain values."""
        return segment_stats(self.current_view())

    def acquire_writer_lease(self, *, applies_upgrades: bool = False) -> None:
        """Become the segment's writer. Does nothing if this object is that already.

        ``applies_upgrades`` is for a writer that looks for pending upgrades of the schema itself, as consumers do:
        :func:`quorin.evolution.upgrade_schema` in the same process leaves it the lease.

        The lease is the kernel's: it ends when it is released or when the process dies. If the last writer died with
        it, counts and free rows are rebuilt from the index, which always tells the truth.

        :raises WriterLeaseHeldError: if another holder has it. :raises SegmentReadOnlyError: if opened read-only.
        :raises WriterFencedError: if this object had the lease and was overtaken.
        """
        self._writer.applies_upgrades = applies_upgrades
        self.writing_view()

    def writing_view(self) -> SegmentView:
        """The view of the generation that this object has the lease of, taken if need be.

        Writers write through it and never follow a successor as readers do. The caller holds :attr:`writing` until it
        has written.

        :raises WriterLeaseHeldError, SegmentReadOnlyError, WriterFencedError: as :meth:`acquire_writer_lease`.
        """
        writer = self._writer
        with writer.lock:
            view = writer.leased_view()
            return self._take_lease() if view is None else view

    def is_still_writer(self) -> bool:
        """Whether this object is the segment's writer now; takes nothing. :raises WriterFencedError: if overtaken."""
        with self.writing:
            return self._writer.leased_view() is not None

    def release_writer_lease(self) -> None:
        """Stop being the writer, so that another may at once. Does nothing if not the writer.

        Waits for a batch that another thread is applying.
        """
        with self.writing:
            self._writer.release()

    def overtake_writer(self) -> None:
        """Become the writer although another process holds the lease, because it is frozen.

        The rows are copied into the next generation, which takes this one's place; whatever the other process still
        writes when it wakes lands in a file that nobody reads, and its next batch raises :class:`WriterFencedError`.
        Rows that it writes between copy and flip come again from the log; ``insert`` without a log loses them. Whether
        it is frozen is the caller's to judge, by ``stats()["writer_heartbeat_age_seconds"]`` for example.

        :raises WriterFencedError: if yet another process was quicker. :raises CapacityExceededError: if memory is out.
        """
        with self.writing:
            try:
                self.writing_view()
            except WriterLeaseHeldError:
                # The frozen process keeps its lock on the old file, so that file's lease is taken. The new
                # file has a lease of its own, and the exchange in the flip decides between two that overtake.
                view = self.current_view()
                overtaken = int(view.header["writer_pid"])
                self._flip(view, next_generation(view, view.stored, capacity=view.layout.capacity))
                metrics.writers_overtaken.labels(view.schema.__name__).inc()
                _log.warning("writer_overtaken", segment=view.name, successor=self._view.name, overtaken_pid=overtaken)

    def heartbeat(self) -> None:
        """Say that this writer is alive; ``commit_position`` says so as well."""
        self._writer.heartbeat()

    def replace(self, successor: SegmentView, *, keeping: Reason | None = None) -> None:
        """Put a finished successor of the same line in this generation's place; the caller has copied the rows.

        Readers follow from the next read on. The node's file is updated after that; if it can't be, the old
        segment file stays as a signpost until the next flip, and nothing else is lost. With ``keeping``, which says
        why, this generation is kept as far as the registry's limits allow.

        :raises WriterFencedError: if this object is not the writer, or was overtaken; the successor is removed.
        """
        old = self._writer.view
        if old is None:
            raise WriterFencedError(f"process {os.getpid()} is not the writer of {self.name!r}, so it can't replace it")
        self._flip(old, successor, keeping)

    def _flip(self, old: SegmentView, successor: SegmentView, keeping: Reason | None = None) -> None:
        lease = self._writer.exchange(old, successor)
        # Readers of an older version go on reading its fields after an upgrade.
        is_upgrade = successor.stored.version > old.schema.version
        self._view = successor.through(old.schema if is_upgrade else None)
        metrics.flips.labels(old.schema.__name__).inc()
        self._writer.settle(old, successor, lease, keeping=keeping, limits=self._limits)

    def close(self) -> None:
        """Release the memory, once no thread is inside a kernel, and the lease. Later reads raise
        :class:`SegmentClosedError`; a second call does nothing. A child that closes an inherited one harms no parent.
        """
        if not isinstance(self._view, ClosedView):
            self.release_writer_lease()
            held, self._pin = self._pin, None
            self._view = ClosedView(self._view.name)  # type: ignore[assignment]
            self._release_pin(held)

    def _take_lease(self) -> SegmentView:
        if self.read_only:
            raise SegmentReadOnlyError(
                f"segment {self.name!r} is open read-only; open it with read_only=False to write"
            )
        while True:
            view = self.current_view()
            if self._writer.try_begin(view):
                return view
