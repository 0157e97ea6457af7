"""``quorin upgrade`` and ``quorin watchdog``, as their users have them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quorin import layout
from quorin.assembly import assemble
from quorin.engine.ops import presence
from quorin.schema import schema_to_json
from quorin.shm import SegmentRegistry
from tests.support.commands import run_quorin, start_quorin
from tests.support.upgrades import IDS, table, version

ROOT = Path(__file__).parents[3]


class Place:
    def __init__(self, tmp_path: Path) -> None:
        self.store, self.shm_dir = tmp_path / "store", tmp_path / "shm"
        self.shm_dir.mkdir()
        self.registry = SegmentRegistry(self.store, shm_dir=self.shm_dir)
        with self.registry.create(version(1), capacity=100) as segment:
            layout.insert_many(segment, table(version(1), 1))

    def words(self, *arguments: str) -> dict[str, Any]:
        environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "QUORIN_CONNECTION": str(self.store)}
        return {"words": [*arguments, "--shm-dir", str(self.shm_dir)], "environment": environment, "directory": ROOT}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_quorin(**self.words(*arguments))

    def files(self) -> int:
        return len(list(self.shm_dir.glob("quorin_*")))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    opened = Place(tmp_path)
    yield opened
    opened.registry.backend.close()


def test_files_that_hold_no_schema_are_refused(place: Place, tmp_path: Path) -> None:
    for content, code, text in ((b"\xff", 2, "cannot be read"), (b"{}", 1, "not a schema in JSON")):
        (tmp_path / "bad.json").write_bytes(content)
        refused = place.run("upgrade", str(tmp_path / "bad.json"))
        assert refused.returncode == code
        assert text in refused.stderr
        assert "Traceback" not in refused.stderr


def test_an_upgrade_is_shown_and_done(place: Place, tmp_path: Path) -> None:
    (tmp_path / "new.json").write_text(schema_to_json(version(2)))
    dry = place.run("upgrade", str(tmp_path / "new.json"), "--dry-run")
    assert dry.returncode == 0, dry.stderr
    for text in ("version 1 to 2", "40", "new_in_2", "counter", "new_in_0", "is unchanged"):
        assert text in dry.stdout
    done = place.run("upgrade", str(tmp_path / "new.json"), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["version"], told["rows"], told["widened"], told["dry_run"]) == (
        2,
        len(IDS),
        ["counter"],
        False,
    )
    with place.registry.open_current(version(2)) as reader:
        assert reader.name == told["new_segment"]
        assert assemble(reader, IDS[0]).tolist() == [1.0, 2.0, 1.0]


def test_an_upgrade_waits_for_the_other_nodes(place: Place, tmp_path: Path) -> None:
    (tmp_path / "new.json").write_text(schema_to_json(version(2)))
    name, control = version(2).__name__, place.registry.backend.control
    report = {"segment": "s", "version": 1, "position": 0, "lag_seconds": 0.0}
    presence.announce(control, "consumer", "another node", {name: report})
    words = ("upgrade", str(tmp_path / "new.json"), "--wait-for", "nodes", "--timeout")
    late = place.run(*words, "0.1")
    assert late.returncode == 1
    assert "is in force on this node, but was not within 0.1 s on the nodes another node" in late.stderr
    presence.announce(control, "consumer", "another node", {name: {**report, "version": 3}})
    (tmp_path / "new.json").write_text(schema_to_json(version(3)))
    assert place.run(*words, "60").returncode == 0
    assert place.run("upgrade", str(tmp_path / "new.json"), "--wait-for", "pods").returncode == 2


def test_what_is_refused_is_one_line(place: Place, tmp_path: Path) -> None:
    narrow = schema_to_json(version(2)).replace('"int64"', '"uint8"')
    (tmp_path / "narrow.json").write_text(narrow)
    (tmp_path / "old.json").write_text(schema_to_json(version(3)))
    refused = place.run("upgrade", str(tmp_path / "narrow.json"))
    assert refused.returncode == 1
    assert "'counter' would narrow from int32 to uint8" in refused.stderr
    conflict = place.run("upgrade", "tests.unit.cli.test_cli_upkeep:NotThere")
    assert conflict.returncode == 2
    assert "cannot be imported" in conflict.stderr
    assert place.run("upgrade", "tests.support.schemas:ENTITY_IDS").returncode == 2
    assert place.run("upgrade", "nothing").returncode == 2
    (tmp_path / "new.json").write_text(schema_to_json(version(4)))
    other = place.run("upgrade", str(tmp_path / "new.json"), "--from", str(tmp_path / "old.json"))
    assert other.returncode == 1
    assert "holds version 1" in other.stderr
    missing = place.run("upgrade", "tests.support.schemas:Scalars")
    assert missing.returncode == 1
    assert "no segment is current" in missing.stderr


def test_the_watchdog_looks_once_or_runs_until_it_is_told_to_end(place: Place) -> None:
    place.registry.create(version(1), capacity=100, set_current=False).close()
    dry = place.run("watchdog", "--once", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "would remove" in dry.stdout
    assert "no segment of this line is current" in dry.stdout
    assert place.files() == 2
    once = place.run("watchdog", "--once", "--json")
    assert once.returncode == 0, once.stderr
    assert len(json.loads(once.stdout)["reclaimed"]) == 1
    assert place.files() == 1
    assert "nothing to reclaim" in place.run("watchdog", "--once").stdout
    assert place.run("watchdog", "--json").returncode == 2
    assert place.run("watchdog", "--dry-run").returncode == 2

    place.registry.create(version(1), capacity=100, set_current=False).close()
    process = start_quorin(**place.words("watchdog", "--interval", "0.05"))
    deadline = time.monotonic() + 60
    while place.files() > 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    events = [json.loads(line)["event"] for line in said.splitlines()]
    assert events == ["watchdog_started", "file_reclaimed", "watchdog_stopped"]
