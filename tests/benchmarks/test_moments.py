"""The benchmark of age limits and consistent reads runs, and compares each read with the same read without."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.test_evolution import run


@pytest.mark.torture
def test_a_short_look_at_age_limits_and_consistent_reads(tmp_path: Path) -> None:
    figures = run(tmp_path, "moments", "moments", "--processes", "1", "--rounds", "1")["moments"]
    reads = {name.partition("|")[0] for name in figures}
    assert {f"{read}|" for read in reads} <= set(figures)
    assert {way for name in figures if (way := name.partition("|")[2])} == {"with max_age", "at one position"}
