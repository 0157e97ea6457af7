"""Where the rows of a new segment come from; the sources that leave no row out come first."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quorin.engine.bootstrap.progress import logged_progress
from quorin.engine.bootstrap.restore import restore_newest
from quorin.errors import EmptyDatasetError, SnapshotUnavailableError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quorin.engine.bootstrap.progress import Progress, ShowProgress
    from quorin.engine.bootstrap.store import SnapshotStore
    from quorin.engine.consumer.history import OfflineWriter
    from quorin.offline import ParquetDatasetStore
    from quorin.schema import Schema
    from quorin.shm import Segment, SegmentRegistry

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class NewSegments:
    """How segments are created. ``progress`` is called now and then while one is built."""

    registry: SegmentRegistry
    stream_key: str
    capacity: int
    max_id_bytes: int
    progress: Progress


class Bootstrap:
    """Builds the first segment of a schema on a node from the first of these that has rows:

    the newest snapshot from which the log or the history goes on without a gap, the history, a snapshot that is older
    than the start of the log, or of another log.
    """

    def __init__(
        self,
        history: OfflineWriter | None = None,
        snapshots: SnapshotStore | None = None,
        *,
        show: ShowProgress = logged_progress,
    ) -> None:
        self._history = _readable(history)
        self._snapshots = snapshots
        self._show = show

    def segment(self, schema: Schema, new: NewSegments) -> Segment:
        """A segment, open for writing, which nothing points to yet; empty if there are no rows anywhere.

        One from a snapshot has the capacity of the segment that was saved.

        :raises SnapshotUnavailableError, HistoryUnavailableError: if a source cannot be read, and no other has rows.
        :raises SharedMemoryError: if there is no room.
        """
        segment, unavailable = None, None
        try:
            segment = self._from_snapshots(schema, new, is_complete=True)
        except SnapshotUnavailableError as error:
            _log.warning("snapshots_unavailable", schema=schema.__name__, error=str(error))
            unavailable = error
        if segment is None:
            segment = self._from_history(schema, new)
        if segment is None and unavailable is not None:
            raise unavailable  # It may have rows that nothing else has.
        if segment is None:
            segment = self._from_snapshots(schema, new, is_complete=False)
        if segment is None:
            sizes = {"capacity": new.capacity, "max_id_bytes": new.max_id_bytes}
            segment = new.registry.create(schema, set_current=False, **sizes)
        return segment

    def _from_snapshots(self, schema: Schema, new: NewSegments, *, is_complete: bool) -> Segment | None:
        if self._snapshots is None:
            return None
        trimmed = new.registry.backend.log(new.stream_key).bounds().trimmed
        # The history has every entry that was trimmed, and the consumer applies those behind the segment's position.
        from_position = trimmed if is_complete and self._history is None else 0
        with self._shown(f"{schema.__name__} from {self._snapshots.address}", new) as progress:
            return restore_newest(
                schema,
                self._snapshots,
                new.registry,
                stream_key=new.stream_key,
                from_position=from_position,
                any_log=not is_complete,
                progress=progress,
            )

    def _from_history(self, schema: Schema, new: NewSegments) -> Segment | None:
        from quorin.hydration import build_segment

        if self._history is None:
            return None
        try:
            with self._shown(f"{schema.__name__} from {self._history.address}", new) as progress:
                built, _ = build_segment(
                    schema,
                    self._history,
                    new.registry,
                    least_capacity=new.capacity,
                    max_id_bytes=new.max_id_bytes,
                    stream_key=new.stream_key,
                    progress=progress,
                )
        except EmptyDatasetError:
            return None
        return built

    @contextmanager
    def _shown(self, what: str, new: NewSegments) -> Iterator[Progress]:
        with self._show(what) as shown:

            def progress(done: int, total: int) -> None:
                new.progress(done, total)
                shown(done, total)

            yield progress


def _readable(history: OfflineWriter | None) -> ParquetDatasetStore | None:
    """The history if rows can be read from it: one that a user wrote may only take them."""
    if history is None:
        return None
    from quorin.offline import ParquetDatasetStore

    return history if isinstance(history, ParquetDatasetStore) else None
