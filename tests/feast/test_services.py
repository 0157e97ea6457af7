"""Services that the server keeps are those that Feast would make anew."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from feast import FeatureService, FeatureStore
from feast.errors import FeatureServiceNotFoundException

from feast_quorin.server.services import Services
from tests.feast.repos import definitions, make_store
from tests.feast.test_registries import remote, settings, sql  # noqa: F401 - fixtures

REGISTRIES = "file", "sql", "remote"


@pytest.fixture(params=REGISTRIES)
def open_store(
    request: pytest.FixtureRequest,
    settings: dict[str, Any],  # noqa: F811
    data: Path,
    tmp_path: Path,
) -> Callable[[], FeatureStore]:
    """Opens the same repository once more, as another process does."""
    kind = request.param
    registry: Any = {"path": f"{tmp_path}/registry.db", "cache_ttl_seconds": 600}
    if kind != "file":
        registry = request.getfixturevalue(kind)

    def open_() -> FeatureStore:
        return make_store(tmp_path / "repo", settings, data=data, registry=registry)

    return open_


def service(store: FeatureStore, *features: str) -> FeatureService:
    view = store.get_feature_view("customer_stats")
    return FeatureService(name="chosen", features=[view[[*features]]])


def names(found: FeatureService) -> list[str]:
    return [field.name for view in found.feature_view_projections for field in view.features]


def test_services_are_those_of_the_registry(open_store: Callable[[], FeatureStore], data: Path) -> None:
    store = open_store()
    store.apply(definitions(data))
    store.apply([service(store, "score")])
    services = Services(store)
    assert services.get("chosen") == store.get_feature_service("chosen")
    kept = services.get("chosen")
    assert names(kept) == ["score"]
    store.refresh_registry()  # type: ignore[no-untyped-call]
    assert services.get("chosen") is kept or store.config.registry.registry_type == "remote"  # It cannot tell changes.
    with pytest.raises(FeatureServiceNotFoundException, match="absent"):
        services.get("absent")

    store.apply([service(store, "score", "city")])
    store.refresh_registry()  # type: ignore[no-untyped-call]
    wait_until_found(services, ["score", "city"])
    store.delete_feature_service("chosen")
    store.refresh_registry()  # type: ignore[no-untyped-call]
    with pytest.raises(FeatureServiceNotFoundException, match="chosen"):
        wait_until_found(services, [])
    store.teardown()  # type: ignore[no-untyped-call]


def test_what_another_process_applies_is_seen_after_the_registrys_time_to_live(
    open_store: Callable[[], FeatureStore], data: Path
) -> None:
    store = open_store()
    store.apply(definitions(data))
    store.apply([service(store, "score")])
    other = open_store()
    services = Services(other)
    kept = services.get("chosen")
    store.apply([service(store, "city")])
    # The first request after the time to live does the same.
    other.refresh_registry()  # type: ignore[no-untyped-call]
    wait_until_found(services, ["city"])
    assert names(kept) == ["score"]
    store.teardown()  # type: ignore[no-untyped-call]


def wait_until_found(services: Services, expected: list[str]) -> None:
    """Wait for the service to have these features: a remote registry is relied on for a second."""
    deadline = time.monotonic() + 30
    while names(services.get("chosen")) != expected:
        assert time.monotonic() < deadline, names(services.get("chosen"))
        time.sleep(0.1)
