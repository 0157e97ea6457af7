"""Batches by partition: the kernels equal the definition, and a split loses and reorders nothing."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorin.engine.format.partition import partition_of
from quorin.engine.rows.partitions import order_by_partition, partitions_of, split

COUNTS = st.sampled_from([1, 2, 16, 256])
IDS = st.lists(st.text(max_size=40), max_size=20)


@given(IDS, COUNTS, st.integers(0, 5))
@settings(max_examples=50, deadline=None)  # The first compiles.
def test_the_kernel_equals_the_definition(ids: list[str], count: int, start: int) -> None:
    expected = [partition_of(entity_id, count) for entity_id in ids][start:]
    for kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
        found = partitions_of(pa.array([entity_id.encode() for entity_id in ids], kind).slice(start), count)
        assert (found.dtype, found.tolist()) == (np.uint8, expected)


@given(st.lists(st.integers(0, 15), max_size=200))
@settings(deadline=None)
def test_the_order_is_stable(partitions: list[int]) -> None:
    found = np.array(partitions, np.uint8)
    order, starts = order_by_partition(found, 16)
    assert order.tolist() == np.argsort(found, kind="stable").tolist()
    assert starts.tolist() == [sum(partition < begin for partition in partitions) for begin in range(17)]


@given(IDS, COUNTS)
@settings(max_examples=50, deadline=None)
def test_a_split_has_every_row_once_and_in_its_order(ids: list[str], count: int) -> None:
    batch = pa.RecordBatch.from_pydict({"entity_id": pa.array(ids, pa.string()), "row": pa.array(range(len(ids)))})
    parts = split(batch, count)
    assert all(part.num_rows for part in parts.values())
    for partition, part in parts.items():
        rows = [row for row, entity_id in enumerate(ids) if partition_of(entity_id, count) == partition]
        assert part.to_pydict() == {"entity_id": [ids[row] for row in rows], "row": rows}
    assert sum(part.num_rows for part in parts.values()) == len(ids)


@pytest.mark.parametrize("column", [[None, [1, 2]], [None, b"x"], [None, True], [{"a": 1}, None]])
def test_a_split_keeps_every_type(column: list[object]) -> None:
    batch = pa.RecordBatch.from_arrays([pa.array(["a", "b"]), pa.array(column)], names=["entity_id", "v"])
    rows = [row for part in split(batch, 256).values() for row in part.to_pylist()]
    assert sorted(rows, key=lambda row: row["entity_id"]) == batch.to_pylist()
