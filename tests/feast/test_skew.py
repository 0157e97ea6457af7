"""What views serve against Feast's own offline store: all kinds of keys and values, TTL, and the command."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.data_source import PushMode
from feast.types import Float32, Int64, Map

from feast_quorin import skew
from feast_quorin.names import schema_name
from quorin.errors import RepositoryError
from quorin.offline import SkewReport
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from tests.feast.repos import CUSTOMERS, DRIVERS, END, START, day, definitions, make_store, write_data
from tests.support.commands import run_quorin


def kinds(report: SkewReport) -> dict[str, int]:
    return {kind: count for kind, count in report.rows.items() if count}


def wrong(report: SkewReport) -> dict[str, dict[str, int]]:
    return {
        field.name: {kind: count for kind, count in field.counts.items() if count}
        for field in report.fields
        if field.skewed
    }


def test_materialized_views_have_no_skew(store):
    """Every type, composite and awkward keys, a view without entities; now, and as of a time between."""
    store.materialize(START, END)
    reports = {report.name: report for report in skew(store)}
    assert {name: kinds(report) for name, report in reports.items()} == {
        "driver_stats": {"equal": len(DRIVERS)},
        "customer_stats": {"equal": len(CUSTOMERS)},
        "pair_stats": {"equal": 12},
        "world": {"equal": 1},
    }
    assert {name: wrong(report) for name, report in reports.items()} == {name: {} for name in reports}
    [earlier] = skew(store, ["customer_stats"], as_of=day(1))
    assert kinds(earlier) == {"newer": len(CUSTOMERS)}
    [unlike] = skew(store, ["driver_stats"], as_of=day(1).replace(tzinfo=None), features=["trips"], seed=1)
    assert (kinds(unlike), [field.name for field in unlike.fields]) == ({"newer": len(DRIVERS)}, ["trips"])


@pytest.mark.parametrize("online_store", ["embedded"], indirect=True)
def test_what_was_not_materialized_is_stale_or_missing(store):
    before = skew(store, ["customer_stats"])[0]
    assert kinds(before) == {"missing": len(CUSTOMERS)}
    assert wrong(before)["score"] == {"missing": len(CUSTOMERS)}
    store.materialize(START, START + dt.timedelta(days=1))
    report = skew(store, ["customer_stats"], examples=len(CUSTOMERS))[0]
    assert kinds(report) == {"stale": len(CUSTOMERS)}
    assert report.staleness_seconds is not None
    assert report.staleness_seconds["max"] == 2 * 86_400
    [score] = [field for field in report.fields if field.name == "score"]
    example = next(one for one in score.examples if one.entity_id == "alice")
    assert (example.served, example.offline) == (1.0, 1.5)


@pytest.mark.parametrize("online_store", ["embedded"], indirect=True)
def test_pushed_rows_are_newer_and_other_values_of_the_same_event_are_different(store):
    store.materialize(START, END)
    frame = pd.DataFrame(
        {
            "customer": ["alice", "new", "Åse"],
            "at": [END, END, day(2)],
            "score": [9.0, 9.0, -1.0],
            "city": ["Oslo", None, "c4·2"],
        }
    )
    store.push("customer_push", frame, to=PushMode.ONLINE)
    report = skew(store, ["customer_stats"], examples=1)[0]
    assert kinds(report) == {"equal": len(CUSTOMERS) - 2, "different": 1, "newer": 2}
    assert wrong(report) == {"score": {"different": 1}}


@pytest.mark.parametrize("online_store", ["embedded"], indirect=True)
def test_rows_that_are_pushed_meanwhile_are_no_skew(store):
    store.materialize(START, START + dt.timedelta(days=1))

    def progress(done: int, total: int) -> None:
        if done == 3:  # What is served has been read, and the offline store too.
            store.materialize(START, END)

    assert kinds(skew(store, ["customer_stats"], progress=progress)[0]) == {"changed": len(CUSTOMERS)}


@pytest.fixture
def shop(online_store: dict[str, Any], tmp_path: Path) -> Any:
    """A store that a test defines the views of."""
    store = make_store(tmp_path / "shop", online_store, data=tmp_path)
    yield store
    store.teardown()


def view_of(folder: Path, rows: list[dict[str, Any]], **more: Any) -> FeatureView:
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, folder / "rows.parquet")
    source = FileSource(
        path=str(folder / "rows.parquet"), timestamp_field="at", field_mapping={"key": "driver_id", "value": "rate"}
    )
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    schema = [Field(name="rate", dtype=Float32), Field(name="big", dtype=Int64), Field(name="prefs", dtype=Map)]
    return FeatureView(
        name="rates",
        entities=[driver],
        schema=schema,
        source=PushSource(name="rates_push", batch_source=source) if more.pop("push", False) else source,
        **more,
    )


@pytest.mark.parametrize("online_store", ["embedded"], indirect=True)
def test_rows_past_the_ttl_are_not_expected_and_mapped_columns_are_found(shop, tmp_path):
    rows = [
        {"key": number, "at": day(number), "value": number / 4, "big": 2**53 + number, "prefs": {"a": number, "b": 2}}
        for number in range(3)
    ]
    view = view_of(tmp_path, rows, ttl=dt.timedelta(days=1, hours=1))
    shop.apply([Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64), view])
    shop.materialize(START, END)
    [report] = skew(shop, as_of=day(2))
    assert (kinds(report), wrong(report)) == (
        {"equal": 2, "expired": 1},
        {name: {"expired": 1} for name in ("rate", "big", "prefs")},
    )
    assert report.exceeded(0.4) == []


@pytest.mark.parametrize("online_store", ["embedded"], indirect=True)
def test_what_cannot_be_compared_is_refused_by_name(store, sqlite_store, data):
    with pytest.raises(
        RepositoryError, match=r"a feature view with a batch source, got 'boosted'; there are \['driver"
    ):
        skew(store, ["boosted"])
    with pytest.raises(RepositoryError, match=r"'world' has no features \['x'\], it has \['fuel_price'\]"):
        skew(store, ["world"], features=["x"])
    with pytest.raises(RepositoryError, match="got SqliteOnlineStore"):
        skew(sqlite_store)
    store.materialize(START, END)
    shutil.move(data / "world.parquet", data / "world.away")
    try:
        with pytest.raises(RepositoryError, match="offline store cannot read the source of 'world': FileNotFoundError"):
            skew(store, ["world"])
    finally:
        shutil.move(data / "world.away", data / "world.parquet")


@pytest.mark.parametrize("online_store", ["embedded"], indirect=True)
def test_the_command_compares_with_feasts_offline_store(online_store, tmp_path, monkeypatch):
    repo = tmp_path / "repo"
    write_data(repo / "data")
    (repo / "feature_store.yaml").write_text(
        json.dumps(
            {
                "project": "shop",
                "provider": "local",
                "registry": "data/registry.db",
                "online_store": online_store,
                "entity_key_serialization_version": 3,
            }
        )
    )
    store = FeatureStore(str(repo))
    store.apply(definitions(repo / "data"))
    store.materialize(START, END)
    segments = SegmentRegistry(str(repo / "data" / "quorin"), shm_dir=online_store["shm_dir"])
    with (
        WALProducer(segments.backend, registry=segments) as producer,
        segments.open_stored(schema_name("shop", "world")) as world,
    ):
        producer.write(world.schema, r"\e", {"fuel_price__double": 99.0}, int(day(2).timestamp()) * 10**9)
    words = ["world", "driver_stats", "--json", "--html", "skew.html", "--textfile", "skew.prom", "--threshold", "0.5"]
    found = run_quorin(["skew", *words], {**os.environ}, directory=repo)
    assert found.returncode == 1, found.stderr
    assert found.stderr.strip().endswith("skewed by more than 0.5 of the entities: world: fuel_price")
    [one, other] = json.loads(found.stdout)["views"]
    assert (one["name"], one["rows"]["different"], one["exceeded"]) == ("world", 1, ["fuel_price"])
    [example] = one["fields"][0]["examples"]
    assert (example["served"], example["offline"]) == (99.0, 3.5)
    assert (other["rows"]["equal"], other["exceeded"]) == (len(DRIVERS), [])
    page = (repo / "skew.html").read_text()
    assert "fuel_price" in page
    assert "99.0" in page
    assert (
        'quorin_skew_values{field="fuel_price",kind="different",view="world"} 1.0' in (repo / "skew.prom").read_text()
    )
    store.teardown()
