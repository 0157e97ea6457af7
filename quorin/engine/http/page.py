"""``GET /``: a page that shows in a browser what is served. One file, without anything from another address."""

from __future__ import annotations

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path

from quorin.engine.http.reply import Reply

_FILE = Path(__file__).with_name("page.html")


@cache
def page() -> Reply:
    """The page. The browser runs its script and its style, known by their hashes, and nothing else."""
    text = _FILE.read_bytes()
    policy = (
        f"default-src 'none'; script-src {_hash(text, b'script')}; style-src {_hash(text, b'style')}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        b"content-security-policy": policy.encode(),
        b"x-content-type-options": b"nosniff",
        b"referrer-policy": b"no-referrer",
        b"cache-control": b"no-cache",
    }
    return Reply(200, b"text/html; charset=utf-8", text, tuple(headers.items()))


def _hash(text: bytes, tag: bytes) -> str:
    [content] = re.findall(b"<%s>(.*?)</%s>" % (tag, tag), text, flags=re.DOTALL)
    return f"'sha256-{b64encode(sha256(content).digest()).decode()}'"
