from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from quorin.errors import QuorinError
from quorin.schema import (
    FeatureField,
    FeatureSchema,
    Schema,
    compile_schema,
    dtype,
    fingerprint,
    make_schema,
    schema_from_arrow,
    schema_from_json,
    schema_to_arrow,
    schema_to_json,
    total_element_count,
)
from tests.support.schemas import Everything, Scalars, schemas


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("", dtype.float32), ValueError, "''"),
        (("1a", dtype.float32), ValueError, "'1a'"),
        (("a b", dtype.float32), ValueError, "'a b'"),
        (("x" * 129, dtype.float32), ValueError, "128"),
        ((5, dtype.float32), TypeError, "5"),
        (("entity_id", dtype.float32), ValueError, "reserved"),
        (("event_time_ns", dtype.float32), ValueError, "reserved"),
        (("schema", dtype.float32), ValueError, "reserved"),
        (("a", "float32"), TypeError, "'float32'"),
        (("a", np.float32), TypeError, "dtype"),
        (("a", dtype.float32, 3), TypeError, "3"),
        (("a", dtype.float32, (0,)), ValueError, "(0,)"),
        (("a", dtype.float32, (-1, 2)), ValueError, "(-1, 2)"),
        (("a", dtype.float32, (None, 2)), ValueError, "None"),
        (("a", dtype.float32, (2.0,)), ValueError, "2.0"),
        (("a", dtype.float32, (True,)), ValueError, "True"),
        (("a", dtype.float32, (2**15, 2**15)), ValueError, "elements"),
        (("a", dtype.string, (3,)), ValueError, "(3,)"),
        (("a", dtype.float32, (), "x"), TypeError, "'x'"),
        (("a", dtype.string, (), 1.0), ValueError, "default"),
        (("a", dtype.int64, (None,), 1.0), ValueError, "default"),
    ],
)
def test_a_wrong_field_is_refused_where_it_is_defined(arguments: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        FeatureField(*arguments)
    assert isinstance(caught.value, QuorinError)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"fields": [FeatureField("a", dtype.bool)]}, "version"),
        ({"version": 0, "fields": [FeatureField("a", dtype.bool)]}, "version"),
        ({"version": "1", "fields": [FeatureField("a", dtype.bool)]}, "'1'"),
        ({"version": True, "fields": [FeatureField("a", dtype.bool)]}, "True"),
        ({"version": 1}, "fields"),
        ({"version": 1, "fields": []}, "non-empty"),
        ({"version": 1, "fields": [FeatureField("a", dtype.bool)] * 2}, "'a' is defined twice"),
        ({"version": 1, "fields": [FeatureField(f"f{i}", dtype.bool) for i in range(5000)]}, "5000"),
        ({"version": 1, "fields": [FeatureField("a", dtype.int64)], "tie_breaker": "b"}, "'b'"),
        ({"version": 1, "fields": [FeatureField("a", dtype.int32)], "tie_breaker": "a"}, "int64 scalars, []"),
        ({"version": 1, "fields": [FeatureField("a", dtype.int64, (2,))], "tie_breaker": "a"}, "'a'"),
        ({"version": 1, "fields": [FeatureField("a", dtype.int64)], "entity": ""}, "entity must be a text"),
        ({"version": 1, "fields": [FeatureField("a", dtype.int64)], "entity": 1}, "got 1"),
    ],
)
def test_a_wrong_schema_is_refused_where_it_is_defined(body: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match="schema 'Wrong'") as caught:
        type("Wrong", (FeatureSchema,), body)
    assert text in str(caught.value)


def test_a_schema_holds_fields_and_has_no_instances() -> None:
    with pytest.raises(TypeError, match="'a'"):
        type("Wrong", (FeatureSchema,), {"version": 1, "fields": ["a"]})
    with pytest.raises(TypeError, match="no instances"):
        Scalars()
    with pytest.raises(ValueError, match="'no-name'"):
        make_schema("no-name", [FeatureField("a", dtype.bool)])


def test_sizes() -> None:
    assert FeatureField("a", dtype.float64, (2, 3)).element_count == 6
    assert FeatureField("a", dtype.float64, (2, 3)).byte_count == 48
    assert FeatureField("a", dtype.string).element_count == 0
    assert FeatureField("a", dtype.int64, (None,)).byte_count == 0
    assert total_element_count(Scalars) == 4
    assert total_element_count(Everything) == 16
    assert math.isnan(FeatureField("a", dtype.int32).vector_default)


def test_the_offset_table_says_where_each_field_stands_in_the_vector() -> None:
    table = compile_schema(Everything)
    assert (np.diff(table["name_hash"].astype(object)) > 0).all()
    offsets = {Everything.fields[row["index"]].name: int(row["element_offset"]) for row in table}
    assert offsets["f32"] == 0
    assert offsets["vector"] == 6
    assert offsets["flags"] == 13
    assert offsets["text"] == offsets["numbers"] == -1


@given(schemas())
def test_json_and_arrow_keep_a_schema(schema: Schema) -> None:
    again = schema_from_json(schema_to_json(schema))
    assert repr(again.fields) == repr(schema.fields)
    assert fingerprint(again) == fingerprint(schema)
    from_arrow = schema_from_arrow("Random", schema_to_arrow(schema))
    assert [(f.name, f.dtype, f.shape) for f in from_arrow.fields] == [
        (f.name, f.dtype, f.shape) for f in schema.fields
    ]


def test_a_fingerprint_sees_every_part() -> None:
    field = FeatureField("a", dtype.float32)
    others = [
        make_schema("B", [field]),
        make_schema("A", [field], version=2),
        make_schema("A", [FeatureField("b", dtype.float32)]),
        make_schema("A", [FeatureField("a", dtype.float64)]),
        make_schema("A", [FeatureField("a", dtype.float32, (1,))]),
        make_schema("A", [FeatureField("a", dtype.float32, (), 0.0)]),
        make_schema("A", [field, FeatureField("b", dtype.float32)]),
        make_schema("A", [field, FeatureField("b", dtype.int64)]),
        make_schema("A", [field, FeatureField("b", dtype.int64)], tie_breaker="b"),
        make_schema("A", [field], entity="driver"),
        make_schema("A", [field], entity="Fahrer 名"),
    ]
    assert all(schema_to_json(schema_from_json(schema_to_json(one))) == schema_to_json(one) for one in others)
    prints = {fingerprint(schema) for schema in [make_schema("A", [field]), *others]}
    assert len(prints) == len(others) + 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name":"A","version":1,"fields":[{"name":"a"}]}', '{"name":1}'])
def test_what_is_no_schema_in_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a schema"):
        schema_from_json(text)


def test_an_arrow_type_that_no_field_can_hold_is_named() -> None:
    with pytest.raises(ValueError, match=r"'when'.*timestamp"):
        schema_from_arrow("A", pa.schema([("entity_id", pa.string()), ("when", pa.timestamp("us"))]))
