"""``POST /get-online-features`` without Feast's application: requests that it would answer, answered the same.

``None`` means that Feast's application must answer the request, or refuse it. Every error goes that way, so that its
status and body are Feast's own.
"""

from __future__ import annotations

import json
from collections.abc import Coroutine
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from feast_quorin import feast_private
from feast_quorin.read.options import AtOnce, reading_with
from feast_quorin.read.request_id import of_headers
from feast_quorin.remote.messages import is_asking, pins_alone
from feast_quorin.server import arrow_body, json_body
from feast_quorin.server.headers import pin_refused
from feast_quorin.server.remote_features import RemoteFeatures
from feast_quorin.server.services import Services
from quorin.assembly import UnfinishedError, WouldWaitError
from quorin.errors import (
    GenerationNotFoundError,
    InconsistentReadError,
    InvalidMaxAgeError,
    InvalidPinError,
    NotHeldError,
    NotYetAppliedError,
    PinLimitError,
    TokenError,
)
from quorin.http import InvalidHeaderError, Pending, Reply, error_reply, forms, may_wait, not_held, options_of, too_old

if TYPE_CHECKING:
    from collections.abc import Callable

    from feast_quorin.read.pins import Pins
    from feast_quorin.server.authentication import Choice, Gate
    from quorin.http import Headers, Limits

PATH = b"/get-online-features"
NO_REMOTE_STORES = "a remote store needs a server without Feast's authentication, audit log and metrics"
DIRECT_ROWS, DIRECT_FEATURES = 1_000, 1_000
"""Requests for more are answered in a thread: other requests are answered meanwhile."""

Rest = Coroutine[Any, Any, Any]
"""The response of a request that has begun, None if only Feast can answer it; see :class:`UnfinishedError`."""
_Begun = Reply | Pending | None

_FULL_NAMES, _VERSIONS = "full_feature_names", "include_feature_view_version_metadata"
_FLAGS = frozenset((_FULL_NAMES, _VERSIONS))
_KNOWN = frozenset(("entities", "feature_service", "features", *_FLAGS))
_LEAST_BIG = 2.0**64


class Request(NamedTuple):
    """A request that is as Feast's server expects it."""

    entities: dict[str, list[Any]]
    feature_service: str | None
    features: list[str]
    row_count: int
    """The length of the longest column."""
    full_names: bool = False
    with_versions: bool = False

    @property
    def choice(self) -> Choice:
        """The features that are asked for: the name of a service, or references."""
        return self.feature_service or tuple(self.features)


def parsed(body: bytes) -> Request | None:
    """A request from its JSON; None if it is not exactly what Feast's server documents.

    orjson takes less than Python's own parser, which Feast uses: what it refuses is left to Feast, and integers that it
    would take for floats are too.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if type(fields) is not dict or not fields.keys() <= _KNOWN:
        return None
    entities, service, features = fields.get("entities"), fields.get("feature_service"), fields.get("features", [])
    if type(entities) is not dict or type(features) is not list or type(service) not in (str, type(None)):
        return None
    flags = () if _FLAGS.isdisjoint(fields) else (fields.get(_FULL_NAMES, False), fields.get(_VERSIONS, False))
    if not {*map(type, flags)} <= {bool} or not {*map(type, features)} <= {str}:
        return None
    row_count = 0
    for values in entities.values():
        if not _is_plain(values):
            return None
        row_count = max(row_count, len(values))
    return Request(entities, service or None, features, row_count, *flags)


def excess(body: bytes, limits: Limits) -> str | None:
    """What a request has more of than the limits allow; None if nothing, or if it is no request at all."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            fields = json.loads(body)  # Python's parser, which Feast uses, takes NaN and lone surrogates.
        except (ValueError, RecursionError):
            return None
    if type(fields) is not dict:
        return None
    entities, features = fields.get("entities"), fields.get("features")
    columns = entities if type(entities) is dict else {}
    if len(fields) > limits.columns:
        return f"expected at most {limits.columns} keys, got {len(fields)}"
    return limits.excess(
        rows=max((len(values) for values in columns.values() if type(values) is list), default=0),
        columns=len(columns),
        features=len(features) if type(features) is list else 0,
    )


def _is_plain(values: Any) -> bool:
    if type(values) is not list:
        return False
    kinds = {*map(type, values)}
    if kinds <= {int, str}:
        return True
    if not kinds <= {int, str, float, bool, type(None)}:
        return False
    return all(type(value) is not float or -_LEAST_BIG < value < _LEAST_BIG for value in values)


class OnlineFeatures:
    """Answers requests from one feature store. Threads may share it."""

    def __init__(self, store: Any, limits: Limits, gate: Gate | None = None) -> None:
        self._store = store
        self._gate = gate
        self._services = Services(store)
        self._remote = RemoteFeatures(store, self._services, limits)
        self._limits = limits
        self._is_logged = getattr(store.config.online_store, "served_log", None) is not None
        self._is_followed = feast_private.follows_requests(store)
        self._may_wait = getattr(store.config.online_store, "consistent_timeout_ms", None) is not None
        self._direct_rows = min(DIRECT_ROWS, limits.rows)
        self._direct_limits = replace(limits, rows=self._direct_rows, features=DIRECT_FEATURES)

    def direct(self, body: bytes, headers: Headers) -> Reply | Pending | None:
        """The answer to a small request, at once or when other machines have answered. None to one that asks for more
        than pins in headers, as it may have to wait.
        """
        pins = None
        if self._may_wait or may_wait(headers) or (is_asking(headers) and (pins := pins_alone(headers)) is None):
            return None
        content_type, accept = forms(headers)
        if content_type == arrow_body.CONTENT_TYPE:
            if self._gate is not None:
                return None
            return self._begun(pins, partial(self._remote.direct, body, self._direct_limits), self._remote.soon)
        request = parsed(body) if content_type.startswith(b"application/json") else None
        if request is None or not self._is_small(request):
            return None
        if self._gate is not None and not self._gate.is_open(headers, request.choice):
            return None
        asked = request, _form(accept), headers
        return self._begun(pins, partial(self._answer, *asked), partial(self._answer_soon, *asked))

    def _begun(self, pins: Pins | None, answer: Callable[[], Reply | None], soon: Callable[[Rest], Pending]) -> _Begun:
        """What ``answer`` returns; where other machines hold some of the rows, what ``soon`` makes of the rest of the
        request, whose messages to them are sent now.
        """
        try:
            with AtOnce(), nullcontext() if pins is None else reading_with(pins=pins):
                return answer()
        except UnfinishedError as unfinished:
            return None if self._is_followed else soon(unfinished.rest())
        except WouldWaitError:
            return None

    def reply(self, body: bytes, headers: Headers, may_read: Callable[[Choice], bool]) -> Reply | None:
        """The answer to a request of any size, or its refusal if it is beyond the limits. It may take seconds."""
        content_type, accept = forms(headers)
        if content_type == arrow_body.CONTENT_TYPE:
            return error_reply(501, NO_REMOTE_STORES) if self._gate is not None else self._remote.reply(body)
        too_much = excess(body, self._limits)
        if too_much is not None:
            return error_reply(413, too_much)
        request = parsed(body) if content_type.startswith(b"application/json") else None
        return (
            None if request is None or not may_read(request.choice) else self._answer(request, _form(accept), headers)
        )

    def _answer(self, request: Request, form: Any, headers: Headers) -> Reply | None:
        """The answer in a form: a module with ``body`` and ``CONTENT_TYPE``. Headers may ask for positions.

        :raises WouldWaitError: inside :class:`AtOnce`, as that says.
        """
        try:
            with of_headers(headers) if self._is_logged else nullcontext():
                positions, features = options_of(headers).positions, self._features(request)
                response = self._store.get_online_features(features, **_arguments(request))
            return _written(request, features, form, form.body(response, positions=positions))
        except WouldWaitError:
            raise
        except Exception as error:  # noqa: BLE001 - Feast's application raises it again, and says it in its own way
            return _refusal(error)

    async def _answer_soon(self, request: Request, form: Any, headers: Headers, rest: Rest) -> Reply | None:
        """The same, when other machines have answered."""
        try:
            with of_headers(headers) if self._is_logged else nullcontext():
                positions, features, response = options_of(headers).positions, self._features(request), await rest
            if response is None:
                return None
            return _written(request, features, form, form.body(response, positions=positions))
        except Exception as error:  # noqa: BLE001 - as above
            return _refusal(error)

    def _is_small(self, request: Request) -> bool:
        return (
            request.row_count <= self._direct_rows
            and len(request.entities) <= self._limits.columns
            and len(request.features) <= DIRECT_FEATURES
        )

    def _features(self, request: Request) -> Any:
        return request.features if request.feature_service is None else self._services.get(request.feature_service)


def _form(accept: bytes) -> Any:
    return arrow_body if arrow_body.CONTENT_TYPE in accept else json_body


def _arguments(request: Request) -> dict[str, Any]:
    """What Feast's store takes beside the features."""
    return {
        "entity_rows": request.entities,
        "full_feature_names": request.full_names,
        "include_feature_view_version_metadata": request.with_versions,
    }


def _written(request: Request, features: Any, form: Any, body: bytes) -> Reply:
    return Reply(200, form.CONTENT_TYPE, body, rows=request.row_count, features=_feature_count(features))


def _refusal(failure: Exception) -> Reply | None:
    """The answer to a request that failed; None if Feast's application is to give it."""
    if isinstance(failure, (InvalidHeaderError, InvalidMaxAgeError)):
        return error_reply(422, str(failure))
    if isinstance(failure, (NotYetAppliedError, TokenError)):
        return too_old(failure)
    if isinstance(failure, NotHeldError):
        return not_held(failure)
    if isinstance(failure, (InvalidPinError, GenerationNotFoundError, PinLimitError)):
        return pin_refused(failure)
    return error_reply(503, str(failure)) if isinstance(failure, InconsistentReadError) else None


def _feature_count(features: Any) -> int:
    """The features of a list of references, or of a service."""
    if isinstance(features, list):
        return len(features)
    return sum(len(view.features) for view in features.feature_view_projections)
