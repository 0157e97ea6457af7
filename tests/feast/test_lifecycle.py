"""Views that Feast must not serve: a compiled request refuses them with Feast's own error, and serves them again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, PushSource, StreamFeatureView, ValueType
from feast.feature_view import FeatureViewState
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64

from feast_quorin.read.response import LazyResponse
from tests.equivalence.test_compiled import generic
from tests.feast.repos import END, START, day, make_store
from tests.feast.test_kinds import frame, source

SERVED = {FeatureViewState.STATE_UNSPECIFIED, FeatureViewState.AVAILABLE_ONLINE}
KEY = Entity(name="key", join_keys=["key"], value_type=ValueType.INT64)
REQUESTS = [["plain:amount"], ["streamed:amount"], ["twice:twice"]]


@pytest.fixture(params=["file", "sql"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "registry.db"
    if request.param == "file":
        return {"path": str(path)}
    return {"registry_type": "sql", "path": f"sqlite:///{path}"}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """An embedded store: where the log is makes no difference here."""
    segments = tmp_path / "segments"
    segments.mkdir()
    return {"type": "feast_quorin.QuorinOnlineStore", "shm_dir": str(segments), "capacity": 64}


def opened(folder: Path, settings: dict[str, Any], registry: dict[str, Any]) -> FeatureStore:
    return make_store(folder / "repo", settings, data=folder, registry=registry)


@pytest.fixture
def store(settings: dict[str, Any], registry: dict[str, Any], tmp_path: Path) -> Iterator[FeatureStore]:
    store = opened(tmp_path, settings, registry)
    fields = [Field(name="amount", dtype=Float64)]
    plain = FeatureView(
        name="plain",
        entities=[KEY],
        schema=fields,
        source=PushSource(name="push", batch_source=source(tmp_path, "push")),
    )
    streamed = StreamFeatureView(
        name="streamed",
        entities=[KEY],
        schema=fields,
        source=PushSource(name="stream", batch_source=source(tmp_path, "stream")),
    )

    @on_demand_feature_view(sources=[plain], schema=[Field(name="twice", dtype=Float64)], mode="python")
    def twice(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"twice": [None if amount is None else 2 * amount for amount in inputs["amount"]]}

    service = FeatureService(name="service", features=[plain, twice])
    store.apply([KEY, plain, streamed, twice, service])
    store.push("push", frame(1, [1, 2]))
    store.push("stream", frame(1, [1, 2]))
    yield store
    store.teardown()


ON_FILE = pytest.mark.parametrize("registry", ["file"], indirect=True)
"""Feast's SQL registry forgets a change of nothing but the state, and of nothing but being disabled."""


def outcome(ask: Any) -> Any:
    try:
        return ask().to_dict()
    except ValueError as error:
        return str(error)


def is_served(store: FeatureStore, features: Any) -> bool:
    """Whether a request is answered; if it is refused, then as Feast's own path refuses it."""
    request: dict[str, Any] = {"features": features, "entity_rows": {"key": [1, 99]}}
    slow = outcome(lambda: generic(store, **request))
    for _ in range(2):
        answer = outcome(lambda: store.get_online_features(**request))
        assert answer == slow
    if isinstance(slow, str):
        assert "cannot serve features" in slow
        return False
    assert isinstance(store.get_online_features(**request), LazyResponse)
    return True


@pytest.mark.parametrize("name", ["plain", "streamed", "twice"])
def test_a_disabled_view_is_refused_until_it_is_enabled(store: FeatureStore, name: str) -> None:
    service = store.get_feature_service("service")
    assert all(is_served(store, features) for features in [*REQUESTS, service])
    store.disable_feature_view(name)
    store.refresh_registry()
    is_off = not store.registry.get_any_feature_view(name, store.project).enabled
    assert is_off or store.config.registry.registry_type == "sql"
    for features in REQUESTS:
        assert is_served(store, features) == (features[0].split(":")[0] != name or not is_off)
    assert is_served(store, service) == (name == "streamed" or not is_off)
    store.enable_feature_view(name)
    store.refresh_registry()
    assert all(is_served(store, features) for features in [*REQUESTS, service])


@ON_FILE
def test_a_disabled_view_is_neither_materialized_nor_lost(store: FeatureStore) -> None:
    store.disable_feature_view("plain")
    with pytest.raises(ValueError, match="disabled"):
        store.materialize(START, END, feature_views=["plain"])
    store.materialize(START, END)
    store.enable_feature_view("plain")
    store.refresh_registry()
    assert store.get_online_features(["plain:amount"], {"key": [1]}).to_dict()["amount"] == [1.25]


@ON_FILE
def test_every_state_is_served_or_refused_as_by_feast(store: FeatureStore) -> None:
    assert is_served(store, ["plain:amount"])
    for state in (FeatureViewState.CREATED, FeatureViewState.GENERATED, FeatureViewState.MATERIALIZING):
        store.set_feature_view_state("plain", state)
        store.refresh_registry()
        assert store.get_feature_view("plain").state is state
        assert not is_served(store, ["plain:amount"])
        assert is_served(store, ["streamed:amount"])
    store.set_feature_view_state("plain", FeatureViewState.AVAILABLE_ONLINE)
    store.refresh_registry()
    assert is_served(store, ["plain:amount"])


@ON_FILE
def test_a_materialization_leads_through_the_states(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.set_feature_view_state("plain", FeatureViewState.CREATED)
    store.set_feature_view_state("plain", FeatureViewState.GENERATED)
    online, seen = store._get_provider().online_store, []
    real = type(online).online_write_batch

    def looking(self: Any, config: Any, table: Any, data: Any, progress: Any) -> None:
        store.refresh_registry()
        seen.append((store.get_feature_view("plain").state, is_served(store, ["plain:amount"])))
        real(self, config, table, data, progress)

    monkeypatch.setattr(type(online), "online_write_batch", looking)
    store.materialize(START, END, feature_views=["plain"])
    assert seen == [(FeatureViewState.MATERIALIZING, False)]
    store.refresh_registry()
    assert store.get_feature_view("plain").state is FeatureViewState.AVAILABLE_ONLINE
    assert is_served(store, ["plain:amount"])


@ON_FILE
def test_features_are_served_while_they_are_materialized_where_that_is_set(
    store: FeatureStore, settings: dict[str, Any], registry: dict[str, Any], tmp_path: Path
) -> None:
    serving = opened(tmp_path, settings, {**registry, "serve_features_while_materializing": True})
    for state in (FeatureViewState.CREATED, FeatureViewState.GENERATED, FeatureViewState.MATERIALIZING):
        store.set_feature_view_state("plain", state)
        for each in (store, serving):
            each.refresh_registry()
        assert is_served(serving, ["plain:amount"]) == (state is FeatureViewState.MATERIALIZING)
        assert not is_served(store, ["plain:amount"])
    serving.push("push", frame(2, [1]))
    assert serving.get_online_features(["plain:amount"], {"key": [1]}).to_dict()["amount"] == [1.5]


@ON_FILE
def test_a_view_that_is_not_online_has_nothing_to_read(store: FeatureStore, tmp_path: Path) -> None:
    offline = FeatureView(
        name="offline",
        entities=[KEY],
        schema=[Field(name="amount", dtype=Int64)],
        source=source(tmp_path, "off"),
        online=False,
    )
    store.apply([KEY, offline])
    store.materialize(START, day(1))
    with pytest.raises(ValueError, match="not configured to be served online"):
        store.materialize(START, day(1), feature_views=["offline"])
