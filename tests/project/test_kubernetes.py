"""The manifests: valid for Kubernetes, hardened, big enough, and about commands and settings that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from feast_quorin.config import StoreSettings
from quorin.cli import app
from quorin.cli.durations import seconds
from quorin.shm import SHM_DIR, SHM_DIR_VARIABLE, SHM_GROUP_VARIABLE

DOCKER = Path(__file__).parents[2] / "docker"
FILES = sorted((DOCKER / "kubernetes").glob("*.yaml"))
MANIFESTS = [(file.name, document) for file in FILES for document in yaml.safe_load_all(file.read_text())]
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DOCKER / "docker-compose.yml").read_text())["services"]
UNITS = {"Mi": 2**20, "Gi": 2**30}
LEAST_PROCESS_BYTES = 2**30


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """The specification of every pod, with the name of its file and its kind."""
    for name, document in MANIFESTS:
        spec = document.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield f"{name}:{document['kind']}", spec["template"]["spec"]


PODS = dict(pods())
CONTAINERS = {
    f"{pod}/{container['name']}": (spec, container)
    for pod, spec in PODS.items()
    for container in [*spec.get("initContainers", []), *spec["containers"]]
}


def number_of_bytes(text: str) -> int:
    return int(text[:-2]) * UNITS[text[-2:]]


def memory_of(container: dict[str, Any]) -> int:
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    return number_of_bytes(container["resources"]["requests"]["memory"])


def quorin_commands(container: dict[str, Any]) -> Iterator[list[str]]:
    if container["image"] == "quorin" and "command" not in container:
        yield container["args"]
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        command = container.get(probe, {}).get("exec", {}).get("command", [])
        if command:
            assert command[0] == "quorin"
            yield command[1:]


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
@pytest.mark.parametrize(("name", "document"), MANIFESTS)
def test_kubernetes_accepts_it(name: str, document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_a_misspelt_key_would_be_noticed() -> None:
    (document,) = [document for _, document in MANIFESTS if document["kind"] == "DaemonSet"]
    spec = document["spec"] | {"updateStrategie": {}}
    with pytest.raises(kubernetes_validate.ValidationError, match="updateStrategie"):
        kubernetes_validate.validate(document | {"spec": spec}, "1.31", strict=True)


def test_each_shape_is_there() -> None:
    assert {
        "sidecar.yaml:Deployment",
        "daemonset.yaml:DaemonSet",
        "daemonset.yaml:Deployment",
        "partitioned.yaml:StatefulSet",
        "writers.yaml:CronJob",
    } == set(PODS)
    assert any(image == COMPOSE["consumer"]["image"] for _, one in CONTAINERS.values() if (image := one["image"]))


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_can_do_little(name: str) -> None:
    pod, container = CONTAINERS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["terminationGracePeriodSeconds"] >= int(COMPOSE["consumer"]["stop_grace_period"].rstrip("s"))
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"]["drop"] == ["ALL"]
    assert ("add" in security["capabilities"]) == (security.get("runAsUser") == 0) == name.endswith("/directory")


@pytest.mark.parametrize("name", CONTAINERS)
def test_secrets_and_images_are_named_as_elsewhere(name: str) -> None:
    pod, container = CONTAINERS[name]
    assert container["image"] == COMPOSE["consumer"]["image"] or container["image"].startswith("registry.example.com/")
    secrets = {
        document["metadata"]["name"]: document["stringData"]
        for _, document in MANIFESTS
        if document["kind"] == "Secret"
    }
    maps = {document["metadata"]["name"] for _, document in MANIFESTS if document["kind"] == "ConfigMap"}
    variables = {variable["name"]: variable for variable in container.get("env", [])}
    if not name.endswith(("/directory", "/kernels")):
        reference = variables["QUORIN_CONNECTION"]["valueFrom"]["secretKeyRef"]
        assert reference["key"] in secrets[reference["name"]]
    known = {option.envvar for command in COMMANDS.values() for option in command.params if option.envvar}
    assert {SHM_DIR_VARIABLE, SHM_GROUP_VARIABLE} <= known
    assert set(variables) <= known | {"XDG_CACHE_HOME", "POD_NAME"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
    assert {volume["configMap"]["name"] for volume in volumes.values() if "configMap" in volume} <= maps
    mounted = [volume["secret"] for volume in volumes.values() if "secret" in volume]
    assert all(item["key"] in secrets[secret["secretName"]] for secret in mounted for item in secret["items"])
    cache = variables.get("XDG_CACHE_HOME", {}).get("value")
    if container["image"] == "quorin":  # Its kernels are in the image.
        assert cache is None
        assert f"XDG_CACHE_HOME={'/var/cache/quorin'}" in DOCKERFILE
    else:
        assert cache in [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]


@pytest.mark.parametrize("name", CONTAINERS)
def test_commands_and_options_exist(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QUORIN_CONNECTION", "redis://localhost:1")
    (tmp_path / "token").write_text("a-token")
    _, container = CONTAINERS[name]
    for command, *given in quorin_commands(container):
        words = [str(tmp_path / "token") if word == "/etc/quorin/token" else word for word in given]
        context = COMMANDS[command].make_context(command, list(words))
        if command == "ready":
            assert seconds(context.params["max_lag"]) > 0
        if command == "consumer":
            assert [command, *words] == json.loads(re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[0])
            (port,) = container["ports"]
            assert port["containerPort"] == context.params["metrics_port"]
            assert container["livenessProbe"]["httpGet"] == {"path": "/metrics", "port": port["name"]}


@pytest.mark.parametrize(("name", "document"), [one for one in MANIFESTS if one[1]["kind"] == "ConfigMap"])
def test_settings_are_those_of_the_store(name: str, document: dict[str, Any]) -> None:
    settings = yaml.safe_load(document["data"]["feature_store.yaml"])["online_store"]
    assert settings["redis_url"] == "${QUORIN_CONNECTION}"
    read = StoreSettings(**settings | {"redis_url": "redis://localhost:6379"})
    assert read.consumer == "external"
    assert read.wait == ("applied" if name == "sidecar.yaml" else "logged")


@pytest.mark.parametrize("name", ["sidecar.yaml:Deployment", "partitioned.yaml:StatefulSet"])
def test_consumers_may_have_their_segments_and_themselves_in_memory(name: str) -> None:
    pod = PODS[name]
    (consumer,) = (one for one in pod["initContainers"] if one["name"] == "consumer")
    (shm,) = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm"]
    assert shm["medium"] == "Memory"
    assert memory_of(consumer) >= number_of_bytes(shm["sizeLimit"]) + LEAST_PROCESS_BYTES
    assert {
        mount["mountPath"]
        for one in [consumer, *pod["containers"]]
        for mount in one["volumeMounts"]
        if mount["name"] == "shm"
    } == {SHM_DIR}
    assert consumer["restartPolicy"] == "Always"
    assert pod["shareProcessNamespace"] is True
    for _, container in CONTAINERS.values():
        memory_of(container)


def test_the_machines_consumer_writes_and_its_serving_pods_read() -> None:
    writer, reader = PODS["daemonset.yaml:DaemonSet"], PODS["daemonset.yaml:Deployment"]
    (consumer,), (serving,), (prepare,) = writer["containers"], reader["containers"], writer["initContainers"]
    environment = {variable["name"]: variable.get("value") for variable in consumer["env"]}
    group = int(environment[SHM_GROUP_VARIABLE] or "")
    assert writer["securityContext"]["runAsUser"] != reader["securityContext"]["runAsUser"]
    assert writer["securityContext"]["supplementalGroups"] == reader["securityContext"]["supplementalGroups"] == [group]
    options = dict(zip(prepare["command"][2:-1:2], prepare["command"][3:-1:2], strict=True))
    assert options == {"-m": "2750", "-o": str(writer["securityContext"]["runAsUser"]), "-g": str(group)}
    paths = [
        volume["hostPath"]["path"] for pod in (writer, reader) for volume in pod["volumes"] if "hostPath" in volume
    ]
    assert paths[0] == paths[1]
    assert paths[0].startswith(SHM_DIR)
    directory = {variable["name"]: variable.get("value") for variable in serving["env"]}[SHM_DIR_VARIABLE]
    (mount,) = [mount for mount in serving["volumeMounts"] if mount["name"] == "shm"]
    assert mount == {"name": "shm", "mountPath": directory, "readOnly": True}
    assert environment[SHM_DIR_VARIABLE] == prepare["command"][-1] == directory


def test_pods_share_the_partitions_and_reach_each_other() -> None:
    (shape,) = [document["spec"] for _, document in MANIFESTS if document["kind"] == "StatefulSet"]
    services = {
        document["metadata"]["name"]: document["spec"] for _, document in MANIFESTS if document["kind"] == "Service"
    }
    pod = PODS["partitioned.yaml:StatefulSet"]
    (consumer,), (serving,) = pod["initContainers"], pod["containers"]
    held = {variable["name"]: variable.get("value") for variable in consumer["env"]}
    assert (held["QUORIN_HELD_PARTITIONS"], int(held["QUORIN_NODES"] or "")) == ("auto", shape["replicas"])
    (port,) = serving["ports"]
    advertised = {variable["name"]: variable.get("value") for variable in serving["env"]}["QUORIN_ADVERTISE"]
    assert advertised == f"http://$(POD_NAME).{shape['serviceName']}:{port['containerPort']}"
    assert services[shape["serviceName"]]["clusterIP"] == "None"
    assert serving["args"][serving["args"].index("--port") + 1] == str(port["containerPort"])
    (token,) = [mount["mountPath"] for mount in serving["volumeMounts"] if mount["name"] == "token"]
    assert serving["args"][serving["args"].index("--token-file") + 1] == f"{token}/token"


def test_the_page_is_about_what_is_there() -> None:
    page = (DOCKER.parent / "docs" / "kubernetes.md").read_text()
    assert "were not run on a cluster" in page
    rules = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
    assert set(re.findall(r"`(Quorin[A-Z]\w+)`", page)) <= {rule["alert"] for rule in rules}
    assert set(re.findall(r"(?:docker/kubernetes/|`)([\w-]+\.yaml)\b", page)) - {"feature_store.yaml"} == {
        file.name for file in FILES
    }
