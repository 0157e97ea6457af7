"""The online store that Feast loads: ``type: quorin``, or ``type: feast_quorin.QuorinOnlineStore``.

Feast looks for the config class beside the store class, so both are here. The store itself only delegates: reads to
:mod:`feast_quorin.read.plan` and :mod:`feast_quorin.read.generic`, writes to :mod:`feast_quorin.write.rows`, apply and
    teardown to
:mod:`feast_quorin.apply`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.supported_async_methods import SupportedAsyncMethods

from feast_quorin import apply as infrastructure
from feast_quorin import feast_private
from feast_quorin.config import StoreSettings
from feast_quorin.convert.entity_ids import entity_ids_of_rows
from feast_quorin.names import project_prefix, schema_names
from feast_quorin.read import generic as reading
from feast_quorin.read.plan import Plans
from feast_quorin.read.precomputed import from_live_rows
from feast_quorin.read.refused import naming_refused_keys
from feast_quorin.read.request import key_columns
from feast_quorin.read.tensors import TensorResponse
from feast_quorin.search import documents
from feast_quorin.session import Engine
from feast_quorin.views import max_age_ns, stored_view
from feast_quorin.write import rows as writing
from quorin import assembly

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from feast.repo_config import RepoConfig

    from feast_quorin.read.response import LazyResponse


class QuorinOnlineStoreConfig(StoreSettings):
    """The keys under ``online_store``; :class:`feast_quorin.config.StoreSettings` documents and checks them."""


class QuorinOnlineStore(OnlineStore):
    """Feature views in shared memory.

    A reader attaches a view's segment at its first read and follows it from then on, in every process of its own.
    Writes go to the log first, so what is written survives the death of any process.

    A store is pickled without its connection, which it makes from Feast's configuration where it is used.
    """

    _versioned_read_supported = True
    _engine: Engine | None = None
    _plans: Plans | None = None

    def __reduce__(self) -> tuple[type[QuorinOnlineStore], tuple[()]]:
        return type(self), ()

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        """Reads take microseconds and so run in the event loop itself; writes run in a thread."""
        return SupportedAsyncMethods(read=True, write=True)

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[Any],
        tables_to_keep: Sequence[Any],
        entities_to_delete: Sequence[Any],  # noqa: ARG002 - Feast's signature
        entities_to_keep: Sequence[Any],  # noqa: ARG002
        partial: bool,  # noqa: ARG002
    ) -> None:
        """``feast apply``: a segment for every view, with its rows where features changed; none for removed views.

        Features go away only where Feast numbers the new definition as a version: it also calls this with definitions
        that it does not make current (``no_promote``, or a ``version`` to go back to). Where versions are kept apart,
        the features of one never change.
        """
        engine = self._engine_for(config)
        for table in tables_to_keep:
            view = stored_view(config, table)
            versions = config.registry.enable_online_feature_view_versioning
            if versions and engine.catalogue.is_known(view.schema.__name__):
                continue
            drops = getattr(table, "current_version_number", None) is not None
            infrastructure.apply_view(engine, view, drops=drops)
        for table in tables_to_delete:
            for name in schema_names(engine.catalogue.schema_names(), config.project, table.name):
                infrastructure.remove(engine, name)

    def teardown(self, config: RepoConfig, tables: Sequence[Any], entities: Sequence[Any]) -> None:  # noqa: ARG002
        """``feast teardown``: everything of this project, and nothing of any other."""
        engine = self._engine_for(config)
        for name in engine.catalogue.schema_names():
            if name.startswith(project_prefix(config.project)):
                infrastructure.remove(engine, name)

    def online_write_batch(
        self,
        config: RepoConfig,
        table: Any,
        data: Sequence[writing.FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows; returns when they are applied, or logged, as ``wait`` says."""
        writing.write_rows(self._engine_for(config), stored_view(config, table), data, progress)

    def write_table(
        self, config: RepoConfig, table: Any, rows: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Write an Arrow table with the view's columns, faster than :meth:`online_write_batch`; returns likewise."""
        writing.write_table(self._engine_for(config), stored_view(config, table), table, rows, progress)

    def write_plain_row(
        self, config: RepoConfig, table: Any, frame: pd.DataFrame, mapping: Mapping[str, str] | None
    ) -> bool:
        """Write a frame of one row, faster than :meth:`write_table`; returns likewise. False, and nothing is written,
        for any other frame, and for a row with anything but plain numbers, booleans and texts.
        """
        return writing.write_plain_row(self._engine_for(config), stored_view(config, table), table, frame, mapping)

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: Any,
        data: Sequence[writing.FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """The same in a thread, because the log waits for a disk or a network."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def online_read(
        self, config: RepoConfig, table: Any, entity_keys: Sequence[Any], requested_features: list[str] | None = None
    ) -> list[Any]:
        """Event time and features of each entity, or a pair of None."""
        view = stored_view(config, table)
        rows = reading.read_rows(
            self._engine_for(config), view, reading.ids_of_keys(view, entity_keys), requested_features
        )
        return reading.feast_rows(rows)

    async def online_read_async(
        self, config: RepoConfig, table: Any, entity_keys: Sequence[Any], requested_features: list[str] | None = None
    ) -> list[Any]:
        """The same as :meth:`online_read`: there is nothing to wait for."""
        return self.online_read(config, table, entity_keys, requested_features)

    def retrieve_online_documents(
        self,
        config: RepoConfig,
        table: Any,
        requested_features: list[str],
        embedding: list[float],
        top_k: int,
        distance_metric: str | None = None,
    ) -> list[Any]:
        """The nearest entities by an exact search: event time, key, embedding twice, distance; see
        :mod:`feast_quorin.search.documents`.
        """
        query = documents.Query(embedding, top_k, distance_metric)
        # "distance" may be requested like a feature; Feast picks it from the result.
        features = [name for name in requested_features or [] if name != "distance"]
        found = self._nearest(config, table, features, query)
        return [(each.time, each.key, each.embedding, each.embedding, each.distance) for each in found]

    def retrieve_online_documents_v2(
        self,
        config: RepoConfig,
        table: Any,
        requested_features: list[str],
        embedding: list[float] | None,
        top_k: int,
        distance_metric: str | None = None,
        query_string: str | None = None,
        filters: Any = None,
        include_feature_view_version_metadata: bool = False,  # noqa: ARG002 - Feast adds it
    ) -> list[Any]:
        """The nearest entities by an exact search, with the requested features and the distance; see
        :func:`feast_quorin.search.documents.as_feast_reads_them`.

        :raises NotImplementedError: for a search by text.
        """
        if embedding is None or query_string is not None:
            raise NotImplementedError("Quorin searches embeddings, not texts: pass a query vector and no query_string")
        query = documents.Query(embedding, top_k, distance_metric, filters)
        return documents.as_feast_reads_them(self._nearest(config, table, requested_features or [], query))

    def _nearest(
        self, config: RepoConfig, table: Any, features: list[str], query: documents.Query
    ) -> list[documents.Document]:
        return documents.nearest(self._engine_for(config), stored_view(config, table), table, features, query)

    def _read_features_per_fv(
        self,
        config: RepoConfig,
        grouped_refs: Iterable[tuple[Any, list[str]]],
        join_key_values: dict[str, Any],
        entity_name_to_join_key_map: dict[str, str],
        online_features_response: Any,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        """One batch read per view, straight into the response."""
        engine = self._engine_for(config)
        for table, requested in grouped_refs:
            unique = feast_private.unique_entities(table, join_key_values, entity_name_to_join_key_map)
            entities, indexes, row_count = unique
            rows = reading.read_rows(engine, stored_view(config, table), entity_ids_of_rows(entities), requested)
            reading.add_to_response(
                online_features_response,
                table,
                requested,
                rows.repeated(indexes, row_count),
                full_feature_names=full_feature_names,
                with_version=include_feature_view_version_metadata,
                max_age_ns=max_age_ns(config, table),
            )

    def get_online_features(
        self,
        config: RepoConfig,
        features: Any,
        entity_rows: Any,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        include_feature_view_version_metadata: bool = False,
    ) -> TensorResponse:
        """Answer by a compiled request, or else by Feast's generic path."""
        choice = (features, registry, project, full_feature_names, include_feature_view_version_metadata)
        response = self._run(config, entity_rows, *choice)
        if response is not None:
            return response
        with naming_refused_keys(features, entity_rows, registry, project):
            slow = super().get_online_features(config, from_live_rows(features), entity_rows, *choice[1:])
        return TensorResponse.of_feast(slow)

    async def get_online_features_async(
        self,
        config: RepoConfig,
        features: Any,
        entity_rows: Any,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        include_feature_view_version_metadata: bool = False,
    ) -> TensorResponse:
        """The same as :meth:`get_online_features`: there is nothing to wait for."""
        choice = (features, registry, project, full_feature_names, include_feature_view_version_metadata)
        response = self._run(config, entity_rows, *choice)
        if response is not None:
            return response
        with naming_refused_keys(features, entity_rows, registry, project):
            slow = await super().get_online_features_async(config, from_live_rows(features), entity_rows, *choice[1:])
        return TensorResponse.of_feast(slow)

    def _run(self, config: RepoConfig, entity_rows: Any, *choice: Any) -> LazyResponse | None:
        """The response of a compiled request; None for requests that only Feast's own code can answer or refuse."""
        engine = self._engine_for(config)
        plans = self._plans
        if plans is None or plans.engine is not engine or plans.config is not config:
            plans = self._plans = Plans(engine, config)
        keys = key_columns(entity_rows)
        if keys is None:
            return None
        names, columns = keys
        try:
            plan = plans.find(*choice)
            shape = None if plan is None else plan.shape(names)
        except Exception:  # noqa: BLE001 - Feast's own path raises it again
            return None
        return None if shape is None else shape.answer(columns, feast_private.online_metrics())

    async def _read_features_per_fv_async(self, *args: Any, **kwargs: Any) -> None:
        """The same as :meth:`_read_features_per_fv`: there is nothing to wait for."""
        self._read_features_per_fv(*args, **kwargs)

    async def initialize(self, config: RepoConfig) -> None:
        """Connect and load the compiled kernels, so that a feature server's first request need not."""
        self._engine_for(config)
        await asyncio.to_thread(assembly.prewarm)

    async def close(self) -> None:
        """Release segments and connections; a later use connects anew."""
        self._engine = self._plans = None

    def _engine_for(self, config: RepoConfig) -> Engine:
        """This process's engine: a forked child must not use its parent's."""
        engine = self._engine
        if engine is None or engine.pid != os.getpid():
            if engine is not None:
                _inherited.append(engine)
            settings = config.online_store
            engine = self._engine = Engine(
                settings, settings.connection(config.repo_path), settings.history(config.repo_path)
            )
        return engine


_inherited: list[Engine] = []
"""Engines of a parent process, kept so that this process never closes what is the parent's."""
