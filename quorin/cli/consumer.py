"""``quorin consumer``: the process that applies the log to shared memory."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from typing import Annotated

import typer

from quorin.cli.options import Level, LogJson, LogLevel, Namespace, NewConnection, StreamKey
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY


def consumer(
    connection: NewConnection,
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    offline: Annotated[
        str | None,
        typer.Option(
            envvar="QUORIN_OFFLINE",
            help="Keep a history there, a directory or URL: segments that are lost are built from it, and the log is "
            "trimmed behind it.",
            show_default=False,
        ),
    ] = None,
    trim: Annotated[
        bool,
        typer.Option(
            "--trim/--keep",
            help="Forget entries once they are applied. A segment that is lost then, as in a reboot, stays lost; "
            "kept entries fill it again.",
        ),
    ] = False,
    capacity: Annotated[int, typer.Option(min=1, help="Entities that a new segment has room for; it grows.")] = 4096,
    max_id_bytes: Annotated[int, typer.Option(min=1, help="The longest entity id of a new segment.")] = 64,
    frozen_after: Annotated[
        float, typer.Option(min=1, help="Seconds without a sign of life until another writer is overtaken.")
    ] = 30.0,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Serve metrics of this machine there, as `quorin metrics` does."),
    ] = None,
    metrics_address: Annotated[str, typer.Option(help="0.0.0.0 lets other machines ask.")] = "127.0.0.1",
    log_level: LogLevel = Level.INFO,
    log_json: LogJson = None,
) -> None:
    """Apply the log to shared memory, for all schemas that the control plane knows and gets to know.

    Run one or more a machine: one writes, the others wait and take over at once when it dies. Ends in good order on
    SIGTERM and Ctrl-C.

    Examples:
    - `quorin consumer -c redis://localhost:6379`: beside Redis, forever

    - `quorin consumer -c redis://localhost:6379 --metrics-port 9100`: and serve metrics to Prometheus

    - `quorin consumer -c redis://localhost:6379 --offline data/history`: the same, with a history in Parquet

    - `quorin consumer -c data/quorin`: for the embedded store of a Feast repository

    Exit codes: 0 ended when asked to, 1 could not go on (the reason is on stderr), 2 wrong usage.
    """
    from quorin import logging
    from quorin.cli.metrics import serving
    from quorin.engine.backend import connect
    from quorin.engine.ops import presence
    from quorin.engine.ops.observe import Observer
    from quorin.offline import ParquetDatasetStore
    from quorin.wal_consumer import NoopOfflineWriter, OfflineWriter, WALConsumer

    if trim and offline is not None:
        raise typer.BadParameter("--trim forgets rows, --offline keeps them: give one of the two")

    logging.configure(log_level, json=log_json)
    history: OfflineWriter | None = NoopOfflineWriter() if trim else None
    if offline is not None:
        history = dataset = ParquetDatasetStore(offline)
        dataset.prepare()
    backend = connect(connection, namespace=namespace)
    running = WALConsumer(
        backend,
        None,
        offline=history,
        stream_key=stream_key,
        capacity=capacity,
        max_id_bytes=max_id_bytes,
        frozen_after_seconds=frozen_after,
        namespace=namespace,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: running.stop())
    log = logging.get_logger(__name__)
    log.info("consumer_started", address=backend.address, process=str(presence.Process.this()))
    with ExitStack() as around:
        if metrics_port is not None:
            looking = around.enter_context(Observer(backend, stream_key=stream_key))
            around.enter_context(serving(looking, metrics_port, metrics_address))
        running.run()
    running.close()
    backend.close()
    log.info("consumer_stopped")
