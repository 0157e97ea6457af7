"""Cold start: build a segment from the history, with the newest row of every entity.

Rows and deletions keep their event times and log positions, and go through the same kernel that applied them first. So
the segment's rows equal those that were served before, to the bit, and later events are compared with them as before.
The segment's position is the end of the history: a consumer reads the rest from the log.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quorin.engine.backend.keys import DEFAULT_STREAM_KEY
from quorin.engine.bootstrap.names import Wanted
from quorin.engine.bootstrap.progress import logged_progress
from quorin.engine.bootstrap.restore import restore_newest
from quorin.engine.memory.staged import Staged
from quorin.engine.rows.packed import text_addresses
from quorin.errors import (
    ConnectionFailedError,
    EmptyDatasetError,
    HydrationConflictError,
    PeerUnavailableError,
    SnapshotUnavailableError,
)
from quorin.layout import apply_batch
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from quorin.engine.backend import Beginning
    from quorin.engine.bootstrap.progress import ShowProgress
    from quorin.engine.consumer.history import OfflineWriter
    from quorin.engine.consumer.progress import Progress as Position
    from quorin.engine.history.dataset import Loaded
    from quorin.offline import ParquetDatasetStore
    from quorin.schema import Schema
    from quorin.shm import Segment, SegmentRegistry
    from quorin.snapshot import Peers, SnapshotStore

    Progress = Callable[[int, int], None]
    Batches = Iterator[tuple[int, pa.RecordBatch, pa.Array]]

__all__ = ["EmptyDatasetError", "HydrationConflictError", "HydrationResult", "hydrate"]

_BATCHES_AHEAD = 10
"""Decoded while entities are counted and memory is reserved; a batch takes a few megabytes."""
_BITMAP_BITS = (16, 27)
MIN_ID_BYTES = 64
_POPULATED_BYTES = 16 << 20
"""Mapped at a time: meanwhile no other thread of the process can map memory."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HydrationResult:
    """The segment that was built, its number of entities, and the log position behind which a consumer continues (0:
    from the log's start).
    """

    segment_name: str
    entity_count: int
    elapsed_seconds: float
    position: int


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
    beginning = registry.backend.control.beginnings().get(schema.__name__)
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


def build_segment(
    schema: Schema,
    store: ParquetDatasetStore,
    registry: SegmentRegistry,
    *,
    capacity_factor: float = 2.0,
    least_capacity: int = 1,
    as_of_time_ns: int | None = None,
    progress: Progress | None = None,
    max_id_bytes: int = MIN_ID_BYTES,
    stream_key: str = DEFAULT_STREAM_KEY,
    beginning: Beginning | None = None,
) -> tuple[Segment, HydrationResult]:
    """A segment with the history's rows, open for writing; nothing points to it yet.

    Rows up to the ``beginning`` of the schema in this log are left out: they belong to a schema that was dropped.

    :raises EmptyDatasetError: if there are none.
    """
    if not capacity_factor >= 1:
        raise ValueError(f"capacity_factor must be at least 1, got {capacity_factor!r}")
    started = time.perf_counter()
    # Read before the files are listed: entries trimmed by now are in them. Entries trimmed later may be in files that
    # are not loaded here.
    identity, bounds = registry.backend.log(stream_key).state()
    loaded = store.load(schema)
    begins = 0 if beginning is None or beginning.log_identity != identity else beginning.position
    if not loaded.row_count or (begins and loaded.through <= begins):
        raise EmptyDatasetError(f"the history {store!r} has no row of {schema.__name__!r}")
    newest_first, replaced = not loaded.has_partial_rows, as_of_time_ns is None
    batches_read = loaded.batches(schema, newest_first=newest_first, after=begins, replaced=replaced)
    with _read_ahead(batches_read) as batches:
        entities, longest = _count_entities(loaded)
        capacity = max(least_capacity, math.ceil(capacity_factor * entities))
        segment = registry.create(
            schema,
            capacity=capacity,
            max_id_bytes=max(max_id_bytes, longest),
            set_current=False,
            prefault_rows=0,  # Another thread maps their memory, see _populating.
        )
        try:
            with _populating(segment, entities):
                _fill(segment, batches, loaded.row_count, as_of_time_ns, progress)
            # The log is trimmed only behind durable rows of the history: up to there, the history is complete.
            position = max(loaded.through, bounds.trimmed, begins) if as_of_time_ns is None else begins
            if position:
                segment.commit_position(position, identity)
        except BaseException:
            registry.discard(segment)
            raise
    result = HydrationResult(segment.name, len(segment), time.perf_counter() - started, position)
    _log.info(
        "segment_hydrated", schema=schema.__name__, segment=segment.name, entities=len(segment), position=position
    )
    return segment, result


def rebuild_segment(
    schema: Schema,
    registry: SegmentRegistry,
    *,
    beginning: Beginning | None,
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
    log, readable = registry.backend.log(stream_key), _readable(history)
    registry.backend.control.hold(registry.node.id, schema.__name__, log.bounds().trimmed)
    identity, bounds = log.state()
    begins = 0 if beginning is None or beginning.log_identity != identity else beginning.position
    # The history has every entry that was trimmed, and the consumer applies those behind the segment's position.
    wanted = Wanted(identity, beginning, bounds.trimmed if readable is None else 0)
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
                if wanted.from_position > begins:
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
        if begins:
            segment.commit_position(begins, identity)
    return segment


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


def catch_up(segment: Segment, store: ParquetDatasetStore, trimmed: int, at: Position | None = None) -> int:
    """Apply the history's rows behind a segment's position, and advance it. Returns the number of rows that changed.

    ``at`` is the segment's position in the log of one partition, whose history ``store`` is.

    For a segment that is older than the start of its log: one from a snapshot, from a disk, or of a consumer that was
    silent. ``trimmed`` is what the log was trimmed to before this call: up to there the history is complete.
    """
    at = segment if at is None else at
    loaded = store.load(segment.schema)
    through = max(loaded.through, trimmed)
    is_replaced = any(commit.position > at.position for commit in loaded.counted.commits)
    after = 0 if is_replaced else at.position
    batches = loaded.batches(segment.schema, newest_first=not loaded.has_partial_rows, after=after)
    if is_replaced:
        # What a load has replaced meanwhile is in no entry that could be applied: a new generation leaves it out.
        staged = Staged.beside(segment, segment.schema)
        applied = _fill(staged.segment, batches, 0, None, None)
        staged.put_in_force(segment, position=max(through, at.position), log_identity=at.log_identity)
        return applied
    applied = _fill(segment, batches, 0, None, None)
    if through > at.position:
        at.commit_position(through, at.log_identity)
    return applied


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


def _fill(segment: Segment, batches: Batches, total: int, as_of_time_ns: int | None, progress: Progress | None) -> int:
    done = applied = 0
    for kind, batch, positions in batches:
        done += len(batch)
        if as_of_time_ns is not None:
            earlier = pc.less_equal(batch.column(1), as_of_time_ns)
            batch, positions = batch.filter(earlier), positions.filter(earlier)
        applied += apply_batch(segment, batch, position=positions, kind=kind, keeps_deletions=True)
        if progress is not None:
            progress(done, total)
    return applied


@contextmanager
def _populating(segment: Segment, rows: int) -> Iterator[None]:
    """While ``rows`` rows are written, another thread maps their memory, ahead of the writes."""
    view, stopping = segment.current_view(), threading.Event()

    def populate() -> None:
        end = view.layout.bytes_of_rows(rows)
        for start in range(0, end, _POPULATED_BYTES):
            if stopping.is_set():
                return
            view.mapping.populate(start, min(start + _POPULATED_BYTES, end))

    thread = threading.Thread(target=populate, name="quorin-populate", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


@contextmanager
def _read_ahead(batches: Batches) -> Iterator[Batches]:
    """The same batches, decoded ahead by another thread, which starts at once."""
    ready: queue.Queue[Any] = queue.Queue(_BATCHES_AHEAD)
    stopping = threading.Event()

    def put(item: Any) -> None:
        while not stopping.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def decode() -> None:
        try:
            for item in batches:
                put(item)
                if stopping.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - it is raised where the batches are used
            put(error)

    def decoded() -> Batches:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=decode, name="quorin-history-reader", daemon=True)
    thread.start()
    try:
        yield decoded()
    finally:
        stopping.set()
        thread.join()


def _count_entities(loaded: Loaded) -> tuple[int, int]:
    """The number of entities, within a few per cent, and the size in bytes of the longest id.

    By linear counting: each id sets the bit at its hash, and the number of unset bits estimates the number of ids.
    """
    from quorin.engine import kernels

    least, most = _BITMAP_BITS
    size = 1 << max(least, min(most, loaded.row_count.bit_length()))
    bitmap = np.zeros(size, np.uint8)
    longest = 0
    for _, batch in loaded.keys(["entity_id"], use_threads=False):
        ids = batch.column(0)
        offsets, _, data = text_addresses(ids)
        longest = max(longest, kernels.mark_ids(offsets, data, len(ids), bitmap))
    unset = max(1, size - int(np.count_nonzero(bitmap)))
    return min(loaded.row_count, math.ceil(1.02 * size * math.log(size / unset)) + 1), longest
