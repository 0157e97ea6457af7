"""A partitioned deployment on a real cluster: masters die, replicas take over, slots move, while rows are written."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from quorin.assembly import has_applied
from quorin.engine.backend import connect
from quorin.engine.backend.partition_keys import log_tag
from quorin.engine.format.growth import Growth
from quorin.engine.format.partition import partition_of
from quorin.errors import ConnectionFailedError, PartitionCountError, TokenError
from quorin.evolution import repartition
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.forking import context, preload
from tests.support.growing import NUMBERS, Reader, consume, noted, row, rows_of, until, write
from tests.support.redis_cluster import CLUSTER_VERSIONS, Cluster

preload(__name__)

PARTITIONS = 4


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    servers = Cluster(CLUSTER_VERSIONS[0], node_timeout_ms=1000)
    yield servers
    servers.close()


def slot(namespace: str, partition: int, count: int = PARTITIONS) -> int:
    return int(key_slot(f"{{{log_tag(namespace, count, partition)}}}".encode()))


class Fleet:
    """A node with all rows and two with a half each, two writers, and a reader, in processes that go on."""

    HELD = {"whole": None, "low": "0-1/4", "high": "2-3/4"}

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.url = f"{cluster.url}&partitions={PARTITIONS}"
        self.backend = connect(self.url)
        self.stop, self.notes = directory / "stop", [directory / f"acknowledged {number}" for number in range(2)]
        self.nodes: dict[str, SegmentRegistry] = {}
        with WALProducer(self.url, block_ms=60_000) as producer:
            for number in range(20):
                producer.write(NUMBERS, f"still {number}", row(number))
        for name, held in self.HELD.items():
            (directory / name).mkdir()
            self.nodes[name] = SegmentRegistry(self.backend, shm_dir=directory / name, held=held)
            consumer = WALConsumer(self.backend, [NUMBERS], registry=self.nodes[name])
            consumer.drain()
            consumer.close()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside the block all goes on; after it each node has what was acknowledged, or newer."""
        consumers = [
            context.Process(target=consume, args=(self.url, str(self.nodes[name].shm_dir), "", held))
            for name, held in self.HELD.items()
        ]
        writers = [
            context.Process(target=write, args=(self.url, number, str(path), str(self.stop), 60_000))
            for number, path in enumerate(self.notes)
        ]
        for process in (*consumers, *writers):
            process.start()
        try:
            until(lambda: all(path.exists() and len(path.read_text()) > 1000 for path in self.notes))
            with Reader(self.nodes["whole"], [f"still {number}" for number in range(20)]) as reader:
                yield
                self.go_on(seconds=300)
            assert reader.failures == []
            assert reader.reads
            self.stop.touch()
            for process in writers:
                process.join(120)
            assert [process.exitcode for process in writers] == [0, 0]
            check(self.nodes, noted(*self.notes))
        finally:
            self.stop.touch()
            for process in (*writers, *consumers):
                process.terminate()
                process.join(60)
            self.backend.close()

    def go_on(self, seconds: float = 120) -> None:
        """Until both writers have written each of their ids again."""
        before = [len(path.read_text()) for path in self.notes]
        until(
            lambda: all(len(path.read_text()) > size + 2000 for path, size in zip(self.notes, before, strict=True)),
            seconds,
        )

    def grow(self, count: int) -> None:
        """As the command does that is run again when it fails."""

        def is_done() -> bool:
            with suppress(ConnectionFailedError):
                return repartition(self.backend, count, wait_for="log").partitions == count
            return False

        until(is_done, 300)


@pytest.mark.torture
def test_rows_survive_failovers_and_moved_slots_and_a_growth(own_cluster: Cluster, tmp_path: Path) -> None:
    fleet = Fleet(own_cluster, tmp_path)
    with fleet.running():
        killed = own_cluster.fail_over(slot("quorin", 0))
        fleet.go_on()
        own_cluster.restart(killed)
        own_cluster.move_slot(slot("quorin", 3))
        fleet.go_on()
        fleet.grow(2 * PARTITIONS)


class Node:
    """A node whose consumer runs in a thread."""

    def __init__(self, url: str, namespace: str, directory: Path) -> None:
        directory.mkdir()
        self.registry = SegmentRegistry(url, shm_dir=directory, namespace=namespace)
        self.consumer = WALConsumer(url, [NUMBERS], registry=self.registry, namespace=namespace)
        self._thread = threading.Thread(target=self.consumer.run)
        self._thread.start()

    def serves(self, rows: dict[str, int | None]) -> bool:
        if self.registry.node.current("Numbers") is None:
            return False
        return rows_of(self.registry, list(rows)) == rows

    def close(self) -> None:
        self.consumer.stop()
        self._thread.join(60)
        self.consumer.close()
        self.registry.backend.close()


def test_what_is_lost_of_a_closed_log_is_reported_and_what_it_takes_then_is_served(
    own_cluster: Cluster, tmp_path: Path
) -> None:
    """The master of a log dies, and neither that it was closed nor its last row was replicated."""
    # The control plane and the other log are at other masters.
    namespace = next(
        name
        for name in (f"n{number}" for number in range(100))
        if own_cluster.master_of(slot(name, 1, 2))
        not in (own_cluster.master_of(slot(name, 0, 2)), own_cluster.master_of(int(key_slot(f"{{{name}}}".encode()))))
    )
    ids = [one for one in (f"id {number}" for number in range(60)) if partition_of(one, 2) == 1]
    backend = connect(own_cluster.url, namespace=namespace, partitions=2)
    stale = WALProducer(own_cluster.url, namespace=namespace, block_ms=60_000)
    nodes = [Node(own_cluster.url, namespace, tmp_path / "there")]
    try:
        with closing(backend), closing(stale):
            backend.partitions()
            stale.write_many(NUMBERS, {"entity_id": ids, "number": [1] * len(ids), "text": ["n1"] * len(ids)})
            rows: dict[str, int | None] = dict.fromkeys(ids, 1)
            until(lambda: nodes[0].serves(rows))
            own_cluster.repair()
            with own_cluster.not_replicating(slot(namespace, 1, 2)):
                lost = stale.write(NUMBERS, ids[0], row(2))
                until(lambda: nodes[0].serves(rows | {ids[0]: 2}))
                repartition(backend, 4, wait_for="log")
                with nodes[0].registry.open_current(NUMBERS) as segment:
                    until(lambda: segment.partitioning.count == 4)
                    assert has_applied(segment, lost), "by the node that had it"
            ended = Growth.parse(backend.control.growth()).former[0].logs[1].end
            assert ended == lost
            stray = stale.write(NUMBERS, ids[1], row(3))
            assert stray.parts[0][0] == lost.parts[0][0], "the former log has acknowledged it"
            rows |= {ids[1]: 3}
            until(lambda: nodes[0].serves(rows | {ids[0]: 2}))
            nodes.append(Node(own_cluster.url, namespace, tmp_path / "new"))
            until(lambda: nodes[1].serves(rows))
            until(lambda: Growth.parse(backend.control.growth()).former[0].logs[1].end < ended)
            with nodes[1].registry.open_current(NUMBERS) as segment, pytest.raises(TokenError, match="behind the end"):
                has_applied(segment, lost)
            stale.write(NUMBERS, ids[0], row(4))
            until(lambda: all(node.serves(rows | {ids[0]: 4}) for node in nodes))
    finally:
        for node in nodes:
            node.close()


def check(nodes: dict[str, SegmentRegistry], acknowledged: dict[str, int]) -> None:
    """Each node has what was acknowledged of the partitions that it holds, or newer; halves equal the whole. Which rows
    Redis' replication lost is not known to the writer; here each id is written again after the failover.
    """
    ids = list(acknowledged)

    def has(name: str) -> bool:
        served = rows_of(nodes[name], ids)
        return all(served[entity] is not None and served[entity] >= acknowledged[entity] for entity in ids)

    until(lambda: has("whole"), 120)
    whole = rows_of(nodes["whole"], ids)

    def halves() -> dict[str, Any]:
        low, high = (rows_of(nodes[name], ids) for name in ("low", "high"))
        assert not any(low[entity] is not None and high[entity] is not None for entity in ids)
        return {entity: low[entity] if low[entity] is not None else high[entity] for entity in ids}

    until(lambda: halves() == whole, 120)


def test_two_deployments_with_other_numbers_share_a_cluster_and_disagreement_is_refused(
    redis_cluster: Cluster, tmp_path: Path
) -> None:
    found: dict[str, dict[str, int | None]] = {}
    for namespace, count in (("one", 2), ("other", 8)):
        (tmp_path / namespace).mkdir()
        with closing(connect(redis_cluster.url, namespace=namespace, partitions=count)) as backend:
            registry = SegmentRegistry(backend, shm_dir=tmp_path / namespace, namespace=namespace)
            ids = [f"{namespace} {number}" for number in range(50)]
            with WALProducer(backend, block_ms=60_000, namespace=namespace) as producer:
                rows = {"entity_id": ids, "number": [count] * 50, "text": [f"n{count}"] * 50}
                assert len(producer.write_many(NUMBERS, rows).parts) == count
            consumer = WALConsumer(backend, [NUMBERS], registry=registry, namespace=namespace)
            consumer.drain()
            consumer.close()
            found[namespace] = rows_of(registry, ids)
            assert found[namespace] == dict.fromkeys(ids, count)
    for wrong in (
        lambda: WALProducer(redis_cluster.url, namespace="one", partitions=8).write(NUMBERS, "a", row(1)),
        lambda: SegmentRegistry(redis_cluster.url, namespace="one", shm_dir=tmp_path, partitions=8).partitioning,
    ):
        with pytest.raises(PartitionCountError, match=r"8 partitions are expected here, .*'one'.* has 2"):
            wrong()
