"""Requests over HTTP: `quorin serve` beside `feast serve` on the same store, and on Redis.

Each server has one core, and the load (wrk) another. The servers take turns in short rounds, and are started afresh
several times; quantiles are over all answers. Before anything is timed, the servers have to give the same answers.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import requests
from rich.console import Console
from rich.table import Table

from benchmarks import feast_views, http_clients, http_servers, machine, measuring, report, servers, wrk

ARROW = "application/vnd.apache.arrow.stream"
QUORIN, ON_QUORIN, ON_REDIS = SERVERS = ("quorin serve", "feast serve on Quorin", "feast serve on Redis")
CONSTANT = "a constant answer"
HALF = "1 row × 4, half of the highest rate"
_PATH = "/get-online-features"
_BODIES = 20
_WAIT = 120


@dataclass(frozen=True)
class Case:
    """A request, how many connections ask at a time, what is compared and the ratio that is asked for."""

    name: str
    request: str
    connections: int
    figure: str
    target: float


CASES = (
    Case("1 row × 4, 1 connection", "1 row × 4, int key", 1, "p50", 4),
    Case("1 row × 4, 16 connections", "1 row × 4, int key", 16, "rate", 20),
    Case("100 rows × 50, 1 connection", "100 rows × 50", 1, "p50", 50),
    Case("100 rows × (3 + embedding), 1 connection", "100 rows × (3 + embedding)", 1, "p50", 20),
    Case("3 views and on-demand, 1 row, 16 connections", "3 views and on-demand, 1 row", 16, "rate", 10),
)


def main() -> None:
    """Measure, print the tables, and with `--json` the figures to a file."""
    arguments = _arguments()
    console = Console(highlight=False)
    console.width = max(console.width, 130)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    with (
        tempfile.TemporaryDirectory() as name,
        servers.redis_server() as redis,
        http_servers.repositories(Path(name), redis, entities=arguments.entities) as repositories,
    ):
        figures = _figures(arguments, repositories, console)
    tables = _tables(figures)
    for table in tables:
        console.print(table)
    report.keep(arguments, "http", where, {"http": figures}, tables)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.http", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=3, help="fresh servers of each kind (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds a server (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=1, help="load a case and round (default: %(default)s)")
    parser.add_argument("--entities", type=int, default=2_000, help="rows of each view (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=1_000_000, help="for the memory (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the tables into this Markdown file")
    return parser.parse_args()


def _figures(arguments: argparse.Namespace, repositories: dict[str, Path], console: Console) -> dict[str, Any]:
    taken: dict[str, list[wrk.Answers]] = {}
    for turn in range(arguments.processes):
        with console.status(f"measuring, turn {turn + 1} of {arguments.processes} ..."), ExitStack() as stack:
            urls = {name: stack.enter_context(_server(name, repositories)).url for name in SERVERS}
            _check_equal(urls, arguments.entities)
            urls[CONSTANT] = stack.enter_context(http_servers.constant_server(core=0)).url
            for name, answers in _interleaved(arguments, urls, seed=turn):
                taken.setdefault(name, []).append(answers)
    figures: dict[str, Any] = {name: _summary(wrk.together(parts)) for name, parts in taken.items()}
    with console.status("two workers ..."):
        figures |= _workers(arguments, repositories)
    with console.status("clients ..."), _server(QUORIN, repositories) as server:
        figures["clients"] = http_clients.to_dict_times(repositories["quorin"], server.url, entities=arguments.entities)
    with console.status(f"memory over {arguments.requests:,} requests ..."):
        figures["memory"] = _memory(arguments, repositories)
    return figures


def _server(name: str, repositories: dict[str, Path], **options: Any) -> Any:
    if name == QUORIN:
        return http_servers.quorin_serve(repositories["quorin"], **{"core": 0, **options})
    return http_servers.feast_serve(repositories["quorin" if name == ON_QUORIN else "redis"], core=0)


def _interleaved(
    arguments: argparse.Namespace, urls: dict[str, str], *, seed: int
) -> Iterator[tuple[str, wrk.Answers]]:
    """By case and server, what each short round saw; the first round of a fresh server does not count."""
    rng = np.random.default_rng(seed)
    highest = 0.0
    for number in range(arguments.rounds + 1):
        loads = {case.name: _load(case.request, case.connections, rng, arguments) for case in CASES}
        for name, load in loads.items():
            for server in SERVERS:
                answers = wrk.send(replace(load, url=urls[server] + _PATH), arguments.seconds, core=1)
                if number:
                    yield f"{name}: {server}", answers
                if name == CASES[1].name and server == QUORIN:
                    highest = max(highest, answers.rate)
        for name, load in _own_loads(arguments, rng, highest).items():
            for server in (QUORIN, CONSTANT) if name == HALF else (QUORIN,):
                answers = wrk.send(replace(load, url=urls[server] + _PATH), arguments.seconds, core=1)
                if number:
                    yield f"{name}: {server}", answers


def _own_loads(arguments: argparse.Namespace, rng: np.random.Generator, highest: float) -> dict[str, wrk.Load]:
    """What is not asked of `feast serve`."""
    wide = _load("1,000 rows × 50", 1, rng, arguments)
    small = _load(CASES[1].request, 16, rng, arguments)
    most_delay_ms = max(round(2 * 1_000 * small.connections / (highest / 2)), 1)
    return {
        "1,000 rows × 50, JSON": wide,
        "1,000 rows × 50, Arrow": replace(wide, headers=(("Accept", ARROW),)),
        HALF: replace(small, most_delay_ms=most_delay_ms),
    }


def _load(request: str, connections: int, rng: np.random.Generator, arguments: argparse.Namespace) -> wrk.Load:
    bodies = tuple(_body(request, rng, arguments.entities) for _ in range(_BODIES))
    return wrk.Load("", bodies, connections)


def _body(name: str, rng: np.random.Generator, entities: int) -> bytes:
    request = next(one for one in feast_views.requests() if one.name == name)
    ids = [row[request.key] for row in request.entity_rows(rng, entities)]
    what = "feature_service" if isinstance(request.features, str) else "features"
    return json.dumps({what: request.features, "entities": {request.key: ids}}).encode()


def _check_equal(urls: dict[str, str], entities: int) -> None:
    rng = np.random.default_rng(5)
    for case in CASES:
        body = _body(case.request, rng, entities)
        headers = {"Content-Type": "application/json"}
        answers = [requests.post(url + _PATH, body, headers=headers, timeout=_WAIT).json() for url in urls.values()]
        columns = [dict(zip(one["metadata"]["feature_names"], one["results"], strict=True)) for one in answers]
        assert all(one == columns[0] for one in columns), f"the servers disagree about {case.name}"


def _workers(arguments: argparse.Namespace, repositories: dict[str, Path]) -> dict[str, Any]:
    """Requests a second of one and of two workers; the load, which has no core of its own then, needs little of it."""
    rng = np.random.default_rng(3)
    load = _load("100 rows × 50", 16, rng, arguments)
    taken: dict[str, list[wrk.Answers]] = {}
    with ExitStack() as stack:
        urls = {
            f"100 rows × 50, 16 connections, {count} workers": stack.enter_context(
                _server(QUORIN, repositories, core=None, workers=count)
            ).url
            for count in (1, 2)
        }
        for number in range(arguments.rounds * arguments.processes + 1):
            for name, url in urls.items():
                answers = wrk.send(replace(load, url=url + _PATH), arguments.seconds)
                if number:
                    taken.setdefault(name, []).append(answers)
    return {name: _summary(wrk.together(parts)) for name, parts in taken.items()}


def _memory(arguments: argparse.Namespace, repositories: dict[str, Path]) -> dict[str, float]:
    """Resident bytes of a server after a tenth of the requests, and after all of them."""
    rng = np.random.default_rng(4)
    load = _load(CASES[1].request, 16, rng, arguments)
    found, sent, asked = {}, 0, arguments.requests
    with _server(QUORIN, repositories) as server:
        load = replace(load, url=server.url + _PATH)
        rate = wrk.send(load, arguments.seconds, core=1).rate
        for label, share in (("before", 0.1), ("after", 1.0)):
            while sent < asked * share:
                seconds = math.ceil((asked * share - sent) / rate)
                sent += int(wrk.send(load, seconds, core=1).counts.sum())
            found[label] = float(server.resident_bytes())
    return {"requests": float(sent), **found}


def _summary(answers: wrk.Answers) -> dict[str, float]:
    quantiles = {label: answers.quantile(share) for label, share in wrk.QUANTILES.items()}
    return {**quantiles, "rate": answers.rate, "calls": float(answers.counts.sum())}


def _tables(figures: dict[str, Any]) -> list[Table]:
    return [_targets(figures), _beyond(figures), _quantiles(figures)]


def _targets(figures: dict[str, Any]) -> Table:
    table = _table("Requests over HTTP, one core a server: medians, or requests a second", "request")
    for heading in (*SERVERS, "than on Quorin", "than on Redis", "asked"):
        table.add_column(heading, justify="right")
    for case in CASES:
        found = [figures[f"{case.name}: {server}"] for server in SERVERS]
        if case.figure == "rate":
            shown = [f"{one['rate']:,.0f}/s" for one in found]
            ratios = [found[0]["rate"] / one["rate"] for one in found[1:]]
        else:
            shown = [measuring.duration(one["p50"]) for one in found]
            ratios = [one["p50"] / found[0]["p50"] for one in found[1:]]
        table.add_row(case.name, *shown, *(f"{ratio:.1f}×" for ratio in ratios), f"{case.target:g}×")
    return table


def _beyond(figures: dict[str, Any]) -> Table:
    table = _table("`quorin serve` by itself", "what")
    for heading in ("measured", "asked"):
        table.add_column(heading, justify="right")
    as_json, as_arrow = (figures[f"1,000 rows × 50, {form}: {QUORIN}"]["p50"] for form in ("JSON", "Arrow"))
    half, constant = (figures[f"{HALF}: {server}"] for server in (QUORIN, CONSTANT))
    full = figures[f"{CASES[1].name}: {QUORIN}"]
    one, two = (figures[f"100 rows × 50, 16 connections, {count} workers"]["rate"] for count in (1, 2))
    memory = figures["memory"]
    table.add_row(
        f"1,000 rows × 50 in Arrow ({measuring.duration(as_arrow)}) against JSON ({measuring.duration(as_json)})",
        f"{as_json / as_arrow:.1f}×",
        "3×",
    )
    table.add_row(
        f"1 row × 4, p99 against p50 at {half['rate'] / full['rate']:.0%} of the highest rate (a server that answers "
        f"with constant bytes, at that rate: {constant['p99'] / constant['p50']:.1f}×)",
        f"{half['p99'] / half['p50']:.1f}×",
        "at most 5×",
    )
    table.add_row(f"100 rows × 50, two workers ({two:,.0f}/s) against one ({one:,.0f}/s)", f"{two / one:.2f}×", "1.7×")
    ours, theirs = (measuring.duration(figures["clients"][client]["p50"]) for client in http_clients.CLIENTS)
    table.add_row(
        f"{http_clients.REQUEST} to_dict by a remote store of Quorin ({ours}) against Feast's ({theirs})",
        f"{http_clients.ratio(figures['clients']):.1f}×",
        f"{http_clients.TARGET:g}×",
    )
    growth = (memory["after"] - memory["before"]) / 2**20
    table.add_row(
        f"growth of {memory['before'] / 2**20:.0f} MiB from request {memory['requests'] / 10:,.0f} to "
        f"{memory['requests']:,.0f}",
        f"{growth:+.1f} MiB",
        "none",
    )
    return table


def _quantiles(figures: dict[str, Any]) -> Table:
    table = _table("The same, quantiles", "case")
    for heading in (*wrk.QUANTILES, "requests/s"):
        table.add_column(heading, justify="right")
    for name, row in figures.items():
        if name not in ("memory", "clients"):
            times = (measuring.duration(row[label]) for label in wrk.QUANTILES)
            table.add_row(name, *times, f"{row['rate']:,.0f}")
    return table


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    return table


if __name__ == "__main__":
    main()
