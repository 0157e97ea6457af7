"""What the commands share: options that name the control plane and the log, and text made safe for Rich."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from quorin.engine.backend import Backend
    from quorin.offline import ParquetDatasetStore
    from quorin.schema import Schema


def existing(connection: str | None) -> str | None:
    """A connection as it is given, unless it is a directory without a store in it: one that is mistyped is not made.

    :raises typer.BadParameter: naming the directory, and one below that has a store.
    """
    from quorin.engine.backend import embedded_directory
    from quorin.engine.backend.sqlite_file import has_store
    from quorin.errors import ConnectionFailedError

    try:
        directory = None if connection is None else embedded_directory(connection)
    except ConnectionFailedError:  # The command tells, as of all that cannot be used.
        return connection
    if directory is None or has_store(directory):
        return connection
    below = [path for path in (directory / "quorin", directory / "data" / "quorin") if has_store(path)]
    raise typer.BadParameter(f"there is no store at {connection}" + (f"; did you mean {below[0]}?" if below else ""))


_CONNECTION_WORDS = "--connection", "-c"
_CONNECTION_HELP = (
    "The control plane: redis://, rediss:// or unix:// URL, or the directory of the embedded one "
    "(Feast's is data/quorin in the feature repository unless told otherwise)."
)
Connection = Annotated[
    str, typer.Option(*_CONNECTION_WORDS, envvar="QUORIN_CONNECTION", help=_CONNECTION_HELP, callback=existing)
]
NewConnection = Annotated[str, typer.Option(*_CONNECTION_WORDS, envvar="QUORIN_CONNECTION", help=_CONNECTION_HELP)]
"""Of commands that begin with nothing: a directory that is not there is made."""

Namespace = Annotated[
    str, typer.Option(envvar="QUORIN_NAMESPACE", help="Keeps deployments apart that share one Redis or directory.")
]
StreamKey = Annotated[str, typer.Option(help="The name of the log.")]
ShmDir = Annotated[
    Path | None,
    typer.Option(envvar="QUORIN_SHM_DIR", help="Where segments are, if not in /dev/shm.", show_default=False),
]
Offline = Annotated[
    str,
    typer.Option(
        "--offline",
        envvar="QUORIN_OFFLINE",
        help="The history: a directory, or a URL that pyarrow.fs knows (file://, s3://, gs://).",
    ),
]


class Level(StrEnum):
    """From which level events are logged."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
    CRITICAL = "CRITICAL"


LogLevel = Annotated[
    Level,
    typer.Option(
        envvar="QUORIN_LOG_LEVEL",
        case_sensitive=False,
        metavar="LEVEL",
        help="DEBUG, INFO, WARNING, ERROR or CRITICAL: less is not logged.",
    ),
]
LogJson = Annotated[
    bool | None,
    typer.Option(
        "--log-json/--log-text",
        envvar="QUORIN_LOG_JSON",
        help="Log JSON lines, or lines for people.",
        show_default="for people in a terminal, else JSON",
    ),
]


class Opened:
    """A backend for a block."""

    def __init__(self, connection: str, namespace: str) -> None:
        from quorin.engine.backend import connect

        self._backend = connect(connection, namespace=namespace)

    def __enter__(self) -> Backend:
        return self._backend

    def __exit__(self, *_: object) -> None:
        self._backend.close()


def existing_history(offline: str) -> ParquetDatasetStore:
    """The history at a place.

    :raises typer.BadParameter: if there is none.
    """
    from quorin.offline import ParquetDatasetStore

    store = ParquetDatasetStore(offline)
    if not store.exists():
        raise typer.BadParameter(f"there is no history at {store.address}: no such directory")
    return store


def resolve_schema(backend: Backend, asked: str) -> str:
    """The name of a schema that the control plane knows: as asked, or that of the only feature view called so.

    :raises typer.BadParameter: naming those there are.
    """
    known = sorted(backend.control.schemas())
    if asked in known:
        return asked
    views = [name for name in known if name.endswith(f"__{asked}")]
    if len(views) == 1:
        return views[0]
    shown = ", ".join(views or known) or "none"
    raise typer.BadParameter(f"{asked!r} names no one schema at {backend.address}; there are: {shown}")


def resolve_field(schema: Schema, asked: str) -> str:
    """The name of a schema's field: as asked, or that of the only feature called so, whose type Feast's fields end in.

    :raises typer.BadParameter: naming those that are meant, if any is like it, or all there are.
    """
    from difflib import get_close_matches

    features = {field.name: field.name.rpartition("__")[0] or field.name for field in schema.fields}
    if asked in features:
        return asked
    called_so = [name for name, feature in features.items() if feature == asked]
    if len(called_so) == 1:
        return called_so[0]
    alike = get_close_matches(asked, {*features, *features.values()})
    meant = called_so or [name for name, feature in features.items() if name in alike or feature in alike]
    hint = f"did you mean {' or '.join(meant)}?" if meant else f"there are: {', '.join(features)}"
    raise typer.BadParameter(f"{schema.__name__} has no field {asked!r}; {hint}")


def known_schema(backend: Backend, asked: str) -> Schema:
    """The schema that :func:`resolve_schema` finds, as the control plane has it."""
    from quorin.schema import schema_from_json

    return schema_from_json(backend.control.schemas()[resolve_schema(backend, asked)])


def escaped(text: str) -> str:
    """Text as it is, for Rich."""
    from rich.markup import escape

    return escape(text)
