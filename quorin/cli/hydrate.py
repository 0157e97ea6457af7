"""``quorin hydrate``: build segments from the history."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from quorin.cli.options import (
    Connection,
    Namespace,
    Offline,
    Opened,
    Raw,
    ShmDir,
    ShmGroup,
    StreamKey,
    existing_history,
    known_schema,
)
from quorin.cli.output import Json, print_json, progress_bar, worded
from quorin.cli.partitions import Of, Ordinal, Partitions, held_partitions
from quorin.cli.repository import Names
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY
from quorin.engine.words import counted


def hydrate(
    connection: Connection,
    offline: Offline,
    schemas: Annotated[
        list[str] | None, typer.Argument(help="Schemas or feature views. Default: all without a segment.")
    ] = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    shm_dir: ShmDir = None,
    shm_group: ShmGroup = None,
    partitions: Partitions = None,
    ordinal: Ordinal = None,
    of: Of = None,
    capacity_factor: Annotated[float, typer.Option(min=1, help="Capacity, as a multiple of the entities.")] = 2.0,
    as_of: Annotated[
        datetime | None, typer.Option(help="Leave out events after this time (UTC).", show_default=False)
    ] = None,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Build segments from the history.

    Each gets the newest row of every entity. A consumer then continues with the log. A consumer with `--offline`
    hydrates by itself; use this command before starting one.

    Examples:
        quorin hydrate driver_stats --as-of 2026-05-01T00:00:00  # one schema, as of then
        quorin hydrate --offline data/history --json             # all without a segment on this machine

    Exit codes: 0 built, or nothing to do, 1 a schema already has a segment or has no history (with the reason on
    stderr), 2 wrong usage.
    """
    from datetime import UTC

    from quorin import hydration
    from quorin.errors import EmptyDatasetError
    from quorin.shm import SegmentRegistry

    until = None if as_of is None else int(as_of.replace(tzinfo=UTC).timestamp()) * 10**9
    options: dict[str, Any] = {"capacity_factor": capacity_factor, "as_of_time_ns": until, "stream_key": stream_key}
    store = existing_history(offline)
    segments: list[dict[str, object]] = []
    with Opened(connection, namespace, raw=raw) as backend:
        shown = Names.of(backend, raw=raw)
        held = held_partitions(backend, partitions, ordinal, of)
        registry = SegmentRegistry(backend, shm_dir=shm_dir, shm_group=shm_group, namespace=namespace, held=held)
        names = schemas or [name for name in sorted(backend.control.schemas()) if registry.current_name(name) is None]
        if not names and not as_json:
            typer.echo(f"nothing to do: every schema at {backend.address} has a segment on this machine")
        for schema in [known_schema(backend, name) for name in names]:
            try:
                name = shown.schema(schema.__name__)
                with progress_bar(name, hidden=as_json) as progress:
                    built = hydration.hydrate(schema, store, registry, progress=progress, **options)
            except EmptyDatasetError as error:
                if schemas:
                    raise
                typer.echo(f"{shown.text(str(error))}; skipped", err=True)
                continue
            segments.append({"schema": name, **worded(built)})
            if not as_json:
                typer.echo(
                    f"{name}: {counted(built.entity_count, 'entity')} in {built.elapsed_seconds:.2f} s, log position "
                    f"{built.position}"
                )
    if as_json:
        print_json({"segments": segments})
