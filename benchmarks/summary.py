"""The table at the top of the document: the figures that most people ask for, each beside a rival of the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from benchmarks import measuring

if TYPE_CHECKING:
    from collections.abc import Mapping

MARK = "summary"
HEADINGS = ("what", "Quorin", "spread", "beside it", "ratio")


@dataclass(frozen=True)
class _Line:
    """A figure of one benchmark: `part` is where it is in the figures, `ours` and `rival` are cases there."""

    what: str
    mark: str
    part: str
    ours: str
    rival: str
    rival_name: str


_TIMES = (
    _Line(
        "one row of four floats, a random id of a million",
        "engine",
        "reads",
        "4 fields, random ids: assemble",
        "4 fields, random ids: Redis GET",
        "Redis GET",
    ),
    _Line(
        "the same, beside a dict in the process",
        "engine",
        "reads",
        "4 fields, random ids: assemble",
        "4 fields, random ids: dict[id].copy()",
        "dict and copy",
    ),
    _Line(
        "1,000 rows of four floats, as a matrix",
        "engine",
        "reads",
        "4 fields, 1,000 random ids: assemble_batch, Arrow",
        "4 fields, 1,000 random ids: Redis MGET",
        "Redis MGET",
    ),
    _Line(
        "Feast, one row of four features, to_dict",
        "feast",
        "feast",
        "1 row × 4, int key, to_dict: feast-quorin",
        "1 row × 4, int key, to_dict: feast-redis",
        "Feast on Redis",
    ),
    _Line(
        "Feast, 100 rows of 50 features, to_dict",
        "feast",
        "feast",
        "100 rows × 50, to_dict: feast-quorin",
        "100 rows × 50, to_dict: feast-redis",
        "Feast on Redis",
    ),
    _Line(
        "HTTP, one row of four features",
        "http",
        "http",
        "1 row × 4, 1 connection: quorin serve",
        "1 row × 4, 1 connection: feast serve on Quorin",
        "feast serve on the same store",
    ),
    _Line(
        "HTTP, 100 rows of 50 features",
        "http",
        "http",
        "100 rows × 50, 1 connection: quorin serve",
        "100 rows × 50, 1 connection: feast serve on Quorin",
        "feast serve on the same store",
    ),
    _Line(
        "the ten nearest of the vectors of a view",
        "vectors",
        "vectors",
        "quorin.vector.search",
        "NumPy, one array",
        "NumPy, one array in the process",
    ),
)


def table(entries: Mapping[str, Any]) -> Table:
    """The table of those figures that were measured."""
    table = Table(title="The figures in short", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("what", "beside it") else "right")
    for line in _TIMES:
        cases = entries.get(line.mark, {}).get("figures", {}).get(line.part, {})
        if line.ours in cases and line.rival in cases:
            table.add_row(*_cells(line, cases[line.ours], cases[line.rival]))
    for row in _rates(entries):
        table.add_row(*row)
    return table


def _cells(line: _Line, ours: Mapping[str, float], rival: Mapping[str, float]) -> tuple[str, ...]:
    beside = f"{line.rival_name}: {measuring.duration(rival['p50'])}"
    return (
        line.what,
        measuring.duration(ours["p50"]),
        measuring.spread(ours),
        beside,
        _ratio(ours, rival),
    )


def _ratio(ours: Mapping[str, float], rival: Mapping[str, float]) -> str:
    """How many times as long the rival takes, and whether the spreads of the two overlap."""
    times = rival["p50"] / ours["p50"]
    begin = max(row.get("p50_lowest", row["p50"]) for row in (ours, rival))
    end = min(row.get("p50_highest", row["p50"]) for row in (ours, rival))
    shown = f"{times:.1f}×" if times < 10 else f"{times:.0f}×"
    return f"{shown}, within the spread" if begin < end else shown


def _rates(entries: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    def of(mark: str, read: Callable[[dict[str, Any]], tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
        if mark in entries:
            yield read(entries[mark]["figures"])

    yield from of("log", _log)
    yield from of("materialize", _materialize)
    yield from of("fleet", _fleet)


def _log(figures: dict[str, Any]) -> tuple[str, ...]:
    found = figures["log"]["redis"]
    visible, appended = found["bulk_visible_per_s"] / 1e6, found["bulk_appended_per_s"] / 1e6
    written = f"appended to Redis alone: {appended:.1f} M rows/s"
    return (
        "rows through the log, until readers see them",
        f"{visible:.1f} M rows/s",
        "",
        written,
        f"{visible / appended:.1f}×",
    )


def _materialize(figures: dict[str, Any]) -> tuple[str, ...]:
    shape, ways = next(iter(figures["materialize"].items()))
    ours, rival = ways["Quorin on Redis, engine"], ways["Feast on Redis"]
    spread = f"{ours['lowest']:.0f}× to {ours['highest']:.0f}×"
    beside = f"Feast on Redis: {rival['rows_per_s'] / 1e6:.3f} M rows/s"
    rate = f"{ours['rows_per_s'] / 1e6:.2f} M rows/s"
    return f"feast materialize, {shape}", rate, spread, beside, f"{ours['ratio']:.0f}×"


def _fleet(figures: dict[str, Any]) -> tuple[str, ...]:
    found = figures["fleet"]
    ours, rival = found["visible_p50"], found["feast_visible_p50"]
    spread = f"p99 {measuring.duration(found['visible_p99'])}"
    beside = f"Feast on Redis, another process: {measuring.duration(rival)}"
    return "a push, until another machine serves it", measuring.duration(ours), spread, beside, f"{rival / ours:.0f}×"
