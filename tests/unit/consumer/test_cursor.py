"""A log that was wiped, cut or trimmed, and segments that are new to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from quorin import metrics
from tests.support.world import STOP, TRIP, World, row


def test_a_schema_that_comes_later_starts_from_the_beginning(world: World) -> None:
    world.producer.write(STOP, "a", {"count": 5}, 1)
    world.producer.write(TRIP, "a", row(1), 1)
    world.drain(TRIP)
    assert world.drain(TRIP, STOP) == 1
    assert world.position(STOP) == world.position(TRIP) == world.log.bounds().last


def test_a_wiped_log_is_followed_anew_and_rows_stay(world: World, wipe: Callable[[], None]) -> None:
    world.producer.write(TRIP, "a", row(1), 1)
    world.producer.write(TRIP, "b", row(1), 1)
    world.drain()
    before = world.position()
    wipe()
    time.sleep(0.002)
    last = world.producer.write(TRIP, "b", row(2), 2)
    assert world.drain() == 1
    assert world.rows("a", "b") == [row(1.0), row(2.0)]
    assert world.position() == last > before
    with world.registry.open_current(TRIP) as segment:
        assert segment.log_identity == world.log.identity()


def test_a_running_consumer_notices_that_the_log_was_wiped(world: World, wipe: Callable[[], None]) -> None:
    consumer = world.consumer()
    thread = threading.Thread(target=consumer.run)
    thread.start()
    try:
        world.producer.write_sync(TRIP, "a", row(1), 1, timeout_ms=60_000)
        wipe()
        world.producer.write_sync(TRIP, "b", row(2), 2, timeout_ms=60_000)
    finally:
        consumer.stop()
        thread.join(60)
        consumer.close()
    assert world.rows("a", "b") == [row(1.0), row(2.0)]


def test_a_log_that_lost_its_tail_is_read_again(world: World) -> None:
    world.producer.write(TRIP, "a", row(1), 1)
    world.drain()
    with world.registry.open_current(TRIP, read_only=False) as segment:
        segment.commit_position(2**62, world.log.identity())
    last = world.producer.write(TRIP, "b", row(2), 1)
    before = metrics.reanchored.labels("Trip", "shorter").value
    world.drain()
    assert world.rows("a", "b") == [row(1.0), row(2.0)]
    assert world.position() == last
    assert metrics.reanchored.labels("Trip", "shorter").value == before + 1


def test_entries_trimmed_before_they_were_read_are_reported(world: World) -> None:
    world.producer.write(TRIP, "a", row(1), 1)
    world.drain()
    lost = world.producer.write(TRIP, "b", row(2), 1)
    world.producer.write(TRIP, "c", row(3), 1)
    world.log.trim(lost)
    before = metrics.reanchored.labels("Trip", "trimmed").value
    assert world.drain() == 1
    assert world.rows("a", "b", "c") == [row(1.0), None, row(3.0)]
    assert metrics.reanchored.labels("Trip", "trimmed").value == before + 1


def test_a_lost_segment_is_made_again_from_the_log(world: World) -> None:
    world.producer.write(TRIP, "a", row(1), 1)
    world.drain()
    for path in world.shm_dir.iterdir():
        path.unlink()
    assert world.drain() == 1
    assert world.rows("a") == [row(1.0)]
