"""Pins and kept generations: what is pinned stays, what is kept is limited, and the rest goes."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quorin import layout
from quorin.assembly import assemble, read
from quorin.engine.memory import pinnable, pins, record_locks, writer
from quorin.engine.memory.growth import evolve, grow
from quorin.engine.memory.kept import kept_files, parse_kept
from quorin.engine.memory.pauses import Asking
from quorin.engine.memory.pins import Pin, is_pinned, remove_unpinned
from quorin.engine.ops import presence
from quorin.engine.ops.observe import Observer
from quorin.errors import (
    CapacityExceededError,
    GenerationNotFoundError,
    PinLimitError,
    SegmentConflictError,
    SegmentNotFoundError,
    SharedMemoryError,
)
from quorin.evolution import upgrade_schema
from quorin.schema import Schema
from quorin.shm import Segment, SegmentRegistry
from quorin.watchdog import WatchdogState
from tests.support.consumers import kill, start
from tests.support.upgrades import IDS, table, version
from tests.support.world import until


class Place:
    """One node, with rows of the first version."""

    def __init__(self, tmp_path: Path, **limits: Any) -> None:
        self.store, self.shm_dir = tmp_path / "store", tmp_path / "shm"
        self.shm_dir.mkdir(exist_ok=True)
        self.limits = limits
        self.registry = SegmentRegistry(self.store, shm_dir=self.shm_dir, **limits)
        with self.registry.create(version(1), capacity=100) as segment:
            layout.insert_many(segment, table(version(1), 1))

    @classmethod
    def opened(cls, registry: SegmentRegistry) -> Place:
        """A node that is there."""
        place = cls.__new__(cls)
        place.registry, place.shm_dir = registry, registry.shm_dir
        return place

    def writer(self) -> Segment:
        return self.registry.open_stored("Moving", read_only=False)

    def upgrade(self, to: int) -> None:
        with self.writer() as segment:
            evolve(self.leased(segment), version(to))

    def replace(self, number: int) -> None:
        """Put a new generation in force, whose rows all hold a number, as a replacement does."""
        with self.writer() as segment:
            self.leased(segment)
            successor = self.registry.create_successor(segment, segment.stored_schema, capacity=100)
            layout.insert_many(successor, table(segment.stored_schema, number))
            view = successor.current_view()
            successor.close()
            view.words[pins_epoch()] = 0
            segment.replace(view, keeping="replace")

    def leased(self, segment: Segment) -> Segment:
        segment.acquire_writer_lease()
        return segment

    def states(self) -> list[tuple[int, str, bool]]:
        return [(one.number, one.state, one.is_pinned) for one in self.registry.generations("Moving")]

    def files(self) -> int:
        return len(list(self.shm_dir.glob("quorin_Moving*")))

    def tick(self, count: int = 3) -> None:
        with WatchdogState(self.registry.backend, shm_dir=self.shm_dir) as watchdog:
            for _ in range(count):
                watchdog.run_one_tick()


def pins_epoch() -> int:
    from quorin.engine.format import segment as fmt

    return fmt.header_word("epoch")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    opened = Place(tmp_path, keep_generations=2)
    yield opened
    opened.registry.backend.close()


def counter(segment: Segment) -> int:
    value: int = read(segment, IDS[:1], ["counter"]).to_pylist()[0]["counter"]
    return value


def test_a_pinned_generation_survives_growth_upgrades_replacements_and_the_watchdog(tmp_path: Path) -> None:
    place = Place(tmp_path, keep_generations=0)
    with place.registry.open_current(version(1)) as reader, reader.pin():
        with place.writer() as segment:
            grow(place.leased(segment), rows=True, heap_bytes=0)
        place.upgrade(2)
        place.replace(7)
        place.tick()
        assert place.states() == [(4, "current", False), (1, "replaced", True)]
        assert (assemble(reader, IDS[0]).tolist(), counter(reader)) == ([1.0, 1.0, 1.0], 1)
        assert (reader.is_pinned, reader.stats()["pinned"], reader.stats()["replaced"]) == (True, True, True)
        # Another reader may join it while it is pinned, by number or by version.
        for pin in (1, "1", "v1"):
            with place.registry.open_current(version(1), pin=pin) as old:
                assert (old.stats()["generation"], counter(old)) == (1, 1)
        assert reader.confirmed_age_seconds() > 0
    assert place.files() == 1
    place.registry.backend.close()


def test_unpinning_follows_and_frees(place: Place) -> None:
    with place.registry.open_current(version(1)) as reader:
        reader.pin()
        reader.pin()
        with place.writer() as segment:
            grow(place.leased(segment), rows=True, heap_bytes=0)
            layout.insert_many(segment, table(version(1), 5))
        assert counter(reader) == 1
        reader.unpin()
        assert (counter(reader), reader.is_pinned, place.files()) == (5, False, 1)
        with reader.pin():
            assert counter(reader) == 5


def test_kept_generations_are_limited_by_number(place: Place) -> None:
    for number in range(2, 7):
        place.replace(number)
    assert place.states() == [(6, "current", False), (5, "kept", False), (4, "kept", False)]
    kept = place.registry.generations("Moving")[1]
    assert (kept.reason, kept.rows, kept.schema_version, kept.schema_name) == ("replace", len(IDS), 1, "Moving")
    assert 0 < time.time_ns() - (kept.until_ns or 0) < 3600 * 10**9
    place.tick()
    assert place.files() == 3
    with Observer(place.registry.backend, shm_dir=place.shm_dir) as observer:
        [seen] = observer.observe(readers=False, events=False).segments
        assert (seen.kept.generations, seen.as_dict()["kept_bytes"]) == (2, 2 * kept.bytes)
    with place.registry.open_stored("Moving", pin=4) as old:
        assert counter(old) == 4
        place.replace(7)
        place.replace(8)
        # What is pinned is kept beyond the limit, and counts for it.
        assert place.states() == [(8, "current", False), (7, "kept", False), (6, "kept", False), (4, "kept", True)]
    assert counter_of(place, "current") == 8
    place.upgrade(2)
    assert [number for number, _, _ in place.states()] == [9, 8, 7]
    assert [one.reason for one in place.registry.generations("Moving")] == [None, "upgrade", "replace"]
    assert counter_of(place, "v1") == 8


def counter_of(place: Place, pin: int | str) -> int:
    with place.registry.open_stored("Moving", pin=pin) as segment:
        return counter(segment)


def test_kept_generations_are_limited_by_bytes(tmp_path: Path) -> None:
    size = Place(tmp_path).registry.generations("Moving")[0].bytes
    place = Place(tmp_path, keep_generations=9, keep_bytes=2 * size)
    for number in range(2, 6):
        place.replace(number)
    first = place.states()[0][0]
    assert [(first - number, state) for number, state, _ in place.states()] == [
        (0, "current"),
        (1, "kept"),
        (2, "kept"),
    ]
    place.registry.backend.close()


def test_by_default_one_is_kept_after_a_replacement_and_none_after_an_upgrade(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.replace(2)
    place.replace(3)
    assert [state for _, state, _ in place.states()] == ["current", "kept"]
    place.upgrade(2)
    assert [(number, state) for number, state, _ in place.states()] == [(4, "current"), (2, "kept")]
    place.registry.backend.close()


def test_kept_generations_go_before_rows_are_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.replace(2)
    place.replace(3)
    real, room = os.posix_fallocate, sum(path.stat().st_size for path in place.shm_dir.glob("quorin_Moving*"))

    def reserve(descriptor: int, start: int, size: int) -> None:
        """A file system with room for as much as there is now."""
        used = sum(path.stat().st_size for path in place.shm_dir.glob("quorin_Moving*") if path.suffix != ".pending")
        if used + size > room:
            raise OSError(28, os.strerror(28))
        real(descriptor, start, size)

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    with place.writer() as segment:
        grow(place.leased(segment), rows=False, heap_bytes=0)
        assert [state for _, state, _ in place.states()] == ["current", "kept"]
        room = 0
        with place.registry.open_stored("Moving", pin=2), pytest.raises(CapacityExceededError):
            grow(segment, rows=True, heap_bytes=0)
    assert [state for _, state, _ in place.states()] == ["current", "kept"]


def test_pins_are_limited(tmp_path: Path) -> None:
    place = Place(tmp_path, keep_generations=9, max_pinned=2)
    for number in range(2, 5):
        place.replace(number)
    registry = place.registry
    with registry.open_stored("Moving", pin=1), registry.open_stored("Moving", pin=2):
        with registry.open_stored("Moving", pin=2) as again:  # The same once more costs nothing.
            assert counter(again) == 2
        with pytest.raises(PinLimitError, match=r"2 other generations .*max_pinned"):
            registry.open_stored("Moving", pin=3)
        with registry.open_stored("Moving") as current, pytest.raises(PinLimitError):
            current.pin()
        assert [pinned for _, _, pinned in place.states()] == [False, False, True, True]
    with registry.open_stored("Moving", pin=3) as third:
        assert counter(third) == 3
    registry.backend.close()


@pytest.mark.parametrize("wanted", [0, -1, True, "", "v", "v0", "3.5", "now", 1.5])
def test_what_no_generation_can_be_is_refused(place: Place, wanted: Any) -> None:
    with pytest.raises(ValueError, match="expected a generation such as 17"):
        place.registry.open_stored("Moving", pin=wanted)


def test_a_generation_that_is_gone_is_named_with_those_that_are_there(place: Place) -> None:
    place.replace(2)
    for wanted in (17, "v9"):
        with pytest.raises(GenerationNotFoundError, match=r"there are 2 \(v1, current\), 1 \(v1, kept\)"):
            place.registry.open_stored("Moving", pin=wanted)
    with pytest.raises(ValueError, match="read-only"):
        place.registry.open_stored("Moving", pin=1, read_only=False)
    with pytest.raises(SegmentConflictError, match="is current"):
        place.registry.generations("Moving")[0].drop()


def test_discarding_a_segment_takes_its_kept_and_pinned_generations_along(place: Place) -> None:
    place.replace(2)
    with place.registry.open_stored("Moving", pin=1) as old, place.registry.open_stored("Moving", pin=2) as new:
        with place.writer() as segment:
            place.registry.discard(segment)
        assert place.files() == 0
        assert (counter(old), counter(new)) == (1, 2)  # The memory stays until they let go.
        new.unpin()
        with pytest.raises(SegmentNotFoundError):
            new.pin()


def test_kept_generations_of_a_line_that_is_gone_are_reclaimed(place: Place) -> None:
    place.replace(2)
    name = place.registry.node.current("Moving")
    assert name is not None
    assert place.registry.node.clear("Moving", expected=name)
    with WatchdogState(place.registry.backend, shm_dir=place.shm_dir) as watchdog:
        reclaimed = [file for _ in range(2) for file in watchdog.run_one_tick().reclaimed]
    assert {parse_kept(Path(file.name)) is not None for file in reclaimed} == {True, False}
    assert place.files() == 0


def test_nodes_keep_apart(place: Place, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with SegmentRegistry(place.store, shm_dir=other, keep_generations=0).create(version(1), capacity=10) as segment:
        layout.insert_many(segment, table(version(1), 1))
    place.replace(2)
    assert len(place.registry.generations("Moving")) == 2
    assert len(SegmentRegistry(place.store, shm_dir=other).generations("Moving")) == 1


def hold_pin(store: str, shm_dir: str, ready: str) -> None:
    segment = SegmentRegistry(store, shm_dir=shm_dir).open_current(version(1), pin="current")
    assert counter(segment) == 1
    Path(ready).touch()
    time.sleep(600)


def test_a_pin_ends_with_its_process(tmp_path: Path) -> None:
    place, ready = Place(tmp_path, keep_generations=0), tmp_path / "ready"
    process = start(hold_pin, str(place.store), str(place.shm_dir), str(ready))
    until(ready.exists)
    place.replace(2)
    place.tick()
    old = place.registry.generations("Moving")[1]
    assert (old.number, old.state, old.is_pinned) == (1, "replaced", True)
    [holder] = presence.pinning_processes([old.path])[old.path]
    assert holder.pid == process.pid
    kill(process)
    until(lambda: not is_pinned(old.path))
    place.tick()
    assert place.files() == 1
    place.registry.backend.close()


def die_before_keeping(store: str, shm_dir: str) -> None:
    """Replace the rows, and be killed after the flip, where the old generation would be kept."""
    writer.keep = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    Place.opened(SegmentRegistry(store, shm_dir=shm_dir, keep_generations=2)).replace(5)


def test_a_writer_that_dies_before_it_keeps_the_old_generation_loses_the_way_back_alone(tmp_path: Path) -> None:
    place = Place(tmp_path, keep_generations=2)
    process = start(die_before_keeping, str(place.store), str(place.shm_dir))
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert place.states() == [(2, "current", False), (1, "replaced", False)]
    assert counter_of(place, "current") == 5
    place.tick()
    assert (place.states(), place.files()) == ([(2, "current", False)], 1)
    place.replace(6)
    assert [state for _, state, _ in place.states()] == ["current", "kept"]
    place.registry.backend.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "generation"
    path.write_bytes(b"rows")
    return path


def test_of_a_pin_and_a_removal_one_comes_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runs to its end at every step of the other: the file stays if it is pinned, and is not pinned if it goes."""
    held: list[Pin | None] = []

    def between(module: Any, name: str, action: Callable[[], Any], *, before: bool) -> None:
        real = getattr(module, name)

        def stepped(*arguments: Any) -> Any:
            monkeypatch.setattr(module, name, real)
            if before:
                action()
            result = real(*arguments)
            if not before:
                action()
            return result

        monkeypatch.setattr(module, name, stepped)

    for before in (True, False):
        for step in ("open", "fcntl"):
            module = pins.os if step == "open" else record_locks.fcntl
            path.write_bytes(b"rows")
            gone: list[bool] = []
            between(module, step, lambda gone=gone: gone.append(remove_unpinned(path)), before=before)  # type: ignore[misc]
            pin = Pin.try_acquire(path)
            assert gone == [not path.exists()]
            assert (pin is not None) == path.exists() == is_pinned(path)
            if pin is not None:
                pin.release()
            path.write_bytes(b"rows")
            held.clear()
            between(module, step, lambda: held.append(Pin.try_acquire(path)), before=before)
            removed = remove_unpinned(path)
            assert removed == (held[0] is None) == (not path.exists())
            for one in held:
                if one is not None:
                    one.release()


def test_a_pin_asks_for_no_pause_and_a_question_for_a_pause_pins_nothing(place: Place) -> None:
    with place.writer() as segment, place.registry.open_current(version(1)) as reader:
        segment.acquire_writer_lease()
        path = segment.current_view().path
        with reader.pin():
            assert (is_pinned(path), segment.is_pause_asked) == (True, False)
        asking = Asking(path)
        assert (is_pinned(path), segment.is_pause_asked) == (False, True)
        assert presence.pinning_processes([path]) == {}
        assert remove_unpinned(path)
        asking.end()


def test_a_pin_that_meets_a_follow_wins(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread follows to a new generation; before it is done, another has followed as well, and pinned it."""
    with place.registry.open_current(version(1)) as reader:
        seen = reader.current_view()
        place.replace(2)
        real = pinnable.newest

        def slowly(*arguments: Any, **more: Any) -> Any:
            monkeypatch.setattr(pinnable, "newest", real)
            reader.pin()
            return real(*arguments, **more)

        monkeypatch.setattr(pinnable, "newest", slowly)
        assert reader.follow(seen).pinned
        place.replace(3)
        assert counter(reader) == 2


def test_files_that_cannot_be_locked_say_so(tmp_path: Path) -> None:
    assert Pin.try_acquire(tmp_path / "nothing") is None
    assert remove_unpinned(tmp_path / "nothing")
    assert not is_pinned(tmp_path / "nothing")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(SharedMemoryError, match="link"):
        Pin.try_acquire(tmp_path / "link")
    with pytest.raises(SharedMemoryError, match="link"):
        remove_unpinned(tmp_path / "link")


def test_upgrades_keep_what_is_asked_for(place: Place) -> None:
    schemas: list[Schema] = [version(1), version(2), version(3)]
    for old, new in itertools.pairwise(schemas):
        upgrade_schema(old, new, place.registry)
    assert [one.schema_version for one in place.registry.generations("Moving")] == [3, 2, 1]
    with place.registry.open_current(version(1), pin="v1") as old_reader:
        # Fields that the upgrades dropped are there.
        assert read(old_reader, IDS[:1]).to_pylist()[0]["new_in_0"] == 1.0
    assert len(kept_files(place.shm_dir, place.writer().current_view().segment_name)) == 2
