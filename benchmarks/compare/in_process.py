"""A dict of arrays in the process itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from benchmarks.compare.rival import Vector


class InProcess:
    """The least that Python can do: nothing is shared, and every process fills its own."""

    name = "dict[id].copy()"

    def __init__(self) -> None:
        self.rows: dict[str, Vector] = {}

    def fill(self, ids: Sequence[str], rows: Vector) -> None:
        """Each row an array of its own."""
        self.rows = dict(zip(ids, [row.copy() for row in rows], strict=True))

    def read(self, entity_id: str) -> Vector:
        """A copy, as the caller may change it."""
        return self.rows[entity_id].copy()

    def read_many(self, ids: Sequence[str]) -> Vector:
        """Rows below each other."""
        return np.stack([self.rows[entity_id] for entity_id in ids])
