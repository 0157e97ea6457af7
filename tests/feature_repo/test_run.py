"""The README's main job, run as it is, on a copy of the example."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quorin.shm import default_shm_dir

FEATURE_REPO = Path(__file__).parents[2] / "feature_repo"


@pytest.fixture
def repo(tmp_path) -> Path:
    copy = tmp_path / "feature_repo"
    shutil.copytree(FEATURE_REPO, copy, ignore=shutil.ignore_patterns("data", "__pycache__"))
    return copy


@pytest.mark.parametrize("control_plane", ["embedded", "redis"])
def test_workers_read_what_was_materialized_and_pushed(repo, control_plane, request):
    connection = ["--redis-url", request.getfixturevalue("redis_url")] if control_plane == "redis" else []
    try:
        output = run(repo, "--workers", "2", "--seconds", "1", *connection)
        assert "13,030 online rows" in output
        assert f"read from 5 segments in {default_shm_dir()}" in output
        assert "every worker reads all 4,037 aircraft as Parquet's newest rows have them" in " ".join(output.split())
    finally:
        run(repo, "--teardown", *connection)
    assert not (repo / "data").exists()


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--seconds", "-1"]])
def test_a_bad_number_is_named(repo, arguments):
    command = [sys.executable, "-O", repo / "run.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"expected a number of at least 1, got {arguments[1]}" in done.stderr


def run(repo: Path, *arguments: str) -> str:
    command = [sys.executable, "-O", str(repo / "run.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
