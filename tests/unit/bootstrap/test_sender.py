"""Rows go to a new node from a process of their own, which ends with whatever needs it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import requests
import urllib3

from quorin.engine.bootstrap.names import Wanted
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.snapshot import Peers
from tests.support.donor import children, senders, serve
from tests.support.fleet import until
from tests.support.freezing import freeze
from tests.support.http import Running
from tests.support.machines import Machine

WIDE = make_schema("Wide", [FeatureField("text", dtype.string)])
COUNT, TEXT = 200, "long text " * 4_000
"""Some megabytes: more than the buffers of a connection hold."""


class Donor(NamedTuple):
    machine: Machine
    server: Running
    aside: Path
    log: Path

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
        yield Donor(machine, server, aside, tmp_path / "log")


@pytest.fixture
def receiver(machine: Machine, tmp_path: Path) -> Iterator[SegmentRegistry]:
    (tmp_path / "shm").mkdir()
    registry = SegmentRegistry(machine.shm.parent / "store", shm_dir=tmp_path / "shm")
    yield registry
    registry.backend.close()


def test_the_process_gives_way_and_its_copy_has_no_name(donor: Donor) -> None:
    with donor.asked() as answer:
        size = int(answer.headers["content-length"])
        (sender,) = senders(donor.server)
        assert os.getpriority(os.PRIO_PROCESS, sender) == os.getpriority(os.PRIO_PROCESS, 0) + 10
        assert list(donor.aside.iterdir()) == []
        assert len(answer.raw.read()) == size
    assert senders(donor.server) == [], "it has ended before the last byte is sent"


def test_a_process_that_is_killed_breaks_off_what_it_sends(donor: Donor, receiver: SegmentRegistry) -> None:
    with donor.asked() as answer:
        (sender,) = senders(donor.server)
        os.kill(sender, signal.SIGKILL)
        with pytest.raises(urllib3.exceptions.ProtocolError):
            answer.raw.read()
    until(lambda: "the process that sends died" in donor.log.read_text())
    assert donor.copied_by(receiver) == COUNT


def test_a_process_that_is_killed_while_it_copies_is_an_error_with_a_name(donor: Donor) -> None:
    answers: list[requests.Response] = []
    asking = threading.Thread(target=lambda: answers.append(donor.asked()))
    asking.start()
    until(lambda: senders(donor.server))
    for sender in senders(donor.server):
        os.kill(sender, signal.SIGKILL)
    asking.join()
    assert answers[0].status_code == 503
    assert "the process that copies died" in donor.log.read_text()
    assert senders(donor.server) == []


def test_many_transfers_leave_no_descriptor_and_no_process(donor: Donor, receiver: SegmentRegistry) -> None:
    descriptors = Path(f"/proc/{donor.server.process.pid}/fd")

    def transfers() -> None:
        assert donor.copied_by(receiver) == COUNT
        with donor.asked() as answer:
            answer.raw.read(1)
        until(lambda: not senders(donor.server))

    transfers()
    before = len(list(descriptors.iterdir()))
    for _ in range(2):
        transfers()
    until(lambda: len(list(descriptors.iterdir())) <= before)
    until(lambda: not children(donor.server))


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

    def hold() -> None:
        until(lambda: senders(donor.server))
        (sender,) = senders(donor.server)
        freeze(sender)
        time.sleep(9)
        os.kill(sender, signal.SIGCONT)

    holding = threading.Thread(target=hold)
    holding.start()
    try:
        assert donor.copied_by(receiver, timeout_seconds=7) == COUNT
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
