"""Consumers of several nodes share one history: one writes it, and another goes on when that one dies or freezes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from quorin.engine.backend import connect
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, dtype, make_schema, schema_to_json
from quorin.wal import WALProducer
from tests.support.redis_server import RedisServer, emptied
from tests.support.world import until

ROOT = Path(__file__).parents[2]
ROW = make_schema("Row", [FeatureField("number", dtype.int64)])


@contextmanager
def consumer(url: str, shm_dir: Path, history: Path) -> Iterator[subprocess.Popen[bytes]]:
    shm_dir.mkdir()
    words = ["consumer", "-c", url, "--offline", str(history)]
    environment = {**os.environ, "QUORIN_SHM_DIR": str(shm_dir)}
    process = subprocess.Popen(
        [sys.executable, "-m", "quorin", *words], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number_of_signal", [signal.SIGKILL, signal.SIGSTOP])
def test_the_history_goes_on_without_its_writer(
    redis_server: RedisServer, tmp_path: Path, number_of_signal: int
) -> None:
    url, folder = emptied(redis_server), tmp_path / "history"
    backend = connect(url)
    log, producer = backend.log(), WALProducer(backend)
    history = ParquetDatasetStore(folder)
    backend.control.put_schema("Row", schema_to_json(ROW))
    with ExitStack() as stack:
        stack.callback(producer.close)
        running = {name: stack.enter_context(consumer(url, tmp_path / name, folder)) for name in ("node A", "node B")}
        positions = []
        for number in range(200):
            positions.append(producer.write(ROW, f"e{number}", {"number": number}, number + 1))
            if number == 100:
                until(lambda: len(backend.control.replicas()) == 2 and log.historian() is not None)
                held = log.historian()
                assert held is not None
                (writer,) = [running[name] for name in running if _node_of(tmp_path / name) == held[0].split(":")[1]]
                writer.send_signal(number_of_signal)
        until(lambda: history.flushed_position(ROW) == positions[-1])
        now = log.historian()
        assert now is not None
        assert now[0] != held[0]
        if number_of_signal == signal.SIGSTOP:
            writer.send_signal(signal.SIGCONT)
            positions.append(producer.write(ROW, "last", {"number": -1}, 1_000))
            until(lambda: history.flushed_position(ROW) == positions[-1])
            until(lambda: len(backend.control.replicas()) == 2)
            assert (log.historian() or "")[0] == now[0], "the one that wakes leaves it to the other"
        loaded = history.load(ROW)
        rows = [at for _, _, places in loaded.batches(ROW, newest_first=False) for at in places.to_pylist()]
        assert sorted(rows) == positions, "each row once"
    backend.close()


def _node_of(shm_dir: Path) -> str:
    (file,) = [path for path in shm_dir.glob("quorin-node-*") if not path.suffix]
    return file.read_text().partition('"node": "')[2][:16]
