"""Reads of the past with several partitions: by tokens and times, and the last values; equal to what was served."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from quorin.engine.backend import Backend, connect
from quorin.engine.format.partition import partition_of
from quorin.engine.log.record import decode
from quorin.errors import IncompleteHistoryError, PartitionedError, TokenError
from quorin.evolution import repartition
from quorin.offline import ParquetDatasetStore, last_values, read_at
from quorin.schema import FeatureField, Schema, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import Token, WALProducer
from quorin.wal_consumer import WALConsumer
from tests.unit.history.test_as_of import as_read, served
from tests.unit.history.test_last_values import ENTRIES, Plain, Tied, by_pandas, record_of

COUNT = 4
IDS = [f"id{i}" for i in range(12)]
ASKED = [*IDS, "nobody", "id3"]
Pair = make_schema("Pair", [FeatureField("a", dtype.int64), FeatureField("b", dtype.string)])
NOW = time.time_ns()
_numbers = itertools.count()

Opened = tuple[Backend, SegmentRegistry, WALProducer, ParquetDatasetStore]


@pytest.fixture(params=["embedded", "redis"])
def new(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Opened]]:
    """A new deployment of four partitions, with an empty history, each time."""
    url = None if request.param == "embedded" else str(request.getfixturevalue("redis_url"))
    opened: list[Opened] = []

    def make() -> Opened:
        number = next(_numbers)
        (folder := tmp_path / f"{number}").mkdir()
        (folder / "shm").mkdir()
        backend = connect(url or str(folder / "store"), namespace=f"past{number}", partitions=COUNT)
        registry = SegmentRegistry(backend, shm_dir=folder / "shm", namespace=f"past{number}")
        producer = WALProducer(backend, registry=registry)
        opened.append((backend, registry, producer, ParquetDatasetStore(folder / "history")))
        return opened[-1]

    yield make
    for backend, _, producer, _ in opened:
        producer.close()
        backend.close()


def drain(schema: Schema, opened: Opened, *, stored: bool) -> None:
    backend, registry, _, store = opened
    options: dict[str, Any] = {"offline": store} if stored else {}
    with WALConsumer(backend, schema, registry=registry, capacity=8, **options) as consumer:
        consumer.drain()


def write(producer: WALProducer, entity_id: str, number: int, *, time_ns: int = NOW) -> Token:
    return producer.write(Pair, entity_id, {"a": number, "b": f"b{number}"}, time_ns)


WRITES = st.lists(
    st.tuples(
        st.sampled_from(["row", "batch", "partial", "delete"]), st.sampled_from(IDS), st.integers(0, 4), st.booleans()
    ),
    min_size=1,
    max_size=14,
)


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=WRITES, stored=st.lists(st.booleans(), min_size=14, max_size=14))
def test_rows_as_of_a_token_are_those_that_the_segment_had(
    new: Callable[[], Opened], writes: list[Any], stored: list[bool]
) -> None:
    opened = backend, registry, producer, store = new()
    drain(Pair, opened, stored=True)
    answers: list[tuple[Token, Any]] = []
    for number, (kind, entity_id, later, drains) in enumerate(writes):
        if kind == "row":
            write(producer, entity_id, number, time_ns=NOW + later)
        elif kind == "batch":
            batch = {"entity_id": IDS, "a": [number] * len(IDS), "b": [None] * len(IDS)}
            producer.write_many(Pair, batch, event_time_ns=NOW + later)
        elif kind == "partial":
            producer.write(Pair, entity_id, {"a": number}, NOW + later, partial=True)
        else:
            producer.delete(Pair, entity_id, NOW + later)
        if drains or number == len(writes) - 1:
            drain(Pair, opened, stored=stored[number])
            with registry.open_current(Pair) as segment:
                answers.append((segment.applied(), served(segment, ASKED)))
    for token, answer in answers:
        # Ids of partitions that had no row by then have none, but nothing says so of the token of a write.
        known = {partition for partition in range(COUNT) if _names(backend, token, partition)}
        ids = [one for one in ASKED if partition_of(one, COUNT) in known]
        rows = as_read(read_at(store, Pair, ids, position=token, connection=backend, namespace=backend.namespace))
        places = [i for i, one in enumerate(ASKED) if one in ids]
        assert rows == {name: [column[i] for i in places] for name, column in answer.items()}
        text = as_read(store.read_at(Pair, ids, position=token.text, connection=registry))
        assert text == rows


def _names(backend: Backend, token: Token, partition: int) -> bool:
    return backend.log(partition=partition).identity() in dict(token.parts)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    schema=st.sampled_from([Plain, Tied]),
    entries=ENTRIES,
    stored=st.integers(0, 25),
    n=st.integers(1, 4),
    fields=st.sampled_from([["a"], ["b", "a"], None]),
)
def test_last_values_are_those_of_pandas(
    new: Callable[[], Opened], schema: Schema, entries: list[Any], stored: int, n: int, fields: list[str] | None
) -> None:
    ids = ["y", "nobody", "x", "é"]
    backend, _, _, store = new()
    backend.settle_partitions(COUNT)
    expected = by_pandas(schema, entries, ids, n, fields or ["a", "b", "tie"])
    for number, entry in enumerate(entries):
        partition = partition_of(entry[1], COUNT)
        record = record_of(schema, entry)
        [position] = backend.log(partition=partition).append([(schema.__name__, record)])
        if number < stored:
            own, found = store.of_partition(partition, COUNT), decode(record)
            own.append(schema, found.batch, pa.repeat(pa.scalar(int(position), pa.int64()), 1), kind=found.kind)
            own.flush()
    results = [last_values(schema, ids, n, connection=backend, fields=fields)]
    results.append(last_values(schema, ids, n, connection=backend, store=store, fields=fields))
    if stored >= len(entries):
        results.append(last_values(schema, ids, n, store=store, fields=fields))
    for found in results:
        assert found.to_pylist() == expected


def test_no_ids_give_empty_tables(new: Callable[[], Opened]) -> None:
    opened = backend, _, producer, store = new()
    token = write(producer, "id3", 1)
    drain(Pair, opened, stored=True)
    assert store.read_at(Pair, [], position=token, connection=backend).num_rows == 0
    assert last_values(Pair, [], 3, store=store, connection=backend).num_rows == 0
    assert last_values(Pair, ["nobody"], 3, store=store).column_names == ["entity_id", "event_time_ns", "a", "b"]


def test_a_time_is_one_of_all_logs(new: Callable[[], Opened]) -> None:
    opened = backend, _, producer, store = new()
    rows = {"entity_id": IDS, "b": [None] * len(IDS)}
    producer.write_many(Pair, {**rows, "a": [1] * len(IDS)}, event_time_ns=1)
    drain(Pair, opened, stored=True)
    between = time.time_ns() + 2_000_000
    time.sleep(0.004)
    producer.write_many(Pair, {**rows, "a": [2] * len(IDS)}, event_time_ns=2)
    assert store.read_at(Pair, ASKED, time_ns=between, connection=backend)["a"].to_pylist() == [1] * 12 + [None, 1]
    now = store.read_at(Pair, ASKED, time_ns=time.time_ns(), connection=backend)
    assert now["a"].to_pylist() == [2] * 12 + [None, 2]
    with pytest.raises(IncompleteHistoryError, match="connection"):
        store.read_at(Pair, ASKED, time_ns=time.time_ns())
    drain(Pair, opened, stored=True)
    assert store.read_at(Pair, ASKED, time_ns=between)["a"].to_pylist() == [1] * 12 + [None, 1]


def test_other_positions_are_refused_by_name(new: Callable[[], Opened]) -> None:
    opened = backend, _, producer, store = new()
    producer.write_many(Pair, {"entity_id": IDS, "a": [1] * len(IDS), "b": [None] * len(IDS)}, event_time_ns=1)
    drain(Pair, opened, stored=True)
    one = write(producer, "id3", 2)
    assert store.read_at(Pair, ["id3"], position=one, connection=backend)["a"].to_pylist() == [2]
    other = next(one for one in IDS if partition_of(one, COUNT) != partition_of("id3", COUNT))
    with pytest.raises(TokenError, match=f"no position of partition {partition_of(other, COUNT)}"):
        store.read_at(Pair, ["id3", other], position=one, connection=backend)
    with pytest.raises(TokenError, match="has no position of partition"):
        store.read_at(Pair, ["id3"], position=Token((77, 5)), connection=backend)
    with pytest.raises(TokenError, match="pass the connection"):
        store.read_at(Pair, ["id3"], position=one)
    with pytest.raises(TokenError, match="got 'q2'"):
        store.read_at(Pair, ["id3"], position="q2", connection=backend)
    for connection in (None, backend):
        with pytest.raises(PartitionedError, match="position 5: expected a token, as there are 4 partitions"):
            store.read_at(Pair, ["id3"], position=5, connection=connection)


def test_the_past_of_a_deployment_that_grew_is_all_there(new: Callable[[], Opened]) -> None:
    """Tokens and last values from before, rows of closed logs that are in no file, and what came after."""
    opened = backend, registry, producer, store = new()
    answers: list[tuple[Token, Any]] = []

    def step(number: int, *, stored: bool) -> None:
        for i, entity_id in enumerate(IDS):
            write(producer, entity_id, 100 * number + i, time_ns=NOW + number)
        drain(Pair, opened, stored=stored)
        with registry.open_current(Pair) as segment:
            answers.append((segment.applied(), served(segment, ASKED)))

    step(1, stored=True)
    step(2, stored=False)
    repartition(backend, 2 * COUNT, wait_for="log")
    step(3, stored=False)
    step(4, stored=False)
    for _ in range(2):
        with registry.open_current(Pair) as segment:
            assert segment.partitioning.count == 2 * COUNT
        for token, answer in answers:
            assert as_read(store.read_at(Pair, ASKED, position=token, connection=backend)) == answer
        found = last_values(Pair, ["id3", "id0"], 3, store=store, connection=backend).to_pylist()
        assert [row["a"] for row in found] == [403, 303, 203, 400, 300, 200]
        drain(Pair, opened, stored=True)
    assert last_values(Pair, ["id3"], 9, store=store)["a"].to_pylist() == [403, 303, 103], "what no file has"
