"""The keys, scripts and tables of growths and closed logs; :mod:`quorin.engine.backend.keys` has all others.

A log that is closed refuses every append in the server itself: its stream's last id is the highest one there can be.
``<log>:closed`` has the last id that an entry had in ``last``, in ``by`` and ``ended`` the numbers of the growths that
closed the log, and that were ended last, and in ``names`` the names of the logs that the growth closes, as JSON.
"""

from __future__ import annotations

from quorin.engine.backend.partition_keys import LUA_ENSURE, SQL_VERSION_PARTITIONED


def growth_key(namespace: str) -> str:
    """The JSON of the last growth (:mod:`quorin.engine.repartition.plan`)."""
    return f"{{{namespace}}}:growth"


LUA_SWAP_GROWTH = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[2] then return 0 end
if ARGV[4] ~= '' then
  if redis.call('HLEN', KEYS[3]) ~= tonumber(ARGV[4]) then return 0 end
  for i = 5, #ARGV, 2 do
    if redis.call('HGET', KEYS[3], ARGV[i]) ~= ARGV[i + 1] then return 0 end
  end
end
redis.call('SET', KEYS[1], ARGV[1])
if ARGV[3] ~= '' then redis.call('SET', KEYS[2], ARGV[3]) end
return 1
"""
"""KEYS growth, partitions, loads; ARGV the JSON, the expected JSON ('': none), the number of partitions ('': as it is),
the number of expected loads ('': any), schema name and JSON of each of them. Returns 1 if the growth was stored."""

LUA_CLOSE = (
    LUA_ENSURE
    + """
ensure(KEYS[1], KEYS[2], KEYS[3], ARGV[1])
if tonumber(ARGV[2]) <= tonumber(redis.call('HGET', KEYS[4], 'ended') or 0) then return false end
local last = redis.call('HGET', KEYS[4], 'last')
if last then return last end
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then last = info[i + 1] end
end
redis.call('HSET', KEYS[4], 'last', last, 'by', ARGV[2], 'names', ARGV[3])
redis.call('XSETID', KEYS[1], '18446744073709551615-18446744073709551615')
return last
"""
)
"""KEYS stream, identity, trimmed, closed; ARGV a fresh identity, the growth's number, the names of its logs as JSON.
Returns the last id of the log, which is closed now; nothing if the growth, or a later one, was ended."""

LUA_REOPEN = """
local ended = tonumber(redis.call('HGET', KEYS[2], 'ended') or 0)
redis.call('HSET', KEYS[2], 'ended', string.format('%.0f', math.max(ended, tonumber(ARGV[1]))))
local last, by = unpack(redis.call('HMGET', KEYS[2], 'last', 'by'))
if not last or tonumber(by) > tonumber(ARGV[1]) then return 0 end
redis.call('HDEL', KEYS[2], 'last', 'by', 'names')
redis.call('XSETID', KEYS[1], last)
return 1
"""
"""KEYS stream, closed; ARGV the number of the growth that is ended. Returns 1 if the log was closed by it."""

LUA_CUT = """
if not redis.call('HGET', KEYS[2], 'last') then return 0 end
local gone = 0
while true do
  local found = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], ARGV[2], 'COUNT', 500)
  if #found == 0 then break end
  for _, entry in ipairs(found) do gone = gone + redis.call('XDEL', KEYS[1], entry[1]) end
end
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
redis.call('HSET', KEYS[2], 'last', newest[1] and newest[1][1] or ARGV[3])
return gone
"""
"""KEYS stream, closed; ARGV the id behind which entries are removed, the last of these, the id that was trimmed last.
Does nothing unless the log is closed, which ends at its newest entry then. Returns the number of removed entries."""

_LUA_LAST_ID = (
    LUA_ENSURE
    + """
local function before(one, other)
  local ms, dash = string.match(one, '(%d+)-(%d+)')
  local other_ms, other_dash = string.match(other, '(%d+)-(%d+)')
  ms, other_ms = tonumber(ms), tonumber(other_ms)
  return ms < other_ms or (ms == other_ms and tonumber(dash) < tonumber(other_dash))
end
local known = ensure(KEYS[1], KEYS[2], KEYS[3], ARGV[1])
local info, last_id = redis.call('XINFO', 'STREAM', KEYS[1]), nil
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then last_id = info[i + 1] end
end
"""
)

LUA_BEGIN_BEHIND = (
    _LUA_LAST_ID
    + """
if before(last_id, ARGV[2]) then
  redis.call('XSETID', KEYS[1], ARGV[2])
  if redis.call('XLEN', KEYS[1]) == 0 then redis.call('SET', KEYS[3], ARGV[3]) end
end
return known
"""
)
"""KEYS stream, identity, trimmed, closed (left alone); ARGV a fresh identity, the id and position behind which a log
without entries begins, and one that has some goes on. Returns the log's identity."""

LUA_SKIP_TO = (
    _LUA_LAST_ID
    + """
if before(last_id, ARGV[2]) then redis.call('XSETID', KEYS[1], ARGV[2]) end
return known
"""
)
"""KEYS stream, identity, trimmed, closed (left alone); ARGV a fresh identity, the id that all later entries come after.
Returns the log's identity."""

SQL_GROWTH = "CREATE TABLE IF NOT EXISTS growth (namespace TEXT NOT NULL PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID"

SQL_CLOSED = (
    """
    CREATE TABLE IF NOT EXISTS closed_logs (
        log INTEGER NOT NULL PRIMARY KEY, ended INTEGER NOT NULL, closed INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TRIGGER IF NOT EXISTS refuse_appends BEFORE INSERT ON entries
    WHEN EXISTS (SELECT * FROM closed_logs WHERE log = NEW.log AND closed)
    BEGIN SELECT RAISE(ABORT, 'the log is closed'); END
    """,
    f"PRAGMA user_version = {SQL_VERSION_PARTITIONED}",
)
"""Made when the first log of a file is closed, so that earlier releases refuse the file only then. ``ended`` and
``closed`` are the numbers of the growths that were ended last, and that closed the log (0: open)."""
