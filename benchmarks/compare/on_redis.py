"""Redis by redis-py: rows as raw bytes, a key each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import redis

if TYPE_CHECKING:
    from benchmarks.compare.rival import Vector

CHUNK = 10_000


class OnRedis:
    """A server at `host:port`; keys begin with `prefix`, so that rows of several widths can be there at once."""

    name = "Redis GET"

    def __init__(self, address: str, prefix: str) -> None:
        host, _, port = address.partition(":")
        self._client: Any = redis.Redis(host, int(port))  # whose stubs promise awaitables as well
        self._prefix = prefix

    def fill(self, ids: Sequence[str], rows: Vector) -> None:
        """By MSET, ten thousand at a time."""
        for start in range(0, len(ids), CHUNK):
            part = zip(ids[start : start + CHUNK], rows[start : start + CHUNK], strict=True)
            self._client.mset({self._prefix + entity_id: row.tobytes() for entity_id, row in part})

    def read(self, entity_id: str) -> Vector:
        """One GET."""
        return np.frombuffer(self._client.get(self._prefix + entity_id), np.float32)

    def keys(self, ids: Sequence[str]) -> list[str]:
        """What `read_many` takes; made outside its time."""
        return [self._prefix + entity_id for entity_id in ids]

    def read_many(self, keys: list[str]) -> Vector:
        """One MGET; the rows' values one after the other."""
        return np.frombuffer(b"".join(self._client.mget(keys)), np.float32)
