"""Several nodes on one Redis: every node serves what any of them writes, and goes on when something dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from quorin.engine.backend import Beginning
from quorin.engine.memory.lock import is_locked
from quorin.errors import SegmentNotFoundError
from quorin.evolution import upgrade_schema
from quorin.schema import FeatureField, dtype, make_schema
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.fleet import Node, Server, until
from tests.support.forking import Forked, preload, run_module
from tests.support.redis_server import RedisServer, emptied

preload("quorin.cli")

ROW = make_schema("Row", [FeatureField("number", dtype.int64), FeatureField("text", dtype.string)])
WIDER = make_schema("Row", [*ROW.fields, FeatureField("more", dtype.float64)], version=2)


class Fleet:
    def __init__(self, server: RedisServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.nodes = [self.node(name) for name in "ABC"]
        self.registry = self.nodes[0].registry()
        self.producer = WALProducer(self.registry.backend, registry=self.registry)

    def node(self, name: str) -> Node:
        return Node(self.server.url, self.folder / name)

    def create(self, schema: Any = ROW) -> None:
        identity, bounds = self.registry.backend.log().state()
        assert self.registry.create_schema(schema, Beginning(identity, bounds.last))

    def write(self, *numbers: int, schema: Any = ROW) -> None:
        for number in numbers:
            self.producer.write(schema, f"e{number}", {"number": number, "text": f"t{number}"})

    def numbers(self, node: Node) -> list[int]:
        return _numbers(node.servers[-1])


def _numbers(server: Server) -> list[int]:
    return [row["number"] for row in server.rows("Row")]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    server = RedisServer("--appendonly", "yes", "--appendfsync", "no")
    fleet = Fleet(server, tmp_path)
    yield fleet
    for node in fleet.nodes:
        node.stop()
    fleet.producer.close()
    fleet.registry.backend.close()
    server.stop()


def test_every_node_serves_what_is_written_and_deleted(fleet: Fleet) -> None:
    servers = [node.start() for node in fleet.nodes]
    fleet.create()
    fleet.write(*range(50))
    fleet.producer.delete(ROW, "e7")
    kept = sorted(f"e{number}" for number in range(50) if number != 7)
    for server in servers:
        until(lambda server=server: [row["entity_id"] for row in server.rows("Row")] == kept)
    answers = [server.rows("Row") for server in servers]
    assert answers[0] == answers[1] == answers[2], "event times included"
    assert all(server.ask("age", "Row") < 60 for server in servers)


def test_a_schema_that_is_upgraded_is_upgraded_on_every_node(fleet: Fleet) -> None:
    servers = [node.start() for node in fleet.nodes]
    fleet.create()
    fleet.write(1)
    for node in fleet.nodes:
        until(lambda node=node: fleet.numbers(node) == [1])
    upgrade_schema(ROW, WIDER, fleet.registry)
    fleet.producer.write(WIDER, "e2", {"number": 2, "text": "", "more": 0.5})
    for server in servers:
        until(lambda server=server: [row.get("more", "none") for row in server.rows("Row")] == [None, 0.5])


def test_a_schema_that_is_dropped_goes_from_every_node_and_begins_empty_when_it_returns(fleet: Fleet) -> None:
    servers = [node.start() for node in fleet.nodes]
    fleet.create()
    fleet.write(1, 2)
    for node in fleet.nodes:
        until(lambda node=node: fleet.numbers(node) == [1, 2])
    assert fleet.registry.backend.control.drop_schema("Row")
    fleet.create()
    fleet.write(3)
    late = fleet.node("late")
    fleet.nodes.append(late)
    servers.append(late.start())
    for node in fleet.nodes:
        until(lambda node=node: fleet.numbers(node) == [3])
    assert fleet.registry.backend.control.drop_schema("Row")
    for server in servers:
        until(lambda server=server: _is_gone(server, "Row"))
    for node in fleet.nodes:
        until(lambda node=node: not list(node.shm_dir.glob("quorin_*")))


def _is_gone(server: Any, name: str) -> bool:
    try:
        server.rows(name)
    except SegmentNotFoundError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_process_that_applies_dies_another_of_its_node_goes_on(fleet: Fleet, number: int) -> None:
    node = fleet.nodes[1]
    first = node.start()
    fleet.create()
    until(lambda: first.ask("applies"))
    second = node.start()
    fleet.write(1)
    until(lambda: second.rows("Row") and not second.ask("applies"))
    first.kill(number)
    fleet.write(2)
    until(lambda: fleet.numbers(node) == [1, 2])
    assert second.ask("applies")


def test_when_the_process_that_applies_freezes_another_of_its_node_goes_on(fleet: Fleet) -> None:
    node = fleet.nodes[1]
    first = node.start(frozen_after_seconds=3.0)
    fleet.create()
    until(lambda: first.ask("applies"))
    second = node.start(frozen_after_seconds=3.0)
    fleet.write(1)
    until(lambda: second.rows("Row") and not second.ask("applies"))
    first.kill(signal.SIGSTOP)
    fleet.write(2)
    until(lambda: _numbers(second) == [1, 2])
    assert second.ask("applies")
    first.kill(signal.SIGCONT)
    fleet.write(3)
    until(lambda: _numbers(first) == _numbers(second) == [1, 2, 3])
    second.kill()
    fleet.write(4)
    until(lambda: _numbers(first) == [1, 2, 3, 4])


def test_when_a_consumer_freezes_a_follower_goes_on_until_it_wakes(fleet: Fleet, tmp_path: Path) -> None:
    node = fleet.nodes[0]
    environment = {**os.environ, "QUORIN_SHM_DIR": str(node.shm_dir)}
    words = ["consumer", "-c", fleet.server.url, "--frozen-after", "3"]
    consumer = Forked(run_module, ["python", "quorin", *words], environment, err=(tmp_path / "log").open("w"))
    try:
        fleet.create()
        fleet.write(1)
        server = node.start(frozen_after_seconds=3.0)
        until(lambda: fleet.numbers(node) == [1])
        until(lambda: is_locked(node.registry().node.lock_path("consumer")) and not server.ask("applies"))
        consumer.send_signal(signal.SIGSTOP)
        fleet.write(2)
        until(lambda: fleet.numbers(node) == [1, 2])
        assert server.ask("applies")
        consumer.send_signal(signal.SIGCONT)
        until(lambda: not server.ask("applies"))
        fleet.write(3)
        until(lambda: fleet.numbers(node) == [1, 2, 3])
        assert not server.ask("applies")
    finally:
        consumer.close()


def test_a_forked_child_follows_by_itself(fleet: Fleet) -> None:
    server = fleet.nodes[0].start()
    fleet.create()
    fleet.write(1)
    until(lambda: server.rows("Row"))
    assert server.ask("fork", "Row")


def test_a_consumer_goes_before_followers_which_return_when_it_ends(fleet: Fleet) -> None:
    node = fleet.nodes[0]
    server = node.start()
    fleet.create()
    until(lambda: server.ask("applies"))
    registry = node.registry()
    consumer = WALConsumer(registry.backend, None, registry=registry)
    running = threading.Thread(target=consumer.run)
    running.start()
    until(lambda: not server.ask("applies"))
    fleet.write(1)
    until(lambda: fleet.numbers(node) == [1])
    assert not server.ask("applies")
    consumer.stop()
    running.join(60)
    until(lambda: server.ask("applies"))
    fleet.write(2)
    until(lambda: fleet.numbers(node) == [1, 2])
    consumer.close()
    registry.backend.close()


def test_with_redis_away_reads_go_on_processes_start_and_the_lag_shows(fleet: Fleet) -> None:
    node = fleet.nodes[1]
    server = node.start()
    fleet.create()
    fleet.write(1)
    until(lambda: fleet.numbers(node) == [1])
    fleet.server.kill()
    until(lambda: server.ask("age", "Row") > 1.5)
    assert fleet.numbers(node) == [1]
    late = node.start()
    assert late.rows("Row") == server.rows("Row")
    assert not late.ask("wait", "Row")
    fleet.server.start()
    until(lambda: late.ask("age", "Row") < 1)
    fleet.write(2)
    until(lambda: fleet.numbers(node) == [1, 2])


def test_when_redis_is_wiped_rows_and_schemas_stay(fleet: Fleet) -> None:
    for node in fleet.nodes:
        node.start()
    fleet.create()
    fleet.write(1)
    for node in fleet.nodes:
        until(lambda node=node: fleet.numbers(node) == [1])
    with redis.Redis.from_url(fleet.server.url) as client:
        client.flushall()
    until(lambda: "Row" in fleet.registry.backend.control.schemas())
    for node in fleet.nodes:
        assert fleet.numbers(node) == [1]
    fleet.write(2)
    for node in fleet.nodes:
        until(lambda node=node: fleet.numbers(node) == [1, 2])


def test_a_node_that_is_rebooted_is_built_anew_under_load(fleet: Fleet) -> None:
    node = fleet.nodes[2]
    node.start()
    fleet.create()
    fleet.write(*range(20))
    until(lambda: len(fleet.numbers(node)) == 20)
    node.reboot()
    fleet.write(*range(20, 40))
    until(lambda: sorted(fleet.numbers(node)) == list(range(40)))


def test_two_nodes_that_start_at_once_on_an_empty_deployment_agree(tmp_path: Path, redis_server: RedisServer) -> None:
    for number in range(20):
        url = emptied(redis_server)
        nodes = [Node(url, tmp_path / f"{number}{name}") for name in "AB"]
        try:
            for node in nodes:
                node.start()
            producer = WALProducer(url)
            registries = [node.registry() for node in nodes]
            created = [registry.create_schema(ROW, Beginning(0, 0)) for registry in registries]
            assert sorted(created) == [False, True]
            assert registries[0].node.identity == registries[1].node.identity
            assert registries[0].node.id != registries[1].node.id
            producer.write(ROW, "a", {"number": number, "text": ""})
            for node in nodes:
                until(lambda node=node, number=number: _numbers(node.servers[0]) == [number])
            producer.close()
        finally:
            for node in nodes:
                node.stop()


def test_a_process_that_never_starts_a_follower_is_told_that_nobody_applies(fleet: Fleet) -> None:
    fleet.create()
    node = fleet.nodes[0]
    server = node.start()
    until(lambda: server.ask("age", "Row") < 60)
    server.stop()
    time.sleep(0.1)
    reader = node.start(follows=False)
    before = reader.ask("age", "Row")
    until(lambda: reader.ask("age", "Row") > before + 0.5)
