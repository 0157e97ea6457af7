"""Batches by partition: which partition each id is in, and a batch split into one for each partition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quorin.engine.format.partition import check_count, hash_shift
from quorin.engine.rows.packed import text_addresses

if TYPE_CHECKING:
    from collections.abc import Callable

    from quorin.engine.arrays import Bytes, Int64s


def partitions_of(ids: pa.Array, count: int) -> Bytes:
    """The partition, of ``count``, of each id of an Arrow array of strings or bytes, as uint8 of shape ``(n,)``.

    Equal to :func:`quorin.engine.format.partition.partition_of`. Ids must not be null.
    """
    if check_count(count) == 1 or not len(ids):
        return np.zeros(len(ids), np.uint8)
    from quorin.engine import kernels

    partitions = np.empty(len(ids), np.uint8)
    kernels.partitions_of(*text_addresses(ids), hash_shift(count), partitions)
    return partitions


def order_by_partition(partitions: Bytes, count: int) -> tuple[Int64s, Int64s]:
    """Row numbers in the order of partitions, int64 of shape ``(n,)``, and where each begins, of ``(count + 1,)``.

    Rows of one partition stay in their order.
    """
    from quorin.engine import kernels

    starts, order = np.empty(count + 1, np.int64), np.empty(partitions.size, np.int64)
    kernels.order_by_partition(partitions, starts, order)
    return order, starts


def by_partition(ids: pa.Array, count: int, read: Callable[[int, pa.Array], pa.Table]) -> pa.Table:
    """A row for each id, in their order: ``read(partition, places)`` returns those of the ids at some places, which are
    all of a partition's. Without ids, of no place of partition 0.
    """
    order, starts = order_by_partition(partitions_of(ids, count), count)
    ordered, begins = pa.array(order), starts.tolist()
    sizes = np.diff(starts).tolist()
    held = [partition for partition in range(count) if sizes[partition]] or [0]
    found = pa.concat_tables(read(one, ordered.slice(begins[one], sizes[one])) for one in held)
    places = np.empty(len(ids), np.int64)
    places[order] = np.arange(len(ids))
    return found.take(pa.array(places))


def split(batch: pa.RecordBatch, count: int) -> dict[int, pa.RecordBatch]:
    """The rows of a canonical batch by partition, in their order; partitions without rows are left out."""
    if not batch.num_rows:
        return {}
    order, starts = order_by_partition(partitions_of(batch.column(0), count), count)
    ordered, begins = pc.take(batch, pa.array(order), boundscheck=False), starts.tolist()
    return {
        partition: ordered.slice(begins[partition], begins[partition + 1] - begins[partition])
        for partition in range(count)
        if begins[partition + 1] > begins[partition]
    }
