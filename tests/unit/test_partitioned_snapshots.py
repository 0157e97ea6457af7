"""A snapshot file of a deployment with several partitions: which node it can be restored on, and where it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quorin.assembly import read
from quorin.engine.backend import connect
from quorin.engine.format.partition import partition_of
from quorin.errors import PartitionCountError, SegmentConflictError, SegmentNotFoundError
from quorin.evolution import repartition
from quorin.shm import SegmentRegistry
from quorin.snapshot import restore, snapshot
from quorin.wal import Token, WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.world import TRIP, row
from tests.unit.cli.test_cli import run

COUNT = 4
IDS = [f"driver-{number}" for number in range(24)]


@dataclass
class Node:
    registry: SegmentRegistry
    producer: WALProducer

    def write(self, score: float) -> None:
        for entity_id in IDS:
            self.producer.write(TRIP, entity_id, row(score))

    def drain(self) -> int:
        with WALConsumer(self.registry.backend, TRIP, registry=self.registry) as consumer:
            return consumer.drain()

    def scores(self) -> dict[str, float | None]:
        with self.registry.open_current(TRIP) as segment:
            rows = read(segment, IDS, missing_partitions="mask").to_pylist()
            return {found["entity_id"]: found["score"] for found in rows if not found["not_held"]}

    def save(self, path: Path) -> Any:
        with self.registry.open_current(TRIP) as segment:
            return snapshot(segment, path)

    def applied(self) -> Token:
        with self.registry.open_current(TRIP) as segment:
            return segment.applied()


@pytest.fixture(params=["embedded", "redis"])
def connection(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "embedded" else str(request.getfixturevalue("redis_url"))


@pytest.fixture
def new_node(connection: str, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    opened: list[Node] = []

    def new(held: str | None = None, partitions: int | None = COUNT, namespace: str = "quorin") -> Node:
        (shm_dir := tmp_path / f"shm{len(opened)}").mkdir()
        backend = connect(connection, partitions=partitions, namespace=namespace)
        registry = SegmentRegistry(backend, shm_dir=shm_dir, held=held, namespace=namespace)
        opened.append(Node(registry, WALProducer(backend, registry=registry)))
        return opened[-1]

    yield new
    for node in opened:
        node.producer.close()
        node.registry.backend.close()


def in_partitions(*partitions: int) -> set[str]:
    return {one for one in IDS if partition_of(one, COUNT) in partitions}


@pytest.mark.parametrize(("saved", "held"), [(None, None), (None, "1,3"), ("0-2", "1-2")])
def test_each_partition_goes_on_from_its_own_position(
    new_node: Callable[..., Node], tmp_path: Path, saved: str | None, held: str | None
) -> None:
    first, second = new_node(saved), new_node(held)
    first.write(1.0)
    first.drain()
    taken = first.save(tmp_path / "file")
    assert taken.position == first.applied()
    assert taken.position.parts == first.applied().parts
    first.write(2.0)
    restored = restore(tmp_path / "file", second.registry)
    own = in_partitions(*second.registry.partitioning.held)
    assert second.scores() == dict.fromkeys(own, 1.0)
    assert restored.entity_count == len(own)
    assert restored.position.parts == second.applied().parts
    assert {*restored.position.parts} <= {*taken.position.parts}
    assert len(restored.position.parts) == len(second.registry.partitioning.held)
    assert second.drain() == len(own), "only what was written since was applied"
    assert second.scores() == dict.fromkeys(own, 2.0)
    with pytest.raises(SegmentConflictError):
        restore(tmp_path / "file", second.registry)


def test_a_file_that_lacks_partitions_is_refused(new_node: Callable[..., Node], tmp_path: Path) -> None:
    half, whole = new_node("0-1"), new_node()
    half.write(1.0)
    half.drain()
    half.save(tmp_path / "half")
    with pytest.raises(PartitionCountError, match=r"half has the partitions 0-1 of 4, and this node holds 0-3 of 4"):
        restore(tmp_path / "half", whole.registry)
    other = new_node(namespace="other", partitions=8)
    with pytest.raises(PartitionCountError, match=r"half is of 4 partitions, and the deployment .* has 8"):
        restore(tmp_path / "half", other.registry)
    one = new_node(namespace="one", partitions=None)
    with pytest.raises(PartitionCountError, match=r"half is of 4 partitions, and the deployment .* has 1"):
        restore(tmp_path / "half", one.registry)
    for node in (whole, other, one):
        with pytest.raises(SegmentNotFoundError):
            node.registry.open_current(TRIP)
        assert not [path for path in node.registry.shm_dir.iterdir() if path.name.startswith("quorin_Trip")]


def test_a_file_from_before_the_deployment_grew_catches_up(new_node: Callable[..., Node], tmp_path: Path) -> None:
    node, late, later = new_node(), new_node(), new_node()
    node.write(1.0)
    node.drain()
    node.save(tmp_path / "before")
    node.write(2.0)
    repartition(node.registry.backend, 2 * COUNT, wait_for="log")
    node.write(3.0)
    node.drain()
    node.save(tmp_path / "after")
    node.write(4.0)
    for file, other, count in (("before", late, COUNT), ("after", later, 2 * COUNT)):
        restore(tmp_path / file, other.registry)
        with other.registry.open_current(TRIP) as segment:
            assert segment.partitioning.count == count
        other.drain()
        assert other.scores() == dict.fromkeys(IDS, 4.0)
        with other.registry.open_current(TRIP) as segment:
            assert segment.partitioning.count == 2 * COUNT


def test_the_commands_show_tokens(new_node: Callable[..., Node], connection: str, tmp_path: Path) -> None:
    node = new_node()
    node.write(1.0)
    node.drain()
    shm, other = node.registry.shm_dir, new_node()
    where = ["-c", connection, "--shm-dir"]
    saved = run("snapshot", "Trip", str(tmp_path / "file"), *where, str(shm))
    assert saved.stdout.strip().endswith(f"log position {node.applied().text}"), saved.stderr
    done = run("restore", str(tmp_path / "file"), *where, str(other.registry.shm_dir), "--partitions", "0-1")
    assert done.returncode == 0, done.stderr
    with other.registry.open_current(TRIP) as segment:
        assert done.stdout.strip().endswith(f"log position {segment.applied().text}")
        assert str(segment.partitioning) == "0-1 of 4"
    refused = run("restore", str(tmp_path / "file"), *where, str(other.registry.shm_dir), "--partitions", "7")
    assert refused.returncode == 1
    assert "expected numbers up to 3" in refused.stderr
