"""What the consumer needs of a history: the protocol, and the writer that keeps none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from quorin.engine.log.record import Kind
from quorin.errors import PartitionedError

if TYPE_CHECKING:
    from collections.abc import Iterable

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


@runtime_checkable
class ConcurrentWriter(OfflineWriter, Protocol):
    """A history that is flushed in one thread while another appends to it. Others keep the consumer from applying
    meanwhile.
    """

    flushes_concurrently: bool


@runtime_checkable
class CompleteWriter(OfflineWriter, Protocol):
    """A history that records how far it is complete. Of others nobody knows it when the log is trimmed."""

    def record_complete(self, schemas: Iterable[Schema], position: int) -> None:
        """Make durable that all rows of these schemas up to a position are durable."""


@runtime_checkable
class PartitionedWriter(OfflineWriter, Protocol):
    """A history that can be kept for each partition apart."""

    def of_partition(self, partition: int, count: int) -> OfflineWriter:
        """The history of one partition of ``count``."""


class NoopOfflineWriter:
    """Keeps no history: entries may be trimmed once they are applied. A lost segment is then lost for good."""

    def append(self, schema: Schema, batch: pa.RecordBatch, positions: pa.Array, *, kind: Kind = Kind.upsert) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def flushed_position(self, schema: Schema) -> int | None:  # noqa: ARG002 - the same for all schemas
        """None: all applied rows count as durable."""
        return None

    def of_partition(self, partition: int, count: int) -> NoopOfflineWriter:  # noqa: ARG002 - the same for all
        """Itself."""
        return self


def history_of_partition(history: OfflineWriter | None, partition: int, count: int) -> OfflineWriter | None:
    """The part of a history that one partition's consumer writes.

    :raises PartitionedError: if there are several partitions, and the history has no ``of_partition``.
    """
    if history is None or isinstance(history, PartitionedWriter):
        return None if history is None else history.of_partition(partition, count)
    if count == 1:
        return history
    raise PartitionedError(
        f"a deployment of {count} partitions needs a history with a method of_partition(partition, count); "
        f"{type(history).__name__} has none"
    )
