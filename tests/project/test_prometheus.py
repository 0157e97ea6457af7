"""Alert rules and dashboards in Prometheus itself: every expression has data, every alert fires when it should only."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import requests
import yaml

from quorin.assembly import assemble, assemble_batch
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import NoopOfflineWriter, WALConsumer
from tests.support.http import serving
from tests.support.prometheus import Prometheus, needs_prometheus, scraping, wait_until

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "docker" / "grafana" / "dashboards" / "quorin.json").read_text())
RULES_FILE = ROOT / "docker" / "prometheus" / "alerts.yml"
RULES = {rule["alert"]: rule for rule in yaml.safe_load(RULES_FILE.read_text())["groups"][0]["rules"]}
RIDE = make_schema("Ride", [FeatureField("fare", dtype.float32), FeatureField("place", dtype.string)])

pytestmark = needs_prometheus

# The series that make an alert fire, and what they are when all is well, in the notation of promtool: `0+5x60` begins
# at 0 and rises by 5 for 60 intervals of 15 s.
SERIES = {
    "QuorinMetricsMissing": ({'up{job="quorin"}': "0x60"}, {'up{job="quorin"}': "1x60"}),
    "QuorinControlPlaneUnreachable": ({"quorin_control_plane_up": "0x60"}, {"quorin_control_plane_up": "1x60"}),
    "QuorinSegmentMissing": ({"quorin_segment_up": "0x60"}, {"quorin_segment_up": "1x60"}),
    "QuorinLag": ({"quorin_lag_seconds": "11x60"}, {"quorin_lag_seconds": "0.5x60"}),
    "QuorinNodeSilent": (
        {"quorin_node_silent_seconds": "0+15x60"},
        {"quorin_node_silent_seconds": "0.5x60"},
    ),
    "QuorinNodeStale": (
        {'quorin_node_lag_seconds{node="a",schema="X"}': "11x60", 'quorin_node_up{node="a"}': "1x60"},
        {
            'quorin_node_lag_seconds{node="a",schema="X"}': "0.2x60",
            'quorin_node_up{node="a"}': "1x60",
            'quorin_node_lag_seconds{node="gone",schema="X"}': "600+15x60",
            'quorin_node_up{node="gone"}': "0x60",
        },
    ),
    "QuorinWriterSilent": (
        {'quorin_writer_heartbeat_age_seconds{instance="a"}': "31x60", 'quorin_control_plane_up{instance="a"}': "1x60"},
        {
            'quorin_writer_heartbeat_age_seconds{instance="a"}': "1x60",
            'quorin_control_plane_up{instance="a"}': "1x60",
            'quorin_writer_heartbeat_age_seconds{instance="cut off"}': "0+15x60",
            'quorin_control_plane_up{instance="cut off"}': "0x60",
        },
    ),
    "QuorinDeadLetters": ({"quorin_log_dead_letters": "1x60"}, {"quorin_log_dead_letters": "0x60"}),
    "QuorinDeadLettersLost": (
        {"quorin_dead_letters_dropped_total": "0x30 1x30"},
        {"quorin_dead_letters_dropped_total": "7x60"},
    ),
    "QuorinLogFilling": ({"quorin_log_entries": "800001x60"}, {"quorin_log_entries": "799999x60"}),
    "QuorinLogReanchored": (
        {'quorin_log_reanchored_total{reason="trimmed"}': "0x30 1x30"},
        {'quorin_log_reanchored_total{reason="trimmed"}': "3x60"},
    ),
    "QuorinSlowReads": (
        {
            'quorin_read_seconds_bucket{le="8.192e-06"}': "0x60",
            'quorin_read_seconds_bucket{le="1.6384e-05"}': "0+9x60",
            'quorin_read_seconds_bucket{le="+Inf"}': "0+9x60",
        },
        {'quorin_read_seconds_bucket{le="8.192e-06"}': "0+9x60", 'quorin_read_seconds_bucket{le="+Inf"}': "0+9x60"},
    ),
    "QuorinHeapGarbage": (
        {"quorin_segment_heap_garbage_bytes": "81x200", "quorin_segment_heap_bytes": "100x200"},
        {"quorin_segment_heap_garbage_bytes": "79x200", "quorin_segment_heap_bytes": "100x200"},
    ),
    "QuorinRequestErrors": (
        {
            'quorin_http_requests_total{path="/a",status="2xx"}': "0+100x60",
            'quorin_http_requests_total{path="/a",status="5xx"}': "0+2x60",
        },
        {
            'quorin_http_requests_total{path="/a",status="2xx"}': "0+100x60",
            'quorin_http_requests_total{path="/a",status="5xx"}': "0x60",
        },
    ),
    "QuorinRequestsRefused": (
        {'quorin_http_requests_refused_total{reason="connections"}': "0+1x60"},
        {
            'quorin_http_requests_refused_total{reason="connections"}': "4x60",
            'quorin_http_requests_refused_total{reason="token"}': "0+1x60",
        },
    ),
    "QuorinSlowRequests": (
        {
            'quorin_http_request_seconds_bucket{way="short",le="0.025"}': "0x60",
            'quorin_http_request_seconds_bucket{way="short",le="0.05"}': "0+9x60",
            'quorin_http_request_seconds_bucket{way="short",le="+Inf"}': "0+9x60",
        },
        {
            'quorin_http_request_seconds_bucket{way="short",le="0.025"}': "0+9x60",
            'quorin_http_request_seconds_bucket{way="short",le="+Inf"}': "0+9x60",
        },
    ),
    "QuorinStaleReads": ({"quorin_stale_reads_total": "0+1x60"}, {"quorin_stale_reads_total": "12x60"}),
    "QuorinDataStale": (
        {"quorin_newest_event_age_seconds": "86401x120"},
        {"quorin_newest_event_age_seconds": "86399x120"},
    ),
    "QuorinEventsAhead": (
        {"quorin_newest_event_age_seconds": "-61x60"},
        {"quorin_newest_event_age_seconds": "-59x60"},  # clocks that differ a little, and times rounded to minutes
    ),
    "QuorinHistoryNotFlushed": (
        {"quorin_flush_failures_total": "0x20 0+1x40"},
        {"quorin_flush_failures_total": "5x60"},
    ),
    "QuorinChecksFailed": (
        {'quorin_checks_failed_total{schema="Trip",check="range"}': "0x20 1x40"},
        {'quorin_checks_failed_total{schema="Trip",check="range"}': "3x60"},
    ),
    "QuorinServedLogIncomplete": (
        {"quorin_served_log_dropped_total": "0x20 0+1x40", "quorin_served_log_failures_total": "0x60"},
        {"quorin_served_log_dropped_total": "7x60", "quorin_served_log_failures_total": "2x60"},
    ),
    "QuorinSharedMemoryFilling": (
        {"quorin_shm_free_bytes": "9x60", "quorin_shm_bytes": "100x60"},
        {"quorin_shm_free_bytes": "11x60", "quorin_shm_bytes": "100x60"},
    ),
    "QuorinNoRoomToGrow": (
        {
            'quorin_shm_free_bytes{job="quorin",instance="a"}': "19x60",
            'quorin_segment_bytes{job="quorin",instance="a",schema="X"}': "10x60",
        },
        {
            'quorin_shm_free_bytes{job="quorin",instance="a"}': "21x60",
            'quorin_segment_bytes{job="quorin",instance="a",schema="X"}': "10x60",
        },
    ),
    "QuorinLoadHigh": ({"quorin_segment_load": "0.91x120"}, {"quorin_segment_load": "0.89x120"}),
    "QuorinSlowBatches": (
        {
            'quorin_batch_read_seconds_bucket{le="0.004"}': "0x60",
            'quorin_batch_read_seconds_bucket{le="0.008"}': "0+9x60",
            'quorin_batch_read_seconds_bucket{le="+Inf"}': "0+9x60",
        },
        {
            'quorin_batch_read_seconds_bucket{le="0.004"}': "0+9x60",
            'quorin_batch_read_seconds_bucket{le="+Inf"}': "0+9x60",
        },
    ),
}


def test_every_alert_fires_when_provoked_and_is_quiet_when_all_is_well(tmp_path: Path) -> None:
    assert set(SERIES) == set(RULES)
    tests = []
    for alert, series in SERIES.items():
        for values, samples in zip(series, ([{"value": 1}], []), strict=True):
            at = 40 if "200" in str(values) else 25 if "120" in str(values) else 12
            tests.append(
                {
                    "interval": "15s",
                    "name": f"{alert} {'fires' if samples else 'is quiet'}",
                    "input_series": [{"series": name, "values": value} for name, value in values.items()],
                    "promql_expr_test": [
                        {
                            "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                            "eval_time": f"{at}m",
                            "exp_samples": [{"labels": "{}", **sample} for sample in samples],
                        }
                    ],
                }
            )
    file = tmp_path / "tests.yml"
    file.write_text(
        yaml.safe_dump({"rule_files": [str(RULES_FILE)], "evaluation_interval": "15s", "tests": tests}, sort_keys=False)
    )
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_nothing_wrong() -> None:
    for words in (["rules", str(RULES_FILE)], ["config", str(ROOT / "docker" / "prometheus" / "prometheus.yml")]):
        done = subprocess.run(["promtool", "check", *words], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus over a deployment that is written to, read from, applied, flushed and asked over HTTP."""
    folder = tmp_path_factory.mktemp("loaded")
    (folder / "shm").mkdir()
    store = str(folder / "store")
    registry = SegmentRegistry(store, shm_dir=folder / "shm")
    segment = registry.create(RIDE, capacity=4096)
    consumer = WALConsumer(registry.backend, [segment], registry=registry, offline=NoopOfflineWriter())
    stop = threading.Event()
    with ExitStack() as stack:
        stack.callback(registry.backend.close)
        stack.callback(segment.close)
        producer = stack.enter_context(WALProducer(registry.backend, registry=registry))
        options = ["--connection", store, "--shm-dir", str(folder / "shm")]
        server = stack.enter_context(serving(["quorin", "serve", "-p", "{port}", *options], folder / "log"))
        page = stack.enter_context(metrics_of(store, folder))

        def load() -> None:
            ids = [f"id{number}" for number in range(50)]
            fares = pa.table({"entity_id": ids, "fare": np.arange(50, dtype=np.float32), "place": ["Oslo"] * 50})
            while not stop.wait(0.02):
                producer.write_many(RIDE, fares)
                reader = registry.open_current(RIDE)
                for _ in range(100):
                    assemble_batch(reader, ids)
                    if reader.stats()["rows"]:
                        assemble(reader, "id7")
                reader.close()
                answer = requests.post(f"{server.url}/v1/read", json={"schema": "Ride", "entity_ids": ids}, timeout=60)
                assert answer.status_code == 200, answer.text

        threads = [threading.Thread(target=load), threading.Thread(target=consumer.run)]
        for thread in threads:
            thread.start()
        try:
            yield stack.enter_context(scraping(page, RULES_FILE, folder))
        finally:
            stop.set()
            consumer.stop()
            for thread in threads:
                thread.join(60)


@contextmanager
def metrics_of(store: str, folder: Path) -> Iterator[int]:
    """``quorin metrics`` over a store; its port."""
    words = ["metrics", "--connection", store, "--shm-dir", str(folder / "shm"), "--port", "0", "--log-json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "quorin", *words], cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        lines = (json.loads(line) for line in process.stderr or [])
        yield next(line["port"] for line in lines if line["event"] == "metrics_served")
    finally:
        process.terminate()
        process.communicate(timeout=60)


def expressions() -> Iterator[tuple[str, str]]:
    """What dashboards and rules show and compare, with where it is."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            shown = target["expr"].replace("$schema", ".*").replace("$instance", ".*")
            yield f"panel {panel['title']}", shown
    for alert, rule in RULES.items():
        for part in re.split(r" and (?:on \(.*?\) )?", rule["expr"]):
            yield f"alert {alert}", re.split(r" (?:>|<|==) ", part)[0]


def test_every_expression_has_data_under_load_and_no_alert_fires(loaded: Prometheus) -> None:
    missing: list[tuple[str, str]] = list(expressions())

    def is_complete() -> bool:
        missing[:] = [one for one in missing if not any(not math.isnan(value) for value in loaded.values(one[1]))]
        return not missing

    wait_until(is_complete, what=lambda: f"no data for {missing}", seconds=90)
    slow = {"QuorinSlowReads", "QuorinSlowRequests", "QuorinSlowBatches"}  # A busy machine is, for a moment.
    found = {(one["labels"]["alertname"], one["state"]) for one in loaded.get("alerts")["alerts"]}
    assert found <= {(name, "pending") for name in slow}
    rules = loaded.get("rules")["groups"][0]["rules"]
    assert {rule["name"]: rule["health"] for rule in rules} == dict.fromkeys(RULES, "ok")
