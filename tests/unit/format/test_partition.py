"""The partition of an id, what a node holds of how many, and how a share is computed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorin.engine.format.hashing import hash_bytes
from quorin.engine.format.partition import MAX_PARTITIONS, Partitioning, check_count, partition_of, ranges, share
from quorin.errors import PartitionCountError

COUNTS = [1 << bits for bits in range(9)]


@given(st.text(min_size=1))
@settings(max_examples=50)
def test_a_partition_is_the_top_bits_of_the_pinned_hash(entity_id: str) -> None:
    for count in COUNTS:
        partition = partition_of(entity_id, count)
        assert partition == hash_bytes(entity_id.encode()) * count >> 64 == partition_of(entity_id.encode(), count)


@given(st.text(min_size=1))
def test_of_twice_as_many_a_partition_becomes_two_neighbours(entity_id: str) -> None:
    for count in COUNTS[:-1]:
        assert partition_of(entity_id, 2 * count) >> 1 == partition_of(entity_id, count)


def test_partitions_of_known_ids_never_change() -> None:
    """What is in a log stays findable: these are part of the format."""
    assert [partition_of(entity_id, 256) for entity_id in ("driver_1001", "1", "é", "x" * 40)] == [224, 138, 187, 181]


def test_entities_are_spread_evenly() -> None:
    held = [partition_of(f"driver_{number}", 16) for number in range(16_000)]
    assert all(850 < held.count(partition) < 1150 for partition in range(16))


@pytest.mark.parametrize("count", [0, -1, 3, 12, 255, 512, True, 2.0, "4", None])
def test_other_numbers_of_partitions_are_refused(count: object) -> None:
    with pytest.raises(PartitionCountError, match=f"expected a power of two from 1 to {MAX_PARTITIONS}, got "):
        check_count(count)  # type: ignore[arg-type]
    assert [check_count(count) for count in COUNTS] == COUNTS


def test_what_a_node_holds_is_a_text_and_a_set() -> None:
    some = Partitioning.parse("0-3,9", 16)
    assert (some.count, some.held, some.is_partial, str(some)) == (16, {0, 1, 2, 3, 9}, True, "0-3,9 of 16")
    assert Partitioning.parse("3", 4).held == {3}
    assert Partitioning.parse("0-15", 16) == Partitioning.all(16)
    assert not Partitioning.all(16).is_partial
    assert Partitioning() == Partitioning.all(1) == Partitioning.parse("0", 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected partitions such as '0-7', '0-3,9' or '0-7/16', got ''"),
        ("all", "got 'all'"),
        ("1,", "got '1,'"),
        ("-1", "got '-1'"),
        ("٣", "got '٣'"),
        ("7-3", "'7-3': expected '7-3' the other way round"),
        ("0-16", "'0-16': the deployment has 16, expected numbers up to 15"),
    ],
)
def test_a_text_that_names_no_partitions_is_refused(text: str, reason: str) -> None:
    with pytest.raises(PartitionCountError) as caught:
        Partitioning.parse(text, 16)
    assert reason in str(caught.value)


def test_a_node_holds_something_that_there_is() -> None:
    for held in (frozenset[int](), frozenset({4}), frozenset({-1})):
        with pytest.raises(PartitionCountError, match="expected at least one, each below 4"):
            Partitioning(4, held)


@given(st.sampled_from(COUNTS), st.data())
def test_shares_are_contiguous_disjoint_and_alike(count: int, data: st.DataObject) -> None:
    of = data.draw(st.integers(1, count))
    shares = [share(ordinal, of, count) for ordinal in range(of)]
    assert sorted(partition for part in shares for partition in part) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all("," not in ranges(part) for part in shares)


def test_a_share_that_there_is_not_is_refused() -> None:
    with pytest.raises(PartitionCountError, match="ordinal 3: expected a number from 0 to 2"):
        share(3, 3, 16)
    with pytest.raises(PartitionCountError, match="5 nodes for 4 partitions: expected at most one node for each"):
        share(0, 5, 4)


@given(st.frozensets(st.integers(0, 255), min_size=1))
def test_ranges_are_read_as_they_are_written(held: frozenset[int]) -> None:
    assert Partitioning.parse(ranges(held), 256).held == held
