"""What one process needs to read and write through ``quorin serve``: requests as messages, answers as rows."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pyarrow as pa

from feast_quorin.read.options import current
from feast_quorin.read.request import key_columns
from feast_quorin.read.selection import ChoiceKeys, digest
from feast_quorin.remote import messages
from feast_quorin.remote.client import Answer, Client, RemoteStoreError
from feast_quorin.remote.response import RemoteResponse, received
from feast_quorin.write import tokens
from feast_quorin.write.tokens import Written
from quorin.errors import InconsistentReadError, NotYetAppliedError
from quorin.wal import Token

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from feast_quorin.config import StoreSettings
    from feast_quorin.views import StoredView

_PLAIN: dict[type, pa.DataType] = {
    int: pa.int64(),
    np.int64: pa.int64(),
    str: pa.string(),
    float: pa.float64(),
    np.float64: pa.float64(),
    bool: pa.bool_(),
    np.bool_: pa.bool_(),
}
"""The types of values that the server takes for what they are here."""
_NO_HEADERS: Mapping[str, str] = {}
_TOO_OLD = 412
_ROW_COLUMNS = ["entity_id", "found", "event_time_ns", "log_position"]
_MAX_BODY_BYTES = 4 * 1024**2
_UNANSWERED = (422, 500)
"""The statuses of requests that only Feast's own path can answer, or refuse in its words."""


class RemoteSession:
    """The connections of one process to the server of a store. Threads may share it; a forked child makes its own."""

    served = now_ns = None
    """The server logs what it answers; ages of rows are counted to the present."""

    def __init__(self, settings: StoreSettings, repo_path: Path | None, project: str) -> None:
        self.pid, self.settings = os.getpid(), settings
        self.reached: dict[tuple[str, int], int] = {}
        self._project = project
        self._choice_keys = ChoiceKeys()
        self.written = Written()
        token_file, tls_ca = settings.server_files(repo_path)
        url, seconds = settings.remote or "", settings.timeout_ms / 1000
        self._client = Client(url, token_file=token_file, tls_ca=tls_ca, timeout_seconds=seconds)

    def answer(
        self, features: Any, entity_rows: Any, *, full_names: bool, with_versions: bool
    ) -> RemoteResponse | None:
        """The server's response to a request for features; None if only Feast's own path can answer or refuse it.

        :raises NotYetAppliedError, TokenError: for what :mod:`feast_quorin.read.options` says.
        :raises ConnectionFailedError, RemoteStoreError: as :meth:`Client.post`.
        """
        columns, choice = _entity_columns(entity_rows), self._choice(features)
        if columns is None or choice is None:
            return None
        flags = {"full_feature_names": full_names, "include_feature_view_version_metadata": with_versions}
        body = messages.message(columns, project=self._project, **choice, **flags)
        try:
            headers = messages.asking_headers(current())
            answer = self._call(messages.ONLINE_FEATURES, body, is_idempotent=True, more=headers)
        except RemoteStoreError as error:
            if error.status in _UNANSWERED:
                return None
            _raise_known(error)
        return received(messages.answer(answer.body))

    def prepare(self, view: StoredView) -> NoReturn:
        """:raises InconsistentReadError: as there are no segments here to read at one position."""
        raise InconsistentReadError(
            f"view {view.name!r}: only Feast's own path can answer this request, which reads one view after the other"
        )

    def read(
        self,
        view: StoredView,
        ids: Sequence[str],
        fields: Sequence[str],
        at_most: int | None = None,  # noqa: ARG002
    ) -> tuple[list[str], pa.RecordBatch]:
        """Read fields of entities, as :meth:`feast_quorin.session.Session.read`.

        :raises SegmentNotFoundError: if the server has no segment of the view.
        :raises ConnectionFailedError, RemoteStoreError: as :meth:`Client.post`.
        """
        body = messages.message({"entity_id": pa.array(ids, pa.string())}, **self._about(view), fields=[*fields])
        headers = messages.row_headers(current())
        batch = messages.answer(self._call(messages.READ, body, is_idempotent=True, more=headers).body)
        if batch.schema.names[: len(_ROW_COLUMNS)] != _ROW_COLUMNS:
            raise messages.BadMessageError(f"expected the columns {_ROW_COLUMNS} first, got {batch.schema.names}")
        return batch.schema.names[len(_ROW_COLUMNS) :], batch

    def write(self, view: StoredView, batch: pa.RecordBatch, *, partial: bool) -> None:
        """Write rows of the engine's form, as :func:`feast_quorin.write.log.write` and ``settle`` do on the server.
        Large batches are several requests; if one fails, those before it are written.

        :raises InvalidRowError, EntityIdError, LogFullError: as there.
        :raises ConnectionFailedError, RemoteStoreError: as :meth:`Client.post`.
        """
        metadata = {**self._about(view), "partial": partial}
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        rows = max(1, batch.num_rows * _MAX_BODY_BYTES // max(1, batch.nbytes))
        for first in range(0, batch.num_rows, rows):
            part = {name: column.slice(first, rows) for name, column in columns.items()}
            token = self._call(messages.WRITE, messages.message(part, **metadata), is_idempotent=False).token
            if token is not None:
                tokens.add(self.written, Token.parse(token))

    def _about(self, view: StoredView) -> dict[str, Any]:
        schema = view.schema
        return {"project": self._project, "view": view.name, "schema": schema.__name__, "entity": schema.entity}

    def _choice(self, features: Any) -> dict[str, Any] | None:
        """The features of a request, or the service, which must be the server's."""
        key = self._choice_keys.key(features)
        if key is None or isinstance(features, list):
            return None if key is None else {"features": features}
        return {"feature_service": features.name, "digest": digest(key)}

    def _call(self, path: str, body: bytes, *, is_idempotent: bool, more: Mapping[str, str] = _NO_HEADERS) -> Answer:
        """:meth:`_post`; the errors of Quorin that the server names are raised as such."""
        try:
            return self._post(path, body, is_idempotent=is_idempotent, more=more)
        except RemoteStoreError as error:
            _raise_known(error)

    def _post(self, path: str, body: bytes, *, is_idempotent: bool, more: Mapping[str, str] = _NO_HEADERS) -> Answer:
        return self._client.post(path, body, messages.CONTENT_TYPE, is_idempotent=is_idempotent, more=more)


def _raise_known(error: RemoteStoreError) -> NoReturn:
    """Raise the error of Quorin that the server names, else the error itself."""
    about = error.about
    if error.error == NotYetAppliedError.__name__ and error.status == _TOO_OLD:
        late = about["schema"], about["position"], about["timeout_ms"]
        raise NotYetAppliedError(*late, applied=about["applied"]) from None
    kind = messages.ERRORS.get(error.error or "")
    raise error if kind is None else kind(str(error)) from None


def _entity_columns(entity_rows: Any) -> dict[str, pa.Array] | None:
    """The columns of a request that are integers, strings, floats or booleans, with nulls; None if others are among
    them.
    """
    found = key_columns(entity_rows)
    if found is None:
        return None
    columns = {}
    for name, values in zip(*found, strict=True):
        kinds = {*map(type, values)} - {type(None)}
        arrow_type = _PLAIN.get(kinds.pop()) if len(kinds) == 1 else None
        if arrow_type is None or type(name) is not str:
            return None
        try:
            columns[name] = pa.array(values, arrow_type)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            return None
    return columns
