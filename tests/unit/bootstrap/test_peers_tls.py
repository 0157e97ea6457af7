"""A new node copies another over TLS: the certificate is checked, and so is every byte."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from quorin.engine.bootstrap.names import Wanted
from quorin.errors import ConnectionFailedError, PeerUnavailableError
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.snapshot import Peers
from tests.support.donor import serve
from tests.support.fleet import until
from tests.support.http import ROOT, Running, make_certificate
from tests.support.machines import Machine, whole_rows
from tests.support.proxy import Wire

PAIR = make_schema("Pair", [FeatureField("a", dtype.float64), FeatureField("b", dtype.string)])
IDS = [f"e{number}" for number in range(200)]


class Donor(NamedTuple):
    machine: Machine
    server: Running
    token: Path
    certificate: Path

    def rows_of(self, registry: SegmentRegistry, url: str, **options: Any) -> Any:
        """What a new node serves that has copied a URL."""
        wanted = Wanted(self.machine.log().identity(), None, 0)
        peers = Peers([url], token_file=self.token, **options)
        segment = peers.segment(PAIR, registry, wanted, progress=lambda *_: None)
        assert segment is not None
        rows = whole_rows(segment, IDS)
        registry.discard(segment)
        return rows


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Donor]:
    folder = tmp_path_factory.mktemp("donor")
    certificate, key = make_certificate(folder)
    machine = Machine(folder)
    for number, entity_id in enumerate(IDS):
        machine.producer.write(PAIR, entity_id, {"a": number / 3, "b": "long text " * number}, number)
    machine.drain([PAIR])
    token = folder / "token"
    token.write_text("open sesame\n")
    words = ["--tls-cert", str(certificate), "--tls-key", str(key), "--token-file", str(token), "--host"]
    words.append("0.0.0.0")  # noqa: S104 - to be reached by a name that the certificate lacks
    with serve(machine, folder / "log", *words, certificate=certificate) as server:
        yield Donor(machine, server, token, certificate)
    machine.reboot()
    machine.close()


@pytest.fixture
def receiver(donor: Donor, tmp_path: Path) -> Iterator[SegmentRegistry]:
    (tmp_path / "shm").mkdir()
    registry = SegmentRegistry(donor.machine.shm.parent / "store", shm_dir=tmp_path / "shm")
    yield registry
    assert not [path.name for path in registry.shm_dir.iterdir() if "Pair" in path.name]
    registry.backend.close()


def test_rows_are_the_donors_bit_for_bit(donor: Donor, receiver: SegmentRegistry) -> None:
    for host in ("127.0.0.1", "localhost"):
        url = f"https://{host}:{donor.server.port}"
        rows = donor.rows_of(receiver, url, tls_ca=donor.certificate)
        assert rows == donor.machine.served(PAIR, IDS)


def test_a_certificate_that_is_not_trusted_is_refused(donor: Donor, receiver: SegmentRegistry, tmp_path: Path) -> None:
    another, _ = make_certificate(tmp_path)
    for tls_ca in (None, another):
        with pytest.raises(PeerUnavailableError, match="certificate verify failed"):
            donor.rows_of(receiver, donor.server.url, tls_ca=tls_ca)


def test_a_certificate_of_another_host_is_refused(donor: Donor, receiver: SegmentRegistry) -> None:
    with pytest.raises(PeerUnavailableError, match=r"certificate is not valid for '127\.0\.0\.2'"):
        donor.rows_of(receiver, f"https://127.0.0.2:{donor.server.port}", tls_ca=donor.certificate)


def test_the_other_scheme_is_an_error_of_the_peer(donor: Donor, receiver: SegmentRegistry) -> None:
    with pytest.raises(PeerUnavailableError, match=f"http://127.0.0.1:{donor.server.port}"):
        donor.rows_of(receiver, f"http://127.0.0.1:{donor.server.port}", tls_ca=donor.certificate)


def test_certificates_that_are_none_are_named(donor: Donor, receiver: SegmentRegistry, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for path in (tmp_path / "ca.pem", tmp_path / "absent.pem"):
        with pytest.raises(ConnectionFailedError, match=f"{path}: expected certificates in PEM"):
            donor.rows_of(receiver, donor.server.url, tls_ca=path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.98])
def test_damage_and_cuts_on_the_way_leave_nothing(donor: Donor, receiver: SegmentRegistry, share: float) -> None:
    with donor.machine.registry.open_current(PAIR) as segment:
        size = segment.current_view().layout.file_bytes
    for what in ("damages", "ends"):
        wire = Wire(donor.server.port)
        setattr(wire, what, int(share * size))
        try:
            with pytest.raises(PeerUnavailableError):
                donor.rows_of(receiver, wire.url.replace("http", "https"), tls_ca=donor.certificate)
        finally:
            wire.close()


def test_a_consumer_copies_over_tls(donor: Donor, tmp_path: Path) -> None:
    shm, said = tmp_path / "shm", tmp_path / "said"
    shm.mkdir()
    command = ["quorin", "consumer", "-c", str(donor.machine.shm.parent / "store")]
    command += ["--bootstrap-from", donor.server.url, "--token-file", str(donor.token)]
    command += ["--tls-ca", str(donor.certificate)]
    registry = SegmentRegistry(donor.machine.shm.parent / "store", shm_dir=shm)
    with said.open("w") as file:
        environment = {**os.environ, "QUORIN_SHM_DIR": str(shm)}
        process = subprocess.Popen([sys.executable, "-m", *command], stderr=file, env=environment, cwd=ROOT)
    try:
        until(lambda: registry.node.current("Pair") is not None)
        with registry.open_current(PAIR) as segment:
            assert whole_rows(segment, IDS) == donor.machine.served(PAIR, IDS)
    finally:
        process.terminate()
        process.wait(60)
        registry.backend.close()
    text = said.read_text()
    assert "snapshot_restored" in text
    assert "sesame" not in text
