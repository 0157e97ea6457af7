"""A node without rows copies those of another node: what fits is bit for bit the same, all else is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from quorin.assembly import read_last
from quorin.engine.backend import Beginning
from quorin.engine.bootstrap.image import TRAILER_BYTES
from quorin.engine.bootstrap.names import Wanted
from quorin.engine.memory.lock import FileLock
from quorin.errors import PeerUnavailableError, SegmentNotFoundError
from quorin.hydration import rebuild_segment
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import Segment, SegmentRegistry
from quorin.snapshot import Peers
from quorin.wal_consumer import WALConsumer
from tests.support.donor import serve
from tests.support.fleet import until
from tests.support.http import ROOT, Running
from tests.support.machines import Machine, whole_rows
from tests.support.proxy import Wire

Pair = make_schema("Pair", [FeatureField("a", dtype.float64), FeatureField("b", dtype.string)])
Wider = make_schema("Pair", [*Pair.fields, FeatureField("c", dtype.int64)], version=2)
Other = make_schema("Pair", [FeatureField("a", dtype.string)], version=2)
Kept = make_schema("Kept", [FeatureField("a", dtype.float64, history=3)])
IDS = [*(f"e{number}" for number in range(200)), "a key that is long enough to need the heap"]
SIZES = {"capacity": 16, "max_id_bytes": 64}


class Donor(NamedTuple):
    machine: Machine
    server: Running
    token: Path

    def peers(self, url: str | None = None, **options: Any) -> Peers:
        return Peers([url or self.server.url], token_file=self.token, **options)

    def wanted(self, **changes: Any) -> Wanted:
        return Wanted(self.machine.log().identity(), None, 0)._replace(**changes)


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Donor]:
    """A node with rows, some of them deleted, and its server."""
    folder = tmp_path_factory.mktemp("donor")
    machine = Machine(folder)
    for number, entity_id in enumerate(IDS):
        machine.producer.write(Pair, entity_id, {"a": number / 3, "b": "long text " * (number % 9)}, number)
    machine.producer.delete(Pair, IDS[3])
    machine.drain([Pair])
    token = folder / "token"
    token.write_text("open sesame\n")
    with serve(machine, folder / "log", "--token-file", str(token)) as server:
        yield Donor(machine, server, token)
    machine.reboot()
    machine.close()


@pytest.fixture
def wire(donor: Donor) -> Iterator[Wire]:
    """A network between the donor's server and the receiver."""
    wire = Wire(donor.server.port)
    yield wire
    wire.close()


@pytest.fixture
def receiver(donor: Donor, tmp_path: Path) -> Iterator[SegmentRegistry]:
    """Another node of the same deployment, without rows."""
    shm = tmp_path / "shm"
    shm.mkdir()
    registry = SegmentRegistry(donor.machine.shm.parent / "store", shm_dir=shm)
    yield registry
    assert list(shm.glob("quorin_*.pending")) == []
    registry.backend.close()


def silent(*_: int) -> None:
    pass


def test_the_rows_are_the_donors_bit_for_bit(donor: Donor, receiver: SegmentRegistry) -> None:
    seen: list[tuple[int, int]] = []
    options = {"beginning": None, "progress": lambda done, total: seen.append((done, total)), **SIZES}
    original = donor.machine.registry.open_current(Pair)
    with original, rebuild_segment(Pair, receiver, peers=donor.peers(), **options) as segment:
        assert whole_rows(segment, IDS) == whole_rows(original, IDS)
        assert (segment.position, segment.capacity) == (original.position, original.capacity)
    assert seen[-1][0] == seen[-1][1] > 0
    with pytest.raises(SegmentNotFoundError):
        receiver.open_current(Pair)


def test_a_segment_with_a_history_is_sent_to_those_that_read_its_format(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    for number in range(5):
        machine.producer.write(Kept, "k", {"a": number}, number)
    machine.drain([Kept])
    (tmp_path / "other").mkdir()
    receiver = SegmentRegistry(tmp_path / "store", shm_dir=tmp_path / "other")
    with serve(machine, tmp_path / "log") as server:
        peers = Peers([server.url])
        with rebuild_segment(Kept, receiver, peers=peers, beginning=None, **SIZES) as segment:
            assert read_last(segment, "k", "a").values.tolist() == [4, 3, 2]
        for query in ("", "&format=1"):
            answer = requests.get(f"{server.url}/v1/snapshot?schema=Kept{query}", timeout=60)
            assert answer.status_code == 406
            assert "sends segments of format 2; at most format 1 was asked for" in answer.json()["detail"]
    receiver.backend.close()
    machine.reboot()
    machine.close()


def test_a_row_of_each_source_that_fits_is_as_before(donor: Donor, receiver: SegmentRegistry) -> None:
    segment = donor.peers().segment(Wider, receiver, donor.wanted(), progress=silent)
    assert segment is not None
    with segment:
        assert segment.stored_schema == Wider
        assert len(segment) == len(IDS) - 1


@pytest.mark.parametrize(
    ("schema", "changes", "reason"),
    [
        (Other, {}, "Pair version 1 cannot become version 2: field 'a'"),
        (Pair, {"log_identity": 7}, "this one is 0000000000000007"),
        (Pair, {"beginning": Beginning(7, 7)}, "of an earlier schema of this name"),
        (Pair, {"from_position": 2**63}, f"the log begins behind {2**63}"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    donor: Donor, receiver: SegmentRegistry, schema: Any, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(PeerUnavailableError, match=reason):
        donor.peers().segment(schema, receiver, donor.wanted(**changes), progress=silent)
    assert not [*(path for path in receiver.shm_dir.iterdir() if path.name.startswith("quorin_"))]


def test_a_peer_without_the_schema_is_no_failure(donor: Donor, receiver: SegmentRegistry) -> None:
    absent = make_schema("Absent", Pair.fields)
    assert donor.peers().segment(absent, receiver, donor.wanted(), progress=silent) is None


def test_the_token_is_needed(donor: Donor, receiver: SegmentRegistry, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("open barley")
    for token in (None, wrong):
        peers = Peers([donor.server.url], token_file=token)
        with pytest.raises(PeerUnavailableError, match="401: expected the header Authorization") as raised:
            peers.segment(Pair, receiver, donor.wanted(), progress=silent)
        assert "barley" not in str(raised.value)


@pytest.mark.parametrize(
    ("query", "status", "detail"),
    [
        ("schema=Pair&format=0", 406, "sends segments of format 1; at most format 0 was asked for"),
        ("schema=Pair&format=x", 422, "expected one schema=NAME"),
        ("schema=Pair&schema=Pair", 422, "expected one schema=NAME"),
        ("", 422, "expected one schema=NAME"),
        ("schema=..%2Fetc", 404, "there is no segment of schema '../etc' here"),
    ],
)
def test_requests_are_refused_by_name(donor: Donor, query: str, status: int, detail: str) -> None:
    occupied(donor).release()
    answer = requests.get(
        f"{donor.server.url}/v1/snapshot?{query}", headers={"Authorization": "Bearer open sesame"}, timeout=60
    )
    assert answer.status_code == status
    assert detail in answer.json()["detail"]


def occupied(donor: Donor) -> FileLock:
    """The place of the donor's only transfer, once the one before has ended."""
    slots: list[FileLock | None] = []

    def is_ours() -> bool:
        slots.append(FileLock.try_acquire(donor.machine.registry.node.lock_path("transfer0")))
        return slots[-1] is not None

    until(is_ours)
    assert slots[-1] is not None
    return slots[-1]


def test_a_busy_peer_is_asked_again(donor: Donor, receiver: SegmentRegistry) -> None:
    slot = occupied(donor)
    with pytest.raises(PeerUnavailableError, match="429: 1 of at most 1 transfers from this node are going on"):
        donor.peers(patience_seconds=0.1).segment(Pair, receiver, donor.wanted(), progress=silent)
    waits: list[int] = []

    def free(done: int, total: int) -> None:
        waits.append(done)
        slot.release()

    check_equal(donor, donor.peers().segment(Pair, receiver, donor.wanted(), progress=free))
    assert waits[0] == 0


def test_a_consumer_stops_while_it_waits_for_a_busy_peer(donor: Donor, receiver: SegmentRegistry) -> None:
    slot = occupied(donor)

    @contextmanager
    def stop_when_shown(_: str) -> Iterator[Any]:
        yield lambda *_: consumer.stop()

    peers = donor.peers(patience_seconds=600)
    with WALConsumer(receiver.backend, [Pair], registry=receiver, peers=peers, show=stop_when_shown) as consumer:
        consumer.run()
    slot.release()
    assert receiver.node.current("Pair") is None


def test_a_transfer_that_nobody_takes_frees_its_place(donor: Donor, receiver: SegmentRegistry) -> None:
    answer = requests.get(
        f"{donor.server.url}/v1/snapshot?schema=Pair",
        headers={"Authorization": "Bearer open sesame"},
        stream=True,
        timeout=60,
    )
    answer.close()
    check_equal(donor, donor.peers().segment(Pair, receiver, donor.wanted(), progress=silent))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.02, 0.05, 0.3, 0.6, 0.99, 0.9995])
def test_bytes_that_are_damaged_on_the_way_are_never_served(
    donor: Donor, receiver: SegmentRegistry, wire: Wire, share: float
) -> None:
    """In the head of the response, in that of the image, in its rows, and in its trailer."""
    wire.damages = int(share * sent_bytes(donor))
    with pytest.raises(PeerUnavailableError):
        donor.peers(wire.url).segment(Pair, receiver, donor.wanted(), progress=silent)
    assert files(receiver) == []
    both = Peers([wire.url, donor.server.url], token_file=donor.token)
    check_equal(donor, both.segment(Pair, receiver, donor.wanted(), progress=silent))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.02, 0.3, 0.9999])
def test_a_transfer_that_is_cut_leaves_nothing(
    donor: Donor, receiver: SegmentRegistry, wire: Wire, share: float
) -> None:
    wire.ends = int(share * sent_bytes(donor))
    with pytest.raises(PeerUnavailableError):
        donor.peers(wire.url).segment(Pair, receiver, donor.wanted(), progress=silent)
    assert files(receiver) == []


def test_a_peer_that_falls_silent_is_given_up(donor: Donor, receiver: SegmentRegistry, wire: Wire) -> None:
    wire.stalls = 20_000
    with pytest.raises(PeerUnavailableError, match="broke off: no answer in time"):
        donor.peers(wire.url, timeout_seconds=15).segment(Pair, receiver, donor.wanted(), progress=silent)
    assert files(receiver) == []


def test_a_donor_that_dies_in_a_transfer_is_replaced_by_the_history(
    donor: Donor, receiver: SegmentRegistry, tmp_path: Path
) -> None:
    with serve(donor.machine, tmp_path / "log") as server:
        wire = Wire(server.port)
        wire.stalls = 20_000
        peers = Peers([wire.url], timeout_seconds=60)
        wire.when_stalled = server.process.kill
        segment = rebuild_segment(Pair, receiver, beginning=None, peers=peers, history=donor.machine.store(), **SIZES)
        assert server.process.wait(60) == -signal.SIGKILL
        wire.close()
    check_equal(donor, segment)


def test_a_receiver_that_is_killed_leaves_nothing_that_is_served(
    donor: Donor, receiver: SegmentRegistry, wire: Wire
) -> None:
    wire.stalls = 20_000
    store, shm = donor.machine.shm.parent / "store", receiver.shm_dir
    command = ["quorin", "consumer", "-c", str(store), "--bootstrap-from", wire.url, "--token-file", str(donor.token)]
    process = subprocess.Popen(
        [sys.executable, "-m", *command], env={**os.environ, "QUORIN_SHM_DIR": str(shm)}, cwd=ROOT
    )
    try:
        until(lambda: any(shm.glob("quorin_*.pending")))
    finally:
        process.kill()
        process.wait()
    (unfinished,) = shm.glob("quorin_*.pending")
    os.utime(unfinished, (0, 0))
    with pytest.raises(SegmentNotFoundError):
        receiver.open_current(Pair)
    check_equal(donor, donor.peers().segment(Pair, receiver, donor.wanted(), progress=silent))
    assert not unfinished.exists()


def sent_bytes(donor: Donor) -> int:
    """The size of a response."""
    with donor.machine.registry.open_current(Pair) as segment:
        return segment.current_view().layout.file_bytes + TRAILER_BYTES + 350


def files(registry: SegmentRegistry) -> list[str]:
    return [path.name for path in registry.shm_dir.iterdir() if "Pair" in path.name]


def check_equal(donor: Donor, segment: Segment | None) -> None:
    assert segment is not None
    with segment, donor.machine.registry.open_current(Pair) as original:
        assert whole_rows(segment, IDS) == whole_rows(original, IDS)
