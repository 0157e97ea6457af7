"""Drain: what is in the log is served, in whatever order it came."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorin.assembly import read
from quorin.engine.log.record import Kind, encode
from quorin.engine.rows.batch import delete_batch, to_batch
from quorin.layout import iterate_occupied
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import Segment
from tests.support.world import STOP, TRIP, World, row


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
