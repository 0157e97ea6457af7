"""Which process applies the log on a node: a consumer goes before a follower, and of the followers one applies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quorin.engine.memory.lock import FileLock, is_locked
from quorin.engine.ops import presence
from quorin.engine.ops.holders import publish_holders, report_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quorin.engine.backend import ControlPlane
    from quorin.engine.format.partition import Partitioning
    from quorin.engine.memory.node import Node


class Precedence:
    """Whether one consumer goes before the others of its node, which ends with its process.

    A ``consumer`` of all schemas claims the node. A ``follower`` stops when a consumer has claimed it.
    """

    def __init__(self, node: Node, role: str, *, discovers: bool) -> None:
        self.node = node
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

    def announce(
        self, control: ControlPlane, schemas: Mapping[str, Mapping[str, Any]], partitioning: Partitioning
    ) -> None:
        """Report this process, its role and node, and what it has applied. With several partitions also which the node
        holds, and where it serves; then the node is told who holds the others.
        """
        count, held = partitioning.count, partitioning.held
        more = report_of(self.node, count, held) if count > 1 else None
        presence.announce(control, self.role, self.node.id, schemas, more)
        if more is not None:
            publish_holders(control, self.node)

    def withdraw(self, control: ControlPlane) -> None:
        """Remove the report."""
        presence.withdraw(control)

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
