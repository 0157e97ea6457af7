"""Rows of several segments at one position of the log: never of two positions, and not starved by a consumer."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from quorin import assembly, layout
from quorin.engine.memory import pauses
from quorin.engine.memory.pauses import Asking
from quorin.engine.reads.together import Together
from quorin.errors import InconsistentReadError
from quorin.inline_consumer import InlineConsumer
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import Segment, SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer

Left = make_schema("Left", [FeatureField("n", dtype.int64)])
Right = make_schema("Right", [FeatureField("n", dtype.int64)])
FROZEN = """
import pathlib, sys, time
from quorin.engine.memory.pauses import Asking
asking = Asking(pathlib.Path(sys.argv[1]))
print("asks", flush=True)
time.sleep(600)
"""
IDS = [f"id{i}" for i in range(20)]


@pytest.fixture
def pair(registry: SegmentRegistry) -> Iterator[tuple[Segment, Segment]]:
    for schema in (Left, Right):
        registry.create(schema, capacity=100).close()
    with registry.open_current(Left) as left, registry.open_current(Right) as right:
        yield left, right


def table(value: int, event_time_ns: int) -> pa.Table:
    count = len(IDS)
    return pa.table({"entity_id": IDS, "event_time_ns": [event_time_ns] * count, "n": [value] * count})


def parts(pair: tuple[Segment, Segment]) -> list[tuple[Segment, list[str], list[str]]]:
    return [(segment, IDS, ["n"]) for segment in pair]


def values(found: Together) -> list[list[int | None]]:
    return [batch.column("n").to_pylist() for batch in found.batches]


def test_a_read_has_all_rows_at_one_position(registry: SegmentRegistry, pair: tuple[Segment, Segment]) -> None:
    producer = WALProducer(registry.backend, registry=registry)
    producer.write_many(Left, table(1, 1))
    last = producer.write_many(Right, table(1, 1))
    WALConsumer(registry.backend, [Left, Right], registry=registry).drain()

    found = assembly.read_together(parts(pair))
    assert values(found) == [[1] * 20, [1] * 20]
    assert found.position == last


def test_a_row_ahead_of_the_others_is_refused_by_name(registry: SegmentRegistry, pair: tuple[Segment, Segment]) -> None:
    """The consumer was killed between two rows: the position of neither segment covers the new one."""
    producer = WALProducer(registry.backend, registry=registry)
    producer.write_many(Left, table(1, 1))
    producer.write_many(Right, table(1, 1))
    WALConsumer(registry.backend, [Left, Right], registry=registry).drain()
    ahead = int(producer.write_many(Left, table(2, 2)))
    with registry.open_current(Left, read_only=False) as writer:
        batch = pa.record_batch({"entity_id": ["id3"], "event_time_ns": [2], "n": [2]})
        layout.apply_batch(writer, batch, position=ahead)
    with pytest.raises(InconsistentReadError, match=r"quorin_Left.*id3 is after") as late:
        assembly.read_together(parts(pair), timeout_ms=20)
    assert "for 20 ms" in str(late.value)
    others = [(pair[0], IDS[:3]), (pair[1], IDS)]
    assert values(assembly.read_together(others)) == [[1] * 3, [1] * 20]
    WALConsumer(registry.backend, [Left, Right], registry=registry).drain()
    assert values(assembly.read_together(parts(pair))) == [[2] * 20, [1] * 20]


def test_a_deletion_ahead_counts_like_any_row(registry: SegmentRegistry, pair: tuple[Segment, Segment]) -> None:
    producer = WALProducer(registry.backend, registry=registry)
    producer.write_many(Left, table(1, 1))
    producer.write_many(Right, table(1, 1))
    WALConsumer(registry.backend, [Left, Right], registry=registry).drain()
    producer.delete(Left, "id3", event_time_ns=5)
    WALConsumer(registry.backend, Left, registry=registry).drain()  # Right stays behind.

    with pytest.raises(InconsistentReadError, match="id3"):
        assembly.read_together(parts(pair), timeout_ms=5)
    WALConsumer(registry.backend, Right, registry=registry).drain()
    assert values(assembly.read_together(parts(pair)))[0][2:5] == [1, None, 1]


def test_segments_with_appliers_of_their_own_reach_one_position(
    registry: SegmentRegistry, pair: tuple[Segment, Segment]
) -> None:
    """Each position is that of the last entry of its own: the log says that there is nothing more up to the other's."""
    producer = WALProducer(registry.backend, registry=registry)
    consumers = [InlineConsumer(registry, name) for name in ("Left", "Right")]
    for schema, consumer in zip((Left, Right), consumers, strict=True):
        producer.write_many(schema, table(1, 1))
        consumer.drain()
    producer.write_many(Left, table(2, 2))  # Not applied by anybody.
    found = assembly.read_together(parts(pair), reach=lambda index, position: consumers[index].reach(position))
    assert values(found) == [[2] * 20, [1] * 20]


def test_segments_of_different_logs_have_no_position_in_common(
    registry: SegmentRegistry, pair: tuple[Segment, Segment]
) -> None:
    producer = WALProducer(registry.backend, registry=registry)
    producer.write_many(Left, table(1, 1))
    WALConsumer(registry.backend, Left, registry=registry).drain()
    with pytest.raises(InconsistentReadError, match="different logs"):
        assembly.read_together(parts(pair), timeout_ms=5)


def test_a_replaced_segment_is_read_again(registry: SegmentRegistry, pair: tuple[Segment, Segment]) -> None:
    producer = WALProducer(registry.backend, registry=registry)
    for schema in (Left, Right):
        producer.write_many(schema, table(1, 1))
    WALConsumer(registry.backend, [Left, Right], registry=registry).drain()
    calls = []

    def read(position: int) -> int:
        calls.append(position)
        if len(calls) == 1:
            with registry.open_current(Left, read_only=False) as writer:
                more = [f"more{i}" for i in range(500)]
                layout.insert_many(writer, pa.table({"entity_id": more, "n": [0] * 500}))
        return position

    position, result = assembly.at_one_position(lambda: pair, read)
    assert len(calls) == 2
    assert position == result == calls[1]


def test_a_reader_asks_by_a_lock_that_ends_with_it(registry: SegmentRegistry) -> None:
    with registry.create(Left, capacity=10) as segment:
        segment.acquire_writer_lease()
        path = Path(segment.stats()["path"])
        assert not segment.is_pause_asked
        asking = Asking(path)
        assert segment.is_pause_asked
        asking.end()
        asking.end()
        assert not segment.is_pause_asked

        with subprocess.Popen([sys.executable, "-c", FROZEN, str(path)], stdout=subprocess.PIPE) as frozen:
            assert frozen.stdout is not None
            frozen.stdout.readline()
            assert segment.is_pause_asked
            frozen.kill()
        assert not segment.is_pause_asked
        segment.release_writer_lease()
        assert not segment.is_pause_asked
    Asking(path.with_name("gone")).end()


class Clock:
    """Time that passes only in sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class AskedAbout:
    """A segment that a reader, frozen or one of many, asks about for ever, or until a time."""

    def __init__(self, clock: Clock, until: float = math.inf) -> None:
        self._clock, self._until = clock, until

    @property
    def is_pause_asked(self) -> bool:
        return self._clock.now < self._until


def test_pauses_are_short_and_far_between(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, paused = Clock(), 0.0
    monkeypatch.setattr(pauses, "time", clock)
    taking, segment = pauses.Pauses(), AskedAbout(clock)
    while clock.now < 110:
        before = clock.now
        taking.take([segment])
        paused += clock.now - before
        clock.now += 0.001  # A batch.
    assert 1 < paused < 2.1

    clock.now += 1
    before = clock.now
    taking.take([AskedAbout(clock, before + 0.001), AskedAbout(clock, 0)])
    assert 0.001 <= clock.now - before < 0.002


def test_a_consumer_at_full_speed_starves_no_read(registry: SegmentRegistry, pair: tuple[Segment, Segment]) -> None:
    """Every entry rewrites all rows; entries of both schemas take turns, so Left is at most one ahead of Right."""
    producer = WALProducer(registry.backend, registry=registry)
    for schema in (Left, Right):
        producer.write_many(schema, table(0, 1))
    consumer = WALConsumer(registry.backend, [Left, Right], registry=registry, batch_entries=64)
    consumer.drain()
    stop = threading.Event()

    def write() -> None:
        value = 0
        while not stop.is_set():
            value += 1
            producer.write_many(Left, table(value, value + 1))
            producer.write_many(Right, table(value, value + 1))

    threads = [threading.Thread(target=write), threading.Thread(target=consumer.run)]
    for thread in threads:
        thread.start()
    try:
        last, count, deadline = -1, 0, time.monotonic() + 60
        while count < 100 or (last < 20 and time.monotonic() < deadline):
            count += 1
            found = assembly.read_together(parts(pair), timeout_ms=30_000)
            left, right = (np.unique(column) for column in values(found))
            assert len(left) == len(right) == 1, (left, right)
            assert right[0] <= left[0] <= right[0] + 1
            assert left[0] >= last
            last = left[0]
    finally:
        stop.set()
        consumer.stop()
        for thread in threads:
            thread.join()
        consumer.close()
    assert last >= 20
