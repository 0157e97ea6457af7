"""How commands speak: tables for people, JSON for scripts, and quantities in words."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from quorin.cli.options import escaped

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts rather than text for people.")]

_WIDTH_WITHOUT_TERMINAL = 200


def console(*, stderr: bool = False) -> Console:
    """Where people read. Without a terminal lines are long, so that nothing is cut that is piped elsewhere."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in made._environ:
        made.width = _WIDTH_WITHOUT_TERMINAL
    return made


def table(*columns: str) -> Table:
    """A plain table."""
    return Table(*columns, box=None, pad_edge=False, header_style="bold")


def add_row(target: Table, *cells: object) -> None:
    """A row of plain text."""
    target.add_row(*("" if cell is None else escaped(str(cell)) for cell in cells))


def print_json(value: Any) -> None:
    """A value as indented JSON on stdout. Bytes become hexadecimal text, numbers that JSON lacks their names."""
    json.dump(plain(value), sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def plain(value: Any) -> Any:
    """A value made of what JSON has."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def count(number: float) -> str:
    """A number with thousands kept apart."""
    return f"{number:,.0f}"


def size(number: float) -> str:
    """Bytes in the largest unit that leaves a whole number before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def duration(seconds: float | None) -> str:
    """A time in the unit that fits."""
    if seconds is None:
        return "-"
    for factor, unit, limit in ((1e9, "ns", 1e-6), (1e6, "µs", 1e-3), (1e3, "ms", 1.0)):
        if abs(seconds) < limit:
            return f"{seconds * factor:.3g} {unit}"
    for factor, unit, limit in ((1, "s", 120), (60, "min", 7200), (3600, "h", 172_800)):
        if abs(seconds) < limit:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 86_400:,.0f} d"


def moment(time_ns: int | None) -> str:
    """A time in ns since the epoch, in UTC."""
    if time_ns is None:
        return "-"
    try:
        return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(sep=" ", timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return f"{time_ns} ns"


@contextmanager
def progress_bar(what: str, *, hidden: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while something lasts, if people are looking; called with what is done and all there is."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    out = console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=out, transient=True, disable=hidden or not out.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
