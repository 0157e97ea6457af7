"""``quorin serve`` under load, while rows are pushed, views come and go, and its workers are killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import requests
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64

from tests.feast.repos import day
from tests.support.http import Running, serving

PATH = "/get-online-features"
KEYS = 8
CLIENTS = 3
KILLS = 2
KEY = Entity(name="key", join_keys=["key"], value_type=ValueType.INT64)


def view(name: str, folder: Path) -> FeatureView:
    """A view whose rows are right if ``triple`` is three times ``count``."""
    source = FileSource(path=str(folder / f"{name}.parquet"), timestamp_field="at")
    fields = [Field(name="count", dtype=Int64), Field(name="triple", dtype=Float64)]
    return FeatureView(name=name, entities=[KEY], schema=fields, source=source, online=True)


@dataclass
class Load:
    """What the clients do until ``is_over``, and what they saw."""

    server: Running
    is_over: threading.Event = field(default_factory=threading.Event)
    pushed: list[int] = field(default_factory=lambda: [0] * KEYS)
    answers: int = 0
    temporary_answers: int = 0
    refused: list[float] = field(default_factory=list)

    def run(self, seed: int) -> None:
        session = requests.Session()
        seen = [0] * KEYS
        while not self.is_over.is_set():
            keys = [(seed + self.answers + number) % KEYS for number in range(1 + self.answers % 3)]
            least = [self.pushed[key] for key in keys]
            answer = self._ask(session, "steady", keys)
            if answer is None:
                session = requests.Session()
                continue
            assert answer.status_code == 200, answer.text
            for key, pushed, count in zip(keys, least, counts(answer), strict=True):
                assert count is not None
                assert count >= max(pushed, seen[key]), f"key {key}: {count} after {pushed} and {seen[key]}"
                seen[key] = count
            self.answers += 1
            self._ask_for_temporary(session, keys)

    def _ask_for_temporary(self, session: requests.Session, keys: list[int]) -> None:
        """The view that comes and goes: right rows, none, or an error that names it."""
        answer = self._ask(session, "temporary", keys)
        if answer is not None and answer.status_code == 200:
            self.temporary_answers += any(count is not None for count in counts(answer))
        elif answer is not None:
            assert "temporary" in answer.text

    def _ask(self, session: requests.Session, view_name: str, keys: list[int]) -> requests.Response | None:
        body: dict[str, Any] = {"features": [f"{view_name}:count", f"{view_name}:triple"], "entities": {"key": keys}}
        try:
            return session.post(self.server.url + PATH, json=body, timeout=60)
        except requests.ConnectionError:
            self.refused.append(time.monotonic())
            return None


def counts(answer: requests.Response) -> list[int | None]:
    """The counts of an answer, whose rows must be whole."""
    columns = dict(zip(answer.json()["metadata"]["feature_names"], answer.json()["results"], strict=True))
    found: list[int | None] = columns["count"]["values"]
    assert columns["triple"]["values"] == [None if count is None else 3 * count for count in found]
    return found


def test_a_load_sees_right_rows_while_everything_changes(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    repository.mkdir()
    (tmp_path / "segments").mkdir()
    online_store = {"type": "quorin", "path": "quorin", "shm_dir": str(tmp_path / "segments"), "capacity": 64}
    settings = {
        "project": "load",
        "provider": "local",
        # A reader of a registry in a file finds no views while another process writes it, as Feast truncates it first.
        "registry": {"registry_type": "sql", "path": f"sqlite:///{tmp_path}/registry.sqlite", "cache_ttl_seconds": 1},
        "online_store": online_store,
        "entity_key_serialization_version": 3,
    }
    (repository / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    store = FeatureStore(repo_path=str(repository))
    store.apply([KEY, view("steady", tmp_path)])
    write(store, "steady", dict.fromkeys(range(KEYS), 0))
    words = ["quorin", "serve", "-r", str(repository), "-p", "{port}", "-w", "2", "--registry-ttl-sec", "1"]
    with serving(words, tmp_path / "log") as server, ThreadPoolExecutor(CLIENTS + 2) as pool:
        load = Load(server)
        clients = [pool.submit(load.run, seed) for seed in range(CLIENTS)]
        changes = [pool.submit(push, store, load), pool.submit(come_and_go, repository, load, tmp_path)]
        try:
            kills = kill_workers(load)
        finally:
            load.is_over.set()
        for future in [*clients, *changes]:
            future.result(120)
    assert all(any(start <= time_ <= stop for start, stop in kills) for time_ in load.refused)
    assert load.answers > 100
    assert load.temporary_answers > 0
    assert min(load.pushed) > 0
    store.teardown()  # type: ignore[no-untyped-call]


def write(store: FeatureStore, view_name: str, rows: dict[int, int]) -> None:
    times = [day(1) + pd.Timedelta(seconds=count) for count in rows.values()]
    frame = {"key": [*rows], "count": [*rows.values()], "triple": [3.0 * count for count in rows.values()], "at": times}
    store.write_to_online_store(view_name, pd.DataFrame(frame))


def push(store: FeatureStore, load: Load) -> None:
    """One row after the other; a row counts as pushed when the push has returned."""
    count = 0
    while not load.is_over.is_set():
        count += 1
        key = count % KEYS
        write(store, "steady", {key: count})
        load.pushed[key] = count
        time.sleep(0.002)


def come_and_go(repository: Path, load: Load, folder: Path) -> None:
    """Apply a view, fill it, and remove it."""
    store = FeatureStore(repo_path=str(repository))
    temporary = view("temporary", folder)
    while not load.is_over.is_set():
        store.apply([temporary])
        write(store, "temporary", {key: key for key in range(KEYS)})
        load.is_over.wait(1.5)
        store.apply([], objects_to_delete=[temporary], partial=False)
        load.is_over.wait(0.5)


def kill_workers(load: Load) -> list[tuple[float, float]]:
    """Kill one worker after the other, each when its predecessor is replaced; from when to when one was missing."""
    kills = []
    for number in range(KILLS):
        before, alive = load.answers, workers(load.server)
        assert len(alive) == 2
        start = time.monotonic()
        os.kill(alive[number % 2], signal.SIGKILL)
        wait_for(lambda alive=alive: len({*workers(load.server)} - {*alive}) == 1)
        wait_for(lambda before=before: load.answers > before + 50)
        kills.append((start, time.monotonic()))
    return kills


def workers(server: Running) -> list[int]:
    """The processes of the server that answer, oldest first."""
    pid, found = server.process.pid, []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(FileNotFoundError, ProcessLookupError):  # It has just been killed.
            if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def wait_for(is_so: Any) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)
