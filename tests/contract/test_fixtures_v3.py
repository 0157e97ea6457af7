"""The segment of several partitions that the first release with format version 3 wrote is read to the same values."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorin import assembly, layout
from quorin.engine.format.partition import Partitioning, partition_of
from quorin.engine.memory.header import header_of
from quorin.engine.memory.segment import Segment
from quorin.engine.memory.view import SegmentView
from quorin.errors import CorruptSegmentError, CorruptSnapshotError
from quorin.shm import SegmentRegistry
from quorin.snapshot import restore
from quorin.wal import Token
from tests.fixtures.v3.make import HELD, PARTITIONS, FixtureParts, held_ids, served, table

V3 = Path(__file__).parents[1] / "fixtures" / "v3"
EXPECTED = json.loads((V3 / "expected.json").read_text())
DAMAGED = json.loads((V3 / "damaged.json").read_text())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    [packed] = V3.glob("quorin_FixtureParts_*.gz")
    path = tmp_path / packed.stem
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    return path


@pytest.fixture
def segment(path: Path) -> Iterator[Segment]:
    with Segment(SegmentView.attach(path, FixtureParts, writable=True), None, read_only=False) as segment:
        yield segment


def test_the_segment_holds_the_same_rows_and_positions(segment: Segment) -> None:
    assert segment.partitioning == Partitioning.parse(HELD, PARTITIONS)
    assert served(segment) == EXPECTED
    assert assembly.has_applied(segment, Token.covering(Token.parse(EXPECTED["applied"]), Token((0xF05, 10**6))))


def test_the_segment_is_written_on_and_grows(segment: Segment) -> None:
    ids = held_ids(segment)
    layout.insert_many(segment, table(ids, 100))
    held = segment.partitioning.held
    layout.insert_many(
        segment, table([f"new {i}" for i in range(400) if partition_of(f"new {i}", PARTITIONS) in held], 1)
    )
    assert segment.current_view().generation > 1
    assert segment.applied().text == EXPECTED["applied"]
    assert assembly.assemble_batch(segment, ids)[1].all()


def test_the_snapshot_is_restored(tmp_path: Path) -> None:
    file = tmp_path / "parts.snapshot"
    file.write_bytes(gzip.decompress((V3 / "parts.snapshot.gz").read_bytes()))
    registry = SegmentRegistry(tmp_path / "store", shm_dir=tmp_path, partitions=PARTITIONS, held=HELD)
    restore(file, registry)
    with registry.open_current(FixtureParts) as segment:
        assert served(segment) == EXPECTED
    registry.backend.close()


@pytest.mark.parametrize("damage", DAMAGED, ids=[damage["what"] for damage in DAMAGED])
def test_what_is_damaged_is_refused(damage: dict[str, Any], path: Path, tmp_path: Path) -> None:
    path.write_bytes(damaged(path.read_bytes(), damage))
    with pytest.raises(CorruptSegmentError):
        SegmentView.attach(path, None, writable=False)
    file = tmp_path / "parts.snapshot"
    file.write_bytes(damaged(gzip.decompress((V3 / "parts.snapshot.gz").read_bytes()), damage))
    registry = SegmentRegistry(tmp_path / "store", shm_dir=tmp_path, partitions=PARTITIONS, held=HELD)
    with pytest.raises(CorruptSnapshotError):
        restore(file, registry)
    registry.backend.close()


@pytest.mark.parametrize(
    ("count", "held", "version"),
    [(3, [1], 3), (512, [1], 3), (8, [0], 3), (8, [0x100], 3), (8, [1, 1], 3), (0, [0], 3), (1, [1], 3), (8, [1], 1)],
)
def test_partitions_that_cannot_be_are_refused(count: int, held: list[int], version: int, path: Path) -> None:
    """Also where the checksum is right."""
    content = np.frombuffer(bytearray(path.read_bytes()), np.uint8)
    header = header_of(content)
    header["partition_count"], header["format_version"] = count, version
    header["held"] = [*held, 0, 0, 0, 0][:4]
    size = int(header["header_bytes"])
    schema = bytes(content[size : size + int(header["schema_bytes"])])
    header["static_crc"] = 0
    header["static_crc"] = zlib.crc32(schema, zlib.crc32(bytes(content[:512])))
    path.write_bytes(content.tobytes())
    with pytest.raises(CorruptSegmentError):
        SegmentView.attach(path, None, writable=False)


def damaged(content: bytes, damage: dict[str, Any]) -> bytes:
    if "keep" in damage:
        return content[: damage["keep"]]
    changed = bytearray(content)
    for offset, mask in enumerate(bytes.fromhex(damage["xor"])):
        changed[damage["at"] + offset] ^= mask
    return bytes(changed)
