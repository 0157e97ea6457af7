"""Running the server: one process or several on one port, drained on SIGTERM."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uvicorn import Config, Server
from uvicorn.supervisors import Multiprocess

from quorin.engine.http.limits import Limits
from quorin.engine.http.observed import Observing
from quorin.engine.http.protocol import DirectProtocol
from quorin.logging import get_logger

_BACKLOG = 2048
_OTHER_FILES = 1024
"""Open files of a worker that are no connections: segments, the log, Feast's registry."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Address:
    """Where and how to listen. ``drain_seconds`` is how long a stop waits for the requests that are being answered.
    With ``access_log`` each worker configures :mod:`quorin.logging`, with ``log_json``, and logs a line a request.
    ``advertised`` is the URL at which other nodes reach this server, None if they are not to ask it.
    """

    host: str = "127.0.0.1"
    port: int = 6566
    workers: int = 1
    tls_key: Path | None = None
    tls_cert: Path | None = None
    drain_seconds: int = 30
    access_log: bool = False
    limits: Limits = field(default_factory=Limits)
    log_json: bool | None = None
    advertised: str | None = None


def run(create: Any, address: Address) -> None:
    """Serve what ``create`` returns, an ASGI application with the attributes that :class:`DirectProtocol` needs.

    With several workers each is a fresh process that calls ``create``, so it must be picklable; one that dies is
    replaced, and if this process dies they stop. SIGTERM and SIGINT stop: what is being answered is answered.

    ``create.advertise`` is called with the advertised URL, if there is one; its result is released at the end.

    :raises OSError: if the port cannot be bound.
    """
    config = _config(create, address, within_open_files(address.limits.connections))
    socket = config.bind_socket()
    registered = None
    try:
        registered = None if address.advertised is None else create.advertise(address.advertised)
        if address.workers == 1:
            Server(config).run(sockets=[socket])
        else:
            _Workers(config, sockets=[socket]).run()
    finally:
        if registered is not None:
            registered.release()
        socket.close()


class _Workers(Multiprocess):
    """uvicorn's supervisor asks each worker in turn whether it lives; this one sees at once that it died meanwhile."""

    def keep_subprocess_alive(self) -> None:
        """Replace the workers that are dead or hang; the dead first, as one that is starting answers late."""
        for process in self.processes:
            process.child_conn.close()  # A pipe ends when no process holds its other end.
        self.processes.sort(key=lambda process: process.process.is_alive())
        super().keep_subprocess_alive()


@dataclass(frozen=True, slots=True)
class _Worker:
    """Makes the application of a worker, which stops if the process that would replace it dies."""

    create: Callable[[], Any]

    def __call__(self) -> Any:
        parent = multiprocessing.parent_process()
        if parent is not None:
            threading.Thread(target=_stop_after, args=(parent,), daemon=True).start()
        return self.create()


def _stop_after(parent: Any) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def within_open_files(connections: int) -> int:
    """As many connections as wanted, or as this process and its workers can have open, which are allowed as many files
    as that takes, if the machine lets them: beyond that limit, connections are dropped without an answer or a count.
    """
    wanted = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    fewer = max(soft // 2, soft - _OTHER_FILES)
    _log.warning("connections_limited", connections=fewer, wanted=connections, open_files=soft)
    return fewer


def _config(create: Callable[[], Any], address: Address, connections: int) -> Config:
    observing = Observing(create, access_log=address.access_log, log_json=address.log_json)
    config = Config(
        observing if address.workers == 1 else _Worker(observing),
        factory=True,
        http=DirectProtocol,
        loop="uvloop",
        host=address.host,
        port=address.port,
        workers=address.workers,
        backlog=_BACKLOG,
        ssl_keyfile=None if address.tls_key is None else str(address.tls_key),
        ssl_certfile=None if address.tls_cert is None else str(address.tls_cert),
        limit_concurrency=connections,
        timeout_keep_alive=address.limits.idle_seconds,
        timeout_graceful_shutdown=address.drain_seconds,
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_level=logging.INFO,
    )
    config.timeout_worker_healthcheck = 60  # uvicorn before 0.36 has no such argument, and waits five seconds
    return config
