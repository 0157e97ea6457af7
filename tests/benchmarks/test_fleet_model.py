"""The model of a fleet: what must grow does, totals add up, and it is calibrated with what was measured."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from benchmarks import document, fleet_model
from benchmarks.fleet_model import CASES, MARK, MEASURED, Estimate, Fleet, TooSmallError, estimate, log_row_bytes
from quorin.engine.backend import connect
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer

ROOT = Path(__file__).parents[2]
PARTITIONS = st.integers(0, 8).map(lambda power: 2**power)

fleets = st.builds(
    Fleet,
    entities=st.integers(1, 10**10),
    fields=st.integers(1, 1000),
    id_bytes=st.integers(1, 64),
    rows_per_s=st.floats(0, 1e7),
    rows_an_entry=st.integers(1, 10_000),
    partitions=PARTITIONS,
    replicas=st.integers(1, 50),
    node_bytes=st.floats(1e9, 1e13),
    room=st.floats(1, 4),
    kept_seconds=st.floats(0, 1e6),
    snapshot_seconds=st.floats(0, 1e6),
    node_price=st.floats(0, 100),
    log_price=st.floats(0, 100),
)


def _estimates(fleet: Fleet, **more: Any) -> tuple[Estimate, Estimate]:
    """Of a fleet, and of it with something changed; examples with nodes that are too small do not count."""
    try:
        return estimate(fleet), estimate(dataclasses.replace(fleet, **more))
    except TooSmallError:
        assume(False)
        raise


GROWS = {
    "entities": ["partition_bytes", "nodes_a_replica", "nodes", "cost_an_hour"],
    "fields": ["partition_bytes", "nodes", "log_bytes_per_s", "read_bytes_per_s", "master_bytes", "cost_an_hour"],
    "id_bytes": ["log_bytes_per_s", "read_bytes_per_s", "master_bytes", "master_load"],
    "rows_per_s": [
        "log_bytes_per_s", "read_bytes_per_s", "master_bytes", "master_load", "node_load", "lag_seconds",
        "from_snapshot_seconds", "from_log_seconds",
    ],
    "replicas": ["nodes", "read_bytes_per_s", "master_load", "cost_an_hour"],
    "kept_seconds": ["master_bytes", "from_log_seconds"],
    "snapshot_seconds": ["from_snapshot_seconds"],
    "log_replicas": ["log_machines", "cost_an_hour"],
    "node_price": ["cost_an_hour"],
    "log_price": ["cost_an_hour"],
}  # fmt: skip


@pytest.mark.parametrize("name", GROWS)
@given(fleet=fleets, times=st.floats(1, 100))
def test_more_of_one_thing_never_needs_less_of_another(name: str, fleet: Fleet, times: float) -> None:
    value = getattr(fleet, name) * times
    less, more = _estimates(fleet, **{name: math.ceil(value) if isinstance(getattr(fleet, name), int) else value})
    for grown in GROWS[name]:
        assert getattr(more, grown) >= getattr(less, grown) * (1 - 1e-9), grown


@given(fleet=fleets, times=st.floats(1, 100))
def test_larger_nodes_are_never_more_nodes(fleet: Fleet, times: float) -> None:
    small, large = _estimates(fleet, node_bytes=fleet.node_bytes * times)
    assert large.nodes <= small.nodes


@given(fleet=fleets)
def test_more_masters_share_the_log(fleet: Fleet) -> None:
    one, many = _estimates(fleet, masters=fleet.partitions)
    assert many.log_bytes_per_s == one.log_bytes_per_s
    assert many.master_bytes * fleet.partitions == pytest.approx(one.master_bytes)
    assert many.log_machines == one.log_machines * fleet.partitions


@given(fleet=fleets)
def test_totals_add_up(fleet: Fleet) -> None:
    found, _ = _estimates(fleet)
    assert found.nodes == found.nodes_a_replica * fleet.replicas
    assert (found.nodes_a_replica - 1) * found.partitions_a_node < fleet.partitions, "no node is empty"
    assert found.nodes_a_replica * found.partitions_a_node >= fleet.partitions, "every partition is held"
    assert found.node_bytes <= fleet.node_bytes
    assert found.partition_bytes * fleet.partitions >= fleet.entities * 4 * fleet.fields
    assert found.read_bytes_per_s == pytest.approx(found.log_bytes_per_s * fleet.replicas)
    nodes, log_machines = found.nodes * fleet.node_price, found.log_machines * fleet.log_price
    assert found.cost_an_hour == pytest.approx(nodes + log_machines)
    assert math.isinf(found.lag_seconds) == (found.node_load >= 1)
    assert math.isinf(found.from_log_seconds) == (found.node_load >= 1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"entities": 0}, "entities 0: expected a number of 1 or more"),
        ({"room": math.nan}, "room nan: expected a number of 1 or more"),
        ({"rows_per_s": math.inf}, "rows_per_s inf"),
        ({"partitions": 3}, "partitions 3: expected a power of two up to 256"),
        ({"partitions": 512}, "partitions 512: expected a power of two"),
        ({"partitions": 2, "masters": 3}, "masters 3: expected no more than the 2 partitions"),
    ],
)
def test_a_fleet_that_cannot_be_is_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Fleet(**{"entities": 1} | settings)


def test_nodes_that_hold_no_partition_are_named_with_the_memory_that_they_need() -> None:
    with pytest.raises(TooSmallError, match=r"a node of 1\.0 GB cannot hold one of 4 partitions: expected 48\.\d GB"):
        estimate(Fleet(10**9, partitions=4, node_bytes=1e9))


def test_it_is_calibrated_with_the_figures_of_the_documents() -> None:
    """Figures of another run differ; when they differ much, calibrate the model anew."""
    figures = json.loads((ROOT / "docs" / document.FIGURES).read_text())
    for name, one in MEASURED.items():
        value = figures
        for key in one.path:
            value = value[key]
        assert one.value / 2 < value < one.value * 2, name


@pytest.mark.parametrize("fields", [4, 200])
def test_bytes_are_those_of_a_segment_and_of_a_log(fields: int, tmp_path: Path) -> None:
    schema = make_schema("Row", [FeatureField(f"f{number}", dtype.float32) for number in range(fields)])
    registry = SegmentRegistry(tmp_path / "store", shm_dir=tmp_path)
    with registry.create(schema, capacity=5000) as segment:
        assert segment.stats()["bytes"] == pytest.approx(fleet_model.segment_bytes(5000, fields), rel=0.02)
    registry.backend.close()
    rows = 100
    columns: dict[str, Any] = {name: np.zeros(rows, np.float32) for name in (field.name for field in schema.fields)}
    with WALProducer(tmp_path / "store") as producer:
        producer.write_many(schema, pa.table({"entity_id": [f"user_{n:08d}" for n in range(rows)]} | columns))
    backend = connect(tmp_path / "store")
    size = sum(len(payload) for _, payload in backend.log().read(0).entries)
    backend.close()
    assert size / rows == pytest.approx(log_row_bytes(Fleet(1, fields=fields, rows_an_entry=rows)), rel=0.03)


def test_the_document_has_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = ROOT / "docs" / "deployment.md"
    assert document.section(page.read_text(), MARK) == fleet_model.table(CASES), (
        "write it with python -m benchmarks.fleet_model --docs docs/deployment.md"
    )
    copy = tmp_path / "page.md"
    copy.write_text(f"before\n{document.place(MARK, 'old')}\nafter\n")
    fleet_model.main(["--docs", str(copy)])
    assert copy.read_text() == f"before\n{document.place(MARK, fleet_model.table(CASES))}\nafter\n"
    fleet_model.main(["--entities", "1e9", "--partitions", "16", "--rows-per-s", "1e9", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["nodes"], found["lag_seconds"]) == (8, None)
    with pytest.raises(SystemExit, match="error: partitions 3"):
        fleet_model.main(["--partitions", "3"])
