"""Runs checks over a new generation and the one that is served."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from quorin.engine.checks.declared import (
    Check,
    Freshness,
    MeanDrift,
    NullShare,
    QuantileDrift,
    Range,
    RowCount,
    misfit,
)
from quorin.engine.checks.measure import Measured, measured
from quorin.engine.checks.report import Report, Result, figure
from quorin.engine.words import duration, moment

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pyarrow as pa

    from quorin.schema import Schema

_NOTHING_SERVED = "as there are no rows to compare with"


def run(
    checks: Sequence[Check],
    schema: Schema,
    candidate: Iterable[pa.RecordBatch],
    current: Iterable[pa.RecordBatch] = (),
    *,
    now_ns: int | None = None,
) -> Report:
    """Check the rows of ``candidate`` beside those of ``current``, each read once.

    Both are Arrow record batches with the columns ``entity_id``, ``event_time_ns`` and the schema's fields, as
    :func:`quorin.assembly.scan` returns them, and have one row for each entity. Checks against what is served pass
    without served rows; so do checks of fields that the schema does not have. Each says so in its note. ``now_ns`` is
    the time of :class:`Freshness`, by default the present.
    """
    fields = {field.name: field for field in schema.fields}
    misfits = {check: misfit(check, fields) for check in checks}
    fitting = [check for check in checks if not misfits[check]]
    served = measured(current, fitting)
    found = measured(candidate, fitting, served)
    results = [
        Result(check, True, None, "", note=misfits[check])
        if misfits[check]
        else _result(check, found, served, time.time_ns() if now_ns is None else now_ns)
        for check in checks
    ]
    return Report(schema.__name__, found.rows, served.rows, tuple(results))


def _result(check: Check, found: Measured, served: Measured, now_ns: int) -> Result:
    if isinstance(check, RowCount):
        return _row_count(check, found, served)
    if isinstance(check, NullShare):
        field, before = found.fields[check.field], served.fields[check.field]
        share, examples = _share(field.missing, field.rows), tuple(field.missing_examples)
        was = _share(before.missing, before.rows) if before.rows else None
        return Result(check, share <= check.at_most, share, f"at most {figure(check.at_most)}", was, examples)
    if isinstance(check, Range):
        field, before = found.fields[check.field], served.fields[check.field]
        share = _share(field.outside[check], field.rows)
        was = _share(before.outside[check], before.rows) if before.rows else None
        limits = f"{_bound(check.low)} to {_bound(check.high)}"
        allowed = f"a share of at most {figure(check.at_most)} outside {limits}"
        return Result(check, share <= check.at_most, share, allowed, was, tuple(field.outside_examples[check]))
    if isinstance(check, MeanDrift):
        return _mean_drift(check, found, served)
    if isinstance(check, QuantileDrift):
        return _quantile_drift(check, found, served)
    if isinstance(check, Freshness):
        return _freshness(check, found, served, now_ns)
    raise TypeError(f"unknown check {check!r}")


def _row_count(check: RowCount, found: Measured, served: Measured) -> Result:
    least: float = check.at_least or 0
    most: float = math.inf if check.at_most is None else check.at_most
    if served.rows:
        least = max(least, (check.min_share or 0) * served.rows)
        most = min(most, math.inf if check.max_share is None else check.max_share * served.rows)
    elif check.at_least is None and check.at_most is None:
        return Result(check, True, found.rows, "", note=_NOTHING_SERVED)
    passed = least <= found.rows <= most
    parts = [f"at least {figure(least)}"] * (least > 0) + [f"at most {figure(most)}"] * (most < math.inf)
    examples = tuple((entity_id, "missing") for entity_id in found.missing_ids()) if found.rows < least else ()
    return Result(check, passed, found.rows, " and ".join(parts) or "any", served.rows or None, examples)


def _mean_drift(check: MeanDrift, found: Measured, served: Measured) -> Result:
    field, before = found.fields[check.field], served.fields[check.field]
    if not before.count:
        return Result(check, True, None, "", note=_NOTHING_SERVED)
    drift = _drift(field.mean, before.mean, before.deviation)
    allowed = (
        f"at most {figure(check.at_most)} standard deviations of {figure(before.deviation)} from the mean "
        f"(here {figure(field.mean)})"
    )
    return Result(check, drift <= check.at_most, drift, allowed, before.mean, _extremes(found, check.field))


def _quantile_drift(check: QuantileDrift, found: Measured, served: Measured) -> Result:
    field, before = found.fields[check.field], served.fields[check.field]
    if not before.count:
        return Result(check, True, None, "", note=_NOTHING_SERVED)
    pairs = zip(check.quantiles, field.quantiles(check.quantiles), before.quantiles(check.quantiles), strict=True)
    drifts = [(_drift(value, was, before.deviation), rank, value, was) for rank, value, was in pairs]
    drift, rank, value, was = max(drifts, key=lambda one: one[0])
    allowed = (
        f"at most {figure(check.at_most)} standard deviations of {figure(before.deviation)} from the "
        f"{rank:g} quantile (here {figure(value)})"
    )
    return Result(check, drift <= check.at_most, drift, allowed, was, _extremes(found, check.field))


def _freshness(check: Freshness, found: Measured, served: Measured, now_ns: int) -> Result:
    allowed = f"at most {figure(check.seconds)} s ({check.at_most})"
    if found.newest_ns is None:
        return Result(check, False, None, allowed, None)
    age = (now_ns - found.newest_ns) / 1e9
    was = None if served.newest_ns is None else (now_ns - served.newest_ns) / 1e9
    newest = f"newest event {moment(found.newest_ns)}, {duration(age)} ago"
    return Result(check, age <= check.seconds, age, allowed, was, ((found.newest_id, newest),))


def _drift(value: float, was: float, deviation: float) -> float:
    """The distance of two figures in standard deviations; infinity if one of them is unknown or there is no spread."""
    distance = abs(value - was)
    if distance == 0:
        return 0.0
    drift = distance / deviation if deviation > 0 else math.inf
    return math.inf if math.isnan(drift) else drift


def _extremes(found: Measured, field: str) -> tuple[tuple[str, float], ...]:
    return tuple((entity_id, value) for _, entity_id, value in found.fields[field].extremes)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _bound(limit: float | None) -> str:
    return "any" if limit is None else figure(limit)
