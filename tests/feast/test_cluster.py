"""A repository whose Redis is a cluster, or a service behind Sentinel: apply, materialize, push and read."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from feast import FeatureStore

from tests.feast.repos import END, START, definitions, make_store
from tests.support.redis_cluster import Cluster, Watched
from tests.support.world import until

DRIVERS, FEATURES = {"driver_id": [1001, 1002, 7]}, ["driver_stats:trips", "driver_stats:nick"]
CUSTOMER, SCORE = {"customer": ["alice"]}, ["customer_stats:score"]


@pytest.fixture(params=["cluster", "sentinel"])
def servers(
    request: pytest.FixtureRequest, clusters: Callable[[], Cluster], watched: Callable[[], Watched]
) -> Cluster | Watched:
    made: Cluster | Watched = clusters() if request.param == "cluster" else watched()
    made.flush()
    return made


@pytest.fixture
def machines(servers: Cluster | Watched, tmp_path: Path, data: Path) -> Iterator[list[FeatureStore]]:
    """Two machines with one ``feature_store.yaml``."""
    stores = []
    for name in "AB":
        (tmp_path / name).mkdir()
        online_store: dict[str, Any] = {"type": "quorin", "redis_url": servers.url, "shm_dir": str(tmp_path / name)}
        stores.append(make_store(tmp_path / "repo", online_store | {"capacity": 64}, data=data))
    stores[0].apply(definitions(data))
    yield stores
    stores[0].teardown()


def test_every_machine_answers_as_feast_s_own_store_does(
    machines: list[FeatureStore], sqlite_store: FeatureStore
) -> None:
    a, b = machines
    a.materialize(START, END)
    expected = sqlite_store.get_online_features(FEATURES, DRIVERS).to_dict()
    for store in machines:
        until(lambda store=store: store.get_online_features(FEATURES, DRIVERS).to_dict() == expected)
    for number, store in enumerate((a, b, a), 1):
        at = START + dt.timedelta(days=9, seconds=number)
        row = {"customer": ["alice"], "at": [at], "score": [float(number)], "city": ["x"]}
        store.push("customer_push", pd.DataFrame(row))
        assert _score(store) == number, "its own write is seen at once"
        for other in machines:
            until(lambda other=other, number=number: _score(other) == number)


def _score(store: FeatureStore) -> Any:
    return store.get_online_features(SCORE, CUSTOMER).to_dict()["score"][0]
