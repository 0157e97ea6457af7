"""``quorin repartition``: grow a deployment to twice as many partitions."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from quorin.cli.options import Connection, Namespace, Opened
from quorin.cli.output import Json, add_row, console, print_json, progress_bar, table
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY
from quorin.engine.words import count, counted, duration

if TYPE_CHECKING:
    from quorin.evolution import RepartitionResult


class WaitFor(StrEnum):
    """Where the new number must be in force before the command returns."""

    log = "log"
    nodes = "nodes"


def repartition(
    connection: Connection,
    partitions: Annotated[
        int | None, typer.Argument(help="The new number of partitions: twice the present one.", show_default=False)
    ] = None,
    abort: Annotated[bool, typer.Option("--abort", help="Undo a growth that is under way, whoever began it.")] = False,
    wait_for: Annotated[
        WaitFor,
        typer.Option("--wait-for", help="Return when producers use the new logs, or when all live nodes do too."),
    ] = WaitFor.nodes,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for the nodes.")] = 60.0,
    stream_key: Annotated[
        list[str] | None,
        typer.Option(
            help=f"The name of a log; repeat it for several. Default: {DEFAULT_STREAM_KEY}.", show_default=False
        ),
    ] = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    as_json: Json = False,
) -> None:
    """Grow a deployment to twice as many partitions. Reads and writes continue.

    The logs are closed, and each is followed by two new ones: writes wait some milliseconds, and no row is moved. Each
    node applies the closed logs to their ends, and carries its rows over. A killed command goes on when it is run
    again.

    Examples:
        quorin repartition 32                  # from 16, and wait for all live nodes
        quorin repartition 32 --wait-for log   # return when producers use the new logs
        quorin repartition --abort             # undo one that was killed before its end

    Exit codes: 0 done (with `--abort`: undone, or none was under way), 1 refused, or nodes are late (with the reason on
    stderr), 2 wrong usage.
    """
    from quorin import evolution

    if abort == (partitions is not None):
        raise typer.BadParameter("give either the new number of partitions or --abort")
    with Opened(connection, namespace) as backend:
        if partitions is None:
            _print_aborted(evolution.abort_repartition(backend), backend.partitions(), as_json=as_json)
            return
        with progress_bar(f"growing to {partitions} partitions", hidden=as_json) as progress:
            result = evolution.repartition(
                backend,
                partitions,
                stream_keys=stream_key or [DEFAULT_STREAM_KEY],
                wait_for=wait_for.value,
                timeout_seconds=timeout,
                progress=progress,
            )
    _print(result, as_json=as_json)


def _print_aborted(kept: int | None, present: int, *, as_json: bool) -> None:
    if as_json:
        print_json({"aborted": kept is not None, "partitions": present})
    elif kept is None:
        typer.echo(f"no growth is under way; the deployment has {counted(present, 'partition')}")
    else:
        typer.echo(f"the growth was undone; the deployment keeps {counted(kept, 'partition')}")


def _print(result: RepartitionResult, *, as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(result))
        return
    shown = table("", "")
    add_row(shown, "partitions", f"{result.partitions}, before {result.former_partitions}")
    add_row(shown, "closed logs", f"{count(result.closed_entries)} entries up to position {result.closed_position}")
    add_row(shown, "nodes", f"{len(result.nodes) - len(result.late_nodes)} of {len(result.nodes)} carried over")
    add_row(shown, "took", duration(result.elapsed_seconds))
    shown.show_header = False
    console().print(shown)
