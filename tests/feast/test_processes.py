"""Several processes on one store: forked and fresh ones, writers at once, writers that are killed."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from feast import FeatureStore, Field
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Int64

from tests.feast.repos import make_store
from tests.feast.spawned import spawned

NOON = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)
KEYS = 50
SECOND = dt.timedelta(seconds=1)


def key(number: int) -> EntityKey:
    return EntityKey(
        join_keys=["driver_id", "customer"], entity_values=[Value(int64_val=number), Value(string_val="c")]
    )


def write(store: FeatureStore, rides: int, time_: dt.datetime = NOON, keys: int = KEYS) -> None:
    data = [(key(number), {"rides": Value(int32_val=rides)}, time_, None) for number in range(keys)]
    store._get_provider().online_write_batch(store.config, store.get_feature_view("pair_stats"), data, None)


def read(store: FeatureStore, keys: int = KEYS) -> list[int | None]:
    request = {"driver_id": list(range(keys)), "customer": ["c"] * keys}
    return store.get_online_features(["pair_stats:rides"], request).to_dict()["rides"]


def write_many_times(repo: Path, online_store: dict[str, Any], first: int, step: int, times: int) -> None:
    """What a writing process does: every write has an event time of its own, and the value says which."""
    store = make_store(repo, online_store, data=repo)
    for number in range(first, times, step):
        write(store, number, NOON + number * SECOND)


def read_until(repo: Path, online_store: dict[str, Any], wanted: int) -> None:
    """What a reading process does: of no key does it ever see an older value than before."""
    store = make_store(repo, online_store, data=repo)
    newest, deadline = [-1] * KEYS, time.monotonic() + 240
    while newest != [wanted] * KEYS:
        assert time.monotonic() < deadline, newest
        found = [-1 if value is None else value for value in read(store)]
        assert all(now >= before for now, before in zip(found, newest, strict=True)), (newest, found)
        newest = found


def start(method: str, target: Callable[..., None], *arguments: Any) -> Any:
    process = multiprocessing.get_context(method).Process(target=target, args=arguments)
    process.start()
    return process


def succeed(*processes: Any) -> None:
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def test_fresh_processes_write_and_read_at_once(store: FeatureStore, online_store: dict[str, Any]) -> None:
    repo, times = store.repo_path, 40
    writers = [spawned(write_many_times, repo, online_store, first, 2, times) for first in range(2)]
    read_until(repo, online_store, times - 1)
    succeed(*writers)
    assert read(store) == [times - 1] * KEYS


def test_a_forked_child_reads_and_writes_beside_its_parent(store: FeatureStore) -> None:
    write(store, 1)
    assert read(store) == [1] * KEYS

    def child() -> None:
        assert read(store) == [1] * KEYS
        write(store, 2, NOON + SECOND)

    succeed(start("fork", child))
    assert read(store) == [2] * KEYS
    write(store, 3, NOON + 2 * SECOND)
    assert read(store) == [3] * KEYS


def test_readers_and_writers_go_on_while_a_view_changes(store: FeatureStore, online_store: dict[str, Any]) -> None:
    times = 25
    write(store, 0)
    reader = spawned(read_until, store.repo_path, online_store, times - 1)
    writer = spawned(write_many_times, store.repo_path, online_store, 1, 1, times)
    changed, plain = store.get_feature_view("pair_stats"), store.get_feature_view("pair_stats")
    changed.features = [*changed.features, Field(name="more", dtype=Int64)]
    online = store._get_provider().online_store
    while writer.is_alive() or reader.is_alive():
        for table in (changed, plain):
            online.update(store.config, [], [table], [], [], True)
            time.sleep(0.05)
    succeed(writer, reader)
    assert read(store) == [times - 1] * KEYS


@pytest.mark.parametrize("after_seconds", [0.0, 0.05, 0.2])
def test_a_killed_writer_leaves_whole_rows_and_no_lock(
    store: FeatureStore, online_store: dict[str, Any], after_seconds: float
) -> None:
    write(store, 0)
    writer = start("fork", write_many_times, store.repo_path, online_store, 1, 1, 10**6)
    while read(store) == [0] * KEYS:
        time.sleep(0.005)
    time.sleep(after_seconds)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    last = max(value for value in read(store) if value is not None)
    write(store, 10**7, NOON + dt.timedelta(days=100))
    assert last < 10**7
    assert read(store) == [10**7] * KEYS


def report_threads_of_parent(pipe: Any) -> None:
    pipe.send([path.read_text().strip() for path in Path(f"/proc/{os.getppid()}/task").glob("*/comm")])


def test_the_server_that_forks_processes_has_no_thread_that_they_would_miss() -> None:
    """OpenBLAS and jemalloc, which have threads too, prepare theirs for a fork; Polars does not."""
    ours, theirs = multiprocessing.Pipe()
    process = spawned(report_threads_of_parent, theirs)
    assert ours.poll(120)
    assert [name for name in ours.recv() if name.startswith("polars")] == []
    succeed(process)
