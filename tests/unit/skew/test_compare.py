"""What is served against the history: every kind of skew is found, by row and field, and no write meanwhile is one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorin.engine.rows.batch import to_batch
from quorin.engine.skew.equal import is_equal
from quorin.offline import ParquetDatasetStore, SkewReport, skew
from quorin.schema import FeatureField, FeatureSchema, dtype
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer

SECOND = 10**9
NOW = 1_900_000_000 * SECOND
"""Later than any event of these tests, and than the clock."""


class Visits(FeatureSchema):
    """Fields of the kinds that are compared in different ways."""

    version = 1
    fields = [
        FeatureField("rate", dtype.float32),
        FeatureField("total", dtype.int64),
        FeatureField("city", dtype.string),
        FeatureField("tags", dtype.string, shape=(None,)),
        FeatureField("vector", dtype.float64, shape=(2,)),
    ]


class World:
    """A segment and a history, which a test writes to separately."""

    def __init__(self, registry: SegmentRegistry, folder: Any) -> None:
        self.store = ParquetDatasetStore(folder)
        self.segment = registry.create(Visits, capacity=256)
        self.producer = WALProducer(registry.backend, registry=registry)
        self.consumer = WALConsumer(registry.backend, [Visits], registry=registry)

    def push(self, *rows: dict[str, Any]) -> int:
        """To the segment, which the history is then behind."""
        position = self.producer.write_many(Visits, list(rows))
        self.consumer.drain()
        return position

    def write(self, *rows: dict[str, Any]) -> None:
        """To both."""
        self.store.append(Visits, to_batch(Visits, list(rows)), pa.array([self.push(*rows)] * len(rows)))
        self.store.flush()

    def serve(self, *rows: dict[str, Any]) -> None:
        """To the segment alone; the history claims to have all that was logged."""
        self.store.skip_to(Visits, self.push(*rows))

    def keep(self, *rows: dict[str, Any]) -> None:
        """To the history alone."""
        positions = self.store.flushed_position(Visits) + 1 + np.arange(len(rows))
        self.store.append(Visits, to_batch(Visits, list(rows)), pa.array(positions))
        self.store.flush()

    def delete(self, *ids: str, second: int = 100) -> int:
        """From the segment; returns the position."""
        for entity_id in ids:
            position = self.producer.delete(Visits, entity_id, second * SECOND)
        self.consumer.drain()
        return position

    def skew(self, **options: Any) -> SkewReport:
        return skew(self.segment, self.store, **{"as_of_time_ns": NOW, "seed": 1, **options})


def row(entity_id: str, second: int, **values: Any) -> dict[str, Any]:
    usual = {"rate": 0.5, "total": 1, "city": "Oslo", "tags": ["a"], "vector": [1.0, 2.0]}
    return {"entity_id": entity_id, "event_time_ns": second * SECOND, **usual, **values}


@pytest.fixture
def world(registry, tmp_path):
    world = World(registry, tmp_path / "history")
    world.write(*(row(f"e{number}", 100, total=number) for number in range(10)))
    return world


def kinds(report: SkewReport) -> dict[str, int]:
    return {kind: count for kind, count in report.rows.items() if count}


def wrong(report: SkewReport) -> dict[str, dict[str, int]]:
    return {
        field.name: {kind: count for kind, count in field.counts.items() if count}
        for field in report.fields
        if field.skewed
    }


def test_equal_sides_have_no_skew(world):
    report = world.skew()
    assert kinds(report) == {"equal": 10}
    assert (wrong(report), report.exceeded(), report.staleness_seconds, report.compared) == ({}, [], None, 10)
    assert set(report.seconds) == {"scan", "ids", "offline", "served", "compare"}


def test_every_kind_is_found_and_shown(world):
    world.store.skip_to(Visits, world.delete("e0"))
    world.serve(
        row("extra", 50), row("e2", 100, rate=0.75, total=2), row("e3", 100, tags=["a", "b"], city=None, total=3)
    )
    world.keep(row("e4", 160, total=4, city="Rome"), row("e5", 400, total=5))
    report = world.skew(examples=1)
    assert kinds(report) == {"equal": 5, "different": 2, "stale": 2, "missing": 1, "extra": 1}
    one_each = {"missing": 1, "extra": 1}
    assert wrong(report) == {
        "rate": {**one_each, "different": 1},
        "total": one_each,
        "city": {**one_each, "different": 1, "stale": 1},
        "tags": {**one_each, "different": 1},
        "vector": one_each,
    }
    assert report.staleness_seconds == {"p50": 180, "p90": 276, "p99": pytest.approx(297.6), "max": 300}
    shown = {(field.name, example.kind): example for field in report.fields for example in field.examples}
    stale = shown["city", "stale"]
    assert (stale.entity_id, stale.served, stale.offline) == ("e4", "Oslo", "Rome")
    assert (stale.served_time_ns, stale.offline_time_ns) == (100 * SECOND, 160 * SECOND)
    assert (shown["rate", "missing"].served_time_ns, shown["rate", "extra"].offline_time_ns) == (None, None)
    assert shown["city", "different"].served is None
    assert report.exceeded() == ["stale", "missing", "extra", "rate", "total", "city", "tags", "vector"]
    assert report.exceeded(0.3) == ["city"]
    assert report.exceeded(0.4) == []


def test_the_time_decides_what_is_expected(world):
    world.write(row("e1", 200, total=-1), row("new", 200))
    assert kinds(world.skew(as_of_time_ns=250 * SECOND)) == {"equal": 11}
    # As of then, two rows that are served now were not there yet.
    assert kinds(world.skew(as_of_time_ns=150 * SECOND)) == {"equal": 9, "newer": 2}


def test_rows_that_are_not_in_the_history_yet_are_no_skew(world):
    """By their position: one corrects a row at its event time, one is late, one is new."""
    late = [row("e1", 100, total=-1), row("e2", 300), row("fresh", 90)]
    position = world.push(*late)
    assert kinds(world.skew()) == {"equal": 8, "newer": 3}
    world.store.append(Visits, to_batch(Visits, late), pa.array([position] * 3))
    world.store.flush()
    assert kinds(world.skew()) == {"equal": 11}


def at_step(number: int, action: Callable[[], object]) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        assert 0 <= done <= total == 5
        if done == number:
            action()

    return progress


def test_rows_that_are_pushed_between_the_reads_are_no_skew(world):
    """After the first read of what is served and the offline read, before what is served is read again."""
    world.serve(row("e1", 100, total=-5), row("e3", 100, total=-3))
    report = world.skew(progress=at_step(3, lambda: world.push(row("e1", 500), row("e2", 500))))
    assert kinds(report) == {"equal": 8, "different": 1, "changed": 1}
    assert wrong(report) == {"total": {"different": 1}}


def test_rows_that_are_written_between_the_served_and_the_offline_read_are_no_skew(world):
    """The history has what the first read of what is served has not."""

    class Writing(ParquetDatasetStore):
        def read_point_in_time(self, *arguments: Any, **options: Any) -> pa.Table:
            world.write(row("e1", 500), row("e2", 500))
            world.store.skip_to(Visits, world.delete("e4", second=500))
            world.keep(row("e5", 500))
            return super().read_point_in_time(*arguments, **options)

    report = skew(world.segment, Writing(world.store.address), as_of_time_ns=NOW)
    assert kinds(report) == {"equal": 7, "stale": 1, "changed": 2}


def test_samples_are_of_both_sides_and_can_be_drawn_again(world):
    world.serve(*(row(f"only served {number}", 100) for number in range(40)))
    world.store.skip_to(Visits, world.delete(*(f"e{number}" for number in range(5))))
    whole = kinds(world.skew(sample=None))
    assert whole == {"equal": 5, "missing": 5, "extra": 40}
    some = world.skew(sample=4, seed=7)
    assert 4 <= some.compared <= 8
    assert some.rows == world.skew(sample=4, seed=7).rows
    assert world.skew(sample=0).compared == 0
    with pytest.raises(ValueError, match="sample: expected 0 or more, got -1"):
        world.skew(sample=-1)
    with pytest.raises(ValueError, match="rtol: expected 0 or more, got nan"):
        world.skew(rtol=math.nan)


def test_nothing_at_all_can_be_compared(registry, tmp_path):
    world = World(registry, tmp_path / "history")
    report = world.skew()
    assert (report.compared, report.exceeded(), kinds(report)) == (0, [], {})
    world.serve(row("Åse", 1), row("名前", 1))
    assert kinds(world.skew()) == {"extra": 2}


def test_fields_can_be_chosen_and_named(world):
    world.serve(row("e1", 100, total=-1, city="Rome"))
    report = world.skew(fields={"total": "visits"})
    assert wrong(report) == {"visits": {"different": 1}}
    assert [field["name"] for field in report.to_dict()["fields"]] == ["visits"]


def test_tolerances_are_those_of_numpy(world):
    world.serve(row("e1", 100, rate=0.5 + 1e-4))
    assert wrong(world.skew()) == {"rate": {"different": 1}}
    assert wrong(world.skew(rtol=1e-3)) == wrong(world.skew(rtol=0, atol=1e-3)) == {}
    assert wrong(world.skew(rtol=1e-5, atol=1e-5)) == {"rate": {"different": 1}}


VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(max_size=4),
    pa.binary(): st.binary(max_size=4),
    pa.list_(pa.float64()): st.lists(st.sampled_from([0.0, -0.0, 1.5, math.nan, math.inf]), max_size=3),
    pa.list_(pa.string()): st.lists(st.none() | st.sampled_from(["", "a", "Å"]), max_size=3),
    pa.list_(pa.float32(), 2): st.lists(st.sampled_from([0.0, 1.5, math.nan]), min_size=2, max_size=2),
    pa.list_(pa.list_(pa.int32(), 1), 2): st.lists(
        st.lists(st.integers(0, 2), min_size=1, max_size=1), min_size=2, max_size=2
    ),
}


@pytest.mark.parametrize("kind", VALUES, ids=str)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_columns_are_compared_as_their_values_would_be(kind, data):
    value = st.none() | VALUES[kind]
    pairs = data.draw(st.lists(st.tuples(value, value) | value.map(lambda v: (v, v)), max_size=8))
    tolerance = data.draw(st.sampled_from([(0.0, 0.0), (0.1, 0.0), (0.0, 1.0)]))
    columns = [pa.array([pair[side] for pair in pairs], kind) for side in (0, 1)]
    # Slices, as batches often are.
    columns = [pa.concat_arrays([column, column]).slice(len(pairs)) for column in columns]
    found = is_equal(*columns, rtol=tolerance[0], atol=tolerance[1])
    expected = [same(*pair, *tolerance) for pair in zip(*(column.to_pylist() for column in columns), strict=True)]
    assert found.tolist() == expected


def same(one: Any, other: Any, rtol: float = 0.0, atol: float = 0.0) -> bool:
    if one is None or other is None:
        return one is other
    if isinstance(one, list):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, float):
        return bool(np.isclose(one, other, rtol, atol, equal_nan=True))
    return bool(one == other)
