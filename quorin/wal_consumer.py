"""From the log into the segments: the consumer is the single writer of the segments that it has taken.

It reads behind the position in a segment's own header, applies the rows, and then publishes the new position there. A
consumer that dies at any moment loses nothing: the next one reads from that position again, and applying again changes
nothing, because event times decide. Entries that cannot be applied become dead letters of the log, with the reason,
before the position passes them.

:mod:`quorin.engine.consumer.plan` decides what to do next. The parts that do it have one job each: ``ownership`` takes
segments, ``cursor`` reads the log, ``apply`` applies entries, ``trimming`` flushes and trims. A ``lane`` has these for
one log; ``lanes`` reads the logs of several partitions at once. All rows are applied by one thread.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from quorin.engine.backend import connect
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY
from quorin.engine.bootstrap.progress import logged_progress
from quorin.engine.bootstrap.writer import writing
from quorin.engine.consumer.flushing import Flusher
from quorin.engine.consumer.history import NoopOfflineWriter, OfflineWriter
from quorin.engine.consumer.lane import Lane, LaneSettings
from quorin.engine.consumer.lanes import Lanes
from quorin.engine.consumer.ownership import Ownership
from quorin.engine.consumer.plan import Agenda, EntryRate, FlushLimits, Step, next_step
from quorin.engine.consumer.precedence import DEFAULT_FROZEN_AFTER_SECONDS, Precedence
from quorin.engine.ops.nodes import DEFAULT_NODE_TIMEOUT_SECONDS
from quorin.errors import (
    ConnectionFailedError,
    HistoryUnavailableError,
    NotPicklableError,
    SnapshotUnavailableError,
    WriterFencedError,
    WriterLeaseHeldError,
)
from quorin.hydration import rebuild_segment
from quorin.logging import get_logger
from quorin.shm import SegmentRegistry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from quorin.engine.backend import Connection, ReadResult, Tail
    from quorin.engine.bootstrap.progress import ShowProgress
    from quorin.engine.memory.lock import FileLock
    from quorin.schema import Schema
    from quorin.shm import Segment
    from quorin.snapshot import Peers, SnapshotStore

__all__ = ["NoopOfflineWriter", "OfflineWriter", "WALConsumer", "WriterLeaseHeldError"]

DEFAULT_BATCH_ENTRIES = 1024
DEFAULT_FLUSH_INTERVAL_SECONDS = 5.0
DEFAULT_FLUSH_ROWS = 1_000_000
DEFAULT_FLUSH_BYTES = 128 << 20
DEFAULT_CAPACITY = 4096

_BLOCK_MS = 250
_STREAM_ENTRIES = 64
_GATHER_SECONDS = 0.001

_log = get_logger(__name__)


class WALConsumer:
    """Applies a log to the current segments of some schemas, and is their single writer meanwhile.

    ``schemas_or_segments`` says what to apply: schemas, whose current segments are opened, or created with ``capacity``
    entities and ``max_id_bytes``; or segments that are open for writing; or None for every schema of the control plane,
    including those that are added later.

    With ``offline`` every row goes into the history too, which one consumer of all nodes writes, the historian. A
    thread flushes it at the latest after ``flush_interval_seconds``, ``flush_rows`` or ``flush_bytes``. Then, if this
    consumer applies all schemas and with ``trims``, the log is trimmed behind rows that are durable, and applied on all
    nodes that were not silent for ``node_timeout_seconds``; entries of unknown schemas become dead letters before.

    A new segment gets the rows of the newest snapshot in ``snapshots`` that fits, else of one of ``peers``, else of the
    history. :meth:`run` writes snapshots every ``snapshot_every_seconds``, in a thread. ``show`` shows progress.

    While another process is the writer, this consumer waits until it dies, or gives no heartbeat (consumers: one each
    second) for ``frozen_after_seconds``. With a ``turn`` :meth:`run` ends when that is lost, or one without it begins.

    :raises SchemaError: for anything other than schemas and segments.
    """

    def __init__(
        self,
        connection: Connection,
        schemas_or_segments: Iterable[Schema | Segment] | Schema | Segment | None,
        *,
        offline: OfflineWriter | None = None,
        registry: SegmentRegistry | None = None,
        stream_key: str = DEFAULT_STREAM_KEY,
        batch_entries: int = DEFAULT_BATCH_ENTRIES,
        flush_interval_seconds: float = DEFAULT_FLUSH_INTERVAL_SECONDS,
        flush_rows: int = DEFAULT_FLUSH_ROWS,
        flush_bytes: int = DEFAULT_FLUSH_BYTES,
        frozen_after_seconds: float = DEFAULT_FROZEN_AFTER_SECONDS,
        capacity: int = DEFAULT_CAPACITY,
        max_id_bytes: int = 64,
        trims: bool = True,
        turn: FileLock | None = None,
        node_timeout_seconds: float = DEFAULT_NODE_TIMEOUT_SECONDS,
        namespace: str = DEFAULT_NAMESPACE,
        snapshots: SnapshotStore | None = None,
        snapshot_every_seconds: float | None = None,
        peers: Peers | None = None,
        show: ShowProgress = logged_progress,
    ) -> None:
        self._backend = connect(connection, namespace=namespace)
        self._owns_backend = self._backend is not connection
        registry = SegmentRegistry(self._backend, namespace=namespace) if registry is None else registry
        self._stop, self._running = threading.Event(), threading.Lock()
        sources: dict[str, Any] = {"history": offline, "snapshots": snapshots, "peers": peers, "show": show}
        rebuild = partial(rebuild_segment, registry=registry, capacity=capacity, max_id_bytes=max_id_bytes, **sources)
        self._ownership = Ownership(
            schemas_or_segments,
            registry,
            partial(rebuild, stream_key=self._backend.log(stream_key).stream_key),
            before_overtaking=lambda: self._lanes.end_others_of_node(),
            show_life=lambda: self._precedence.show_life(),
            frozen_after_seconds=frozen_after_seconds,
            stopping=self._stop,
        )
        of_all, trims = schemas_or_segments is None, trims and offline is not None
        self._precedence = Precedence(registry, turn, discovers=of_all, frozen_after_seconds=frozen_after_seconds)
        settings = LaneSettings(self._precedence.role, trims, of_all, batch_entries, node_timeout_seconds)
        self._lanes = Lanes(registry, stream_key, offline, self._ownership, settings)
        self._flusher = Flusher(self._lanes, offline, FlushLimits(flush_interval_seconds, flush_rows, flush_bytes))
        self._pace, self._agenda = EntryRate(), _new_agenda(self._ownership, self._stop)
        self._snapshots = writing(snapshots, registry, self._ownership.reports, snapshot_every_seconds, show=show)

    def __enter__(self) -> WALConsumer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.close()

    def __reduce__(self) -> NoReturn:
        raise NotPicklableError("a WALConsumer holds writer leases of this process: make one in the other process")

    def run(self) -> None:
        """Apply until :meth:`stop`. Waits while another process is the writer, and while the log cannot be reached.

        On return the leases are released and the history is flushed.

        :raises SchemaMismatchError: if a current segment holds another version of its schema.
        :raises SegmentConflictError: if another segment became current in place of one that was passed in.
        :raises CapacityExceededError: if a segment cannot grow.
        """
        with _exclusive(self._running), self._snapshots:
            self._agenda = _new_agenda(self._ownership, self._stop)
            self._flusher.prepare()
            try:
                while (step := next_step(self._agenda, time.monotonic()))[0] is not Step.stop:
                    self._perform(*step)
                    self._agenda.stopping, self._agenda.flush_is_done = self._stop.is_set(), self._flusher.is_done
            finally:
                self._finish()

    def stop(self) -> None:
        """Ask :meth:`run` to return; it does within a second. From any thread, or a signal handler."""
        self._stop.set()

    async def run_async(self) -> None:
        """:meth:`run` in a thread of its own; cancelling stops it."""
        await _run_in_thread(self)

    def drain(self, tail: Tail | None = None) -> int:
        """Apply what is in the log now. Returns the number of rows that changed a segment.

        Leases are held meanwhile, and released unless they were held before.

        ``tail`` is what :meth:`quorin.wal.WALProducer.write_and_read` saw of the log. A consumer of one segment, whose
        lease it holds, applies the tail without reading the log, if the tail is all there is to apply.

        :raises WriterLeaseHeldError: if another process is a segment's writer.
        :raises SegmentConflictError: as :meth:`run`. :raises ConnectionFailedError: if the log cannot be reached.
        """
        with _exclusive(self._running):
            lane = self._lanes.only if tail and time.monotonic() < self._agenda.check_at else None
            if tail and lane and (rows := lane.apply_tail(tail)) is not None:
                return rows
            self._look()
            self._agenda = _new_agenda(self._ownership, self._stop)
            held_before = {target.schema for target in self._ownership.owned()}
            try:
                return self._drain_all()
            finally:
                # Others may write once the leases are released, so the next call anchors all segments again.
                self._lanes.keep([])
                self._ownership.release(keep=held_before)
                self._lanes.release()

    def close(self) -> None:
        """Close the segments that this consumer opened, and its connection."""
        self._ownership.close()
        if self._owns_backend:
            self._backend.close()

    def _perform(self, step: Step, seconds: float) -> None:
        """Do one step; if the control plane or history is unreachable, retry it later, with back-off."""
        try:
            if step is Step.wait:
                self._stop.wait(seconds)
            elif step is Step.look:
                self._look()
            elif step is Step.take:
                self._take(waiting=True)
            elif step is Step.check:
                self._check()
                self._precedence.announce(self._ownership.reports())
            elif step is Step.flush:
                self._flusher.advance(self._agenda)
            elif step is Step.read:
                self._read(block_ms=_BLOCK_MS)
            _note_available(self._agenda, step)
        except ConnectionFailedError as error:
            _note_unavailable(error, self._backend.address, self._agenda, step)
        except WriterFencedError as error:
            _log.warning("writer_fenced", error=str(error))
            self._drop_lost()

    @property
    def is_failing(self) -> bool:
        """Whether :meth:`run` cannot reach a log or the history now."""
        return self._agenda.failures > 0 or self._lanes.is_failing

    def _look(self) -> None:
        if self._ownership.discovers and self._precedence.must_stop():
            self.stop()
        self._ownership.know_growths()
        if self._ownership.discovers:
            self._ownership.discover()
            self._drop_lost()
            self._agenda.looked(len(self._ownership.targets), time.monotonic())

    def _take(self, *, waiting: bool) -> None:
        self._ownership.know_growths()
        if self._lanes.take(waiting=waiting):
            self._agenda.lost(0, time.monotonic())
        self._agenda.took(len(self._ownership.owned()), time.monotonic())

    def _check(self) -> None:
        """Renew the ownership, and anchor segments that do not follow their log."""
        self._ownership.renew()
        if self._lanes.carry_over(partial(self._flusher.flush, self._agenda)):
            self._agenda.lost(0, time.monotonic())
            return
        self._lanes.check()
        self._agenda.checked(time.monotonic())

    def _read(self, *, block_ms: int) -> int:
        """Read once, apply, publish the positions; returns the number of rows that changed a segment."""
        if len(self._ownership.owned()) < self._agenda.owned:
            self._drop_lost()
            return 0
        count = applied = 0
        for lane, found in self._lanes.read(block_ms=block_ms):
            with self._lanes.failing_alone(lane):
                applied += self._apply(lane, found, stages=block_ms > 0)
            count += len(found.entries)
        _let_gather(self._pace, count if block_ms else _STREAM_ENTRIES)
        return applied

    def _apply(self, lane: Lane, found: ReadResult, *, stages: bool) -> int:
        """Apply what was read of a log; returns the number of rows that changed a segment."""
        applied, is_new = lane.apply(found, stages=stages)
        if is_new:
            self._flusher.applied(self._agenda, applied, found)
        return applied

    def _drain_all(self) -> int:
        self._take(waiting=False)
        self._ownership.renew()
        self._agenda.checked(time.monotonic())
        # The ends are fixed here: a drain beside a busy producer must return.
        ends = [(lane, lane.check()) for lane in self._lanes]
        applied = sum(self._drain(lane, end) for lane, end in ends)
        self._lanes.loads.finish_waiting()
        self._flusher.flush(self._agenda)
        if self._lanes.carry_over(partial(self._flusher.flush, self._agenda)):
            applied += self._drain_all()
        return applied

    def _drain(self, lane: Lane, end: int) -> int:
        """Apply a log up to a position, or as far as it has not lost that; returns how many rows changed a segment."""
        applied, before = 0, -1
        while before != lane.cursor.lowest < end and len(self._ownership.owned()) >= self._agenda.owned:
            before = lane.cursor.lowest
            applied += self._apply(lane, lane.cursor.read_call(block_ms=0)(), stages=False)
        return applied

    def _finish(self) -> None:
        self._lanes.stop_reading()
        try:
            # Stopping has to release the leases all the same; the log still has what is not flushed.
            with _warning_of("log_not_trimmed"):
                self._flusher.finish(self._agenda)
            self._lanes.release()
            with _warning_of("report_not_withdrawn"):
                self._precedence.withdraw()
        finally:
            self._flusher.close()
            self._lanes.keep([])
            self._ownership.release()
            self._precedence.release()

    def _drop_lost(self) -> None:
        """Note that a segment is no longer owned: its entries are not read until it is taken again."""
        owned = self._ownership.owned()
        self._lanes.keep(owned)
        self._agenda.lost(len(owned), time.monotonic())


def _new_agenda(ownership: Ownership, stop: threading.Event) -> Agenda:
    return Agenda(len(ownership.targets), stopping=stop.is_set(), discovers=ownership.discovers)


async def _run_in_thread(consumer: WALConsumer) -> None:
    running = asyncio.create_task(asyncio.to_thread(consumer.run))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        consumer.stop()
        await running
        raise


def _let_gather(pace: EntryRate, count: int) -> None:
    """After ``count`` entries: few at a high rate. A short pause lets more gather, and leaves the processor to the
    producers.
    """
    if pace.is_fast(count, time.monotonic()) and count < _STREAM_ENTRIES:
        time.sleep(_GATHER_SECONDS)


def _note_unavailable(error: ConnectionFailedError, address: str, agenda: Agenda, step: Step) -> None:
    """A step failed: it is tried again later, and said the first time."""
    is_first, delay = agenda.failures == 0, agenda.failed(step, time.monotonic())
    event = "history_unavailable" if isinstance(error, HistoryUnavailableError) else "log_unreachable"
    event = "snapshots_unavailable" if isinstance(error, SnapshotUnavailableError) else event
    if is_first:
        _log.warning(event, address=address, error=str(error), next_try_seconds=delay)


def _note_available(agenda: Agenda, step: Step) -> None:
    """A step succeeded; if it had failed, that is said."""
    if agenda.failing is step:
        _log.warning("available_again", failures=agenda.failures)
    agenda.succeeded(step)


@contextmanager
def _warning_of(event: str) -> Iterator[None]:
    try:
        yield
    except (ConnectionFailedError, WriterFencedError) as error:
        _log.warning(event, error=str(error))


@contextmanager
def _exclusive(running: threading.Lock) -> Iterator[None]:
    """:raises WriterLeaseHeldError: if another thread is in such a block."""
    if not running.acquire(blocking=False):
        raise WriterLeaseHeldError("this consumer is running already, in another thread")
    try:
        yield
    finally:
        running.release()
