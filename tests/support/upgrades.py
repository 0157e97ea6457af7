"""A schema with many versions, and processes that read, write and consume while it is upgraded."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from quorin.assembly import assemble, assemble_batch, read
from quorin.engine.backend import connect
from quorin.errors import ConnectionFailedError
from quorin.schema import FeatureField, Schema, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer

IDS = [f"entity {number}" for number in range(40)]
BUSY_SECONDS = 0.002


def version(number: int) -> Schema:
    """The same counter in all versions, wider from the second on; other fields come and go, and change places."""
    fields = [
        FeatureField("counter", dtype.int32 if number == 1 else dtype.int64, default=-1.0),
        FeatureField(f"new_in_{number}", dtype.float32, default=float(number)),
        FeatureField(f"new_in_{number - 1}", dtype.float32, default=float(number - 1)),
        FeatureField("text", dtype.string),
    ]
    return make_schema("Moving", fields if number % 2 else fields[::-1], version=number)


def table(schema: Schema, number: int) -> pa.Table:
    """Every entity, with a number in all of its fields."""
    count = len(IDS)
    columns: dict[str, Any] = {"entity_id": IDS, "event_time_ns": [number] * count}
    for field in schema.fields:
        columns[field.name] = [f"{number}" if field.dtype is dtype.string else number] * count
    return pa.table(columns)


def consume(connection: str, shm_dir: str, follows_control_plane: bool) -> None:
    """Consume until SIGTERM: all that the control plane knows, or the first version by name."""
    backend = connect(connection)
    registry = SegmentRegistry(backend, shm_dir=shm_dir)
    consumer = WALConsumer(backend, None if follows_control_plane else [version(1)], registry=registry)
    signal.signal(signal.SIGTERM, lambda *_: consumer.stop())
    consumer.run()
    consumer.close()


def produce(connection: str, notes: str, stop: str) -> None:
    """Write ever larger numbers under the first version, and note the last that was acknowledged."""
    schema, number = version(1), 0
    with WALProducer(connection) as producer:
        while not Path(stop).exists():
            number += 1
            position = producer.write_many(schema, table(schema, number))
            (Path(notes).parents[1] / "ready" / Path(notes).name).touch()
            time.sleep(BUSY_SECONDS)
    Path(notes).write_text(json.dumps({"number": number, "position": position}))


def look(connection: str, shm_dir: str, notes: str, stop: str) -> None:
    """Read the first version again and again: no read may fail, and no entity may go back. Note what was seen."""
    registry = SegmentRegistry(connection, shm_dir=shm_dir)
    schema, reads, faults, last = version(1), 0, [], dict.fromkeys(IDS, 0.0)
    places = [field.name for field in schema.fields if field.element_count]
    at = places.index("counter")
    with registry.open_current(schema) as segment, registry.open_current(schema) as typed:
        while not Path(stop).exists() and len(faults) < 10:
            try:
                vectors, found = assemble_batch(segment, IDS)
                one = assemble(segment, IDS[reads % len(IDS)])
                rows = read(typed, IDS[:3], ["counter", "text"]).to_pylist()
                reads += 1
                (Path(notes).parents[1] / "ready" / Path(notes).name).touch()
            except Exception as error:  # noqa: BLE001 - the report is made of it
                faults.append(f"{type(error).__name__}: {error}")
                continue
            values = dict(zip(IDS, vectors[:, at].tolist(), strict=True))
            if not found.all() or one.shape != (len(places),):
                faults.append(f"{found} {one}")
            faults += [f"{name} went from {last[name]} to {values[name]}" for name in IDS if values[name] < last[name]]
            faults += [f"torn: {row}" for row in rows if str(row["counter"]) != row["text"]]
            last = values
    registry.backend.close()
    Path(notes).write_text(json.dumps({"reads": reads, "faults": faults[:10]}))


def hold_lease(connection: str, shm_dir: str, ready: str) -> None:
    """Be the writer, and do nothing."""
    while True:
        try:
            registry = SegmentRegistry(connection, shm_dir=shm_dir)
            break
        except ConnectionFailedError:
            time.sleep(0.05)
    segment = registry.open_stored("Moving", read_only=False)
    segment.acquire_writer_lease()
    Path(ready).touch()
    time.sleep(600)
