"""Of equal event times the newer ``created`` wins, whatever batches rows come in, and whichever way they take."""

from __future__ import annotations

import datetime as dt
import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Int64, String

from tests.equivalence.test_compiled import generic
from tests.feast.repos import END, START, day, make_store
from tests.feast.test_against_sqlite import same

HOUR = dt.timedelta(hours=1)
THING = Entity(name="thing", join_keys=["thing"], value_type=ValueType.INT64)
REQUEST: dict[str, Any] = {"features": ["made:n", "made:s"], "entity_rows": {"thing": [1]}}
ROWS = [(1, day(1) + HOUR), (2, day(1)), (3, None), (4, day(1) + HOUR)]
"""Values of ``n`` with their created times, all of one event: of each choice the last of the newest wins."""


def view(folder: Path, *, has_created: bool = True) -> FeatureView:
    path = folder / "made.parquet"
    if not path.exists():
        pq.write_table(pa.table({"thing": [1], "n": [0], "s": ["0"], "at": [day(0)], "created": [day(0)]}), path)
    created = {"created_timestamp_column": "created"} if has_created else {}
    return FeatureView(
        name="made",
        entities=[THING],
        schema=[Field(name="n", dtype=Int64), Field(name="s", dtype=String)],
        source=PushSource(name="made_push", batch_source=FileSource(path=str(path), timestamp_field="at", **created)),
    )


def applied(folder: Path, online_store: dict[str, Any], **settings: Any) -> FeatureStore:
    store = make_store(folder / "repo", online_store, data=folder, **settings)
    store.apply([THING, view(folder)])
    return store


def put(store: FeatureStore, thing: int, values: dict[str, Value], created: dt.datetime | None) -> None:
    key = EntityKey(join_keys=["thing"], entity_values=[Value(int64_val=thing)])
    rows = [(key, values, day(1), created)]
    store._get_provider().online_write_batch(store.config, store.get_feature_view("made"), rows, None)


def answer(store: FeatureStore, thing: int = 1) -> dict[str, Any]:
    """The compiled answer, which is the generic one's, and shows features alone."""
    request = {**REQUEST, "entity_rows": {"thing": [thing]}}
    fast = store.get_online_features(**request)
    same(fast, generic(store, **request))
    found = fast.to_dict()
    assert set(found) == {"thing", "n", "s"}
    return found


def test_any_order_of_batches_gives_the_newest_created_then_the_later_write(
    online_store: dict[str, Any], tmp_path: Path
) -> None:
    store = applied(tmp_path, online_store)
    for thing, order in enumerate(itertools.permutations(ROWS)):
        for n, created in order:
            put(store, thing, {"n": Value(int64_val=n), "s": Value(string_val=str(n))}, created)
        winner = [n for n, _ in order if n in (1, 4)][-1]
        assert answer(store, thing) == {"thing": [thing], "n": [winner], "s": [str(winner)]}
    store.teardown()


def test_features_left_out_stay_and_the_created_time_is_the_events(
    online_store: dict[str, Any], tmp_path: Path
) -> None:
    store = applied(tmp_path, online_store)
    put(store, 1, {"n": Value(int64_val=1), "s": Value(string_val="first")}, day(1))
    put(store, 1, {"n": Value(int64_val=2)}, day(1) - HOUR)
    assert answer(store) == {"thing": [1], "n": [1], "s": ["first"]}
    put(store, 1, {"n": Value(int64_val=3)}, day(1) + HOUR)
    assert answer(store) == {"thing": [1], "n": [3], "s": ["first"]}
    put(store, 1, {"s": Value(string_val="second")}, day(1))
    assert answer(store) == {"thing": [1], "n": [3], "s": ["first"]}
    store.teardown()


@pytest.mark.parametrize("provider", ["local", "feast_quorin.QuorinProvider"])
def test_pushed_frames(online_store: dict[str, Any], tmp_path: Path, provider: str) -> None:
    store = applied(tmp_path, online_store, provider=provider)
    for n, created in ROWS[:3]:
        at = pd.to_datetime([day(1)])
        store.push(
            "made_push",
            pd.DataFrame({"thing": [1], "n": [n], "s": [str(n)], "at": at, "created": pd.to_datetime([created])}),
        )
    assert answer(store)["n"] == [1]
    step = pd.Timedelta(1, "us" if provider == "local" else "ns")  # Feast's own conversion cuts to the microsecond.
    newer = pd.Timestamp(day(1) + HOUR) + step
    frame = pd.DataFrame({"thing": [1], "n": [5], "s": ["5"], "at": pd.to_datetime([day(1)]), "created": [newer]})
    store.push("made_push", frame)
    assert answer(store)["n"] == [5]
    store.push("made_push", frame.assign(n=6, created=newer - step))
    assert answer(store)["n"] == [5]
    store.teardown()


@pytest.mark.parametrize("engine", ["local", "feast_quorin.QuorinComputeEngine"])
@pytest.mark.parametrize("latest", [False, True])
def test_materialized_sources(online_store: dict[str, Any], tmp_path: Path, engine: str, latest: bool) -> None:
    store = applied(tmp_path, online_store, batch_engine={"type": engine})
    store.config.materialization_config.pull_latest_features = latest
    for n, created in ROWS[:2]:
        rows = {"thing": [1], "n": [n], "s": [str(n)], "at": [day(1)], "created": [created]}
        pq.write_table(pa.table(rows), tmp_path / "made.parquet")
        store.materialize(START, END)
        assert answer(store)["n"] == [1]
    store.teardown()


def test_a_view_whose_source_gets_a_created_column_keeps_its_rows(online_store: dict[str, Any], tmp_path: Path) -> None:
    store = make_store(tmp_path / "repo", online_store, data=tmp_path)
    store.apply([THING, view(tmp_path, has_created=False)])
    put(store, 1, {"n": Value(int64_val=1), "s": Value(string_val="1")}, day(2))
    store.apply([THING, view(tmp_path)])
    assert answer(store)["n"] == [1]
    for n, created in ((2, day(1)), (3, day(0)), (4, None)):
        put(store, 1, {"n": Value(int64_val=n), "s": Value(string_val=str(n))}, created)
        assert answer(store)["n"] == [2]
    store.apply([THING, view(tmp_path, has_created=False)])
    assert answer(store)["n"] == [2]
    store.teardown()


def test_rows_come_back_from_the_history_as_they_were(online_store: dict[str, Any], tmp_path: Path) -> None:
    settings = {**online_store, "offline_path": str(tmp_path / "history")}
    store = applied(tmp_path, settings)
    for n, created in ROWS[:3]:
        put(store, 1, {"n": Value(int64_val=n), "s": Value(string_val=str(n))}, created)
    for segment in Path(online_store["shm_dir"]).glob("quorin_*"):
        segment.unlink()
    reopened = make_store(tmp_path / "repo", settings, data=tmp_path)
    assert answer(reopened)["n"] == [1]
    put(reopened, 1, {"n": Value(int64_val=9), "s": Value(string_val="9")}, day(1))
    assert answer(reopened)["n"] == [1]
    reopened.teardown()
