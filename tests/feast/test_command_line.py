"""The real ``feast`` command in repositories of its own: plan, apply, materialize, serve with two workers, teardown."""

from __future__ import annotations

import datetime as dt
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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from feast import FeatureStore
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from feast_quorin.hook import NAME
from quorin import metrics
from tests.feast.repos import END, START, write_data
from tests.feast.spawned import QUICK_IMPORT, start_feast

ROOT = Path(__file__).parents[2]
DEFINITIONS = """
from pathlib import Path
from tests.feast.repos import definitions

driver, customer, *views, service = definitions(Path("data").absolute())
driver_stats, customer_stats, pair_stats, world, boosted = views
"""
ALICE = {"driver_id": [1001], "customer": ["alice"], "trips": [1001 * 10**12 + 2], "score": [1.5]}
"""What :func:`read` gives when everything is materialized."""
EARLIER_ALICE = {**ALICE, "trips": [1001 * 10**12 + 1], "score": [1.25]}
"""The same when the last day is not."""

ARROW = {
    "provider": "feast_quorin.QuorinProvider", "batch_engine": {"type": "feast_quorin.QuorinComputeEngine"},
}  # fmt: skip
TIMEOUT_SECONDS = 300


@pytest.fixture
def repo(online_store: dict[str, Any], tmp_path: Path) -> Path:
    """A repository folder whose Python runs the hook's line at its start, as it does where the wheel is installed."""
    return make_repo(tmp_path / "repo", online_store)


def make_repo(folder: Path, online_store: dict[str, Any], project: str = "shop", **more: Any) -> Path:
    write_data(folder / "data")
    (folder / "sitecustomize.py").write_text((ROOT / "feast_quorin" / "quorin_feast.pth").read_text())
    config = {
        "project": project,
        "provider": "local",
        "registry": "data/registry.db",
        "online_store": {**online_store, "type": NAME},
        "entity_key_serialization_version": 3,
        **more,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(config))
    (folder / "features.py").write_text(DEFINITIONS)
    (folder / ".feastignore").write_text("sitecustomize.py\n")
    return folder


def environment(repo: Path) -> dict[str, str]:
    own = {"PYTHONPATH": f"{repo}:{ROOT}", "PYTHONWARNINGS": "ignore", "FEAST_USAGE": "False"}
    return {**os.environ, **own, **QUICK_IMPORT}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "feast.cli.cli", *arguments]


def run(repo: Path, *arguments: str) -> str:
    """What a whole command says: Python starts, runs the hook's line and imports Feast."""
    done = subprocess.run(
        command(*arguments), cwd=repo, env=environment(repo), capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def beside_each_other(repos: list[Path], *words: str) -> list[str]:
    """What the same command says in several repositories at once."""
    with ExitStack() as stack:
        logs = [stack.enter_context((repo / f"{words[0]}.log").open("w+")) for repo in repos]
        running = [
            start_feast([*words], environment(repo), directory=repo, out=log, err=log)
            for repo, log in zip(repos, logs, strict=True)
        ]
        for process in running:
            stack.callback(process.close)
        codes = [process.wait(TIMEOUT_SECONDS) for process in running]
        said = [(repo / f"{words[0]}.log").read_text() for repo in repos]
    assert codes == [0] * len(repos), said
    return said


def feast(repo: Path, *words: str) -> None:
    """A command in a forked process that has Feast imported already."""
    beside_each_other([repo], *words)


def read(repo: Path) -> Any:
    """One row of two views, read in this process."""
    features = ["driver_stats:trips", "customer_stats:score"]
    return FeatureStore(str(repo)).get_online_features(features, [{"driver_id": 1001, "customer": "alice"}]).to_dict()


@pytest.mark.parametrize("online_store", ["embedded"], indirect=True)
def test_the_whole_life_of_a_repository(repo: Path, online_store: dict[str, Any]) -> None:
    assert "customer_stats" in run(repo, "plan")
    assert list(Path(online_store["shm_dir"]).glob("quorin_*")) == []
    feast(repo, "apply")
    feast(repo, "materialize", START.isoformat(), (END - dt.timedelta(days=1)).isoformat())
    assert read(repo) == EARLIER_ALICE
    feast(repo, "materialize-incremental", END.isoformat())
    assert read(repo) == ALICE
    with served(repo, workers=2) as url:
        for _ in range(20):
            assert ask(url, ["customer_stats:score"], {"customer": ["alice", "new"]}) == [1.5, None]
        push(url)
        for _ in range(20):
            assert ask(url, ["customer_stats:score"], {"customer": ["alice", "new"]}) == [7.0, 8.0]
    feast(repo, "teardown")
    assert list(Path(online_store["shm_dir"]).glob("quorin_*")) == []


@pytest.mark.parametrize("online_store", ["redis"], indirect=True)
def test_two_projects_live_side_by_side(online_store: dict[str, Any], tmp_path: Path) -> None:
    """Both on one Redis and in one directory of segments, both written as Arrow; one goes, and the other stays."""
    repos = [make_repo(tmp_path / name, online_store, name, **ARROW) for name in ("shop", "market")]
    shop, market = repos
    beside_each_other(repos, "apply")
    said = beside_each_other(repos, "materialize", START.isoformat(), END.isoformat())
    assert all("12/12" in text for text in said)  # Feast's progress bars
    with served(shop, workers=2) as url:
        push(url)
        reads = counted("shop__customer_stats")
        for _ in range(20):
            assert ask(url, ["customer_stats:score"], {"customer": ["alice", "new"]}) == [7.0, 8.0]
        assert counted("shop__customer_stats") >= reads + 20
    assert in_feasts_metrics(shop, "feast_online_features_status_total", "customer_stats") == {"present": 40.0}
    assert [read(repo) for repo in repos] == [{**ALICE, "score": [7.0]}, ALICE]
    feast(shop, "teardown")
    left = [path.name for path in Path(online_store["shm_dir"]).glob("quorin_*")]
    assert len(left) == 4
    assert all(name.startswith("quorin_market__") for name in left)
    assert read(market) == ALICE
    FeatureStore(str(market)).teardown()
    assert list(Path(online_store["shm_dir"]).glob("quorin_*")) == []


def push(url: str) -> None:
    row = {"customer": ["alice", "new"], "at": [END.isoformat()] * 2, "score": [7.0, 8.0], "city": ["Oslo", None]}
    post(f"{url}/push", {"push_source_name": "customer_push", "df": row, "to": "online"})


def counted(schema: str) -> float:
    """Batches read of a schema, as Quorin's exporter shows them: those of every process of this machine."""
    return metrics.registry.get_sample_value("quorin_batch_reads_total", {"schema": schema}) or 0.0


def in_feasts_metrics(repo: Path, name: str, view: str) -> dict[str, float]:
    """What the workers of ``feast serve --metrics`` counted, by status: what Feast shows on its port, which is always
    8000, from the files that it keeps.
    """
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(repo / "metrics"))
    samples = [sample for family in registry.collect() for sample in family.samples if sample.name == name]
    return {one.labels["status"]: one.value for one in samples if one.labels["feature_view"] == view and one.value}


@contextmanager
def served(repo: Path, *, workers: int) -> Iterator[str]:
    """``feast serve`` on a free port; a new Python, as its exporter reads the environment when it is imported."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = command("serve", "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers), "--metrics")
    (repo / "metrics").mkdir()
    kept = {name: str(repo / "metrics") for name in ("PROMETHEUS_MULTIPROCESS_DIR", "PROMETHEUS_MULTIPROC_DIR")}
    with (repo / "serve.log").open("w") as log:
        server = subprocess.Popen(
            arguments, cwd=repo, env={**environment(repo), **kept}, stdout=log, stderr=log, start_new_session=True
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
            with urllib.request.urlopen(f"{url}/health", timeout=120):  # noqa: S310
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
