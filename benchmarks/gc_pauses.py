"""What Python's cyclic collector does to the latency of a serving process, and what freezing or switching it off saves.

A request reads one entity's vector and makes a small response of Python objects, a few of which live on for a while, as
in a web server. The process holds a large heap of objects besides (a model, routes, configuration). Modes: the
collector as it comes; the heap frozen after warm-up (`prewarm(freeze=True)`); frozen, and the youngest generation
collected a tenth as often (`gc.set_threshold`); off. Each mode runs in several fresh processes, in turn. "Longest
collection" is processor time inside the collector, so that it does not count what else the machine was doing.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections import deque
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks import machine, measuring, report
from quorin import layout
from quorin.assembly import assemble, prewarm
from quorin.schema import FeatureField, FeatureSchema, dtype
from quorin.shm import SegmentRegistry

ENTITIES = 50_000
ALIVE_RESPONSES = 2_000
THRESHOLD = 7_000
QUANTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "p9999": 0.9999, "longest": 1.0}
LABELS = {"p999": "p99.9", "p9999": "p99.99", "longest": "longest request"}


class Served(FeatureSchema):
    """Four scalars."""

    version = 1
    fields = [FeatureField(name, dtype.float32) for name in "abcd"]


def _default() -> None:
    """The collector as it comes."""


def _freeze() -> None:
    """What serving processes are advised to do."""
    prewarm(freeze=True)


def _freeze_and_wait() -> None:
    """The same, and the youngest generation is collected a tenth as often."""
    prewarm(freeze=True)
    gc.set_threshold(THRESHOLD, *gc.get_threshold()[1:])


MODES: dict[str, tuple[str, Callable[[], None]]] = {
    "default": ("as it comes", _default),
    "freeze": ("frozen after warm-up", _freeze),
    "rare": (f"frozen, threshold {THRESHOLD:,}", _freeze_and_wait),
    "off": ("off", gc.disable),
}


def main() -> None:
    """Measure, print a table, and with `--json` and `--docs` write it."""
    arguments = _arguments()
    if arguments.child:
        measuring.send(_child(arguments))
        return
    console = Console(highlight=False, width=110)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    runs: dict[str, list[measuring.Samples]] = {mode: [] for mode in MODES}
    sizes = ["--objects", str(arguments.objects), "--requests", str(arguments.requests)]
    with console.status("fresh processes, in turn ..."):
        for _ in range(arguments.processes):
            for mode, taken in runs.items():
                taken += measuring.in_fresh_processes("benchmarks.gc_pauses", ["--child", mode, *sizes], count=1)
    figures = {mode: _figures(taken) for mode, taken in runs.items()}
    table = _table(figures, arguments)
    console.print(table)
    report.keep(arguments, "gc", where, {"gc": figures}, [table])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gc_pauses", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=1_000_000, help="objects besides (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=200_000, help="requests a process (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=5, help="fresh processes a mode (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this Markdown file")
    parser.add_argument("--child", choices=list(MODES), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def _child(arguments: argparse.Namespace) -> measuring.Samples:
    """Times of single requests, in nanoseconds."""
    heap = [{"number": index, "parts": [index]} for index in range(arguments.objects // 2)]
    responses: deque[object] = deque(maxlen=ALIVE_RESPONSES)
    ids = [f"user_{number:08}" for number in range(ENTITIES)]
    with tempfile.TemporaryDirectory() as directory:
        registry = SegmentRegistry(Path(directory) / "store", shm_dir=directory)
        with registry.create(Served, capacity=ENTITIES) as segment:
            values = {name: np.ones(ENTITIES, np.float32) for name in "abcd"}
            layout.insert_many(segment, pa.table({"entity_id": ids, **values}))
            calls = cycle(ids)

            def request() -> None:
                entity_id = next(calls)
                vector = assemble(segment, entity_id)
                names = [{"name": name, "value": value} for name, value in zip("abcd", vector.tolist(), strict=True)]
                response = {"entity_id": entity_id, "features": names, "context": {"request": []}}
                response["context"]["request"].append(response)  # type: ignore[index]
                responses.append(response)

            for _ in range(10_000):
                request()
            MODES[arguments.child][1]()
            collections = _watched_collector()
            clock = time.perf_counter_ns
            times = np.zeros(arguments.requests, np.int64)
            for number in range(arguments.requests):
                before = clock()
                request()
                times[number] = clock() - before
        registry.backend.close()
    del heap
    return {"request": times, "collection": np.array(collections or [0])}


def _watched_collector() -> list[int]:
    """Processor time of every collection from now on, in nanoseconds."""
    taken: list[int] = []
    began = [0]

    def note(phase: str, _: object) -> None:
        if phase == "start":
            began[0] = time.thread_time_ns()
        else:
            taken.append(time.thread_time_ns() - began[0])

    gc.callbacks.append(note)
    return taken


def _figures(runs: list[measuring.Samples]) -> dict[str, float]:
    times = np.concatenate([run["request"] for run in runs])
    quantiles = {label: float(np.quantile(times, q)) for label, q in QUANTILES.items()}
    collections = np.concatenate([run["collection"] for run in runs])
    share = float(collections.sum() / times.sum())
    return quantiles | {"longest_collection": float(collections.max()), "collector_share": share}


def _table(figures: dict[str, dict[str, float]], arguments: argparse.Namespace) -> Table:
    title = (
        f"The collector and one request's latency: {arguments.objects:,} objects besides, "
        f"{arguments.processes} fresh processes a mode, {arguments.requests:,} requests each"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("collector", no_wrap=True)
    for label in QUANTILES:
        table.add_column(LABELS.get(label, label), justify="right")
    table.add_column("longest collection", justify="right")
    table.add_column("time in it", justify="right")
    for mode, (name, _) in MODES.items():
        cells = [measuring.duration(figures[mode][label]) for label in (*QUANTILES, "longest_collection")]
        table.add_row(name, *cells, f"{figures[mode]['collector_share']:.1%}")
    return table


if __name__ == "__main__":
    main()
