"""One row by its template is, byte for byte, what the general way makes of it; so are many that are read together."""

from __future__ import annotations

import math
import zlib
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorin.engine.log.record import BODY_OFFSET, CRC_OFFSET, Kind, decode, encode
from quorin.engine.log.record_fast import decode_alike, encode_row
from quorin.engine.rows.batch import delete_batch, row_batch
from quorin.engine.rows.value import FLOAT32_OVERFLOW
from quorin.errors import EntityIdError, InvalidRowError
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


def test_schemas_with_shapes_go_the_general_way() -> None:
    schema = make_schema("Shaped", [FeatureField("a", dtype.float32), FeatureField("b", dtype.float32, shape=(2, 2))])
    for values in ({"a": 1.0, "b": [[1, 2], [3, 4]]}, {"a": None, "b": np.ones((2, 2))}, {"a": 1.0, "b": None}):
        assert encode_row(schema, "id", values, 7, written_ns=5) == general(schema, "id", values, 7)


def test_schemas_with_other_fields_go_the_general_way() -> None:
    values = {"a": 3, "tags": ["x", "yz"]}
    assert encode_row(MIXED, "id", values, 7, written_ns=5) == general(MIXED, "id", values, 7)


@pytest.mark.parametrize(
    "change",
    [
        {"float32": 1}, {"float32": np.float64(0.1)}, {"float64": np.float32(0.1)}, {"int32": 3.0},
        {"int64": np.int32(-7)}, {"uint8": np.uint8(255)}, {"bool": np.bool_(True)}, {"float32": float("nan")},
        {"float32": float("-inf")}, {"float32": -0.0}, {"float32": math.nextafter(FLOAT32_OVERFLOW, 0)},
        {"int32": None},
    ],
    ids=str,
)  # fmt: skip
def test_values_of_other_types_make_the_same_record(change: dict[str, Any]) -> None:
    values = {"float32": 1.5, "float64": 2.5, "int32": 3, "int64": 4, "uint8": 5, "bool": True}
    for times in (7, np.int64(7)):
        for row in (values, {**values, **change}, MappingProxyType(values)):
            assert encode_row(NUMBERS, "known", row, times, written_ns=5) == general(NUMBERS, "known", dict(row), 7)


@pytest.mark.parametrize(
    "change",
    [
        {"float32": FLOAT32_OVERFLOW}, {"int32": 2**31}, {"int64": -(2**63) - 1}, {"uint8": 256}, {"uint8": -1},
        {"bool": 1}, {"int32": True}, {"float64": "1"}, {"int32": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_values_that_do_not_fit_are_refused_whatever_came_before(change: dict[str, Any]) -> None:
    values = {"float32": 1.5, "float64": 2.5, "int32": 3, "int64": 4, "uint8": 5, "bool": True}
    encode_row(NUMBERS, "known", values, 7)
    with pytest.raises(InvalidRowError, match=repr(next(iter(change)))):
        encode_row(NUMBERS, "known", {**values, **change}, 7)
    with pytest.raises(InvalidRowError, match="event_time_ns"):
        encode_row(NUMBERS, "known", values, 2**63)
    with pytest.raises(InvalidRowError, match="event_time_ns"):
        encode_row(NUMBERS, "known", values, True)
    with pytest.raises(EntityIdError):
        encode_row(NUMBERS, "kno\ud800", values, 7)
    for wrong in ({**values, "more": 1}, {name: value for name, value in values.items() if name != "bool"}):
        with pytest.raises(InvalidRowError):
            encode_row(NUMBERS, "known", wrong, 7)


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


# Reading many at once

IDS_OF_8_BYTES = (
    st.text(min_size=1, max_size=8)
    .filter(lambda text: text.isprintable() or text.isascii())
    .filter(lambda text: len(text.encode()) <= 8)
)


@settings(deadline=None)
@given(st.lists(st.tuples(IDS_OF_8_BYTES, ROWS, TIMES), min_size=1, max_size=9))
def test_rows_that_are_read_together_are_those_that_are_read_alone(rows: list[tuple[str, Any, int]]) -> None:
    payloads = [encode_row(NUMBERS, *row, written_ns=number) for number, row in enumerate(rows)]
    together, alone = decode_alike(payloads), [decode(payload) for payload in payloads]
    assert together is not None
    expected = pa.Table.from_batches([record.batch for record in alone]).combine_chunks().to_batches()[0]
    assert together.batch.schema == expected.schema
    assert repr(together.batch.to_pylist()) == repr(expected.to_pylist())
    last = alone[-1]
    assert (together.kind, together.schema_name, together.fingerprint, together.written_ns, together.row_count) == (
        last.kind, last.schema_name, last.fingerprint, last.written_ns, len(rows),
    )  # fmt: skip


def numbers(entity_id: str, **changed: Any) -> bytes:
    values = {"float32": 1.5, "float64": 2.5, "int32": 3, "int64": 4, "uint8": 5, "bool": True}
    return encode_row(NUMBERS, entity_id, {**values, **changed}, 7, written_ns=5)


def test_deletions_and_partial_rows_are_read_together_too() -> None:
    deletions = [encode(Kind.delete, NUMBERS, delete_batch([name], 7)) for name in ("a", "b")]
    parts = [
        encode(Kind.partial, NUMBERS, row_batch(NUMBERS, name, {"int32": 3}, 7, partial=True)) for name in ("a", "b")
    ]
    for kind, payloads in ((Kind.delete, deletions), (Kind.partial, parts)):
        together = decode_alike(payloads)
        assert together is not None
        assert together.kind is kind
        assert together.batch.to_pylist() == [row for payload in payloads for row in decode(payload).batch.to_pylist()]


def test_what_differs_in_more_than_values_is_not_read_together() -> None:
    first, other = make_schema("Aa", list(NUMBERS.fields)), make_schema("Ab", list(NUMBERS.fields))
    rows = [encode_row(schema, "id", decoded_values(), 7, written_ns=5) for schema in (first, other)]
    assert decode_alike(rows) is None
    assert decode_alike([numbers("abcdefgh"), numbers("abcdefghi")]) is None
    assert decode_alike([numbers("ab"), numbers("ab", int32=None)]) is None


def decoded_values() -> dict[str, Any]:
    return {field.name: False if field.dtype is dtype.bool else 0 for field in NUMBERS.fields}


@pytest.mark.parametrize(
    "payload",
    [
        numbers("id", uint8=None),
        encode_row(MIXED, "id", {"a": 3, "tags": ["x"]}, 7),
        encode(Kind.upsert, NUMBERS, pa.concat_batches([decode(numbers("id")).batch] * 2)),
        b"",
        b"QREC",
    ],
    ids=["a null", "a list", "two rows", "nothing", "too short"],
)
def test_other_records_are_left_to_the_general_way(payload: bytes) -> None:
    assert decode_alike([payload]) is None
    assert decode_alike([payload, payload]) is None


def test_a_damaged_record_is_left_to_the_general_way_and_stands_in_nobodys() -> None:
    schema = make_schema("Fresh", list(NUMBERS.fields))
    good = encode_row(schema, "id", decoded_values(), 7)
    for place in (len(good) - 1, 30):
        damaged = bytearray(good)
        damaged[place] ^= 1
        assert decode_alike([bytes(damaged), good]) is None
        assert decode_alike([good, bytes(damaged)]) is None
        assert decode_alike([good, good]) is not None


def test_ids_that_are_no_text_are_left_to_the_general_way() -> None:
    good = numbers("id")
    bad = bytearray(good)
    bad[good.rindex(b"id")] = 0xFF
    crc = zlib.crc32(bad[BODY_OFFSET:], zlib.crc32(bad[:CRC_OFFSET]))
    sealed = bytes(bad[:CRC_OFFSET] + crc.to_bytes(4, "little") + bad[BODY_OFFSET:])
    assert decode_alike([good]) is not None
    assert decode_alike([sealed]) is None
    assert decode_alike([good, sealed]) is None
