"""What one process has open of a store: the views' segments to read, and the consumers that apply its writes.

A :class:`Session` is made when a store is first used, and anew in a forked child. With Redis it has a thread, from the
first read on, that follows the log (:mod:`quorin.follower`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from feast_quorin.catalogue import Catalogue
from feast_quorin.convert.entity_ids import MAX_ID_BYTES
from feast_quorin.read.elsewhere import routed_reader, router_of
from feast_quorin.read.limits import check_fresh, column_reader
from feast_quorin.read.options import wait_for
from feast_quorin.views import check_entity, in_feasts_names
from feast_quorin.write.tokens import Written
from quorin.errors import (
    GenerationNotFoundError,
    PinLimitError,
    QuorinError,
    SchemaMismatchError,
    SegmentClosedError,
    SegmentConflictError,
    SegmentNotFoundError,
)
from quorin.evolution import upgrade_schema
from quorin.follower import Follower
from quorin.inline_consumer import InlineConsumer
from quorin.logging import get_logger
from quorin.offline import ParquetDatasetStore, ServedLog
from quorin.shm import Segment, SegmentRegistry
from quorin.snapshot import SnapshotStore
from quorin.wal import WALProducer

if TYPE_CHECKING:
    import pyarrow as pa

    from feast_quorin.catalogue import Vacancy
    from feast_quorin.config import StoreSettings
    from feast_quorin.views import StoredView
    from quorin.schema import Schema

Result = TypeVar("Result")

MAX_ATTEMPTS = 6
_OPEN_ATTEMPTS = 4
_RETRY_SECONDS = 0.01
_NOBODY_SECONDS = 10.0
"""A consumer that runs and reaches the log confirms several times a second."""

_log = get_logger(__name__)


class Session:
    """Everything that one process needs to read and write views. Threads may share it.

    :raises ConnectionFailedError: if the control plane cannot be reached; the text names the address.
    """

    now_ns: int | None = None  # Ages of rows are counted to this time; None for the present.

    def __init__(self, settings: StoreSettings, repo_path: Path | None) -> None:
        self.pid, self.settings = os.getpid(), settings
        connection, history, snapshots = settings.places(repo_path)
        if settings.redis_url is None:
            with suppress(OSError):  # SegmentRegistry raises an error that says what is wrong with the directory.
                Path(connection).parent.mkdir(exist_ok=True)
        self.registry = _registry(connection, settings)
        self._history = None if history is None else ParquetDatasetStore(history)
        store = None if snapshots is None else SnapshotStore(snapshots)
        peers = settings.peers(repo_path)
        self.catalogue = Catalogue(settings, self.registry, self._history, store, peers)
        self.served = _served_log(settings, self.registry, repo_path)
        self.producer, self.written = WALProducer(self.registry.backend, registry=self.registry), Written()
        sources = {"offline": self._history, "snapshots": store, "peers": peers}
        sizes = {"capacity": settings.capacity, "max_id_bytes": MAX_ID_BYTES}
        self.follower = Follower(self.registry, **sources, **sizes) if settings.follows else None
        self.accepted: dict[str, Schema] = {}
        """By schema name, the schema all of whose fields the segment has, as :mod:`feast_quorin.write.log` found."""
        self.reached: dict[tuple[str, int], int] = {}  # Of :func:`quorin.assembly.at_one_position`.
        router = cache(partial(router_of, settings, repo_path, self.registry))
        self.routed = partial(routed_reader, settings, router)
        """Makes the function that reads a segment which holds some partitions: fields of rows, within age limits."""
        self.opened = object()
        """Replaced by another object whenever reads of some view go to another segment than before."""
        self._readers: dict[str, Segment] = {}
        self._consumers: dict[str, InlineConsumer] = {}
        self._views: dict[str, StoredView] = {}
        self._opening = threading.Lock()

    def read(
        self, view: StoredView, ids: Sequence[str], fields: Sequence[str], at_most: int | None = None
    ) -> tuple[list[str], pa.RecordBatch]:
        """Read fields of entities. Returns the names of those that the segment has, and what the engine reads of them.

        :raises InconsistentReadError: for a row that was written after the log position ``at_most``.
        :raises SegmentNotFoundError: if the view was never applied, or was removed.
        """

        def read_stored(segment: Segment) -> tuple[list[str], pa.RecordBatch]:
            stored = {field.name for field in segment.schema.fields}
            kept = [name for name in fields if name in stored]
            read = column_reader(segment, kept, self.settings.key_ttl_seconds, routed=self.routed)
            columns = read(ids, at_most=at_most)
            columns.not_held = None
            return kept, columns.to_batch()

        return self.follow(view, read_stored)

    def follow(self, view: StoredView, action: Callable[[Segment], Result]) -> Result:
        """Call a function with a view's segment, and again if the segment is replaced meanwhile by one with other
        fields. The segment is that of :meth:`prepare`, and shows what :mod:`feast_quorin.read.options` says.

        :raises SegmentNotFoundError: if the view was never applied, or was removed.
        """
        for _ in range(MAX_ATTEMPTS):
            try:
                segment = self.prepare(view)
                check_fresh(self.settings, view, segment)
                wait_for(segment, apply=partial(self._drain, view), helps_at_once=not self.settings.redis_url)
                return action(segment)
            except (SchemaMismatchError, SegmentNotFoundError):
                if not self.forget(view):
                    raise
        raise SegmentNotFoundError(
            f"feature view {view.name!r}: its segment was replaced {MAX_ATTEMPTS} times during one read"
        )

    def prepare(self, view: StoredView) -> Segment:
        """The view's segment, open for reading.

        At the first call, and after the segment was replaced, opens it (:meth:`open_or_restore`) and catches up with
        the log (:meth:`catch_up`).

        :raises SegmentNotFoundError, SchemaError: as :meth:`open`.
        """
        name = view.schema.__name__
        segment = self._readers.get(name)
        if segment is None or not self.is_in_force(segment):
            with self._opening:
                pin = self.settings.pin_of(view.name)
                segment = self._readers[name] = self.open_or_restore(view, pin=pin)
                self.opened = object()
            self.catch_up(view, segment)
        return segment

    def open(self, view: StoredView, *, read_only: bool = True, pin: int | str | None = None) -> Segment:
        """Open the view's current segment, or the generation to ``pin``, whatever its fields.

        :raises SegmentNotFoundError: if there is none, or its file is lost.
        :raises GenerationNotFoundError: if there is no generation to pin. :raises PinLimitError: if too many are.
        :raises SchemaError: if its rows have other join keys than the view's.
        """
        name = view.schema.__name__
        for attempt in range(_OPEN_ATTEMPTS):  # Another process may be removing or replacing the segment.
            time.sleep(max(0, attempt - 1) * _RETRY_SECONDS)
            with suppress(SegmentNotFoundError):
                segment = _opened(self.registry, view, read_only=read_only, pin=pin)
                check_entity(view, segment.stored_schema)
                return segment
            # Only now is the control plane needed, which may be away.
            if self.catalogue.current_schema(name) is None:
                break
        raise SegmentNotFoundError(
            f"feature view {view.name!r} has no segment ({name!r} at {self.registry.backend.address}): "
            "run `feast apply`, then materialize"
            + (", and the consumer that fills it" if self.settings.consumer == "external" else "")
        )

    def open_or_restore(self, view: StoredView, *, read_only: bool = True, pin: int | str | None = None) -> Segment:
        """:meth:`open`; if the file of the view's segment is lost, rebuild it first, from the history and for the whole
        log. With ``consumer: external`` that is the consumer's task.

        :raises SegmentNotFoundError, SchemaError: as :meth:`open`.
        """
        try:
            return self.open(view, read_only=read_only, pin=pin)
        except SegmentNotFoundError:
            if self.settings.consumer == "external" or self.catalogue.current_schema(view.schema.__name__) is None:
                raise
        with suppress(SegmentConflictError):  # Another process has restored it.
            self.catalogue.restore(view.schema.__name__)
        return self.open(view, read_only=read_only, pin=pin)

    def catch_up(self, view: StoredView, segment: Segment) -> None:
        """Apply what the log has and the view's open segment lacks, or wait for the process that is applying it. With
        ``consumer: external`` only warn if no process has confirmed for a while that the segment is up to date.
        Reads go on without: if there is no room to grow, no permission to write, or no log, a warning is logged. A
        pinned segment stays as it is.
        """
        if segment.is_pinned:
            return
        if self.follower is not None:
            self.follower.start()
            if not self.follower.wait_until_fresh(segment):
                _log.warning("read_not_caught_up", view=view.name, error="the log is not reached, or applied too late")
                return
        if self.settings.consumer == "external":
            lag = segment.confirmed_age_seconds()
            if lag > _NOBODY_SECONDS:
                advice = "run `quorin consumer` on this machine, or set consumer: auto"
                _log.warning("nobody_applies", view=view.name, lag_seconds=lag, advice=advice)
        else:
            _apply_if_possible(view, lambda: self.consumer_of(view).catch_up(segment.position))

    def _drain(self, view: StoredView) -> None:
        """Apply what the log has, if that is this process's task and it can."""
        if self.settings.consumer != "external":
            _apply_if_possible(view, lambda: self.consumer_of(view).drain())

    @contextmanager
    def latest(self, view: StoredView) -> Iterator[Segment]:
        """The view's current segment, which writes and upgrades go to, also if reads are pinned to another."""
        segment = self.prepare(view)
        if not segment.is_pinned:
            yield segment
            return
        with self.open_or_restore(view) as current:
            yield current

    def consumer_of(self, view: StoredView) -> InlineConsumer:
        """The consumer that applies writes to the view in this process: one for each schema name."""
        name = view.schema.__name__
        self._views[name] = view
        consumer = self._consumers.get(name)
        if consumer is None:
            made = InlineConsumer(
                self.registry,
                name,
                open_segment=partial(self._open_for_writing, name),
                offline=self._history,
                timeout_ms=self.settings.timeout_ms,
            )
            consumer = self._consumers.setdefault(name, made)
        return consumer

    def is_in_force(self, segment: Segment) -> bool:
        """Whether an open segment is neither removed nor replaced by one with other fields."""
        try:
            is_same = segment.stored_schema is segment.schema
            if segment.is_pinned:
                return True
            return is_same and _file(self.settings.shm_dir, segment.name).exists()
        except (SchemaMismatchError, SegmentClosedError, SegmentNotFoundError):
            return False

    def reads_from(self, name: str, segment: Segment) -> bool:
        """Whether reads of the view with this schema name go to a segment, as far as this process knows."""
        return self._readers.get(name) is segment

    def opened_segment(self, view: StoredView) -> Segment | None:
        """The segment that this process has open to write to the view, or else to read it; None if there is none."""
        name = view.schema.__name__
        consumer = self._consumers.get(name)
        segment = None if consumer is None else consumer.segment
        reader = self._readers.get(name) if segment is None else segment
        return None if reader is None or reader.is_pinned else reader

    def forget(self, view: StoredView) -> bool:
        """Open the view's segment anew at the next read; False if none is open."""
        was_open = self._readers.pop(view.schema.__name__, None) is not None
        self.opened = object()
        return was_open

    def close(self) -> None:
        """End the pins of this session's segments, whose readers follow from then on, and the served log's thread."""
        for segment in self._readers.values():
            segment.unpin()
        if self.served is not None:
            self.served.close()

    def upgrade(self, old: Schema, new: Schema) -> None:
        """Upgrade the current segment to the next version of its schema.

        :raises UpgradeAbortedError, UpgradeConflictError: as :func:`quorin.evolution.upgrade_schema`.
        """
        upgrade_schema(old, new, self.registry, timeout_seconds=self.settings.timeout_ms / 1000)
        self.accepted.pop(old.__name__, None)

    def discard(self, name: str, left: Vacancy | None = None) -> None:
        """Remove a schema and its segment, as :meth:`Catalogue.discard` does, or only the segment that is ``left`` of a
        schema that was dropped, as :meth:`Catalogue.discard_left`. What is open of it here is closed.

        :raises WriterLeaseHeldError: if another process keeps the writer lease for ``timeout_ms``.
        """
        consumer = self._consumers.pop(name, None)
        with nullcontext() if consumer is None else consumer.paused():
            if left is None:
                self.catalogue.discard(name)
            else:
                self.catalogue.discard_left(name, left)
        self._readers.pop(name, None)
        self.opened = object()
        self.accepted.pop(name, None)

    def _open_for_writing(self, name: str) -> Segment:
        view = self._views[name]
        segment = self.open_or_restore(view, read_only=False)
        reader = self._readers.get(name)
        # A segment that is no longer the control plane's can still have its file.
        if reader is not None and not (self.is_in_force(reader) and (reader.is_pinned or reader.name == segment.name)):
            self.forget(view)
        return segment


def _served_log(settings: StoreSettings, registry: SegmentRegistry, repo_path: Path | None) -> ServedLog | None:
    """What logs the answers; None without ``served_log``."""
    url, log = settings.served_log_url(repo_path), settings.served_log
    if url is None or log is None:
        return None
    return ServedLog(url, registry, sample=log.sample, every_seconds=log.every_seconds)


def _apply_if_possible(view: StoredView, apply: Callable[[], object]) -> None:
    """Apply the log; a read goes on without, so what prevents it is only logged."""
    try:
        apply()
    except QuorinError as error:
        _log.warning("read_not_caught_up", view=view.name, error=str(error))


def _opened(registry: SegmentRegistry, view: StoredView, **how: Any) -> Segment:
    """The segment of a view; what is wrong with a pin is said with the view's name."""
    try:
        return registry.open_stored(view.schema.__name__, **how)
    except (GenerationNotFoundError, PinLimitError) as error:
        raise type(error)(f"feature view {in_feasts_names(view, str(error))}") from None


@lru_cache(maxsize=4096)
def _file(directory: str, segment_name: str) -> Path:
    return Path(directory, segment_name)


def _registry(connection: str, settings: StoreSettings) -> SegmentRegistry:
    return SegmentRegistry(
        connection,
        shm_dir=settings.shm_dir,
        shm_group=settings.shm_group,
        partitions=settings.partitions,
        held=settings.held_partitions,
        keep_generations=settings.keep_generations,
        keep_bytes=settings.keep_bytes,
    )


def new_session(settings: StoreSettings, repo_path: Path | None, *, inherited: Session | None) -> Session:
    """A session of this process. ``inherited`` is a parent process's: it is kept, so that it is never closed here."""
    if inherited is not None:
        _inherited.append(inherited)
    return Session(settings, repo_path)


_inherited: list[Session] = []
