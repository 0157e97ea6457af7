"""The same tests over the embedded store and over Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from feast import FeatureStore

from tests.feast.repos import END, START, definitions, make_store, write_data
from tests.support.forking import preload

preload("tests.feast.preloaded", "tests.feast.repos")


@pytest.fixture(params=["embedded", "redis"])
def online_store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The ``online_store`` block of a ``feature_store.yaml``; segments stand in the test's own directory."""
    segments = tmp_path / "segments"
    segments.mkdir()
    settings: dict[str, Any] = {"type": "feast_quorin.QuorinOnlineStore", "shm_dir": str(segments), "capacity": 64}
    if request.param == "redis":
        settings["redis_url"] = request.getfixturevalue("redis_url")
    return settings


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(scope="session")
def sqlite_store(data: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Feast's own SQLite store, materialized: what answers are compared with. Tests only read it."""
    store = make_sqlite_store(tmp_path_factory.mktemp("sqlite"), data)
    store.materialize(START, END)
    return store


@pytest.fixture
def store(online_store: dict[str, Any], data: Path, tmp_path: Path) -> Iterator[FeatureStore]:
    """An applied, empty store on Quorin."""
    store = make_store(tmp_path / "repo", online_store, data=data)
    store.apply(definitions(data))
    yield store
    store.teardown()
    assert list(Path(online_store["shm_dir"]).glob("quorin_*")) == []


def make_sqlite_store(folder: Path, data: Path) -> FeatureStore:
    """A second repository with the same definitions on Feast's SQLite store."""
    store = make_store(folder, {"type": "sqlite", "path": str(folder / "online.db")}, data=data)
    store.apply(definitions(data))
    return store
