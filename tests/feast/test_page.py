"""The page of ``quorin serve --repo``, as Chromium shows it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import pandas as pd
import pytest
import requests
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import Array, Float32, Int64, String
from playwright.sync_api import expect

from tests.support.browser import looking, needs_chromium
from tests.support.http import Running, serving

pytestmark = needs_chromium
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "segments").mkdir()
    settings = {
        "project": "shop",
        "provider": "local",
        "registry": str(folder / "registry.db"),
        "online_store": {"type": "quorin", "path": str(folder / "quorin"), "shm_dir": str(folder / "segments")},
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    file = FileSource(name="file", path=str(folder / "none.parquet"), timestamp_field="at")
    fields = [
        Field(name="trips", dtype=Int64),
        Field(name=HOSTILE, dtype=String),
        Field(name="e", dtype=Array(Float32)),
    ]
    source = PushSource(name="drivers", batch_source=file)
    view = FeatureView(name="driver_stats", entities=[driver], schema=fields, source=source, ttl=None)
    store = FeatureStore(repo_path=str(folder))
    pd.DataFrame({"driver_id": [1], "at": [dt.datetime.now(dt.UTC)]}).to_parquet(folder / "none.parquet")
    store.apply([driver, view])
    row = {"driver_id": [2**60 + 1], "at": [dt.datetime(2026, 1, 2, tzinfo=dt.UTC)], "trips": [2**60 + 3]}
    store.push("drivers", pd.DataFrame({**row, HOSTILE: [HOSTILE], "e": [[0.5, 1.0]]}))
    with serving(["quorin", "serve", "-r", str(folder), "-p", "{port}"], folder / "log") as running:
        yield running


def test_the_page_shows_the_views_and_reads_an_entity(server: Running) -> None:
    with looking(server.url) as looked:
        page = looked.page
        expect(page.locator("#schemas tr")).to_have_count(1)
        [row] = looked.rows("schemas")
        assert (row[0], row[2]) == ("driver_stats", "1")
        expect(page.locator("#about")).to_contain_text("project shop")
        page.get_by_label("driver_id").fill(str(2**60 + 1))
        page.get_by_role("button", name="Read").click()
        expect(page.locator("#answer")).to_have_text("Event time 2026-01-02T00:00:00Z")
        assert sorted(looked.rows("fields")) == [
            [HOSTILE, "String", HOSTILE],
            ["e", "Array(Float32)", "[0.5,1]"],
            ["trips", "Int64", str(2**60 + 3)],
        ]
        page.get_by_label("driver_id").fill("3")
        page.get_by_role("button", name="Read").click()
        expect(page.locator("#answer")).to_have_text("There is no row.")
        assert f'"driver_id": [{3}]' in page.locator("#python").inner_text()
        assert (looked.errors, looked.dialogs) == ([], [])
        assert looked.hosts == {f"127.0.0.1:{server.port}"}


def test_views_are_described_with_feasts_names(server: Running) -> None:
    described = requests.get(server.url + "/v1/schemas", timeout=60).json()
    [view] = described["schemas"]
    assert (described["project"], view["schema"], view["rows"]) == ("shop", "driver_stats", 1)
    assert view["keys"] == [{"name": "driver_id", "type": "Int64"}]
    assert {"name": HOSTILE, "dtype": "String"} in view["fields"]
