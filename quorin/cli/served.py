"""``quorin served``: the served log."""

from __future__ import annotations

import signal
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quorin.cli.durations import seconds
from quorin.cli.help import add_command
from quorin.cli.options import Connection, Namespace, Offline, Opened, ShmDir, existing_history, of_repository
from quorin.cli.output import Json, print_json, progress_bar
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.words import counted, size

if TYPE_CHECKING:
    import pyarrow as pa

app = typer.Typer(
    name="served",
    help="Collect and replay what requests were answered with.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_FORMATS = (".parquet", ".arrow", ".json")


def _log_of(context: typer.Context, parameter: typer.CallbackParam, value: str) -> str:
    url = of_repository(context, parameter, value)
    if not url and not context.resilient_parsing:
        raise typer.BadParameter("give --served-log, the directory or URL of its files")
    return str(url)


ServedLogUrl = Annotated[
    str,
    typer.Option(
        "--served-log",
        envvar="QUORIN_SERVED_LOG",
        help="The served log: a directory or URL. Default: that of the Feast repository in this directory.",
        callback=_log_of,
        default_factory=str,
        show_default=False,
    ),
]


def replay(
    connection: Connection,
    offline: Offline,
    served_log: ServedLogUrl,
    file: Annotated[
        Path | None, typer.Argument(help="The file to write: .parquet, .arrow or .json (lines).", show_default=False)
    ] = None,
    since: Annotated[str | None, typer.Option(help="From this time on, as 2024-05-01T12:00, in UTC.")] = None,
    until: Annotated[str | None, typer.Option(help="Before this time.")] = None,
    request_id: Annotated[
        list[str] | None, typer.Option("--request-id", "-r", help="Only this request; may be repeated.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="A .parquet or .csv file with request_id, or entity_id and time, and labels.")
    ] = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    as_json: Json = False,
) -> None:
    """Give back what was served, value for value.

    The values come from the served log's positions and the history. One row for each row of a request. Where `known`
    is false, history and log no longer have a row that was served.

    Examples:
        quorin served replay served.parquet
        quorin served replay --json --request-id 0f8fad5b-d9cb
        quorin served replay training.parquet --labels clicks.parquet --since 2024-05-01

    Exit codes: 0 done, 1 the served log or the history cannot be read, or some rows are not known, 2 wrong usage.
    """
    from quorin.offline import read_served

    if file is None and not as_json:
        raise typer.BadParameter("give a file to write, or --json")
    if file is not None and file.suffix not in _FORMATS:
        raise typer.BadParameter(f"expected a file that ends in {', '.join(_FORMATS)}, got {str(file)!r}")
    store = existing_history(offline)
    with Opened(connection, namespace) as backend, progress_bar("served log", hidden=as_json) as progress:
        table = read_served(
            served_log,
            store,
            since_ns=_time(since),
            until_ns=_time(until),
            request_ids=request_id,
            labels=None if labels is None else _labels(labels),
            connection=backend,
            namespace=namespace,
            progress=progress,
        )
    unknown = len(table) - sum(table.column("known").to_pylist())
    if file is not None:
        _write(table, file)
    if as_json:
        rows = {} if file is not None else {"requests": table.to_pylist()}
        print_json({"rows": len(table), "unknown": unknown, **_shown(rows)})
    else:
        typer.echo(f"{file}: {counted(len(table), 'row')}, {unknown} not known, {size(file.stat().st_size)}")  # type: ignore[union-attr]
    if unknown:
        raise typer.Exit(1)


def collect(
    connection: Connection,
    served_log: ServedLogUrl,
    once: Annotated[bool, typer.Option("--once", help="Write what there is, and end.")] = False,
    every: Annotated[str, typer.Option(help="How often to write a file, at the latest.")] = "10s",
    namespace: Namespace = DEFAULT_NAMESPACE,
    shm_dir: ShmDir = None,
    as_json: Json = False,
) -> None:
    """Write the node's served requests to files, until Ctrl-C. Without it a process that serves does.

    Examples:
        quorin served collect                # beside processes that serve
        quorin served collect --once --json  # what processes that ended have left

    Exit codes: 0 done, 1 files cannot be written, 2 wrong usage.
    """
    from quorin.offline import ServedLog
    from quorin.shm import SegmentRegistry

    every_seconds = seconds(every)
    with Opened(connection, namespace) as backend:
        registry = SegmentRegistry(backend, shm_dir=shm_dir, namespace=namespace)
        log = ServedLog(served_log, registry, every_seconds=every_seconds)
        if not once:
            stop = threading.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: stop.set())
            log.start()
            typer.echo(f"collecting into {log.address}", err=True)
            stop.wait()
            log.close()
        rows = log.collect()
    if as_json:
        print_json({"rows": rows, "served_log": log.address})
    else:
        typer.echo(f"{log.address}: {counted(rows, 'row')}")


def _time(text: str | None) -> int | None:
    """Nanoseconds since the epoch. :raises typer.BadParameter: for a text that is no time."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"expected a time such as 2024-05-01T12:00, got {text!r}") from None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 10**6) * 1000


def _labels(file: Path) -> pa.Table:
    import pyarrow.csv
    import pyarrow.parquet

    if file.suffix not in (".parquet", ".csv"):
        raise typer.BadParameter(f"--labels: expected a .parquet or .csv file, got {str(file)!r}")
    return pyarrow.csv.read_csv(file) if file.suffix == ".csv" else pyarrow.parquet.read_table(file)


def _shown(value: Any) -> Any:
    """Values for JSON: times as texts."""
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return value.isoformat() if hasattr(value, "isoformat") else value


def _write(table: pa.Table, file: Path) -> None:
    """Write a file that gets its name when it is whole."""
    import json

    import pyarrow as pa
    import pyarrow.parquet

    from quorin.cli.output import plain, written_whole

    with written_whole(file) as pending, pending.open("wb") as out:
        if file.suffix == ".parquet":
            pyarrow.parquet.write_table(table, out, compression="zstd")
        elif file.suffix == ".arrow":
            with pa.ipc.new_file(out, table.schema) as writer:
                writer.write_table(table)
        else:
            for batch in table.to_batches():
                out.writelines(f"{json.dumps(plain(_shown(row)))}\n".encode() for row in batch.to_pylist())


add_command(app, replay)
add_command(app, collect)
