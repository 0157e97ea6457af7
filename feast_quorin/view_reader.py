"""Reads of one view for one choice of features: bound to its segment once, followed as it is replaced.

One entity is read as plain Python values (:class:`quorin.assembly.OneRow`), many as typed columns
(:class:`quorin.assembly.Columns`). Both are copies of whole rows: what is decoded later is what was read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quorin.assembly import Columns, OneRow, RowReader, row_reader
from quorin.errors import SchemaMismatchError, SegmentClosedError, SegmentNotFoundError

if TYPE_CHECKING:
    from feast_quorin.engine import Engine
    from feast_quorin.views import StoredView
    from quorin.shm import Segment

LOOK_SECONDS = 0.005
"""How often a busy reader looks whether another process has removed its segment, which no reader is told."""

_ATTEMPTS = 6


class ViewReader:
    """One view, and the features that a request wants of it. Threads may share it.

    ``engine`` must be this process's own.
    """

    __slots__ = ("_bound", "_engine", "_fields", "_look_again", "_name", "_view")

    def __init__(self, engine: Engine, view: StoredView, features: Sequence[str]) -> None:
        self._engine = engine
        self._view = view
        self._name = view.schema.__name__
        self._fields = [view.features[name].field for name in features]
        self._bound: _Bound | None = None
        self._look_again = 0.0

    def one(self, entity_id: str) -> OneRow | None:
        """One entity, or None where only :meth:`many` serves: not found at once, or not all the fields are there."""
        bound = self._bound
        if bound is None or bound.one is None or not self._is_fresh(bound) or len(bound.fields) < len(self._fields):
            return None
        try:
            return bound.one(entity_id)
        except (SchemaMismatchError, SegmentNotFoundError, SegmentClosedError):
            return None

    def many(self, entity_ids: list[str]) -> Columns:
        """Many entities. The columns are those of the wanted fields that the segment has: all of them, unless the view
        changed and this process has not heard of it yet.

        :raises SegmentNotFoundError: if the view was never applied, or was removed.
        """
        for _ in range(_ATTEMPTS):
            try:
                return self._bind().many(entity_ids)
            except (SchemaMismatchError, SegmentNotFoundError, SegmentClosedError):
                self._bound = None
                if not self._engine.forget(self._view):
                    raise
        raise SegmentNotFoundError(
            f"feature view {self._view.name!r}: its segment was replaced {_ATTEMPTS} times in one read"
        )

    def _bind(self) -> _Bound:
        bound = self._bound
        if bound is not None and self._is_fresh(bound):
            return bound
        now = time.monotonic()
        segment = self._engine.reader(self._view)
        if bound is None or bound.segment is not segment:
            stored = {field.name for field in segment.schema.fields}
            kept = [name for name in self._fields if name in stored]
            self._bound = bound = _Bound(self._engine, segment, kept)
        self._look_again = now + LOOK_SECONDS
        return bound

    def _is_fresh(self, bound: _Bound) -> bool:
        return time.monotonic() < self._look_again and self._engine.is_open(self._name, bound.segment)


class _Bound:
    """A segment, the fields that are read of it, and what reads them."""

    __slots__ = ("fields", "many", "one", "segment")

    def __init__(self, engine: Engine, segment: Segment, fields: list[str]) -> None:
        self.segment = segment
        self.fields = tuple(fields)
        # Only columns come with what tells when their rows were written.
        self.one: RowReader | None = None if engine.rows_expire else row_reader(segment, fields)
        self.many: Callable[[Any], Columns] = engine.reader_of(segment, fields)
