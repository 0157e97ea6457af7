"""Rows carried over to another version, and read through an older one: exact, by name, equal for both readers."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from quorin import assembly, layout, serving
from quorin.engine.log.record import Kind, decode, encode, translate
from quorin.engine.memory.growth import evolve
from quorin.engine.rows.batch import row_batch
from quorin.engine.rows.compatibility import WIDENINGS, can_upgrade
from quorin.errors import EntityNotFoundError, InvalidEntryError, SchemaMismatchError
from quorin.schema import FeatureField, Schema, dtype, make_schema, schema_to_arrow
from quorin.shm import SegmentRegistry
from tests.support.schemas import Everything, Scalars, rows_of, schemas, values_of

ID, LONG_ID = "plain", "an id that is too long to stand in the row itself"


def named(name: str, code: dtype, shape: Any = (), default: float | None = None) -> FeatureField:
    return FeatureField(name, code, shape, default)


@st.composite
def successors(draw: st.DrawFn, old: Schema) -> Schema:
    """A schema that can follow another: fields dropped, widened, added, in another order, with other defaults."""
    fields = []
    for field in old.fields:
        fate = draw(st.sampled_from(["keep", "drop", "widen"]))
        wider = [field.dtype] + [new for narrow, new in WIDENINGS if narrow is field.dtype]
        code = draw(st.sampled_from(sorted(wider))) if fate == "widen" else field.dtype
        if fate != "drop":
            fields.append(FeatureField(field.name, code, field.shape, field.default))
    for index in range(draw(st.integers(0 if fields else 1, 3))):
        shape = draw(st.sampled_from([(), (None,), (2,)]))
        code = draw(st.sampled_from(list(dtype)))
        fields.append(FeatureField(f"added_{index}", code, shape if code.is_numeric else ()))
    return make_schema(old.__name__, draw(st.permutations(fields)), version=old.version + draw(st.integers(1, 3)))


@st.composite
def evolutions(draw: st.DrawFn) -> tuple[Schema, Schema, list[dict[str, Any]]]:
    old = draw(st.sampled_from([Everything, Scalars]) | schemas())
    return old, draw(successors(old)), draw(st.lists(rows_of(old), min_size=1, max_size=4))


def expected(old: Schema, new: Schema, values: dict[str, Any]) -> pa.RecordBatch:
    """What the log's translation by name makes of a row."""
    return translate(decode(encode(Kind.upsert, old, row_batch(old, ID, values, 5))), new)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> SegmentRegistry:
    directory = tmp_path_factory.mktemp("compatibility")
    (directory / "shm").mkdir()
    return SegmentRegistry(directory / "control", shm_dir=directory / "shm")


@settings(deadline=None, max_examples=40)
@given(case=evolutions())
def test_carried_rows_are_what_the_log_would_have_made_of_them(places: SegmentRegistry, case: Any) -> None:
    old, new, rows = case
    with places.create(old, capacity=8, set_current=False) as segment:
        ids = [f"{LONG_ID if index % 2 else ID} {index}" for index in range(len(rows))]
        for entity_id, values in zip(ids, rows, strict=True):
            layout.apply_batch(segment, row_batch(old, entity_id, values, 5), position=7)
        layout.apply_batch(segment, row_batch(old, "gone", rows[0], 5))
        layout.delete(segment, "gone", event_time_ns=2**62)
        before = assembly.assemble_batch(segment, ids)[0]
        assert evolve(segment, new)
        assert segment.schema is old

        through_old = assembly.assemble_batch(segment, ids)[0]
        assert same(serving.assemble_batch(segment, ids)[0], through_old)
        assert through_old.shape == before.shape
        assert same(before[:, kept_columns(old, new)], through_old[:, kept_columns(old, new)])
        old_columns = assembly.read(segment, [*ids, "gone"])
        assert arrow_equal(old_columns, serving.read(segment, [*ids, "gone"]))
        assert old_columns.schema.names[3:] == [field.name for field in old.fields]

        view = segment.current_view()
        with type(segment)(view.through(new), None, read_only=True) as reader:
            found = assembly.read(reader, [*ids, "gone"])
            assert arrow_equal(found, serving.read(reader, [*ids, "gone"]))
            assert found.column("found").to_pylist() == [True] * len(ids) + [False]
            for index, values in enumerate(rows):
                row = expected(old, new, values)
                assert arrow_equal(found.slice(index, 1).select(row.schema.names[2:]), row.select(row.schema.names[2:]))
                assert found["event_time_ns"][index].as_py() == 5
            assert same(assembly.assemble_batch(reader, ids)[0], serving.assemble_batch(reader, ids)[0])
        assert int(view.header["entity_count"]) == len(rows)
        assert int(view.header["deleted_count"]) == 1
        assert view.books_add_up
        places.discard(segment)


def kept_columns(old: Schema, new: Schema) -> np.ndarray[Any, Any]:
    """The places in the old vector of fields that the new schema has too."""
    kept = {field.name for field in new.fields}
    return np.array([field.name in kept for field in old.fields for _ in range(field.element_count)], bool)


def same(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> bool:
    return np.array_equal(left, right, equal_nan=True)


def arrow_equal(left: pa.RecordBatch, right: pa.RecordBatch) -> bool:
    """Equal values and types, NaN equal to NaN."""
    return left.schema.types == right.schema.types and repr(left.to_pylist()) == repr(right.to_pylist())


@pytest.mark.parametrize(("narrow", "wide"), sorted(WIDENINGS))
def test_widened_values_are_exact(registry: SegmentRegistry, narrow: dtype, wide: dtype) -> None:
    shapes = [(), (3,), (None,)]
    old, new = (
        make_schema("Wide", [named(f"f{i}", code, shape) for i, shape in enumerate(shapes)], version=version)
        for version, code in ((1, narrow), (2, wide))
    )
    values = edge_values(narrow)
    with registry.create(old, capacity=len(values)) as segment:
        for index, value in enumerate(values):
            layout.insert(segment, str(index), layout.pack_row(old, f0=value, f1=[value] * 3, f2=[value] * 2))
        evolve(segment, new)
        with registry.open_current(new) as reader:
            rows = assembly.read(reader, [str(index) for index in range(len(values))])
            assert rows.schema.field("f0").type == schema_to_arrow(new).field("f0").type
            widened = [np.array(value, narrow.numpy).astype(wide.numpy).item() for value in values]
            assert repr(rows["f0"].to_pylist()) == repr(widened)
            assert repr(rows["f1"].to_pylist()) == repr([[value] * 3 for value in widened])
            assert repr(rows["f2"].to_pylist()) == repr([[value] * 2 for value in widened])
        registry.discard(segment)


def edge_values(code: dtype) -> list[Any]:
    if code.numpy.kind == "f":
        info = np.finfo(code.numpy)
        return [0.0, -0.0, 0.1, float(info.max), float(info.min), float(info.smallest_subnormal), math.inf, math.nan]
    numbers = np.iinfo(code.numpy)
    return [0, 1, int(numbers.min), int(numbers.max), int(numbers.max) - 1]


def test_readers_go_on_with_the_schema_they_were_opened_with(registry: SegmentRegistry) -> None:
    old = make_schema(
        "View", [named("a", dtype.float32), named("gone", dtype.float32, default=-1.0), named("t", dtype.string)]
    )
    new = make_schema("View", [named("added", dtype.float32, default=9.0), named("a", dtype.float64)], version=2)
    with registry.create(old, capacity=4) as writer, registry.open_current(old) as reader:
        layout.insert(writer, "x", layout.pack_row(old, a=1.5, gone=2.5, t="text"), event_time_ns=1)
        columns, one = assembly.column_reader(reader, ["gone", "a"]), assembly.row_reader([(reader, ["a", "gone"])])
        quick = assembly.reader(reader, ["gone", "a"])
        assert assembly.assemble(reader, "x").tolist() == [1.5, 2.5]
        evolve(writer, new)
        for module in (assembly, serving):
            assert module.assemble(reader, "x").tolist() == [1.5, -1.0]
            with pytest.raises(EntityNotFoundError):
                module.assemble(reader, "y")
        assert quick("x").tolist() == [-1.0, 1.5]
        assert quick.batch(["x", "y"], missing=7.0)[0].tolist() == [[-1.0, 1.5], [7.0, 7.0]]
        found = columns(["x", "y"])
        assert (found.arrow(0).to_pylist(), found.arrow(1).to_pylist()) == ([None, None], [1.5, None])
        assert found.values(0).tolist() == [0.0, 0.0]
        assert not found.complete
        rows = one("x") or one("x")
        assert rows is not None
        row = rows[0]
        assert rows.complete == row.complete
        assert (row.complete, row.is_valid(0), row.is_valid(1)) == (False, True, False)
        with registry.open_current(old) as late, registry.open_current(new) as newer:
            assert assembly.assemble(late, "x").tolist() == [1.5, -1.0]
            assert assembly.assemble(newer, "x").tolist() == [9.0, 1.5]
            assert late.stats()["schema_version"] == 2
        # Writers with the old schema go on as well, and what they write is there for both.
        assert layout.insert(writer, "z", layout.pack_row(old, a=3.0, gone=1.0, t=None), event_time_ns=2)
        table = pa.table({"entity_id": ["x"], "a": [4.0], "gone": [0.0], "t": ["new"], "event_time_ns": [2]})
        assert layout.insert_many(writer, table) == 1
        assert assembly.assemble_batch(reader, ["x", "z"])[0].tolist() == [[4.0, -1.0], [3.0, -1.0]]
        assert layout.delete(writer, "x")
        registry.discard(writer)


def test_a_segment_is_not_read_through_what_it_is_not(registry: SegmentRegistry) -> None:
    fields = [named("a", dtype.float32)]
    with registry.create(make_schema("View", fields, version=2), capacity=4) as segment:
        for other in (
            make_schema("View", fields, version=3),
            make_schema("View", [named("b", dtype.float32)], version=2),
        ):
            with pytest.raises(SchemaMismatchError):
                registry.open_current(other)
        # A field that another version made something else reads as one that is not there.
        older = make_schema("View", [named("a", dtype.string), named("b", dtype.float32, default=3.0)], version=1)
        layout.insert(segment, "x", layout.pack_row(segment.schema, a=1.0))
        with registry.open_current(older) as reader:
            assert assembly.assemble(reader, "x").tolist() == [3.0]
            assert assembly.read(reader, ["x"]).select(["a", "b"]).to_pylist() == [{"a": None, "b": None}]
        registry.discard(segment)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_refusal_names_every_field_that_is_in_the_way_and_an_acceptance_loses_nothing(data: st.DataObject) -> None:
    old = data.draw(schemas())
    changed = [data.draw(changed_field(field)) for field in old.fields]
    new = make_schema(old.__name__, changed, version=data.draw(st.integers(1, 3)))
    possible, reasons = can_upgrade(old, new)
    wrong = [before.name for before, after in zip(old.fields, changed, strict=True) if not keeps(before, after)]
    assert possible == (new.version > old.version and not wrong)
    assert possible == (not reasons)
    named_fields = [reason for reason in reasons if reason.startswith("field ")]
    assert len(named_fields) == len(wrong)
    assert all(f"{name!r}" in reason for name, reason in zip(wrong, named_fields, strict=True))
    values = {field.name: data.draw(values_of(field)) for field in old.fields}
    if possible:
        assert expected(old, new, values).num_rows == 1
    elif wrong:
        with pytest.raises(InvalidEntryError):
            expected(old, new, values)


def changed_field(field: FeatureField) -> st.SearchStrategy[FeatureField]:
    codes = st.sampled_from([field.dtype, field.dtype, *dtype])
    return codes.map(
        lambda code: FeatureField(field.name, code, field.shape if code.is_numeric or len(field.shape) < 1 else (None,))
    )


def keeps(before: FeatureField, after: FeatureField) -> bool:
    """Whether every value is still exactly itself, by NumPy's word."""
    if before.shape != after.shape:
        return False
    if before.dtype is after.dtype:
        return True
    if not before.dtype.is_numeric or not after.dtype.is_numeric or dtype.bool in (before.dtype, after.dtype):
        return False
    if before.dtype is dtype.int64 and after.dtype is dtype.float64:
        return False  # NumPy calls it safe; it rounds.
    return np.can_cast(before.dtype.numpy, after.dtype.numpy, "safe")


def test_refusals_say_which_field_and_why() -> None:
    old = make_schema(
        "A", [named("x", dtype.float64), named("y", dtype.float32, (3,)), named("z", dtype.string)], version=2
    )
    new = make_schema(
        "B", [named("x", dtype.float32), named("y", dtype.float32, (4,)), named("z", dtype.bytes)], version=2
    )
    possible, reasons = can_upgrade(old, new)
    assert not possible
    assert reasons == [
        "the schemas have different names: 'A' and 'B'",
        "the version must grow: it is 2, and 2 was to follow",
        "field 'x' would narrow from float64 to float32",
        "field 'y' would change its shape from (3,) to (4,)",
        "field 'z' would change from string to bytes, which does not hold its values",
    ]


def test_what_ids_name_stays_once_it_is_said() -> None:
    def schema(version: int, entity: str | None) -> Schema:
        return make_schema("A", [named("x", dtype.float64)], version=version, entity=entity)

    assert can_upgrade(schema(1, None), schema(2, "driver"))[0]
    assert can_upgrade(schema(1, "driver"), schema(2, "driver"))[0]
    assert can_upgrade(schema(1, "driver"), schema(2, "shop")) == (
        False,
        ["the ids would name another entity: 'shop' instead of 'driver'"],
    )
