"""What every rival of the engine can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

Vector = np.ndarray[Any, np.dtype[np.float32]]


class Rival(Protocol):
    """Rows of float32 by id. Filled once, in one process; opened and read in others."""

    name: str

    def fill(self, ids: Sequence[str], rows: Vector) -> None:
        """Hold these rows, one an id."""

    def read(self, entity_id: str) -> Vector:
        """One row, as an array of the caller's own."""
