"""Replacing and rolling back a schema of several partitions: as with one, on nodes that hold all of them or some."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quorin import assembly
from quorin.engine.backend import logs
from quorin.engine.backend.protocols import Backend
from quorin.engine.consumer import held
from quorin.engine.format.growth import Growth
from quorin.engine.format.partition import partition_of
from quorin.engine.loads import coordinator
from quorin.engine.loads.coordinator import Coordinator
from quorin.engine.log.open_load import open_loads
from quorin.engine.log.record import Kind, mark
from quorin.engine.repartition import run
from quorin.engine.rows.batch import to_batch
from quorin.errors import PastUnavailableError, RepartitionConflictError, ReplaceConflictError
from quorin.evolution import abort_replace, repartition, replace, rollback
from quorin.hydration import hydrate
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, dtype, make_schema
from quorin.wal_consumer import WALConsumer
from tests.support.partition_nodes import COUNT, PartitionNode, new_nodes

ROW = make_schema("Row", [FeatureField("number", dtype.int64)])
OLD = {f"e{i}": i for i in range(40)}
NEW = {f"e{i}": 100 + i for i in range(20, 60)}


def table(rows: dict[str, int]) -> dict[str, Any]:
    return {"entity_id": list(rows), "number": list(rows.values())}


class Node(PartitionNode):
    schemas = (ROW,)

    @property
    def history(self) -> ParquetDatasetStore:
        """One for all nodes."""
        return ParquetDatasetStore(self.registry.shm_dir.parent / "history")

    def consumer(self, *schemas: Any, **options: Any) -> WALConsumer:
        return super().consumer(*schemas, **{"offline": self.history, **options})

    def served(self) -> dict[str, int]:
        with self.registry.open_stored("Row") as segment:
            return {row["entity_id"]: row["number"] for row in assembly.scan(segment).read_all().to_pylist()}


@pytest.fixture
def new_node(connection: str, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    with new_nodes(Node, connection, tmp_path) as new:
        yield new


@pytest.fixture
def node(new_node: Callable[..., Node]) -> Node:
    made = new_node()
    made.registry.create(ROW, capacity=8).close()
    made.producer.write_many(ROW, table(OLD))
    made.drain()
    return made


def test_all_partitions_are_replaced_and_rolled_back(node: Node) -> None:
    result = replace(ROW, table(NEW), node.registry)
    assert node.served() == NEW
    assert len(result.position.parts) == COUNT
    node.producer.write_many(ROW, table({"e30": 1, "pushed": 2}))
    node.drain()
    assert node.served() == NEW | {"e30": 1, "pushed": 2}
    with node.registry.open_stored("Row") as segment:
        applied = segment.applied()
    found = node.history.latest_features(ROW).to_pylist()
    assert {row["entity_id"]: row["number"] for row in found} == node.served()
    rollback(ROW, node.registry, to_position=result.begin, history=node.history)
    assert node.served() == OLD
    rollback(ROW, node.registry, to_position=applied, history=node.history)
    assert node.served() == NEW | {"e30": 1, "pushed": 2}
    rollback(ROW, node.registry, to_position=result.position, history=node.history)
    assert node.served() == NEW
    rollback(ROW, node.registry, to_position=result.begin, reapply=True, history=node.history)
    assert node.served() == OLD | {"e30": 1, "pushed": 2}
    node.drain()
    assert node.backend.control.loads() == {}


def test_a_token_without_a_part_for_each_log_is_refused(node: Node) -> None:
    token = node.producer.write(ROW, "e1", {"number": 5})
    with pytest.raises(PastUnavailableError, match=r"no position in the log of partition \d of 4"):
        rollback(ROW, node.registry, to_position=token)


def test_pushes_while_it_runs_survive(node: Node) -> None:
    with Coordinator(node.backend, ROW) as load:
        node.producer.write_many(ROW, table({"e25": 7, "pushed": 8}))
        load.append(to_batch(ROW, table(NEW), event_time_ns=load.started_ns))
        node.drain()
        assert node.served() == OLD | {"e25": 7, "pushed": 8}
        load.commit()
    node.drain()
    assert node.served() == NEW | {"e25": 7, "pushed": 8}


def test_two_halves_equal_a_whole_node(node: Node, new_node: Callable[..., Node]) -> None:
    halves = [new_node("0-1"), new_node("2-3")]
    moments = []
    for rows in (NEW, OLD):
        moments.append(replace(ROW, table(rows), node.registry).position)
        node.producer.write_many(ROW, table({"pushed": len(rows)}))
        for one in (node, *halves):
            one.drain()
        assert halves[0].served() | halves[1].served() == node.served() == rows | {"pushed": len(rows)}
        assert not halves[0].served().keys() & halves[1].served().keys()
    rollback(ROW, halves[0].registry, to_position=moments[0], history=node.history)
    for one in (node, *halves):
        one.drain()
    assert halves[0].served() | halves[1].served() == node.served() == NEW


def test_one_log_with_the_commit_waits_for_the_others(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator dies between the entries of its commit: the old rows stay until another process finishes it."""
    append = held.append_marks

    def dies(load: Any, backend: Backend, marks: list[bytes]) -> Any:
        if load.state != "committing":
            return append(load, backend, marks)
        for number in (0, 2):
            backend.log(partition=number).append([("Row", marks[number])])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(held, "append_marks", dies)
        with pytest.raises(KeyboardInterrupt):
            replace(ROW, table(NEW), node.registry)
    pushed = {"e25": 1, **{f"p{number}": number for number in range(8)}}
    node.producer.write_many(ROW, table(pushed))
    node.drain()
    assert node.served() == OLD | pushed
    assert open_loads(node.backend.control)["Row"][0].state == "committing"
    node.producer.write_many(ROW, table({"e26": 2}))
    assert abort_replace(ROW, node.backend) is None, "it is decided, and is finished"
    node.drain()
    assert node.served() == NEW | pushed | {"e26": 2}


def test_a_new_node_serves_a_load_whole(node: Node, new_node: Callable[..., Node]) -> None:
    replace(ROW, table(NEW), node.registry)
    node.drain()
    other = new_node("1-3")
    hydrate(ROW, node.history, other.registry)
    other.drain()
    assert other.served() == {name: number for name, number in NEW.items() if partition_of(name, COUNT) > 0}


def test_a_growth_and_a_load_exclude_each_other(node: Node) -> None:
    with Coordinator(node.backend, ROW) as load:
        load.append(to_batch(ROW, table(NEW)))
        with pytest.raises(RepartitionConflictError, match="is replacing 'Row'"):
            repartition(node.backend, 2 * COUNT)
    run.begin(node.backend, 2 * COUNT, ["quorin:wal"])
    with pytest.raises(ReplaceConflictError, match="growing the deployment to 8 partitions"):
        replace(ROW, table(NEW), node.registry)
    run.end(node.backend)
    replace(ROW, table(NEW), node.registry)
    assert node.served() == NEW


def test_a_load_that_begins_beside_a_growth_is_refused_in_one_step(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each looks for the other before the other is there."""
    settled = Coordinator._settled

    def grows_behind(self: Coordinator) -> str | None:
        found = settled(self)
        run.begin(node.backend, 2 * COUNT, ["quorin:wal"])
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Coordinator, "_settled", grows_behind)
        with pytest.raises(ReplaceConflictError, match="at the same time"):
            replace(ROW, table(NEW), node.registry)
    run.end(node.backend)
    stored = node.backend.control.growth()
    with Coordinator(node.backend, ROW):
        begun = Growth.parse(stored).begun(COUNT, ("quorin:wal",), "another").to_json()
        assert not node.backend.control.swap_growth(begun, expected=stored, loads={})


def test_a_rollback_to_before_a_growth_and_to_after_it(node: Node) -> None:
    with node.registry.open_stored("Row") as segment:
        before = segment.applied()
    node.producer.write_many(ROW, table({"e1": 1000}))
    repartition(node.backend, 2 * COUNT, wait_for="log")
    node.producer.write_many(ROW, table({"e2": 2000}))
    node.drain()
    with node.registry.open_stored("Row") as segment:
        after = segment.applied()
    replace(ROW, table(NEW), node.registry)
    node.drain()
    assert node.served() == NEW
    assert {row["entity_id"] for row in node.history.latest_features(ROW).to_pylist()} == NEW.keys()
    rollback(ROW, node.registry, to_position=before, history=node.history)
    assert node.served() == OLD
    with pytest.raises(PastUnavailableError, match="no position in the log"):
        rollback(ROW, node.registry, to_position=node.producer.write(ROW, "x", {"number": 1}))
    assert len(after.parts) <= 2 * COUNT


def test_an_abort_in_one_log_and_a_commit_in_another_keep_the_old_rows(node: Node) -> None:
    """What can only be if the control plane has lost what it decided."""
    with Coordinator(node.backend, ROW) as load:
        load.append(to_batch(ROW, table(NEW)))
        rows, begin = load._rows.tolist(), load.load
        for number, log in enumerate(logs(node.backend)):
            kind = Kind.abort if number == 1 else Kind.commit
            log.append([("Row", mark(kind, ROW, load=begin, load_rows=rows[number]))])
        node.drain()
        assert node.served() == OLD
    assert coordinator.open_loads(node.backend.control) == {}
    replace(ROW, table(NEW), node.registry)
    assert node.served() == NEW
