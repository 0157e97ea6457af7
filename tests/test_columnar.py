"""Typed columns: what they say of themselves, and that they are what `read` gives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorin import assembly, layout, serving
from quorin.errors import EntityIdError, InvalidRowError
from quorin.shm import Segment, SegmentRegistry
from tests.schemas import Everything, Scalars, rows_of

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

    from quorin.growth import grow

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
