"""What is read of the past of a load of which only some partitions' logs had the commit: what nodes served then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from quorin import assembly
from quorin.engine.backend.protocols import Backend
from quorin.engine.consumer import held
from quorin.engine.format.partition import partition_of
from quorin.evolution import abort_replace, replace
from quorin.offline import ParquetDatasetStore, ServedLog, ServedView, read_at, read_served
from quorin.schema import FeatureField, dtype, make_schema
from quorin.wal import Token
from quorin.wal_consumer import WALConsumer
from tests.support.partition_nodes import COUNT, PartitionNode, new_nodes

PAIR = make_schema("Pair", [FeatureField("a", dtype.int64), FeatureField("b", dtype.int64)])
COMMITTED_FIRST = (0, 2)
OLD = {f"e{i}": (i, i) for i in range(40)}
NEW = {f"e{i}": (100 + i, 100 + i) for i in range(20, 60)}
IDS = sorted(OLD | NEW)


def table(rows: dict[str, tuple[int, int]]) -> dict[str, Any]:
    return {"entity_id": list(rows), **{name: [row[at] for row in rows.values()] for at, name in enumerate("ab")}}


class Node(PartitionNode):
    schemas = (PAIR,)

    @property
    def history(self) -> ParquetDatasetStore:
        return ParquetDatasetStore(self.registry.shm_dir.parent / "history")

    def consumer(self, *schemas: Any, **options: Any) -> WALConsumer:
        return super().consumer(*schemas, **{"offline": self.history, **options})

    def applied(self) -> Token:
        with self.registry.open_stored("Pair") as segment:
            return segment.applied()

    def served(self) -> dict[str, tuple[int, int]]:
        with self.registry.open_stored("Pair") as segment:
            rows = assembly.scan(segment).read_all().to_pylist()
        return {row["entity_id"]: (row["a"], row["b"]) for row in rows}

    def served_at(self, **when: Any) -> dict[str, tuple[int, int]]:
        found = read_at(self.history, PAIR, IDS, connection=self.backend, namespace=self.backend.namespace, **when)
        return {row["entity_id"]: (row["a"], row["b"]) for row in found.to_pylist() if row["found"]}


@pytest.fixture
def node(connection: str, tmp_path: Path) -> Iterator[Node]:
    with new_nodes(Node, connection, tmp_path) as new:
        made = new()
        made.registry.create(PAIR, capacity=8).close()
        made.producer.write_many(PAIR, table(OLD))
        made.drain()
        yield made


@pytest.fixture
def commit_half(node: Node, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Replace all rows, by a coordinator that dies when some of the logs have the commit."""
    append = held.append_marks

    def dies(load: Any, backend: Backend, marks: list[bytes]) -> Any:
        if load.state != "committing":
            return append(load, backend, marks)
        for number in COMMITTED_FIRST:
            backend.log(partition=number).append([("Pair", marks[number])])
        raise KeyboardInterrupt

    def commit() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(held, "append_marks", dies)
            with pytest.raises(KeyboardInterrupt):
                replace(PAIR, table(NEW), node.registry)

    return commit


def test_as_of_a_token_or_a_time_between_the_commits_nothing_is_replaced(
    node: Node, commit_half: Callable[[], None]
) -> None:
    commit_half()
    node.drain()
    between, between_ns, served = node.applied(), time.time_ns(), node.served()
    assert served == OLD
    assert node.served_at(position=between) == OLD, "while the others have not committed"
    time.sleep(0.005)
    assert abort_replace(PAIR, node.backend) is None, "it is decided, and is finished"
    node.drain()
    assert node.served() == node.served_at(position=node.applied()) == node.served_at(time_ns=time.time_ns()) == NEW
    assert node.served_at(position=between) == node.served_at(time_ns=between_ns) == OLD


def test_a_token_of_one_log_says_nothing_of_the_others(node: Node) -> None:
    replace(PAIR, table(NEW), node.registry)
    written = node.producer.write(PAIR, "e25", {"a": 1, "b": 2})
    node.drain()
    ids = [one for one in IDS if partition_of(one, COUNT) == partition_of("e25", COUNT)]
    found = read_at(
        node.history, PAIR, ids, position=written, connection=node.backend, namespace=node.backend.namespace
    )
    rows = {row["entity_id"]: (row["a"], row["b"]) for row in found.to_pylist() if row["found"]}
    assert rows == {one: row for one, row in (NEW | {"e25": (1, 2)}).items() if one in ids}


def test_a_partial_row_that_was_served_before_the_flip_is_not_guessed(
    node: Node, commit_half: Callable[[], None], tmp_path: Path
) -> None:
    """Behind its log's commit it took over what the old row had, and after the flip what the load has."""
    log = ServedLog(tmp_path / "served", node.registry)
    number = log.describe([ServedView("view", "Pair", tuple((field.name, field) for field in PAIR.fields))])
    answers: list[pa.RecordBatch] = []
    ids = [one for one in sorted(OLD.keys() & NEW.keys()) if partition_of(one, COUNT) in COMMITTED_FIRST]
    partial, whole, fresh = ids[0], ids[1], next(f"n{i}" for i in range(99) if partition_of(f"n{i}", COUNT) == 0)

    def serve() -> None:
        with node.registry.open_stored("Pair") as segment:
            columns = assembly.column_reader(segment, positions=True)([partial, whole, fresh])
            log.rows(number, str(len(answers)), [pa.array([partial, whole, fresh])], [0, 1, 2], [columns])
            answers.append(columns.to_batch())

    commit_half()
    for one in (partial, fresh):
        node.producer.write(PAIR, one, {"a": 7}, partial=True)
    node.producer.write(PAIR, whole, {"a": 8, "b": 9})
    node.producer.write(PAIR, whole, {"a": 10}, partial=True)
    node.drain()
    serve()
    abort_replace(PAIR, node.backend)
    node.drain()
    serve()
    log.collect()
    log.close()
    assert [answer.column("b").to_pylist() for answer in answers] == [
        [OLD[partial][1], 9, None],
        [NEW[partial][1], 9, None],
    ]
    served = read_served(tmp_path / "served", node.history, connection=node.backend, namespace=node.backend.namespace)
    rows = [(row["entity_id"], row["known"], row["a"], row["b"]) for row in served.to_pylist()]
    expected = [(partial, False, None, None), (whole, True, 10, 9), (fresh, True, 7, None)]
    assert rows == expected * 2
