"""Requests for features as messages of :mod:`feast_quorin.remote`: Arrow in, Arrow out.

What Feast refuses, and what only its protobuf can hold, is refused with 422. The sender then reads view by view, so
that Feast's own code there answers, or words the error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pyarrow.types as pt

from feast_quorin.read.selection import ChoiceKeys, digest
from feast_quorin.remote import messages
from feast_quorin.server import arrow_body
from feast_quorin.server.remote_rows import ProjectMismatchError, check_project
from feast_quorin.server.request_bodies import decoded
from quorin.assembly import WouldWaitError
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
from quorin.http import Limits, Reply, error_reply, not_held, too_old

if TYPE_CHECKING:
    from collections.abc import Coroutine

    import pyarrow as pa

    from feast_quorin.server.services import Services

_FLAGS = "full_feature_names", "include_feature_view_version_metadata"
_TOO_LARGE = 413
_REFUSALS = InconsistentReadError, InvalidMaxAgeError, InvalidPinError, GenerationNotFoundError, PinLimitError
_ENTITY_TYPES = pt.is_integer, pt.is_floating, pt.is_string, pt.is_large_string, pt.is_boolean


class RemoteFeatures:
    """Answers messages from one feature store. Threads may share it."""

    def __init__(self, store: Any, services: Services, limits: Limits) -> None:
        self._store = store
        self._services = services
        self._limits = limits
        self._choice_keys = ChoiceKeys()

    def direct(self, body: bytes, most: Limits) -> Reply | None:
        """The answer to a small message; None to one of more rows, columns or features.

        :raises WouldWaitError: inside :class:`AtOnce`, as that says.
        """
        reply = self._answer(body, most)
        return None if reply.status == _TOO_LARGE else reply

    async def soon(self, rest: Coroutine[Any, Any, Any]) -> Reply | None:
        """The same, when other machines have answered; ``rest`` is that of the request."""
        try:
            response = await rest
            return None if response is None else _written(response)
        except Exception as error:  # noqa: BLE001 - whatever Feast or a transformation raises
            return _refusal(error)

    def reply(self, body: bytes) -> Reply:
        """The answer to a message of any size within the limits."""
        return self._answer(body, self._limits)

    def _answer(self, body: bytes, most: Limits) -> Reply:
        asked = self._asked(body, most)
        if isinstance(asked, Reply):
            return asked
        try:
            return _written(self._store.get_online_features(**asked))
        except WouldWaitError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            return _refusal(error)

    def _asked(self, body: bytes, most: Limits) -> dict[str, Any] | Reply:
        """What a message asks Feast's store, or why it is refused."""
        try:
            batch, about = decoded(body)
            excess = _excess(batch, about, most)
            if excess:
                return error_reply(_TOO_LARGE, excess)
            check_project(self._store, about)
            request = self._request(batch, about)
        except messages.BadMessageError as error:
            return error_reply(400, str(error))
        except ProjectMismatchError as error:
            return error_reply(409, str(error))
        try:
            return {**request, "features": self._features(about)}
        except Exception as error:  # noqa: BLE001 - whatever Feast's registry raises
            return _refusal(error)

    def _request(self, batch: pa.RecordBatch, about: dict[str, Any]) -> dict[str, Any]:
        """Everything but the features; the columns of the batch are the entities.

        :raises BadMessageError: for anything else than :class:`feast_quorin.remote.session.RemoteSession` sends.
        """
        service, features = about.get("feature_service"), about.get("features", [])
        if not isinstance(service, str | None) or not isinstance(features, list) or not {*map(type, features)} <= {str}:
            raise messages.BadMessageError("expected a list of texts as features, or a text as feature_service")
        flags = {name: about.get(name, False) for name in _FLAGS}
        if {*map(type, flags.values())} != {bool}:
            raise messages.BadMessageError(f"expected true or false as {' and '.join(_FLAGS)}")
        names = batch.schema.names
        if len({*names}) < len(names):
            raise messages.BadMessageError(f"expected columns of different names, got {names}")
        for field in batch.schema:
            if not any(is_type(field.type) for is_type in _ENTITY_TYPES):
                raise messages.BadMessageError(
                    f"expected integers, floats, texts or booleans in column {field.name!r}, got {field.type}"
                )
        entities = {name: column.to_pylist() for name, column in zip(names, batch.columns, strict=True)}
        return {"entity_rows": entities, **flags}

    def _features(self, about: dict[str, Any]) -> Any:
        """The features, or the service.

        :raises ValueError: for a service that is not the one that the sender has.
        """
        name, expected = about.get("feature_service"), about.get("digest")
        if not name:
            return about.get("features", [])
        service = self._services.get(name)
        if expected is not None:
            key = self._choice_keys.key(service)
            if key is None or digest(key) != expected:
                raise ValueError(f"the feature service {name!r} of this server is another one")
        return service


def _written(response: Any) -> Reply:
    answer = arrow_body.exact_body(response, positions=True)
    if answer is None:
        return error_reply(422, "the answer has values that only Feast's protobuf holds")
    return Reply(200, arrow_body.CONTENT_TYPE, answer)


def _refusal(failure: Exception) -> Reply:
    if isinstance(failure, NotHeldError):
        return not_held(failure)
    if isinstance(failure, (NotYetAppliedError, TokenError)):
        return too_old(failure)
    if isinstance(failure, _REFUSALS):
        detail = {"detail": str(failure), "error": type(failure).__name__}
        return Reply(409, b"application/json", orjson.dumps(detail))
    return error_reply(422, f"{type(failure).__name__}: {failure}")


def _excess(batch: pa.RecordBatch, about: dict[str, Any], limits: Limits) -> str | None:
    """What a message has more of than the limits allow."""
    features = about.get("features")
    count = len(features) if isinstance(features, list) else 0
    return limits.excess(rows=batch.num_rows, columns=batch.num_columns, features=count)
