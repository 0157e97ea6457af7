"""More than one row by id: scans, changes since a position, and the last values of an entity, beside other stores.

All hold the same rows of four float32 and are read in the same process: a Parquet file by pyarrow, LMDB by a cursor,
Redis by SCAN and pipelines of HGETALL, as Feast stores rows. The last fifty values are a field with `history=50`, a
list in Redis, and one value of LMDB that has them all.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import machine, measuring, report, servers
from benchmarks.engine import floats, fresh, ids_of, values_of
from quorin import layout
from quorin.assembly import changed_since, read_last, read_last_batch, scan
from quorin.engine.rows.batch import to_batch
from quorin.schema import FeatureField, Schema, dtype, make_schema
from quorin.shm import SegmentRegistry

NAMES = ("f0", "f1", "f2", "f3")
KEPT, LONGEST = 50, 10_000
PREFIX = "user_00"
CHANGED = 100
"""One row in so many has changed."""
SERIES: Schema = make_schema("Series", [FeatureField("amount", dtype.float64, history=KEPT)])
_LOADED_AT_ONCE = 10_000


def main() -> None:
    """Measure, print a table, and with `--json` and `--docs` write it."""
    arguments = _arguments()
    if arguments.child:
        _child(arguments)
        return
    console = Console(highlight=False, width=110)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    with tempfile.TemporaryDirectory() as directory, servers.redis_server() as address:
        passed = ["--child", "--directory", directory, "--redis", address]
        passed += ["--entities", str(arguments.entities), "--rounds", str(arguments.rounds)]
        with filled(Path(directory), address, arguments.entities):
            runs = measuring.in_fresh_processes("benchmarks.rows", passed, count=arguments.processes)
            figures = measuring.summary(list(track(runs, total=arguments.processes, console=console)))
    table = _table(figures, arguments.entities)
    console.print(table)
    report.keep(arguments, "rows", where, {"rows": figures}, [table])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rows", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=3, help="fresh processes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds a process (default: %(default)s)")
    parser.add_argument("--entities", type=int, default=1_000_000, help="rows (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this Markdown file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    for name, kind in (("directory", Path), ("redis", str), ("seed", int)):
        parser.add_argument(f"--{name}", type=kind, default=0 if kind is int else None, help=argparse.SUPPRESS)
    return parser.parse_args()


@contextmanager
def filled(directory: Path, address: str, count: int) -> Iterator[None]:
    """The same rows in every store; one row in `CHANGED` of the segment has a later position."""
    registry = SegmentRegistry(directory / "engine")
    ids, values = ids_of(count), values_of(count, len(NAMES))
    rows = pa.table({"entity_id": ids, **dict(zip(NAMES, values.T, strict=True))})
    pq.write_table(rows, directory / "rows.parquet")
    segment = registry.create(floats(len(NAMES)), capacity=count)
    series = registry.create(SERIES, capacity=min(count, LONGEST))
    try:
        batch = to_batch(segment.schema, rows, event_time_ns=1)
        layout.apply_batch(segment, batch, position=1)
        layout.apply_batch(segment, batch.take(pa.array(range(0, count, CHANGED))), position=2)
        for number in range(KEPT):
            amounts = pa.table({"entity_id": ids[:LONGEST], "amount": np.arange(min(count, LONGEST)) + number / KEPT})
            layout.insert_many(series, amounts, event_time_ns=number)
        segment.release_writer_lease()
        series.release_writer_lease()
        with _lmdb(directory) as environment, environment.begin(write=True) as transaction:
            transaction.cursor().putmulti([(key.encode(), row.tobytes()) for key, row in zip(ids, values, strict=True)])
            for number, key in enumerate(ids[:LONGEST]):
                transaction.put(f"last:{key}".encode(), (number + np.arange(KEPT)[::-1] / KEPT).tobytes())
        _fill_redis(redis.Redis.from_url(f"redis://{address}"), ids, values)
        yield
    finally:
        registry.discard(segment)
        registry.discard(series)


def _fill_redis(client: Any, ids: list[str], values: np.ndarray) -> None:
    for start in range(0, len(ids), _LOADED_AT_ONCE):
        pipe = client.pipeline(transaction=False)
        for number in range(start, min(start + _LOADED_AT_ONCE, len(ids))):
            pipe.hset(f"row:{ids[number]}", mapping=dict(zip(NAMES, map(bytes, values[number]), strict=True)))
            if number < LONGEST:
                pipe.rpush(f"last:{ids[number]}", *(number + np.arange(KEPT)[::-1] / KEPT).tolist())
        pipe.execute()


def _lmdb(directory: Path) -> Any:
    return lmdb.open(str(directory / "lmdb"), map_size=1 << 33, readahead=False, sync=False)


def _child(arguments: argparse.Namespace) -> None:
    """One process's samples of every store."""
    registry = SegmentRegistry(arguments.directory / "engine")
    segment, series = registry.open_current(floats(len(NAMES))), registry.open_current(SERIES)
    transaction = _lmdb(arguments.directory).begin(buffers=True)
    client = redis.Redis.from_url(f"redis://{arguments.redis}")
    path = arguments.directory / "rows.parquet"
    rng, longest = np.random.default_rng(arguments.seed), min(arguments.entities, LONGEST)
    some = [fresh(f"user_{number:07}") for number in rng.integers(longest, size=20_000)]
    ids, thousand = cycle(some), pa.array(some[:1000])
    cases: dict[str, Callable[[], Any]] = {
        "all rows: scan": lambda: scan(segment).read_all(),
        "all rows: Parquet file, pyarrow": lambda: pq.read_table(path),
        "all rows: LMDB, cursor": lambda: _from_lmdb(transaction, b"user_"),
        "all rows: Redis, SCAN and HGETALL": lambda: _from_redis(client, "row:*"),
        "of a prefix: scan": lambda: scan(segment, PREFIX).read_all(),
        "of a prefix: LMDB, cursor": lambda: _from_lmdb(transaction, PREFIX.encode()),
        "one in a hundred changed: changed_since": lambda: changed_since(segment, 1).batches.read_all(),
        "one in a hundred changed: scan of all": lambda: scan(segment).read_all(),
        f"last {KEPT} values: read_last": lambda: read_last(series, next(ids), "amount", KEPT),
        f"last {KEPT} values: LMDB get": lambda: np.frombuffer(transaction.get(f"last:{next(ids)}".encode())).copy(),
        f"last {KEPT} values: Redis LRANGE": lambda: client.lrange(f"last:{next(ids)}", 0, KEPT - 1),
        f"last {KEPT} values of 1,000: read_last_batch": lambda: read_last_batch(series, thousand, "amount"),
    }
    for name, case in cases.items():
        if name.startswith("all rows") and "Redis" not in name:
            assert case().num_rows == arguments.entities, name
    assert cases["one in a hundred changed: changed_since"]().num_rows == -(-arguments.entities // CHANGED)
    singles = f"last {KEPT} values:"
    calls = {name: (500 if "Redis" in name else 5000) if name.startswith(singles) else 1 for name in cases}
    slow = {name: case for name, case in cases.items() if name == "all rows: Redis, SCAN and HGETALL"}
    quick = {name: case for name, case in cases.items() if name not in slow}
    samples = measuring.interleave(quick, rounds=arguments.rounds, calls=calls)
    taken = samples | measuring.interleave(slow, rounds=1, calls=calls)
    measuring.send({name: taken[name] for name in cases})


def _from_lmdb(transaction: Any, prefix: bytes) -> pa.Table:
    """The rows of a range of keys as Arrow."""
    keys, rows, cursor = [], [], transaction.cursor()
    if cursor.set_range(prefix):
        for key, row in cursor:
            if bytes(key[: len(prefix)]) != prefix:
                break
            keys.append(bytes(key))
            rows.append(bytes(row))
    values = np.frombuffer(b"".join(rows), np.float32).reshape(len(rows), len(NAMES))
    columns = {name: np.ascontiguousarray(values[:, index]) for index, name in enumerate(NAMES)}
    return pa.table({"entity_id": pa.array(keys, pa.binary()).cast(pa.string()), **columns})


def _from_redis(client: Any, pattern: str) -> pa.Table:
    """Every hash whose key fits a pattern as Arrow."""
    keys: list[bytes] = []
    rows: list[bytes] = []
    cursor, found = client.scan(0, pattern, _LOADED_AT_ONCE)
    while True:
        pipe = client.pipeline(transaction=False)
        for key in found:
            pipe.hgetall(key)
        for key, row in zip(found, pipe.execute(), strict=True):
            keys.append(key.removeprefix(b"row:"))
            rows += (row[name.encode()] for name in NAMES)
        if not cursor:
            break
        cursor, found = client.scan(cursor, pattern, _LOADED_AT_ONCE)
    values = np.frombuffer(b"".join(rows), np.float32).reshape(len(keys), len(NAMES))
    columns = {name: np.ascontiguousarray(values[:, index]) for index, name in enumerate(NAMES)}
    return pa.table({"entity_id": pa.array(keys, pa.binary()).cast(pa.string()), **columns})


def _table(figures: dict[str, dict[str, float]], entities: int) -> Table:
    table = Table(title=f"More than one row by id, {entities:,} rows of four floats", title_justify="left")
    for column in ("request", "p50", "p99", "p50 against the first"):
        table.add_column(column, justify="left" if column == "request" else "right")
    first: dict[str, float] = {}
    for name, row in figures.items():
        base = first.setdefault(name.partition(":")[0], row["p50"])
        ratio = "" if base == row["p50"] else f"{row['p50'] / base:.2f}"
        table.add_row(name, measuring.duration(row["p50"]), measuring.duration(row["p99"]), ratio)
    return table


if __name__ == "__main__":
    main()
