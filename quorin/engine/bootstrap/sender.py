"""A process that copies a segment and sends the copy to another node, beside a server whose requests go first.

``python -m quorin.engine.bootstrap.sender``, which :class:`quorin.engine.bootstrap.transfer.Transfer` starts, reads a
:class:`Job` from its standard input, and answers with a line of JSON: what there is to send, or why nothing is. Another
line from the server lets it send the rows; then it says the trailer, which the server sends. It ends with its input.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from quorin.engine.backend.protocols import Beginning
from quorin.engine.bootstrap import image
from quorin.engine.bootstrap.pace import Pace
from quorin.engine.memory.lineage import attach_newest
from quorin.errors import QuorinError, SegmentNotFoundError

if TYPE_CHECKING:
    from quorin.engine.memory.view import SegmentView

_NICE = 19


class Job(NamedTuple):
    """What to send, and to which descriptor: a socket or a pipe. The segment is the one that ``segment`` has become;
    it is sent if its format is at most ``newest_format``. The rows begin at ``begins`` in a log.
    """

    shm_dir: str
    segment: str
    newest_format: int
    begins_log: int
    begins: int
    bytes_per_second: float
    stalled_seconds: float
    descriptor: int


def main() -> None:
    """Copy, and send when told to. SIGTERM, or the end of the input, ends it; the copy has no name by then."""
    _lower_priority()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # Without a buffer, whose lock a thread that waits for input would hold when the process ends.
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as orders:
        job, begin = Job(*json.loads(orders.readline())), threading.Event()
        threading.Thread(target=_follow, args=(orders, begin), daemon=True).start()
        try:
            view = attach_newest(Path(job.shm_dir), job.segment, None, writable=False)
            version = view.layout.format_version
            if version > job.newest_format:
                _say(format=version)
                return
            copy = _copied(view)
        except SegmentNotFoundError:
            _say(missing=True)
            return
        except QuorinError as error:
            _say(error=f"{type(error).__name__}: {error}")
            return
        name = image.name_of(copy, beginning=Beginning(job.begins_log, job.begins))
        _say(name=name, bytes=copy.layout.file_bytes)
        begin.wait()
        said = _sent(copy, job)
        del copy, view  # Their memory is free before the server may begin another transfer.
        _say(**said)


def _lower_priority() -> None:
    """Run only when nothing else wants the processor. A nice process is not enough: until its time slice ends, it keeps
    a processor from a thread that wakes up, for some milliseconds.
    """
    with suppress(OSError):
        os.nice(_NICE)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _follow(orders: object, begin: threading.Event) -> None:
    """Begin with the next line; end with the input."""
    while orders.readline():  # type: ignore[attr-defined]
        begin.set()
    os.kill(os.getpid(), signal.SIGTERM)


def _copied(view: SegmentView) -> SegmentView:
    with tempfile.TemporaryDirectory(prefix="quorin-transfer-") as aside:
        return image.copied(view, Path(aside))


def _sent(copy: SegmentView, job: Job) -> dict[str, object]:
    """Send all but the trailer; what came of it."""
    sent, trailer = 0, b""
    os.set_blocking(job.descriptor, False)
    try:
        for block in image.blocks(copy, pace=Pace(job.bytes_per_second)):
            if sent == copy.layout.file_bytes:
                trailer = bytes(block)
                break
            _write(job.descriptor, block, job.stalled_seconds)
            sent += len(block)
    except OSError:  # The other node went away, or takes nothing.
        return {"sent": sent}
    return {"sent": sent, "trailer": trailer.hex()}


def _write(descriptor: int, block: memoryview, stalled_seconds: float) -> None:
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    while block:
        if not room.poll(stalled_seconds * 1000):
            raise TimeoutError
        with suppress(BlockingIOError):
            block = block[os.write(descriptor, block) :]


def _say(**words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
