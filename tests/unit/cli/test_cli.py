"""The command line as its users have it: a process, its output and its exit code."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from quorin.assembly import read
from quorin.cli import app, program_for
from quorin.engine.backend import connect
from quorin.engine.log.record import Kind, decode, encode
from quorin.engine.rows.batch import row_batch
from quorin.errors import ConnectionFailedError, SegmentNotFoundError
from quorin.layout import insert, pack_row
from quorin.schema import FeatureField, dtype, make_schema, schema_to_json
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from tests.support.commands import run_quorin, start_quorin
from tests.support.forking import Forked

ROOT = Path(__file__).parents[3]
TRIP = make_schema("Trip", [FeatureField("score", dtype.float64)])
LATER = make_schema("Later", [FeatureField("count", dtype.int64)])


def command(*arguments: str, shm_dir: Path | None = None) -> list[Any]:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    if shm_dir is not None:
        environment["QUORIN_SHM_DIR"] = str(shm_dir)
    return [[sys.executable, "-m", "quorin", *arguments], environment]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    words, environment = command(*arguments)
    return run_quorin(words[3:], environment, directory=ROOT)


def output(*arguments: str) -> str:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def consumer(connection: str, tmp_path: Path) -> Iterator[Forked]:
    (tmp_path / "shm").mkdir()
    words, environment = command("consumer", "--connection", connection, shm_dir=tmp_path / "shm")
    process = start_quorin(words[3:], environment, directory=ROOT)
    yield process
    process.close()


def test_help_teaches() -> None:
    assert "Start with" in output("--help")
    assert "QUORIN_CONNECTION" in output("consumer", "--help")
    assert "replay" in output("deadletter", "--help")


def test_a_command_alone_is_the_one_among_all() -> None:
    whole: Any = typer.main.get_command(app)
    assert len(whole.commands) > 30
    for name, known in whole.commands.items():
        alone: Any = typer.main.get_command(program_for([name]))
        assert list(alone.commands) == [name]
        assert described(alone.commands[name]) == described(known)
    assert all(program_for(words) is app for words in ([], ["--help"], ["unknown"]))


def described(command: Any) -> tuple[Any, ...]:
    parameters = [(parameter.name, parameter.opts, parameter.required) for parameter in command.params]
    return command.name, command.help, parameters, [*map(described, getattr(command, "commands", {}).values())]


def test_what_is_wrong_is_said_in_one_line_and_an_exit_code(tmp_path: Path) -> None:
    missing = run("consumer", "--connection", f"unix://:hunter2@{tmp_path}/no.sock")
    assert missing.returncode == 1
    assert f"{tmp_path}/no.sock" in missing.stderr
    assert "hunter2" not in missing.stderr
    assert "Traceback" not in missing.stderr
    assert run("consumer").returncode == 2
    connect(tmp_path / "store").close()
    assert run("deadletter", "replay", "-c", str(tmp_path / "store")).returncode == 2
    loud = run("consumer", "-c", str(tmp_path / "store"), "--log-level", "LOUD")
    assert (loud.returncode, "'LOUD' is not one of" in loud.stderr) == (2, True), loud.stderr
    stream = run("consumer", "-c", str(tmp_path / "store"), "--stream-key", "")
    assert (stream.returncode, "stream key ''" in stream.stderr) == (1, True), stream.stderr
    absent = run("deadletter", "show", "7", "-c", str(tmp_path / "store"))
    assert absent.returncode == 2
    assert "no dead letter at 7" in absent.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["inspect"], ["get", "a"], ["put", "Trip", "a", "score=1"], ["doctor"], ["deadletter", "list"], ["top"],
        ["watchdog", "--once"], ["snapshot", "Trip", "file"], ["metrics"], ["compact", "--offline", "none"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_mistyped_directory_is_told_and_not_made(words: list[str], tmp_path: Path) -> None:
    mistyped = tmp_path / "data"
    refused = CliRunner().invoke(app, [*words, "-c", str(mistyped)], env={"COLUMNS": "400"})
    assert refused.exit_code == 2
    assert f"there is no store at {mistyped}\n" in refused.output
    assert not mistyped.exists()
    mistyped.mkdir()
    connect(mistyped / "quorin").close()
    refused = CliRunner().invoke(app, [*words, "-c", str(mistyped)], env={"COLUMNS": "400"})
    assert f"there is no store at {mistyped}; did you mean {mistyped}/quorin?" in refused.output
    assert list(mistyped.iterdir()) == [mistyped / "quorin"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["get", "a"], "error: give --connection (a Redis URL or a directory), set QUORIN_CONNECTION, or run the"),
        (["get", "a", "-c", "{store}", "--last", "0"], "error: --last: "),
        (["deadletter", "show", "x", "-c", "{store}"], "error: position: "),
        (["changes", "Trip", "-c", "{store}", "--since", "-5"], "error: --since: expected a position from 0 on, or a"),
        (["inspect", "-c", "{store}/none"], "error: --connection: there is no store at "),
    ],
    ids=["connection", "last", "position", "since", "store"],
)
def test_a_wrong_value_is_told_with_its_option_and_once(words: list[str], line: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    connect(store).close()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("QUORIN_")}
    done = run_quorin([word.replace("{store}", str(store)) for word in words], environment, directory=tmp_path)
    first, hint = done.stderr.splitlines()
    assert (done.returncode, first.startswith(line), "Invalid value" in first) == (2, True, False), done.stderr
    assert hint == f"try `quorin {' '.join(words[: 2 if words[0] == 'deadletter' else 1])} --help`"


def test_readiness_of_a_mistyped_directory_makes_none(tmp_path: Path) -> None:
    done = run("ready", "-c", str(tmp_path / "none"))
    assert (done.returncode, f"there is no store at {tmp_path}/none" in done.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_text_and_no_file_is_told_in_one_line(tmp_path: Path) -> None:
    store = tmp_path / "store"
    SegmentRegistry(store, shm_dir=tmp_path).create(TRIP, capacity=4).close()
    for words, code, text in (
        (["scan", "Trip", "--prefix", "\udcff"], 2, "--prefix: expected UTF-8, got '\\udcff'"),
        (["restore", "none.snapshot"], 1, "error: cannot read the snapshot"),
        (["put", "Trip", "x" * 65, "score=1", "--sync"], 1, "error: "),
        (["inspect"], 0, ""),
    ):
        environment = {**os.environ, "QUORIN_CONNECTION": str(store), "QUORIN_SHM_DIR": str(tmp_path)}
        done = run_quorin(words, environment | {"COLUMNS": "400"}, directory=tmp_path)
        assert (done.returncode, text in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr
    shown = " ".join(done.stdout.split())  # a long path wraps
    assert "0 entries" in shown  # An id that does not fit the segment is refused before it is logged.


def test_what_is_no_directory_is_told_as_by_all_others(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["inspect", "-c", "localhost:6379"])
    assert isinstance(refused.exception, ConnectionFailedError)
    assert "looks like a host and port" in str(refused.exception)


def test_the_consumer_serves_schemas_as_they_come_and_ends_on_sigterm(
    connection: str, consumer: Forked, tmp_path: Path
) -> None:
    backend = connect(connection)
    registry = SegmentRegistry(backend, shm_dir=tmp_path / "shm")
    producer = WALProducer(backend, registry=registry)
    for schema, values in ((TRIP, {"score": 1.5}), (LATER, {"count": 7})):
        position = producer.write(schema, "a", values)
        backend.control.put_schema(schema.__name__, schema_to_json(schema))
        wait(producer, schema, position)
        with registry.open_current(schema) as segment:
            (row,) = read(segment, ["a"]).to_pylist()
        assert row.items() >= values.items()
    consumer.send_signal(signal.SIGTERM)
    _, said = consumer.communicate(timeout=60)
    assert consumer.returncode == 0, said
    assert "consumer_started" in said
    assert "consumer_stopped" in said
    producer.close()
    backend.close()


def wait(producer: WALProducer, schema: Any, position: int) -> None:
    """The segment is only made when the consumer has seen the schema."""
    deadline = time.monotonic() + 60
    while True:
        try:
            producer.wait(schema, position, timeout_ms=1000)
            return
        except (TimeoutError, SegmentNotFoundError):
            assert time.monotonic() < deadline


def test_dead_letters_are_listed_shown_and_replayed(connection: str) -> None:
    backend = connect(connection)
    log = backend.log()
    assert "no dead letters" in output("deadletter", "list", "-c", connection)
    payload = encode(Kind.upsert, TRIP, row_batch(TRIP, "some-id", {"score": 2.5}, 5))
    good, bad = log.append([("Trip", payload), ("Trip", b"garbage")])
    log.bury(good, payload, "schema 'Trip' is unknown to the control plane")
    log.bury(bad, b"garbage", "a record begins with [bold]QREC")
    listed = output("deadletter", "list", "-c", connection)
    assert str(good) in listed
    assert "unknown to the control plane" in listed
    assert "[bold]QREC" in listed
    assert "'some-id'" in output("deadletter", "show", str(good), "-c", connection)
    assert "garbage" in output("deadletter", "show", str(bad), "-c", connection)
    first, second = json.loads(output("deadletter", "list", "--json", "-c", connection))["dead_letters"]
    assert (first["position"], first["schema"], first["rows"]) == (good, "Trip", 1)
    assert (second["schema"], second["reason"]) == (None, "a record begins with [bold]QREC")
    shown = json.loads(output("deadletter", "show", str(good), "--json", "-c", connection))
    assert shown["values"] == [{"entity_id": "some-id", "event_time_ns": 5, "score": 2.5}]
    replayed = run("deadletter", "replay", "--all", "-c", connection)
    assert replayed.returncode == 1
    assert f"dead letter {bad} cannot be replayed" in replayed.stderr
    assert f"{good} is in the log again at {log.bounds().last}" in replayed.stdout
    assert [letter.position for letter in log.dead_letters()] == [bad]
    assert log.read(bad).entries == [(log.bounds().last, payload)]
    backend.close()


@pytest.mark.parametrize("words", [["doctor", "--json"], ["--help"], ["--version"]])
def test_a_full_standard_output_is_told_in_one_line(words: list[str], tmp_path: Path) -> None:
    arguments, environment = command(*words, shm_dir=tmp_path)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            arguments, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, timeout=180, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "error: cannot write to standard output: it is full, or its disk fails\n"


def test_where_standard_error_is_full_too_the_exit_code_tells(tmp_path: Path) -> None:
    words, environment = command("inspect", "-c", str(tmp_path))
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, env=environment, stdout=full, stderr=full, timeout=180, check=False)
    assert done.returncode in (1, 2)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_ascii_terminals_are_shown_escapes(options: list[str], tmp_path: Path) -> None:
    registry = SegmentRegistry(tmp_path / "store", shm_dir=tmp_path)
    names = make_schema("Names", [FeatureField("name", dtype.string)])
    registry.create(names, capacity=4).close()
    words = ["a", "-s", "Names", "-c", str(tmp_path / "store")]
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    with registry.open_current(names, read_only=False) as segment:
        insert(segment, "a", pack_row(names, name="Zoë"))
    arguments, inherited = command("get", *words, *options, shm_dir=tmp_path)
    done = subprocess.run(arguments, env=inherited | environment, capture_output=True, timeout=180, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (b"Zo\\u00eb" if options else b"Zo\\xeb") in done.stdout


def test_a_directory_is_no_snapshot(tmp_path: Path) -> None:
    done = run("restore", str(tmp_path), "-c", str(tmp_path / "store"))
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path} is no snapshot: expected a regular file\n"


@pytest.mark.parametrize(("text", "stored"), [("1e400", None), ("-1e999", None), ("1e39", 1e39), ("-inf", -math.inf)])
def test_put_stores_infinity_only_where_it_was_asked_for(text: str, stored: float | None, tmp_path: Path) -> None:
    registry = SegmentRegistry(tmp_path / "store", shm_dir=tmp_path)
    registry.create(TRIP, capacity=4).close()
    lists = make_schema("Lists", [FeatureField("scores", dtype.float64, (None,))])
    registry.create(lists, capacity=4).close()
    for words in (["Trip", "a", f"score={text}"], ["Lists", "a", f"scores=[{text.replace('inf', 'Infinity')}]"]):
        done = CliRunner().invoke(app, ["put", "-c", str(tmp_path / "store"), *words])
        if stored is None:
            assert done.exit_code == 2
            assert "out of the range of float64" in " ".join(done.output.replace("│", " ").split())
        else:
            assert done.exit_code == 0
            assert decode(registry.backend.log().read(0).entries[-1][1]).batch.column(2).to_pylist() in (
                [stored],
                [[stored]],
            )
