"""Replace the rows of a schema whole, from a source or from a past state of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from quorin.engine.backend.keys import DEFAULT_STREAM_KEY
from quorin.engine.checks.run import run
from quorin.engine.checks.stored import checks_of
from quorin.engine.loads.coordinator import Coordinator
from quorin.engine.loads.past import Past, range_in
from quorin.engine.loads.rows import Repeatable, reference_rows, served_rows, tables_of
from quorin.engine.log.token import Token
from quorin.engine.memory.parts import positions_in
from quorin.engine.reads.scan import scan_view
from quorin.engine.rows.batch import ENTITY_ID, EVENT_TIME, to_batch
from quorin.engine.rows.intake import table_columns
from quorin.errors import (
    GenerationNotFoundError,
    PastUnavailableError,
    ReplaceAbortedError,
    SegmentNotFoundError,
)
from quorin.inline_consumer import InlineConsumer
from quorin.wal import WALProducer, position_at

if TYPE_CHECKING:
    from quorin.engine.checks.declared import Check
    from quorin.engine.loads.past import Moment, Ranges
    from quorin.offline import ParquetDatasetStore
    from quorin.schema import Schema
    from quorin.shm import Segment, SegmentRegistry

    Validate = Callable[[Iterable[pa.RecordBatch], Iterable[pa.RecordBatch]], object]
    """Looks at the candidate rows and the present ones, and raises an error to refuse."""
    Progress = Callable[[int], object]
    """Is told how many rows are in the log."""

DEFAULT_TIMEOUT_SECONDS = 60.0
_MAX_ID_BYTES, _CAPACITY = 64, 4096


@dataclass(frozen=True, slots=True)
class ReplaceResult:
    """What replaced the rows of a schema: ``row_count`` rows, by the load that began behind the log position ``begin``
    and was committed at ``position``, a token with a part for the log of each partition; both 0 for a dry run.
    ``begin`` is the same position in all logs: the state there is that before the replacement. ``replaced_rows`` is the
    number of entities that this node served before; None if it has no segment.
    """

    schema_name: str
    begin: int
    position: Token
    row_count: int
    replaced_rows: int | None
    elapsed_seconds: float
    dry_run: bool = False


def replace(
    schema: Schema,
    source: Any,
    registry: SegmentRegistry,
    *,
    checks: Sequence[Check] | None = None,
    reference: Any = None,
    validate: Validate | None = None,
    allow_empty: bool = False,
    dry_run: bool = False,
    wait_for: Literal["node", "nodes", "log"] = "node",
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    progress: Progress | None = None,
    stream_key: str = DEFAULT_STREAM_KEY,
) -> ReplaceResult:
    """Replace all rows of a schema, on all nodes, each in one flip.

    ``source`` is a table, as :meth:`quorin.wal.WALProducer.write_many` takes it, or an iterable of tables, which need
    not fit into memory together. Rows without an event time get the time at which the replacement began. What is pushed
    or deleted from then on is applied to the old rows and to the new ones. Entities that neither the source nor a later
    push has are gone. Of several rows of an entity the one with the latest event time counts.

    The rows go through the log. Each node's consumer builds a new generation from them beside the one that serves, and
    puts it in force when it meets the commit. The call returns when this node has done so, or (``wait_for="nodes"``)
    all live nodes, or (``"log"``) once the commit is in the log. If this process, a consumer or a node dies at any
    point, the old rows stay in force or the new ones come into force, on every node alike.

    Before the commit the rows are checked beside those that this node serves: by ``checks``, or, if that is None, by
    those that are declared beside the schema (see :class:`quorin.schema.FeatureSchema`). With a ``reference`` they
    compare with its rows, in place of those that this node serves: a table or an iterable of tables, which may lack
    fields, and have any number of rows for an entity. On a node that holds some partitions, and without a reference,
    they are checked alone, as where nothing is served yet. ``validate`` is called after
    that with the candidate rows and those that this node serves, each an iterable of record batches that may be
    iterated more than once; it raises an error to refuse. ``dry_run`` converts and counts the rows, and changes
    nothing.

    :raises CheckFailedError: if a check fails; nothing is replaced.
    :raises InvalidRowError, EntityIdError: for rows that do not fit the schema, the reference's too; nothing is
        replaced.
    :raises ReplaceConflictError: if another process is replacing the rows of this schema.
    :raises ReplaceAbortedError: if there are no rows, unless ``allow_empty``; or if another process aborted the load.
    :raises LogFullError: if the log is at its limit; nothing is replaced.
    :raises WriteSyncTimeoutError, NotYetAppliedError: if this node, or another, did not apply it within
        ``timeout_seconds``. The new rows come into force all the same.
    """
    declared = checks_of(schema, registry.backend.control) if checks is None else tuple(checks)
    options = _Options(
        registry, stream_key, declared, reference, validate, allow_empty, wait_for, timeout_seconds, progress
    )
    max_id_bytes = _served(registry, schema).max_id_bytes

    def rows(started_ns: int) -> Iterator[pa.RecordBatch]:
        for table in tables_of(source):
            yield _batch(schema, table, started_ns, max_id_bytes)

    if not dry_run:
        return _replaced(schema, options, lambda load: rows(load.started_ns))
    started, count = time.monotonic(), 0
    for batch in rows(time.time_ns()):
        count += len(batch)
        options.advance(count)
    before = _served(registry, schema).row_count
    return ReplaceResult(schema.__name__, 0, Token(), count, before, time.monotonic() - started, dry_run=True)


def rollback(
    schema: Schema,
    registry: SegmentRegistry,
    *,
    to_position: int | None = None,
    to_time_ns: int | None = None,
    to_generation: int | None = None,
    history: ParquetDatasetStore | None = None,
    reapply: bool = False,
    without: Sequence[tuple[int, int]] = (),
    validate: Validate | None = None,
    allow_empty: bool = False,
    wait_for: Literal["node", "nodes", "log"] = "node",
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    progress: Progress | None = None,
    stream_key: str = DEFAULT_STREAM_KEY,
) -> ReplaceResult:
    """Replace all rows of a schema, on all nodes, by those of a past state; see :func:`replace`.

    The state is that at a position of the log, at a time (ns since the epoch, of the log's clock, not of events), or of
    a generation of this node's segment whose file is kept. Give one of the three, or only ``without``: then it is the
    state before the first of these ranges. States before the log's start are read from the ``history``.

    With several partitions a position is a token with a part for each log, such as ``ReplaceResult.position`` and
    :meth:`quorin.shm.Segment.applied` have, or one number for all logs, such as ``ReplaceResult.begin``: positions grow
    with the time of the log's server. A generation must have all partitions.

    The log keeps what came later. With ``reapply`` it is applied again to the past state, except entries in the ranges
    ``without``: pairs of the first and the last position, which are tokens, or numbers for all logs. Rows of
    replacements are never applied again.

    :raises PastUnavailableError: if the state is not known any more, or is not one of the past.
    :raises ValueError: unless exactly one state is given, or for a range that is empty or begins before it.
    """
    ranges = sorted(without)
    given = [one for one in (to_position, to_time_ns, to_generation) if one is not None]
    if len(given) > 1 or not (given or ranges):
        raise ValueError(f"expected one of to_position, to_time_ns and to_generation, or without, got {len(given)}")
    if not given:
        to_position = min(int(part) for first, _ in ranges for part in _positions_in(first)) - 1
    past = _State(schema, registry, history, stream_key, to_position, to_time_ns, to_generation, progress)
    with closing(past):
        past.check(ranges)
        # A past state was served once; a check such as that of freshness must not keep anyone from going back to it.
        options = _Options(registry, stream_key, (), None, validate, allow_empty, wait_for, timeout_seconds, progress)
        again = ranges if reapply or ranges else None
        return _replaced(schema, options, lambda load: past.rows(load.load, again))


@dataclass(frozen=True, slots=True)
class _Options:
    registry: SegmentRegistry
    stream_key: str
    checks: tuple[Check, ...]
    reference: Any
    validate: Validate | None
    allow_empty: bool
    wait_for: str
    timeout_seconds: float
    progress: Progress | None

    def advance(self, rows: int) -> None:
        if self.progress is not None:
            self.progress(rows)


@dataclass(frozen=True, slots=True)
class _Served:
    row_count: int | None = None
    max_id_bytes: int | None = None


def _replaced(
    schema: Schema, options: _Options, rows_of: Callable[[Coordinator], Iterable[pa.RecordBatch]]
) -> ReplaceResult:
    started, registry = time.monotonic(), options.registry
    before = _served(registry, schema).row_count
    with Coordinator(registry.backend, schema, stream_key=options.stream_key) as load:
        begin = load.load
        for batch in rows_of(load):
            load.append(batch)
            options.advance(load.row_count)
        if not load.row_count and not options.allow_empty:
            raise ReplaceAbortedError(
                f"there are no rows to replace those of {schema.__name__!r} with; nothing was replaced"
            )
        if options.checks:
            run(options.checks, schema, load.rows(), _beside(schema, options)).raise_if_failed()
        if options.validate is not None:
            options.validate(Repeatable(load.rows), Repeatable(lambda: served_rows(registry, schema)))
        position = load.commit()
    if options.wait_for != "log":
        _wait(schema, position, options)
    elapsed = time.monotonic() - started
    return ReplaceResult(schema.__name__, begin, position, load.row_count, before, elapsed)


def _wait(schema: Schema, position: Token, options: _Options) -> None:
    registry, name, timeout_ms = options.registry, schema.__name__, options.timeout_seconds * 1000
    if registry.current_name(name) is not None:
        held = registry.partitioning.held
        here = Token(*(part for partition, part in enumerate(position.parts) if partition in held))
        InlineConsumer(registry, name, stream_key=options.stream_key, timeout_ms=timeout_ms).settle(here)
    if options.wait_for == "nodes":
        with WALProducer(registry.backend, stream_key=options.stream_key, registry=registry) as producer:
            producer.wait_for_nodes(schema, position, timeout_ms=timeout_ms)


def _batch(schema: Schema, table: Any, started_ns: int, max_id_bytes: int | None) -> pa.RecordBatch:
    has_times = EVENT_TIME in table_columns(table)
    return to_batch(schema, table, event_time_ns=None if has_times else started_ns, max_id_bytes=max_id_bytes)


def _beside(schema: Schema, options: _Options) -> Iterable[pa.RecordBatch]:
    """What the checks compare with: the rows of a reference, or those that this node serves."""
    if options.reference is not None:
        return reference_rows(schema, options.reference)
    # The rows of all partitions must not be compared with those of some.
    return () if options.registry.partitioning.is_partial else served_rows(options.registry, schema)


def _served(registry: SegmentRegistry, schema: Schema) -> _Served:
    try:
        with registry.open_stored(schema.__name__) as segment:
            return _Served(len(segment), segment.current_view().layout.max_id_bytes)
    except SegmentNotFoundError:
        return _Served()


class _State:
    """A past state: its moment, and its rows."""

    def __init__(
        self,
        schema: Schema,
        registry: SegmentRegistry,
        history: ParquetDatasetStore | None,
        stream_key: str,
        position: int | None,
        time_ns: int | None,
        generation: int | None,
        progress: Progress | None,
    ) -> None:
        self._schema, self._registry, self._history = schema, registry, history
        self._stream_key = stream_key
        self._progress = progress
        # Pinned until the end.
        self._kept = None if generation is None else _generation(schema, registry, generation)
        self._view = None if self._kept is None else self._kept.current_view()
        self._moment: Moment
        if self._view is not None:
            self._moment = {identity: at for identity, at in positions_in(self._view) if identity}
            return
        if position is None:
            assert time_ns is not None  # noqa: S101 - one of the three is given
            position = position_at(time_ns // 1_000_000 + 1) - 1
        self._moment = dict(position.parts) if isinstance(position, Token) and position.parts else int(position)

    @cached_property
    def _past(self) -> Past:
        return Past(self._schema, self._registry, self._stream_key, self._history, self._moment)

    def close(self) -> None:
        """Release the generation."""
        if self._kept is not None:
            self._kept.close()

    def check(self, without: Ranges) -> None:
        """:raises PastUnavailableError: if the state is not known any more, or is not one of the past.
        :raises ValueError: for a range that is empty, or not behind the state.
        """
        if self._view is not None and not without:  # Its rows need no log.
            return
        for pair in without:
            for one in chain(*self._past.logs):
                first, last = range_in(one, pair) or (one.at + 1, one.at + 1)
                if first > last or (first <= one.at and one.at > one.begins):
                    raise ValueError(f"without {first}..{last}: expected positions behind {one.at}, in ascending order")

    def rows(self, load: int, again: Ranges | None) -> Iterator[pa.RecordBatch]:
        """The rows; with ``again`` also what was pushed since, up to the beginning of ``load``, without the ranges."""
        if self._view is not None and again is None:
            yield from _canonical(self._schema, scan_view(self._view, None, None, None))
            return
        for segment in self._segments(load, again):
            yield from _canonical(self._schema, scan_view(segment.current_view(), None, None, None))

    def _segments(self, load: int, again: Ranges | None) -> Iterator[Segment]:
        served = _served(self._registry, self._schema)
        limit = served.max_id_bytes or _MAX_ID_BYTES
        if self._view is None:
            capacity = max(_CAPACITY, served.row_count or 0)
            yield from self._past.segments(load, again, capacity=capacity, max_id_bytes=limit, alive=self._alive)
            return
        from quorin.layout import insert_many

        capacity = max(1, int(self._view.header["entity_count"]))
        segment = self._registry.create(self._schema, capacity=capacity, max_id_bytes=limit, set_current=False)
        try:
            for batch in _canonical(self._schema, scan_view(self._view, None, None, None)):
                insert_many(segment, batch)
            self._past.apply_again(segment, load, again or (), self._alive)
            yield segment
        finally:
            self._registry.discard(segment)

    def _alive(self) -> None:
        if self._progress is not None:
            self._progress(0)


def _generation(schema: Schema, registry: SegmentRegistry, generation: int) -> Segment:
    """A generation of this node's segment that is kept or pinned, pinned by this process too."""
    try:
        segment = registry.open_stored(schema.__name__, pin=generation)
    except GenerationNotFoundError as error:
        raise PastUnavailableError(str(error)) from error
    if segment.partitioning.is_partial:
        segment.close()
        raise PastUnavailableError(
            f"generation {generation} of {schema.__name__!r} has the partitions {segment.partitioning}, not all rows: "
            "expected a position or a time, or a node that holds all partitions"
        )
    return segment


def _positions_in(position: int) -> list[int]:
    """The positions of a token; a position that is no token alone."""
    parts = [at for _, at in position.parts] if isinstance(position, Token) else []
    return parts or [int(position)]


def _canonical(schema: Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Rows of a segment as canonical batches, of the fields that the schema has."""
    names = {field.name for field in schema.fields}
    for batch in batches:
        kept = [name for name in batch.schema.names if name in names]
        columns = {name: batch.column(name) for name in [ENTITY_ID, EVENT_TIME, *kept]}
        lacking = {name: pa.nulls(len(batch)) for name in names.difference(kept)}
        yield to_batch(schema, pa.table({**columns, **lacking}))
