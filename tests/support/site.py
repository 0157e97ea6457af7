"""The documentation's site: built by Sphinx in a forked process, and served as a web server serves it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from tests.support.forking import preload, run

DOCS = Path(__file__).parents[2] / "docs"

preload(__name__)


def build_site(target: Path) -> None:
    """Build the site as docs/contributing.md says; a warning is an error."""
    words = [
        "sphinx-build",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        "-d",
        f"{target}.doctrees",
        str(DOCS),
        str(target),
    ]
    done = run(_sphinx, words, dict(os.environ), directory=DOCS.parent, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def _sphinx() -> None:
    from sphinx.cmd.build import main

    sys.exit(main(sys.argv[1:]))


@contextmanager
def serving_site(folder: Path) -> Iterator[str]:
    """The URL at which a folder is served, its 404.html where there is no file."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder))) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Silent."""

    def send_error(self, code: int, *_: Any) -> None:
        page = Path(self.directory, "404.html").read_bytes()
        self.send_response(code)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)
