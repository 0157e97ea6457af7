"""Measures rows for checks, batch by batch: counts, moments, samples for quantiles, and examples.

Values are float64 unless they are compared with a limit, which happens in their own type.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quorin.engine.checks.declared import MeanDrift, QuantileDrift, Range, RowCount

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from quorin.engine.arrays import AnyArray, Float64s
    from quorin.engine.checks.declared import Check

EXAMPLES = 5
SAMPLE = 1 << 20
"""Values from which quantiles are exact; beyond that they are of a random sample of as many."""
_FOLLOWED_IDS = 1000
_SEED = 0

Example = tuple[str, Any]


class Measured:
    """What was measured of the rows of one generation. ``served`` has the measures of the one that is served."""

    def __init__(self, checks: Sequence[Check], served: Measured | None = None) -> None:
        self.rows = 0
        self.newest_ns: int | None = None
        self.newest_id = ""
        self.fields: dict[str, MeasuredField] = {
            name: MeasuredField(
                [check for check in checks if check.field_name == name],
                None if served is None else served.fields[name],
            )
            for name in dict.fromkeys(check.field_name for check in checks if check.field_name is not None)
        }
        self._follows = any(isinstance(check, RowCount) for check in checks)
        self._served_ids: pa.Array | None = None if served is None else served.first_ids
        self.first_ids: pa.Array = pa.array([], pa.string())
        self._seen: AnyArray | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        """Measure a batch with the columns ``entity_id``, ``event_time_ns`` and the fields."""
        if not batch.num_rows:
            return
        self.rows += batch.num_rows
        ids, times = batch.column("entity_id"), batch.column("event_time_ns").to_numpy()
        newest = int(times.argmax())
        if self.newest_ns is None or int(times[newest]) > self.newest_ns:
            self.newest_ns, self.newest_id = int(times[newest]), ids[newest].as_py()
        if self._follows:
            self._follow(ids)
        for name, field in self.fields.items():
            if name in batch.schema.names:  # Rows of another version of the schema may lack it.
                field.add(ids, batch.column(name))

    def missing_ids(self) -> list[str]:
        """Some of the served entities that were not measured here."""
        if self._served_ids is None:
            return []
        missing = self._served_ids if self._seen is None else self._served_ids.filter(pa.array(~self._seen))
        ids: list[str] = missing[:EXAMPLES].to_pylist()
        return ids

    def _follow(self, ids: pa.Array) -> None:
        if self._served_ids is not None and len(self._served_ids):
            found = pc.is_in(self._served_ids, value_set=ids).to_numpy(zero_copy_only=False)
            self._seen = found if self._seen is None else self._seen | found
        elif len(self.first_ids) < _FOLLOWED_IDS:
            self.first_ids = pa.concat_arrays([self.first_ids, ids[: _FOLLOWED_IDS - len(self.first_ids)]])


class MeasuredField:
    """What was measured of one field: ``missing`` rows (null or NaN), ``mean`` and ``deviation`` of finite values."""

    def __init__(self, checks: Sequence[Check], served: MeasuredField | None) -> None:
        self.rows = self.missing = self.count = 0
        self.mean, self._squares = math.nan, 0.0
        self.missing_examples: list[Example] = []
        self.outside: dict[Range, int] = {check: 0 for check in checks if isinstance(check, Range)}
        self.outside_examples: dict[Range, list[Example]] = {check: [] for check in self.outside}
        self.extremes: list[tuple[float, str, float]] = []
        self._served = served
        self._needs_moments = any(isinstance(check, (MeanDrift, QuantileDrift)) for check in checks)
        self._sample = Sample() if any(isinstance(check, QuantileDrift) for check in checks) else None

    @property
    def deviation(self) -> float:
        """The standard deviation of the finite values, of the population."""
        return math.sqrt(self._squares / self.count) if self.count else math.nan

    def quantiles(self, ranks: Sequence[float]) -> list[float]:
        """Quantiles of the finite values, interpolated linearly; NaN without values."""
        values = self._sample.values() if self._sample is not None else np.empty(0)
        return [math.nan] * len(ranks) if not len(values) else [float(q) for q in np.quantile(values, ranks)]

    def add(self, ids: pa.Array, column: pa.Array) -> None:
        """Measure the field's column of a batch."""
        self.rows += len(column)
        missing = _missing(column)
        self.missing += int(missing.sum())
        for row in np.flatnonzero(missing)[: EXAMPLES - len(self.missing_examples)]:
            self.missing_examples.append((ids[int(row)].as_py(), None))
        if self.outside or self._needs_moments:
            rows, values = _elements(column)
            self._add_ranges(ids, rows, values)
            if self._needs_moments:
                self._add_moments(ids, rows, values.astype(np.float64))

    def _add_ranges(self, ids: pa.Array, rows: AnyArray, values: AnyArray) -> None:
        for check, examples in self.outside_examples.items():
            outside = np.zeros(len(values), bool)
            if check.low is not None:
                outside |= values < _limit(check.low, values)
            if check.high is not None:
                outside |= values > _limit(check.high, values)
            found = np.flatnonzero(outside)
            # Arrays and lists: a row counts once, however many of its elements are out of range.
            places, first = np.unique(rows[found], return_index=True)
            self.outside[check] += len(places)
            for place, at in list(zip(places, first, strict=True))[: EXAMPLES - len(examples)]:
                examples.append((ids[int(place)].as_py(), values[found[at]].item()))

    def _add_moments(self, ids: pa.Array, rows: AnyArray, values: Float64s) -> None:
        is_finite = np.isfinite(values)
        rows, values = rows[is_finite], values[is_finite]
        if not len(values):
            return
        with np.errstate(over="ignore", invalid="ignore"):
            mean, squares = float(values.mean()), float(np.square(values - values.mean()).sum())
            total = self.count + len(values)
            if self.count:
                # Chan's rule for the moments of two parts.
                difference = mean - self.mean
                squares += self._squares + difference * difference * self.count * len(values) / total
                mean = self.mean + difference * len(values) / total
            self.mean, self._squares, self.count = mean, squares, total
            if self._sample is not None:
                self._sample.add(values)
            if self._served is not None and self._served.count:
                self._add_extremes(ids, rows, values, self._served.mean)

    def _add_extremes(self, ids: pa.Array, rows: AnyArray, values: Float64s, center: float) -> None:
        distance = np.abs(values - center)
        few = min(EXAMPLES, len(values))
        farthest = np.argpartition(distance, len(values) - few)[len(values) - few :]
        new = [(float(distance[at]), ids[int(rows[at])].as_py(), float(values[at])) for at in farthest]
        self.extremes = sorted(self.extremes + new, reverse=True)[:EXAMPLES]


class Sample:
    """A uniform random sample of at most :data:`SAMPLE` values, of however many: those with the lowest random keys."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(_SEED)
        self._parts: list[tuple[Float64s, Float64s]] = []
        self._size = 0

    def add(self, values: Float64s) -> None:
        """Add values."""
        self._parts.append((values, self._random.random(len(values))))
        self._size += len(values)
        if self._size > 2 * SAMPLE:
            self._shrink()

    def values(self) -> Float64s:
        """The sample, in no order."""
        self._shrink()
        return self._parts[0][0] if self._parts else np.empty(0)

    def _shrink(self) -> None:
        if not self._parts:
            return
        values, keys = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        if len(values) > SAMPLE:
            lowest = np.argpartition(keys, SAMPLE)[:SAMPLE]
            values, keys = values[lowest], keys[lowest]
        self._parts, self._size = [(values, keys)], len(values)


def measured(batches: Iterable[pa.RecordBatch], checks: Sequence[Check], served: Measured | None = None) -> Measured:
    """Measure rows in one pass."""
    result = Measured(checks, served)
    for batch in batches:
        result.add(batch)
    return result


def _missing(column: pa.Array) -> AnyArray:
    """Which rows are null or, of a scalar, NaN: bool ``[rows]``."""
    missing = pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))
    result: AnyArray = missing.to_numpy(zero_copy_only=False)
    return result


def _elements(column: pa.Array) -> tuple[AnyArray, AnyArray]:
    """The numbers of a column that are not null, those of arrays and lists one by one, and the row of each."""
    rows = np.arange(len(column))
    while True:
        rows, column = rows[pc.is_valid(column).to_numpy(zero_copy_only=False)], column.drop_null()
        if not pa.types.is_nested(column.type):
            break
        rows, column = rows[pc.list_parent_indices(column).to_numpy()], column.flatten()
    values = column.to_numpy(zero_copy_only=False)
    return rows, values.astype(np.uint8) if values.dtype == bool else values


def _limit(limit: float, values: AnyArray) -> Any:
    """A limit for values of an array's type: float32 values stand for decimal limits such as 0.1 too."""
    with np.errstate(over="ignore"):
        return np.float32(limit) if values.dtype == np.float32 else limit
