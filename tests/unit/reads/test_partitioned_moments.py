"""Rows of several segments at one position of each partition's log; see also ``test_together.py``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from quorin import assembly, layout
from quorin.engine.format.partition import partition_of
from quorin.engine.memory.pauses import Pauses
from quorin.engine.reads.together import Together
from quorin.errors import InconsistentReadError, NotHeldError, TokenError
from quorin.inline_consumer import InlineConsumer
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import Segment
from quorin.wal import Token
from quorin.wal_consumer import WALConsumer
from tests.support.partition_nodes import COUNT, PartitionNode, new_nodes
from tests.support.world import until

Left = make_schema("Left", [FeatureField("n", dtype.int64)])
Right = make_schema("Right", [FeatureField("n", dtype.int64)])
SCHEMAS = [Left, Right]
IDS = [f"id{i}" for i in range(20)]
PARTITIONS = np.array([partition_of(one, COUNT) for one in IDS])


class Node(PartitionNode):
    schemas = SCHEMAS

    def write(self, schema: Any, value: int, ids: list[str] = IDS) -> Token:
        columns = {"entity_id": ids, "event_time_ns": [value] * len(ids), "n": [value] * len(ids)}
        return self.producer.write_many(schema, pa.table(columns))

    def consumer(self, *schemas: Any, **options: Any) -> WALConsumer:
        return super().consumer(*schemas, capacity=64, **options)

    def open(self) -> list[Segment]:
        return [self.registry.open_current(schema) for schema in SCHEMAS]


@pytest.fixture
def new_node(connection: str, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    with new_nodes(Node, connection, tmp_path) as new:
        yield new


def parts(segments: list[Segment], ids: list[str] = IDS) -> list[Any]:
    return [(segment, ids, ["n"]) for segment in segments]


def values(found: Together) -> list[list[int | None]]:
    return [batch.column("n").to_pylist() for batch in found.batches]


def test_the_position_of_an_answer_is_a_token(new_node: Callable[..., Node]) -> None:
    node = new_node()
    tokens = [node.write(schema, 1) for schema in SCHEMAS]
    node.drain()
    segments = node.open()
    found = assembly.read_together(parts(segments))
    assert values(found) == [[1] * 20, [1] * 20]
    assert isinstance(found.position, Token)
    assert dict(found.position.parts) == dict(Token.covering(*tokens).parts) == dict(segments[0].applied().parts)
    for segment in segments:
        assert assembly.has_applied(segment, found.position)
        assert assembly.changed_since(segment, found.position).batches.read_all().num_rows == 0


@pytest.mark.parametrize("deletes", [False, True])
def test_what_is_ahead_in_a_partition_is_refused_by_name(new_node: Callable[..., Node], deletes: bool) -> None:
    node = new_node()
    for schema in SCHEMAS:
        node.write(schema, 1)
    node.drain()
    segments = node.open()
    before = assembly.read_together(parts(segments)).position
    if deletes:
        node.producer.delete(Left, "id3", event_time_ns=5)
    else:
        node.write(Left, 2, ["id3"])
    node.drain(Left)  # Right stays behind.
    partition = partition_of("id3", COUNT)
    with pytest.raises(InconsistentReadError, match=rf"log of partition {partition}: 'quorin_Left") as late:
        assembly.read_together(parts(segments), timeout_ms=5)
    assert "the row of id3 is after position" in str(late.value)
    assert str(late.value).endswith(f"of partition {partition}")
    others = [one for one in IDS if one != "id3"]
    found = assembly.read_together(parts(segments, others))
    assert (values(found), found.position) == ([[1] * 19, [1] * 19], before)
    node.drain(Right)
    assert values(assembly.read_together(parts(segments)))[0][2:5] == [1, None if deletes else 2, 1]


def test_every_reader_refuses_rows_after_a_token(new_node: Callable[..., Node]) -> None:
    node = new_node()
    for schema in SCHEMAS:
        node.write(schema, 1)
    node.drain()
    segments = node.open()
    token = segments[0].applied()
    node.write(Left, 2, ["id3"])
    node.drain()
    columns, vectors = assembly.column_reader(segments[0], ["n"]), assembly.reader(segments[0])
    rows = assembly.row_reader([(segment, ["n"]) for segment in segments])
    for read in (columns, vectors.batch):
        with pytest.raises(InconsistentReadError, match=f"of id3 is after .* of partition {PARTITIONS[3]}$"):
            read(["id3"], at_most=token)
    assert rows("id3", at_most=token) is None
    for one in {*IDS} - {"id3"}:
        assert columns([one], at_most=token).values(0).tolist() == [1]
        assert vectors.batch([one], at_most=token)[0].tolist() == [[1]]
        found = rows(one, at_most=token)
        assert found is not None
        assert found.values[0] is not None
    assert columns(["id3"], at_most=segments[0].applied()).values(0).tolist() == [2]
    # What a token has no position of counts up to none.
    lacking = Token(*(part for i, part in enumerate(token.parts) if i != PARTITIONS[0]))
    with pytest.raises(InconsistentReadError, match=f"of id0 is after position 0 of partition {PARTITIONS[0]}"):
        columns(["id0"], at_most=lacking)
    with pytest.raises(TokenError, match="got 5"):
        columns(["id0"], at_most=5)


def test_segments_with_appliers_of_their_own_reach_one_position(new_node: Callable[..., Node]) -> None:
    node = new_node()
    node.drain()
    consumers = [InlineConsumer(node.registry, schema.__name__) for schema in SCHEMAS]
    for schema, consumer in zip(SCHEMAS, consumers, strict=True):
        node.write(schema, 1)
        consumer.drain()
    node.write(Left, 2)  # Not applied by anybody.
    segments = node.open()
    found = assembly.read_together(
        parts(segments), reach=lambda index, position: consumers[index].reach(position), timeout_ms=10_000
    )
    assert values(found) == [[2] * 20, [1] * 20]
    for schema in SCHEMAS:
        node.write(schema, 3)
    consumers[0].drain()
    other = InlineConsumer(node.registry, "Right")
    with consumers[1].writer():  # Another process applies what Right lacks.
        assert other.reach(found.position) == 0
        with pytest.raises(InconsistentReadError, match="of partition"):
            assembly.read_together(parts(segments), reach=lambda _, position: other.reach(position), timeout_ms=20)


def test_partitions_without_an_entry_count_as_read(new_node: Callable[..., Node]) -> None:
    """Neither a log that nobody has written to, nor one with entries of one schema only, keeps an answer back."""
    node = new_node()
    node.drain()
    node.write(Left, 1, ["id3"])
    node.drain()
    segments = node.open()
    found = assembly.read_together(parts(segments, ["id3", *IDS]), timeout_ms=10_000)
    assert values(found) == [[1, None, None, None, 1, *[None] * 16], [None] * 21]
    assert found.position == segments[0].applied()
    assert len(segments[0].applied().parts) == 1


def test_what_is_not_held_is_refused(new_node: Callable[..., Node]) -> None:
    node, half = new_node(), new_node("0-1")
    for schema in SCHEMAS:
        node.write(schema, 1)
    half.drain()
    segments = half.open()
    held = [one for one in IDS if partition_of(one, COUNT) < 2]
    found = assembly.read_together(parts(segments, held))
    assert values(found) == [[1] * len(held)] * 2
    with pytest.raises(NotHeldError) as refused:
        assembly.read_together(parts(segments))
    assert refused.value.partition == next(partition_of(one, COUNT) for one in IDS if one not in held)
    other = new_node("1-2")
    other.drain()
    with pytest.raises(InconsistentReadError, match=r"hold different partitions: .* 0-1 of 4, .* 1-2 of 4"):
        assembly.read_together([(segments[0], held), (other.open()[1], held)], timeout_ms=5)


def test_a_generation_that_forgot_a_deletion_is_refused_by_partition(new_node: Callable[..., Node]) -> None:
    node = new_node()
    for schema in SCHEMAS:
        node.write(schema, 1)
    node.drain()
    node.producer.delete(Left, "id3", event_time_ns=2)
    node.drain(Left)
    with node.registry.open_current(Left, read_only=False) as writer:
        layout.insert_many(writer, pa.table({"entity_id": [f"more{i}" for i in range(2000)], "n": [0] * 2000}))
    since = rf"knows only its rows since position \d+ of partition {PARTITIONS[3]}$"
    with pytest.raises(InconsistentReadError, match=since):
        assembly.read_together(parts(node.open(), ["id0"]), timeout_ms=5)
    node.drain()
    assert values(assembly.read_together(parts(node.open(), ["id0", "id3"]))) == [[1, None], [1, 1]]


def test_lanes_pause_together(new_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """Or readers that ask all the time would take the share of one lane from each of them."""
    node, take = new_node(), Pauses.take
    taking: list[Pauses] = []

    def noted(pauses: Pauses, segments: Any) -> None:
        taking.append(pauses)
        take(pauses, segments)

    monkeypatch.setattr(Pauses, "take", noted)
    node.write(Left, 1)
    node.drain()
    assert len(taking) == COUNT
    assert all(pauses is taking[0] for pauses in taking)


def test_a_consumer_at_full_speed_starves_no_read(new_node: Callable[..., Node]) -> None:
    """Every entry rewrites all rows of its partition; those of both schemas take turns: Left is at most one ahead."""
    node = new_node()
    for schema in SCHEMAS:
        node.write(schema, 1)
    consumer = node.consumer(batch_entries=64)
    consumer.drain()
    segments = node.open()
    stop = threading.Event()

    def write() -> None:
        value = 1
        while not stop.is_set():
            value += 1
            for schema in SCHEMAS:
                node.write(schema, value)

    threads = [threading.Thread(target=write), threading.Thread(target=consumer.run)]
    for thread in threads:
        thread.start()
    last = np.zeros(len(IDS), np.int64)
    try:

        def one_answer() -> bool:
            nonlocal last
            found = assembly.read_together(parts(segments), timeout_ms=30_000)
            left, right = (np.array(column) for column in values(found))
            assert (right <= left).all()
            assert (left <= right + 1).all()
            assert (left >= last).all()
            for partition in range(COUNT):
                assert len({*left[partition == PARTITIONS].tolist()}) == 1
                assert len({*right[partition == PARTITIONS].tolist()}) == 1
            last = left
            return bool(last.min() >= 20)

        until(one_answer)
    finally:
        stop.set()
        consumer.stop()
        for thread in threads:
            thread.join()
        consumer.close()
