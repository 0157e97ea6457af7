"""Age limits: values of rows whose event times are too long ago read as null, in all reads alike."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from quorin import assembly, layout, serving
from quorin.errors import EntityNotFoundError, InvalidBufferError, InvalidMaxAgeError
from quorin.schema import FeatureField, Schema, dtype, make_schema
from quorin.shm import Segment, SegmentRegistry
from tests.support.schemas import rows_of, schemas

HOUR = 3600
NS = 1_000_000_000

Mixed = make_schema(
    "Mixed",
    [
        FeatureField("score", dtype.float32, default=-1.0),
        FeatureField("count", dtype.int64),
        FeatureField("pair", dtype.float32, (2,), default=7.0),
        FeatureField("on", dtype.bool),
        FeatureField("name", dtype.string),
        FeatureField("words", dtype.string, (None,)),
    ],
)
ROW = {"score": 0.5, "count": 3, "pair": [1.0, 2.0], "on": True, "name": "é", "words": ["a", "b"]}
AGES_SECONDS = {"new": 10, "hour": HOUR + 60, "day": 25 * HOUR, "ancient": None, "future": -HOUR}


@pytest.fixture
def mixed(registry: SegmentRegistry) -> Iterator[Segment]:
    with registry.create(Mixed, capacity=100) as segment:
        now = time.time_ns()
        for entity_id, age in AGES_SECONDS.items():
            event_time = -(2**63) + 1 if age is None else now - age * NS
            layout.insert(segment, entity_id, layout.pack_row(Mixed, **ROW), event_time_ns=event_time)
        nulls = dict.fromkeys(ROW)
        layout.insert(segment, "nulls", layout.pack_row(Mixed, **nulls), event_time_ns=now - 2 * HOUR * NS)
        layout.insert(segment, "deleted", layout.pack_row(Mixed, **ROW), event_time_ns=now - 3 * HOUR * NS)
        layout.delete(segment, "deleted", event_time_ns=now - 2 * HOUR * NS)
        yield segment


def read(segment: Segment, ids: list[str], **options: Any) -> dict[str, list[Any]]:
    batch = assembly.read(segment, ids, **options)
    assert batch.equals(serving.read(segment, ids, **options))
    return batch.to_pydict()


def test_values_of_rows_over_the_limit_are_null_and_the_rest_of_the_row_stays(mixed: Segment) -> None:
    ids = ["new", "hour", "day", "ancient", "future", "nulls", "deleted", "never"]
    found = read(mixed, ids, max_age=HOUR)

    assert found["found"] == [True] * 6 + [False] * 2
    assert found["fresh"] == [True, False, False, False, True, False, False, False]
    assert found["score"] == [0.5, None, None, None, 0.5, None, None, None]
    assert found["words"] == [["a", "b"], None, None, None, ["a", "b"], None, None, None]
    assert [time is None for time in found["event_time_ns"]] == [False] * 6 + [True] * 2


@pytest.mark.parametrize("day", [24 * HOUR, 24.0 * HOUR, timedelta(days=1)])
def test_a_limit_is_a_number_of_seconds_or_a_timedelta(mixed: Segment, day: Any) -> None:
    assert read(mixed, ["hour", "day"], max_age=day)["fresh"] == [True, False]
    assert read(mixed, ["hour", "day"], max_age={"name": day})["fresh"] == [True, False]


def test_fields_have_limits_of_their_own(mixed: Segment) -> None:
    limits = {"score": HOUR, "pair": timedelta(days=1), "name": 24 * HOUR}
    found = read(mixed, ["new", "hour", "day"], max_age=limits)

    assert found["score"] == [0.5, None, None]
    assert found["pair"] == [[1.0, 2.0], [1.0, 2.0], None]
    assert found["name"] == ["é", "é", None]
    assert found["count"] == [3, 3, 3]
    assert found["fresh"] == [True, False, False]

    columns = assembly.column_reader(mixed, ["count", "score"], max_age={"score": HOUR})(["new", "hour"])
    assert columns.outdated(0) is None
    assert columns.outdated(1).tolist() == [False, True]  # type: ignore[union-attr]
    assert columns.values(1).tolist() == [0.5, 0.0]


def test_vectors_have_defaults_and_a_mask_says_where(mixed: Segment) -> None:
    ids = ["new", "hour", "day", "never"] * 10
    fresh = np.zeros(40, np.bool_)
    vectors, found = assembly.assemble_batch(
        mixed, ids, max_age={"score": HOUR, "count": HOUR, "pair": 24 * HOUR}, fresh_mask=fresh, missing=9.0
    )

    expected = [[0.5, 3, 1, 2, 1], [-1, math.nan, 1, 2, 1], [-1, math.nan, 7, 7, 1], [9] * 5]
    np.testing.assert_array_equal(vectors, np.array(expected * 10, np.float32))
    assert found.tolist() == [True, True, True, False] * 10
    assert fresh.tolist() == [True, False, False, False] * 10


def test_one_vector_and_bound_readers_too(mixed: Segment) -> None:
    for module in (assembly, serving):
        hour = module.assemble(mixed, "hour", max_age=HOUR)
        np.testing.assert_array_equal(hour, np.array([-1, math.nan, 7, 7, math.nan], np.float32))
        out = np.empty(5, np.float32)
        assert module.assemble(mixed, "hour", max_age={"pair": HOUR}, out=out) is out
        assert out.tolist() == [0.5, 3, 7, 7, 1]
    assert assembly.assemble(mixed, "hour", max_age=24 * HOUR)[0] == 0.5
    assert np.isnan(assembly.assemble(mixed, "hour", max_age=HOUR * 1.0)[1])
    with pytest.raises(EntityNotFoundError):
        assembly.assemble(mixed, "deleted", max_age=HOUR)

    reader = assembly.reader(mixed, ["count", "score"], max_age={"score": HOUR})
    assert [reader(entity_id).tolist() for entity_id in ("new", "hour")] == [[3.0, 0.5], [3.0, -1.0]]
    mask = np.zeros(2, np.bool_)
    assert reader.batch(["new", "hour"], fresh_mask=mask)[0].tolist() == [[3.0, 0.5], [3.0, -1.0]]
    assert mask.tolist() == [True, False]


def test_rows_of_one_entity_know_what_was_withheld(mixed: Segment) -> None:
    parts = [(mixed, ["score", "name"]), (mixed, ["count"])]
    rows = assembly.row_reader(parts, max_ages=[{"name": HOUR}, None])("hour")
    assert rows is not None
    assert not rows.complete
    assert [rows[0].is_valid(index) for index in (0, 1)] == [True, False]
    assert [rows[0].is_outdated(index) for index in (0, 1)] == [False, True]
    assert rows[1].complete
    assert not rows[1].is_outdated(0)
    columns = rows[0].columns()
    assert columns.outdated(0) is None
    assert columns.outdated(1).tolist() == [True]  # type: ignore[union-attr]
    never = assembly.row_reader(parts, max_ages=[HOUR, HOUR])("never")
    assert never is not None
    assert not never[0].is_outdated(0)


def test_now_is_what_the_caller_says_it_is(mixed: Segment) -> None:
    event_time = assembly.read(mixed, ["hour"]).column("event_time_ns")[0].as_py()
    reader = assembly.column_reader(mixed, ["score"], max_age=1)
    at_the_limit = reader(["hour"], now_ns=event_time + NS)
    past_it = reader(["hour"], now_ns=event_time + NS + 1)
    assert [at_the_limit.fresh[0], past_it.fresh[0]] == [True, False]
    assert [at_the_limit.valid(0)[0], past_it.valid(0)[0]] == [True, False]
    rows = assembly.row_reader([(mixed, ["score"])], max_ages=[1])
    assert [rows("hour", event_time + NS + more)[0].is_valid(0) for more in (0, 1)] == [True, False]  # type: ignore[index]


@pytest.mark.parametrize(
    ("max_age", "named"),
    [
        (0, "0"),
        (-1.5, "-1.5"),
        (True, "True"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (10**18, "10000"),
        ("1h", "'1h'"),
        (timedelta(0), "timedelta(0)"),
        ({"score": 0}, "max_age['score']"),
        ({"nothing": 5}, "['nothing']"),
    ],
)
def test_other_limits_are_refused_by_name(mixed: Segment, max_age: Any, named: str) -> None:
    for module in (assembly, serving):
        for call in (
            lambda module=module: module.read(mixed, ["new"], max_age=max_age),
            lambda module=module: module.assemble(mixed, "new", max_age=max_age),
            lambda module=module: module.assemble_batch(mixed, ["new"], max_age=max_age),
        ):
            with pytest.raises(InvalidMaxAgeError) as refused:
                call()
            assert named in str(refused.value)
    with pytest.raises(InvalidMaxAgeError, match="reads no fields"):
        assembly.read(mixed, ["new"], ["count"], max_age={"score": 5})


def test_a_mask_that_does_not_fit_is_refused(mixed: Segment) -> None:
    for module in (assembly, serving):
        with pytest.raises(InvalidBufferError, match="fresh_mask"):
            module.assemble_batch(mixed, ["new"], max_age=5, fresh_mask=np.zeros(2, np.bool_))


@st.composite
def aged_rows(draw: st.DrawFn) -> tuple[Schema, list[tuple[dict[str, Any], int]], Any]:
    """A schema, rows with their ages in seconds, and limits, none of which is near an age."""
    schema = draw(schemas())
    rows = draw(st.lists(st.tuples(rows_of(schema), st.sampled_from([-500, 500, 1500, 2500])), max_size=5))
    limit = st.sampled_from([1000, 2000])
    names = st.sampled_from([field.name for field in schema.fields])
    return schema, rows, draw(limit | st.dictionaries(names, limit, max_size=3))


@settings(max_examples=60, deadline=None)
@given(aged_rows())
def test_compiled_reads_equal_the_oracle(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[Schema, list[tuple[dict[str, Any], int]], Any]
) -> None:
    schema, rows, max_age = case
    directory = tmp_path_factory.mktemp("ages")
    registry, now = SegmentRegistry(str(directory), shm_dir=directory), time.time_ns()
    with registry.create(schema, capacity=8) as segment:
        for number, (row, age) in enumerate(rows):
            layout.insert(segment, f"id{number}", layout.pack_row(schema, **row), event_time_ns=now - age * NS)
        ids = [f"id{number}" for number in range(6)] * 4
        batch, other = assembly.read(segment, ids, max_age=max_age), serving.read(segment, ids, max_age=max_age)
        assert str(batch.to_pylist()) == str(other.to_pylist())
        masks = np.zeros((2, len(ids)), np.bool_)
        fast = assembly.assemble_batch(segment, ids, max_age=max_age, fresh_mask=masks[0])
        slow = serving.assemble_batch(segment, ids, max_age=max_age, fresh_mask=masks[1])
        np.testing.assert_array_equal(fast[0].view(np.uint32), slow[0].view(np.uint32))
        assert (masks[0] == masks[1]).all()
        for number in range(len(rows)):
            one = assembly.assemble(segment, f"id{number}", max_age=max_age)
            np.testing.assert_array_equal(one.view(np.uint32), slow[0][number].view(np.uint32))
    registry.backend.close()
