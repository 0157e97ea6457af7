"""The online store that Feast loads: ``type: quorin``, or ``type: feast_quorin.QuorinOnlineStore``.

Feast looks for the config class beside the store class, so both are here. The store only delegates: reads to
:mod:`feast_quorin.read.plan` and :mod:`feast_quorin.read.generic`, writes to :mod:`feast_quorin.write.rows`, ``apply``
and ``teardown`` to :mod:`feast_quorin.apply`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.supported_async_methods import SupportedAsyncMethods

from feast_quorin import feast_private
from feast_quorin.apply import apply_tables, remove_project, remove_views
from feast_quorin.config import StoreSettings
from feast_quorin.feast_versions import VIEW_READS, has
from feast_quorin.open_store import OpenStore
from feast_quorin.read import generic as reading
from feast_quorin.read import options
from feast_quorin.read.join_key_errors import naming_refused_keys
from feast_quorin.read.options import current
from feast_quorin.read.pins import Pins
from feast_quorin.read.positions import Positions, collecting
from feast_quorin.read.precomputed import from_live_rows
from feast_quorin.read.request import key_columns
from feast_quorin.read.tensors import TensorResponse
from feast_quorin.remote.store import RemoteStore
from feast_quorin.search import documents
from feast_quorin.views import stored_view
from feast_quorin.write import rows as writing
from quorin import assembly

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from feast.repo_config import RepoConfig

    from feast_quorin.read.response import LazyResponse
    from feast_quorin.read.shape import Shape

    _Compiled = tuple[Shape, list[list[Any]], options.ReadOptions]


class QuorinOnlineStoreConfig(StoreSettings):
    """The keys under ``online_store``; :class:`feast_quorin.config.StoreSettings` documents and checks them.

    Feast makes the store whose name is that of the settings' class, so settings with ``remote`` are of another class.
    """

    def __new__(cls, *_: Any, **settings: Any) -> QuorinOnlineStoreConfig:  # noqa: D102
        is_remote = cls is QuorinOnlineStoreConfig and settings.get("remote") is not None
        return super().__new__(QuorinRemoteOnlineStoreConfig if is_remote else cls)


class QuorinOnlineStore(OpenStore, OnlineStore):
    """Feature views in shared memory.

    A process attaches a view's segment at its first read, and follows it when it is replaced. Writes go to the log
    first, so they survive the crash of any process. A store is pickled without its session, which is made from Feast's
    configuration where it is unpickled and used.
    """

    _versioned_read_supported = True

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
        """``feast apply``: segments for the views to keep, with their rows if features changed; none for the others.

        See :func:`feast_quorin.apply.apply_tables`.
        """
        session = self.session(config)
        apply_tables(session, config, tables_to_keep)
        remove_views(session, config.project, [table.name for table in tables_to_delete])

    def teardown(self, config: RepoConfig, tables: Sequence[Any], entities: Sequence[Any]) -> None:  # noqa: ARG002
        """``feast teardown``: remove everything of this project, and nothing of any other."""
        remove_project(self.session(config), config.project)

    def online_write_batch(
        self,
        config: RepoConfig,
        table: Any,
        data: Sequence[writing.FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows. Returns when they are applied or logged, depending on ``wait``."""
        writing.write_rows(self.session(config), stored_view(config, table), data, progress)

    def write_table(
        self, config: RepoConfig, table: Any, rows: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Write an Arrow table with the view's columns; faster than :meth:`online_write_batch`, returns as it does."""
        writing.write_table(self.session(config), stored_view(config, table), table, rows, progress)

    def replace_table(
        self,
        config: RepoConfig,
        table: Any,
        rows: pa.Table,
        progress: Callable[[int], Any] | None,
        reference: pa.Table | None = None,
    ) -> None:
        """Replace all rows of a view by those of an Arrow table with its columns; returns as :meth:`write_table`. Its
        checks compare with the ``reference`` of :mod:`feast_quorin.references`, or else with what is served.
        """
        writing.replace_table(self.session(config), stored_view(config, table), table, rows, progress, reference)

    def write_plain_row(
        self, config: RepoConfig, table: Any, frame: pd.DataFrame, mapping: Mapping[str, str] | None
    ) -> bool:
        """Write a frame of one row; faster than :meth:`write_table`, returns when it does.

        Returns False and writes nothing if the frame has more rows, or values other than numbers, booleans and strings.
        """
        return writing.write_plain_row(self.session(config), stored_view(config, table), table, frame, mapping)

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: Any,
        data: Sequence[writing.FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """:meth:`online_write_batch` in a thread, because an append waits for a disk or a network."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def online_read(
        self, config: RepoConfig, table: Any, entity_keys: Sequence[Any], requested_features: list[str] | None = None
    ) -> list[Any]:
        """Event time and features of each entity, or a pair of None."""
        view = stored_view(config, table)
        ids = reading.ids_of_keys(view, entity_keys)
        return reading.feast_rows(reading.read_rows(self.reading_session(config), view, ids, requested_features))

    async def online_read_async(
        self, config: RepoConfig, table: Any, entity_keys: Sequence[Any], requested_features: list[str] | None = None
    ) -> list[Any]:
        """:meth:`online_read`, in a thread if it may have to wait."""
        if not self.may_wait(config):
            with suppress(assembly.WouldWaitError), options.AtOnce():
                return self.online_read(config, table, entity_keys, requested_features)
        return await asyncio.to_thread(self.online_read, config, table, entity_keys, requested_features)

    def retrieve_online_documents(
        self,
        config: RepoConfig,
        table: Any,
        requested_features: list[str],
        embedding: list[float],
        top_k: int,
        distance_metric: str | None = None,
    ) -> list[Any]:
        """Search exactly for the nearest entities. Returns event time, key, embedding (twice) and distance of each; see
        :mod:`feast_quorin.search.documents`.
        """
        query = documents.Query(embedding, top_k, distance_metric)
        # "distance" may be requested like a feature; Feast picks it from the result.
        features = [name for name in requested_features or [] if name != "distance"]
        rows = self._nearest(config, table, features, query)
        return [(row.time, row.key, row.embedding, row.embedding, row.distance) for row in rows]

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
        """Search exactly for the nearest entities. Returns the requested features and the distance of each; see
        :func:`feast_quorin.search.documents.as_feast_reads_them`.

        :raises NotImplementedError: for a text search.
        """
        if embedding is None or query_string is not None:
            raise NotImplementedError("Quorin searches embeddings, not text: pass a query vector and no query_string")
        if isinstance(filters, bool):  # Feast before 0.66 has no filters, and passes the next argument in their place.
            filters = None
        query = documents.Query(embedding, top_k, distance_metric, filters)
        return documents.as_feast_reads_them(self._nearest(config, table, requested_features or [], query))

    def _nearest(self, config: RepoConfig, table: Any, *choice: Any) -> list[documents.Document]:
        return documents.nearest(self.reading_session(config), stored_view(config, table), table, *choice)

    def _read_features_per_fv(self, config: RepoConfig, *request: Any) -> None:
        """One batch read per view, straight into the response."""
        if has(VIEW_READS):
            reading.read_views(self.reading_session(config), config, *request)
        else:
            super()._read_features_per_fv(config, *request)

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
        """Answer with a compiled request, or by Feast's generic path."""
        choice = (features, registry, project, full_feature_names, include_feature_view_version_metadata)
        response = self._run(config, entity_rows, *choice)
        if response is not None:
            return response
        with self._generic(config, features, entity_rows, registry, project) as positions:
            slow = super().get_online_features(config, from_live_rows(features), entity_rows, *choice[1:])
        return TensorResponse.of_feast(slow, positions)

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
        """:meth:`get_online_features`. Awaits other machines; a thread waits for what is to be applied."""
        choice = (features, registry, project, full_feature_names, include_feature_view_version_metadata)
        if not self.may_wait(config):
            compiled = self._compiled(config, entity_rows, choice)
            if compiled is not None:
                shape, columns, wanted = compiled
                asking = shape.asking(columns, feast_private.online_metrics(), wanted)
                response = await assembly.finish_async(asking)
                if response is not None:
                    return response
            with suppress(assembly.WouldWaitError), options.AtOnce():
                return await self._generic_async(config, entity_rows, *choice)
        return await asyncio.to_thread(self.get_online_features, config, features, entity_rows, *choice[1:])

    async def _generic_async(self, config: RepoConfig, entity_rows: Any, *choice: Any) -> TensorResponse:
        features, registry, project, *_ = choice
        with self._generic(config, features, entity_rows, registry, project) as positions:
            slow = await super().get_online_features_async(config, from_live_rows(features), entity_rows, *choice[1:])
        return TensorResponse.of_feast(slow, positions)

    def _run(self, config: RepoConfig, entity_rows: Any, *choice: Any) -> LazyResponse | None:
        """The response of a compiled request; None if only Feast's own code can answer or refuse the request."""
        compiled = self._compiled(config, entity_rows, choice)
        if compiled is None:
            return None
        shape, columns, wanted = compiled
        return shape.answer(columns, feast_private.online_metrics(), wanted)

    def _compiled(self, config: RepoConfig, entity_rows: Any, choice: tuple[Any, ...]) -> _Compiled | None:
        """A request compiled, its columns, and what it asks for."""
        reads, wanted = self.reads(config), current()
        if reads.services or wanted.pins is not None:
            features, registry, project, *_ = choice
            reads = reads.of(features, wanted.pins, registry, project)
        keys = None if reads.plans is None else key_columns(entity_rows)
        if reads.plans is None or keys is None:
            return None
        names, columns = keys
        try:
            plan = reads.plans.find(*choice)
            shape = None if plan is None else plan.shape(names, wanted.limits)
        except Exception:  # noqa: BLE001 - Feast's own path raises the error again
            return None
        return None if shape is None else (shape, columns, wanted)

    @contextmanager
    def _generic(self, config: RepoConfig, features: Any, *request: Any) -> Iterator[Positions]:
        """Feast's own path, which reads view by view, and does not say for which service.

        :raises WouldWaitError: inside :class:`AtOnce`, if other machines hold some of the rows.
        """
        reads, pins = self.reads(config), current().pins
        if reads.services:
            chosen = reads.of(features, pins)
            pins = Pins(())
            pins.held[reads] = chosen
        with naming_refused_keys(features, *request), collecting() as positions, options.reading_with(pins=pins):
            try:
                yield positions
            except assembly.UnfinishedError:  # The rest of one view is not that of the request.
                raise assembly.WouldWaitError from None

    async def _read_features_per_fv_async(self, config: RepoConfig, *request: Any) -> None:
        """:meth:`_read_features_per_fv`, which never waits."""
        self._read_features_per_fv(config, *request)


class QuorinRemoteOnlineStoreConfig(QuorinOnlineStoreConfig):
    """The keys under ``online_store`` with ``remote``."""


# Its session is of another class: connections instead of segments.
class QuorinRemoteOnlineStore(RemoteStore, QuorinOnlineStore):  # type: ignore[misc]
    """Feature views in the shared memory of another machine, see :mod:`feast_quorin.remote`."""
