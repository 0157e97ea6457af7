"""Reads as of a position: equal, bit for bit, to what the segment answered when that position was applied."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings

from quorin import assembly, layout
from quorin.engine.log.record import Kind, translate_batch
from quorin.engine.rows.batch import delete_batch, row_batch
from quorin.errors import EntityIdError, IncompleteHistoryError, InvalidRowError
from quorin.evolution import upgrade_schema
from quorin.hydration import hydrate
from quorin.offline import ParquetDatasetStore, read_at
from quorin.schema import FeatureField, Schema, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.schemas import Everything, values_of
from tests.unit.test_offline import bits, data_files

Tied = make_schema("Everything", [*Everything.fields, FeatureField("made", dtype.int64)], tie_breaker="made")
NOW = time.time_ns()
IDS = ["a", "b", "é"]
Answer = dict[str, list[Any]]


@st.composite
def batches(draw: st.DrawFn, schema: Schema) -> tuple[Kind, pa.RecordBatch]:
    """A log entry: rows with colliding ids and event times, of all fields, of some, or deletions."""
    kind = draw(st.sampled_from([Kind.upsert, Kind.upsert, Kind.partial, Kind.partial, Kind.delete]))
    times = st.integers(NOW, NOW + 4)  # A segment that grows forgets deletions that are a week old.
    rows = draw(st.lists(st.tuples(st.sampled_from(IDS), times), min_size=1, max_size=4))
    if kind is Kind.delete:
        parts = [delete_batch([entity_id], event_time_ns) for entity_id, event_time_ns in rows]
        return kind, pa.Table.from_batches(parts).combine_chunks().to_batches()[0]
    names = [field.name for field in schema.fields]
    some = draw(st.lists(st.sampled_from(names), min_size=1, unique=True)) if kind is Kind.partial else names
    fields = [field for field in schema.fields if field.name in some]
    values = [{field.name: draw(values_of(field)) for field in fields} for _ in rows]
    parts = [
        row_batch(schema, entity_id, row, event_time_ns, partial=kind is Kind.partial)
        for (entity_id, event_time_ns), row in zip(rows, values, strict=True)
    ]
    return kind, pa.Table.from_batches(parts).combine_chunks().to_batches()[0]


def served(segment: Any, ids: list[str]) -> Answer:
    columns = assembly.column_reader(segment, positions=True)(ids)
    rows = columns.to_batch()
    found = rows.column("found").to_pylist()
    positions = [at if there else None for at, there in zip(columns.positions.tolist(), found, strict=True)]
    return {"log_position": positions, **{name: bits(rows.column(name)) for name in rows.schema.names}}


def as_read(table: pa.Table) -> Answer:
    return {name: bits(table.column(name)) for name in table.schema.names}


@settings(deadline=None, max_examples=12, phases=[Phase.explicit, Phase.generate])
@given(st.data(), st.sampled_from([Everything, Tied]))
def test_rows_of_every_type_are_those_that_the_segment_had(tmp_path_factory, data: st.DataObject, schema) -> None:
    base = tmp_path_factory.mktemp("as-of")
    (base / "shm").mkdir()
    store, registry = ParquetDatasetStore(base / "history"), SegmentRegistry(base / "control", shm_dir=base / "shm")
    answers = {}
    ids = [*IDS, "nobody", "a"]
    with registry.create(schema, capacity=2) as segment:
        for position in range(10, 10 * data.draw(st.integers(2, 9)), 10):
            kind, batch = data.draw(batches(schema))
            batch = translate_batch(batch, kind, schema)
            if kind is Kind.partial and data.draw(st.booleans()):
                # The segment's schema has none of the fields: such a row is in the history, but is not applied.
                batch = batch.select([0, 1])
            else:
                layout.apply_batch(segment, batch, position=position, kind=kind)
            store.append(schema, batch, pa.repeat(pa.scalar(position, pa.int64()), len(batch)), kind=kind)
            answers[position] = served(segment, ids)
            if data.draw(st.booleans()):
                store.flush()
        store.flush()
        if data.draw(st.booleans()):
            store.compact(schema)
        for position, answer in answers.items():
            assert as_read(store.read_at(schema, ids, position=position)) == answer
        registry.discard(segment)
    registry.backend.close()


def test_late_rows_do_not_count_before_they_arrive_or_after(registry: SegmentRegistry, tmp_path: Path) -> None:
    schema, store = make_schema("Pair", [FeatureField("a", dtype.int32)]), ParquetDatasetStore(tmp_path / "history")
    with WALProducer(registry.backend) as producer:
        consumer = WALConsumer(registry.backend, schema, registry=registry, offline=store)
        positions = [producer.write(schema, "x", {"a": a}, event_time) for a, event_time in [(1, 10), (2, 30), (3, 20)]]
        between = time.time_ns()
        time.sleep(0.002)
        positions.append(producer.write(schema, "x", {"a": 4}, 30))
        consumer.drain()
        consumer.close()
        seen = [store.read_at(schema, ["x"], position=position)["a"].to_pylist() for position in positions]
        assert seen == [[1], [2], [2], [4]]
        assert store.read_at(schema, ["x"], position=positions[0] - 1)["found"].to_pylist() == [False]
        assert read_at(tmp_path / "history", schema, ["x"], time_ns=between)["a"].to_pylist() == [2]

        # Rows that are not flushed come from the log.
        late = producer.write(schema, "x", {"a": 5}, 40)
        producer.write(schema, "y", {"a": 6}, 40)
        with pytest.raises(IncompleteHistoryError, match=f"'Pair' lacks .* to {late}.*connection") as raised:
            store.read_at(schema, ["x"], position=late)
        assert raised.value.missing == [(positions[-1], late)]
        read = read_at(store, schema, ["x", "y"], position=late, connection=registry)
        assert (read["a"].to_pylist(), read["log_position"].to_pylist()) == ([5, None], [late, None])
        assert store.read_at(schema, ["y"], time_ns=time.time_ns(), connection=registry.backend)["a"].to_pylist() == [6]
        registry.discard(registry.open_current(schema))


def test_fields_are_those_that_the_schema_had(registry: SegmentRegistry, tmp_path: Path) -> None:
    """Added, widened, dropped and added again, with the loss of the segment afterwards."""
    a, wide, b = FeatureField("a", dtype.int32), FeatureField("a", dtype.int64), FeatureField("b", dtype.string)
    versions = [
        make_schema("Pair", fields, version=number)
        for number, fields in enumerate([[a], [a, b], [wide, b], [wide], [wide, b]], 1)
    ]
    store, answers = ParquetDatasetStore(tmp_path / "history"), {}
    with WALProducer(registry.backend) as producer:
        consumer = WALConsumer(registry.backend, versions[0], registry=registry, offline=store)
        for number, schema in enumerate(versions):
            if number:
                consumer.close()
                upgrade_schema(versions[number - 1], schema, registry)
                consumer = WALConsumer(registry.backend, schema, registry=registry, offline=store)
            with registry.open_current(schema) if number else registry.create(schema, capacity=8) as segment:
                values = {field.name: number if field.name == "a" else f"b{number}" for field in schema.fields}
                positions = [producer.write(schema, f"x{number}", values, 1)]
                consumer.drain()
                ids = [f"x{i}" for i in range(5)]
                answers[positions[-1]] = schema, served(segment, ids)
        consumer.close()
    for position, (schema, answer) in answers.items():
        assert as_read(store.read_at(schema, ids, position=position)) == answer
    assert answers[position][1]["b"] == [None, None, None, None, "b4"]
    last = registry.open_current(versions[-1])
    registry.discard(last)
    hydrate(versions[-1], store, registry)
    with registry.open_current(versions[-1]) as rebuilt:
        assert served(rebuilt, ids) == answer
        registry.discard(rebuilt)


def test_what_the_history_lacks_is_said(tmp_path: Path) -> None:
    schema, store = make_schema("Pair", [FeatureField("a", dtype.int32)]), ParquetDatasetStore(tmp_path)
    for position in (10, 20, 30):
        batch = row_batch(schema, "x", {"a": position}, position)
        store.append(schema, batch, pa.array([position], pa.int64()))
        store.flush()
    first, second, third = data_files(tmp_path)
    kept = second.read_bytes()
    second.unlink()
    assert store.read_at(schema, ["x"], position=10)["a"].to_pylist() == [10]
    with pytest.raises(IncompleteHistoryError, match="11 to 20") as raised:
        store.read_at(schema, ["x"], position=30)
    assert raised.value.missing == [(10, 20)]
    second.write_bytes(kept[:-9])
    first.unlink()
    with pytest.raises(IncompleteHistoryError, match="1 to 20"):
        store.read_at(schema, ["x"], position=25)
    third.unlink()
    with pytest.raises(IncompleteHistoryError, match="1 to 5:"):
        store.read_at(schema, ["x"], position=5)


@pytest.mark.parametrize(
    "options", [{}, {"position": 1, "time_ns": 1}, {"position": -1}, {"position": True}, {"time_ns": 2**63}]
)
def test_a_moment_is_one_position_or_time(tmp_path: Path, options: dict[str, Any]) -> None:
    schema = make_schema("Pair", [FeatureField("a", dtype.int32)])
    with pytest.raises(InvalidRowError, match=r"position|time_ns"):
        ParquetDatasetStore(tmp_path).read_at(schema, ["x"], **options)


def test_no_ids_and_no_rows_give_empty_tables(tmp_path: Path) -> None:
    schema, store = make_schema("Pair", [FeatureField("a", dtype.int32)]), ParquetDatasetStore(tmp_path)
    store.skip_to(schema, 5)
    assert store.read_at(schema, [], position=5).num_rows == 0
    assert store.read_at(schema, ["x"], position=5).to_pylist() == [
        {"entity_id": "x", "found": False, "event_time_ns": None, "log_position": None, "a": None}
    ]
    with pytest.raises(EntityIdError, match="row 1"):
        store.read_at(schema, ["x", ""], position=5)
