"""The compiled way from an Arrow batch to the table of columns gives what the plain way gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from quorin.engine.format.abi import C_VALIDITY, C_VALIDITY_OFFSET, COLUMN_ITEMS
from quorin.engine.rows import packed as packing
from quorin.engine.rows.batch import canonical_schema
from quorin.layout import apply_batch
from quorin.schema import FeatureField, dtype, make_schema
from quorin.serving import read
from quorin.shm import SegmentRegistry
from tests.support.schemas import Everything, rows_of, schemas

PLAIN = make_schema("Plain", [f for f in Everything.fields if f.dtype is not dtype.bool and len(f.shape) <= 1])


def batch_of(schema: Any, rows: list[dict[str, Any]]) -> pa.RecordBatch:
    records = [{"entity_id": f"id {i}", "event_time_ns": i, **row} for i, row in enumerate(rows)]
    return pa.RecordBatch.from_pylist(
        [{name: _plain(value) for name, value in record.items()} for record in records], canonical_schema(schema)
    )


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def comparable(schema: Any, batch: pa.RecordBatch, words: np.ndarray) -> list[list[int]]:
    """The table, without where the validity is of columns that have no nulls: only the plain way leaves it out."""
    table = words.reshape(-1, COLUMN_ITEMS).copy()
    for index, field in enumerate(schema.fields):
        if not batch.column(field.name).null_count:
            table[index, [C_VALIDITY, C_VALIDITY_OFFSET]] = 0
        elif not table[index, C_VALIDITY]:
            raise AssertionError("nulls, and no validity")
        else:
            # Slices of one buffer: the same bit, counted from there.
            assert table[index, C_VALIDITY_OFFSET] == batch.column(field.name).offset
    return table.tolist()


@settings(deadline=None)
@given(st.data())
def test_both_ways_give_one_table(data: st.DataObject) -> None:
    schema = data.draw(st.sampled_from([PLAIN, Everything]) | schemas())
    batch = batch_of(schema, data.draw(st.lists(rows_of(schema), max_size=6)))
    first = data.draw(st.integers(0, len(batch)))
    batch = batch.slice(first, data.draw(st.integers(0, len(batch) - first)))
    compiled, plain = packing.locate(schema, batch), packing._locate_in_general(schema, batch)
    if len(batch) and packing._arrow_plan(schema) is not None:
        assert (compiled.ids, compiled.times) == (plain.ids, plain.times)
        assert comparable(schema, batch, compiled.columns.words) == comparable(schema, batch, plain.columns.words)


@settings(deadline=None, max_examples=25)
@given(st.lists(rows_of(PLAIN), min_size=1, max_size=6), st.integers(0, 2))
def test_rows_that_went_the_compiled_way_read_as_they_were_written(
    tmp_path_factory: Any, rows: list[dict[str, Any]], first: int
) -> None:
    directory = tmp_path_factory.mktemp("packing")
    registry = SegmentRegistry(directory / "control", shm_dir=directory)
    batch = batch_of(PLAIN, rows).slice(first)
    assert packing._arrow_plan(PLAIN) is not None
    with registry.create(PLAIN, capacity=8) as segment:
        assert apply_batch(segment, batch) == len(batch)
        found = read(segment, batch.column(0).to_pylist())
    for name in batch.schema.names[2:]:
        assert found.column(name).to_pylist().__repr__() == batch.column(name).to_pylist().__repr__()
    registry.backend.close()


def test_a_bitmap_that_says_that_nothing_is_null_is_left_out(tmp_path: Any) -> None:
    """Columns of numbers that were decoded from Parquet have one."""
    two = make_schema("Two", [FeatureField("a", dtype.float32), FeatureField("b", dtype.string)])
    full = batch_of(two, [{"a": 1.5, "b": "s"}, {"a": 2.5, "b": "t"}])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_batches([full]), sink)
    (decoded,) = pq.ParquetFile(sink.getvalue()).iter_batches()
    decoded = pa.RecordBatch.from_arrays(decoded.columns, schema=canonical_schema(two))
    assert decoded.column(2).buffers()[0] is not None
    holed = batch_of(two, [{"a": 1.5, "b": None}])
    for batch, has_nulls in ((decoded, [False, False]), (holed, [False, True])):
        validity = packing.locate(two, batch).columns.words.reshape(-1, COLUMN_ITEMS)[:, C_VALIDITY]
        assert [address != 0 for address in validity] == has_nulls
    registry = SegmentRegistry(tmp_path / "control", shm_dir=tmp_path)
    with registry.create(two, capacity=8) as segment:
        assert apply_batch(segment, decoded) == 2
        found = read(segment, decoded.column(0).to_pylist())
    assert [found.column(name).to_pylist() for name in "ab"] == [[1.5, 2.5], ["s", "t"]]
    registry.backend.close()
