"""``shm_group``: members of a group read segments of every generation, and write none."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quorin import evolution, hydration, layout, snapshot
from quorin.cli import app
from quorin.engine.memory import file as mapping
from quorin.engine.memory.growth import grow
from quorin.errors import UnknownGroupError
from quorin.offline import ParquetDatasetStore
from quorin.shm import SHM_GROUP_VARIABLE, SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.redis_server import RedisServer
from tests.support.schemas import Scalars
from tests.support.users import NextScalars, User, UserError, needs_root

ONE, OTHER, OUTSIDER, GROUP = 54_001, 54_002, 54_003, 54_100
ROW = "layout.insert(segment, {0!r}, layout.pack_row(Scalars, a={1}, b=2, c=3, d=4))"
READ = "assembly.assemble(segment, {0!r}).tolist()"


def access(path: Path) -> tuple[int, int]:
    status = path.stat()
    return stat.S_IMODE(status.st_mode), status.st_gid


def segments(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.name.startswith("quorin_"))


def node_files(directory: Path) -> list[Path]:
    return [path for path in directory.glob("quorin-node-*") if not path.suffix]


@pytest.fixture
def shm_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of shared memory in which every user may create files, as in /dev/shm."""
    directory = Path(tempfile.mkdtemp(prefix="quorin-tests-", dir="/dev/shm"))
    directory.chmod(0o1777)
    monkeypatch.setenv("QUORIN_SHM_DIR", str(directory))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def url() -> Iterator[str]:
    """A Redis server that every user may connect to."""
    server = RedisServer("--unixsocketperm", "777")
    server.directory.chmod(0o755)
    yield server.url
    server.stop()


@pytest.fixture
def start(shm_dir: Path, url: str) -> Iterator[Callable[..., User]]:
    """Starts processes of users, each with a registry."""
    running: list[User] = []

    def started(user: int, *groups: int, shm_group: str | int | None = None) -> User:
        process = User(user, groups)
        running.append(process)
        process(f"registry = SegmentRegistry({url!r}, shm_group={shm_group!r})")
        return process

    yield started
    for process in running:
        process.__exit__(None, None, None)


def created(start: Callable[..., User], user: int = ONE, group: int | None = GROUP) -> User:
    """A process that has created a segment with one row, and writes to it."""
    writer = start(user, GROUP, shm_group=group)
    writer("segment = registry.create(Scalars, capacity=64)")
    writer(ROW.format("e1", 1))
    return writer


@needs_root
@pytest.mark.parametrize(("owner", "reader"), [(ONE, OTHER), (OTHER, ONE)])
def test_a_member_of_the_group_reads_every_generation(
    start: Callable[..., User], shm_dir: Path, owner: int, reader: int
) -> None:
    writer, member = created(start, owner), start(reader, GROUP)
    member("segment = registry.open_current(Scalars)")
    assert member(READ.format("e1")) == [1, 2, 3, 4]
    writer("grow(segment, rows=True, heap_bytes=0)")
    writer(ROW.format("e1", 11))
    assert member(READ.format("e1")) == [11, 2, 3, 4]
    writer("evolution.upgrade_schema(Scalars, NextScalars, registry)")
    writer(ROW.format("e1", 12))
    assert member(READ.format("e1")) == [12, 2, 3, 4]
    assert member("registry.open_current(NextScalars).name") == writer("segment.name")
    (file,), (node,) = segments(shm_dir), node_files(shm_dir)
    assert access(file) == access(node) == (0o640, GROUP)
    assert file.stat().st_uid == node.stat().st_uid == owner


@needs_root
def test_a_writer_that_does_not_know_the_group_locks_nobody_out(start: Callable[..., User], shm_dir: Path) -> None:
    created(start)
    member, overtaking = start(OTHER, GROUP), start(ONE, GROUP)
    member("segment = registry.open_current(Scalars)")
    overtaking("segment = registry.open_current(Scalars, read_only=False)")
    overtaking("segment.overtake_writer()")
    overtaking(ROW.format("e1", 21))
    assert member(READ.format("e1")) == [21, 2, 3, 4]
    replacing = start(ONE, GROUP)
    overtaking("segment.close()")
    replacing("segment = registry.create(Scalars, capacity=64)")
    replacing(ROW.format("e1", 22))
    assert member(READ.format("e1")) == [22, 2, 3, 4]
    assert {access(file) for file in segments(shm_dir)} == {(0o640, GROUP)}


@needs_root
def test_a_successor_that_root_makes_stays_its_owners(start: Callable[..., User], shm_dir: Path, url: str) -> None:
    writer, member = created(start), start(OTHER, GROUP)
    member("segment = registry.open_current(Scalars)")
    writer("segment.release_writer_lease()")
    registry = SegmentRegistry(url, shm_dir=shm_dir)
    evolution.upgrade_schema(Scalars, NextScalars, registry)
    registry.backend.close()
    writer(ROW.format("e1", 31))
    assert member(READ.format("e1")) == [31, 2, 3, 4]
    (file,) = segments(shm_dir)
    assert (file.stat().st_uid, access(file)) == (ONE, (0o640, GROUP))


@needs_root
def test_a_member_of_the_group_can_not_write(start: Callable[..., User], shm_dir: Path) -> None:
    writer, member = created(start), start(OTHER, GROUP)
    (file,) = segments(shm_dir)
    refused = rf"Permission denied: only its owner, user {ONE}, may write \(mode 0640\); this process is user {OTHER}"
    with pytest.raises(UserError, match=f"SharedMemoryError: .*{refused}"):
        member("registry.open_current(Scalars, read_only=False)")
    with pytest.raises(UserError, match=f"SharedMemoryError: .*{refused}"):
        member("registry.create(Scalars, capacity=64)")
    with pytest.raises(UserError, match=f"SharedMemoryError: .*{refused}"):
        member("registry.discard(registry.open_current(Scalars))")
    member("segment = registry.open_current(Scalars)")
    with pytest.raises(UserError, match="SegmentReadOnlyError"):
        member(ROW.format("e1", 9))
    for code in (f"os.open({str(file)!r}, os.O_RDWR)", f"os.unlink({str(file)!r})", f"os.chmod({str(file)!r}, 0o666)"):
        with pytest.raises(UserError, match="PermissionError"):
            member(code)
    assert segments(shm_dir) == [file]
    assert writer(READ.format("e1")) == [1, 2, 3, 4]


@needs_root
@pytest.mark.parametrize(
    ("group", "groups", "expected"),
    [
        (
            GROUP,
            [],
            rf"user {ONE} and members of group {GROUP} may read \(mode 0640\); .* user {OUTSIDER}, which is not",
        ),
        (None, [GROUP], rf"only its owner, user {ONE}, may read \(mode 0600\); .* user {OUTSIDER}\. Set shm_group"),
    ],
)
def test_other_users_can_not_read(
    start: Callable[..., User], group: int | None, groups: list[int], expected: str
) -> None:
    created(start, group=group)
    with pytest.raises(UserError, match=f"SharedMemoryError: .*{expected}"):
        start(OUTSIDER, *groups)("registry.open_current(Scalars)")


@needs_root
def test_the_group_reads_a_segment_that_is_opened_for_writing_with_the_setting(
    start: Callable[..., User], shm_dir: Path
) -> None:
    created(start, group=None)("segment.close()")
    member = start(OTHER, GROUP)
    with pytest.raises(UserError, match="may read"):
        member("registry.open_current(Scalars)")
    assert [access(path)[0] for path in node_files(shm_dir)] == [0o600]
    start(ONE, GROUP, shm_group=GROUP)("segment = registry.open_current(Scalars, read_only=False)")
    assert [access(path) for path in node_files(shm_dir)] == [(0o640, GROUP)]
    member("segment = registry.open_current(Scalars)")
    assert member(READ.format("e1")) == [1, 2, 3, 4]


@needs_root
def test_a_group_that_the_process_is_not_in_is_refused_and_nothing_is_left(
    start: Callable[..., User], shm_dir: Path
) -> None:
    stranger = start(ONE, shm_group=GROUP)
    text = rf"SharedMemoryError: .*to group {GROUP} \(Operation not permitted\).*user {ONE} must be a member.*{ONE}"
    with pytest.raises(UserError, match=text):
        stranger("registry.create(Scalars, capacity=64)")
    assert segments(shm_dir) == []
    created(start)("segment.close()")
    before = segments(shm_dir)
    late = start(ONE)
    late("segment = registry.open_current(Scalars, read_only=False)")
    late(ROW.format("e1", 41))
    with pytest.raises(UserError, match=f"to group {GROUP}.*must be a member"):
        late("grow(segment, rows=True, heap_bytes=0)")
    assert segments(shm_dir) == before
    assert late(READ.format("e1")) == [41, 2, 3, 4]


@needs_root
def test_operations_of_a_member_of_the_group(start: Callable[..., User], shm_dir: Path, url: str) -> None:
    created(start)
    member = start(OTHER, GROUP)
    files = segments(shm_dir)
    assert member("registry.current_name('Scalars')") == files[0].name
    assert member(f"is_locked(pathlib.Path({str(files[0])!r}))") is False  # it can't know
    member(f"dog = watchdog.WatchdogState({url!r}, miss_threshold=1)")
    member("tick = dog.run_one_tick()")
    assert member("list(tick.reclaimed)") == []
    assert segments(shm_dir) == files
    checks = member(f"[c.as_dict() for c in health.check_deployment({url!r}, shm_dir={str(shm_dir)!r})]")
    (segment,) = [check for check in checks if check["name"] == "segment of Scalars"]
    assert segment["status"] == "ok"
    shm_dir.chmod(0o755)
    (check, *_) = member(f"[c.as_dict() for c in health.check_machine({str(shm_dir)!r})]")
    assert (check["status"], check["found"]) == (
        "warning",
        "read-only for this user: it can read segments, not create any",
    )
    shm_dir.chmod(0o1777)


@needs_root
def test_a_reader_that_comes_first_makes_no_file_that_the_writer_could_not_change(
    start: Callable[..., User], shm_dir: Path
) -> None:
    member = start(OTHER, GROUP)
    with pytest.raises(UserError, match="SegmentNotFoundError: no segment is current"):
        member("registry.open_current(Scalars)")
    assert member("registry.current_name('Scalars')") is None
    assert node_files(shm_dir) == []
    created(start)
    member("segment = registry.open_current(Scalars)")
    assert member(READ.format("e1")) == [1, 2, 3, 4]


@needs_root
def test_readers_need_no_right_to_write_in_the_directory(start: Callable[..., User], shm_dir: Path) -> None:
    """As in ``docker/kubernetes/daemonset.yaml``."""
    os.chown(shm_dir, ONE, GROUP)
    shm_dir.chmod(0o2750)
    member = start(OTHER, GROUP)
    with pytest.raises(UserError, match="SegmentNotFoundError"):
        member("registry.open_current(Scalars)")
    writer = created(start)
    member("segment = registry.open_current(Scalars)")
    writer("grow(segment, rows=True, heap_bytes=0)")
    writer(ROW.format("e1", 61))
    assert member(READ.format("e1")) == [61, 2, 3, 4]
    assert member("[one.problem for one in readiness(registry, max_lag_seconds=None)]") == [""]
    with pytest.raises(UserError, match="Permission denied"):
        member(f"open({str(shm_dir / 'anything')!r}, 'w')")
    assert {path.stat().st_uid for path in shm_dir.iterdir()} == {ONE}


@needs_root
def test_users_with_deployments_of_their_own_share_a_directory(start: Callable[..., User], shm_dir: Path) -> None:
    created(start, group=None)
    server = RedisServer("--unixsocketperm", "777")
    server.directory.chmod(0o755)
    other = start(OTHER)
    other(f"registry = SegmentRegistry({server.url!r})")
    other("segment = registry.create(Scalars, capacity=64)")
    other(ROW.format("e1", 51))
    assert other(READ.format("e1")) == [51, 2, 3, 4]
    assert {path.stat().st_uid for path in node_files(shm_dir)} == {ONE, OTHER}
    other("registry.backend.close()")
    server.stop()


@needs_root
def test_a_member_of_the_group_leaves_applying_to_others(start: Callable[..., User], shm_dir: Path) -> None:
    writer, member = created(start), start(OTHER, GROUP)
    with pytest.raises(UserError, match=f"cannot apply the log on the node .*: only its owner, user {ONE}, may write"):
        member("take_turn(registry.node)")
    assert writer("take_turn(registry.node) is not None")


@needs_root
def test_the_text_for_a_node_file_without_access_names_its_owner(start: Callable[..., User]) -> None:
    created(start)
    with pytest.raises(UserError, match=rf"cannot read .*quorin-node-.*: user {ONE} and members of group {GROUP} may"):
        start(OUTSIDER)("registry.node.currents()")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[SegmentRegistry]:
    registry = SegmentRegistry(tmp_path / "store", shm_dir=tmp_path, shm_group=own_group())
    yield registry
    registry.backend.close()


def own_group() -> int:
    """A group that this process is in; root is in all of them."""
    return GROUP if os.geteuid() == 0 else os.getegid()


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, int]]]:
    """The mode and group that each file had when it got its name."""
    seen, link = [], os.link

    def noted(source: Any, target: Any, **options: Any) -> None:
        seen.append((Path(source).suffix, access(Path(source))))
        link(source, target, **options)

    monkeypatch.setattr(os, "link", noted)
    return seen


def test_a_file_has_its_group_before_its_name(
    own: SegmentRegistry, named: list[tuple[str, tuple[int, int]]], tmp_path: Path
) -> None:
    producer = WALProducer(own.backend, registry=own)
    producer.write(Scalars, "e1", dict.fromkeys("abcd", 1.0))
    history = ParquetDatasetStore(tmp_path / "history")
    with WALConsumer(own.backend, Scalars, registry=own, offline=history) as consumer:
        consumer.drain()
    with own.open_current(Scalars, read_only=False) as segment:
        segment.acquire_writer_lease()
        grow(segment, rows=True, heap_bytes=0)
        snapshot.snapshot(segment, tmp_path / "copy")
        assert access(tmp_path / "copy")[0] == 0o600
        own.discard(segment)
    snapshot.restore(tmp_path / "copy", own)
    own.discard(own.open_current(Scalars))
    hydration.hydrate(Scalars, history, own)
    producer.close()
    group = (".pending", (0o640, own_group()))
    private = [seen for seen in named if seen != group]
    assert len(named) == 5
    assert [mode for _, (mode, _) in private] == [0o600]  # the snapshot's own copy


@pytest.mark.parametrize("setting", ["no_such_group", "-1", str(2**32), -1, 2**32 - 1, True, "a\0b"])
def test_a_group_that_is_none_is_refused(tmp_path: Path, setting: Any) -> None:
    with pytest.raises(UnknownGroupError, match="shm_group"):
        SegmentRegistry(tmp_path / "store", shm_dir=tmp_path, shm_group=setting)
    assert not (tmp_path / "store").exists()


def test_the_group_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHM_GROUP_VARIABLE, str(own_group()))
    assert SegmentRegistry(tmp_path / "store", shm_dir=tmp_path).shm_group == own_group()
    monkeypatch.setenv(SHM_GROUP_VARIABLE, "")
    registry = SegmentRegistry(tmp_path / "store", shm_dir=tmp_path)
    assert registry.shm_group is None
    with registry.create(Scalars, capacity=1) as segment:
        assert access(segment.current_view().path)[0] == 0o600


def test_groups_have_names(tmp_path: Path) -> None:
    import grp

    entry = grp.getgrgid(os.getegid())
    assert SegmentRegistry(tmp_path / "store", shm_dir=tmp_path, shm_group=entry.gr_name).shm_group == entry.gr_gid


def test_restore_takes_the_group(own: SegmentRegistry, tmp_path: Path) -> None:
    with own.create(Scalars, capacity=4) as segment:
        layout.insert(segment, "e1", layout.pack_row(Scalars, a=1, b=2, c=3, d=4))
        snapshot.snapshot(segment, tmp_path / "copy")
        own.discard(segment)
    shm = tmp_path / "other"
    shm.mkdir()
    words = ["restore", str(tmp_path / "copy"), "-c", str(tmp_path / "store"), "--shm-dir", str(shm)]
    result = CliRunner().invoke(app, [*words, "--shm-group", str(own_group())])
    assert result.exit_code == 0, result.output
    (file,) = segments(shm)
    assert access(file) == (0o640, own_group())
    mapping.unlink(file)
    result = CliRunner().invoke(app, [*words, "--shm-group", "no_such_group"])
    assert result.exit_code == 1
    assert segments(shm) == []
