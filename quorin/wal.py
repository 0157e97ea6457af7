"""Write through the log: rows are checked and appended as records, and a consumer in another process applies them.

When a write returns, its rows are in the log at the returned position, as durable as the log is (see
:mod:`quorin.engine.backend`). A consumer shows them in the segment, usually within a millisecond;
:meth:`WALProducer.wait` waits for that. Writing the same rows again is safe: they take effect once.

The position is a :class:`Token`: a read on any node that asks for it, with ``at_least``, shows the rows.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from quorin.engine.backend import Beginning, Tail, connect
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY, SEQUENCE_BITS
from quorin.engine.format.name import is_same_line
from quorin.engine.log.appending import MAX_ENTRY_ROWS, Appender
from quorin.engine.log.record import Kind, encode
from quorin.engine.log.record_fast import encode_row
from quorin.engine.log.token import Token
from quorin.engine.reads.waiting import has_applied, pause
from quorin.engine.rows.batch import check_entity_id, checked_row, delete_batch, row_batch, rows_batch, to_batch
from quorin.errors import (
    LogClosedError,
    LogFullError,
    NotPicklableError,
    NotYetAppliedError,
    SchemaError,
    SegmentNotFoundError,
    WriteSyncTimeoutError,
)
from quorin.schema import FeatureSchema

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from quorin.engine.backend import Connection
    from quorin.schema import Schema
    from quorin.shm import Segment, SegmentRegistry

__all__ = [
    "Beginning",
    "LogClosedError",
    "LogFullError",
    "Pipeline",
    "Tail",
    "Token",
    "WALProducer",
    "WriteSyncTimeoutError",
    "position_at",
    "time_of",
]

DEFAULT_MAX_ENTRIES = 1_000_000
DEFAULT_FLEET_WAIT_MS = 10_000.0
DEFAULT_WAIT_MS = 100.0
_RECHECK_SECONDS = 0.1


def position_at(time_ms: int) -> int:
    """The lowest position that an entry appended at a time can have, in milliseconds since the epoch.

    The time is that of the Redis server, or of this machine for the embedded log. Positions never go back when a clock
    does.
    """
    return max(0, time_ms) << SEQUENCE_BITS


def time_of(position: int) -> int:
    """When the entry at a position was appended, in milliseconds since the epoch, as in :func:`position_at`."""
    return position >> SEQUENCE_BITS


class WALProducer:
    """Appends rows to a log. Threads may share a producer, and it keeps working in a forked child.

    ``max_entries`` limits the log, of several partitions the log of each: writes that would exceed it raise
    ``LogFullError`` until a consumer has trimmed; None sets no limit. A write to a log that is full or unreachable
    fails at once, or is retried for ``block_ms``. :meth:`wait` needs ``registry`` only if segments are not in the
    default directory. A pickled producer contains its connection, including a Redis password in plain text.

    ``partitions`` is the number of the deployment's partitions, if it is to be checked: a power of two up to 256, which
    is that of a new deployment. With several, a row goes to the log of its entity's partition. A batch is split, its
    parts are appended at once, and the call returns when all are. If some could not be, it raises, naming their
    partitions: writing all rows again is safe. The token has a part for each log that got rows.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        stream_key: str = DEFAULT_STREAM_KEY,
        max_entries: int | None = DEFAULT_MAX_ENTRIES,
        block_ms: float = 0,
        registry: SegmentRegistry | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        partitions: int | None = None,
    ) -> None:
        self._backend = connect(connection, namespace=namespace, partitions=partitions)
        self._owns_backend = self._backend is not connection
        self._log = self._backend.log(stream_key)
        self._appender = Appender(self._backend, stream_key, max_entries, block_ms)
        self._registry = registry
        self._segments: dict[Schema, Segment] = {}
        self._identity = 0

    def __enter__(self) -> WALProducer:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_segments": {}}

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(
        self,
        schema: Schema,
        entity_id: str,
        values: Mapping[str, Any],
        event_time_ns: int | None = None,
        *,
        partial: bool = False,
    ) -> Token:
        """Append one row and return its position. ``None`` is a null; no event time means now.

        With ``partial``, fields that are left out keep their values in the segment.

        :raises InvalidRowError: for a missing, unknown or ill-fitting value, naming it.
        :raises EntityIdError: for an id that is empty or not a string.
        :raises LogFullError: if the log is at its limit; nothing was written.
        """
        _check_schema(schema)
        if partial:
            batch = row_batch(schema, entity_id, values, event_time_ns, partial=True)
            payload = encode(Kind.partial, schema, batch)
        else:
            payload = encode_row(schema, entity_id, values, event_time_ns)
        return self._appender.append_row(schema.__name__, entity_id, payload)

    def write_and_read(
        self, schema: Schema, entity_id: str, values: Mapping[str, Any], event_time_ns: int | None = None, *, after: int
    ) -> tuple[Token, Tail | None]:
        """:meth:`write`, and read the schema's entries behind position ``after``, in one round trip.

        A caller that applies them passes the tail to :meth:`quorin.wal_consumer.WALConsumer.drain`, with ``after`` the
        position of the segment. The tail is None if the log has to be read instead.

        :raises InvalidRowError, EntityIdError, LogFullError: as :meth:`write`.
        """
        _check_schema(schema)
        payload = encode_row(schema, entity_id, values, event_time_ns)
        return self._appender.append_row_and_read(schema.__name__, entity_id, payload, after)

    def write_many(
        self, schema: Schema, table: Any, *, event_time_ns: int | None = None, partial: bool = False
    ) -> Token:
        """Append many rows and return the last position; 0 for no rows.

        ``table`` is as for :func:`quorin.engine.rows.batch.to_batch`. All rows are checked before the first is
        written. They are split into entries of at most 8,192 rows and about 1 MiB, appended about 8 MiB at a time. An
        error in between leaves the earlier entries written; writing all rows again is safe.

        :raises InvalidRowError, EntityIdError: naming column, row and value; nothing was written.
        :raises LogFullError: if the log is at its limit.
        """
        _check_schema(schema)
        batch = to_batch(schema, table, event_time_ns=event_time_ns, partial=partial)
        return self.append_batch(schema, batch, Kind.partial if partial else Kind.upsert)

    def pipeline(self, schema: Schema) -> Pipeline:
        """Many single writes at the cost of few: ``with producer.pipeline(schema) as pipe: pipe.write(...)``."""
        _check_schema(schema)
        return Pipeline(self, schema)

    def delete(self, schema: Schema, entity_id: str, event_time_ns: int | None = None) -> Token:
        """Append the deletion of an entity at an event time (None: now), and return its position.

        Rows with an older event time do not bring the entity back, even if they arrive later.
        """
        _check_schema(schema)
        payload = encode(Kind.delete, schema, delete_batch([entity_id], event_time_ns))
        return self._appender.append_row(schema.__name__, entity_id, payload)

    def write_sync(
        self,
        schema: Schema,
        entity_id: str,
        values: Mapping[str, Any],
        event_time_ns: int | None = None,
        *,
        partial: bool = False,
        timeout_ms: float = DEFAULT_WAIT_MS,
    ) -> Token:
        """:meth:`write`, and wait until the segment on this machine shows the row.

        :raises WriteSyncTimeoutError: if no consumer applied the row in time; it is in the log all the same.
        :raises EntityIdTooLongError: if the id does not fit the segment.
        """
        _check_schema(schema)
        segment = self._segments.get(schema)
        if segment is None:
            segment = self._segment_in_force(schema)
        if segment is not None:
            check_entity_id(entity_id, segment.current_view().layout.max_id_bytes)
        position = self.write(schema, entity_id, values, event_time_ns, partial=partial)
        self.wait(schema, position, timeout_ms=timeout_ms)
        return position

    def wait(self, schema: Schema, position: int, *, timeout_ms: float = DEFAULT_WAIT_MS) -> None:
        """Wait until the segment in force on this node has applied a position.

        Polls shared memory, not the log. Which segment is in force is looked up once, and again from time to time.

        :raises WriteSyncTimeoutError: if the position is not applied within ``timeout_ms``.
        """
        _check_schema(schema)
        started = time.monotonic()
        recheck_at = min(timeout_ms / 2000, _RECHECK_SECONDS)
        segment = self._segment_in_force(schema)
        while segment is None or not self._is_applied(segment, position):
            waited = time.monotonic() - started
            if waited * 1000 >= timeout_ms:
                raise WriteSyncTimeoutError(schema.__name__, position, timeout_ms)
            if waited >= recheck_at:
                # The segment may have been discarded, and another one created.
                recheck_at = 2 * waited
                segment = self._segment_in_force(schema)
            pause(waited)

    def wait_for_nodes(self, schema: Schema, position: int, *, timeout_ms: float = DEFAULT_FLEET_WAIT_MS) -> None:
        """Wait until every live node of the deployment has applied a position, this one included.

        Nodes report about once a second, so this takes as long. A node that was silent for ten minutes is not waited
        for.

        :raises NotYetAppliedError: after ``timeout_ms``, naming the nodes. :raises ConnectionFailedError: if the
            control plane cannot be reached.
        """
        from quorin.engine.backend import logs
        from quorin.engine.ops.nodes import late_nodes, positions_by_partition

        _check_schema(schema)
        name = schema.__name__
        positions = positions_by_partition(logs(self._backend, self._log.stream_key), position)
        late = late_nodes(self._backend, lambda node: node.lacks(name, positions), timeout_seconds=timeout_ms / 1000)
        if late:
            raise NotYetAppliedError(name, position, timeout_ms, late)

    def close(self) -> None:
        """Close the connection and the segments that were opened to wait."""
        for segment in self._segments.values():
            segment.close()
        self._segments = {}
        if self._owns_backend:
            self._backend.close()

    def append_batch(self, schema: Schema, batch: pa.RecordBatch, kind: Kind = Kind.upsert, *, load: int = 0) -> Token:
        """Append a checked, canonical batch (see :mod:`quorin.engine.rows.batch`), of a ``load`` if that is its kind.

        Returns the last position.
        """
        return self._appender.append_batch(schema, batch, kind, load)

    def _is_applied(self, segment: Segment, position: int) -> bool:
        # The segment says of how many partitions it is: nothing is asked of the control plane while it waits.
        if segment.partitioning.count > 1:
            return has_applied(segment, Token.of(position)) and segment.current_view().path.exists()
        followed = segment.log_identity  # Before the position, which may still be one of a log that was wiped since.
        if segment.position < position:
            return False
        if followed != self._identity:
            self._identity = self._backend.log(self._log.stream_key, 0, of=1).identity()
        # A segment that was discarded meanwhile has no file.
        return followed == self._identity and segment.current_view().path.exists()

    def _segment_in_force(self, schema: Schema) -> Segment | None:
        """The segment that reads use now; None if there is none."""
        if self._registry is None:
            from quorin.shm import SegmentRegistry

            self._registry = SegmentRegistry(self._backend)
        cached, current = self._segments.get(schema), self._registry.node.current(schema.__name__)
        if cached is not None:
            with suppress(SegmentNotFoundError):  # Discarded, and another one created in its line.
                view = cached.current_view()
                if current is not None and is_same_line(current, view.name) and view.path.exists():
                    return cached
            self._segments.pop(schema, None)
        try:
            opened = self._segments[schema] = self._registry.open_current(schema)
        except SegmentNotFoundError:
            return None
        return opened


class Pipeline:
    """Collects rows into columnar entries. Not thread-safe; created by :meth:`WALProducer.pipeline`.

    Every row is checked when it is written here, and sent together with up to 8,191 others. A crash can lose the rows
    that were not sent yet. Leaving the block sends the rest, unless an error ends it: then they are dropped.
    """

    def __init__(self, producer: WALProducer, schema: Schema) -> None:
        self._producer = producer
        self._schema = schema
        self._rows: list[tuple[Any, ...]] = []
        self.position = Token()
        """The position of the last row that was sent."""

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()

    def __reduce__(self) -> NoReturn:
        raise NotPicklableError(
            "a Pipeline has rows that would be sent twice, and cannot be pickled: "
            "pickle the WALProducer, and create one in the other process"
        )

    def write(self, entity_id: str, values: Mapping[str, Any], event_time_ns: int | None = None) -> None:
        """Add one row; no event time means now.

        :raises InvalidRowError, EntityIdError: as :meth:`WALProducer.write`; earlier rows are kept.
        :raises LogFullError: if rows had to be sent and the log is at its limit; all of them are kept.
        """
        self._rows.append(checked_row(self._schema, entity_id, values, event_time_ns))
        if len(self._rows) >= MAX_ENTRY_ROWS:
            self.flush()

    def flush(self) -> Token:
        """Send the collected rows. Returns the position of the last row that was sent."""
        if self._rows:
            self.position = self._producer.append_batch(self._schema, rows_batch(self._schema, self._rows))
            self._rows = []
        return self.position


def _check_schema(schema: object) -> None:
    if not (isinstance(schema, type) and issubclass(schema, FeatureSchema)) or schema is FeatureSchema:
        raise SchemaError(f"expected a subclass of FeatureSchema, got {schema!r}")
