"""``quorin served``, as processes: what requests were answered with goes into files, and comes back from them."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quorin.engine.rows.batch import rows_batch
from quorin.offline import ParquetDatasetStore, read_served
from tests.support.commands import run_quorin, start_quorin
from tests.support.served import IDS, SERVED, Node
from tests.support.world import until
from tests.unit.cli.test_cli import command


class Place:
    """A node that has served requests 0 to 2, the history of its rows, and commands that run there."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.history = directory, directory / "history"
        self.node = Node(directory)
        self.node.fill()
        self.node.serve(0, 3)
        self.node.log.close()
        rows = [(one, number, number, f"text {number}") for number, one in enumerate(IDS)]
        with ParquetDatasetStore(self.history) as store:
            store.append(SERVED, rows_batch(SERVED, rows), pa.array([7] * len(rows), pa.int64()))

    def words(self, *arguments: str | Path) -> tuple[list[str], dict[str, str]]:
        places = "-c", str(self.directory / "control"), "--served-log", str(self.directory / "served")
        words, environment = command("served", *map(str, arguments), *places, shm_dir=self.directory / "shm")
        return words[3:], environment

    def run(self, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        words, environment = self.words(*arguments)
        done = run_quorin(words, environment)
        assert done.returncode == code, done.stderr
        return done

    def replay(self, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run("replay", "--offline", self.history, *arguments, code=code)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_processes_have_left_is_collected_and_replayed(place: Place) -> None:
    collected = json.loads(place.run("collect", "--once", "--json").stdout)
    assert place.node.requests() == list(range(3))
    assert "0 rows" in place.run("collect", "--once").stdout
    served = read_served(place.directory / "served", place.history)
    assert collected["rows"] == len(served) == 5
    assert served["known"].to_pylist() == [True] * 5
    for suffix in ("parquet", "arrow", "json"):
        file = place.directory / f"out.{suffix}"
        assert "5 rows, 0 not known" in place.replay(file).stdout
        assert file.stat().st_mode & 0o777 == 0o600
    assert pq.read_table(place.directory / "out.parquet").equals(served)
    with pa.ipc.open_file(place.directory / "out.arrow") as arrow:
        assert arrow.read_all().equals(served)
    lines = [json.loads(line) for line in (place.directory / "out.json").read_text().splitlines()]
    assert [line["number"] for line in lines] == served["number"].to_pylist()
    shown = json.loads(place.replay("--json", "--request-id", "1", "-r", "2").stdout)
    assert [(row["request_id"], row["text"]) for row in shown["requests"]] == [("1", "text 1"), ("2", "text 2")]
    later = datetime.now(UTC) + timedelta(minutes=1)
    assert json.loads(place.replay("--json", "--since", later.isoformat()).stdout)["rows"] == 0
    (place.directory / "clicks.csv").write_text("request_id,clicked\n2,7\n")
    place.replay(place.directory / "labelled.parquet", "--labels", place.directory / "clicks.csv")
    [labelled] = pq.read_table(place.directory / "labelled.parquet").to_pylist()
    assert (labelled["request_id"], labelled["number"], labelled["clicked"]) == ("2", 2, 7)


def test_rows_that_are_not_known_are_said_by_the_exit_code(place: Place) -> None:
    place.node.log.collect()
    with ParquetDatasetStore(place.directory / "other") as other:
        row = rows_batch(SERVED, [("id1", time.time_ns(), 5, "t")])
        other.append(SERVED, row, pa.array([9], pa.int64()))
    file = place.directory / "out.parquet"
    done = place.run("replay", file, "--offline", place.directory / "other", code=1)
    assert "5 rows, 3 not known" in done.stdout, "that there was no row is known of two"
    assert pq.read_table(file)["known"].to_pylist().count(False) == 3


def test_a_collector_goes_on_until_it_is_stopped(place: Place) -> None:
    words, environment = place.words("collect", "--every", "10ms")
    process = start_quorin(words, environment)
    until(lambda: place.node.requests() == list(range(3)))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "collecting into" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a file to write, or --json"),
        (["out.txt"], "expected a file that ends in .parquet, .arrow, .json"),
        (["--json", "--since", "yesterday"], "expected a time such as"),
        (["--json", "--labels", "clicks.xlsx"], "--labels: expected a .parquet or .csv file"),
    ],
)
def test_wrong_usage_is_said(place: Place, arguments: list[str], message: str) -> None:
    assert message in place.replay(*arguments, code=2).stderr


def test_damaged_data_is_one_line(place: Place) -> None:
    place.node.serve(3, 1)  # Its data is no stream of Arrow's.
    place.node.log.collect()
    said = place.replay("--json", code=1).stderr
    assert "served log: 3 bytes are no data of a request" in said
    assert "Traceback" not in said
