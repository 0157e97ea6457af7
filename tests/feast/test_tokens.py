"""Writes through Feast return tokens, and reads that ask for one show it: in every process, task and machine."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import requests
from feast import FeatureStore

import feast_quorin
from feast_quorin.online_store import QuorinOnlineStore
from feast_quorin.read.options import current
from feast_quorin.write.tokens import Written
from quorin.errors import NotYetAppliedError, TokenError
from quorin.schema import FeatureField, dtype, make_schema
from quorin.wal import Token, WALProducer
from tests.feast.conftest import make_sqlite_store
from tests.feast.repos import END, START, day, definitions, make_store
from tests.feast.served import Served, served
from tests.support.forking import context, preload

preload(__name__)

SCORES: Any = {"features": ["customer_stats:score"], "entity_rows": {"customer": ["alice"]}}
BOTH: Any = {
    "features": ["customer_stats:score", "driver_stats:trips"],
    "entity_rows": [{"customer": "alice", "driver_id": 1001}],
}
LONG_MS = 60_000


def frame(score: float, number: int = 0) -> pd.DataFrame:
    return pd.DataFrame({"customer": ["alice"], "at": [day(number)], "score": [score], "city": ["c"]})


def last(store: FeatureStore) -> Token:
    token = feast_quorin.last_token(store)
    assert token is not None
    return token


def test_every_way_to_write_has_a_token(store: FeatureStore) -> None:
    assert feast_quorin.last_token(store) is None
    tokens = []
    for number, write in enumerate(
        [
            lambda rows: store.push("customer_push", rows),
            lambda rows: store.write_to_online_store("customer_stats", rows),
            lambda rows: store.write_to_online_store("customer_stats", pd.concat([rows, rows])),
            lambda rows: asyncio.run(store.push_async("customer_push", rows)),
            lambda _: store.materialize(START, END),
        ]
    ):
        write(frame(number, number))
        tokens.append(last(store))
        with feast_quorin.at_least(tokens[-1].text):
            assert store.get_online_features(**SCORES).to_dict()["score"] is not None
    assert tokens == sorted({*tokens})
    assert len({token.parts[0][0] for token in tokens}) == 1


def test_a_token_that_nothing_applies_is_late_and_shows_once_it_is(
    online_store: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**online_store, "consumer": "external", "wait": "logged"}
    store = make_store(tmp_path / "repo", settings, data=data)
    store.apply(definitions(data))
    store.push("customer_push", frame(1.0))
    for _ in range(2):  # By a compiled request, and by Feast's own path.
        with (
            feast_quorin.at_least(last(store), timeout_ms=20),
            pytest.raises(NotYetAppliedError, match="within 20 ms by this node") as caught,
        ):
            store.get_online_features(**SCORES)
        assert caught.value.position == last(store)
        monkeypatch.setattr(QuorinOnlineStore, "_run", lambda *_: None)
    monkeypatch.undo()
    assert store.get_online_features(**SCORES).to_dict()["score"] == [None], "a read that does not ask does not wait"
    applying = make_store(tmp_path / "repo", {**online_store, "consumer": "auto"}, data=data)
    with feast_quorin.at_least(last(store), timeout_ms=LONG_MS):
        assert applying.get_online_features(**SCORES).to_dict()["score"] == [1.0], "where reads may apply, they do"
        assert store.get_online_features(**SCORES).to_dict()["score"] == [1.0]
    store.teardown()


def test_a_view_that_was_not_written_to_shows_the_token_too(store: FeatureStore) -> None:
    store.materialize(START, END)
    assert store.get_online_features(**BOTH).to_dict()["trips"] != [None]
    for number in range(5):
        store.push("customer_push", frame(number, number))
        with feast_quorin.at_least(last(store), timeout_ms=LONG_MS):
            answered = store.get_online_features(**BOTH).to_dict()
        assert answered["trips"] != [None]
        if number >= 3:  # Later than what was materialized.
            assert answered["score"] == [number]


def test_a_token_of_another_deployment_is_refused_by_name(store: FeatureStore, tmp_path: Path) -> None:
    with WALProducer(str(tmp_path / "elsewhere")) as elsewhere:
        token = elsewhere.write(make_schema("Any", [FeatureField("x", dtype.int64)]), "a", {"x": 1})
    store.push("customer_push", frame(1.0))
    with feast_quorin.at_least(token), pytest.raises(TokenError, match=f"{token.text} is of another log"):
        store.get_online_features(**SCORES)
    for wrong in ("q1.7", 5):
        with pytest.raises(TokenError, match="expected the token of a write"), feast_quorin.at_least(wrong):  # type: ignore[arg-type]
            pass


def test_what_is_asked_for_is_the_contexts_own() -> None:
    token = Token((1, 1))
    seen: dict[str, Any] = {}

    async def task(name: str, value: Token | None) -> None:
        if value is None:
            await asyncio.sleep(0)
            seen[name] = current().at_least
            return
        with feast_quorin.at_least(value):
            await asyncio.sleep(0)
            seen[name] = await asyncio.to_thread(lambda: current().at_least)

    async def tasks() -> None:
        await asyncio.gather(task("asks", token), task("does not", None))

    asyncio.run(tasks())
    with feast_quorin.at_least(token, timeout_ms=7):
        thread = threading.Thread(target=lambda: seen.update(thread=current().at_least))
        thread.start()
        thread.join()
        with feast_quorin.at_least(Token((2, 2))):
            seen["inner"] = current().at_least
        assert (current().at_least, current().timeout_ms) == (token, 7)
    assert seen == {"asks": token, "does not": None, "thread": None, "inner": Token((2, 2))}
    assert current().at_least is None


def test_an_async_read_that_waits_leaves_the_loop_to_others(
    online_store: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    settings = {**online_store, "consumer": "external", "wait": "logged"}
    store = make_store(tmp_path / "repo", settings, data=data)
    store.apply(definitions(data))
    store.push("customer_push", frame(1.0))
    applying = make_store(tmp_path / "repo", {**online_store, "consumer": "auto"}, data=data)

    async def both() -> Any:
        with feast_quorin.at_least(last(store), timeout_ms=LONG_MS):
            waiting = asyncio.create_task(store.get_online_features_async(**SCORES))
        await asyncio.sleep(0)
        applying.get_online_features(**SCORES)  # In the loop's own thread: it would never come to this.
        return await waiting

    assert asyncio.run(both()).to_dict()["score"] == [1.0]
    store.teardown()


def test_a_store_of_another_kind_has_no_tokens(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got SqliteOnlineStore"):
        feast_quorin.last_token(make_sqlite_store(tmp_path, data))


def test_the_token_of_several_writes_covers_one_log_and_begins_anew_with_the_next() -> None:
    written = Written()
    assert written.token is None
    for token in (Token((1, 5)), Token((1, 3)), Token()):
        written.add(token)
        assert written.token is not None
        assert written.token.parts == ((1, 5),)
    written.add(Token((2, 4)))
    assert written.token.parts == ((2, 4),)


@pytest.fixture(scope="module")
def machine(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served"), definitions(data)) as machine:
        yield machine


def post(machine: Served, path: str, body: Any, **headers: str) -> requests.Response:
    return requests.post(machine.server.url + path, json=body, headers=headers, timeout=60)


def ask(machine: Served, **headers: str) -> requests.Response:
    body = {"features": SCORES["features"], "entities": SCORES["entity_rows"]}
    return post(machine, "/get-online-features", body, **headers)


def as_json(rows: pd.DataFrame) -> dict[str, Any]:
    return {name: [str(one) if name == "at" else one for one in rows[name]] for name in rows}


def test_tokens_over_http(machine: Served) -> None:
    writes = [
        ("/push", {"push_source_name": "customer_push", "df": as_json(frame(5.0, 5)), "to": "online"}),
        ("/write-to-online-store", {"feature_view_name": "customer_stats", "df": as_json(frame(6.0, 6))}),
    ]
    for number, (path, body) in enumerate(writes, 5):
        written = post(machine, path, body)
        assert written.status_code == 200, written.text
        token = Token.parse(written.headers["Quorin-Token"])
        answer = ask(machine, **{"Quorin-At-Least": token.text, "Quorin-Timeout-Ms": "10000"})
        assert answer.json()["results"][1]["values"] == [number]
        assert "Quorin-Token" not in answer.headers
        with feast_quorin.at_least(token.text, timeout_ms=LONG_MS):
            assert machine.local.get_online_features(**SCORES).to_dict()["score"] == [number]
    late = Token((token.parts[0][0], token + (1 << 40)))
    answer = ask(machine, **{"Quorin-At-Least": late.text, "Quorin-Timeout-Ms": "5"})
    assert answer.status_code == 412
    assert answer.json()["error"] == "NotYetAppliedError"
    assert (answer.json()["position"], answer.json()["timeout_ms"]) == (late, 5)
    assert 0 < answer.json()["applied"] < late
    other = ask(machine, **{"Quorin-At-Least": Token((9, 9)).text})
    assert (other.status_code, other.json()["error"]) == (412, "TokenError")
    for wrong in ({"Quorin-At-Least": "now"}, {"Quorin-At-Least": "q1", "Quorin-Timeout-Ms": "10001"}):
        answer = ask(machine, **wrong)
        assert answer.status_code == 422
        assert list(wrong)[-1] in answer.json()["detail"]


def test_what_only_feasts_application_answers_is_refused_alike(machine: Served) -> None:
    pushed = {"push_source_name": "customer_push", "df": as_json(frame(1.0)), "to": "online"}
    token = Token.parse(post(machine, "/push", pushed).headers["Quorin-Token"])
    late = {"Quorin-At-Least": Token((token.parts[0][0], 1 << 62)).text, "Quorin-Timeout-Ms": "5"}
    body = {"features": SCORES["features"], "entities": SCORES["entity_rows"], "unknown": 1}
    assert post(machine, "/get-online-features", body).status_code == 200
    answer = post(machine, "/get-online-features", body, **late)
    assert (answer.status_code, answer.json()["error"]) == (412, "NotYetAppliedError")


def test_tokens_from_afar(machine: Served, data: Path, tmp_path: Path) -> None:
    remote = machine.remote(tmp_path / "remote", data)
    assert feast_quorin.last_token(remote) is None
    remote.push("customer_push", frame(7.0, 7))
    token = last(remote)
    for store in (remote, machine.local):
        with feast_quorin.at_least(token, timeout_ms=9_000):
            assert store.get_online_features(**SCORES).to_dict()["score"] == [7.0]
    late = Token((token.parts[0][0], 1 << 62))
    with feast_quorin.at_least(late, timeout_ms=5), pytest.raises(NotYetAppliedError, match="within 5 ms") as caught:
        remote.get_online_features(**SCORES)
    assert caught.value.applied is not None
    with feast_quorin.at_least(Token((9, 9))), pytest.raises(TokenError, match="is of another log"):
        remote.get_online_features(**SCORES)


def read_elsewhere(repo: str, settings: dict[str, Any], data: str, token: str, pipe: Any) -> None:
    """Another process on the same machine, which only reads."""
    store = make_store(Path(repo), settings, data=Path(data))
    with feast_quorin.at_least(token, timeout_ms=LONG_MS):
        pipe.send(store.get_online_features(**SCORES).to_dict()["score"])


def test_tokens_hold_in_other_processes(online_store: dict[str, Any], data: Path, tmp_path: Path) -> None:
    settings = {**online_store, "wait": "logged"}
    store = make_store(tmp_path / "repo", settings, data=data)
    store.apply(definitions(data))
    store.push("customer_push", frame(3.0, 3))
    receiving, sending = context.Pipe(duplex=False)
    arguments = (str(tmp_path / "repo"), settings, str(data), last(store).text, sending)
    process = context.Process(target=read_elsewhere, args=arguments, daemon=True)
    process.start()
    try:
        assert receiving.poll(120)
        assert receiving.recv() == [3.0]
    finally:
        process.join(60)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    store.teardown()
