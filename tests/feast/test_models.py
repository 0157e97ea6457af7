"""The matrix of a model from entity rows equals what pandas makes of Feast's own answer."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from feast import Field
from feast.data_source import PushMode
from feast.types import Float64

from feast_quorin import FeastModelReader, model_reader
from quorin.errors import InvalidRowError, RepositoryError, SchemaMismatchError, UnknownCategoryError
from tests.feast.repos import CUSTOMERS, DRIVERS, END, START, make_store

FEATURES = [
    "driver_stats:conv_rate",
    "driver_stats:acc",
    "driver_stats:trips",
    "driver_stats:small",
    "driver_stats:active",
    "driver_stats:nick",
    "customer_stats:score",
    "customer_stats:city",
    "pair_stats:rides",
    "world:fuel_price",
]
COLUMNS = ["city", "trips", "fuel_price", "rides", "score", "acc", "conv_rate", "active", "small"]
CITIES = ["c0·0", "c1·2", "c4·2"]
ROWS = [{"driver_id": driver, "customer": name} for driver in (1001, 1002, 1003, 7) for name in [*CUSTOMERS, "nobody"]]


@pytest.fixture
def filled(store):
    store.materialize(START, END)
    return store


def by_pandas(store: Any, features: Any, columns: list[str], rows: Any, kind: Any, **options: Any) -> Any:
    frame = store.get_online_features(features, rows).to_df()[columns]
    if "city" in columns:
        cities = frame["city"].astype("object")
        codes = cities.map({name: code for code, name in enumerate(CITIES)})
        frame["city"] = codes.where(cities.isna() | codes.notna(), options.get("unknown", math.nan))
    # At once to the type: an integer that went through a float would lose its last digits.
    frame = frame.astype("object").where(frame.notna(), options.get("missing", math.nan))
    return np.column_stack([frame[name].map(np.dtype(kind).type).to_numpy(kind) for name in columns])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_several_views_with_their_own_keys(filled, kind):
    options = {"unknown": -1.0, "missing": -7.5}
    reader = model_reader(filled, FEATURES, COLUMNS, dtype=kind, categories={"city": CITIES}, **options)
    expected = by_pandas(filled, FEATURES, COLUMNS, ROWS, kind, **options)
    matrix, found = reader.batch(ROWS)
    np.testing.assert_array_equal(matrix, expected)
    assert found.all()  # the view without entities is found for every row
    for number, row in enumerate(ROWS):
        np.testing.assert_array_equal(reader([row]), expected[number : number + 1])
    columns = {name: [row[name] for row in ROWS] for name in ("customer", "driver_id")}
    np.testing.assert_array_equal(reader(columns), expected)
    np.testing.assert_array_equal(reader(pd.DataFrame(columns)), expected)
    out = np.empty((len(ROWS), reader.width), kind)
    assert reader(ROWS, out=out) is out


@pytest.mark.parametrize("online_store", ["embedded"], indirect=True)
def test_a_service_whose_view_occurs_under_two_names(filled):
    service = filled.get_feature_service("rides")
    columns = ["target__conv_rate", "origin__conv_rate", "customer_stats__score"]
    rows = [
        {"origin_id": 1001, "target_id": 1002, "customer": "alice"},
        {"origin_id": 1, "target_id": 1, "customer": "Åse"},
    ]
    reader = model_reader(filled, service, columns, full_feature_names=True)
    expected = filled.get_online_features(service, rows, full_feature_names=True).to_df()[columns]
    np.testing.assert_array_equal(reader(rows), expected.to_numpy(np.float32))
    assert reader.batch([{"origin_id": 1, "target_id": 2, "customer": "no"}])[1].tolist() == [False]


@pytest.mark.parametrize("online_store", ["embedded"], indirect=True)
def test_json_keeps_the_reader_and_another_view_is_refused(filled, data):
    reader = model_reader(filled, FEATURES, COLUMNS, categories={"city": CITIES}, unknown="error", missing=0)
    text = reader.to_json()
    again = FeastModelReader.from_json(filled, FEATURES, text)
    rows = [{"driver_id": 1001, "customer": "alice"}]
    np.testing.assert_array_equal(again(rows), reader(rows))
    assert (again.names, again.to_json()) == (reader.names, text)
    with pytest.raises(UnknownCategoryError, match="row 1: the model has no category"):
        again([rows[0], {"driver_id": 1001, "customer": CUSTOMERS[3]}])
    view = filled.get_feature_view("customer_stats")
    view.features = [*view.features, Field(name="added", dtype=Float64)]
    filled.apply(view)
    with pytest.raises(SchemaMismatchError, match="customer_stats"):
        FeastModelReader.from_json(filled, FEATURES, text)
    # The reader from before notices the change, and cannot go on without a word either.
    with pytest.raises(SchemaMismatchError, match="customer_stats"):
        again(rows)
    anyway = FeastModelReader.from_json(filled, FEATURES, text, any_version=True)
    np.testing.assert_array_equal(anyway(rows), reader(rows))


@pytest.mark.parametrize("online_store", ["embedded"], indirect=True)
def test_columns_are_by_default_in_the_order_of_the_request(filled):
    names = ["small", "acc", "conv_rate"]
    for order in (names, names[::-1]):
        assert model_reader(filled, [f"driver_stats:{name}" for name in order]).names == order


@pytest.mark.parametrize("online_store", ["embedded"], indirect=True)
def test_pushed_rows_show_at_once(filled):
    reader = model_reader(filled, ["customer_stats:score", "customer_stats:city"], categories={"city": ["Oslo"]})
    assert reader([{"customer": "alice"}])[0, 0] == 1.5
    frame = pd.DataFrame({"customer": ["alice"], "at": [END], "score": [9.0], "city": ["Oslo"]})
    filled.push("customer_push", frame, to=PushMode.ONLINE)
    assert reader([{"customer": "alice"}]).tolist() == [[9.0, 0.0]]


@pytest.mark.parametrize("online_store", ["embedded"], indirect=True)
def test_rows_past_their_ttl_are_missing_where_the_store_enforces_it(filled, online_store, data, tmp_path):
    view = filled.get_feature_view("driver_stats")
    view.ttl = dt.timedelta(days=1)
    filled.apply(view)
    assert model_reader(filled, ["driver_stats:small"])([{"driver_id": 1001}]).tolist() == [[-1001.0]]
    strict = make_store(tmp_path / "repo", {**online_store, "enforce_ttl": True}, data=data)
    reader = model_reader(strict, ["driver_stats:small"], missing=3)
    assert reader([{"driver_id": 1001}]).tolist() == [[3.0]]


@pytest.mark.parametrize("online_store", ["embedded"], indirect=True)
def test_what_is_no_stored_number_and_rows_without_keys_are_refused(filled, sqlite_store):
    with pytest.raises(InvalidRowError, match="without on-demand views"):
        model_reader(filled, ["boosted:boosted_rate"])
    with pytest.raises(InvalidRowError, match="there is no field 'joined'"):
        model_reader(filled, ["driver_stats:joined", "driver_stats:acc"], ["joined"])
    with pytest.raises(InvalidRowError, match="'tags' is a field of string with shape"):
        model_reader(filled, ["driver_stats:tags"], ["tags"])
    with pytest.raises(RepositoryError, match="got SqliteOnlineStore"):
        model_reader(sqlite_store, ["driver_stats:acc"])
    reader = model_reader(filled, ["driver_stats:acc"])
    for rows in ([], {}, "x", [{"driver_id": 1}, {"x": 1}], {"driver_id": [1, 2], "x": [1]}):
        with pytest.raises(InvalidRowError, match="at least one row long"):
            reader(rows)
    for rows in ([{"customer": "x"}], [{"driver_id": "x"}], [{"driver_id": None}]):
        with pytest.raises(InvalidRowError, match=r"expected the join keys of \['driver_stats'\]"):
            reader(rows)
    assert len(DRIVERS) == len(reader({"driver_id": DRIVERS}))
