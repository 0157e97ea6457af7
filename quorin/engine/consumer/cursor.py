"""Where each segment is in the log: anchor it after the log was lost, wiped or trimmed, read on, and move forward."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from quorin import metrics
from quorin.engine.consumer.log_position import log_position_of
from quorin.engine.consumer.plan import Fit, SchemaPositions, anchor
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from quorin.engine.backend import Bounds, Log, ReadResult
    from quorin.engine.consumer.historian import Historian
    from quorin.engine.consumer.loads import Loads
    from quorin.engine.consumer.log_position import LogPosition
    from quorin.engine.consumer.target import Target

_READ_BYTES = 16 << 20
_CONFIRM_NS = 20_000_000

_log = get_logger(__name__)


class LogCursor:
    """The position of each owned segment in one log, by schema name.

    The position that counts is in the segment's header; this one may be behind it, where the history lacks rows that
    the segment has. With ``reads_all`` entries of all schemas are read, those of other consumers' too. ``loads`` are
    those of all logs of the consumer.
    """

    def __init__(
        self,
        log: Log,
        historian: Historian,
        loads: Loads,
        *,
        partition: int | None,
        batch_entries: int,
        reads_all: bool,
    ) -> None:
        self.positions = SchemaPositions()
        self._log = log
        self._historian = historian
        self._loads = loads
        self._partition = partition
        self._batch_entries = batch_entries
        self._reads_all = reads_all
        self._identity = 0
        self._confirmed_ns = 0
        self._behind: dict[str, int] = {}
        """The end of the log when a segment began to follow it that lacked some of it."""

    @property
    def lowest(self) -> int:
        """The position behind which the next read begins."""
        return self.positions.lowest

    @property
    def identity(self) -> int:
        """The identity of the log at the last :meth:`anchor`."""
        return self._identity

    def has(self, target: Target) -> bool:
        """Whether a target is anchored."""
        return target.schema.__name__ in self.positions.after

    def forget(self, target: Target) -> None:
        """A target has to be anchored again, because another process may have written to its segment."""
        self.positions.after.pop(target.schema.__name__, None)

    def keep(self, targets: Iterable[Target]) -> None:
        """Forget all but these targets."""
        names = {target.schema.__name__ for target in targets}
        self._loads.keep(names)
        self.positions = SchemaPositions({name: at for name, at in self.positions.after.items() if name in names})

    def look_call(self, targets: Iterable[Target]) -> Callable[[], tuple[int, Bounds]]:
        """A call that returns what :meth:`anchor` compares the segments with; any thread may make it."""
        progress = [self._progress(target) for target in targets]
        read = {at for one in progress for at in (one.position, one.forgotten) if at}
        return lambda: self._log.state(read)

    def anchor(self, targets: Collection[Target], identity: int, bounds: Bounds, *, anew: bool = False) -> None:
        """Compare the log with each segment's header, and anchor the segments that do not follow it; ``anew``: all."""
        if anew:
            self.keep([])
        for target in targets:
            if not self._follows(target, identity, bounds):
                self._anchor(target, identity, bounds)
        self._identity = identity

    def read_call(self, *, block_ms: int) -> Callable[[], ReadResult]:
        """A call that returns the next entries behind the lowest position, and waits up to ``block_ms`` if there are
        none; any thread may make it.
        """
        return partial(
            self._log.read,
            self.lowest,
            # A consumer that trims has to see every entry: one that no consumer applies is buried, not lost unseen.
            schema_names=None if self._reads_all else list(self.positions.after),
            max_entries=self._batch_entries,
            max_bytes=_READ_BYTES,
            block_ms=block_ms,
            follows=True,
        )

    def advance(self, through: int, targets: Iterable[Target]) -> bool:
        """Publish in each segment that everything up to ``through`` is applied; False if that is nothing new.

        Call it after the rows are applied: a crash before it repeats them, which changes nothing.
        """
        if through <= self.lowest:
            return False
        self.positions.advance(through)
        for target in targets:
            after = self.positions.after[target.schema.__name__]
            # Entries read again for the history alone are behind the header's position, which never goes back.
            progress = self._progress(target)
            if after > progress.position:
                progress.commit_position(after, self._identity)
            self._note_caught_up(target)
        return True

    def confirm(self, found: ReadResult, targets: Iterable[Target]) -> None:
        """Record in each segment when the log had nothing more for it; call it after :meth:`advance`."""
        at = found.confirmed_ns
        if at < self._confirmed_ns + _CONFIRM_NS and at >= self._confirmed_ns:
            return
        self._confirmed_ns = at
        for target in targets:
            if at and self.positions.after[target.schema.__name__] >= found.through:
                self._progress(target).confirm(at)

    def _follows(self, target: Target, identity: int, bounds: Bounds) -> bool:
        """Whether a segment was anchored to this very log, and the log still has all entries behind its position."""
        at = self.positions.after.get(target.schema.__name__)
        progress = self._progress(target)
        is_same = progress.log_identity == identity == self._identity
        is_lost = progress.position in bounds.lost
        return at is not None and is_same and bounds.trimmed <= at <= bounds.last and not is_lost

    def _anchor(self, target: Target, identity: int, bounds: Bounds) -> None:
        name, segment, progress = target.schema.__name__, target.opened, self._progress(target)
        is_added = self._partition is not None and not progress.position
        is_same = progress.position > 0 and progress.log_identity == identity
        if progress.position < bounds.trimmed and (is_added or is_same):
            # A segment from a snapshot or a disk is older than the log's start. What it lacks is in the history,
            # because the log is trimmed only behind durable rows. So is all of a partition that the node did not hold.
            self._catch_up(target, progress, identity, bounds.trimmed)
        written = self._historian.history
        flushed = None if written is None else written.flushed_position(target.schema)
        if flushed is not None and (flushed > 0 or not len(segment)):
            # For the same reason trimmed entries need not be read again for the history. A history without a row of
            # this schema beside a segment with rows is another one, or was lost: then all of the log is read.
            flushed = max(flushed, bounds.trimmed)
        start = anchor(
            position=progress.position,
            log_identity=progress.log_identity,
            identity=identity,
            bounds=bounds,
            flushed=flushed,
            replaced_at=progress.forgotten,
        )
        if start.fit not in (Fit.same, Fit.new):
            metrics.reanchored.labels(name, start.fit.name).inc()
            _log.warning(
                "log_reanchored",
                schema=name,
                **self._named,
                reason=start.fit.value,
                position=progress.position,
                last=bounds.last,
                trimmed=bounds.trimmed,
                reading_from=start.after,
            )
        # Behind a position that is reported as trimmed there is nothing left to read, and nothing to report again.
        self.positions.after[name] = start.after if start.resets else max(start.after, bounds.trimmed)
        if start.resets:
            # Before the first row of this log is applied: the old position says nothing about it, and readers that
            # wait for a position must not take it for one of this log.
            progress.commit_position(start.applied, identity)
            self._loads.forget(name)
        self._behind[name] = bounds.last
        self._note_caught_up(target)

    def _note_caught_up(self, target: Target) -> None:
        name = target.schema.__name__
        if name in self._behind and self.positions.after[name] >= self._behind[name]:
            del self._behind[name]
            self._progress(target).caught_up()

    def _catch_up(self, target: Target, progress: LogPosition, identity: int, trimmed: int) -> None:
        """Apply what the history has behind the segment's position, if the history can be read."""
        from quorin.engine.bootstrap.filling import catch_up
        from quorin.offline import ParquetDatasetStore

        history, segment = self._historian.offline, target.opened
        if isinstance(history, ParquetDatasetStore) and history.flushed_position(target.schema):
            put_in_force = partial(self._loads.catch_up, target, self._partition)
            rows = catch_up(segment, history, trimmed, progress, identity, put_in_force=put_in_force)
            _log.info("caught_up_from_history", segment=segment.name, **self._named, rows=rows)

    def _progress(self, target: Target) -> LogPosition:
        return log_position_of(target.opened, self._partition)

    @property
    def _named(self) -> dict[str, int]:
        """The partition for the log, if there are several."""
        return {} if self._partition is None else {"partition": self._partition}
