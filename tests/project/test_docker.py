"""Compose files and units, dashboard and alert rules: valid, and about commands and series that exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from quorin import metrics
from quorin.cli import app
from quorin.engine.ops.gauges import SegmentCollector
from quorin.engine.ops.observe import Observer
from quorin.shm import SegmentRegistry
from tests.support.schemas import Scalars

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "quorin.json").read_text())
RULES = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
COMPOSE = yaml.safe_load((DOCKER / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
QUORIN = {name: service for name, service in SERVICES.items() if service["image"] in ("quorin", "quorin-feast")}
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
UNITS = {file.name: file.read_text() for file in (DOCKER / "systemd").glob("*.service")}
SIZES = {"mb": 2**20, "gb": 2**30}

needs_systemd = pytest.mark.systemd


def number_of_bytes(text: str) -> int:
    return int(text[:-2]) * SIZES[text[-2:]]


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


def test_compose_itself_finds_nothing_wrong(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("docker-compose")
    for name in ("docker-compose.yml", "docker-compose.dev.yml"):
        words = [str(command), "-f", str(DOCKER / name), "--profile", "*", "config", "--quiet"]
        done = subprocess.run(words, capture_output=True, text=True, env={"HOME": str(tmp_path)}, timeout=120)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_compose_brings_everything_up_in_order_and_within_limits() -> None:
    assert {"redis", "memory", "consumer", "watchdog", "prometheus", "alertmanager", "grafana"} <= set(SERVICES)
    for name, service in SERVICES.items():
        assert "healthcheck" in service or name == "consumer"  # whose image has one
        assert number_of_bytes(service["mem_limit"]) > 0
        assert service["restart"] == ("no" if name == "tools" else "unless-stopped")
        for other, condition in service.get("depends_on", {}).items():
            assert other in SERVICES
            assert condition == {"condition": "service_healthy"}
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")
        for volume in service.get("volumes", []):
            source = volume.rpartition(":/")[0].removeprefix("${FEATURE_REPO:-").removesuffix("}").removesuffix(":ro")
            assert (DOCKER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
    redis = SERVICES["redis"]["command"]
    assert number_of_bytes(redis[redis.index("--maxmemory") + 1]) < number_of_bytes(SERVICES["redis"]["mem_limit"])
    assert "HEALTHCHECK" in DOCKERFILE


def test_containers_of_quorin_share_memory_processes_and_a_host_name() -> None:
    """Neither namespace ends with a consumer: the container that owns them does nothing."""
    memory = SERVICES["memory"]
    assert (memory["ipc"], memory["init"], memory["entrypoint"]) == ("shareable", True, ["sleep", "infinity"])
    for name, service in QUORIN.items():
        assert service["hostname"] == memory["hostname"], "a process is known by its host's name"
        assert service["cap_drop"] == ["ALL"]
        if name != "memory":
            assert (service["ipc"], service["pid"]) == ("service:memory", "service:memory")
            assert service["environment"] == {"QUORIN_CONNECTION": "redis://redis:6379"}
    assert number_of_bytes(SERVICES["consumer"]["mem_limit"]) >= number_of_bytes(memory["shm_size"]) + 2**30


def test_commands_of_compose_and_systemd_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORIN_CONNECTION", "redis://localhost:1")
    commands = get_command(app).commands  # type: ignore[attr-defined]
    shown = [service["command"] for name, service in QUORIN.items() if name != "memory"]
    shown += [re.findall(r"^ExecStart=\S+/quorin (.*)$", unit, re.MULTILINE)[0].split() for unit in UNITS.values()]
    for command, *words in shown:
        words = ["." if word.endswith("feature_repo") else word for word in words]  # A directory that exists here.
        context = commands[command].make_context(command, words)
        if command == "consumer":
            assert context.params["offline"] == "/var/lib/quorin/history"
            assert context.params["metrics_port"] == 9100
    assert "install -d -o quorin /var/cache/quorin /var/lib/quorin /var/lib/quorin/history" in DOCKERFILE
    assert "history:/var/lib/quorin/history" in SERVICES["consumer"]["volumes"]


def test_images_are_built_here_or_have_a_version() -> None:
    builders: dict[str, str] = {}
    for name, service in SERVICES.items():
        if "build" in service:
            assert service["pull_policy"] == "build"
            builders[service["image"]] = name
    for name, service in SERVICES.items():
        image = service["image"]
        if image in builders:
            assert service["pull_policy"] in ("build", "never"), "an image of this name elsewhere is not ours"
        else:
            assert re.search(r":v?\d[\w.-]*$", image), name
    extras = SERVICES["features"]["build"]["args"]["EXTRAS"].split(",")
    known = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras) <= set(known)
    assert re.findall(r"^FROM (.*)$", DOCKERFILE, re.MULTILINE) == ["${BASE} AS build", "${BASE}"]


@needs_systemd
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for name, unit in UNITS.items():
        (tmp_path / name).write_text(unit.replace("/usr/local/bin/quorin", sys.executable))
    files = [str(tmp_path / name) for name in UNITS]
    done = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True, timeout=120)
    said = [line for line in done.stderr.splitlines() if any(name in line for name in UNITS)]
    assert (done.returncode, said) == (0, [])


def test_prometheus_and_grafana_find_each_other() -> None:
    scraped = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    assert scraped["scrape_configs"][0]["static_configs"][0]["targets"] == ["consumer:9100"]
    assert scraped["rule_files"] == ["alerts.yml"]
    assert scraped["global"]["scrape_interval"] == "15s"
    assert scraped["alerting"]["alertmanagers"][0]["static_configs"] == [{"targets": ["alertmanager:9093"]}]
    told = yaml.safe_load((DOCKER / "prometheus" / "alertmanager.yml").read_text())
    assert told["route"]["receiver"] in {receiver["name"] for receiver in told["receivers"]}
    assert "schema" not in told["route"]["group_by"], "two hundred schemas of a node would be two hundred messages"
    assert all(rule["equal"] == ["job", "instance"] for rule in told["inhibit_rules"]), "of one node, not of all"
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


def test_every_file_the_image_copies_is_there_and_in_the_build_context() -> None:
    lines = (DOCKER.parent / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    kept = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()
    }
    assert copied == kept
    for name in copied:
        assert (DOCKER.parent / name).exists(), name
