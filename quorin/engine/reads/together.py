"""Rows of several segments as they are at one position of the log.

The *applied position* of a segment is one up to which it has every entry of the log that is its own: the one in its
header, or a later one if the log is known to have nothing more for it. A read notes the lowest applied position *P* of
all segments, and then reads. A row that it finds with a log position of *P* or before is the row at *P*: all entries up
to *P* had been applied when it was read, and the entry that wrote it is the last of those that count. A row written
after *P* is refused by the kernel, a generation that was replaced or forgot a deletion after *P* beforehand, and the
read begins again. So an answer is right whatever the process that applies
does meanwhile, and that it pauses now and then for those who ask (:mod:`quorin.engine.memory.pauses`) only bounds how
often a read has to begin again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from quorin.engine.format import segment as fmt
from quorin.engine.memory.parts import check_one_partition
from quorin.engine.memory.pauses import Asking
from quorin.engine.reads.readers import ColumnReader
from quorin.engine.rows.intake import id_array
from quorin.errors import InconsistentReadError

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from quorin.engine.memory.view import SegmentView
    from quorin.engine.reads.ages import MaxAge
    from quorin.engine.reads.columns import Columns
    from quorin.shm import Segment

T = TypeVar("T")

DEFAULT_TIMEOUT_MS = 100.0
_POLL_SECONDS = 0.000_05
_MAX_REACHED = 1024
_LOG_IDENTITY, _POSITION, _FORGOTTEN = (
    fmt.partition_offset(name) for name in ("log_identity", "position", "forgotten")
)


class _Seen(NamedTuple):
    """A segment's generation, the log that it follows, and up to where it had applied it."""

    view: SegmentView
    log_identity: int
    position: int


class Together(NamedTuple):
    """Rows of several segments as they are at ``position`` of the log: a batch of each."""

    position: int
    batches: list[pa.RecordBatch]


def read_together(
    parts: Sequence[tuple[Any, ...]],
    *,
    timeout_ms: float = DEFAULT_TIMEOUT_MS,
    max_age: MaxAge | None = None,
    reach: Callable[[int, int], int] | None = None,
) -> Together:
    """Rows of several segments as they are at one position of the log: ``.position``, and ``.batches``, one for each
    part, as :func:`quorin.assembly.read` returns them.

    A part is a segment with the ids to read of it, and optionally the fields. The segments must follow one log, by one
    consumer that applies all of them. Where several processes apply, each its own segments, pass a ``reach`` as for
    :func:`at_one_position`. A consumer at full speed pauses for milliseconds, so that a read of many rows succeeds.

    :raises InconsistentReadError: after ``timeout_ms``, naming segments and positions. :raises EntityIdError,
        InvalidRowError, InvalidMaxAgeError: as :func:`quorin.assembly.read`. :raises PartitionedError: with several
        partitions, which have no position in common.
    """
    segments = [segment for segment, *_ in parts]
    readers = [ColumnReader(segment, *fields, max_age=max_age) for segment, _, *fields in parts]
    ids = [id_array(entity_ids) for _, entity_ids, *_ in parts]

    def read_up_to(position: int) -> list[Columns]:
        now_ns = time.time_ns()
        pairs = zip(readers, ids, strict=True)
        return [reader(of_part, now_ns=now_ns, at_most=position) for reader, of_part in pairs]

    position, columns = at_one_position(lambda: segments, read_up_to, timeout_ms=timeout_ms, reach=reach)
    return Together(position, [one.to_batch() for one in columns])


def at_one_position(
    segments: Callable[[], Sequence[Segment]],
    read: Callable[[int], T],
    *,
    timeout_ms: float = DEFAULT_TIMEOUT_MS,
    reach: Callable[[int, int], int] | None = None,
    reached: dict[tuple[str, int], int] | None = None,
) -> tuple[int, T]:
    """Call ``read(position)`` until all rows that it reads of some segments are as they are at that position. Returns
    the position, and what ``read`` returned.

    ``read`` passes the position as ``at_most`` to readers of :mod:`quorin.assembly`, which raise if a row is after it.
    ``reach(i, position)`` is called where segment ``i`` is behind another: it applies what the log has for it after
    ``position``, if that is this process's task, and returns the position up to which it then has all; 0 if unknown.
    ``reached`` keeps what it returned for later calls.

    :raises InconsistentReadError: after ``timeout_ms``; the text names the segment that was ahead, or behind.
    """
    deadline: float | None = None
    reached = {} if reached is None else reached
    if len(reached) > _MAX_REACHED:
        reached.clear()
    with ExitStack() as asking:
        asked: set[Path] = set()
        while True:
            seen = [_seen(segment.current_view()) for segment in segments()]
            applied = [max(one.position, reached.get((one.view.name, one.log_identity), 0)) for one in seen]
            try:
                _check_one_log(seen)
                _check_known(seen, min(applied))
                result = read(min(applied))
                # A writer that overtakes another may lack rows for a moment, until it has read the log again.
                if [_seen(one.current_view())[:2] for one in segments()] == [one[:2] for one in seen]:
                    return min(applied), result
                problem = "a segment was replaced"
            except InconsistentReadError as error:
                problem = str(error)
            now = time.monotonic()
            if deadline is None:
                deadline = now + timeout_ms / 1000
            elif now > deadline:
                raise InconsistentReadError(f"{_positions(seen, applied)}, for {timeout_ms:g} ms: {problem}")
            for i, one in enumerate(seen):
                if applied[i] < max(applied) and reach is not None and not one.view.pinned:
                    end = reach(i, one.position)
                    # What made the segment grow is not in the generation that was seen.
                    if segments()[i].current_view() is one.view:
                        reached[one.view.name, one.log_identity] = max(applied[i], end)
                if one.view.path not in asked:
                    asked.add(one.view.path)
                    asking.callback(Asking(one.view.path).end)
            time.sleep(_POLL_SECONDS)


def _seen(view: SegmentView) -> _Seen:
    """:raises PartitionedError: for a segment of several partitions, which have no position in common."""
    check_one_partition(view, "rows at one position of the log")
    from quorin.engine import kernels

    # In this order: the position is of this log, or 0, or of a later log, which the second look finds.
    identity = int(kernels.load_acquire(view.mapping.address + _LOG_IDENTITY))
    return _Seen(view, identity, int(kernels.load_acquire(view.mapping.address + _POSITION)))


def _check_one_log(seen: Sequence[_Seen]) -> None:
    if len({one.log_identity for one in seen}) > 1:
        raise InconsistentReadError("the segments follow different logs, or one has met none yet")


def _check_known(seen: Sequence[_Seen], position: int) -> None:
    """Refuse a generation that does not tell what it held at a position: a load replaced its rows after that, or growth
    has forgotten a later deletion.
    """
    from quorin.engine import kernels

    for one in seen:
        forgotten = int(kernels.load_acquire(one.view.mapping.address + _FORGOTTEN))
        if forgotten > position:
            raise InconsistentReadError(f"segment {one.view.name!r} knows only its rows since position {forgotten}")


def _positions(seen: Sequence[_Seen], applied: Sequence[int]) -> str:
    shown = ", ".join(f"{one.view.name!r} at {position}" for one, position in zip(seen, applied, strict=True))
    return f"the segments were not at one position of the log: {shown}"
