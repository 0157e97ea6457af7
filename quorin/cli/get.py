"""``quorin get``: the served values of entities."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quorin.cli.options import Connection, Namespace, Opened, ShmDir, escaped, resolve_field, resolve_schema
from quorin.cli.output import Json, add_row, console, plain, print_json, table
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.words import ago, moment

if TYPE_CHECKING:
    from quorin.shm import Segment


def get(
    connection: Connection,
    ids: Annotated[
        list[str],
        typer.Argument(help="Entity ids. Several join keys of Feast form one id, such as 'Oslo|7'."),
    ],
    schema: Annotated[
        list[str] | None,
        typer.Option("--schema", "-s", help="A schema or feature view; may be repeated. Default: all with the entity."),
    ] = None,
    field: Annotated[
        list[str] | None, typer.Option("--field", "-f", help="A field or feature; may be repeated. Default: all.")
    ] = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    shm_dir: ShmDir = None,
    as_json: Json = False,
) -> None:
    """Show the values of entities with their types, event time and age.

    Examples:
    - `quorin get user_001`: the entity's row in every segment

    - `quorin get 1001 1002 --schema driver_stats`: two entities of one feature view

    - `quorin get 1001 -s driver_stats -f conv_rate --json`

    Exit codes: 0 every entity has a row in each named schema (in any, without --schema), 1 some have none, 2 wrong
    usage.
    """
    from quorin.engine.ops.observe import Observer
    from quorin.errors import QuorinError

    rows: list[dict[str, Any]] = []
    missing: set[tuple[str, str]] = set()
    with Opened(connection, namespace) as backend, Observer(backend, shm_dir=shm_dir) as looking:
        names = [resolve_schema(backend, name) for name in schema or []] or sorted(backend.control.schemas())
        for name in names:
            try:
                segment = looking.segment(name)
                fields = [resolve_field(segment.schema, requested) for requested in field or []] or None
            except (QuorinError, typer.BadParameter) as error:
                if schema:
                    raise
                typer.echo(f"{name}: {error}", err=True)
                continue
            rows += _rows(segment, ids, fields)
    for name in names if schema else [""]:
        present = {row["entity_id"] for row in rows if name in ("", row["schema"])}
        missing |= {(name, entity_id) for entity_id in ids if entity_id not in present}
    if as_json:
        print_json(
            {"rows": rows, "missing": [{"schema": name or None, "entity_id": it} for name, it in sorted(missing)]}
        )
    else:
        _print(rows)
        for name, entity_id in sorted(missing):
            typer.echo(f"no row for entity id {entity_id!r} in {name or 'any segment'}", err=True)
    if missing:
        raise typer.Exit(1)


def _rows(segment: Segment, ids: list[str], fields: list[str] | None) -> list[dict[str, Any]]:
    from quorin.assembly import read

    batch = read(segment, ids, fields)
    types = {field.name: str(field.type) for field in batch.schema}
    rows = []
    for row in batch.to_pylist():
        if not row.pop("found"):
            continue
        entity_id, event_time_ns = row.pop("entity_id"), row.pop("event_time_ns")
        rows.append(
            {
                "schema": segment.schema.__name__,
                "entity_id": entity_id,
                "event_time_ns": event_time_ns,
                "age_seconds": (time.time_ns() - event_time_ns) / 1e9,
                "values": row,
                "types": {name: types[name] for name in row},
            }
        )
    return rows


def _print(rows: list[dict[str, Any]]) -> None:
    out = console()
    for row in rows:
        age = f"{moment(row['event_time_ns'])}, {ago(row['age_seconds'])}"
        out.print(f"[bold]{escaped(row['schema'])}[/] {escaped(row['entity_id'])}  {escaped(age)}")
        values = table("  field", "type", "value")
        for name, value in row["values"].items():
            text = "null" if value is None else repr(value) if isinstance(value, str) else str(plain(value))
            add_row(values, f"  {name}", row["types"][name], text)
        out.print(values)
