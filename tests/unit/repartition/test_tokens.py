"""Tokens of before a growth: a node that has gone over knows the closed logs, and up to where it applied them."""

from __future__ import annotations

from pathlib import Path

import pytest

from quorin import assembly, serving
from quorin.engine.bootstrap.image import copied
from quorin.engine.format.partition import MAX_PARTITIONS, Partitioning, partition_of
from quorin.engine.log.token import Token
from quorin.engine.memory.closed import ClosedLog, closed_log
from quorin.engine.memory.growth import grow as enlarge
from quorin.engine.memory.growth import repartition
from quorin.errors import NotYetAppliedError, TokenError
from quorin.shm import SegmentRegistry
from tests.support.world import TRIP, World, row
from tests.unit.repartition.test_growing import drained, grow

IDS = [f"e{number}" for number in range(40)]


def changed(registry: SegmentRegistry, since: Token) -> dict[str, float | None]:
    """What changed since, by both implementations."""
    with registry.open_current(TRIP) as segment:
        found = assembly.changed_since(segment, since)
        rows = found.batches.read_all().to_pylist()
        oracle = serving.changed_since(segment, since)
        assert sorted(oracle.batches.read_all().to_pylist(), key=str) == sorted(rows, key=str)
        assert oracle.through == found.through == segment.applied()
    return {one["entity_id"]: None if one["deleted"] else one["score"] for one in rows}


def test_a_token_of_before_holds_after_each_growth(world: World) -> None:
    tokens = []
    for number, count in enumerate((1, 2, 4, 8)):
        if count > 1:
            grow(world, count)
        tokens.append(write(world, IDS, float(number)))
    world.drain()
    with world.registry.open_current(TRIP) as segment:
        assert segment.partitioning.count == 8
        for token in (*tokens, Token.covering(*tokens)):
            assert assembly.has_applied(segment, token)
            world.producer.wait(TRIP, token, timeout_ms=0)
            read = assembly.read(segment, IDS, at_least=token.text, timeout_ms=0)
            assert read.column("score").to_pylist() == [3.0] * 40


def write(world: World, ids: list[str], score: float) -> Token:
    rows = {"entity_id": ids, "score": [score] * len(ids), "tag": ["t"] * len(ids)}
    return world.producer.write_many(TRIP, rows)


def test_changes_since_a_token_of_before_are_those_of_both_numbers(world: World) -> None:
    write(world, IDS, 1)
    first = world.producer.write(TRIP, IDS[0], row(2))
    world.producer.write(TRIP, IDS[1], row(3))
    world.producer.delete(TRIP, IDS[2])
    grow(world, 2)
    write(world, IDS[3:6], 4)
    grow(world, 4)
    write(world, IDS[5:9], 5)
    world.drain()
    expected = {IDS[1]: 3.0, IDS[2]: None} | dict.fromkeys(IDS[3:5], 4.0) | dict.fromkeys(IDS[5:9], 5.0)
    assert changed(world.registry, first) == expected
    later = world.producer.write(TRIP, IDS[30], row(6))
    world.drain()
    since = Token.covering(first, later)
    partition = partition_of(IDS[30], 4)
    assert changed(world.registry, since) == {
        entity: score for entity, score in expected.items() if partition_of(entity, 4) != partition
    }


def test_a_node_that_has_not_gone_over_is_late_for_tokens_of_after_and_keeps_those_of_before(world: World) -> None:
    before = write(world, IDS, 1)
    world.drain()
    grow(world, 2)
    after = write(world, IDS, 2)
    with world.registry.open_current(TRIP) as segment:
        assert assembly.has_applied(segment, before)
        assert not assembly.has_applied(segment, after)
    world.drain()
    with world.registry.open_current(TRIP) as segment:
        assert assembly.has_applied(segment, Token.covering(before, after))


def test_a_node_of_some_partitions_waits_for_those_that_it_holds(world: World) -> None:
    world.backend.settle_partitions(2)
    before = write(world, IDS, 1)
    low, high = drained(world, "low", "0/2"), drained(world, "high", "1/2")
    grow(world, 4)
    after = write(world, IDS[:20], 2)
    low, high = drained(world, "low", "0/2"), drained(world, "high", "1/2")
    for registry, parts in ((low, (0, 1)), (high, (2, 3))):
        with registry.open_current(TRIP) as segment:
            assert segment.partitioning == Partitioning(4, frozenset(parts))
            assert assembly.has_applied(segment, before)
            closed = [closed_log(segment.current_view(), identity) for identity, _ in before.parts]
            held = [one for one in closed if one is not None and one.partitions]
            assert [one.partitions for one in held] == [parts]
        wanted = [one for one in IDS if partition_of(one, 4) in parts]
        assert changed(registry, before) == {one: 2.0 for one in IDS[:20] if one in wanted}
        assert changed(registry, Token.covering(before, after)) == {}


def test_the_end_of_a_closed_log_is_kept_by_later_generations_and_copies(world: World, tmp_path: Path) -> None:
    token = write(world, IDS, 1)
    grow(world, 2)
    world.drain()
    with world.registry.open_current(TRIP, read_only=False) as segment:
        segment.acquire_writer_lease()
        enlarge(segment, rows=True, heap_bytes=0)
        assert assembly.has_applied(segment, token)
    with world.registry.open_current(TRIP) as segment:
        assert assembly.has_applied(segment, token)
        ((identity, position),) = token.parts
        assert closed_log(copied(segment.current_view(), tmp_path), identity) == ClosedLog(position, (0, 1))


def test_other_logs_are_refused_as_before(world: World) -> None:
    token = write(world, IDS, 1)
    grow(world, 2)
    world.drain()
    ((identity, position),) = token.parts
    for other, reason in (
        (Token((identity + 1, position)), "is of another log"),
        (Token((identity, position + 1)), "is behind the end of a log that was closed"),
        (Token.covering(token, Token((7, position))), "is of another log"),
    ):
        with world.registry.open_current(TRIP) as segment:
            with pytest.raises(TokenError, match=reason):
                assembly.has_applied(segment, other)
            with pytest.raises(TokenError, match=r"is of another log"):
                assembly.changed_since(segment, other)
    late = world.producer.write(TRIP, IDS[0], row(9))
    with world.registry.open_current(TRIP) as segment, pytest.raises(NotYetAppliedError):
        assembly.read(segment, IDS, at_least=Token.covering(token, late), timeout_ms=1)


def test_a_segment_of_256_partitions_knows_the_newest_closed_logs(world: World) -> None:
    world.backend.settle_partitions(1)
    world.registry.create(TRIP, capacity=4).close()
    with world.registry.open_current(TRIP, read_only=False) as segment:
        segment.acquire_writer_lease()
        segment.commit_position(5, 1000)
        count = 1
        while count < MAX_PARTITIONS:
            count *= 2
            logs = [1000 * count + partition for partition in range(count)]
            repartition(segment, Partitioning.all(count), logs, 10 * count)
            view = segment.current_view()
            assert closed_log(view, 77) is None
            for former in (2**power for power in range(count.bit_length() - 1)):
                for partition in range(former):
                    times = count // former
                    own = tuple(range(partition * times, (partition + 1) * times))
                    expected = ClosedLog(5 if former == 1 else 10 * former, own)
                    known = count < MAX_PARTITIONS or former + partition >= 56
                    assert closed_log(view, 1000 * former + partition) == (expected if known else None)
