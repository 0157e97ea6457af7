"""The engine beside what one would use instead: a dict, LMDB, Redis.

Parts: `reads` (single reads and batches), `beside_a_writer` (the same reads while another process rewrites all rows),
`memory` (bytes an entity), `growth` (cost against entities and fields), `batches` (against their size). Rivals hold
the same rows and take turns in the same processes; quantiles are over the calls of all processes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import machine, measuring, report, servers
from benchmarks.compare.in_process import InProcess
from benchmarks.compare.on_lmdb import OnLmdb
from benchmarks.compare.on_redis import OnRedis
from quorin import layout
from quorin.assembly import assemble, assemble_batch
from quorin.engine.rows.batch import to_batch
from quorin.schema import FeatureField, Schema, dtype, make_schema
from quorin.shm import Segment, SegmentRegistry

if TYPE_CHECKING:
    from benchmarks.compare.rival import Rival

PARTS = ("reads", "beside_a_writer", "memory", "growth", "batches")
BATCH = 1000
LARGE, SMALL = 1_000_000, 50_000


def floats(count: int) -> Schema:
    """A schema of as many float32 fields."""
    return make_schema(f"Floats{count}", [FeatureField(f"f{number}", dtype.float32) for number in range(count)])


def main() -> None:
    """Measure, print tables, and with `--json` and `--docs` write them."""
    arguments = _arguments()
    if arguments.child:
        _CHILDREN[arguments.child](arguments)
        return
    console = Console(highlight=False, width=110)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    result: dict[str, Any] = {}
    tables = []
    for part in arguments.only or PARTS:
        with tempfile.TemporaryDirectory() as directory:
            figures, table = _PARTS[part](arguments, Path(directory), console)
        console.print(table)
        result[part] = figures
        tables.append(table)
    report.keep(arguments, "engine", where, result, tables)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=4, help="fresh processes a part (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds a process (default: %(default)s)")
    parser.add_argument("--entities", type=int, default=LARGE, help="rows of four floats (default: %(default)s)")
    parser.add_argument("--most-entities", type=int, default=10**7, help="in `growth` (default: %(default)s)")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be given more than once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the tables into this Markdown file")
    for name, kind in (("child", str), ("directory", Path), ("redis", str), ("seed", int), ("sizes", str)):
        parser.add_argument(f"--{name}", type=kind, default=0 if kind is int else None, help=argparse.SUPPRESS)
    return parser.parse_args()


# --- the same rows in every store -------------------------------------------------------------------------------------


def ids_of(count: int) -> list[str]:
    """Twelve bytes each."""
    return [f"user_{number:07}" for number in range(count)]


def values_of(count: int, fields: int) -> np.ndarray:
    """Rows of float32."""
    return np.random.default_rng(1).standard_normal((count, fields), dtype=np.float32)


@contextmanager
def segment_of(directory: Path, schema: Schema, count: int) -> Iterator[Segment]:
    """A current segment with `count` rows; removed in the end."""
    registry = SegmentRegistry(directory / "engine")
    segment = registry.create(schema, capacity=count)
    try:
        for start in range(0, count, LARGE):
            ids = [f"user_{number:07}" for number in range(start, min(start + LARGE, count))]
            columns = dict(
                zip([field.name for field in schema.fields], values_of(len(ids), len(schema.fields)).T, strict=True)
            )
            layout.insert_many(segment, pa.table({"entity_id": ids, **columns}))
        yield segment
    finally:
        registry.discard(segment)


def fill_rivals(directory: Path, address: str, count: int, fields: int) -> None:
    """LMDB and Redis with the same rows; the dict is filled in each process."""
    for rival in (OnLmdb(directory), OnRedis(address, f"{fields}:")):
        rival.fill(ids_of(count), values_of(count, fields))


# --- reads ------------------------------------------------------------------------------------------------------------


def measure_reads(arguments: argparse.Namespace, directory: Path, console: Console) -> tuple[Any, Table]:
    """Single reads and batches, quiet."""
    figures: dict[str, Any] = {}
    with servers.redis_server() as address:
        for fields, count in ((4, arguments.entities), (200, min(SMALL, arguments.entities))):
            folder = directory / str(fields)
            folder.mkdir()
            fill_rivals(folder, address, count, fields)
            with segment_of(folder, floats(fields), count):
                figures |= _in_processes("reads", arguments, folder, console, fields, count, "--redis", address)
    return figures, _latency_table("Reads, quiet", figures)


def read_child(arguments: argparse.Namespace) -> None:
    """One process's samples of every rival."""
    fields, count = (int(part) for part in arguments.sizes.split("x"))
    rng = np.random.default_rng(arguments.seed)
    segment = SegmentRegistry(arguments.directory / "engine").open_current(floats(fields))
    local, on_redis = InProcess(), OnRedis(arguments.redis, f"{fields}:")
    local.fill(ids_of(count), values_of(count, fields))
    rivals: list[Rival] = [local, OnLmdb(arguments.directory), on_redis]
    hot = fresh(f"user_{rng.integers(count):07}")
    random = [fresh(f"user_{number:07}") for number in rng.integers(count, size=100_000)]
    out = np.empty(fields, np.float32)
    singles: dict[str, Callable[[str], Any]] = {
        local.name: local.read,
        "assemble": lambda entity_id: assemble(segment, entity_id),
        "assemble, out=": lambda entity_id: assemble(segment, entity_id, out=out),
        **{rival.name: rival.read for rival in rivals[1:]},
    }
    for read in singles.values():
        assert np.array_equal(read(random[0]), local.read(random[0]))
    cases: dict[str, Callable[..., object]] = {"the clock itself": lambda: None}
    for name, read in singles.items():
        cases[f"{fields} fields, one id: {name}"] = lambda read=read: read(hot)
        ids = cycle(random)
        cases[f"{fields} fields, random ids: {name}"] = lambda read=read, ids=ids: read(next(ids))
    batches = cycle([[random[number] for number in rng.integers(len(random), size=BATCH)] for _ in range(20)])
    group = f"{fields} fields, {BATCH:,} random ids"
    batch_out, mask = np.empty((BATCH, fields), np.float32), np.empty(BATCH, np.bool_)
    forms: dict[str, tuple[Callable[[list[str]], Any], Callable[[Any], object]]] = {
        "dict, np.stack": (list, local.read_many),
        "assemble_batch, list of str": (list, lambda ids: assemble_batch(segment, ids, out=batch_out, found_mask=mask)),
        "assemble_batch, Arrow": (pa.array, lambda ids: assemble_batch(segment, ids, out=batch_out, found_mask=mask)),
        "Redis MGET": (on_redis.keys, on_redis.read_many),
    }
    prepare: dict[str, Callable[[], object]] = {}
    for name, (form, read_batch) in forms.items():
        cases[f"{group}: {name}"] = read_batch
        prepare[f"{group}: {name}"] = lambda form=form: form([fresh(entity_id) for entity_id in next(batches)])  # type: ignore[misc]
    calls = {name: 200 if "Redis GET" in name else 10 if name.startswith(group) else 2000 for name in cases}
    measuring.send(measuring.interleave(cases, rounds=arguments.rounds, calls=calls, prepare=prepare))


def fresh(entity_id: str) -> str:
    """An id as a request brings it: not the object that the dict holds as its key, and its hash not yet known."""
    return entity_id.encode().decode()


# --- beside a writer --------------------------------------------------------------------------------------------------


def measure_beside_a_writer(arguments: argparse.Namespace, directory: Path, console: Console) -> tuple[Any, Table]:
    """The same reads, quiet and while another process rewrites all rows as fast as it can."""
    figures: dict[str, Any] = {}
    count = min(100_000, arguments.entities)
    with segment_of(directory, floats(4), count) as segment:
        segment.release_writer_lease()
        for name, writer in (("quiet", nullcontext()), ("beside a writer", _writer(directory, count))):
            with writer:
                found = _in_processes("beside", arguments, directory, console, 4, count)
            figures |= {f"{case}, {name}" if case != "the clock itself" else case: row for case, row in found.items()}
    return figures, _latency_table("Reads beside a writer at full speed", figures)


@contextmanager
def _writer(directory: Path, count: int) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.engine", "--child", "writer", "--directory", str(directory)]
    process = subprocess.Popen([*command, "--sizes", f"4x{count}"], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


def writer_child(arguments: argparse.Namespace) -> None:
    """Rewrite every row, over and over, until killed."""
    fields, count = (int(part) for part in arguments.sizes.split("x"))
    segment = SegmentRegistry(arguments.directory / "engine").open_current(floats(fields), read_only=False)
    columns = dict(zip([field.name for field in segment.schema.fields], values_of(count, fields).T, strict=True))
    batch = to_batch(segment.schema, pa.table({"entity_id": ids_of(count), **columns}), event_time_ns=2**62)
    position = 0
    while True:
        position += 1
        layout.apply_batch(segment, batch, position=position)
        if position == 1:
            print("writing", flush=True)


def beside_child(arguments: argparse.Namespace) -> None:
    """One process's samples of single reads and batches."""
    fields, count = (int(part) for part in arguments.sizes.split("x"))
    rng = np.random.default_rng(arguments.seed)
    segment = SegmentRegistry(arguments.directory / "engine").open_current(floats(fields))
    random = cycle([fresh(f"user_{number:07}") for number in rng.integers(count, size=100_000)])
    batches = cycle([pa.array([next(random) for _ in range(BATCH)]) for _ in range(50)])
    cases: dict[str, Callable[[], object]] = {
        "the clock itself": lambda: None,
        "random ids: assemble": lambda: assemble(segment, next(random)),
        f"{BATCH:,} random ids: assemble_batch, Arrow": lambda: assemble_batch(segment, next(batches)),
    }
    calls = {name: 50 if "batch" in name else 5000 for name in cases}
    measuring.send(measuring.interleave(cases, rounds=arguments.rounds, calls=calls))


# --- memory -----------------------------------------------------------------------------------------------------------


def measure_memory(_: argparse.Namespace, directory: Path, console: Console) -> tuple[Any, Table]:
    """Bytes an entity, index and all, of a segment at its capacity."""
    shapes: dict[str, tuple[Schema, int]] = {
        "4 floats": (floats(4), LARGE),
        "50 floats": (floats(50), 200_000),
        "200 floats": (floats(200), SMALL),
        "embedding of 128 floats": (make_schema("Embedding", [FeatureField("e", dtype.float32, (128,))]), 100_000),
    }
    figures = {}
    for name, (schema, count) in track(shapes.items(), description="memory", console=console):
        registry = SegmentRegistry(directory / "engine")
        segment = registry.create(schema, capacity=count)
        size = segment.stats()["bytes"] / count
        raw = sum(field.byte_count for field in schema.fields)
        figures[name] = {"bytes_an_entity": size, "raw_bytes": raw}
        registry.discard(segment)
    table = Table(title="Memory at capacity, ids up to 28 bytes in the row", title_justify="left")
    for column in ("row", "values alone", "bytes an entity, all in", "ratio"):
        table.add_column(column, justify="left" if column == "row" else "right")
    for name, row in figures.items():
        ratio = row["bytes_an_entity"] / row["raw_bytes"]
        table.add_row(name, f"{row['raw_bytes']}", f"{row['bytes_an_entity']:.1f}", f"{ratio:.2f}")
    return figures, table


# --- growth -----------------------------------------------------------------------------------------------------------


def measure_growth(arguments: argparse.Namespace, directory: Path, console: Console) -> tuple[Any, Table]:
    """How cost grows with entities and fields."""
    figures: dict[str, Any] = {}
    once = argparse.Namespace(**vars(arguments) | {"processes": min(2, arguments.processes)})
    exponents = range(3, len(str(arguments.most_entities)))
    sizes = [(4, 10**exponent) for exponent in exponents] + [
        (fields, min(10_000, arguments.most_entities)) for fields in (1, 10, 100, 1000)
    ]
    for number, (fields, count) in enumerate(sizes):
        folder = directory / str(number)
        folder.mkdir()
        with segment_of(folder, floats(fields), count):
            figures |= _in_processes("growth", once, folder, console, fields, count)
    return figures, _latency_table("How cost grows", figures)


def growth_child(arguments: argparse.Namespace) -> None:
    """One process's samples for one size."""
    fields, count = (int(part) for part in arguments.sizes.split("x"))
    rng = np.random.default_rng(arguments.seed)
    segment = SegmentRegistry(arguments.directory / "engine").open_current(floats(fields))
    random = [fresh(f"user_{number:07}") for number in rng.integers(count, size=100_000)]
    name = f"{count:,} entities, {fields} field{'s' * (fields > 1)}"
    ids = cycle(random)
    cases: dict[str, Callable[[], object]] = {f"{name}: assemble": lambda: assemble(segment, next(ids))}
    calls = {f"{name}: assemble": 5000}
    ready = cycle([pa.array([random[i] for i in rng.integers(len(random), size=BATCH)]) for _ in range(10)])
    case = f"{name}: assemble_batch of {BATCH:,}, Arrow"
    cases[case] = lambda: assemble_batch(segment, next(ready))
    calls[case] = 200
    measuring.send(measuring.interleave(cases, rounds=arguments.rounds, calls=calls))


# --- batches ----------------------------------------------------------------------------------------------------------


def measure_batches(arguments: argparse.Namespace, directory: Path, console: Console) -> tuple[Any, Table]:
    """What a batch of random ids takes, by its size and by what its ids come as."""
    once = argparse.Namespace(**vars(arguments) | {"processes": min(2, arguments.processes)})
    with segment_of(directory, floats(4), arguments.entities):
        figures = _in_processes("batches", once, directory, console, 4, arguments.entities)
    return figures, _latency_table(f"Batches by size, {arguments.entities:,} entities", figures)


def batches_child(arguments: argparse.Namespace) -> None:
    """One process's samples for all sizes."""
    fields, count = (int(part) for part in arguments.sizes.split("x"))
    rng = np.random.default_rng(arguments.seed)
    segment = SegmentRegistry(arguments.directory / "engine").open_current(floats(fields))
    local = InProcess()
    local.fill(ids_of(count), values_of(count, fields))
    cases: dict[str, Callable[..., object]] = {}
    calls, prepare = {}, {}
    forms: dict[str, tuple[Callable[[list[str]], Any], Callable[[Any], object]]] = {
        "dict, np.stack": (list, local.read_many),
        "assemble_batch, list of str": (list, lambda ids: assemble_batch(segment, ids)),
        "assemble_batch, Arrow": (pa.array, lambda ids: assemble_batch(segment, ids)),
    }
    for size in (1, 10, 100, 1000, 10_000, 100_000):
        batches = cycle([[f"user_{number:07}" for number in rng.integers(count, size=size)] for _ in range(3)])
        for name, (form, read_batch) in forms.items():
            case = f"batch of {size:,}: {name}"
            cases[case] = read_batch
            calls[case] = max(2, min(200, 20_000 // size))
            prepare[case] = lambda form=form, batches=batches: form([fresh(entity_id) for entity_id in next(batches)])
    measuring.send(measuring.interleave(cases, rounds=arguments.rounds, calls=calls, prepare=prepare))


# --- tables -----------------------------------------------------------------------------------------------------------


def _in_processes(
    child: str, arguments: argparse.Namespace, directory: Path, console: Console, fields: int, count: int, *more: str
) -> dict[str, dict[str, float]]:
    passed = ["--child", child, "--directory", str(directory), "--rounds", str(arguments.rounds)]
    passed += ["--sizes", f"{fields}x{count}", *more]
    runs = measuring.in_fresh_processes("benchmarks.engine", passed, count=arguments.processes)
    description = f"{child}, {fields} fields, {count:,} rows"
    return measuring.summary(list(track(runs, description=description, total=arguments.processes, console=console)))


def _latency_table(title: str, figures: dict[str, dict[str, float]]) -> Table:
    """Quantiles; rows a second for batches; and how many times slower (or faster) than the first of its group."""
    table = Table(title=title, title_justify="left")
    for column in ("request", "p50", "by process", "p99", "p999", "M rows/s", "p50 against the first"):
        table.add_column(column, justify="left" if column == "request" else "right")
    first: dict[str, float] = {}
    for name, row in figures.items():
        group = name.partition(":")[0]
        base = first.setdefault(group, row["p50"])
        size = _batch_size(name)
        rate = f"{size / row['p50'] * 1e3:.1f}" if size else ""
        ratio = "" if base == row["p50"] else f"{row['p50'] / base:.2f}"
        median, *tail = (measuring.duration(row[q]) for q in measuring.QUANTILES)
        table.add_row(name, median, measuring.spread(row), *tail, rate, ratio)
    return table


def _batch_size(name: str) -> int:
    if "batch of " in name:
        return int(name.split("batch of ")[1].partition(":")[0].split(", Arrow")[0].replace(",", ""))
    return BATCH if f"{BATCH:,} random ids" in name else 0


_PARTS: dict[str, Callable[[argparse.Namespace, Path, Console], tuple[Any, Table]]] = {
    "reads": measure_reads,
    "beside_a_writer": measure_beside_a_writer,
    "memory": measure_memory,
    "growth": measure_growth,
    "batches": measure_batches,
}
_CHILDREN: dict[str, Callable[[argparse.Namespace], None]] = {
    "reads": read_child,
    "beside": beside_child,
    "writer": writer_child,
    "growth": growth_child,
    "batches": batches_child,
}


if __name__ == "__main__":
    main()
