"""URLs that may hold a password: one grammar decides where it ends, and which parts may be shown.

If a password contains an unescaped ``/``, ``?`` or ``#``, libraries take parts of it for a host, a port or a path, and
name them in errors. So this grammar is stricter than theirs. A URL that does not match it is malformed: it is passed to
no library, and only its scheme is shown.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

_ESCAPES = "user and password percent-encoded: %2F for /, %3F for ?, %23 for #, %40 for @"
URL_FORM = f"scheme://[user:password@]host/path, {_ESCAPES}"
REDIS_FORM = (
    "redis://[user:password@]host:port/db, redis://[user:password@]host:port[,host:port]?cluster=true, "
    f"redis+sentinel://[user:password@]host:port[,host:port]/service/db or unix://[user:password@]/path, {_ESCAPES}"
)
REDIS_SCHEMES = ("redis://", "rediss://", "unix://", "redis+sentinel://", "rediss+sentinel://")
HTTP_FORM = "http://host:port or https://host:port, without user, password and query"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NAMED_HOST = r"[\w.-]+|\[[\w:.%]+\]"
_URL = re.compile(
    rf"(?P<scheme>{_SCHEME.pattern})"
    r"(?:(?P<credentials>[^/?#]*)@)?"
    rf"(?P<host>{_NAMED_HOST}|)(?P<port>:[0-9]{{1,5}})?(?P<others>(?:,(?:{_NAMED_HOST})(?::[0-9]{{1,5}})?)*)"
    r"(?P<path>/[^?#]*)?"
    r"(?P<query>\?[^#]*)?"
)
_HTTP = re.compile(r"https?://([\w.-]+|\[[\w:.]+\])(:[0-9]{1,5})?(/[\w./~-]*)?")
_DATABASE = re.compile(r"/?[0-9]*/?")
_SERVICE = re.compile(r"/[\w.:-]+(?:/[0-9]*)?")
_OF_A_CLUSTER = re.compile(r"[?&]cluster=true(?:&|\Z)")
_QUERY_CREDENTIALS = re.compile(r"(?<=[?&])(?:sentinel_)?(?:username|password)=[^&]*")


def is_malformed(url: str) -> bool:
    """Whether libraries may disagree on where a password in the URL ends."""
    return _parsed(url) is None


def is_http(url: str) -> bool:
    """Whether a URL has the form ``HTTP_FORM``, so that it holds no secrets."""
    return not is_malformed(url) and _HTTP.fullmatch(url) is not None


def shown(url: str) -> str:
    """A URL without user, password and query; of a malformed one, only the scheme."""
    parts = _parsed(url)
    if parts is not None:
        return "".join(parts[name] or "" for name in ("scheme", "host", "port", "others", "path"))
    scheme = _SCHEME.match(url)
    return f"{scheme[0] if scheme else ''}…"


def split_credentials(url: str) -> tuple[str, str, str]:
    """A URL without its user and password, the user, and the password; empty if there is none.

    :raises ValueError: if the URL is malformed.
    """
    parts = _parsed(url)
    if parts is None:
        raise ValueError(f"the URL {shown(url)} is malformed")
    user, _, password = (parts["credentials"] or "").partition(":")
    bare = "".join(parts[name] or "" for name in ("scheme", "host", "port", "others", "path", "query"))
    return bare, unquote(user), unquote(password)


def secrets_in(url: str) -> list[str]:
    """The user and password of a URL, encoded and decoded; nothing if the URL is malformed."""
    parts = _parsed(url)
    credentials = (parts and parts["credentials"]) or ""
    written = [credentials, *credentials.partition(":")[::2]]
    return [secret for secret in {*written, *map(unquote, written)} if secret]


def without_secrets(text: str, hidden: list[str]) -> str:
    """A text with asterisks instead of secrets, except where they are part of a longer word."""
    for secret in sorted(hidden, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    return text


def _parsed(url: str) -> re.Match[str] | None:
    """The parts of a URL; None if it is malformed."""
    parts = _URL.fullmatch(url)
    if parts is None or _credentials_are_cut(parts):
        return None
    scheme, path = parts["scheme"], parts["path"] or ""
    if scheme in ("redis://", "rediss://") and not _DATABASE.fullmatch(path):
        return None
    is_sentinel = scheme in ("redis+sentinel://", "rediss+sentinel://")
    if is_sentinel and not _SERVICE.fullmatch(path):
        return None
    # What follows a comma elsewhere is rather a part of a password than a host.
    if parts["others"] and not is_sentinel and not _OF_A_CLUSTER.search(parts["query"] or ""):
        return None
    if scheme == "unix://" and (parts["host"] or parts["port"] or not path):
        return None
    return parts


def _credentials_are_cut(parts: re.Match[str]) -> bool:
    """Whether the @ that ends user and password may come after the supposed host."""
    behind_host = (parts["path"] or "") + _QUERY_CREDENTIALS.sub("", parts["query"] or "")
    return "@" in behind_host and (parts["credentials"] is not None or parts["port"] is not None)
