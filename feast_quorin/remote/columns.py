"""What was received of a view, as the columns that the decoders take."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

_KINDS: dict[int, np.dtype[Any]] = {
    pa.int32().id: np.dtype(np.int32),
    pa.int64().id: np.dtype(np.int64),
    pa.float32().id: np.dtype(np.float32),
    pa.float64().id: np.dtype(np.float64),
    pa.timestamp("s").id: np.dtype(np.int64),
}
"""The types of numbers, by the number of Arrow's; booleans are bits."""


class ReceivedColumns:
    """The rows of one view in an answer: what decoders use of :class:`quorin.assembly.Columns`, over Arrow arrays.

    ``batch`` is the whole answer. Columns are named by their index in it; ``indexes`` are those of the view.
    """

    def __init__(self, batch: pa.RecordBatch, indexes: tuple[int, ...], statuses: int, times: int) -> None:
        self._batch = batch
        self._indexes = indexes
        self._statuses = statuses
        self._times = times

    @cached_property
    def found(self) -> Any:
        """Which entities have a row, as an array of booleans."""
        return ~self._has_status("NOT_FOUND")

    def age_limit(self, index: int) -> int:  # noqa: ARG002
        """One for all features, as those that the server had different limits for are views of their own here."""
        return 0

    def outdated(self, index: int) -> Any:  # noqa: ARG002
        """Which rows are over the age limit, as an array of booleans."""
        return self._has_status("OUTSIDE_MAX_AGE")

    @cached_property
    def event_time_ns(self) -> Any:
        """Event times in nanoseconds since the epoch, int64; 0 where not found."""
        return _numbers(self._batch.column(self._times).view(pa.int64()).fill_null(0))

    @cached_property
    def complete(self) -> bool:
        """Whether no value of the view is null."""
        return not any(self._batch.column(index).null_count for index in self._indexes)

    def values(self, index: int) -> Any:
        """Numbers, times or booleans as an array. Those that are not valid mean nothing."""
        return _numbers(self._batch.column(index))

    def valid(self, index: int) -> Any:
        """Where a feature has a value."""
        return self._batch.column(index).is_valid().to_numpy(zero_copy_only=False)

    def arrow(self, index: int) -> pa.Array:
        """The values in the engine's type, in which times are numbers."""
        column = self._batch.column(index)
        if pt.is_timestamp(column.type):
            return column.view(pa.int64())
        if pt.is_list(column.type) and pt.is_timestamp(column.type.value_type):
            return column.cast(pa.list_(pa.int64()))
        return column

    def lists(self, index: int) -> list[list[Any]]:
        """Lists of numbers, times or booleans. Those that are not valid mean nothing."""
        column = self._batch.column(index)
        flat = _numbers(column.values).tolist()
        return [flat[start:stop] for start, stop in pairwise(column.offsets.to_pylist())]

    def _has_status(self, status: str) -> Any:
        column = self._batch.column(self._statuses)
        return column.indices.to_numpy() == column.dictionary.index(status).as_py()


def _numbers(column: pa.Array) -> Any:
    """The values as they are in memory, with those that are null."""
    kind = _KINDS.get(column.type.id)
    if kind is None:
        return column.fill_null(False).to_numpy(zero_copy_only=False)
    count, data = len(column), column.buffers()[1]
    return np.frombuffer(data, kind, count, column.offset * kind.itemsize) if count and data else np.zeros(count, kind)
