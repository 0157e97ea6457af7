"""What the control plane and the log promise, whichever implementation keeps it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from quorin.engine.backend import Backend, Beginning, Bounds, DeadLetter, Fence, Log, connect
from quorin.errors import ConnectionFailedError, LogFullError, WriterFencedError
from tests.support.forking import context, preload

preload(__name__)


# The control plane


def test_nothing_was_stored_by_an_earlier_release(backend: Backend) -> None:
    assert backend.control.legacy_currents() == {}


def test_a_dropped_schema_is_remembered_until_it_is_stored_again(backend: Backend) -> None:
    control = backend.control
    assert control.dropped_schemas() == set()
    control.put_schema("Trip", "{}")
    control.put_schema("Other", "{}")
    assert control.drop_schema("Trip")
    assert not control.drop_schema("Nothing")
    assert not control.drop_schema("Other", expected="{1}")
    assert control.dropped_schemas() == {"Trip"}
    assert not control.swap_schema("Trip", "{2}", expected="{1}")
    assert control.dropped_schemas() == {"Trip"}
    assert control.swap_schema("Trip", "{2}", expected=None)
    assert control.dropped_schemas() == set()
    assert control.drop_schema("Trip", expected="{2}")
    control.put_schema("Trip", "{3}")
    assert control.dropped_schemas() == set()


def test_a_lost_schema_is_restored_and_a_dropped_one_is_not(backend: Backend) -> None:
    control = backend.control
    assert control.restore_schema("Trip", "{1}", beginning=Beginning(5, 6))
    assert control.beginnings() == {"Trip": Beginning(5, 6)}
    assert not control.restore_schema("Trip", "{2}", beginning=None)
    assert control.schemas() == {"Trip": "{1}"}
    control.drop_schema("Trip")
    assert not control.restore_schema("Trip", "{1}", beginning=Beginning(5, 6))
    assert (control.schemas(), control.beginnings(), control.dropped_schemas()) == ({}, {}, {"Trip"})


def test_a_schema_begins_where_it_was_first_stored(backend: Backend) -> None:
    control, far = backend.control, Beginning(2**62, 2**62 + 3)
    assert control.beginnings() == {}
    assert control.swap_schema("Trip", "{1}", expected=None, beginning=far)
    control.put_schema("Other", "{}", beginning=Beginning(1, 2))
    control.put_schema("Plain", "{}")
    assert control.swap_schema("Trip", "{2}", expected="{1}"), "an upgrade leaves the beginning as it is"
    assert not control.swap_schema("Trip", "{3}", expected="{1}", beginning=Beginning(3, 4))
    assert control.beginnings() == {"Trip": far, "Other": Beginning(1, 2)}
    control.drop_schema("Trip")
    assert control.beginnings() == {"Other": Beginning(1, 2)}


def test_a_wiped_control_plane_gets_its_identity_back(backend: Backend) -> None:
    assert backend.control.identity(remembered=77) == 77
    assert backend.control.identity(remembered=78) == 77 == backend.control.identity()


def test_positions_of_replicas_stay_when_their_process_ends(backend: Backend) -> None:
    control = backend.control
    assert control.replicas() == {}
    control.announce("a:1:2", "{}", node="n1", positions={"Trip": 2**61, "a b": 5})
    control.announce("b:1:2", "{}", node="n2", positions={"Trip": 7})
    control.announce("c:1:2", "{}", node="n3")
    control.withdraw("a:1:2")
    found = control.replicas()
    assert {key: one.position for key, one in found.items()} == {
        ("n1", "Trip"): 2**61,
        ("n1", "a b"): 5,
        ("n2", "Trip"): 7,
    }
    assert all(0 <= one.silent_seconds < 600 for one in found.values())
    control.announce("d:1:2", "{}", node="n2", positions={"Trip": 3})
    assert control.replicas()["n2", "Trip"].position == 3
    control.hold("n2", "Trip", 2)
    control.hold("n4", "a b", 0)
    assert control.replicas()["n2", "Trip"].position == 2
    assert control.replicas()["n4", "a b"].position == 0
    assert 0 <= control.replicas()["n4", "a b"].silent_seconds < 600
    control.forget_replica("n4", "a b")
    control.forget_replica("n1", "Trip")
    assert set(control.replicas()) == {("n1", "a b"), ("n2", "Trip")}


def test_reports_age_by_the_store_s_clock(backend: Backend) -> None:
    assert backend.control.silences() == {}
    backend.control.announce("a:1:2", "{}")
    time.sleep(0.05)
    backend.control.announce("b:1:2", "{}")
    silences = backend.control.silences()
    assert 0 <= silences["b:1:2"] < silences["a:1:2"] < 600
    backend.control.withdraw("a:1:2")
    assert set(backend.control.silences()) == {"b:1:2"}


def test_a_schema_is_swapped_only_as_expected(backend: Backend) -> None:
    control = backend.control
    assert not control.swap_schema("Trip", "{2}", expected="{1}")
    assert control.swap_schema("Trip", "{1}", expected=None)
    assert not control.swap_schema("Trip", "{2}", expected=None)
    assert not control.swap_schema("Trip", "{2}", expected="{é}")
    assert control.swap_schema("Trip", "{é}", expected="{1}")
    assert control.schemas() == {"Trip": "{é}"}


def test_a_namespace_keeps_its_identity_and_shares_it_with_no_other(connection: str, backend: Backend) -> None:
    identity = backend.control.identity()
    assert 0 < identity < 2**63
    again, other = connect(connection), connect(connection, namespace="other")
    assert again.control.identity() == identity == backend.control.identity()
    assert other.control.identity() not in (0, identity)
    again.close()
    other.close()


def test_schemas_are_kept_replaced_and_dropped(backend: Backend) -> None:
    control = backend.control
    control.put_schema("Trip", '{"name":"Trip","é":1}')
    control.put_schema("Other", "{}")
    control.put_schema("Other", "{ }")
    assert control.schemas() == {"Trip": '{"name":"Trip","é":1}', "Other": "{ }"}
    assert not control.drop_schema("Other", expected="{}")
    assert control.drop_schema("Other", expected="{ }")
    control.put_schema("Other", "{}")
    assert control.drop_schema("Other")
    assert not control.drop_schema("Other")
    assert not control.drop_schema("Other", expected="{}")
    assert list(control.schemas()) == ["Trip"]


def test_namespaces_do_not_see_each_other(connection: str, backend: Backend) -> None:
    other = connect(connection, namespace="other")
    backend.control.put_schema("Trip", "{}", beginning=Beginning(1, 2))
    backend.control.put_schema("Gone", "{}")
    backend.control.drop_schema("Gone")
    backend.control.announce("a:1:2", "{}")
    backend.log().append([("Trip", b"x")])
    backend.log().bury(1, b"x", "bad")
    assert other.control.schemas() == other.control.beginnings() == other.control.silences() == {}
    assert other.control.dropped_schemas() == set()
    assert other.log().bounds() == Bounds(0, 0)
    assert other.log().dead_letters() == []
    assert other.log().identity() != backend.log().identity()
    other.close()


def test_everything_outlives_the_connection(connection: str, backend: Backend) -> None:
    backend.control.put_schema("Trip", "{}")
    positions = backend.log().append([("Trip", b"x")])
    identity = backend.log().identity()
    backend.close()
    again = connect(connection)
    assert again.control.schemas() == {"Trip": "{}"}
    assert again.log().read(0).entries == [(positions[0], b"x")]
    assert again.log().identity() == identity
    again.close()


# The log


def test_a_new_log_is_empty(backend: Backend) -> None:
    log = backend.log()
    assert log.stream_key == "quorin:wal"
    assert log.bounds() == Bounds(0, 0)
    assert log.read(0).entries == []
    assert log.read(0).through == 0
    assert 0 < log.identity() < 2**63
    assert log.bounds() == Bounds(0, 0)
    assert log.trim(5) == 0


def test_entries_are_read_in_order_with_growing_positions(backend: Backend) -> None:
    log = backend.log()
    positions = log.append([("A", b"1"), ("B", b"2")]) + log.append([("A", bytes(range(256)))])
    assert positions == sorted(set(positions))
    assert positions[0] > 0
    assert positions[-1] < 2**63
    result = log.read(0)
    assert result.entries == [(positions[0], b"1"), (positions[1], b"2"), (positions[2], bytes(range(256)))]
    assert result.through == positions[2]
    assert log.read(positions[1]).entries == [(positions[2], bytes(range(256)))]
    assert log.read(positions[2]).entries == []
    assert log.read(positions[2]).through == positions[2]
    assert log.bounds() == Bounds(positions[0], positions[2])


def test_nothing_appended_is_nothing_done(backend: Backend) -> None:
    assert backend.log().append([]) == []
    assert backend.log().bounds() == Bounds(0, 0)


def test_logs_of_other_names_are_apart(backend: Backend) -> None:
    backend.log().append([("A", b"1")])
    other = backend.log("other:wal")
    assert other.bounds() == Bounds(0, 0)
    (position,) = other.append([("A", b"2")])
    assert other.read(0).entries == [(position, b"2")]
    assert other.trim(position) == 1
    assert len(backend.log().read(0).entries) == 1
    assert other.identity() != backend.log().identity()


@pytest.mark.parametrize("name", ["", "a b", "{x}", None, 5, "ä", "schemas", "quorin:wal:identity", "wal:dead:reasons"])
def test_names_that_would_make_other_keys_are_refused(backend: Backend, name: Any) -> None:
    with pytest.raises(ConnectionFailedError, match="stream key"):
        backend.log(name)


def test_other_schemas_are_left_out_and_passed_over(backend: Backend) -> None:
    log = backend.log()
    positions = log.append([("A", b"1"), ("B", b"2"), ("A", b"3"), ("C", b"4")])
    result = log.read(0, schema_names=["A"])
    assert result.entries == [(positions[0], b"1"), (positions[2], b"3")]
    assert result.through == positions[3]
    result = log.read(positions[0], schema_names={"B", "C"})
    assert result.entries == [(positions[1], b"2"), (positions[3], b"4")]
    assert log.read(0, schema_names=["D"]).entries == []
    assert log.read(0, schema_names=["D"]).through == positions[3]


def read_entries(backend: Backend, **limits: Any) -> list[tuple[int, bytes]]:
    """Read in steps, as a consumer does."""
    log, after, entries = backend.log(), 0, []
    while True:
        result = log.read(after, **limits)
        if result.through == after:
            return entries
        assert all(after < position <= result.through for position, _ in result.entries)
        entries += result.entries
        after = result.through


def read_all(backend: Backend, **limits: int) -> list[bytes]:
    return [payload for _, payload in read_entries(backend, **limits)]


def test_reads_in_steps_miss_nothing(backend: Backend) -> None:
    written = [bytes([i]) * 2000 for i in range(50)]
    backend.log().append([("A", payload) for payload in written])
    assert read_all(backend, max_entries=7) == written
    assert read_all(backend, max_bytes=5000) == written
    assert read_all(backend, max_bytes=1) == written
    assert len(backend.log().read(0, max_entries=3).entries) == 3
    assert len(backend.log().read(0, max_bytes=5000).entries) <= 3


def test_a_waiting_read_returns_with_the_entry(backend: Backend) -> None:
    log = backend.log()
    started = time.monotonic()
    assert log.read(0, block_ms=100).entries == []
    assert time.monotonic() - started >= 0.09
    thread = threading.Timer(0.1, log.append, [[("A", b"late")]])
    thread.start()
    assert [payload for _, payload in log.read(0, block_ms=10_000).entries] == [b"late"]
    assert time.monotonic() - started < 9
    thread.join()


def test_trimmed_entries_are_gone_and_count_for_the_end(backend: Backend) -> None:
    log = backend.log()
    positions = log.append([("A", b"1"), ("A", b"2"), ("A", b"3")])
    identity = log.identity()
    assert log.trim(positions[1]) == 2
    assert log.bounds() == Bounds(positions[2], positions[2], positions[1])
    assert log.trim(positions[2]) == 1
    assert log.bounds() == Bounds(0, positions[2], positions[2])
    assert log.trim(2**62) == 0
    assert log.bounds().trimmed == positions[2]
    assert log.read(0).entries == []
    assert log.identity() == identity
    assert log.append([("A", b"4")])[0] > positions[2]


def test_a_full_log_takes_all_or_nothing(backend: Backend) -> None:
    log = backend.log()
    positions = log.append([("A", b"1"), ("A", b"2")], max_entries=3)
    with pytest.raises(LogFullError, match=r"has 2 entries, the limit is 3"):
        log.append([("A", b"3"), ("A", b"4")], max_entries=3)
    assert len(log.read(0).entries) == 2
    log.append([("A", b"3")], max_entries=3)
    with pytest.raises(LogFullError):
        log.append([("A", b"4")], max_entries=3)
    log.trim(positions[0])
    log.append([("A", b"4")], max_entries=3)


def append_until_full(log: Log, limit: int) -> list[int]:
    positions: list[int] = []
    while len(positions) <= limit:
        try:
            positions += log.append([("A", b"1")], max_entries=limit)
        except LogFullError:
            return positions
    return positions


def append_from_threads(log: Log, limit: int) -> list[int]:
    taken: list[int] = []
    threads = [threading.Thread(target=lambda: taken.extend(append_until_full(log, limit))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


def test_single_entries_end_exactly_at_the_limit(backend: Backend) -> None:
    log = backend.log()
    positions = append_until_full(log, 300)
    assert log.sizes()[0] == len(positions) == 300
    log.trim(positions[99])
    assert len(append_until_full(log, 300)) == 100
    assert log.sizes()[0] == 300


def test_threads_end_exactly_at_the_limit(backend: Backend) -> None:
    log = backend.log()
    taken = append_from_threads(log, 500)
    assert log.sizes()[0] == len(set(taken)) == 500


def test_what_others_appended_meanwhile_counts_near_the_limit(backend: Backend) -> None:
    log, other = backend.log(), backend.log()
    for _ in range(8):
        log.append([("A", b"1")], max_entries=4_000)
    other.append([("A", b"2")] * 3_992, max_entries=4_000)
    with pytest.raises(LogFullError, match="has 4000 entries"):
        log.append([("A", b"1")], max_entries=4_000)
    with pytest.raises(LogFullError, match="has 4000 entries"):
        log.append_and_read("A", b"1", after=0, max_entries=4_000)


def test_single_entries_that_begin_far_from_the_limit_end_exactly_at_it(backend: Backend) -> None:
    log = backend.log()
    log.append([("A", b"0")] * 5_000)
    taken = append_from_threads(log, 9_300)
    assert log.sizes()[0] == 9_300
    assert len(set(taken)) == 4_300


def test_single_entries_are_read_in_the_order_of_their_positions(backend: Backend) -> None:
    log = backend.log()
    written = [(f"T{number % 3}", bytes([number]) * number) for number in range(200)]
    positions = [log.append([entry])[0] for entry in written]
    assert read_entries(backend) == list(zip(positions, (payload for _, payload in written), strict=True))
    assert positions == sorted(set(positions))
    ours = read_entries(backend, schema_names=["T1"])
    assert [payload for _, payload in ours] == [p for n, p in written if n == "T1"]


def test_a_log_wiped_between_single_entries_is_another_log(backend: Backend, wipe: Callable[[], None]) -> None:
    log = backend.log()
    for _ in range(10):
        log.append([("A", b"1")])
    identity = log.identity()
    wipe()
    for _ in range(10):
        log.append([("A", b"2")])
    assert log.identity() != identity
    assert [payload for _, payload in log.read(0).entries] == [b"2"] * 10


def test_an_append_sees_what_its_schema_has_behind_a_position(backend: Backend) -> None:
    log = backend.log()
    assert log.append_and_read("A", b"0", after=0)[1] is None, "the control plane does not know the schema"
    backend.control.put_schema("A", "schema of A")
    for number in range(100):
        after = log.bounds().last
        position, tail = log.append_and_read("A", b"%d" % number, after=after)
        assert tail is not None
        assert (tail.identity, tail.trimmed, tail.schema, tail.after) == (log.identity(), 0, "schema of A", after)
        assert (tail.found.entries, tail.found.through) == ([(position, b"%d" % number)], position)
    assert read_all(backend) == [b"0", *(b"%d" % number for number in range(100))]


def test_an_append_sees_all_or_nothing_of_what_lies_between(backend: Backend) -> None:
    log, seen = backend.log(), 0
    backend.control.put_schema("A", "schema of A")
    after = log.append([("A", b"first")])[0]
    log.read(0)
    betweens = (0, 1, 2, 3, 5, 8, 40)
    for between in betweens:
        for number in range(between):
            log.append([("AB"[number % 2], b"%d" % number)])
        position, tail = log.append_and_read("A", b"own", after=after)
        if tail is not None:
            seen += 1
            found = log.read(after, schema_names=["A"])
            assert (tail.found.entries, tail.found.through) == (found.entries, found.through)
        assert between > 1 or tail is not None
        after = position
    assert seen < len(betweens)
    log.trim(after)
    _, tail = log.append_and_read("A", b"last", after=after)
    assert tail is not None
    assert tail.trimmed == after


def test_an_append_that_sees_fails_at_the_limit_as_others_do(backend: Backend) -> None:
    log = backend.log()
    backend.control.put_schema("A", "schema of A")
    for number in range(20):
        log.append_and_read("A", b"%d" % number, after=0, max_entries=20)
    with pytest.raises(LogFullError, match="has 20 entries, the limit is 20"):
        log.append_and_read("A", b"one too many", after=0, max_entries=20)
    assert len(read_all(backend)) == 20


def test_what_was_wiped_before_an_append_is_not_seen(backend: Backend, wipe: Callable[[], None]) -> None:
    log = backend.log()
    backend.control.put_schema("A", "schema of A")
    for _ in range(10):
        position, tail = log.append_and_read("A", b"1", after=0)
    assert tail is None or tail.identity == log.identity()
    identity = log.identity()
    wipe()
    _, tail = log.append_and_read("A", b"2", after=position)
    assert tail is None
    assert log.identity() != identity
    assert read_all(backend) == [b"2"]


def test_the_state_of_a_log_is_its_identity_and_its_bounds(backend: Backend) -> None:
    log = backend.log("new")
    assert log.state() == (log.identity(), Bounds(0, log.bounds().last))
    positions = log.append([("A", b"1"), ("A", b"2")])
    log.trim(positions[0])
    assert log.state() == (log.identity(), Bounds(positions[1], positions[1], positions[0]))


def test_one_historian_at_a_time_holds_the_lease(backend: Backend) -> None:
    log = backend.log()
    assert log.historian() is None
    assert not log.release_historian("a")
    first = log.acquire_historian("a", 3_600_000)
    assert first is not None
    assert log.acquire_historian("b", 3_600_000) is None
    assert log.acquire_historian("b", 3_600_000, replacing="c") is None
    assert log.acquire_historian("a", 3_600_000) == first, "renewing keeps the token"
    held = log.historian()
    assert held is not None
    assert held[0] == "a"
    assert 0 < held[1] <= 3600
    assert not log.release_historian("b")
    assert log.release_historian("a")
    assert log.historian() is None
    second = log.acquire_historian("b", 3_600_000)
    assert second is not None
    assert second > first
    assert backend.log("another").historian() is None, "each log has its own"


def test_a_lease_that_ended_is_taken_over_with_a_larger_token(backend: Backend) -> None:
    log = backend.log()
    first = log.acquire_historian("a", 1)
    assert first is not None
    time.sleep(0.02)
    assert log.historian() is None
    again = log.acquire_historian("a", 1)
    assert again is not None
    assert again > first, "another may have held it meanwhile"
    time.sleep(0.02)
    last = log.acquire_historian("b", 3_600_000)
    assert last is not None
    assert last > again


def test_a_historian_that_was_replaced_or_ran_out_does_not_trim(backend: Backend) -> None:
    log = backend.log()
    positions = log.append([("A", b"1"), ("A", b"2"), ("A", b"3")])
    paused = Fence("a", log.acquire_historian("a", 3_600_000) or 0)
    assert log.trim(positions[0], fence=paused) == 1
    successor = Fence("b", log.acquire_historian("b", 3_600_000, replacing="a") or 0)
    with pytest.raises(WriterFencedError, match=f"lease {paused.token} of 'a' has ended"):
        log.trim(positions[1], fence=paused)
    assert log.bounds().trimmed == positions[0]
    assert log.trim(positions[1], fence=successor) == 1
    assert log.release_historian("b")
    assert log.acquire_historian("a", 1) is not None
    time.sleep(0.02)
    for ended in (successor, paused, Fence("a", successor.token + 1)):
        with pytest.raises(WriterFencedError):
            log.trim(positions[2], fence=ended)
    assert log.bounds() == Bounds(positions[2], positions[2], positions[1])


def test_a_wiped_log_is_another_log(backend: Backend, wipe: Callable[[], None]) -> None:
    log = backend.log()
    (before,) = log.append([("A", b"1")])
    log.trim(before)
    identity = log.identity()
    wipe()
    time.sleep(0.002)  # positions follow the clock's milliseconds
    (after,) = log.append([("A", b"2")])
    assert log.identity() != identity
    assert log.bounds() == Bounds(after, after)
    assert after > before
    assert [payload for _, payload in log.read(0).entries] == [b"2"]
    assert backend.control.schemas() == {}


def test_dead_letters_are_kept_listed_and_removed(backend: Backend) -> None:
    log = backend.log()
    log.bury(9, b"\x00\xff", "undecodable: é")
    log.bury(2, b"x", "first reason")
    log.bury(2, b"y", "second reason")
    assert log.dead_letters() == [DeadLetter(2, b"y", "second reason"), DeadLetter(9, b"\x00\xff", "undecodable: é")]
    assert log.remove_dead_letter(2)
    assert not log.remove_dead_letter(2)
    assert [letter.position for letter in log.dead_letters()] == [9]
    assert log.bounds() == Bounds(0, 0)


# Several threads and processes


def test_sizes_count_entries_and_dead_letters(backend: Backend) -> None:
    log = backend.log()
    assert log.sizes() == (0, 0)
    positions = log.append([("T", b"x"), ("T", b"y"), ("T", b"z")])
    log.bury(positions[0], b"x", "reason")
    assert log.sizes() == (3, 1)
    log.trim(positions[1])
    assert log.sizes() == (1, 1)


def test_facts_say_what_the_store_is(backend: Backend) -> None:
    facts = backend.facts()
    assert facts["kind"] in ("redis", "sqlite")
    assert facts["version"][0].isdigit()
    assert all(isinstance(value, str) for value in facts.values())


def test_the_oldest_dead_letters_make_room(backend: Backend) -> None:
    log = backend.log()
    far = 1 << 61  # positions that a double cannot tell apart
    assert [log.bury(far + i, b"x", "bad", max_letters=3) for i in (1, 3, 2)] == [0, 0, 0]
    assert log.bury(far + 5, b"x", "bad", max_letters=3) == 1
    assert log.bury(9, b"x", "bad", max_letters=3) == 1
    assert [letter.position - far for letter in log.dead_letters()] == [2, 3, 5]


def test_processes_announce_themselves_and_are_withdrawn(backend: Backend) -> None:
    assert backend.control.processes() == {}
    backend.control.announce("host:1:2", "first")
    backend.control.announce("host:1:2", "second")
    backend.control.announce("é:3:4", "{}")
    assert backend.control.processes() == {"host:1:2": "second", "é:3:4": "{}"}
    assert backend.control.withdraw("host:1:2")
    assert not backend.control.withdraw("host:1:2")
    assert backend.control.processes() == {"é:3:4": "{}"}


def append_many(connection: str, name: str, count: int) -> None:
    backend = connect(connection)
    for number in range(count):
        backend.log().append([(name, f"{name}{number}-{part}".encode()) for part in range(2)])
    backend.close()


def test_processes_append_at_once_and_nothing_is_lost_or_torn_apart(connection: str, backend: Backend) -> None:
    names = [f"W{i}" for i in range(3)]
    writers = [context.Process(target=append_many, args=(connection, name, 40)) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    everything = read_all(backend)
    assert len(everything) == 3 * 40 * 2
    for name in names:
        mine = [payload for payload in everything if payload.startswith(name.encode())]
        assert mine == [f"{name}{number}-{part}".encode() for number in range(40) for part in range(2)]
    for first, second in zip(everything[::2], everything[1::2], strict=True):
        assert first[:-1] == second[:-1]


def set_first(connection: str, name: str, results: object) -> None:
    backend = connect(connection)
    if backend.control.swap_schema("Trip", name, expected=None):
        results.put(name)  # type: ignore[attr-defined]
    backend.close()


def test_one_of_several_processes_wins(connection: str, backend: Backend) -> None:
    results = context.Queue()
    racers = [context.Process(target=set_first, args=(connection, f"segment{i}", results)) for i in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert results.get(timeout=60) == backend.control.schemas()["Trip"]
    assert results.empty()


def test_threads_share_a_backend(backend: Backend) -> None:
    def work(name: str) -> None:
        for number in range(20):
            backend.log().append([(name, str(number).encode())])

    threads = [threading.Thread(target=work, args=(f"T{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_all(backend)) == 80


def test_a_forked_child_and_its_parent_go_on(backend: Backend) -> None:
    log = backend.log()
    log.append([("A", b"before")])
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for _ in range(10):
                log.append([("A", b"child")])
            status = 0 if len(log.read(0, max_entries=100).entries) > 10 else 2
        finally:
            os._exit(status)
    for _ in range(10):
        log.append([("A", b"parent")])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    payloads = read_all(backend)
    assert sorted(payloads) == [b"before"] + [b"child"] * 10 + [b"parent"] * 10


def append_until_killed(connection: str, acknowledged: object) -> None:
    log = connect(connection).log()
    number = 0
    while True:
        (position,) = log.append([("A", str(number).encode())])
        acknowledged.send((position, number))  # type: ignore[attr-defined]
        number += 1


def test_what_a_killed_producer_was_told_is_there(connection: str, backend: Backend) -> None:
    for _ in range(3):
        receiver, sender = context.Pipe(duplex=False)
        writer = context.Process(target=append_until_killed, args=(connection, sender))
        writer.start()
        told = [receiver.recv() for _ in range(30)]
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join(60)
        found = dict(read_entries(backend))
        assert all(found[position] == str(number).encode() for position, number in told)


def test_a_closed_backend_says_so(backend: Backend) -> None:
    log = backend.log()
    backend.close()
    backend.close()
    for use in (log.identity, log.bounds, backend.control.schemas, lambda: log.append([("A", b"1")])):
        with pytest.raises(ConnectionFailedError, match="is closed"):
            use()


def test_a_backend_is_taken_as_a_connection(backend: Backend) -> None:
    assert connect(backend) is backend


def test_a_load_is_exchanged_for_the_one_that_is_expected(backend: Backend) -> None:
    control = backend.control
    assert control.loads() == {}
    assert control.swap_load("A", "one", expected=None)
    assert not control.swap_load("A", "two", expected=None)
    assert not control.swap_load("A", "two", expected="other")
    assert control.swap_load("A", "two", expected="one")
    assert control.swap_load("B", "three", expected=None)
    (text, silent), _ = control.loads()["A"], control.loads()["B"]
    assert text == "two"
    assert 0 <= silent < 60
    assert not control.swap_load("A", None, expected="one")
    assert control.swap_load("A", None, expected="two")
    assert set(control.loads()) == {"B"}
    assert all("load A" not in name for name in control.silences())
    assert control.schemas() == {}


def test_one_of_many_that_begin_a_load_at_once_has_it(backend: Backend) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: backend.control.swap_load("A", str(n), expected=None), range(32)))
    assert sum(won) == 1
    assert backend.control.loads()["A"][0] == str(won.index(True))
