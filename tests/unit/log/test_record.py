"""Records survive the way into bytes and back; what is damaged is refused, what is older or newer translated."""

from __future__ import annotations

import contextlib
import zlib
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorin.engine.log.record import Kind, Record, decode, encode, is_of_load, load_of, mark, peek, translate
from quorin.engine.rows.batch import canonical_schema, delete_batch, row_batch, subset_schema, to_batch
from quorin.errors import InvalidEntryError
from quorin.schema import FeatureField, Schema, dtype, fingerprint, make_schema

SCHEMA = make_schema("Trip", [FeatureField("score", dtype.float32), FeatureField("tags", dtype.string, shape=(None,))])


def batch_of(*rows: tuple[str, int, float | None, list[str] | None]) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True))
    return to_batch(
        SCHEMA,
        pa.table(
            [pa.array(c, t) for c, t in zip(columns, canonical_schema(SCHEMA).types, strict=True)],
            names=canonical_schema(SCHEMA).names,
        ),
    )


TWO_ROWS = batch_of(("a", 5, 0.5, ["x"]), ("bé", -6, None, None))

VERSION_1 = bytes.fromhex(
    "5152454301010300b8b71f4a5f4f20e8070000000000000001000000c964e6524162630000000000fffffffff80000001000"
    "000000000a000c000600050008000a000000000104000c000000080008000000040008000000040000000300000098000000"
    "4400000014000000100014000800060007000c00000010001000000000000102100000001800000004000000000000000100"
    "000078000600080004000600000008000000c0ffffff00000002100000002800000004000000000000000d0000006576656e"
    "745f74696d655f6e7300000008000c0008000700080000000000000140000000100014000800000007000c00000010001000"
    "0000000000051000000020000000040000000000000009000000656e746974795f69640000000400040004000000ffffffff"
    "f800000014000000000000000c0016000600050008000c000c0000000003040018000000200000000000000000000a001800"
    "0c00040008000a0000008c000000100000000100000000000000000000000700000000000000000000000000000000000000"
    "0000000000000000080000000000000008000000000000000100000000000000100000000000000000000000000000001000"
    "0000000000000800000000000000180000000000000000000000000000001800000000000000010000000000000000000000"
    "0300000001000000000000000000000000000000010000000000000000000000000000000100000000000000000000000000"
    "000000000000010000006b000000000000000900000000000000c800000000000000"
)
"""A record as the first version wrote it: whatever comes later must read it."""


def damaged(payload: bytes, at: int, new: bytes) -> bytes:
    """The payload with other bytes and a checksum that agrees with them."""
    changed = payload[:at] + new + payload[at + len(new) :]
    crc = zlib.crc32(changed[32:], zlib.crc32(changed[:28]))
    return changed[:28] + crc.to_bytes(4, "little") + changed[32:]


def test_a_record_comes_back_as_it_was() -> None:
    payload = encode(Kind.upsert, SCHEMA, TWO_ROWS, written_ns=77)
    assert decode(payload) == Record(Kind.upsert, "Trip", fingerprint(SCHEMA), 77, 2, TWO_ROWS)
    assert decode(memoryview(payload)).batch.equals(TWO_ROWS)
    header = peek(payload)
    assert (header.kind, header.schema_name, header.row_count) == (Kind.upsert, "Trip", 2)


def test_deletes_and_partial_rows_come_back_as_they_were() -> None:
    gone = delete_batch(["a", "b"], 4)
    assert decode(encode(Kind.delete, SCHEMA, gone)).batch.equals(gone)
    some = row_batch(SCHEMA, "a", {"score": 1.0}, 4, partial=True)
    assert decode(encode(Kind.partial, SCHEMA, some)).batch.equals(some)


def test_slices_are_encoded_alone() -> None:
    many = batch_of(*[(f"id{i}", i, float(i), ["t"] * i) for i in range(100)])
    payload = encode(Kind.upsert, SCHEMA, many.slice(40, 2))
    assert decode(payload).batch.equals(many.slice(40, 2))
    assert len(payload) < len(encode(Kind.upsert, SCHEMA, many))


def test_bytes_of_version_1_can_be_read_for_ever() -> None:
    schema = make_schema("Abc", [FeatureField("x", dtype.uint8)])
    expected = row_batch(schema, "k", {"x": 200}, 9)
    assert decode(VERSION_1) == Record(Kind.upsert, "Abc", fingerprint(schema), 7, 1, expected)


@given(st.data())
def test_no_damaged_record_is_taken(data: st.DataObject) -> None:
    payload = encode(Kind.upsert, SCHEMA, TWO_ROWS, written_ns=1)
    at = data.draw(st.integers(0, len(payload) - 1))
    flipped = bytearray(payload)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(InvalidEntryError):
        decode(bytes(flipped))
    with pytest.raises(InvalidEntryError):
        decode(payload[:at])


@given(st.binary(max_size=200))
def test_no_garbage_is_taken(garbage: bytes) -> None:
    with pytest.raises(InvalidEntryError):
        decode(garbage)


@given(st.integers(40, 600), st.binary(min_size=1, max_size=8))
def test_garbage_behind_a_right_checksum_never_crashes(at: int, new: bytes) -> None:
    payload = encode(Kind.upsert, SCHEMA, TWO_ROWS, written_ns=1)
    with contextlib.suppress(InvalidEntryError):
        decode(damaged(payload, min(at, len(payload) - len(new)), new))


def test_reasons_name_what_is_wrong() -> None:
    payload = encode(Kind.upsert, SCHEMA, TWO_ROWS)
    for at, new, reason in ((4, b"\x09", "version 9"), (5, b"\x09", "kind 9"), (24, b"\x03", "says 3 rows and has 2")):
        with pytest.raises(InvalidEntryError, match=reason):
            decode(damaged(payload, at, new))
    with pytest.raises(InvalidEntryError, match="checksum"):
        decode(payload[:-1] + b"\xaa")
    with pytest.raises(InvalidEntryError, match="at least 32 bytes, got 3"):
        decode(b"abc")


def test_records_of_loads_name_the_load_and_of_a_commit_the_rows() -> None:
    rows = encode(Kind.load, SCHEMA, TWO_ROWS, load=7)
    assert (decode(rows).kind, decode(rows).load, load_of(rows)) == (Kind.load, 7, (7, 0))
    assert translate(decode(rows), SCHEMA) == TWO_ROWS
    commit = mark(Kind.commit, SCHEMA, load=7, load_rows=2)
    assert (decode(commit).row_count, load_of(commit), is_of_load(commit)) == (0, (7, 2), True)
    assert not is_of_load(encode(Kind.upsert, SCHEMA, TWO_ROWS))
    assert not is_of_load(b"")
    with pytest.raises(InvalidEntryError, match="checksum"):
        decode(commit[:40] + b"\x08" + commit[41:])
    with pytest.raises(InvalidEntryError, match="cut short"):
        peek(commit[:41])


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"entity_id": ["a"], "score": [1.0]}, "begins with the columns"),
        ({"entity_id": ["a"], "event_time_ns": ["now"]}, "begins with the columns"),
        ({"entity_id": [None, "a"], "event_time_ns": [1, 2]}, "1 null ids"),
        ({"entity_id": ["a", ""], "event_time_ns": [1, 2]}, "empty entity id"),
    ],
)
def test_batches_without_ids_and_times_are_refused(columns: dict[str, list[Any]], reason: str) -> None:
    with pytest.raises(InvalidEntryError, match=reason):
        decode(encode(Kind.upsert, SCHEMA, pa.record_batch(columns)))


def test_text_that_is_no_utf8_is_refused() -> None:
    ids = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    with pytest.raises(InvalidEntryError, match="cannot be decoded"):
        decode(encode(Kind.delete, SCHEMA, pa.record_batch({"entity_id": ids, "event_time_ns": [1]})))


def translated(old: Schema, new: Schema, values: dict[str, Any], *, partial: bool = False) -> pa.RecordBatch:
    kind = Kind.partial if partial else Kind.upsert
    return translate(decode(encode(kind, old, row_batch(old, "a", values, 1, partial=partial))), new)


def test_translate_gives_the_same_batch_for_the_same_schema() -> None:
    record = decode(encode(Kind.upsert, SCHEMA, TWO_ROWS))
    assert translate(record, SCHEMA) is record.batch


def test_translate_drops_adds_and_widens_by_name() -> None:
    old = make_schema(
        "S",
        [
            FeatureField("gone", dtype.string),
            FeatureField("wide", dtype.int32),
            FeatureField("vector", dtype.float32, shape=(2,)),
            FeatureField("list", dtype.uint8, shape=(None,)),
        ],
    )
    new = make_schema(
        "S",
        [
            FeatureField("list", dtype.int64, shape=(None,)),
            FeatureField("vector", dtype.float64, shape=(2,)),
            FeatureField("added", dtype.string),
            FeatureField("wide", dtype.int64),
        ],
        version=2,
    )
    values = {"gone": "x", "wide": 7, "vector": [1, 2], "list": [3]}
    batch = translated(old, new, values)
    assert batch.schema == canonical_schema(new)
    expected = {"list": [3], "vector": [1.0, 2.0], "wide": 7}
    assert batch.to_pylist() == [{"entity_id": "a", "event_time_ns": 1, "added": None, **expected}]
    del values["vector"]
    batch = translated(old, new, values, partial=True)
    assert batch.schema == subset_schema(new, ["list", "wide"])
    assert translated(old, new, {"gone": "x"}, partial=True).schema.names == ["entity_id", "event_time_ns"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (FeatureField("x", dtype.int64), FeatureField("x", dtype.int32)),
        (FeatureField("x", dtype.int64), FeatureField("x", dtype.float64)),
        (FeatureField("x", dtype.float64), FeatureField("x", dtype.float32)),
        (FeatureField("x", dtype.bool), FeatureField("x", dtype.int32)),
        (FeatureField("x", dtype.string), FeatureField("x", dtype.bytes)),
        (FeatureField("x", dtype.int32, shape=(2,)), FeatureField("x", dtype.int32, shape=(3,))),
        (FeatureField("x", dtype.int32, shape=(2,)), FeatureField("x", dtype.int32, shape=(None,))),
        (FeatureField("x", dtype.int32), FeatureField("x", dtype.int32, shape=(None,))),
    ],
)
def test_translate_refuses_to_narrow(old: FeatureField, new: FeatureField) -> None:
    with pytest.raises(InvalidEntryError, match="field 'x' has type"):
        translated(make_schema("S", [old]), make_schema("S", [new]), {"x": None})


def test_translate_refuses_another_schema() -> None:
    with pytest.raises(InvalidEntryError, match="'Trip' is no record of 'Other'"):
        translate(decode(encode(Kind.upsert, SCHEMA, TWO_ROWS)), make_schema("Other", list(SCHEMA.fields)))


def test_deletes_translate_to_ids_and_times() -> None:
    gone = delete_batch(["a"], 4)
    newer = make_schema("Trip", [FeatureField("y", dtype.bool)], version=2)
    assert translate(decode(encode(Kind.delete, SCHEMA, gone)), newer).equals(gone)
