"""Random walks: operations of a seed's choice on a deployment, whose nodes end with the same rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest

from tests.support.redis_server import RedisServer


class Walk(Protocol):
    """The operations."""

    def step(self) -> None:
        """One random operation."""

    def converge(self) -> None:
        """Wait until all nodes serve the same rows."""

    def close(self) -> None:
        """End its processes."""


def take_walk(begin: Callable[[int], Walk], seed: int | None, steps: int, *, between: int) -> None:
    """Take the steps, and converge after each ``between`` of them and at the end. An error names the seed."""
    seed = random.randrange(10**6) if seed is None else seed
    walk = begin(seed)
    number = 0
    try:
        for number in range(1, steps + 1):
            walk.step()
            if number % between == 0:
                walk.converge()
        walk.converge()
    except BaseException as error:
        error.add_note(f"seed {seed}, in step {number}")
        raise
    finally:
        walk.close()


@pytest.fixture
def durable_redis() -> Iterator[RedisServer]:
    """A Redis that loses nothing when it is killed."""
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.stop()
