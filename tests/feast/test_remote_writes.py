"""Of the same rows every way to write through a server keeps the row that local writes keep, or is refused alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from feast import FeatureStore, FeatureView
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feast_quorin.remote.client import RemoteStoreError
from feast_quorin.remote.session import RemoteSession
from feast_quorin.views import stored_view
from feast_quorin.write.rows import rows_to_batch
from quorin.errors import InvalidRowError
from tests.feast import test_same_row
from tests.feast.repos import END, START, day, definitions
from tests.feast.served import Served, served
from tests.feast.test_same_row import Case, cases
from tests.feast.test_store import (  # noqa: F401 - the tests of local stores
    test_a_key_that_is_too_long_is_refused_before_the_log,
    test_a_value_of_another_type_names_feature_and_view,
    test_an_empty_batch_is_nothing,
    test_features_left_out_stay_as_they_are,
    test_naive_times_are_utc,
    test_of_equal_events_the_later_row_wins_where_the_source_has_no_created_times,
    test_only_the_requested_features_are_read,
    test_progress_counts_every_row,
    test_the_newest_event_wins_whatever_the_order,
)

WAYS = [
    test_same_row.row_by_row,
    test_same_row.rows_at_once,
    test_same_row.table,
    test_same_row.compute_engine,
    test_same_row.our_provider,
    test_same_row.our_provider_row_by_row,
    test_same_row.feasts_provider,
    test_same_row.feasts_provider_row_by_row,
]


@pytest.fixture(scope="module")
def machine(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with served(folder, [*definitions(data), *test_same_row.definitions(folder)], "--max-body-mib", "6") as machine:
        yield machine


@pytest.fixture
def store(machine: Served, data: Path, tmp_path: Path) -> FeatureStore:
    machine.emptied()
    return machine.remote(tmp_path / "remote", data)


@pytest.fixture(scope="module")
def views(
    machine: Served, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FeatureStore, dict[bool, FeatureView]]:
    machine.emptied()
    store = machine.remote(tmp_path_factory.mktemp("remote"), data)
    return store, {has: store.get_feature_view(name) for has, name in test_same_row.NAMES.items()}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(), has_created=st.booleans())
def test_every_way_to_write_keeps_the_same_row(
    views: tuple[FeatureStore, dict[bool, FeatureView]], case: Case, has_created: bool
) -> None:
    test_same_row.check_that_ways_keep_the_same_row(WAYS, *views, case, has_created=has_created)


def test_what_was_written_is_there_for_the_machine_itself(machine: Served, store: FeatureStore, data: Path) -> None:
    store.materialize(START, END)
    rows = {"customer": ["alice"], "driver_id": [1001]}
    request: dict[str, Any] = {"features": ["pair_stats:rides"], "entity_rows": rows}
    assert machine.local.get_online_features(**request).to_dict() == store.get_online_features(**request).to_dict()


@pytest.mark.parametrize("settings_", [{}, {"provider": "feast_quorin.QuorinProvider"}], ids=str)
def test_large_writes_are_several_requests(
    machine: Served, data: Path, tmp_path: Path, settings_: dict[str, Any]
) -> None:
    machine.emptied()
    store = machine.remote(tmp_path / "remote", data, **settings_)
    customers = [f"c{number}" for number in range(40)]
    frame = pd.DataFrame({"customer": customers, "at": [day(0)] * 40, "score": range(40), "city": ["x" * 500_000] * 40})
    store.write_to_online_store("customer_stats", frame)
    found = store.get_online_features(
        ["customer_stats:score", "customer_stats:city"], {"customer": customers}
    ).to_dict()
    assert found["score"] == [*range(40)]
    assert {*map(len, found["city"])} == {500_000}


def test_a_row_beyond_the_limit_of_the_server_is_refused(machine: Served, store: FeatureStore) -> None:
    frame = pd.DataFrame({"customer": ["c"], "at": [day(0)], "score": [1.0], "city": ["x" * 8_000_000]})
    with pytest.raises(RemoteStoreError, match=rf"POST {machine.server.url}/quorin/write: 413: expected a body of"):
        store.push("customer_push", frame)


def test_what_only_the_engine_refuses_has_its_error(store: FeatureStore) -> None:
    key = EntityKey(join_keys=["customer"], entity_values=[Value(string_val="a")])
    session = store.provider.online_store.session(store.config)
    view, batch = _batch_of(store, key)
    wrong = batch.set_column(1, "event_time_ns", batch.column("entity_id"))
    with pytest.raises(InvalidRowError, match="event_time_ns"):
        session.write(view, wrong, partial=False)


def test_other_definitions_than_the_servers_are_refused(machine: Served, store: FeatureStore) -> None:
    key = EntityKey(join_keys=["customer"], entity_values=[Value(string_val="a")])
    view, batch = _batch_of(store, key)
    session = store.provider.online_store.session(store.config)
    unknown = batch.append_column("tall__float", batch.column(2))
    with pytest.raises(RemoteStoreError, match=r"409: .*'customer_stats' of this server has no field 'tall__float'"):
        session.write(view, unknown, partial=False)
    other = RemoteSession(store.config.online_store, None, "another")
    for refused in (lambda: other.read(view, ["a"], []), lambda: other.write(view, batch, partial=False)):
        with pytest.raises(RemoteStoreError, match="409: this server has the project 'shop', not 'another'"):
            refused()


def _batch_of(store: FeatureStore, key: EntityKey) -> Any:
    view = stored_view(store.config, store.get_feature_view("customer_stats"))
    values = {"score": Value(double_val=1.0), "city": Value(string_val="Oslo")}
    return view, rows_to_batch(view, [(key, values, day(0), None)], list(values))
