"""The number of partitions and their logs, whichever implementation keeps them."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from quorin.engine.backend import Backend, Beginning, Fence, connect, logs
from quorin.errors import ConnectionFailedError, LogFullError, PartitionCountError, PartitionedError
from quorin.wal import Token

COUNT = 8


@pytest.fixture
def partitioned(connection: str) -> Iterator[Backend]:
    opened = connect(connection, partitions=COUNT)
    yield opened
    opened.close()


@pytest.fixture
def another(connection: str) -> Iterator[Callable[..., Backend]]:
    """Opens more connections, as other processes have."""
    opened: list[Backend] = []

    def open_one(partitions: int | None = None) -> Backend:
        opened.append(connect(connection, partitions=partitions))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def test_a_new_deployment_gets_the_number_and_keeps_it(
    backend: Backend, another: Callable[..., Backend], connection: str
) -> None:
    assert backend.control.partition_count() is None
    backend.settle_partitions(COUNT)
    backend.settle_partitions(COUNT)
    assert backend.partitions() == COUNT == another().partitions() == another(COUNT).partitions()
    with pytest.raises(PartitionCountError) as caught:
        another(16).partitions()
    assert f"16 partitions are expected here, and the deployment 'quorin' {'at' if '://' in connection else 'in'} " in (
        str(caught.value)
    )
    assert "has 8: the number is fixed when a deployment is made" in str(caught.value)
    with pytest.raises(PartitionCountError, match=r"1 partitions are expected here, .* has 8"):
        backend.settle_partitions(1)
    with pytest.raises(PartitionCountError, match="expected a power of two from 1 to 256, got 3"):
        backend.settle_partitions(3)
    other = connect(connection, namespace="other")
    assert other.partitions() == 1
    other.close()


@pytest.mark.parametrize("what", ["schema", "log", "other log"])
def test_a_deployment_that_is_in_use_has_one(backend: Backend, another: Callable[..., Backend], what: str) -> None:
    if what == "schema":
        backend.control.put_schema("Trip", "{}")
    else:
        backend.log("mine" if what == "other log" else "quorin:wal").append([("A", b"x")])
    late = another()
    late.log("mine")
    with pytest.raises(PartitionCountError, match=r"8 partitions are expected here, .* has 1: "):
        late.settle_partitions(COUNT)
    late.settle_partitions(1)
    assert late.partitions() == 1 == len(logs(late))


def test_of_two_that_settle_at_once_one_does(backend: Backend, another: Callable[..., Backend]) -> None:
    begin, counts = threading.Barrier(2), [4, 16]
    askers = [another(count) for count in counts]

    def ask(asker: Backend) -> int | PartitionCountError:
        begin.wait()
        try:
            return asker.partitions()
        except PartitionCountError as error:
            return error

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(ask, askers))
    settled = backend.partitions()
    assert settled in counts
    assert [answer for answer in found if isinstance(answer, int)] == [settled]


def test_a_number_that_is_settled_between_looking_and_writing_is_noticed(
    backend: Backend, another: Callable[..., Backend]
) -> None:
    """A process that found nothing would write to a log that nobody reads."""
    look, late = backend.control.schemas, another(COUNT)

    def settled_after_looking() -> dict[str, str]:
        found = look()
        late.settle_partitions(COUNT)
        return found

    backend.control.schemas = settled_after_looking  # type: ignore[method-assign]
    early = backend.log()
    with pytest.raises(PartitionCountError, match="has 8 partitions, and no number of them was stored when"):
        early.append([("A", b"x")])
    for create in (lambda: early.append([("A", b"x")]), early.identity, lambda: early.read(0)):
        with pytest.raises((PartitionCountError, PartitionedError), match="has 8"):
            create()
    assert [log.bounds().last for log in logs(late)] == [0] * COUNT


def test_a_log_that_is_made_between_looking_and_settling_wins(
    backend: Backend, another: Callable[..., Backend]
) -> None:
    late = another(COUNT)
    (token,) = backend.log().append([("A", b"x")])
    with pytest.raises(PartitionCountError, match=r"8 partitions are expected here, .* has 1: "):
        late.partitions()
    assert [position for position, _ in backend.log().read(0).entries] == [token]


def test_each_partition_has_a_log_of_its_own(partitioned: Backend) -> None:
    found = logs(partitioned)
    assert [log.partition for log in found] == list(range(COUNT))
    assert {log.stream_key for log in found} == {"quorin:wal"}
    assert len({log.identity() for log in found}) == COUNT
    tokens = [log.append([("A", b"%d" % number), ("B", b"b")])[-1] for number, log in enumerate(found)]
    for number, log in enumerate(found):
        assert tokens[number].parts == ((log.identity(), int(tokens[number])),)
        assert [payload for _, payload in log.read(0).entries] == [b"%d" % number, b"b"]
        assert [payload for _, payload in log.read(0, schema_names=["A"]).entries] == [b"%d" % number]
        assert log.state()[1].last == tokens[number]
    assert found[3].trim(tokens[3]) == 2
    assert [log.sizes()[0] for log in found] == [2, 2, 2, 0, 2, 2, 2, 2]
    found[5].bury(tokens[5], b"b", "bad")
    assert [len(log.dead_letters()) for log in found] == [0, 0, 0, 0, 0, 1, 0, 0]
    assert [log.acquire_historian(f"h{log.partition}", 60_000) for log in found] == [1] * COUNT
    with pytest.raises(Exception, match="was not trimmed"):
        found[0].trim(tokens[0], fence=Fence("h1", 1))
    assert partitioned.log(partition=2).read(0).entries == found[2].read(0).entries
    assert partitioned.log("other", 2).read(0).entries == []


def test_a_log_without_a_partition_refuses_every_use(partitioned: Backend) -> None:
    only = pickle.loads(pickle.dumps(partitioned.log()))
    for name, use in {
        "append": lambda: only.append([("A", b"x")]),
        "append_and_read": lambda: only.append_and_read("A", b"x", after=0),
        "read": lambda: only.read(0),
        "trim": lambda: only.trim(5),
        "state": lambda: only.state(),
        "identity": lambda: only.identity(),
        "dead_letters": lambda: only.dead_letters(),
    }.items():
        text = f"'{name}' of log 'quorin:wal' without a partition needs a deployment of one partition, and .* has 8"
        with pytest.raises(PartitionedError, match=text):
            use()
    for partition in (COUNT, -1, True, "1"):
        with pytest.raises(PartitionCountError, match="has 8, expected a number from 0 to 7"):
            partitioned.log(partition=partition)  # type: ignore[arg-type]


def test_of_one_partition_the_log_is_the_one_it_always_was(backend: Backend) -> None:
    (token,) = backend.log().append([("A", b"x")])
    (log,) = logs(backend)
    assert log.read(0).entries == [(token, b"x")] == backend.log(partition=0).read(0).entries
    assert log.partition == 0 == backend.log().partition
    with pytest.raises(PartitionCountError, match=r"partition 1: .* has 1, expected a number from 0 to 0"):
        backend.log(partition=1)


def test_a_schema_begins_somewhere_in_each_log(partitioned: Backend) -> None:
    control, begins = partitioned.control, [Beginning(2**62 + number, number) for number in range(COUNT)]
    assert control.swap_schema("Trip", "{1}", expected=None, beginning=begins)
    control.put_schema("Other", "{}", beginning=tuple(reversed(begins)))
    assert control.swap_schema("Trip", "{2}", expected="{1}"), "an upgrade leaves the beginnings as they are"
    assert [control.beginnings(partition)["Trip"] for partition in range(COUNT)] == begins
    assert [control.beginnings(partition)["Other"] for partition in range(COUNT)] == begins[::-1]
    control.put_schema("Other", "{}", beginning=Beginning(1, 2))
    assert control.beginnings() == {"Trip": begins[0], "Other": Beginning(1, 2)}
    assert control.beginnings(1) == {"Trip": begins[1]}
    control.drop_schema("Trip")
    assert [control.beginnings(partition) for partition in (0, 1)] == [{"Other": Beginning(1, 2)}, {}]
    assert not control.restore_schema("Trip", "{1}", beginning=begins)


def test_appends_go_to_several_logs_at_once(partitioned: Backend) -> None:
    found = logs(partitioned)
    parts = [(log, [("A", b"%d" % log.partition)] * (1 + log.partition)) for log in found]
    for _ in range(2):
        tokens = partitioned.append_together(parts)
        assert [token.parts for token in tokens if isinstance(token, Token)] == [
            ((log.identity(), log.bounds().last),) for log in found
        ]
    assert [log.sizes()[0] for log in found] == [2 * (1 + log.partition) for log in found]
    results = partitioned.append_together(parts, max_entries=12)
    assert [isinstance(result, LogFullError) for result in results] == [False] * 4 + [True] * 4
    assert "has 10 entries, the limit is 12: 5 more do not fit" in str(results[4])
    assert [log.sizes()[0] for log in found] == [3, 6, 9, 12, 10, 12, 14, 16]
    assert partitioned.append_together([]) == []


def test_logs_of_partitions_go_to_other_processes(partitioned: Backend) -> None:
    found = logs(partitioned)
    copies = pickle.loads(pickle.dumps((partitioned, found)))
    tokens = copies[0].append_together([(log, [("A", b"copy")]) for log in copies[1]])
    assert all(isinstance(token, Token) for token in tokens)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            results = partitioned.append_together([(log, [("A", b"child")]) for log in found])
            status = 0 if all(isinstance(result, Token) for result in results) else 2
        finally:
            os._exit(status)
    results = partitioned.append_together([(log, [("A", b"parent")]) for log in found])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(isinstance(result, Token) for result in results)
    for log in found:
        assert sorted(payload for _, payload in log.read(0).entries) == [b"child", b"copy", b"parent"]
    copies[0].close()


def test_a_wiped_deployment_gets_its_number_again(
    partitioned: Backend, wipe: Callable[[], None], another: Callable[..., Backend]
) -> None:
    partitioned.append_together([(log, [("A", b"x")]) for log in logs(partitioned)])
    wipe()
    partitioned.settle_partitions(COUNT)
    assert another().partitions() == COUNT


def test_a_number_is_expected_of_a_connection(connection: str, another: Callable[..., Backend]) -> None:
    asking = another(COUNT)
    connect(asking, partitions=COUNT)
    connect(asking)
    with pytest.raises(PartitionCountError, match=r"16 partitions are expected here, and .* has 8"):
        connect(asking, partitions=16)
    with pytest.raises(PartitionCountError, match="expected a power of two from 1 to 256, got 5"):
        connect(connection, partitions=5)
    if "://" in connection:
        separator = "&" if "?" in connection else "?"
        named = connect(f"{connection}{separator}partitions=8")
        assert named.partitions() == COUNT
        assert "partitions" not in named.address
        named.close()
        with pytest.raises(ConnectionFailedError, match="is wrong: expected a number of partitions, such as 16"):
            connect(f"{connection}{separator}partitions=x")
        with pytest.raises(PartitionCountError, match="got 3"):
            connect(f"{connection}{separator}partitions=3")


def test_the_number_is_not_asked_for_while_the_server_is_away() -> None:
    away = connect("redis://127.0.0.1:1?partitions=4", must_answer=False)
    log = away.log()
    with pytest.raises(ConnectionFailedError, match=r"127\.0\.0\.1:1/0 cannot be used"):
        log.read(0)


def test_keys_of_one_partition_are_those_of_every_release(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        opened = connect(redis_url)
        opened.log().append([("A", b"x")])
        opened.control.put_schema("Trip", "{}", beginning=Beginning(1, 2))
        names = {b"wal", b"wal:identity"}
        assert set(client.keys()) == {b"{quorin}:schemas", b"{quorin}:beginnings"} | {
            b"{quorin}:quorin:" + n for n in names
        }
        assert client.hgetall("{quorin}:beginnings") == {b"Trip": b"1:2"}
        client.flushall()
        several = connect(redis_url, partitions=2)
        several.append_together([(log, [("A", b"x")]) for log in logs(several)])
        logs_ = {b"{quorin/2/%d}:quorin:%b" % (p, name) for p in range(2) for name in names}
        assert set(client.keys()) == {b"{quorin}:partitions"} | logs_
        for one in (opened, several):
            one.close()
