"""``quorin ready``: the readiness check of a serving machine or pod."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from quorin.cli.durations import seconds
from quorin.cli.options import Connection, Namespace, Raw, ShmDir
from quorin.cli.output import Json, print_json
from quorin.cli.repository import Names
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.errors import ConnectionFailedError, QuorinError

if TYPE_CHECKING:
    from quorin.shm import SegmentRegistry

MaxLag = Annotated[
    str | None,
    typer.Option(
        "--max-lag",
        help="How long ago every segment may have been known to be up to date, such as 500ms, 1s or 1m. Without it, "
        "every schema needs a segment, however old.",
        show_default=False,
    ),
]


def ready(
    connection: Connection,
    max_lag: MaxLag = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    shm_dir: ShmDir = None,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Tell whether this machine may serve.

    It may when it has a segment of every schema, and each is fresh. Made for readiness probes: it reads shared memory,
    and asks the control plane only for the names of the schemas, which may be away. A consumer, or a serving process
    that follows the log, confirms several times a second that the log has nothing more; if it cannot reach the log,
    the lag grows.

    Examples:
        quorin ready                      # every schema has a segment
        quorin ready --max-lag 1m --json  # and each is fresh

    Exit codes: 0 ready, 1 not ready (with the reasons on stderr), 2 wrong usage.
    """
    from quorin.engine.ops.readiness import readiness
    from quorin.shm import SegmentRegistry

    limit = None if max_lag is None else seconds(max_lag)
    registry = SegmentRegistry(connection, shm_dir=shm_dir, namespace=namespace)
    found = readiness(registry, max_lag_seconds=limit)
    names = _names(registry, raw=raw)
    registry.backend.close()
    problems = [one for one in found if one.problem]
    is_ready = bool(found) and not problems
    if as_json:
        print_json({"ready": is_ready, "schemas": [names.json(one.as_dict()) for one in found]})
    else:
        for one in problems:
            typer.echo(f"{names.schema(one.schema_name)}: {names.text(one.problem)}", err=True)
        if not found:
            typer.echo("the deployment has no schemas yet", err=True)
        typer.echo("ready" if is_ready else "not ready")
    if not is_ready:
        raise typer.Exit(1)


def _names(registry: SegmentRegistry, *, raw: bool) -> Names:
    """What schemas are called; while the control plane is away, by the segments of this machine."""
    try:
        return Names.of(registry.backend, raw=raw)
    except ConnectionFailedError:
        schemas = {}
        for name in registry.node.currents():
            with suppress(QuorinError), registry.open_stored(name) as segment:
                schemas[name] = segment.schema
        return Names(schemas, raw=raw)
