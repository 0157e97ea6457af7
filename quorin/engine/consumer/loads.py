"""The loads of a consumer's schemas: stage their rows beside the serving segments, and put them in force at the commit.

What becomes of a load is decided by the log alone, so that all nodes decide alike: an entry begins it, its position is
the load's id, and the load is committed if its commit comes before its abort, and before another load of the schema
begins. A consumer that restarts, or builds its segment, in the middle of a load reads it again from its beginning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorin import metrics
from quorin.engine.consumer.history import LoadWriter
from quorin.engine.consumer.stage import Stage
from quorin.engine.log.record import Kind, decode, is_of_load, load_of, peek
from quorin.engine.memory.staged import Staged
from quorin.errors import InvalidEntryError, QuorinError, WriterFencedError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from quorin.engine.backend import Log
    from quorin.engine.consumer.historian import Historian
    from quorin.engine.consumer.plan import Cursors
    from quorin.engine.consumer.target import Target
    from quorin.shm import SegmentRegistry

Entry = tuple[int, bytes]

_log = get_logger(__name__)


class Loads:
    """The staged loads by schema name. Losing one costs reading it again, never a row."""

    def __init__(self, log: Log, registry: SegmentRegistry, historian: Historian) -> None:
        self._log = log
        self._control = registry.backend.control
        self._historian = historian
        self._stages: dict[str, Stage] = {}

    def between_marks(
        self, entries: list[Entry], targets: Collection[str]
    ) -> Iterator[tuple[list[Entry], Entry | None]]:
        """Entries up to each that begins, commits or aborts a load of these schemas, and that one; then the rest."""
        start = 0
        for index, entry in enumerate(entries):
            if is_of_load(entry[1]) and _is_mark(entry[1], targets):
                yield entries[start:index], entry
                start = index + 1
        yield entries[start:], None

    def apply(self, mark: Entry, targets: Mapping[str, Target], cursors: Cursors, *, log_identity: int) -> None:
        """Begin, put in force or drop a load; ``writing`` of all targets is held.

        :raises WriterFencedError: if another process has taken the segment over.
        """
        position, payload = mark
        header = peek(payload)
        name = header.schema_name
        if not cursors.wants(name, position):
            return
        load, rows = load_of(payload)
        if header.kind is Kind.commit:
            self._commit(targets[name], load, position, rows, log_identity)
        elif header.kind is Kind.begin or (name in self._stages and self._stages[name].load == load):
            self._drop(name)

    def stage(self, entries: list[Entry], owned: Iterable[Target]) -> None:
        """Stage what was read of loads that are open. A consumer that only drains the log waits for the commit."""
        targets = {target.schema.__name__: target for target in owned}
        seen: dict[str, int] = {}
        for _, payload in entries:
            if is_of_load(payload) and (name := _name_of_rows(payload)) in targets:
                seen[name] = load_of(payload)[0]
        for name, load in seen.items():
            stage = self._stages.get(name)
            if stage is None or stage.load < load:
                self._begin(targets[name], load)
        last = entries[-1][0] if entries else 0
        for name, stage in list(self._stages.items()):
            if name in targets:
                self._advance(targets[name], stage, last)

    def keep(self, names: Collection[str]) -> None:
        """Drop what is staged for other schemas, whose segments this consumer does not own."""
        for name in self._stages.keys() - set(names):
            self._drop(name)

    def _begin(self, target: Target, load: int) -> Stage | None:
        name = target.schema.__name__
        self._drop(name)
        try:
            stage = self._new_stage(target, load)
        except QuorinError as error:
            # There may be room for a second segment when the load is committed.
            _log.warning("load_not_staged", schema=name, load=load, error=str(error))
            return None
        self._stages[name] = stage
        _log.info("load_staged", schema=name, load=load, segment=stage.opened.name)
        return stage

    def _advance(self, target: Target, stage: Stage, through: int) -> None:
        try:
            if stage.schema is not target.schema:
                stage.upgrade(target.schema)
            stage.advance(through, target.opened.heartbeat)
        except WriterFencedError:
            raise
        except QuorinError as error:
            _log.warning("load_not_staged", schema=target.schema.__name__, load=stage.load, error=str(error))
            self._drop(target.schema.__name__)

    def _commit(self, target: Target, load: int, position: int, rows: int, log_identity: int) -> None:
        name, segment = target.schema.__name__, target.opened
        is_behind = segment.position < position
        history = self._historian.history
        if not is_behind and (not isinstance(history, LoadWriter) or self._log.bounds().trimmed > load):
            # Nothing is left to do: the log is trimmed behind a load only once its commit is in the history.
            return
        stage = self._stages.get(name)
        if stage is None or stage.load != load:
            self._drop(name)
            stage = self._stages[name] = self._new_stage(target, load)
        try:
            reason = self._completed(target, stage, position, rows)
            if reason is not None:
                metrics.loads_refused.labels(name).inc()
                _log.error("load_not_committed", schema=name, load=load, position=position, reason=reason)
                return
            if isinstance(history, LoadWriter):
                # Before any row behind the commit is in the history; the order of the log, seen by each reader of it.
                history.commit_load(target.schema, load, position)
            if is_behind:
                replaced = segment.name
                stage.staged.put_in_force(segment, position=position, log_identity=log_identity)
                del self._stages[name]
                metrics.replaces.labels(name).inc()
                metrics.rows_replaced.labels(name).inc(rows)
                _log.info("view_replaced", schema=name, old=replaced, new=segment.name, load=load, rows=len(segment))
        finally:
            self._drop(name)

    def _completed(self, target: Target, stage: Stage, position: int, rows: int) -> str | None:
        """Stage everything up to the commit; the reason why it must not come into force, if there is one."""
        name = target.schema.__name__
        beginning = self._control.beginnings().get(name)
        if beginning is not None and beginning.log_identity == self._log.identity() and stage.load < beginning.position:
            return "the schema was dropped and stored again after the load began"
        trimmed = self._log.bounds().trimmed
        if trimmed > stage.load and not self._filled_from_history(stage, position, trimmed):
            return f"the log was trimmed behind the load's beginning, up to {trimmed}, and no history has its rows"
        stage.upgrade(target.schema)
        stage.complete(position, target.opened.heartbeat)
        if stage.is_ended:
            return "the load was aborted, or another one began, before its commit"
        if stage.row_count != rows:
            return f"the log has {stage.row_count} of the load's {rows} rows"
        return None

    def _filled_from_history(self, stage: Stage, position: int, trimmed: int) -> bool:
        from quorin.offline import ParquetDatasetStore

        history = self._historian.offline
        if not isinstance(history, ParquetDatasetStore):
            return False
        if (stage.load, position) not in history.load(stage.schema).counted.commits:
            return False
        stage.fill(history, position, trimmed)
        return True

    def _new_stage(self, target: Target, load: int) -> Stage:
        return Stage(Staged.beside(target.opened, target.opened.stored_schema), load, self._log, self._control)

    def _drop(self, name: str) -> None:
        stage = self._stages.pop(name, None)
        if stage is not None:
            stage.staged.discard()


def _is_mark(payload: bytes, names: Collection[str]) -> bool:
    """Whether an entry is a whole one of these; the applier buries damaged ones."""
    try:
        header = peek(payload)
        if header.kind is Kind.load or header.schema_name not in names:
            return False
        decode(payload)
    except InvalidEntryError:
        return False
    return True


def _name_of_rows(payload: bytes) -> str:
    """The schema of an entry with rows of a load; empty for any other."""
    try:
        header = peek(payload)
    except InvalidEntryError:
        return ""
    return header.schema_name if header.kind is Kind.load else ""
