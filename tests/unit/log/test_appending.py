"""Producers of a deployment with partitions: each row goes to its entity's log, and batches to all logs at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quorin.engine.backend import Backend, connect, logs
from quorin.engine.format.partition import partition_of
from quorin.engine.log.appending import MAX_ENTRY_BYTES, MAX_SPLIT_ROWS
from quorin.engine.log.record import Kind, decode
from quorin.engine.repartition import run
from quorin.errors import ConnectionFailedError, LogFullError, PartitionCountError
from quorin.schema import FeatureField, dtype, make_schema
from quorin.wal import Token, WALProducer

COUNT = 4
TRIP = make_schema("Trip", [FeatureField("score", dtype.float32), FeatureField("tag", dtype.string)])


@pytest.fixture
def backend(connection: str) -> Iterator[Backend]:
    opened = connect(connection, partitions=COUNT)
    yield opened
    opened.close()


@pytest.fixture
def producer(backend: Backend) -> WALProducer:
    return WALProducer(backend)


def table(ids: list[str], **columns: Any) -> pa.Table:
    given_ = {"entity_id": ids, "event_time_ns": range(len(ids)), "score": [0.5] * len(ids), "tag": ids}
    return pa.table(given_ | columns)


def rows_of(backend: Backend, partition: int, after: int = 0) -> list[dict[str, Any]]:
    log, rows = backend.log(partition=partition), []
    while (result := log.read(after)).through > after:
        rows += [row for _, payload in result.entries for row in decode(payload).batch.to_pylist()]
        after = result.through
    return rows


def ends(backend: Backend) -> list[int]:
    return [log.bounds().last for log in logs(backend)]


@given(ids=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), max_size=40))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_is_in_its_entity_s_log_and_in_its_order(
    backend: Backend, producer: WALProducer, ids: list[str]
) -> None:
    before = ends(backend)
    token = producer.write_many(TRIP, table(ids))
    found = [rows_of(backend, partition, before[partition]) for partition in range(COUNT)]
    expected = table(ids).to_pylist()
    for partition, rows in enumerate(found):
        assert rows == [row for row in expected if partition_of(row["entity_id"], COUNT) == partition]
    written = [partition for partition, rows in enumerate(found) if rows]
    all_logs = logs(backend)
    assert dict(token.parts) == {all_logs[p].identity(): all_logs[p].bounds().last for p in written}
    assert int(token) == max((position for _, position in token.parts), default=0)


def test_every_kind_of_write_goes_to_the_same_log(backend: Backend, producer: WALProducer) -> None:
    values = {"score": 1.0, "tag": "x"}
    tokens = [
        producer.write(TRIP, "ü", values),
        producer.write(TRIP, "ü", {"tag": "y"}, partial=True),
        producer.delete(TRIP, "ü"),
        producer.write_many(TRIP, table(["ü"])),
        producer.write_many(TRIP, {"entity_id": ["ü"], "tag": ["z"]}, partial=True),
    ]
    with producer.pipeline(TRIP) as pipe:
        pipe.write("ü", values)
    token, tail = producer.write_and_read(TRIP, "ü", values, after=0)
    assert tail is None
    partition = partition_of("ü", COUNT)
    log = backend.log(partition=partition)
    kinds = [decode(payload).kind for _, payload in log.read(0).entries]
    upsert, partial = Kind.upsert, Kind.partial
    assert kinds == [upsert, partial, Kind.delete, upsert, partial, upsert, upsert]
    assert {identity for one in (*tokens, pipe.position, token) for identity, _ in one.parts} == {log.identity()}
    assert all(rows_of(backend, other) == [] for other in range(COUNT) if other != partition)


def test_no_rows_are_no_write(backend: Backend, producer: WALProducer) -> None:
    assert producer.write_many(TRIP, table([])) == Token()
    assert ends(backend) == [0] * COUNT


def test_large_batches_are_split_in_pieces_and_their_entries_are_large(backend: Backend, producer: WALProducer) -> None:
    rows = MAX_SPLIT_ROWS + 1000
    producer.write_many(TRIP, table([str(number) for number in range(rows)], tag=[None] * rows))
    entries = [entry for log in logs(backend) for entry in log.read(0).entries]
    assert sum(decode(payload).batch.num_rows for _, payload in entries) == rows
    assert len(entries) <= 2 * COUNT + MAX_SPLIT_ROWS // 8192
    assert all(len(payload) < 2 * MAX_ENTRY_BYTES for _, payload in entries)


def test_a_full_log_is_named_and_the_others_are_written(backend: Backend) -> None:
    ids = [str(number) for number in range(64)]
    limited = WALProducer(backend, max_entries=2)
    full = partition_of("0", COUNT)
    for _ in range(2):
        limited.write(TRIP, "0", {"score": 1.0, "tag": None})
    with pytest.raises(LogFullError) as caught:
        limited.write_many(TRIP, table(ids))
    text = str(caught.value)
    assert text.startswith(f"the rows of partition {full} of {COUNT} were not written, those of partitions ")
    assert "writing all of them again is safe; log 'quorin:wal' " in text
    written = [len(rows_of(backend, partition)) for partition in range(COUNT)]
    assert written[full] == 2
    assert sum(written) == 2 + sum(partition_of(entity_id, COUNT) != full for entity_id in ids)
    with pytest.raises(LogFullError, match=f"the rows of partition {full} of {COUNT} were not written: writing"):
        limited.write(TRIP, "0", {"score": 1.0, "tag": None})


def test_only_what_failed_is_tried_again(backend: Backend) -> None:
    """The log has room again before ``block_ms`` is over, as a consumer trims it at the second attempt."""
    ids = [str(number) for number in range(64)]
    full = backend.log(partition=partition_of("0", COUNT))
    blocking = WALProducer(backend, max_entries=1, block_ms=60_000)
    blocking.write(TRIP, "0", {"score": 1.0, "tag": None})
    attempts: list[list[int]] = []
    together = backend.append_together

    def observed(parts: Any, **options: Any) -> Any:
        attempts.append([log.partition for log, _ in parts])
        if len(attempts) == 2:
            full.trim(full.bounds().last)
        return together(parts, **options)

    backend.append_together = observed  # type: ignore[method-assign]
    token = blocking.write_many(TRIP, table(ids))
    assert attempts == [[0, 1, 2, 3], [full.partition]]
    assert len(token.parts) == COUNT
    assert sum(len(rows_of(backend, partition)) for partition in range(COUNT)) == len(ids)


def test_a_producer_that_expects_another_number_is_refused_by_name(connection: str, producer: WALProducer) -> None:
    producer.write(TRIP, "a", {"score": 1.0, "tag": None})
    refused = pytest.raises(PartitionCountError, match=r"8 partitions are expected here, .*'quorin' .* has 4: ")
    with WALProducer(connection, partitions=8) as other, refused:
        other.write(TRIP, "a", {"score": 1.0, "tag": None})
    with WALProducer(connection) as any_number:
        assert len(any_number.write_many(TRIP, table([str(number) for number in range(64)])).parts) == COUNT


@pytest.mark.parametrize("count", [1, 4])
def test_a_retry_never_writes_to_a_log_of_another_number_than_its_rows_were_split_by(
    connection: str, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    with closing(connect(connection, partitions=count)) as backend:
        producer = WALProducer(backend, block_ms=1000)
        ids = [f"entity {number}" for number in range(40)]
        producer.write_many(TRIP, table(ids))
        grown: list[bool] = []

        def breaks_once(method: Any) -> Any:
            def broken(*arguments: Any, **options: Any) -> Any:
                if grown:
                    return method(*arguments, **options)
                grown.append(True)
                run.begin(backend, 2 * count, [backend.log().stream_key])
                run.go_on(backend)
                producer.write(TRIP, "of another thread", {"score": 2.0, "tag": "y"})
                raise ConnectionFailedError("the connection broke")

            return broken

        if count == 1:
            only = backend.log(partition=0)
            monkeypatch.setattr(type(only), "append", breaks_once(type(only).append))
        else:
            monkeypatch.setattr(backend, "append_together", breaks_once(backend.append_together))
        producer.write_many(TRIP, table(ids, tag=["again"] * len(ids)))
        found = {p: [row["entity_id"] for row in rows_of(backend, p)] for p in range(2 * count)}
        assert sorted(one for rows in found.values() for one in rows) == sorted([*ids, "of another thread"])
        assert all(partition_of(one, 2 * count) == p for p, rows in found.items() for one in rows)


def test_the_logs_are_those_of_one_number(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "partitions", lambda: COUNT // 2)  # Another thread has it looked up again then.
    assert logs(backend)[1].identity() == backend.log(partition=1, of=COUNT // 2).identity()
    assert len(logs(backend)) == COUNT // 2


def test_a_write_that_waits_for_a_growth_waits_for_the_control_plane_too(
    backend: Backend, connection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A master that dies while a deployment grows may be the control plane's."""
    at_once, patient = WALProducer(backend), WALProducer(backend, block_ms=60_000)
    for producer in (at_once, patient):
        producer.write(TRIP, "a", {"score": 1.0, "tag": "a"})
    with closing(connect(connection)) as other:
        run.begin(other, 2 * COUNT, ["quorin:wal"])
        run.go_on(other)
    growth, times_away = backend.control.growth, [3]

    def look() -> str | None:
        if times_away[0]:
            times_away[0] -= 1
            raise ConnectionFailedError("the control plane is away")
        return growth()

    monkeypatch.setattr(backend.control, "growth", look)
    with pytest.raises(ConnectionFailedError, match="away"):
        at_once.write(TRIP, "a", {"score": 2.0, "tag": "b"})
    patient.write(TRIP, "a", {"score": 3.0, "tag": "c"})
    assert times_away == [0]
    assert [row["score"] for row in rows_of(backend, partition_of("a", 2 * COUNT))] == [3.0]
