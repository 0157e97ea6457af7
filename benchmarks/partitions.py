"""Partitions: what a split costs, and a bulk write to 16 logs on three masters beside one log on one Redis.

All servers, the producer and the consumer share this machine's processors, so the masters bring no more power: the
figure is what splitting costs where nothing is gained by it. `write_many` of rows with four float32 fields; a round
writes to each deployment in turn. `applied` ends when a consumer in the same process has applied what was written.

A split is the partition of each id and the order of rows by partition (the kernels), and putting the batch in that
order, 131,072 rows at a time as a producer does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import machine, measuring, report, servers
from benchmarks.log import NAMES, LogRow
from quorin.engine.log.appending import MAX_SPLIT_ROWS
from quorin.engine.rows.partitions import order_by_partition, partitions_of, split
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer

PARTITIONS, FEW = 16, 100
ONE, SEVERAL = "1 partition, one Redis", f"{PARTITIONS} partitions, three masters"
SPLITS = {"partitions and order": "kernels", "whole batch, 4 fields": "4", "whole batch, 50 fields": "50"}


def main() -> None:
    """Measure, print tables, and with `--json` and `--docs` write them."""
    arguments = _arguments()
    console = Console(highlight=False, width=110)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    figures = {"split": _splits(arguments), "bulk": _bulk(arguments, console)}
    tables = [_split_table(figures["split"]), _bulk_table(figures["bulk"])]
    for table in tables:
        console.print(table)
    report.keep(arguments, "partitions", where, {"partitions": figures}, tables)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.partitions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of a bulk write (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the tables into this Markdown file")
    return parser.parse_args()


def _batch(rows: int, fields: int = len(NAMES)) -> pa.RecordBatch:
    values = np.random.default_rng(0).random(rows, np.float32)
    ids = [f"driver_{number}" for number in range(rows)]
    columns = {"entity_id": ids, "event_time_ns": np.arange(rows)}
    names = NAMES if fields == len(NAMES) else [f"f{number}" for number in range(fields)]
    return pa.RecordBatch.from_pydict(columns | dict.fromkeys(names, values))


def _splits(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Quantiles of ns a row."""
    rows = min(arguments.rows, MAX_SPLIT_ROWS)
    narrow, wide = _batch(rows), _batch(rows, 50)

    def order() -> object:
        return order_by_partition(partitions_of(narrow.column(0), PARTITIONS), PARTITIONS)

    cases: dict[str, Callable[[], object]] = dict(
        zip(SPLITS, (order, lambda: split(narrow, PARTITIONS), lambda: split(wide, PARTITIONS)), strict=True)
    )
    samples = measuring.interleave(cases, rounds=4 * arguments.rounds, calls=dict.fromkeys(cases, 3))
    return {
        name: {"lowest": float(times.min()) / rows, "p50": float(np.median(times)) / rows}
        for name, times in samples.items()
    }


def _bulk(arguments: argparse.Namespace, console: Console) -> dict[str, dict[str, float]]:
    """Quantiles of rows a second, and of microseconds of a small write."""
    batch = _batch(arguments.rows)
    small = batch.slice(0, FEW)
    taken: dict[str, dict[str, list[float]]] = {ONE: {}, SEVERAL: {}}
    with ExitStack() as stack:
        places = {
            ONE: _Deployment(stack, f"redis://{stack.enter_context(servers.redis_server())}", 1, arguments.rows),
            SEVERAL: _Deployment(stack, stack.enter_context(servers.cluster()), PARTITIONS, arguments.rows),
        }
        for number in track(range(arguments.rounds + 1), "bulk", console=console, transient=True):
            for name, place in places.items():
                for figure, value in place.round(batch, small).items():
                    if number:
                        taken[name].setdefault(figure, []).append(value)
    return {name: {figure: float(np.median(values)) for figure, values in of.items()} for name, of in taken.items()}


class _Deployment:
    """A producer, and a consumer that applies when it is told to."""

    def __init__(self, stack: ExitStack, url: str, partitions: int, rows: int) -> None:
        shm_dir = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
        self._registry = SegmentRegistry(url, shm_dir=shm_dir, partitions=partitions)
        stack.callback(self._registry.backend.close)
        self._producer = stack.enter_context(WALProducer(self._registry.backend, registry=self._registry))
        segment = stack.enter_context(self._registry.create(LogRow, capacity=rows))
        self._consumer = WALConsumer(self._registry.backend, [segment], registry=self._registry)
        stack.callback(self._consumer.close)

    def round(self, batch: pa.RecordBatch, small: pa.RecordBatch) -> dict[str, float]:
        """Write a batch and apply it, and a small one some times."""
        begun = time.perf_counter()
        self._producer.write_many(LogRow, batch)
        written = time.perf_counter()
        self._consumer.drain()
        applied = time.perf_counter()
        for _ in range(20):
            self._producer.write_many(LogRow, small)
        done = time.perf_counter()
        self._consumer.drain()
        return {
            "appended": batch.num_rows / (written - begun),
            "applied": batch.num_rows / (applied - begun),
            "small_us": 1e6 * (done - applied) / 20,
        }


def _split_table(figures: dict[str, dict[str, float]]) -> Table:
    table = Table(title="A split, ns a row", title_justify="left")
    for column in ("what", "lowest", "p50"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, row in figures.items():
        table.add_row(name, f"{row['lowest']:.1f}", f"{row['p50']:.1f}")
    return table


def _bulk_table(figures: dict[str, dict[str, float]]) -> Table:
    table = Table(title="Bulk writes: one partition and several, servers on one machine", title_justify="left")
    for column in ("deployment", "appended, M rows/s", "appended and applied, M rows/s", f"{FEW} rows, ms"):
        table.add_column(column, justify="left" if column == "deployment" else "right")
    for name, row in figures.items():
        cells = (row["appended"] / 1e6, row["applied"] / 1e6, row["small_us"] / 1e3)
        table.add_row(name, *(f"{value:.2f}" for value in cells))
    several, one = figures[SEVERAL], figures[ONE]
    ratios = (several["appended"] / one["appended"], several["applied"] / one["applied"])
    table.add_row("ratio", *(f"{ratio:.2f}×" for ratio in ratios), f"{several['small_us'] / one['small_us']:.2f}×")
    return table


if __name__ == "__main__":
    main()
