"""``quorin inspect``: segments, their lag, and the running processes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quorin.cli.options import Connection, Namespace, Opened, Raw, ShmDir, StreamKey, resolve_schema
from quorin.cli.output import Json, add_row, console, print_json, table
from quorin.cli.repository import Names
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY
from quorin.engine.words import ago, count, counted, duration, moment, size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from quorin.engine.ops.observe import Deployment, SegmentState
    from quorin.schema import FeatureField

NOT_READABLE = "not readable"
"""In tables, the cell of a segment that is missing or damaged; the reason does not fit there."""
_WORDS = {"name": "segment", "path": "file", "schema_version": "version"}
"""What other commands call these in JSON."""


def inspect(
    connection: Connection,
    schema: Annotated[
        str | None, typer.Argument(help="One schema or feature view, in detail. Default: all, one per line.")
    ] = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    shm_dir: ShmDir = None,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Show segments with their rows, memory, lag and readers.

    Shows load, generation and writer, too.

    Examples:
        quorin inspect               # every segment, and the running processes
        quorin inspect driver_stats  # fields, memory, writer and readers of one
        quorin inspect --json        # for a script

    Exit codes: 0 shown, 1 a segment is missing or damaged, 2 wrong usage.
    """
    from quorin.engine.ops.observe import Observer

    with (
        Opened(connection, namespace, raw=raw) as backend,
        Observer(backend, shm_dir=shm_dir, stream_key=stream_key) as looking,
    ):
        name = resolve_schema(backend, schema) if schema else None
        seen, names = looking.observe(schema_name=name), Names.of(backend, raw=raw)
    if as_json and name:
        print_json(_as_dict(seen.segments[0], names))
    elif as_json:
        print_json(names.json(seen.as_dict()) | {"segments": [_as_dict(state, names) for state in seen.segments]})
    elif name:
        _print_one(seen.segments[0], seen, names)
    else:
        _print_all(seen, names)
    if any(state.problem for state in seen.segments):
        raise typer.Exit(1)


def _as_dict(state: SegmentState, names: Names) -> dict[str, Any]:
    shown = {_WORDS.get(key, key): value for key, value in state.as_dict().items()}
    shown |= {"schema": names.schema(state.schema_name), "problem": state.problem and names.text(state.problem)}
    if state.schema:
        for field, called, name in zip(
            shown["fields"], names.fields(state.schema).values(), state.schema.fields, strict=True
        ):
            field |= {"name": called, "type": names.type(state.schema_name, name)}
    return shown


def _print_all(seen: Deployment, names: Names) -> None:
    out = console()
    segments = table(
        "schema", "version", "rows", "load", "bytes", "gen", "lag rows", "lag", "newest", "writer", "readers"
    )
    for state in seen.segments:
        stats = state.stats
        if stats is None:
            add_row(segments, names.schema(state.schema_name), "", NOT_READABLE)
            continue
        add_row(
            segments,
            names.schema(state.schema_name),
            stats["schema_version"],
            count(stats["rows"]),
            f"{stats['load']:.0%}",
            size(stats["bytes"]),
            stats["generation"],
            lag_rows(state),
            lag_time(state),
            newest(state),
            stats["writer_pid"],
            len(state.readers),
        )
    if seen.segments:
        out.print(segments)
        print_problems(seen.segments, names)
    else:
        out.print("no schemas yet: create one with `SegmentRegistry.create` or `feast apply`")
    out.print(
        f"\nlog at {seen.address}: {counted(seen.log_entries, 'entry')}, last position {seen.log.last}, "
        f"trimmed to {seen.log.trimmed}, {counted(seen.dead_letters, 'dead letter')}",
        markup=False,
    )
    for report in seen.processes:
        out.print(
            f"{report.role} {report.process}: {counted(len(report.schemas), 'schema')}, seen {ago(report.age_seconds)}",
            markup=False,
        )


def print_problems(states: Iterable[SegmentState], names: Names) -> None:
    """Say of each segment that cannot be read why, below a table."""
    for state in states:
        if state.problem:
            problem = f"{names.schema(state.schema_name)}: {names.text(state.problem)}"
            console().print(problem, markup=False, style="red", soft_wrap=True)


def _print_one(state: SegmentState, seen: Deployment, names: Names) -> None:
    out = console()
    facts = table("", "")
    facts.show_header = False
    for name, value in (detail(state, seen) | {"schema": names.schema(state.schema_name)}).items():
        add_row(facts, name, names.text(value) if name == "problem" else value)
    out.print(facts)
    if state.stats and "positions" in state.stats:
        out.print()
        out.print(_partitions(state.stats, seen))
    if state.schema:
        fields = table("field", "type", "null reads as")
        for field, name in zip(state.schema.fields, names.fields(state.schema).values(), strict=True):
            add_row(fields, name, names.type(state.schema_name, field), default_text(field))
        out.print()
        out.print(fields)


def _partitions(stats: dict[str, Any], seen: Deployment) -> Any:
    """The partitions that a segment holds: up to where each is applied, and where its log ends."""
    shown = table("partition", "position", "the log ends at")
    for number, position in stats["positions"].items():
        add_row(shown, number, position, seen.logs[number].bounds.last)
    return shown


def detail(state: SegmentState, seen: Deployment) -> dict[str, str]:
    """One segment's details, by label."""
    facts = {"schema": state.schema_name} | ({"problem": state.problem} if state.problem else {})
    stats = state.stats
    if stats is None:
        return facts
    garbage = stats["heap_garbage_bytes"] / stats["heap_bytes"] if stats["heap_bytes"] else 0
    heartbeat = ago(stats["writer_heartbeat_age_seconds"])
    held = {"partitions": f"holds {stats['held_partitions']} of {stats['partitions']}"} if "partitions" in stats else {}
    writer = f"process {stats['writer_pid']}, last heartbeat {heartbeat}" if stats["writer_pid"] else "none"
    return facts | {
        "version": str(stats["schema_version"]),
        "segment": stats["path"],
        "generation": f"{stats['generation']}, created {duration(stats['age_seconds'])} ago",
        "rows": f"{count(stats['rows'])} and {count(stats['deleted_rows'])} deleted, of {count(stats['capacity'])} "
        f"({stats['load']:.1%}) before it grows",
        **held,
        "bytes": f"{size(stats['bytes'])}, of which {stats['row_bytes']} B per row",
        "heap": f"{size(stats['heap_used_bytes'])} of {size(stats['heap_bytes'])} used, {garbage:.1%} garbage",
        "position": f"{stats['position']}, the log ends at {seen.log.last}",
        "lag": f"{lag_rows(state)} {'row' if lag_rows(state) == '1' else 'rows'}, {lag_time(state)}",
        "oldest event": moment(state.events.oldest_ns if state.events else None),
        "newest event": moment(state.events.newest_ns if state.events else None),
        "writer": writer,
        "mapped by": ", ".join(str(process.pid) for process in state.readers) or "no other process",
    }


def lag_rows(state: SegmentState) -> str:
    """The number of rows that the segment lacks."""
    if state.lag is None:
        return "-"
    return count(state.lag.rows) + ("" if state.lag.is_exact else "+")


def lag_time(state: SegmentState) -> str:
    """How long the first row that the segment lacks has been waiting."""
    return "-" if state.lag is None else "none" if not state.lag.entries else duration(state.lag.seconds)


def newest(state: SegmentState) -> str:
    """The age of the newest event."""
    if state.events is None or state.events.newest_ns is None:
        return "-"
    return ago((time.time_ns() - state.events.newest_ns) / 1e9)


def default_text(field: FeatureField) -> str:
    """What a null of a field is in a vector."""
    if field.is_variable:
        return "not in vectors"
    return "NaN" if field.default is None else str(field.default)
