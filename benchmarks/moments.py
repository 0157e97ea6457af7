"""Reads with age limits, and reads of two segments at one position of the log, each beside the same read without.

A consumer at full speed, in a process of its own, rewrites all rows of both segments for the last two cases.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import track

from benchmarks import machine, measuring, report
from benchmarks.engine import floats, ids_of
from quorin.assembly import assemble, assemble_batch, read, read_together, reader
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer

FEW, MANY, ENTITIES, AGE_SECONDS = 100, 1000, 2000, 10**9
LEFT, RIGHT = floats(4), floats(5)
PLAIN, AGED, TOGETHER = "", "with max_age", "at one position"
BESIDE = ", beside a consumer"


def main() -> None:
    """Measure, print a table, and with `--json` and `--docs` write it."""
    arguments = _arguments()
    if arguments.child:
        _child(arguments)
    elif arguments.writer:
        _write_for_ever(arguments.writer)
    else:
        console = Console(highlight=False, width=110)
        where = machine.describe()
        console.print(machine.one_line(where), style="dim", soft_wrap=True)
        runs = measuring.in_fresh_processes(
            "benchmarks.moments", ["--child", "--rounds", str(arguments.rounds)], count=arguments.processes
        )
        figures = measuring.summary(list(track(runs, total=arguments.processes, console=console)))
        table = report.against_plain("Age limits and consistent reads", figures)
        console.print(table)
        report.keep(arguments, "moments", where, {"moments": figures}, [table])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.moments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=4, help="fresh processes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="rounds a process (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this Markdown file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--writer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def _child(arguments: argparse.Namespace) -> None:
    """One process's samples of every case."""
    with tempfile.TemporaryDirectory() as directory:
        registry = SegmentRegistry(str(Path(directory) / "store"))
        producer = WALProducer(registry.backend, registry=registry)
        for schema in (LEFT, RIGHT):
            registry.create(schema, capacity=ENTITIES).close()
            producer.write_many(schema, _rows(len(schema.fields)))
        WALConsumer(registry.backend, [LEFT, RIGHT], registry=registry).drain()
        left, right = (registry.open_current(schema) for schema in (LEFT, RIGHT))
        try:
            ids = pa.array(ids_of(MANY))
            few, one = ids[:FEW], ids[0].as_py()
            apart, parts = lambda: (read(left, few), read(right, few)), [(left, few), (right, few)]
            together = partial(read_together, parts, timeout_ms=60_000)
            names = {"one": "reader, 1 row", "many": f"assemble_batch, {MANY:,} rows", "two": f"read, 2 × {FEW} rows"}
            cases: dict[str, Callable[[], object]] = {
                f"assemble, 1 row|{PLAIN}": partial(assemble, left, one),
                f"assemble, 1 row|{AGED}": partial(assemble, left, one, max_age=AGE_SECONDS),
                f"{names['one']}|{PLAIN}": partial(reader(left), one),
                f"{names['one']}|{AGED}": partial(reader(left, max_age=AGE_SECONDS), one),
                f"{names['many']}|{PLAIN}": partial(assemble_batch, left, ids),
                f"{names['many']}|{AGED}": partial(assemble_batch, left, ids, max_age=AGE_SECONDS),
                f"{names['two']}|{PLAIN}": apart,
                f"{names['two']}|{TOGETHER}": together,
            }
            calls = {name: 2000 if "1 row" in name else 100 for name in cases}
            samples = measuring.interleave(cases, rounds=arguments.rounds, calls=calls)
            with _writer(directory):
                beside: dict[str, Callable[[], object]] = {
                    f"{names['two']}{BESIDE}|{PLAIN}": apart,
                    f"{names['two']}{BESIDE}|{TOGETHER}": together,
                }
                calls = dict.fromkeys(beside, 20)
                samples |= measuring.interleave(beside, rounds=arguments.rounds, calls=calls)
            measuring.send(samples)
        finally:
            for segment in (left, right):
                registry.discard(segment)


@contextmanager
def _writer(directory: str) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.moments", "--writer", str(Path(directory) / "store")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


def _write_for_ever(store: Path) -> None:
    """Rewrite all rows of both segments, over and over, until killed."""
    registry = SegmentRegistry(str(store))
    producer = WALProducer(registry.backend, registry=registry)
    consumer = WALConsumer(registry.backend, [LEFT, RIGHT], registry=registry)
    rows = [(schema, _rows(len(schema.fields))) for schema in (LEFT, RIGHT)]
    is_first = True
    while True:
        for schema, table in rows * 8:
            producer.write_many(schema, table)
        consumer.drain()
        if is_first:
            print("writing", flush=True)
        is_first = False


def _rows(fields: int) -> pa.Table:
    values = np.random.default_rng(1).standard_normal((fields, ENTITIES), dtype=np.float32)
    return pa.table({"entity_id": ids_of(ENTITIES), **{f"f{number}": row for number, row in enumerate(values)}})


if __name__ == "__main__":
    main()
