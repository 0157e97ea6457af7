"""Growing through producers and consumers: nothing that was acknowledged is lost, and nodes have the same rows."""

from __future__ import annotations

from typing import Any

from quorin.assembly import read
from quorin.engine.format.growth import Growth
from quorin.engine.format.partition import Partitioning
from quorin.engine.repartition import run
from quorin.shm import SegmentRegistry
from tests.support.world import TRIP, World, row, running, until

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
    assert world.backend.partitions() == 4
    assert world.rows(*ids) == [row(4000.0)] * 40
    assert world.rows("new 2", "new 4") == [row(2), row(4)]
    with world.registry.open_current(TRIP) as segment:
        assert len(segment) == 43
