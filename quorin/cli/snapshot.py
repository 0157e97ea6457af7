"""``quorin snapshot``: save a segment to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quorin.cli.options import Connection, Namespace, Opened, Raw, ShmDir, known_schema
from quorin.cli.output import Json, print_json, progress_bar, worded
from quorin.cli.repository import Names
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.log.token import json_of
from quorin.engine.words import counted, size


def snapshot(
    connection: Connection,
    schema: Annotated[str, typer.Argument(help="The schema or feature view.")],
    file: Annotated[Path, typer.Argument(help="The file to write; an existing one is replaced.")],
    namespace: Namespace = DEFAULT_NAMESPACE,
    shm_dir: ShmDir = None,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Save a segment and its log position to a checksummed file.

    Readers and the writer continue.

    Examples:
        quorin snapshot driver_stats driver_stats.snapshot

    Exit codes: 0 written, 1 failed (with the reason on stderr), 2 wrong usage.
    """
    from quorin import snapshot as snapshots
    from quorin.shm import SegmentRegistry

    with Opened(connection, namespace, raw=raw) as backend:
        target = known_schema(backend, schema)
        name = Names.of(backend, raw=raw).schema(target.__name__)
        registry = SegmentRegistry(backend, shm_dir=shm_dir, namespace=namespace)
        with registry.open_current(target) as segment, progress_bar(str(file), hidden=as_json) as progress:
            taken = snapshots.snapshot(segment, file, progress=progress)
    if as_json:
        print_json({"schema": name, **worded(taken), "position": json_of(taken.position)})
    else:
        typer.echo(
            f"{taken.path}: {name}, {counted(taken.entity_count, 'entity')}, {size(taken.byte_count)} in "
            f"{taken.elapsed_seconds:.2f} s, log position {json_of(taken.position)}"
        )
