"""Flush the history, and trim the log behind rows that are both applied and durable."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from quorin import metrics
from quorin.engine.consumer.held import held_by_loads
from quorin.engine.ops.presence import FORGET_SECONDS, replica_name
from quorin.errors import HistoryUnavailableError, WriterFencedError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from quorin.engine.backend import Log
    from quorin.engine.consumer.historian import Historian
    from quorin.engine.consumer.history import OfflineWriter
    from quorin.engine.consumer.ownership import Ownership
    from quorin.schema import Schema
    from quorin.shm import SegmentRegistry

_log = get_logger(__name__)


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
        self._control = registry.backend.control
        self._node = registry.node
        self._node_timeout_seconds = node_timeout_seconds
        self._historian = historian
        self._history = historian.offline
        self._ownership = ownership

    def flush(self) -> None:
        """Make the history durable.

        :raises HistoryUnavailableError: if the history cannot be written.
        """
        if self._history is None:
            return
        started = time.monotonic_ns()
        try:
            self._history.flush()
        except HistoryUnavailableError:
            metrics.flush_failures.inc()
            raise
        metrics.flushes.inc()
        metrics.flush_seconds.inc(time.monotonic_ns() - started)

    def trim(self, applied: int, appended: dict[Schema, int]) -> None:
        """Trim the log up to ``applied``, as far as the history is durable.

        ``appended`` has the last position that went into the history, for each schema that may not be durable; schemas
        that turn out to be durable are removed.

        :raises HistoryUnavailableError: if the history cannot be read; nothing is trimmed.
        :raises WriterFencedError: if a segment was overtaken; nothing is trimmed.
        """
        if self._history is not None and self._node_timeout_seconds is not None:
            self._trim(min([applied, *_flushed_behind(self._history, appended)]), self._node_timeout_seconds)

    def _trim(self, through: int, node_timeout_seconds: float) -> None:
        # In this order: this process may freeze anywhere in between. Who overtakes it ends its lease first, and the
        # log compares the lease in the step that trims.
        fence = self._historian.confirmed(self._ownership.owns_all_schemas)
        if fence is None or not self._ownership.owns_all_schemas():
            return
        try:
            held = held_by_loads(
                self._through_all_nodes(through, node_timeout_seconds), self._log, self._control, node_timeout_seconds
            )
            metrics.entries_trimmed.inc(self._log.trim(held, fence=fence))
        except WriterFencedError as error:
            _log.warning("log_not_trimmed", error=str(error))

    def _through_all_nodes(self, through: int, node_timeout_seconds: float) -> int:
        """The position up to which every live node has applied what it serves, at most ``through``."""
        served = {replica_name(name, self._partition) for name in self._control.schemas()}
        for (node, name), applied in self._control.replicas().items():
            if applied.silent_seconds > FORGET_SECONDS:
                self._control.forget_replica(node, name)
            elif node != self._node.id and name in served and applied.silent_seconds <= node_timeout_seconds:
                through = min(through, applied.position)
        return through


def _flushed_behind(history: OfflineWriter, appended: dict[Schema, int]) -> list[int]:
    """How far the history is durable, for each schema with rows behind that."""
    behind = []
    for schema, last in list(appended.items()):
        flushed = history.flushed_position(schema)
        if flushed is not None and flushed < last:
            behind.append(flushed)
        else:
            del appended[schema]
    return behind
