"""A load that is staged from all logs that a node holds, and put in force in one flip."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from quorin.engine.consumer.log_position import log_position_of
from quorin.engine.consumer.stage import Stage
from quorin.engine.memory.staged import Staged
from quorin.errors import ConnectionFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from quorin.engine.backend import ControlPlane, Log
    from quorin.engine.consumer.historian import Historian
    from quorin.engine.consumer.target import Target
    from quorin.schema import Schema

    Partition = int | None
    """None is the only log there is."""


class Source(NamedTuple):
    """A log that the node holds, and its part in the history."""

    log: Log
    historian: Historian


class StagedLoad:
    """One load of one schema: a segment beside the serving one, and a stage for each log, by partition.

    The segment that serves applies each log at its own pace, past the load's commit too. The load comes into force when
    the node has applied the commit in all logs that it holds, with all that it has applied behind it by then. So one
    flip shows the whole load, and no log waits for another.
    """

    def __init__(self, target: Target, load: int, sources: Mapping[Partition, Source], control: ControlPlane) -> None:
        self.load = load
        self.staged = Staged.beside(target.opened, target.opened.stored_schema)
        self._target = target
        self._sources = sources
        self._stages = {
            partition: Stage(self.staged, load, source.log, control) for partition, source in sources.items()
        }
        self._lost: dict[Partition, str] = {}
        """Why a log, as it is now, does not tell what it had of the load. Its history may, once it has the commit."""

    @property
    def schema(self) -> Schema:
        """The schema of the staged rows."""
        return next(iter(self._stages.values())).schema

    @property
    def row_count(self) -> int:
        """How many of the load's rows are staged."""
        return sum(stage.row_count for stage in self._stages.values())

    @property
    def is_committed(self) -> bool:
        """Whether the commit was read in a log. Then all others get it too, and no later load ends this one."""
        return any(stage.commit for stage in self._stages.values())

    def upgrade(self, schema: Schema) -> None:
        """Carry the staged rows over to the version that the serving segment has."""
        self.staged.upgrade(schema)
        for stage in self._stages.values():
            stage.schema = schema

    def advance(self, partition: Partition, through: int) -> Stage:
        """Read one log on, up to a position that the serving segment has applied or is about to."""
        stage = self._stages[partition]
        # What is read already needs no log, which may be away.
        if through > stage.through and not stage.refusal and self._has_rows(partition, through):
            stage.advance(through, self._target.opened.heartbeat)
        return stage

    def positions(self, partition: Partition, through: int) -> dict[Partition, int]:
        """What the serving segment has applied of each log, but ``through`` of one."""
        return {
            other: through if other == partition else log_position_of(self._target.opened, other).position
            for other in self._stages
        }

    def lacks_commit(self, positions: Mapping[Partition, int], away: Callable[[Partition], bool]) -> bool:
        """Whether a log has no commit of the load up to its position, and nothing that is in the way of it.

        ``away`` says of a log that cannot be reached whether it gets the commit behind its position. The others do not
        wait for it then.

        :raises ConnectionFailedError: if that is not known.
        """
        if any(not stage.commit and positions[partition] <= self.load for partition, stage in self._stages.items()):
            return True
        failures: dict[Partition, ConnectionFailedError] = {}
        for partition, position in positions.items():
            try:
                stage = self.advance(partition, position)
            except ConnectionFailedError as error:
                failures[partition] = error
                continue
            if not stage.commit and not self.refusal_in(partition):
                return True
        for partition, failure in failures.items():
            if not away(partition):
                raise failure
        return bool(failures)

    def refusal_in(self, partition: Partition) -> str:
        """Why the load must not come into force, as far as one log says; empty if it says nothing."""
        return self._stages[partition].refusal or self._lost.get(partition, "")

    def refusal(self) -> str:
        """Why the load must not come into force; empty if nothing is in the way."""
        named = {partition: self.refusal_in(partition) for partition in self._stages}
        return "; ".join(
            reason if partition is None else f"partition {partition}: {reason}"
            for partition, reason in named.items()
            if reason
        )

    @property
    def is_refused(self) -> bool:
        """Whether a log says that the load must never come into force."""
        return any(stage.refusal for stage in self._stages.values())

    def complete(self, positions: Mapping[Partition, int]) -> None:
        """Stage all that the logs have up to these positions; what a log does not tell any more is a refusal."""
        self.upgrade(self._target.schema)
        for partition, stage in self._stages.items():
            through = positions[partition]
            if through <= stage.needs_behind or self._has_rows(partition, through):
                stage.complete(through, self._target.opened.heartbeat)

    def put_in_force(self, positions: Mapping[Partition, int]) -> None:
        """Replace the serving segment, whose lease is held, by what is complete up to these positions."""
        self.staged.put_in_force(
            self._target.opened, {partition or 0: position for partition, position in positions.items()}
        )

    def _has_rows(self, partition: Partition, through: int) -> bool:
        """Whether a log has what a stage lacks up to a position. One that was trimmed meanwhile is read from the
        history, if that has the commit.
        """
        from quorin.offline import ParquetDatasetStore

        stage, (log, historian) = self._stages[partition], self._sources[partition]
        self._lost.pop(partition, None)
        trimmed, history = log.bounds().trimmed, historian.offline
        if trimmed <= stage.needs_behind:
            return True
        if isinstance(history, ParquetDatasetStore):
            commits = history.load(stage.schema).counted.commits
            if any(commit.begin == self.load and commit.position <= through for commit in commits):
                stage.fill(history, through, trimmed)
                return True
        self._lost[partition] = (
            f"the log was trimmed behind the load's beginning, up to {trimmed}, and no history has its rows"
        )
        return False
