"""A schema's tie-breaker decides between rows of one event time: in segments, replays, the history, upgrades."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorin import assembly, layout, serving
from quorin.engine.log.record import Kind
from quorin.engine.rows.batch import delete_batch, row_batch
from quorin.evolution import upgrade_schema
from quorin.hydration import hydrate
from quorin.layout import pack_row
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, FeatureSchema, Schema, dtype, make_schema, schema_from_json, schema_to_json
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer


class Made(FeatureSchema):
    """Rows that say when they were made."""

    version = 1
    fields = [FeatureField("n", dtype.int64), FeatureField("s", dtype.string), FeatureField("made", dtype.int64)]
    tie_breaker = "made"


Event = tuple[str, str, int, int | None]
"""What it does (upsert, delete, or a partial row with or without the tie-breaker), entity, event time, tie-breaker."""

IDS = ["a", "b"]
LATE = 4_000_000_000 * 10**9
"""Far in the future: old deletions are forgotten when a segment grows."""
TIMES = st.integers(LATE, LATE + 2)
TIES = st.none() | st.sampled_from([-(2**63) + 1, -1, 0, 1, 2**63 - 1])
WHOLE = st.tuples(st.sampled_from(["upsert", "upsert", "delete"]), st.sampled_from(IDS), TIMES, TIES)
ANY = st.tuples(st.sampled_from(["upsert", "delete", "partial", "bare"]), st.sampled_from(IDS), TIMES, TIES)


def batch_of(event: Event, number: int) -> tuple[Kind, pa.RecordBatch]:
    what, entity_id, time, made = event
    if what == "delete":
        return Kind.delete, delete_batch([entity_id], time)
    if what == "upsert":
        return Kind.upsert, row_batch(Made, entity_id, {"n": number, "s": str(number), "made": made}, time)
    values: dict[str, Any] = {"n": number} if what == "bare" else {"n": number, "made": made}
    return Kind.partial, row_batch(Made, entity_id, values, time, partial=True)


def model(events: list[Event]) -> dict[str, dict[str, Any] | None]:
    """Rows by folding the events in the order of the log."""
    stamps: dict[str, tuple[int, int]] = {}
    rows: dict[str, dict[str, Any] | None] = dict.fromkeys(IDS)
    for number, (what, entity_id, time, made) in enumerate(events, 1):
        made = None if what in ("delete", "bare") else made
        stamp = (time, -(2**63) if made is None else made)
        if stamp < stamps.get(entity_id, stamp):
            continue
        stamps[entity_id] = stamp
        before = rows[entity_id] or {"s": None}
        text = str(number) if what == "upsert" else before["s"]
        rows[entity_id] = None if what == "delete" else {"event_time_ns": time, "n": number, "s": text, "made": made}
    return rows


def shown(batch: pa.RecordBatch) -> dict[str, dict[str, Any] | None]:
    rows = {row.pop("entity_id"): row for row in batch.to_pylist()}
    return {entity_id: row if row.pop("found") else None for entity_id, row in rows.items()}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_order_of_batches_converges_to_the_newest_event_then_tie_breaker_then_write(data: st.DataObject) -> None:
    events = data.draw(st.lists(WHOLE, min_size=1, max_size=10))
    batches = [(number, *batch_of(event, number)) for number, event in enumerate(events, 1)]
    for order in (batches, data.draw(st.permutations(batches + batches))):
        with tempfile.TemporaryDirectory() as directory:
            registry = SegmentRegistry(directory, shm_dir=directory)
            with registry.create(Made, capacity=1) as segment:
                for position, kind, batch in order:
                    layout.apply_batch(segment, batch, position=position, kind=kind)
                for read in (assembly.read, serving.read):
                    assert shown(read(segment, IDS)) == model(events)
            registry.backend.close()


@settings(max_examples=30, deadline=None)
@given(st.lists(ANY, min_size=1, max_size=10))
def test_the_log_its_replay_and_the_history_agree(events: list[Event]) -> None:
    expected = model(events)
    with tempfile.TemporaryDirectory() as directory:
        registry = SegmentRegistry(directory, shm_dir=directory)
        history = ParquetDatasetStore(Path(directory, "history"))
        producer = WALProducer(registry.backend)
        with registry.create(Made, capacity=1) as segment:
            consumer = WALConsumer(registry.backend, [segment], registry=registry, offline=history, trims=False)
            for number, event in enumerate(events, 1):
                kind, batch = batch_of(event, number)
                producer.append_batch(Made, batch, kind)
                if number % 3 == 0:
                    consumer.drain()
            consumer.drain()
            assert shown(assembly.read(segment, IDS)) == expected
            segment.commit_position(0, segment.log_identity)
            WALConsumer(registry.backend, [segment], registry=registry, trims=False).drain()
            assert shown(assembly.read(segment, IDS)) == expected
            history.flush()
            registry.discard(segment)
        known = {row.pop("entity_id"): row for row in history.latest_features(Made).to_pylist()}
        assert known == {entity_id: row for entity_id, row in expected.items() if row is not None}
        hydrate(Made, history, registry)
        with registry.open_current(Made) as rebuilt:
            assert shown(assembly.read(rebuilt, IDS)) == expected
        registry.backend.close()


def test_rows_written_one_by_one_and_in_one_batch(registry: SegmentRegistry) -> None:
    with registry.create(Made, capacity=4) as segment:

        def insert(made: int | None, n: int) -> None:
            layout.insert(segment, "a", pack_row(Made, n=n, s="x", made=made), event_time_ns=5)

        for made, n in ((None, 1), (7, 2), (None, 3), (6, 4), (7, 5)):
            insert(made, n)
        assert assembly.read(segment, ["a"], ["n"]).column("n").to_pylist() == [5]
        assert not layout.delete(segment, "a", event_time_ns=5)
        assert layout.delete(segment, "a", event_time_ns=6)
        insert(2**60, 6)
        assert layout.lookup(segment, "a") is None
        made = [3, None, 9, 9, 8]
        table = pa.table(
            {"entity_id": ["b"] * 5, "event_time_ns": [5] * 5, "n": range(5), "s": ["y"] * 5, "made": made}
        )
        layout.insert_many(segment, table)
        assert assembly.read(segment, ["b"], ["n", "made"]).to_pylist()[0]["n"] == 3
        registry.discard(segment)


def test_a_table_without_one_gets_it_and_what_it_held_counts_as_the_smallest(registry: SegmentRegistry) -> None:
    old = make_schema("Made", [FeatureField("n", dtype.int64)])
    new = make_schema("Made", [*old.fields, FeatureField("made", dtype.int64)], version=2, tie_breaker="made")
    producer = WALProducer(registry.backend)
    registry.create(old, capacity=2).close()
    producer.write(old, "a", {"n": 1}, 5)
    consume(registry, old)
    upgrade_schema(old, new, registry)
    for schema, values in (
        (new, {"n": 2, "made": 4}),
        (new, {"n": 3, "made": 3}),
        (old, {"n": 4}),
        (new, {"n": 5, "made": None}),
    ):
        producer.write(schema, "a", values, 5)
        consume(registry, new)
    with registry.open_current(new, read_only=False) as segment:
        assert assembly.read(segment, ["a"], ["n", "made"]).to_pylist()[0]["n"] == 2
        registry.discard(segment)


@pytest.mark.parametrize("schema", [Made, make_schema("Plain", Made.fields)])
def test_the_tie_breaker_is_kept_in_json(schema: Schema) -> None:
    read = schema_from_json(schema_to_json(schema))
    assert (read.tie_breaker, schema_to_json(read)) == (schema.tie_breaker, schema_to_json(schema))
    assert ("tie_breaker" in schema_to_json(schema)) == (schema is Made)


def consume(registry: SegmentRegistry, schema: Schema) -> None:
    with registry.open_current(schema, read_only=False) as segment:
        WALConsumer(registry.backend, [segment], registry=registry, trims=False).drain()
