"""Reads that ask for rows at least as new as a token: they wait, looking at shared memory only."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING

import numpy as np

from quorin.engine.format import segment as fmt
from quorin.engine.format.log_positions import PARTITION_DTYPE
from quorin.engine.log.token import Token
from quorin.engine.memory.closed import closed_log
from quorin.errors import NotYetAppliedError, TokenError

if TYPE_CHECKING:
    from collections.abc import Callable

    from quorin.engine.memory.closed import ClosedLog
    from quorin.engine.memory.view import SegmentView
    from quorin.shm import Segment

DEFAULT_TIMEOUT_MS = 100.0
_LOG_IDENTITY, _POSITION = fmt.partition_offset("log_identity"), fmt.partition_offset("position")
_SPIN_SECONDS = 0.001
_FIRST_HELP_SECONDS, _HELP_FACTOR = 0.005, 2


def wait_for(
    segment: Segment,
    token: Token | str,
    *,
    timeout_ms: float = DEFAULT_TIMEOUT_MS,
    apply: Callable[[], object] | None = None,
    helps_at_once: bool = False,
) -> None:
    """Wait until a segment shows everything up to a token: what reads do with ``at_least``.

    ``apply`` is called while the segment lacks the token, after some milliseconds and then ever more rarely, or from
    the start with ``helps_at_once``: it may apply the log where no other process does.

    Of several partitions, each that is held must show what the token has of its log.

    A token of another log than the segment's is refused: at once if it is older than what the segment shows, else at
    the time-out, as the segment may be about to follow a log that has taken the place of its own.

    :raises NotYetAppliedError: after ``timeout_ms``, with the position and the applied one. :raises TokenError: for a
        token of another log, or no token. :raises ValueError: for a ``timeout_ms`` that is no number from 0.
    """
    asked = Token.of(token)
    if isinstance(timeout_ms, bool) or not isinstance(timeout_ms, int | float) or not 0 <= timeout_ms < math.inf:
        raise ValueError(f"timeout_ms: expected a number of milliseconds from 0, got {timeout_ms!r}")
    if has_applied(segment, asked):
        return
    started, help_at = time.monotonic(), 0.0 if helps_at_once else _FIRST_HELP_SECONDS
    while (waited := time.monotonic() - started) * 1000 < timeout_ms:
        if apply is not None and waited >= help_at:
            apply()
            help_at = max(_FIRST_HELP_SECONDS, _HELP_FACTOR * waited)
        else:
            pause(waited)
        if has_applied(segment, asked):
            return
    _raise_late(segment, asked, timeout_ms)


def has_applied(segment: Segment, token: Token) -> bool:
    """Whether a segment shows everything up to a token.

    :raises TokenError: if the segment follows another log, and has applied later positions of that.
    """
    view = segment.current_view()
    if view.layout.partition_count > 1:
        return lacking_part(segment, token) is None
    followed, position = _applied_at(view.mapping.address)
    is_applied = True
    for identity, needed in token.parts:
        if identity == followed and needed <= position:
            continue
        if followed not in (0, identity) and needed <= position:
            raise _of_other_log(segment, token, followed)
        is_applied = False
    return is_applied


def lacking_part(segment: Segment, token: Token) -> tuple[int, int] | None:
    """Of a segment of several partitions: the first position of a token that it does not show yet, and the one that it
    shows of the same log, 0 if it has not met that; None if it shows all. Partitions that are not held don't count.
    A log that was closed when the deployment grew is applied to its end.

    :raises TokenError: for a log that is no partition's, once all partitions have applied later positions, and for a
        position behind the end of a closed log.
    """
    view = segment.current_view()
    partitions = view.header["partitions"][: view.layout.partition_count]
    for identity, needed in token.parts:
        [*found] = np.flatnonzero(partitions["log_identity"] == identity).tolist()
        if not found and (closed := closed_log(view, identity)) is not None:
            if closed.partitions and closed.position < needed:
                raise _behind_the_end(segment, token, closed)
            continue
        if not found:
            if _are_known_beyond(view, needed):
                raise _of_other_log(segment, token, 0)
            return needed, 0
        if found[0] not in view.partitioning.held:
            continue
        followed, position = _applied_at(view.mapping.address + PARTITION_DTYPE.itemsize * found[0])
        applied = position if followed == identity else 0
        if applied < needed:
            return needed, applied
    return None


def _are_known_beyond(view: SegmentView, position: int) -> bool:
    """Whether the logs of all partitions are known, and later positions of all that are held are applied."""
    partitions = view.header["partitions"]
    held = sorted(view.partitioning.held)
    identities = partitions["log_identity"][: view.layout.partition_count]
    return bool(identities.all()) and position <= int(partitions["position"][held].min())


def _applied_at(part: int) -> tuple[int, int]:
    """The identity of a partition's log, and the position up to which it is applied, at the address of its part of the
    header.
    """
    while True:
        followed = _load_acquire(part + _LOG_IDENTITY)
        position = _load_acquire(part + _POSITION)
        # The position may be of a log that took the place of this one meanwhile.
        if _load_acquire(part + _LOG_IDENTITY) == followed:
            return followed, position


def _load_acquire(address: int) -> int:
    """Stands in for the kernel until the first wait has loaded it."""
    global _load_acquire
    from quorin.engine.kernels import load_acquire as _load_acquire

    return _load_acquire(address)


def pause(waited_seconds: float) -> None:
    """Let others work, for the longer the longer the wait has been going on."""
    if waited_seconds < _SPIN_SECONDS:
        # Most waits end before the shortest sleep would. The first call lets other threads run, the second
        # other processes that need this processor, such as the consumer.
        time.sleep(0)
        os.sched_yield()
    else:
        time.sleep(min(waited_seconds / 20, 0.002))


def _raise_late(segment: Segment, token: Token, timeout_ms: float) -> None:
    if segment.partitioning.count > 1:
        return _raise_part_late(segment, token, timeout_ms)
    followed = segment.log_identity
    if followed and any(identity != followed for identity, _ in token.parts):
        raise _of_other_log(segment, token, followed)
    raise NotYetAppliedError(segment.schema.__name__, int(token), timeout_ms, applied=segment.position)


def _raise_part_late(segment: Segment, token: Token, timeout_ms: float) -> None:
    lacking = lacking_part(segment, token)
    if lacking is None:  # It was applied this moment.
        return
    view, (needed, applied) = segment.current_view(), lacking
    if not applied and _are_known_beyond(view, 0):
        identities = view.header["partitions"]["log_identity"]
        if any(identity not in identities for identity, _ in token.parts):
            raise _of_other_log(segment, token, 0)
    raise NotYetAppliedError(segment.schema.__name__, needed, timeout_ms, applied=applied)


def _of_other_log(segment: Segment, token: Token, followed: int) -> TokenError:
    count = segment.partitioning.count
    logs = f"which is {followed:016x}" if count == 1 else f"which are those of {count} partitions"
    return TokenError(
        f"token {token.text} is of another log than {segment.schema.__name__!r} follows on this node, {logs} "
        f"at position {segment.position}: it is another deployment's, or the log was wiped since"
    )


def _behind_the_end(segment: Segment, token: Token, closed: ClosedLog) -> TokenError:
    return TokenError(
        f"token {token.text} is behind the end of a log that was closed when the deployment grew, which "
        f"{segment.schema.__name__!r} has applied up to {closed.position} on this node: what it names was lost, or is "
        "moved to the logs of now; write it again"
    )
