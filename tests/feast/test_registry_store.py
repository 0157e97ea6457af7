"""A registry in a file that is built anew only when the file has changed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from feast import FeatureStore, FeatureView
from feast.repo_config import RegistryConfig

from feast_quorin import QuorinRegistryStore
from tests.feast.repos import END, REQUESTS, START, ask, definitions, make_store
from tests.feast.test_against_sqlite import same
from tests.feast.test_plans import changed, read

NOON = dt.datetime(2024, 3, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    segments = tmp_path / "segments"
    segments.mkdir()
    return {"type": "feast_quorin.QuorinOnlineStore", "shm_dir": str(segments), "capacity": 64}


@pytest.fixture
def registry(tmp_path: Path) -> dict[str, Any]:
    return {
        "path": str(tmp_path / "registry.db"),
        "registry_store_type": f"feast_quorin.{QuorinRegistryStore.__name__}",
        "cache_ttl_seconds": 600,
    }


@pytest.fixture
def store(tmp_path: Path, settings: dict[str, Any], registry: dict[str, Any], data: Path) -> Iterator[FeatureStore]:
    store = make_store(
        tmp_path / "repo", settings, data=data, registry=registry, provider="feast_quorin.QuorinProvider"
    )
    store.apply(definitions(data))
    store.materialize(START, END)
    yield store
    store.teardown()


def push(store: FeatureStore, score: float) -> None:
    frame = {"customer": ["anna"], "at": [NOON + dt.timedelta(seconds=score)], "score": [score], "city": ["Oslo"]}
    store.push("customer_push", pd.DataFrame(frame))


def test_requests_are_answered_as_by_feasts_own_registry(store: FeatureStore, sqlite_store: FeatureStore) -> None:
    for name in REQUESTS:
        same(ask(store, name), ask(sqlite_store, name))


def test_pushes_build_no_view_again(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    push(store, 1)
    built: list[str] = []
    build = FeatureView.from_proto.__func__

    def noted(cls: type[FeatureView], proto: Any, *arguments: Any, **options: Any) -> FeatureView:
        built.append(proto.spec.name)
        view: FeatureView = build(cls, proto, *arguments, **options)
        return view

    monkeypatch.setattr(FeatureView, "from_proto", classmethod(noted))
    for score in (2, 3):
        push(store, score)
    assert built == []
    features = store.get_online_features(["customer_stats:score"], [{"customer": "anna"}]).to_dict()
    assert features["score"] == [3.0]


def test_what_another_process_applies_is_seen_by_the_next_read_without_a_cache(
    store: FeatureStore, settings: dict[str, Any], registry: dict[str, Any], data: Path
) -> None:
    push(store, 1)
    other = make_store(Path(store.repo_path), settings, data=data, registry=registry)
    other.apply([other.get_entity("customer"), changed(data)])
    assert "age" in [field.name for field in store.get_feature_view("customer_stats").schema]
    store.refresh_registry()
    assert read(store, "age")["age"] == [None, None]


def test_what_this_process_applies_is_seen(store: FeatureStore, data: Path) -> None:
    push(store, 1)
    store.apply([store.get_entity("customer"), changed(data)])
    frame = {"customer": ["anna"], "at": [NOON + dt.timedelta(seconds=9)], "score": [9.0], "age": [7], "city": [1.5]}
    store.push("customer_push", pd.DataFrame(frame))
    answer = store.get_online_features(["customer_stats:age"], [{"customer": "anna"}]).to_dict()
    assert answer["age"] == [7]


def test_a_change_that_is_not_committed_is_not_read(store: FeatureStore) -> None:
    view = store.get_feature_view("customer_stats")
    draft = FeatureView.from_proto(view.to_proto())
    draft.tags = {"draft": "yes"}
    store.registry.apply_feature_view(draft, store.project, commit=False)
    assert store.get_feature_view("customer_stats").tags == {}
    store.registry.apply_feature_view(draft, store.project)
    assert store.get_feature_view("customer_stats").tags == {"draft": "yes"}


def test_a_registry_that_is_not_there_is_named(tmp_path: Path, registry: dict[str, Any]) -> None:
    kept = QuorinRegistryStore(RegistryConfig(**registry), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"registry\.db"):
        kept.get_registry_proto()
