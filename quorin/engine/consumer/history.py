"""What the consumer needs of a history: the protocol, and the writer that keeps none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from quorin.engine.log.record import Kind

if TYPE_CHECKING:
    import pyarrow as pa

    from quorin.schema import Schema


class OfflineWriter(Protocol):
    """Where the history goes. An entry may be appended more than once, always with the same position."""

    def append(self, schema: Schema, batch: pa.RecordBatch, positions: pa.Array, *, kind: Kind = Kind.upsert) -> None:
        """Take rows in canonical form; ``positions`` (int64) holds the log position of each row."""

    def flush(self) -> None:
        """Make all appended rows durable."""

    def flushed_position(self, schema: Schema) -> int | None:
        """The log position up to which a schema's rows are durable; None if applied rows count as durable."""


@runtime_checkable
class LoadWriter(OfflineWriter, Protocol):
    """A history that also keeps loads, which replace a schema's rows whole. Others take none of their rows."""

    def append(
        self, schema: Schema, batch: pa.RecordBatch, positions: pa.Array, *, kind: Kind = Kind.upsert, load: int = 0
    ) -> None:
        """Take rows; those of a ``load`` count once it is committed."""

    def commit_load(self, schema: Schema, load: int, position: int) -> None:
        """Make durable that a load was committed, after its rows."""


class NoopOfflineWriter:
    """Keeps no history: entries may be trimmed once they are applied. A lost segment is then lost for good."""

    def append(self, schema: Schema, batch: pa.RecordBatch, positions: pa.Array, *, kind: Kind = Kind.upsert) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def flushed_position(self, schema: Schema) -> int | None:  # noqa: ARG002 - the same for all schemas
        """None: all applied rows count as durable."""
        return None
