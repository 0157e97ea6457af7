"""What a comparison of what is served with the offline source takes, beside the offline reads themselves.

All entities of a segment are compared with its history, and with Feast's file store the same number through Feast. One
in a hundred rows is stale, so that there is something to find.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import machine, report
from quorin.engine.rows.batch import to_batch
from quorin.layout import insert_many
from quorin.offline import ParquetDatasetStore, SkewReport, skew
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry

SCHEMA = make_schema(
    "Skewed",
    [
        *(FeatureField(f"float{number}", dtype.float32) for number in range(10)),
        *(FeatureField(f"double{number}", dtype.float64) for number in range(4)),
        *(FeatureField(f"count{number}", dtype.int64) for number in range(4)),
        FeatureField("city", dtype.string),
        FeatureField("embedding", dtype.float32, (None,)),
    ],
)
_STALE = 100
_EMBEDDING = 16
_TIME_NS = 1_700_000_000 * 10**9
_HOUR_NS = 3_600 * 10**9


def main() -> None:
    """Measure, print a table, and with `--json` and `--docs` write it."""
    arguments = _arguments()
    console = Console(highlight=False, width=110)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    runs = []
    with tempfile.TemporaryDirectory() as name:
        for number in track(range(arguments.rounds), console=console, description="comparing"):
            folder = Path(name) / str(number)
            folder.mkdir()
            runs.append(
                {"history": _with_history(folder, arguments.entities)} | _with_feast(folder, arguments.entities)
            )
    figures = {way: {part: min(run[way][part] for run in runs) for part in runs[0][way]} for way in runs[0]}
    title = f"{arguments.entities:,} entities × {len(SCHEMA.fields)} features, all of them"
    table = Table(title=title, title_justify="left")
    for column in ("offline source", "comparison", "of it offline reads", "the rest"):
        table.add_column(column, justify="left" if column == "offline source" else "right")
    for way, row in figures.items():
        table.add_row(way, *(f"{row[part]:.2f} s" for part in ("all", "offline", "rest")))
    console.print(table)
    report.keep(arguments, "skew", where, {"skew": figures}, [table])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.skew", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many (default: %(default)s)")
    parser.add_argument("--entities", type=int, default=100_000, help="rows (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this Markdown file")
    return parser.parse_args()


def _rows(count: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    columns: dict[str, Any] = {}
    for field in SCHEMA.fields:
        if field.name == "city":
            columns[field.name] = pa.array(rng.choice([f"city {number}" for number in range(50)], count))
        elif field.name == "embedding":
            flat = pa.array(rng.standard_normal(count * _EMBEDDING, dtype=np.float32))
            columns[field.name] = pa.ListArray.from_arrays(_EMBEDDING * np.arange(count + 1, dtype=np.int32), flat)
        elif field.name.startswith("count"):
            columns[field.name] = rng.integers(2**53, size=count)
        else:
            columns[field.name] = rng.standard_normal(count).astype(field.dtype.numpy)
    return columns


def _times(count: int) -> Any:
    """Event times of the offline rows: one in a hundred is later than what is served."""
    return _TIME_NS + np.where(np.arange(count) % _STALE == 0, _HOUR_NS, 0)


def _with_history(folder: Path, count: int) -> dict[str, float]:
    registry = SegmentRegistry(folder / "engine")
    segment = registry.create(SCHEMA, capacity=count)
    try:
        ids, rows = [f"user_{number:07}" for number in range(count)], _rows(count)
        served = {"entity_id": ids, "event_time_ns": np.full(count, _TIME_NS), **rows}
        insert_many(segment, pa.table(served))
        store = ParquetDatasetStore(folder / "history")
        kept = to_batch(SCHEMA, pa.table({**served, "event_time_ns": _times(count)}))
        store.append(SCHEMA, kept, pa.array(np.arange(1, count + 1)))
        store.flush()
        started = time.perf_counter()
        found = skew(segment, store, sample=None)
        return _parts(found, time.perf_counter() - started, count)
    finally:
        registry.discard(segment)


def _with_feast(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Nothing where Feast is not installed."""
    with suppress(ModuleNotFoundError):
        import feast  # noqa: F401

        return {"Feast's file store": _of_feast(folder, count)}
    return {}


def _of_feast(folder: Path, count: int) -> dict[str, float]:
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Array, Float32, Float64, Int64, String

    from feast_quorin import skew as feast_skew

    kinds = {dtype.float32: Float32, dtype.float64: Float64, dtype.int64: Int64, dtype.string: String}
    store = FeatureStore(
        config=RepoConfig(
            project="benchmark",
            provider="feast_quorin.QuorinProvider",
            registry=str(folder / "registry.db"),
            online_store={"type": "feast_quorin.QuorinOnlineStore", "path": str(folder / "quorin")},
            entity_key_serialization_version=3,
        )
    )
    served = pa.table({"id": np.arange(count), "at": _datetimes(np.full(count, _TIME_NS)), **_rows(count)})
    pq.write_table(served.set_column(1, "at", _datetimes(_times(count))), folder / "rows.parquet")
    entity = Entity(name="id", join_keys=["id"], value_type=ValueType.INT64)
    fields = [
        Field(name=field.name, dtype=Array(Float32) if field.is_list else kinds[field.dtype]) for field in SCHEMA.fields
    ]
    view = FeatureView(
        name="skewed",
        entities=[entity],
        ttl=timedelta(0),
        schema=[Field(name="id", dtype=Int64), *fields],
        source=FileSource(path=str(folder / "rows.parquet"), timestamp_field="at"),
    )
    store.apply([entity, view])
    try:
        online_store: Any = store.provider.online_store
        online_store.write_table(store.config, store.get_feature_view("skewed"), served, None)
        started = time.perf_counter()
        [found] = feast_skew(store, sample=None, as_of=datetime.now(UTC))
        return _parts(found, time.perf_counter() - started, count)
    finally:
        store.teardown()


def _datetimes(times_ns: Any) -> pa.Array:
    return pa.array(times_ns // 1000, pa.timestamp("us", "UTC"))


def _parts(found: SkewReport, seconds: float, count: int) -> dict[str, float]:
    assert found.compared == count
    assert found.rows["stale"] == -(-count // _STALE)
    assert not found.rows["different"]
    offline = found.seconds["ids"] + found.seconds["offline"]
    return {"all": seconds, "offline": offline, "rest": seconds - offline}


if __name__ == "__main__":
    main()
