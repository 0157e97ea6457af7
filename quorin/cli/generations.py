"""``quorin generations``: what can be gone back to, and what is pinned."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quorin.cli.options import Connection, Namespace, Opened, Raw, ShmDir, resolve_schema
from quorin.cli.output import Json, add_row, console, print_json, table
from quorin.cli.repository import Names
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.words import count, moment, size

if TYPE_CHECKING:
    from quorin.engine.ops.presence import Process
    from quorin.shm import Generation


def generations(
    connection: Connection,
    schema: Annotated[str | None, typer.Argument(help="One schema or feature view. Default: all.")] = None,
    drop: Annotated[
        list[int] | None,
        typer.Option("--drop", help="Remove this generation of the schema; may be repeated.", show_default=False),
    ] = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    shm_dir: ShmDir = None,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Show the generations that this machine has of each segment.

    Shows the current one, those that are kept after a replacement or an upgrade, and those that a process pins. Other
    machines have their own.

    Examples:
        quorin generations                        # of every segment
        quorin generations driver_stats --json    # for a script
        quorin generations driver_stats --drop 3  # free the memory of one

    Exit codes: 0 shown, or removed, 1 there is no segment, or the generation is current or pinned, 2 wrong usage.
    """
    from quorin.engine.ops.presence import pinning_processes
    from quorin.errors import SegmentNotFoundError
    from quorin.shm import SegmentRegistry

    if drop and schema is None:
        raise typer.BadParameter("--drop: expected the schema or feature view with it")
    with Opened(connection, namespace, raw=raw) as backend:
        names = Names.of(backend, raw=raw)
        registry = SegmentRegistry(backend, shm_dir=shm_dir, namespace=namespace)
        wanted = [resolve_schema(backend, schema)] if schema else sorted(backend.control.schemas())
        found: list[Generation] = []
        for name in wanted:
            with suppress(*() if schema else (SegmentNotFoundError,)):
                found += registry.generations(name)
        dropped = _drop(found, drop or [])
    shown = [one for one in found if one not in dropped]
    holders = pinning_processes(one.path for one in shown if one.is_pinned)
    if as_json:
        print_json({"generations": [_as_dict(one, names, holders.get(one.path, [])) for one in shown]})
        return
    for one in dropped:
        typer.echo(f"removed generation {one.number}: {count(one.rows)} rows, {size(one.bytes)}")
    if not dropped:
        _print(shown, names, holders)


def _drop(found: list[Generation], numbers: list[int]) -> list[Generation]:
    """Remove generations by number; nothing if one of them cannot go."""
    from quorin.errors import SegmentConflictError

    by_number = {one.number: one for one in found}
    for number in numbers:
        if number not in by_number:
            there = ", ".join(map(str, by_number))
            raise typer.BadParameter(f"--drop: there is no generation {number}; there are: {there}")
        if by_number[number].state == "current" or by_number[number].is_pinned:
            state = "pinned" if by_number[number].is_pinned else "current"
            raise SegmentConflictError(f"generation {number} of {by_number[number].schema_name!r} is {state}")
    chosen = [by_number[number] for number in dict.fromkeys(numbers)]
    for one in chosen:
        if not one.drop():
            raise SegmentConflictError(f"generation {one.number} of {one.schema_name!r} was pinned this moment")
    return chosen


def _as_dict(one: Generation, names: Names, holders: list[Process]) -> dict[str, Any]:
    return {
        "schema": names.schema(one.schema_name),
        "generation": one.number,
        "version": one.schema_version,
        "state": one.state,
        "rows": one.rows,
        "bytes": one.bytes,
        "position": one.position,
        "until_ns": one.until_ns,
        "kept_after": one.reason,
        "pinned": one.is_pinned,
        "pinned_by": [str(process) for process in holders],
        "file": str(one.path),
    }


def _print(shown: list[Generation], names: Names, holders: dict[Any, list[Process]]) -> None:
    listed = table("schema", "gen", "version", "state", "rows", "bytes", "position", "until", "kept after", "pinned by")
    for one in shown:
        pids = ", ".join(str(process.pid) for process in holders.get(one.path, []))
        add_row(
            listed,
            names.schema(one.schema_name),
            one.number,
            one.schema_version,
            one.state,
            count(one.rows),
            size(one.bytes),
            one.position,
            None if one.until_ns is None else moment(one.until_ns),
            one.reason,
            (pids or "another user's process") if one.is_pinned else None,
        )
    console().print(listed if shown else "no segments")
