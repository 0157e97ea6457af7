"""``quorin compact``: merge the small files of the history."""

from __future__ import annotations

from typing import Annotated

import typer

from quorin.cli.options import Connection, Namespace, Offline, Opened, Raw, existing_history, known_schema
from quorin.cli.output import Json, print_json
from quorin.cli.repository import Names
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.words import counted


def compact(
    connection: Connection,
    offline: Offline,
    schemas: Annotated[list[str] | None, typer.Argument(help="Schemas or feature views. Default: all.")] = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Merge the small files of the history.

    Consumers and reads continue. Run it once an hour or a day.

    Examples:
        quorin compact  # every schema's history
        quorin compact driver_stats --offline data/history

    Exit codes: 0 done, 1 the history is unavailable (with the reason on stderr), 2 wrong usage.
    """
    store = existing_history(offline)
    done = []
    with Opened(connection, namespace, raw=raw) as backend:
        names = Names.of(backend, raw=raw)
        for schema in [known_schema(backend, name) for name in schemas or sorted(backend.control.schemas())]:
            name, fewer = names.schema(schema.__name__), store.compact(schema)
            done.append({"schema": name, "files_fewer": fewer})
            if not as_json:
                typer.echo(f"{name}: {counted(fewer, 'file')} fewer")
    if as_json:
        print_json({"schemas": done})
