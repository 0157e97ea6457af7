"""Nodes of a deployment that has grown: what is filled at the new number of partitions has the older rows too."""

from __future__ import annotations

from typing import Any

import pytest

from quorin.engine.backend.beginnings import beginning_in, beginnings_of
from quorin.engine.backend.keys import DEFAULT_STREAM_KEY
from quorin.engine.format.growth import Growth
from quorin.engine.format.partition import partition_of
from quorin.engine.repartition import run
from quorin.errors import PartitionCountError
from quorin.hydration import ends_of, hydrate
from quorin.offline import ParquetDatasetStore
from quorin.schema import schema_to_json
from quorin.shm import SegmentRegistry
from quorin.wal_consumer import WALConsumer
from tests.support.world import STOP, TRIP, World, running, until
from tests.unit.repartition.test_growing import drained, grow, scores, write_some

IDS = [f"e{number}" for number in range(40)]


@pytest.fixture(params=["log", "history"])
def history(request: pytest.FixtureRequest, world: World) -> ParquetDatasetStore | None:
    """What has the rows of before: the closed logs, or the history, as they are trimmed."""
    return ParquetDatasetStore(world.shm_dir.parent / "history") if request.param == "history" else None


def test_a_segment_that_has_rows_is_not_given_partitions_of_before_a_growth(
    world: World, history: ParquetDatasetStore | None
) -> None:
    grow(world, 2)
    write_some(world, IDS, 1)
    half = drained(world, "half", "0/2", offline=history)
    grow(world, 4)
    half = drained(world, "half", "0/2", offline=history)
    before = scores(half, IDS)
    with pytest.raises(PartitionCountError, match="holds the partitions 0-1 of 4, and cannot be given 0-3 of 4"):
        drained(world, "half", offline=history)
    assert scores(drained(world, "half", "0-1/4", offline=history), IDS) == before
    assert scores(drained(world, "new", offline=history), IDS) == dict.fromkeys(IDS, 1.0)
    assert drained(world, "half", "0/4", offline=history).partitioning.held == {0}


def lost(world: World, schema: Any) -> SegmentRegistry:
    """The node after its segment's file is gone, or as another process sees it."""
    with world.registry.open_current(schema) as segment:
        segment.current_view().path.unlink()
    return SegmentRegistry(world.backend, shm_dir=world.shm_dir)


def test_a_segment_that_is_lost_beside_another_has_the_rows_of_before(
    world: World, history: ParquetDatasetStore | None
) -> None:
    write_some(world, IDS, 1)
    world.producer.write(STOP, "s", {"count": 1})
    world.drain(TRIP, STOP, offline=history)
    grow(world, 2)
    write_some(world, IDS[:5], 2)
    world.drain(TRIP, STOP, offline=history)
    registry = lost(world, TRIP)
    with running(WALConsumer(world.backend, [TRIP, STOP], registry=registry, offline=history)):
        until(lambda: registry.current_name("Trip") is not None)
        until(lambda: scores(registry, IDS) == dict.fromkeys(IDS, 1.0) | dict.fromkeys(IDS[:5], 2.0))
        write_some(world, IDS[:7], 3)
        world.producer.write(STOP, "s", {"count": 3})
        until(lambda: scores(registry, IDS) == dict.fromkeys(IDS, 1.0) | dict.fromkeys(IDS[:7], 3.0))
        until(lambda: world.rows("s", schema=STOP) == [{"count": 3}])
    with registry.open_current(TRIP) as segment:
        assert segment.partitioning.count == 2


def test_hydrating_beside_another_segment_begins_with_the_first_number(world: World) -> None:
    history = ParquetDatasetStore(world.shm_dir.parent / "history")
    write_some(world, IDS, 1)
    world.producer.write(STOP, "s", {"count": 1})
    world.drain(TRIP, STOP, offline=history)
    grow(world, 2)
    write_some(world, IDS[:5], 2)
    world.drain(TRIP, STOP, offline=history)
    registry = lost(world, TRIP)
    registry.node.clear("Trip", expected=registry.node.current("Trip") or "")
    hydrate(TRIP, history, registry)
    assert scores(registry, IDS) == dict.fromkeys(IDS, 1.0)
    world.drain(TRIP, STOP, offline=history)
    assert scores(registry, IDS) == dict.fromkeys(IDS, 1.0) | dict.fromkeys(IDS[:5], 2.0)


def test_a_wiped_control_plane_gets_the_growths_back(redis_url: str, tmp_path: Any) -> None:
    import redis

    (tmp_path / "shm").mkdir()
    world = World(redis_url, tmp_path / "shm")
    history = ParquetDatasetStore(tmp_path / "history")
    write_some(world, IDS, 1)
    world.drain(offline=history)
    grow(world, 2)
    write_some(world, IDS[:5], 2)
    with running(world.consumer(TRIP, offline=history)):
        until(lambda: world.registry.partitioning.count == 2 and scores(world.registry, IDS).get("e0") == 2)
        growth = Growth.parse(world.backend.control.growth())
        until(lambda: all(log.sizes()[0] == 0 for log in (world.backend.log(partition=p, of=2) for p in (0, 1))))
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()
        until(lambda: Growth.parse(world.backend.control.growth()).counts == growth.counts)
    assert world.backend.control.partition_count() == 2
    write_some(world, IDS[:7], 3)
    expected = dict.fromkeys(IDS, 1.0) | dict.fromkeys(IDS[:7], 3.0)
    assert scores(drained(world, "new", offline=history), IDS) == expected
    world.drain(offline=history)
    assert scores(world.registry, IDS) == expected
    world.producer.close()
    world.backend.close()


def checked(world: World, *schemas: Any) -> WALConsumer:
    """A consumer that has taken its segments, and compared them with the logs."""
    consumer = world.consumer(*schemas)
    consumer._take(waiting=False)
    consumer._check()
    return consumer


def test_what_a_log_took_between_two_growths_is_applied_before_the_flip(world: World) -> None:
    write_some(world, IDS, 1)
    world.drain()
    growth = run.begin(world.backend, 2, [DEFAULT_STREAM_KEY])
    world.backend.log().close_for_appends(growth.number)
    consumer = checked(world, TRIP)
    assert run.end(world.backend) is not None
    write_some(world, IDS[:9], 2)
    grow(world, 2)
    consumer._check()
    assert world.registry.partitioning.count == 1
    consumer._finish()
    consumer.drain()
    consumer.close()
    assert world.registry.partitioning.count == 2
    assert scores(world.registry, IDS) == dict.fromkeys(IDS, 1.0) | dict.fromkeys(IDS[:9], 2.0)


def test_a_segment_that_is_not_compared_with_its_log_yet_is_not_flipped(world: World) -> None:
    world.producer.write(STOP, "s", {"count": 1})
    world.drain(TRIP, STOP)
    world.producer.write(STOP, "s", {"count": 2})
    world.drain(TRIP)
    grow(world, 2)
    consumer = checked(world, TRIP, STOP)
    consumer._lanes.forget(consumer._ownership.targets[1])  # As if it had been taken this moment.
    consumer._check()
    assert world.registry.partitioning.count == 1
    consumer._finish()
    consumer.drain()
    consumer.close()
    assert world.registry.partitioning.count == 2
    assert world.rows("s", schema=STOP) == [{"count": 2}]


def stored_again(world: World) -> None:
    """Drop a view, and store it anew at the ends of the logs, as Feast's store does."""
    control = world.backend.control
    control.drop_schema("Trip")
    control.put_schema("Trip", schema_to_json(TRIP), beginning=ends_of(world.registry))


def discovering(world: World, name: str, history: Any, held: str | None = None) -> SegmentRegistry:
    (world.shm_dir.parent / name).mkdir(exist_ok=True)
    registry = SegmentRegistry(world.backend, shm_dir=world.shm_dir.parent / name, held=held)
    consumer = WALConsumer(world.backend, None, registry=registry, offline=history)
    consumer.drain()
    consumer.close()
    return registry


def test_a_view_that_is_stored_again_after_a_growth_has_no_rows_of_its_former_life(
    world: World, history: ParquetDatasetStore | None
) -> None:
    world.backend.control.put_schema("Trip", schema_to_json(TRIP))
    world.backend.control.put_schema("Stop", schema_to_json(STOP))
    world.producer.write(STOP, "s", {"count": 1})
    write_some(world, IDS, 1)
    there = discovering(world, "there", history)
    away = discovering(world, "away", history)
    grow(world, 2)
    write_some(world, IDS[:20], 2)
    discovering(world, "there", history)
    world.registry.set_partitioning(world.registry.partitioning_at(2))
    stored_again(world)
    grow(world, 4)
    write_some(world, IDS[:7], 3)
    for name in ("there", "away", "new"):
        registry = discovering(world, name, history)
        assert scores(registry, IDS) == dict.fromkeys(IDS[:7], 3.0), name
        with registry.open_current(TRIP) as trip, registry.open_current(STOP) as stop:
            assert (trip.partitioning.count, stop.partitioning.count, len(stop)) == (4, 4, 1)
    assert there.node.id != away.node.id


def test_a_view_that_was_stored_before_a_growth_is_found_by_partitions_of_after(world: World) -> None:
    grow(world, 2)
    world.backend.control.put_schema("Trip", schema_to_json(TRIP), beginning=ends_of(world.registry))
    write_some(world, IDS, 1)
    grow(world, 4)
    write_some(world, IDS[:7], 2)
    stored = beginnings_of(world.backend, "Trip")
    assert isinstance(stored, tuple)
    assert [beginning_in(stored, partition) for partition in range(4)] == [*stored, None, None]
    for held in (None, "2-3/4", "2/4"):
        registry = discovering(world, f"node {held}".replace("/", " of "), None, held)
        wanted = dict.fromkeys(IDS, 1.0) | dict.fromkeys(IDS[:7], 2.0)
        of_held = [one for one in IDS if partition_of(one, 4) in registry.partitioning.held]
        assert scores(registry, IDS) == {one: wanted[one] for one in of_held}
        discovering(world, f"node {held}".replace("/", " of "), None, held)


def test_a_deployment_that_grew_before_its_history_has_a_file_gets_new_nodes(world: World) -> None:
    history = ParquetDatasetStore(world.shm_dir.parent / "history")
    world.backend.control.put_schema("Trip", schema_to_json(TRIP))
    grow(world, 2)
    write_some(world, IDS, 1)
    for name in ("first", "second"):
        again = ParquetDatasetStore(world.shm_dir.parent / "history")
        assert scores(discovering(world, name, again), IDS) == dict.fromkeys(IDS, 1.0)
    assert history.of_partition(0, 1).flushed_position(TRIP) == 0
    assert len(history.latest_features(TRIP)) == len(IDS)
