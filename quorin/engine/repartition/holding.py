"""Which partitions the segments of a registry hold."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from quorin.engine.format.partition import Partitioning
from quorin.engine.repartition.node import node_count

if TYPE_CHECKING:
    from pathlib import Path

    from quorin.engine.backend import Backend
    from quorin.engine.memory.node import Node


class Holding:
    """The partitions of a node, by what was asked for and how many the deployment has."""

    backend: Backend
    node: Node
    shm_dir: Path
    held: frozenset[int] | str | None

    @cached_property
    def partitioning(self) -> Partitioning:
        """How many partitions there are, and which are held; as many as there were until this node has applied that.

        :raises PartitionCountError: if ``held`` names others. :raises ConnectionFailedError: if it cannot be asked.
        """
        return self.partitioning_at(node_count(self.backend, self.node, self.shm_dir))

    def partitioning_at(self, count: int) -> Partitioning:
        """The partitions to hold if there are ``count``: those with the same rows."""
        return self._wanted.at(count)

    def set_partitioning(self, partitioning: Partitioning) -> None:
        """Hold these from now on: this node follows their logs."""
        self.__dict__["partitioning"] = partitioning

    @cached_property
    def _wanted(self) -> Partitioning:
        return Partitioning.of(self.held, self.backend.partitions())
