"""Consumers and producers as processes of their own, and a history that outlives them, for tests that kill them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather

from quorin.engine.backend import connect
from quorin.engine.log.record import Kind
from quorin.errors import ConnectionFailedError
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.forking import context, preload

ROW = make_schema("Row", [FeatureField("number", dtype.int64), FeatureField("text", dtype.string)])
IDS = 20

preload(__name__)


class FileHistory:
    """What was applied, a file a flush, written aside and renamed; each row with its position."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._batches: list[pa.Table] = []
        self._last = max((int(path.stem) for path in directory.glob("*.arrow")), default=0)

    def append(self, schema: Any, batch: pa.RecordBatch, positions: pa.Array, *, kind: Kind = Kind.upsert) -> None:  # noqa: ARG002
        self._batches.append(pa.Table.from_batches([batch]).append_column("position", positions))

    def flush(self) -> None:
        if self._batches:
            table = pa.concat_tables(self._batches)
            last = max(table["position"].to_pylist())
            aside = self._directory / f"{last}.{os.getpid()}"
            pa.feather.write_feather(table, str(aside), compression="uncompressed")
            aside.rename(self._directory / f"{last}.arrow")
            self._batches, self._last = [], last

    def flushed_position(self, schema: Any) -> int | None:  # noqa: ARG002
        return self._last

    @staticmethod
    def rows(directory: Path) -> list[dict[str, Any]]:
        tables = [pa.feather.read_table(str(path)) for path in sorted(directory.glob("*.arrow"))]
        return pa.concat_tables(tables).to_pylist() if tables else []


def consume(connection: str, shm_dir: str, history: str | None, options: dict[str, Any]) -> None:
    while True:
        try:
            backend = connect(connection)
            break
        except ConnectionFailedError:
            time.sleep(0.05)
    registry = SegmentRegistry(backend, shm_dir=shm_dir)
    offline = None if history is None else history_at(history)
    consumer = WALConsumer(backend, [ROW], registry=registry, offline=offline, **options)
    signal.signal(signal.SIGTERM, lambda *_: consumer.stop())
    consumer.run()


def history_at(place: str) -> FileHistory | ParquetDatasetStore:
    """The store in a directory; with `parquet:` before it, the one that is shipped."""
    parquet, _, directory = place.rpartition(":")
    return ParquetDatasetStore(directory) if parquet else FileHistory(Path(directory))


def produce(connection: str, worker: int, directory: str) -> None:
    """Write on from the last round that was acknowledged, and note every round once it is."""
    acknowledged = Path(directory) / f"acknowledged-{worker}"
    with acknowledged.open("a") as notes:
        number = last_acknowledged(Path(directory), worker)
        producer = None
        while True:
            try:
                producer = producer or WALProducer(connection)
                producer.write_many(ROW, table(worker, number + 1))
            except ConnectionFailedError:
                time.sleep(0.05)
                continue
            number += 1
            notes.write(f"{number}\n")
            notes.flush()
            time.sleep(0.002)


def table(worker: int, number: int) -> pa.Table:
    ids = [f"w{worker}-{i}" for i in range(IDS)]
    columns = {"number": [number] * IDS, "text": [f"{number} " * 5] * IDS}
    return pa.table({"entity_id": ids, "event_time_ns": [number] * IDS, **columns})


def last_acknowledged(directory: Path, worker: int) -> int:
    path = directory / f"acknowledged-{worker}"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return int(lines[-1]) if lines else 0


def start(target: Any, *arguments: Any) -> Any:
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
