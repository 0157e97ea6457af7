"""What was served in a long life comes back to the bit, whatever happened to segments, log and history meanwhile."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from quorin import assembly
from quorin.engine.backend import connect
from quorin.evolution import repartition, upgrade_schema
from quorin.offline import ParquetDatasetStore, ServedLog, ServedView, read_served
from quorin.schema import FeatureField, Schema, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.schemas import Everything
from tests.unit.history.test_as_of import NOW, batches
from tests.unit.test_offline import bits

DAY_NS = 86_400 * 10**9
IDS = ["a", "b", "é", "old", *(f"new{number}" for number in range(6)), "nobody", "a"]
WIDER = {"i32": dtype.int64, "f32": dtype.float64}
LATER = make_schema(
    "Everything",
    [
        *(FeatureField(f.name, WIDER.get(f.name, f.dtype), f.shape) for f in Everything.fields if f.name != "blob"),
        FeatureField("added", dtype.string),
    ],
    version=2,
)
STEPS = ["write", "write", "write", "late", "new", "flush", "compact", "collect", "lose", "upgrade", "grow"]


class Deployment:
    """Writes, applies, serves and remembers its answers, by schema and number."""

    def __init__(self, directory: Path, connection: str, namespace: str, partitions: int) -> None:
        self.directory = directory
        self.backend = connect(connection, namespace=namespace, partitions=partitions)
        self.producer = WALProducer(self.backend)
        self.history = ParquetDatasetStore(directory / "history")
        self.schema: Schema = Everything
        self.partitions = partitions
        self.answers: dict[Schema, dict[str, list[pa.RecordBatch]]] = {Everything: {}, LATER: {}}
        self._numbers = itertools.count()
        self.log: ServedLog | None = None
        self.start()

    def start(self) -> None:
        """As a machine that has nothing in its shared memory."""
        shm_dir = self.directory / f"shm{next(self._numbers)}"
        shm_dir.mkdir()
        self.registry = SegmentRegistry(self.backend, shm_dir=shm_dir, namespace=self.backend.namespace)
        self.log = ServedLog(self.directory / "served", self.registry, every_seconds=1000)

    def stop(self) -> None:
        assert self.log is not None
        self.log.collect()
        self.log.close()
        shutil.rmtree(self.registry.shm_dir)

    def apply(self) -> None:
        consumer = WALConsumer(
            self.backend,
            self.schema,
            registry=self.registry,
            offline=self.history,
            capacity=2,
            flush_interval_seconds=1e9,
        )
        with consumer:
            consumer.drain()

    def serve(self) -> None:
        assert self.log is not None
        fields = tuple((field.name, field) for field in self.schema.fields)
        kind = self.log.describe([ServedView("view", self.schema.__name__, fields, 0, self.schema.tie_breaker)])
        answers, number = self.answers[self.schema], str(next(self._numbers))
        with self.registry.open_current(self.schema) as segment:
            columns = assembly.column_reader(segment, positions=True)(IDS)
            self.log.rows(kind, number, [pa.array(IDS)], [0], [columns])
            answers[number] = [columns.to_batch()]
            one = assembly.row_reader([(segment, None)], positions=True)("a")
            if one is not None:
                self.log.row(kind, f"{number}a", one)
                answers[f"{number}a"] = [one[0].columns().to_batch()]

    def step(self, step: str, data: st.DataObject) -> None:
        if step == "write":
            kind, batch = data.draw(batches(self.schema))
            self.producer.append_batch(self.schema, batch, kind)
        elif step == "late":  # Of entities whose deletions a growth forgets.
            time_ns = NOW - data.draw(st.integers(8, 12)) * DAY_NS
            if data.draw(st.booleans()):
                self.producer.delete(self.schema, "old", time_ns)
            else:
                self.producer.write(self.schema, "old", {"i32": 1}, time_ns, partial=True)
        elif step == "new":
            self.producer.write(self.schema, f"new{data.draw(st.integers(0, 5))}", {"text": "é"}, NOW, partial=True)
        elif step == "flush":
            self.history.flush()
        elif step == "compact":
            self.history.flush()
            self.history.compact(self.schema)
        elif step == "collect":
            assert self.log is not None
            self.log.collect()
        elif step == "lose":
            self.stop()
            self.start()
        elif step == "upgrade" and self.schema is Everything:
            upgrade_schema(Everything, LATER, self.registry)
            self.schema = LATER
        elif step == "grow" and self.partitions == 4:
            self.partitions = repartition(self.backend, 8, wait_for="log") and 8

    def close(self) -> None:
        self.producer.close()
        self.backend.close()


@pytest.fixture(params=[1, 4], ids=["one partition", "four partitions"])
def new(request: pytest.FixtureRequest, redis_url: str, tmp_path: Path) -> Iterator[Any]:
    """Makes a new deployment each time, embedded and on Redis in turn."""
    opened: list[Deployment] = []

    def make() -> Deployment:
        (directory := tmp_path / f"{len(opened)}").mkdir()
        connection = redis_url if len(opened) % 2 else str(directory / "store")
        opened.append(Deployment(directory, connection, f"served{len(opened)}", request.param))
        return opened[-1]

    yield make
    for deployment in opened:
        deployment.close()


@settings(
    deadline=None,
    max_examples=3,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data(), steps=st.lists(st.sampled_from(STEPS), min_size=8, max_size=20))
def test_what_was_served_through_a_long_life_comes_back_to_the_bit(
    new: Any, data: st.DataObject, steps: list[str]
) -> None:
    """After late, partial and deleted rows, an upgrade, growth, compaction, and the loss of shared memory."""
    deployment = new()
    deployment.apply()
    deployment.serve()
    for step in steps:
        deployment.step(step, data)
        deployment.apply()
        deployment.serve()
    deployment.stop()
    for schema, answers in deployment.answers.items():
        served = read_served(
            deployment.directory / "served",
            deployment.history,
            request_ids=list(answers),
            connection=deployment.backend,
            namespace=deployment.backend.namespace,
        )
        assert served["known"].to_pylist() == [True] * len(served)
        numbers = served["request_id"].to_pylist()
        assert sorted({*numbers}) == sorted(answers)
        for number, (answer,) in answers.items():
            own = served.slice(numbers.index(number), len(answer))
            for field in schema.fields:
                assert own[field.name].type == answer.column(field.name).type
                assert bits(own[field.name]) == bits(answer.column(field.name)), (number, field.name)
