"""Nodes of one deployment of several partitions, on SQLite and on Redis, each with a shared memory of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from quorin.engine.backend import Backend, connect
from quorin.engine.format.partition import partition_of
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer

COUNT = 4
IDS = [f"driver-{number}" for number in range(24)]


class PartitionNode:
    """The partitions that a node holds, and a producer of the deployment. ``schemas`` are those that it applies."""

    schemas: ClassVar[Sequence[Any]] = ()

    def __init__(self, backend: Backend, shm_dir: Path, held: str | None) -> None:
        self.backend = backend
        self.registry = SegmentRegistry(backend, shm_dir=shm_dir, held=held, namespace=backend.namespace)
        self.producer = WALProducer(backend, registry=self.registry)

    def consumer(self, *schemas: Any, **options: Any) -> WALConsumer:
        return WALConsumer(self.backend, schemas or self.schemas, registry=self.registry, **options)

    def drain(self, *schemas: Any, **options: Any) -> int:
        with self.consumer(*schemas, **options) as consumer:
            return consumer.drain()


NodeKind = TypeVar("NodeKind", bound=PartitionNode)


@contextmanager
def new_nodes(kind: type[NodeKind], connection: str, directory: Path) -> Iterator[Callable[..., NodeKind]]:
    """In the block, a function that makes a node that holds all partitions or some; all are closed in the end."""
    opened: list[NodeKind] = []

    def new(held: str | None = None, partitions: int | None = COUNT, namespace: str = "quorin") -> NodeKind:
        (shm_dir := directory / f"shm{len(opened)}").mkdir()
        opened.append(kind(connect(connection, partitions=partitions, namespace=namespace), shm_dir, held))
        return opened[-1]

    try:
        yield new
    finally:
        for node in opened:
            node.producer.close()
            node.backend.close()


@pytest.fixture(params=["embedded", "redis"])
def connection(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A deployment that there is nothing of yet."""
    return str(tmp_path / "store") if request.param == "embedded" else str(request.getfixturevalue("redis_url"))


def in_partitions(*partitions: int) -> set[str]:
    """Which of the ids are in some partitions."""
    return {entity_id for entity_id in IDS if partition_of(entity_id, COUNT) in partitions}
