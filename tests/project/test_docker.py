"""Compose files, dashboard and alert rules: valid, and about series that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from quorin import metrics
from quorin.engine.ops.gauges import SegmentCollector
from quorin.engine.ops.observe import Observer
from quorin.shm import SegmentRegistry
from tests.support.schemas import Scalars

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "quorin.json").read_text())
RULES = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
COMPOSE = yaml.safe_load((DOCKER / "docker-compose.yml").read_text())


def panels() -> Iterator[dict[str, Any]]:
    yield from (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


@pytest.fixture
def known(registry: SegmentRegistry, tmp_path: Path) -> set[str]:
    """The name of every series that can be served."""
    segment = registry.create(Scalars, capacity=10)
    with Observer(registry.backend, shm_dir=tmp_path / "shm") as observer:
        collector = SegmentCollector(observer)
        counted = [family for family, _ in metrics.counted()]
        families = [*collector.collect(), *counted, metrics.requests_in_flight()]
        collector.close()
    registry.discard(segment)
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    return {family.name + suffix for family in families for suffix in suffixes[getattr(family, "kind", "gauge")]}


def series_in(expression: str) -> set[str]:
    return set(re.findall(r"\bquorin_\w+", expression))


def test_every_panel_shows_series_that_exist(known: set[str]) -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels():
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            names = series_in(target["expr"])
            assert names, target
            assert names <= known, f"{panel['title']}: {names - known}"
            assert target["expr"].count("(") == target["expr"].count(")")
    variables = {variable["name"]: variable["query"] for variable in DASHBOARD["templating"]["list"]}
    assert variables.pop("datasource") == "prometheus"
    assert set(variables) == {"instance", "schema"}
    assert all(series_in(query["query"]) <= known for query in variables.values())


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells


def test_every_alert_is_about_series_that_exist_and_says_what_it_means(known: set[str]) -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert series_in(rule["expr"]) <= known, rule["alert"]
        assert series_in(rule["expr"]) or rule["expr"].startswith("up{")
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]


def test_every_alert_has_its_section_in_troubleshooting() -> None:
    text = (DOCKER.parent / "docs" / "troubleshooting.md").read_text()
    sections = re.findall(r"^### (Quorin\w+)$", text, flags=re.MULTILINE)
    assert sections == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["annotations"]["runbook_url"] == f"docs/troubleshooting.md#{rule['alert'].lower()}"


def test_percentiles_are_named_by_their_quantile() -> None:
    for panel in panels():
        for target in panel["targets"]:
            quantile = re.match(r"histogram_quantile\(0\.(\d+),", target["expr"])
            assert not quantile or target["legendFormat"].endswith(f"p{quantile[1]:0<2}"), panel["title"]


def test_compose_brings_everything_up_in_order_and_shares_memory() -> None:
    services = COMPOSE["services"]
    assert {"redis", "consumer", "prometheus", "grafana"} <= set(services)
    for name, service in services.items():
        assert "healthcheck" in service or name == "consumer"  # whose image has one
        for other, condition in service.get("depends_on", {}).items():
            assert other in services
            assert condition == {"condition": "service_healthy"}
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (DOCKER / source).exists() if source.startswith("./") else source in COMPOSE["volumes"]
    assert services["consumer"]["ipc"] == "shareable"
    assert services["consumer"]["shm_size"]
    assert services["serving"]["ipc"] == "service:consumer"
    assert "HEALTHCHECK" in (DOCKER / "Dockerfile").read_text()


def test_prometheus_and_grafana_find_each_other() -> None:
    scraped = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    assert scraped["scrape_configs"][0]["static_configs"][0]["targets"] == ["consumer:9100"]
    assert scraped["rule_files"] == ["alerts.yml"]
    provisioning = DOCKER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["isDefault"]
    assert {panel["datasource"]["uid"] for panel in panels()} == {"${datasource}"}
    for panel in panels():
        assert all('instance=~"$instance"' in target["expr"] for target in panel["targets"]), panel["title"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "quorin.yml").read_text())["providers"]
    mounts = [volume.split(":")[1] for volume in COMPOSE["services"]["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounts


def test_every_file_the_image_copies_is_there() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, flags=re.MULTILINE):
        for name in line.split():
            assert (DOCKER.parent / name).exists(), name
