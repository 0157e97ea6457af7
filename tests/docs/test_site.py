"""The site: Sphinx builds it without a warning, its links lead somewhere, and Chromium shows all of its pages."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.support.browser import Looked, looking, needs_chromium
from tests.support.site import build_site, serving_site

pytestmark = pytest.mark.site
SEARCHED = {
    "install": "index.html",
    "redis": "deployment.html",
    "feast materialize": "tutorial-feast.html",
    "lag": "troubleshooting.html",
    "snapshot": "history.html",
    "prewarm": "commands.html",
    "generation": "generations.html",
    "kubernetes": "kubernetes.html",
    "assemble_batch": "api/assembly.html",
}
FIND_WIDE = """async pages => {
    const found = [];
    const look = page => new Promise(resolve => {
        const frame = Object.assign(document.createElement("iframe"), {src: page, width: 1440, height: 800});
        frame.onload = () => {
            for (const width of [1440, 400]) {
                frame.width = width;
                const shown = frame.contentDocument.scrollingElement;
                if (shown.scrollWidth > Math.min(width, shown.clientWidth)) found.push(`${page} at ${width}`);
            }
            frame.remove();
            resolve();
        };
        document.body.append(frame);
    });
    while (pages.length) await Promise.all(pages.splice(0, 8).map(look));
    return found;
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "html"
    build_site(folder)
    return folder


@pytest.fixture(scope="module")
def looked(site: Path) -> Iterator[Looked]:
    with serving_site(site) as url, looking(f"{url}/index.html") as looked:
        yield looked


@pytest.fixture
def page(looked: Looked) -> Iterator[Page]:
    """The landing page at a desk. No page that a test goes to may complain, or ask another host."""
    looked.errors.clear()
    looked.page.set_viewport_size({"width": 1440, "height": 900})
    looked.page.goto(urljoin(looked.page.url, "/index.html"))
    yield looked.page
    assert (looked.errors, len(looked.hosts)) == ([], 1)


def test_every_link_and_anchor_leads_somewhere(site: Path) -> None:
    pages = {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}
    anchors = {name: set(re.findall(r'\sid="([^"]+)"', text)) for name, text in pages.items()}
    dead = []
    for name, text in pages.items():
        for target in re.findall(r'\s(?:href|src)="([^"]*)"', text):
            parts = urlsplit(urljoin(f"/{name}", unescape(target)))
            path, anchor = unquote(parts.path).lstrip("/"), unquote(parts.fragment)
            is_ours = not parts.scheme and not parts.netloc
            if is_ours and not ((site / path).is_file() and (not anchor or anchor in anchors[path])):
                dead.append(f"{name}: {target}")
    assert dead == []


def test_every_page_can_be_reached_from_the_first(site: Path) -> None:
    reached, pending = set[str](), ["index.html"]
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            targets = re.findall(r'\shref="([^"#?:]+\.html)', (site / name).read_text())
            pending += [urljoin(f"/{name}", target).lstrip("/") for target in targets]
    assert {path.relative_to(site).as_posix() for path in site.rglob("*.html")} - reached == {"404.html"}


@needs_chromium
def test_no_page_scrolls_sideways(site: Path, page: Page) -> None:
    pages = [f"/{path.relative_to(site)}" for path in site.rglob("*.html")]
    assert len(pages) > 100
    assert page.evaluate(FIND_WIDE, pages) == []


@needs_chromium
def test_the_landing_page_has_figures_a_picture_and_code_to_copy(page: Page) -> None:
    expect(page.locator("article h1").first).to_contain_text("Quorin")
    expect(page.locator("td.text-right")).to_have_text([re.compile(r"^\d+× as long$")] * 3)
    assert page.locator("article img").evaluate("image => image.complete && image.naturalWidth > 0")
    for section in ("#install", "#the-engine-in-ten-lines"):
        expect(page.locator(f"{section} button.copybtn")).to_have_count(1)
    expect(page.locator(".sidebar-brand-text")).to_have_text(re.compile(r"Quorin \d+\.\d+"))
    expect(page.locator("link[rel~=icon]")).to_have_attribute("href", "_static/favicon.svg")
    cut = "boxes => boxes.filter(box => box.scrollWidth > box.clientWidth).map(box => box.innerText)"
    assert page.locator("article pre, article .table-wrapper").evaluate_all(cut) == []


@needs_chromium
def test_pictures_follow_the_theme_that_a_reader_chooses(page: Page) -> None:
    for theme, is_dark in (("light", False), ("dark", True)):
        page.evaluate("theme => { document.body.dataset.theme = theme }", theme)
        shown = Image.open(io.BytesIO(page.locator("article img").screenshot())).convert("L")
        assert (shown.getpixel((1, 1)) < 64) is is_dark


@needs_chromium
def test_the_search_finds_the_right_page_first(page: Page) -> None:
    found = {}
    for words in SEARCHED:
        page.goto(urljoin(page.url, f"/search.html?q={words}"))
        expect(page.locator("#search-results p.search-summary")).to_contain_text("finished")
        first = page.locator("#search-results ul.search > li > a").first.get_attribute("href")
        found[words] = urlsplit(urljoin("/", first or "")).path.lstrip("/")
    assert found == SEARCHED


@needs_chromium
@pytest.mark.parametrize("missing", ["/nothing.html", "/deep/down/nothing.html"])
def test_where_there_is_no_page_a_way_on_is_shown(missing: str, looked: Looked) -> None:
    looked.errors.clear()
    looked.page.goto(urljoin(looked.page.url, missing))
    expect(looked.page.locator("article h1")).to_contain_text("Page not found")
    assert looked.page.evaluate("[...document.styleSheets].every(sheet => sheet.cssRules.length > 0)")
    looked.page.locator("article").get_by_role("link", name="Start").click()
    expect(looked.page.locator("article h1").first).to_contain_text("Quorin")
    assert [error for error in looked.errors if "404 (Not Found)" not in error] == []
