"""Changes of a small file that several processes make in turn: one that is frozen neither holds up nor overwrites."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quorin.engine.memory import turns
from quorin.engine.memory.access import Access
from quorin.engine.memory.lock import FileLock
from quorin.engine.memory.turns import replace_in_turn
from quorin.errors import SharedMemoryError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "counter"


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "FROZEN_AFTER_SECONDS", 0.2)


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def append(path: Path, letter: str, before: Callable[[], object] = lambda: None) -> bool:
    """Put a letter behind the text, once: what waits for its turn with a letter that is there changes nothing."""

    def change() -> tuple[str, Access] | None:
        text = text_of(path)
        before()
        return None if letter in text else (text + letter, Access())

    return replace_in_turn(path, change)


def freeze_self() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.fixture(params=["while it decides", "before the rename"])
def frozen(request: pytest.FixtureRequest, path: Path) -> Iterator[int]:
    """A process that is frozen in its turn, in which it puts an ``f`` behind the text; it ends with 1 if it did."""
    replace_in_turn(path, lambda: ("0", Access()))
    pid = os.fork()
    if not pid:
        rename, stops = Path.rename, iter([freeze_self])  # Once: it may get another turn.
        stop: Callable[[], object] = lambda: next(stops, int)()  # noqa: E731
        if request.param == "before the rename":
            Path.rename = lambda *names: (stop(), rename(*names))[1]  # type: ignore[method-assign,assignment]
            os._exit(append(path, "f"))
        os._exit(append(path, "f", stop))
    os.waitpid(pid, os.WUNTRACED)
    yield pid
    os.kill(pid, signal.SIGCONT)
    assert os.WEXITSTATUS(os.waitpid(pid, 0)[1]) == 1


def test_text_is_replaced_whole_for_its_owner_alone(path: Path) -> None:
    assert append(path, "a")
    assert append(path, "é")
    assert not append(path, "a")
    assert path.read_text() == "aé"
    assert {one.name for one in path.parent.iterdir()} == {"counter", "counter.lock"}
    assert {stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()} == {0o600}


def test_a_change_that_fails_leaves_the_file_and_the_turn(path: Path) -> None:
    append(path, "a")

    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        append(path, "b", fail)
    assert append(path, "b")
    assert path.read_text() == "ab"


def test_a_frozen_process_is_overtaken_and_goes_on_from_the_new_text(path: Path, frozen: int) -> None:
    assert append(path, "a")
    assert append(path, "b"), "and nobody waits for it a second time"
    os.kill(frozen, signal.SIGCONT)
    os.waitid(os.P_PID, frozen, os.WEXITED | os.WNOWAIT)
    assert path.read_text() == "0abf"


def test_a_frozen_process_that_has_nothing_left_to_change_changes_nothing(path: Path) -> None:
    pid = os.fork()
    if not pid:
        stops = iter([freeze_self])
        os._exit(append(path, "f", lambda: next(stops, int)()))
    os.waitpid(pid, os.WUNTRACED)
    assert append(path, "f")
    assert append(path, "a")
    os.kill(pid, signal.SIGCONT)
    assert os.WEXITSTATUS(os.waitpid(pid, 0)[1]) == 0
    assert path.read_text() == "fa"


def test_two_that_overtake_at_once_lose_no_change(path: Path, frozen: int) -> None:
    letters = "uvwxyz"
    threads = [threading.Thread(target=append, args=(path, letter)) for letter in letters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(path.read_text()) == ["0", *letters]


def test_a_turn_of_one_that_lives_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "FROZEN_AFTER_SECONDS", 60.0)
    append(path, "a")
    lock = FileLock.try_acquire(path.with_suffix(".lock"))
    assert lock is not None
    waiting = threading.Thread(target=append, args=(path, "b"))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    lock.release()
    waiting.join(60)
    assert path.read_text() == "ab"


def test_what_a_killed_process_left_is_removed(path: Path) -> None:
    left, other = path.with_name("counter.0123abcd.pending"), path.with_name("counter.serve-0123abcd.pending")
    left.touch()
    other.touch()
    assert append(path, "a")
    assert (left.exists(), other.exists()) == (False, True)


def test_a_directory_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(SharedMemoryError, match=rf"cannot make {tmp_path}/gone/counter.lock: No such file"):
        append(tmp_path / "gone" / "counter", "a")
