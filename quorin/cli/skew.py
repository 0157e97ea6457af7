"""``quorin skew``: what is served against what the offline source says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quorin.cli.options import Connection, Fields, Namespace, Opened, Raw, ShmDir, existing_history, resolve_schema
from quorin.cli.output import Json, add_row, console, plain, print_json, progress_bar, table, written_whole
from quorin.cli.repository import Names, readable_schemas, repository
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.words import duration, moment

if TYPE_CHECKING:
    from quorin.offline import Sides, SkewReport

_KINDS = ("different", "stale", "missing", "extra", "expired")


Sample = Annotated[int, typer.Option("--sample", "-n", min=0, help="Entities from each side; 0 for all of them.")]
AsOf = Annotated[
    datetime | None,
    typer.Option(help="The time that the offline source is read as of (UTC). Default: now.", show_default=False),
]
Tolerance = Annotated[float, typer.Option(min=0, help="How much floats may differ, relative to the offline value.")]
AbsoluteTolerance = Annotated[
    float, typer.Option(min=0, help="How much floats may differ besides, as in numpy.isclose.")
]
Threshold = Annotated[
    float, typer.Option(min=0, max=1, help="The share of entities that may be skewed without exit code 1.")
]
SkewOffline = Annotated[
    str | None,
    typer.Option(
        "--offline",
        envvar="QUORIN_OFFLINE",
        help="The history to compare with: a directory or URL. Default: in a Feast repository its offline store.",
        show_default=False,
    ),
]
Html = Annotated[Path | None, typer.Option(help="Write a page with a picture and examples.", show_default=False)]
Textfile = Annotated[
    Path | None,
    typer.Option(help="Write metrics for node_exporter's textfile collector (.prom).", show_default=False),
]


def skew(
    context: typer.Context,
    connection: Connection,
    views: Annotated[
        list[str] | None, typer.Argument(help="Schemas or feature views. Default: all.", show_default=False)
    ] = None,
    sample: Sample = 10_000,
    as_of: AsOf = None,
    tolerance: Tolerance = 1e-5,
    absolute_tolerance: AbsoluteTolerance = 1e-8,
    threshold: Threshold = 0.0,
    field: Fields = None,
    offline: SkewOffline = None,
    html: Html = None,
    textfile: Textfile = None,
    examples: Annotated[int, typer.Option(min=0, help="Examples of each kind and field.")] = 3,
    seed: Annotated[int | None, typer.Option(help="Draw the same sample again.", show_default=False)] = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    shm_dir: ShmDir = None,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Compare served values with those of the offline source.

    Counts missing, extra, stale and different values by feature. In a Feast repository the offline source is Feast's
    offline store, read point-in-time as training data is, TTL included. With `--offline` it is the history of the log.
    Rows that are written meanwhile, or that the offline source cannot have yet, are set apart and are no skew.

    Examples:
        quorin skew                                           # all views of the Feast repository here
        quorin skew driver_stats --sample 100000 --html skew.html
        quorin skew UserFeatures --offline data/history --tolerance 1e-3 --threshold 0.001
        quorin skew driver_stats --offline data/history --as-of 2026-05-01T00:00:00 --json

    Exit codes: 0 no more than the threshold, 1 more (what is over it is named on stderr) or failed, 2 wrong usage.
    """
    from quorin.offline import compare

    here = None if offline is not None else _repository(context)
    options: dict[str, Any] = {"rtol": tolerance, "atol": absolute_tolerance, "examples": examples, "seed": seed}
    as_of_ns, reports = _nanoseconds(as_of), []
    with (
        _of_feast(here, as_of_ns, views, field)
        if offline is None
        else _of_history(connection, offline, namespace, shm_dir, as_of_ns, views, field, raw=raw)
    ) as sides:
        for one in sides:
            with progress_bar(one.name, hidden=as_json) as progress:
                reports.append(compare(one, sample=sample or None, progress=progress, **options))
    _show(reports, threshold, as_json=as_json)
    _write(reports, html, textfile)
    over = [f"{report.name}: {name}" for report in reports for name in report.exceeded(threshold)]
    if over:
        typer.echo(f"skewed by more than {threshold:g} of the entities: {', '.join(over)}", err=True)
        raise typer.Exit(1)


def _repository(context: typer.Context) -> Any:
    """The Feast repository here, if the connection is its own.

    :raises typer.BadParameter: if there is none.
    """
    source = context.get_parameter_source("connection")
    is_named = source is None or source.name in ("COMMANDLINE", "ENVIRONMENT")
    here = None if is_named else repository()
    if here is None:
        raise typer.BadParameter("give --offline, the history to compare with, or run it in a Feast repository")
    return here


def _nanoseconds(as_of: datetime | None) -> int | None:
    return None if as_of is None else int(as_of.replace(tzinfo=UTC).timestamp() * 1000) * 10**6


@contextmanager
def _of_history(
    connection: str,
    offline: str,
    namespace: str,
    shm_dir: Path | None,
    as_of_ns: int | None,
    views: list[str] | None,
    requested: list[str] | None,
    *,
    raw: bool,
) -> Iterator[Iterator[Sides]]:
    """The segments of schemas, each with its history."""
    import time

    from quorin.cli.options import resolve_field
    from quorin.engine.skew.sides import HistorySides
    from quorin.shm import SegmentRegistry

    store = existing_history(offline)
    with Opened(connection, namespace, raw=raw) as backend:
        names = Names.of(backend, raw=raw)
        schemas = [resolve_schema(backend, view) for view in views or []] or list(readable_schemas(backend))
        registry = SegmentRegistry(backend, shm_dir=shm_dir, namespace=namespace)

        def sides() -> Iterator[Sides]:
            for name in schemas:
                with registry.open_stored(name) as segment:
                    shown = names.fields(segment.schema)
                    fields = [resolve_field(segment.schema, one) for one in requested or []] or list(shown)
                    as_of = time.time_ns() if as_of_ns is None else as_of_ns
                    one = HistorySides(
                        segment, store, as_of_time_ns=as_of, fields={field: shown[field] for field in fields}
                    )
                    one.name = names.schema(name)
                    yield one

        yield sides()


@contextmanager
def _of_feast(
    here: Any, as_of_ns: int | None, views: list[str] | None, fields: list[str] | None
) -> Iterator[Iterator[Sides]]:
    """The views of a Feast repository, each with Feast's offline store."""
    yield here.skew_sides(views, fields, as_of_ns)


def _show(reports: list[SkewReport], threshold: float, *, as_json: bool) -> None:
    if as_json:
        shown = [{**report.to_dict(), "exceeded": report.exceeded(threshold)} for report in reports]
        print_json({"threshold": threshold, "views": shown})
        return
    out = console()
    for report in reports:
        rows = ", ".join(f"{count:,} {kind}" for kind, count in report.rows.items() if count) or "no entities"
        out.print(f"{report.name} as of {moment(report.as_of_time_ns)}: {rows}", soft_wrap=True, markup=False)
        if report.staleness_seconds:
            late = ", ".join(f"{name} {duration(seconds)}" for name, seconds in report.staleness_seconds.items())
            out.print(f"  stale by {late}", soft_wrap=True)
        skewed = [one for one in report.fields if one.skewed]
        if skewed:
            listed = table("field", *_KINDS, "share", "example: entity", "served", "offline")
            for one in skewed:
                first = one.examples[0] if one.examples else None
                cells = ("", "", "") if first is None else (first.entity_id, _cell(first.served), _cell(first.offline))
                share = f"{one.skewed / max(report.compared, 1):.3%}"
                add_row(listed, one.name, *(f"{one.counts[kind]:,}" for kind in _KINDS), share, *cells)
            out.print(listed)


def _cell(value: Any) -> str:
    text = "null" if value is None else str(plain(value))
    return text if len(text) <= 40 else text[:39] + "…"


def _write(reports: list[SkewReport], html: Path | None, textfile: Path | None) -> None:
    from quorin.offline import skew_page

    if html is not None:
        page = skew_page([report.to_dict() for report in reports])
        with written_whole(html) as pending:
            pending.write_text(page, "utf-8")
    if textfile is not None:
        from quorin.engine.skew.textfile import write_textfile

        write_textfile(reports, textfile)
