"""The response for one entity, which is the most frequent one."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from feast.online_response import OnlineResponse

from feast_quorin.read.response import LazyResponse
from feast_quorin.read.tensors import TensorResponse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feast_quorin.read.positions import Positions
    from feast_quorin.read.request import Column
    from feast_quorin.read.resolved import Resolved
    from quorin.assembly import Rows


class RowNumbers(NamedTuple):
    """A response whose features are numbers: the join keys, the features in their order, and a time for each view."""

    resolved: Resolved
    keys: Sequence[Column]
    key_values: list[list[Any]]
    values: list[Any]
    event_times_ns: list[int]


class RowResponse(LazyResponse):
    """The response for one entity, whose views were all read at once. ``key_values`` are one value a column."""

    _computed = ()
    _proto = None

    def __init__(self, resolved: Resolved, keys: Sequence[Column], key_values: list[list[Any]], rows: Rows) -> None:
        self._resolved = resolved
        self._keys = keys
        self._key_values = key_values
        self._rows = rows
        self._features = resolved.features
        self._feature_types = resolved.feature_types

    @cached_property
    def _reads(self) -> list[Any]:  # type: ignore[override]
        return [self._rows[number] for number in range(len(self._resolved.views))]

    def positions(self) -> Positions:
        """The log positions of the rows, by view."""
        values, layout = self._rows.values, self._rows.layout
        found = values[-1]
        own = zip(self._resolved.view_names(), layout.firsts, found)  # noqa: B905 - hot
        return {view: [values[first + 1] if is_found else None] for view, first, is_found in own}

    def numbers(self) -> RowNumbers | None:
        """The response as numbers; None unless all features are, each with a value."""
        resolved, rows = self._resolved, self._rows
        if self._proto is not None or not resolved.has_numbers_only or resolved.with_versions or not rows.complete:
            return None
        values, layout = rows.values, rows.layout
        return RowNumbers(
            resolved,
            self._keys,
            self._key_values,
            [values[slot] for _, slot in resolved.slots(layout)],
            [values[first] for first in layout.firsts],
        )

    def to_dict(self, include_event_timestamps: bool = False) -> dict[str, Any]:
        """Lists of Python values by name."""
        resolved, rows = self._resolved, self._rows
        if include_event_timestamps or self._proto is not None or not resolved.has_numbers_only or not rows.complete:
            return super().to_dict(include_event_timestamps)
        result = {key.name: key.python(values) for key, values in zip(self._keys, self._key_values)}  # noqa: B905 - hot
        values = rows.values
        for name, slot in resolved.slots(rows.layout):
            result[name] = [values[slot]]
        return result

    # From so few values, Feast's own way by the dictionary is the fastest.
    to_df = OnlineResponse.to_df
    to_arrow = TensorResponse.to_arrow
