"""Typed columns: what they say of themselves, and that they are what `read` gives."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorin import assembly, layout, serving
from quorin.engine.memory.growth import grow
from quorin.errors import EntityIdError, InvalidRowError
from quorin.schema import dtype
from quorin.shm import Segment, SegmentRegistry
from tests.support.schemas import Everything, Scalars, rows_of

FULL = {
    "f32": 1.5, "f64": 2.5, "i32": -3, "i64": 4, "u8": 5, "flag": True, "text": "é", "blob": b"\0",
    "vector": [1, 2, 3], "grid": [[1, 2], [3, 4]], "flags": [True, False, True], "numbers": [1, 2, 3],
    "marks": [True, False], "tags": ["a", "", "bc"], "blobs": [b"x"],
}  # fmt: skip
NAMES = [field.name for field in Everything.fields]


@pytest.fixture
def segment(registry: SegmentRegistry) -> Iterator[Segment]:
    with registry.create(Everything, capacity=10) as segment:
        layout.insert(segment, "full", layout.pack_row(Everything, **FULL), event_time_ns=7)
        layout.insert(segment, "é", layout.pack_row(Everything, **FULL), event_time_ns=8)
        layout.insert(segment, "no text", layout.pack_row(Everything, **(FULL | {"text": None})), event_time_ns=9)
        yield segment


def test_columns_say_what_was_found_and_what_is_null(segment: Segment) -> None:
    columns = assembly.column_reader(segment)(["full", "nobody", "no text"])
    text = NAMES.index("text")
    assert columns.found.tolist() == [True, False, True]
    assert columns.event_time_ns.tolist() == [7, 0, 9]
    assert columns.valid(text).tolist() == [True, False, False]
    assert columns.valid(0).tolist() == [True, False, True]
    assert not columns.all_found
    assert not columns.complete
    assert columns.arrow(text).to_pylist() == ["é", None, None]


@pytest.mark.parametrize(
    ("ids", "fields", "complete"),
    [
        (["full"], None, True),
        (["full", "é"], None, True),
        (["full", "no text"], None, False),
        (["full", "no text"], ["f32", "tags"], True),
        (["no text"], ["text"], False),
        (["nobody"], ["f32"], False),
        ([], ["f32"], True),
    ],
)
def test_complete_means_that_nothing_read_is_missing(
    segment: Segment, ids: list[str], fields: list[str] | None, complete: bool
) -> None:
    columns = assembly.column_reader(segment, fields)(ids)
    assert columns.complete == complete
    assert columns.complete == (columns.to_batch().to_pandas().notna().all(axis=None) and columns.all_found)


def test_fixed_size_values_are_typed_views_of_one_buffer(segment: Segment) -> None:
    columns = assembly.column_reader(segment, ["grid", "i64", "flag", "vector"])(["full", "nobody"])
    grid, i64, flag, vector = (columns.values(i) for i in range(4))
    assert grid.tolist() == [[[1, 2], [3, 4]], [[0, 0], [0, 0]]]
    assert (i64.dtype, i64.tolist()) == (np.int64, [4, 0])
    assert (flag.dtype, flag.tolist()) == (np.bool_, [True, False])
    assert vector.shape == (2, 3)
    assert all(np.shares_memory(column, columns.buffer) for column in (grid, i64, flag, vector))


@pytest.mark.parametrize("ids", [["full"], ["é"], ["nobody"], ["full", "é"], pa.array(["full"])])
def test_one_id_or_many_ascii_or_not_the_result_is_that_of_the_oracle(segment: Segment, ids: list[str]) -> None:
    assert assembly.column_reader(segment)(ids).to_batch().equals(serving.read(segment, ids))


def test_bad_ids_and_fields_are_named(segment: Segment) -> None:
    read = assembly.column_reader(segment)
    for bad in ([""], [None], [5], ["\ud800"]):
        with pytest.raises(EntityIdError):
            read(bad)
    with pytest.raises(InvalidRowError, match="colour"):
        assembly.column_reader(segment, ["colour"])


def test_a_reader_follows_a_flip(registry: SegmentRegistry) -> None:
    with registry.create(Scalars, capacity=1) as writer, registry.open_current(Scalars) as reading:
        layout.insert(writer, "first", layout.pack_row(Scalars, a=1, b=2, c=3, d=4))
        read = assembly.column_reader(reading, ["d"])
        assert read(["first"]).values(0).tolist() == [4]
        for i in range(20):
            layout.insert(writer, f"id{i}", layout.pack_row(Scalars, a=1, b=2, c=3, d=i))
        assert read(["id19"]).values(0).tolist() == [19]
        assert read(["id19", "first"]).values(0).tolist() == [19, 4]


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_heap_values_of_a_replaced_generation_can_still_be_read(data: st.DataObject) -> None:
    """Columns are read from the heap when they are asked for: the generation they came from is kept until then."""
    import tempfile

    row = data.draw(rows_of(Everything))
    with tempfile.TemporaryDirectory() as directory:
        registry = SegmentRegistry(directory, shm_dir=directory)
        with registry.create(Everything, capacity=1) as segment:
            layout.insert(segment, "x", layout.pack_row(Everything, **row))
            before = serving.read(segment, ["x"])
            columns = assembly.column_reader(segment)(["x"])
            grow(segment, rows=True, heap_bytes=0)
            layout.insert(segment, "x", layout.pack_row(Everything, **(row | {"text": "other"})))
            assert repr(columns.to_batch().to_pylist()) == repr(before.to_pylist())
        registry.backend.close()


def test_old_generations_are_unmapped_without_the_collector(registry: SegmentRegistry) -> None:
    """Serving processes freeze or disable the collector; segments must not pile up behind it."""
    gc.collect()
    gc.disable()
    try:
        with registry.create(Scalars, capacity=1) as writer, registry.open_current(Scalars) as reading:
            layout.insert(writer, "x", layout.pack_row(Scalars, a=1, b=2, c=3, d=4))
            one: Any = assembly.row_reader([(reading, None)])
            readers: list[Any] = [assembly.column_reader(reading), one, assembly.reader(reading)]
            for _ in range(5):
                grow(writer, rows=False, heap_bytes=0)
                for read in readers:
                    read(["x"]) if isinstance(read, assembly.ColumnReader) else read("x")
                assembly.assemble(reading, "x")
                assembly.read(reading, ["x"])
                # The segment that the writer has open, and the one that the reader has.
                assert len(mapped(writer.name)) == len(mapped("quorin_Scalars_")) == 2
    finally:
        gc.enable()


def mapped(name: str) -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if name in line]


@pytest.mark.parametrize("fields", [None, ["tags", "f32", "i64"], ["vector", "text"], ["flag"]])
def test_one_row_is_that_of_the_columns(segment: Segment, fields: list[str] | None) -> None:
    read_one, read = assembly.row_reader([(segment, fields)]), assembly.column_reader(segment, fields)
    for entity_id in ("full", "no text", "nobody"):
        rows, columns = read_one(entity_id), read([entity_id])
        assert rows is not None
        row = rows[0]
        assert rows.complete == row.complete
        assert row.columns().to_batch().equals(columns.to_batch())
        assert row.complete == columns.complete
        for index, field in enumerate(columns.fields):
            assert row.is_valid(index) == columns.valid(index)[0]
            if row.is_valid(index) and not field.is_variable:
                slot = row.layout.slots[index]
                assert list(row.values[slot : slot + field.element_count]) == columns.values(index).ravel().tolist()
            elif row.is_valid(index) and field.dtype is dtype.string and not field.is_list:
                assert row.stored(index).tobytes().decode() == columns.arrow(index)[0].as_py()
    assert read_one("é") is None
    assert read_one(5) is None  # type: ignore[arg-type]


def test_a_row_reader_follows_a_flip(registry: SegmentRegistry) -> None:
    with registry.create(Scalars, capacity=1) as writer, registry.open_current(Scalars) as reading:
        layout.insert(writer, "x", layout.pack_row(Scalars, a=1, b=2, c=3, d=4))
        read = assembly.row_reader([(reading, ["d"])])
        assert read("x") is not None
        grow(writer, rows=True, heap_bytes=0)
        layout.insert(writer, "x", layout.pack_row(Scalars, a=1, b=2, c=3, d=5))
        rows = [read("x"), read("x")]
        assert [found[0].values[found[0].layout.slots[0]] for found in rows if found is not None] == [5]


def test_a_row_of_each_segment_is_what_each_has(registry: SegmentRegistry, segment: Segment) -> None:
    with registry.create(Scalars, capacity=4) as other:
        layout.insert(other, "full", layout.pack_row(Scalars, a=1, b=2, c=3, d=4), event_time_ns=5)
        layout.insert(other, "only here", layout.pack_row(Scalars, a=1, b=None, c=3, d=4), event_time_ns=6)
        parts: list[Any] = [(segment, ["text", "f32"]), (other, ["d", "b"]), (segment, ["grid"]), (other, ["a"])]
        read = assembly.row_reader(parts)
        alone = [assembly.column_reader(part, fields) for part, fields in parts]
        for entity_id in ("full", "only here", "no text", "nobody", "full"):
            rows, columns = read(entity_id), [each([entity_id]) for each in alone]
            assert rows is not None
            assert rows.complete == all(each.complete for each in columns) == (entity_id == "full")
            for number, each in enumerate(columns):
                assert rows[number].columns().to_batch().equals(each.to_batch())
        grow(other, rows=True, heap_bytes=0)
        again = read("full") or read("full")
        assert again is not None
        assert again[1].columns().to_batch().equals(alone[1](["full"]).to_batch())
        registry.discard(other)


@pytest.mark.parametrize("ids", [["full"], ["full", "é", "full"], ["full", "nobody", "short", "é"], ["nobody"], []])
def test_lists_are_those_of_arrow(segment: Segment, ids: list[str]) -> None:
    short = FULL | {"numbers": [7], "marks": None}
    layout.insert(segment, "short", layout.pack_row(Everything, **short), event_time_ns=9)
    columns = assembly.column_reader(segment, ["numbers", "marks"])(ids)
    for index in (0, 1):
        valid, given_lists = columns.valid(index), columns.lists(index)
        shown = [numbers if is_valid else None for numbers, is_valid in zip(given_lists, valid, strict=True)]
        assert shown == columns.arrow(index).to_pylist()
        assert {type(item) for numbers in given_lists for item in numbers} <= {int, bool, float}


@settings(deadline=None)  # the first example loads numba
@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_numbers_are_ids_in_decimal(numbers: list[int]) -> None:
    edges = [0, -1, 9, 10, 2**63 - 1, -(2**63), *(sign * 10**power for power in range(19) for sign in (1, -1))]
    for given_numbers in (numbers, edges):
        ids = assembly.number_ids(np.array(given_numbers, np.int64))
        ids.validate(full=True)
        assert ids.to_pylist() == [str(number) for number in given_numbers]
