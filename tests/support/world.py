"""A control plane, a log and segments of a test's own, on SQLite and on Redis, with a producer and consumers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from quorin.assembly import read
from quorin.engine.backend import Backend, connect
from quorin.layout import iterate_occupied
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import Segment, SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer

TRIP = make_schema("Trip", [FeatureField("score", dtype.float64), FeatureField("tag", dtype.string)])
STOP = make_schema("Stop", [FeatureField("count", dtype.int64)])


class World:
    """A control plane, and segments in a directory of the test's own."""

    def __init__(self, connection: str, shm_dir: Path) -> None:
        self.connection = connection
        self.shm_dir = shm_dir
        self.backend: Backend = connect(connection)
        self.log = self.backend.log()
        self.registry = SegmentRegistry(self.backend, shm_dir=shm_dir)
        self.producer = WALProducer(self.backend, registry=self.registry)

    def consumer(self, *schemas: Any, **options: Any) -> WALConsumer:
        return WALConsumer(self.backend, schemas or [TRIP], registry=self.registry, **options)

    def drain(self, *schemas: Any, **options: Any) -> int:
        consumer = self.consumer(*schemas, **options)
        try:
            return consumer.drain()
        finally:
            consumer.close()

    def rows(self, *ids: str, schema: Any = TRIP) -> list[dict[str, Any] | None]:
        """The served rows: fields only, None where there is none."""
        with self.registry.open_current(schema) as segment:
            found = read(segment, list(ids)).to_pylist()
        names = [field.name for field in schema.fields]
        return [{name: row[name] for name in names} if row["found"] else None for row in found]

    def append(self, schema: Any, payload: bytes) -> int:
        return self.log.append([(schema.__name__, payload)])[0]

    def position(self, schema: Any = TRIP) -> int:
        with self.registry.open_current(schema) as segment:
            return segment.position


@pytest.fixture(params=["embedded", "redis"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    connection = str(tmp_path / "store") if request.param == "embedded" else str(request.getfixturevalue("redis_url"))
    (tmp_path / "shm").mkdir()
    opened = World(connection, tmp_path / "shm")
    yield opened
    opened.producer.close()
    opened.backend.close()


@pytest.fixture
def wipe(world: World) -> Callable[[], None]:
    def lose() -> None:
        if "://" in world.connection:
            import redis

            with redis.Redis.from_url(world.connection) as client:
                stream = "{quorin}:quorin:wal"
                client.delete(stream, f"{stream}:identity", f"{stream}:trimmed")
        else:
            current = world.registry.node.current("Trip")
            for path in Path(world.connection).glob("quorin.db*"):
                path.unlink(missing_ok=True)  # SQLite removes files itself when the last connection ends.
            if current is not None:
                make_current(world.registry, "Trip", current, expected=None)

    return lose


def make_current(registry: SegmentRegistry, schema_name: str, segment_name: str, *, expected: str | None) -> bool:
    """What a process does last that makes another segment current."""
    beginning = registry.backend.control.beginnings().get(schema_name)
    return registry.node.publish(schema_name, segment_name, expected=expected, beginning=beginning, before=lambda: None)


def row(score: float | None, tag: str | None = "t") -> dict[str, Any]:
    return {"score": score, "tag": tag}


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def running(consumer: WALConsumer) -> Iterator[None]:
    """Inside the block a thread runs the consumer, which is closed then."""
    thread = threading.Thread(target=consumer.run)
    thread.start()
    try:
        yield
    finally:
        consumer.stop()
        thread.join(60)
        consumer.close()
        assert not thread.is_alive()


def rows_of(segment: Segment) -> dict[str, Any]:
    ids = sorted(entity_id for entity_id, _ in iterate_occupied(segment))
    return dict(zip(ids, read(segment, ids).to_pylist(), strict=True)) | {"position": segment.position}
