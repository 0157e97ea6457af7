"""Schema upgrades: a segment is carried over to the next version of its schema while it is read and written.

A new schema in the control plane is a pending upgrade, which the writer of the segment applies: :func:`upgrade_schema`
stores the schema, and the consumer that holds the writer lease copies the rows and flips. If no process holds the
lease, this one does. So rows and log position stay together, and nothing is applied to a segment that is being
replaced. An interrupted upgrade leaves the old segment in force, or the new one.

:func:`replace` and :func:`rollback` exchange the rows instead: all of them, on all nodes, each in one flip.
:func:`repartition` grows a deployment to twice as many partitions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quorin.engine.checks.stored import store_checks
from quorin.engine.format import segment as fmt
from quorin.engine.loads.coordinator import abort_load
from quorin.engine.loads.replacing import ReplaceResult, replace, rollback
from quorin.engine.memory import file as mapping
from quorin.engine.memory.generations import heap_bytes_for
from quorin.engine.memory.growth import evolve
from quorin.engine.ops.nodes import late_nodes
from quorin.engine.repartition.growing import RepartitionResult, abort_repartition, repartition
from quorin.engine.rows.compatibility import can_upgrade
from quorin.errors import (
    NotYetRepartitionedError,
    NotYetUpgradedError,
    PastUnavailableError,
    QuorinError,
    RepartitionConflictError,
    ReplaceAbortedError,
    ReplaceConflictError,
    UpgradeAbortedError,
    UpgradeConflictError,
    UpgradeIncompatibleError,
    WriterFencedError,
    WriterLeaseHeldError,
)
from quorin.logging import get_logger
from quorin.schema import fingerprint, schema_to_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from quorin.engine.backend import Backend
    from quorin.engine.memory.view import SegmentView
    from quorin.schema import Schema
    from quorin.shm import Segment, SegmentRegistry

__all__ = [
    "NotYetRepartitionedError",
    "NotYetUpgradedError",
    "PastUnavailableError",
    "RepartitionConflictError",
    "RepartitionResult",
    "ReplaceAbortedError",
    "ReplaceConflictError",
    "ReplaceResult",
    "UpgradeAbortedError",
    "UpgradeConflictError",
    "UpgradeIncompatibleError",
    "UpgradeResult",
    "abort_repartition",
    "abort_replace",
    "can_upgrade",
    "repartition",
    "replace",
    "rollback",
    "upgrade_schema",
]

DEFAULT_TIMEOUT_SECONDS = 60.0
_POLL_SECONDS = 0.02
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class UpgradeResult:
    """What an upgrade did, or, of a dry run, would do. Bytes are the sizes of the segment files."""

    old_segment_name: str
    new_segment_name: str
    entity_count: int
    elapsed_seconds: float
    old_bytes: int
    new_bytes: int
    added: tuple[str, ...]
    widened: tuple[str, ...]
    dropped: tuple[str, ...]
    dry_run: bool = False


def upgrade_schema(
    old: Schema,
    new: Schema,
    registry: SegmentRegistry,
    *,
    dry_run: bool = False,
    wait_for: Literal["node", "nodes"] = "node",
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    progress: Callable[[int, int], None] | None = None,
) -> UpgradeResult:
    """Carry the current segment of ``old`` over to ``new``, and return when the new one is in force.

    Readers go on throughout: those that were opened with ``old`` keep reading its fields. Entries of either version,
    those in the log included, are applied by field name. ``progress`` is called with rows done and rows in all.
    Upgrading again what is upgraded does nothing.

    While the copy is made and another process is the writer, this one waits; it gives up after ``timeout_seconds``
    without any progress, and then the old schema stays. If this process is killed after it has put the new schema into
    the control plane, the next consumer, or the next call, completes the upgrade.

    The other nodes of the deployment upgrade their segments by themselves. With ``wait_for="nodes"`` the call returns
    when all live ones have, which takes at least a second.

    :raises UpgradeIncompatibleError: if :func:`can_upgrade` says no; it names every field that is in the way.
    :raises UpgradeConflictError: if the segment or the control plane holds neither of the two schemas.
    :raises UpgradeAbortedError: if the writer did not do it in time, or there is no room for the new segment.
    :raises SegmentNotFoundError: if no segment is current.
    :raises NotYetUpgradedError: if another node has not upgraded in time; this one has.
    """
    started = time.monotonic()
    possible, reasons = can_upgrade(old, new)
    if not possible:
        raise UpgradeIncompatibleError(old.__name__, old.version, new.version, reasons)
    with registry.open_stored(old.__name__, read_only=dry_run) as segment:
        before = segment.current_view()
        _check_stored(before, old, new)
        if not dry_run:
            pending = _PendingUpgrade(registry, old, new)
            pending.put()
            try:
                _until_in_force(segment, pending, timeout_seconds, progress or _no_progress)
            except BaseException as error:
                if not pending.withdraw(segment) or not isinstance(error, UpgradeAbortedError):
                    raise
            if wait_for == "nodes":
                _wait_for_nodes(registry, new, timeout_seconds)
        after = None if dry_run else segment.current_view()
        return UpgradeResult(
            old_segment_name=before.name,
            new_segment_name=before.name if after is None else after.name,
            entity_count=len(segment),
            elapsed_seconds=time.monotonic() - started,
            old_bytes=before.layout.file_bytes,
            new_bytes=_forecast_bytes(before, new) if after is None else after.layout.file_bytes,
            added=_names(new, old),
            widened=_widened(old, new),
            dropped=_names(old, new),
            dry_run=dry_run,
        )


def abort_replace(schema: Schema, backend: Backend) -> int | None:
    """End the open load of a schema, whoever coordinates it, so that another can begin; the rows stay as they are.

    Returns the position at which the load began; None if none is open. A load whose commit is decided is not aborted:
    it is finished if its coordinator died.

    :raises ConnectionFailedError: if the control plane or a log cannot be reached; calling it again goes on.
    """
    return abort_load(backend, schema.__name__)


def _wait_for_nodes(registry: SegmentRegistry, new: Schema, timeout_seconds: float) -> None:
    name, version = new.__name__, new.version
    late = late_nodes(registry.backend, lambda node: node.version_of(name) < version, timeout_seconds=timeout_seconds)
    if late:
        raise NotYetUpgradedError(name, version, timeout_seconds, late)


class _PendingUpgrade:
    """The new schema in the control plane, until the writer of the segment has applied it."""

    def __init__(self, registry: SegmentRegistry, old: Schema, new: Schema) -> None:
        self.registry, self.old, self.new = registry, old, new
        self._control = registry.backend.control
        self._old, self._new = schema_to_json(old), schema_to_json(new)

    def put(self) -> None:
        """Store it. :raises UpgradeConflictError: if the control plane has neither the old nor the new schema."""
        name = self.old.__name__
        while (stored := self._control.schemas().get(name)) != self._new:
            if stored not in (self._old, None):
                raise UpgradeConflictError(
                    f"the control plane's schema {name!r} is neither version {self.old.version} as given nor version "
                    f"{self.new.version}: {stored!r}"
                )
            if self._control.swap_schema(name, self._new, expected=stored):
                break
        store_checks(self._control, self.new)

    def is_stored(self) -> bool:
        """Whether the control plane still has the new schema."""
        return self._control.schemas().get(self.old.__name__) == self._new

    def withdraw(self, segment: Segment) -> bool:
        """Put the old schema back. True, and nothing has changed, if the upgrade was applied at the last moment."""
        name = self.old.__name__
        try:
            self._control.swap_schema(name, self._old, expected=self._new)
            if not self.is_applied(segment):
                return False
            self._control.swap_schema(name, self._new, expected=self._old)
        except QuorinError as error:
            _log.warning("upgrade_not_withdrawn", schema=name, version=self.new.version, error=str(error))
            return False
        return True

    def is_applied(self, segment: Segment) -> bool:
        """Whether a segment of the new version is in force."""
        return segment.current_view().stored.version >= self.new.version


def _until_in_force(
    segment: Segment, pending: _PendingUpgrade, timeout_seconds: float, progress: Callable[[int, int], None]
) -> None:
    """Apply the upgrade, or wait until the process that holds the writer lease has applied it."""
    done, last_progress = -1, time.monotonic()
    while not pending.is_applied(segment):
        view = segment.current_view()
        total = int(view.header["entity_count"])
        try:
            pending.registry.release_lease(view.name, of_consumers=False)
            segment.acquire_writer_lease()
        except WriterLeaseHeldError:
            copied = _copied_rows(view, pending.new)
            if copied > done:
                done, last_progress = copied, time.monotonic()
                progress(min(copied, total), total)
            elif time.monotonic() - last_progress > timeout_seconds:
                raise UpgradeAbortedError(
                    f"schema {pending.new.__name__!r} is not upgraded: process {int(view.header['writer_pid'])}, which "
                    f"writes to {view.name!r}, did not do it within {timeout_seconds} s. Consumers do it by "
                    f"themselves; others must call Segment.release_writer_lease()"
                ) from None
            _check_is_stored(pending)
            time.sleep(_POLL_SECONDS)
            continue
        except WriterFencedError:
            continue
        if pending.is_applied(segment):
            break
        try:
            evolve(segment, pending.new, still_wanted=pending.is_stored, progress=lambda rows: progress(rows, total))  # noqa: B023 - called at once
        except (WriterFencedError, WriterLeaseHeldError):
            continue
        except QuorinError as error:
            raise UpgradeAbortedError(f"schema {pending.new.__name__!r} is not upgraded: {error}") from error
        _check_is_stored(pending)
    segment.release_writer_lease()
    total = len(segment)
    progress(total, total)


def _no_progress(done: int, total: int) -> None:
    """The progress callback if none was passed."""


def _check_is_stored(pending: _PendingUpgrade) -> None:
    if not pending.is_stored():
        raise UpgradeConflictError(
            f"another process changed the schema {pending.new.__name__!r} in the control plane during the upgrade to "
            f"version {pending.new.version}"
        )


def _check_stored(view: SegmentView, old: Schema, new: Schema) -> None:
    if fingerprint(view.stored) not in (fingerprint(old), fingerprint(new)):
        raise UpgradeConflictError(
            f"segment {view.name!r} holds version {view.stored.version} of {view.stored.__name__!r}, or other fields "
            f"than version {old.version} as given; it can be upgraded from what it holds only"
        )


def _copied_rows(view: SegmentView, new: Schema) -> int:
    """How many rows the writer has copied; -1 if it has not begun."""
    rows = -1
    directory = view.path.parent
    for name in view.segment_name.siblings(directory):
        header = mapping.read_header(directory / str(name)) if name > view.segment_name else None
        if header is not None and int(header["fingerprint"]) == fingerprint(new):
            rows = int(header["entity_count"])
    return rows


def _forecast_bytes(view: SegmentView, new: Schema) -> int:
    if fingerprint(view.stored) == fingerprint(new):
        return view.layout.file_bytes
    layout = fmt.segment_layout(
        new,
        capacity=view.layout.capacity,
        max_id_bytes=view.layout.max_id_bytes,
        schema_bytes=len(schema_to_json(new).encode()),
        heap_bytes=heap_bytes_for(view),
    )
    return layout.file_bytes


def _names(of: Schema, without: Schema) -> tuple[str, ...]:
    others = {field.name for field in without.fields}
    return tuple(field.name for field in of.fields if field.name not in others)


def _widened(old: Schema, new: Schema) -> tuple[str, ...]:
    before = {field.name: field.dtype for field in old.fields}
    return tuple(field.name for field in new.fields if before.get(field.name, field.dtype) is not field.dtype)
