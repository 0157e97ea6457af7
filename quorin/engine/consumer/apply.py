"""Apply entries of the log to segments and history: decode them, merge them into larger batches, bury bad ones."""

from __future__ import annotations

import time
from itertools import groupby
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from quorin import metrics
from quorin.engine.consumer.entry_run import Destination, Entry, EntryRun
from quorin.engine.consumer.history import LoadWriter
from quorin.engine.consumer.log_position import log_position_of
from quorin.engine.consumer.plan import SchemaPositions, is_all
from quorin.engine.consumer.single_rows import SingleRows
from quorin.engine.counting import counters
from quorin.engine.log.record import Kind, decode, encode, fingerprint_bytes, is_of_load, peek, translate, written_at
from quorin.engine.log.record_fast import decode_alike, likeness, template_of
from quorin.engine.memory.pauses import Pauses
from quorin.engine.rows.column import number_array
from quorin.errors import EntityIdError, EntityIdTooLongError, InvalidEntryError, InvalidRowError
from quorin.layout import apply_batch
from quorin.logging import get_logger
from quorin.schema import schema_to_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from quorin.engine.backend import ControlPlane, Log, Tail
    from quorin.engine.consumer.historian import Historian
    from quorin.engine.consumer.history import OfflineWriter
    from quorin.engine.consumer.target import Target
    from quorin.engine.log.record import Record
    from quorin.engine.log.record_fast import Template
    from quorin.schema import Schema

MAX_UNBATCHED_ROWS = 8
"""Up to this number, rows are applied faster one by one than as one batch."""
MAX_CACHED_SINGLE_ROWS = 256
MAX_SEEN_VERSIONS = 4096

_log = get_logger(__name__)


class Applier:
    """Applies entries; those that cannot be applied become dead letters of the log, with the reason.

    Rows of loads go into the history only; :class:`quorin.engine.consumer.loads.Loads` stages them. One without a
    historian applies entries a second time, to a segment that is not in force: it counts nothing, and buries nothing.
    """

    def __init__(
        self,
        log: Log,
        control: ControlPlane,
        historian: Historian | None,
        partition: int | None = None,
        pauses: Pauses | None = None,
    ) -> None:
        self._log = log
        self._partition = partition
        self._control = control
        self._historian = historian
        self.appended: dict[Schema, int] = {}
        """The last position that went into the history, for each schema with rows that may not be durable yet."""
        self._known_names: set[str] = set()
        self._seen_versions: set[bytes] = set()
        self._applied_here: Collection[str] = ()
        self._single_rows: dict[tuple[Template, Schema], SingleRows | None] = {}
        self._pauses = Pauses() if pauses is None else pauses

    @property
    def _history(self) -> OfflineWriter | None:
        return None if self._historian is None else self._historian.history

    def sees_new_versions(self, entries: list[Entry]) -> bool:
        """Whether entries are of a schema, or a version of one, that no entry was before."""
        versions = {fingerprint_bytes(payload) for _, payload in entries} - self._seen_versions
        if len(self._seen_versions) > MAX_SEEN_VERSIONS:
            self._seen_versions.clear()
        self._seen_versions |= versions
        return bool(versions)

    def apply(self, entries: list[Entry], targets: Mapping[str, Destination], cursors: SchemaPositions) -> int:
        """Apply entries in the order of the log. Returns the number of rows that changed a segment.

        ``targets`` are the segments to write to, by schema name; entries that a cursor has passed are skipped.

        :raises ConnectionFailedError: if a dead letter cannot be kept. Applying all entries again is safe.
        :raises WriterFencedError: if another process has taken a segment over.
        """
        self._applied_here = targets.keys()
        self._pauses.take(target.opened for target in targets.values())
        known = {name: log_position_of(target.opened, self._partition).position for name, target in targets.items()}
        if entries and entries[0][0] <= max(known.values(), default=0):
            # Entries that are read again for the history. A load may have replaced what they did to the segment.
            again = [entry for entry in entries if _is_known(entry, known)]
            self._apply(again, targets, cursors, changes=False)
            entries = [entry for entry in entries if not _is_known(entry, known)]
        return self._apply(entries, targets, cursors, changes=True)

    def _apply(
        self, entries: list[Entry], targets: Mapping[str, Destination], cursors: SchemaPositions, *, changes: bool
    ) -> int:
        applied, run = 0, EntryRun(changes=changes)
        for _, neighbours in groupby(entries, key=_likeness):
            alike = list(neighbours)
            if changes and len(alike) <= MAX_UNBATCHED_ROWS:
                unbatched = self._single_rows_for(alike, targets, cursors)
                if unbatched is not None:
                    # The rows gathered so far come first: entries are applied in the order of the log.
                    applied += self._apply_run(run) + self._apply_unbatched(*unbatched, alike)
                    run = EntryRun()
                    continue
            for target, record, batch, part in self._decoded(alike, targets, cursors):
                if not run.takes(target, record, batch):
                    applied += self._apply_run(run)
                    run = EntryRun(changes=changes)
                run.add(target, record, batch, part)
        return applied + self._apply_run(run)

    def apply_tail(self, tail: Tail, targets: list[Target]) -> int | None:
        """Apply what an append saw of the log to the one segment there is, and publish the position.

        Returns the number of rows that changed the segment; None, having done nothing, if the tail may not be all, or
        if there is more than one segment, or its lease is not held.
        """
        if len(targets) != 1 or not targets[0].holds_lease:
            return None
        if any(is_of_load(payload) for _, payload in tail.found.entries):
            return None
        (target,) = targets
        segment = target.opened
        with segment.writing:
            # Position and schema change under this lock only: what is compared here still holds below.
            stored, position, log_identity = segment.writing_view().stored, segment.position, segment.log_identity
            if stored is not target.schema:
                return None
            if not is_all(tail, position, log_identity=log_identity, schema=schema_to_json(stored)):
                return None
            name = stored.__name__
            applied = self.apply(tail.found.entries, {name: target}, SchemaPositions({name: position}))
            segment.commit_position(tail.found.through, tail.identity)
        return applied

    def _single_rows_for(
        self, entries: list[Entry], targets: Mapping[str, Destination], cursors: SchemaPositions
    ) -> tuple[Destination, SingleRows] | None:
        """What applies all of these entries without decoding them; None if that is not possible for all of them."""
        template = template_of([payload for _, payload in entries])
        target = None if template is None else targets.get(template.schema_name)
        if template is None or target is None or not cursors.wants(template.schema_name, entries[0][0]):
            return None
        view = target.opened.writing_view()
        if view.stored is not target.schema:
            # The segment holds another version than the target: the record's columns may not be its own.
            return None
        key = (template, target.schema)
        if key not in self._single_rows:
            if len(self._single_rows) >= MAX_CACHED_SINGLE_ROWS:
                self._single_rows.clear()
            self._single_rows[key] = SingleRows(*key) if SingleRows.can_apply(*key) else None
        rows, limit = self._single_rows[key], view.layout.max_id_bytes
        if rows is None or not all(rows.takes(payload, limit) for _, payload in entries):
            return None
        return target, rows

    def _apply_unbatched(self, target: Destination, rows: SingleRows, entries: list[Entry]) -> int:
        applied = rows.apply(target.opened, entries)
        if (history := self._history) is not None:
            payloads = [payload for _, payload in entries]
            record = decode_alike(payloads)
            assert record is not None  # noqa: S101 - they fit a template, and their ids are text
            positions = number_array([position for position, _ in entries], pa.int64())
            history.append(target.schema, record.batch, positions, kind=record.kind)
            self.appended[target.schema] = entries[-1][0]
        delay = max(0, time.time_ns() - written_at(entries[-1][1]))
        self._count(target.schema.__name__, applied, len(entries) - applied, delay)
        return applied

    def _decoded(
        self, entries: list[Entry], targets: Mapping[str, Destination], cursors: SchemaPositions
    ) -> Iterator[tuple[Destination, Record, pa.RecordBatch, list[Entry]]]:
        """Those of neighbouring entries that are to be applied, merged if they are alike: batches in the form of their
        target's schema, and the entries of each batch.
        """
        together = self._decoded_together(entries, targets, cursors)
        if together is not None:
            yield together
            return
        for entry in entries:
            position, payload = entry
            try:
                name = peek(payload).schema_name
                if name not in targets:
                    self._check_known(name)
                elif cursors.wants(name, position):
                    record = decode(payload)
                    yield targets[name], record, translate(record, targets[name].schema), [entry]
            except InvalidEntryError as error:
                self._bury(position, payload, error)

    def _decoded_together(
        self, entries: list[Entry], targets: Mapping[str, Destination], cursors: SchemaPositions
    ) -> tuple[Destination, Record, pa.RecordBatch, list[Entry]] | None:
        record = decode_alike([payload for _, payload in entries])
        target = None if record is None else targets.get(record.schema_name)
        if record is None or target is None or not cursors.wants(record.schema_name, entries[0][0]):
            return None
        try:
            return target, record, translate(record, target.schema), entries
        except InvalidEntryError:
            return None

    def _check_known(self, name: str) -> None:
        """Leave entries of a known schema to its consumer. :raises InvalidEntryError: if the schema is unknown."""
        if name not in self._known_names:
            # Only an unknown name costs a read of the control plane.
            self._known_names = set(self._control.schemas())
        if name not in self._known_names:
            raise InvalidEntryError(f"schema {name!r} is unknown to the control plane")

    def _apply_run(self, run: EntryRun) -> int:
        """Apply entries as one batch; if a row is refused, one by one, to find the bad entry."""
        if run.target is None:
            return 0
        name, batch = run.target.schema.__name__, run.merged()
        try:
            _check_lengths(run, batch)
            applied = _apply_batch(run, batch)
        except (InvalidRowError, EntityIdError) as error:
            if len(run.entries) > 1:
                # Rows of the batch that took effect already change nothing when they are applied again.
                return sum(self._apply_run(single) for single in run.singles())
            if not isinstance(error, EntityIdTooLongError):
                self._bury(*run.entries[0], error)
                return 0
            batch = self._without_rejected(run, batch)
            applied = _apply_batch(run, batch)
        if (history := self._history) is not None:
            # A single entry may have lost rejected rows, so its positions are counted by the batch.
            single = len(run.entries) == 1
            positions = pa.repeat(run.entries[0][0], batch.num_rows) if single else run.row_positions()
            if run.kind is not Kind.load:
                history.append(run.target.schema, batch, positions, kind=run.kind)
            elif isinstance(history, LoadWriter):
                history.append(run.target.schema, batch, positions, load=run.load)
            self.appended[run.target.schema] = run.entries[-1][0]
        if run.changes and run.kind is not Kind.load:
            self._count(name, applied, batch.num_rows - applied, max(0, time.time_ns() - run.written_ns))
        return applied

    def _count(self, name: str, applied: int, ignored: int, delay_ns: int) -> None:
        if self._historian is not None:
            metrics.count_applied(name, applied, ignored, delay_ns)

    def _without_rejected(self, run: EntryRun, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of one entry whose ids fit the segment; the other rows become one dead letter."""
        assert run.target is not None  # noqa: S101 - a run with batches has a target
        limit = run.target.opened.current_view().layout.max_id_bytes
        fitting = pc.less_equal(pc.binary_length(batch.column(0)), limit)
        rejected = batch.filter(pc.invert(fitting))
        payload = encode(run.kind, run.target.schema, rejected, written_ns=run.written_ns, load=run.load)
        reason = f"{rejected.num_rows} entity ids have more than the segment's limit of {limit} bytes in UTF-8"
        self._bury(run.entries[0][0], payload, InvalidEntryError(reason))
        return batch.filter(fitting)

    def _bury(self, position: int, payload: bytes, error: Exception) -> None:
        if self._historian is None:  # The one that applies the same entries to the serving segment buries them.
            return
        dropped = self._log.bury(position, payload, str(error))
        try:
            name = peek(payload).schema_name
        except InvalidEntryError:
            name = counters.UNKNOWN
        # The name of an unknown schema must not become a metric series: producers can make up any number of names.
        metrics.dead_letters.labels(name if name in self._applied_here else counters.UNKNOWN).inc()
        _log.error("dead_letter", schema=name, position=position, reason=str(error))
        if dropped:
            metrics.dead_letters_dropped.inc(dropped)
            _log.error("dead_letters_dropped", count=dropped, why="there are too many; the oldest were removed")


def _likeness(entry: Entry) -> tuple[int, bytes, bytes]:
    return likeness(entry[1])


def _is_known(entry: Entry, known: Mapping[str, int]) -> bool:
    """Whether the segment of an entry's schema, at one of the positions ``known``, has the entry."""
    try:
        return entry[0] <= known.get(peek(entry[1]).schema_name, 0)
    except InvalidEntryError:
        return False


def _check_lengths(run: EntryRun, batch: pa.RecordBatch) -> None:
    """Refuse what :func:`_apply_batch` would, in rows that it does not write to the segment."""
    assert run.target is not None  # noqa: S101 - a run with batches has a target
    if run.changes and run.kind is not Kind.load:
        return
    limit, longest = run.target.opened.current_view().layout.max_id_bytes, pc.max(pc.binary_length(batch.column(0)))
    if batch.num_rows and longest.as_py() > limit:
        raise EntityIdTooLongError(f"an entity id has {longest} bytes in UTF-8, over the segment's limit of {limit}")


def _apply_batch(run: EntryRun, batch: pa.RecordBatch) -> int:
    assert run.target is not None  # noqa: S101 - a run with batches has a target
    if not run.changes or run.kind is Kind.load or (run.kind is Kind.partial and batch.num_columns == 2):
        return 0
    # A single entry may have lost rejected rows, so its one position goes with all of its rows.
    position = run.entries[0][0] if len(run.entries) == 1 else run.row_positions()
    return apply_batch(run.target.opened, batch, position=position, kind=run.kind)
