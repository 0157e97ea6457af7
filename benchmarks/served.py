"""The served log: what it adds to requests, beside the same store without it; its size, and the speed of a replay.

Requests of both stores take turns. A file has the requests of one row that were measured, with random ids of requests,
and as many of 100 rows. The replay is from that log and a history of the store's rows; `read_at` reads the same
entities as of the end.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import feast_views, machine, measuring, report

FORMS = {"1 row × 4": ("1 row × 4, int key", 2000), "100 rows × 50": ("100 rows × 50", 100)}


def main() -> None:
    """Measure, print a table, and with `--json` and `--docs` write it."""
    arguments = _arguments()
    console = Console(highlight=False, width=110)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    with tempfile.TemporaryDirectory() as name:
        figures, facts = _measured(Path(name), arguments)
    tables = [_requests_table(figures), _facts_table(facts)]
    for table in tables:
        console.print(table)
    report.keep(arguments, "served", where, {"served": figures, "facts": facts}, tables)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.served", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="rounds (default: %(default)s)")
    parser.add_argument("--entities", type=int, default=100_000, help="rows a view (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=2_000, help="logged requests (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the tables into this Markdown file")
    return parser.parse_args()


def _stores(directory: Path) -> dict[str, Any]:
    from feast import FeatureStore, RepoConfig

    made = {}
    for name, more in {"plain": {}, "logged": {"served_log": {"url": str(directory / "served")}}}.items():
        online = {"type": "feast_quorin.QuorinOnlineStore", "path": str(directory / name), **more}
        online["offline_path"] = str(directory / f"history of {name}")
        made[name] = FeatureStore(
            config=RepoConfig(
                project="benchmark",
                provider="local",
                registry=str(directory / f"{name}.registry"),
                online_store=online,
                entity_key_serialization_version=3,
            )
        )
    return made


def _measured(directory: Path, arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, float]]:
    stores = _stores(directory)
    try:
        for store in stores.values():
            feast_views.fill(store, directory, entities=arguments.entities)
        samples = _cases(stores, arguments)()
        return measuring.summary([samples]), _facts(stores["logged"], directory, arguments)
    finally:
        for store in stores.values():
            store.teardown()


def _cases(stores: dict[str, Any], arguments: argparse.Namespace) -> Callable[[], measuring.Samples]:
    rng, requests = np.random.default_rng(3), {one.name: one for one in feast_views.requests()}
    cases: dict[str, Callable[..., object]] = {}
    calls = {}
    for title, (name, count) in FORMS.items():
        request = requests[name]
        for store_name, store in stores.items():
            many = cycle([request.entity_rows(rng, arguments.entities) for _ in range(50)])
            case = f"{title}, {store_name}"
            cases[case], calls[case] = partial(_ask, store, request.features, many), count
    return partial(measuring.interleave, cases, rounds=arguments.rounds, calls=calls)


def _ask(store: Any, features: Any, rows: Any) -> Any:
    return store.get_online_features(features, next(rows)).to_dict()


def _facts(store: Any, directory: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Bytes a row in files, and rows a second of a replay and of a read as of a position."""
    import feast_quorin
    from quorin.offline import ParquetDatasetStore, read_served

    session = store._get_provider().online_store.session(store.config)
    session.served.collect()
    rng, requests = np.random.default_rng(4), {one.name: one for one in feast_views.requests()}
    facts: dict[str, float] = {}
    for title, (name, _) in FORMS.items():
        request, before = requests[name], {*(directory / "served").rglob("*.parquet")}
        for _ in range(arguments.requests):
            with feast_quorin.request_id(str(uuid.UUID(bytes=rng.bytes(16)))):
                store.get_online_features(request.features, request.entity_rows(rng, arguments.entities))
        session.served.collect()
        files = {*(directory / "served").rglob("*.parquet")} - before
        size = sum(path.stat().st_size for path in files)
        facts[f"bytes a row in files, requests of {title}"] = size / (arguments.requests * request.rows)
    history, connection = directory / "history of logged", str(directory / "logged")
    started, of_cpu = time.perf_counter(), time.process_time()
    rows = read_served(directory / "served", history, connection=connection)
    facts["rows a second of a replay"] = len(rows) / (time.perf_counter() - started)
    facts["rows a second of CPU of a replay"] = len(rows) / (time.process_time() - of_cpu)
    assert all(rows["known"].to_pylist()), "the history has every row that was served"
    view = store.get_feature_view("wide")
    from feast_quorin.views import stored_view

    schema = stored_view(store.config, view).schema
    ids = [str(number) for number in rng.integers(arguments.entities, size=arguments.entities)]
    started = time.perf_counter()
    found = ParquetDatasetStore(history).read_at(schema, ids, time_ns=time.time_ns(), connection=connection)
    facts["rows a second of read_at, 50 features"] = len(found) / (time.perf_counter() - started)
    return facts


def _requests_table(figures: dict[str, Any]) -> Table:
    table = Table("request", "store", "p10", "p50", "more", title="to_dict with and without the served log")
    for title in FORMS:
        for store in ("plain", "logged"):
            own, plain = figures[f"{title}, {store}"], figures[f"{title}, plain"]
            more = "" if store == "plain" else measuring.duration(own["p50"] - plain["p50"])
            share = "" if store == "plain" else f" ({own['p50'] / plain['p50'] - 1:+.0%})"
            table.add_row(title, store, measuring.duration(own["p10"]), measuring.duration(own["p50"]), more + share)
    return table


def _facts_table(facts: dict[str, float]) -> Table:
    table = Table("figure", "value", title="Files and replay")
    for name, value in facts.items():
        table.add_row(name, f"{value:,.1f}")
    return table


if __name__ == "__main__":
    main()
