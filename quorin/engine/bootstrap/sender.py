"""A process that copies a segment and writes a snapshot of it to its standard output, for a server whose requests go
first.

``python -m quorin.engine.bootstrap.sender JOB``, which :mod:`quorin.engine.http.donor` starts, says in a line of JSON
what follows, or why nothing does; then come the bytes of :mod:`quorin.engine.bootstrap.image`. It ends with its
standard input, so also with a server that is killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from quorin.engine.backend.protocols import Beginning
from quorin.engine.bootstrap import image
from quorin.engine.bootstrap.pace import Pace
from quorin.engine.memory.lineage import attach_newest
from quorin.errors import QuorinError, SegmentNotFoundError

_NICE = 10
"""It gives way, but gets on where no processor is ever idle: with ``SCHED_IDLE`` it would get next to nothing there."""


class Job(NamedTuple):
    """What to send: the segment that ``segment`` has become, if its format is at most ``newest_format``. Its rows begin
    at ``begins`` in the log ``begins_log``.
    """

    shm_dir: str
    segment: str
    newest_format: int
    begins_log: int
    begins: int
    bytes_per_second: float


def main() -> None:
    """Copy, and write the copy. A process that dies leaves nothing, unless it is killed while it copies."""
    os.nice(_NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # From a terminal the server gets it too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    threading.Thread(target=_end_with_input, daemon=True).start()
    output = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # What a library prints is no part of the snapshot.
    with suppress(BrokenPipeError):
        _send(Job(*json.loads(sys.argv[1])), output)


def _send(job: Job, output: int) -> None:
    try:
        view = attach_newest(Path(job.shm_dir), job.segment, None, writable=False)
        if (version := view.layout.format_version) > job.newest_format:
            _say(output, format=version)
            return
        with tempfile.TemporaryDirectory(prefix="quorin-transfer-") as aside:
            copy = image.copied(view, Path(aside))
    except SegmentNotFoundError:
        _say(output, missing=True)
        return
    except QuorinError as error:
        _say(output, error=f"{type(error).__name__}: {error}")
        return
    beginning = Beginning(job.begins_log, job.begins)
    _say(output, name=image.name_of(copy, beginning=beginning), bytes=copy.layout.file_bytes + image.TRAILER_BYTES)
    for block in image.blocks(copy, pace=Pace(job.bytes_per_second)):
        _write(output, block)


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    # To the thread that copies and writes, which may wait in a call.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _say(output: int, **words: object) -> None:
    _write(output, memoryview(json.dumps(words).encode() + b"\n"))


def _write(output: int, data: memoryview) -> None:
    while data:
        data = data[os.write(output, data) :]


if __name__ == "__main__":
    main()
