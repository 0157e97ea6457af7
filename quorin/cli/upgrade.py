"""``quorin upgrade``: upgrade a segment to the next version of its schema."""

from __future__ import annotations

import importlib
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quorin.cli.options import Connection, Namespace, Opened, Raw, ShmDir
from quorin.cli.output import Json, add_row, console, print_json, progress_bar, table, worded
from quorin.cli.repository import Names
from quorin.engine.backend.keys import DEFAULT_NAMESPACE
from quorin.engine.words import count, duration, size

if TYPE_CHECKING:
    from quorin.evolution import UpgradeResult
    from quorin.schema import Schema


_CHANGES = "added", "widened", "dropped"


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
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Upgrade a segment to the next version of its schema.

    Readers and writers continue. Fields may be added, widened and dropped. A change that would lose values is refused
    with the fields' names. Upgrade first, then start the producers that write the new version.

    Examples:
        quorin upgrade user_v2.json --dry-run                       # what would change, with rows and bytes
        quorin upgrade user_v2.json --json                          # upgrade, and print the result
        quorin upgrade features.user:UserFeatures --wait-for nodes  # return when every machine or pod serves it

    Exit codes: 0 done, or possible, 1 refused or aborted (nothing has changed) or another node is late, 2 wrong usage.
    """
    from quorin.evolution import upgrade_schema
    from quorin.shm import SegmentRegistry

    wanted = _schema_of(new)
    with Opened(connection, namespace, raw=raw) as backend:
        names = Names.of(backend, raw=raw)
        registry = SegmentRegistry(backend, shm_dir=shm_dir, namespace=namespace)
        if old is None:
            with registry.open_stored(wanted.__name__) as segment:
                before = segment.schema
        else:
            before = _schema_of(old)
        name = names.schema(wanted.__name__)
        with progress_bar(f"upgrading {name}", hidden=as_json) as progress:
            result = upgrade_schema(
                before,
                wanted,
                registry,
                dry_run=dry_run,
                wait_for=wait_for.value,
                timeout_seconds=timeout,
                progress=progress,
            )
    changed = {kind: [names.text(field) for field in getattr(result, kind)] for kind in _CHANGES}
    if as_json:
        print_json({"schema": name, "version": wanted.version} | worded(result) | changed)
    else:
        _print(result, f"{name}, version {before.version} to {wanted.version}", changed)


def _print(result: UpgradeResult, what: str, changed: dict[str, list[str]]) -> None:
    shown = table("", "")
    add_row(shown, "schema", what)
    add_row(shown, "rows", count(result.entity_count))
    add_row(shown, "bytes", f"{size(result.old_bytes)} before, {size(result.new_bytes)} after")
    for kind, fields in changed.items():
        add_row(shown, kind, ", ".join(fields) or "-")
    if result.dry_run:
        add_row(shown, "segment", f"{result.old_segment_name} is unchanged: this was a dry run")
    else:
        add_row(shown, "segment", f"{result.old_segment_name} was replaced by {result.new_segment_name}")
        add_row(shown, "took", duration(result.elapsed_seconds))
    shown.show_header = False
    console().print(shown)


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
