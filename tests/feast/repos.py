"""Feature repositories for tests: the same definitions and data, served by whichever store."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    OnDemandFeatureView,
    PushSource,
    RequestSource,
    ValueType,
)
from feast.repo_config import RepoConfig
from feast.transformation.pandas_transformation import PandasTransformation
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, Json, String, UnixTimestamp

START = dt.datetime(2024, 5, 1, tzinfo=dt.UTC)
DAYS = 3
END = START + dt.timedelta(days=DAYS)
DRIVERS = list(range(1001, 1013))
CUSTOMERS = ["", "alice", "bob|carol", "back\\slash", "Åse", "名前", "x" * 200, "1001"]


def day(number: int) -> dt.datetime:
    """Noon of a day of the data, counted from 0."""
    return START + dt.timedelta(days=number, hours=12)


def write_data(folder: Path) -> None:
    """One Parquet file a source: every entity has a row a day, with nulls and empty lists among the values."""
    folder.mkdir(parents=True, exist_ok=True)
    drivers = [_driver_row(driver, number) for number in range(DAYS) for driver in DRIVERS]
    pq.write_table(pa.Table.from_pylist(drivers, schema=_DRIVER_SCHEMA), folder / "drivers.parquet")
    customers = [
        {"customer": name, "at": day(n), "score": i + n / 4, "city": None if i % 3 == n else f"c{i}·{n}"}
        for n in range(DAYS)
        for i, name in enumerate(CUSTOMERS)
    ]
    pq.write_table(pa.Table.from_pylist(customers, schema=_CUSTOMER_SCHEMA), folder / "customers.parquet")
    pairs = [
        {"customer": name, "driver_id": driver, "at": day(n), "rides": driver % 10 * 100 + i + n}
        for n in range(DAYS)
        for i, name in enumerate(CUSTOMERS[:4])
        for driver in DRIVERS[:3]
    ]
    pq.write_table(pa.Table.from_pylist(pairs, schema=_PAIR_SCHEMA), folder / "pairs.parquet")
    world = [{"at": day(n), "fuel_price": 1.5 + n} for n in range(DAYS)]
    pq.write_table(pa.Table.from_pylist(world, schema=_WORLD_SCHEMA), folder / "world.parquet")


def make_store(
    repo: Path, online_store: dict[str, Any], *, project: str = "shop", data: Path | None = None, **settings: Any
) -> FeatureStore:
    """A store over a repository folder of its own; ``data`` is where the Parquet files are, and ``settings`` are other
    keys of ``feature_store.yaml``.
    """
    repo.mkdir(parents=True, exist_ok=True)
    if data is None:
        data = repo / "data"
        write_data(data)
    config = RepoConfig(
        project=project,
        online_store=online_store,
        entity_key_serialization_version=3,
        repo_path=repo,
        **{"provider": "local", "registry": str(repo / "registry.db"), **settings},
    )
    store = FeatureStore(config=config)
    store.repo_path = repo
    return store


def definitions(data: Path) -> list[Any]:
    """All kinds of keys and values, a push source, an on-demand view, and a service with aliases."""
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.STRING)
    driver_stats = FeatureView(
        name="driver_stats",
        entities=[driver],
        ttl=dt.timedelta(days=4000),
        schema=[Field(name=name, dtype=kind) for name, kind in DRIVER_FEATURES.items()],
        source=FileSource(path=str(data / "drivers.parquet"), timestamp_field="at", created_timestamp_column="created"),
    )
    customer_source = FileSource(path=str(data / "customers.parquet"), timestamp_field="at")
    customer_stats = FeatureView(
        name="customer_stats",
        entities=[customer],
        schema=[Field(name="score", dtype=Float64), Field(name="city", dtype=String)],
        source=PushSource(name="customer_push", batch_source=customer_source),
    )
    pair_stats = FeatureView(
        name="pair_stats",
        entities=[driver, customer],
        schema=[Field(name="rides", dtype=Int32)],
        source=FileSource(path=str(data / "pairs.parquet"), timestamp_field="at"),
    )
    world = FeatureView(
        name="world",
        entities=[],
        schema=[Field(name="fuel_price", dtype=Float64)],
        source=FileSource(path=str(data / "world.parquet"), timestamp_field="at"),
    )
    boost = RequestSource(name="boost", schema=[Field(name="factor", dtype=Float64)])
    boosted = OnDemandFeatureView(
        name="boosted",
        sources=[driver_stats, boost],
        schema=[Field(name="boosted_rate", dtype=Float64)],
        feature_transformation=PandasTransformation(udf=_boost, udf_string="boost"),
        mode="pandas",
    )
    service = FeatureService(
        name="rides",
        features=[
            driver_stats[["conv_rate", "tags"]].with_name("origin").with_join_key_map({"driver_id": "origin_id"}),
            driver_stats[["conv_rate"]].with_name("target").with_join_key_map({"driver_id": "target_id"}),
            customer_stats,
        ],
    )
    return [driver, customer, driver_stats, customer_stats, pair_stats, world, boosted, service]


DRIVER_FEATURES = {
    "conv_rate": Float32,
    "acc": Float64,
    "trips": Int64,
    "small": Int32,
    "active": Bool,
    "nick": String,
    "blob": Bytes,
    "joined": UnixTimestamp,
    "tags": Array(String),
    "embedding": Array(Float32),
    "counts": Array(Int64),
    "flags": Array(Bool),
    "prefs": Json,
}

REQUESTS: dict[str, dict[str, Any]] = {
    "every type": {
        "features": [f"driver_stats:{name}" for name in DRIVER_FEATURES],
        "entity_rows": [{"driver_id": driver} for driver in DRIVERS],
    },
    "missing and repeated entities, unsorted": {
        "features": ["driver_stats:conv_rate", "driver_stats:tags"],
        "entity_rows": [{"driver_id": driver} for driver in (1005, 7, 1001, 1005, 8)],
    },
    "strings as integer keys": {
        "features": ["driver_stats:trips"],
        "entity_rows": {"driver_id": ["1001", "1002"]},
    },
    "string keys": {
        "features": ["customer_stats:score", "customer_stats:city"],
        "entity_rows": {"customer": [*CUSTOMERS, "nobody"]},
    },
    "composite keys": {
        "features": ["pair_stats:rides"],
        "entity_rows": [{"customer": c, "driver_id": d} for c in [*CUSTOMERS[:4], "no"] for d in [*DRIVERS[:3], 5]],
    },
    "composite keys, other order": {
        "features": ["pair_stats:rides"],
        "entity_rows": [{"driver_id": d, "customer": c} for c in CUSTOMERS[:2] for d in DRIVERS[:2]],
    },
    "without an entity": {
        "features": ["world:fuel_price", "driver_stats:acc"],
        "entity_rows": {"driver_id": [1001, 1]},
    },
    "several views, full names": {
        "features": ["driver_stats:conv_rate", "pair_stats:rides", "customer_stats:score", "world:fuel_price"],
        "entity_rows": [{"customer": "alice", "driver_id": 1002}, {"customer": "no", "driver_id": 1002}],
        "full_feature_names": True,
    },
    "on demand": {
        "features": ["boosted:boosted_rate", "driver_stats:trips"],
        "entity_rows": {"driver_id": [1001, 1002, 1004, 9], "factor": [1.0, 2.0, 3.0, 4.0]},
    },
    "a service with aliases": {
        "features": "rides",
        "entity_rows": [
            {"origin_id": 1001, "target_id": 1002, "customer": "alice"},
            {"origin_id": 1, "target_id": 1001, "customer": "Åse"},
        ],
        "full_feature_names": True,
    },
    "with versions in the metadata": {
        "features": ["driver_stats:trips"],
        "entity_rows": {"driver_id": [1001]},
        "include_feature_view_version_metadata": True,
    },
}


def ask(store: FeatureStore, name: str) -> Any:
    """Answer one of :data:`REQUESTS`."""
    request = dict(REQUESTS[name])
    if isinstance(request["features"], str):
        request["features"] = store.get_feature_service(request["features"])
    return store.get_online_features(**request)


def _boost(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"boosted_rate": frame["conv_rate"].astype("float64") * frame["factor"]})


def _driver_row(driver: int, number: int) -> dict[str, Any]:
    odd, third = driver % 2, driver % 3
    return {
        "driver_id": driver,
        "at": day(number),
        "created": day(number),
        "conv_rate": driver % 7 / 8 + number,
        "acc": None if third == 0 else driver / 3 + number,
        "trips": driver * 10**12 + number,
        "small": -driver,
        "active": bool(odd),
        "nick": None if third == 1 else f"d{driver}·{number}" * odd,
        "blob": None if third == 2 else bytes([odd, 0, 255]),
        "joined": None if odd else START - dt.timedelta(days=driver),
        "tags": [None, [], ["a", ""], [f"t{number}"]][driver % 4],
        "embedding": [None, [], [0.5, -1.25, number]][third],
        "counts": [[], [2**40, -1], None][third],
        "flags": [None, [True, False], []][third],
        "prefs": None if odd else '{"a": [1, null]}',
    }


def _fields(**types: pa.DataType) -> pa.Schema:
    return pa.schema([("at", pa.timestamp("us", "UTC")), *types.items()])


_DRIVER_SCHEMA = _fields(
    driver_id=pa.int64(),
    created=pa.timestamp("us", "UTC"),
    conv_rate=pa.float32(),
    acc=pa.float64(),
    trips=pa.int64(),
    small=pa.int32(),
    active=pa.bool_(),
    nick=pa.string(),
    blob=pa.binary(),
    joined=pa.timestamp("us", "UTC"),
    tags=pa.list_(pa.string()),
    embedding=pa.list_(pa.float32()),
    counts=pa.list_(pa.int64()),
    flags=pa.list_(pa.bool_()),
    prefs=pa.string(),
)
_CUSTOMER_SCHEMA = _fields(customer=pa.string(), score=pa.float64(), city=pa.string())
_PAIR_SCHEMA = _fields(customer=pa.string(), driver_id=pa.int64(), rides=pa.int32())
_WORLD_SCHEMA = _fields(fuel_price=pa.float64())
