"""Rows into a segment: what is refused, what wins, and that applying in any order gives the same rows."""

from __future__ import annotations

import tempfile
import threading
from time import time_ns
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from quorin import assembly, layout, serving
from quorin.engine.format import segment as fmt
from quorin.engine.format.abi import DELETE, PARTIAL
from quorin.engine.format.hashing import hash_bytes
from quorin.engine.memory.generations import DELETIONS_KEPT_NS
from quorin.engine.memory.growth import grow
from quorin.engine.rows.batch import delete_batch, row_batch, to_batch
from quorin.errors import EntityIdError, EntityIdTooLongError, InvalidRowError, SegmentReadOnlyError
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from tests.support.schemas import ENTITY_IDS, Everything, Scalars, rows_of

One = make_schema("One", [FeatureField("n", dtype.int64), FeatureField("s", dtype.string)])


@settings(deadline=None)
@given(rows_of(Everything))
def test_a_packed_row_unpacks_to_the_same_values(row: dict[str, Any]) -> None:
    again = layout.unpack_row(Everything, layout.pack_row(Everything, **row))
    assert layout.pack_row(Everything, **again) == layout.pack_row(Everything, **row)
    for field in Everything.fields:
        value, result = row[field.name], again[field.name]
        if value is None or isinstance(value, (str, bytes)) or (field.is_list and not field.dtype.is_numeric):
            assert result == value
        else:
            expected = np.asarray(value, field.dtype.numpy)
            assert np.asarray(result, field.dtype.numpy).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"u8": 256}, "'u8'.*256"),
        ({"u8": -1}, "'u8'.*-1"),
        ({"i32": 2**31}, "'i32'.*2147483648"),
        ({"i64": 2**63}, "'i64'.*9223372036854775808"),
        ({"i32": 1.5}, r"'i32'.*1\.5"),
        ({"f32": 1e300}, r"'f32'.*1e\+300"),
        ({"f32": "1"}, "'f32'.*'1'"),
        ({"f32": True}, "'f32'.*True"),
        ({"flag": 1}, "'flag'.*1"),
        ({"text": b"x"}, "'text'"),
        ({"text": "\ud800"}, "'text'"),
        ({"blob": "x"}, "'blob'"),
        ({"vector": [1, 2]}, r"'vector'.*\(3,\)"),
        ({"vector": 1.0}, "'vector'"),
        ({"grid": [1, 2, 3, 4]}, "'grid'"),
        ({"numbers": [1, None]}, "'numbers'"),
        ({"tags": ["a", 1]}, "'tags'"),
        ({"nothing": 1}, "nothing"),
    ],
)
def test_a_value_that_does_not_fit_is_named_and_never_wrapped(change: dict[str, Any], text: str) -> None:
    row: dict[str, Any] = {field.name: None for field in Everything.fields}
    with pytest.raises(InvalidRowError, match=text):
        layout.pack_row(Everything, **(row | change))


def test_every_field_must_be_given() -> None:
    with pytest.raises(InvalidRowError, match=r"missing \['c', 'd'\]"):
        layout.pack_row(Scalars, a=1, b=2)


@pytest.mark.parametrize("row", [b"", b"x" * 16, b"x" * 18, "text", None])
def test_bytes_that_are_no_row_are_refused(registry: SegmentRegistry, row: Any) -> None:
    with registry.create(Scalars, capacity=2) as segment:
        with pytest.raises(InvalidRowError, match="row"):
            layout.insert(segment, "x", row)
        assert len(segment) == 0


def test_cells_of_a_packed_row_may_not_point_outside(registry: SegmentRegistry) -> None:
    row = bytearray(layout.pack_row(One, n=1, s="hello"))
    row[8] = 200
    with registry.create(One, capacity=2) as segment, pytest.raises(InvalidRowError, match="'s'"):
        layout.insert(segment, "x", bytes(row))


@pytest.mark.parametrize("entity_id", ["", 5, None, "\ud800"])
def test_bad_ids_are_named(registry: SegmentRegistry, entity_id: Any) -> None:
    with registry.create(Scalars, capacity=2) as segment:
        with pytest.raises(EntityIdError) as caught:
            layout.insert(segment, entity_id, layout.pack_row(Scalars, a=1, b=2, c=3, d=4))
        assert repr(entity_id) in str(caught.value)
        assert len(segment) == 0


@pytest.mark.parametrize("limit", [1, 12, 13, 20, 28, 29, 64, 1000])
def test_ids_of_every_length_up_to_the_limit(registry: SegmentRegistry, limit: int) -> None:
    with registry.create(One, capacity=4, max_id_bytes=limit) as segment:
        ids = [letter * n for letter in "ab" for n in range(1, limit + 1)]
        for i, entity_id in enumerate(ids):
            layout.insert(segment, entity_id, layout.pack_row(One, n=i, s=entity_id))
        assert assembly.assemble_batch(segment, ids)[0][:, 0].tolist() == list(range(len(ids)))
        assert serving.assemble(segment, ids[-1])[0] == len(ids) - 1
        assert sorted(entity_id for entity_id, _ in layout.iterate_occupied(segment)) == sorted(ids)
        with pytest.raises(EntityIdTooLongError, match=f"{limit}"):
            layout.insert(segment, "x" * (limit + 1), layout.pack_row(One, n=0, s=""))
        with pytest.raises(EntityIdTooLongError, match=f"{limit}"):
            layout.insert_many(segment, pa.table({"entity_id": ["y", "x" * (limit + 1)], "n": [1, 2], "s": ["", ""]}))
        assert layout.lookup(segment, "y") is None


def test_a_reader_may_not_write(registry: SegmentRegistry) -> None:
    with registry.create(One, capacity=2), registry.open_current(One) as reader:
        for write in (
            lambda: layout.insert(reader, "x", layout.pack_row(One, n=1, s="")),
            lambda: layout.delete(reader, "x"),
            lambda: layout.insert_many(reader, pa.table({"entity_id": ["x"], "n": [1], "s": [""]})),
        ):
            with pytest.raises(SegmentReadOnlyError, match="read_only=False"):
                write()
        assert not reader.current_view().mapping.memory.flags.writeable


def test_insert_says_whether_the_entity_is_new_and_older_events_change_nothing(registry: SegmentRegistry) -> None:
    with registry.create(One, capacity=2) as segment:
        assert layout.insert(segment, "x", layout.pack_row(One, n=1, s="a"), event_time_ns=10)
        assert not layout.insert(segment, "x", layout.pack_row(One, n=2, s="b"), event_time_ns=9)
        assert value(segment) == (1, "a")
        assert not layout.insert(segment, "x", layout.pack_row(One, n=3, s="c"), event_time_ns=10)
        assert value(segment) == (3, "c")
        assert len(segment) == 1


def value(segment: Any) -> tuple[Any, Any]:
    row = assembly.read(segment, ["x"]).to_pylist()[0]
    return row["n"], row["s"]


def test_delete_and_reinsert(registry: SegmentRegistry) -> None:
    with registry.create(One, capacity=4) as segment:
        row = layout.pack_row(One, n=1, s="a")
        assert not layout.delete(segment, "x", event_time_ns=5)
        assert not layout.insert(segment, "x", row, event_time_ns=4), "an older event does not undo a deletion"
        assert layout.lookup(segment, "x") is None
        assert layout.insert(segment, "x", row, event_time_ns=6)
        assert layout.lookup(segment, "x") is not None
        assert not layout.delete(segment, "x", event_time_ns=5)
        assert layout.delete(segment, "x")
        assert not layout.delete(segment, "x")
        assert len(segment) == 0
        assert list(layout.iterate_occupied(segment)) == []
        assert assembly.read(segment, ["x"]).column("found").to_pylist() == [False]


def test_deletions_are_remembered_for_a_week_of_event_time(registry: SegmentRegistry) -> None:
    week, now = DELETIONS_KEPT_NS, time_ns()
    with registry.create(One, capacity=4) as segment:
        for entity_id, age in (("lately", 0), ("long ago", 2 * week)):
            layout.insert(segment, entity_id, layout.pack_row(One, n=1, s=""), event_time_ns=now - age - 1)
            layout.delete(segment, entity_id, event_time_ns=now - age)
        assert segment.stats()["deleted_rows"] == 2
        grow(segment, rows=False, heap_bytes=0)
        assert segment.stats()["deleted_rows"] == 1
        assert not layout.insert(segment, "lately", layout.pack_row(One, n=1, s=""), event_time_ns=now - 1)
        assert layout.insert(segment, "long ago", layout.pack_row(One, n=1, s=""), event_time_ns=now - 1)


def test_of_duplicates_in_one_load_the_newest_wins(registry: SegmentRegistry) -> None:
    table = pa.table(
        {
            "entity_id": ["x", "x", "x", "y", "y"],
            "event_time_ns": [5, 7, 6, 1, 1],
            "n": [5, 7, 6, 1, 2],
            "s": ["five", "seven", "six", "first", "second"],
        }
    )
    with registry.create(One, capacity=4) as segment:
        assert layout.insert_many(segment, table) == 4
        assert value(segment) == (7, "seven")
        assert assembly.assemble(segment, "y")[0] == 2
        assert len(segment) == 2


def test_insert_many_takes_arrow_and_pandas_and_checks_everything_first(registry: SegmentRegistry) -> None:
    frame = pd.DataFrame({"entity_id": ["a", "b"], "n": [1, 2], "s": ["x", None]})
    with registry.create(One, capacity=1) as segment:
        assert layout.insert_many(segment, frame) == 2
        assert layout.insert_many(segment, pa.RecordBatch.from_pandas(frame.assign(entity_id=["c", "d"]))) == 2
        assert layout.insert_many(segment, frame.iloc[:0]) == 0
        bad = pa.table({"entity_id": ["e", "f"], "n": [1.0, 2.5], "s": ["", ""]})
        with pytest.raises(InvalidRowError, match=r"'n'.*2\.5"):
            layout.insert_many(segment, bad)
        assert len(segment) == 4


def test_sliced_and_null_columns_of_every_type_arrive_unchanged(registry: SegmentRegistry) -> None:
    rows = [
        {f.name: None for f in Everything.fields},
        {
            "f32": 1.5, "f64": 2.5, "i32": -3, "i64": 4, "u8": 5, "flag": True, "text": "é", "blob": b"\0",
            "vector": [1, 2, 3], "grid": [[1, 2], [3, 4]], "flags": [True, False, True], "numbers": [1, 2, 3],
            "marks": [True, False], "tags": ["a", "", "bc"], "blobs": [b"x"],
        },
        {
            "f32": -1.5, "f64": None, "i32": 3, "i64": None, "u8": 50, "flag": False, "text": "", "blob": b"",
            "vector": None, "grid": [[5, 6], [7, 8]], "flags": None, "numbers": [], "marks": None, "tags": [],
            "blobs": None,
        },
    ]  # fmt: skip
    batches = [row_batch(Everything, f"id{i}", rows[i % 3], i) for i in range(30)]
    table = pa.Table.from_batches(batches)
    whole = to_batch(Everything, table)
    with registry.create(Everything, capacity=2) as segment:
        for start in range(0, 30, 7):
            layout.apply_batch(segment, whole.slice(start, 7))
        ids = [f"id{i}" for i in range(30)]
        got = assembly.read(segment, ids)
        assert got.drop_columns(["found"]).to_pylist() == whole.to_pylist()
        # What was read can be written again.
        assert layout.insert_many(segment, got.drop_columns(["found"])) == 30


def test_rows_prepared_in_blocks_are_to_the_byte_those_written_cell_by_cell(registry: SegmentRegistry) -> None:
    whole = everything_batch(400)
    with (
        registry.create(Everything, capacity=500, set_current=False) as blocks,
        registry.create(Everything, capacity=500, set_current=False) as cells,
        registry.create(Everything, capacity=1, set_current=False) as grown,
    ):
        assert layout.apply_batch(blocks, whole.slice(3), position=9) == 397
        assert layout.apply_batch(cells, whole.slice(3), position=9, kind=PARTIAL) == 397
        assert layout.apply_batch(grown, whole.slice(3), position=9) == 397
        bodies = []
        for segment in (blocks, cells):
            view = segment.current_view()
            first = view.layout.rows_offset
            rows = view.mapping.memory[first : first + 397 * view.layout.row_stride].reshape(397, -1)
            bodies.append(rows[:, view.layout.body_offset :])
        assert np.array_equal(*bodies)
        expected = whole.slice(3).to_pylist()
        for segment in (blocks, cells, grown):
            got = assembly.read(segment, whole.column("entity_id").slice(3))
            assert got.drop_columns(["found"]).to_pylist() == expected
            registry.discard(segment)


def everything_batch(count: int) -> pa.RecordBatch:
    """Rows with and without a value in each field, in every mixture."""
    rng = np.random.default_rng(5)
    some: dict[str, Any] = {
        "f32": 1.5, "f64": 2.5, "i32": -3, "i64": 4, "u8": 5, "flag": True, "text": "é", "blob": b"\0",
        "vector": [1, 2, 3], "grid": [[1, 2], [3, 4]], "flags": [True, False, True], "numbers": [1, 2, 3],
        "marks": [True, False], "tags": ["a", "", "bc"], "blobs": [b"x"],
    }  # fmt: skip
    rows = [
        row_batch(
            Everything,
            f"id{i}" + "x" * (i % 40),
            {name: some[name] if rng.random() < 0.7 else None for name in some},
            i,
        )
        for i in range(count)
    ]
    return to_batch(Everything, pa.Table.from_batches(rows))


def test_a_partial_row_changes_only_its_fields(registry: SegmentRegistry) -> None:
    with registry.create(Everything, capacity=4) as segment:
        full = {f.name: None for f in Everything.fields} | {"f32": 1.0, "tags": ["a"], "text": "t", "numbers": [1]}
        layout.apply_batch(segment, row_batch(Everything, "x", full, 1))
        change = row_batch(Everything, "x", {"text": "new", "u8": 9}, 2, partial=True)
        assert layout.apply_batch(segment, change, kind=PARTIAL) == 1
        row = assembly.read(segment, ["x"]).to_pylist()[0]
        assert (row["f32"], row["tags"], row["text"], row["numbers"], row["u8"]) == (1.0, ["a"], "new", [1], 9)
        assert layout.apply_batch(segment, row_batch(Everything, "y", {"u8": 1}, 2, partial=True), kind=PARTIAL) == 1
        row = assembly.read(segment, ["y"]).to_pylist()[0]
        assert {name for name, v in row.items() if v is not None} == {"entity_id", "found", "event_time_ns", "u8"}


def test_a_large_load_into_a_tiny_segment_grows_it(registry: SegmentRegistry) -> None:
    count = 20_000
    table = pa.table(
        {
            "entity_id": [f"user_{i}" for i in range(count)],
            "n": np.arange(count),
            "s": [f"text {i}" for i in range(count)],
        }
    )
    with registry.create(One, capacity=1) as segment, registry.open_current(One) as reader:
        assert layout.insert_many(segment, table) == count
        assert len(reader) == count
        assert reader.capacity >= count
        got = assembly.read(reader, table["entity_id"])
        assert got.column("s").to_pylist() == table["s"].to_pylist()
        assert got.column("n").to_pylist() == list(range(count))


RECENTLY_NS = time_ns()
TIMES = st.integers(RECENTLY_NS, RECENTLY_NS + 9)


class SegmentAgainstDict(RuleBasedStateMachine):
    """Insert, update, delete, grow, compact and re-open, against a plain dictionary."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.registry = SegmentRegistry(self.directory.name, shm_dir=self.directory.name)
        self.segment = self.registry.create(Everything, capacity=2)
        self.reader = self.registry.open_current(Everything)
        self.model: dict[str, tuple[int, dict[str, Any] | None]] = {}

    def teardown(self) -> None:
        self.segment.close()
        self.reader.close()
        self.registry.backend.close()
        self.directory.cleanup()

    def newest(self, entity_id: str, time: int, row: dict[str, Any] | None) -> None:
        if entity_id not in self.model or self.model[entity_id][0] <= time:
            self.model[entity_id] = (time, row)

    @rule(target=ids, entity_id=ENTITY_IDS)
    def an_id(self, entity_id: str) -> str:
        return entity_id

    @rule(entity_id=ids, row=rows_of(Everything), time=TIMES)
    def insert(self, entity_id: str, row: dict[str, Any], time: int) -> None:
        was_there = self.model.get(entity_id, (0, None))[1] is not None
        wins = entity_id not in self.model or self.model[entity_id][0] <= time
        created = layout.insert(self.segment, entity_id, layout.pack_row(Everything, **row), event_time_ns=time)
        assert created == (wins and not was_there)
        self.newest(entity_id, time, row)

    @rule(rows=st.lists(st.tuples(ids, rows_of(Everything), TIMES), min_size=1, max_size=5))
    def insert_many(self, rows: list[tuple[str, dict[str, Any], int]]) -> None:
        batches = [row_batch(Everything, entity_id, row, time) for entity_id, row, time in rows]
        layout.apply_batch(self.segment, to_batch(Everything, pa.Table.from_batches(batches)))
        for entity_id, row, time in rows:
            self.newest(entity_id, time, row)

    @rule(entity_id=ids, time=TIMES)
    def delete(self, entity_id: str, time: int) -> None:
        layout.apply_batch(self.segment, delete_batch([entity_id], time), kind=DELETE)
        self.newest(entity_id, time, None)

    @rule(rows=st.booleans(), heap_bytes=st.sampled_from([0, 1000]))
    def grow_or_compact(self, rows: bool, heap_bytes: int) -> None:
        self.segment.acquire_writer_lease()
        grow(self.segment, rows=rows, heap_bytes=heap_bytes)

    @rule()
    def reopen(self) -> None:
        self.segment.close()
        self.segment = self.registry.open_current(Everything, read_only=False)

    @invariant()
    def rows_are_the_models(self) -> None:
        alive = {entity_id: row for entity_id, (_, row) in self.model.items() if row is not None}
        assert len(self.reader) == len(alive)
        assert dict(layout.iterate_occupied(self.reader)).keys() == alive.keys()
        if not self.model:
            return
        batch = assembly.read(self.reader, list(self.model))
        for (entity_id, (time, row)), got in zip(self.model.items(), batch.to_pylist(), strict=True):
            assert got["found"] == (row is not None), entity_id
            if row is not None:
                assert got["event_time_ns"] == time
                packed = layout.pack_row(Everything, **{name: got[name] for name in row})
                assert packed == layout.pack_row(Everything, **row)


TestSegmentAgainstDict = SegmentAgainstDict.TestCase
TestSegmentAgainstDict.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_order_of_application_converges(data: st.DataObject) -> None:
    """Positions are fixed by the log; the order and repetition of application is not."""
    events = data.draw(st.lists(st.tuples(st.sampled_from("abc"), TIMES, st.booleans()), min_size=1, max_size=12))
    batches = []
    for position, (entity_id, time, is_delete) in enumerate(events, 1):
        if is_delete:
            batches.append((position, DELETE, delete_batch([entity_id], time)))
        else:
            batches.append((position, 1, row_batch(One, entity_id, {"n": position, "s": str(position)}, time)))
    orders = [batches, data.draw(st.permutations(batches + batches))]
    results = []
    for order in orders:
        with tempfile.TemporaryDirectory() as directory:
            registry = SegmentRegistry(directory, shm_dir=directory)
            with registry.create(One, capacity=1) as segment:
                for position, kind, batch in order:
                    layout.apply_batch(segment, batch, position=position, kind=kind)
                results.append(assembly.read(segment, ["a", "b", "c"]).to_pylist())
            registry.backend.close()
    assert results[0] == results[1]


def test_ids_chosen_to_collide_in_one_segment_do_not_in_the_next(registry: SegmentRegistry) -> None:
    """Seeds are random: what an attacker learns of one segment is worth nothing in another."""
    slots = []
    for _ in range(2):
        with registry.create(One, capacity=1000) as segment:
            view = segment.current_view()
            seed = (int(view.header["seed"][0]), int(view.header["seed"][1]))
            count = view.layout.slot_count
            slots.append({f"id{i}": hash_bytes(b"id%d" % i, seed) * count >> 64 for i in range(20_000)})
    crowded = max(range(1500), key=list(slots[0].values()).count)
    colliding = [entity_id for entity_id, slot in slots[0].items() if slot == crowded]
    assert len(colliding) >= 20
    assert len({slots[1][entity_id] for entity_id in colliding}) > 0.8 * len(colliding)


def test_threads_may_write_through_one_segment(registry: SegmentRegistry) -> None:
    """The kernel lets go of the GIL, so only the segment's own lock keeps two writers apart."""
    count = 3000
    with registry.create(One, capacity=1) as segment:

        def write(thread: int) -> None:
            for start in range(0, count, 100):
                ids = [f"{thread}:{i}" for i in range(start, start + 100)]
                layout.insert_many(segment, pa.table({"entity_id": ids, "n": [thread] * 100, "s": ids}))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(segment) == 4 * count == len(list(layout.iterate_occupied(segment)))
        assert segment.current_view().books_add_up
        batch = assembly.read(segment, [f"{thread}:{i}" for thread in range(4) for i in range(count)])
        assert batch.column("s").equals(batch.column("entity_id"))


def test_rows_of_one_batch_keep_log_positions_of_their_own(registry):
    with registry.create(Everything, capacity=8) as segment:
        values = {field.name: None for field in Everything.fields}
        rows = [row_batch(Everything, entity_id, values, 5) for entity_id in ("a", "b", "a", "c")]
        merged = pa.Table.from_batches(rows).combine_chunks().to_batches()[0]
        layout.apply_batch(segment, merged, position=pa.array([7, 8, 9, 10]))
        view = segment.current_view()
        found = {entity_id: layout.find_row(view, entity_id.encode())[1] for entity_id in "abc"}
        stored = {
            entity_id: int(view.mapping.memory[row : row + fmt.KEY_OFFSET].view(fmt.ROW_HEADER_DTYPE)[0]["position"])
            for entity_id, row in found.items()
        }
        assert stored == {"a": 9, "b": 8, "c": 10}
        registry.discard(segment)
