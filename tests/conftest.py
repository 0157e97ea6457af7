"""Fixtures for every test, and the check that none leaves shared memory behind."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from quorin.shm import SHM_DIR, SHM_DIR_VARIABLE, SegmentRegistry
from tests.support.compiled import compile_beside, wait_for_kernels
from tests.support.followers import end_followers
from tests.support.installed import wheel  # noqa: F401 - a fixture, found here by every test
from tests.support.machines import machine  # noqa: F401 - a fixture, found here by every test
from tests.support.network import has_networks
from tests.support.partition_nodes import connection  # noqa: F401 - a fixture, found here by every test
from tests.support.redis_cluster import clusters, redis_cluster, watched  # noqa: F401 - fixtures, found here by every test
from tests.support.redis_server import redis_server, redis_servers, redis_url  # noqa: F401 - fixtures, found here by every test
from tests.support.walks import durable_redis  # noqa: F401 - a fixture, found here by every test


def pytest_configure(config: pytest.Config) -> None:
    """Give this test process, and all that it starts, a place in shared memory that is its own."""
    directory = Path(tempfile.mkdtemp(prefix="quorin-tests-", dir=SHM_DIR))
    os.environ[SHM_DIR_VARIABLE] = str(directory)
    config.stash[_OWN_SHM_DIR] = directory
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        config.stash[_COMPILING] = compile_beside()
    else:
        gc.disable()  # Until all tests are imported, of which next to nothing is garbage.


def pytest_xdist_auto_num_workers() -> int:
    """Four more than cores, as tests wait for half of their time: for processes, servers and disks."""
    return len(os.sched_getaffinity(0)) + 4


def pytest_report_header() -> list[str]:
    networks = [] if has_networks() else ["tests of networks are left out: only root can make network namespaces"]
    users = [] if os.geteuid() == 0 else ["tests of other users are left out: only root can start their processes"]
    browser = [] if shutil.which("chromium") else ["tests in a browser are left out: there is no chromium on PATH"]
    prometheus = [] if _has_prometheus() else ["tests in Prometheus are left out: it is not on PATH with promtool"]
    site = [] if _has_sphinx() else ["tests of the site are left out: the extra docs is not installed"]
    systemd = [] if shutil.which("systemd-analyze") else ["the test of systemd's units is left out: it is not on PATH"]
    return users + networks + browser + prometheus + site + systemd


def pytest_collection_finish() -> None:
    """What is imported stays: a collection during a test looks only at what tests made."""
    gc.freeze()
    gc.enable()
    wait_for_kernels()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests that need what is not here: processes of other users or networks, which only root can make,
    Chromium, Prometheus, Sphinx, or systemd.
    """
    unable = {
        "other_users": os.geteuid() != 0,
        "networks": not has_networks(),
        "browser": shutil.which("chromium") is None,
        "prometheus": not _has_prometheus(),
        "site": not _has_sphinx(),
        "systemd": shutil.which("systemd-analyze") is None,
    }
    left_out = [item for item in items if any(unable[name] and item.get_closest_marker(name) for name in unable)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _has_sphinx() -> bool:
    return importlib.util.find_spec("furo") is not None


def _has_prometheus() -> bool:
    return all(shutil.which(name) for name in ("prometheus", "promtool"))


def pytest_unconfigure(config: pytest.Config) -> None:
    if _COMPILING in config.stash:
        config.stash[_COMPILING].wait()
    shutil.rmtree(config.stash[_OWN_SHM_DIR])


@pytest.fixture(scope="session", autouse=True)
def no_segment_left_at_the_end(request: pytest.FixtureRequest) -> Iterator[None]:
    """Segments of the default place are removed by whoever made them."""
    yield
    left = {name: test for name, test in _first_seen_after.items() if name in _segments(request.config)}
    assert not left, f"segments left in shared memory, each with the test after which it was first seen: {left}"


@pytest.fixture(scope="module", autouse=True)
def no_followers_of_earlier_modules() -> None:
    """Else they apply what later tests write."""
    end_followers()


@pytest.fixture(autouse=True)
def segments_are_noted(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in _segments(request.config):
        _first_seen_after.setdefault(name, request.node.nodeid)


@pytest.fixture(autouse=True)
def logging_is_unconfigured() -> Iterator[None]:
    """A command that runs in this process configures structlog, with the test's own standard error."""
    yield
    structlog.reset_defaults()


_OWN_SHM_DIR = pytest.StashKey[Path]()
_COMPILING = pytest.StashKey["subprocess.Popen[bytes]"]()
_first_seen_after: dict[str, str] = {}


def _segments(config: pytest.Config) -> list[str]:
    kept = (
        "quorin-counters-",
        "quorin-node-",
        "quorin-served-",
    )  # They stay for the next process, and go with the directory.
    return [path.name for path in config.stash[_OWN_SHM_DIR].iterdir() if not path.name.startswith(kept)]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[SegmentRegistry]:
    """An embedded registry whose segment files lie in the test's own directory."""
    shm_dir = tmp_path / "shm"
    shm_dir.mkdir()
    registry = SegmentRegistry(tmp_path / "control", shm_dir=shm_dir)
    yield registry
    registry.backend.close()
