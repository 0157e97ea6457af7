"""Every document's links and anchors lead somewhere, and what it shows as code can be read as such."""

from __future__ import annotations

import ast
import code
import gc
import json
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from quorin.cli import app
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SHM_DIR_VARIABLE, SegmentRegistry
from tests.support.shown import blocks, run_shown, sections

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ENGINE_TUTORIAL = ROOT / "docs" / "tutorial-engine.md"
DEPLOYMENT = ROOT / "docs" / "deployment.md"
FEAST_TUTORIAL = ROOT / "docs" / "tutorial-feast.md"
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_anchors_name_a_heading(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", document.read_text())):
        path, hash_, anchor = target.partition("#")
        if hash_ and not target.startswith(("http://", "https://")):
            assert anchor in anchors((document.parent / path) if path else document), f"{document.name}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_code_can_be_read(document):
    for _, language, block in FENCE.findall(document.read_text()):
        if language == "python":
            ast.parse(block)
        elif language == "yaml":
            yaml.safe_load(block)
        elif language == "bash":
            subprocess.run(["bash", "-n", "-c", block], check=True)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_blocks_can_be_pasted_into_pythons_prompt(document):
    """There a blank line ends a block, and only a blank line does."""
    for block in blocks(document, "python"):
        prompt = Prompt()
        pending = [prompt.push(line) for line in [*block.splitlines(), ""]]
        assert (prompt.problems, pending[-1]) == ([], False), block


class Prompt(code.InteractiveConsole):
    """The prompt, which reads and does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []

    def runcode(self, code: Any) -> None:
        del code

    def showsyntaxerror(self, filename: str | None = None, **_: Any) -> None:
        self.problems.append(f"{filename}: {sys.exc_info()[1]}")


def test_operations_lists_every_command_and_variable():
    operations = (ROOT / "docs" / "operations.md").read_text()
    table = "".join(re.findall(r"^\| (`[a-z].*?) \|", operations, flags=re.MULTILINE))
    program: Any = typer.main.get_command(app)
    listed = set(re.findall(r"`(\w+)", table))
    assert set(program.commands) <= listed
    for group in [program, *program.commands.values()]:
        for command in getattr(group, "commands", {"": group}).values():
            for variable in [parameter.envvar for parameter in command.params if parameter.envvar]:
                assert f"`{variable}`" in operations, f"{command.name}: {variable}"


def test_the_sizes_of_deployment_are_those_of_segments(registry):
    names: dict[str, Any] = {}
    assert run_shown(blocks(DEPLOYMENT, "python", "sizes")[0], names) == 1
    floats = [FeatureField(f"f{number}", dtype.float32) for number in range(50)]
    others = [FeatureField("n", dtype.int64), FeatureField("v", dtype.float32, (8,)), FeatureField("t", dtype.string)]
    for fields, capacity, *row in [
        (floats, 1, 200, 50),
        (floats, 50_000, 200, 50),
        (others, 5_000, 40, 3, 1),
    ]:
        with registry.create(make_schema("Sized", fields), capacity=capacity) as segment:
            stats = segment.stats()
            registry.discard(segment)
        assert 0 <= stats["bytes"] - names["segment_bytes"](capacity, *row) < 10_000


def test_deployments_settings_are_those_of_the_compose_file():
    services = yaml.safe_load((ROOT / "docker" / "docker-compose.yml").read_text())["services"]
    settings = blocks(DEPLOYMENT, "ini", "redis")[0]
    assert [f"--{line}" for line in settings.splitlines()] == re.findall(
        r"--\S+ \S+", " ".join(services["redis"]["command"])
    )
    unit = blocks(DEPLOYMENT, "ini", "file: quorin-consumer.service")[0]
    assert unit.strip() == (ROOT / "docker" / "systemd" / "quorin-consumer.service").read_text().strip()


def test_gunicorns_configuration_prewarms():
    names: dict[str, Any] = {}
    run_shown(blocks(DEPLOYMENT, "python", "file: gunicorn.conf.py")[0], names)
    assert names["preload_app"] is True
    try:
        names["when_ready"](None)
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


@pytest.fixture
def segments(tmp_path, monkeypatch):
    """Where the segments of a document's program stand; at its end it has to have removed them."""
    folder = tmp_path / "segments"
    folder.mkdir()
    monkeypatch.setenv(SHM_DIR_VARIABLE, str(folder))
    (tmp_path / "program").mkdir()
    monkeypatch.chdir(tmp_path / "program")
    yield folder
    assert [
        path.name for path in folder.iterdir() if not path.name.startswith(("quorin-counters-", "quorin-node-"))
    ] == []


def test_the_engines_tutorial(segments):
    names = {"__name__": "tutorial"}
    program = blocks(ENGINE_TUTORIAL, "python")
    shown = [run_shown(block, names) for block in program]
    assert len(program) > 15
    assert sum(shown) > 25


def test_feasts_tutorial(segments, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    names: dict[str, Any] = {"__name__": "tutorial"}
    shown = 0
    beside: list[subprocess.Popen[bytes]] = []
    port = free_port()
    first_settings = blocks(FEAST_TUTORIAL, "yaml", "file: feature_store.yaml")[0]
    try:
        for marker, language, block in sections(FEAST_TUTORIAL):
            if marker.startswith("file: "):
                Path(marker.removeprefix("file: ")).write_text(block)
            elif marker in ("run", "down"):
                if marker == "down":
                    end(beside)
                feast(block)
            elif marker == "beside":
                beside.append(started(block))
                wait_until(lambda: writer_of("shop__driver_stats") == beside[0].pid)
            elif marker == "serve":
                beside.append(started(block.replace("6566", str(port))))
                wait_until(lambda: accepts(port))
            elif marker == "request":
                assert answered(port, block) == [(0.625, "PRESENT"), (None, "NOT_FOUND")]
            elif marker == "back":
                assert [path for path in segments.iterdir() if "shop__" in path.name] == []
                Path("feature_store.yaml").write_text(first_settings)
                feast(block)
            elif language == "python":
                shown += run_shown(block, names)
    finally:
        sys.modules.pop("features", None)
        end(beside)
    assert shown == 7
    store = names["FeatureStore"](".")
    assert store.get_online_features(names["features"], names["drivers"]).to_dict() == names["before"]


def feast(commands: str) -> None:
    """Run Feast's commands, one a line, in this process."""
    from click.testing import CliRunner
    from feast.cli.cli import cli

    for command in commands.splitlines():
        program, *arguments = shlex.split(command)
        assert program == "feast"
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, f"{command}: {done.output} {done.exception!r}"


def started(command: str) -> subprocess.Popen[bytes]:
    program, *arguments = shlex.split(command)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([str(Path(sys.executable).parent / program), *arguments], **quiet)


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    while processes:
        process = processes.pop()
        process.terminate()
        process.wait()


def answered(port: int, request: str) -> list[tuple[Any, str]]:
    """What Feast's feature server answers for the feature: value and status of each entity."""
    url, kind = f"http://127.0.0.1:{port}/get-online-features", {"Content-Type": "application/json"}
    asked = urllib.request.Request(url, request.encode(), kind)
    with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310
        found = json.load(answer)
    result = found["results"][found["metadata"]["feature_names"].index("conv_rate")]
    return list(zip(result["values"], result["statuses"], strict=True))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def writer_of(schema_name: str) -> int | None:
    with SegmentRegistry("data/quorin").open_stored(schema_name) as segment:
        writer: int | None = segment.stats()["writer_pid"]
    return writer


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", document.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
