"""How this installation of Quorin gets the libraries of an extra."""

from __future__ import annotations


def install_command(*extras: str) -> str:
    """The command that installs Quorin with extras, from the checkout or wheel of this installation.

    A release on a package index changes this function, and the block "Install" of the README.
    """
    return f"pip install '{_installed_from()}[{','.join(extras)}]'"


def _installed_from() -> str:
    """The path that pip recorded (PEP 610) if it still exists, else ``.``: a checkout in the working directory."""
    import json
    from importlib import metadata
    from pathlib import Path
    from urllib.parse import unquote, urlsplit

    try:
        recorded = json.loads(metadata.distribution("quorin").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return "."
    url = urlsplit(recorded.get("url", ""))
    path = Path(unquote(url.path))
    return str(path) if url.scheme == "file" and path.exists() else "."
