"""``quorin discard``: remove a segment and its rows from this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from quorin.cli.options import Connection, Namespace, Opened, Raw, ShmDir, resolve_schema
from quorin.cli.output import Json, print_json
from quorin.cli.repository import Names
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.words import counted, size


def discard(
    connection: Connection,
    schema: Annotated[str, typer.Argument(help="The schema or feature view.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    shm_dir: ShmDir = None,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Remove the segment of a schema from this machine.

    Its rows and its memory are freed, for example before `quorin restore`. Kept and pinned generations go too; a
    process that pins one reads on from memory. The schema, the log, the history, snapshots and other machines keep
    what they have. Stop the consumer first: it holds the segment, and would build a new one.

    Examples:
        quorin discard UserFeatures --yes
        quorin discard driver_stats --yes --json

    Exit codes: 0 removed, 1 there is none, a process writes to it, or the answer was no, 2 wrong usage.
    """
    from quorin.errors import WriterLeaseHeldError
    from quorin.shm import SegmentRegistry

    with Opened(connection, namespace, raw=raw) as backend:
        names, name = Names.of(backend, raw=raw), resolve_schema(backend, schema)
        registry = SegmentRegistry(backend, shm_dir=shm_dir, namespace=namespace)
        with registry.open_stored(name, read_only=False) as segment:
            stats = segment.stats()
            what = f"{names.schema(name)}: {counted(stats['rows'], 'row')}, {size(stats['bytes'])}"
            if not yes:
                typer.confirm(f"remove {what}?", abort=True, err=True)
            try:
                registry.discard(segment)
            except WriterLeaseHeldError as error:
                error.add_note("if it is a consumer, stop it first: it holds the segment, and would build a new one")
                raise
    if as_json:
        removed = {"segment": stats["name"], "rows": stats["rows"], "bytes": stats["bytes"]}
        print_json({"schema": names.schema(name), **removed})
    else:
        typer.echo(f"removed {what}")
