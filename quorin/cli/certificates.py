"""Checks of the files of TLS that options name, before anything is served or asked."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pathlib import Path


def check_certificate(key: Path | None, cert: Path | None) -> None:
    """:raises typer.BadParameter: unless these are a private key, not encrypted, and its certificate, or None."""
    if (key is None) != (cert is None):
        raise typer.BadParameter("expected both --tls-key and --tls-cert, or neither")
    if key is None or cert is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key, password="")
    except OSError as error:
        found = f"--tls-cert {cert}, --tls-key {key}: expected a certificate and its private key in PEM"
        raise typer.BadParameter(f"{found}: {_reason(error)}") from error


def check_trusted(option: str, path: Path | None) -> None:
    """:raises typer.BadParameter: unless the file has certificates to trust, or is None."""
    if path is None:
        return
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:
        raise typer.BadParameter(f"{option} {path}: expected certificates in PEM: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    """``ssl.SSLError`` has it elsewhere than others."""
    return getattr(error, "reason", None) or error.strerror or str(error)
