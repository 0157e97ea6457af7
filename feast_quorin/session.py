"""One process's connection to the engine: segments to read, the log to write to, and inline application.

An :class:`Engine` is made when a store is first used and made anew in a forked child. It holds no thread.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from feast_quorin.apply import apply_view, check_entity
from feast_quorin.catalogue import Catalogue
from quorin import assembly
from quorin.errors import (
    EntityIdError,
    InvalidRowError,
    QuorinError,
    SchemaMismatchError,
    SegmentClosedError,
    SegmentConflictError,
    SegmentNotFoundError,
    WriterFencedError,
    WriterLeaseHeldError,
    WriteSyncTimeoutError,
)
from quorin.evolution import upgrade_schema
from quorin.logging import get_logger
from quorin.offline import ParquetDatasetStore
from quorin.shm import Segment, SegmentRegistry
from quorin.wal import WALProducer, position_at
from quorin.wal_consumer import WALConsumer

if TYPE_CHECKING:
    import pyarrow as pa

    from feast_quorin.config import StoreSettings
    from feast_quorin.views import StoredView
    from quorin.assembly import Columns
    from quorin.schema import Schema
    from quorin.wal import Tail

Answer = TypeVar("Answer")

_ATTEMPTS = 6
_RETRY_SECONDS = 0.01
_POLL_SECONDS = (0.0002, 0.002)

_log = get_logger(__name__)


class Engine:
    """Everything that one process needs to read and write views. Threads may share it.

    :raises ConnectionFailedError: if the control plane cannot be reached; the text names the address.
    """

    def __init__(self, settings: StoreSettings, connection: str, history: str | None = None) -> None:
        self.pid = os.getpid()
        self._settings = settings
        if settings.redis_url is None:
            with suppress(OSError):  # The engine says what is wrong with the directory, if anything is.
                Path(connection).parent.mkdir(exist_ok=True)
        self.registry = SegmentRegistry(connection, shm_dir=settings.shm_dir)
        self._log = self.registry.backend.log()
        self._history = None if history is None else ParquetDatasetStore(history)
        self.catalogue = Catalogue(settings, self.registry, self._history)
        self._producer = WALProducer(self.registry.backend, registry=self.registry)
        self._readers: dict[str, Segment] = {}
        self.opened = object()
        """Another one whenever reads of some view go to another segment than before."""
        self._writers: dict[str, Segment] = {}
        self._consumers: dict[str, tuple[Segment, WALConsumer]] = {}
        self._applied_elsewhere: set[str] = set()
        self._known: dict[str, Schema] = {}
        self._opening = threading.Lock()
        self._applying = threading.Lock()

    def read(self, view: StoredView, ids: Sequence[str], fields: Sequence[str]) -> tuple[list[str], pa.RecordBatch]:
        """The named fields of entities, as :func:`quorin.assembly.read` gives them, and which of them the segment has.

        Follows a segment that was replaced, even by one with other fields.

        :raises SegmentNotFoundError: if the view was never applied, or was removed.
        """

        def read_kept(segment: Segment) -> tuple[list[str], pa.RecordBatch]:
            stored = {field.name for field in segment.schema.fields}
            kept = [name for name in fields if name in stored]
            return kept, self.reader_of(segment, kept)(ids).to_batch()

        return self.follow(view, read_kept)

    def reader_of(self, segment: Segment, fields: Sequence[str]) -> Callable[[Any], Columns]:
        """What reads fields of a segment's rows as columns; rows past ``key_ttl_seconds`` are not found."""
        seconds = self._settings.key_ttl_seconds
        if not seconds:
            return assembly.column_reader(segment, fields)
        read = assembly.column_reader(segment, fields, positions=True)

        def read_living(ids: Any) -> Columns:
            columns = read(ids)
            columns.drop(columns.found & (columns.positions < position_at(time.time_ns() // 10**6 - 1000 * seconds)))
            return columns

        return read_living

    @property
    def rows_expire(self) -> bool:
        """Whether rows are forgotten some time after they were written."""
        return self._settings.key_ttl_seconds is not None

    def follow(self, view: StoredView, action: Callable[[Segment], Answer]) -> Answer:
        """Do something with a view's current segment, and again if the segment is replaced by one with other fields.

        :raises SegmentNotFoundError: if the view was never applied, or was removed.
        """
        for _ in range(_ATTEMPTS):
            try:
                return action(self.reader(view))
            except (SchemaMismatchError, SegmentNotFoundError):
                if not self.forget(view):
                    raise
        raise SegmentNotFoundError(
            f"feature view {view.name!r}: its segment was replaced {_ATTEMPTS} times in one read"
        )

    def write(self, view: StoredView, batch: pa.RecordBatch, *, partial: bool = False) -> int:
        """Append rows to the log; gives the position of the last. A view that was never applied gets its segment here,
        and fields that its segment does not have are added, unless this process only logs: its machine need not be the
        segment's.

        Fields that a ``partial`` batch does not have stay as they are.

        :raises LogFullError: if the log is at its limit.
        """
        self._make_known(view)
        try:
            return self._producer.write_many(view.schema, batch, partial=partial)
        except (InvalidRowError, EntityIdError) as error:  # What only the engine checks, such as text that is no UTF-8.
            raise type(error)(f"view {view.name!r}: {error}") from None

    def write_row(
        self, view: StoredView, entity_id: str, values: Mapping[str, Any], event_time_ns: int
    ) -> tuple[int, Tail | None]:
        """What :meth:`write` does, for one row with a value for every field; and for :meth:`settle` what the log then
        has for the view, if this process looks like the one that applies it.
        """
        self._make_known(view)
        row, after = (view.schema, entity_id, values, event_time_ns), self._applied_here(view)
        if after is None:
            return self._producer.write(*row), None
        return self._producer.write_and_read(*row, after=after)

    def _applied_here(self, view: StoredView) -> int | None:
        """Up to where a view is applied, if this process was the last that did it, as far as it knows."""
        name = view.schema.__name__
        segment = self._writers.get(name)
        is_elsewhere = self._settings.consumer == "external" or name in self._applied_elsewhere
        if segment is None or is_elsewhere or self._history is not None:
            return None
        try:
            return segment.position
        except (SchemaMismatchError, SegmentClosedError, SegmentNotFoundError):
            return None

    def _make_known(self, view: StoredView) -> None:
        name = view.schema.__name__
        opened = self._writers.get(name, self._readers.get(name))
        # What is logged is applied, whoever logs it; a segment that is gone may have made room for one of other keys.
        is_current = opened is None or self._is_there(opened)
        if self._known.get(name) is not view.schema or not is_current:
            known = self.catalogue.current_schema(name)
            if known is not None:
                check_entity(view, known)
            only_logs = self._settings.consumer == "external" and self._settings.wait == "logged"
            if known is None or not (only_logs or _names(view.schema) <= _names(known)):
                apply_view(self, view, drops=False)
            self._known[name] = view.schema

    def settle(self, view: StoredView, position: int, tail: Tail | None = None) -> None:
        """Return when what was logged up to ``position`` is where ``wait`` says; applies it here unless that is
        others' job. ``tail`` is what :meth:`write_row` gave for the last row.

        :raises WriteSyncTimeoutError: if nothing was applied for ``timeout_ms``. The write stays in the log.
        """
        wait = self._settings.wait == "applied"
        if self._settings.consumer == "external":
            if wait:
                self._until(view, position, lambda: False)
        elif wait:
            if not self._drain(view, tail):
                self._until(view, position, lambda: self._drain(view))
        else:
            self._drain(view, tail, relies=True)

    def reader(self, view: StoredView) -> Segment:
        """The view's current segment, open for reading; opened anew when its file is gone."""
        name = view.schema.__name__
        segment = self._readers.get(name)
        if segment is None or not self._is_there(segment):
            with self._opening:
                segment = self._readers[name] = self._open(view, read_only=True)
                self.opened = object()
            if self._settings.consumer != "external":
                self._catch_up(view)
        return segment

    def _catch_up(self, view: StoredView) -> None:
        """Apply what was logged and not applied yet, or wait for the process that is doing it.

        A read needs nothing of that, no room to grow, no permission to write, no log: whatever stands in the way, it
        serves what is there.
        """
        try:
            last = self._log.bounds().last
            found = self._log.read(self._position(view), schema_names=[view.schema.__name__])
            if not found.entries and found.through >= last:
                return
            # If other views' entries hid the end of the log, this moves the position past them, for the next process.
            if not self._drain(view) and self._is_behind(view, last):
                self._until(view, last, lambda: self._drain(view))
        except QuorinError as error:
            _log.warning("read_not_caught_up", view=view.name, error=str(error))

    def is_open(self, name: str, segment: Segment) -> bool:
        """Whether a segment is the one that reads of the view with this schema name go to, as far as we know here."""
        return self._readers.get(name) is segment

    def forget(self, view: StoredView) -> bool:
        """Open the view's segment anew at the next read; False if none is open."""
        known = self._readers.pop(view.schema.__name__, None) is not None
        self.opened = object()
        return known

    def upgrade(self, old: Schema, new: Schema) -> None:
        """Carry the current segment over to the next version of its schema.

        :raises UpgradeAbortedError: if another process goes on writing to it for ``timeout_ms`` and does not do it.
        :raises UpgradeConflictError: if another process changes it to something else at the same time.
        """
        upgrade_schema(old, new, self.registry, timeout_seconds=self._settings.timeout_ms / 1000)
        self._known.pop(old.__name__, None)

    def discard(self, name: str) -> None:
        """Remove a schema and its segment, as :meth:`Catalogue.discard` does, and what this process has of it.

        :raises WriterLeaseHeldError: if another process goes on writing to the segment for ``timeout_ms``.
        """
        with self._applying:
            self.catalogue.discard(name)
        self._readers.pop(name, None)
        self.opened = object()
        self._writers.pop(name, None)
        self._consumers.pop(name, None)
        self._known.pop(name, None)

    @contextmanager
    def writer(self, view: StoredView) -> Iterator[Segment]:
        """The view's current segment with its writer lease.

        :raises WriterLeaseHeldError: if another process has the lease.
        """
        with self._applying:
            segment = self._leased(view)
            try:
                yield segment
            finally:
                segment.release_writer_lease()

    def _leased(self, view: StoredView) -> Segment:
        name = view.schema.__name__
        while True:
            segment = self._writers.get(name)
            if segment is None:
                segment = self._writers[name] = self._open(view, read_only=False)
            with suppress(SchemaMismatchError, SegmentClosedError, SegmentNotFoundError, WriterFencedError):
                if segment.writing_view().stored is segment.schema:
                    return segment
                segment.release_writer_lease()
            # It was removed, or replaced by one with other fields: open anew.
            del self._writers[name]
            self._consumers.pop(name, None)

    def _is_there(self, segment: Segment) -> bool:
        """Whether an open segment is still in force; False if it was removed, or replaced by one with other fields."""
        try:
            is_same = segment.stored_schema is segment.schema
            return is_same and _file(self._settings.shm_dir, segment.name).exists()
        except (SchemaMismatchError, SegmentClosedError, SegmentNotFoundError):
            return False

    def _open(self, view: StoredView, *, read_only: bool) -> Segment:
        """The current segment whatever its fields; rebuilt from the log if its file is gone and we may apply.

        :raises SchemaError: if its rows are by other keys than the view's.
        """
        name = view.schema.__name__
        for attempt in range(_ATTEMPTS):
            stored = self.catalogue.current_schema(name)
            if stored is None:
                break
            check_entity(view, stored)
            try:
                return self.registry.open_stored(name, read_only=read_only)
            except SegmentNotFoundError:
                # Another process may be about to remove the view; what is still missing after a while was lost.
                if attempt >= _ATTEMPTS // 2 and self._settings.consumer != "external":
                    with suppress(SegmentConflictError):  # Another process was quicker.
                        self.catalogue.restore(name)
            time.sleep(attempt * _RETRY_SECONDS)
        address = self.registry.backend.address
        raise SegmentNotFoundError(
            f"feature view {view.name!r} has no segment ({name!r} at {address}): run `feast apply`, then materialize"
            + (", and the consumer that fills it" if self._settings.consumer == "external" else "")
        )

    def _drain(self, view: StoredView, tail: Tail | None = None, *, relies: bool = False) -> bool:
        """Apply what the log has for a view; False if another process is applying. Leaves no lease behind.

        Who finds the lease taken and ``relies`` on its holder calls it: that one looks at the log once more after
        letting go. So does one who finds it taken when it was called itself.
        """
        name, called = view.schema.__name__, None
        while True:
            try:
                with self.writer(view) as segment:
                    held = segment.writing_view()
                    self._consumer_of(segment).drain(tail)
                    # A call may stand in any of the generations that were held.
                    looks_again = segment.writing_view() is not held
            except (WriterLeaseHeldError, WriterFencedError):
                self._applied_elsewhere.add(name)
                newest = self._writers[name].current_view() if relies else None
                if newest is None or newest is called:  # It was called, and that very lease was still taken after.
                    return False
                called = newest
                newest.call_writer()
                continue
            except SegmentConflictError:  # Another segment is in force: it is opened at the next try.
                self.forget(view)
                self._writers.pop(name, None)
                self._consumers.pop(name, None)
                continue
            self._applied_elsewhere.discard(name)
            if not (held.answers_call() or looks_again):
                return True
            tail, relies = None, True

    def _consumer_of(self, segment: Segment) -> WALConsumer:
        """What applies the log to a segment that is open for writing; made once for each."""
        name = segment.schema.__name__
        known = self._consumers.get(name)
        if known is None or known[0] is not segment:
            consumer = WALConsumer(
                self.registry.backend, [segment], registry=self.registry, offline=self._history, trims=False
            )
            known = self._consumers[name] = (segment, consumer)
        return known[1]

    def _position(self, view: StoredView) -> int:
        """Up to where the view's segment is applied; 0 if it was replaced this moment."""
        try:
            return self.reader(view).position
        except SchemaMismatchError:
            return 0

    def _is_behind(self, view: StoredView, last: int) -> bool:
        """Whether the log has entries of a view that its segment does not have, up to a position. Other views' entries
        say nothing: they are passed over.
        """
        position = self._position(view)
        while position < last:
            found = self._log.read(position, schema_names=[view.schema.__name__])
            if found.entries:
                return True
            if found.through == position:
                return False
            position = found.through
        return False

    def _until(self, view: StoredView, position: int, drain: Callable[[], bool]) -> None:
        """Wait until a segment has reached a position, which ``drain`` may bring about."""
        pause, seen, started = _POLL_SECONDS[0], -1, time.monotonic()
        while not drain():
            applied = self._position(view)
            if applied >= position:
                return
            if applied > seen:
                seen, started = applied, time.monotonic()
            elif (time.monotonic() - started) * 1000 > self._settings.timeout_ms:
                raise WriteSyncTimeoutError(view.schema.__name__, position, self._settings.timeout_ms)
            time.sleep(pause)
            pause = min(2 * pause, _POLL_SECONDS[1])


def _names(schema: Schema) -> set[str]:
    return {field.name for field in schema.fields}


@lru_cache(maxsize=4096)
def _file(directory: str, segment_name: str) -> Path:
    return Path(directory, segment_name)
