"""The models of the document are trained, read from shared memory, and predict what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quorin.shm import SHM_DIR_VARIABLE
from tests.feast.repos import END, START, definitions, make_store
from tests.support.shown import blocks, run_shown

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_every_library_predicts_what_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown = [run_shown(block, names) for block in blocks(DOCUMENT, "python") if "FeatureStore" not in block]
    names["registry"].discard(names["segment"])
    assert shown == [3, 1, 2, 2, 1, 1]


def test_entity_rows_of_feast_are_read(tmp_path, monkeypatch):
    segments = tmp_path / "segments"
    segments.mkdir()
    monkeypatch.setenv(SHM_DIR_VARIABLE, str(segments))
    store = make_store(tmp_path / "repo", {"type": "feast_quorin.QuorinOnlineStore", "shm_dir": str(segments)})
    store.apply(definitions(tmp_path / "repo" / "data"))
    store.materialize(START, END)
    [block] = blocks(DOCUMENT, "python", "feast")
    assert 'FeatureStore(".")' in block
    names: dict[str, Any] = {"opened": store}
    assert run_shown(block.replace('FeatureStore(".")', "opened"), names) == 1
    [[city, _, rate]] = names["reader"]([{"driver_id": 1001, "customer": "alice"}])
    assert (city, rate) == (1.0, 2.0)
    store.teardown()
