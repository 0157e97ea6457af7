"""The parts of the online store that differ if its rows are on another machine, behind ``quorin serve``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from feast_quorin.remote.session import RemoteSession
from feast_quorin.views import stored_view
from feast_quorin.write import rows as writing
from quorin.logging import get_logger

if TYPE_CHECKING:
    import pyarrow as pa
    from feast.repo_config import RepoConfig

    from feast_quorin.remote.response import RemoteResponse

_log = get_logger(__name__)


class RemoteStore:
    """Requests for features are answered by the server. What it cannot answer goes Feast's generic path here, which
    reads view by view through the server, and so raises the same errors as over local segments.

    Rows are converted, and refused, here; the server appends them to its log, and waits as its own settings say.
    """

    _remote: RemoteSession | None = None

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[Any],
        tables_to_keep: Sequence[Any],  # noqa: ARG002 - Feast's signature
        entities_to_delete: Sequence[Any],  # noqa: ARG002
        entities_to_keep: Sequence[Any],  # noqa: ARG002
        partial: bool,  # noqa: ARG002
    ) -> None:
        """``feast apply`` changes no segment from here: the machine that has them applies too."""
        removed = [table.name for table in tables_to_delete]
        advice = "run `feast apply` where the segments are"
        _log.warning("segments_not_changed", remote=config.online_store.remote, removed=removed, advice=advice)

    def teardown(self, config: RepoConfig, tables: Sequence[Any], entities: Sequence[Any]) -> None:  # noqa: ARG002
        """``feast teardown`` removes no segment from here."""
        advice = "run `feast teardown` where the segments are"
        _log.warning("segments_not_removed", remote=config.online_store.remote, advice=advice)

    def online_write_batch(
        self,
        config: RepoConfig,
        table: Any,
        data: Sequence[writing.FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows. Returns when they are applied or logged, as the server's ``wait`` says."""
        view, session = stored_view(config, table), self._session_for(config)
        for first, chunk in writing.chunks(data):
            for batch, partial in writing.chunk_batches(view, chunk, first):
                session.write(view, batch, partial=partial)
            if progress is not None:
                progress(len(chunk))

    def write_table(
        self, config: RepoConfig, table: Any, rows: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Write an Arrow table with the view's columns; faster than :meth:`online_write_batch`, returns as it does."""
        view, session = stored_view(config, table), self._session_for(config)
        for batch in writing.table_batches(view, table, rows):
            session.write(view, batch, partial=False)
            if progress is not None:
                progress(batch.num_rows)

    def write_plain_row(self, *_: Any) -> bool:
        """False: a frame of one row is a table like any other."""
        return False

    async def online_read_async(self, *arguments: Any, **options: Any) -> list[Any]:
        """``online_read`` in a thread, because it waits for the network."""
        return await asyncio.to_thread(self.online_read, *arguments, **options)  # type: ignore[attr-defined]

    async def get_online_features_async(self, *arguments: Any, **options: Any) -> Any:
        """``get_online_features`` in a thread, because it waits for the network."""
        return await asyncio.to_thread(self.get_online_features, *arguments, **options)  # type: ignore[attr-defined]

    async def initialize(self, config: RepoConfig) -> None:
        """Read the files that the settings name. The first request connects."""
        self._session_for(config)

    async def close(self) -> None:
        """Release connections. The next use connects anew."""
        self._remote = None

    def session(self, config: RepoConfig) -> RemoteSession:
        """The connections of this process."""
        return self._session_for(config)

    def reading_session(self, config: RepoConfig) -> RemoteSession:
        """:meth:`session`: the server reads from what is pinned."""
        return self._session_for(config)

    def registry(self, config: RepoConfig) -> NoReturn:
        """:raises ValueError: as there are no segments here."""
        raise ValueError(f"expected an online store with segments, got remote: {config.online_store.remote}")

    def _nearest(self, config: RepoConfig, *_: Any) -> NoReturn:
        """:raises NotImplementedError: as there are no segments to search."""
        raise NotImplementedError(f"remote: {config.online_store.remote} searches no documents: search on its machine")

    def _run(
        self,
        config: RepoConfig,
        entity_rows: Any,
        features: Any,
        registry: Any,  # noqa: ARG002 - the server's counts
        project: str,  # noqa: ARG002
        full_names: bool,
        with_versions: bool,
    ) -> RemoteResponse | None:
        """The server's answer; None if Feast's own code must answer or refuse the request."""
        session = self._session_for(config)
        return session.answer(features, entity_rows, full_names=full_names, with_versions=with_versions)

    def _session_for(self, config: RepoConfig) -> RemoteSession:
        """The connections of this process. A forked child must not use its parent's."""
        session = self._remote
        if session is None or session.pid != os.getpid():
            session = self._remote = RemoteSession(config.online_store, config.repo_path, config.project)
        return session
