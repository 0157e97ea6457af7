"""LMDB: rows as raw bytes in a memory-mapped file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import numpy as np

if TYPE_CHECKING:
    from benchmarks.compare.rival import Vector


class OnLmdb:
    """Without read-ahead and with one long reading transaction: the fastest way that its manual names."""

    name = "LMDB get"

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "lmdb"

    def fill(self, ids: Sequence[str], rows: Vector) -> None:
        """All in one transaction."""
        with self._open() as environment, environment.begin(write=True) as transaction:
            transaction.cursor().putmulti([(key.encode(), row.tobytes()) for key, row in zip(ids, rows, strict=True)])

    def read(self, entity_id: str) -> Vector:
        """A copy: the map's own bytes do not outlive the transaction."""
        found: Any = self._reading.get(entity_id.encode())
        return np.frombuffer(found, np.float32).copy()

    @cached_property
    def _reading(self) -> lmdb.Transaction:
        return self._open().begin(buffers=True)

    def _open(self) -> lmdb.Environment:
        return lmdb.open(str(self._directory), map_size=1 << 33, readahead=False, sync=False)
