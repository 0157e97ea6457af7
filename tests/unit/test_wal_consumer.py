"""The consumer: what is in the log is served, in whatever order it came and whoever died on the way."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorin import metrics
from quorin.assembly import read
from quorin.engine.backend import Backend, connect
from quorin.engine.log.dead_letters import replay
from quorin.engine.log.record import Kind, decode, encode
from quorin.engine.rows.batch import delete_batch, row_batch, to_batch
from quorin.errors import SchemaError, SchemaMismatchError, SegmentNotFoundError, WriterLeaseHeldError
from quorin.layout import apply_batch, iterate_occupied
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, dtype, make_schema, schema_to_json
from quorin.shm import Segment, SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import NoopOfflineWriter, OfflineWriter, WALConsumer
from tests.support.redis_server import RedisServer

spawn = multiprocessing.get_context("spawn")

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
            current = world.backend.control.current("Trip")
            for path in Path(world.connection).glob("quorin.db*"):
                path.unlink(missing_ok=True)  # SQLite removes files itself when the last connection ends.
            if current is not None:
                world.backend.control.set_current("Trip", current, expected=None)

    return lose


def row(score: float | None, tag: str | None = "t") -> dict[str, Any]:
    return {"score": score, "tag": tag}


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# What is in the log is served


def test_drain_serves_what_is_in_the_log(world: World) -> None:
    world.producer.write(TRIP, "a", row(1), 10)
    last = world.producer.write_many(
        TRIP, pa.table({"entity_id": ["b", "c"], "event_time_ns": [1, 2], "score": [2.0, None], "tag": ["x", None]})
    )
    assert world.drain() == 3
    assert world.rows("a", "b", "c", "d") == [row(1.0), row(2.0, "x"), row(None, None), None]
    assert world.position() == last
    assert world.drain() == 0


def test_deletes_and_partial_rows_are_applied(world: World) -> None:
    world.producer.write(TRIP, "a", row(1), 10)
    world.producer.write(TRIP, "a", {"tag": "new"}, 20, partial=True)
    world.producer.write(TRIP, "b", row(2), 10)
    world.producer.delete(TRIP, "b", 20)
    world.producer.write(TRIP, "b", row(3), 15)
    world.drain()
    assert world.rows("a", "b") == [row(1.0, "new"), None]


def test_older_rows_never_replace_newer_ones(world: World) -> None:
    world.producer.write(TRIP, "a", row(2), 20)
    world.drain()
    world.producer.write(TRIP, "a", row(1), 10)
    assert world.drain() == 0
    assert world.rows("a") == [row(2.0)]


def test_several_schemas_share_a_consumer_and_others_are_left_alone(world: World) -> None:
    world.producer.write(TRIP, "a", row(1), 1)
    world.producer.write(STOP, "a", {"count": 5}, 1)
    world.producer.write(make_schema("Other", list(STOP.fields)), "a", {"count": 6}, 1)
    assert world.drain(TRIP) == 1
    assert world.drain(TRIP, STOP) == 1
    assert world.rows("a") == [row(1.0)]
    assert world.rows("a", schema=STOP) == [{"count": 5}]
    assert world.log.dead_letters() == []


def test_a_schema_that_comes_later_starts_from_the_beginning(world: World) -> None:
    world.producer.write(STOP, "a", {"count": 5}, 1)
    world.producer.write(TRIP, "a", row(1), 1)
    world.drain(TRIP)
    assert world.drain(TRIP, STOP) == 1
    assert world.position(STOP) == world.position(TRIP) == world.log.bounds().last


def test_a_history_that_cannot_be_written_is_named_and_tried_again(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    obstacle = tmp_path / "file"
    obstacle.touch()
    history = ParquetDatasetStore(obstacle / "history")
    world.producer.write(TRIP, "a", row(1), 1)
    consumer = world.consumer(offline=history, flush_interval_seconds=0.01)
    running = threading.Thread(target=consumer.run)
    running.start()
    said = ""
    try:
        until(lambda: world.backend.control.current("Trip") is not None and world.rows("a") == [row(1)])
        time.sleep(1.5)
        said = capsys.readouterr().err
        obstacle.unlink()
        until(lambda: history.flushed_position(TRIP) == world.log.bounds().last)
    finally:
        consumer.stop()
        running.join()
        consumer.close()
    assert said.count("history_unavailable") == 1, said
    assert f"the history at {obstacle}" in said
    assert "log_unreachable" not in said


def test_segments_may_be_given_open(world: World) -> None:
    with world.registry.create(TRIP, capacity=10) as segment:
        world.producer.write(TRIP, "a", row(1), 1)
        assert world.drain(segment) == 1
        assert read(segment, ["a"])["score"].to_pylist() == [1.0]


def test_records_of_older_schemas_are_translated(world: World) -> None:
    old = make_schema("Trip", [FeatureField("score", dtype.float32), FeatureField("gone", dtype.bool)])
    world.producer.write(old, "a", {"score": 0.5, "gone": True}, 1)
    world.drain()
    assert world.rows("a") == [row(0.5, None)]


def test_segments_grow_as_rows_come(world: World) -> None:
    count = 30_000
    ids = [f"id{i}" for i in range(count)]
    world.producer.write_many(
        TRIP,
        pa.table({"entity_id": ids, "score": np.arange(count, dtype=float), "tag": ["x"] * count}),
        event_time_ns=5,
    )
    assert world.drain(capacity=100) == count
    assert world.rows("id0", "id29999") == [row(0.0, "x"), row(29999.0, "x")]


def test_many_small_entries_are_applied_in_order(world: World) -> None:
    for number in range(300):
        world.producer.write(TRIP, f"id{number % 7}", row(number), 5)
    world.drain(batch_entries=64)
    last = {f"id{number % 7}": number for number in range(300)}
    assert world.rows(*last) == [row(float(number)) for number in last.values()]


def applied_anew(world: World, schema: Any = TRIP) -> dict[str, Any]:
    """The rows of a new segment, to which all of the log is applied in the plain way."""
    with world.registry.create(schema, capacity=64, set_current=False) as segment:
        consumer = WALConsumer(world.backend, [segment], registry=world.registry)
        consumer.drain()
        rows = rows_of(segment)
        world.registry.discard(segment)
    return rows


def rows_of(segment: Segment) -> dict[str, Any]:
    ids = sorted(entity_id for entity_id, _ in iterate_occupied(segment))
    return dict(zip(ids, read(segment, ids).to_pylist(), strict=True)) | {"position": segment.position}


def test_what_an_append_saw_is_applied_as_a_look_at_the_log_would(world: World) -> None:
    random = np.random.default_rng(11)
    seen = 0
    with world.registry.create(STOP, capacity=64) as segment:
        consumer = WALConsumer(world.backend, [segment], registry=world.registry)
        for number in range(300):
            entity_id, time_ns = f"s{random.integers(8)}", int(random.integers(1, 40))
            for _ in range(random.choice([0, 0, 0, 1, 2, 12])):
                world.producer.write(STOP, f"s{random.integers(8)}", {"count": number}, int(random.integers(1, 40)))
            if not random.integers(9):
                world.append(STOP, b"no record")
            if not random.integers(9):
                world.producer.delete(STOP, entity_id, time_ns)
            after = segment.position
            position, tail = world.producer.write_and_read(STOP, entity_id, {"count": number}, time_ns, after=after)
            seen += tail is not None
            segment.acquire_writer_lease()
            consumer.drain(tail)
            segment.release_writer_lease()
            assert segment.position >= position
        assert seen > 100
        assert rows_of(segment) == applied_anew(world, STOP)


def test_what_an_append_saw_is_not_relied_on_when_it_is_not_all(world: World, wipe: Callable[[], None]) -> None:
    with world.registry.create(STOP, capacity=64) as segment:
        consumer = WALConsumer(world.backend, [segment], registry=world.registry)
        segment.acquire_writer_lease()

        def written(entity_id: str, after: int) -> Any:
            return world.producer.write_and_read(STOP, entity_id, {"count": 1}, 1, after=after)[1]

        consumer.drain(written("a", segment.position))
        assert set(rows_of(segment)) == {"a", "position"}, "a segment that has followed no log yet"
        world.producer.write(STOP, "b", {"count": 1}, 1)
        consumer.drain(written("c", world.log.bounds().last))
        assert set(rows_of(segment)) == {"a", "b", "c", "position"}, "an entry lay between"
        old = written("d", segment.position)
        world.producer.write(STOP, "e", {"count": 1}, 1)
        consumer.drain()
        consumer.drain(old)
        assert segment.position == world.log.bounds().last, "somebody else was quicker"
        stale = written("f", segment.position)
        wipe()
        world.producer.write(STOP, "g", {"count": 1}, 1)
        consumer.drain()
        consumer.drain(stale)
        assert "g" in rows_of(segment)
        assert segment.position == world.log.bounds().last, "another log"


def test_a_wish_to_upgrade_is_fulfilled_whatever_an_append_saw(world: World) -> None:
    with world.registry.create(STOP, capacity=64) as segment:
        consumer = WALConsumer(world.backend, [segment], registry=world.registry)
        segment.acquire_writer_lease()
        world.producer.write(STOP, "a", {"count": 1}, 1)
        consumer.drain()
        wider = make_schema("Stop", [*STOP.fields, FeatureField("more", dtype.int64)], version=2)
        world.backend.control.put_schema("Stop", schema_to_json(wider))
        consumer.drain(world.producer.write_and_read(STOP, "b", {"count": 2}, 2, after=segment.position)[1])
        assert segment.stored_schema.version == 2
        assert world.rows("a", "b", schema=wider) == [{"count": 1, "more": None}, {"count": 2, "more": None}]


def test_a_called_writer_is_told_once(world: World) -> None:
    with world.registry.create(STOP, capacity=64) as segment, world.registry.open_current(STOP) as reader:
        view = segment.current_view()
        assert not view.answers_call()
        view.call_writer()
        assert reader.current_view().words[:] == view.words[:]
        assert view.answers_call()
        assert not view.answers_call()
        view.call_writer()
        with world.registry.open_current(STOP) as again:
            assert len(again) == 0, "a call does not make a segment look damaged"


def test_what_is_neither_schema_nor_segment_is_refused(world: World) -> None:
    for given_ in ([], ["Trip"], [TRIP, TRIP], [None]):
        with pytest.raises(SchemaError):
            WALConsumer(world.backend, given_, registry=world.registry)
    with world.registry.create(make_schema("Trip", list(TRIP.fields[:1])), capacity=10):
        with pytest.raises(SchemaMismatchError):
            world.drain()
        with pytest.raises(SchemaMismatchError):
            world.consumer().run()


# Any order, any repetition, the same rows

Write = tuple[str, int, Kind, float]
writes = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 4),
        st.sampled_from([Kind.upsert, Kind.upsert, Kind.delete]),
        st.integers(0, 99).map(float),
    ),
    max_size=12,
)


def payload_of(entries: list[Write]) -> bytes:
    """One record: deletes alone, or rows."""
    kind = entries[0][2]
    if kind is Kind.delete:
        times = pa.array([time_ for _, time_, _, _ in entries], pa.int64())
        batch = delete_batch([entity_id for entity_id, _, _, _ in entries], 0).set_column(1, "event_time_ns", times)
        return encode(kind, TRIP, batch)
    columns = {"entity_id": [e[0] for e in entries], "event_time_ns": [e[1] for e in entries]}
    batch = to_batch(TRIP, pa.table({**columns, "score": [e[3] for e in entries], "tag": [str(e[3]) for e in entries]}))
    return encode(kind, TRIP, batch)


def served(segment: Segment) -> dict[str, tuple[Any, ...]]:
    ids = sorted(entity_id for entity_id, _ in iterate_occupied(segment))
    return {r["entity_id"]: (r["event_time_ns"], r["score"], r["tag"]) for r in read(segment, ids).to_pylist()}


@settings(max_examples=30, deadline=None)
@given(data=st.data(), log=writes)
def test_any_order_and_repetition_converge(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, log: list[Write]
) -> None:
    """With distinct times for an entity (equal ones go by position), the newest wins however the entries arrive."""
    distinct = list({(entity_id, time_): entry for entry in log for entity_id, time_ in [entry[:2]]}.values())
    repeated = data.draw(st.lists(st.sampled_from(distinct), max_size=6)) if distinct else []
    arriving = data.draw(st.permutations(distinct + repeated))
    newest: dict[str, Write] = {}
    for entry in distinct:
        if entry[0] not in newest or newest[entry[0]][1] < entry[1]:
            newest[entry[0]] = entry
    base = tmp_path_factory.mktemp("converge")
    (base / "shm").mkdir()
    world = World(str(base / "store"), base / "shm")
    start = 0
    while start < len(arriving):
        end = start + 1
        while end < len(arriving) and arriving[end][2] is arriving[start][2] and data.draw(st.booleans()):
            end += 1
        world.append(TRIP, payload_of(arriving[start:end]))
        if data.draw(st.booleans()):
            world.drain(batch_entries=data.draw(st.integers(1, 4)))
        start = end
    world.drain()
    expected = {k: (t, score, str(score)) for k, (_, t, kind, score) in newest.items() if kind is Kind.upsert}
    with world.registry.open_current(TRIP, read_only=False) as segment:
        assert served(segment) == expected
        # A replay of the whole log, as after a crash, changes nothing.
        segment.commit_position(0, world.log.identity())
        segment.release_writer_lease()
        world.drain()
        assert served(segment) == expected
    world.backend.close()


# Poison


def test_poison_is_buried_and_good_rows_flow(world: World) -> None:
    good = [world.producer.write(TRIP, "a", row(1), 1)]
    other = make_schema("Elsewhere", list(TRIP.fields))
    narrow = make_schema("Trip", [FeatureField("score", dtype.string), FeatureField("tag", dtype.string)])
    payload = encode(Kind.upsert, TRIP, row_batch(TRIP, "x", row(1), 1))
    poison = {
        world.append(TRIP, b"garbage"): "begins with|at least",
        world.append(TRIP, payload[:-9]): "checksum",
        world.append(TRIP, encode(Kind.upsert, other, row_batch(other, "x", row(1), 1))): "'Elsewhere'",
        world.append(
            TRIP, encode(Kind.upsert, narrow, row_batch(narrow, "x", {"score": "1", "tag": "x"}, 1))
        ): "'score'",
    }
    good.append(world.producer.write(TRIP, "b", row(2), 1))
    before = metrics.dead_letters.labels("Trip").value
    assert world.drain() == 2
    assert world.rows("a", "b", "x") == [row(1.0), row(2.0), None]
    letters = world.log.dead_letters()
    assert [letter.position for letter in letters] == list(poison)
    for letter, reason in zip(letters, poison.values(), strict=True):
        assert re.search(reason, letter.reason), letter.reason
    assert letters[1].payload == payload[:-9]
    assert metrics.dead_letters.labels("Trip").value > before
    assert world.position() == good[1]


def test_rows_with_ids_over_the_segments_limit_are_buried_alone(world: World) -> None:
    ids = ["short", "é" * 9, "also short"]
    table = pa.table({"entity_id": ids, "score": [1.0, 2.0, 3.0], "tag": ["x"] * 3})
    world.producer.write(TRIP, "first", row(0), 5)
    position = world.producer.write_many(TRIP, table, event_time_ns=5)
    world.producer.write(TRIP, "y" * 17, row(0), 5)
    world.producer.write(TRIP, "last", row(9), 5)
    assert world.drain(max_id_bytes=16) == 4
    assert world.rows("short", "also short", "last") == [row(1.0, "x"), row(3.0, "x"), row(9.0)]
    letters = world.log.dead_letters()
    assert letters[0].position == position
    assert len(letters) == 2
    assert decode(letters[0].payload).batch["entity_id"].to_pylist() == ["é" * 9]
    assert "limit of 16 bytes" in letters[0].reason


PLAIN = make_schema("Plain", [FeatureField(code.name, code) for code in (dtype.bool, dtype.int64, dtype.float32)])
Number = tuple[str, int, Kind, int | None]
numbers = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "é", "ab", "the-longest-of-them"]),
        st.integers(0, 3),
        st.sampled_from([*[Kind.upsert] * 12, Kind.partial, Kind.delete]),
        st.integers(0, 99) | st.just(None),
    ),
    max_size=40,
)


def payload_of_number(entity_id: str, time_: int, kind: Kind, number: int | None) -> bytes:
    if kind is Kind.delete:
        return encode(kind, PLAIN, delete_batch([entity_id], time_))
    values: dict[str, Any] = {"int64": number}
    if kind is Kind.upsert:
        values |= {"bool": bool(time_ % 2), "float32": time_ / 3}
    return encode(kind, PLAIN, row_batch(PLAIN, entity_id, values, time_, partial=kind is Kind.partial))


@settings(max_examples=30, deadline=None)
@given(log=numbers, poison=st.sets(st.integers(0, 39), max_size=3), batch_entries=st.sampled_from([1, 5, 100]))
def test_single_rows_are_applied_as_their_batches_would_be(
    tmp_path_factory: pytest.TempPathFactory, log: list[Number], poison: set[int], batch_entries: int
) -> None:
    base = tmp_path_factory.mktemp("single")
    (base / "shm").mkdir()
    world = World(str(base / "store"), base / "shm")
    payloads = [payload_of_number(*entry) for entry in log]
    damaged = [p[:-1] + b"\xff" if number in poison else p for number, p in enumerate(payloads)]
    positions = [world.append(PLAIN, payload) for payload in damaged]
    history = Remembered()
    consumer = world.consumer(PLAIN, max_id_bytes=10, batch_entries=batch_entries, offline=history, trims=False)
    applied = consumer.drain()
    consumer.close()
    buried = [
        position
        for number, (position, entry) in enumerate(zip(positions, log, strict=True))
        if number in poison or entry[0] == "the-longest-of-them"
    ]
    assert [letter.position for letter in world.log.dead_letters()] == buried
    good = [(position, decode(p)) for position, p in zip(positions, payloads, strict=True) if position not in buried]
    with (
        world.registry.open_current(PLAIN) as segment,
        world.registry.create(PLAIN, capacity=50, set_current=False) as plainly,
    ):
        assert applied == sum(apply_batch(plainly, r.batch, position=at, kind=r.kind) for at, r in good)
        ids = ["a", "b", "é", "ab"]
        assert read(segment, ids).to_pylist() == read(plainly, ids).to_pylist()
        assert len(segment) == len(plainly)
        assert segment.position == (positions[-1] if positions else 0)
        world.registry.discard(plainly)
    expected = [{**row, "position": at} for at, record in good for row in record.batch.to_pylist()]
    assert history.rows == expected
    world.backend.close()


class Remembered(NoopOfflineWriter):
    """A history that remembers rows and positions."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def append(self, schema: Any, batch: pa.RecordBatch, positions: pa.Array, *, kind: Kind = Kind.upsert) -> None:  # noqa: ARG002
        self.rows += pa.Table.from_batches([batch]).append_column("position", positions).to_pylist()


# A log that is not what it was


def test_a_wiped_log_is_followed_anew_and_rows_stay(world: World, wipe: Callable[[], None]) -> None:
    world.producer.write(TRIP, "a", row(1), 1)
    world.producer.write(TRIP, "b", row(1), 1)
    world.drain()
    before = world.position()
    wipe()
    time.sleep(0.002)
    last = world.producer.write(TRIP, "b", row(2), 2)
    assert world.drain() == 1
    assert world.rows("a", "b") == [row(1.0), row(2.0)]
    assert world.position() == last > before
    with world.registry.open_current(TRIP) as segment:
        assert segment.log_identity == world.log.identity()


def test_a_running_consumer_notices_that_the_log_was_wiped(world: World, wipe: Callable[[], None]) -> None:
    consumer = world.consumer()
    thread = threading.Thread(target=consumer.run)
    thread.start()
    try:
        world.producer.write_sync(TRIP, "a", row(1), 1, timeout_ms=60_000)
        wipe()
        world.producer.write_sync(TRIP, "b", row(2), 2, timeout_ms=60_000)
    finally:
        consumer.stop()
        thread.join(60)
        consumer.close()
    assert world.rows("a", "b") == [row(1.0), row(2.0)]


def test_a_log_that_lost_its_tail_is_read_again(world: World) -> None:
    world.producer.write(TRIP, "a", row(1), 1)
    world.drain()
    with world.registry.open_current(TRIP, read_only=False) as segment:
        segment.commit_position(2**62, world.log.identity())
    last = world.producer.write(TRIP, "b", row(2), 1)
    before = metrics.reanchored.labels("Trip", "shorter").value
    world.drain()
    assert world.rows("a", "b") == [row(1.0), row(2.0)]
    assert world.position() == last
    assert metrics.reanchored.labels("Trip", "shorter").value == before + 1


def test_entries_trimmed_before_they_were_read_are_reported(world: World) -> None:
    world.producer.write(TRIP, "a", row(1), 1)
    world.drain()
    lost = world.producer.write(TRIP, "b", row(2), 1)
    world.producer.write(TRIP, "c", row(3), 1)
    world.log.trim(lost)
    before = metrics.reanchored.labels("Trip", "trimmed").value
    assert world.drain() == 1
    assert world.rows("a", "b", "c") == [row(1.0), None, row(3.0)]
    assert metrics.reanchored.labels("Trip", "trimmed").value == before + 1


def test_a_lost_segment_is_made_again_from_the_log(world: World) -> None:
    world.producer.write(TRIP, "a", row(1), 1)
    world.drain()
    for path in world.shm_dir.iterdir():
        path.unlink()
    assert world.drain() == 1
    assert world.rows("a") == [row(1.0)]


# History and trimming


class History:
    """An offline writer that remembers, and knows what is durable."""

    def __init__(self) -> None:
        self.appended: list[tuple[str, Kind, list[dict[str, Any]], list[int]]] = []
        self.durable = 0

    def append(self, schema: Any, batch: pa.RecordBatch, positions: pa.Array, *, kind: Kind = Kind.upsert) -> None:
        self.appended.append((schema.__name__, kind, batch.to_pylist(), positions.to_pylist()))

    def flush(self) -> None:
        self.durable = max((p for *_, positions in self.appended for p in positions), default=0)

    def flushed_position(self, schema: Any) -> int | None:  # noqa: ARG002 - the same for all
        return self.durable


def test_without_history_the_log_keeps_everything(world: World) -> None:
    world.producer.write(TRIP, "a", row(1), 1)
    world.drain()
    assert len(world.log.read(0).entries) == 1


def test_the_log_is_trimmed_behind_what_is_applied_and_durable(world: World) -> None:
    history: OfflineWriter = History()
    first = world.producer.write(TRIP, "a", row(1), 1)
    second = world.producer.delete(TRIP, "a", 2)
    world.drain(offline=history)
    assert isinstance(history, History)
    assert [(kind, positions) for _, kind, _, positions in history.appended] == [
        (Kind.upsert, [first]),
        (Kind.delete, [second]),
    ]
    assert world.log.bounds().first == 0
    assert world.log.bounds().trimmed == second


def test_what_was_applied_but_is_not_durable_goes_into_the_history_again(world: World) -> None:
    first = world.producer.write(TRIP, "a", row(1), 1)
    world.drain()
    history = History()
    world.drain(offline=history)
    assert [positions for *_, positions in history.appended] == [[first]]
    assert world.position() == first


def test_a_consumer_whose_schema_was_claimed_by_another_trims_no_more(world: World) -> None:
    options: dict[str, Any] = {
        "registry": world.registry,
        "offline": NoopOfflineWriter(),
        "flush_interval_seconds": 0.02,
    }
    consumer = WALConsumer(world.backend, [TRIP], **options)
    running = threading.Thread(target=consumer.run)
    running.start()
    try:
        world.producer.write_sync(TRIP, "a", row(1), timeout_ms=60_000)
        until(lambda: world.log.bounds().first == 0)
        world.log.claim(["Trip"], "another")
        kept = world.producer.write_sync(TRIP, "a", row(2), timeout_ms=60_000)
        world.producer.write_sync(TRIP, "a", row(3), timeout_ms=60_000)
        time.sleep(0.3)
        assert world.log.bounds().first == kept
    finally:
        consumer.stop()
        running.join()
        consumer.close()
    assert world.log.bounds().first == kept


def test_other_schemas_entries_are_not_trimmed(world: World) -> None:
    world.producer.write(TRIP, "a", row(1), 1)
    world.producer.write(STOP, "a", {"count": 1}, 1)
    world.drain(STOP)
    world.drain(TRIP, offline=NoopOfflineWriter())
    assert len(world.log.read(0).entries) == 2
    world.drain(TRIP, STOP, offline=NoopOfflineWriter())
    assert world.log.read(0).entries == []


def test_what_nobody_applies_is_kept_aside_before_it_is_trimmed(world: World) -> None:
    world.producer.write(TRIP, "a", row(1), 1)
    stray = world.producer.write(STOP, "a", {"count": 1}, 1)
    world.drain(TRIP, offline=NoopOfflineWriter())
    assert world.log.bounds().first == 0
    (letter,) = world.log.dead_letters()
    assert letter.position == stray
    assert "schema 'Stop' is unknown to the control plane" in letter.reason
    world.backend.control.put_schema("Stop", schema_to_json(STOP))
    replay(world.log, letter)
    assert world.drain(TRIP, STOP, offline=NoopOfflineWriter()) == 1
    assert world.rows("a", schema=STOP) == [{"count": 1}]
    assert world.log.dead_letters() == []


def test_history_is_flushed_by_rows(world: World) -> None:
    history = History()
    consumer = world.consumer(offline=history, flush_interval_seconds=3600, flush_rows=10)
    thread = threading.Thread(target=consumer.run)
    thread.start()
    try:
        ids = [f"id{i}" for i in range(10)]
        table = pa.table({"entity_id": ids, "score": [1.0] * 10, "tag": ["x"] * 10})
        position = world.producer.write_many(TRIP, table)
        until(lambda: history.durable == position)
    finally:
        consumer.stop()
        thread.join(60)
        consumer.close()


# Running


def test_the_control_plane_s_schemas_are_followed(world: World) -> None:
    consumer = WALConsumer(world.backend, None, registry=world.registry)
    thread = threading.Thread(target=consumer.run)
    thread.start()

    def served(schema: Any, count: int) -> bool:
        try:
            with world.registry.open_current(schema) as segment:
                return len(segment) == count
        except (SegmentNotFoundError, SchemaMismatchError):
            return False

    try:
        world.backend.control.put_schema("Broken", "no JSON")
        for schema, values in ((TRIP, row(1)), (STOP, {"count": 5})):
            world.producer.write(schema, "a", values, 1)
            world.backend.control.put_schema(schema.__name__, schema_to_json(schema))
            until(lambda schema=schema: served(schema, 1))
        changed = make_schema(
            "Stop", [FeatureField("count", dtype.int64), FeatureField("more", dtype.int64)], version=2
        )
        world.backend.control.drop_schema("Stop")
        until(lambda: "Stop" not in {target.schema.__name__ for target in consumer._ownership.targets})
        with world.registry.open_current(STOP, read_only=False) as segment:
            world.registry.discard(segment)
        world.producer.write(changed, "b", {"count": 6, "more": 7}, 1)
        world.backend.control.put_schema("Stop", schema_to_json(changed))
        until(lambda: served(changed, 2))
        assert world.rows("a", "b", schema=changed) == [{"count": 5, "more": None}, {"count": 6, "more": 7}]
    finally:
        consumer.stop()
        thread.join(60)
        consumer.close()


def test_run_applies_until_it_is_stopped(world: World) -> None:
    consumer = world.consumer(offline=NoopOfflineWriter(), flush_interval_seconds=0.05)
    thread = threading.Thread(target=consumer.run)
    thread.start()
    for number in range(20):
        world.producer.write_sync(TRIP, "a", row(number), number, timeout_ms=60_000)
        assert world.rows("a") == [row(float(number))]
    with pytest.raises(WriterLeaseHeldError, match="running already"):
        consumer.drain()
    with pytest.raises(WriterLeaseHeldError):
        world.drain()
    until(lambda: world.log.bounds().first == 0)
    consumer.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert world.drain() == 0
    consumer.close()


def test_run_async_stops_when_it_is_cancelled(world: World) -> None:
    async def main() -> None:
        consumer = world.consumer()
        task = asyncio.create_task(consumer.run_async())
        await asyncio.to_thread(world.producer.write_sync, TRIP, "a", row(1), 1, timeout_ms=60_000)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        consumer.close()

    asyncio.run(main())
    assert world.drain() == 0


def test_a_new_segment_in_the_same_process_is_filled_from_the_log(world: World) -> None:
    consumer = world.consumer()
    thread = threading.Thread(target=consumer.run)
    thread.start()
    try:
        world.producer.write_sync(TRIP, "a", row(1), 1, timeout_ms=60_000)
        created = world.registry.create(TRIP, capacity=10)
        created.close()
        world.producer.write_sync(TRIP, "b", row(2), 2, timeout_ms=60_000)
        until(lambda: world.rows("a", "b") == [row(1.0), row(2.0)])
    finally:
        consumer.stop()
        thread.join(60)
        consumer.close()


def consume(connection: str, shm_dir: str) -> None:
    backend = connect(connection)
    WALConsumer(backend, [TRIP], registry=SegmentRegistry(backend, shm_dir=shm_dir), batch_entries=2).run()


def start_consumer(world: World) -> Any:
    process = spawn.Process(target=consume, args=(world.connection, str(world.shm_dir)), daemon=True)
    process.start()
    return process


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)


def produce(connection: str, worker: int, rounds: int, acknowledged: Any) -> None:
    producer = WALProducer(connection)
    for number in range(rounds):
        ids = [f"w{worker}-{i}" for i in range(50)]
        table = pa.table({"entity_id": ids, "score": [float(number)] * 50, "tag": [None] * 50})
        acknowledged.put((worker, number, producer.write_many(TRIP, table, event_time_ns=number)))
        time.sleep(0.005)
    producer.close()


def test_killed_consumers_leave_every_acknowledged_row_served(world: World) -> None:
    acknowledged = spawn.Queue()
    producers = [spawn.Process(target=produce, args=(world.connection, w, 40, acknowledged)) for w in range(2)]
    consumer = start_consumer(world)
    for producer in producers:
        producer.start()
    told = [acknowledged.get(timeout=60)]
    for _ in range(4):
        told += [acknowledged.get(timeout=60) for _ in range(12)]
        kill(consumer)
        consumer = start_consumer(world)
    for producer in producers:
        producer.join(60)
        assert producer.exitcode == 0
    while len(told) < 80:
        told.append(acknowledged.get(timeout=60))
    world.producer.wait(TRIP, max(position for _, _, position in told), timeout_ms=60_000)
    for worker in range(2):
        assert world.rows(*[f"w{worker}-{i}" for i in range(50)]) == [row(39.0, None)] * 50
    kill(consumer)
    assert world.drain() == 0
    assert world.log.dead_letters() == []


def test_a_second_consumer_takes_over_within_a_second(world: World) -> None:
    first = start_consumer(world)
    world.producer.write_sync(TRIP, "a", row(1), 1, timeout_ms=60_000)
    second = start_consumer(world)
    time.sleep(1.0)
    world.producer.write_sync(TRIP, "a", row(2), 2, timeout_ms=60_000)
    kill(first)
    position = world.producer.write(TRIP, "a", row(3), 3)
    world.producer.wait(TRIP, position, timeout_ms=60_000)
    assert world.rows("a") == [row(3.0)]
    kill(second)


def test_a_consumer_lives_through_a_restart_of_redis(tmp_path: Path) -> None:
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    world = World(server.url, tmp_path)
    consumer = world.consumer()
    thread = threading.Thread(target=consumer.run)
    thread.start()
    try:
        world.producer.write_sync(TRIP, "a", row(1), 1, timeout_ms=60_000)
        with world.registry.open_current(TRIP) as segment:
            server.kill()
            time.sleep(0.3)
            assert read(segment, ["a"])["score"].to_pylist() == [1.0]
            server.start()
        world.producer.write_sync(TRIP, "b", row(2), 2, timeout_ms=60_000)
        assert world.rows("a", "b") == [row(1.0), row(2.0)]
    finally:
        consumer.stop()
        thread.join(60)
        consumer.close()
        world.backend.close()
        server.stop()
