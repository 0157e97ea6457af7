"""The library is quiet until an application asks, and then speaks as it was asked."""

from __future__ import annotations

import json
import multiprocessing
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from quorin import logging as quorin_logging
from quorin.logging import get_logger
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer


def run(code: str) -> tuple[str, str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=True)
    return done.stdout, done.stderr


LOG = "from quorin.logging import *; l = get_logger('quorin.test');"
SAY = "l.debug('low'); l.info('middle', n=1); l.warning('high', n=2)"


def test_only_warnings_are_seen_before_configuration_and_not_on_stdout() -> None:
    out, err = run(f"{LOG} {SAY}")
    assert out == ""
    assert "middle" not in err
    assert "high" in err
    assert len(err.splitlines()) == 1


def test_json_lines_carry_level_time_name_and_fields() -> None:
    out, err = run(f"{LOG} configure('INFO')\nwith bind(shard=7): {SAY}\nl.info('after')")
    assert out == ""
    events = [json.loads(line) for line in err.splitlines()]
    assert [event["event"] for event in events] == ["middle", "high", "after"]
    assert events[0]["level"] == "info"
    assert events[0]["logger"] == "quorin.test"
    assert events[0]["n"] == 1
    assert events[0]["timestamp"].endswith("Z")
    assert [event.get("shard") for event in events] == [7, 7, None]


def test_lines_for_people() -> None:
    _, err = run(f"{LOG} configure('DEBUG', json=False); {SAY}")
    assert [word in err for word in ("low", "middle", "high")] == [True] * 3
    assert not err.startswith("{")


def test_lines_for_people_where_standard_error_is_a_terminal() -> None:
    code = f"{LOG} configure(json=None); l.info('seen', n=1)"
    assert json.loads(run(code)[1])["event"] == "seen"
    master, slave = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stderr=slave, timeout=180, check=True)
    shown = os.read(master, 65536).decode()
    os.close(slave)
    os.close(master)
    assert "seen" in shown
    assert "{" not in shown


def test_an_application_with_structlog_of_its_own_is_obeyed() -> None:
    out, err = run(
        f"import structlog; structlog.configure(processors=[structlog.processors.JSONRenderer()]); {LOG} {SAY}"
    )
    assert err == ""
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["low", "middle", "high"]


def test_unknown_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="'LOUD'"):
        quorin_logging.configure("LOUD")


UNWRITABLE = ["full", "closed", "nobody reads"]


def start(arguments: list[str], stderr: str, **options: Any) -> subprocess.Popen[str]:
    """Start Python with a standard error that cannot be written to."""
    command = [sys.executable, *arguments]
    if stderr == "closed":
        command = ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    unread, broken = os.pipe()
    os.close(unread)
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        stream = {"full": full, "closed": None, "nobody reads": broken}[stderr]
        return subprocess.Popen(command, stderr=stream, stdout=subprocess.PIPE, text=True, **options)
    finally:
        os.close(broken)
        os.close(full)


@pytest.mark.parametrize("configured", ["", "configure('DEBUG', json=None);"])
@pytest.mark.parametrize("stderr", UNWRITABLE)
def test_events_that_cannot_be_written_are_dropped_and_counted(stderr: str, configured: str) -> None:
    code = (
        f"{LOG} from quorin import metrics; {configured}"
        "dropped = metrics.log_events_dropped.labels(metrics.counters.EVERYWHERE);"
        "before = dropped.value; l.warning('one'); l.error('two'); print(dropped.value - before)"
    )
    process = start(["-c", code], stderr)
    assert process.communicate(timeout=180)[0] == "2\n"


def test_counting_a_dropped_event_that_cannot_be_shared_has_an_end(tmp_path: Path) -> None:
    environment = os.environ | {"QUORIN_SHM_DIR": str(tmp_path / "missing")}
    code = f"{LOG} from quorin import metrics; l.warning('one'); metrics.growths.labels('A').inc(); print('on')"
    process = start(["-c", code], "full", env=environment)
    assert process.communicate(timeout=180)[0] == "on\n"


def test_processors_of_an_application_that_fail_stop_nothing() -> None:
    out, err = run(
        "import structlog; structlog.configure(processors=[lambda logger, name, event: event['missing']]);"
        f"{LOG} l.warning('one'); print('on')"
    )
    assert (out, err) == ("on\n", "")


@pytest.mark.parametrize("stderr", UNWRITABLE)
def test_an_insert_goes_on_where_logging_fails(stderr: str, tmp_path: Path) -> None:
    code = f"""
from quorin import layout
from quorin.logging import configure
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
configure("DEBUG")
schema = make_schema("A", [FeatureField("n", dtype.int64)])
with SegmentRegistry({str(tmp_path / "store")!r}, shm_dir={str(tmp_path)!r}).create(schema, capacity=2) as segment:
    for number in range(100):  # It grows, and says so.
        layout.insert(segment, str(number), layout.pack_row(schema, n=number))
    print(len(segment))
"""
    process = start(["-c", code], stderr)
    assert process.communicate(timeout=180)[0] == "100\n"


@pytest.mark.parametrize("stderr", UNWRITABLE)
def test_a_consumer_goes_on_where_logging_fails_and_ends_in_good_order(stderr: str, tmp_path: Path) -> None:
    registry = SegmentRegistry(tmp_path / "store", shm_dir=tmp_path)
    schema = make_schema("A", [FeatureField("n", dtype.int64)])
    registry.create(schema, capacity=16).close()
    environment = os.environ | {"QUORIN_SHM_DIR": str(tmp_path)}
    arguments = ["-m", "quorin", "consumer", "-c", str(tmp_path / "store"), "--log-level", "debug"]
    process = start(arguments, stderr, env=environment)
    try:
        with WALProducer(registry.backend, registry=registry) as producer:
            producer.wait(schema, producer.write(schema, "a", {"n": 1}), timeout_ms=120_000)
        process.terminate()
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.communicate()


class Gate:
    """A stream on which one thread stands in the middle of a line."""

    def __init__(self) -> None:
        self.is_entered, self.may_go_on = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        if not self.is_entered.is_set():
            self.is_entered.set()
            self.may_go_on.wait(60)
        return len(text)

    def flush(self) -> None:
        """Nothing is kept."""


def test_a_child_forked_while_another_thread_logs_can_log(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    monkeypatch.setattr(sys, "stderr", gate)
    log = get_logger("forking")
    writer = threading.Thread(target=log.warning, args=("first",))
    writer.start()
    assert gate.is_entered.wait(60)
    threading.Timer(0.2, gate.may_go_on.set).start()  # A fork waits for the line.
    child = multiprocessing.get_context("fork").Process(target=log.warning, args=("second",))
    child.start()
    child.join(60)
    stuck = child.exitcode is None
    child.kill()
    writer.join()
    assert not stuck
    assert child.exitcode == 0
