"""The kernels that split a batch by partition: the partition of each id, and the rows in the order of partitions."""

from __future__ import annotations

import numpy as np

from quorin.engine.format.hashing import DEFAULT_SEED
from quorin.engine.kernels.compiling import unlocked_kernel
from quorin.engine.kernels.hashing import hash_id
from quorin.engine.kernels.memory import load_offset

_SEED_0, _SEED_1 = map(np.uint64, DEFAULT_SEED)


@unlocked_kernel
def partitions_of(offsets, offset_bytes, ids, shift, partitions):
    """Fill ``partitions`` with the partition of each id: its hash shifted by ``shift`` bits to the right.

    Ids are an Arrow string column: ``offsets`` (address of ``offset_bytes``-wide integers) into ``ids``.
    """
    bits = np.uint64(shift)
    end = load_offset(offsets, offset_bytes, 0)
    for i in range(partitions.size):
        start = end
        end = load_offset(offsets, offset_bytes, i + 1)
        partitions[i] = hash_id(ids + start, end - start, _SEED_0, _SEED_1) >> bits


@unlocked_kernel
def order_by_partition(partitions, starts, order):
    """Fill ``order`` with the row numbers by partition, those of one partition as they were, and ``starts`` with where
    each partition begins; its last item is the number of rows.
    """
    starts[:] = 0
    for i in range(partitions.size):
        starts[partitions[i] + 1] += 1
    for p in range(1, starts.size):
        starts[p] += starts[p - 1]
    nexts = np.empty(starts.size, np.int64)
    nexts[:] = starts
    for i in range(partitions.size):
        p = partitions[i]
        order[nexts[p]] = i
        nexts[p] += 1
