"""``quorin serve``: Feast's feature server, from shared memory."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from quorin.cli.durations import seconds
from quorin.cli.options import LogJson

_GROUP = "quorin.repository_server"
_LARGEST_PORT = 65_535
_MAX_AUTH_CACHE_SECONDS = 60

Repository = Annotated[
    Path,
    typer.Option(
        "--repo", "-r", envvar="QUORIN_REPO", help="The Feast repository.", exists=True, file_okay=False, readable=True
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
DrainSeconds = Annotated[int, typer.Option("--drain-seconds", min=0, help="How long a stop waits for requests.")]
AccessLog = Annotated[bool, typer.Option("--access-log/--no-access-log", help="Log a line for each request.")]


def serve(
    repo: Repository = Path(),
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
    drain_seconds: DrainSeconds = 30,
    access_log: AccessLog = False,
    log_json: LogJson = None,
) -> None:
    """Serve a Feast repository over HTTP, as `feast serve` does: the same paths, the same answers.

    `POST /get-online-features` is answered from shared memory without protobuf; with
    `Accept: application/vnd.apache.arrow.stream`, as Arrow. Every other path is Feast's own. `GET /ready` is 200 when
    this machine has a fresh segment of every view.

    SIGTERM stops: requests that are being answered are answered first.

    Examples:
    - `quorin serve --repo feature_repo --workers 2`

    - `quorin serve --host 0.0.0.0 --tls-key key.pem --tls-cert cert.pem --token-file token`
    """
    if (tls_key is None) != (tls_cert is None):
        raise typer.BadParameter("expected both --tls-key and --tls-cert, or neither")
    server = _repository_server()
    try:
        from quorin.http import Address, Limits, run
    except ModuleNotFoundError as error:
        raise typer.BadParameter(f"{error}: `pip install '.[feast,serve]'` brings what serving needs") from error

    limits = Limits(body_bytes=max_body_mib * 1024**2, rows=max_rows, idle_seconds=keep_alive)
    create = server(
        repository=repo.absolute(),
        feature_store_yaml=feature_store_yaml,
        registry_ttl_seconds=registry_ttl_sec,
        metrics=metrics,
        auth_cache_seconds=auth_cache_seconds,
        token=None if token_file is None else _token(token_file),
        max_lag_seconds=None if max_lag is None else seconds(max_lag),
        limits=limits,
    )
    try:
        create.check(workers)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    address = Address(
        host=host,
        port=port,
        workers=workers,
        tls_key=tls_key,
        tls_cert=tls_cert,
        drain_seconds=drain_seconds,
        access_log=access_log,
        log_json=log_json,
        limits=limits,
    )
    run(create, address)


def _repository_server() -> Any:
    """The class that serves repositories, of the one plugin that has it."""
    for entry_point in metadata.entry_points(group=_GROUP):
        try:
            return entry_point.load()
        except ModuleNotFoundError as error:
            raise typer.BadParameter(f"{error}: `pip install '.[feast,serve]'`") from error
    raise typer.BadParameter("nothing that serves a repository is installed: `pip install '.[feast,serve]'`")


def _token(path: Path) -> str:
    token = path.read_text().strip()
    if not token or not token.isascii() or not token.isprintable():
        raise typer.BadParameter(f"expected a token of printable ASCII in {path}")
    return token
