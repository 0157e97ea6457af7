"""Requests as of an earlier moment: Feast's own path, with rows of the history in place of those in shared memory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from feast_quorin.config import ConfigError, StoreSettings
from feast_quorin.online_store import QuorinOnlineStore
from feast_quorin.read.generic import LEADING
from feast_quorin.read.options import reading_with
from quorin.offline import ParquetDatasetStore
from quorin.wal import Token, position_at, time_of

if TYPE_CHECKING:
    from feast import FeatureStore
    from feast.repo_config import RepoConfig

    from feast_quorin.read.tensors import TensorResponse
    from feast_quorin.session import Session
    from feast_quorin.views import StoredView


def read_at(
    store: FeatureStore,
    features: Any,
    entity_rows: Sequence[Mapping[str, Any]] | Mapping[str, Any],
    *,
    position: int | Token | str | None = None,
    time_ns: int | None = None,
    full_feature_names: bool = False,
) -> TensorResponse:
    """What ``store.get_online_features(features, entity_rows)`` returned when a log position was applied, or at a time
    (nanoseconds since the epoch): from the history at ``offline_path`` and the log, see :func:`quorin.offline.read_at`.
    With several partitions the position is a token, or its text.

    Views and features are those that the registry has now. Ages (``enforce_ttl``, ``key_ttl_seconds``) are counted as
    of then, of a token as of the latest of its positions.

    :raises IncompleteHistoryError: if history and log lack positions up to then. :raises ConfigError: for a store
        without ``offline_path``. :raises InvalidRowError: unless one of ``position`` and ``time_ns`` is given. :raises
        TokenError, PartitionedError: as there.
    """
    history = _HistorySession(store.config, Token.of(position) if isinstance(position, str) else position, time_ns)
    choice = (features, entity_rows, store.registry, store.project, full_feature_names)
    with reading_with(at_least=None, consistent_ms=None, pins=None):
        return _HistoryStore(history).get_online_features(store.config, *choice)


class _HistorySession:
    """What Feast's path reads from: as :class:`feast_quorin.session.Session`."""

    def __init__(self, config: RepoConfig, position: int | None, time_ns: int | None) -> None:
        settings = config.online_store
        if not isinstance(settings, StoreSettings) or settings.offline_path is None:
            raise ConfigError("read_at needs offline_path, the history")
        # All rows are as of one moment.
        self.settings = settings.model_copy(update={"consistent_timeout_ms": None, "pins": None})
        self._connection, history, _ = settings.places(config.repo_path)
        self._history = ParquetDatasetStore(str(history))
        self._position, self._time_ns = position, time_ns
        self._ttl_seconds = settings.key_ttl_seconds
        at = time_ns if position is None else time_of(position) * 1_000_000
        self.now_ns = time.time_ns() if at is None else at

    served = None

    def read(
        self, view: StoredView, ids: Sequence[str], fields: Sequence[str], at_most: int | None = None
    ) -> tuple[list[str], pa.RecordBatch]:
        assert at_most is None  # noqa: S101 - all rows are as of one moment anyway
        rows = self._history.read_at(
            view.schema, ids, connection=self._connection, position=self._position, time_ns=self._time_ns
        )
        if self._ttl_seconds is not None:
            least = position_at(self.now_ns // 10**6 - 1000 * self._ttl_seconds)
            living = pc.fill_null(pc.greater_equal(rows.column("log_position"), least), False)
            columns = [column if name == "entity_id" else _where(living, column) for name, column in _columns(rows)]
            rows = pa.table(columns, rows.schema.names)
            rows = rows.set_column(1, "found", living)
        chosen = rows.select([*LEADING, *fields]).combine_chunks().to_batches()
        empty = pa.RecordBatch.from_pylist([], rows.select([*LEADING, *fields]).schema)
        return list(fields), chosen[0] if chosen else empty


def _columns(rows: pa.Table) -> Any:
    return zip(rows.schema.names, rows.columns, strict=True)


def _where(kept: Any, column: pa.ChunkedArray) -> Any:
    numbers = pc.if_else(kept, pa.array(range(len(column)), pa.int64()), pa.scalar(None, pa.int64()))
    return column.take(numbers)


class _HistoryStore(QuorinOnlineStore):
    def __init__(self, history: _HistorySession) -> None:
        self._history = history

    def _run(self, config: RepoConfig, entity_rows: Any, *choice: Any) -> None:  # noqa: ARG002
        return None

    def _session_for(self, config: RepoConfig) -> Session:  # noqa: ARG002
        history: Any = self._history
        return history
