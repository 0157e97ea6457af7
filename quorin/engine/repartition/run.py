"""Take the steps of a growth: look at the control plane and the logs, do what :mod:`plan` says, and look again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from quorin.engine.format.growth import Growth, State
from quorin.engine.format.partition import MAX_PARTITIONS
from quorin.engine.log.open_load import open_loads
from quorin.engine.ops.presence import Process
from quorin.engine.repartition.plan import (
    Begin,
    Close,
    Exchange,
    Reopen,
    Seen,
    ended,
    new_logs,
    next_steps,
    old_logs,
)
from quorin.engine.words import counted
from quorin.errors import PartitionCountError, RepartitionConflictError
from quorin.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from quorin.engine.backend import Backend, Log
    from quorin.engine.repartition.plan import LogName, Step

_log = get_logger(__name__)


def begin(backend: Backend, count: int, stream_keys: Sequence[str]) -> Growth:
    """Begin to grow to ``count`` partitions, or go on with a growth to it that was begun.

    :raises PartitionCountError: if that is not twice the present number.
    :raises RepartitionConflictError: if a load is open, or the growth is being ended.
    """
    present, text = _present(backend)
    growth = Growth.parse(text)
    if growth.state is State.closing and 2 * growth.count == count:
        return growth
    if growth.state is State.ending:
        raise RepartitionConflictError(
            f"the growth to {2 * growth.count} partitions that {growth.coordinator} began is being ended: "
            "`quorin repartition --abort` finishes that"
        )
    if present == count and any(former.count * 2 == count for former in growth.former):
        return growth
    if count != 2 * present or count > MAX_PARTITIONS:
        raise PartitionCountError(
            f"the deployment has {counted(present, 'partition')}, and grows to twice as many at a time, up to "
            f"{MAX_PARTITIONS}: expected {2 * present}, got {count}"
            if 2 * present <= MAX_PARTITIONS
            else f"the deployment has {present} partitions, which is as many as there can be, got {count}"
        )
    begun = growth.begun(present, tuple(dict.fromkeys(stream_keys)), str(Process.this()))
    # In one step with the loads: none begins between the look and the growth.
    if not backend.control.swap_growth(begun.to_json(), expected=text, loads=_committed_loads(backend)):
        return begin(backend, count, stream_keys)
    _log.info("growth_began", partitions=present, to=count)
    return begun


def go_on(backend: Backend, progress: Callable[[int, int], None] | None = None) -> Growth:
    """Finish the growth that is under way, or the ending of one; returns it as it is then. Any process may do it."""
    while True:
        text = backend.control.growth()
        growth = Growth.parse(text)
        if growth.state is State.settled:
            backend.forget_partitions()
            return growth
        seen = look(backend, growth)
        steps = next_steps(growth, seen)
        total, done = len(seen.ends) + len(seen.begun) + 1, steps_done(seen)
        for number, step in enumerate(steps, start=1):
            _take(backend, growth, step, text)
            if progress is not None:
                progress(done + number, total)


def finish(backend: Backend, count: int, log: Log) -> None:
    """Finish the growth that closed a log, one of ``count``: its command may be dead, or has returned, and a replica
    took over that lacked the end of the growth. One that the control plane lacks altogether is begun again, as
    producers may write to its new logs already.

    :raises RepartitionConflictError: if it is to be begun again, and a load is open.
    """
    text = backend.control.growth()
    # In this order: if a growth began since, the exchange finds another text.
    growth, present, closed = Growth.parse(text), backend.control.partition_count() or 1, log.closed_by()
    if growth.state is State.settled and present == count and closed is not None:
        begun = growth.begun(count, closed.stream_keys or (log.stream_key,), str(Process.this()))
        begun = replace(begun, number=max(begun.number, closed.growth + 1))
        if backend.control.swap_growth(begun.to_json(), expected=text, loads=_committed_loads(backend)):
            _log.warning("growth_begun_again", partitions=count, to=2 * count, why="the control plane had lost it")
    go_on(backend)


def _present(backend: Backend) -> tuple[int, str | None]:
    """The number of partitions, and the growth as it is stored at the same moment."""
    while True:
        text = backend.control.growth()
        backend.forget_partitions()
        present = backend.partitions()
        if backend.control.growth() == text:
            return present, text


def end(backend: Backend) -> Growth | None:
    """Undo the growth that is under way, so that the logs take appends again; None if there is none."""
    while True:
        text = backend.control.growth()
        growth = Growth.parse(text)
        ending = ended(growth)
        if ending is None:
            return None
        if ending == growth or backend.control.swap_growth(ending.to_json(), expected=text):
            go_on(backend)
            _log.info("growth_ended", partitions=growth.count)
            return growth


def look(backend: Backend, growth: Growth) -> Seen:
    """The logs of a growth as they are now."""
    old = {name: _old(backend, growth, name).state() for name in old_logs(growth)}
    return Seen(
        ends={name: bounds.last if bounds.is_closed else None for name, (_, bounds) in old.items()},
        begun={name: _new(backend, growth, name).bounds().last for name in new_logs(growth)},
        identities={name: identity for name, (identity, _) in old.items()},
    )


def steps_done(seen: Seen) -> int:
    """How many of the steps of a growth are done."""
    closed = sum(end is not None for end in seen.ends.values())
    return closed if closed < len(seen.ends) else closed + sum(begins > seen.end for begins in seen.begun.values())


def _take(backend: Backend, growth: Growth, step: Step, text: str | None) -> None:
    match step:
        case Close(name, number):
            if _old(backend, growth, name).close_for_appends(number, growth.stream_keys) is None:
                # A growth of this number was ended, which the control plane has lost; or this one was, meanwhile.
                backend.control.swap_growth(replace(growth, number=number + 1).to_json(), expected=text)
        case Reopen(name, number):
            _old(backend, growth, name).reopen_for_appends(number)
        case Begin(name, behind):
            _new(backend, growth, name).begin_behind(behind)
        case Exchange(exchanged, count):
            if backend.control.swap_growth(exchanged.to_json(), expected=text, count=count) and count:
                _log.info("growth_done", partitions=count)


def _old(backend: Backend, growth: Growth, name: LogName) -> Log:
    stream_key, partition = name
    return backend.log(stream_key, partition, of=growth.count)


def _new(backend: Backend, growth: Growth, name: LogName) -> Log:
    stream_key, partition = name
    return backend.log(stream_key, partition, of=2 * growth.count)


def was_ended(growth: Growth, partitions: int) -> RepartitionConflictError:
    """The error of a process whose growth another one has undone."""
    return RepartitionConflictError(
        f"another process has undone the growth to {partitions} partitions; the deployment has {growth.count}"
    )


def _committed_loads(backend: Backend) -> dict[str, str]:
    """The JSON of the loads by schema name. :raises RepartitionConflictError: if one of them is not committed."""
    found = open_loads(backend.control)
    for name, (load, _) in found.items():
        if load.state != "committed":
            raise RepartitionConflictError(
                f"{load.coordinator} is replacing {name!r}: wait for its end, or end it with `quorin replace {name} "
                "--abort`"
            )
    return {name: load.to_json() for name, (load, _) in found.items()}
