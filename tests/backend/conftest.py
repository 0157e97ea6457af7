"""One fixture, two worlds: every contract test runs on the embedded backend and on a real Redis server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quorin.backend import Backend, connect


@pytest.fixture(params=["embedded", "redis"])
def connection(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What ``connect`` takes: a directory, or a URL of an empty server."""
    if request.param == "embedded":
        return str(tmp_path / "store")
    return str(request.getfixturevalue("redis_url"))


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
                path.unlink()

    return lose
