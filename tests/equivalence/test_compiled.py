"""Compiled requests and lazy responses give what Feast's generic path gives, over Quorin and over SQLite."""

from __future__ import annotations

import asyncio
import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value
from feast.type_map import python_values_to_proto_values
from feast.types import from_value_type

from feast_quorin.read.response import LazyResponse
from tests.feast.conftest import make_sqlite_store
from tests.feast.repos import CUSTOMERS, DRIVER_FEATURES, DRIVERS, END, REQUESTS, START, ask, day, make_store
from tests.feast.test_against_sqlite import same, same_outcome
from tests.feast.test_values import SAMPLES

VIEWS = {
    "driver_stats": (["driver_id"], list(DRIVER_FEATURES)),
    "customer_stats": (["customer"], ["score", "city"]),
    "pair_stats": (["driver_id", "customer"], ["rides"]),
    "world": ([], ["fuel_price"]),
}
VALUES: dict[str, list[Any]] = {"driver_id": [*DRIVERS, 7, -1], "customer": [*CUSTOMERS, "nobody", "a|b", "\\"]}


def generic(store: FeatureStore, **request: Any) -> Any:
    """The answer of Feast's own path over Quorin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(store.provider.online_store), "_run", lambda *_: None)
        return store.get_online_features(**request)


def generated(source: random.Random) -> dict[str, Any]:
    """A request: any views and features, any rows (missing and repeated ones too), in any form that Feast takes."""
    views = [*source.sample(["driver_stats", "customer_stats", "pair_stats"], source.randint(1, 3))]
    views += ["world"] * source.randint(0, 1)
    features = []
    for view in views:
        names = VIEWS[view][1]
        features += [f"{view}:{name}" for name in source.sample(names, source.randint(1, len(names)))]
    source.shuffle(features)
    keys = list(dict.fromkeys(key for view in views for key in VIEWS[view][0]))
    source.shuffle(keys)
    count = source.choice([1, 1, 2, 9, 40])
    columns = {key: source.choices(VALUES[key], k=count) for key in keys}
    return {
        "features": features,
        "entity_rows": in_some_form(columns, source),
        "full_feature_names": source.random() < 0.5,
        "include_feature_view_version_metadata": source.random() < 0.3,
    }


def in_some_form(columns: dict[str, list[Any]], source: random.Random) -> Any:
    form = source.choice(["rows", "columns", "tuples", "protos", "texts", "numpy"])
    if form == "rows":
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if form == "tuples":
        return {name: tuple(values) for name, values in columns.items()}
    if form == "protos":
        kinds = {name: ValueType.INT64 if name == "driver_id" else ValueType.STRING for name in columns}
        protos = {name: python_values_to_proto_values(values, kinds[name]) for name, values in columns.items()}
        return {name: RepeatedValue(val=values) for name, values in protos.items()}
    if form == "texts":
        return {name: [str(value) for value in values] for name, values in columns.items()}
    if form == "numpy" and "driver_id" in columns:
        return columns | {"driver_id": [np.int64(value) for value in columns["driver_id"]]}
    return columns


def test_generated_requests_are_the_same_three_times(store: FeatureStore, sqlite_store: FeatureStore) -> None:
    store.materialize(START, END)
    source = random.Random(6)
    for _ in range(60):
        request = generated(source)
        fast = store.get_online_features(**request)
        assert isinstance(fast, LazyResponse)
        same(fast, sqlite_store.get_online_features(**request))
        fast = store.get_online_features(**request)
        slow = generic(store, **request)
        assert not isinstance(slow, LazyResponse)
        same(fast, slow)


def test_every_common_request_is_compiled(store: FeatureStore, sqlite_store: FeatureStore) -> None:
    store.materialize(START, END)
    for name in REQUESTS:
        for _ in range(2):
            assert isinstance(ask(store, name), LazyResponse)
    for request in REQUESTS.values():
        if isinstance(request["features"], list):
            answer = asyncio.run(store.get_online_features_async(**request))
            assert isinstance(answer, LazyResponse)


def things(data: Path) -> list[Any]:
    """A view with a feature of every type."""
    entity = Entity(name="thing", join_keys=["thing"], value_type=ValueType.INT32)
    view = FeatureView(
        name="things",
        entities=[entity],
        schema=[Field(name=kind.name.lower(), dtype=from_value_type(kind)) for kind in SAMPLES],
        source=FileSource(path=str(data / "drivers.parquet"), timestamp_field="at"),
    )
    return [entity, view]


def put_things(store: FeatureStore) -> None:
    """Five rows of every sample."""
    protos = {kind.name.lower(): python_values_to_proto_values(values, kind) for kind, values in SAMPLES.items()}
    rows = [
        (
            EntityKey(join_keys=["thing"], entity_values=[Value(int32_val=number)]),
            {name: values[number % len(values)] for name, values in protos.items()},
            day(0),
            None,
        )
        for number in range(5)
    ]
    store._get_provider().online_write_batch(store.config, store.get_feature_view("things"), rows, None)


def same_things(ours: FeatureStore, theirs: FeatureStore, count: int) -> None:
    """The things of ``count`` entities are the same in every form."""
    everything = [f"things:{kind.name.lower()}" for kind in SAMPLES]
    for start in range(6):
        for features in (everything, everything[::-3]):
            keys = {"thing": [start % 6, *range(1, count)]}
            answers = [store.get_online_features(features, keys) for store in (ours, theirs)]
            assert isinstance(answers[0], LazyResponse)
            same(*answers)
            same(generic(ours, features=features, entity_rows=keys), answers[1])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_type_in_every_form(online_store: dict[str, Any], data: Path, tmp_path: Path, count: int) -> None:
    stores = [
        make_store(tmp_path / "quorin", online_store, data=data),
        make_sqlite_store(tmp_path / "sqlite", data),
    ]
    for store in stores:
        store.apply(things(data))
        put_things(store)
    same_things(*stores, count)
    stores[0].teardown()


def test_a_response_is_what_was_read_when_it_was_asked_for(store: FeatureStore) -> None:
    store.materialize(START, END)
    columns = {"driver_id": [1001, 1002]}
    features = ["driver_stats:nick", "driver_stats:trips", "driver_stats:tags"]
    before = store.get_online_features(features, columns).to_dict()
    lazy = [store.get_online_features(features, rows) for rows in (columns, [{"driver_id": 1001}])]
    key = EntityKey(join_keys=["driver_id"], entity_values=[Value(int64_val=1001)])
    rows = [(key, {"nick": Value(string_val="other"), "trips": Value(int64_val=-1)}, END, None)]
    store._get_provider().online_write_batch(store.config, store.get_feature_view("driver_stats"), rows, None)
    columns["driver_id"].append(5)
    assert store.get_online_features(features, {"driver_id": [1001]}).to_dict()["nick"] == ["other"]
    assert lazy[0].to_dict() == before
    assert lazy[1].to_dict() == {name: values[:1] for name, values in before.items()}
    assert lazy[0].proto.results[0].values[1].int64_val == 1002
    assert copy.deepcopy(lazy[1]).to_dict() == lazy[1].to_dict()


def test_what_is_done_to_the_protobuf_shows(store: FeatureStore) -> None:
    store.materialize(START, END)
    response = store.get_online_features(["driver_stats:trips"], {"driver_id": [1001]})
    response.proto.results[1].values[0].int64_val = 5
    assert response.to_dict() == {"driver_id": [1001], "trips": [5]}
    assert response.to_df()["trips"].tolist() == response.to_arrow()["trips"].to_pylist() == [5]


@pytest.mark.parametrize(
    "entity_rows",
    [
        {"driver": [1001]},
        {"driver_id": [1001], "unknown": [1]},
        {"driver_id": [1001], "customer": ["alice"]},
        {"driver_id": [2**70]},
        {"driver_id": ["x"]},
        {"driver_id": [1001, None]},
        {"driver_id": []},
        {"driver_id": [True]},
        {"driver_id": [1001.0]},
        {"driver_id": np.array([1001])},
        [{"driver_id": 1001}, {"driver_id": 1002, "customer": "a"}],
        [{"driver_id": 1001}, {"customer": "a"}],
        [],
        [{}],
        {},
    ],
    ids=str,
)
def test_odd_rows_are_answered_or_refused_as_by_feast(
    store: FeatureStore, sqlite_store: FeatureStore, entity_rows: Any
) -> None:
    store.materialize(START, END)

    for _ in range(2):
        features = ["driver_stats:conv_rate", "driver_stats:nick"]
        same_outcome(store, sqlite_store, features=features, entity_rows=entity_rows)


def test_feasts_metrics_see_every_read(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from feast import metrics

    store.materialize(START, END)
    counted: list[tuple[Any, ...]] = []
    monkeypatch.setattr(metrics, "track_feature_statuses", lambda *counts: counted.append(counts))
    monkeypatch.setattr(metrics, "track_online_store_read", lambda _: counted.append(("read",)))
    monkeypatch.setattr(metrics._config, "online_features", True)
    store.get_online_features(["driver_stats:trips"], {"driver_id": [1001, 1]})
    assert counted == [("driver_stats", 1, 1), ("read",)]
