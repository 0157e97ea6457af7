"""Growth, compaction and upgrades: build the next generation of a segment, then flip. Readers go on meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorin import metrics
from quorin.engine.memory import file as mapping
from quorin.engine.memory.generations import next_generation
from quorin.errors import CorruptSegmentError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from quorin.engine.format.partition import Partitioning
    from quorin.engine.memory.segment import Segment
    from quorin.engine.memory.view import SegmentView
    from quorin.schema import Schema


_log = get_logger(__name__)


def grow(segment: Segment, *, rows: bool, heap_bytes: int, keeps_deletions: bool = False) -> None:
    """Replace a segment that is full by one with room; the caller holds the writer lease.

    ``rows`` asks for twice the entities; ``heap_bytes`` is the room that is needed for new variable-size values. What
    updates left behind in the heap stays behind, and so do old deletions, unless ``keeps_deletions``. A crash at any
    point leaves the old generation in force, or the new one.

    :raises CapacityExceededError: if memory is out, or the format's limit of rows is reached.
    :raises WriterFencedError: if another process overtook this one.
    """
    view = segment.writing_view()
    capacity = view.layout.capacity * 2 if rows else view.layout.capacity
    successor = next_generation(
        view,
        view.stored,
        capacity=capacity,
        heap_bytes=heap_bytes,
        keeps_deletions=keeps_deletions,
        copied=lambda _: segment.heartbeat(),
    )
    segment.replace(successor)
    metrics.growths.labels(view.schema.__name__).inc()
    _log.info("segment_grown", old=view.name, new=segment.name, capacity=capacity, rows=len(segment))


def evolve(
    segment: Segment,
    schema: Schema,
    *,
    still_wanted: Callable[[], bool] = lambda: True,
    progress: Callable[[int], None] | None = None,
) -> bool:
    """Carry a segment over to a schema that can follow its own; the caller holds the writer lease.

    The rows that are applied already keep their position, so that nothing is applied twice or left out. A crash at any
    point leaves the old generation in force, or the new one. False, and nothing has changed, if ``still_wanted`` says
    so when the copy is made. ``progress`` is told now and then how many rows are copied.

    :raises CapacityExceededError: if memory is out.
    :raises WriterFencedError: if another process overtook this one.
    """
    with segment.writing:
        view = segment.writing_view()

        def copied(rows: int) -> None:
            segment.heartbeat()
            if progress is not None:
                progress(rows)

        successor = next_generation(view, schema, capacity=view.layout.capacity, copied=copied)
        if not still_wanted():
            mapping.unlink(successor.path)
            return False
        segment.replace(successor, keeping="upgrade")
    metrics.upgrades.labels(schema.__name__).inc()
    _log.info(
        "segment_upgraded",
        old=view.name,
        new=segment.name,
        from_version=view.stored.version,
        to_version=schema.version,
        rows=len(segment),
    )
    return True


def repartition(segment: Segment, partitioning: Partitioning, logs: Sequence[int], position: int) -> bool:
    """Carry a segment over to more partitions, whose logs have these identities; the caller holds the writer lease.

    Everything up to ``position``, behind which the logs begin, is applied: all of the logs before them. False if the
    segment has as many partitions already. A crash at any point leaves the old generation in force, or the new one.

    :raises CapacityExceededError: if memory is out.
    :raises CorruptSegmentError: if the new generation lacks rows; the old one stays in force.
    :raises WriterFencedError: if another process overtook this one.
    """
    with segment.writing:
        view = segment.writing_view()
        if view.partitioning.count >= partitioning.count:
            return False
        successor = next_generation(
            view,
            view.stored,
            capacity=view.layout.capacity,
            keeps_deletions=True,
            copied=lambda _: segment.heartbeat(),
            partitioning=partitioning,
        )
        _check_rows(view, successor)
        table = successor.header["partitions"]
        table["log_identity"][: len(logs)] = logs
        for number in partitioning.held:
            table["position"][number] = position
        segment.replace(successor)
    _log.info("segment_repartitioned", old=view.name, new=segment.name, partitions=str(partitioning), rows=len(segment))
    return True


def _check_rows(view: SegmentView, successor: SegmentView) -> None:
    """:raises CorruptSegmentError: if a successor that holds the same partitions has not as many rows."""
    if not view.partitioning.at(successor.partitioning.count).held <= successor.partitioning.held:
        return
    counters = "entity_count", "deleted_count"
    rows, carried = ([int(one.header[counter]) for counter in counters] for one in (view, successor))
    if rows != carried:
        mapping.unlink(successor.path)
        raise CorruptSegmentError(f"segment {view.name!r} has {rows} rows and deletions, its successor got {carried}")
