"""A process that changes its directory keeps what it was given by relative paths."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from pyarrow import fs

from quorin import assembly, layout, snapshot
from quorin.engine.backend import connect
from quorin.engine.memory.file import default_shm_dir
from quorin.engine.ops.observe import Observer
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, FeatureSchema, dtype
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from quorin.watchdog import WatchdogState
from tests.support.redis_server import RedisServer


class Trips(FeatureSchema):
    version = 1
    fields = [FeatureField("distance", dtype.float32)]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory to go to, from one that has ``shm``."""
    (tmp_path / "here" / "shm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere"


def test_one_store_one_memory_and_one_history(elsewhere: Path) -> None:
    registry = SegmentRegistry("store", shm_dir="shm")
    registry.create(Trips, capacity=2).close()
    producer = WALProducer("store", registry=registry)
    histories = [ParquetDatasetStore("a"), ParquetDatasetStore("b", filesystem=fs.LocalFileSystem())]
    consumers = [WALConsumer("store", Trips, registry=registry, offline=each, trims=False) for each in histories]
    observer = Observer(connect("store"), shm_dir="shm")
    watchdog = WatchdogState("store", shm_dir="shm")
    os.chdir(elsewhere)
    for number in range(100):  # The segment grows.
        producer.write(Trips, str(number), {"distance": float(number)})
    for consumer in consumers:
        with consumer:
            consumer.drain()
    with registry.open_current(Trips) as segment:
        assert assembly.assemble(segment, "99").tolist() == [99.0]
        taken = snapshot.snapshot(segment, "taken")
    assert taken.path == elsewhere / "taken"
    assert [len(each.latest_features(Trips)) for each in histories] == [100, 100]
    observer.observe()
    watchdog.run_one_tick()
    assert sorted(path.name for path in elsewhere.iterdir()) == ["taken"]
    assert sorted(path.name for path in (elsewhere.parent / "here").iterdir()) == ["a", "b", "shm", "store"]


def test_the_environment_is_read_where_the_process_was(elsewhere: Path) -> None:
    code = (
        "import os; from quorin.shm import default_shm_dir; first = default_shm_dir();"
        f"os.chdir({str(elsewhere)!r}); assert default_shm_dir() == first; print(first)"
    )
    environment = os.environ | {"QUORIN_SHM_DIR": "shm"}
    said = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True, timeout=180)
    assert said.strip() == str(elsewhere.parent / "here" / "shm")
    assert Path(default_shm_dir()).is_absolute()


def test_a_socket_of_redis_is_found_again(elsewhere: Path, redis_server: RedisServer) -> None:
    Path("socket").symlink_to(redis_server.socket)
    backend = connect(redis.Redis(unix_socket_path="socket"))
    os.chdir(elsewhere)
    with ThreadPoolExecutor(1) as other:  # Its connection is a new one.
        assert other.submit(backend.control.identity).result(120) > 0
    backend.close()


def test_inserts_follow_a_relative_shm_dir_as_it_grows(elsewhere: Path) -> None:
    registry = SegmentRegistry("store", shm_dir="shm")
    with registry.create(Trips, capacity=2) as segment:
        os.chdir(elsewhere)
        for number in range(100):
            layout.insert(segment, str(number), layout.pack_row(Trips, distance=float(number)))
        assert len(segment) == 100
