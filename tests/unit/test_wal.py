"""The producer: what it appends, what it refuses, and how it waits."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from quorin import metrics
from quorin.engine.backend import connect
from quorin.engine.log.appending import MAX_ENTRY_BYTES, cut
from quorin.engine.log.record import Kind, decode, peek
from quorin.engine.rows.batch import canonical_schema
from quorin.errors import EntityIdError, EntityIdTooLongError, InvalidRowError, SchemaError, SchemaTypeError
from quorin.schema import FeatureField, FeatureSchema, dtype, make_schema
from quorin.shm import Segment, SegmentRegistry
from quorin.wal import LogFullError, WALProducer, WriteSyncTimeoutError
from quorin.wal_consumer import WALConsumer

TRIP = make_schema("Trip", [FeatureField("score", dtype.float32), FeatureField("tag", dtype.string)])


@pytest.fixture
def producer(connection: str) -> Iterator[WALProducer]:
    with WALProducer(connection) as opened:
        yield opened


def payloads(connection: str) -> list[bytes]:
    backend = connect(connection)
    log, after, found = backend.log(), 0, []
    while (result := log.read(after)).through > after:
        found += [payload for _, payload in result.entries]
        after = result.through
    backend.close()
    return found


def table(rows: int, **columns: Any) -> pa.Table:
    given = {
        "entity_id": [f"id{i}" for i in range(rows)],
        "event_time_ns": np.arange(rows),
        "score": np.arange(rows, dtype=np.float32),
        "tag": ["t"] * rows,
    }
    return pa.table(given | columns)


def test_a_write_is_one_record_of_one_row(connection: str, producer: WALProducer) -> None:
    first = producer.write(TRIP, "a", {"score": 1, "tag": None}, 5)
    second = producer.write(TRIP, "a", {"tag": "x"}, 6, partial=True)
    third = producer.delete(TRIP, "a", 7)
    assert 0 < first < second < third
    records = [decode(payload) for payload in payloads(connection)]
    assert [record.kind for record in records] == [Kind.upsert, Kind.partial, Kind.delete]
    assert records[0].batch.to_pylist() == [{"entity_id": "a", "event_time_ns": 5, "score": 1.0, "tag": None}]
    assert records[1].batch.to_pylist() == [{"entity_id": "a", "event_time_ns": 6, "tag": "x"}]
    assert records[2].batch.to_pylist() == [{"entity_id": "a", "event_time_ns": 7}]


def test_many_rows_are_cut_into_entries_that_hold_them_all(connection: str, producer: WALProducer) -> None:
    last = producer.write_many(TRIP, table(20_000))
    records = [decode(payload) for payload in payloads(connection)]
    assert [record.row_count for record in records] == [8192, 8192, 3616]
    assert pa.Table.from_batches([record.batch for record in records]).equals(
        table(20_000).cast(canonical_schema(TRIP))
    )
    backend = connect(connection)
    assert backend.log().bounds().last == last
    backend.close()


def test_large_rows_are_cut_by_bytes() -> None:
    sizes = [10] * 3000 + [3 * MAX_ENTRY_BYTES] + [10] * 3000
    batch = pa.record_batch({"entity_id": [str(i) for i in range(6001)], "tag": ["x" * size for size in sizes]})
    parts = list(cut(batch))
    assert pa.Table.from_batches(parts).equals(pa.Table.from_batches([batch]))
    assert all(part.nbytes <= 2 * MAX_ENTRY_BYTES or part.num_rows == 1 for part in parts)
    assert list(cut(batch.slice(0, 0))) == []


def test_no_rows_are_position_zero(producer: WALProducer) -> None:
    assert producer.write_many(TRIP, table(0)) == 0
    producer.write_many(TRIP, pa.table({"entity_id": pa.array([], pa.string()), "score": [], "tag": []}))


def test_a_pipeline_collects_rows_into_entries(connection: str, producer: WALProducer) -> None:
    with producer.pipeline(TRIP) as pipe:
        for number in range(9000):
            pipe.write(f"id{number}", {"score": float(number), "tag": "t"}, number)
        assert pipe.position > 0
        with pytest.raises(InvalidRowError, match="field 'score'"):
            pipe.write("x", {"score": "high", "tag": "t"})
    records = [decode(payload) for payload in payloads(connection)]
    assert [record.row_count for record in records] == [8192, 808]
    assert pa.Table.from_batches([record.batch for record in records]).equals(table(9000).cast(canonical_schema(TRIP)))
    with pytest.raises(InvalidRowError), producer.pipeline(TRIP) as pipe:
        [pipe.write("a", {"score": score, "tag": None}) for score in (1.0, "high")]
    assert len(payloads(connection)) == 2


def test_what_does_not_fit_is_refused_before_anything_is_written(connection: str, producer: WALProducer) -> None:
    for values, text in (
        ({"score": "high", "tag": "x"}, "field 'score'"),
        ({"score": 1.0}, "field 'tag' is missing"),
        ({"score": 1.0, "tag": "x", "more": 1}, "no field 'more'"),
    ):
        with pytest.raises(InvalidRowError, match=text):
            producer.write(TRIP, "a", values)
    with pytest.raises(EntityIdError):
        producer.write(TRIP, "", {"score": 1.0, "tag": "x"})
    with pytest.raises(EntityIdError):
        producer.delete(TRIP, "")
    with pytest.raises(InvalidRowError, match="row 9999"):
        producer.write_many(TRIP, table(10_000, score=[0.0] * 9999 + [1e300]))
    for schema in ("Trip", FeatureSchema, None):
        with pytest.raises((SchemaError, SchemaTypeError)):
            producer.write(schema, "a", {})  # type: ignore[arg-type]
    assert payloads(connection) == []


def test_a_full_log_refuses_and_keeps_what_it_has(connection: str) -> None:
    with WALProducer(connection, max_entries=2) as producer:
        producer.write(TRIP, "a", {"score": 1, "tag": "x"})
        with pytest.raises(LogFullError, match="the limit is 2"):
            producer.write_many(TRIP, table(20_000))
        producer.write(TRIP, "b", {"score": 1, "tag": "x"})
        with pytest.raises(LogFullError):
            producer.write(TRIP, "c", {"score": 1, "tag": "x"})
    assert len(payloads(connection)) == 2


def test_a_full_log_blocks_as_long_as_it_is_told(connection: str) -> None:
    backend = connect(connection)
    with WALProducer(backend, max_entries=1, block_ms=150) as producer:
        first = producer.write(TRIP, "a", {"score": 1, "tag": "x"})
        started = time.monotonic()
        with pytest.raises(LogFullError):
            producer.write(TRIP, "b", {"score": 1, "tag": "x"})
        assert time.monotonic() - started >= 0.15
    with WALProducer(backend, max_entries=1, block_ms=20_000) as producer:
        threading.Timer(0.1, lambda: backend.log().trim(first)).start()
        producer.write(TRIP, "b", {"score": 1, "tag": "x"})
    backend.close()


def test_threads_and_forked_children_share_a_producer(connection: str, producer: WALProducer) -> None:
    def work(name: str) -> None:
        for number in range(10):
            producer.write(TRIP, f"{name}{number}", {"score": 1, "tag": "x"})

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work("child")
            status = 0
        finally:
            os._exit(status)
    work("parent")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(payloads(connection)) == 50


def test_appended_rows_are_counted(producer: WALProducer) -> None:
    counted = make_schema("Counted", list(TRIP.fields))
    entries, rows = metrics.entries_appended.labels("Counted"), metrics.rows_appended.labels("Counted")
    before = entries.value, rows.value
    producer.write_many(counted, table(9000))
    assert (entries.value - before[0], rows.value - before[1]) == (2, 9000)


def test_writes_elsewhere_need_no_segment(connection: str, producer: WALProducer) -> None:
    producer.write(TRIP, "a", {"score": 1, "tag": "x"})
    backend = connect(connection)
    assert backend.control.schemas() == {}
    backend.close()


def test_write_sync_without_a_consumer_times_out_and_loses_nothing(connection: str, producer: WALProducer) -> None:
    with pytest.raises(WriteSyncTimeoutError, match="it is not lost") as caught:
        producer.write_sync(TRIP, "a", {"score": 1, "tag": "x"}, timeout_ms=60)
    assert caught.value.timeout_ms == 60
    assert caught.value.position > 0
    assert [peek(payload).row_count for payload in payloads(connection)] == [1]


def test_a_long_wait_soon_looks_at_a_segment_that_was_made_meanwhile(connection: str, tmp_path: Path) -> None:
    backend = connect(connection)
    registry = SegmentRegistry(backend, shm_dir=tmp_path)
    with WALProducer(backend, registry=registry) as producer:
        registry.create(TRIP, capacity=10).close()
        position = producer.write(TRIP, "a", {"score": 1, "tag": "x"})
        with pytest.raises(WriteSyncTimeoutError):
            producer.wait(TRIP, position, timeout_ms=1)
        waiting = threading.Thread(
            target=producer.wait, args=(TRIP, position), kwargs={"timeout_ms": 3_600_000}, daemon=True
        )
        waiting.start()
        registry.discard(registry.open_current(TRIP, read_only=False))
        new = registry.create(TRIP, capacity=10)
        new.commit_position(position, backend.log().identity())
        waiting.join(120)
        assert not waiting.is_alive()
        registry.discard(new)
    backend.close()


def test_a_wait_asks_the_control_plane_nothing(
    connection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, asked = connect(connection), list[str]()
    registry = SegmentRegistry(backend, shm_dir=tmp_path)
    with WALProducer(backend, registry=registry) as producer, registry.create(TRIP, capacity=10) as writer:
        position = producer.write(TRIP, "a", {"score": 1, "tag": "x"})
        backend.forget_partitions()
        # A control plane that has lost its schemas, and so does not know for sure how many partitions there are.
        monkeypatch.setattr(backend.control, "partition_count", lambda: asked.append("partitions"))
        monkeypatch.setattr(backend.control, "schemas", lambda: asked.append("schemas") or {})
        with pytest.raises(WriteSyncTimeoutError):
            producer.wait(TRIP, position, timeout_ms=50)
        writer.commit_position(position, backend.log(partition=0, of=1).identity())
        producer.wait(TRIP, position)
    assert not asked


def test_a_wait_does_not_take_a_position_of_a_wiped_log_for_one_of_the_next(
    connection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = connect(connection)
    registry = SegmentRegistry(backend, shm_dir=tmp_path)
    with WALProducer(backend, registry=registry) as producer, registry.create(TRIP, capacity=10) as writer:
        position = producer.write(TRIP, "a", {"score": 1, "tag": "x"})
        writer.commit_position(position + 50, 1)
        load = Segment.position.fget

        def load_then_switch(segment: Segment) -> int:
            """The consumer switches to the new log just after the waiting process has loaded the position."""
            loaded = load(segment)  # type: ignore[misc]
            writer.commit_position(0, backend.log().identity())
            return loaded

        monkeypatch.setattr(Segment, "position", property(load_then_switch))
        with pytest.raises(WriteSyncTimeoutError):
            producer.wait(TRIP, position, timeout_ms=1)
        monkeypatch.undo()
        writer.commit_position(position, backend.log().identity())
        producer.wait(TRIP, position, timeout_ms=60_000)
        registry.discard(writer)
    backend.close()


def test_write_sync_returns_when_the_row_is_served(connection: str, producer: WALProducer) -> None:
    from quorin.serving import assemble

    consumer = WALConsumer(connection, [make_schema("Vector", [FeatureField("x", dtype.float32)])])
    vector = consumer._ownership.targets[0].schema
    thread = threading.Thread(target=consumer.run)
    thread.start()
    try:
        producer.write_sync(vector, "first", {"x": 1.5}, timeout_ms=60_000)
        registry = SegmentRegistry(connection)
        with registry.open_current(vector) as segment:
            for number in range(50):
                producer.write_sync(vector, f"e{number}", {"x": number}, timeout_ms=60_000)
                assert assemble(segment, f"e{number}").tolist() == [number]
        with pytest.raises(EntityIdTooLongError, match="at most 64"):
            producer.write_sync(vector, "x" * 65, {"x": 1})
    finally:
        consumer.stop()
        thread.join(60)
    registry.discard(registry.open_current(vector, read_only=False))
    consumer.close()
    registry.backend.close()
