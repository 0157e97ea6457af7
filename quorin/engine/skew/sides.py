"""The two sides of a comparison: what is served, and the offline source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from quorin.engine.arrays import Int64s, Mask
    from quorin.engine.history.store import ParquetDatasetStore
    from quorin.shm import Segment


@dataclass(frozen=True)
class SideRows:
    """The rows of some entities on one side, in the order of the ids.

    ``found`` (bool) says which entities have a row, ``time_ns`` (int64) when its event was; 0 where there is none.
    ``columns`` are the fields by the names that the report has for them, in the types in which they are served.
    ``positions`` (int64) are the log positions of rows that are served; offline rows have none.
    """

    found: Mask
    time_ns: Int64s
    columns: Mapping[str, pa.Array]
    positions: Int64s = field(default_factory=lambda: np.zeros(0, np.int64))


class Sides(ABC):
    """What :func:`quorin.offline.compare` compares: derive from it for another offline source.

    ``name`` is that of the schema or view, ``as_of_time_ns`` the time that the offline source is read as of, and
    ``least_time_ns`` the event time from which rows count (a view's TTL), None for any.
    """

    name: str
    as_of_time_ns: int
    least_time_ns: int | None = None

    @abstractmethod
    def served_ids(self) -> Iterator[pa.Array]:
        """The ids of all entities that are served, in parts."""

    @abstractmethod
    def offline_ids(self) -> pa.Array:
        """The ids of all entities that the offline source has as of the time."""

    @abstractmethod
    def read_served(self, ids: pa.Array) -> SideRows:
        """What is served of some entities now, with positions."""

    @abstractmethod
    def read_offline(self, ids: pa.Array) -> SideRows:
        """What the offline source has of the same entities as of the time, in the same columns."""

    @abstractmethod
    def is_newer(self, served: SideRows) -> Mask:
        """Which rows that are served the offline source cannot have yet."""


class HistorySides(Sides):
    """A segment, and the history of its log."""

    def __init__(
        self,
        segment: Segment,
        store: ParquetDatasetStore,
        *,
        as_of_time_ns: int,
        fields: Mapping[str, str] | None = None,
    ) -> None:
        from quorin.assembly import column_reader  # Late, so that a process which only writes a history does without.

        self.name = segment.schema.__name__
        self.as_of_time_ns = as_of_time_ns
        self._segment, self._store = segment, store
        self._names = dict(fields or {field.name: field.name for field in segment.schema.fields})
        self._read = column_reader(segment, list(self._names), positions=True)

    def served_ids(self) -> Iterator[pa.Array]:  # noqa: D102 - the base class says it
        from quorin.assembly import scan

        for batch in scan(self._segment, fields=[]):
            yield batch.column("entity_id")

    def offline_ids(self) -> pa.Array:  # noqa: D102
        ids = self._store.distinct_entity_ids(self._segment.schema)
        return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids

    def read_served(self, ids: pa.Array) -> SideRows:  # noqa: D102
        columns = self._read(ids)
        arrays = {name: columns.arrow(index) for index, name in enumerate(self._names.values())}
        return SideRows(columns.found, columns.event_time_ns, arrays, columns.positions)

    def read_offline(self, ids: pa.Array) -> SideRows:  # noqa: D102
        _ = self._durable  # What is flushed later is not needed to have been read.
        queries = {"entity_id": ids, "as_of_time_ns": np.full(len(ids), self.as_of_time_ns, np.int64)}
        table = self._store.read_point_in_time(self._segment.schema, queries).combine_chunks()
        times = table.column("event_time_ns")
        found = times.is_valid().to_numpy()
        columns = {shown: one_array(table.column(name)) for name, shown in self._names.items()}
        return SideRows(found, times.fill_null(0).to_numpy(), columns)

    def is_newer(self, served: SideRows) -> Mask:  # noqa: D102
        newer: Mask = served.found & (served.positions > self._durable)
        return newer

    @cached_property
    def _durable(self) -> int:
        """The log position up to which the history had everything before it was read."""
        return self._store.flushed_position(self._segment.schema)


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    if isinstance(column, pa.Array):
        return column
    combined: Any = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        return combined.chunk(0) if combined.num_chunks else pa.array([], combined.type)
    return combined


def picked(ids: pa.Array, chosen: Mask | Int64s) -> pa.Array:
    """Some ids, by a mask or by indexes."""
    return pc.filter(ids, pa.array(chosen)) if chosen.dtype == np.bool_ else ids.take(pa.array(chosen))
