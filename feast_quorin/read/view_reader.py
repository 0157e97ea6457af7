"""Reads of one view for one choice of features: bound to its segment once, and again when the segment is replaced.

Many entities are read as typed columns (:class:`quorin.assembly.Columns`), one entity as Python values from all views
of its key at once (:class:`quorin.assembly.Rows`). Both are copies of whole rows, so values may be decoded later.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from feast_quorin.read.limits import check_fresh, column_asking
from feast_quorin.read.options import finish
from quorin.assembly import Columns, RowReader, Rows, has_applied, row_reader
from quorin.errors import NotHeldError, SchemaMismatchError, SegmentClosedError, SegmentNotFoundError

if TYPE_CHECKING:
    from feast_quorin.session import Session
    from feast_quorin.views import StoredView
    from quorin.assembly import Asking
    from quorin.schema import Schema
    from quorin.shm import Segment
    from quorin.wal import Token

LOOK_SECONDS = 0.005
"""How often a busy reader checks whether another process has removed its segment: nothing notifies readers."""

_MAX_ATTEMPTS = 6


class ViewReader:
    """Reads the requested features of one view. Threads may share it.

    ``session`` must be this process's own. ``limits`` are the ages up to which fields are served, by their names.
    """

    __slots__ = ("_bound", "_features", "_fields", "_look_again", "_name", "limits", "session", "view")

    def __init__(
        self, session: Session, view: StoredView, features: Sequence[str], limits: Mapping[str, timedelta]
    ) -> None:
        self.session = session
        self.limits = limits
        self.view = view
        self._name = view.schema.__name__
        self._features = features
        self._fields = [view.features[name].field for name in features]
        self._bound: _Bound | None = None
        self._look_again = 0.0

    def limited(self, limits: Mapping[str, timedelta]) -> ViewReader:
        """A reader of the same features with other limits."""
        return ViewReader(self.session, self.view, self._features, limits)

    @property
    def schema(self) -> Schema:
        """The schema that the view is stored by."""
        return self.view.schema

    def __call__(self, entity_ids: Any, now_ns: int = 0, at_most: int | None = None) -> Columns:
        """Read many entities, in any form that the engine takes. The columns are the requested fields that the segment
        has: all of them, unless the view changed and this process has not noticed yet. Ages count from ``now_ns``.

        :raises InconsistentReadError: for a row that was written after the log position ``at_most``.
        :raises SegmentNotFoundError: if the view was never applied, or was removed.
        :raises NotHeldError: for a row of a partition that no machine answers for.
        """
        return finish(self.asking(entity_ids, now_ns, at_most))

    def asking(self, entity_ids: Any, now_ns: int = 0, at_most: int | None = None) -> Asking[Columns]:
        """The same, which may ask other machines in between."""
        for _ in range(_MAX_ATTEMPTS):
            try:
                return (yield from self._bind().read(entity_ids, now_ns=now_ns, at_most=at_most))
            except NotHeldError:
                if self._bound is None or self._bound.is_routed:
                    raise
                self._bound = None  # The machine holds fewer partitions than before.
            except (SchemaMismatchError, SegmentNotFoundError, SegmentClosedError):
                self._bound = None
                if not self.session.forget(self.view):
                    raise
        raise SegmentNotFoundError(
            f"feature view {self.view.name!r}: its segment was replaced {_MAX_ATTEMPTS} times in one read"
        )

    def wait(self, token: Token) -> None:
        """Return when the view's segment shows a token that the request asks for (:mod:`feast_quorin.read.options`).

        :raises NotYetAppliedError, TokenError: as :func:`quorin.assembly.wait_for`.
        :raises SegmentNotFoundError: if the view was never applied, or was removed.
        """
        with suppress(SchemaMismatchError, SegmentNotFoundError, SegmentClosedError):
            if has_applied(self._bind().segment, token):
                return
        self.session.follow(self.view, lambda _: None)

    def bound(self) -> tuple[Segment, tuple[str, ...], float] | None:
        """The segment, the fields to read of it, and until when to do so without another check; None if the segment
        lacks one of them, or if rows expire.

        :raises SegmentNotFoundError: if the view was never applied, or was removed.
        """
        bound = self._bind()
        # Only columns come with the positions that tell when their rows were written.
        if self.session.settings.key_ttl_seconds or len(bound.fields) < len(self._fields):
            return None
        return bound.segment, bound.fields, self._look_again

    def _bind(self) -> _Bound:
        bound = self._bound
        if bound is not None and self._is_fresh(bound):
            return bound
        now = time.monotonic()
        segment = self.session.prepare(self.view)
        check_fresh(self.session.settings, self.view, segment)
        if bound is None or bound.segment is not segment:
            stored = {field.name for field in segment.schema.fields}
            kept = [name for name in self._fields if name in stored]
            limits = {name: self.limits[name] for name in kept if name in self.limits}
            self._bound = bound = _Bound(self.session, segment, kept, limits)
        self._look_again = now + LOOK_SECONDS
        return bound

    def _is_fresh(self, bound: _Bound) -> bool:
        return time.monotonic() < self._look_again and self.session.reads_from(self._name, bound.segment)


class _Bound:
    """A segment, the fields that are read of it, and the function that reads them."""

    __slots__ = ("fields", "is_routed", "read", "segment")

    def __init__(self, session: Session, segment: Segment, fields: list[str], limits: Mapping[str, timedelta]) -> None:
        self.segment = segment
        self.fields = tuple(fields)
        self.is_routed = segment.partitioning.is_partial
        self.read = column_asking(segment, fields, session.settings.key_ttl_seconds, limits, session.routed)


class _BoundViews(NamedTuple):
    """Segments and their reader, valid until a time or until the session opens other segments."""

    segments: list[Segment]
    read: RowReader
    until: float
    opened: object


class EntityReader:
    """Reads one entity in several views, each bound by its own reader. Threads may share it."""

    __slots__ = ("_bound", "_session", "_views")

    def __init__(self, views: Sequence[ViewReader]) -> None:
        self._session = views[0].session
        self._views = views
        self._bound: _BoundViews | None = None

    def __call__(self, entity_id: str, now_ns: int = 0, at_most: int | None = None) -> Rows | None:
        """The rows of one entity; None if only the views' own readers can read them, or if one is after ``at_most``."""
        try:
            bound = self._bound
            if bound is None or bound.opened is not self._session.opened or time.monotonic() >= bound.until:
                bound = self._bound = self._bind()
            return None if bound is None else bound.read(entity_id, now_ns, at_most)
        except (NotHeldError, SchemaMismatchError, SegmentNotFoundError, SegmentClosedError):
            return None

    def _bind(self) -> _BoundViews | None:
        before, opened = self._bound, self._session.opened
        bounds = [view.bound() for view in self._views]
        complete = [bound for bound in bounds if bound is not None]
        if len(complete) < len(bounds):
            return None
        segments = [segment for segment, _, _ in complete]
        if before is not None and before.segments == segments:
            read = before.read
        else:
            max_ages = [view.limits or None for view in self._views]
            parts = [(segment, fields) for segment, fields, _ in complete]
            read = row_reader(parts, positions=True, max_ages=max_ages if any(max_ages) else None)
        return _BoundViews(segments, read, min(until for _, _, until in complete), opened)
