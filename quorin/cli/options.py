"""Options that commands share, and helpers that resolve what they name."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quorin.cli.repository import feature_of, project, repository, shown_in_names, stored_name

if TYPE_CHECKING:
    from quorin.engine.backend import Backend
    from quorin.offline import ParquetDatasetStore
    from quorin.schema import Schema


_APPLY = "`feast apply`"
"""What makes the store of a Feast repository."""


def existing(connection: str | None) -> str | None:
    """Refuse a directory without a store, so that a mistyped one is not created; return any other connection.

    :raises typer.BadParameter: naming the directory, and a directory below it that has a store.
    """
    return _existing(connection)


def _existing(connection: str | None, maker: str = "") -> str | None:
    """:func:`existing`; the error names what makes the store, unless there is one below."""
    from quorin.engine.backend import embedded_directory
    from quorin.engine.backend.sqlite_file import has_store
    from quorin.errors import ConnectionFailedError

    try:
        directory = None if connection is None else embedded_directory(connection)
    except ConnectionFailedError:  # The command reports it, like every unusable connection.
        return connection
    if directory is None or has_store(directory):
        return connection
    below = [path for path in (directory / "quorin", directory / "data" / "quorin") if has_store(path)]
    hint = f"; did you mean {below[0]}?" if below else f"; {maker} makes it" if maker else ""
    raise typer.BadParameter(f"there is no store at {connection}{hint}")


def connection_of(context: typer.Context, connection: str) -> str:
    """The connection that was passed, else that of the Feast repository in the working directory; its store exists.

    :raises typer.BadParameter: if there is none, or a directory has no store.
    """
    return str(_existing(new_connection_of(context, connection), "" if connection else _APPLY))


def new_connection_of(context: typer.Context, connection: str) -> str:
    """The connection that was passed, else that of the Feast repository in the working directory; its store need not
    exist.

    :raises typer.BadParameter: if there is none.
    """
    here = None if connection or context.resilient_parsing else repository()
    if here is None and not connection and not context.resilient_parsing:
        raise typer.BadParameter(
            "give --connection (a Redis URL or a directory), set QUORIN_CONNECTION, or run the command in a Feast "
            "repository"
        )
    return connection or ("" if here is None else str(here.connection))


def _optional_connection_of(context: typer.Context, connection: str | None) -> str | None:
    here = None if connection or context.resilient_parsing else repository()
    return existing(connection) if here is None else _existing(str(here.connection), _APPLY)


def of_repository(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
    """An option's value, else the repository's setting of that name if the connection is the repository's too."""
    source = context.get_parameter_source("connection")
    is_default = source is not None and source.name not in ("COMMANDLINE", "ENVIRONMENT")
    here = repository() if not value and is_default and context.params.get("connection") else None
    setting = None if here is None else getattr(here, str(parameter.name))
    return Path(setting) if setting and parameter.name == "shm_dir" else setting or value


def _history_of(context: typer.Context, parameter: typer.CallbackParam, value: str) -> str:
    offline = of_repository(context, parameter, value)
    if not offline and not context.resilient_parsing:
        raise typer.BadParameter("give --offline, the directory or URL of the history")
    return str(offline)


def _nothing() -> str:
    return ""


_CONNECTION_WORDS = "--connection", "-c"
_CONNECTION_FORMS = (
    "The control plane: a redis://, rediss:// or unix:// URL, redis://HOST:PORT,HOST:PORT?cluster=true for a cluster, "
    "redis+sentinel://HOST:PORT/SERVICE behind Sentinel, or the directory of the embedded one."
)
_CONNECTION_HELP = f"{_CONNECTION_FORMS} Default: that of the Feast repository in this directory."
Connection = Annotated[
    str,
    typer.Option(
        *_CONNECTION_WORDS,
        envvar="QUORIN_CONNECTION",
        help=_CONNECTION_HELP,
        callback=connection_of,
        default_factory=_nothing,
        show_default=False,
    ),
]
OptionalConnection = Annotated[
    str | None,
    typer.Option(
        *_CONNECTION_WORDS,
        envvar="QUORIN_CONNECTION",
        help=_CONNECTION_HELP,
        callback=_optional_connection_of,
        show_default=False,
    ),
]
ServedConnection = Annotated[
    str | None,
    typer.Option(
        *_CONNECTION_WORDS,
        envvar="QUORIN_CONNECTION",
        help=_CONNECTION_FORMS,
        callback=existing,
        show_default=False,
    ),
]
NewConnection = Annotated[
    str,
    typer.Option(
        *_CONNECTION_WORDS,
        envvar="QUORIN_CONNECTION",
        help=_CONNECTION_HELP,
        callback=new_connection_of,
        default_factory=_nothing,
        show_default=False,
    ),
]
"""For commands that may create the directory."""

Raw = Annotated[bool, typer.Option("--raw", help="Show the engine's names, not those of Feast's users.")]
Namespace = Annotated[
    str, typer.Option(envvar="QUORIN_NAMESPACE", help="Separates deployments that share one Redis or directory.")
]
Fields = Annotated[
    list[str] | None, typer.Option("--field", "-f", help="A field or feature; may be repeated. Default: all.")
]


def _text_of(value: str | None) -> str | None:
    """Refuse bytes that are no text, as a shell may pass them."""
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        raise typer.BadParameter(f"--prefix: expected UTF-8, got {value!r}") from error
    return value


Prefix = Annotated[
    str | None,
    typer.Option("--prefix", "-p", help="Only ids that begin with this text.", callback=_text_of, show_default=False),
]
StreamKey = Annotated[str, typer.Option(help="The name of the log.")]
ShmDir = Annotated[
    Path | None,
    typer.Option(
        envvar="QUORIN_SHM_DIR",
        help="The directory of segments, by default /dev/shm.",
        callback=of_repository,
        show_default=False,
    ),
]
ShmGroup = Annotated[
    str | None,
    typer.Option(
        envvar="QUORIN_SHM_GROUP",
        help="A group, by name or gid, whose members may read segments. Default: only the user that creates them.",
        callback=of_repository,
        show_default=False,
    ),
]
Offline = Annotated[
    str,
    typer.Option(
        "--offline",
        envvar="QUORIN_OFFLINE",
        help="The history: a directory, or a URL that pyarrow.fs supports (file://, s3://, gs://).",
        callback=_history_of,
        default_factory=_nothing,
        show_default=False,
    ),
]
OptionalOffline = Annotated[
    str | None,
    typer.Option(
        "--offline",
        envvar="QUORIN_OFFLINE",
        help="The history, if it is to be read as well: a directory, or a URL that pyarrow.fs supports.",
        callback=of_repository,
        show_default=False,
    ),
]


class Level(StrEnum):
    """The lowest level of events to log."""

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
        help="The lowest level to log: DEBUG, INFO, WARNING, ERROR or CRITICAL.",
    ),
]
LogJson = Annotated[
    bool | None,
    typer.Option(
        "--log-json/--log-text",
        envvar="QUORIN_LOG_JSON",
        help="Log JSON lines, or readable text.",
        show_default="text in a terminal, else JSON",
    ),
]


class Opened:
    """A backend, open inside a ``with`` block. Unless ``raw``, errors that leave the block have Feast's names."""

    def __init__(self, connection: str, namespace: str, *, raw: bool = True) -> None:
        from quorin.engine.backend import connect

        self._backend = connect(connection, namespace=namespace)
        self._raw = raw

    def __enter__(self) -> Backend:
        return self._backend

    def __exit__(self, _: object, error: BaseException | None, traceback: object) -> None:
        try:
            if error is not None and not self._raw:
                shown_in_names(error, self._backend)
        finally:
            self._backend.close()


def existing_history(offline: str) -> ParquetDatasetStore:
    """The history at a directory or URL.

    :raises typer.BadParameter: if there is none.
    """
    from quorin.offline import ParquetDatasetStore

    store = ParquetDatasetStore(offline)
    if not store.exists():
        raise typer.BadParameter(f"there is no history at {store.address}: no such directory")
    return store


def resolve_schema(backend: Backend, requested: str) -> str:
    """The control plane's schema of this name, else that of the only feature view of this name.

    :raises typer.BadParameter: naming the schemas that exist.
    """
    return resolve_name(sorted(backend.control.schemas()), requested, backend.address)


def resolve_name(names: list[str], requested: str, address: str) -> str:
    """That of the names of schemas, else of feature views, which is requested; of several projects' that of the
    repository in the working directory.

    :raises typer.BadParameter: naming the schemas that exist.
    """
    if requested in names:
        return requested
    own, view = stored_name(project() or ""), stored_name(requested)
    if f"{own}__{view}" in names:
        return f"{own}__{view}"
    views = [name for name in names if name.endswith(f"__{view}")]
    if len(views) == 1:
        return views[0]
    shown = ", ".join(views or names) or "none"
    raise typer.BadParameter(f"expected the name of one schema at {address}, got {requested!r}; there are: {shown}")


def find_field(schema: Schema, requested: str) -> str | None:
    """The schema's field of this name, else the field of the only Feast feature of this name; None if there is none."""
    if any(field.name == requested for field in schema.fields):
        return requested
    matches = [name for name, feature in _features(schema).items() if feature in (requested, stored_name(requested))]
    return matches[0] if len(matches) == 1 else None


def resolve_field(schema: Schema, requested: str) -> str:
    """The field that :func:`find_field` finds.

    :raises typer.BadParameter: naming similar fields, or all fields if none is similar.
    """
    from difflib import get_close_matches

    if found := find_field(schema, requested):
        return found
    features = _features(schema)
    matches = [name for name, feature in features.items() if feature == requested]
    similar = get_close_matches(requested, {*features, *features.values()})
    suggested = matches or [feature for name, feature in features.items() if name in similar or feature in similar]
    hint = f"did you mean {' or '.join(suggested)}?" if suggested else f"there are: {', '.join(features.values())}"
    raise typer.BadParameter(f"{schema.__name__} has no field {requested!r}; {hint}")


def _features(schema: Schema) -> dict[str, str]:
    """What each field is called: the Feast feature, or itself."""
    return {field.name: (feature_of(field.name) or (field.name,))[0] for field in schema.fields}


def known_schema(backend: Backend, requested: str) -> Schema:
    """The control plane's schema that :func:`resolve_schema` finds."""
    from quorin.schema import schema_from_json

    return schema_from_json(backend.control.schemas()[resolve_schema(backend, requested)])


def escaped(text: str) -> str:
    """Text with Rich's markup escaped."""
    from rich.markup import escape

    return escape(text)
