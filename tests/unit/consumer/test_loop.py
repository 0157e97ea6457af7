"""The loop: run, stop, cancel, and a log that cannot be reached for a while."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from quorin.assembly import read
from quorin.errors import WriterLeaseHeldError
from quorin.wal_consumer import NoopOfflineWriter
from tests.support.redis_server import RedisServer
from tests.support.world import TRIP, World, row, until


def test_run_applies_until_it_is_stopped(world: World) -> None:
    consumer = world.consumer(offline=NoopOfflineWriter(), flush_interval_seconds=0.05)
    thread = threading.Thread(target=consumer.run)
    thread.start()
    for number in range(20):
        world.producer.write_sync(TRIP, "a", row(number), number, timeout_ms=60_000)
        assert world.rows("a") == [row(float(number))]
    with pytest.raises(WriterLeaseHeldError, match="running already"):
        consumer.drain()
    with pytest.raises(WriterLeaseHeldError):
        world.drain()
    until(lambda: world.log.bounds().first == 0)
    consumer.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert world.drain() == 0
    consumer.close()


def test_run_async_stops_when_it_is_cancelled(world: World) -> None:
    async def main() -> None:
        consumer = world.consumer()
        task = asyncio.create_task(consumer.run_async())
        await asyncio.to_thread(world.producer.write_sync, TRIP, "a", row(1), 1, timeout_ms=60_000)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        consumer.close()

    asyncio.run(main())
    assert world.drain() == 0


def test_a_consumer_lives_through_a_restart_of_redis(tmp_path: Path) -> None:
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    world = World(server.url, tmp_path)
    consumer = world.consumer()
    thread = threading.Thread(target=consumer.run)
    thread.start()
    try:
        world.producer.write_sync(TRIP, "a", row(1), 1, timeout_ms=60_000)
        with world.registry.open_current(TRIP) as segment:
            server.kill()
            time.sleep(0.3)
            assert read(segment, ["a"])["score"].to_pylist() == [1.0]
            server.start()
        world.producer.write_sync(TRIP, "b", row(2), 2, timeout_ms=60_000)
        assert world.rows("a", "b") == [row(1.0), row(2.0)]
    finally:
        consumer.stop()
        thread.join(60)
        consumer.close()
        world.backend.close()
        server.stop()
