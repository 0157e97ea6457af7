"""Whatever is written, upgraded, dropped, killed or rebooted on several nodes: all of them end with the same rows, no
read fails, and none goes back in event time.
"""

from __future__ import annotations

import random
import signal
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from quorin.engine.backend import Beginning
from quorin.errors import SegmentNotFoundError
from quorin.evolution import upgrade_schema
from quorin.schema import FeatureField, Schema, dtype, make_schema
from quorin.wal import WALProducer
from tests.support.fleet import Node, until
from tests.support.redis_server import RedisServer
from tests.support.walks import take_walk

IDS = 30
SECOND = 10**9
FROZEN_SECONDS = 1.5


def version(number: int) -> Schema:
    """Version ``number`` of the schema: each has one field more."""
    more = [FeatureField(f"f{extra}", dtype.int64) for extra in range(1, number)]
    fields = [FeatureField("number", dtype.int64), FeatureField("text", dtype.string), *more]
    return make_schema("Walk", fields, version=number)


class Walk:
    """Random operations on a deployment of several nodes, each with two serving processes."""

    def __init__(self, server: RedisServer, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.server, self.folder = server, folder
        self.nodes = [Node(server.url, folder / name) for name in "ABC"]
        for node in self.nodes:
            self.start_two(node)
        self.registry = self.nodes[0].registry()
        self.producer = WALProducer(self.registry.backend, registry=self.registry)
        self.clock, self.number, self.version = 0, 0, 1
        self.newest: dict[str, dict[str, int]] = defaultdict(dict)
        self.is_built = False
        self.begin()

    def begin(self) -> None:
        """Store the schema anew; its rows begin here."""
        identity, bounds = self.registry.backend.log().state()
        assert self.registry.create_schema(version(self.version), Beginning(identity, bounds.last))
        self.is_built = False

    def step(self) -> None:
        """One random operation."""
        steps = [self.write] * 8 + [self.bulk] * 3 + [self.delete] * 2 + [self.read] * 6
        steps += [self.upgrade, self.recreate, self.kill, self.freeze, self.reboot, self.wipe]
        self.random.choice(steps)()

    def values(self) -> dict[str, Any]:
        self.number += 1
        more = {f"f{extra}": self.number for extra in range(1, self.version)}
        return {"number": self.number, "text": f"t{self.number}", **more}

    def write(self) -> None:
        self.clock += 1
        entity_id = f"e{self.random.randrange(IDS)}"
        self.producer.write(version(self.version), entity_id, self.values(), self.clock * SECOND)

    def bulk(self) -> None:
        for _ in range(20):
            self.write()

    def delete(self) -> None:
        self.clock += 1
        self.producer.delete(version(self.version), f"e{self.random.randrange(IDS)}", self.clock * SECOND)

    def read(self) -> None:
        """Rows of a random process: it answers, and no row is older than it was there before."""
        node = self.random.choice(self.nodes)
        newest = self.newest[node.shm_dir.name]
        try:
            rows = self.random.choice(node.servers).rows("Walk")
        except SegmentNotFoundError:
            assert not self.is_built, "a segment that is in force is always there to be read"
            return
        for row in rows:
            if row["found"]:
                at = row["event_time_ns"]
                assert at >= newest.get(row["entity_id"], 0), row
                newest[row["entity_id"]] = at

    def upgrade(self) -> None:
        if self.version < 4:
            old, self.version = version(self.version), self.version + 1
            # The node's segment of a schema that was dropped and stored again may be about to be replaced.
            until(lambda: upgrade_schema(old, version(self.version), self.registry, timeout_seconds=60))

    def recreate(self) -> None:
        assert self.registry.backend.control.drop_schema("Walk")
        self.begin()

    def kill(self) -> None:
        """A process dies, and another takes its place."""
        node = self.random.choice(self.nodes)
        server = node.servers.pop(self.random.randrange(2))
        server.stop()
        node.start(frozen_after_seconds=FROZEN_SECONDS)

    def start_two(self, node: Node) -> None:
        for _ in range(2):
            node.start(frozen_after_seconds=FROZEN_SECONDS)

    def freeze(self) -> None:
        """A process is frozen, perhaps for so long that the other one of its node takes over."""
        node = self.random.choice(self.nodes)
        server = self.random.choice(node.servers)
        server.kill(signal.SIGSTOP)
        time.sleep(self.random.choice([0.3, FROZEN_SECONDS + 1]))
        server.kill(signal.SIGCONT)

    def reboot(self) -> None:
        """All processes of a node die, its memory is lost, and they start again."""
        node = self.random.choice(self.nodes[1:])
        node.stop()
        node.servers.clear()
        node.reboot()
        self.newest[node.shm_dir.name].clear()
        self.is_built = False
        self.start_two(node)

    def wipe(self) -> None:
        """Redis is away for a moment."""
        self.server.kill()
        time.sleep(0.2)
        self.server.start()

    def converge(self) -> None:
        """All processes serve the same rows in the end."""
        answers: list[Any] = []

        def is_same() -> bool:
            answers[:] = [server.rows("Walk") for node in self.nodes for server in node.servers]
            return all(answer == answers[0] for answer in answers) and self.is_complete(answers[0])

        self.number += 1
        last = {"number": self.number, "text": "last", **{f"f{n}": 0 for n in range(1, self.version)}}
        self.clock += 1
        self.producer.write(version(self.version), "last", last, self.clock * SECOND)
        until(is_same, seconds=120)
        self.is_built = True

    def is_complete(self, rows: list[Any]) -> bool:
        return any(row["entity_id"] == "last" and row["number"] == self.number for row in rows)

    def close(self) -> None:
        for node in self.nodes:
            node.stop()
        self.producer.close()
        self.registry.backend.close()


@pytest.mark.parametrize(("seed", "steps"), [(1, 60), (2, 60), pytest.param(None, 3_000, marks=pytest.mark.torture)])
def test_nodes_converge(
    durable_redis: RedisServer,
    tmp_path: Path,
    seed: int | None,
    steps: int,
) -> None:
    take_walk(lambda seed: Walk(durable_redis, tmp_path, seed), seed, steps, between=30)
