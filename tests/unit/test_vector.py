"""Vector search: the kernel and plain NumPy agree bit for bit, beside writers too, and both with brute force."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from quorin import layout, vector
from quorin.errors import InvalidRowError
from quorin.schema import FeatureField, FeatureSchema, dtype
from quorin.shm import Segment, SegmentRegistry

METRICS = ["l2", "cosine", "inner_product"]


class Docs(FeatureSchema):
    version = 1
    fields = [
        FeatureField("any", dtype.float32, (None,)),
        FeatureField("fixed", dtype.float32, (13,)),
        FeatureField("wide", dtype.float64, (None,)),
        FeatureField("price", dtype.float32),
        FeatureField("whole", dtype.int32, (4,)),
    ]


@pytest.fixture
def registry(tmp_path: Path) -> SegmentRegistry:
    return SegmentRegistry(str(tmp_path / "store"), shm_dir=tmp_path)


@pytest.fixture
def segment(registry: SegmentRegistry) -> Iterator[Segment]:
    made = registry.create(Docs, capacity=64)
    yield made
    made.release_writer_lease()
    registry.discard(made)


def table(ids: list[str], vectors: Any, **more: Any) -> pa.Table:
    rows = [list(map(float, each)) for each in vectors]
    return pa.table(
        {
            "entity_id": ids,
            "any": pa.array(rows, pa.list_(pa.float32())),
            "fixed": pa.array([((row or [0.0]) * 13)[:13] for row in rows], pa.list_(pa.float32(), 13)),
            "wide": pa.array(rows, pa.list_(pa.float64())),
            "price": pa.array(range(len(ids)), pa.float32()),
            "whole": pa.array([[0] * 4] * len(ids), pa.list_(pa.int32(), 4)),
            **more,
        }
    )


def same(segment: Segment, field: str, query: Any, **choice: Any) -> vector.Neighbours:
    """What both ways find, bit for bit."""
    found, plain = (
        vector.search(segment, field, query, **choice),
        vector.search_plainly(segment, field, query, **choice),
    )
    assert found.entity_ids == plain.entity_ids
    assert found.distances.tobytes() == plain.distances.tobytes()
    return found


def brute_force(vectors: np.ndarray[Any, Any], query: np.ndarray[Any, Any], metric: str) -> np.ndarray[Any, Any]:
    vectors = vectors.astype(np.float64)
    if metric == "l2":
        return np.linalg.norm(vectors - query, axis=1)
    products = vectors @ query
    if metric == "inner_product":
        return -products
    return 1 - products / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(query))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", [1, 7, 8, 13, 128])
def test_the_nearest_are_those_of_brute_force(segment: Segment, metric: Any, size: int) -> None:
    rng = np.random.default_rng(size)
    vectors = rng.standard_normal((500, size), np.float32)
    ids = [f"doc-{number}" if number % 3 else f"long-{number}-" + "x" * 50 for number in range(500)]
    layout.insert_many(segment, table(ids, vectors))
    query = rng.standard_normal(size)
    expected = brute_force(vectors, query, metric)
    nearest = [ids[row] for row in np.argsort(expected, kind="stable")[:10]]
    for field in ("any", "wide"):
        found = same(segment, field, query, k=10, metric=metric)
        np.testing.assert_allclose(found.distances, np.sort(expected)[:10], rtol=1e-12, atol=1e-12)
        if size > 1 or metric == "l2":
            assert found.entity_ids == nearest
    everything = same(segment, "any", query, k=10_000, metric=metric)
    assert sorted(everything.entity_ids) == sorted(ids)
    assert (np.diff(everything.distances) >= 0).all()
    same(segment, "fixed", rng.standard_normal(13), k=7, metric=metric)


def test_ties_go_by_id(segment: Segment) -> None:
    ids = ["b", "a", "ab", "é", "Z", "aa"]
    layout.insert_many(segment, table(ids, [[1.0, 2.0]] * 6))
    for k in range(1, 8):
        found = same(segment, "any", [0.0, 0.0], k=k)
        assert found.entity_ids == sorted(ids, key=str.encode)[:k]


def test_what_does_not_count(segment: Segment) -> None:
    vectors = [[1, 0], [2, 0, 0], [], [float("nan"), 0], [float("inf"), 0], [0, 0]]
    rows = table(["far", "longer", "empty", "nan", "infinite", "zero"], vectors)
    layout.insert_many(segment, rows)
    layout.insert_many(
        segment,
        table(["null"], [[0, 0]], any=pa.nulls(1, pa.list_(pa.float32())), wide=pa.nulls(1, pa.list_(pa.float64()))),
    )
    layout.insert_many(segment, table(["gone"], [[0, 0]]))
    layout.delete(segment, "gone")
    assert same(segment, "any", [0, 0], k=9).entity_ids == ["zero", "far", "infinite"]
    cosine = same(segment, "any", [2, 0], k=9, metric="cosine")
    assert cosine.entity_ids == ["far", "zero"]
    assert cosine.distances.tolist() == [0.0, 1.0]
    assert same(segment, "any", [0, 0, 0], k=9).entity_ids == ["longer"]
    assert same(segment, "any", [1.0] * 4, k=9).entity_ids == []


def test_a_search_among_some(segment: Segment) -> None:
    layout.insert_many(segment, table(["a", "b", "c", "d"], [[1.0], [2.0], [3.0], [4.0]]))
    assert same(segment, "any", [0.0], k=2, among=["d", "nobody", "b", "b"]).entity_ids == ["b", "d"]
    assert same(segment, "any", [0.0], k=2, among=[]).entity_ids == []
    assert same(segment, "any", [0.0], k=2, among=pa.array(["c"])).entity_ids == ["c"]


def test_all_ids_are_listed(segment: Segment) -> None:
    assert vector.entity_ids(segment).to_pylist() == []
    ids = [f"doc-{number}" for number in range(3000)] + ["x" * 64]
    layout.insert_many(segment, table(ids, [[0.0]] * 3001))
    layout.delete(segment, "doc-7")
    assert sorted(vector.entity_ids(segment).to_pylist()) == sorted(set(ids) - {"doc-7"})


@pytest.mark.parametrize(
    ("field", "query", "choice", "expected"),
    [
        ("nothing", [1.0], {}, r"'nothing': Docs has \['any', 'fixed', 'wide'\]"),
        ("price", [1.0], {}, "no vectors in 'price'"),
        ("whole", [1.0] * 4, {}, "no vectors in 'whole'"),
        ("any", [1.0], {"metric": "manhattan"}, "'manhattan', expected one of"),
        ("any", [1.0], {"k": 0}, "k to be a whole number of 1 and more, got 0"),
        ("any", [], {}, r"one dimension, got shape \(0,\)"),
        ("any", [[1.0]], {}, r"one dimension, got shape \(1, 1\)"),
        ("any", ["x"], {}, "query of numbers"),
        ("fixed", [1.0], {}, "13 numbers for 'fixed', got 1"),
    ],
)
def test_bad_questions_are_refused(segment: Segment, field: str, query: Any, choice: Any, expected: str) -> None:
    for ask in (vector.search, vector.search_plainly):
        with pytest.raises(InvalidRowError, match=expected):
            ask(segment, field, query, **{"k": 1, **choice})


def test_a_segment_that_grows_is_followed(registry: SegmentRegistry, segment: Segment) -> None:
    layout.insert_many(segment, table(["first"], [[5.0]]))
    reader = registry.open_current(Docs)
    assert vector.search(reader, "any", [0.0], k=1).entity_ids == ["first"]
    layout.insert_many(segment, table([f"more-{n}" for n in range(5000)], [[1.0 + n] for n in range(5000)]))
    assert vector.search(reader, "any", [0.0], k=1).entity_ids == ["more-0"]
    reader.close()


def write_for_ever(directory: Path, stop: Any) -> None:
    """Rewrite every row: its vector is one number repeated, and its fixed vector the same."""
    registry = SegmentRegistry(str(directory / "store"), shm_dir=directory)
    segment = registry.open_current(Docs, read_only=False)
    number = 0
    while not stop.is_set():
        number += 1
        layout.insert_many(segment, table([f"d{n}" for n in range(40)], [[number % 1000] * 64] * 40))
    segment.close()


def test_no_row_is_torn_beside_a_writer(registry: SegmentRegistry, segment: Segment, tmp_path: Path) -> None:
    layout.insert_many(segment, table([f"d{n}" for n in range(40)], [[0.0] * 64] * 40))
    segment.release_writer_lease()
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    writer = context.Process(target=write_for_ever, args=(tmp_path, stop))
    writer.start()
    reader = registry.open_current(Docs)
    seen: set[float] = set()
    try:
        while len(seen) < 300:
            # A vector that repeats one whole number x is 8 x away from the origin; one of 13 repeats, x times sqrt 13.
            found = vector.search(reader, "any", [0.0] * 64, k=40)
            fixed = vector.search(reader, "fixed", [0.0] * 13, k=40)
            assert sorted(found.entity_ids) == sorted(fixed.entity_ids) == sorted(f"d{n}" for n in range(40))
            multiples = found.distances / 8
            assert (multiples == np.round(multiples)).all()
            np.testing.assert_array_equal(np.sqrt(13 * np.round(fixed.distances / np.sqrt(13)) ** 2), fixed.distances)
            seen.update(multiples.tolist())
    finally:
        stop.set()
        writer.join(60)
        reader.close()
    assert writer.exitcode == 0


def test_threads_search_at_once(segment: Segment) -> None:
    layout.insert_many(segment, table([f"d{n}" for n in range(2000)], [[float(n)] * 8 for n in range(2000)]))
    answers: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(vector.search(segment, "any", [0.0] * 8, k=3).entity_ids))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [["d0", "d1", "d2"]] * 8
