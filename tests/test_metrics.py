"""Series have names of their own registry, and are served over HTTP."""

from __future__ import annotations

import urllib.request

from prometheus_client import REGISTRY

from quorin import metrics


def test_every_series_is_ours_and_not_in_the_global_registry() -> None:
    names = {family.name for family in metrics.registry.collect()}
    assert names
    assert all(name.startswith("quorin_") for name in names)
    assert not names & {family.name for family in REGISTRY.collect()}


def test_the_server_shows_what_was_counted() -> None:
    metrics.rows_applied.labels("Shown").inc(3)
    server, thread = metrics.start_metrics_server(0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
    assert 'quorin_rows_applied_total{schema="Shown"} 3.0' in text
