"""``quorin changes``: the rows and deletions of a segment behind a position of the log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quorin.cli.export import check_format, write_batches
from quorin.cli.options import Connection, Fields, Namespace, Opened, Prefix, Raw, ShmDir, resolve_field, resolve_schema
from quorin.cli.output import Json, add_row, console, plain, print_json, progress_bar, table
from quorin.cli.repository import Names
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.log.token import Token, json_of
from quorin.engine.words import counted, moment, size
from quorin.errors import TokenError

_SHOWN_ROWS = 20
_OWN = ("entity_id", "event_time_ns", "position", "deleted")


def changes(
    connection: Connection,
    schema: Annotated[str, typer.Argument(help="The schema or feature view.")],
    since: Annotated[
        str,
        typer.Option("--since", help="The position of the log behind which changes are shown, or a token; 0: all."),
    ],
    to: Annotated[
        Path | None,
        typer.Option("--to", help="Write them to this .parquet, .arrow or .csv file instead.", show_default=False),
    ] = None,
    prefix: Prefix = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", "-n", min=1, help="The most rows. Default: 20 in a table, else all.", show_default=False
        ),
    ] = None,
    field: Fields = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    shm_dir: ShmDir = None,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Show what changed in a segment since a position.

    Shows rows and deletions with a greater log position, in no particular order, and up to which position these are
    all: ask for the changes since that one next time. Growth forgets deletions after a week of event time; changes
    since a position before that are refused. With several partitions a token takes the place of a position.

    Examples:
        quorin changes driver_stats --since 1873942786347008000
        quorin changes driver_stats --since 0 --to all.parquet --json   # all rows, and where to go on
        quorin changes UserFeatures --since 1873942786347008000 --json

    Exit codes: 0 shown, also without any change, 1 the segment is missing or damaged, or has forgotten deletions since
    then, 2 wrong usage.
    """
    from quorin.assembly import changed_since
    from quorin.shm import SegmentRegistry

    position = _position(since)
    if to is not None:
        check_format(to)
    with Opened(connection, namespace, raw=raw) as backend:
        names, name = Names.of(backend, raw=raw), resolve_schema(backend, schema)
        registry = SegmentRegistry(backend, shm_dir=shm_dir, namespace=namespace)
        with registry.open_stored(name) as segment, progress_bar(str(to), hidden=as_json or to is None) as progress:
            fields = [resolve_field(segment.schema, requested) for requested in field or []] or None
            most = limit or (None if as_json or to else _SHOWN_ROWS)
            found = changed_since(segment, position, prefix=prefix, limit=most, fields=fields)
            shown = _shown(names.fields(segment.schema))
            if to is not None:
                count = write_batches(found.batches, shown, to, len(segment), progress)
            else:
                rows = [_row(row, shown) for row in found.batches.read_all().to_pylist()]
                count = len(rows)
    # With a limit that was reached there may be more changes, up to any position.
    through = None if count == most else json_of(found.through)
    answer = {"schema": names.schema(name), "since": json_of(position), "through": through}
    if to is not None and as_json:
        print_json(answer | {"file": str(to), "rows": count, "bytes": to.stat().st_size})
    elif to is not None:
        typer.echo(f"{to}: {counted(count, 'row')}, {size(to.stat().st_size)}")
    elif as_json:
        print_json(answer | {"rows": rows})
    else:
        _print(rows)
    if not as_json:
        typer.echo(f"changes since {since}, {'and there may be more' if through is None else f'all through {through}'}")


def _position(text: str) -> int | Token:
    if text.isascii() and text.isdigit() and int(text) < 1 << 63:
        return int(text)
    try:
        return Token.parse(text)
    except TokenError as error:
        raise typer.BadParameter(f"--since: expected a position from 0 on, or a token, got {text!r}") from error


def _shown(fields: dict[str, str]) -> dict[str, str]:
    """What the columns of fields are called, by the names in Arrow."""
    columns = {name: f"{name}:field" if name in _OWN else name for name in fields}
    return {columns[name]: columns[name] if text in _OWN else text for name, text in fields.items()}


def _row(row: dict[str, Any], shown: dict[str, str]) -> dict[str, Any]:
    own = {key: row.pop(key) for key in _OWN}
    return own | {"values": None if own["deleted"] else {shown[key]: value for key, value in row.items()}}


def _print(rows: list[dict[str, Any]]) -> None:
    columns = next((list(row["values"]) for row in rows if row["values"] is not None), [])
    listed = table("entity id", "event time", "position", *columns)
    for row in rows:
        values = row["values"]
        cells = ["deleted"] if values is None else ["null" if one is None else plain(one) for one in values.values()]
        add_row(listed, row["entity_id"], moment(row["event_time_ns"]), row["position"], *cells)
    if rows:
        console().print(listed)
