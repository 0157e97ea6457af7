"""The benchmark runs, and its arithmetic is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import measuring

ROOT = Path(__file__).parents[2]


@pytest.mark.torture
def test_a_short_run_prints_tables_and_writes_figures(tmp_path):
    sizes = ["--processes", "1", "--rounds", "1", "--entities", "100"]
    command = [sys.executable, "-m", "benchmarks.feast_requests", *sizes, "--json", str(tmp_path / "out" / "r.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "than Redis" in done.stdout
    result = json.loads((tmp_path / "out" / "r.json").read_text())
    assert result["machine"]["cores"] >= 1
    figures = result["feast"]["1 row × 4, int key, to_dict: feast-quorin"]
    assert 0 < figures["p50"] <= figures["p99"] <= figures["p999"]
    requests = {name.partition(": feast-")[0] for name in result["feast"]}
    assert {f"{request}: feast-{store}" for request in requests for store in ("sqlite", "redis", "quorin")} == set(
        result["feast"]
    )


def test_cases_take_turns_and_the_first_round_does_not_count():
    order: list[str] = []
    cases = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    samples = measuring.interleave(cases, rounds=2, calls={"a": 2, "b": 1})
    assert "".join(order) == "aab" * 3
    assert {name: len(times) for name, times in samples.items()} == {"a": 4, "b": 2}


def test_quantiles_are_over_all_processes_and_the_spread_of_medians_is_kept():
    figures = measuring.summary([{"case": np.arange(1, 101)}, {"case": np.arange(101, 201)}])["case"]
    assert figures["p50"] == 100.5
    assert (figures["p50_lowest"], figures["p50_highest"], figures["calls"]) == (50.5, 150.5, 200)


def test_durations_have_three_digits_and_a_unit():
    assert [measuring.duration(value) for value in (51, 1234, 5.6e6, 2e9)] == ["51 ns", "1.23 µs", "5.6 ms", "2 s"]
