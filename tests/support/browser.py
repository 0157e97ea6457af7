"""The system's Chromium, without a window, and what it did while a test looked at a page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, sync_playwright

needs_chromium = pytest.mark.browser
# Chromium's sandbox does not run as root. No name but this machine's is resolved, so nothing leaves it.
FLAGS = ["--no-sandbox", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]


@dataclass
class Looked:
    """A page, and what it did: errors of its scripts and its console, dialogs that it opened, hosts that it asked."""

    page: Page
    errors: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def rows(self, table: str) -> list[list[str]]:
        """The texts of a table's cells."""
        return [row.locator("td").all_inner_texts() for row in self.page.locator(f"#{table} tr").all()]


@contextmanager
def looking(url: str) -> Iterator[Looked]:
    """A page in a new browser."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        looked = Looked(browser.new_page())
        looked.page.set_default_timeout(60_000)
        looked.page.on("console", lambda said: looked.errors.append(said.text) if said.type == "error" else None)
        looked.page.on("pageerror", lambda error: looked.errors.append(str(error)))
        looked.page.on("dialog", lambda dialog: (looked.dialogs.append(dialog.message), dialog.dismiss()))
        looked.page.on("request", lambda request: looked.hosts.add(urlsplit(request.url).netloc))
        looked.page.goto(url)
        try:
            yield looked
        finally:
            browser.close()
