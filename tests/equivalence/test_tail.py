"""The tail that an append returns is applied exactly as a read of the log would be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from quorin.schema import FeatureField, dtype, make_schema, schema_to_json
from quorin.wal_consumer import WALConsumer
from tests.support.world import STOP, TRIP, World, rows_of


def applied_anew(world: World, schema: Any = TRIP) -> dict[str, Any]:
    """The rows of a new segment, to which the log is applied from its start."""
    with world.registry.create(schema, capacity=64, set_current=False) as segment:
        consumer = WALConsumer(world.backend, [segment], registry=world.registry)
        consumer.drain()
        rows = rows_of(segment)
        world.registry.discard(segment)
    return rows


def test_what_an_append_saw_is_applied_as_a_look_at_the_log_would(world: World) -> None:
    random = np.random.default_rng(11)
    seen = 0
    with world.registry.create(STOP, capacity=64) as segment:
        consumer = WALConsumer(world.backend, [segment], registry=world.registry)
        for number in range(300):
            entity_id, time_ns = f"s{random.integers(8)}", int(random.integers(1, 40))
            for _ in range(random.choice([0, 0, 0, 1, 2, 12])):
                world.producer.write(STOP, f"s{random.integers(8)}", {"count": number}, int(random.integers(1, 40)))
            if not random.integers(9):
                world.append(STOP, b"no record")
            if not random.integers(9):
                world.producer.delete(STOP, entity_id, time_ns)
            after = segment.position
            position, tail = world.producer.write_and_read(STOP, entity_id, {"count": number}, time_ns, after=after)
            seen += tail is not None
            segment.acquire_writer_lease()
            consumer.drain(tail)
            segment.release_writer_lease()
            assert segment.position >= position
        assert seen > 100
        assert rows_of(segment) == applied_anew(world, STOP)


def test_what_an_append_saw_is_not_relied_on_when_it_is_not_all(world: World, wipe: Callable[[], None]) -> None:
    with world.registry.create(STOP, capacity=64) as segment:
        consumer = WALConsumer(world.backend, [segment], registry=world.registry)
        segment.acquire_writer_lease()

        def written(entity_id: str, after: int) -> Any:
            return world.producer.write_and_read(STOP, entity_id, {"count": 1}, 1, after=after)[1]

        consumer.drain(written("a", segment.position))
        assert set(rows_of(segment)) == {"a", "position"}, "a segment that has followed no log yet"
        world.producer.write(STOP, "b", {"count": 1}, 1)
        consumer.drain(written("c", world.log.bounds().last))
        assert set(rows_of(segment)) == {"a", "b", "c", "position"}, "an entry lay between"
        old = written("d", segment.position)
        world.producer.write(STOP, "e", {"count": 1}, 1)
        consumer.drain()
        consumer.drain(old)
        assert segment.position == world.log.bounds().last, "somebody else was quicker"
        stale = written("f", segment.position)
        wipe()
        world.producer.write(STOP, "g", {"count": 1}, 1)
        consumer.drain()
        consumer.drain(stale)
        assert "g" in rows_of(segment)
        assert segment.position == world.log.bounds().last, "another log"


def test_a_pending_upgrade_is_applied_whatever_an_append_saw(world: World) -> None:
    with world.registry.create(STOP, capacity=64) as segment:
        consumer = WALConsumer(world.backend, [segment], registry=world.registry)
        segment.acquire_writer_lease()
        world.producer.write(STOP, "a", {"count": 1}, 1)
        consumer.drain()
        wider = make_schema("Stop", [*STOP.fields, FeatureField("more", dtype.int64)], version=2)
        world.backend.control.put_schema("Stop", schema_to_json(wider))
        consumer.drain(world.producer.write_and_read(STOP, "b", {"count": 2}, 2, after=segment.position)[1])
        assert segment.stored_schema.version == 2
        assert world.rows("a", "b", schema=wider) == [{"count": 1, "more": None}, {"count": 2, "more": None}]
