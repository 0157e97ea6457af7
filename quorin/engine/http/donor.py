"""Sending a node's rows to a new node: ``GET /v1/snapshot?schema=…`` streams a snapshot of the current segment.

The bytes are those of :mod:`quorin.snapshot`: the rows, then the position and the checksum, so a stream that was cut is
no snapshot. What must not wait, the requests for rows, goes first: another process copies and hashes the rows, at low
priority (:mod:`quorin.engine.bootstrap.sender`), and what it writes is sent in small parts.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from quorin import __version__
from quorin.engine.bootstrap import image, sender
from quorin.engine.bootstrap.names import one_beginning
from quorin.engine.bootstrap.peers import MEDIA_TYPE, NAME_HEADER, SNAPSHOT_PATH
from quorin.engine.bootstrap.sender import Job
from quorin.engine.format.segment import FORMAT_VERSIONS
from quorin.engine.http import asgi
from quorin.engine.http.reply import SHOW_LIFE, Reply, error_reply
from quorin.engine.memory.lock import FileLock
from quorin.engine.ops.readiness import readiness
from quorin.errors import QuorinError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Collection

    from quorin.shm import SegmentRegistry

DEFAULT_BYTES_PER_SECOND = 128 << 20
_PART_BYTES = 64 << 10
"""Sent at a time: the event loop answers other requests in between."""
_SIGN_SECONDS = 5.0
_STALLED_SECONDS = 30.0
_END_SECONDS = 10.0
_RETRY_AFTER = (b"retry-after", b"1")

_log = get_logger(__name__)


class Donor:
    """ASGI for ``GET /v1/snapshot``: ``at_once`` transfers at a time, over all processes of the node; further ones are
    answered with 429.

    ``names`` are the schemas to send, all if empty. A segment that is not ready, by the rule of ``/ready``, is not
    sent. The copy is made in a temporary directory, which needs room for the largest segment.
    """

    path = SNAPSHOT_PATH

    def __init__(
        self,
        registry: SegmentRegistry,
        *,
        names: Collection[str] = (),
        at_once: int = 1,
        max_lag_seconds: float | None = None,
        bytes_per_second: float = DEFAULT_BYTES_PER_SECOND,
    ) -> None:
        self._registry = registry
        self._names = frozenset(names)
        self._at_once = at_once
        self._max_lag_seconds = max_lag_seconds
        self._bytes_per_second = bytes_per_second

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        accepted = await asyncio.to_thread(self._guarded, scope["query_string"])
        if isinstance(accepted, Reply):
            await asgi.send_reply(send, accepted)
            return
        job, slot = accepted
        sending = asyncio.create_task(_send(job, slot, scope.get(SHOW_LIFE), send))
        gone = asyncio.create_task(_until_gone(receive))
        gone.add_done_callback(lambda _: sending.cancel())
        try:
            await sending
        except asyncio.CancelledError:
            if not gone.done():
                raise
            _log.warning("transfer_broken_off", segment=job.segment)
        finally:
            gone.cancel()

    def _guarded(self, query: bytes) -> tuple[Job, FileLock] | Reply:
        try:
            return self._accepted(query)
        except QuorinError as error:
            _log.exception("transfer_failed")
            return error_reply(503, f"{type(error).__name__}: the server's log has the reason")

    def _accepted(self, query: bytes) -> tuple[Job, FileLock] | Reply:
        """What to send, and the slot that it occupies; or why nothing is sent."""
        asked = _parse(query)
        if isinstance(asked, Reply):
            return asked
        if not self._at_once:
            return error_reply(403, "this server sends no snapshots: it runs with --transfers 0")
        name, newest = asked
        state = self._registry.node.state()
        current = state.currents.get(name)
        if current is None or (self._names and name not in self._names):
            return error_reply(404, f"there is no segment of schema {name!r} here")
        [found] = readiness(self._registry, max_lag_seconds=self._max_lag_seconds, names=[name])
        if found.problem:
            return error_reply(503, f"the segment of {name!r} is not ready: {found.problem}", _RETRY_AFTER)
        slot = self._free_slot()
        if slot is None:
            text = f"{self._at_once} of at most {self._at_once} transfers from this node are going on"
            return error_reply(429, text, _RETRY_AFTER)
        begins = one_beginning(state.beginning_of(name))
        shm_dir, pace = str(self._registry.shm_dir), self._bytes_per_second
        return Job(shm_dir, current, newest, begins.log_identity, begins.position, pace), slot

    def _free_slot(self) -> FileLock | None:
        for number in range(self._at_once):
            slot = FileLock.try_acquire(self._registry.node.lock_path(f"transfer{number}"))
            if slot is not None:
                return slot
        return None


def _parse(query: bytes) -> tuple[str, int] | Reply:
    """The schema that is asked for, and the newest format of segments that the other node reads: 1 if it says none."""
    try:
        words = parse_qs(query.decode("ascii"), keep_blank_values=True, max_num_fields=16)
        [name] = words.get("schema", [])
        [newest] = words.get("format", [str(FORMAT_VERSIONS[0])])
        return name, int(newest)
    except ValueError:
        shown = query[:200].decode("ascii", "backslashreplace")
        return error_reply(422, f"expected one schema=NAME, and at most one format=NUMBER, got {shown!r}")


async def _send(job: Job, slot: FileLock, show_life: Any, send: Any) -> None:
    """Send what a process writes that does the job, or say why it sends nothing. The slot is free before that ends, so
    who has the last byte may ask for the next snapshot at once.
    """
    started = time.perf_counter()
    words: dict[str, Any] = {}
    try:
        process = await _start(job)
        try:
            words = await _head(process, show_life)
            if "name" in words:
                name, size = words["name"], words["bytes"]
                _log.info("transfer_begins", snapshot=name, bytes=size, copy_seconds=_since(started))
                trailer = await _relay(process, name, size, send)
        finally:
            await _end(process, is_copied="name" in words)
    except OSError as error:
        words = {"error": f"cannot start the process that copies: {error.strerror}"}
    finally:
        slot.release()
    if "name" not in words:
        await asgi.send_reply(send, _refusal(job, words))
    elif trailer:
        await send({"type": "http.response.body", "body": trailer})
        _log.info("transfer_ended", snapshot=name, bytes=size, seconds=_since(started))


async def _start(job: Job) -> Process:
    # The same installation, wherever it was found; not what lies in the working directory.
    paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", sender.__name__, json.dumps(job)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
        limit=_PART_BYTES,
    )


async def _head(process: Process, show_life: Any) -> dict[str, Any]:
    """What the process says when it has copied the segment; nothing if it ended before."""
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    while True:
        try:
            async with asyncio.timeout(_SIGN_SECONDS):
                line = await process.stdout.readline()
        except TimeoutError:
            if show_life is not None:
                show_life()
            continue
        words: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
        return words


def _refusal(job: Job, words: dict[str, Any]) -> Reply:
    """Why a process sends nothing, by what it said."""
    if "missing" in words:
        return error_reply(404, f"there is no segment {job.segment!r} any more")
    if "format" in words:
        here = f"Quorin {__version__} here sends segments of format {words['format']}"
        return error_reply(406, f"{here}; at most format {job.newest_format} was asked for")
    _log.error("transfer_failed", segment=job.segment, error=words.get("error", "the process that copies died"))
    return error_reply(503, "the rows could not be copied: the server's log has the reason")


async def _relay(process: Process, name: str, size: int, send: Any) -> bytes:
    """Send the head of the answer, and what a process writes, in parts between other answers. Returns the last part, to
    be sent when the process has ended; nothing if the process died, or the other node takes nothing for long.
    """
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    left = size - image.TRAILER_BYTES
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(size).encode())]
    headers.append((NAME_HEADER.encode(), name.encode()))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        while left:
            part = await process.stdout.read(min(left, _PART_BYTES))
            if not part:
                break
            async with asyncio.timeout(_STALLED_SECONDS):
                await send({"type": "http.response.body", "body": part, "more_body": True})
            left -= len(part)
            # A send that finds room does not wait: without this, requests would wait until what was read is sent.
            await asyncio.sleep(0)
        return await process.stdout.readexactly(image.TRAILER_BYTES)
    except asyncio.IncompleteReadError:
        _log.error("transfer_failed", snapshot=name, error="the process that sends died", left=left)
    except TimeoutError:
        _log.warning("transfer_stalled", snapshot=name, seconds=_STALLED_SECONDS, left=left)
    return b""


async def _end(process: Process, *, is_copied: bool) -> None:
    """Have a process end. A copy that is made has no name, and ends with it; before, the process removes it, unless it
    can't, as it is frozen.
    """
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    process.stdin.close()
    with suppress(TimeoutError):
        async with asyncio.timeout(0 if is_copied else _END_SECONDS):
            await process.communicate()  # Its output is read to the end, which closes the pipe.
            return
    with suppress(ProcessLookupError):
        process.kill()
    await process.communicate()


async def _until_gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)
