"""The nearest documents by embedding: Quorin's search, alone and through Feast, beside Feast on Milvus Lite.

All of them look at every vector (Milvus with its index FLAT), and their answers are compared. NumPy over one array in
the process's own memory shows what the machine can do: it has no rows, keys, writers or other processes. Milvus Lite
takes part if it is installed (`pip install pymilvus milvus-lite`), in the same process as the others. Feast's SQLite
store searches vectors on Python 3.10 alone, which Quorin does not run on.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks import machine, measuring, report
from quorin import layout, vector
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry

VIEW, NEAREST = "docs", 10
WHEN = datetime(2024, 1, 1, tzinfo=UTC)


def main() -> None:
    """Measure, print a table, and with `--json` and `--docs` write it."""
    arguments = _arguments()
    console = Console(highlight=False, width=110)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        figures = _measure(arguments, Path(folder))
    table = _table(figures, arguments)
    console.print(table)
    report.keep(arguments, "vectors", where, {"vectors": figures}, [table])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vectors", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000, help="documents (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="numbers in a vector (default: %(default)s)")
    parser.add_argument("--searches", type=int, default=50, help="searches of each kind (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this Markdown file")
    return parser.parse_args()


def _measure(arguments: argparse.Namespace, directory: Path) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(11)
    vectors = rng.standard_normal((arguments.rows, arguments.size), dtype=np.float32)
    queries = cycle(rng.standard_normal((arguments.searches, arguments.size), dtype=np.float32))
    registry, segment = _segment(vectors, directory)
    cases: dict[str, Callable[[Any], Any]] = {
        "NumPy, one array": lambda query: _numpy(vectors, query),
        "quorin.vector.search": lambda query: [
            int(i) for i in vector.search(segment, "v", query, k=NEAREST).entity_ids
        ],
    }
    stores = {"Feast on Quorin": _store("quorin", vectors, directory)}
    if importlib.util.find_spec("pymilvus") and importlib.util.find_spec("milvus_lite"):
        stores["Feast on Milvus Lite"] = _store("milvus", vectors, directory)
    try:
        cases |= {name: _asker(store) for name, store in stores.items()}
        query = next(queries)
        expected = cases["NumPy, one array"](query)
        for name, case in cases.items():
            assert case(query) == expected, f"{name} finds {case(query)}, expected {expected}"
        calls = dict.fromkeys(cases, max(1, arguments.searches // 10))
        prepare = dict.fromkeys(cases, lambda: next(queries))
        samples = measuring.interleave(cases, rounds=10, calls=calls, prepare=prepare)
    finally:
        stores["Feast on Quorin"].teardown()
        registry.discard(segment)
    return measuring.summary([samples])


def _segment(vectors: np.ndarray[Any, Any], directory: Path) -> tuple[SegmentRegistry, Any]:
    registry = SegmentRegistry(str(directory / "plain"))
    schema = make_schema("Docs", [FeatureField("v", dtype.float32, (vectors.shape[1],))])
    segment = registry.create(schema, capacity=len(vectors))
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    layout.insert_many(segment, pa.table({"entity_id": [f"{n}" for n in range(len(vectors))], "v": column}))
    return registry, segment


def _numpy(vectors: np.ndarray[Any, Any], query: np.ndarray[Any, Any]) -> list[int]:
    difference = vectors - query
    distances = np.einsum("ij,ij->i", difference, difference)
    nearest = np.argpartition(distances, NEAREST)[:NEAREST]
    return [int(row) for row in nearest[np.argsort(distances[nearest])]]


def _store(kind: str, vectors: np.ndarray[Any, Any], directory: Path) -> Any:
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Array, Float32, Int64, String

    size = vectors.shape[1]
    online = {
        "quorin": {"type": "feast_quorin.QuorinOnlineStore", "path": str(directory / "quorin")},
        "milvus": {
            "type": "milvus",
            "path": str(directory / "milvus.db"),
            "embedding_dim": size,
            "index_type": "FLAT",
            "metric_type": "L2",
        },
    }[kind]
    config = RepoConfig(
        project="benchmark",
        provider="feast_quorin.QuorinProvider" if kind == "quorin" else "local",  # local is what Milvus Lite asks for
        registry=str(directory / f"{kind}.registry"),
        online_store=online,
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    rows = pd.DataFrame({"id": np.arange(len(vectors)), "at": WHEN, "v": list(vectors), "title": "a title"})
    pq.write_table(pa.Table.from_pandas(rows.head(10)), directory / "docs.parquet")
    entity = Entity(name="id", join_keys=["id"], value_type=ValueType.INT64)
    embedding = Field(name="v", dtype=Array(Float32), vector_index=True, vector_length=size, vector_search_metric="L2")
    view = FeatureView(
        name=VIEW,
        entities=[entity],
        schema=[Field(name="id", dtype=Int64), embedding, Field(name="title", dtype=String)],
        source=FileSource(path=str(directory / "docs.parquet"), timestamp_field="at"),
    )
    store.apply([entity, view])
    for start in range(0, len(rows), 20_000):
        store.write_to_online_store(VIEW, rows.iloc[start : start + 20_000])
    return store


def _asker(store: Any) -> Callable[[Any], list[int]]:
    names = [f"{VIEW}:title"]

    def ask(query: Any) -> list[int]:
        response = store.retrieve_online_documents_v2(
            features=names, query=query.tolist(), top_k=NEAREST, distance_metric="L2"
        )
        return [int(key) for key in response.to_dict()["id"]]

    return ask


def _table(figures: dict[str, dict[str, float]], arguments: argparse.Namespace) -> Table:
    title = f"The {NEAREST} nearest of {arguments.rows:,} vectors of {arguments.size} float32, L2, exact"
    table = Table(title=title, title_justify="left")
    table.add_column("case", no_wrap=True)
    for heading in ("p50", "p99", "slower than Feast on Quorin"):
        table.add_column(heading, justify="right")
    for name, row in figures.items():
        ratio = row["p50"] / figures["Feast on Quorin"]["p50"]
        shown = f"{ratio:.1f}×" if ratio > 1 else ""
        table.add_row(name, measuring.duration(row["p50"]), measuring.duration(row["p99"]), shown)
    return table


if __name__ == "__main__":
    main()
