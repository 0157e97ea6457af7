"""``quorin metrics``: serve this machine's metrics to Prometheus."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from quorin.cli.options import Connection, Level, LogJson, LogLevel, Namespace, Opened, ShmDir, StreamKey
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY

if TYPE_CHECKING:
    from quorin.engine.ops.observe import Observer


def metrics(
    connection: Connection,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on.")] = 9100,
    address: Annotated[str, typer.Option(help="0.0.0.0 lets other machines connect.")] = "127.0.0.1",
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    shm_dir: ShmDir = None,
    others: Annotated[
        bool, typer.Option("--all", help="Show the counters of all deployments of this machine and user.")
    ] = False,
    log_level: LogLevel = Level.INFO,
    log_json: LogJson = None,
) -> None:
    """Serve metrics for Prometheus at `/metrics`.

    Serves what all processes of this machine and user count for this deployment's schemas, and the state of segments
    and log. `quorin consumer --metrics-port` does the same in the consumer's process. Stops on SIGTERM and Ctrl-C.

    Examples:
        quorin metrics  # then `curl localhost:9100/metrics`
        quorin metrics --port 9200 --address 0.0.0.0

    Exit codes: 0 stopped by a signal, 1 could not start (with the reason on stderr), 2 wrong usage.
    """
    from quorin import logging
    from quorin.engine.ops.observe import Observer

    logging.configure(log_level, json=log_json)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with (
        Opened(connection, namespace) as backend,
        Observer(backend, shm_dir=shm_dir, stream_key=stream_key) as looking,
        serving(looking, port, address, others=others),
    ):
        stop.wait()


@contextmanager
def serving(looking: Observer, port: int, address: str, *, others: bool = False) -> Iterator[None]:
    """Serve the metrics of an observer's deployment inside a ``with`` block; ``others``: of all schemas."""
    from quorin import logging
    from quorin.errors import needs_extra

    with needs_extra("metrics"):
        from quorin.engine.ops.exposition import Page, served

    page = Page(looking, others=others)
    try:
        with ExitStack() as stack:
            try:
                listening = stack.enter_context(served(page, port, address))
            except OSError as error:
                typer.echo(f"error: cannot serve metrics at {address}:{port}: {error.strerror}", err=True)
                raise typer.Exit(1) from error
            logging.get_logger(__name__).info("metrics_served", address=address, port=listening)
            yield
    finally:
        page.close()
