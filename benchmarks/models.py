"""From an id to a prediction: features by the usual way of pandas, and straight into the model's matrix.

The same rows are in Feast's Redis store and in Quorin's, 19 numbers and a text that is a category, and models of four
libraries predict from them. The usual way takes a frame of Feast's answer and gives its column the categories of
training. Each store has processes of its own, which take turns; all ways of a library have to predict the same.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from benchmarks import machine, measuring, report, servers
from benchmarks.compare import feast_stores
from benchmarks.model_libraries import Model, trained

REDIS, QUORIN = "feast-redis", "feast-quorin"
STORES = (REDIS, QUORIN)
CITIES = [f"city {number}" for number in range(50)]
NUMBERS = [f"f{number:02}" for number in range(19)]
COLUMNS = ["city", *NUMBERS]
FEATURES = [f"rides:{name}" for name in COLUMNS]
USUAL, MATRIX, ENGINE, MODEL = "Feast and pandas", "feast_quorin.model_reader", "assembly.model_reader", "the model"
CASES = ((1, 50), (100, 5))
"""Rows, and calls a round."""
_TIME = datetime(2024, 1, 1, tzinfo=UTC)


def main() -> None:
    """Measure, print a table, and with `--json` and `--docs` write it."""
    arguments = _arguments()
    if arguments.child:
        measuring.send(_samples(arguments))
        return
    console = Console(highlight=False, width=130)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    with tempfile.TemporaryDirectory() as name, servers.redis_server() as redis:
        directory = Path(name)
        stores = feast_stores.stores(directory, redis)
        try:
            with console.status("filling the stores ..."):
                _prepare(stores, directory, arguments.entities)
            figures = _figures(arguments, directory, redis, console)
        finally:
            for store in STORES:
                stores[store].teardown()
    table = _table(figures)
    console.print(table)
    report.keep(arguments, "models", where, {"models": figures}, [table])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=3, help="fresh processes a store (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds a process (default: %(default)s)")
    parser.add_argument("--entities", type=int, default=2_000, help="rows (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this Markdown file")
    parser.add_argument("--child", choices=STORES, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--redis", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def _prepare(stores: dict[str, Any], directory: Path, entities: int) -> None:
    """Write the same rows to both stores."""
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Float32, Int64, String

    rng = np.random.default_rng(3)
    rows = pd.DataFrame({name: rng.standard_normal(entities).astype(np.float32) for name in NUMBERS})
    rows["city"] = rng.choice(CITIES, entities)
    path = directory / "rides.parquet"
    rows.assign(id=np.arange(entities), event_timestamp=_TIME).to_parquet(path)
    entity = Entity(name="id", join_keys=["id"], value_type=ValueType.INT64)
    schema = [Field(name="id", dtype=Int64), *(Field(name=name, dtype=Float32) for name in NUMBERS)]
    view = FeatureView(
        name="rides",
        entities=[entity],
        ttl=timedelta(0),
        schema=[*schema, Field(name="city", dtype=String)],
        source=FileSource(path=str(path), timestamp_field="event_timestamp"),
    )
    for store in STORES:
        stores[store].apply([entity, view])
        stores[store].write_to_online_store("rides", pd.read_parquet(path))


def _figures(
    arguments: argparse.Namespace, directory: Path, redis: str, console: Console
) -> dict[str, dict[str, float]]:
    passed = ["--directory", str(directory), "--rounds", str(arguments.rounds), "--redis", redis]
    passed += ["--entities", str(arguments.entities), "--child"]
    turns = [
        measuring.in_fresh_processes("benchmarks.models", [*passed, store], count=arguments.processes)
        for store in STORES
    ]
    runs = []
    for number in range(arguments.processes):
        with console.status(f"measuring, turn {number + 1} of {arguments.processes} ..."):
            runs.append({name: times for turn in turns for name, times in next(turn).items()})
    return measuring.summary(runs)


def _samples(arguments: argparse.Namespace) -> measuring.Samples:
    """What the process of one store measures."""
    store = feast_stores.stores(arguments.directory, arguments.redis)[arguments.child]
    rows = pd.read_parquet(arguments.directory / "rides.parquet")
    target = (rows["f00"] + (rows["city"] < "city 3") > 0).astype(int)
    rng = np.random.default_rng(arguments.seed)
    cases: dict[str, Callable[..., object]] = {}
    calls, prepare = {}, {}
    for library, model in trained(rows[COLUMNS], target, CITIES).items():
        ways = _ways(arguments.child, store, model)
        for size, count in CASES:
            batches = [rng.integers(arguments.entities, size=size).tolist() for _ in range(20)]
            expected = ways[USUAL](batches[0])
            for name, way in ways.items():
                case = _case(size, library, name, arguments.child)
                if name != MODEL:
                    np.testing.assert_allclose(way(batches[0]), expected, rtol=1e-5, err_msg=case)
                cases[case], calls[case] = way, count
                prepare[case] = partial(next, cycle(batches))
    return measuring.interleave(cases, rounds=arguments.rounds, calls=calls, prepare=prepare)


def _case(size: int, library: str, way: str, store: str) -> str:
    return f"{size} row{'s' * (size > 1)}, {library}: {way}, {store}"


def _ways(name: str, store: Any, model: Model) -> dict[str, Callable[[list[int]], Any]]:
    """How predictions are made of ids."""
    predict = model.from_matrix

    def usual(ids: list[int]) -> Any:
        return model.from_frame(
            store.get_online_features(FEATURES, [{"id": number} for number in ids]).to_df()[COLUMNS]
        )

    if name != QUORIN:
        return {USUAL: usual}
    from feast_quorin import model_reader as feast_reader
    from quorin.assembly import model_reader

    by_rows = feast_reader(store, FEATURES, COLUMNS, categories=model.categories)
    [segment] = _segments(store.provider.online_store, store)
    fields = {field.name.rpartition("__")[0]: field.name for field in segment.schema.fields}
    by_id = model_reader(segment, {column: fields[column] for column in COLUMNS}, categories=model.categories)
    matrices = {size: by_id.batch([str(number) for number in range(size)])[0] for size, _ in CASES}
    return {
        USUAL: usual,
        MATRIX: lambda ids: predict(by_rows([{"id": number} for number in ids])),
        ENGINE: lambda ids: predict(by_id.batch([str(number) for number in ids])[0]),
        MODEL: lambda ids: predict(matrices[len(ids)]),
    }


def _segments(online: Any, store: Any) -> Iterator[Any]:
    registry = online.registry(store.config)
    for name in registry.backend.control.schemas():
        yield registry.open_stored(name)


def _table(figures: dict[str, dict[str, float]]) -> Table:
    table = Table(title="From an id to a prediction: medians", title_justify="left")
    for column in ("case", f"{USUAL}, on Redis", f"{USUAL}, on Quorin", MATRIX, ENGINE, MODEL, "first against matrix"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for case in dict.fromkeys(name.partition(":")[0] for name in figures):
        usual = figures[f"{case}: {USUAL}, {REDIS}"]["p50"]
        own = [figures[f"{case}: {way}, {QUORIN}"]["p50"] for way in (USUAL, MATRIX, ENGINE, MODEL)]
        times = [measuring.duration(time) for time in (usual, *own)]
        table.add_row(case, *times, f"{usual / own[1]:.1f}× · {usual / own[2]:.1f}×")
    return table


if __name__ == "__main__":
    main()
