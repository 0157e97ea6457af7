"""A deployment with segments of several schemas, and ``quorin serve`` over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import requests

from quorin.layout import insert, insert_many, pack_row
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from tests.support.http import Running, serving
from tests.support.schemas import Everything

ARROW = "application/vnd.apache.arrow.stream"
HOSTILE = "<img src=x onerror=alert(1)>"
FIELDS = [FeatureField("rate", dtype.float64), FeatureField("trips", dtype.int64), FeatureField("place", dtype.string)]
DRIVER = make_schema("Driver", [*FIELDS, FeatureField("embedding", dtype.float32, (4,))], entity="driver_id")
CITY = make_schema("City", [FeatureField("people", dtype.int64), FeatureField("rain", dtype.float32)], entity="city")
ROWS: dict[str, dict[str, Any]] = {
    "full": {
        "f32": 0.1,
        "f64": 0.1,
        "i32": -(2**31),
        "i64": 2**63 - 1,
        "u8": 255,
        "flag": True,
        "text": HOSTILE,
        "blob": b"\xff\x00",
        "vector": np.array([0.1, 2, 3], np.float32),
        "grid": np.array([[1, 2], [3, 4]], np.uint8),
        "flags": np.array([True, False, True]),
        "numbers": [-(2**63), 2**63 - 1],
        "marks": [True, False],
        "tags": ["", "🦊"],
        "blobs": [b"", b"\xfe"],
    },
    "odd": {"f32": float("inf"), "f64": float("nan"), "i64": -(2**63), "text": "", "numbers": []},
    "nothing": {},
    "🦊/|\x00": {"f64": -0.0, "text": 'q"\\\n'},
}


class Site(NamedTuple):
    """Where the segments are, and the registry that made them."""

    store: Path
    shm_dir: Path
    registry: SegmentRegistry

    @property
    def options(self) -> list[str]:
        return ["--connection", str(self.store), "--shm-dir", str(self.shm_dir)]


def make_site(folder: Path) -> Site:
    """Segments of ``Everything``, ``DRIVER`` (1,000 rows) and ``CITY``."""
    (folder / "shm").mkdir()
    registry = SegmentRegistry(str(folder / "store"), shm_dir=folder / "shm")
    with registry.create(Everything, capacity=16) as segment:
        for entity_id, values in ROWS.items():
            row = pack_row(Everything, **{field.name: values.get(field.name) for field in Everything.fields})
            insert(segment, entity_id, row, event_time_ns=1_700_000_000_123_456_789)
    count = 1_000
    embeddings = pa.array(np.arange(4 * count, dtype=np.float32))
    drivers = {
        "entity_id": [str(number) for number in range(count)],
        "rate": np.linspace(0, 1, count),
        "trips": np.arange(count) + 2**60,
        "place": ["Oslo"] * count,
        "embedding": pa.FixedSizeListArray.from_arrays(embeddings, 4),
    }
    with registry.create(DRIVER, capacity=2 * count) as segment:
        insert_many(segment, pa.table(drivers))
    with registry.create(CITY, capacity=16) as segment:
        cities = {"entity_id": ["Oslo", "Rome"], "people": [700_000, None], "rain": pa.array([0.5, 0.1], pa.float32())}
        insert_many(segment, pa.table(cities))
    return Site(folder / "store", folder / "shm", registry)


@contextmanager
def serving_site(site: Site, log: Path, *options: str) -> Iterator[Running]:
    with serving(["quorin", "serve", "-p", "{port}", *site.options, *options], log) as running:
        yield running


def post(server: Running, path: str, body: Any, **headers: str) -> requests.Response:
    """A request as JSON, or as Arrow if the body is a batch."""
    if isinstance(body, pa.RecordBatch):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, body.schema) as writer:
            writer.write_batch(body)
        named = {"Content-Type": ARROW, **headers}
        return requests.post(server.url + path, data=sink.getvalue().to_pybytes(), headers=named, timeout=60)
    return requests.post(server.url + path, json=body, headers={"Accept-Encoding": "identity", **headers}, timeout=60)


def batch_of(answer: requests.Response) -> pa.RecordBatch:
    """The one record batch of a reply in Arrow."""
    assert answer.headers["content-type"] == ARROW, answer.text
    with pa.ipc.open_stream(answer.content) as stream:
        (batch,) = list(stream)
    return batch
