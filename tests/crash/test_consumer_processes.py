"""Consumers as processes that are started together, killed, frozen and asked to end; and a checker outside of them."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from quorin.assembly import read
from quorin.engine.backend import connect
from quorin.engine.ops import presence
from quorin.errors import ConnectionFailedError
from quorin.shm import Segment, SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.consumers import IDS, ROW, FileHistory, consume, kill, last_acknowledged, produce, start, table
from tests.support.freezing import freeze
from tests.support.redis_server import RedisServer

torture = pytest.mark.torture


class Place:
    """A control plane, a directory for segments, and a producer."""

    def __init__(self, connection: str, directory: Path) -> None:
        self.connection = connection
        self.shm_dir = directory / "shm"
        self.shm_dir.mkdir()
        self.backend = connect(connection)
        self.registry = SegmentRegistry(self.backend, shm_dir=self.shm_dir)
        self.producer = WALProducer(self.backend, registry=self.registry)
        self._started: list[Any] = []

    def start(self, history: Path | None = None, **options: Any) -> Any:
        text = None if history is None else str(history)
        self._started.append(start(consume, self.connection, str(self.shm_dir), text, options))
        return self._started[-1]

    def write(self, number: int, timeout_ms: float = 60_000) -> None:
        position = self.producer.write_many(ROW, table(0, number))
        self.producer.wait(ROW, position, timeout_ms=timeout_ms)
        assert self.numbers() == [number] * IDS

    def numbers(self, worker: int = 0) -> list[int | None]:
        with self.registry.open_current(ROW) as segment:
            return checked_numbers(segment, worker)

    def writer(self) -> int:
        with self.registry.open_current(ROW) as segment:
            return int(segment.stats()["writer_pid"])

    def close(self) -> None:
        for process in self._started:
            if process.is_alive():
                kill(process)
        self.producer.close()
        self.backend.close()


def checked_numbers(segment: Segment, worker: int) -> list[int | None]:
    """The served numbers; every row is whole."""
    rows = read(segment, [f"w{worker}-{i}" for i in range(IDS)]).to_pylist()
    for row in rows:
        assert row["text"] == (None if row["number"] is None else f"{row['number']} " * 5), row
        assert row["event_time_ns"] == row["number"], row
    return [row["number"] for row in rows]


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture(params=["embedded", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    connection = str(tmp_path / "store") if request.param == "embedded" else str(request.getfixturevalue("redis_url"))
    opened = Place(connection, tmp_path)
    yield opened
    opened.close()


def test_of_two_consumers_one_applies_and_the_other_takes_over_at_once(place: Place) -> None:
    took = []
    for number in range(1, 11):
        both = [place.start(), place.start()]
        place.write(10 * number)
        first = next(process for process in both if process.pid == place.writer())
        (second,) = (process for process in both if process is not first)
        time.sleep(0.3)
        assert second.is_alive()
        place.write(10 * number + 1)
        assert place.writer() == first.pid
        killed_at = time.monotonic()
        kill(first)
        place.write(10 * number + 2)
        took.append(time.monotonic() - killed_at)
        assert place.writer() == second.pid
        kill(second)
    # One of the ten may have met a machine that was busy with something else.
    assert median(took) < 1.0


def test_a_frozen_consumer_is_overtaken_and_fenced_when_it_wakes(place: Place) -> None:
    first = place.start(frozen_after_seconds=3.0)
    place.write(1)
    second = place.start(frozen_after_seconds=3.0)
    reader = place.registry.open_current(ROW)
    time.sleep(3.5)
    place.write(2)
    assert place.writer() == first.pid
    for number in (10, 20):
        frozen, awake = (first, second) if place.writer() == first.pid else (second, first)
        freeze(frozen.pid)
        until(lambda frozen=frozen: Path(f"/proc/{frozen.pid}/stat").read_text().rpartition(") ")[2][0] == "T")
        place.write(number)
        assert place.writer() == awake.pid
        place.write(number + 1)
        os.kill(frozen.pid, signal.SIGCONT)
        for more in range(2, 8):
            place.write(number + more)
            time.sleep(0.2)
        assert checked_numbers(reader, 0) == [number + 7] * IDS
        assert place.writer() == awake.pid
        assert frozen.is_alive()
    reader.close()
    kill(awake)
    place.write(100)
    assert place.writer() == frozen.pid
    kill(frozen)
    assert place.backend.log().dead_letters() == []


def test_a_consumer_ends_in_good_order_on_sigterm(place: Place, tmp_path: Path) -> None:
    (tmp_path / "history").mkdir()
    process = place.start(history=tmp_path / "history", flush_interval_seconds=3600.0)
    place.write(1)
    until(lambda: bool(presence.reports(place.backend.control)))
    (report,) = presence.reports(place.backend.control)
    assert (report.process.pid, report.role) == (process.pid, "consumer")
    assert report.age_seconds < 60
    with place.registry.open_current(ROW) as segment:
        mapped = {holder.pid for holder in presence.mapping_processes(place.shm_dir).get(segment.name, [])}
        assert mapped == {process.pid, os.getpid()}
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 0
    assert presence.reports(place.backend.control) == []
    assert len(FileHistory.rows(tmp_path / "history")) == IDS
    with place.registry.open_current(ROW) as segment:
        assert segment.stats()["writer_pid"] is None


def test_the_dead_of_this_machine_leave_the_control_plane(place: Place) -> None:
    process = place.start()
    place.write(1)
    until(lambda: bool(place.backend.control.processes()))
    kill(process)
    elsewhere = str(presence.Process("another-host", process.pid, 1))
    place.backend.control.announce(elsewhere, next(iter(place.backend.control.processes().values())))
    assert [str(report.process) for report in presence.reports(place.backend.control)] == [elsewhere]


def test_poison_in_the_middle_of_a_million_good_rows(place: Place) -> None:
    count = 500_000
    ids = pa.array([f"id{i}" for i in range(count)])
    columns = {"entity_id": ids, "number": np.arange(count), "text": pa.nulls(count, pa.string())}
    place.producer.write_many(ROW, pa.table(columns), event_time_ns=1)
    poison = place.backend.log().append([("Row", b"poison"), ("Row", b"")])
    place.producer.write_many(ROW, pa.table(columns | {"number": np.arange(count) + 1}), event_time_ns=2)
    with WALConsumer(place.backend, [ROW], registry=place.registry, capacity=count) as consumer:
        assert consumer.drain() == 2 * count
    assert [letter.position for letter in place.backend.log().dead_letters()] == poison
    with place.registry.open_current(ROW) as segment:
        assert len(segment) == count
        found = read(segment, ids, ["number"])
        assert np.array_equal(found["number"].to_numpy(), np.arange(count) + 1)


@pytest.mark.parametrize("seconds", [3.0, pytest.param(60.0, marks=torture)])
def test_redis_may_be_down_in_the_middle_of_reads_and_writes(tmp_path: Path, seconds: float) -> None:
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    place = Place(server.url, tmp_path)
    patient = WALProducer(server.url, block_ms=120_000, registry=place.registry)
    consumer = place.start()
    segment, stopping, reads = None, threading.Event(), [0]

    def keep_reading() -> None:
        while not stopping.is_set():
            assert segment is not None
            assert None not in checked_numbers(segment, 0)
            reads[0] += 1

    reader, writer = (
        threading.Thread(target=keep_reading),
        threading.Thread(target=lambda: patient.write_many(ROW, table(1, 7))),
    )
    try:
        place.write(1)
        segment = place.registry.open_current(ROW)
        reader.start()
        server.kill()
        until(lambda: reads[0] > 10)
        writer.start()
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            with pytest.raises(ConnectionFailedError, match=str(server.socket)):
                place.producer.write_many(ROW, table(0, 2))
            time.sleep(0.2)
        before = reads[0]
        until(lambda: reads[0] > before + 10)
        server.start()
        writer.join(60)
        place.write(3)
        assert place.numbers(worker=1) == [7] * IDS
        assert consumer.is_alive()
        assert reader.is_alive()
    finally:
        stopping.set()
        reader.join(60)
        if segment is not None:
            segment.close()
        patient.close()
        place.close()
        server.stop()


@pytest.mark.parametrize("kills", [9, pytest.param(150, marks=torture)])
def test_what_was_acknowledged_is_served_and_in_history_whoever_is_killed(tmp_path: Path, kills: int) -> None:
    """A checker outside the processes. At random a producer, the consumer or Redis is killed."""
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    place = Place(server.url, tmp_path)
    history, rng = tmp_path / "history", random.Random(4)
    history.mkdir()
    options = {"flush_interval_seconds": 0.1, "history": history}
    consumer = place.start(**options)
    producers = [start(produce, server.url, worker, str(tmp_path)) for worker in (1, 2)]
    served: dict[int, int] = {}
    try:
        until(lambda: all(last_acknowledged(tmp_path, worker) > 0 for worker in (1, 2)), 60)
        place.producer.wait(ROW, 1, timeout_ms=60_000)
        with place.registry.open_current(ROW) as segment:
            for kind in rng.sample(["producer", "consumer", "redis"] * kills, kills):
                time.sleep(rng.uniform(0.05, 0.4))
                if kind == "producer":
                    worker = rng.randrange(2)
                    kill(producers[worker])
                    producers[worker] = start(produce, server.url, worker + 1, str(tmp_path))
                elif kind == "consumer":
                    kill(consumer)
                    consumer = place.start(**options)
                else:
                    server.kill()
                    time.sleep(rng.uniform(0, 0.3))
                    server.start()
                for worker in (1, 2):
                    numbers = [number or 0 for number in checked_numbers(segment, worker)]
                    assert min(numbers) >= served.get(worker, 0), "a row went back to an older event time"
                    served[worker] = max(numbers)
        for process in producers:
            kill(process)
        place.producer.wait(ROW, place.backend.log().bounds().last, timeout_ms=60_000)
        for worker in (1, 2):
            acknowledged = last_acknowledged(tmp_path, worker)
            numbers = place.numbers(worker)
            assert len(set(numbers)) == 1
            assert numbers[0] is not None
            assert numbers[0] >= acknowledged > 0
        os.kill(consumer.pid, signal.SIGTERM)
        consumer.join(60)
        assert consumer.exitcode == 0
        rows = FileHistory.rows(history)
        keys = [(row["entity_id"], row["position"]) for row in rows]
        assert len(keys) == len(set(keys)), "a row of the log is in the history twice"
        kept = {(row["entity_id"], row["number"]) for row in rows}
        for worker in (1, 2):
            for number in range(1, last_acknowledged(tmp_path, worker) + 1):
                assert kept >= {(f"w{worker}-{i}", number) for i in range(IDS)}, f"{number} of {worker} is missing"
        assert place.backend.log().dead_letters() == []
        assert place.backend.log().bounds().first == 0, "everything is applied and flushed, so everything is trimmed"
    finally:
        for process in producers:
            if process.is_alive():
                kill(process)
        place.close()
        server.stop()
