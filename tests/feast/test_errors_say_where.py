"""Errors of Feast's calls name view, row, join key or feature, as the user does, and none of the engine's names."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Float32, Int32, Int64, String

from feast_quorin.write import rows as writing
from quorin.errors import EntityIdTooLongError, InvalidRowError
from tests.feast.repos import END, START, day, make_store

PROVIDER, ENGINE = "feast_quorin.QuorinProvider", {"type": "feast_quorin.QuorinComputeEngine"}
CITY = Entity(name="town", join_keys=["city"], value_type=ValueType.STRING)
SHOP = Entity(name="store", join_keys=["shop"], value_type=ValueType.INT64)
TYPES = {
    "small": Int32,
    "big": Int64,
    "half": Float32,
    "label": String,
    "sizes": Array(Int32),
    "shares": Array(Float32),
}
GOOD: dict[str, Any] = {
    "city": "Oslo", "shop": 7, "small": 1, "big": 2, "half": 0.5, "label": "x", "sizes": [1], "shares": [0.5],
    "at": day(1), "made": day(1),
}  # fmt: skip
BAD = 3
"""The row that has something wrong."""

FRAMES: dict[str, tuple[str, Any, str]] = {
    "a null join key": ("city", None, r"\(city=None, shop=7\): join key 'city': .*null"),
    "a join key out of range": ("shop", 2**63, "join key 'shop': expected INT64: .*9223372036854775808"),
    "an integer out of range": ("small", 2**40, rf"shop=7\), feature 'small': .*{2**40}"),
    "a wide integer out of range": ("big", 2**63, rf"feature 'big': .*{2**63}"),
    "a list's integer out of range": ("sizes", [1, 2**40], rf"feature 'sizes': .*{2**40}"),
    "a list's float out of range": ("shares", [1e300], r"feature 'shares': .*float.*1e\+300"),
    "no event time": ("at", None, "event time 'at': expected a time, got null"),
    "an event time after 2262": ("at", dt.datetime(3000, 1, 1, tzinfo=dt.UTC), "event time 'at': .*got 3000-01-01"),
    "an event time before 1677": ("at", dt.datetime(1, 1, 1, tzinfo=dt.UTC), "event time 'at': .*got 0001-01-01"),
    "a created time after 2262": ("made", dt.datetime(3000, 1, 1, tzinfo=dt.UTC), "created time 'made': .*3000-01-01"),
}


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[dict[str, FeatureStore]]:
    """Feast's own provider and Quorin's, over one online store."""
    (tmp_path / "segments").mkdir()
    write(tmp_path, [GOOD])
    source = FileSource(path=str(tmp_path / "sales.parquet"), timestamp_field="at", created_timestamp_column="made")
    fields = [Field(name=name, dtype=kind) for name, kind in TYPES.items()]
    view = FeatureView(name="daily-sales", entities=[CITY, SHOP], schema=fields, source=source)
    settings = {"type": "feast_quorin.QuorinOnlineStore", "shm_dir": str(tmp_path / "segments"), "capacity": 64}
    made = {
        "feast": make_store(tmp_path / "repo", settings, data=tmp_path),
        "quorin": make_store(tmp_path / "repo", settings, data=tmp_path, provider=PROVIDER, batch_engine=ENGINE),
    }
    made["feast"].apply([CITY, SHOP, view])
    yield made
    made["feast"].teardown()


def columns(rows: list[dict[str, Any]]) -> dict[str, pa.Array]:
    """Columns as wide as they need to be for what is wrong in them."""
    kinds = {"at": pa.timestamp("us", "UTC"), "made": pa.timestamp("us", "UTC")}
    made = {}
    for name in GOOD:
        values = [row[name] for row in rows]
        is_huge = any(value == 2**63 for value in values)
        made[name] = pa.array(values, pa.uint64() if is_huge else kinds.get(name))
    return made


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.table(columns(rows)), folder / "sales.parquet")


def with_bad(name: str, value: Any, before: int = BAD) -> list[dict[str, Any]]:
    return [*[GOOD] * before, {**GOOD, name: value}, GOOD]


def refused(caught: pytest.ExceptionInfo[Exception], row: int, expected: str) -> None:
    assert caught.match(rf"view 'daily-sales', row {row}\b.*{expected}")
    assert "__" not in str(caught.value)


@pytest.mark.parametrize("name", FRAMES)
def test_frames_by_quorins_provider(
    stores: dict[str, FeatureStore], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    column, value, expected = FRAMES[name]
    table = pa.table(columns(with_bad(column, value)))
    for chunk in (writing.TABLE_CHUNK_ROWS, 2):
        monkeypatch.setattr(writing, "TABLE_CHUNK_ROWS", chunk)
        with pytest.raises(InvalidRowError) as caught:
            stores["quorin"]._get_provider().online_store.write_table(
                stores["quorin"].config, stores["quorin"].get_feature_view("daily-sales"), table, None
            )
        refused(caught, BAD, expected)
    with pytest.raises(InvalidRowError) as caught:
        stores["quorin"].write_to_online_store("daily-sales", table.slice(BAD, 1).to_pandas())
    refused(caught, 0, expected)


@pytest.mark.parametrize("name", [name for name in FRAMES if "event time" not in name])
def test_materializations_by_quorins_engine(stores: dict[str, FeatureStore], tmp_path: Path, name: str) -> None:
    column, value, expected = FRAMES[name]
    write(tmp_path, with_bad(column, value)[: BAD + 1])
    with pytest.raises(InvalidRowError) as caught:
        stores["quorin"].materialize(START, END)
    # Of rows of one entity the engine has chosen one before it converts any.
    refused(caught, {"city": 1, "shop": 1, "made": BAD}.get(column, 0), expected)


def test_frames_with_columns_of_several_types(stores: dict[str, FeatureStore]) -> None:
    frame = pd.DataFrame(with_bad("label", 5))
    with pytest.raises(InvalidRowError) as caught:
        stores["quorin"].write_to_online_store("daily-sales", frame)
    refused(caught, BAD, "column 'label': ")


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (0, EntityKey(join_keys=["city", "shop"], entity_values=[Value(string_val="a"), Value()]), "'shop': .*null"),
        (1, {**dict.fromkeys(TYPES, Value()), "small": Value(string_val="x")}, "feature 'small': .*got string_val"),
        (2, None, "event time: expected a time, got None"),
        (2, pd.NaT, "event time: expected a time, got NaT"),
        (2, dt.datetime(3000, 1, 1, tzinfo=dt.UTC), "event time: .*got 3000-01-01"),
        (3, dt.datetime(1, 1, 1, tzinfo=dt.UTC), "created time: .*got 0001-01-01"),
    ],
)
def test_rows_of_protos(
    stores: dict[str, FeatureStore], place: int, value: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stores["feast"]
    view = store.get_feature_view("daily-sales")
    key = EntityKey(join_keys=["city", "shop"], entity_values=[Value(string_val="Oslo"), Value(int64_val=7)])
    good = (key, dict.fromkeys(TYPES, Value()), day(1), None)
    bad = (*good[:place], value, *good[place + 1 :])
    partial = (key, {"big": Value()}, day(1), None)
    for chunk in (writing.CHUNK_ROWS, 3, 2):
        monkeypatch.setattr(writing, "CHUNK_ROWS", chunk)
        for rows in ([good] * BAD + [bad], [good, partial, good, bad], [good] * BAD + [bad, good, good]):
            with pytest.raises(InvalidRowError) as caught:
                store._get_provider().online_write_batch(store.config, view, rows, None)
            refused(caught, BAD, expected)


def test_a_key_that_is_too_long(stores: dict[str, FeatureStore]) -> None:
    for store in stores.values():
        with pytest.raises(EntityIdTooLongError) as caught:
            store.write_to_online_store("daily-sales", pd.DataFrame(with_bad("city", "x" * 5000)))
        refused(caught, BAD, r"\(city='x.*at most 4096 bytes, got 5002")


def test_times_that_are_written_by_feasts_provider(stores: dict[str, FeatureStore]) -> None:
    at = np.array(["2024-05-01"] * BAD + ["3000-01-01", "2024-05-01"], "datetime64[us]")
    frame = pd.DataFrame(with_bad("label", "x")).assign(at=at)
    with pytest.raises(InvalidRowError) as caught:
        stores["feast"].write_to_online_store("daily-sales", frame)
    refused(caught, BAD, "event time: .*got 3000-01-01")


@pytest.mark.parametrize(("value", "error"), [(None, TypeError), ("seven", ValueError), (2**64, ValueError)])
def test_reads(stores: dict[str, FeatureStore], value: Any, error: type[Exception]) -> None:
    rows = [{"city": "Oslo", "shop": 7}] * BAD + [{"city": "Oslo", "shop": value}]
    with pytest.raises(error) as caught:
        stores["feast"].get_online_features(["daily-sales:small"], rows)
    refused(caught, BAD, rf"join key 'shop': got {value!r}")


def test_reads_of_single_views(stores: dict[str, FeatureStore]) -> None:
    store = stores["feast"]
    keys = [
        EntityKey(join_keys=["city", "shop"], entity_values=[Value(string_val="a"), shop])
        for shop in [*[Value(int64_val=7)] * BAD, Value()]
    ]
    with pytest.raises(InvalidRowError) as caught:
        store._get_provider().online_read(store.config, store.get_feature_view("daily-sales"), keys)
    refused(caught, BAD, r"\(city='a', shop=None\): join key 'shop': .*null")


def test_reads_of_keys_that_are_no_text(stores: dict[str, FeatureStore]) -> None:
    rows = [{"city": "Oslo", "shop": 7}] * BAD + [{"city": "\ud800", "shop": 7}]
    with pytest.raises(ValueError, match="join key 'city'") as caught:
        stores["feast"].get_online_features(["daily-sales:small"], rows)
    refused(caught, BAD, r"join key 'city': got '\\ud800'")
