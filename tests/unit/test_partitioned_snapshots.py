"""A snapshot file of a deployment with several partitions: which node it can be restored on, and where it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quorin.assembly import read
from quorin.errors import PartitionCountError, SegmentConflictError, SegmentNotFoundError
from quorin.evolution import repartition
from quorin.snapshot import restore, snapshot
from quorin.wal import Token
from tests.support.partition_nodes import COUNT, IDS, PartitionNode, in_partitions, new_nodes
from tests.support.world import TRIP, row
from tests.unit.cli.test_cli import run


class Node(PartitionNode):
    schemas = (TRIP,)

    def write(self, score: float) -> None:
        for entity_id in IDS:
            self.producer.write(TRIP, entity_id, row(score))

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


@pytest.fixture
def new_node(connection: str, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    with new_nodes(Node, connection, tmp_path) as new:
        yield new


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
