"""A schema's rows as they were at a position of the log, from the history and from what the log still has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from quorin.engine.consumer.stage import Stage
from quorin.engine.history.tail import commits_in
from quorin.engine.memory.staged import Staged
from quorin.errors import PastUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quorin.engine.backend import Log
    from quorin.offline import ParquetDatasetStore
    from quorin.schema import Schema
    from quorin.shm import Segment, SegmentRegistry

Ranges = Sequence[tuple[int, int]]


@contextmanager
def past_segment(
    schema: Schema,
    registry: SegmentRegistry,
    log: Log,
    history: ParquetDatasetStore | None,
    position: int,
    *,
    capacity: int,
    max_id_bytes: int,
    alive: Callable[[], None],
) -> Iterator[Segment]:
    """A segment with the rows of a schema at a position; it is removed at the end of the block.

    :raises PastUnavailableError: if neither the log nor the history reaches back that far.
    """
    name = schema.__name__
    trimmed, known = log.bounds().trimmed, () if history is None else history.load(schema).counted.commits
    commits = [commit for commit in known if commit.position <= position]
    commits += commits_in(log, name, trimmed, position)
    begins = registry.backend.control.beginnings().get(name)
    start = 0 if begins is None or begins.log_identity != log.identity() else begins.position
    begin = max([start, *(commit.begin for commit in commits)])
    if trimmed > begin and history is None:
        raise PastUnavailableError(
            f"the rows of {name!r} at position {position} are not known: the log begins behind {trimmed}, and there is "
            "no history"
        )
    segment = registry.create(schema, capacity=capacity, max_id_bytes=max_id_bytes, set_current=False)
    staged = Staged(segment)
    try:
        stage = Stage(staged, begin, log, registry.backend.control)
        if trimmed > begin and history is not None:
            stage.fill(history, position, trimmed)
        stage.complete(position, alive)
        yield segment
    finally:
        staged.discard()


def apply_again(
    segment: Segment,
    registry: SegmentRegistry,
    log: Log,
    history: ParquetDatasetStore | None,
    *,
    after: int,
    through: int,
    without: Ranges,
    alive: Callable[[], None],
) -> None:
    """Apply what was pushed between two positions to a segment, but not what is in the ranges ``without``.

    Rows of loads are left out: they did not come from pushes.

    :raises PastUnavailableError: if the log was trimmed behind ``after``, and there is no history.
    """
    trimmed = log.bounds().trimmed
    if trimmed > after and history is None:
        raise PastUnavailableError(
            f"the log begins behind {trimmed}, and there is no history: expected {after} or less"
        )
    edges = [after, *(edge for first, last in sorted(without) for edge in (first - 1, last)), through]
    for low, high in zip(edges[::2], edges[1::2], strict=True):
        low, high = max(low, after), min(high, through)
        if low < high:
            stage = Stage(Staged(segment), low, log, registry.backend.control)
            if trimmed > low and history is not None:
                stage.fill_pushed(history, high, trimmed)
            stage.complete(high, alive)
