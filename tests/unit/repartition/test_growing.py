"""Growing through producers and consumers: nothing that was acknowledged is lost, and nodes have the same rows."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

import pytest

from quorin import evolution
from quorin.assembly import read
from quorin.engine.backend import connect, logs
from quorin.engine.format.growth import Growth
from quorin.engine.format.partition import Partitioning, partition_of
from quorin.engine.loads.coordinator import Coordinator
from quorin.engine.ops import presence
from quorin.engine.repartition import run
from quorin.errors import NotYetRepartitionedError, PartitionCountError, RepartitionConflictError
from quorin.offline import ParquetDatasetStore
from quorin.schema import schema_to_json
from quorin.shm import SegmentRegistry
from quorin.wal_consumer import WALConsumer
from tests.support.world import STOP, TRIP, World, row, running, until

KEYS = ["quorin:wal"]


def grow(world: World, count: int) -> Growth:
    run.begin(world.backend, count, KEYS)
    return run.go_on(world.backend)


def served(registry: SegmentRegistry, *ids: str, schema: Any = TRIP) -> list[float | None]:
    with registry.open_current(schema) as segment:
        return [one["score"] for one in read(segment, list(ids)).to_pylist()]


def test_rows_written_before_meanwhile_and_after_are_served(world: World) -> None:
    ids = [f"entity {number}" for number in range(40)]
    for number, entity in enumerate(ids):
        world.producer.write(TRIP, entity, row(number))
    world.drain()
    with running(world.consumer(TRIP)):
        until(lambda: world.rows(ids[-1]) == [row(39)])
        for count in (2, 4):
            grow(world, count)
            for entity in ids[: 10 * count]:
                world.producer.write(TRIP, entity, row(1000.0 * count))
            world.producer.write_many(
                TRIP, [{"entity_id": entity, **row(count)} for entity in (f"new {count}", "both")]
            )
            with world.registry.open_current(TRIP) as segment:
                until(lambda: segment.partitioning == Partitioning.all(count))  # noqa: B023
                until(lambda: world.rows("both") == [row(count)])  # noqa: B023
        # Each log is read by itself: one may be behind another.
        until(lambda: world.rows(*ids) == [row(4000.0)] * 40)
        until(lambda: world.rows("new 2", "new 4") == [row(2), row(4)])
    assert world.backend.partitions() == 4
    with world.registry.open_current(TRIP) as segment:
        assert len(segment) == 43


def drained(world: World, name: str, held: str | None = None, **options: Any) -> SegmentRegistry:
    """A node that was not there before, with all that it can get."""
    (world.shm_dir.parent / name).mkdir(exist_ok=True)
    registry = SegmentRegistry(world.backend, shm_dir=world.shm_dir.parent / name, held=held)
    consumer = WALConsumer(world.backend, [TRIP], registry=registry, **options)
    consumer.drain()
    consumer.close()
    return registry


def scores(registry: SegmentRegistry, ids: list[str]) -> dict[str, float | None]:
    with registry.open_current(TRIP) as segment:
        found = read(segment, ids, missing_partitions="mask").to_pylist()
    return {one["entity_id"]: one["score"] for one in found if one["found"]}


def write_some(world: World, ids: list[str], score: float) -> None:
    world.producer.write_many(TRIP, {"entity_id": ids, "score": [score] * len(ids), "tag": ["t"] * len(ids)})


def test_a_new_node_applies_the_closed_logs_first_and_halves_equal_the_whole(world: World) -> None:
    ids = [f"é{number}" for number in range(100)]
    write_some(world, ids, 1)
    grow(world, 2)
    write_some(world, ids[:60], 2)
    world.producer.delete(TRIP, ids[0])
    grow(world, 4)
    write_some(world, ids[:30], 3)
    world.producer.delete(TRIP, ids[40])
    expected = dict.fromkeys(ids, 1.0) | dict.fromkeys(ids[:60], 2.0) | dict.fromkeys(ids[:30], 3.0)
    del expected[ids[40]]
    whole = drained(world, "whole")
    assert scores(whole, ids) == expected
    halves = [drained(world, name, held) for name, held in (("low", "0-1/4"), ("high", "1/2"))]
    for half, wanted in zip(halves, ((0, 1), (2, 3)), strict=True):
        with half.open_current(TRIP) as segment:
            assert segment.partitioning == Partitioning(4, frozenset(wanted))
        held = [entity for entity in ids if partition_of(entity, 4) in wanted]
        assert scores(half, ids) == {entity: expected[entity] for entity in held if entity in expected}


def test_a_node_that_was_away_for_two_growths_catches_up(world: World) -> None:
    ids = [f"e{number}" for number in range(50)]
    write_some(world, ids, 1)
    world.drain()
    for count in (2, 4):
        grow(world, count)
        write_some(world, ids[: 10 * count], count)
    world.drain()
    expected = dict.fromkeys(ids, 1.0) | dict.fromkeys(ids[:40], 4.0)
    assert scores(world.registry, ids) == expected
    with world.registry.open_current(TRIP) as segment:
        assert segment.partitioning.count == 4


def test_a_flip_that_was_interrupted_between_two_segments_goes_on(world: World) -> None:
    ids = [f"e{number}" for number in range(30)]
    write_some(world, ids, 1)
    world.producer.write(STOP, "s", {"count": 1})
    world.drain(TRIP, STOP)
    grow(world, 2)
    write_some(world, ids, 2)
    world.producer.write(STOP, "s", {"count": 2})
    world.drain(TRIP)  # As if the consumer of both had died behind the first flip.
    with world.registry.open_current(TRIP) as trip, world.registry.open_current(STOP) as stop:
        assert (trip.partitioning.count, stop.partitioning.count) == (2, 1)
    (world.shm_dir.parent / "unused").mkdir()
    again = SegmentRegistry(world.backend, shm_dir=world.shm_dir)
    consumer = WALConsumer(world.backend, [TRIP, STOP], registry=again)
    with running(consumer):
        until(lambda: _count(world) == 2)
        write_some(world, ids, 3)
        until(lambda: scores(world.registry, ids) == dict.fromkeys(ids, 3.0))
    with world.registry.open_current(STOP) as stop:
        assert stop.partitioning.count == 2


def _count(world: World) -> int | None:
    with world.registry.open_current(STOP) as segment:
        found = read(segment, ["s"]).to_pylist()[0]["count"]
    return None if found is None else int(found)


def test_the_history_has_all_rows_and_closed_logs_are_trimmed(world: World) -> None:
    history = ParquetDatasetStore(world.shm_dir.parent / "history")
    ids = [f"e{number}" for number in range(50)]
    write_some(world, ids, 1)
    with running(
        WALConsumer(world.backend, None, registry=world.registry, offline=history, flush_interval_seconds=0.1)
    ):
        world.backend.control.put_schema("Trip", schema_to_json(TRIP))
        until(lambda: world.registry.node.current("Trip") is not None)
        grow(world, 2)
        write_some(world, ids[:20], 2)
        until(lambda: scores(world.registry, ids).get(ids[0]) == 2.0)
        until(lambda: all(log.sizes()[0] == 0 for log in logs(world.backend)))
        assert world.backend.log(partition=0, of=1).sizes()[0] == 0
    rows = history.latest_features(TRIP).to_pylist()
    expected = dict.fromkeys(ids, 1.0) | dict.fromkeys(ids[:20], 2.0)
    assert {one["entity_id"]: one["score"] for one in rows} == expected
    new = drained(world, "new", offline=history)
    assert scores(new, ids) == expected
    with new.open_current(TRIP) as segment:
        assert segment.partitioning.count == 2


def test_new_logs_are_not_trimmed_while_a_live_node_needs_the_closed_ones(world: World) -> None:
    history = ParquetDatasetStore(world.shm_dir.parent / "history")
    ids = [f"e{number}" for number in range(50)]
    write_some(world, ids, 1)
    world.drain()
    other = drained(world, "other")
    with other.open_current(TRIP) as segment:
        world.backend.control.hold(other.node.id, "Trip", segment.position)
    grow(world, 2)
    write_some(world, ids, 2)
    drained(world, "shm", offline=history)
    assert all(log.sizes()[0] for log in logs(world.backend))
    assert scores(drained(world, "other"), ids) == dict.fromkeys(ids, 2.0)


def test_an_aborted_growth_leaves_everything_as_it_was(world: World) -> None:
    write_some(world, ["a"], 1)
    growth = run.begin(world.backend, 2, KEYS)
    world.backend.log().close_for_appends(growth.number)
    assert evolution.abort_repartition(world.backend) == 1
    assert evolution.abort_repartition(world.backend) is None
    write_some(world, ["b"], 2)
    world.drain()
    assert scores(world.registry, ["a", "b"]) == {"a": 1.0, "b": 2.0}
    assert world.backend.partitions() == 1
    assert evolution.repartition(world.backend, 2, wait_for="log").partitions == 2
    write_some(world, ["a"], 3)
    world.drain()
    assert scores(world.registry, ["a", "b"]) == {"a": 3.0, "b": 2.0}


def test_a_write_waits_for_an_abort_as_for_an_end(world: World) -> None:
    write_some(world, ["a"], 1)
    growth = run.begin(world.backend, 2, KEYS)
    world.backend.log().close_for_appends(growth.number)
    writing = threading.Thread(target=lambda: world.producer.write(TRIP, "a", row(2)))
    writing.start()
    evolution.abort_repartition(world.backend)
    writing.join(60)
    world.drain()
    assert scores(world.registry, ["a"]) == {"a": 2.0}


def test_a_deployment_grows_to_twice_as_many_and_no_other_number(world: World) -> None:
    for wanted, expected in ((1, "expected 2, got 1"), (3, "expected 2, got 3"), (4, "expected 2, got 4")):
        with pytest.raises(PartitionCountError, match=expected):
            evolution.repartition(world.backend, wanted)
    with pytest.raises(PartitionCountError, match="as many as there can be"):
        _with_partitions(world, 256)
    assert world.backend.control.growth() is None


def _with_partitions(world: World, count: int) -> None:
    with closing(connect(world.connection, namespace="other", partitions=count)) as backend:
        evolution.repartition(backend, 2 * count)


def test_a_growth_waits_for_no_replacement(world: World) -> None:
    world.backend.control.put_schema("Trip", schema_to_json(TRIP))
    with Coordinator(world.backend, TRIP), pytest.raises(RepartitionConflictError, match="'Trip'"):
        evolution.repartition(world.backend, 2)
    assert evolution.repartition(world.backend, 2, wait_for="log").former_partitions == 1


def test_the_result_names_nodes_that_are_late(world: World) -> None:
    world.backend.control.put_schema("Trip", schema_to_json(TRIP))
    write_some(world, ["a"], 1)
    world.drain()
    with world.registry.open_current(TRIP) as segment:
        entry = {"segment": segment.name, "version": 1, "position": segment.position, "lag_seconds": 0.0}
    presence.announce(world.backend.control, "consumer", world.registry.node.id, {"Trip": entry})
    with pytest.raises(NotYetRepartitionedError, match=world.registry.node.id):
        evolution.repartition(world.backend, 2, timeout_seconds=0.1)
    done: list[tuple[int, int]] = []
    with running(world.consumer(TRIP)):
        result = evolution.repartition(world.backend, 2, progress=lambda *at: done.append(at))
    assert (result.former_partitions, result.partitions, result.closed_entries) == (1, 2, 1)
    assert (result.nodes, result.late_nodes) == ((world.registry.node.id,), ())
