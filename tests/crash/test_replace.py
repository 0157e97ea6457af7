"""A view is replaced whole or not at all, whoever dies: the coordinator, a consumer, or a node."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from quorin import assembly, layout
from quorin.engine.backend.sqlite import EmbeddedLog
from quorin.engine.backend.sqlite_control import EmbeddedControlPlane
from quorin.engine.consumer import stage
from quorin.engine.history.store import ParquetDatasetStore
from quorin.engine.loads import coordinator
from quorin.engine.memory import file as mapping
from quorin.engine.memory.segment import Segment
from quorin.engine.memory.staged import Staged
from quorin.engine.memory.writer import Writer
from quorin.engine.rows.batch import to_batch
from quorin.evolution import replace, rollback
from quorin.hydration import hydrate
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from quorin.watchdog import WatchdogState
from tests.support.fleet import Node, until
from tests.support.machines import Machine
from tests.support.redis_server import RedisServer

ROW = make_schema("Row", [FeatureField("number", dtype.int64), FeatureField("text", dtype.string)])
OLD = {f"e{i}": i for i in range(20)}
NEW = {f"e{i}": 100 + i for i in range(10, 30)}
PUSHED = {"e15": 1000, "pushed": 1001}


def table(rows: dict[str, int]) -> dict[str, Any]:
    return {"entity_id": list(rows), "number": list(rows.values()), "text": [f"t{number}" for number in rows.values()]}


def served(registry: SegmentRegistry) -> dict[str, int]:
    with registry.open_stored("Row") as segment:
        rows = assembly.scan(segment).read_all().to_pylist()
    assert all(row["text"] == f"t{row['number']}" for row in rows)
    return {row["entity_id"]: row["number"] for row in rows}


STEPS: list[tuple[Any, str]] = [
    (EmbeddedLog, "append"),
    (EmbeddedControlPlane, "swap_load"),
    (Staged, "beside"),
    (stage, "apply_batch"),
    (layout, "apply_located"),
    (Staged, "put_in_force"),
    (mapping.Mapping, "rename"),
    (Segment, "replace"),
    (Writer, "exchange"),
    (Writer, "settle"),
    (mapping, "unlink"),
    (ParquetDatasetStore, "commit_load"),
    (ParquetDatasetStore, "flush"),
    (EmbeddedLog, "trim"),
]
"""What is called at each step of a replacement; a process dies before or after any of the calls."""


def killed(action: Callable[[], None], at: int) -> bool:
    """Run ``action`` in a child that is killed at its step ``at``; False if it has fewer steps."""
    child = os.fork()
    if not child:
        try:
            left = at

            def step() -> None:
                nonlocal left
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

            for owner, name in STEPS:
                _count(owner, name, step)
            action()
            os._exit(0)
        finally:
            os._exit(9)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _count(owner: Any, name: str, step: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        step()
        result = original(*arguments, **options)
        step()
        return result

    setattr(owner, name, staticmethod(counted) if name == "beside" else counted)


@contextmanager
def started(machine: Machine) -> Iterator[None]:
    """The old rows, in the segment, in the history, and no longer in the log."""
    machine.registry.create(ROW, capacity=8).close()
    machine.producer.write_many(ROW, table(OLD))
    machine.drain(ROW)
    yield


def everything_is(machine: Machine, rows: dict[str, int]) -> None:
    """Segment, history, and a segment that is hydrated from it have these rows, and nothing else is left."""
    machine.drain(ROW)
    assert served(machine.registry) == rows
    found = machine.store().latest_features(ROW).to_pylist()
    assert {row["entity_id"]: row["number"] for row in found} == rows
    watchdog = WatchdogState(machine.registry.backend, shm_dir=machine.shm, miss_threshold=1)
    watchdog.run_one_tick()
    current = machine.registry.current_name("Row")
    assert [path.name for path in machine.shm.glob("quorin_Row_*") if path.suffix != ".kept"] == [current]
    machine.reboot()
    hydrate(ROW, machine.store(), machine.registry)
    machine.drain(ROW)
    assert served(machine.registry) == rows


def test_a_coordinator_that_dies_leaves_the_old_rows_or_the_new(machine: Machine, monkeypatch: Any) -> None:
    monkeypatch.setattr(coordinator, "SILENT_SECONDS", 0.0)
    outcomes = set()
    with started(machine):
        at, is_killed = 1, True
        while is_killed:
            # Without a segment on its node the coordinator only writes to the log.
            is_killed = killed(lambda: _coordinate(machine), at)
            machine.drain(ROW)
            rows = served(machine.registry)
            assert rows in (OLD, NEW)
            outcomes.add(rows == NEW)
            replace(ROW, table(OLD), machine.registry)
            assert served(machine.registry) == OLD
            at += 1
        machine.producer.write_many(ROW, table(PUSHED))
        everything_is(machine, OLD | PUSHED)
    assert at > 10
    assert outcomes == {False, True}


def _coordinate(machine: Machine) -> None:
    rows = table(NEW)
    halves = [{name: column[part] for name, column in rows.items()} for part in (slice(0, 10), slice(10, None))]
    replace(ROW, iter(halves), machine.registry, wait_for="log")


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.torture)])
def test_a_consumer_that_dies_is_followed_by_one_that_completes_it(machine: Machine, stride: int) -> None:
    with started(machine):
        at, is_killed, expected = 1, True, OLD
        while is_killed:
            new = {f"{name}.{at}": number for name, number in NEW.items()}
            result = replace(ROW, table(new), machine.registry, wait_for="log")
            assert result.row_count == len(new)
            machine.producer.write_many(ROW, table(PUSHED))
            is_killed = killed(lambda: machine.drain(ROW), at)
            assert served(machine.registry) in (expected, new, new | PUSHED)
            expected = new | PUSHED
            machine.drain(ROW)
            assert served(machine.registry) == expected
            at += stride
        everything_is(machine, expected)
    assert at > 20


def test_a_running_consumer_that_dies_while_it_stages_is_followed_by_one_that_reads_the_load_again(
    machine: Machine,
) -> None:
    with started(machine), coordinator.Coordinator(machine.registry.backend, ROW) as load:
        for number, (name, value) in enumerate(NEW.items()):
            load.append(to_batch(ROW, table({name: value})))
            if number in (5, 12):
                assert killed(lambda: machine.consumer(ROW).run(), 4)
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
