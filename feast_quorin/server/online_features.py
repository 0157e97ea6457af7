"""``POST /get-online-features`` without Feast's application: requests that it would answer, answered the same.

``None`` means that Feast's application must answer the request, or refuse it. Every error goes that way, so that its
status and body are Feast's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from feast_quorin.server import arrow_body, json_body
from feast_quorin.server.services import Services
from quorin.http import Reply

if TYPE_CHECKING:
    from quorin.http import Headers

PATH = b"/get-online-features"
DIRECT_ROWS = 1_000
"""Requests of more rows are answered in a thread: other requests are answered meanwhile."""

_FLAGS = "full_feature_names", "include_feature_view_version_metadata"
_KNOWN = frozenset(("entities", "feature_service", "features", *_FLAGS))
_LEAST_BIG = 2.0**64


class Request(NamedTuple):
    """A request that is as Feast's server expects it."""

    entities: dict[str, list[Any]]
    feature_service: str | None
    features: list[str]
    full_names: bool
    with_versions: bool

    @property
    def row_count(self) -> int:
        """The length of the longest column."""
        return max(map(len, self.entities.values()), default=0)


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
    flags = [fields.get(name, False) for name in _FLAGS]
    if {*map(type, flags)} != {bool} or not {*map(type, features)} <= {str}:
        return None
    if not all(_is_plain(values) for values in entities.values()):
        return None
    return Request(entities, service or None, features, *flags)


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

    def __init__(self, store: Any, most_rows: int) -> None:
        self._store = store
        self._services = Services(store)
        self._direct_rows = min(DIRECT_ROWS, most_rows)

    def direct(self, body: bytes, headers: Headers) -> Reply | None:
        """The answer to a small request in JSON, at once."""
        content_type = accept = b""
        for name, value in headers:
            if name == b"content-type":
                content_type = value
            elif name == b"accept":
                accept = value
        if not content_type.startswith(b"application/json") or arrow_body.CONTENT_TYPE in accept:
            return None
        request = parsed(body)
        if request is None or request.row_count > self._direct_rows:
            return None
        return self.answer(request, json_body)

    def answer(self, request: Request, form: Any) -> Reply | None:
        """The answer in a form: a module with ``body`` and ``CONTENT_TYPE``."""
        try:
            response = self._store.get_online_features(
                features=self._features(request),
                entity_rows=request.entities,
                full_feature_names=request.full_names,
                include_feature_view_version_metadata=request.with_versions,
            )
            return Reply(200, form.CONTENT_TYPE, form.body(response))
        except Exception:  # noqa: BLE001 - Feast's application raises it again, and says it in its own way
            return None

    def _features(self, request: Request) -> Any:
        return request.features if request.feature_service is None else self._services.get(request.feature_service)
