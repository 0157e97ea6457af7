"""Rows pushed one by one, by several processes in turn and at once: each is seen when its push returns."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from feast import FeatureStore

from quorin.wal_consumer import WALConsumer
from tests.feast.repos import make_store

NOON = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)
fork = multiprocessing.get_context("fork")


def push(store: FeatureStore, customer: str, score: float, at: dt.datetime = NOON) -> None:
    store.push("customer_push", pd.DataFrame({"customer": [customer], "at": [at], "score": [score], "city": ["c"]}))


def scores(store: FeatureStore, *customers: str) -> list[float | None]:
    request = {"customer": list(customers)}
    return store.get_online_features(["customer_stats:score"], request).to_dict()["score"]


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def answer_pushes(repo: Path, online_store: dict[str, Any], pipe: Any) -> None:
    """What the other process does: whenever it is told a number, it looks for it, and pushes the next."""
    store = make_store(repo, online_store, data=repo)
    while (number := pipe.recv()) is not None:
        assert scores(store, "there") == [number]
        push(store, "here", number + 1, NOON + number * SECOND)
        pipe.send(number + 1)


def test_processes_push_in_turn_and_see_each_other_s_rows(store: FeatureStore, online_store: dict[str, Any]) -> None:
    ours, theirs = fork.Pipe()
    other = fork.Process(target=answer_pushes, args=(store.repo_path, online_store, theirs))
    other.start()
    for number in range(0, 40, 2):
        push(store, "there", number, NOON + number * SECOND)
        assert scores(store, "there") == [number]
        ours.send(number)
        assert ours.poll(120)
        assert ours.recv() == number + 1
        assert scores(store, "here", "there") == [number + 1, number]
    ours.send(None)
    other.join(120)
    assert other.exitcode == 0


def push_many(repo: Path, online_store: dict[str, Any], who: str, times: int) -> None:
    """What a process does that pushes as fast as it can, each row of an entity of its own."""
    store = make_store(repo, online_store, data=repo)
    for number in range(times):
        push(store, f"{who}{number}", number)


@pytest.mark.parametrize("wait", ["applied", "logged"])
def test_nothing_pushed_at_once_is_left_in_the_log(
    store: FeatureStore, online_store: dict[str, Any], wait: str
) -> None:
    times, names = 40, "ab"
    assert scores(store, "none") == [None]
    settings = {**online_store, "wait": wait}
    others = [fork.Process(target=push_many, args=(store.repo_path, settings, who, times)) for who in names]
    for other in others:
        other.start()
    for other in others:
        other.join(240)
    assert [other.exitcode for other in others] == [0] * len(others)
    wanted = [f"{who}{number}" for who in names for number in range(times)]
    # Nobody writes any more, and this process has its segment open: reading applies nothing.
    until(lambda: scores(store, *wanted) == [float(number) for _ in names for number in range(times)])


@pytest.mark.parametrize("provider", ["local", "feast_quorin.QuorinProvider"])
def test_frames_of_one_row_are_pushed_whatever_they_hold(
    store: FeatureStore, online_store: dict[str, Any], provider: str
) -> None:
    pusher = make_store(store.repo_path, online_store, data=store.repo_path, provider=provider)
    rows = [(1.5, "Oslo"), (2.0, None), (None, "Bergen"), (2**24 + 1, "å|b"), (3.25, "")]
    for number, (score, city) in enumerate(rows):
        at = NOON + number * SECOND
        pusher.push("customer_push", pd.DataFrame({"customer": ["a|b"], "at": [at], "score": [score], "city": [city]}))
        features = ["customer_stats:score", "customer_stats:city"]
        answer = store.get_online_features(features, {"customer": ["a|b"]}).to_dict()
        assert (answer["score"], answer["city"]) == ([score], [city])


def test_rows_are_seen_while_daemons_come_and_go(store: FeatureStore) -> None:
    session = store._get_provider().online_store._session_for(store.config)
    for number in range(0, 9, 3):
        push(store, "x", number, NOON + number * SECOND)
        assert scores(store, "x") == [number]
        with WALConsumer(session.registry.backend, None, registry=session.registry) as daemon:
            process = fork.Process(target=daemon.run)
            process.start()
            reports = session.registry.backend.control.processes
            until(lambda: any(f":{process.pid}:" in name for name in reports()))  # noqa: B023 - called at once
            push(store, "x", number + 1, NOON + (number + 1) * SECOND)
            assert scores(store, "x") == [number + 1]
            push(store, "x", number + 2, NOON + (number + 2) * SECOND)
            assert scores(store, "x") == [number + 2]
            os.kill(process.pid, signal.SIGKILL)
            process.join()


def push_and_tell(repo: Path, online_store: dict[str, Any], pipe: Any) -> None:
    """What a process does until it is killed: push, and tell what was pushed."""
    store = make_store(repo, online_store, data=repo)
    for number in range(10**6):
        push(store, "k", number, NOON + number * SECOND)
        pipe.send(number)


def test_what_a_killed_process_pushed_is_there_and_the_next_one_pushes_on(
    store: FeatureStore, online_store: dict[str, Any]
) -> None:
    push(store, "mine", -1.0)
    for round_ in range(4):
        ours, theirs = fork.Pipe(duplex=False)
        process = fork.Process(target=push_and_tell, args=(store.repo_path, online_store, theirs))
        process.start()
        theirs.close()
        last = -1
        for _ in range(5 + 7 * round_):
            assert ours.poll(120)
            last = ours.recv()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        push(store, "mine", round_, NOON + round_ * SECOND)
        (killed, mine) = scores(store, "k", "mine")
        assert mine == round_
        assert killed is not None
        assert killed >= last
