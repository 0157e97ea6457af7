"""Fetches rows of partitions that this node does not hold, from the servers of nodes that hold them."""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, Protocol

import numpy as np
import pyarrow as pa

from quorin.engine.format.partition import MAX_PARTITIONS
from quorin.engine.ops.holders import holders_path, read_holders
from quorin.engine.routing.asking import Exchange
from quorin.engine.routing.targets import assign, targets_of
from quorin.engine.rows.stream import StreamHead, split_head
from quorin.errors import HoldersUnavailableError, NotHeldError, NotYetAppliedError, TokenError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from quorin.engine.arrays import Bytes, Int64s
    from quorin.engine.memory.node import Node
    from quorin.engine.ops.holders import Holder
    from quorin.engine.routing.asking import Asking
    from quorin.engine.routing.connections import Answered, Connections, UnansweredError
    from quorin.engine.routing.targets import Target

Missing = Literal["error", "mask"]
ARROW = "application/vnd.apache.arrow.stream"
FORWARDED = "quorin-forwarded"
DEFAULT_TIMEOUT_SECONDS = 1.0
METADATA_KEY = b"request"

_AVOIDED_SECONDS = 1.0
"""How long a server that did not answer is asked only if there is no other."""
_LOOK_SECONDS = 1.0
_MAX_SHOWN, _MAX_HEADS = 300, 256
_OK, _TOO_OLD = 200, 412


class Waiting(NamedTuple):
    """A token that other nodes wait for before they read, and for how long at most; none by default."""

    token: str | None = None
    timeout_ms: float = 0.0

    @property
    def headers(self) -> dict[str, str]:
        """What asks another node to wait."""
        if self.token is None:
            return {}
        return {"Quorin-At-Least": self.token, "Quorin-Timeout-Ms": str(math.ceil(self.timeout_ms))}


class RowsRequest(NamedTuple):
    """What to ask for some ids: the path, the JSON of the request, a schema's name for errors, and what to wait for.
    ``problem`` says what is wrong with an answer, None if nothing. ``partition_count`` is the number of which
    the partitions are.
    """

    path: str
    about: Mapping[str, Any]
    schema_name: str
    waiting: Waiting
    problem: Callable[[pa.RecordBatch], str | None]
    partition_count: int


class Fetched(NamedTuple):
    """What other nodes answered: record batches, each with the indexes of its ids; and the partitions that none has
    answered for, each with the reasons.
    """

    parts: list[tuple[Int64s, pa.RecordBatch]]
    lacking: dict[int, list[str]]


class Fetching(Protocol):
    """What of a :class:`Router` reads use."""

    def fetch(self, request: RowsRequest, ids: pa.Array, partitions: Bytes) -> Asking[Fetched]:
        """As ``Router.fetch``."""

    def raise_lacking(self, request: RowsRequest, lacking: Mapping[int, list[str]]) -> NoReturn:
        """As ``Router.raise_lacking``."""


class HereOnly:
    """For reads of one moment, or of a pinned generation, which rows of other nodes are not of: asks nobody, and names
    who holds them.
    """

    def __init__(self, router: Fetching) -> None:
        self._router = router

    def fetch(self, request: RowsRequest, ids: pa.Array, partitions: Bytes) -> Asking[Fetched]:  # noqa: ARG002
        """Nothing: no partition is answered for."""
        return Fetched([], {partition: [] for partition in set(partitions.tolist())})
        yield

    def raise_lacking(self, request: RowsRequest, lacking: Mapping[int, list[str]]) -> NoReturn:
        """:raises NotHeldError: always."""
        self._router.raise_lacking(request, lacking)


class Router:
    """Asks servers of other nodes. Threads may share it, and a forked child may use it.

    ``token`` is the one that all servers of the deployment expect; ``tls_ca`` has the certificates to trust in PEM, by
    default the system's. A request takes at most twice ``timeout_seconds``, plus what it asks others to wait.
    """

    def __init__(
        self,
        node: Node,
        *,
        token: str | None = None,
        tls_ca: str | os.PathLike[str] | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._node = node
        self._headers = {"Content-Type": ARROW, "Accept": ARROW, FORWARDED: "true"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._tls_ca = tls_ca
        self._timeout_seconds = timeout_seconds
        self._connections: Connections | None = None
        self._avoided: dict[str, float] = {}
        self._best: tuple[Any, Mapping[int, frozenset[Target]]] = None, {}
        self._look_again = 0.0
        self._random = random.Random()  # noqa: S311 - it spreads requests

    def fetch(self, request: RowsRequest, ids: pa.Array, partitions: Bytes) -> Asking[Fetched]:
        """Ask for ids, whose partitions are in ``partitions``: each server once for all that it is asked for, all at
        the same time. What a server does not answer is asked once more, of another if there is one.

        :raises NotYetAppliedError, TokenError: if another node does not show the token of the request.
        """
        reasons: dict[int, list[str]] = {partition: [] for partition in set(partitions.tolist())}
        parts: list[tuple[Int64s, pa.RecordBatch]] = []
        avoided = self._recently_failed()
        for is_last in (False, True):
            assigned = self._assigned(reasons, request.partition_count, avoided)
            if not assigned:
                break
            rows = {target: _rows_of(partitions, own) for target, own in assigned.items()}
            answers = yield self._exchange(request, ids, rows)
            for target, answered in zip(rows, answers, strict=True):
                answer = _checked(_batch(answered), len(rows[target]), request)
                if isinstance(answer, pa.RecordBatch):
                    parts.append((rows[target], answer))
                    for partition in assigned[target]:
                        del reasons[partition]
                    continue
                if isinstance(answer, TokenError) and is_last:
                    raise answer
                avoided |= {target.url}
                self._avoided[target.url] = time.monotonic()
                for partition in assigned[target]:
                    reasons[partition].append(f"{target.url}: {answer}")
            if not reasons:
                break
        return Fetched(parts, reasons)

    def raise_lacking(self, request: RowsRequest, lacking: Mapping[int, list[str]]) -> NoReturn:
        """Raise the error for partitions that no server has answered for.

        :raises NotHeldError: naming the first, and who holds it. :raises HoldersUnavailableError: if those who hold it
            were asked, with their reasons.
        """
        partition = min(lacking)
        known, own = self._known(request.partition_count)
        others = [one for one in known.get(partition, ()) if one.node != own]
        names = tuple(f"{one.node} ({', '.join(one.urls) or 'which serves at no address'})" for one in others)
        if lacking[partition]:
            raise HoldersUnavailableError(request.schema_name, partition, names, tuple(lacking[partition]))
        raise NotHeldError(request.schema_name, partition, names)

    def _recently_failed(self) -> set[str]:
        """The servers that did not answer a moment ago. Others are forgotten: nobody asks those that are gone."""
        if not self._avoided:
            return set()
        least = time.monotonic() - _AVOIDED_SECONDS
        for url, at in self._avoided.copy().items():
            if at <= least:
                self._avoided.pop(url, None)
        return set(self._avoided.copy())

    def _known(self, count: int) -> tuple[Mapping[int, tuple[Holder, ...]], str]:
        """The holders of each of ``count`` partitions, and the name of this node. That, and where the file is, is asked
        for once a second: an embedded store keeps the deployment's identity in its database.
        """
        now = time.monotonic()
        if now >= self._look_again:
            self._path, self._own = holders_path(self._node), self._node.id
            self._look_again = now + _LOOK_SECONDS
        return read_holders(self._path).at(count), self._own

    def _assigned(self, partitions: Iterable[int], count: int, avoided: set[str]) -> dict[Target, list[int]]:
        targets = self._targets(count, avoided)
        return assign({one: targets[one] for one in partitions if one in targets}, self._random)

    def _targets(self, count: int, avoided: set[str]) -> Mapping[int, frozenset[Target]]:
        """The servers to ask for each of ``count`` partitions; found once for what is known, if none is avoided."""
        known, own = self._known(count)
        seen, found = self._best
        if avoided or seen is not known:
            found = {one: targets_of(holders, own_node=own, avoided=avoided) for one, holders in known.items()}
            if not avoided:
                self._best = known, found
        return found

    def _exchange(self, request: RowsRequest, ids: pa.Array, rows: Mapping[Target, Int64s]) -> Exchange:
        """What asks servers for the ids at some indexes."""
        from quorin.engine.routing.connections import Connections, Outgoing

        if self._connections is None:
            self._connections = Connections(tls_ca=self._tls_ca)
        headers = {**self._headers, **request.waiting.headers}
        head = _head(ids.type, json.dumps(request.about))
        outgoing = [
            Outgoing(target.url, request.path, head.stream([_some(ids, own)]), headers) for target, own in rows.items()
        ]
        return Exchange(self._connections, outgoing, self._timeout_seconds + request.waiting.timeout_ms / 1000)


def _rows_of(partitions: Bytes, wanted: list[int]) -> Int64s:
    """The indexes of the ids in some partitions."""
    is_wanted = np.zeros(MAX_PARTITIONS, np.bool_)
    is_wanted[wanted] = True
    return np.flatnonzero(is_wanted[partitions])


@lru_cache(_MAX_HEADS)
def _head(kind: pa.DataType, about: str) -> StreamHead:
    return StreamHead(pa.schema([pa.field("entity_id", kind)], metadata={METADATA_KEY: about}))


def _some(ids: pa.Array, rows: Int64s) -> pa.Array:
    return ids if len(rows) == len(ids) else ids.take(pa.array(rows))


def _checked(
    batch: pa.RecordBatch | str | TokenError, count: int, request: RowsRequest
) -> pa.RecordBatch | str | TokenError:
    """The batch, or why it is no answer."""
    if not isinstance(batch, pa.RecordBatch):
        return batch
    return f"{len(batch)} rows for {count} ids" if len(batch) != count else request.problem(batch) or batch


def _batch(answer: Answered | UnansweredError) -> pa.RecordBatch | str | TokenError:
    """The record batch of an answer, or why there is none.

    :raises NotYetAppliedError: if the other node has waited for a token as long as it was to.
    """
    if isinstance(answer, Exception):
        return str(answer)
    if answer.status != _OK:
        return _refusal(answer)
    try:
        head = split_head(answer.body)
        if head is not None:
            schema, messages = head
            return pa.ipc.read_record_batch(messages.read_next_message(), schema)
        with pa.ipc.open_stream(pa.py_buffer(answer.body)) as stream:
            return stream.read_next_batch()
    except (StopIteration, pa.ArrowException, OSError) as error:
        return f"expected an Arrow stream: {error or 'no record batch'}"


def _refusal(answer: Answered) -> str | TokenError:
    try:
        about = json.loads(answer.body)
        detail = f"{answer.status}: {str(about['detail'])[:_MAX_SHOWN]}"
    except (ValueError, TypeError, KeyError):
        return str(answer.status)
    if answer.status != _TOO_OLD:
        return detail
    if about.get("error") == TokenError.__name__:
        return TokenError(about["detail"])
    try:
        late = NotYetAppliedError(about["schema"], about["position"], about["timeout_ms"], applied=about["applied"])
    except (KeyError, TypeError):
        return detail
    raise late


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """How other nodes are asked for rows that this one does not hold.

    ``missing_partitions`` says what becomes of an answer if none of them answers for a partition: an ``error``, or a
    ``mask`` of the rows that are missing for that reason. ``tls_ca`` are the certificates to trust in PEM.
    """

    missing_partitions: Missing = "error"
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    tls_ca: Path | None = None

    def router(self, node: Node, token: str | None) -> Router:
        """What asks them, with the token that their servers expect."""
        return Router(node, token=token, tls_ca=self.tls_ca, timeout_seconds=self.timeout_seconds)
