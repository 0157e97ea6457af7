"""Feast on a deployment with four partitions, applied by the process that writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quorin.errors import PartitionCountError
from quorin.shm import SegmentRegistry
from tests.feast.repos import END, START, definitions, make_store

FEATURES = ["driver_stats:trips", "driver_stats:nick"]
DRIVERS = [{"driver_id": number} for number in (1001, 1002, 7)]


def answered(folder: Path, data: Path, partitions: int) -> dict[str, Any]:
    """What a new store of so many partitions answers, with a history."""
    (folder / "shm").mkdir(parents=True)
    online_store = {
        "type": "quorin",
        "path": str(folder / "store"),
        "shm_dir": str(folder / "shm"),
        "offline_path": str(folder / "history"),
        "partitions": partitions,
    }
    store = make_store(folder / "repo", online_store, data=data)
    store.apply(definitions(data))
    store.materialize(START, END)
    answer: dict[str, Any] = store.get_online_features(FEATURES, DRIVERS).to_dict()
    return answer


def test_answers_are_those_of_one_partition_and_history_is_by_partition(tmp_path: Path, data: Path) -> None:
    assert answered(tmp_path / "4", data, 4) == answered(tmp_path / "1", data, 1)
    assert [path.name for path in (tmp_path / "4" / "history").iterdir()] == ["partitions=4"]
    with pytest.raises(PartitionCountError, match="8 partitions are expected here"):
        _ = SegmentRegistry(str(tmp_path / "4" / "store"), shm_dir=tmp_path / "4" / "shm", partitions=8).partitioning
