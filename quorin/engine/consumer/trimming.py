"""Flush the history, and trim the log behind rows that are both applied and durable."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quorin import metrics
from quorin.engine.consumer.held import held_by_loads
from quorin.engine.consumer.history import CompleteWriter
from quorin.engine.format.growth import Growth
from quorin.engine.ops.presence import FORGET_SECONDS, replica_name
from quorin.errors import WriterFencedError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from quorin.engine.backend import Fence, Log
    from quorin.engine.consumer.historian import Historian
    from quorin.engine.consumer.history import OfflineWriter
    from quorin.engine.consumer.ownership import Ownership
    from quorin.schema import Schema
    from quorin.shm import SegmentRegistry

_log = get_logger(__name__)


@dataclass(slots=True)
class Covered:
    """What a flush covers: all of a log up to ``applied``, which was written to the history on one lease."""

    identity: int
    applied: int
    fence: Fence | None
    appended: dict[Schema, int]
    """The last position that went into the history, for each schema with rows that may not be durable."""
    owned: list[Schema]
    """The schemas of which all rows up to ``applied`` went into the history."""
    behind: dict[Schema, int] = field(default_factory=dict)
    """After the flush: how far the history is durable, for each of these that has rows behind that."""

    @property
    def through(self) -> int:
        """After the flush: the position up to which all of the log is applied and durable."""
        return min([self.applied, *self.behind.values()])

    @property
    def durable(self) -> dict[Schema, int]:
        """After the flush: those of ``appended`` that are durable."""
        return {schema: last for schema, last in self.appended.items() if schema not in self.behind}


class Trimming:
    """Flushes one history, and trims one log if its consumer owns all schemas and is the historian.

    Entries that another node has not applied stay, unless it has been silent for ``node_timeout_seconds``. If that is
    None, nothing is trimmed.
    """

    def __init__(
        self,
        log: Log,
        historian: Historian,
        ownership: Ownership,
        registry: SegmentRegistry,
        node_timeout_seconds: float | None,
        partition: int | None = None,
    ) -> None:
        self._log = log
        self._partition = partition
        self._backend = registry.backend
        self._control = registry.backend.control
        self._count = 1 if partition is None else registry.partitioning.count
        self._node = registry.node
        self._node_timeout_seconds = node_timeout_seconds
        self._historian = historian
        self._history = historian.offline
        self._ownership = ownership

    def flush(self, covered: Covered) -> None:
        """Make the history durable, and record how far the log is applied and durable then. Any thread may call it.

        :raises HistoryUnavailableError: if the history cannot be written.
        """
        if self._history is None:
            return
        self._history.flush()
        if self._node_timeout_seconds is not None:
            covered.behind = _flushed_behind(self._history, covered.appended)
            # Before it is trimmed: then nothing else says that no rows are missing. Only on a lease all rows are here.
            if covered.fence is not None and isinstance(self._history, CompleteWriter):
                self._history.record_complete(covered.owned, covered.through)

    def trim(self, covered: Covered, now: Covered) -> None:
        """Trim the log up to what a flush covered and made durable, if all is as it was: ``now`` is what one would
        cover now, with the same log and lease, and all of it still applied.

        :raises WriterFencedError: if a segment was overtaken; nothing is trimmed.
        """
        if self._history is None or self._node_timeout_seconds is None:
            return
        if (covered.identity, covered.fence) == (now.identity, now.fence):
            self._trim(min(covered.through, now.applied), covered.fence, self._node_timeout_seconds)

    def _trim(self, through: int, begun_on: Fence | None, node_timeout_seconds: float) -> None:
        # In this order: this process may freeze anywhere in between. A process that overtakes it ends its lease first,
        # and the log compares the lease in the step that trims.
        fence = self._historian.confirmed(self._ownership.owns_all_schemas)
        if fence is None or fence != begun_on or not self._ownership.owns_all_schemas():
            return
        try:
            through = self._through_all_nodes(through, node_timeout_seconds)
            held = held_by_loads(
                through, self._log, self._backend, self._applied_here, node_timeout_seconds, of=self._count
            )
            metrics.entries_trimmed.inc(self._log.trim(held, fence=fence))
        except WriterFencedError as error:
            _log.warning("log_not_trimmed", error=str(error))

    def _applied_here(self, schema_name: str) -> dict[int, int]:
        """The positions that this consumer has applied of a schema, by partition."""
        owned = (target for target in self._ownership.owned() if target.schema.__name__ == schema_name)
        return {part.partition: part.position for target in owned for part in target.opened.parts()}

    def _through_all_nodes(self, through: int, node_timeout_seconds: float) -> int:
        """The position up to which every live node has applied what it serves, at most ``through``."""
        names = self._control.schemas()
        served = {replica_name(name, self._partition) for name in names}
        begins = self._begins()
        for (node, name), applied in self._control.replicas().items():
            if applied.silent_seconds > FORGET_SECONDS:
                self._control.forget_replica(node, name)
            elif node == self._node.id or applied.silent_seconds > node_timeout_seconds:
                continue
            elif name in served:
                through = min(through, applied.position)
            elif applied.position < begins and name.partition("/")[0] in names:
                # A node of a former number of partitions, which needs the whole log.
                through = min(through, begins)
        return through

    def _begins(self) -> int:
        """The position behind which the logs of this number of partitions begin; 0 if there was no other."""
        former = Growth.parse(self._control.growth()).former if self._partition is not None else ()
        return former[-1].end + 1 if former else 0


def _flushed_behind(history: OfflineWriter, appended: dict[Schema, int]) -> dict[Schema, int]:
    """How far the history is durable, for each schema with rows behind that."""
    found = {schema: history.flushed_position(schema) for schema in appended}
    return {schema: at for schema, at in found.items() if at is not None and at < appended[schema]}
