"""Of all consumers of a log, on all nodes, one is the historian: it alone writes the history and trims the log."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from quorin.engine.backend.protocols import Fence
from quorin.engine.consumer.history import NoopOfflineWriter
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from quorin.engine.backend import Log
    from quorin.engine.consumer.history import OfflineWriter
    from quorin.engine.memory.node import Node

LEASE_SECONDS = 10.0

_log = get_logger(__name__)


class Historian:
    """One consumer's part in this: whether it is the historian now, by a lease of the log (decision 0102).

    Only a consumer that discovers schemas leaves the history to another; one of named schemas always writes theirs, and
    needs the lease to trim. A consumer that trims goes before a follower, which does not. On one node the consumer that
    owns all segments goes before any other, which is dead or was overtaken.
    """

    def __init__(
        self, log: Log, node: Node, history: OfflineWriter | None, *, role: str, trims: bool, discovers: bool
    ) -> None:
        self.offline = history
        """The history, also while another consumer writes it."""
        self._log = log
        self._node = node
        self._role = role
        self._written = None if type(history) is NoopOfflineWriter else history
        self._discovers = discovers
        self._contends = trims or (discovers and self._written is not None)
        self._random = secrets.token_hex(8)
        self._fence: Fence | None = None
        """The lease on which the history is written; what it lacks has been read again since it was taken."""
        self._may_hold = False
        """Whether the log may count this consumer as the lease's holder."""
        self._releases = 0
        self._reported = ""

    @property
    def name(self) -> str:
        """The holder's name in the lease: role, node, and a random part."""
        return f"{self._role}:{self._node.id}:{self._random}"

    @property
    def history(self) -> OfflineWriter | None:
        """The history that this consumer writes now; None if it keeps none, or another consumer writes it."""
        return self._written if self._fence is not None or not self._discovers else None

    @property
    def fence(self) -> Fence | None:
        """The lease on which the history is written; None without one."""
        return self._fence

    def acquire_call(self, owns_all: Callable[[], bool]) -> Callable[[], Fence | None]:
        """A call that takes or renews the lease, if this consumer wants it; it returns None while another has it.

        Any thread may make it: nothing is written on a lease before :meth:`set_fence`, and one that is taken after a
        :meth:`release` is given back at once.

        :raises WriterFencedError: as ``owns_all``, when it is called.
        """
        releases = self._releases

        def acquired() -> Fence | None:
            if not self._contends or self._releases != releases:
                return None
            fence = self._acquired(owns_all)
            if self._releases != releases:
                self._log.release_historian(self.name)
                return None
            return fence

        return acquired

    def set_fence(self, fence: Fence | None) -> bool:
        """Write on a lease from now on. True if it was taken or lost since the last call: then the log is to be read
        again from where the history is durable.
        """
        before, self._fence = self._fence, fence
        return self._fence != before

    def confirmed(self, owns_all: Callable[[], bool]) -> Fence | None:
        """The lease of the last :meth:`set_fence`, renewed now; None if there was none, or it ended since.

        One that was taken anew does not count: what is applied here may be in no history yet.
        """
        return self._fence if self._fence is not None and self._acquired(owns_all) == self._fence else None

    def end_others_of_node(self) -> None:
        """End the lease of another consumer of this node, which is frozen: what it has decided to trim stays."""
        held = self._log.historian()
        if held is not None and held[0] != self.name and _node_of(held[0]) == self._node.id:
            self._may_hold = True
            self._log.acquire_historian(self.name, _ttl_ms(), replacing=held[0])
            if not self._contends:
                self._log.release_historian(self.name)

    def release(self) -> None:
        """End the lease, if this consumer may hold it, known or not."""
        self._fence = None
        self._releases += 1
        if self._may_hold:
            self._log.release_historian(self.name)
            self._may_hold = False

    def _acquired(self, owns_all: Callable[[], bool]) -> Fence | None:
        self._may_hold = True
        token = self._log.acquire_historian(self.name, _ttl_ms()) or self._replace(owns_all)
        return None if token is None else Fence(self.name, token)

    def _replace(self, owns_all: Callable[[], bool]) -> int | None:
        held = self._log.historian()
        if held is None:
            return self._log.acquire_historian(self.name, _ttl_ms())
        holder = held[0]
        if self._goes_before(holder) or (_node_of(holder) == self._node.id and owns_all()):
            return self._log.acquire_historian(self.name, _ttl_ms(), replacing=holder)
        if holder != self._reported:
            self._reported = holder
            _log.info("history_left_to_another", log=self._log.stream_key, historian=holder)
        return None

    def _goes_before(self, holder: str) -> bool:
        # One that trims without a history must not: then nobody would write the history that the follower keeps.
        return self._role == "consumer" and self._written is not None and holder.startswith("follower:")


def _ttl_ms() -> int:
    return int(LEASE_SECONDS * 1000)


def _node_of(holder: str) -> str:
    return holder.split(":")[1] if holder.count(":") == 2 else ""
