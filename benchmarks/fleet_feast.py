"""Feast on Redis beside a fleet: from a push to the moment when another process reads the value."""

from __future__ import annotations

import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fleet_nodes import spawn


def push_to_visible(address: str, pushes: int) -> dict[str, float]:
    """Feast on Redis: from `push` to another process's read of the value, in ns."""
    with tempfile.TemporaryDirectory() as folder:
        pipe, other = spawn.Pipe()
        process = spawn.Process(target=_feast_reader, args=(folder, address, other), daemon=True)
        store = _feast_store(folder, address)
        _feast_apply(store, folder)
        import pandas as pd

        frame = pd.DataFrame({"entity": ["e0"], "at": [pd.Timestamp.now("UTC")], "value": [0.0]})
        store.push("benchmark_push", frame)
        process.start()
        pipe.recv()
        late = []
        for number in range(1, pushes + 1):
            frame = pd.DataFrame({"entity": ["e0"], "at": [pd.Timestamp.now("UTC")], "value": [float(number)]})
            before = time.monotonic_ns()
            store.push("benchmark_push", frame)
            late.append(_seen_at(pipe, number) - before)
        process.kill()
        process.join()
    return {f"feast_visible_{label}": float(np.quantile(late, share)) for label, share in (("p50", 0.5), ("p99", 0.99))}


def _seen_at(pipe: Connection, number: int) -> int:
    while True:
        value, at = pipe.recv()
        if value >= number:
            return int(at)


def _feast_store(folder: str, address: str) -> Any:
    from benchmarks.compare.feast_stores import stores

    return stores(Path(folder), address)["feast-redis"]


def _feast_apply(store: Any, folder: str) -> None:
    import pandas as pd
    from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType
    from feast.types import Float64

    path = Path(folder) / "rows.parquet"
    pd.DataFrame({"entity": ["e0"], "at": [pd.Timestamp("2024-01-01", tz="UTC")], "value": [0.0]}).to_parquet(path)
    entity = Entity(name="entity", join_keys=["entity"], value_type=ValueType.STRING)
    source = PushSource(name="benchmark_push", batch_source=FileSource(path=str(path), timestamp_field="at"))
    view = FeatureView(name="benchmark", entities=[entity], schema=[Field(name="value", dtype=Float64)], source=source)
    store.apply([entity, view])


def _feast_reader(folder: str, address: str, pipe: Connection) -> None:
    store, last = _feast_store(folder, address), -1.0
    while True:
        answer = store.get_online_features(["benchmark:value"], {"entity": ["e0"]}).to_dict()
        value, at = answer["value"][0], time.monotonic_ns()
        if value is not None and value != last:
            last = value
            pipe.send((value, at))
