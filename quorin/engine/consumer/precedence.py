"""Which process applies the log on a node: a consumer goes before a follower, and of the followers one applies.

Each holds the lock of a file, and shows by the file's time that it lives: one that is frozen is passed over. This only
spares the node needless work. That two never write to one segment is up to the segment's lease.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quorin.engine.memory.lock import FileLock, is_held, lock_if_there
from quorin.engine.ops import presence
from quorin.engine.ops.holders import publish_holders, report_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quorin.engine.memory.node import Node
    from quorin.shm import SegmentRegistry

DEFAULT_FROZEN_AFTER_SECONDS = 30.0
_CONSUMER, _FOLLOWER, _DECIDING = "consumer", "applier", "deciding"


class Precedence:
    """Whether one consumer goes before the others of its node, which ends with its process.

    A consumer of all schemas claims the node. A follower, which has a ``turn``, stops when a consumer that lives has
    claimed it, or when its turn is another's.
    """

    def __init__(
        self, registry: SegmentRegistry, turn: FileLock | None, *, discovers: bool, frozen_after_seconds: float
    ) -> None:
        self._registry = registry
        self._control = registry.backend.control
        self.node = registry.node
        self.role = "consumer" if turn is None else "follower"
        self._turn = turn
        self._claims = discovers and turn is None
        self._frozen_after_seconds = frozen_after_seconds
        self._lock: FileLock | None = None

    def must_stop(self) -> bool:
        """Claim the node if no other consumer has, and show life; return whether this one has to yield."""
        path = self.node.lock_path(_CONSUMER)
        if self._claims and (self._lock is None or not self._lock.is_ours):
            from quorin.engine import kernels

            # Nobody applies on the node from the claim to the first read, which waits for these.
            kernels.load(kernels.APPLYING)
            self._lock = FileLock.try_acquire(path)
        self.show_life()
        if self._turn is None:
            return False
        return not self._turn.is_in_place or is_held(path, frozen_after_seconds=self._frozen_after_seconds)

    def show_life(self) -> None:
        """Show that this process is not frozen. What takes long does so now and then."""
        for lock in (self._lock, self._turn):
            if lock is not None:
                lock.show_life()

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


def take_turn(node: Node, *, frozen_after_seconds: float = DEFAULT_FROZEN_AFTER_SECONDS) -> FileLock | None:
    """The lock of the node's one follower that applies; None if another has it, or if a consumer claimed the node.

    One that has shown no life for ``frozen_after_seconds`` loses it: its file is replaced by another. When it wakes it
    finds its own file gone, and whatever it does to that concerns nobody.
    """
    claim, path = node.lock_path(_CONSUMER), node.lock_path(_FOLLOWER)
    if any(is_held(one, frozen_after_seconds=frozen_after_seconds) for one in (claim, path)):
        return None
    # Only the holder of this lock replaces the file, so of those that found no other holder one gets the turn.
    deciding = lock_if_there(node.lock_path(_DECIDING))
    if deciding is None:
        return None
    try:
        if is_held(path, frozen_after_seconds=frozen_after_seconds):
            return None
        path.unlink(missing_ok=True)
        turn = lock_if_there(node.lock_path(_FOLLOWER))
        if turn is not None:
            turn.show_life()
        return turn
    finally:
        deciding.release()
