"""What of a URL is a secret, and how it stays out of texts."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlsplit


def masked(url: str) -> str:
    """A URL that may be malformed, without what could be a user, a password or a query."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def secrets_in(url: str) -> list[str]:
    """What of a URL, that may be malformed, could be a password, as it is written there and as it is meant."""
    rest = url.partition("://")[2]
    credentials = rest.rpartition("@")[0]
    found = [credentials, *credentials.split(":")]
    found += [value for name, value in parse_qsl(urlsplit(f"//x?{rest.partition('?')[2]}").query) if name == "password"]
    return [secret for secret in {*found, *map(unquote, found)} if secret]


def without_secrets(text: str, hidden: list[str]) -> str:
    """A text with asterisks in the place of secrets."""
    for secret in sorted(hidden, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
