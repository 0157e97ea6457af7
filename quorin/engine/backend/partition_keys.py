"""The keys, the script and the table of a deployment's partitions, and how a log is created.

The count is in ``{namespace}:partitions``, and is never changed. With one partition, which has no count unless it was
asked for, the log is ``{namespace}:<stream key>``. With more, that of partition ``p`` of ``P`` is
``{namespace/P/p}:<stream key>``: a namespace has no ``/``, logs spread over a cluster's slots, and those of another
count can be beside them. The control plane stays in ``{namespace}``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def partitions_key(namespace: str) -> str:
    """The deployment's number of partitions; without it, 1."""
    return f"{{{namespace}}}:partitions"


def log_tag(namespace: str, count: int, partition: int) -> str:
    """The hash tag of the log of a partition, and in SQLite its namespace."""
    return namespace if count == 1 else f"{namespace}/{count}/{partition}"


def beginnings_text(beginnings: Sequence[tuple[int, int]]) -> str:
    """Where a schema begins in each log, as log identity and position, for the hash ``beginnings``."""
    return ",".join(f"{identity}:{position}" for identity, position in beginnings)


def parse_beginning(text: str, partition: int) -> tuple[int, int] | None:
    """Log identity and position of one partition; None if the text has no such partition."""
    parts = text.split(",")
    if partition >= len(parts):
        return None
    identity, _, position = parts[partition].partition(":")
    return int(identity), int(position)


LUA_SETTLE = """
local stored = redis.call('GET', KEYS[1])
if stored then return stored end
if redis.call('EXISTS', unpack(KEYS, 2)) > 0 then return '1' end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
"""
"""KEYS partitions, schemas, logs that a deployment of one partition has; ARGV a count, which is stored if the
deployment is new. Returns the count in force."""

LUA_ENSURE = """
local function ensure(stream, identity, trimmed, fresh)
  if redis.call('EXISTS', stream) == 0 then
    local count = KEYS[5] and redis.call('GET', KEYS[5]) or '1'
    if count ~= '1' then error('PARTITIONS ' .. count .. ' ') end
    redis.call('DEL', trimmed)
    redis.call('XGROUP', 'CREATE', stream, 'new', '$', 'MKSTREAM')
    redis.call('XGROUP', 'DESTROY', stream, 'new')
    redis.call('SET', identity, fresh)
    return fresh
  end
  local known = redis.call('GET', identity)
  if not known then
    redis.call('SET', identity, fresh)
    return fresh
  end
  return known
end
"""
"""The beginning of scripts that create a log which is not there. KEYS[5], of the only log of a deployment, is its
number of partitions: the log is not created if there are several, whatever the caller had read before."""

SQL_PARTITIONS = """
CREATE TABLE IF NOT EXISTS partitions (
    namespace TEXT NOT NULL PRIMARY KEY, count INTEGER NOT NULL
) WITHOUT ROWID
"""
SQL_VERSION_PARTITIONED = 5
"""``PRAGMA user_version`` of a file with this table, which earlier releases refuse. It has the table only once a
number of partitions was asked for, and this version once that is several."""
