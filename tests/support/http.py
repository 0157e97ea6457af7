"""Servers of HTTP as real processes, and requests to them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.support.forking import Forked, preload, run_module

preload("quorin.cli", "quorin.http", __name__)

ROOT = Path(__file__).parent.parent.parent
START_SECONDS = 120.0


class Running(NamedTuple):
    """A server that answers."""

    url: str
    port: int
    process: Forked


def request_series(shm: Path) -> dict[tuple[str, ...], float]:
    """The metrics of requests as any process shows them whose counters are in a folder: values by name, without its
    ``quorin_http_``, and values of labels in the order of their names.
    """
    script = "from prometheus_client import generate_latest as g; from quorin.metrics import registry as r; "
    done = subprocess.run(
        [sys.executable, "-c", script + "print(g(r).decode())"],
        env={**os.environ, "QUORIN_SHM_DIR": str(shm)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    samples = (sample for family in text_string_to_metric_families(done.stdout) for sample in family.samples)
    return {
        (one.name.removeprefix("quorin_http_"), *(one.labels[name] for name in sorted(one.labels))): one.value
        for one in samples
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def serving(
    words: list[str], log: Path, *, certificate: Path | None = None, until: int = 200, **environment: str
) -> Iterator[Running]:
    """A module of Python as a server; ``{port}`` in the words is its port. It is stopped by SIGTERM, and must obey
    unless the test has killed it. It is up when ``/health`` has the status ``until``.
    """
    port = free_port()
    command = ["python", *(word.replace("{port}", str(port)) for word in words)]
    with log.open("w") as file:
        process = Forked(run_module, command, {**os.environ, **environment}, out=file, err=file)
    try:
        url = f"http{'' if certificate is None else 's'}://127.0.0.1:{port}"
        _wait_until_up(url, process, log, certificate, until)
        yield Running(url, port, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM, -signal.SIGKILL), log.read_text()
    finally:
        process.close()


def _wait_until_up(url: str, process: Forked, log: Path, certificate: Path | None, status: int) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            verify = True if certificate is None else str(certificate)
            if requests.get(url + "/health", timeout=5, verify=verify).status_code == status:
                return
        except (requests.ConnectionError, requests.Timeout):
            time.sleep(0.05)
    raise AssertionError(f"no answer of {url} in {START_SECONDS} s: {log.read_text()}")


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for this machine that nobody signed, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key
