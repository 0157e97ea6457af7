"""``quorin scan``: the rows of a segment, or of the ids that begin alike."""

from __future__ import annotations

from typing import Annotated

import typer

from quorin.cli.options import Connection, Fields, Namespace, Opened, Prefix, Raw, ShmDir, resolve_field, resolve_schema
from quorin.cli.output import Json, add_row, console, plain, print_json, table
from quorin.cli.repository import Names
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.words import moment


def scan(
    connection: Connection,
    schema: Annotated[str, typer.Argument(help="The schema or feature view.")],
    prefix: Prefix = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The most rows to show.")] = 20,
    ids: Annotated[bool, typer.Option("--ids", help="Show the ids alone, one per line.")] = False,
    field: Fields = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    shm_dir: ShmDir = None,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Show rows of a segment, in no particular order. Each row is one whole version, all are of one generation.

    Examples:
        quorin scan driver_stats                            # up to twenty rows
        quorin scan UserFeatures --prefix user_ --limit 5   # of ids that begin alike
        quorin scan driver_stats --ids -n 1000              # ids for a script
        quorin scan driver_stats -f conv_rate --json

    Exit codes: 0 shown, also without any row, 1 the segment is missing or damaged, 2 wrong usage.
    """
    from quorin.assembly import scan as scan_rows
    from quorin.shm import SegmentRegistry

    with Opened(connection, namespace, raw=raw) as backend:
        names, name = Names.of(backend, raw=raw), resolve_schema(backend, schema)
        registry = SegmentRegistry(backend, shm_dir=shm_dir, namespace=namespace)
        with registry.open_stored(name) as segment:
            fields = [] if ids else [resolve_field(segment.schema, requested) for requested in field or []] or None
            rows = scan_rows(segment, prefix, limit, fields).read_all().to_pylist()
            shown = names.fields(segment.schema)
    if as_json:
        found = [
            {
                "entity_id": row.pop("entity_id"),
                "event_time_ns": row.pop("event_time_ns"),
                "values": {shown[key]: value for key, value in row.items()},
            }
            for row in rows
        ]
        print_json({"schema": names.schema(name), "rows": found})
    elif ids:
        for row in rows:
            typer.echo(row["entity_id"])
    else:
        columns = [key for key in (rows[0] if rows else {}) if key not in ("entity_id", "event_time_ns")]
        listed = table("entity id", "event time", *(shown[key] for key in columns))
        for row in rows:
            values = ("null" if row[key] is None else plain(row[key]) for key in columns)
            add_row(listed, row["entity_id"], moment(row["event_time_ns"]), *values)
        console().print(listed if rows else "no rows")
