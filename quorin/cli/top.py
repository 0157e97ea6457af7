"""``quorin top``: watch segments, reads and writes live in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from quorin.cli.options import Connection, Namespace, Opened, ShmDir, StreamKey
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY
from quorin.errors import needs_extra


def top(
    connection: Connection,
    interval: Annotated[float, typer.Option("--interval", "-i", min=0.1, help="Seconds between updates.")] = 1.0,
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    shm_dir: ShmDir = None,
) -> None:
    """Watch segments live: rows read per second, latency, rows written, lag, freshness, readers, growth, dead letters.

    Counts the reads and writes of all processes of this machine and user. Keys: `s` sorts by the next column, `r`
    reverses the order, `enter` shows a segment in detail, `p` pauses, `q` quits. Needs the extra `top`.

    Examples:
    - `quorin top -c redis://localhost:6379`

    - `quorin top -c data/quorin -i 0.5`: twice a second

    Exit codes: 0 quit, 1 could not start (with the reason on stderr), 2 wrong usage.
    """
    with needs_extra("top"):
        from quorin.cli.top_app import Top
    from quorin.engine.ops.observe import Observer

    with Opened(connection, namespace) as backend, Observer(backend, shm_dir=shm_dir, stream_key=stream_key) as looking:
        Top(looking, interval).run()
