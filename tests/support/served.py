"""A node that logs what it serves, and processes of it that die at a named step."""

from __future__ import annotations

import importlib
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from quorin import assembly, layout
from quorin.engine.rows.batch import rows_batch
from quorin.offline import ServedLog, ServedView
from quorin.schema import FeatureField, Schema, dtype, make_schema
from quorin.shm import SegmentRegistry
from tests.support.forking import context
from tests.support.world import until

SERVED = make_schema("Served", [FeatureField("number", dtype.int64), FeatureField("text", dtype.string)])
IDS = [f"id{number}" for number in range(20)]
STEPS = [
    "quorin.engine.served.collector:Collector._begin",
    "pathlib:Path.replace",
    "quorin.engine.served.files:ServedFiles.write",
    "os:fsync",
    "pathlib:Path.rename",
    "quorin.engine.served.ring:Ring.consume",
    "pathlib:Path.unlink",
]


class Node:
    """A deployment in a directory, with one segment and a served log."""

    def __init__(self, directory: Path, *, url: str | None = None, schema: Schema = SERVED, **options: Any) -> None:
        self.directory = directory
        (directory / "shm").mkdir(exist_ok=True)
        self.registry = SegmentRegistry(directory / "control", shm_dir=directory / "shm")
        options = {"every_seconds": 1000.0, **options}
        self.log = ServedLog(url or directory / "served", self.registry, **options)
        self.schema = schema

    def fill(self) -> None:
        rows = [(one, number, number, f"text {number}") for number, one in enumerate(IDS)]
        with self.registry.create(self.schema, capacity=64) as segment:
            layout.apply_batch(segment, rows_batch(self.schema, rows), position=7)

    def describe(self) -> int:
        fields = tuple((field.name, field) for field in self.schema.fields)
        return self.log.describe([ServedView("view", self.schema.__name__, fields)])

    def serve(self, first: int, count: int) -> None:
        """Log requests of one entity and of several, whose ids are ``first`` and the following numbers."""
        number = self.describe()
        with self.registry.open_current(self.schema) as segment:
            one = assembly.row_reader([(segment, None)], positions=True)
            many = assembly.column_reader(segment, positions=True)
            for request in range(first, first + count):
                if request % 3:
                    rows = one(IDS[request % len(IDS)])
                    assert rows is not None
                    self.log.row(number, str(request), rows)
                else:
                    ids = pa.array([*IDS[: request % 7 + 1], "nobody", "é"])
                    self.log.rows(number, str(request), [ids], [0], [many(ids)], b"x" * (request % 5))

    def requests(self) -> list[int]:
        """The ids of the requests in all files; each is checked to be whole."""
        found: list[int] = []
        for path in self.log.files.paths():
            rows = self.log.files.read(path)
            requests = rows.column("request").to_numpy()
            starts = np.flatnonzero(np.diff(requests, prepend=-1))
            counts = np.diff([*starts, len(rows)])
            ids = [int(rows.column("request_id")[start].as_py()) for start in starts.tolist()]
            assert counts.tolist() == [1 if one % 3 else one % 7 + 3 for one in ids]
            found += ids
        return found


def collect_and_die(directory: str, step: str, when: str) -> None:
    """Collect in this process, which is killed before or after a step."""
    module_name, _, path = step.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module_name)
    for one in owners:
        owner = getattr(owner, one)
    original = getattr(owner, name)

    def dying(*arguments: Any, **named: Any) -> Any:
        if when == "after":
            original(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    node = Node(Path(directory))
    setattr(owner, name, dying)
    node.log.collect()


def serve_until_killed(directory: str, ready: Any) -> None:
    """Log requests as quickly as possible."""
    node, first = Node(Path(directory)), 0
    while True:
        node.serve(first, 50)
        first += 50
        if first == 100:
            ready.set()


def collect_until_killed(directory: str) -> None:
    """Serve and collect, in the thread that servers have."""
    node = Node(Path(directory), every_seconds=0.01)
    node.serve(0, 30)
    signal.pause()


def serve_and_end(directory: str) -> None:
    """Serve, become the node's collector, and end normally."""
    node = Node(Path(directory))
    node.serve(0, 30)
    until(lambda: node.log._collecting._collector.is_held)


def run(target: Any, *arguments: Any) -> Any:
    """A process that runs a function."""
    process = context.Process(target=target, args=arguments)
    process.start()
    return process
