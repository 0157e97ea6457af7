"""A segment from the newest snapshot of a store that fits; nothing points to it yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorin.engine.backend.keys import DEFAULT_STREAM_KEY
from quorin.engine.bootstrap import image
from quorin.engine.bootstrap.names import FROM_THE_START, newest_first
from quorin.engine.history.storage import VanishedError
from quorin.engine.memory.growth import evolve
from quorin.engine.memory.view import SegmentView
from quorin.engine.rows.compatibility import can_upgrade
from quorin.errors import CorruptSnapshotError, QuorinError
from quorin.logging import get_logger
from quorin.schema import schema_to_json

if TYPE_CHECKING:
    from quorin.engine.backend import Beginning
    from quorin.engine.bootstrap.image import Head, Progress, Source
    from quorin.engine.bootstrap.store import SnapshotStore
    from quorin.schema import Schema
    from quorin.shm import Segment, SegmentRegistry

_log = get_logger(__name__)


class UnfitSnapshotError(QuorinError, ValueError):
    """A snapshot holds other rows than those that are needed; the message says which."""


def restore_newest(
    schema: Schema,
    store: SnapshotStore,
    registry: SegmentRegistry,
    *,
    stream_key: str = DEFAULT_STREAM_KEY,
    beginning: Beginning | None = None,
    from_position: int = 0,
    any_log: bool = False,
    progress: Progress | None = None,
) -> Segment | None:
    """A segment from the newest snapshot that fits, open for writing; None if none does. Nothing points to it yet:
    ``registry.publish`` makes it current.

    A snapshot fits if it is of this deployment's log ``stream_key``, at ``from_position`` or behind it, and holds
    ``schema`` or a version that can be upgraded to it, which happens here. Its position is the log's, so a consumer
    reads on from there. It must have the schema's ``beginning``, else its rows are of a schema of that name which was
    dropped. With ``any_log`` snapshots of another log fit too, such as of one that was wiped: their rows
    are right, as event times decide, and the consumer reads the whole log.

    A snapshot that is damaged, cut short or of another release is skipped with a warning, and the next older one is
    taken. A crash leaves a segment file that nothing points to, for the watchdog.

    :raises SnapshotUnavailableError: if the store cannot be listed or read.
    :raises SharedMemoryError: if there is no room in shared memory.
    """
    identity, begins = registry.backend.log(stream_key).identity(), FROM_THE_START if beginning is None else beginning
    for file in newest_first(store.snapshots(schema.__name__), identity):
        follows_log = file.log_identity == identity
        is_wanted = file.position >= from_position if follows_log else any_log
        if not is_wanted or file.beginning != begins:
            continue
        try:
            with store.open(file) as source:
                segment = received(source, schema, registry, log=identity, any_log=any_log, progress=progress)
        except VanishedError:  # Another process has pruned it.
            continue
        except (CorruptSnapshotError, UnfitSnapshotError) as error:
            _log.warning("snapshot_skipped", schema=schema.__name__, snapshot=file.name, reason=str(error))
            continue
        return segment
    return None


def received(
    source: Source, schema: Schema, registry: SegmentRegistry, *, log: int, any_log: bool, progress: Progress | None
) -> Segment:
    """A segment of ``schema`` from a snapshot's bytes. ``log`` is the identity of the log that a consumer will read.

    :raises CorruptSnapshotError: if it is damaged. :raises UnfitSnapshotError: if it holds something else.
    :raises SharedMemoryError: if there is no room in shared memory.
    """
    head = image.read_head(source)
    follows_log = head.log_identity == log
    obstacle = _obstacle(head, schema) if follows_log or any_log else f"it is of log {head.log_identity:016x}"
    if obstacle is not None:
        raise UnfitSnapshotError(obstacle)
    view = image.receive(source, head, registry, follows_log=follows_log, progress=progress)
    segment = registry.adopt(view)
    try:
        if schema_to_json(view.stored) != schema_to_json(schema):
            segment = _upgraded(segment, schema, registry)
    except BaseException:
        registry.discard(segment)
        raise
    _log.info(
        "snapshot_restored", schema=schema.__name__, snapshot=source.name, segment=segment.name, rows=head.rows,
        bytes=head.image_bytes, position=head.position if follows_log else 0,
    )  # fmt: skip
    return segment


def _obstacle(head: Head, schema: Schema) -> str | None:
    if schema_to_json(head.schema) == schema_to_json(schema):
        return None
    fits, reasons = can_upgrade(head.schema, schema)
    versions = f"{schema.__name__} version {head.schema.version} cannot become version {schema.version}"
    return None if fits else f"{versions}: {'; '.join(reasons)}"


def _upgraded(segment: Segment, schema: Schema, registry: SegmentRegistry) -> Segment:
    """The next generation, opened by its own schema; until now nobody else can have found the segment."""
    segment.acquire_writer_lease()
    evolve(segment, schema)
    path = segment.current_view().path
    segment.close()
    return registry.adopt(SegmentView.attach(path, None, writable=True))
