"""Cold start and training reads: hydration, snapshots, and point-in-time joins beside pandas and Feast's file store.

Each hydration and restore runs in a fresh process. Its memory of its own (no shared memory, no files) at its highest,
less what it had once its libraries were loaded, is taken together with the segment. Point-in-time: the same queries
over the same Parquet files for all rivals, from the files to the answer. Feast's file store joins all rows of its
source with all queries; `--feast-queries` says how many of the queries it gets (0: leave it out), and the others are
timed on those as well.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks import machine, report
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, Schema, dtype, make_schema
from quorin.shm import SegmentRegistry, default_shm_dir

SCALARS = make_schema("BenchScalars", [FeatureField(name, dtype.float32) for name in "abcd"])
WIDE = make_schema("BenchWide", [FeatureField(f"f{i}", dtype.float32) for i in range(200)])
SPAN_US = 10**14
EPOCH_NS = 1_600_000_000 * 10**9


def main() -> None:
    """Measure, print a table, and with `--json` and `--docs` write it."""
    arguments = _arguments()
    console = Console(highlight=False, width=110)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as place:
        cases = [("4 scalars", SCALARS, arguments.entities), ("4 scalars", SCALARS, arguments.many)]
        cases += [("200 floats", WIDE, arguments.wide)]
        for number, (fields, schema, entities) in enumerate(cases):
            if entities:
                base = Path(place) / str(number)
                _write(ParquetDatasetStore(base), schema, entities, entities)
                figures |= _in_fresh_process(_cold_start, f"{entities:,} × {fields}", schema.__name__, base)
        base = Path(place) / "joins"
        _write(ParquetDatasetStore(base), SCALARS, arguments.rows, arguments.rows // 10)
        figures |= _joins(base, arguments)
    table = _table(figures)
    console.print(table)
    report.keep(arguments, "history", where, {"history": figures}, [table])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.history", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entities", type=int, default=1_000_000, help="with 4 scalars (default: %(default)s)")
    parser.add_argument("--many", type=int, default=10_000_000, help="the same, with many (0: leave it out)")
    parser.add_argument("--wide", type=int, default=300_000, help="entities with 200 floats (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows that are joined (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=1_000_000, help="asked times (default: %(default)s)")
    parser.add_argument("--feast-queries", type=int, default=10_000, help="of them, for Feast (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this Markdown file")
    return parser.parse_args()


def _write(store: ParquetDatasetStore, schema: Schema, rows: int, entities: int) -> None:
    """A history of rows in order of time, over entities in no order; a million rows, or 100 MB, a file."""
    rng = np.random.default_rng(1)
    names = pa.array([f"user_{i:08}" for i in range(entities)])
    order = rng.permutation(entities) if rows == entities else rng.integers(0, entities, rows)
    times = EPOCH_NS + 1000 * np.sort(rng.integers(0, SPAN_US, rows))  # Feast looks at microseconds
    step = min(1_000_000, 25_000_000 // len(schema.fields))
    for position, start in enumerate(range(0, rows, step), start=1):
        chosen = order[start : start + step]
        values = {field.name: rng.standard_normal(len(chosen), dtype=np.float32) for field in schema.fields}
        ids = names.take(pa.array(chosen))
        batch = pa.record_batch({"entity_id": ids, "event_time_ns": times[start : start + step], **values})
        store.append(schema, batch, pa.array(np.full(len(chosen), position)))
        store.flush()


def _in_fresh_process(action: Callable[..., None], *arguments: object) -> dict[str, dict[str, float]]:
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=action, args=(sending, *arguments))
    process.start()
    sending.close()
    figures: dict[str, dict[str, float]] = receiving.recv()
    process.join()
    return figures


def _cold_start(sending: Any, name: str, schema_name: str, base: Path) -> None:
    """Hydrate, snapshot, restore."""
    from quorin.engine import kernels
    from quorin.hydration import hydrate
    from quorin.snapshot import restore, snapshot

    kernels.load()  # not what is measured

    schema = SCALARS if schema_name == SCALARS.__name__ else WIDE
    with (
        tempfile.TemporaryDirectory(prefix="quorin-bench-", dir=default_shm_dir()) as shm,
        tempfile.TemporaryDirectory() as place,
    ):
        registry = SegmentRegistry(Path(place) / "store", shm_dir=shm)
        most = [0]

        def watch(_done: int, _all: int) -> None:
            most[0] = max(most[0], _own_bytes())

        before = _own_bytes()
        built = hydrate(schema, ParquetDatasetStore(base), registry, progress=watch)
        with registry.open_current(schema) as segment:
            size = segment.stats()["bytes"]
            taken = snapshot(segment, Path(place) / "file")
        registry.discard(registry.open_current(schema, read_only=False))
        back = restore(Path(place) / "file", registry)
        registry.backend.close()
    sending.send(
        {
            f"hydrate, {name}": {"rows_per_s": built.entity_count / built.elapsed_seconds},
            f"hydrate, {name}: segment + peak of own memory, to segment": {
                "ratio": (size + most[0] - before) / size,
                "own_mb": most[0] / 1e6,
                "own_before_mb": before / 1e6,
                "segment_mb": size / 1e6,
            },
            f"snapshot, {name}": {"bytes_per_s": taken.byte_count / taken.elapsed_seconds},
            f"restore, {name}": {"bytes_per_s": back.byte_count / back.elapsed_seconds},
        }
    )


def _own_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def _joins(base: Path, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(2)
    entities = arguments.rows // 10
    ids = [f"user_{i:08}" for i in rng.integers(0, entities, arguments.queries)]
    queries = pa.table(
        {"entity_id": ids, "as_of_time_ns": EPOCH_NS + 1000 * rng.integers(0, SPAN_US, arguments.queries)}
    )
    rivals: dict[str, Callable[[Path, pa.Table], Any]] = {"Quorin": _quorin, "pandas.merge_asof": _pandas}
    sizes = [(arguments.queries, rivals)]
    if arguments.feast_queries:
        sizes.append((arguments.feast_queries, rivals | {"Feast's file store": _feast}))
    figures = {}
    for count, asked in sizes:
        answers = {}
        for name, join in asked.items():
            started = time.perf_counter()
            answers[name] = join(base, queries.slice(0, count))
            seconds = time.perf_counter() - started
            figures[f"point in time, {count:,} queries over {arguments.rows:,} rows: {name}"] = {"seconds": seconds}
        for name, found in answers.items():
            same = np.isclose(found.astype(np.float64), answers["Quorin"].astype(np.float64), equal_nan=True)
            assert same.all(), f"{name} differs in {np.count_nonzero(~same)} of {count} answers"
    return figures


def _quorin(base: Path, queries: pa.Table) -> Any:
    found = ParquetDatasetStore(base).read_point_in_time(SCALARS, queries)
    return found.column("a").to_numpy()


def _pandas(base: Path, queries: pa.Table) -> Any:
    import pandas as pd

    columns = ["entity_id", "event_time", *"abcd"]
    history = pq.read_table(base / SCALARS.__name__, columns=columns, partitioning=None).to_pandas()
    asked = queries.to_pandas()
    asked["event_time"] = pd.to_datetime(asked.pop("as_of_time_ns"), utc=True)
    asked["order"] = np.arange(len(asked))
    history = history.sort_values("event_time", kind="stable")
    joined = pd.merge_asof(asked.sort_values("event_time"), history, on="event_time", by="entity_id")
    return joined.sort_values("order")["a"].to_numpy()


def _feast(base: Path, queries: pa.Table) -> Any:
    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.repo_config import RepoConfig
    from feast.types import Float32

    with tempfile.TemporaryDirectory() as repo:
        config = RepoConfig(
            project="bench",
            provider="local",
            registry=f"{repo}/registry.db",
            offline_store={"type": "file"},
            online_store={"type": "sqlite", "path": f"{repo}/online.db"},
            entity_key_serialization_version=3,
            repo_path=Path(repo),
        )
        store = FeatureStore(config=config)
        user = Entity(name="user", join_keys=["entity_id"], value_type=ValueType.STRING)
        source = FileSource(path=str(base / SCALARS.__name__), timestamp_field="event_time")
        fields = [Field(name=name, dtype=Float32) for name in "abcd"]
        store.apply([user, FeatureView(name="view", entities=[user], schema=fields, source=source)])
        asked = queries.to_pandas()
        asked["event_timestamp"] = pd.to_datetime(asked.pop("as_of_time_ns"), utc=True)
        asked["order"] = np.arange(len(asked))
        found = store.get_historical_features(asked, [f"view:{name}" for name in "abcd"]).to_df()
        # Feast leaves out queries to which nothing is known.
        return found.set_index("order")["a"].reindex(range(len(asked))).to_numpy()


def _table(figures: dict[str, dict[str, float]]) -> Table:
    title = f"History, measured on {datetime.now(UTC):%Y-%m-%d}"
    table = Table(title=title, title_justify="left")
    table.add_column("what", no_wrap=True)
    table.add_column("figure", justify="right", no_wrap=True)
    for name, figure in figures.items():
        table.add_row(name, _shown(figure))
    return table


def _shown(figure: dict[str, float]) -> str:
    if "rows_per_s" in figure:
        return f"{figure['rows_per_s'] / 1e6:.2f} M rows/s"
    if "bytes_per_s" in figure:
        return f"{figure['bytes_per_s'] / 1e9:.2f} GB/s"
    if "ratio" in figure:
        return (
            f"{figure['ratio']:.2f} ({figure['segment_mb']:.0f} + {figure['own_mb'] - figure['own_before_mb']:.0f} MB)"
        )
    return f"{figure['seconds']:.2f} s"


if __name__ == "__main__":
    main()
