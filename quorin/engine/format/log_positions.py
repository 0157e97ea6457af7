"""What a segment's header says of the logs: how far each is applied, and the closed ones."""

from __future__ import annotations

import numpy as np

PARTITION_DTYPE = np.dtype(
    [("log_identity", "<u8"), ("position", "<u8"), ("confirmed_ns", "<i8"), ("forgotten", "<u8")]
)
"""What is applied from one partition of the log: the log's identity, the last applied position, the latest time (ns
since the epoch) at which the log is known to have had nothing more (below 0 while the partition is being filled, see
:mod:`quorin.engine.memory.filling`), and the last position of a deletion that earlier generations had and this one has
not; 0 before the first. Of a partition that is not held, the identity alone."""

CLOSED_DTYPE = np.dtype([("log_identity", "<u8"), ("position", "<u8")])
"""A log that was closed when the deployment grew: its identity, and up to where it is applied; 0 if its partition was
not held."""
MAX_CLOSED = 200


def first_closed(partition_count: int) -> int:
    """The number of the first closed log in the table of a segment of so many partitions: partition ``p`` of ``c`` has
    the number ``c + p``.
    """
    return max(0, partition_count - MAX_CLOSED)
