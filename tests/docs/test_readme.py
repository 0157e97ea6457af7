"""The README's commands and code, run as a reader would run them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import yaml

from quorin.engine.kernels import cache
from quorin.shm import SegmentRegistry
from tests.feast.spawned import QUICK_IMPORT
from tests.support.installed import link_packages

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DIRECTORY_LINE = 'registry = SegmentRegistry("store")'
REDIS_LINE = 'shared_registry = SegmentRegistry("redis://127.0.0.1:6379")'
INSTALLED_FROM = "QUORIN=$PWD "


@pytest.fixture
def discarded() -> Iterator[list[tuple[SegmentRegistry, Any]]]:
    """Segments to discard when the test is over."""
    made: list[tuple[SegmentRegistry, Any]] = []
    yield made
    for registry, segment in made:
        registry.discard(segment)


@pytest.mark.parametrize("control_plane", ["redis", "directory"])
def test_engine_quickstart(control_plane, redis_url, tmp_path, monkeypatch, discarded):
    monkeypatch.chdir(tmp_path)
    quickstart, on_redis, read_back = blocks("python")[:3]
    assert DIRECTORY_LINE in quickstart
    assert on_redis.strip() == REDIS_LINE
    line = DIRECTORY_LINE if control_plane == "directory" else f"registry = SegmentRegistry({redis_url!r})"
    names: dict[str, Any] = {"__name__": "readme"}
    assert_shows(quickstart.replace(DIRECTORY_LINE, line), names, discarded)
    assert_shows(read_back, names, discarded)
    go_on = re.search(r"`(registry\.open_current\(.*read_only=False\))`", README)
    assert go_on
    with eval(go_on[1], names) as again:  # noqa: S307
        assert not again.read_only
        assert names["assemble"](again, "user_001")[1] == 42
    if control_plane == "redis":
        with redis.Redis.from_url(redis_url) as used:
            assert used.dbsize() > 0
    else:
        assert [path.suffix for path in (tmp_path / "store").iterdir()]


def test_a_reader_follows_the_readme_in_order(wheel, tmp_path):
    """In an empty directory, with nothing but the wheel and what it requires."""
    reader = Reader(tmp_path)
    reader.install(wheel)
    quickstart, _, read_back = blocks("python")[:3]
    discard = re.search(r"`(registry\.discard\(.*?\))`", README)
    assert discard
    reader.python(f"{quickstart}\n{read_back}\n{discard[1]}")
    for name, language in [("feature_store.yaml", "yaml"), ("features.py", "python")]:
        (reader.directory / name).write_text(marked(f"file: {name}", language))
    reader.bash(marked("run", "bash"))
    try:
        assert "conv_rate" in reader.bash(marked("watch", "bash"))
        script = marked("feast", "python")
        shown = [ast.literal_eval(line.removeprefix("# ")) for line in script.splitlines() if line.startswith("# {")]
        printing = re.sub(r"^(store\.get_online_features.*)$", r"print(\1)", script, flags=re.MULTILINE)
        printed = reader.python(printing, **QUICK_IMPORT).splitlines()
        assert [ast.literal_eval(line) for line in printed] == shown  # in any order: Feast's own differs by run
    finally:
        reader.bash("feast teardown", **QUICK_IMPORT)


def test_redis_settings_are_valid(tmp_path):
    from feast.repo_config import RepoConfig

    settings = yaml.safe_load(marked("yaml", "yaml"))
    config = RepoConfig(project="shop", provider="local", registry=str(tmp_path / "r.db"), **settings)
    assert config.online_store.redis_url == "redis://127.0.0.1:6379"


def test_ci_runs_the_readmes_test_command():
    command = marked("command: tests", "bash").strip()
    assert command.endswith("pytest")
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_example_command_names_what_is_there():
    command = marked("command: example", "bash").strip()
    script = ROOT / command.split()[-1]
    assert "usage" in run([sys.executable, str(script), "--help"], ROOT, **QUICK_IMPORT)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"'\.\[(\w+)\]'", README)) <= set(extras)


def test_a_name_means_one_thing_on_the_whole_page():
    """Blocks that are pasted into one shell, in any order after the first, find what the earlier ones left."""
    seen: set[str] = set()
    for block in blocks("python"):
        tree = ast.parse(block)
        bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        assert not (bound & seen), f"{sorted(bound & seen)} would be bound again by\n{block}"
        seen |= bound


def test_every_python_block_is_run():
    assert len(blocks("python")) == 5


@pytest.mark.parametrize(
    "document", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.name
)
def test_links_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "#")):
            assert (document.parent / target.partition("#")[0]).exists(), f"{document.name} links to {target}"


class Reader:
    """Runs the README's blocks in the directory that its block "Install" makes, in the environment that it makes."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.directory = home
        self._environment = "true"

    def install(self, wheel: Path) -> None:
        """Run the block for a wheel file. What pip would download is linked from the running environment."""
        block = marked("install", "bash")
        assert INSTALLED_FROM in block
        block = block.replace(INSTALLED_FROM, f"QUORIN={wheel} ")
        offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        *_, directory = self.bash(f"{block}\npwd", **offline).splitlines()
        self.directory = Path(directory)
        [site] = self.directory.glob(".venv/lib/python*/site-packages")
        [extras] = re.findall(r"\[([\w,]+)\]", block)
        link_packages(site, *extras.split(","))
        self._environment = ". .venv/bin/activate"

    def python(self, code: str, **variables: str) -> str:
        (self._home / "typed.py").write_text(code)
        return self.bash(f"python {self._home / 'typed.py'}", PYTHONPATH="", **variables)

    def bash(self, commands: str, **variables: str) -> str:
        kept = {"HOME": str(self._home), "XDG_CACHE_HOME": str(cache.directory().parents[1])}  # of compiled kernels
        return run(["bash", "-euc", f"{self._environment}\n{commands}"], self.directory, **kept, **variables)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def marked(marker: str, language: str) -> str:
    """The block of that language right after the comment `<!-- marker -->`."""
    found = re.search(rf"<!-- {re.escape(marker)} -->\n```{language}\n(.*?)```", README, flags=re.DOTALL)
    assert found, f"the README has no {language} block marked {marker!r}"
    return found[1]


def assert_shows(block: str, names: dict[str, Any], discarded: list[tuple[SegmentRegistry, Any]]) -> None:
    """Run a block; where an expression is followed by a comment that is Python itself, both must be equal."""
    namespace = {"nan": np.nan, "array": np.array, "float32": np.float32, "True": True}
    shown: list[tuple[Any, str]] = []
    names["_shows"] = lambda value, comment: shown.append((value, comment))
    exec(re.sub(r"^( *)(\S.*?) +# (array.*)$", r"\1_shows(\2, '''\3''')", block, flags=re.MULTILINE), names)  # noqa: S102
    if (names["registry"], names["seg"]) not in discarded and len(discarded) == 0:
        discarded.append((names["registry"], names["seg"]))
    assert shown
    for value, comment in shown:
        np.testing.assert_array_equal(value, eval(comment, namespace), strict=True)  # noqa: S307


def run(command: list[str], directory: Path, **variables: str) -> str:
    """Its output; the scripts of this Python's environment come first on PATH, and ``variables`` are added."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path} | variables
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, textwrap.dedent(
        f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    return done.stdout
