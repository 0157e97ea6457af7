"""Cold start: build a segment from the history, with the newest row of every entity.

Rows and deletions keep their event times and log positions, and go through the same kernel that applied them first. So
the segment's rows equal those that were served before, to the bit, and later events are compared with them as before.
The segment's position is the end of the history: a consumer reads the rest from the log.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from quorin.engine.backend import logs
from quorin.engine.backend.beginnings import beginning_in, beginnings_of
from quorin.engine.backend.keys import DEFAULT_STREAM_KEY
from quorin.engine.backend.protocols import Beginning, in_order
from quorin.engine.bootstrap.filling import MIN_ID_BYTES, HydrationResult, begins_at, build_segment
from quorin.engine.bootstrap.names import Wanted, WantedPart, one_beginning
from quorin.engine.bootstrap.progress import logged_progress, progress_bar
from quorin.engine.bootstrap.restore import restore_newest, restore_parts
from quorin.engine.consumer.dropped_schemas import DroppedSchemas
from quorin.engine.consumer.log_position import log_position_of
from quorin.engine.ops.presence import replica_name
from quorin.engine.repartition.first import at_the_first_count
from quorin.errors import (
    ConnectionFailedError,
    EmptyDatasetError,
    HydrationConflictError,
    PeerUnavailableError,
    SnapshotUnavailableError,
)
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quorin.engine.backend.protocols import Beginnings
    from quorin.engine.bootstrap.filling import Progress
    from quorin.engine.bootstrap.progress import ShowProgress
    from quorin.engine.consumer.history import OfflineWriter
    from quorin.offline import ParquetDatasetStore
    from quorin.schema import Schema
    from quorin.shm import Segment, SegmentRegistry
    from quorin.snapshot import Peers, SnapshotStore

__all__ = [
    "EmptyDatasetError",
    "HydrationConflictError",
    "HydrationResult",
    "at_the_first_count",
    "begin",
    "beginnings_of",
    "ends_of",
    "hydrate",
    "is_of_dropped",
    "progress_bar",
    "rebuild_segment",
]

_log = get_logger(__name__)


def hydrate(
    schema: Schema,
    store: ParquetDatasetStore,
    registry: SegmentRegistry,
    *,
    capacity_factor: float = 2.0,
    as_of_time_ns: int | None = None,
    progress: Progress | None = None,
    max_id_bytes: int = MIN_ID_BYTES,
    stream_key: str = DEFAULT_STREAM_KEY,
) -> HydrationResult:
    """Build a schema's segment from the history and make it current. The schema must not have a current segment.

    The capacity is ``capacity_factor`` times the number of entities. Ids may have ``max_id_bytes``, or as many as the
    longest id in the history. ``progress`` is called with the number of rows read so far and of all rows. With
    ``as_of_time_ns``, later events are left out, and the segment follows no log until a consumer takes it and applies
    the whole log.

    A crash leaves an orphaned segment file, which the watchdog reclaims; hydrating again starts over.

    :raises EmptyDatasetError: if the history has no row of the schema.
    :raises HydrationConflictError: if the schema has a current segment, or got one meanwhile. It is an alias of
        :class:`quorin.shm.SegmentConflictError`.
    :raises CorruptHistoryError: if a file of the history is damaged, or does not fit the schema.
    :raises HistoryUnavailableError: if a file cannot be opened or read; nothing becomes current then.
    """
    lost = registry.vacancy(schema.__name__)
    beginning = beginnings_of(registry.backend, schema.__name__)
    with at_the_first_count(registry, beginning):
        segment, result = build_segment(
            schema,
            store,
            registry,
            capacity_factor=capacity_factor,
            as_of_time_ns=as_of_time_ns,
            progress=progress,
            max_id_bytes=max_id_bytes,
            stream_key=stream_key,
            beginning=beginning,
        )
        registry.publish(segment, replacing=lost, beginning=beginning)
    segment.close()
    return result


def is_of_dropped(registry: SegmentRegistry, schema_name: str) -> bool:
    """Whether this node's segment is of a schema that was dropped and is stored again since: a consumer replaces it."""
    return DroppedSchemas(registry).begins_elsewhere(schema_name)


def ends_of(registry: SegmentRegistry, *, stream_key: str = DEFAULT_STREAM_KEY) -> Beginnings:
    """Where a schema that is stored now would begin: the end of the log, of several partitions that of each."""
    states = [log.state() for log in logs(registry.backend, stream_key)]
    ends = tuple(Beginning(identity, bounds.last) for identity, bounds in states)
    return ends[0] if len(ends) == 1 else ends


def begin(segment: Segment, registry: SegmentRegistry, beginning: Beginnings, history: OfflineWriter | None) -> None:
    """Let a new, empty segment, and the history, have only what is logged behind a beginning; the lease is held."""
    held, readable = registry.partitioning, _readable(history)
    for number, own in enumerate(in_order(beginning)):
        if number in held.held:
            log_position_of(segment, number if held.count > 1 else None).commit_position(own.position, own.log_identity)
        if readable is not None:
            # Entries for a segment that another process makes current meanwhile come after the beginning.
            readable.of_partition(number, held.count).skip_to(segment.schema, own.position)


def rebuild_segment(
    schema: Schema,
    registry: SegmentRegistry,
    *,
    beginning: Beginnings,
    capacity: int,
    max_id_bytes: int,
    history: OfflineWriter | None = None,
    snapshots: SnapshotStore | None = None,
    peers: Peers | None = None,
    stream_key: str = DEFAULT_STREAM_KEY,
    progress: Progress | None = None,
    show: ShowProgress = logged_progress,
) -> Segment:
    """A segment for a node that has none, open for writing; nothing points to it yet, and a consumer applies the rest.

    Its rows come from the first of these that has any: the newest snapshot from which the log or the history goes on
    without a gap, a peer likewise, the history, a snapshot that is older than the start of the log, or of a log that
    was wiped. It follows the log from where they end, else from the schema's ``beginning``; until it is announced, the
    log is kept for it. One from a snapshot or a peer has the capacity of the segment that was copied. ``progress`` is
    called while it is built; ``show`` shows it to people.

    :raises SnapshotUnavailableError, HistoryUnavailableError: if a source cannot be read, and no other has rows.
    :raises PeerUnavailableError: likewise, if the log was trimmed since the schema's beginning.
    :raises CorruptHistoryError: as :func:`hydrate`. :raises SharedMemoryError: if there is no room.
    """
    held, readable = registry.partitioning, _readable(history)
    numbers: list[int | None] = [*sorted(held.held)] if held.count > 1 else [None]
    logs = [registry.backend.log(stream_key, number or 0, of=held.count) for number in numbers]
    for log, number in zip(logs, numbers, strict=True):
        name = replica_name(schema.__name__, number)
        registry.backend.control.hold(registry.node.id, name, log.bounds().trimmed)
    states = [log.state() for log in logs]
    begins = [begins_at(beginning_in(beginning, n), identity) for n, (identity, _) in zip(numbers, states, strict=True)]
    # The history has every entry that was trimmed, and the consumer applies those behind the segment's position.
    lows = [bounds.trimmed if readable is None else 0 for _, bounds in states]
    wanted = _wanted(numbers, [identity for identity, _ in states], lows, beginning)
    unavailable: list[ConnectionFailedError] = []
    segment = None
    if snapshots is not None:
        from_snapshots = partial(_from_snapshots, snapshots, schema, registry, stream_key, wanted, show, progress)
        try:
            segment = from_snapshots()
        except SnapshotUnavailableError as error:
            _log.warning("snapshots_unavailable", schema=schema.__name__, error=str(error))
            unavailable.append(error)
    if segment is None and peers is not None:
        with _shown(show, f"{schema.__name__} from {peers.address}", progress) as shown:
            try:
                segment = peers.segment(schema, registry, wanted, progress=shown)
            except PeerUnavailableError as error:
                _log.warning("peers_unavailable", schema=schema.__name__, error=str(error))
                if any(low > begin for low, begin in zip(lows, begins, strict=True)):
                    unavailable.append(error)
    if segment is None and readable is not None:
        options: dict[str, Any] = {"least_capacity": capacity, "max_id_bytes": max_id_bytes, "stream_key": stream_key}
        with suppress(EmptyDatasetError), _shown(show, f"{schema.__name__} from {readable.address}", progress) as shown:
            segment, _ = build_segment(schema, readable, registry, beginning=beginning, progress=shown, **options)
    if segment is None and unavailable:
        raise unavailable[0]  # It may have rows that nothing else has.
    if segment is None and snapshots is not None:
        segment = from_snapshots(any_log=True)
    if segment is None:
        segment = registry.create(schema, capacity=capacity, max_id_bytes=max_id_bytes, set_current=False)
        for number, (identity, _), position in zip(numbers, states, begins, strict=True):
            if position:
                log_position_of(segment, number).commit_position(position, identity)
    return segment


def _wanted(
    partitions: list[int | None], identities: list[int], from_positions: list[int], beginning: Beginnings
) -> Wanted:
    """What a snapshot has to fit: the only log (the partition None), or that of each partition."""
    parts = zip(partitions, identities, from_positions, strict=True)
    of_several = tuple(WantedPart(number, identity, low) for number, identity, low in parts if number is not None)
    if of_several:
        return Wanted(0, one_beginning(beginning), 0, of_several)
    return Wanted(identities[0], beginning_in(beginning, None), from_positions[0])


def _from_snapshots(
    snapshots: SnapshotStore,
    schema: Schema,
    registry: SegmentRegistry,
    stream_key: str,
    wanted: Wanted,
    show: ShowProgress,
    progress: Progress | None,
    *,
    any_log: bool = False,
) -> Segment | None:
    with _shown(show, f"{schema.__name__} from {snapshots.address}", progress) as shown:
        if wanted.parts:
            return restore_parts(schema, snapshots, registry, wanted, any_log=any_log, progress=shown)
        return restore_newest(
            schema,
            snapshots,
            registry,
            stream_key=stream_key,
            beginning=wanted.beginning,
            from_position=0 if any_log else wanted.from_position,
            any_log=any_log,
            progress=shown,
        )


def _readable(history: OfflineWriter | None) -> ParquetDatasetStore | None:
    """The history if rows can be read from it: one that a user wrote may only take them."""
    from quorin.offline import ParquetDatasetStore

    return history if isinstance(history, ParquetDatasetStore) else None


@contextmanager
def _shown(show: ShowProgress, what: str, progress: Progress | None) -> Iterator[Progress]:
    """One function for the progress that people see, and for the caller's own."""
    with show(what) as shown:

        def both(done: int, total: int) -> None:
            shown(done, total)
            if progress is not None:
                progress(done, total)

        yield both
