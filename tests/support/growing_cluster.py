"""A partitioned deployment on a real cluster: nodes, writers and a reader that go on while masters die and slots move,
and the check that afterwards all that was acknowledged is served, but for what Redis' replication lost.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from redis.crc import key_slot

from quorin.engine.backend import connect
from quorin.engine.backend.partition_keys import log_tag
from quorin.engine.format.growth import Growth
from quorin.engine.format.partition import partition_of
from quorin.errors import ConnectionFailedError
from quorin.evolution import repartition
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.forking import context, preload
from tests.support.growing import NUMBERS, Reader, consume, row, rows_of, until, write
from tests.support.redis_cluster import Cluster

preload(__name__)

PARTITIONS = 4
_STILL = [f"still {number}" for number in range(20)]
_REPORTED = re.compile(r"(?:log_reanchored|closed_log_lost_entries) .*\bpartition=(\d+)")


@cache
def slot(namespace: str, partition: int, count: int = PARTITIONS) -> int:
    """The slot of a log."""
    return int(key_slot(f"{{{log_tag(namespace, count, partition)}}}".encode()))


@dataclass(frozen=True)
class Loss:
    """What a master acknowledged between two times of the monotonic clock may be lost, in the slots that it had."""

    began: float
    ended: float
    slots: frozenset[int]


@dataclass
class Failovers:
    """Failovers of a cluster, and what each may have lost."""

    cluster: Cluster
    losses: list[Loss] = field(default_factory=list)

    def fail_over(self, slot: int) -> None:
        """Kill the slot's master, and wait for its replica to take over."""
        with self._losing(slot):
            self.cluster.fail_over(slot)
        self.cluster.repair()

    def lose(self, slot: int, seconds: float) -> None:
        """The same after so many seconds in which the replica got nothing."""
        with self._losing(slot), self.cluster.not_replicating(slot):
            time.sleep(seconds)
        self.cluster.repair()

    @contextmanager
    def _losing(self, slot: int) -> Iterator[None]:
        began, slots = time.monotonic(), self.cluster.slots_of(self.cluster.master_of(slot))
        yield
        # Redis may answer a moment before it sends to its replica.
        self.losses.append(Loss(began - 0.1, time.monotonic(), slots))

    def may_have_lost(self, entity: str, began: float, ended: float, counts: list[int]) -> bool:
        """Whether the only write of an id, between these times, may be lost with any of its logs."""
        slots = {slot("quorin", partition_of(entity, count), count) for count in counts}
        return any(began <= loss.ended and ended >= loss.began and slots & loss.slots for loss in self.losses)


@dataclass(frozen=True)
class Written:
    """The last acknowledged write of an id."""

    number: int
    began: float
    ended: float


class Fleet:
    """A node with all rows and two with a half each, two writers, and a reader, in processes that go on."""

    HELD = {"whole": None, "low": "0-1/4", "high": "2-3/4"}

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.failovers = Failovers(cluster)
        self.url = f"{cluster.url}&partitions={PARTITIONS}"
        self.backend = connect(self.url)
        self.directory = directory
        self.stop, self.notes = directory / "stop", [directory / f"acknowledged {number}" for number in range(2)]
        self.nodes: dict[str, SegmentRegistry] = {}
        self.lost: dict[str, set[str]] = {}
        with WALProducer(self.url, block_ms=60_000) as producer:
            for number, entity in enumerate(_STILL):
                producer.write(NUMBERS, entity, row(number))
        for name, held in self.HELD.items():
            (directory / name).mkdir()
            self.nodes[name] = SegmentRegistry(self.backend, shm_dir=directory / name, held=held)
            consumer = WALConsumer(self.backend, [NUMBERS], registry=self.nodes[name])
            consumer.drain()
            consumer.close()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside the block all goes on; after it each node has what was acknowledged, or newer."""
        consumers = [
            context.Process(
                target=_consume_and_say, args=(str(self._said(name)), self.url, str(self.nodes[name].shm_dir), "", held)
            )
            for name, held in self.HELD.items()
        ]
        writers = [
            context.Process(
                target=write, args=(self.url, number, str(path), str(self.stop), 60_000), kwargs={"once": True}
            )
            for number, path in enumerate(self.notes)
        ]
        for process in (*consumers, *writers):
            process.start()
        self._writers = writers
        try:
            until(lambda: all(path.exists() and len(path.read_text()) > 1000 for path in self.notes))
            with Reader(self.nodes["whole"], _STILL) as reader:
                yield
                self.go_on()
            assert reader.failures == []
            assert reader.reads
            self.stop.touch()
            for process in writers:
                process.join(120)
            assert [process.exitcode for process in writers] == [0, 0]
            self.lost = self.check()
        except BaseException as error:
            error.add_note(self._state())
            for name in self.HELD:
                error.add_note(f"{name} said:\n{self._said(name).read_text()[-4000:]}")
            raise
        finally:
            self.stop.touch()
            for process in (*writers, *consumers):
                process.terminate()
                process.join(60)
            self.backend.close()

    def go_on(self, seconds: float = 300) -> None:
        """Until both writers have written each of their ids again."""

        def numbers() -> list[int]:
            assert all(process.is_alive() for process in self._writers), "a writer has ended"
            return [int(path.read_text().rpartition("\n")[0].rpartition("\n")[2].split("\t")[1]) for path in self.notes]

        before = numbers()
        until(lambda: all(now > then + 60 for now, then in zip(numbers(), before, strict=True)), seconds)

    def grow(self, count: int) -> None:
        """As the command does that is run again when it fails."""

        def is_done() -> bool:
            with suppress(ConnectionFailedError):
                return repartition(self.backend, count, wait_for="log").partitions == count
            return False

        until(is_done, 300)

    def wait_for_nodes(self, count: int) -> None:
        """Until all nodes have so many partitions, and the control plane says so."""

        def has(registry: SegmentRegistry) -> bool:
            with registry.open_current(NUMBERS) as segment:
                return segment.partitioning.count == count

        def is_there() -> bool:
            with suppress(ConnectionFailedError):
                return self.backend.control.partition_count() == count and all(map(has, self.nodes.values()))
            return False

        until(is_there, 120)
        self.backend.forget_partitions()

    def acknowledged(self) -> dict[str, Written]:
        """The last write of each id."""
        found: dict[str, Written] = {}
        for path in self.notes:
            for line in path.read_text().splitlines():
                entity, number, began, ended = line.split("\t")
                found[entity] = Written(int(number), float(began), float(ended))
        return found

    def check(self) -> dict[str, set[str]]:
        """Each node serves what was acknowledged of the partitions that it holds, or newer, but for ids that were
        written once, while their log's master was cut off from its replica: these are returned, by node. Nodes that
        differ in such an id have reported that a log of it lost entries.
        """
        wanted = self.acknowledged()
        counts = [PARTITIONS << times for times in range(9) if PARTITIONS << times <= 256]
        lost = {
            entity
            for entity, one in wanted.items()
            if " once " in entity and self.failovers.may_have_lost(entity, one.began, one.ended, counts)
        }
        assert len(lost) < len(wanted) / 2
        missing: dict[str, set[str]] = {}

        def find_missing() -> bool:
            for name, registry in self.nodes.items():
                served = rows_of(registry, list(wanted))
                with registry.open_current(NUMBERS) as segment:
                    count, held = segment.partitioning.count, segment.partitioning.held
                missing[name] = {
                    entity
                    for entity, one in wanted.items()
                    if partition_of(entity, count) in held and (served[entity] or 0) < one.number
                }
            return all(gone <= lost for gone in missing.values())

        try:
            until(find_missing, 120)
        except AssertionError as error:
            unexplained = {name: sorted(gone - lost) for name, gone in missing.items()}
            for name, gone in unexplained.items():
                error.add_note(f"{name} lacks {len(gone)}: {[(one, wanted[one]) for one in gone[:20]]}")
            error.add_note(f"losses: {[(loss.began, loss.ended) for loss in self.failovers.losses]}")
            raise
        self._check_reports(missing, counts)
        return missing

    def _check_reports(self, missing: dict[str, set[str]], counts: list[int]) -> None:
        said = "".join(self._said(name).read_text() for name in self.HELD)
        reported = {int(found[1]) for found in _REPORTED.finditer(said)}
        for entity in missing["whole"] ^ (missing["low"] | missing["high"]):
            assert reported & {partition_of(entity, count) for count in counts}, f"{entity} differs, and nobody said so"

    def _state(self) -> str:
        """What the control plane, the logs and the nodes have, to find out why something did not happen."""
        growth = Growth.parse(self.backend.control.growth())
        found = [f"growth: {growth}", f"partitions: {self.backend.control.partition_count()}"]
        for count in dict.fromkeys((*growth.counts, growth.count, self.backend.control.partition_count() or 1)):
            logs = (self.backend.log(partition=number, of=count) for number in range(count))
            found += [f"log {log.partition} of {count}: {log.state()} {log.closed_by()}" for log in logs]
        for name, registry in self.nodes.items():
            found.append(f"{name} knows {registry.node.state().growth}")
            with registry.open_current(NUMBERS) as segment:
                parts = [(part.partition, part.position, part.log_identity) for part in segment.parts()]
                found.append(f"{name}: {segment.name} {segment.partitioning} {parts}")
        return "\n".join(found)

    def _said(self, name: str) -> Path:
        return self.directory / f"{name} said"


def _consume_and_say(said: str, *arguments: Any) -> None:
    """Consume, with standard error in a file."""
    os.dup2(os.open(said, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), 2)
    consume(*arguments)
