"""``quorin schema``: the fields of a schema, and its JSON for the next version."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from quorin.cli.inspect import default_text
from quorin.cli.options import Connection, Namespace, Opened, Raw, known_schema
from quorin.cli.output import Json, add_row, console, print_json, table
from quorin.cli.repository import Names
from quorin.engine.backend.keys import DEFAULT_NAMESPACE


def schema(
    connection: Connection,
    schema: Annotated[
        str | None, typer.Argument(help="A schema or feature view. Default: the names of all.", show_default=False)
    ] = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Show the fields of a schema or feature view.

    Shows their types. Without a name it lists all schemas. With a name, `--json` prints the schema itself: the form
    that `quorin upgrade` reads.

    Examples:
        quorin schema                                 # all schemas
        quorin schema driver_stats                    # the fields of one
        quorin schema UserFeatures --json > next.json  # edit it, then `quorin upgrade next.json`

    Exit codes: 0 shown, 1 the control plane cannot be reached, 2 wrong usage.
    """
    from quorin.schema import fingerprint, schema_to_json

    with Opened(connection, namespace, raw=raw) as backend:
        names = Names.of(backend, raw=raw)
        shown = [known_schema(backend, name) for name in ([schema] if schema else sorted(backend.control.schemas()))]
    if as_json and schema:
        print_json(json.loads(schema_to_json(shown[0])))
    elif as_json:
        listed = [
            {"schema": names.schema(one.__name__), "version": one.version, "fields": list(names.fields(one).values())}
            for one in shown
        ]
        print_json({"schemas": listed})
    elif schema:
        (one,) = shown
        console().print(f"{names.schema(one.__name__)} version {one.version}, {fingerprint(one):016x}", markup=False)
        fields = table("field", "type", "null reads as")
        for field, name in zip(one.fields, names.fields(one).values(), strict=True):
            add_row(fields, name, names.type(one.__name__, field), default_text(field))
        console().print(fields)
    else:
        schemas = table("schema", "version", "fields")
        for one in shown:
            add_row(schemas, names.schema(one.__name__), one.version, ", ".join(names.fields(one).values()))
        console().print(schemas if shown else "no schemas yet")
