"""The control plane and the log behind one small interface: Redis in production, one SQLite file by default."""

from typing import TYPE_CHECKING

from quorin.engine.backend.connect import connect, embedded_directory
from quorin.engine.backend.keys import DEFAULT_STREAM_KEY
from quorin.engine.backend.protocols import (
    Applied,
    Backend,
    Beginning,
    Beginnings,
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
    "Applied", "Backend", "Beginning", "Beginnings", "Bounds", "ControlPlane", "DeadLetter", "Fence", "Log",
    "ReadResult", "Tail", "connect", "embedded_directory", "logs",
]  # fmt: skip


def logs(backend: Backend, stream_key: str = DEFAULT_STREAM_KEY) -> list[Log]:
    """The logs of that name, one a partition, in order."""
    count = backend.partitions()
    return [backend.log(stream_key, partition, of=count) for partition in range(count)]
