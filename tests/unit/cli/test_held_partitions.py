"""``--partitions``, ``--ordinal`` and ``--of``, and the log and the dead letters of several partitions."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from quorin.cli import app
from quorin.cli.partitions import held_partitions
from quorin.engine.backend import connect
from quorin.errors import PartitionCountError
from quorin.wal import WALProducer
from tests.support.world import TRIP, row


def test_partitions_are_named_or_shared_by_the_number_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = connect(str(tmp_path), partitions=4)
    assert held_partitions(backend, None, None, None) is None
    assert held_partitions(backend, "0,2-3", None, None) == "0,2-3/4"
    assert held_partitions(backend, "auto", 1, 2) == "2-3/4"
    monkeypatch.setattr(socket, "gethostname", lambda: "quorin-0.pods.local")
    assert held_partitions(backend, "auto", None, 2) == "0-1/4"
    monkeypatch.setattr(socket, "gethostname", lambda: "quorin")
    for options in ((None, 0, 2), ("auto", 0, None), ("auto", None, 2)):
        with pytest.raises(typer.BadParameter):
            held_partitions(backend, *options)
    with pytest.raises(PartitionCountError, match="4"):
        held_partitions(backend, "0-7", None, None)
    backend.close()


def test_the_log_and_dead_letters_of_all_partitions_are_shown(tmp_path: Path) -> None:
    backend = connect(str(tmp_path), partitions=4)
    with WALProducer(backend) as producer:
        for number in range(12):
            producer.write(TRIP, f"e{number}", row(number))
    backend.log(partition=2).bury(7, b"damaged", "why")
    backend.close()
    runner = CliRunner()
    shown = json.loads(runner.invoke(app, ["log", "tail", "-c", str(tmp_path), "-n", "50", "--json"]).output)
    assert len(shown["entries"]) == 12
    assert {entry["partition"] for entry in shown["entries"]} == {0, 1, 2, 3}
    one = json.loads(runner.invoke(app, ["log", "tail", "-c", str(tmp_path), "--partition", "3", "--json"]).output)
    assert {entry["partition"] for entry in one["entries"]} == {3}
    letters = json.loads(runner.invoke(app, ["deadletter", "list", "-c", str(tmp_path), "--json"]).output)
    assert [(letter["position"], letter["partition"]) for letter in letters["dead_letters"]] == [(7, 2)]
