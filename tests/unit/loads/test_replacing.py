"""Replacing a view and rolling it back: what is refused, what waits, and who ends whose load."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from quorin import assembly, metrics
from quorin.engine.consumer import held
from quorin.engine.loads import coordinator
from quorin.engine.loads.coordinator import Coordinator
from quorin.engine.log.open_load import OpenLoad, open_loads
from quorin.engine.rows.batch import to_batch
from quorin.errors import (
    EntityIdTooLongError,
    InvalidRowError,
    PastUnavailableError,
    ReplaceAbortedError,
    ReplaceConflictError,
)
from quorin.evolution import abort_replace, replace, rollback, upgrade_schema
from quorin.schema import FeatureField, dtype, make_schema
from quorin.wal import Token
from tests.support.machines import Machine

ROW = make_schema("Row", [FeatureField("number", dtype.int64), FeatureField("text", dtype.string)])
WIDER = make_schema("Row", [*ROW.fields, FeatureField("more", dtype.float64)], version=2)


@pytest.fixture
def node(machine: Machine) -> Machine:
    machine.registry.create(ROW, capacity=4).close()
    push(machine, a=1, b=2)
    machine.drain(ROW)
    return machine


def push(node: Machine, **rows: int) -> int:
    return node.producer.write_many(ROW, table(**rows))


def table(**rows: int) -> dict[str, Any]:
    return {"entity_id": list(rows), "number": list(rows.values()), "text": [f"t{n}" for n in rows.values()]}


def served(node: Machine) -> dict[str, int]:
    with node.registry.open_stored("Row") as segment:
        return {row["entity_id"]: row["number"] for row in assembly.scan(segment).read_all().to_pylist()}


def last(node: Machine) -> int:
    return int(node.log().bounds().last)


@pytest.mark.parametrize(
    "source",
    [
        table(x=1, y=2),
        pd.DataFrame(table(x=1, y=2)),
        pa.table(table(x=1, y=2)),
        pa.table(table(x=1, y=2)).to_reader(),
        iter([table(x=1), table(y=2)]),
    ],
    ids=["dict", "pandas", "arrow", "reader", "iterator"],
)
def test_any_table_replaces_the_rows(node: Machine, source: Any) -> None:
    seen: list[int] = []
    result = replace(ROW, source, node.registry, progress=seen.append)
    assert served(node) == {"x": 1, "y": 2}
    assert (result.row_count, result.replaced_rows, seen[-1]) == (2, 2, 2)
    assert result.begin < result.position <= last(node)
    assert open_loads(node.registry.backend.control)["Row"][0].state == "committed"
    node.drain(ROW)  # The trimming consumer forgets it.
    assert node.registry.backend.control.loads() == {}


def test_a_dry_run_changes_nothing(node: Machine) -> None:
    before = last(node)
    result = replace(ROW, table(x=1), node.registry, dry_run=True)
    assert (result.row_count, result.replaced_rows, result.position) == (1, 2, 0)
    with pytest.raises(InvalidRowError, match="number"):
        replace(ROW, {"entity_id": ["x"], "number": ["one"], "text": ["t"]}, node.registry, dry_run=True)
    assert (last(node), served(node)) == (before, {"a": 1, "b": 2})


def test_what_is_refused_leaves_the_old_rows(node: Machine) -> None:
    def refuse(candidate: Any, present: Any) -> None:
        for _ in range(2):
            assert [row["entity_id"] for batch in candidate for row in batch.to_pylist()] == ["x"]
            assert sorted(row["entity_id"] for batch in present for row in batch.to_pylist()) == ["a", "b"]
        raise InvalidRowError("too few rows")

    with pytest.raises(InvalidRowError, match="too few rows"):
        replace(ROW, table(x=1), node.registry, validate=refuse)
    with pytest.raises(ReplaceAbortedError, match="there are no rows"):
        replace(ROW, table(), node.registry)
    with pytest.raises(InvalidRowError, match="number"):
        replace(ROW, iter([table(x=1), {"entity_id": ["y"], "number": [None.__class__], "text": [""]}]), node.registry)
    with pytest.raises(EntityIdTooLongError):
        replace(ROW, table(**{"x" * 65: 1}), node.registry)
    node.drain(ROW)
    assert served(node) == {"a": 1, "b": 2}
    assert node.registry.backend.control.loads() == {}
    replace(ROW, table(), node.registry, allow_empty=True)
    assert served(node) == {}


def test_rows_without_a_time_are_older_than_what_is_pushed_meanwhile(node: Machine) -> None:
    with Coordinator(node.registry.backend, ROW) as load:
        push(node, a=10)
        load.append(to_batch(ROW, table(a=7, c=7), event_time_ns=load.started_ns))
        node.producer.delete(ROW, "c")
        load.commit()
    node.drain(ROW)
    assert served(node) == {"a": 10}


def test_one_coordinator_at_a_time(node: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = node.registry.backend
    with Coordinator(backend, ROW) as first:
        first.append(to_batch(ROW, table(x=1)))
        with pytest.raises(ReplaceConflictError, match=rf"is replacing 'Row' since position {first.load}.*--abort"):
            replace(ROW, table(y=1), node.registry)
        monkeypatch.setattr(coordinator, "SILENT_SECONDS", 0.0)
        replace(ROW, table(y=1), node.registry)
        with pytest.raises(ReplaceAbortedError, match="another process has aborted"):
            first.commit()
    assert served(node) == {"y": 1}
    assert abort_replace(ROW, backend) is None
    with Coordinator(backend, ROW) as second:
        begun = second.load
        assert abort_replace(ROW, backend) == begun
        with pytest.raises(ReplaceAbortedError):
            second.commit()
    assert served(node) == {"y": 1}


def test_a_commit_that_is_decided_is_finished_not_aborted(node: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process takes the coordinator for dead between the decision and the entry of it, and both write one."""
    backend, original = node.registry.backend, coordinator.finish

    def finish(load: OpenLoad, *arguments: Any) -> Token:
        assert open_loads(backend.control)["Row"][0].state == "committing"
        monkeypatch.setattr(coordinator, "finish", original)
        assert abort_replace(ROW, backend) is None
        assert open_loads(backend.control)["Row"][0].state == "committed"
        push(node, pushed=5)
        return original(load, *arguments)

    monkeypatch.setattr(coordinator, "finish", finish)
    refused, replaced = metrics.loads_refused.labels("Row").value, metrics.replaces.labels("Row").value
    replace(ROW, table(x=1), node.registry)
    node.drain(ROW)
    assert served(node) == {"x": 1, "pushed": 5}
    assert metrics.loads_refused.labels("Row").value == refused
    assert metrics.replaces.labels("Row").value == replaced + 1
    assert len(node.store().load(ROW).counted.commits) == 1


def test_an_open_load_holds_the_log_until_it_is_taken_for_dead(node: Machine) -> None:
    with ExitStack() as stack:
        load = stack.enter_context(Coordinator(node.registry.backend, ROW))
        load.append(to_batch(ROW, table(x=1)))
        push(node, c=3)
        node.drain(ROW)
        assert node.log().bounds().trimmed <= load.load
        refused = metrics.loads_refused.labels("Row").value
        node.drain(ROW, node_timeout_seconds=0.0)
        assert node.registry.backend.control.loads() == {}
        push(node, d=4)
        node.drain(ROW)
        assert node.log().bounds().trimmed > load.load
        with pytest.raises(ReplaceAbortedError):
            load.commit()
    # A commit all the same, of a coordinator that hung in between, counts nowhere.
    begun = last(node)
    node.log().append([("Row", coordinator.mark(coordinator.Kind.commit, ROW, load=begun - 1, load_rows=1))])
    node.drain(ROW)
    assert served(node) == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert metrics.loads_refused.labels("Row").value == refused + 1


def test_a_load_that_lost_rows_is_refused(node: Machine) -> None:
    with Coordinator(node.registry.backend, ROW) as load:
        load.append(to_batch(ROW, table(x=1)))
        load._rows += 1
        load.commit()
    node.drain(ROW)
    assert served(node) == {"a": 1, "b": 2}


def test_an_upgrade_and_growth_during_a_load(node: Machine) -> None:
    with Coordinator(node.registry.backend, ROW) as load:
        load.append(to_batch(ROW, table(**{f"x{n}": n for n in range(50)})))
        push(node, **{f"p{n}": n for n in range(20)})
        node.drain(ROW)
        upgrade_schema(ROW, WIDER, node.registry)
        node.producer.write(WIDER, "wide", {"number": 1, "text": "t", "more": 2.5})
        load.append(to_batch(ROW, table(y=1)))
        load.commit()
    node.drain(WIDER)
    assert len(served(node)) == 50 + 20 + 1 + 1
    with node.registry.open_current(WIDER) as segment:
        assert segment.stored_schema.version == 2
        assert assembly.read(segment, ["wide", "y"]).column("more").to_pylist() == [2.5, None]


def test_back_to_a_position_a_time_and_a_generation(node: Machine) -> None:
    history, before = node.store(), last(node)
    bad = push(node, b=99, c=99)
    good = push(node, d=4)
    node.drain(ROW)
    now = {"a": 1, "b": 99, "c": 99, "d": 4}
    assert served(node) == now
    assert node.log().bounds().trimmed > before
    with pytest.raises(PastUnavailableError, match=f"position {before} are not known: the log begins behind"):
        rollback(ROW, node.registry, to_position=before)
    rollback(ROW, node.registry, to_position=before, history=history)
    assert served(node) == {"a": 1, "b": 2}
    rollback(ROW, node.registry, to_position=good, history=history)
    assert served(node) == now
    rollback(ROW, node.registry, without=[(bad, bad)], history=history)
    assert served(node) == {"a": 1, "b": 2, "d": 4}
    rollback(ROW, node.registry, to_position=before, reapply=True, history=history)
    assert served(node) == now
    milliseconds = good >> 20
    rollback(ROW, node.registry, to_time_ns=milliseconds * 1_000_000, history=history)
    assert served(node) == now
    with node.registry.open_stored("Row") as segment:
        generation = segment.current_view().generation
    push(node, e=5)
    rollback(ROW, node.registry, to_generation=generation)
    assert served(node) == now
    with pytest.raises(PastUnavailableError, match="has no generation 77 on this node; there are "):
        rollback(ROW, node.registry, to_generation=77)
    with pytest.raises(PastUnavailableError, match="is none of the log's past"):
        rollback(ROW, node.registry, to_position=2**62)
    with pytest.raises(ValueError, match="expected one of"):
        rollback(ROW, node.registry)
    with pytest.raises(ValueError, match="expected positions behind"):
        rollback(ROW, node.registry, to_position=good, without=[(bad, bad)])


def test_training_data_still_sees_what_was_replaced(node: Machine) -> None:
    old, new = {**table(a=1), "event_time_ns": [100]}, {**table(a=2), "event_time_ns": [200]}
    node.registry.create(ROW, capacity=4).close()
    replace(ROW, old, node.registry)
    replace(ROW, new, node.registry)
    with pytest.raises(InvalidRowError, match="bad batch"):
        replace(ROW, {**table(a=3), "event_time_ns": [150]}, node.registry, validate=_refuse)
    node.drain(ROW)
    asked = {"entity_id": ["a", "a", "a"], "as_of_time_ns": [99, 150, 250]}
    found = node.store().read_point_in_time(ROW, asked)
    assert found.column("number").to_pylist() == [None, 1, 2]
    assert node.store().latest_features(ROW).column("number").to_pylist() == [2]
    assert node.store().latest_features(ROW, as_of_time_ns=150).column("number").to_pylist() == [1]
    assert node.store().distinct_entity_ids(ROW).to_pylist() == ["a", "b"]


def _refuse(*_: Any) -> None:
    raise InvalidRowError("bad batch")


def test_the_record_of_a_load_of_a_lost_log_is_removed(node: Machine) -> None:
    backend = node.registry.backend
    with Coordinator(backend, ROW) as load:
        assert load._open is not None
        assert load._open.exchange(backend.control, logs=(1,)) is not None
        assert held.held_by_loads(last(node), node.log(), backend, lambda _: {}, 600.0) >= load.load
    assert backend.control.loads() == {}
