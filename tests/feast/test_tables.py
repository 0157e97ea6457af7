"""Arrow columns are stored as what Feast's own conversion makes of them."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from feast import Field
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.types import Array, Float32, Int64, String
from feast.value_type import ValueType

from feast_quorin.convert.codecs import codec_for
from feast_quorin.convert.entity_ids import entity_id_column, entity_ids
from feast_quorin.views import StoredFeature, StoredView
from feast_quorin.write.tables import TableReader, feature_column, key_column
from quorin.engine.rows.batch import to_batch
from quorin.errors import EntityIdTooLongError, InvalidRowError
from quorin.schema import make_schema

NOON = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)
HALVES = np.array([1.5, -2.7, float("nan"), 65504.0], np.float16)
COLUMNS: dict[str, tuple[ValueType, pa.Array]] = {
    "floats": (ValueType.FLOAT, pa.array([1.5, None, float("nan"), float("-inf")], pa.float32())),
    "floats from doubles": (ValueType.FLOAT, pa.array([0.1, None, 1e-300], pa.float64())),
    "floats from integers": (ValueType.FLOAT, pa.array([2**24 + 1, -3], pa.int64())),
    "doubles": (ValueType.DOUBLE, pa.array([0.1, None, float("nan"), 1e300])),
    "doubles from integers": (ValueType.DOUBLE, pa.array([1, -3], pa.int64())),
    "doubles of decimals": (ValueType.DOUBLE, pa.array([1.0, None], pa.float64())),
    "floats from halves": (ValueType.FLOAT, pa.array(HALVES)),
    "integers from halves": (ValueType.INT64, pa.array(HALVES)),
    "int32 from halves": (ValueType.INT32, pa.array(HALVES)),
    "texts from halves": (ValueType.STRING, pa.array(HALVES)),
    "lists of halves": (ValueType.FLOAT_LIST, pa.array([HALVES, HALVES[:0]], pa.list_(pa.float16()))),
    "int32 from floats": (ValueType.INT32, pa.array([2.5, None, -0.5], pa.float32())),
    "int32": (ValueType.INT32, pa.array([1, -(2**31)], pa.int64())),
    "int64": (ValueType.INT64, pa.array([2**63 - 1, -(2**63), 0])),
    "integers as pandas has them with nulls": (ValueType.INT64, pa.array([3.0, float("nan"), -4.0])),
    "integers from fractions": (ValueType.INT64, pa.array([3.7, -3.7])),
    "unsigned": (ValueType.INT64, pa.array([7, 2**31], pa.uint32())),
    "integers from texts": (ValueType.INT64, pa.array(["7", "-8"])),
    "booleans": (ValueType.BOOL, pa.array([True, None, False])),
    "texts": (ValueType.STRING, pa.array(["", None, "名前", "a|b"])),
    "large texts": (ValueType.STRING, pa.array(["", None, "x"], pa.large_string())),
    "dictionaries": (ValueType.STRING, pa.array(["a", None, "a"]).dictionary_encode()),
    "texts from numbers": (ValueType.STRING, pa.array([1, 2])),
    "bytes": (ValueType.BYTES, pa.array([b"", None, b"\x00\xff"])),
    "images": (ValueType.IMAGE_BYTES, pa.array([b"png"], pa.large_binary())),
    "times": (ValueType.UNIX_TIMESTAMP, pa.array([NOON, None, NOON], pa.timestamp("us", "UTC"))),
    "times before the epoch": (
        ValueType.UNIX_TIMESTAMP,
        pa.array([-1, -1_500_000_000, 1_999_999_999], pa.timestamp("ns")),
    ),
    "times in seconds": (ValueType.UNIX_TIMESTAMP, pa.array([5, 6], pa.int64())),
    "nothing but nulls": (ValueType.INT64, pa.nulls(3)),
    "nulls of texts": (ValueType.STRING, pa.nulls(3, pa.string())),
    "empty": (ValueType.DOUBLE, pa.array([], pa.float64())),
    "float lists": (ValueType.FLOAT_LIST, pa.array([[1.5, -2], None, [], [float("nan")]], pa.list_(pa.float32()))),
    "fixed lists": (ValueType.FLOAT_LIST, pa.array([[1.5, -2], None, [3, 4]], pa.list_(pa.float32(), 2))),
    "float lists from doubles": (ValueType.FLOAT_LIST, pa.array([[0.1], []])),
    "double lists": (ValueType.DOUBLE_LIST, pa.array([[0.1], None], pa.large_list(pa.float64()))),
    "int lists": (ValueType.INT64_LIST, pa.array([[1, -(2**63)], [], None])),
    "int32 lists": (ValueType.INT32_LIST, pa.array([[1, 2], [3]])),
    "lists with nulls": (ValueType.STRING_LIST, pa.array([["a", None], []])),
    "text lists": (ValueType.STRING_LIST, pa.array([["a", ""], [], None, ["名"]])),
    "boolean lists": (ValueType.BOOL_LIST, pa.array([[True], None, []])),
    "bytes lists": (ValueType.BYTES_LIST, pa.array([[b"a", b""], None])),
    "time lists": (ValueType.UNIX_TIMESTAMP_LIST, pa.array([[NOON], []], pa.list_(pa.timestamp("us")))),
    "json": (ValueType.JSON, pa.array(['{"a": [1, null]}', None])),
    "uuids": (ValueType.UUID, pa.array([str(uuid.UUID(int=5)), None])),
    "decimals": (ValueType.DECIMAL, pa.array([decimal.Decimal("1.50"), None])),
    "maps": (ValueType.MAP, pa.array([{"a": 1}, None], pa.struct({"a": pa.int64()}))),
    "sets": (ValueType.INT64_SET, pa.array([[1, 2], [2]])),
}


def protos(kind: ValueType, array: pa.Array) -> list[str]:
    """What the store reads back after a column was written; as text, in which not-a-numbers are equal."""
    codec = codec_for(kind)
    schema = make_schema("Column", [codec.field("field")])
    ids = [f"{row}" for row in range(len(array))]
    batch = to_batch(schema, pa.table({"entity_id": ids, "field": feature_column(array, kind, codec)}), event_time_ns=1)
    return [repr(value) for value in codec.to_protos(batch.column("field"))]


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_mean_what_they_mean_in_feast(name: str) -> None:
    kind, array = COLUMNS[name]
    expected = python_values_to_proto_values(array.to_numpy(zero_copy_only=False), kind)
    assert protos(kind, array) == [repr(value) for value in expected]


@pytest.mark.parametrize(
    ("kind", "plain", "wrapped"),
    [
        (ValueType.STRING, pa.string(), pa.string_view()),
        (ValueType.STRING, pa.string(), pa.dictionary(pa.int32(), pa.string())),
        (ValueType.STRING, pa.string(), pa.dictionary(pa.uint32(), pa.string_view())),
        (ValueType.BYTES, pa.binary(), pa.binary_view()),
        (ValueType.STRING_LIST, pa.list_(pa.string()), pa.list_(pa.string_view())),
        (ValueType.BYTES_LIST, pa.list_(pa.binary()), pa.large_list(pa.binary_view())),
    ],
)
def test_views_and_dictionaries_are_their_values(kind: ValueType, plain: pa.DataType, wrapped: pa.DataType) -> None:
    values: list[Any] = ["a", "b|", "a", None] if "STRING" in kind.name else [b"a", b"\xff", b"a", None]
    if "LIST" in kind.name:
        values = [[values[0], values[1]], [], None]
    if pa.types.is_dictionary(wrapped):
        texts = pa.array(["b|", "a"], wrapped.value_type)
        array = pa.DictionaryArray.from_arrays(pa.array([1, 0, 1, None], wrapped.index_type), texts)
    else:
        array = pa.array(values, wrapped)
    assert protos(kind, array) == protos(kind, pa.array(values, plain))
    if "LIST" not in kind.name:
        assert key_column("k", array[:3], kind).equals(key_column("k", pa.array(values[:3], plain), kind))
        with pytest.raises(ValueError, match=r"join key 'k'.*null"):
            key_column("k", array, kind)


def test_large_integers_beside_nulls_stay_exact() -> None:
    assert protos(ValueType.INT64, pa.array([2**62 + 1, None])) == [repr(Value(int64_val=2**62 + 1)), repr(Value())]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.int8, np.uint32])
def test_doubles_may_be_narrower_than_feast_takes_them(kind: Any) -> None:
    numbers = np.array([1.5, 100.1], kind)
    with pytest.raises(AssertionError):
        python_values_to_proto_values(numbers, ValueType.DOUBLE)
    assert protos(ValueType.DOUBLE, pa.array(numbers)) == [repr(Value(double_val=float(each))) for each in numbers]


@pytest.mark.parametrize(
    ("kind", "array"),
    [
        (ValueType.INT32, pa.array([2**31])),
        (ValueType.INT64, pa.array(["seven"])),
        (ValueType.BOOL, pa.array(["yes"])),
        (ValueType.BYTES, pa.array(["text"])),
        (ValueType.JSON, pa.array(["{"])),
    ],
)
def test_values_that_do_not_fit_are_refused(kind: ValueType, array: pa.Array) -> None:
    with pytest.raises(InvalidRowError):
        protos(kind, array)


KEYS: dict[str, tuple[ValueType, pa.Array]] = {
    "integers": (ValueType.INT64, pa.array([0, -5, 2**63 - 1])),
    "small integers": (ValueType.INT32, pa.array([7], pa.int32())),
    "floats for integers": (ValueType.INT64, pa.array([7.0])),
    "texts for integers": (ValueType.INT64, pa.array(["7"])),
    "texts": (ValueType.STRING, pa.array(["", "a|b", "back\\slash", "\\e", "名", "x|\\|"])),
    "large texts": (ValueType.STRING, pa.array(["a|", ""], pa.large_string())),
    "numbers for texts": (ValueType.STRING, pa.array([7, 8])),
    "bytes": (ValueType.BYTES, pa.array([b"\x00a", b""])),
    "booleans": (ValueType.BOOL, pa.array([True, False])),
    "times": (ValueType.UNIX_TIMESTAMP, pa.array([NOON], pa.timestamp("us", "UTC"))),
}


@pytest.mark.parametrize("name", KEYS)
def test_key_columns_give_the_ids_of_feasts_keys(name: str) -> None:
    kind, array = KEYS[name]
    values = python_values_to_proto_values(array.to_numpy(zero_copy_only=False), kind)
    expected = entity_ids(EntityKey(join_keys=["k"], entity_values=[value]) for value in values)
    assert key_column("k", array, kind).to_pylist() == expected


def test_composite_key_columns_follow_the_order_of_their_names() -> None:
    columns = {"shop": pa.array(["7", "8"]), "city": pa.array(["Oslo", r"\e"])}
    assert entity_id_column(columns).to_pylist() == ["Oslo|7", r"\e|8"]


def test_rows_of_a_view_without_join_keys_have_the_id_of_no_key() -> None:
    batch = reader(key=None)(rows(pa.array([NOON] * 2)).drop_columns("k"))
    assert batch.column("entity_id").to_pylist() == entity_ids([EntityKey()]) * 2


def test_null_and_overlong_keys_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'driver_id'.*null"):
        key_column("driver_id", pa.array([1, None]), ValueType.INT64)
    long = rows(pa.array([NOON] * 2), k=["x", "x" * 4097])
    with pytest.raises(EntityIdTooLongError, match=r"view 'v', row 1 \(k='xx.*at most 4096 bytes, got 4097"):
        reader(key=String)(long)


@pytest.mark.parametrize(
    ("kind", "value", "arrow"),
    [
        (ValueType.INT32, 2**31, pa.int64()),
        (ValueType.INT32, -(2**31) - 1, pa.int64()),
        (ValueType.INT64, 2**63 + 1, pa.uint64()),
    ],
)
def test_integers_that_are_out_of_range_are_no_keys(kind: ValueType, value: int, arrow: pa.DataType) -> None:
    with pytest.raises(InvalidRowError, match=rf"'driver_id': expected {kind.name}: .*{value} not in range"):
        key_column("driver_id", pa.array([1, value], arrow), kind)


FEATURE = StoredFeature("n__int64", codec_for(ValueType.INT64))
VIEW = StoredView("v", make_schema("V", [FEATURE.codec.field("n__int64")]), {"n": FEATURE})


def reader(*, key: Any = Int64, **columns: str | None) -> TableReader:
    """A reader of a view with one integer feature, and a key of this type unless it is None."""
    source = SimpleNamespace(timestamp_field="at", created_timestamp_column=columns.get("created"))
    table = SimpleNamespace(
        name="v",
        features=[Field(name="n", dtype=Int64)],
        schema=[],
        entity_columns=[] if key is None else [Field(name="k", dtype=key)],
        batch_source=source,
    )
    return TableReader(VIEW, table)


def rows(at: pa.Array, **more: list[Any]) -> pa.Table:
    count = len(at)
    return pa.table({"k": more.pop("k", list(range(count))), "n": list(range(count)), "at": at, **more})


def test_times_are_kept_to_the_nanosecond() -> None:
    times = [1_714_550_400_123_456_789, -1]
    for kind in (pa.timestamp("ns"), pa.timestamp("ns", "UTC"), pa.timestamp("ns", "Europe/Oslo")):
        batch = reader()(rows(pa.array(times, kind)))
        assert batch.column("event_time_ns").to_pylist() == times
        assert batch.column("entity_id").to_pylist() == ["0", "1"]
        assert batch.column("n__int64").to_pylist() == [0, 1]


def test_times_may_be_texts_as_in_what_is_pushed_over_http() -> None:
    batch = reader()(rows(pa.array(["2024-05-01T12:00:00+00:00", "2024-05-01T14:00:00+02:00"])))
    assert batch.column("event_time_ns").to_pylist() == [int(NOON.timestamp()) * 10**9] * 2


@pytest.mark.parametrize(
    "at", [pa.array([NOON, None], pa.timestamp("us", "UTC")), pa.array([NOON.replace(year=3000)] * 2), pa.nulls(2)]
)
def test_rows_without_a_time_are_refused(at: pa.Array) -> None:
    with pytest.raises(InvalidRowError, match=r"view 'v', row [01] \(k=[01]\), event time 'at': expected a time"):
        reader()(rows(at))


def test_a_column_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"'n' of view 'v' not found.*'k', 'at'"):
        reader()(rows(pa.array([NOON])).drop_columns("n"))


def test_the_newest_row_of_an_entity_is_chosen_then_the_newest_created_then_the_last() -> None:
    at = pa.array([5, 7, 7, 7, 1, 1, 1], pa.timestamp("ns"))
    created = pa.array([9, 2, 3, 1, None, None, 0], pa.timestamp("ns"))
    table = rows(at, k=[1, 1, 1, 1, 2, 2, 2], created=created)
    assert reader(created="created").newest(table).column("n").to_pylist() == [6, 2]
    assert reader().newest(table).column("n").to_pylist() == [6, 3]


def test_the_newest_row_is_chosen_among_categories() -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.uint32()), pa.array(["a", "b"], pa.string_view()))
    table = rows(pa.array([5, 7, 7], pa.timestamp("ns"))).set_column(0, "k", texts)
    assert reader().newest(table).column("n").to_pylist() == [1, 2]


def test_the_newest_row_is_found_whatever_the_distance_of_the_times() -> None:
    table = rows(pa.array([2199, 1900], pa.int32()), k=[1, 1])
    years = {
        year: pa.scalar(dt.datetime(year, 1, 1, tzinfo=dt.UTC), pa.timestamp("ns", "UTC"))
        for year in (1900, 2024, 2199)
    }
    at = pa.array([years[2199], years[1900]])
    assert reader().newest(table.set_column(2, "at", at)).column("n").to_pylist() == [0]
    created = pa.array([years[2024], None], pa.timestamp("ns", "UTC"))
    table = rows(pa.array([years[1900]] * 2), k=[1, 1]).append_column("created", created)
    assert reader(created="created").newest(table).column("n").to_pylist() == [0]


def test_vectors_of_other_lengths_are_refused_as_in_feast() -> None:
    field = Field(name="n", dtype=Array(Float32), vector_index=True, vector_length=3)
    table = SimpleNamespace(
        name="v",
        features=[field],
        schema=[field],
        entity_columns=[],
        batch_source=SimpleNamespace(timestamp_field="at", created_timestamp_column=None),
    )
    ragged = pa.table({"n": pa.array([[1.0, 2.0]], pa.list_(pa.float32()))})
    with pytest.raises(ValueError, match="3"):
        TableReader(VIEW, table).check(ragged)
