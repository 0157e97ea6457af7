"""The provider: ``provider: feast_quorin.QuorinProvider`` in ``feature_store.yaml``, optional.

Feast's own provider, except that frames go to the log as Arrow tables, not as ``Value`` protos.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast.infra.passthrough_provider import PassthroughProvider

from feast_quorin.convert.locating import REFUSALS, Rows
from feast_quorin.online_store import QuorinOnlineStore
from feast_quorin.write.tables import map_columns

if TYPE_CHECKING:
    import pandas as pd


class QuorinProvider(PassthroughProvider):
    """``provider: local`` with faster ``push`` and ``write_to_online_store``.

    With any online store other than Quorin it behaves as Feast's provider.
    """

    def ingest_df(self, feature_view: Any, df: pd.DataFrame, field_mapping: dict[str, str] | None = None) -> None:
        """Write a frame to the online store.

        :raises ValueError: for a missing column. :raises InvalidRowError: for a key, time or value that the view cannot
            hold; the text names view, row, join keys and feature.
        """
        store = self.online_store
        if not isinstance(store, QuorinOnlineStore):
            super().ingest_df(feature_view, df, field_mapping)
            return
        source = getattr(feature_view, "batch_source", None)
        mapping = field_mapping if source is None else source.field_mapping
        if store.write_plain_row(self.repo_config, feature_view, df, mapping):
            return
        # As in Feast, an index becomes columns named after its levels.
        table = map_columns(_arrow_table(feature_view.name, df), mapping)
        store.write_table(self.repo_config, feature_view, table, None)

    async def ingest_df_async(
        self, feature_view: Any, df: pd.DataFrame, field_mapping: dict[str, str] | None = None
    ) -> None:
        """:meth:`ingest_df` in a thread, because an append waits for a disk or a network."""
        if not isinstance(self.online_store, QuorinOnlineStore):
            await super().ingest_df_async(feature_view, df, field_mapping)
            return
        await asyncio.to_thread(self.ingest_df, feature_view, df, field_mapping)


def _arrow_table(view: str, frame: pd.DataFrame) -> pa.Table:
    """A frame as an Arrow table.

    :raises InvalidRowError: for a column that has no Arrow type, such as a mix of strings and numbers; the text names
        view, column, and the first row that differs.
    """
    try:
        return pa.Table.from_pandas(frame)
    except REFUSALS:
        rows = Rows(view, lambda _: {})
        for name in frame.columns:
            rows.convert(f"column {name!r}", frame[name], partial(pa.array, from_pandas=True))
        raise
