"""Event and created times: Feast's datetimes as integer nanoseconds since the epoch, and back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from operator import attrgetter
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]

from quorin.errors import InvalidRowError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SECOND_NS = 1_000_000_000
_RANGE = range(-(2**63) + 1, 2**63)  # NumPy and pandas take the smallest number for no time.
BOUNDS = "from 1677-09-21 00:12:43.145225 to 2262-04-11 23:47:16.854775 UTC"
"""What 64 bits of nanoseconds hold, to the microsecond, as errors say it."""

_ZONES = {type(None), timezone, ZoneInfo}
"""Time zones of which it can be told at once whether their offsets are whole seconds."""


def to_ns(time: Any) -> int:
    """Nanoseconds of a datetime, exact to its microsecond (a pandas ``Timestamp``: to its nanosecond); naive means UTC.

    :raises InvalidRowError: for no time (``None``, ``NaT``), or one outside :data:`BOUNDS`.
    """
    if not is_time(time):
        raise InvalidRowError(f"expected a time, got {time!r}")
    aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    nanoseconds = (aware - _EPOCH) // _MICROSECOND * 1000 + getattr(time, "nanosecond", 0)
    if nanoseconds not in _RANGE:
        raise InvalidRowError(f"expected a time {BOUNDS}, got {time}")
    return nanoseconds


def to_ns_column(times: Sequence[Any]) -> pa.Array:
    """What :func:`to_ns` gives for each of many times, int64.

    :raises InvalidRowError: as there.
    """
    if _suit_arrow(times):
        with suppress(pa.ArrowInvalid):  # Out of range: which one is, and the error, is found below.
            return pa.array(times, pa.timestamp("us", "UTC")).cast(pa.timestamp("ns", "UTC")).view(pa.int64())
    return pa.array([to_ns(time) for time in times], pa.int64())


def _suit_arrow(times: Sequence[Any]) -> bool:
    """Whether Arrow takes all the times as :func:`to_ns` does.

    Subclasses of ``datetime``, such as pandas' ``Timestamp``, may know more than microseconds, and Arrow cuts offsets
    from UTC to seconds.
    """
    if set(map(type, times)) != {datetime}:
        return False
    zone_of = attrgetter("tzinfo")
    if not set(map(type, map(zone_of, times))) <= _ZONES:
        return False
    return not any(zone.utcoffset(None).microseconds for zone in set(map(zone_of, times)) if type(zone) is timezone)


def to_ns_or_null_column(times: Sequence[Any]) -> pa.Array:
    """The same with nulls where there is no time (``None``, ``NaT``).

    :raises InvalidRowError: for a time outside :data:`BOUNDS`.
    """
    return pa.array([to_ns(time) if is_time(time) else None for time in times], pa.int64())


def is_time(time: Any) -> bool:
    """Whether this is a datetime, and not pandas' ``NaT``, the one that differs from itself."""
    return isinstance(time, datetime) and time == time


def to_datetime(nanoseconds: int) -> datetime:
    """An aware datetime in UTC, cut to the microsecond."""
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)


def to_timestamp(nanoseconds: int) -> Timestamp:
    """A protobuf timestamp, exact to the nanosecond."""
    seconds, nanos = divmod(nanoseconds, _SECOND_NS)
    return Timestamp(seconds=seconds, nanos=nanos)
