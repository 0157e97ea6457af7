"""A writer and a reader for the torture tests; run as ``python -m tests.support.torture write|read DIRECTORY …``.

Every value of a row follows from the entity's number and a version, so that a reader can tell a whole row from a mix of
two by looking at it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from quorin import assembly, layout
from quorin.engine.rows.batch import to_batch
from quorin.schema import FeatureField, FeatureSchema, dtype
from quorin.shm import SegmentRegistry

ENTITIES = 64
ENTITY_IDS = pa.array([f"entity-{i}" for i in range(ENTITIES)])
VERSIONS = 1 << 20
"""Versions repeat after this many, so that each is exact in a float32."""


class Wide(FeatureSchema):
    """200 floats that are all the version: 800 bytes that must not be mixed."""

    version = 1
    fields = [FeatureField("version", dtype.float32), FeatureField("rest", dtype.float32, (199,))]


class Mixed(FeatureSchema):
    """Every kind of cell, the heap included."""

    version = 1
    fields = [
        FeatureField("version", dtype.int64),
        FeatureField("f64", dtype.float64),
        FeatureField("text", dtype.string),
        FeatureField("numbers", dtype.int64, (None,)),
        FeatureField("tags", dtype.string, (None,)),
        FeatureField("sometimes", dtype.int32),
    ]


def wide_table(version: int) -> pa.Table:
    column = np.full(ENTITIES, version % VERSIONS, np.float32)
    rest = pa.FixedSizeListArray.from_arrays(np.repeat(column, 199), 199)
    return _table(version, version=column, rest=rest)


def mixed_table(version: int) -> pa.Table:
    length = version % 5
    return _table(
        version,
        version=[version] * ENTITIES,
        f64=[version * 0.5] * ENTITIES,
        text=[f"version {version}"] * ENTITIES,
        numbers=[[version] * length] * ENTITIES,
        tags=[[str(version)] * length] * ENTITIES,
        sometimes=pa.array([version % 1000 if version % 3 else None] * ENTITIES, pa.int32()),
    )


def write(directory: Path) -> None:
    """Rewrite all rows of both segments at full speed, until killed."""
    registry = SegmentRegistry(directory / "control", shm_dir=directory / "shm")
    wide, mixed = (registry.open_current(schema, read_only=False) for schema in (Wide, Mixed))
    wide.acquire_writer_lease()
    mixed.acquire_writer_lease()
    version = int(time.time() * 1000)
    print("writing", flush=True)  # noqa: T201
    wide_batches = [to_batch(Wide, wide_table(version + i)) for i in range(64)]
    while True:
        # Upserts of prepared batches at positions that grow: the kernel at full speed, without making of tables.
        for batch in wide_batches:
            version += 1
            layout.apply_batch(wide, batch.set_column(1, "event_time_ns", _times(version)), position=version)
        layout.insert_many(mixed, mixed_table(version))


def read(directory: Path, seconds: float) -> None:
    """Check every row read for ``seconds``; prints how many, exits with 1 at the first torn one."""
    registry = SegmentRegistry(directory / "control", shm_dir=directory / "shm")
    wide, mixed = (registry.open_current(schema) for schema in (Wide, Mixed))
    deadline = time.monotonic() + seconds
    ids = ENTITY_IDS.to_pylist()
    many = pa.array(ids * 16)
    single = np.empty(200, np.float32)
    out = np.empty((len(many), 200), np.float32)
    mask = np.empty(len(many), np.bool_)
    reads = 0
    while time.monotonic() < deadline:
        for _ in range(50):
            assembly.assemble_batch(wide, many, out=out, found_mask=mask)
            _check(mask.all() and (out == out[:, :1]).all(), "a torn row in a batch", out)
            reads += len(many)
        for entity_id in ids:
            assembly.assemble(wide, entity_id, out=single)
            _check((single == single[0]).all(), "a torn row", single)
        for row in assembly.read(mixed, ENTITY_IDS).to_pylist():
            _check_mixed(row)
        reads += 2 * len(ids)
    print(reads)  # noqa: T201


def _check_mixed(row: dict[str, object]) -> None:
    version = row["version"]
    assert isinstance(version, int)
    _check(
        row["f64"] == version * 0.5
        and row["text"] == f"version {version}"
        and row["numbers"] == [version] * (version % 5)
        and row["tags"] == [str(version)] * (version % 5)
        and row["sometimes"] == (version % 1000 if version % 3 else None),
        "a torn mixed row",
        row,
    )


def _check(whole: object, what: str, value: object) -> None:
    if not whole:
        print(what, value)  # noqa: T201
        sys.exit(1)


def _times(version: int) -> pa.Array:
    return pa.array(np.full(ENTITIES, version))


def _table(event_time_ns: int, /, **columns: object) -> pa.Table:
    return pa.table({"entity_id": ENTITY_IDS, "event_time_ns": _times(event_time_ns), **columns})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", directory]:
            write(Path(directory))
        case ["read", directory, seconds]:
            read(Path(directory), float(seconds))
