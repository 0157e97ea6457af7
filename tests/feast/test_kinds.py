"""Every kind of view and every way to write it: what is answered then is what Feast's SQLite store answers."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import (
    BatchFeatureView,
    Entity,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    KafkaSource,
    PushSource,
    StreamFeatureView,
    ValueType,
)
from feast.data_format import JsonFormat
from feast.data_source import PushMode
from feast.labeling import LabelView
from feast.on_demand_feature_view import on_demand_feature_view
from feast.repo_contents import RepoContents
from feast.types import Array, Float64, Int64, String

from feast_quorin.read.response import LazyResponse
from tests.equivalence.test_compiled import generic
from tests.feast.repos import END, START, day, make_store
from tests.feast.test_against_sqlite import same

WAYS: dict[str, dict[str, Any]] = {
    "Feast's engine": {},
    "ours": {"batch_engine": {"type": "feast_quorin.QuorinComputeEngine"}, "provider": "feast_quorin.QuorinProvider"},
}
KEY = Entity(name="key", join_keys=["key"], value_type=ValueType.INT64)
SCHEMA = [
    Field(name="amount", dtype=Float64),
    Field(name="note", dtype=String),
    Field(name="marks", dtype=Array(Int64)),
]
PLAIN = ["pushed", "streamed", "batched"]
"""Views that hold just what their source has."""

KEYS = [*range(8), 99]


def rows(keys: list[int], number: int) -> dict[str, list[Any]]:
    """One row a key, with nulls and empty lists among the values."""
    return {
        "key": keys,
        "at": [day(number)] * len(keys),
        "amount": [None if key % 4 == 3 else key + number / 4 for key in keys],
        "note": [None if key % 3 == 2 else f"n{key}·{number}" for key in keys],
        "marks": [[[], [key], [1, 2, number], None][key % 4] for key in keys],
    }


def source(folder: Path, name: str) -> FileSource:
    """A file of its own, as pushes to the offline store change it."""
    kinds = {"amount": pa.float64(), "note": pa.string(), "marks": pa.list_(pa.int64())}
    schema = pa.schema([("key", pa.int64()), ("at", pa.timestamp("us", "UTC")), *kinds.items()])
    path = folder / f"{name}.parquet"
    table = pa.concat_tables([pa.table(rows(list(range(6)), number), schema=schema) for number in range(2)])
    pq.write_table(table, path)
    return FileSource(path=str(path), timestamp_field="at")


def views(folder: Path) -> list[Any]:
    folder.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {"entities": [KEY], "schema": [Field(name="key", dtype=Int64), *SCHEMA]}
    pushed = FeatureView(name="pushed", source=PushSource(name="push", batch_source=source(folder, "push")), **common)
    streamed = StreamFeatureView(
        name="streamed", source=PushSource(name="stream", batch_source=source(folder, "stream")), **common
    )
    kafka = KafkaSource(
        name="topic",
        timestamp_field="at",
        batch_source=source(folder, "topic"),
        message_format=JsonFormat(schema_json="key integer, at timestamp, amount double"),
        kafka_bootstrap_servers="localhost:1",
        topic="topic",
    )
    from_kafka = StreamFeatureView(name="from_kafka", source=kafka, **common)
    batched = BatchFeatureView(name="batched", source=source(folder, "batch"), online=True, **common)
    labels = LabelView(
        name="labels",
        entities=[KEY],
        schema=[*common["schema"], Field(name="labeler", dtype=String)],
        source=PushSource(name="label_push", batch_source=source(folder, "label")),
    )

    @on_demand_feature_view(
        entities=[KEY],
        sources=[pushed],
        schema=[Field(name="twice", dtype=Float64)],
        mode="python",
        write_to_online_store=True,
    )
    def written(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"twice": [2 * (amount or 0.0) for amount in inputs["amount"]]}

    return [KEY, pushed, streamed, from_kafka, batched, labels, written]


@pytest.fixture(params=WAYS)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[FeatureStore]]:
    """Quorin, written in one of the two ways, and SQLite; where the log is makes no difference here."""
    segments = tmp_path / "segments"
    segments.mkdir()
    quorin = {"type": "feast_quorin.QuorinOnlineStore", "shm_dir": str(segments), "capacity": 64}
    sqlite = {"type": "sqlite", "path": str(tmp_path / "sqlite" / "online.db")}
    stores = []
    for name, online, more in (("quorin", quorin, WAYS[request.param]), ("sqlite", sqlite, {})):
        store = make_store(tmp_path / name, online, data=tmp_path, **more)
        store.apply(views(tmp_path / name / "data"))
        stores.append(store)
    yield stores
    stores[0].teardown()
    assert list(segments.glob("quorin_*")) == []


def agree(both: list[FeatureStore], *names: str) -> None:
    """All features of the views, of many rows and of one: by a plan, by Feast's path, and of SQLite."""
    features = [f"{name}:{field}" for name in names for field in ("amount", "note", "marks")]
    for keys in (KEYS, [1]):
        request: dict[str, Any] = {"features": features, "entity_rows": {"key": keys}, "full_feature_names": True}
        fast = both[0].get_online_features(**request)
        assert isinstance(fast, LazyResponse)
        expected = both[1].get_online_features(**request)
        same(fast, expected)
        same(generic(both[0], **request), expected)


def agree_on_written(both: list[FeatureStore]) -> None:
    """The values of what is computed when written; its event times are those of the writing."""
    request: dict[str, Any] = {"features": ["written:twice", "pushed:amount"], "entity_rows": {"key": KEYS}}
    fast = both[0].get_online_features(**request)
    assert isinstance(fast, LazyResponse)
    assert fast.to_dict() == generic(both[0], **request).to_dict() == both[1].get_online_features(**request).to_dict()


def push_async(store: FeatureStore, name: str, given: pd.DataFrame, **how: Any) -> None:
    """Push as a feature server does; Feast's SQLite store can't."""
    if store.config.online_store.type == "sqlite":
        store.push(name, given, **how)
    else:
        asyncio.run(store.push_async(name, given, **how))


def write_async(store: FeatureStore, name: str, given: pd.DataFrame) -> None:
    if store.config.online_store.type == "sqlite":
        store.write_to_online_store(name, given)
    else:
        asyncio.run(store.write_to_online_store_async(name, given))


def frame(number: int, keys: list[int]) -> pd.DataFrame:
    return pd.DataFrame(rows(keys, number))


def test_every_kind_is_materialized(both: list[FeatureStore]) -> None:
    for store in both:
        store.materialize(START, day(0) + dt.timedelta(hours=1))
    agree(both, *PLAIN, "from_kafka", "labels")
    agree_on_written(both)
    for store in both:
        store.materialize_incremental(END)
    agree(both, *PLAIN, "from_kafka", "labels")
    agree_on_written(both)
    assert both[0].get_online_features(["written:twice"], {"key": [2, 99]}).to_dict()["twice"] == [4.5, None]


@pytest.mark.parametrize("both", ["Feast's engine"], indirect=True)
@pytest.mark.parametrize("mode", list(PushMode))
def test_every_push_mode(both: list[FeatureStore], mode: PushMode) -> None:
    for store in both:
        store.materialize(START, END)
        for name in ("push", "stream"):
            store.push(name, frame(2, [1, 3, 7]), to=mode)
        push_async(store, "stream", frame(3, [3, 6]), to=mode)
        if mode is PushMode.ONLINE:
            store.push("label_push", frame(2, [1, 3, 7]).assign(labeler="me"))
    agree(both, "pushed", "streamed", "labels")
    online = both[0].get_online_features(["streamed:note"], {"key": [7, 6]}).to_dict()["note"]
    assert online == ([None, None] if mode is PushMode.OFFLINE else ["n7·2", "n6·3"])
    lengths = [pq.read_metadata(Path(store.repo_path) / "data" / "stream.parquet").num_rows for store in both]
    assert lengths == ([12, 12] if mode is PushMode.ONLINE else [17, 17])


def test_every_kind_is_written_to(both: list[FeatureStore]) -> None:
    for store in both:
        for name in (*PLAIN, "from_kafka"):
            store.write_to_online_store(name, frame(2, [1, 3, 7]))
            write_async(store, name, frame(3, [3, 6]))
            store.write_to_online_store(name, inputs=rows([0], 2))
        store.write_to_online_store("written", frame(2, [1, 3, 7]))
        write_async(store, "written", frame(3, [3, 6]))
        store.write_to_online_store("written", pd.DataFrame({"key": [0], "twice": [0.5]}), transform_on_write=False)
    agree(both, *PLAIN, "from_kafka")
    agree_on_written(both)


@pytest.mark.parametrize("both", ["ours"], indirect=True)
def test_frames_with_nothing_in_them_are_passed_over_as_by_feast(both: list[FeatureStore]) -> None:
    nothing = frame(2, [1]).assign(amount=None, note=None, marks=None)
    for store in both:
        for given in (frame(2, []), nothing):
            with pytest.warns(UserWarning, match="Cannot write"):
                store.write_to_online_store("pushed", given)
    agree(both, "pushed")


@pytest.mark.parametrize("both", ["ours"], indirect=True)
def test_a_plan_says_what_an_apply_would_do_and_does_nothing(both: list[FeatureStore], tmp_path: Path) -> None:
    segments = sorted(path.name for path in (tmp_path / "segments").iterdir())
    more = FeatureView(
        name="more", entities=[KEY], schema=[*SCHEMA], source=source(tmp_path / "quorin" / "data", "more")
    )
    transitions = []
    for store in both:
        kept = store.get_feature_view("pushed")
        wanted = RepoContents(
            projects=[store.get_project(store.project)],
            data_sources=[more.batch_source, *store.list_data_sources()],
            feature_views=[more, kept],
            on_demand_feature_views=store.list_on_demand_feature_views(),
            stream_feature_views=[],
            label_views=store.list_label_views(),
            entities=[KEY],
            feature_services=[],
            permissions=[],
        )
        registry_diff, infra_diff, _ = store.plan(wanted)
        named = [each for each in registry_diff.feast_object_diffs if "/" not in each.name]  # others are files
        transitions.append(sorted((each.name, each.transition_type.name) for each in named))
        if store is both[0]:
            assert infra_diff.infra_object_diffs == []
    assert transitions[0] == transitions[1]
    assert ("more", "CREATE") in transitions[0]
    assert ("batched", "DELETE") in transitions[0]
    assert sorted(path.name for path in (tmp_path / "segments").iterdir()) == segments
    agree(both, *PLAIN)


@pytest.mark.parametrize("both", ["ours"], indirect=True)
def test_a_store_is_initialized_closed_and_used_again(both: list[FeatureStore]) -> None:
    ours, request = both[0], {"features": ["pushed:note"], "entity_rows": {"key": [1]}}
    online = ours._get_provider().online_store

    async def served() -> list[Any]:
        answers = []
        for number in range(2):
            await ours.initialize()
            await ours.push_async("push", frame(number, [1]))
            answers.append((await ours.get_online_features_async(**request)).to_dict()["note"])
            await ours.close()
            assert online._session is None
        return answers

    assert asyncio.run(served()) == [["n1·0"], ["n1·1"]]
    assert ours.get_online_features(**request).to_dict()["note"] == ["n1·1"]


@pytest.mark.parametrize("both", ["ours"], indirect=True)
def test_async_reads_and_writes_beside_each_other(both: list[FeatureStore]) -> None:
    ours = both[0]
    assert ours._get_provider().async_supported.online.read
    assert ours._get_provider().async_supported.online.write

    async def count_up() -> None:
        for number in range(1, 20):
            time = day(0) + dt.timedelta(seconds=number)
            one = {"key": [1], "at": [time], "amount": [float(number)], "note": [str(number)], "marks": [[number]]}
            await ours.push_async("push", pd.DataFrame(one))

    async def read(writing: asyncio.Task[None]) -> list[float]:
        seen = [0.0]
        while seen[-1] < 19:
            done = writing.done()
            answer = await ours.get_online_features_async(["pushed:amount", "pushed:note"], {"key": [1]})
            amount, note = (answer.to_dict()[name][0] for name in ("amount", "note"))
            assert (amount, note) == (None, None) or note == str(int(amount))
            seen.append(amount or 0.0)
            assert not done or seen[-1] == 19
            await asyncio.sleep(0)
        return seen

    async def scenario() -> list[float]:
        writing = asyncio.create_task(count_up())
        seen = await read(writing)
        await writing
        return seen

    seen = asyncio.run(scenario())
    assert seen == sorted(seen)
