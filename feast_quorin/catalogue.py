"""The segments of a store's views: created, restored if they are lost, and removed.

Each change is one compare-and-set against the state that the process read before it decided. If two processes change
the same view at the same time, one fails and continues with the other's segment.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from feast_quorin.convert.entity_ids import MAX_ID_BYTES
from quorin.errors import SegmentConflictError, SegmentNotFoundError, WriterLeaseHeldError
from quorin.hydration import at_the_first_count, begin, beginnings_of, ends_of, is_of_dropped, rebuild_segment
from quorin.schema import Check, Schema, checks_to_json, schema_from_json, schema_to_json

if TYPE_CHECKING:
    from feast_quorin.config import StoreSettings
    from quorin.offline import ParquetDatasetStore
    from quorin.shm import Segment, SegmentRegistry
    from quorin.snapshot import Peers, SnapshotStore
    from quorin.wal import Beginning

_RETRY_SECONDS = 0.01


class Vacancy(NamedTuple):
    """The state before a process found that a view needs a segment: the end of the log, where the view's rows begin,
    and the segment that was current on this node. A segment for it cannot replace one that another process makes
    meanwhile.
    """

    beginning: Beginning | Sequence[Beginning] | None
    replacing: str | None


class Catalogue:
    """The schemas of a deployment, and their segments on this node."""

    def __init__(
        self,
        settings: StoreSettings,
        registry: SegmentRegistry,
        history: ParquetDatasetStore | None,
        snapshots: SnapshotStore | None,
        peers: Peers | None,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._history = history
        self._snapshots = snapshots
        self._peers = peers
        self._control = registry.backend.control

    def current_schema(self, name: str) -> Schema | None:
        """The schema with this name in the control plane; None if there is none."""
        text = self._control.schemas().get(name)
        return None if text is None else _parsed(text)

    def schema_names(self) -> set[str]:
        """The names under which the control plane has a schema, or this node a segment."""
        return {*self._control.schemas(), *self._registry.node.currents()}

    def is_known(self, name: str) -> bool:
        """Whether the control plane has a schema, or this node a segment, under a name."""
        return self.current_schema(name) is not None or self._registry.node.current(name) is not None

    def swap_schema(self, old: Schema, new: Schema) -> bool:
        """Replace a schema in the control plane; False if ``old`` is no longer there."""
        return self._control.swap_schema(new.__name__, schema_to_json(new), expected=schema_to_json(old))

    def put_checks(self, name: str, checks: Sequence[Check]) -> None:
        """Let a schema have these checks, in place of others."""
        text = checks_to_json(checks) if checks else None
        if self._control.checks().get(name) != text:
            self._control.put_checks(name, text)

    def vacancy(self, name: str) -> Vacancy:
        """Where a new schema and its segment would begin. Call it before :meth:`current_schema`."""
        return Vacancy(ends_of(self._registry), self._registry.node.current(name))

    def create(self, schema: Schema, vacancy: Vacancy) -> None:
        """Store a new schema, and make an empty segment of it current on this node. It applies entries logged after its
        beginning; the other nodes make theirs when they see the schema.

        A crash after the schema is stored leaves it without a segment here, until :meth:`restore`.

        :raises SegmentConflictError: if another process was first; its schema and segment stay.
        :raises WriterLeaseHeldError: if another process writes to the segment that would be replaced.
        """
        beginning = vacancy.beginning
        if not self._registry.create_schema(schema, beginning):
            raise SegmentConflictError(f"another process created the schema {schema.__name__!r} at the same time")
        with at_the_first_count(self._registry, beginning):
            segment = self._registry.create(
                schema, set_current=False, capacity=self._settings.capacity, max_id_bytes=MAX_ID_BYTES
            )
            begin(segment, self._registry, beginning, self._history)
        self._registry.publish(segment, replacing=vacancy.replacing, beginning=beginning, restores=True)
        segment.close()

    def restore(self, name: str) -> None:
        """Build a segment that this node lacks, from a snapshot or the history and for the rest of the log, and make it
        current.

        Does nothing if the control plane has no schema of this name.

        :raises SegmentConflictError: if a segment is in force.
        """
        # In this order: discard() drops the schema first, and then the segment.
        lost = self._registry.vacancy(name)
        beginning = beginnings_of(self._registry.backend, name)
        schema = self.current_schema(name)
        if schema is None:
            return
        with at_the_first_count(self._registry, beginning):
            segment = rebuild_segment(
                schema,
                self._registry,
                history=self._history,
                snapshots=self._snapshots,
                peers=self._peers,
                beginning=beginning,
                capacity=self._settings.capacity,
                max_id_bytes=MAX_ID_BYTES,
            )
        self._registry.publish(segment, replacing=lost, beginning=beginning, restores=True)
        segment.close()

    def discard(self, name: str) -> None:
        """Remove a schema and its current segment.

        The schema is dropped first, because a consumer releases a segment whose schema is not in the control plane. If
        the writer is not a consumer and keeps the lease, the schema is put back. A crash in between leaves a current
        segment without a schema, which the next call removes.

        :raises WriterLeaseHeldError: if another process keeps the writer lease for ``timeout_ms``.
        """
        deadline = time.monotonic() + self._settings.timeout_ms / 1000
        current, stored = self._registry.node.current(name), self._control.schemas().get(name)
        try:
            segment = self._registry.open_stored(name, read_only=False)
        except SegmentNotFoundError:
            self._drop(name, stored)
            if current is not None:  # Leaves a segment that another process made meanwhile.
                self._registry.node.clear(name, expected=current)
        else:
            with segment:
                self._drop(name, stored)
                self._discard(segment, stored, deadline)

    def is_left(self, name: str) -> bool:
        """Whether the segment here is of a view that was dropped, and is stored again since."""
        return is_of_dropped(self._registry, name)

    def discard_left(self, name: str, vacancy: Vacancy) -> None:
        """Remove the segment that was current here in ``vacancy``, of a schema that was dropped, as on another machine.

        :raises SegmentConflictError: if another one is current by now; that one stays.
        :raises WriterLeaseHeldError: if another process keeps the writer lease for ``timeout_ms``, though a consumer
            releases a segment whose schema was dropped.
        """
        deadline = time.monotonic() + self._settings.timeout_ms / 1000
        left = vacancy.replacing
        if left is None:
            return
        try:
            segment = self._registry.open_stored(name, read_only=False)
        except SegmentNotFoundError:
            self._registry.node.clear(name, expected=left)
            return
        with segment:
            # In this order: what is open is what was current before, or of its line.
            if self._registry.node.current(name) != left:
                raise SegmentConflictError(f"another process replaced the segment {left!r} at the same time")
            self._discard(segment, None, deadline)

    def _drop(self, name: str, stored: str | None) -> None:
        if stored is not None:
            self._control.drop_schema(name, expected=stored)

    def _discard(self, segment: Segment, stored: str | None, deadline: float) -> None:
        while True:
            try:
                self._registry.discard(segment)
                return
            except WriterLeaseHeldError:
                if time.monotonic() >= deadline:
                    if stored is not None:
                        self._control.swap_schema(segment.schema.__name__, stored, expected=None)
                    raise
                time.sleep(_RETRY_SECONDS)
            except SegmentNotFoundError:  # Another process discarded it.
                return


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Schema:
    return schema_from_json(text)
