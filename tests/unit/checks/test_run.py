"""Checks find what pandas and NumPy find, in one pass over batches of any size."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings

from quorin.engine.checks import measure
from quorin.engine.checks.report import Report
from quorin.engine.checks.run import run
from quorin.errors import CheckFailedError
from quorin.metrics import checks_failed
from quorin.schema import (
    FeatureField,
    Freshness,
    MeanDrift,
    NullShare,
    QuantileDrift,
    Range,
    RowCount,
    dtype,
    make_schema,
    schema_to_arrow,
)

NUMBERS = make_schema(
    "Numbers",
    [
        FeatureField("x", dtype.float64),
        FeatureField("n", dtype.int64),
        FeatureField("pair", dtype.float32, (2,)),
        FeatureField("list", dtype.int32, (None,)),
        FeatureField("text", dtype.string),
        FeatureField("flag", dtype.bool),
    ],
)
SECOND = 10**9
FLOATS = st.none() | st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "x": FLOATS,
            "n": st.none() | st.integers(-(2**53), 2**53),
            "pair": st.none() | st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=2),
            "list": st.none() | st.lists(st.integers(-50, 50), max_size=3),
            "text": st.none() | st.text(max_size=3),
            "flag": st.none() | st.booleans(),
        }
    ),
    max_size=40,
)


def batches(rows: list[dict[str, Any]], size: int = 7, first_id: int = 0) -> list[pa.RecordBatch]:
    """Rows as a scan returns them, in batches of ``size``; row ``i`` has the id ``e<i>`` and the event time i s."""
    schema = pa.schema([("entity_id", pa.string()), ("event_time_ns", pa.int64()), *schema_to_arrow(NUMBERS)])
    whole = [
        {"entity_id": f"e{first_id + i}", "event_time_ns": (first_id + i) * SECOND, **row} for i, row in enumerate(rows)
    ]
    return [
        pa.RecordBatch.from_pylist(whole[start : start + size], schema=schema) for start in range(0, len(whole), size)
    ]


def values_of(rows: list[dict[str, Any]], field: str) -> Any:
    """The finite numbers of a field, one by one."""
    series = pd.Series([row[field] for row in rows], dtype=object).dropna()
    flat = series.explode().dropna().astype(float) if field in ("pair", "list") else series.astype(float)
    return flat[np.isfinite(flat)].to_numpy()


@settings(max_examples=60, deadline=None)
@given(ROWS, ROWS, st.integers(1, 50))
def test_figures_are_those_of_pandas(candidate: list[Any], current: list[Any], size: int) -> None:
    ranks = (0.0, 0.1, 0.5, 1.0)
    fields = ("x", "n", "pair", "list", "flag")
    checks = [
        *(NullShare(name, at_most=0.25) for name in (*fields, "text")),
        *(Range(name, low=-10, high=20.5, at_most=0.5) for name in fields),
        *(MeanDrift(name, at_most=0.5) for name in fields),
        *(QuantileDrift(name, quantiles=ranks, at_most=0.5) for name in fields),
    ]
    report = run(checks, NUMBERS, batches(candidate, size), batches(current, size))
    assert (report.rows, report.served_rows) == (len(candidate), len(current))
    frame = pd.DataFrame(candidate, columns=[*fields, "text"], dtype=object)
    for check, result in zip(checks, report.results, strict=True):
        name = str(check.field_name)
        if isinstance(check, NullShare):
            expected = float(frame[name].isna().mean()) if len(frame) else 0.0
        elif isinstance(check, Range):
            bad = [
                any(v < -10 or v > 20.5 for v in (one if isinstance(one, list) else [one]))
                for one in frame[name].dropna()
            ]
            expected = sum(bad) / len(frame) if len(frame) else 0.0
        else:
            ours, theirs = values_of(candidate, name), values_of(current, name)
            if not len(theirs):
                assert (result.passed, bool(result.note)) == (True, True)
                continue
            pairs = [(ours.mean() if len(ours) else math.nan, theirs.mean())]
            if isinstance(check, QuantileDrift):
                found = np.quantile(ours, ranks) if len(ours) else [math.nan] * len(ranks)
                pairs = list(zip(found, np.quantile(theirs, ranks), strict=True))
            expected = max(drift(a, b, theirs.std()) for a, b in pairs)
        assert result.found == pytest.approx(expected, rel=1e-6, abs=1e-6) or spreadless(current, name)
        assert result.passed == (result.found is not None and result.found <= check.at_most)  # type: ignore[attr-defined]


def drift(a: float, b: float, deviation: float) -> float:
    if a == b:
        return 0.0
    return math.inf if math.isnan(a) or not deviation else abs(a - b) / deviation


def spreadless(rows: list[Any], name: str) -> bool:
    """Whether rounding alone decides the standard deviation, so that two ways to compute it need not agree."""
    values = values_of(rows, name)
    return len(values) > 0 and values.std() <= 1e-9 * max(1.0, np.abs(values).max())


@given(ROWS, ROWS)
@settings(max_examples=40, deadline=None)
def test_examples_are_rows_that_fail(candidate: list[Any], current: list[Any]) -> None:
    checks = [NullShare("x", at_most=0), Range("n", low=0), Range("list", high=0), MeanDrift("x", at_most=0)]
    report = run(checks, NUMBERS, batches(candidate), batches(current))
    rows = {f"e{i}": row for i, row in enumerate(candidate)}
    nulls, low, lists, mean = report.results
    for result in report.results:
        assert len(result.examples) <= measure.EXAMPLES
        assert bool(result.examples) or result.passed or result.found == math.inf
    assert all(pd.isna(rows[entity_id]["x"]) for entity_id, _ in nulls.examples)
    assert all(rows[entity_id]["n"] == value < 0 for entity_id, value in low.examples)
    assert all(value > 0 and value in rows[entity_id]["list"] for entity_id, value in lists.examples)
    assert len({entity_id for entity_id, _ in lists.examples}) == len(lists.examples)
    assert all(rows[entity_id]["x"] == value for entity_id, value in mean.examples)


@pytest.mark.parametrize(
    ("check", "rows", "served", "passes"),
    [
        (RowCount(min_share=0.9), 90, 100, True),
        (RowCount(min_share=0.9), 89, 100, False),
        (RowCount(max_share=1.1), 111, 100, False),
        (RowCount(at_least=5), 4, 0, False),
        (RowCount(at_most=5), 6, 0, False),
        (RowCount(at_least=0, at_most=5), 0, 0, True),
        (RowCount(min_share=0.9), 1, 0, True),
        (RowCount(min_share=0.5, at_least=80), 60, 100, False),
    ],
)
def test_row_counts(check: RowCount, rows: int, served: int, passes: bool) -> None:
    row = dict.fromkeys(["x", "n", "pair", "list", "text", "flag"])
    [result] = run([check], NUMBERS, batches([row] * rows), batches([row] * served)).results
    assert (result.passed, result.found) == (passes, rows)
    gone = {f"e{i}" for i in range(rows, served)}
    assert {entity_id for entity_id, _ in result.examples} <= gone
    assert bool(result.examples) == (not passes and bool(gone))


def test_freshness_is_the_age_of_the_newest_event() -> None:
    row = dict.fromkeys(["x", "n", "pair", "list", "text", "flag"])
    check = Freshness(at_most="1m30s")
    for now, passes in ((99, True), (100, False)):
        [result] = run([check], NUMBERS, batches([row] * 10), now_ns=now * SECOND).results
        assert (result.passed, result.found, result.examples[0][0]) == (passes, pytest.approx(now - 9), "e9")
    assert not run([check], NUMBERS, []).passed


def test_limits_of_float32_are_meant_as_written() -> None:
    rows = [{"x": 0.1, "n": 2**53 + 1, "pair": [0.1, 0.7], "list": [], "text": "", "flag": True}]
    checks = [Range("pair", low=0.1, high=0.7), Range("n", high=2**53 + 1), Range("n", high=2**53)]
    assert [result.passed for result in run(checks, NUMBERS, batches(rows)).results] == [True, True, False]
    assert run([Range("pair", high=1e300), Range("n", low=-(2**70))], NUMBERS, batches(rows)).passed


def test_quantiles_of_more_values_than_are_kept_are_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SAMPLE", 1 << 12)
    sample, random = measure.Sample(), np.random.default_rng(7)
    values = random.permutation(np.arange(100_000.0))
    for part in np.array_split(values, 37):
        sample.add(part)
    kept = sample.values()
    assert len(kept) == len(set(kept)) == 1 << 12
    error = 4 * 0.5 / math.sqrt(1 << 12)  # Four standard deviations of the rank of a sample's quantile.
    for rank in (0.01, 0.5, 0.99):
        assert np.quantile(kept, rank) / 100_000 == pytest.approx(rank, abs=error)


def test_a_failure_names_the_check_the_figures_and_examples_and_is_counted() -> None:
    rows = [{"x": float(i), "n": i, "pair": None, "list": [], "text": "t", "flag": None} for i in range(10)]
    before = checks_failed.labels("Numbers", "range").value
    report = run(
        [Range("n", high=7, at_most=0.1), NullShare("x", at_most=0)], NUMBERS, batches(rows), batches(rows[:4])
    )
    with pytest.raises(CheckFailedError) as refused:
        report.raise_if_failed()
    assert str(refused.value) == (
        "Numbers does not pass 1 of its checks: range of 'n': found 0.2, allowed a share of at most 0.1 outside any to "
        "7, served 0; for example 'e8': 8, 'e9': 9"
    )
    assert refused.value.schema_name == "Numbers"
    assert checks_failed.labels("Numbers", "range").value == before + 1
    assert report.as_dict()["checks"][0]["examples"] == [
        {"entity_id": "e8", "value": 8},
        {"entity_id": "e9", "value": 9},
    ]
    Report("Numbers", 1, 1, report.results[1:]).raise_if_failed()


def test_a_check_of_a_field_that_is_gone_says_so() -> None:
    report = run([NullShare("gone", at_most=0), Range("text", low=0)], NUMBERS, [])
    assert report.passed
    assert "no such field" in report.results[0].note
    assert "of string" in report.results[1].note
