"""The generations of one segment: finding the newest one in force, and removing those that it has replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorin.engine.format.name import SegmentName, is_same_line
from quorin.engine.memory import file as mapping
from quorin.engine.memory.kept import unlink_kept
from quorin.engine.memory.pins import remove_unpinned
from quorin.engine.memory.view import SegmentView
from quorin.errors import CorruptSegmentError, SegmentNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from quorin.schema import Schema


def attach_newest(directory: Path, name: str, schema: Schema | None, *, writable: bool) -> SegmentView:
    """Attach the segment ``name`` or what took its place; if its file is gone already, the newest of its line."""
    while True:
        parsed = SegmentName.parse(name)
        try:
            view = SegmentView.attach(directory / name, None, writable=writable)
        except SegmentNotFoundError:
            view = _newest_in_force(directory, parsed, writable=writable)
        if (successor := view.successor_name) is None:
            return view.through(schema)
        name = successor


def attach_if_there(directory: Path, name: str | None, *, writable: bool = False) -> SegmentView | None:
    """The newest generation of the segment ``name``, read through its own schema; None for no name, or if the file
    is gone or damaged.
    """
    if name is None:
        return None
    try:
        return attach_newest(directory, name, None, writable=writable)
    except (SegmentNotFoundError, CorruptSegmentError):
        return None


def newest(view: SegmentView, *, writable: bool) -> SegmentView:
    """The newest successor of a view, read through the same schema; the view itself if it has none."""
    successor = view.successor_name
    return view if successor is None else attach_newest(view.path.parent, successor, view.schema, writable=writable)


def _newest_in_force(directory: Path, name: SegmentName, *, writable: bool) -> SegmentView:
    for sibling in reversed(name.siblings(directory)):
        if sibling > name:
            view = SegmentView.attach(directory / str(sibling), None, writable=writable)
            if view.was_in_force:
                return view
    raise SegmentNotFoundError(f"segment {str(name)!r} is current, but there is no such file in {directory}")


def unlink_older_generations(view: SegmentView) -> None:
    """Remove the files that a generation has replaced, and those that writers left that died before their flip; pinned
    ones stay, and so do those that are kept, which have other names.
    """
    directory = view.path.parent
    for name in view.segment_name.siblings(directory):
        if name < view.segment_name:
            remove_unpinned(directory / str(name))


def unlink_line(view: SegmentView) -> None:
    """Remove a generation's file, and those of all older ones, kept and pinned ones too: pinned readers keep the memory
    alone.
    """
    directory = view.path.parent
    for name in view.segment_name.siblings(directory):
        if name < view.segment_name:
            mapping.unlink(directory / str(name))
    unlink_kept(directory, view.segment_name)
    mapping.unlink(view.path)


def is_older_generation(name: str, newer: str) -> bool:
    """Whether two texts name generations of one segment, ``name`` the older one."""
    return is_same_line(name, newer) and name < newer
