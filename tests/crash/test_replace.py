"""A view is replaced whole or not at all while a consumer or a node dies; `tests/contract/test_killed_loads.py` has
kills at each step.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quorin.engine.history.store import ParquetDatasetStore
from quorin.engine.loads import coordinator
from quorin.engine.rows.batch import to_batch
from quorin.evolution import rollback
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.fleet import Node, until
from tests.support.killed_loads import NEW, OLD, PUSHED, ROW, everything_is, killed, serve_old_rows, served, table
from tests.support.machines import Machine
from tests.support.redis_server import RedisServer


def test_a_running_consumer_that_dies_while_it_stages_is_followed_by_one_that_reads_the_load_again(
    machine: Machine,
) -> None:
    serve_old_rows(machine)
    with coordinator.Coordinator(machine.registry.backend, ROW) as load:
        for number, (name, value) in enumerate(NEW.items()):
            load.append(to_batch(ROW, table({name: value})))
            if number in (5, 12):
                assert killed(machine, lambda: machine.consumer(ROW).run(), 4)
        machine.producer.write_many(ROW, table(PUSHED))
        load.commit()
        everything_is(machine, NEW | PUSHED)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    server = RedisServer("--appendonly", "yes", "--appendfsync", "no")
    made = [Node(server.url, tmp_path / name) for name in "ABC"]
    yield made
    for node in made:
        node.stop()
    server.stop()


def test_all_nodes_are_replaced_and_rolled_back(nodes: list[Node]) -> None:
    registry = nodes[0].registry()
    history = ParquetDatasetStore(nodes[0].shm_dir / "history")
    registry.create(ROW, capacity=8).close()
    with WALProducer(registry.backend, registry=registry) as producer:
        before = producer.write_many(ROW, table(OLD))
        with WALConsumer(registry.backend, None, registry=registry, offline=history) as consumer:
            running = threading.Thread(target=consumer.run, daemon=True)
            running.start()
            servers = [node.start() for node in nodes[1:]]

            def all_have(rows: dict[str, int]) -> None:
                until(lambda: served(registry) == rows)
                for server in servers:
                    until(lambda server=server: _numbers(server) == rows)

            all_have(OLD)
            with coordinator.Coordinator(registry.backend, ROW) as load:
                load.append(to_batch(ROW, table(NEW)))
                servers[0].kill()  # In the middle of the load; its follower staged a part of it.
                servers[0] = nodes[1].start()
                producer.write_many(ROW, table(PUSHED))
                late = Node(nodes[0].url, nodes[0].shm_dir.parent / "D")
                nodes.append(late)
                servers.append(late.start())
                until(lambda: _numbers(servers[-1]) != {})
                load.commit()
            all_have(NEW | PUSHED)
            rollback(ROW, registry, to_position=before, history=history, wait_for="nodes")
            all_have(OLD)
            rollback(ROW, registry, to_position=before, history=history, reapply=True, wait_for="nodes")
            all_have(OLD | PUSHED)
            consumer.stop()
            running.join()
    registry.backend.close()


def _numbers(server: Any) -> dict[str, int]:
    return {row["entity_id"]: row["number"] for row in server.rows("Row")}
