"""The Parquet files of a served log: ``<url>/day=2024-05-01/<time>-<random>.parquet``, a row for each row of a view.

=============== ======================= ==============================================================================
column          type                    holds
=============== ======================= ==============================================================================
``request``     int64                   the number of the request in this file; a request is in one file
``request_id``  string                  the caller's id of the request, null without
``time``        timestamp[ns, UTC]      when the request was answered
``row``         int32                   the number of the row in the request
``view``        string                  the feature view or schema
``entity_id``   string                  as it is stored in the segment
``position``    int64                   the log position that wrote the row that was read; 0 where there was none
``event_time``  int64                   its event time in nanoseconds; 0 where there was none
``state``       uint8                   1 served, 0 no row
``description`` string                  the views and fields of the request, see :mod:`quorin.engine.served.description`
``data``        binary                  on the first row of a request with request data or computed features: an Arrow
                                        IPC stream with a column ``request:<name>`` or ``computed:<name>`` for each
=============== ======================= ==============================================================================

The positions and the history give the values back. A file has its name when it is whole.
"""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from quorin.engine.history.storage import Storage, VanishedError, decoded
from quorin.errors import CorruptHistoryError, ServedLogUnavailableError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

SCHEMA = pa.schema(
    [
        pa.field("request", pa.int64(), False),
        pa.field("request_id", pa.string()),
        pa.field("time", pa.timestamp("ns", "UTC"), False),
        pa.field("row", pa.int32(), False),
        pa.field("view", pa.string()),
        pa.field("entity_id", pa.string(), False),
        pa.field("position", pa.int64(), False),
        pa.field("event_time", pa.int64(), False),
        pa.field("state", pa.uint8(), False),
        pa.field("description", pa.string()),
        pa.field("data", pa.binary()),
    ]
)
READ_SCHEMA = pa.schema([field for field in SCHEMA if field.name != "description"])
READ_SCHEMA = READ_SCHEMA.insert(9, pa.field("description", pa.dictionary(pa.int32(), pa.string())))
_DICTIONARIES = ["row", "view", "position", "state", "description"]
_ENCODINGS = {
    "request": "DELTA_BINARY_PACKED",
    "request_id": "DELTA_BYTE_ARRAY",
    "time": "DELTA_BINARY_PACKED",
    "entity_id": "DELTA_BYTE_ARRAY",
    "event_time": "BYTE_STREAM_SPLIT",
    "data": "DELTA_LENGTH_BYTE_ARRAY",
}
_GROUP_ROWS = 1 << 20


class ServedFiles:
    """The files at a directory or URL.

    :raises ServedLogUnavailableError: for a URL that pyarrow does not support; from all methods, if the files are
        unavailable.
    """

    def __init__(self, url: str | os.PathLike[str], filesystem: Any = None) -> None:
        self._storage = Storage(url, filesystem, what="served log", error=ServedLogUnavailableError)

    @property
    def address(self) -> str:
        """The URL without keys or passwords."""
        return self._storage.address

    @property
    def identity(self) -> str:
        """A short name of the place, the same in all processes."""
        return blake2b(self._storage.folder("").encode(), digest_size=6).hexdigest()

    @property
    def is_local(self) -> bool:
        """Whether it is a directory."""
        return self._storage.is_local

    def new_path(self) -> str:
        """The path of a file that is to be written."""
        now = time.time_ns()
        day = datetime.fromtimestamp(now // 10**9, UTC).strftime("day=%Y-%m-%d")
        return self._storage.folder(day, f"{now:020}-{secrets.token_hex(8)}.parquet")

    def write(self, path: str, rows: pa.Table) -> None:
        """Write a file, whole or not at all."""

        def fill(sink: Any) -> None:
            pq.write_table(
                rows,
                sink,
                row_group_size=_GROUP_ROWS,
                compression="zstd",
                compression_level=6,
                use_dictionary=_DICTIONARIES,
                column_encoding=_ENCODINGS,
                write_statistics=["time", "view"],
                write_page_checksum=True,
            )

        self._storage.write(path, fill)

    def has(self, path: str) -> bool:
        """Whether a file is there."""
        try:
            self._storage.open(path).close()
        except VanishedError:
            return False
        return True

    def paths(self) -> list[str]:
        """All files, oldest first."""
        files = (info.path for info in self._storage.files(self._storage.folder()))
        return sorted(path for path in files if path.endswith(".parquet"))

    def exists(self) -> bool:
        """Whether the directory exists; in an object store, whether it has objects."""
        return self._storage.exists()

    def read(self, path: str) -> pa.Table:
        """The rows of a file; ``description``, which is long and the same in many rows, as a dictionary.

        :raises CorruptHistoryError: if it is damaged, or no file of a served log.
        """

        def decode(source: pa.NativeFile) -> Iterator[pa.Table]:
            file = pq.ParquetFile(source, page_checksum_verification=True, read_dictionary=["description"])
            yield file.read(use_threads=False)

        (rows,) = decoded(self._storage, path, decode, "is damaged")
        missing = [field.name for field in SCHEMA if field.name not in rows.schema.names]
        if missing:
            raise CorruptHistoryError(f"{path} is no file of a served log: it has no columns {missing}")
        return rows.select(SCHEMA.names).cast(READ_SCHEMA).unify_dictionaries()
