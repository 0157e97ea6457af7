"""Streams with heads that are written and read once: those of Arrow, byte for byte."""

from __future__ import annotations

import pyarrow as pa
import pytest

from quorin.engine.rows.stream import StreamHead, split_head

SCHEMA = pa.schema({"id": pa.string(), "v": pa.list_(pa.float32(), 2)}, {"request": '{"schema": "Ä"}'})
COLUMNS = [pa.array(["a", None, "é"]), pa.array([[1.0, 2.0], None, [None, 4.0]], pa.list_(pa.float32(), 2))]
ROWS = pa.record_batch(COLUMNS, schema=SCHEMA)


def of_arrow(*batches: pa.RecordBatch, schema: pa.Schema = SCHEMA) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_stream_is_what_arrow_writes(rows: int) -> None:
    batch = ROWS.slice(0, rows)
    assert StreamHead(SCHEMA).stream(batch.columns) == of_arrow(batch)
    assert StreamHead(SCHEMA).stream(ROWS.slice(1, 1).columns) == of_arrow(ROWS.slice(1, 1))


def test_columns_of_other_types_are_refused() -> None:
    with pytest.raises((pa.ArrowException, TypeError)):
        StreamHead(SCHEMA).stream([COLUMNS[0], COLUMNS[0]])


@pytest.mark.parametrize("batches", [[], [ROWS], [ROWS, ROWS.slice(1)]])
def test_a_head_is_split_off(batches: list[pa.RecordBatch]) -> None:
    for _ in range(2):
        found = split_head(of_arrow(*batches))
        assert found is not None
        schema, messages = found
        assert schema.equals(SCHEMA, check_metadata=True)
        assert [pa.ipc.read_record_batch(message, schema) for message in messages] == batches


def test_what_is_split_alike_has_one_schema() -> None:
    (first, _), (second, _) = (split_head(of_arrow(ROWS.slice(n))) or (None, None) for n in (0, 1))
    assert first is second is not None


LONG = pa.schema({f"{number:010}": pa.string() for number in range(200)})
OLD = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V4, use_legacy_format=True)


def test_other_streams_are_left_to_arrow() -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA, options=OLD) as writer:
        writer.write_batch(ROWS)
    batch_first = of_arrow(ROWS)[SCHEMA.serialize().size :]
    whole = of_arrow(ROWS)
    wrong = b"", b"nonsense", batch_first, whole[:40], whole[:8] + bytes(len(whole) - 8)
    for body in (*wrong, of_arrow(schema=LONG), sink.getvalue().to_pybytes()):
        assert split_head(body) is None
