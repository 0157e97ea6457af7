"""The writer's side of the served log: a sample of requests goes into the ring of this process, in about a microsecond.

A request never waits and never fails because of it: what finds no room is dropped and counted.
"""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from quorin import metrics
from quorin.engine import forks
from quorin.engine.format import ring as fmt
from quorin.engine.served import description
from quorin.engine.served.collector import Collecting
from quorin.engine.served.description import Description, ServedView
from quorin.engine.served.files import ServedFiles
from quorin.engine.served.ring import ring_file
from quorin.errors import QuorinError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from quorin.engine.arrays import Int64s, Mask
    from quorin.engine.reads.columns import Columns
    from quorin.engine.reads.row import Rows
    from quorin.shm import SegmentRegistry

MAX_REQUEST_ID = 128
_RETRY_SECONDS = 1.0
_OFFSETS: dict[Any, Any] = {pa.string(): np.int32, pa.large_string(): np.int64}
_HEAD = struct.Struct(f"<{fmt.RECORD_HEAD_BYTES // 8}q")

_log = get_logger(__name__)


class ServedRows(NamedTuple):
    """What of a read goes into the log: of each row whether it was found, its log position and its event time; and the
    time that ages count from, 0 for now.
    """

    found: Mask
    positions: Int64s
    event_time_ns: Int64s
    now_ns: int

    @classmethod
    def of(cls, batch: pa.RecordBatch, now_ns: int) -> ServedRows:
        """Of what :func:`quorin.assembly.read` returns with positions."""
        times, positions = (
            batch.column(name).fill_null(0).to_numpy(zero_copy_only=False) for name in ("event_time_ns", "log_position")
        )
        return cls(batch.column("found").to_numpy(zero_copy_only=False), positions, times, now_ns)


class ServedLog:
    """Logs what requests are answered with. Threads may share it; a forked child writes to a ring of its own.

    ``url`` is a directory or a URL that ``pyarrow.fs`` supports; ``sample`` is the share of the requests that are
    logged. From the first logged request on a daemon thread writes files there, at the latest every ``every_seconds``,
    if no other process of the node does.

    A crash of this process loses at most the request that it is logging; a reboot loses what is not in a file.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        registry: SegmentRegistry,
        *,
        sample: float = 1.0,
        every_seconds: float = 10.0,
    ) -> None:
        self.files = ServedFiles(url)
        self.path = ring_path(registry.shm_dir, registry.node.identity, self.files.identity)
        self.sample = sample
        self._collecting = Collecting(self.path, self.files, every_seconds)
        self._is_all = sample >= 1.0
        self._ring: Int64s | None = None
        self._log_row: Any = None
        self._log_record: Any = None
        self._retry_at = 0.0
        self._was_full_at = 0.0
        forks.register(self)

    def after_fork_in_child(self) -> None:
        """The ring is the parent's."""
        self._ring = None

    def describe(self, views: Sequence[ServedView]) -> int:
        """The number of a kind of requests, for :meth:`row` and :meth:`rows`. If it cannot be stored now, -1: then the
        request is not logged, which is counted.
        """
        if time.monotonic() >= self._retry_at:
            try:
                return description.keep(self.path, Description(tuple(views)).to_json())
            except OSError as error:
                self._put_off(error)
        self._count_dropped()
        return -1

    def is_sampled(self) -> bool:
        """Whether to log the next request."""
        return self._is_all or random.random() < self.sample  # noqa: S311 - no secret

    def row(self, number: int, request_id: str, rows: Rows) -> None:
        """Log a request of one entity whose views were read by one id, with positions."""
        ring = self._ring
        if ring is None:
            ring = self._open()
            if ring is None:
                return
        now_ns = rows.now_ns or time.time_ns()
        if not self._log_row(ring, now_ns, number, request_id, rows.entity_id, rows.buffer, rows.layout.ends):
            self._count_dropped()

    def rows(
        self,
        number: int,
        request_id: str,
        ids: Sequence[pa.Array],
        groups: Sequence[int],
        reads: Sequence[Columns | ServedRows],
        data: bytes = b"",
    ) -> None:
        """Log a request of many entities: the ids of each group, the group of each view, and what was read of it, with
        positions. Ages of values count from the time of the reads. ``data`` is an Arrow IPC stream of what else belongs
        to the request, see ``engine/served/files.py``.
        """
        ring = self._ring if self._ring is not None else self._open()
        if ring is None:
            return
        text = request_id.encode()
        parts = [b"", _padded(bytes(groups)), _padded(text)]
        for group in ids:
            parts += _text_of(group)
        for read in reads:
            parts += read.positions.tobytes(), read.event_time_ns.tobytes(), _padded(read.found.tobytes())
        parts.append(_padded(data))
        size = _HEAD.size + sum(map(len, parts))
        count = len(ids[0]) if ids else 0
        now_ns = next((read.now_ns for read in reads if read.now_ns), 0) or time.time_ns()
        parts[0] = _HEAD.pack(size, now_ns, number, count, len(ids), len(reads), len(text), len(data))
        if not self._log_record(ring, np.frombuffer(b"".join(parts), np.uint8)):
            self._count_dropped()

    @property
    def address(self) -> str:
        """Where files go, without keys or passwords."""
        return self.files.address

    def start(self) -> None:
        """Start the thread that writes files, unless it runs."""
        self._collecting.start()

    def collect(self) -> int:
        """Write a file of what the rings of the node have now; returns the number of rows.

        :raises HistoryUnavailableError: if the files cannot be written.
        """
        return self._collecting.collect()

    def close(self) -> None:
        """End the thread. What is in the ring stays there for other processes, or for ``quorin served collect``."""
        self._collecting.stop()

    def _open(self) -> Int64s | None:
        if time.monotonic() < self._retry_at:
            self._count_dropped()
            return None
        try:
            from quorin.engine import kernels

            self._log_row, self._log_record = kernels.log_row, kernels.log_record
            self._ring = ring_file(self.path).own_ring().address
            self._collecting.start()
        except (OSError, QuorinError) as error:
            self._put_off(error)
            self._count_dropped()
        return self._ring

    def _put_off(self, error: Exception) -> None:
        """Try again in a while, not at each request."""
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        _log.warning("served_log_unavailable", path=str(self.path), error=str(error))

    def _count_dropped(self) -> None:
        metrics.served_dropped.inc()
        now = time.monotonic()
        if now > self._was_full_at + 60:
            self._was_full_at = now
            _log.warning("served_log_dropped", url=self.files.address, reason="its ring is full or cannot be had")


def ring_path(shm_dir: Path, identity: int, files_identity: str) -> Path:
    """The file of the rings of a deployment's node and user whose files go to one place."""
    return shm_dir / f"quorin-served-{os.geteuid()}-{identity:016x}-{files_identity}"


def check_request_id(request_id: str) -> str:
    """:raises ValueError: unless it is a text of 1 to 128 printable ASCII characters."""
    if not isinstance(request_id, str) or not 0 < len(request_id) <= MAX_REQUEST_ID or not _is_printable(request_id):
        raise ValueError(f"request id: expected 1 to {MAX_REQUEST_ID} printable ASCII characters, got {request_id!r}")
    return request_id


def _is_printable(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _text_of(ids: Any) -> list[bytes]:
    """The offsets and the text of entity ids, for a record."""
    if not isinstance(ids, pa.Array):
        ids = pa.array(ids, pa.string())
    dtype = _OFFSETS.get(ids.type)
    if dtype is None:
        ids, dtype = ids.cast(pa.string()), np.int32
    if not len(ids):
        return [bytes(8)]
    _, offsets, text = ids.buffers()
    ends = np.frombuffer(offsets, dtype, len(ids) + 1, ids.offset * np.dtype(dtype).itemsize)
    first, last = int(ends[0]), int(ends[-1])
    stops = (ends - first).astype(np.int32).tobytes()
    return [_padded(stops), _padded(b"" if text is None else memoryview(text)[first:last].tobytes())]


def _padded(content: bytes) -> bytes:
    """Bytes with zeros up to the next word."""
    rest = -len(content) % 8
    return content + bytes(rest) if rest else content
