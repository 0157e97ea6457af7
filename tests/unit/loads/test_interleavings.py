"""Loads beside whatever may come between two of their steps: lost answers, masters that are away, writers that are
overtaken, commits that are written twice, logs that lose their end.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from quorin import metrics
from quorin.engine.backend import logs
from quorin.engine.backend.protocols import Log
from quorin.engine.consumer import held
from quorin.engine.consumer.lane import Lane
from quorin.engine.format.partition import partition_of
from quorin.engine.loads.coordinator import Coordinator
from quorin.engine.log.open_load import open_loads
from quorin.engine.log.record import Kind, is_of_load, mark, peek
from quorin.engine.memory.writer import Writer
from quorin.engine.rows.batch import to_batch
from quorin.errors import ConnectionFailedError, ReplaceAbortedError, WriterFencedError
from quorin.evolution import replace
from tests.support.partition_nodes import COUNT, new_nodes
from tests.support.world import running, until
from tests.unit.loads.test_partitions import NEW, OLD, ROW, Node, table

AWAY = 2
ELSEWHERE = next(one for one in map("p{}".format, range(99)) if partition_of(one, COUNT) != AWAY)


@pytest.fixture
def new_node(connection: str, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    with new_nodes(Node, connection, tmp_path) as new:
        yield new


@pytest.fixture
def node(new_node: Callable[..., Node]) -> Node:
    made = new_node()
    made.registry.create(ROW, capacity=8).close()
    made.producer.write_many(ROW, table(OLD))
    made.drain()
    return made


@pytest.fixture
def away(node: Node, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is set, nothing reaches the log of one partition."""
    gone = threading.Event()
    kind: Any = type(node.backend.log(partition=AWAY))

    def guarded(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Log, *arguments: Any, **options: Any) -> Any:
            if gone.is_set() and self.partition == AWAY:
                raise ConnectionFailedError("the master of this partition is away")
            return original(self, *arguments, **options)

        return call

    for name in ("read", "state", "bounds", "identity", "append", "acquire_historian"):
        monkeypatch.setattr(kind, name, guarded(getattr(kind, name)))
    append = held.append_marks

    def append_marks(load: Any, backend: Any, marks: dict[int, bytes]) -> Any:
        there = {number: one for number, one in marks.items() if not (gone.is_set() and number == AWAY)}
        results: dict[int, Any] = append(load, backend, there)
        return {number: results.get(number, ConnectionFailedError("away")) for number in marks}

    monkeypatch.setattr(held, "append_marks", append_marks)
    return gone


def marks_in(log: Log) -> Counter[Kind]:
    found = log.read(0, schema_names=["Row"], max_entries=10_000).entries
    return Counter(peek(payload).kind for _, payload in found if is_of_load(payload))


def segments_of(node: Node) -> list[str]:
    return [path.name for path in node.registry.shm_dir.glob("quorin_Row_*") if path.suffix != ".kept"]


def test_an_exchange_whose_answer_was_lost_and_that_is_repeated_has_taken_place(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind: Any = type(node.backend.control)
    swap = kind.swap_load

    def repeated(self: Any, *arguments: Any, **options: Any) -> Any:
        swap(self, *arguments, **options)
        return swap(self, *arguments, **options)

    monkeypatch.setattr(kind, "swap_load", repeated)
    with suppress(InterruptedError), Coordinator(node.backend, ROW):
        raise InterruptedError
    assert node.backend.control.loads() == {}
    replace(ROW, table(NEW), node.registry)
    assert node.served() == NEW
    node.drain()
    assert node.backend.control.loads() == {}


def test_a_commit_is_written_once_while_one_master_is_away(
    node: Node, away: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Coordinator(node.backend, ROW) as load:
        load.append(to_batch(ROW, table(NEW)))
        away.set()
        with pytest.raises(ConnectionFailedError):
            load.commit()
    monkeypatch.setattr(held, "SILENT_SECONDS", 0.0)
    for _ in range(3):
        held.finish_decided(node.backend, "quorin:wal")
    away.clear()
    found = [marks_in(log)[Kind.commit] for log in logs(node.backend)]
    assert found == [0 if number == AWAY else 1 for number in range(COUNT)]
    held.finish_decided(node.backend, "quorin:wal")
    assert [marks_in(log)[Kind.commit] for log in logs(node.backend)] == [1] * COUNT
    node.drain()
    assert node.served() == NEW


def test_an_abort_is_written_once_while_one_master_is_away(node: Node, away: threading.Event) -> None:
    with suppress(InterruptedError), Coordinator(node.backend, ROW):
        away.set()
        raise InterruptedError
    for _ in range(3):
        with pytest.raises(ConnectionFailedError):
            held.abort(open_loads(node.backend.control)["Row"][0], node.backend)
    away.clear()
    assert [marks_in(log)[Kind.abort] for log in logs(node.backend)] == [int(number != AWAY) for number in range(COUNT)]
    replace(ROW, table(NEW), node.registry)
    assert [marks_in(log)[Kind.abort] for log in logs(node.backend)] == [1] * COUNT
    assert node.served() == NEW


@pytest.mark.parametrize("is_restarted", [False, True])
def test_no_lane_waits_at_a_commit_for_a_log_that_is_away(
    node: Node, away: threading.Event, monkeypatch: pytest.MonkeyPatch, is_restarted: bool
) -> None:
    """Neither where rows of the log wait for the commit, nor where a new consumer has read nothing of it yet."""
    in_away = next(one for one in OLD if partition_of(one, COUNT) == AWAY)
    with Coordinator(node.backend, ROW) as load:
        load.append(to_batch(ROW, table(NEW), event_time_ns=load.started_ns))
        with running(node.consumer(offline=None)):
            token = node.producer.write(ROW, in_away, {"number": 7}, partial=True)
            node.producer.wait(ROW, token, timeout_ms=60_000)
            if not is_restarted:
                away.set()
                with pytest.raises(ConnectionFailedError):
                    load.commit()
                token = node.producer.write(ROW, ELSEWHERE, {"number": 1})
                node.producer.wait(ROW, token, timeout_ms=20_000)
        if is_restarted:
            away.set()
            with pytest.raises(ConnectionFailedError):
                load.commit()
    with running(node.consumer(offline=None)):
        token = node.producer.write(ROW, ELSEWHERE, {"number": 2})
        node.producer.wait(ROW, token, timeout_ms=20_000)
        assert node.served() == OLD | {in_away: 7, ELSEWHERE: 2}
        monkeypatch.setattr(held, "SILENT_SECONDS", 0.0)
        away.clear()
        until(lambda: node.served() == NEW | {in_away: 7, ELSEWHERE: 2})


def test_a_consumer_that_is_overtaken_at_the_flip_is_fenced(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = Writer.exchange

    def overtaken(self: Writer, *views: Any) -> Any:
        monkeypatch.setattr(Writer, "exchange", exchange)
        with node.registry.open_stored("Row", read_only=False) as other:
            other.overtake_writer()
        return exchange(self, *views)

    with Coordinator(node.backend, ROW) as load:
        load.append(to_batch(ROW, table(NEW)))
        load.commit()
    monkeypatch.setattr(Writer, "exchange", overtaken)
    with pytest.raises(WriterFencedError):
        node.drain()
    assert node.served() == OLD
    assert segments_of(node) == [node.registry.current_name("Row")]
    node.drain()
    assert node.served() == NEW


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_commit_that_is_written_twice_leaves_nothing_behind(node: Node, is_restarted: bool) -> None:
    begin = replace(ROW, table(NEW), node.registry).begin
    rows = Counter(partition_of(one, COUNT) for one in NEW)

    def again() -> None:
        for number, log in enumerate(logs(node.backend)):
            log.append([("Row", mark(Kind.commit, ROW, load=begin, load_rows=rows[number]))])
            node.producer.wait(ROW, node.producer.write_many(ROW, table({ELSEWHERE: number})), timeout_ms=60_000)

    with running(node.consumer()):
        again()
    with running(node.consumer()):
        if is_restarted:
            again()
        ids = {f"pushed{number}": number for number in range(20)}
        node.producer.wait(ROW, node.producer.write_many(ROW, table(ids)), timeout_ms=60_000)
        assert node.served() == NEW | {ELSEWHERE: COUNT - 1} | ids
        assert segments_of(node) == [node.registry.current_name("Row")]


class Shortened:
    """A node of one partition, on SQLite, whose log can lose its last entries, as a replica does that takes over."""

    def __init__(self, node: Node, directory: Path) -> None:
        self.node, self._file = node, directory / "store" / "quorin.db"
        self.log = node.backend.log()

    def lose(self, after: int) -> None:
        with sqlite3.connect(self._file) as database:
            database.execute("DELETE FROM entries WHERE position > ?", (after,))
            sql = "UPDATE logs SET last_position = ?, entry_count = (SELECT COUNT(*) FROM entries)"
            database.execute(sql, (after,))


@pytest.fixture
def shortened(tmp_path: Path) -> Iterator[Shortened]:
    with new_nodes(Node, str(tmp_path / "store"), tmp_path) as new:
        node = new(partitions=1)
        node.registry.create(ROW, capacity=8).close()
        node.producer.write_many(ROW, table(OLD))
        node.drain(offline=None)
        yield Shortened(node, tmp_path)


def test_a_log_that_lost_its_end_brings_no_replaced_rows_back(
    shortened: Shortened, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, apply, seen = shortened.node, Lane.apply, set[str]()
    replace(ROW, table(NEW), node.registry)
    kept = node.producer.write_many(ROW, table({"kept": 1}))
    node.producer.write_many(ROW, table({"lost": 2}))
    node.drain(offline=None)
    shortened.lose(kept)

    def applied(self: Lane, *arguments: Any, **options: Any) -> Any:
        try:
            return apply(self, *arguments, **options)
        finally:
            seen.update(node.served())

    monkeypatch.setattr(Lane, "apply", applied)
    node.drain(offline=None, batch_entries=1)
    node.producer.write_many(ROW, table({"later": 3}))
    node.drain(offline=None, batch_entries=1)
    assert seen == {*NEW, "kept", "lost", "later"}
    assert node.served() == NEW | {"kept": 1, "lost": 2, "later": 3}


def test_a_load_whose_rows_a_log_has_lost_is_refused_where_they_were_staged_too(shortened: Shortened) -> None:
    node = shortened.node
    refused = metrics.loads_refused.labels("Row").value
    reanchored = metrics.reanchored.labels("Row", "shorter").value
    with Coordinator(node.backend, ROW) as load, running(node.consumer(offline=None)):
        last = shortened.log.bounds().last
        load.append(to_batch(ROW, table(NEW)))
        node.producer.wait(ROW, node.producer.write_many(ROW, table({"pushed": 1})), timeout_ms=60_000)
        until(lambda: len(segments_of(node)) == 2)
        shortened.lose(last)
        until(lambda: metrics.reanchored.labels("Row", "shorter").value > reanchored)
        load.commit()
        until(lambda: metrics.loads_refused.labels("Row").value > refused)
        assert node.served() == OLD | {"pushed": 1}


def test_no_load_gets_the_number_of_one_that_a_log_has_lost(shortened: Shortened) -> None:
    last, begun = shortened.log.bounds().last, set[int]()
    for _ in range(3):
        with suppress(InterruptedError), Coordinator(shortened.node.backend, ROW) as load:
            begun.add(load.load)
            raise InterruptedError
        shortened.lose(last)
    assert len(begun) == 3


def test_a_load_that_is_aborted_in_between_is_not_staged_again(node: Node) -> None:
    with Coordinator(node.backend, ROW) as load, running(node.consumer()):
        load.append(to_batch(ROW, table(NEW)))
        until(lambda: len(segments_of(node)) == 2)
        assert held.abort(open_loads(node.backend.control)["Row"][0], node.backend)
        until(lambda: len(segments_of(node)) == 1)
        load.append(to_batch(ROW, table(NEW)))
        ids = {f"pushed{number}": number for number in range(20)}
        node.producer.wait(ROW, node.producer.write_many(ROW, table(ids)), timeout_ms=60_000)
        assert len(segments_of(node)) == 1
        with pytest.raises(ReplaceAbortedError):
            load.commit()
    assert node.served() == OLD | ids
