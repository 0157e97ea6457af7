"""``quorin replace`` and ``quorin rollback``: replace the rows of a schema whole."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quorin.cli.check import ChecksFile, checks_in
from quorin.cli.options import (
    Connection,
    Namespace,
    Opened,
    Raw,
    ShmDir,
    StreamKey,
    existing_history,
    known_schema,
    of_repository,
)
from quorin.cli.output import Json, add_row, console, print_json, progress_bar, table, worded
from quorin.cli.put import time_ns
from quorin.cli.repository import Names, repository
from quorin.cli.rows_file import rows_of
from quorin.engine.backend import logs
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY
from quorin.engine.log.token import Token
from quorin.engine.words import count, counted, duration
from quorin.errors import PastUnavailableError, TokenError

if TYPE_CHECKING:
    from quorin.evolution import ReplaceResult
    from quorin.offline import ParquetDatasetStore
    from quorin.schema import Schema

_RANGE = re.compile(r"(.+?)\.\.(.+)\Z")
_HISTORY = "history"
_NO_HISTORY = "give --offline, or set QUORIN_OFFLINE, if the consumer writes a history"


class WaitFor(StrEnum):
    """Where the new rows must be in force before the command returns."""

    log = "log"
    node = "node"
    nodes = "nodes"


SchemaName = Annotated[str, typer.Argument(help="The schema or feature view.")]
Waits = Annotated[
    WaitFor,
    typer.Option("--wait-for", help="Return when the commit is in the log, this node serves it, or all live nodes do."),
]
Timeout = Annotated[float, typer.Option(min=0, help="Seconds to wait for that.")]
AllowEmpty = Annotated[bool, typer.Option("--allow-empty", help="Also replace by no rows at all.")]
Source = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="A file or directory (.parquet, .arrow, .feather, .csv), or `history`: its present rows.",
        show_default=False,
    ),
]
Reference = Annotated[
    str | None,
    typer.Option(
        "--reference",
        help="What the checks compare with, in place of what is served: a file as of --from, or the name of a saved "
        "dataset of the Feast repository in this directory.",
        show_default=False,
    ),
]
OfflineIfAny = Annotated[
    str | None,
    typer.Option(
        "--offline",
        envvar="QUORIN_OFFLINE",
        help="The history: a directory or URL. Needed for states before the log's start.",
        callback=of_repository,
        show_default=False,
    ),
]


def replace(
    connection: Connection,
    schema: SchemaName,
    source: Source = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and check the rows, and change nothing.")] = False,
    abort: Annotated[bool, typer.Option("--abort", help="End the replacement that is open, whoever began it.")] = False,
    checks: ChecksFile = None,
    reference: Reference = None,
    no_checks: Annotated[bool, typer.Option("--no-checks", help="Do not check the rows.")] = False,
    allow_empty: AllowEmpty = False,
    offline: OfflineIfAny = None,
    wait_for: Waits = WaitFor.node,
    timeout: Timeout = 60.0,
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    shm_dir: ShmDir = None,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Replace all rows of a schema or feature view on all nodes.

    Each node replaces them in one flip. Reads and pushes continue. The columns are `entity_id`, optionally
    `event_time_ns`, and the fields. Entities that the new rows do not have are gone; what is pushed meanwhile stays.
    Until the flip the old rows are served.

    Examples:
        quorin replace driver_stats --from stats.parquet --dry-run
        quorin replace driver_stats --from exports/ --wait-for nodes
        quorin replace driver_stats --from stats.parquet --reference last_good_month
        quorin replace driver_stats --abort                 # end one whose process hangs

    Exit codes: 0 replaced (with `--abort`: ended, or none was open), 1 refused, failed or not applied in time (with the
    reason on stderr), 2 wrong usage, 3 the rows do not pass the schema's checks; nothing was replaced.
    """
    from quorin import evolution
    from quorin.shm import SegmentRegistry

    if abort == (source is not None):
        raise typer.BadParameter("give either --from or --abort")
    if dry_run and (abort or source == _HISTORY):
        raise typer.BadParameter("--dry-run checks the rows of a file or directory")
    if reference is not None and (abort or dry_run or source == _HISTORY):
        raise typer.BadParameter("--reference is for the checks of a file or directory that replaces the rows")
    with Opened(connection, namespace, raw=raw) as backend:
        target = known_schema(backend, schema)
        name = Names.of(backend, raw=raw).schema(target.__name__)
        if abort:
            load = evolution.abort_replace(target, backend)
            _print_aborted(name, load, as_json=as_json)
            return
        registry = SegmentRegistry(backend, shm_dir=shm_dir, namespace=namespace)
        options: dict[str, Any] = {"allow_empty": allow_empty, "wait_for": wait_for.value, "timeout_seconds": timeout}
        options |= {"stream_key": stream_key}
        with progress_bar(name, hidden=as_json) as progress:
            if source == _HISTORY:
                last, past = max(log.bounds().last for log in logs(backend, stream_key)), _history(offline)
                result = evolution.rollback(
                    target, registry, to_position=last, reapply=True, history=past, progress=_alone(progress), **options
                )
            else:
                total, tables = rows_of(Path(str(source)), target)
                wanted = () if no_checks else None if checks is None else checks_in(checks, target)
                options |= {"dry_run": dry_run, "checks": wanted, "reference": _reference(reference, target)}
                result = evolution.replace(
                    target, tables, registry, progress=lambda rows: progress(rows, total), **options
                )
    _print(dataclasses.replace(result, schema_name=name), wait_for, as_json=as_json)


def rollback(
    connection: Connection,
    schema: SchemaName,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            help="`position:P` (or a token), `time:T` (like 2026-05-01T12:00:00Z) or `generation:N`, one of this node.",
            show_default=False,
        ),
    ] = None,
    reapply: Annotated[bool, typer.Option("--reapply", help="Apply again what was pushed after that state.")] = False,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            help="Positions A..B to leave out when applying again; may be repeated. Alone: roll back to before A.",
            show_default=False,
        ),
    ] = None,
    allow_empty: AllowEmpty = False,
    offline: OfflineIfAny = None,
    wait_for: Waits = WaitFor.node,
    timeout: Timeout = 60.0,
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    shm_dir: ShmDir = None,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Roll a schema or feature view back to a past state.

    All nodes replace all rows, each in one flip. The state is that at a position of the log or at a time, from the log
    and the history, or a generation that this node keeps. The log keeps what came later: `--reapply` applies it again.

    Examples:
        quorin rollback driver_stats --to time:2026-05-01T12:00:00Z --wait-for nodes
        quorin rollback driver_stats --without 1883199543061774336..1883199543067017216   # all but a bad batch
        quorin rollback driver_stats --to generation:3

    Exit codes: 0 rolled back, 1 the state is not known any more, refused, or not applied in time, 2 wrong usage.
    """
    from quorin import evolution
    from quorin.shm import SegmentRegistry

    state, ranges = _state(to or []), [_range(text) for text in without or []]
    if not (state or ranges):
        raise typer.BadParameter("give --to or --without")
    with Opened(connection, namespace, raw=raw) as backend:
        target = known_schema(backend, schema)
        name = Names.of(backend, raw=raw).schema(target.__name__)
        registry = SegmentRegistry(backend, shm_dir=shm_dir, namespace=namespace)
        options: dict[str, Any] = {"reapply": reapply, "without": ranges, "allow_empty": allow_empty, **state}
        options |= {"wait_for": wait_for.value, "timeout_seconds": timeout, "stream_key": stream_key}
        with progress_bar(name, hidden=as_json) as progress, _clear_errors(offline):
            past = _history(offline)
            result = evolution.rollback(target, registry, history=past, progress=_alone(progress), **options)
    _print(dataclasses.replace(result, schema_name=name), wait_for, as_json=as_json)


@contextmanager
def _clear_errors(offline: str | None) -> Iterator[None]:
    """Say how the past is found where no history was passed, and of a wrong state that it is wrong usage."""
    try:
        yield
    except PastUnavailableError as error:
        if offline is None:
            error.add_note(_NO_HISTORY)
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _reference(given: str | None, target: Schema) -> Any:
    """The rows of a file, or of a saved dataset of the repository in the working directory."""
    if given is None:
        return None
    if Path(given).exists():
        return rows_of(Path(given), target)[1]
    here = repository()
    if here is None:
        raise typer.BadParameter(f"--reference {given}: no such file, and no Feast repository in this directory")
    return here.reference(target.__name__, given)


def _alone(progress: Callable[[int, int], None]) -> Callable[[int], None]:
    """The progress of rows whose total is not known."""
    return lambda rows: progress(rows, rows)


def _history(offline: str | None) -> ParquetDatasetStore | None:
    return None if offline is None else existing_history(offline)


def _state(words: list[str]) -> dict[str, Any]:
    """The state that ``--to`` names, as arguments of the call."""
    if len(words) > 1:
        raise typer.BadParameter(f"--to: expected one state, got {len(words)}")
    if not words:
        return {}
    kind, _, text = words[0].partition(":")
    if kind == "time" and text:
        return {"to_time_ns": time_ns(text)}
    if kind == "generation" and text.isdigit():
        return {"to_generation": int(text)}
    if kind == "position" and text:
        return {"to_position": _position(text, "--to position")}
    raise typer.BadParameter(f"--to {words[0]!r}: expected position:P, time:T or generation:N")


def _range(text: str) -> tuple[int, int]:
    match = _RANGE.match(text)
    if match is None:
        raise typer.BadParameter(f"--without {text!r}: expected two positions, A..B")
    return _position(match[1], "--without"), _position(match[2], "--without")


def _position(text: str, option: str) -> int:
    """A number, or a token, which has one for the log of each partition."""
    if text.isdigit():
        return int(text)
    try:
        return Token.parse(text)
    except TokenError as error:
        raise typer.BadParameter(f"{option}: expected a position or a token; {error}") from error


def _print_aborted(name: str, load: int | None, *, as_json: bool) -> None:
    if as_json:
        print_json({"schema": name, "aborted": load})
    else:
        typer.echo(
            f"no replacement of {name} is open"
            if load is None
            else f"ended the replacement that began at position {load}"
        )


def _print(result: ReplaceResult, wait_for: WaitFor, *, as_json: bool) -> None:
    if as_json:
        print_json(worded(result) | {"position": _shown(result.position)})
        return
    if result.dry_run:
        served = "no segment here" if result.replaced_rows is None else f"{counted(result.replaced_rows, 'row')} here"
        typer.echo(f"{counted(result.row_count, 'row')} would replace {served}: this was a dry run")
        return
    shown = table("", "")
    add_row(shown, "schema", result.schema_name)
    add_row(shown, "rows", count(result.row_count))
    if result.replaced_rows is not None:
        add_row(shown, "replaced", count(result.replaced_rows))
    add_row(shown, "began at", result.begin)
    add_row(shown, "position", _shown(result.position))
    where = {WaitFor.log: "each node's consumer", WaitFor.node: "this node", WaitFor.nodes: "all live nodes"}[wait_for]
    add_row(shown, "in force", f"on {where}" if wait_for is not WaitFor.log else f"when {where} reads it")
    add_row(shown, "took", duration(result.elapsed_seconds))
    shown.show_header = False
    console().print(shown)


def _shown(position: Token) -> int | str:
    """A position as ``--to position`` takes it: of several logs the token."""
    return int(position) if len(position.parts) < 2 else position.text
