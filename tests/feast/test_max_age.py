"""Age limits of requests, settings and views: fast answers equal Feast's own path, and HTTP takes them in headers."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import requests
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64, Int64, String

import feast_quorin
from feast_quorin.config import ConfigError
from feast_quorin.read.response import LazyResponse
from feast_quorin.read.row_response import RowResponse
from feast_quorin.remote.response import RemoteResponse
from quorin.errors import InvalidMaxAgeError
from tests.equivalence.test_compiled import generic
from tests.feast.repos import make_store
from tests.feast.served import Served, served
from tests.feast.test_against_sqlite import same
from tests.feast.test_semantics import put

HOUR = dt.timedelta(hours=1)
PRESENT, OUTSIDE, NOT_FOUND = FieldStatus.PRESENT, FieldStatus.OUTSIDE_MAX_AGE, FieldStatus.NOT_FOUND
REQUEST: dict[str, Any] = {
    "features": ["trips:count", "trips:note", "rates:rate", "doubled:twice"],
    "entity_rows": {"thing": [1, 2, 3, 4]},
}


def objects(data: Path) -> list[Any]:
    entity = Entity(name="thing", join_keys=["thing"], value_type=ValueType.INT64)
    source = FileSource(path=str(data / "pairs.parquet"), timestamp_field="at")
    fields = [Field(name="count", dtype=Int64), Field(name="note", dtype=String)]
    trips = FeatureView(name="trips", entities=[entity], ttl=3 * HOUR, schema=fields, source=source)
    rate = [Field(name="rate", dtype=Float64)]
    rates = FeatureView(name="rates", entities=[entity], ttl=dt.timedelta(0), schema=rate, source=source)

    @on_demand_feature_view(sources=[trips], schema=[Field(name="twice", dtype=Int64)], mode="python")
    def doubled(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"twice": [None if count is None else 2 * count for count in inputs["count"]]}

    return [entity, trips, rates, doubled]


def fill(store: FeatureStore) -> None:
    """Thing 1 of now, 2 of two hours ago, 3 of a day ago in one view and of tomorrow in the other; 4 has no row."""
    now = dt.datetime.now(dt.UTC)
    times = {"trips": [now, now - 2 * HOUR, now - 24 * HOUR], "rates": [now, now - 2 * HOUR, now + 24 * HOUR]}
    for view, at in times.items():
        rows = []
        for thing, time in enumerate(at, 1):
            value = Value(double_val=thing / 2) if view == "rates" else Value(int64_val=thing)
            values = {"rate": value} if view == "rates" else {"count": value, "note": Value(string_val=f"n{thing}")}
            rows.append(({"thing": Value(int64_val=thing)}, values, time))
        put(store, view, rows)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    segments = tmp_path_factory.mktemp("segments")
    return {"type": "quorin", "shm_dir": str(segments), "capacity": 64}


@pytest.fixture(scope="module")
def store(settings: dict[str, Any], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    store = make_store(tmp_path_factory.mktemp("aged") / "repo", settings, data=data)
    store.apply(objects(data))
    fill(store)
    yield store
    store.teardown()


def ask(store: FeatureStore, **changes: Any) -> Any:
    """The compiled answer, which is that of Feast's own path, for all entities together and one by one."""
    request = {**REQUEST, **changes}
    answer = store.get_online_features(**request)
    assert type(answer) is LazyResponse
    same(answer, generic(store, **request))
    for thing in (1, 2, 3, 4):
        one = {**request, "features": request["features"][:3], "entity_rows": [{"thing": thing}]}
        row = store.get_online_features(**one)
        assert type(row) is RowResponse
        same(row, generic(store, **one))
    return answer


def statuses(answer: Any) -> dict[str, list[int]]:
    names = answer.proto.metadata.feature_names.val
    return {name: [*vector.statuses] for name, vector in zip(names, answer.proto.results, strict=True)}


def values(answer: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = answer.to_dict()
    return found


@pytest.mark.parametrize("limit", [3600, 3600.0, HOUR])
def test_older_values_are_null_and_outside_max_age(store: FeatureStore, limit: Any) -> None:
    with feast_quorin.max_age(limit):
        answer = ask(store)
    assert values(answer)["count"] == [1, None, None, None]
    assert values(answer)["note"] == ["n1", None, None, None]
    assert values(answer)["rate"] == [0.5, None, 1.5, None]
    assert values(answer)["twice"] == [2, None, None, None]
    assert statuses(answer)["count"] == [PRESENT, OUTSIDE, OUTSIDE, NOT_FOUND]
    assert statuses(answer)["rate"] == [PRESENT, OUTSIDE, PRESENT, NOT_FOUND]
    assert answer.proto.results[1].event_timestamps[1].seconds > 0
    assert values(ask(store))["count"] == [1, 2, 3, None]


def test_views_and_features_have_limits_of_their_own(store: FeatureStore) -> None:
    with feast_quorin.max_age({"trips": 3 * HOUR, "trips:note": 3600, "elsewhere": 1}):
        answer = ask(store)
        full = ask(store, full_feature_names=True)
    assert values(answer)["count"] == [1, 2, None, None]
    assert values(answer)["note"] == ["n1", None, None, None]
    assert values(answer)["rate"] == [0.5, 1.0, 1.5, None]
    assert statuses(answer)["note"] == [PRESENT, OUTSIDE, OUTSIDE, NOT_FOUND]
    assert statuses(answer)["count"] == [PRESENT, PRESENT, OUTSIDE, NOT_FOUND]
    assert values(full)["trips__note"] == values(answer)["note"]

    with feast_quorin.max_age({"trips:note": 86_400 * 7, "trips": 60}):  # A feature's own may be longer.
        assert values(ask(store))["note"] == ["n1", "n2", "n3", None]


def test_the_shortest_limit_holds(settings: dict[str, Any], data: Path, tmp_path: Path) -> None:
    own = {**settings, "enforce_ttl": True, "max_age": {"rates": 86_400}}
    store = make_store(tmp_path / "repo", own, project="strict", data=data)
    store.apply(objects(data))
    fill(store)
    assert values(ask(store))["count"] == [1, 2, None, None]
    assert values(ask(store))["rate"] == [0.5, 1.0, 1.5, None]
    for limit, counts, rates in ((7 * 86_400, [1, 2], [0.5, 1.0]), (3600, [1, None], [0.5, None])):
        with feast_quorin.max_age(limit):
            assert values(ask(store))["count"][:2] == counts
            assert values(ask(store))["rate"][:2] == rates
    store.teardown()


@pytest.mark.parametrize("limit", [0, -1, True, "1h", {"trips": None}, {"": 5}, {"trips:": 5}, {5: 5}, 1e-9])
def test_other_limits_are_refused(limit: Any) -> None:
    with pytest.raises(InvalidMaxAgeError, match="max_age"), feast_quorin.max_age(limit):
        pass
    if limit != 1e-9:
        with pytest.raises(ConfigError, match="max_age: "):
            feast_quorin.QuorinOnlineStoreConfig(type="quorin", max_age=limit)


def test_a_feature_that_there_is_not_is_refused(store: FeatureStore) -> None:
    with (
        feast_quorin.max_age({"trips:cuont": 5}),
        pytest.raises(InvalidMaxAgeError, match="'trips' has no feature 'cuont'"),
    ):
        store.get_online_features(**REQUEST)


def test_tasks_have_limits_of_their_own(store: FeatureStore) -> None:
    async def ask_with(limit: int | None) -> list[Any]:
        with nullcontext() if limit is None else feast_quorin.max_age(limit):
            await asyncio.sleep(0)
            return values(await store.get_online_features_async(**REQUEST))["count"]

    async def together() -> list[list[Any]]:
        return await asyncio.gather(*map(ask_with, (3600, None, 3 * 3600)))

    assert asyncio.run(together()) == [[1, None, None, None], [1, 2, 3, None], [1, 2, None, None]]


@pytest.fixture(scope="module")
def machine(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served"), objects(data)) as machine:
        fill(machine.local)
        yield machine


BODY = {"features": REQUEST["features"], "entities": REQUEST["entity_rows"]}


def post(machine: Served, *, accept: str = "application/json", **headers: str) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = machine.server.url + "/get-online-features"
    return requests.post(url, json=BODY, headers={"Accept": accept, **named}, timeout=60)


def test_the_server_takes_limits_in_a_header(machine: Served) -> None:
    for header, notes in (("3600", ["n1", None, None, None]), ('{"trips": 10800}', ["n1", "n2", None, None])):
        answer = post(machine, quorin_max_age=header).json()
        column = answer["metadata"]["feature_names"].index("note")
        assert answer["results"][column]["values"] == notes
        outside = ["PRESENT" if note else "OUTSIDE_MAX_AGE" for note in notes[:3]]
        assert answer["results"][column]["statuses"] == [*outside, "NOT_FOUND"]
    assert (
        post(machine).json()["results"][1]["values"]
        != post(machine, quorin_max_age="60").json()["results"][1]["values"]
    )

    arrow = "application/vnd.apache.arrow.stream"
    limits = '{"trips": 10800, "trips:note": 3600}'
    with pa.ipc.open_stream(post(machine, accept=arrow, quorin_max_age=limits).content) as stream:
        batch = stream.read_next_batch()
    assert batch.column("count").to_pylist() == [1, 2, None, None]
    by_name = {name: batch.schema.field(name).metadata[b"status"].decode() for name in ("count", "note", "rate")}
    assert batch.column(by_name["note"]).to_pylist() == ["PRESENT", "OUTSIDE_MAX_AGE", "OUTSIDE_MAX_AGE", "NOT_FOUND"]
    assert batch.column(by_name["count"]).to_pylist() == ["PRESENT", "PRESENT", "OUTSIDE_MAX_AGE", "NOT_FOUND"]
    assert by_name["rate"] == "rates__status"


@pytest.mark.parametrize("header", ["soon", "0", '{"trips": "1h"}', "[1]", '{"trips:cuont": 5}', "NaN"])
def test_the_server_refuses_other_limits(machine: Served, header: str) -> None:
    answer = post(machine, quorin_max_age=header)
    assert answer.status_code == 422, answer.text
    assert "max" in answer.json()["detail"]


def test_a_remote_store_asks_its_server(machine: Served, data: Path, tmp_path: Path) -> None:
    store = machine.remote(tmp_path / "remote", data)
    for limit in (3600, HOUR, {"trips": 10_800, "trips:note": 3600}, {"rates": 3600}):
        with feast_quorin.max_age(limit):
            answer, local = store.get_online_features(**REQUEST), machine.local.get_online_features(**REQUEST)
            assert isinstance(answer, RemoteResponse)
            same(answer, local)
            same(generic(store, **REQUEST), local)
    with feast_quorin.max_age({"trips:cuont": 5}), pytest.raises(InvalidMaxAgeError, match="cuont"):
        store.get_online_features(**REQUEST)
