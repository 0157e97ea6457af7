"""Every Redis key and script and every SQL table of the control plane and the log; those of loads are in
``load_keys.py``, those of partitions in ``partition_keys.py``.

Redis. All keys begin with the namespace as a hash tag, so that on a cluster a script's keys share a slot and two
deployments can share a server. ``<log>`` is ``{namespace}:<stream key>``, by default ``{quorin}:quorin:wal``; the log
of partition ``p`` of ``P > 1`` is ``{namespace/P/p}:<stream key>``, so that a cluster's masters share the logs.

===========================  ======  ===================================================================
key                          type    holds
===========================  ======  ===================================================================
``{namespace}:schemas``      hash    schema name → the schema as JSON
``{namespace}:beginnings``   hash    schema name → ``<log identity>:<position>`` behind which its entries begin
``{namespace}:dropped``      hash    schema name → ``1`` from when it is dropped until it is stored again
``{namespace}:checks``       hash    schema name → its checks as JSON (:mod:`quorin.engine.checks`)
``{namespace}:loads``        hash    schema name → its open load as JSON (:mod:`quorin.engine.log.open_load`)
``{namespace}:processes``    hash    process → its report as JSON (:mod:`quorin.engine.ops.presence`)
``{namespace}:replicas``     hash    ``<node> <schema name>`` → the position that the replica has applied
``{namespace}:heartbeats``   hash    process or replica → when it was last reported, in ms of the server's clock
``{namespace}:clock``        stream  one entry, whose id is the server's time when it was last read
``{namespace}:identity``     string  a random number that the namespace's segments carry
``{namespace}:partitions``   string  the number of partitions, if it was asked for when the deployment was made
``<log>``                    stream  the entries: ``s`` schema name, ``p`` record (:mod:`quorin.engine.log.record`)
``<log>:identity``           string  the log's identity, created together with the stream
``<log>:trimmed``            string  the last position that was trimmed
``<log>:historian``          string  the holder of the historian's lease, with the lease's time to live
``<log>:historian:token``    string  how often the lease went to another holder
``<log>:dead``               hash    position → record of a dead letter
``<log>:dead:reasons``       hash    position → why it is dead
``{namespace}:current``      hash    schema name → name of its current segment; earlier releases wrote it
===========================  ======  ===================================================================

A stream id ``<ms>-<seq>`` is the position ``ms << 20 | seq``. The identity belongs to the stream: a process that finds
no stream creates both, so a deleted stream shows as another log.

SQLite. One file, ``quorin.db``, holds the same in tables (:data:`SQL_SCHEMA`); positions are growing row numbers.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import astuple, dataclass

from quorin.engine.backend.load_keys import SQL_LOADS, loads_key
from quorin.engine.backend.partition_keys import LUA_ENSURE, partitions_key
from quorin.errors import ConnectionFailedError

DEFAULT_NAMESPACE = "quorin"
DEFAULT_STREAM_KEY = "quorin:wal"

FIELD_SCHEMA = b"s"
FIELD_PAYLOAD = b"p"

MAX_DEAD_LETTERS = 1000
"""How many dead letters a log keeps; beyond it the oldest are removed."""

SEQUENCE_BITS = 20
MAX_SEQUENCE = (1 << SEQUENCE_BITS) - 1


def legacy_current_key(namespace: str) -> str:
    """Hash of schema name to the name of its current segment, which earlier releases wrote and nothing writes now."""
    return f"{{{namespace}}}:current"


def schemas_key(namespace: str) -> str:
    """Hash of schema name to its JSON."""
    return f"{{{namespace}}}:schemas"


def beginnings_key(namespace: str) -> str:
    """Hash of schema name to the log identity and position behind which its entries begin."""
    return f"{{{namespace}}}:beginnings"


def dropped_key(namespace: str) -> str:
    """Hash whose fields are the names of dropped schemas."""
    return f"{{{namespace}}}:dropped"


def checks_key(namespace: str) -> str:
    """Hash of schema name to the JSON of its checks."""
    return f"{{{namespace}}}:checks"


def processes_key(namespace: str) -> str:
    """Hash of process to the JSON of its report."""
    return f"{{{namespace}}}:processes"


def replicas_key(namespace: str) -> str:
    """Hash of node and schema to the position that the node's replica has applied."""
    return f"{{{namespace}}}:replicas"


def heartbeats_key(namespace: str) -> str:
    """Hash of process or replica to the server's time of its last report."""
    return f"{{{namespace}}}:heartbeats"


def clock_key(namespace: str) -> str:
    """A stream of one entry, whose id is the server's time."""
    return f"{{{namespace}}}:clock"


def identity_key(namespace: str) -> str:
    """The random number that identifies the namespace a segment file belongs to."""
    return f"{{{namespace}}}:identity"


@dataclass(frozen=True, slots=True)
class LogKeys:
    """The keys of one log."""

    stream: str
    identity: str
    trimmed: str
    historian: str
    historian_token: str
    dead: str
    dead_reasons: str


def log_keys(namespace: str, stream_key: str) -> LogKeys:
    """The keys of the log named ``stream_key``."""
    stream = f"{{{namespace}}}:{stream_key}"
    return LogKeys(
        stream,
        f"{stream}:identity",
        f"{stream}:trimmed",
        f"{stream}:historian",
        f"{stream}:historian:token",
        f"{stream}:dead",
        f"{stream}:dead:reasons",
    )


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*\Z")
_NAMESPACE_KEYS = (
    legacy_current_key, schemas_key, beginnings_key, dropped_key, checks_key, loads_key, processes_key, replicas_key,
    heartbeats_key, clock_key, identity_key, partitions_key,
)  # fmt: skip
_RESERVED_SUFFIXES = {
    key.rpartition(":")[2] for key in (*(key_of("n") for key_of in _NAMESPACE_KEYS), *astuple(log_keys("n", "s"))[1:])
}


def check_namespace(namespace: str) -> None:
    """:raises ConnectionFailedError: for an invalid namespace."""
    if not isinstance(namespace, str) or not _NAME.match(namespace):
        raise ConnectionFailedError(f"namespace {namespace!r}: expected ASCII letters, digits and '_.:-'")


def check_stream_key(stream_key: str) -> None:
    """:raises ConnectionFailedError: for an invalid name of a log, or one whose keys would collide with others."""
    if not isinstance(stream_key, str) or not _NAME.match(stream_key):
        raise ConnectionFailedError(f"stream key {stream_key!r}: expected ASCII letters, digits and '_.:-'")
    if stream_key.rpartition(":")[2] in _RESERVED_SUFFIXES:
        suffixes = ", ".join(f"{suffix!r}" for suffix in sorted(_RESERVED_SUFFIXES))
        raise ConnectionFailedError(f"stream key {stream_key!r}: must not end in a reserved suffix ({suffixes})")


def fresh_identity() -> int:
    """A random number for a new namespace or log; it is not 0, and fits a signed word."""
    return secrets.randbits(62) + 1


def position_of(stream_id: bytes) -> int:
    """The position of a stream id ``<ms>-<seq>``."""
    milliseconds, _, sequence = stream_id.partition(b"-")
    return int(milliseconds) << SEQUENCE_BITS | int(sequence)


def stream_id_of(position: int) -> str:
    """The stream id of a position."""
    return f"{position >> SEQUENCE_BITS}-{position & MAX_SEQUENCE}"


LUA_IDENTITY = LUA_ENSURE + "return ensure(KEYS[1], KEYS[2], KEYS[3], ARGV[1])"
"""KEYS stream, identity, trimmed, partitions; ARGV a fresh identity. Returns the log's identity."""

LUA_APPEND = (
    LUA_ENSURE
    + """
local known = ensure(KEYS[1], KEYS[2], KEYS[3], ARGV[1])
local limit = tonumber(ARGV[2])
local length = redis.call('XLEN', KEYS[1])
if limit >= 0 and length + (#ARGV - 2) / 2 > limit then return {{}, length, known} end
local ids = {}
for i = 3, #ARGV, 2 do
  local id = redis.call('XADD', KEYS[1], '*', 's', ARGV[i], 'p', ARGV[i + 1])
  local dash = string.find(id, '-', 1, true)
  if tonumber(string.sub(id, dash + 1)) > 1048575 then
    redis.call('XDEL', KEYS[1], id)
    local next_ms = string.format('%.0f', tonumber(string.sub(id, 1, dash - 1)) + 1)
    id = redis.call('XADD', KEYS[1], next_ms .. '-0', 's', ARGV[i], 'p', ARGV[i + 1])
  end
  ids[#ids + 1] = id
end
return {ids, length + #ids, known}
"""
)
"""KEYS stream, identity, trimmed, partitions; ARGV a fresh identity, the limit of entries (-1: none), then schema and
record of each entry. Returns the ids, none if the entries do not fit, the number of entries in the stream afterwards,
and the log's identity."""

_BOUNDS = """
local function bounds_of(stream, trimmed)
  if redis.call('EXISTS', stream) == 0 then return {'0-0', '0-0', '0'} end
  local info = redis.call('XINFO', 'STREAM', stream)
  local bounds = {'0-0', '0-0', redis.call('GET', trimmed) or '0'}
  for i = 1, #info, 2 do
    if info[i] == 'first-entry' and info[i + 1] then bounds[1] = info[i + 1][1] end
    if info[i] == 'last-generated-id' then bounds[2] = info[i + 1] end
  end
  return bounds
end
"""

LUA_BOUNDS = _BOUNDS + "return bounds_of(KEYS[1], KEYS[2])"
"""KEYS stream, trimmed. Returns the first entry's id (0-0: none), the last one ever assigned, the trimmed position."""

LUA_STATE = (
    LUA_ENSURE
    + _BOUNDS
    + """
local known = ensure(KEYS[1], KEYS[2], KEYS[3], ARGV[1])
local state = bounds_of(KEYS[1], KEYS[3])
state[4] = known
for i = 2, #ARGV do state[i + 3] = #redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i]) end
return state
"""
)
"""KEYS stream, identity, trimmed, partitions; ARGV a fresh identity, then ids. Returns what LUA_BOUNDS returns, then
the log's identity, then for each id 1 or 0: whether the log has this entry."""

LUA_LEASE = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] and held ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if held == ARGV[1] then return tonumber(redis.call('GET', KEYS[2]) or redis.call('INCR', KEYS[2])) end
return redis.call('INCR', KEYS[2])
"""
"""KEYS historian, its token; ARGV holder, time to live in ms, the holder to replace ('': none). Returns the token; 0
while another holds the lease. The server's clock decides when it ends."""

LUA_RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""
"""KEYS historian; ARGV holder. Returns 1 if it held the lease."""

LUA_HISTORIAN = "return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}"
"""KEYS historian. Returns the holder of the lease, or nil, and the ms until it ends."""

LUA_TRIM = """
if ARGV[3] ~= '' and (redis.call('GET', KEYS[3]) ~= ARGV[3] or redis.call('GET', KEYS[4]) ~= ARGV[4]) then return -1 end
local gone = redis.call('XTRIM', KEYS[1], 'MINID', ARGV[1])
if gone > 0 then redis.call('SET', KEYS[2], ARGV[2]) end
return gone
"""
"""KEYS stream, trimmed, historian, its token; ARGV the first id that stays, the last position that is removed, holder
and token of the fence ('': none). Returns the number of removed entries, or -1 if the fence is no longer in force."""

LUA_BURY = """
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
local over = redis.call('HLEN', KEYS[1]) - tonumber(ARGV[4])
if over <= 0 then return 0 end
local positions = redis.call('HKEYS', KEYS[1])
table.sort(positions, function(a, b) return #a < #b or (#a == #b and a < b) end)
for i = 1, over do
  redis.call('HDEL', KEYS[1], positions[i])
  redis.call('HDEL', KEYS[2], positions[i])
end
return over
"""
"""KEYS dead, dead reasons; ARGV position, record, reason, the maximum. Returns how many of the oldest were removed."""

LUA_PUT_SCHEMA = """
if ARGV[3] ~= 'always' and (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[4] then return 0 end
if ARGV[3] == 'restore' and redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HDEL', KEYS[2], ARGV[1])
if ARGV[5] ~= '' then redis.call('HSET', KEYS[3], ARGV[1], ARGV[5]) end
return 1
"""
"""KEYS schemas, dropped, beginnings, checks (left alone); ARGV schema name, its JSON, 'always', 'if' or 'restore' (if
it was not dropped), the expected JSON ('': none), the beginning ('': as it is). Returns 1 if the schema was stored."""

LUA_DROP_SCHEMA = """
local stored = redis.call('HGET', KEYS[1], ARGV[1])
if not stored or (ARGV[2] == 'if' and stored ~= ARGV[3]) then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], '1')
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
return 1
"""
"""KEYS schemas, dropped, beginnings, checks; ARGV schema name, 'if' or 'always', the expected JSON. Returns 1 if the
schema was dropped."""

LUA_ANNOUNCE = """
local now = redis.call('XADD', KEYS[3], 'MAXLEN', 1, '*', 't', '')
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
local ms = string.sub(now, 1, string.find(now, '-', 1, true) - 1)
redis.call('HSET', KEYS[2], ARGV[1], ms)
for i = 3, #ARGV, 2 do
  redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 1])
  redis.call('HSET', KEYS[2], ARGV[i], ms)
end
return 1
"""
"""KEYS processes, heartbeats, clock, replicas; ARGV process, its report, then ``<node> <schema>`` and position of each
replica. The id of a new entry is the server's time in ms: a user who may only write to this namespace may add one, but
may not call ``TIME``."""

LUA_HOLD = """
local now = redis.call('XADD', KEYS[2], 'MAXLEN', 1, '*', 't', '')
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[1], ARGV[1], string.sub(now, 1, string.find(now, '-', 1, true) - 1))
return 1
"""
"""KEYS heartbeats, clock, replicas; ARGV ``<node> <schema>`` and the position of one replica."""

LUA_SILENCES = """
local now = redis.call('XADD', KEYS[2], 'MAXLEN', 1, '*', 't', '')
local found = redis.call('HGETALL', KEYS[1])
found[#found + 1] = 'now'
found[#found + 1] = string.sub(now, 1, string.find(now, '-', 1, true) - 1)
return found
"""
"""KEYS heartbeats, clock. Returns process and time of each report, then ``now`` and the time, in ms of the server's
clock."""

SQL_FILE = "quorin.db"
SQL_VERSION = 4
"""``PRAGMA user_version`` of the file. Tables that an older version lacks are added: ``namespaces`` came with version
2, ``beginnings``, ``dropped``, ``heartbeats``, ``replicas`` and ``historians`` with 3, which no longer writes
``current`` and ``trimmers``, and ``checks`` and ``loads`` with 4."""

SQL_SCHEMA = f"""{SQL_LOADS}
CREATE TABLE IF NOT EXISTS schemas (
    namespace TEXT NOT NULL, schema_name TEXT NOT NULL, json TEXT NOT NULL, PRIMARY KEY (namespace, schema_name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS beginnings (
    namespace TEXT NOT NULL, schema_name TEXT NOT NULL, log_identity INTEGER NOT NULL, position INTEGER NOT NULL,
    PRIMARY KEY (namespace, schema_name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dropped (
    namespace TEXT NOT NULL, schema_name TEXT NOT NULL, PRIMARY KEY (namespace, schema_name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checks (
    namespace TEXT NOT NULL, schema_name TEXT NOT NULL, json TEXT NOT NULL, PRIMARY KEY (namespace, schema_name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS processes (
    namespace TEXT NOT NULL, process TEXT NOT NULL, report TEXT NOT NULL, PRIMARY KEY (namespace, process)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS heartbeats (
    namespace TEXT NOT NULL, process TEXT NOT NULL, seconds REAL NOT NULL, PRIMARY KEY (namespace, process)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS replicas (
    namespace TEXT NOT NULL, node TEXT NOT NULL, schema_name TEXT NOT NULL, position INTEGER NOT NULL,
    seconds REAL NOT NULL, PRIMARY KEY (namespace, node, schema_name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS namespaces (
    namespace TEXT NOT NULL PRIMARY KEY, identity INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS logs (
    id INTEGER PRIMARY KEY, namespace TEXT NOT NULL, stream_key TEXT NOT NULL, identity INTEGER NOT NULL,
    last_position INTEGER NOT NULL DEFAULT 0, trimmed INTEGER NOT NULL DEFAULT 0,
    entry_count INTEGER NOT NULL DEFAULT 0, UNIQUE (namespace, stream_key)
);
CREATE TABLE IF NOT EXISTS entries (
    position INTEGER PRIMARY KEY AUTOINCREMENT, log INTEGER NOT NULL, schema_name TEXT NOT NULL, payload BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_by_schema ON entries (log, schema_name, position);
CREATE TABLE IF NOT EXISTS historians (
    log INTEGER NOT NULL PRIMARY KEY, holder TEXT NOT NULL, token INTEGER NOT NULL, since_ms INTEGER NOT NULL,
    until_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dead_letters (
    log INTEGER NOT NULL, position INTEGER NOT NULL, payload BLOB NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (log, position)
);
"""
