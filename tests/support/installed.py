"""Environments into which the built wheel is installed, with packages of the environment that runs the tests."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"PATH": "/usr/bin:/bin"}  # neither PYTHONPATH nor the checkout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory], cwd=ROOT)
    (path,) = directory.iterdir()
    return path


def install(wheel: Path, directory: Path) -> Path:
    """Install the wheel, and nothing else, into a new environment; return its site-packages."""
    venv.create(directory, with_pip=False, symlinks=True)
    pip(directory / "bin" / "python", "install", "-q", "--no-deps", "--no-index", wheel)
    return Path(sysconfig.get_path("purelib", "venv", vars={"base": str(directory)}))


def python(site: Path) -> Path:
    return site.parents[2] / "bin" / "python"


def pip(interpreter: Path, *arguments: object) -> None:
    run([sys.executable, "-m", "pip", "--python", interpreter, "--disable-pip-version-check", *arguments])


def run(command: list[Any], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd or "/", env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def link_packages(site: Path, *extras: str) -> None:
    """Link the packages that the wheel requires with these extras from the running environment; write their scripts."""
    for name in required(*extras):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or [] if ".." not in file.parts}:
            target = site / top
            if not target.exists() and top != "__pycache__":
                target.symlink_to(found.locate_file(PurePosixPath(top)))  # type: ignore[arg-type]
        for script in found.entry_points.select(group="console_scripts"):
            path = python(site).with_name(script.name)
            if not path.exists():
                lines = f"#!{python(site)}", "import sys", f"from {script.module} import {script.attr} as main"
                path.write_text("\n".join([*lines, "sys.exit(main())", ""]))
                path.chmod(0o755)


def required(*extras: str) -> set[str]:
    """The names of all packages that Quorin requires with these extras, directly or not, without Quorin."""
    found: set[tuple[str, frozenset[str]]] = set()
    new = [("quorin", frozenset(extras))]
    while new:
        name, wanted = new.pop()
        if (name, wanted) not in found:
            found.add((name, wanted))
            new += _requirements(distribution(name), wanted)
    return {name for name, _ in found} - {"quorin"}


def _requirements(of: Distribution, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    for line in of.requires or []:
        requirement = Requirement(line)
        environments = [{**default_environment(), "extra": extra} for extra in ("", *extras)]
        if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
            yield requirement.name.lower(), frozenset(requirement.extras)
