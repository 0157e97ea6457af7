"""``quorin compact``: merge the small files of the history."""

from __future__ import annotations

from typing import Annotated

import typer

from quorin.cli.options import Connection, Namespace, Offline, Opened, existing_history, known_schema
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.words import counted


def compact(
    connection: Connection,
    offline: Offline,
    schemas: Annotated[list[str] | None, typer.Argument(help="Schemas or feature views. Default: all.")] = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> None:
    """Merge the small files of the history while consumers and reads continue. Run it once an hour or a day.

    Examples:
        quorin compact  # every schema's history
        quorin compact driver_stats --offline data/history

    Exit codes: 0 done, 1 the history is unavailable (with the reason on stderr), 2 wrong usage.
    """
    store = existing_history(offline)
    with Opened(connection, namespace) as backend:
        for name in schemas or sorted(backend.control.schemas()):
            schema = known_schema(backend, name)
            typer.echo(f"{schema.__name__}: {counted(store.compact(schema), 'file')} fewer")
