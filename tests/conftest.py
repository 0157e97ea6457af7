"""Fixtures for every test, and the check that no test leaves shared memory behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quorin.shm import SegmentRegistry
from tests.redis_server import redis_server, redis_url  # noqa: F401 - fixtures, found here by every test

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the place where segments live, not a temporary file

_first_seen_after: dict[str, str] = {}
_SEGMENTS_AT_START = pytest.StashKey[set[str]]()


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[_SEGMENTS_AT_START] = _segments()


@pytest.fixture(autouse=True)
def no_segment_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """A segment file that appeared during the test and that no living process maps any more is a leak of this test.

    Files that are still mapped belong to wider fixtures or to a test session that runs beside this one; those of this
    process are judged once more when the session ends.
    """
    before = _segments()
    yield
    for name in _segments() - before:
        _first_seen_after.setdefault(name, request.node.nodeid)
    left = _unmapped(_segments() - before)
    assert not left, f"segments left in {SHARED_MEMORY}: {sorted(left)}"


@pytest.fixture(scope="session", autouse=True)
def no_segment_left_at_the_end(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    ours = _first_seen_after.keys() - request.config.stash[_SEGMENTS_AT_START]
    left = {name: _first_seen_after[name] for name in _unmapped(_segments() & ours) | _mapped_by_us(_segments() & ours)}
    assert not left, f"segments left in {SHARED_MEMORY}, each with the test after which it was first seen: {left}"


def _segments() -> set[str]:
    return {path.name for path in SHARED_MEMORY.glob("quorin_*")}


def _unmapped(names: set[str]) -> set[str]:
    """Those that no process maps; a process that just ended gets a moment to be gone."""
    deadline = time.monotonic() + 2.0
    while True:
        left = {name for name in names & _segments() if not any(name in text for text in _all_maps())}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def _mapped_by_us(names: set[str]) -> set[str]:
    text = Path("/proc/self/maps").read_text()
    return {name for name in names if name in text}


def _all_maps() -> Iterator[str]:
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            yield maps.read_text()
        except OSError:  # a process that ended, or another user's
            continue


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[SegmentRegistry]:
    """An embedded registry whose segment files lie in the test's own directory."""
    shm_dir = tmp_path / "shm"
    shm_dir.mkdir()
    registry = SegmentRegistry(tmp_path / "control", shm_dir=shm_dir)
    yield registry
    registry.backend.close()
