"""Whatever clients send, the server keeps its promises: found out by libFuzzer, guided by the coverage of our code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = int(os.environ.get("QUORIN_FUZZ_SECONDS", "60"))
MOST_MEMORY_MIB = 2_048


@pytest.mark.torture
@pytest.mark.parametrize("target", ["protocol", "requests"])
def test_no_input_breaks_a_promise(target: str, tmp_path: Path) -> None:
    options = [
        f"-max_total_time={SECONDS}",
        f"-rss_limit_mb={MOST_MEMORY_MIB}",
        "-timeout=10",
        f"-artifact_prefix={tmp_path}/",
    ]
    command = [sys.executable, "-m", "tests.support.fuzz_http", target, str(tmp_path), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 300)
    assert done.returncode == 0, done.stderr[-5_000:]
    assert "Done " in done.stderr
