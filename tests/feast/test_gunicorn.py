"""Workers that gunicorn forks from a process that has read already: they read, follow, and outlive Redis."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from feast import FeatureStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from tests.feast.repos import END, START, definitions, make_store
from tests.feast.spawned import QUICK_IMPORT
from tests.feast.test_plans import changed
from tests.support.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
WORKERS = 3
HANGS_SECONDS = 300


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.stop()


@pytest.fixture
def settings(redis: RedisServer, tmp_path: Path) -> dict[str, Any]:
    segments = tmp_path / "segments"
    segments.mkdir()
    return {"type": "feast_quorin.QuorinOnlineStore", "shm_dir": str(segments), "redis_url": redis.url, "capacity": 64}


@pytest.fixture
def store(settings: dict[str, Any], data: Path, tmp_path: Path) -> FeatureStore:
    store = make_store(tmp_path / "repo", settings, data=data)
    store.apply(definitions(data))
    store.materialize(START, END)
    return store


def put(store: FeatureStore, score: float) -> None:
    key = EntityKey(join_keys=["customer"], entity_values=[Value(string_val="alice")])
    rows = [(key, {"score": Value(double_val=score)}, END, None)]
    store._get_provider().online_write_batch(store.config, store.get_feature_view("customer_stats"), rows, None)


def test_forked_workers_read_follow_and_outlive_redis(
    store: FeatureStore, settings: dict[str, Any], data: Path, redis: RedisServer
) -> None:
    with served(Path(store.repo_path), settings, data) as url:
        assert every_worker(url, lambda answer: answer["score"] == [1.5, None])
        put(store, 7.0)
        assert every_worker(url, lambda answer: answer["score"] == [7.0, None])
        store.apply([store.get_entity("customer"), changed(data)])
        assert every_worker(f"{url}/refresh?customer_stats:age", lambda answer: answer["age"] == [None, None])
        assert every_worker(url, lambda answer: answer["score"] == [7.0, None])
        store.teardown()
        store.apply(definitions(data))
        put(store, 8.0)
        assert every_worker(url, lambda answer: answer["score"] == [8.0, None])
        redis.kill()
        assert every_worker(url, lambda answer: answer["score"] == [8.0, None])


def test_an_executors_processes_read(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    request = {"features": ["customer_stats:score"], "entity_rows": {"customer": ["alice"]}}
    expected = store.get_online_features(**request).to_dict()
    monkeypatch.setattr(sys.modules[__name__], "opened", store)
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as executor:
        found = [executor.submit(_read_here, request) for _ in range(6)]
        assert [future.result(HANGS_SECONDS) for future in found] == [expected] * 6
    monkeypatch.setenv(*next(iter(QUICK_IMPORT.items())))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        settings = store.config.online_store.model_dump(exclude_unset=True)
        assert executor.submit(_read_anew, Path(store.repo_path), settings, request).result(HANGS_SECONDS) == expected


opened: FeatureStore | None = None
"""What forked processes find as their parent left it."""


def _read_here(request: dict[str, Any]) -> dict[str, Any]:
    assert opened is not None
    return opened.get_online_features(**request).to_dict()


def _read_anew(repo: Path, settings: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    return make_store(repo, settings, data=repo).get_online_features(**request).to_dict()


@contextmanager
def served(repo: Path, settings: dict[str, Any], data: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    more = {"REPO": str(repo), "ONLINE_STORE": json.dumps(settings), "DATA": str(data), "PYTHONPATH": str(ROOT)}
    options = ["--preload", "--workers", str(WORKERS), "--bind", address, "--no-control-socket"]
    options += ["--timeout", str(HANGS_SECONDS)]
    command = [sys.executable, "-m", "gunicorn", *options, "tests.feast.gunicorn_app:application"]
    with (repo / "gunicorn.log").open("w") as log:
        master = subprocess.Popen(command, cwd=repo, env={**os.environ, **more, **QUICK_IMPORT}, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + HANGS_SECONDS
            while True:
                try:
                    _get(f"http://{address}")
                    break
                except OSError:
                    assert master.poll() is None, (repo / "gunicorn.log").read_text()
                    assert time.monotonic() < deadline, (repo / "gunicorn.log").read_text()
                    time.sleep(0.1)
            yield f"http://{address}"
        finally:
            master.terminate()
            master.wait(HANGS_SECONDS)


def every_worker(url: str, is_right: Callable[[dict[str, Any]], bool]) -> bool:
    """Whether every worker gives the right answer, compiled."""
    seen: set[int] = set()
    deadline = time.monotonic() + HANGS_SECONDS
    with ThreadPoolExecutor(WORKERS) as clients:  # One at a time could always meet the same worker.
        while len(seen) < WORKERS:
            assert time.monotonic() < deadline, f"only {len(seen)} workers answered"
            for answer in clients.map(_get, [url] * WORKERS):
                assert is_right(answer), answer
                assert answer["kind"] == "LazyResponse"
                seen.add(answer["pid"])
    return True


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=HANGS_SECONDS) as response:  # noqa: S310 - a server of our own
        return json.loads(response.read())
