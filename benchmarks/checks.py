"""Checks of a million rows beside pandas, and what pins cost: to take one, and to read and ask Feast through one.

Both sides check the same: for every field the share of nulls, a range, the drift of the mean and of three quantiles, of
a new generation beside the one that is served. Both begin with a scan of the two segments. Reads of a pinned and of a
following segment alternate, and so do requests for features with and without pins, in a process and over HTTP.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks import machine, pinned_requests, report
from quorin import layout
from quorin.assembly import assemble, scan
from quorin.engine.checks.run import run
from quorin.schema import FeatureField, MeanDrift, NullShare, QuantileDrift, Range, Schema, dtype, make_schema
from quorin.shm import Segment, SegmentRegistry

QUANTILES = (0.01, 0.5, 0.99)
LOW, HIGH = -4.0, 4.0
NODES = 3


def main() -> None:
    """Measure, print a table, and with `--json` and `--docs` write it."""
    arguments = _arguments()
    console = Console(highlight=False, width=110)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    with console.status("checks and pins ..."):
        figures = _measured(arguments)
    table = _table(figures, arguments)
    console.print(table)
    report.keep(arguments, "checks", where, {"checks": figures}, [table])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entities", type=int, default=1_000_000, help="rows of a segment (default: %(default)s)")
    parser.add_argument("--fields", type=int, default=10, help="fields of a row (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this Markdown file")
    return parser.parse_args()


def _measured(arguments: argparse.Namespace) -> dict[str, float]:
    names = [f"f{index}" for index in range(arguments.fields)]
    schema = make_schema("Checked", [FeatureField(name, dtype.float32) for name in names])
    with ExitStack() as stack:
        registries = []
        for node in range(NODES):
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm", prefix="quorin-bench-")))
            registries.append(SegmentRegistry(directory / "store", shm_dir=directory))
            stack.callback(registries[-1].backend.close)
            _filled(registries[-1], schema, arguments.entities if node == 0 else 1000, seed=node)
        served = stack.enter_context(registries[0].open_current(schema))
        candidate = registries[0].create(schema, capacity=arguments.entities, set_current=False)
        stack.callback(registries[0].discard, candidate)
        _fill(candidate, schema, arguments.entities, seed=9)
        figures = _checks(schema, candidate, served, arguments.repeats)
        figures |= _pins(registries, schema, served, arguments)
    return figures | pinned_requests.measured(arguments.repeats)


def _filled(registry: SegmentRegistry, schema: Schema, entities: int, *, seed: int) -> None:
    with registry.create(schema, capacity=entities) as segment:
        _fill(segment, schema, entities, seed=seed)


def _fill(segment: Segment, schema: Schema, entities: int, *, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for start in range(0, entities, 100_000):
        ids = [f"user_{number:08}" for number in range(start, min(start + 100_000, entities))]
        columns = {field.name: rng.standard_normal(len(ids), dtype=np.float32) for field in schema.fields}
        layout.insert_many(segment, pa.table({"entity_id": ids, **columns}), event_time_ns=1)


def _checks(schema: Schema, candidate: Segment, served: Segment, repeats: int) -> dict[str, float]:
    """The quickest of several runs of each side, which alternate; both find the same figures."""
    checks = [
        check
        for field in schema.fields
        for check in (
            NullShare(field.name, at_most=0.1),
            Range(field.name, low=LOW, high=HIGH, at_most=0.01),
            MeanDrift(field.name, at_most=0.5),
            QuantileDrift(field.name, quantiles=QUANTILES, at_most=0.5),
        )
    ]
    times: dict[str, list[float]] = {"quorin": [], "pandas": []}
    for _ in range(repeats):
        started = time.perf_counter()
        ours = run(checks, schema, scan(candidate), scan(served))
        times["quorin"].append(time.perf_counter() - started)
        started = time.perf_counter()
        theirs = _pandas(schema, candidate, served)
        times["pandas"].append(time.perf_counter() - started)
        assert ours.passed, ours.failures
        found = [float(result.found or 0) for result in ours.results]
        assert np.allclose(found, theirs, atol=1e-3), (found, theirs)
    return {f"checks_{side}": min(values) for side, values in times.items()}


def _pandas(schema: Schema, candidate: Segment, served: Segment) -> list[float]:
    new, old = (scan(segment).read_all().to_pandas() for segment in (candidate, served))
    figures = []
    for field in schema.fields:
        column, before = new[field.name], old[field.name]
        figures += [column.isna().mean(), (~column.between(LOW, HIGH)).mean()]
        figures.append(abs(column.mean() - before.mean()) / before.std(ddof=0))
        quantiles = list(QUANTILES)
        drift = (column.quantile(quantiles) - before.quantile(quantiles)).abs().max()
        figures.append(drift / before.std(ddof=0))
    return [float(figure) for figure in figures]


def _pins(
    registries: list[SegmentRegistry], schema: Schema, served: Segment, arguments: argparse.Namespace
) -> dict[str, float]:
    started = time.perf_counter()
    with ExitStack() as pinned:
        for registry in registries:
            pinned.enter_context(registry.open_current(schema, pin="current"))
        on_nodes = time.perf_counter() - started
    times = []
    for _ in range(100):
        started = time.perf_counter()
        with served.pin():
            times.append(time.perf_counter() - started)
    ids = [f"user_{number:08}" for number in range(min(1000, arguments.entities))]
    reads: dict[str, list[float]] = {"following": [], "pinned": []}
    with registries[0].open_current(schema) as following, registries[0].open_current(schema) as staying, staying.pin():
        for _ in range(20 * arguments.repeats):
            for side, segment in (("following", following), ("pinned", staying)):
                reads[side].append(_read(segment, ids))
    return {
        "pin_three_nodes": on_nodes,
        "pin": float(np.median(times)),
        **{f"read_{side}": min(values) for side, values in reads.items()},
    }


def _read(segment: Segment, ids: list[str]) -> float:
    out = assemble(segment, ids[0])
    started = time.perf_counter()
    for entity_id in ids:
        assemble(segment, entity_id, out=out)
    return (time.perf_counter() - started) / len(ids)


def _table(figures: dict[str, float], arguments: argparse.Namespace) -> Table:
    table = Table(title=f"{arguments.entities:,} entities, {arguments.fields} fields")
    table.add_column("what")
    table.add_column("measured", justify="right")

    def row(what: str, text: Any) -> None:
        table.add_row(what, str(text))

    quorin, pandas = figures["checks_quorin"], figures["checks_pandas"]
    row("checks of a new generation beside the served one", f"{quorin:.2f} s")
    row("the same with pandas", f"{pandas:.2f} s ({pandas / quorin:.1f}x)")
    row("pin what is served", f"{figures['pin'] * 1e6:.0f} µs")
    row(f"open and pin on {NODES} nodes", f"{figures['pin_three_nodes'] * 1e3:.1f} ms")
    ratio = figures["read_pinned"] / figures["read_following"]
    row("assemble, following", f"{figures['read_following'] * 1e9:.0f} ns")
    row("assemble, pinned", f"{figures['read_pinned'] * 1e9:.0f} ns ({ratio:.2f}x)")
    for what, text in pinned_requests.rows(figures):
        row(what, text)
    return table


if __name__ == "__main__":
    main()
