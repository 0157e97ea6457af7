"""Feast's answers know the log positions of their rows: compiled, by Feast's own path, over HTTP and from afar."""

from __future__ import annotations

import asyncio
import copy
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import requests
from feast import FeatureStore

import feast_quorin
from feast_quorin.online_store import QuorinOnlineStore
from feast_quorin.read.response import LazyResponse
from feast_quorin.read.row_response import RowResponse
from feast_quorin.remote.response import RemoteResponse
from feast_quorin.remote.store import RemoteStore
from quorin.wal import Token
from tests.feast.repos import CUSTOMERS, END, REQUESTS, START, ask, day, definitions
from tests.feast.served import Served, served

ARROW = "application/vnd.apache.arrow.stream"
SCORES = ["customer_stats:score"]


@pytest.fixture(scope="module")
def machine(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served"), definitions(data)) as machine:
        machine.local.materialize(START, END)
        yield machine


@pytest.fixture(scope="module")
def remote(machine: Served, data: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    store: FeatureStore = machine.remote(tmp_path_factory.mktemp("remote"), data)
    return store


def push(store: FeatureStore, customer: str, number: int = 0) -> Token:
    """Push one row; the token of that."""
    frame = pd.DataFrame({"customer": [customer], "at": [day(number)], "score": [1.0], "city": ["c"]})
    store.push("customer_push", frame)
    token = feast_quorin.last_token(store)
    assert token is not None
    return token


def positions(store: FeatureStore, customers: list[str]) -> list[int | None]:
    response: Any = store.get_online_features(features=SCORES, entity_rows={"customer": customers})
    found = response.positions()
    assert list(found) == ["customer_stats"]
    own: list[int | None] = found["customer_stats"]
    return own


def test_the_position_of_a_row_is_that_of_the_write_that_made_it(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = {name: push(store, name) for name in CUSTOMERS[1:4]}
    late = push(store, CUSTOMERS[1], -1)
    assert late > tokens[CUSTOMERS[1]], "an older event changes no row, and has a position all the same"
    requests_ = [[CUSTOMERS[1]], ["nobody"], [*CUSTOMERS[1:4], "nobody", CUSTOMERS[2], CUSTOMERS[2]]]
    for customers in requests_:
        assert positions(store, customers) == [tokens.get(name) for name in customers]
    monkeypatch.setattr(QuorinOnlineStore, "_run", lambda *_: None)
    for customers in requests_:
        assert positions(store, customers) == [tokens.get(name) for name in customers]


@pytest.mark.parametrize("name", REQUESTS)
def test_every_path_has_the_same_positions(
    machine: Served, remote: FeatureStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    compiled, afar = ask(machine.local, name), ask(remote, name)
    assert isinstance(compiled, LazyResponse)
    assert isinstance(afar, RemoteResponse)
    for kind in (QuorinOnlineStore, RemoteStore):
        monkeypatch.setattr(kind, "_run", lambda *_: None)
    responses = [compiled, afar, ask(machine.local, name), ask(remote, name)]
    assert not any(isinstance(response, LazyResponse) for response in responses[2:])
    expected = compiled.positions()
    assert {type(one) for own in expected.values() for one in own} <= {int, type(None)}
    for response in [*responses, *map(copy.deepcopy, responses)]:
        assert response.positions() == expected
        plain, table = response.to_arrow(), response.to_arrow(positions=True)
        added = [f"{view}__position" for view in response.positions()]
        assert table.column_names == [*plain.column_names, *added]
        assert table.drop_columns(added).equals(plain)
        for view, column in zip(response.positions(), added, strict=True):
            assert table[column].to_pylist() == expected[view]
            assert table[column].type == pa.int64()


def test_positions_leave_every_other_form_as_it_is(machine: Served) -> None:
    request = {"features": ["driver_stats:conv_rate"], "entity_rows": {"driver_id": [1001]}}
    one, other = (machine.local.get_online_features(**request) for _ in range(2))
    assert isinstance(one, RowResponse)
    assert one.positions()["driver_stats"][0] > 0
    assert one.to_dict() == other.to_dict() == {"driver_id": [1001], "conv_rate": [2.0]}
    assert one.to_df().equals(other.to_df())
    assert one.proto == other.proto
    assert one.to_arrow(positions=True).column_names == ["driver_id", "conv_rate", "driver_stats__position"]


def test_async_reads_and_expired_rows_have_positions(machine: Served) -> None:
    request: Any = {"features": SCORES, "entity_rows": {"customer": ["alice", "nobody"]}}
    awaited: Any = asyncio.run(machine.local.get_online_features_async(**request))
    assert awaited.positions()["customer_stats"] == positions(machine.local, ["alice", "nobody"])


def over_http(machine: Served, body: Any, **headers: str) -> requests.Response:
    answer = requests.post(machine.server.url + "/get-online-features", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("keys", [["alice"], ["alice", "nobody", "Åse"]])
def test_positions_over_http_by_asking(machine: Served, keys: list[str]) -> None:
    body = {"features": [*SCORES, "customer_stats:city"], "entities": {"customer": keys}}
    expected = positions(machine.local, keys)
    plain, asked = over_http(machine, body).json(), over_http(machine, body, **{"Quorin-Positions": "true"}).json()
    assert asked.pop("positions") == {"customer_stats": expected}
    assert asked == plain == over_http(machine, body, **{"Quorin-Positions": "false"}).json()
    for flag in ("true", "false"):
        answer = over_http(machine, body, Accept=ARROW, **{"Quorin-Positions": flag})
        (batch,) = pa.ipc.open_stream(io.BytesIO(answer.content))
        assert ("customer_stats__position" in batch.schema.names) == (flag == "true")
        if flag == "true":
            assert batch["customer_stats__position"].to_pylist() == expected
    wrong = requests.post(
        machine.server.url + "/get-online-features", json=body, headers={"Quorin-Positions": "yes"}, timeout=60
    )
    assert (wrong.status_code, wrong.json()["detail"]) == (422, "Quorin-Positions: expected true or false, got 'yes'")
