"""Reads that look back, after a load has replaced all rows: changes, last values, as of, served rows, one moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from quorin import assembly
from quorin.errors import ChangesForgottenError, InconsistentReadError
from quorin.evolution import replace
from quorin.offline import ServedLog, ServedView, last_values, read_at, read_served
from quorin.schema import FeatureField, dtype, make_schema
from quorin.wal_consumer import WALConsumer
from tests.support.machines import Machine

ROW = make_schema("Row", [FeatureField("number", dtype.int64), FeatureField("text", dtype.string)])
OTHER = make_schema("Other", [FeatureField("number", dtype.int64)])
IDS = ["a", "b", "c", "d"]


@pytest.fixture
def node(machine: Machine) -> Machine:
    machine.registry.create(ROW, capacity=4).close()
    return machine


def push(node: Machine, **rows: int) -> int:
    return node.producer.write_many(ROW, table(**rows))


def table(**rows: int) -> dict[str, Any]:
    return {"entity_id": list(rows), "number": list(rows.values()), "text": [f"t{n}" for n in rows.values()]}


def last(node: Machine) -> int:
    return int(node.log().bounds().last)


def test_changes_are_known_from_the_commit_on(node: Machine) -> None:
    before = push(node, a=1, b=2)
    node.drain(ROW)
    commit = replace(ROW, table(b=20, c=3), node.registry).position
    later = push(node, d=4)
    node.drain(ROW)
    with node.registry.open_stored("Row") as segment:
        with pytest.raises(ChangesForgottenError) as raised:
            assembly.changed_since(segment, before)
        assert raised.value.complete_from == commit
        changes = assembly.changed_since(segment, commit)
        rows = changes.batches.read_all().to_pylist()
    assert [(row["entity_id"], row["position"], row["deleted"]) for row in rows] == [("d", later, False)]


@pytest.mark.parametrize("flushed", [True, False], ids=["history", "log"])
def test_last_values_are_of_the_load_and_what_came_after(node: Machine, flushed: bool) -> None:
    push(node, a=1, b=2)
    if flushed:
        node.drain(ROW)
    replace(ROW, table(b=20, c=3), node.registry, wait_for="log" if not flushed else "node")
    push(node, b=21)
    if flushed:
        node.drain(ROW)
    found = last_values(ROW, IDS, 5, store=node.store(), connection=node.registry.backend).to_pylist()
    assert [(row["entity_id"], row["number"]) for row in found] == [("b", 21), ("b", 20), ("c", 3)]


@pytest.mark.parametrize("flushed", [True, False], ids=["history", "log"])
def test_as_of_is_on_either_side_of_the_commit(node: Machine, flushed: bool) -> None:
    first = push(node, a=1, b=2)
    if flushed:
        node.drain(ROW)
    done = replace(ROW, table(b=20, c=3), node.registry, wait_for="log" if not flushed else "node")
    later = push(node, d=4)
    if flushed:
        node.drain(ROW)
    expected = {
        first: [1, 2, None, None],
        done.position - 1: [1, 2, None, None],
        done.position: [None, 20, 3, None],
        later: [None, 20, 3, 4],
    }
    for position, numbers in expected.items():
        rows = read_at(node.store(), ROW, IDS, position=position, connection=node.registry.backend)
        assert rows.column("number").to_pylist() == numbers, position


def test_what_was_served_before_and_after_comes_back(node: Machine, tmp_path: Path) -> None:
    log = ServedLog(tmp_path / "served", node.registry)
    number = log.describe([ServedView("view", "Row", tuple((field.name, field) for field in ROW.fields))])
    answers: list[pa.RecordBatch] = []

    def serve() -> None:
        with node.registry.open_stored("Row") as segment:
            columns = assembly.column_reader(segment, positions=True)(IDS)
            log.rows(number, str(len(answers)), [pa.array(IDS)], [0], [columns])
            answers.append(columns.to_batch())

    push(node, a=1, b=2)
    node.drain(ROW)
    serve()
    replace(ROW, table(b=20, c=3), node.registry)
    serve()
    push(node, c=30, d=4)
    node.drain(ROW)
    serve()
    log.collect()
    log.close()
    served = read_served(tmp_path / "served", node.store())
    assert served.column("known").to_pylist() == [True] * len(served)
    for name in ("number", "text", "entity_id"):
        assert served.column(name).to_pylist() == [one for answer in answers for one in answer.column(name).to_pylist()]
    assert answers[1].column("number").to_pylist() == [None, 20, 3, None]


def test_one_moment_is_never_before_a_replacement_that_shows(node: Machine) -> None:
    node.registry.create(OTHER, capacity=4).close()
    push(node, a=1)
    node.producer.write_many(OTHER, {"entity_id": ["a"], "number": [1]})
    node.drain([ROW, OTHER])
    replace(ROW, table(a=2), node.registry)
    with node.registry.open_stored("Row") as row, node.registry.open_stored("Other") as other:
        parts = [(row, ["a"]), (other, ["a"])]
        assert row.position > other.position
        with pytest.raises(InconsistentReadError, match="knows only its rows since position"):
            assembly.read_together(parts, timeout_ms=20)
        with WALConsumer(node.registry.backend, [OTHER], registry=node.registry) as consumer:
            consumer.drain()
        together = assembly.read_together(parts, timeout_ms=2000)
    assert [batch.column("number").to_pylist() for batch in together.batches] == [[2], [1]]
