"""A log that was wiped, cut or trimmed, and segments that are new to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from quorin import metrics
from quorin.engine.log.record import decode, translate
from quorin.offline import ParquetDatasetStore
from quorin.wal_consumer import WALConsumer
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


@pytest.fixture
def silent(world: World) -> Callable[..., WALConsumer]:
    """A consumer that has read the log once, and does nothing until its steps are called."""

    def consumer(**options: object) -> WALConsumer:
        made = world.consumer(**options)
        made._take(waiting=False)
        made._check()
        made._read(block_ms=0)
        return made

    return consumer


def test_a_consumer_that_was_silent_notices_what_was_trimmed_behind_it(
    world: World, silent: Callable[..., WALConsumer]
) -> None:
    world.producer.write(TRIP, "a", row(1), 1)
    before = metrics.reanchored.labels("Trip", "trimmed").value
    with silent() as consumer:
        lost = world.producer.write(TRIP, "b", row(2), 1)
        world.log.trim(lost)
        for _ in range(3):
            consumer._check()
        assert metrics.reanchored.labels("Trip", "trimmed").value == before + 1, "reported, and once"
        assert world.rows("a", "b") == [row(1.0), None], "the last rows are served"
        world.producer.write(TRIP, "c", row(3), 1)
        assert consumer._read(block_ms=0) == 1
    assert world.rows("a", "b", "c") == [row(1.0), None, row(3.0)]


def test_a_consumer_that_was_silent_rebuilds_from_the_history(
    world: World, silent: Callable[..., WALConsumer], tmp_path: Path
) -> None:
    history = tmp_path / "history"
    world.producer.write(TRIP, "a", row(1), 1)
    before = metrics.reanchored.labels("Trip", "trimmed").value
    with silent(offline=ParquetDatasetStore(history), trims=False) as consumer:
        consumer._flusher.flush(consumer._agenda)
        # What the consumer of another node does meanwhile. The last entry is of another schema.
        later = world.producer.write(TRIP, "b", row(2), 1)
        last = world.producer.write(STOP, "a", {"count": 1}, 1)
        (entry,) = (payload for position, payload in world.log.read(0).entries if position == later)
        durable = ParquetDatasetStore(history)
        durable.append(TRIP, translate(decode(entry), TRIP), pa.array([later], pa.int64()))
        durable.flush()
        world.log.trim(last)
        consumer._check()
        assert world.rows("a", "b") == [row(1.0), row(2.0)]
        assert world.position() == last
        assert metrics.reanchored.labels("Trip", "trimmed").value == before, "nothing is missing"
