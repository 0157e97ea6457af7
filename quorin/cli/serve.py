"""``quorin serve``: a Feast repository or the segments of a connection, over HTTP."""

from __future__ import annotations

from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from quorin.cli.certificates import check_certificate, check_trusted
from quorin.cli.durations import seconds
from quorin.cli.options import LogJson, Namespace, Opened, ServedConnection, ShmDir, resolve_name
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.urls import HTTP_FORM, is_http, shown
from quorin.errors import install_command, needs_extra

_GROUP = "quorin.repository_server"
_LARGEST_PORT = 65_535
_MAX_AUTH_CACHE_SECONDS = 60
_OF_REPOSITORIES = {"feature_store_yaml", "registry_ttl_sec", "metrics", "auth_cache_seconds"}
_OF_CONNECTIONS = {"schema", "pin", "namespace", "shm_dir", "partial", "peer_timeout", "peer_ca"}


class MissingPartitions(StrEnum):
    """What becomes of an answer if no machine answers for a partition."""

    error = "error"
    mask = "mask"


Repository = Annotated[
    Path | None,
    typer.Option(
        "--repo",
        "-r",
        envvar="QUORIN_REPO",
        help="The Feast repository to serve. Default: this directory, unless --connection is given.",
        exists=True,
        file_okay=False,
        readable=True,
        show_default=False,
    ),
]
SchemaNames = Annotated[
    list[str] | None,
    typer.Option(
        "--schema",
        "-s",
        help="With --connection: a schema to serve; may be repeated. Default: all.",
        show_default=False,
    ),
]
FeatureStoreYaml = Annotated[
    Path | None,
    typer.Option(
        "--feature-store-yaml", "-f", help="Another file than feature_store.yaml.", dir_okay=False, show_default=False
    ),
]
Host = Annotated[str, typer.Option("--host", "-h", help="The address to listen on; 0.0.0.0 for every one.")]
Port = Annotated[int, typer.Option("--port", "-p", min=0, max=_LARGEST_PORT, help="The port; 0 for a free one.")]
Workers = Annotated[int, typer.Option("--workers", "-w", min=1, help="Processes that share the port and the segments.")]
KeepAlive = Annotated[int, typer.Option("--keep-alive", min=1, help="How long a connection may be silent (seconds).")]
TlsKey = Annotated[
    Path | None, typer.Option("--tls-key", "--key", help="The private key.", exists=True, show_default=False)
]
TlsCert = Annotated[
    Path | None, typer.Option("--tls-cert", "--cert", help="The certificate.", exists=True, show_default=False)
]
RegistryTtl = Annotated[
    int, typer.Option("--registry-ttl-sec", "--registry_ttl_sec", help="Seconds between refreshes of the registry.")
]
Metrics = Annotated[bool, typer.Option("--metrics", "-m", help="Feast's metrics too, on port 8000; for one worker.")]
AuthCache = Annotated[
    int,
    typer.Option(
        "--auth-cache-seconds",
        min=0,
        max=_MAX_AUTH_CACHE_SECONDS,
        help="How long what Feast's `auth` decided about a token is kept; 0: every request asks.",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        help="A file with the token that requests must have: Authorization: Bearer …; /health and /ready need none.",
        exists=True,
        dir_okay=False,
        show_default=False,
    ),
]
MaxLag = Annotated[
    str | None,
    typer.Option("--max-lag", help="/ready fails beyond this lag, such as 500ms or 1m.", show_default=False),
]
MaxBody = Annotated[int, typer.Option("--max-body-mib", min=1, help="The largest body of a request (MiB).")]
MaxRows = Annotated[int, typer.Option("--max-rows", min=1, help="The most entities in a request.")]
Transfers = Annotated[
    int, typer.Option("--transfers", min=0, help="How many new machines may copy this one's rows at once; 0: none.")
]
Pins = Annotated[
    list[str] | None,
    typer.Option(
        help="With --connection: stay with a generation of a schema, such as Items=6 or Items=v3; may be repeated.",
        show_default=False,
    ),
]


def _advertised_url(value: str | None) -> str | None:
    if value is not None and not is_http(value):
        raise typer.BadParameter(f"expected {HTTP_FORM}, got {shown(value)!r}")
    return value


Advertised = Annotated[
    str | None,
    typer.Option(
        "--advertise",
        envvar="QUORIN_ADVERTISE",
        help="The URL at which the servers of other machines reach this one, to ask for rows that they do not hold. "
        "Default: they don't.",
        show_default=False,
        callback=_advertised_url,
    ),
]
Partial = Annotated[
    MissingPartitions,
    typer.Option(
        help="With --connection: if no machine answers for a partition, refuse the request or answer without its rows."
    ),
]
PeerTimeout = Annotated[str, typer.Option(help="With --connection: how long another machine may take to answer.")]
PeerCa = Annotated[
    Path | None,
    typer.Option(
        "--peer-ca",
        help="With --connection: the certificates (PEM) to trust of other machines. Default: the system's.",
        exists=True,
        dir_okay=False,
        show_default=False,
    ),
]
DrainSeconds = Annotated[int, typer.Option("--drain-seconds", min=0, help="How long a stop waits for requests.")]
AccessLog = Annotated[bool, typer.Option("--access-log/--no-access-log", help="Log a line for each request.")]


def serve(
    context: typer.Context,
    repo: Repository = None,
    connection: ServedConnection = None,
    schema: SchemaNames = None,
    feature_store_yaml: FeatureStoreYaml = None,
    host: Host = "127.0.0.1",
    port: Port = 6566,
    workers: Workers = 1,
    keep_alive: KeepAlive = 60,
    tls_key: TlsKey = None,
    tls_cert: TlsCert = None,
    registry_ttl_sec: RegistryTtl = 60,
    metrics: Metrics = False,
    auth_cache_seconds: AuthCache = 30,
    token_file: TokenFile = None,
    max_lag: MaxLag = None,
    max_body_mib: MaxBody = 64,
    max_rows: MaxRows = 1_000_000,
    transfers: Transfers = 1,
    pin: Pins = None,
    advertise: Advertised = None,
    partial: Partial = MissingPartitions.error,
    peer_timeout: PeerTimeout = "1s",
    peer_ca: PeerCa = None,
    drain_seconds: DrainSeconds = 30,
    access_log: AccessLog = False,
    log_json: LogJson = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    shm_dir: ShmDir = None,
) -> None:
    """Serve features over HTTP.

    `--repo` serves a Feast repository in place of `feast serve`: the same paths and answers, without protobuf.

    `--connection` serves what this machine's consumers apply, without Feast: `POST /v1/read` (rows of one schema),
    `POST /v1/assemble` (vectors of several), `/v1/last`, `/v1/changes`, `GET /v1/schemas`; see `GET /openapi.json`.

    On a machine that holds some partitions of a deployment, both ask the machines that hold the others for their rows,
    with the token of `--token-file`: those whose servers `--advertise` a URL.

    With `Accept: application/vnd.apache.arrow.stream` both answer as Arrow. `GET /ready` is 200 when this machine has a
    fresh segment of every schema. SIGTERM stops: requests that are being answered are answered first.

    Examples:
        quorin serve --repo feature_repo --workers 2
        quorin serve --connection redis://localhost:6379 --schema driver_stats --schema Items
        quorin serve --host 0.0.0.0 --tls-key key.pem --tls-cert cert.pem --token-file token
        quorin serve --connection redis://redis:6379 --host 0.0.0.0 --advertise http://10.0.0.7:6566 --partial mask

    Exit codes: 0 stopped by a signal, 1 could not start (with the reason on stderr), 2 wrong usage.
    """
    check_certificate(tls_key, tls_cert)
    check_trusted("--peer-ca", peer_ca)
    from quorin.assembly import Elsewhere
    from quorin.http import Address, Limits, SegmentServer, run

    elsewhere = Elsewhere(partial.value, seconds(peer_timeout), peer_ca)
    limits = Limits(body_bytes=max_body_mib * 1024**2, rows=max_rows, idle_seconds=keep_alive)
    token = None if token_file is None else _token(token_file)
    lag = None if max_lag is None else seconds(max_lag)
    if _serves_segments(context):
        url, places = str(connection), (namespace, shm_dir)
        names, pins = _schemas(url, schema or [], *places), _pins(url, pin or [], *places)
        create = SegmentServer(url, names, *places, token, lag, limits, transfers, pins, elsewhere)
    else:
        of_feast = registry_ttl_sec, metrics, token, lag, limits, auth_cache_seconds, transfers
        create = _of_repository(repo, feature_store_yaml, of_feast, workers)
    address = Address(host, port, workers, tls_key, tls_cert, drain_seconds, access_log, limits, log_json, advertise)
    run(create, address)


def _serves_segments(context: typer.Context) -> bool:
    """Whether a connection is to be served. What is on the command line goes before variables of the environment.

    :raises typer.BadParameter: for both, and for options that belong to the other.
    """
    given = _given(context, "COMMANDLINE")
    named = {"repo", "connection"} & given or {"repo", "connection"} & _given(context, "ENVIRONMENT")
    if len(named) > 1:
        raise typer.BadParameter("expected --repo (a Feast repository) or --connection (segments), got both")
    is_segments = named == {"connection"}
    foreign = given & (_OF_REPOSITORIES if is_segments else _OF_CONNECTIONS)
    if foreign:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(foreign))
        raise typer.BadParameter(f"{options}: expected --{'repo' if is_segments else 'connection'} with it")
    return is_segments


def _given(context: typer.Context, source: str) -> set[str]:
    """The parameters that were given on the command line, or in the environment."""
    found = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, one in found.items() if one is not None and one.name == source}


def _schemas(connection: str, requested: list[str], namespace: str, shm_dir: Path | None) -> tuple[str, ...]:
    from quorin.engine.ops.readiness import schema_names
    from quorin.shm import SegmentRegistry

    registry = SegmentRegistry(connection, shm_dir=shm_dir, namespace=namespace)
    try:
        names = sorted(schema_names(registry))
        return tuple(resolve_name(names, name, registry.backend.address) for name in requested)
    finally:
        registry.backend.close()


def _pins(connection: str, words: list[str], namespace: str, shm_dir: Path | None) -> dict[str, int | str]:
    """The generation to stay with, by schema name.

    :raises typer.BadParameter: for a word of another form. :raises GenerationNotFoundError: if it is gone.
    """
    from quorin.shm import SegmentRegistry, check_pin

    pins: dict[str, int | str] = {}
    for word in words:
        requested, _, pin = word.partition("=")
        [name] = _schemas(connection, [requested], namespace, shm_dir)
        try:
            pins[name] = check_pin(pin)
        except ValueError as error:
            raise typer.BadParameter(f"--pin {word}: {error}") from error
        with Opened(connection, namespace, raw=requested == name) as backend:
            registry = SegmentRegistry(backend, shm_dir=shm_dir, namespace=namespace)
            registry.open_stored(
                name, pin=pins[name]
            ).close()  # One that is gone is an error of the command, not of requests.
    return pins


def _of_repository(repo: Path | None, feature_store_yaml: Path | None, options: tuple[Any, ...], workers: int) -> Any:
    """The server of a repository, which has to be one."""
    server = _repository_server()((repo or Path()).absolute(), feature_store_yaml, *options)
    try:
        server.check(workers)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return server


def _repository_server() -> Any:
    """The class that serves repositories, of the one plugin that has it."""
    for entry_point in metadata.entry_points(group=_GROUP):
        with needs_extra("feast"):
            return entry_point.load()
    raise typer.BadParameter(f"nothing that serves a repository is installed: {install_command('feast', 'serve')}")


def _token(path: Path) -> str:
    token = path.read_text().strip()
    if not token or not token.isascii() or not token.isprintable():
        raise typer.BadParameter(f"expected a token of printable ASCII in {path}")
    return token
