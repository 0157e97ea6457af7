"""``quorin top``: watch segments, reads and writes live in the terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from quorin.cli.options import Connection, Namespace, Opened, Raw, ShmDir, StreamKey
from quorin.cli.output import add_row, console, table
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY
from quorin.errors import needs_extra

if TYPE_CHECKING:
    from quorin.engine.ops.observe import Observer


def top(
    connection: Connection,
    interval: Annotated[float, typer.Option("--interval", "-i", min=0.1, help="Seconds between updates.")] = 1.0,
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    shm_dir: ShmDir = None,
    once: Annotated[bool, typer.Option("--once", help="Observe for one interval, print it and stop.")] = False,
    raw: Raw = False,
) -> None:
    """Watch segments live in the terminal.

    Shows lag, freshness, readers, dead letters, reads and their latency, writes and growth. Counts the reads and
    writes of all processes of this machine and user. Keys: `s` sorts by the next column, `r` reverses the order, `/`
    filters, left and right scroll, `enter` shows a segment in detail, `p` pauses, `?` helps, `q` quits. Needs the
    extra `top`, except with --once.

    Examples:
        quorin top
        quorin top --interval 0.5  # twice a second
        quorin top --once          # print it once

    Exit codes: 0 quit, 1 could not start (with the reason on stderr), 2 wrong usage.
    """
    if not once:
        with needs_extra("top"):
            from quorin.cli.top_app import Top
    from quorin.engine.ops.observe import Observer

    with (
        Opened(connection, namespace, raw=raw) as backend,
        Observer(backend, shm_dir=shm_dir, stream_key=stream_key) as looking,
    ):
        if once:
            _print(looking, interval, raw=raw)
            return
        Top(looking, interval, raw=raw).run()


def _print(looking: Observer, interval: float, *, raw: bool) -> None:
    """Print what two observations, an interval apart, say."""
    from quorin.cli.inspect import print_problems
    from quorin.cli.top_model import COLUMNS, lines, look, names_of, summary

    before = look(looking)
    time.sleep(interval)
    now = look(looking)
    shown = table(*COLUMNS)
    for line in sorted(lines(before, now, raw=raw), key=lambda one: one.name):
        add_row(shown, *line.cells)
    console().print(summary(before, now), markup=False)
    console().print(shown)
    print_problems(now.seen.segments, names_of(now, raw=raw))
