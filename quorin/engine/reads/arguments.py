"""The buffers that callers of reads pass for results, checked or made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quorin.errors import EntityIdError, InvalidBufferError

if TYPE_CHECKING:
    from quorin.engine.arrays import Float32s, Mask

_FLOAT32 = np.dtype(np.float32)
_BOOL = np.dtype(np.bool_)
_INT64 = np.dtype(np.int64)


def empty_id(index: int) -> EntityIdError:
    """The error for an empty id in a batch."""
    return EntityIdError(f"row {index}: an entity id must not be empty, got ''")


def vector_out(out: Any, length: int) -> Float32s:
    """A caller's buffer for one vector, or a fresh one.

    :raises InvalidBufferError: unless it is a writeable, contiguous float32 array of shape ``(length,)``.
    """
    if out is None:
        return np.empty(length, _FLOAT32)
    _check_buffer("out", out, _FLOAT32, (length,))
    floats: Float32s = out
    return floats


def batch_out(out: Any, found_mask: Any, rows: int, length: int) -> tuple[Float32s, Mask]:
    """A caller's buffers for a batch, or new ones: float32 of shape ``(rows, length)``, bool of shape ``(rows,)``.

    :raises InvalidBufferError: if a buffer has another shape or dtype, or is not writeable.
    """
    if out is None:
        out = np.empty((rows, length), _FLOAT32)
    else:
        _check_buffer("out", out, _FLOAT32, (rows, length))
    if found_mask is None:
        found_mask = np.empty(rows, _BOOL)
    else:
        _check_buffer("found_mask", found_mask, _BOOL, (rows,))
    return out, found_mask


def check_positions(positions: Any, rows: int) -> None:
    """Check a caller's buffer for log positions: int64 of shape ``(rows,)``.

    :raises InvalidBufferError: if it has another shape or dtype, or is not writeable.
    """
    _check_buffer("positions", positions, _INT64, (rows,))


def mask_out(name: str, mask: Any, rows: int) -> Mask | None:
    """A caller's buffer for which rows something is true of: bool of shape ``(rows,)``; None for none.

    :raises InvalidBufferError: if it has another shape or dtype, or is not writeable.
    """
    if mask is not None:
        _check_buffer(name, mask, _BOOL, (rows,))
    checked: Mask | None = mask
    return checked


def _check_buffer(name: str, buffer: Any, kind: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if type(buffer) is np.ndarray and buffer.dtype is kind and buffer.shape == shape and buffer.flags.carray:
        return
    expected = f"{name} must be a writeable C-contiguous {kind} array of shape {shape}"
    if not isinstance(buffer, np.ndarray):
        raise InvalidBufferError(f"{expected}, got {type(buffer).__name__}")
    if buffer.dtype != kind or buffer.shape != shape:
        raise InvalidBufferError(f"{expected}, got {buffer.dtype} of shape {buffer.shape}")
    if not buffer.flags.carray:
        state = "read-only" if not buffer.flags.writeable else "not contiguous or not aligned"
        raise InvalidBufferError(f"{expected}, this one is {state}")
