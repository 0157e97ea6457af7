"""Nodes with a ``shm_dir`` each, which hold some partitions of a deployment, or all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quorin.engine.ops.holders import publish_holders, report_of
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.http import Running, serving

PARTITIONS = 4
MAX_ID_BYTES = 1024


class PartialNode:
    """One node; ``held`` is a text as ``"0-1"``, None for all partitions."""

    def __init__(self, folder: Path, name: str, connection: str, held: str | None) -> None:
        self.name = name
        self.shm_dir = folder / f"shm-{name}"
        self.shm_dir.mkdir()
        self.registry = SegmentRegistry(connection, shm_dir=self.shm_dir, partitions=PARTITIONS, held=held)
        assert self.registry.partitioning.count == PARTITIONS  # Which settles it, if the deployment is new.
        self.options = ["--connection", connection, "--shm-dir", str(self.shm_dir)]

    def drain(self, schemas: Any = None) -> None:
        """Apply what the log has for this node."""
        sizes = {"capacity": 64, "max_id_bytes": MAX_ID_BYTES}
        with WALConsumer(self.registry.backend, schemas, registry=self.registry, **sizes) as consumer:
            consumer.drain()

    def report(self) -> None:
        """What the node's applier reports, once: here of a process that does not end."""
        node, partitioning = self.registry.node, self.registry.partitioning
        schemas = {name: {"position": 1, "lag_seconds": 0.0} for name in node.currents()}
        entry = {"role": "consumer", "node": node.id, "heartbeat_ns": 0, "schemas": schemas}
        text = json.dumps(entry | report_of(node, partitioning.count, partitioning.held))
        self.registry.backend.control.announce(f"host-{self.name}:1:1", text, node=node.id, positions={})

    def close(self) -> None:
        for path in self.shm_dir.iterdir():
            path.unlink()
        self.registry.backend.close()


class PartialNodes:
    """The nodes of a deployment, and a producer."""

    def __init__(self, folder: Path, connection: str, held: dict[str, str | None]) -> None:
        self.folder = folder
        self.nodes = {name: PartialNode(folder, name, connection, own) for name, own in held.items()}
        self.producer = WALProducer(connection, partitions=PARTITIONS)

    def __getitem__(self, name: str) -> PartialNode:
        return self.nodes[name]

    def drain(self, schemas: Any = None) -> None:
        for node in self.nodes.values():
            node.drain(schemas)

    def report(self) -> None:
        """Let all nodes know of each other."""
        for node in self.nodes.values():
            node.report()
        for node in self.nodes.values():
            publish_holders(node.registry.backend.control, node.registry.node)

    @contextmanager
    def serving(
        self, name: str, *options: str, advertised: bool = True, certificate: Path | None = None
    ) -> Iterator[Running]:
        """The server of a node, which the others know of then."""
        scheme = "http" if certificate is None else "https"
        own = ["--advertise", f"{scheme}://127.0.0.1:{{port}}"] if advertised else []
        words = ["quorin", "serve", "-p", "{port}", *self[name].options, *own, *options]
        with serving(words, self.folder / f"{name}.log", certificate=certificate) as server:
            self.report()
            yield server

    def close(self) -> None:
        self.producer.close()
        for node in self.nodes.values():
            node.close()
