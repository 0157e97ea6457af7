"""The code of the document about skew runs, and its page is readable in Chromium, dark and light."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quorin.engine.skew.kinds import MEANINGS, SKEWED
from quorin.offline import FieldSkew, SkewExample, SkewReport, skew_page
from tests.support.browser import looking, needs_chromium
from tests.support.shown import blocks, run_shown

DOCUMENT = Path(__file__).parents[2] / "docs" / "skew.md"


def test_the_engines_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    [block] = blocks(DOCUMENT, "python")
    assert run_shown(block, names) == 3
    assert "Scores" in names["page"]
    names["registry"].discard(names["registry"].open_current(names["Scores"], read_only=False))


def test_every_kind_is_explained():
    text = DOCUMENT.read_text()
    assert [kind for kind in MEANINGS if f"| `{kind}` |" not in text] == []


def report() -> SkewReport:
    example = SkewExample("<script>alert(1)</script>", "stale", "<i>", None, 10**18, None)
    counts = dict.fromkeys(SKEWED, 1)
    rows = {**dict.fromkeys(MEANINGS, 1), "equal": 1000}
    return SkewReport("<b>view</b>", 10**18, rows, [FieldSkew("a" * 80, counts, [example])], {"p50": 5.0})


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_shows_every_kind_without_colour_and_runs_nothing(scheme, tmp_path):
    file = tmp_path / "skew.html"
    file.write_text(skew_page([report().to_dict()]))
    with looking(file.as_uri()) as looked:
        looked.page.emulate_media(color_scheme=scheme)
        looked.page.set_viewport_size({"width": 1000, "height": 800})
        assert looked.page.locator("h2").inner_text() == "<b>view</b>"
        parts = looked.page.locator("svg.bars > rect")
        assert parts.count() == 2 * len(SKEWED)
        assert {parts.nth(number).get_attribute("fill") for number in range(5)} == {f"url(#{kind})" for kind in SKEWED}
        ink, paper = (
            looked.page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor")
        )
        assert (sum(rgb(ink)) > sum(rgb(paper))) == (scheme == "dark")
        assert "<script>alert(1)</script>" in looked.page.locator("table").inner_text()
        assert not looked.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
        assert (looked.errors, looked.dialogs, looked.hosts) == ([], [], {""})


def rgb(text: str) -> list[int]:
    return [int(part) for part in text.removeprefix("rgb(").removesuffix(")").split(",")]
