"""The calls that lanes make to their logs: in which thread, and what becomes of those that fail or come too late."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quorin.engine.backend import Backend, connect, logs
from quorin.engine.backend.protocols import Log
from quorin.engine.consumer.historian import Historian
from quorin.engine.format.partition import partition_of
from quorin.engine.ops import presence
from quorin.errors import ConnectionFailedError, HistoryUnavailableError
from quorin.offline import ParquetDatasetStore
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import NoopOfflineWriter, WALConsumer
from tests.support.world import TRIP, row, running, until

COUNT = 4
IDS = [next(one for one in map(str, range(1000)) if partition_of(one, COUNT) == number) for number in range(COUNT)]
"""An id of each partition."""


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    with closing(connect(str(tmp_path / "store"), partitions=COUNT)) as opened:
        yield opened


@pytest.fixture
def registry(backend: Backend, tmp_path: Path, request: pytest.FixtureRequest) -> SegmentRegistry:
    return SegmentRegistry(backend, shm_dir=tmp_path, held=getattr(request, "param", None))


def patch_logs(backend: Backend, monkeypatch: pytest.MonkeyPatch, patch: Callable[[Log], None]) -> None:
    """Patch each log that is made from now on."""
    log_of = backend.log

    def patched(*arguments: Any, **options: Any) -> Log:
        log = log_of(*arguments, **options)
        patch(log)
        return log

    monkeypatch.setattr(backend, "log", patched)


def test_a_log_is_read_by_one_thread_only(
    backend: Backend, registry: SegmentRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = defaultdict[int, list[int]](list)

    def record(log: Log) -> None:
        read = log.read

        def recorded(*arguments: Any, **options: Any) -> Any:
            readers[log.partition].append(threading.get_ident())
            return read(*arguments, **options)

        monkeypatch.setattr(log, "read", recorded)

    patch_logs(backend, monkeypatch, record)
    producer = WALProducer(backend, registry=registry)
    with running(WALConsumer(backend, [TRIP], registry=registry)):
        for _ in range(10):
            producer.wait(
                TRIP, producer.write_many(TRIP, [{"entity_id": one, **row(1)} for one in IDS]), timeout_ms=9e4
            )
    assert [len(set(readers[partition])) for partition in range(COUNT)] == [1] * COUNT
    assert min(map(len, readers.values())) >= 10


@pytest.mark.parametrize("registry", ["0"], indirect=True)
def test_logs_that_are_not_held_are_known_but_for_those_that_are_away(
    backend: Backend, registry: SegmentRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def away(log: Log) -> None:
        def unreachable() -> int:
            asked.set()
            raise ConnectionFailedError("the server of this partition is away")

        if log.partition == 1:
            monkeypatch.setattr(log, "identity", unreachable)

    producer = WALProducer(backend, registry=registry)
    tokens = [producer.write(TRIP, one, row(1)) for one in IDS]
    patch_logs(backend, monkeypatch, away)
    with running(WALConsumer(backend, [TRIP], registry=registry)):
        for partition in (0, 2, 3):
            producer.wait(TRIP, tokens[partition], timeout_ms=9000)
        until(asked.is_set)


class LostHistory(ParquetDatasetStore):
    """It can no longer be written."""

    def flush(self) -> None:
        raise HistoryUnavailableError("the storage is away")


def test_a_consumer_that_stops_ends_its_leases_but_for_those_of_logs_that_are_away(
    backend: Backend, registry: SegmentRegistry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def away(log: Log) -> None:
        def unreachable(_: str) -> bool:
            raise ConnectionFailedError("the server of this partition is away")

        if log.partition == 0:
            monkeypatch.setattr(log, "release_historian", unreachable)

    patch_logs(backend, monkeypatch, away)
    producer = WALProducer(backend, registry=registry)
    history = LostHistory(tmp_path / "history")
    with running(WALConsumer(backend, [TRIP], registry=registry, offline=history, flush_interval_seconds=3600)):
        for one in IDS:
            producer.write_sync(TRIP, one, row(1), timeout_ms=9000)
        assert all(log.historian() for log in logs(backend))
    assert [log.historian() is None for log in logs(backend)] == [False, True, True, True]
    assert not presence.reports(backend.control)


def test_a_look_that_outlives_its_consumer_takes_nothing(
    backend: Backend, registry: SegmentRegistry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    owned, begun, let_go, over = threading.Event(), threading.Event(), threading.Event(), threading.Event()

    def slow(log: Log) -> None:
        acquire = log.acquire_historian

        def acquired(*arguments: Any, **options: Any) -> Any:
            if log.partition != 2 or not owned.is_set():
                return acquire(*arguments, **options)
            begun.set()
            assert let_go.wait(60)
            try:
                return acquire(*arguments, **options)
            finally:
                over.set()

        monkeypatch.setattr(log, "acquire_historian", acquired)

    patch_logs(backend, monkeypatch, slow)
    history = ParquetDatasetStore(tmp_path / "history")
    with running(WALConsumer(backend, [TRIP], registry=registry, offline=history)):
        until(lambda: all(log.historian() for log in logs(backend)))
        owned.set()
        assert begun.wait(60)
    assert [log.historian() for log in logs(backend)] == [None] * COUNT
    let_go.set()
    assert over.wait(60)
    until(lambda: logs(backend)[2].historian() is None, seconds=5)


def test_a_lease_that_was_taken_but_never_used_is_ended(backend: Backend, registry: SegmentRegistry) -> None:
    log = backend.log(partition=0)
    historian = Historian(log, registry.node, NoopOfflineWriter(), role="consumer", trims=True, discovers=True)
    assert historian.acquire_call(lambda: True)() is not None
    historian.release()
    assert log.historian() is None
    late = historian.acquire_call(lambda: True)
    historian.release()
    assert late() is None
    assert log.historian() is None


def test_who_asks_whether_a_consumer_owns_all_takes_no_lease(
    backend: Backend, registry: SegmentRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(WALConsumer(backend, [TRIP], registry=registry)) as consumer:
        consumer.drain()
        ownership, (target,) = consumer._ownership, consumer._ownership.targets
        ownership.take(target, waiting=False)
        assert ownership.owns_all_schemas()

        def released_meanwhile() -> dict[str, str]:
            ownership.release()
            return {}

        monkeypatch.setattr(ownership, "_control", SimpleNamespace(schemas=released_meanwhile))
        assert not ownership.owns_all_schemas()
        assert not target.holds_lease
