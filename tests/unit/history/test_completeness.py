"""Reads of the past behind a schema's last row: known to be complete although the log is trimmed, or refused."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest

from quorin.engine.consumer.history import NoopOfflineWriter
from quorin.engine.history.completeness import FILE_NAME, Completeness
from quorin.engine.history.storage import Storage
from quorin.errors import CorruptHistoryError, HistoryUnavailableError, IncompleteHistoryError
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, dtype, make_schema
from quorin.wal_consumer import WALConsumer
from tests.support.machines import Machine
from tests.unit.test_offline import data_files

QUIET, BUSY = (make_schema(name, [FeatureField("number", dtype.int64)]) for name in ("Quiet", "Busy"))


@pytest.fixture
def node(machine: Machine) -> Machine:
    """Its log is trimmed, and the last rows are another schema's."""
    for schema in (QUIET, BUSY):
        machine.registry.create(schema, capacity=8).close()
    machine.producer.write(QUIET, "x", {"number": 1})
    push(machine, 3)
    return machine


def push(node: Machine, count: int) -> int:
    for number in range(count):
        position = node.producer.write(BUSY, "x", {"number": number})
    node.drain((QUIET, BUSY))
    assert node.log().bounds().trimmed == position
    return position


def numbers(store: ParquetDatasetStore, position: int, node: Machine | None = None) -> list[int | None]:
    connection = None if node is None else node.registry.backend
    return store.read_at(QUIET, ["x", "y"], position=position, connection=connection)["number"].to_pylist()


def test_behind_a_schema_s_last_row_nothing_is_missing(node: Machine) -> None:
    position = push(node, 1)
    with node.registry.open_current(QUIET) as segment:
        assert segment.applied() == position
    assert numbers(node.store(), position) == numbers(node.store(), position, node) == [1, None]
    with pytest.raises(IncompleteHistoryError, match=f"lacks log positions {position + 1} to {position + 9}: pass the"):
        numbers(node.store(), position + 9)
    assert numbers(node.store(), position + 9, node) == [1, None]


def test_rows_that_the_log_still_has_come_behind_those_that_were_trimmed(node: Machine) -> None:
    position = node.producer.write(QUIET, "y", {"number": 2})
    assert numbers(node.store(), position, node) == [1, 2]
    assert numbers(node.store(), position - 1, node) == [1, None]


def test_a_schema_without_rows_is_complete_too(node: Machine) -> None:
    empty = make_schema("Empty", [FeatureField("number", dtype.int64)])
    node.registry.create(empty, capacity=8).close()
    node.producer.write(BUSY, "x", {"number": 9})
    node.drain((QUIET, BUSY, empty))
    position = int(node.log().bounds().last)
    assert node.store().read_at(empty, ["x"], position=position)["found"].to_pylist() == [False]
    other = make_schema("Other", [FeatureField("number", dtype.int64)])
    with pytest.raises(IncompleteHistoryError, match="'Other' lacks log positions 1 to"):
        node.store().read_at(other, ["x"], position=position)


def test_files_that_are_gone_are_missed(node: Machine) -> None:
    position = push(node, 1)
    [file] = data_files(node.base / "Quiet")
    file.unlink()
    for connection in (None, node):
        with pytest.raises(IncompleteHistoryError, match="lacks log positions 1 to"):
            numbers(node.store(), position, connection)


def test_an_old_copy_of_a_history_says_nothing_of_later_positions(node: Machine, tmp_path: Path) -> None:
    shutil.copytree(node.base, tmp_path / "copy")
    copy = ParquetDatasetStore(tmp_path / "copy")
    node.producer.write(QUIET, "x", {"number": 2})
    position = push(node, 1)
    assert numbers(node.store(), position, node) == [2, None]
    with pytest.raises(IncompleteHistoryError, match="they were trimmed"):
        numbers(copy, position, node)


def test_a_log_that_was_trimmed_without_the_history_is_not_complete(node: Machine) -> None:
    position = node.producer.write(BUSY, "x", {"number": 9})
    without = NoopOfflineWriter()
    with WALConsumer(node.registry.backend, (QUIET, BUSY), registry=node.registry, offline=without) as consumer:
        consumer.drain()
    assert node.log().bounds().trimmed == position
    with pytest.raises(IncompleteHistoryError, match="they were trimmed"):
        numbers(node.store(), position, node)


def test_a_history_of_an_earlier_release_gets_its_record_with_the_next_flush(node: Machine) -> None:
    record = node.base / FILE_NAME
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    record.unlink()
    with pytest.raises(IncompleteHistoryError):
        numbers(node.store(), int(node.log().bounds().last), node)
    position = push(node, 1)
    assert numbers(node.store(), position, node) == [1, None]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "{}", '{"format": 1}', '{"format": 1, "through": 5, "files": [1]}', "\udcff"]
)
def test_a_damaged_record_is_named(node: Machine, text: str) -> None:
    (node.base / FILE_NAME).write_text(text, errors="surrogateescape")
    with pytest.raises(CorruptHistoryError, match=rf"{FILE_NAME} is damaged .*: remove it, and the next flush"):
        numbers(node.store(), 5)


def test_a_record_of_a_later_format_says_nothing(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(json.dumps({"format": 2, "anything": 1}))
    assert Completeness.read(Storage(tmp_path, None)) == Completeness()


def test_a_record_that_cannot_be_written_keeps_the_log(node: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the trimmed positions would be missing for ever."""
    before = node.log().bounds().trimmed

    def fail(*_: object) -> None:
        raise HistoryUnavailableError("disk full")

    node.producer.write(BUSY, "x", {"number": 9})
    with monkeypatch.context() as patched:
        patched.setattr(Completeness, "write", fail)
        with pytest.raises(HistoryUnavailableError, match="disk full"):
            node.drain((QUIET, BUSY))
    assert node.log().bounds().trimmed == before
    node.drain((QUIET, BUSY))
    assert numbers(node.store(), int(node.log().bounds().trimmed)) == [1, None]
