"""Loads: whatever happens in between, the segment and the history have what the log says."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quorin import assembly
from quorin.engine.loads.coordinator import Coordinator
from quorin.engine.loads.past import Past
from quorin.engine.log.record import Kind
from quorin.engine.rows.batch import to_batch
from quorin.errors import SegmentNotFoundError
from quorin.hydration import hydrate
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, FeatureSchema, dtype
from quorin.shm import Segment, SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer


class Thing(FeatureSchema):
    """Two fields, so that partial rows keep one of them."""

    version = 1
    fields = [FeatureField("a", dtype.int64), FeatureField("b", dtype.string)]


Row = tuple[int | None, str | None]
Op = tuple[Any, ...]


@dataclass
class Model:
    """What the log means: its entries, and the state that follows from them."""

    pushed: list[tuple[int, Kind, str, int, Row]] = field(default_factory=list)
    loads: dict[int, list[tuple[str, int, Row]]] = field(default_factory=dict)
    commits: list[tuple[int, int]] = field(default_factory=list)

    def state(self, at: int = 2**63) -> dict[str, Row]:
        """The rows as of a position."""
        floor = max((begin for begin, position in self.commits if position <= at), default=0)
        rows: dict[str, tuple[int, Row | None]] = {}
        for entity, moment, row in self.loads.get(floor, []):
            _put(rows, Kind.upsert, entity, moment, row)
        for position, kind, entity, moment, row in self.pushed:
            if floor < position <= at:
                _put(rows, kind, entity, moment, row)
        return {entity: row for entity, (_, row) in rows.items() if row is not None}


def _put(rows: dict[str, tuple[int, Row | None]], kind: Kind, entity: str, moment: int, row: Row) -> None:
    before = rows.get(entity)
    if before is not None and moment < before[0]:
        return
    if kind is Kind.partial:
        row = (row[0], None if before is None or before[1] is None else before[1][1])
    rows[entity] = moment, None if kind is Kind.delete else row


class World:
    """One node: its segment, log, history, and a consumer that can be restarted."""

    def __init__(self, directory: Path) -> None:
        (directory / "shm").mkdir()
        self.registry = SegmentRegistry(directory / "db", shm_dir=directory / "shm")
        self.directory = directory
        self.store = ParquetDatasetStore(directory / "history")
        self.producer = WALProducer(self.registry.backend, registry=self.registry)
        self.registry.create(Thing, capacity=4).close()
        self.model = Model()
        self.coordinator: Coordinator | None = None
        self.consumer = self.new_consumer()

    def new_consumer(self) -> WALConsumer:
        return WALConsumer(self.registry.backend, Thing, registry=self.registry, offline=self.store, flush_rows=1)

    def do(self, op: Op) -> None:
        getattr(self, op[0])(*op[1:])

    def push(self, entity: str, moment: int, value: int) -> None:
        position = self.producer.write(Thing, entity, {"a": value, "b": f"b{value}"}, moment)
        self.model.pushed.append((position, Kind.upsert, entity, moment, (value, f"b{value}")))

    def partial(self, entity: str, moment: int, value: int) -> None:
        position = self.producer.write(Thing, entity, {"a": value}, moment, partial=True)
        self.model.pushed.append((position, Kind.partial, entity, moment, (value, None)))

    def delete(self, entity: str, moment: int, _: int) -> None:
        position = self.producer.delete(Thing, entity, moment)
        self.model.pushed.append((position, Kind.delete, entity, moment, (None, None)))

    def load(self, entity: str, moment: int, value: int) -> None:
        if self.coordinator is None:
            self.coordinator = Coordinator(self.registry.backend, Thing).__enter__()
        rows = {"entity_id": [entity], "event_time_ns": [moment], "a": [value], "b": [f"load{value}"]}
        self.coordinator.append(to_batch(Thing, rows))
        self.model.loads.setdefault(self.coordinator.load, []).append((entity, moment, (value, f"load{value}")))

    def commit(self) -> None:
        if self.coordinator is not None:
            begin = self.coordinator.load
            self.model.commits.append((begin, self.coordinator.commit()))
            self.end()

    def end(self) -> None:
        if self.coordinator is not None:
            self.coordinator.__exit__(None, None, None)
            self.coordinator = None

    def drain(self) -> None:
        self.consumer.drain()
        with self.registry.open_current(Thing) as segment:
            assert rows_of(segment) == self.model.state()

    def run(self) -> None:
        last = self.producer._log.bounds().last
        running = threading.Thread(target=self.consumer.run, daemon=True)
        running.start()
        deadline = time.monotonic() + 60
        while not self.has_applied(last) and time.monotonic() < deadline:
            time.sleep(0.002)
        self.consumer.stop()
        running.join()
        with self.registry.open_current(Thing) as segment:
            assert rows_of(segment) == self.model.state()
        self.restart()

    def has_applied(self, position: int) -> bool:
        with suppress(SegmentNotFoundError), self.registry.open_current(Thing) as segment:
            return segment.position >= position
        return False

    def restart(self) -> None:
        self.consumer.close()
        self.consumer = self.new_consumer()

    def lose(self) -> None:
        """The node loses its segment, and builds it anew."""
        self.consumer.close()
        with suppress(SegmentNotFoundError), self.registry.open_current(Thing, read_only=False) as segment:
            self.registry.discard(segment)
        self.consumer = self.new_consumer()

    def check_history(self) -> None:
        """The history has the same, and a segment that is hydrated from it."""
        self.consumer.drain()
        expected = self.model.state()
        found = self.store.latest_features(Thing).to_pylist()
        assert {row["entity_id"]: (row["a"], row["b"]) for row in found} == expected
        self.consumer.close()
        with self.registry.open_current(Thing, read_only=False) as segment:
            self.registry.discard(segment)
        if self.store.load(Thing).row_count:
            hydrate(Thing, self.store, self.registry)
            self.consumer = self.new_consumer()
            self.consumer.drain()
            with self.registry.open_current(Thing) as segment:
                assert rows_of(segment) == expected

    def check_past(self, positions: list[int]) -> None:
        """States of the past, from history and log."""
        for position in positions:
            past = Past(Thing, self.registry, "quorin:wal", self.store, int(position))
            for segment in past.segments(0, None, capacity=4, max_id_bytes=64, alive=lambda: None):
                assert rows_of(segment) == self.model.state(position)

    def close(self) -> None:
        self.end()
        self.consumer.close()


def rows_of(segment: Segment) -> dict[str, Row]:
    return {row["entity_id"]: (row["a"], row["b"]) for row in assembly.scan(segment).read_all().to_pylist()}


_row = st.tuples(st.sampled_from("pqrst"), st.integers(1, 5), st.integers(0, 99))
_ops = st.one_of(
    *(_row.map(lambda row, name=name: (name, *row)) for name in ("push", "push", "partial", "delete", "load", "load")),
    *(st.just((name,)) for name in ("commit", "commit", "end", "drain", "run", "restart", "lose")),
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(_ops, min_size=5, max_size=30))
def test_any_interleaving_of_pushes_and_loads_ends_in_what_the_log_says(ops: list[Op]) -> None:
    with TemporaryDirectory() as directory:
        world = World(Path(directory))
        try:
            positions = []
            for op in ops:
                world.do(op)
                positions.append(world.producer._log.bounds().last)
            world.drain()
            world.check_past(positions[:: max(1, len(positions) // 4)])
            world.check_history()
        finally:
            world.close()
