"""What the commands share: options that name the control plane and the log, and text made safe for Rich."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from quorin.backend import Backend

Connection = Annotated[
    str,
    typer.Option(
        "--connection",
        "-c",
        envvar="QUORIN_CONNECTION",
        help="The control plane: redis://, rediss:// or unix:// URL, or the directory of the embedded one.",
    ),
]
Namespace = Annotated[
    str, typer.Option(envvar="QUORIN_NAMESPACE", help="Keeps deployments apart that share one Redis or directory.")
]
StreamKey = Annotated[str, typer.Option(help="The name of the log.")]


class Opened:
    """A backend for a block."""

    def __init__(self, connection: str, namespace: str) -> None:
        from quorin.backend import connect

        self._backend = connect(connection, namespace=namespace)

    def __enter__(self) -> Backend:
        return self._backend

    def __exit__(self, *_: object) -> None:
        self._backend.close()


def escaped(text: str) -> str:
    """Text as it is, for Rich."""
    from rich.markup import escape

    return escape(text)
