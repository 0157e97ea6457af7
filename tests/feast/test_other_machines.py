"""Writers on machines that have no segment, such as the executors of Feast's Spark engine: they only append."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dill
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.infra.common.serde import SerializedArtifacts
from feast.types import Array, Float32, Int64, String

from quorin.shm import SegmentRegistry
from quorin.wal_consumer import WALConsumer
from tests.feast.repos import END, START, day

PARTITIONED = pytest.mark.parametrize("partitions", [None, 16], ids=["one log", "a log each partition"])
THING = Entity(name="thing", join_keys=["thing"], value_type=ValueType.INT64)
ROWS = 500
FEATURES = ["things:n", "things:s", "things:v"]
ALL = {"thing": list(range(ROWS + 1))}


def table() -> pa.Table:
    numbers = range(ROWS)
    return pa.table(
        {
            "thing": numbers,
            "n": [None if n % 7 == 0 else n * n for n in numbers],
            "s": [f"s{n}" for n in numbers],
            "v": pa.array([[n / 2, n / 4] for n in numbers], pa.list_(pa.float32())),
            "at": pa.array([day(1) + dt.timedelta(seconds=n) for n in numbers], pa.timestamp("us", "UTC")),
        }
    )


def expected() -> dict[str, list[Any]]:
    columns = {name: [*table().column(name).to_pylist(), None] for name in ("n", "s", "v")}
    return {"thing": ALL["thing"], **columns}


def view(source: Any, **more: Any) -> FeatureView:
    fields = {"n": Int64, "s": String, "v": Array(Float32), **more}
    schema = [Field(name="thing", dtype=Int64), *(Field(name=name, dtype=kind) for name, kind in fields.items())]
    return FeatureView(name="things", entities=[THING], schema=schema, source=source)


def config(folder: Path, redis_url: str, partitions: int | None = None, **settings: Any) -> RepoConfig:
    online = {
        "type": "feast_quorin.QuorinOnlineStore",
        "redis_url": redis_url,
        "shm_dir": str(folder / "segments"),
        "consumer": "external",
        "wait": "logged",
        "partitions": partitions,
    }
    return RepoConfig(
        project="shop",
        registry=str(folder / "registry.db"),
        provider="local",
        online_store=online,
        repo_path=folder,
        entity_key_serialization_version=3,
        **settings,
    )


@contextmanager
def without_segments(folder: Path) -> Iterator[None]:
    """As on another machine: no segment is to be found, and none is made."""
    segments, elsewhere = folder / "segments", folder / "elsewhere"
    segments.rename(elsewhere)
    segments.mkdir()
    try:
        yield
        assert list(segments.iterdir()) == []
    finally:
        segments.rename(folder / "empty")
        elsewhere.rename(segments)
        (folder / "empty").rmdir()


def apply_log(folder: Path, redis_url: str) -> int:
    """What ``quorin consumer`` does on the machine of the segments."""
    registry = SegmentRegistry(redis_url, shm_dir=folder / "segments")
    with registry.open_stored("shop__things", read_only=False) as segment:
        return WALConsumer(registry.backend, [segment], registry=registry, trims=False).drain()


EXECUTOR = """
import sys
from pathlib import Path
import dill
import pyarrow.parquet as pq
from feast.utils import _convert_arrow_to_proto

source = pq.read_table(sys.argv[2])
for artifacts in dill.loads(Path(sys.argv[1]).read_bytes()):
    view, store, _, config = artifacts.unserialize()
    kinds = {entity.name: entity.dtype.to_value_type() for entity in view.entity_columns}
    for batch in source.to_batches(max_chunksize=200):
        store.online_write_batch(config, view, _convert_arrow_to_proto(batch, view, kinds), lambda _: None)
mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "quorin_" in line]
opened = [str(file.resolve()) for file in Path("/proc/self/fd").iterdir() if "quorin_" in str(file.resolve())]
assert mapped == opened == [], (mapped, opened)
print("appended")
"""


@PARTITIONED
def test_a_process_without_segments_only_appends(tmp_path: Path, redis_url: str, partitions: int | None) -> None:
    """A new process does what an executor does: takes the artifacts apart and writes its rows."""
    (tmp_path / "segments").mkdir()
    pq.write_table(table().append_column("later", [[1] * ROWS]), tmp_path / "things.parquet")
    source = FileSource(path=str(tmp_path / "things.parquet"), timestamp_field="at")
    store = FeatureStore(config=config(tmp_path, redis_url, partitions))
    store.apply([THING, view(source)])
    # The second knows of a feature that the segment does not have yet.
    given = [store.get_feature_view("things"), view(source, later=Int64)]
    artifacts = tmp_path / "artifacts"
    artifacts.write_bytes(dill.dumps([SerializedArtifacts.serialize(one, store.config) for one in given]))
    files = sorted(path.name for path in (tmp_path / "segments").iterdir())
    with without_segments(tmp_path):
        command = [sys.executable, "-W", "ignore", "-c", EXECUTOR, str(artifacts), str(tmp_path / "things.parquet")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert (done.returncode, done.stdout) == (0, "appended\n"), done.stderr
    assert sorted(path.name for path in (tmp_path / "segments").iterdir()) == files
    assert store.get_online_features(FEATURES, ALL).to_dict()["n"] == [None] * (ROWS + 1)
    assert apply_log(tmp_path, redis_url) == 2 * ROWS
    assert store.get_online_features(FEATURES, ALL).to_dict() == expected()
    store.teardown()


@pytest.mark.spark
@PARTITIONED
def test_feasts_spark_engine_in_local_mode(
    tmp_path: Path, redis_url: str, partitions: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A materialization by Spark's own worker processes, with no segment on their machine."""
    from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
    from pyspark.sql import SparkSession

    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    (tmp_path / "segments").mkdir()
    pq.write_table(table(), tmp_path / "things.parquet")
    spark = {
        "spark.master": "local[2]",
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.warehouse.dir": str(tmp_path / "warehouse"),
    }
    store = FeatureStore(
        config=config(
            tmp_path,
            redis_url,
            partitions,
            offline_store={"type": "spark", "spark_conf": spark},
            batch_engine={"type": "spark.engine", "spark_conf": spark, "partitions": 2},
        )
    )
    path = str(tmp_path / "things.parquet")
    source = SparkSource(name="things_source", path=path, file_format="parquet", timestamp_field="at")
    store.apply([THING, view(source)])
    try:
        with without_segments(tmp_path):
            store.materialize(START, END)
    finally:
        SparkSession.builder.getOrCreate().stop()
    assert store.get_online_features(FEATURES, ALL).to_dict()["n"] == [None] * (ROWS + 1)
    assert apply_log(tmp_path, redis_url) == ROWS
    assert store.get_online_features(FEATURES, ALL).to_dict() == expected()
    store.teardown()


@pytest.mark.spark
@PARTITIONED
def test_feasts_ray_engine_in_local_mode(
    tmp_path: Path, redis_url: str, partitions: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A materialization by Ray's own worker processes, with no segment on their machine."""
    import ray

    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    (tmp_path / "segments").mkdir()
    pq.write_table(table(), tmp_path / "things.parquet")
    engine = {"type": "ray.engine", "max_workers": 2, "ray_conf": {"num_cpus": 2, "include_dashboard": False}}
    store = FeatureStore(config=config(tmp_path, redis_url, partitions, batch_engine=engine))
    store.apply([THING, view(FileSource(path=str(tmp_path / "things.parquet"), timestamp_field="at"))])
    try:
        with without_segments(tmp_path):
            store.materialize(START, END)
    finally:
        ray.shutdown()
    assert apply_log(tmp_path, redis_url) == ROWS
    assert store.get_online_features(FEATURES, ALL).to_dict() == expected()
    store.teardown()
