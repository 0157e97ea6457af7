"""Whatever is pushed, materialized, changed, torn down, killed or rebooted on machines of one Redis and one registry:
all end with the same rows, and none goes back in event time.
"""

from __future__ import annotations

import datetime as dt
import multiprocessing
import random
import shutil
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import Float64, Int64

from tests.feast.repos import END, START, make_store
from tests.feast.spawned import spawned
from tests.support.redis_server import RedisServer
from tests.support.walks import take_walk
from tests.support.world import until

CUSTOMERS = [f"c{number}" for number in range(8)]
END_OF_TIME = END + dt.timedelta(days=1000)


def definitions(source: Path, fields: int) -> list[Any]:
    """A view that has been given ``fields`` further fields, over a source that pushes feed as well."""
    customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.STRING)
    batch = FileSource(path=str(source), timestamp_field="at")
    view = FeatureView(
        name="stats",
        entities=[customer],
        schema=[Field(name="score", dtype=Float64), *(Field(name=f"f{n}", dtype=Int64) for n in range(fields))],
        source=PushSource(name="stats_push", batch_source=batch),
    )
    return [customer, view]


def answer(repo: Path, online_store: dict[str, Any], source: Path, pipe: Connection) -> None:
    """A machine's process: does what it is told, with the newest registry."""
    store = make_store(repo, online_store, data=source.parent)
    while True:
        name, *arguments = pipe.recv()
        try:
            pipe.send((True, _COMMANDS[name](store, source, *arguments)))
        except Exception as error:  # noqa: BLE001 - the test raises it
            pipe.send((False, f"{name} {arguments}: {error!r}"))


def _apply(store: FeatureStore, source: Path, fields: int) -> None:
    store.apply(definitions(source, fields))


def _push(store: FeatureStore, _: Path, rows: pd.DataFrame) -> None:
    store.refresh_registry()
    store.push("stats_push", rows)


def _write(store: FeatureStore, _: Path, rows: pd.DataFrame) -> None:
    store.refresh_registry()
    store.write_to_online_store("stats", rows)


def _materialize(store: FeatureStore, _: Path) -> None:
    store.refresh_registry()
    store.materialize(START, END_OF_TIME)


def _teardown(store: FeatureStore, _: Path) -> None:
    store.refresh_registry()
    store.teardown()


def _read(store: FeatureStore, _: Path) -> list[float | None]:
    store.refresh_registry()
    found = store.get_online_features(["stats:score"], {"customer": CUSTOMERS}).to_dict()
    scores: list[float | None] = found["score"]
    return scores


_COMMANDS = {
    "apply": _apply,
    "push": _push,
    "write": _write,
    "materialize": _materialize,
    "teardown": _teardown,
    "read": _read,
}


class Machine:
    """A process with a segment directory of its own."""

    def __init__(self, repo: Path, shm_dir: Path, redis_url: str, source: Path) -> None:
        self.shm_dir = shm_dir
        self._online_store = {"type": "quorin", "redis_url": redis_url, "shm_dir": str(shm_dir), "capacity": 64}
        self._repo, self._source = repo, source
        self.newest: dict[str, float] = {}
        self.start()

    def start(self) -> None:
        self.shm_dir.mkdir(exist_ok=True)
        self._pipe, other = multiprocessing.Pipe()
        self._process = spawned(answer, self._repo, self._online_store, self._source, other)

    def ask(self, *words: Any) -> Any:
        self._pipe.send(words)
        assert self._pipe.poll(120), f"no answer to {words}"
        is_done, result = self._pipe.recv()
        assert is_done, result
        return result

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def reboot(self) -> None:
        """The process dies, and the machine's memory is lost."""
        self.kill()
        shutil.rmtree(self.shm_dir)
        self.newest.clear()
        self.start()


class Walk:
    """Random operations; a row's score is the number of its event time, so the highest is the one to be served."""

    def __init__(self, server: RedisServer, folder: Path, seed: int) -> None:
        self.random, self.server = random.Random(seed), server
        self.source = folder / "source.parquet"
        self.clock, self.fields = 0, 0
        self.expected: dict[str, float] = {}
        self.in_source: dict[str, float] = {}
        self.extend_source()
        self.machines = [Machine(folder / "repo", folder / name, server.url, self.source) for name in "ABC"]
        self.machines[0].ask("apply", self.fields)

    @property
    def any_machine(self) -> Machine:
        return self.random.choice(self.machines)

    def step(self) -> None:
        steps = [self.push] * 6 + [self.write] * 3 + [self.materialize] * 3 + [self.read] * 6
        steps += [self.change, self.tear_down, self.kill, self.reboot, self.restart_redis]
        self.random.choice(steps)()

    def rows(self, late_by: int = 0) -> pd.DataFrame:
        """New rows of some customers."""
        chosen = self.random.sample(CUSTOMERS, 3)
        self.clock += 1
        score = float(max(1, self.clock - late_by))
        at = [START + dt.timedelta(seconds=score)] * len(chosen)
        more = {f"f{number}": [self.clock] * len(chosen) for number in range(self.fields)}
        return pd.DataFrame({"customer": chosen, "at": at, "score": [score] * len(chosen), **more})

    def expect(self, scores: dict[str, float]) -> None:
        for customer, score in scores.items():
            self.expected[customer] = max(score, self.expected.get(customer, 0.0))

    def push(self) -> None:
        rows = self.rows(late_by=self.random.choice([0, 0, 0, 5]))
        self.any_machine.ask("push", rows)
        self.expect(dict(zip(rows.customer, rows.score, strict=True)))

    def write(self) -> None:
        rows = self.rows()
        self.any_machine.ask("write", rows)
        self.expect(dict(zip(rows.customer, rows.score, strict=True)))

    def extend_source(self) -> None:
        rows = self.rows()
        self.in_source |= dict(zip(rows.customer, rows.score, strict=True))
        at = [START + dt.timedelta(seconds=score) for score in self.in_source.values()]
        table = pd.DataFrame({"customer": list(self.in_source), "at": at, "score": list(self.in_source.values())})
        table.assign(**{f"f{number}": 0 for number in range(40)}).to_parquet(self.source)

    def materialize(self) -> None:
        self.extend_source()
        self.any_machine.ask("materialize")
        self.expect(self.in_source)

    def read(self) -> None:
        machine = self.any_machine
        for customer, score in zip(CUSTOMERS, machine.ask("read"), strict=True):
            if score is not None:
                assert score >= machine.newest.get(customer, 0.0), customer
                machine.newest[customer] = score

    def change(self) -> None:
        self.fields += 1
        self.any_machine.ask("apply", self.fields)

    def tear_down(self) -> None:
        self.any_machine.ask("teardown")
        self.any_machine.ask("apply", self.fields)
        self.expected.clear()
        for machine in self.machines:
            until(lambda machine=machine: machine.ask("read") == [None] * len(CUSTOMERS))
            machine.newest.clear()

    def kill(self) -> None:
        machine = self.any_machine
        machine.kill()
        machine.start()

    def reboot(self) -> None:
        self.any_machine.reboot()

    def restart_redis(self) -> None:
        self.server.kill()
        time.sleep(0.2)
        self.server.start()

    def converge(self) -> None:
        """Every machine serves what was written last, and nothing that went with a teardown."""
        self.push()
        expected = [self.expected.get(customer) for customer in CUSTOMERS]
        for machine in self.machines:
            until(lambda machine=machine: machine.ask("read") == expected)

    def close(self) -> None:
        for machine in self.machines:
            machine.kill()


@pytest.mark.parametrize(("seed", "steps"), [(1, 60), pytest.param(None, 2_000, marks=pytest.mark.torture)])
def test_machines_converge(
    durable_redis: RedisServer,
    tmp_path: Path,
    seed: int | None,
    steps: int,
) -> None:
    take_walk(lambda seed: Walk(durable_redis, tmp_path, seed), seed, steps, between=20)
