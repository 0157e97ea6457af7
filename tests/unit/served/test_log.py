"""The served log of one process: what is written, dropped and replayed, and what failures leave alone."""

from __future__ import annotations

import resource
import signal
import stat
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings

from quorin import assembly, layout, metrics
from quorin.engine.counting import counters
from quorin.engine.format import ring as fmt
from quorin.engine.log.record import translate_batch
from quorin.engine.rows.batch import rows_batch
from quorin.engine.served import description
from quorin.engine.served.ring import CAPACITY, ring_file
from quorin.errors import CorruptHistoryError, ServedLogUnavailableError
from quorin.evolution import upgrade_schema
from quorin.hydration import hydrate
from quorin.offline import ParquetDatasetStore, ServedView, read_served
from quorin.schema import FeatureField, Schema, dtype, make_schema
from quorin.wal import position_at
from tests.support.s3 import new_bucket, running
from tests.support.schemas import Everything
from tests.support.served import IDS, SERVED, Node
from tests.support.world import until
from tests.unit.history.test_as_of import Tied, batches
from tests.unit.test_offline import bits


@settings(deadline=None, max_examples=12, phases=[Phase.explicit, Phase.generate])
@given(st.data(), st.sampled_from([Everything, Tied]))
def test_what_was_served_comes_back_to_the_bit(tmp_path_factory, data: st.DataObject, schema: Schema) -> None:
    """After later, late and partial rows, deletions, growth, compaction, and the loss of the segment."""
    base = tmp_path_factory.mktemp("served")
    node, history = Node(base, schema=schema), ParquetDatasetStore(base / "history")
    fields = tuple((field.name, field) for field in schema.fields)
    number = node.log.describe([ServedView("view", schema.__name__, fields, 0, schema.tie_breaker)])
    ids, answers = ["a", "b", "é", "nobody", "a"], []

    def serve(segment: Any) -> None:
        columns = assembly.column_reader(segment, positions=True)(ids)
        node.log.rows(number, str(len(answers)), [pa.array(ids)], [0], [columns])
        answers.append(columns.to_batch())

    with node.registry.create(schema, capacity=2) as segment:
        serve(segment)
        for position in range(10, 10 * data.draw(st.integers(2, 8)), 10):
            kind, batch = data.draw(batches(schema))
            batch = distinct(translate_batch(batch, kind, schema))
            for row in range(len(batch)):  # A read between two rows of an entry sees the first of them.
                layout.apply_batch(segment, batch.slice(row, 1), position=position, kind=kind)
                if data.draw(st.booleans()):
                    serve(segment)
            history.append(schema, batch, pa.repeat(pa.scalar(position, pa.int64()), len(batch)), kind=kind)
            if data.draw(st.booleans()):
                history.flush()
        serve(segment)
        history.flush()
        history.compact(schema)
        node.registry.discard(segment)
    hydrate(schema, history, node.registry)
    with node.registry.open_current(schema) as segment:
        serve(segment)
        node.registry.discard(segment)
    node.log.collect()
    served = read_served(base / "served", history)
    assert served["known"].to_pylist() == [True] * len(served)
    for request, answer in enumerate(answers):
        own = served.slice(request * len(ids), len(ids))
        assert own["request_id"].to_pylist() == [str(request)] * len(ids)
        for field in schema.fields:
            assert own[field.name].type == answer.column(field.name).type
            assert bits(own[field.name]) == bits(answer.column(field.name)), field.name
    node.log.close()
    node.registry.backend.close()


def distinct(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The last row of each entity and event time."""
    last = {key: row for row, key in enumerate(zip(*(batch.column(i).to_pylist() for i in (0, 1)), strict=True))}
    return batch.take(pa.array(sorted(last.values())))


def test_upgrades_leave_what_was_served(tmp_path: Path) -> None:
    a, wide, b = FeatureField("a", dtype.int32), FeatureField("a", dtype.int64), FeatureField("b", dtype.string)
    versions = [make_schema("Pair", fields, version=n) for n, fields in enumerate([[a], [a, b], [wide, b], [wide]], 1)]
    node, history, answers = Node(tmp_path), ParquetDatasetStore(tmp_path / "history"), []
    for number, schema in enumerate(versions):
        if number:
            upgrade_schema(versions[number - 1], schema, node.registry)
        made = (
            node.registry.open_current(schema, read_only=False) if number else node.registry.create(schema, capacity=8)
        )
        with made as segment:
            values = [number if field.name == "a" else f"b{number}" for field in schema.fields]
            batch = rows_batch(schema, [(f"x{number}", number, *values)])
            position = position_at(time.time_ns() // 10**6)
            layout.apply_batch(segment, batch, position=position)
            history.append(schema, batch, pa.array([position], pa.int64()))
            ids = pa.array([f"x{i}" for i in range(4)])
            columns = assembly.column_reader(segment, positions=True)(ids)
            fields = tuple((field.name, field) for field in schema.fields)
            kind = node.log.describe([ServedView("view", "Pair", fields)])
            time.sleep(0.002)
            node.log.rows(kind, str(number), [ids], [0], [columns])
            answers.append(columns.to_batch())
            time.sleep(0.002)
    history.flush()
    node.log.collect()
    for number, answer in enumerate(answers):
        own = read_served(tmp_path / "served", history, request_ids=[str(number)])
        assert own["known"].to_pylist() == [True] * 4
        for field in versions[number].fields:
            assert own[field.name].combine_chunks().equals(answer.column(field.name))
    node.registry.discard(node.registry.open_current(versions[-1]))


def test_a_row_that_the_history_lacks_is_said(tmp_path: Path) -> None:
    node, history = Node(tmp_path), ParquetDatasetStore(tmp_path / "history")
    node.fill()
    node.serve(1, 1)
    node.log.collect()
    served = read_served(tmp_path / "served", history)
    assert served.select(["known", "number", "log_position:view"]).to_pylist() == [
        {"known": False, "number": None, "log_position:view": 7}
    ]


def test_a_full_ring_drops_and_counts_and_goes_on(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fill()
    node.serve(1, 1)
    node.log.close()  # No thread makes room.
    node.log.collect()
    dropped = metrics.served_dropped.labels(counters.EVERYWHERE)
    number, before, ring = node.describe(), dropped.value, ring_file(node.log.path).own_ring()
    with node.registry.open_current(SERVED) as segment:
        rows = assembly.row_reader([(segment, None)], positions=True)(IDS[1])
        assert rows is not None
        count = 0
        for lap in range(1, 4):  # Records end before the end of the ring, and begin anew at its start.
            written = 0
            while ring.word(fmt.RING_DROPPED) < lap:
                node.log.row(number, f"{3 * count + 1:0{100 + count % 27}}", rows)
                count, written = count + 1, written + 1
            assert CAPACITY // 300 < written < CAPACITY // 150
            assert node.log.collect() == written - 1
    assert dropped.value == before + 3
    requests = node.requests()[1:]
    assert len(requests) == len({*requests}) == count - 3


def test_requests_that_cannot_be_described_are_counted_and_not_tried_each_time(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fill()
    dropped = metrics.served_dropped.labels(counters.EVERYWHERE)
    before = dropped.value
    with limited_files(1):
        assert node.describe() == -1
    assert node.describe() == -1, "it is tried again in a while"
    assert dropped.value == before + 2
    until(lambda: node.describe() >= 0)
    node.serve(0, 3)
    node.log.collect()
    assert node.requests() == [0, 1, 2]


def test_files_and_rings_are_the_owners_alone(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fill()
    node.serve(0, 2)
    node.log.collect()
    paths = [*(tmp_path / "shm").glob("quorin-served-*"), *(tmp_path / "served").rglob("*.parquet")]
    assert len(paths) >= 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}


def test_a_full_disk_keeps_the_records_and_disturbs_no_request(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fill()
    node.serve(0, 30)
    with limited_files(512), pytest.raises(ServedLogUnavailableError, match="served"):
        node.log.collect()
    assert node.requests() == []
    assert list((tmp_path / "served").rglob("*.*")) == []
    node.serve(30, 10)
    node.log.collect()
    assert sorted(node.requests()) == list(range(40))


def test_an_object_store_that_is_away_keeps_the_records(tmp_path: Path) -> None:
    with running() as server:
        url = new_bucket(server, "served-" + tmp_path.name)
        node = Node(tmp_path, url=url)
        node.fill()
        node.serve(0, 6)
        node.log.collect()
        assert sorted(node.requests()) == list(range(6))
    node.serve(6, 6)
    with pytest.raises(ServedLogUnavailableError) as raised:
        node.log.collect()
    assert "knows" not in str(raised.value)
    node.serve(12, 6)
    node.log.close()


def test_a_thread_writes_files_and_goes_on_after_failures(tmp_path: Path) -> None:
    (tmp_path / "served").write_text("no directory")
    node = Node(tmp_path, every_seconds=0.01)
    node.fill()
    failures = metrics.served_failures.labels(counters.EVERYWHERE)
    before = failures.value
    node.serve(0, 6)
    until(lambda: failures.value > before)
    (tmp_path / "served").unlink()
    until(lambda: sorted(node.requests()) == list(range(6)))
    node.log.close()


def test_a_description_that_is_gone_is_said(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fill()
    node.serve(1, 1)
    for path in (tmp_path / "shm").glob("quorin-served-*.json"):
        path.unlink()
    node.log.collect()
    served = read_served(tmp_path / "served", tmp_path / "history")
    assert served.select(["request_id", "known"]).to_pylist() == [{"request_id": "1", "known": False}]


def test_requests_are_chosen_by_time(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.fill()
    node.serve(1, 2)
    between = time.time_ns()
    node.serve(4, 1)
    node.log.collect()

    def chosen(**options: Any) -> list[str]:
        return read_served(tmp_path / "served", tmp_path / "history", **options)["request_id"].to_pylist()

    assert chosen(since_ns=between) == ["4"]
    assert chosen(until_ns=between) == ["1", "2"]
    assert chosen(request_ids=["2", "nobody"]) == ["2"]
    assert chosen(request_ids=[]) == []


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2, "views": []}', '{"format": 1, "views": [{}]}'])
def test_a_text_that_describes_nothing_is_refused(text: str) -> None:
    with pytest.raises(CorruptHistoryError):
        description.Description.from_json(text)


@contextmanager
def limited_files(size: int) -> Any:
    """No file may become longer, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
