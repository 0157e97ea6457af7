"""``quorin upgrade``: upgrade a segment to the next version of its schema."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quorin.cli.options import Connection, Namespace, Opened, ShmDir
from quorin.cli.output import Json, add_row, console, print_json, table
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.words import count, duration, size

if TYPE_CHECKING:
    from quorin.evolution import UpgradeResult
    from quorin.schema import Schema


class WaitFor(StrEnum):
    """Where an upgrade must be in force before the command returns."""

    node = "node"
    nodes = "nodes"


def upgrade(
    connection: Connection,
    new: Annotated[str, typer.Argument(help="The new schema: `module:Class`, or a file with its JSON.")],
    old: Annotated[
        str | None,
        typer.Option("--from", help="The schema that the segment must have, in the same form.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    wait_for: Annotated[
        WaitFor, typer.Option("--wait-for", help="Return when this node has upgraded, or when all live nodes have.")
    ] = WaitFor.node,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds without progress before it aborts.")] = 60.0,
    namespace: Namespace = DEFAULT_NAMESPACE,
    shm_dir: ShmDir = None,
    as_json: Json = False,
) -> None:
    """Upgrade the current segment to the next version of its schema while readers and writers continue.

    Fields may be added, widened and dropped. A change that would lose values is refused with the fields' names.
    Upgrade first, then start the producers that write the new version.

    Examples:
        quorin upgrade user_v2.json --dry-run                       # what would change, with rows and bytes
        quorin upgrade user_v2.json --json                          # upgrade, and print the result
        quorin upgrade features.user:UserFeatures --wait-for nodes  # return when every machine or pod serves it

    Exit codes: 0 done, or possible, 1 refused or aborted (nothing has changed) or another node is late, 2 wrong usage.
    """
    from quorin.evolution import upgrade_schema
    from quorin.shm import SegmentRegistry

    wanted = _schema_of(new)
    with Opened(connection, namespace) as backend:
        registry = SegmentRegistry(backend, shm_dir=shm_dir)
        if old is None:
            with registry.open_stored(wanted.__name__) as segment:
                before = segment.schema
        else:
            before = _schema_of(old)
        result = _with_progress(
            lambda progress: upgrade_schema(
                before,
                wanted,
                registry,
                dry_run=dry_run,
                wait_for=wait_for.value,
                timeout_seconds=timeout,
                progress=progress,
            ),
            wanted.__name__,
        )
    if as_json:
        print_json(dataclasses.asdict(result) | {"schema": wanted.__name__, "version": wanted.version})
    else:
        _print(result, before, wanted)


def _print(result: UpgradeResult, old: Schema, new: Schema) -> None:
    shown = table("", "")
    add_row(shown, "schema", f"{new.__name__}, version {old.version} to {new.version}")
    add_row(shown, "rows", count(result.entity_count))
    add_row(shown, "bytes", f"{size(result.old_bytes)} before, {size(result.new_bytes)} after")
    for name in ("added", "widened", "dropped"):
        add_row(shown, name, ", ".join(getattr(result, name)) or "-")
    if result.dry_run:
        add_row(shown, "segment", f"{result.old_segment_name} is unchanged: this was a dry run")
    else:
        add_row(shown, "segment", f"{result.old_segment_name} was replaced by {result.new_segment_name}")
        add_row(shown, "took", duration(result.elapsed_seconds))
    shown.show_header = False
    console().print(shown)


def _with_progress(action: Any, name: str) -> UpgradeResult:
    """Run with a progress bar on stderr, if that is a terminal."""
    from rich.progress import Progress

    out = console(stderr=True)
    with Progress(console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(f"upgrading {name}", total=None)
        result: UpgradeResult = action(lambda done, total: bar.update(task, completed=done, total=max(1, total)))
    return result


def _schema_of(text: str) -> Schema:
    """A schema from an import path, or from a file with its JSON.

    :raises typer.BadParameter: if it is neither. :raises SchemaError: if the JSON is not a schema.
    """
    from quorin.schema import FeatureSchema, schema_from_json

    if Path(text).is_file():
        try:
            return schema_from_json(Path(text).read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"{text} cannot be read: {error}") from error
    module, separator, name = text.partition(":")
    if not separator:
        raise typer.BadParameter(f"expected a file or module:Class, got {text!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise typer.BadParameter(f"{text!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, FeatureSchema) and found is not FeatureSchema):
        raise typer.BadParameter(f"{text!r} must name a subclass of FeatureSchema, got {found!r}")
    return found
