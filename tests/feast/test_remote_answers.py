"""A remote store gives the answers and errors of a local one: the tests of local stores, over ``quorin serve``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feast import FeatureStore

from feast_quorin.remote.response import RemoteResponse
from tests.feast.conftest import make_sqlite_store
from tests.feast.repos import END, REQUESTS, START, ask, definitions
from tests.feast.served import Served, served
from tests.feast.test_against_sqlite import (  # noqa: F401 - the tests of local stores
    same_outcome,
    test_async_reads_are_the_same,
    test_columns_of_protobuf_values_are_taken,
    test_empty_views_are_the_same,
    test_errors_are_the_same,
    test_incremental_materialization_is_the_same,
    test_materialized_features_are_the_same,
    test_pushes_are_the_same,
    test_views_computed_when_written_are_the_same,
    test_written_frames_are_the_same,
)


@pytest.fixture(scope="module")
def machine(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served"), definitions(data)) as machine:
        yield machine


@pytest.fixture
def store(machine: Served, data: Path, tmp_path: Path) -> FeatureStore:
    """A remote store without rows."""
    machine.emptied()
    return machine.remote(tmp_path / "remote", data)


@pytest.fixture
def both(store: FeatureStore, data: Path, tmp_path: Path) -> list[FeatureStore]:
    """The remote store and SQLite, applied and empty."""
    return [store, make_sqlite_store(tmp_path / "sqlite", data)]


def test_every_usual_request_is_one_of_the_server(store: FeatureStore) -> None:
    store.materialize(START, END)
    for name in REQUESTS:
        assert isinstance(ask(store, name), RemoteResponse)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.float64, str, bool])
def test_keys_of_other_types_are_taken_or_refused_as_by_feast(
    store: FeatureStore, sqlite_store: FeatureStore, kind: Any
) -> None:
    store.materialize(START, END)
    for view, name in (("driver_stats:trips", "driver_id"), ("customer_stats:score", "customer")):
        for keys in ([kind(1001)], [kind(1001), kind(7)], [kind(1001), None]):
            same_outcome(store, sqlite_store, features=[view], entity_rows={name: keys})
