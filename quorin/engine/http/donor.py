"""Sending a node's rows to a new node: ``GET /v1/snapshot?schema=…`` streams a snapshot of the current segment.

The bytes are those of :mod:`quorin.snapshot`: the rows, then the position and the checksum, so a stream that was cut is
no snapshot. What must not wait, the requests for rows, goes first: another process copies and hashes the rows, and
writes them to the connection's socket (:mod:`quorin.engine.bootstrap.sender`), no faster than a set rate. Only what has
to be encrypted goes through this one, in small parts.
"""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs

from quorin import __version__
from quorin.engine.bootstrap import image
from quorin.engine.bootstrap.names import one_beginning
from quorin.engine.bootstrap.peers import MEDIA_TYPE, NAME_HEADER, SNAPSHOT_PATH
from quorin.engine.bootstrap.sender import Job
from quorin.engine.bootstrap.transfer import Copied, NewerFormatError, Transfer, TransferStoppedError
from quorin.engine.format.segment import FORMAT_VERSIONS
from quorin.engine.http import asgi
from quorin.engine.http.reply import CONNECTION, Reply, error_reply
from quorin.engine.memory.lock import FileLock
from quorin.engine.ops.readiness import readiness
from quorin.errors import QuorinError, SegmentNotFoundError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine

    from quorin.engine.http.protocol import Connection
    from quorin.shm import SegmentRegistry

DEFAULT_BYTES_PER_SECOND = 128 << 20
_BLOCK_BYTES = 1 << 20
_PART_BYTES = 64 << 10
"""Sent at a time: the event loop answers other requests in between."""
_STALLED_SECONDS = 30.0
_SIGN_SECONDS = 1.0
_RETRY_AFTER = (b"retry-after", b"1")

_log = get_logger(__name__)


class _Begun(NamedTuple):
    """A transfer, the slot that it occupies, and the end of the pipe by which its bytes come here to be encrypted;
    None if they go to the connection. ``newest`` is the newest format that the other node reads.
    """

    schema: str
    newest: int
    transfer: Transfer
    slot: FileLock
    pipe: int | None

    def end(self) -> None:
        self.transfer.end()
        self.slot.release()
        if self.pipe is not None:
            os.close(self.pipe)


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
        self._threads = ThreadPoolExecutor(at_once + 1, "quorin-transfer")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        connection: Connection | None = scope.get(CONNECTION)
        socket = None if connection is None else connection.descriptor()
        try:
            begun = await self._in_thread(self._guarded, self._begun, scope["query_string"], socket)
        finally:
            if socket is not None:
                os.close(socket)
        if isinstance(begun, Reply):
            await asgi.send_reply(send, begun)
            return
        gone = asyncio.create_task(_until_gone(receive))
        try:
            await self._answer(begun, connection, gone, send)
        finally:
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone
            begun.transfer.stop()
            await self._in_thread(begun.end)

    async def _answer(self, begun: _Begun, connection: Connection | None, gone: asyncio.Task[None], send: Any) -> None:
        """Send what the process has copied, unless the other node goes away, or takes nothing for long."""
        started, transfer = time.perf_counter(), begun.transfer
        meanwhile = None if connection is None else connection.show_life
        copied = await _unless(gone, transfer, self._in_thread(self._guarded, self._copied, begun), meanwhile)
        if copied is None:
            return
        if isinstance(copied, Reply):
            begun.slot.release()
            await asgi.send_reply(send, copied)
            return
        size = copied.byte_count + image.TRAILER_BYTES
        _log.info("transfer_begins", snapshot=copied.name, bytes=size, copy_seconds=_since(started))
        length, name = str(size).encode(), copied.name.encode()
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", length), (NAME_HEADER.encode(), name)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if connection is not None:
            await connection.flushed()
        transfer.begin()
        if begun.pipe is not None and not await self._relay(begun.pipe, copied.byte_count, gone, send):
            transfer.stop()
        sent = await _unless(gone, transfer, self._in_thread(transfer.sent))
        if sent.trailer:
            if connection is not None and begun.pipe is None:
                connection.count_sent(sent.byte_count)
            # Who has the last byte may ask for the next snapshot at once.
            begun.slot.release()
            await send({"type": "http.response.body", "body": sent.trailer})
        elif not gone.done():
            _log.warning("transfer_stalled", snapshot=copied.name, seconds=_STALLED_SECONDS)
        seconds = _since(started)
        _log.info("transfer_ended", snapshot=copied.name, bytes=sent.byte_count, of=copied.byte_count, seconds=seconds)

    async def _relay(self, pipe: int, byte_count: int, gone: asyncio.Task[None], send: Any) -> bool:
        """Send the rows that come by a pipe, between other answers. False if the other node takes nothing for long."""
        while byte_count and (block := await self._in_thread(os.read, pipe, _BLOCK_BYTES)):
            for first in range(0, len(block), _PART_BYTES):
                if gone.done():
                    return True
                part = block[first : first + _PART_BYTES]
                try:
                    async with asyncio.timeout(_STALLED_SECONDS):
                        await send({"type": "http.response.body", "body": part, "more_body": True})
                except TimeoutError:
                    return False
                # A send that finds room does not wait: without this, requests would wait until the block is sent.
                await asyncio.sleep(0)
            byte_count -= len(block)
        return True

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def _guarded(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except QuorinError as error:
            _log.exception("transfer_failed")
            return error_reply(503, f"{type(error).__name__}: the server's log has the reason")

    def _begun(self, query: bytes, socket: int | None) -> _Begun | Reply:
        """The process that copies what is asked for, or why nothing is sent."""
        asked = _parse(query)
        if isinstance(asked, Reply):
            return asked
        if not self._at_once:
            return error_reply(403, "this server sends no snapshots: it runs with --transfers 0")
        name, newest = asked
        state = self._registry.node.state()
        current = state.currents.get(name)
        if current is None or (self._names and name not in self._names):
            return _missing(name)
        [found] = readiness(self._registry, max_lag_seconds=self._max_lag_seconds, names=[name])
        if found.problem:
            return error_reply(503, f"the segment of {name!r} is not ready: {found.problem}", _RETRY_AFTER)
        slot = self._free_slot()
        if slot is None:
            text = f"{self._at_once} of at most {self._at_once} transfers from this node are going on"
            return error_reply(429, text, _RETRY_AFTER)
        begins = one_beginning(state.beginning_of(name))
        pipe, into = (None, socket) if socket is not None else os.pipe()
        shm_dir, pace = str(self._registry.shm_dir), (self._bytes_per_second, _STALLED_SECONDS)
        try:
            transfer = Transfer(Job(shm_dir, current, newest, begins.log_identity, begins.position, *pace, into))
        except BaseException:
            slot.release()
            if pipe is not None:
                os.close(pipe)
            raise
        finally:
            if pipe is not None:
                os.close(into)
        return _Begun(name, newest, transfer, slot, pipe)

    def _copied(self, begun: _Begun) -> Copied | Reply | None:
        try:
            return begun.transfer.copied()
        except TransferStoppedError:
            return None
        except SegmentNotFoundError:
            return _missing(begun.schema)
        except NewerFormatError as error:
            here = f"Quorin {__version__} here sends segments of format {error.version}"
            return error_reply(406, f"{here}; at most format {begun.newest} was asked for")

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


def _missing(name: str) -> Reply:
    return error_reply(404, f"there is no segment of schema {name!r} here")


async def _unless(
    gone: asyncio.Task[None],
    transfer: Transfer,
    work: Coroutine[Any, Any, Any],
    meanwhile: Callable[[], None] | None = None,
) -> Any:
    """What comes of work with a transfer, which is stopped if the other node goes away. Each second ``meanwhile``."""
    doing = asyncio.ensure_future(work)
    while not doing.done():
        await asyncio.wait({gone, doing}, timeout=_SIGN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            transfer.stop()
            break
        if meanwhile is not None and not doing.done():
            meanwhile()
    return await doing


async def _until_gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)
