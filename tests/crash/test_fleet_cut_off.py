"""A node that the network cuts off for longer than the log is kept: it serves on, says how old it is, and heals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from quorin.engine.backend import Beginning
from quorin.engine.consumer.history import NoopOfflineWriter
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.fleet import until
from tests.support.network import IN_NAMESPACE, SERVER, Link
from tests.support.redis_server import RedisServer
from tests.support.world import running

ROOT = Path(__file__).parents[2]
ROW = make_schema("Row", [FeatureField("number", dtype.int64)])
PORT = 6379


@pytest.fixture
def server() -> Iterator[RedisServer]:
    options = "--port", str(PORT), "--bind", "0.0.0.0", "--protected-mode", "no"  # noqa: S104 - a namespace of its own
    server = RedisServer(*options, prefix=IN_NAMESPACE)
    yield server
    server.stop()


@contextmanager
def far_node(shm_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A serving process behind a link."""
    shm_dir.mkdir()
    url = f"redis://{SERVER}:{PORT}/0?socket_timeout=1&socket_connect_timeout=0.3"
    # The namespace is there before Python, which waits for a line until the link is there.
    command = [*IN_NAMESPACE, "sh", "-c", 'read -r _ && exec "$@"', "sh", sys.executable, "-m"]
    process = subprocess.Popen(
        [*command, "tests.support.namespaced", url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "QUORIN_SHM_DIR": str(shm_dir)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def trimming(registry: SegmentRegistry) -> AbstractContextManager[None]:
    """A consumer that waits for a silent node for a second only, and keeps no history."""
    options: dict[str, Any] = {"flush_interval_seconds": 0.1, "node_timeout_seconds": 1}
    return running(WALConsumer(registry.backend, None, registry=registry, offline=NoopOfflineWriter(), **options))


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def ask(process: subprocess.Popen[str]) -> dict[str, Any]:
    say(process, "Row")
    assert process.stdout is not None
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer


def numbers(process: subprocess.Popen[str]) -> list[int]:
    return [row["number"] for row in ask(process).get("rows", [])]


@pytest.mark.networks
def test_a_node_that_is_cut_off_for_longer_than_the_log_is_kept_heals(server: RedisServer, tmp_path: Path) -> None:
    registry = SegmentRegistry(server.url, shm_dir=tmp_path)
    log = registry.backend.log()
    identity, bounds = log.state()
    assert registry.create_schema(ROW, Beginning(identity, bounds.last))
    producer = WALProducer(registry.backend, registry=registry)
    with far_node(tmp_path / "far") as far:
        until(lambda: Path(f"/proc/{far.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink())
        link = Link(server.pid, far.pid)
        say(far, "go")
        producer.write(ROW, "a", {"number": 1})
        until(lambda: numbers(far) == [1])
        link.cut()
        with trimming(registry):
            missed = producer.write(ROW, "b", {"number": 2})
            until(lambda: log.bounds().trimmed >= missed or not producer.write(ROW, "c", {"number": 3}))
            until(lambda: ask(far)["age"] > 3)
            assert numbers(far) == [1], "it serves on what it has"
            link.mend()
            until(lambda: ask(far)["age"] < 1)
            producer.write(ROW, "d", {"number": 4})
            until(lambda: {1, 4} <= set(numbers(far)))
            assert 2 not in numbers(far), "without a history what was trimmed is missing"
    producer.close()
    registry.backend.close()
