"""``quorin log``: look at the log."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quorin.cli.help import add_command
from quorin.cli.options import Connection, Namespace, Opened, Raw, StreamKey, resolve_schema
from quorin.cli.output import Json, add_row, console, plain, print_json, table
from quorin.cli.repository import Names
from quorin.engine.backend import logs as logs_of
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY, SEQUENCE_BITS
from quorin.engine.words import moment

if TYPE_CHECKING:
    from quorin.engine.backend import Log

app = typer.Typer(
    name="log", help="Show the entries that producers append.", no_args_is_help=True, rich_markup_mode=None
)

_FIRST_WINDOW_MS = 1000
_WAIT_MS = 500


def tail(
    connection: Connection,
    entries: Annotated[int, typer.Option("--entries", "-n", min=1, help="How many of the last entries.")] = 10,
    schema: Annotated[
        str | None, typer.Option("--schema", "-s", help="Only this schema or feature view.", show_default=False)
    ] = None,
    partition: Annotated[
        int | None, typer.Option(min=0, help="Only the log of this partition. Default: all.", show_default=False)
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-F", help="Show new entries too, until Ctrl-C.")] = False,
    rows: Annotated[bool, typer.Option("--rows", help="Show the rows of each entry.")] = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Show the last entries of the log.

    Shows position, time, kind, schema, rows and bytes of each. Entries that were trimmed are gone; the history has
    their rows.

    Examples:
        quorin log tail                             # the last ten
        quorin log tail -n 3 --rows                 # with their rows
        quorin log tail --schema driver_stats --json
        quorin log tail --partition 0               # of one partition

    Exit codes: 0 shown, 1 the control plane cannot be reached, 2 wrong usage, 130 ended by Ctrl-C.
    """
    if follow and as_json:
        raise typer.BadParameter("--follow prints lines as they come; expected it without --json")
    with Opened(connection, namespace, raw=raw) as backend:
        names, name = Names.of(backend, raw=raw), None if schema is None else resolve_schema(backend, schema)
        logs = logs_of(backend, stream_key) if partition is None else [backend.log(stream_key, partition)]
        lasts = {log: log.bounds().last for log in logs}
        is_parted = backend.partitions() > 1
        found = sorted(
            (*one, log.partition if is_parted else None) for log in logs for one in last_entries(log, entries, name)
        )[-entries:]
        shown = [_entry(*one, names=names, rows=rows or as_json) for one in found]
        if as_json:
            print_json({"entries": shown, "last": max(lasts.values())})
            return
        trimmed = max(log.bounds().trimmed for log in logs)
        if not shown:
            typer.echo(f"no entries; trimmed to {trimmed}" if trimmed else "no entries")
        _print(shown, rows=rows)
        while follow:
            _follow(lasts, name, lambda *one: _entry(*one, names=names, rows=rows), is_parted=is_parted, rows=rows)


add_command(app, tail)


def _follow(
    lasts: dict[Log, int], name: str | None, entry: Callable[..., dict[str, Any]], *, is_parted: bool, rows: bool
) -> None:
    """Show what is new in the logs since the positions ``lasts``, and move these on; waits a little for entries."""
    for log, last in lasts.items():
        found = log.read(last, schema_names=None if name is None else [name], block_ms=_WAIT_MS // len(lasts))
        new = [entry(*one, log.partition if is_parted else None) for one in found.entries]
        _print(new, rows=rows, header=False)
        lasts[log] = max(last, found.through)


def last_entries(log: Log, count: int, schema_name: str | None = None) -> Iterator[tuple[int, bytes]]:
    """The last entries of a log, or of one schema, with their positions, oldest first.

    A position begins with the time of its entry: the log is read from a second before its end, then from earlier and
    earlier.
    """
    bounds = log.bounds()
    names = None if schema_name is None else [schema_name]
    window_ms = _FIRST_WINDOW_MS
    while True:
        start = max(bounds.trimmed, bounds.last - (window_ms << SEQUENCE_BITS))
        kept: deque[tuple[int, bytes]] = deque(maxlen=count)
        at = start
        while at < bounds.last:
            found = log.read(at, schema_names=names)
            kept.extend(found.entries)
            if found.through <= at:
                break
            at = found.through
        if len(kept) == count or start == bounds.trimmed:
            return iter(kept)
        window_ms *= 10


def _entry(position: int, payload: bytes, partition: int | None, *, names: Names, rows: bool) -> dict[str, Any]:
    """What an entry says of itself; a damaged one has its reason instead."""
    from quorin.engine.log.record import decode, is_of_load, load_of, peek
    from quorin.errors import InvalidEntryError

    entry: dict[str, Any] = {"position": position, "bytes": len(payload)}
    entry |= {} if partition is None else {"partition": partition}
    try:
        header = peek(payload)
        entry |= {
            "written_ns": header.written_ns,
            "kind": header.kind.name,
            "schema": names.schema(header.schema_name),
            "rows": header.row_count,
        }
        if is_of_load(payload):
            entry["load"] = load_of(payload)[0]
        if rows:
            entry["values"] = names.rows(header.schema_name, decode(payload).batch.to_pylist())
    except InvalidEntryError as error:
        entry["problem"] = str(error)
    return entry


def _print(entries: list[dict[str, Any]], *, rows: bool, header: bool = True) -> None:
    if not entries:
        return
    columns = ["position", "written", "kind", "schema", "rows", "bytes"]
    columns += ["partition"] if "partition" in entries[0] else []
    listed = table(*columns)
    listed.show_header = header
    for entry in entries:
        if rows:
            listed = table(*columns)
            listed.show_header = False
        kind = f"{entry['kind']} {entry['load']}" if "load" in entry else entry.get("kind")
        cells = moment(entry.get("written_ns")), kind, entry.get("schema", entry.get("problem"))
        add_row(listed, entry["position"], *cells, entry.get("rows"), entry["bytes"], *_partition_of(entry))
        if rows:
            console().print(listed)
            for row in entry.get("values", []):
                typer.echo(f"  {plain(row)}")
    if not rows:
        console().print(listed)


def _partition_of(entry: dict[str, Any]) -> list[int]:
    """A cell more, with several partitions."""
    return [entry["partition"]] if "partition" in entry else []
