"""Which process applies the log on a node: a consumer goes before a follower, and of the followers one applies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quorin.engine.memory.lock import FileLock, is_locked
from quorin.engine.ops import presence
from quorin.engine.ops.holders import publish_holders, report_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quorin.engine.memory.node import Node
    from quorin.shm import SegmentRegistry


class Precedence:
    """Whether one consumer goes before the others of its node, which ends with its process.

    A ``consumer`` of all schemas claims the node. A ``follower`` stops when a consumer has claimed it.
    """

    def __init__(self, registry: SegmentRegistry, role: str, *, discovers: bool) -> None:
        self._registry = registry
        self._control = registry.backend.control
        self.node = registry.node
        self.role = role
        self._yields = role == "follower"
        self._claims = discovers and not self._yields
        self._lock: FileLock | None = None

    def must_stop(self) -> bool:
        """Claim the node if no other consumer has; return whether this one has to yield."""
        path = self.node.lock_path("consumer")
        if self._claims and (self._lock is None or not self._lock.is_ours):
            from quorin.engine import kernels

            # Nobody applies on the node from the claim to the first read, which waits for these.
            kernels.load(kernels.APPLYING)
            self._lock = FileLock.try_acquire(path)
        return self._yields and is_locked(path)

    def announce(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        """Report this process, its role and node, and what it has applied. With several partitions also which the node
        holds, and where it serves; then the node is told who holds the others.
        """
        count, held = self._registry.partitioning.count, self._registry.partitioning.held
        more = report_of(self.node, count, held) if count > 1 else None
        presence.announce(self._control, self.role, self.node.id, schemas, more)
        if more is not None:
            publish_holders(self._control, self.node)

    def withdraw(self) -> None:
        """Remove the report."""
        presence.withdraw(self._control)

    def release(self) -> None:
        """End the claim."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def try_apply(node: Node) -> FileLock | None:
    """The lock of the node's one follower that applies; None if another has it, or if a consumer claimed the node."""
    if is_locked(node.lock_path("consumer")):
        return None
    return FileLock.try_acquire(node.lock_path("applier"))
