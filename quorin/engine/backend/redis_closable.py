"""What growths and loads do with a log on Redis: close it, reopen it, begin it behind others, skip positions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from quorin.engine.backend import keys
from quorin.engine.backend.closable import ClosedBy
from quorin.engine.backend.growth_keys import LUA_BEGIN_BEHIND, LUA_CLOSE, LUA_CUT, LUA_REOPEN, LUA_SKIP_TO

if TYPE_CHECKING:
    from collections.abc import Collection

    from quorin.engine.backend.protocols import Bounds
    from quorin.engine.backend.redis_connection import RedisServer


class ClosableRedisLog:
    """Part of :class:`quorin.engine.backend.redis.RedisLog`, whose server and keys it uses."""

    _server: RedisServer
    _keys: keys.LogKeys
    _created_together: list[str]

    def bounds(self) -> Bounds:
        """Of the log; :class:`quorin.engine.backend.redis.RedisLog` has it."""
        raise NotImplementedError

    def close_for_appends(self, growth: int, stream_keys: Collection[str] = ()) -> int | None:
        """One script. The highest id there can be becomes the stream's last, so that the server refuses every append
        behind it, those of connections and releases that know nothing of this one too.
        """
        arguments = [keys.fresh_identity(), growth, json.dumps([*stream_keys])]
        last = self._server.run(LUA_CLOSE, self._created_together, arguments)
        return keys.position_of(last) if last else None

    def closed_by(self) -> ClosedBy | None:
        """One round trip."""
        growth, names = self._server.call("HMGET", self._keys.closed, "by", "names")
        return None if growth is None else ClosedBy(int(growth), tuple(json.loads(names or b"[]")))

    def reopen_for_appends(self, growth: int) -> bool:
        """One script, which puts the stream's last id back."""
        return bool(self._server.run(LUA_REOPEN, [self._keys.stream, self._keys.closed], [growth]))

    def cut(self, after: int, through: int) -> int:
        """One script."""
        ids = [keys.stream_id_of(position) for position in (after, through, self.bounds().trimmed)]
        return int(self._server.run(LUA_CUT, [self._keys.stream, self._keys.closed], ids))

    def begin_behind(self, position: int) -> int:
        """One script."""
        arguments = [keys.fresh_identity(), keys.stream_id_of(position), position]
        return int(self._server.run(LUA_BEGIN_BEHIND, self._created_together, arguments))

    def skip_to(self, position: int) -> int:
        """One script."""
        arguments = [keys.fresh_identity(), keys.stream_id_of(position)]
        return int(self._server.run(LUA_SKIP_TO, self._created_together, arguments))
