"""The command ``quorin``: what runs beside the processes that serve features.

Exit codes: 0 done, 1 refused or failed (the reason is on stderr), 2 wrong usage.
"""

from __future__ import annotations

import signal
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from quorin.errors import QuorinError
from quorin.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY, SEQUENCE_BITS

if TYPE_CHECKING:
    from quorin.backend import Backend, DeadLetter

app = typer.Typer(
    name="quorin",
    help="Machine-learning features served from shared memory.",
    epilog="Start with `quorin consumer --connection redis://localhost:6379`, or a directory instead of the URL.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
dead_letters = typer.Typer(
    name="deadletter",
    help="Entries of the log that could not be applied: kept aside with the reason, so that the rest flows on.",
    no_args_is_help=True,
)
app.add_typer(dead_letters)

Connection = Annotated[
    str,
    typer.Option(
        "--connection",
        "-c",
        envvar="QUORIN_CONNECTION",
        help="The control plane: redis://, rediss:// or unix:// URL, or the directory of the embedded one.",
    ),
]
Namespace = Annotated[
    str, typer.Option(envvar="QUORIN_NAMESPACE", help="Keeps deployments apart that share one Redis or directory.")
]
StreamKey = Annotated[str, typer.Option(help="The name of the log.")]


def main() -> None:
    """Run the command; what Quorin refuses is one line on stderr and exit code 1."""
    try:
        app()
    except QuorinError as error:
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {_escaped(str(error))}", soft_wrap=True)
        sys.exit(1)


@app.command()
def consumer(
    connection: Connection,
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    trim: Annotated[
        bool,
        typer.Option(
            "--trim/--keep",
            help="Forget entries once they are applied. A segment that is lost then, as in a reboot, stays lost; "
            "kept entries fill it again.",
        ),
    ] = False,
    capacity: Annotated[int, typer.Option(min=1, help="Entities that a new segment has room for; it grows.")] = 4096,
    max_id_bytes: Annotated[int, typer.Option(min=1, help="The longest entity id of a new segment.")] = 64,
    frozen_after: Annotated[
        float, typer.Option(min=1, help="Seconds without a sign of life until another writer is overtaken.")
    ] = 30.0,
) -> None:
    """Apply the log to shared memory, for all schemas that the control plane knows and gets to know.

    Run one or more a machine: one writes, the others wait and take over at once when it dies. Ends in good order on
    SIGTERM and Ctrl-C.
    """
    from quorin import logging, presence
    from quorin.backend import connect
    from quorin.wal_consumer import NoopOfflineWriter, WALConsumer

    logging.configure()
    backend = connect(connection, namespace=namespace)
    running = WALConsumer(
        backend,
        None,
        offline=NoopOfflineWriter() if trim else None,
        stream_key=stream_key,
        capacity=capacity,
        max_id_bytes=max_id_bytes,
        frozen_after_seconds=frozen_after,
        namespace=namespace,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: running.stop())
    log = logging.get_logger(__name__)
    log.info("consumer_started", address=backend.address, process=str(presence.Process.this()))
    running.run()
    running.close()
    backend.close()
    log.info("consumer_stopped")


@dead_letters.command("list")
def list_dead_letters(
    connection: Connection, namespace: Namespace = DEFAULT_NAMESPACE, stream_key: StreamKey = DEFAULT_STREAM_KEY
) -> None:
    """Position, time, schema and reason of every dead letter."""
    with _Opened(connection, namespace) as backend:
        letters = backend.log(stream_key).dead_letters()
    if not letters:
        typer.echo("no dead letters")
        return
    table = Table("position", "logged at", "schema", "rows", "bytes", "reason", box=None, pad_edge=False)
    for letter in letters:
        table.add_row(*(_escaped(cell) for cell in _summary(letter)))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)


@dead_letters.command("show")
def show_dead_letter(
    connection: Connection,
    position: Annotated[int, typer.Argument(help="Its position, as `list` gives it.")],
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    rows: Annotated[int, typer.Option(min=0, help="How many rows to show.")] = 10,
) -> None:
    """One dead letter: its reason, and its rows if they can be decoded, else its first bytes."""
    from quorin.errors import InvalidEntryError
    from quorin.record import decode

    with _Opened(connection, namespace) as backend:
        letter = _find(backend, stream_key, [position])[0]
    for name, text in zip(
        ("position", "logged at", "schema", "rows", "bytes", "reason"), _summary(letter), strict=True
    ):
        typer.echo(f"{name}: {text}")
    try:
        record = decode(letter.payload)
    except InvalidEntryError:
        typer.echo(f"first bytes: {letter.payload[:256]!r}")
        return
    typer.echo(f"kind: {record.kind.name}")
    for row in record.batch.slice(0, rows).to_pylist():
        typer.echo(row)


@dead_letters.command("replay")
def replay_dead_letters(
    connection: Connection,
    positions: Annotated[list[int] | None, typer.Argument(help="Their positions, as `list` gives them.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
) -> None:
    """Append dead letters to the log again, once their cause is mended. Newer rows that are served stay."""
    from quorin.dead_letters import replay
    from quorin.errors import InvalidEntryError

    if everything == bool(positions):
        raise typer.BadParameter("give positions, or --all")
    failed = 0
    with _Opened(connection, namespace) as backend:
        for letter in _find(backend, stream_key, positions or []):
            try:
                typer.echo(f"{letter.position} is in the log again at {replay(backend.log(stream_key), letter)}")
            except InvalidEntryError as error:
                failed += 1
                typer.echo(str(error), err=True)
    if failed:
        raise typer.Exit(1)


class _Opened:
    """A backend for a block."""

    def __init__(self, connection: str, namespace: str) -> None:
        from quorin.backend import connect

        self._backend = connect(connection, namespace=namespace)

    def __enter__(self) -> Backend:
        return self._backend

    def __exit__(self, *_: object) -> None:
        self._backend.close()


def _find(backend: Backend, stream_key: str, positions: list[int]) -> list[DeadLetter]:
    """The dead letters at these positions, or all if none are given."""
    letters = {letter.position: letter for letter in backend.log(stream_key).dead_letters()}
    for position in positions:
        if position not in letters:
            raise typer.BadParameter(f"there is no dead letter at {position}; `quorin deadletter list` shows them")
    return [letters[position] for position in positions] if positions else list(letters.values())


def _summary(letter: DeadLetter) -> tuple[str, ...]:
    from quorin.errors import InvalidEntryError
    from quorin.record import peek

    try:
        header = peek(letter.payload)
        schema, rows = header.schema_name, str(header.row_count)
    except InvalidEntryError:
        schema, rows = "?", "?"
    # Positions begin with the milliseconds at which the log gave them, or began.
    logged_at = datetime.fromtimestamp((letter.position >> SEQUENCE_BITS) / 1000, UTC).isoformat(timespec="seconds")
    return (str(letter.position), logged_at, schema, rows, str(len(letter.payload)), letter.reason)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
