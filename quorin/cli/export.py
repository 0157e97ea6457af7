"""``quorin export``: the rows of a segment as a Parquet, Arrow or CSV file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quorin.cli.options import Connection, Fields, Namespace, Opened, Prefix, Raw, ShmDir, resolve_field, resolve_schema
from quorin.cli.output import Json, print_json, progress_bar, written_whole
from quorin.cli.repository import Names
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.words import counted, size

if TYPE_CHECKING:
    import pyarrow as pa

_FORMATS = (".parquet", ".arrow", ".csv")


def export(
    connection: Connection,
    schema: Annotated[str, typer.Argument(help="The schema or feature view.")],
    file: Annotated[Path, typer.Argument(help="The file to write: .parquet, .arrow or .csv; replaced if it exists.")],
    prefix: Prefix = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="The most rows to write.", show_default=False)
    ] = None,
    field: Fields = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    shm_dir: ShmDir = None,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Write the rows of a segment to a file.

    The columns are `entity_id`, `event_time_ns` and the fields. The file gets its name when it is whole, and only its
    owner may read it. Writers and readers continue.

    Examples:
        quorin export driver_stats driver_stats.parquet
        quorin export UserFeatures users.csv --prefix user_ --field ltv_score

    Exit codes: 0 written, 1 the segment is missing or the file cannot be written, 2 wrong usage.
    """
    from quorin.assembly import scan
    from quorin.shm import SegmentRegistry

    check_format(file)
    with Opened(connection, namespace, raw=raw) as backend:
        names, name = Names.of(backend, raw=raw), resolve_schema(backend, schema)
        registry = SegmentRegistry(backend, shm_dir=shm_dir, namespace=namespace)
        with registry.open_stored(name) as segment, progress_bar(str(file), hidden=as_json) as progress:
            fields = [resolve_field(segment.schema, requested) for requested in field or []] or None
            scanned, shown = scan(segment, prefix, limit, fields), names.fields(segment.schema)
            rows = write_batches(scanned, shown, file, len(segment), progress)
    if as_json:
        print_json({"schema": names.schema(name), "file": str(file), "rows": rows, "bytes": file.stat().st_size})
    else:
        typer.echo(f"{file}: {counted(rows, 'row')}, {size(file.stat().st_size)}")


def check_format(file: Path) -> None:
    """:raises typer.BadParameter: for a file whose name does not say a format that can be written."""
    if file.suffix not in _FORMATS:
        raise typer.BadParameter(f"expected a file that ends in {', '.join(_FORMATS)}, got {str(file)!r}")


def write_batches(scanned: pa.RecordBatchReader, shown: dict[str, str], file: Path, total: int, progress: Any) -> int:
    """Write batches to a file that gets its name when it is whole; returns the number of rows.

    :raises typer.BadParameter: for lists in a CSV file.
    """
    import pyarrow as pa
    from pyarrow.types import is_nested

    columns = [one.with_name(shown.get(one.name, one.name)) for one in scanned.schema]
    nested = [one.name for one in columns if is_nested(one.type)]
    if nested and file.suffix == ".csv":
        hint = "choose other fields, or write .parquet"
        raise typer.BadParameter(f"CSV has no lists, as in {', '.join(nested)}: {hint}")
    rows = 0
    with (
        written_whole(file) as pending,
        pending.open("wb") as out,
        _writer(file.suffix, out, pa.schema(columns)) as writer,
    ):
        for batch in scanned:
            writer.write_batch(batch.rename_columns([one.name for one in columns]))
            rows += batch.num_rows
            progress(rows, max(rows, total))
    return rows


def _writer(suffix: str, out: Any, schema: pa.Schema) -> Any:
    """A context manager that writes batches to a file in the format of a suffix."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if suffix == ".parquet":
        return pyarrow.parquet.ParquetWriter(out, schema, compression="zstd")
    if suffix == ".csv":
        return pyarrow.csv.CSVWriter(out, schema)
    return pa.ipc.new_file(out, schema)
