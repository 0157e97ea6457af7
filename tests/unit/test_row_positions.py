"""Reads that say at which log position each row was written, and rows that are taken for not found."""

from __future__ import annotations

import time

import numpy as np
import pytest

from quorin import assembly, layout
from quorin.engine.rows.batch import row_batch
from quorin.errors import InvalidRowError
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
