"""Machines as they are: each in a mount namespace with a ``/dev/shm`` of its own, on one Redis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from quorin.engine.backend import Beginning, connect
from quorin.schema import FeatureField, dtype, make_schema, schema_to_json
from quorin.wal import WALProducer
from tests.support.redis_server import RedisServer, emptied

ROOT = Path(__file__).parents[2]
ROW = make_schema("Row", [FeatureField("number", dtype.int64)])
IN_NAMESPACE = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'


@cache
def namespaces() -> list[str]:
    """What runs a command in a mount namespace with a ``/dev/shm`` of its own; empty where the system has none."""
    for options in ("-m", "-rm"):
        prefix = ["unshare", options, "sh", "-c", IN_NAMESPACE, "sh"]
        with suppress(OSError):
            if subprocess.run([*prefix, "true"], capture_output=True, check=False, timeout=60).returncode == 0:
                return prefix
    return []


@contextmanager
def machine(url: str, shm_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A serving process of a machine of its own; without namespaces, one with a directory of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "QUORIN_SHM_DIR"}
    if not namespaces():
        shm_dir.mkdir()
        environment["QUORIN_SHM_DIR"] = str(shm_dir)
    command = [*namespaces(), sys.executable, "-m", "tests.support.namespaced", url]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(process: subprocess.Popen[str], name: str = "Row") -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{name}\n")
    process.stdin.flush()
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer


def numbers(process: subprocess.Popen[str]) -> list[int]:
    return [row["number"] for row in ask(process).get("rows", [])]


def until(process: subprocess.Popen[str], expected: list[int]) -> None:
    deadline = time.monotonic() + 120
    while numbers(process) != expected:
        assert time.monotonic() < deadline, ask(process)
        time.sleep(0.02)


def test_machines_with_memories_of_their_own_serve_the_same_rows(redis_server: RedisServer, tmp_path: Path) -> None:
    url = emptied(redis_server)
    backend = connect(url)
    producer = WALProducer(backend)
    before = set(Path("/dev/shm").iterdir())  # noqa: S108 - the machines must not see it
    with ExitStack() as stack:
        machines = [stack.enter_context(machine(url, tmp_path / name)) for name in "ABC"]
        identity, bounds = backend.log().state()
        backend.control.swap_schema(
            "Row", schema_to_json(ROW), expected=None, beginning=Beginning(identity, bounds.last)
        )
        for number in range(5):
            producer.write(ROW, f"e{number}", {"number": number})
        for process in machines:
            until(process, [0, 1, 2, 3, 4])
        answers = [ask(process) for process in machines]
        assert len({answer["node"] for answer in answers}) == 3
        assert len({answer["segment"] for answer in answers}) == 3
        assert answers[0]["rows"] == answers[1]["rows"] == answers[2]["rows"]
        machines[0].kill()
        late = stack.enter_context(machine(url, tmp_path / "D"))
        producer.write(ROW, "e9", {"number": 9})
        for process in (*machines[1:], late):
            until(process, [0, 1, 2, 3, 4, 9])
    assert {path for path in Path("/dev/shm").iterdir() if path.name.startswith("quorin_Row")} <= before  # noqa: S108
    producer.close()
    backend.close()
