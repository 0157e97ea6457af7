"""``quorin nodes``: the machines or pods of a deployment, and how far each is behind the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from quorin.cli.durations import seconds
from quorin.cli.options import Connection, Namespace, Opened, Raw, StreamKey
from quorin.cli.output import Json, add_row, console, print_json, table
from quorin.cli.repository import Names
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY
from quorin.engine.words import ago, count, size

if TYPE_CHECKING:
    from quorin.engine.ops.nodes import Behind, NodeReport

NodeTimeout = Annotated[
    str, typer.Option("--node-timeout", help="A node that is silent for longer is not alive: 30s, 10m, 1h.")
]


def nodes(
    connection: Connection,
    schemas: Annotated[bool, typer.Option("--schemas", help="One line for each schema of each node.")] = False,
    partitions: Annotated[
        bool, typer.Option("--partitions", help="One line for each partition of each schema of each node.")
    ] = False,
    node_timeout: NodeTimeout = "10m",
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Show the nodes of a deployment.

    Nodes are the machines or pods that serve it, each with its own copy of the rows. "Up to date" says when a node was
    last known to have all rows of the log. "Behind" counts what the log has and the node does not. A node shows when a
    consumer, or a serving process that follows the log, has applied on it.

    Examples:
        quorin nodes
        quorin nodes --schemas     # one line for each schema of each node
        quorin nodes --partitions  # and for each partition
        quorin nodes --json

    Exit codes: 0 shown, 1 the control plane cannot be reached, 2 wrong usage.
    """
    from quorin.engine.backend import logs
    from quorin.engine.ops.nodes import observed_nodes

    timeout = seconds(node_timeout)
    with Opened(connection, namespace, raw=raw) as backend:
        names = Names.of(backend, raw=raw)
        found = observed_nodes(backend, logs(backend, stream_key), node_timeout_seconds=timeout)
        address = backend.address
    if as_json:
        print_json({"address": address, "nodes": [names.json(node.as_dict()) for node in found]})
    elif not found:
        console().print("no node has reported: run `quorin consumer` on it, or serve from it")
    else:
        console().print(
            _by_partition(found, names) if partitions else _by_schema(found, names) if schemas else _by_node(found)
        )


def _by_node(found: list[NodeReport]) -> object:
    names = ["node", "host", "applied by", "seen", "state", "schemas", "up to date", "rows behind", "bytes behind"]
    has_partitions = any(node.partitions.count > 1 for node in found)
    shown = table(*names, *(["partitions"] if has_partitions else []))
    for node in found:
        _, *rows_and_bytes = _behind(node.behind)
        add_row(
            shown,
            node.node or "?",
            ", ".join(node.hosts),
            ", ".join(node.roles),
            ago(node.silent_seconds),
            "alive" if node.is_alive else "silent",
            len(node.replicas),
            _since(node.lag_seconds),
            *rows_and_bytes,
            *([str(node.partitions)] if has_partitions else []),
        )
    return shown


def _by_schema(found: list[NodeReport], names: Names) -> object:
    shown = table(
        "node", "schema", "version", "position", "up to date", "entries behind", "rows behind", "bytes behind"
    )
    for node in found:
        for replica in node.replicas:
            of_schema = node.node or "?", names.schema(replica.schema_name), replica.version
            add_row(shown, *of_schema, replica.position, _since(replica.lag_seconds), *_behind(replica.behind))
    return shown


def _by_partition(found: list[NodeReport], names: Names) -> object:
    from quorin.engine.ops.nodes import PartReplica

    shown = table(
        "node", "schema", "partition", "position", "up to date", "entries behind", "rows behind", "bytes behind"
    )
    for node in found:
        for replica in node.replicas:
            for part in replica.parts or (PartReplica(0, replica.position, replica.lag_seconds, replica.behind),):
                of_part = node.node or "?", names.schema(replica.schema_name), part.partition
                add_row(shown, *of_part, part.position, _since(part.lag_seconds), *_behind(part.behind))
    return shown


def _since(seconds: float | None) -> str:
    return "never" if seconds is None else ago(seconds)


def _behind(behind: Behind) -> tuple[str, str, str]:
    """Entries, rows and bytes; with a plus where there may be more."""
    more = "" if behind.is_exact else "+"
    return count(behind.entries) + more, count(behind.rows) + more, size(behind.bytes) + more
