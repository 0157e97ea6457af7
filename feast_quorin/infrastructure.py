"""What ``feast apply`` and ``feast teardown`` do to segments: create, carry over to a changed schema, remove."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import pyarrow as pa

from quorin import assembly, layout
from quorin.errors import SegmentNotFoundError
from quorin.schema import schema_to_arrow

if TYPE_CHECKING:
    from feast_quorin.engine import Engine
    from feast_quorin.views import StoredView
    from quorin.schema import Schema
    from quorin.shm import Segment

_CARRY_ROWS = 8192


def apply_view(engine: Engine, view: StoredView) -> None:
    """Give a view a segment with its fields. Rows of a segment with other fields are carried over.

    Features that kept name and type keep their values; new ones, and those of another type, are null. Readers follow at
    their next read. A crash in between leaves the old segment current and whole; applying again completes it.

    :raises WriterLeaseHeldError: if another process goes on writing to the segment for ``timeout_ms``.
    """
    name = view.schema.__name__
    known = engine.current_schema(name)
    if known is None:
        engine.create(view.schema, replay=False)
        return
    try:
        current = engine.reader(view).schema
    except SegmentNotFoundError:  # Only possible where an external consumer is to fill segments: it replays the log.
        engine.create(view.schema, replay=True)
        return
    if _fields(current) != _fields(view.schema):
        _carry_over(engine, view)
    elif known is not current:
        engine.put_schema(current)


def remove(engine: Engine, view: StoredView) -> None:
    """Remove a view's rows and schema from shared memory and the control plane; nothing happens if it has none.

    :raises WriterLeaseHeldError: if another process goes on writing to the segment for ``timeout_ms``.
    """
    if engine.current_schema(view.schema.__name__) is None:
        return
    try:
        with engine.writer(view, patient=True) as segment:
            engine.registry.discard(segment)
    except SegmentNotFoundError:
        pass
    engine.drop_schema(view.schema.__name__)


def _carry_over(engine: Engine, view: StoredView) -> None:
    with engine.writer(view, patient=True) as old:
        new = engine.create_successor(old, view.schema)
        try:
            _copy_rows(old, new)
            new.commit_position(old.position, old.log_identity)
            new.release_writer_lease()
            old.replace(new.current_view())
        except BaseException:
            engine.registry.discard(new)
            raise
        engine.put_schema(view.schema)
        new.close()


def _copy_rows(old: Segment, new: Segment) -> None:
    target = schema_to_arrow(new.schema)
    kept = [field.name for field in old.schema.fields if field in new.schema.fields]
    for ids in _id_chunks(old):
        rows = assembly.read(old, ids, kept)
        columns = {"entity_id": rows.column(0), "event_time_ns": rows.column(2)}
        for field in target:
            is_kept = field.name in kept
            columns[field.name] = rows.column(3 + kept.index(field.name)) if is_kept else pa.nulls(len(ids), field.type)
        layout.insert_many(new, pa.table(columns))


def _id_chunks(segment: Segment) -> Iterator[list[str]]:
    ids = (entity_id for entity_id, _ in layout.iterate_occupied(segment))
    while chunk := list(islice(ids, _CARRY_ROWS)):
        yield chunk


def _fields(schema: Schema) -> set[object]:
    return set(schema.fields)
