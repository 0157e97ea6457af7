"""One fixture, two worlds: every contract test runs on the embedded backend and on real Redis servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quorin.engine.backend import Backend, connect
from tests.support.redis_cluster import Cluster, Watched
from tests.support.redis_server import REDIS_EXECUTABLES, RedisServer, emptied


@pytest.fixture(params=["embedded", *REDIS_EXECUTABLES, "cluster", "sentinel"])
def connection(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    redis_servers: Callable[[str], RedisServer],
    clusters: Callable[[], Cluster],
    watched: Callable[[], Watched],
) -> str:
    """What ``connect`` takes: a directory, or a URL of an empty server, of each version that there is, of a cluster, or
    of a service behind Sentinel.
    """
    if request.param == "embedded":
        return str(tmp_path / "store")
    if request.param not in ("cluster", "sentinel"):
        return emptied(redis_servers(request.param))
    servers = clusters() if request.param == "cluster" else watched()
    servers.flush()
    return servers.url


@pytest.fixture
def backend(connection: str) -> Iterator[Backend]:
    opened = connect(connection)
    yield opened
    opened.close()


@pytest.fixture
def wipe(connection: str, clusters: Callable[[], Cluster], watched: Callable[[], Watched]) -> Callable[[], None]:
    """Lose everything, as FLUSHALL or the deletion of the file does."""

    def lose() -> None:
        if "cluster=" in connection:
            clusters().flush()
        elif "+sentinel" in connection:
            watched().flush()
        elif "://" in connection:
            import redis

            with redis.Redis.from_url(connection) as client:
                client.flushall()
        else:
            for path in Path(connection).glob("quorin.db*"):
                path.unlink(missing_ok=True)  # SQLite removes files itself when the last connection ends.

    return lose
