"""The history: every row that went through the log, in Parquet files, for training reads and cold starts.

See ``docs/history.md`` for the layout and the promises. Importing this loads pyarrow.
"""

from __future__ import annotations

from quorin.engine.history.last_values import last_values
from quorin.engine.history.store import ParquetDatasetStore
from quorin.engine.skew.compare import compare, skew
from quorin.engine.skew.page import skew_page
from quorin.engine.skew.report import FieldSkew, SkewExample, SkewReport
from quorin.engine.skew.sides import SideRows, Sides
from quorin.errors import CorruptHistoryError, EmptyDatasetError, HistoryUnavailableError

__all__ = [
    "CorruptHistoryError",
    "EmptyDatasetError",
    "FieldSkew",
    "HistoryUnavailableError",
    "ParquetDatasetStore",
    "SideRows",
    "Sides",
    "SkewExample",
    "SkewReport",
    "compare",
    "last_values",
    "skew",
    "skew_page",
]
