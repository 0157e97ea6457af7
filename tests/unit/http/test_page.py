"""The page at ``/``, as Chromium shows it: what is served, and an entity that the form reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from playwright.sync_api import expect

from tests.support.browser import looking, needs_chromium
from tests.support.http import Running
from tests.support.segment_site import HOSTILE, Site, make_site, serving_site

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def server(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving_site(site, tmp_path_factory.mktemp("served") / "log") as running:
        yield running


def test_the_page_shows_the_schemas_and_reads_an_entity(server: Running) -> None:
    with looking(server.url) as looked:
        page = looked.page
        expect(page.locator("#schemas tr")).to_have_count(3)
        assert [row[:5] for row in looked.rows("schemas")] == [
            ["City", "1", "2", "16", "unknown"],
            ["Driver", "1", "1,000", "2,000", "unknown"],
            ["Everything", "1", "4", "16", "unknown"],
        ]
        page.get_by_role("cell", name="Driver").click()
        page.get_by_label("driver_id").fill("7")
        page.get_by_role("button", name="Read").click()
        expect(page.locator("#answer")).to_contain_text("Event time 20")
        assert looked.rows("fields") == [
            ["rate", "float64", "0.007007007007007007"],
            ["trips", "int64", str(2**60 + 7)],
            ["place", "string", "Oslo"],
            ["embedding", "float32[4]", "[28,29,30,31]"],
        ]
        page.get_by_label("driver_id").fill("none")
        page.get_by_role("button", name="Read").click()
        expect(page.locator("#answer")).to_have_text("There is no row.")
        assert [row[2] for row in looked.rows("fields")] == [""] * 4
        assert '{"schema": "Driver", "entity_ids": ["none"]}' in page.locator("#curl").inner_text()
        assert (looked.errors, looked.dialogs) == ([], [])
        assert looked.hosts == {f"127.0.0.1:{server.port}"}


def test_what_is_shown_is_never_executed(server: Running) -> None:
    with looking(server.url) as looked:
        page = looked.page
        page.get_by_role("cell", name="Everything").click()
        for entity_id in ("full", HOSTILE, "it's"):
            page.get_by_label("entity_id").fill(entity_id)
            page.get_by_role("button", name="Read").click()
            expect(page.locator("#answer")).to_have_text(
                "Event time 2023-11-14T22:13:20.123Z" if entity_id == "full" else "There is no row."
            )
            if entity_id == "full":
                assert ["text", "string", HOSTILE] in looked.rows("fields")
        assert "it'\\''s" in page.locator("#curl").inner_text()
        page.evaluate("html => { document.body.insertAdjacentHTML('beforeend', html) }", HOSTILE)
        page.wait_for_timeout(100)
        assert looked.dialogs == [], "not even what a mistake of the page would insert"


def test_the_page_needs_the_token_for_data_only(site: Site, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("correct-horse")
    options = ["--token-file", str(tmp_path / "token")]
    with serving_site(site, tmp_path / "log", *options) as server, looking(server.url) as looked:
        page = looked.page
        expect(page.locator("#problem")).to_have_text("This server needs its token.")
        page.get_by_label("Token").fill("correct-horse")
        page.get_by_role("button", name="Refresh").click()
        expect(page.locator("#schemas tr")).to_have_count(3)
        page.get_by_label("city").fill("Oslo")
        page.get_by_role("button", name="Read").click()
        expect(page.locator("#answer")).to_contain_text("Event time")
        shown = page.locator("#curl").inner_text() + page.locator("#python").inner_text()
        assert "$TOKEN" in shown
        assert "correct-horse" not in shown
        stored = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie.length]")
        assert stored == [0, 0, 0]


def test_the_page_says_what_it_may_load(server: Running) -> None:
    answer = requests.get(server.url, timeout=60)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'sha256-" in policy
    assert "unsafe" not in policy
    assert "://" not in answer.text
