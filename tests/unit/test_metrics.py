"""Series have names of their own registry, are observed under real load, and are those of all processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from quorin import assembly, metrics
from quorin.engine.consumer.plan import Fit
from quorin.engine.counting import counters
from quorin.engine.counting.series import Text, gauge_text
from quorin.engine.kernels import counting
from quorin.engine.kernels.compiling import kernel
from quorin.engine.ops.exposition import Page
from quorin.engine.ops.gauges import SegmentCollector
from quorin.engine.ops.observe import Observer
from quorin.engine.ops.reclaim_plan import Reason
from quorin.engine.rows.batch import to_batch
from quorin.errors import EntityNotFoundError, WriterFencedError
from quorin.evolution import upgrade_schema
from quorin.layout import insert_many
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, Schema, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import NoopOfflineWriter, WALConsumer
from quorin.watchdog import WatchdogState

ROOT = Path(__file__).parents[2]
_numbers = iter(range(1000))


@pytest.fixture
def schema() -> Schema:
    """One that nothing else counts for."""
    return make_schema(f"Counted_{os.getpid()}_{next(_numbers)}", [FeatureField(name, dtype.float32) for name in "ab"])


def value(series: str, schema: Schema, **labels: str) -> float:
    return metrics.registry.get_sample_value(series, {"schema": schema.__name__, **labels}) or 0.0


def table(count: int) -> pa.Table:
    ids = [f"id{number}" for number in range(count)]
    return pa.table({"entity_id": ids, **{name: np.arange(count, dtype=np.float32) for name in "ab"}})


def test_every_series_is_ours_and_not_in_the_global_registry(schema: Schema) -> None:
    metrics.rows_applied.labels(schema.__name__).inc(1)
    names = {family.name for family in metrics.registry.collect()}
    assert names
    assert all(name.startswith("quorin_") for name in names)
    assert not names & {family.name for family in REGISTRY.collect()}


def test_the_server_shows_what_was_counted(schema: Schema) -> None:
    metrics.rows_applied.labels(schema.__name__).inc(3)
    server, thread = metrics.start_metrics_server(0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=60) as answer:
            text = answer.read().decode()
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)
    assert f'quorin_rows_applied_total{{schema="{schema.__name__}"}} 3.0' in text
    assert {family.name for family in text_string_to_metric_families(text)} >= {"quorin_rows_applied"}


def test_reads_are_counted_exactly_and_some_are_timed(registry: SegmentRegistry, schema: Schema) -> None:
    with registry.create(schema, capacity=100) as segment:
        insert_many(segment, table(50))
        for _ in range(640):
            assembly.assemble(segment, "id7")
        one = assembly.row_reader([(segment, None)])
        for entity_id in ("id1", "id2", "nobody"):
            one(entity_id)
        with pytest.raises(EntityNotFoundError):
            assembly.assemble(segment, "nobody")
        for _ in range(16):
            assembly.assemble_batch(segment, ["id1", "nobody", "id3"])
        assembly.read(segment, ["id1", "id2"])
        assert value("quorin_reads_total", schema) == 658  # a list of few ids is read one by one until one is missing
        assert value("quorin_batch_reads_total", schema) == 18  # 16, the miss that was looked at again, and the read
        assert value("quorin_batch_read_rows_total", schema) == 35
        assert value("quorin_rows_missing_total", schema) == 18
        assert 11 <= value("quorin_read_seconds_count", schema) <= 13
        assert 0 < value("quorin_read_seconds_sum", schema) < 60
        assert 2 <= value("quorin_batch_read_seconds_count", schema) <= 3
        buckets = [value("quorin_read_seconds_bucket", schema, le=repr(2**power / 1e9)) for power in range(5, 18)]
        assert buckets == sorted(buckets)
        registry.discard(segment)


def test_threads_that_read_batches_lose_no_count(registry: SegmentRegistry, schema: Schema) -> None:
    with registry.create(schema, capacity=100) as segment:
        insert_many(segment, table(50))
        ids = pa.array([f"id{number % 60}" for number in range(2000)])
        threads = [
            threading.Thread(target=lambda: [assembly.assemble_batch(segment, ids) for _ in range(100)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert value("quorin_batch_read_rows_total", schema) == 4 * 100 * 2000
        assert value("quorin_rows_missing_total", schema) == 400 * sum(number % 60 >= 50 for number in range(2000))
        registry.discard(segment)


def test_children_count_for_themselves_and_what_the_dead_counted_stays(
    registry: SegmentRegistry, schema: Schema
) -> None:
    with registry.create(schema, capacity=100) as segment:
        insert_many(segment, table(50))

        def child(ready: Any) -> None:
            for _ in range(10_000):
                assembly.assemble(segment, "id7")
            ready.set()
            time.sleep(60)

        fork = multiprocessing.get_context("fork")
        events = [fork.Event() for _ in range(3)]
        children = [fork.Process(target=child, args=(event,)) for event in events]
        for process in children:
            process.start()
        for _ in range(10_000):
            assembly.assemble(segment, "id7")
        assert all(event.wait(120) for event in events)
        assert value("quorin_reads_total", schema) == 40_000
        for process in children:
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
        assert value("quorin_reads_total", schema) == 40_000
        again = fork.Process(target=lambda: assembly.assemble(segment, "id7"))
        again.start()
        again.join()
        assert value("quorin_reads_total", schema) == 40_001
        used = [slot for _, slot in counters._state.file().used()]  # type: ignore[union-attr]
        slots = sum(1 for slot in used if slot.startswith(schema.__name__.encode() + b"\0"))
        assert slots == 4
        registry.discard(segment)


def test_any_process_shows_the_sum_of_all(registry: SegmentRegistry, schema: Schema, tmp_path: Path) -> None:
    with registry.create(schema, capacity=100) as segment:
        insert_many(segment, table(50))
        for _ in range(100):
            assembly.assemble(segment, "id7")
        script = (
            "from quorin import metrics\n"
            f"metrics.rows_applied.labels({schema.__name__!r}).inc(5)\n"
            f"print(metrics.registry.get_sample_value('quorin_reads_total', {{'schema': {schema.__name__!r}}}))"
        )
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout == "100.0\n"
        assert value("quorin_rows_applied_total", schema) == 5
        registry.discard(segment)


def test_where_nothing_can_be_shared_a_process_counts_for_itself(tmp_path: Path) -> None:
    script = (
        "from quorin import metrics\n"
        "metrics.rows_applied.labels('Alone').inc(5)\n"
        "print(metrics.registry.get_sample_value('quorin_rows_applied_total', {'schema': 'Alone'}))"
    )
    environment = {**os.environ, "QUORIN_SHM_DIR": str(tmp_path / "missing")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "5.0\n"
    assert "counters_not_shared" in done.stderr


def test_times_fall_into_half_octaves() -> None:
    expected = {0: 0, 15: 0, 16: 0, 23: 0, 24: 1, 31: 1, 32: 2, 47: 2, 48: 3, 1 << 40: 51}
    count_time = kernel(counting.count_time.py_func)
    for elapsed, bucket in expected.items():
        words = np.zeros(60, np.int64)
        count_time(words.ctypes.data, words.ctypes.data + 8 * 59, elapsed)
        assert words[bucket] == 1
        assert words[59] == elapsed


@pytest.fixture
def loaded(registry: SegmentRegistry, schema: Schema) -> Iterator[Schema]:
    """A schema after a life: written, applied, grown, refused, taken over, wiped."""
    backend = registry.backend
    with WALProducer(backend, registry=registry) as producer:
        producer.write_many(schema, table(3000))
        with WALConsumer(
            backend, schema, registry=registry, capacity=1000, max_id_bytes=8, offline=NoopOfflineWriter()
        ) as consumer:
            consumer.drain()
            producer.write(schema, "x" * 20, {"a": 1, "b": 1})
            producer.write(schema, "id1", {"a": 1, "b": 1}, 5)
            backend.log().append([(schema.__name__, b"garbage")])
            consumer.drain()
        with registry.open_current(schema, read_only=False) as sleeper:
            sleeper.acquire_writer_lease()
            with registry.open_current(schema, read_only=False) as other:
                other.overtake_writer()
                other.commit_position(1 << 62, other.log_identity)
                other.release_writer_lease()
                other.current_view().header["writer_active"] = 1  # As a writer that died leaves it.
                with pytest.raises(WriterFencedError):
                    sleeper.acquire_writer_lease()
        with WALConsumer(backend, schema, registry=registry) as consumer:
            consumer.drain()
        yield schema
        registry.discard(registry.open_current(schema, read_only=False))


def test_every_counter_is_observed_under_load(loaded: Schema) -> None:
    assert value("quorin_log_entries_appended_total", loaded) == 3
    assert value("quorin_log_rows_appended_total", loaded) == 3002
    assert value("quorin_rows_applied_total", loaded) == 3000
    assert value("quorin_rows_ignored_total", loaded) >= 1
    assert value("quorin_segment_growths_total", loaded) == 2
    assert value("quorin_segment_flips_total", loaded) == 3
    assert value("quorin_writers_overtaken_total", loaded) == 1
    assert value("quorin_writers_fenced_total", loaded) == 1
    assert value("quorin_writer_recoveries_total", loaded) == 1
    assert value("quorin_writer_leases_total", loaded) >= 5
    assert value("quorin_segment_attaches_total", loaded) >= 2
    assert value("quorin_log_reanchored_total", loaded, reason="shorter") == 1
    assert value("quorin_dead_letters_total", loaded) == 1
    assert metrics.registry.get_sample_value("quorin_dead_letters_total", {"schema": "?"})
    assert value("quorin_apply_delay_seconds_count", loaded) >= 2
    assert value("quorin_apply_delay_seconds_bucket", loaded, le="+Inf") == value(
        "quorin_apply_delay_seconds_count", loaded
    )
    for series in ("quorin_flushes_total", "quorin_flush_seconds_total", "quorin_log_entries_trimmed_total"):
        assert metrics.registry.get_sample_value(series), series


def test_every_reason_has_a_place() -> None:
    assert set(counters.REANCHOR_REASONS) == {fit.name for fit in Fit} - {Fit.same.name, Fit.new.name}
    assert set(counters.RECLAIM_REASONS) == {reason.name for reason in Reason}


def test_dead_letters_that_make_room_are_counted() -> None:
    before = metrics.registry.get_sample_value("quorin_dead_letters_dropped_total") or 0
    metrics.dead_letters_dropped.inc(2)
    assert metrics.registry.get_sample_value("quorin_dead_letters_dropped_total") == before + 2


def test_upgrades_damaged_files_and_reclaimed_segments_are_counted(
    registry: SegmentRegistry, schema: Schema, tmp_path: Path
) -> None:
    newer = make_schema(schema.__name__, [*schema.fields, FeatureField("c", dtype.int64)], version=2)
    with registry.create(schema, capacity=8) as segment:
        insert_many(segment, table(4))
    upgrade_schema(schema, newer, registry)
    assert value("quorin_schema_upgrades_total", schema) == 1

    with ParquetDatasetStore(tmp_path / "history") as store:
        store.append(schema, to_batch(schema, table(4)), pa.array([1] * 4))
        store.flush()
        (file,) = (tmp_path / "history").rglob("*.parquet")
        file.write_bytes(file.read_bytes()[:-10])
        assert len(ParquetDatasetStore(tmp_path / "history").latest_features(schema)) == 0
    assert value("quorin_history_files_skipped_total", schema) >= 1

    registry.create(schema, capacity=8, set_current=False).close()
    names = ("ticks", "reclaimed_files", "reclaimed_bytes")
    before = [total(f"quorin_watchdog_{name}_total") for name in names]
    with WatchdogState(registry.backend, shm_dir=tmp_path / "shm") as watchdog:
        for _ in range(2):
            tick = watchdog.run_one_tick()
    assert [reclaimed.reason for reclaimed in tick.reclaimed] == [Reason.unnamed.value]
    after = [total(f"quorin_watchdog_{name}_total") for name in names]
    assert all(now > then for now, then in zip(after, before, strict=True))


def total(series: str) -> float:
    """Over all labels."""
    families = metrics.registry.collect()
    return sum(sample.value for family in families for sample in family.samples if sample.name == series)


def test_gauges_say_how_segments_and_the_log_are(registry: SegmentRegistry, schema: Schema, tmp_path: Path) -> None:
    log = registry.backend.log()
    with registry.create(schema, capacity=8) as segment, WALProducer(registry.backend, registry=registry) as producer:
        producer.write_many(schema, table(3))
        WALConsumer(registry.backend, [segment], registry=registry).drain()
        segment.acquire_writer_lease()
        behind = producer.write(schema, "late", {"a": 1.0, "b": 2.0})
        log.bury(1, b"poison", "a reason")
        with Observer(registry.backend, shm_dir=tmp_path / "shm") as observer:
            collector = SegmentCollector(observer)
            found = {
                sample.name: sample.value
                for family in collector.collect()
                for sample in family.samples
                if sample.labels.get("schema", schema.__name__) == schema.__name__
            }
            collector.close()
    assert found["quorin_control_plane_up"] == found["quorin_segment_up"] == 1
    assert (found["quorin_log_entries"], found["quorin_log_dead_letters"]) == (2, 1)
    assert found["quorin_log_last_position"] == behind
    assert (found["quorin_lag_entries"], found["quorin_lag_rows"]) == (1, 1)
    assert (found["quorin_segment_rows"], found["quorin_segment_capacity"]) == (3, 8)
    for name in ("lag_seconds", "writer_heartbeat_age_seconds", "newest_event_age_seconds", "oldest_event_age_seconds"):
        assert 0 <= found[f"quorin_{name}"] < 60, name


def page(registry: SegmentRegistry, tmp_path: Path, *, others: bool = False) -> dict[tuple[str, str], float]:
    """The page of the registry's deployment: values by name and schema, as Prometheus parses them."""
    with Observer(registry.backend, shm_dir=tmp_path / "shm") as observer:
        shown = Page(observer, others=others)
        try:
            text = shown.text().decode()
        finally:
            shown.close()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    keys = [(sample.name, *sorted(sample.labels.items())) for sample in samples]
    assert len(keys) == len(set(keys)), "a series is twice on the page"
    return {(sample.name, sample.labels.get("schema", "")): sample.value for sample in samples}


def test_a_page_has_the_deployments_schemas_from_the_start_and_others_on_request(
    registry: SegmentRegistry, schema: Schema, tmp_path: Path
) -> None:
    other = f"{schema.__name__}_of_another"
    metrics.rows_applied.labels(other).inc(3)
    with registry.create(schema, capacity=8) as segment:
        shown = page(registry, tmp_path)
        for series in ("quorin_reads_total", "quorin_dead_letters_total", "quorin_batch_read_seconds_count"):
            assert shown[series, schema.__name__] == 0
        for series in ("quorin_flush_failures_total", "quorin_dead_letters_dropped_total"):
            assert shown[series, ""] >= 0
        assert 0 < shown["quorin_shm_free_bytes", ""] <= shown["quorin_shm_bytes", ""]
        assert not any(name == other for _, name in shown)
        everything = page(registry, tmp_path, others=True)
        assert everything["quorin_rows_applied_total", other] == 3
        assert everything["quorin_reads_total", schema.__name__] == 0
        registry.discard(segment)


def test_the_page_is_what_the_registry_serves(registry: SegmentRegistry, schema: Schema, tmp_path: Path) -> None:
    odd = 'odd"\\%s\n'
    metrics.rows_applied.labels(odd).inc(3)
    metrics.reanchored.labels(schema.__name__, "shorter").inc(2)
    metrics.flush_seconds.inc(1_500_000_000)
    metrics.count_applied(schema.__name__, 5, 1, 20_000_000)
    text = Text()
    for _ in range(2):
        families = list(metrics.counted())
        whole = CollectorRegistry()
        whole.register(Fixed([family.metric(slots) for family, slots in families if slots]))
        page = "".join(text.of(family, slots) for family, slots in families)
        assert parsed(page) == parsed(generate_latest(whole).decode())
        metrics.rows_applied.labels(schema.__name__).inc(1)
    gauge = GaugeMetricFamily("quorin_x", "100% of it.", labels=["schema", "node"])
    gauge.add_metric([odd, "n"], 1)
    gauge.add_metric(["b", "n"], 1.5e-9)
    whole = CollectorRegistry()
    whole.register(Fixed([gauge]))
    assert gauge_text(gauge) == generate_latest(whole).decode()


def parsed(text: str) -> list[Any]:
    """Families as Prometheus reads them: names, texts, types and samples, in their order."""
    families = text_string_to_metric_families(text)
    return [(family.name, family.documentation, family.type, family.samples) for family in families]


class Fixed:
    """A collector of families that are there."""

    def __init__(self, families: list[Any]) -> None:
        self._families = families

    def collect(self) -> list[Any]:
        return self._families


def test_a_page_without_the_control_plane_says_so_and_keeps_counting(
    registry: SegmentRegistry, schema: Schema, tmp_path: Path
) -> None:
    with registry.create(schema, capacity=8) as segment, Observer(registry.backend, shm_dir=tmp_path / "shm") as seen:
        shown = Page(seen)
        assert f'quorin_reads_total{{schema="{schema.__name__}"}} 0.0' in shown.text().decode()
        database = tmp_path / "control" / "quorin.db"
        away, no_database = tmp_path / "away.db", tmp_path / "no_database"
        away.hardlink_to(database)
        no_database.symlink_to(tmp_path)
        no_database.replace(database)  # In one step: a thread that finds no file makes one.
        text = shown.text().decode()
        away.replace(database)
        shown.close()
        assert "quorin_control_plane_up 0.0" in text
        assert f'quorin_reads_total{{schema="{schema.__name__}"}} 0.0' in text
        registry.discard(segment)


def test_counters_of_schemas_that_are_gone_are_retired_unless_a_process_counts_in_them(
    registry: SegmentRegistry, schema: Schema, tmp_path: Path
) -> None:
    name = schema.__name__
    gone, held, kept = f"{name}_gone", f"{name}_held", name
    script = (
        "import sys; from quorin import metrics\n"
        "for name in sys.argv[1:]: metrics.rows_applied.labels(name).inc(5)\n"
        "print('counted', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, gone, held, kept], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    metrics.rows_applied.labels(held).inc(1)
    with (
        registry.create(schema, capacity=8) as segment,
        process,
        WatchdogState(registry.backend, shm_dir=tmp_path / "shm") as watchdog,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"counted\n"
        for _ in range(3):
            assert gone not in watchdog.run_one_tick().retired
        assert counters.retire([gone, held]) == {}, "a living process counts in them"
        process.communicate()
        assert gone not in watchdog.run_one_tick().retired, "one tick is not enough"
        assert gone in watchdog.run_one_tick().retired
        registry.discard(segment)
    totals = counters.totals()
    assert gone not in totals
    assert totals[held][counters.word("rows_applied")] == 6, "this process counts in one of its slots"
    assert totals[kept][counters.word("rows_applied")] == 5, "the deployment has it"
    metrics.rows_applied.labels(gone).inc(1)
    assert counters.totals()[gone][counters.word("rows_applied")] == 1
