"""Answers to requests for rows of segments: of a client, and of other nodes that do not hold them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import orjson

from quorin.engine.http import replies
from quorin.engine.http.compression import accepted_encoding, compressed
from quorin.engine.http.elsewhere import NothingElsewhere, check_answering
from quorin.engine.http.joined import join
from quorin.engine.http.looking_back import changes_of, last_of
from quorin.engine.http.options import FORWARDED, InvalidHeaderError, RequestOptions, may_wait, options_of, too_old
from quorin.engine.http.reply import Reply, error_reply, forms
from quorin.engine.http.requests import (
    ARROW,
    JSON,
    InvalidRequestError,
    check_values,
    parse_assemble,
    parse_changes,
    parse_last,
    parse_read,
)
from quorin.engine.routing.asking import Asking, UnfinishedError, WouldWaitError, at_once, finish
from quorin.engine.routing.reads import ASSEMBLE_PATH, READ_PATH, RoutedReader
from quorin.errors import (
    ChangesForgottenError,
    EntityIdError,
    InconsistentReadError,
    InvalidMaxAgeError,
    InvalidRowError,
    NotHeldError,
    NotYetAppliedError,
    PartitionedError,
    QuorinError,
    TokenError,
)
from quorin.logging import get_logger

if TYPE_CHECKING:
    from quorin.engine.http.catalogue import Catalogue
    from quorin.engine.http.limits import Limits
    from quorin.engine.http.reply import Direct, Headers, Pending
    from quorin.engine.routing.router import Fetching, Missing
    from quorin.schema import Schema

_DIRECT_BYTES = 16 * 1024
_DIRECT_VALUES, _DIRECT_VALUES_COMPRESSED = 50_000, 5_000
"""Larger requests, and those of more values, are answered in a thread: other requests are answered meanwhile."""
_TOO_LARGE = 413
_CHANGES = "/v1/changes"
"""Always answered in a thread, as all rows are looked at."""

_NOTHING = NothingElsewhere()
_REFUSED = QuorinError, InvalidRequestError, InvalidHeaderError

_log = get_logger(__name__)


class ClientRequest(NamedTuple):
    """Body and content type of a request, what its headers ask for, whether the reply is to be Arrow, the most values
    in it, whether the thread that answers may wait, and who is asked for rows that this node does not hold.
    """

    body: bytes
    content_type: bytes
    options: RequestOptions
    as_arrow: bool
    max_values: int
    may_wait: bool
    elsewhere: Fetching


Answer = Callable[[ClientRequest], Asking[bytes]]
"""From a client_request to the body of the reply, which may need other nodes."""


class SegmentRows:
    """Answers ``POST /v1/read`` and ``/v1/assemble`` from a catalogue, completed by what ``elsewhere`` fetches, and
    ``/v1/last`` and ``/v1/changes`` from the catalogue alone. Threads may share it.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        limits: Limits,
        elsewhere: Fetching = _NOTHING,
        missing_partitions: Missing = "error",
    ) -> None:
        self._catalogue = catalogue
        self._elsewhere = elsewhere
        self._limits = limits
        self._missing_partitions = missing_partitions
        self._answers: dict[str, Answer] = {
            READ_PATH: self._read,
            ASSEMBLE_PATH: self._assemble,
            "/v1/last": self._last,
            _CHANGES: self._changes,
        }
        self.paths = (*self._answers,)
        self.direct: dict[bytes, Direct] = {
            path.encode(): partial(self._direct, answer) for path, answer in self._answers.items() if path != _CHANGES
        }

    def reply(self, path: str, body: bytes, headers: Headers) -> Reply:
        """The answer to a request of any size. It may take seconds."""
        return finish(self._answer(self._answers[path], body, headers, self._limits.values, may_wait=True))

    def _direct(self, answer: Answer, body: bytes, headers: Headers) -> Reply | Pending | None:
        if len(body) > _DIRECT_BYTES or may_wait(headers):
            return None
        limit = _DIRECT_VALUES if accepted_encoding(headers) is None else _DIRECT_VALUES_COMPRESSED
        asking = self._answer(answer, body, headers, min(limit, self._limits.values), may_wait=False)
        try:
            reply = at_once(asking)
        except UnfinishedError as unfinished:
            return unfinished.rest()
        except WouldWaitError:
            return None
        return None if reply.status == _TOO_LARGE else reply

    def _answer(
        self, answer: Answer, body: bytes, headers: Headers, max_values: int, *, may_wait: bool
    ) -> Asking[Reply]:
        """:raises WouldWaitError: for a request that has to wait, unless this thread ``may_wait``."""
        content_type, accept = forms(headers)
        as_arrow = ARROW in accept

        try:
            options = options_of(headers)
            asks = _NOTHING if options.is_forwarded else self._elsewhere
            client_request = ClientRequest(body, content_type, options, as_arrow, max_values, may_wait, asks)
            reply = Reply(200, ARROW if as_arrow else JSON, (yield from answer(client_request)))
        except _REFUSED as error:
            reply = _refusal(error)
        return compressed(reply, accepted_encoding(headers))

    def _read(self, client_request: ClientRequest) -> Asking[bytes]:
        request = parse_read(client_request.body, client_request.content_type, self._limits.rows)
        segment = self._catalogue.segment(request.schema)
        check_values(len(request.entity_ids) * _width(segment.schema, request.fields), client_request.max_values)
        client_request.options.wait(segment)
        if client_request.options.is_forwarded:
            check_answering(segment)
        read = RoutedReader(
            client_request.elsewhere,
            segment,
            request.fields,
            positions=request.positions,
            max_age=request.max_age,
            missing_partitions=self._missing_partitions,
        )
        columns = yield from read.asking(request.entity_ids, waiting=client_request.options.waiting)
        if client_request.as_arrow:
            return replies.rows_arrow(segment.schema, columns)
        return replies.rows_json(segment.schema, request.entity_ids, columns, positions=request.positions)

    def _assemble(self, client_request: ClientRequest) -> Asking[bytes]:
        request = parse_assemble(client_request.body, client_request.content_type, self._limits.rows)
        if request.consistent_timeout_ms is not None and not client_request.may_wait:
            raise WouldWaitError
        others = client_request.elsewhere, self._missing_partitions
        vectors = yield from join(self._catalogue, request, client_request.max_values, client_request.options, *others)
        return replies.vectors_arrow(vectors) if client_request.as_arrow else replies.vectors_json(vectors)

    def _last(self, client_request: ClientRequest) -> Asking[bytes]:
        request = parse_last(client_request.body, client_request.content_type, self._limits.rows)
        found = last_of(self._catalogue, request, client_request.max_values, client_request.options)
        return replies.last_arrow(found) if client_request.as_arrow else replies.last_json(found)
        yield  # It needs no other node.

    def _changes(self, client_request: ClientRequest) -> Asking[bytes]:
        request = parse_changes(client_request.body, client_request.content_type)
        found = changes_of(self._catalogue, request, self._limits, client_request.max_values, client_request.options)
        return replies.changes_arrow(found) if client_request.as_arrow else replies.changes_json(found)
        yield  # It needs no other node.


def guarded(answer: Callable[[], Reply]) -> Reply:
    """The answer, or the reason why there is none."""
    try:
        return answer()
    except _REFUSED as error:
        return _refusal(error)


def _refusal(failure: Exception) -> Reply:
    """The reason why there is no answer."""
    try:
        raise failure
    except InvalidRequestError as error:
        return error_reply(error.status, str(error))
    except (InvalidHeaderError, InvalidRowError, EntityIdError, InvalidMaxAgeError) as error:
        return error_reply(422, str(error))
    except (NotYetAppliedError, TokenError) as error:
        return too_old(error)
    except PartitionedError as error:
        return error_reply(422, str(error))
    except NotHeldError as error:
        return not_held(error)
    except ChangesForgottenError as error:
        about = {"detail": str(error), "error": type(error).__name__, "complete_from": error.complete_from}
        return Reply(410, JSON, orjson.dumps(about))
    except InconsistentReadError as error:
        return error_reply(503, str(error))
    except QuorinError as error:
        _log.exception("request_failed")
        return error_reply(503, f"{type(error).__name__}: the server's log has the reason")


def of_forwarded(direct: Direct) -> Direct:
    """The same for requests of other nodes only; None to any other."""

    def answer(body: bytes, headers: Headers) -> Reply | Pending | None:
        return direct(body, headers) if is_forwarded(headers) else None

    return answer


def is_forwarded(headers: Headers) -> bool:
    """Whether a request is another node's."""
    return any(name == FORWARDED for name, _ in headers)


def not_held(error: NotHeldError) -> Reply:
    """The refusal of a request for rows that no node has answered for."""
    about = {"detail": str(error), "error": type(error).__name__, "partition": error.partition}
    return Reply(503, JSON, orjson.dumps(about))


def _width(schema: Schema, names: list[str] | None) -> int:
    """The values of a row; one of a variable size counts as one."""
    return sum(max(1, field.element_count) for field in schema.fields if names is None or field.name in names)
