"""The servers of `benchmarks.http`: Feast repositories with the same rows, and processes that serve them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import yaml

from benchmarks import feast_views
from benchmarks.machine import free_port

ROOT = Path(__file__).parent.parent
_START_SECONDS = 120


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    url: str
    process: subprocess.Popen[bytes]

    def resident_bytes(self) -> int:
        """The resident memory of the process."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


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
    with _serving(words, core) as server:
        yield server


@contextmanager
def feast_serve(repository: Path, *, core: int | None = None) -> Iterator[Running]:
    """`feast serve` with one worker."""
    with _serving(
        ["feast.cli.cli", "-c", str(repository), "serve", "-p", "{port}", "--no-access-log", "--max-requests", "0"],
        core,
    ) as server:
        yield server


@contextmanager
def constant_server(*, core: int | None = None) -> Iterator[Running]:
    """A server that gives an answer of 500 bytes to everything: what the machine and the load take by themselves."""
    with _serving(["benchmarks.constant_server", "{port}", "500"], core) as server:
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


@contextmanager
def _serving(words: list[str], core: int | None) -> Iterator[Running]:
    port = free_port()
    command = [sys.executable, "-m", *(word.replace("{port}", str(port)) for word in words)]
    if core is not None:
        command = ["taskset", "-c", str(core), *command]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)})
        url = f"http://127.0.0.1:{port}"
        try:
            if not _is_up(url, process):
                log.seek(0)
                raise SystemExit(f"{' '.join(command)} did not start:\n{log.read().decode()}")
            yield Running(url, process)
        finally:
            process.terminate()
            process.wait()


def _is_up(url: str, process: subprocess.Popen[bytes]) -> bool:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if requests.get(url + "/health", timeout=5).ok:
                return True
        except requests.RequestException:
            time.sleep(0.1)
    return False
