"""Age limits and one position for all rows, asked for over HTTP, in JSON and in Arrow."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
import requests

from quorin.http import Catalogue, Limits, Reply, SegmentRows
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.http import Running
from tests.support.segment_site import ARROW, CITY, DRIVER, Site, batch_of, post, serving_site

DAY_NS = 86_400 * 10**9
IDS = ["1", "2", "absent"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, int]]:
    """Drivers 1, of now, and 2, of yesterday; a city of yesterday. All from a log, with its last position."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "shm").mkdir()
    registry = SegmentRegistry(str(folder / "store"), shm_dir=folder / "shm")
    producer, now = WALProducer(registry.backend, registry=registry), time.time_ns()
    for schema in (DRIVER, CITY):
        registry.create(schema, capacity=16).close()
    drivers = {"entity_id": IDS[:2], "event_time_ns": [now, now - DAY_NS], "rate": [0.5, 0.25], "trips": [1, 2]}
    embedding = pa.array([[1.0] * 4, [2.0] * 4], pa.list_(pa.float32(), 4))
    producer.write_many(DRIVER, pa.table({**drivers, "place": ["Oslo", "Rome"], "embedding": embedding}))
    cities = {
        "entity_id": ["Oslo"],
        "event_time_ns": [now - DAY_NS],
        "people": [5],
        "rain": pa.array([0.5], pa.float32()),
    }
    position = producer.write_many(CITY, pa.table(cities))
    WALConsumer(registry.backend, [DRIVER, CITY], registry=registry).drain()
    yield Site(folder / "store", folder / "shm", registry), int(position)
    registry.backend.close()


@pytest.fixture(scope="module")
def server(site: tuple[Site, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving_site(site[0], tmp_path_factory.mktemp("served") / "log") as running:
        yield running


def as_arrow(columns: dict[str, list[str]], **request: Any) -> pa.RecordBatch:
    return pa.record_batch(columns).replace_schema_metadata({"request": json.dumps(request)})


def test_rows_say_which_have_no_value_over_its_limit(server: Running) -> None:
    request = {"schema": "Driver", "fields": ["trips", "place"], "max_age": 3600}
    answer = post(server, "/v1/read", {**request, "entity_ids": IDS}).json()
    assert answer["fresh"] == [True, False, False]
    assert answer["found"] == [True, True, False]
    assert answer["features"] == {"trips": [1, None, None], "place": ["Oslo", None, None]}

    batch = batch_of(post(server, "/v1/read", as_arrow({"id": IDS}, **request), Accept=ARROW))
    assert batch.column("fresh").to_pylist() == answer["fresh"]
    assert batch.column("place").to_pylist() == ["Oslo", None, None]

    by_field = {**request, "max_age": {"place": 3600.5}, "entity_ids": IDS}
    answer = post(server, "/v1/read", by_field).json()
    assert answer["features"] == {"trips": [1, 2, None], "place": ["Oslo", None, None]}
    assert "fresh" not in post(server, "/v1/read", {**by_field, "max_age": None}).json()


def test_vectors_too(server: Running) -> None:
    parts = [
        {"schema": "Driver", "entity": "driver", "fields": ["trips"], "max_age": 3600},
        {"schema": "City", "entity": "city"},
    ]
    entities = {"driver": IDS, "city": ["Oslo"] * 3}
    answer = post(server, "/v1/assemble", {"schemas": parts, "entities": entities}).json()
    assert answer["fresh"] == [[True, True], [False, True], [False, True]]
    assert answer["vectors"] == [[1.0, 5.0, 0.5], [None, 5.0, 0.5], [None, 5.0, 0.5]]
    assert "position" not in answer
    batch = batch_of(post(server, "/v1/assemble", as_arrow(entities, schemas=parts), Accept=ARROW))
    assert batch.column("fresh").to_pylist() == answer["fresh"]


def test_rows_at_one_position(server: Running, site: tuple[Site, int]) -> None:
    parts = [{"schema": "Driver", "entity": "driver", "fields": ["trips"]}, {"schema": "City", "entity": "city"}]
    request = {"schemas": parts, "consistent_timeout_ms": 5000}
    entities = {"driver": IDS, "city": ["Oslo"] * 3}
    answer = post(server, "/v1/assemble", {**request, "entities": entities}).json()
    assert answer["position"] == site[1]
    assert answer["vectors"] == [[1.0, 5.0, 0.5], [2.0, 5.0, 0.5], [None, 5.0, 0.5]]
    assert "fresh" not in answer
    batch = batch_of(post(server, "/v1/assemble", as_arrow(entities, **request), Accept=ARROW))
    assert batch.schema.metadata[b"position"] == str(site[1]).encode()


@pytest.mark.parametrize("name", ["consistent_timeout_ms", "consistent\\u005ftimeout_ms"], ids=["plain", "escaped"])
def test_what_may_wait_for_one_position_is_left_to_a_thread(server: Running, site: tuple[Site, int], name: str) -> None:
    parts = [{"schema": "Driver", "entity": "driver", "fields": ["trips"]}, {"schema": "City", "entity": "city"}]
    body = json.dumps({"schemas": parts, "entities": {"driver": ["1"], "city": ["Oslo"]}}).encode()
    waiting = body[:-1] + f', "{name}": 5000}}'.encode()
    direct = SegmentRows(Catalogue(site[0].registry), Limits()).direct[b"/v1/assemble"]
    assert isinstance(direct(body, []), Reply)
    assert direct(waiting, []) is None
    answer = requests.post(
        server.url + "/v1/assemble", waiting, headers={"Content-Type": "application/json"}, timeout=60
    )
    assert answer.json()["position"] == site[1]


def test_segments_that_are_not_at_one_position_are_named(server: Running, site: tuple[Site, int]) -> None:
    registry = site[0].registry
    producer = WALProducer(registry.backend, registry=registry)
    cities = pa.table({"entity_id": ["Bern"], "people": [1], "rain": pa.array([0.0], pa.float32())})
    producer.write_many(CITY, cities)
    WALConsumer(registry.backend, CITY, registry=registry).drain()
    parts = [{"schema": "Driver", "entity": "driver"}, {"schema": "City", "entity": "city"}]
    body = {"schemas": parts, "entities": {"driver": ["1"], "city": ["Bern"]}, "consistent_timeout_ms": 5}
    answer = post(server, "/v1/assemble", body)
    assert answer.status_code == 503
    assert "quorin_City" in answer.json()["detail"]
    WALConsumer(registry.backend, DRIVER, registry=registry).drain()
    assert post(server, "/v1/assemble", body | {"consistent_timeout_ms": 5000}).ok


@pytest.mark.parametrize(
    ("path", "change", "named"),
    [
        ("/v1/read", {"max_age": 0}, "max_age"),
        ("/v1/read", {"max_age": "1h"}, "'1h'"),
        ("/v1/read", {"max_age": {}}, "max_age"),
        ("/v1/read", {"max_age": True}, "True"),
        ("/v1/read", {"max_age": {"trips": -1}}, "max_age.trips"),
        ("/v1/read", {"max_age": {"nothing": 1}}, "['nothing']"),
        ("/v1/assemble", {"schemas": [{"schema": "Driver", "max_age": [5]}]}, "schemas[0].max_age"),
        ("/v1/assemble", {"schemas": [{"schema": "Driver", "max_age": {"place": 5}}]}, "['place']"),
        ("/v1/assemble", {"consistent_timeout_ms": 0}, "consistent_timeout_ms"),
        ("/v1/assemble", {"consistent_timeout_ms": True}, "True"),
        ("/v1/assemble", {"consistent_timeout_ms": 60_001}, "60001"),
    ],
)
def test_other_values_are_refused_by_name(server: Running, path: str, change: dict[str, Any], named: str) -> None:
    read = {"schema": "Driver", "entity_ids": IDS}
    assemble = {"schemas": [{"schema": "Driver"}], "entities": {"driver": IDS}}
    answer = post(server, path, {**(read if path == "/v1/read" else assemble), **change})
    assert answer.status_code == 422, answer.text
    assert named in answer.json()["detail"]
