"""``quorin deadletter``: list, show and replay entries that could not be applied."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quorin.cli.help import add_command
from quorin.cli.options import Connection, Namespace, Opened, Raw, StreamKey
from quorin.cli.output import Json, add_row, console, print_json, table
from quorin.cli.repository import Names
from quorin.engine.backend import logs
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY, SEQUENCE_BITS

if TYPE_CHECKING:
    from quorin.engine.backend import Backend, DeadLetter, Log

app = typer.Typer(
    name="deadletter",
    help="List, show and replay log entries that could not be applied.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def list_dead_letters(
    connection: Connection,
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """List position, time, schema and reason of every dead letter.

    Examples:
        quorin deadletter list
        quorin deadletter list --json

    Exit codes: 0 shown, also if there are none, 1 the control plane cannot be reached, 2 wrong usage.
    """
    with Opened(connection, namespace, raw=raw) as backend:
        is_parted, names = backend.partitions() > 1, Names.of(backend, raw=raw)
        letters = [_summary(*one, names, is_parted=is_parted) for one in _letters(backend, stream_key)]
    if as_json:
        print_json({"dead_letters": letters})
        return
    if not letters:
        typer.echo("no dead letters")
        return
    listed = table(*_NAMES.values(), *(["partition"] if is_parted else []))
    for one in letters:
        add_row(listed, *("?" if cell is None else cell for cell in one.values()))
    console().print(listed)


def show_dead_letter(
    connection: Connection,
    position: Annotated[int, typer.Argument(help="Its position, as shown by `list`.")],
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    rows: Annotated[int, typer.Option(min=0, help="How many rows to show.")] = 10,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Show one dead letter with its reason.

    Shows its rows if they can be decoded, else its first bytes.

    Examples:
        quorin deadletter show 1873942786347008000
        quorin deadletter show 1873942786347008000 --rows 100 --json

    Exit codes: 0 shown, 1 the control plane cannot be reached, 2 wrong usage, or no dead letter at this position.
    """
    from quorin.engine.log.record import decode
    from quorin.errors import InvalidEntryError

    with Opened(connection, namespace, raw=raw) as backend:
        (letter, log), is_parted = _find(backend, stream_key, [position])[0], backend.partitions() > 1
        names = Names.of(backend, raw=raw)
    shown: dict[str, Any] = _summary(letter, log, names, is_parted=is_parted)
    try:
        record = decode(letter.payload)
        values = names.rows(record.schema_name, record.batch.slice(0, rows).to_pylist())
        shown |= {"kind": record.kind.name, "values": values}
    except InvalidEntryError:
        shown["first_bytes"] = letter.payload[:256]
    if as_json:
        print_json(shown)
        return
    for name, value in shown.items():
        if name == "values":
            for row in value:
                typer.echo(row)
        else:
            typer.echo(f"{_NAMES.get(name, name.replace('_', ' '))}: {'?' if value is None else value}")


def replay_dead_letters(
    connection: Connection,
    positions: Annotated[list[int] | None, typer.Argument(help="Their positions, as shown by `list`.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Append dead letters to the log again, after you fixed the cause. Newer rows stay.

    Examples:
        quorin deadletter replay 1873942786347008000
        quorin deadletter replay --all

    Exit codes: 0 all are in the log again, 1 some cannot be decoded, 2 wrong usage, or no dead letter at a position.
    """
    from quorin.engine.log.dead_letters import replay
    from quorin.errors import InvalidEntryError

    if everything == bool(positions):
        raise typer.BadParameter("give positions, or --all")
    replayed, failed = [], []
    with Opened(connection, namespace, raw=raw) as backend:
        names = Names.of(backend, raw=raw)
        for letter, log in _find(backend, stream_key, positions or []):
            try:
                replayed.append({"dead_letter": letter.position, "position": replay(log, letter)})
            except InvalidEntryError as error:
                failed.append({"dead_letter": letter.position, "problem": names.text(str(error))})
                typer.echo(failed[-1]["problem"], err=True)
            else:
                if not as_json:
                    typer.echo(f"{letter.position} is in the log again at {replayed[-1]['position']}")
    if as_json:
        print_json({"replayed": replayed, "failed": failed})
    if failed:
        raise typer.Exit(1)


add_command(app, list_dead_letters, "list")
add_command(app, show_dead_letter, "show")
add_command(app, replay_dead_letters, "replay")


def _letters(backend: Backend, stream_key: str) -> list[tuple[DeadLetter, Log]]:
    """All dead letters, by position, each with its log."""
    found = [(letter, log) for log in logs(backend, stream_key) for letter in log.dead_letters()]
    return sorted(found, key=lambda one: one[0].position)


def _find(backend: Backend, stream_key: str, positions: list[int]) -> list[tuple[DeadLetter, Log]]:
    """The dead letters at these positions, of any partition's log; all without positions."""
    letters = _letters(backend, stream_key)
    known = {letter.position for letter, _ in letters}
    for position in positions:
        if position not in known:
            raise typer.BadParameter(f"there is no dead letter at {position}; `quorin deadletter list` shows them")
    return [one for position in positions for one in letters if one[0].position == position] if positions else letters


def _summary(letter: DeadLetter, log: Log, names: Names, *, is_parted: bool) -> dict[str, Any]:
    """A dead letter without its rows, with its partition if there are several; None for what its header does not
    contain.
    """
    from quorin.engine.log.record import peek
    from quorin.errors import InvalidEntryError

    try:
        header = peek(letter.payload)
        schema, rows = names.schema(header.schema_name), header.row_count
    except InvalidEntryError:
        schema, rows = None, None
    # A position begins with the milliseconds at which the log assigned it, or at which the log began.
    logged_at = datetime.fromtimestamp((letter.position >> SEQUENCE_BITS) / 1000, UTC).isoformat(timespec="seconds")
    values = (letter.position, logged_at, schema, rows, len(letter.payload), names.text(letter.reason))
    return dict(zip(_NAMES, values, strict=True)) | ({"partition": log.partition} if is_parted else {})


_NAMES = {
    "position": "position", "logged_at": "logged at", "schema": "schema", "rows": "rows", "bytes": "bytes",
    "reason": "reason",
}  # fmt: skip
