"""The last values of entities: what pandas makes of all rows, wherever these are, in whatever order they came."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings

from quorin.engine.backend import connect
from quorin.engine.log.record import Kind, decode, encode
from quorin.engine.rows.batch import delete_batch, to_batch
from quorin.errors import EntityIdError, InvalidRowError
from quorin.offline import ParquetDatasetStore, last_values
from quorin.schema import FeatureField, Schema, dtype, make_schema, schema_to_json
from quorin.shm import SegmentRegistry
from quorin.wal import Beginning, WALProducer
from quorin.wal_consumer import WALConsumer

FIELDS = [FeatureField("a", dtype.float64), FeatureField("b", dtype.string), FeatureField("tie", dtype.int64)]
Plain = make_schema("Plain", FIELDS)
Tied = make_schema("Tied", FIELDS, tie_breaker="tie")
UNSET = object()

ENTRIES = st.lists(
    st.tuples(
        st.sampled_from([Kind.upsert, Kind.upsert, Kind.partial, Kind.delete]),
        st.sampled_from(["x", "y", "é"]),
        st.integers(-2, 6),
        st.none() | st.integers(0, 3),
        st.none() | st.integers(0, 2),
        st.sets(st.sampled_from("ab"), min_size=1),
    ),
    max_size=25,
)


def record_of(schema: Schema, entry: Any) -> bytes:
    kind, entity_id, event_time_ns, number, tie, partial = entry
    if kind is Kind.delete:
        return encode(kind, schema, delete_batch([entity_id], event_time_ns))
    row = {"entity_id": entity_id, "a": number, "b": None if number is None else f"{number}", "tie": tie}
    if kind is Kind.partial:
        row = {name: value for name, value in row.items() if name in partial or name == "entity_id"}
    return encode(kind, schema, to_batch(schema, [row], event_time_ns=event_time_ns, partial=kind is Kind.partial))


def by_pandas(schema: Schema, entries: list[Any], ids: list[str], n: int, fields: list[str]) -> list[dict[str, Any]]:
    rows = []
    for position, (kind, entity_id, time, number, tie, partial) in enumerate(entries):
        values: dict[str, Any] = {"a": number, "b": None if number is None else f"{number}", "tie": tie}
        if kind is not Kind.upsert:
            values |= {name: UNSET for name in values if kind is Kind.delete or name not in partial}
        order = values["tie"] if schema.tie_breaker and isinstance(values["tie"], int) else -1
        rows.append(
            {"entity_id": entity_id, "time": time, "order": order, "position": position, "kind": kind, **values}
        )
    result: list[dict[str, Any]] = []
    frame = pd.DataFrame(rows, dtype=object)
    for entity_id in ids:
        if not len(frame):
            continue
        own = frame[frame.entity_id == entity_id].sort_values(["time", "order", "position"])
        own = own[(own.kind == Kind.delete)[::-1].cumsum()[::-1] == 0]
        own = own[own[fields].map(lambda value: value is not UNSET).any(axis=1)]
        for time, group in list(own.groupby("time"))[::-1][:n]:
            last = {name: [value for value in group[name] if value is not UNSET][-1:] for name in fields}
            values = {name: value[0] if value else None for name, value in last.items()}
            result.append({"entity_id": entity_id, "event_time_ns": time, **values})
    return result


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([Plain, Tied]),
    ENTRIES,
    st.integers(0, 25),
    st.integers(1, 4),
    st.sampled_from([["a"], ["b", "a"], None]),
)
def test_last_values_are_those_of_pandas(
    schema: Schema, entries: list[Any], stored: int, n: int, fields: list[str] | None
) -> None:
    ids = ["y", "nobody", "x", "é"]
    expected = by_pandas(schema, entries, ids, n, fields or ["a", "b", "tie"])
    with tempfile.TemporaryDirectory() as directory:
        backend, store = connect(directory), ParquetDatasetStore(f"{directory}/history")
        records = [record_of(schema, entry) for entry in entries]
        positions = [backend.log().append([(schema.__name__, one)])[0] for one in records]
        for position, one in list(zip(positions, records, strict=True))[:stored]:
            record = decode(one)
            store.append(schema, record.batch, pa.repeat(pa.scalar(position, pa.int64()), 1), kind=record.kind)
        store.flush()
        results = [last_values(schema, ids, n, connection=backend, fields=fields)]
        results.append(last_values(schema, ids, n, connection=backend, store=store, fields=fields))
        if stored >= len(entries):
            results.append(last_values(schema, ids, n, store=store, fields=fields))
        backend.close()
    for found in results:
        assert found.to_pylist() == expected


def test_rows_of_a_trimmed_log_come_from_the_history(registry: SegmentRegistry, tmp_path: Path) -> None:
    store = ParquetDatasetStore(tmp_path / "history")
    producer = WALProducer(registry.backend, registry=registry)
    with WALConsumer(registry.backend, [Plain], registry=registry, offline=store) as consumer:
        for i in range(5):
            producer.write(Plain, "x", {"a": i, "b": None, "tie": None}, event_time_ns=i)
        consumer.drain()
        store.flush()
        registry.backend.log().trim(store.flushed_position(Plain))
        for i in range(5, 8):
            producer.write(Plain, "x", {"a": i, "b": None, "tie": None}, event_time_ns=i)
        table = last_values(Plain, ["x", "x"], 6, store=store, connection=registry.backend, fields=["a"])
        assert table.column("a").to_pylist() == [7, 6, 5, 4, 3, 2]
        assert table.schema.field("a").type == pa.float64()
        alone = last_values(Plain, ["x", "y"], 6, connection=registry.backend)
        assert alone.column("event_time_ns").to_pylist() == [7, 6, 5]
        registry.discard(registry.open_current(Plain, read_only=False))


def test_a_schema_that_was_dropped_and_made_again_has_no_rows_of_its_former_life(registry: SegmentRegistry) -> None:
    producer = WALProducer(registry.backend, registry=registry)
    position = producer.write(Plain, "x", {"a": 1, "b": None, "tie": None}, event_time_ns=1)
    beginning = Beginning(registry.backend.log().identity(), position)
    registry.backend.control.put_schema("Plain", schema_to_json(Plain), beginning=beginning)
    producer.write(Plain, "x", {"a": 2, "b": None, "tie": None}, event_time_ns=2)
    assert last_values(Plain, ["x"], 5, connection=registry.backend).column("a").to_pylist() == [2]


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    store = ParquetDatasetStore(tmp_path)
    assert last_values(Plain, ["x"], 3, store=store).to_pylist() == []
    assert last_values(Plain, [], 3, store=store).column_names == ["entity_id", "event_time_ns", "a", "b", "tie"]
    for n in (0, -1, 1.5, True, "3"):
        with pytest.raises(ValueError, match="n: expected a whole number of rows, 1 or more"):
            last_values(Plain, ["x"], n, store=store)  # type: ignore[arg-type]
    assert last_values(Plain, ["x"], np.int64(2), store=store).num_rows == 0  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a store, a connection, or both"):
        last_values(Plain, ["x"], 1)
    with pytest.raises(InvalidRowError, match=r"no fields \['c'\]"):
        last_values(Plain, ["x"], 1, store=store, fields=["a", "c"])
    with pytest.raises(EntityIdError):
        last_values(Plain, ["x", None], 1, store=store)
