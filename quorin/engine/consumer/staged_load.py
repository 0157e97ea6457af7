"""A load that is staged from all logs that a node holds, and put in force in one flip."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from quorin.engine.consumer.progress import progress_of
from quorin.engine.consumer.stage import Stage
from quorin.engine.memory.staged import Staged

if TYPE_CHECKING:
    from collections.abc import Mapping

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
        stage, source = self._stages[partition], self._sources[partition]
        if through > stage.needs_behind and not stage.refusal:
            trimmed = source.log.bounds().trimmed
            if trimmed > stage.needs_behind:
                self._fill(stage, source, through, trimmed)
        if not stage.refusal:
            stage.advance(through, self._target.opened.heartbeat)
        return stage

    def positions(self, partition: Partition, through: int) -> dict[Partition, int]:
        """What the serving segment has applied of each log, but ``through`` of one."""
        return {
            other: through if other == partition else progress_of(self._target.opened, other).position
            for other in self._stages
        }

    def lacks_commit(self, positions: Mapping[Partition, int]) -> bool:
        """Whether a log has no commit of the load up to its position, and nothing that is in the way of it."""
        if any(not stage.commit and positions[partition] <= self.load for partition, stage in self._stages.items()):
            return True
        stages = [self.advance(partition, positions[partition]) for partition in self._stages]
        return any(not stage.commit and not stage.refusal for stage in stages)

    def refusal(self) -> str:
        """Why the load must not come into force; empty if nothing is in the way."""
        named = {partition: stage.refusal for partition, stage in self._stages.items() if stage.refusal}
        return "; ".join(
            reason if partition is None else f"partition {partition}: {reason}" for partition, reason in named.items()
        )

    def put_in_force(self, positions: Mapping[Partition, int]) -> None:
        """Replace the serving segment, whose lease is held, once every log is staged up to its position."""
        self.upgrade(self._target.schema)
        for partition, stage in self._stages.items():
            stage.complete(positions[partition], self._target.opened.heartbeat)
        self.staged.put_in_force(
            self._target.opened, {partition or 0: position for partition, position in positions.items()}
        )

    def _fill(self, stage: Stage, source: Source, through: int, trimmed: int) -> None:
        """Begin with the history, for a log that was trimmed behind the load's beginning."""
        from quorin.offline import ParquetDatasetStore

        history = source.historian.offline
        if isinstance(history, ParquetDatasetStore):
            commits = history.load(stage.schema).counted.commits
            if any(commit.begin == self.load and commit.position <= through for commit in commits):
                stage.fill(history, through, trimmed)
                return
        stage.refusal = f"the log was trimmed behind the load's beginning, up to {trimmed}, and no history has its rows"
