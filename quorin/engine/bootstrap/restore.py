"""A segment from the newest snapshot of a store that fits; nothing points to it yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorin.engine.backend.keys import DEFAULT_STREAM_KEY
from quorin.engine.bootstrap import image
from quorin.engine.bootstrap.names import FROM_THE_START, Wanted, newest_first, one_beginning
from quorin.engine.format.growth import counts_before
from quorin.engine.history.storage import VanishedError
from quorin.engine.memory.generations import next_generation
from quorin.engine.memory.growth import evolve
from quorin.engine.memory.view import SegmentView
from quorin.engine.rows.compatibility import can_upgrade
from quorin.errors import CorruptSnapshotError, PartitionCountError, QuorinError
from quorin.logging import get_logger
from quorin.schema import schema_to_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from quorin.engine.backend import Beginning
    from quorin.engine.bootstrap.image import Head, Progress, Source
    from quorin.engine.bootstrap.names import SnapshotFile
    from quorin.engine.bootstrap.store import SnapshotStore
    from quorin.engine.format.partition import Partitioning
    from quorin.schema import Schema
    from quorin.shm import Segment, SegmentRegistry

_log = get_logger(__name__)


class UnfitSnapshotError(QuorinError, ValueError):
    """A snapshot holds other rows than those that are needed; the message says which."""


def restore_newest(
    schema: Schema,
    store: SnapshotStore,
    registry: SegmentRegistry,
    *,
    stream_key: str = DEFAULT_STREAM_KEY,
    beginning: Beginning | None = None,
    from_position: int = 0,
    any_log: bool = False,
    progress: Progress | None = None,
) -> Segment | None:
    """A segment from the newest snapshot that fits, open for writing; None if none does. Nothing points to it yet:
    ``registry.publish`` makes it current.

    A snapshot fits if it is of this deployment's log ``stream_key``, at ``from_position`` or behind it, and holds
    ``schema`` or a version that can be upgraded to it, which happens here. Its position is the log's, so a consumer
    reads on from there. It must have the schema's ``beginning``, else its rows are of a schema of that name which was
    dropped. With ``any_log`` snapshots of another log fit too, such as of one that was wiped: their rows
    are right, as event times decide, and the consumer reads the whole log.

    A snapshot that is damaged, cut short or of another release is skipped with a warning, and the next older one is
    taken. A crash leaves a segment file that nothing points to, for the watchdog.

    :raises SnapshotUnavailableError: if the store cannot be listed or read.
    :raises SharedMemoryError: if there is no room in shared memory.
    """
    identity, begins = registry.backend.log(stream_key).identity(), FROM_THE_START if beginning is None else beginning
    for file in newest_first(store.snapshots(schema.__name__), identity):
        follows_log = file.log_identity == identity
        is_wanted = file.position >= from_position if follows_log else any_log
        if not is_wanted or file.beginning != begins:
            continue
        wanted = Wanted(identity, beginning, from_position)
        segment = _restored(store, file, schema, registry, wanted, any_log=any_log, progress=progress)
        if segment is not None:
            return segment
    return None


def restore_parts(
    schema: Schema,
    store: SnapshotStore,
    registry: SegmentRegistry,
    wanted: Wanted,
    *,
    any_log: bool = False,
    progress: Progress | None = None,
) -> Segment | None:
    """:func:`restore_newest` with several partitions, from the nodes that hold all partitions of this one. Rows of
    others are left out; until they are, the segment needs as much memory as the one that was copied.

    A snapshot fits if each partition's log is that of ``wanted``, at its position or behind it.
    """
    found = [(own, file) for own in store.covering(registry.partitioning) for file in own.snapshots(schema.__name__)]
    for own, file in sorted(found, key=lambda one: (one[1].position, one[1].taken_ns, one[1].path), reverse=True):
        if file.beginning == one_beginning(wanted.beginning):
            segment = _restored(own, file, schema, registry, wanted, any_log=any_log, progress=progress)
            if segment is not None:
                return segment
    return None


def _restored(
    store: SnapshotStore,
    file: SnapshotFile,
    schema: Schema,
    registry: SegmentRegistry,
    wanted: Wanted,
    *,
    any_log: bool,
    progress: Progress | None,
) -> Segment | None:
    """A segment from a snapshot; None if it does not fit after all."""
    try:
        with store.open(file) as source:
            return received(source, schema, registry, wanted, any_log=any_log, progress=progress)
    except VanishedError:  # Another process has pruned it.
        return None
    except (CorruptSnapshotError, UnfitSnapshotError) as error:
        _log.warning("snapshot_skipped", schema=schema.__name__, snapshot=file.name, reason=str(error))
        return None


def received(
    source: Source,
    schema: Schema,
    registry: SegmentRegistry,
    wanted: Wanted,
    *,
    any_log: bool,
    progress: Progress | None,
) -> Segment:
    """A segment of ``schema`` from a snapshot's bytes, of the partitions that the node holds. ``wanted`` has the
    identity of the log that a consumer will read, or of the log of each partition.

    :raises CorruptSnapshotError: if it is damaged. :raises UnfitSnapshotError: if it holds something else.
    :raises SharedMemoryError: if there is no room in shared memory.
    """
    head, held = image.read_head(source), registry.partitioning
    follows_log = held.count > 1 or head.log_identity == wanted.log_identity
    obstacle = _of_other_partitions(head, held, wanted, any_log=any_log)
    if obstacle is None:
        obstacle = _obstacle(head, schema) if follows_log or any_log else f"it is of log {head.log_identity:016x}"
    if obstacle is not None:
        raise UnfitSnapshotError(obstacle)
    view = image.receive(source, head, registry, follows_log=follows_log, progress=progress)
    segment = reduced(registry.adopt(view), registry, held)
    try:
        if schema_to_json(segment.stored_schema) != schema_to_json(schema):
            segment = _changed(segment, registry, lambda: evolve(segment, schema))
    except BaseException:
        registry.discard(segment)
        raise
    _log.info(
        "snapshot_restored", schema=schema.__name__, snapshot=source.name, segment=segment.name, rows=head.rows,
        bytes=head.image_bytes, position=head.position if follows_log else 0,
    )  # fmt: skip
    return segment


def held_of(head: Head, registry: SegmentRegistry, name: str) -> Partitioning:
    """The partitions that a segment from a snapshot holds on this node: all that the node holds.

    :raises PartitionCountError: if the snapshot lacks one, or the deployment never had its number of partitions.
    """
    theirs, backend = head.partitioning, registry.backend
    count = backend.partitions()
    if theirs.count not in (count, *counts_before(backend.control.growth())):
        raise PartitionCountError(
            f"{name} is of {theirs.count} partitions, and the deployment {backend.address} has {count}"
        )
    held = registry.partitioning_at(theirs.count)
    if not theirs.held >= held.held:
        raise PartitionCountError(
            f"{name} has the partitions {theirs}, and this node holds {held}: expected a snapshot that has all of them"
        )
    return held


def _obstacle(head: Head, schema: Schema) -> str | None:
    if schema_to_json(head.schema) == schema_to_json(schema):
        return None
    fits, reasons = can_upgrade(head.schema, schema)
    versions = f"{schema.__name__} version {head.schema.version} cannot become version {schema.version}"
    return None if fits else f"{versions}: {'; '.join(reasons)}"


def _of_other_partitions(head: Head, held: Partitioning, wanted: Wanted, *, any_log: bool) -> str | None:
    """Why a snapshot does not have all partitions that the node holds, or leaves a gap to one's log; None if it fits.
    With ``any_log`` what a log lacks, or another log, is left to the consumer.
    """
    theirs = head.partitioning
    if theirs.count != held.count or not theirs.held >= held.held:
        return f"it has the partitions {theirs}, expected {held}"
    for partition, identity, from_position in () if any_log else wanted.parts:
        own_identity, position = head.parts[partition]
        if own_identity != identity:
            return f"its partition {partition} follows log {own_identity:016x}, this one is {identity:016x}"
        if position < from_position:
            return f"its partition {partition} is at position {position}, and the log begins behind {from_position}"
    return None


def reduced(segment: Segment, registry: SegmentRegistry, held: Partitioning) -> Segment:
    """A segment that nothing points to yet, without the rows of partitions that are not held. It is discarded if that
    fails.

    :raises CapacityExceededError: if memory is out.
    """
    if segment.partitioning == held:
        return segment

    def reduce() -> None:
        with segment.writing:
            view = segment.writing_view()
            segment.replace(next_generation(view, view.stored, capacity=view.layout.capacity, partitioning=held))

    try:
        return _changed(segment, registry, reduce)
    except BaseException:
        registry.discard(segment)
        raise


def _changed(segment: Segment, registry: SegmentRegistry, change: Callable[[], object]) -> Segment:
    """The next generation, opened by its own schema; until now nobody else can have found the segment."""
    segment.acquire_writer_lease()
    change()
    path = segment.current_view().path
    segment.close()
    return registry.adopt(SegmentView.attach(path, None, writable=True))
