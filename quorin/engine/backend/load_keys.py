"""The key, the script and the table of open loads; :mod:`quorin.engine.backend.keys` has all others."""

from __future__ import annotations


def loads_key(namespace: str) -> str:
    """Hash of schema name to the JSON of its load (:mod:`quorin.engine.log.open_load`)."""
    return f"{{{namespace}}}:loads"


def load_heartbeat(schema_name: str) -> str:
    """The field of a schema's load among the heartbeats."""
    return f"load {schema_name}"


LUA_SWAP_LOAD = """
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[4] then return 0 end
if ARGV[5] and (redis.call('GET', KEYS[4]) or '') ~= ARGV[5] then return 0 end
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[2], ARGV[2])
  return 1
end
local now = redis.call('XADD', KEYS[3], 'MAXLEN', 1, '*', 't', '')
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('HSET', KEYS[2], ARGV[2], string.sub(now, 1, string.find(now, '-', 1, true) - 1))
return 1
"""
"""KEYS loads, heartbeats, clock, growth; ARGV schema name, its field among the heartbeats, the load's JSON ('': none),
the expected JSON ('': none), the JSON of the growth beside it ('': none; left out: any). Returns 1 if the load was
stored or removed."""

SQL_LOADS = """
CREATE TABLE IF NOT EXISTS loads (
    namespace TEXT NOT NULL, schema_name TEXT NOT NULL, json TEXT NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (namespace, schema_name)
) WITHOUT ROWID;
"""
