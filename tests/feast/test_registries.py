"""Requests are compiled over every registry of Feast, and dropped when Feast would see a change of it."""

from __future__ import annotations

import datetime as dt
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from feast import FeatureStore
from feast.errors import FeatureViewNotFoundException

from feast_quorin.read.freshness import REMOTE_SECONDS
from feast_quorin.read.response import LazyResponse
from tests.feast.repos import END, REQUESTS, START, ask, definitions, make_store
from tests.feast.test_against_sqlite import same
from tests.feast.test_command_line import command, environment
from tests.feast.test_plans import ROWS, changed, compiled, read  # noqa: F401 - a fixture


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """An embedded store: where the log is makes no difference here."""
    segments = tmp_path / "segments"
    segments.mkdir()
    return {"type": "feast_quorin.QuorinOnlineStore", "shm_dir": str(segments), "capacity": 64}


@pytest.fixture
def sql(tmp_path: Path) -> dict[str, Any]:
    return {"registry_type": "sql", "path": f"sqlite:///{tmp_path}/registry.sqlite", "cache_ttl_seconds": 600}


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The registry of a file, behind Feast's registry server."""
    with registry_server(tmp_path / "server") as address:
        yield {"registry_type": "remote", "path": address}


@contextmanager
def registry_server(folder: Path) -> Iterator[str]:
    folder.mkdir()
    settings = {
        "project": "shop",
        "provider": "local",
        "registry": {"path": "registry.db", "cache_ttl_seconds": 1},
        "online_store": {"type": "sqlite", "path": "online.db"},
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command("serve_registry", "--port", str(port)), cwd=folder, env=environment(folder), stdout=log, stderr=log
        )
        try:
            _wait(port, server, folder / "log")
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(60)


def _wait(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


@contextmanager
def filled(folder: Path, settings: dict[str, Any], data: Path, registry: dict[str, Any]) -> Iterator[FeatureStore]:
    store = make_store(folder, settings, data=data, registry=registry)
    store.apply(definitions(data))
    store.materialize(START, END)
    yield store
    store.teardown()


def test_a_sql_registry(
    settings: dict[str, Any],
    sql: dict[str, Any],
    data: Path,
    tmp_path: Path,
    sqlite_store: FeatureStore,
    compiled: list[Any],  # noqa: F811
) -> None:
    with filled(tmp_path / "repo", settings, data, sql) as store:
        for name in REQUESTS:
            answer = ask(store, name)
            assert isinstance(answer, LazyResponse)
            same(answer, ask(sqlite_store, name))
        before = read(store, "score", "city")
        compiled.clear()
        for _ in range(3):
            store.refresh_registry()
            read(store, "score", "city")
        assert compiled == []
        other = make_store(tmp_path / "repo", settings, data=data, registry=sql)
        other.apply([other.get_entity("customer"), changed(data)])
        store.refresh_registry()
        assert read(store, "score", "city", "age") == {**before, "city": [None, None], "age": [None, None]}
        store.apply(definitions(data))
        assert read(store, "score", "city")["score"] == before["score"]


def test_the_time_to_live_of_a_sql_registry_is_kept(
    settings: dict[str, Any], sql: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    with filled(tmp_path / "repo", settings, data, sql) as store:
        read(store, "score")
        store.registry.cached_registry_proto_ttl = dt.timedelta(seconds=0.5)
        store.refresh_registry()
        read(store, "score")
        other = make_store(tmp_path / "repo", settings, data=data, registry=sql)
        other.registry.delete_feature_view("customer_stats", other.project)
        time.sleep(0.6)
        with pytest.raises(FeatureViewNotFoundException, match="customer_stats"):
            read(store, "score")


def test_a_remote_registry(
    settings: dict[str, Any],
    remote: dict[str, Any],
    data: Path,
    tmp_path: Path,
    sqlite_store: FeatureStore,
    compiled: list[Any],  # noqa: F811
) -> None:
    with filled(tmp_path / "repo", settings, data, remote) as store:
        for name in REQUESTS:
            answer = ask(store, name)
            assert isinstance(answer, LazyResponse)
            same(answer, ask(sqlite_store, name))
        read(store, "score")
        compiled.clear()
        started = time.monotonic()
        for _ in range(100):
            read(store, "score")
        assert len(compiled) <= (time.monotonic() - started) / REMOTE_SECONDS + 1
        other = make_store(tmp_path / "other", settings, data=data, registry=remote)
        view = other.get_feature_view("customer_stats")
        view.enabled = False
        other.registry.apply_feature_view(view, other.project)
        time.sleep(REMOTE_SECONDS + 1.1)
        with pytest.raises(ValueError, match="is disabled"):
            read(store, "score")
        view.enabled = True
        other.registry.apply_feature_view(view, other.project)
        time.sleep(1.1)
        assert read(store, "score", rows=ROWS)["score"][1] is None


def test_feasts_remote_registry_needs_no_library_until_it_is_used() -> None:
    code = "import sys, feast_quorin.online_store; assert 'grpc' not in sys.modules"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=os.environ, check=False)
    assert done.returncode == 0
