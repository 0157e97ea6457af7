"""Columns of which some rows were read elsewhere equal those of a node that has all rows."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, given, settings

from quorin.assembly import column_reader
from quorin.engine.http.replies import rows_json
from quorin.engine.reads.columns import Columns
from quorin.engine.reads.joined import JoinedColumns
from quorin.engine.rows.batch import checked_row, rows_batch
from quorin.layout import apply_batch
from quorin.schema import Schema
from quorin.shm import Segment, SegmentRegistry
from tests.support.schemas import Everything, rows_of, schemas

NOW = 10**18
IDS = [f"id{number}" for number in range(8)]


@contextmanager
def filled(registry: SegmentRegistry, schema: Schema, rows: dict[str, tuple[int, dict[str, Any]]]) -> Iterator[Segment]:
    with registry.create(schema, capacity=64, set_current=False) as segment:
        for entity_id, (event_time_ns, values) in rows.items():
            batch = rows_batch(schema, [checked_row(schema, entity_id, values, event_time_ns)])
            apply_batch(segment, batch, position=1 + int(entity_id[2:]))
        yield segment
        segment.current_view().path.unlink()


def sent(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch as it arrives from another node."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pa.ipc.open_stream(sink.getvalue()) as stream:
        return stream.read_next_batch()


def assert_equal(columns: Columns, expected: Columns, schema: Schema, ids: list[str]) -> None:
    assert columns.found.tolist() == expected.found.tolist()
    assert columns.event_time_ns.tolist() == expected.event_time_ns.tolist()
    assert columns.positions.tolist() == expected.positions.tolist()
    assert (columns.complete, columns.all_found) == (expected.complete, expected.all_found)
    assert columns.fresh.tolist() == expected.fresh.tolist()
    for index, field in enumerate(columns.fields):
        valid = columns.valid(index)
        assert valid.tolist() == expected.valid(index).tolist()
        outdated = [None if one is None else one.tolist() for one in (c.outdated(index) for c in (columns, expected))]
        assert outdated[0] == outdated[1]
        if not field.is_variable:
            assert columns.values(index).tobytes() == expected.values(index).tobytes()
        elif field.dtype.is_numeric:
            lists = zip(columns.lists(index), expected.lists(index), valid, strict=True)
            assert all(repr(one) == repr(other) for one, other, is_valid in lists if is_valid)
    ours, theirs = columns.to_batch(), expected.to_batch()
    assert ours.schema == theirs.schema
    assert repr(ours.to_pylist()) == repr(theirs.to_pylist())
    ours.validate(full=True)
    assert rows_json(schema, ids, columns, positions=True) == rows_json(schema, ids, expected, positions=True)
    runs, expected_runs = list(columns.runs()), list(expected.runs())
    assert [(own, values.tobytes()) for own, values in runs] == [(own, one.tobytes()) for own, one in expected_runs]


def compare(
    registry: SegmentRegistry,
    schema: Schema,
    rows: dict[str, tuple[int, dict[str, Any]]],
    here: set[str],
    ids: list[str],
    fields: Sequence[str] | None = None,
    max_age: Any = None,
) -> tuple[JoinedColumns, Columns]:
    """Rows of the ids in ``here`` are read from one segment, those of the others from a second, all from a third."""
    ours = {one: row for one, row in rows.items() if one in here}
    others = {one: row for one, row in rows.items() if one not in here}
    with (
        filled(registry, schema, rows) as full,
        filled(registry, schema, ours) as own,
        filled(registry, schema, others) as other,
    ):
        expected = column_reader(full, fields, positions=True, max_age=max_age)(ids, now_ns=NOW)
        local = column_reader(own, fields, positions=True, max_age=max_age)(ids, now_ns=NOW)
        away = np.array([index for index, one in enumerate(ids) if one not in here], np.int64)
        read_there = column_reader(other, [field.name for field in local.fields], positions=True)
        halves = [half for half in (away[::2], away[1::2]) if len(half)]
        parts = [(half, sent(read_there([ids[index] for index in half]).to_batch())) for half in halves]
        joined = JoinedColumns(local, ids, parts)
        assert_equal(joined, expected, schema, ids)
        dropped = np.arange(len(ids)) % 3 == 0
        for columns in (joined, expected):
            columns.drop(dropped)
        assert_equal(joined, expected, schema, ids)
        return joined, expected


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, ...]:
    schema = draw(schemas() | st.just(Everything))
    times = st.sampled_from([NOW, NOW - 10**9, NOW - 10**12, -5, 0])
    known = draw(st.lists(st.sampled_from(IDS[:-1]), unique=True))
    rows = {one: (draw(times), draw(rows_of(schema))) for one in known}
    here = set(draw(st.lists(st.sampled_from(IDS))))
    ids = draw(st.lists(st.sampled_from(IDS), max_size=12))
    names = [field.name for field in schema.fields]
    fields = draw(st.none() | st.permutations(names).map(lambda order: order[: 1 + len(order) // 2]))
    limited = st.dictionaries(st.sampled_from(fields or names), st.just(60.0), min_size=1)
    return schema, rows, here, ids, fields, draw(st.none() | st.just(2.0) | limited)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_rows_of_two_nodes_equal_those_of_one(case: tuple[Any, ...], registry: SegmentRegistry) -> None:
    compare(registry, *case)
