"""Former logs on a replica that took over and lacked the end of what its master had: the closing, the last entries, or
what the control plane knew of the growth.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis
from structlog.testing import capture_logs

from quorin import metrics
from quorin.engine.backend import Backend, Log, connect
from quorin.engine.backend.keys import DEFAULT_STREAM_KEY, log_keys
from quorin.engine.backend.partition_keys import log_tag
from quorin.engine.consumer import logs_beside
from quorin.engine.format.growth import Growth, State
from quorin.engine.format.partition import partition_of
from quorin.engine.log.record import Kind, encode
from quorin.engine.repartition import run
from quorin.engine.repartition.closed import check_closed_logs
from quorin.engine.rows.batch import canonical_schema
from quorin.errors import LogClosedError, PartitionCountError, TokenError
from quorin.evolution import abort_repartition, repartition
from quorin.schema import schema_to_json
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.world import STOP, TRIP, World, row, running, until
from tests.unit.repartition.test_growing import KEYS, drained, grow, scores, write_some

IDS = [f"é{number}" for number in range(30)]


@pytest.fixture
def world(redis_url: str, tmp_path: Path) -> Iterator[World]:
    (tmp_path / "shm").mkdir()
    opened = World(redis_url, tmp_path / "shm")
    yield opened
    opened.producer.close()
    opened.backend.close()


class Replica:
    """Makes the keys of a log what they are on a replica that did not get the last commands."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)

    def lacks_closing(self, partition: int = 0, of: int = 1, *, entries: int = 0) -> None:
        """As if the log had not been closed, and without its last entries."""
        keys = log_keys(log_tag("quorin", of, partition), DEFAULT_STREAM_KEY)
        all_entries = self._client.xrange(keys.stream)
        # Written anew, not deleted from: Redis 8 lets no stream end before an entry that it knows as deleted.
        self._client.delete(keys.stream)
        self._client.xadd(keys.stream, {"none": ""}, id="0-1")
        self._client.xdel(keys.stream, "0-1")
        for entry, values in all_entries[: len(all_entries) - entries]:
            self._client.xadd(keys.stream, values, id=entry)
        self._client.delete(keys.closed)

    def lacks_exchange(self, growth: Growth) -> None:
        """As if the growth were under way."""
        self._client.set("{quorin}:growth", growth.to_json())
        self._client.set("{quorin}:partitions", growth.count)

    def lacks_growth(self, count: int) -> None:
        """As if none had begun."""
        self._client.delete("{quorin}:growth")
        self._client.set("{quorin}:partitions", count)

    def wipe(self) -> None:
        self._client.flushdb()

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def replica(redis_url: str) -> Iterator[Replica]:
    made = Replica(redis_url)
    yield made
    made.close()


@pytest.fixture
def stale(world: World) -> Iterator[WALProducer]:
    """A producer that has looked at the number of partitions before it grew, and does not look again."""
    made = WALProducer(connect(world.connection))
    yield made
    made.close()


def closed_log(world: World, partition: int = 0, of: int = 1) -> Log:
    return world.backend.log(partition=partition, of=of)


def former_ends(world: World) -> list[int]:
    return [log.end for log in Growth.parse(world.backend.control.growth()).former[0].logs]


def test_a_growth_knows_where_the_logs_ended(world: World) -> None:
    write_some(world, IDS, 1)
    identity, bounds = world.backend.log().state()
    grow(world, 2)
    (log,) = Growth.parse(world.backend.control.growth()).former[0].logs
    assert (log.stream_key, log.partition, log.identity, log.end) == (DEFAULT_STREAM_KEY, 0, identity, bounds.last)
    before = world.backend.control.growth()
    with capture_logs() as logs:
        check_closed_logs(world.backend)
    assert logs == []
    assert world.backend.control.growth() == before


def test_what_a_log_takes_that_was_closed_once_is_moved_to_the_logs_of_now(
    world: World, replica: Replica, stale: WALProducer
) -> None:
    world.backend.control.put_schema("Trip", schema_to_json(TRIP))
    stale.write(TRIP, IDS[0], row(0))
    write_some(world, IDS, 1)
    world.drain()
    grow(world, 2)
    world.drain()
    end = closed_log(world).bounds().last
    replica.lacks_closing()
    token = stale.write(TRIP, IDS[0], row(2))
    stale.delete(TRIP, IDS[1])
    stale.write_many(TRIP, {"entity_id": IDS[2:9], "score": [3.0] * 7, "tag": ["t"] * 7})
    assert int(token) > end, "it was acknowledged by the log that no node reads any more"
    world.drain()
    assert scores(world.registry, IDS) == dict.fromkeys(IDS, 1.0)
    with capture_logs() as logs:
        check_closed_logs(world.backend)
    assert [(one["event"], one["of"]) for one in logs] == [("closed_log_was_open", 1), ("closed_log_had_more", 1)]
    assert logs[1]["moved_entries"] == 3
    assert closed_log(world).bounds().last == end
    assert closed_log(world).bounds().is_closed
    expected = dict.fromkeys(IDS, 1.0) | {IDS[0]: 2.0} | dict.fromkeys(IDS[2:9], 3.0)
    del expected[IDS[1]]
    world.drain()
    assert scores(world.registry, IDS) == expected
    assert scores(drained(world, "new"), IDS) == expected
    with capture_logs() as logs:
        check_closed_logs(world.backend)
    assert logs == []
    assert former_ends(world) == [end]
    stale.write(TRIP, IDS[0], row(9))  # It finds the log closed now.
    world.drain()
    assert scores(world.registry, IDS) == expected | {IDS[0]: 9.0}


def test_a_check_that_dies_before_entries_are_removed_moves_them_again(
    world: World, replica: Replica, stale: WALProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.backend.control.put_schema("Trip", schema_to_json(TRIP))
    stale.write(TRIP, IDS[0], row(1))
    grow(world, 2)
    replica.lacks_closing()
    stale.write(TRIP, IDS[0], row(2))

    def die(*_: int) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(closed_log(world)), "cut", die)
        with pytest.raises(KeyboardInterrupt):
            check_closed_logs(world.backend)
    check_closed_logs(world.backend)
    assert sum(log.sizes()[0] for log in (closed_log(world, p, 2) for p in (0, 1))) == 2
    world.drain()
    assert scores(world.registry, IDS) == {IDS[0]: 2.0}
    assert closed_log(world).sizes()[0] == 1


def test_what_cannot_be_moved_is_a_dead_letter(world: World, replica: Replica) -> None:
    world.backend.control.put_schema("Trip", schema_to_json(TRIP))
    write_some(world, IDS, 1)
    grow(world, 2)
    replica.lacks_closing()
    closed_log(world).append([("Trip", b"damaged")])
    batch = pa.RecordBatch.from_pydict({"entity_id": ["s"], "event_time_ns": [1], "count": [1]}, canonical_schema(STOP))
    closed_log(world).append([("Stop", encode(Kind.upsert, STOP, batch))])
    check_closed_logs(world.backend)
    reasons = [letter.reason for letter in closed_log(world).dead_letters()]
    assert len(reasons) == 2
    assert reasons[1] == "schema 'Stop' is unknown to the control plane"
    assert closed_log(world).sizes()[0] == 1


def test_a_lost_tail_of_a_closed_log_is_reported_once_and_nodes_go_on(world: World, replica: Replica) -> None:
    write_some(world, IDS[:9], 1)
    lost = world.producer.write(TRIP, IDS[9], row(1))
    early = drained(world, "early")
    late = drained(world, "late")
    growth = grow(world, 2)
    early = drained(world, "early")
    replica.lacks_closing(entries=1)
    with capture_logs() as logs:
        check_closed_logs(world.backend)
    assert [one["event"] for one in logs] == ["closed_log_was_open", "closed_log_lost_entries"]
    assert (logs[1]["ended_at"], logs[1]["ends_at"]) == (int(lost), former_ends(world)[0])
    assert former_ends(world)[0] == closed_log(world).bounds().last < growth.former[0].logs[0].end
    with capture_logs() as logs:
        check_closed_logs(world.backend)
    assert logs == []
    shorter = metrics.reanchored.labels("Trip", "shorter")
    before = shorter.value
    late = drained(world, "late")
    assert shorter.value == before + 1, "a node that had not gone over sees it itself"
    new = drained(world, "new")
    for registry, count in ((early, 10), (late, 10), (new, 9)):
        assert scores(registry, IDS) == dict.fromkeys(IDS[:count], 1.0), "nodes differ in the row that was lost"
        with registry.open_current(TRIP) as segment:
            assert segment.partitioning.count == 2
    world.producer.write(TRIP, IDS[9], row(2))
    for name in ("early", "late", "new"):
        assert scores(drained(world, name), IDS)[IDS[9]] == 2.0


def test_a_lost_tail_is_noticed_although_the_log_took_more(world: World, replica: Replica, stale: WALProducer) -> None:
    world.backend.control.put_schema("Trip", schema_to_json(TRIP))
    stale.write(TRIP, IDS[0], row(1))
    world.producer.write(TRIP, IDS[1], row(1))
    grow(world, 2)
    replica.lacks_closing(entries=1)
    stale.write(TRIP, IDS[2], row(2))
    with capture_logs() as logs:
        check_closed_logs(world.backend)
    events = ["closed_log_was_open", "closed_log_had_more", "closed_log_lost_entries"]
    assert [one["event"] for one in logs] == events
    assert scores(drained(world, "new"), IDS) == {IDS[0]: 1.0, IDS[2]: 2.0}


def test_a_node_that_has_read_what_was_lost_notices_it_before_it_goes_over(world: World, replica: Replica) -> None:
    write_some(world, IDS[:9], 1)
    world.producer.write(TRIP, IDS[9], row(1))
    growth = run.begin(world.backend, 2, KEYS)
    closed_log(world).close_for_appends(growth.number)
    consumer = world.consumer(TRIP)
    consumer._take(waiting=False)
    consumer._check()
    for lane, found in consumer._lanes.read(block_ms=0):
        consumer._apply(lane, found, stages=False)
    consumer._check()
    shorter = metrics.reanchored.labels("Trip", "shorter")
    before = shorter.value
    replica.lacks_closing(entries=1)
    run.go_on(world.backend)
    consumer._check()
    assert world.registry.partitioning.count == 1
    assert shorter.value == before + 1
    consumer._finish()
    consumer.drain()
    consumer.close()
    assert world.registry.partitioning.count == 2
    assert scores(world.registry, IDS) == dict.fromkeys(IDS[:10], 1.0)


@pytest.mark.parametrize("count", [1, 2])
def test_a_node_that_waits_at_an_open_former_log_closes_it(world: World, replica: Replica, count: int) -> None:
    if count == 2:
        grow(world, 2)
    write_some(world, IDS, 1)
    world.drain()
    grow(world, 2 * count)
    replica.lacks_closing(count - 1, count)
    with running(world.consumer(TRIP)):
        until(lambda: world.registry.partitioning.count == 2 * count)
        write_some(world, IDS[:3], 2)
        until(lambda: scores(world.registry, IDS) == dict.fromkeys(IDS, 1.0) | dict.fromkeys(IDS[:3], 2.0))


def test_a_token_of_what_a_closed_log_took_later_is_refused(world: World, replica: Replica, stale: WALProducer) -> None:
    world.backend.control.put_schema("Trip", schema_to_json(TRIP))
    before = stale.write(TRIP, IDS[0], row(1))
    world.drain()
    grow(world, 2)
    world.drain()
    replica.lacks_closing()
    after = stale.write(TRIP, IDS[0], row(2))
    world.producer.wait(TRIP, before, timeout_ms=60_000)
    with pytest.raises(TokenError, match="is behind the end of a log that was closed when the deployment grew"):
        world.producer.wait(TRIP, after, timeout_ms=60_000)


def test_a_node_that_has_gone_over_gives_back_a_growth_that_the_control_plane_lost(
    world: World, replica: Replica
) -> None:
    write_some(world, IDS, 1)
    begun = run.begin(world.backend, 2, KEYS)
    grown = run.go_on(world.backend)
    with running(world.consumer(TRIP)):
        until(lambda: world.registry.partitioning.count == 2)
        until(lambda: world.registry.node.state().growth is not None)
        write_some(world, IDS[:5], 2)
        until(lambda: scores(world.registry, IDS)[IDS[0]] == 2.0)
        replica.lacks_exchange(begun)
        until(lambda: Growth.parse(world.backend.control.growth()).state is State.settled)
        restored = Growth.parse(world.backend.control.growth())
        assert (restored.former, restored.number) == (grown.former, grown.number + 1)
        assert abort_repartition(world.backend) is None
        write_some(world, IDS[:7], 3)
        until(lambda: scores(world.registry, IDS)[IDS[6]] == 3.0)
    assert world.backend.control.partition_count() == 2
    assert scores(drained(world, "new"), IDS) == dict.fromkeys(IDS, 1.0) | dict.fromkeys(IDS[:7], 3.0)


def test_what_an_abort_of_a_lost_growth_let_through_is_moved(
    world: World, replica: Replica, stale: WALProducer
) -> None:
    world.backend.control.put_schema("Trip", schema_to_json(TRIP))
    write_some(world, IDS, 1)
    begun = run.begin(world.backend, 2, KEYS)
    run.go_on(world.backend)
    world.drain()
    replica.lacks_exchange(begun)
    assert abort_repartition(connect(world.connection)) == 1
    stale.write(TRIP, IDS[0], row(5))  # To the log of one partition, which is open again.
    registry = SegmentRegistry(connect(world.connection), shm_dir=world.shm_dir)
    with running(WALConsumer(registry.backend, [TRIP], registry=registry)):
        until(lambda: scores(world.registry, IDS) == dict.fromkeys(IDS, 1.0) | {IDS[0]: 5.0})
    assert Growth.parse(world.backend.control.growth()).counts == [1]
    with pytest.raises(LogClosedError):
        closed_log(world).append([("Trip", b"x")])


def test_a_node_remembers_a_growth_before_it_goes_over(world: World, replica: Replica) -> None:
    """The growth is done after the node has looked at the control plane, which loses it as soon as the node is over."""
    write_some(world, IDS, 1)
    begun = run.begin(world.backend, 2, KEYS)
    closed_log(world).close_for_appends(begun.number)
    consumer = world.consumer(TRIP)
    consumer._take(waiting=False)
    consumer._check()
    for lane, found in consumer._lanes.read(block_ms=0):
        consumer._apply(lane, found, stages=False)
    consumer._ownership.renew()
    run.go_on(world.backend)
    assert consumer._lanes.carry_over(lambda: None)
    replica.lacks_growth(1)
    consumer._finish()
    consumer.drain()
    consumer.close()
    assert Growth.parse(world.backend.control.growth()).counts == [1]
    assert world.backend.control.partition_count() == 2


def test_a_command_whose_growth_was_lost_begins_again(
    world: World, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_some(world, IDS, 1)
    go_on = run.go_on
    lost: list[Any] = []

    def losing(backend: Backend, progress: Any = None) -> Growth:
        if not lost:
            lost.append(Growth.parse(backend.control.growth()))
            closed_log(world).close_for_appends(lost[0].number)
            replica._client.delete("{quorin}:growth")
        return go_on(backend, progress)

    monkeypatch.setattr(run, "go_on", losing)
    assert repartition(world.backend, 2, wait_for="log").partitions == 2
    assert lost[0].state is State.closing
    write_some(world, IDS[:3], 2)
    world.drain()
    assert scores(world.registry, IDS) == dict.fromkeys(IDS, 1.0) | dict.fromkeys(IDS[:3], 2.0)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("is_done", [True, False])
def test_a_growth_that_was_lost_before_any_node_knew_of_it_is_begun_again(
    world: World, replica: Replica, monkeypatch: pytest.MonkeyPatch, count: int, is_done: bool
) -> None:
    """Nothing else would end it: its command has returned, or was killed, and producers write to the new logs."""
    monkeypatch.setattr(logs_beside, "LOOK_SECONDS", 0.1)
    world.backend.settle_partitions(count)
    write_some(world, IDS, 1)
    begun = run.begin(world.backend, 2 * count, ["quorin:wal", "other"])
    if is_done:
        run.go_on(world.backend)
        write_some(world, IDS[:5], 2)
    else:
        closed_log(world, of=count).close_for_appends(begun.number, begun.stream_keys)
    replica.lacks_growth(count)
    registry = SegmentRegistry(connect(world.connection), shm_dir=world.shm_dir)
    with capture_logs() as logs, running(WALConsumer(registry.backend, [TRIP], registry=registry)):
        until(lambda: Growth.parse(world.backend.control.growth()).counts == [count])
        write_some(world, IDS[5:9], 3)
        expected = dict.fromkeys(IDS, 1.0) | dict.fromkeys(IDS[5:9], 3.0)
        expected |= dict.fromkeys(IDS[:5], 2.0) if is_done else {}
        until(lambda: registry.partitioning.count == 2 * count)
        until(lambda: scores(registry, IDS) == expected)
    registry.backend.close()
    grown = Growth.parse(world.backend.control.growth())
    assert (grown.state, grown.stream_keys) == (State.settled, ("quorin:wal", "other"))
    assert grown.number > begun.number
    assert world.backend.control.partition_count() == 2 * count
    assert [log["event"] for log in logs].count("growth_begun_again") == 1
    assert scores(drained(world, "new"), IDS) == expected


@pytest.mark.parametrize("count", [1, 2])
def test_a_growth_whose_end_was_lost_is_done_again(
    world: World, replica: Replica, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """All producers know the new logs, so none of them meets a closed one and finishes the growth."""
    monkeypatch.setattr(logs_beside, "LOOK_SECONDS", 0.1)
    world.backend.settle_partitions(count)
    write_some(world, IDS, 1)
    begun = run.begin(world.backend, 2 * count, KEYS)
    run.go_on(world.backend)
    write_some(world, IDS[:5], 2)
    replica.lacks_exchange(begun)
    registry = SegmentRegistry(connect(world.connection), shm_dir=world.shm_dir)
    with running(WALConsumer(registry.backend, [TRIP], registry=registry)):
        until(lambda: registry.partitioning.count == 2 * count)
        until(lambda: scores(registry, IDS) == dict.fromkeys(IDS, 1.0) | dict.fromkeys(IDS[:5], 2.0))
    registry.backend.close()
    assert Growth.parse(world.backend.control.growth()).number == begun.number


def test_what_new_logs_took_before_a_growth_is_begun_again_is_served(
    world: World, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One log was open meanwhile and took more, so the growth ends behind entries that the new logs have."""
    monkeypatch.setattr(logs_beside, "LOOK_SECONDS", 0.1)
    world.backend.settle_partitions(2)
    write_some(world, IDS, 1)
    late = next(one for one in IDS if partition_of(one, 2) == 0)
    with WALProducer(connect(world.connection)) as stale:
        stale.write(TRIP, late, row(1))
        grow(world, 4)
        write_some(world, IDS, 2)
        replica.lacks_growth(2)
        replica.lacks_closing(0, 2)
        stale.write(TRIP, late, row(3))
    registry = SegmentRegistry(connect(world.connection), shm_dir=world.shm_dir)
    with running(WALConsumer(registry.backend, [TRIP], registry=registry)):
        until(lambda: registry.partitioning.count == 4)
        until(lambda: scores(registry, IDS) == dict.fromkeys(IDS, 2.0) | {late: 3.0})
        write_some(world, IDS[:2], 4)
        until(lambda: scores(registry, IDS) == dict.fromkeys(IDS, 2.0) | {late: 3.0} | dict.fromkeys(IDS[:2], 4.0))
    registry.backend.close()


def test_a_growth_that_is_undone_is_not_begun_again(world: World) -> None:
    write_some(world, IDS, 1)
    begun = run.begin(world.backend, 2, KEYS)
    log = closed_log(world)
    log.close_for_appends(begun.number, begun.stream_keys)
    abort_repartition(world.backend)
    run.finish(world.backend, 1, log)
    assert Growth.parse(world.backend.control.growth()).counts == []
    grow(world, 2)
    text = world.backend.control.growth()
    run.finish(world.backend, 1, log)  # By a node that has not gone over yet.
    assert world.backend.control.growth() == text


def test_a_growth_whose_number_was_ended_before_gets_another(world: World, replica: Replica) -> None:
    """The control plane has lost that a growth was undone; its logs have not, and refuse to be closed by its number."""
    write_some(world, IDS, 1)
    begun = run.begin(world.backend, 2, KEYS)
    closed_log(world).close_for_appends(begun.number)
    abort_repartition(world.backend)
    replica.lacks_growth(1)
    assert repartition(world.backend, 2, wait_for="log").partitions == 2
    assert Growth.parse(world.backend.control.growth()).number == begun.number + 1


def test_a_command_that_another_one_was_quicker_than_begins_no_second_growth(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_some(world, IDS, 1)
    look = world.backend.control.partition_count
    quicker = [lambda: grow(world, 2)]

    def slow() -> int | None:
        found = look()
        if quicker:
            quicker.pop()()
        return found

    monkeypatch.setattr(world.backend.control, "partition_count", slow)
    assert repartition(world.backend, 2, wait_for="log").partitions == 2
    assert Growth.parse(world.backend.control.growth()).counts == [1]


def grown_node(world: World) -> None:
    """A node with rows of before and after a growth from 2 to 4, that no process serves."""
    world.backend.settle_partitions(2)
    write_some(world, IDS, 1)
    grow(world, 4)
    write_some(world, IDS[:5], 2)
    with running(world.consumer()):
        until(lambda: world.registry.partitioning.count == 4)
        until(lambda: world.registry.node.state().growth is not None)
        until(lambda: scores(world.registry, IDS) == dict.fromkeys(IDS, 1.0) | dict.fromkeys(IDS[:5], 2.0))


@pytest.mark.parametrize("first", [None, "2 partitions", "4 partitions"])
def test_a_control_plane_that_was_wiped_while_nothing_ran_gets_the_number_back(
    world: World, replica: Replica, first: str | None
) -> None:
    grown_node(world)
    replica.wipe()
    expected = dict.fromkeys(IDS, 1.0) | dict.fromkeys(IDS[:5], 2.0)
    if first is not None:
        # A producer was quicker, which names the number of now, or the one that the deployment grew from.
        with WALProducer(connect(world.connection, partitions=int(first[0]))) as producer:
            producer.write(TRIP, IDS[0], row(7))
        expected[IDS[0]] = 7.0
    registry = SegmentRegistry(connect(world.connection), shm_dir=world.shm_dir)
    with running(WALConsumer(registry.backend, [TRIP], registry=registry)):
        until(lambda: scores(world.registry, IDS) == expected)
        until(lambda: registry.backend.control.partition_count() == 4)
        assert Growth.parse(registry.backend.control.growth()).counts == [2]
        with WALProducer(connect(world.connection)) as producer:
            producer.write(TRIP, IDS[1], row(8))
        until(lambda: scores(world.registry, IDS) == expected | {IDS[1]: 8.0})


def test_a_deployment_that_was_made_anew_with_another_number_refuses_the_node(world: World, replica: Replica) -> None:
    grown_node(world)
    replica.wipe()
    backend = connect(world.connection, partitions=16)
    backend.settle_partitions(16)
    registry = SegmentRegistry(backend, shm_dir=world.shm_dir)
    with pytest.raises(PartitionCountError, match=r"4 partitions are expected here, .* has 16"):
        WALConsumer(backend, [TRIP], registry=registry).drain()
    assert backend.control.growth() is None
    backend.close()


def test_any_number_of_processes_may_check_at_once(world: World, replica: Replica, stale: WALProducer) -> None:
    world.backend.control.put_schema("Trip", schema_to_json(TRIP))
    stale.write(TRIP, "before", row(0))
    grow(world, 2)
    replica.lacks_closing()
    for number, entity in enumerate(IDS):
        stale.write(TRIP, entity, row(number))
    backends = [connect(world.connection) for _ in range(4)]
    threads = [threading.Thread(target=check_closed_logs, args=(backend,)) for backend in backends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for backend in backends:
        backend.close()
    world.drain()
    assert scores(world.registry, IDS) == {entity: float(number) for number, entity in enumerate(IDS)}
    assert closed_log(world).sizes()[0] == 1
    assert [closed_log(world).bounds().last] == former_ends(world)
