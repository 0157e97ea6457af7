"""``quorin restore``: a segment from a snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quorin.cli.options import Namespace, NewConnection, Opened, ShmDir
from quorin.cli.output import progress_bar
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.words import counted, size


def restore(
    connection: NewConnection,
    file: Annotated[Path, typer.Argument(help="What `quorin snapshot` wrote.")],
    namespace: Namespace = DEFAULT_NAMESPACE,
    shm_dir: ShmDir = None,
) -> None:
    """Bring a segment back from a snapshot. The file is checked before anything of it is served.

    A consumer then reads the log on from the snapshot's position; what the log has no more comes from the history, if
    the consumer has one.

    Example:
    - `quorin restore /var/backups/driver_stats.snapshot`

    Exit codes: 0 served again, 1 refused (the reason is on stderr), 2 wrong usage.
    """
    from quorin import snapshot as snapshots
    from quorin.shm import SegmentRegistry

    with Opened(connection, namespace) as backend:
        registry = SegmentRegistry(backend, shm_dir=shm_dir, namespace=namespace)
        with progress_bar(str(file)) as progress:
            back = snapshots.restore(file, registry, progress=progress)
    typer.echo(
        f"{back.segment_name}: {counted(back.entity_count, 'entity')}, {size(back.byte_count)} in "
        f"{back.elapsed_seconds:.2f} s, log position {back.position}"
    )
