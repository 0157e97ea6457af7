"""Killed at every step of a flush, a compaction, a hydration, a snapshot, a restore; and all of it together."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from quorin import assembly
from quorin.engine.backend import connect
from quorin.errors import SegmentNotFoundError
from quorin.offline import ParquetDatasetStore
from quorin.shm import SegmentRegistry
from quorin.snapshot import snapshot
from tests.support import consumers
from tests.support.history_crashes import CASES, CRASH, IDS, Place, act, append, die


def prepared(tmp_path: Path, action: str) -> Place:
    place = Place(str(tmp_path))
    store = place.store()
    for position in range(1, 4 if action == "flush" else 6):
        append(store, position)
        store.flush()
    if action in ("snapshot", "restore"):
        act("hydrate", place)
    if action == "restore":
        act("snapshot", place)
        for path in place.shm.iterdir():
            path.unlink()
    return place


def positions(place: Place) -> list[int]:
    """The position of every row that a read sees."""
    return [p for _, _, found in place.store().newest_first(CRASH) for p in found.to_pylist()]


def check_served(place: Place, version: int) -> None:
    with place.registry().open_current(CRASH) as segment:
        rows = assembly.read(segment, [f"id{i}" for i in range(IDS)]).to_pylist()
        assert {(row["number"], row["text"], row["event_time_ns"]) for row in rows} == {
            (version, f"text {version}", version)
        }
        assert segment.position == version


@pytest.mark.parametrize(("action", "point", "when"), CASES)
def test_a_process_killed_at_any_step_leaves_all_or_nothing(tmp_path: Path, action, point, when) -> None:
    place = prepared(tmp_path, action)
    assert die(action, tmp_path, point, when) == -signal.SIGKILL

    seen = sorted(positions(place))
    whole = sorted(list(range(1, 6)) * IDS)
    assert seen == (whole if action != "flush" or seen == whole else sorted([1, 2, 3] * IDS))
    if action in ("hydrate", "restore"):
        try:
            check_served(place, 5)
            finished = True
        except SegmentNotFoundError:
            finished = False
        if not finished:
            act(action, place)
        check_served(place, 5)
    elif action == "snapshot":
        check_served(place, 5)
        if place.snapshot.exists():
            for path in place.shm.iterdir():
                path.unlink()
            act("restore", place)
            check_served(place, 5)
        else:
            act("snapshot", place)
    else:
        act(action, place)
        assert sorted(positions(place)) == whole
        assert place.store().flushed_position(CRASH) == 5
        if action == "compact":
            act("compact", place)
            assert len(list(tmp_path.rglob("*.parquet"))) == 1


def history_rows(base: Path) -> list[dict[str, Any]]:
    """The rows that reads see, of all files."""
    loaded = ParquetDatasetStore(base).load(consumers.ROW)
    return [row for part in loaded.parts for batch in loaded.raw_batches(part) for row in batch.to_pylist()]


@pytest.mark.parametrize("kind", ["embedded", "redis"])
def test_a_consumer_killed_again_and_again_then_a_reboot(tmp_path: Path, kind: str, request) -> None:
    """Every acknowledged row is in the history once, and is served by a machine that lost log and memory."""
    connection = str(tmp_path / "store") if kind == "embedded" else str(request.getfixturevalue("redis_url"))
    shm, base = tmp_path / "shm", tmp_path / "history"
    shm.mkdir()
    options = {"flush_interval_seconds": 0.05, "batch_entries": 7}
    history = f"parquet:{base}"
    producer = consumers.start(consumers.produce, connection, 0, str(tmp_path))
    rng = random.Random(5)
    for _ in range(8):
        consumer = consumers.start(consumers.consume, connection, str(shm), history, options)
        time.sleep(rng.uniform(0.3, 0.8))
        consumers.kill(consumer)
        if rng.random() < 0.3:
            ParquetDatasetStore(base).compact(consumers.ROW)
    consumers.kill(producer)
    acknowledged = consumers.last_acknowledged(tmp_path, 0)
    assert acknowledged > 20

    backend = connect(connection)
    log = backend.log()
    registry = SegmentRegistry(backend, shm_dir=shm)
    consumer = consumers.start(consumers.consume, connection, str(shm), history, options)
    deadline = time.monotonic() + 60
    while log.bounds().trimmed < log.bounds().last:
        assert time.monotonic() < deadline, "the log was not trimmed"
        time.sleep(0.05)
    consumers.kill(consumer)

    rows = history_rows(base)
    numbers: dict[str, list[int]] = {}
    for row in rows:
        assert row["text"] == f"{row['number']} " * 5
        numbers.setdefault(row["entity_id"], []).append(row["number"])
    last = len(numbers["w0-0"])
    assert last in (acknowledged, acknowledged + 1)  # the last write may have been logged and not acknowledged
    assert numbers == {f"w0-{i}": list(range(1, last + 1)) for i in range(consumers.IDS)}
    assert sum(len(pq.read_table(path, partitioning=None)) for path in base.rglob("*.parquet")) >= len(rows)

    for path in shm.iterdir():
        path.unlink()
    consumer = consumers.start(consumers.consume, connection, str(shm), history, options)
    while True:
        assert time.monotonic() < deadline, "the segment was not built"
        try:
            with registry.open_current(consumers.ROW) as segment:
                served = assembly.read(segment, [f"w0-{i}" for i in range(consumers.IDS)]).to_pylist()
            break
        except SegmentNotFoundError:
            time.sleep(0.05)
    assert [row["number"] for row in served] == [last] * consumers.IDS
    consumers.kill(consumer)
    backend.close()


def test_a_snapshot_of_a_dead_writers_segment_is_whole(tmp_path: Path) -> None:
    place = prepared(tmp_path, "snapshot")
    with place.registry().open_current(CRASH) as segment:
        result = snapshot(segment, place.snapshot)
    assert result.entity_count == IDS
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".pending")] == []
