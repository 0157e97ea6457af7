"""Several machines with one ``feature_store.yaml`` on one Redis, each with a ``shm_dir`` of its own."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from feast import FeatureStore, Field
from feast.types import Int64, String
from structlog.testing import capture_logs

from feast_quorin import session
from quorin.errors import StaleReplicaError, WriterLeaseHeldError
from quorin.metrics import stale_reads
from quorin.shm import SegmentRegistry
from quorin.snapshot import SnapshotStore
from quorin.wal import Beginning
from quorin.wal_consumer import WALConsumer
from tests.feast.repos import END, START, definitions, make_store
from tests.support.http import serving
from tests.support.redis_server import RedisServer

fork = multiprocessing.get_context("fork")
CUSTOMER, DRIVER = {"customer": ["alice"]}, {"driver_id": [1001, 1002, 7]}
SCORE, FEATURES = ["customer_stats:score"], ["driver_stats:trips", "driver_stats:nick"]


class Machines:
    """Stores of machines that share a Redis and a registry, as a repository in a shared bucket would be."""

    def __init__(self, server: RedisServer, folder: Path, data: Path) -> None:
        self.server, self._folder, self._data = server, folder, data
        self.stores = [self.store(name) for name in "ABC"]

    def store(self, name: str, **settings: Any) -> FeatureStore:
        segments = self._folder / name
        segments.mkdir(exist_ok=True)
        online_store = {
            "type": "quorin",
            "redis_url": self.server.url,
            "shm_dir": str(segments),
            "capacity": 64,
            **settings,
        }
        return make_store(self._folder / "repo", online_store, data=self._data)

    def folder(self, name: str) -> Path:
        return self._folder / name

    def segments(self, name: str) -> list[str]:
        return sorted(path.name for path in (self._folder / name).glob("quorin_*"))


@pytest.fixture
def machines(tmp_path: Path, data: Path) -> Iterator[Machines]:
    server = RedisServer("--appendonly", "yes", "--appendfsync", "no")
    machines = Machines(server, tmp_path, data)
    machines.stores[0].apply(definitions(data))
    yield machines
    machines.stores[0].teardown()
    server.stop()


def push(store: FeatureStore, score: float) -> None:
    at = START + dt.timedelta(days=9, seconds=score)
    store.push("customer_push", pd.DataFrame({"customer": ["alice"], "at": [at], "score": [score], "city": ["x"]}))


def score(store: FeatureStore) -> Any:
    return store.get_online_features(SCORE, CUSTOMER).to_dict()["score"][0]


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def test_every_machine_serves_what_any_of_them_materializes_and_pushes(machines: Machines) -> None:
    a, b, c = machines.stores
    assert score(b) is None
    a.materialize(START, END)
    expected = a.get_online_features(FEATURES, DRIVER).to_dict()
    assert expected["trips"][0] is not None
    assert expected["trips"][2] is None
    for store in (b, c):  # One has its segments open, the other begins now.
        until(lambda store=store: store.get_online_features(FEATURES, DRIVER).to_dict() == expected)
    for number, store in enumerate([a, b, c, a], 1):
        push(store, number)
        assert score(store) == number, "its own write is seen at once"
        for other in machines.stores:
            until(lambda other=other, number=number: score(other) == number)


def test_a_push_that_waits_for_the_fleet_is_on_every_machine_when_it_returns(machines: Machines) -> None:
    a, b, c = machines.stores
    push(a, 0.5)
    for store in (a, b, c):  # A node follows the log from its first read on.
        until(lambda store=store: score(store) == 0.5)
    backend = SegmentRegistry(machines.server.url).backend
    until(lambda: len({node for node, _ in backend.control.replicas()}) == 3)
    waiting = machines.store("A", wait="fleet", timeout_ms=60_000)
    for number in (1, 2, 3):
        push(waiting, number)
        assert score(b) == score(c) == number
    backend.close()


def test_a_view_that_changes_or_goes_does_so_on_every_machine(machines: Machines, data: Path) -> None:
    a, b, _ = machines.stores
    push(a, 1)
    until(lambda: score(b) == 1)
    changed = definitions(data)
    (view,) = [one for one in changed if getattr(one, "name", "") == "customer_stats"]
    view.features = [*view.features, Field(name="visits", dtype=Int64), Field(name="mood", dtype=String)]
    a.apply(changed)
    at = START + dt.timedelta(days=10)
    row = {"customer": ["alice"], "at": [at], "score": [2.0], "city": ["y"], "visits": [5], "mood": ["good"]}
    a.push("customer_push", pd.DataFrame(row))
    features = [*SCORE, "customer_stats:visits", "customer_stats:mood"]
    late = machines.store("B")
    until(lambda: late.get_online_features(features, CUSTOMER).to_dict()["mood"] == ["good"])
    assert late.get_online_features(features, CUSTOMER).to_dict()["visits"] == [5]
    assert score(b) == 2
    users = [*a.list_feature_services(), *a.list_on_demand_feature_views()]
    a.apply([], objects_to_delete=[*users, view], partial=False)
    until(lambda: not any("customer_stats" in name for name in machines.segments("B")))


def test_a_machine_applies_anew_what_another_tore_down_a_moment_ago(machines: Machines, data: Path) -> None:
    a, b, _ = machines.stores
    for _ in range(3):
        push(b, 1)
        assert score(b) == 1
        a.teardown()
        b.apply(definitions(data))  # Here the follower may still have the segment of the dropped view.
        assert score(b) is None
        a.apply(definitions(data))


def test_a_view_is_not_made_anew_beside_a_writer_of_the_one_that_was_dropped(machines: Machines, data: Path) -> None:
    a, b, _ = machines.stores
    a.teardown()
    name = "shop__customer_stats"
    patient = machines.store("B", timeout_ms=300, consumer="external")
    patient.apply(definitions(data))
    machines.store("A", consumer="external").teardown()
    writer = SegmentRegistry(machines.server.url, shm_dir=machines.folder("B"))
    with writer.open_stored(name, read_only=False) as segment:
        segment.acquire_writer_lease()
        with pytest.raises(WriterLeaseHeldError, match="has a writer already"):
            patient.apply(definitions(data))
        assert name not in writer.backend.control.schemas()
    patient.apply(definitions(data))
    assert name in writer.backend.control.schemas()
    assert score(b) is None
    writer.backend.close()


def test_rows_of_a_view_that_was_dropped_are_not_carried_into_the_one_that_is_made_anew(
    machines: Machines, data: Path
) -> None:
    a, b, _ = machines.stores
    quiet = machines.store("B", consumer="external", wait="logged")
    push(b, 7)
    b._get_provider().online_store.release()  # Nobody applies on B from here on, so its segment stays as it is.
    changed = with_feature(data, Field(name="visits", dtype=Int64))
    a.teardown()
    a.apply(definitions(data))
    push(a, 1)
    quiet.apply(changed)
    assert score(machines.store("B")) == 1
    with SegmentRegistry(machines.server.url, shm_dir=machines.folder("B")).open_stored("shop__customer_stats") as own:
        assert len(own) == 1


def test_a_change_goes_on_from_one_that_another_process_makes_at_the_same_time(
    machines: Machines, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = machines.stores[0], machines.store("A")
    upgrade_schema = session.upgrade_schema

    def after_another(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(session, "upgrade_schema", upgrade_schema)
        second.apply(with_feature(data, Field(name="mood", dtype=String)))
        return upgrade_schema(*arguments, **options)

    monkeypatch.setattr(session, "upgrade_schema", after_another)
    first.apply(with_feature(data, Field(name="visits", dtype=Int64)))
    registry = SegmentRegistry(machines.server.url, shm_dir=machines.folder("A"))
    with registry.open_stored("shop__customer_stats") as segment:
        assert "visits__int64" in [field.name for field in segment.stored_schema.fields]
    registry.backend.close()


def with_feature(data: Path, field: Field) -> list[Any]:
    """The definitions, with one more feature of the view that is pushed to."""
    changed = definitions(data)
    (view,) = [one for one in changed if getattr(one, "name", "") == "customer_stats"]
    view.features = [*view.features, field]
    return changed


def test_stale_reads_are_refused_or_counted(machines: Machines) -> None:
    push(machines.stores[0], 1)
    strict = machines.store("B", max_lag_seconds=2)
    lenient = machines.store("B", max_lag_seconds=2, stale_reads="serve")
    until(lambda: score(strict) == 1)
    assert score(lenient) == 1
    counted = stale_reads.labels("shop__customer_stats").value
    machines.server.kill()
    until(lambda: _is_refused(strict))
    with pytest.raises(StaleReplicaError, match=r"'customer_stats'.* s ago on this node, max_lag_seconds is 2"):
        score(strict)
    before = stale_reads.labels("shop__customer_stats").value
    assert before > counted
    time.sleep(0.01)
    assert score(lenient) == 1
    assert stale_reads.labels("shop__customer_stats").value > before
    machines.server.start()
    until(lambda: not _is_refused(strict))


def _is_refused(store: FeatureStore) -> bool:
    try:
        return score(store) is None
    except StaleReplicaError:
        return True


def test_a_new_machine_starts_from_a_snapshot(machines: Machines, tmp_path: Path, data: Path) -> None:
    first = machines.stores[0]
    first.materialize(START, END)
    expected = first.get_online_features(FEATURES, DRIVER).to_dict()
    until(lambda: first.get_online_features(FEATURES, DRIVER).to_dict() == expected)
    registry = SegmentRegistry(machines.server.url, shm_dir=tmp_path / "A")
    store = SnapshotStore(tmp_path / "repo" / "snapshots")
    for name in registry.node.currents():
        begins = registry.node.state().beginnings[name]
        with registry.open_stored(name) as segment:
            store.save(segment, beginning=Beginning(*begins))
    log = registry.backend.log()
    log.trim(log.bounds().last)
    push(first, 0.75)
    restored = machines.store("D", snapshots="snapshots")
    with capture_logs() as logs:
        assert restored.get_online_features(FEATURES, DRIVER).to_dict() == expected
    assert "snapshot_restored" in {event["event"] for event in logs}
    until(lambda: score(restored) == 0.75)


def positions(registry: SegmentRegistry) -> Iterator[int]:
    for name in registry.node.currents():
        with registry.open_stored(name) as segment:
            yield segment.position


def test_a_new_machine_copies_the_rows_of_another(machines: Machines, tmp_path: Path) -> None:
    first = machines.stores[0]
    first.materialize(START, END)
    expected = first.get_online_features(FEATURES, DRIVER).to_dict()
    until(lambda: first.get_online_features(FEATURES, DRIVER).to_dict() == expected)
    push(first, 0.75)
    until(lambda: score(first) == 0.75)
    registry = SegmentRegistry(machines.server.url, shm_dir=tmp_path / "A")
    log = registry.backend.log()
    last = log.bounds().last
    until(lambda: min(positions(registry)) >= last)  # As every trim waits for every node.
    log.trim(last)
    where = ["--connection", machines.server.url, "--shm-dir", str(tmp_path / "A")]
    with serving(["quorin", "serve", "-p", "{port}", *where], tmp_path / "log") as donor:
        copied = machines.store("D", bootstrap_from=donor.url)
        assert copied.get_online_features(FEATURES, DRIVER).to_dict() == expected
        assert score(copied) == 0.75
    push(first, 1.5)
    until(lambda: score(copied) == 1.5 == score(first))


def _score_in_new_process(store: FeatureStore, results: Any) -> None:
    store._get_provider().online_store._session = None
    results.put(score(store))


def test_a_process_starts_and_serves_while_redis_is_away(machines: Machines) -> None:
    a, b, _ = machines.stores
    push(a, 3)
    until(lambda: score(b) == 3)
    machines.server.kill()
    fresh = machines.store("B")
    assert score(fresh) == 3
    results = fork.SimpleQueue()
    process = fork.Process(target=_score_in_new_process, args=(fresh, results))
    process.start()
    process.join(120)
    assert results.get() == 3
    machines.server.start()
    push(a, 4)
    for store in (b, fresh):
        until(lambda store=store: score(store) == 4)


def test_a_store_without_threads_says_that_nobody_applies(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    push(machines.stores[0], 1)
    store = machines.store("D", consumer="external")
    registry = SegmentRegistry(machines.server.url, shm_dir=store.config.online_store.shm_dir)
    with WALConsumer(registry.backend, None, registry=registry) as consumer:
        consumer.drain()
    monkeypatch.setattr(session, "_NOBODY_SECONDS", 0.2)
    time.sleep(0.3)
    with capture_logs() as logged:
        assert score(store) == 1
    (warning,) = [entry for entry in logged if entry["event"] == "nobody_applies"]
    assert warning["view"] == "customer_stats"
    assert warning["lag_seconds"] > 0.2
    assert "quorin consumer" in warning["advice"]
    registry.backend.close()
