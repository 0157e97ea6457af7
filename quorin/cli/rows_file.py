"""Rows in files, as commands take them with ``--from``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from quorin.cli.options import resolve_field

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from quorin.schema import Schema

_FORMATS = {".parquet": "parquet", ".arrow": "ipc", ".feather": "ipc", ".csv": "csv"}


def rows_of(path: Path, schema: Schema) -> tuple[int, Iterator[pa.RecordBatch]]:
    """The number of rows of a file or directory, and its batches with the names of the schema's fields.

    :raises typer.BadParameter: if it cannot be read, or has a column that is no field.
    """
    import pyarrow as pa
    import pyarrow.dataset as ds

    if not path.exists():
        raise typer.BadParameter(f"--from {path}: no such file or directory")
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.suffix in _FORMATS)
    formats = {_FORMATS.get(one.suffix) for one in files}
    if len(formats) != 1 or None in formats:
        expected = ", ".join(_FORMATS)
        raise typer.BadParameter(f"--from {path}: expected a file that ends in {expected}, or a directory of one kind")
    try:
        dataset = ds.dataset([str(one) for one in files], format=formats.pop())
        names = {
            name: name if name in ("entity_id", "event_time_ns") else resolve_field(schema, name)
            for name in dataset.schema.names
        }
        total = dataset.count_rows()
    except (pa.ArrowException, OSError) as error:
        raise typer.BadParameter(f"--from {path} cannot be read: {error}") from error
    batches = dataset.to_batches(batch_size=1 << 16)
    return total, (batch.rename_columns(list(names.values())) for batch in batches if batch.num_rows)
