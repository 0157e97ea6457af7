"""Changes since a position: those of a diff by brute force, and never with a deletion missing."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import given, settings

from quorin import assembly, layout, serving
from quorin.assembly import ChangesForgottenError, changed_since
from quorin.engine.rows.batch import delete_batch, to_batch
from quorin.errors import EntityIdError, InvalidRowError
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import Segment, SegmentRegistry
from quorin.snapshot import restore, snapshot

UPSERT, DELETE, PARTIAL = 1, 2, 3
Row = make_schema("Row", [FeatureField("number", dtype.int64), FeatureField("text", dtype.string)])
Clashing = make_schema("Clashing", [FeatureField("position", dtype.int32), FeatureField("deleted", dtype.bool)])
NOW = time.time_ns()
IDS = [f"id{i}" for i in range(9)] + ["é" * 20]

WRITES = st.tuples(
    st.sampled_from([UPSERT, UPSERT, UPSERT, DELETE, PARTIAL]),
    st.sampled_from(IDS),
    st.integers(-3, 3) | st.just(-(10**9)),  # seconds from now; the last is decades ago
    st.none() | st.integers(0, 99),
)


def write(segment: Segment, position: int, kind: int, entity_id: str, seconds: int, number: int | None) -> None:
    """Apply one entry of a log."""
    event_time_ns = NOW + seconds * 10**9
    if kind == DELETE:
        batch = delete_batch([entity_id], event_time_ns)
    else:
        row = {"entity_id": entity_id, "number": number, "text": f"text {number}"}
        if kind == PARTIAL:
            del row["text"]
        batch = to_batch(Row, [row], event_time_ns=event_time_ns, partial=kind == PARTIAL)
    layout.apply_batch(segment, batch, position=position, kind=kind)
    segment.commit_position(position, 1)


def state_of(segment: Segment) -> dict[str, Any]:
    """Every row with its event time and position."""
    ids = sorted(entity_id for entity_id, _ in layout.iterate_occupied(segment))
    columns = assembly.column_reader(segment, positions=True)(pa.array(ids, pa.string()))
    rows = zip(columns.to_batch().to_pylist(), columns.positions.tolist(), strict=True)
    return {row["entity_id"]: row | {"position": position} for row, position in rows}


@settings(max_examples=60, deadline=None)
@given(st.lists(WRITES, max_size=25), st.lists(WRITES, max_size=25), st.sampled_from([1, 4, 64]))
def test_changes_are_the_difference_of_two_states(before: list[Any], after: list[Any], capacity: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        registry = SegmentRegistry(directory, shm_dir=directory)
        with registry.create(Row, capacity=capacity) as segment:
            for position, entry in enumerate(before, 1):
                write(segment, position, *entry)
            since, old = len(before), state_of(segment)
            for position, entry in enumerate(after, since + 1):
                write(segment, position, *entry)
            new = state_of(segment)
            results = []
            for module in (assembly, serving):
                try:
                    found = module.changed_since(segment, since)
                    assert found.through == since + len(after)
                    results.append(found.batches.read_all())
                except ChangesForgottenError as error:
                    results.append(error.complete_from)
        registry.backend.close()
    fast, slow = results
    if isinstance(fast, int):
        assert fast == slow > since
        assert any(kind == DELETE and seconds < -3 for kind, _, seconds, _ in after)
        return
    assert fast.schema == slow.schema
    assert fast.to_pylist() == slow.to_pylist()
    rows = {row["entity_id"]: row for row in fast.to_pylist()}
    assert len(rows) == len(fast)
    deleted = {entity_id for entity_id, row in rows.items() if row["deleted"]}
    assert all(row["position"] > since for row in rows.values()) or since == 0
    changed = {entity_id for entity_id, row in new.items() if old.get(entity_id) != row}
    assert rows.keys() - deleted == changed
    assert not deleted & new.keys()
    assert deleted >= old.keys() - new.keys()
    for entity_id in changed:
        assert {key: rows[entity_id][key] for key in ("event_time_ns", "position", "number", "text")} == {
            key: new[entity_id][key] for key in ("event_time_ns", "position", "number", "text")
        }
    for entity_id in deleted:
        assert (rows[entity_id]["number"], rows[entity_id]["text"]) == (None, None)
        assert rows[entity_id]["event_time_ns"] >= NOW - 10**18


def test_a_forgotten_deletion_is_an_error_of_its_own(registry: SegmentRegistry, tmp_path: Path) -> None:
    with registry.create(Row, capacity=4) as segment:
        for position in range(1, 5):
            write(segment, position, UPSERT, f"id{position}", -(10**8), position)
        write(segment, 5, DELETE, "id1", -(10**7), None)
        write(segment, 6, DELETE, "id2", 0, None)
        changed = changed_since(segment, 4).batches.read_all().column("entity_id").to_pylist()
        assert sorted(changed) == ["id1", "id2"]
        assert changed_since(segment, 0).batches.read_all().num_rows == 4
        for position in range(7, 12):
            write(segment, position, UPSERT, f"id{position}", 0, position)
        assert segment.stats()["generation"] > 1
        snapshot(segment, tmp_path / "saved")
        for module in (assembly, serving):
            with pytest.raises(
                ChangesForgottenError, match=r"since position 4: it has forgotten .* 5; expected"
            ) as info:
                module.changed_since(segment, 4)
            assert (info.value.position, info.value.complete_from) == (4, 5)
            assert isinstance(info.value, LookupError)
            rows = module.changed_since(segment, 5).batches.read_all()
            assert sorted(rows.column("position").to_pylist()) == list(range(6, 12))
            assert module.changed_since(segment, 0).batches.read_all().num_rows == len(segment) + 1
        registry.discard(segment)
    restore(tmp_path / "saved", registry)
    with registry.open_current(Row) as segment:
        with pytest.raises(ChangesForgottenError):
            changed_since(segment, 4)
        registry.discard(segment)


def test_a_mirror_that_follows_changes_equals_the_segment(registry: SegmentRegistry) -> None:
    with registry.create(Row, capacity=8) as writer, registry.open_current(Row) as segment:
        stop = threading.Event()

        def run() -> None:
            position = 0
            while not stop.is_set() or position < 300:
                position += 1
                kind = DELETE if position % 5 == 0 else UPSERT
                write(writer, position, kind, f"id{position * 7 % 40}", position, position)

        thread = threading.Thread(target=run)
        thread.start()
        mirror: dict[str, int] = {}
        through = 0

        def follow() -> None:
            nonlocal through
            found = changed_since(segment, through)
            for row in found.batches.read_all().to_pylist():
                if row["deleted"]:
                    mirror.pop(row["entity_id"], None)
                else:
                    mirror[row["entity_id"]] = row["number"]
            through = found.through

        try:
            for _ in range(200):
                follow()
        finally:
            stop.set()
            thread.join()
        follow()
        assert mirror == {row["entity_id"]: row["number"] for row in assembly.scan(segment).read_all().to_pylist()}
        assert changed_since(segment, through).batches.read_all().num_rows == 0
        registry.discard(writer)


def test_changes_take_a_prefix_a_limit_and_fields(registry: SegmentRegistry) -> None:
    with registry.create(Clashing, capacity=10) as segment:
        layout.insert(segment, "unlogged", layout.pack_row(Clashing, position=1, deleted=True), event_time_ns=1)
        table = {"entity_id": ["a1", "a2", "b"], "position": [7, 8, None], "deleted": [True, False, None]}
        layout.apply_batch(segment, to_batch(Clashing, table, event_time_ns=5), position=3)
        for module in (assembly, serving):
            rows = module.changed_since(segment, 2, prefix="a").batches.read_all()
            names = ["entity_id", "event_time_ns", "position", "deleted", "position:field", "deleted:field"]
            assert rows.column_names == names
            assert sorted(rows.column("position:field").to_pylist()) == [7, 8]
            assert module.changed_since(segment, 2, limit=1).batches.read_all().num_rows == 1
            assert module.changed_since(segment, 3).batches.read_all().num_rows == 0
            chosen = module.changed_since(segment, 0, fields=["deleted"]).batches.read_all()
            assert chosen.column_names == ["entity_id", "event_time_ns", "position", "deleted", "deleted:field"]
            assert "unlogged" in chosen.column("entity_id").to_pylist()
            for position in (-1, 1.5, True, "3", 1 << 63):
                with pytest.raises(ValueError, match="position: expected a position of the log"):
                    module.changed_since(segment, position)
            with pytest.raises(InvalidRowError, match="no fields"):
                module.changed_since(segment, 0, fields=["nope"])
        with pytest.raises(EntityIdError, match="prefix: expected"):
            changed_since(segment, 0, prefix=7)  # type: ignore[arg-type]
        registry.discard(segment)
