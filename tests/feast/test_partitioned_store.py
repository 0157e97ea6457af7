"""Feast on a deployment with four partitions, applied by the process that writes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from feast import FeatureStore

import feast_quorin
from quorin.errors import NotYetAppliedError, PartitionCountError, TokenError
from quorin.shm import SegmentRegistry
from quorin.wal import Token
from tests.equivalence.test_compiled import generic
from tests.feast.repos import END, START, definitions, make_store
from tests.feast.test_consistent import REQUEST, objects, write

FEATURES = ["driver_stats:trips", "driver_stats:nick"]
DRIVERS = [{"driver_id": number} for number in (1001, 1002, 7)]


def new_store(folder: Path, data: Path, partitions: int) -> FeatureStore:
    """A store of so many partitions, with a history."""
    (folder / "shm").mkdir(parents=True)
    online_store = {
        "type": "quorin",
        "path": str(folder / "store"),
        "shm_dir": str(folder / "shm"),
        "offline_path": str(folder / "history"),
        "partitions": partitions,
    }
    return make_store(folder / "repo", online_store, data=data)


def answered(folder: Path, data: Path, partitions: int) -> dict[str, Any]:
    store = new_store(folder, data, partitions)
    store.apply(definitions(data))
    store.materialize(START, END)
    answer: dict[str, Any] = store.get_online_features(FEATURES, DRIVERS).to_dict()
    return answer


def test_answers_are_those_of_one_partition_and_history_is_by_partition(tmp_path: Path, data: Path) -> None:
    assert answered(tmp_path / "4", data, 4) == answered(tmp_path / "1", data, 1)
    assert [path.name for path in (tmp_path / "4" / "history").iterdir()] == ["partitions=4"]
    with pytest.raises(PartitionCountError, match="8 partitions are expected here"):
        _ = SegmentRegistry(str(tmp_path / "4" / "store"), shm_dir=tmp_path / "4" / "shm", partitions=8).partitioning


def test_consistent_reads_and_tokens_are_those_of_one_partition(tmp_path: Path, data: Path) -> None:
    """Written in turn, read with all that reads can ask for, by a compiled request and by Feast's own path."""
    found: dict[int, list[Any]] = {}
    for partitions in (1, 4):
        store = new_store(tmp_path / str(partitions), data, partitions)
        store.apply(objects(data))
        answers, tokens = found.setdefault(partitions, []), []
        for number, view in enumerate(["first", "second", "first", "first", "second"]):
            write(store, view, number)
            token = feast_quorin.last_token(store)
            assert token is not None
            assert (len(token.parts) > 1) == (partitions > 1)
            tokens.append(token)
            for earlier in tokens:
                with feast_quorin.at_least(earlier.text), feast_quorin.consistent(timeout_ms=10_000):
                    answers += [one(**REQUEST).to_dict() for one in (store.get_online_features, by_feast(store))]
                with feast_quorin.at_least(earlier, timeout_ms=10_000):
                    answers.append(store.get_online_features(**REQUEST).to_dict(include_event_timestamps=True))
        identity, position = tokens[-1].parts[-1]
        for late, kind in ((Token((identity, position + 1_000)), NotYetAppliedError), (Token((1, 1)), TokenError)):
            with feast_quorin.at_least(late, timeout_ms=10), pytest.raises(kind):
                store.get_online_features(**REQUEST)
    assert found[4] == found[1]


def by_feast(store: FeatureStore) -> Any:
    return lambda **request: generic(store, **request)


def test_no_view_is_ahead_of_another_in_a_consistent_read(tmp_path: Path, data: Path) -> None:
    """The writer takes turns, first before second, so at any moment first is at most one ahead, in each partition."""
    store = new_store(tmp_path / "4", data, 4)
    store.apply(objects(data))
    for view in ("first", "second"):
        write(store, view, 0)
    stop = threading.Event()

    def run() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for view in ("first", "second"):
                write(store, view, number)

    writer = threading.Thread(target=run)
    writer.start()
    try:
        last = [0] * 5
        for _ in range(40):
            with feast_quorin.consistent(timeout_ms=30_000):
                answer = store.get_online_features(**REQUEST).to_dict()
            for first, second, before in zip(answer["first__n"], answer["second__n"], last, strict=True):
                assert second <= first <= second + 1
                assert first >= before
            last = answer["first__n"]
    finally:
        stop.set()
        writer.join()
