"""Messages from remote stores, which anybody may send: checked before they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feast_quorin.remote import messages
from quorin.http import InvalidStreamError, read_stream

if TYPE_CHECKING:
    import pyarrow as pa


def decoded(body: bytes) -> tuple[pa.RecordBatch, dict[str, Any]]:
    """The record batch of a message, valid in all its parts, and the JSON.

    :raises BadMessageError: for anything but one batch without compression and dictionaries, with such metadata.
    """
    try:
        schema, batches = read_stream(body)
    except InvalidStreamError as error:
        raise messages.BadMessageError(str(error)) from None
    if len(batches) != 1:
        raise messages.BadMessageError(f"expected one record batch, got {len(batches)}")
    return batches[0], messages.about(schema)
