"""The served log of a store: what requests were answered with, given back bit for bit from positions and history."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from feast import FeatureStore

import feast_quorin
from feast_quorin.config import ConfigError
from quorin.errors import IncompleteHistoryError, InvalidRowError
from quorin.offline import read_served
from tests.feast.repos import CUSTOMERS, DRIVERS, END, START, definitions, make_store

FEATURES = ["driver_stats:conv_rate", "driver_stats:tags", "driver_stats:blob", "pair_stats:rides", "world:fuel_price"]


def logging_store(tmp_path: Path, data: Path, online_store: dict[str, Any], **settings: Any) -> FeatureStore:
    served = {"url": str(tmp_path / "served"), "every_seconds": 1000.0, **settings}
    own = {**online_store, "offline_path": str(tmp_path / "history"), "served_log": served}
    store = make_store(tmp_path / "repo", own, data=data)
    store.apply(definitions(data))
    return store


def session(store: FeatureStore) -> Any:
    return store._get_provider().online_store.session(store.config)


def flush(store: FeatureStore) -> None:
    session(store).served.collect()


def push(store: FeatureStore, score: float, day: int = 0) -> None:
    at = END + dt.timedelta(days=day)
    rows = {"customer": CUSTOMERS[1:4], "at": [at] * 3, "score": [score] * 3, "city": ["x"] * 3}
    store.push("customer_push", pd.DataFrame(rows))


def replay(store: FeatureStore, tmp_path: Path, **options: Any) -> Any:
    flush(store)
    connection = store.config.online_store.connection(store.repo_path)
    return read_served(tmp_path / "served", tmp_path / "history", connection=connection, **options)


def plain(values: Any) -> list[Any]:
    return [np.float64(value).tobytes() if isinstance(value, float) else value for value in values]


def test_what_was_served_comes_back_after_later_writes(
    online_store: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    store = logging_store(tmp_path, data, online_store)
    store.materialize(START, END)
    rows = [{"driver_id": driver, "customer": CUSTOMERS[1], "factor": 2.5} for driver in [*DRIVERS[:3], 99]]
    answers = []
    for number, score in enumerate([1.5, 2.5, float("nan")]):
        push(store, score, number)
        for features, entities in (
            (FEATURES, [{"driver_id": row["driver_id"], "customer": row["customer"]} for row in rows]),
            (["customer_stats:score", "customer_stats:city"], [{"customer": CUSTOMERS[2]}]),
            (["customer_stats:score"], [{"customer": "Åse"}]),
            (
                ["driver_stats:acc", "boosted:boosted_rate"],
                [{"driver_id": 1001, "factor": 2.5}, {"driver_id": 99, "factor": 1.0}],
            ),
        ):
            with feast_quorin.request_id(f"request-{len(answers)}"):
                answers.append(store.get_online_features(features, entities).to_dict())
    push(store, 99.0, 9)
    served = replay(store, tmp_path)
    assert served["known"].to_pylist() == [True] * len(served)
    for number, answer in enumerate(answers):
        own = served.filter(np.array(served["request_id"].to_pylist()) == f"request-{number}")
        for name in set(answer) - {"driver_id", "customer"}:
            assert plain(own[name].to_pylist()) == plain(answer[name]), name
    store.teardown()


@pytest.mark.parametrize("count", [1, 3], ids=["one", "many"])
def test_what_an_age_limit_kept_back_comes_back_as_null(
    online_store: dict[str, Any], data: Path, tmp_path: Path, count: int
) -> None:
    store = logging_store(tmp_path, data, online_store)
    push(store, 1.5)
    features, entities = (
        ["customer_stats:score", "customer_stats:city"],
        [{"customer": n} for n in CUSTOMERS[1:][:count]],
    )
    with feast_quorin.max_age({"customer_stats:city": 60}):
        answer = store.get_online_features(features, entities).to_dict()
    whole = store.get_online_features(features, entities).to_dict()
    assert (answer["score"], answer["city"]) == ([1.5] * count, [None] * count)
    served = replay(store, tmp_path)
    for name in ("score", "city"):
        assert served[name].to_pylist() == [*answer[name], *whole[name]]
    assert whole["city"] == ["x"] * count
    store.teardown()


def test_labels_make_a_training_set_of_what_was_served(
    online_store: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    store = logging_store(tmp_path, data, online_store)
    push(store, 1.5)
    with feast_quorin.request_id("first"):
        store.get_online_features(["customer_stats:score"], [{"customer": CUSTOMERS[1]}])
    between = time.time_ns()
    push(store, 2.5, 1)
    with feast_quorin.request_id("second"):
        store.get_online_features(["customer_stats:score"], [{"customer": name} for name in CUSTOMERS[1:3]])
    labels = {"request_id": ["second", "nobody", "first"], "clicked": [True, True, False]}
    by_id = replay(store, tmp_path, labels=labels)
    assert by_id.select(["request_id", "row", "score", "clicked"]).to_pylist() == [
        {"request_id": "second", "row": 0, "score": 2.5, "clicked": True},
        {"request_id": "second", "row": 1, "score": 2.5, "clicked": True},
        {"request_id": "first", "row": 0, "score": 1.5, "clicked": False},
    ]
    rows = {"request_id": ["second"], "row": [1], "clicked": [1]}
    one = replay(store, tmp_path, labels=rows)
    assert one["entity_id"].to_pylist() == by_id["entity_id"].to_pylist()[1:2]
    entity = by_id["entity_id"][2].as_py()
    by_time = {"entity_id": [entity, entity, entity], "time": [between, time.time_ns(), 0], "clicked": [1, 2, 3]}
    assert replay(store, tmp_path, labels=by_time).select(["score", "clicked"]).to_pylist() == [
        {"score": 1.5, "clicked": 1},
        {"score": 2.5, "clicked": 2},
    ]
    with pytest.raises(InvalidRowError, match="request_id"):
        replay(store, tmp_path, labels={"clicked": [1]})
    with pytest.raises(InvalidRowError, match="score"):
        replay(store, tmp_path, labels={"request_id": ["first"], "score": [1]})
    store.teardown()


def test_requests_as_of_a_position_or_a_time(online_store: dict[str, Any], data: Path, tmp_path: Path) -> None:
    store = logging_store(tmp_path, data, online_store)
    store.materialize(START, END)
    features = [*FEATURES, "customer_stats:score", "boosted:boosted_rate"]
    entities = [{"driver_id": driver, "customer": CUSTOMERS[1], "factor": 2.0} for driver in [DRIVERS[0], 99]]
    push(store, 1.5)
    then, expected = time.time_ns(), store.get_online_features(features, entities)
    time.sleep(0.003)
    push(store, 2.5, 1)
    answer = feast_quorin.read_at(store, features, entities, time_ns=then)
    assert answer.to_dict() == expected.to_dict()
    assert answer.proto.results[1].statuses[:] == expected.proto.results[1].statuses[:]
    now = feast_quorin.read_at(store, features, entities, time_ns=time.time_ns())
    assert now.to_dict()["score"] == [2.5, 2.5]
    before = feast_quorin.read_at(store, features, entities, position=1)
    assert {value for name in ("score", "rides") for value in before.to_dict()[name]} == {None}
    with pytest.raises(InvalidRowError, match="position"):
        feast_quorin.read_at(store, features, entities)
    store.teardown()


def test_ages_count_as_of_then(online_store: dict[str, Any], data: Path, tmp_path: Path) -> None:
    store = logging_store(tmp_path, data, {**online_store, "key_ttl_seconds": 100})
    push(store, 1.5)
    now = time.time_ns()
    features, entities = ["customer_stats:score"], [{"customer": CUSTOMERS[1]}, {"customer": "nobody"}]
    for seconds, score in ((0, 1.5), (99, 1.5), (102, None)):
        at = feast_quorin.read_at(store, features, entities, time_ns=now + seconds * 10**9)
        assert at.to_dict()["score"] == [score, None]
    store.teardown()


def test_a_sample_is_logged(online_store: dict[str, Any], data: Path, tmp_path: Path) -> None:
    store = logging_store(tmp_path, data, online_store, sample=0.25)
    push(store, 1.5)
    for _ in range(400):
        store.get_online_features(["customer_stats:score"], [{"customer": CUSTOMERS[1]}])
    assert 40 <= len(replay(store, tmp_path)) <= 180
    store.teardown()


@pytest.mark.parametrize(
    ("served_log", "message"),
    [
        ({"url": "", "sample": 1.0}, "served_log.url: expected a directory"),
        ({"url": "s3://["}, "served_log.url: expected a directory or"),
        ({"url": "x", "sample": 0}, "served_log.sample: .*greater than 0"),
        ({"url": "x", "sample": 1.5}, "served_log.sample: .*less than or equal to 1"),
        ({"url": "x", "sampel": 1}, "served_log.sampel: unknown key, did you mean sample"),
        ({"sample": 1.0}, "served_log.url: field required"),
    ],
)
def test_settings_are_checked(tmp_path: Path, served_log: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_store(tmp_path / "repo", {"type": "feast_quorin.QuorinOnlineStore", "served_log": served_log})


@pytest.mark.parametrize("text", ["", "a" * 129, "é", "a\nb", 7])
def test_ids_of_requests_are_printable(text: Any) -> None:
    with pytest.raises(ValueError, match="request id: expected 1 to 128 printable"), feast_quorin.request_id(text):
        pass


def test_a_store_without_a_history_has_no_earlier_moments(store: FeatureStore) -> None:
    with pytest.raises(ConfigError, match="offline_path"):
        feast_quorin.read_at(store, ["customer_stats:score"], [{"customer": "x"}], position=1)
    assert issubclass(IncompleteHistoryError, LookupError)
