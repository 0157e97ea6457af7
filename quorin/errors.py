"""Every error that Quorin raises on purpose.

All derive from :class:`QuorinError` and from a fitting built-in exception, so that code unaware of Quorin can
catch them too. Messages contain the value and what was expected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from quorin.engine.installation import install_command as install_command


class QuorinError(Exception):
    """The base class of all errors in this module."""


class SchemaError(QuorinError, ValueError):
    """A schema or field definition is invalid (name, shape, version, duplicates)."""


class SchemaTypeError(QuorinError, TypeError):
    """A schema or field definition has a part of the wrong Python type."""


class SchemaMismatchError(QuorinError, ValueError):
    """A segment, row or log entry belongs to another schema than the requested one."""


class CorruptSegmentError(QuorinError, ValueError):
    """A file is not a segment of this format, or its header is damaged."""


class SegmentNotFoundError(QuorinError, LookupError):
    """A schema has no current segment, or the segment's file is gone."""


class GenerationNotFoundError(QuorinError, LookupError):
    """A segment has no such generation any more; the message names those that there are."""


class InvalidPinError(QuorinError, ValueError):
    """A pin is no generation, or is of a feature view that there is not; the message names the value."""


class PinLimitError(QuorinError, RuntimeError):
    """As many generations of a segment are pinned as may be; the message names them."""


class SegmentClosedError(QuorinError, ValueError):
    """A segment was used after it was closed."""


class SegmentReadOnlyError(QuorinError, PermissionError):
    """A write was attempted through a read-only segment."""


class SharedMemoryError(QuorinError, OSError):
    """The operating system refused shared memory: no space, no permission, or no such directory."""


class UnknownGroupError(QuorinError, ValueError):
    """``shm_group`` is neither the name of a group nor a gid; the message has the value."""


class CapacityExceededError(QuorinError, RuntimeError):
    """A row does not fit, and the segment cannot grow: growth is disabled, or there is no memory."""


class EntityIdError(QuorinError, ValueError):
    """An entity id is empty, not a string, or not encodable as UTF-8."""


class EntityIdTooLongError(EntityIdError):
    """An entity id has more UTF-8 bytes than the segment's limit."""


class EntityNotFoundError(QuorinError, KeyError):
    """An entity id has no row; :attr:`entity_id` holds the id."""

    def __init__(self, entity_id: str, segment_name: str) -> None:
        super().__init__(entity_id, segment_name)
        self.entity_id = entity_id
        self.segment_name = segment_name

    def __str__(self) -> str:
        return f"no row for entity id {self.entity_id!r} in segment {self.segment_name!r}"


class NotHeldError(QuorinError, LookupError):
    """This node does not hold the :attr:`partition` of an entity, so whether the entity has a row is not known here;
    :attr:`holders` names nodes that hold it, as far as they are known.
    """

    def __init__(self, schema_name: str, partition: int, holders: tuple[str, ...] = ()) -> None:
        super().__init__(schema_name, partition, holders)
        self.schema_name = schema_name
        self.partition = partition
        self.holders = holders

    def __str__(self) -> str:
        where = f"it is held by {', '.join(self.holders)}" if self.holders else "no node is known to hold it"
        return f"partition {self.partition} of {self.schema_name!r} is not held by this node: {where}"


class HoldersUnavailableError(NotHeldError):
    """An entity's partition is not held by this node, and no node that holds it has answered: :attr:`reasons`."""

    def __init__(self, schema_name: str, partition: int, holders: tuple[str, ...], reasons: tuple[str, ...]) -> None:
        super().__init__(schema_name, partition, holders)
        self.args = schema_name, partition, holders, reasons
        self.reasons = reasons

    def __str__(self) -> str:
        return f"{super().__str__()}; {'; '.join(self.reasons)}"


class ChangesForgottenError(QuorinError, LookupError):
    """Changes were asked for since a position at which a segment still had deletions that it has forgotten since:
    :attr:`complete_from` is the first position since which it knows all changes.
    """

    def __init__(self, segment_name: str, position: int, complete_from: int) -> None:
        super().__init__(segment_name, position, complete_from)
        self.segment_name, self.position, self.complete_from = segment_name, position, complete_from

    def __str__(self) -> str:
        return (
            f"segment {self.segment_name!r} does not know all changes since position {self.position}: it has forgotten "
            f"deletions up to position {self.complete_from}; expected a position from there on, or 0 for all rows"
        )


class InconsistentReadError(QuorinError, TimeoutError):
    """Rows of several segments could not be read as of one log position in time; the message names the segment."""


class InvalidBufferError(QuorinError, ValueError):
    """An ``out``, ``found_mask`` or ``fresh_mask`` buffer has the wrong shape, dtype or flags."""


class InvalidMaxAgeError(QuorinError, ValueError):
    """A ``max_age`` is no duration above 0, or is for a field that is not read; the message names the value."""


class InvalidRowError(QuorinError, ValueError):
    """A row, or a column of rows, does not fit its schema; the message names field and value."""


class TensorError(QuorinError, ValueError):
    """A feature's lists cannot become the requested tensor; the message names the feature."""


class UnknownCategoryError(QuorinError, ValueError):
    """A row has a category that a model does not know; the message names row, column and value."""


class WriterLeaseHeldError(QuorinError, RuntimeError):
    """Another process holds a segment's writer lease."""


class WriterFencedError(QuorinError, RuntimeError):
    """This process was a segment's writer and has been overtaken."""


class UpgradeIncompatibleError(QuorinError, ValueError):
    """An upgrade would lose values; :attr:`reasons` names every incompatible field."""

    def __init__(self, schema_name: str, old_version: int, new_version: int, reasons: list[str]) -> None:
        super().__init__(schema_name, old_version, new_version, reasons)
        self.schema_name = schema_name
        self.reasons = reasons
        self._versions = old_version, new_version

    def __str__(self) -> str:
        old, new = self._versions
        return f"schema {self.schema_name!r} cannot go from version {old} to {new}: {'; '.join(self.reasons)}"


class UpgradeConflictError(QuorinError, RuntimeError):
    """A segment or the control plane does not hold the version that an upgrade starts from, or changed meanwhile."""


class UpgradeAbortedError(QuorinError, RuntimeError):
    """An upgrade was aborted; the old schema stays in force, and nothing is lost."""


class ConnectionFailedError(QuorinError, ConnectionError):
    """The control plane is unreachable, or a connection string is invalid; the message holds no secrets."""


class PartitionCountError(QuorinError, ValueError):
    """A number of partitions is not possible, or not that of the deployment; the message names both."""


class PartitionedError(QuorinError, RuntimeError):
    """What was asked for works on one log, and the deployment has several partitions; the message names it."""


class HistoryUnavailableError(ConnectionFailedError):
    """The history's files cannot be listed, read or written; the message names the directory or URL."""


class IncompleteHistoryError(QuorinError, LookupError):
    """The history lacks log positions that a read depends on: :attr:`missing`, pairs of the one before and the last."""

    def __init__(self, message: str, missing: list[tuple[int, int]]) -> None:
        super().__init__(message, missing)
        self.missing = missing

    def __str__(self) -> str:
        return str(self.args[0])


class ServedLogUnavailableError(ConnectionFailedError):
    """The files of a served log cannot be listed, read or written; the message names the directory or URL."""


class SnapshotUnavailableError(ConnectionFailedError):
    """A store of snapshots cannot be listed, read or written; the message names the directory or URL."""


class PeerUnavailableError(ConnectionFailedError):
    """No other node sends its rows: the message says of each that it is unreachable, busy, refuses, or does not fit."""


class CorruptHistoryError(QuorinError, ValueError):
    """A file does not belong to a history, is damaged, or has a field that the schema cannot hold."""


class EmptyDatasetError(QuorinError, LookupError):
    """A history has no rows of a schema, so a segment cannot be hydrated."""


class SegmentConflictError(QuorinError, RuntimeError):
    """Another segment of the schema is current, so this one cannot become current, or is no longer in force."""


HydrationConflictError = SegmentConflictError
"""An alias of :class:`SegmentConflictError`, exported by :mod:`quorin.hydration`."""


class ReplaceConflictError(QuorinError, RuntimeError):
    """Another process is replacing the rows of the schema; the message names it."""


class ReplaceAbortedError(QuorinError, RuntimeError):
    """The rows of a schema were not replaced, and stay as they were; the message says why."""


class PastUnavailableError(QuorinError, LookupError):
    """A past state is no longer known; the message says how far back the log and the history reach."""


class CorruptSnapshotError(QuorinError, ValueError):
    """A file is not a segment's snapshot, or is damaged; the message names it."""


class CheckFailedError(QuorinError, ValueError):
    """A generation does not pass its checks, and is not served; :attr:`failures` has a line for each that failed."""

    def __init__(self, schema_name: str, failures: list[str]) -> None:
        super().__init__(schema_name, failures)
        self.schema_name = schema_name
        self.failures = failures

    def __str__(self) -> str:
        return f"{self.schema_name} does not pass {len(self.failures)} of its checks: {'; '.join(self.failures)}"


class NotPicklableError(QuorinError, TypeError):
    """An object belongs to its process and cannot be pickled; the message says what to pickle instead."""


class LogFullError(QuorinError, RuntimeError):
    """The log is at its limit; the refused entries were not written."""


class LogClosedError(QuorinError, RuntimeError):
    """The log takes no more entries, as the deployment grows to more partitions, and that takes too long."""


class RepartitionConflictError(QuorinError, RuntimeError):
    """The deployment cannot grow to more partitions now: what is in the way is named."""


class NotYetRepartitionedError(QuorinError, TimeoutError):
    """Live nodes do not have the new number of partitions in time; the message names them."""


class InvalidEntryError(QuorinError, ValueError):
    """A log entry cannot be decoded; a consumer makes it a dead letter."""


class TokenError(QuorinError, ValueError):
    """A token is malformed, or of another log than the rows that are read: another deployment's, or one since wiped."""


class NotYetAppliedError(QuorinError, TimeoutError):
    """A position of the log was not applied in time: by this node, which a read waited for, or by all live nodes.

    :attr:`applied` is the position that this node has applied, None after a wait for all; :attr:`nodes` names those
    that lack the position, none after a wait for this one.
    """

    def __init__(
        self,
        schema_name: str,
        position: int,
        timeout_ms: float,
        nodes: Sequence[str] = (),
        applied: int | None = None,
    ) -> None:
        super().__init__(schema_name, position, timeout_ms, nodes, applied)
        self.schema_name, self.position, self.timeout_ms = schema_name, position, timeout_ms
        self.nodes, self.applied = nodes, applied

    def __str__(self) -> str:
        if self.applied is None:
            lacking, where = f"by the nodes {', '.join(self.nodes)}", "there"
        else:
            lacking, where = f"by this node, which is at position {self.applied}", "here"
        return (
            f"position {self.position} of {self.schema_name!r} was not applied within {self.timeout_ms:g} ms "
            f"{lacking}; it shows {where} once the log is applied up to it"
        )


class NotYetUpgradedError(QuorinError, TimeoutError):
    """A schema is upgraded on this node, but was not on all live nodes in time; :attr:`nodes` names the others."""

    def __init__(self, schema_name: str, version: int, timeout_seconds: float, nodes: list[str]) -> None:
        super().__init__(schema_name, version, timeout_seconds, nodes)
        self.schema_name, self.version, self.timeout_seconds, self.nodes = schema_name, version, timeout_seconds, nodes

    def __str__(self) -> str:
        return (
            f"version {self.version} of {self.schema_name!r} is in force on this node, but was not within "
            f"{self.timeout_seconds:g} s on the nodes {', '.join(self.nodes)}; each upgrades when it applies the log"
        )


class StaleReplicaError(QuorinError, RuntimeError):
    """The rows of this node are, or may be, older than a read allows; :attr:`lag_seconds` is infinity if unknown."""

    def __init__(self, subject: str, lag_seconds: float, max_lag_seconds: float) -> None:
        super().__init__(subject, lag_seconds, max_lag_seconds)
        self.subject, self.lag_seconds, self.max_lag_seconds = subject, lag_seconds, max_lag_seconds

    def __str__(self) -> str:
        known = f"{self.lag_seconds:.1f} s" if self.lag_seconds < float("inf") else "an unknown time"
        return (
            f"{self.subject} was last known to be up to date {known} ago on this node, max_lag_seconds is "
            f"{self.max_lag_seconds}: no process of the node applies the log, or the log cannot be reached"
        )


class WriteSyncTimeoutError(QuorinError, TimeoutError):
    """A write is in the log at :attr:`position`, but was not applied to the segment within :attr:`timeout_ms`."""

    def __init__(self, schema_name: str, position: int, timeout_ms: float) -> None:
        super().__init__(schema_name, position, timeout_ms)
        self.schema_name, self.position, self.timeout_ms = schema_name, position, timeout_ms

    def __str__(self) -> str:
        return (
            f"the write to {self.schema_name!r} is in the log at position {self.position}, but no consumer applied it "
            f"within {self.timeout_ms} ms; it is not lost: it shows once a consumer runs"
        )


class RepositoryError(QuorinError, ValueError):
    """The ``feature_store.yaml`` where a command runs cannot be read, or names no store that the command can use."""


class MissingExtraError(QuorinError, ImportError):
    """A library that an optional part needs is not installed; the message has the command that installs it."""

    def __init__(self, extra: str, library: str) -> None:
        super().__init__(extra, library)
        self.extra, self.library = extra, library

    def __str__(self) -> str:
        return f"{self.library} is not installed; the extra {self.extra!r} brings it: {install_command(self.extra)}"


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Import libraries of an extra inside a ``with`` block. :raises MissingExtraError: if one is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library in ("", "quorin", "feast_quorin"):
            raise
        raise MissingExtraError(extra, library) from error
