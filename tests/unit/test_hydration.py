"""Cold start: segments built from history are those that were served, and a consumer does it by itself."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import given, settings

from quorin import assembly, hydration
from quorin.engine.log.record import Kind
from quorin.engine.rows.batch import delete_batch, row_batch, to_batch
from quorin.errors import EmptyDatasetError, HydrationConflictError, SegmentNotFoundError
from quorin.hydration import hydrate
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal_consumer import WALConsumer
from tests.support.machines import Machine
from tests.support.schemas import Everything, rows_of

Pair = make_schema("Pair", [FeatureField("a", dtype.float64), FeatureField("b", dtype.string)])
Other = make_schema("Other", [FeatureField("n", dtype.int64)])


IDS = ["x", "a key that is long enough to need the heap", "zë"]
WRITES = st.lists(
    st.tuples(
        st.sampled_from(["row", "row", "partial", "delete"]),
        st.sampled_from(IDS),
        st.integers(0, 5),
        rows_of(Everything),
        st.sets(st.sampled_from([field.name for field in Everything.fields]), min_size=1),
        st.booleans(),
    ),
    min_size=1,
    max_size=10,
)


@settings(deadline=None, max_examples=60)
@given(WRITES)
def test_hydrated_rows_are_the_rows_that_were_served_to_the_bit(tmp_path_factory, writes) -> None:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    for what, entity_id, time, row, names, drains in writes:
        if what == "row":
            machine.producer.write(Everything, entity_id, row, time)
        elif what == "partial":
            machine.producer.write(Everything, entity_id, {n: row[n] for n in names}, time, partial=True)
        else:
            machine.producer.delete(Everything, entity_id, time)
        if drains:
            machine.drain([Everything])
    machine.drain([Everything])
    served = machine.served(Everything, IDS)
    assert any(served)
    machine.registry.backend.log().trim(machine.registry.backend.log().bounds().last)
    machine.reboot()
    result = hydrate(Everything, machine.store(), machine.registry)
    assert machine.served(Everything, IDS) == served
    with machine.registry.open_current(Everything) as segment:
        assert (result.segment_name, result.entity_count) == (segment.name, len(segment))
        assert segment.position == result.position == machine.registry.backend.log().bounds().last
    machine.reboot()
    machine.close()


def test_a_consumer_without_a_segment_builds_it_and_reads_on_from_there(machine: Machine) -> None:
    for number in range(100):
        machine.producer.write(Pair, f"id{number}", {"a": number, "b": "old"}, number)
    machine.drain([Pair])
    log = machine.registry.backend.log()
    assert log.bounds().first == 0  # everything applied and durable was trimmed
    machine.reboot()
    machine.producer.write(Pair, "id7", {"a": -7, "b": "tail"}, 1000)
    machine.drain([Pair], capacity=500)
    with machine.registry.open_current(Pair) as segment:
        assert len(segment) == 100
        assert segment.capacity == 500
        rows = assembly.read(segment, ["id6", "id7"]).to_pylist()
    assert [(row["a"], row["b"]) for row in rows] == [(6, "old"), (-7, "tail")]
    machine.reboot()


def test_a_deletion_survives_so_that_a_late_event_does_not_revive(machine: Machine) -> None:
    machine.producer.write(Pair, "x", {"a": 1, "b": ""}, 10)
    machine.producer.delete(Pair, "x", 20)
    machine.drain([Pair])
    machine.reboot()
    machine.producer.write(Pair, "x", {"a": 2, "b": ""}, 15)
    machine.drain([Pair])
    with machine.registry.open_current(Pair) as segment:
        assert len(segment) == 0
    machine.reboot()


def test_idle_schemas_neither_hold_back_the_trimming_nor_raise_an_alarm(machine: Machine) -> None:
    machine.producer.write(Other, "o", {"n": 1}, 1)
    machine.drain([Pair, Other])
    for number in range(3):
        machine.producer.write(Pair, "x", {"a": number, "b": ""}, number)
        machine.drain([Pair, Other])
    bounds = machine.registry.backend.log().bounds()
    assert bounds.trimmed == bounds.last
    before = reanchored()
    machine.drain([Pair, Other])
    machine.reboot()
    machine.drain([Pair, Other])
    assert reanchored() == before
    assert [row[0][0] for row in machine.served(Other, ["o"])] == [1]
    machine.reboot()


def reanchored() -> float:
    from quorin import metrics

    samples = [sample for metric in metrics.registry.collect() for sample in metric.samples]
    return sum(sample.value for sample in samples if sample.name == "quorin_log_reanchored_total")


def test_a_log_that_was_trimmed_without_history_is_an_alarm(machine: Machine) -> None:
    machine.producer.write(Pair, "x", {"a": 1, "b": ""}, 1)
    with WALConsumer(machine.registry.backend, [Pair], registry=machine.registry) as consumer:
        consumer.drain()
    machine.registry.backend.log().trim(machine.registry.backend.log().bounds().last)
    before = reanchored()
    machine.drain([Pair])
    assert reanchored() == before + 1
    machine.reboot()


def test_nothing_to_build_from_and_nothing_to_replace(machine: Machine) -> None:
    with pytest.raises(EmptyDatasetError, match="'Pair'"):
        hydrate(Pair, machine.store(), machine.registry)
    machine.producer.write(Pair, "x", {"a": 1, "b": ""}, 1)
    machine.drain([Pair])
    with pytest.raises(HydrationConflictError, match="quorin_Pair_"):
        hydrate(Pair, machine.store(), machine.registry)
    newer = make_schema("Pair", list(Pair.fields), version=2)
    with pytest.raises(HydrationConflictError, match="stays as it is"):
        hydrate(newer, machine.store(), machine.registry)
    machine.reboot()
    with pytest.raises(ValueError, match=r"0\.5"):
        hydrate(Pair, machine.store(), machine.registry, capacity_factor=0.5)


def test_who_comes_second_discards_what_was_built(machine: Machine) -> None:
    machine.producer.write(Pair, "x", {"a": 1, "b": ""}, 1)
    machine.drain([Pair])
    machine.reboot()
    built = []

    def other_process(done: int, total: int) -> None:
        if not built:
            built.append(True)
            built.append(hydrate(Pair, machine.store(), machine.registry).segment_name)

    with pytest.raises(HydrationConflictError, match="at the same time"):
        hydrate(Pair, machine.store(), machine.registry, progress=other_process)
    assert [path.name for path in machine.shm.glob("quorin_*")] == built[1:]
    machine.reboot()


def test_as_of_a_time_shows_what_was_known_then(machine: Machine) -> None:
    for number in range(1, 4):
        machine.producer.write(Pair, "x", {"a": number, "b": ""}, 10 * number)
    machine.drain([Pair])
    machine.reboot()
    steps: list[tuple[int, int]] = []
    result = hydrate(
        Pair, machine.store(), machine.registry, as_of_time_ns=25, progress=lambda *step: steps.append(step)
    )
    assert result.position == 0
    assert steps[-1] == (3, 3)
    with machine.registry.open_current(Pair) as segment:
        assert assembly.read(segment, ["x"]).to_pylist()[0]["a"] == 2
    machine.reboot()


def test_ids_longer_than_usual_and_fields_of_another_version(machine: Machine) -> None:
    store = machine.store()
    long_id = "x" * 300
    store.append(Pair, row_batch(Pair, long_id, {"a": 1, "b": "text"}, 1), pa.array([1]))
    store.flush()
    newer = make_schema("Pair", [FeatureField("c", dtype.int32), FeatureField("b", dtype.string)], version=2)
    hydrate(newer, store, machine.registry)
    with machine.registry.open_current(newer) as segment:
        row = assembly.read(segment, [long_id]).to_pylist()[0]
    assert (row["b"], row["c"]) == ("text", None)
    machine.reboot()


def test_the_number_of_entities_is_guessed_well_enough(machine: Machine) -> None:
    store = machine.store()
    for start in range(0, 200_000, 50_000):
        ids = [f"id{(start + i) % 120_000}" for i in range(50_000)]
        batch = pa.table({"entity_id": ids, "event_time_ns": [start] * 50_000, "n": range(50_000)})
        store.append(Other, batch.combine_chunks().to_batches()[0], pa.repeat(pa.scalar(start + 1), 50_000))
    store.flush()
    result = hydrate(Other, store, machine.registry, capacity_factor=1.0)
    assert result.entity_count == 120_000
    with machine.registry.open_current(Other) as segment:
        assert 120_000 <= segment.capacity <= 126_000
    machine.reboot()


def test_an_error_while_reading_leaves_no_segment(machine: Machine) -> None:
    machine.producer.write(Pair, "x", {"a": 1, "b": ""}, 1)
    machine.drain([Pair])
    machine.reboot()

    def fails(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hydrate(Pair, machine.store(), machine.registry, progress=fails)
    assert list(machine.shm.glob("quorin_*")) == []
    with pytest.raises(SegmentNotFoundError):
        machine.registry.open_current(Pair)
    assert hydration.hydrate(Pair, machine.store(), machine.registry).entity_count == 1
    machine.reboot()


def test_growth_while_it_is_built_forgets_no_deletion(registry: SegmentRegistry, tmp_path: Path) -> None:
    """Newer files come first: when a segment grows, the rows before an old deletion are still to come."""
    texts = make_schema("Texts", [FeatureField("text", dtype.string)])
    store = ParquetDatasetStore(tmp_path / "history")
    many = to_batch(texts, {"entity_id": [f"e{i}" for i in range(300)], "text": ["y" * 500] * 300}, event_time_ns=5)
    for position, (batch, kind) in enumerate(
        [
            (row_batch(texts, "gone", {"text": "x"}, 1), Kind.upsert),
            (many, Kind.upsert),
            (delete_batch(["gone"], 10), Kind.delete),
        ],
        1,
    ):
        store.append(texts, batch, pa.repeat(pa.scalar(position, pa.int64()), len(batch)), kind=kind)
        store.flush()
    hydrate(texts, store, registry)
    with registry.open_current(texts, read_only=False) as segment:
        assert segment.stats()["generation"] > 1
        assert assembly.read(segment, ["gone"]).column("found").to_pylist() == [False]
        assert assembly.changed_since(segment, 2).batches.read_all().column("entity_id").to_pylist() == ["gone"]
        registry.discard(segment)
