"""Reusable output buffers, for callers that want to bound the memory of concurrent reads.

They are not faster. A checkout costs about 0.3 µs, a fresh small array 0.15 µs; for batches of megabytes the
two cost the same, because the allocator still has the memory of the last batch. For speed, call ``assemble(segment,
id)`` as it is, or keep one ``out`` array for each thread.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from quorin.schema import Schema, total_element_count

if TYPE_CHECKING:
    from types import TracebackType

    from quorin.engine.arrays import Float32s


class BufferPool:
    """Lends float32 buffers of shape ``(total_element_count,)``. Threads may share a pool.

    ``with pool.checkout() as buffer:`` lends one and takes it back. An empty pool lends a fresh buffer and counts a
    miss in :attr:`misses`; at most ``max_size`` are kept.
    """

    def __init__(self, schema: Schema, *, max_size: int = 128, zero_on_return: bool = True) -> None:
        self.element_count = total_element_count(schema)
        self._shape: tuple[int, ...] = (self.element_count,)
        self._set_up(max_size, zero_on_return)

    @property
    def available(self) -> int:
        """Buffers that can be lent without allocating."""
        return len(self._buffers)

    def checkout(self) -> Checkout:
        """A context manager that lends a buffer; what it holds at first is zeros, or what its last user left."""
        return Checkout(self)

    def _set_up(self, max_size: int, zero_on_return: bool) -> None:
        if isinstance(max_size, bool) or not isinstance(max_size, int) or max_size < 1:
            raise ValueError(f"max_size must be a whole number from 1, got {max_size!r}")
        self.max_size = max_size
        self.misses = 0
        self._zero_on_return = zero_on_return
        self._buffers: deque[Float32s] = deque((np.zeros(self._shape, np.float32) for _ in range(max_size)), max_size)

    def _lend(self) -> Float32s:
        try:
            return self._buffers.pop()
        except IndexError:
            self.misses += 1
            return np.zeros(self._shape, np.float32)

    def _take_back(self, buffer: Float32s) -> None:
        if self._zero_on_return:
            buffer.fill(0)
        self._buffers.append(buffer)


class BatchBufferPool(BufferPool):
    """Lends float32 buffers of shape ``(batch_size, total_element_count)``."""

    def __init__(self, schema: Schema, *, batch_size: int, max_size: int = 64, zero_on_return: bool = False) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number from 1, got {batch_size!r}")
        self.element_count = total_element_count(schema)
        self.batch_size = batch_size
        self._shape = (batch_size, self.element_count)
        self._set_up(max_size, zero_on_return)


class Checkout:
    """One loan; made by :meth:`BufferPool.checkout`."""

    __slots__ = ("_buffer", "_pool")

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._buffer: Float32s | None = None

    def __enter__(self) -> Float32s:
        self._buffer = self._pool._lend()
        return self._buffer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            self._pool._take_back(buffer)
