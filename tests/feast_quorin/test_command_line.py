"""The real ``feast`` command in a repository of its own: apply, materialize, serve with two workers, teardown."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from feast_quorin.hook import NAME
from tests.feast_quorin.repos import END, START, write_data

ROOT = Path(__file__).parents[2]
DEFINITIONS = """
from pathlib import Path
from tests.feast_quorin.repos import definitions

driver, customer, *views, service = definitions(Path("data").absolute())
driver_stats, customer_stats, pair_stats, world, boosted = views
"""
READ = """
import json, sys
from feast import FeatureStore
store = FeatureStore(".")
print(json.dumps(store.get_online_features(["driver_stats:trips", "customer_stats:score"],
    [{"driver_id": 1001, "customer": "alice"}]).to_dict()))
"""
TIMEOUT_SECONDS = 120


@pytest.fixture
def repo(online_store: dict[str, Any], tmp_path: Path) -> Path:
    """A repository folder whose Python runs the hook's line at its start, as it does where the wheel is installed."""
    folder = tmp_path / "repo"
    write_data(folder / "data")
    (folder / "sitecustomize.py").write_text((ROOT / "feast_quorin" / "quorin_feast.pth").read_text())
    config = {
        "project": "shop",
        "provider": "local",
        "registry": "data/registry.db",
        "online_store": {**online_store, "type": NAME},
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(config))
    (folder / "features.py").write_text(DEFINITIONS)
    (folder / ".feastignore").write_text("sitecustomize.py\n")
    return folder


def environment(repo: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{repo}:{ROOT}", "PYTHONWARNINGS": "ignore", "FEAST_USAGE": "False"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "feast.cli.cli", *arguments]


def run(repo: Path, *arguments: str) -> str:
    done = subprocess.run(
        [*arguments],
        cwd=repo,
        env=environment(repo),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_whole_life_of_a_repository(repo: Path, online_store: dict[str, Any]) -> None:
    run(repo, *command("apply"))
    run(repo, *command("materialize", START.isoformat(), END.isoformat()))
    expected = {"driver_id": [1001], "customer": ["alice"], "trips": [1001 * 10**12 + 2], "score": [1.5]}
    assert json.loads(run(repo, sys.executable, "-c", READ)) == expected
    run(repo, *command("materialize-incremental", END.isoformat()))
    with served(repo, workers=2) as url:
        for _ in range(20):
            assert ask(url, ["customer_stats:score"], {"customer": ["alice", "new"]}) == [1.5, None]
        row = {"customer": ["alice", "new"], "at": [END.isoformat()] * 2, "score": [7.0, 8.0], "city": ["Oslo", None]}
        post(f"{url}/push", {"push_source_name": "customer_push", "df": row, "to": "online"})
        for _ in range(20):
            assert ask(url, ["customer_stats:score"], {"customer": ["alice", "new"]}) == [7.0, 8.0]
    run(repo, *command("teardown"))
    assert list(Path(online_store["shm_dir"]).iterdir()) == []


@contextmanager
def served(repo: Path, *, workers: int) -> Iterator[str]:
    """``feast serve`` on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = command("serve", "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers))
    with (repo / "serve.log").open("w") as log:
        server = subprocess.Popen(
            arguments, cwd=repo, env=environment(repo), stdout=log, stderr=log, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_healthy(url, server, repo / "serve.log")
            yield url
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def ask(url: str, features: list[str], entities: dict[str, list[Any]]) -> list[Any]:
    """The values of the last feature."""
    answer = post(f"{url}/get-online-features", {"features": features, "entities": entities})
    return [None if status != "PRESENT" else value for value, status in zip(*_last(answer), strict=True)]


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310
        return json.loads(response.read() or "null")


def _last(answer: dict[str, Any]) -> tuple[list[Any], list[str]]:
    vector = answer["results"][-1]
    return vector["values"], vector["statuses"]


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=30):  # noqa: S310
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
