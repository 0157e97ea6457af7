"""What the wheel installs, where, and that it leaves again; the lock file; the compose file."""

from __future__ import annotations

import re
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import quorin
from tests.support.installed import install, pip, python, run

ROOT = Path(__file__).parents[2]
VERSION = quorin.__version__
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture
def site(wheel: Path, tmp_path: Path) -> Path:
    """The site-packages of a fresh environment into which the wheel was installed; it has no other package."""
    return install(wheel, tmp_path / "environment")


def test_wheel_holds_both_packages_and_the_hook_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "quorin",
        "feast_quorin",
        "quorin_feast.pth",
        f"quorin-{VERSION}.dist-info",
    }
    assert {"quorin/py.typed", "feast_quorin/py.typed", f"quorin-{VERSION}.dist-info/licenses/LICENSE"} <= set(names)
    assert "feast_quorin/quorin_feast.pth" not in names


def test_the_hook_is_silent_where_there_is_no_feast(site):
    done = run([python(site), "-W", "error", "-X", "importtime", "-c", "import sys; print('feast' in sys.modules)"])
    assert done.stdout == "False\n"
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert lines == []
    assert "feast_quorin" in done.stderr


def test_installed_wheel_teaches_feast_the_short_name(site, tmp_path):
    (site / "zz_dependencies.pth").write_text(sysconfig.get_path("purelib"))
    lines = ["project: shop", "provider: local", "registry: r.db", "online_store:", "    type: quorin"]
    (tmp_path / "feature_store.yaml").write_text("\n".join(lines))
    script = (
        "import pathlib, quorin, feast_quorin, feast\n"
        f"config = feast.repo_config.load_repo_config(pathlib.Path({str(tmp_path)!r}),"
        f" pathlib.Path({str(tmp_path / 'feature_store.yaml')!r}))\n"
        "print(type(config.online_store).__name__, *quorin.__path__, *feast_quorin.__path__)"
    )
    name, *places = run([python(site), "-c", script]).stdout.split()
    assert name == "QuorinOnlineStoreConfig"
    assert places == [str(site / "quorin"), str(site / "feast_quorin")]


def test_uninstalling_leaves_nothing(site):
    assert (site / "quorin_feast.pth").exists()
    run([python(site), "-c", "import feast_quorin"])
    pip(python(site), "uninstall", "-q", "-y", "quorin")
    assert not site.exists() or list(site.iterdir()) == []


def test_source_distribution_holds_what_the_tests_need(tmp_path):
    run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path], cwd=ROOT)
    (path,) = tmp_path.iterdir()
    names = run(["tar", "tf", path]).stdout.split()
    top = {name.split("/")[1] for name in names}
    assert {"quorin", "feast_quorin", "tests", "docs", "feature_repo", "requirements.lock", "pyproject.toml"} <= top
    assert not [name for name in names if "/data/" in name or "__pycache__" in name]


def test_lock_pins_every_dependency_and_names_no_index():
    lock = (ROOT / "requirements.lock").read_text()
    assert not re.findall(r"://|file:|--(?:extra-)?index|--find-links|@", lock)
    pinned = {line.partition("==")[0].lower() for line in lock.splitlines() if re.match(r"[\w.-]+==", line)}
    project = PYPROJECT["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    names = {re.match(r"[\w.-]+", line)[0].lower() for line in wanted}  # type: ignore[index]
    assert names - {"quorin"} <= pinned
    assert "quorin" not in pinned


def test_redis_for_development_persists_and_never_evicts():
    compose = yaml.safe_load((ROOT / "docker" / "docker-compose.dev.yml").read_text())
    redis = compose["services"]["redis"]
    command = " ".join(redis["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert redis["ports"] == ["127.0.0.1:6379:6379"]
    assert redis["volumes"][0].partition(":")[0] in compose["volumes"]


def test_the_version_stands_in_one_place():
    assert "version" not in PYPROJECT["project"]
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "quorin/__init__.py"
    assert f"## {VERSION}" in (ROOT / "CHANGELOG.md").read_text()


def test_workflows_test_every_python_and_publish_without_secrets():
    workflows = {path.name: path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml")}
    assert set(workflows) == {"ci.yml", "release.yml"}
    assert not [name for name, text in workflows.items() if "secrets." in text or "password" in text]
    matrix = yaml.safe_load(workflows["ci.yml"])["jobs"]["test"]["strategy"]["matrix"]["python"]
    offered = [line.rpartition(" ")[2] for line in PYPROJECT["project"]["classifiers"] if "Python :: 3." in line]
    assert matrix == offered
    publish = yaml.safe_load(workflows["release.yml"])["jobs"]["publish"]
    assert publish["permissions"]["id-token"] == "write"
    assert publish["environment"] == "pypi"
