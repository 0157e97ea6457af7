"""Whatever Feast's SQLite store answers, Quorin answers: two repositories side by side."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureStore, Field
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, String
from google.protobuf.message import Message

from feast_quorin import QuorinOnlineStore
from feast_quorin.remote.response import RemoteResponse
from tests.feast.conftest import make_sqlite_store
from tests.feast.repos import DRIVERS, END, REQUESTS, START, ask, day, definitions


def vectors(response: Any) -> dict[str, Message]:
    """A response's vectors by feature name."""
    names = response.proto.metadata.feature_names.val
    assert len(set(names)) == len(names) == len(response.proto.results)
    return dict(zip(names, response.proto.results, strict=True))


def same(ours: Any, theirs: Any) -> None:
    """Equal as dictionaries, frames and tables, and as protobuf (values, statuses, event times, metadata)."""
    for with_times in (False, True):
        equal_forms(ours, theirs, with_times)
    assert vectors(ours) == vectors(theirs)
    assert ours.proto.metadata.feature_view_metadata == theirs.proto.metadata.feature_view_metadata
    for with_times in (False, True):
        equal_forms(ours, theirs, with_times)


def same_outcome(store: FeatureStore, rival: FeatureStore, **request: Any) -> None:
    """The same answer, or an error of the same type and text. Of a key, ours may say more: view, row and join key."""

    def outcome(asked: FeatureStore) -> Any:
        try:
            return asked.get_online_features(**request).to_dict()
        except Exception as error:  # noqa: BLE001 - whatever it is, it has to be the same
            return type(error), str(error)

    ours, theirs = outcome(store), outcome(rival)
    if ours != theirs:
        assert isinstance(ours, tuple)
        assert ours[0] is theirs[0]
        assert re.match(r"view '\w+', row \d, join key '\w+': got ", ours[1])


def equal_forms(ours: Any, theirs: Any, with_times: bool) -> None:
    """Equal in value, type and order in every form that a response can be had in."""
    left, right = ours.to_dict(with_times), theirs.to_dict(with_times)
    assert typed(left) == typed(right)
    assert is_from_another_process(ours) or list(left) == list(right)
    pd.testing.assert_frame_equal(ours.to_df(with_times)[[*right]], theirs.to_df(with_times))
    try:
        expected = theirs.to_arrow(with_times)
    except pa.ArrowException as error:
        # Which of several columns fails first depends on their order.
        with pytest.raises(pa.ArrowException if is_from_another_process(ours) else type(error)):
            ours.to_arrow(with_times)
    else:
        assert ours.to_arrow(with_times).select([*right]).equals(expected, check_metadata=True)


def is_from_another_process(response: Any) -> bool:
    """Whether the response was made elsewhere: Feast orders the features of a view by a set, as each process does."""
    return isinstance(response, RemoteResponse)


def typed(value: Any) -> Any:
    """A value that equals another only if all its parts have the same types."""
    if isinstance(value, dict):
        return {key: typed(part) for key, part in value.items()}
    parts = [typed(part) for part in value] if isinstance(value, list) else repr(value)
    return type(value), parts


@pytest.fixture
def both(store: FeatureStore, data: Path, tmp_path: Path) -> list[FeatureStore]:
    """Quorin and SQLite, applied and empty."""
    return [store, make_sqlite_store(tmp_path / "sqlite", data)]


def test_materialized_features_are_the_same(store: FeatureStore, sqlite_store: FeatureStore) -> None:
    store.materialize(START, END)
    for name in REQUESTS:
        same(ask(store, name), ask(sqlite_store, name))


def test_the_generic_path_gives_the_same(
    store: FeatureStore, sqlite_store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from feast.infra.online_stores.online_store import OnlineStore

    store.materialize(START, END)
    monkeypatch.setattr(QuorinOnlineStore, "_read_features_per_fv", OnlineStore._read_features_per_fv)
    for name in REQUESTS:
        same(ask(store, name), ask(sqlite_store, name))


def test_async_reads_are_the_same(store: FeatureStore, sqlite_store: FeatureStore) -> None:
    store.materialize(START, END)
    for name, request in REQUESTS.items():
        if isinstance(request["features"], list):
            same(asyncio.run(store.get_online_features_async(**request)), ask(sqlite_store, name))


def test_incremental_materialization_is_the_same(both: list[FeatureStore]) -> None:
    for until in (day(0), day(1) + dt.timedelta(hours=1), END):
        for store in both:
            store.materialize_incremental(until)
        for name in REQUESTS:
            same(*(ask(store, name) for store in both))


def test_empty_views_are_the_same(both: list[FeatureStore]) -> None:
    for name in REQUESTS:
        same(*(ask(store, name) for store in both))


def test_pushes_are_the_same(both: list[FeatureStore]) -> None:
    pushed = pd.DataFrame(
        {
            "customer": ["alice", "new", "", "bob|carol"],
            "at": pd.to_datetime([END] * 4),
            "score": [99.5, 1.0, None, float("inf")],
            "city": ["Oslo", None, "", "名"],
        }
    )
    for store in both:
        store.materialize(START, END)
        store.push("customer_push", pushed)
    rows = [{"customer": name} for name in ["alice", "new", "", "bob|carol", "Åse"]]
    features = ["customer_stats:score", "customer_stats:city"]
    same(*(store.get_online_features(features, rows) for store in both))


def test_written_frames_are_the_same(both: list[FeatureStore]) -> None:
    frame = pd.DataFrame(
        {"customer": ["a", "b"], "driver_id": [1, 2], "at": pd.to_datetime([END] * 2), "rides": [5, 6]}
    )
    for store in both:
        store.write_to_online_store("pair_stats", frame)
    rows = {"customer": ["a", "b", "a"], "driver_id": [1, 2, 2]}
    same(*(store.get_online_features(["pair_stats:rides"], rows) for store in both))


def test_views_computed_when_written_are_the_same(both: list[FeatureStore], data: Path) -> None:
    customer, customer_stats = (thing for thing in definitions(data) if thing.name in ("customer", "customer_stats"))

    def doubled_score(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"twice": [2 * score for score in inputs["score"]], "label": [f"in {city}" for city in inputs["city"]]}

    doubled = on_demand_feature_view(
        entities=[customer],
        sources=[customer_stats],
        schema=[Field(name="twice", dtype=Float64), Field(name="label", dtype=String)],
        mode="python",
        write_to_online_store=True,
    )(doubled_score)
    for store in both:
        store.apply([customer, customer_stats, doubled])
        store.write_to_online_store("doubled_score", pd.DataFrame({"customer": ["z"], "score": [5.0], "city": ["q"]}))
    features = ["doubled_score:twice", "doubled_score:label"]
    answers = [store.get_online_features(features, {"customer": ["z", "a"]}).to_dict() for store in both]
    assert answers[0] == answers[1] == {"customer": ["z", "a"], "twice": [10.0, None], "label": ["in q", None]}


@pytest.mark.parametrize(
    "request_",
    [
        {"features": ["driver_stats:conv_rate"], "entity_rows": [{"driver_id": 1}, {"other": 2}]},
        {"features": ["driver_stats:conv_rate"], "entity_rows": {"driver_id": [1, 2], "customer": ["a"]}},
        {"features": ["driver_stats:conv_rate"], "entity_rows": [{"wrong": 1}]},
        {"features": ["driver_stats:conv_rate"], "entity_rows": {"driver_id": [None]}},
        {"features": ["driver_stats:nothing"], "entity_rows": {"driver_id": [1]}},
        {"features": ["nowhere:conv_rate"], "entity_rows": {"driver_id": [1]}},
        {"features": ["boosted:boosted_rate"], "entity_rows": {"driver_id": [1]}},
        {"features": ["driver_stats:conv_rate", "boosted:conv_rate"], "entity_rows": {"driver_id": [1]}},
    ],
)
def test_errors_are_the_same(store: FeatureStore, sqlite_store: FeatureStore, request_: dict[str, Any]) -> None:
    same_outcome(store, sqlite_store, **request_)


def test_columns_of_protobuf_values_are_taken(store: FeatureStore, sqlite_store: FeatureStore) -> None:
    from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value

    store.materialize(START, END)
    keys = RepeatedValue(val=[Value(int64_val=driver) for driver in DRIVERS[:3]])
    request: dict[str, Any] = {"features": ["driver_stats:small"], "entity_rows": {"driver_id": keys}}
    same(store.get_online_features(**request), sqlite_store.get_online_features(**request))
