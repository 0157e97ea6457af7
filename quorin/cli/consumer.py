"""``quorin consumer``: the process that applies the log to shared memory."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quorin.cli.certificates import check_trusted
from quorin.cli.durations import seconds
from quorin.cli.options import (
    Level,
    LogJson,
    LogLevel,
    Namespace,
    NewConnection,
    ShmDir,
    ShmGroup,
    StreamKey,
    of_repository,
)
from quorin.cli.partitions import Of, Ordinal, Partitions, held_partitions
from quorin.engine.backend.keys import DEFAULT_NAMESPACE, DEFAULT_STREAM_KEY

if TYPE_CHECKING:
    from quorin.engine.backend import Backend
    from quorin.shm import SegmentRegistry
    from quorin.snapshot import Peers, SnapshotStore
    from quorin.wal_consumer import OfflineWriter, WALConsumer

History = Annotated[
    str | None,
    typer.Option(
        "--offline",
        envvar="QUORIN_OFFLINE",
        help="Keep a history in this directory or URL: lost segments are rebuilt from it, and the log is trimmed "
        "behind it.",
        callback=of_repository,
        show_default=False,
    ),
]
Trim = Annotated[
    bool,
    typer.Option(
        "--trim/--keep",
        help="Remove entries once they are applied. A segment that is lost afterwards, for example in a reboot, stays "
        "lost; kept entries rebuild it.",
    ),
]
Capacity = Annotated[int, typer.Option(min=1, help="Initial capacity of a new segment, in entities; it grows.")]
MaxIdBytes = Annotated[int, typer.Option(min=1, help="The longest entity id of a new segment.")]
FrozenAfter = Annotated[
    float, typer.Option(min=1, help="Seconds without a heartbeat before another writer is overtaken.")
]
Snapshots = Annotated[
    str | None,
    typer.Option(
        envvar="QUORIN_SNAPSHOTS",
        help="Save snapshots in this directory or URL, and start new segments from the newest that fits.",
        callback=of_repository,
        show_default=False,
    ),
]
SnapshotEvery = Annotated[str, typer.Option(help="The time between two snapshots of a schema, such as 90s or 10m.")]
KeepSnapshots = Annotated[int, typer.Option(min=1, help="How many snapshots of each schema to keep.")]
BootstrapFrom = Annotated[
    list[str] | None,
    typer.Option(
        envvar="QUORIN_BOOTSTRAP_FROM",
        help="The URL of `quorin serve` on other machines, all of a host's addresses: a machine without rows copies "
        "theirs. May be repeated.",
        show_default=False,
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        help="With --bootstrap-from: a file with the token that those servers expect.",
        exists=True,
        dir_okay=False,
        show_default=False,
    ),
]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        help="With --bootstrap-from: the certificates to trust, in PEM. Default: the system's.",
        exists=True,
        dir_okay=False,
        show_default=False,
    ),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Serve this machine's metrics on this port, as `quorin metrics` does."),
]
NodeTimeout = Annotated[
    str,
    typer.Option(
        "--node-timeout",
        help="The log is trimmed behind all nodes, except those that have been silent for longer: 30s, 10m, 1h.",
    ),
]
KeepGenerations = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="How many replaced generations of each schema to keep for going back. Default: 1 after a replacement, "
        "none after an upgrade.",
        show_default=False,
    ),
]
KeepMib = Annotated[
    int | None, typer.Option(min=0, help="How much memory kept generations may take (MiB).", show_default=False)
]
MetricsAddress = Annotated[str, typer.Option(help="0.0.0.0 lets other machines connect.")]


def consumer(
    connection: NewConnection,
    namespace: Namespace = DEFAULT_NAMESPACE,
    stream_key: StreamKey = DEFAULT_STREAM_KEY,
    offline: History = None,
    trim: Trim = False,
    capacity: Capacity = 4096,
    max_id_bytes: MaxIdBytes = 64,
    shm_dir: ShmDir = None,
    shm_group: ShmGroup = None,
    partitions: Partitions = None,
    ordinal: Ordinal = None,
    of: Of = None,
    frozen_after: FrozenAfter = 30.0,
    node_timeout: NodeTimeout = "10m",
    snapshots: Snapshots = None,
    snapshot_every: SnapshotEvery = "10m",
    keep_snapshots: KeepSnapshots = 3,
    keep_generations: KeepGenerations = None,
    keep_mib: KeepMib = None,
    bootstrap_from: BootstrapFrom = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    metrics_port: MetricsPort = None,
    metrics_address: MetricsAddress = "127.0.0.1",
    log_level: LogLevel = Level.INFO,
    log_json: LogJson = None,
) -> None:
    """Apply the log to shared memory.

    Run one or more per machine, for all schemas: one writes, the others take over when it dies. SIGTERM stops it.

    Examples:
        quorin consumer --connection redis://localhost:6379                   # with Redis, forever
        quorin consumer -c redis://localhost:6379 --metrics-port 9100         # also serve metrics
        quorin consumer -c redis://localhost:6379 --offline data/history      # also keep a history
        quorin consumer -c redis://localhost:6379 --snapshots data/snapshots  # also save snapshots
        # start with the rows of another machine:
        quorin consumer -c redis://localhost:6379 --bootstrap-from http://localhost:6566
        quorin consumer -c "redis://localhost:6379?partitions=16" --partitions 0-7  # hold half of the rows

    Exit codes: 0 stopped by a signal, 1 could not continue (with the reason on stderr), 2 wrong usage.
    """
    from quorin import logging
    from quorin.cli.output import console, progress_bar
    from quorin.engine.backend import connect
    from quorin.engine.bootstrap.progress import logged_progress
    from quorin.wal_consumer import WALConsumer

    logging.configure(log_level, json=log_json)
    history, every = _prepared_history(offline, trim), _interval(snapshot_every)
    store, peers = _prepared_store(snapshots, keep_snapshots), _peers(bootstrap_from or [], token_file, tls_ca)
    backend = connect(connection, namespace=namespace)
    running = WALConsumer(
        backend,
        None,
        offline=history,
        registry=_registry(backend, shm_dir, shm_group, keep_generations, keep_mib, (partitions, ordinal, of)),
        stream_key=stream_key,
        capacity=capacity,
        max_id_bytes=max_id_bytes,
        frozen_after_seconds=frozen_after,
        node_timeout_seconds=seconds(node_timeout),
        namespace=namespace,
        snapshots=store,
        snapshot_every_seconds=every,
        peers=peers,
        show=progress_bar if console(stderr=True).is_terminal else logged_progress,
    )
    _run(running, backend, shm_dir, stream_key, metrics_port, metrics_address)


def _registry(
    backend: Backend,
    shm_dir: Path | None,
    shm_group: str | None,
    keep_generations: int | None,
    keep_mib: int | None,
    holding: tuple[str | None, int | None, int | None],
) -> SegmentRegistry:
    from quorin.shm import SegmentRegistry

    return SegmentRegistry(
        backend,
        shm_dir=shm_dir,
        shm_group=shm_group,
        namespace=backend.namespace,
        keep_generations=keep_generations,
        keep_bytes=None if keep_mib is None else keep_mib << 20,
        held=held_partitions(backend, *holding),
    )


def _prepared_history(offline: str | None, trim: bool) -> OfflineWriter | None:
    from quorin.offline import ParquetDatasetStore
    from quorin.wal_consumer import NoopOfflineWriter

    if offline is None:
        return NoopOfflineWriter() if trim else None
    if trim:
        raise typer.BadParameter("--trim drops rows that --offline keeps: pass one of the two")
    dataset = ParquetDatasetStore(offline)
    dataset.prepare()
    return dataset


def _interval(duration: str) -> float:
    every = seconds(duration)
    if not every:
        raise typer.BadParameter("--snapshot-every: expected more than no time")
    return every


def _prepared_store(url: str | None, keep: int) -> SnapshotStore | None:
    from quorin.snapshot import SnapshotStore

    if url is None:
        return None
    store = SnapshotStore(url, keep=keep)
    store.prepare()
    return store


def _peers(urls: list[str], token_file: Path | None, tls_ca: Path | None) -> Peers | None:
    from quorin.snapshot import Peers

    if not urls and (token_file or tls_ca):
        raise typer.BadParameter("expected --bootstrap-from with --token-file and --tls-ca")
    check_trusted("--tls-ca", tls_ca)
    try:
        return Peers(urls, token_file=token_file, tls_ca=tls_ca) if urls else None
    except ValueError as error:
        raise typer.BadParameter(f"--bootstrap-from: {error}") from None


def _run(
    running: WALConsumer,
    backend: Backend,
    shm_dir: Path | None,
    stream_key: str,
    metrics_port: int | None,
    metrics_address: str,
) -> None:
    """Run until a signal, then close the consumer and the backend."""
    from quorin import logging
    from quorin.cli.metrics import serving
    from quorin.engine.ops import presence
    from quorin.engine.ops.observe import Observer

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: running.stop())
    log = logging.get_logger(__name__)
    log.info("consumer_started", address=backend.address, process=str(presence.Process.this()))
    with ExitStack() as stack:
        if metrics_port is not None:
            observer = stack.enter_context(Observer(backend, shm_dir=shm_dir, stream_key=stream_key))
            stack.enter_context(serving(observer, metrics_port, metrics_address))
        running.run()
    running.close()
    backend.close()
    log.info("consumer_stopped")
