"""Fill a segment with the rows of a history: a new one, or one that is older than the start of its log."""

from __future__ import annotations

import math
import queue
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quorin.engine.backend.beginnings import beginning_in
from quorin.engine.backend.keys import DEFAULT_STREAM_KEY
from quorin.engine.consumer.log_position import log_position_of
from quorin.engine.history.counted import Counted, common
from quorin.engine.rows.packed import text_addresses
from quorin.errors import EmptyDatasetError
from quorin.layout import apply_batch
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from quorin.engine.backend.protocols import Beginning, Beginnings
    from quorin.engine.consumer.log_position import LogPosition
    from quorin.engine.history.counted import Commit
    from quorin.engine.history.dataset import Loaded
    from quorin.offline import ParquetDatasetStore
    from quorin.schema import Schema
    from quorin.shm import Segment, SegmentRegistry

    Progress = Callable[[int, int], None]
    Batches = Iterator[tuple[int, pa.RecordBatch, pa.Array]]

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
    beginning: Beginnings = None,
) -> tuple[Segment, HydrationResult]:
    """A segment with the history's rows, open for writing; nothing points to it yet.

    Rows up to the ``beginning`` of the schema in its log are left out: they belong to a schema that was dropped. Of
    several partitions it has those that the registry's segments hold.

    :raises EmptyDatasetError: if there are none.
    """
    if not capacity_factor >= 1:
        raise ValueError(f"capacity_factor must be at least 1, got {capacity_factor!r}")
    started = time.perf_counter()
    origins = _with_common_loads(list(_origins(schema, store, registry, stream_key, beginning)))
    with _read_ahead(_batches(schema, [one for one in origins if one.has_rows], as_of_time_ns)) as batches:
        if not any(one.has_rows for one in origins):
            raise EmptyDatasetError(f"the history {store!r} has no row of {schema.__name__!r}")
        counts = [_count_entities(one.loaded) for one in origins if one.has_rows]
        entities, longest = sum(count for count, _ in counts), max(longest for _, longest in counts)
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
                _fill(segment, batches, sum(one.loaded.row_count for one in origins), as_of_time_ns, progress)
            positions = [one.commit(segment, of_now=as_of_time_ns is None) for one in origins]
        except BaseException:
            registry.discard(segment)
            raise
    result = HydrationResult(segment.name, len(segment), time.perf_counter() - started, max(positions))
    _log.info(
        "segment_hydrated", schema=schema.__name__, segment=segment.name, entities=len(segment), position=max(positions)
    )
    return segment, result


class _Origin(NamedTuple):
    """The history of one log, as it is when the log has the identity and the trimmed position."""

    partition: int | None
    identity: int
    trimmed: int
    begins: int
    loaded: Loaded

    @property
    def has_rows(self) -> bool:
        return self.loaded.row_count > 0 and not (self.begins and self.loaded.through <= self.begins)

    def commit(self, segment: Segment, *, of_now: bool) -> int:
        # The log is trimmed only behind durable rows of the history: up to there, the history is complete.
        position = max(self.loaded.through, self.trimmed, self.begins) if of_now else self.begins
        if position:
            log_position_of(segment, self.partition).commit_position(position, self.identity)
        return position


def _origins(
    schema: Schema,
    store: ParquetDatasetStore,
    registry: SegmentRegistry,
    stream_key: str,
    beginning: Beginnings,
) -> Iterator[_Origin]:
    """The history of each partition that the registry's segments hold."""
    held = registry.partitioning
    for partition in sorted(held.held):
        number = partition if held.count > 1 else None
        # Read before the files are listed: entries trimmed by now are in them. Entries trimmed later may be in files
        # that are not loaded here.
        identity, bounds = registry.backend.log(stream_key, number or 0, of=registry.partitioning.count).state()
        own = beginning_in(beginning, number)
        begins = begins_at(own, identity)
        loaded = store.of_partition(partition, held.count).load(schema)
        yield _Origin(number, identity, bounds.trimmed, begins, loaded)


def _with_common_loads(origins: list[_Origin]) -> list[_Origin]:
    """The same without commits of loads that not all of these logs have yet: a load is put in force whole."""
    begins = {commit.begin for commit in common([one.loaded.counted.commits for one in origins])}
    kept = [tuple(commit for commit in one.loaded.counted.commits if commit.begin in begins) for one in origins]
    return [
        _Origin(*one[:-1], one.loaded.counting(Counted(commits))) for one, commits in zip(origins, kept, strict=True)
    ]


def begins_at(beginning: Beginning | None, identity: int) -> int:
    """The position in the log of an identity behind which a schema's rows begin."""
    return 0 if beginning is None or beginning.log_identity != identity else beginning.position


def _batches(schema: Schema, origins: Sequence[_Origin], as_of_time_ns: int | None) -> Batches:
    for one in origins:
        newest_first, replaced = not one.loaded.has_partial_rows, as_of_time_ns is None
        yield from one.loaded.batches(schema, newest_first=newest_first, after=one.begins, replaced=replaced)


def catch_up(
    segment: Segment,
    store: ParquetDatasetStore,
    trimmed: int,
    at: LogPosition | None = None,
    identity: int | None = None,
    *,
    put_in_force: Callable[[Sequence[Commit], int], bool] = lambda _commits, _through: False,
) -> int:
    """Apply the history's rows behind a segment's position, and advance it. Returns the number of rows that changed.

    ``at`` is the segment's position in the log of one partition, whose history ``store`` is; ``identity`` is that of
    the log, by default the one that the segment follows. ``put_in_force`` is called with the loads that were committed
    since, and with the position up to which the history is known: it flips if all logs have the commit.

    For a segment that is older than the start of its log: one from a snapshot, from a disk, or of a consumer that was
    silent. ``trimmed`` is what the log was trimmed to before this call: up to there the history is complete.
    """
    at = segment if at is None else at
    loaded = store.load(segment.schema)
    through, known = max(loaded.through, trimmed), at.position
    commits = [commit for commit in loaded.counted.commits if commit.position > known]
    if commits and known:
        # What a load has replaced meanwhile is in no entry that could be applied: a new generation leaves it out.
        if put_in_force(commits, through):
            return len(segment)
        # Another log lacks the commit. When it comes, the load is staged from the history.
        loaded = loaded.counting(Counted(tuple(one for one in loaded.counted.commits if one.position <= known)))
    batches = loaded.batches(segment.schema, newest_first=not loaded.has_partial_rows, after=known)
    applied = _fill(segment, batches, 0, None, None)
    if through > known:
        at.commit_position(through, at.log_identity if identity is None else identity)
    return applied


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
