"""``quorin put``: write one row through the log."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quorin.cli.options import Connection, Namespace, Opened, Raw, ShmDir, StreamKey, known_schema, resolve_field
from quorin.cli.output import Json, print_json
from quorin.cli.repository import Names
from quorin.cli.settling import SettledLog, outcome_json, report_overruled
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY

if TYPE_CHECKING:
    from quorin.schema import FeatureField
    from quorin.shm import SegmentRegistry


def put(
    connection: Connection,
    schema: Annotated[str, typer.Argument(help="A schema or feature view.")],
    entity_id: Annotated[str, typer.Argument(help="The entity's id.")],
    values: Annotated[list[str], typer.Argument(help="field=value; lists and arrays as JSON, bytes as hexadecimal.")],
    null: Annotated[list[str] | None, typer.Option("--null", help="A field to set to null; may be repeated.")] = None,
    event_time: Annotated[
        str | None,
        typer.Option(help="The event time: ns since the epoch, or like 2026-05-01T12:00:00Z. Default: now."),
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Leave unnamed fields unchanged.")] = False,
    sync: Annotated[
        bool,
        typer.Option("--sync", help="Return when this machine's segment has the row. Without a consumer, apply it."),
    ] = False,
    timeout_ms: Annotated[float, typer.Option(min=1, help="How long --sync waits.")] = 5000.0,
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    shm_dir: ShmDir = None,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Write one row through the log. Name every field, or pass `--partial`. With `--sync` the row is applied to this
    machine's segment, by this command unless a consumer does.

    Examples:
        quorin put UserFeatures user_001 age_normalized=0.5 session_count_7d=42 ltv_score=12.3
        quorin put UserFeatures user_001 ltv_score=13 --partial
        quorin put Items i7 'tags=["new", "red"]' --null price

    Exit codes: 0 the row is in the log (with `--sync`: is served), 1 it was refused, or is in the log but was not
    applied in time, or is not served as a write with a newer event time came before it, 2 wrong usage.
    """
    from quorin.shm import SegmentRegistry
    from quorin.wal import WALProducer

    with Opened(connection, namespace, raw=raw) as backend:
        target = known_schema(backend, schema)
        shown = Names.of(backend, raw=raw).schema(target.__name__)
        fields = {field.name: field for field in target.fields}
        row: dict[str, Any] = {resolve_field(target, name): None for name in null or []}
        for word in values:
            requested, equals, text = word.partition("=")
            if not equals or (name := resolve_field(target, requested)) in row:
                raise typer.BadParameter(f"{word!r}: expected field=value, each field once, of {', '.join(fields)}")
            row[name] = _parsed(fields[name], text)
        if missing := [] if partial else [name for name in fields if name not in row]:
            raise typer.BadParameter(
                f"no value for {', '.join(missing)}: give field=value, --null {missing[0]} for a null, or --partial to "
                "leave unnamed fields unchanged"
            )
        registry = SegmentRegistry(backend, shm_dir=shm_dir, namespace=namespace)
        with WALProducer(backend, stream_key=stream_key, registry=registry) as producer:
            at_ns = None if event_time is None else time_ns(event_time)
            if sync:
                _check_id(registry, target.__name__, entity_id)
            position = producer.write(target, entity_id, row, at_ns, partial=partial)
            log = SettledLog(registry, namespace, stream_key, timeout_ms)
            newer = log.settle(target.__name__, {entity_id: position}) if sync else {}
    if as_json:
        written = {"schema": shown, "entity_id": entity_id, "position": position, "token": position.text}
        print_json({**written, **outcome_json(newer, sync=sync)})
    elif not newer:
        typer.echo(f"{'served' if sync else 'in the log'} at position {position}")
    report_overruled(newer, "the row is in the log at position {position}, and is not served", {entity_id: position})


def _check_id(registry: SegmentRegistry, schema_name: str, entity_id: str) -> None:
    """:raises EntityIdTooLongError: for an id that would become a dead letter here."""
    from quorin.engine.rows.value import check_entity_id

    if registry.current_name(schema_name) is not None:
        with registry.open_stored(schema_name) as segment:
            check_entity_id(entity_id, segment.current_view().layout.max_id_bytes)


def _parsed(field: FeatureField, text: str) -> Any:
    """A command-line value converted to the field's type; the producer refuses values that do not fit."""
    from quorin.schema import dtype

    try:
        if field.shape:
            return _elements(field, json.loads(text, parse_float=_number))
        if field.dtype is dtype.string:
            return text
        if field.dtype is dtype.bytes:
            return bytes.fromhex(text)
        if field.dtype is dtype.bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return _number(text) if field.dtype in (dtype.float32, dtype.float64) else int(text)
    except (ValueError, KeyError) as error:
        reason = f": {error}" if isinstance(error, ValueError) and "range" in str(error) else ""
        raise typer.BadParameter(f"field {field.name!r}: expected {field.dtype.name}, got {text!r}{reason}") from error


def _number(text: str) -> float:
    """A float64. A number beyond its range is refused, as one beyond float32 is: only ``inf`` means infinity.

    :raises ValueError: if the text is not a number, or out of range.
    """
    number = float(text)
    if math.isinf(number) and not text.strip().lstrip("+-").lower().startswith("inf"):
        raise ValueError(f"{text} is out of the range of float64")
    return number


def _elements(field: FeatureField, value: Any) -> Any:
    from quorin.schema import dtype

    if field.dtype is dtype.bytes and isinstance(value, list):
        return [bytes.fromhex(item) for item in value]
    return value


def time_ns(text: str) -> int:
    """An event time on the command line in ns since the epoch. :raises typer.BadParameter: for anything else."""
    if text.lstrip("-").isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"event time {text!r}: expected ns, or a time like 2026-05-01T12:00:00Z") from error
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000
