"""``quorin check`` as its users have it: what is served, and files before they are loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from quorin import layout
from quorin.schema import FeatureField, MeanDrift, NullShare, Range, RowCount, dtype, make_schema
from quorin.shm import SegmentRegistry
from tests.support.commands import run_quorin

SCHEMA = make_schema(
    "shop__users",
    [FeatureField("age__double", dtype.float64), FeatureField("name__string", dtype.string)],
    checks=[RowCount(min_share=0.9), NullShare("name__string", at_most=0.5), MeanDrift("age__double", at_most=1)],
)


class Place:
    def __init__(self, tmp_path: Path) -> None:
        self.store, self.shm_dir, self.path = tmp_path / "store", tmp_path / "shm", tmp_path
        self.shm_dir.mkdir()
        self.registry = SegmentRegistry(self.store, shm_dir=self.shm_dir)
        with self.registry.create(SCHEMA, capacity=10) as segment:
            layout.insert_many(segment, rows(100))

    def run(self, *words: str, code: int = 0) -> Any:
        places = {"QUORIN_CONNECTION": str(self.store), "QUORIN_SHM_DIR": str(self.shm_dir)}
        environment = {**os.environ, **places, "COLUMNS": "200", "NO_COLOR": "1"}
        done = run_quorin(["check", *words], environment, directory=self.path)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.run(*words, "--json", code=code).stdout)


def rows(count: int, shift: float = 0.0) -> pa.Table:
    return pa.table(
        {
            "entity_id": [f"user {i}" for i in range(count)],
            "event_time_ns": [1] * count,
            "age__double": [float(i % 10 + shift) for i in range(count)],
            "name__string": [None if i % 3 else "Jürgen" for i in range(count)],
        }
    )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.registry.backend.close()


def test_what_is_served_and_files_beside_it(place: Place) -> None:
    served = place.json("users", code=3)
    assert [(one["check"], one["passed"], bool(one["note"])) for one in served["checks"]] == [
        ("row_count", True, True),
        ("null_share", False, False),
        ("mean_drift", True, True),
    ]
    assert (served["schema"], served["rows"], served["served_rows"]) == ("users", 100, 0)
    good = place.path / "good.yaml"
    good.write_text(
        "- check: null_share\n  field: name\n  at_most: 0.9\n- {check: mean_drift, field: age, at_most: 1}\n"
    )
    # A file as `quorin export` writes it, with Feast's names; two of its rows are of one entity.
    table = pa.concat_tables([rows(99, shift=2), rows(1)]).rename_columns(["entity_id", "event_time_ns", "age", "name"])
    pa.csv.write_csv(table, place.path / "new.csv")
    passed = place.json("users", "--from", "new.csv", "--checks", "good.yaml")
    assert (passed["passed"], passed["rows"], passed["served_rows"]) == (True, 99, 100)
    pa.parquet.write_table(rows(50, shift=90.5), place.path / "bad.parquet")
    shown = place.run("users", "--from", "bad.parquet", code=3).stdout
    assert "row_count" in shown
    assert "at least 90" in shown
    assert "missing" in shown
    assert "50 rows checked, 100 served" in shown
    assert len(list(place.shm_dir.glob("quorin_shop*"))) == 1
    with place.registry.open_stored("shop__users") as segment:
        assert len(segment) == 100


def test_checks_are_kept_with_the_schema(place: Place) -> None:
    (place.path / "checks.json").write_text(json.dumps([{"check": "range", "field": "age", "low": 0, "high": 9}]))
    assert "users has 1 checks" in place.run("users", "--checks", "checks.json", "--save").stdout
    [one] = place.json("users")["checks"]
    assert (one["check"], one["field"], one["found"]) == (Range.kind, "age", 0.0)
    (place.path / "none.json").write_text("[]")
    place.run("users", "--checks", "none.json", "--save")
    assert "users has no checks" in place.run("users", code=2).stderr


def test_mistakes_are_named(place: Place) -> None:
    unknown, text = ({"check": "range", "field": name, "low": 0} for name in ("agee", "name"))
    for words, file, content, code, expected in (
        (["--checks", "f.json"], "f.json", "{", 2, "f.json cannot be read"),
        (["--checks", "f.yaml"], "f.yaml", "a: [1", 2, "f.yaml cannot be read"),
        (["--checks", "f.json"], "f.json", json.dumps([unknown]), 2, "did you mean age"),
        (["--checks", "f.json"], "f.json", json.dumps([text]), 1, "field of numbers"),
        (["--from", "f.csv"], "f.csv", "entity_id,age\na,1\n", 1, "field 'name' is missing"),
    ):
        (place.path / file).write_text(content)
        assert expected in " ".join(place.run("users", *words, code=code).stderr.split())
    assert len(list(place.shm_dir.glob("quorin_shop*"))) == 1
