"""``quorin delete``: delete entities through the log."""

from __future__ import annotations

from typing import Annotated

import typer

from quorin.cli.options import Connection, Namespace, Opened, Raw, ShmDir, StreamKey, known_schema
from quorin.cli.output import Json, print_json
from quorin.cli.put import time_ns
from quorin.cli.repository import Names
from quorin.cli.settling import SettledLog, outcome_json, report_overruled
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY
from quorin.engine.log.token import Token
from quorin.engine.words import counted


def delete(
    connection: Connection,
    schema: Annotated[str, typer.Argument(help="A schema or feature view.")],
    ids: Annotated[list[str], typer.Argument(help="The ids of the entities.")],
    event_time: Annotated[
        str | None,
        typer.Option(
            help="When they ended: ns since the epoch, or like 2026-05-01T12:00:00Z. Default: now.", show_default=False
        ),
    ] = None,
    sync: Annotated[
        bool,
        typer.Option(
            "--sync", help="Return when this machine's segment has applied it. Without a consumer, apply it here."
        ),
    ] = False,
    timeout_ms: Annotated[float, typer.Option(min=1, help="How long --sync waits.")] = 5000.0,
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    shm_dir: ShmDir = None,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Delete rows of entities through the log, on every machine.

    A row with a later event time stays.

    Examples:
        quorin delete UserFeatures user_001
        quorin delete driver_stats 1001 1002 --event-time 2026-05-01T12:00:00Z

    Exit codes: 0 the deletions are in the log (with `--sync`: are applied), 1 they were refused, or are in the log but
    were not applied in time, or took no effect as a write with a newer event time came before them, 2 wrong usage.
    """
    from quorin.shm import SegmentRegistry
    from quorin.wal import WALProducer

    at_ns = None if event_time is None else time_ns(event_time)
    with Opened(connection, namespace, raw=raw) as backend:
        target = known_schema(backend, schema)
        name = Names.of(backend, raw=raw).schema(target.__name__)
        registry = SegmentRegistry(backend, shm_dir=shm_dir, namespace=namespace)
        with WALProducer(backend, stream_key=stream_key, registry=registry) as producer:
            writes = {entity_id: producer.delete(target, entity_id, at_ns) for entity_id in ids}
            log = SettledLog(registry, namespace, stream_key, timeout_ms)
            newer = log.settle(target.__name__, writes) if sync else {}
    position, applied = Token.covering(*writes.values()), len(writes) - len(newer)
    if as_json:
        deleted = {"schema": name, "entity_ids": ids, "position": position, "token": position.text}
        print_json({**deleted, **outcome_json(newer, sync=sync)})
    elif applied:
        typer.echo(f"{counted(applied, 'deletion')} {'applied' if sync else 'in the log'} at position {position}")
    report_overruled(newer, "a deletion is in the log at position {position}, and took no effect", writes)
