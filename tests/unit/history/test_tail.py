"""The history and the log behind it, read as one: what was trimmed meanwhile, and commits that do not count."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from quorin.engine.history.datasets import Datasets
from quorin.engine.log.record import Kind, encode, mark
from quorin.engine.rows.batch import to_batch
from quorin.offline import ParquetDatasetStore, last_values
from quorin.schema import FeatureField, dtype, make_schema
from tests.support.machines import Machine

ROW = make_schema("Row", [FeatureField("number", dtype.int64)])


def batch(**rows: int) -> pa.RecordBatch:
    return to_batch(ROW, {"entity_id": list(rows), "number": list(rows.values())}, event_time_ns=5)


def values(machine: Machine, store: ParquetDatasetStore | None) -> dict[str, int]:
    rows = last_values(ROW, ["a", "b"], 1, store=store, connection=machine.registry.backend).to_pylist()
    return {row["entity_id"]: row["number"] for row in rows}


def in_force(machine: Machine) -> dict[str, int]:
    position, backend = machine.log().bounds().last, machine.registry.backend
    rows = machine.store().read_at(ROW, ["a", "b"], position=position, connection=backend).to_pylist()
    return {row["entity_id"]: row["number"] for row in rows if row["found"]}


@pytest.mark.parametrize("ended_by", [Kind.abort, Kind.begin, None], ids=["aborted", "another begins", "rows lack"])
def test_a_commit_that_comes_too_late_does_not_count(machine: Machine, ended_by: Kind | None) -> None:
    machine.producer.append_batch(ROW, batch(a=1))
    log = machine.log()

    def append(payload: bytes) -> int:
        return int(log.append([("Row", payload)])[-1])

    def begin() -> int:
        load = int(log.bounds().last)
        append(mark(Kind.begin, ROW, load=load))
        return load

    load = begin()
    append(encode(Kind.load, ROW, batch(a=2, b=2), load=load))
    if ended_by is not None:
        append(mark(ended_by, ROW, load=load if ended_by is Kind.abort else load + 1))
    append(mark(Kind.commit, ROW, load=load, load_rows=2 if ended_by is not None else 3))
    assert values(machine, machine.store()) == values(machine, None) == {"a": 1}
    assert in_force(machine) == {"a": 1}

    load = begin()
    append(encode(Kind.load, ROW, batch(b=3), load=load))
    append(mark(Kind.commit, ROW, load=load, load_rows=1))
    assert values(machine, machine.store()) == values(machine, None) == {"b": 3}
    assert in_force(machine) == {"b": 3}


def test_what_is_trimmed_while_it_is_read_comes_from_the_history(machine: Machine, monkeypatch: Any) -> None:
    machine.registry.create(ROW, capacity=8).close()
    machine.producer.append_batch(ROW, batch(a=1))
    load, is_first = Datasets.load_partition, True

    def load_then_trim(datasets: Datasets, *of: Any, **options: Any) -> Any:
        nonlocal is_first
        loaded = load(datasets, *of, **options)
        if is_first:
            is_first = False
            machine.drain(ROW)  # Into the history, and out of the log.
            assert machine.log().bounds().first == 0
        return loaded

    monkeypatch.setattr(Datasets, "load_partition", load_then_trim)
    assert values(machine, machine.store()) == {"a": 1}
    assert not is_first
    assert in_force(machine) == {"a": 1}
