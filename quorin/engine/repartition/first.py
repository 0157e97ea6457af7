"""With how many partitions a segment begins, so that it gets the rows of before the deployment grew."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from quorin.engine.backend.protocols import in_order
from quorin.engine.format.growth import Growth
from quorin.errors import PartitionCountError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quorin.engine.backend import Backend, Beginnings
    from quorin.engine.format.partition import Partitioning
    from quorin.engine.memory.segment import Segment
    from quorin.shm import SegmentRegistry


@contextmanager
def at_the_first_count(registry: SegmentRegistry, beginning: Beginnings) -> Iterator[None]:
    """Inside the block a segment is built that has no rows yet: it begins with the number of partitions that the
    deployment was made with, whatever the node's other segments have, as older rows are in the logs and the history of
    that. Of a schema that begins later, what they have is of a former life: it begins with the number of then.

    The registry stays there behind the block, for a consumer to go on from, unless building failed.
    """
    before, growth = registry.partitioning, Growth.parse(registry.backend.control.growth())
    if growth.former:
        first = max(growth.former[0].count, len(in_order(beginning)))
        registry.set_partitioning(registry.partitioning_at(first))
    try:
        yield
    except BaseException:
        registry.set_partitioning(before)
        raise


def check_can_add(backend: Backend, segment: Segment, wanted: Partitioning) -> None:
    """A segment that has rows takes no more partitions once the deployment has grown: those of before would be missing.

    :raises PartitionCountError: if it would have to.
    """
    here = segment.partitioning
    if wanted.held <= here.held or not Growth.parse(backend.control.growth()).former:
        return
    raise PartitionCountError(
        f"segment {segment.name!r} holds the partitions {here}, and cannot be given {wanted}: the deployment has "
        "grown, and what was written before is not in the logs and the history of these; hold what it holds, or remove "
        "this node's segments and start it as a new one"
    )
