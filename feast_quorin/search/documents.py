"""Vector retrieval: exact search in shared memory for the entities with the nearest embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType

from feast_quorin.convert.entity_ids import entity_key
from feast_quorin.convert.times import to_datetime
from feast_quorin.feast_private import entity_row_indexes
from feast_quorin.feast_versions import DOCUMENTS, has
from feast_quorin.read.limits import column_reader
from feast_quorin.search.filters import RowFilter
from quorin import vector
from quorin.errors import InvalidRowError

if TYPE_CHECKING:
    from datetime import datetime

    from feast_quorin.session import Session
    from feast_quorin.views import StoredView
    from quorin.shm import Segment

_EMBEDDINGS = {ValueType.FLOAT_LIST, ValueType.DOUBLE_LIST}
_METRICS = {
    "l2": "l2",
    "euclidean": "l2",
    "cosine": "cosine",
    "inner_product": "inner_product",
    "ip": "inner_product",
    "dot": "inner_product",
}
_EVENT_TIME = "event_time_ns"


@dataclass(frozen=True)
class Document:
    """One result: an entity's key, event time, requested features and join keys, and its distance."""

    key: Any
    time: datetime
    values: dict[str, Any]
    embedding: Any
    distance: Any


@dataclass(frozen=True)
class Query:
    """A search for the ``k`` entities nearest to ``embedding``, with Feast's names of metrics and Feast's filters."""

    embedding: Sequence[float]
    k: int
    metric: str | None = None
    filters: Any = None


def nearest(session: Session, view: StoredView, table: Any, features: Sequence[str], query: Query) -> list[Document]:
    """The documents nearest to a query, by distance, then by entity id.

    Values, distance and the result of the filters are of one version of a row. A row that is deleted or stops passing
    the filters during the search is left out, so there may be fewer than ``k``.

    ``features`` may include join keys.

    :raises ValueError: for a view without embeddings, a query of another length, an unknown metric, feature or filter.
    """
    name = embedding_feature(table, features)
    metric = _metric(query.metric)
    keys = _key_kinds(table)
    unknown = [feature for feature in features if feature not in view.features and feature not in keys]
    if unknown:
        raise InvalidRowError(
            f"view {view.name!r} has no features {unknown}, it has {list(view.features)} and the join keys {list(keys)}"
        )
    declared = next((field.vector_length for field in table.features if field.name == name), 0)
    if declared and len(query.embedding) != declared:
        raise InvalidRowError(f"expected a query of {declared} numbers for {name!r}, got {len(query.embedding)}")
    field = view.features[name].field
    passing = RowFilter(view, keys, query.filters)
    ids = session.follow(view, lambda segment: _search(session, segment, field, query, metric, passing))
    if not ids:
        return []
    stored = [feature for feature in dict.fromkeys([*features, name]) if feature not in keys]
    fields = dict.fromkeys([*(view.features[feature].field for feature in stored), *passing.fields])
    kept, batch = session.read(view, ids, list(fields))
    if field not in kept:
        return []
    return _documents(view, keys, features, name, batch.filter(passing(batch)), query, metric)


def embedding_feature(table: Any, features: Sequence[str]) -> str:
    """The feature to search: the view's vector index, or else the only list of floats among the features.

    :raises ValueError: if there is none, or more than one.
    """
    lists = [field for field in table.features if field.dtype.to_value_type() in _EMBEDDINGS]
    indexed = [field.name for field in lists if field.vector_index] or [field.name for field in lists]
    candidates = [name for name in indexed if name in features] or indexed
    if len(candidates) != 1:
        raise InvalidRowError(
            f"view {table.name!r}: expected one embedding to search, such as an Array(Float32) with vector_index=True, "
            f"found {candidates}"
        )
    return candidates[0]


def as_feast_reads_them(documents: Sequence[Document]) -> list[tuple[Any, Any, dict[str, Any]]]:
    """The rows to return from ``retrieve_online_documents_v2``, so that ``FeatureStore`` pairs keys and values right.

    ``FeatureStore`` takes the keys in the order of the rows, but assigns the ``i``-th values to the ``i``-th of the
    *sorted* keys. So each key is returned with the values of the key that Feast will assign them to. Of a Feast that
    may pair them otherwise we know only that sorted keys keep their own values: it gets the documents by key.
    """
    columns: dict[str, list[Any]] = {}
    for document in documents:
        for join_key, value in zip(document.key.join_keys, document.key.entity_values, strict=True):
            columns.setdefault(join_key, []).append(value)
    indexes = entity_row_indexes(columns) if documents else ()
    valued = [documents[index] for index, *_ in indexes]
    keyed = documents if has(DOCUMENTS) else valued
    rows = []
    for document, other in zip(keyed, valued, strict=True):
        rows.append((other.time, document.key, {**other.values, "distance": other.distance}))
    return rows


def _key_kinds(table: Any) -> dict[str, ValueType]:
    return {entity.name: entity.dtype.to_value_type() for entity in table.entity_columns}


def _search(session: Session, segment: Segment, field: str, query: Query, metric: Any, passing: RowFilter) -> list[str]:
    if field not in {stored.name for stored in segment.schema.fields}:
        return []
    among: Any = None
    if query.filters is not None or session.settings.key_ttl_seconds:
        among = vector.entity_ids(segment)
    if session.settings.key_ttl_seconds:
        among = among.filter(pa.array(column_reader(segment, [], session.settings.key_ttl_seconds)(among).found))
    if query.filters is not None:
        among = among.filter(passing.of_entities(segment, among))
    return vector.search(segment, field, query.embedding, k=query.k, metric=metric, among=among).entity_ids


def _documents(
    view: StoredView,
    keys: Mapping[str, ValueType],
    features: Sequence[str],
    name: str,
    batch: pa.RecordBatch,
    query: Query,
    metric: Any,
) -> list[Document]:
    embedding = np.asarray(query.embedding, np.float64)
    vectors = batch.column(view.features[name].field)
    comparable = [row for row, item in enumerate(vectors) if item.is_valid and len(item) == len(embedding)]
    batch = batch.take(pa.array(comparable, pa.int64()))
    vectors = np.array([item.as_py() for item in batch.column(view.features[name].field)], np.float64)
    distances = vector.distances(vectors.reshape(-1, len(embedding)), embedding, metric)
    ids, times = batch.column("entity_id").to_pylist(), batch.column(_EVENT_TIME).to_pylist()
    columns = {
        feature: stored.codec.to_protos(batch.column(stored.field))
        for feature, stored in view.features.items()
        if (feature == name or feature in features) and stored.field in batch.schema.names
    }
    order = sorted(range(len(ids)), key=lambda row: (distances[row], ids[row].encode()))
    documents = []
    for row in order:
        key = entity_key(ids[row], keys)
        values = dict(zip(key.join_keys, key.entity_values, strict=True))
        values |= {feature: column[row] for feature, column in columns.items()}
        documents.append(
            Document(
                key=key,
                time=to_datetime(times[row]),
                values={feature: values.get(feature, Value()) for feature in features},
                embedding=columns[name][row],
                distance=Value(float_val=float(distances[row])),
            )
        )
    return documents


def _metric(name: str | None) -> str:
    metric = _METRICS.get((name or "l2").lower())
    if metric is None:
        raise InvalidRowError(f"unknown distance metric {name!r}, expected one of {list(_METRICS)}")
    return metric
