"""The compiled reads: equal to the NumPy oracle bit for bit, and clear about what they refuse."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings

from quorin import assembly, layout, serving
from quorin.errors import EntityIdError, EntityNotFoundError, InvalidBufferError, InvalidRowError, SegmentClosedError
from quorin.schema import FeatureField, Schema, dtype, make_schema
from quorin.shm import Segment, SegmentRegistry
from tests.support.schemas import ENTITY_IDS, Everything, Scalars, rows_of, schemas


@pytest.fixture
def scalars(registry: SegmentRegistry) -> Iterator[Segment]:
    with registry.create(Scalars, capacity=100) as segment:
        for i in range(10):
            layout.insert(segment, f"id{i}", layout.pack_row(Scalars, a=i, b=i + 0.25, c=-i, d=None))
        yield segment


@st.composite
def filled(draw: st.DrawFn) -> tuple[Schema, dict[str, dict[str, Any]]]:
    schema = draw(schemas())
    return schema, draw(st.dictionaries(ENTITY_IDS, rows_of(schema), max_size=6))


@settings(max_examples=150, deadline=None)
@given(filled(), st.lists(ENTITY_IDS, max_size=4), st.floats(width=32))
def test_compiled_reads_equal_the_oracle_bit_for_bit(
    case: tuple[Schema, dict[str, dict[str, Any]]], others: list[str], missing: float
) -> None:
    schema, rows = case
    with tempfile.TemporaryDirectory() as directory:
        registry = SegmentRegistry(directory, shm_dir=directory)
        with registry.create(schema, capacity=2) as segment:
            for entity_id, row in rows.items():
                layout.insert(segment, entity_id, layout.pack_row(schema, **row), event_time_ns=hash(entity_id) % 1000)
            asked = [*rows, *others, *rows]
            compare(segment, asked, missing)
            for entity_id in rows:
                assert bits(assembly.assemble(segment, entity_id)) == bits(serving.assemble(segment, entity_id))
        registry.backend.close()


def compare(segment: Segment, asked: list[str], missing: float) -> None:
    fast, fast_found = assembly.assemble_batch(segment, asked, missing=missing)
    slow, slow_found = serving.assemble_batch(segment, asked, missing=missing)
    assert bits(fast) == bits(slow)
    assert (fast_found == slow_found).all()
    batch = assembly.read(segment, asked)
    batch.validate(full=True)
    # Arrow's `equals` takes NaN as unequal to itself; the bytes of a written batch do not.
    assert ipc_bytes(batch) == ipc_bytes(serving.read(segment, asked))


def bits(array: np.ndarray[Any, Any]) -> bytes:
    return array.tobytes()


def ipc_bytes(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


FLOAT32_BITS = [0x7FC00001, 0xFFC12345, 0x7F800001, 0x7F800000, 0xFF800000, 0x00000001, 0x80000000, 0x807FFFFF]


def test_float32_bit_patterns_survive(registry: SegmentRegistry) -> None:
    """NaN payloads, infinities, subnormals and negative zero are copied, not computed."""
    values = np.array(FLOAT32_BITS, np.uint32).view(np.float32)
    schema = make_schema("Bits", [FeatureField("v", dtype.float32, (len(values),))])
    with registry.create(schema, capacity=1) as segment:
        layout.insert(segment, "x", layout.pack_row(schema, v=values))
        assert bits(assembly.assemble(segment, "x")) == bits(serving.assemble(segment, "x")) == bits(values)


@settings(max_examples=200, deadline=None)
@given(st.floats(), st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1))
def test_wider_types_round_to_float32_as_numpy_does(f64: float, i64: int, i32: int) -> None:
    schema = make_schema(
        "Wide", [FeatureField("a", dtype.float64), FeatureField("b", dtype.int64), FeatureField("c", dtype.int32)]
    )
    with tempfile.TemporaryDirectory() as directory:
        registry = SegmentRegistry(directory, shm_dir=directory)
        with registry.create(schema, capacity=1) as segment:
            layout.insert(segment, "x", layout.pack_row(schema, a=f64, b=i64, c=i32))
            with np.errstate(over="ignore"):
                expected = [np.float64(f64).astype(np.float32), np.float32(i64), np.float32(i32)]
            assert bits(assembly.assemble(segment, "x")) == struct.pack("3f", *expected) or f64 != f64
            assert bits(assembly.assemble(segment, "x")) == bits(serving.assemble(segment, "x"))
        registry.backend.close()


def test_nulls_read_as_defaults_in_vectors_and_as_nulls_in_columns(registry: SegmentRegistry) -> None:
    with registry.create(Everything, capacity=10) as segment:
        layout.insert(segment, "none", layout.pack_row(Everything, **{f.name: None for f in Everything.fields}))
        vector = assembly.assemble(segment, "none")
        assert vector[1:3].tolist() == [-1.5, 7.0]
        assert np.isnan(np.delete(vector, [1, 2])).all()
        row = assembly.read(segment, ["none"]).to_pylist()[0]
        assert row.pop("found") is True
        assert row.pop("event_time_ns") > 10**18
        assert row.pop("entity_id") == "none"
        assert set(row.values()) == {None}


def test_read_gives_exact_types(registry: SegmentRegistry) -> None:
    values: dict[str, Any] = {
        "f32": 0.5, "f64": 1e300, "i32": -5, "i64": 2**62 + 1, "u8": 255, "flag": True, "text": "héllo\0",
        "blob": b"\0\xff",
        "vector": [1, 2, 3], "grid": [[1, 2], [3, 4]], "flags": [True, False, True], "numbers": [2**60, -1],
        "marks": [False, True], "tags": ["x", "", "ü"], "blobs": [b"", b"\0"],
    }  # fmt: skip
    with registry.create(Everything, capacity=10) as segment:
        layout.insert(segment, "é", layout.pack_row(Everything, **values), event_time_ns=17)
        batch = assembly.read(segment, ["nobody", "é"])
        assert batch.to_pylist()[1] == {"entity_id": "é", "found": True, "event_time_ns": 17, **values}
        assert {k: v for k, v in batch.to_pylist()[0].items() if v is not None} == {
            "entity_id": "nobody",
            "found": False,
        }
        few = assembly.read(segment, ["é"], ["tags", "f32"])
        assert few.schema.names == ["entity_id", "found", "event_time_ns", "tags", "f32"]
        with pytest.raises(InvalidRowError, match="colour"):
            assembly.read(segment, ["é"], ["colour"])


IDS = ["id3", "nobody", "id5"]
FORMS: dict[str, Any] = {
    "list": IDS,
    "tuple": tuple(IDS),
    "generator": (i for i in IDS),
    "numpy str": np.array(IDS),
    "numpy bytes": np.array(IDS, "S"),
    "numpy object": np.array(IDS, object),
    "pandas": pd.Series(IDS),
    "arrow": pa.array(IDS),
    "arrow slice": pa.array(["id9", *IDS, "id8"]).slice(1, 3),
    "arrow large": pa.array(IDS, pa.large_string()),
    "arrow binary": pa.array([i.encode() for i in IDS]),
    "arrow view": pa.array(IDS, pa.string_view()),
    "arrow dictionary": pa.array(IDS).dictionary_encode(),
    "arrow chunks": pa.chunked_array([IDS[:1], IDS[1:]]),
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_take_ids_in_many_forms(scalars: Segment, form: str) -> None:
    out, found = assembly.assemble_batch(scalars, FORMS[form], missing=-1)
    assert found.tolist() == [True, False, True]
    assert out[:, 0].tolist() == [3, -1, 5]


@pytest.mark.parametrize("count", [1, 16, 17])
@pytest.mark.parametrize("last", ["id1", "nobody", "ü", b"id2"])
def test_lists_of_few_ids_read_as_arrow_arrays_do(registry: SegmentRegistry, count: int, last: Any) -> None:
    with registry.create(Scalars, capacity=2) as writer, registry.open_current(Scalars) as segment:
        reader = assembly.reader(segment)
        for i, entity_id in enumerate([*(f"id{i}" for i in range(20)), "ü"]):  # It grows: `segment` has a successor.
            layout.insert(writer, entity_id, layout.pack_row(Scalars, a=i, b=2, c=3, d=None))
        ids = [*(f"id{i}" for i in range(count - 1)), last]
        as_bytes = pa.array([each if isinstance(each, bytes) else each.encode() for each in ids])
        for read in (reader.batch, partial(assembly.assemble_batch, segment)):
            (values, found), (expected, expected_found) = read(ids, missing=-1), read(as_bytes, missing=-1)
            assert values.tobytes() == expected.tobytes()
            assert found.tolist() == expected_found.tolist() == [*[True] * (count - 1), last != "nobody"]


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (["id1", ""], "row 1: an entity id must not be empty"),
        (["id1", None], "row 1: expected an entity id, got null"),
        (pa.array(["id1", None]), "row 1: expected an entity id, got null"),
        ([1, 2], "1"),
        (pa.array([1, 2]), "int64"),
        ("id1", "got one"),
        (["id1", "\ud800"], "surrogates"),
        ([b"id1", 4], "row 1, .* got 4"),
    ],
)
def test_bad_ids_in_a_batch_are_named(scalars: Segment, ids: Any, text: str) -> None:
    for module in (assembly, serving):
        with pytest.raises(EntityIdError, match=text):
            module.assemble_batch(scalars, ids)


@pytest.mark.parametrize("bad", ["", 5, None, b"id1", "\ud800", ["id1"]])
def test_a_bad_id_is_named(scalars: Segment, bad: Any) -> None:
    for module in (assembly, serving):
        with pytest.raises(EntityIdError) as caught:
            module.assemble(scalars, bad)
        assert repr(bad)[:10] in str(caught.value)


@pytest.mark.parametrize("unknown", ["nobody", "ü", "x" * 1000, "a\0b"])
def test_a_miss_says_which_id_and_where(scalars: Segment, unknown: str) -> None:
    for module in (assembly, serving):
        with pytest.raises(EntityNotFoundError) as caught:
            module.assemble(scalars, unknown)
        assert caught.value.entity_id == unknown
        assert repr(unknown) in str(caught.value)
        assert scalars.name in str(caught.value)
    assert isinstance(caught.value, KeyError)


READ_ONLY = np.zeros(4, np.float32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("out", "text"),
    [
        (np.zeros(3, np.float32), r"\(3,\)"),
        (np.zeros((1, 4), np.float32), r"\(1, 4\)"),
        (np.zeros(4), "float64"),
        (np.zeros(4, ">f4"), ">f4"),
        (np.zeros(8, np.float32)[::2], "not contiguous"),
        (READ_ONLY, "read-only"),
        ([0.0] * 4, "list"),
    ],
)
def test_an_out_that_does_not_fit_is_refused(scalars: Segment, out: Any, text: str) -> None:
    for read in (assembly.assemble, serving.assemble, assembly.reader(scalars)):
        with pytest.raises(InvalidBufferError, match=text):
            read(scalars, "id1", out=out) if read in (assembly.assemble, serving.assemble) else read("id1", out)


def test_batch_buffers_are_checked_and_used(scalars: Segment) -> None:
    out, mask = np.zeros((3, 4), np.float32), np.zeros(3, np.bool_)
    result = assembly.assemble_batch(scalars, IDS, out=out, found_mask=mask)
    assert result[0] is out
    assert result[1] is mask
    with pytest.raises(InvalidBufferError, match=r"\(3, 4\)"):
        assembly.assemble_batch(scalars, IDS[:2], out=out)
    with pytest.raises(InvalidBufferError, match="found_mask"):
        assembly.assemble_batch(scalars, IDS, found_mask=np.zeros(3, np.uint8))


def test_out_is_filled_in_place(scalars: Segment) -> None:
    out = np.empty(4, np.float32)
    assert assembly.assemble(scalars, "id2", out=out) is out
    assert out[:3].tolist() == [2, 2.25, -2]


def test_an_empty_batch_gives_empty_arrays(scalars: Segment) -> None:
    for module in (assembly, serving):
        out, found = module.assemble_batch(scalars, [])
        assert out.shape == (0, 4)
        assert found.shape == (0,)
        assert module.read(scalars, []).num_rows == 0


def test_a_reader_binds_a_choice_of_fields(scalars: Segment) -> None:
    read = assembly.reader(scalars, ["c", "a"])
    assert read("id4").tolist() == [-4, 4]
    assert read.batch(["id4", "nobody"], missing=9)[0].tolist() == [[-4, 4], [9, 9]]
    assert assembly.reader(scalars).length == 4
    for wrong in (["colour"], []):
        with pytest.raises(InvalidRowError, match="numeric fields"):
            assembly.reader(scalars, wrong)
    with pytest.raises(EntityNotFoundError):
        read("nobody")


def test_a_reader_follows_a_grown_segment(registry: SegmentRegistry) -> None:
    with registry.create(Scalars, capacity=2) as writer, registry.open_current(Scalars) as segment:
        layout.insert(writer, "first", layout.pack_row(Scalars, a=1, b=2, c=3, d=4))
        read = assembly.reader(segment, ["d", "a"])
        assert read("first").tolist() == [4, 1]
        for i in range(100):
            layout.insert(writer, f"id{i}", layout.pack_row(Scalars, a=i, b=2, c=3, d=4))
        assert read("id99").tolist() == [4, 99]
        assert read("first").tolist() == [4, 1]
        assert segment.name == writer.name


def test_reads_after_close_say_so(registry: SegmentRegistry) -> None:
    segment = registry.create(Scalars, capacity=2)
    name = segment.name
    read = assembly.reader(segment)
    segment.close()
    segment.close()
    for call in (
        lambda: assembly.assemble(segment, "x"),
        lambda: assembly.assemble_batch(segment, ["x"]),
        lambda: assembly.read(segment, ["x"]),
        lambda: serving.assemble(segment, "x"),
        lambda: read("x"),
        lambda: len(segment),
    ):
        with pytest.raises(SegmentClosedError, match=name):
            call()
    assert "closed" in repr(segment)


def test_threads_share_a_segment_and_a_close_in_between_harms_none(scalars: Segment) -> None:
    ids = pa.array([f"id{i % 10}" for i in range(20_000)])
    errors: list[BaseException] = []

    def read_until_closed() -> None:
        try:
            while True:
                out, _ = assembly.assemble_batch(scalars, ids)
                assert (out[:, 0] == np.arange(20_000) % 10).all()
        except SegmentClosedError:
            return
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            errors.append(error)

    threads = [threading.Thread(target=read_until_closed) for _ in range(3)]
    for thread in threads:
        thread.start()
    threading.Event().wait(0.2)
    scalars.close()
    for thread in threads:
        thread.join()
    assert not errors


def test_a_forked_child_reads_without_attaching_and_its_close_does_no_harm(scalars: Segment) -> None:
    expected = assembly.assemble(scalars, "id7")
    child = os.fork()
    if child == 0:
        try:
            same = bits(assembly.assemble(scalars, "id7")) == bits(expected)
            assert not scalars.holds_writer_lease
            scalars.close()
            os._exit(0 if same else 1)
        except BaseException:  # noqa: BLE001 - the exit code is the report
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert scalars.holds_writer_lease
    layout.insert(scalars, "id7", layout.pack_row(Scalars, a=70, b=0, c=0, d=0))
    assert assembly.assemble(scalars, "id7")[0] == 70


def test_importing_assembly_loads_no_numba() -> None:
    import subprocess
    import sys

    code = "import sys, quorin.assembly, quorin.shm, quorin.layout; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_what_is_alive_at_warm_up_can_be_kept_from_the_collector() -> None:
    script = (
        "import gc; from quorin.assembly import prewarm; prewarm(); before = gc.get_freeze_count(); "
        "prewarm(freeze=True); print(before, gc.get_freeze_count() > 10_000, gc.isenabled())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True", "True"]
