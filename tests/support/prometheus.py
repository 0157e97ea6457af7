"""The system's Prometheus, which scrapes a page as often as once a second, and evaluates rules as often."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.support.http import free_port

needs_prometheus = pytest.mark.prometheus


class Prometheus:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of the API."""
        answer = requests.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def values(self, expression: str) -> list[float]:
        """What an expression evaluates to at this moment."""
        return [float(one["value"][1]) for one in self.get("query", query=expression)["result"]]


@contextmanager
def scraping(target: int, rules: Path, folder: Path) -> Iterator[Prometheus]:
    """Prometheus scrapes a port of this machine as the job ``quorin``, and evaluates rules."""
    port = free_port()
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "quorin", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    words = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *words], stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _is_ready(url), what=(folder / "prometheus.log").read_text)
        yield Prometheus(url)
    finally:
        process.terminate()
        process.wait(60)


def wait_until(is_so: Callable[[], bool], *, what: Callable[[], str], seconds: float = 120) -> None:
    """Wait until something is so; what is not, if it is not so in time."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


def _is_ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/-/ready", timeout=10).status_code == 200
    except requests.ConnectionError:
        return False
