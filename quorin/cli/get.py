"""``quorin get``: the served values of entities."""

from __future__ import annotations

import time
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quorin.cli.options import (
    Connection,
    Fields,
    Namespace,
    Opened,
    OptionalOffline,
    Raw,
    ShmDir,
    StreamKey,
    escaped,
    existing_history,
    find_field,
    known_schema,
    resolve_field,
    resolve_schema,
)
from quorin.cli.output import Json, add_row, console, plain, print_json, table
from quorin.cli.repository import Names, readable_schemas
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY
from quorin.engine.words import ago, moment

if TYPE_CHECKING:
    from quorin.engine.backend import Backend
    from quorin.schema import Schema
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
    field: Fields = None,
    last: Annotated[
        int | None, typer.Option("--last", min=1, help="Show so many rows of each, newest first.", show_default=False)
    ] = None,
    offline: OptionalOffline = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    shm_dir: ShmDir = None,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Show entities with values, types, event time and age.

    With `--last` the rows come from the history and from the log behind it, of one schema. Without a history they are
    those that the log still has.

    Examples:
        quorin get user_001                         # the entity's row in every segment
        quorin get 1001 1002 --schema driver_stats  # two entities of one feature view
        quorin get 1001 -s driver_stats -f conv_rate --json
        quorin get 1001 -s driver_stats --last 50   # its last fifty rows

    Exit codes: 0 every entity has a row in each named schema (in any, without --schema), 1 some have none, 2 wrong
    usage.
    """
    from quorin.engine.ops.observe import Observer
    from quorin.errors import QuorinError

    rows: list[dict[str, Any]] = []
    missing: set[tuple[str, str]] = set()
    with Opened(connection, namespace, raw=raw) as backend, Observer(backend, shm_dir=shm_dir) as looking:
        shown = Names.of(backend, raw=raw)
        names = [resolve_schema(backend, name) for name in schema or []] or _with_fields(backend, field or [])
        if last is not None:
            rows = _last_rows(backend, names, ids, last, offline, field or [], shown, stream_key)
        for name in names if last is None else ():
            try:
                segment = looking.segment(name)
            except QuorinError as error:
                if schema:
                    raise
                typer.echo(f"{shown.schema(name)}: {shown.text(str(error))}", err=True)
                continue
            rows += _rows(segment, ids, [resolve_field(segment.schema, one) for one in field or []] or None, shown)
    for name in map(shown.schema, names) if schema else [""]:
        present = {row["entity_id"] for row in rows if name in ("", row["schema"])}
        missing |= {(name, entity_id) for entity_id in ids if entity_id not in present}
    if as_json:
        absent = [{"schema": name or None, "entity_id": it} for name, it in sorted(missing)]
        print_json({"rows": rows, "missing": absent})
    else:
        (_print if last is None else _print_series)(rows)
        for name, entity_id in sorted(missing):
            typer.echo(f"no row for entity id {entity_id!r} in {name or 'any segment'}", err=True)
    if missing:
        raise typer.Exit(1)


def _last_rows(
    backend: Backend,
    schemas: list[str],
    ids: list[str],
    last: int,
    offline: str | None,
    field: list[str],
    names: Names,
    stream_key: str,
) -> list[dict[str, Any]]:
    from quorin.offline import last_values

    if len(schemas) != 1:
        raise typer.BadParameter(f"--last shows rows of one schema: expected --schema once, got {len(schemas)} schemas")
    schema = known_schema(backend, schemas[0])
    fields = [resolve_field(schema, one) for one in field] or None
    store = None if offline is None else existing_history(offline)
    found = last_values(schema, ids, last, store=store, connection=backend, fields=fields, stream_key=stream_key)
    return [_row(row, schema, names) for row in found.to_pylist()]


def _with_fields(backend: Backend, requested: list[str]) -> list[str]:
    """The schemas that have all of some fields.

    :raises typer.BadParameter: if none has.
    """
    if not requested:
        return sorted(backend.control.schemas())
    schemas = list(readable_schemas(backend).values())
    having = [one.__name__ for one in schemas if all(find_field(one, name) for name in requested)]
    if schemas and not having:
        for one in schemas if len(schemas) == 1 else ():
            for name in requested:
                resolve_field(one, name)
        raise typer.BadParameter(
            f"no schema has {'the field ' if len(requested) == 1 else 'all of the fields '}"
            f"{', '.join(map(repr, requested))}; `quorin schema` lists what they have"
        )
    return having


def _rows(segment: Segment, ids: list[str], fields: list[str] | None, names: Names) -> list[dict[str, Any]]:
    from quorin.assembly import read

    found = (row for row in read(segment, ids, fields).to_pylist() if row.pop("found"))
    return [_row(row, segment.schema, names) for row in found]


def _row(row: dict[str, Any], schema: Schema, names: Names) -> dict[str, Any]:
    """A row as it is shown, from its columns."""
    shown = names.fields(schema)
    types = {field.name: names.type(schema.__name__, field) for field in schema.fields}
    entity_id, event_time_ns = row.pop("entity_id"), row.pop("event_time_ns")
    return {
        "schema": names.schema(schema.__name__),
        "entity_id": entity_id,
        "event_time_ns": event_time_ns,
        "age_seconds": (time.time_ns() - event_time_ns) / 1e9,
        "values": {shown[name]: value for name, value in row.items()},
        "types": {shown[name]: types[name] for name in row},
    }


def _print_series(rows: list[dict[str, Any]]) -> None:
    """Rows one below the other, their entity before the first."""
    out = console()
    for entity_id, group in groupby(rows, key=itemgetter("entity_id")):
        series = list(group)
        out.print(f"[bold]{escaped(series[0]['schema'])}[/] {escaped(entity_id)}")
        values = table("  event time", *series[0]["values"])
        for row in series:
            texts = ("null" if value is None else str(plain(value)) for value in row["values"].values())
            add_row(values, f"  {moment(row['event_time_ns'])}", *texts)
        out.print(values)


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
