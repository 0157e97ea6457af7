"""Feast's own `remote` online store against ``quorin serve``: what it gives, and where Feast's client falls short."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import requests
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Float32, Int64, String, UnixTimestamp

from tests.feast.repos import END, REQUESTS, START, ask, day, definitions, make_store
from tests.feast.served import Served, served

OTHERWISE = {"blob", "joined", "prefs"}
"""Features whose values JSON has no type for: Feast's client returns what the JSON holds."""

EMPTY_LISTS = {"tags", "embedding", "counts", "flags"}
"""Features with empty lists, of which Feast's client makes an error."""

PLAIN = Entity(name="plain", join_keys=["plain_id"], value_type=ValueType.INT64)


def plain_view(folder: Path) -> FeatureView:
    """A view whose source has the names of time columns that Feast's client sends."""
    source = FileSource(
        path=str(folder / "none.parquet"), timestamp_field="event_timestamp", created_timestamp_column="created"
    )
    fields = {"n": Int64, "half": Float32, "name": String, "marks": Array(Float32), "seen": UnixTimestamp}
    schema = [Field(name=name, dtype=kind) for name, kind in fields.items()]
    return FeatureView(name="plain_stats", entities=[PLAIN], schema=schema, source=source)


@pytest.fixture(scope="module")
def machine(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with served(folder, [*definitions(data), PLAIN, plain_view(folder)]) as machine:
        views = [view.name for view in machine.local.list_batch_feature_views() if view.name != "plain_stats"]
        machine.local.materialize(START, END, feature_views=views)
        yield machine


@pytest.fixture
def store(machine: Served, data: Path, tmp_path: Path) -> FeatureStore:
    registry = machine.local.config.registry.model_dump(exclude_unset=True)
    online_store = {"type": "remote", "path": machine.server.url}
    return make_store(tmp_path / "remote", online_store, data=data, registry=registry)


def without_empty_lists(store: FeatureStore, name: str) -> Any:
    """One of the usual requests without the features that have empty lists."""
    request = dict(REQUESTS[name])
    if isinstance(request["features"], str):
        return ask(store, name)
    request["features"] = [one for one in request["features"] if one.partition(":")[2] not in EMPTY_LISTS]
    return store.get_online_features(**request)


@pytest.mark.parametrize("name", [name for name in REQUESTS if name != "a service with aliases"])
def test_values_and_statuses_are_those_of_the_machine(machine: Served, store: FeatureStore, name: str) -> None:
    """Single and composite keys, on-demand views, nulls."""
    ours, theirs = (without_empty_lists(one, name) for one in (machine.local, store))
    expected, found = ours.to_dict(), theirs.to_dict()
    assert {*found} == {*expected}
    for column in {*expected} - OTHERWISE:
        assert found[column] == expected[column], column
    statuses = [
        dict(zip(one.proto.metadata.feature_names.val, [[*r.statuses] for r in one.proto.results], strict=True))
        for one in (ours, theirs)
    ]
    assert statuses[0] == statuses[1]
    assert ours.proto.metadata.feature_view_metadata == theirs.proto.metadata.feature_view_metadata


def test_embeddings_are_those_of_the_machine_unless_one_is_empty(machine: Served, store: FeatureStore) -> None:
    request: dict[str, Any] = {"features": ["driver_stats:embedding"], "entity_rows": {"driver_id": [1001, 1004]}}
    assert store.get_online_features(**request).to_dict() == machine.local.get_online_features(**request).to_dict()
    request["entity_rows"] = {"driver_id": [1003]}
    assert machine.local.get_online_features(**request).to_dict()["embedding"] == [[]]
    with pytest.raises(TypeError, match="Couldn't infer value type from empty value"):
        store.get_online_features(**request)


def test_bytes_times_and_event_times_are_lost_by_feasts_client(machine: Served, store: FeatureStore) -> None:
    request: dict[str, Any] = {
        "features": ["driver_stats:blob", "driver_stats:joined"],
        "entity_rows": {"driver_id": [1002, 1004]},
    }
    ours, theirs = (one.get_online_features(**request) for one in (machine.local, store))
    assert ours.to_dict()["blob"] == [b"\x00\x00\xff", None]
    assert theirs.to_dict()["blob"] == ["AAD/", None]
    assert [type(value) for value in ours.to_dict()["joined"]] == [dt.datetime] * 2
    assert theirs.to_dict()["joined"] == [int(time.timestamp()) for time in ours.to_dict()["joined"]]
    assert all(len(result.event_timestamps) == 2 for result in ours.proto.results)
    assert all(len(result.event_timestamps) == 0 for result in theirs.proto.results)


def online_read(store: FeatureStore, view: str, features: list[str], **key: Value) -> Any:
    entity = EntityKey(join_keys=[*key], entity_values=[*key.values()])
    return store.provider.online_store.online_read(store.config, store.get_feature_view(view), [entity], features)


def test_single_keys_are_read_row_by_row(machine: Served, store: FeatureStore) -> None:
    for driver in (1001, 1002):
        ours, theirs = (
            online_read(one, "driver_stats", ["trips", "embedding", "nick"], driver_id=Value(int64_val=driver))
            for one in (machine.local, store)
        )
        assert theirs == ours


def test_of_composite_keys_feasts_client_sends_the_first_part_only(machine: Served, store: FeatureStore) -> None:
    key = {"customer": Value(string_val="alice"), "driver_id": Value(int64_val=1001)}
    assert online_read(machine.local, "pair_stats", ["rides"], **key)[0][1]["rides"].int32_val > 0
    [(_, values)] = online_read(store, "pair_stats", ["rides"], **key)
    assert values == {"rides": Value()}


def test_an_entity_without_a_row_has_empty_values_and_no_none(machine: Served, store: FeatureStore) -> None:
    assert online_read(machine.local, "driver_stats", ["trips"], driver_id=Value(int64_val=7)) == [(None, None)]
    [(_, values)] = online_read(store, "driver_stats", ["trips"], driver_id=Value(int64_val=7))
    assert values == {"trips": Value()}


def test_what_feasts_client_writes_is_read(machine: Served, store: FeatureStore) -> None:
    at = day(20) + dt.timedelta(microseconds=5)
    row: dict[str, Any] = {"plain_id": [1, 2], "n": [2**40, None], "half": [0.1, None], "name": ["Åse", None]}
    row |= {"marks": [[0.5, 0.25], [1.0, 2.0]], "seen": [at, at], "event_timestamp": [at] * 2, "created": [at] * 2}
    store.write_to_online_store("plain_stats", pd.DataFrame(row).astype({"n": "Int64"}))
    request: dict[str, Any] = {
        "features": [f"plain_stats:{name}" for name in ("n", "half", "name", "marks", "seen")],
        "entity_rows": {"plain_id": [1, 2]},
    }
    found = machine.local.get_online_features(**request)
    assert found.to_dict() == {
        "plain_id": [1, 2],
        "n": [2**40, None],
        "half": [pytest.approx(0.1), None],
        "name": ["Åse", None],
        "marks": [[0.5, 0.25], [1.0, 2.0]],
        "seen": [at.replace(microsecond=0)] * 2,
    }
    assert {time.nanos for result in found.proto.results[1:] for time in result.event_timestamps} == {5_000}


def test_other_names_of_the_column_of_times_are_refused(machine: Served, store: FeatureStore) -> None:
    """The client sends it as `event_timestamp`, whatever its source calls it."""
    with pytest.raises(requests.exceptions.RetryError, match="too many 500 error responses"):
        store.push("customer_push", pd.DataFrame({"customer": ["p"], "at": [day(0)], "score": [1.5], "city": ["x"]}))
