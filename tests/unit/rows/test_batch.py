"""Rows and tables are checked and brought into canonical form; the column path decides as the value path does."""

from __future__ import annotations

import datetime
import math
import time
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorin.engine.rows.batch import (
    canonical_schema,
    check_entity_id,
    check_value,
    delete_batch,
    row_batch,
    subset_schema,
    to_batch,
)
from quorin.errors import EntityIdError, EntityIdTooLongError, InvalidRowError
from quorin.schema import FeatureField, FeatureSchema, dtype, make_schema


class Mixed(FeatureSchema):
    version = 1
    fields = (
        FeatureField("score", dtype.float32),
        FeatureField("count", dtype.int32),
        FeatureField("big", dtype.int64),
        FeatureField("small", dtype.uint8),
        FeatureField("flag", dtype.bool),
        FeatureField("name", dtype.string),
        FeatureField("blob", dtype.bytes),
        FeatureField("vector", dtype.float32, shape=(3,)),
        FeatureField("matrix", dtype.int32, shape=(2, 2)),
        FeatureField("history", dtype.float64, shape=(None,)),
        FeatureField("tags", dtype.string, shape=(None,)),
    )


ROW: dict[str, Any] = {
    "score": 0.5,
    "count": -3,
    "big": 2**60,
    "small": 255,
    "flag": True,
    "name": "Zoë",
    "blob": b"\x00\xff",
    "vector": [1, 2.5, 3],
    "matrix": [[1, 2], [3, 4]],
    "history": [1.0, math.inf],
    "tags": ["a", ""],
}


def one_field(code: dtype, shape: tuple[int | None, ...] = ()) -> FeatureField:
    return FeatureField("x", code, shape=shape)


def test_canonical_schema_has_ids_and_times_before_the_fields() -> None:
    schema = canonical_schema(Mixed)
    assert schema.names[:3] == ["entity_id", "event_time_ns", "score"]
    assert schema.field("entity_id") == pa.field("entity_id", pa.string(), nullable=False)
    assert schema.field("event_time_ns") == pa.field("event_time_ns", pa.int64(), nullable=False)
    assert schema.field("matrix").type == pa.list_(pa.list_(pa.int32(), 2), 2)


def test_row_batch_keeps_every_type() -> None:
    batch = row_batch(Mixed, "user_1", ROW, 17)
    assert batch.schema == canonical_schema(Mixed)
    assert batch.to_pylist() == [{"entity_id": "user_1", "event_time_ns": 17, **ROW}]
    batch.validate(full=True)


def test_row_batch_keeps_nulls_and_takes_the_present_time() -> None:
    before = time.time_ns()
    batch = row_batch(Mixed, "user_1", dict.fromkeys(ROW))
    assert before <= batch["event_time_ns"][0].as_py() <= time.time_ns()
    assert all(batch[name][0].as_py() is None for name in ROW)


def test_partial_row_has_only_its_fields() -> None:
    batch = row_batch(Mixed, "user_1", {"tags": ["x"], "count": 1}, 5, partial=True)
    assert batch.schema == subset_schema(Mixed, ["count", "tags"])
    with pytest.raises(InvalidRowError, match="at least one"):
        row_batch(Mixed, "user_1", {}, 5, partial=True)


def test_delete_batch_has_ids_and_times() -> None:
    assert delete_batch(["a", "b"], 3).to_pydict() == {"entity_id": ["a", "b"], "event_time_ns": [3, 3]}
    with pytest.raises(EntityIdError):
        delete_batch(["a", ""], 3)


@pytest.mark.parametrize(
    ("code", "shape", "value", "kept"),
    [
        (dtype.float32, (), 7, 7.0),
        (dtype.float32, (), np.float64(0.1), 0.1),
        (dtype.float32, (), math.inf, math.inf),
        (dtype.float32, (), float(np.finfo(np.float32).max), float(np.finfo(np.float32).max)),
        (dtype.float64, (), 2**63 + 1, float(2**63)),
        (dtype.int32, (), np.int64(-5), -5),
        (dtype.int32, (), 3.0, 3),
        (dtype.int64, (), -(2**63), -(2**63)),
        (dtype.bool, (), np.bool_(True), True),
        (dtype.string, (), np.str_("é"), "é"),
        (dtype.bytes, (), bytearray(b"ab"), b"ab"),
        (dtype.string, (None,), ("a", "b"), ["a", "b"]),
        (dtype.bytes, (None,), np.array([b"a"], object), [b"a"]),
    ],
)
def test_values_that_fit(code: dtype, shape: tuple[int | None, ...], value: Any, kept: Any) -> None:
    result = check_value(one_field(code, shape), value)
    assert result == kept
    assert type(result) is type(kept)


@pytest.mark.parametrize(
    ("code", "shape", "value"),
    [
        (dtype.float32, (3,), [1, 2, 3]),
        (dtype.float32, (3,), np.array([1, 2, 3], np.float64)),
        (dtype.int64, (2, 2), np.array([[1, 2], [3, 4]], np.uint8)),
        (dtype.uint8, (None,), [255.0, 0]),
        (dtype.bool, (None,), [True, False]),
        (dtype.float64, (None,), []),
        (dtype.float32, (2, 1), [np.array([1.0]), [2.0]]),
        (dtype.float64, (None,), (math.nan,)),
    ],
)
def test_arrays_come_back_with_exact_dtype_and_shape(code: dtype, shape: tuple[int | None, ...], value: Any) -> None:
    result = check_value(one_field(code, shape), value)
    assert result.dtype == code.numpy
    np.testing.assert_array_equal(
        result, np.array([np.asarray(part) for part in value], code.numpy).reshape(result.shape)
    )


BAD_VALUES = [
    (dtype.uint8, (), 300),
    (dtype.uint8, (), -1),
    (dtype.int32, (), 2**40),
    (dtype.int64, (), 2**63),
    (dtype.int32, (), 1.5),
    (dtype.int32, (), True),
    (dtype.int32, (), "5"),
    (dtype.float32, (), 1e300),
    (dtype.float32, (), True),
    (dtype.float32, (), "x"),
    (dtype.bool, (), 1),
    (dtype.string, (), b"raw"),
    (dtype.string, (), 5),
    (dtype.bytes, (), "text"),
    (dtype.float32, (3,), [1.0, 2.0]),
    (dtype.float32, (3,), 1.0),
    (dtype.float32, (3,), [1.0, None, 2.0]),
    (dtype.float32, (3,), [1.0, 1e300, 2.0]),
    (dtype.float32, (2, 2), [1.0, 2.0, 3.0, 4.0]),
    (dtype.float32, (2, 2), [[1.0, 2.0], [3.0]]),
    (dtype.int32, (None,), [1, 2.5]),
    (dtype.int32, (None,), [[1]]),
    (dtype.int32, (None,), [True]),
    (dtype.string, (None,), ["a", None]),
    (dtype.string, (None,), "abc"),
    (dtype.bytes, (None,), ["a"]),
]


@pytest.mark.parametrize(
    ("code", "shape", "value"), [*BAD_VALUES, (dtype.string, (), "\ud800"), (dtype.float64, (), 10**400)]
)
def test_values_that_do_not_fit_are_named(code: dtype, shape: tuple[int | None, ...], value: Any) -> None:
    with pytest.raises(InvalidRowError, match=f"field 'x' \\({code.name}\\): expected .*, got "):
        check_value(one_field(code, shape), value)


@pytest.mark.parametrize(("code", "shape", "value"), BAD_VALUES)
def test_a_column_refuses_what_a_value_refuses(code: dtype, shape: tuple[int | None, ...], value: Any) -> None:
    schema = make_schema("One", [one_field(code, shape)])
    column = pa.array([None, value], pa.uint64() if value == 2**63 else None)
    with pytest.raises(InvalidRowError, match="row 1, column 'x'"):
        to_batch(schema, pa.table({"entity_id": ["a", "b"], "x": column}))


@pytest.mark.parametrize(("code", "shape", "value"), BAD_VALUES)
def test_a_frame_refuses_what_a_value_refuses(code: dtype, shape: tuple[int | None, ...], value: Any) -> None:
    schema = make_schema("One", [one_field(code, shape)])
    frame = pd.DataFrame({"entity_id": ["a", "b"], "x": pd.Series([None, value], dtype=object)})
    with pytest.raises(InvalidRowError, match="row 1, column 'x'"):
        to_batch(schema, frame)


@given(
    st.sampled_from([dtype.float32, dtype.float64, dtype.int32, dtype.int64, dtype.uint8]),
    st.lists(st.none() | st.integers(-(2**40), 2**40) | st.sampled_from([0, 255, 256, 2**31, -(2**31)]), max_size=6),
)
def test_columns_of_integers_equal_values_one_by_one(code: dtype, values: list[int | None]) -> None:
    field = one_field(code)
    schema = make_schema("One", [field])
    ids = [f"id{i}" for i in range(len(values))]
    table = pa.table({"entity_id": pa.array(ids, pa.string()), "x": pa.array(values, pa.int64())})
    try:
        expected = pa.array([check_value(field, value) for value in values], canonical_schema(schema).field("x").type)
    except InvalidRowError:
        with pytest.raises(InvalidRowError):
            to_batch(schema, table)
        return
    assert to_batch(schema, table)["x"].equals(expected)


@given(
    st.sampled_from([dtype.float32, dtype.float64, dtype.int32, dtype.uint8]),
    st.lists(st.none() | st.floats() | st.integers(-300, 300).map(float), max_size=6),
)
def test_columns_of_floats_equal_values_one_by_one(code: dtype, values: list[float | None]) -> None:
    field = one_field(code)
    schema = make_schema("One", [field])
    ids = [f"id{i}" for i in range(len(values))]
    table = pa.table({"entity_id": pa.array(ids, pa.string()), "x": pa.array(values, pa.float64())})
    try:
        expected = pa.array([check_value(field, value) for value in values], canonical_schema(schema).field("x").type)
    except InvalidRowError:
        with pytest.raises(InvalidRowError):
            to_batch(schema, table)
        return
    assert repr(to_batch(schema, table)["x"].to_pylist()) == repr(expected.to_pylist())


def test_to_batch_copies_nothing_when_types_match() -> None:
    batch = to_batch(
        Mixed, pa.Table.from_pylist([{"entity_id": "a", "event_time_ns": 1, **ROW}] * 3, canonical_schema(Mixed))
    )
    again = to_batch(Mixed, pa.table(batch.columns[::-1], names=batch.schema.names[::-1]))
    assert again.equals(batch)
    for before, after in zip(batch.columns, again.columns, strict=True):
        assert [b and b.address for b in before.buffers()] == [b and b.address for b in after.buffers()]


def test_to_batch_brings_other_types_into_canonical_form() -> None:
    table = pa.table(
        {
            "tags": pa.array([["a"], None], pa.large_list(pa.large_string())),
            "history": pa.array([[1, 2], []], pa.list_(pa.int64())),
            "matrix": pa.array([None, [[1, 2], [3, 4]]], pa.list_(pa.list_(pa.int64()))),
            "vector": pa.array([[1, 2, 3], None], pa.list_(pa.float64())),
            "blob": pa.array([b"ab", b"cd"], pa.binary(2)),
            "name": pa.array(["x", None]).dictionary_encode(),
            "flag": pa.array([True, None]),
            "small": pa.array([1.0, 2.0]),
            "big": pa.array([1, 2], pa.uint16()),
            "count": pa.nulls(2),
            "score": pa.array([2**30, 1]),
            "entity_id": pa.array(["a", "b"], pa.large_string()),
        }
    )
    batch = to_batch(Mixed, table, event_time_ns=9)
    assert batch.schema == canonical_schema(Mixed)
    batch.validate(full=True)
    assert batch.to_pylist()[0] == {
        "entity_id": "a",
        "event_time_ns": 9,
        "score": 2.0**30,
        "count": None,
        "big": 1,
        "small": 1,
        "flag": True,
        "name": "x",
        "blob": b"ab",
        "vector": [1.0, 2.0, 3.0],
        "matrix": None,
        "history": [1.0, 2.0],
        "tags": ["a"],
    }
    assert batch["vector"][1].as_py() is None
    assert batch["matrix"][1].as_py() == [[1, 2], [3, 4]]
    assert batch["tags"][1].as_py() is None
    assert batch["history"][1].as_py() == []


def test_to_batch_takes_slices_and_chunks() -> None:
    schema = make_schema("One", [one_field(dtype.float32, (2,)), FeatureField("y", dtype.int64, shape=(None,))])
    whole = pa.table(
        {
            "entity_id": [f"id{i}" for i in range(10)],
            "x": pa.array([None if i % 3 == 0 else [i, i + 1] for i in range(10)], pa.list_(pa.float64(), 2)),
            "y": pa.array([None if i % 4 == 0 else list(range(i)) for i in range(10)], pa.list_(pa.int32())),
        }
    )
    part = pa.concat_tables([whole.slice(2, 3), whole.slice(6, 4)])
    batch = to_batch(schema, part, event_time_ns=1)
    assert batch.select(["entity_id", "x", "y"]).to_pylist() == part.to_pylist()
    sliced = to_batch(schema, whole.combine_chunks().to_batches()[0].slice(3, 5), event_time_ns=1)
    assert sliced.select(["entity_id", "x", "y"]).to_pylist() == whole.slice(3, 5).to_pylist()


def test_to_batch_takes_no_rows() -> None:
    assert to_batch(Mixed, canonical_schema(Mixed).empty_table()).num_rows == 0
    assert to_batch(Mixed, canonical_schema(Mixed).empty_table().to_pandas()).num_rows == 0


@pytest.mark.parametrize(
    "times",
    [
        pa.array([1_500_000_000_000_000_000]),
        pa.array([1_500_000_000], pa.timestamp("s")),
        pa.array([1_500_000_000_000], pa.timestamp("ms", "America/New_York")),
        pa.array([1_500_000_000_000_000_000], pa.timestamp("ns", "UTC")),
    ],
)
def test_event_times_of_every_unit_and_zone(times: pa.Array) -> None:
    schema = make_schema("One", [one_field(dtype.bool)])
    batch = to_batch(schema, pa.table({"entity_id": ["a"], "event_time_ns": times, "x": [True]}))
    assert batch["event_time_ns"].to_pylist() == [1_500_000_000_000_000_000]


@pytest.mark.parametrize(
    "times",
    [
        pa.array([1, None]),
        pa.array([None, datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)]),
        pa.array([1.5, 2.5]),
        pa.array(["2020-01-01", "2021-01-01"]),
        pa.array([0, 10**12], pa.timestamp("s")),
        pa.array([0, 2**63], pa.uint64()),
        pa.nulls(2),
    ],
)
def test_bad_event_times_are_refused(times: pa.Array) -> None:
    schema = make_schema("One", [one_field(dtype.bool)])
    with pytest.raises(InvalidRowError, match="event_time_ns"):
        to_batch(schema, pa.table({"entity_id": ["a", "b"], "event_time_ns": times, "x": [True, False]}))


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_an_event_time_out_of_range_is_named_with_its_row(unit: str, sign: int) -> None:
    schema = make_schema("One", [one_field(dtype.bool)])
    times = pa.array([0, None, sign * 2**62, sign * 2**61], pa.timestamp(unit, "Asia/Kathmandu"))
    with pytest.raises(InvalidRowError, match=rf"row 2, column 'event_time_ns': .* got {sign * 2**62} {unit} since"):
        to_batch(schema, pa.table({"entity_id": ["a"] * 4, "event_time_ns": times, "x": [True] * 4}))


@pytest.mark.parametrize("event_time_ns", [1.5, "now", True, 2**63, datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)])
def test_bad_event_time_arguments_are_refused(event_time_ns: Any) -> None:
    schema = make_schema("One", [one_field(dtype.bool)])
    with pytest.raises(InvalidRowError, match="event_time_ns"):
        row_batch(schema, "a", {"x": True}, event_time_ns)


def test_two_sources_of_event_times_are_refused() -> None:
    rows = pa.table({"entity_id": ["a"], "event_time_ns": [5], "x": [True]})
    with pytest.raises(InvalidRowError, match="event_time_ns=7 was passed"):
        to_batch(make_schema("One", [one_field(dtype.bool)]), rows, event_time_ns=7)


def test_pandas_nan_is_nan_for_floats_and_null_for_the_rest() -> None:
    schema = make_schema(
        "Frame",
        [
            FeatureField("f", dtype.float32),
            FeatureField("i", dtype.int64),
            FeatureField("b", dtype.bool),
            FeatureField("s", dtype.string),
            FeatureField("v", dtype.float64, shape=(2,)),
            FeatureField("n", dtype.int32),
        ],
    )
    frame = pd.DataFrame(
        {
            "entity_id": ["a", "b"],
            "event_time_ns": pd.to_datetime(["2020-01-01", "2020-01-02"]),
            "f": [1.0, math.nan],
            "i": [3.0, math.nan],
            "b": np.array([True, None], object),
            "s": ["x", math.nan],
            "v": [np.array([1.0, math.nan]), None],
            "n": pd.array([1, None], dtype="Int32"),
        },
        index=[7, 3],
    )
    rows = to_batch(schema, frame).to_pylist()
    assert rows[0]["event_time_ns"] == 1577836800 * 10**9
    assert math.isnan(rows[1]["f"])
    assert math.isnan(rows[0]["v"][1])
    assert (rows[0]["i"], rows[0]["b"], rows[0]["s"], rows[0]["n"]) == (3, True, "x", 1)
    assert [rows[1][name] for name in "ibsvn"] == [None] * 5


def test_pandas_matrices_and_missing_rows_go_the_slow_way() -> None:
    schema = make_schema("Frame", [one_field(dtype.int32, (2, 2)), FeatureField("y", dtype.float32, shape=(None,))])
    frame = pd.DataFrame(
        {
            "entity_id": ["a", "b"],
            "x": [np.arange(4).reshape(2, 2), None],
            "y": pd.Series([math.nan, [1, 2]], dtype=object),
        }
    )
    rows = to_batch(schema, frame).to_pylist()
    assert [row["x"] for row in rows] == [[[0, 1], [2, 3]], None]
    assert [row["y"] for row in rows] == [None, [1.0, 2.0]]


@pytest.mark.parametrize(
    "ids", [["a", None], ["a", ""], [1, 2], [b"a", b"\xff"], [math.nan, "a"], ["a", "\ud800"], ["a", 1]]
)
def test_bad_entity_ids_are_refused(ids: list[Any]) -> None:
    schema = make_schema("One", [one_field(dtype.bool)])
    with pytest.raises(EntityIdError):
        to_batch(schema, pd.DataFrame({"entity_id": pd.Series(ids, dtype=object), "x": [True, False]}))


def test_long_entity_ids_are_measured_in_utf8_bytes() -> None:
    schema = make_schema("One", [one_field(dtype.bool)])
    table = pa.table({"entity_id": ["ab", "éé"], "x": [True, False]})
    assert to_batch(schema, table, max_id_bytes=4).num_rows == 2
    with pytest.raises(EntityIdTooLongError, match="row 1: entity id 'éé' has 4 bytes in UTF-8, at most 3"):
        to_batch(schema, table, max_id_bytes=3)
    assert check_entity_id("éé", 4) == "éé".encode()
    for bad in ("", None, 5, b"x", "\ud800"):
        with pytest.raises(EntityIdError):
            check_entity_id(bad)
    with pytest.raises(EntityIdTooLongError, match="'abc' has 3 bytes"):
        check_entity_id("abc", 2)


def test_wrong_columns_are_named() -> None:
    schema = make_schema("One", [one_field(dtype.bool)])
    with pytest.raises(InvalidRowError, match="field 'x' is missing"):
        to_batch(schema, pa.table({"entity_id": ["a"]}))
    with pytest.raises(InvalidRowError, match="no field 'y'"):
        to_batch(schema, pa.table({"entity_id": ["a"], "x": [True], "y": [1]}))
    with pytest.raises(InvalidRowError, match="no column 'entity_id'"):
        to_batch(schema, pa.table({"x": [True]}))
    with pytest.raises(InvalidRowError, match="is in the table twice"):
        to_batch(schema, pa.table([["a"], [True], [True]], names=["entity_id", "x", "x"]))
    for no_table in ("a", 1, ["a"], [{"entity_id": "a", "x": True}, "b"], None):
        with pytest.raises(InvalidRowError, match="expected an Arrow table"):
            to_batch(schema, no_table)
    with pytest.raises(InvalidRowError, match="row 1 has the keys"):
        to_batch(schema, [{"entity_id": "a", "x": True}, {"entity_id": "b"}])
    with pytest.raises(InvalidRowError, match="column 'x' has 1 rows, 'entity_id' has 2"):
        to_batch(schema, {"entity_id": ["a", "b"], "x": [True]})
    for single in (True, "yes", {"a": 1}, np.array(True)):
        with pytest.raises(InvalidRowError, match="column 'x': expected one value a row"):
            to_batch(schema, {"entity_id": ["a"], "x": single})
    with pytest.raises(InvalidRowError, match="field 'x' is missing"):
        row_batch(schema, "a", {}, 1)
    with pytest.raises(InvalidRowError, match="no field 'y'"):
        row_batch(schema, "a", {"x": True, "y": 1}, 1)


def test_buffers_that_are_no_utf8_are_refused() -> None:
    schema = make_schema("One", [one_field(dtype.string)])
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff"))
    with pytest.raises(InvalidRowError, match="valid Arrow data"):
        to_batch(schema, pa.table({"entity_id": ["a"], "x": broken}))
