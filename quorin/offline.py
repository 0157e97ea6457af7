"""The history: every row that went through the log, in Parquet files, for training reads and cold starts.

See ``docs/history.md`` for the layout and the promises. Importing this loads pyarrow.
"""

from __future__ import annotations

from quorin.engine.history.last_values import last_values
from quorin.engine.history.store import ParquetDatasetStore
from quorin.errors import CorruptHistoryError, EmptyDatasetError, HistoryUnavailableError

__all__ = ["CorruptHistoryError", "EmptyDatasetError", "HistoryUnavailableError", "ParquetDatasetStore", "last_values"]
