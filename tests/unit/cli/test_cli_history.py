"""Commands of the history, as processes: a consumer that keeps one, and machines that come back from it."""

from __future__ import annotations

import errno
import signal
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pytest

from quorin.assembly import read
from quorin.engine.backend import connect
from quorin.engine.history.storage import Storage
from quorin.engine.ops.history_checks import check_history
from quorin.engine.rows.batch import row_batch
from quorin.offline import ParquetDatasetStore
from quorin.schema import schema_to_json
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from tests.support.commands import run_quorin, start_quorin
from tests.unit.cli.test_cli import TRIP, command, run


class Deployment:
    """A control plane, shared memory and a history, and commands that run there."""

    def __init__(self, directory: Path) -> None:
        self.connection, self.base = str(directory / "store"), directory / "history"
        self.shm = directory / "shm"
        self.shm.mkdir()
        self.backend = connect(self.connection)
        self.backend.control.put_schema("Trip", schema_to_json(TRIP))
        self.registry = SegmentRegistry(self.backend, shm_dir=self.shm)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        words, environment = command(*arguments, "-c", self.connection, shm_dir=self.shm)
        return run_quorin(words[3:], environment)

    def consume(self, scores: list[float]) -> None:
        """Write rows, and let a consumer run until they are served and durable."""
        words, environment = command("consumer", "-c", self.connection, "--offline", str(self.base), shm_dir=self.shm)
        process = start_quorin(words[3:], environment)
        with WALProducer(self.backend, registry=self.registry) as producer:
            for number, score in enumerate(scores):
                producer.write_sync(TRIP, f"id{number}", {"score": score}, timeout_ms=120_000)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said

    def reboot(self) -> None:
        for path in self.shm.iterdir():
            path.unlink()

    def scores(self, count: int) -> list[float]:
        with self.registry.open_current(TRIP) as segment:
            return read(segment, [f"id{i}" for i in range(count)]).column("score").to_pylist()


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path)


def test_a_machine_comes_back_from_its_history_and_from_a_snapshot(deployment: Deployment, tmp_path: Path) -> None:
    deployment.consume([1.0, 2.0])
    bounds = deployment.backend.log().bounds()
    assert bounds.trimmed == bounds.last
    saved = deployment.run("snapshot", "Trip", str(tmp_path / "trip.snapshot"))
    assert "2 entities" in saved.stdout, saved.stderr

    deployment.reboot()
    assert "2 entities" in deployment.run("hydrate", "--offline", str(deployment.base)).stdout
    assert deployment.scores(2) == [1.0, 2.0]
    again = deployment.run("hydrate", "--offline", str(deployment.base))
    assert again.stdout.startswith("nothing to do: every schema at "), again.stderr
    refused = deployment.run("hydrate", "Trip", "--offline", str(deployment.base))
    assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)
    assert "stays as it is" in refused.stderr

    deployment.reboot()
    restored = deployment.run("restore", str(tmp_path / "trip.snapshot"))
    assert "2 entities" in restored.stdout, restored.stderr
    assert deployment.scores(2) == [1.0, 2.0]

    deployment.reboot()
    time.sleep(0.002)
    deployment.consume([3.0])
    assert deployment.scores(2) == [3.0, 2.0]
    compacted = deployment.run("compact", "--offline", str(deployment.base))
    assert compacted.stdout.startswith("Trip: "), compacted.stderr
    assert len(ParquetDatasetStore(deployment.base).latest_features(TRIP)) == 2
    deployment.reboot()


def test_doctor_names_each_file_of_the_history_that_cannot_be_read(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = deployment.run("doctor", "--offline", str(deployment.base))
    assert missing.returncode == 1
    assert f"problem history at {deployment.base}: no such directory" in missing.stdout
    store = ParquetDatasetStore(deployment.base)
    for position in (1, 2, 3):
        batch = row_batch(TRIP, f"id{position}", {"score": 1.0}, position)
        store.append(TRIP, batch, pa.array([position], pa.int64()))
        store.flush()
    first, second, _ = sorted(deployment.base.rglob("*.parquet"))
    assert [(check.status, check.found) for check in check_history(deployment.base)] == [("ok", "3 rows in 3 files")]

    first.write_bytes(first.read_bytes()[:-9])
    (first.parent / "notes.parquet").touch()
    opened = Storage.open

    def refused(storage: Storage, path: str) -> pa.NativeFile:
        if path == str(second):
            raise storage.unavailable(f"cannot read {path}", PermissionError(errno.EACCES, "Permission denied"))
        return opened(storage, path)

    monkeypatch.setattr(Storage, "open", refused)
    checks = check_history(deployment.base)
    assert [check.status for check in checks] == ["problem", "problem", "warning"]
    assert checks[0].found.startswith(f"damaged: {first} is no whole Parquet file: ")
    assert checks[1].found.startswith(f"unreadable: cannot read {second}: ")
    assert "notes.parquet" in checks[2].found
    done = deployment.run("doctor", "--offline", str(deployment.base))
    assert done.returncode == 1
    assert first.name in done.stdout


def test_what_cannot_be_is_refused(deployment: Deployment, tmp_path: Path) -> None:
    both = deployment.run("consumer", "--offline", str(deployment.base), "--trim")
    assert both.returncode == 2
    assert "--trim" in both.stderr
    (tmp_path / "file").touch()
    nowhere = deployment.run("consumer", "--offline", str(tmp_path / "file" / "history"))
    assert (nowhere.returncode, "Traceback" in nowhere.stderr) == (1, False)
    assert f"the history at {tmp_path / 'file' / 'history'}" in nowhere.stderr
    (tmp_path / "no.snapshot").write_bytes(b"nothing")
    refused = deployment.run("restore", str(tmp_path / "no.snapshot"))
    assert refused.returncode == 1
    assert "no.snapshot is no snapshot" in refused.stderr
    assert run("hydrate", "--help").returncode == 0
    for name in ("hydrate", "compact"):
        mistyped = deployment.run(name, "--offline", str(deployment.base))
        assert mistyped.returncode == 2
        assert f"there is no history at {deployment.base}: no such directory" in mistyped.stderr
    assert not deployment.base.exists()
