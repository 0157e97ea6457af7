"""Rows go to a new node from a process of their own, which ends with whatever needs it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import requests

from quorin.engine.bootstrap.image import TRAILER_BYTES
from quorin.engine.bootstrap.names import Wanted
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.snapshot import Peers
from tests.support.donor import senders, serve
from tests.support.fleet import until
from tests.support.http import Running
from tests.support.machines import Machine

WIDE = make_schema("Wide", [FeatureField("text", dtype.string)])
COUNT, TEXT = 200, "long text " * 4_000
"""Some megabytes: more than the buffers of a connection hold."""


class Donor(NamedTuple):
    machine: Machine
    server: Running
    aside: Path

    def asked(self) -> requests.Response:
        """An answer of which nothing but the head was read."""
        return requests.get(f"{self.server.url}/v1/snapshot?schema=Wide", stream=True, timeout=120)

    def copied_by(self, receiver: SegmentRegistry, **options: float) -> int:
        """Rows that another node gets."""
        wanted = Wanted(self.machine.log().identity(), None, 0)
        segment = Peers([self.server.url], **options).segment(WIDE, receiver, wanted, progress=lambda *_: None)
        assert segment is not None
        rows = len(segment)
        receiver.discard(segment)
        return rows


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("donor"))
    machine.producer.write_many(WIDE, {"entity_id": [f"e{n}" for n in range(COUNT)], "text": [TEXT] * COUNT})
    machine.drain([WIDE], capacity=COUNT)
    yield machine
    machine.reboot()
    machine.close()


@pytest.fixture
def donor(machine: Machine, tmp_path: Path) -> Iterator[Donor]:
    aside = tmp_path / "aside"
    aside.mkdir()
    with serve(machine, tmp_path / "log", TMPDIR=str(aside)) as server:
        yield Donor(machine, server, aside)


@pytest.fixture
def receiver(machine: Machine, tmp_path: Path) -> Iterator[SegmentRegistry]:
    (tmp_path / "shm").mkdir()
    registry = SegmentRegistry(machine.shm.parent / "store", shm_dir=tmp_path / "shm")
    yield registry
    registry.backend.close()


def test_the_server_takes_no_part_in_sending_rows(donor: Donor) -> None:
    with donor.asked() as answer:
        size = int(answer.headers["content-length"]) - TRAILER_BYTES
        (sender,) = senders(donor.server)
        assert os.sched_getscheduler(sender) == os.SCHED_IDLE
        assert list(donor.aside.iterdir()) == [], "the copy has no name"
        first = answer.raw.read(1)
        os.kill(donor.server.process.pid, signal.SIGSTOP)
        try:
            rows = first + answer.raw.read(size - 1)
        finally:
            os.kill(donor.server.process.pid, signal.SIGCONT)
        assert len(rows) == size
        assert len(answer.raw.read()) == TRAILER_BYTES
    until(lambda: not senders(donor.server))


def test_a_node_that_goes_away_frees_the_place_and_the_copy(donor: Donor, receiver: SegmentRegistry) -> None:
    with donor.asked() as answer:
        answer.raw.read(1)
        assert senders(donor.server)
    until(lambda: not senders(donor.server))
    assert donor.copied_by(receiver) == COUNT


def test_a_node_that_goes_away_while_rows_are_copied_frees_the_place(donor: Donor, receiver: SegmentRegistry) -> None:
    with pytest.raises(requests.ReadTimeout):
        requests.get(f"{donor.server.url}/v1/snapshot?schema=Wide", timeout=0.001)
    until(lambda: not senders(donor.server))
    assert donor.copied_by(receiver) == COUNT
    assert list(donor.aside.iterdir()) == []


def test_a_copy_that_takes_longer_than_the_other_node_waits_is_waited_for(
    donor: Donor, receiver: SegmentRegistry
) -> None:
    """A segment of many gigabytes; here the process is stopped."""
    import threading

    def hold() -> None:
        until(lambda: senders(donor.server))
        (sender,) = senders(donor.server)
        os.kill(sender, signal.SIGSTOP)
        time.sleep(5)
        os.kill(sender, signal.SIGCONT)

    holding = threading.Thread(target=hold)
    holding.start()
    try:
        assert donor.copied_by(receiver, timeout_seconds=2.5) == COUNT
    finally:
        holding.join()


def test_a_server_that_is_killed_leaves_no_process(machine: Machine, tmp_path: Path) -> None:
    with serve(machine, tmp_path / "log") as server:
        answer = requests.get(f"{server.url}/v1/snapshot?schema=Wide", stream=True, timeout=120)
        with answer:
            answer.raw.read(1)
            (sender,) = senders(server)
            server.process.kill()
            until(lambda: not Path(f"/proc/{sender}").exists())


def test_a_server_that_is_stopped_ends_although_rows_are_sent(machine: Machine, tmp_path: Path) -> None:
    with serve(machine, tmp_path / "log", "--drain-seconds", "0") as server:
        answer = requests.get(f"{server.url}/v1/snapshot?schema=Wide", stream=True, timeout=120)
        with answer:
            answer.raw.read(1)
            (sender,) = senders(server)
            server.process.terminate()
            server.process.wait(60)
            until(lambda: not Path(f"/proc/{sender}").exists())
