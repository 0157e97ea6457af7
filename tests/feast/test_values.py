from __future__ import annotations

import datetime as dt
import decimal
import math
import uuid
from typing import Any

import pyarrow as pa
import pytest
from feast.protos.feast.types.Value_pb2 import FloatList, RepeatedValue, Value
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

from feast_quorin.convert.codecs import codec_for
from quorin.errors import InvalidRowError
from quorin.schema import make_schema, schema_to_arrow

UTC = dt.UTC
SAMPLES: dict[ValueType, list[Any]] = {
    ValueType.FLOAT: [1.5, None, math.inf, -0.0, 1e-45],
    ValueType.DOUBLE: [1.1, None, -math.inf, 5e-324],
    ValueType.INT32: [0, None, -(2**31), 2**31 - 1],
    ValueType.INT64: [0, None, -(2**63), 2**63 - 1],
    ValueType.BOOL: [True, None, False],
    ValueType.STRING: ["a", None, "", "é名🙂", "x" * 5000],
    ValueType.BYTES: [b"a", None, b"", b"\x00\xff"],
    ValueType.PDF_BYTES: [b"%PDF", None],
    ValueType.IMAGE_BYTES: [b"\x89PNG", None],
    ValueType.UNIX_TIMESTAMP: [dt.datetime(2024, 5, 1, tzinfo=UTC), None, dt.datetime(1950, 1, 1, tzinfo=UTC)],
    ValueType.FLOAT_LIST: [[1.5, math.inf], None, [], [0.25]],
    ValueType.DOUBLE_LIST: [[1.1], None, []],
    ValueType.INT32_LIST: [[1, -1], None, []],
    ValueType.INT64_LIST: [[2**62], None, []],
    ValueType.BOOL_LIST: [[True, False], None, []],
    ValueType.STRING_LIST: [["a", "", "é"], None, [], [""]],
    ValueType.BYTES_LIST: [[b"a", b""], None, []],
    ValueType.UNIX_TIMESTAMP_LIST: [[dt.datetime(2024, 5, 1, tzinfo=UTC)], None, []],
    ValueType.STRING_SET: [{"a"}, None],
    ValueType.INT64_SET: [{7}, None],
    ValueType.JSON: ['{"a": [1, null]}', None],
    ValueType.MAP: [{"a": 1, "b": {"c": "d"}}, None, {}],
    ValueType.MAP_LIST: [[{"a": 1}], None],
    ValueType.STRUCT: [{"a": "b"}, None],
    ValueType.SCALAR_MAP: [{1: "a"}, None],
    ValueType.UUID: [uuid.UUID(int=5), None],
    ValueType.DECIMAL: [decimal.Decimal("1.20"), None],
    ValueType.VALUE_LIST: [[["a"], ["b", "c"]], None],
    ValueType.VALUE_SET: [[["a"]], None],
    ValueType.BYTES_SET: [{b"\x00"}, None],
    ValueType.INT32_SET: [{-7}, None],
    ValueType.FLOAT_SET: [{0.5}, None],
    ValueType.DOUBLE_SET: [{1.1}, None],
    ValueType.BOOL_SET: [{True}, None],
    ValueType.UNIX_TIMESTAMP_SET: [{dt.datetime(2024, 5, 1, tzinfo=UTC)}, None],
    ValueType.JSON_LIST: [['{"a": 1}', "[]"], None, []],
    ValueType.STRUCT_LIST: [[{"a": "b"}, {"a": "c"}], None],
    ValueType.UUID_LIST: [[uuid.UUID(int=6), uuid.UUID(int=7)], None, []],
    ValueType.UUID_SET: [{uuid.UUID(int=8)}, None],
    ValueType.TIME_UUID: [uuid.UUID("8e8e0a4e-07f7-11ef-9262-0242ac120002"), None],
    ValueType.TIME_UUID_LIST: [[uuid.UUID("8e8e0a4e-07f7-11ef-9262-0242ac120002")], None],
    ValueType.TIME_UUID_SET: [{uuid.UUID("8e8e0a4e-07f7-11ef-9262-0242ac120002")}, None],
    ValueType.DECIMAL_LIST: [[decimal.Decimal("0.10"), decimal.Decimal(-3)], None, []],
    ValueType.DECIMAL_SET: [{decimal.Decimal("7.0")}, None],
}
if hasattr(ValueType, "ZONED_TIMESTAMP"):  # Feast has it since 0.65.
    SAMPLES[ValueType.ZONED_TIMESTAMP] = [dt.datetime(2024, 5, 1, tzinfo=dt.timezone(dt.timedelta(hours=2))), None]


def test_there_is_a_sample_of_every_type() -> None:
    assert SAMPLES.keys() == {*ValueType} - {ValueType.UNKNOWN, ValueType.NULL}


@pytest.mark.parametrize("value_type", list(SAMPLES), ids=lambda t: t.name)
def test_every_type_reads_back_exactly(value_type: ValueType) -> None:
    protos = python_values_to_proto_values(SAMPLES[value_type], value_type)
    codec = codec_for(value_type)
    column = codec.to_arrow(protos)
    assert column.type == schema_to_arrow(make_schema("S", [codec.field("f")])).field(0).type
    assert column.null_count == sum(value is None for value in SAMPLES[value_type])
    expected = [(value.WhichOneof("val"), value) for value in protos]
    assert [(value.WhichOneof("val"), value) for value in codec.to_protos(column)] == expected
    repeated = RepeatedValue()
    codec.append_to(repeated.val, column)
    assert [(value.WhichOneof("val"), value) for value in repeated.val] == expected


@pytest.mark.parametrize("value_type", list(SAMPLES), ids=lambda t: t.name)
def test_columns_of_nulls_and_of_nothing(value_type: ValueType) -> None:
    codec = codec_for(value_type)
    assert codec.to_protos(codec.to_arrow([Value(), Value()])) == [Value(), Value()]
    assert codec.to_protos(codec.to_arrow([])) == []


def test_nan_keeps_being_nan_and_not_null() -> None:
    codec = codec_for(ValueType.FLOAT)
    column = codec.to_arrow([Value(float_val=math.nan)])
    assert column.null_count == 0
    assert math.isnan(codec.to_protos(column)[0].float_val)


def test_a_sliced_column_reads_its_own_rows() -> None:
    codec = codec_for(ValueType.FLOAT_LIST)
    column = codec.to_arrow([Value(float_list_val=FloatList(val=[float(i)] * i)) for i in range(5)])
    assert [len(v.float_list_val.val) for v in codec.to_protos(column.slice(2, 2))] == [2, 3]
    assert pa.types.is_list(column.type)


def test_a_value_of_another_type_is_refused_with_both_types() -> None:
    with pytest.raises(InvalidRowError, match=r"expected int64_val, got string_val: string_val: \"x\""):
        codec_for(ValueType.INT64).to_arrow([Value(int64_val=1), Value(string_val="x")])
