"""Materialization beside everything else: killed and run again, beside pushes and reads, and from the command line."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import Int64

from feast_quorin.views import stored_view
from quorin.shm import SegmentRegistry
from tests.feast.repos import END, START, day, make_store
from tests.feast.spawned import spawned
from tests.feast.test_command_line import repo as repo
from tests.support.forking import context

ENGINE = {"type": "feast_quorin.QuorinComputeEngine"}
ROWS = 200_000
PUSHES_SEEN = 40
MATERIALIZATIONS = 6
TORTURE_SECONDS = 60
LIMIT_SECONDS = 300


def write_source(path: Path, rows: int, time_: dt.datetime, factor: int) -> None:
    """Row ``n`` has ``n * factor`` in both of its features."""
    values = np.arange(rows) * factor
    times = pa.array([time_] * rows, pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"id": np.arange(rows), "at": times, "a": values, "b": values}), path)


def view(path: Path) -> list[Any]:
    entity = Entity(name="id", join_keys=["id"], value_type=ValueType.INT64)
    source = PushSource(name="pushed", batch_source=FileSource(path=str(path), timestamp_field="at"))
    fields = [Field(name=name, dtype=Int64) for name in ("a", "b")]
    return [entity, FeatureView(name="numbers", entities=[entity], schema=fields, source=source)]


@pytest.fixture
def numbers(online_store: dict[str, Any], tmp_path: Path) -> Iterator[FeatureStore]:
    """A store over a source of many rows, of which nothing is materialized."""
    write_source(tmp_path / "numbers.parquet", ROWS, day(0), 1)
    store = opened(tmp_path, online_store)
    store.apply(view(tmp_path / "numbers.parquet"))
    yield store
    store.teardown()
    assert list(Path(online_store["shm_dir"]).glob("quorin_*")) == []


def opened(folder: Path, online_store: dict[str, Any], *, as_arrow: bool = True) -> FeatureStore:
    """A store over a registry in SQL: Feast's file registry is written in place, so that a push, which always reads it,
    finds it empty now and then while another process materializes.
    """
    waiting = {"connect_args": {"timeout": 60}}
    path = f"sqlite:///{folder / 'registry.db'}"
    registry = {"registry_type": "sql", "path": path, "sqlalchemy_config_kwargs": waiting}
    engine = {"batch_engine": ENGINE} if as_arrow else {}
    return make_store(folder / "repo", online_store, data=folder, registry=registry, **engine)


def materialize(folder: Path, online_store: dict[str, Any], as_arrow: bool) -> None:
    opened(folder, online_store, as_arrow=as_arrow).materialize(START, END)


def read(store: FeatureStore, ids: list[int]) -> list[tuple[Any, Any]]:
    answer = store.get_online_features(["numbers:a", "numbers:b"], {"id": ids}).to_dict()
    return list(zip(answer["a"], answer["b"], strict=True))


@pytest.mark.parametrize("as_arrow", [True, False], ids=["our engine", "Feast's engine"])
def test_a_killed_materialization_is_completed_by_the_next(
    numbers: FeatureStore, online_store: dict[str, Any], tmp_path: Path, as_arrow: bool
) -> None:
    rows = ROWS if as_arrow else ROWS // 5
    write_source(tmp_path / "numbers.parquet", rows, day(0), 1)
    store = numbers._get_provider().online_store
    log = store._session_for(numbers.config).registry.backend.log()
    process = spawned(materialize, tmp_path, online_store, as_arrow)
    begun = log.bounds().last
    while log.bounds().last == begun:
        assert process.is_alive() or log.bounds().last > begun
        time.sleep(0.0005)
    process.kill()
    process.join()
    half = read(numbers, list(range(0, rows, 1000)))
    assert all(row in ((None, None), (n * 1000, n * 1000)) for n, row in enumerate(half))
    materialize(tmp_path, online_store, as_arrow)
    assert read(numbers, list(range(0, rows, 3))) == [(n, n) for n in range(0, rows, 3)]
    registry: SegmentRegistry = store._session_for(numbers.config).registry
    schema = stored_view(numbers.config, numbers.get_feature_view("numbers")).schema
    with registry.open_current(schema) as segment:
        assert len(segment) == rows


def materialize_until(folder: Path, online_store: dict[str, Any], end: Any, begun: Any, times: Any) -> None:
    """Again and again, of the same rows, which every time changes nothing that is newer; ``times`` counts."""
    store = opened(folder, online_store)
    begun.set()
    while not end.is_set():
        store.materialize(START, END)
        times.value += 1


def push_until(folder: Path, online_store: dict[str, Any], end: Any) -> None:
    """Both features of a few rows count up together, with ever newer event times."""
    store, number = opened(folder, online_store), 0
    while not end.is_set():
        number += 1
        frame = pd.DataFrame(
            {"id": range(5), "at": [day(1) + dt.timedelta(seconds=number)] * 5, "a": number, "b": number}
        )
        store.push("pushed", frame)


def beside_each_other(folder: Path, online_store: dict[str, Any], numbers: FeatureStore, seconds: float = 0) -> None:
    """A process that materializes and one that pushes; here rows are read: whole ones, and never older than before."""
    write_source(folder / "numbers.parquet", 20_000, day(0), 1)
    numbers.materialize(START, END)
    end, begun, times = context.Event(), context.Event(), context.Value("i", 0)
    others = [
        spawned(push_until, folder, online_store, end),
        spawned(materialize_until, folder, online_store, end, begun, times),
    ]
    while not begun.is_set() or read(numbers, [4]) == [(4, 4)]:
        assert all(process.is_alive() for process in others)
        time.sleep(0.01)
    last, seen, started = [0] * 5, 0, time.monotonic()
    while (elapsed := time.monotonic() - started) < LIMIT_SECONDS and (
        elapsed < seconds or seen < PUSHES_SEEN or times.value < MATERIALIZATIONS
    ):
        assert all(process.is_alive() for process in others)
        rows = read(numbers, [*range(5), 19_999])
        assert all(a == b for a, b in rows)
        assert rows.pop() == (19_999, 19_999)
        pushed = [a for a, _ in rows]
        assert all(now >= before for now, before in zip(pushed, last, strict=True)), (last, pushed)
        seen += pushed != last
        last = pushed
    end.set()
    for process in others:
        process.join(LIMIT_SECONDS)
    assert [process.exitcode for process in others] == [0, 0]
    assert seen >= PUSHES_SEEN
    assert times.value >= MATERIALIZATIONS


def test_materialization_pushes_and_reads_go_on_beside_each_other(
    numbers: FeatureStore, online_store: dict[str, Any], tmp_path: Path
) -> None:
    beside_each_other(tmp_path, online_store, numbers)


@pytest.mark.torture
def test_they_do_for_a_minute(numbers: FeatureStore, online_store: dict[str, Any], tmp_path: Path) -> None:
    beside_each_other(tmp_path, online_store, numbers, TORTURE_SECONDS)


@pytest.mark.parametrize("online_store", ["embedded"], indirect=True)
def test_a_batch_engine_with_unknown_keys_is_refused(repo: Path) -> None:
    settings = yaml.safe_load((repo / "feature_store.yaml").read_text())
    settings["batch_engine"] = {**ENGINE, "speed": "high"}
    (repo / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    config = FeatureStore(repo_path=str(repo)).config
    with pytest.raises(ValueError, match="speed"):
        _ = config.batch_engine
