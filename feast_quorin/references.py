"""Saved datasets as references: the rows with which checks of a replacement compare.

A ``ValidationReference`` of Feast's is a saved dataset and a profiler, whose code the registry keeps pickled. Here the
dataset counts, and the checks that the view declares: nothing is unpickled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from feast.errors import FeastError
from feast.infra.provider import get_provider

from feast_quorin.convert.entity_ids import EMPTY, entity_id_column
from feast_quorin.views import stored_view
from feast_quorin.write.tables import feature_column, key_column, times_ns
from quorin.errors import InvalidRowError, RepositoryError

if TYPE_CHECKING:
    from feast.infra.registry.base_registry import BaseRegistry
    from feast.repo_config import RepoConfig

TAG = "quorin_reference"
"""The tag of a view that names the saved dataset for its replacements."""

_EVENT_TIMESTAMP = "event_timestamp"


def reference_of(config: RepoConfig, registry: BaseRegistry, table: Any) -> pa.Table | None:
    """The reference that the tag of a view names; None without one. Raises as :func:`reference_rows`."""
    name = (getattr(table, "tags", None) or {}).get(TAG)
    return None if name is None else reference_rows(config, registry, table, name)


def reference_rows(config: RepoConfig, registry: BaseRegistry, table: Any, name: str) -> pa.Table:
    """The rows of a saved dataset, read from the offline store, as the view's: ``entity_id``, ``event_time_ns``, and
    the fields of those of its features that the dataset has. An entity has as many rows as there.

    :raises RepositoryError: for a dataset that there is not, that has no feature of the view or lacks its join keys,
        and for what the offline store fails with.
    """
    view, where = stored_view(config, table), f"saved dataset {name!r}"
    rows, columns = _read(config, registry, table.name, name)
    kinds = {field.name: field.dtype.to_value_type() for field in table.features}
    keys = {column.name: column.dtype.to_value_type() for column in table.entity_columns}
    found = {feature: column for feature, column in columns.items() if feature in kinds}
    if not found:
        raise RepositoryError(f"{where} has no feature of {table.name!r}, it has {rows.column_names}")
    if missing := [column for column in (*keys, *found.values()) if column not in rows.column_names]:
        raise RepositoryError(f"{where} has no column {missing[0]!r}, it has {rows.column_names}")
    try:
        parts = {key: key_column(key, _whole(rows, key), kind) for key, kind in keys.items()}
        ids = entity_id_column(parts) if parts else pa.repeat(pa.scalar(EMPTY, pa.string()), rows.num_rows)
        times = times_ns(_whole(rows, _EVENT_TIMESTAMP))
        fields = {
            view.features[feature].field: feature_column(
                _whole(rows, column), kinds[feature], view.features[feature].codec
            ).cast(view.features[feature].codec.arrow_type)
            for feature, column in found.items()
        }
    except InvalidRowError as error:
        raise RepositoryError(f"{where}: {error}") from error
    return pa.table({"entity_id": ids, "event_time_ns": np.asarray(times), **fields})


def _read(config: RepoConfig, registry: BaseRegistry, view: str, name: str) -> tuple[pa.Table, dict[str, str]]:
    """The rows of a saved dataset, and by feature of a view the column that it is in."""
    try:
        dataset = registry.get_saved_dataset(name, config.project)
        rows = get_provider(config).retrieve_saved_dataset(config=config, dataset=dataset).to_arrow()
    except FeastError as error:
        raise RepositoryError(f"project {config.project!r}: {error}") from error
    except Exception as error:
        raise RepositoryError(f"saved dataset {name!r} cannot be read: {type(error).__name__}: {error}") from error
    columns = {}
    for reference in dataset.features:
        of_view, _, feature = reference.partition(":")
        if of_view.partition("@")[0] == view:
            columns[feature] = f"{view}__{feature}" if dataset.full_feature_names else feature
    return rows, columns


def _whole(rows: pa.Table, name: str) -> pa.Array:
    column = rows.column(name).combine_chunks()
    return column if isinstance(column, pa.Array) else pa.chunked_array(column.chunks).combine_chunks()
