"""A replacement that does not pass its checks is refused: the old generation stays, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from quorin.assembly import read, scan
from quorin.errors import CheckFailedError, PastUnavailableError
from quorin.evolution import replace, rollback
from quorin.schema import FeatureField, MeanDrift, NullShare, RowCount, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal_consumer import WALConsumer

CHECKED = make_schema(
    "Checked",
    [FeatureField("x", dtype.float64)],
    checks=[RowCount(min_share=0.5), NullShare("x", at_most=0.1), MeanDrift("x", at_most=3)],
)


def rows(count: int, value: float | None = 1.0) -> pa.Table:
    return pa.table({"entity_id": [f"e{i}" for i in range(count)], "x": pa.array([value] * count, pa.float64())})


@pytest.fixture
def node(tmp_path: Path) -> Any:
    (tmp_path / "shm").mkdir()
    registry = SegmentRegistry(tmp_path / "store", shm_dir=tmp_path / "shm")
    registry.create(CHECKED, capacity=8).close()
    with WALConsumer(registry.backend, [CHECKED], registry=registry) as consumer:
        consumer.drain()
    replace(CHECKED, rows(10), registry)
    yield registry
    registry.backend.close()


def served(registry: SegmentRegistry) -> list[float | None]:
    with registry.open_current(CHECKED) as segment:
        return scan(segment).read_all()["x"].to_pylist()


def test_a_refusal_keeps_the_old_generation_and_leaves_nothing_open(node: SegmentRegistry) -> None:
    files = sorted(path.name for path in node.shm_dir.glob("quorin_Checked*"))
    for source, words in ((rows(4), "row_count: found 4"), (rows(10, None), "null_share of 'x': found 1, allowed")):
        with pytest.raises(CheckFailedError, match=words):
            replace(CHECKED, source, node)
        assert served(node) == [1.0] * 10
        assert sorted(path.name for path in node.shm_dir.glob("quorin_Checked*")) == files
        assert [text for text, _ in node.backend.control.loads().values() if '"state": "open"' in text] == []
    # Nor does a consumer find anything of it later.
    with WALConsumer(node.backend, [CHECKED], registry=node) as consumer:
        consumer.drain()
    assert served(node) == [1.0] * 10
    assert len(list(node.shm_dir.glob("quorin_Checked*"))) == len(files)
    replace(CHECKED, rows(4), node, checks=())
    assert served(node) == [1.0] * 4


def test_a_replaced_generation_is_kept_pinned_and_gone_back_to(node: SegmentRegistry) -> None:
    with node.open_current(CHECKED, pin="current") as old:
        replace(CHECKED, rows(9, 1.5), node, checks=())
        replace(CHECKED, rows(8, 2.5), node, checks=())
        assert read(old, ["e0"])["x"].to_pylist() == [1.0]
        states = [(one.state, one.is_pinned, one.rows) for one in node.generations("Checked")]
        assert states == [("current", False, 8), ("kept", False, 9), ("kept", True, 10)]
        number = node.generations("Checked")[1].number
        rollback(CHECKED, node, to_generation=number)
        assert served(node) == [1.5] * 9
        with pytest.raises(PastUnavailableError, match="no generation 99"):
            rollback(CHECKED, node, to_generation=99)
