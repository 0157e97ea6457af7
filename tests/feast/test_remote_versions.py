"""Versions of views over a remote store: the tests of local stores, with what was pushed through the server."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pytest
from feast import FeatureStore

from tests.feast.repos import START, definitions
from tests.feast.served import served
from tests.feast.test_versions import (  # noqa: F401 - the tests of local stores
    SQLITE,
    change,
    opened,
    push_new,
    test_generated_requests_for_versions_are_the_same,
    test_two_versions_in_one_request,
    test_what_is_no_version_is_refused_as_by_feast,
)

VERSIONED = {"enable_online_feature_view_versioning": True, "cache_ttl_seconds": 1}


@pytest.fixture(scope="module")
def both(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[FeatureStore]]:
    """A remote store and SQLite, each with two versions of a view that both have rows."""
    folder = tmp_path_factory.mktemp("versions")
    sqlite = opened(folder / "sqlite", SQLITE, data)
    with served(folder / "quorin", definitions(data), registry=VERSIONED) as machine:
        remote = machine.remote(folder / "remote", data)
        remote.materialize(START, START + dt.timedelta(days=2))
        change(machine.local, data)
        remote.refresh_registry()
        change(sqlite, data)
        for store in (remote, sqlite):
            push_new(store)
        yield [remote, sqlite]
