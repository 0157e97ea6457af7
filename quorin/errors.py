"""Every error that Quorin raises on purpose.

All derive from :class:`QuorinError` and from the built-in that fits, so that code which knows nothing of Quorin can
still catch them. Their texts carry the values concerned and what was expected.
"""

from __future__ import annotations


class QuorinError(Exception):
    """The root: ``except QuorinError`` catches whatever Quorin refuses."""


class SchemaError(QuorinError, ValueError):
    """A schema or field definition is wrong (name, shape, version, duplicates)."""


class SchemaTypeError(QuorinError, TypeError):
    """A schema or field definition has a part of the wrong Python type."""


class SchemaMismatchError(QuorinError, ValueError):
    """A segment, row or log entry belongs to another schema than the one it is used with."""


class CorruptSegmentError(QuorinError, ValueError):
    """A file is not a segment of this format, or its header is damaged."""


class SegmentNotFoundError(QuorinError, LookupError):
    """No current segment is known for a schema, or its file is gone."""


class SegmentClosedError(QuorinError, ValueError):
    """A segment is used after it was closed."""


class SegmentReadOnlyError(QuorinError, PermissionError):
    """A write was tried through a segment that was opened read-only."""


class SharedMemoryError(QuorinError, OSError):
    """The system refused shared memory: no space, no permission, or no such directory."""


class CapacityExceededError(QuorinError, RuntimeError):
    """A row does not fit and the segment may not grow, or memory is out."""


class EntityIdError(QuorinError, ValueError):
    """An entity id is empty, not text, or not encodable as UTF-8."""


class EntityIdTooLongError(EntityIdError):
    """An entity id is longer, in UTF-8 bytes, than the segment's limit."""


class EntityNotFoundError(QuorinError, KeyError):
    """No row is known for an entity id; :attr:`entity_id` holds it."""

    def __init__(self, entity_id: str, segment_name: str) -> None:
        super().__init__(entity_id, segment_name)
        self.entity_id = entity_id
        self.segment_name = segment_name

    def __str__(self) -> str:
        return f"no row for entity id {self.entity_id!r} in segment {self.segment_name!r}"


class InvalidBufferError(QuorinError, ValueError):
    """An ``out`` or ``found_mask`` buffer has the wrong shape, dtype or flags."""


class InvalidRowError(QuorinError, ValueError):
    """A row, or a column of rows, does not fit its schema; the text names field and value."""


class TensorError(QuorinError, ValueError):
    """Lists of a feature cannot become the tensor that was asked for; the text names the feature."""


class WriterLeaseHeldError(QuorinError, RuntimeError):
    """Another process is the writer of a segment."""


class WriterFencedError(QuorinError, RuntimeError):
    """This process was the writer of a segment and has been overtaken."""


class UpgradeIncompatibleError(QuorinError, ValueError):
    """Rows of one schema cannot become rows of another without loss; :attr:`reasons` names every field in the way."""

    def __init__(self, schema_name: str, old_version: int, new_version: int, reasons: list[str]) -> None:
        super().__init__(schema_name, old_version, new_version, reasons)
        self.schema_name = schema_name
        self.reasons = reasons
        self._versions = old_version, new_version

    def __str__(self) -> str:
        old, new = self._versions
        return f"schema {self.schema_name!r} cannot go from version {old} to {new}: {'; '.join(self.reasons)}"


class UpgradeConflictError(QuorinError, RuntimeError):
    """A segment or the control plane holds another version than an upgrade begins with, or was changed during it."""


class UpgradeAbortedError(QuorinError, RuntimeError):
    """An upgrade was given up; the old schema stays in force, nothing is lost."""


class ConnectionFailedError(QuorinError, ConnectionError):
    """The control plane cannot be reached, or a connection string is wrong; the text names the address, no secrets."""


class HistoryUnavailableError(ConnectionFailedError):
    """The history's files cannot be listed, read or written; the text names the place."""


class CorruptHistoryError(QuorinError, ValueError):
    """A Parquet file is no file of a history, is damaged, or has a field that the schema cannot take."""


class EmptyDatasetError(QuorinError, LookupError):
    """A history has no row of a schema to build a segment from."""


class SegmentConflictError(QuorinError, RuntimeError):
    """Another segment of the schema is current, so this one can't be made so, or is in force no longer."""


HydrationConflictError = SegmentConflictError
"""The name of :class:`SegmentConflictError` in :mod:`quorin.hydration`."""


class CorruptSnapshotError(QuorinError, ValueError):
    """A file is no snapshot of a segment, or it is damaged; the text names it."""


class NotPicklableError(QuorinError, TypeError):
    """An object belongs to its process, and cannot be pickled; the text says what to pickle instead."""


class LogFullError(QuorinError, RuntimeError):
    """The log is at its limit; nothing was written."""


class InvalidEntryError(QuorinError, ValueError):
    """A log entry cannot be decoded; it goes to the dead letters."""


class WriteSyncTimeoutError(QuorinError, TimeoutError):
    """A write was logged at :attr:`position` but not seen in the segment within :attr:`timeout_ms`."""

    def __init__(self, schema_name: str, position: int, timeout_ms: float) -> None:
        super().__init__(schema_name, position, timeout_ms)
        self.schema_name = schema_name
        self.position = position
        self.timeout_ms = timeout_ms

    def __str__(self) -> str:
        return (
            f"the write to {self.schema_name!r} is in the log at position {self.position}, but no consumer applied it "
            f"within {self.timeout_ms} ms; it is not lost: it shows once a consumer runs"
        )
