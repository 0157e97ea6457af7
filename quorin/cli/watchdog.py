"""``quorin watchdog``: reclaim what dead processes left behind."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from quorin.cli.options import Connection, Level, LogJson, LogLevel, Namespace, ShmDir
from quorin.cli.output import Json, add_row, console, print_json, table, worded
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.words import counted, duration, size

if TYPE_CHECKING:
    from quorin.watchdog import TickResult

_SECONDS_BETWEEN_TICKS = 0.5


def watchdog(
    connection: Connection,
    namespace: Namespace = DEFAULT_NAMESPACE,
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds between ticks.")] = 5.0,
    misses: Annotated[
        int, typer.Option(min=1, help="Reclaim what has been orphaned for this many consecutive ticks.")
    ] = 2,
    once: Annotated[bool, typer.Option("--once", help="Run that many ticks, half a second apart, and stop.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --once: show what would be removed.")] = False,
    shm_dir: ShmDir = None,
    as_json: Json = False,
    log_level: LogLevel = Level.INFO,
    log_json: LogJson = None,
) -> None:
    """Remove what dead processes left in shared memory.

    Removes segment files that no process holds and no read can reach, the entries of dead processes, and the counters
    of schemas that are gone. Files and entries are those of this namespace only. Serving works without it, but it
    frees memory. Run it with the same host, user and process-id namespace as the processes that it watches. Stops on
    SIGTERM and Ctrl-C.

    Examples:
        quorin watchdog                   # beside the consumer, forever
        quorin watchdog --once --dry-run  # what would be removed, and why

    Exit codes: 0 done, or stopped by a signal, 1 failed (with the reason on stderr), 2 wrong usage.
    """
    from quorin import logging
    from quorin.watchdog import WatchdogState, run_forever

    if dry_run and not once:
        raise typer.BadParameter("--dry-run needs --once")
    if as_json and not once:
        raise typer.BadParameter("--json needs --once; without it, actions are logged")
    stop = threading.Event()
    if not once:
        logging.configure(log_level, json=log_json)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        log = logging.get_logger(__name__)
        log.info("watchdog_started", interval_seconds=interval)
        run_forever(
            connection,
            tick_interval_seconds=interval,
            stop_event=stop,
            miss_threshold=misses,
            shm_dir=shm_dir,
            namespace=namespace,
        )
        log.info("watchdog_stopped")
        return
    with WatchdogState(
        connection, miss_threshold=misses, shm_dir=shm_dir, namespace=namespace, dry_run=dry_run
    ) as state:
        result = state.run_one_tick()
        for _ in range(misses - 1):
            stop.wait(_SECONDS_BETWEEN_TICKS)
            result = state.run_one_tick()
    if as_json:
        print_json(worded(result) | {"reclaimed": [worded(one) for one in result.reclaimed]})
    else:
        _print(result)


def _print(result: TickResult) -> None:
    verb = "would remove" if result.dry_run else "removed"
    shown = table(verb, "size", "why")
    for file in result.reclaimed:
        add_row(shown, file.name, size(file.byte_count), file.reason)
    for process in result.dead_processes:
        add_row(shown, process, "", "the process is dead")
    for name in result.repointed:
        add_row(shown, name, "", "made current: the control plane named an older generation")
    for name in result.retired:
        add_row(shown, f"counters of {name}", "", "the schema is gone, and no process counts for it")
    if shown.row_count:
        console().print(shown)
    else:
        typer.echo("nothing to reclaim")
    typer.echo(f"{counted(result.foreign_files, 'foreign file')} left alone, in {duration(result.elapsed_seconds)}")
