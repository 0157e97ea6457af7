"""``key_ttl_seconds``: some time after its last write a row is as if it had never been written, on every path."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.filter_models import ComparisonFilter
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import FloatList, Value
from feast.types import Array, Float32, Int64, String

from tests.equivalence.test_compiled import generic
from tests.feast.repos import day, make_store
from tests.feast.test_against_sqlite import same

THING = Entity(name="thing", join_keys=["thing"], value_type=ValueType.INT64)
FEATURES = ["things:n", "things:s"]
THINGS = [1, 2, 3]


def things(folder: Path) -> FeatureView:
    path = folder / "things.parquet"
    pq.write_table(pa.table({"thing": [1], "at": [day(0)]}), path)
    fields = {"n": Int64, "s": String, "v": Array(Float32)}
    return FeatureView(
        name="things",
        entities=[THING],
        schema=[Field(name=name, dtype=kind, vector_index=name == "v") for name, kind in fields.items()],
        source=FileSource(path=str(path), timestamp_field="at"),
    )


def put(store: FeatureStore, *numbers: int, at: dt.datetime | None = None) -> None:
    """Rows with the event time of long ago: only when they are written counts."""
    rows = [
        (
            EntityKey(join_keys=["thing"], entity_values=[Value(int64_val=n)]),
            {
                "n": Value(int64_val=n),
                "s": Value(string_val=f"s{n}"),
                "v": Value(float_list_val=FloatList(val=[n, 0])),
            },
            at or day(1),
            None,
        )
        for n in numbers
    ]
    store._get_provider().online_write_batch(store.config, store.get_feature_view("things"), rows, None)


def seen(store: FeatureStore) -> list[list[int]]:
    """Which things are there, by each way to ask."""
    asked = {"features": FEATURES, "entity_rows": {"thing": THINGS}}
    ways = [
        store.get_online_features(**asked).to_dict()["n"],
        generic(store, **asked).to_dict()["n"],
        asyncio.run(store.get_online_features_async(**asked)).to_dict()["n"],
        [store.get_online_features(FEATURES, [{"thing": n}]).to_dict()["n"][0] for n in THINGS],
        store.get_online_features(**asked).to_df()["n"].dropna().tolist(),
        store.get_online_features(**asked).to_arrow().column("n").to_pylist(),
    ]
    keys = [EntityKey(join_keys=["thing"], entity_values=[Value(int64_val=n)]) for n in THINGS]
    provider, view = store._get_provider(), store.get_feature_view("things")
    rows = provider.online_read(store.config, view, keys, ["n"])
    ways.append([row["n"].int64_val for _, row in rows if row is not None])
    for filters in (None, ComparisonFilter(type="gt", key="n", value=0)):
        found = provider.online_store.retrieve_online_documents_v2(
            store.config, view, ["n"], [0.0, 0.0], 5, None, None, filters
        )
        ways.append(sorted(row["n"].int64_val for _, _, row in found))
    return [[n for n in way if n is not None] for way in ways]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_rows_are_not_found_once_their_last_write_is_too_long_ago(online_store: dict[str, Any], tmp_path: Path) -> None:
    def opened(**settings: Any) -> FeatureStore:
        return make_store(tmp_path / "repo", {**online_store, **settings}, data=tmp_path)

    patient, brief, endless = opened(key_ttl_seconds=3600), opened(key_ttl_seconds=2), opened()
    patient.apply([THING, things(tmp_path)])
    put(patient, *THINGS)
    for store in (patient, endless):
        assert all(way == THINGS for way in seen(store))
    until(lambda: not any(seen(brief)))
    answer = brief.get_online_features(FEATURES, {"thing": THINGS})
    assert {status for result in answer.proto.results[1:] for status in result.statuses} == {FieldStatus.NOT_FOUND}
    same(answer, generic(brief, features=FEATURES, entity_rows={"thing": THINGS}))
    gone, never = (brief.get_online_features(FEATURES, {"thing": keys}).to_dict(True) for keys in (THINGS, [7, 8, 9]))
    assert {**gone, "thing": None} == {**never, "thing": None}
    for store in (patient, endless):
        assert all(way == THINGS for way in seen(store))

    def written_again() -> bool:
        put(patient, 2)
        return brief.get_online_features(FEATURES, {"thing": THINGS}).to_dict()["n"] == [None, 2, None]

    until(written_again)
    patient.teardown()


def test_a_write_that_changes_nothing_prolongs_nothing(online_store: dict[str, Any], tmp_path: Path) -> None:
    store = make_store(tmp_path / "repo", {**online_store, "key_ttl_seconds": 1}, data=tmp_path)
    store.apply([THING, things(tmp_path)])
    put(store, *THINGS)
    until(lambda: not any(seen(store)))
    put(store, *THINGS, at=day(0))
    assert not any(seen(store))
    store.teardown()
