"""Segments of several partitions: a position for each that is held, and tokens over them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quorin import assembly, layout
from quorin.cli import app
from quorin.engine.format import segment as fmt
from quorin.engine.format.partition import Partitioning, partition_of
from quorin.engine.memory.file import read_header
from quorin.errors import NotHeldError, NotYetAppliedError, PartitionedError, TokenError
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import Segment, SegmentRegistry
from quorin.wal import Token

Clicks = make_schema("PartsClicks", [FeatureField(name, dtype.float32) for name in "ab"])
COUNT, HELD = 16, frozenset(range(8))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[SegmentRegistry]:
    registry = SegmentRegistry(tmp_path, shm_dir=tmp_path)
    registry.partitioning = Partitioning(COUNT, HELD)
    yield registry
    registry.backend.close()


@pytest.fixture
def segment(registry: SegmentRegistry) -> Iterator[Segment]:
    with registry.create(Clicks, capacity=100) as segment:
        yield segment


def test_each_held_partition_has_a_position(registry: SegmentRegistry, segment: Segment) -> None:
    assert segment.applied() == Token()
    segment.part(3).commit_position(70, 0xC0FFEE)
    segment.part(7).commit_position(90, 0xBEEF)
    with registry.open_current(Clicks) as opened:
        assert opened.partitioning == Partitioning(COUNT, HELD)
        assert (opened.part(3).position, opened.part(3).log_identity) == (70, 0xC0FFEE)
        assert (opened.part(0).position, opened.part(0).log_identity) == (0, 0)
        assert opened.applied().parts == ((0xC0FFEE, 70), (0xBEEF, 90))
        assert (opened.position, opened.log_identity) == (90, 0)
        assert [part.partition for part in opened.parts()] == list(range(8))
        assert opened.stats()["held_partitions"] == "0-7"
        assert opened.stats()["positions"] == dict.fromkeys(range(8), 0) | {3: 70, 7: 90}


def test_a_partition_that_is_not_held_is_refused(segment: Segment) -> None:
    with pytest.raises(NotHeldError, match="partition 8 of 'PartsClicks' is not held"):
        segment.part(8)


@pytest.mark.parametrize("call", [lambda s: s.commit_position(1, 2), lambda s: s.confirm(1)])
def test_a_position_of_all_is_refused(segment: Segment, call: object) -> None:
    with pytest.raises(PartitionedError, match=r"16, each with a position of its own"):
        call(segment)  # type: ignore[operator]


def test_the_age_is_that_of_the_oldest_partition(segment: Segment) -> None:
    now = time.time_ns()
    for part in segment.parts():
        part.confirm(now)
    segment.part(5).confirm(now - 100 * 10**9)
    assert 100 <= segment.confirmed_age_seconds() < 160
    assert segment.part(4).confirmed_age_seconds() < 60
    segment.part(2).confirm(0)
    assert segment.confirmed_age_seconds() == math.inf


def test_a_token_is_applied_when_each_held_part_is(segment: Segment) -> None:
    segment.part(3).commit_position(70, 30)
    segment.part(7).commit_position(90, 70)
    segment.know_log(9, 90)
    assert assembly.has_applied(segment, Token((30, 70)))
    assert assembly.has_applied(segment, Token((30, 70), (70, 90), (90, 1000)))
    assert not assembly.has_applied(segment, Token((30, 71), (70, 90)))
    assert not assembly.has_applied(segment, Token((30, 70), (70, 91)))
    assert not assembly.has_applied(segment, Token((12345, 1)))
    with pytest.raises(NotYetAppliedError) as caught:
        assembly.wait_for(segment, Token((70, 90), (30, 75)), timeout_ms=1)
    assert (caught.value.position, caught.value.applied) == (75, 70)


def test_a_token_of_no_partitions_log_is_refused_once_all_are_known(segment: Segment) -> None:
    for part in segment.parts():
        part.commit_position(100 + part.partition, 1 + part.partition)
    for partition in range(8, COUNT):
        segment.know_log(partition, 1 + partition)
    with pytest.raises(TokenError, match="those of 16 partitions"):
        assembly.has_applied(segment, Token((500, 100)))
    assert not assembly.has_applied(segment, Token((500, 101)))
    with pytest.raises(TokenError):
        assembly.wait_for(segment, Token((500, 101)), timeout_ms=1)
    with pytest.raises(NotYetAppliedError):
        assembly.wait_for(segment, Token((1, 101)), timeout_ms=1)


def test_a_known_log_says_nothing_of_held_partitions(segment: Segment) -> None:
    segment.part(3).commit_position(70, 30)
    segment.know_log(3, 31)
    segment.know_log(COUNT, 32)
    assert segment.part(3).log_identity == 30
    assert segment.applied() == Token((30, 70))


def test_another_log_of_a_partition_begins_at_0(segment: Segment) -> None:
    segment.part(3).commit_position(70, 30)
    segment.part(3).commit_position(5, 31)
    assert segment.applied().parts == ((31, 5),)


def test_growth_keeps_positions_and_what_is_known(segment: Segment) -> None:
    segment.part(3).commit_position(70, 30)
    segment.know_log(9, 90)
    row = layout.pack_row(Clicks, a=1, b=2)
    ids = [entity_id for entity_id in (f"e{i}" for i in range(400)) if partition_of(entity_id, COUNT) in HELD]
    for entity_id in ids:
        layout.insert(segment, entity_id, row)
    assert segment.current_view().generation > 1
    assert segment.partitioning == Partitioning(COUNT, HELD)
    assert segment.applied() == Token((30, 70))
    assert assembly.has_applied(segment, Token((90, 1000)))
    assert assembly.assemble_batch(segment, ids)[1].all()


def test_the_header_of_version_3(segment: Segment) -> None:
    header = read_header(segment.current_view().path)
    assert header is not None
    assert (int(header["format_version"]), int(header["header_bytes"])) == (3, 12288)
    assert int(header["partition_count"]) == COUNT
    assert header["held"].tolist() == [0xFF, 0, 0, 0]
    assert len(header["partitions"]) == 256
    assert fmt.partition_offset("position", 255) == 896 + 32 * 255 + 8


def test_one_partition_has_the_header_of_version_1(tmp_path: Path) -> None:
    registry = SegmentRegistry(tmp_path, shm_dir=tmp_path)
    with registry.create(Clicks, capacity=100) as segment:
        header = segment.current_view().header
        assert (int(header["format_version"]), int(header["header_bytes"])) == (1, 4096)
        assert not segment.current_view().mapping.memory[352:512].any()
        segment.commit_position(70, 30)
        assert segment.part(0).position == segment.position == 70
        assert segment.applied() == Token((30, 70))
        assert "partitions" not in segment.stats()
    registry.backend.close()


def test_inspect_shows_the_partitions(tmp_path: Path) -> None:
    partitioned = SegmentRegistry(tmp_path / "store", shm_dir=tmp_path, partitions=4, held="1-2")
    with partitioned.create(Clicks, capacity=10) as segment:
        segment.part(2).commit_position(70, 30)
    words = ["inspect", "PartsClicks", "-c", str(tmp_path / "store"), "--shm-dir", str(tmp_path)]
    shown = CliRunner().invoke(app, words, env={"COLUMNS": "200"}, catch_exceptions=False).stdout
    assert "holds 1-2 of 4" in shown
    assert ["2", "70", "0"] in [line.split() for line in shown.splitlines()]
    stats = json.loads(CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False).stdout)
    assert (stats["partitions"], stats["held_partitions"], stats["positions"]) == (4, "1-2", {"1": 0, "2": 70})
    partitioned.backend.close()
