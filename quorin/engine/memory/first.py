"""The first generation of a segment: its sizes, and its file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quorin.engine.format import segment as fmt
from quorin.engine.format.name import SegmentName
from quorin.engine.format.partition import Partitioning
from quorin.engine.memory.access import Access
from quorin.engine.memory.generations import MIN_HEAP_BYTES
from quorin.engine.memory.view import SegmentView

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from quorin.schema import Schema

_HEAP_BYTES_PER_VALUE = 32


def first_sizes(schema: Schema, capacity: int, max_id_bytes: int, prefault_rows: int | None) -> dict[str, Any]:
    """The sizes of a new segment. :raises ValueError: for a number out of range."""
    _check_range("capacity", capacity, 1, fmt.MAX_ROWS // 2)
    _check_range("max_id_bytes", max_id_bytes, 1, fmt.MAX_ID_BYTES)
    if prefault_rows is not None:
        _check_range("prefault_rows", prefault_rows, 0, fmt.MAX_ROWS)
    sizes = {"capacity": capacity, "max_id_bytes": max_id_bytes, "heap_bytes": first_heap_bytes(schema, capacity)}
    return {**sizes, "prefault_rows": prefault_rows}


def first_generation(
    directory: Path, schema: Schema, owner: int, group: int | None, partitioning: Partitioning, sizes: dict[str, Any]
) -> SegmentView:
    """A new, empty segment file of a line of its own, readable for a group."""
    name, access = SegmentName.first(schema.__name__), Access.for_group(group)
    return SegmentView.create(directory, name, schema, owner=owner, access=access, partitioning=partitioning, **sizes)


def held_partitions(held: Iterable[int] | str | None, count: int) -> Partitioning:
    """The partitions to hold of ``count``: numbers, or a text such as ``0-7``; None is all.

    :raises PartitionCountError: for partitions that there are not.
    """
    if held is None:
        return Partitioning.all(count)
    return Partitioning.parse(held, count) if isinstance(held, str) else Partitioning(count, frozenset(held))


def first_heap_bytes(schema: Schema, capacity: int) -> int:
    """An estimate that growth corrects: a short value in every variable-size field."""
    return MIN_HEAP_BYTES + _HEAP_BYTES_PER_VALUE * capacity * sum(field.is_variable for field in schema.fields)


def _check_range(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")
