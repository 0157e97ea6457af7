"""One fixture, two worlds: every contract test runs on the embedded backend and on real Redis servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quorin.engine.backend import Backend, connect
from tests.support.redis_server import REDIS_EXECUTABLES, RedisServer, emptied


@pytest.fixture(params=["embedded", *REDIS_EXECUTABLES])
def connection(request: pytest.FixtureRequest, tmp_path: Path, redis_servers: Callable[[str], RedisServer]) -> str:
    """What ``connect`` takes: a directory, or a URL of an empty server, of each version that there is."""
    return str(tmp_path / "store") if request.param == "embedded" else emptied(redis_servers(request.param))


@pytest.fixture
def backend(connection: str) -> Iterator[Backend]:
    opened = connect(connection)
    yield opened
    opened.close()


@pytest.fixture
def wipe(connection: str, request: pytest.FixtureRequest) -> Callable[[], None]:
    """Lose everything, as FLUSHALL or the deletion of the file does."""

    def lose() -> None:
        if "://" in connection:
            import redis

            with redis.Redis.from_url(connection) as client:
                client.flushall()
        else:
            for path in Path(connection).glob("quorin.db*"):
                path.unlink(missing_ok=True)  # SQLite removes files itself when the last connection ends.

    return lose
