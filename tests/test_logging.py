"""The library is quiet until an application asks, and then speaks as it was asked."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

from quorin import logging as quorin_logging


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
