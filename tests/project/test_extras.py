"""What each extra brings, what the engine does without any, and what a missing library's error says."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from quorin.errors import MissingExtraError, install_command, needs_extra
from tests.support.installed import ENVIRONMENT, install, link_packages, python, required, run

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
NOT_OF_THE_ENGINE = [
    "feast", "fastapi", "http.server", "orjson", "pandas", "polars", "prometheus_client", "redis", "rich", "structlog",
    "textual", "typer", "urllib3", "uvicorn",
]  # fmt: skip
ENGINE = """
from quorin.assembly import assemble
from quorin.layout import insert, pack_row
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry

schema = make_schema("Users", [FeatureField("score", dtype.float32)])
registry = SegmentRegistry("store", shm_dir=".")
with registry.create(schema, capacity=10) as segment:
    insert(segment, "user_1", pack_row(schema, score=0.5))
    print(assemble(segment, "user_1"))
"""


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site-packages of an environment that has the wheel and what it requires, without an extra."""
    site = install(wheel, tmp_path_factory.mktemp("bare") / "environment")
    link_packages(site)
    return site


@pytest.fixture(scope="module")
def with_commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site-packages of an environment with the extra ``cli`` alone, in a directory with a store."""
    directory = tmp_path_factory.mktemp("commands")
    site = install(wheel, directory / "environment")
    link_packages(site, "cli")
    run([python(site), "-c", ENGINE], cwd=directory)
    return site


def test_the_engine_requires_little():
    assert required() == {"llvmlite", "numba", "numpy", "pyarrow", "structlog", "xxhash"}


def test_the_engine_works_without_an_extra(bare, tmp_path):
    assert run([python(bare), "-c", ENGINE], cwd=tmp_path).stdout == "[0.5]\n"


def test_importing_the_engine_imports_nothing_of_its_extras():
    modules = ["shm", "layout", "assembly", "serving", "vector", "pool", "wal", "wal_consumer", "offline", "snapshot"]
    script = f"import sys, {', '.join(f'quorin.{name}' for name in modules)}\n"
    script += f"print(sorted({set(NOT_OF_THE_ENGINE)!r} & sys.modules.keys()))"
    assert run([sys.executable, "-c", script]).stdout == "[]\n"


@pytest.mark.parametrize(
    ("extra", "library", "script"),
    [
        ("redis", "redis", "from quorin.shm import SegmentRegistry; SegmentRegistry('redis://127.0.0.1:1')"),
        ("metrics", "prometheus_client", "from quorin.metrics import registry"),
        ("metrics", "prometheus_client", "from quorin.metrics import start_metrics_server as start; start(0)"),
        ("serve", "httptools|orjson|uvicorn", "import quorin.http"),
        ("feast", "feast", "import feast_quorin; feast_quorin.QuorinOnlineStore"),
    ],
)
def test_an_error_names_the_extra_of_what_is_missing(bare, tmp_path, extra, library, script):
    caught = (
        f"from quorin.errors import MissingExtraError\ntry:\n    {script}\nexcept MissingExtraError as e:\n    print(e)"
    )
    text = run([python(bare), "-c", caught], cwd=tmp_path).stdout
    assert re.fullmatch(
        rf"({library}) is not installed; the extra '{extra}' brings it: pip install '.*\[{extra}\]'\n", text
    )


@pytest.mark.parametrize("command", ["quorin", "python -m quorin"])
def test_the_command_without_its_extra_is_one_error(bare, command):
    name, *words = command.split()
    done = subprocess.run(
        [python(bare).with_name(name), *words, "doctor"], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert re.fullmatch(r"error: (rich|typer) is not installed; the extra 'cli' brings it: .*\[cli\]'\n", done.stderr)


@pytest.mark.parametrize(("command", "extra"), [("top", "top"), ("metrics --port 0", "metrics"), ("serve", "serve")])
def test_a_command_names_the_extra_that_it_needs_too(with_commands, command, extra):
    directory = python(with_commands).parents[2]
    words = [python(with_commands).with_name("quorin"), *command.split(), "--connection", "store"]
    done = subprocess.run(words, cwd=directory, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"the extra '{extra}' brings it" in done.stderr


def test_all_has_every_extra_of_users():
    (line,) = EXTRAS["all"]
    assert set(re.findall(r"\w+", line)) - {"quorin"} == set(EXTRAS) - {"all", "dev", "docs", "example"}


def test_the_plugin_has_its_commands_and_redis():
    assert {"feast", "pandas", "redis", "rich", "typer", "urllib3"} <= required("feast")


def test_a_hint_installs_from_where_this_was_installed(wheel, bare):
    script = "from quorin.errors import install_command; print(install_command('redis', 'top'))"
    assert run([python(bare), "-c", script]).stdout == f"pip install '{wheel}[redis,top]'\n"


def test_a_module_of_ours_that_is_missing_is_no_missing_extra():
    with pytest.raises(ModuleNotFoundError, match=r"quorin\.nothing"), needs_extra("redis"):
        import quorin.nothing  # noqa: F401
    with pytest.raises(MissingExtraError), needs_extra("redis"):
        import no_such_library  # noqa: F401


def test_every_hint_comes_from_one_function():
    sources = [path for name in ("quorin", "feast_quorin", "feature_repo") for path in (ROOT / name).rglob("*.py")]
    assert [path.name for path in sources if "pip install" in path.read_text()] == ["installation.py"]
    assert re.fullmatch(r"pip install '\S+\[redis\]'", install_command("redis"))


def test_pages_name_extras_that_exist_and_only_the_readme_says_how_to_install_them():
    pages = [path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "decisions"]
    for page in [*pages, ROOT / "README.md", ROOT / ".ci" / "run", ROOT / "docker" / "Dockerfile"]:
        text = page.read_text()
        assert not re.search(r"pip install[^\n`]*[ '\"]quorin\b", text), f"{page}: that is another project's package"
        named = {extra for group in re.findall(r"['\"]\S+\[([\w,]+)\]['\"]", text) for extra in group.split(",")}
        named |= set(re.findall(r"(?<=\bextra )`(\w+)`", text))
        assert named <= set(EXTRAS), page
        if page in pages and page.name != "contributing.md":
            assert not re.search(r"pip install ['\"]?[.$]", text), f"{page}: name the extra, and link to the README"
