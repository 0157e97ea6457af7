"""The segments that a server reads, opened when they are asked for, and followed when they are replaced."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from quorin.engine.http.requests import InvalidRequestError
from quorin.engine.ops.event_times import EventScans
from quorin.engine.ops.readiness import readiness, schema_names
from quorin.errors import GenerationNotFoundError, QuorinError, SegmentClosedError, SegmentNotFoundError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from quorin.engine.ops.readiness import Readiness
    from quorin.shm import Segment, SegmentRegistry


class Catalogue:
    """The schemas of a deployment as this node has them, or some of them. Threads may share it.

    Those in ``pins`` stay with a generation (see :meth:`quorin.shm.SegmentRegistry.open_current`).
    """

    def __init__(
        self, registry: SegmentRegistry, names: Collection[str] = (), pins: Mapping[str, int | str] | None = None
    ) -> None:
        self._registry = registry
        self._names = frozenset(names)
        self._pins = pins or {}
        self._segments: dict[str, Segment] = {}
        self._events = EventScans()

    def segment(self, name: str) -> Segment:
        """The current segment of a schema, read through the schema that is stored in it.

        :raises InvalidRequestError: with 404 if there is none, if it is not among those that are served, or if the
            generation to stay with is gone.
        """
        segment = self._segments.get(name)
        if segment is not None and self._is_in_force(segment):
            return segment
        # A segment that is no longer in force is freed by its last reader, which may be in another thread.
        self._segments.pop(name, None)
        try:
            if self._names and name not in self._names:
                raise SegmentNotFoundError
            opened = self._segments[name] = self._registry.open_stored(name, pin=self._pins.get(name))
        except GenerationNotFoundError as error:
            raise InvalidRequestError(404, str(error)) from error
        except SegmentNotFoundError as error:
            there = [one for one in sorted(self._registry.node.currents()) if not self._names or one in self._names]
            raise InvalidRequestError(404, f"there is no schema {name!r} here; there are: {there}") from error
        return opened

    def readiness(self, max_lag_seconds: float | None) -> list[Readiness]:
        """Of each schema that is served."""
        return readiness(self._registry, max_lag_seconds=max_lag_seconds, names=self._names)

    def describe(self) -> list[dict[str, Any]]:
        """Each schema that is served: its fields, rows and freshness, or the problem that keeps it from being read."""
        return [self.describe_one(name) for name in sorted(self._names or schema_names(self._registry))]

    def describe_one(self, name: str) -> dict[str, Any]:
        """One schema, likewise."""
        try:
            segment = self.segment(name)
            schema, stats, lag = segment.schema, segment.stats(), segment.confirmed_age_seconds()
            events = self._events.of(name, segment)
        except (InvalidRequestError, QuorinError):
            return {"schema": name, "problem": "this machine has no segment of the schema that it can read"}
        return {
            "schema": name,
            "version": schema.version,
            "entity": schema.entity,
            "fields": [
                {"name": field.name, "dtype": field.dtype.name, "shape": field.shape, "default": field.default}
                for field in schema.fields
            ],
            "rows": stats["rows"],
            "capacity": stats["capacity"],
            "bytes": stats["bytes"],
            "position": stats["position"],
            "lag_seconds": None if math.isinf(lag) else max(0.0, lag),
            "newest_event_time_ns": events.newest_ns,
            "problem": None,
        }

    @staticmethod
    def _is_in_force(segment: Segment) -> bool:
        """False if it was removed, or upgraded to a version whose fields are to be served."""
        try:
            if segment.is_pinned:
                return True
            view = segment.current_view()
        except (SegmentClosedError, SegmentNotFoundError):
            return False
        return view.stored is view.schema and view.path.exists()
