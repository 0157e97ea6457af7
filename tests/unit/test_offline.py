"""The history: what is read back as of any time, after crashes, across versions, and beside damaged files."""

from __future__ import annotations

import itertools
import logging
import os
import stat
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from pyarrow import fs

from quorin.engine.history.files import DataFile, file_name, in_force, mergeable, superseded
from quorin.engine.log.record import Kind
from quorin.engine.rows.batch import canonical_schema, delete_batch, row_batch, rows_batch, subset_schema
from quorin.errors import CorruptHistoryError, EntityIdError, HistoryUnavailableError, InvalidRowError
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, FeatureSchema, dtype, make_schema
from tests.support.schemas import Everything, rows_of

PAIR = [FeatureField("a", dtype.int32), FeatureField("b", dtype.string)]
Pair = make_schema("Pair", PAIR)
WIDE = [FeatureField("a", dtype.int64), FeatureField("position", dtype.float64), FeatureField("b", dtype.string)]
WiderPair = make_schema("Pair", WIDE, version=2)


def put(
    store: ParquetDatasetStore, schema: Any, batch: pa.RecordBatch, position: int, kind: Kind = Kind.upsert
) -> None:
    store.append(schema, batch, pa.repeat(pa.scalar(position, pa.int64()), len(batch)), kind=kind)


def put_row(store: ParquetDatasetStore, entity_id: str, a: int | None, event_time_ns: int, position: int) -> None:
    put(store, Pair, row_batch(Pair, entity_id, {"a": a, "b": f"{a}"}, event_time_ns), position)


def as_of(
    store: ParquetDatasetStore, schema: Any, asked: list[tuple[str, int]], **options: Any
) -> list[dict[str, Any]]:
    ids, times = zip(*asked, strict=True)
    queries = pa.table({"entity_id": list(ids), "as_of_time_ns": list(times)})
    return store.read_point_in_time(schema, queries, **options).to_pylist()


def data_files(base: Path) -> list[Path]:
    return sorted(base.rglob("*.parquet"))


class Reference:
    """An entity's rows as plain dictionaries, folded one by one in the order of the log."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.events: list[tuple[str, int, Kind, dict[str, Any]]] = []

    def state(self, entity_id: str, time: int, earliest: int | None = None) -> tuple[int | None, dict[str, Any]]:
        nothing = dict.fromkeys(self.names)
        now: int | None = None
        values: dict[str, Any] | None = None
        for name, event_time, kind, given_values in self.events:
            if name != entity_id or event_time > time or (now is not None and event_time < now):
                continue
            now = event_time
            if kind is Kind.delete:
                values = None
            elif kind is Kind.upsert:
                values = nothing | given_values
            else:
                values = (values or nothing) | given_values
        if now is None or values is None or (earliest is not None and now < earliest):
            return None, nothing
        return now, values


IDS = st.sampled_from(["x", "y", "zë"])
TIMES = st.integers(0, 6)
EVENTS = st.lists(
    st.tuples(
        st.lists(st.tuples(IDS, TIMES, st.integers(-9, 9) | st.none()), min_size=1, max_size=3),
        st.sampled_from([Kind.upsert, Kind.upsert, Kind.delete, Kind.partial]),
        st.sampled_from([["a"], ["b"], ["a", "b"]]),
        st.sampled_from(["", "flush", "crash", "compact", "replay"]),
        st.booleans(),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=120)
@given(EVENTS, st.lists(st.tuples(IDS, st.integers(-1, 8), st.integers(0, 4) | st.none()), min_size=1, max_size=8))
def test_reads_equal_a_brute_force_reference(tmp_path_factory, events, asked) -> None:
    """Late, duplicate, out-of-order events, deletes, partial rows, two schema versions, flushes, crashes, replays."""
    base = tmp_path_factory.mktemp("history")
    store = ParquetDatasetStore(base)
    reference = Reference(["a", "position", "b"])
    log: list[tuple[Any, pa.RecordBatch, Kind]] = []

    def replay(store: ParquetDatasetStore) -> None:
        for position, (schema, batch, kind) in enumerate(log, start=1):
            put(store, schema, batch, position, kind)

    for rows, kind, fields, then, newer in events:
        schema = WiderPair if newer else Pair
        values = [{"a": value, "b": None if value is None else f"{value}"} for _, _, value in rows]
        if newer:
            fields = [*fields, "position"]
            values = [given | {"position": given["a"] and given["a"] / 4} for given in values]
        shape = subset_schema(schema, fields) if kind is Kind.partial else canonical_schema(schema)
        if kind is Kind.delete:
            shape = pa.schema(list(shape)[:2])
        records = [
            {"entity_id": entity_id, "event_time_ns": time} | given
            for (entity_id, time, _), given in zip(rows, values, strict=True)
        ]
        batch = pa.RecordBatch.from_pylist([{name: row[name] for name in shape.names} for row in records], schema=shape)
        log.append((schema, batch, kind))
        reference.events += [
            (row["entity_id"], row["event_time_ns"], kind, {name: row[name] for name in shape.names[2:]})
            for row in records
        ]
        put(store, schema, batch, len(log), kind)
        if then == "flush":
            store.flush()
        elif then == "compact":
            store.flush()
            store.compact(schema)
        elif then == "replay":
            replay(store)
        elif then == "crash":
            store = ParquetDatasetStore(base)
            replay(store)
    store.close()

    queries = pa.table({"entity_id": [q[0] for q in asked], "as_of_time_ns": [q[1] for q in asked]})
    answers = store.read_point_in_time(WiderPair, queries, lookback=pa.array([q[2] for q in asked], pa.int64()))
    expected = []
    for entity_id, time, lookback in asked:
        now, values = reference.state(entity_id, time, None if lookback is None else time - lookback)
        expected.append({"entity_id": entity_id, "as_of_time_ns": time, "event_time_ns": now} | values)
    assert answers.to_pylist() == expected
    assert answers.schema.types[2:] == [pa.int64(), pa.int64(), pa.float64(), pa.string()]

    newest = {row["entity_id"]: row for row in store.latest_features(WiderPair).to_pylist()}
    for entity_id in {event[0] for event in reference.events}:
        now, values = reference.state(entity_id, 99)
        wanted = None if now is None else {"entity_id": entity_id, "event_time_ns": now} | values
        assert newest.pop(entity_id, None) == wanted
    assert newest == {}
    assert set(store.distinct_entity_ids(WiderPair).to_pylist()) == {event[0] for event in reference.events}
    tables = [pq.read_table(path, partitioning=None) for path in data_files(base)]
    assert sum(map(len, tables)) == sum(len(batch) for _, batch, _ in log)


@settings(deadline=None, max_examples=60)
@given(st.lists(rows_of(Everything), min_size=1, max_size=5))
def test_values_of_every_type_come_back_to_the_bit(tmp_path_factory, rows) -> None:
    store = ParquetDatasetStore(tmp_path_factory.mktemp("history"))
    batches = [row_batch(Everything, f"id{i}", row, i) for i, row in enumerate(rows)]
    for position, batch in enumerate(batches, start=1):
        put(store, Everything, batch, position)
    store.flush()
    written = pa.Table.from_batches(batches)
    found = store.latest_features(Everything)
    assert found.schema.types == written.schema.types
    for name in written.schema.names:
        assert bits(found.column(name)) == bits(written.column(name)), name
    (_, again, positions), *others = store.newest_first(Everything)
    assert others == []
    assert positions.to_pylist() == list(range(1, len(rows) + 1))
    for name in written.schema.names:
        assert bits(pa.chunked_array([again.column(name)])) == bits(written.column(name)), name


def bits(column: pa.ChunkedArray) -> list[Any]:
    """Values whose comparison tells NaNs and zeros apart."""

    def of(value: Any) -> Any:
        if isinstance(value, list):
            return [of(item) for item in value]
        return np.float64(value).tobytes() if isinstance(value, float) else value

    return [of(value) for value in column.to_pylist()]


def test_bits_of_nans_and_signed_zeros_survive(tmp_path: Path) -> None:
    floats = make_schema("Floats", [FeatureField("f", dtype.float64)])
    patterns = np.array([0x7FF8000000000001, 0x7FF8000000000002, 0xFFF8000000000001, 1 << 63, 0], np.uint64)
    arrays = [pa.array([f"{i}" for i in range(5)]), pa.array(np.arange(5)), pa.array(patterns.view(np.float64))]
    store = ParquetDatasetStore(tmp_path)
    put(store, floats, pa.RecordBatch.from_arrays(arrays, schema=canonical_schema(floats)), 1)
    store.flush()
    found = store.latest_features(floats).column("f").combine_chunks().to_numpy()
    assert found.view(np.uint64).tolist() == patterns.tolist()


def test_queries_keep_their_order_and_repeat(tmp_path: Path) -> None:
    store = ParquetDatasetStore(tmp_path)
    for position, (entity_id, a, time) in enumerate([("x", 1, 10), ("y", 2, 20), ("x", 3, 30), ("x", 4, 30)], start=1):
        put_row(store, entity_id, a, time, position)
    store.flush()
    asked = [("x", 30), ("nobody", 30), ("y", 19), ("x", 29), ("x", 30), ("x", 9), ("y", 20)]
    assert [row["a"] for row in as_of(store, Pair, asked)] == [4, None, None, 1, 4, None, 2]
    assert [row["a"] for row in as_of(store, Pair, [("x", 29), ("x", 20)], lookback=10)] == [None, 1]
    assert [row["a"] for row in as_of(store, Pair, [("x", 29)], lookback=timedelta(microseconds=1))] == [1]
    frame = pd.DataFrame({"entity_id": ["x"], "as_of_time_ns": pd.to_datetime([29])})
    assert store.read_point_in_time(Pair, frame).to_pylist()[0]["a"] == 1
    assert len(store.read_point_in_time(Pair, frame.iloc[:0])) == 0


def test_what_is_asked_for_is_checked(tmp_path: Path) -> None:
    store = ParquetDatasetStore(tmp_path)
    with pytest.raises(InvalidRowError, match="'as_of_time_ns'"):
        store.read_point_in_time(Pair, pa.table({"entity_id": ["x"]}))
    with pytest.raises(EntityIdError, match="row 0"):
        as_of(store, Pair, [("", 1)])
    with pytest.raises(InvalidRowError, match="2 values for 1 queries"):
        as_of(store, Pair, [("x", 1)], lookback=[1, 2])
    with pytest.raises(InvalidRowError, match="-1"):
        as_of(store, Pair, [("x", 1)], lookback=-1)
    assert as_of(store, Pair, [("x", 1)]) == [
        {"entity_id": "x", "as_of_time_ns": 1, "event_time_ns": None, "a": None, "b": None}
    ]
    assert len(store.latest_features(Pair)) == 0


QUERIES: dict[str, Any] = {
    "dict": lambda ids, times: {"entity_id": ids, "as_of_time_ns": times},
    "rows": lambda ids, times: [
        {"entity_id": key, "as_of_time_ns": time} for key, time in zip(ids, times, strict=True)
    ],
    "record batch": lambda ids, times: pa.record_batch([ids, times], ["entity_id", "as_of_time_ns"]),
    "categorical": lambda ids, times: pl.DataFrame({"entity_id": ids, "as_of_time_ns": times}).with_columns(
        pl.col("entity_id").cast(pl.Categorical)
    ),
    "enum": lambda ids, times: pl.DataFrame({"entity_id": ids, "as_of_time_ns": times}).with_columns(
        pl.col("entity_id").cast(pl.Enum(["a", "x", "y"]))
    ),
    "pandas categorical": lambda ids, times: pd.DataFrame({"entity_id": pd.Categorical(ids), "as_of_time_ns": times}),
    "pandas, other columns": lambda ids, times: pd.DataFrame(
        {"entity_id": ids, "as_of_time_ns": times, "mixed": [{1, 2}, "a", 3 + 4j]}
    ),
    "polars, other columns": lambda ids, times: pl.DataFrame(
        {"entity_id": ids, "as_of_time_ns": times, "objects": pl.Series([{1}, {2}, {3}], dtype=pl.Object)}
    ),
    "duckdb": lambda ids, times: duckdb.from_arrow(pa.table({"entity_id": ids, "as_of_time_ns": times})),
    "bytes": lambda ids, times: {"entity_id": [key.encode() for key in ids], "as_of_time_ns": np.array(times)},
    "dates": lambda ids, _: {"entity_id": ids, "as_of_time_ns": pa.array([1, 0, 3], pa.date32())},
}
NULL_IDS = {
    "rows": lambda ids: [{"entity_id": key, "as_of_time_ns": 9} for key in ids],
    "arrow": lambda ids: pa.table({"entity_id": ids, "as_of_time_ns": [9] * len(ids)}),
    "pandas": lambda ids: pd.DataFrame({"entity_id": pd.Categorical(ids), "as_of_time_ns": 9}),
    "masked": lambda ids: {
        "entity_id": np.ma.masked_array(["a", "x", "y"], [key is None for key in ids]), "as_of_time_ns": [9, 9, 9],
    },
}  # fmt: skip


@pytest.mark.parametrize("form", QUERIES)
def test_queries_are_taken_in_every_form_of_a_table(tmp_path: Path, form: str) -> None:
    store = ParquetDatasetStore(tmp_path)
    day = 86_400 * 10**9
    put_row(store, "x", 1, day, 1)
    put_row(store, "y", 2, 3 * day, 2)
    store.flush()
    queries = QUERIES[form](["x", "x", "y"], [day, 0, 3 * day])
    found = store.read_point_in_time(Pair, queries)
    assert found.column_names == ["entity_id", "as_of_time_ns", "event_time_ns", "a", "b"]
    assert found.column("as_of_time_ns").to_pylist() == [day, 0, 3 * day]
    assert found.column("a").to_pylist() == [1, None, 2]


@pytest.mark.parametrize("form", NULL_IDS)
def test_a_null_among_the_ids_of_queries_is_refused_with_its_row(tmp_path: Path, form: str) -> None:
    store = ParquetDatasetStore(tmp_path)
    with pytest.raises(EntityIdError, match="row 1"):
        store.read_point_in_time(Pair, NULL_IDS[form](["a", None, "y"]))
    with pytest.raises(InvalidRowError, match=r"row 1.*'as_of_time_ns'"):
        store.read_point_in_time(Pair, {"entity_id": ["a", "b"], "as_of_time_ns": [1, None]})
    with pytest.raises(InvalidRowError, match="2 entity ids and 1 times"):
        store.read_point_in_time(Pair, {"entity_id": ["a", "b"], "as_of_time_ns": [1]})
    assert store.read_point_in_time(Pair, []).num_rows == 0


def test_a_position_survives_a_restart_and_nothing_is_taken_twice(tmp_path: Path) -> None:
    store = ParquetDatasetStore(tmp_path)
    assert store.flushed_position(Pair) == 0
    put_row(store, "x", 1, 1, 5)
    assert store.flushed_position(Pair) == 0
    store.flush()
    put_row(store, "x", 2, 2, 9)
    again = ParquetDatasetStore(tmp_path)
    assert again.flushed_position(Pair) == 5
    for position in (5, 9, 12):  # cut otherwise than before
        put_row(again, "x", position, position, position)
    again.flush()
    assert again.flushed_position(Pair) == 12
    assert [path.name for path in data_files(tmp_path)] == [file_name(0, 5), file_name(5, 12)]
    store.flush()  # a writer that was overtaken flushes all the same
    assert len(data_files(tmp_path)) == 3
    numbers = [number for _, batch, _ in again.newest_first(Pair) for number in batch.column("a").to_pylist()]
    assert len(numbers) == 3


def test_a_schema_may_begin_at_a_position(tmp_path: Path) -> None:
    store = ParquetDatasetStore(tmp_path)
    store.skip_to(Pair, 10)
    assert store.flushed_position(Pair) == ParquetDatasetStore(tmp_path).flushed_position(Pair) == 10
    put_row(store, "x", 1, 1, 9)
    put_row(store, "x", 2, 2, 11)
    store.skip_to(Pair, 5)
    store.skip_to(Pair, 20)
    put_row(store, "y", 3, 3, 21)
    store.flush()
    assert [row["a"] for row in as_of(store, Pair, [("x", 9), ("y", 9)])] == [2, 3]
    assert store.compact(Pair) == 3
    assert [row["a"] for row in as_of(store, Pair, [("x", 9), ("y", 9)])] == [2, 3]


def test_files_and_folders_are_the_owners_alone(tmp_path: Path) -> None:
    store = ParquetDatasetStore(tmp_path / "deep" / "history")
    put_row(store, "x", 1, 1, 1)
    store.flush()
    (path,) = data_files(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_compaction_merges_what_a_day_has_and_loses_nothing(tmp_path: Path) -> None:
    store = ParquetDatasetStore(tmp_path)
    for position in range(1, 31):
        put_row(store, f"id{position % 7}", position, position, position)
        store.flush()
    before = store.latest_features(Pair)
    (day,) = {path.parent for path in data_files(tmp_path)}
    leftover = day / f"{file_name(1, 2)}.0123abcd.pending"
    leftover.touch()
    os.utime(leftover, (1, 1))
    assert store.compact(Pair) == 29
    (merged,) = data_files(tmp_path)
    assert merged.name == file_name(0, 30)
    assert not leftover.exists()
    assert pq.read_table(merged, partitioning=None).column("position").to_pylist() == list(range(1, 31))
    assert sorted(store.latest_features(Pair).to_pylist(), key=str) == sorted(before.to_pylist(), key=str)
    assert store.compact(Pair) == 0
    assert ParquetDatasetStore(tmp_path).flushed_position(Pair) == 30


def test_floats_that_hardly_shrink_are_not_compressed_and_everything_else_is(tmp_path: Path) -> None:
    fields = [
        FeatureField("noise", dtype.float32),
        FeatureField("vector", dtype.float64, (4,)),
        FeatureField("list", dtype.float32, (None,)),
        FeatureField("matrix", dtype.float32, (2, 2)),
        FeatureField("count", dtype.float32),
        FeatureField("empty", dtype.float64),
        FeatureField("text", dtype.string),
        FeatureField("texts", dtype.string, (None,)),
    ]
    schema = make_schema("Floats", fields)
    rng = np.random.default_rng(3)

    def batch(first: int) -> pa.RecordBatch:
        noise = rng.standard_normal((3000, 4))
        rows = {
            "entity_id": [f"id {first + i}" for i in range(3000)],
            "event_time_ns": [*range(first, first + 3000)],
            "noise": noise[:, 0].astype(np.float32),
            "vector": noise.tolist(),
            "list": noise.tolist(),
            "matrix": noise.reshape(-1, 2, 2).tolist(),
            "count": rng.poisson(2, 3000).astype(np.float32),
            "empty": [None] * 3000,
            "text": ["text"] * 3000,
            "texts": [["a", "b"]] * 3000,
        }
        kinds = canonical_schema(schema)
        return pa.record_batch([pa.array(rows[field.name], field.type) for field in kinds], schema=kinds)

    store = ParquetDatasetStore(tmp_path)
    written = [batch(0), batch(3000)]
    for position, rows in enumerate(written, start=1):
        put(store, schema, rows, position)
        store.flush()
    plain = {"noise", "vector", "list", "matrix"}
    for path in data_files(tmp_path):
        assert uncompressed(path) == plain
    assert store.compact(schema) == 1
    (merged,) = data_files(tmp_path)
    assert uncompressed(merged) == plain
    found = store.latest_features(schema).sort_by("event_time_ns")
    assert found.to_pylist() == pa.Table.from_batches(written).to_pylist()


def uncompressed(path: Path) -> set[str]:
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    assert {column.compression for column in columns} <= {"UNCOMPRESSED", "ZSTD"}
    return {column.path_in_schema.split(".")[0] for column in columns if column.compression == "UNCOMPRESSED"}


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "no Parquet": lambda path: path.write_bytes(b"PAR1 and then something else"),
    "another table": lambda path: pq.write_table(pa.table({"a": [1]}), path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_the_rest_is_read(tmp_path: Path, damage: str, caplog) -> None:
    store = ParquetDatasetStore(tmp_path)
    for position in (1, 2, 3):
        put_row(store, f"id{position}", position, position, position)
        store.flush()
    victim = data_files(tmp_path)[1]
    DAMAGES[damage](victim)
    with caplog.at_level(logging.ERROR):
        ids = store.latest_features(Pair).column("entity_id").to_pylist()
    assert ids == ["id1", "id3"]
    with pytest.raises(CorruptHistoryError, match=victim.name):
        ParquetDatasetStore(tmp_path, strict=True).latest_features(Pair)
    store.compact(Pair)
    assert victim in data_files(tmp_path)
    assert store.latest_features(Pair).column("entity_id").to_pylist() == ["id1", "id3"]


def test_pages_that_changed_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    store = ParquetDatasetStore(tmp_path, compression="none")
    put(store, Pair, rows_batch(Pair, [(f"id{i}", i, i, "text") for i in range(1000)]), 1)
    store.flush()
    (path,) = data_files(tmp_path)
    content = bytearray(path.read_bytes())
    place = content.index(b"id500")
    content[place : place + 5] = b"id5x0"
    path.write_bytes(content)
    with pytest.raises(CorruptHistoryError, match=path.name):
        store.latest_features(Pair)


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    store = ParquetDatasetStore(tmp_path)
    put_row(store, "x", 1, 1, 1)
    store.flush()
    (path,) = data_files(tmp_path)
    for name in ("notes.txt", "part-0.parquet", "5-1.parquet", f"{file_name(0, 9)}.bak"):
        (path.parent / name).write_text("not ours")
    assert store.latest_features(Pair).column("a").to_pylist() == [1]
    assert store.flushed_position(Pair) == 1
    store.compact(Pair)
    assert (path.parent / "notes.txt").exists()


def test_a_type_that_does_not_widen_is_an_error_that_names_file_and_field(tmp_path: Path) -> None:
    store = ParquetDatasetStore(tmp_path)
    put_row(store, "x", 1, 1, 1)
    store.flush()
    other = make_schema("Pair", [FeatureField("b", dtype.int64)])
    with pytest.raises(CorruptHistoryError, match=r"parquet.*'b'"):
        store.latest_features(other)


def filesystems(tmp_path: Path) -> dict[str, tuple[str, Any]]:
    memory = fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem("memory")))
    return {
        "url": (tmp_path.as_uri(), None),
        "memory": (f"/{tmp_path.name}/history", memory),
        "subtree": ("history", fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())),
    }


@pytest.mark.parametrize("kind", ["url", "memory", "subtree"])
def test_any_filesystem_of_arrow_will_do(tmp_path: Path, kind: str) -> None:
    base, filesystem = filesystems(tmp_path)[kind]
    for start in (1, 4):
        store = ParquetDatasetStore(base, filesystem=filesystem)
        assert store.flushed_position(Pair) == start - 1
        for position in range(1, start + 3):
            put_row(store, "x", position, position, position)
            store.flush()
    assert [row["a"] for row in as_of(store, Pair, [("x", 4), ("x", 99)])] == [4, 6]
    assert store.compact(Pair) == 5
    assert [row["a"] for row in as_of(store, Pair, [("x", 4), ("x", 99)])] == [4, 6]


def test_a_base_that_nobody_knows_or_reaches_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HistoryUnavailableError, match="carrier-pigeon"):
        ParquetDatasetStore("carrier-pigeon://loft")
    (tmp_path / "file").touch()
    store = ParquetDatasetStore(tmp_path / "file")
    put_row(store, "x", 1, 1, 1)
    with pytest.raises(HistoryUnavailableError, match="file"):
        store.flush()


class Versioned(FeatureSchema):
    """The first version."""

    version = 1
    fields = [
        FeatureField("narrow", dtype.float32, (2,)),
        FeatureField("dropped", dtype.bytes),
        FeatureField("kept", dtype.uint8),
    ]


def test_reads_work_across_versions(tmp_path: Path) -> None:
    fields = [
        FeatureField("kept", dtype.int64),
        FeatureField("added", dtype.string),
        FeatureField("narrow", dtype.float64, (2,)),
    ]
    newer = make_schema("Versioned", fields, version=2)
    store = ParquetDatasetStore(tmp_path)
    put(store, Versioned, row_batch(Versioned, "x", {"narrow": [1.5, 2.5], "dropped": b"!", "kept": 7}, 1), 1)
    put(store, newer, row_batch(newer, "x", {"kept": 2**40, "added": "new", "narrow": [1e300, 0.0]}, 2), 2)
    store.flush()
    assert len(data_files(tmp_path)) == 2
    first, second = as_of(store, newer, [("x", 1), ("x", 2)])
    assert (first["kept"], first["added"], first["narrow"]) == (7, None, [1.5, 2.5])
    assert (second["kept"], second["added"], second["narrow"]) == (2**40, "new", [1e300, 0.0])
    store.compact(newer)
    assert as_of(store, newer, [("x", 1), ("x", 2)]) == [first, second]
    assert as_of(store, Versioned, [("x", 1)])[0]["dropped"] == b"!"


def test_a_delete_gives_nulls_and_a_partial_row_after_it_begins_with_nulls(tmp_path: Path) -> None:
    store = ParquetDatasetStore(tmp_path)
    put_row(store, "x", 1, 1, 1)
    put(store, Pair, delete_batch(["x"], 5), 2, Kind.delete)
    put(store, Pair, row_batch(Pair, "x", {"b": "again"}, 9, partial=True), 3, Kind.partial)
    store.flush()
    answers = as_of(store, Pair, [("x", 4), ("x", 5), ("x", 9)])
    assert [(row["event_time_ns"], row["a"], row["b"]) for row in answers] == [
        (1, 1, "1"),
        (None, None, None),
        (9, None, "again"),
    ]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), max_size=10))
def test_every_position_is_in_one_piece(ranges) -> None:
    files = [DataFile(after, after + length, f"day/{i}") for i, (after, length) in enumerate(ranges)]
    pieces = in_force(files)
    for position in range(30):
        claiming = [file for file in files if file.after < position <= file.through]
        serving = [p for p in pieces if p.beyond < position <= p.file.through]
        assert len(serving) == bool(claiming)
        assert all(piece.file in claiming for piece in serving)
    assert {piece.file for piece in pieces}.isdisjoint(superseded(files))
    for run in mergeable(pieces, [1] * len(pieces), most_rows=4):
        assert 2 <= len(run) <= 4
        for before, after in itertools.pairwise(run):
            assert after.file.after <= before.file.through
