"""The logs of partitions on a cluster: masters share them, slots move, and servers die while producers append."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pyarrow as pa
import pytest

from quorin.engine.backend import Backend, connect, logs
from quorin.engine.backend.redis_urls import slot_of
from quorin.engine.format.partition import partition_of, ranges
from quorin.engine.log.record import decode
from quorin.errors import ConnectionFailedError
from quorin.schema import FeatureField, dtype, make_schema
from quorin.wal import WALProducer
from tests.support.redis_cluster import CLUSTER_VERSIONS, Cluster, call, until

COUNT = 16
ROW = make_schema("Row", [FeatureField("number", dtype.int64)])
IDS = [f"e{number}" for number in range(200)]
SLOTS = [slot_of(f"quorin/{COUNT}/{partition}") for partition in range(COUNT)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One whose masters go on when others are away."""
    servers = Cluster(CLUSTER_VERSIONS[-1], "--cluster-require-full-coverage", "no", node_timeout_ms=1000)
    yield servers
    servers.close()


@pytest.fixture
def backend(cluster: Cluster) -> Iterator[Backend]:
    cluster.flush()
    opened = connect(cluster.url, partitions=COUNT)
    yield opened
    opened.close()


def rows(number: int) -> pa.Table:
    return pa.table({"entity_id": IDS, "number": [number] * len(IDS), "event_time_ns": [number] * len(IDS)})


def written(backend: Backend) -> list[set[tuple[str, int]]]:
    """By partition, the rows that its log has."""
    found: list[set[tuple[str, int]]] = []
    for log in logs(backend):
        found.append(set())
        after = 0
        while (result := log.read(after)).entries:
            for _, payload in result.entries:
                found[-1] |= {(row["entity_id"], row["number"]) for row in decode(payload).batch.to_pylist()}
            after = result.through
    return found


def expected(*numbers: int) -> list[set[tuple[str, int]]]:
    of = [[entity_id for entity_id in IDS if partition_of(entity_id, COUNT) == partition] for partition in range(COUNT)]
    return [{(entity_id, number) for entity_id in ids for number in numbers} for ids in of]


def test_masters_share_the_logs(cluster: Cluster, backend: Backend) -> None:
    masters = [cluster.master_of(slot) for slot in SLOTS]
    assert set(masters) == set(cluster.masters())
    assert WALProducer(backend).write_many(ROW, rows(1)).parts
    for number in cluster.masters():
        here = [partition for partition, master in enumerate(masters) if master == number]
        streams = set(call(cluster.servers[number], "KEYS", "*wal"))
        assert streams == {b"{quorin/%d/%d}:quorin:wal" % (COUNT, partition) for partition in here}
    assert written(backend) == expected(1)


def test_batches_go_on_while_slots_move(cluster: Cluster, backend: Backend) -> None:
    """While some keys of a log have moved and others have not, its part waits (``TRYAGAIN``), and the others are
    written.
    """
    producer, numbers, stopping = WALProducer(backend, block_ms=60_000), list[int](), threading.Event()

    def write() -> None:
        while not stopping.is_set():
            producer.write_many(ROW, rows(len(numbers)))
            numbers.append(len(numbers))

    def wait_for_more() -> None:
        enough = len(numbers) + 2
        until(lambda: len(numbers) >= enough or not writer.is_alive())

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for partition in (3, 9):
            wait_for_more()
            cluster.move_slot(SLOTS[partition])
        wait_for_more()
    finally:
        stopping.set()
        writer.join()
    assert written(backend) == expected(*numbers)


def test_a_shard_that_is_away_is_named_and_a_retry_writes_only_the_rest(cluster: Cluster, backend: Backend) -> None:
    producer = WALProducer(backend)
    producer.write_many(ROW, rows(0))
    master = cluster.master_of(SLOTS[0])
    away = [partition for partition, slot in enumerate(SLOTS) if cluster.master_of(slot) == master]
    there = sorted({*range(COUNT)} - {*away})
    shard = [cluster.replica_of(master), master]
    for number in shard:
        cluster.servers[number].kill()
    try:
        with pytest.raises(ConnectionFailedError) as caught:
            producer.write_many(ROW, rows(1))
        text = str(caught.value)
        assert f"the rows of partitions {ranges(away)} of {COUNT} were not written, " in text
        assert f"those of partitions {ranges(there)} were: writing all of them again is safe; Redis Cluster at" in text
        blocked = WALProducer(cluster.url, block_ms=120_000)
        results: list[int] = []
        thread = threading.Thread(target=lambda: results.append(blocked.write_many(ROW, rows(2))))
        thread.start()
    finally:
        for number in shard:
            cluster.restart(number)
    thread.join()
    blocked.close()
    assert len(results) == 1
    until(lambda: cluster.master_of(SLOTS[0]) in shard)
    found, whole = written(backend), expected(0, 1, 2)
    assert [found[partition] for partition in there] == [whole[partition] for partition in there]
    # The servers of the shard keep nothing on a disk: what they have is what was written since.
    newest = expected(2)
    assert all(newest[partition] <= found[partition] for partition in away)
