"""Fields with a history: rows keep the last values that the history has, whatever order entries came in."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from quorin import assembly, layout, serving
from quorin.assembly import EntityNotFoundError, read_last, read_last_batch
from quorin.engine.backend import connect
from quorin.engine.log.record import decode
from quorin.errors import CorruptSegmentError, EntityIdError, InvalidRowError, SchemaError, SchemaTypeError
from quorin.evolution import can_upgrade, upgrade_schema
from quorin.hydration import hydrate
from quorin.offline import ParquetDatasetStore, last_values
from quorin.schema import FeatureField, Schema, dtype, make_schema, schema_from_json, schema_to_json
from quorin.shm import Segment, SegmentRegistry
from quorin.snapshot import restore, snapshot
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.unit.history.test_last_values import ENTRIES, record_of

FIELDS = [
    FeatureField("a", dtype.float64, history=3),
    FeatureField("b", dtype.string),
    FeatureField("tie", dtype.int64),
    FeatureField("c", dtype.uint8, history=2),
]
Plain = make_schema("Plain", FIELDS[:3])
Tied = make_schema("Tied", FIELDS[:3], tie_breaker="tie")
LATE = 4_000_000_000 * 10**9
"""Far in the future: old deletions are forgotten when a segment grows."""
Small = make_schema("Small", [FIELDS[3], FeatureField("flag", dtype.bool, history=9)])


def apply(segment: Segment, payload: bytes, position: int) -> None:
    record = decode(payload)
    layout.apply_batch(segment, record.batch, position=position, kind=record.kind)


def values_of(segment: Segment, entity_id: str, n: int | None = None) -> list[tuple[int, Any]]:
    """Event times and values, null as None; the oracle has the same."""
    fast, slow = (module.read_last(segment, entity_id, "a", n) for module in (assembly, serving))
    assert all(np.array_equal(*pair) for pair in zip(fast, slow, strict=True))
    rows = zip(fast.event_time_ns.tolist(), fast.valid.tolist(), fast.values.tolist(), strict=True)
    return [(time, value if valid else None) for time, valid, value in rows]


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([Plain, Tied]), ENTRIES, st.randoms(use_true_random=False), st.sampled_from([1, 64]))
def test_a_row_keeps_the_last_values_in_any_order_of_application(
    schema: Schema, entries: list[Any], order: random.Random, capacity: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        registry = SegmentRegistry(directory, shm_dir=directory)
        entries = [(kind, entity_id, LATE + time, *rest) for kind, entity_id, time, *rest in entries]
        records = [record_of(schema, entry) for entry in entries]
        positions = [registry.backend.log().append([(schema.__name__, one)])[0] for one in records]
        numbered = list(zip(records, positions, strict=True))
        shuffled = order.sample(numbered, len(numbered)) + order.choices(numbered, k=5) if numbered else []
        ids = ["x", "y", "é"]
        expected = last_values(schema, ids, 3, connection=registry.backend, fields=["a"]).to_pylist()
        results = []
        for written in (numbered, shuffled):
            with registry.create(schema, capacity=capacity, set_current=False) as segment:
                for record, position in written:
                    apply(segment, record, position)
                before = assembly.scan(segment).read_all().to_pylist()
                live = sorted(row["entity_id"] for row in before)
                kept = {entity_id: values_of(segment, entity_id) for entity_id in live}
                batches = [module.read_last_batch(segment, ids, "a") for module in (assembly, serving)]
                assert batches[0].equals(batches[1])
                results.append(kept)
                registry.discard(segment)
        registry.backend.close()
    assert results[0] == results[1]
    for kept in results:
        for entity_id, values in kept.items():
            assert values == [(row["event_time_ns"], row["a"]) for row in expected if row["entity_id"] == entity_id], (
                entity_id
            )


def write(producer: WALProducer, schema: Schema, count: int) -> None:
    for i in range(count):
        producer.write(schema, "x", {"a": i, "b": f"{i}", "tie": None}, event_time_ns=(i * 7) % 10)
    producer.delete(schema, "x", event_time_ns=2)


def test_growth_snapshots_and_hydration_keep_the_last_values(registry: SegmentRegistry, tmp_path: Path) -> None:
    store = ParquetDatasetStore(tmp_path / "history")
    expected = [(9, 7.0), (8, 4.0), (7, 1.0)]
    with WALProducer(registry.backend, registry=registry) as producer:
        with WALConsumer(registry.backend, [Plain], registry=registry, offline=store) as consumer:
            write(producer, Plain, 10)
            consumer.drain()
        with registry.open_current(Plain, read_only=False) as segment:
            assert values_of(segment, "x") == expected
            layout.insert_many(
                segment,
                {
                    "entity_id": [f"e{i}" for i in range(5000)],
                    "a": [None] * 5000,
                    "b": [None] * 5000,
                    "tie": [1] * 5000,
                },
            )
            assert segment.stats()["generation"] > 1
            assert values_of(segment, "x") == expected
            assert values_of(segment, "e7")[0][1] is None
            snapshot(segment, tmp_path / "saved")
            registry.discard(segment)
    restore(tmp_path / "saved", registry)
    with registry.open_current(Plain, read_only=False) as segment:
        assert values_of(segment, "x") == expected
        registry.discard(segment)
    hydrate(Plain, store, registry)
    with registry.open_current(Plain, read_only=False) as segment:
        assert values_of(segment, "x") == expected
        layout.delete(segment, "x", event_time_ns=100)
        with pytest.raises(EntityNotFoundError):
            read_last(segment, "x", "a")
        layout.insert(segment, "x", layout.pack_row(Plain, a=5, b=None, tie=None), event_time_ns=200)
        layout.insert(segment, "x", layout.pack_row(Plain, a=4, b=None, tie=None), event_time_ns=50)
        assert values_of(segment, "x") == [(200, 5.0)]
        registry.discard(segment)


def test_upgrades_add_widen_enlarge_and_remove_a_history(registry: SegmentRegistry) -> None:
    def version(number: int, *fields: FeatureField) -> Schema:
        return make_schema("Moving", list(fields), version=number)

    first = version(1, FeatureField("a", dtype.float32), FeatureField("b", dtype.int32, history=2))
    second = version(2, FeatureField("b", dtype.int64, history=4), FeatureField("a", dtype.float32, history=2))
    third = version(3, FeatureField("b", dtype.int64), FeatureField("a", dtype.float64, history=2))
    with registry.create(first, capacity=8) as segment:
        for i in range(4):
            layout.insert(segment, "x", layout.pack_row(first, a=i, b=-i), event_time_ns=i)
        layout.delete(segment, "x", event_time_ns=2)
        layout.insert(segment, "gone", layout.pack_row(first, a=1, b=1), event_time_ns=1)
        layout.delete(segment, "gone", event_time_ns=2)
    upgrade_schema(first, second, registry)
    with registry.open_current(second, read_only=False) as segment, registry.open_current(first) as older:
        assert read_last(segment, "x", "b").values.tolist() == [-3]
        assert read_last(segment, "x", "a").values.tolist() == []
        assert read_last(older, "x", "b").values.tolist() == [-3]
        for i in (9, 8, 7, 6, 1):
            layout.insert(segment, "x", layout.pack_row(second, a=i / 2, b=2**40 + i), event_time_ns=i)
        assert (read_last(segment, "x", "b").values - 2**40).tolist() == [9, 8, 7, 6]
        assert read_last(segment, "x", "a", 5).values.tolist() == [4.5, 4.0]
        assert len(segment) == 1
    upgrade_schema(second, third, registry)
    with registry.open_current(third, read_only=False) as segment, registry.open_current(second) as older:
        a = read_last(segment, "x", "a")
        assert (a.values.tolist(), a.values.dtype, a.event_time_ns.tolist()) == ([4.5, 4.0], np.float64, [9, 8])
        with pytest.raises(InvalidRowError, match=r"'b' is no field with a history; those that are: \['a'\]"):
            read_last(segment, "x", "b")
        assert read_last(older, "x", "b").values.tolist() == []
    with registry.open_current(third, read_only=False) as segment:
        registry.discard(segment)
    possible, reasons = can_upgrade(second, version(9, FeatureField("b", dtype.int64, history=3)))
    assert (possible, reasons) == (False, ["field 'b' would keep the last 3 values instead of 4"])


def test_a_segment_with_a_history_has_a_format_of_its_own(registry: SegmentRegistry) -> None:
    plain = make_schema("Plain", [FeatureField("a", dtype.float64)])
    assert "history" not in schema_to_json(plain)
    assert schema_from_json(schema_to_json(Small)) == Small
    for schema, expected in ((plain, 1), (Small, 2)):
        with registry.create(schema, capacity=8) as segment:
            view = segment.current_view()
            assert int(view.header["format_version"]) == view.layout.format_version == expected
            view.header["format_version"] = 3 - expected
            with pytest.raises(CorruptSegmentError, match=r"checksum|format_version"):
                registry.open_current(schema)
            view.header["format_version"] = 4
            with pytest.raises(CorruptSegmentError, match=r"has format version 4 .*, this Quorin reads 1, 2 and 3"):
                registry.open_current(schema)
            registry.discard(segment)


def test_small_types_nulls_and_batches(registry: SegmentRegistry) -> None:
    with registry.create(Small, capacity=8) as segment:
        for i in range(12):
            row = layout.pack_row(Small, c=i, flag=None if i % 4 == 0 else i % 2 == 0)
            layout.insert(segment, "é", row, event_time_ns=-i)
        c, flag = (read_last(segment, "é", name) for name in ("c", "flag"))
        assert (c.values.tolist(), c.values.dtype, c.event_time_ns.tolist()) == ([0, 1], np.uint8, [0, -1])
        assert (flag.valid.tolist()[:5], flag.values.dtype) == ([False, True, True, True, False], np.bool_)
        assert flag.values.tolist()[:4] == [False, False, True, False]
        for module in (assembly, serving):
            rows = module.read_last_batch(segment, pa.array(["é", "nobody"]), "flag", 3).to_pylist()
            assert rows == [
                {"entity_id": "é", "found": True, "values": [None, False, True], "event_time_ns": [0, -1, -2]},
                {"entity_id": "nobody", "found": False, "values": None, "event_time_ns": None},
            ]
            assert module.read_last_batch(segment, [], "c").num_rows == 0
            for n in (0, -1, 1.5, True):
                with pytest.raises(ValueError, match="n: expected a whole number of values"):
                    module.read_last(segment, "é", "c", n)
        with pytest.raises(EntityNotFoundError):
            read_last(segment, "nobody", "c")
        with pytest.raises(EntityIdError):
            read_last(segment, "", "c")
        with pytest.raises(InvalidRowError, match="'nope' is no field with a history"):
            read_last_batch(segment, ["é"], "nope")
        registry.discard(segment)


def test_what_keeps_no_history_is_refused_when_the_class_is_defined() -> None:
    for options, error in (
        ({"dtype": dtype.string}, "only single numbers can keep a history, got string"),
        ({"dtype": dtype.float32, "shape": (None,)}, "only single numbers can keep a history, got float32 of shape"),
        ({"dtype": dtype.float32, "shape": (3,)}, "only single numbers can keep a history"),
    ):
        with pytest.raises(SchemaError, match=error):
            FeatureField("a", history=5, **options)  # type: ignore[arg-type]
    for history in (0, -1, 10_001):
        with pytest.raises(SchemaError, match=f"a history has 1 to 10000 values, got {history}"):
            FeatureField("a", dtype.float32, history=history)
    for wrong in (True, "3", 1.5):
        with pytest.raises(SchemaTypeError, match="history must be a whole number of values"):
            FeatureField("a", dtype.float32, history=wrong)  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="tie_breaker 't' is none of its int64 scalars"):
        make_schema("Tied", [FeatureField("t", dtype.int64, history=2)], tie_breaker="t")


def test_the_log_fills_the_last_values_as_calls_do(tmp_path: Path) -> None:
    backend = connect(tmp_path)
    registry = SegmentRegistry(backend, shm_dir=tmp_path)
    producer = WALProducer(backend, registry=registry)
    with producer, WALConsumer(backend, [Plain], registry=registry) as consumer:
        write(producer, Plain, 6)
        consumer.drain()
        with registry.open_current(Plain) as segment:
            assert values_of(segment, "x") == [(8, 4.0), (7, 1.0), (5, 5.0)]
            assert values_of(segment, "x", 1) == [(8, 4.0)]
    backend.close()
