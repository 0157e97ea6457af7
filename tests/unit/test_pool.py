from __future__ import annotations

from typing import Any

import pytest

from quorin.pool import BatchBufferPool, BufferPool
from tests.support.schemas import Scalars


def test_a_pool_lends_and_takes_back() -> None:
    pool = BufferPool(Scalars, max_size=2)
    assert (pool.available, pool.max_size, pool.element_count) == (2, 2, 4)
    with pool.checkout() as buffer:
        assert buffer.shape == (4,)
        buffer[:] = 7
        assert pool.available == 1
    assert pool.available == 2
    with pool.checkout() as buffer:
        assert buffer.tolist() == [0, 0, 0, 0]


def test_an_empty_pool_lends_a_fresh_buffer_and_counts_a_miss() -> None:
    pool = BufferPool(Scalars, max_size=1)
    with pool.checkout() as first, pool.checkout() as second:
        assert first is not second
        assert (pool.available, pool.misses) == (0, 1)
    assert pool.available == 1


def test_batches_keep_what_is_in_them_unless_asked() -> None:
    pool = BatchBufferPool(Scalars, batch_size=3, max_size=1)
    with pool.checkout() as buffer:
        assert buffer.shape == (3, 4)
        buffer[:] = 7
    with pool.checkout() as buffer:
        assert (buffer == 7).all()


@pytest.mark.parametrize("size", [0, -1, 1.5, True, None])
def test_bad_sizes_are_named(size: Any) -> None:
    with pytest.raises(ValueError, match="max_size"):
        BufferPool(Scalars, max_size=size)
    with pytest.raises(ValueError, match="batch_size"):
        BatchBufferPool(Scalars, batch_size=size)


def test_a_buffer_comes_back_after_an_error() -> None:
    pool = BufferPool(Scalars, max_size=1)
    with pytest.raises(RuntimeError, match="in between"), pool.checkout():
        raise RuntimeError("in between")
    assert pool.available == 1
