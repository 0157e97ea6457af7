"""Reads of several views at one position of the log, while writers and consumers at full speed are killed, frozen and
started again. The log says afterwards what each answer should have been.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from quorin.engine.backend import connect
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support import moments
from tests.support.consumers import kill, start
from tests.support.fleet import until
from tests.support.freezing import freeze

torture = pytest.mark.torture
READERS = WRITERS = CONSUMERS = 2


@pytest.mark.parametrize("kills", [8, pytest.param(150, marks=torture)])
@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize("server", ["embedded", "redis"])
def test_no_answer_mixes_moments_whoever_is_killed(
    request: pytest.FixtureRequest, tmp_path: Path, server: str, partitions: int, kills: int
) -> None:
    connection = str(tmp_path / "store") if server == "embedded" else str(request.getfixturevalue("redis_url"))
    (shm_dir := tmp_path / "shm").mkdir()
    backend = connect(connection, partitions=partitions)
    registry = SegmentRegistry(backend, shm_dir=shm_dir)
    with WALProducer(backend, registry=registry) as producer:
        for view in moments.VIEWS:
            for one in moments.IDS:
                producer.delete(view, one, 1)  # A segment without an entry follows no log yet.
    WALConsumer(backend, moments.VIEWS, registry=registry, capacity=16).drain()

    rng, seeds = random.Random(kills), iter(range(1, 10_000))
    notes = [tmp_path / f"answers {number}" for number in range(READERS)]
    readers = [start(moments.read, connection, str(shm_dir), next(seeds), str(path)) for path in notes]
    consumers = [start(moments.apply, connection, str(shm_dir), next(seeds)) for _ in range(CONSUMERS)]
    writers = [start(moments.write, connection, next(seeds)) for _ in range(WRITERS)]
    try:
        for kind in rng.sample(["writer", "consumer", "frozen consumer", "frozen reader"] * kills, kills):
            _wait_for_newer_answers(notes)
            time.sleep(rng.uniform(0, 0.1))
            if kind == "writer":
                kill(writers[0])
                writers = [*writers[1:], start(moments.write, connection, next(seeds))]
            elif kind == "consumer":
                kill(consumers[0])
                consumers = [*consumers[1:], start(moments.apply, connection, str(shm_dir), next(seeds))]
            else:
                frozen = consumers[0] if kind == "frozen consumer" else rng.choice(readers)
                freeze(frozen.pid)
                while _holds_up_others(tmp_path):
                    os.kill(frozen.pid, signal.SIGCONT)
                    time.sleep(rng.uniform(0, 0.1))
                    freeze(frozen.pid)
                if frozen in consumers:
                    _wait_for_newer_answers(notes)
                os.kill(frozen.pid, signal.SIGCONT)
        _wait_for_newer_answers(notes)
        assert all(process.is_alive() for process in (*readers, *writers, *consumers))
    finally:
        for process in (*readers, *writers, *consumers):
            if process.is_alive():
                kill(process)
    found = [answer for path in notes for answer in moments.answers(path)]
    assert moments.check(backend, found) > kills
    with pytest.raises(AssertionError):
        moments.check(backend, [*found, _mixed(found)])
    backend.close()


def _wait_for_newer_answers(notes: list[Path]) -> None:
    """Until each reader has an answer of a later moment than any has now."""
    now = max(map(moments.newest, notes))
    until(lambda: min(map(moments.newest, notes)) > now)


def _holds_up_others(folder: Path) -> bool:
    """Whether a frozen process may be writing to the embedded store: nobody else can until it wakes."""
    for database in (folder / "store").glob("*.db"):
        with closing(sqlite3.connect(database, timeout=10, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            connection.execute("ROLLBACK")
    return False


def _mixed(found: list[Any]) -> Any:
    """The ids and rows of the last answer with a row, as if they had been those of the first moment."""
    first = min(found, key=moments.position_of)
    last = max((answer for answer in found if any(answer[2][0])), key=moments.position_of)
    return [first[0], last[1], last[2]]
