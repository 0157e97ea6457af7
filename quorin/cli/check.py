"""``quorin check``: whether rows pass the checks of their schema."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quorin.cli.options import Connection, Namespace, Opened, Raw, ShmDir, known_schema, resolve_field
from quorin.cli.output import Json, add_row, console, print_json, progress_bar, table
from quorin.cli.repository import Names
from quorin.cli.rows_file import rows_of
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.words import count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import pyarrow as pa

    from quorin.engine.checks.declared import Check
    from quorin.engine.checks.report import Report
    from quorin.schema import Schema
    from quorin.shm import Segment, SegmentRegistry


ChecksFile = Annotated[
    Path | None,
    typer.Option(
        "--checks",
        help="A YAML or JSON file with checks, in place of those of the schema.",
        exists=True,
        dir_okay=False,
        show_default=False,
    ),
]


def check(
    connection: Connection,
    schema: Annotated[str, typer.Argument(help="The schema or feature view.")],
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Check the rows of this file or directory (.parquet, .arrow, .feather, .csv) beside what is served. "
            "Default: check what is served.",
            exists=True,
            show_default=False,
        ),
    ] = None,
    checks: ChecksFile = None,
    save: Annotated[
        bool,
        typer.Option("--save", help="Only keep the checks of --checks with the schema; an empty list removes them."),
    ] = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    shm_dir: ShmDir = None,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Check the rows that are served, or those of a file.

    Checks what is served on this machine, or a file beside it. Nothing is served or changed. A file has the columns
    `entity_id`, optionally `event_time_ns`, and the fields. Its rows are loaded as a new generation would be, so of
    several rows of an entity the newest counts, and memory for a second generation is needed.

    Examples:
        quorin check driver_stats                                 # what is served, by the view's own checks
        quorin check driver_stats --from new.parquet              # a file, before it is loaded
        quorin check UserFeatures --from new.csv --checks checks.yaml --json
        quorin check UserFeatures --checks checks.json --save     # keep checks with the schema

    Exit codes: 0 all checks passed, 1 there is no segment, or the file cannot be read, 2 wrong usage, 3 a check failed.
    """
    from quorin.engine.checks.declared import checks_to_json
    from quorin.engine.checks.stored import checks_of
    from quorin.shm import SegmentRegistry

    if save and checks is None:
        raise typer.BadParameter("--save: expected --checks with it")
    with Opened(connection, namespace, raw=raw) as backend:
        stored = known_schema(backend, schema)
        names = Names.of(backend, raw=raw)
        wanted = checks_of(stored, backend.control) if checks is None else checks_in(checks, stored)
        if save:
            backend.control.put_checks(stored.__name__, checks_to_json(wanted) if wanted else None)
            typer.echo(f"{names.schema(stored.__name__)} has {count(len(wanted))} checks")
            return
        if not wanted:
            raise typer.BadParameter(f"{schema} has no checks: declare them beside the schema, or give --checks")
        registry = SegmentRegistry(backend, shm_dir=shm_dir, namespace=namespace)
        shown, fields = names.schema(stored.__name__), names.fields(stored)
        report = _report(registry, stored, wanted, source, shown, hidden=as_json)
    if as_json:
        found = report.as_dict()
        named = [
            one | {"field": fields[one["field"]]} if one.get("field") in fields else one for one in found["checks"]
        ]
        print_json(found | {"schema": shown, "checks": named})
    else:
        _print(report, fields)
    if not report.passed:
        raise typer.Exit(3)


def _report(
    registry: SegmentRegistry,
    stored: Schema,
    checks: tuple[Check, ...],
    source: Path | None,
    shown: str,
    *,
    hidden: bool,
) -> Report:
    from quorin.engine.checks.run import run
    from quorin.errors import SegmentNotFoundError

    name = stored.__name__
    if source is None:
        with registry.open_stored(name) as segment, progress_bar(f"checking {shown}", hidden=hidden) as progress:
            return run(checks, segment.schema, _scanned(segment, progress))
    with (
        progress_bar(f"loading {source}", hidden=hidden) as progress,
        _loaded(registry, stored, source, progress) as candidate,
        ExitStack() as opened,
    ):
        served: Iterable[pa.RecordBatch] = ()
        with suppress(SegmentNotFoundError):
            served = _scanned(opened.enter_context(registry.open_stored(name)), progress)
        return run(checks, stored, _scanned(candidate, progress), served)


def _scanned(segment: Segment, progress: Callable[[int, int], None]) -> Iterator[pa.RecordBatch]:
    from quorin.assembly import scan

    rows, total = 0, len(segment)
    for batch in scan(segment):
        yield batch
        rows += batch.num_rows
        progress(rows, max(rows, total))


@contextmanager
def _loaded(
    registry: SegmentRegistry, stored: Schema, source: Path, progress: Callable[[int, int], None]
) -> Iterator[Segment]:
    """A segment with the rows of a file, which nothing points to, and which goes at the end."""
    from quorin import layout
    from quorin.errors import SegmentNotFoundError

    total, batches = rows_of(source, stored)
    sizes = {"capacity": max(1, total)}
    with suppress(SegmentNotFoundError), registry.open_stored(stored.__name__) as served:
        sizes["max_id_bytes"] = served.current_view().layout.max_id_bytes
    segment = registry.create(stored, **sizes, set_current=False)
    try:
        rows = 0
        for batch in batches:
            layout.insert_many(segment, batch)
            rows += batch.num_rows
            progress(rows, max(rows, total))
        yield segment
    finally:
        registry.discard(segment)


def checks_in(path: Path, stored: Schema) -> tuple[Check, ...]:
    """The checks in a file, their fields as the engine names them.

    :raises typer.BadParameter: if it cannot be read. :raises SchemaError: naming a check that does not fit.
    """
    from quorin.engine.checks.declared import check_checks, checks_from_values

    found = [
        one if one.field_name is None else one.of_field(resolve_field(stored, one.field_name))
        for one in checks_from_values(_values_in(path))
    ]
    return check_checks(stored.__name__, found, stored.fields)


def _values_in(path: Path) -> Any:
    """The content of a JSON or YAML file."""
    try:
        text = path.read_text("utf-8")
        return json.loads(text) if path.suffix == ".json" else _yaml(path, text)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _yaml(path: Path, text: str) -> Any:
    """:raises ValueError: if the text is not YAML."""
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise typer.BadParameter(f"{path} cannot be read without PyYAML: install it, or write JSON") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _print(report: Report, shown: dict[str, str]) -> None:
    from quorin.engine.checks.report import example_value, figure

    listed = table("check", "field", "result", "found", "served", "allowed")
    for result in report.results:
        state = "not checked" if result.note else "passed" if result.passed else "FAILED"
        field = result.check.field_name or ""
        allowed = result.note or result.allowed
        found = "" if result.note else figure(result.found)
        served = "" if result.served is None else figure(result.served)
        add_row(listed, result.check.kind, shown.get(field, field), state, found, served, allowed)
        for entity_id, value in () if result.passed else result.examples:
            add_row(listed, "", "", "", entity_id, "", example_value(value))
    console().print(listed)
    console().print(f"{count(report.rows)} rows checked, {count(report.served_rows)} served", markup=False)
