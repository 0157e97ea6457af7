"""Which generations a segment has, and how a reader pins one of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from quorin.engine.format.name import SegmentName
from quorin.engine.memory import file as mapping
from quorin.engine.memory.kept import kept_files, pinned_files
from quorin.engine.memory.lineage import attach_newest
from quorin.engine.memory.pins import Pin, is_pinned, remove_unpinned
from quorin.engine.memory.view import SegmentView
from quorin.errors import (
    GenerationNotFoundError,
    InvalidPinError,
    PinLimitError,
    SegmentConflictError,
    SegmentNotFoundError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from quorin.engine.memory.kept import Limits
    from quorin.schema import Schema

CURRENT = "current"
_VERSION = re.compile(r"v([1-9][0-9]*)\Z")
_MAX_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of a schema's segment that has a file on this node.

    ``state`` is ``current``, ``kept``, or ``replaced``: no longer current, and there because it is pinned. ``until_ns``
    (ns since the epoch) is when it was replaced, ``reason`` why it is kept (``replace`` or ``upgrade``), both only of
    kept ones. ``position`` is the log position up to which it has rows. A pinned one is not removed.
    """

    schema_name: str
    number: int
    schema_version: int
    state: Literal["current", "kept", "replaced"]
    is_pinned: bool
    rows: int
    bytes: int
    position: int
    until_ns: int | None
    reason: str | None
    path: Path

    def drop(self) -> bool:
        """Remove its file, unless it is pinned; whether it is gone. :raises SegmentConflictError: if it is current."""
        if self.state == CURRENT:
            raise SegmentConflictError(f"generation {self.number} of {self.schema_name!r} is current")
        return remove_unpinned(self.path)


def generations(directory: Path, current: SegmentView) -> list[Generation]:
    """The generations of the line of a segment's ``current`` one, newest first."""
    name = current.segment_name
    found = [_generation(current.path, current.header, "current", None, None)]
    for sibling in name.siblings(directory):
        header = mapping.read_header(directory / str(sibling)) if sibling < name else None
        if header is not None and int(header["epoch"]):
            found.append(_generation(directory / str(sibling), header, "replaced", None, None))
    for kept in kept_files(directory, name):
        header = mapping.read_header(kept.path)
        if header is not None:
            found.append(_generation(kept.path, header, "kept", kept.at_ns, kept.reason))
    return sorted(found, key=lambda generation: generation.number, reverse=True)


def pin_in_force(current_view: Callable[[], SegmentView], limits: Limits) -> tuple[SegmentView, Pin]:
    """Pin the generation that ``current_view`` returns, which may be another one at each call.

    :raises SegmentNotFoundError: if its file is gone and no other took its place.
    :raises PinLimitError: if too many others are pinned.
    """
    for _ in range(_MAX_ATTEMPTS):
        view = current_view()
        pin = Pin.try_acquire(view.path)
        if pin is not None:
            _check_limit(pin, view.path, view, limits)
            return view, pin
    raise SegmentNotFoundError(f"segment {view.name!r} cannot be pinned: its file was removed from {view.path.parent}")


def pin_generation(
    directory: Path, named: str, schema: Schema | None, wanted: int | str, limits: Limits
) -> tuple[SegmentView, Pin]:
    """Pin a generation of the segment ``named``, and read it through ``schema`` (None: its own).

    ``wanted`` is the number of a generation, ``"v3"`` for the newest with version 3 of the schema, or ``"current"``.

    :raises GenerationNotFoundError: if there is none such. :raises PinLimitError: if too many others are pinned.
    :raises InvalidPinError: for another ``wanted``.
    """
    matches = _matcher(wanted)
    for _ in range(_MAX_ATTEMPTS):
        current = attach_newest(directory, named, None, writable=False)
        there = generations(directory, current)
        match = next((one for one in there if matches(one)), None)
        if match is None:
            raise GenerationNotFoundError(
                f"{current.stored.__name__} has no generation {wanted!r} on this node; there are "
                + ", ".join(f"{one.number} (v{one.schema_version}, {one.state})" for one in there)
            )
        # A file that is renamed or removed between two of these steps is looked for again.
        if (pin := Pin.try_acquire(match.path)) is not None:
            _check_limit(pin, match.path, current, limits)
            try:
                return SegmentView.attach(match.path, None, writable=False).through(schema).staying(), pin
            except SegmentNotFoundError:
                pin.release()
    raise SegmentNotFoundError(f"generation {wanted!r} of {named!r} was replaced {_MAX_ATTEMPTS} times in a row")


def check_pin(wanted: object) -> int | str:
    """A valid ``wanted`` of ``pin_generation``. :raises InvalidPinError: for any other."""
    if isinstance(wanted, int) and not isinstance(wanted, bool) and wanted > 0:
        return wanted
    if isinstance(wanted, str):
        if wanted == CURRENT or _VERSION.match(wanted):
            return wanted
        if wanted.isascii() and wanted.isdigit() and int(wanted) > 0:
            return int(wanted)
    raise InvalidPinError(
        f"expected a generation such as 17, a schema version such as 'v3', or 'current', got {wanted!r}"
    )


def _matcher(wanted: int | str) -> Callable[[Generation], bool]:
    checked = check_pin(wanted)
    if isinstance(checked, int):
        return lambda one: one.number == checked
    if checked == CURRENT:
        return lambda one: one.state == CURRENT
    return lambda one: one.schema_version == int(checked[1:])


def _check_limit(pin: Pin, path: Path, view: SegmentView, limits: Limits) -> None:
    """Refuse a pin beyond the limit. The pin is held before others are counted, so that of two processes that pin at
    the same time at most one goes on at the limit.
    """
    others = [other for other in pinned_files(path.parent, view.segment_name) if other != path]
    if len(others) >= limits.pinned:
        pin.release()
        own, *numbers = (SegmentName.parse(file.name.partition(".")[0]).generation for file in (path, *others))
        raise PinLimitError(
            f"{view.stored.__name__}: generation {own} cannot be pinned: {len(others)} other generations are, which is "
            f"the limit (max_pinned): {', '.join(map(str, sorted(numbers)))}"
        )


def _generation(path: Path, header: Any, state: Any, until_ns: int | None, reason: str | None) -> Generation:
    name = SegmentName.parse(header["name"].decode())
    return Generation(
        schema_name=name.schema,
        number=name.generation,
        schema_version=int(header["schema_version"]),
        state=state,
        is_pinned=is_pinned(path),
        rows=int(header["entity_count"]),
        bytes=int(header["file_bytes"]),
        position=int(header["partitions"]["position"].max()),
        until_ns=until_ns,
        reason=reason,
        path=path,
    )
