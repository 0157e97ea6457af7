"""The benchmark of partitions runs, on a cluster and on one server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.test_evolution import run


@pytest.mark.torture
def test_a_short_look_at_partitions(tmp_path: Path) -> None:
    figures = run(tmp_path, "partitions", "partitions", "--rows", "20000", "--rounds", "1")["partitions"]
    assert len(figures["split"]) == 3
    assert all(value > 0 for row in (*figures["split"].values(), *figures["bulk"].values()) for value in row.values())
    assert all(row["applied"] <= row["appended"] for row in figures["bulk"].values())
    assert len(figures["bulk"]) == 2
