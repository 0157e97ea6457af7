"""The logs that no lane of a consumer reads: those of partitions that the node does not hold, and closed ones."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from quorin.engine.repartition.closed import check_closed_logs
from quorin.engine.repartition.run import finish
from quorin.errors import ConnectionFailedError, LogFullError, RepartitionConflictError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from quorin.engine.backend import Backend, Log
    from quorin.engine.consumer.target import Target

LOOK_SECONDS = 5.0


class LogsBeside:
    """Looked at every few seconds. ``others`` are the logs of the partitions that the node does not hold; ``closed`` is
    one that it reads, if any is closed, and how many partitions it follows.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.others: dict[int, Log] = {}
        self.closed: tuple[int, Log] | None = None
        self._look_at = 0.0

    def is_due(self) -> bool:
        """Whether it is time to look."""
        return time.monotonic() >= self._look_at

    def look(self) -> dict[int, int]:
        """Finish a growth that nothing else may finish, and keep the closed logs closed. Returns the identities of
        the others, but for those that are unreachable.
        """
        if self._backend.is_remote:  # No replica takes over from a file.
            with suppress(ConnectionFailedError, LogFullError, RepartitionConflictError):
                if (closed := self.closed) is not None:
                    finish(self._backend, *closed)
                check_closed_logs(self._backend)
        found = {}
        for partition, log in self.others.items():
            with suppress(ConnectionFailedError):
                found[partition] = log.identity()
        return found

    def looked(self, identities: dict[int, int] | BaseException, targets: Iterable[Target]) -> None:
        """Let the segments know what a look has found, so that reads recognize positions of these logs in tokens."""
        self._look_at = time.monotonic() + LOOK_SECONDS
        if isinstance(identities, BaseException):
            return
        for target in targets:
            for partition, identity in identities.items():
                target.opened.know_log(partition, identity)
