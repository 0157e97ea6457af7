"""The servers of `benchmarks.http`: Feast repositories with the same rows, and processes that serve them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from benchmarks import feast_views
from benchmarks.servers import Running, serving


@contextmanager
def repositories(directory: Path, redis: str, *, entities: int) -> Iterator[dict[str, Path]]:
    """A repository on Quorin and one on Redis, which end with the block."""
    from feast import FeatureStore

    stores: dict[str, Any] = {}
    online = {
        "quorin": {"type": "quorin", "path": str(directory / "store")},
        "redis": {"type": "redis", "connection_string": redis},
    }
    try:
        for name, settings in online.items():
            write_repository(directory / name, settings)
            stores[name] = FeatureStore(repo_path=str(directory / name))
            feast_views.fill(stores[name], directory, entities=entities)
        yield {name: directory / name for name in stores}
    finally:
        for store in stores.values():
            store.teardown()


@contextmanager
def quorin_serve(repository: Path, *, core: int | None = None, workers: int = 1) -> Iterator[Running]:
    """`quorin serve`, on one core if told."""
    words = ["quorin", "serve", "-r", str(repository), "-p", "{port}", "-w", str(workers)]
    with serving(words, core) as server:
        yield server


@contextmanager
def feast_serve(repository: Path, *, core: int | None = None) -> Iterator[Running]:
    """`feast serve` with one worker."""
    with serving(
        ["feast.cli.cli", "-c", str(repository), "serve", "-p", "{port}", "--no-access-log", "--max-requests", "0"],
        core,
    ) as server:
        yield server


@contextmanager
def constant_server(*, core: int | None = None) -> Iterator[Running]:
    """A server that gives an answer of 500 bytes to everything: what the machine and the load take by themselves."""
    with serving(["benchmarks.constant_server", "{port}", "500"], core) as server:
        yield server


def write_repository(folder: Path, online_store: dict[str, Any]) -> None:
    """A folder with a `feature_store.yaml`."""
    folder.mkdir()
    settings = {
        "project": "benchmark",
        "provider": "local",
        "registry": str(folder / "registry.db"),
        "online_store": online_store,
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings))
