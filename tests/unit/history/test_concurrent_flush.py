"""One thread appends to the history while another flushes it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from pyarrow import fs

from quorin.engine.rows.batch import row_batch
from quorin.errors import HistoryUnavailableError
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, dtype, make_schema

ITEM = make_schema("Item", [FeatureField("a", dtype.int64)])
WIDER = make_schema("Item", [FeatureField("a", dtype.int64), FeatureField("b", dtype.int64)], version=2)


class Slow(fs.FSSpecHandler):
    """A file system that begins a file only when it is let go, and then well or not."""

    def __init__(self, files: Any) -> None:
        super().__init__(files)
        self.begun, self.let_go, self.fails = threading.Event(), threading.Event(), False

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self.begun.set()
        assert self.let_go.wait(60)
        if self.fails:
            raise OSError("no space left")
        return super().open_output_stream(path, metadata)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[Slow, ParquetDatasetStore]]:
    handler = Slow(fsspec.filesystem("file", auto_mkdir=True))
    yield handler, ParquetDatasetStore(str(tmp_path / "history"), filesystem=fs.PyFileSystem(handler))
    handler.let_go.set()


def put(store: ParquetDatasetStore, position: int, schema: Any = ITEM) -> None:
    values = {field.name: position for field in schema.fields}
    store.append(schema, row_batch(schema, f"e{position}", values, position), pa.array([position], pa.int64()))


def flushing(store: ParquetDatasetStore, errors: list[Exception]) -> threading.Thread:
    def flush() -> None:
        try:
            store.flush()
        except HistoryUnavailableError as error:
            errors.append(error)

    thread = threading.Thread(target=flush)
    thread.start()
    return thread


@pytest.mark.parametrize("fails", [False, True])
def test_rows_are_appended_while_a_file_is_written(slow: tuple[Slow, ParquetDatasetStore], fails: bool) -> None:
    handler, store = slow
    handler.fails = fails
    errors: list[Exception] = []
    put(store, 1)
    thread = flushing(store, errors)
    assert handler.begun.wait(60)
    put(store, 2)
    put(store, 2)  # Read again, as after a crash.
    assert store.flushed_position(ITEM) == 0
    handler.let_go.set()
    thread.join(60)
    assert len(errors) == fails
    assert store.flushed_position(ITEM) == (0 if fails else 1)
    handler.fails = False
    store.flush()
    assert store.flushed_position(ITEM) == 2
    assert store.latest_features(ITEM).sort_by("entity_id")["a"].to_pylist() == [1, 2]
    assert [(file.after, file.through) for file in sorted_files(store)] == ([(0, 2)] if fails else [(0, 1), (1, 2)])


def test_a_new_version_waits_for_the_rows_of_the_one_before(tmp_path: Path) -> None:
    store = ParquetDatasetStore(tmp_path / "history")
    ending = threading.Event()

    def flush() -> None:
        while not ending.is_set():
            store.flush()

    thread = threading.Thread(target=flush)
    thread.start()
    for position in range(1, 201):
        put(store, position, WIDER if position % 40 >= 20 else ITEM)
    ending.set()
    thread.join(60)
    store.flush()
    assert store.latest_features(WIDER).sort_by("event_time_ns")["a"].to_pylist() == list(range(1, 201))
    files = sorted_files(store)
    assert [file.after for file in files[1:]] == [file.through for file in files[:-1]]
    assert sum(part.row_count for part in store.load(ITEM).parts) == 200


def sorted_files(store: ParquetDatasetStore) -> list[Any]:
    return sorted((part.piece.file for part in store.load(ITEM).parts), key=lambda file: file.through)
