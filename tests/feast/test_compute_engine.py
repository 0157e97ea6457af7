"""Materialization through the compute engine and frames through the provider: what Feast's own ways give, as Arrow."""

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
from feast import BatchFeatureView, Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.data_source import PushMode
from feast.types import Float64, Int32, Int64, String

from feast_quorin import QuorinOnlineStore
from feast_quorin.config import ConfigError
from quorin.errors import InvalidRowError, ReplaceAbortedError
from tests.feast.conftest import make_sqlite_store
from tests.feast.repos import DRIVERS, END, REQUESTS, START, ask, day, definitions, make_store
from tests.feast.test_against_sqlite import same

ENGINE = {"type": "feast_quorin.QuorinComputeEngine"}
PROVIDER = "feast_quorin.QuorinProvider"
DRIVER = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)


@pytest.fixture
def arrow_store(online_store: dict[str, Any], data: Path, tmp_path: Path) -> Iterator[FeatureStore]:
    """An applied, empty store that writes through our engine and our provider."""
    store = make_store(tmp_path / "repo", online_store, data=data, batch_engine=ENGINE, provider=PROVIDER)
    store.apply(definitions(data))
    yield store
    store.teardown()
    assert list(Path(online_store["shm_dir"]).glob("quorin_*")) == []


@pytest.fixture
def no_protos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test whose rows go through protobuf."""

    def refuse(*_: Any) -> None:
        raise AssertionError("rows were written as protobuf")

    monkeypatch.setattr(QuorinOnlineStore, "online_write_batch", refuse)


def source(folder: Path, rows: dict[str, Any], **settings: Any) -> FileSource:
    path = folder / "source.parquet"
    pq.write_table(pa.table(rows), path)
    return FileSource(path=str(path), timestamp_field="at", **settings)


@pytest.mark.usefixtures("no_protos")
def test_materialized_features_are_the_same(arrow_store: FeatureStore, sqlite_store: FeatureStore) -> None:
    arrow_store.materialize(START, END)
    for name in REQUESTS:
        same(ask(arrow_store, name), ask(sqlite_store, name))


@pytest.mark.usefixtures("no_protos")
def test_incremental_materialization_is_the_same(arrow_store: FeatureStore, data: Path, tmp_path: Path) -> None:
    both = [arrow_store, make_sqlite_store(tmp_path / "sqlite", data)]
    for until in (day(0), day(1) + dt.timedelta(hours=1), END):
        for store in both:
            store.materialize_incremental(until)
        for name in REQUESTS:
            same(*(ask(store, name) for store in both))


@pytest.mark.parametrize("latest", [False, True])
@pytest.mark.usefixtures("no_protos")
def test_columns_are_mapped_and_the_newest_row_wins(arrow_store: FeatureStore, tmp_path: Path, latest: bool) -> None:
    arrow_store.config.materialization_config.pull_latest_features = latest
    mapping = {"id": "driver_id", "value": "n"}
    rows = {
        "id": [1, 1, 1, 2],
        "value": [1, 2, 3, 4],
        "at": [day(1), day(1), day(0), day(0)],
        "created": [day(2), day(1), day(2), day(1)],
    }
    given = source(tmp_path, rows, field_mapping=mapping, created_timestamp_column="created")
    view = FeatureView(name="mapped", entities=[DRIVER], schema=[Field(name="n", dtype=Int64)], source=given)
    arrow_store.apply([DRIVER, view])
    arrow_store.materialize(START, END, feature_views=["mapped"])
    answer = arrow_store.get_online_features(["mapped:n"], {"driver_id": [1, 2]}).to_dict()
    assert answer == {"driver_id": [1, 2], "n": [1, 4]}


@pytest.mark.usefixtures("no_protos")
def test_feasts_progress_bar_counts_the_rows(arrow_store: FeatureStore, capfd: pytest.CaptureFixture[str]) -> None:
    arrow_store.materialize(START, END, feature_views=["driver_stats"])
    assert f"100%|{'█' * 3}" in (said := capfd.readouterr().err)
    assert f"{len(DRIVERS)}/{len(DRIVERS)}" in said


@pytest.mark.usefixtures("no_protos")
def test_transformations_are_the_local_engines(arrow_store: FeatureStore, tmp_path: Path) -> None:
    rows = {"driver_id": [1, 2, 1], "n": [1, 2, 3], "at": [day(1)] * 3}
    given = source(tmp_path, rows)
    changed = BatchFeatureView(
        name="changed",
        entities=[DRIVER],
        schema=[Field(name="n", dtype=Int64)],
        source=given,
        mode="pandas",
        udf=_tenfold,
        udf_string="tenfold",
        online=True,
    )
    arrow_store.apply([DRIVER, changed])
    arrow_store.materialize(START, END, feature_views=["changed"])
    answer = arrow_store.get_online_features(["changed:n"], {"driver_id": [1, 2]}).to_dict()
    assert answer["n"] == [30, 20]


def test_a_view_that_is_kept_offline_too_is_written_there(
    arrow_store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = source(tmp_path, {"driver_id": [1], "n": [1], "at": [day(1)]})
    view = FeatureView(
        name="both", entities=[DRIVER], schema=[Field(name="n", dtype=Int64)], source=given, offline=True
    )
    arrow_store.apply([DRIVER, view])
    written: list[pa.Table] = []
    offline = arrow_store._get_provider().batch_engine.offline_store
    monkeypatch.setattr(offline, "offline_write_batch", lambda **call: written.append(call["table"]))
    arrow_store.materialize(START, END, feature_views=["both"])
    assert [table.column("n").to_pylist() for table in written] == [[1]]
    assert arrow_store.get_online_features(["both:n"], {"driver_id": [1]}).to_dict()["n"] == [1]


def test_another_online_store_is_written_as_feast_writes_it(
    data: Path, tmp_path: Path, sqlite_store: FeatureStore
) -> None:
    online = {"type": "sqlite", "path": str(tmp_path / "online.db")}
    store = make_store(tmp_path / "repo", online, data=data, batch_engine=ENGINE, provider=PROVIDER)
    store.apply(definitions(data))
    store.materialize(START, END)
    for name in REQUESTS:
        same(ask(store, name), ask(sqlite_store, name))
    store.push("customer_push", pushed())
    assert store.get_online_features(["customer_stats:score"], {"customer": ["new"]}).to_dict()["score"] == [1.0]
    with pytest.raises(NotImplementedError, match="SqliteOnlineStore"):
        asyncio.run(store.push_async("customer_push", pushed()))


def test_an_error_in_the_data_is_raised(arrow_store: FeatureStore, tmp_path: Path) -> None:
    given = source(tmp_path, {"driver_id": [1], "n": ["many"], "at": [day(1)]})
    view = FeatureView(name="wrong", entities=[DRIVER], schema=[Field(name="n", dtype=Int64)], source=given)
    arrow_store.apply([DRIVER, view])
    with pytest.raises(
        InvalidRowError, match=r"view 'wrong', row 0 \(driver_id=1\), feature 'n': expected INT64.*many"
    ):
        arrow_store.materialize(START, END, feature_views=["wrong"])


def pushed(time: dt.datetime = END) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "customer": ["alice", "new", "", "bob|carol"],
            "at": pd.to_datetime([time] * 4),
            "score": [99.5, 1.0, None, float("inf")],
            "city": ["Oslo", None, "", "名"],
        }
    )


@pytest.mark.usefixtures("no_protos")
@pytest.mark.parametrize("asynchronously", [False, True])
def test_pushed_and_written_frames_are_the_same(
    arrow_store: FeatureStore, data: Path, tmp_path: Path, asynchronously: bool
) -> None:
    both = [arrow_store, make_sqlite_store(tmp_path / "sqlite", data)]
    pairs = pd.DataFrame(
        {"customer": ["a", "b"], "driver_id": [1, 2], "at": pd.to_datetime([END] * 2), "rides": [5, 6]}
    )
    for store in both:
        if asynchronously and store is arrow_store:
            asyncio.run(store.push_async("customer_push", pushed()))
            asyncio.run(store.write_to_online_store_async("pair_stats", pairs))
        else:
            store.push("customer_push", pushed())
            store.write_to_online_store("pair_stats", pairs)
    rows = [{"customer": name} for name in ["alice", "new", "", "bob|carol", "Åse"]]
    same(*(store.get_online_features(["customer_stats:score", "customer_stats:city"], rows) for store in both))
    keys = {"customer": ["a", "b", "a"], "driver_id": [1, 2, 2]}
    same(*(store.get_online_features(["pair_stats:rides"], keys) for store in both))


@pytest.mark.usefixtures("no_protos")
@pytest.mark.parametrize("index", ["customer", "at", "score", ["customer", "score"]])
def test_an_index_with_a_name_is_a_column_as_in_feast(
    arrow_store: FeatureStore, data: Path, tmp_path: Path, index: Any
) -> None:
    both = [arrow_store, make_sqlite_store(tmp_path / "sqlite", data)]
    for store in both:
        for frame in (pushed(), pushed(END + dt.timedelta(hours=1))[1:2]):
            provider, view = store._get_provider(), store.get_feature_view("customer_stats")
            provider.ingest_df(view, frame.set_index(index))
    rows = [{"customer": name} for name in ["alice", "new", "", "bob|carol", "Åse"]]
    same(*(store.get_online_features(["customer_stats:score", "customer_stats:city"], rows) for store in both))


@pytest.mark.usefixtures("no_protos")
def test_frames_are_written_to_views_without_entities(arrow_store: FeatureStore) -> None:
    arrow_store.materialize(START, END, feature_views=["world"])
    for prices in ([7.5], [8.5, 9.5]):
        at = [END + dt.timedelta(hours=price) for price in prices]
        arrow_store.write_to_online_store("world", pd.DataFrame({"fuel_price": prices, "at": at}))
        answer = arrow_store.get_online_features(["world:fuel_price"], [{"driver_id": 1}]).to_dict()
        assert answer["fuel_price"] == prices[-1:]


@pytest.mark.usefixtures("no_protos")
def test_keys_that_are_out_of_range_are_refused_as_by_feast(arrow_store: FeatureStore, tmp_path: Path) -> None:
    small = Entity(name="small", join_keys=["small"], value_type=ValueType.INT32)
    schema = [Field(name="small", dtype=Int32), Field(name="n", dtype=Int64)]
    given = source(tmp_path, {"small": [1], "n": [1], "at": [day(1)]})
    arrow_store.apply([small, FeatureView(name="shorts", entities=[small], schema=schema, source=given)])
    for keys in ([2**31], [1, 2**31]):
        frame = pd.DataFrame({"small": keys, "n": keys, "at": [END] * len(keys)})
        with pytest.raises(ValueError, match=r"'small': expected INT32: .*2147483648 not in range"):
            arrow_store.write_to_online_store("shorts", frame)
    assert arrow_store.get_online_features(["shorts:n"], {"small": [1]}).to_dict()["n"] == [None]


@pytest.mark.parametrize("mode", list(PushMode))
def test_push_modes_write_where_they_say(arrow_store: FeatureStore, tmp_path: Path, mode: PushMode) -> None:
    given = source(tmp_path, {"driver_id": [1], "n": [1], "at": [day(1)]})
    view = FeatureView(
        name="live",
        entities=[DRIVER],
        schema=[Field(name="n", dtype=Int64)],
        source=PushSource(name="live_push", batch_source=given),
    )
    arrow_store.apply([DRIVER, view])
    frame = pd.DataFrame({"driver_id": [2], "n": [7], "at": pd.to_datetime([day(2)])})
    arrow_store.push("live_push", frame, to=mode)
    online = arrow_store.get_online_features(["live:n"], {"driver_id": [2]}).to_dict()["n"]
    assert online == [None if mode is PushMode.OFFLINE else 7]
    offline = pq.read_table(tmp_path / "source.parquet").column("n").to_pylist()
    assert sorted(offline) == ([1] if mode is PushMode.ONLINE else [1, 7])


@pytest.mark.usefixtures("no_protos")
def test_views_computed_when_written_are_the_same(arrow_store: FeatureStore, data: Path, tmp_path: Path) -> None:
    from feast.on_demand_feature_view import on_demand_feature_view

    customer, customer_stats = (thing for thing in definitions(data) if thing.name in ("customer", "customer_stats"))

    def doubled_score(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"twice": [2 * score for score in inputs["score"]], "label": [f"in {city}" for city in inputs["city"]]}

    both = [arrow_store, make_sqlite_store(tmp_path / "sqlite", data)]
    doubled = on_demand_feature_view(
        entities=[customer],
        sources=[customer_stats],
        schema=[Field(name="twice", dtype=Float64), Field(name="label", dtype=String)],
        mode="python",
        write_to_online_store=True,
    )(doubled_score)
    computed = pd.DataFrame({"customer": ["b"], "twice": [3.0], "label": ["by index"]}).set_index(["twice", "label"])
    for store in both:
        store.apply([customer, customer_stats, doubled])
        store.write_to_online_store("doubled_score", pd.DataFrame({"customer": ["z"], "score": [5.0], "city": ["q"]}))
        store._get_provider().ingest_df(store.get_on_demand_feature_view("doubled_score"), computed)
    features = ["doubled_score:twice", "doubled_score:label"]
    answers = [store.get_online_features(features, {"customer": ["z", "a", "b"]}).to_dict() for store in both]
    assert answers[0] == answers[1]
    assert answers[0] == {
        "customer": ["z", "a", "b"],
        "twice": [10.0, None, 3.0],
        "label": ["in q", None, "by index"],
    }


def _tenfold(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(n=frame["n"] * 10)


@pytest.fixture
def replacing_store(online_store: dict[str, Any], data: Path, tmp_path: Path) -> Iterator[FeatureStore]:
    """An applied, empty store whose materializations replace views."""
    engine = {**ENGINE, "mode": "replace"}
    store = make_store(tmp_path / "repo", online_store, data=data, batch_engine=engine, provider=PROVIDER)
    store.apply([DRIVER])
    yield store
    store.teardown()
    assert list(Path(online_store["shm_dir"]).glob("quorin_*")) == []


@pytest.mark.usefixtures("no_protos")
def test_a_materialization_replaces_the_view(replacing_store: FeatureStore, tmp_path: Path) -> None:
    store = replacing_store
    given = source(tmp_path, {"driver_id": [1, 2, 2], "n": [1, 2, 3], "at": [day(1), day(1), day(2)]})
    view = FeatureView(name="whole", entities=[DRIVER], schema=[Field(name="n", dtype=Int64)], source=given)
    store.apply([DRIVER, view])

    def answers() -> list[Any]:
        return store.get_online_features(["whole:n"], {"driver_id": [1, 2, 3]}).to_dict()["n"]

    store.materialize(START, END)
    assert answers() == [1, 3, None]
    source(tmp_path, {"driver_id": [2, 3], "n": [20, 30], "at": [day(1), day(1)]})
    store.materialize(START, END)
    assert answers() == [None, 20, 30]
    source(
        tmp_path,
        {
            "driver_id": pa.array([], pa.int64()),
            "n": pa.array([], pa.int64()),
            "at": pa.array([], pa.timestamp("us", "UTC")),
        },
    )
    with pytest.raises(ReplaceAbortedError, match="no rows"):
        store.materialize(START, END)
    assert answers() == [None, 20, 30]
    with pytest.raises(ConfigError, match="where the last interval ended"):
        store.materialize_incremental(END + dt.timedelta(days=1))
    assert answers() == [None, 20, 30]


def test_another_online_store_cannot_be_replaced(data: Path, tmp_path: Path) -> None:
    online = {"type": "sqlite", "path": str(tmp_path / "online.db")}
    store = make_store(
        tmp_path / "repo", online, data=data, batch_engine={**ENGINE, "mode": "replace"}, provider=PROVIDER
    )
    store.apply(definitions(data))
    with pytest.raises(ConfigError, match="mode: replace needs the online store quorin"):
        store.materialize(START, END)
