"""Snapshots on an interval, beside a consumer that goes on applying."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from quorin.engine.bootstrap.names import newest_first
from quorin.engine.bootstrap.pace import Pace, StoppedError
from quorin.engine.bootstrap.progress import logged_progress
from quorin.engine.format.name import is_same_line
from quorin.errors import QuorinError, SegmentNotFoundError
from quorin.logging import get_logger
from quorin.schema import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from quorin.engine.backend.protocols import Beginnings
    from quorin.engine.bootstrap.names import SnapshotFile
    from quorin.engine.bootstrap.progress import ShowProgress
    from quorin.engine.bootstrap.store import SnapshotStore
    from quorin.shm import Segment, SegmentRegistry

_RETRY_SECONDS = 60.0
_LOOK_SECONDS = 1.0

_log = get_logger(__name__)


class SnapshotWriter:
    """Inside its ``with`` block, a thread writes a snapshot of each schema of ``schema_names()`` every
    ``every_seconds``, unless the log has brought nothing new or another process has written one meanwhile.

    It copies at most ``bytes_per_second`` (0: no limit). A snapshot that fails is logged, and tried again within a
    minute.
    """

    def __init__(
        self,
        store: SnapshotStore,
        registry: SegmentRegistry,
        schema_names: Callable[[], Iterable[str]],
        *,
        every_seconds: float,
        bytes_per_second: float = 0,
        show: ShowProgress = logged_progress,
    ) -> None:
        if not every_seconds > 0:
            raise ValueError(f"expected a positive number of seconds between snapshots, got {every_seconds!r}")
        self._store = store
        self._registry = registry
        self._schema_names = schema_names
        self._every_seconds = every_seconds
        self._bytes_per_second = bytes_per_second
        self._show = show
        self._look_at: dict[str, float] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> SnapshotWriter:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="quorin-snapshots", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def write_due(self) -> int:
        """Write the snapshots that are due; returns their number."""
        written = 0
        for name in sorted(self._schema_names()):
            if time.monotonic() < self._look_at.get(name, 0.0):
                continue
            delay = min(self._every_seconds, _RETRY_SECONDS)
            try:
                segment, beginning = open_to_copy(self._registry, name)
                with segment:
                    delay = self._due_in(segment)
                    if delay <= 0:
                        self._save(segment, beginning)
                        written, delay = written + 1, self._every_seconds
            except SegmentNotFoundError:  # It was removed since it was listed.
                continue
            except (QuorinError, OSError) as error:
                if isinstance(error, StoppedError):
                    break
                _log.warning("snapshot_failed", schema=name, error=str(error), next_try_seconds=delay)
            self._look_at[name] = time.monotonic() + delay
        return written

    def _run(self) -> None:
        reported = ""
        while not self._stopping.wait(min(_LOOK_SECONDS, self._every_seconds)):
            try:
                self.write_due()
                reported = ""
            except Exception as error:  # noqa: BLE001 - a thread that ended would leave no snapshots, unseen
                # The consumer may be closing a segment while its name is asked for.
                if repr(error) != reported:
                    reported = repr(error)
                    _log.error("snapshots_failed", error=reported, exc_info=not isinstance(error, QuorinError))

    def _due_in(self, segment: Segment) -> float:
        """Seconds until a snapshot is due, by what is in the store."""
        identity, position = segment.log_identity, segment.position
        files = newest_first(self._store_of(segment).snapshots(segment.schema.__name__), identity)
        newest = files[0] if files and files[0].log_identity == identity else None
        if not position or (newest is not None and _is_same(newest, segment, position)):
            return min(self._every_seconds, _RETRY_SECONDS)
        age = self._every_seconds if newest is None else (time.time_ns() - newest.taken_ns) / 1e9
        # A snapshot from the future was taken by another clock, which says nothing about its age.
        return self._every_seconds - age if age >= 0 else 0.0

    def _store_of(self, segment: Segment) -> SnapshotStore:
        return self._store.of_partitions(segment.partitioning)

    def _save(self, segment: Segment, beginning: Beginnings) -> None:
        pace = Pace(self._bytes_per_second, self._stopping)
        with self._show(f"{segment.schema.__name__} to {self._store.address}") as progress:
            self._store_of(segment).save(segment, beginning=beginning, progress=progress, pace=pace)


def open_to_copy(registry: SegmentRegistry, name: str) -> tuple[Segment, Beginnings]:
    """The current segment of a schema, and where its rows begin in the log.

    :raises SegmentNotFoundError: if there is none, or it is replaced at this moment.
    """
    # In this order: if another segment is current when it is opened, the beginning is not its own.
    state = registry.node.state()
    segment = registry.open_stored(name)
    if not is_same_line(state.currents.get(name, ""), segment.name):
        segment.close()
        raise SegmentNotFoundError(f"the segment {segment.name!r} is replaced at this moment")
    return segment, state.beginning_of(name)


def writing(
    store: SnapshotStore | None,
    registry: SegmentRegistry,
    schema_names: Callable[[], Iterable[str]],
    every_seconds: float | None,
    *,
    show: ShowProgress,
) -> AbstractContextManager[object]:
    """A :class:`SnapshotWriter`; a context without one if there is no store, or no interval."""
    if store is None or every_seconds is None:
        return nullcontext()
    return SnapshotWriter(store, registry, schema_names, every_seconds=every_seconds, show=show)


def _is_same(newest: SnapshotFile, segment: Segment, position: int) -> bool:
    return newest.position == position and newest.fingerprint == fingerprint(segment.stored_schema)
