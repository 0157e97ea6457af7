"""On-demand views and features of every type over a remote store are those of Feast's SQLite store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from feast import FeatureStore

from tests.equivalence.test_compiled import put_things, same_things, things
from tests.feast import test_on_demand
from tests.feast.conftest import make_sqlite_store
from tests.feast.served import served
from tests.feast.test_on_demand import (  # noqa: F401 - the tests of local stores
    test_a_service_with_an_on_demand_view_is_the_same,
    test_data_of_the_request_is_taken_as_by_feast,
    test_generated_requests_are_the_same_three_times,
    test_results_of_any_type_are_taken_or_refused_as_by_feast,
)


@pytest.fixture(scope="module")
def store(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    """A remote store that has written all rows. Views that a test applies are known to the server within a second."""
    folder = tmp_path_factory.mktemp("served")
    objects = [*test_on_demand.views(data), *things(data)]
    with served(folder, objects, registry={"cache_ttl_seconds": 1}) as machine:
        store = machine.remote(folder / "remote", data)
        test_on_demand.fill(store, data)
        put_things(store)
        yield store


@pytest.fixture(scope="module")
def rival(data: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """The same definitions and rows in Feast's SQLite store."""
    store = make_sqlite_store(tmp_path_factory.mktemp("sqlite"), data)
    store.apply(things(data))
    test_on_demand.fill(store, data)
    put_things(store)
    return store


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_type_in_every_form(store: FeatureStore, rival: FeatureStore, count: int) -> None:
    same_things(store, rival, count)
