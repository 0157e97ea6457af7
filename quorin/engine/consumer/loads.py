"""The loads of a consumer's schemas: stage their rows beside the serving segments, and put them in force.

What becomes of a load is read from the logs alone, so that all nodes decide alike: an entry in each log begins it, with
its id, and the first entry that commits or aborts it ends it. A consumer that restarts, or builds its segment, in the
middle of a load reads it again from its beginning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorin import metrics
from quorin.engine.consumer.held import finish_decided
from quorin.engine.consumer.history import LoadWriter
from quorin.engine.consumer.log_position import log_position_of
from quorin.engine.consumer.staged_load import Source, StagedLoad
from quorin.engine.history.counted import Commit
from quorin.engine.history.tail import commits_in
from quorin.engine.log.open_load import open_loads
from quorin.engine.log.record import Kind, decode, is_of_load, load_of, peek
from quorin.errors import ConnectionFailedError, InvalidEntryError, QuorinError, WriterFencedError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from quorin.engine.backend import Backend, Log
    from quorin.engine.consumer.historian import Historian
    from quorin.engine.consumer.plan import SchemaPositions
    from quorin.engine.consumer.staged_load import Partition
    from quorin.engine.consumer.target import Target

Entry = tuple[int, bytes]

_log = get_logger(__name__)


class Loads:
    """The staged loads by schema name, for all lanes of a consumer. Losing one costs reading it again, never a row."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._sources: dict[Partition, Source] = {}
        self._staged: dict[str, StagedLoad] = {}
        self._aborted: dict[str, int] = {}
        self._over: dict[str, int] = {}
        """The last load of a schema whose commit was met, and that is in force here since, or was refused."""

    def add(self, partition: Partition, log: Log, historian: Historian) -> None:
        """Also stage from this log: before any load is met."""
        self._sources[partition] = Source(log, historian)

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

    def apply(self, mark: Entry, partition: Partition, targets: Mapping[str, Target], cursors: SchemaPositions) -> None:
        """Begin, put in force or drop a load; ``writing`` of all targets is held.

        :raises WriterFencedError: if another process has taken the segment over.
        """
        position, payload = mark
        header = peek(payload)
        name, load = header.schema_name, load_of(payload)[0]
        if not cursors.wants(name, position):
            return
        if header.kind is Kind.abort:
            self._aborted[name] = max(load, self._aborted.get(name, 0))
        staged = self._staged.get(name)
        if header.kind is Kind.commit:
            self._commit(targets[name], partition, Commit(load, position))
        elif staged is None or staged.load > load:
            return
        elif not staged.is_committed:
            if (header.kind is Kind.abort) == (load == staged.load):
                self._drop(name)
        elif load == staged.load:  # Another log has the commit: the control plane has lost what it decided.
            self._put_in_force(targets[name], partition, position)

    def stage(self, entries: list[Entry], partition: Partition, owned: Iterable[Target]) -> None:
        """Stage what was read of loads that are open. A consumer that only drains the log waits for the commit."""
        targets = {target.schema.__name__: target for target in owned}
        seen: dict[str, int] = {}
        for _, payload in entries:
            if is_of_load(payload) and (name := _name_of_rows(payload)) in targets:
                seen[name] = load_of(payload)[0]
        for name, load in seen.items():
            staged = self._staged.get(name)
            is_next = staged is None or (staged.load < load and not staged.is_committed)
            if is_next and load > max(self._over.get(name, 0), self._aborted.get(name, 0)):
                self._begin(targets[name], load)
        last = entries[-1][0] if entries else 0
        for name, staged in list(self._staged.items()):
            if name in targets and last:
                self._advance(targets[name], staged, partition, last)

    def catch_up(self, target: Target, partition: Partition, commits: Sequence[Commit], through: int) -> bool:
        """Put in force the last load of these that all logs have, where one log is in the history up to ``through``,
        and the segment lacks it. False if there is none: then the segment may go on to there with its own rows.
        """
        for commit in reversed(commits):
            self._ensured(target, commit.begin).advance(partition, through)
            if self._put_in_force(target, partition, through):
                return True
        return False

    def finish_waiting(self) -> None:
        """:meth:`finish_decided`, if one log has the commit of a load, and another lacks it yet."""
        if any(staged.is_committed for staged in self._staged.values()):
            self.finish_decided()

    def finish_decided(self) -> None:
        """Finish loads whose commit was decided, and whose coordinator died before all logs had it.

        :raises ConnectionFailedError: if the control plane cannot be reached.
        """
        for stream_key in {source.log.stream_key for source in self._sources.values()}:
            finish_decided(self._backend, stream_key)

    def forget(self, name: str) -> None:
        """A log is not what was read of it: what is staged of a schema has to be read again."""
        self._over.pop(name, None)
        self._drop(name)

    def keep(self, names: Collection[str]) -> None:
        """Drop what is staged for other schemas, whose segments this consumer does not own."""
        for name in self._staged.keys() - set(names):
            self._drop(name)

    def _begin(self, target: Target, load: int) -> None:
        name = target.schema.__name__
        try:
            staged = self._ensured(target, load)
        except QuorinError as error:
            # There may be room for a second segment when the load is committed.
            _log.warning("load_not_staged", schema=name, load=load, error=str(error))
            return
        _log.info("load_staged", schema=name, load=load, segment=staged.staged.segment.name)

    def _advance(self, target: Target, staged: StagedLoad, partition: Partition, through: int) -> None:
        try:
            self._ensured(target, staged.load).advance(partition, through)
        except WriterFencedError:
            raise
        except QuorinError as error:
            _log.warning("load_not_staged", schema=target.schema.__name__, load=staged.load, error=str(error))
            self._drop(target.schema.__name__)

    def _commit(self, target: Target, partition: Partition, commit: Commit) -> None:
        """A log commits a load: note it in the history, and put it in force if it was the last log to do so."""
        name, (log, historian) = target.schema.__name__, self._sources[partition]
        if (
            log_position_of(target.opened, partition).position >= commit.position
            or self._over.get(name) == commit.begin
        ):
            # Read again for the history, or decided for this node.
            self._drop(name, commit.begin)
            # The log is trimmed behind a load only once its commit is in the history.
            if isinstance(historian.history, LoadWriter) and log.bounds().trimmed <= commit.begin:
                is_valid = commit in commits_in(log, name, commit.begin, commit.position)
                self._note(target, partition, commit, is_valid and not self._ended_life(name, partition, commit.begin))
            return
        try:
            staged = self._ensured(target, commit.begin)
            stage = staged.advance(partition, commit.position)
            if not 0 < stage.commit < commit.position:
                stage.refusal = stage.refusal or self._ended_life(name, partition, commit.begin)
                self._note(target, partition, commit, not staged.refusal_in(partition))
            elif stage.is_followed:  # Two processes have finished the load, one of them late.
                self._drop(name)
                return
            self._put_in_force(target, partition, commit.position)
        except ConnectionFailedError:
            raise
        except QuorinError:
            self._drop(name)
            raise

    def _put_in_force(self, target: Target, partition: Partition, through: int) -> bool:
        """Flip to a staged load if all logs have its commit, ``through`` being the position in one of them."""
        name, segment = target.schema.__name__, target.opened
        staged = self._staged[name]
        positions = staged.positions(partition, through)
        if not staged.refusal():
            if staged.lacks_commit(positions, lambda away: self._gets_commit(staged, away, positions)):
                return False
            if not staged.refusal():
                staged.complete(positions)
        if reason := staged.refusal():
            metrics.loads_refused.labels(name).inc()
            _log.error("load_not_committed", schema=name, load=staged.load, position=through, reason=reason)
            if staged.is_refused:
                self._over[name] = staged.load
            self._drop(name)
            return False
        replaced = segment.name
        try:
            staged.put_in_force(positions)
        finally:
            self._drop(name)
        self._over[name] = staged.load
        metrics.replaces.labels(name).inc()
        metrics.rows_replaced.labels(name).inc(staged.row_count)
        _log.info("view_replaced", schema=name, old=replaced, new=segment.name, load=staged.load, rows=len(segment))
        return True

    def _gets_commit(self, staged: StagedLoad, partition: Partition, positions: Mapping[Partition, int]) -> bool:
        """Whether a log that cannot be reached gets a commit behind its position, as the control plane knows it."""
        load, _ = open_loads(self._backend.control).get(staged.schema.__name__, (None, 0.0))
        if load is None or load.begin != staged.load or load.can_be_aborted:
            return False
        end = load.ends[partition or 0] if load.ends else 0
        return not end or end > positions[partition]

    def _note(self, target: Target, partition: Partition, commit: Commit, is_valid: bool) -> None:
        """Before any row behind the commit is in the history: the order of the log, seen by each reader of it."""
        history = self._sources[partition].historian.history
        if is_valid and isinstance(history, LoadWriter):
            history.commit_load(target.schema, *commit)

    def _ended_life(self, name: str, partition: Partition, load: int) -> str:
        """Why a load is of an earlier life of the schema, if it is."""
        beginning = self._backend.control.beginnings(partition or 0).get(name)
        is_earlier = beginning is not None and load < beginning.position
        if is_earlier and beginning is not None and beginning.log_identity == self._sources[partition].log.identity():
            return "the schema was dropped and stored again after the load began"
        return ""

    def _ensured(self, target: Target, load: int) -> StagedLoad:
        """What is staged of a load; of another one nothing is kept."""
        name = target.schema.__name__
        staged = self._staged.get(name)
        if staged is None or staged.load != load:
            self._drop(name)
            staged = self._staged[name] = StagedLoad(target, load, self._sources, self._backend.control)
        if staged.schema is not target.schema:
            staged.upgrade(target.schema)
        return staged

    def _drop(self, name: str, load: int | None = None) -> None:
        if load is None or (name in self._staged and self._staged[name].load == load):
            staged = self._staged.pop(name, None)
            if staged is not None:
                staged.staged.discard()


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
