"""What views serve against Feast's offline store, read point-in-time as training data is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.infra.offline_stores.offline_utils import get_offline_store_from_config
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType

from feast_quorin.convert.codecs import ProtoCodec
from feast_quorin.convert.entity_ids import EMPTY, entity_id_column
from feast_quorin.online_store import QuorinOnlineStore
from feast_quorin.read.ages import limits_for
from feast_quorin.read.limits import column_reader
from feast_quorin.views import stored_view
from feast_quorin.write.tables import NO_TIME, feature_column, key_column, map_columns, times_ns
from quorin import assembly
from quorin.errors import InvalidRowError, RepositoryError
from quorin.offline import SideRows, Sides, SkewReport, compare

if TYPE_CHECKING:
    from feast import FeatureStore

    from feast_quorin.session import Session
    from quorin.shm import Segment

_EVENT_TIMESTAMP = "event_timestamp"
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


def skew(
    store: FeatureStore,
    views: Sequence[str] | None = None,
    *,
    features: Sequence[str] | None = None,
    as_of: datetime | None = None,
    **options: Any,
) -> list[SkewReport]:
    """Compare what views serve with Feast's offline store, read by ``get_historical_features`` as of a time (default:
    now); one report for each view, by default for all that have a batch source.

    ``features`` are the features to compare, by default all. ``options`` are those of :func:`quorin.offline.compare`:
    ``sample``, ``rtol``, ``atol``, ``examples``, ``seed`` and ``progress``. The TTL of a view counts as in training
    sets: rows that are older are not expected to be served.

    :raises RepositoryError: for a view or feature that there is not, a store that is not Quorin, and what the offline
        store fails with.
    """
    moment = None if as_of is None else as_of if as_of.tzinfo else as_of.replace(tzinfo=UTC)
    as_of_ns = None if moment is None else int((moment - _BEGINNING).total_seconds() * 10**6) * 1000
    return [compare(sides, **options) for sides in sides_of(store, views, features, as_of_ns)]


def sides_of(
    store: FeatureStore, views: Sequence[str] | None, features: Sequence[str] | None, as_of_time_ns: int | None
) -> Iterator[FeastSides]:
    """The sides of each view; the default time is that at which each comparison begins."""
    online_store = store.provider.online_store
    if not isinstance(online_store, QuorinOnlineStore) or store.config.online_store.remote is not None:
        raise RepositoryError(f"expected an online store with segments here, got {type(online_store).__name__}")
    known = {
        view.name: view
        for view in store.list_all_feature_views()
        if getattr(view, "batch_source", None) is not None and getattr(view, "online", True)
    }
    for name in views or known:
        if name not in known:
            raise RepositoryError(f"expected a feature view with a batch source, got {name!r}; there are {[*known]}")
    for name in views or known:
        yield FeastSides(store, known[name], features, time.time_ns() if as_of_time_ns is None else as_of_time_ns)


class FeastSides(Sides):
    """One feature view: its segment, and Feast's offline store.

    The source is read twice: once for the keys and the times of the newest events, once for the values.
    """

    def __init__(self, store: FeatureStore, table: Any, features: Sequence[str] | None, as_of_time_ns: int) -> None:
        self.name = table.name
        self.as_of_time_ns = as_of_time_ns // 1000 * 1000  # Offline stores know microseconds.
        self._store, self._table = store, table
        self._view = stored_view(store.config, table)
        online_store: Any = store.provider.online_store
        self._session: Session = online_store.session(store.config)
        self._types = {field.name: field.dtype.to_value_type() for field in table.features}
        wrong = [name for name in features or () if name not in self._types]
        if wrong:
            raise RepositoryError(f"feature view {table.name!r} has no features {wrong}, it has {[*self._types]}")
        self._features = list(features or self._types)
        self._limits = limits_for(store.config.online_store.age_limits, table, self._features)
        self._keys = {column.name: column.dtype.to_value_type() for column in table.entity_columns}
        ttl_ns = round(table.ttl.total_seconds() * 1e9) if table.ttl else 0
        self.least_time_ns = self.as_of_time_ns - ttl_ns if ttl_ns else None

    def served_ids(self) -> Iterator[pa.Array]:  # noqa: D102 - the base class says it
        segment = self._session.prepare(self._view)
        for batch in assembly.scan(segment, fields=[]):
            yield batch.column("entity_id")

    def offline_ids(self) -> pa.Array:  # noqa: D102
        return self._newest[1]

    def read_served(self, ids: pa.Array) -> SideRows:  # noqa: D102
        def read(segment: Segment) -> SideRows:
            stored = {field.name for field in segment.schema.fields}
            fields = {name: self._view.features[name].field for name in self._features}
            kept = {name: field for name, field in fields.items() if field in stored}
            ttl = self._session.settings.key_ttl_seconds
            limits = {fields[name]: limit for name, limit in self._limits.items() if name in kept}
            columns = column_reader(segment, list(kept.values()), ttl, limits)(ids, now_ns=time.time_ns())
            self._drop_expired(columns)
            arrays = {name: pa.nulls(len(ids), self._arrow_type(name)) for name in self._features}
            arrays |= {name: self._comparable(name, columns.arrow(index)) for index, name in enumerate(kept)}
            return SideRows(columns.found, columns.event_time_ns, arrays, columns.positions)

        return self._session.follow(self._view, read)

    def read_offline(self, ids: pa.Array) -> SideRows:  # noqa: D102
        table, known, times = self._newest
        places = pc.index_in(ids.cast(known.type), value_set=known)
        there = places.drop_null()
        values = self._historical(table.take(there)) if len(there) else None
        index = pc.index_in(ids.cast(known.type), value_set=self._ids(values)) if values is not None else None
        columns = {
            name: pa.nulls(len(ids), self._arrow_type(name)) if index is None else self._offline(values, name, index)
            for name in self._features
        }
        found = places.is_valid().to_numpy(zero_copy_only=False)
        if index is not None:
            found &= index.is_valid().to_numpy(zero_copy_only=False)
        time_ns = np.zeros(len(ids), np.int64)
        time_ns[found] = times[places.fill_null(0).to_numpy(zero_copy_only=False)[found]]
        return SideRows(found, time_ns, columns)

    def is_newer(self, served: SideRows) -> Any:  # noqa: D102
        times = self._newest[2]
        newest = int(times.max()) if len(times) else self.as_of_time_ns
        return served.found & (served.time_ns > newest)

    @cached_property
    def _newest(self) -> tuple[pa.Table, pa.Array, Any]:
        """The keys of the entities that the source has as of the time, their ids, and the times of their newest events
        within the TTL.
        """
        source = self._table.batch_source
        mapping = source.field_mapping or {}
        original = {new: old for old, new in mapping.items()}
        least = self.least_time_ns
        job = get_offline_store_from_config(self._store.config.offline_store).pull_latest_from_table_or_query(
            config=self._store.config,
            data_source=source,
            join_key_columns=[original.get(name, name) for name in self._keys],
            feature_name_columns=[],
            timestamp_field=original.get(source.timestamp_field, source.timestamp_field),
            created_timestamp_column=original.get(source.created_timestamp_column, source.created_timestamp_column)
            or None,
            start_date=_BEGINNING if least is None else _datetime(least),
            end_date=_datetime(self.as_of_time_ns),
        )
        table = map_columns(self._read(job), mapping)
        if not self._keys:  # Rows come in the order of their times.
            table = table.slice(max(0, table.num_rows - 1))
        times = times_ns(_one_array(table.column(source.timestamp_field)))
        return table.select(list(self._keys)) if self._keys else table, self._ids(table), times

    def _historical(self, keys: pa.Table) -> pa.Table:
        """The values as of the time, in any order, with the keys."""
        frame = keys.select(list(self._keys)).to_pandas() if self._keys else keys.select([]).to_pandas()
        if not self._keys:
            import pandas as pd

            frame = pd.DataFrame(index=range(1))
        frame[_EVENT_TIMESTAMP] = _datetime(self.as_of_time_ns)
        references = [f"{self.name}:{name}" for name in self._features]
        return self._read(self._store.get_historical_features(entity_df=frame, features=references))

    def _read(self, job: Any) -> pa.Table:
        try:
            return job.to_arrow()
        except Exception as error:
            raise RepositoryError(
                f"Feast's offline store cannot read the source of {self.name!r}: {type(error).__name__}: {error}"
            ) from error

    def _ids(self, table: pa.Table) -> pa.Array:
        if not self._keys:
            return pa.repeat(pa.scalar(EMPTY, pa.string()), table.num_rows)
        columns = {name: key_column(name, _one_array(table.column(name)), kind) for name, kind in self._keys.items()}
        return entity_id_column(columns)

    def _offline(self, values: pa.Table, name: str, index: pa.Array) -> pa.Array:
        codec = self._view.features[name].codec
        try:
            column = feature_column(_one_array(values.column(name)), self._types[name], codec)
        except InvalidRowError as error:
            raise RepositoryError(f"feature view {self.name!r}, feature {name!r}, offline: {error}") from error
        return self._comparable(name, column.cast(codec.arrow_type).take(index))

    def _arrow_type(self, name: str) -> pa.DataType:
        return self._view.features[name].codec.arrow_type

    def _comparable(self, name: str, column: pa.Array) -> pa.Array:
        """A stored column with one form for equal values."""
        if self._types[name] is ValueType.UNIX_TIMESTAMP:
            return pc.if_else(pc.equal(column, NO_TIME), pa.scalar(None, column.type), column)
        if isinstance(self._view.features[name].codec, ProtoCodec):  # The order of a map's items is not defined.
            return pa.array([None if data is None else _canonical(data) for data in column.to_pylist()], pa.binary())
        return column

    def _drop_expired(self, columns: Any) -> None:
        """Take rows for absent that reads would not return."""
        ttl = getattr(self._table, "ttl", None) if self._store.config.online_store.enforce_ttl else None
        if ttl:
            columns.drop(columns.found & (columns.event_time_ns < time.time_ns() - assembly.duration_ns("ttl", ttl)))


def _canonical(data: bytes) -> bytes:
    return bytes(Value.FromString(data).SerializeToString(deterministic=True))


def _datetime(time_ns: int) -> datetime:
    """A time at microseconds."""
    import pandas as pd

    return pd.Timestamp(time_ns, tz="UTC").to_pydatetime(warn=False)


def _one_array(column: Any) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks else pa.array([], column.type)
    return column
