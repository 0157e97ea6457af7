"""Processes of a deployment that grows: writers that note what was acknowledged, a consumer, a command that dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quorin.assembly import read
from quorin.engine.backend import connect
from quorin.engine.repartition import run
from quorin.errors import QuorinError
from quorin.evolution import abort_repartition, repartition
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer

NUMBERS = make_schema("Numbers", [FeatureField("number", dtype.int64), FeatureField("text", dtype.string)])


def row(number: int) -> dict[str, Any]:
    """A row whose fields belong together."""
    return {"number": number, "text": f"n{number}"}


def write(
    connection: str, writer: int, acknowledged: str, stop: str, block_ms: float = 0, *, once: bool = False
) -> None:
    """Write growing numbers to ids of this writer, one by one and in batches, until the file ``stop`` is there. Each id
    and number is noted once its write has returned, with the times, on the monotonic clock, between which it went on.

    Any 50 numbers write all 50 ids. With ``once`` every third number goes to an id that is written this once.
    """
    with (
        WALProducer(connection, max_entries=None, block_ms=block_ms) as producer,
        Path(acknowledged).open("a") as notes,
    ):
        number = 0
        while not Path(stop).exists():
            number += 1
            ids = [f"w{writer} {number * 7 % 50}"]
            if number % 5 == 0:
                ids = [f"w{writer} {(number + i) % 50}" for i in range(20)]
            if once and number % 3 == 0:
                ids = [f"w{writer} once {number}", *ids[1:]]
            began = time.monotonic()
            if len(ids) > 1:
                rows = {"entity_id": ids, "number": [number] * 20, "text": [f"n{number}"] * 20}
                producer.write_many(NUMBERS, rows)
            else:
                producer.write(NUMBERS, ids[0], row(number))
            ended = time.monotonic()
            notes.writelines(f"{entity}\t{number}\t{began}\t{ended}\n" for entity in ids)
            notes.flush()
            time.sleep(0.002)  # Leaves the processor to the others.


def consume(connection: str, shm_dir: str, offline: str, held: str | None = None) -> None:
    """Run a consumer until it is stopped by SIGTERM."""
    from quorin.offline import ParquetDatasetStore

    history = ParquetDatasetStore(offline) if offline else None
    registry = SegmentRegistry(connection, shm_dir=shm_dir, held=held)
    consumer = WALConsumer(connection, None, registry=registry, offline=history, flush_interval_seconds=0.3)
    signal.signal(signal.SIGTERM, lambda *_: consumer.stop())
    with consumer:
        consumer.run()


def grow_or_die(connection: str, partitions: int, die_at: int, *, aborts: bool = False) -> None:
    """Grow, or abort a growth, and die at a step: before it if ``die_at`` is even, else after it. Ends with code 0 if
    there are fewer steps.
    """
    left = die_at

    def point() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    take, begin = run._take, run.begin

    def dying_take(*arguments: Any) -> None:
        point()
        take(*arguments)
        point()

    def dying_begin(*arguments: Any) -> Any:
        growth = begin(*arguments)
        point()
        return growth

    run._take, run.begin = dying_take, dying_begin  # type: ignore[assignment]
    backend = connect(connection)
    if aborts:
        abort_repartition(backend)
    else:
        repartition(backend, partitions, wait_for="log")


class Reader:
    """Reads ids again and again in a thread; a read that fails, or goes back, is a failure."""

    def __init__(self, registry: SegmentRegistry, ids: list[str]) -> None:
        self._segment = registry.open_current(NUMBERS)
        self._ids = ids
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.failures: list[str] = []
        self.reads = 0

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(60)
        self._segment.close()

    def _run(self) -> None:
        highest: dict[str, int] = {}
        while not self._ended.is_set() and not self.failures:
            try:
                for one in read(self._segment, self._ids).to_pylist():
                    entity, number = one["entity_id"], one["number"]
                    if not one["found"] or one["text"] != f"n{number}" or number < highest.get(entity, 0):
                        self.failures.append(f"{one} after {highest.get(entity)}")
                    highest[entity] = number
                self.reads += 1
            except QuorinError as error:
                self.failures.append(repr(error))


def noted(*files: Path) -> dict[str, int]:
    """The highest number of each id whose write was acknowledged."""
    found: dict[str, int] = {}
    for path in files:
        for line in path.read_text().splitlines():
            entity, number, *_ = line.split("\t")
            found[entity] = max(found.get(entity, 0), int(number))
    return found


def rows_of(registry: SegmentRegistry, ids: list[str]) -> dict[str, int | None]:
    """What a node serves."""
    with registry.open_current(NUMBERS) as segment:
        found = read(segment, ids, missing_partitions="mask").to_pylist()
    return {one["entity_id"]: one["number"] for one in found}


def until(condition: Callable[[], object], seconds: float = 90) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
