"""How a new segment gets its rows without the whole log: snapshots, peers, the history."""
