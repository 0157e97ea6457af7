"""A consumer of four partitions that is killed while it applies, and its successor; each row whole, none lost."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pyarrow as pa
import pytest

from quorin.assembly import read
from quorin.engine.backend import connect, logs
from quorin.offline import ParquetDatasetStore
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.consumers import ROW, consume, kill, start

COUNT, KILLS = 4, 3
IDS = [f"entity-{number}" for number in range(400)]


def table(number: int) -> pa.Table:
    return pa.table(
        {
            "entity_id": IDS,
            "event_time_ns": [number] * len(IDS),
            "number": [number] * len(IDS),
            "text": [f"{number} " * 5] * len(IDS),
        }
    )


@pytest.mark.parametrize("kind", ["embedded", "redis"])
def test_a_killed_consumer_of_several_partitions_loses_nothing(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    connection = str(tmp_path / "store") if kind == "embedded" else str(request.getfixturevalue("redis_url"))
    shm_dir, history = tmp_path / "shm", tmp_path / "history"
    shm_dir.mkdir()
    backend = connect(connection, partitions=COUNT)
    registry = SegmentRegistry(backend, shm_dir=shm_dir)
    producer, order = WALProducer(backend, registry=registry), random.Random(20)
    written = 0
    assert backend.partitions() == COUNT, "settled before a consumer asks"
    for _ in range(KILLS):
        options = {"flush_interval_seconds": 0.02}
        process = start(consume, connection, str(shm_dir), f"parquet:{history}", options)
        try:
            written += 1
            producer.wait(ROW, producer.write_many(ROW, table(written)), timeout_ms=60_000)
            until = time.monotonic() + order.uniform(0.05, 0.3)
            while time.monotonic() < until:
                written += 1
                producer.write_many(ROW, table(written))
        finally:
            kill(process)
        with registry.open_current(ROW) as segment:
            for row in read(segment, IDS).to_pylist():
                assert row["text"] == f"{row['number']} " * 5
    store = ParquetDatasetStore(history)
    with WALConsumer(backend, [ROW], registry=registry, offline=store) as consumer:
        consumer.drain()
    with registry.open_current(ROW) as segment:
        assert read(segment, IDS).column("number").to_pylist() == [written] * len(IDS)
        ends = [log.bounds().last for log in logs(backend)]
        assert [part.position for part in segment.parts()] == ends
    assert [log.bounds().first for log in logs(backend)] == [0] * COUNT, "trimmed behind the history"
    queries = pa.table({"entity_id": IDS[:9], "as_of_time_ns": list(range(1, 10))})
    found = store.read_point_in_time(ROW, queries).column("number").to_pylist()
    assert found == [min(time_ns, written) for time_ns in range(1, 10)], "the history has every write"
    producer.close()
    backend.close()
