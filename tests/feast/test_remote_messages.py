"""What arrives as a message is checked before Arrow may trust it."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest

from feast_quorin.remote import messages
from feast_quorin.remote.messages import BadMessageError
from feast_quorin.server.request_bodies import decoded

COLUMNS = {"number": pa.array([1, None]), "text": pa.array(["x", "ü"]), "list": pa.array([[1.5], None])}
BODY = messages.message(COLUMNS, features=["a:b"])


def stream(batch: pa.RecordBatch, count: int = 1, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for _ in range(count):
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def test_a_message_is_what_was_sent() -> None:
    batch, about = decoded(BODY)
    assert (batch.to_pydict(), about) == (pa.record_batch(COLUMNS).to_pydict(), {"features": ["a:b"]})
    assert messages.answer(BODY).equals(batch)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_batches_are_refused_before_they_are_decompressed(compression: str) -> None:
    batch = pa.record_batch({"zeros": pa.array([0] * 100_000)}).replace_schema_metadata({"quorin": "{}"})
    with pytest.raises(BadMessageError, match="without dictionaries and compression"):
        decoded(stream(batch, compression=compression))
    assert decoded(stream(batch))[0].num_rows == 100_000


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "got an end"),
        (b"{}", "expected a stream of Arrow"),
        (stream(decoded(BODY)[0], 2), "expected one record batch, got 2"),
        (stream(decoded(BODY)[0], 0), "expected one record batch, got 0"),
        (stream(pa.record_batch({"d": pa.array(["a"]).dictionary_encode()})), "without dictionaries"),
        (stream(pa.record_batch(COLUMNS)), "expected a JSON object"),
        (stream(pa.record_batch(COLUMNS).replace_schema_metadata({"quorin": "[]"})), "expected a JSON object"),
        (stream(pa.record_batch(COLUMNS).replace_schema_metadata({"quorin": "[" * 99_999})), "expected a JSON object"),
    ],
    ids=["nothing", "JSON", "two batches", "no batch", "dictionary", "no JSON", "a list", "deep JSON"],
)
def test_other_streams_are_refused(body: bytes, reason: str) -> None:
    with pytest.raises(BadMessageError, match=reason):
        decoded(body)


def test_streams_that_were_cut_off_are_refused() -> None:
    end = len(BODY) - 8  # what follows is the mark of the end
    for length in range(0, end, 8):
        with pytest.raises(BadMessageError):
            decoded(BODY[:length])
        with pytest.raises(BadMessageError):
            messages.answer(BODY[:length])


def test_damaged_streams_are_refused_or_read_and_harm_nothing() -> None:
    source = random.Random(5)
    for _ in range(5_000):
        body = bytearray(BODY)
        for _ in range(source.randint(1, 4)):
            body[source.randrange(len(body))] = source.randrange(256)
        try:
            batch, _ = decoded(bytes(body))
        except BadMessageError:
            continue
        assert batch.nbytes <= len(body) or batch.num_rows
