"""From the log into the segments: the consumer is the single writer of the segments that it has taken.

It reads behind the position in a segment's own header, applies the rows, and then publishes the new position there. A
consumer that dies at any moment loses nothing: the next one reads from that position again, and applying again changes
nothing, because event times decide. Entries that cannot be applied are put among the log's dead letters, with the
reason, before the position passes them.

What to do when is decided in :mod:`quorin.engine.consumer.plan`; here it is done.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NoReturn

from quorin import metrics
from quorin.engine.backend import connect
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY
from quorin.engine.consumer.apply import Applier
from quorin.engine.consumer.history import NoopOfflineWriter, OfflineWriter
from quorin.engine.consumer.plan import Agenda, Cursors, Fit, FlushLimits, Pace, Step, anchor, is_all, next_step
from quorin.engine.consumer.target import Discovery, Target, targets_of
from quorin.engine.ops import presence
from quorin.errors import (
    ConnectionFailedError,
    HistoryUnavailableError,
    NotPicklableError,
    SchemaMismatchError,
    SegmentNotFoundError,
    WriterFencedError,
    WriterLeaseHeldError,
)
from quorin.logging import get_logger
from quorin.schema import schema_to_json
from quorin.shm import SegmentRegistry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from quorin.engine.backend import Connection, ReadResult, Tail
    from quorin.schema import Schema
    from quorin.shm import Segment

__all__ = ["NoopOfflineWriter", "OfflineWriter", "WALConsumer", "WriterLeaseHeldError"]

DEFAULT_BATCH_ENTRIES = 1024
DEFAULT_FLUSH_INTERVAL_SECONDS = 5.0
DEFAULT_FLUSH_ROWS = 1_000_000
DEFAULT_FLUSH_BYTES = 128 << 20
DEFAULT_CAPACITY = 4096
DEFAULT_FROZEN_AFTER_SECONDS = 30.0

_READ_BYTES = 16 << 20
_BLOCK_MS = 250
_STREAM_ENTRIES = 64
_GATHER_SECONDS = 0.001

_log = get_logger(__name__)


class WALConsumer:
    """Applies a log to the current segments of some schemas, and is their single writer meanwhile.

    ``schemas_or_segments`` names what to apply: schemas, whose current segments are opened, and created with
    ``capacity`` entities and ``max_id_bytes`` if there are none; or segments that are open for writing; or None for
    every schema that the control plane knows, and those it gets to know meanwhile.

    With ``offline`` every row goes into the history too, flushed at the latest after ``flush_interval_seconds``,
    ``flush_rows`` or ``flush_bytes``, and the log is trimmed behind what is both applied and durable, provided that
    this consumer has all schemas of the control plane; entries of a schema that nobody knows become dead letters
    before. Without, or with ``trims`` False, nothing is trimmed.

    Where another process is the writer, this one waits, and takes over at once when that one dies. One that is frozen
    is overtaken after ``frozen_after_seconds`` without a heartbeat; consumers give one each second, whoever else holds
    a writer lease for long does by ``Segment.heartbeat``.

    :raises SchemaError: for anything else than schemas and segments.
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
        namespace: str = DEFAULT_NAMESPACE,
    ) -> None:
        self._discovery = Discovery() if schemas_or_segments is None else None
        self._targets = [] if schemas_or_segments is None else targets_of(schemas_or_segments)
        self._backend = connect(connection, namespace=namespace)
        self._owns_backend = self._backend is not connection
        self._registry = SegmentRegistry(self._backend, namespace=namespace) if registry is None else registry
        self._log = self._backend.log(stream_key)
        self._offline = offline
        self._trims = trims and offline is not None
        kept = None if type(offline) is NoopOfflineWriter else offline
        self._applier = Applier(self._log, self._backend.control, kept)
        self._batch_entries = batch_entries
        self._flush_limits = FlushLimits(flush_interval_seconds, flush_rows, flush_bytes)
        self._frozen_after_seconds = frozen_after_seconds
        self._new_segment = {
            "capacity": capacity,
            "max_id_bytes": max_id_bytes,
            "stream_key": stream_key,
            "progress": self._say_alive,
        }
        self._agenda = self._new_agenda()
        self._cursors = Cursors()
        self._identity = 0
        self._name = secrets.token_hex(8)
        self._pace = Pace()
        self._stop = threading.Event()
        self._running = threading.Lock()

    def __enter__(self) -> WALConsumer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.close()

    def __reduce__(self) -> NoReturn:
        raise NotPicklableError("a WALConsumer holds writer leases of this process: make one in the other process")

    def run(self) -> None:
        """Apply until :meth:`stop`. Waits while another process is the writer, and while the log can't be reached.

        On return the leases are released and the history is flushed.

        :raises SchemaMismatchError: if a current segment holds another version of its schema.
        :raises SegmentConflictError: if another segment was made current in the place of one that was given.
        :raises CapacityExceededError: if a segment cannot grow.
        """
        with self._alone():
            self._agenda = self._new_agenda()
            self._agenda.stopping = self._stop.is_set()
            try:
                while (step := next_step(self._agenda, time.monotonic()))[0] is not Step.stop:
                    self._perform(*step)
                    self._agenda.stopping = self._stop.is_set()
            finally:
                self._finish()

    def stop(self) -> None:
        """Ask :meth:`run` to return; it does within a second. From any thread, or a signal handler."""
        self._stop.set()

    async def run_async(self) -> None:
        """:meth:`run` in a thread of its own; cancelling stops it."""
        running = asyncio.create_task(asyncio.to_thread(self.run))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            self.stop()
            await running
            raise

    def drain(self, tail: Tail | None = None) -> int:
        """Apply what is in the log now, and give the number of rows that changed a segment.

        Leases are held meanwhile, and released unless they were held before.

        ``tail`` is what :meth:`quorin.wal.WALProducer.write_and_read` saw of the log. A consumer of one segment whose
        lease is held applies that without a look at the log, if it is all that there was to apply when it was seen.

        :raises WriterLeaseHeldError: if another process is a segment's writer.
        :raises SegmentConflictError: as :meth:`run`. :raises ConnectionFailedError: if the log cannot be reached.
        """
        with self._alone():
            applied = None if tail is None else self._apply_tail(tail)
            if applied is not None:
                return applied
            self._look()
            self._agenda = self._new_agenda()
            held_before = {target.schema for target in self._targets if target.holds_lease}
            try:
                self._take(waiting=False)
                end, applied = self._check(), 0
                while self._cursors.lowest < end:
                    before = self._cursors.lowest
                    applied += self._read(block_ms=0)
                    if self._cursors.lowest == before:
                        break
                self._flush()
                return applied
            finally:
                self._cursors = Cursors()
                for target in self._targets:
                    if target.schema not in held_before:
                        target.release()

    def _apply_tail(self, tail: Tail) -> int | None:
        """Apply what an append saw of the log; None if that is not all, or cannot be told here, or a check is due."""
        target = self._targets[0] if len(self._targets) == 1 else None
        is_due = time.monotonic() >= self._agenda.check_at
        if target is None or not target.holds_lease or self._offline is not None or is_due:
            return None
        segment = target.opened
        with segment.writing:
            stored, position, log_identity = segment.writing_view().stored, segment.position, segment.log_identity
            is_known = stored is target.schema
            if not (is_known and is_all(tail, position, log_identity=log_identity, schema=schema_to_json(stored))):
                return None
            name = stored.__name__
            applied = self._applier.apply(tail.found.entries, {name: target}, Cursors({name: position}))
            segment.commit_position(tail.found.through, tail.identity)
        return applied

    def close(self) -> None:
        """Close the segments that this consumer opened, and its connection."""
        for target in self._targets:
            target.close()
        if self._owns_backend:
            self._backend.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._running.acquire(blocking=False):
            raise WriterLeaseHeldError("this consumer is running already, in another thread")
        try:
            yield
        finally:
            self._running.release()

    def _perform(self, step: Step, seconds: float) -> None:
        """Do one step; an unreachable control plane or history puts it off, with back-off."""
        try:
            if step is Step.wait:
                self._stop.wait(seconds)
                return
            if step is Step.look:
                self._look()
            elif step is Step.take:
                self._take(waiting=True)
            elif step is Step.check:
                self._check()
                reports = {target.schema.__name__: target.report() for target in self._owned()}
                presence.announce(self._backend.control, "consumer", reports)
            elif step is Step.flush:
                self._flush()
            elif step is Step.read:
                self._read(block_ms=_BLOCK_MS)
            self._agenda.succeeded(step)
        except ConnectionFailedError as error:
            first = self._agenda.failures == 0
            delay = self._agenda.failed(step, time.monotonic())
            if first:
                event = "history_unavailable" if isinstance(error, HistoryUnavailableError) else "log_unreachable"
                _log.warning(event, address=self._backend.address, error=str(error), next_try_seconds=delay)
        except WriterFencedError as error:
            _log.warning("writer_fenced", error=str(error))
            self._drop_lost_targets()

    def _new_agenda(self) -> Agenda:
        return Agenda(len(self._targets), discovers=self._discovery is not None)

    def _look(self) -> None:
        """Follow the control plane's list of schemas."""
        if self._discovery is not None:
            known = len(self._targets)
            self._targets = self._discovery.targets(self._targets, self._backend.control.schemas())
            self._drop_lost_targets()
            self._agenda.looked(len(self._targets), time.monotonic())
            if len(self._targets) != known:
                _log.info("schemas_followed", schemas=[target.schema.__name__ for target in self._targets])

    def _take(self, *, waiting: bool) -> None:
        for target in self._targets:
            if target.holds_lease and target.schema.__name__ in self._cursors.after:
                continue
            try:
                target.take(
                    self._registry,
                    self._new_segment,
                    self._frozen_after_seconds,
                    before_overtaking=self._claim,
                    history=self._offline,
                )
                if self._trims:
                    self._claim(target.schema.__name__)
            except WriterLeaseHeldError:
                if not waiting:
                    raise
                continue
            except (SchemaMismatchError, SegmentNotFoundError) as error:
                if self._discovery is None:
                    raise
                self._discovery.refused(target, error)
                continue
            self._cursors.after.pop(target.schema.__name__, None)
        self._agenda.took(len(self._owned()), time.monotonic())

    def _claim(self, schema_name: str) -> None:
        self._log.claim([schema_name], self._name)

    def _check(self) -> int:
        """Compare the log with each segment's header, and let those that do not follow it yet begin where they must.

        First say that this process lives, and see that it was not overtaken and its segments are in force. Gives the
        last position.
        """
        for target in self._owned():
            target.opened.heartbeat()
            target.opened.acquire_writer_lease()
        control = self._backend.control
        currents, schemas = control.currents(), control.schemas()
        for target in self._owned():
            target.check_in_force(self._registry, currents.get(target.schema.__name__))
            target.follow_wish(control, schemas)
        identity, bounds = self._log.state()
        for target in self._owned():
            name, segment = target.schema.__name__, target.opened
            known = self._cursors.after.get(name)
            if known is not None and segment.log_identity == identity == self._identity and known <= bounds.last:
                continue
            flushed = None if self._offline is None else self._offline.flushed_position(target.schema)
            if flushed and 0 < segment.position < bounds.trimmed and segment.log_identity == identity:
                self._catch_up(segment)
            if flushed is not None and (flushed > 0 or not len(segment)):
                # What was trimmed was in the history before, if there was anything of this schema.
                flushed = max(flushed, bounds.trimmed)
            start = anchor(
                position=segment.position,
                log_identity=segment.log_identity,
                identity=identity,
                bounds=bounds,
                flushed=flushed,
            )
            if start.fit not in (Fit.same, Fit.new):
                metrics.reanchored.labels(name, start.fit.name).inc()
                _log.warning(
                    "log_reanchored",
                    schema=name,
                    reason=start.fit.value,
                    position=segment.position,
                    last=bounds.last,
                    trimmed=bounds.trimmed,
                    reading_from=start.after,
                )
            self._cursors.after[name] = start.after
            if start.resets:
                segment.commit_position(start.after, identity)
        self._identity = identity
        self._agenda.checked(time.monotonic())
        return bounds.last

    def _read(self, *, block_ms: int) -> int:
        """Read once, apply, publish the position; gives the number of rows that changed something."""
        if len(self._owned()) < self._agenda.owned:
            self._drop_lost_targets()
            return 0
        found = self._read_log(block_ms)
        with ExitStack() as held:
            for target in self._owned():
                held.enter_context(target.opened.writing)
            # A lease may have been lost while the read waited. From here on none is: who takes one over in this process
            # waits, and the position is that of the segment which has the rows.
            applied = self._apply(found, self._owned())
        count = len(found.entries)
        if self._pace.is_fast(count, time.monotonic()) and block_ms and count < _STREAM_ENTRIES:
            time.sleep(_GATHER_SECONDS)
        return applied

    def _apply(self, found: ReadResult, owned: list[Target]) -> int:
        cursors = self._cursors
        applied = self._applier.apply(found.entries, {target.schema.__name__: target for target in owned}, cursors)
        if found.through > cursors.lowest:
            cursors.advance(found.through)
            for target in owned:
                after = cursors.after[target.schema.__name__]
                if after > target.opened.position:
                    target.opened.commit_position(after, self._identity)
            size = sum(len(payload) for _, payload in found.entries)
            self._agenda.applied(time.monotonic(), self._flush_limits, rows=applied, size=size)
        return applied

    def _read_log(self, block_ms: int) -> ReadResult:
        return self._log.read(
            self._cursors.lowest,
            # Whoever trims must have seen everything, so that what nobody applies is not lost unseen.
            schema_names=None if self._trims else list(self._cursors.after),
            max_entries=self._batch_entries,
            max_bytes=_READ_BYTES,
            block_ms=block_ms,
        )

    def _flush(self) -> None:
        """Make the history durable and trim the log behind it, as far as nobody needs it any more."""
        if self._offline is not None:
            started = time.monotonic_ns()
            self._offline.flush()
            metrics.flushes.inc()
            metrics.flush_seconds.inc(time.monotonic_ns() - started)
            if self._trims:
                self._trim(min([self._cursors.lowest, *self._unflushed_from()]))
        self._agenda.flushed()

    def _trim(self, through: int) -> None:
        """Trim the log if this consumer is the one that applies all of it."""
        everybody = {target.schema.__name__ for target in self._targets}
        if len(self._owned()) < len(self._targets) or not self._backend.control.schemas().keys() <= everybody:
            return
        for target in self._targets:
            target.opened.acquire_writer_lease()  # Who was overtaken may not trim what the other still needs.
        try:
            metrics.entries_trimmed.inc(self._log.trim(through, claims=dict.fromkeys(everybody, self._name)))
        except WriterFencedError as error:
            _log.warning("log_not_trimmed", error=str(error))

    def _unflushed_from(self) -> list[int]:
        """How far the history is durable, for each schema that has rows after that."""
        assert self._offline is not None  # noqa: S101 - only called where there is one
        unflushed = []
        for schema, last in list(self._applier.appended.items()):
            flushed = self._offline.flushed_position(schema)
            if flushed is not None and flushed < last:
                unflushed.append(flushed)
            else:
                del self._applier.appended[schema]
        return unflushed

    def _catch_up(self, segment: Segment) -> None:
        """What a segment lacks and the log has no more comes from the history, if that can be read."""
        from quorin.hydration import catch_up
        from quorin.offline import ParquetDatasetStore

        if isinstance(self._offline, ParquetDatasetStore):
            _log.info("caught_up_from_history", segment=segment.name, rows=catch_up(segment, self._offline))

    def _say_alive(self, *_: int) -> None:
        """While one segment is built from history, which can take long, the others must not seem to be left alone."""
        for target in self._owned():
            target.opened.heartbeat()

    def _finish(self) -> None:
        try:
            if self._agenda.unflushed:
                self._flush()
            presence.withdraw(self._backend.control)
        except (ConnectionFailedError, WriterFencedError) as error:
            _log.warning("log_not_trimmed", error=str(error))
        finally:
            self._cursors = Cursors()
            for target in self._targets:
                target.release()

    def _drop_lost_targets(self) -> None:
        owned = self._owned()
        names = {target.schema.__name__ for target in owned}
        self._cursors = Cursors({name: after for name, after in self._cursors.after.items() if name in names})
        self._agenda.lost(len(owned), time.monotonic())

    def _owned(self) -> list[Target]:
        return [target for target in self._targets if target.holds_lease]
