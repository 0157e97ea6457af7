"""Drills of a fleet: many nodes, a rolling restart, a Redis that is rolled back, shared directories, a wrong clock."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from quorin.engine.backend import Beginning
from quorin.engine.ops.nodes import observed_nodes
from quorin.engine.ops.readiness import readiness
from quorin.errors import CorruptSegmentError
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from tests.support.fleet import Node, Server, until
from tests.support.redis_server import RedisServer

ROW = make_schema("Row", [FeatureField("number", dtype.int64), FeatureField("text", dtype.string)])
SECOND = 10**9


class Fleet:
    """Nodes by number, each with one serving process, and a producer on the first."""

    def __init__(self, url: str, folder: Path, count: int) -> None:
        self.nodes = [Node(url, folder / f"n{number}") for number in range(count)]
        self.servers = [node.start() for node in self.nodes]
        self.registry = self.nodes[0].registry()
        self.producer = WALProducer(self.registry.backend, registry=self.registry)
        identity, bounds = self.registry.backend.log().state()
        assert self.registry.create_schema(ROW, Beginning(identity, bounds.last))

    def write(self, number: int, entity_id: str | None = None) -> int:
        row = {"number": number, "text": f"t{number}"}
        return self.producer.write(ROW, entity_id or f"e{number:03}", row, (number + 1) * SECOND)

    def until_all_have(self, *expected: int) -> None:
        for node in self.nodes:
            until(lambda node=node: numbers(node.servers[-1]) == list(expected))

    def close(self) -> None:
        for node in self.nodes:
            node.stop()
        self.producer.close()
        self.registry.backend.close()


def numbers(server: Server) -> list[int]:
    return [row["number"] for row in server.rows("Row")]


def is_ready(node: Node) -> bool:
    registry = node.registry()
    found = readiness(registry, max_lag_seconds=1)
    registry.backend.close()
    return bool(found) and not any(one.problem for one in found)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """It has on its disk what was saved there by a command."""
    server = RedisServer()
    yield server
    server.stop()


def test_ten_nodes_with_ten_rows_each_end_with_the_same_hundred(server: RedisServer, tmp_path: Path) -> None:
    fleet = Fleet(server.url, tmp_path, 10)
    try:
        for number in range(100):
            fleet.write(number)
        fleet.until_all_have(*range(100))
        answers = [one.rows("Row") for one in fleet.servers]
        assert all(answer == answers[0] for answer in answers), "event times included"
        registries = [node.registry() for node in fleet.nodes]
        assert len({registry.node.id for registry in registries}) == 10
        for node, registry in zip(fleet.nodes, registries, strict=True):
            files = [path.name for path in node.shm_dir.glob("quorin_*")]
            assert files == [registry.node.current("Row")]
            registry.backend.close()
    finally:
        fleet.close()


def test_in_a_rolling_restart_no_read_fails_and_none_goes_back(server: RedisServer, tmp_path: Path) -> None:
    fleet = Fleet(server.url, tmp_path, 3)
    newest: dict[Path, int] = {}
    written = iter(range(1, 10**6))

    def push_and_read() -> bool:
        last = next(written)
        fleet.write(last, "one")
        for node in fleet.nodes:
            (row,) = node.servers[0].rows("Row")
            assert row["event_time_ns"] >= newest.get(node.shm_dir, 0)
            newest[node.shm_dir] = row["event_time_ns"]
        return all(at > (last - 20) * SECOND for at in newest.values())

    try:
        fleet.write(0, "one")
        fleet.until_all_have(0)
        for node in fleet.nodes:
            node.start()
            until(lambda node=node: push_and_read() and is_ready(node) and node.servers[-1].rows("Row"))
            old = node.servers.pop(0)
            old.kill(signal.SIGTERM)
            old.process.join(60)
            until(lambda node=node: push_and_read() and node.servers[0].ask("applies"))
        last = next(written)
        fleet.write(last, "one")
        fleet.until_all_have(last)
    finally:
        fleet.close()


def test_when_redis_is_rolled_back_nodes_keep_the_newer_rows_and_follow_on(server: RedisServer, tmp_path: Path) -> None:
    fleet = Fleet(server.url, tmp_path, 3)
    try:
        fleet.write(1, "old")
        fleet.until_all_have(1)
        with redis.Redis.from_url(server.url) as client:
            client.save()
        lost = [fleet.write(2, "old"), fleet.write(3, "some")]
        fleet.until_all_have(2, 3)
        server.kill()
        assert [numbers(one) for one in fleet.servers] == [[2, 3]] * 3
        server.start()
        until(lambda: all(one.ask("age", "Row") < 1 for one in fleet.servers))
        assert [numbers(one) for one in fleet.servers] == [[2, 3]] * 3
        assert fleet.write(4, "zero") > max(lost), "no position is assigned twice"
        fleet.until_all_have(2, 3, 4)
    finally:
        fleet.close()


def test_deployments_that_share_a_directory_serve_their_own_rows(server: RedisServer, tmp_path: Path) -> None:
    fleets = [Fleet(f"{server.url}?db={number}", tmp_path, 1) for number in range(2)]
    try:
        for number, fleet in enumerate(fleets):
            fleet.write(number)
        for number, fleet in enumerate(fleets):
            fleet.until_all_have(number)
        assert len(list(tmp_path.glob("n0/quorin_*"))) == 2
    finally:
        for fleet in fleets:
            fleet.close()


def test_a_node_file_of_a_newer_release_is_refused_by_name(server: RedisServer, tmp_path: Path) -> None:
    registry = SegmentRegistry(server.url, shm_dir=tmp_path)
    path = tmp_path / f"quorin-node-{registry.node.identity:016x}"
    content: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format": 99}))
    newer = SegmentRegistry(server.url, shm_dir=tmp_path)
    with pytest.raises(CorruptSegmentError, match=f"{path} has format 99, this release of Quorin reads 1"):
        newer.node.state()
    newer.backend.close()
    registry.backend.close()


@pytest.mark.parametrize("clock_seconds", [-3600, 3600])
def test_a_node_with_a_wrong_clock_is_as_fresh_as_the_others(
    server: RedisServer, tmp_path: Path, clock_seconds: int
) -> None:
    fleet = Fleet(server.url, tmp_path, 1)
    other = Node(server.url, tmp_path / "wrong")
    fleet.nodes.append(other)
    try:
        other.start(clock_seconds=clock_seconds)
        fleet.write(1)
        fleet.until_all_have(1)
        backend = fleet.registry.backend
        until(lambda: len(observed_nodes(backend, [backend.log()])) == 2)
        found = observed_nodes(backend, [backend.log()])
        assert all(node.is_alive and 0 <= node.silent_seconds < 60 for node in found)
        # It is as fresh as the others, to itself and to them.
        for serving in (fleet.servers[0], other.servers[0]):
            until(lambda serving=serving: serving.ask("ready"))
            assert 0 <= serving.ask("age", "Row") < 60

        def lags_are_known() -> bool:
            lags = [one.lag_seconds for one in observed_nodes(backend, [backend.log()])]
            return all(lag is not None and 0 <= lag < 60 for lag in lags)

        until(lags_are_known)
    finally:
        fleet.close()
