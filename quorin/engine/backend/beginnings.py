"""Where the life of a schema begins: in the log, or in the log of each partition."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorin.engine.backend.protocols import Beginning

if TYPE_CHECKING:
    from quorin.engine.backend.protocols import Backend, Beginnings


def beginnings_of(backend: Backend, schema_name: str) -> Beginnings:
    """Where a schema begins now; None at the start of the log, or of all logs. There are as many as the deployment had
    partitions when that was stored, which may be fewer than it has now.

    :raises ConnectionFailedError: if the control plane cannot be reached.
    """
    control, count = backend.control, backend.partitions()
    first = control.beginnings().get(schema_name)
    if count == 1 or first is None:
        return first
    parts = [first]
    for partition in range(1, count):
        if (part := control.beginnings(partition).get(schema_name)) is None:
            break
        parts.append(part)
    return first if len(parts) == 1 else tuple(parts)


def beginning_in(beginnings: Beginnings, partition: int | None) -> Beginning | None:
    """Where a schema begins in one log; ``partition`` None is the only one. None if that was stored when there were
    fewer partitions: then it began before this log.
    """
    if beginnings is None or isinstance(beginnings, Beginning):
        return beginnings
    number = partition or 0
    return beginnings[number] if number < len(beginnings) else None
