"""A server of another node, and connections to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from quorin.engine.routing.connections import Connections
from tests.support.peer_server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.ended.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def connections() -> Iterator[Connections]:
    opened = Connections()
    yield opened
    opened.close()
