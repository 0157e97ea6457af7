"""A history whose files cannot be read now: an error with the file's name, and nothing passes the file over."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs

from quorin.engine.bootstrap.filling import catch_up
from quorin.engine.rows.batch import row_batch
from quorin.errors import CorruptHistoryError, HistoryUnavailableError, SegmentNotFoundError
from quorin.hydration import hydrate
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, dtype, make_schema
from quorin.wal_consumer import WALConsumer
from tests.support.machines import Machine

Pair = make_schema("Pair", [FeatureField("a", dtype.int32), FeatureField("b", dtype.string)])


class Flaky(fs.FSSpecHandler):
    """A filesystem whose opens or reads of one file fail while ``fails`` says so."""

    def __init__(self) -> None:
        import fsspec

        super().__init__(fsspec.filesystem("file", auto_mkdir=True))
        self.victim = ""
        self.fails = {"open": False, "read": False}
        self.reads_left = 0

    def open_input_file(self, path: str) -> pa.NativeFile:
        if path == self.victim and self.fails["open"]:
            raise PermissionError(errno.EACCES, "Permission denied")
        return pa.PythonFile(_File(self, path), mode="r")


class _File:
    def __init__(self, owner: Flaky, path: str) -> None:
        self._owner, self._path, self.closed = owner, path, False
        self._file = Path(path).open("rb")  # noqa: SIM115 - Arrow closes it

    def read(self, count: int = -1) -> bytes:
        if self._path == self._owner.victim and self._owner.fails["read"]:
            if self._owner.reads_left <= 0:
                raise OSError("When reading information for key: AWS Error SLOW_DOWN (503)")
            self._owner.reads_left -= 1
        return self._file.read(count)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self.closed = True
        self._file.close()


@pytest.fixture
def flaky(tmp_path: Path) -> tuple[Flaky, Path]:
    """Three files, one row each; the second is the victim."""
    base = tmp_path / "history"
    writer = ParquetDatasetStore(base)
    for position in (1, 2, 3):
        batch = row_batch(Pair, f"id{position}", {"a": position, "b": "x"}, position)
        writer.append(Pair, batch, pa.array([position], pa.int64()))
        writer.flush()
    handler = Flaky()
    handler.victim = str(sorted(base.rglob("*.parquet"))[1])
    return handler, base


READS: dict[str, Callable[[ParquetDatasetStore], Any]] = {
    "latest_features": lambda store: store.latest_features(Pair),
    "read_point_in_time": lambda store: store.read_point_in_time(
        Pair, pa.table({"entity_id": ["id1", "id2"], "as_of_time_ns": [9, 9]})
    ),
    "distinct_entity_ids": lambda store: store.distinct_entity_ids(Pair),
    "newest_first": lambda store: list(store.newest_first(Pair)),
    "compact": lambda store: store.compact(Pair),
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(("step", "reads_left"), [("open", 0), ("read", 0), ("read", 1)])
def test_a_file_that_cannot_be_read_now_is_an_error_and_is_read_later(
    flaky: tuple[Flaky, Path], read: str, strict: bool, step: str, reads_left: int
) -> None:
    handler, base = flaky
    store = ParquetDatasetStore(str(base), filesystem=fs.PyFileSystem(handler), strict=strict)
    handler.fails[step], handler.reads_left = True, reads_left
    with pytest.raises(HistoryUnavailableError, match=Path(handler.victim).name):
        READS[read](store)
    handler.fails[step] = False
    assert store.distinct_entity_ids(Pair).to_pylist() == ["id1", "id2", "id3"]
    READS[read](store)


def test_a_read_that_fails_once_is_no_damage(flaky: tuple[Flaky, Path]) -> None:
    handler, base = flaky
    store = ParquetDatasetStore(str(base), filesystem=fs.PyFileSystem(handler), strict=True)
    opened = handler.open_input_file

    def recovers(path: str) -> pa.NativeFile:
        if path == handler.victim:
            handler.fails["read"] = not handler.fails["read"]
        return opened(path)

    handler.open_input_file = recovers  # type: ignore[method-assign]
    with pytest.raises(HistoryUnavailableError, match=Path(handler.victim).name):
        store.latest_features(Pair)


def test_damage_on_a_filesystem_in_python_is_still_damage(flaky: tuple[Flaky, Path]) -> None:
    handler, base = flaky
    victim = Path(handler.victim)
    victim.write_bytes(victim.read_bytes()[:-20])
    filesystem = fs.PyFileSystem(handler)
    found = ParquetDatasetStore(str(base), filesystem=filesystem).distinct_entity_ids(Pair)
    assert found.to_pylist() == ["id1", "id3"]
    with pytest.raises(CorruptHistoryError, match=victim.name):
        ParquetDatasetStore(str(base), filesystem=filesystem, strict=True).distinct_entity_ids(Pair)


@pytest.mark.parametrize("step", ["open", "read"])
def test_a_cold_start_waits_for_a_file_that_cannot_be_read_now(tmp_path: Path, step: str) -> None:
    machine, handler = Machine(tmp_path), Flaky()
    for number in (1, 2, 3):
        machine.producer.write(Pair, f"id{number}", {"a": number, "b": "x"}, number)
        machine.drain([Pair])
    with machine.registry.open_current(Pair) as segment:
        handler.victim, last = str(sorted(machine.base.rglob("*.parquet"))[1]), segment.position
    machine.reboot()
    store = ParquetDatasetStore(str(machine.base), filesystem=fs.PyFileSystem(handler))
    handler.fails[step] = True
    with (
        WALConsumer(machine.registry.backend, [Pair], registry=machine.registry, offline=store) as consumer,
        pytest.raises(HistoryUnavailableError, match=Path(handler.victim).name),
    ):
        consumer.drain()
    with pytest.raises(HistoryUnavailableError, match=Path(handler.victim).name):
        hydrate(Pair, store, machine.registry)
    with pytest.raises(SegmentNotFoundError):
        machine.registry.open_current(Pair)
    handler.fails[step] = False
    with WALConsumer(machine.registry.backend, [Pair], registry=machine.registry, offline=store) as consumer:
        consumer.drain()
    with machine.registry.open_current(Pair) as segment:
        assert (len(segment), segment.position) == (3, last)
    machine.reboot()
    machine.close()


def test_catching_up_moves_no_position_past_a_file_that_cannot_be_read(
    flaky: tuple[Flaky, Path], tmp_path: Path
) -> None:
    handler, base = flaky
    machine = Machine(tmp_path)
    store = ParquetDatasetStore(str(base), filesystem=fs.PyFileSystem(handler))
    with machine.registry.create(Pair, capacity=10) as segment:
        handler.fails["open"] = True
        with pytest.raises(HistoryUnavailableError, match=Path(handler.victim).name):
            catch_up(segment, store, 0)
        assert segment.position == 0
        handler.fails["open"] = False
        assert catch_up(segment, store, 0) == 3
        assert segment.position == 3
    machine.reboot()
    machine.close()


class Late(Flaky):
    """A filesystem in which a folder appears while it is listed: Arrow's local one finds it missing, and then there."""

    listings = 0

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        self.listings += 1
        if self.listings == 1:
            raise FileNotFoundError(errno.ENOENT, "Cannot list directory")
        found: list[fs.FileInfo] = super().get_file_info_selector(selector)
        return found


def test_a_folder_that_is_made_while_it_is_listed_is_listed_again(flaky: tuple[Flaky, Path]) -> None:
    _, base = flaky
    store = ParquetDatasetStore(str(base), filesystem=fs.PyFileSystem(Late()))
    assert store.flushed_position(Pair) == 3
