"""A schema's rows as they were at a moment of the log, from the history and from what the log still has.

Of several partitions a moment is a position in the log of each. The rows are built one partition after the other: from
the last load that all logs had committed by then, and from what was pushed since; or, without one, from the schema's
beginning. After a growth the logs of later partitions go on where the one that they came from ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quorin.engine.consumer.stage import Stage
from quorin.engine.format.growth import Growth
from quorin.engine.history.counted import Commit, common
from quorin.engine.history.tail import commits_in
from quorin.engine.log.token import Token
from quorin.engine.memory.staged import Staged
from quorin.errors import PastUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quorin.engine.backend import Backend, Log
    from quorin.offline import ParquetDatasetStore
    from quorin.schema import Schema
    from quorin.shm import Segment, SegmentRegistry

Moment = int | Mapping[int, int]
"""A position in all logs, or one in each of them, by the log's identity: those of a token."""
Ranges = Sequence[tuple[int, int]]
"""Pairs of a first and a last position: tokens, which have one for each log, or positions in all logs."""


@dataclass(frozen=True, slots=True)
class LogAt:
    """The log of one partition of ``count``, and its position ``at`` a moment. ``begins`` is where it goes on from logs
    before it, ``last`` where it ends.
    """

    log: Log
    count: int
    identity: int
    begins: int
    last: int
    at: int = 0

    @property
    def partition(self) -> int:
        """The partition that it is of."""
        return self.log.partition


class Past:
    """The logs of a schema at a moment: those of each number of partitions that there was, the fewest first.

    :raises PastUnavailableError: if the moment is not one of the past, or lacks a log.
    """

    def __init__(
        self,
        schema: Schema,
        registry: SegmentRegistry,
        stream_key: str,
        history: ParquetDatasetStore | None,
        moment: Moment,
    ) -> None:
        self._schema = schema
        self._name = schema.__name__
        self._registry = registry
        self._history = history
        self._control = registry.backend.control
        self.logs = _at(_logs_of(registry.backend, stream_key), moment)

    def segments(
        self, load: int, again: Ranges | None, *, capacity: int, max_id_bytes: int, alive: Callable[[], None]
    ) -> Iterator[Segment]:
        """Segments that together have the rows, each removed when the next is taken. With ``again`` what was pushed
        since is applied too, up to the beginning of ``load``, without these ranges.

        :raises PastUnavailableError: if neither the log nor the history reaches back that far.
        """
        first, begins = self._last_load()
        for root in self.logs[first]:
            with self._empty(capacity // len(self.logs[first]), max_id_bytes) as staged:
                for one in self._from(root, self.logs[first:]):
                    begin = max(begins if one.count == root.count else 0, self._beginning(one))
                    self._apply(staged, one, begin, alive)
                    if again is not None:
                        self._apply_again(staged, one, load, again, alive)
                yield staged.segment

    def apply_again(self, segment: Segment, load: int, without: Ranges, alive: Callable[[], None]) -> None:
        """Apply what was pushed since the moment to a segment that has all rows of it, as :meth:`segments` does."""
        for group in self.logs:
            for one in group:
                self._apply_again(Staged(segment), one, load, without, alive)

    def _last_load(self) -> tuple[int, int]:
        """The last load that all logs of a number of partitions had committed, as a node of all partitions puts it in
        force: the index of those logs, and its id. The first logs and 0, if there is none.
        """
        for index in reversed(range(len(self.logs))):
            commits = common([self._commits(one) for one in self.logs[index]])
            if commits:
                return index, commits[-1].begin
        return 0, 0

    def _commits(self, one: LogAt) -> list[Commit]:
        begin, trimmed, history = self._beginning(one), one.log.bounds().trimmed, self._history_of(one)
        known = () if history is None else history.load(self._schema).counted.commits
        commits = {commit for commit in known if begin <= commit.begin and commit.position <= one.at}
        return sorted(commits.union(commits_in(one.log, self._name, max(begin, trimmed), one.at)))

    def _beginning(self, one: LogAt) -> int:
        """Where the rows of the schema begin in a log."""
        known = self._control.beginnings(one.partition).get(self._name)
        return max(one.begins, 0 if known is None or known.log_identity != one.identity else known.position)

    def _from(self, root: LogAt, groups: Sequence[Sequence[LogAt]]) -> Iterator[LogAt]:
        """A log, and those that followed it: they have the rows of the same entities."""
        for group in groups:
            times = group[0].count // root.count
            yield from group[root.partition * times : (root.partition + 1) * times]

    def _apply(self, staged: Staged, one: LogAt, begin: int, alive: Callable[[], None]) -> None:
        history = self._history_of(one)
        for trimmed in self._until_still(one):
            if trimmed > begin and history is None and one.at > begin:
                raise PastUnavailableError(
                    f"the rows of {self._name!r} at position {one.at} are not known: the log begins behind {trimmed}, "
                    "and no history was passed"
                )
            stage = Stage(staged, begin, one.log, self._control)
            if trimmed > begin and history is not None:
                stage.fill(history, one.at, trimmed)
            stage.complete(one.at, alive)

    def _apply_again(self, staged: Staged, one: LogAt, load: int, without: Ranges, alive: Callable[[], None]) -> None:
        """Apply what was pushed, but not what is in the ranges. Rows of loads did not come from pushes."""
        after, history = max(one.at, self._beginning(one)), self._history_of(one)
        left_out = sorted(found for pair in without if (found := range_in(one, pair)) is not None)
        edges = [after, *(edge for first, last in left_out for edge in (first - 1, last)), load]
        for trimmed in self._until_still(one):
            if trimmed > after and history is None:
                raise PastUnavailableError(
                    f"the log begins behind {trimmed}, and no history was passed: expected {after} or less"
                )
            for low, high in zip(edges[::2], edges[1::2], strict=True):
                low, high = max(low, after), min(high, load)
                if low < high:
                    stage = Stage(staged, low, one.log, self._control)
                    if trimmed > low and history is not None:
                        stage.fill_pushed(history, high, trimmed)
                    stage.complete(high, alive)

    def _until_still(self, one: LogAt) -> Iterator[int]:
        """Up to where a log is trimmed, and again if it was trimmed while it was read: applying again changes nothing,
        and what is gone is in the history.
        """
        before, trimmed = -1, one.log.bounds().trimmed
        while trimmed != before:
            yield trimmed
            before, trimmed = trimmed, one.log.bounds().trimmed

    def _history_of(self, one: LogAt) -> ParquetDatasetStore | None:
        return None if self._history is None else self._history.of_partition(one.partition, one.count)

    @contextmanager
    def _empty(self, capacity: int, max_id_bytes: int) -> Iterator[Staged]:
        segment = self._registry.create(
            self._schema, capacity=max(1, capacity), max_id_bytes=max_id_bytes, set_current=False
        )
        staged = Staged(segment)
        try:
            yield staged
        finally:
            staged.discard()


def _logs_of(backend: Backend, stream_key: str) -> list[list[LogAt]]:
    backend.forget_partitions()
    groups, begins = [], 0
    former = Growth.parse(backend.control.growth()).former
    for count, end in [*((one.count, one.end) for one in former), (backend.partitions(), 0)]:
        group = []
        for partition in range(count):
            log = backend.log(stream_key, partition, of=count)
            identity, bounds = log.state()
            group.append(LogAt(log, count, identity, begins, bounds.last))
        groups.append(group)
        begins = end + 1
    return groups


def _at(groups: list[list[LogAt]], moment: Moment) -> list[list[LogAt]]:
    """The same logs at a moment."""
    if isinstance(moment, int):
        last = max(one.last for one in groups[-1])
        if not 0 <= moment <= last:
            raise PastUnavailableError(f"position {moment} is none of the log's past: it ends at {last}")
        return [[_log_at(one, moment) for one in group] for group in groups]
    named = [index for index, group in enumerate(groups) if any(one.identity in moment for one in group)]
    if len(named) != 1 or not moment.keys() <= {one.identity for one in groups[named[0]]}:
        raise PastUnavailableError(
            f"{Token(*moment.items()).text} is of other logs than those of this deployment, or of several numbers of "
            "its partitions"
        )
    index = named[0]
    for one in groups[index]:
        if one.last > one.begins and one.identity not in moment:
            raise PastUnavailableError(
                f"the moment has no position in the log of partition {one.partition} of {one.count}: expected one for "
                "each log, as Segment.applied() has them"
            )
        if moment.get(one.identity, 0) > one.last:
            raise PastUnavailableError(
                f"position {moment[one.identity]} of partition {one.partition} is none of its log's past: it ends at "
                f"{one.last}"
            )
    before = [[_log_at(one, one.last) for one in group] for group in groups[:index]]
    after = [[_log_at(one, 0) for one in group] for group in groups[index + 1 :]]
    return [*before, [_log_at(one, moment.get(one.identity, 0)) for one in groups[index]], *after]


def _log_at(one: LogAt, position: int) -> LogAt:
    at = min(max(position, one.begins), max(one.last, one.begins))
    return replace(one, at=at)


def range_in(one: LogAt, pair: tuple[int, int]) -> tuple[int, int] | None:
    """A range in one log; None if it has no part there."""
    first, last = (_part(end, one.identity) for end in pair)
    return None if first is None or last is None else (first, last)


def _part(position: int, identity: int) -> int | None:
    parts = dict(position.parts) if isinstance(position, Token) else {}
    return parts.get(identity) if parts else int(position)
