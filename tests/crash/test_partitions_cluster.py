"""A partitioned deployment on a real cluster: masters die, replicas take over, slots move, while rows are written."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis.crc import key_slot

from quorin.assembly import has_applied
from quorin.engine.backend import connect
from quorin.engine.format.growth import Growth
from quorin.engine.format.partition import partition_of
from quorin.errors import PartitionCountError, TokenError
from quorin.evolution import repartition
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.growing import NUMBERS, row, rows_of, until
from tests.support.growing_cluster import PARTITIONS, Fleet, slot
from tests.support.redis_cluster import CLUSTER_VERSIONS, Cluster

SEEDS = [int(seed) for seed in os.environ.get("QUORIN_GROWTH_SEEDS", "0 1 2 3 4").split()]


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    servers = Cluster(CLUSTER_VERSIONS[0], node_timeout_ms=1000)
    yield servers
    servers.close()


@pytest.mark.torture
def test_rows_survive_failovers_and_moved_slots_and_a_growth(own_cluster: Cluster, tmp_path: Path) -> None:
    fleet = Fleet(own_cluster, tmp_path)
    with fleet.running():
        fleet.failovers.fail_over(slot("quorin", 0))
        fleet.go_on()
        own_cluster.move_slot(slot("quorin", 3))
        fleet.go_on()
        fleet.grow(2 * PARTITIONS)


@dataclass(frozen=True)
class Step:
    """Something that happens to the cluster while a deployment grows, so many seconds after the one before."""

    after: float
    kind: str
    what: str
    slot: int
    seconds: float

    @classmethod
    def drawn(cls, rng: random.Random, count: int) -> Step:
        of = rng.choice([count, 2 * count])
        partition = rng.randrange(of)
        of_log = f"log {partition} of {of}", slot("quorin", partition, of)
        what, at = of_log if rng.random() < 0.7 else ("the control plane", int(key_slot(b"{quorin}")))
        kind = rng.choice(["fail over", "lose", "move"])
        return cls(rng.uniform(0, 0.5), kind, what, at, rng.uniform(0, 0.3))

    def take(self, fleet: Fleet) -> None:
        time.sleep(self.after)
        if self.kind == "move":
            fleet.cluster.move_slot(self.slot)
        elif self.kind == "fail over":
            fleet.failovers.fail_over(self.slot)
        else:
            fleet.failovers.lose(self.slot, self.seconds)

    def __str__(self) -> str:
        lasts = f" for {self.seconds:.2f} s" if self.kind == "lose" else ""
        return f"after {self.after:.2f} s {self.kind} {self.what}{lasts}"


@pytest.mark.torture
@pytest.mark.parametrize("seed", SEEDS)
def test_growths_beside_masters_that_die_and_slots_that_move(own_cluster: Cluster, tmp_path: Path, seed: int) -> None:
    """Prints what it does; ``QUORIN_GROWTH_SEEDS`` has the seeds, separated by spaces."""
    rng, started = random.Random(seed), time.monotonic()
    growths = {count: [Step.drawn(rng, count) for _ in range(2)] for count in (4, 8, 16)}
    # A growth takes a tenth of a second: most begin about when something happens.
    begin = {count: max(0.0, steps[0].after + rng.uniform(-0.2, 0.4)) for count, steps in growths.items()}

    def say(what: object) -> None:
        print(f"seed {seed}, {time.monotonic() - started:6.2f} s: {what}", flush=True)  # noqa: T201 - to replay it

    def disturb(fleet: Fleet, steps: list[Step]) -> None:
        for step in steps:
            say(step)
            step.take(fleet)
        say("the cluster is whole again")

    def grow(fleet: Fleet, count: int) -> None:
        time.sleep(begin[count])
        fleet.grow(2 * count)
        say(f"{2 * count} partitions")

    fleet = Fleet(own_cluster, tmp_path)
    with fleet.running(), ThreadPoolExecutor(2) as threads:
        for count, steps in growths.items():
            say(f"after {begin[count]:.2f} s grow to {2 * count}")
            for done in [threads.submit(disturb, fleet, steps), threads.submit(grow, fleet, count)]:
                done.result(600)
            fleet.wait_for_nodes(2 * count)
            say("all nodes are there")
            fleet.go_on()
    say(
        f"lost, by node: { {name: len(gone) for name, gone in fleet.lost.items()} }, of {len(fleet.acknowledged())} ids"
    )


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
