"""Machines that hold parts, by the commands alone: `quorin consumer` and `quorin serve` on each, over one Redis."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import requests

from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from tests.support.fleet import until
from tests.support.forking import Forked, run_module
from tests.support.http import Running, serving

TRIP = make_schema("Trip", [FeatureField("fare", dtype.float64), FeatureField("city", dtype.string)])
IDS = [f"trip-{number}" for number in range(60)]
COUNT = 4


@contextmanager
def machine(folder: Path, connection: str, ordinal: int) -> Iterator[Running]:
    """One of two machines: its consumer takes an equal share of the partitions, and its server advertises itself."""
    place = ["--connection", connection, "--shm-dir", str(folder / f"shm-{ordinal}")]
    share = ["--partitions", "auto", "--ordinal", str(ordinal), "--of", "2"]
    with ExitStack() as stack:
        log = stack.enter_context((folder / f"consumer-{ordinal}.log").open("a"))
        words = ["python", "quorin", "consumer", *place, *share, "--trim"]
        consumer = Forked(run_module, words, dict(os.environ), out=log, err=log)
        stack.callback(consumer.close)
        words = ["quorin", "serve", "-p", "{port}", *place, "--advertise", "http://127.0.0.1:{port}"]
        yield stack.enter_context(serving([*words, "--peer-timeout", "60s"], folder / f"serve-{ordinal}.log"))
        consumer.send_signal(signal.SIGTERM)
        assert consumer.wait(60) == 0


def read(server: Running) -> requests.Response:
    body = {"schema": "Trip", "entity_ids": [*IDS, "nobody"]}
    return requests.post(server.url + "/v1/read", json=body, timeout=60)


def test_two_machines_with_halves_answer_for_all_ids(redis_url: str, tmp_path: Path) -> None:
    connection = f"{redis_url}?partitions={COUNT}"
    for ordinal in range(2):
        (tmp_path / f"shm-{ordinal}").mkdir()
    SegmentRegistry(connection, shm_dir=tmp_path / "shm-0", held="0-1").create(TRIP, capacity=64).close()
    with WALProducer(connection) as producer, machine(tmp_path, connection, 0) as first:
        for number, one in enumerate(IDS):
            producer.write(TRIP, one, {"fare": number / 3, "city": f"Łódź {number}"})
        producer.delete(TRIP, IDS[7])
        with machine(tmp_path, connection, 1) as second:
            for server in (first, second):
                until(lambda server=server: read(server).ok)
                answer = read(server).json()
                assert answer["found"] == [one != IDS[7] for one in IDS] + [False]
                fares = [None if one == IDS[7] else number / 3 for number, one in enumerate(IDS)]
                assert answer["features"]["fare"] == [*fares, None]
        # The second machine is gone, and with it half of the rows: that is said, and never "not found".
        refused = read(first)
        assert (refused.status_code, refused.json()["partition"] >= COUNT // 2) == (503, True)
        with machine(tmp_path, connection, 1):
            until(lambda: read(first).ok)
            assert read(first).json() == answer
