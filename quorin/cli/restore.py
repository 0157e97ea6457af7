"""``quorin restore``: restore a segment from a snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quorin.cli.options import Namespace, NewConnection, Opened, Raw, ShmDir, ShmGroup
from quorin.cli.output import Json, print_json, progress_bar, worded
from quorin.cli.partitions import Of, Ordinal, Partitions, held_partitions
from quorin.cli.repository import Names
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.format.name import SegmentName
from quorin.engine.log.token import json_of
from quorin.engine.words import counted, size


def restore(
    connection: NewConnection,
    file: Annotated[Path, typer.Argument(help="A file from `quorin snapshot`.")],
    namespace: Namespace = DEFAULT_NAMESPACE,
    shm_dir: ShmDir = None,
    shm_group: ShmGroup = None,
    partitions: Partitions = None,
    ordinal: Ordinal = None,
    of: Of = None,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Restore a segment from a snapshot. The whole file is verified before anything is served.

    A consumer then continues with the log from the snapshot's position. Entries that the log has trimmed come from the
    history, if the consumer has one. With several partitions the file must have all that this machine holds; each goes
    on from its own position.

    Examples:
        quorin restore driver_stats.snapshot

    Exit codes: 0 restored, 1 refused (with the reason on stderr), 2 wrong usage.
    """
    from quorin import snapshot as snapshots
    from quorin.errors import SegmentConflictError
    from quorin.shm import SegmentRegistry

    with Opened(connection, namespace, raw=raw) as backend:
        held = held_partitions(backend, partitions, ordinal, of)
        registry = SegmentRegistry(backend, shm_dir=shm_dir, shm_group=shm_group, namespace=namespace, held=held)
        with progress_bar(str(file), hidden=as_json) as progress:
            try:
                restored = snapshots.restore(file, registry, progress=progress)
            except SegmentConflictError as error:
                error.add_note("to replace it, stop the consumer, `quorin discard` the schema, and restore again")
                raise
        name = Names.of(backend, raw=raw).schema(SegmentName.parse(restored.segment_name).schema)
    if as_json:
        print_json({"schema": name, **worded(restored), "position": json_of(restored.position)})
    else:
        typer.echo(
            f"{name}: {counted(restored.entity_count, 'entity')}, {size(restored.byte_count)} in "
            f"{restored.elapsed_seconds:.2f} s, log position {json_of(restored.position)}"
        )
