"""Output of commands: tables and progress bars for people, JSON for scripts."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from quorin.cli.options import escaped

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]

_WIDTH_WITHOUT_TERMINAL = 200
_UNLIMITED = 10_000
_KEPT_WHOLE = frozenset({"schema", "position", "gen"})
_WORDS = {
    "schema_name": "schema", "segment_name": "segment", "old_segment_name": "old_segment",
    "new_segment_name": "new_segment", "row_count": "rows", "entity_count": "rows", "byte_count": "bytes",
    "path": "file",
}  # fmt: skip


def console(*, stderr: bool = False) -> Console:
    """A console for readable output. Without a terminal its lines are long, so that piped output is not cut."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in made._environ:
        made.width = _WIDTH_WITHOUT_TERMINAL
    return made


class Listing(Table):
    """A table that moves its columns together where they do not fit, before it wraps what is in them."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As rendered by Rich."""
        if self.__rich_measure__(console, options.update(max_width=_UNLIMITED)).maximum > options.max_width:
            self.padding = (0, 1, 0, 0)
        yield from super().__rich_console__(console, options)


def table(*columns: str) -> Table:
    """A table without borders. In a narrow terminal cells are wrapped, not cut; the first column, which names the row,
    and what is copied into other commands are the last to be.
    """
    made = Listing(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        is_kept = not made.columns or column in _KEPT_WHOLE
        made.add_column(column, no_wrap=is_kept, overflow="ellipsis" if is_kept else "fold")
    return made


def add_row(target: Table, *cells: object) -> None:
    """Add a row of unformatted text; None becomes an empty cell."""
    target.add_row(*("" if cell is None else escaped(str(cell)) for cell in cells))


def print_json(value: Any) -> None:
    """Print a value as indented JSON on stdout. Bytes become hexadecimal text; NaN and infinities their names."""
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    json.dump(plain(value), sys.stdout, indent=2, ensure_ascii=not is_unicode, allow_nan=False)
    sys.stdout.write("\n")


def worded(result: Any) -> dict[str, Any]:
    """The fields of a result by the words that they have in the JSON of all commands."""
    return {_WORDS.get(name, name): value for name, value in dataclasses.asdict(result).items()}


def plain(value: Any) -> Any:
    """The value converted to JSON's types."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """A file to write in a ``with`` block, mode 0600, which gets the name ``file`` at the end of the block.

    After an error nothing is left of it, and ``file`` is as it was; an :class:`OSError` names ``file``.
    """
    pending = file.with_name(f".{file.name}.{os.getpid()}.pending")
    try:
        pending.touch(mode=0o600, exist_ok=False)
        yield pending
        pending.replace(file)
    except OSError as error:
        error.filename = str(file)
        raise
    finally:
        pending.unlink(missing_ok=True)


@contextmanager
def progress_bar(what: str, *, hidden: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr, if that is a terminal; call the result with the amount done and the total."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    out = console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=out, transient=True, disable=hidden or not out.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
