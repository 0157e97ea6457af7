"""What callers of reads hand in, checked: entity ids in their many forms, and the buffers that results go to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quorin.errors import EntityIdError, InvalidBufferError
from quorin.values import check_entity_id

Floats = np.ndarray[Any, np.dtype[np.float32]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

_FLOAT32 = np.dtype(np.float32)
_BOOL = np.dtype(np.bool_)


def id_array(entity_ids: Any) -> pa.Array:
    """Entity ids as an Arrow string (or binary) array; Arrow arrays of those types as they are, without copying.

    :raises EntityIdError: naming the first id that is empty, null or no text.
    """
    if isinstance(entity_ids, pa.ChunkedArray):
        entity_ids = entity_ids.combine_chunks()
    if isinstance(entity_ids, (str, bytes)):
        raise EntityIdError(f"expected many entity ids, got one: {entity_ids!r}")
    if not isinstance(entity_ids, pa.Array):
        entity_ids = _from_python(entity_ids)
    if entity_ids.type not in _AS_THEY_ARE:
        values = entity_ids.type.value_type if pa.types.is_dictionary(entity_ids.type) else entity_ids.type
        if values not in _AS_THEY_ARE | {pa.string_view(), pa.binary_view()}:
            raise EntityIdError(f"entity ids must be text, got an Arrow array of {entity_ids.type}")
        entity_ids = entity_ids.cast(pa.large_string())
    if entity_ids.null_count:
        raise EntityIdError(f"entity id {pc.index(pc.is_null(entity_ids), True).as_py()} is null")
    return entity_ids


def empty_id(index: int) -> EntityIdError:
    """The error for an empty id in a batch."""
    return EntityIdError(f"entity id {index} is empty")


def vector_out(out: Any, length: int) -> Floats:
    """A caller's buffer for one vector, or a fresh one.

    :raises InvalidBufferError: unless it is a writeable, contiguous float32 array of shape ``(length,)``.
    """
    if out is None:
        return np.empty(length, np.float32)
    _check_buffer("out", out, _FLOAT32, (length,))
    floats: Floats = out
    return floats


def batch_out(out: Any, found_mask: Any, rows: int, length: int) -> tuple[Floats, Mask]:
    """A caller's buffers for a batch, or fresh ones: float32 of shape ``(rows, length)``, bool of shape ``(rows,)``.

    :raises InvalidBufferError: if a given one has another shape or dtype, or can't be written in place.
    """
    if out is None:
        out = np.empty((rows, length), np.float32)
    else:
        _check_buffer("out", out, _FLOAT32, (rows, length))
    if found_mask is None:
        found_mask = np.empty(rows, np.bool_)
    else:
        _check_buffer("found_mask", found_mask, _BOOL, (rows,))
    return out, found_mask


_AS_THEY_ARE = frozenset({pa.string(), pa.large_string(), pa.binary(), pa.large_binary()})


def _from_python(entity_ids: Any) -> pa.Array:
    if isinstance(entity_ids, np.ndarray) and entity_ids.dtype.kind in "US":
        return pa.array(entity_ids.tolist(), pa.string() if entity_ids.dtype.kind == "U" else pa.binary())
    if not isinstance(entity_ids, (Sequence, np.ndarray)):
        entity_ids = list(entity_ids)
    try:
        return pa.array(entity_ids, pa.string())
    except (pa.ArrowException, UnicodeEncodeError, TypeError):
        for entity_id in entity_ids:
            check_entity_id(entity_id)
        raise


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
