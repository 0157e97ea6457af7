"""Reads that say at which log position each row was written, and rows that are taken for not found."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from quorin import assembly, layout, serving
from quorin.engine.rows.batch import row_batch
from quorin.errors import InvalidBufferError, InvalidRowError, SchemaError
from quorin.schema import FeatureField, dtype
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer, position_at
from tests.support.schemas import Everything

ROW = {field.name: None for field in Everything.fields} | {"f64": 2.5, "text": "t", "vector": [1, 2, 3], "tags": ["a"]}


def test_positions_come_with_the_rows_they_wrote(registry: SegmentRegistry) -> None:
    with registry.create(Everything, capacity=4) as segment:
        for position, entity_id in enumerate("abc", 5):
            layout.apply_batch(segment, row_batch(Everything, entity_id, ROW, 7), position=position)
        for fields in (None, [], ["tags", "f64"]):
            plain = assembly.column_reader(segment, fields)
            read = assembly.column_reader(segment, fields, positions=True)
            for ids in (["a"], ["nobody"], ["c", "nobody", "a"]):
                columns = read(ids)
                assert columns.positions.tolist() == [{"a": 5, "c": 7}.get(one, 0) for one in ids]
                assert columns.to_batch().drop_columns("log_position").equals(plain(ids).to_batch())
            with pytest.raises(InvalidRowError, match="positions=True"):
                plain(["a"]).positions  # noqa: B018
        registry.discard(segment)


def test_dropped_rows_are_as_if_they_were_not_there(registry: SegmentRegistry) -> None:
    with registry.create(Everything, capacity=4) as segment:
        for entity_id in "abc":
            layout.apply_batch(segment, row_batch(Everything, entity_id, ROW, 7), position=9)
        for positions in (False, True):
            read = assembly.column_reader(segment, positions=positions)
            for dropped, ids in (([1], "axc"), ([0, 2], "xby"), ([], "abc"), ([0, 1, 2], "xyz")):
                columns, expected = read([*"abc"]), read([*ids])
                columns.drop(np.isin(np.arange(3), dropped))
                assert columns.buffer.tobytes() == expected.buffer.tobytes()
                assert (
                    columns.to_batch().drop_columns("entity_id").equals(expected.to_batch().drop_columns("entity_id"))
                )
                assert (columns.all_found, columns.complete) == (expected.all_found, expected.complete)
        registry.discard(segment)


def test_a_position_tells_when_its_entry_was_logged(registry: SegmentRegistry, redis_url: str) -> None:
    for connection in (registry.backend, redis_url):
        with WALProducer(connection) as producer:
            before = time.time_ns() // 10**6
            position = producer.write(Everything, "a", ROW, 7)
            after = time.time_ns() // 10**6
        assert position_at(before) <= position < position_at(after + 1)
    assert position_at(-1) == 0


@pytest.mark.parametrize("ids", [[], ["a"], ["x", "a"], ["c", "x", "b", "é"] * 10, ["é"], ["a"] * 300 + ["x"]], ids=len)
def test_batches_and_rows_have_the_same_positions_as_the_oracle(registry: SegmentRegistry, ids: list[str]) -> None:
    with registry.create(Everything, capacity=8) as segment:
        for position, entity_id in enumerate(["a", "b", "c", "é", "gone"], 5):
            layout.apply_batch(segment, row_batch(Everything, entity_id, ROW, 7), position=position << 30)
        layout.delete(segment, "gone")
        for requested in (ids, [*ids, "gone"], np.array(ids, np.str_), pa.array(ids, pa.string())):
            plain, found = assembly.assemble_batch(segment, requested)
            for module in (assembly, serving):
                positions = np.full(len(requested), -7)
                vectors, mask = module.assemble_batch(segment, requested, positions=positions)
                assert vectors.tobytes() == plain.tobytes()
                assert mask.tolist() == found.tolist()
                rows = module.read(segment, requested, ["f64"], positions=True)
                assert rows.schema.names == ["entity_id", "found", "event_time_ns", "log_position", "f64"]
                assert rows["log_position"].fill_null(0).to_pylist() == positions.tolist()
                assert rows["log_position"].is_null().to_pylist() == [not is_found for is_found in found]
                assert rows.drop_columns("log_position").equals(module.read(segment, requested, ["f64"]))
            expected = {"a": 5, "b": 6, "c": 7, "é": 8}
            assert positions.tolist() == [expected.get(str(one), 0) << 30 for one in requested]
            positions[:] = -7
            _, mask = assembly.reader(segment, ["f64"]).batch(requested, positions=positions, missing=3)
            assert (mask.tolist(), positions.min(initial=0) >= 0) == (found.tolist(), True)
        registry.discard(segment)


@pytest.mark.parametrize(
    "positions", [[0], np.zeros(1), np.zeros(2, np.int64), np.zeros((1, 1), np.int64), np.array(np.int64(0))]
)
def test_a_buffer_for_positions_that_does_not_fit_is_refused(registry: SegmentRegistry, positions: Any) -> None:
    with registry.create(Everything, capacity=8) as segment:
        for module in (assembly, serving):
            with pytest.raises(InvalidBufferError, match="positions must be a writeable C-contiguous int64 array"):
                module.assemble_batch(segment, ["a"], positions=positions)
        registry.discard(segment)


def test_positions_of_a_batch_hold_across_growth(registry: SegmentRegistry) -> None:
    with registry.create(Everything, capacity=2) as segment:
        reader = registry.open_current(Everything)
        for number in range(40):
            layout.apply_batch(segment, row_batch(Everything, f"id{number}", ROW, 7), position=number + 1)
        for count in (3, 40):
            positions = np.zeros(count, np.int64)
            _, found = assembly.assemble_batch(reader, [f"id{number}" for number in range(count)], positions=positions)
            assert found.all()
            assert positions.tolist() == [*range(1, count + 1)]
        reader.close()
        registry.discard(segment)


def test_one_row_of_several_segments_comes_with_its_positions(registry: SegmentRegistry) -> None:
    with registry.create(Everything, capacity=4) as segment:
        layout.apply_batch(segment, row_batch(Everything, "a", ROW, 7), position=5)
        read = assembly.row_reader([(segment, ["tags", "f64"]), (segment, [])], positions=True)
        plain = assembly.row_reader([(segment, ["tags", "f64"]), (segment, [])])
        for entity_id, position in (("a", 5), ("nobody", None)):
            rows, others = read(entity_id), plain(entity_id)
            assert rows is not None
            assert others is not None
            assert [rows[0].position, rows[1].position] == [position, position]
            assert rows.complete == others.complete
            expected = others[0].columns().to_batch()
            assert rows[0].columns().to_batch().drop_columns("log_position").equals(expected)
        registry.discard(segment)


def test_no_field_is_named_as_the_column_of_positions() -> None:
    with pytest.raises(SchemaError, match="'log_position' is reserved"):
        FeatureField("log_position", dtype.int64)
