"""Files of a history that another tool wrote anew are read as they were, or refused with file and column."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from quorin.engine.log.record import Kind
from quorin.engine.ops.history_checks import check_history
from quorin.engine.rows.batch import delete_batch, row_batch, rows_batch, subset_schema
from quorin.errors import CorruptHistoryError
from quorin.offline import ParquetDatasetStore
from tests.support.schemas import Everything

VALUES: dict[str, Any] = {
    "f32": 1.5, "f64": 0.1, "i32": -7, "i64": 2**53, "u8": 255, "flag": True, "text": "zë", "blob": b"\x00\xff",
    "vector": [1.0, 2.0, 3.0], "grid": [[1, 2], [3, 4]], "flags": [True, False, True], "numbers": [2**62],
    "marks": [], "tags": ["a", ""], "blobs": [b"\xff"],
}  # fmt: skip
NULLS = dict.fromkeys(VALUES)


def with_duckdb(source: Path, target: Path) -> None:
    duckdb.sql(
        f"COPY (SELECT * FROM read_parquet('{source}', hive_partitioning = false)) TO '{target}' (FORMAT parquet)"
    )


def as_fastparquet(source: Path, target: Path) -> None:
    """Text as bytes and naive times, which fastparquet writes for columns of objects."""
    table = pq.read_table(source, partitioning=None)
    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(pa.binary()))
        elif pa.types.is_timestamp(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(pa.timestamp("ns")))
    pq.write_table(table.replace_schema_metadata(None), target, store_schema=False)


def with_dictionaries(source: Path, target: Path) -> None:
    pl.read_parquet(source, hive_partitioning=False).with_columns(pl.col("text").cast(pl.Categorical)).write_parquet(
        target
    )


TOOLS: dict[str, Callable[[Path, Path], None]] = {
    "pandas": lambda source, target: pd.read_parquet(source, partitioning=None).to_parquet(target),
    "polars": lambda source, target: pl.read_parquet(source, hive_partitioning=False).write_parquet(target),
    "polars categories": with_dictionaries,
    "duckdb": with_duckdb,
    "fastparquet's types": as_fastparquet,
}


def rewrite(path: Path, write: Callable[[Path, Path], None]) -> None:
    aside = path.with_suffix(".aside")
    write(path, aside)
    aside.rename(path)


def history(base: Path) -> ParquetDatasetStore:
    """Four files: whole rows and nulls, nothing but nulls, partial rows, and a deletion."""
    store = ParquetDatasetStore(base)
    partial = subset_schema(Everything, ["text", "vector"])
    batches = [
        (rows_batch(Everything, [("a", 1, *VALUES.values()), ("b", 1, *NULLS.values())]), Kind.upsert),
        (row_batch(Everything, "c", NULLS, 2), Kind.upsert),
        (pa.record_batch([["b"], [3], ["new"], [[4.0, 5.0, 6.0]]], schema=partial), Kind.partial),
        (delete_batch(["c"], 4), Kind.delete),
    ]
    for position, (batch, kind) in enumerate(batches, start=1):
        store.append(Everything, batch, pa.repeat(pa.scalar(position, pa.int64()), len(batch)), kind=kind)
        store.flush()
    return store


def everything(store: ParquetDatasetStore) -> tuple[Any, ...]:
    queries = pa.table({"entity_id": ["a", "b", "c", "b"], "as_of_time_ns": [9, 9, 9, 1]})
    rows = [
        (kind, *row)
        for kind, batch, positions in store.newest_first(Everything)
        for row in zip(batch.to_pylist(), positions.to_pylist(), strict=True)
    ]
    return store.read_point_in_time(Everything, queries), store.distinct_entity_ids(Everything), rows


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("files", ["all", "one"])
def test_files_that_other_tools_wrote_anew_are_read_as_they_were(tmp_path: Path, tool: str, files: str) -> None:
    store = history(tmp_path)
    expected = everything(store)
    paths = sorted(tmp_path.rglob("*.parquet"))
    for path in paths if files == "all" else paths[1:2]:
        rewrite(path, TOOLS[tool])
    store = ParquetDatasetStore(tmp_path, strict=True)
    assert everything(store) == expected
    assert {check.status for check in check_history(tmp_path)} == {"ok"}
    store.compact(Everything)
    assert everything(store) == expected


def cast(name: str, kind: pa.DataType) -> Callable[[Path, Path], None]:
    def write(source: Path, target: Path) -> None:
        table = pq.read_table(source, partitioning=None)
        table = table.set_column(table.schema.get_field_index(name), name, table.column(name).cast(kind))
        pq.write_table(table.replace_schema_metadata(None), target)

    return write


def replaced(name: str, values: list[Any], kind: pa.DataType) -> Callable[[Path, Path], None]:
    def write(source: Path, target: Path) -> None:
        table = pq.read_table(source, partitioning=None)
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, kind))
        pq.write_table(table.replace_schema_metadata(None), target)

    return write


LOSSES = {
    "position": (cast("position", pa.float64()), "has the type double, expected int64"),
    "event_time": (cast("event_time", pa.int64()), "has the type int64, expected timestamp"),
    "kind": (replaced("kind", [1, None], pa.uint8()), "expected no nulls, got 1"),
    "entity_id": (replaced("entity_id", [b"a", b"\xff"], pa.binary()), "UTF8"),
    "i64": (replaced("i64", [2.0**60, None], pa.float64()), "may be rounded"),
    "i32": (replaced("i32", [0.5, None], pa.float64()), "0.5"),
    "vector": (replaced("vector", [[1.0, 2.0], None], pa.list_(pa.float32())), "shape"),
    "text": (replaced("text", [b"\xff", None], pa.binary()), "UTF8"),
}


@pytest.mark.parametrize("column", LOSSES)
def test_what_does_not_cast_without_loss_is_an_error_with_file_and_column(tmp_path: Path, column: str) -> None:
    store = history(tmp_path)
    path = min(tmp_path.rglob("*.parquet"))
    write, reason = LOSSES[column]
    rewrite(path, write)
    with pytest.raises(CorruptHistoryError, match=f"{path.name}: column '{column}'.*{reason}"):
        everything(store)
    content = path.read_bytes()
    if column in ("position", "event_time", "kind", "entity_id"):
        with pytest.raises(CorruptHistoryError, match=path.name):
            store.compact(Everything)
    assert path.read_bytes() == content


def test_times_of_another_unit_are_read_in_nanoseconds(tmp_path: Path) -> None:
    store = ParquetDatasetStore(tmp_path)
    store.append(Everything, row_batch(Everything, "a", VALUES, 5_000_000), pa.array([1]))
    store.flush()
    expected = store.latest_features(Everything)
    rewrite(min(tmp_path.rglob("*.parquet")), cast("event_time", pa.timestamp("ms")))
    assert store.latest_features(Everything).equals(expected)
    assert pc.all(pc.equal(expected.column("event_time_ns"), 5_000_000)).as_py()
