"""A new node copies the rows of a running one while rows are pushed, and the log no longer has the first of them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from quorin.engine.backend import Beginning
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from tests.support.fleet import until
from tests.support.http import ROOT, serving
from tests.support.machines import whole_rows
from tests.support.redis_server import RedisServer

ROW = make_schema("Row", [FeatureField("number", dtype.int64), FeatureField("text", dtype.string)])
IDS = [f"e{number}" for number in range(300)]


@contextmanager
def consumer(url: str, shm: Path, log: Path, *options: str) -> Iterator[None]:
    shm.mkdir()
    command = [sys.executable, "-m", "quorin", "consumer", "-c", url, "--trim", *options]
    with log.open("wb") as file:
        environment = {**os.environ, "QUORIN_SHM_DIR": str(shm)}
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=ROOT)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def rows_of(registry: SegmentRegistry) -> Any:
    with registry.open_current(ROW) as segment:
        return whole_rows(segment, IDS)


def test_a_new_node_copies_another_under_pushes_to_a_log_that_is_trimmed(tmp_path: Path) -> None:
    with ExitStack() as stack:
        server = RedisServer()
        stack.callback(server.stop)
        places = [tmp_path / "a", tmp_path / "b"]
        stack.enter_context(consumer(server.url, places[0], tmp_path / "a.log"))
        first = SegmentRegistry(server.url, shm_dir=places[0])
        producer = stack.enter_context(WALProducer(first.backend, registry=first))
        log = first.backend.log()
        assert first.create_schema(ROW, Beginning(log.identity(), 0))

        def push(number: int) -> int:
            return producer.write(ROW, IDS[number % len(IDS)], {"number": number, "text": f"t{number}"}, number + 1)

        written = [push(number) for number in range(len(IDS))]
        until(lambda: log.bounds().trimmed >= written[-1])
        where = ["--connection", server.url, "--shm-dir", str(places[0])]
        donor = stack.enter_context(serving(["quorin", "serve", "-p", "{port}", *where], tmp_path / "served.log"))
        enough, pushed = threading.Event(), [written[-1]]

        def push_on() -> None:
            number = len(IDS)
            while not enough.wait(0.002):
                pushed.append(push(number))
                number += 1

        pushing = threading.Thread(target=push_on)
        pushing.start()
        stack.enter_context(consumer(server.url, places[1], tmp_path / "b.log", "--bootstrap-from", donor.url))
        second = SegmentRegistry(server.url, shm_dir=places[1])
        try:
            until(lambda: second.node.current("Row") is not None)
            until(lambda: second.open_current(ROW).position >= pushed[-1])
        finally:
            enough.set()
            pushing.join()
        for registry in (first, second):
            until(lambda registry=registry: registry.open_current(ROW).position >= pushed[-1])
        assert rows_of(second) == rows_of(first)
        assert None not in rows_of(second)
        assert "snapshot_restored" in (tmp_path / "b.log").read_text()
        second.backend.close()
        first.backend.close()
