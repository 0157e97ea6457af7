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
_RANGE = range(-(2**63) + 1, 2**63)  # NumPy and pandas use the smallest number for "not a time".
BOUNDS = "from 1677-09-21 00:12:43.145225 to 2262-04-11 23:47:16.854775 UTC"
"""The range of 64-bit nanoseconds, to the microsecond, for error texts."""

_ZONES = {type(None), timezone, ZoneInfo}
"""Types of time zones for which it is cheap to check that offsets are whole seconds."""


def to_ns(time: Any) -> int:
    """Nanoseconds since the epoch, exact to the microsecond of a datetime or the nanosecond of a pandas ``Timestamp``.
    Naive times are UTC.

    :raises InvalidRowError: for a value that is not a time (``None``, ``NaT``), or a time outside :data:`BOUNDS`.
    """
    if not is_time(time):
        raise InvalidRowError(f"expected a time, got {time!r}")
    aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    nanoseconds = (aware - _EPOCH) // _MICROSECOND * 1000 + getattr(time, "nanosecond", 0)
    if nanoseconds not in _RANGE:
        raise InvalidRowError(f"expected a time {BOUNDS}, got {time}")
    return nanoseconds


def to_ns_column(times: Sequence[Any]) -> pa.Array:
    """:func:`to_ns` of many times, int64.

    :raises InvalidRowError: as :func:`to_ns`.
    """
    if _arrow_is_exact(times):
        with suppress(pa.ArrowInvalid):  # One is out of range: to_ns() raises the error for it.
            return pa.array(times, pa.timestamp("us", "UTC")).cast(pa.timestamp("ns", "UTC")).view(pa.int64())
    return pa.array([to_ns(time) for time in times], pa.int64())


def _arrow_is_exact(times: Sequence[Any]) -> bool:
    """Whether Arrow converts all the times as :func:`to_ns` does.

    Subclasses of ``datetime``, such as pandas' ``Timestamp``, may be more precise than microseconds, and Arrow
    truncates UTC offsets to seconds.
    """
    if set(map(type, times)) != {datetime}:
        return False
    zone_of = attrgetter("tzinfo")
    if not set(map(type, map(zone_of, times))) <= _ZONES:
        return False
    return not any(zone.utcoffset(None).microseconds for zone in set(map(zone_of, times)) if type(zone) is timezone)


def to_ns_or_null_column(times: Sequence[Any]) -> pa.Array:
    """:func:`to_ns_column` with nulls for values that are not a time (``None``, ``NaT``).

    :raises InvalidRowError: for a time outside :data:`BOUNDS`.
    """
    return pa.array([to_ns(time) if is_time(time) else None for time in times], pa.int64())


def is_time(time: Any) -> bool:
    """Whether this is a datetime other than pandas' ``NaT``, which does not equal itself."""
    return isinstance(time, datetime) and time == time


def to_datetime(nanoseconds: int) -> datetime:
    """An aware datetime in UTC, truncated to the microsecond."""
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)


def to_timestamp(nanoseconds: int) -> Timestamp:
    """A protobuf timestamp, exact to the nanosecond."""
    seconds, nanos = divmod(nanoseconds, _SECOND_NS)
    return Timestamp(seconds=seconds, nanos=nanos)
