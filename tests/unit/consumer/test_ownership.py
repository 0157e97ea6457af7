"""Which segments a consumer writes to, and takeover when another consumer dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from quorin.assembly import read
from quorin.engine.backend import connect
from quorin.errors import SchemaError, SchemaMismatchError, SegmentNotFoundError
from quorin.schema import FeatureField, dtype, make_schema, schema_to_json
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.forking import context, preload
from tests.support.redis_server import RedisServer, emptied
from tests.support.world import STOP, TRIP, World, row, until

preload("tests.support.consumers", __name__)


def test_segments_may_be_given_open(world: World) -> None:
    with world.registry.create(TRIP, capacity=10) as segment:
        world.producer.write(TRIP, "a", row(1), 1)
        assert world.drain(segment) == 1
        assert read(segment, ["a"])["score"].to_pylist() == [1.0]


def test_a_called_writer_is_told_once(world: World) -> None:
    with world.registry.create(STOP, capacity=64) as segment, world.registry.open_current(STOP) as reader:
        view = segment.current_view()
        assert not view.answers_call()
        view.call_writer()
        assert reader.current_view().words[:] == view.words[:]
        assert view.answers_call()
        assert not view.answers_call()
        view.call_writer()
        with world.registry.open_current(STOP) as again:
            assert len(again) == 0, "a call does not make a segment look damaged"


def test_what_is_neither_schema_nor_segment_is_refused(world: World) -> None:
    for given_ in ([], ["Trip"], [TRIP, TRIP], [None]):
        with pytest.raises(SchemaError):
            WALConsumer(world.backend, given_, registry=world.registry)
    with world.registry.create(make_schema("Trip", list(TRIP.fields[:1])), capacity=10):
        with pytest.raises(SchemaMismatchError):
            world.drain()
        with pytest.raises(SchemaMismatchError):
            world.consumer().run()


def test_the_control_plane_s_schemas_are_followed(world: World) -> None:
    consumer = WALConsumer(world.backend, None, registry=world.registry)
    thread = threading.Thread(target=consumer.run)
    thread.start()

    def served(schema: Any, count: int) -> bool:
        try:
            with world.registry.open_current(schema) as segment:
                return len(segment) == count
        except (SegmentNotFoundError, SchemaMismatchError):
            return False

    try:
        world.backend.control.put_schema("Broken", "no JSON")
        for schema, values in ((TRIP, row(1)), (STOP, {"count": 5})):
            world.producer.write(schema, "a", values, 1)
            world.backend.control.put_schema(schema.__name__, schema_to_json(schema))
            until(lambda schema=schema: served(schema, 1))
        changed = make_schema(
            "Stop", [FeatureField("count", dtype.int64), FeatureField("more", dtype.int64)], version=2
        )
        world.backend.control.drop_schema("Stop")
        until(lambda: not list(world.shm_dir.glob("quorin_Stop_*")))
        until(lambda: "Stop" not in {target.schema.__name__ for target in consumer._ownership.targets})
        world.producer.write(changed, "b", {"count": 6, "more": 7}, 1)
        world.backend.control.put_schema("Stop", schema_to_json(changed))
        until(lambda: served(changed, 2))
        assert world.rows("a", "b", schema=changed) == [{"count": 5, "more": None}, {"count": 6, "more": 7}]
    finally:
        consumer.stop()
        thread.join(60)
        consumer.close()


def test_a_consumer_of_named_schemas_gives_a_wiped_redis_its_schema_back(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    (tmp_path / "shm").mkdir()
    world = World(emptied(redis_server), tmp_path / "shm")
    world.producer.write(TRIP, "a", row(1), 1)
    consumer = world.consumer(TRIP)
    thread = threading.Thread(target=consumer.run)
    thread.start()
    try:
        until(lambda: world.registry.node.current("Trip") is not None and world.rows("a") == [row(1)])
        emptied(redis_server)
        until(lambda: world.backend.control.schemas() == {"Trip": schema_to_json(TRIP)})
        assert world.rows("a") == [row(1)]
        world.producer.write(TRIP, "b", row(2), 2)
        until(lambda: world.rows("a", "b") == [row(1), row(2)])
    finally:
        consumer.stop()
        thread.join(60)
        consumer.close()
    assert world.backend.control.drop_schema("Trip")
    world.drain(TRIP)
    assert "Trip" in world.backend.control.dropped_schemas(), "a dropped schema does not return by itself"
    world.producer.close()
    world.backend.close()


def test_a_schema_that_replaces_another_while_a_segment_is_built_for_that_one_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a view is applied with other keys."""
    control, publish = world.backend.control, SegmentRegistry.publish
    other = schema_to_json(make_schema("Trip", [FeatureField("other", dtype.string)]))
    control.put_schema("Trip", schema_to_json(TRIP))

    def too_late(registry: SegmentRegistry, segment: Any, **options: Any) -> None:
        monkeypatch.setattr(SegmentRegistry, "publish", publish)
        assert control.drop_schema("Trip")
        assert control.swap_schema("Trip", other, expected=None)
        publish(registry, segment, **options)

    monkeypatch.setattr(SegmentRegistry, "publish", too_late)
    with WALConsumer(world.backend, None, registry=world.registry) as consumer:
        consumer.drain()
        assert control.schemas()["Trip"] == other
        consumer.drain()
    with world.registry.open_stored("Trip") as segment:
        assert schema_to_json(segment.stored_schema) == other
    assert len(list(world.shm_dir.glob("quorin_*"))) == 1


def test_a_new_segment_in_the_same_process_is_filled_from_the_log(world: World) -> None:
    consumer = world.consumer()
    thread = threading.Thread(target=consumer.run)
    thread.start()
    try:
        world.producer.write_sync(TRIP, "a", row(1), 1, timeout_ms=60_000)
        created = world.registry.create(TRIP, capacity=10)
        created.close()
        world.producer.write_sync(TRIP, "b", row(2), 2, timeout_ms=60_000)
        until(lambda: world.rows("a", "b") == [row(1.0), row(2.0)])
    finally:
        consumer.stop()
        thread.join(60)
        consumer.close()


def consume(connection: str, shm_dir: str) -> None:
    backend = connect(connection)
    WALConsumer(backend, [TRIP], registry=SegmentRegistry(backend, shm_dir=shm_dir), batch_entries=2).run()


def start_consumer(world: World) -> Any:
    process = context.Process(target=consume, args=(world.connection, str(world.shm_dir)), daemon=True)
    process.start()
    return process


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)


def produce(connection: str, worker: int, rounds: int, acknowledged: Any) -> None:
    producer = WALProducer(connection)
    for number in range(rounds):
        ids = [f"w{worker}-{i}" for i in range(50)]
        table = pa.table({"entity_id": ids, "score": [float(number)] * 50, "tag": [None] * 50})
        acknowledged.put((worker, number, producer.write_many(TRIP, table, event_time_ns=number)))
        time.sleep(0.005)
    producer.close()


def test_killed_consumers_leave_every_acknowledged_row_served(world: World) -> None:
    acknowledged = context.Queue()
    producers = [context.Process(target=produce, args=(world.connection, w, 40, acknowledged)) for w in range(2)]
    consumer = start_consumer(world)
    for producer in producers:
        producer.start()
    told = [acknowledged.get(timeout=60)]
    for _ in range(4):
        told += [acknowledged.get(timeout=60) for _ in range(12)]
        kill(consumer)
        consumer = start_consumer(world)
    for producer in producers:
        producer.join(60)
        assert producer.exitcode == 0
    while len(told) < 80:
        told.append(acknowledged.get(timeout=60))
    world.producer.wait(TRIP, max(position for _, _, position in told), timeout_ms=60_000)
    for worker in range(2):
        assert world.rows(*[f"w{worker}-{i}" for i in range(50)]) == [row(39.0, None)] * 50
    kill(consumer)
    assert world.drain() == 0
    assert world.log.dead_letters() == []


def test_a_second_consumer_takes_over_within_a_second(world: World) -> None:
    first = start_consumer(world)
    world.producer.write_sync(TRIP, "a", row(1), 1, timeout_ms=60_000)
    second = start_consumer(world)
    time.sleep(1.0)
    world.producer.write_sync(TRIP, "a", row(2), 2, timeout_ms=60_000)
    kill(first)
    position = world.producer.write(TRIP, "a", row(3), 3)
    world.producer.wait(TRIP, position, timeout_ms=60_000)
    assert world.rows("a") == [row(3.0)]
    kill(second)
