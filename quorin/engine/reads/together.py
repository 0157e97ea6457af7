"""Rows of several segments as they are at one position of the log.

The *applied position* of a segment is one up to which it has every entry of the log that is its own: the one in its
header, or a later one if the log is known to have nothing more for it. A read notes the lowest applied position *P* of
all segments, and then reads. A row that it finds with a log position of *P* or before is the row at *P*: all entries up
to *P* had been applied when it was read, and the entry that wrote it is the last of those that count. A row written
after *P* is refused by the kernel, a generation that was replaced or forgot a deletion after *P* beforehand, and the
read begins again. So an answer is right whatever the process that applies
does meanwhile, and that it pauses now and then for those who ask (:mod:`quorin.engine.memory.pauses`) only bounds how
often a read has to begin again.

With several partitions, *P* is a token, which has a position of each partition's log, and all of this holds for each
partition: an entity is in one of them, and its row is compared with the position of that one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from quorin.engine.log.token import Token
from quorin.engine.memory.parts import forgotten_in, positions_in
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
_MAX_REACHED = 4096

_Positions = Sequence[int]
"""A position of each partition that is held, in order; of the only log, one."""


class _Seen(NamedTuple):
    """A segment's generation, which log it follows in each partition, and up to where it had applied that."""

    view: SegmentView
    identities: tuple[int, ...]
    positions: tuple[int, ...]


class Together(NamedTuple):
    """Rows of several segments as they are at ``position`` of the log: a batch of each. With several partitions the
    position is a token.
    """

    position: int | Token
    batches: list[pa.RecordBatch]


def read_together(
    parts: Sequence[tuple[Any, ...]],
    *,
    timeout_ms: float = DEFAULT_TIMEOUT_MS,
    max_age: MaxAge | None = None,
    reach: Callable[[int, int | Token], int | Token] | None = None,
) -> Together:
    """Rows of several segments as they are at one position of the log: ``.position``, and ``.batches``, one for each
    part, as :func:`quorin.assembly.read` returns them.

    A part is a segment with the ids to read of it, and optionally the fields. The segments must follow one log, by one
    consumer that applies all of them. Where several processes apply, each its own segments, pass a ``reach`` as for
    :func:`at_one_position`. A consumer at full speed pauses for milliseconds, so that a read of many rows succeeds.

    With several partitions the rows of each partition are as they are at one position of its log, and ``.position`` is
    the token of these: for ``at_least``, ``changed_since`` or :func:`quorin.offline.read_at`.

    :raises InconsistentReadError: after ``timeout_ms``, naming segments, positions and the partition. :raises
        EntityIdError, InvalidRowError, InvalidMaxAgeError, NotHeldError: as :func:`quorin.assembly.read`.
    """
    segments = [segment for segment, *_ in parts]
    readers = [ColumnReader(segment, *fields, max_age=max_age) for segment, _, *fields in parts]
    ids = [id_array(entity_ids) for _, entity_ids, *_ in parts]

    def read_up_to(position: int | Token) -> list[Columns]:
        now_ns = time.time_ns()
        pairs = zip(readers, ids, strict=True)
        return [reader(of_part, now_ns=now_ns, at_most=position) for reader, of_part in pairs]

    position, columns = at_one_position(lambda: segments, read_up_to, timeout_ms=timeout_ms, reach=reach)
    return Together(position, [one.to_batch() for one in columns])


def at_one_position(
    segments: Callable[[], Sequence[Segment]],
    read: Callable[[int | Token], T],
    *,
    timeout_ms: float = DEFAULT_TIMEOUT_MS,
    reach: Callable[[int, int | Token], int | Token] | None = None,
    reached: dict[tuple[str, int], int] | None = None,
) -> tuple[int | Token, T]:
    """Call ``read(position)`` until all rows that it reads of some segments are as they are at that position. Returns
    the position, and what ``read`` returned. With several partitions the position is a token.

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
            applied = [_applied(one, reached) for one in seen]
            try:
                _check_same_logs(seen)
                lowest = applied[0] if len(applied) == 1 else tuple(map(min, *applied))
                _check_known(seen, lowest)
                position = _moment(seen[0], lowest)
                result = read(position)
                # A writer that overtakes another may lack rows for a moment, until it has read the log again.
                if [_seen(one.current_view())[:2] for one in segments()] == [one[:2] for one in seen]:
                    return position, result
                problem = "a segment was replaced"
            except InconsistentReadError as error:
                problem = str(error)
            now = time.monotonic()
            if deadline is None:
                deadline = now + timeout_ms / 1000
            elif now > deadline:
                raise InconsistentReadError(f"{_described(seen, applied)}, for {timeout_ms:g} ms: {problem}")
            for i, one in enumerate(seen):
                if reach is not None and not one.view.pinned and _is_behind(i, applied):
                    end = reach(i, _moment(one, one.positions))
                    # What made the segment grow is not in the generation that was seen.
                    if segments()[i].current_view() is one.view:
                        _note(reached, one, end)
                if one.view.path not in asked:
                    asked.add(one.view.path)
                    asking.callback(Asking(one.view.path).end)
            time.sleep(_POLL_SECONDS)


def _seen(view: SegmentView) -> _Seen:
    # A position is of the log of that identity, or 0, or of a later log, which the second look finds.
    return _Seen(view, *zip(*positions_in(view), strict=True))


def _applied(one: _Seen, reached: dict[tuple[str, int], int]) -> _Positions:
    name = one.view.name
    return tuple(
        max(position, reached.get((name, identity), 0))
        for identity, position in zip(one.identities, one.positions, strict=True)
    )


def _note(reached: dict[tuple[str, int], int], one: _Seen, end: int | Token) -> None:
    """Keep up to where a segment has all of its logs."""
    parts: Sequence[tuple[int, int]] = end.parts if isinstance(end, Token) else ()
    if one.view.layout.partition_count == 1:
        parts = ((one.identities[0], end),)
    for identity, position in parts:
        key = one.view.name, identity
        reached[key] = max(position, reached.get(key, 0))


def _moment(one: _Seen, positions: _Positions) -> int | Token:
    """Positions of a segment's logs as one value."""
    if one.view.layout.partition_count == 1:
        return positions[0]
    return Token(*(part for part in zip(one.identities, positions, strict=True) if all(part)))


def _is_behind(i: int, applied: Sequence[_Positions]) -> bool:
    """Whether another segment has more of some log."""
    return any(own < furthest for own, furthest in zip(applied[i], map(max, *applied), strict=False))


def _check_same_logs(seen: Sequence[_Seen]) -> None:
    first = seen[0]
    for one in seen[1:]:
        if one.view.partitioning != first.view.partitioning:
            held = ", ".join(f"{each.view.name!r} {each.view.partitioning}" for each in (first, one))
            raise InconsistentReadError(f"the segments hold different partitions: {held}")
        if one.identities != first.identities:
            pairs = zip(first.identities, one.identities, strict=True)
            differing = next(i for i, (ours, theirs) in enumerate(pairs) if ours != theirs)
            raise InconsistentReadError(
                f"the segments follow different logs{_of_partition(first.view, differing)}, or one has met none yet"
            )


def _check_known(seen: Sequence[_Seen], lowest: _Positions) -> None:
    """Refuse a generation that does not tell what it held at a position: a load replaced its rows after that, or growth
    has forgotten a later deletion.
    """
    for one in seen:
        for i, forgotten in enumerate(forgotten_in(one.view)):
            if forgotten > lowest[i]:
                raise InconsistentReadError(
                    f"segment {one.view.name!r} knows only its rows since position {forgotten}"
                    f"{_of_partition(one.view, i)}"
                )


def _described(seen: Sequence[_Seen], applied: Sequence[_Positions]) -> str:
    """Where the segments are; of several partitions, the first in which they differ."""
    columns = list(zip(*applied, strict=False))
    i = next((i for i, positions in enumerate(columns) if len({*positions}) > 1), 0)
    shown = ", ".join(f"{one.view.name!r} at {position}" for one, position in zip(seen, columns[i], strict=True))
    return f"the segments were not at one position of the log{_of_partition(seen[0].view, i)}: {shown}"


def _of_partition(view: SegmentView, index: int) -> str:
    """Names the partition of a position, if there are several."""
    return f" of partition {sorted(view.partitioning.held)[index]}" if view.layout.partition_count > 1 else ""
