"""The matrix of a model equals what pandas makes of the same rows."""

from __future__ import annotations

import json
import math
import threading
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quorin.assembly import ModelReader, model_reader, read
from quorin.errors import (
    EntityIdError,
    EntityNotFoundError,
    InvalidBufferError,
    InvalidRowError,
    SchemaMismatchError,
    UnknownCategoryError,
)
from quorin.evolution import upgrade_schema
from quorin.layout import delete, insert_many
from quorin.schema import FeatureField, FeatureSchema, dtype, make_schema
from quorin.shm import Segment, SegmentRegistry


class Row(FeatureSchema):
    """Every type that a matrix takes."""

    version = 1
    fields = [
        FeatureField("small", dtype.float32),
        FeatureField("large", dtype.float64, default=7.0),
        FeatureField("count", dtype.int32),
        FeatureField("total", dtype.int64),
        FeatureField("byte", dtype.uint8),
        FeatureField("flag", dtype.bool),
        FeatureField("city", dtype.string),
        FeatureField("vector", dtype.float32, shape=(2, 2)),
        FeatureField("words", dtype.string, shape=(None,)),
        FeatureField("raw", dtype.bytes),
    ]


class Other(FeatureSchema):
    """Another row of the same entities, with a field of the same name."""

    version = 1
    fields = [FeatureField("city", dtype.string), FeatureField("score", dtype.float64)]


CITIES = ["", "Oslo", "Åse", "名前", "x" * 300, "a\0b"]
SCALARS = ["small", "large", "count", "total", "byte", "flag"]
ROWS = st.fixed_dictionaries(
    {
        "small": st.none() | st.floats(width=32),
        "large": st.none() | st.floats(),
        "count": st.none() | st.integers(-(2**31), 2**31 - 1),
        "total": st.none() | st.integers(-(2**63), 2**63 - 1),
        "byte": st.none() | st.integers(0, 255),
        "flag": st.none() | st.booleans(),
        "city": st.none() | st.sampled_from([*CITIES, "unknown"]),
        "vector": st.none() | st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), min_size=2, max_size=2),
        "words": st.none() | st.lists(st.text(max_size=3), max_size=2),
        "raw": st.none() | st.binary(max_size=3),
    }
)


def make(registry: SegmentRegistry, schema: Any, rows: dict[str, dict[str, Any]]) -> Segment:
    segment = registry.create(schema, capacity=64)
    write(segment, rows)
    return segment


def write(segment: Segment, rows: dict[str, dict[str, Any]]) -> None:
    """Insert rows, whose other fields are null."""
    nulls = dict.fromkeys(field.name for field in segment.schema.fields)
    if rows:
        insert_many(segment, [{"entity_id": entity_id, **nulls, **row} for entity_id, row in rows.items()])


def by_pandas(segment: Segment, ids: list[str], columns: list[str], kind: Any, **options: Any) -> Any:
    """The usual way: a frame of Python values, categories mapped, gaps filled, then an array."""
    rows = {name: values for name, values in read(segment, ids).to_pydict().items() if name in columns}
    missing = options.get("missing", math.nan)
    arrays = []
    for name in columns:
        codes = options.get("categories", {}).get(name)
        gap = missing.get(name, math.nan) if isinstance(missing, dict) else missing
        values = pd.Series(rows[name], dtype=object)
        if codes is not None:
            nulls, known = values.isna(), {value: code for code, value in enumerate(codes)}
            values = values.map(known).fillna(options.get("unknown", math.nan)).astype(object).where(~nulls, None)
        size = math.prod(next(field.shape for field in segment.schema.fields if field.name == name))
        for element in range(size):
            flat = [gap if v is None else np.ravel(v)[element] if size > 1 else v for v in values.tolist()]
            with np.errstate(over="ignore", invalid="ignore"):
                arrays.append(np.array([np.asarray(v).astype(kind) for v in flat], kind))
    return np.column_stack(arrays) if ids else np.zeros((0, len(arrays)), kind)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(ROWS, max_size=6), st.sampled_from([np.float32, np.float64]), st.sampled_from([math.nan, -1.0, 2.5]))
def test_any_rows_equal_the_way_of_pandas(registry, rows, kind, gap):
    segment = make(registry, Row, {f"e{number}": row for number, row in enumerate(rows)})
    try:
        columns = ["vector", "city", *SCALARS[::-1]]
        options = {"categories": {"city": CITIES}, "unknown": gap, "missing": {"city": 99, "total": gap}}
        reader = model_reader(segment, columns, dtype=kind, **options)
        ids = [*(f"e{number}" for number in range(len(rows))), "none"]
        matrix, found = reader.batch(ids)
        np.testing.assert_array_equal(matrix, by_pandas(segment, ids, columns, kind, **options))
        assert matrix.dtype == kind
        assert found.tolist() == [True] * len(rows) + [False]
        for number, entity_id in enumerate(ids[:-1]):
            np.testing.assert_array_equal(reader(entity_id), matrix[number : number + 1])
    finally:
        registry.discard(segment)


def test_integers_keep_their_precision_in_float64_and_are_rounded_once_in_float32(registry):
    rows = {f"n{number}": {"total": 2**53 - number} for number in range(3)}
    segment = make(registry, Row, rows)
    exact, _ = model_reader(segment, ["total"], dtype="float64").batch(list(rows))
    assert exact[:, 0].tolist() == [2**53, 2**53 - 1, 2**53 - 2]
    # Through float64, this would be rounded twice, to the neighbour.
    write(segment, {"twice": {"total": 2**54 + 2**30 + 1}})
    [[once]] = model_reader(segment, ["total"])("twice")
    assert once == np.float32(np.int64(2**54 + 2**30 + 1))


def test_integers_and_booleans_have_categories_too(registry):
    segment = make(registry, Row, {"a": {"count": -5, "total": 2**62, "flag": True, "byte": 200}, "b": {"count": 6}})
    categories = {"count": {6: 60, -5: 50}, "total": [0, 2**62], "flag": [True, False], "byte": np.array([7, 200])}
    reader = model_reader(segment, list(categories), categories=categories, unknown={"count": -1})
    np.testing.assert_array_equal(reader.batch(["a", "b"])[0], [[50, 1, 0, 1], [60, math.nan, math.nan, math.nan]])


def test_an_unknown_category_may_be_an_error_that_says_which(registry):
    segment = make(registry, Row, {"a": {"city": "Oslo", "small": 1.0}, "b": {"city": "Rome"}, "c": {"city": None}})
    reader = model_reader(segment, ["small", "city"], categories={"city": ["Oslo"]}, unknown="error")
    assert reader("a").tolist() == [[1.0, 0.0]]
    assert math.isnan(reader("c")[0, 1])
    with pytest.raises(UnknownCategoryError, match=r"row 1: .* no category 'Rome' of column 'city'; it has 'Oslo'\."):
        reader.batch(["a", "b"])
    assert model_reader(segment, ["city"], categories={"city": ["Oslo"]}, unknown=-1)("b").tolist() == [[-1.0]]


def test_many_categories(registry):
    words = [f"word {number}" for number in range(2000)]
    rows = {f"e{number}": {"city": words[number]} for number in range(0, 2000, 50)}
    segment = make(registry, Row, rows)
    reader = model_reader(segment, ["city"], categories={"city": words})
    assert reader.batch(list(rows))[0][:, 0].tolist() == [*range(0, 2000, 50)]


def test_several_segments_and_names_of_the_models_own(registry):
    one = make(registry, Row, {"a": {"small": 1.0, "city": "Oslo"}, "b": {"small": 2.0}})
    other = make(registry, Other, {"b": {"score": 0.5, "city": "Rome"}, "c": {"score": 0.25}})
    reader = model_reader(
        [(one, ["small", "city"]), other],
        {"s": "score", "small": "small", "lives": "Other.city"},
        categories={"lives": ["Oslo", "Rome"]},
        missing={"s": -9},
    )
    assert (reader.names, reader.width, reader.dtype) == (["s", "small", "lives"], 3, np.float32)
    matrix, found = reader.batch(["a", "b", "c", "d"])
    nan = math.nan
    np.testing.assert_array_equal(matrix, [[-9, 1, nan], [0.5, 2, 1], [0.25, nan, nan], [-9, nan, nan]])
    assert found.tolist() == [True, True, True, False]
    with pytest.raises(EntityNotFoundError, match="'d'"):
        reader("d")
    with pytest.raises(InvalidRowError, match=r"called 'city': expected one of \['Row.city', 'Other.city'\]"):
        model_reader([one, other], ["city"], categories={"city": ["Oslo"]})


def test_by_default_all_numbers_and_the_categories_are_columns(registry):
    segment = make(registry, Row, {})
    vector = [f"vector[{index}]" for index in range(4)]
    assert model_reader(segment).names == [*SCALARS, *vector]
    assert model_reader(segment, np.array(["total", "small"])).names == ["total", "small"]
    assert model_reader(segment, categories={"city": CITIES}).names == [*SCALARS, "city", *vector]


def test_a_callers_matrix_is_filled_and_one_that_does_not_fit_is_refused(registry):
    segment = make(registry, Row, {"a": {"small": 1.0}})
    reader = model_reader(segment, ["small", "count"])
    out = np.zeros((1, 2), np.float32)
    assert reader("a", out=out) is out
    assert out[0, 0] == 1
    assert reader.batch([], out=np.zeros((0, 2), np.float32))[0].shape == (0, 2)
    read_only = np.zeros((1, 2), np.float32)
    read_only.flags.writeable = False
    for wrong in (
        np.zeros((1, 3), np.float32),
        np.zeros((1, 2)),
        np.zeros((1, 4), np.float32)[:, ::2],
        read_only,
        [[0, 0]],
    ):
        with pytest.raises(InvalidBufferError, match=r"float32 array of shape \(1, 2\)"):
            reader("a", out=wrong)


@pytest.mark.parametrize(
    ("columns", "options", "text"),
    [
        (["smal"], {}, "there is no field 'smal'"),
        ([], {}, "expected the names of fields"),
        ("small", {}, "expected the names of fields"),
        (["small", "small"], {}, r"each name once, got \['small'\]"),
        (["city"], {}, "'city' is a field of string: a model takes numbers, or texts by categories"),
        (["words"], {}, "'words' is a field of string with shape"),
        (["raw"], {"categories": {"raw": [b"a"]}}, "categories are texts, integers or booleans, not a field of bytes"),
        (["large"], {"categories": {"large": [1]}}, "not a field of float64"),
        (["city"], {"categories": {"city": "Oslo"}}, "expected a list or a dict, got 'Oslo'"),
        (["city"], {"categories": {"city": []}}, "'city' has none"),
        (["city"], {"categories": {"city": ["a", "a"]}}, "'a' occurs twice"),
        (["city"], {"categories": {"city": ["a", 1]}}, "expected texts, got 1"),
        (["count"], {"categories": {"count": ["a"]}}, "expected integers of 64 bits, got 'a'"),
        (["count"], {"categories": {"count": [2**63]}}, "expected integers of 64 bits, got 9223372036854775808"),
        (["city"], {"categories": {"city": {"a": "b"}}}, "expected a number as the code"),
        (["city"], {"categories": {"city": ["a"]}, "unknown": "ignore"}, "got 'ignore'"),
        (["small"], {"missing": None}, "column 'small': expected a number, got None"),
        (["small"], {"missing": {"smal": 1}}, r"missing: the model has no columns \['smal'\]"),
        (["small"], {"categories": {"city": ["a"]}}, r"categories: the model has no columns \['city'\]"),
        (["small"], {"dtype": "float16"}, "expected float32 or float64, got 'float16'"),
        (["small"], {"dtype": "words"}, "expected float32 or float64, got 'words'"),
    ],
)
def test_what_no_model_can_take_is_refused_with_the_reason(registry, columns, options, text):
    segment = make(registry, Row, {})
    with pytest.raises(InvalidRowError, match=text):
        model_reader(segment, columns, **options)


def test_bad_ids_and_segments_are_refused(registry):
    segment = make(registry, Row, {"a": {"small": 1.0}})
    reader = model_reader(segment, ["small"])
    for wrong in ("", None, 1):
        with pytest.raises(EntityIdError):
            reader(wrong)
    with pytest.raises(InvalidRowError, match="segments of different schemas"):
        model_reader([segment, segment])
    with pytest.raises(InvalidRowError, match=r"Row has no fields \['x'\]"):
        model_reader([(segment, ["x"])])
    assert reader.batch(["Åse", "a"])[1].tolist() == [False, True]


def test_json_gives_the_same_reader_back(registry):
    one = make(registry, Row, {"a": {"small": 1.0, "city": "Åse", "count": 3, "large": None}})
    other = make(registry, Other, {"a": {"score": 0.5}})
    reader = model_reader(
        [one, other],
        {"n": "count", "where": "Row.city", "large": "large", "score": "score"},
        dtype=np.float64,
        categories={"n": [1, 3], "where": {"Åse": 10, "": math.inf}},
        unknown={"where": "error"},
        missing={"large": -math.inf},
    )
    text = reader.to_json()
    again = ModelReader.from_json([one, other], text)
    assert (again.names, again.dtype, again.to_json()) == (reader.names, reader.dtype, text)
    assert again("a").tolist() == reader("a").tolist() == [[1, 10, -math.inf, 0.5]]
    assert json.loads(text)["parts"][0]["schema"] == "Row"


def test_another_schema_is_refused_by_its_fingerprint_and_another_type_always(registry):
    segment = make(registry, Row, {"a": {"small": 1.0}})
    text = model_reader(segment, ["small"]).to_json()
    wider = make_schema("Row", [*Row.fields, FeatureField("added", dtype.int32)], version=2)
    upgrade_schema(Row, wider, registry)
    upgraded = registry.open_current(wider)
    with pytest.raises(SchemaMismatchError, match=r"saved with Row v1, fingerprint \w{16}; here is Row v2"):
        ModelReader.from_json(upgraded, text)
    assert ModelReader.from_json(upgraded, text, any_version=True)("a").tolist() == [[1.0]]
    typed = make_schema("Row", [FeatureField("small", dtype.float64)], version=3)
    registry.discard(upgraded)
    with registry.create(typed, capacity=8) as third, pytest.raises(SchemaMismatchError, match="float64"):
        ModelReader.from_json(third, text, any_version=True)
    with registry.create(Other, capacity=8) as foreign, pytest.raises(SchemaMismatchError, match="Other"):
        ModelReader.from_json(foreign, text)


@pytest.mark.parametrize(
    "change",
    [
        lambda _: "",
        lambda _: "[]",
        lambda saved: json.dumps({**saved, "format": "x"}),
        lambda saved: json.dumps({**saved, "version": 2}),
        lambda saved: json.dumps({**saved, "parts": None}),
        lambda saved: json.dumps({**saved, "columns": [{}]}),
        lambda saved: json.dumps({**saved, "columns": [{**saved["columns"][0], "part": 5}]}),
        lambda saved: json.dumps({**saved, "dtype": "int8"}),
    ],
)
def test_other_text_is_refused(registry, change):
    segment = make(registry, Row, {})
    with pytest.raises(InvalidRowError):
        ModelReader.from_json(segment, change(json.loads(model_reader(segment, ["small"]).to_json())))


def test_a_reader_follows_its_segment_through_growth_and_an_upgrade_that_drops_a_field(registry):
    segment = registry.create(Row, capacity=4)
    write(segment, {"a": {"small": 1.0, "count": 5, "city": "Oslo"}})
    reader = model_reader(segment, ["count", "city", "small"], categories={"city": ["Oslo"]}, missing=-1)
    assert reader("a").tolist() == [[5, 0, 1]]
    write(segment, {f"e{number}": {"small": 2.0} for number in range(100)})
    assert reader.batch(["a", "e99"])[0].tolist() == [[5, 0, 1], [-1, -1, 2]]
    delete(segment, "a")
    assert reader.batch(["a"])[1].tolist() == [False]
    fields = [field for field in Row.fields if field.name != "small"]
    upgrade_schema(Row, make_schema("Row", fields, version=2), registry)
    assert reader.batch(["e99"])[0].tolist() == [[-1, -1, -1]]


def test_threads_share_a_reader_beside_a_writer(registry):
    segment = make(registry, Row, {f"e{number}": {"small": 0.0, "large": 0.0} for number in range(50)})
    reader = model_reader(segment, ["small", "large"])
    ids, torn = [f"e{number}" for number in range(50)], []
    stop = threading.Event()

    def check() -> None:
        while not stop.is_set():
            matrix, found = reader.batch(ids)
            if not found.all() or (matrix[:, 0] != matrix[:, 1]).any() or reader("e7")[0, 0] < 0:
                torn.append(matrix)

    threads = [threading.Thread(target=check) for _ in range(3)]
    for thread in threads:
        thread.start()
    for value in range(300):
        write(segment, {name: {"small": float(value), "large": float(value)} for name in ids})
    stop.set()
    for thread in threads:
        thread.join()
    assert torn == []
