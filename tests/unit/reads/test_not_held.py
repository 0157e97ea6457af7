"""Nodes with halves of the partitions answer together as one node with all; what is not held is said, or raised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from quorin import assembly, layout, serving, vector
from quorin.engine.format.partition import partition_of
from quorin.engine.log.token import Token
from quorin.engine.rows.batch import delete_batch, to_batch
from quorin.engine.rows.partitions import split
from quorin.errors import (
    ChangesForgottenError,
    EntityNotFoundError,
    InvalidBufferError,
    NotHeldError,
    PartitionedError,
    TokenError,
)
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import Segment, SegmentRegistry
from tests.support.schemas import ENTITY_IDS

COUNT = 16
Rows = make_schema(
    "HalvesRows",
    [
        FeatureField("a", dtype.float32),
        FeatureField("b", dtype.int64, default=-1),
        FeatureField("text", dtype.string),
        FeatureField("kept", dtype.float64, history=3),
        FeatureField("vector", dtype.float32, shape=(2,)),
    ],
)
IDS = st.lists(ENTITY_IDS | st.sampled_from([f"id {n}" for n in range(20)]) | st.just("x" * 40), max_size=40)


class Nodes(NamedTuple):
    """One node with all partitions, and two with halves of them; ``positions`` counts the entries of the logs."""

    full: Segment
    halves: list[Segment]
    positions: list[int]

    def write(self, ids: list[str], *, deleted: bool = False) -> None:
        """Apply one entry of each partition that has rows, on the nodes that hold it, as consumers do."""
        first = sum(self.positions)
        if deleted:
            batch = delete_batch(ids, None)
        else:
            numbers = [None if len(one) % 7 == 0 else first + i for i, one in enumerate(ids)]
            pairs = [None if number is None else [number, -i] for i, number in enumerate(numbers)]
            table = {"a": numbers, "b": numbers, "text": ids, "kept": numbers, "vector": pairs}
            batch = to_batch(Rows, {"entity_id": pa.array(ids, pa.string()), **table}, event_time_ns=None)
        for partition, rows in split(batch, COUNT).items():
            self.positions[partition] += 1
            for segment in (self.full, *self.halves):
                if partition in segment.partitioning.held:
                    position = self.positions[partition]
                    kind = layout.DELETE if deleted else layout.UPSERT
                    layout.apply_batch(segment, rows, position=position, kind=kind)
                    segment.part(partition).commit_position(position, 1000 + partition)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("halves")
    opened = []
    for held in (None, "0-3,8-11", frozenset({4, 5, 6, 7, 12, 13, 14, 15})):
        shm_dir = folder / str(len(opened))
        shm_dir.mkdir()
        registry = SegmentRegistry(folder / "store", shm_dir=shm_dir, partitions=COUNT, held=held)
        opened.append((registry, registry.create(Rows, capacity=20)))
    full, *halves = [segment for _, segment in opened]
    nodes = Nodes(full, halves, [0] * COUNT)
    nodes.write([f"id {n}" for n in range(0, 20, 2)])
    yield nodes
    for registry, segment in opened:
        segment.close()
        registry.backend.close()


def either(nodes: Nodes, read: Any) -> tuple[Any, Any]:
    return read(nodes.halves[0]), read(nodes.halves[1])


@settings(max_examples=40, deadline=None)
@given(IDS, IDS, st.sets(ENTITY_IDS, max_size=3))
@pytest.mark.parametrize("module", [assembly, serving])
def test_halves_answer_as_one(module: Any, nodes: Nodes, written: list[str], ids: list[str], gone: Any) -> None:
    nodes.write(written)
    nodes.write(sorted(gone), deleted=True)
    ids = [*ids, *written[:5], *gone]
    held_by = [
        np.isin([partition_of(one, COUNT) for one in ids], list(half.partitioning.held)) for half in nodes.halves
    ]
    masks = [np.empty(len(ids), np.bool_) for _ in nodes.halves]
    vectors, found = module.assemble_batch(nodes.full, ids)
    parts = [
        module.assemble_batch(half, ids, missing_partitions="mask", not_held_mask=mask)
        for half, mask in zip(nodes.halves, masks, strict=True)
    ]
    for (own, own_found), mask, held in zip(parts, masks, held_by, strict=True):
        assert mask.tolist() == (~held).tolist()
        np.testing.assert_array_equal(own[~mask], vectors[~mask])
        assert own_found.tolist() == (found & ~mask).tolist()
    whole = module.read(nodes.full, ids, positions=True, missing_partitions="mask")
    assert not any(whole.column("not_held").to_pylist())
    for half, mask in zip(nodes.halves, masks, strict=True):
        own = module.read(half, ids, positions=True, missing_partitions="mask")
        assert own.column("not_held").to_pylist() == mask.tolist()
        held = pa.array(~mask)
        same = [name for name in whole.schema.names if name != "not_held"]
        assert own.filter(held).select(same).to_pylist() == whole.filter(held).select(same).to_pylist()
    for i, one in enumerate(ids):
        half, other = nodes.halves if masks[1][i] else reversed(nodes.halves)
        with pytest.raises(NotHeldError) as caught:
            module.assemble(other, one)
        assert caught.value.partition == partition_of(one, COUNT)
        if found[i]:
            np.testing.assert_array_equal(module.assemble(half, one), vectors[i])
        else:
            with pytest.raises(EntityNotFoundError):
                module.assemble(half, one)


@pytest.mark.parametrize("module", [assembly, serving])
def test_all_rows_and_changes_are_those_of_the_halves(module: Any, nodes: Nodes) -> None:
    token = nodes.full.applied()
    nodes.write(["id 1", "id 2", "new", "ü"])
    nodes.write(["id 4"], deleted=True)
    for read in (lambda s: module.scan(s).read_all(), lambda s: module.changed_since(s, token).batches.read_all()):
        rows = sorted(read(nodes.full).to_pylist(), key=repr)
        own = [row for half in nodes.halves for row in read(half).to_pylist()]
        assert repr(sorted(own, key=repr)) == repr(rows)
    changes = module.changed_since(nodes.full, token)
    changed = {row["entity_id"]: row["deleted"] for row in changes.batches.read_all().to_pylist()}
    assert changed == {"id 1": False, "id 2": False, "new": False, "ü": False, "id 4": True}
    assert changes.through == nodes.full.applied()
    together = Token.covering(*(half.applied() for half in nodes.halves))
    assert dict(together.parts) == dict(nodes.full.applied().parts)
    assert module.changed_since(nodes.full, changes.through).batches.read_all().num_rows == 0
    everything = module.changed_since(nodes.full, 0).batches.read_all().num_rows
    assert module.changed_since(nodes.full, Token()).batches.read_all().num_rows == everything


def test_changes_of_several_partitions_are_since_a_token(nodes: Nodes) -> None:
    half = nodes.halves[0]
    with pytest.raises(PartitionedError, match="changes since position 5, which is no token"):
        assembly.changed_since(half, 5)
    # What others have applied of their partitions is no matter here.
    everything = assembly.changed_since(half, 0).batches.read_all().num_rows
    assert assembly.changed_since(half, Token((1004, 5))).batches.read_all().num_rows == everything
    nodes.write([f"id {n}" for n in range(100)])
    assembly.changed_since(half, Token((77, 5)))
    for partition in range(COUNT):
        half.know_log(partition, 1000 + partition)
    assembly.changed_since(half, Token((1004, 5)))
    with pytest.raises(TokenError, match="of another log"):
        assembly.changed_since(half, Token((77, 5)))


def test_deletions_are_forgotten_by_partition(tmp_path: Path) -> None:
    """A quiet partition has nothing to forget when another one has forgotten a later deletion."""
    registry = SegmentRegistry(tmp_path, shm_dir=tmp_path, partitions=2)
    ids = [f"e{n}" for n in range(200)]
    quiet = next(one for one in ids if partition_of(one, 2) == 0)
    busy = [one for one in ids if partition_of(one, 2) == 1]
    with registry.create(Rows, capacity=2) as segment:
        empty = {field.name: pa.nulls(1) for field in Rows.fields}
        layout.apply_batch(segment, to_batch(Rows, {"entity_id": [quiet], **empty}, event_time_ns=1), position=5)
        layout.apply_batch(segment, delete_batch(busy[:1], 1), position=9, kind=layout.DELETE)
        segment.part(0).commit_position(5, 1000)
        segment.part(1).commit_position(10, 1001)
        layout.insert_many(segment, {"entity_id": busy[1:10], **{f.name: pa.nulls(9) for f in Rows.fields}})
        assert segment.current_view().header["partitions"]["forgotten"][:2].tolist() == [0, 9]
        assert assembly.changed_since(segment, Token((1000, 5), (1001, 10))).through.parts[0] == (1000, 5)
        with pytest.raises(ChangesForgottenError) as caught:
            assembly.changed_since(segment, Token((1000, 5), (1001, 8)))
        assert caught.value.complete_from == 9
    registry.backend.close()


def test_other_reads_of_what_is_not_held_are_refused(nodes: Nodes) -> None:
    half = nodes.halves[0]
    away = next(f"id {n}" for n in range(100) if partition_of(f"id {n}", COUNT) not in half.partitioning.held)
    number = partition_of(away, COUNT)
    empty = {field.name: pa.nulls(1) for field in Rows.fields}
    for call in (
        lambda: assembly.assemble_batch(half, [away]),
        lambda: assembly.read(half, [away]),
        lambda: assembly.reader(half)(away),
        lambda: assembly.reader(half).batch([away]),
        lambda: assembly.column_reader(half)([away]),
        lambda: assembly.read_last(half, away, "kept"),
        lambda: assembly.read_last_batch(half, [away], "kept"),
        lambda: assembly.model_reader([half], ["a"])(away),
        lambda: layout.lookup(half, away),
        lambda: layout.insert(half, away, layout.pack_row(Rows, **{f.name: None for f in Rows.fields})),
        lambda: layout.insert_many(half, {"entity_id": [away], **empty}),
        lambda: layout.delete(half, away),
        lambda: serving.read_last(half, away, "kept"),
        lambda: serving.read_last_batch(half, [away], "kept"),
    ):
        with pytest.raises(NotHeldError, match=f"partition {number} of 'HalvesRows' is not held by this node"):
            call()
    assert assembly.row_reader([(half, None)])(away) is None
    with pytest.raises(NotHeldError, match=f"partition {number} of"):
        assembly.read_together([(half, [away])])


def test_a_row_reader_reads_what_is_held(nodes: Nodes) -> None:
    for half in nodes.halves:
        read = assembly.row_reader([(half, ["b"]), (half, ["a"])])
        [held, *_] = [f"id {n}" for n in range(0, 20, 2) if partition_of(f"id {n}", COUNT) in half.partitioning.held]
        rows = read(held)
        assert rows is not None
        assert rows[0].values


def test_a_search_says_what_it_did_not_search(nodes: Nodes) -> None:
    nodes.write(["near", "far"])
    whole = vector.search(nodes.full, "vector", [0, 0], k=1000)
    assert whole.not_held == frozenset()
    own = [vector.search(half, "vector", [0, 0], k=1000) for half in nodes.halves]
    assert own[0].not_held == nodes.halves[1].partitioning.held
    assert sorted([*own[0].entity_ids, *own[1].entity_ids]) == sorted(whole.entity_ids)
    assert vector.search_plainly(nodes.halves[0], "vector", [0, 0], k=1000).not_held == own[0].not_held


def test_wrong_choices_are_refused(nodes: Nodes) -> None:
    for read in (assembly.read, serving.read, assembly.assemble_batch, serving.assemble_batch):
        with pytest.raises(ValueError, match="missing_partitions: expected 'error' or 'mask', got 'no'"):
            read(nodes.full, ["a"] * 20, missing_partitions="no")  # type: ignore[operator]
        with pytest.raises(ValueError, match="missing_partitions"):
            read(nodes.full, ["a"], missing_partitions="no")  # type: ignore[operator]
    with pytest.raises(InvalidBufferError, match="not_held_mask"):
        assembly.assemble_batch(nodes.full, ["a"], not_held_mask=np.empty(2, np.bool_))
