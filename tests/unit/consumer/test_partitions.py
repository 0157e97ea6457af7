"""A consumer of several partitions: each log is followed by itself, and all of them end in the rows of one."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quorin import assembly, metrics, serving
from quorin.assembly import read
from quorin.engine.backend import logs
from quorin.engine.backend.protocols import Log
from quorin.engine.bootstrap.writer import SnapshotWriter
from quorin.engine.consumer.trimming import Trimming
from quorin.engine.format.partition import partition_of
from quorin.engine.memory import filling
from quorin.engine.ops import presence
from quorin.engine.ops.nodes import observed_nodes
from quorin.errors import ConnectionFailedError, NotHeldError, PartitionedError
from quorin.evolution import repartition
from quorin.hydration import hydrate
from quorin.inline_consumer import InlineConsumer
from quorin.layout import iterate_occupied
from quorin.offline import ParquetDatasetStore
from quorin.shm import Segment, SegmentRegistry
from quorin.snapshot import SnapshotStore
from quorin.wal_consumer import NoopOfflineWriter, WALConsumer
from tests.support.partition_nodes import COUNT, IDS, PartitionNode, in_partitions, new_nodes
from tests.support.world import TRIP, row, running, until


class Node(PartitionNode):
    schemas = (TRIP,)

    def rows(self) -> dict[str, Any]:
        """All served rows by id."""
        with self.registry.open_current(TRIP) as segment:
            ids = [entity_id for entity_id, _ in iterate_occupied(segment)]
            return {found["entity_id"]: found for found in read(segment, ids).to_pylist()}

    def positions(self) -> dict[int, int]:
        """The position of each partition that is held."""
        with self.registry.open_current(TRIP) as segment:
            return {part.partition: part.position for part in segment.parts()}

    def written(self, *ids: str, score: float = 1.0) -> None:
        for entity_id in ids:
            self.producer.write(TRIP, entity_id, row(score))


@pytest.fixture
def new_node(connection: str, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    with new_nodes(Node, connection, tmp_path) as new:
        yield new


def of_partition(partition: int) -> list[str]:
    return [entity_id for entity_id in IDS if partition_of(entity_id, COUNT) == partition]


def test_the_ids_of_these_tests_are_in_all_partitions() -> None:
    assert all(of_partition(partition) for partition in range(COUNT))


Write = tuple[str, int, int, float | None]
writes = st.lists(
    st.tuples(
        st.sampled_from(["row", "partial", "delete", "batch"]),
        st.integers(0, len(IDS) - 1),
        st.integers(1, 9),
        st.none() | st.floats(allow_nan=False),
    ),
    max_size=40,
)


def applied(node: Node, ops: list[Write], drained_after: int) -> dict[str, Any]:
    node.drain()
    for number, (kind, index, event_time_ns, score) in enumerate(ops):
        entity_id = IDS[index]
        if kind == "row":
            node.producer.write(TRIP, entity_id, row(score), event_time_ns)
        elif kind == "partial":
            node.producer.write(TRIP, entity_id, {"score": score}, event_time_ns, partial=True)
        elif kind == "delete":
            node.producer.delete(TRIP, entity_id, event_time_ns)
        else:
            ids = IDS[: index + 1]
            columns = {"entity_id": ids, "event_time_ns": [event_time_ns] * len(ids), "score": [score] * len(ids)}
            node.producer.write_many(TRIP, pa.table(columns | {"tag": ["b"] * len(ids)}))
        if number == drained_after:
            node.drain()
    node.drain()
    return node.rows()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ops=writes, drained_after=st.integers(0, 40))
def test_several_partitions_end_in_the_rows_of_one(
    new_node: Callable[..., Node], ops: list[Write], drained_after: int
) -> None:
    number = applied.__dict__.setdefault("number", 0)
    applied.__dict__["number"] = number + 1
    whole = applied(new_node(partitions=1, namespace=f"one{number}"), ops, drained_after)
    for partitions in (2, COUNT):
        name = f"several{number}x{partitions}"
        assert applied(new_node(partitions=partitions, namespace=name), ops, drained_after) == whole


def test_a_running_consumer_reads_all_logs_at_once(new_node: Callable[..., Node]) -> None:
    node = new_node()
    with running(node.consumer()):
        for entity_id in IDS:
            node.producer.write_sync(TRIP, entity_id, row(2.0), timeout_ms=60_000)
        ends = {number: log.bounds().last for number, log in enumerate(logs(node.backend))}
        until(lambda: node.positions() == ends)
        with node.registry.open_current(TRIP) as segment:
            until(lambda: all(part.confirmed_age_seconds() < 60 for part in segment.parts()))
    assert node.rows().keys() == set(IDS)


def test_a_partial_node_has_the_rows_of_its_partitions(new_node: Callable[..., Node]) -> None:
    node = new_node(held="1-2")
    node.written(*IDS)
    assert node.drain() == len(in_partitions(1, 2))
    assert node.rows().keys() == in_partitions(1, 2)
    assert node.positions().keys() == {1, 2}


def test_a_partial_node_knows_the_logs_that_it_does_not_hold(new_node: Callable[..., Node]) -> None:
    node = new_node(held="0")
    tokens = [node.producer.write(TRIP, of_partition(partition)[0], row(1.0)) for partition in range(COUNT)]
    with running(node.consumer()):
        for token in tokens:
            node.producer.wait(TRIP, token, timeout_ms=60_000)


def test_one_wiped_log_is_followed_anew_and_the_others_go_on(new_node: Callable[..., Node], connection: str) -> None:
    node = new_node()
    node.written(*IDS)
    node.drain()
    before = node.positions()
    wipe(node, connection, 2)
    reanchored = metrics.reanchored.labels("Trip", "other_log").value
    with running(node.consumer()):
        node.written(*IDS, score=2.0)
        until(lambda: all(found["score"] == 2.0 for found in node.rows().values()))
    after = node.positions()
    assert metrics.reanchored.labels("Trip", "other_log").value == reanchored + 1
    assert all(after[partition] > before[partition] for partition in range(COUNT))
    assert node.rows().keys() == set(IDS)


def wipe(node: Node, connection: str, partition: int) -> None:
    """Wipe one log, as when its master is lost."""
    log = node.backend.log(partition=partition)
    if node.backend.is_remote:
        with redis.Redis.from_url(connection) as client:
            client.delete(*client.keys(f"{{quorin/{COUNT}/{partition}}}:*"))
        return
    with sqlite3.connect(Path(connection) / "quorin.db") as database:
        number = database.execute("SELECT id FROM logs WHERE identity = ?", (log.identity(),)).fetchone()[0]
        database.execute("DELETE FROM entries WHERE log = ?", (number,))
        database.execute("DELETE FROM logs WHERE id = ?", (number,))


def test_while_one_log_is_unreachable_the_others_are_applied(
    new_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = new_node()
    node.written(*IDS)
    away = [True]

    def guarded(log: Log, name: str) -> Callable[..., Any]:
        call = getattr(log, name)

        def reached(*arguments: Any, **options: Any) -> Any:
            if away[0]:
                raise ConnectionFailedError("the server of this partition is away")
            return call(*arguments, **options)

        return reached

    consumer, of_backend = node.consumer(), node.backend.log

    def log_of(*arguments: Any, **options: Any) -> Log:
        log = of_backend(*arguments, **options)
        if log.partition == 3:
            for name in ("read", "state"):
                monkeypatch.setattr(log, name, guarded(log, name), raising=False)
        return log

    node.drain()
    monkeypatch.setattr(node.backend, "log", log_of)
    node.written(*IDS, score=2.0)
    with running(consumer):
        until(lambda: sum(found["score"] == 2.0 for found in node.rows().values()) == len(in_partitions(0, 1, 2)))
        until(lambda: consumer.is_failing)
        assert {id_ for id_, found in node.rows().items() if found["score"] == 1.0} == in_partitions(3)
        away[0] = False
        until(lambda: all(found["score"] == 2.0 for found in node.rows().values()))
        until(lambda: not consumer.is_failing)


def test_each_log_is_trimmed_behind_the_nodes_that_hold_it(new_node: Callable[..., Node]) -> None:
    first, second = new_node(), new_node(held="0")
    first.written(*IDS)
    second.drain()
    presence.announce(
        second.backend.control, "consumer", second.registry.node.id,
        {"Trip": {"position": 0, "partitions": {0: {"position": 0, "lag_seconds": None}}}},
    )  # fmt: skip
    first.drain(offline=NoopOfflineWriter())
    kept = [bool(log.bounds().first) for log in logs(first.backend)]
    assert kept == [True, False, False, False], "the other node has not applied partition 0"


def test_history_is_kept_by_partition_and_read_whole(new_node: Callable[..., Node], tmp_path: Path) -> None:
    node, history = new_node(), ParquetDatasetStore(tmp_path / "history")
    node.written(*IDS)
    node.drain(offline=history)
    assert all(log.bounds().first == 0 for log in logs(node.backend)), "trimmed"
    assert {path.name for path in (tmp_path / "history" / f"partitions={COUNT}").iterdir()} == {
        f"partition={partition}" for partition in range(COUNT)
    }
    queries = {"entity_id": IDS, "as_of_time_ns": [2**62] * len(IDS)}
    whole = ParquetDatasetStore(tmp_path / "history")
    assert whole.read_point_in_time(TRIP, pa.table(queries)).column("score").to_pylist() == [1.0] * len(IDS)
    assert whole.latest_features(TRIP).num_rows == len(IDS)
    assert set(whole.distinct_entity_ids(TRIP).to_pylist()) == set(IDS)
    assert sum(batch.num_rows for _, batch, _ in whole.newest_first(TRIP)) == len(IDS)
    node.written(*IDS)
    node.drain(offline=history)
    assert whole.compact(TRIP) == COUNT
    assert whole.latest_features(TRIP).num_rows == len(IDS)
    with pytest.raises(PartitionedError, match="expected a token"):
        whole.read_at(TRIP, IDS, position=1)
    with pytest.raises(PartitionedError, match="4 partitions"):
        whole.flushed_position(TRIP)


@pytest.mark.parametrize("held", ["0-3", "1,3"])
def test_a_new_node_is_built_from_the_history_of_its_partitions(
    new_node: Callable[..., Node], tmp_path: Path, held: str
) -> None:
    node, history = new_node(), ParquetDatasetStore(tmp_path / "history")
    node.written(*IDS)
    node.drain(offline=history)
    other = new_node(held=held)
    assert hydrate(TRIP, history, other.registry).entity_count == len(other.rows())
    assert other.rows().items() <= node.rows().items()
    assert other.rows().keys() == in_partitions(*other.registry.partitioning.held)
    node.written(*IDS, score=2.0)
    assert other.drain(offline=history) == len(other.rows())


def test_a_node_that_gets_other_partitions_keeps_rows_and_reads_the_rest(
    new_node: Callable[..., Node], tmp_path: Path
) -> None:
    node, history = new_node(held="0-1"), ParquetDatasetStore(tmp_path / "history")
    node.written(*IDS)
    node.drain(offline=history)
    new_node().drain(offline=history)  # All logs are trimmed now.
    node.registry = SegmentRegistry(node.backend, shm_dir=node.registry.shm_dir, held="1-2")
    node.drain(offline=history)
    assert node.rows().keys() == in_partitions(1, 2)
    node.written(*IDS, score=2.0)
    assert node.drain(offline=history) == len(in_partitions(1, 2))


@pytest.mark.parametrize("grows", [False, True])
def test_no_row_of_a_partition_that_was_added_is_taken_for_missing(
    new_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, grows: bool
) -> None:
    """Until the node has applied what there was when it got the partition, also if the deployment grows meanwhile."""
    node, added = new_node(held="0-1"), of_partition(2)
    node.written(*IDS)
    node.drain()
    node.registry = SegmentRegistry(node.backend, shm_dir=node.registry.shm_dir, held=f"0-3/{COUNT}")
    blocked, read_log = threading.Event(), type(node.backend.log(partition=2)).read

    def away(log: Any, *arguments: Any, **options: Any) -> Any:
        if log.partition == 2 and blocked.is_set():
            raise ConnectionFailedError("the master of this partition is away")
        return read_log(log, *arguments, **options)

    monkeypatch.setattr(type(node.backend.log(partition=2)), "read", away)
    monkeypatch.setattr(filling, "SETTLE_NS", 200_000_000)
    blocked.set()
    with running(node.consumer()), node.registry.open_current(TRIP) as segment:
        until(lambda: segment.partitioning.held == set(range(COUNT)))
        until(lambda: segment.part(3).position > 0)
        if grows:
            repartition(node.backend, 2 * COUNT, wait_for="log")
        for reads in (assembly, serving):
            with pytest.raises(NotHeldError):
                reads.read(segment, added)
            with pytest.raises(NotHeldError):
                reads.assemble(segment, added[0])
            _, found = reads.assemble_batch(
                segment, IDS, missing_partitions="mask", not_held_mask=(out := np.empty(len(IDS), np.bool_))
            )
            assert out[[IDS.index(one) for one in added]].all()
            assert found[[IDS.index(one) for one in of_partition(0)]].all()
        blocked.clear()
        until(lambda: found_or_refused(segment, added) is True)
        until(lambda: found_or_refused(segment, ["none"]) is False)


def found_or_refused(segment: Segment, ids: list[str]) -> bool | None:
    """Whether all are found, or none of them; None if that is refused."""
    try:
        (is_found,) = set(read(segment, ids).column("found").to_pylist())
        return bool(is_found)
    except NotHeldError:
        return None


def test_reports_and_nodes_say_what_is_held_and_how_far_each_partition_is(new_node: Callable[..., Node]) -> None:
    node = new_node(held="2-3")
    node.written(*IDS)
    node.drain()
    with running(WALConsumer(node.backend, None, registry=node.registry)):
        until(lambda: bool(presence.reports(node.backend.control)))
        until(lambda: [one.behind.rows for one in observed_nodes(node.backend, logs(node.backend))] == [0])
        (seen,) = observed_nodes(node.backend, logs(node.backend))
        assert sorted(seen.partitions.held) == [2, 3]
        assert {part.partition for part in seen.replicas[0].parts} == {2, 3}
        assert seen.as_dict()["partitions"] == {"count": COUNT, "held": [2, 3]}
        token = node.producer.write(TRIP, of_partition(2)[0], row(3.0))
        node.producer.wait_for_nodes(TRIP, token, timeout_ms=60_000)


def test_bad_entries_become_dead_letters_of_their_partition(new_node: Callable[..., Node]) -> None:
    node = new_node()
    node.drain()
    node.backend.log(partition=1).append([("Trip", b"no record")])
    node.written(*IDS)
    assert node.drain() == len(IDS)
    assert [len(log.dead_letters()) for log in logs(node.backend)] == [0, 1, 0, 0]


def test_an_inline_consumer_settles_tokens_of_several_partitions(new_node: Callable[..., Node]) -> None:
    node = new_node()
    node.drain()
    inline = InlineConsumer(node.registry, "Trip")
    ids = {"entity_id": IDS, "score": [4.0] * len(IDS), "tag": ["t"] * len(IDS)}
    inline.settle(node.producer.write_many(TRIP, pa.table(ids)))
    assert {found["score"] for found in node.rows().values()} == {4.0}
    node.written(*IDS, score=5.0)
    inline.catch_up(0)
    assert {found["score"] for found in node.rows().values()} == {5.0}


def test_a_history_without_partitions_is_refused(new_node: Callable[..., Node]) -> None:
    class OneHistory:
        def append(self, *_: Any, **__: Any) -> None: ...
        def flush(self) -> None: ...
        def flushed_position(self, schema: Any) -> None: ...

    node = new_node()
    node.written(*IDS)
    with pytest.raises(PartitionedError, match="OneHistory"):
        node.drain(offline=OneHistory())


@pytest.mark.parametrize(("held", "is_built"), [("0-3", True), ("1,3", True), ("0-3", False)])
def test_a_new_node_starts_from_a_snapshot_that_has_all_of_its_partitions(
    new_node: Callable[..., Node], tmp_path: Path, held: str, is_built: bool
) -> None:
    node = new_node() if is_built else new_node(held="0-2")
    snapshots = SnapshotStore(tmp_path / "snapshots")
    node.written(*IDS)
    node.drain()
    writer = SnapshotWriter(snapshots, node.registry, lambda: ["Trip"], every_seconds=3600)
    assert writer.write_due() == 1
    node.drain(offline=NoopOfflineWriter())  # Trims the logs.
    other = new_node(held=held)
    in_log = set() if is_built else in_partitions(3)
    assert other.drain(snapshots=snapshots) == len(in_log)
    assert other.rows().keys() == (in_partitions(*other.registry.partitioning.held) if is_built else in_log)
    node.written(*IDS, score=2.0)
    assert other.drain() == len(in_partitions(*other.registry.partitioning.held))


def test_a_trim_that_failed_is_tried_again_without_new_rows(
    new_node: Callable[..., Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, trim, failed = new_node(), Trimming._trim, set[int | None]()

    def fails_once(self: Trimming, *arguments: Any) -> None:
        if self._partition not in failed:
            failed.add(self._partition)
            raise ConnectionFailedError("the log is away")
        trim(self, *arguments)

    monkeypatch.setattr(Trimming, "_trim", fails_once)
    node.written(*IDS)
    with running(node.consumer(offline=ParquetDatasetStore(tmp_path / "history"), flush_interval_seconds=0.2)):
        until(lambda: all((seen := log.bounds()).trimmed == seen.last for log in logs(node.backend)))
    assert failed == set(range(COUNT))
