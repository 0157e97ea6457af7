"""Writing through Feast: materialization from Parquet, pushes of one row, and reads while a materialization runs.

Each store materializes the same Parquet file in a process of its own, by `store.materialize`, which reads it with
Feast's own offline store. `engine` is Quorin's compute engine; `rows` is Feast's local engine, which hands
`online_write_batch` protobuf rows, as it does to Redis and SQLite. Of the larger file, what goes row by row runs over a
tenth, and is compared by rows per second. The ways take turns: the run of middle speed is shown of each, and the ratio
of middle size of those within one turn, as the machine is not equally fast in all of them. A push is `store.push` of a
frame of one row, the stores taking short turns, through Feast's provider and through Quorin's. Reads are
`get_online_features` of one row with `to_dict`, quiet and while another process materializes the whole file again and
again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks import machine, measuring, report, servers

VIEW, SOURCE = "benchmark", "benchmark_push"
BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
WAYS = {
    "Quorin, engine": ("quorin", True),
    "Quorin on Redis, engine": ("quorin-redis", True),
    "Quorin, rows": ("quorin", False),
    "Quorin on Redis, rows": ("quorin-redis", False),
    "Feast on Redis": ("redis", False),
    "Feast on SQLite": ("sqlite", False),
}
RIVAL = "Feast on Redis"
_PUSHES_IN_A_TURN = 10
PROVIDER = "feast_quorin.QuorinProvider"
PUSHED = {
    "quorin": ("quorin", "local"),
    "quorin-redis": ("quorin-redis", "local"),
    "quorin, its provider": ("quorin", PROVIDER),
    "quorin-redis, its provider": ("quorin-redis", PROVIDER),
    "redis": ("redis", "local"),
    "sqlite": ("sqlite", "local"),
}


def main() -> None:
    """Measure, print tables, and with `--json` and `--docs` write them."""
    arguments = _arguments()
    if arguments.child:
        _child(arguments)
        return
    console = Console(highlight=False, width=110)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    with servers.redis_server() as redis, tempfile.TemporaryDirectory() as folder:
        directory, figures = Path(folder), {}
        for rows, features in ((arguments.rows, 4), (arguments.wide_rows, 50)):
            shape = f"{rows:,} × {features}"
            write_source(directory / f"{features}.parquet", rows, features)
            write_source(directory / f"{features}.slice.parquet", min(rows, arguments.slice), features)
            runs = [
                {name: _run(way, "materialize", features, directory, redis) for name, way in WAYS.items()}
                for _ in range(arguments.repeats)
            ]
            figures[shape] = {name: _summary(runs, name) for name in WAYS}
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            pushes = _pushes(arguments, directory, redis)
        reads = {store: _run((store, True), "read", 4, directory, redis) for store in ("quorin", "quorin-redis")}
    tables = [_materialized(shape, row) for shape, row in figures.items()]
    tables.append(_latencies("Push of one row of 4 features", pushes))
    tables.append(
        _latencies(
            "One row of 4 features with to_dict, beside a materialization",
            {f"{store}, {state}": samples for store, states in reads.items() for state, samples in states.items()},
        )
    )
    for table in tables:
        console.print(table)
    report.keep(arguments, "materialize", where, {"materialize": figures, "push": pushes, "read": reads}, tables)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.materialize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of 4 features (default: %(default)s)")
    parser.add_argument("--wide-rows", type=int, default=100_000, help="rows of 50 features (default: %(default)s)")
    parser.add_argument("--slice", type=int, default=100_000, help="rows that go row by row (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="materializations each way (default: %(default)s)")
    parser.add_argument("--pushes", type=int, default=2_000, help="pushes of one row a store (default: %(default)s)")
    parser.add_argument("--reads", type=int, default=20_000, help="reads in each state (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the tables into this Markdown file")
    for name in ("child", "store", "directory", "redis", "source"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--features", type=int, default=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_source(path: Path, rows: int, features: int) -> None:
    """A Parquet file of so many entities, a row each, with float32 features."""
    rng = np.random.default_rng(7)
    times = pa.array(np.arange(rows) * 1000 + int(BEGIN.timestamp() * 1e6), pa.timestamp("us", "UTC"))
    columns = {f"f{number:02}": rng.standard_normal(rows, dtype=np.float32) for number in range(features)}
    pq.write_table(pa.table({"id": rng.permutation(rows), "at": times, **columns}), path)


def open_store(
    kind: str, directory: Path, redis: str, *, engine: bool, source: Path, features: int, provider: str = "local"
) -> Any:
    """A Feast store of one of the kinds, with the view applied."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, RepoConfig, ValueType
    from feast.types import Float32

    online = {
        "quorin": {"type": "feast_quorin.QuorinOnlineStore", "path": str(directory / "quorin")},
        "quorin-redis": {"type": "feast_quorin.QuorinOnlineStore", "redis_url": f"redis://{redis}"},
        "redis": {"type": "redis", "connection_string": redis},
        "sqlite": {"type": "sqlite", "path": str(directory / "online.db")},
    }[kind]
    store = FeatureStore(
        config=RepoConfig(
            project="benchmark",
            provider=provider,
            registry=str(directory / "registry.db"),
            online_store=online,
            batch_engine={"type": "feast_quorin.QuorinComputeEngine"} if engine else "local",
            entity_key_serialization_version=3,
        )
    )
    entity = Entity(name="id", join_keys=["id"], value_type=ValueType.INT64)
    view = FeatureView(
        name=VIEW,
        entities=[entity],
        ttl=timedelta(0),
        schema=[Field(name=f"f{number:02}", dtype=Float32) for number in range(features)],
        source=PushSource(name=SOURCE, batch_source=FileSource(path=str(source), timestamp_field="at")),
    )
    store.apply([entity, view])
    return store


def _run(way: tuple[str, bool], what: str, features: int, directory: Path, redis: str) -> Any:
    """What a process of its own measures, on an empty store."""
    kind, engine = way
    whole = engine or what != "materialize"
    source = directory / (f"{features}.parquet" if whole else f"{features}.slice.parquet")
    own = Path(tempfile.mkdtemp(dir=directory))
    arguments = ["--child", what, "--store", kind, "--directory", str(own), "--redis", redis, "--source", str(source)]
    arguments += ["--features", str(features), *(["--engine"] if engine else []), "--reads", str(_arguments().reads)]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.materialize", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _summary(turns: list[dict[str, dict[str, float]]], name: str) -> dict[str, float]:
    """A way's run of middle speed, of two the slower; and how many times as fast as the rival it is within a turn."""
    middle = sorted((turn[name] for turn in turns), key=lambda run: run["seconds"])[len(turns) // 2]
    ratios = [turn[name]["rows_per_s"] / turn[RIVAL]["rows_per_s"] for turn in turns]
    return middle | {"ratio": float(np.median(ratios)), "lowest": min(ratios), "highest": max(ratios)}


def _child(arguments: argparse.Namespace) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        store = open_store(
            arguments.store,
            Path(arguments.directory),
            arguments.redis,
            engine=arguments.engine and arguments.store.startswith("quorin"),
            source=Path(arguments.source),
            features=arguments.features,
        )
        measure: Callable[..., Any] = {"materialize": _materialize, "read": _read, "again": _again}[arguments.child]
        try:
            figures = measure(store, arguments)
        finally:
            if arguments.child != "again":
                store.teardown()
    print(json.dumps(figures))


def _materialize(store: Any, arguments: argparse.Namespace) -> dict[str, float]:
    rows = pq.read_metadata(arguments.source).num_rows
    _warm_up(store, arguments)
    started = time.perf_counter()
    store.materialize(BEGIN - timedelta(days=1), BEGIN + timedelta(days=30))
    seconds = time.perf_counter() - started
    last = pq.read_table(arguments.source).slice(rows - 1)
    answer = store.get_online_features([f"{VIEW}:f00"], {"id": last.column("id").to_pylist()}).to_dict()
    assert answer["f00"] == last.column("f00").to_pylist(), "the last row is missing"
    return {"rows": rows, "seconds": seconds, "rows_per_s": rows / seconds}


def _pushes(arguments: argparse.Namespace, directory: Path, redis: str) -> dict[str, dict[str, float]]:
    stores, numbers = {}, count()
    for number, (name, (kind, provider)) in enumerate(PUSHED.items()):
        own, server = Path(tempfile.mkdtemp(dir=directory)), redis if kind == "redis" else f"{redis}/{number}"
        source = directory / "4.slice.parquet"
        stores[name] = open_store(kind, own, server, engine=False, source=source, features=4, provider=provider)
    cases = {name: _pusher(store) for name, store in stores.items()}
    prepare = dict.fromkeys(cases, lambda: _frame(4, next(numbers)))
    try:
        calls = dict.fromkeys(cases, _PUSHES_IN_A_TURN)
        rounds = max(1, arguments.pushes // _PUSHES_IN_A_TURN)
        samples = measuring.interleave(cases, rounds=rounds, calls=calls, prepare=prepare)
    finally:
        for store in stores.values():
            store.teardown()
    return measuring.summary([samples])


def _pusher(store: Any) -> Callable[[Any], None]:
    return lambda frame: store.push(SOURCE, frame)


def _read(store: Any, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    store.materialize(BEGIN - timedelta(days=1), BEGIN + timedelta(days=30))
    names = [f"{VIEW}:f{number:02}" for number in range(arguments.features)]
    ids = np.random.default_rng(3).integers(pq.read_metadata(arguments.source).num_rows, size=10_000).tolist()
    number = count()
    case = {
        "read": lambda: store.get_online_features(names, [{"id": ids[next(number) % len(ids)]}]).to_dict(),
    }
    quiet = measuring.interleave(case, rounds=10, calls={"read": arguments.reads // 10})
    own = ["--child", "again", "--store", arguments.store, "--directory", arguments.directory, "--engine"]
    own += ["--redis", arguments.redis, "--source", arguments.source, "--features", str(arguments.features)]
    with subprocess.Popen([sys.executable, "-W", "ignore", "-m", "benchmarks.materialize", *own]) as writer:
        time.sleep(3)  # it imports Feast
        busy = measuring.interleave(case, rounds=10, calls={"read": arguments.reads // 10})
        assert writer.poll() is None, "the materialization ended early"
        writer.kill()
    return {"quiet": measuring.summary([quiet])["read"], "busy": measuring.summary([busy])["read"]}


def _again(store: Any, arguments: argparse.Namespace) -> None:
    while Path(arguments.directory).exists():
        store.materialize(BEGIN - timedelta(days=1), BEGIN + timedelta(days=30))


def _warm_up(store: Any, arguments: argparse.Namespace) -> None:
    """Imports and compiled kernels are not part of the time."""
    store.materialize(BEGIN - timedelta(days=3), BEGIN - timedelta(days=2))
    store.write_to_online_store(VIEW, _frame(arguments.features, -1))


def _frame(features: int, number: int) -> Any:
    import pandas as pd

    values = {f"f{place:02}": [np.float32(number)] for place in range(features)}
    return pd.DataFrame({"id": [10**9 + number], "at": [BEGIN + timedelta(days=9, seconds=number)], **values})


def _materialized(shape: str, figures: dict[str, dict[str, float]]) -> Table:
    table = Table(title=f"feast materialize, {shape} float32 from Parquet", title_justify="left")
    table.add_column("way", no_wrap=True)
    for heading in ("rows", "time", "rows/s", "than Feast on Redis"):
        table.add_column(heading, justify="right")
    for name, row in figures.items():
        ratio, lowest, highest = (f"{row[figure]:.3g}" for figure in ("ratio", "lowest", "highest"))
        shown = "" if name == RIVAL else f"{ratio}× ({lowest} to {highest})"
        table.add_row(name, f"{row['rows']:,.0f}", f"{row['seconds']:.2f} s", f"{row['rows_per_s']:,.0f}", shown)
    return table


def _latencies(title: str, figures: dict[str, dict[str, float]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("case", no_wrap=True)
    for heading in measuring.QUANTILES:
        table.add_column(heading, justify="right")
    for name, row in figures.items():
        table.add_row(name, *(measuring.duration(row[heading]) for heading in measuring.QUANTILES))
    return table


if __name__ == "__main__":
    main()
