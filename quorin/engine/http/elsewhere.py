"""Requests that another node has forwarded: they are answered from memory, or refused."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NoReturn

from quorin.engine.http.requests import InvalidRequestError
from quorin.errors import NotHeldError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from quorin.engine.arrays import Bytes
    from quorin.engine.routing.router import RowsRequest
    from quorin.shm import Segment

_MISDIRECTED, _UNAVAILABLE = 421, 503


class NothingElsewhere:
    """For requests that another node has forwarded: they are not forwarded again."""

    def fetch(self, request: RowsRequest, ids: pa.Array, partitions: Bytes) -> NoReturn:  # noqa: ARG002
        """:raises InvalidRequestError: always, with 421."""
        raise InvalidRequestError(_MISDIRECTED, str(NotHeldError(request.schema_name, int(partitions.min()))))

    def raise_lacking(self, request: RowsRequest, lacking: Mapping[int, list[str]]) -> NoReturn:
        """:raises NotHeldError: always."""
        raise NotHeldError(request.schema_name, min(lacking))


def check_answering(segment: Segment) -> None:
    """Let another node ask only for rows of the generation in force, and when they are all here: those that are not
    would not be found.

    :raises InvalidRequestError: with 503, if a segment is pinned, or was never known to be up to date.
    """
    name = segment.schema.__name__
    if segment.is_pinned:
        raise InvalidRequestError(_UNAVAILABLE, f"{name}: this server stays with one generation")
    if math.isinf(segment.confirmed_age_seconds()):
        raise InvalidRequestError(_UNAVAILABLE, f"{name}: this node was never known to have all rows of its partitions")
