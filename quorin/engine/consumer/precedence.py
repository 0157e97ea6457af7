"""Which process applies the log on a node: a consumer goes before a follower, and of the followers one applies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorin.engine.memory.lock import FileLock, is_locked

if TYPE_CHECKING:
    from quorin.engine.memory.node import Node


class Precedence:
    """A consumer's claim on its node, which followers yield to. It ends with the process."""

    def __init__(self, node: Node, *, claims: bool) -> None:
        self._node = node
        self._claims = claims
        self._lock: FileLock | None = None

    def claim(self) -> None:
        """Claim the node, unless another consumer of the node has done so."""
        if self._claims and (self._lock is None or not self._lock.is_ours):
            self._lock = FileLock.try_acquire(self._node.lock_path("consumer"))

    @property
    def is_claimed(self) -> bool:
        """Whether a consumer of the node has claimed it."""
        return is_locked(self._node.lock_path("consumer"))

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
