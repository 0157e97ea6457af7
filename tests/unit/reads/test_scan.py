"""Scans: the same rows as the oracle's, whole rows beside a writer, and one generation whatever follows it."""

from __future__ import annotations

import tempfile
import threading
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from quorin import assembly, layout, serving
from quorin.errors import CorruptSegmentError, EntityIdError, InvalidRowError
from quorin.schema import FeatureField, Schema, dtype, make_schema
from quorin.shm import SegmentRegistry
from tests.support.schemas import ENTITY_IDS, Scalars, rows_of, schemas

Row = make_schema("Row", [FeatureField("number", dtype.int64), FeatureField("text", dtype.string)])


@st.composite
def filled(draw: st.DrawFn) -> tuple[Schema, dict[str, dict[str, Any]]]:
    schema = draw(schemas())
    ids = ENTITY_IDS | st.text("ab", min_size=1, max_size=40)  # an id of over 24 bytes is in the heap
    return schema, draw(st.dictionaries(ids, rows_of(schema), max_size=8))


@settings(max_examples=60, deadline=None)
@given(filled(), st.sampled_from([None, "", "a", "ab", "é"]), st.sampled_from([None, 0, 1, 3]), st.data())
def test_a_scan_equals_the_oracle(
    case: tuple[Schema, dict[str, dict[str, Any]]], prefix: str | None, limit: int | None, data: st.DataObject
) -> None:
    schema, rows = case
    deleted = data.draw(st.sets(st.sampled_from(sorted(rows)))) if rows else set()
    fields = data.draw(st.none() | st.lists(st.sampled_from([field.name for field in schema.fields]), unique=True))
    with tempfile.TemporaryDirectory() as directory:
        registry = SegmentRegistry(directory, shm_dir=directory)
        with registry.create(schema, capacity=2) as segment:
            for entity_id, row in rows.items():
                layout.insert(segment, entity_id, layout.pack_row(schema, **row), event_time_ns=hash(entity_id) % 1000)
            for entity_id in deleted:
                layout.delete(segment, entity_id)
            fast, slow = (module.scan(segment, prefix, limit, fields).read_all() for module in (assembly, serving))
            assert fast.column_names == slow.column_names
            assert repr(fast.to_pylist()) == repr(slow.to_pylist())  # NaN is not equal to itself
            if limit is None:
                begins = {entity_id for entity_id in rows if entity_id.startswith(prefix or "")}
                assert set(fast.column("entity_id").to_pylist()) == begins - deleted
        registry.backend.close()


def table(first: int, last: int, *, factor: int = 1) -> pa.Table:
    numbers = [factor * i for i in range(first, last)]
    ids = [f"id{i}" for i in range(first, last)]
    return pa.table({"entity_id": ids, "number": numbers, "text": [str(number) for number in numbers]})


def test_batches_hold_every_row_once_and_can_be_written_again(registry: SegmentRegistry) -> None:
    count = 150_000
    with registry.create(Row, capacity=count) as segment:
        layout.insert_many(segment, table(0, count), event_time_ns=5)
        batches = list(assembly.scan(segment))
        assert len(batches) > 1
        rows = pa.Table.from_batches(batches)
        assert sorted(rows.column("number").to_pylist()) == list(range(count))
        with registry.create(make_schema("Copy", Row.fields), capacity=count) as copy:
            assert layout.insert_many(copy, rows) == count
            assert len(copy) == count
            registry.discard(copy)
        registry.discard(segment)


def test_rows_are_whole_beside_a_writer_that_grows_the_segment(registry: SegmentRegistry) -> None:
    with registry.create(Row, capacity=256) as writer, registry.open_current(Row) as segment:
        layout.insert_many(writer, table(0, 200), event_time_ns=1)
        stop = threading.Event()

        def write() -> None:
            step = 2
            while not stop.is_set():
                layout.insert_many(writer, table(0, 200, factor=step), event_time_ns=step)
                layout.insert_many(writer, table(200 * step, 200 * step + 50), event_time_ns=step)
                for i in range(200 * step, 200 * step + 50):
                    layout.delete(writer, f"id{i}", event_time_ns=step + 1)
                step += 1

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for _ in range(300):
                rows = assembly.scan(segment).read_all()
                ids = rows.column("entity_id").to_pylist()
                assert len(set(ids)) == len(ids)
                assert set(ids) >= {f"id{i}" for i in range(200)}
                assert rows.column("text").to_pylist() == [str(n) for n in rows.column("number").to_pylist()]
        finally:
            stop.set()
            thread.join()
        assert segment.stats()["generation"] > 1
        registry.discard(writer)


def test_a_scan_stays_in_its_generation_and_outlives_its_segment(registry: SegmentRegistry) -> None:
    with registry.create(Row, capacity=100) as writer:
        layout.insert_many(writer, table(0, 100))
        with registry.open_current(Row) as reader:
            scan = assembly.scan(reader)
            layout.insert_many(writer, table(100, 1000))
            assert len(assembly.scan(reader, "id99").read_all()) == 11
        assert scan.read_all().num_rows == 100
        registry.discard(writer)


def test_what_cannot_be_scanned_is_refused(registry: SegmentRegistry) -> None:
    with registry.create(Scalars, capacity=10) as segment:
        assert assembly.scan(segment).read_all().num_rows == 0
        for limit in (-1, 1.5, True, "3"):
            with pytest.raises(ValueError, match="limit: expected a whole number"):
                assembly.scan(segment, limit=limit)  # type: ignore[arg-type]
        with pytest.raises(EntityIdError, match="prefix: expected the text that ids begin with"):
            assembly.scan(segment, 7)  # type: ignore[arg-type]
        with pytest.raises(InvalidRowError, match="no fields"):
            assembly.scan(segment, fields=["nope"])
        layout.insert(segment, "a", layout.pack_row(Scalars, a=1, b=1, c=1, d=None))
        view = segment.current_view()
        slots = view.mapping.memory[view.layout.index_offset :][: 8 * view.layout.slot_count].view(np.uint64)
        slots[slots != 0] |= np.uint64(0xFFFFFFFF)
        with pytest.raises(CorruptSegmentError, match="points outside the file"):
            assembly.scan(segment).read_all()
        registry.discard(segment)
