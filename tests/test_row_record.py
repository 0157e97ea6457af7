"""One row by its template is, byte for byte, what the general way makes of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorin.errors import EntityIdError, InvalidRowError
from quorin.record import Kind, decode, encode
from quorin.row_record import encode_row
from quorin.rows import row_batch
from quorin.schema import FeatureField, dtype, make_schema

NUMBERS = make_schema("Numbers", [FeatureField(code.name, code) for code in dtype if code.is_numeric])
MIXED = make_schema("Mixed", [FeatureField("a", dtype.int32), FeatureField("tags", dtype.string, shape=(None,))])

IDS = st.text(min_size=1, max_size=80).filter(lambda text: text.isprintable() or text.isascii())
TIMES = st.integers(-(2**63), 2**63 - 1)
ROWS = st.fixed_dictionaries(
    {
        "float32": st.floats(width=32),
        "float64": st.floats(),
        "int32": st.integers(-(2**31), 2**31 - 1),
        "int64": st.integers(-(2**63), 2**63 - 1),
        "uint8": st.integers(0, 255),
        "bool": st.booleans(),
    }
)


def general(schema: Any, entity_id: str, values: dict[str, Any], event_time_ns: int) -> bytes:
    return encode(Kind.upsert, schema, row_batch(schema, entity_id, values, event_time_ns), written_ns=5)


@settings(deadline=None)
@given(IDS, ROWS, TIMES)
def test_numbers_are_filled_into_the_template(entity_id: str, values: dict[str, Any], event_time_ns: int) -> None:
    filled = encode_row(NUMBERS, entity_id, values, event_time_ns, written_ns=5)
    assert filled == general(NUMBERS, entity_id, values, event_time_ns)
    assert decode(filled).batch.column(0).to_pylist() == [entity_id]


@settings(deadline=None)
@given(IDS, ROWS, st.sampled_from(NUMBERS.fields), TIMES)
def test_nulls_go_the_general_way(
    entity_id: str, values: dict[str, Any], null: FeatureField, event_time_ns: int
) -> None:
    values = {**values, null.name: None}
    assert encode_row(NUMBERS, entity_id, values, event_time_ns, written_ns=5) == general(
        NUMBERS, entity_id, values, event_time_ns
    )


def test_schemas_with_other_fields_go_the_general_way() -> None:
    values = {"a": 3, "tags": ["x", "yz"]}
    assert encode_row(MIXED, "id", values, 7, written_ns=5) == general(MIXED, "id", values, 7)


def test_a_template_is_not_changed_by_what_is_filled_in() -> None:
    zeros: dict[str, Any] = {field.name: False if field.dtype is dtype.bool else 0 for field in NUMBERS.fields}
    before = encode_row(NUMBERS, "same", zeros, 0, written_ns=5)
    encode_row(NUMBERS, "else", {**zeros, "int64": -1, "bool": True}, 9, written_ns=6)
    assert encode_row(NUMBERS, "same", zeros, 0, written_ns=5) == before


def test_what_does_not_fit_is_refused_by_name() -> None:
    values = dict.fromkeys((field.name for field in NUMBERS.fields), 1)
    with pytest.raises(InvalidRowError, match="bool"):
        encode_row(NUMBERS, "id", values)
    with pytest.raises(InvalidRowError, match="float32"):
        encode_row(NUMBERS, "id", {**values, "float32": 1e39, "bool": True})
    with pytest.raises(EntityIdError):
        encode_row(NUMBERS, "", {**values, "bool": True})
