"""The control plane and the log behind one small interface: Redis in production, one SQLite file by default."""

from typing import TYPE_CHECKING

from quorin.engine.backend.connect import connect, embedded_directory
from quorin.engine.backend.protocols import (
    Applied,
    Backend,
    Beginning,
    Bounds,
    ControlPlane,
    DeadLetter,
    Fence,
    Log,
    ReadResult,
    Tail,
)

if TYPE_CHECKING:
    from quorin.engine.backend.connect import Connection as Connection

__all__ = [
    "Applied", "Backend", "Beginning", "Bounds", "ControlPlane", "DeadLetter", "Fence", "Log", "ReadResult", "Tail",
    "connect", "embedded_directory",
]  # fmt: skip
