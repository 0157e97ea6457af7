"""Compiled requests are dropped when Feast's own answers would change, and only then."""

from __future__ import annotations

import copy
import datetime as dt
import time
from pathlib import Path
from typing import Any

import pytest
from feast import FeatureStore, FeatureView, Field, utils
from feast.errors import FeatureViewNotFoundException
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64, Int64

from feast_quorin.read.response import LazyResponse
from feast_quorin.read.view_reader import LOOK_SECONDS
from quorin.errors import SegmentNotFoundError
from tests.feast.repos import CUSTOMERS, END, START, definitions, make_store
from tests.feast.spawned import spawned
from tests.feast.test_processes import succeed

ROWS = [{"customer": "alice"}, {"customer": "nobody"}]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Feast was asked to find out about, once for every time."""
    made: list[Any] = []
    real = utils._get_online_request_context

    def counting(registry: Any, project: str, features: Any, full_feature_names: bool) -> Any:
        made.append(features)
        return real(registry, project, features, full_feature_names)

    monkeypatch.setattr(utils, "_get_online_request_context", counting)
    return made


@pytest.fixture
def other(store: FeatureStore, online_store: dict[str, Any], data: Path) -> FeatureStore:
    """The same repository opened once more: a registry, a store and segments of its own, as another process has."""
    store.materialize(START, END)
    return make_store(Path(store.repo_path), online_store, data=data)


def read(store: FeatureStore, *features: str, rows: Any = ROWS) -> dict[str, Any]:
    response = store.get_online_features([f"customer_stats:{name}" for name in features], rows)
    assert isinstance(response, LazyResponse)
    return response.to_dict()


def changed(data: Path) -> FeatureView:
    """The view of customers, without their city and with two more features, one of them under the name of the city."""
    view: FeatureView = next(thing for thing in definitions(data) if thing.name == "customer_stats")
    view.features = [
        *[field for field in view.features if field.name != "city"],
        Field(name="age", dtype=Int64),
        Field(name="city", dtype=Float64),
    ]
    view.projection.features = view.features
    return view


def apply_changed(repo: Path, online_store: dict[str, Any], data: Path) -> None:
    store = make_store(repo, online_store, data=data)
    store.apply([store.get_entity("customer"), changed(data)])


def test_a_request_is_compiled_once(store: FeatureStore, compiled: list[Any]) -> None:
    store.materialize(START, END)
    compiled.clear()
    for _ in range(3):
        read(store, "score")
        read(store, "score", rows={"customer": CUSTOMERS})
    assert compiled == [["customer_stats:score"]]
    store.get_online_features(["customer_stats:score"], ROWS, full_feature_names=True)
    assert len(compiled) == 2


def test_a_refresh_without_news_changes_nothing(store: FeatureStore, compiled: list[Any]) -> None:
    store.materialize(START, END)
    read(store, "score")
    compiled.clear()
    for _ in range(3):
        store.refresh_registry()
        read(store, "score")
    assert compiled == []


def test_an_apply_in_this_process_is_seen(store: FeatureStore, data: Path) -> None:
    store.materialize(START, END)
    score = read(store, "score", "city")["score"]
    store.apply([store.get_entity("customer"), changed(data)])
    assert read(store, "score", "city", "age") == {
        "customer": ["alice", "nobody"], "score": score, "city": [None, None], "age": [None, None],
    }  # fmt: skip


def test_an_apply_in_another_process_is_seen_after_a_refresh(
    store: FeatureStore, other: FeatureStore, online_store: dict[str, Any], data: Path
) -> None:
    before = read(store, "score", "city")
    succeed(spawned(apply_changed, Path(store.repo_path), online_store, data))
    time.sleep(LOOK_SECONDS)
    assert read(store, "score") == {name: before[name] for name in ("customer", "score")}
    gone = store.get_online_features(["customer_stats:score", "customer_stats:city"], ROWS)
    assert gone.to_dict() == {**before, "city": [None, None]}
    store.refresh_registry()
    assert read(store, "score", "city") == {**before, "city": [None, None]}
    assert store.get_online_features(["customer_stats:age"], ROWS).to_dict()["age"] == [None, None]


def test_the_registrys_time_to_live_is_kept(store: FeatureStore, other: FeatureStore, data: Path) -> None:
    registry: Any = store.registry
    read(store, "score")
    registry.cached_registry_proto_ttl = dt.timedelta(seconds=0.3)
    store.refresh_registry()
    read(store, "score")
    other.delete_feature_view("customer_stats")
    time.sleep(0.4)
    with pytest.raises(FeatureViewNotFoundException, match="customer_stats"):
        read(store, "score")


def test_a_disabled_view_is_refused(store: FeatureStore, other: FeatureStore, data: Path) -> None:
    read(store, "score")
    view = other.get_feature_view("customer_stats")
    view.enabled = False
    other.registry.apply_feature_view(view, other.project)
    read(store, "score")
    store.refresh_registry()
    with pytest.raises(ValueError, match="is disabled"):
        read(store, "score")


def test_a_teardown_elsewhere_is_noticed_and_so_is_what_comes_after(
    store: FeatureStore, other: FeatureStore, data: Path
) -> None:
    before = read(store, "score", "city")
    other.teardown()
    time.sleep(LOOK_SECONDS)
    for rows in (ROWS, ROWS[:1]):
        with pytest.raises(SegmentNotFoundError, match="customer_stats"):
            read(store, "score", "city", rows=rows)
    other.apply(definitions(data))
    assert read(store, "score", "city")["score"] == [None, None]
    other.materialize(START, END)
    assert read(store, "score", "city") == before


def test_a_teardown_here_is_noticed_at_once(store: FeatureStore, other: FeatureStore, data: Path) -> None:
    read(store, "score", "city")
    store._get_provider().online_store.teardown(store.config, [], [])
    with pytest.raises(SegmentNotFoundError, match="customer_stats"):
        read(store, "score", "city")
    other.apply(definitions(data))
    assert read(store, "score", "city")["score"] == [None, None]


def test_a_segment_that_grows_is_followed(store: FeatureStore, other: FeatureStore) -> None:
    view, provider = other.get_feature_view("customer_stats"), other._get_provider()
    first = read(store, "score", "city", rows=ROWS[:1])
    for size in (50, 1000):
        keys = [EntityKey(join_keys=["customer"], entity_values=[Value(string_val=f"é{i}")]) for i in range(size)]
        values = [{"score": Value(double_val=size + i), "city": Value(string_val=f"c{i}")} for i in range(size)]
        provider.online_write_batch(
            other.config, view, [(key, row, END, None) for key, row in zip(keys, values, strict=True)], None
        )
        assert read(store, "score", "city", rows=ROWS[:1]) == first
        rows = {"customer": [f"é{i}" for i in range(size)]}
        assert read(store, "score", "city", rows=rows)["score"] == [size + i for i in range(size)]
        assert read(store, "score", rows=[{"customer": "é7"}]) == {"customer": ["é7"], "score": [size + 7.0]}


def test_a_service_counts_with_its_projections(store: FeatureStore) -> None:
    store.materialize(START, END)
    service = store.get_feature_service("rides")
    rows = [{"origin_id": 1001, "target_id": 1002, "customer": "alice"}]
    answer = store.get_online_features(service, rows, full_feature_names=True).to_dict()
    other = copy.deepcopy(service)
    swapped = {"origin": {"driver_id": "target_id"}, "target": {"driver_id": "origin_id"}}
    for projection in other.feature_view_projections:
        projection.join_key_map = swapped.get(projection.name_alias, {})
    with pytest.warns(UserWarning, match="inconsistent"):
        crossed = store.get_online_features(other, rows, full_feature_names=True)
    assert isinstance(crossed, LazyResponse)
    given = crossed.to_dict()
    assert given["target__conv_rate"] == answer["origin__conv_rate"] != answer["target__conv_rate"]
    assert given["origin__conv_rate"] == answer["target__conv_rate"]
    assert store.get_online_features(service, rows, full_feature_names=True).to_dict() == answer
