"""Answers with all views at one position of the log, embedded and over Redis, beside a writer."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import requests
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Int64

import feast_quorin
from feast_quorin.remote.response import RemoteResponse
from feast_quorin.server.online_features import OnlineFeatures
from quorin.errors import InconsistentReadError
from quorin.http import Limits
from tests.equivalence.test_compiled import generic
from tests.feast.repos import make_store
from tests.feast.served import served
from tests.feast.test_against_sqlite import same
from tests.feast.test_semantics import put

VIEWS = ["first", "second"]
START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
REQUEST: dict[str, Any] = {
    "features": ["first:n", "second:n"],
    "entity_rows": {"thing": [*range(5)]},
    "full_feature_names": True,
}
ONE = {**REQUEST, "entity_rows": [{"thing": 3}]}


def objects(data: Path) -> list[Any]:
    entity = Entity(name="thing", join_keys=["thing"], value_type=ValueType.INT64)
    source = FileSource(path=str(data / "pairs.parquet"), timestamp_field="at")
    schema = [Field(name="n", dtype=Int64)]
    return [entity, *(FeatureView(name=name, entities=[entity], schema=schema, source=source) for name in VIEWS)]


def write(store: FeatureStore, view: str, number: int) -> None:
    at = START + dt.timedelta(seconds=number)
    keys = [{"thing": Value(int64_val=thing)} for thing in range(5)]
    put(store, view, [(key, {"n": Value(int64_val=number)}, at) for key in keys])


@pytest.fixture
def store(online_store: dict[str, Any], data: Path, tmp_path: Path) -> Iterator[FeatureStore]:
    store = make_store(tmp_path / "repo", online_store, data=data)
    store.apply(objects(data))
    yield store
    store.teardown()


def test_writes_of_any_order_are_read_at_one_position(store: FeatureStore) -> None:
    for number, view in enumerate(["first", "second", "first", "first", "second"]):
        write(store, view, number)
        if number:
            with feast_quorin.consistent(timeout_ms=10_000):
                answer = store.get_online_features(**REQUEST)
                same(answer, generic(store, **REQUEST))
                same(store.get_online_features(**ONE), generic(store, **ONE))
            assert answer.to_dict()[f"{view}__n"] == [number] * 5


def test_no_view_is_ahead_of_another_beside_a_writer(store: FeatureStore) -> None:
    """The writer takes turns, first before second: at any position first is at most one ahead."""
    for view in VIEWS:
        write(store, view, 0)
    stop = threading.Event()

    def run() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for view in VIEWS:
                write(store, view, number)

    writer = threading.Thread(target=run)
    writer.start()
    try:
        last = 0
        for count in range(60):
            with feast_quorin.consistent(timeout_ms=30_000):
                answer = store.get_online_features(**(ONE if count % 2 else REQUEST)).to_dict()
            (first,), (second,) = {*answer["first__n"]}, {*answer["second__n"]}
            assert second <= first <= second + 1
            assert first >= last
            last = first
    finally:
        stop.set()
        writer.join()


def test_a_setting_asks_for_all_requests(online_store: dict[str, Any], data: Path, tmp_path: Path) -> None:
    settings = {**online_store, "consistent_timeout_ms": 10_000}
    store = make_store(tmp_path / "strict", settings, project="strict", data=data)
    store.apply(objects(data))
    for view in VIEWS:
        write(store, view, 1)
    assert store.get_online_features(**REQUEST).to_dict()["first__n"] == [1] * 5
    store.teardown()


@pytest.mark.parametrize("by_setting", [False, True], ids=["by request", "by setting"])
def test_a_read_that_begins_again_leaves_an_event_loop_to_others(data: Path, tmp_path: Path, by_setting: bool) -> None:
    (tmp_path / "segments").mkdir()
    online_store = {"type": "feast_quorin.QuorinOnlineStore", "shm_dir": str(tmp_path / "segments")}
    settings = {**online_store, "consumer": "external", "wait": "logged"}
    store = make_store(tmp_path / "repo", settings | ({"consistent_timeout_ms": 200} if by_setting else {}), data=data)
    store.apply(objects(data))
    for view in VIEWS:
        write(store, view, 1)
    applying = make_store(tmp_path / "repo", {**online_store, "consumer": "auto"}, data=data)
    applying.get_online_features(**{**REQUEST, "features": ["first:n"]})  # The second view stays behind.
    turns: list[None] = []

    async def others() -> None:
        while True:
            turns.append(None)
            await asyncio.sleep(0)

    async def read() -> None:
        working = asyncio.create_task(others())
        with nullcontext() if by_setting else feast_quorin.consistent(timeout_ms=200):
            for request in (ONE, REQUEST):
                with pytest.raises(InconsistentReadError):
                    await store.get_online_features_async(**request)
        working.cancel()

    asyncio.run(read())
    assert len(turns) > 10
    plain = [(b"content-type", b"application/json")]
    body = json.dumps(
        {"features": REQUEST["features"], "entities": REQUEST["entity_rows"], "full_feature_names": True}
    ).encode()
    is_direct = OnlineFeatures(store, Limits()).direct(body, plain) is not None
    assert is_direct is not by_setting, "a server reads in a thread what may have to wait"
    store.teardown()


@pytest.mark.parametrize("timeout_ms", [0, -1, True, "1", float("inf")])
def test_other_time_outs_are_refused(timeout_ms: Any) -> None:
    with pytest.raises(ValueError, match="timeout_ms"), feast_quorin.consistent(timeout_ms=timeout_ms):
        pass


def test_over_http_by_a_header(data: Path, tmp_path: Path) -> None:
    with served(tmp_path / "served", objects(data)) as machine:
        for view in VIEWS:
            write(machine.local, view, 7)
        body = {"features": REQUEST["features"], "entities": REQUEST["entity_rows"], "full_feature_names": True}
        url = machine.server.url + "/get-online-features"
        answer = requests.post(url, json=body, headers={"quorin-consistent": "10000"}, timeout=60)
        assert answer.json()["results"][2]["values"] == [7] * 5, answer.text
        refused = requests.post(url, json=body, headers={"quorin-consistent": "-5"}, timeout=60)
        assert refused.status_code == 422
        assert "quorin-consistent: -5" in refused.json()["detail"]

        remote = machine.remote(tmp_path / "remote", data)
        with feast_quorin.consistent(timeout_ms=10_000):
            found = remote.get_online_features(**REQUEST)
            assert isinstance(found, RemoteResponse)
            assert found.to_dict()["second__n"] == [7] * 5
            with pytest.raises(InconsistentReadError, match="one view after the other"):
                generic(remote, **REQUEST)
