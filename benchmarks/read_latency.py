"""How long a read takes, beside what one would use instead.

The engine against a dict in the same process: `assemble` of four float32 fields, on one id and on random ones, and
batches. And `get_online_features` on three stores of Feast (its own SQLite and Redis stores, and Quorin), the same rows
and requests. The engine's rivals take turns call by call, Feast's stores one after the other in each process; quantiles
are over the calls of several fresh processes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import feast_stores, machine, measuring, report, servers
from quorin.assembly import assemble, assemble_batch
from quorin.layout import insert_many
from quorin.schema import FeatureField, FeatureSchema, dtype
from quorin.shm import SegmentRegistry

BATCH = 1000
NAMES = ("a", "b", "c", "d")


class FourFloats(FeatureSchema):
    """What the engine's cases read."""

    version = 1
    fields = [FeatureField(name, dtype.float32) for name in NAMES]


def main() -> None:
    """Measure, print a table, and with `--json` the figures to a file."""
    arguments = _arguments()
    if arguments.child == "engine":
        measuring.send(_engine_samples(arguments))
    elif arguments.child == "feast":
        measuring.send(_feast_samples(arguments))
    else:
        _measure(arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.read_latency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, default=5, help="fresh processes a part (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="rounds a process (default: %(default)s)")
    parser.add_argument("--entities", type=int, default=1_000_000, help="the engine's rows (default: %(default)s)")
    parser.add_argument("--feast-entities", type=int, default=2_000, help="Feast's rows (default: %(default)s)")
    parser.add_argument("--only", choices=["engine", "feast"], help="leave the other part out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put Feast's table into this Markdown file")
    parser.add_argument("--child", choices=["engine", "feast"], help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--redis", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(arguments: argparse.Namespace) -> None:
    console = Console(highlight=False)
    console.width = max(console.width, 110)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    result: dict[str, Any] = {"machine": where}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if arguments.only != "feast":
            with _segment(directory, arguments.entities):
                result["engine"] = _figures("engine", arguments, directory, console)
            console.print(_engine_table(result["engine"], arguments.entities))
        if arguments.only != "engine":
            with servers.redis_server() as redis, _filled_stores(directory, redis, arguments.feast_entities, console):
                result["feast"] = _figures("feast", arguments, directory, console, "--redis", redis)
            table = _feast_table(result["feast"])
            console.print(table)
            if arguments.docs:
                report.put(arguments.docs, "feast", machine.one_line(where), [table])
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def _figures(
    part: str, arguments: argparse.Namespace, directory: Path, console: Console, *more: str
) -> dict[str, dict[str, float]]:
    passed = ["--child", part, "--directory", str(directory), "--rounds", str(arguments.rounds), *more]
    passed += ["--entities", str(arguments.entities), "--feast-entities", str(arguments.feast_entities)]
    runs = measuring.in_fresh_processes("benchmarks.read_latency", passed, count=arguments.processes)
    progress = track(runs, description=f"{part}, in fresh processes", total=arguments.processes, console=console)
    return measuring.summary(list(progress))


# --- the engine -------------------------------------------------------------------------------------------------------


@contextmanager
def _segment(directory: Path, entities: int) -> Iterator[None]:
    registry = SegmentRegistry(directory / "engine")
    segment = registry.create(FourFloats, capacity=entities)
    try:
        columns = dict(zip(NAMES, _values(entities).T, strict=True))
        insert_many(segment, pa.table({"entity_id": _ids(entities), **columns}))
        yield
    finally:
        registry.discard(segment)


def _values(entities: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((entities, len(NAMES)), dtype=np.float32)


def _ids(entities: int) -> list[str]:
    return [f"user_{number:08}" for number in range(entities)]


def _engine_samples(arguments: argparse.Namespace) -> measuring.Samples:
    segment = SegmentRegistry(arguments.directory / "engine").open_current(FourFloats)
    values, ids = _values(arguments.entities), _ids(arguments.entities)
    rows = {entity_id: values[number].copy() for number, entity_id in enumerate(ids)}
    rng = np.random.default_rng(arguments.seed)
    # An id as a request brings it: a fresh str, not the object that the dict holds as its key.
    hot = str(bytes(ids[rng.integers(len(ids))], "ascii"), "ascii")
    random = [str(bytes(ids[number], "ascii"), "ascii") for number in rng.integers(len(ids), size=200_000)]
    batches = [[random[number] for number in rng.integers(len(random), size=BATCH)] for _ in range(50)]
    out = np.empty(len(NAMES), dtype=np.float32)
    _check_equal(segment, rows, random[:BATCH])
    cases: dict[str, Callable[[], object]] = {
        "the clock itself": lambda: None,
        "one id: dict copy": lambda: rows[hot].copy(),
        "one id: assemble": lambda: assemble(segment, hot),
        "one id: assemble(out=)": lambda: assemble(segment, hot, out=out),
    }
    for name, call in {
        "random ids: dict copy": lambda ids: lambda: rows[next(ids)].copy(),
        "random ids: assemble": lambda ids: lambda: assemble(segment, next(ids)),
    }.items():
        cases[name] = call(cycle(random))
    for name, prepare, read in (
        ("batch of 1,000 str: dict, np.stack", list, lambda ids: np.stack([rows[entity_id] for entity_id in ids])),
        ("batch of 1,000 str: assemble_batch", list, lambda ids: assemble_batch(segment, ids)),
        ("batch of 1,000, Arrow: assemble_batch", pa.array, lambda ids: assemble_batch(segment, ids)),
    ):
        prepared = cycle([prepare(batch) for batch in batches])
        cases[name] = lambda read=read, prepared=prepared: read(next(prepared))  # type: ignore[misc]
    calls = {name: 20 if name.startswith("batch") else 2_000 for name in cases}
    try:
        return measuring.interleave(cases, rounds=arguments.rounds, calls=calls)
    finally:
        segment.close()


def _check_equal(segment: Any, rows: dict[str, np.ndarray], ids: list[str]) -> None:
    vectors, found = assemble_batch(segment, ids)
    assert found.all()
    for entity_id, vector in zip(ids, vectors, strict=True):
        assert vector.tobytes() == rows[entity_id].tobytes() == assemble(segment, entity_id).tobytes()


def _engine_table(figures: dict[str, dict[str, float]], entities: int) -> Table:
    table = _table(f"The engine: 4 float32 fields, {entities:,} entities", "rows/s", "than the dict")
    for name, row in figures.items():
        group = name.partition(":")[0].removesuffix(", Arrow").removesuffix(" str")
        rival = next((other for other in figures if other.startswith(group) and "dict" in other), name)
        rate = f"{BATCH / row['p50'] * 1e3:.1f} M" if name.startswith("batch") else ""
        ratio = "" if rival == name else _ratio(figures[rival]["p50"] / row["p50"])
        _add_row(table, name, row, rate, ratio)
    return table


# --- Feast ------------------------------------------------------------------------------------------------------------

REQUESTS = {"1 row × 4": (1, 4), "100 rows × 50": (100, 50), "1,000 rows × 50": (1000, 50)}


@contextmanager
def _filled_stores(directory: Path, redis: str, entities: int, console: Console) -> Iterator[None]:
    stores = feast_stores.stores(directory, redis)
    try:
        for name, store in stores.items():
            with console.status(f"filling {name} ..."):
                feast_stores.fill(store, directory, entities=entities)
        yield
    finally:
        for store in stores.values():
            store.teardown()


def _feast_samples(arguments: argparse.Namespace) -> measuring.Samples:
    """Feast keeps one cache of resolved requests for a whole process, which stores that alternate would spoil for each
    other; so the stores come one after the other, each process beginning with another one.
    """
    stores = feast_stores.stores(arguments.directory, arguments.redis)
    rng = np.random.default_rng(arguments.seed)
    cases: dict[str, dict[str, Callable[[], object]]] = {name: {} for name in stores}
    calls = {}
    for shape, (rows, features) in REQUESTS.items():
        names = feast_stores.references(features)
        requests = [
            [{"id": int(number)} for number in rng.integers(arguments.feast_entities, size=rows)] for _ in range(100)
        ]
        answers = [store.get_online_features(names, requests[0]).to_dict() for store in stores.values()]
        assert all(answer == answers[0] for answer in answers), "the stores disagree"
        for form in ("to_dict", "to_df"):
            for store_name, store in stores.items():
                name = f"{shape}, {form}: {store_name}"
                cases[store_name][name] = _request(store, names, cycle(requests), form)
                calls[name] = 50 if rows == 1 else 3 if rows < 1000 else 1
    first = arguments.seed % len(stores)
    samples: measuring.Samples = {}
    for store_name in [*stores][first:] + [*stores][:first]:
        samples |= measuring.interleave(cases[store_name], rounds=arguments.rounds, calls=calls)
    return {name: samples[name] for name in calls}


def _request(store: Any, names: list[str], requests: Iterator[list[dict[str, int]]], form: str) -> Callable[[], object]:
    return lambda: getattr(store.get_online_features(names, next(requests)), form)()


def _feast_table(figures: dict[str, dict[str, float]]) -> Table:
    table = _table("Feast: get_online_features and one conversion", "than SQLite", "than Redis")
    for name, row in figures.items():
        request = name.partition(":")[0]
        rivals = [f"{request}: {store}" for store in ("feast-sqlite", "feast-redis")]
        _add_row(
            table, name, row, *("" if rival == name else _ratio(figures[rival]["p50"] / row["p50"]) for rival in rivals)
        )
    return table


# --- tables -----------------------------------------------------------------------------------------------------------


def _table(title: str, *more: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("case", no_wrap=True)
    for heading in (*measuring.QUANTILES, *more):
        table.add_column(heading, justify="right")
    return table


def _add_row(table: Table, name: str, row: dict[str, float], *more: str) -> None:
    table.add_row(name, *(measuring.duration(row[label]) for label in measuring.QUANTILES), *more)


def _ratio(times_faster: float) -> str:
    if times_faster >= 1:
        return f"{times_faster:.1f}× faster"
    return f"{1 / times_faster:.1f}× slower"


if __name__ == "__main__":
    main()
