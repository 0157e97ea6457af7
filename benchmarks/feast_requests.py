"""How long a request through Feast takes: the same rows in Feast's SQLite and Redis stores, and in Quorin.

Feast keeps one cache of resolved requests for a whole process, which stores that take turns in it would spoil for each
other. So each store has processes of its own, and the processes take turns; quantiles are over the calls of them all.
Before anything is timed, the stores have to give the same answers.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import feast_views, machine, measuring, report, servers
from benchmarks.compare import feast_stores

STORES = ("feast-sqlite", "feast-redis", "feast-quorin")


def main() -> None:
    """Measure, print a table, and with `--json` the figures to a file."""
    arguments = _arguments()
    if arguments.child:
        measuring.send(_samples(arguments))
    else:
        _measure(arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.feast_requests",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, default=3, help="fresh processes a store (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds a process (default: %(default)s)")
    parser.add_argument("--entities", type=int, default=2_000, help="rows of each view (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the tables into this Markdown file")
    parser.add_argument("--child", choices=STORES, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--redis", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(arguments: argparse.Namespace) -> None:
    console = Console(highlight=False)
    console.width = max(console.width, 130)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    with tempfile.TemporaryDirectory() as name, servers.redis_server() as redis:
        directory = Path(name)
        with _filled(directory, redis, arguments.entities, console):
            figures = _figures(arguments, directory, redis, console)
    tables = _tables(figures)
    for table in tables:
        console.print(table)
    report.keep(arguments, "feast", where, {"feast": figures}, tables)


@contextmanager
def _filled(directory: Path, redis: str, entities: int, console: Console) -> Iterator[None]:
    stores = feast_stores.stores(directory, redis)
    try:
        for name, store in stores.items():
            with console.status(f"filling {name} ..."):
                feast_views.fill(store, directory, entities=entities)
        _check_equal(stores, entities)
        yield
    finally:
        for store in stores.values():
            store.teardown()


def _check_equal(stores: dict[str, Any], entities: int) -> None:
    rng = np.random.default_rng(5)
    for request in feast_views.requests():
        rows = request.entity_rows(rng, entities)
        answers = [_ask(store, request, rows) for store in stores.values()]
        for form in _forms(request):
            given = [_made(answer, form) for answer in answers]
            if form == feast_views.STACKED:
                given = [made["embedding"].tolist() for made in given]
            elif form in ("proto", "to_df") or _is_tensor(form):
                given = [str(made) for made in (answer.to_dict() for answer in answers)]
            assert all(made == given[0] for made in given), f"the stores disagree about {request.name}, {form}"


def _figures(
    arguments: argparse.Namespace, directory: Path, redis: str, console: Console
) -> dict[str, dict[str, float]]:
    passed = ["--directory", str(directory), "--rounds", str(arguments.rounds), "--redis", redis]
    passed += ["--entities", str(arguments.entities)]
    turns = zip(
        *(
            measuring.in_fresh_processes(
                "benchmarks.feast_requests", [*passed, "--child", store], count=arguments.processes
            )
            for store in STORES
        ),
        strict=True,
    )
    runs = []
    for number in range(arguments.processes):
        with console.status(f"measuring, turn {number + 1} of {arguments.processes} ..."):
            runs.append({name: times for samples in next(turns) for name, times in samples.items()})
    figures = measuring.summary(runs)
    return {name: figures[name] for name in sorted(figures, key=_place)}


def _place(name: str) -> tuple[int, int, int]:
    """Where a case stands: by its request, what is made of it, and the store."""
    case, _, store = name.rpartition(": ")
    title, _, form = case.rpartition(", ")
    number, request = next((n, r) for n, r in enumerate(feast_views.requests()) if r.name == title)
    return number, request.forms.index(form), STORES.index(store)


def _samples(arguments: argparse.Namespace) -> measuring.Samples:
    """What the process of one store measures."""
    store = feast_stores.stores(arguments.directory, arguments.redis)[arguments.child]
    rng = np.random.default_rng(arguments.seed)
    cases: dict[str, Callable[[], object]] = {}
    calls = {}
    for request in feast_views.requests():
        many = cycle([request.entity_rows(rng, arguments.entities) for _ in range(20)])
        for form in _forms(request):
            name = f"{request.name}, {form}: {arguments.child}"
            cases[name] = _case(store, request, many, form)
            calls[name] = {1: 50, 100: 3}.get(request.rows, 1)
    return measuring.interleave(cases, rounds=arguments.rounds, calls=calls)


def _case(store: Any, request: feast_views.Request, many: Iterator[Any], form: str) -> Callable[[], object]:
    features = request.features
    if isinstance(features, str):
        features = store.get_feature_service(features)
    return lambda: _made(store.get_online_features(features, next(many)), form)


def _ask(store: Any, request: feast_views.Request, rows: Any) -> Any:
    features = request.features
    return store.get_online_features(
        store.get_feature_service(features) if isinstance(features, str) else features, rows
    )


def _made(answer: Any, form: str) -> Any:
    if form in (feast_views.STACKED, feast_views.STACKED_OR_LISTS):
        return _stacked(answer, form)
    return answer.proto if form == "proto" else getattr(answer, form)()


def _stacked(answer: Any, form: str) -> Any:
    if hasattr(answer, "stacks"):
        return answer.to_tensor(stack_lists=True)
    tensors = answer.to_tensor()
    if form == feast_views.STACKED:
        from feast.torch_wrapper import get_torch

        tensors["embedding"] = get_torch().tensor(tensors["embedding"])
    return tensors


def _forms(request: feast_views.Request) -> list[str]:
    """What is made of the answers; tensors where torch is installed."""
    has_torch = importlib.util.find_spec("torch") is not None
    return [form for form in request.forms if has_torch or not _is_tensor(form)]


def _is_tensor(form: str) -> bool:
    return form.startswith("to_tensor")


def _tables(figures: dict[str, dict[str, float]]) -> list[Table]:
    """How many times faster each request is, and the quantiles behind it."""
    short = Table(title="Requests through Feast, medians", title_justify="left")
    short.add_column("request", no_wrap=True)
    for heading in ("Quorin", "Redis", "SQLite", "than Redis", "than SQLite"):
        short.add_column(heading, justify="right")
    full = Table(title="The same, quantiles", title_justify="left")
    full.add_column("case", no_wrap=True)
    for heading in ("p50", "by process", "p99", "p999"):
        full.add_column(heading, justify="right")
    for name, row in figures.items():
        median, *tail = (measuring.duration(row[label]) for label in measuring.QUANTILES)
        full.add_row(name, median, measuring.spread(row), *tail)
    for case in dict.fromkeys(name.rpartition(": ")[0] for name in figures):
        quorin, redis, sqlite = (
            figures[f"{case}: {store}"]["p50"] for store in ("feast-quorin", "feast-redis", "feast-sqlite")
        )
        times = (measuring.duration(time) for time in (quorin, redis, sqlite))
        short.add_row(case, *times, f"{redis / quorin:.1f}×", f"{sqlite / quorin:.1f}×")
    return [short, full]


if __name__ == "__main__":
    main()
