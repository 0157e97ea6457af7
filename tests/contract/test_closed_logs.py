"""A closed log refuses appends in the store itself, and is read and trimmed as before."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest

from quorin.engine.backend import Backend, Bounds, Log, connect
from quorin.engine.format.growth import Former, Growth
from quorin.errors import LogClosedError, PartitionCountError

GROWTH = 1


def test_a_closed_log_refuses_appends_and_keeps_its_entries(backend: Backend) -> None:
    log = backend.log()
    tokens = log.append([("Trip", b"one"), ("Trip", b"two")])
    identity = log.identity()
    assert log.close_for_appends(GROWTH) == tokens[-1]
    for append in (
        lambda: log.append([("Trip", b"x")]),
        lambda: log.append([("Trip", b"x"), ("Trip", b"y")]),
        lambda: log.append_and_read("Trip", b"x", after=0),
    ):
        with pytest.raises(LogClosedError, match=r"closed.*nothing was written"):
            append()
    assert log.state(tokens) == (identity, Bounds(tokens[0], tokens[1], is_closed=True))
    assert log.bounds() == log.state()[1]
    assert [payload for _, payload in log.read(0).entries] == [b"one", b"two"]
    assert log.read(0).through == tokens[1]
    assert log.sizes() == (2, 0)


def test_single_appends_within_an_allowance_are_refused_too(backend: Backend, connection: str) -> None:
    control = backend.control
    control.put_schema("Trip", "{}")
    log, closer = backend.log(), connect(connection)
    log.append([("Trip", b"one")])
    last = log.append([("Trip", b"two")])[-1]  # Without the script, on Redis.
    assert closer.log().close_for_appends(GROWTH) == last
    with pytest.raises(LogClosedError):
        log.append([("Trip", b"three")])
    with pytest.raises(LogClosedError):
        log.append_and_read("Trip", b"three", after=last)
    assert log.bounds() == Bounds(log.bounds().first, last, is_closed=True)
    closer.close()


def test_a_closed_log_is_trimmed_to_its_end_and_stays_closed(backend: Backend) -> None:
    log = backend.log()
    tokens = log.append([("Trip", b"one"), ("Trip", b"two")])
    log.close_for_appends(GROWTH)
    assert log.trim(tokens[0]) == 1
    assert log.bounds() == Bounds(tokens[1], tokens[1], tokens[0], is_closed=True)
    assert log.trim(tokens[1] + 1000) == 1
    assert log.bounds() == Bounds(0, tokens[1], tokens[1], is_closed=True)
    assert log.close_for_appends(GROWTH) == tokens[1]
    with pytest.raises(LogClosedError):
        log.append([("Trip", b"x")])
    assert log.read(0).entries == []


def test_a_log_without_entries_can_be_closed(backend: Backend) -> None:
    log = backend.log()
    assert log.close_for_appends(GROWTH) == 0
    assert log.bounds() == Bounds(0, 0, is_closed=True)
    with pytest.raises(LogClosedError):
        log.append([("Trip", b"x")])
    assert log.reopen_for_appends(GROWTH)
    assert log.append([("Trip", b"x")])[-1] > 0


def test_a_reopened_log_goes_on_behind_its_last_entry(backend: Backend) -> None:
    log = backend.log()
    assert not log.reopen_for_appends(0)
    before = log.append([("Trip", b"one")])[-1]
    log.close_for_appends(GROWTH)
    identity = log.identity()
    assert log.reopen_for_appends(GROWTH)
    assert not log.reopen_for_appends(GROWTH)
    after = log.append([("Trip", b"two")])[-1]
    assert after > before
    assert log.state() == (identity, Bounds(before, after))


def test_a_growth_that_was_ended_cannot_close_the_log(backend: Backend) -> None:
    log = backend.log()
    log.append([("Trip", b"one")])
    assert log.close_for_appends(1)
    log.reopen_for_appends(1)
    assert log.close_for_appends(1) is None, "a process that slept since the growth was ended"
    assert not log.bounds().is_closed
    assert log.close_for_appends(2)
    assert not log.reopen_for_appends(1), "one that slept since an earlier growth was ended"
    assert log.bounds().is_closed
    assert log.reopen_for_appends(2)
    assert log.close_for_appends(1) is None


def test_a_closed_log_says_which_growth_closed_it(backend: Backend) -> None:
    log = backend.log()
    assert log.closed_by() is None
    log.append([("Trip", b"one")])
    assert log.closed_by() is None
    log.close_for_appends(1, ("quorin:wal", "other"))
    closed = log.closed_by()
    assert closed is not None
    # SQLite has the names in the control plane, which is in the same file.
    assert (closed.growth, closed.stream_keys) == (1, ("quorin:wal", "other") if backend.is_remote else ())
    log.close_for_appends(2)
    assert log.closed_by() == closed
    log.reopen_for_appends(2)
    assert log.closed_by() is None
    log.close_for_appends(3)
    assert log.closed_by() == (3, ())


def test_a_new_log_begins_behind_a_position(backend: Backend) -> None:
    log = backend.log("other")
    far = (time.time_ns() // 1_000_000 + 1000) << 20 | 5  # Ahead of the clock, as another machine's may be.
    identity = log.begin_behind(far)
    assert identity == log.identity()
    assert log.bounds() == Bounds(0, far, far)
    assert log.begin_behind(far - 10) == identity
    assert log.bounds() == Bounds(0, far, far)
    assert log.begin_behind(far + 10) == identity, "by a second growth, when the first was ended"
    assert log.state([far + 10]) == (identity, Bounds(0, far + 10, far + 10))
    assert log.append([("Trip", b"one")])[-1] > far + 10
    assert [payload for _, payload in log.read(far + 10).entries] == [b"one"]


def test_a_log_that_has_entries_keeps_them_and_goes_on_behind_a_position(backend: Backend) -> None:
    log = backend.log()
    position = log.append([("Trip", b"one")])[-1]
    log.begin_behind(position + 1000)
    assert log.bounds() == Bounds(position, position + 1000)
    assert [payload for _, payload in log.read(0).entries] == [b"one"]
    assert log.append([("Trip", b"two")])[-1] > position + 1000


def test_entries_behind_a_position_of_a_closed_log_are_removed(backend: Backend) -> None:
    log = backend.log()
    assert log.cut(0, 1 << 60) == 0
    one, two, three = log.append([("Trip", b"one"), ("Trip", b"two"), ("Trip", b"three")])
    assert log.cut(one, three) == 0, "a log that takes appends stays as it is"
    log.close_for_appends(GROWTH)
    assert log.cut(one, two) == 1
    assert log.bounds() == Bounds(one, three, is_closed=True)
    assert log.cut(one, three) == 1
    assert log.bounds() == Bounds(one, one, is_closed=True)
    assert log.cut(one, three) == 0
    assert [payload for _, payload in log.read(0).entries] == [b"one"]
    assert log.sizes() == (1, 0)
    with pytest.raises(LogClosedError):
        log.append([("Trip", b"x")])


def test_a_closed_log_without_entries_ends_where_it_was_trimmed(backend: Backend) -> None:
    log = backend.log()
    one, two = log.append([("Trip", b"one"), ("Trip", b"two")])
    log.trim(one)
    log.close_for_appends(GROWTH)
    assert log.cut(one, two) == 1
    assert log.bounds() == Bounds(0, one, one, is_closed=True)


def test_a_reader_that_waits_at_the_end_sleeps_on(backend: Backend) -> None:
    log = backend.log()
    last = int(log.append([("Trip", b"one")])[-1])
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(log.read(last, block_ms=300)))
    waiting.start()
    log.close_for_appends(GROWTH)
    waiting.join(30)
    assert [result.entries for result in found] == [[]]  # type: ignore[attr-defined]


def test_no_append_comes_behind_the_closing(backend: Backend, connection: str) -> None:
    """Writers race with the closing: what one of them was told is in the log at or before the last position."""
    backend.log().append([("Trip", b"first")])
    written: list[int] = []

    def write(log: Log) -> None:
        while True:
            try:
                written.extend(log.append([("Trip", b"x")]))
            except LogClosedError:
                return

    backends = [connect(connection) for _ in range(3)]
    writers = [threading.Thread(target=write, args=(one.log(),)) for one in backends]
    for writer in writers:
        writer.start()
    while len(written) < 100:
        time.sleep(0.001)
    last = backend.log().close_for_appends(GROWTH)
    for writer in writers:
        writer.join(60)
    assert last is not None
    assert max(written) == last
    after, found = 0, set()
    while after < last:
        result = backend.log().read(after)
        found |= {position for position, _ in result.entries}
        after = result.through
    assert set(written) <= found
    for one in backends:
        one.close()


def test_a_growth_is_swapped_only_as_expected(backend: Backend) -> None:
    control = backend.control
    assert control.growth() is None
    assert not control.swap_growth("{1}", expected="{0}")
    assert control.swap_growth("{1}", expected=None)
    assert not control.swap_growth("{2}", expected=None, count=2)
    control.put_schema("Trip", "{}")  # From its first schema on, a deployment's number is remembered.
    assert backend.partitions() == 1
    assert control.swap_growth("{é}", expected="{1}", count=2)
    assert control.growth() == "{é}"
    assert backend.partitions() == 1, "it is remembered"
    backend.forget_partitions()
    assert backend.partitions() == 2


def test_logs_of_a_former_number_of_partitions_are_there(backend: Backend) -> None:
    position = backend.log().append([("Trip", b"one")])[-1]
    backend.log().close_for_appends(GROWTH)
    assert backend.control.swap_growth(Growth(former=(Former(1, position),)).to_json(), expected=None, count=2)
    backend.forget_partitions()
    assert [payload for _, payload in backend.log(partition=0, of=1).read(0).entries] == [b"one"]
    with pytest.raises(LogClosedError):
        backend.log(partition=0, of=1).append([("Trip", b"two")])
    assert backend.log(partition=1).append([("Trip", b"three")])


def test_a_number_that_the_deployment_grew_from_may_be_expected(backend: Backend, connection: str) -> None:
    backend.settle_partitions(2)
    grown = Growth(former=(Former(2, 5),)).to_json()
    assert backend.control.swap_growth(grown, expected=None, count=4)
    for expected in (2, 4):
        with closing(connect(connection, partitions=expected)) as other:
            assert other.partitions() == 4
    with closing(connect(connection, partitions=8)) as other, pytest.raises(PartitionCountError, match=r"8 .* has 4"):
        other.partitions()
