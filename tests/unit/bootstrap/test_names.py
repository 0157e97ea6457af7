"""Which snapshots there are and which are newest, by names alone."""

from __future__ import annotations

import random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from quorin.engine.backend import Beginning
from quorin.engine.bootstrap.names import (
    SnapshotFile,
    file_name,
    is_like_snapshot,
    newest_first,
    parse_path,
    superseded,
)

U64 = st.integers(0, 2**64 - 1)
TIMES = st.integers(0, 2**63 - 1)
SIZES = st.integers(0, 10**15 - 1)


@st.composite
def files(draw: st.DrawFn, logs: st.SearchStrategy[int] = U64) -> SnapshotFile:
    parts = {
        "position": draw(U64),
        "taken_ns": draw(TIMES),
        "log_identity": draw(logs),
        "beginning": Beginning(draw(U64), draw(U64)),
        "version": draw(st.integers(1, 2**31)),
        "fingerprint": draw(U64),
        "size": draw(SIZES),
    }
    return SnapshotFile(**parts, path=f"base/Row/{file_name(**parts)}")


@given(files())
def test_a_name_says_what_a_snapshot_holds(file: SnapshotFile) -> None:
    assert parse_path(file.path, file.size) == file
    assert file.path.endswith(file.name)


@given(files(), SIZES)
def test_an_object_of_another_size_is_no_snapshot(file: SnapshotFile, size: int) -> None:
    assert (parse_path(file.path, size) is None) == (size != file.size)
    assert is_like_snapshot(file.path)


@given(st.text(max_size=120))
def test_foreign_names_are_no_snapshots(name: str) -> None:
    assert parse_path(f"base/Row/{name}", 0) is None
    assert not is_like_snapshot(f"base/Row/{name}")


@pytest.mark.parametrize("change", ["x{}", "{}x", "{}\n", "{}.pending", "../{}x"])
def test_names_around_a_name_are_foreign(change: str) -> None:
    name = file_name(
        position=1, taken_ns=2, log_identity=3, beginning=Beginning(4, 5), version=4, fingerprint=5, size=6
    )
    assert parse_path(name, 6) is not None
    assert parse_path(change.format(name), 6) is None


@given(st.lists(files(logs=st.integers(1, 3)), max_size=12), st.integers(1, 5))
def test_the_logs_own_come_first_by_position_whatever_the_clocks_say(found: list[SnapshotFile], keep: int) -> None:
    ordered = newest_first(found, 2)
    own = [file for file in ordered if file.log_identity == 2]
    assert ordered[: len(own)] == own
    assert [file.position for file in own] == sorted((file.position for file in own), reverse=True)
    others = ordered[len(own) :]
    assert [file.taken_ns for file in others] == sorted((file.taken_ns for file in others), reverse=True)
    shuffled = random.sample(found, len(found))
    assert newest_first(shuffled, 2) == ordered
    assert superseded(shuffled, 2, keep) == ordered[keep:]


@given(st.lists(files(logs=st.just(7)), max_size=8))
def test_names_of_one_log_sort_by_position(found: list[SnapshotFile]) -> None:
    by_name = sorted(found, key=lambda file: file.name)
    assert [file.position for file in by_name] == sorted(file.position for file in found)
