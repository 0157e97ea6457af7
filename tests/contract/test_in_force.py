"""Which segment is in force: whatever two processes do at the same time, one is, and both work on it.

Each test forces one interleaving: what another process does is done inside a call of the first one.
"""

# ruff: noqa: F811 - fixtures are arguments of the name that they are imported by

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from quorin import shm
from quorin.engine.backend import connect
from quorin.engine.consumer.target import Target
from quorin.engine.memory import file as mapping
from quorin.engine.memory.growth import grow
from quorin.engine.memory.lock import FileLock
from quorin.errors import (
    SchemaMismatchError,
    SegmentConflictError,
    SegmentNotFoundError,
    WriterFencedError,
    WriterLeaseHeldError,
    WriteSyncTimeoutError,
)
from quorin.hydration import hydrate, rebuild_segment
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, dtype, make_schema, schema_to_json
from quorin.shm import Segment, SegmentRegistry
from quorin.snapshot import restore, snapshot
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.world import STOP, World, make_current, until, world  # noqa: F401 - world is a fixture

WIDER = make_schema("Stop", [*STOP.fields, FeatureField("more", dtype.int64)], version=2)


class Second:
    """Another process: a connection and a registry of its own."""

    def __init__(self, world: World) -> None:
        self.backend = connect(world.connection)
        self.registry = SegmentRegistry(self.backend, shm_dir=world.shm_dir)
        self.producer = WALProducer(self.backend, registry=self.registry)


@pytest.fixture
def second(world: World) -> Iterator[Second]:
    other = Second(world)
    yield other
    other.producer.close()
    other.backend.close()


def meanwhile(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[[], object]) -> None:
    """Let another process act just before the next call of a method or function."""
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(owner, name, original)
        act()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def files(world: World) -> set[str]:
    return {path.name for path in world.shm_dir.iterdir() if not path.name.startswith("quorin-node-")}


def taken(target: Target, place: Any) -> None:
    build = partial(rebuild_segment, registry=place.registry, capacity=8, max_id_bytes=64)
    target.take(place.registry, build, 30.0, before_overtaking=lambda: None)


def count(world: World, entity_id: str) -> Any:
    [found] = world.rows(entity_id, schema=STOP)
    return None if found is None else found["count"]


def test_a_consumer_that_found_no_segment_follows_one_that_was_made_meanwhile(
    world: World, second: Second, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, late = Target(STOP, None), Target(STOP, None)
    original = second.registry.open_stored

    def find_none(*args: Any, **kwargs: Any) -> Segment:
        monkeypatch.setattr(second.registry, "open_stored", original)
        with pytest.raises(SegmentNotFoundError):
            original(*args, **kwargs)
        taken(first, world)
        raise SegmentNotFoundError("none is current")

    monkeypatch.setattr(second.registry, "open_stored", find_none)
    with pytest.raises(WriterLeaseHeldError, match="writer already"):
        taken(late, second)
    assert files(world) == {first.opened.name} == set(world.registry.node.currents().values())
    first.release()
    taken(late, second)
    assert late.opened.name == first.opened.name
    late.release()


def test_a_consumer_that_builds_a_segment_too_late_discards_it_and_follows(
    world: World, second: Second, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, late = Target(STOP, None), Target(WIDER, None)
    meanwhile(monkeypatch, second.registry, "publish", lambda: taken(first, world))
    with pytest.raises(SchemaMismatchError, match="version 1; version 2 was requested"):
        taken(late, second)
    assert files(world) == {first.opened.name} == set(world.registry.node.currents().values())
    assert world.backend.control.schemas() == {"Stop": schema_to_json(STOP)}, "the loser's schema is not the winner's"


def test_of_two_that_create_a_segment_one_is_told(
    world: World, second: Second, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Segment] = []
    meanwhile(monkeypatch, shm, "first_generation", lambda: made.append(world.registry.create(STOP, capacity=8)))
    with pytest.raises(SegmentConflictError, match="at the same time"):
        second.registry.create(WIDER, capacity=8)
    assert files(world) == {made[0].name} == set(world.registry.node.currents().values())
    assert world.backend.control.schemas() == {"Stop": schema_to_json(STOP)}


def test_a_segment_that_is_discarded_while_it_is_being_replaced_is_created_anew(
    world: World, second: Second, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = world.registry.create(STOP, capacity=8)
    meanwhile(monkeypatch, shm, "_replace", lambda: world.registry.discard(old))
    with second.registry.create(STOP, capacity=8) as segment:
        assert files(world) == {segment.name} == set(world.registry.node.currents().values())


def test_publishing_replaces_what_was_expected_and_removes_it(world: World, second: Second) -> None:
    old = world.registry.create(STOP, capacity=8)
    new = second.registry.create(WIDER, capacity=8, set_current=False)
    second.registry.publish(new, replacing=old.name)
    assert files(world) == {new.name} == set(world.registry.node.currents().values())
    assert world.backend.control.schemas() == {"Stop": schema_to_json(WIDER)}
    with pytest.raises(SegmentNotFoundError):
        old.acquire_writer_lease()
    with pytest.raises(SegmentConflictError, match="stays as it is"):
        second.registry.vacancy("Stop")
    new.acquire_writer_lease()
    unwanted = world.registry.create(STOP, capacity=8, set_current=False)
    with pytest.raises(WriterLeaseHeldError):
        world.registry.publish(unwanted, replacing=new.name)
    assert files(world) == {new.name}


def test_hydration_and_snapshots_are_published_only_where_nothing_came_between(
    world: World,
    second: Second,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    history = ParquetDatasetStore(tmp_path / "history")
    world.producer.write(STOP, "a", {"count": 1}, 1)
    world.drain(STOP, offline=history, trims=False)
    with world.registry.open_stored("Stop", read_only=False) as segment:
        snapshot(segment, tmp_path / "image")
        world.registry.discard(segment)
    for build in (
        lambda: hydrate(STOP, history, second.registry),
        lambda: restore(tmp_path / "image", second.registry),
    ):
        made: list[Segment] = []
        meanwhile(
            monkeypatch,
            second.registry,
            "publish",
            lambda made=made: made.append(world.registry.create(STOP, capacity=8)),
        )
        with pytest.raises(SegmentConflictError, match="at the same time"):
            build()
        assert files(world) == {made[0].name}
        world.registry.discard(made[0])


def test_hydration_does_not_pass_what_is_trimmed_after_it_has_seen_the_files(
    world: World,
    second: Second,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A consumer that flushes and trims meanwhile puts rows into files that hydration does not load any more."""
    history = ParquetDatasetStore(tmp_path / "history")
    world.producer.write(STOP, "a", {"count": 1}, 1)
    world.drain(STOP, offline=history)
    with world.registry.open_stored("Stop", read_only=False) as segment:
        world.registry.discard(segment)
    loaded, original = history.load(STOP), history.load

    def load(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr(history, "load", original)
        position = world.producer.write(STOP, "b", {"count": 2}, 2)
        world.log.trim(position)
        return loaded

    monkeypatch.setattr(history, "load", load)
    result = hydrate(STOP, history, second.registry)
    assert result.position < world.log.bounds().trimmed


def test_a_running_consumer_leaves_a_segment_that_is_not_in_force_any_more(world: World, second: Second) -> None:
    consumer = world.consumer(STOP)
    thread = threading.Thread(target=consumer.run)
    thread.start()
    try:
        until(lambda: world.registry.node.current("Stop") is not None)
        world.producer.write_sync(STOP, "a", {"count": 1}, 1, timeout_ms=60_000)
        left = world.registry.node.current("Stop")
        new = second.registry.create(STOP, capacity=8, set_current=False)
        assert left is not None
        assert make_current(world.registry, "Stop", new.name, expected=left)
        new.close()
        world.producer.write_sync(STOP, "a", {"count": 2}, 2, timeout_ms=60_000)
        assert count(world, "a") == 2
        assert files(world) == set(world.registry.node.currents().values())
    finally:
        consumer.stop()
        thread.join(60)
        consumer.close()


def test_a_segment_that_was_given_and_is_replaced_is_written_to_no_more(world: World, second: Second) -> None:
    with world.registry.create(STOP, capacity=8) as given:
        consumer = WALConsumer(world.backend, [given], registry=world.registry)
        consumer.drain()
        new = second.registry.create(STOP, capacity=8, set_current=False)
        assert make_current(world.registry, "Stop", new.name, expected=given.name)
        with pytest.raises(SegmentConflictError, match=new.name):
            consumer.drain()
        assert given.current_view().path.exists(), "it is the caller's"


def test_a_name_without_a_file_changes_nothing(world: World) -> None:
    target = Target(STOP, None)
    taken(target, world)
    target.check_in_force(world.registry, "quorin_Stop_0123456789ab00000001")
    assert target.holds_lease
    target.release()


def test_a_consumer_publishes_its_segment_again_where_the_node_s_file_was_emptied(
    world: World,
    second: Second,
) -> None:
    target = Target(STOP, None)
    taken(target, world)
    assert world.registry.node.clear("Stop", expected=target.opened.name)
    world.backend.control.drop_schema("Stop")
    target.check_in_force(world.registry, None)
    assert world.registry.node.currents() == {"Stop": target.opened.name}
    assert world.backend.control.schemas() == {"Stop": schema_to_json(STOP)}
    assert world.registry.node.clear("Stop", expected=target.opened.name)
    with second.registry.create(STOP, capacity=8), pytest.raises(WriterFencedError, match="at the same time"):
        target.check_in_force(world.registry, None)
    assert files(world) == set(world.registry.node.currents().values())
    assert len(files(world)) == 1


def test_a_schema_that_is_dropped_before_its_segment_is_made_stays_dropped(world: World) -> None:
    world.backend.control.put_schema("Stop", schema_to_json(STOP))
    consumer = WALConsumer(world.backend, None, registry=world.registry)
    consumer._look()
    world.backend.control.drop_schema("Stop")
    consumer._take(waiting=False)
    assert (world.backend.control.schemas(), world.registry.node.currents(), files(world)) == ({}, {}, set())
    consumer.close()


def test_a_schema_that_is_dropped_while_its_segment_is_made_stays_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.backend.control.put_schema("Stop", schema_to_json(STOP))
    consumer = WALConsumer(world.backend, None, registry=world.registry)
    meanwhile(monkeypatch, world.registry, "publish", lambda: world.backend.control.drop_schema("Stop"))
    consumer._look()
    consumer._take(waiting=False)
    assert (world.backend.control.schemas(), world.registry.node.currents(), files(world)) == ({}, {}, set())
    assert world.backend.control.dropped_schemas() == {"Stop"}
    consumer.close()


def test_waiting_looks_at_the_segment_in_force(world: World, second: Second) -> None:
    with world.registry.create(STOP, capacity=8) as left:
        position = world.producer.write(STOP, "a", {"count": 1}, 1)
        world.drain(STOP)
        world.producer.wait(STOP, position, timeout_ms=60_000)
        new = second.registry.create(STOP, capacity=8, set_current=False)
        assert make_current(world.registry, "Stop", new.name, expected=left.name)
        assert left.position == position, "what is not in force has what is waited for"
        with pytest.raises(WriteSyncTimeoutError):
            world.producer.wait(STOP, position, timeout_ms=1)
        new.close()
        world.drain(STOP)
        world.producer.wait(STOP, position, timeout_ms=60_000)


def test_a_segment_that_flips_while_it_is_discarded_goes_whole(
    world: World, second: Second, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = world.registry.create(STOP, capacity=8)
    doomed = second.registry.open_stored("Stop", read_only=False)
    original = FileLock.try_acquire
    old, unlink = writer.current_view(), mapping.unlink

    def keep_old(path: Path) -> None:
        if path != old.path:  # The old file is there as long as it is a signpost.
            unlink(path)

    def flip_first(path: Path) -> Any:
        monkeypatch.setattr(FileLock, "try_acquire", original)
        writer.acquire_writer_lease()
        monkeypatch.setattr(mapping, "unlink", keep_old)
        grow(writer, rows=True, heap_bytes=0)
        monkeypatch.undo()
        writer.release_writer_lease()
        return original(path)

    monkeypatch.setattr(FileLock, "try_acquire", flip_first)
    second.registry.discard(doomed)
    assert world.registry.node.currents() == {}
    assert files(world) == set(), old.name
    with pytest.raises(SegmentNotFoundError):
        writer.acquire_writer_lease()


def test_a_lock_on_a_file_that_was_removed_this_moment_is_none(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer = world.registry.create(STOP, capacity=8)
    path = writer.current_view().path
    meanwhile(monkeypatch, mapping.fcntl, "flock", path.unlink)
    with pytest.raises(SegmentNotFoundError, match="this moment"):
        writer.acquire_writer_lease()


def test_who_was_overtaken_discards_nothing(world: World, second: Second) -> None:
    frozen = world.registry.create(STOP, capacity=8)
    frozen.acquire_writer_lease()
    with second.registry.open_stored("Stop", read_only=False) as healthy:
        healthy.overtake_writer()
        with pytest.raises(WriterFencedError):
            world.registry.discard(frozen)
        assert healthy.current_view().path.exists()
        assert world.registry.node.current("Stop") == healthy.name
