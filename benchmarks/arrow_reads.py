"""Rows by id as Arrow, beside murr: an embedded cache that answers in Arrow too.

Both hold the same rows of float32 in the same process and are given the same lists of str. `read` returns the ids, what
was found, and event times besides the fields; `assemble_batch` and `assemble` return the same numbers as a matrix.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import machine, measuring, report
from benchmarks.compare.on_murr import OnMurr
from benchmarks.engine import floats, fresh, ids_of, segment_of, values_of
from quorin.assembly import assemble, assemble_batch, read

if TYPE_CHECKING:
    from quorin.shm import Segment

CASES = ((1, 4), (1, 10), (1000, 10))


def main() -> None:
    """Measure, print a table, and with `--json` and `--docs` write it."""
    arguments = _arguments()
    if arguments.child:
        _child(arguments)
        return
    console = Console(highlight=False, width=110)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    passed = ["--child", "--rounds", str(arguments.rounds), "--entities", str(arguments.entities)]
    runs = measuring.in_fresh_processes("benchmarks.arrow_reads", passed, count=arguments.processes)
    figures = measuring.summary(list(track(runs, total=arguments.processes, console=console)))
    table = _table(figures)
    console.print(table)
    report.keep(arguments, "arrow", where, {"arrow": figures}, [table])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.arrow_reads",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, default=4, help="fresh processes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds a process (default: %(default)s)")
    parser.add_argument("--entities", type=int, default=100_000, help="rows (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this Markdown file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def _child(arguments: argparse.Namespace) -> None:
    """One process's samples of every case."""
    rng, count = np.random.default_rng(arguments.seed), arguments.entities
    cases: dict[str, Callable[..., object]] = {}
    calls: dict[str, int] = {}
    prepare: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as opened:
        for size, fields in CASES:
            folder = Path(directory) / f"{size}x{fields}"
            folder.mkdir()
            segment = opened.enter_context(segment_of(folder, floats(fields), count))
            murr = OnMurr(folder, [field.name for field in segment.schema.fields])
            murr.fill(ids_of(count), values_of(count, fields))
            batches = cycle([[f"user_{number:07}" for number in rng.integers(count, size=size)] for _ in range(20)])
            first = next(batches)
            assert read(segment, first).select(murr.fields).equals(murr.read_many(first))
            for name, way in _ways(segment, murr, size).items():
                case = f"{size:,} row{'s' * (size > 1)} × {fields}: {name}"
                cases[case], calls[case] = way, 1000 if size == 1 else 50
                prepare[case] = partial(_next_ids, batches)
        measuring.send(measuring.interleave(cases, rounds=arguments.rounds, calls=calls, prepare=prepare))


def _ways(segment: Segment, murr: OnMurr, size: int) -> dict[str, Callable[[list[str]], object]]:
    ways: dict[str, Callable[[list[str]], object]] = {
        murr.name: murr.read_many,
        "read": partial(read, segment),
        "assemble_batch": partial(assemble_batch, segment),
    }
    if size == 1:
        ways["assemble"] = lambda ids: assemble(segment, ids[0])
    return ways


def _next_ids(batches: Iterator[list[str]]) -> list[str]:
    return [fresh(entity_id) for entity_id in next(batches)]


def _table(figures: dict[str, dict[str, float]]) -> Table:
    table = Table(title="Rows by id as Arrow", title_justify="left")
    for column in ("request", "p50", "p99", "murr's p50 against it"):
        table.add_column(column, justify="left" if column == "request" else "right")
    rivals = {name.partition(":")[0]: row["p50"] for name, row in figures.items() if name.endswith(OnMurr.name)}
    for name, row in figures.items():
        ratio = rivals[name.partition(":")[0]] / row["p50"]
        shown = "" if name.endswith(OnMurr.name) else f"{ratio:.1f}×"
        table.add_row(name, measuring.duration(row["p50"]), measuring.duration(row["p99"]), shown)
    return table


if __name__ == "__main__":
    main()
