"""Entries that cannot be applied become dead letters, and single rows are applied as their batches would be."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorin import metrics
from quorin.assembly import read
from quorin.engine.log.record import Kind, decode, encode
from quorin.engine.rows.batch import delete_batch, row_batch
from quorin.layout import apply_batch
from quorin.schema import FeatureField, dtype, make_schema, schema_to_json
from quorin.wal_consumer import NoopOfflineWriter
from tests.support.world import TRIP, World, row


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


def test_no_rows_wait_until_pandas_is_loaded(world: World) -> None:
    """Arrow loads pandas with the first array of Python's or NumPy's values, in half a second of that thread."""
    wide = make_schema(
        "Wide",
        [
            *TRIP.fields,
            FeatureField("vector", dtype.float32, shape=(2,)),
            FeatureField("list", dtype.int64, shape=(None,)),
        ],
    )
    values = {"vector": [1.0, 2.0], "list": [1, 2]}
    rows = [row(number, None) | values for number in range(20)]
    table = pa.Table.from_pylist([{"entity_id": f"e{number}", **rows[number]} for number in range(20)])
    for schema in (TRIP, wide):
        names = [field.name for field in schema.fields]
        world.backend.control.put_schema(schema.__name__, schema_to_json(schema))
        world.producer.write_many(schema, table.select(["entity_id", *names]))
        for number in range(20):
            world.producer.write(schema, f"e{number}", {name: rows[number][name] for name in names})
            world.producer.write(schema, f"e{number}", {"score": 2.0}, partial=True)
        world.producer.delete(schema, "e1")
        world.append(schema, b"garbage")
    world.producer.write(TRIP, "alone", row(1))
    code = (
        "import sys; from quorin.shm import SegmentRegistry; from quorin.wal_consumer import WALConsumer; "
        "registry = SegmentRegistry(sys.argv[1], shm_dir=sys.argv[2]); "
        "applied = WALConsumer(registry.backend, None, registry=registry).drain(); "
        "print(applied, 'pandas' in sys.modules)"
    )
    command = [sys.executable, "-c", code, world.connection, str(world.shm_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split() == [str(2 * (20 + 20 + 20 + 1) + 1), "False"], done.stderr
