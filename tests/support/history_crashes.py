"""Processes that die at a named point of a flush, a compaction, a hydration, a snapshot or a restore."""

from __future__ import annotations

import importlib
import os
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from quorin import hydration, snapshot
from quorin.engine.rows.batch import rows_batch
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from tests.support.forking import context

CRASH = make_schema("CrashRow", [FeatureField("number", dtype.int64), FeatureField("text", dtype.string)])
IDS = 40


WRITING = [
    "pyarrow.parquet:ParquetWriter.write_table",
    "pyarrow.parquet:ParquetWriter.close",
    "os:open",
    "os:fsync",
    "pathlib:Path.rename",
    "quorin.engine.history.storage:sync_folder",
]
POINTS = {
    "flush": WRITING,
    "compact": [*WRITING, "quorin.engine.history.storage:Storage.remove"],
    "hydrate": [
        "quorin.shm:SegmentRegistry.create",
        "quorin.engine.bootstrap.filling:apply_batch",
        "quorin.engine.memory.segment:Segment.commit_position",
        "quorin.engine.memory.node:Node.publish",
    ],
    "snapshot": [
        "quorin.engine.memory.view:SegmentView.create",
        "quorin.engine.bootstrap.image:copy_rows",
        "os:pwrite",
        "os:fsync",
        "pathlib:Path.rename",
        "quorin.engine.bootstrap.files:sync_folder",
    ],
    "restore": [
        "quorin.engine.memory.file:PendingFile.__init__",
        "quorin.engine.memory.file:_write",
        "quorin.engine.bootstrap.image:rename",
        "quorin.engine.memory.file:PendingFile.publish",
        "quorin.engine.memory.node:Node.publish",
    ],
}
CASES = [(action, point, when) for action, points in POINTS.items() for point in points for when in ("before", "after")]


class Place:
    """Where everything of one case is."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        self.shm = self.directory / "shm"
        self.shm.mkdir(exist_ok=True)
        self.snapshot = self.directory / "segment.snapshot"

    def store(self) -> ParquetDatasetStore:
        return ParquetDatasetStore(self.directory / "history")

    def registry(self) -> SegmentRegistry:
        return SegmentRegistry(self.directory / "control", shm_dir=self.shm)


def append(store: ParquetDatasetStore, position: int) -> None:
    rows = [(f"id{i}", position, position, f"text {position}") for i in range(IDS)]
    store.append(CRASH, rows_batch(CRASH, rows), pa.repeat(pa.scalar(position, pa.int64()), IDS))


def act(action: str, place: Place) -> None:
    """Do one of the things that may be interrupted."""
    if action == "flush":
        store = place.store()
        for position in range(store.flushed_position(CRASH) + 1, 6):
            append(store, position)
        store.flush()
    elif action == "compact":
        place.store().compact(CRASH)
    elif action == "hydrate":
        hydration.hydrate(CRASH, place.store(), place.registry())
    elif action == "snapshot":
        with place.registry().open_current(CRASH) as segment:
            snapshot.snapshot(segment, place.snapshot)
    elif action == "restore":
        snapshot.restore(place.snapshot, place.registry())


def act_and_die(action: str, directory: str, point: str, when: str) -> None:
    place = Place(directory)
    module_name, _, path = point.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module_name)
    for step in owners:
        owner = getattr(owner, step)
    original = getattr(owner, name)

    def dying(*arguments: Any, **named: Any) -> None:
        if name == "open" and not str(arguments[0]).endswith(".pending"):
            return original(*arguments, **named)
        if when == "after":
            original(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    setattr(owner, name, dying)
    act(action, place)


def die(action: str, directory: Path, point: str, when: str) -> int | None:
    """Run it in a process of its own; how that ended."""
    process = context.Process(target=act_and_die, args=(action, str(directory), point, when))
    process.start()
    process.join(60)
    return process.exitcode
