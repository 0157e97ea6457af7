"""Feast's rows as columns: what goes quickly through whole columns is what goes value by value."""

from __future__ import annotations

import datetime as dt
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast.protos.feast.types import Value_pb2
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_quorin.convert.codecs import codec_for
from feast_quorin.convert.entity_ids import entity_ids, entity_ids_column
from feast_quorin.convert.times import to_ns, to_ns_column
from feast_quorin.names import field_name
from feast_quorin.views import CREATED, StoredFeature, StoredView
from feast_quorin.write.rows import row_values, rows_to_batch
from quorin.engine.log.record import decode
from quorin.engine.log.record_fast import encode_row
from quorin.engine.rows.batch import to_batch
from quorin.errors import InvalidRowError
from quorin.schema import FeatureField, dtype, make_schema

NULLS = st.sampled_from([Value(), Value(null_val=0)])
SCALARS: dict[ValueType, tuple[str, st.SearchStrategy[Any]]] = {
    ValueType.FLOAT: ("float_val", st.floats(width=32) | st.sampled_from([0.0, -0.0])),
    ValueType.DOUBLE: ("double_val", st.floats() | st.just(0.0)),
    ValueType.INT32: ("int32_val", st.integers(-(2**31), 2**31 - 1) | st.just(0)),
    ValueType.INT64: ("int64_val", st.integers(-(2**63), 2**63 - 1) | st.just(0)),
    ValueType.BOOL: ("bool_val", st.booleans()),
    ValueType.STRING: ("string_val", st.text(st.characters(codec="utf-8"), max_size=4)),
    ValueType.BYTES: ("bytes_val", st.binary(max_size=4)),
    ValueType.UNIX_TIMESTAMP: ("unix_timestamp_val", st.integers(-(2**63), 2**63 - 1)),
}
LISTS = {
    ValueType.FLOAT_LIST: (Value_pb2.FloatList, SCALARS[ValueType.FLOAT][1]),
    ValueType.DOUBLE_LIST: (Value_pb2.DoubleList, SCALARS[ValueType.DOUBLE][1]),
    ValueType.INT64_LIST: (Value_pb2.Int64List, SCALARS[ValueType.INT64][1]),
    ValueType.BOOL_LIST: (Value_pb2.BoolList, SCALARS[ValueType.BOOL][1]),
    ValueType.STRING_LIST: (Value_pb2.StringList, SCALARS[ValueType.STRING][1]),
}


def values_of(kind: ValueType) -> st.SearchStrategy[Value]:
    """Values of a type, with nulls and many that are zero or empty."""
    if kind in SCALARS:
        member, plain = SCALARS[kind]
        return NULLS | plain.map(lambda value: Value(**{member: value}))
    message, item = LISTS[kind]
    member = kind.name.lower() + "_val"
    lengths = st.lists(item, max_size=4) | st.lists(item, min_size=120, max_size=140)
    return NULLS | lengths.map(lambda items: Value(**{member: message(val=items)}))


@pytest.mark.parametrize("kind", [*SCALARS, *LISTS], ids=lambda kind: kind.name)
def test_columns_of_values_read_back_to_the_bit(kind: ValueType) -> None:
    codec = codec_for(kind)

    @settings(max_examples=40, deadline=None)
    @given(st.lists(values_of(kind), max_size=6))
    def check(values: list[Value]) -> None:
        column = codec.to_arrow(values)
        column.validate(full=True)
        nulls = [value.WhichOneof("val") in (None, "null_val") for value in values]
        assert column.is_null().to_pylist() == nulls
        read = codec.to_protos(column)
        assert [each.SerializeToString() for each in read] == [
            b"" if null else value.SerializeToString() for value, null in zip(values, nulls, strict=True)
        ]

    check()


@pytest.mark.parametrize("kind", [*SCALARS, *LISTS], ids=lambda kind: kind.name)
def test_a_value_of_another_type_is_found_wherever_it_stands(kind: ValueType) -> None:
    codec = codec_for(kind)
    for other in [*SCALARS, *LISTS]:
        member = codec_for(other).kind
        if member == codec.kind:
            continue
        wrong = Value()
        if other in SCALARS:
            setattr(wrong, member, {"string_val": "wrong", "bytes_val": b"wrong", "bool_val": True}.get(member, 7))
        else:
            getattr(wrong, member).SetInParent()
        with pytest.raises(InvalidRowError, match=f"expected {codec.kind}, got {member}"):
            codec.to_arrow([Value(), wrong])


def test_embeddings_of_every_length() -> None:
    for kind, message, width in (("FLOAT_LIST", Value_pb2.FloatList, 4), ("DOUBLE_LIST", Value_pb2.DoubleList, 8)):
        lists = [np.arange(size, dtype=f"f{width}") / 8 for size in (0, 1, 31, 32, 4095, 4096, 600_000)]
        values = [Value(**{kind.lower() + "_val": message(val=one)}) for one in lists]
        assert codec_for(ValueType[kind]).to_arrow(values).to_pylist() == [one.tolist() for one in lists]


COMPONENTS = (
    st.integers(-3, 3).map(lambda number: Value(int64_val=number))
    | st.integers(-1, 1).map(lambda number: Value(int32_val=number))
    | st.text("a|\\", max_size=2).map(lambda text: Value(string_val=text))
    | st.booleans().map(lambda flag: Value(bool_val=flag))
    | NULLS
)
KINDS = st.sampled_from(
    [
        st.integers(-3, 3).map(lambda number: Value(int64_val=number)),
        st.integers(-(2**63), 2**63 - 1).map(lambda number: Value(int64_val=number)),
        st.text("a|\\", max_size=2).map(lambda text: Value(string_val=text)),
        st.sampled_from(["", "名", "å" * 63, "å" * 64, "a" * 127, "b" * 20_000]).map(lambda t: Value(string_val=t)),
        COMPONENTS,
    ]
)


def outcome(action: Any) -> Any:
    try:
        return action()
    except ValueError as error:
        return type(error), str(error)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_columns_of_keys_are_the_keys_one_by_one(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from("abc"), max_size=3))
    kinds = [data.draw(KINDS) for _ in names]
    keys = []
    for _ in range(data.draw(st.integers(1, 5))):
        own = data.draw(st.permutations(names)) if data.draw(st.integers(0, 9)) == 0 else names
        values = [data.draw(kind) for kind in kinds][: len(names) - (data.draw(st.integers(0, 19)) == 0)]
        keys.append(EntityKey(join_keys=own, entity_values=values))
    quick = outcome(lambda: entity_ids_column(keys).to_pylist())
    assert quick == outcome(lambda: entity_ids(keys))


class OddZone(dt.tzinfo):
    """A zone with an offset of half a second; unhashable, as are those of ``dateutil``."""

    __hash__: Any = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OddZone)

    def utcoffset(self, _: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(seconds=0.5)


OFFSETS = st.sampled_from([dt.timedelta(hours=-7, seconds=1), dt.timedelta(hours=5, microseconds=500)])
ZONES = st.sampled_from([None, dt.UTC, ZoneInfo("Europe/Oslo"), OddZone()]) | OFFSETS.map(dt.timezone)
YEARS = st.integers(-40_000, 40_000).map(lambda days: dt.timedelta(days=days, microseconds=days * 7919))
DATETIMES = st.datetimes(timezones=ZONES) | st.tuples(YEARS, ZONES).map(
    lambda pair: (dt.datetime(2024, 5, 1, tzinfo=dt.UTC) + pair[0]).replace(tzinfo=pair[1])
)
STAMPS = st.integers(-(2**62), 2**62).map(lambda ns: pd.Timestamp(ns, tz="UTC"))
TIMES = DATETIMES | STAMPS | st.sampled_from([None, pd.NaT])


@settings(max_examples=200, deadline=None)
@given(st.lists(DATETIMES, min_size=1, max_size=4) | st.lists(TIMES, min_size=1, max_size=4))
def test_columns_of_times_are_the_times_one_by_one(times: list[Any]) -> None:
    quick = outcome(lambda: to_ns_column(times).to_pylist())
    assert quick == outcome(lambda: [to_ns(time) for time in times])
    assert to_ns_column([dt.datetime(2024, 5, 1, tzinfo=dt.UTC)]).type == pa.int64()


EVERY_KIND = {**{kind.name.lower(): kind for kind in [*SCALARS, *LISTS]}, "prefs": ValueType.JSON}


def every_kind(*, has_created: bool) -> StoredView:
    features = {
        name: StoredFeature(field_name(name, kind.name.lower()), codec_for(kind)) for name, kind in EVERY_KIND.items()
    }
    fields = [stored.codec.field(stored.field) for stored in features.values()]
    created = [FeatureField(CREATED, dtype.int64)] * has_created
    return StoredView(
        "v", make_schema("V", [*fields, *created], tie_breaker=CREATED if has_created else None), features
    )


@pytest.mark.parametrize("has_created", [False, True])
def test_a_single_row_is_logged_as_a_column_of_one(has_created: bool) -> None:
    view = every_kind(has_created=has_created)
    jsons = NULLS | st.just(Value(json_val="{}"))
    values = {name: jsons if kind is ValueType.JSON else values_of(kind) for name, kind in EVERY_KIND.items()}
    key = COMPONENTS.map(lambda value: EntityKey(join_keys=["k"], entity_values=[value]))
    wrong = st.sampled_from([{}, {}, {"float": Value(bool_val=True)}, {"prefs": Value(int64_val=0)}])
    long_key = EntityKey(join_keys=["k"], entity_values=[Value(string_val="å" * 2049)])

    @settings(max_examples=60, deadline=None)
    @given(key | st.just(long_key), st.fixed_dictionaries(values), wrong, TIMES, TIMES)
    def check(key: EntityKey, given: dict[str, Value], other: dict[str, Value], at: Any, created: Any) -> None:
        row = (key, given | other, at, created)

        def alone() -> list[Any]:
            return repr_of(decode(encode_row(view.schema, *row_values(view, row))).batch)

        def as_columns() -> list[Any]:
            return repr_of(to_batch(view.schema, rows_to_batch(view, [row], list(view.features))))

        found, expected = outcome(alone), outcome(as_columns)
        # Where several things are wrong either may be named.
        assert found == expected or (type(found) is type(expected) is tuple)

    check()


def repr_of(batch: pa.RecordBatch) -> list[Any]:
    """Rows with bits that compare, NaNs too."""
    return [repr(batch.schema), [repr(row) for row in batch.to_pylist()]]
