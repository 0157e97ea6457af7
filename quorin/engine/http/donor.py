"""Sending a node's rows to a new node: ``GET /v1/snapshot?schema=…`` streams a snapshot of the current segment.

The bytes are those of :mod:`quorin.snapshot`: the rows, then the position and the checksum, so a stream that was cut is
no snapshot. What must not wait, the requests for rows, goes first: rows are copied and hashed in a thread without the
interpreter's lock, no faster than a set rate, and sent in small parts.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from quorin import __version__
from quorin.engine.bootstrap import image
from quorin.engine.bootstrap.pace import Pace
from quorin.engine.bootstrap.peers import MEDIA_TYPE, NAME_HEADER, SNAPSHOT_PATH
from quorin.engine.bootstrap.writer import open_to_copy
from quorin.engine.format.segment import FORMAT_VERSIONS
from quorin.engine.http import asgi
from quorin.engine.http.reply import Reply, error_reply
from quorin.engine.memory.lock import FileLock
from quorin.engine.ops.readiness import readiness
from quorin.errors import QuorinError, SegmentNotFoundError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Collection, Generator

    from quorin.shm import SegmentRegistry

DEFAULT_BYTES_PER_SECOND = 128 << 20
_PART_BYTES = 64 << 10
"""Sent at a time: the event loop answers other requests in between."""
_STALLED_SECONDS = 30.0
_NICE = 10
_RETRY_AFTER = (b"retry-after", b"1")

_log = get_logger(__name__)


@dataclass(slots=True)
class _Transfer:
    """A copy of a segment that is ready to be sent, and the slot that it occupies until then."""

    name: str
    size: int
    blocks: Generator[memoryview, None, None]
    slot: FileLock

    def end(self) -> None:
        """Free the copy and the slot. Unmapping a gigabyte takes long: not in the thread of the event loop."""
        self.blocks.close()
        self.slot.release()


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
        # One thread more than transfers: it refuses further requests at once.
        self._threads = ThreadPoolExecutor(at_once + 1, "quorin-transfer", initializer=_lower_priority)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        loop = asyncio.get_running_loop()
        transfer = await loop.run_in_executor(self._threads, self._guarded, scope["query_string"])
        if isinstance(transfer, Reply):
            await asgi.send_reply(send, transfer)
            return
        try:
            await _stream(transfer, self._threads, receive, send)
        finally:
            await loop.run_in_executor(self._threads, transfer.end)

    def _guarded(self, query: bytes) -> _Transfer | Reply:
        try:
            return self._prepared(query)
        except QuorinError as error:
            _log.exception("transfer_failed")
            return error_reply(503, f"{type(error).__name__}: the server's log has the reason")

    def _prepared(self, query: bytes) -> _Transfer | Reply:
        """The copy to send, or why none is."""
        asked = _parse(query)
        if isinstance(asked, Reply):
            return asked
        if not self._at_once:
            return error_reply(403, "this server sends no snapshots: it runs with --transfers 0")
        (name, newest), missing = asked, error_reply(404, f"there is no segment of schema {asked[0]!r} here")
        if self._registry.node.current(name) is None or (self._names and name not in self._names):
            return missing
        [found] = readiness(self._registry, max_lag_seconds=self._max_lag_seconds, names=[name])
        if found.problem:
            return error_reply(503, f"the segment of {name!r} is not ready: {found.problem}", _RETRY_AFTER)
        slot = self._free_slot()
        if slot is None:
            text = f"{self._at_once} of at most {self._at_once} transfers from this node are going on"
            return error_reply(429, text, _RETRY_AFTER)
        try:
            return self._copied(name, newest, slot)
        except BaseException as error:
            slot.release()
            if isinstance(error, SegmentNotFoundError):
                return missing
            raise

    def _copied(self, name: str, newest: int, slot: FileLock) -> _Transfer | Reply:
        started, pace = time.perf_counter(), Pace(self._bytes_per_second)
        segment, beginning = open_to_copy(self._registry, name)
        with segment, tempfile.TemporaryDirectory(prefix="quorin-transfer-") as aside:
            version = segment.current_view().layout.format_version
            if version > newest:
                slot.release()
                here = f"Quorin {__version__} here sends segments of format {version}"
                return error_reply(406, f"{here}; at most format {newest} was asked for")
            # The copy has no name after this block, only memory: a process that dies leaves nothing.
            copy = image.copied(segment.current_view(), Path(aside), pace)
        size = copy.layout.file_bytes + image.TRAILER_BYTES
        _log.info("transfer_begins", schema=name, segment=copy.name, bytes=size, copy_seconds=_since(started))
        return _Transfer(image.name_of(copy, beginning=beginning), size, image.blocks(copy, pace=pace), slot)

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


async def _stream(transfer: _Transfer, threads: ThreadPoolExecutor, receive: Any, send: Any) -> None:
    """Send the copy, unless the other node goes away, or takes nothing for long."""
    started, sent, loop = time.perf_counter(), 0, asyncio.get_running_loop()
    size, name = str(transfer.size).encode(), transfer.name.encode()
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", size), (NAME_HEADER.encode(), name)]
    gone = asyncio.create_task(_until_gone(receive))
    try:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while (block := await loop.run_in_executor(threads, next, transfer.blocks, None)) is not None:
            for first in range(0, len(block), _PART_BYTES):
                if gone.done():
                    return
                part = bytes(block[first : first + _PART_BYTES])
                if sent + len(part) == transfer.size:
                    # Who has the last byte may ask for the next snapshot at once.
                    await loop.run_in_executor(threads, transfer.end)
                async with asyncio.timeout(_STALLED_SECONDS):
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                sent += len(part)
                # A send that finds room does not wait: without this, requests would wait until the block is sent.
                await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})
    except TimeoutError:
        _log.warning("transfer_stalled", snapshot=transfer.name, seconds=_STALLED_SECONDS)
    finally:
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
        _log.info("transfer_ended", snapshot=transfer.name, bytes=sent, of=transfer.size, seconds=_since(started))


def _lower_priority() -> None:
    """Let the threads that answer requests for rows go before this one."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


async def _until_gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)
