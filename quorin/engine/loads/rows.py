"""Rows that a load takes or is compared with: of a source, of a reference, of this node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from quorin.engine.reads.scan import scan_view
from quorin.engine.rows.batch import to_batch
from quorin.errors import EntityIdError, InvalidRowError, SegmentNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from quorin.schema import Schema
    from quorin.shm import SegmentRegistry


class Repeatable:
    """An iterable that begins anew each time."""

    def __init__(self, batches: Callable[[], Iterator[pa.RecordBatch]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self._batches()


def tables_of(source: Any) -> Iterator[Any]:
    """The tables of a source, one at a time."""
    if isinstance(source, (pa.RecordBatchReader, Iterator)):
        yield from source
    else:
        yield source


def reference_rows(schema: Schema, reference: Any) -> Iterator[pa.RecordBatch]:
    """The rows of a reference. Those without an event time have the present one."""
    for table in tables_of(reference):
        try:
            yield to_batch(schema, table, partial=True)
        except (InvalidRowError, EntityIdError) as error:
            raise InvalidRowError(f"reference: {error}") from None


def served_rows(registry: SegmentRegistry, schema: Schema) -> Iterator[pa.RecordBatch]:
    """The rows that this node serves."""
    try:
        with registry.open_stored(schema.__name__) as segment:
            yield from scan_view(segment.current_view(), None, None, None)
    except SegmentNotFoundError:
        return
