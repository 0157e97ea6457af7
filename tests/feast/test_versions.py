"""Versions of feature views: requests that name them, the segments that hold them, and what an apply does to those."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from feast import FeatureService, FeatureStore, Field
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64

from feast_quorin.names import MAX_VERSIONS, schema_name, schema_names
from feast_quorin.read.response import LazyResponse
from tests.equivalence.test_compiled import generic
from tests.feast.repos import CUSTOMERS, END, START, definitions, make_store
from tests.feast.test_against_sqlite import same
from tests.feast.test_plans import changed

SQLITE = {"type": "sqlite"}
FEATURES = {
    "customer_stats@v0": ["score", "city"],
    "customer_stats@v1": ["score", "age", "city"],
    "customer_stats": ["score", "age", "city"],
    "customer_stats@latest": ["score", "age", "city"],
    "pair_stats": ["rides"],
    "pair_stats@v0": ["rides"],
}
ROWS = {"customer": [*CUSTOMERS, "new", "nobody"], "driver_id": [1001] * (len(CUSTOMERS) + 2)}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """An embedded store: where the log is makes no difference here."""
    segments = tmp_path / "segments"
    segments.mkdir()
    return {"type": "feast_quorin.QuorinOnlineStore", "shm_dir": str(segments), "capacity": 64}


def opened(folder: Path, online_store: dict[str, Any], data: Path, *, apart: bool = True) -> FeatureStore:
    """A repository of two days, with views of which the registry keeps versions, and the store too if ``apart``."""
    registry = {"path": str(folder / "registry.db"), "enable_online_feature_view_versioning": apart}
    if online_store == SQLITE:
        online_store = {**SQLITE, "path": str(folder / "online.db")}
    store = make_store(folder, online_store, data=data, registry=registry)
    store.apply(definitions(data))
    store.materialize(START, START + dt.timedelta(days=2))
    return store


def change(store: FeatureStore, data: Path, **how: Any) -> None:
    store.apply([store.get_entity("customer"), changed(data)], **how)


def push_new(store: FeatureStore) -> None:
    """Rows of the changed view."""
    times = pd.to_datetime([END] * 2)
    row = {"customer": ["alice", "new"], "at": times, "score": [7.0, 8.0], "age": [3, None], "city": [1.5, 2.5]}
    store.push("customer_push", pd.DataFrame(row).astype({"age": "Int64"}))


@pytest.fixture
def both(settings: dict[str, Any], data: Path, tmp_path: Path) -> Iterator[list[FeatureStore]]:
    """Quorin and SQLite, each with two versions of a view that both have rows."""
    stores = [opened(tmp_path / name, online, data) for name, online in (("quorin", settings), ("sqlite", SQLITE))]
    for store in stores:
        change(store, data)
        push_new(store)
    yield stores
    stores[0].teardown()
    assert list(Path(settings["shm_dir"]).glob("quorin_*")) == []


def answer_or_error(ask: Any) -> Any:
    try:
        return ask()
    except Exception as error:  # noqa: BLE001 - whatever it is, it has to be the same
        return type(error), str(error)


def agree(ours: FeatureStore, theirs: FeatureStore, **request: Any) -> bool:
    """Whether the request is answered: the same by a plan, by Feast's path, and by SQLite; or refused by all alike."""

    def of(store: FeatureStore, features: Any) -> Any:
        return store.get_feature_service(features) if isinstance(features, str) else features

    features = request.pop("features")
    expected = answer_or_error(lambda: theirs.get_online_features(features=of(theirs, features), **request))
    slow = answer_or_error(lambda: generic(ours, features=of(ours, features), **request))
    for _ in range(2):
        fast = answer_or_error(lambda: ours.get_online_features(features=of(ours, features), **request))
        if isinstance(expected, tuple):
            assert fast == slow == expected, features
        else:
            assert isinstance(fast, LazyResponse), features
            same(fast, expected)
            same(slow, expected)
    return not isinstance(expected, tuple)


def test_generated_requests_for_versions_are_the_same(both: list[FeatureStore]) -> None:
    source = random.Random(0)
    answered = 0
    for number in range(40):
        views = source.sample(list(FEATURES), source.randint(1, 3))
        features = [
            f"{view}:{name}"
            for view in views
            for name in source.sample(FEATURES[view], source.randint(1, len(FEATURES[view])))
        ]
        source.shuffle(features)
        answered += agree(
            *both,
            features=features,
            entity_rows=ROWS if number % 3 else {"customer": ["alice"], "driver_id": [1001]},
            full_feature_names=source.random() < 0.7,
            include_feature_view_version_metadata=source.random() < 0.7,
        )
    assert 15 < answered < 40


def test_two_versions_in_one_request(both: list[FeatureStore]) -> None:
    features = [
        "customer_stats@v1:city",
        "customer_stats@v0:city",
        "customer_stats@v0:score",
        "customer_stats@v1:score",
    ]
    request = {"features": features, "entity_rows": {"customer": ["alice", "new"]}, "full_feature_names": True}
    answer = both[0].get_online_features(**request, include_feature_view_version_metadata=True)
    assert isinstance(answer, LazyResponse)
    assert answer.to_dict() == {
        "customer": ["alice", "new"],
        "customer_stats@v0__score": [1.25, None],
        "customer_stats@v0__city": [None, None],
        "customer_stats@v1__score": [7.0, 8.0],
        "customer_stats@v1__city": [1.5, 2.5],
    }


@pytest.mark.parametrize(
    "features",
    [
        ["customer_stats@v2:score"],
        ["customer_stats@v0:age"],
        ["customer_stats@v0:score", "customer_stats@v1:score"],
        ["nothing@v0:score"],
        ["customer_stats@vx:score"],
    ],
)
def test_what_is_no_version_is_refused_as_by_feast(both: list[FeatureStore], features: list[str]) -> None:
    assert not agree(*both, features=features, entity_rows={"customer": ["alice"]})


def test_services_and_computed_views_over_versions_are_the_same(both: list[FeatureStore]) -> None:
    for store in both:
        view = store.get_feature_view("customer_stats")

        @on_demand_feature_view(sources=[view], schema=[Field(name="again", dtype=Float64)], mode="python")
        def copied(inputs: dict[str, Any]) -> dict[str, Any]:
            return {"again": inputs["score"]}

        names = {
            "old": ["customer_stats@v0"],
            "new": ["customer_stats@v1:age"],
            "both": [f"customer_stats@v{n}" for n in (0, 1)],
        }
        store.apply([copied, *(FeatureService(name=name, features=chosen) for name, chosen in names.items())])
    for full_names in (False, True):
        for features in ("old", "new", "both", ["copied:again", "pair_stats@v0:rides"]):
            done = agree(*both, features=features, entity_rows=ROWS, full_feature_names=full_names)
            assert done == (features != "both" or full_names)


def test_a_version_is_materialized_alone(both: list[FeatureStore]) -> None:
    for store in both:
        store.materialize(START, END, feature_views=["customer_stats"], version="v0")
    assert agree(*both, features=["customer_stats@v0:score", "customer_stats@v0:city"], entity_rows=ROWS)
    assert agree(*both, features=["customer_stats:score", "customer_stats:age"], entity_rows=ROWS)


def test_applying_again_leaves_every_version_as_it_is(
    both: list[FeatureStore], settings: dict[str, Any], data: Path
) -> None:
    files = sorted(path.name for path in Path(settings["shm_dir"]).glob("quorin_*"))
    for store in both:
        change(store, data)
    assert sorted(path.name for path in Path(settings["shm_dir"]).glob("quorin_*")) == files
    for version in FEATURES:
        assert "@v" not in version or agree(*both, features=[f"{version}:{FEATURES[version][0]}"], entity_rows=ROWS)


def test_a_removed_view_is_gone_in_all_its_versions(both: list[FeatureStore], data: Path) -> None:
    ours = both[0]
    ours.apply([], objects_to_delete=[ours.get_feature_view("customer_stats")], partial=False)
    session = ours._get_provider().online_store._session_for(ours.config)
    assert [name for name in session.catalogue.schema_names() if "customer" in name] == []
    assert len(session.catalogue.schema_names()) == 3
    ours.apply(definitions(data))
    answer = ours.get_online_features(["customer_stats@v0:score"], {"customer": ["alice"]})
    assert answer.to_dict()["score"] == [None]


@pytest.mark.parametrize("apart", [False, True])
def test_a_definition_that_is_not_made_current_takes_nothing_away(
    settings: dict[str, Any], data: Path, tmp_path: Path, apart: bool
) -> None:
    stores = [
        opened(tmp_path / name, online, data, apart=apart)
        for name, online in (("quorin", settings), ("sqlite", SQLITE))
    ]
    frame = pd.DataFrame({"customer": ["alice"], "at": pd.to_datetime([END]), "score": [9.0], "city": ["Rome"]})
    request: dict[str, Any] = {"features": ["customer_stats:score", "customer_stats:city"], "entity_rows": ROWS}
    for store in stores:
        change(store, data, no_promote=True)
    assert agree(*stores, **request)
    for store in stores:
        store.push("customer_push", frame)
    assert agree(*stores, **request)
    assert stores[0].get_online_features(**request).to_dict()["city"][CUSTOMERS.index("alice")] == "Rome"
    stores[0].teardown()


def test_going_back_to_a_version_without_segments_of_their_own(
    settings: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    store = opened(tmp_path / "quorin", settings, data, apart=False)
    change(store, data)
    pinned = changed(data)
    pinned.version = "v0"
    store.apply([store.get_entity("customer"), pinned])
    frame = pd.DataFrame({"customer": ["alice"], "at": pd.to_datetime([END]), "score": [9.0], "city": ["Rome"]})
    store.push("customer_push", frame)
    answer = store.get_online_features(["customer_stats:score", "customer_stats:city"], {"customer": ["alice", "Åse"]})
    assert answer.to_dict() == {"customer": ["alice", "Åse"], "score": [9.0, 4.25], "city": ["Rome", None]}
    store.teardown()


def test_without_the_setting_versions_are_refused_as_by_feast(
    settings: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    store = opened(tmp_path / "quorin", settings, data, apart=False)
    with pytest.raises(ValueError, match="enable_online_feature_view_versioning"):
        store.get_online_features(["customer_stats@v0:score"], {"customer": ["alice"]})
    store.teardown()


@pytest.mark.parametrize("view", ["short", "a-view", "long" * 20])
def test_schema_names_of_a_view_are_found_in_every_version(view: str) -> None:
    mine = {schema_name("shop", view, version) for version in (None, 1, 2, 77, MAX_VERSIONS - 1)}
    others = {schema_name("shop", view + "s", 1), schema_name("shops", view, 1), schema_name("shop", "other")}
    assert schema_names(mine | others, "shop", view) == mine
    assert schema_names(others, "shop", view) == set()
