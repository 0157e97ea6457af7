"""Stores of snapshots: the same promises in a directory and in an object storage."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs

from quorin.engine.bootstrap import image
from quorin.engine.bootstrap.names import SnapshotFile
from quorin.engine.bootstrap.pace import Pace, StoppedError
from quorin.errors import SegmentNotFoundError, SharedMemoryError, SnapshotUnavailableError
from quorin.evolution import upgrade_schema
from quorin.schema import FeatureField, dtype, make_schema
from quorin.snapshot import SnapshotStore, restore_newest
from tests.support.machines import Machine, whole_rows
from tests.support.s3 import QUOTED, SECRET, new_bucket, running, url, without_rights

Pair = make_schema("Pair", [FeatureField("a", dtype.float64), FeatureField("b", dtype.string)])
Wider = make_schema(
    "Pair",
    [FeatureField("a", dtype.float64), FeatureField("b", dtype.string), FeatureField("c", dtype.int64)],
    version=2,
)
Other = make_schema("Pair", [FeatureField("a", dtype.string)], version=2)
ROOT = Path(__file__).parents[2]
IDS = ["x", "y", "a key that is long enough to need the heap"]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running() as address:
        yield address


class Place:
    """A store, and its files by another way than the store's own."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.store = SnapshotStore(base)
        self._fs, self._root = (fs.LocalFileSystem(), base) if "://" not in base else fs.FileSystem.from_uri(base)

    def files(self) -> list[str]:
        selector = fs.FileSelector(self._root, recursive=True, allow_not_found=True)
        return sorted(info.path for info in self._fs.get_file_info(selector) if info.type == fs.FileType.File)

    def read(self, path: str) -> bytes:
        with self._fs.open_input_file(path) as file:
            return bytes(file.read())

    def write(self, path: str, content: bytes) -> None:
        with self._fs.open_output_stream(path) as file:
            file.write(content)


@pytest.fixture(params=["directory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "directory":
        return Place(str(tmp_path / "snapshots"))
    return Place(new_bucket(request.getfixturevalue("server"), tmp_path.name))


def write(machine: Machine, number: float, ids: list[str] = IDS) -> None:
    for entity_id in ids:
        machine.producer.write(Pair, entity_id, {"a": number, "b": f"text {number}"}, int(number))
    machine.drain([Pair])


def save(machine: Machine, place: Place, number: float) -> list[Any]:
    """Write rows and a snapshot of them; the rows to the bit."""
    write(machine, number)
    with machine.registry.open_current(Pair) as segment:
        place.store.save(segment)
        return whole_rows(segment, IDS)


def restored(machine: Machine, place: Place, schema: Any = Pair, **options: Any) -> list[Any] | None:
    """What comes back, as a new machine would have it; None if nothing does. Nothing else is left."""
    machine.reboot()
    segment = restore_newest(schema, place.store, machine.registry, **options)
    if segment is None:
        assert list(machine.shm.glob("quorin_*")) == []
        return None
    with pytest.raises(SegmentNotFoundError):
        machine.registry.open_current(schema)
    rows = whole_rows(segment, IDS)
    assert [path.name for path in machine.shm.glob("quorin_*")] == [segment.name]
    machine.registry.discard(segment)
    return rows


def test_the_newest_comes_back_to_the_bit_and_older_ones_go(machine: Machine, place: Place) -> None:
    assert restored(machine, place) is None
    for number in range(1, 6):
        rows = save(machine, place, number)
    found = place.store.snapshots("Pair")
    assert [file.path for file in found] == place.files()
    assert len(found) == 3
    assert [file.position for file in found] == sorted(file.position for file in found)
    assert {file.size for file in found} == {len(place.read(file.path)) for file in found}
    assert restored(machine, place) == rows


def test_a_restored_segment_follows_the_log_from_its_position(machine: Machine, place: Place) -> None:
    save(machine, place, 1)
    write(machine, 2, IDS[:1])
    served = machine.served(Pair, IDS)
    machine.reboot()
    segment = restore_newest(Pair, place.store, machine.registry)
    assert segment is not None
    assert segment.position == place.store.snapshots("Pair")[0].position > 0
    machine.registry.publish(segment, replacing=machine.registry.vacancy("Pair"))
    machine.drain([Pair])
    assert machine.served(Pair, IDS) == served


def flipped(place: Place, file: SnapshotFile, offset: int) -> None:
    content = bytearray(place.read(file.path))
    content[offset] ^= 0x10
    place.write(file.path, bytes(content))


@pytest.mark.parametrize("offset", [0, 12, 30, 60, 200, 900, 4100, -64, -60, -50, -30, -6, -3000])
def test_a_damaged_one_is_skipped_and_the_one_before_it_taken(
    machine: Machine, place: Place, offset: int, capsys: pytest.CaptureFixture[str]
) -> None:
    older = save(machine, place, 1)
    save(machine, place, 2)
    newest = place.store.snapshots("Pair")[-1]
    flipped(place, newest, offset)
    assert restored(machine, place) == older
    warning = capsys.readouterr().err
    assert "snapshot_skipped" in warning
    assert newest.name in warning


def test_a_cut_upload_is_never_taken_whatever_it_was_cut_at(machine: Machine, place: Place) -> None:
    older = save(machine, place, 1)
    save(machine, place, 2)
    newest = place.store.snapshots("Pair")[-1]
    content = place.read(newest.path)
    for size in {0, 1, 64, 4095, 4096, 5000, len(content) // 2, len(content) - 65, len(content) - 64, len(content) - 1}:
        place.write(newest.path, content[:size])
        assert newest not in place.store.snapshots("Pair")
        assert restored(machine, place) == older
    place.write(newest.path, content + b"!")
    assert restored(machine, place) == older
    # Under a name that fits its size it is still no snapshot.
    for size in (64, 4096, 5000, len(content) - 1):
        cut = newest.path.replace(f"-{newest.size:015}.", f"-{size:015}.")
        place.write(cut, content[:size])
        assert restored(machine, place) == older


def test_parts_that_uploads_left_do_not_count_as_snapshots(machine: Machine, place: Place) -> None:
    save(machine, place, 1)
    newest = place.store.snapshots("Pair")[-1]
    for position in range(9, 14):
        place.write(newest.path.replace(f"{newest.position:020}", f"{position:020}"), b"part")
    rows = save(machine, place, 2)
    assert len(place.store.snapshots("Pair")) == 2
    assert restored(machine, place) == rows


def test_foreign_files_are_left_alone(machine: Machine, place: Place) -> None:
    save(machine, place, 1)
    foreign = place.files()[0].rpartition("/")[0] + "/notes.txt"
    place.write(foreign, b"mine")
    for number in range(2, 6):
        rows = save(machine, place, number)
    assert place.read(foreign) == b"mine"
    assert restored(machine, place) == rows


def test_an_older_version_is_upgraded_and_what_does_not_fit_is_not_taken(machine: Machine, place: Place) -> None:
    rows = save(machine, place, 1)
    upgraded = restored(machine, place, Wider)
    assert upgraded is not None
    assert [row[0][:2] for row in upgraded] == [row[0][:2] for row in rows]  # the new field is null
    assert restored(machine, place, Other) is None
    machine.reboot()
    segment = restore_newest(Wider, place.store, machine.registry)
    assert segment is not None
    assert (segment.schema, segment.stored_schema) == (Wider, Wider)
    assert not segment.holds_writer_lease
    assert len(list(machine.shm.glob("quorin_*"))) == 1
    assert segment.position == place.store.snapshots("Pair")[-1].position


def test_a_newer_version_is_not_taken(machine: Machine, place: Place) -> None:
    rows = save(machine, place, 1)
    upgrade_schema(Pair, Wider, machine.registry)
    machine.producer.write(Wider, "x", {"a": 2.0, "b": "", "c": 2}, 2)
    machine.drain([Wider])
    with machine.registry.open_current(Wider) as segment:
        place.store.save(segment)
    assert [file.version for file in place.store.snapshots("Pair")] == [1, 2]
    assert restored(machine, place) == rows
    assert restored(machine, place, Wider) is not None


def test_a_snapshot_of_another_log_is_taken_on_request_and_follows_no_log(
    machine: Machine, place: Place, tmp_path: Path
) -> None:
    rows = save(machine, place, 1)
    (tmp_path / "new").mkdir()
    other = Machine(tmp_path / "new")
    assert restored(other, place) is None
    assert restored(other, place, any_log=True) == rows
    segment = restore_newest(Pair, place.store, other.registry, any_log=True)
    assert segment is not None
    assert (segment.position, segment.log_identity) == (0, 0)
    other.registry.publish(segment, replacing=None)
    write(other, 2, IDS[:1])
    assert [row[0][0] for row in other.served(Pair, IDS)] == [2, 1, 1]
    with other.registry.open_current(Pair) as segment:
        place.store.save(segment)
    assert restored(machine, place) == rows
    other.reboot()
    other.close()


def test_a_snapshot_from_before_a_position_is_not_taken(machine: Machine, place: Place) -> None:
    rows = save(machine, place, 1)
    position = place.store.snapshots("Pair")[0].position
    assert restored(machine, place, from_position=position) == rows
    assert restored(machine, place, from_position=position + 1) is None


def test_a_save_that_is_stopped_leaves_what_was_there(machine: Machine, place: Place) -> None:
    rows = save(machine, place, 1)
    before = place.files()
    write(machine, 2)
    pace = Pace()

    def stop(done: int, total: int) -> None:
        raise StoppedError("stopped")

    with machine.registry.open_current(Pair) as segment, pytest.raises(StoppedError):
        place.store.save(segment, progress=stop, pace=pace)
    assert place.files() == before
    assert restored(machine, place) == rows


SAVE = """
import os, signal, sys
from pathlib import Path
from quorin.shm import SegmentRegistry
from quorin.snapshot import SnapshotStore
store, registry = SnapshotStore(sys.argv[1]), SegmentRegistry(sys.argv[2], shm_dir=sys.argv[3])
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[4] == "renaming":
    Path.rename = die
store.save(registry.open_stored("Pair"), progress=die if sys.argv[4] == "copying" else None)
if sys.argv[4] == "renaming":  # An object has no rename: this is the moment behind its upload.
    die()
"""


@pytest.mark.parametrize("moment", ["copying", "renaming"])
def test_a_process_that_is_killed_while_it_saves_leaves_a_whole_snapshot(
    machine: Machine, place: Place, tmp_path: Path, moment: str
) -> None:
    before = save(machine, place, 1)
    write(machine, 2)
    after = machine.served(Pair, IDS)
    arguments = [place.base, str(tmp_path / "store"), str(machine.shm), moment]
    killed = subprocess.run([sys.executable, "-c", SAVE, *arguments], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    is_uploaded = moment == "renaming" and "://" in place.base
    assert len(place.store.snapshots("Pair")) == (2 if is_uploaded else 1)
    assert restored(machine, place) == (after if is_uploaded else before)
    rows = save(machine, place, 3)
    assert restored(machine, place) == rows


def test_an_upload_that_fails_between_blocks_is_no_snapshot(
    machine: Machine, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = save(machine, place, 1)
    blocks: Callable[..., Iterator[memoryview]] = image.blocks

    def failing(*arguments: Any) -> Iterator[memoryview]:
        yield from list(blocks(*arguments))[:-1]
        raise OSError(5, "Input/output error")

    write(machine, 2)
    monkeypatch.setattr(image, "blocks", failing)
    with (
        machine.registry.open_current(Pair) as segment,
        pytest.raises((SharedMemoryError, SnapshotUnavailableError), match="Input/output error"),
    ):
        place.store.save(segment)
    monkeypatch.undo()
    assert len(place.store.snapshots("Pair")) == 1
    assert restored(machine, place) == rows


def test_local_files_are_the_owners_alone_and_leftovers_go(machine: Machine, tmp_path: Path) -> None:
    place = Place(str(tmp_path / "deep" / "snapshots"))
    place.store.prepare()
    save(machine, place, 1)
    [file] = place.files()
    assert stat.S_IMODE(Path(file).stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(file).parent.stat().st_mode) == 0o700
    old, new = (Path(file).parent / f".snapshot.{name}.pending" for name in ("old", "new"))
    for leftover in (old, new):
        leftover.mkdir()
        (leftover / "part").write_bytes(b"part")
    for path in (old / "part", old):
        os.utime(path, (time.time() - 10_000, time.time() - 10_000))
    save(machine, place, 2)
    assert (old.exists(), new.exists()) == (False, True)


def test_parts_of_uploads_go_when_they_are_old(machine: Machine, tmp_path: Path) -> None:
    place = Place(str(tmp_path / "snapshots"))
    save(machine, place, 1)
    [file] = place.files()
    part = Path(file).with_name("9" * 20 + Path(file).name[20:])
    part.write_bytes(b"part")
    save(machine, place, 2)
    assert part.exists()
    os.utime(part, (time.time() - 10_000, time.time() - 10_000))
    save(machine, place, 3)
    assert not part.exists()


def test_keep_and_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        SnapshotStore(tmp_path, keep=0)
    with pytest.raises(ValueError, match=r"'\.\./etc'"):
        SnapshotStore(tmp_path).snapshots("../etc")


def test_no_error_has_the_keys(machine: Machine, server: str) -> None:
    write(machine, 1)
    wrong = SnapshotStore(url(server, "no-bucket-of-this-name"))
    assert SECRET not in repr(wrong)
    with (
        machine.registry.open_current(Pair) as segment,
        pytest.raises(SnapshotUnavailableError, match="the snapshots at s3://no-bucket-of-this-name") as caught,
    ):
        wrong.save(segment)
    text = "".join(traceback.format_exception(caught.value))
    assert SECRET not in text
    assert QUOTED not in text
    with pytest.raises(SnapshotUnavailableError, match="malformed"):
        SnapshotStore("s3://key:a/b@bucket")


def test_a_directory_without_rights_is_an_error(machine: Machine, tmp_path: Path) -> None:
    write(machine, 1)
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    store = SnapshotStore(blocked / "below")
    for use in (store.prepare, lambda: store.save(machine.registry.open_current(Pair))):
        with pytest.raises(SnapshotUnavailableError, match=str(blocked)):
            use()


@pytest.mark.parametrize(
    ("actions", "is_read"), [((), False), (("s3:ListBucket", "s3:GetObject"), True)], ids=["nothing", "reading"]
)
def test_a_url_without_rights_is_an_error_that_says_so(
    machine: Machine, actions: tuple[str, ...], is_read: bool
) -> None:
    write(machine, 1)
    rows = machine.served(Pair, IDS)
    with running() as server:
        owners = Place(new_bucket(server, "shared"))
        with machine.registry.open_current(Pair) as segment:
            owners.store.save(segment)
        address = without_rights(server, "shared", *actions)
        store = SnapshotStore(address)
        with (
            machine.registry.open_current(Pair) as segment,
            pytest.raises(
                SnapshotUnavailableError, match=r"the snapshots at s3://bucket-shared.*(?i:denied)"
            ) as caught,
        ):
            store.save(segment)
        secret = address.partition("@")[0].rpartition(":")[2]
        assert secret not in "".join(traceback.format_exception(caught.value))
        if is_read:
            assert restored(machine, Place(address)) == rows
            return
        machine.reboot()
        with pytest.raises(SnapshotUnavailableError, match=r"(?i:denied)"):
            restore_newest(Pair, store, machine.registry)
        assert list(machine.shm.glob("quorin_*")) == [], "an empty segment would look like a whole one"


def test_rows_of_a_segment_without_a_log_are_saved_too(machine: Machine, place: Place) -> None:
    from quorin import layout

    with machine.registry.create(Pair, capacity=10) as segment:
        layout.insert_many(segment, pa.table({"entity_id": IDS, "a": [1.0] * 3, "b": ["t"] * 3}))
        place.store.save(segment)
        rows = whole_rows(segment, IDS)
    assert restored(machine, place, any_log=True) == rows
