"""The comparison: which entities, in which order the sides are read, and what each row and value is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quorin.engine.skew import kinds
from quorin.engine.skew.equal import is_equal
from quorin.engine.skew.report import FieldSkew, SkewExample, SkewReport
from quorin.engine.skew.sides import HistorySides, SideRows, Sides, picked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from quorin.engine.arrays import AnyArray, Int64s, Mask
    from quorin.engine.history.store import ParquetDatasetStore
    from quorin.shm import Segment

Progress = Callable[[int, int], None]
"""Called with the steps that are done, and their number."""

_STEPS = 5
_LEAST_NS = -(2**63)


class Options(NamedTuple):
    """How values are compared, and how much is shown."""

    rtol: float
    atol: float
    examples: int


def skew(
    segment: Segment,
    store: ParquetDatasetStore,
    *,
    sample: int | None = 10_000,
    as_of_time_ns: int | None = None,
    fields: Mapping[str, str] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-8,
    examples: int = 3,
    seed: int | None = None,
    progress: Progress | None = None,
) -> SkewReport:
    """Compare what a segment serves with what its history has.

    ``fields`` are the fields to compare and the names that the report has for them; see :func:`compare` for the rest.
    """
    as_of = time.time_ns() if as_of_time_ns is None else as_of_time_ns
    sides = HistorySides(segment, store, as_of_time_ns=as_of, fields=fields)
    return compare(sides, sample=sample, rtol=rtol, atol=atol, examples=examples, seed=seed, progress=progress)


def compare(
    sides: Sides,
    *,
    sample: int | None = 10_000,
    rtol: float = 1e-5,
    atol: float = 1e-8,
    examples: int = 3,
    seed: int | None = None,
    progress: Progress | None = None,
) -> SkewReport:
    """Compare what is served with an offline source.

    Compares a random ``sample`` of the entities that are served, and one of those that the offline source has (None for
    all); ``seed`` makes it the same again. Floats may differ by ``atol + rtol * abs(offline)`` as in ``numpy.isclose``;
    lists, texts and all else must be the same. Each field has up to ``examples`` of each kind.

    Rows that are written meanwhile are set apart: what is served is read before the offline source and again after it,
    and a row that changed between counts as ``changed``; what the offline source cannot have yet as ``newer``.

    :raises ValueError: for a sample, tolerance or number of examples that is negative.
    """
    given = {"sample": 0 if sample is None else sample, "rtol": rtol, "atol": atol, "examples": examples}
    for name, value in given.items():
        if not value >= 0:
            raise ValueError(f"{name}: expected 0 or more, got {value!r}")
    step, seconds = _stepping(progress or _ignore)
    random = np.random.default_rng(seed)
    served_sample = _sampled(sides.served_ids(), sample, random)
    step("scan")
    offline_sample = _sampled(iter([sides.offline_ids()]), sample, random)
    ids = pc.unique(pa.concat_arrays([served_sample, offline_sample]))
    step("ids")
    first = sides.read_served(ids)
    offline = sides.read_offline(ids)
    step("offline")
    states, wrong = _judged(sides, first, offline, Options(rtol, atol, examples))
    _set_apart(sides, ids, first, states)
    step("served")
    result = _report(sides, ids, first, offline, states, wrong, examples)
    step("compare")
    result.seconds.update(seconds)
    return result


def _sampled(parts: Iterator[pa.Array], count: int | None, random: np.random.Generator) -> pa.Array:
    """A random sample without replacement: the ids with the smallest of random numbers."""
    kept, keys = pa.array([], pa.large_string()), np.zeros(0)
    for part in parts:
        kept = pa.concat_arrays([kept, part.cast(pa.large_string())])
        keys = np.concatenate([keys, random.random(len(part))])
        if count is not None and len(kept) > count:
            chosen = np.argpartition(keys, count)[:count] if count else np.zeros(0, np.int64)
            kept, keys = picked(kept, chosen), keys[chosen]
    return kept


def _judged(sides: Sides, served: SideRows, offline: SideRows, options: Options) -> tuple[AnyArray, dict[str, Mask]]:
    """What each row is, as an index of ``STATES``, -1 for an entity that neither side has; and by field which values
    are wrong.
    """
    both = served.found & offline.found
    least = _LEAST_NS if sides.least_time_ns is None else sides.least_time_ns
    alone = served.found & ~offline.found
    latest = np.where(both, offline.time_ns, sides.as_of_time_ns)
    newer = served.found & (sides.is_newer(served) | (served.time_ns > latest))
    stale = both & (served.time_ns < offline.time_ns)
    differs = {
        name: ~is_equal(column, offline.columns[name], rtol=options.rtol, atol=options.atol)
        for name, column in served.columns.items()
    }
    same_event = both & (served.time_ns == offline.time_ns)
    any_differs = np.zeros(len(both), np.bool_)
    for mask in differs.values():
        any_differs |= mask
    cases = [
        (newer, kinds.NEWER),
        (~served.found & ~offline.found, None),
        (offline.found & ~served.found, kinds.MISSING),
        (alone & (served.time_ns < least), kinds.EXPIRED),
        (alone, kinds.EXTRA),
        (stale, kinds.STALE),
        (same_event & any_differs, kinds.DIFFERENT),
    ]
    numbers = [-1 if kind is None else kinds.STATES.index(kind) for _, kind in cases]
    states = np.select([mask for mask, _ in cases], numbers, kinds.STATES.index(kinds.EQUAL))
    return states, differs


def _set_apart(sides: Sides, ids: pa.Array, first: SideRows, states: AnyArray) -> None:
    """Take rows that seem skewed, and changed since they were read, out of the judgement."""
    suspects = np.flatnonzero(np.isin(states, [kinds.STATES.index(kind) for kind in kinds.SKEWED]))
    if not len(suspects):
        return
    again = sides.read_served(picked(ids, suspects))
    changed = (again.found != first.found[suspects]) | (again.positions != first.positions[suspects])
    states[suspects[changed]] = kinds.STATES.index(kinds.CHANGED)


def _report(
    sides: Sides,
    ids: pa.Array,
    served: SideRows,
    offline: SideRows,
    states: AnyArray,
    wrong: dict[str, Mask],
    examples: int,
) -> SkewReport:
    counts = np.bincount(states[states >= 0], minlength=len(kinds.STATES)).tolist()
    of_kind = {kind: states == kinds.STATES.index(kind) for kind in kinds.SKEWED}
    fields = []
    for name, mask in wrong.items():
        rows = {kind: np.flatnonzero(mask & of_kind[kind]) for kind in kinds.SKEWED}
        shown = [
            example
            for kind, found in rows.items()
            for example in _examples(name, kind, found[:examples], ids, served, offline)
        ]
        fields.append(FieldSkew(name, {kind: len(found) for kind, found in rows.items()}, shown))
    late = (offline.time_ns - served.time_ns)[of_kind[kinds.STALE]] / 1e9
    staleness = {name: float(np.quantile(late, q)) for name, q in kinds.QUANTILES.items()} if len(late) else None
    return SkewReport(sides.name, sides.as_of_time_ns, dict(zip(kinds.STATES, counts, strict=True)), fields, staleness)


def _examples(
    name: str, kind: str, rows: Int64s, ids: pa.Array, served: SideRows, offline: SideRows
) -> Iterator[SkewExample]:
    for row in rows.tolist():
        yield SkewExample(
            entity_id=ids[row].as_py(),
            kind=kind,
            served=served.columns[name][row].as_py(),
            offline=offline.columns[name][row].as_py(),
            served_time_ns=int(served.time_ns[row]) if served.found[row] else None,
            offline_time_ns=int(offline.time_ns[row]) if offline.found[row] else None,
        )


def _stepping(progress: Progress) -> tuple[Callable[[str], None], dict[str, float]]:
    """A function that ends a step, and the seconds of the steps that ended."""
    seconds: dict[str, float] = {}
    started = time.monotonic()

    def step(name: str) -> None:
        nonlocal started
        now = time.monotonic()
        seconds[name] = round(now - started, 3)
        started = now
        progress(len(seconds), _STEPS)

    progress(0, _STEPS)
    return step, seconds


def _ignore(done: int, total: int) -> None:
    """No progress is shown."""
