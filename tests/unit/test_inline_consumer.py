"""Applying in the process that writes: no entry is left behind, whichever process holds the lease."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from quorin.assembly import read
from quorin.engine.backend import connect
from quorin.errors import NotPicklableError, SegmentNotFoundError, WriterLeaseHeldError, WriteSyncTimeoutError
from quorin.evolution import upgrade_schema
from quorin.inline_consumer import InlineConsumer, wait_until_applied
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.world import make_current

STOP = make_schema("Stop", [FeatureField("count", dtype.int64)])
OTHER = make_schema("Other", [FeatureField("count", dtype.int64)])


class World:
    """A control plane with a segment of ``STOP``; each :meth:`consumer` is like another process's."""

    def __init__(self, connection: str, shm_dir: Path) -> None:
        self.backend = connect(connection)
        self.log = self.backend.log()
        self.registry = SegmentRegistry(self.backend, shm_dir=shm_dir)
        self.producer = WALProducer(self.backend, registry=self.registry)
        self.registry.create(STOP, capacity=64).close()
        self.opened = 0

    def consumer(self, **options: Any) -> InlineConsumer:
        return InlineConsumer(self.registry, "Stop", open_segment=self.open, **options)

    def open(self) -> Any:
        self.opened += 1
        return self.registry.open_stored("Stop", read_only=False)

    def write(self, entity_id: str, count: int = 1, schema: Any = STOP) -> int:
        return self.producer.write(schema, entity_id, {"count": count}, 1)

    def count(self, entity_id: str) -> Any:
        with self.registry.open_stored("Stop") as segment:
            return read(segment, [entity_id]).to_pylist()[0]["count"]

    @property
    def position(self) -> int:
        with self.registry.open_stored("Stop") as segment:
            return segment.position


@pytest.fixture(params=["embedded", "redis"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    connection = str(tmp_path / "store") if request.param == "embedded" else str(request.getfixturevalue("redis_url"))
    (tmp_path / "shm").mkdir()
    opened = World(connection, tmp_path / "shm")
    yield opened
    opened.producer.close()
    opened.backend.close()


@pytest.fixture
def after_drain(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Do something once, when the next drain has read the log and still holds the lease."""
    original = WALConsumer.drain

    def install(act: Callable[[], None]) -> None:
        def drain(self: WALConsumer, *args: Any) -> int:
            applied = original(self, *args)
            monkeypatch.setattr(WALConsumer, "drain", original)
            act()
            return applied

        monkeypatch.setattr(WALConsumer, "drain", drain)

    return install


def test_a_drain_applies_the_log_and_leaves_no_lease(world: World) -> None:
    last = world.write("a", 7)
    assert world.consumer().drain()
    assert (world.count("a"), world.position) == (7, last)
    with world.registry.open_stored("Stop", read_only=False) as other:
        other.acquire_writer_lease()


def test_many_consumers_take_turns(world: World) -> None:
    consumers = [world.consumer() for _ in range(3)]
    for number in range(9):
        world.write("a", number)
        consumers[number % 3].settle(world.write(f"b{number}"))
        assert world.count(f"b{number}") == 1
    assert world.opened == 3


def test_the_end_of_the_log_that_a_write_saw_is_applied(world: World) -> None:
    consumer = world.consumer()
    consumer.settle(world.write("a"))
    assert consumer.own_position == world.position
    after = consumer.own_position
    position, tail = world.producer.write_and_read(STOP, "b", {"count": 2}, 1, after=after)
    consumer.settle(position, tail)
    assert (world.count("b"), world.position) == (2, position)


def test_a_held_lease_is_left_to_its_holder(world: World) -> None:
    consumer = world.consumer()
    with world.registry.open_stored("Stop", read_only=False) as holder:
        holder.acquire_writer_lease()
        world.write("a")
        assert not consumer.drain()
        assert not consumer.drain(calls_holder=True)
        assert holder.writing_view().answers_call()
        with pytest.raises(WriterLeaseHeldError), consumer.writer():
            pass
    assert world.count("a") is None
    assert consumer.drain()
    assert world.count("a") == 1


def test_an_entry_that_is_left_to_a_holder_after_it_read_the_log_is_applied(
    world: World, after_drain: Callable[[Callable[[], None]], None]
) -> None:
    holder, other = world.consumer(), world.consumer()
    left: list[bool] = []

    def write_late() -> None:
        world.write("late", 5)
        left.append(other.drain(calls_holder=True))

    world.write("a")
    after_drain(write_late)
    assert holder.drain()
    assert left == [False]
    assert world.count("late") == 5


def test_a_process_that_does_not_call_is_not_relied_on(
    world: World, after_drain: Callable[[Callable[[], None]], None]
) -> None:
    holder, other = world.consumer(), world.consumer()

    def write_late() -> None:
        world.write("late", 5)
        assert not other.drain()

    after_drain(write_late)
    assert holder.drain()
    assert world.count("late") is None
    other.settle(0)
    assert world.count("late") == 5


def test_a_call_to_a_generation_that_growth_replaced_is_answered(
    world: World, after_drain: Callable[[Callable[[], None]], None]
) -> None:
    holder = world.consumer()
    ids = [f"e{number}" for number in range(500)]
    world.producer.write_many(STOP, pa.table({"entity_id": ids, "event_time_ns": [1] * 500, "count": [1] * 500}))
    after_drain(lambda: world.write("late", 5) and None)
    assert holder.drain()
    assert world.count("late") == 5


def test_a_wait_ends_when_another_process_applies(world: World) -> None:
    consumer = world.consumer(timeout_ms=60_000)
    with world.registry.open_stored("Stop", read_only=False) as holder:
        holder.acquire_writer_lease()
        position = world.write("a")
        waiting = threading.Thread(target=consumer.settle, args=(position,))
        waiting.start()
        WALConsumer(world.backend, [holder], registry=world.registry).drain()
        waiting.join(60)
        assert not waiting.is_alive()
    assert world.count("a") == 1


def test_a_wait_takes_over_when_the_holder_is_gone(world: World) -> None:
    consumer = world.consumer(timeout_ms=60_000)
    holder = world.registry.open_stored("Stop", read_only=False)
    holder.acquire_writer_lease()
    waiting = threading.Thread(target=consumer.settle, args=(world.write("a"),))
    waiting.start()
    holder.close()
    waiting.join(60)
    assert not waiting.is_alive()
    assert world.count("a") == 1


def test_a_wait_without_progress_ends_with_an_error_that_names_the_position(world: World) -> None:
    consumer = world.consumer(timeout_ms=20)
    with world.registry.open_stored("Stop", read_only=False) as holder:
        holder.acquire_writer_lease()
        position = world.write("a")
        with pytest.raises(WriteSyncTimeoutError) as caught:
            consumer.settle(position)
    assert (caught.value.schema_name, caught.value.position) == ("Stop", position)


def test_progress_prolongs_a_wait() -> None:
    positions = iter(range(1000))
    wait_until_applied("Stop", 50, lambda: next(positions), timeout_ms=0)


def test_the_own_position_is_known_while_no_other_process_applies(world: World, tmp_path: Path) -> None:
    consumer = world.consumer()
    assert consumer.own_position is None
    consumer.settle(world.write("a"))
    assert consumer.own_position == world.position
    with world.registry.open_stored("Stop", read_only=False) as holder:
        holder.acquire_writer_lease()
        assert not consumer.drain()
        assert consumer.own_position is None
    assert consumer.drain()
    assert consumer.own_position == world.position
    with_history = world.consumer(offline=ParquetDatasetStore(tmp_path / "history"))
    with_history.settle(world.write("b"))
    assert with_history.own_position is None


def test_catching_up_opens_nothing_if_nothing_was_logged(world: World) -> None:
    world.consumer().settle(world.write("a"))
    world.opened = 0
    consumer = world.consumer()
    consumer.catch_up(world.position)
    assert world.opened == 0
    world.write("b", 3)
    consumer.catch_up(world.position)
    assert (world.count("b"), world.opened) == (3, 1)


def test_catching_up_does_not_wait_for_entries_of_other_schemas(world: World) -> None:
    world.registry.create(OTHER, capacity=64).close()
    consumer = world.consumer(timeout_ms=20)
    with world.registry.open_stored("Stop", read_only=False) as holder:
        holder.acquire_writer_lease()
        for _ in range(3):
            world.producer.write_many(
                OTHER, pa.table({"entity_id": ["x"] * 8192, "event_time_ns": [1] * 8192, "count": [1] * 8192})
            )
        consumer.catch_up(world.position)
        world.write("a")
        with pytest.raises(WriteSyncTimeoutError):
            consumer.catch_up(world.position)


def test_a_segment_with_other_fields_is_opened_anew(world: World) -> None:
    consumer = world.consumer()
    consumer.settle(world.write("a"))
    wider = make_schema("Stop", [*STOP.fields, FeatureField("more", dtype.int64)], version=2)
    upgrade_schema(STOP, wider, world.registry)
    consumer.settle(world.producer.write(wider, "b", {"count": 2, "more": 3}, 1))
    with consumer.writer() as segment:
        assert segment.schema == segment.stored_schema == wider
        assert read(segment, ["b"]).to_pylist()[0]["more"] == 3
    assert world.opened == 2


def test_a_segment_that_another_process_made_current_is_opened(world: World) -> None:
    consumer = world.consumer()
    consumer.settle(world.write("a"))
    with world.registry.open_stored("Stop") as old:
        new = world.registry.create(STOP, capacity=64, set_current=False)
        assert make_current(world.registry, "Stop", new.name, expected=old.name)
    new.close()
    consumer.settle(world.write("b", 2))
    assert world.count("b") == 2
    segment = consumer.segment
    assert segment is not None
    assert segment.name == new_name(world)


def new_name(world: World) -> str:
    with world.registry.open_stored("Stop") as segment:
        return segment.name


def test_a_discarded_segment_is_an_error_that_names_the_schema(world: World) -> None:
    consumer = InlineConsumer(world.registry, "Stop")
    consumer.settle(world.write("a"))
    with consumer.paused(), world.registry.open_stored("Stop", read_only=False) as segment:
        world.registry.discard(segment)
    with pytest.raises(SegmentNotFoundError, match="'Stop'"):
        consumer.drain()
    assert consumer.own_position is None


def test_a_removed_segment_is_opened_anew(world: World) -> None:
    consumer = world.consumer()
    consumer.settle(world.write("a"))
    with world.registry.open_stored("Stop", read_only=False) as segment:
        world.registry.discard(segment)
    world.registry.create(STOP, capacity=64).close()
    consumer.settle(world.write("b", 2))
    assert (world.count("b"), world.opened) == (2, 2)


def test_it_is_not_pickled(world: World) -> None:
    with pytest.raises(NotPicklableError, match="InlineConsumer"):
        pickle.dumps(world.consumer())
